/* common.cuh - what every kernel file shares: the backend's context, element types, packs of 16
 * bytes, sums over warps, dropout masks.
 *
 * Kernels are templates over the element type E (float, __nv_bfloat16, __half) of activations and
 * working weights; arithmetic is in float. Host wrappers choose E from a Tensor's type with
 * by_type(). Everything here is static: backend_cuda.cu includes all of cuda/ as one unit.
 */
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RNG_FN static inline __host__ __device__
extern "C" {
#include "backend.h"
#include "util/files.h"
#include "util/rng.h"
}

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

#define CHECK_CUDA(call) cuda_check(call, #call)

/* What the ops need to know; one process drives one device. */
struct Context {
    cudaStream_t stream;    /* all ops, in order */
    const StepState *state; /* device memory, set by bind, as is the scratch */
    char *scratch;
    size_t scratch_bytes;
    size_t copies; /* bytes at the end of it that 8-bit copies take: fp8.cuh */
    Device device;
    cudaDeviceProp gpu;
    int smem; /* most dynamic shared memory of a block, bytes */
};
static Context cu;

/* Of backend_cuda.cu */
static dev *cuda_alloc(size_t bytes); /* NULL: there is no room */
static void cuda_release(dev *p);
static void wait_event(cudaEvent_t e);
static void wait_stream(cudaStream_t s);
static void settle();

/* The first n floats of the scratch memory: an op's sums on their way. Every op may use all of it,
 * since ops run one after another; but copies at its end last from one op to the next. */
static float *scratch_floats(size_t n)
{
    if (n * sizeof(float) + cu.copies > cu.scratch_bytes)
        die("this is a mistake in backend_cuda.cu: scratch_bytes() promises too little",
            "an op needs %zu bytes of scratch memory, there are %zu", n * sizeof(float) + cu.copies,
            cu.scratch_bytes);
    return (float *)cu.scratch;
}

static inline int ceil_div(long n, long by)
{
    return (int)((n + by - 1) / by);
}

/* ------------------------------------------------------------------------------------------------
 * Element types */

using bf16 = __nv_bfloat16;
using fp16 = __half;

/* by_type(t.type, [&](auto e) { using E = decltype(e); ... }) */
template <class F> static void by_type(int type, F f)
{
    if (type == F32)
        f(float());
    else if (type == BF16)
        f(bf16());
    else if (type == F16)
        f(fp16());
    else
        die("use F32, BF16 or F16", "the CUDA backend has no kernels for type %d", type);
}

template <class E> static E *ptr(const dev *p)
{
    return (E *)p;
}
template <class E> static E *ptr(const Tensor &t)
{
    return (E *)t.p;
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
__device__ inline float to_float(fp16 x) { return __half2float(x); }
template <class E> __device__ inline E from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
template <> __device__ inline bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ inline fp16 from_float<fp16>(float x) { return __float2half_rn(x); }

/* N elements that travel together; 16 bytes where memory is aligned, else one element. */
template <class E, int N> struct alignas(sizeof(E) * N) Pack {
    E v[N];
};
template <class E> constexpr int WIDE = 16 / (int)sizeof(E);

/* f(k) for k = 0..N-1, without a loop, so that k may index registers */
template <int N, class F> __device__ inline void each(F f)
{
#pragma unroll
    for (int k = 0; k < N; k++)
        f(k);
}

template <class E, int N> __device__ inline Pack<E, N> fetch_pack(const E *from)
{
    return *(const Pack<E, N> *)from;
}
template <class E, int N> __device__ inline void unpack(float (&to)[N], const Pack<E, N> &p)
{
    each<N>([&](int k) { to[k] = to_float(p.v[k]); });
}
template <class E, int N> __device__ inline void load(float (&to)[N], const E *from)
{
    unpack(to, fetch_pack<E, N>(from));
}
/* Rounded, pair by pair where there are pairs, which is one instruction each. */
template <class E, int N> __device__ inline Pack<E, N> rounded_pack(const float (&from)[N])
{
    Pack<E, N> p;
    if constexpr (sizeof(E) == 2 && N % 2 == 0) {
        each<N / 2>([&](int k) {
            const uint32_t pair = pack<E>(from[2 * k], from[2 * k + 1]);
            memcpy(&p.v[2 * k], &pair, sizeof pair);
        });
    } else {
        each<N>([&](int k) { p.v[k] = from_float<E>(from[k]); });
    }
    return p;
}
/* Returns what is there now: a bias gradient is the sum of that. */
template <class E, int N> __device__ inline Pack<E, N> store(E *to, const float (&from)[N])
{
    const Pack<E, N> p = rounded_pack<E>(from);
    *(Pack<E, N> *)to = p;
    return p;
}

/* The same where only `left` elements are there: nothing beyond them is touched. */
template <class E, int N> __device__ inline void take(float (&to)[N], const E *from, long left)
{
    if (left >= N)
        load(to, from);
    else
        each<N>([&](int k) { to[k] = k < left ? to_float(from[k]) : 0; });
}
template <class E, int N> __device__ inline void put(E *to, const float (&from)[N], long left)
{
    if (left >= N) {
        store(to, from);
    } else {
#pragma unroll
        for (int k = 0; k < N; k++)
            if (k < left)
                to[k] = from_float<E>(from[k]);
    }
}

/* Whether rows of these tensors can be read in packs of 16 bytes (absent ones can). */
static bool aligned(const dev *p)
{
    return (uintptr_t)p % 16 == 0;
}
static bool wide_rows(const Tensor &t)
{
    return !t.p || (aligned(t.p) && t.ld * type_size(t.type) % 16 == 0);
}
/* Whether the four columns that a pack begins with share a block of random bits. */
static bool whole_blocks(const Drop &d)
{
    return d.p <= 0 || (d.first % 4 == 0 && d.of % 4 == 0);
}

/* by_width(wide, e, [&](auto n) { constexpr int N = n; ... }): N = WIDE<E> or 1 */
template <int N> struct Width {
    static constexpr int value = N;
    constexpr operator int() const { return N; }
};
template <class E, class F> static void by_width(bool wide, E, F f)
{
    if (wide)
        f(Width<WIDE<E>>());
    else
        f(Width<1>());
}
/* Quads where every buffer is aligned to 16 bytes, else single elements: f(N) */
template <class F> static void by_quads(bool quads, F f)
{
    by_width(quads, float(), f);
}

/* ------------------------------------------------------------------------------------------------
 * Sums. Always over the same elements in the same order, whatever the timing. */

template <class T> __device__ inline T warp_sum(T x)
{
    for (int d = 16; d; d >>= 1)
        x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}
__device__ inline float warp_max(float x)
{
    for (int d = 16; d; d >>= 1)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

/* ------------------------------------------------------------------------------------------------
 * Dropout (see Drop in backend.h): the mask of elements 4*block .. 4*block+3 of one sample */

struct Mask { /* a Drop, made ready on the host */
    uint32_t keep; /* an element is kept when its bits reach this; 0: no dropout */
    float scale;   /* of what is kept */
    int purpose, layer;
    uint32_t first, of; /* the op's first column (attention: head) among all of the whole matrix */

    /* its element in this row of a sample and this column of the op */
    __device__ inline uint32_t element(int row, int column) const
    {
        return (uint32_t)row * of + first + (uint32_t)column;
    }
};
static Mask mask_of(const Drop &d, int columns)
{
    return Mask{d.p > 0 ? rng_threshold(d.p) : 0,
                (float)(1 / (1 - d.p)),
                d.purpose,
                d.layer,
                (uint32_t)d.first,
                (uint32_t)(d.of ? d.of : columns)};
}
__device__ inline void mask4(float (&scale)[4], const Mask &m, const StepState *s, uint32_t block,
                             uint32_t sample)
{
    Philox r = rng_block(s->seed, block, s->sample0 + sample, s->step, m.purpose, m.layer);
#pragma unroll
    for (int i = 0; i < 4; i++)
        scale[i] = r.v[i] >= m.keep ? m.scale : 0.0f;
}
/* x[i] *= mask of element first + i; of packs, first is a multiple of 4: see whole_blocks() */
template <int N>
__device__ inline void drop_pack(float (&x)[N], const Mask &m, const StepState *s, uint32_t first,
                                 uint32_t sample)
{
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        float scale[4];
        mask4(scale, m, s, (first + i) / 4, sample);
        if constexpr (N % 4 == 0) {
            each<4>([&](int k) { x[i + k] *= scale[k]; });
        } else {
            uint32_t k = first % 4; /* selected without a run-time index into registers */
            x[0] *= k < 2 ? (k == 0 ? scale[0] : scale[1]) : (k == 2 ? scale[2] : scale[3]);
        }
    }
}
/* Stochastic depth of one sample: 0 or 1/(1-p) */
__device__ inline float path_scale(const Mask &m, const StepState *s, uint32_t sample)
{
    if (!m.keep)
        return 1;
    float scale[4];
    mask4(scale, m, s, 0, sample);
    return scale[0];
}
