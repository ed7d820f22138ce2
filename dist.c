/* dist.c - which rank owns what of the model, and in which order it works. See dist.h.
 *
 * Today every rank has all weights, and gradients are summed over the ranks unit by unit while the
 * backward pass goes on. Sharding and gathering happen behind the same calls.
 */
#include "dist.h"

dev *unit_acquire(const Units *u, int unit)
{
    return dev_at(u->work, u->layout->unit[unit].offset, u->type);
}

void unit_release(const Units *u, int unit)
{
    (void)u;
    (void)unit;
}

static dev *sum_of(const Units *u, int unit)
{
    return dev_at(u->grads, u->layout->unit[unit].offset, F32);
}

/* The first micro-batch writes its gradient where the sum will stand, later ones beside it. */
dev *unit_gradient(const Units *u, int unit, int micro)
{
    return micro == 0 ? sum_of(u, unit) : u->unit_grad;
}

void unit_reduce(const Units *u, int unit, int micro, bool last)
{
    if (micro > 0)
        u->be->add(sum_of(u, unit), u->unit_grad, u->layout->unit[unit].n);
    if (last)
        u->be->all_reduce(sum_of(u, unit), F32, u->layout->unit[unit].n);
}

void units_update(const Units *u)
{
    const Backend *be = u->be;
    int n = u->layout->chunks;
    OptStep s = {.opt = &u->opt,
                 .chunks = u->chunks,
                 .n = n,
                 .w = u->weights,
                 .work = u->work,
                 .work_type = u->type,
                 .stochastic = u->stochastic,
                 .grad = u->grads,
                 .exp_avg = u->exp_avg,
                 .exp_avg_sq = u->exp_avg_sq,
                 .ema = u->ema,
                 .norms = u->norms};
    be->sum_squares(u->partial, u->grads, u->chunks, n);
    be->finish_norm(u->partial, n, u->clip);
    if (u->opt.kind == OPT_SGD) {
        be->sgd(&s);
    } else if (u->opt.kind == OPT_LAMB) {
        be->lamb_direction(&s);
        be->lamb_apply(&s);
    } else {
        be->adam(&s);
    }
}

void units_refresh(Units *u)
{
    bool stale = u->stale && u->work != u->weights;
    u->stale = false;
    if (stale && u->stochastic)
        u->be->round_weights(u->work, u->type, u->weights, u->layout->n_padded);
    else if (stale)
        u->be->convert(u->work, u->type, u->weights, F32, u->layout->n_padded);
}

void units_swap_ema(Units *u)
{
    dev *weights = u->weights;
    u->weights = u->ema;
    u->ema = weights;
    if (u->type == F32)
        u->work = u->weights;
    u->averaged = !u->averaged;
    u->stale = true;
}

void units_read(const Units *u, const dev *buffer, long offset, long n, real *out)
{
    u->be->download(out, dev_at((dev *)buffer, offset, F32), (size_t)n * sizeof *out);
}

void units_write(Units *u, dev *buffer, long offset, long n, const real *in)
{
    u->be->upload(dev_at(buffer, offset, F32), in, (size_t)n * sizeof *in);
    u->stale |= buffer == u->weights;
}

void run_schedule(int micros, void (*work)(void *ctx, int micro, bool backward), void *ctx)
{
    for (int micro = 0; micro < micros; micro++) {
        work(ctx, micro, false);
        work(ctx, micro, true);
    }
}
