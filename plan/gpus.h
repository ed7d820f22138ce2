/* gpus.h - what GPUs and the links between them can do, and how long single operations take there.
 *
 * Peaks are the makers' own figures; what share of them is reached, and the shape of each formula,
 * are assumptions that are stated here and in gpus.c, and that a measurement replaces.
 */
#pragma once

#include "util/util.h"

typedef struct {
    const char *name;
    double half, tf32, full; /* FLOP/s of dense products in bf16 or fp16, tf32, fp32; 0: none */
    double eight;            /* in fp8, where --precision fp8 can be chosen; 0: it cannot */
    double memory;           /* bytes */
    double bandwidth;        /* of memory, bytes/s */
    int capability;          /* compute capability, 90: 9.0; before 80 there is no bf16; 0: a CPU */
    int processors;          /* multiprocessors; 0: a CPU, which has no waves of tiles */
    double nvlink;           /* to the other GPUs of the machine, bytes/s each way */
    double adapter;          /* a GPU's share of the machine's InfiniBand, bytes/s each way */
    double reach;            /* share of `half` and `tf32` that large products reach */
    double attention[2];     /* share of `half` in our attention, forward and backward */
    double launch;           /* seconds between an operation and the next */
    const char *measured;    /* where measurements stand; NULL: nothing has been measured on it */
} Gpu;

/* GPUs by the machine, and the network between machines. */
typedef struct {
    const Gpu *gpu;
    int per_machine;
    double adapter, latency; /* a GPU's share, bytes/s each way; seconds of one message */
    const char *link;
} Cluster;

extern const Gpu gpus[];
extern const int gpu_count;
extern const char *const link_names[]; /* NULL-terminated: ib, ethernet */

/* By name; false, and an error with all names. gbit: of a machine's adapters together; 0: those
 * that machines with this GPU have. */
bool cluster_new(Cluster *c, const char *gpu, const char *link, int per_machine, double gbit,
                 Error *e);

/* FLOP/s of matrix products at the most. `type`: F32, BF16, F16 or E4M3, with tf32 of F32 operands.
 */
double gpu_peak(const Gpu *g, int type, bool tf32);
/* Seconds of y [M, N] = a [M, K] b [K, N], of which y is stored in numbers of out_bytes. */
double gpu_product(const Gpu *g, int type, bool tf32, double M, double N, double K,
                   double out_bytes);
/* Attention of so many FLOP on so many bytes. */
double gpu_attention(const Gpu *g, int type, double flop, double bytes, bool backward);
/* A pass over so many bytes of memory. */
double gpu_pass(const Gpu *g, double bytes);
/* What no kernel can stay below: so many FLOP of products at the rate of one large one alone, or so
 * many bytes at that of one large copy, whichever takes longer. */
double gpu_floor(const Gpu *g, int type, bool tf32, double flop, double bytes);

/* Ranks that talk, `here` of them on each machine. */
typedef struct {
    int ranks, here;
} Circle;
/* Neighbours in the circle are `stride` ranks apart. */
Circle circle_of(const Cluster *c, int ranks, int stride);
/* Seconds in which each rank sends `sent` bytes around, the whole circle going through `turns`
 * times: once to gather or to add up, twice for both. */
double circle_time(const Cluster *c, const Circle *o, double sent, int turns);
