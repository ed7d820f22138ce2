/* test_ops: every op of a Backend against its formula in backend.h, written out naively in double.
 *
 *   test_ops [--backend cpu|cuda] [--type fp32|tf32|bf16|fp16] [--verbose] [seed=N]
 *
 * What a case is, and what its results are held to: test/mats.h; seed: with other numbers. All
 * cases run again and must give the same bits each time: on the CPU with one thread, with two, and
 * with two again, except that OpenBLAS may sum in another order with another number of threads;
 * elsewhere twice. The model made of the ops: test/test_grad.c and test/test_golden.c. Order: the
 * ops in the order of backend.h, then memory and the order of calls, random numbers, main.
 */
#include "mats.h"
#include "util/rng.h"

#include <float.h>

static const double pi = 3.14159265358979323846;

/* The factor of one element, 0 or 1/(1-p), from the definition above Drop in backend.h. */
static double drop_factor(Drop d, long sample, long element)
{
    if (d.p <= 0)
        return 1;
    Philox r = rng_block(st.seed, (uint32_t)(element / 4), st.sample0 + (uint32_t)sample, st.step,
                         d.purpose, d.layer);
    return r.v[element % 4] >= rng_threshold(d.p) ? 1 / (1 - d.p) : 0;
}

/* Which columns (of attention: heads), of how many, a case's matrix has; of = 0: all of them. */
static struct {
    int first, of;
} cut;

static Drop drop_of(double p, int purpose, int layer)
{
    return (Drop){.p = p, .purpose = purpose, .layer = layer, .first = cut.first, .of = cut.of};
}

/* Where (row, column) of a matrix [.., cols] stands in the whole one. */
static long whole(long row, long col, long cols)
{
    return row * (cut.of ? cut.of : cols) + cut.first + col;
}

/* Sum of products of n elements, `sa` and `sb` apart. */
static double dot(const double *a, long sa, const double *b, long sb, long n)
{
    double s = 0;
    for (long i = 0; i < n; i++)
        s += a[i * sa] * b[i * sb];
    return s;
}

/* ------------------------------------------------------------------------------------------------
 * Linear */

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

/* An activation or its slope over a sweep and at extremes, against libm; errors of values beyond 1
 * are relative. The sweep is the bias of a product that is zero, so that an infinity arrives whole.
 * The slope of tanh GELU holds x^3 (1 - tanh^2), which magnifies tanh's rounding fourfold. 16-bit
 * types may miss by one ulp more. ACT_SWIGLU's gates are the sweep, and its values 1: of its
 * slopes, those in the second half are silu itself. */
static void activation(int kind, bool slope)
{
    static const double ends[] = {1e4, -1e4, 1e3, -1e3, 88, -88, 1e-30, -1e-30, 0, -0.0, INFINITY};
    enum { SWEEP = 20001 };
    int n = SWEEP + COUNT(ends) - slope; /* no slope at infinity */
    int both = halves(kind) * n;
    begin(PLAIN, "%s %d over a sweep", slope ? "slope" : "activation", kind);
    absolute = slope ? 4e-6 : 1e-6;
    Mat *one = vec("one", IN, 1), *w = mat("w", IN, slope ? 1 : both, slope ? n : 1, 0);
    Mat *x = vec("sweep", IN, both), *y = vec("y", OUT, slope ? both : n);
    Mat *pre = vec("pre", SCRATCH, slope ? 0 : both);
    for (int i = n; i < both; i++)
        x->v[i] = 1;
    for (int i = 0; i < n; i++)
        x->v[i] = i < SWEEP ? (i - SWEEP / 2) * 2e-3 + 1e-5 : ends[i - SWEEP];
    push(x);
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
                                            .pre = both > n ? pre->t : tensor(NULL),
                                            .tokens = 1});
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
    Mat *one = vec("one", IN, 1), *w = mat("w", IN, slope ? 1 : n, slope ? n : 1, 0);
    Mat *pre = vec("pre", IN, n), *y = vec("y", OUT, n);
    memcpy(pre->v, x, (size_t)n * sizeof *x);
    push(pre);
    rescale(w, 0, slope);
    rescale(one, 0, 1);
    if (slope)
        be->linear_backward_input(&(LinearBackwardInput){.dx = y->t,
                                                         .dy = one->t,
                                                         .w = w->t,
                                                         .rows = 1,
                                                         .in = n,
                                                         .out = 1,
                                                         .act = ACT_GELU,
                                                         .pre = pre->t,
                                                         .tokens = 1});
    else
        be->linear_forward(&(LinearForward){.y = y->t,
                                            .x = one->t,
                                            .w = w->t,
                                            .bias = pointer(pre),
                                            .rows = 1,
                                            .in = 1,
                                            .out = n,
                                            .act = ACT_GELU,
                                            .tokens = 1});
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

/* ------------------------------------------------------------------------------------------------
 * Patches and embedding */

typedef struct {
    int B, H, W, P, pad;
    bool u8;
    int augment; /* 0, MIX or ALL */
} PatchCase;
enum { MIX = 1, ALL };

static const PatchCase patch_cases[] = {
    {1, 32, 32, 4, 0, 1, 0},    {3, 12, 20, 4, 5, 1, MIX}, {2, 9, 15, 3, 0, 0, 0},
    {3, 14, 7, 7, 3, 0, MIX},   {1, 1, 1, 1, 2, 1, 0},     {5, 32, 48, 16, 0, 1, ALL},
    {12, 10, 14, 2, 3, 1, ALL}, {1, 24, 16, 8, 0, 1, ALL}, {5, 16, 24, 8, 0, 0, ALL},
};

/* Boxes in and across patches, to the edges, and the whole image. */
static Rect rect(const PatchCase *c, int k)
{
    int y = k * 3 % c->H, x = k * 5 % c->W;
    if (k == 8)
        return (Rect){0, 0, c->H, c->W};
    if (k % 5 == 4)
        return (Rect){y, x, c->H - y, c->W - x};
    return (Rect){y, x, 1 + (c->H - y) / 2, 1 + (c->W - x) / 3};
}

/* What may be asked for image b, in turn: shares and cut boxes alone and together, and neither;
 * some of the colour maps leave 0..1. The images of floats are only mixed, whatever else is asked
 * for. */
static Augment augment(const PatchCase *c, int b)
{
    static const float lambda[] = {0.3f, 1, 0.85f, 0};
    Augment a = {.lambda = lambda[b % 4], .partner = (2 * b + 2) % c->B};
    if (b % 3 == 2 || b == 1)
        a.cut = rect(c, b + 3);
    if (c->augment < ALL)
        return a;
    a.use_colour = b % 3 != 1;
    for (int i = 0; i < 12; i++)
        a.colour[i] = (float)(i < 9 ? (i % 4 == 0) + 0.3 * draw() : 0.2 * draw());
    a.erase = (b + 1) % 3;
    a.erased = rect(c, b);
    return a;
}

static bool within(Rect r, long y, long x)
{
    return y >= r.y && y - r.y < r.h && x >= r.x && x - r.x < r.w;
}

/* Channel ch at (y, x) of image b of bytes [B,H,W,3], augmented and normalised. */
static double pixel(const Patchify *p, const uint8_t *bytes, const Augment *a, long b, int ch,
                    int y, int x)
{
    const uint8_t *rgb = bytes + ((b * p->H + y) * p->W + x) * 3;
    double v = rgb[ch] / 255.0;
    if (a->use_colour) {
        v = (double)a->colour[9 + ch];
        for (int k = 0; k < 3; k++)
            v += (double)a->colour[3 * ch + k] * rgb[k] / 255;
        v = fmin(fmax(v, 0), 1);
    }
    if (a->erase && within(a->erased, y, x)) {
        Philox r = rng_block(st.seed, (uint32_t)((ch * p->H + y) * p->W + x),
                             st.sample0 + (uint32_t)b, st.step, RNG_ERASE, 0);
        return a->erase == ERASE_ZERO
                   ? 0
                   : sqrt(-2 * log(rng_unit(r.v[0]))) * cos(2 * pi * rng_unit(r.v[1]));
    }
    return (v - p->mean[ch]) / p->std[ch];
}

static void patchify(const PatchCase *c)
{
    begin(PLAIN, "patchify B %d %dx%d patch %d u8 %d augment %d", c->B, c->H, c->W, c->P, c->u8,
          c->augment);
    long gw = c->W / c->P, Np = c->H / c->P * gw, PP = (long)c->P * c->P;
    long pixels = (long)c->H * c->W, n = c->B * pixels * VIT_CHANNELS;
    Mat *images = real_vec("images", IN, n);
    Mat *out = mat("out", OUT, c->B * Np, VIT_CHANNELS * PP, c->pad);
    Augment aug[12];
    uint8_t *bytes = xmalloc((size_t)n);
    dev *bytes_dev = be->alloc((size_t)n), *aug_dev = be->alloc(sizeof aug);
    Patchify a = {tensor(out),
                  c->u8 ? bytes_dev : pointer(images),
                  c->u8,
                  c->augment ? aug_dev : NULL,
                  c->B,
                  c->H,
                  c->W,
                  c->P,
                  {0.485, 0.456, 0.406},
                  {0.229, 0.224, 0.225}};
    for (long i = 0; i < n; i++)
        bytes[i] = (uint8_t)philox(3, (uint32_t)i, 0, 0, 0).v[0];
    for (int b = 0; b < c->B; b++)
        aug[b] = augment(c, b);
    be->upload(bytes_dev, bytes, (size_t)n);
    be->upload(aug_dev, aug, (size_t)c->B * sizeof *aug);
    be->patchify(&a);
    for (long i = 0; i < out->rows * out->cols; i++) {
        long b = i / out->cols / Np, patch = i / out->cols % Np, ch = i % out->cols / PP;
        long y = patch / gw * c->P + i % PP / c->P, x = patch % gw * c->P + i % c->P;
        double v[2] = {0}, lambda = c->augment ? (double)aug[b].lambda : 1;
        if (c->augment && within(aug[b].cut, y, x))
            lambda = 0;
        for (int k = 0; k < (lambda < 1 ? 2 : 1); k++) {
            long image = k ? aug[b].partner : b;
            if (c->u8)
                v[k] = pixel(&a, bytes, c->augment ? &aug[image] : &(Augment){0}, image, (int)ch,
                             (int)y, (int)x);
            else
                v[k] = images->v[(image * VIT_CHANNELS + ch) * pixels + y * c->W + x];
        }
        out->v[i] = lambda * v[0] + (1 - lambda) * v[1];
    }
    finish(EXACT);
    be->release(bytes_dev);
    be->release(aug_dev);
    free(bytes);
}

typedef struct {
    int B, T, cls, C, pad;
    double drop;
    bool dbias, no_pos;
} EmbedCase;

static const EmbedCase embed_cases[] = {
    {1, 197, 1, 48, 0, 0, 1, 0}, {3, 65, 0, 17, 5, 0, 0, 0}, {2, 257, 8, 80, 3, 0.1, 1, 0},
    {5, 2, 1, 7, 0, 0.5, 1, 0},  {9, 1, 1, 24, 48, 0, 0, 1}, {3, 4, 4, 17, 0, 0.3, 0, 1},
};

/* Forward: x = factor (source + pos), the source being a class token or a patch; backward the sums
 * over images of factor dx, where dx may be destroyed: sums of what is then stored, or of what is
 * not yet rounded. */
static void embed(const EmbedCase *c, bool backward)
{
    begin(PLAIN, "embed_%s B %d T %d", backward ? "backward" : "forward", c->B, c->T);
    long Np = c->T - c->cls, first = (long)c->cls * c->C, each = (long)c->T * c->C;
    long n_pos = c->no_pos ? 0 : each;
    int in = backward ? OUT : IN, out = !backward ? OUT : c->drop > 0 ? SCRATCH : IN;
    int type = backward ? F32 : under.type; /* gradients of parameters are real */
    Mat *x = mat("x", out, (long)c->B * c->T, c->C, c->pad);
    Mat *patches = mat("patches", in, c->B * Np, c->C, 2 * c->pad);
    Mat *cls = mat_of(type, "cls", in, 1, first, 0), *pos = mat_of(type, "pos", in, 1, n_pos, 0);
    Mat *dbias = real_vec("dbias", OUT, backward && c->dbias ? c->C : 0);
    Embed a = {tensor(x),      tensor(patches),
               pointer(cls),   pointer(pos),
               pointer(dbias), c->B,
               c->T,           c->cls,
               c->C,           drop_of(c->drop, RNG_EMBED_DROPOUT, 0)};
    (backward ? be->embed_backward : be->embed_forward)(&a);
    int n = backward && is_half(under.type) ? 2 : 1;
    Mat *sums_of[] = {pos, cls};
    for (int j = 0; j < 2; j++)
        if (sums_of[j]) {
            ways(sums_of[j], n);
            sums_of[j]->sums = backward;
        }
    for (long i = 0; i < c->B * each; i++) {
        long b = i / each, e = i % each;
        double factor = drop_factor(a.drop, b, e), dx = factor * x->v[i];
        double *patch = e < first ? NULL : &patches->v[b * Np * c->C + e - first];
        if (!backward)
            x->v[i] = factor * ((patch ? *patch : cls->v[e]) + (pos ? pos->v[e] : 0));
        else if (patch)
            *patch = dx;
        for (int k = 0; backward && k < n; k++) {
            double *sums[] = {pos ? &pos->way[k][e] : NULL, patch ? NULL : &cls->way[k][e]};
            for (int j = 0; j < 2; j++)
                if (sums[j])
                    *sums[j] = (b ? *sums[j] : 0) + (k ? rounded(dx) : dx);
        }
    }
    if (backward)
        sum_columns(dbias, patches);
    finish(EXACT);
}

/* ------------------------------------------------------------------------------------------------
 * Residual step and norm */

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

/* ------------------------------------------------------------------------------------------------
 * Attention */

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

/* ------------------------------------------------------------------------------------------------
 * Norms of heads */

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

/* ------------------------------------------------------------------------------------------------
 * Pooling and loss */

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

/* ------------------------------------------------------------------------------------------------
 * Norms and optimisers */

/* Tensors of a small model: several chunks, one element, all zeros (LAMB's trust ratio is 1), one
 * that is frozen. */
static const struct {
    int n, flags;
    bool zero;
    float rate;
} tensors[] = {{9000, CHUNK_DECAY, 0, 0.75f},     {7, CHUNK_1D, 0, 1}, {4096, CHUNK_DECAY, 0, 1},
               {1, CHUNK_1D | CHUNK_DECAY, 0, 1}, {50, 0, 1, 0.5f},    {301, 0, 0, 0.25f},
               {600, CHUNK_DECAY, 0, 0}};
enum { N_CHUNKS = 9, N = 64 * 226 };
static Chunk chunks[N_CHUNKS];
static dev *chunks_dev;

/* Lay them out with gaps, as a model does, in buffers of N elements. */
static void make_chunks(void)
{
    long offset = 64;
    int k = 0;
    for (int t = 0; t < COUNT(tensors); t++) {
        for (int at = 0; at < tensors[t].n; at += VIT_CHUNK) {
            int left = tensors[t].n - at, n = left < VIT_CHUNK ? left : VIT_CHUNK;
            chunks[k++] = (Chunk){offset + at, n, t, tensors[t].flags, tensors[t].rate};
        }
        offset += (tensors[t].n + 63) / 64 * 64;
    }
    if (k != N_CHUNKS || offset > N)
        die(NULL, "test_ops: wrong sizes of the chunks");
    chunks_dev = be->alloc(sizeof chunks);
    be->upload(chunks_dev, chunks, sizeof chunks);
}

/* The chunk that holds element i, or NULL in a gap, and where it is frozen: nothing may happen. */
static const Chunk *chunk_of(long i)
{
    for (int k = 0; k < N_CHUNKS; k++)
        if (chunks[k].rate > 0 && i >= chunks[k].offset && i < chunks[k].offset + chunks[k].n)
            return &chunks[k];
    return NULL;
}

typedef struct {
    const char *name;
    OptConfig opt; /* kind, beta1, beta2, eps, momentum, weight decay, ema decay */
    uint32_t t;    /* 1: from empty moments */
    bool ema, skip;
    double clip, loss_scale;
} OptCase;

/* As a rank has them that shares the model with others: another has some chunks, and some of its
 * own count elsewhere. */
static void share_chunks(void)
{
    static const bool elsewhere[N_CHUNKS] = {[1] = true, [3] = true, [6] = true};
    for (int k = 0; k < N_CHUNKS; k++)
        if (elsewhere[k])
            chunks[k].offset = chunks[k].n = 0;
        else if (k == 2 || k == 4)
            chunks[k].flags |= CHUNK_COPY;
    be->upload(chunks_dev, chunks, sizeof chunks);
}

/* The sum of squares of chunk k of x [N], where it counts */
static double counted_squares(int k, const double *x)
{
    const double *v = x + chunks[k].offset;
    return chunks[k].flags & CHUNK_COPY || chunks[k].rate == 0 ? 0 : dot(v, 1, v, 1, chunks[k].n);
}

static const OptCase opt_cases[] = {
    {"adamw, first step", {OPT_ADAMW, 0.9, 0.999, 1e-8, 0, 0.05, 0}, 1, 0, 0, 1, 1},
    {"adamw", {OPT_ADAMW, 0.9, 0.95, 1e-3, 0, 0.3, 0.99}, 7, 1, 0, 0.37, 1024},
    {"adam, first step", {OPT_ADAM, 0.9, 0.999, 1e-8, 0, 0.05, 0.9}, 1, 1, 0, 0.5, 1},
    {"adam", {OPT_ADAM, 0.8, 0.99, 1e-6, 0, 0.3, 0}, 1000, 0, 0, 0.37, 8},
    {"adam, an old average", {OPT_ADAM, 0.8, 0.99, 1e-6, 0, 0.3, 0.9}, 1000, 1, 0, 0.37, 8},
    {"sgd, first step", {OPT_SGD, 0, 0, 0, 0.9, 0.1, 0}, 1, 0, 0, 0.5, 1},
    {"sgd", {OPT_SGD, 0, 0, 0, 0.9, 0.1, 0.999}, 2, 1, 0, 0.37, 8},
    {"lamb, first step", {OPT_LAMB, 0.9, 0.999, 1e-6, 0, 0.02, 0}, 1, 0, 0, 1, 1},
    {"lamb", {OPT_LAMB, 0.9, 0.99, 1e-6, 0, 0.02, 0.9}, 7, 1, 0, 0.37, 8},
    {"adamw, skipped", {OPT_ADAMW, 0.9, 0.999, 1e-8, 0, 0.05, 0.9}, 7, 1, 1, 1, 1},
    {"adam, skipped", {OPT_ADAM, 0.9, 0.999, 1e-8, 0, 0.05, 0.9}, 7, 1, 1, 1, 1},
    {"sgd, skipped", {OPT_SGD, 0, 0, 0, 0.9, 0.1, 0.9}, 7, 1, 1, 1, 1},
    {"lamb, skipped", {OPT_LAMB, 0.9, 0.999, 1e-6, 0, 0.05, 0.9}, 7, 1, 1, 1, 1},
};

typedef struct {
    Mat *w, *work, *grad, *m, *v, *ema, *norms; /* work: of 16-bit types alone */
} OptMats;

/* One element's new moments and, without LAMB, weight; LAMB's direction goes to grad. */
static void opt_element(const OptCase *c, const OptMats *a, long i, const Chunk *k)
{
    const OptConfig *o = &c->opt;
    double wd = k->flags & CHUNK_DECAY ? o->weight_decay : 0, lr = st.lr * k->rate;
    double *w = &a->w->v[i], *m = &a->m->v[i], *v = a->v ? &a->v->v[i] : NULL;
    double g = c->clip * a->grad->v[i] / c->loss_scale;
    if (o->kind == OPT_SGD) {
        *m = c->t > 1 ? o->momentum * *m + g + wd * *w : g + wd * *w;
        *w -= lr * *m;
        return;
    }
    if (o->kind == OPT_ADAM)
        g += wd * *w;
    *m = o->beta1 * *m + (1 - o->beta1) * g;
    *v = o->beta2 * *v + (1 - o->beta2) * g * g;
    double mh = *m / (1 - pow(o->beta1, c->t)), vh = *v / (1 - pow(o->beta2, c->t));
    double step = mh / (sqrt(vh) + o->eps);
    if (o->kind == OPT_LAMB)
        a->grad->v[i] = step + wd * *w;
    else
        *w = *w * (o->kind == OPT_ADAMW ? 1 - lr * wd : 1) - lr * step;
}

/* Norms per chunk and tensor, then the step along u, which is in grad */
static void lamb_reference(const OptMats *a)
{
    double ww[COUNT(tensors)] = {0}, uu[COUNT(tensors)] = {0};
    for (int k = 0; k < N_CHUNKS; k++) {
        ww[chunks[k].tensor] += a->norms->v[k] = counted_squares(k, a->w->v);
        uu[chunks[k].tensor] += a->norms->v[N_CHUNKS + k] = counted_squares(k, a->grad->v);
    }
    for (long i = 0; i < N; i++) {
        const Chunk *c = chunk_of(i);
        if (!c)
            continue;
        bool plain = c->flags & CHUNK_1D || ww[c->tensor] == 0 || uu[c->tensor] == 0;
        double ratio = plain ? 1 : sqrt(ww[c->tensor] / uu[c->tensor]);
        a->w->v[i] -= st.lr * c->rate * ratio * a->grad->v[i];
    }
}

/* What the step leaves; the gaps, and everything in a skipped step, must keep their bits. */
static void opt_reference(const OptCase *c, const OptMats *a)
{
    bool lamb = c->opt.kind == OPT_LAMB;
    double decay = fmin(c->opt.ema_decay, (1 + (double)c->t) / (10 + (double)c->t));
    for (long i = 0; !c->skip && i < N; i++) {
        const Chunk *k = chunk_of(i);
        if (k)
            opt_element(c, a, i, k);
    }
    if (lamb && !c->skip)
        lamb_reference(a);
    for (long i = 0; i < N; i++) {
        Mat *all[] = {a->w, a->work, a->m, a->v, a->ema, lamb ? a->grad : NULL};
        if (a->work)
            a->work->v[i] = a->w->v[i];
        if (a->ema)
            a->ema->v[i] = decay * a->ema->v[i] + (1 - decay) * a->w->v[i];
        for (int k = 0; k < COUNT(all); k++)
            if (all[k] && (c->skip || !chunk_of(i)))
                all[k]->v[i] = NAN;
    }
}

static OptMats opt_mats(const OptCase *c)
{
    bool lamb = c->opt.kind == OPT_LAMB, sgd = c->opt.kind == OPT_SGD;
    OptMats a = {real_vec("w", INOUT, N),
                 vec("work", INOUT, is_half(under.type) * N),
                 real_vec("grad", lamb ? INOUT : IN, N),
                 real_vec("m", INOUT, N),
                 real_vec("v", INOUT, !sgd * N),
                 real_vec("ema", INOUT, c->ema * N),
                 real_vec("norms", OUT, lamb * 2 * N_CHUNKS)};
    for (long i = 0; i < N; i++) {
        const Chunk *k = chunk_of(i);
        if (k && tensors[k->tensor].zero)
            a.w->v[i] = 0;
        if (c->skip && i % 5 == 0)
            a.grad->v[i] = i % 2 ? NAN : INFINITY;
        if (c->t == 1 && !sgd)
            a.m->v[i] = 0; /* sgd: whatever was in m */
        if (a.v)
            a.v->v[i] = c->t > 1 ? fabs(a.v->v[i]) : 0;
    }
    push(a.w);
    push(a.m);
    if (a.v)
        push(a.v);
    rescale(a.grad, c->loss_scale, 0);
    return a;
}

/* Moments and average in memory of host_alloc for the time of a step. */
static bool state_on_host;
static void swap_state(OptStep *s)
{
    static dev *elsewhere[3];
    dev **const at[] = {&s->exp_avg, &s->exp_avg_sq, &s->ema};
    const size_t bytes = N * sizeof(real);
    for (int i = 0; i < COUNT(at); i++) {
        dev *here = *at[i], *host = elsewhere[i] ? here : NULL;
        if (!here)
            continue;
        *at[i] = host ? elsewhere[i] : (dev *)be->host_alloc(bytes);
        be->copy(*at[i], here, bytes);
        elsewhere[i] = host ? NULL : here;
        be->wait(be->mark());
        be->host_release(host);
    }
}

static void opt_step(const OptCase *c, const OptMats *a, bool stochastic)
{
    bool lamb = c->opt.kind == OPT_LAMB, sgd = c->opt.kind == OPT_SGD;
    OptStep step = {.opt = &c->opt,
                    .chunks = chunks_dev,
                    .n = N_CHUNKS,
                    .w = pointer(a->w),
                    .work = pointer(a->work ? a->work : a->w),
                    .work_type = under.type,
                    .stochastic = stochastic,
                    .grad = pointer(a->grad),
                    .exp_avg = pointer(a->m),
                    .exp_avg_sq = pointer(a->v),
                    .ema = pointer(a->ema),
                    .norms = pointer(a->norms)};
    st.t = c->t, st.clip = c->clip, st.loss_scale = c->loss_scale, st.skip = c->skip;
    send_state();
    if (state_on_host)
        swap_state(&step);
    (sgd ? be->sgd : lamb ? be->lamb_direction : be->adam)(&step);
    if (lamb)
        be->lamb_apply(&step);
    if (state_on_host)
        swap_state(&step);
}

static void optimiser(const OptCase *c)
{
    begin(PLAIN, "%s%s", c->name, state_on_host ? ", state on the host" : "");
    OptMats a = opt_mats(c);
    opt_step(c, &a, false);
    long bad = 0;
    if (a.work && !c->skip) { /* exactly the nearest to the master weights that the device has */
        double *w = xmalloc(N * sizeof *w), *work = xmalloc(N * sizeof *work);
        pull(a.w, w);
        pull(a.work, work);
        for (long i = 0; i < N; i++)
            bad += chunk_of(i) && work[i] != rounded(w[i]);
        free(w);
        free(work);
    }
    CHECK(bad == 0, "%s %s: %ld working weights are not the nearest", under.name, title, bad);
    opt_reference(c, &a);
    finish(EXACT);
}

/* How often things of probability p happened, against five standard deviations. */
typedef struct {
    double excess, variance;
} Tally;

static void count(Tally *t, bool happened, double p, double weight)
{
    t->excess += weight * (happened - p);
    t->variance += weight * weight * p * (1 - p);
}

static void check_tally(const Tally *t, const char *what)
{
    CHECK(t->variance > 0 && fabs(t->excess) <= 5 * sqrt(t->variance),
          "%s %s, %s: %.1f too many, sigma %.1f", under.name, title, what, t->excess,
          sqrt(t->variance));
}

/* Working weights rounded by chance, 16-bit types alone: always one of the two neighbours, upwards
 * with the probability p of the distance from the lower one; independently of the neighbouring
 * element, of the one four places on and of the step before. (Of numbers of one sign, since
 * rounding may work on magnitudes.) */
static void stochastic_rounding(const OptCase *as_given)
{
    double *w = xmalloc(N * sizeof *w), *work = xmalloc(N * sizeof *work);
    static double p[2][N];
    static bool up[2][N], negative[2][N];
    for (int k = 0; k < 2; k++) {
        Tally all = {0}, slope = {0}, same[3] = {{0}};
        long wrong = 0;
        OptCase case_k = *as_given, *c = &case_k;
        c->t += (uint32_t)k; /* the bits are a function of the update */
        begin(PLAIN, "stochastic rounding, %s", c->name);
        OptMats a = opt_mats(c);
        opt_step(c, &a, true);
        pull(a.w, w);
        pull(a.work, work);
        for (long i = 4; i < N; i++) {
            double u = ulp(under.type, w[i]), low = floor(w[i] / u) * u;
            p[k][i] = (w[i] - low) / u;
            if (!chunk_of(i) || p[k][i] == 0) {
                wrong += chunk_of(i) && work[i] != w[i];
                continue;
            }
            up[k][i] = work[i] > w[i];
            negative[k][i] = w[i] < 0;
            wrong += work[i] != low && work[i] != low + u;
            count(&all, up[k][i], p[k][i], 1);
            count(&slope, up[k][i], p[k][i], p[k][i] - 0.5);
            const struct {
                int pass;
                long i;
            } others[] = {{k, i - 1}, {k, i - 4}, {0, i}};
            for (int j = 0; j < 2 + k; j++) {
                double q = p[others[j].pass][others[j].i];
                bool comparable = chunk_of(i) == chunk_of(i - 4) && q > 0 &&
                                  negative[others[j].pass][others[j].i] == negative[k][i];
                if (comparable)
                    count(&same[j], up[k][i] == up[others[j].pass][others[j].i],
                          p[k][i] * q + (1 - p[k][i]) * (1 - q), 1);
            }
        }
        CHECK(wrong == 0, "%s %s: %ld are no neighbours", under.name, title, wrong);
        check_tally(&all, "went up");
        check_tally(&slope, "in proportion");
        check_tally(&same[0], "as the element before");
        check_tally(&same[1], "as the element four before");
        if (k)
            check_tally(&same[2], "as the step before");
        opt_reference(c, &a); /* the other results are as without chance */
        for (long i = 0; i < N; i++)
            a.work->v[i] = chunk_of(i) ? work[i] : NAN;
        finish(EXACT);
    }
    free(w);
    free(work);
}

static StepState state_now(void)
{
    StepState s;
    be->download(&s, st_dev, sizeof s);
    return s;
}

/* Rounding by chance is a function of the chunk's number and the element's place in it: a rank that
 * has every other chunk alone, elsewhere in its buffer, rounds them as one that has all. */
static void rounding_places(void)
{
    begin(PLAIN, "round_weights");
    Chunk some[N_CHUNKS];
    long at = 64 * 3;
    dev *some_dev = be->alloc(sizeof some);
    Mat *w[] = {real_vec("w", IN, N), real_vec("w of some", IN, N)};
    Mat *work[] = {vec("work", OUT, N), vec("work of some", OUT, N)};
    for (int k = 0; k < N_CHUNKS; k++) {
        some[k] = chunks[k];
        some[k].offset = k % 2 ? 0 : at;
        some[k].n = k % 2 ? 0 : chunks[k].n;
        for (long i = 0; i < some[k].n; i++)
            w[1]->v[at + i] = w[0]->v[chunks[k].offset + i];
        at += (some[k].n + 63) / 64 * 64;
    }
    push(w[1]);
    be->upload(some_dev, some, sizeof some);
    for (int j = 0; j < 2; j++)
        be->round_weights(&(OptStep){.chunks = j ? some_dev : chunks_dev,
                                     .n = N_CHUNKS,
                                     .w = pointer(w[j]),
                                     .work = pointer(work[j]),
                                     .work_type = under.type,
                                     .stochastic = true});
    long wrong = 0, differ = 0, up = 0, frozen = 0;
    pull(work[0], work[0]->v);
    pull(work[1], work[1]->v);
    for (int k = 0; k < N_CHUNKS; k++)
        for (long i = 0; i < chunks[k].n; i++) {
            double x = w[0]->v[chunks[k].offset + i], y = work[0]->v[chunks[k].offset + i];
            wrong += !(fabs(y - x) < ulp(under.type, x) || y == x);
            differ += i < some[k].n && y != work[1]->v[some[k].offset + i];
            up += y != rounded(x);
            frozen += chunks[k].rate == 0 && y != rounded(x);
        }
    CHECK(wrong == 0, "%s %s: %ld are no neighbours", under.name, title, wrong);
    CHECK(differ == 0, "%s %s: %ld depend on the place in the buffer", under.name, title, differ);
    CHECK(frozen == 0, "%s %s: %ld of what is frozen by chance", under.name, title, frozen);
    CHECK(up > N / 8, "%s %s: %ld of %d by chance", under.name, title, up, N);
    finish(EXACT);
    be->release(some_dev);
}

/* sum_squares and finish_norm, on gradients with `bad` (if not 0) in one place, and the state that
 * they leave. The norm is about 116: max_norm 1 clips it, 150 does not. */
static void norms(double max_norm, double loss_scale, double bad)
{
    begin(PLAIN, "finish_norm max %g scale %g bad %g", max_norm, loss_scale, bad);
    Mat *x = real_vec("x", IN, N), *partial = real_vec("partial", OUT, N_CHUNKS);
    if (bad != 0)
        x->v[chunks[2].offset + 5] = bad;
    x->v[chunks[N_CHUNKS - 1].offset] = NAN; /* frozen: nobody has written its gradient */
    rescale(x, loss_scale, 0);
    st = (StepState){.seed = 1,
                     .lr = 0.5,
                     .step = 9,
                     .sample0 = 4,
                     .t = 6,
                     .skip = 1,
                     .skipped = 3,
                     .skipped_in_row = 2,
                     .loss_scale = loss_scale,
                     .good_steps = 11,
                     .patience = 2,
                     .large = 5,
                     .counted = 77};
    send_state();
    be->sum_squares(pointer(partial), pointer(x), chunks_dev, N_CHUNKS);
    be->finish_norm(pointer(partial), N_CHUNKS, max_norm);
    double sum = 0;
    for (int k = 0; k < N_CHUNKS; k++)
        sum += partial->v[k] = finite_or_not(counted_squares(k, x->v));
    StepState s = state_now();
    double norm = sqrt(sum) / loss_scale;
    double clip = max_norm > 0 ? fmin(1, max_norm / (norm + 1e-6)) : 1;
    bool skip = !isfinite(norm);
    CHECK(memcmp(&s, &st, STEP_HOST_BYTES) == 0, "%s: the host's part changed", title);
    CHECK(s.skip == skip && s.t == 6u + !skip, "%s: skip %u t %u", title, s.skip, s.t);
    CHECK(s.skipped == 3u + skip, "%s: %u skipped", title, s.skipped);
    CHECK(skip ? !isfinite(s.grad_norm) : fabs(s.grad_norm / norm - 1) <= gate, "%s: norm %g",
          title, s.grad_norm);
    CHECK(skip || fabs(s.clip / clip - 1) <= gate, "%s: clip %g, not %g", title, s.clip, clip);
    CHECK(s.skipped_in_row == 2 && s.loss_scale == loss_scale && s.good_steps == 11 &&
              s.patience == 2 && s.large == 5 && s.counted == 77,
          "%s: what scale_loss and count_large are for has changed", title);
    finish(EXACT);
}

/* ------------------------------------------------------------------------------------------------
 * Loss scaling */

/* One sequence of updates. `events`, a letter for each: o overflows, g is good; for AUTO l had one
 * gradient of a thousand beyond the limit, and both others none. */
typedef struct {
    const char *name;
    LossScaling scaling;
    const char *events;
    double scale[16];    /* after each event */
    uint32_t in_row[16]; /* skipped_in_row */
} ScaleCase;

static const ScaleCase scale_cases[] = {
    {"none", {SCALING_NONE, 1, 2, 2}, "gogoog", {1, 1, 1, 1, 1, 1}, {0, 1, 0, 1, 2, 0}},
    {"static",
     {SCALING_STATIC, 1024, 2, 2},
     "oogggo",
     {1024, 1024, 1024, 1024, 1024, 1024},
     {1, 2, 0, 0, 0, 1}},
    {"dynamic: doubled after 3 good ones in a row",
     {SCALING_DYNAMIC, 64, 3, 1},
     "gggggggogggg",
     {64, 64, 128, 128, 128, 256, 256, 128, 128, 128, 256, 256},
     {0}},
    {"dynamic: at once", {SCALING_DYNAMIC, 64, 1000, 1}, "oogo", {32, 16, 16, 8}, {0}},
    {"dynamic: hysteresis 2, at once from then on, until it has grown",
     {SCALING_DYNAMIC, 64, 2, 2},
     "ogoogggoo",
     {64, 64, 32, 16, 16, 32, 32, 32, 16},
     {0}},
    {"dynamic: hysteresis 3, good steps do not restore it",
     {SCALING_DYNAMIC, 8, 1000, 3},
     "ogogoog",
     {8, 8, 8, 8, 4, 2, 2},
     {0}},
    {"dynamic: an overflow starts the row again",
     {SCALING_DYNAMIC, 64, 2, 5},
     "gogogg",
     {64, 64, 64, 64, 64, 128},
     {0}},
    {"dynamic: not below 1, and only there are skipped ones counted",
     {SCALING_DYNAMIC, 4, 2, 1},
     "oooogooggo",
     {2, 1, 1, 1, 1, 1, 1, 1, 2, 1},
     {0, 0, 1, 2, 0, 1, 2, 0, 0, 0}},
    {"dynamic: not above 2^32",
     {SCALING_DYNAMIC, 0x1p31, 1, 1},
     "gggo",
     {0x1p32, 0x1p32, 0x1p32, 0x1p31},
     {0}},
    {"auto", {SCALING_AUTO, 8, 0, 0}, "ggllg", {16, 32, 16, 8, 16}, {0}},
    {"auto: from 1 to 2^32", {SCALING_AUTO, 2, 0, 0}, "llllg", {1, 1, 1, 1, 2}, {0}},
    {"auto: not above 2^32", {SCALING_AUTO, 0x1p32, 0, 0}, "ggl", {0x1p32, 0x1p32, 0x1p31}, {0}},
};

static void scaling(const ScaleCase *c)
{
    begin(PLAIN, "scale_loss %s", c->name);
    st.loss_scale = c->scaling.init;
    st.patience = (uint32_t)c->scaling.hysteresis;
    send_state();
    for (int i = 0; c->events[i]; i++) {
        StepState s = state_now(), before = s;
        s.skip = c->events[i] == 'o';
        s.large = c->events[i] == 'l';
        s.counted = c->scaling.kind == SCALING_AUTO ? 1000 : 0;
        be->upload(st_dev, &s, sizeof s);
        be->scale_loss(&c->scaling);
        s = state_now();
        CHECK(s.loss_scale == c->scale[i], "%s, update %d: %g, not %g", title, i + 1, s.loss_scale,
              c->scale[i]);
        CHECK(s.skipped_in_row == c->in_row[i], "%s, update %d: %u in a row, not %u", title, i + 1,
              s.skipped_in_row, c->in_row[i]);
        CHECK(memcmp(&s, &before, STEP_HOST_BYTES) == 0 && s.t == before.t &&
                  s.skipped == before.skipped && s.clip == before.clip,
              "%s, update %d: more has changed", title, i + 1);
        if (c->scaling.kind == SCALING_AUTO)
            CHECK(s.large == 0 && s.counted == 0, "%s: the counts were not emptied", title);
        if (c->scaling.kind == SCALING_DYNAMIC && c->events[i] == 'o')
            CHECK(s.good_steps == 0, "%s, update %d: %u good steps", title, i + 1, s.good_steps);
    }
    finish(EXACT);
}

/* More than one in ten million: two of 10^7 halve the scale, one of 10^7 + 1 does not. */
static void auto_limit(uint64_t large, uint64_t counted, double scale)
{
    begin(PLAIN, "scale_loss auto, %d of %.0f", (int)large, (double)counted);
    st.loss_scale = 16, st.large = large, st.counted = counted;
    send_state();
    be->scale_loss(&(LossScaling){SCALING_AUTO, 16, 0, 0});
    CHECK(state_now().loss_scale == scale, "%s: %g", title, state_now().loss_scale);
    finish(EXACT);
}

/* What count_large adds, to counts beyond 2^32 too; the gaps of x hold NaN. */
static void large_elements(int rows, int cols, int pad)
{
    begin(PLAIN, "count_large %dx%d", rows, cols);
    double limit = 0.125 * 65504;
    double special[] = {limit,    -limit,    8192,      -8192, 9000, NAN,
                        INFINITY, -INFINITY, limit + 4, 60000, 0,    8160};
    Mat *x = mat("x", IN, rows, cols, pad);
    rescale(x, 6000, 0);
    uint64_t large = 0, n = (uint64_t)rows * (uint64_t)cols;
    for (long i = 0; i < rows * cols; i++)
        if (i % 7 == 3)
            x->v[i] = special[i / 7 % COUNT(special)];
    push(x);
    for (long i = 0; i < rows * cols; i++)
        large += !(fabs(x->v[i]) <= limit);
    st.large = 5000000000u, st.counted = 7000000000u;
    send_state();
    be->count_large(tensor(x), rows, cols);
    be->count_large(tensor(x), rows, cols);
    StepState s = state_now();
    CHECK(s.large - st.large == 2 * large, "%s: %d of %d", title, (int)(s.large - st.large),
          (int)(2 * large));
    CHECK(s.counted - st.counted == 2 * n, "%s: counted %d", title, (int)(s.counted - st.counted));
    s.large = st.large, s.counted = st.counted;
    CHECK(memcmp(&s, &st, sizeof s) == 0, "%s: more has changed", title);
    finish(EXACT);
}

/* ------------------------------------------------------------------------------------------------
 * Random numbers and memory */

static void known_answers(void)
{
    static const struct {
        uint64_t key;
        uint32_t c[4], v[4];
    } known[] = {
        /* philox4x32-10 among Random123's known answers */
        {0, {0, 0, 0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {~0ull, {~0u, ~0u, ~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x299f31d0a4093822u,
         {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (int i = 0; i < COUNT(known); i++) {
        const uint32_t *c = known[i].c;
        Philox r = philox(known[i].key, c[0], c[1], c[2], c[3]);
        CHECK(memcmp(r.v, known[i].v, sizeof r.v) == 0, "Philox vector %d: %08x %08x %08x %08x", i,
              r.v[0], r.v[1], r.v[2], r.v[3]);
    }
    RngStream s = {.seed = 5, .sample = 6, .step = 7, .purpose = RNG_AUGMENT, .layer = 1};
    for (uint32_t i = 0; i < 9; i++) {
        double want = rng_unit(rng_block(5, i / 4, 6, 7, RNG_AUGMENT, 1).v[i % 4]);
        CHECK(rng_next(&s) == want, "rng_next, number %u", i);
    }
    CHECK(rng_unit(0) > 0 && rng_unit(~0u) < 1);
    CHECK(rng_threshold(0) == 0 && rng_threshold(0.25) == 1u << 30 && rng_threshold(1) == ~0u);
}

/* Kept elements of n, each with probability 1-p: within five standard deviations. */
static void check_rate(const char *what, double p, double kept, double n)
{
    double sigma = sqrt(n * p * (1 - p));
    CHECK(fabs(kept - n * (1 - p)) <= 5 * sigma, "%s, p %g: %.0f of %.0f kept", what, p, kept, n);
}

/* Ones through dropout and drop path on the device: what comes out is 0 or 1/(1-p). */
static void keep_rates(double p)
{
    enum { B = 40, T = 197, C = 16, ALL = B * T * C };
    begin(PLAIN, "rates of p %g", p);
    Mat *ones = mat("ones", IN, B * T, C, 0), *zeros = mat("zeros", IN, ALL, 1, 0);
    Mat *results[] = {mat("x", SCRATCH, B * T, C, 0), mat("x_out", SCRATCH, ALL, 1, 0)};
    double *host = xmalloc(ALL * sizeof *host), kept_as = rounded(1 / (1 - p));
    Tensor column = {ones->t.p, 1, under.type, NULL};
    rescale(ones, 0, 1);
    rescale(zeros, 0, 0);
    be->embed_forward(&(Embed){results[0]->t, ones->t, NULL, pointer(zeros), NULL, B, T, 0, C,
                               drop_of(p, RNG_EMBED_DROPOUT, 0)});
    be->residual_norm_forward(&(ResidualNorm){.x = zeros->t,
                                              .x_out = results[1]->t,
                                              .branch = column,
                                              .rows = ALL,
                                              .C = 1,
                                              .path = drop_of(p, RNG_MLP_PATH, 5),
                                              .tokens = 1});
    for (int k = 0; k < 2; k++) {
        double kept = 0, other = 0;
        pull(results[k], host);
        for (long i = 0; i < ALL; i++) {
            kept += host[i] != 0;
            other += host[i] != 0 && !(fabs(host[i] / kept_as - 1) <= 1e-6);
        }
        CHECK(other == 0, "%.0f elements are neither 0 nor 1/(1-p)", other);
        check_rate(k ? "drop path" : "dropout", p, kept, ALL);
    }
    free(host);
    finish(EXACT);
}

/* Masks of another purpose, layer, step or sample, or one element on, agree by chance alone. */
static void independent_masks(double p)
{
    enum { ALL = 40000 };
    const Drop base = drop_of(p, RNG_PROJ_DROPOUT, 3);
    double agree[5] = {0}, chance = p * p + (1 - p) * (1 - p);
    for (long i = 0; i < ALL; i++) {
        bool kept = drop_factor(base, 2, i) > 0;
        for (int k = 0; k < 5; k++) {
            Drop d = drop_of(p, base.purpose + (k == 0), base.layer + (k == 1));
            st.step += k == 2;
            agree[k] += (drop_factor(d, 2 + (k == 3), i + (k == 4)) > 0) == kept;
            st.step -= k == 2;
        }
    }
    for (int k = 0; k < 5; k++)
        check_rate("agreement with another mask", 1 - chance, agree[k], ALL);
}

static void memory(void)
{
    enum { ELEMENTS = 1001 };
    begin(PLAIN, "memory");
    char text[256] = "";
    real zeros[ELEMENTS] = {0}, got[ELEMENTS];
    dev *fresh = be->alloc(sizeof got);
    CHECK(fresh && (uintptr_t)fresh % 256 == 0, "alloc returns aligned memory");
    be->download(got, fresh, sizeof got);
    CHECK(memcmp(got, zeros, sizeof got) == 0, "alloc returns zeroed memory");
    be->release(fresh);
    be->release(NULL);
    void *pinned = be->host_alloc(ELEMENTS);
    CHECK(pinned != NULL);
    be->host_release(pinned);
    be->host_release(NULL);
    real *there = be->host_alloc(sizeof got), ones[ELEMENTS]; /* as operand */
    dev *operand = (dev *)there;
    for (int i = 0; i < ELEMENTS; i++)
        ones[i] = 1;
    be->upload(operand, ones, sizeof ones);
    be->add(operand, operand, ELEMENTS);
    be->download(got, operand, sizeof got);
    CHECK(got[0] == 2 && got[ELEMENTS - 1] == 2 && there[5] == 2, "%g", (double)got[0]);
    be->zero(operand, sizeof got);
    be->wait(be->mark());
    CHECK(memcmp(there, zeros, sizeof zeros) == 0, "zero in the host's memory");
    be->host_release(there);
    be->describe(text, sizeof text);
    CHECK(text[0] && strlen(text) < sizeof text - 1 && be->threads() >= 1, "'%s'", text);
    CHECK(be->memory_free() == -1 || be->memory_free() > 0, "%g bytes free", be->memory_free());
    CHECK(be->peak_flops() >= 0);
    Sizes one = {1, 197, 768, 12, 3072, 1000, 0, 20000, false}, many = one;
    many.B = 64;
    CHECK(be->scratch_bytes(&one) <= be->scratch_bytes(&many));

    Mat *a = real_vec("a", IN, ELEMENTS), *sum = real_vec("sum", INOUT, ELEMENTS);
    Mat *copy = real_vec("copy", OUT, ELEMENTS), *zero = real_vec("zero", OUT, ELEMENTS);
    Mat *reduced = real_vec("reduced", INOUT, ELEMENTS);
    uint64_t counts[3] = {1, 1ull << 40, ~0ull}, counts_after[3];
    dev *counts_dev = be->alloc(sizeof counts);
    be->upload(counts_dev, counts, sizeof counts);
    be->add(pointer(sum), pointer(a), ELEMENTS);
    be->copy(pointer(copy), pointer(a), sizeof got);
    be->zero(pointer(zero), sizeof got);
    be->add(pointer(reduced), pointer(a), ELEMENTS); /* of one rank: the sum is its own */
    Group *alone = be->split(0);
    CHECK(alone == NULL);
    be->join(be->all_reduce(alone, pointer(reduced), F32, ELEMENTS));
    be->join(be->all_reduce(alone, counts_dev, U64, 3));
    be->add(pointer(reduced), pointer(a), ELEMENTS);
    be->download(counts_after, counts_dev, sizeof counts);
    be->release(counts_dev);
    CHECK(memcmp(counts, counts_after, sizeof counts) == 0, "counters of one rank changed");
    for (int i = 0; i < ELEMENTS; i++) {
        sum->v[i] += a->v[i];
        reduced->v[i] += 2 * a->v[i];
        copy->v[i] = a->v[i];
        zero->v[i] = 0;
    }
    finish(EXACT);
}

/* Every element exactly the nearest number of the new type. */
static void convert(int to, int from)
{
    enum { ELEMENTS = 3001 };
    static const double special[] = {0,
                                     -0.0,
                                     INFINITY,
                                     -INFINITY,
                                     NAN,
                                     65504,
                                     65519,
                                     65520,
                                     -65520,
                                     1e30,
                                     6e-8,
                                     2.9e-8,
                                     3.1e-8,
                                     -1e-40,
                                     1 + 0x1p-9,
                                     1 + 3 * 0x1p-9,
                                     0x1p-14,
                                     0x1p-126,
                                     1e-5,
                                     3.39e38,
                                     1 + 3 * 0x1p-12,
                                     1 + 0x1p-12,
                                     0x1p-133,
                                     1e-46,
                                     1 + 0x1p-8 + 0x1p-40,
                                     1 + 0x1p-8 - 0x1p-40,
                                     1 + 3 * 0x1p-8 - 0x1p-30,
                                     -0x1p-134};
    begin(PLAIN, "convert to %d from %d", to, from);
    Mat *x = mat_of(from, "x", IN, 1, ELEMENTS, 0), *y = mat_of(to, "y", OUT, 1, ELEMENTS, 0);
    for (int i = 0; i < ELEMENTS; i++)
        x->v[i] = i < COUNT(special) ? special[i] : x->v[i] * ldexp(1, i % 24 - 18);
    push(x);
    be->convert(pointer(y), to, pointer(x), from, ELEMENTS);
    double got[ELEMENTS];
    int bad = 0;
    pull(y, got);
    for (int i = 0; i < ELEMENTS; i++) {
        double want = round_to(to, x->v[i]);
        bool same =
            isnan(want) ? isnan(got[i]) : got[i] == want && !signbit(got[i]) == !signbit(want);
        CHECK(same || bad++ > 9, "%s: %.9g becomes %.9g, not %.9g", title, x->v[i], got[i], want);
        y->v[i] = isnan(want) ? INFINITY : want;
    }
    finish(EXACT);
}

/* A NaN stays one, also where all that tells it from infinity is among the bits that go. */
static void convert_nan(void)
{
    begin(PLAIN, "convert NaN");
    union {
        real x;
        uint32_t bits[sizeof(real) / 4]; /* the last: sign and exponent */
    } in = {.x = -INFINITY};
    uint16_t out;
    in.bits[0] |= 1;
    dev *x = be->alloc(sizeof in), *y = be->alloc(sizeof out);
    be->upload(x, &in, sizeof in);
    be->convert(y, BF16, x, F32, 1);
    be->download(&out, y, sizeof out);
    CHECK(isnan(get(&out, BF16, 0)), "%s: %04x", title, out);
    be->release(x);
    be->release(y);
    finish(EXACT);
}

/* ------------------------------------------------------------------------------------------------
 * The order of calls */

/* Three buffers sent in turn into the same memory, while what was computed of the one before may
 * still be under way; results fetched before they are overwritten. */
static void sending(void)
{
    enum { ELEMENTS = 40000, ROUNDS = 6, BYTES = ELEMENTS * sizeof(real) };
    begin(PLAIN, "send, fetch, mark and wait");
    Mat *in = real_vec("in", SCRATCH, ELEMENTS), *sum = real_vec("sum", INOUT, ELEMENTS);
    real *out[2] = {be->host_alloc(BYTES), be->host_alloc(BYTES)};
    real *from[2] = {be->host_alloc(BYTES), be->host_alloc(BYTES)};
    double total[ELEMENTS];
    Ticket sent[2] = {0}, fetched[2] = {0}, used = 0;
    memcpy(total, sum->v, sizeof total);
    used = be->mark(); /* what begin and the matrices sent */
    for (int round = 0; round < ROUNDS + 1; round++) {
        int k = round % 2;
        if (round > 0) { /* the result of the round before, which ran beside this one's call */
            be->wait(fetched[!k]);
            int bad = 0;
            for (int i = 0; i < ELEMENTS; i++) {
                total[i] += (double)(real)(round * 0.5 + i % 97);
                bad += !(fabs((double)out[!k][i] - total[i]) <= 1e-5 * fabs(total[i]) + 1e-5);
            }
            CHECK(bad == 0, "%s, round %d: %d elements are not of this round", title, round, bad);
        }
        if (round == ROUNDS)
            break;
        be->wait(sent[k]); /* the host's buffer may be written again */
        for (int i = 0; i < ELEMENTS; i++)
            from[k][i] = (real)((round + 1) * 0.5 + i % 97);
        sent[k] = be->send(pointer(in), from[k], BYTES, used);
        be->add(pointer(sum), pointer(in), ELEMENTS);
        used = be->mark();
        fetched[k] = be->fetch(out[k], pointer(sum), BYTES);
    }
    be->wait(used);
    be->wait(0);
    memcpy(sum->v, total, sizeof total);
    finish(EXACT);
    for (int k = 0; k < 2; k++) {
        be->host_release(out[k]);
        be->host_release(from[k]);
    }
}

/* A result is fetched as it was at that point of the order. */
static void fetching(void)
{
    enum { ELEMENTS = 20000, BYTES = ELEMENTS * sizeof(real) };
    begin(PLAIN, "fetch in order");
    Mat *x = real_vec("x", INOUT, ELEMENTS), *one = real_vec("one", IN, ELEMENTS);
    real *host[3];
    Ticket t[3];
    rescale(x, 0, 7);
    rescale(one, 0, 1);
    for (int k = 0; k < 3; k++) {
        host[k] = be->host_alloc(BYTES);
        be->add(pointer(x), pointer(one), ELEMENTS);
        t[k] = be->fetch(host[k], pointer(x), BYTES);
    }
    be->zero(pointer(x), BYTES);
    for (int k = 2; k >= 0; k--) {
        int bad = 0;
        be->wait(t[k]);
        for (int i = 0; i < ELEMENTS; i++)
            bad += host[k][i] != (real)(8 + k);
        CHECK(bad == 0, "%s, %d: %d elements", title, k, bad);
        be->host_release(host[k]);
    }
    rescale(x, 0, 0);
    finish(EXACT);
}

/* What a body of `run` works on: the state's host part from `input`, dropout of ones, a sum. */
typedef struct {
    Mat *x, *ones, *zeros, *sum, *input;
    Drop drop;
    int B, T, C;
} Body;

static void body(void *arg)
{
    const Body *a = arg;
    be->copy(st_dev, pointer(a->input), STEP_HOST_BYTES);
    be->embed_forward(
        &(Embed){a->x->t, a->ones->t, NULL, pointer(a->zeros), NULL, a->B, a->T, 0, a->C, a->drop});
    be->add(pointer(a->sum), pointer(a->ones), 8);
}

/* Two bodies by turns, each under its key: called the first time, repeated later, with the state
 * and the data of the day each time. */
static void running(void)
{
    enum { B = 3, T = 9, C = 16, ROUNDS = 4, STATE = (sizeof(StepState) + 3) / sizeof(real) };
    static uint64_t key = 1000; /* no key of the pass before */
    begin(PLAIN, "run");
    Body bodies[2];
    Mat *input = real_vec("state", SCRATCH, STATE);
    StepState *host = be->host_alloc(sizeof *host);
    Ticket sent = 0;
    key += 2;
    for (int k = 0; k < 2; k++) {
        bodies[k] = (Body){.x = mat("x", OUT, B * T, C, 0),
                           .ones = mat("ones", IN, B * T, C, 0),
                           .zeros = vec("zeros", IN, T * C),
                           .sum = real_vec("sum", INOUT, 8),
                           .input = input,
                           .drop = drop_of(0.25, RNG_EMBED_DROPOUT, k),
                           .B = B,
                           .T = T,
                           .C = C};
        rescale(bodies[k].ones, 0, 1);
        rescale(bodies[k].zeros, 0, 0);
    }
    /* add takes real numbers: eight of them at the start of `ones`, whatever their type */
    double added = is_half(under.type) ? NAN : 1;
    for (int i = 0; i < 2 * ROUNDS; i++) {
        Body *a = &bodies[i % 2];
        be->wait(sent);
        st.step = 100 + (uint32_t)i, st.sample0 = 7u * (uint32_t)i, st.seed += 3;
        *host = st;
        sent = be->send(pointer(input), host, STEP_HOST_BYTES, be->mark());
        be->run(key + (uint64_t)(i % 2), false, body, a);
        double got[B * T * C], sum[8];
        int bad = 0;
        pull(a->x, got);
        pull(a->sum, sum);
        for (long j = 0; j < B * T * C; j++) {
            a->x->v[j] = drop_factor(a->drop, j / (T * C), j % (T * C));
            bad += !(fabs(got[j] - rounded(a->x->v[j])) <= 1e-6);
        }
        CHECK(bad == 0, "%s, round %d: %d elements are of another step", title, i, bad);
        for (int j = 0; j < 8 && !isnan(added); j++) {
            a->sum->v[j] += added;
            CHECK(fabs(sum[j] - a->sum->v[j]) <= 1e-5, "%s, round %d: sum %g, not %g", title, i,
                  sum[j], a->sum->v[j]);
        }
        if (isnan(added))
            memcpy(a->sum->v, sum, sizeof sum);
        StepState s = state_now();
        CHECK(memcmp(&s, &st, STEP_HOST_BYTES) == 0, "%s, round %d: the state", title, i);
    }
    finish(EXACT);
    be->host_release(host);
}

/* ------------------------------------------------------------------------------------------------
 * All of it */

static void layer_cases(void)
{
    for (int i = 0; i < COUNT(linear_cases); i++) {
        if (linear_cases[i].big && !under.full)
            continue;
        linear_forward(&linear_cases[i], false);
        linear_backward_input(&linear_cases[i]);
        linear_backward_weight(&linear_cases[i]);
    }
    for (int i = 0; i < COUNT(patch_cases); i++)
        patchify(&patch_cases[i]);
    for (int i = 0; i < COUNT(norm_cases); i++) {
        norm_forward(&norm_cases[i]);
        norm_backward(&norm_cases[i], 0);
        if (norm_cases[i].norm) {
            norm_backward(&norm_cases[i], 1);
            norm_backward(&norm_cases[i], 3);
        }
    }
    for (int backward = 0; backward < 2; backward++) {
        for (int kind = ACT_GELU; kind <= ACT_TANH; kind++)
            activation(kind, backward);
        every_gelu(backward);
        for (int i = 0; i < COUNT(embed_cases); i++)
            embed(&embed_cases[i], backward);
        for (int i = 0; i < COUNT(attention_cases); i++)
            if (under.full || !attention_cases[i].big)
                attention(&attention_cases[i], backward);
        for (int i = 0; i < COUNT(head_norm_cases); i++)
            head_norm(&head_norm_cases[i], backward);
        for (int i = 0; i < COUNT(pool_cases); i++)
            pool(&pool_cases[i], backward);
    }
    softmax_sweep();
    for (int i = 0; i < COUNT(loss_cases); i++)
        loss(&loss_cases[i]);
    for (int i = 0; i < COUNT(linear_cases); i++)
        if (linear_cases[i].act && linear_cases[i].pre && !linear_cases[i].big) {
            activate(&linear_cases[i]);
            linear_forward(&linear_cases[i], true); /* GELU may go into the product */
        }
}

static void wide_layers(void)
{
    for (int i = 0; i < COUNT(wide_cases); i++) {
        linear_forward(&wide_cases[i], false);
        linear_backward_input(&wide_cases[i]);
        linear_backward_weight(&wide_cases[i]);
        activate(&wide_cases[i]);
    }
}

/* Masks of some columns, or heads, of wider matrices: from a multiple of four and from others on.
 */
static void part_cases(void)
{
    static const int firsts[] = {1, 30, 128};
    for (int i = 0; i < COUNT(firsts); i++) {
        cut.first = firsts[i];
        for (int k = 0; k < COUNT(linear_cases); k++) {
            const LinearCase *c = &linear_cases[k];
            if (c->drop <= 0)
                continue;
            cut.of = cut.first + c->out + 5;
            linear_forward(c, false);
            if (c->act && c->pre)
                activate(c);
            cut.of = cut.first + c->in + 5;
            linear_backward_input(c);
        }
        for (int k = 0; k < COUNT(attention_cases); k++) {
            const AttentionCase *c = &attention_cases[k];
            if (c->drop <= 0 || c->T > 200)
                continue;
            cut.of = cut.first + c->heads + 1;
            attention(c, false);
            attention(c, true);
        }
    }
    cut.first = cut.of = 0;
}

static void update_cases(void)
{
    static const double bad[] = {0, NAN, INFINITY, -INFINITY};
    make_chunks();
    for (int i = 0; i < COUNT(opt_cases); i++) {
        optimiser(&opt_cases[i]);
        if (is_half(under.type) && !opt_cases[i].skip)
            stochastic_rounding(&opt_cases[i]);
    }
    if (is_half(under.type))
        rounding_places();
    for (int i = 0; i < COUNT(bad); i++) {
        norms(1, 1, bad[i]);
        norms(150, 1024, bad[i]);
        norms(0, 8, bad[i]);
    }
    share_chunks();
    for (int i = 0; i < COUNT(opt_cases); i++) {
        state_on_host = i % 2;
        optimiser(&opt_cases[i]);
    }
    state_on_host = false;
    norms(1, 1, 0);
    norms(1, 1, NAN);
    norms(150, 1024, INFINITY);
    for (int i = 0; i < COUNT(scale_cases); i++)
        scaling(&scale_cases[i]);
    auto_limit(2, 10000000, 8);
    auto_limit(1, 10000001, 32);
    auto_limit(1, 9999999, 8);
    large_elements(1, 3000, 0);
    large_elements(197, 48, 0);
    large_elements(37, 81, 7);
    be->release(chunks_dev);
}

static void order_cases(void)
{
    memory();
    sending();
    fetching();
    running();
    for (int to = F32; to <= F16; to++)
        for (int from = F32; from <= F16; from++)
            if ((to <= BF16 && from <= BF16) || strcmp(be->name, "cpu") != 0) /* it has no F16 */
                convert(to, from);
    convert_nan();
}

static void run_cases(void)
{
    static const int threads[] = {1, 2, 2};
    bool cpu = strcmp(under.be->name, "cpu") == 0;
    int passes = cpu ? COUNT(threads) : 2;
    be = under.be;
    for (pass = 0; pass < passes; pass++) {
        double start = now();
        n_cases = 0;
        if (cpu || pass == 0)
            device_init(cpu ? threads[pass] : 0);
        same_threads = !cpu || (pass > 0 && threads[pass] == threads[pass - 1]);
        st_dev = be->alloc(sizeof st);
        scratch_dev = be->alloc(SCRATCH_BYTES + GUARD);
        be->bind(st_dev, scratch_dev, SCRATCH_BYTES);
        order_cases();
        layer_cases();
        part_cases();
        update_cases();
        wide_layers();
        for (int i = 1; i < 10; i += 4)
            keep_rates(i / 10.0);
        char zeros[GUARD] = {0}, after[GUARD];
        be->download(after, (dev *)((char *)scratch_dev + SCRATCH_BYTES), GUARD);
        CHECK(memcmp(zeros, after, GUARD) == 0, "%s wrote behind its scratch memory", be->name);
        be->release(scratch_dev);
        be->release(st_dev);
        printf("%s %s, %d threads: %d cases in %.1f s\n", be->name, under.name, be->threads(),
               n_cases, now() - start);
    }
    if (under.verbose)
        report_worst();
}

int main(int argc, char **argv)
{
    backend_cpu_reexec(argv);
    argc = device_options(argc, argv);
    for (int i = 1; i < argc; i++) /* the folder that all tests are given is of no use here */
        if (sscanf(argv[i], "seed=%d", &seed) != 1 && strchr("-=", *argv[i]))
            die_usage("seed=N", "unknown argument '%s'", argv[i]);
    known_answers();
    run_cases();
    for (int i = 1; i < 10; i += 4)
        independent_masks(i / 10.0);
    return check_report();
}
