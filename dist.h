/* dist.h - which rank owns what of the model, and in which order it works.
 *
 * A model's parameters are units (model/params.h). Units holds what this rank has of them, and the
 * unit_* calls hide how much that is: the model asks for a unit's weights, gives them back, and
 * hands over its gradient. With one process, and with data parallelism, every rank has all of it.
 * There is no arithmetic here that depends on the model, and no symbol of MPI or NCCL.
 */
#pragma once

#include "backend.h"

typedef struct {
    const Layout *layout;
    const Backend *be;
    int type;        /* F32, BF16, F16: of the working weights */
    bool stochastic; /* they are rounded up or down by chance */
    OptConfig opt;
    double clip; /* global norm; 0: off */
    /* buffers of layout->n_padded elements each; training: all, else weights and work alone */
    dev *weights;    /* master weights, real */
    dev *work;       /* working weights in `type`; F32: the same buffer */
    dev *grads;      /* sum over the micro-batches, and after the last one over the ranks */
    dev *exp_avg;    /* first moment, or sgd's momentum */
    dev *exp_avg_sq; /* second moment; NULL for sgd */
    dev *ema;        /* average of the weights, or NULL */
    dev *unit_grad;  /* one unit's gradient of micro-batches after the first */
    dev *chunks, *partial, *norms; /* layout->chunk, sums over each, lamb's two */
    bool stale;                    /* work is older than weights */
    bool averaged;                 /* the average stands in the weights' place */
} Units;

/* A unit's working weights, until it is released. */
dev *unit_acquire(const Units *u, int unit);
void unit_release(const Units *u, int unit);
/* Where micro-batch `micro` of the step writes the unit's gradient; real. */
dev *unit_gradient(const Units *u, int unit, int micro);
/* It is written there: adds it to the sum; last: of the step, so that the ranks' sums are added. */
void unit_reduce(const Units *u, int unit, int micro, bool last);

/* After unit_reduce of all units: global norm, clipping, optimiser (formulas: OptStep). */
void units_update(const Units *u);
/* The working weights follow master weights that were written. Needs a bound StepState. */
void units_refresh(Units *u);
/* Exchanges weights and average. */
void units_swap_ema(Units *u);
/* Numbers offset .. offset+n-1 of a buffer, from or to the host: a tensor's are p->offset, p->n. */
void units_read(const Units *u, const dev *buffer, long offset, long n, real *out);
void units_write(Units *u, dev *buffer, long offset, long n, const real *in);

/* The schedule of a step: calls work(ctx, micro, false) for each micro-batch's forward pass and
 * work(ctx, micro, true) for its backward pass. Here alone is said in which order: one stage does
 * each micro-batch's backward pass at once, so that one set of activations suffices. */
void run_schedule(int micros, void (*work)(void *ctx, int micro, bool backward), void *ctx);
