/* backend_cpu.c - the oracle: every op of backend.h in plain C, OpenMP and OpenBLAS.
 *
 * Matrix products are cblas_?gemm, everything else is written out so that it can be compared with
 * the formula above its entry in backend.h. Built once with float and once with double. Never built
 * with -ffast-math: NaN checks must work, and a sum must be summed in the order that is written
 * here. Results do not depend on the number of threads, except inside OpenBLAS.
 *
 * Order: memory, random masks, elementary functions, linear, embedding, residual and norm,
 * attention, pooling and loss, optimisers, the table.
 */
#include "backend.h"
#include "util/machine.h"
#include "util/rng.h"

#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char *openblas_get_corename(void);
extern char *openblas_get_config(void);

#define DOUBLE    (sizeof(real) == 8)
#define MIN(a, b) ((a) < (b) ? (a) : (b))

static const StepState *state; /* bound by bind_state */

/* A dev pointer is host memory here. */
static real *host(const dev *p)
{
    return (real *)p;
}

static real *row(Tensor t, long i)
{
    return (real *)t.p + i * t.ld;
}

/* ------------------------------------------------------------------------------------------------
 * Memory */

static dev *cpu_alloc(size_t bytes)
{
    /* calloc: pages that nobody touches cost nothing; the block's start is kept below p */
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

static void *cpu_host_alloc(size_t bytes)
{
    return xmalloc(bytes);
}

static void cpu_upload(dev *dst, const void *src, size_t bytes)
{
    memcpy(dst, src, bytes);
}

static Ticket cpu_send(dev *dst, const void *src, size_t bytes, Ticket after)
{
    (void)after;
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

static void cpu_wait(Ticket ticket)
{
    (void)ticket;
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

static void cpu_convert(dev *dst, int dst_type, const dev *src, int src_type, long n)
{
    if (dst_type != F32 || src_type != F32)
        die("use --precision fp32 on the CPU", "the CPU backend stores fp32 alone");
    memmove(dst, src, (size_t)n * sizeof(real));
}

static void cpu_add(dev *sum, const dev *x, long n)
{
    real *a = host(sum);
    const real *b = host(x);
#pragma omp parallel for simd schedule(static)
    for (long i = 0; i < n; i++)
        a[i] += b[i];
}

static void cpu_run(uint64_t key, bool together, void (*body)(void *), void *arg)
{
    (void)key;
    (void)together;
    body(arg);
}

static size_t cpu_scratch_bytes(const Sizes *s)
{
    (void)s;
    return 0;
}

/* Its own scratch grows with the number of threads, which a plan does not know. */
static void cpu_bind(dev *s, dev *scratch_memory, size_t bytes)
{
    (void)scratch_memory;
    (void)bytes;
    state = (const StepState *)(void *)s;
}

/* One process: several are for the CUDA backend, until this one speaks MPI. */
static void cpu_all_reduce(dev *x, int type, long n)
{
    (void)x;
    (void)type;
    (void)n;
}

static void cpu_join(void)
{
}

/* Scratch that grows to the largest request and stays: block `which` of several in use at once. */
static real *scratch(int which, size_t n)
{
    static real *p[4];
    static size_t size[4];
    if (n > size[which]) {
        free(p[which]);
        p[which] = xmalloc(n * sizeof(real));
        size[which] = n;
    }
    return p[which];
}

/* Sums over rows are made in GROUPS partial sums, each over a fixed range of rows and added in
 * order at the end, so that they do not depend on the number of threads. */
enum { GROUPS = 32 };

static long group_begin(long rows, int g)
{
    return rows * g / GROUPS;
}

/* out[n] = sum of the GROUPS rows of partial [GROUPS, n] */
static void sum_groups(dev *out, const real *partial, long n)
{
    real *o = host(out);
#pragma omp parallel for simd schedule(static)
    for (long j = 0; j < n; j++) {
        real s = partial[j];
        for (int g = 1; g < GROUPS; g++)
            s += partial[g * n + j];
        o[j] = s;
    }
}

/* ------------------------------------------------------------------------------------------------
 * Dropout: masks from counters */

/* scale[i] = 0 or 1/(1-p) for elements first..first+n-1 of one sample (index within the batch) */
static void drop_scales(real *scale, long n, long first, long sample, const Drop *d)
{
    uint32_t keep = rng_threshold(d->p);
    real kept = (real)(1 / (1 - d->p));
    long i = 0;
    while (i < n) {
        long element = first + i;
        Philox r = rng_block(state->seed, (uint32_t)(element / 4),
                             state->sample0 + (uint32_t)sample, state->step, d->purpose, d->layer);
        for (long k = element % 4; k < 4 && i < n; k++, i++)
            scale[i] = r.v[k] >= keep ? kept : 0;
    }
}

/* Multiply x[0..n) by its mask. */
static void drop_row(real *x, long n, long first, long sample, const Drop *d)
{
    real scale[256];
    for (long i = 0; i < n; i += 256) {
        long len = MIN(n - i, 256);
        drop_scales(scale, len, first + i, sample, d);
        for (long k = 0; k < len; k++)
            x[i + k] *= scale[k];
    }
}

static real path_scale(long sample, const Drop *d)
{
    real scale = 1;
    if (d->p > 0)
        drop_scales(&scale, 1, 0, sample, d);
    return scale;
}

/* ------------------------------------------------------------------------------------------------
 * Elementary functions. libm's scalar calls would cost a sixth of a step, so the float build has
 * its own, written so that compilers vectorise them; the double build uses libm. Coefficients: our
 * own least-squares fits, reweighted towards equal error; test_ops holds them to libm. */

/* e^x, 2 ulp: x = k ln2 + r, e^r by a polynomial, 2^k by building the exponent. e^-87 below -87. */
static inline float expf_fast(float x)
{
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the integer k in the low bits */
    float k = shifted - 12582912.0f;
    float r = x - k * 0.693145752f - k * 1.42860677e-6f;
    float p = 0.00138146125f;
    p = p * r + 0.0083687099f;
    p = p * r + 0.0416683874f;
    p = p * r + 0.166665207f;
    p = p * r + 0.499999935f;
    p = p * r * r + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}

/* erf, absolute error 4e-7: x times a rational function of x^2, constant beyond 3.92 */
static inline float erff_fast(float x)
{
    x = x < -3.92f ? -3.92f : x > 3.92f ? 3.92f : x;
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
    float y = x * p / q; /* rounding may carry it past 1 */
    return y < -1.0f ? -1.0f : y > 1.0f ? 1.0f : y;
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
    return u > 8.6f ? 1.0f : u < -8.6f ? -1.0f : u * p / q;
}

static inline real exp_(real x)
{
    return DOUBLE ? (real)exp((double)x) : (real)expf_fast((float)x);
}

static inline real erf_(real x)
{
    return DOUBLE ? (real)erf((double)x) : (real)erff_fast((float)x);
}

static inline real tanh_(real u)
{
    return DOUBLE ? (real)tanh((double)u) : (real)tanhf_fast((float)u);
}

/* GELU (Hendrycks & Gimpel 2016): x * Phi(x), with Phi by erf or by its tanh approximation. */
#define SQRT_HALF    ((real)0.70710678118654752440)
#define INV_SQRT_2PI ((real)0.39894228040143267794)
#define SQRT_2_PI    ((real)0.79788456080286535588)
#define GELU_CUBIC   ((real)0.044715)

static void act_forward(real *y, const real *x, int n, int act)
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
    } else {
        for (int i = 0; i < n; i++)
            y[i] = (real)tanh((double)x[i]);
    }
}

/* d[i] *= act'(x[i]) */
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
    } else {
        for (int i = 0; i < n; i++) {
            real t = (real)tanh((double)x[i]);
            d[i] *= 1 - t * t;
        }
    }
}

/* ------------------------------------------------------------------------------------------------
 * Linear */

static void gemm(CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, long M, long N, long K, real alpha,
                 const real *A, long lda, const real *B, long ldb, real beta, real *C, long ldc)
{
    int m = (int)M, n = (int)N, k = (int)K, a = (int)lda, b = (int)ldb, c = (int)ldc;
    if (DOUBLE)
        cblas_dgemm(CblasRowMajor, ta, tb, m, n, k, (double)alpha, (const void *)A, a,
                    (const void *)B, b, (double)beta, (void *)C, c);
    else
        cblas_sgemm(CblasRowMajor, ta, tb, m, n, k, (float)alpha, (const void *)A, a,
                    (const void *)B, b, (float)beta, (void *)C, c);
}

static void cpu_linear_forward(const LinearForward *a)
{
    const real *bias = host(a->bias);
    Tensor sum = a->act && a->pre.p ? a->pre : a->y;
    gemm(CblasNoTrans, CblasTrans, a->rows, a->out, a->in, 1, row(a->x, 0), a->x.ld, row(a->w, 0),
         a->w.ld, 0, row(sum, 0), sum.ld);
    if (!bias && !a->act && !a->residual.p && a->drop.p <= 0)
        return;

#pragma omp parallel for schedule(static)
    for (int r = 0; r < a->rows; r++) {
        real *s = row(sum, r), *y = row(a->y, r);
        if (bias)
            for (int j = 0; j < a->out; j++)
                s[j] += bias[j];
        if (a->act)
            act_forward(y, s, a->out, a->act);
        if (a->drop.p > 0)
            drop_row(y, a->out, (long)(r % a->tokens) * a->out, r / a->tokens, &a->drop);
        if (a->residual.p) {
            const real *x = row(a->residual, r);
            for (int j = 0; j < a->out; j++)
                y[j] += x[j];
        }
    }
}

static void cpu_linear_backward_input(const LinearBackwardInput *a)
{
    gemm(CblasNoTrans, CblasNoTrans, a->rows, a->in, a->out, 1, row(a->dy, 0), a->dy.ld,
         row(a->w, 0), a->w.ld, a->accumulate ? 1 : 0, row(a->dx, 0), a->dx.ld);
    if (!a->act && !a->dbias && a->drop.p <= 0)
        return;

    int n = a->in;
    real *partial = a->dbias ? scratch(0, (size_t)GROUPS * (size_t)n) : NULL;
#pragma omp parallel for schedule(static)
    for (int g = 0; g < GROUPS; g++) {
        real *sum = partial ? partial + (long)g * n : NULL;
        if (sum)
            memset(sum, 0, (size_t)n * sizeof(real));
        for (long r = group_begin(a->rows, g); r < group_begin(a->rows, g + 1); r++) {
            real *dx = row(a->dx, r);
            if (a->drop.p > 0)
                drop_row(dx, n, (r % a->tokens) * n, r / a->tokens, &a->drop);
            if (a->act)
                act_backward(dx, row(a->pre, r), n, a->act);
            for (int j = 0; sum && j < n; j++)
                sum[j] += dx[j];
        }
    }
    if (partial)
        sum_groups(a->dbias, partial, n);
}

/* Column sums of x [rows, n] */
static void column_sums(dev *out, Tensor x, long rows, long n)
{
    real *partial = scratch(0, (size_t)GROUPS * (size_t)n);
#pragma omp parallel for schedule(static)
    for (int g = 0; g < GROUPS; g++) {
        real *sum = partial + g * n;
        memset(sum, 0, (size_t)n * sizeof(real));
        for (long r = group_begin(rows, g); r < group_begin(rows, g + 1); r++)
            for (long j = 0; j < n; j++)
                sum[j] += row(x, r)[j];
    }
    sum_groups(out, partial, n);
}

static void cpu_linear_backward_weight(const LinearBackwardWeight *a)
{
    gemm(CblasTrans, CblasNoTrans, a->out, a->in, a->rows, 1, row(a->dy, 0), a->dy.ld, row(a->x, 0),
         a->x.ld, 0, host(a->dw), a->in);
    if (a->dbias)
        column_sums(a->dbias, a->dy, a->rows, a->out);
}

/* ------------------------------------------------------------------------------------------------
 * Embedding */

static bool in_rect(const Rect *r, int y, int x)
{
    return y >= r->y && y < r->y + r->h && x >= r->x && x < r->x + r->w;
}

/* Pixel (row y, column x) of channel c of image b, as Augment wants it before images are mixed. */
static real augmented(const Patchify *a, int b, int c, int y, int x, real lut[3][256])
{
    const Augment *g = (const Augment *)a->augment + b;
    if (g->erase && in_rect(&g->erased, y, x)) {
        if (g->erase == ERASE_ZERO)
            return 0;
        Philox r = rng_block(state->seed, (uint32_t)((c * a->H + y) * a->W + x),
                             state->sample0 + (uint32_t)b, state->step, RNG_ERASE, 0);
        return (real)rng_normal(rng_unit(r.v[0]), rng_unit(r.v[1]));
    }
    const uint8_t *in = (const uint8_t *)a->images + (((long)b * a->H + y) * a->W + x) * 3;
    if (!g->use_colour)
        return lut[c][in[c]];
    double v = (double)g->colour[9 + c];
    for (int k = 0; k < 3; k++)
        v += (double)g->colour[3 * c + k] * in[k] / 255.0;
    v = v < 0 ? 0 : v > 1 ? 1 : v;
    return (real)((v - a->mean[c]) / a->std[c]);
}

/* n pixels of a row of channel c of image b, from (y, x) on, added to out [n] with weight `scale`.
 */
static void row_add(real *out, const Patchify *a, int b, int c, int y, int x, int n, real scale,
                    real lut[3][256])
{
    const Augment *g = a->augment ? (const Augment *)a->augment + b : NULL;
    if (scale == 0)
        return;
    if (!a->u8) {
        const real *in = host(a->images) + (((long)b * VIT_CHANNELS + c) * a->H + y) * a->W + x;
        for (int j = 0; j < n; j++)
            out[j] += scale * in[j];
    } else if (g && (g->use_colour || g->erase)) {
        for (int j = 0; j < n; j++)
            out[j] += scale * augmented(a, b, c, y, x + j, lut);
    } else {
        const uint8_t *in =
            (const uint8_t *)a->images + (((long)b * a->H + y) * a->W + x) * VIT_CHANNELS + c;
        for (int j = 0; j < n; j++)
            out[j] += scale * lut[c][in[j * VIT_CHANNELS]];
    }
}

/* The patch (py, px) of image b, added to out [3*P*P]: pixels in `cut` with weight `inside`, others
 * with weight `outside`. */
static void patch_add(real *out, const Patchify *a, int b, int py, int px, Rect cut, real inside,
                      real outside, real lut[3][256])
{
    const int P = a->P, x0 = px * P;
    int from = cut.x < x0 ? x0 : cut.x, to = cut.x + cut.w < x0 + P ? cut.x + cut.w : x0 + P;
    for (int c = 0; c < VIT_CHANNELS; c++)
        for (int i = 0; i < P; i++) {
            real *o = out + (c * P + i) * P;
            int y = py * P + i;
            if (from >= to || y < cut.y || y >= cut.y + cut.h) {
                row_add(o, a, b, c, y, x0, P, outside, lut);
                continue;
            }
            row_add(o, a, b, c, y, x0, from - x0, outside, lut);
            row_add(o + from - x0, a, b, c, y, from, to - from, inside, lut);
            row_add(o + to - x0, a, b, c, y, to, x0 + P - to, outside, lut);
        }
}

static void cpu_patchify(const Patchify *a)
{
    int gh = a->H / a->P, gw = a->W / a->P, n = VIT_CHANNELS * a->P * a->P;
    real lut[3][256];
    for (int c = 0; c < VIT_CHANNELS; c++)
        for (int v = 0; v < 256; v++)
            lut[c][v] = (real)((v / 255.0 - a->mean[c]) / a->std[c]);

#pragma omp parallel for schedule(static)
    for (int i = 0; i < a->B * gh * gw; i++) {
        int b = i / (gh * gw), py = i / gw % gh, px = i % gw;
        Augment g = a->augment ? ((const Augment *)a->augment)[b] : (Augment){.lambda = 1};
        real *out = row(a->out, i), lambda = (real)g.lambda;
        memset(out, 0, (size_t)n * sizeof(real));
        patch_add(out, a, b, py, px, g.cut, 0, lambda, lut);
        patch_add(out, a, g.partner, py, px, g.cut, 1, 1 - lambda, lut);
    }
}

static void cpu_embed_forward(const Embed *a)
{
    int T = a->T, C = a->C, Np = T - a->cls_tokens;
#pragma omp parallel for schedule(static)
    for (int r = 0; r < a->B * T; r++) {
        int b = r / T, t = r % T;
        const real *in = t < a->cls_tokens ? host(a->cls) + (long)t * C
                                           : row(a->patches, (long)b * Np + t - a->cls_tokens);
        const real *pos = host(a->pos) + (long)t * C;
        real *x = row(a->x, r);
        for (int j = 0; j < C; j++)
            x[j] = in[j] + pos[j];
        if (a->drop.p > 0)
            drop_row(x, C, (long)t * C, b, &a->drop);
    }
}

static void cpu_embed_backward(const Embed *a)
{
    int T = a->T, C = a->C, Np = T - a->cls_tokens;
#pragma omp parallel for schedule(static)
    for (int t = 0; t < T; t++) {
        real *dpos = host(a->pos) + (long)t * C;
        memset(dpos, 0, (size_t)C * sizeof(real));
        for (int b = 0; b < a->B; b++) {
            real *dx = row(a->x, (long)b * T + t);
            if (a->drop.p > 0)
                drop_row(dx, C, (long)t * C, b, &a->drop);
            for (int j = 0; j < C; j++)
                dpos[j] += dx[j];
            if (t >= a->cls_tokens)
                memcpy(row(a->patches, (long)b * Np + t - a->cls_tokens), dx,
                       (size_t)C * sizeof(real));
        }
        if (t < a->cls_tokens) /* the same sum: both are added to every image's row t */
            memcpy(host(a->cls) + (long)t * C, dpos, (size_t)C * sizeof(real));
    }
    if (a->dbias)
        column_sums(a->dbias, a->patches, (long)a->B * Np, C);
}

/* ------------------------------------------------------------------------------------------------
 * Residual step and LayerNorm */

/* Mean and 1/sqrt(variance + eps) of x [n]; the variance about the mean, for accuracy. */
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

/* out = scale * gamma_ls * mask * in, for one row */
static void branch_row(real *out, const real *in, const ResidualNorm *a, long r)
{
    long sample = r / a->tokens, t = r % a->tokens;
    real s = path_scale(sample, &a->path);
    const real *ls = host(a->ls);
    for (int j = 0; j < a->C; j++)
        out[j] = s * in[j];
    if (ls)
        for (int j = 0; j < a->C; j++)
            out[j] *= ls[j];
    if (a->drop.p > 0)
        drop_row(out, a->C, t * a->C, sample, &a->drop);
}

static void cpu_residual_norm_forward(const ResidualNorm *a)
{
    int C = a->C;
    const real *gamma = host(a->gamma), *beta = host(a->beta);
#pragma omp parallel for schedule(static)
    for (long r = 0; r < a->rows; r++) {
        const real *x = row(a->x, r);
        if (a->branch.p) {
            real *out = row(a->x_out, r), *branch = row(a->branch, r);
            if (a->ls || a->drop.p > 0 || a->path.p > 0) { /* keep the branch: dls needs it */
                real scaled[C];
                branch_row(scaled, branch, a, r);
                for (int j = 0; j < C; j++)
                    out[j] = x[j] + scaled[j];
            } else {
                for (int j = 0; j < C; j++)
                    out[j] = x[j] + branch[j];
            }
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

/* dx += LayerNorm'(dy) for one row, with n = (x - mean) * rstd:
 * rstd * (dy gamma - mean(dy gamma) - n mean(dy gamma n)); dgamma += dy n, dbeta += dy */
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
    for (int j = 0; j < C; j++)
        dx[j] += rstd * (dy[j] * gamma[j] - s1 - (x[j] - mean) * rstd * s2);
}

static void cpu_residual_norm_backward(const ResidualNorm *a)
{
    int C = a->C;
    bool norm = a->gamma != NULL;
    enum { DGAMMA, DBETA, DBIAS, DLS, SUMS };
    real *partial[SUMS];
    for (int k = 0; k < SUMS; k++)
        partial[k] = scratch(k, (size_t)GROUPS * (size_t)C);

#pragma omp parallel for schedule(static)
    for (int g = 0; g < GROUPS; g++) {
        real *sum[SUMS], local[C];
        for (int k = 0; k < SUMS; k++) {
            sum[k] = partial[k] + (long)g * C;
            memset(sum[k], 0, (size_t)C * sizeof(real));
        }
        for (long r = group_begin(a->rows, g); r < group_begin(a->rows, g + 1); r++) {
            if (norm)
                norm_backward_row(a, r, sum[DGAMMA], sum[DBETA]);
            const real *d = row(a->dx, r); /* dbranch, where nothing changes it on the way */
            if (a->dbranch.p) {
                real *out = row(a->dbranch, r);
                branch_row(out, d, a, r);
                d = out;
            }
            if (a->dbias)
                for (int j = 0; j < C; j++)
                    sum[DBIAS][j] += d[j];
            if (a->dls) { /* the same mask and path, applied to the branch instead */
                const real *dx = row(a->dx, r);
                ResidualNorm unscaled = *a;
                unscaled.ls = NULL;
                branch_row(local, row(a->branch, r), &unscaled, r);
                for (int j = 0; j < C; j++)
                    sum[DLS][j] += dx[j] * local[j];
            }
        }
    }
    if (norm) {
        sum_groups(a->dgamma, partial[DGAMMA], C);
        sum_groups(a->dbeta, partial[DBETA], C);
    }
    if (a->dbias)
        sum_groups(a->dbias, partial[DBIAS], C);
    if (a->dls)
        sum_groups(a->dls, partial[DLS], C);
}

/* ------------------------------------------------------------------------------------------------
 * Attention: one thread takes one head of one image, in blocks of query rows, so that what is
 * materialised is QROWS x T per thread and never T x T per head. */

enum { QROWS = 256 };

typedef struct {
    const Attention *a;
    int b, h;
    const real *q, *k, *v; /* rows of ld = a->qkv.ld */
    real scale;
} Head;

static Head head_of(const Attention *a, long i)
{
    Head h = {a,
              (int)(i / a->heads),
              (int)(i % a->heads),
              NULL,
              NULL,
              NULL,
              (real)(1 / sqrt((double)a->hs))};
    int C = a->heads * a->hs;
    h.q = row(a->qkv, (long)h.b * a->T) + h.h * a->hs;
    h.k = h.q + C;
    h.v = h.q + 2 * C;
    return h;
}

/* Query blocks balanced over Tq, so that the last is not a sliver. */
static int query_rows(const Attention *a)
{
    int blocks = (a->Tq + QROWS - 1) / QROWS;
    return (a->Tq + blocks - 1) / blocks;
}

/* The dropout mask of query row i of a head, applied to p [T] */
static void drop_attention(real *p, const Head *h, int i)
{
    const Attention *a = h->a;
    if (a->drop.p > 0)
        drop_row(p, a->T, ((long)h->h * a->T + i) * a->T, h->b, &a->drop);
}

/* In lanes, because compilers do not reorder comparisons by themselves. */
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

static void head_forward(const Head *h, real *S)
{
    const Attention *a = h->a;
    int T = a->T, hs = a->hs, step = query_rows(a);
    long ld = a->qkv.ld;
    for (int i0 = 0; i0 < a->Tq; i0 += step) {
        int n = MIN(step, a->Tq - i0);
        gemm(CblasNoTrans, CblasTrans, n, T, hs, h->scale, h->q + i0 * ld, ld, h->k, ld, 0, S, T);
        for (int i = 0; i < n; i++) {
            real *s = S + (long)i * T, top = largest(s, T), sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int j = 0; j < T; j++) {
                s[j] = exp_(s[j] - top);
                sum += s[j];
            }
            real inv = 1 / sum;
            for (int j = 0; j < T; j++)
                s[j] *= inv;
            host(a->lse)[((long)h->b * a->heads + h->h) * a->Tq + i0 + i] =
                top + (real)log((double)sum);
            drop_attention(s, h, i0 + i);
        }
        gemm(CblasNoTrans, CblasNoTrans, n, hs, T, 1, S, T, h->v, ld, 0,
             row(a->out, (long)h->b * a->Tq + i0) + h->h * hs, a->out.ld);
    }
}

/* `rows` rows of T elements for each thread */
static real *attention_scratch(const Attention *a, int rows)
{
    return scratch(0, (size_t)rows * (size_t)a->T * (size_t)omp_get_max_threads());
}

static void cpu_attention_forward(const Attention *a)
{
    int rows = query_rows(a);
    real *S = attention_scratch(a, rows);
#pragma omp parallel for schedule(static)
    for (long i = 0; i < (long)a->B * a->heads; i++) {
        Head h = head_of(a, i);
        head_forward(&h, S + (long)rows * a->T * omp_get_thread_num());
    }
}

/* With P the probabilities, M the mask and O the output: D = rowsum(dO * O), dV = (P M)^T dO,
 * dS = P * (M * (dO V^T) - D) / sqrt(hs), dQ = dS K, dK = dS^T Q. P and dP: [query rows, T]. */
static void head_backward(const Head *h, real *P, real *dP, real *mask)
{
    const Attention *a = h->a;
    int T = a->T, hs = a->hs, C = a->heads * hs, step = query_rows(a);
    long ld = a->qkv.ld, ldd = a->dqkv.ld;
    real *dq = row(a->dqkv, (long)h->b * T) + h->h * hs, *dk = dq + C, *dv = dq + 2 * C;
    for (int i0 = 0; i0 < a->Tq; i0 += step) {
        int n = MIN(step, a->Tq - i0);
        const real *q = h->q + i0 * ld, *dout = row(a->dout, (long)h->b * a->Tq + i0) + h->h * hs;
        real beta = i0 > 0; /* later blocks add to dk and dv */
        gemm(CblasNoTrans, CblasTrans, n, T, hs, h->scale, q, ld, h->k, ld, 0, P, T);
        gemm(CblasNoTrans, CblasTrans, n, T, hs, 1, dout, a->dout.ld, h->v, ld, 0, dP, T);
        for (int i = 0; i < n; i++) {
            real *p = P + (long)i * T, *d = dP + (long)i * T, D = 0;
            const real *o = row(a->out, (long)h->b * a->Tq + i0 + i) + h->h * hs,
                       *go = dout + i * a->dout.ld;
            real lse = host(a->lse)[((long)h->b * a->heads + h->h) * a->Tq + i0 + i];
#pragma omp simd reduction(+ : D)
            for (int j = 0; j < hs; j++)
                D += go[j] * o[j];
            if (a->drop.p > 0) {
                for (int j = 0; j < T; j++)
                    mask[j] = 1;
                drop_attention(mask, h, i0 + i);
                for (int j = 0; j < T; j++) {
                    p[j] = exp_(p[j] - lse);
                    d[j] = p[j] * (mask[j] * d[j] - D) * h->scale;
                    p[j] *= mask[j];
                }
            } else {
#pragma omp simd
                for (int j = 0; j < T; j++) {
                    p[j] = exp_(p[j] - lse);
                    d[j] = p[j] * (d[j] - D) * h->scale;
                }
            }
        }
        gemm(CblasTrans, CblasNoTrans, T, hs, n, 1, P, T, dout, a->dout.ld, beta, dv, ldd);
        gemm(CblasNoTrans, CblasNoTrans, n, hs, T, 1, dP, T, h->k, ld, 0, dq + i0 * ldd, ldd);
        gemm(CblasTrans, CblasNoTrans, T, hs, n, 1, dP, T, q, ld, beta, dk, ldd);
    }
}

static void cpu_attention_backward(const Attention *a)
{
    int C = a->heads * a->hs, rows = 2 * query_rows(a) + 1;
    long block = (long)query_rows(a) * a->T;
    real *S = attention_scratch(a, rows);
#pragma omp parallel for schedule(static)
    for (long i = 0; i < (long)a->B * a->heads; i++) {
        Head h = head_of(a, i);
        real *mine = S + (long)rows * a->T * omp_get_thread_num();
        head_backward(&h, mine, mine + block, mine + 2 * block);
    }
    /* the q columns exist in the first Tq rows of each sample alone */
    dev *dk = (dev *)(host(a->dbias) + C);
    if (a->Tq == a->T) {
        column_sums(a->dbias, a->dqkv, (long)a->B * a->T, 3L * C);
        return;
    }
    Tensor kv = a->dqkv, q = a->dqkv;
    kv.p = (dev *)(host(a->dqkv.p) + C);
    column_sums(dk, kv, (long)a->B * a->T, 2L * C);
    real *dq = host(a->dbias);
    memset(dq, 0, (size_t)C * sizeof(real));
    for (long r = 0; r < (long)a->B * a->Tq; r++)
        for (int j = 0; j < C; j++)
            dq[j] += row(q, r / a->Tq * a->T + r % a->Tq)[j];
}

/* ------------------------------------------------------------------------------------------------
 * Pooling and loss */

static void cpu_pool_forward(const Pool *a)
{
    real inv = 1 / (real)(a->T - a->first);
#pragma omp parallel for schedule(static)
    for (int b = 0; b < a->B; b++) {
        real *y = row(a->y, b);
        memset(y, 0, (size_t)a->C * sizeof(real));
        for (int t = a->first; t < a->T; t++)
            for (int j = 0; j < a->C; j++)
                y[j] += row(a->x, (long)b * a->T + t)[j];
        for (int j = 0; j < a->C; j++)
            y[j] *= inv;
    }
}

static void cpu_pool_backward(const Pool *a)
{
    real inv = 1 / (real)(a->T - a->first);
#pragma omp parallel for schedule(static)
    for (long r = 0; r < (long)a->B * a->T; r++) {
        real *dx = row(a->x, r);
        const real *dy = row(a->y, r / a->T);
        bool in = r % a->T >= a->first;
        for (int j = 0; j < a->C; j++)
            dx[j] = in ? dy[j] * inv : 0;
    }
}

/* -sum_k y_k log softmax(z)_k and its gradient  softmax(z) sum(y) - y */
static double softmax_row(const real *z, const real *y, real *dz, int K, double scale)
{
    double top = (double)z[0], sum = 0, mass = 0, loss = 0;
    for (int k = 1; k < K; k++)
        top = (double)z[k] > top ? (double)z[k] : top;
    for (int k = 0; k < K; k++)
        sum += exp((double)z[k] - top);
    double lse = top + log(sum);
    for (int k = 0; k < K; k++) {
        if (y[k] != 0)
            loss += (double)y[k] * (lse - (double)z[k]);
        mass += (double)y[k];
    }
    for (int k = 0; dz && k < K; k++)
        dz[k] = (real)(scale * (exp((double)z[k] - lse) * mass - (double)y[k]));
    return loss;
}

/* sum_k max(z,0) - z y + log(1 + e^-|z|): binary cross-entropy; gradient sigmoid(z) - y */
static double sigmoid_row(const real *z, const real *y, real *dz, int K, double scale)
{
    double loss = 0;
    for (int k = 0; k < K; k++) {
        double v = (double)z[k], e = exp(-fabs(v));
        loss += (v > 0 ? v : 0) - v * (double)y[k] + log1p(e);
        if (dz)
            dz[k] = (real)(scale * ((v >= 0 ? 1 : e) / (1 + e) - (double)y[k]));
    }
    return loss;
}

static void cpu_loss(const Loss *a)
{
    int K = a->K;
    double scale = a->scale * state->loss_scale;
#pragma omp parallel for schedule(static)
    for (int b = 0; b < a->B; b++) {
        const real *z = row(a->logits, b), *y = host(a->targets) + (long)b * K;
        real *dz = a->dlogits.p ? row(a->dlogits, b) : NULL;
        real *stats = host(a->stats) + 3L * (state->sample0 + (uint32_t)b);
        double loss = a->kind == LOSS_SOFTMAX ? softmax_row(z, y, dz, K, scale)
                                              : sigmoid_row(z, y, dz, K, scale);
        int label = 0, above = 0;
        for (int k = 1; k < K; k++)
            label = y[k] > y[label] ? k : label;
        for (int k = 0; k < K; k++) /* written so that NaN counts as above */
            above += k != label && !(z[k] < z[label]);
        bool finite = isfinite(z[label]);
        stats[0] = (real)loss;
        stats[1] = finite && above < 1;
        stats[2] = finite && above < 5;
    }
}

/* ------------------------------------------------------------------------------------------------
 * Norms and optimisers, over chunks */

static double chunk_squares(const real *x, int n)
{
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (int i = 0; i < n; i++)
        s += (double)x[i] * (double)x[i];
    return s;
}

static void cpu_count_large(Tensor x, int rows, int cols)
{
    StepState *s = (StepState *)state;
    long large = 0;
#pragma omp parallel for schedule(static) reduction(+ : large)
    for (long r = 0; r < rows; r++)
        for (int j = 0; j < cols; j++) /* written so that NaN counts */
            large += !(fabs((double)row(x, r)[j]) <= 0.125 * 65504);
    s->large += (uint64_t)large;
    s->counted += (uint64_t)rows * (uint64_t)cols;
}

static void cpu_sum_squares(dev *partial, const dev *x, const dev *chunks, int n)
{
    const Chunk *c = (const Chunk *)chunks;
#pragma omp parallel for schedule(static)
    for (int i = 0; i < n; i++)
        host(partial)[i] = (real)chunk_squares(host(x) + c[i].offset, c[i].n);
}

static void cpu_finish_norm(const dev *partial, int n, double max_norm)
{
    StepState *s = (StepState *)state;
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)host(partial)[i];
    s->grad_norm = sqrt(sum) / s->loss_scale;
    s->skip = !isfinite(s->grad_norm);
    s->clip = 1;
    if (max_norm > 0 && !s->skip) {
        double c =
            max_norm / (s->grad_norm + 1e-6); /* 1e-6 as torch.nn.utils.clip_grad_norm_ has it */
        s->clip = c < 1 ? c : 1;
    }
    s->t += !s->skip;
    s->skipped += s->skip;
}

static void cpu_round_weights(dev *work, int type, const dev *w, long n)
{
    cpu_convert(work, type, w, F32, n); /* fp32 needs no rounding */
}

/* A skipped step counts towards giving up only where the scale was at its lowest already. */
static void cpu_scale_loss(const LossScaling *c)
{
    StepState *s = (StepState *)state;
    const double highest = 4294967296.0;
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
        s->loss_scale = scale < 1 ? 1 : scale > highest ? highest : scale;
}

/* ema = decay ema + (1 - decay) w; a chunk at a time, while w is in cache */
static void update_ema(const OptStep *a, const Chunk *c)
{
    if (!a->ema)
        return;
    real decay = (real)a->opt->ema_decay, *e = host(a->ema) + c->offset;
    const real *w = host(a->w) + c->offset;
    for (int i = 0; i < c->n; i++)
        e[i] = decay * e[i] + (1 - decay) * w[i];
}

static void cpu_adam(const OptStep *a)
{
    const OptConfig *o = a->opt;
    const Chunk *chunks = (const Chunk *)a->chunks;
    if (state->skip)
        return;
    double lr = state->lr, c1 = 1 - pow(o->beta1, state->t), c2 = 1 - pow(o->beta2, state->t);
    real b1 = (real)o->beta1, b2 = (real)o->beta2, eps = (real)o->eps;
    real a1 = (real)(1 - o->beta1), a2 = (real)(1 - o->beta2); /* 1 - 0.999f is off by 1e-5 */
    real step = (real)(lr / c1), root2 = (real)(1 / sqrt(c2)),
         gscale = (real)(state->clip / state->loss_scale);
#pragma omp parallel for schedule(static)
    for (int k = 0; k < a->n; k++) {
        const Chunk *c = &chunks[k];
        double wd = c->flags & CHUNK_DECAY ? o->weight_decay : 0;
        real keep = o->kind == OPT_ADAMW ? (real)(1 - lr * wd) : 1,
             l2 = o->kind == OPT_ADAM ? (real)wd : 0;
        real *w = host(a->w) + c->offset, *m = host(a->exp_avg) + c->offset, *v = host(a->exp_avg_sq) + c->offset;
        const real *grad = host(a->grad) + c->offset;
#pragma omp simd
        for (int i = 0; i < c->n; i++) {
            real g = gscale * grad[i] + l2 * w[i];
            m[i] = b1 * m[i] + a1 * g;
            v[i] = b2 * v[i] + a2 * g * g;
            real root = DOUBLE ? (real)sqrt((double)v[i]) : (real)sqrtf((float)v[i]);
            w[i] = keep * w[i] - step * m[i] / (root * root2 + eps);
        }
        update_ema(a, c);
    }
}

static void cpu_sgd(const OptStep *a)
{
    const OptConfig *o = a->opt;
    const Chunk *chunks = (const Chunk *)a->chunks;
    if (state->skip)
        return;
    real lr = (real)state->lr, gscale = (real)(state->clip / state->loss_scale);
    real momentum =
        state->t > 1 ? (real)o->momentum : 0; /* the buffer starts as the first gradient */
#pragma omp parallel for schedule(static)
    for (int k = 0; k < a->n; k++) {
        const Chunk *c = &chunks[k];
        real wd = c->flags & CHUNK_DECAY ? (real)o->weight_decay : 0;
        real *w = host(a->w) + c->offset, *m = host(a->exp_avg) + c->offset;
        const real *grad = host(a->grad) + c->offset;
#pragma omp simd
        for (int i = 0; i < c->n; i++) {
            m[i] = momentum * m[i] + gscale * grad[i] + wd * w[i];
            w[i] -= lr * m[i];
        }
        update_ema(a, c);
    }
}

static void cpu_lamb_direction(const OptStep *a)
{
    const OptConfig *o = a->opt;
    const Chunk *chunks = (const Chunk *)a->chunks;
    if (state->skip)
        return;
    real c1 = (real)(1 / (1 - pow(o->beta1, state->t))),
         c2 = (real)(1 / (1 - pow(o->beta2, state->t)));
    real a1 = (real)(1 - o->beta1), a2 = (real)(1 - o->beta2);
    real b1 = (real)o->beta1, b2 = (real)o->beta2, gscale = (real)(state->clip / state->loss_scale);
#pragma omp parallel for schedule(static)
    for (int k = 0; k < a->n; k++) {
        const Chunk *c = &chunks[k];
        real wd = c->flags & CHUNK_DECAY ? (real)o->weight_decay : 0;
        real *w = host(a->w) + c->offset, *m = host(a->exp_avg) + c->offset, *v = host(a->exp_avg_sq) + c->offset;
        real *u = host(a->grad) + c->offset;
        for (int i = 0; i < c->n; i++) {
            real g = gscale * u[i];
            m[i] = b1 * m[i] + a1 * g;
            v[i] = b2 * v[i] + a2 * g * g;
            u[i] = m[i] * c1 / ((real)sqrt((double)(v[i] * c2)) + (real)o->eps) + wd * w[i];
        }
        host(a->norms)[k] = (real)chunk_squares(w, c->n);
        host(a->norms)[a->n + k] = (real)chunk_squares(u, c->n);
    }
}

static void cpu_lamb_apply(const OptStep *a)
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
        real lr = (real)(state->lr * (trust ? sqrt(ww) / sqrt(uu) : 1));
#pragma omp parallel for schedule(static)
        for (int i = k; i < end; i++) {
            const Chunk *c = &chunks[i];
            real *w = host(a->w) + c->offset;
            const real *u = host(a->grad) + c->offset;
            for (int j = 0; j < c->n; j++)
                w[j] -= lr * u[j];
            update_ema(a, c);
        }
        k = end;
    }
}

/* ------------------------------------------------------------------------------------------------
 * Start-up */

void backend_cpu_reexec(char **argv)
{
    machine_restart(argv, openblas_get_corename());
}

static void cpu_init(const Device *d)
{
    if (d->type != F32 || d->tf32)
        die_usage("leave --precision out, or build for a GPU",
                  "the CPU computes in fp32 alone; it has no other --precision");
    if (d->ranks > 1)
        die_usage("leave --gpus and the launcher out", "the CPU backend is one process");
    if (d->threads > 0)
        omp_set_num_threads(d->threads);
    openblas_set_num_threads(omp_get_max_threads());
}

static void cpu_algorithms(const char *path, bool save)
{
    (void)path;
    (void)save;
}

static double cpu_peak_flops(void)
{
    return 0;
}

static double cpu_busy(void)
{
    return -1;
}

static void cpu_describe(char *out, size_t size)
{
    char model[128];
    machine_cpu(model, sizeof model);
    char version[32] = "";
    sscanf(openblas_get_config(), "OpenBLAS %31s", version);
    snprintf(out, size, "%s, %d threads, OpenBLAS %s (%s kernels)", model, omp_get_max_threads(),
             version, openblas_get_corename());
}

const Backend *backend_cpu(void)
{
    static const Backend table = {
        .name = "cpu",
        .asynchronous = false,
        .init = cpu_init,
        .threads = omp_get_max_threads,
        .describe = cpu_describe,
        .peak_flops = cpu_peak_flops,
        .busy = cpu_busy,
        .algorithms = cpu_algorithms,
        .memory_free = machine_memory_free,
        .alloc = cpu_alloc,
        .release = cpu_release,
        .host_alloc = cpu_host_alloc,
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
        .patchify = cpu_patchify,
        .embed_forward = cpu_embed_forward,
        .embed_backward = cpu_embed_backward,
        .residual_norm_forward = cpu_residual_norm_forward,
        .residual_norm_backward = cpu_residual_norm_backward,
        .attention_forward = cpu_attention_forward,
        .attention_backward = cpu_attention_backward,
        .pool_forward = cpu_pool_forward,
        .pool_backward = cpu_pool_backward,
        .loss = cpu_loss,
        .count_large = cpu_count_large,
        .sum_squares = cpu_sum_squares,
        .finish_norm = cpu_finish_norm,
        .adam = cpu_adam,
        .sgd = cpu_sgd,
        .lamb_direction = cpu_lamb_direction,
        .lamb_apply = cpu_lamb_apply,
        .round_weights = cpu_round_weights,
        .scale_loss = cpu_scale_loss,
        .all_reduce = cpu_all_reduce,
        .join = cpu_join,
    };
    return &table;
}
