/* test_fp8: products of 8-bit numbers, and the scales of their operands (Fp8 in backend.h).
 *
 *   test_fp8 [--backend cuda --type fp8] [--verbose]
 *
 * Rounding is held to PyTorch's 8-bit values (fp8_values.h): every number of bf16 goes through a
 * product with the identity, which shows what it was rounded to, exactly. Products are held to the
 * same in double, twice: of operands that were rounded here, under the gates of other products (the
 * weight gradient, whose sums a tensor core keeps to 14 bits for a while, under 1e-3); and of the
 * operands as they were, where the error must be within 10% of what PyTorch's rounding makes of
 * such numbers, 3.7e-2 forward and 5.8e-2 backward: neither more, nor suspiciously little. An
 * operand that is rounded where it is made comes to the bits of one in BF16 that is rounded
 * afterwards. Devices without such products are skipped.
 */
#include "mats.h"
#include "fp8_values.h"

enum { X, W, DY, OPERANDS };
static Fp8Scale scale[OPERANDS]; /* as the device is given them */
static dev *scales;
static Fp8 how;

static const float *values_of(int operand)
{
    return operand == DY ? e5m2_values : e4m3_values;
}

static double largest(int operand)
{
    return operand == DY ? 57344 : 448;
}

/* To the nearest of PyTorch's values, of two as near the one with the even code. */
static double nearest(double x, int operand)
{
    const float *v = values_of(operand);
    double a = fmin(fabs(x), largest(operand));
    int c = 0;
    while ((double)v[c + 1] <= a && (double)v[c + 1] <= largest(operand))
        c++;
    double below = a - (double)v[c], above = (double)v[c + 1] - a;
    bool up = below > 0 && (above < below || (above == below && c % 2));
    return copysign((double)v[c + up], x);
}

static double amax_of(const Mat *m)
{
    double most = 0;
    for (long i = 0; i < m->rows * m->cols; i++)
        most = fmax(most, fabs(m->v[i]));
    return most;
}

/* 2^-margin * the largest power of two that keeps amax in range */
static double power_for(double amax, int operand, int margin)
{
    return ldexp(exp2(floor(log2(largest(operand) / amax))), -margin);
}

static double used_scale(const Mat *m, int operand)
{
    double now = power_for(amax_of(m), operand, how.margin);
    return how.current ? now : (double)scale[operand].scale;
}

/* What an operand's copy stands for; free() it. */
static double *copy_of(const Mat *m, int operand)
{
    double *v = xmalloc((size_t)(m->rows * m->cols) * sizeof *v), s = used_scale(m, operand);
    for (long i = 0; i < m->rows * m->cols; i++)
        v[i] = nearest(m->v[i] * s, operand) / s;
    return v;
}

static Tensor scaled(const Mat *m, int operand)
{
    Tensor t = m->t;
    t.scale = (dev *)((char *)scales + (size_t)operand * sizeof(Fp8Scale));
    return t;
}

/* Every case: fresh scales, and what is done with them. */
static void begin_fp8(Fp8 f, double x, double w, double dy)
{
    how = f;
    scale[X] = (Fp8Scale){.scale = (float)x};
    scale[W] = (Fp8Scale){.scale = (float)w};
    scale[DY] = (Fp8Scale){.scale = (float)dy};
    be->upload(scales, scale, sizeof scale);
    be->fp8(&how);
}

/* The pass has noted the largest number of an operand, where it was to, and no more. */
static void check_noted(const Mat *m, int operand)
{
    Fp8Scale s[OPERANDS];
    be->download(s, scales, sizeof s);
    double want = how.learns ? amax_of(m) : 0, inverse = 1 / used_scale(m, operand);
    CHECK((double)s[operand].amax == want, "%s, %s: amax %g, not %g", title, m->name,
          (double)s[operand].amax, want);
    CHECK((double)s[operand].inverse == inverse, "%s, %s: inverse %g, not %g", title, m->name,
          (double)s[operand].inverse, inverse);
    CHECK(s[operand].scale == scale[operand].scale, "%s, %s: the delayed scale has changed", title,
          m->name);
}

/* ------------------------------------------------------------------------------------------------
 * Rounding */

static Mat *identity(const char *name, int n)
{
    Mat *m = mat(name, IN, n, n, 0);
    for (long i = 0; i < (long)n * n; i++)
        m->v[i] = i / n == i % n;
    push(m);
    return m;
}

/* Every finite number of bf16 that, times the scale, is below `most`; 0 for the others */
static Mat *all_numbers(const char *name)
{
    Mat *m = mat(name, IN, 4096, 16, 0);
    for (long i = 0; i < 65536; i++) {
        uint16_t bits = (uint16_t)i;
        double x = get(&bits, BF16, 0);
        m->v[i] = isfinite(x) ? x : 0;
    }
    push(m);
    return m;
}

/* x = x I^T, dy = dy I */
static void rounding(int operand, double s)
{
    begin(PLAIN, "rounding to %s, scale %g", operand == DY ? "e5m2" : "e4m3", s);
    begin_fp8((Fp8){.learns = true, .wgrad = true}, s, 1, s);
    Mat *x = all_numbers("x"), *one = identity("w", 16), *y = mat("y", OUT, 4096, 16, 0);
    Mat *dw = real_vec("dw", SCRATCH, 256);
    if (operand == DY) {
        be->linear_backward_weight(&(LinearBackwardWeight){.dw = dw->t.p,
                                                           .dy = scaled(x, DY),
                                                           .x = scaled(x, X),
                                                           .rows = 4096,
                                                           .in = 16,
                                                           .out = 16});
        be->linear_backward_input(&(LinearBackwardInput){.dx = y->t,
                                                         .dy = scaled(x, DY),
                                                         .w = scaled(one, W),
                                                         .rows = 4096,
                                                         .in = 16,
                                                         .out = 16,
                                                         .tokens = 1});
    } else {
        be->linear_forward(&(LinearForward){.y = y->t,
                                            .x = scaled(x, X),
                                            .w = scaled(one, W),
                                            .rows = 4096,
                                            .in = 16,
                                            .out = 16,
                                            .tokens = 1});
    }
    pull(y, y->v);
    long differ = 0;
    for (long i = 0; i < 65536; i++)
        differ += y->v[i] != nearest(x->v[i] * s, operand) / s;
    CHECK(differ == 0, "%s: %ld of 65536 are not PyTorch's", title, differ);
    check_noted(x, operand);
    finish(EXACT);
}

/* What is not finite stays so: it must reach the norm that says whether a step counts. */
static void not_finite(int operand, double value)
{
    begin(PLAIN, "%g in %s", value, operand == DY ? "e5m2" : "e4m3");
    begin_fp8((Fp8){.current = true, .learns = true, .wgrad = true}, 0, 0, 0);
    Mat *x = mat("x", IN, 32, 16, 0), *w = identity("w", 16), *y = mat("y", OUT, 32, 16, 0);
    Mat *dw = real_vec("dw", OUT, 256);
    x->v[5 * 16 + 3] = value;
    push(x);
    be->linear_backward_weight(&(LinearBackwardWeight){
        .dw = dw->t.p, .dy = scaled(x, DY), .x = scaled(x, X), .rows = 32, .in = 16, .out = 16});
    if (operand == DY)
        be->linear_backward_input(&(LinearBackwardInput){.dx = y->t,
                                                         .dy = scaled(x, DY),
                                                         .w = scaled(w, W),
                                                         .rows = 32,
                                                         .in = 16,
                                                         .out = 16,
                                                         .tokens = 1});
    else
        be->linear_forward(&(LinearForward){.y = y->t,
                                            .x = scaled(x, X),
                                            .w = scaled(w, W),
                                            .rows = 32,
                                            .in = 16,
                                            .out = 16,
                                            .tokens = 1});
    pull(y, y->v);
    pull(dw, dw->v);
    for (int i = 0; i < 32; i++)
        for (int j = 0; j < 16; j++)
            CHECK(isfinite(y->v[16 * i + j]) == (i != 5), "%s: row %d, column %d of y is %g", title,
                  i, j, y->v[16 * i + j]);
    int numbers = 0;
    for (int i = 0; i < 256; i++)
        numbers += isfinite(dw->v[i]);
    CHECK(numbers == 15 * 15, "%s: %d of dw are finite", title, numbers);
    Fp8Scale s[OPERANDS];
    be->download(s, scales, sizeof s);
    CHECK(!isfinite(s[operand].amax), "%s: amax is %g", title, (double)s[operand].amax);
    for (int i = 0; i < 32 * 16; i++)
        y->v[i] = finite_or_not(y->v[i]);
    for (int i = 0; i < 256; i++)
        dw->v[i] = finite_or_not(dw->v[i]);
    finish(EXACT);
}

/* ------------------------------------------------------------------------------------------------
 * Products */

typedef struct {
    int rows, in, out, act, pad;
    bool bias, residual;
    Fp8 how;
    double x, w, dy; /* delayed scales */
} Case;

#define DELAYED                       \
    {                                 \
        .learns = true, .wgrad = true \
    }
#define CURRENT                                        \
    {                                                  \
        .current = true, .learns = true, .wgrad = true \
    }
static const Case cases[] = {
    {2, 16, 16, ACT_NONE, 0, 0, 0, DELAYED, 64, 64, 8192},
    {16, 48, 144, ACT_NONE, 0, 1, 0, CURRENT, 0, 0, 0},
    {130, 80, 48, ACT_NONE, 8, 1, 1, DELAYED, 128, 256, 4096},
    {130, 80, 48, ACT_NONE, 8, 1, 1, CURRENT, 0, 0, 0},
    {2 * 197, 192, 64, ACT_NONE, 0, 1, 1, DELAYED, 1024, 4096, 65536}, /* beyond: saturated */
    {257, 64, 208, ACT_GELU, 16, 1, 0, DELAYED, 64, 512, 1024},
    {257, 64, 96, ACT_GELU_TANH, 0, 1, 0, CURRENT, 0, 0, 0},
    {65, 32, 48, ACT_SWIGLU, 8, 1, 0, CURRENT, 0, 0, 0},
    {49, 48, 32, ACT_NONE, 0, 1, 0, {.current = true, .margin = 3}, 0, 0, 0}, /* dw in bf16 */
    {300, 144, 48, ACT_NONE, 0, 0, 0, {.learns = true}, 64, 128, 256},
    /* Sums of gradients so long that 14 bits of them would not do: dw's, dx's */
    {4100, 16, 32, ACT_NONE, 0, 0, 0, DELAYED, 64, 128, 1024},
    {17, 32, 8208, ACT_NONE, 0, 0, 0, DELAYED, 64, 128, 1024},
};

static int halves(int act)
{
    return act == ACT_SWIGLU ? 2 : 1;
}

static double activated(const double *s, int act)
{
    static const double pi = 3.14159265358979323846;
    double x = s[0];
    if (act == ACT_GELU)
        return 0.5 * x * erfc(-x / sqrt(2));
    if (act == ACT_GELU_TANH)
        return 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x * x * x)));
    return act == ACT_SWIGLU ? x / (1 + exp(-x)) * s[1] : x;
}

/* Two ways of what goes through memory: the sum before an activation, the product before the rest.
 */
static void forward(const Case *c)
{
    begin(PRODUCT, "forward %dx%dx%d act %d", c->rows, c->in, c->out, c->act);
    begin_fp8(c->how, c->x, c->w, c->dy);
    int columns = halves(c->act) * c->out;
    Mat *x = mat("x", IN, c->rows, c->in, c->pad), *w = mat("w", IN, columns, c->in, c->pad);
    Mat *bias = vec("bias", IN, c->bias * columns), *y = mat("y", OUT, c->rows, c->out, c->pad);
    Mat *pre = mat("pre", OUT, c->act ? c->rows : 0, columns, c->pad);
    Mat *residual = mat("residual", IN, c->residual * c->rows, c->out, c->pad);
    rescale(w, 1 / sqrt(c->in), 0);
    be->linear_forward(&(LinearForward){.y = y->t,
                                        .x = scaled(x, X),
                                        .w = scaled(w, W),
                                        .bias = pointer(bias),
                                        .rows = c->rows,
                                        .in = c->in,
                                        .out = c->out,
                                        .act = c->act,
                                        .pre = tensor(pre),
                                        .residual = tensor(residual),
                                        .tokens = 1});
    double *x8 = copy_of(x, X), *w8 = copy_of(w, W);
    int n = ways(y, 4);
    ways(pre, 2);
    for (long i = 0; i < (long)c->rows * c->out; i++)
        for (int k = 0; k < n; k++) {
            double s[2] = {0};
            for (int h = 0; h < halves(c->act); h++) {
                long o = h * c->out + i % c->out;
                for (long j = 0; j < c->in; j++)
                    s[h] += x8[i / c->out * c->in + j] * w8[o * c->in + j];
                s[h] = (k & 2 ? rounded(s[h]) : s[h]) + (bias ? bias->v[o] : 0);
                if (pre && k % 2 == 0)
                    pre->way[k / 2][i / c->out * columns + o] = s[h];
                s[h] = k & 1 ? rounded(s[h]) : s[h];
            }
            y->way[k][i] = activated(s, c->act) + (residual ? residual->v[i] : 0);
        }
    check_noted(x, X);
    check_noted(w, W);
    free(x8);
    free(w8);
    finish(GEMM);
}

/* As the model calls them: the weight's gradient, then the input's, of the same dy. */
static void backward(const Case *c)
{
    begin(PRODUCT, "backward %dx%dx%d", c->rows, c->in, c->out);
    begin_fp8(c->how, c->x, c->w, c->dy);
    gate = 1e-3;
    Mat *x = mat("x", IN, c->rows, c->in, c->pad), *w = mat("w", IN, c->out, c->in, c->pad);
    Mat *dy = mat("dy", IN, c->rows, c->out, c->pad), *dx = mat("dx", OUT, c->rows, c->in, c->pad);
    Mat *dw = mat_of(F32, "dw", OUT, c->out, c->in, 0);
    Mat *dbias = real_vec("dbias", OUT, c->bias * c->out);
    rescale(w, 1 / sqrt(c->in), 0);
    be->linear_backward_weight(&(LinearBackwardWeight){.dw = dw->t.p,
                                                       .dbias = pointer(dbias),
                                                       .dy = scaled(dy, DY),
                                                       .x = scaled(x, X),
                                                       .rows = c->rows,
                                                       .in = c->in,
                                                       .out = c->out});
    be->linear_backward_input(&(LinearBackwardInput){.dx = dx->t,
                                                     .dy = scaled(dy, DY),
                                                     .w = scaled(w, W),
                                                     .rows = c->rows,
                                                     .in = c->in,
                                                     .out = c->out,
                                                     .tokens = 1});
    double *x8 = copy_of(x, X), *w8 = copy_of(w, W), *dy8 = copy_of(dy, DY);
    const double *left = how.wgrad ? dy8 : dy->v, *right = how.wgrad ? x8 : x->v;
    for (long o = 0; o < c->out; o++)
        for (long i = 0; i < c->in; i++) {
            double *sum = &dw->v[o * c->in + i];
            *sum = 0;
            for (long r = 0; r < c->rows; r++)
                *sum += left[r * c->out + o] * right[r * c->in + i];
        }
    for (long r = 0; r < c->rows; r++)
        for (long i = 0; i < c->in; i++) {
            double *sum = &dx->v[r * c->in + i];
            *sum = 0;
            for (long o = 0; o < c->out; o++)
                *sum += dy8[r * c->out + o] * w8[o * c->in + i];
        }
    sum_columns(dbias, dy);
    check_noted(w, W);
    check_noted(dy, DY);
    if (how.wgrad)
        check_noted(x, X);
    free(x8);
    free(w8);
    free(dy8);
    finish(GEMM);
}

/* The error that 8 bits make, beside what PyTorch's make of such numbers. */
static double error_of(const double *got, const double *a, const double *b, long m, long n, long k,
                       long a_row, long a_term, long b_column, long b_term)
{
    double diff = 0, norm = 0;
    for (long i = 0; i < m; i++)
        for (long j = 0; j < n; j++) {
            double s = 0;
            for (long t = 0; t < k; t++)
                s += a[i * a_row + t * a_term] * b[j * b_column + t * b_term];
            diff += (got[i * n + j] - s) * (got[i * n + j] - s);
            norm += s * s;
        }
    return sqrt(diff / norm);
}

static void check_error(const char *what, double error, double want)
{
    if (under.verbose && pass == 0)
        printf("%s: relative L2 %.4f, PyTorch's rounding %.4f\n", what, error, want);
    CHECK(fabs(error / want - 1) < 0.1, "%s: relative L2 %.4f; PyTorch's rounding gives %.4f", what,
          error, want);
}

static void calibration(Fp8 f)
{
    enum { ROWS = 394, N = 192 };
    begin(PRODUCT, "calibration, %s", f.current ? "current" : "delayed");
    begin_fp8(f, 128, 1024, 16384);
    Mat *x = mat("x", IN, ROWS, N, 0), *w = mat("w", IN, N, N, 0), *dy = mat("dy", IN, ROWS, N, 0);
    Mat *y = mat("y", SCRATCH, ROWS, N, 0), *dx = mat("dx", SCRATCH, ROWS, N, 0);
    Mat *dw = mat_of(F32, "dw", SCRATCH, N, N, 0);
    rescale(w, 1 / sqrt(N), 0);
    be->linear_forward(&(LinearForward){.y = y->t,
                                        .x = scaled(x, X),
                                        .w = scaled(w, W),
                                        .rows = ROWS,
                                        .in = N,
                                        .out = N,
                                        .tokens = 1});
    be->linear_backward_weight(&(LinearBackwardWeight){
        .dw = dw->t.p, .dy = scaled(dy, DY), .x = scaled(x, X), .rows = ROWS, .in = N, .out = N});
    be->linear_backward_input(&(LinearBackwardInput){.dx = dx->t,
                                                     .dy = scaled(dy, DY),
                                                     .w = scaled(w, W),
                                                     .rows = ROWS,
                                                     .in = N,
                                                     .out = N,
                                                     .tokens = 1});
    pull(y, y->v);
    pull(dx, dx->v);
    pull(dw, dw->v);
    check_error("y", error_of(y->v, x->v, w->v, ROWS, N, N, N, 1, N, 1), forward_error);
    check_error("dx", error_of(dx->v, dy->v, w->v, ROWS, N, N, N, 1, 1, N), backward_error);
    check_error("dw", error_of(dw->v, dy->v, x->v, N, N, ROWS, 1, N, 1, N), backward_error);
    finish(GEMM);
}

/* ------------------------------------------------------------------------------------------------
 * Operands in 8 bits: made by an operation, then read by a layer of other weights. Each case is
 * done twice, with the operand in BF16 and in 8 bits: what the layer makes of it has the same bits,
 * and so have the scales. */

enum { BY_NORM, BY_LINEAR, BY_BELOW, BY_ACTIVATE, BY_INPUT, BY_ATTENTION };
enum { INNER = 32, OUTER = 48, TOKENS = 13 };
typedef struct {
    int by, rows, n, act;
    double drop, scale;
    bool learns;
    int tokens, heads; /* of attention, whose width is n */
} Made;
static const Made made_cases[] = {
    {BY_NORM, 130, 48, 0, 0, 64, true, 0, 0},
    {BY_NORM, 16, 80, 0, 0, 0, true, 0, 0},
    {BY_NORM, 257, 192, 0, 0, 1024, false, 0, 0}, /* beyond: saturated */
    {BY_NORM, 33, 1808, 0, 0, 64, true, 0, 0},    /* rows that no warp's registers hold */
    {BY_LINEAR, 130, 80, ACT_GELU, 0, 128, true, 0, 0},
    {BY_LINEAR, 273, 208, ACT_GELU_TANH, 0.3, 0, true, 0, 0},
    {BY_LINEAR, 273, 208, ACT_GELU_TANH, 0, 0, true, 0, 0},
    {BY_BELOW, 130, 80, ACT_GELU, 0, 128, true, 0, 0}, /* a bias in rows that are not there */
    {BY_LINEAR, 49, 48, ACT_SWIGLU, 0.1, 64, true, 0, 0},
    {BY_ACTIVATE, 257, 64, ACT_QUICK_GELU, 0, 4096, true, 0, 0},
    {BY_INPUT, 130, 80, ACT_GELU, 0, 8192, true, 0, 0},
    {BY_INPUT, 273, 208, ACT_GELU, 0.3, 65536, true, 0, 0},
    {BY_INPUT, 16, 48, ACT_GELU_TANH, 0, 0, false, 0, 0},
    {BY_INPUT, 273, 208, ACT_GELU, 0, 65536, true, 0, 0},
    {BY_INPUT, 257, 80, ACT_SWIGLU, 0.2, 1024, true, 0, 0},
    {BY_ATTENTION, 2 * 197, 128, 0, 0, 4096, true, 197, 2},
    {BY_ATTENTION, 3 * 37, 48, 0, 0.2, 0, true, 37, 3},
    {BY_ATTENTION, 2 * 17, 64, 0, 0, 1 << 24, false, 17, 1}, /* saturated */
    {BY_ATTENTION, 257, 160, 0, 0, 8192, true, 257, 2},
    {BY_ATTENTION, 2 * 210, 64, 0, 0.1, 1024, true, 210, 4},
    {BY_ATTENTION, 65, 224, 0, 0, 1024, true, 65, 2},
};

/* Where a case ends: by way, what the layer made, and the scales. */
typedef struct {
    double *y, *dw; /* the layer's output, or its input's gradient; its weight's gradient */
    Fp8Scale table[2 * OPERANDS];
} Outcome;

static Tensor slot(Tensor t, dev *table, int operand)
{
    t.scale = (dev *)((char *)table + (size_t)operand * sizeof(Fp8Scale));
    return t;
}

/* t, or as large a place for its copies, full of NaN. */
static Tensor in_eight(Tensor t, long rows, long n, int operand, dev **room)
{
    size_t bytes = (size_t)(2 * rows * n + 15 * n + 255);
    char *nan = xmalloc(bytes + GUARD);
    memset(nan, 0xFF, bytes + GUARD);
    *room = be->alloc(bytes + GUARD);
    be->upload(*room, nan, bytes + GUARD);
    free(nan);
    return (Tensor){*room, n, operand == DY ? E5M2 : E4M3, t.scale};
}

/* Nothing was written behind that place, and zeros behind the rows of the transposition. */
static void leave_room(dev *room, long rows, long n)
{
    const long end = 2 * rows * n + 15 * n + 255, across = (rows * n + 255) / 256 * 256;
    const long padded = (rows + 15) / 16 * 16;
    unsigned char *bytes = xmalloc((size_t)(end + GUARD));
    be->download(bytes, room, (size_t)(end + GUARD));
    for (int i = 0; i < GUARD; i++)
        CHECK(bytes[end + i] == 0xFF, "%s: byte %d behind the copies was written", title, i);
    long wrong = 0;
    for (long i = 0; i < padded * n; i++)
        wrong += i % padded >= rows && bytes[across + i] != 0;
    CHECK(wrong == 0, "%s: %ld numbers in rows that are not there", title, wrong);
    free(bytes);
    be->release(room);
}

/* Makes y [rows, n], as the model's forward pass does, and reads it as x. */
static void made_forward(const Made *c, bool eight, Outcome *o, dev *table)
{
    int columns = halves(c->act) * c->n;
    Drop drop = {.p = c->drop, .purpose = RNG_MLP_DROPOUT, .layer = 3};
    bool norm = c->by == BY_NORM;
    Mat *x = mat("x", IN, c->rows, norm ? c->n : INNER, 0), *w = mat("w", IN, columns, INNER, 0);
    Mat *gamma = vec("gamma", IN, norm ? c->n : columns), *beta = vec("beta", IN, c->n);
    Mat *mean = real_vec("mean", SCRATCH, c->rows), *rstd = real_vec("rstd", SCRATCH, c->rows);
    Mat *pre = mat("pre", SCRATCH, c->rows, columns, 0), *m = mat("y", SCRATCH, c->rows, c->n, 0);
    Mat *next = mat("next", IN, OUTER, c->n, 0), *z = mat("z", SCRATCH, c->rows, OUTER, 0);
    Mat *dz = mat("dz", IN, c->rows, OUTER, 0), *dw = mat_of(F32, "dw", SCRATCH, OUTER, c->n, 0);
    dev *room = NULL;
    if (c->by == BY_BELOW) {
        rescale(x, 0, 1);
        rescale(w, 0, -0.0625);
    }
    Tensor y = slot(m->t, table, OPERANDS + X);
    if (eight)
        y = in_eight(y, c->rows, c->n, X, &room);
    LinearForward up = {.y = y,
                        .x = slot(x->t, table, X),
                        .w = slot(w->t, table, W),
                        .bias = pointer(gamma),
                        .rows = c->rows,
                        .in = INNER,
                        .out = c->n,
                        .act = c->act,
                        .pre = pre->t,
                        .tokens = TOKENS,
                        .drop = drop};
    if (norm)
        be->residual_norm_forward(&(ResidualNorm){.x = x->t,
                                                  .y = y,
                                                  .gamma = pointer(gamma),
                                                  .beta = pointer(beta),
                                                  .mean = pointer(mean),
                                                  .rstd = pointer(rstd),
                                                  .eps = 1e-6,
                                                  .rows = c->rows,
                                                  .C = c->n,
                                                  .tokens = 1});
    else
        be->linear_forward(&up);
    if (c->by == BY_ACTIVATE)
        be->activate(&up);
    be->linear_forward(&(LinearForward){.y = z->t,
                                        .x = y,
                                        .w = slot(next->t, table, OPERANDS + W),
                                        .rows = c->rows,
                                        .in = c->n,
                                        .out = OUTER,
                                        .tokens = 1});
    be->linear_backward_weight(&(LinearBackwardWeight){.dw = dw->t.p,
                                                       .dy = slot(dz->t, table, OPERANDS + DY),
                                                       .x = y,
                                                       .rows = c->rows,
                                                       .in = c->n,
                                                       .out = OUTER});
    o->y = xmalloc((size_t)c->rows * OUTER * sizeof(double));
    o->dw = xmalloc((size_t)c->n * OUTER * sizeof(double));
    pull(z, o->y);
    pull(dw, o->dw);
    if (eight)
        leave_room(room, c->rows, c->n);
}

static int columns_of(const Made *c)
{
    if (c->by == BY_ATTENTION)
        return 3 * c->n;
    return (c->by == BY_INPUT ? halves(c->act) : 1) * c->n;
}

/* dx [rows, halves * n] and its column sums */
static void make_dx(const Made *c, Tensor dx, Mat *dbias, dev *table)
{
    Mat *dy = mat("dy", IN, c->rows, INNER, 0), *w = mat("w", IN, INNER, c->n, 0);
    Mat *x = mat("x", IN, c->rows, c->n, 0), *dw = mat_of(F32, "dw", SCRATCH, INNER, c->n, 0);
    Mat *pre = mat("pre", IN, c->rows, columns_of(c), 0);
    be->linear_backward_weight(&(LinearBackwardWeight){.dw = dw->t.p,
                                                       .dy = slot(dy->t, table, DY),
                                                       .x = slot(x->t, table, X),
                                                       .rows = c->rows,
                                                       .in = c->n,
                                                       .out = INNER});
    be->linear_backward_input(
        &(LinearBackwardInput){.dx = dx,
                               .dy = slot(dy->t, table, DY),
                               .w = slot(w->t, table, W),
                               .rows = c->rows,
                               .in = c->n,
                               .out = INNER,
                               .act = c->act,
                               .pre = pre->t,
                               .dbias = pointer(dbias),
                               .drop = {.p = c->drop, .purpose = RNG_MLP_DROPOUT, .layer = 3},
                               .tokens = TOKENS});
}

/* dqkv [rows, 3n] and its column sums */
static void make_dqkv(const Made *c, Tensor dqkv, Mat *dbias)
{
    Mat *qkv = mat("qkv", IN, c->rows, 3 * c->n, 0), *out = mat("out", SCRATCH, c->rows, c->n, 0);
    Mat *dout = mat("dout", IN, c->rows, c->n, 0);
    Mat *lse = real_vec("lse", SCRATCH, (long)c->rows * c->heads);
    Mat *delta = real_vec("delta", SCRATCH, (long)c->rows * c->heads);
    Attention a = {.qkv = qkv->t,
                   .out = out->t,
                   .lse = lse->t.p,
                   .delta = delta->t.p,
                   .B = c->rows / c->tokens,
                   .T = c->tokens,
                   .Tq = c->tokens,
                   .heads = c->heads,
                   .hs = c->n / c->heads,
                   .drop = {.p = c->drop, .purpose = RNG_ATTN_DROPOUT, .layer = 3},
                   .dqkv = dqkv,
                   .dout = dout->t,
                   .dbias = pointer(dbias)};
    be->attention_forward(&a);
    be->attention_backward(&a);
}

/* Makes a gradient, which is the dy of the layer before. Returns its column sums. */
static double *made_backward(const Made *c, bool eight, Outcome *o, dev *table)
{
    int columns = columns_of(c);
    Mat *m = mat("dx", SCRATCH, c->rows, columns, 0);
    Mat *dbias = real_vec("dbias", SCRATCH, columns);
    Mat *below = mat("below", IN, c->rows, OUTER, 0), *next = mat("next", IN, columns, OUTER, 0);
    Mat *dbelow = mat("dbelow", SCRATCH, c->rows, OUTER, 0);
    Mat *dnext = mat_of(F32, "dnext", SCRATCH, columns, OUTER, 0);
    dev *room = NULL;
    Tensor dx = slot(m->t, table, OPERANDS + DY);
    if (eight)
        dx = in_eight(dx, c->rows, columns, DY, &room);
    if (c->by == BY_ATTENTION)
        make_dqkv(c, dx, dbias);
    else
        make_dx(c, dx, dbias, table);
    be->linear_backward_weight(&(LinearBackwardWeight){.dw = dnext->t.p,
                                                       .dy = dx,
                                                       .x = slot(below->t, table, OPERANDS + X),
                                                       .rows = c->rows,
                                                       .in = OUTER,
                                                       .out = columns});
    be->linear_backward_input(&(LinearBackwardInput){.dx = dbelow->t,
                                                     .dy = dx,
                                                     .w = slot(next->t, table, OPERANDS + W),
                                                     .rows = c->rows,
                                                     .in = OUTER,
                                                     .out = columns,
                                                     .tokens = 1});
    o->y = xmalloc((size_t)c->rows * OUTER * sizeof(double));
    o->dw = xmalloc((size_t)columns * OUTER * sizeof(double));
    double *sums = xmalloc((size_t)columns * sizeof *sums);
    pull(dbelow, o->y);
    pull(dnext, o->dw);
    pull(dbias, sums);
    if (eight)
        leave_room(room, c->rows, columns);
    return sums;
}

static void rounded_where_made(const Made *c)
{
    static const char *const makers[] = {"norm",     "linear",         "linear, far below its bias",
                                         "activate", "input gradient", "attention"};
    bool gradient = c->by == BY_INPUT || c->by == BY_ATTENTION;
    int columns = columns_of(c), first = n_cases;
    Outcome o[2];
    double *sums[2] = {NULL};
    for (int eight = 0; eight < 2; eight++) {
        n_cases = first; /* the same numbers */
        begin(PRODUCT, "%s %dx%d act %d in 8 bits", makers[c->by], c->rows, c->n, c->act);
        how = (Fp8){.learns = c->learns, .wgrad = true};
        be->fp8(&how);
        dev *table = be->alloc(sizeof o->table);
        for (int i = 0; i < 2 * OPERANDS; i++)
            o[eight].table[i] = (Fp8Scale){.scale = (float)(i < OPERANDS ? 64 : c->scale)};
        be->upload(table, o[eight].table, sizeof o->table);
        if (gradient)
            sums[eight] = made_backward(c, eight, &o[eight], table);
        else
            made_forward(c, eight, &o[eight], table);
        be->download(o[eight].table, table, sizeof o->table);
        be->release(table);
        finish(EXACT);
    }
    size_t y = (size_t)c->rows * OUTER * sizeof(double);
    CHECK(memcmp(o[0].y, o[1].y, y) == 0, "%s: the layer makes something else of it", title);
    CHECK(memcmp(o[0].dw, o[1].dw, (size_t)columns * OUTER * sizeof(double)) == 0,
          "%s: its weight's gradient is another", title);
    CHECK(memcmp(o[0].table, o[1].table, sizeof o->table) == 0, "%s: scales or amax differ", title);
    CHECK((o[0].table[OPERANDS + (gradient ? DY : X)].amax > 0) == c->learns, "%s: amax is %g",
          title, (double)o[0].table[OPERANDS + X].amax);
    double within = c->by == BY_INPUT ? 1e-5 : 0; /* sums in another order */
    for (int i = 0; sums[0] && i < columns; i++)
        CHECK(fabs(sums[0][i] - sums[1][i]) <= within * (fabs(sums[0][i]) + 1),
              "%s: column %d sums up to %g, not %g", title, i, sums[1][i], sums[0][i]);
    for (int i = 0; i < 2; i++) {
        free(o[i].y);
        free(o[i].dw);
        free(sums[i]);
    }
}

/* ------------------------------------------------------------------------------------------------
 * The end of a step */

/* Two ranks' tables through five steps, of which one is skipped; six operands: an x, a w, a dy, one
 * that nobody sees, one that overflows in one step, one that shrinks. */
static void updating(int history, int margin)
{
    enum { N = 6, RANKS = 2, STEPS = 5 };
    static const float amax[STEPS][RANKS][N] = {
        {{1, 0.02f, 1e-5f, 0, 7, 1000}, {3, 0.01f, 1e-6f, 0, 8, 500}},
        {{2, 0.03f, 1e-5f, 0, INFINITY, 100}, {1, 0.03f, 1e-3f, 0, 1, 100}},
        {{NAN, 9, 9, 9, 9, 9}, {9, 9, 9, 9, 9, 9}}, /* skipped */
        {{1, 0.04f, 2e-5f, 0, 2, 10}, {1.5f, 0.04f, 3e-5f, 0, 1, 10}},
        {{1, 0.04f, 2e-5f, 0, NAN, 1}, {1, 0.04f, 3e-5f, 0, 1, 1}}};
    begin(PLAIN, "update, history %d, margin %d", history, margin);
    Fp8Scale all[RANKS][N] = {0}, mine[N];
    double want[N][8] = {0};
    dev *table = be->alloc(sizeof all), *past = be->alloc(sizeof(real) * N * (size_t)history);
    for (int s = 0; s < STEPS; s++) {
        st.skip = s == 2;
        send_state();
        be->download(mine, table, sizeof mine);
        for (int r = 0; r < RANKS; r++)
            for (int i = 0; i < N; i++) {
                all[r][i] = mine[i];
                all[r][i].amax = amax[s][r][i];
            }
        be->upload(table, all, sizeof all); /* this rank is the first: its table is theirs */
        be->fp8_update(&(Fp8Update){.scales = table,
                                    .amax = past,
                                    .all = table,
                                    .n = N,
                                    .ranks = RANKS,
                                    .history = history,
                                    .margin = margin});
        real have[N * 8];
        be->download(mine, table, sizeof mine);
        be->download(have, past, sizeof(real) * N * (size_t)history);
        for (int i = 0; i < N; i++) {
            double a = (double)amax[s][0][i], b = (double)amax[s][1][i], most = 0;
            if (s != 2 && isfinite(a) && isfinite(b) && fmax(a, b) > 0) {
                memmove(want[i] + 1, want[i], sizeof(double) * (size_t)(history - 1));
                want[i][0] = fmax(a, b);
            }
            for (int k = 0; k < history; k++) {
                CHECK((double)have[i * history + k] == want[i][k],
                      "%s: step %d, operand %d, %d ago: %g", title, s, i, k,
                      (double)have[i * history + k]);
                most = fmax(most, want[i][k]);
            }
            double expect = most > 0 ? power_for(most, i % 3, margin) : 0;
            CHECK((double)mine[i].scale == expect, "%s: step %d, operand %d: scale %g, not %g",
                  title, s, i, (double)mine[i].scale, expect);
            CHECK(mine[i].amax == 0, "%s: step %d, operand %d: amax stays %g", title, s, i,
                  (double)mine[i].amax);
        }
    }
    be->release(table);
    be->release(past);
    finish(EXACT);
}

int main(int argc, char **argv)
{
    backend_cpu_reexec(argv);
    device_options(argc, argv);
    if (!under.be->fp8 || !under.fp8) {
        SKIP("products of 8-bit numbers: --backend cuda --type fp8");
        return check_report();
    }
    be = under.be;
    device_init(0);
    for (pass = 0; pass < 2; pass++) {
        same_threads = true;
        n_cases = 0;
        st_dev = be->alloc(sizeof st);
        scratch_dev = be->alloc(SCRATCH_BYTES + GUARD);
        scales = be->alloc(sizeof scale);
        be->bind(st_dev, scratch_dev, SCRATCH_BYTES);
        for (int s = -3; s <= 6; s += 3) {
            rounding(X, ldexp(1, s));
            rounding(DY, ldexp(1, s));
        }
        for (int operand = X; operand <= DY; operand += 2) {
            not_finite(operand, INFINITY);
            not_finite(operand, -INFINITY);
            not_finite(operand, NAN);
        }
        for (int i = 0; i < COUNT(cases); i++) {
            forward(&cases[i]);
            backward(&cases[i]);
        }
        for (int i = 0; i < COUNT(made_cases); i++)
            rounded_where_made(&made_cases[i]);
        calibration((Fp8)DELAYED);
        calibration((Fp8)CURRENT);
        updating(1, 0);
        updating(3, 2);
        updating(8, 0);
        char zeros[GUARD] = {0}, after[GUARD];
        be->download(after, (dev *)((char *)scratch_dev + SCRATCH_BYTES), GUARD);
        CHECK(memcmp(zeros, after, GUARD) == 0, "%s wrote behind its scratch memory", be->name);
        be->release(scales);
        be->release(scratch_dev);
        be->release(st_dev);
    }
    if (under.verbose)
        report_worst();
    return check_report();
}
