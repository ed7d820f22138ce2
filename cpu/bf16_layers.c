/* bf16_layers.c - everything between the matrix products except attention, on 16-bit tensors:
 * patches, embedding, residual step and norm, norms of heads, pooling, loss.
 *
 * Formulas and shapes are in backend.h, and the ops are the oracle's: a row becomes floats that
 * stay in the L1 cache, and is rounded once, where it is stored. So memory bounds them all. What
 * follows a result that is stored is made of it as it is stored, as on a GPU: the norm of the
 * stream, sums of a gradient. Sums over rows are in the oracle's order.
 */
#include "cpu/bf16_ops.h"
#include "cpu/loss.h"
#include "cpu/patches.h"

#include <math.h>

/* A parameter that an op reads; NULL stays NULL. */
static const uint16_t *halves(const dev *p)
{
    return (const uint16_t *)p;
}

/* Row r of x, [n], as floats in `to`, which is returned */
static float *read_row(float *to, Tensor x, long r, long n)
{
    bf16_to_floats(to, bf16_row(x, r), n);
    return to;
}

/* x [n] to row r of y; x becomes what y has. */
static void write_row(Tensor y, long r, float *x, long n)
{
    bf16_from_floats(bf16_row(y, r), x, n);
    bf16_to_floats(x, bf16_row(y, r), n);
}

/* y += x, [n] */
static inline void add_to(float *y, const float *x, long n)
{
#pragma omp simd
    for (long j = 0; j < n; j++)
        y[j] += x[j];
}

/* ------------------------------------------------------------------------------------------------
 * Patches and embedding */

void bf16_patchify(const Patchify *a)
{
    const Patches p = patches_of(a, bf16_state);
    const long n = VIT_CHANNELS * a->P * a->P;
#pragma omp parallel for schedule(static)
    for (int i = 0; i < p.rows; i++) {
        uint16_t *out = bf16_row(a->out, i);
        real x[n];
        patches_row(x, &p, i);
#pragma omp simd
        for (long j = 0; j < n; j++)
            out[j] = bf16_from_real(x[j]);
    }
}

void bf16_embed_forward(const Embed *a)
{
    int T = a->T, C = a->C, Np = T - a->cls_tokens;
#pragma omp parallel for schedule(static)
    for (int r = 0; r < a->B * T; r++) {
        int b = r / T, t = r % T, patch = t - a->cls_tokens;
        float x[C], pos[C];
        bf16_to_floats(x,
                       patch < 0 ? halves(a->cls) + (long)t * C
                                 : bf16_row(a->patches, (long)b * Np + patch),
                       C);
        if (a->pos) {
            bf16_to_floats(pos, halves(a->pos) + (long)t * C, C);
            add_to(x, pos, C);
        }
        bf16_drop_row(x, C, r, T, &a->drop);
        bf16_from_floats(bf16_row(a->x, r), x, C);
    }
}

/* A thread takes one t for all images, so that it alone adds to dpos[t]. dbias is a sum over dpos:
 * each patch's row of dpos has been summed over the images. */
void bf16_embed_backward(const Embed *a)
{
    int T = a->T, C = a->C, Np = T - a->cls_tokens;
    float *sums = (float *)(a->pos ? a->pos : a->cls);
#pragma omp parallel for schedule(static)
    for (int t = 0; t < T; t++) {
        float *dpos = sums + (long)t * C, dx[C];
        memset(dpos, 0, (size_t)C * sizeof(float));
        for (int b = 0; b < a->B; b++) {
            long r = (long)b * T + t;
            read_row(dx, a->x, r, C);
            if (a->drop.p > 0) {
                bf16_drop_row(dx, C, r, T, &a->drop);
                write_row(a->x, r, dx, C);
            }
            add_to(dpos, dx, C);
            if (t >= a->cls_tokens)
                memcpy(bf16_row(a->patches, (long)b * Np + t - a->cls_tokens), bf16_row(a->x, r),
                       (size_t)C * sizeof(uint16_t));
        }
        if (t < a->cls_tokens && a->pos) /* the same sum: both are added to every image's row t */
            memcpy((float *)a->cls + (long)t * C, dpos, (size_t)C * sizeof(float));
    }
    if (!a->dbias)
        return;
    float *dbias = (float *)a->dbias;
    memset(dbias, 0, (size_t)C * sizeof(float));
    for (int t = a->cls_tokens; t < T; t++)
        add_to(dbias, sums + (long)t * C, C);
}

/* ------------------------------------------------------------------------------------------------
 * Residual step and LayerNorm */

/* mean = sum(x) / n, rstd = 1 / sqrt(sum((x - mean)^2) / n + eps), for x [n], in two passes */
static void moments(const float *x, long n, double eps, float *mean, float *rstd)
{
    float s = 0, q = 0;
#pragma omp simd reduction(+ : s)
    for (long j = 0; j < n; j++)
        s += x[j];
    float mu = s / (float)n;
#pragma omp simd reduction(+ : q)
    for (long j = 0; j < n; j++)
        q += (x[j] - mu) * (x[j] - mu);
    *mean = mu;
    *rstd = 1 / sqrtf(q / (float)n + (float)eps);
}

/* y = (x - mean) * rstd * gamma + beta, all [n]; y may be x. */
static void normalise(float *y, const float *x, long n, float mean, float rstd, const float *gamma,
                      const float *beta)
{
#pragma omp simd
    for (long j = 0; j < n; j++)
        y[j] = (x[j] - mean) * rstd * gamma[j] + beta[j];
}

/* x = s * ls * drop(x), row r of a branch, [C]; ls NULL: 1 */
static void scale_branch(float *x, const ResidualNorm *a, const float *ls, long r)
{
    float s = bf16_path_scale(r / a->tokens, &a->path);
#pragma omp simd
    for (int j = 0; j < a->C; j++)
        x[j] *= s;
    for (int j = 0; ls && j < a->C; j++)
        x[j] *= ls[j];
    bf16_drop_row(x, a->C, r, a->tokens, &a->drop);
}

/* The floats of a vector of parameters in `room`; NULL where there is none */
static const float *parameters(float *room, const dev *p, long n)
{
    if (p)
        bf16_to_floats(room, halves(p), n);
    return p ? room : NULL;
}

void bf16_residual_norm_forward(const ResidualNorm *a)
{
    int C = a->C;
    bool scaled = a->ls || a->drop.p > 0 || a->path.p > 0;
    float room[3][C];
    const float *gamma = parameters(room[0], a->gamma, C), *beta = parameters(room[1], a->beta, C);
    const float *ls = parameters(room[2], a->ls, C);
#pragma omp parallel for schedule(static)
    for (long r = 0; r < a->rows; r++) {
        float x[C], branch[C], mean, rstd;
        read_row(x, a->x, r, C);
        if (a->branch.p) {
            read_row(branch, a->branch, r, C);
            if (scaled)
                scale_branch(branch, a, ls, r);
            add_to(x, branch, C);
            write_row(a->x_out, r, x, C);
        }
        if (!gamma)
            continue;
        moments(x, C, a->eps, &mean, &rstd);
        ((float *)a->mean)[r] = mean;
        ((float *)a->rstd)[r] = rstd;
        normalise(x, x, C, mean, rstd, gamma, beta);
        bf16_from_floats(bf16_row(a->y, r), x, C);
    }
}

/* LayerNorm's gradient of one row [n], with xhat = (x - mean) * rstd and the means over the row:
 *   dx     += rstd * (dy gamma - mean(dy gamma) - xhat mean(dy gamma xhat))
 *   dgamma += dy xhat,  dbeta += dy
 * x becomes xhat, and dy becomes dy gamma. */
static void norm_gradient(float *dx, float *x, float *dy, const float *gamma, float mean,
                          float rstd, long n, float *dgamma, float *dbeta)
{
    float s1 = 0, s2 = 0;
#pragma omp simd reduction(+ : s1, s2)
    for (long j = 0; j < n; j++) {
        float xhat = (x[j] - mean) * rstd, d = dy[j] * gamma[j];
        s1 += d;
        s2 += d * xhat;
        dgamma[j] += dy[j] * xhat;
        dbeta[j] += dy[j];
        x[j] = xhat;
        dy[j] = d;
    }
    s1 /= (float)n;
    s2 /= (float)n;
#pragma omp simd
    for (long j = 0; j < n; j++)
        dx[j] += rstd * (dy[j] - s1 - x[j] * s2);
}

/* The column sums of one group of rows */
typedef struct {
    float *dgamma, *dbeta, *dbias, *dls;
} NormSums;

/* Row r: dx += LayerNorm'(dy), dbranch = s * ls * drop(dx) of the dx that is not yet rounded. */
static void residual_gradient_row(const ResidualNorm *a, long r, const float *gamma,
                                  const float *ls, const NormSums *sum)
{
    int C = a->C;
    float dx[C], x[C], dy[C];
    if (gamma && (a->fresh == 1 || (a->fresh && r % a->fresh)))
        memset(dx, 0, sizeof dx);
    else
        read_row(dx, a->dx, r, C);
    const float *stored = dx; /* what dbias sums */
    if (gamma) {
        norm_gradient(dx, read_row(x, a->x, r, C), read_row(dy, a->dy, r, C), gamma,
                      ((float *)a->mean)[r], ((float *)a->rstd)[r], C, sum->dgamma, sum->dbeta);
        bf16_from_floats(bf16_row(a->dx, r), dx, C);
    }
    if (a->dls) { /* the same mask and path, applied to the branch instead */
        scale_branch(read_row(x, a->branch, r, C), a, NULL, r);
#pragma omp simd
        for (int j = 0; j < C; j++)
            sum->dls[j] += dx[j] * x[j];
    }
    if (a->dbranch.p) {
        scale_branch(dx, a, ls, r);
        write_row(a->dbranch, r, dx, C);
    } else if (gamma && a->dbias) {
        stored = read_row(x, a->dx, r, C);
    }
    if (a->dbias)
        add_to(sum->dbias, stored, C);
}

void bf16_residual_norm_backward(const ResidualNorm *a)
{
    int C = a->C;
    long size = (long)BF16_GROUPS * C; /* of one matrix of partial sums; there are four */
    float *partial = bf16_group_sums(4, C), room[2][C];
    const float *gamma = parameters(room[0], a->gamma, C), *ls = parameters(room[1], a->ls, C);
#pragma omp parallel for schedule(static)
    for (int g = 0; g < BF16_GROUPS; g++) {
        float *at = partial + (long)g * C;
        const NormSums sum = {at, at + size, at + 2 * size, at + 3 * size};
        for (long r = bf16_group_begin(a->rows, g); r < bf16_group_begin(a->rows, g + 1); r++)
            residual_gradient_row(a, r, gamma, ls, &sum);
    }
    bf16_sum_groups(gamma ? a->dgamma : NULL, partial, C);
    bf16_sum_groups(gamma ? a->dbeta : NULL, partial + size, C);
    bf16_sum_groups(a->dbias, partial + 2 * size, C);
    bf16_sum_groups(a->dls, partial + 3 * size, C);
}

/* ------------------------------------------------------------------------------------------------
 * Norms of heads */

void bf16_head_norm_forward(const HeadNorm *a)
{
    int hs = a->hs, C = a->heads * hs;
    float room[2][hs];
    const float *gamma = parameters(room[0], a->gamma, hs),
                *beta = parameters(room[1], a->beta, hs);
#pragma omp parallel for schedule(static)
    for (int r = 0; r < a->rows; r++) {
        float x[C], mean, rstd;
        memcpy(bf16_row(a->input, r), bf16_row(a->x, r), (size_t)C * sizeof(uint16_t));
        read_row(x, a->x, r, C);
        for (float *head = x; head < x + C; head += hs) {
            moments(head, hs, a->eps, &mean, &rstd);
            normalise(head, head, hs, mean, rstd, gamma, beta);
        }
        bf16_from_floats(bf16_row(a->x, r), x, C);
    }
}

/* LayerNorm's gradient of each head of row r, in place of the gradient of what came out */
static void head_norm_gradient_row(const HeadNorm *a, long r, const float *gamma, float *dgamma,
                                   float *dbeta)
{
    int hs = a->hs, C = a->heads * hs;
    float dy[C], x[C], dx[C], mean, rstd;
    read_row(dy, a->x, r, C);
    read_row(x, a->input, r, C);
    memset(dx, 0, sizeof dx);
    for (int j = 0; j < C; j += hs) {
        moments(x + j, hs, a->eps, &mean, &rstd);
        norm_gradient(dx + j, x + j, dy + j, gamma, mean, rstd, hs, dgamma, dbeta);
    }
    bf16_from_floats(bf16_row(a->x, r), dx, C);
}

void bf16_head_norm_backward(const HeadNorm *a)
{
    int hs = a->hs;
    float *partial = bf16_group_sums(2, hs), room[hs];
    const float *gamma = parameters(room, a->gamma, hs);
#pragma omp parallel for schedule(static)
    for (int g = 0; g < BF16_GROUPS; g++) {
        float *dgamma = partial + (long)g * hs, *dbeta = dgamma + (long)BF16_GROUPS * hs;
        for (long r = bf16_group_begin(a->rows, g); r < bf16_group_begin(a->rows, g + 1); r++)
            head_norm_gradient_row(a, r, gamma, dgamma, dbeta);
    }
    bf16_sum_groups(a->dgamma, partial, hs);
    bf16_sum_groups(a->dbeta, partial + (long)BF16_GROUPS * hs, hs);
}

/* ------------------------------------------------------------------------------------------------
 * Pooling, loss, counting */

void bf16_pool_forward(const Pool *a)
{
    float inv = 1 / (float)(a->end - a->first);
#pragma omp parallel for schedule(static)
    for (int b = 0; b < a->B; b++) {
        float y[a->C], x[a->C];
        memset(y, 0, sizeof y);
        for (int t = a->first; t < a->end; t++)
            add_to(y, read_row(x, a->x, (long)b * a->T + t, a->C), a->C);
        for (int j = 0; j < a->C; j++)
            y[j] *= inv;
        bf16_from_floats(bf16_row(a->y, b), y, a->C);
    }
}

/* An image's gradient is rounded once and copied to all of its tokens. */
void bf16_pool_backward(const Pool *a)
{
    size_t bytes = (size_t)a->C * sizeof(uint16_t);
    float inv = 1 / (float)(a->end - a->first);
#pragma omp parallel for schedule(static)
    for (int b = 0; b < a->B; b++) {
        float dy[a->C];
        uint16_t share[a->C];
        read_row(dy, a->y, b, a->C);
        for (int j = 0; j < a->C; j++)
            dy[j] *= inv;
        bf16_from_floats(share, dy, a->C);
        for (int t = 0; t < a->T; t++) {
            uint16_t *dx = bf16_row(a->x, (long)b * a->T + t);
            if (t >= a->first && t < a->end)
                memcpy(dx, share, bytes);
            else if (!a->beside)
                memset(dx, 0, bytes);
        }
    }
}

void bf16_loss(const Loss *a)
{
    int K = a->K;
#pragma omp parallel for schedule(static)
    for (int b = 0; b < a->B; b++) {
        const uint16_t *logits = bf16_row(a->logits, b);
        uint16_t *dlogits = a->dlogits.p ? bf16_row(a->dlogits, b) : NULL;
        real z[K], dz[K];
        for (int k = 0; k < K; k++)
            z[k] = bf16_to_real(logits[k]);
        loss_of_image(a, bf16_state, b, z, dlogits ? dz : NULL);
        for (int k = 0; dlogits && k < K; k++)
            dlogits[k] = bf16_from_real(dz[k]);
    }
}

/* Magnitudes of bf16 are in the order of their bits, and NaN's are above all others. The largest
 * that is not beyond 0.125 * 65504 = 8188 is 8160. */
void bf16_count_large(Tensor x, int rows, int cols)
{
    enum { BITS_8160 = 0x45FF };
    StepState *s = (StepState *)bf16_state;
    long large = 0;
#pragma omp parallel for schedule(static) reduction(+ : large)
    for (long r = 0; r < rows; r++)
        for (int j = 0; j < cols; j++)
            large += (bf16_row(x, r)[j] & 0x7FFF) > BITS_8160;
    s->large += (uint64_t)large;
    s->counted += (uint64_t)rows * (uint64_t)cols;
}
