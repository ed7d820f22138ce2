/* backend_cpu.c - the oracle: every op of backend.h in plain C, OpenMP and OpenBLAS.
 *
 * Read it beside backend.h, which has each op's formula and shapes; here is how they are computed.
 * Matrix products are cblas_?gemm, everything else is written out. No op keeps anything between two
 * calls, and none is asynchronous: what ranks say to each other is, in cpu/ranks.c. The file is
 * built once with float and once with double. It is never built with -ffast-math: NaN checks must
 * work, and a sum must be summed in the order that is written here. Results do not depend on the
 * number of threads, except inside OpenBLAS.
 *
 * Order: memory; sums over rows; dropout; elementary functions; linear layers; patches and
 * embedding; residual step and norm; attention; pooling and loss; the device itself and the table.
 * In cpu/ are patches.c and loss.c, one row and one image at a time, and optimizer.c, which serve
 * 16-bit types too. What the machine is, and the new start where OpenBLAS has chosen slow kernels,
 * are in util/machine.c.
 */
#include "backend.h"
#include "cpu/bf16.h"
#include "cpu/dropout.h"
#include "cpu/loss.h"
#include "cpu/optimizer.h"
#include "cpu/patches.h"
#include "cpu/ranks.h"
#include "util/machine.h"
#include "util/rng.h"
#include "util/text.h"
#include "util/util.h"

#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

extern char *openblas_get_corename(void);
extern char *openblas_get_config(void);

#define DOUBLE           (sizeof(real) == 8)
#define MIN(a, b)        ((a) < (b) ? (a) : (b))
#define CLAMP(x, lo, hi) ((x) < (lo) ? (lo) : (x) > (hi) ? (hi) : (x)) /* NaN stays NaN */
#define UNUSED           __attribute__((unused))

static const StepState *state; /* of the step that runs; set by bind */

/* A dev pointer is host memory here. */
static real *host(const dev *p)
{
    return (real *)p;
}

/* Row i of a matrix, of which t.ld elements lie between two rows. */
static real *row(Tensor t, long i)
{
    return (real *)t.p + i * t.ld;
}

/* The part of a matrix that begins at row i and column j */
static Tensor part(Tensor t, long i, long j)
{
    t.p = (dev *)(row(t, i) + j);
    return t;
}

/* ------------------------------------------------------------------------------------------------
 * Memory. Device memory is host memory, and every call is done when it returns, so that tickets
 * have nothing to say and transfers are copies. */

/* 256-byte aligned, with the block's own address kept in the word below. calloc, because pages that
 * nobody touches then cost nothing. */
static dev *cpu_alloc(size_t bytes)
{
    if (bytes > SIZE_MAX - 512)
        return NULL;
    char *block = calloc(1, bytes + 512);
    if (!block)
        return NULL;
    void **p = (void **)(((uintptr_t)block + 511) & ~(uintptr_t)255);
    p[-1] = block;
    return (dev *)p;
}

static void cpu_release(dev *p)
{
    if (p)
        free(((void **)p)[-1]);
}

static void cpu_upload(dev *dst, const void *src, size_t bytes)
{
    memcpy(dst, src, bytes);
}

static void cpu_download(void *dst, const dev *src, size_t bytes)
{
    memcpy(dst, src, bytes);
}

static void cpu_copy(dev *dst, const dev *src, size_t bytes)
{
    memcpy(dst, src, bytes);
}

static void cpu_zero(dev *dst, size_t bytes)
{
    memset(dst, 0, bytes);
}

static Ticket cpu_send(dev *dst, const void *src, size_t bytes, UNUSED Ticket after)
{
    memcpy(dst, src, bytes);
    return 0;
}

static Ticket cpu_fetch(void *dst, const dev *src, size_t bytes)
{
    memcpy(dst, src, bytes);
    return 0;
}

static Ticket cpu_mark(void)
{
    return 0;
}

static void cpu_wait(UNUSED Ticket ticket)
{
}

/* BF16 is for gradients on their way alone. */
static void cpu_convert(dev *dst, int dst_type, const dev *src, int src_type, long n)
{
    if (dst_type == src_type) {
        memmove(dst, src, (size_t)n * type_size(src_type));
    } else if (dst_type == BF16 && src_type == F32) {
        const real *x = host(src);
        uint16_t *y = (uint16_t *)dst;
#pragma omp parallel for simd schedule(static)
        for (long i = 0; i < n; i++)
            y[i] = bf16_from_real(x[i]);
    } else if (dst_type == F32 && src_type == BF16) {
        const uint16_t *x = (const uint16_t *)src;
        real *y = host(dst);
#pragma omp parallel for simd schedule(static)
        for (long i = 0; i < n; i++)
            y[i] = bf16_to_real(x[i]);
    } else {
        die("use --precision fp32 on the CPU", "the CPU backend stores fp32 and bf16 alone");
    }
}

static void cpu_add(dev *sum, const dev *x, long n)
{
    real *a = host(sum);
    const real *b = host(x);
#pragma omp parallel for simd schedule(static)
    for (long i = 0; i < n; i++)
        a[i] += b[i];
}

static void cpu_run(UNUSED uint64_t key, UNUSED bool together, void (*body)(void *), void *arg)
{
    body(arg);
}

/* The scratch memory of a plan is not used: ours grows with the number of threads, which a plan
 * does not know. */
static size_t cpu_scratch_bytes(UNUSED const Sizes *s)
{
    return 0;
}

static void cpu_bind(dev *s, UNUSED dev *scratch_memory, UNUSED size_t bytes)
{
    state = (const StepState *)(void *)s;
    optimizer_bind(s);
}

/* Room for the op that runs: it grows to the largest request and stays. */
static real *scratch(size_t n)
{
    static real *p;
    static size_t size;
    if (n > size) {
        free(p);
        p = xmalloc(n * sizeof(real));
        size = n;
    }
    return p;
}

/* ------------------------------------------------------------------------------------------------
 * Sums over rows, as bias gradients are. A sum for each thread would depend on the number of
 * threads. So there are GROUPS partial sums, each over a fixed range of rows, and at the end they
 * are added in order. */

enum { GROUPS = 32 };

static long group_begin(long rows, int g)
{
    return rows * g / GROUPS;
}

/* `count` matrices [GROUPS, n] of partial sums, all zero, one behind the other */
static real *group_sums(int count, long n)
{
    size_t size = (size_t)count * GROUPS * (size_t)n;
    return memset(scratch(size), 0, size * sizeof(real));
}

/* out[j] = sum over i of x[i][j] in order, for x [rows, n] and out [n] */
static void sum_rows(real *out, const real *x, int rows, long n)
{
#pragma omp parallel for simd schedule(static)
    for (long j = 0; j < n; j++) {
        real s = x[j];
        for (int i = 1; i < rows; i++)
            s += x[i * n + j];
        out[j] = s;
    }
}

/* The same of the partial sums [GROUPS, n]; out NULL: not wanted */
static void sum_groups(dev *out, const real *partial, long n)
{
    if (out)
        sum_rows(host(out), partial, GROUPS, n);
}

/* out[j] = sum over r of x[r][j], for x [rows, n] and out [n] */
static void column_sums(dev *out, Tensor x, long rows, long n)
{
    real *partial = group_sums(1, n);
#pragma omp parallel for schedule(static)
    for (int g = 0; g < GROUPS; g++) {
        real *sum = partial + g * n;
        for (long r = group_begin(rows, g); r < group_begin(rows, g + 1); r++)
            for (long j = 0; j < n; j++)
                sum[j] += row(x, r)[j];
    }
    sum_groups(out, partial, n);
}

/* ------------------------------------------------------------------------------------------------
 * Dropout. A mask is a function of seed, step, layer, sample and element (see Drop in backend.h):
 * it is never stored, and backward makes the forward pass's again. */

/* x[i] *= mask of element first + i, 0 or 1/(1-p), for x [n] of one sample, counted within the
 * micro-batch */
static void drop_elements(real *x, long n, long first, long sample, const Drop *d)
{
    uint32_t keep = rng_threshold(d->p), room[DROPOUT_MOST];
    real kept = (real)(1 / (1 - d->p));
    for (long i = 0, count; i < n; i += count) {
        count = n - i;
        const uint32_t *r = dropout_numbers(room, first + i, &count, sample, d, state);
#pragma omp simd
        for (long k = 0; k < count; k++)
            x[i + k] *= r[k] >= keep ? kept : 0;
    }
}

/* The same for x [n], row r of a matrix with `tokens` rows per sample, where anything drops at all.
 * It may be columns d->first and on of one that is d->of wide. */
static void drop_row(real *x, long n, long r, int tokens, const Drop *d)
{
    long width = d->of > 0 ? d->of : n;
    if (d->p > 0)
        drop_elements(x, n, r % tokens * width + d->first, r / tokens, d);
}

/* Stochastic depth (Huang et al. 2016): 0 or 1/(1-p), one number for a whole sample. */
static real path_scale(long sample, const Drop *d)
{
    real scale = 1;
    if (d->p > 0)
        drop_elements(&scale, 1, 0, sample, d);
    return scale;
}

/* ------------------------------------------------------------------------------------------------
 * Elementary functions. libm's scalar calls would cost a sixth of a step, so the float build has
 * its own, written so that compilers vectorise them; the double build uses libm. Coefficients: our
 * own least-squares fits, reweighted towards equal error; test_ops holds them to libm. */

/* e^x, 2 ulp: x = k ln2 + r, e^r by a polynomial, 2^k by building the exponent. e^-87 below -87. */
static inline float expf_fast(float x)
{
    x = CLAMP(x, -87.0f, 88.0f);
    float shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the integer k in the low bits */
    float k = shifted - 12582912.0f;
    float r = x - k * 0.693145752f - k * 1.42860677e-6f;
    float p = 0.00138146125f;
    p = p * r + 0.0083687099f;
    p = p * r + 0.0416683874f;
    p = p * r + 0.166665207f;
    p = p * r + 0.499999935f;
    p = p * r * r + r + 1.0f;
    union {
        float f;
        uint32_t bits;
    } scale = {.f = shifted};
    scale.bits = (scale.bits + 127) << 23;
    return p * scale.f;
}

/* erf, absolute error 4e-7: x times a rational function of x^2, constant beyond 3.92 */
static inline float erff_fast(float x)
{
    x = CLAMP(x, -3.92f, 3.92f);
    float t = x * x;
    float p = 2.05007611e-06f, q = 3.8091671e-05f;
    p = p * t + 0.000284884115f;
    q = q * t + 0.00116255067f;
    p = p * t + 0.00376568002f;
    q = q * t + 0.0149693443f;
    p = p * t + 0.0527489213f;
    q = q * t + 0.114109722f;
    p = p * t + 0.190407937f;
    q = q * t + 0.502077381f;
    p = p * t + 1.12837915f;
    q = q * t + 1.0f;
    float y = x * p / q;
    return CLAMP(y, -1.0f, 1.0f); /* rounding may carry it past 1 */
}

/* tanh, relative error 4e-7: u times a rational function of u^2, +-1 beyond 8.6 */
static inline float tanhf_fast(float u)
{
    float t = u * u;
    float p = 1.40824579e-08f, q = 8.07063025e-07f;
    p = p * t + 2.11223681e-05f;
    q = q * t + 0.000333626877f;
    p = p * t + 0.00352640061f;
    q = q * t + 0.0259938961f;
    p = p * t + 0.134068744f;
    q = q * t + 0.46740196f;
    p = p * t + 0.999999987f;
    q = q * t + 1.0f;
    float y = u > 8.6f ? 1.0f : u * p / q;
    return u < -8.6f ? -1.0f : y;
}

#define exp_(x)  (DOUBLE ? (real)exp((double)(x)) : (real)expf_fast((float)(x)))
#define erf_(x)  (DOUBLE ? (real)erf((double)(x)) : (real)erff_fast((float)(x)))
#define tanh_(x) (DOUBLE ? (real)tanh((double)(x)) : (real)tanhf_fast((float)(x)))

/* GELU (Hendrycks & Gimpel 2016) is x Phi(x), with Phi the normal distribution:
 *   ACT_GELU       Phi(x) = (1 + erf(x / sqrt 2)) / 2
 *   ACT_GELU_TANH  Phi(x) ~ (1 + tanh u) / 2,  u = sqrt(2/pi) (x + 0.044715 x^3)
 *   ACT_QUICK_GELU Phi(x) ~ sigmoid(1.702 x)
 * and silu, the gate of ACT_SWIGLU, is x sigmoid(x). */
#define SQRT_HALF    ((real)0.70710678118654752440)
#define INV_SQRT_2PI ((real)0.39894228040143267794)
#define SQRT_2_PI    ((real)0.79788456080286535588)
#define GELU_CUBIC   ((real)0.044715)
#define QUICK        ((real)1.702)

static inline real sigmoid(real x)
{
    return 1 / (1 + exp_(-x));
}

/* y = act(x), [n]. Compiled once, so that an activation that is made again has the same bits. */
static __attribute__((noinline)) void act_forward(real *y, const real *x, int n, int act)
{
    if (act == ACT_GELU) {
#pragma omp simd
        for (int i = 0; i < n; i++)
            y[i] = (real)0.5 * x[i] * (1 + erf_(x[i] * SQRT_HALF));
    } else if (act == ACT_GELU_TANH) {
#pragma omp simd
        for (int i = 0; i < n; i++) {
            real v = x[i];
            y[i] = (real)0.5 * v * (1 + tanh_(SQRT_2_PI * (v + GELU_CUBIC * v * v * v)));
        }
    } else if (act == ACT_QUICK_GELU) {
#pragma omp simd
        for (int i = 0; i < n; i++)
            y[i] = x[i] * sigmoid(QUICK * x[i]);
    } else if (act == ACT_SWIGLU) { /* x [2n]: gates, then values */
#pragma omp simd
        for (int i = 0; i < n; i++)
            y[i] = x[i] * sigmoid(x[i]) * x[n + i];
    } else {
        for (int i = 0; i < n; i++)
            y[i] = (real)tanh((double)x[i]);
    }
}

/* d *= act'(x), [n]:
 *   ACT_GELU       Phi(x) + x exp(-x^2/2) / sqrt(2 pi)
 *   ACT_GELU_TANH  (1 + t) / 2 + x (1 - t^2) u' / 2,  t = tanh u
 *   ACT_QUICK_GELU s + 1.702 x s (1 - s),  s = sigmoid(1.702 x)
 *   ACT_TANH       1 - tanh(x)^2
 *   ACT_SWIGLU     d [2n] has the gradient of y in its second half; with g and v the halves of x,
 *                  they become d v (s + g s (1 - s)) and d g s,  s = sigmoid(g) */
static void act_backward(real *d, const real *x, int n, int act)
{
    if (act == ACT_GELU) {
#pragma omp simd
        for (int i = 0; i < n; i++) {
            real v = x[i];
            real phi = (real)0.5 * (1 + erf_(v * SQRT_HALF));
            d[i] *= phi + v * INV_SQRT_2PI * exp_((real)-0.5 * v * v);
        }
    } else if (act == ACT_GELU_TANH) {
#pragma omp simd
        for (int i = 0; i < n; i++) {
            real v = x[i], t = tanh_(SQRT_2_PI * (v + GELU_CUBIC * v * v * v));
            real inner = SQRT_2_PI * (1 + 3 * GELU_CUBIC * v * v);
            d[i] *= (real)0.5 * (1 + t) + (real)0.5 * v * (1 - t * t) * inner;
        }
    } else if (act == ACT_QUICK_GELU) {
#pragma omp simd
        for (int i = 0; i < n; i++) {
            real s = sigmoid(QUICK * x[i]);
            d[i] *= s + QUICK * x[i] * s * (1 - s);
        }
    } else if (act == ACT_SWIGLU) {
#pragma omp simd
        for (int i = 0; i < n; i++) {
            real g = x[i], s = sigmoid(g), dy = d[n + i];
            d[i] = dy * x[n + i] * (s + g * s * (1 - s));
            d[n + i] = dy * g * s;
        }
    } else {
        for (int i = 0; i < n; i++) {
            real t = (real)tanh((double)x[i]);
            d[i] *= 1 - t * t;
        }
    }
}

/* ------------------------------------------------------------------------------------------------
 * Linear layers */

/* C [M,N] = alpha op(A) [M,K] op(B) [K,N] + beta C, all by rows; op transposes or does nothing */
static void gemm(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, int M, int N, int K, real alpha, Tensor A,
                 Tensor B, real beta, Tensor C)
{
    int lda = (int)A.ld, ldb = (int)B.ld, ldc = (int)C.ld;
    if (DOUBLE)
        cblas_dgemm(CblasRowMajor, ta, tb, M, N, K, (double)alpha, (const void *)A.p, lda,
                    (const void *)B.p, ldb, (double)beta, (void *)C.p, ldc);
    else
        cblas_sgemm(CblasRowMajor, ta, tb, M, N, K, (float)alpha, (const void *)A.p, lda,
                    (const void *)B.p, ldb, (float)beta, (void *)C.p, ldc);
}

/* y = drop(act(x w^T + bias)) + residual: x [rows,in], w [out,in], y [rows,out]. The product goes
 * where it is needed next: to `pre`, if that is kept for backward, else to y itself. The rest is
 * one pass over it, a row at a time, while the row is in cache. */
static void cpu_linear_forward(const LinearForward *a)
{
    const real *bias = host(a->bias);
    int columns = a->act == ACT_SWIGLU ? 2 * a->out : a->out; /* of the product */
    Tensor sum = a->act && a->pre.p ? a->pre : a->y;
    gemm(CblasNoTrans, CblasTrans, a->rows, columns, a->in, 1, a->x, a->w, 0, sum);
#pragma omp parallel for schedule(static)
    for (int r = 0; r < a->rows; r++) {
        real *s = row(sum, r), *y = row(a->y, r);
        for (int j = 0; bias && j < columns; j++)
            s[j] += bias[j];
        if (a->act)
            act_forward(y, s, a->out, a->act);
        drop_row(y, a->out, r, a->tokens, &a->drop);
        const real *residual = a->residual.p ? row(a->residual, r) : NULL;
        for (int j = 0; residual && j < a->out; j++)
            y[j] += residual[j];
    }
}

/* y = drop(act(pre)), [rows,out] */
static void cpu_activate(const LinearForward *a)
{
#pragma omp parallel for schedule(static)
    for (int r = 0; r < a->rows; r++) {
        real *y = row(a->y, r);
        act_forward(y, row(a->pre, r), a->out, a->act);
        drop_row(y, a->out, r, a->tokens, &a->drop);
    }
}

/* dx = drop(dy w) act'(pre): dy [rows,out], w [out,in], dx [rows,in]. act, pre and drop are those
 * of the layer that made x, and dbias, the column sums of dx, is that layer's bias gradient: it is
 * summed here, where dx is in cache. */
static void cpu_linear_backward_input(const LinearBackwardInput *a)
{
    int n = a->in, gate = a->act == ACT_SWIGLU ? n : 0; /* columns before the product's */
    int columns = gate + n;
    gemm(CblasNoTrans, CblasNoTrans, a->rows, n, a->out, 1, a->dy, a->w, a->accumulate ? 1 : 0,
         part(a->dx, 0, gate));
    real *partial = a->dbias ? group_sums(1, columns) : NULL;
#pragma omp parallel for schedule(static)
    for (int g = 0; g < GROUPS; g++) {
        real *sum = partial ? partial + (long)g * columns : NULL;
        for (long r = group_begin(a->rows, g); r < group_begin(a->rows, g + 1); r++) {
            real *dx = row(a->dx, r);
            drop_row(dx + gate, n, r, a->tokens, &a->drop);
            if (a->act)
                act_backward(dx, row(a->pre, r), n, a->act);
            for (int j = 0; sum && j < columns; j++)
                sum[j] += dx[j];
        }
    }
    sum_groups(a->dbias, partial, columns);
}

/* dw = dy^T x: dy [rows,out], x [rows,in], dw [out,in] */
static void cpu_linear_backward_weight(const LinearBackwardWeight *a)
{
    Tensor dw = {.p = a->dw, .ld = a->in};
    gemm(CblasTrans, CblasNoTrans, a->out, a->in, a->rows, 1, a->dy, a->x, 0, dw);
    if (a->dbias)
        column_sums(a->dbias, a->dy, a->rows, a->out);
}

/* ------------------------------------------------------------------------------------------------
 * Patches and embedding */

/* images -> out [B*Np, 3*P*P], a row a patch */
static void cpu_patchify(const Patchify *a)
{
    const Patches p = patches_of(a, state);
#pragma omp parallel for schedule(static)
    for (int i = 0; i < p.rows; i++)
        patches_row(row(a->out, i), &p, i);
}

/* x = drop(concat(cls, patches) + pos): x [B*T,C] has, for each image, cls_tokens rows of cls and
 * then its Np rows of patches [B*Np,C] */
static void cpu_embed_forward(const Embed *a)
{
    int T = a->T, C = a->C, Np = T - a->cls_tokens;
#pragma omp parallel for schedule(static)
    for (int r = 0; r < a->B * T; r++) {
        int b = r / T, t = r % T;
        const real *in = t < a->cls_tokens ? host(a->cls) + (long)t * C
                                           : row(a->patches, (long)b * Np + t - a->cls_tokens);
        const real *pos = a->pos ? host(a->pos) + (long)t * C : NULL;
        real *x = row(a->x, r);
        for (int j = 0; j < C; j++)
            x[j] = pos ? in[j] + pos[j] : in[j];
        drop_row(x, C, r, T, &a->drop);
    }
}

/* dx = drop(dx), in place; dpatches = its rows of patches; dpos[t] = sum over images of row t, and
 * dcls the same in the rows of class tokens. A thread takes one t for all images, so that it alone
 * adds to dpos[t]. */
static void cpu_embed_backward(const Embed *a)
{
    int T = a->T, C = a->C, Np = T - a->cls_tokens;
#pragma omp parallel for schedule(static)
    for (int t = 0; t < T; t++) {
        real *dpos = host(a->pos ? a->pos : a->cls) + (long)t * C;
        memset(dpos, 0, (size_t)C * sizeof(real));
        for (int b = 0; b < a->B; b++) {
            real *dx = row(a->x, (long)b * T + t);
            drop_row(dx, C, (long)b * T + t, T, &a->drop);
            for (int j = 0; j < C; j++)
                dpos[j] += dx[j];
            if (t >= a->cls_tokens)
                memcpy(row(a->patches, (long)b * Np + t - a->cls_tokens), dx,
                       (size_t)C * sizeof(real));
        }
        if (t < a->cls_tokens && a->pos) /* the same sum: both are added to every image's row t */
            memcpy(host(a->cls) + (long)t * C, dpos, (size_t)C * sizeof(real));
    }
    if (a->dbias)
        column_sums(a->dbias, a->patches, (long)a->B * Np, C);
}

/* ------------------------------------------------------------------------------------------------
 * Residual step and LayerNorm */

/* mean = sum(x) / n, rstd = 1 / sqrt(sum((x - mean)^2) / n + eps), for x [n]. Two passes: the mean
 * of x^2 less the square of the mean would cancel where the mean is large. */
static void moments(const real *x, int n, double eps, real *mean, real *rstd)
{
    real s = 0, q = 0;
#pragma omp simd reduction(+ : s)
    for (int j = 0; j < n; j++)
        s += x[j];
    real mu = s / (real)n;
#pragma omp simd reduction(+ : q)
    for (int j = 0; j < n; j++)
        q += (x[j] - mu) * (x[j] - mu);
    *mean = mu;
    *rstd = 1 / (real)sqrt((double)(q / (real)n) + eps);
}

/* out = s * ls * drop(in), for row r, [C]; ls NULL: 1. Returns out. */
static const real *branch_row(real *out, const real *in, const ResidualNorm *a, const dev *ls,
                              long r)
{
    real s = path_scale(r / a->tokens, &a->path);
    const real *gain = host(ls);
    for (int j = 0; j < a->C; j++)
        out[j] = s * in[j];
    for (int j = 0; gain && j < a->C; j++)
        out[j] *= gain[j];
    drop_row(out, a->C, r, a->tokens, &a->drop);
    return out;
}

/* x_out = x + s * ls * drop(branch), y = (x_out - mean) * rstd * gamma + beta; all [rows,C], with
 * mean and rstd [rows] saved for backward. The branch itself is left as it is: dls needs it. */
static void cpu_residual_norm_forward(const ResidualNorm *a)
{
    int C = a->C;
    bool scaled = a->ls || a->drop.p > 0 || a->path.p > 0;
    const real *gamma = host(a->gamma), *beta = host(a->beta);
#pragma omp parallel for schedule(static)
    for (long r = 0; r < a->rows; r++) {
        const real *x = row(a->x, r);
        if (a->branch.p) {
            real *out = row(a->x_out, r), room[C];
            const real *branch = row(a->branch, r);
            if (scaled)
                branch = branch_row(room, branch, a, a->ls, r);
            for (int j = 0; j < C; j++)
                out[j] = x[j] + branch[j];
            x = out;
        }
        if (!gamma)
            continue;
        real mean, rstd, *y = row(a->y, r);
        moments(x, C, a->eps, &mean, &rstd);
        host(a->mean)[r] = mean;
        host(a->rstd)[r] = rstd;
        for (int j = 0; j < C; j++)
            y[j] = (x[j] - mean) * rstd * gamma[j] + beta[j];
    }
}

/* LayerNorm's gradient for row r, with n = (x - mean) * rstd, the means over C (fresh: dx from 0):
 *   dx     += rstd * (dy gamma - mean(dy gamma) - n mean(dy gamma n))
 *   dgamma += dy n,  dbeta += dy */
static void norm_backward_row(const ResidualNorm *a, long r, real *dgamma, real *dbeta)
{
    int C = a->C;
    const real *x = row(a->x, r), *dy = row(a->dy, r), *gamma = host(a->gamma);
    real mean = host(a->mean)[r], rstd = host(a->rstd)[r], s1 = 0, s2 = 0, *dx = row(a->dx, r);
#pragma omp simd reduction(+ : s1, s2)
    for (int j = 0; j < C; j++) {
        real n = (x[j] - mean) * rstd, d = dy[j] * gamma[j];
        s1 += d;
        s2 += d * n;
        dgamma[j] += dy[j] * n;
        dbeta[j] += dy[j];
    }
    s1 /= (real)C;
    s2 /= (real)C;
    if (a->fresh == 1 || (a->fresh && r % a->fresh))
        memset(dx, 0, (size_t)C * sizeof *dx);
    for (int j = 0; j < C; j++)
        dx[j] += rstd * (dy[j] * gamma[j] - s1 - (x[j] - mean) * rstd * s2);
}

/* dx += LayerNorm'(dy), dbranch = s * ls * drop(dx), all [rows,C], and the column sums [C]: dgamma
 * of dy n, dbeta of dy, dbias of dbranch, dls of dx * s * drop(branch). A row is finished before
 * the next begins, while it is in cache. */
static void cpu_residual_norm_backward(const ResidualNorm *a)
{
    int C = a->C;
    long size = (long)GROUPS * C; /* of one matrix of partial sums; there are four */
    real *partial = group_sums(4, C);
#pragma omp parallel for schedule(static)
    for (int g = 0; g < GROUPS; g++) {
        real room[C], *dgamma = partial + (long)g * C, *dbeta = dgamma + size;
        real *dbias = dbeta + size, *dls = dbias + size;
        for (long r = group_begin(a->rows, g); r < group_begin(a->rows, g + 1); r++) {
            if (a->gamma)
                norm_backward_row(a, r, dgamma, dbeta);
            const real *dx = row(a->dx, r);
            const real *d = dx; /* dbranch, where nothing changes it on the way */
            if (a->dbranch.p)
                d = branch_row(row(a->dbranch, r), dx, a, a->ls, r);
            for (int j = 0; a->dbias && j < C; j++)
                dbias[j] += d[j];
            if (a->dls) { /* the same mask and path, applied to the branch instead */
                const real *branch = branch_row(room, row(a->branch, r), a, NULL, r);
                for (int j = 0; j < C; j++)
                    dls[j] += dx[j] * branch[j];
            }
        }
    }
    sum_groups(a->gamma ? a->dgamma : NULL, partial, C);
    sum_groups(a->gamma ? a->dbeta : NULL, partial + size, C);
    sum_groups(a->dbias, partial + 2 * size, C);
    sum_groups(a->dls, partial + 3 * size, C);
}

/* ------------------------------------------------------------------------------------------------
 * Attention, for each head of each image: S = q k^T / sqrt(hs), P = softmax(S) by rows, out =
 * (P M) v, with q, k, v [T,hs] and M the dropout mask. One thread takes one head, in blocks of
 * query rows: what it has in memory is [QROWS,T], never T x T. */

enum { QROWS = 256 };

/* What one head of one image reads, and forward writes: parts of the whole model's matrices */
typedef struct {
    const Attention *a;
    int b, h;       /* image, head */
    Tensor q, k, v; /* [T,hs] */
    Tensor out;     /* [Tq,hs] */
    real *lse;      /* [Tq] */
    real scale;     /* 1 / sqrt(hs) */
} Head;

static Head head_of(const Attention *a, long i)
{
    Head h = {.a = a, .b = (int)(i / a->heads), .h = (int)(i % a->heads)};
    int C = a->heads * a->hs;
    h.q = part(a->qkv, (long)h.b * a->T, h.h * a->hs);
    h.k = part(h.q, 0, C);
    h.v = part(h.q, 0, 2 * C);
    h.out = part(a->out, (long)h.b * a->Tq, h.h * a->hs);
    h.lse = host(a->lse) + i * a->Tq;
    h.scale = (real)(1 / sqrt((double)a->hs));
    return h;
}

/* f(head, room) for every head of every image, where room has `rows` rows of T elements */
static void each_head(const Attention *a, int rows, void (*f)(const Head *h, real *room))
{
    long size = (long)rows * a->T;
    real *room = scratch((size_t)size * (size_t)omp_get_max_threads());
#pragma omp parallel for schedule(static)
    for (long i = 0; i < (long)a->B * a->heads; i++) {
        Head h = head_of(a, i);
        f(&h, room + size * omp_get_thread_num());
    }
}

/* Query blocks balanced over Tq, so that the last is not a sliver. */
static int query_rows(const Attention *a)
{
    int blocks = (a->Tq + QROWS - 1) / QROWS;
    return (a->Tq + blocks - 1) / blocks;
}

/* p [T] *= the dropout mask of query row i of a head: elements of [heads,T,T] per sample, where
 * this rank's heads are drop.first and on */
static void drop_attention(real *p, const Head *h, int i)
{
    const Drop *d = &h->a->drop;
    int T = h->a->T;
    if (d->p > 0)
        drop_elements(p, T, ((long)(d->first + h->h) * T + i) * T, h->b, d);
}

/* The largest of x [n]. In lanes, because compilers do not reorder comparisons by themselves. */
static real largest(const real *x, int n)
{
    enum { LANES = 16 };
    real top[LANES];
    for (int k = 0; k < LANES; k++)
        top[k] = x[k < n ? k : 0];
    int j = 0;
    for (; j + LANES <= n; j += LANES)
        for (int k = 0; k < LANES; k++)
            top[k] = x[j + k] > top[k] ? x[j + k] : top[k];
    for (; j < n; j++)
        top[0] = x[j] > top[0] ? x[j] : top[0];
    for (int k = 1; k < LANES; k++)
        top[0] = top[k] > top[0] ? top[k] : top[0];
    return top[0];
}

/* s [T] = softmax(s); returns log(sum(exp(s))), which with the largest taken out cannot overflow */
static real softmax(real *s, int T)
{
    real top = largest(s, T), sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < T; j++) {
        s[j] = exp_(s[j] - top);
        sum += s[j];
    }
    real inv = 1 / sum;
    for (int j = 0; j < T; j++)
        s[j] *= inv;
    return top + (real)log((double)sum);
}

/* out = (P M) v and lse, a block of query rows at a time: S [query rows,T] becomes P, then P M. */
static void head_forward(const Head *h, real *room)
{
    const Attention *a = h->a;
    int T = a->T, hs = a->hs, step = query_rows(a);
    Tensor S = {.p = (dev *)room, .ld = T};
    for (int i0 = 0; i0 < a->Tq; i0 += step) {
        int n = MIN(step, a->Tq - i0);
        gemm(CblasNoTrans, CblasTrans, n, T, hs, h->scale, part(h->q, i0, 0), h->k, 0, S);
        for (int i = 0; i < n; i++) {
            h->lse[i0 + i] = softmax(row(S, i), T);
            drop_attention(row(S, i), h, i0 + i);
        }
        gemm(CblasNoTrans, CblasNoTrans, n, hs, T, 1, S, h->v, 0, part(h->out, i0, 0));
    }
}

static void cpu_attention_forward(const Attention *a)
{
    each_head(a, query_rows(a), head_forward);
}

/* Row i of a head's dS, [T]. On entry p is a row of S, and d is one of dout v^T, which is the
 * gradient of P M. On return p is P M, and d is dS:
 *
 *   P = exp(S - lse),  dS = P (M d - D) / sqrt(hs),  D = sum(dout out)
 *
 * lse is the forward pass's, so that no sum is needed for P. D is what softmax's gradient
 * subtracts, the sum of P M d over T, made of hs products. mask [T] is room for M, 1 where nothing
 * drops. */
static void score_gradient(real *p, real *d, real *mask, const Head *h, const real *dout, int i)
{
    const Attention *a = h->a;
    const real *out = row(h->out, i);
    real D = 0, lse = h->lse[i];
#pragma omp simd reduction(+ : D)
    for (int j = 0; j < a->hs; j++)
        D += dout[j] * out[j];
    for (int j = 0; j < a->T; j++)
        mask[j] = 1;
    drop_attention(mask, h, i);
#pragma omp simd
    for (int j = 0; j < a->T; j++) {
        p[j] = exp_(p[j] - lse);
        d[j] = p[j] * (mask[j] * d[j] - D) * h->scale;
        p[j] *= mask[j];
    }
}

/* dv = (P M)^T dout, dq = dS k, dk = dS^T q, a block of query rows at a time; dk and dv are sums
 * over the blocks. P, dP: [query rows,T], and behind them a row for the mask */
static void head_backward(const Head *h, real *room)
{
    const Attention *a = h->a;
    int T = a->T, hs = a->hs, C = a->heads * hs, step = query_rows(a);
    Tensor P = {.p = (dev *)room, .ld = T}, dP = part(P, step, 0);
    Tensor dq = part(a->dqkv, (long)h->b * T, h->h * hs);
    Tensor dk = part(dq, 0, C), dv = part(dq, 0, 2 * C);
    for (int i0 = 0; i0 < a->Tq; i0 += step) {
        int n = MIN(step, a->Tq - i0);
        real beta = i0 > 0; /* later blocks add to dk and dv */
        Tensor q = part(h->q, i0, 0);
        Tensor dout = part(a->dout, (long)h->b * a->Tq + i0, h->h * hs);
        gemm(CblasNoTrans, CblasTrans, n, T, hs, h->scale, q, h->k, 0, P);
        gemm(CblasNoTrans, CblasTrans, n, T, hs, 1, dout, h->v, 0, dP);
        for (int i = 0; i < n; i++)
            score_gradient(row(P, i), row(dP, i), row(P, 2 * step), h, row(dout, i), i0 + i);
        gemm(CblasTrans, CblasNoTrans, T, hs, n, 1, P, dout, beta, dv);
        gemm(CblasNoTrans, CblasNoTrans, n, hs, T, 1, dP, h->k, 0, part(dq, i0, 0));
        gemm(CblasTrans, CblasNoTrans, T, hs, n, 1, dP, q, beta, dk);
    }
}

/* dbias [3C] = column sums of dqkv. Its q columns exist in the first Tq rows of each image alone:
 * where those are not all, they are summed apart from those of k and v. */
static void attention_bias(const Attention *a)
{
    long C = a->heads * a->hs, rows = (long)a->B * a->T;
    if (a->Tq == a->T) {
        column_sums(a->dbias, a->dqkv, rows, 3 * C);
        return;
    }
    real *dq = host(a->dbias);
    column_sums((dev *)(dq + C), part(a->dqkv, 0, C), rows, 2 * C);
    memset(dq, 0, (size_t)C * sizeof(real));
    for (long r = 0; r < (long)a->B * a->Tq; r++)
        for (int j = 0; j < C; j++)
            dq[j] += row(a->dqkv, r / a->Tq * a->T + r % a->Tq)[j];
}

static void cpu_attention_backward(const Attention *a)
{
    each_head(a, 2 * query_rows(a) + 1, head_backward);
    if (a->dbias)
        attention_bias(a);
}

/* x = LN(input), hs numbers at a time: for queries and keys, each head by itself */
static void cpu_head_norm_forward(const HeadNorm *a)
{
    const real *gamma = host(a->gamma), *beta = host(a->beta);
    int hs = a->hs;
#pragma omp parallel for schedule(static)
    for (int r = 0; r < a->rows; r++) {
        memcpy(row(a->input, r), row(a->x, r), (size_t)(a->heads * hs) * sizeof(real));
        for (int h = 0; h < a->heads; h++) {
            real *x = row(a->x, r) + h * hs, mean, rstd;
            moments(x, hs, a->eps, &mean, &rstd);
            for (int j = 0; j < hs; j++)
                x[j] = (x[j] - mean) * rstd * gamma[j] + beta[j];
        }
    }
}

/* dx = rstd (g - mean(g) - xhat mean(g xhat)), g = dy gamma: LayerNorm's, of one head [hs], in
 * place of dy */
static void head_norm_backward_row(const HeadNorm *a, real *d, const real *x, real *dgamma,
                                   real *dbeta)
{
    const real *gamma = host(a->gamma);
    real mean, rstd, g_sum = 0, gx_sum = 0;
    int hs = a->hs;
    moments(x, hs, a->eps, &mean, &rstd);
    for (int j = 0; j < hs; j++) {
        real xhat = (x[j] - mean) * rstd, g = d[j] * gamma[j];
        dgamma[j] += d[j] * xhat;
        dbeta[j] += d[j];
        g_sum += g;
        gx_sum += g * xhat;
    }
    for (int j = 0; j < hs; j++) {
        real xhat = (x[j] - mean) * rstd, g = d[j] * gamma[j];
        d[j] = rstd * (g - g_sum / (real)hs - xhat * gx_sum / (real)hs);
    }
}

static void cpu_head_norm_backward(const HeadNorm *a)
{
    int hs = a->hs;
    real *partial = group_sums(2, hs);
#pragma omp parallel for schedule(static)
    for (int g = 0; g < GROUPS; g++) {
        real *dgamma = partial + (long)g * hs, *dbeta = dgamma + (long)GROUPS * hs;
        for (long r = group_begin(a->rows, g); r < group_begin(a->rows, g + 1); r++)
            for (int h = 0; h < a->heads; h++)
                head_norm_backward_row(a, row(a->x, r) + h * hs, row(a->input, r) + h * hs, dgamma,
                                       dbeta);
    }
    sum_groups(a->dgamma, partial, hs);
    sum_groups(a->dbeta, partial + (long)GROUPS * hs, hs);
}

/* ------------------------------------------------------------------------------------------------
 * Pooling and loss */

/* y [B,C] = mean of rows first..end-1 of each image's x [T,C] */
static void cpu_pool_forward(const Pool *a)
{
    real inv = 1 / (real)(a->end - a->first);
#pragma omp parallel for schedule(static)
    for (int b = 0; b < a->B; b++) {
        real *y = row(a->y, b);
        memset(y, 0, (size_t)a->C * sizeof(real));
        for (int t = a->first; t < a->end; t++)
            for (int j = 0; j < a->C; j++)
                y[j] += row(a->x, (long)b * a->T + t)[j];
        for (int j = 0; j < a->C; j++)
            y[j] *= inv;
    }
}

/* dx = dy / (end - first) in those rows, 0 in the others, or what it was */
static void cpu_pool_backward(const Pool *a)
{
    real inv = 1 / (real)(a->end - a->first);
#pragma omp parallel for schedule(static)
    for (long r = 0; r < (long)a->B * a->T; r++) {
        real *dx = row(a->x, r);
        const real *dy = row(a->y, r / a->T);
        bool in = r % a->T >= a->first && r % a->T < a->end;
        for (int j = 0; j < a->C && (in || !a->beside); j++)
            dx[j] = in ? dy[j] * inv : 0;
    }
}

/* For each image: loss, dlogits [B,K], and stats {loss, top-1 hit, top-5 hit} */
static void cpu_loss(const Loss *a)
{
#pragma omp parallel for schedule(static)
    for (int b = 0; b < a->B; b++)
        loss_of_image(a, state, b, row(a->logits, b), a->dlogits.p ? row(a->dlogits, b) : NULL);
}

/* How much of x [rows,cols] is near fp16's largest number, 65504 */
static void cpu_count_large(Tensor x, int rows, int cols)
{
    StepState *s = (StepState *)state;
    long large = 0;
#pragma omp parallel for schedule(static) reduction(+ : large)
    for (long r = 0; r < rows; r++)
        for (int j = 0; j < cols; j++) /* not >, so that NaN counts */
            large += !(fabs((double)row(x, r)[j]) <= 0.125 * 65504);
    s->large += (uint64_t)large;
    s->counted += (uint64_t)rows * (uint64_t)cols;
}

/* ------------------------------------------------------------------------------------------------
 * The device itself */

void backend_cpu_need_mpi(void)
{
#ifndef HAVE_MPI
    die("install libopenmpi-dev (make deps) and build again (make clean all)",
        "this program was built without MPI: it can be one process alone");
#endif
}

void backend_cpu_reexec(char **argv)
{
    machine_restart(argv, openblas_get_corename());
}

/* OpenBLAS's own; other libraries have none. */
void *blas_memory_alloc(int position) __attribute__((weak));
void blas_memory_free(void *buffer) __attribute__((weak));

/* OpenBLAS maps a buffer for each thread when it first needs one, and where it gets none it tries
 * again forever: so it takes them now, when that can still be said. */
static void take_buffers(int threads)
{
    enum { MOST = 256 };
    void *buffer[MOST];
    int n = threads < MOST ? threads : MOST;
    if (!blas_memory_alloc || !blas_memory_free)
        return;
    if (!machine_has_addresses((size_t)n * MACHINE_BLAS_BUFFER))
        die("give fewer --threads, or lift the limit that `ulimit -v` shows",
            "no address space for OpenBLAS's buffers: 128 MiB for each of %d threads", n);
    for (int i = 0; i < n; i++)
        buffer[i] = blas_memory_alloc(0);
    for (int i = 0; i < n; i++)
        blas_memory_free(buffer[i]);
}

static void cpu_init(const Device *d)
{
    if (d->fp8)
        die_usage("choose another --precision; fp8 is for an H100 or anything newer",
                  "the CPU has no --precision fp8");
    if (d->type != F32 || d->tf32)
        die_usage("give --precision fp32 or bf16, or build for a GPU",
                  "the CPU computes in fp32 and bf16; it has no other --precision");
    int threads = d->threads;
    if (d->ranks > 1) {
        backend_cpu_need_mpi();
        ranks_start(d);
        if (!threads && !getenv("OMP_NUM_THREADS"))
            threads = ranks_cores();
    }
    if (threads > 0)
        omp_set_num_threads(threads);
    openblas_set_num_threads(omp_get_max_threads());
    take_buffers(omp_get_max_threads());
}

/* OpenBLAS has one algorithm for a product. */
static void cpu_algorithms(UNUSED const char *path, UNUSED bool save)
{
}

static double cpu_peak_flops(void)
{
    return 0; /* not known */
}

static double cpu_busy(void)
{
    return -1; /* not known */
}

static void cpu_describe(char *out, size_t size)
{
    char model[128], version[32] = "";
    machine_cpu(model, sizeof model);
    sscanf(openblas_get_config(), "OpenBLAS %31s", version);
    snprintf(out, size, "%s, %s, OpenBLAS %s (%s kernels)", model,
             amount(omp_get_max_threads(), "thread").s, version, openblas_get_corename());
}

const Backend *backend_cpu(void)
{
    static const Backend table = {
        .name = "cpu",
#ifdef HAVE_MPI
        .built = "MPI",
#else
        .built = "no MPI",
#endif
        .init = cpu_init,
        .threads = omp_get_max_threads,
        .describe = cpu_describe,
        .peak_flops = cpu_peak_flops,
        .busy = cpu_busy,
        .algorithms = cpu_algorithms,
        .memory_free = machine_memory_free,
        .alloc = cpu_alloc,
        .release = cpu_release,
        .host_alloc = xmalloc,
        .host_release = free,
        .upload = cpu_upload,
        .download = cpu_download,
        .send = cpu_send,
        .fetch = cpu_fetch,
        .mark = cpu_mark,
        .wait = cpu_wait,
        .copy = cpu_copy,
        .zero = cpu_zero,
        .convert = cpu_convert,
        .add = cpu_add,
        .run = cpu_run,
        .scratch_bytes = cpu_scratch_bytes,
        .bind = cpu_bind,
        .linear_forward = cpu_linear_forward,
        .linear_backward_input = cpu_linear_backward_input,
        .linear_backward_weight = cpu_linear_backward_weight,
        .activate = cpu_activate,
        .patchify = cpu_patchify,
        .embed_forward = cpu_embed_forward,
        .embed_backward = cpu_embed_backward,
        .residual_norm_forward = cpu_residual_norm_forward,
        .residual_norm_backward = cpu_residual_norm_backward,
        .attention_forward = cpu_attention_forward,
        .attention_backward = cpu_attention_backward,
        .head_norm_forward = cpu_head_norm_forward,
        .head_norm_backward = cpu_head_norm_backward,
        .pool_forward = cpu_pool_forward,
        .pool_backward = cpu_pool_backward,
        .loss = cpu_loss,
        .count_large = cpu_count_large,
        .sum_squares = optimizer_sum_squares,
        .finish_norm = optimizer_finish_norm,
        .adam = optimizer_adam,
        .sgd = optimizer_sgd,
        .lamb_direction = optimizer_lamb_direction,
        .lamb_apply = optimizer_lamb_apply,
        .round_weights = optimizer_round_weights,
        .scale_loss = optimizer_scale_loss,
        .split = ranks_split,
        .all_reduce = ranks_all_reduce,
        .reduce_scatter = ranks_reduce_scatter,
        .all_gather = ranks_all_gather,
        .pass = ranks_pass,
        .receive = ranks_receive,
        .join = ranks_join,
        .sent = ranks_sent,
        .waited = ranks_waited,
        .end = ranks_end,
    };
    return &table;
}
