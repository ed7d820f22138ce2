/* linear.h - linear layers, forward and backward, and their activations. */
#pragma once

#include "test/ops/formulas.h"

static double act(double x, int kind)
{
    if (kind == ACT_GELU)
        return 0.5 * x * erfc(-x / sqrt(2));
    if (kind == ACT_GELU_TANH)
        return 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x * x * x)));
    if (kind == ACT_QUICK_GELU)
        return x / (1 + exp(-1.702 * x));
    return kind == ACT_TANH ? tanh(x) : x;
}

static double act_slope(double x, int kind)
{
    double t = tanh(sqrt(2 / pi) * (x + 0.044715 * x * x * x));
    if (kind == ACT_GELU)
        return 0.5 * erfc(-x / sqrt(2)) + x * exp(-0.5 * x * x) / sqrt(2 * pi);
    if (kind == ACT_GELU_TANH)
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * sqrt(2 / pi) * (1 + 3 * 0.044715 * x * x);
    if (kind == ACT_QUICK_GELU) {
        double s = 1 / (1 + exp(-1.702 * x));
        return s + 1.702 * x * s * (1 - s);
    }
    return kind == ACT_TANH ? 1 - tanh(x) * tanh(x) : 1;
}

/* Of ACT_SWIGLU, silu(gate) * value, the slope of silu, which is x / (1 + e^-x). */
static double silu_slope(double x)
{
    double s = 1 / (1 + exp(-x));
    return s + x * s * (1 - s);
}

/* How many columns a layer's product has for each of its outputs: a gate and a value, or one. */
static int halves(int kind)
{
    return kind == ACT_SWIGLU ? 2 : 1;
}

/* The activation of the sums s[halves]. */
static double act_of(const double *s, int kind)
{
    return kind == ACT_SWIGLU ? s[0] / (1 + exp(-s[0])) * s[1] : act(s[0], kind);
}

typedef struct {
    int rows, in, out, act, tokens, pad;
    bool bias, pre, residual, accumulate;
    double drop;
    bool big; /* on full devices alone */
} LinearCase;

static const LinearCase linear_cases[] = {
    {1, 1, 1, ACT_NONE, 1, 0, 0, 0, 0, 0, 0, 0},
    {1, 192, 10, ACT_NONE, 1, 0, 1, 0, 0, 0, 0, 0},
    {8, 64, 10, ACT_NONE, 1, 0, 1, 0, 0, 0, 0, 0},
    {197, 48, 144, ACT_NONE, 197, 0, 1, 0, 0, 0, 0, 0},
    {197, 192, 64, ACT_NONE, 197, 0, 1, 0, 1, 0, 0, 0},
    {2, 64, 192, ACT_NONE, 1, 640, 1, 0, 1, 1, 0, 0},
    {257, 81, 10, ACT_NONE, 257, 7, 0, 0, 1, 0, 0, 0},
    {2 * 257, 33, 47, ACT_NONE, 257, 3, 1, 0, 1, 1, 0, 0},
    {300, 24, 24, ACT_NONE, 100, 40, 0, 0, 0, 1, 0, 0},
    {2 * 197, 31, 65, ACT_NONE, 197, 1, 1, 0, 1, 0, 0.1, 0},
    {2 * 197, 64, 67, ACT_GELU, 197, 0, 1, 1, 0, 0, 0, 0},
    {257, 96, 128, ACT_GELU, 257, 0, 1, 1, 0, 0, 0, 0},
    {197, 64, 96, ACT_GELU_TANH, 197, 8, 1, 1, 0, 0, 0, 0},
    {3 * 65, 48, 321, ACT_GELU, 65, 5, 1, 1, 1, 0, 0.2, 0},
    {257, 16, 300, ACT_GELU, 257, 9, 0, 0, 0, 0, 0, 0},
    {300, 80, 37, ACT_GELU_TANH, 300, 3, 1, 1, 0, 0, 0.5, 0},
    {3, 80, 10, ACT_GELU_TANH, 1, 0, 1, 0, 1, 0, 0, 0},
    {5, 192, 50, ACT_TANH, 1, 0, 1, 1, 0, 0, 0, 0},
    {33, 17, 19, ACT_TANH, 11, 11, 0, 1, 1, 0, 0.3, 0},
    {2 * 65, 64, 67, ACT_QUICK_GELU, 65, 0, 1, 1, 0, 0, 0, 0},
    {3 * 33, 40, 80, ACT_QUICK_GELU, 33, 8, 1, 1, 1, 0, 0.2, 0},
    {65, 17, 33, ACT_QUICK_GELU, 13, 3, 0, 0, 0, 0, 0.5, 0},
    {1, 1, 1, ACT_SWIGLU, 1, 0, 1, 1, 0, 0, 0, 0},
    {197, 64, 96, ACT_SWIGLU, 197, 8, 1, 1, 0, 0, 0, 0},
    {3 * 65, 33, 47, ACT_SWIGLU, 65, 5, 1, 1, 1, 0, 0.2, 0},
    {2 * 33, 20, 28, ACT_SWIGLU, 33, 0, 0, 1, 1, 0, 0.5, 0},
    {2 * 40, 72, 136, ACT_SWIGLU, 40, 16, 1, 1, 1, 0, 0.3, 0},
    /* packs of 16 bytes everywhere, and no multiple of a tile's size: products of our own */
    {3 * 129, 136, 264, ACT_GELU, 129, 16, 1, 1, 0, 0, 0, 0},
    {2 * 129, 72, 392, ACT_GELU_TANH, 129, 32, 1, 0, 0, 0, 0, 0},
    {2 * 197, 264, 520, ACT_NONE, 197, 16, 1, 0, 1, 1, 0, 0},
    {3 * 257, 192, 384, ACT_GELU, 257, 0, 1, 1, 0, 0, 0, 1},
    {3 * 197, 384, 192, ACT_NONE, 197, 0, 1, 0, 1, 0, 0, 1},
};

/* Wider than a block of any backend's products, and with sums longer than one of its steps */
static const LinearCase wide_cases[] = {
    {50, 24, 1600, ACT_GELU, 25, 3, 1, 1, 0, 0, 0.2, 0},
    {50, 820, 40, ACT_GELU_TANH, 25, 5, 1, 1, 1, 0, 0.2, 0},
    {40, 24, 800, ACT_SWIGLU, 20, 8, 1, 1, 1, 0, 0.3, 0},
    {40, 800, 24, ACT_SWIGLU, 20, 0, 1, 1, 0, 0, 0.3, 0},
    /* a weight gradient whose wider operand a CPU of two cores packs in two parts */
    {2800, 800, 3, ACT_NONE, 28, 0, 1, 0, 0, 0, 0, 0},
};

/* Eight orders of roundings: the activation of the exact sum, as a fused epilogue has it, or of the
 * one in memory; what follows it, of the exact activation or of the one in memory; and all that for
 * a bias that is added to the exact product, or to the one in memory. */
static void linear_forward(const LinearCase *c, bool kept)
{
    begin(PRODUCT, "linear_forward %dx%dx%d act %d", c->rows, c->in, c->out, c->act);
    Drop d = drop_of(c->drop, RNG_MLP_DROPOUT, 2);
    int columns = halves(c->act) * c->out; /* of the product */
    Mat *x = mat("x", IN, c->rows, c->in, c->pad), *w = mat("w", IN, columns, c->in, c->pad / 2);
    Mat *bias = vec("bias", IN, c->bias * columns), *y = mat("y", OUT, c->rows, c->out, c->pad);
    Mat *pre = mat("pre", OUT, c->pre * c->rows, columns, c->pad + c->pad / 2);
    Mat *residual = mat("residual", IN, c->residual * c->rows, c->out, 2 * c->pad);
    rescale(w, 1 / sqrt(c->in), 0);
    be->linear_forward(&(LinearForward){tensor(y), tensor(x), tensor(w), pointer(bias), c->rows,
                                        c->in, c->out, c->act, tensor(pre), tensor(residual), d,
                                        c->tokens, kept});
    int n = ways(y, 8), n_pre = ways(pre, 2);
    for (long i = 0; i < (long)c->rows * c->out; i++) {
        long r = i / c->out, o = i % c->out;
        double factor = drop_factor(d, r / c->tokens, whole(r % c->tokens, o, c->out)), xw[2];
        for (int h = 0; h < halves(c->act); h++) {
            long j = h * c->out + o;
            xw[h] = dot(x->v + r * c->in, 1, w->v + j * c->in, 1, c->in);
            for (int k = 0; pre && k < n_pre; k++)
                pre->way[k][r * columns + j] =
                    (k ? rounded(xw[h]) : xw[h]) + (bias ? bias->v[j] : 0);
        }
        for (int k = 0; k < n; k++) {
            double s[2];
            for (int h = 0; h < halves(c->act); h++) {
                s[h] = (k & 4 ? rounded(xw[h]) : xw[h]) + (bias ? bias->v[h * c->out + o] : 0);
                s[h] = k & 1 ? rounded(s[h]) : s[h];
            }
            double t = act_of(s, c->act);
            y->way[k][i] = (k & 2 ? rounded(t) : t) * factor + (residual ? residual->v[i] : 0);
        }
    }
    finish(GEMM);
}

/* Two orders of roundings: the product may go through memory before the slope, the mask or the sum
 * that it is added to. */
static void linear_backward_input(const LinearCase *c)
{
    int n_dx = halves(c->act) * c->in; /* columns */
    begin(PRODUCT, "linear_backward_input %dx%dx%d act %d", c->rows, c->in, c->out, c->act);
    Drop d = drop_of(c->drop, RNG_MLP_DROPOUT, 2);
    Mat *dx = mat("dx", c->accumulate ? INOUT : OUT, c->rows, n_dx, c->pad);
    Mat *dy = mat("dy", IN, c->rows, c->out, c->pad / 2),
        *w = mat("w", IN, c->out, c->in, 2 * c->pad);
    Mat *dbias = real_vec("dbias", OUT, c->bias * n_dx);
    Mat *pre = mat("pre", IN, c->act ? c->rows : 0, n_dx, c->pad + c->pad / 2);
    be->linear_backward_input(&(LinearBackwardInput){tensor(dx), tensor(dy), tensor(w), c->rows,
                                                     c->in, c->out, c->act, tensor(pre),
                                                     pointer(dbias), d, c->tokens, c->accumulate});
    int n = ways(dx, 2);
    for (long i = 0; i < (long)c->rows * c->in; i++) {
        long r = i / c->in, j = i % c->in;
        double s = dot(dy->v + r * c->out, 1, w->v + j, c->in, c->out), before = dx->v[i];
        double slope[2] = {1};
        if (c->act == ACT_SWIGLU) {
            const double *gate = &pre->v[r * n_dx + j];
            slope[0] = gate[c->in] * silu_slope(gate[0]);
            slope[1] = gate[0] / (1 + exp(-gate[0]));
        } else if (pre) {
            slope[0] = act_slope(pre->v[i], c->act);
        }
        for (int h = 0; h < halves(c->act); h++) {
            slope[h] *= drop_factor(d, r / c->tokens, whole(r % c->tokens, j, c->in));
            for (int k = 0; k < n; k++)
                dx->way[k][r * n_dx + h * c->in + j] =
                    (k ? rounded(s) : s) * slope[h] + (c->accumulate ? before : 0);
        }
    }
    sum_columns(dbias, dx);
    finish(GEMM);
}

static void linear_backward_weight(const LinearCase *c)
{
    begin(PRODUCT, "linear_backward_weight %dx%dx%d", c->rows, c->in, c->out);
    Mat *dw = real_vec("dw", OUT, (long)c->out * c->in), *x = mat("x", IN, c->rows, c->in, c->pad);
    Mat *dy = mat("dy", IN, c->rows, c->out, 2 * c->pad);
    Mat *dbias = real_vec("dbias", OUT, c->bias * c->out);
    be->linear_backward_weight(&(LinearBackwardWeight){pointer(dw), pointer(dbias), tensor(dy),
                                                       tensor(x), c->rows, c->in, c->out});
    for (long i = 0; i < (long)c->out * c->in; i++)
        dw->v[i] = dot(dy->v + i / c->in, c->out, x->v + i % c->in, c->in, c->rows);
    sum_columns(dbias, dy);
    finish(GEMM);
}

/* What linear_forward made, made again of `pre`: the same bits. */
static void activate(const LinearCase *c)
{
    begin(PLAIN, "activate %dx%d act %d", c->rows, c->out, c->act);
    Drop d = drop_of(c->drop, RNG_MLP_DROPOUT, 2);
    int columns = halves(c->act) * c->out; /* of the product */
    Mat *x = mat("x", IN, c->rows, c->in, c->pad), *w = mat("w", IN, columns, c->in, c->pad / 2);
    Mat *bias = vec("bias", IN, c->bias * columns), *y = mat("y", SCRATCH, c->rows, c->out, c->pad);
    Mat *pre = mat("pre", SCRATCH, c->rows, columns, c->pad);
    Mat *again = mat("y again", OUT, c->rows, c->out, c->pad + 3);
    rescale(w, 1 / sqrt(c->in), 0);
    LinearForward a = {.y = y->t,
                       .x = x->t,
                       .w = w->t,
                       .bias = pointer(bias),
                       .rows = c->rows,
                       .in = c->in,
                       .out = c->out,
                       .act = c->act,
                       .pre = pre->t,
                       .drop = d,
                       .tokens = c->tokens};
    be->linear_forward(&a);
    a.y = again->t;
    a.x = a.w = a.residual = (Tensor){.p = NULL};
    a.bias = NULL;
    be->activate(&a);
    pull(y, y->v);
    pull(pre, pre->v);
    pull(again, again->v);
    long n = (long)c->rows * c->out, differ = 0;
    for (long i = 0; i < n; i++) {
        long r = i / c->out;
        double factor = drop_factor(d, r / c->tokens, whole(r % c->tokens, i % c->out, c->out));
        differ += again->v[i] != y->v[i];
        const double *s = &pre->v[r * columns + i % c->out];
        again->v[i] = act_of((double[]){s[0], s[columns - c->out]}, c->act) * factor;
    }
    CHECK(differ == 0, "%s %s: %ld of %ld elements are not those of linear_forward", under.name,
          title, differ, n);
    finish(GEMM);
}

/* y = the activation, or its slope, of the numbers x: they are the bias of a product that is zero,
 * so that an infinity arrives whole. ACT_SWIGLU: x are n gates and n values, pre is scratch. */
static void act_alone(int kind, bool slope, int n, const Mat *x, const Mat *pre, const Mat *y)
{
    int both = halves(kind) * n;
    Mat *one = vec("one", IN, 1), *w = mat("w", IN, slope ? 1 : both, slope ? n : 1, 0);
    rescale(w, 0, slope);
    rescale(one, 0, 1);
    if (slope)
        be->linear_backward_input(&(LinearBackwardInput){.dx = y->t,
                                                         .dy = one->t,
                                                         .w = w->t,
                                                         .rows = 1,
                                                         .in = n,
                                                         .out = 1,
                                                         .act = kind,
                                                         .pre = x->t,
                                                         .tokens = 1});
    else
        be->linear_forward(&(LinearForward){.y = y->t,
                                            .x = one->t,
                                            .w = w->t,
                                            .bias = pointer(x),
                                            .rows = 1,
                                            .in = 1,
                                            .out = n,
                                            .act = kind,
                                            .pre = tensor(pre),
                                            .tokens = 1});
}

/* An activation or its slope over a sweep and at extremes, against libm; errors of values beyond 1
 * are relative. The slope of tanh GELU holds x^3 (1 - tanh^2), which magnifies tanh's rounding
 * fourfold. 16-bit types may miss by one ulp more. ACT_SWIGLU's gates are the sweep, and its values
 * 1: of its slopes, those in the second half are silu itself. */
static void activation(int kind, bool slope)
{
    static const double ends[] = {1e4, -1e4, 1e3, -1e3, 88, -88, 1e-30, -1e-30, 0, -0.0, INFINITY};
    enum { SWEEP = 20001 };
    int n = SWEEP + COUNT(ends) - slope; /* no slope at infinity */
    int both = halves(kind) * n;
    begin(PLAIN, "%s %d over a sweep", slope ? "slope" : "activation", kind);
    absolute = slope ? 4e-6 : 1e-6;
    Mat *x = vec("sweep", IN, both), *y = vec("y", OUT, slope ? both : n);
    Mat *pre = vec("pre", SCRATCH, slope ? 0 : both);
    for (int i = n; i < both; i++)
        x->v[i] = 1;
    for (int i = 0; i < n; i++)
        x->v[i] = i < SWEEP ? (i - SWEEP / 2) * 2e-3 + 1e-5 : ends[i - SWEEP];
    push(x);
    act_alone(kind, slope, n, x, both > n ? pre : NULL, y);
    for (int i = 0; i < n; i++) {
        y->v[i] = slope ? act_slope(x->v[i], kind) : act(x->v[i], kind);
        double silu = act_of((double[]){x->v[i], 1}, ACT_SWIGLU);
        if (both > n)
            y->v[i] = slope ? silu_slope(x->v[i]) : silu;
        if (both > n && slope)
            y->v[n + i] = silu;
    }
    finish(EXACT);
}

/* GELU by erf of every finite number of a 16-bit type, before it is rounded: not a tenth of an ulp
 * from what it is (and where it is all but zero, not 1e-9, of the slope 1e-6). */
static void every_gelu(bool slope)
{
    static double x[1 << 16], got[1 << 16];
    int n = 0;
    if (!is_half(under.type))
        return;
    for (long bits = 0; bits < 1 << 16; bits++) {
        double v = get(&(uint16_t){(uint16_t)bits}, under.type, 0);
        if (isfinite(v))
            x[n++] = v;
    }
    begin(PLAIN, "%s of every number", slope ? "gelu'" : "gelu");
    Mat *pre = vec("pre", IN, n), *y = vec("y", OUT, n);
    memcpy(pre->v, x, (size_t)n * sizeof *x);
    push(pre);
    act_alone(ACT_GELU, slope, n, pre, NULL, y);
    pull(y, got);
    double worst = -INFINITY, at = 0;
    for (int i = 0; i < n; i++) {
        y->v[i] = slope ? act_slope(x[i], ACT_GELU) : act(x[i], ACT_GELU);
        double miss = fabs(got[i] - y->v[i]) - 0.6 * ulp(under.type, y->v[i]);
        if (!(miss <= worst))
            worst = miss, at = x[i];
    }
    CHECK(worst <= (slope ? 1e-6 : 1e-9), "%s %s: off by %.2e more than 0.6 ulp at %g", under.name,
          title, worst, at);
    finish(EXACT);
}
