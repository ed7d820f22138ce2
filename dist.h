/* dist.h - which rank owns what of the model, and in which order it works.
 *
 * A model's parameters are units (model/params.h). Units holds what this rank has of them, and the
 * unit_* calls hide how much that is: the model asks for a unit's weights, gives them back, and
 * hands over its gradient. There is no arithmetic here that depends on the model, and no symbol of
 * MPI or NCCL.
 *
 * ZeRO (Rajbhandari et al. 2020) shares out among the data parallel ranks what all of them would
 * hold: 1 the optimiser's state, 2 the gradients as well, 3 the weights as well (FSDP).
 */
#pragma once

#include "backend.h"

/* ---- how ranks share the work ---- */

/* The ranks along one direction: this one is number `rank` of `ranks`. */
typedef struct {
    int rank, ranks;
    Group *group; /* NULL where it is alone */
} Axis;

/* Ranks of a tensor parallel group are neighbours, then those of a data parallel one, then stages:
 * rank = (pp.rank * dp.ranks + dp.rank) * tp.ranks + tp.rank. */
typedef struct {
    Axis world, tp, dp, pp;
    Group *back;     /* pp's again, for what goes from the last stage to the first */
    Group *parts;    /* ranks that hold different parts of the gradient: of its norm */
    int zero;        /* 0 .. 3 */
    bool reshard;    /* zero 3: weights are given back after the forward pass, gathered again */
    int reduce_type; /* of gradients on their way: F32 or BF16 */
    int first, end;  /* units of this stage: first .. end - 1 */
} Split;

/* Shares out `ranks` processes, of which this is number `rank`: tp of them a tensor parallel group,
 * pp stages, the rest data parallel. stages: layers of each, "3,3,3,3", or "": as equal as they can
 * be, later ones one more. Fails where the model's heads, MLP or layers do not divide so; the hint
 * has the nearest that do. No rank talks to another before split_connect, which all call. */
bool split_new(Split *s, const Config *c, int rank, int ranks, int tp, int pp, const char *stages,
               int zero, Error *e);
void split_connect(Split *s, const Backend *be);
Split split_alone(const Config *c); /* one process */
/* What of the model this rank has, and how many micro-batches are between their forward and
 * backward pass at most. */
Cut split_cut(const Split *s);
int split_in_flight(const Split *s);
bool split_reads(const Split *s);  /* this rank is one of those that read images, */
bool split_speaks(const Split *s); /* of those whose losses count: others have the same or none */

/* The schedule of a step: calls work(ctx, micro, false) for each micro-batch's forward pass and
 * work(ctx, micro, true) for its backward pass. Here alone is said in which order. One stage does
 * each micro-batch's backward pass at once, so that one set of activations suffices. With several,
 * a stage is as many forward passes ahead as there are stages after it, then does one backward and
 * one forward pass in turn: 1F1B, PipeDream-Flush (Narayanan et al. 2021). */
void run_schedule(const Split *s, int micros, void (*work)(void *ctx, int micro, bool backward),
                  void *ctx);

/* ---- memory ---- */

/* A plan runs twice over the same list of take()s: first without memory (base NULL), to add up,
 * then with it. Tests leave room between buffers, to see that nothing is written there. */
typedef struct {
    dev *base;
    size_t bytes; /* taken so far */
    void (*gap)(dev *p, size_t bytes);
} Arena;

/* The next piece, 256 bytes aligned; NULL while adding up, and where nothing is wanted. */
dev *take_bytes(Arena *a, double bytes);
dev *take(Arena *a, int type, double elements);

/* ---- what this rank has ---- */

typedef struct {
    const Layout *layout;
    const Backend *be;
    const Split *split;
    int type;        /* F32, BF16, F16: of the working weights */
    bool training;   /* there are gradients and an optimiser */
    bool stochastic; /* working weights are rounded up or down by chance */
    bool transient;  /* working weights in 16 bits, where no other rank needs them, are not kept: a
                        unit's are rounded when it is asked for. Not with `stochastic`: they would
                        not be the same again */
    bool average;    /* there is an average of the weights */
    OptConfig opt;
    double clip; /* global norm; 0: off */
    /* buffers of this rank's shards, layout->n_own elements each */
    dev *weights;    /* master weights, real */
    dev *shard;      /* working weights in `type`; F32: the same buffer; NULL: not kept */
    dev *grads;      /* the sum over micro-batches and ranks, once units_settle has returned */
    dev *exp_avg;    /* first moment, or sgd's momentum */
    dev *exp_avg_sq; /* second moment; NULL for sgd */
    dev *ema;        /* average of the weights, or NULL */
    /* of whole units: layout->n_padded elements, or room for two units where more is not kept */
    dev *work;         /* working weights; not sharded: the same buffer as shard */
    dev *sums;         /* gradients of this rank's micro-batches; not sharded: grads */
    dev *unit_grad[2]; /* a unit's gradient of one micro-batch, of units in turn */
    dev *unit_sum[2];  /* this rank's shard of the sum over ranks of one micro-batch */
    dev *packed[2];    /* a unit's gradient in reduce_type, where that is not F32 */
    dev *chunks, *partial, *norms; /* layout->chunk, sums over each, lamb's two */
    size_t bytes_weights, bytes_grads, bytes_opt; /* of all these */
    /* collectives on their way */
    struct {
        dev *sum; /* NULL: none */
        int unit, micro;
        Ticket ticket;
    } reducing[2];
    Ticket coming[2];
    bool *here;    /* [units] whose weights are gathered, or on their way */
    bool stale;    /* working weights are older than master weights */
} Units;

void units_new(Units *u); /* the fields up to `clip` are given; units_free */
void units_free(Units *u);
/* Takes all buffers; moments and average from `state`, which may be the host's memory. */
void units_plan(Units *u, Arena *a, Arena *state);
void units_start(Units *u); /* once there is memory */

/* A unit's working weights, until the next but one is asked for; `next`, which is asked for after
 * it (-1: none), is sent for meanwhile. */
dev *unit_acquire(Units *u, int unit, int next);
/* Where micro-batch `micro` of the step writes the unit's gradient; real. */
dev *unit_gradient(Units *u, int unit, int micro);
/* It is written there: adds it to the sum; last: of the step, so that the ranks' sums are added. */
void unit_reduce(Units *u, int unit, int micro, bool last);
/* Ends a backward pass: no sum is on its way any more. */
void units_settle(Units *u);
/* What a pass that a backend has repeated left behind: weights of no unit but a and b are here (not
 * resharded: of all); -1: of none. units_state tells apart what may be here before it. */
void units_left(Units *u, int a, int b);
uint64_t units_state(const Units *u);

/* After the last backward pass: global norm, clipping, optimiser (formulas: OptStep). */
void units_update(Units *u);
/* The working weights follow master weights that were written. Needs a bound StepState. */
void units_refresh(Units *u);
/* Exchanges weights and average, between two steps of training. */
void units_swap_ema(Units *u);

/* Numbers offset .. offset+n-1 of a buffer of shards, from or to the host. */
void units_read(const Units *u, const dev *buffer, long offset, long n, real *out);
void units_write(Units *u, dev *buffer, long offset, long n, const real *in);
/* Which elements *begin .. *end - 1 of its part of tensor p this rank holds (none: they are equal),
 * and where the first of them stands in buffers of shards. Where several ranks hold the same ones,
 * `once` shares them out, so that each is written to a file by one rank. */
long units_kept(const Units *u, const Param *p, bool once, long *begin, long *end);
