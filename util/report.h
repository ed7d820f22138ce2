/* report.h - what a run says: lines or a progress bar on the screen, JSON lines in log.jsonl. */
#pragma once

#include "util/util.h"

/* ---- log.jsonl: one object a line; each line is written and flushed at once ---- */

bool log_open(const char *path, bool append, Error *e);
void log_close(void);
/* log_begin("step"); log_num("loss", x); ...; log_end(). Without an open log they do nothing.
 * A number that is not finite becomes null; text is escaped, bytes that are no UTF-8 become U+FFFD.
 * Appending to a file whose last line was cut off starts a new line. The numbers of "step" and
 * "eval" lines go to TensorBoard's event file too (tfevents.h), where one is open. */
void log_begin(const char *event);
void log_num(const char *key, double value);
void log_text(const char *key, const char *value);
void log_end(void);

/* ---- the screen ---- */

/* What the steps since the last report came to. Each number stands in log.jsonl under its name
 * here, where it is known (of the report r). */
#define STEP_NUMBERS(X)                                                                            \
    X(step, true) /* steps done */                                                                 \
    X(epoch, true)                                                                                 \
    X(loss, true) /* mean over the images, */                                                      \
    X(acc, true)  /* and share of those that were right, in percent */                             \
    X(lr, true)                                                                                    \
    X(grad_norm, true)                                                                             \
    X(ms, true) /* per step */                                                                     \
    X(images_per_s, true)                                                                          \
    X(gflops, true)    /* arithmetic done per second, */                                           \
    X(mfu, r->mfu > 0) /* in percent of the devices' peak; 0: not known */                         \
    X(loss_scale, r->loss_scale > 0)                                                               \
    X(wait, true)                    /* share of the time spent waiting for data */                \
    X(data_bytes_per_s, true)        /* read from files */                                         \
    X(comm_bytes, r->comm_bytes > 0) /* sent to other ranks per step, by this one */               \
    X(comm_wait, r->comm_wait >= 0)  /* share of the time in which nothing computed meanwhile */   \
    X(workers, true)                 /* threads that make batches */                               \
    X(damaged, true)                 /* images found damaged so far */                             \
    X(cpu, true)                /* share of the compute threads' time that the process was busy */ \
    X(gpu, r->gpu >= 0)         /* share of the time the device was busy; -1: not known */         \
    X(memory, true)             /* peak, bytes */                                                  \
    X(skipped, true)            /* steps left out because of non-finite gradients */               \
    X(eta, true)                /* seconds to the run's end */                                     \
    X(slowest, r->slowest >= 0) /* the rank that the others wait for most; -1: not known, and */   \
    X(slowest_by, r->slowest >= 0) /* how much longer than the mean rank it works, of a step */

typedef struct {
#define X(number, known) double number;
    STEP_NUMBERS(X)
#undef X
    double total;         /* steps of the run, */
    double epochs;        /* epochs of it, */
    double elapsed, best; /* seconds since it began or went on, best top-1; -1: none yet */
} StepReport;

void report_step(const StepReport *r); /* a plain line, and the log */
void report_bar(const StepReport *r);  /* terminals alone: redraws the bar */
/* The bar as it fits into columns - 1 characters: what matters less is left out first. */
void report_bar_line(const StepReport *r, int columns, char *out, size_t size);
/* "evaluating 512/1000", images/s (0: not said) and the time left: terminals alone. */
void report_progress(const char *what, long done, long total, double images_per_s);
/* "model     width 128, ...": a line that begins with a word of up to nine letters. On a terminal
 * it is folded between words, under its own beginning. */
void report_line(const char *fmt, ...) PRINTF_LIKE(1, 2);
/* That folding of `line` to `columns`, its newline included; free() it. */
char *report_folded(const char *line, int columns);
void report_clear(void); /* remove the bar before other output */
bool report_terminal(void);
/* The last word on a stream: dies where something could not be written, now or before. A reader who
 * has left (`| head`) wanted no more. */
void report_written(FILE *out);
void format_seconds(double s, char *out, size_t size); /* "1m05s" */
void format_count(double n, char *out, size_t size);   /* "5.7 M" */
