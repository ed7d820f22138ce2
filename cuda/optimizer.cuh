/* optimizer.cuh - gradient norm, Adam, SGD, LAMB, loss scaling.
 *
 * Each host function is the Backend entry of its name; formulas are in backend.h. A block takes one
 * chunk: at most VIT_CHUNK consecutive elements of one tensor, beginning at a multiple of 64, so
 * that a thread reads 4 neighbours at once. Blocks of empty chunks, which other ranks have, and of
 * frozen ones do nothing. Moments and average may be in pinned memory of the host. Arithmetic on
 * weights is in float; sums of squares and whatever is computed once per step are in double. What a
 * step depends on (t, lr, clip, loss scale, skip) is read from the StepState, so that the calls can
 * be replayed.
 *
 * Floors: bytes over 4.3 TB/s for B/16 (86.6 M parameters) on an H200, estimates.
 */
#pragma once

#include "cuda/layers.cuh"

enum { CHUNK_THREADS = 256 };

/* What a block works on: none of a chunk that is frozen */
__device__ inline Chunk learning(const dev *chunks)
{
    Chunk c = ((const Chunk *)chunks)[blockIdx.x];
    c.n = c.rate > 0 ? c.n : 0;
    return c;
}

/* f(i, w, g) for a thread's part of a chunk: elements i.. of the weights and of the gradient */
template <int N, class F> __device__ inline void chunk_packs(const OptStep &a, const Chunk &c, F f)
{
    for (int i = (int)threadIdx.x * N; i < c.n; i += CHUNK_THREADS * N) {
        float w[N], g[N];
        take(w, (float *)a.w + c.offset + i, c.n - i);
        take(g, (float *)a.grad + c.offset + i, c.n - i);
        f(i, w, g);
    }
}
/* The same with both moments, which f changes: f(i, w, g, m, v) */
template <int N, class F>
__device__ inline void chunk_moments(const OptStep &a, const Chunk &c, F f)
{
    chunk_packs<N>(a, c, [&](int i, float(&w)[N], float(&g)[N]) {
        float *at_m = (float *)a.exp_avg + c.offset + i;
        float *at_v = (float *)a.exp_avg_sq + c.offset + i;
        float m[N], v[N];
        take(m, at_m, c.n - i);
        take(v, at_v, c.n - i);
        f(i, w, g, m, v);
        put(at_m, m, c.n - i);
        put(at_v, v, c.n - i);
    });
}
template <int N> __device__ inline double squares(const float (&x)[N])
{
    double s = 0;
    each<N>([&](int k) { s += (double)x[k] * (double)x[k]; });
    return s;
}

/* ------------------------------------------------------------------------------------------------
 * Norm of the gradient */

/* partial[i] = sum of squares of chunk i, 0 of a copy. Reads 346 MB: floor 81 us. */
template <int N>
static __global__ void sum_squares_kernel(float *partial, const float *x, const dev *chunks)
{
    const Chunk c = learning(chunks);
    const int n = c.flags & CHUNK_COPY ? 0 : c.n;
    double sum = 0;
#pragma unroll 4
    for (int i = (int)threadIdx.x * N; i < n; i += CHUNK_THREADS * N) {
        float v[N];
        take(v, x + c.offset + i, c.n - i);
        sum += squares(v);
    }
    sum = block_sum(sum, dynamic_smem<double>());
    if (threadIdx.x == 0)
        partial[blockIdx.x] = (float)sum;
}
static void cuda_sum_squares(dev *partial, const dev *x, const dev *chunks, int n)
{
    by_quads(aligned(x), [&](auto quad) {
        launch(sum_squares_kernel<quad>, (unsigned)n, CHUNK_THREADS, 32 * sizeof(double), cu.stream,
               ptr<float>(partial), ptr<const float>(x), chunks);
    });
}

/* One block adds the n partial sums, thread i every 512th from i on, and writes the state:
 * 21,000 of them take a few us of latency. */
enum { FINISH_THREADS = 512 };
static __global__ void finish_norm_kernel(StepState *s, const float *partial, int n,
                                          double max_norm)
{
    double sum = 0;
#pragma unroll 8
    for (int i = (int)threadIdx.x; i < n; i += FINISH_THREADS)
        sum += (double)partial[i];
    sum = block_sum(sum, dynamic_smem<double>());
    if (threadIdx.x > 0)
        return;
    double norm = sqrt(sum) / s->loss_scale, clip = 1;
    bool skip = !isfinite(norm);
    if (max_norm > 0 && !skip)
        clip = fmin(1.0, max_norm / (norm + 1e-6)); /* as torch.nn.utils.clip_grad_norm_ */
    s->grad_norm = norm;
    s->clip = clip;
    s->skip = skip;
    s->skipped += skip;
    s->t += !skip;
}
static void cuda_finish_norm(const dev *partial, int n, double max_norm)
{
    launch(finish_norm_kernel, 1, FINISH_THREADS, 32 * sizeof(double), cu.stream,
           (StepState *)cu.state, ptr<const float>(partial), n, max_norm);
}

/* ------------------------------------------------------------------------------------------------
 * Writing weights */

/* x rounded to W up or down by chance, in proportion to the distances: random bits are added below
 * the mantissa that W keeps, then cut off there. Infinities and NaN stay what they are. */
template <class W> __device__ inline float round_by_chance(float x, uint32_t random)
{
    constexpr int cut = sizeof(W) == 4 ? 0 : std::is_same<W, bf16>::value ? 16 : 13;
    if (cut == 0 || !isfinite(x))
        return x;
    /* fp16 below 2^-14 counts in steps of 2^-24, which are those of floats around 2^-14 */
    float base = cut == 13 && fabsf(x) < 0x1p-14f ? copysignf(0x1p-14f, x) : 0;
    uint32_t bits = __float_as_uint(x + base) + (random >> (32 - cut) % 32);
    return __uint_as_float(bits & ~((1u << cut) - 1)) - base;
}

/* Elements i.. of this block's chunk to the working copy, which is the same buffer as w in fp32.
 * What is frozen is rounded to the nearest: chance would change it whenever it is rounded anew. */
template <class W, int N>
__device__ inline void put_working(float (&w)[N], const OptStep &a, const StepState *s,
                                   const Chunk &c, int i)
{
    if (a.work == a.w)
        return;
    if (a.stochastic && c.rate > 0) {
        uint32_t block = blockIdx.x * (VIT_CHUNK / 4) + (uint32_t)i / 4; /* of random bits */
        Philox r = rng_block(s->seed, block, 0, s->t, RNG_ROUND, 0);
        auto bits = [&](int k) {
            return k == 0 ? r.v[0] : k == 1 ? r.v[1] : k == 2 ? r.v[2] : r.v[3];
        };
        each<N>([&](int k) { w[k] = round_by_chance<W>(w[k], bits((N == 4 ? 0 : i % 4) + k)); });
    }
    put((W *)a.work + c.offset + i, w, c.n - i);
}

/* New weights to the master copy, the average and the working copy: elements i.. of a chunk. The
 * average is of the master weights. */
template <class W, int N>
__device__ inline void put_weights(float (&w)[N], const OptStep &a, const OptConfig &o,
                                   const StepState *s, const Chunk &c, int i)
{
    const long at = c.offset + i;
    const int left = c.n - i;
    put((float *)a.w + at, w, left);
    if (a.ema) {
        const float decay = fminf((float)o.ema_decay, (1 + (float)s->t) / (10 + (float)s->t));
        float ema[N];
        take(ema, (float *)a.ema + at, left);
        each<N>([&](int k) { ema[k] = decay * ema[k] + (1 - decay) * w[k]; });
        put((float *)a.ema + at, ema, left);
    }
    put_working<W>(w, a, s, c, i);
}

/* What all optimisers share: the kernel for this type of working weights and this alignment, and
 * its operands, without what the host alone can read */
template <class F> static void by_weights(const OptStep *a, F f)
{
    OptStep operands = *a;
    operands.opt = NULL;
    bool quads = true;
    for (const dev *p : {a->w, a->work, a->grad, a->exp_avg, a->exp_avg_sq, a->ema})
        quads = quads && aligned(p);
    by_type(a->work_type, [&](auto w) {
        by_quads(quads, [&](auto quad) { f(w, quad, operands); });
    });
}

template <class W, int N> __global__ void round_weights_kernel(OptStep a, const StepState *s)
{
    const Chunk c = ((const Chunk *)a.chunks)[blockIdx.x];
    for (int i = (int)threadIdx.x * N; i < c.n; i += CHUNK_THREADS * N) {
        float w[N];
        take(w, (float *)a.w + c.offset + i, c.n - i);
        put_working<W>(w, a, s, c, i);
    }
}
static void cuda_round_weights(const OptStep *a)
{
    by_weights(a, [&](auto w, auto quad, const OptStep &operands) {
        launch(round_weights_kernel<decltype(w), quad>, (unsigned)a->n, CHUNK_THREADS, 0, cu.stream,
               operands, cu.state);
    });
}

/* ------------------------------------------------------------------------------------------------
 * Adam and AdamW. Reads w, grad, m, v, writes w, m, v, work: 30 bytes per parameter with bf16
 * weights, 2.6 GB, floor 604 us. */

struct AdamFactors { /* step, decay: at a rate of 1; decay, l2: of weights that decay */
    float step, root, grad, decay, l2, c1, c2;
};
/* Of one thread, for all blocks: powers in double are many instructions. */
__global__ void adam_factors_kernel(AdamFactors *f, OptConfig o, const StepState *s)
{
    const double t = (double)s->t, first = 1 - pow(o.beta1, t), second = 1 - pow(o.beta2, t);
    f->step = (float)(s->lr / first);
    f->root = (float)(1 / sqrt(second));
    f->grad = (float)(s->clip / s->loss_scale);
    f->decay = o.kind == OPT_ADAMW ? (float)(s->lr * o.weight_decay) : 0;
    f->l2 = o.kind == OPT_ADAM ? (float)o.weight_decay : 0;
    f->c1 = (float)(1 / first);
    f->c2 = (float)(1 / second);
}
static const AdamFactors *adam_factors(const OptStep *a)
{
    AdamFactors *f = (AdamFactors *)scratch_floats(sizeof(AdamFactors) / sizeof(float));
    launch(adam_factors_kernel, 1, 1, 0, cu.stream, f, *a->opt, cu.state);
    return f;
}
template <class W, int N>
__global__ void adam_kernel(OptStep a, OptConfig o, const StepState *s, const AdamFactors *f)
{
    const Chunk c = learning(a.chunks);
    if (s->skip || c.n == 0)
        return;
    const bool decays = c.flags & CHUNK_DECAY;
    const float step = f->step * c.rate, root = f->root, gscale = f->grad;
    const float keep = decays ? 1 - f->decay * c.rate : 1, l2 = decays ? f->l2 : 0;
    const float b1 = (float)o.beta1, b2 = (float)o.beta2, eps = (float)o.eps;
    const float a1 = (float)(1 - o.beta1), a2 = (float)(1 - o.beta2); /* 1 - 0.999f: 1e-5 off */
    chunk_moments<N>(a, c, [&](int i, auto &w, auto &g, auto &m, auto &v) {
        each<N>([&](int k) {
            g[k] = gscale * g[k] + l2 * w[k];
            m[k] = b1 * m[k] + a1 * g[k];
            v[k] = b2 * v[k] + a2 * g[k] * g[k];
            w[k] = keep * w[k] - step * m[k] / (sqrtf(v[k]) * root + eps);
        });
        put_weights<W>(w, a, o, s, c, i);
    });
}
static void cuda_adam(const OptStep *a)
{
    const AdamFactors *f = adam_factors(a);
    by_weights(a, [&](auto w, auto quad, const OptStep &operands) {
        launch(adam_kernel<decltype(w), quad>, (unsigned)a->n, CHUNK_THREADS, 0, cu.stream,
               operands, *a->opt, cu.state, f);
    });
}

/* ------------------------------------------------------------------------------------------------
 * SGD. Reads w, grad, m, writes w, m, work: 22 bytes per parameter, 1.9 GB, floor 443 us. */

template <class W, int N> __global__ void sgd_kernel(OptStep a, OptConfig o, const StepState *s)
{
    if (s->skip)
        return;
    const Chunk c = learning(a.chunks);
    const float lr = (float)(s->lr * (double)c.rate), gscale = (float)(s->clip / s->loss_scale);
    const float wd = c.flags & CHUNK_DECAY ? (float)o.weight_decay : 0;
    const float momentum = (float)o.momentum;
    const bool fresh = s->t <= 1; /* the buffer starts as the first gradient */
    chunk_packs<N>(a, c, [&](int i, auto &w, auto &g) {
        float m[N], *at = (float *)a.exp_avg + c.offset + i;
        take(m, at, c.n - i);
        each<N>([&](int k) {
            m[k] = (fresh ? 0 : momentum * m[k]) + gscale * g[k] + wd * w[k];
            w[k] -= lr * m[k];
        });
        put(at, m, c.n - i);
        put_weights<W>(w, a, o, s, c, i);
    });
}
static void cuda_sgd(const OptStep *a)
{
    by_weights(a, [&](auto w, auto quad, const OptStep &operands) {
        launch(sgd_kernel<decltype(w), quad>, (unsigned)a->n, CHUNK_THREADS, 0, cu.stream, operands,
               *a->opt, cu.state);
    });
}

/* ------------------------------------------------------------------------------------------------
 * LAMB: the direction u with the norms' partial sums, the ratios, the step. Reads w, grad, m, v,
 * writes u, m, v, then reads w, u, writes w, work: 42 bytes per parameter, 3.6 GB, floor 846 us. */

template <int N>
__global__ void lamb_direction_kernel(OptStep a, OptConfig o, const StepState *s,
                                      const AdamFactors *f)
{
    if (s->skip)
        return;
    const Chunk c = learning(a.chunks);
    const bool counts = !(c.flags & CHUNK_COPY);
    const float c1 = f->c1, c2 = f->c2, gscale = f->grad;
    const float b1 = (float)o.beta1, b2 = (float)o.beta2, eps = (float)o.eps;
    const float a1 = (float)(1 - o.beta1), a2 = (float)(1 - o.beta2);
    const float wd = c.flags & CHUNK_DECAY ? (float)o.weight_decay : 0;
    double ww = 0, uu = 0;
    chunk_moments<N>(a, c, [&](int i, auto &w, auto &u, auto &m, auto &v) {
        each<N>([&](int k) {
            float g = gscale * u[k];
            m[k] = b1 * m[k] + a1 * g;
            v[k] = b2 * v[k] + a2 * g * g;
            u[k] = i + k < c.n ? m[k] * c1 / (sqrtf(v[k] * c2) + eps) + wd * w[k] : 0;
        });
        ww += squares(w);
        uu += squares(u);
        put((float *)a.grad + c.offset + i, u, c.n - i);
    });
    ww = block_sum(ww, dynamic_smem<double>());
    uu = block_sum(uu, dynamic_smem<double>());
    if (threadIdx.x == 0) {
        ((float *)a.norms)[blockIdx.x] = counts ? (float)ww : 0;
        ((float *)a.norms)[a.n + blockIdx.x] = counts ? (float)uu : 0;
    }
}
static void cuda_lamb_direction(const OptStep *a)
{
    const AdamFactors *f = adam_factors(a);
    by_weights(a, [&](auto, auto quad, const OptStep &operands) {
        launch(lamb_direction_kernel<quad>, (unsigned)a->n, CHUNK_THREADS, 32 * sizeof(double),
               cu.stream, operands, *a->opt, cu.state, f);
    });
}

/* ratio[i] = |w| / |u| of the tensor that chunk i belongs to, 1 for vectors and where either is 0.
 * A warp per chunk, of which those at the beginning of a tensor add up its chunks, in one order. */
static __global__ void lamb_ratio_kernel(float *ratio, OptStep a, const StepState *s)
{
    const Chunk *chunks = (const Chunk *)a.chunks;
    const float *norms = (const float *)a.norms;
    const int k = (int)((blockIdx.x * blockDim.x + threadIdx.x) / 32), lane = (int)threadIdx.x % 32;
    if (s->skip || k >= a.n || (k > 0 && chunks[k - 1].tensor == chunks[k].tensor))
        return;
    auto in = [&](int i) { return i < a.n && chunks[i].tensor == chunks[k].tensor; };
    double ww = 0, uu = 0;
    for (int i = k; in(i); i += 32) {
        if (in(i + lane)) {
            ww += (double)norms[i + lane];
            uu += (double)norms[a.n + i + lane];
        }
    }
    ww = warp_sum(ww);
    uu = warp_sum(uu);
    bool trust = !(chunks[k].flags & CHUNK_1D) && ww > 0 && uu > 0;
    float r = trust ? (float)(sqrt(ww) / sqrt(uu)) : 1;
    for (int i = k + lane; in(i); i += 32)
        ratio[i] = r;
}

template <class W, int N>
static __global__ void lamb_apply_kernel(OptStep a, OptConfig o, const float *ratio,
                                         const StepState *s)
{
    if (s->skip)
        return;
    const Chunk c = learning(a.chunks);
    const float lr = (float)(s->lr * (double)c.rate * (double)ratio[blockIdx.x]);
    chunk_packs<N>(a, c, [&](int i, auto &w, auto &u) {
        each<N>([&](int k) { w[k] -= lr * u[k]; });
        put_weights<W>(w, a, o, s, c, i);
    });
}
static void cuda_lamb_apply(const OptStep *a)
{
    float *ratio = scratch_floats((size_t)a->n);
    by_weights(a, [&](auto w, auto quad, const OptStep &operands) {
        launch(lamb_ratio_kernel, (unsigned)ceil_div(a->n, 8), 256, 0, cu.stream, ratio, operands,
               cu.state);
        launch(lamb_apply_kernel<decltype(w), quad>, (unsigned)a->n, CHUNK_THREADS, 0, cu.stream,
               operands, *a->opt, (const float *)ratio, cu.state);
    });
}

/* ------------------------------------------------------------------------------------------------
 * Loss scaling (see LossScaling in backend.h); one thread.
 *   skipped_in_row  0 after a good step; after a skipped one, 1 more if its loss scale was already
 *                   the lowest there is (or is not ours to lower), else as before
 *   DYNAMIC  skipped: good_steps = 0, patience counts down, and at 0 the scale is halved, by this
 *            and each further overflow; good: after `interval` of them good_steps starts again,
 *            patience = hysteresis and the scale is doubled (Megatron's DynamicGradScaler)
 *   AUTO     halved where large > 1e-7 counted or the step was skipped, else doubled; both counters
 *            start again */
static __global__ void scale_loss_kernel(StepState *s, LossScaling c)
{
    bool ours = c.kind == SCALING_DYNAMIC || c.kind == SCALING_AUTO;
    double scale = s->loss_scale;
    if (!s->skip)
        s->skipped_in_row = 0;
    else if (!ours || scale <= 1)
        s->skipped_in_row++;
    if (!ours)
        return;
    if (c.kind == SCALING_AUTO) {
        scale *= s->skip || (double)s->large > 1e-7 * (double)s->counted ? 0.5 : 2;
        s->large = s->counted = 0;
    } else if (s->skip) {
        s->good_steps = 0;
        s->patience -= s->patience > 0;
        if (s->patience == 0)
            scale *= 0.5;
    } else if (++s->good_steps >= (uint32_t)c.interval) {
        s->good_steps = 0;
        s->patience = (uint32_t)c.hysteresis;
        scale *= 2;
    }
    s->loss_scale = fmin(fmax(scale, 1.0), 4294967296.0);
}
static void cuda_scale_loss(const LossScaling *s)
{
    launch(scale_loss_kernel, 1, 1, 0, cu.stream, (StepState *)cu.state, *s);
}
