/* losses.h - pooling and the losses. */
#pragma once

#include "test/mats.h"

typedef struct {
    int B, T, C, first, end, pad;
    bool second, beside; /* y is the second of two in a row; the other tokens are left alone */
} PoolCase;

static const PoolCase pool_cases[] = {
    {1, 197, 80, 1, 197, 0, 0, 0}, {3, 65, 17, 0, 65, 5, 0, 0}, {2, 257, 24, 8, 257, 3, 0, 0},
    {3, 50, 48, 0, 1, 0, 0, 0},    {3, 50, 48, 1, 2, 0, 1, 1},  {4, 37, 33, 2, 30, 3, 1, 0},
    {2, 65, 40, 1, 65, 8, 1, 1},   {5, 9, 7, 3, 8, 0, 1, 1},
};

static void pool(const PoolCase *c, bool backward)
{
    begin(PLAIN, "pool_%s B %d T %d first %d end %d", backward ? "backward" : "forward", c->B, c->T,
          c->first, c->end);
    long C = c->C, from = c->second * C, ld = from + C;
    Mat *y = mat("y", backward ? IN : INOUT, c->B, ld, c->pad);
    Mat *x = mat("x", !backward ? IN : c->beside ? INOUT : OUT, (long)c->B * c->T, C, 2 * c->pad);
    Pool a = {y->t, x->t, c->B, c->T, c->C, c->first, c->end, c->beside};
    a.y.p = dev_at(a.y.p, from, a.y.type);
    (backward ? be->pool_backward : be->pool_forward)(&a);
    for (long i = 0; i < c->B * ld; i++) {
        double *column = x->v + i / ld * c->T * C + i % ld - from,
               share = 1.0 / (c->end - c->first);
        if (i % ld < from) {
            y->v[i] = backward ? y->v[i] : NAN;
            continue;
        }
        if (!backward)
            y->v[i] = dot(column + c->first * C, C, &share, 0, c->end - c->first);
        for (long t = 0; backward && t < c->T; t++) {
            bool pooled = t >= c->first && t < c->end;
            column[t * C] = pooled ? y->v[i] * share : c->beside ? NAN : 0;
        }
    }
    finish(EXACT);
}

enum { SOFT, ONE_HOT, TIES, EXTREME, NOT_FINITE };
typedef struct {
    int kind, B, K, inputs, pad;
    bool dlogits;
    double loss_scale;
} LossCase;

static const LossCase loss_cases[] = {
    {LOSS_SOFTMAX, 1, 10, SOFT, 0, 1, 1},        {LOSS_SOFTMAX, 37, 1000, SOFT, 3, 1, 1024},
    {LOSS_SOFTMAX, 65, 10, ONE_HOT, 1, 1, 1},    {LOSS_SOFTMAX, 200, 10, TIES, 0, 0, 1},
    {LOSS_SOFTMAX, 64, 3, TIES, 5, 1, 1},        {LOSS_SOFTMAX, 33, 10, EXTREME, 0, 1, 1},
    {LOSS_SOFTMAX, 30, 10, NOT_FINITE, 2, 1, 1}, {LOSS_SOFTMAX, 5, 1, SOFT, 0, 1, 1},
    {LOSS_SIGMOID, 1, 10, SOFT, 0, 1, 1},        {LOSS_SIGMOID, 37, 100, ONE_HOT, 3, 1, 1024},
    {LOSS_SIGMOID, 200, 10, TIES, 0, 0, 1},      {LOSS_SIGMOID, 33, 10, EXTREME, 1, 1, 1},
    {LOSS_SIGMOID, 30, 10, NOT_FINITE, 0, 1, 1}, {LOSS_SOFTMAX, 30, 3, NOT_FINITE, 0, 1, 1},
    {LOSS_SOFTMAX, 3, 21843, SOFT, 0, 1, 4096},  {LOSS_SIGMOID, 2, 5001, SOFT, 0, 1, 1},
    {LOSS_SOFTMAX, 300, 8, SOFT, 8, 1, 1},
};

/* Logits and targets of sample b, from numbers drawn. Not finite: one logit is NaN, inf or -inf
 * (the sigmoid's is NaN); in every other sample it is the label's. */
static void loss_inputs(const LossCase *c, long b, double *z, double *y)
{
    double sum = 0, bad[] = {NAN, INFINITY, -INFINITY};
    for (int k = 0; k < c->K; k++) {
        z[k] = c->inputs == TIES || c->inputs == EXTREME ? round(z[k]) : 3 * z[k];
        z[k] *= c->inputs == EXTREME ? 1e4 : 1;
        y[k] = c->inputs == SOFT ? fabs(y[k]) : (k + 3 * b) % c->K == 0;
        sum += y[k];
        if (c->inputs == NOT_FINITE && (b % 2 ? y[k] > 0 : k == b / 3 % c->K))
            z[k] = bad[c->kind == LOSS_SIGMOID ? 0 : b % 3];
    }
    for (int k = 0; c->inputs == SOFT && c->kind == LOSS_SOFTMAX && k < c->K; k++)
        y[k] /= sum;
}

static void loss_row(const LossCase *c, const double *z, const double *y, double *dz, double *stats)
{
    double top = -INFINITY, sum = 0, loss = 0, mass = 0;
    bool softmax = c->kind == LOSS_SOFTMAX;
    int label = 0, above = 0;
    for (int k = 0; k < c->K; k++) {
        top = fmax(top, z[k]);
        mass += y[k];
        label = y[k] > y[label] ? k : label;
    }
    for (int k = 0; k < c->K; k++)
        sum += exp(z[k] - top); /* NaN where any logit is NaN or +inf */
    for (int k = 0; k < c->K; k++) {
        double p = softmax ? exp(z[k] - top) / sum * mass : 1 / (1 + exp(-z[k]));
        if (softmax)
            loss += y[k] > 0 ? y[k] * (top + log(sum) - z[k]) : 0;
        else
            loss += fmax(z[k], 0) - z[k] * y[k] + log1p(exp(-fabs(z[k])));
        dz[k] = finite_or_not(0.3 * c->loss_scale * (p - y[k]));
        above += k != label && (z[k] >= z[label] || isnan(z[k]));
    }
    stats[0] = finite_or_not(loss);
    stats[1] = isfinite(z[label]) && above < 1;
    stats[2] = isfinite(z[label]) && above < 5;
}

static void loss(const LossCase *c)
{
    begin(PLAIN, "loss %d B %d K %d inputs %d", c->kind, c->B, c->K, c->inputs);
    long K = c->K;
    Mat *logits = mat("logits", IN, c->B, K, c->pad);
    Mat *targets = mat_of(F32, "targets", IN, c->B, K, 0);
    Mat *dlogits = mat("dlogits", OUT, c->dlogits * c->B, K, 2 * c->pad);
    Mat *stats = mat_of(F32, "stats", OUT, st.sample0 + c->B + 2, 3, 0); /* rows of the step */
    for (long b = 0; b < c->B; b++)
        loss_inputs(c, b, logits->v + b * K, targets->v + b * K);
    push(logits);
    push(targets);
    st.loss_scale = c->loss_scale;
    send_state();
    be->loss(&(Loss){tensor(logits), tensor(dlogits), pointer(targets), pointer(stats), c->B, c->K,
                     c->kind, 0.3});
    for (long b = 0; b < c->B; b++) {
        double dz[K];
        loss_row(c, logits->v + b * K, targets->v + b * K, dz, stats->v + 3 * (st.sample0 + b));
        if (dlogits)
            memcpy(dlogits->v + b * K, dz, sizeof dz);
    }
    finish(EXACT);
}
