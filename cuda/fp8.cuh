/* fp8.cuh - 8-bit copies of a linear layer's operands, and their scales (Fp8 in backend.h).
 *
 * Tensor cores, and so cuBLASLt, multiply 8-bit matrices in one layout alone: sums run along rows
 * of both, in its words A is transposed and B is not. So y = x w^T takes x and w as they are,
 * dx = dy w takes w transposed, and dw = dy^T x takes both transposed. A copy and its transposition
 * are written in one pass, which reads an operand, or makes it: what is rounded there is a Source,
 * a matrix in memory or what an activation makes of one. Norms (norms.cuh) and the ends of products
 * of our own (gemm_sm90.cuh) write both by themselves. Rows of a transposed copy are padded with
 * zeros to a multiple of 16, as sums must be.
 *
 * Where nobody reads an operand but 8-bit products, its Tensor is of an 8-bit type, and the copies
 * are all there is of it, in its place. Those of other operands live in the scratch memory, from
 * one operation to the next: forward those of x and w; backward those of dy, which the weight
 * gradient's product makes for the input gradient's too, and x and w once more, transposed. Made
 * again, a copy costs 3 bytes an element; kept, it would cost a byte of memory for each saved
 * activation, and under ZeRO 3 for each weight of the whole model.
 *
 * Order: rounding, scales, amax, casts, operands, the end of a step.
 */
#pragma once

#include "cuda/common.cuh"

#include <algorithm>
#include <cuda_fp8.h>

/* ------------------------------------------------------------------------------------------------
 * Rounding */

using Fp8Kind = __nv_fp8_interpretation_t;

/* There are 8-bit products from Hopper on: for older GPUs kernels are empty. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool FP8_HERE = false;
#else
constexpr bool FP8_HERE = true;
#endif

static bool is_fp8(int type)
{
    return type == E4M3 || type == E5M2;
}

/* What saturation would hide is NaN instead, as infinity times 0 is: an overflow must reach the
 * gradient's norm. */
__device__ inline float fp8_scaled(float x, float scale)
{
    return fmaf(x, scale, x * 0);
}
/* Two numbers, the first in the lower byte: one instruction. */
template <Fp8Kind KIND> __device__ inline uint32_t fp8_pair(float low, float high)
{
    return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, KIND);
}
/* The number that a byte stands for. In half precision, E5M2 is the upper byte, and E4M3 as bits of
 * the same place is 2^-8 times itself, but for NaN. */
__device__ inline float fp8_value(uint8_t byte, Fp8Kind kind)
{
    const bool narrow = kind == __NV_E4M3;
    const uint16_t bits = (uint16_t)(narrow ? (byte & 0x80) << 8 | (byte & 0x7F) << 7 : byte << 8);
    fp16 half;
    memcpy(&half, &bits, sizeof half);
    if (narrow && (byte & 0x7F) == 0x7F)
        return NAN;
    return to_float(half) * (narrow ? 256 : 1);
}
/* Four words of four bytes each, as a matrix of bytes, become its transposition. */
__device__ inline void transpose_bytes(uint32_t &a, uint32_t &b, uint32_t &c, uint32_t &d)
{
    const uint32_t ab = __byte_perm(a, b, 0x5140), AB = __byte_perm(a, b, 0x7362);
    const uint32_t cd = __byte_perm(c, d, 0x5140), CD = __byte_perm(c, d, 0x7362);
    a = __byte_perm(ab, cd, 0x5410);
    b = __byte_perm(ab, cd, 0x7632);
    c = __byte_perm(AB, CD, 0x5410);
    d = __byte_perm(AB, CD, 0x7632);
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

/* What a tensor is multiplied by before `now` is known; nothing has been seen yet: 1 */
__device__ inline float delayed_scale(const Fp8Scale *s)
{
    return s->scale > 0 ? s->scale : 1;
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
__device__ inline float warp_amax(float x)
{
    for (int d = 16; d; d >>= 1)
        x = larger_amax(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}
/* The largest of a block's, to *most. room: a float for each warp. All threads come together. */
__device__ inline void block_amax(float *most, float x, float *room)
{
    x = warp_amax(x);
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

/* N numbers of a row in 8 bits, and the largest of them. */
template <Fp8Kind KIND, int N>
__device__ inline void store_fp8(uint8_t *to, const float (&v)[N], float scale, float *most)
{
    uint32_t pairs[(N + 1) / 2];
    each<N>([&](int k) { *most = larger_amax(*most, fabsf(v[k])); });
    each<(N + 1) / 2>([&](int k) {
        const float next = N > 1 ? v[N > 1 ? 2 * k + 1 : 0] : 0;
        pairs[k] = fp8_pair<KIND>(fp8_scaled(v[2 * k], scale), fp8_scaled(next, scale));
    });
    if constexpr (N == 8)
        *(uint2 *)to = make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
    else if constexpr (N == 2)
        *(uint16_t *)to = (uint16_t)pairs[0];
    else
        each<N>([&](int k) { to[k] = (uint8_t)(pairs[k / 2] >> k % 2 * 8); });
}

/* ------------------------------------------------------------------------------------------------
 * Casts. A block takes 64 columns and walks down them, 128 rows at a time. A thread makes a word of
 * each of eight columns' four numbers, and the rows' bytes from them; the words cross the block
 * through shared memory and leave as 16 bytes of a column. Of a matrix in memory: reads 2 bytes an
 * element, writes 1 or 2, floor 27 or 36 us for [B*T, C]. */

enum {
    CAST_ROWS = 128,
    CAST_COLUMNS = 64,
    CAST_THREADS = 256,
    CAST_WORDS = CAST_ROWS / 4,
    CAST_STRIDE = CAST_WORDS + 1, /* words of a column: neighbours lie in other banks */
    CAST_SHARED = CAST_COLUMNS * CAST_STRIDE * (int)sizeof(uint32_t),
    TURN_BLOCKS = 6 /* of a multiprocessor, at once */
};

struct Fp8Cast {
    long rows, n;
    uint8_t *to;     /* [rows, n], or NULL */
    uint8_t *across; /* [n, padded], padded: rows to a multiple of 16, zeros behind them; or NULL */
    Fp8Scale *scale;
    Fp8 how;
    float *sums; /* [ranges][n]: of each column, before it is rounded to 8 bits; or NULL */

    __host__ __device__ static long padded(long rows)
    {
        return (rows + 15) / 16 * 16;
    }
    __host__ __device__ int strips() const /* of columns, */
    {
        return (int)((n + CAST_COLUMNS - 1) / CAST_COLUMNS);
    }
    int ranges(int blocks) const /* and of rows, where so many blocks run on a multiprocessor */
    {
        const int fit = cu.gpu.multiProcessorCount * blocks / strips();
        return std::max(1, std::min(fit, ceil_div(rows, CAST_ROWS)));
    }
};

/* A Source is read in two steps, so that several rows are on their way at once: fetch(raw, r, c)
 * of row r, eight columns from c on, and make(v, raw, r, c), which leaves numbers as bf16 has them.
 * This one is a matrix in memory. */
struct Stored {
    Tensor t; /* bf16 [rows, n] */
    using Raw = Pack<bf16, 8>;
    static constexpr int PAIRS = 2;     /* of rows, on their way at once */
    static constexpr bool SUMS = false; /* are column sums wanted? */
    static constexpr int BLOCKS = 4;    /* of a multiprocessor, by registers */

    __device__ inline void fetch(Raw &raw, long r, long c) const
    {
        raw = fetch_pack<bf16, 8>((const bf16 *)t.p + r * t.ld + c);
    }
    __device__ inline void make(float (&v)[8], const Raw &raw, long, long) const
    {
        unpack(v, raw);
    }
};

/* now = the largest |x|. Reads 2 bytes an element: floor 18 us for [B*T, C]. */
static __global__ void fp8_amax_kernel(Fp8Cast a, Stored from)
{
    if (!FP8_HERE)
        return;
    const uint32_t packs = (uint32_t)a.n / 8, step = gridDim.x * blockDim.x;
    const long count = a.rows * packs;
    float most = 0;
    for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        float v[8];
        load(v, (const bf16 *)from.t.p + i / packs * from.t.ld + i % packs * 8);
        each<8>([&](int k) { most = larger_amax(most, fabsf(v[k])); });
    }
    block_amax(&a.scale->now, most, dynamic_smem<float>());
}

/* Eight words, of columns: for the rows' bytes, and back. */
__device__ inline void transpose_words(uint32_t (&w)[8])
{
    transpose_bytes(w[0], w[1], w[2], w[3]);
    transpose_bytes(w[4], w[5], w[6], w[7]);
}

/* f(words, r, c) makes the words of rows r .. r + 3, columns c .. c + 7; their transposition is
 * written here. */
template <class F> __device__ inline void tiles_do(const Fp8Cast &a, uint32_t *tile, F f)
{
    const int strips = a.strips();
    const long ranges = gridDim.x / strips, padded = Fp8Cast::padded(a.rows);
    const long c = (long)(blockIdx.x % strips) * CAST_COLUMNS;
    const int column = (int)threadIdx.x % 8 * 8, word = (int)threadIdx.x / 8; /* of my patch */
    for (long r = (long)(blockIdx.x / strips) * CAST_ROWS; r < a.rows; r += ranges * CAST_ROWS) {
        uint32_t words[8];
        __syncthreads(); /* the tile before has been read */
        if (c + column < a.n) {
            f(words, r + 4 * word, c + column);
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
}

/* What each thread has summed of its eight columns, to the block's part of a.sums. */
__device__ inline void store_column_sums(const Fp8Cast &a, float *room, const float (&sum)[8])
{
    const int strips = a.strips(), j = (int)threadIdx.x;
    const long c = (long)(blockIdx.x % strips) * CAST_COLUMNS;
    __syncthreads();
    each<8>([&](int k) { room[j / 8 * CAST_COLUMNS + j % 8 * 8 + k] = sum[k]; });
    __syncthreads();
    if (j >= CAST_COLUMNS || c + j >= a.n)
        return;
    float total = 0;
    for (int w = 0; w < CAST_WORDS; w++)
        total += room[w * CAST_COLUMNS + j];
    a.sums[blockIdx.x / strips * a.n + c + j] = total;
}

template <Fp8Kind KIND, class Source>
static __global__ void __launch_bounds__(CAST_THREADS, Source::BLOCKS)
    fp8_cast_kernel(Fp8Cast a, Source from)
{
    launched_within<CAST_THREADS>();
    if (!FP8_HERE)
        return;
    uint32_t *tile = dynamic_smem<uint32_t>(); /* [CAST_COLUMNS][CAST_STRIDE] */
    const float scale =
        a.how.current ? fp8_scale_of(a.scale->now, KIND, a.how.margin, 1) : delayed_scale(a.scale);
    float most = 0, sum[8] = {};
    if (blockIdx.x == 0 && threadIdx.x == 0)
        a.scale->inverse = 1 / scale;
    tiles_do(a, tile, [&](uint32_t(&words)[8], long r, long c) {
#pragma unroll(Source::PAIRS)
        for (int i = 0; i < 4; i += 2) { /* two rows; those that are not there are zeros */
            typename Source::Raw raw[2];
            float v[2][8];
            each<2>([&](int m) { from.fetch(raw[m], min(r + i + m, a.rows - 1), c); });
            each<2>([&](int m) {
                from.make(v[m], raw[m], min(r + i + m, a.rows - 1), c);
                const bool there = r + i + m < a.rows;
                each<8>([&](int k) {
                    v[m][k] = there ? v[m][k] : 0;
                    if constexpr (Source::SUMS)
                        sum[k] += v[m][k];
                    most = larger_amax(most, fabsf(v[m][k]));
                    v[m][k] = fp8_scaled(v[m][k], scale);
                });
            });
            each<8>([&](int k) {
                const uint32_t pair = fp8_pair<KIND>(v[0][k], v[1][k]);
                words[k] = i ? words[k] | pair << 16 : pair;
            });
        }
        if (!a.to)
            return;
        uint32_t bytes[8];
        each<8>([&](int k) { bytes[k] = words[k]; });
        transpose_words(bytes);
        each<4>([&](int i) {
            if (r + i < a.rows)
                *(uint2 *)(a.to + (r + i) * a.n + c) = make_uint2(bytes[i], bytes[4 + i]);
        });
    });
    if constexpr (Source::SUMS)
        if (a.sums)
            store_column_sums(a, (float *)tile, sum);
    if (a.how.learns)
        block_amax(&a.scale->amax, most, (float *)tile);
}

/* across = the transposition of `to`. Reads and writes a byte an element: floor 18 us for [B*T, C].
 */
static __global__ void __launch_bounds__(CAST_THREADS, TURN_BLOCKS) fp8_turn_kernel(Fp8Cast a)
{
    launched_within<CAST_THREADS>();
    if (!FP8_HERE)
        return;
    tiles_do(a, dynamic_smem<uint32_t>(), [&](uint32_t(&words)[8], long r, long c) {
        each<4>([&](int i) {
            const bool there = r + i < a.rows;
            const uint2 row = there ? *(const uint2 *)(a.to + (r + i) * a.n + c) : make_uint2(0, 0);
            words[i] = row.x;
            words[4 + i] = row.y;
        });
        transpose_words(words);
    });
}

/* The same of sixteen rows from r on, by a block that has just written them to shared memory,
 * [TURN_ROWS][n]. A thread takes four columns of all; it leaves 16 bytes of each. */
enum { TURN_ROWS = 16 };
__device__ inline void turn_rows(const Fp8Cast &a, const uint8_t *rows, long r)
{
    const long padded = Fp8Cast::padded(a.rows);
    __syncthreads();
    for (int c = (int)threadIdx.x * 4; c < a.n; c += (int)blockDim.x * 4) {
        uint32_t w[TURN_ROWS];
        each<TURN_ROWS>(
            [&](int i) { w[i] = r + i < a.rows ? *(const uint32_t *)(rows + i * a.n + c) : 0; });
        each<4>(
            [&](int i) { transpose_bytes(w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]); });
        each<4>([&](int k) {
            *(uint4 *)(a.across + (c + k) * padded + r) =
                make_uint4(w[k], w[4 + k], w[8 + k], w[12 + k]);
        });
    }
    __syncthreads(); /* they may be written again */
}

template <Fp8Kind KIND, class Source> static void cast(const Fp8Cast &a, const Source &from)
{
    launch(fp8_cast_kernel<KIND, Source>, (unsigned)(a.strips() * a.ranges(Source::BLOCKS)),
           CAST_THREADS, CAST_SHARED, cu.stream, a, from);
}
static void turn(const Fp8Cast &a)
{
    launch(fp8_turn_kernel, (unsigned)(a.strips() * a.ranges(TURN_BLOCKS)), CAST_THREADS,
           CAST_SHARED, cu.stream, a);
}

/* ------------------------------------------------------------------------------------------------
 * Operands: their copies take the end of the scratch memory, downwards; other operations' sums its
 * beginning. */
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

/* The copies that a tensor of an 8-bit type is, to be written or read. */
static Fp8Cast fp8_copies_of(const Tensor &t, long rows, long n)
{
    Fp8Cast a = {rows, n, (uint8_t *)t.p, NULL, (Fp8Scale *)t.scale, fp8_how, NULL};
    if (n % 16 || t.ld != n || !aligned(t.p))
        die("choose widths that are multiples of 16, or --precision bf16",
            "8-bit copies of rows of %ld numbers", n);
    a.how.current = false;
    a.across = a.to + (rows * n + 255) / 256 * 256;
    return a;
}

/* Copies of x [rows, n] in `type`: of itself, and of its transposition [n, rows padded]. */
struct Copies {
    Tensor x, across;
};
static Copies fp8_copies(const Tensor &x, long rows, long n, int type, bool straight, bool across)
{
    Copies made = {{NULL, n, type, x.scale}, {NULL, Fp8Cast::padded(rows), type, x.scale}};
    if (is_fp8(x.type)) {
        const Fp8Cast there = fp8_copies_of(x, rows, n);
        made.x.p = x.p;
        made.across.p = (dev *)there.across;
        return made;
    }
    if (n % 16 || !wide_rows(x))
        die("choose widths that are multiples of 16, or --precision bf16",
            "fp8 products of rows of %ld numbers", n);
    Fp8Cast a = {rows, n, NULL, NULL, (Fp8Scale *)x.scale, fp8_how, NULL};
    if (straight)
        a.to = fp8_room((size_t)(rows * n));
    if (across)
        a.across = fp8_room((size_t)(made.across.ld * n));
    if (fp8_how.current) {
        const long most = cu.gpu.multiProcessorCount * 8L;
        const unsigned blocks = (unsigned)std::min(most, ceil_div(rows * n / 8, CAST_THREADS) + 0L);
        CHECK_CUDA(cudaMemsetAsync(&a.scale->now, 0, sizeof a.scale->now, cu.stream));
        launch(fp8_amax_kernel, blocks, CAST_THREADS, CAST_THREADS / 32 * sizeof(float), cu.stream,
               a, Stored{x});
    }
    if (type == E4M3)
        cast<__NV_E4M3>(a, Stored{x});
    else
        cast<__NV_E5M2>(a, Stored{x});
    made.x.p = (dev *)a.to;
    made.across.p = (dev *)a.across;
    return made;
}

/* The copy of dy that the weight gradient's product left, first of its copies. */
static Tensor fp8_left(const Tensor &dy, long rows, long n)
{
    if (is_fp8(dy.type))
        return dy;
    return Tensor{(dev *)fp8_room((size_t)(rows * n)), n, E5M2, dy.scale};
}

/* For the copies of the largest layer: of dy, both ways, and of x across; or of dy and of w, and a
 * product in bf16 before it is rounded to 8 bits. Bytes. */
static size_t fp8_scratch(const Sizes *s)
{
    const size_t rows = (size_t)Fp8Cast::padded((long)s->B * s->T), C = (size_t)s->C;
    const size_t wide = std::max({3 * C, (size_t)s->F, C});
    return s->fp8 ? (3 * rows + C) * wide + 4 * 256 : 0;
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
