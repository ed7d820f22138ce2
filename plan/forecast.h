/* forecast.h - what a run will take of memory and time on machines that are not there.
 *
 * Nothing of the model is written down a second time: memory is what vit_memory plans, and a step
 * is vit.c's own, called on a device that computes nothing and keeps a clock (forecast.c). What it
 * costs, each operation says by its shapes (gpus.h, hopper.h).
 */
#pragma once

#include "plan/gpus.h"
#include "vit.h"

/* A run to be. The plan's split is set for each rank; its max_batch and batch are known. */
typedef struct {
    Config config;
    Plan plan;
    bool tf32;
    Cluster cluster;
    int ranks, tp, pp, zero;
    const char *stages; /* --layers-per-stage */
    bool reshard;
    int reduce_type;
} Job;

/* Where the time of a step goes on the stage that has the most to do; BUBBLE: it waits for others.
 */
enum { PRODUCTS, ATTENTION, PASSES, OPTIMISER, COLLECTIVES, BUBBLE, TIME_PARTS };
extern const char *const time_names[TIME_PARTS];
/* The same by what a step's kernels do; the last of them is the collectives'. */
/* clang-format off */
enum {
    PRODUCTS_FORWARD, PRODUCTS_INPUT, PRODUCTS_WEIGHT, ATTENTION_FORWARD, ATTENTION_BACKWARD,
    NORMS_FORWARD, NORMS_BACKWARD, ACT_FORWARD, ACT_BACKWARD, BIAS_SUMS, ENDS, COPIES, UPDATE,
    MESSAGES, KERNELS
};
/* clang-format on */
extern const char *const kernel_names[KERNELS];
/* What the first rank sends in a step. */
enum { SENT_GRADIENTS, SENT_WEIGHTS, SENT_SUMS, SENT_STREAM, SENT_NORMS, SENT_KINDS };
extern const char *const sent_names[SENT_KINDS];

typedef struct {
    int stage;          /* the one whose ranks plan the most memory, */
    Memory memory;      /* that, */
    double buffers;     /* NCCL's and the library's: an estimate, */
    double total, room; /* all of it on the device, and what a rank may take; 0: not known */
} Needs;
typedef struct {
    double seconds, part[TIME_PARTS]; /* of a step; they add up to it */
    double kernel[KERNELS];           /* so do these, but for BUBBLE, */
    double floor[KERNELS];            /* and what gpu_floor says of each */
    double waited;                    /* of collectives, what nothing hides; of `talked` in all */
    double talked;
    double sent[SENT_KINDS], messages[SENT_KINDS]; /* bytes, calls */
    long micros;                                   /* micro-batches of a step */
    double images_per_s, mfu;                      /* of all ranks; share of their peak */
} Forecast;

/* The rank number `rank` of the job. False where the model cannot be shared out so. */
bool job_split(const Job *j, int rank, Split *s, Error *e);
Needs job_needs(const Job *j);
Forecast job_forecast(const Job *j);
/* The device that computes nothing; tests ask it what it was asked for. */
const Backend *backend_clock(const Job *j);
double clock_allocated(void);
