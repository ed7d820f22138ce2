/* fp8.cuh - 8-bit copies of a linear layer's operands, and their scales (Fp8 in backend.h).
 *
 * cuBLASLt multiplies 8-bit matrices in one layout alone: sums run along rows of both, in its words
 * A is transposed and B is not. So y = x w^T takes x and w as they are, dx = dy w takes w
 * transposed, and dw = dy^T x takes both transposed. A copy and its transposition are written in
 * one pass over the operand; rows of a transposed copy are padded with zeros to a multiple of 16,
 * as sums must be.
 *
 * Copies live in the scratch memory, from one operation to the next: forward those of x and w;
 * backward those of dy, which the weight gradient's product makes for the input gradient's too, and
 * x and w once more, transposed. Made again, a copy costs 3 bytes an element; kept, it would cost a
 * byte of memory for each saved activation, and under ZeRO 3 for each weight of the whole model.
 *
 * Order: rounding, scales, amax, casts, the end of a step.
 */
#pragma once

#include "cuda/common.cuh"

#include <algorithm>
#include <cuda_fp8.h>

/* ------------------------------------------------------------------------------------------------
 * Rounding */

using Fp8Kind = __nv_fp8_interpretation_t;

/* What saturation would hide is NaN instead: an overflow must reach the gradient's norm. */
__device__ inline float fp8_scaled(float x, float scale)
{
    return isfinite(x) ? x * scale : NAN;
}
/* Four numbers, the first in the lowest byte. One instruction for each two. */
template <Fp8Kind KIND> __device__ inline uint32_t fp8_pack(const float (&x)[4])
{
    uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(x[0], x[1]), __NV_SATFINITE, KIND);
    uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(x[2], x[3]), __NV_SATFINITE, KIND);
    return low | high << 16;
}

/* ------------------------------------------------------------------------------------------------
 * Scales */

/* 2^-margin * the largest power of two by which amax stays within the type, whose largest number is
 * 1.75 * 2^8 or 2^15; `otherwise` where there was nothing to go by. */
__device__ inline float fp8_scale_of(float amax, Fp8Kind kind, int margin, float otherwise)
{
    const uint32_t bits = __float_as_uint(amax), fraction = bits & 0x7FFFFFu;
    if (!(amax > 0) || !isfinite(amax))
        return otherwise;
    const int top = kind == __NV_E4M3 ? 8 : 15, exponent = (int)(bits >> 23) - 127;
    const int e = top - margin - exponent - (fraction > 0x600000u); /* 1.75 */
    return __uint_as_float((uint32_t)(min(max(e, -100), 100) + 127) << 23);
}

/* *most = the larger: of numbers that are not negative, the order of their bits is theirs, and NaN
 * comes last. The order of the calls makes no difference. */
__device__ inline void raise_amax(float *most, float x)
{
    atomicMax((unsigned *)most, __float_as_uint(x));
}
__device__ inline float larger_amax(float a, float b)
{
    return __uint_as_float(max(__float_as_uint(a), __float_as_uint(b)));
}
/* The largest of a block's, to *most. room: a float for each warp. All threads come together. */
__device__ inline void block_amax(float *most, float x, float *room)
{
    for (int d = 16; d; d >>= 1)
        x = larger_amax(x, __shfl_xor_sync(0xffffffffu, x, d));
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        room[threadIdx.x / 32] = x;
    __syncthreads();
    if (threadIdx.x > 0)
        return;
    for (unsigned w = 1; w < blockDim.x / 32; w++)
        x = larger_amax(x, room[w]);
    raise_amax(most, x);
}

/* ------------------------------------------------------------------------------------------------
 * Casts. A tile of 128 rows and 64 columns at a time: a thread reads 4 rows of 8 columns, makes a
 * word of each column's four numbers, and writes the rows' bytes from them; the words cross the
 * block through shared memory and leave as 16 bytes of a column. Reads 2 bytes an element, writes 1
 * or 2: floor 27 or 36 us for [B*T, C]. */

enum {
    CAST_ROWS = 128,
    CAST_COLUMNS = 64,
    CAST_THREADS = 256,
    CAST_WORDS = CAST_ROWS / 4,
    CAST_STRIDE = CAST_WORDS + 1 /* words of a column: neighbours lie in other banks */
};

struct Fp8Cast {
    Tensor from; /* bf16 [rows, n] */
    long rows, n;
    uint8_t *to;     /* [rows, n], or NULL */
    uint8_t *across; /* [n, padded], padded: rows to a multiple of 16, zeros behind them; or NULL */
    Fp8Scale *scale;
    Fp8 how;
};

/* now = the largest |x|. Reads 2 bytes an element: floor 18 us for [B*T, C]. */
static __global__ void fp8_amax_kernel(Fp8Cast a)
{
    const uint32_t packs = (uint32_t)a.n / 8, step = gridDim.x * blockDim.x;
    const long count = a.rows * packs;
    float most = 0;
    for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        float v[8];
        load(v, (const bf16 *)a.from.p + i / packs * a.from.ld + i % packs * 8);
        each<8>([&](int k) { most = larger_amax(most, fabsf(v[k])); });
    }
    block_amax(&a.scale->now, most, dynamic_smem<float>());
}

/* Four rows of eight columns from row r, column c on; rows that are not there are zeros. */
template <Fp8Kind KIND>
__device__ inline void cast_patch(const Fp8Cast &a, long r, long c, float scale, float *most,
                                  uint32_t (&words)[8])
{
    float v[4][8] = {};
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (r + i < a.rows)
            load(v[i], (const bf16 *)a.from.p + (r + i) * a.from.ld + c);
    each<8>([&](int k) {
        float x[4];
        each<4>([&](int i) {
            *most = larger_amax(*most, fabsf(v[i][k]));
            x[i] = fp8_scaled(v[i][k], scale);
        });
        words[k] = fp8_pack<KIND>(x);
    });
    if (!a.to)
        return;
    each<4>([&](int i) { /* byte i of each word */
                         uint2 row = {0, 0};
                         each<4>([&](int k) {
                             row.x |= (words[k] >> 8 * i & 0xFF) << 8 * k;
                             row.y |= (words[4 + k] >> 8 * i & 0xFF) << 8 * k;
                         });
                         if (r + i < a.rows)
                             *(uint2 *)(a.to + (r + i) * a.n + c) = row;
    });
}

template <Fp8Kind KIND>
static __global__ void __launch_bounds__(CAST_THREADS) fp8_cast_kernel(Fp8Cast a)
{
    launched_within<CAST_THREADS>();
    uint32_t *tile = dynamic_smem<uint32_t>(); /* [CAST_COLUMNS][CAST_STRIDE] */
    const float delayed = a.scale->scale > 0 ? a.scale->scale : 1;
    const float scale = a.how.current ? fp8_scale_of(a.scale->now, KIND, a.how.margin, 1) : delayed;
    const int across = (int)((a.n + CAST_COLUMNS - 1) / CAST_COLUMNS);
    const long tiles = (a.rows + CAST_ROWS - 1) / CAST_ROWS * across;
    const long padded = (a.rows + 15) / 16 * 16;
    const int column = (int)threadIdx.x % 8 * 8, word = (int)threadIdx.x / 8; /* of my patch */
    float most = 0;
    if (blockIdx.x == 0 && threadIdx.x == 0)
        a.scale->inverse = 1 / scale;
    for (long t = blockIdx.x; t < tiles; t += gridDim.x) {
        const long r = t / across * CAST_ROWS, c = t % across * CAST_COLUMNS;
        uint32_t words[8];
        __syncthreads(); /* the tile before has been read */
        if (c + column < a.n) {
            cast_patch<KIND>(a, r + 4 * word, c + column, scale, &most, words);
            each<8>([&](int k) { tile[(column + k) * CAST_STRIDE + word] = words[k]; });
        }
        __syncthreads();
        for (int i = (int)threadIdx.x; a.across && i < CAST_COLUMNS * CAST_WORDS / 4;
             i += CAST_THREADS) {
            const int j = i / (CAST_WORDS / 4), w = i % (CAST_WORDS / 4) * 4;
            const uint32_t *from = tile + j * CAST_STRIDE + w;
            if (c + j < a.n && r + 4 * w < padded)
                *(uint4 *)(a.across + (c + j) * padded + r + 4 * w) =
                    make_uint4(from[0], from[1], from[2], from[3]);
        }
    }
    if (a.how.learns)
        block_amax(&a.scale->amax, most, (float *)tile);
}

/* Copies take the end of the scratch memory, downwards; other operations' sums its beginning. */
static Fp8 fp8_how;

static void cuda_fp8(const Fp8 *how)
{
    fp8_how = *how;
}
static uint8_t *fp8_room(size_t bytes)
{
    cu.copies += (bytes + 255) / 256 * 256;
    scratch_floats(0); /* there must be as much */
    return (uint8_t *)cu.scratch + (cu.scratch_bytes - cu.copies) / 256 * 256;
}

/* A linear layer in 8 bits has operands with scales. */
static bool in_fp8(const Tensor &a, const Tensor &b)
{
    return a.scale && b.scale;
}

/* A copy of x [rows, n] in `type`; across: its transposition [n, rows padded] instead of it; and,
 * where also_across is given, that one too. */
static Tensor fp8_copy(const Tensor &x, long rows, long n, int type, bool across,
                       Tensor *also_across = nullptr)
{
    const long padded = (rows + 15) / 16 * 16, most = cu.gpu.multiProcessorCount * 8L;
    const Tensor plain = {NULL, n, type, x.scale}, turned = {NULL, padded, type, x.scale};
    Fp8Cast a = {x, rows, n, NULL, NULL, (Fp8Scale *)x.scale, fp8_how};
    if (n % 16 || !wide_rows(x))
        die("choose widths that are multiples of 16, or --precision bf16",
            "fp8 products of rows of %ld numbers", n);
    if (!across)
        a.to = fp8_room((size_t)(rows * n));
    if (across || also_across)
        a.across = fp8_room((size_t)(padded * n));
    if (fp8_how.current) {
        const unsigned blocks = (unsigned)std::min(most, ceil_div(rows * n / 8, CAST_THREADS) + 0L);
        CHECK_CUDA(cudaMemsetAsync(&a.scale->now, 0, sizeof a.scale->now, cu.stream));
        launch(fp8_amax_kernel, blocks, CAST_THREADS, CAST_THREADS / 32 * sizeof(float), cu.stream,
               a);
    }
    const long tiles = (long)ceil_div(rows, CAST_ROWS) * ceil_div(n, CAST_COLUMNS);
    launch(type == E4M3 ? fp8_cast_kernel<__NV_E4M3> : fp8_cast_kernel<__NV_E5M2>,
           (unsigned)std::min(most, tiles), CAST_THREADS,
           CAST_COLUMNS * CAST_STRIDE * sizeof(uint32_t), cu.stream, a);
    Tensor copy = across ? turned : plain;
    copy.p = (dev *)(across ? a.across : a.to);
    if (also_across) {
        *also_across = turned;
        also_across->p = (dev *)a.across;
    }
    return copy;
}

/* The copy of dy that the weight gradient's product left, first of its copies. */
static Tensor fp8_left(const Tensor &dy, long rows, long n)
{
    return Tensor{(dev *)fp8_room((size_t)(rows * n)), n, E5M2, dy.scale};
}

/* For the copies of the largest layer: of dy, both ways, and of x across; bytes. */
static size_t fp8_scratch(const Sizes *s)
{
    const size_t rows = ((size_t)s->B * (size_t)s->T + 15) / 16 * 16, C = (size_t)s->C;
    const size_t wide = std::max({3 * C, (size_t)s->F, C});
    return s->fp8 ? 3 * std::max(rows, C) * wide + 4 * 256 : 0;
}

/* ------------------------------------------------------------------------------------------------
 * The end of a step: a thread takes one operand. */

static __global__ void fp8_update_kernel(Fp8Update u, const StepState *state)
{
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= u.n)
        return;
    const Fp8Scale *all = (const Fp8Scale *)u.all;
    Fp8Scale *s = (Fp8Scale *)u.scales + i;
    float *history = (float *)u.amax + (long)i * u.history, amax = 0;
    for (int r = 0; r < u.ranks; r++)
        amax = larger_amax(amax, all[(long)r * u.n + i].amax);
    s->amax = 0;
    if (!state->skip && amax > 0 && isfinite(amax)) {
        for (int k = u.history - 1; k > 0; k--)
            history[k] = history[k - 1];
        history[0] = amax;
    }
    float most = 0;
    for (int k = 0; k < u.history; k++)
        most = fmaxf(most, history[k]);
    s->scale = fp8_scale_of(most, i % 3 == 2 ? __NV_E5M2 : __NV_E4M3, u.margin, 0);
}
static void cuda_fp8_update(const Fp8Update *u)
{
    launch(fp8_update_kernel, (unsigned)ceil_div(u->n, 128), 128, 0, cu.stream, *u, cu.state);
}
