/* bf16_ops.h - what the CPU's ops on 16-bit tensors share: rows of bf16, sixteen numbers at a time,
 * sums over rows, dropout; and the ops themselves.
 *
 * A Tensor of type BF16 is rows of uint16_t, and so is a parameter that an op reads. Statistics and
 * gradients of parameters are float. An op reads bf16, computes in float and rounds once, where it
 * stores. The program that computes in double has no use for any of it.
 *
 *   bf16_linear.c      linear layers and activations
 *   bf16_product.c     the matrix products in them; bf16_onednn.c: by the library
 *   bf16_layers.c      patches, embedding, norms, pooling, loss
 *   bf16_attention.c   attention, with products of its own
 *   bf16_table.c       the table, and how this machine makes products
 */
#pragma once

#include "backend.h"
#include "cpu/bf16.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

/* Sixteen floats, and what they are made of and become: one register of AVX-512, two of AVX2, four
 * of NEON. */
typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
enum { LANES = 16 };

/* What compilers call differently: the elements of a and b that are listed, and a loop of a few
 * rounds written out, which is what keeps arrays of vectors in registers */
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define UNROLL             _Pragma("unroll")
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (u32x16){__VA_ARGS__})
#define UNROLL             _Pragma("GCC unroll 16")
#endif

/* The step that runs; set by bind. */
extern const StepState *bf16_state;

static inline uint16_t *bf16_row(Tensor t, long i)
{
    return (uint16_t *)t.p + i * t.ld;
}

static inline f32x16 bf16_widen(u16x16 x)
{
#ifdef __AVX512F__ /* what gcc 12 makes of the other has four instructions more */
    return (f32x16)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16);
#else
    return (f32x16)(__builtin_convertvector(x, u32x16) << 16);
#endif
}

/* To nearest, ties to even; NaN stays NaN. The instruction takes what is below 2^-126 as 0. */
static inline u16x16 bf16_round(f32x16 x)
{
#ifdef __AVX512BF16__
    return (u16x16)_mm512_cvtneps_pbh((__m512)x);
#else
    u32x16 bits = (u32x16)x, up = bits + 0x7FFF + (bits >> 16 & 1);
    u32x16 nan = (u32x16)(x != x);
    up = (nan & (bits | 0x400000)) | (~nan & up);
    return __builtin_convertvector(up >> 16, u16x16);
#endif
}

static inline f32x16 bf16_load(const uint16_t *p)
{
    u16x16 x;
    memcpy(&x, p, sizeof x);
    return bf16_widen(x);
}

static inline void bf16_store(uint16_t *p, f32x16 x)
{
    u16x16 y = bf16_round(x);
    memcpy(p, &y, sizeof y);
}

/* The first n < 16 alone; what is not loaded is 0. */
static inline f32x16 bf16_load_some(const uint16_t *p, long n)
{
    u16x16 x = {0};
    memcpy(&x, p, (size_t)n * sizeof *p);
    return bf16_widen(x);
}

static inline void bf16_store_some(uint16_t *p, f32x16 x, long n)
{
    u16x16 y = bf16_round(x);
    memcpy(p, &y, (size_t)n * sizeof *p);
}

static inline f32x16 f32_load(const float *p)
{
    f32x16 x;
    memcpy(&x, p, sizeof x);
    return x;
}

static inline void f32_store(float *p, f32x16 x)
{
    memcpy(p, &x, sizeof x);
}

/* The larger and the smaller of two; y where either is NaN */
static inline f32x16 f32_max(f32x16 x, f32x16 y)
{
    i32x16 first = x > y;
    return (f32x16)((first & (i32x16)x) | (~first & (i32x16)y));
}

static inline f32x16 f32_min(f32x16 x, f32x16 y)
{
    i32x16 first = x < y;
    return (f32x16)((first & (i32x16)x) | (~first & (i32x16)y));
}

static inline f32x16 f32_all(float x)
{
    return x - (f32x16){0};
}

static inline float f32_sum(f32x16 x)
{
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)x);
#else
    float s[LANES];
    f32_store(s, x);
    for (int k = LANES / 2; k; k /= 2)
        for (int i = 0; i < k; i++)
            s[i] += s[i + k];
    return s[0];
#endif
}

/* e^x, 2 ulp, sixteen at a time: x = k ln2 + r, e^r by a polynomial, 2^k by building the exponent.
 * e^-87 below -87, e^88 above 88; NaN stays NaN. */
static inline f32x16 f32_exp(f32x16 x)
{
    x = f32_min(f32_all(88.0f), f32_max(f32_all(-87.0f), x));
    f32x16 shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the integer k in the low bits */
    f32x16 k = shifted - 12582912.0f;
    f32x16 r = x - k * 0.693145752f - k * 1.42860677e-6f;
    f32x16 p = 0.00138146125f * r + 0.0083687099f;
    p = p * r + 0.0416683874f;
    p = p * r + 0.166665207f;
    p = p * r + 0.499999935f;
    p = p * r * r + r + 1.0f;
    return p * (f32x16)(((u32x16)shifted + 127) << 23);
}

/* sum + x y for sixteen units of 32 bits: floats, or pairs of bf16, whose products are both added.
 * Without the instruction for pairs the same, slowly: for tests. */
#define FLOATS(x, y, sum) ((f32x16)(x) * (f32x16)(y) + (sum))
#ifdef __AVX512BF16__
#define PAIRS(x, y, sum) (f32x16) _mm512_dpbf16_ps((__m512)(sum), (__m512bh)(x), (__m512bh)(y))
#else
/* The first of a pair is the lower half, so that it is the second one's error when that is read as
 * a float: it is cut off. */
#define UPPER(x)         ((f32x16)((x)&0xFFFF0000u))
#define LOWER(x)         ((f32x16)((x) << 16))
#define PAIRS(x, y, sum) (UPPER(x) * UPPER(y) + (LOWER(x) * LOWER(y) + (sum)))
#endif

/* Elements of a and b by turns, of their first halves and of their second ones */
static inline u32x16 turns_low(u32x16 a, u32x16 b)
{
    return SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

static inline u32x16 turns_high(u32x16 a, u32x16 b)
{
    return SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

/* n numbers one way and the other */
static inline void bf16_to_floats(float *y, const uint16_t *x, long n)
{
    long i = 0;
    for (; i + LANES <= n; i += LANES)
        f32_store(y + i, bf16_load(x + i));
    for (; i < n; i++)
        y[i] = (float)bf16_to_real(x[i]);
}

static inline void bf16_from_floats(uint16_t *y, const float *x, long n)
{
    long i = 0;
    for (; i + LANES <= n; i += LANES)
        bf16_store(y + i, f32_load(x + i));
    for (; i < n; i++)
        y[i] = bf16_from_real((real)x[i]);
}

/* Sums over rows, as bias gradients are: BF16_GROUPS partial sums, each over a fixed range of rows,
 * are added in order, whatever the number of threads. */
enum { BF16_GROUPS = 32 };

static inline long bf16_group_begin(long rows, int g)
{
    return rows * g / BF16_GROUPS;
}

/* `count` matrices [BF16_GROUPS, n] of partial sums, all zero, one behind the other; room that the
 * next op takes again */
float *bf16_group_sums(int count, long n);
/* out [n] = the partial sums [BF16_GROUPS, n] added up; out NULL: not wanted */
void bf16_sum_groups(dev *out, const float *partial, long n);
/* out[j] = sum over i of x[i][j] in order, for x [rows, n] */
void bf16_sum_rows(dev *out, const float *x, int rows, long n);
/* out[j] = sum over r of x[r][j], for x [rows, n] and out [n] */
void bf16_column_sums(dev *out, Tensor x, long rows, long n);
/* Room for n floats of the op that runs: not beside bf16_group_sums, which takes the same. */
float *bf16_scratch(size_t n);

/* x[i] *= mask of element first + i of a sample, for x [n]; see Drop */
void bf16_drop_elements(float *x, long n, long first, long sample, const Drop *d);
/* The same for x [n], row r of a matrix with `tokens` rows per sample, where anything drops */
void bf16_drop_row(float *x, long n, long r, int tokens, const Drop *d);
/* Stochastic depth: 0 or 1/(1-p), one number for a whole sample */
float bf16_path_scale(long sample, const Drop *d);

/* bf16_linear.c; bf16_activate too, since it makes again what linear_forward made */
void bf16_linear_forward(const LinearForward *a);
void bf16_linear_backward_input(const LinearBackwardInput *a);
void bf16_linear_backward_weight(const LinearBackwardWeight *a);
void bf16_activate(const LinearForward *a);
/* bf16_layers.c */
void bf16_patchify(const Patchify *a);
void bf16_embed_forward(const Embed *a);
void bf16_embed_backward(const Embed *a);
void bf16_residual_norm_forward(const ResidualNorm *a);
void bf16_residual_norm_backward(const ResidualNorm *a);
void bf16_head_norm_forward(const HeadNorm *a);
void bf16_head_norm_backward(const HeadNorm *a);
void bf16_pool_forward(const Pool *a);
void bf16_pool_backward(const Pool *a);
void bf16_loss(const Loss *a);
void bf16_count_large(Tensor x, int rows, int cols);
void bf16_round_weights(const OptStep *a);
/* bf16_attention.c */
void bf16_attention_forward(const Attention *a);
void bf16_attention_backward(const Attention *a);
