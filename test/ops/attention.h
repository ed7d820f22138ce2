/* attention.h - attention, forward and backward, and its softmax over a sweep. */
#pragma once

#include "test/ops/formulas.h"

#include <float.h>

typedef struct {
    int B, T, Tq, heads, hs, pad;
    double drop;
    int spread; /* > 0: q and k are integers up to this: saturated, with exact logits; < 0: that q
                   and the negative of that k, so that every logit is far below 0 */
    bool big;   /* on full devices alone */
    bool bare;  /* without dbias */
} AttentionCase;

static const AttentionCase attention_cases[] = {
    {1, 1, 1, 1, 16, 0, 0, 0, 0, 0},        {1, 197, 197, 3, 64, 0, 0, 0, 0, 0},
    {2, 197, 1, 3, 64, 0, 0, 0, 0, 0},      {1, 257, 257, 2, 80, 5, 0.1, 0, 1, 0},
    {2, 300, 300, 1, 24, 3, 0, 0, 1, 0},    {1, 300, 1, 2, 80, 1, 0.3, 0, 0, 0},
    {3, 65, 65, 3, 24, 0, 0.5, 0, 0, 0},    {2, 197, 8, 2, 16, 7, 0.2, 0, 0, 0},
    {1, 513, 300, 1, 16, 0, 0, 0, 1, 0},    {1, 50, 50, 2, 1, 1, 0, 0, 0, 0},
    {1, 197, 197, 2, 16, 0, 0, 9, 0, 0},    {1, 257, 257, 1, 64, 0, 0, 300, 0, 0},
    {1, 65, 65, 2, 88, 0, 0, 0, 0, 0},      {1, 70, 70, 1, 104, 0, 0.1, 0, 0, 0},
    {2, 33, 33, 1, 128, 8, 0, 0, 0, 0},     {1, 97, 97, 3, 20, 4, 0, 0, 0, 0},
    {1, 50, 1, 2, 104, 0, 0, 0, 0, 0},      {1, 64, 64, 1, 32, 0, 0, 0, 0, 0},
    {1, 66, 66, 2, 80, 0, 0, 0, 0, 0},      {1, 128, 128, 1, 64, 0, 0.2, 0, 0, 0},
    {1, 20, 7, 2, 128, 0, 0, 0, 0, 0},      {1, 197, 197, 2, 88, 0, 0, 0, 1, 0},
    {1, 257, 257, 2, 104, 0, 0.1, 0, 1, 0}, {1, 257, 257, 1, 128, 0, 0, 0, 1, 0},
    {1, 40, 40, 2, 48, 0, 0, 0, 0, 0},      {2, 16, 16, 2, 72, 0, 0, 0, 0, 0},
    {1, 37, 37, 2, 16, 0, 0, -40, 0, 0},    {1, 33, 33, 1, 32, 1, 0.9, 0, 0, 0},
    {40, 5, 5, 2, 24, 0, 0.1, 0, 0, 0},     {2, 37, 37, 2, 24, 3, 0.1, 0, 0, 1},
    {3, 50, 1, 2, 64, 0, 0, 0, 0, 1},       {1, 208, 208, 2, 64, 8, 0.2, 0, 0, 0},
    {4, 66, 66, 3, 80, 8, 0, 0, 0, 0},      {1, 257, 257, 3, 80, 0, 0, 0, 0, 0},
    {3, 130, 1, 3, 88, 0, 0.2, 0, 0, 0},    {1, 209, 150, 1, 104, 0, 0.1, 0, 0, 0},
    {1, 70, 70, 1, 72, 0, 0, -12, 0, 1},    {1, 272, 272, 1, 104, 0, 0, 0, 1, 0},
    {2, 273, 273, 2, 72, 0, 0, 0, 0, 0},    {1, 321, 321, 5, 88, 0, 0.1, 0, 0, 0},
    {3, 290, 1, 3, 104, 0, 0.2, 0, 0, 0},   {1, 390, 129, 1, 80, 8, 0, 0, 0, 1},
    {1, 641, 641, 1, 64, 0, 0.1, 0, 0, 0},  {1, 1408, 20, 1, 16, 0, 0, 0, 0, 0},
    {1, 97, 97, 2, 112, 0, 0.1, 0, 0, 0},   {1, 280, 200, 1, 128, 0, 0.2, 0, 0, 0},
    {3, 290, 65, 3, 40, 8, 0, 0, 0, 0},     {2, 704, 16, 1, 64, 0, 0, 9, 0, 1},
    {1, 274, 200, 5, 16, 0, 0, 0, 0, 0},
};

/* One query row's place: image b, head h, row i; its q, k and v start at these offsets in qkv. */
typedef struct {
    long b, h, i, q, k, v, out, lse;
} Query;

static Query query(const Attention *a, long n)
{
    long C = a->heads * a->hs, b = n / a->Tq / a->heads, h = n / a->Tq % a->heads, i = n % a->Tq;
    long k = b * a->T * 3 * C + C + h * a->hs;
    return (Query){b, h, i, k - C + i * 3 * C, k, k + C, (b * a->Tq + i) * C + h * a->hs, n};
}

/* Probabilities p [T] and their masks; returns the log of the denominator. */
static double probabilities(const Attention *a, Query y, const double *qkv, double *p, double *mask)
{
    double top = -INFINITY, sum = 0;
    for (long j = 0; j < a->T; j++) {
        p[j] = dot(qkv + y.q, 1, qkv + y.k + j * 3 * a->heads * a->hs, 1, a->hs) / sqrt(a->hs);
        top = fmax(top, p[j]);
        mask[j] = drop_factor(a->drop, y.b, ((cut.first + y.h) * a->T + y.i) * a->T + j);
    }
    for (long j = 0; j < a->T; j++)
        sum += p[j] = exp(p[j] - top);
    for (long j = 0; j < a->T; j++)
        p[j] /= sum;
    return top + log(sum);
}

static void attention_row(const Attention *a, Query y, const double *qkv, double *out, double *lse)
{
    long ld = 3L * a->heads * a->hs;
    double p[a->T], mask[a->T];
    lse[y.lse] = probabilities(a, y, qkv, p, mask);
    for (long j = 0; j < a->T; j++)
        p[j] *= mask[j];
    for (long e = 0; e < a->hs; e++)
        out[y.out + e] = dot(p, 1, qkv + y.v + e, ld, a->T);
}

/* What the backward pass is given, [rows, columns] as the device has it. */
typedef struct {
    const double *qkv, *out, *lse, *dout;
} Saved;

/* A row's share: p = exp(s - lse); dv_j += p m dout; with dp = m (dout . v_j) and D = dout . out,
 * ds = p (dp - D) / sqrt(hs): dq = sum_j ds k_j, dk_j += ds q. lse and out are as they were stored.
 *
 * noise += the squares of what rounding alone makes of dq, dk and dv. dp and D cancel where the
 * softmax is saturated, and what they are rounded by is multiplied by keys and queries of any size.
 * A device that computes p = 2^(s log2 e - lse log2 e) rounds the second product: of an lse of 1e5,
 * to 2^-7. */
static void attention_slope(const Attention *a, Query y, Saved s, double *dqkv, double *noise)
{
    long ld = 3L * a->heads * a->hs;
    const double *dout = s.dout + y.out, *q = s.qkv + y.q;
    double p[a->T], mask[a->T], ds[a->T], D = dot(dout, 1, s.out + y.out, 1, a->hs);
    double eps = sizeof(real) == sizeof(float) ? FLT_EPSILON : DBL_EPSILON;
    double exponent = strcmp(be->name, "cpu") == 0 ? 0 : eps * fabs(s.lse[y.lse]);
    double excess = exp(probabilities(a, y, s.qkv, p, mask) - s.lse[y.lse]);
    for (long j = 0; j < a->T; j++) {
        const double *k = s.qkv + y.k + j * ld, *v = s.qkv + y.v + j * ld;
        double dp = mask[j] * dot(dout, 1, v, 1, a->hs), terms = 0;
        p[j] *= excess;
        ds[j] = p[j] * (dp - D) / sqrt(a->hs);
        for (long e = 0; e < a->hs; e++)
            terms += fabs(dout[e]) * (mask[j] * fabs(v[e]) + fabs(s.out[y.out + e]));
        double off = p[j] * eps * terms / sqrt(a->hs) + exponent * fabs(ds[j]);
        for (long e = 0; e < a->hs; e++) {
            double dv = p[j] * mask[j] * dout[e];
            dqkv[y.k + j * ld + e] += ds[j] * q[e];
            dqkv[y.v + j * ld + e] += dv;
            noise[0] += off * off * k[e] * k[e];
            noise[1] += off * off * q[e] * q[e];
            noise[2] += exponent * exponent * dv * dv;
        }
    }
    for (long e = 0; e < a->hs; e++)
        dqkv[y.q + e] = dot(ds, 1, s.qkv + y.k + e, ld, a->T);
}

/* The gradients of q, k and v are compared each by itself. */
static void attention(const AttentionCase *c, bool backward)
{
    begin(ATTENTION, "attention_%s B %d T %d Tq %d heads %d hs %d spread %d",
          backward ? "backward" : "forward", c->B, c->T, c->Tq, c->heads, c->hs, c->spread);
    if (c->spread < 0) /* rounding dS, whose rows sum to 0, counts twice where keys are not: their
                          mean is 1.7 sigma */
        gate_half *= 2;
    long C = c->heads * c->hs, queries = (long)c->B * c->heads * c->Tq, n = 3 * C * c->B * c->T;
    long few = (long)c->B * c->Tq;
    if (c->hs < 8) /* with few channels rounding averages out less: 2.4e-2 in 20 draws of hs 1 */
        gate_half *= 6;
    if (c->drop >= 0.9) /* three of 33 keys are left: fp16 5.4e-4 in 584 draws, mostly 3.7e-4 */
        gate_half *= 1.25;
    int kind = backward ? INOUT : OUT;
    Mat *qkv = mat("qkv", IN, (long)c->B * c->T, 3 * C, c->pad);
    Mat *lse = real_vec("lse", kind, queries), *delta = real_vec("delta", OUT, backward * queries);
    Mat *out = mat("out", kind, few, C, c->pad),
        *dbias = real_vec("dbias", OUT, backward * !c->bare * 3 * C);
    Mat *dout = mat("dout", IN, backward * few, C, 2 * c->pad);
    Mat *dqkv = mat("dqkv", OUT, backward * (long)c->B * c->T, 3 * C, c->pad / 2);
    for (long i = 0; c->spread && i < n; i++)
        if (i % (3 * C) < 2 * C) {
            double x = round(c->spread * qkv->v[i] / sqrt(3));
            qkv->v[i] = c->spread > 0 ? x : i % (3 * C) < C ? 1 + fabs(x) : -1 - fabs(x);
        }
    for (long i = 0; i < n; i++) /* nobody computes q of the rows beyond Tq */
        if (i % (3 * C) < C && i / (3 * C) % c->T >= c->Tq)
            qkv->v[i] = NAN;
    push(qkv);
    Attention a = {tensor(qkv),   tensor(out),
                   pointer(lse),  pointer(delta),
                   c->B,          c->T,
                   c->Tq,         c->heads,
                   c->hs,         drop_of(c->drop, RNG_ATTN_DROPOUT, 4),
                   tensor(dqkv),  tensor(dout),
                   pointer(dbias)};
    if (!backward)
        be->attention_forward(&a);
    for (long i = 0; i < queries; i++)
        attention_row(&a, query(&a, i), qkv->v, out->v, lse->v);
    if (backward) {
        push(out);
        push(lse);
        out->kind = lse->kind = IN;
        delta->kind = SCRATCH;
        dqkv->parts = 3;
        be->attention_backward(&a);
        for (long i = 0; i < n; i++) /* q's of the rows beyond Tq must not be written */
            dqkv->v[i] = i % (3 * C) < C && i / (3 * C) % c->T >= c->Tq ? NAN : 0;
        Saved saved = {qkv->v, out->v, lse->v, dout->v};
        for (long i = 0; i < queries; i++)
            attention_slope(&a, query(&a, i), saved, dqkv->v, dqkv->noise);
        sum_columns(dbias, dqkv);
        double noise = 0;
        for (int k = 0; k < 3; k++) {
            noise += dqkv->noise[k];
            dqkv->noise[k] = sqrt(dqkv->noise[k]);
        }
        if (!c->bare)
            dbias->noise[0] = sqrt(noise);
    }
    finish(EXACT);
}

/* Two keys, x and 0, with values 1 and 0: the output is the softmax of x, lse its denominator. The
 * 16-bit types round twice, P and the output. */
static void softmax_sweep(void)
{
    static const double ends[] = {1e4, -1e4, 87.5, -87.5, 200, -200};
    enum { SWEEP = 8001 };
    int n = SWEEP + COUNT(ends);
    begin(ATTENTION, "softmax over a sweep");
    absolute = 1e-6, ulps = 2;
    Mat *qkv = mat("qkv", IN, 2 * n, 3, 0), *out = mat("out", OUT, n, 1, 0);
    Mat *lse = real_vec("lse", OUT, n);
    for (int i = 0; i < n; i++) {
        double x = i < SWEEP ? (i - SWEEP / 2) * 0.025 + 1e-4 : ends[i - SWEEP];
        x = under.tf32 ? round(x * 8) / 8 : x; /* that survives the product's rounding */
        memcpy(qkv->v + 6 * i, (double[6]){1, x, 1}, 6 * sizeof(double)); /* q k v of two tokens */
    }
    push(qkv);
    be->attention_forward(&(Attention){.qkv = qkv->t,
                                       .out = out->t,
                                       .lse = pointer(lse),
                                       .B = n,
                                       .T = 2,
                                       .Tq = 1,
                                       .heads = 1,
                                       .hs = 1});
    for (int i = 0; i < n; i++) {
        double x = qkv->v[6 * i + 1];
        out->v[i] = 1 / (1 + exp(-x));
        lse->v[i] = fmax(x, 0) + log1p(exp(-fabs(x)));
    }
    finish(EXACT);
}
