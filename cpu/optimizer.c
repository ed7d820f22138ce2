/* optimizer.c - gradient norm, Adam, SGD, LAMB and loss scaling on the CPU: the entries of
 * backend.h of these names, whose formulas are there. All work on chunks: pieces of one tensor's
 * parameters, side by side in buffers of all parameters. A thread takes a chunk, and does all that
 * has to be done to it while it is in cache: weights, their average, their rounded copy. */
#include "cpu/optimizer.h"

#include "cpu/bf16.h"
#include "util/rng.h"

#include <math.h>

#define DOUBLE           (sizeof(real) == 8)
#define CLAMP(x, lo, hi) ((x) < (lo) ? (lo) : (x) > (hi) ? (hi) : (x))

static StepState *state; /* of the step that runs */

void optimizer_bind(dev *s)
{
    state = (StepState *)(void *)s;
}

static real *host(const dev *p)
{
    return (real *)p;
}

/* ------------------------------------------------------------------------------------------------
 * Norm of the gradient, loss scale */

/* In double: a float sum of thousands of squares would be off by more than clipping should be. */
static double chunk_squares(const real *x, int n)
{
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (int i = 0; i < n; i++)
        s += (double)x[i] * (double)x[i];
    return s;
}

/* Of a chunk of x; 0 of a copy, which counts on another rank, and of what is frozen */
static real counted_squares(const Chunk *c, const real *x)
{
    return c->flags & CHUNK_COPY || c->rate == 0 ? 0 : (real)chunk_squares(x, c->n);
}

/* partial[i] = sum of squares of chunk i */
void optimizer_sum_squares(dev *partial, const dev *x, const dev *chunks, int n)
{
    const Chunk *c = (const Chunk *)chunks;
#pragma omp parallel for schedule(static)
    for (int i = 0; i < n; i++)
        host(partial)[i] = counted_squares(&c[i], host(x) + c[i].offset);
}

/* grad_norm = sqrt(sum of partial) / loss_scale, clip = min(1, max_norm / (grad_norm + 1e-6)),
 * where 1e-6 is torch.nn.utils.clip_grad_norm_'s. A norm that is not finite skips the step: a
 * single NaN or infinity among the gradients makes it so. */
void optimizer_finish_norm(const dev *partial, int n, double max_norm)
{
    StepState *s = state;
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)host(partial)[i];
    s->grad_norm = sqrt(sum) / s->loss_scale;
    s->skip = !isfinite(s->grad_norm);
    s->clip = 1;
    if (max_norm > 0 && !s->skip) {
        double c = max_norm / (s->grad_norm + 1e-6);
        s->clip = c < 1 ? c : 1;
    }
    s->t += !s->skip;
    s->skipped += s->skip;
}

/* The next step's loss scale (see LossScaling). A skipped step counts towards giving up only where
 * the scale was at its lowest already, or is not ours to lower. */
void optimizer_scale_loss(const LossScaling *c)
{
    StepState *s = state;
    bool lowest = c->kind <= SCALING_STATIC || s->loss_scale <= 1;
    double scale = s->loss_scale;
    s->skipped_in_row = s->skip ? s->skipped_in_row + lowest : 0;
    if (c->kind == SCALING_DYNAMIC && s->skip) {
        s->good_steps = 0;
        s->patience -= s->patience > 0;
        if (s->patience == 0)
            scale *= 0.5;
    } else if (c->kind == SCALING_DYNAMIC && ++s->good_steps >= (uint32_t)c->interval) {
        s->good_steps = 0;
        s->patience = (uint32_t)c->hysteresis;
        scale *= 2;
    } else if (c->kind == SCALING_AUTO) {
        scale *= s->skip || (double)s->large > 1e-7 * (double)s->counted ? 0.5 : 2;
        s->large = s->counted = 0;
    }
    if (c->kind >= SCALING_DYNAMIC)
        s->loss_scale = CLAMP(scale, 1, 4294967296.0);
}

/* ------------------------------------------------------------------------------------------------
 * Optimisers */

/* One chunk's part of each buffer, n elements (NULL where there is none; n is 0 of what is frozen),
 * its learning rate and weight decay */
typedef struct {
    real *w, *grad, *m, *v, *ema;
    int n;
    double lr, decay;
} Slice;

static Slice slice_of(const OptStep *a, int k)
{
    const Chunk *c = (const Chunk *)a->chunks + k;
    long at = c->offset;
    return (Slice){.w = host(dev_at(a->w, at, F32)),
                   .grad = host(dev_at(a->grad, at, F32)),
                   .m = host(dev_at(a->exp_avg, at, F32)),
                   .v = host(dev_at(a->exp_avg_sq, at, F32)),
                   .ema = host(dev_at(a->ema, at, F32)),
                   .n = c->rate > 0 ? c->n : 0,
                   .lr = state->lr * (double)c->rate,
                   .decay = c->flags & CHUNK_DECAY ? a->opt->weight_decay : 0};
}

/* What every gradient is multiplied by: the clipping, and the loss scale taken out again */
static real gradient_scale(void)
{
    return (real)(state->clip / state->loss_scale);
}

/* ema = decay ema + (1 - decay) w, decay rising to its value */
static void update_ema(const OptStep *a, const Slice *s)
{
    real decay = (real)fmin(a->opt->ema_decay, (1.0 + state->t) / (10.0 + state->t));
    for (int i = 0; s->ema && i < s->n; i++)
        s->ema[i] = decay * s->ema[i] + (1 - decay) * s->w[i];
}

/* x in bf16, rounded up or down by chance, in proportion to the distances: random bits are added
 * below the mantissa that it keeps, then cut off there. */
static uint16_t round_by_chance(real x, uint32_t random)
{
    float f = (float)x;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return isfinite(f) ? (uint16_t)((bits + (random >> 16)) >> 16) : bf16_from_real(x);
}

/* The first n elements of chunk k to the working weights, bf16, where there are any besides. What
 * is frozen is rounded to the nearest: chance would change it whenever it is rounded anew. */
static void round_chunk(const OptStep *a, int k, int n)
{
    const Chunk *c = (const Chunk *)a->chunks + k;
    const real *w = host(a->w) + c->offset;
    uint16_t *work = (uint16_t *)a->work + c->offset;
    if (a->work == a->w)
        return;
    if (!a->stochastic || c->rate == 0) {
#pragma omp simd
        for (int i = 0; i < n; i++)
            work[i] = bf16_from_real(w[i]);
        return;
    }
    for (int i = 0; i < n; i += 4) {
        uint32_t block = (uint32_t)k * (VIT_CHUNK / 4) + (uint32_t)i / 4; /* of random numbers */
        Philox r = rng_block(state->seed, block, 0, state->t, RNG_ROUND, 0);
        for (int j = i; j < n && j < i + 4; j++)
            work[j] = round_by_chance(w[j], r.v[j - i]);
    }
}

/* What follows new weights, while they are in cache */
static void follow(const OptStep *a, int k, const Slice *s)
{
    update_ema(a, s);
    round_chunk(a, k, s->n);
}

void optimizer_round_weights(const OptStep *a)
{
#pragma omp parallel for schedule(static)
    for (int k = 0; k < a->n; k++)
        round_chunk(a, k, ((const Chunk *)a->chunks)[k].n);
}

/* m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, w = keep w - step m / (sqrt(v) root2 + eps): step and
 * root2 have the corrections 1 - b^t of mh and vh in them, once for all parameters. */
void optimizer_adam(const OptStep *a)
{
    const OptConfig *o = a->opt;
    if (state->skip)
        return;
    double c1 = 1 - pow(o->beta1, state->t), c2 = 1 - pow(o->beta2, state->t);
    real b1 = (real)o->beta1, b2 = (real)o->beta2, eps = (real)o->eps, gscale = gradient_scale();
    real a1 = (real)(1 - o->beta1), a2 = (real)(1 - o->beta2); /* 1 - 0.999f is off by 1e-5 */
    real root2 = (real)(1 / sqrt(c2));
#pragma omp parallel for schedule(static)
    for (int k = 0; k < a->n; k++) {
        const Slice s = slice_of(a, k);
        real step = (real)(s.lr / c1);
        real keep = o->kind == OPT_ADAMW ? (real)(1 - s.lr * s.decay) : 1;
        real l2 = o->kind == OPT_ADAM ? (real)s.decay : 0;
#pragma omp simd
        for (int i = 0; i < s.n; i++) {
            real g = gscale * s.grad[i] + l2 * s.w[i];
            s.m[i] = b1 * s.m[i] + a1 * g;
            s.v[i] = b2 * s.v[i] + a2 * g * g;
            real root = DOUBLE ? (real)sqrt((double)s.v[i]) : (real)sqrtf((float)s.v[i]);
            s.w[i] = keep * s.w[i] - step * s.m[i] / (root * root2 + eps);
        }
        follow(a, k, &s);
    }
}

/* m = momentum m + g + wd w, w = w - lr m */
void optimizer_sgd(const OptStep *a)
{
    if (state->skip)
        return;
    real gscale = gradient_scale();
    bool fresh = state->t <= 1; /* the buffer starts as the first gradient */
    real momentum = fresh ? 0 : (real)a->opt->momentum;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < a->n; k++) {
        const Slice s = slice_of(a, k);
        real lr = (real)s.lr, wd = (real)s.decay;
#pragma omp simd
        for (int i = 0; i < s.n; i++) {
            s.m[i] = momentum * s.m[i] + gscale * s.grad[i] + wd * s.w[i];
            s.w[i] -= lr * s.m[i];
        }
        follow(a, k, &s);
    }
}

/* The moments as Adam's, u = mh / (sqrt(vh) + eps) + wd w in place of the gradient, and the sums of
 * squares of w and u, norms[0][k] and norms[1][k]: the step's length needs whole tensors' norms. */
void optimizer_lamb_direction(const OptStep *a)
{
    const OptConfig *o = a->opt;
    if (state->skip)
        return;
    real c1 = (real)(1 / (1 - pow(o->beta1, state->t)));
    real c2 = (real)(1 / (1 - pow(o->beta2, state->t)));
    real a1 = (real)(1 - o->beta1), a2 = (real)(1 - o->beta2);
    real b1 = (real)o->beta1, b2 = (real)o->beta2, gscale = gradient_scale();
#pragma omp parallel for schedule(static)
    for (int k = 0; k < a->n; k++) {
        const Chunk *c = (const Chunk *)a->chunks + k;
        const Slice s = slice_of(a, k);
        real wd = (real)s.decay, *u = s.grad;
        for (int i = 0; i < s.n; i++) {
            real g = gscale * u[i];
            s.m[i] = b1 * s.m[i] + a1 * g;
            s.v[i] = b2 * s.v[i] + a2 * g * g;
            u[i] = s.m[i] * c1 / ((real)sqrt((double)(s.v[i] * c2)) + (real)o->eps) + wd * s.w[i];
        }
        host(a->norms)[k] = counted_squares(c, s.w);
        host(a->norms)[a->n + k] = counted_squares(c, u);
    }
}

/* w = w - lr |w| / |u| u, the norms over a tensor: chunks k..end-1. Vectors, and tensors where
 * either norm is 0, have 1 in place of the ratio. */
void optimizer_lamb_apply(const OptStep *a)
{
    const Chunk *chunks = (const Chunk *)a->chunks;
    const real *norms = host(a->norms);
    if (state->skip)
        return;
    for (int k = 0; k < a->n;) {
        int end = k;
        double ww = 0, uu = 0;
        for (; end < a->n && chunks[end].tensor == chunks[k].tensor; end++) {
            ww += (double)norms[end];
            uu += (double)norms[a->n + end];
        }
        bool trust = !(chunks[k].flags & CHUNK_1D) && ww > 0 && uu > 0;
        double ratio = trust ? sqrt(ww) / sqrt(uu) : 1;
#pragma omp parallel for schedule(static)
        for (int i = k; i < end; i++) {
            const Slice s = slice_of(a, i);
            real lr = (real)(s.lr * ratio);
            for (int j = 0; j < s.n; j++)
                s.w[j] -= lr * s.grad[j];
            follow(a, i, &s);
        }
        k = end;
    }
}
