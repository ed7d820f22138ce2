/* layers.cuh - everything between the matrix products except attention: patches, embedding, the
 * residual step with its norm, what a product's epilogue left undone, pooling, loss, conversions.
 *
 * Each host function is the Backend entry of its name; the formulas are in backend.h. Memory should
 * bound all of it (GELU by erf comes near the arithmetic's limit), so every kernel reads its inputs
 * once and writes its outputs once. Two shapes of work are enough:
 *   - a warp takes a row, where a row has to be summed before it can be written (norm forward);
 *   - a thread takes one pack of neighbouring columns and walks down a range of rows, where what
 *     belongs to a column (bias, gamma, sums over all rows) can stay in its registers.
 * Sums over rows have two stages: each range of rows leaves its sums in scratch memory, then
 * sum_ranges adds the ranges in order. No result depends on timing.
 *
 * "Floor" is what an op must move, over 4.3 TB/s, for B/16 in bf16 with 256 images on an H200,
 * where a matrix [B*T, C] is 77.5 MB or 18 us. These are estimates; nothing here was measured.
 */
#pragma once

#include "cuda/fp8.cuh"

#include <algorithm>
#include <math.h>
#include <type_traits>

/* ------------------------------------------------------------------------------------------------
 * Rows, packs and block-wide sums */

template <class E> __device__ inline E *row_of(const Tensor &t, long r)
{
    return (E *)t.p + r * t.ld;
}

/* by_pack(type, wide, [&](auto e, auto width) { ... }): by_type and by_width in one */
template <class F> static void by_pack(int type, bool wide, F f)
{
    by_type(type, [&](auto e) { by_width(wide, e, [&](auto width) { f(e, width); }); });
}

/* Packs of 16 bytes are possible where rows of n elements, all tensors and all plain pointers
 * allow it, and the dropout: wide_access(n, type, tensor, pointer or Drop, ...). */
static bool pack_aligned(const Tensor &t)
{
    return wide_rows(t);
}
static bool pack_aligned(const dev *p)
{
    return aligned(p);
}
static bool pack_aligned(const Drop &d)
{
    return whole_blocks(d);
}
template <class... T> static bool wide_access(long n, int type, const T &...what)
{
    return n * (long)type_size(type) % 16 == 0 && (pack_aligned(what) && ...);
}

/* N sums, 16 bytes at a time: memory of floats need not be aligned to more. */
template <int N> __device__ inline void store_sums(float *to, const float (&from)[N])
{
    if constexpr (N % 4 == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 4)
            *(float4 *)(to + i) = make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
    } else {
        each<N>([&](int k) { to[k] = from[k]; });
    }
}

/* The sum of x over a block, known to all its threads; room: one T per warp. */
template <class T> __device__ inline T block_sum(T x, T *room)
{
    x = warp_sum(x);
    __syncthreads(); /* the sum before has been read */
    if (threadIdx.x % 32 == 0)
        room[threadIdx.x / 32] = x;
    __syncthreads();
    T sum = 0;
    for (unsigned w = 0; w < blockDim.x / 32; w++)
        sum += room[w];
    return sum;
}
__device__ inline float block_max(float x, float *room)
{
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        room[threadIdx.x / 32] = x;
    __syncthreads();
    float top = room[0];
    for (unsigned w = 1; w < blockDim.x / 32; w++)
        top = fmaxf(top, room[w]);
    return top;
}

/* ------------------------------------------------------------------------------------------------
 * Walking down columns: how the work on a matrix [rows, n] is divided. Block (x, y) takes `threads`
 * packs of N columns and range y of the rows. */

struct Walk {
    int threads, tiles, ranges;
    dim3 grid() const
    {
        return dim3((unsigned)tiles, (unsigned)ranges);
    }
};

/* Blocks for `resident` threads on every multiprocessor, but at least 4 rows for each. */
static Walk walk_of(long rows, long n, int N, int resident)
{
    Walk w;
    int packs = ceil_div(n, N);
    w.tiles = ceil_div(packs, 128);
    w.threads = ceil_div(ceil_div(packs, w.tiles), 32) * 32;
    int fit = cu.gpu.multiProcessorCount * (resident / w.threads) / w.tiles;
    int useful = ceil_div(rows, 4);
    w.ranges = fit < 1 ? 1 : fit < useful ? fit : useful;
    return w;
}
/* Threads of a multiprocessor that run at once with up to 96, 64 and 32 registers each */
enum { RESIDENT_96 = 640, RESIDENT_64 = 1024, RESIDENT_32 = 2048 };

/* First row of range y of `ranges`; range y ends where y + 1 begins. */
__device__ inline long range_begin(long rows, unsigned y, unsigned ranges)
{
    return rows * y / ranges;
}
__device__ inline long my_column(int N)
{
    return ((long)blockIdx.x * blockDim.x + threadIdx.x) * N;
}

/* out[k][j] = sum over ranges of partial[k][range][j], for up to 4 vectors [n] (NULL: not wanted).
 * A block takes 32 columns of one vector, each of 16 warps every 16th range; the warps' sums are
 * added in order. Reads ranges*n floats per vector: 1.6 MB or 2 us (latency) for C = 768. */
enum { SUM_WARPS = 16 };
struct Sums {
    float *out[4];
};
static __global__ void sum_ranges_kernel(Sums to, const float *partial, int ranges, long n)
{
    float *room = dynamic_smem<float>(); /* [SUM_WARPS][32] */
    const unsigned k = blockIdx.y;
    float *out = k == 0 ? to.out[0] : k == 1 ? to.out[1] : k == 2 ? to.out[2] : to.out[3];
    if (!out)
        return;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    long j = (long)blockIdx.x * 32 + lane;
    const float *p = partial + (long)blockIdx.y * ranges * n + j;
    float sum = 0;
    if (j < n) {
#pragma unroll 8
        for (int r = warp; r < ranges; r += SUM_WARPS)
            sum += p[r * n];
    }
    room[warp * 32 + lane] = sum;
    __syncthreads();
    if (warp == 0 && j < n) {
        for (int w = 1; w < SUM_WARPS; w++)
            sum += room[w * 32 + lane];
        out[j] = sum;
    }
}
static void sum_ranges(const Sums &to, int count, const float *partial, int ranges, long n)
{
    launch(sum_ranges_kernel, dim3((unsigned)ceil_div(n, 32), (unsigned)count), SUM_WARPS * 32,
           SUM_WARPS * 32 * sizeof(float), cu.stream, to, partial, ranges, n);
}

/* out[j] = sum over rows of x[row][j]; reads x once: floor 18 us for [B*T, C]. */
template <class E, int N>
__global__ void column_sums_kernel(float *partial, Tensor x, long rows, long n)
{
    long col = my_column(N), end = range_begin(rows, blockIdx.y + 1, gridDim.y);
    if (col >= n)
        return;
    float sum[N] = {};
#pragma unroll 8
    for (long r = range_begin(rows, blockIdx.y, gridDim.y); r < end; r++) {
        float v[N];
        load(v, row_of<E>(x, r) + col);
        each<N>([&](int k) { sum[k] += v[k]; });
    }
    store_sums(partial + blockIdx.y * n + col, sum);
}
static void column_sums(float *out, Tensor x, long rows, long n)
{
    by_pack(x.type, wide_access(n, x.type, x), [&](auto e, auto width) {
        Walk w = walk_of(rows, n, width, RESIDENT_64);
        float *partial = scratch_floats((size_t)w.ranges * (size_t)n);
        launch(column_sums_kernel<decltype(e), width>, w.grid(), (unsigned)w.threads, 0, cu.stream,
               partial, x, rows, n);
        sum_ranges(Sums{{out}}, 1, partial, w.ranges, n);
    });
}

/* ------------------------------------------------------------------------------------------------
 * Patches */

struct Normal { /* pixels of 0..1 become (pixel - mean) * inv_std */
    float mean[3], inv_std[3];
};
__device__ inline float of_channel(const float (&v)[3], int c)
{
    return c == 0 ? v[0] : c == 1 ? v[1] : v[2];
}

/* Random erasing's standard normal: sqrt(-2 ln u0) cos(2 pi u1). A call of its own: it is rare. */
__device__ __attribute__((noinline)) float erase_noise(const StepState *s, uint32_t element,
                                                       uint32_t sample)
{
    Philox r = rng_block(s->seed, element, s->sample0 + sample, s->step, RNG_ERASE, 0);
    const float unit = 1.0f / 4294967296.0f;
    /* ln u0 by the distance from 1 where u0 is near 1, since a float would round that away */
    float log_u = r.v[0] >> 31 ? log1pf(-((float)~r.v[0] + 0.5f) * unit)
                               : logf(((float)r.v[0] + 0.5f) * unit);
    float turn = ((float)r.v[1] + 0.5f) * unit - 0.5f; /* cos(2 pi u) = -cos(2 pi (u - 1/2)) */
    return sqrtf(-2 * log_u) * -__cosf(6.28318530717958648f * turn);
}

__device__ inline bool in_rect(const Rect &r, int y, int x)
{
    return (unsigned)(y - r.y) < (unsigned)r.h && (unsigned)(x - r.x) < (unsigned)r.w;
}

/* Channel c of the pixel in row y, column x of image b, augmented and normalised. */
__device__ inline float pixel(const Patchify &a, const Normal &norm, const StepState *s, int b,
                              int c, int y, int x)
{
    if (!a.u8)
        return ((const float *)a.images)[(((long)b * VIT_CHANNELS + c) * a.H + y) * a.W + x];
    const Augment *g = a.augment ? (const Augment *)a.augment + b : NULL;
    if (g && g->erase && in_rect(g->erased, y, x))
        return g->erase == ERASE_ZERO
                   ? 0
                   : erase_noise(s, (uint32_t)((c * a.H + y) * a.W + x), (uint32_t)b);
    const uint8_t *in = (const uint8_t *)a.images + (((long)b * a.H + y) * a.W + x) * VIT_CHANNELS;
    float v;
    if (g && g->use_colour) {
        v = g->colour[9 + c];
        for (int k = 0; k < VIT_CHANNELS; k++)
            v += g->colour[3 * c + k] * ((float)in[k] * (1 / 255.0f));
        v = fminf(fmaxf(v, 0.0f), 1.0f);
    } else {
        v = (float)in[c] * (1 / 255.0f);
    }
    return (v - of_channel(norm.mean, c)) * of_channel(norm.inv_std, c);
}

/* The same of image b and its partner together, as g = Augment[b] mixes them. */
__device__ inline float mixed_pixel(const Patchify &a, const Normal &norm, const StepState *s,
                                    const Augment *g, int b, int c, int y, int x)
{
    const bool cut = in_rect(g->cut, y, x);
    const float lambda = g->lambda, v = pixel(a, norm, s, cut ? g->partner : b, c, y, x);
    return cut || lambda == 1 ? v
                              : lambda * v + (1 - lambda) * pixel(a, norm, s, g->partner, c, y, x);
}

/* images -> out [B*Np, 3*P*P]. A block writes one patch, a thread packs of neighbouring columns;
 * the bytes, three apart, are fetched from L1 by all but the first of their readers. Reads 38.5 MB
 * of bytes (again as much where images are mixed), writes 77.1 MB: floor 27 us. */
template <class E, int N>
__global__ void patchify_kernel(Patchify a, Normal norm, const StepState *state)
{
    const int P = a.P, gh = a.H / P, gw = a.W / P, n = VIT_CHANNELS * P * P;
    const int b = (int)(blockIdx.x / (unsigned)(gh * gw));
    const int y0 = (int)blockIdx.x / gw % gh * P, x0 = (int)blockIdx.x % gw * P;
    const Augment *g = a.augment ? (const Augment *)a.augment + b : NULL;
    const bool mixed = g && (g->lambda < 1 || g->cut.h > 0); /* the same for the whole block */
    E *out = row_of<E>(a.out, blockIdx.x);
    for (int col = (int)threadIdx.x * N; col < n; col += (int)blockDim.x * N) {
        int c = col / (P * P), i = col / P % P, j = col % P;
        float v[N];
        each<N>([&](int k) {
            v[k] = mixed ? mixed_pixel(a, norm, state, g, b, c, y0 + i, x0 + j)
                         : pixel(a, norm, state, b, c, y0 + i, x0 + j);
            if (++j == P) {
                j = 0;
                if (++i == P) {
                    i = 0;
                    c++;
                }
            }
        });
        store(out + col, v);
    }
}
static void cuda_patchify(const Patchify *a)
{
    int n = VIT_CHANNELS * a->P * a->P, patches = a->B * (a->H / a->P) * (a->W / a->P);
    Normal norm;
    for (int c = 0; c < VIT_CHANNELS; c++) {
        norm.mean[c] = (float)a->mean[c];
        norm.inv_std[c] = (float)(1 / a->std[c]);
    }
    by_pack(a->out.type, wide_access(n, a->out.type, a->out), [&](auto e, auto width) {
        int threads = ceil_div(ceil_div(n, width), 32) * 32;
        launch(patchify_kernel<decltype(e), width>, (unsigned)patches,
               (unsigned)(threads < 256 ? threads : 256), 0, cu.stream, *a, norm, cu.state);
    });
}

/* ------------------------------------------------------------------------------------------------
 * Embedding */

/* x = drop(concat(cls, patches) + pos), [B*T, C]. Reads patches, writes x; pos, where there are
 * positions, comes from L2: 155 MB, floor 36 us. */
template <class E, int N>
__global__ void embed_forward_kernel(Embed a, Mask mask, const StepState *state)
{
    const long rows = (long)a.B * a.T, col = my_column(N);
    const long end = range_begin(rows, blockIdx.y + 1, gridDim.y);
    if (col >= a.C)
        return;
    for (long r = range_begin(rows, blockIdx.y, gridDim.y); r < end; r++) {
        int b = (int)r / a.T, t = (int)r % a.T, patch = t - a.cls_tokens;
        const E *in = patch < 0 ? (const E *)a.cls + (long)t * a.C
                                : row_of<E>(a.patches, (long)b * (a.T - a.cls_tokens) + patch);
        float x[N], pos[N] = {};
        load(x, in + col);
        if (a.pos)
            load(pos, (const E *)a.pos + (long)t * a.C + col);
        each<N>([&](int k) { x[k] += pos[k]; });
        if (mask.keep)
            drop_pack(x, mask, state, mask.element(t, (int)col), (uint32_t)b);
        store(row_of<E>(a.x, r) + col, x);
    }
}
static void cuda_embed_forward(const Embed *a)
{
    bool wide = wide_access(a->C, a->x.type, a->x, a->patches, a->cls, a->pos, a->drop);
    by_pack(a->x.type, wide, [&](auto e, auto width) {
        Walk w = walk_of((long)a->B * a->T, a->C, width, RESIDENT_32);
        launch(embed_forward_kernel<decltype(e), width>, w.grid(), (unsigned)w.threads, 0,
               cu.stream, *a, mask_of(a->drop, a->C), cu.state);
    });
}

/* dx = drop(dx); dpatches = its rows of patches; dpos[t] = sum over images of row t; dcls = dpos of
 * the class tokens. A thread takes the packs of one token and column and walks over the images, 8
 * loads in flight. dx as stored is what is summed, so dbias [C], the column sums of dpatches, are
 * those of dpos: a matrix of T rows. Reads dx, writes dpatches (and dx where it was dropped out):
 * 155 MB, floor 36 us. */
template <class E, int N>
__global__ void embed_backward_kernel(Embed a, Mask mask, const StepState *state)
{
    const int t = (int)blockIdx.y, patch = t - a.cls_tokens, BATCH = 8;
    const long col = my_column(N), Np = a.T - a.cls_tokens;
    if (col >= a.C)
        return;
    float sum[N] = {};
    for (int b0 = 0; b0 < a.B; b0 += BATCH) {
        Pack<E, N> in[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) /* the last image again, where there is none */
            in[i] = fetch_pack<E, N>(row_of<E>(a.x, (long)min(b0 + i, a.B - 1) * a.T + t) + col);
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int b = b0 + i;
            if (b >= a.B)
                break;
            float dx[N];
            unpack(dx, in[i]);
            if (mask.keep) {
                drop_pack(dx, mask, state, mask.element(t, (int)col), (uint32_t)b);
                unpack(dx, store(row_of<E>(a.x, (long)b * a.T + t) + col, dx));
            }
            if (patch >= 0)
                store(row_of<E>(a.patches, b * Np + patch) + col, dx);
            each<N>([&](int k) { sum[k] += dx[k]; });
        }
    }
    if (a.pos)
        store_sums((float *)a.pos + (long)t * a.C + col, sum);
    if (patch < 0)
        store_sums((float *)a.cls + (long)t * a.C + col, sum);
}
static void cuda_embed_backward(const Embed *a)
{
    bool wide = wide_access(a->C, a->x.type, a->x, a->patches, a->cls, a->pos, a->drop);
    by_pack(a->x.type, wide, [&](auto e, auto width) {
        int packs = ceil_div(a->C, width), threads = packs < 64 ? ceil_div(packs, 32) * 32 : 64;
        dim3 grid((unsigned)ceil_div(packs, threads), (unsigned)a->T);
        launch(embed_backward_kernel<decltype(e), width>, grid, (unsigned)threads, 0, cu.stream, *a,
               mask_of(a->drop, a->C), cu.state);
    });
    if (a->dbias) {
        Tensor dpos = {dev_at(a->pos, (long)a->cls_tokens * a->C, F32), a->C, F32, NULL};
        column_sums(ptr<float>(a->dbias), dpos, a->T - a->cls_tokens, a->C);
    }
}

/* ------------------------------------------------------------------------------------------------
 * Residual step and LayerNorm */

/* scale[k] = stochastic depth * dropout mask of a branch's columns col.. in one row */
template <int N>
__device__ inline void branch_scale(float (&scale)[N], const ResidualNorm &a, const Mask &mask,
                                    const Mask &path, const StepState *state, long r, int col)
{
    uint32_t sample = 0, token = 0;
    if (mask.keep || path.keep) {
        sample = (uint32_t)r / (uint32_t)a.tokens;
        token = (uint32_t)r % (uint32_t)a.tokens;
    }
    float s = path_scale(path, state, sample);
    each<N>([&](int k) { scale[k] = s; });
    if (mask.keep)
        drop_pack(scale, mask, state, mask.element((int)token, col), sample);
}

/* Blocks of 128 threads that run at once on a multiprocessor, for as many numbers in registers */
template <int N, int R> constexpr int NORM_BLOCKS = N *R > 32 ? N / 2 : N *R > 24 ? 5 : 6;

/* x_out = x + s * ls * drop(branch), y = LayerNorm(x_out); shapes [rows, C]. A warp takes a row,
 * then the one `warps` further down; its lanes hold the row in R packs of N numbers each (R = 0: in
 * shared memory, for any C and for rows that are not aligned), so that memory is read once, and the
 * norm is that of x_out as stored, which a pass that finds it saved reads again. Norm alone: reads
 * x, writes y, 155 MB, floor 36 us; with a branch twice that. */
template <class E, int N, int R, bool BRANCH>
__global__ void __launch_bounds__(128, NORM_BLOCKS<N, R>)
    residual_norm_forward_kernel(ResidualNorm a, Mask mask, Mask path, const StepState *state,
                                 bool learns)
{
    launched_within<128>();
    constexpr bool EIGHT = FP8_HERE && std::is_same_v<E, bf16>; /* may y have 8 bits? */
    const bool eight = EIGHT && a.y.type == E4M3;
    Fp8Scale *y_scale = (Fp8Scale *)a.y.scale;
    const float scale = eight ? delayed_scale(y_scale) : 1;
    float most = 0; /* of y */
    using Slot = float[N];
    Slot held[R ? R : 1], *row = held;
    const int packs = R ? R : (a.C + 32 * N - 1) / (32 * N), lane = (int)threadIdx.x % 32;
    const int step = R ? 1 : (int)blockDim.x;
    if constexpr (R == 0)
        row = dynamic_smem<Slot>() + threadIdx.x;
    /* f(numbers, their pack of `from`): loads without a condition, so that all are in flight at
     * once; lanes beyond the row's end read its beginning and do not use it */
    auto load_packs = [&](const E *from, auto f) {
#pragma unroll
        for (int i = 0; i < packs; i++) {
            int col = (i * 32 + lane) * N;
            float in[N];
            load(in, from + (col < a.C ? col : 0));
            f(row[i * step], in);
        }
    };
    auto copy = [](float(&v)[N], const float(&in)[N]) { each<N>([&](int k) { v[k] = in[k]; }); };
    auto add = [](float(&v)[N], const float(&in)[N]) { each<N>([&](int k) { v[k] += in[k]; }); };
    /* f(numbers, their first column) for each pack of this lane */
    auto packs_do = [&](auto f) {
#pragma unroll
        for (int i = 0; i < packs; i++) {
            int col = (i * 32 + lane) * N;
            if (col < a.C)
                f(row[i * step], col);
        }
    };

    const int per_block = (int)blockDim.x / 32, warps = (int)gridDim.x * per_block;
    for (long r = blockIdx.x * per_block + threadIdx.x / 32; r < a.rows; r += warps) {
        const E *x = row_of<E>(a.x, r);
        if constexpr (BRANCH) {
            const E *ls = (const E *)a.ls;
            E *out = row_of<E>(a.x_out, r);
            load_packs(row_of<E>(a.branch, r), copy);
            packs_do([&](float(&v)[N], int col) {
                float scale[N], gain[N];
                branch_scale(scale, a, mask, path, state, r, col);
                each<N>([&](int k) { v[k] *= scale[k]; });
                if (ls) {
                    load(gain, ls + col);
                    each<N>([&](int k) { v[k] *= gain[k]; });
                }
            });
            load_packs(x, add);
            packs_do([&](float(&v)[N], int col) { unpack(v, store(out + col, v)); });
        } else {
            load_packs(x, copy);
        }
        if (!a.gamma)
            continue;
        float sum = 0, squares = 0;
        packs_do([&](float(&v)[N], int) { each<N>([&](int k) { sum += v[k]; }); });
        const float mean = warp_sum(sum) / (float)a.C;
        packs_do([&](float(&v)[N], int) {
            each<N>([&](int k) { squares += (v[k] - mean) * (v[k] - mean); });
        });
        const float rstd = 1 / sqrtf(warp_sum(squares) / (float)a.C + (float)a.eps);
        if (lane == 0) {
            ((float *)a.mean)[r] = mean;
            ((float *)a.rstd)[r] = rstd;
        }
        packs_do([&](float(&v)[N], int col) {
            float gamma[N], beta[N];
            load(gamma, (const E *)a.gamma + col);
            load(beta, (const E *)a.beta + col);
            each<N>([&](int k) { gamma[k] = (v[k] - mean) * rstd * gamma[k] + beta[k]; });
            if constexpr (EIGHT)
                if (eight) {
                    unpack(gamma, rounded_pack<E>(gamma));
                    store_fp8<__NV_E4M3>(row_of<uint8_t>(a.y, r) + col, gamma, scale, &most);
                    return;
                }
            store(row_of<E>(a.y, r) + col, gamma);
        });
    }
    if (!eight)
        return;
    if (blockIdx.x == 0 && threadIdx.x == 0)
        y_scale->inverse = 1 / scale;
    if (learns)
        block_amax(&y_scale->amax, most, dynamic_smem<float>());
}

/* f(R) with the least R, of a few, for which 32 lanes hold C numbers in R packs of N; else f(0) */
template <int N, class F> static void by_row_packs(int C, F f)
{
    constexpr int unit = N == 1 ? 0 : 256 / (32 * N); /* packs that hold 256 numbers */
    int units = ceil_div(C, 256);
    if (N == 1 || units > 7)
        f(Width<0>());
    else if (units <= 2)
        f(Width<2 * unit>());
    else if (units == 3)
        f(Width<3 * unit>());
    else if (units == 4)
        f(Width<4 * unit>());
    else if (units <= 6)
        f(Width<6 * unit>());
    else
        f(Width<7 * unit>());
}

template <class E, int N, int R> static void residual_norm_forward(const ResidualNorm *a)
{
    int warps = 4;
    size_t smem = 0;
    if (R == 0) { /* as many rows as 48 KiB hold, but at least one */
        size_t row = (size_t)ceil_div(a->C, 32 * N) * 32 * N * sizeof(float);
        while (warps > 1 && warps * row > 48 * 1024)
            warps /= 2;
        smem = warps * row;
    }
    smem = std::max(smem, warps * sizeof(float));
    int most = cu.gpu.multiProcessorCount * NORM_BLOCKS<N, R>, blocks = ceil_div(a->rows, warps);
    auto kernel = a->branch.p ? residual_norm_forward_kernel<E, N, R, true>
                              : residual_norm_forward_kernel<E, N, R, false>;
    launch(kernel, (unsigned)(blocks < most ? blocks : most), (unsigned)warps * 32, smem, cu.stream,
           *a, mask_of(a->drop, a->C), mask_of(a->path, a->C), cu.state, fp8_how.learns);
}
static void cuda_residual_norm_forward(const ResidualNorm *a)
{
    Tensor none = {};
    const bool eight = a->gamma && is_fp8(a->y.type);
    Fp8Cast to = {};
    if (eight)
        to = fp8_copies_of(a->y, a->rows, a->C);
    bool wide = wide_access(a->C, a->x.type, a->x, a->branch.p ? a->x_out : none, a->branch,
                            a->gamma ? a->y : none, a->gamma, a->beta, a->ls, a->drop);
    by_pack(a->x.type, wide, [&](auto e, auto width) {
        by_row_packs<width>(a->C, [&](auto packs) {
            constexpr int R = packs;
            residual_norm_forward<decltype(e), width, R>(a);
        });
    });
    if (eight)
        turn(to);
}

/* Whether row r of dx is written, whatever was there */
__device__ inline bool is_fresh(const ResidualNorm &a, long r)
{
    return a.fresh == 1 || (a.fresh && (uint32_t)r % (uint32_t)a.fresh);
}

/* The norm's and the residual step's gradients, with n = (x - mean) * rstd and g = dy * gamma:
 *
 *   dx      += rstd * (g - mean(g) - n * mean(g n))   (NORM false: left as it is)
 *   dbranch  = s * ls * drop(dx)
 *
 * and column sums: dgamma of dy n, dbeta of dy, dls of dx * s * drop(branch), dbias of dbranch as
 * stored, or of dx as stored. A block takes a range of rows, M at a time, and a thread R packs of
 * columns of each, so that its sums over the range stay in registers; between its two looks at a
 * pack the block adds up the means. Where R > 1 the sums take most registers, and the packs are
 * fetched again for the second look; sums of 16 packs, of rows that are wide and not aligned, would
 * take too many, and stay in memory. partial: [SUMS][ranges][C]. Reads x, dy, dx, writes dx:
 * 310 MB, floor 72 us; with dbranch 90 us. BRANCH: dbranch or dls is wanted; FRESH: a.fresh is not
 * 0. */
enum { SUM_DGAMMA, SUM_DBETA, SUM_DBIAS, SUM_DLS, SUMS };
enum { NORM_THREADS = 512 }; /* at most, in a block and about in a multiprocessor */
template <int R> constexpr int NORM_ROWS = R == 1 ? 2 : 1;

template <class E, int N, int R, bool NORM, bool BRANCH, bool FRESH>
__global__ void __launch_bounds__(NORM_THREADS)
    residual_norm_backward_kernel(ResidualNorm a, Mask mask, Mask path, const StepState *state,
                                  float *partial)
{
    launched_within<NORM_THREADS>();
    constexpr int M = NORM_ROWS<R>, HELD = R == 1 ? R : 0, PACKS = HELD ? HELD : 1;
    constexpr bool IN_MEMORY = R == 16;
    const int warps = (int)blockDim.x / 32, warp = (int)threadIdx.x / 32;
    const long end = range_begin(a.rows, blockIdx.x + 1, gridDim.x);
    float *room = dynamic_smem<float>(); /* [2][warps][2*M], used in turn */
    float sum[SUMS][IN_MEMORY ? 1 : R][N] = {}, gamma[PACKS][N] = {};
    const float per_column = 1.0f / (float)a.C;
    auto column = [&](int j) {
        return (j * (int)blockDim.x + (HELD ? (int)threadIdx.x : anew((int)threadIdx.x))) * N;
    };
    auto load_gamma = [&](int j) {
        each<N>([&](int k) { gamma[HELD ? j : 0][k] = 0; });
        if (column(j) < a.C)
            load(gamma[HELD ? j : 0], (const E *)a.gamma + column(j));
    };
    if constexpr (NORM && HELD)
        load_gamma(0);
    auto place = [&](int s, int j) {
        return partial + ((long)s * gridDim.x + blockIdx.x) * a.C + column(j);
    };
    auto sum_of = [&](int s, int j, int k) -> float & {
        if constexpr (IN_MEMORY)
            return place(s, j)[k];
        else
            return sum[s][j][k];
    };
    auto each_pack = [&](auto f) { /* sums that are in registers have numbers, not an index */
        if constexpr (IN_MEMORY) {
#pragma unroll 1
            for (int j = 0; j < R; j++)
                f(j);
        } else {
            each<R>(f);
        }
    };
    auto store_all = [&] {
        each_pack([&](int j) {
            if (column(j) < a.C)
                each<SUMS>([&](int s) { store_sums(place(s, j), sum[s][IN_MEMORY ? 0 : j]); });
        });
    };
    if (IN_MEMORY)
        store_all();

    int turn = 0;
    for (long r0 = range_begin(a.rows, blockIdx.x, gridDim.x); r0 < end; r0 += M, turn ^= 1) {
        Pack<E, N> x[M][PACKS], dy[M][PACKS], dx[M][PACKS];
        float mean[M] = {}, rstd[M] = {}, total[2 * M] = {};
        auto fetch = [&](int m, int j, bool for_means) {
            long r = r0 + m < end ? r0 + m : end - 1;  /* the last row again, where there is none */
            int col = column(j) < a.C ? column(j) : 0; /* beyond: times a gamma of 0 */
            int at = HELD ? j : 0;
            if (!for_means)
                dx[m][at] = !FRESH || !is_fresh(a, r) ? fetch_pack<E, N>(row_of<E>(a.dx, r) + col)
                                                      : Pack<E, N>{};
            if constexpr (NORM) {
                x[m][at] = fetch_pack<E, N>(row_of<E>(a.x, r) + col);
                dy[m][at] = fetch_pack<E, N>(row_of<E>(a.dy, r) + col);
                if (!HELD)
                    load_gamma(j);
            }
        };
#pragma unroll
        for (int m = 0; m < M; m++) {
            if constexpr (NORM) {
                long r = r0 + m < end ? r0 + m : end - 1;
                mean[m] = ((const float *)a.mean)[r];
                rstd[m] = ((const float *)a.rstd)[r];
            }
            if constexpr (HELD)
                fetch(m, 0, false);
        }

        if constexpr (NORM) { /* total[2m] = mean(g), total[2m+1] = mean(g n) of row r0 + m */
            float *mine = room + turn * warps * 2 * M;
#pragma unroll
            for (int m = 0; m < M; m++) {
                float g_sum = 0, gn_sum = 0;
#pragma unroll
                for (int j = 0; j < R; j++) {
                    const int at = HELD ? j : 0;
                    if constexpr (!HELD)
                        fetch(m, j, true);
                    each<N>([&](int k) {
                        float n = (to_float(x[m][at].v[k]) - mean[m]) * rstd[m];
                        float g = to_float(dy[m][at].v[k]) * gamma[at][k];
                        g_sum += g;
                        gn_sum += g * n;
                    });
                }
                g_sum = warp_sum(g_sum);
                gn_sum = warp_sum(gn_sum);
                if (threadIdx.x % 32 == 0) {
                    mine[warp * 2 * M + 2 * m] = g_sum;
                    mine[warp * 2 * M + 2 * m + 1] = gn_sum;
                }
            }
            __syncthreads(); /* the other half of room has been read before this */
            for (int w = 0; w < warps; w++)
#pragma unroll
                for (int i = 0; i < 2 * M; i++)
                    total[i] += mine[w * 2 * M + i];
#pragma unroll
            for (int i = 0; i < 2 * M; i++)
                total[i] *= per_column;
        }

#pragma unroll
        for (int m = 0; m < M; m++) {
            long r = r0 + m;
            each_pack([&](int j) {
                const int col = column(j), at = HELD ? j : 0;
                if (r >= end || col >= a.C)
                    return;
                if constexpr (!HELD)
                    fetch(m, j, false);
                float d[N];
                Pack<E, N> stored = dx[m][at]; /* what is read as this layer's gradient */
                unpack(d, stored);
                if constexpr (NORM) {
                    each<N>([&](int k) {
                        float n = (to_float(x[m][at].v[k]) - mean[m]) * rstd[m];
                        float dyk = to_float(dy[m][at].v[k]);
                        d[k] +=
                            rstd[m] * (dyk * gamma[at][k] - total[2 * m] - n * total[2 * m + 1]);
                        sum_of(SUM_DGAMMA, j, k) += dyk * n;
                        sum_of(SUM_DBETA, j, k) += dyk;
                    });
                    stored = store(row_of<E>(a.dx, r) + col, d);
                }
                float v[N];
                if constexpr (BRANCH) {
                    float scale[N];
                    branch_scale(scale, a, mask, path, state, r, col);
                    each<N>([&](int k) { scale[k] *= d[k]; });
                    if (a.dls) {
                        load(v, row_of<E>(a.branch, r) + col);
                        each<N>([&](int k) { sum_of(SUM_DLS, j, k) += scale[k] * v[k]; });
                    }
                    if (a.dbranch.p) {
                        if (a.ls) {
                            load(v, (const E *)a.ls + col);
                            each<N>([&](int k) { scale[k] *= v[k]; });
                        }
                        stored = store(row_of<E>(a.dbranch, r) + col, scale);
                    }
                }
                unpack(v, stored);
                each<N>([&](int k) { sum_of(SUM_DBIAS, j, k) += v[k]; });
            });
        }
    }
    if (!IN_MEMORY)
        store_all();
}

/* Threads and blocks: about NORM_THREADS threads on a multiprocessor, NORM_ROWS rows for each. */
static Walk norm_walk(long rows, long C, int N, int R)
{
    Walk w;
    w.tiles = 1;
    w.threads = ceil_div(ceil_div(C, N * R), 32) * 32;
    int per = NORM_THREADS / w.threads, rows_at_once = R == 1 ? NORM_ROWS<1> : NORM_ROWS<2>;
    per = std::max(1, std::min(per, 16)); /* blocks of a multiprocessor */
    int fit = cu.gpu.multiProcessorCount * per;
    int useful = ceil_div(rows, rows_at_once);
    w.ranges = fit < useful ? fit : useful;
    return w;
}
static int norm_packs(long C, int N) /* R: one pack to a thread, or as many as registers allow */
{
    int packs = ceil_div(C, N);
    if (packs <= NORM_THREADS)
        return 1;
    return N == 1 && packs <= 4 * NORM_THREADS ? 4 : 16 / N;
}
template <class E, int N, int R> static void residual_norm_backward(const ResidualNorm *a)
{
    Walk w = norm_walk(a->rows, a->C, N, R);
    if (w.threads > NORM_THREADS)
        die("use a smaller width", "the norm's backward pass is made for at most %d channels",
            NORM_THREADS * 16);
    float *partial = scratch_floats((size_t)SUMS * (size_t)w.ranges * (size_t)a->C);
    static constexpr decltype(&residual_norm_backward_kernel<E, N, R, true, true, true>)
        kernels[3][2] = {{residual_norm_backward_kernel<E, N, R, false, false, false>,
                          residual_norm_backward_kernel<E, N, R, false, true, false>},
                         {residual_norm_backward_kernel<E, N, R, true, false, false>,
                          residual_norm_backward_kernel<E, N, R, true, true, false>},
                         {residual_norm_backward_kernel<E, N, R, true, false, true>,
                          residual_norm_backward_kernel<E, N, R, true, true, true>}};
    auto kernel = kernels[!a->gamma ? 0 : a->fresh ? 2 : 1][a->dbranch.p || a->dls];
    size_t smem = 2 * (size_t)(w.threads / 32) * 2 * NORM_ROWS<R> * sizeof(float);
    launch(kernel, (unsigned)w.ranges, (unsigned)w.threads, smem, cu.stream, *a,
           mask_of(a->drop, a->C), mask_of(a->path, a->C), cu.state, partial);
    Sums to = {{a->gamma ? ptr<float>(a->dgamma) : NULL, a->gamma ? ptr<float>(a->dbeta) : NULL,
                ptr<float>(a->dbias), ptr<float>(a->dls)}};
    sum_ranges(to, SUMS, partial, w.ranges, a->C);
}
static void cuda_residual_norm_backward(const ResidualNorm *a)
{
    Tensor none = {};
    bool wide = wide_access(a->C, a->dx.type, a->gamma ? a->x : none, a->gamma ? a->dy : none,
                            a->dx, a->dbranch, a->dls ? a->branch : none, a->gamma, a->ls, a->drop);
    by_pack(a->dx.type, wide, [&](auto e, auto width) {
        int packs = norm_packs(a->C, width);
        if (packs == 1)
            residual_norm_backward<decltype(e), width, 1>(a);
        else if (packs == 4)
            residual_norm_backward<decltype(e), width, width == 8 ? 2 : 4>(a);
        else
            residual_norm_backward<decltype(e), width, 16 / width>(a);
    });
}

/* ------------------------------------------------------------------------------------------------
 * Norms of heads. 2^k neighbouring lanes hold a head's hs numbers in R packs of N each, and a warp
 * as many heads as that leaves room for. */

enum { HEAD_MOST = 128 };                 /* numbers of a head */
enum { HEAD_WARPS = 8, HEAD_BLOCKS = 4 }; /* of a block; of a multiprocessor, at once */
template <int N> constexpr int HEAD_PACKS = N == 1 ? HEAD_MOST / 32 : 1; /* R */

/* Sum over the 2^k lanes that share a head */
__device__ inline float lanes_sum(float x, int lanes)
{
    for (int d = lanes / 2; d; d >>= 1)
        x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

/* A lane's part of one head */
template <class E, int N> struct Head {
    static constexpr int R = HEAD_PACKS<N>;
    float v[R][N] = {};
    Pack<E, N> raw[R];

    /* f(r, its first column) for each pack that this lane has */
    template <class F> static __device__ inline void packs_do(int hs, int lanes, F f)
    {
        each<R>([&](int r) {
            int col = (r * lanes + ((int)threadIdx.x & (lanes - 1))) * N;
            if (col < hs)
                f(r, col);
        });
    }
    __device__ inline void read(const E *from, int hs, int lanes)
    {
        packs_do(hs, lanes, [&](int r, int col) {
            raw[r] = fetch_pack<E, N>(from + col);
            unpack(v[r], raw[r]);
        });
    }
    /* v = (v - mean) * rstd; returns rstd. All lanes of the warp come together. */
    __device__ inline float normalise(int hs, int lanes, float eps)
    {
        float sum = 0, squares = 0;
        packs_do(hs, lanes, [&](int r, int) { each<N>([&](int k) { sum += v[r][k]; }); });
        const float mean = lanes_sum(sum, lanes) / (float)hs;
        packs_do(hs, lanes, [&](int r, int) {
            each<N>([&](int k) {
                v[r][k] -= mean;
                squares += v[r][k] * v[r][k];
            });
        });
        const float rstd = 1 / sqrtf(lanes_sum(squares, lanes) / (float)hs + eps);
        packs_do(hs, lanes, [&](int r, int) { each<N>([&](int k) { v[r][k] *= rstd; }); });
        return rstd;
    }
};

/* f(row, first column, whether it is there) for each head of this thread's in turn; a warp's lanes
 * come together, those for whom no head is left too. */
template <class F> __device__ inline void heads_do(const HeadNorm &a, int lanes, F f)
{
    const uint32_t heads = (uint32_t)a.heads, count = (uint32_t)a.rows * heads;
    const uint32_t per_warp = 32u / (uint32_t)lanes, warps = gridDim.x * HEAD_WARPS;
    const uint32_t warp = blockIdx.x * HEAD_WARPS + threadIdx.x / 32;
    for (uint32_t at = warp * per_warp; at < count; at += warps * per_warp) {
        uint32_t i = at + threadIdx.x % 32 / (uint32_t)lanes;
        f((long)(i / heads), (long)(i % heads) * a.hs, i < count);
    }
}

/* input = x, x = LayerNorm(x) of each head, in place. Reads x, writes both: of q or k 232 MB, floor
 * 54 us. */
template <class E, int N>
__global__ void __launch_bounds__(32 * HEAD_WARPS, HEAD_BLOCKS)
    head_norm_forward_kernel(HeadNorm a, int lanes)
{
    launched_within<32 * HEAD_WARPS>();
    using H = Head<E, N>;
    Pack<E, N> gamma[H::R], beta[H::R];
    H::packs_do(a.hs, lanes, [&](int r, int col) {
        gamma[r] = fetch_pack<E, N>((const E *)a.gamma + col);
        beta[r] = fetch_pack<E, N>((const E *)a.beta + col);
    });
    heads_do(a, lanes, [&](long row, long column, bool there) {
        E *x = row_of<E>(a.x, row) + column, *input = row_of<E>(a.input, row) + column;
        H head;
        if (there)
            head.read(x, a.hs, lanes);
        head.normalise(a.hs, lanes, (float)a.eps);
        if (there)
            H::packs_do(a.hs, lanes, [&](int r, int col) {
                *(Pack<E, N> *)(input + col) = head.raw[r];
                each<N>([&](int k) {
                    head.v[r][k] = head.v[r][k] * to_float(gamma[r].v[k]) + to_float(beta[r].v[k]);
                });
                store(x + col, head.v[r]);
            });
    });
}

/* With n = (input - mean) * rstd and g = dy * gamma: dx = rstd * (g - mean(g) - n * mean(g n)), in
 * place of dy; dgamma = sum of dy n, dbeta = sum of dy over rows and heads. Reads dx and input,
 * writes dx: of q or k 232 MB, floor 54 us. A thread's columns are the same in every head, so its
 * sums stay in registers; then a block adds those of its lanes and warps, in order, into partial:
 * [2][blocks][hs]. */
template <class E, int N>
__global__ void __launch_bounds__(32 * HEAD_WARPS, HEAD_BLOCKS)
    head_norm_backward_kernel(HeadNorm a, int lanes, float *partial)
{
    launched_within<32 * HEAD_WARPS>();
    using H = Head<E, N>;
    float *room = dynamic_smem<float>(); /* [HEAD_WARPS][2][hs] */
    float gamma[H::R][N], dgamma[H::R][N] = {}, dbeta[H::R][N] = {};
    H::packs_do(a.hs, lanes, [&](int r, int col) { load(gamma[r], (const E *)a.gamma + col); });
    heads_do(a, lanes, [&](long row, long column, bool there) {
        E *dx = row_of<E>(a.x, row) + column;
        H d, n;
        if (there) {
            d.read(dx, a.hs, lanes);
            n.read(row_of<E>(a.input, row) + column, a.hs, lanes);
        }
        const float rstd = n.normalise(a.hs, lanes, (float)a.eps);
        float g_sum = 0, gn_sum = 0;
        H::packs_do(a.hs, lanes, [&](int r, int) {
            each<N>([&](int k) {
                g_sum += d.v[r][k] * gamma[r][k];
                gn_sum += d.v[r][k] * gamma[r][k] * n.v[r][k];
            });
        });
        g_sum = lanes_sum(g_sum, lanes) / (float)a.hs;
        gn_sum = lanes_sum(gn_sum, lanes) / (float)a.hs;
        if (there)
            H::packs_do(a.hs, lanes, [&](int r, int col) {
                each<N>([&](int k) {
                    float dy = d.v[r][k];
                    dgamma[r][k] += dy * n.v[r][k];
                    dbeta[r][k] += dy;
                    d.v[r][k] = rstd * (dy * gamma[r][k] - g_sum - n.v[r][k] * gn_sum);
                });
                store(dx + col, d.v[r]);
            });
    });

    float *mine = room + threadIdx.x / 32 * 2 * a.hs;
    for (int d = lanes; d < 32; d *= 2) /* the warp's other heads */
        each<H::R>([&](int r) {
            each<N>([&](int k) {
                dgamma[r][k] += __shfl_xor_sync(0xffffffffu, dgamma[r][k], d);
                dbeta[r][k] += __shfl_xor_sync(0xffffffffu, dbeta[r][k], d);
            });
        });
    if ((int)threadIdx.x % 32 < lanes)
        H::packs_do(a.hs, lanes, [&](int r, int col) {
            each<N>([&](int k) {
                mine[col + k] = dgamma[r][k];
                mine[a.hs + col + k] = dbeta[r][k];
            });
        });
    __syncthreads();
    for (int j = (int)threadIdx.x; j < 2 * a.hs; j += (int)blockDim.x) {
        float sum = 0;
        for (int w = 0; w < HEAD_WARPS; w++)
            sum += room[w * 2 * a.hs + j];
        long which = j / a.hs; /* dgamma, dbeta */
        partial[(which * gridDim.x + blockIdx.x) * a.hs + j % a.hs] = sum;
    }
}

/* As many as run at once, but no more than have two heads for each of their groups of lanes */
static int head_blocks(const HeadNorm *a, int lanes)
{
    int useful = ceil_div((long)a->rows * a->heads, 2 * HEAD_WARPS * (32 / lanes));
    return std::min(cu.gpu.multiProcessorCount * HEAD_BLOCKS, useful);
}
/* f(element, width, lanes of a head) */
template <class F> static void by_head(const HeadNorm *a, F f)
{
    if (a->hs > HEAD_MOST)
        die("use more heads, so that width / heads is at most 128",
            "the CUDA backend takes head sizes up to %d, this model has %d", HEAD_MOST, a->hs);
    bool wide = wide_access(a->hs, a->x.type, a->x, a->input, a->gamma, a->beta);
    by_pack(a->x.type, wide, [&](auto e, auto width) {
        int lanes = 1;
        while (lanes < 32 && lanes * width < a->hs)
            lanes *= 2;
        f(e, width, lanes);
    });
}
static void cuda_head_norm_forward(const HeadNorm *a)
{
    by_head(a, [&](auto e, auto width, int lanes) {
        launch(head_norm_forward_kernel<decltype(e), width>, (unsigned)head_blocks(a, lanes),
               32 * HEAD_WARPS, 0, cu.stream, *a, lanes);
    });
}
static void cuda_head_norm_backward(const HeadNorm *a)
{
    by_head(a, [&](auto e, auto width, int lanes) {
        int blocks = head_blocks(a, lanes);
        float *partial = scratch_floats(2 * (size_t)blocks * (size_t)a->hs);
        size_t smem = (size_t)(HEAD_WARPS * 2 * a->hs) * sizeof(float);
        launch(head_norm_backward_kernel<decltype(e), width>, (unsigned)blocks, 32 * HEAD_WARPS,
               smem, cu.stream, *a, lanes, partial);
        sum_ranges(Sums{{ptr<float>(a->dgamma), ptr<float>(a->dbeta)}}, 2, partial, blocks, a->hs);
    });
}

/* ------------------------------------------------------------------------------------------------
 * Linear layers: what the matrix product's epilogue does not do. GELU (Hendrycks & Gimpel 2016) is
 * x Phi(x), with Phi by erf, by its tanh approximation or by sigmoid(1.702 x). Where Phi is small,
 * 1 + erf and 1 + tanh cancel and would leave few of bf16's 8 bits below x = -4; the forms here
 * keep them, and cost less: one exponential and one reciprocal serve a function and its slope, and
 * in 16-bit types an exponential alone.
 *
 * HALVES is 2 for ACT_SWIGLU, whose rows have gates in the left half and values in the right one,
 * else 1. */

/* e^(-x^2/2) */
__device__ inline float bell(float x)
{
    return ex2_approx(-0.721347520f * x * x);
}

/* The standard normal distribution Phi(x), given e = exp(-x^2/2): below 0 it is e times a
 * polynomial in 1 / (1 + 0.3 |x|), our own fit, relative error 1.5e-7 before rounding. */
__device__ inline float normal_below(float x, float e)
{
    float t = rcp_approx(1 + 0.3f * fabsf(x));
    float p = 0.0356753453f;
    p = p * t - 0.157205355f;
    p = p * t + 0.206357206f;
    p = p * t - 0.0536868260f;
    p = p * t + 0.128563183f;
    p = p * t + 0.0999130606f;
    p = p * t + 0.120754019f;
    p = p * t + 0.119629295f;
    float tail = e * (p * t);
    return x < 0 ? tail : 1 - tail;
}

/* c0 + c1 u + c2 u^2 + ... */
__device__ inline float polynomial(float, float c)
{
    return c;
}
template <class... C> __device__ inline float polynomial(float u, float c, C... more)
{
    return polynomial(u, more...) * u + c;
}

/* GELU by erf in 16-bit types, whose rounding hides what shorter polynomials miss. With u = |x|,
 * the tail t(u) = Phi(-u) and h(u) = t - u phi(u), phi being the normal density:
 *
 *   gelu(x) = max(x, 0) - u t(u)         log2 t(u) is the first polynomial
 *   gelu'(x) = h(u), or 1 - h(u) above 0       h(u) e^(u^2/2) the second one
 *
 * Our own fits, minimax on [0, 6]: of t to 2.6e-4 in bf16, 3e-5 in fp16, relative where u t(u) is
 * above 1e-7; of h to 3.4e-4 and 2.6e-5, relative where |h| is above 1e-3. So before rounding gelu
 * is within 0.07 ulp. Beyond 16 both are 0, and u stops there, lest a power overflow; NaN stays. */
__device__ inline float log2_tail(bf16, float u)
{
    return polynomial(u, -1.00038218f, -1.14600372f, -0.470125496f, -0.0443369411f, 0.00480792532f,
                      -0.000228220961f);
}
__device__ inline float log2_tail(fp16, float u)
{
    return polynomial(u, -1.00004327f, -1.15047884f, -0.460578471f, -0.0517568141f, 0.00740626687f,
                      -0.000646581175f, 2.52131158e-05f);
}
__device__ inline float scaled_slope(bf16, float u)
{
    return polynomial(u, 0.499830484f, -0.794259012f, 0.23377645f, -0.101270042f, 0.0289907791f,
                      -0.00470780581f, 0.000321075699f);
}
__device__ inline float scaled_slope(fp16, float u)
{
    return polynomial(u, 0.499986917f, -0.797443807f, 0.24711287f, -0.124813274f, 0.0499011278f,
                      -0.014680177f, 0.00288478704f, -0.000330521725f, 1.64733174e-05f);
}
template <class E> __device__ inline float gelu_erf(float x)
{
    if constexpr (sizeof(E) == 2) {
        float u = min_nan(fabsf(x), 16);
        return fmaxf(x, 0) - u * ex2_approx(log2_tail(E(), u));
    } else {
        return x * normal_below(x, bell(x));
    }
}
template <class E> __device__ inline float gelu_erf_slope(float x)
{
    if constexpr (sizeof(E) == 2) {
        float u = min_nan(fabsf(x), 16), h = bell(u) * scaled_slope(E(), u);
        return x < 0 ? h : 1 - h;
    } else {
        float e = bell(x);
        return normal_below(x, e) + x * 0.398942280f * e;
    }
}

/* 1 / (1 + e^-2u) and the same of -u, as (1 + tanh u) / 2 and (1 - tanh u) / 2 */
__device__ inline void sigmoids(float u, float *plus, float *minus)
{
    float e = ex2_approx(-2.88539008f * fabsf(u)), s = rcp_approx(1 + e);
    *plus = u >= 0 ? s : e * s;
    *minus = u >= 0 ? e * s : s;
}

__device__ inline float gelu_tanh_inner(float x)
{
    return 0.797884561f * (x + 0.044715f * x * x * x);
}

/* v[0] = act(v) */
template <class E, int HALVES, int N>
__device__ inline void act_forward(float (&v)[HALVES][N], int act)
{
    float plus, minus;
    if constexpr (HALVES == 2) {
        each<N>([&](int k) {
            sigmoids(0.5f * v[0][k], &plus, &minus);
            v[0][k] *= plus * v[1][k];
        });
    } else if (act == ACT_GELU) {
        each<N>([&](int k) { v[0][k] = gelu_erf<E>(v[0][k]); });
    } else if (act == ACT_GELU_TANH || act == ACT_QUICK_GELU) {
        each<N>([&](int k) {
            sigmoids(act == ACT_QUICK_GELU ? 0.851f * v[0][k] : gelu_tanh_inner(v[0][k]), &plus,
                     &minus);
            v[0][k] *= plus;
        });
    } else if (act == ACT_TANH) {
        each<N>([&](int k) { v[0][k] = tanhf(v[0][k]); });
    }
}

/* d *= act'(x). Of two halves, d comes with the gradient of y in its right one; with x = (g, v) and
 * s = sigmoid(g), it becomes d v (s + g s (1 - s)) and d g s. */
template <class E, int HALVES, int N>
__device__ inline void act_backward(float (&d)[HALVES][N], const float (&x)[HALVES][N], int act)
{
    float plus, minus;
    if constexpr (HALVES == 2) {
        each<N>([&](int k) {
            float g = x[0][k], dy = d[1][k];
            sigmoids(0.5f * g, &plus, &minus);
            d[0][k] = dy * x[1][k] * (plus + g * plus * minus);
            d[1][k] = dy * g * plus;
        });
    } else if (act == ACT_GELU) {
        each<N>([&](int k) { d[0][k] *= gelu_erf_slope<E>(x[0][k]); });
    } else if (act == ACT_GELU_TANH) {
        each<N>([&](int k) {
            float inner = 0.797884561f * (1 + 3 * 0.044715f * x[0][k] * x[0][k]);
            sigmoids(gelu_tanh_inner(x[0][k]), &plus, &minus);
            d[0][k] *= plus + 2 * x[0][k] * plus * minus * inner;
        });
    } else if (act == ACT_QUICK_GELU) {
        each<N>([&](int k) {
            sigmoids(0.851f * x[0][k], &plus, &minus);
            d[0][k] *= plus + 1.702f * x[0][k] * plus * minus;
        });
    } else if (act == ACT_TANH) {
        each<N>([&](int k) {
            sigmoids(x[0][k], &plus, &minus);
            d[0][k] *= 4 * plus * minus;
        });
    }
}

/* f(Width<HALVES>(), RESIDENT_...) */
template <class F> static void by_halves(int act, F f)
{
    if (act == ACT_SWIGLU)
        f(Width<2>(), RESIDENT_96);
    else
        f(Width<1>(), RESIDENT_64);
}

/* Rows whose loads are in flight together. They are loaded without conditions (an operand that is
 * not there by reading another again), since behind a branch loads wait for those before it. */
enum { TAIL_ROWS = 2, TAIL_THREADS = 128 };

/* y = drop(act(pre + bias)) + residual, [rows, out], where the product was left in pre, or in y
 * itself where there is no activation to save it for. Reads the product (and the residual), writes
 * y (and pre, if the bias was not in it): for fc1 620 MB, floor 144 us; of two halves [rows, 2 out]
 * 930 MB, floor 216 us. What follows pre is made of it as it is stored, so that it can be made
 * again. */
template <class E, int N, int HALVES>
__global__ void linear_tail_kernel(LinearForward a, Tensor product, const E *bias, Mask mask,
                                   const StepState *state)
{
    const long col = my_column(N), end = range_begin(a.rows, blockIdx.y + 1, gridDim.y);
    if (col >= a.out)
        return;
    float add[HALVES][N] = {};
    if (bias)
        each<HALVES>([&](int h) { load(add[h], bias + h * a.out + col); });
    for (long r0 = range_begin(a.rows, blockIdx.y, gridDim.y); r0 < end; r0 += TAIL_ROWS) {
        Pack<E, N> in[TAIL_ROWS][HALVES], residual[TAIL_ROWS];
#pragma unroll
        for (int i = 0; i < TAIL_ROWS; i++) {
            long r = r0 + i < end ? r0 + i : end - 1;
            each<HALVES>([&](int h) {
                in[i][h] = fetch_pack<E, N>(row_of<E>(product, r) + h * a.out + col);
            });
            residual[i] = fetch_pack<E, N>(row_of<E>(a.residual.p ? a.residual : product, r) + col);
        }
#pragma unroll
        for (int i = 0; i < TAIL_ROWS; i++) {
            long r = r0 + i;
            if (r >= end)
                break;
            float pre[HALVES][N], (&v)[N] = pre[0];
            each<HALVES>([&](int h) {
                unpack(pre[h], in[i][h]);
                each<N>([&](int k) { pre[h][k] += add[h][k]; });
                if (bias && product.p != a.y.p)
                    unpack(pre[h], store(row_of<E>(product, r) + h * a.out + col, pre[h]));
            });
            act_forward<E>(pre, a.act);
            if (mask.keep)
                drop_pack(v, mask, state, mask.element((int)r % a.tokens, (int)col),
                          (uint32_t)((int)r / a.tokens));
            if (a.residual.p)
                each<N>([&](int k) { v[k] += to_float(residual[i].v[k]); });
            store(row_of<E>(a.y, r) + col, v);
        }
    }
}

/* A y in 8 bits, drop(act(pre)) with pre whole: a Source. For fc1: reads 2 bytes an element, writes
 * both copies, 620 MB, floor 144 us. */
template <int HALVES> struct Activated {
    Tensor pre; /* bf16 [rows, HALVES * out] */
    int out, act, tokens;
    Mask mask;
    const StepState *state;
    static constexpr int PAIRS = 1;
    static constexpr bool SUMS = false;
    static constexpr int BLOCKS = HALVES == 2 ? 3 : 4;
    struct Raw {
        Pack<bf16, 8> pre[HALVES];
    };

    __device__ inline void fetch(Raw &raw, long r, long c) const
    {
        each<HALVES>([&](int h) {
            raw.pre[h] = fetch_pack<bf16, 8>(row_of<const bf16>(pre, r) + h * out + c);
        });
    }
    __device__ inline void make(float (&v)[8], const Raw &raw, long r, long c) const
    {
        float x[HALVES][8];
        each<HALVES>([&](int h) { unpack(x[h], raw.pre[h]); });
        act_forward<bf16>(x, act);
        if (mask.keep)
            drop_pack(x[0], mask, state, mask.element((int)r % tokens, (int)c),
                      (uint32_t)((int)r / tokens));
        unpack(v, rounded_pack<bf16>(x[0]));
    }
};
static void linear_tail_fp8(const LinearForward *a, const Tensor &product)
{
    if (product.p != a->pre.p || a->residual.p || !wide_access(a->out, BF16, product, a->drop))
        die("this is a mistake in vit.c", "a y of 8 bits without pre, or with a residual");
    by_halves(a->act, [&](auto halves, int) {
        cast<__NV_E4M3>(fp8_copies_of(a->y, a->rows, a->out),
                        Activated<halves>{product, a->out, a->act, a->tokens,
                                          mask_of(a->drop, a->out), cu.state});
    });
}

static void linear_tail(const LinearForward *a, const Tensor &product, const dev *bias)
{
    if (is_fp8(a->y.type) && bias) { /* which the library could not add */
        LinearForward sum = *a;
        sum.y = product;
        sum.out = a->act == ACT_SWIGLU ? 2 * a->out : a->out;
        sum.act = ACT_NONE;
        sum.drop = {};
        linear_tail(&sum, product, bias);
    }
    if (is_fp8(a->y.type)) {
        linear_tail_fp8(a, product);
        return;
    }
    bool wide = wide_access(a->out, a->y.type, a->y, product, a->residual, bias, a->drop);
    by_pack(a->y.type, wide, [&](auto e, auto width) {
        by_halves(a->act, [&](auto halves, int resident) {
            Walk w = walk_of(a->rows, a->out, width, resident);
            launch(linear_tail_kernel<decltype(e), width, halves>, w.grid(), (unsigned)w.threads, 0,
                   cu.stream, *a, product, ptr<decltype(e)>(bias), mask_of(a->drop, a->out),
                   cu.state);
        });
    });
}
static void cuda_activate(const LinearForward *a)
{
    LinearForward again = *a;
    again.residual = {};
    linear_tail(&again, a->pre, NULL);
}

/* dx = drop(dx) * act'(pre), in place, [rows, in], and its column sums, of dx as stored. Reads dx
 * and pre, writes dx: for fc1 930 MB, floor 216 us. Of two halves [rows, 2 in], the product was
 * left in the right one: 1550 MB, floor 360 us. partial: [ranges][HALVES * in] */
template <class E, int N, int HALVES>
__global__ void __launch_bounds__(TAIL_THREADS, HALVES == 2 ? 5 : 8)
    input_tail_kernel(LinearBackwardInput a, Mask mask, const StepState *state, float *partial)
{
    launched_within<TAIL_THREADS>();
    const long col = my_column(N), end = range_begin(a.rows, blockIdx.y + 1, gridDim.y);
    if (col >= a.in)
        return;
    const long product = (HALVES - 1) * (long)a.in; /* its first column */
    float sum[HALVES][N] = {};
    for (long r0 = range_begin(a.rows, blockIdx.y, gridDim.y); r0 < end; r0 += TAIL_ROWS) {
        Pack<E, N> dx[TAIL_ROWS], pre[TAIL_ROWS][HALVES];
#pragma unroll
        for (int i = 0; i < TAIL_ROWS; i++) {
            long r = r0 + i < end ? r0 + i : end - 1;
            dx[i] = fetch_pack<E, N>(row_of<E>(a.dx, r) + product + col);
            each<HALVES>([&](int h) {
                pre[i][h] = fetch_pack<E, N>(row_of<E>(a.act ? a.pre : a.dx, r) + h * a.in + col);
            });
        }
#pragma unroll
        for (int i = 0; i < TAIL_ROWS; i++) {
            long r = r0 + i;
            if (r >= end)
                break;
            float d[HALVES][N], x[HALVES][N];
            unpack(d[HALVES - 1], dx[i]);
            each<HALVES>([&](int h) { unpack(x[h], pre[i][h]); });
            if (mask.keep)
                drop_pack(d[HALVES - 1], mask, state, mask.element((int)r % a.tokens, (int)col),
                          (uint32_t)((int)r / a.tokens));
            act_backward<E>(d, x, a.act);
            each<HALVES>([&](int h) {
                unpack(d[h], store(row_of<E>(a.dx, r) + h * a.in + col, d[h]));
                each<N>([&](int k) { sum[h][k] += d[h][k]; });
            });
        }
    }
    if (partial)
        each<HALVES>([&](int h) {
            store_sums(partial + ((long)blockIdx.y * HALVES + h) * a.in + col, sum[h]);
        });
}
static void input_tail(const LinearBackwardInput *a)
{
    if (!a->act && a->drop.p <= 0) {
        if (a->dbias)
            column_sums(ptr<float>(a->dbias), a->dx, a->rows, a->in);
        return;
    }
    Tensor none = {};
    bool wide = wide_access(a->in, a->dx.type, a->dx, a->act ? a->pre : none, a->drop);
    by_pack(a->dx.type, wide, [&](auto e, auto width) {
        by_halves(a->act, [&](auto halves, int resident) {
            Walk w = walk_of(a->rows, a->in, width, resident);
            const long n = (long)halves * a->in;
            float *partial = a->dbias ? scratch_floats((size_t)w.ranges * (size_t)n) : NULL;
            launch(input_tail_kernel<decltype(e), width, halves>, w.grid(), (unsigned)w.threads, 0,
                   cu.stream, *a, mask_of(a->drop, a->in), cu.state, partial);
            if (partial)
                sum_ranges(Sums{{ptr<float>(a->dbias)}}, 1, partial, w.ranges, n);
        });
    });
}

/* A dx in 8 bits, drop(product) * act'(pre): a Source. For fc1: reads 4 bytes an element, writes
 * both copies, 930 MB, floor 216 us. SwiGLU's halves are made one beside the other, of the same
 * numbers, which the second one finds in the L2. */
template <int HALVES> struct Sloped {
    Tensor product, pre; /* bf16 [rows, in], [rows, HALVES * in] */
    int in, act, tokens;
    Mask mask;
    const StepState *state;
    static constexpr int PAIRS = 1;
    static constexpr bool SUMS = true;
    static constexpr int BLOCKS = HALVES == 2 ? 2 : 3;
    struct Raw {
        Pack<bf16, 8> product, pre[HALVES];
    };

    __device__ inline void fetch(Raw &raw, long r, long c) const
    {
        const long col = HALVES == 2 && c >= in ? c - in : c;
        raw.product = fetch_pack<bf16, 8>(row_of<const bf16>(product, r) + col);
        each<HALVES>([&](int h) {
            raw.pre[h] = fetch_pack<bf16, 8>(row_of<const bf16>(act ? pre : product, r) +
                                             (act ? h * in : 0) + col);
        });
    }
    __device__ inline void make(float (&v)[8], const Raw &raw, long r, long c) const
    {
        const bool right = HALVES == 2 && c >= in;
        float d[HALVES][8], x[HALVES][8];
        unpack(d[HALVES - 1], raw.product);
        each<HALVES>([&](int h) { unpack(x[h], raw.pre[h]); });
        if (mask.keep)
            drop_pack(d[HALVES - 1], mask, state,
                      mask.element((int)r % tokens, (int)(right ? c - in : c)),
                      (uint32_t)((int)r / tokens));
        act_backward<bf16>(d, x, act);
        each<8>([&](int k) { d[0][k] = right ? d[HALVES - 1][k] : d[0][k]; });
        unpack(v, rounded_pack<bf16>(d[0]));
    }
};
static void input_tail_fp8(const LinearBackwardInput *a, const Tensor &product)
{
    if (!wide_access(a->in, BF16, product, a->act ? a->pre : product, a->drop))
        die("this is a mistake in vit.c", "a dx of 8 bits from rows that are not aligned");
    by_halves(a->act, [&](auto halves, int) {
        using From = Sloped<halves>;
        Fp8Cast to = fp8_copies_of(a->dx, a->rows, (long)halves * a->in);
        const int ranges = to.ranges(From::BLOCKS);
        if (a->dbias)
            to.sums = scratch_floats((size_t)ranges * (size_t)to.n);
        cast<__NV_E5M2>(
            to, From{product, a->pre, a->in, a->act, a->tokens, mask_of(a->drop, a->in), cu.state});
        if (a->dbias)
            sum_ranges(Sums{{ptr<float>(a->dbias)}}, 1, to.sums, ranges, to.n);
    });
}

/* ------------------------------------------------------------------------------------------------
 * Pooling */

/* y[b] = mean of tokens first..end-1 of x. A thread takes one pack of columns of one image. Reads
 * x: floor 18 us. */
template <class E, int N> __global__ void pool_forward_kernel(Pool a)
{
    const long b = blockIdx.y, col = my_column(N);
    if (col >= a.C)
        return;
    float sum[N] = {};
#pragma unroll 8
    for (int t = a.first; t < a.end; t++) {
        float v[N];
        load(v, row_of<E>(a.x, b * a.T + t) + col);
        each<N>([&](int k) { sum[k] += v[k]; });
    }
    const float inv = 1 / (float)(a.end - a.first);
    each<N>([&](int k) { sum[k] *= inv; });
    store(row_of<E>(a.y, b) + col, sum);
}

/* dx = dy / (end - first) in the pooled tokens; 0 in the others, or they are left alone. Writes dx:
 * floor 18 us. */
template <class E, int N> __global__ void pool_backward_kernel(Pool a)
{
    const long rows = (long)a.B * a.T, col = my_column(N);
    const long end = range_begin(rows, blockIdx.y + 1, gridDim.y);
    const float inv = 1 / (float)(a.end - a.first);
    if (col >= a.C)
        return;
    for (long r = range_begin(rows, blockIdx.y, gridDim.y); r < end; r++) {
        int b = (int)r / a.T, t = (int)r % a.T;
        bool pooled = t >= a.first && t < a.end;
        if (!pooled && a.beside)
            continue;
        float d[N];
        load(d, row_of<E>(a.y, b) + col);
        each<N>([&](int k) { d[k] = pooled ? d[k] * inv : 0; });
        store(row_of<E>(a.x, r) + col, d);
    }
}
static void cuda_pool_forward(const Pool *a)
{
    by_pack(a->x.type, wide_access(a->C, a->x.type, a->x, a->y), [&](auto e, auto width) {
        int packs = ceil_div(a->C, width), threads = packs < 64 ? ceil_div(packs, 32) * 32 : 64;
        dim3 grid((unsigned)ceil_div(packs, threads), (unsigned)a->B);
        launch(pool_forward_kernel<decltype(e), width>, grid, (unsigned)threads, 0, cu.stream, *a);
    });
}
static void cuda_pool_backward(const Pool *a)
{
    by_pack(a->x.type, wide_access(a->C, a->x.type, a->x, a->y), [&](auto e, auto width) {
        Walk w = walk_of((long)a->B * a->T, a->C, width, RESIDENT_32);
        launch(pool_backward_kernel<decltype(e), width>, w.grid(), (unsigned)w.threads, 0,
               cu.stream, *a);
    });
}

/* ------------------------------------------------------------------------------------------------
 * Loss. A block takes an image and reads its K logits and targets three times, from L1 after the
 * first. B*K numbers are little: a few us. Written so that what is nearly right stays accurate in
 * float: 1 - p of the leading class is the sum of the others' exponentials, not a difference, and
 * logarithms of numbers near 1 are log1p. */

enum { LOSS_THREADS = 256 };

/* The position of the largest target, the first of equals. room: 2 floats per warp */
__device__ inline int block_label(const float *y, int K, float *room)
{
    float best = -INFINITY;
    int at = K;
    auto take = [&](float v, int k) {
        if (v > best || (v == best && k < at))
            best = v, at = k;
    };
    for (int k = (int)threadIdx.x; k < K; k += (int)blockDim.x)
        take(y[k], k);
    for (int d = 16; d; d >>= 1) {
        float v = __shfl_xor_sync(0xffffffffu, best, d);
        int k = __shfl_xor_sync(0xffffffffu, at, d);
        take(v, k);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        room[threadIdx.x / 32] = best;
        room[32 + threadIdx.x / 32] = __int_as_float(at);
    }
    __syncthreads();
    for (int w = 0; w < (int)blockDim.x / 32; w++)
        take(room[w], __float_as_int(room[32 + w]));
    return at < K ? at : 0; /* all of them NaN */
}

/* softmax:  loss = sum_k y_k (lse - z_k),  dz_k = p_k sum(y) - y_k
 * sigmoid:  loss = sum_k max(z,0) - z y + log(1 + e^-|z|),  dz_k = sigmoid(z_k) - y_k */
template <class E, class D> __global__ void loss_kernel(Loss a, const StepState *state)
{
    float *room = dynamic_smem<float>(); /* [64] */
    const int K = a.K, first = (int)threadIdx.x, step = (int)blockDim.x;
    const long b = blockIdx.x;
    const E *z = row_of<E>(a.logits, b);
    const float *y = (const float *)a.targets + b * K;
    D *dz = a.dlogits.p ? row_of<D>(a.dlogits, b) : NULL;
    const float scale = (float)(a.scale * state->loss_scale);
    const int label = block_label(y, K, room);
    const float z_label = to_float(z[label]);
    float loss = 0;
    int above = 0;
    for (int k = first; k < K; k += step) /* written so that NaN counts as above */
        above += k != label && !(to_float(z[k]) < z_label);

    if (a.kind == LOSS_SOFTMAX) {
        float top = -INFINITY, mass = 0, others = 0;
        for (int k = first; k < K; k += step) {
            top = fmaxf(top, to_float(z[k]));
            mass += y[k];
        }
        top = block_max(top, room);
        mass = block_sum(mass, room);
        int tops = 0; /* each of them adds e^0 to the sum, of which one is left out of `others` */
        for (int k = first; k < K; k += step) {
            float v = to_float(z[k]);
            if (v == top)
                tops++;
            else
                others += expf(v - top);
        }
        others = block_sum(others, room) + (float)(block_sum(tops, (int *)room) - 1);
        others += top - top; /* NaN where the largest is infinite */
        const float inv = 1 / (1 + others), log_sum = log1pf(others);
        for (int k = first; k < K; k += step) {
            float v = to_float(z[k]), t = y[k];
            if (t != 0)
                loss += t * ((top - v) + log_sum);
            if (dz)
                dz[k] = from_float<D>(scale * (v == top ? (mass - t) - mass * others * inv
                                                        : mass * expf(v - top) * inv - t));
        }
    } else {
        for (int k = first; k < K; k += step) {
            float v = to_float(z[k]), t = y[k], e = expf(-fabsf(v)), tail = e / (1 + e);
            loss += (v > 0 ? v - v * t : -v * t) + log1pf(e);
            if (dz)
                dz[k] = from_float<D>(scale * (v >= 0 ? (1 - t) - tail : tail - t));
        }
    }
    loss = block_sum(loss, room);
    above = block_sum(above, (int *)room);
    if (threadIdx.x == 0) {
        float *stats = (float *)a.stats + 3 * ((long)state->sample0 + b);
        bool finite = isfinite(z_label);
        stats[0] = loss;
        stats[1] = finite && above < 1 ? 1 : 0;
        stats[2] = finite && above < 5 ? 1 : 0;
    }
}
static void cuda_loss(const Loss *a)
{
    by_type(a->logits.type, [&](auto e) {
        by_type(a->dlogits.p ? a->dlogits.type : a->logits.type, [&](auto d) {
            launch(loss_kernel<decltype(e), decltype(d)>, (unsigned)a->B, LOSS_THREADS,
                   64 * sizeof(float), cu.stream, *a, cu.state);
        });
    });
}

/* ------------------------------------------------------------------------------------------------
 * Counting, converting, adding */

/* state->large += elements of x [rows, cols] beyond an eighth of fp16's largest number, or NaN */
template <class E, int N>
__global__ void count_large_kernel(StepState *state, Tensor x, long rows, long cols)
{
    const long col = my_column(N), end = range_begin(rows, blockIdx.y + 1, gridDim.y);
    int large = 0;
    if (col < cols) {
#pragma unroll 4
        for (long r = range_begin(rows, blockIdx.y, gridDim.y); r < end; r++) {
            float v[N];
            load(v, row_of<E>(x, r) + col);
            each<N>([&](int k) { large += !(fabsf(v[k]) <= 0.125f * 65504); });
        }
    }
    large = block_sum(large, dynamic_smem<int>());
    if (threadIdx.x == 0 && large)
        atomicAdd((unsigned long long *)&state->large, (unsigned long long)large);
    if (threadIdx.x == 0 && blockIdx.x == 0 && blockIdx.y == 0)
        state->counted += (uint64_t)(rows * cols);
}
static void cuda_count_large(Tensor x, int rows, int cols)
{
    by_pack(x.type, wide_access(cols, x.type, x), [&](auto e, auto width) {
        Walk w = walk_of(rows, cols, width, RESIDENT_64);
        launch(count_large_kernel<decltype(e), width>, w.grid(), (unsigned)w.threads,
               32 * sizeof(int), cu.stream, (StepState *)cu.state, x, (long)rows, (long)cols);
    });
}

/* Blocks of 256 threads for a vector of n elements, N to a thread at a time */
static unsigned vector_blocks(long n, int N)
{
    int blocks = ceil_div(n, 256L * N), most = cu.gpu.multiProcessorCount * 8;
    return (unsigned)(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

/* to = from, rounded to nearest even where D is narrower */
template <class D, class S, int N> __global__ void convert_kernel(D *to, const S *from, long n)
{
    const long step = (long)gridDim.x * blockDim.x * N;
    for (long i = my_column(N); i < n; i += step) {
        float v[N];
        take(v, from + i, n - i);
        put(to + i, v, n - i);
    }
}
static void cuda_convert(dev *dst, int dst_type, const dev *src, int src_type, long n)
{
    if (n <= 0)
        return;
    by_type(dst_type, [&](auto d) {
        by_type(src_type, [&](auto s) {
            by_quads(aligned(dst) && aligned(src), [&](auto quad) {
                launch(convert_kernel<decltype(d), decltype(s), quad>, vector_blocks(n, quad), 256,
                       0, cu.stream, ptr<decltype(d)>(dst), ptr<const decltype(s)>(src), n);
            });
        });
    });
}

/* sum += x. Two reads and a write of n floats: for B/16 (86.6 M) 1.04 GB, floor 242 us. */
template <int N> __global__ void add_kernel(float *sum, const float *x, long n)
{
    const long step = (long)gridDim.x * blockDim.x * N;
    for (long i = my_column(N); i < n; i += step) {
        float a[N], b[N];
        take(a, sum + i, n - i);
        take(b, x + i, n - i);
        each<N>([&](int k) { a[k] += b[k]; });
        put(sum + i, a, n - i);
    }
}
static void cuda_add(dev *sum, const dev *x, long n)
{
    if (n <= 0)
        return;
    by_quads(aligned(sum) && aligned(x), [&](auto quad) {
        launch(add_kernel<quad>, vector_blocks(n, quad), 256, 0, cu.stream, ptr<float>(sum),
               ptr<const float>(x), n);
    });
}

/* ------------------------------------------------------------------------------------------------
 * Floats of scratch memory for micro-batches of B images: the most that one op asks for, which is
 *   ranges * n         column sums of a matrix [B*T, n], n up to max(3C, 2F, K, representation)
 *   2 * ranges * F     the two halves of ACT_SWIGLU, in as many ranges as one
 *   4 * ranges * C     the norm's backward pass
 *   2 * blocks * hs    that of norms of heads
 * where the number of ranges depends on whether rows can be read in packs (N = 1, 4 or 8). */
static size_t layers_scratch(const Sizes *s)
{
    const long rows = (long)s->B * s->T, C = s->C;
    const long columns[] = {C, 2 * C, 3 * C, s->F, 2L * s->F, s->K, s->R};
    size_t most = 2 * (size_t)(cu.gpu.multiProcessorCount * HEAD_BLOCKS) * HEAD_MOST;
    for (int N = 1; N <= 8; N = N == 1 ? 4 : 2 * N) {
        for (long n : columns) {
            size_t floats = n > 0 ? (size_t)walk_of(rows, n, N, RESIDENT_64).ranges * (size_t)n : 0;
            most = floats > most ? floats : most;
        }
        size_t halves = 2 * (size_t)walk_of(rows, s->F, N, RESIDENT_96).ranges * (size_t)s->F;
        size_t norm =
            (size_t)SUMS * (size_t)norm_walk(rows, C, N, norm_packs(C, N)).ranges * (size_t)C;
        most = std::max({most, halves, norm});
    }
    return most;
}
