/* report.h - what a run says: lines or a progress bar on the screen, JSON lines in log.jsonl. */
#pragma once

#include "util/util.h"

/* ---- log.jsonl: one object a line; each line is written and flushed at once ---- */

bool log_open(const char *path, bool append, Error *e);
void log_close(void);
/* log_begin("step"); log_num("loss", x); ...; log_end(). Without an open log they do nothing.
 * A number that is not finite becomes null; text is escaped, bytes that are no UTF-8 become U+FFFD.
 * Appending to a file whose last line was cut off starts a new line. */
void log_begin(const char *event);
void log_num(const char *key, double value);
void log_text(const char *key, const char *value);
void log_end(void);

/* ---- the screen ---- */

typedef struct {
    uint64_t step, total; /* steps done, steps of the run */
    double epoch;
    double loss, acc; /* mean over the images since the last report; acc in percent */
    double lr, grad_norm;
    double ms, images_per_s; /* per step, since the last report */
    double gflops;           /* arithmetic done per second, */
    double mfu;              /* in percent of the devices' peak; 0: not known */
    double loss_scale;       /* 0: none */
    double wait;             /* share of the time spent waiting for data */
    double data_bytes_per_s; /* read from files */
    int workers;             /* threads that make batches */
    long damaged;            /* images found damaged so far */
    double cpu;              /* share of the compute threads' time that the process was busy */
    double gpu;              /* share of the time the device was busy lately; -1: not known */
    double memory;           /* peak, bytes */
    uint64_t skipped;        /* steps left out because of non-finite gradients */
    double eta;              /* seconds to the end */
} StepReport;

void report_step(const StepReport *r); /* a plain line, and the log */
void report_bar(const StepReport *r);  /* terminals alone: redraws the bar */
/* "evaluating 512/1000", images/s (0: not said) and the time left: terminals alone. */
void report_progress(const char *what, long done, long total, double images_per_s);
void report_clear(void); /* remove the bar before other output */
bool report_terminal(void);
void format_seconds(double s, char *out, size_t size); /* "1m05s" */
void format_count(double n, char *out, size_t size);   /* "5.7 M" */
