/* rows.cuh - what the kernels between matrix products share: packs of a row, sums over a block, and
 * how the work on a matrix is divided.
 *
 * Memory should bound all of those kernels (GELU by erf comes near the arithmetic's limit), so each
 * reads its inputs once and writes its outputs once. Two shapes of work are enough:
 *   - a warp takes a row, where a row has to be summed before it can be written (norm forward);
 *   - a thread takes one pack of neighbouring columns and walks down a range of rows, where what
 *     belongs to a column (bias, gamma, sums over all rows) can stay in its registers.
 * Sums over rows have two stages: each range of rows leaves its sums in scratch memory, then
 * sum_ranges adds the ranges in order. No result depends on timing.
 *
 * "Floor", here and in norms.cuh and layers.cuh, is what an op must move, over 4.3 TB/s, for B/16
 * in bf16 with 256 images on an H200, where a matrix [B*T, C] is 77.5 MB or 18 us. These are
 * estimates; nothing was measured.
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
