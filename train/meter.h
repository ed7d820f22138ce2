/* meter.h - how training goes: what the steps since the last report came to, and how fast. */
#pragma once

#include "train/session.h"

typedef struct {
    const Session *s;
    Loader *loader;
    double began;   /* time the meter began, */
    uint64_t first; /* at this step */
    /* since the last report */
    double loss, hits; /* sums over the images */
    long images, steps;
    double from;     /* time of the last report, later by what was not training since */
    double reported; /* time of the last report */
    /* totals at the last report */
    double waited;      /* seconds for data */
    double cpu_seconds; /* of the process */
    double data_bytes;  /* of all ranks */
    double comm_bytes, comm_waited; /* this rank's, for collectives, */
    uint64_t asked;    /* of so many steps: a GPU is asked for one more than reported */
    double step_bytes; /* of the last of them */
    /* in all since the first report: before it, nothing was there to wait for */
    double training, stalled; /* seconds */
} Meter;

/* Training begins, with the data of `loader`: says so in the log. */
void meter_begin(Meter *m, const Session *s, Loader *loader);
/* Step number `step`, from 1, has come to r, and the ranks have met so many damaged images so far.
 * Draws the bar; reports every --log-every steps. All ranks call this together. */
void meter_step(Meter *m, const StepResult *r, uint64_t step, double damaged);
/* So many seconds, bytes to other ranks and seconds of waiting for them went into something else:
 * what is reported is training alone. */
void meter_pause(Meter *m, double seconds, double bytes, double waited);
/* Training has ended: what became of the data, and what would make it faster. */
void meter_end(const Meter *m);

/* Passes over the data after the first `step` steps of the run, of which s->state counts some. */
double meter_epoch(const Session *s, uint64_t step);
/* What the process has used so far. */
typedef struct {
    double cpu_seconds, peak_bytes;
} Usage;
Usage meter_usage(void);
