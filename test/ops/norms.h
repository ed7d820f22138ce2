/* norms.h - a residual step with its norm; norms of heads. */
#pragma once

#include "test/ops/formulas.h"

/* ---- residual step and norm ---- */

typedef struct {
    int B, tokens, C, pad;
    bool branch, norm, ls;
    double drop, path, mean; /* mean: of the residual stream's rows */
} NormCase;

static const NormCase norm_cases[] = {
    {1, 1, 1, 0, 1, 1, 0, 0, 0, 0},        {1, 197, 192, 0, 0, 1, 0, 0, 0, 0},
    {2, 257, 80, 0, 1, 1, 0, 0, 0, 30},    {3, 65, 7, 5, 1, 1, 1, 0, 0, 0},
    {2, 197, 33, 3, 1, 1, 1, 0.2, 0.4, 0}, {9, 11, 64, 1, 1, 0, 0, 0.1, 0.5, 0},
    {9, 5, 24, 1, 1, 0, 1, 0, 0.3, 0},     {5, 1, 100, 300, 1, 1, 0, 0.5, 0, 0},
    {2, 31, 16, 0, 1, 0, 0, 0, 0, 0},      {1, 257, 768, 0, 1, 1, 0, 0, 0, 0},
    {2, 50, 128, 128, 1, 1, 1, 0.1, 0, 3}, {2, 2, 1024, 0, 1, 1, 0, 0, 0, 0},
    {1, 3, 1408, 8, 1, 1, 1, 0.1, 0, 0},   {2, 2, 1664, 0, 1, 1, 0, 0, 0.5, 1},
    {1, 3, 2048, 0, 0, 1, 0, 0, 0, 0},     {2, 2, 5120, 0, 1, 1, 1, 0.2, 0.3, 0},
    {1, 3, 1025, 0, 1, 1, 1, 0, 0, 0},     {65, 3, 8, 0, 1, 1, 1, 0.1, 0.2, 0},
    {3, 11, 2051, 3, 1, 1, 1, 0.1, 0.2, 0}, {1, 7, 2500, 1, 1, 0, 1, 0, 0, 0},
};

/* What the element of the branch at (row r, channel j) is multiplied with; `ls` may be NULL. */
static double branch_factor(const ResidualNorm *a, const Mat *ls, long r, long j)
{
    long sample = r / a->tokens, t = r % a->tokens;
    double factor = drop_factor(a->path, sample, 0) * drop_factor(a->drop, sample, t * a->C + j);
    return ls ? factor * ls->v[j] : factor;
}

static void moments(const double *x, long C, double eps, double *mean, double *rstd)
{
    double q = 0;
    *mean = dot(x, 1, &(double){1}, 0, C) / (double)C;
    for (long j = 0; j < C; j++)
        q += (x[j] - *mean) * (x[j] - *mean) / (double)C;
    *rstd = 1 / sqrt(q + eps);
}

/* Two orders of roundings: the norm may be that of the stored stream, or of the exact one. */
static void norm_forward(const NormCase *c)
{
    begin(PLAIN, "residual_norm_forward B %d tokens %d C %d", c->B, c->tokens, c->C);
    long rows = (long)c->B * c->tokens, C = c->C, normed = c->norm * rows;
    Mat *x = mat("x", IN, rows, C, c->pad), *ls = vec("ls", IN, c->ls * C);
    Mat *branch = mat("branch", IN, c->branch * rows, C, c->pad / 2);
    Mat *x_out = mat("x_out", OUT, c->branch * rows, C, 2 * c->pad);
    Mat *gamma = vec("gamma", IN, c->norm * C), *beta = vec("beta", IN, c->norm * C);
    Mat *y = mat("y", OUT, normed, C, c->pad);
    Mat *mean = real_vec("mean", OUT, normed), *rstd = real_vec("rstd", OUT, normed);
    for (long i = 0; i < rows * C; i++)
        x->v[i] = i < C ? 2 : x->v[i] + c->mean; /* a first row without variance */
    push(x);
    ResidualNorm a = {.x = tensor(x),
                      .x_out = tensor(x_out),
                      .branch = tensor(branch),
                      .y = tensor(y),
                      .gamma = pointer(gamma),
                      .beta = pointer(beta),
                      .mean = pointer(mean),
                      .rstd = pointer(rstd),
                      .ls = pointer(ls),
                      .drop = drop_of(c->drop, RNG_PROJ_DROPOUT, 3),
                      .path = drop_of(c->path, RNG_ATTN_PATH, 3),
                      .eps = 1e-5,
                      .rows = (int)rows,
                      .C = c->C,
                      .tokens = c->tokens};
    be->residual_norm_forward(&a);
    int n = x_out ? ways(y, 2) : 1;
    if (y)
        mean->sums = rstd->sums = ways(mean, n) > 1 && ways(rstd, n) > 1;
    for (long i = 0; x_out && i < rows * C; i++)
        x_out->v[i] = x->v[i] + branch_factor(&a, ls, i / C, i % C) * branch->v[i];
    for (long r = 0; r < normed; r++)
        for (int k = 0; k < n; k++) {
            double stream[C], *mu = &mean->way[k][r], *rs = &rstd->way[k][r];
            for (long j = 0; j < C; j++) {
                double s = x_out ? x_out->v[r * C + j] : x->v[r * C + j];
                stream[j] = k ? rounded(s) : s;
            }
            moments(stream, C, a.eps, mu, rs);
            for (long j = 0; j < C; j++)
                y->way[k][r * C + j] = (stream[j] - *mu) * *rs * gamma->v[j] + beta->v[j];
        }
    finish(EXACT);
}

/* With n = (x - mean) rstd and d = dy gamma: dx += rstd (d - mean(d) - n mean(d n)),
 * dgamma += dy n, dbeta += dy, one row */
static void norm_row(const Mat *const m[4], long r, double *dx, double *dgamma, double *dbeta)
{
    const double *x = m[0]->v, *dy = m[1]->v, *gamma = m[2]->v;
    long C = m[0]->cols;
    double n[C], d[C], mean, mean_d = 0, mean_dn = 0, rstd = m[3]->v[r];
    moments(x + r * C, C, 0, &mean, &(double){0});
    for (long j = 0; j < C; j++) {
        n[j] = (x[r * C + j] - mean) * rstd;
        d[j] = dy[r * C + j] * gamma[j];
        mean_d += d[j] / (double)C;
        mean_dn += d[j] * n[j] / (double)C;
        dgamma[j] = (r ? dgamma[j] : 0) + dy[r * C + j] * n[j];
        dbeta[j] = (r ? dbeta[j] : 0) + dy[r * C + j];
    }
    for (long j = 0; j < C; j++)
        dx[r * C + j] += rstd * (d[j] - mean_d - n[j] * mean_dn);
}

/* Two orders of roundings: what follows dx may be made of the stored one, or of the exact one. Rows
 * of dx that are fresh hold no numbers before. */
static void norm_backward(const NormCase *c, int fresh)
{
    begin(PLAIN, "residual_norm_backward B %d tokens %d C %d fresh %d", c->B, c->tokens, c->C,
          fresh);
    long rows = (long)c->B * c->tokens, C = c->C, normed = c->norm * rows, normed_C = c->norm * C;
    bool changed = c->drop > 0 || c->path > 0 || c->ls; /* else dbranch is dx and not wanted */
    Mat *x = mat("x", IN, rows, C, c->pad), *branch = mat("branch", IN, rows, C, c->pad / 2);
    Mat *dx = mat("dx", c->norm ? INOUT : IN, rows, C, c->pad);
    Mat *dy = mat("dy", IN, normed, C, c->pad);
    Mat *dbranch = mat("dbranch", OUT, changed * rows, C, 2 * c->pad);
    Mat *ls = vec("ls", IN, c->ls * C), *dls = real_vec("dls", OUT, c->ls * C);
    Mat *gamma = vec("gamma", IN, normed_C), *dbias = real_vec("dbias", OUT, c->branch * C);
    Mat *dgamma = real_vec("dgamma", OUT, normed_C), *dbeta = real_vec("dbeta", OUT, normed_C);
    Mat *mean = real_vec("mean", IN, normed), *rstd = real_vec("rstd", IN, normed);
    for (long r = 0; r < normed; r++)
        moments(x->v + r * C, C, 1e-2, &mean->v[r], &rstd->v[r]);
    for (long i = 0; fresh && i < rows * C; i++)
        dx->v[i] = i / C % fresh || fresh == 1 ? NAN : dx->v[i];
    push(dx);
    for (long i = 0; fresh && i < rows * C; i++)
        dx->v[i] = isnan(dx->v[i]) ? 0 : dx->v[i];
    if (mean)
        push(mean);
    if (rstd)
        push(rstd);
    ResidualNorm a = {.x = tensor(x),
                      .branch = tensor(branch),
                      .gamma = pointer(gamma),
                      .mean = pointer(mean),
                      .rstd = pointer(rstd),
                      .ls = pointer(ls),
                      .drop = drop_of(c->drop, RNG_FC2_DROPOUT, 1),
                      .path = drop_of(c->path, RNG_MLP_PATH, 1),
                      .rows = (int)rows,
                      .C = c->C,
                      .tokens = c->tokens,
                      .dy = tensor(dy),
                      .dx = tensor(dx),
                      .dbranch = tensor(dbranch),
                      .dgamma = pointer(dgamma),
                      .dbeta = pointer(dbeta),
                      .dls = pointer(dls),
                      .dbias = pointer(dbias),
                      .fresh = fresh};
    be->residual_norm_backward(&a);
    int n = ways(dbranch, c->norm ? 2 : 1);
    if (dls)
        dls->sums = ways(dls, n) > 1;
    for (long r = 0; r < normed; r++)
        norm_row((const Mat *const[]){x, dy, gamma, rstd}, r, dx->v, dgamma->v, dbeta->v);
    for (long i = 0; i < rows * C; i++)
        for (int k = 0; k < n; k++) {
            long r = i / C, j = i % C;
            double d = k ? rounded(dx->v[i]) : dx->v[i];
            if (dbranch)
                dbranch->way[k][i] = branch_factor(&a, ls, r, j) * d;
            d *= branch_factor(&a, NULL, r, j) * branch->v[i];
            if (dls)
                dls->way[k][j] = (r ? dls->way[k][j] : 0) + d;
        }
    sum_columns(dbias, dbranch ? dbranch : dx);
    finish(EXACT);
}

/* ---- norms of heads ---- */

typedef struct {
    int rows, heads, hs, part, pad; /* part: 0: queries, 1: keys, of rows of q, k and v */
    double mean;
} HeadNormCase;

static const HeadNormCase head_norm_cases[] = {
    {1, 1, 1, 0, 0, 0},    {197, 3, 64, 0, 0, 0}, {2 * 197, 3, 64, 1, 0, 0}, {65, 2, 80, 1, 8, 30},
    {33, 3, 17, 1, 5, 0},  {3, 1, 128, 0, 0, 0},  {21, 2, 127, 1, 3, 0},     {40, 5, 20, 1, 0, 3},
    {700, 2, 8, 0, 16, 0}, {50, 4, 5, 1, 1, 0},   {19, 2, 33, 0, 0, 0},      {129, 6, 104, 1, 8, 0},
};

/* In place: x has the queries or keys within longer rows, of which the rest must be left alone. The
 * first head has no variance. Backward: norm_row's formulas, of each head. */
static void head_norm(const HeadNormCase *c, bool backward)
{
    begin(PLAIN, "head_norm_%s rows %d heads %d hs %d part %d", backward ? "backward" : "forward",
          c->rows, c->heads, c->hs, c->part);
    long hs = c->hs, C = c->heads * hs, first = c->part * C;
    Mat *x = mat("x", INOUT, c->rows, 3 * C, c->pad);
    Mat *input = mat("input", backward ? IN : OUT, c->rows, C, 2 * c->pad);
    Mat *gamma = vec("gamma", IN, hs), *beta = vec("beta", IN, backward ? 0 : hs);
    Mat *dgamma = real_vec("dgamma", OUT, backward * hs);
    Mat *dbeta = real_vec("dbeta", OUT, backward * hs);
    for (long i = 0; i < c->rows * C; i++) {
        double *v = backward ? &input->v[i] : &x->v[i / C * 3 * C + first + i % C];
        *v = i < hs ? 2 : *v + c->mean;
    }
    push(backward ? input : x);
    HeadNorm a = {.x = tensor(x),
                  .input = tensor(input),
                  .gamma = pointer(gamma),
                  .beta = pointer(beta),
                  .dgamma = pointer(dgamma),
                  .dbeta = pointer(dbeta),
                  .eps = 1e-2,
                  .rows = c->rows,
                  .heads = c->heads,
                  .hs = c->hs};
    a.x.p = dev_at(a.x.p, first, a.x.type);
    (backward ? be->head_norm_backward : be->head_norm_forward)(&a);
    for (long i = 0; i < c->rows * 3 * C; i++)
        if (i % (3 * C) < first || i % (3 * C) >= first + C)
            x->v[i] = NAN;
    for (long i = 0; i < c->rows * c->heads; i++) {
        double *v = &x->v[i / c->heads * 3 * C + first + i % c->heads * hs],
               *in = &input->v[i * hs];
        double n[hs], mean, rstd, mean_g = 0, mean_gn = 0;
        if (!backward)
            memcpy(in, v, (size_t)hs * sizeof *in);
        moments(in, hs, a.eps, &mean, &rstd);
        for (long j = 0; j < hs; j++) {
            n[j] = (in[j] - mean) * rstd;
            mean_g += v[j] * gamma->v[j] / (double)hs;
            mean_gn += v[j] * gamma->v[j] * n[j] / (double)hs;
            if (backward) {
                dgamma->v[j] = (i ? dgamma->v[j] : 0) + v[j] * n[j];
                dbeta->v[j] = (i ? dbeta->v[j] : 0) + v[j];
            }
        }
        for (long j = 0; j < hs; j++)
            v[j] = backward ? rstd * (v[j] * gamma->v[j] - mean_g - n[j] * mean_gn)
                            : n[j] * gamma->v[j] + beta->v[j];
    }
    finish(EXACT);
}
