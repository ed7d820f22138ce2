/* test_ops: every op of a Backend against its formula in vit.h, written out naively in double.
 *
 * A case makes matrices (mat, vec), calls the op on their tensors, writes what vit.h promises into
 * the outputs' `v`, and ends with `finish`, which compares: relative L2 of 1e-5 per output. Every
 * matrix is a device block with guards in front and behind and, where padded, a gap after each row;
 * inputs, guards, gaps and whatever an op must leave alone are compared bit for bit. Outputs are
 * NaN before the op, as are the gaps of inputs, so that reading what nobody wrote shows.
 *
 * run_cases takes any Backend and reaches device memory through it alone. It runs all cases with
 * one thread, with two, and with two again: the same bits each time, except that OpenBLAS may sum
 * in another order with another number of threads. The model made of the ops: test/test_grad.c.
 * Order: matrices and comparison, the ops in the order of vit.h, random numbers and memory, main.
 */
#include "../vit.h"
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const Backend *be;
static StepState st; /* as the device has it */
static dev *st_dev;

/* ------------------------------------------------------------------------------------------------
 * Matrices and comparison */

enum { GUARD = 64, MAX_MATS = 24, MAX_CASES = 256 };
enum { IN, OUT, INOUT, SCRATCH }; /* scratch: an input that the op may destroy */
enum { GEMM, EXACT };             /* do the bits of a case depend on the number of threads? */
static const int threads[] = {1, 2, 2};
static const real filler = (real)-7e-3;

typedef struct {
    const char *name;
    int kind;
    long rows, cols, ld, n; /* n: elements of the block, GUARD + rows * ld + GUARD */
    dev *block;
    Tensor t;     /* without the guards */
    real *before; /* the block as it was sent */
    double *v;    /* [rows, cols]: the values sent, then those expected; NaN: as it was sent,
                     infinite: anything that is not finite */
} Mat;

static Mat mats[MAX_MATS];
static int n_mats, n_cases, pass;
static char title[160];
static uint64_t digests[MAX_CASES]; /* of every case's results in the pass before */
static double gate;                 /* relative L2 of every output */
static double absolute;             /* where > 0: gate on each element's error as well */

/* Uniform with mean 0 and variance 1, a function of the case's and the number's index. */
static uint32_t n_drawn;
static double draw(void)
{
    return sqrt(12) * (rng_unit(philox(99, n_drawn++, (uint32_t)n_cases, 0, 0).v[0]) - 0.5);
}

static void send_state(void)
{
    be->wait(be->upload(st_dev, &st, sizeof st));
}

PRINTF_LIKE(1, 2) static void begin(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(title, sizeof title, fmt, args);
    va_end(args);
    n_drawn = 0;
    absolute = 0;
    gate = 1e-5;
    st = (StepState){.seed = 0x123456789abcdef1u,
                     .lr = 0.5,
                     .step = 17,
                     .sample0 = 5,
                     .t = 3,
                     .clip = 1,
                     .loss_scale = 1};
    send_state();
}

/* Send the values to the device; v becomes what the device has. */
static void push(Mat *m)
{
    for (long i = 0; i < m->rows * m->cols; i++) {
        real *x = &m->before[GUARD + i / m->cols * m->ld + i % m->cols];
        *x = (real)m->v[i];
        m->v[i] = (double)*x;
    }
    be->wait(be->upload(m->block, m->before, (size_t)m->n * sizeof(real)));
}

/* v = factor v + offset */
static void rescale(Mat *m, double factor, double offset)
{
    for (long i = 0; i < m->rows * m->cols; i++)
        m->v[i] = factor * m->v[i] + offset;
    push(m);
}

/* A matrix of random numbers (OUT: of NaN), rows `pad` elements longer than wide; NULL where it
 * would be empty, which is how cases leave out what is optional. */
static Mat *mat(const char *name, int kind, long rows, long cols, int pad)
{
    if (rows * cols == 0)
        return NULL;
    if (n_mats == MAX_MATS)
        die(NULL, "test_ops: MAX_MATS is too small");
    Mat *m = &mats[n_mats++];
    long ld = cols + pad, n = 2 * GUARD + rows * ld;
    *m = (Mat){name, kind, rows, cols, ld, n, NULL, {NULL, ld, F32, NULL}, NULL, NULL};
    m->block = be->alloc((size_t)n * sizeof(real));
    m->t.p = (dev *)((char *)m->block + GUARD * sizeof(real));
    m->before = xmalloc((size_t)n * sizeof(real));
    m->v = xmalloc((size_t)(rows * cols) * sizeof(double));
    for (long i = 0; i < n; i++)
        m->before[i] = kind == IN ? (real)NAN : filler;
    for (long i = 0; i < rows * cols; i++)
        m->v[i] = kind == OUT ? NAN : draw();
    push(m);
    return m;
}

static Mat *vec(const char *name, int kind, long n)
{
    return mat(name, kind, 1, n, 0);
}

static Tensor tensor(const Mat *m)
{
    return m ? m->t : (Tensor){.p = NULL};
}

static dev *pointer(const Mat *m)
{
    return m ? m->t.p : NULL;
}

/* Compare one block with what is expected; folds its bits into the digest. */
static void compare(const Mat *m, const real *after, uint64_t *digest)
{
    double diff = 0, norm = 0, worst = 0;
    long touched = 0, worst_at = -1;
    for (long i = 0; i < m->n; i++) {
        long at = i - GUARD, r = at / m->ld, j = at % m->ld;
        bool inside = at >= 0 && r < m->rows && j < m->cols;
        if (inside && m->kind == SCRATCH)
            continue;
        double want = inside && m->kind != IN ? m->v[r * m->cols + j] : NAN, got = (double)after[i];
        for (size_t k = 0; k < sizeof(real); k++) /* FNV-1a */
            *digest = (*digest ^ ((const unsigned char *)&after[i])[k]) * 0x100000001b3u;
        if (isnan(want)) {
            touched += memcmp(&after[i], &m->before[i], sizeof(real)) != 0;
        } else if (isinf(want)) {
            diff += isfinite(got) ? INFINITY : 0;
        } else {
            double error = fabs(got - want) / fmax(1, fabs(want));
            diff += (got - want) * (got - want);
            norm += want * want;
            if (!(error <= worst))
                worst = error, worst_at = at;
        }
    }
    double l2 = sqrt(diff) / (norm > 0 ? sqrt(norm) : 1);
    CHECK(touched == 0, "%s, %s: %ld elements to leave alone", title, m->name, touched);
    CHECK(l2 <= gate, "%s, %s: relative L2 %.2e > %.0e", title, m->name, l2, gate);
    if (absolute > 0 && m->kind == OUT)
        CHECK(worst <= absolute, "%s, %s: element %ld off by %.2e", title, m->name, worst_at,
              worst);
}

/* End of a case. */
static void finish(int exact)
{
    uint64_t digest = 0xcbf29ce484222325u;
    for (int k = 0; k < n_mats; k++) {
        Mat *m = &mats[k];
        real *after = xmalloc((size_t)m->n * sizeof(real));
        be->download(after, m->block, (size_t)m->n * sizeof(real));
        compare(m, after, &digest);
        be->release(m->block);
        free(after);
        free(m->before);
        free(m->v);
    }
    n_mats = 0;
    if (n_cases == MAX_CASES)
        die(NULL, "test_ops: MAX_CASES is too small");
    if (pass > 0 && (exact || threads[pass] == threads[pass - 1]))
        CHECK(digests[n_cases] == digest, "%s: other bits in pass %d", title, pass);
    digests[n_cases++] = digest;
}

/* Sum of products of n elements, `sa` and `sb` apart. */
static double dot(const double *a, long sa, const double *b, long sb, long n)
{
    double s = 0;
    for (long i = 0; i < n; i++)
        s += a[i * sa] * b[i * sb];
    return s;
}

/* out[j] = sum of column j of x; elements that are not computed (NaN) do not count */
static void sum_columns(Mat *out, const Mat *x)
{
    for (long j = 0; out && j < x->cols; j++) {
        out->v[j] = 0;
        for (long r = 0; r < x->rows; r++)
            out->v[j] += isnan(x->v[r * x->cols + j]) ? 0 : x->v[r * x->cols + j];
    }
}

static double finite_or_not(double x)
{
    return isfinite(x) ? x : INFINITY;
}

/* The factor of one element, 0 or 1/(1-p), from the definition above Drop in vit.h. */
static double drop_factor(Drop d, long sample, long element)
{
    if (d.p <= 0)
        return 1;
    Philox r = rng_block(st.seed, (uint32_t)(element / 4), st.sample0 + (uint32_t)sample, st.step,
                         d.purpose, d.layer);
    return r.v[element % 4] >= rng_threshold(d.p) ? 1 / (1 - d.p) : 0;
}

/* ------------------------------------------------------------------------------------------------
 * Linear */

static const double pi = 3.14159265358979323846;

static double act(double x, int kind)
{
    if (kind == ACT_GELU)
        return 0.5 * x * erfc(-x / sqrt(2));
    if (kind == ACT_GELU_TANH)
        return 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x * x * x)));
    return kind == ACT_TANH ? tanh(x) : x;
}

static double act_slope(double x, int kind)
{
    double t = tanh(sqrt(2 / pi) * (x + 0.044715 * x * x * x));
    if (kind == ACT_GELU)
        return 0.5 * erfc(-x / sqrt(2)) + x * exp(-0.5 * x * x) / sqrt(2 * pi);
    if (kind == ACT_GELU_TANH)
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * sqrt(2 / pi) * (1 + 3 * 0.044715 * x * x);
    return kind == ACT_TANH ? 1 - tanh(x) * tanh(x) : 1;
}

typedef struct {
    int rows, in, out, act, tokens, pad;
    bool bias, pre, residual, accumulate;
    double drop;
} LinearCase;

static const LinearCase linear_cases[] = {
    {1, 1, 1, ACT_NONE, 1, 0, 0, 0, 0, 0, 0},
    {1, 192, 10, ACT_NONE, 1, 0, 1, 0, 0, 0, 0},
    {197, 48, 144, ACT_NONE, 197, 0, 1, 0, 0, 0, 0},
    {257, 81, 10, ACT_NONE, 257, 7, 0, 0, 1, 0, 0},
    {2 * 257, 33, 47, ACT_NONE, 257, 3, 1, 0, 1, 1, 0},
    {300, 24, 24, ACT_NONE, 100, 40, 0, 0, 0, 1, 0},
    {2 * 197, 31, 65, ACT_NONE, 197, 1, 1, 0, 1, 0, 0.1},
    {2 * 197, 64, 67, ACT_GELU, 197, 0, 1, 1, 0, 0, 0},
    {3 * 65, 48, 321, ACT_GELU, 65, 5, 1, 1, 1, 0, 0.2},
    {257, 16, 300, ACT_GELU, 257, 9, 0, 0, 0, 0, 0},
    {300, 80, 37, ACT_GELU_TANH, 300, 3, 1, 1, 0, 0, 0.5},
    {3, 80, 10, ACT_GELU_TANH, 1, 0, 1, 0, 1, 0, 0},
    {5, 192, 50, ACT_TANH, 1, 0, 1, 1, 0, 0, 0},
    {33, 17, 19, ACT_TANH, 11, 11, 0, 1, 1, 0, 0.3},
};

static void linear_forward(const LinearCase *c)
{
    begin("linear_forward %dx%dx%d act %d", c->rows, c->in, c->out, c->act);
    Drop d = {c->drop, RNG_MLP_DROPOUT, 2};
    Mat *x = mat("x", IN, c->rows, c->in, c->pad), *w = mat("w", IN, c->out, c->in, c->pad / 2);
    Mat *bias = vec("bias", IN, c->bias * c->out), *y = mat("y", OUT, c->rows, c->out, c->pad);
    Mat *pre = mat("pre", OUT, c->pre * c->rows, c->out, c->pad + c->pad / 2);
    Mat *residual = mat("residual", IN, c->residual * c->rows, c->out, 2 * c->pad);
    rescale(w, 1 / sqrt(c->in), 0);
    be->linear_forward(&(LinearForward){tensor(y), tensor(x), tensor(w), pointer(bias), c->rows,
                                        c->in, c->out, c->act, tensor(pre), tensor(residual), d,
                                        c->tokens});
    for (long i = 0; i < (long)c->rows * c->out; i++) {
        long r = i / c->out, o = i % c->out;
        double s = dot(x->v + r * c->in, 1, w->v + o * c->in, 1, c->in) + (bias ? bias->v[o] : 0);
        if (pre)
            pre->v[i] = s;
        y->v[i] = act(s, c->act) * drop_factor(d, r / c->tokens, r % c->tokens * c->out + o);
        if (residual)
            y->v[i] += residual->v[i];
    }
    finish(GEMM);
}

static void linear_backward_input(const LinearCase *c)
{
    begin("linear_backward_input %dx%dx%d act %d", c->rows, c->in, c->out, c->act);
    Drop d = {c->drop, RNG_MLP_DROPOUT, 2};
    Mat *dx = mat("dx", c->accumulate ? INOUT : OUT, c->rows, c->in, c->pad);
    Mat *dy = mat("dy", IN, c->rows, c->out, c->pad / 2);
    Mat *w = mat("w", IN, c->out, c->in, 2 * c->pad), *dbias = vec("dbias", OUT, c->bias * c->in);
    Mat *pre = mat("pre", IN, c->act ? c->rows : 0, c->in, c->pad + c->pad / 2);
    be->linear_backward_input(&(LinearBackwardInput){tensor(dx), tensor(dy), tensor(w), c->rows,
                                                     c->in, c->out, c->act, tensor(pre),
                                                     pointer(dbias), d, c->tokens, c->accumulate});
    for (long i = 0; i < (long)c->rows * c->in; i++) {
        long r = i / c->in, j = i % c->in;
        double s = dot(dy->v + r * c->out, 1, w->v + j, c->in, c->out);
        s *= pre ? act_slope(pre->v[i], c->act) : 1;
        s *= drop_factor(d, r / c->tokens, r % c->tokens * c->in + j);
        dx->v[i] = c->accumulate ? dx->v[i] + s : s;
    }
    sum_columns(dbias, dx);
    finish(GEMM);
}

static void linear_backward_weight(const LinearCase *c)
{
    begin("linear_backward_weight %dx%dx%d", c->rows, c->in, c->out);
    Mat *dw = vec("dw", OUT, (long)c->out * c->in), *x = mat("x", IN, c->rows, c->in, c->pad);
    Mat *dy = mat("dy", IN, c->rows, c->out, 2 * c->pad);
    be->linear_backward_weight(
        &(LinearBackwardWeight){pointer(dw), tensor(dy), tensor(x), c->rows, c->in, c->out});
    for (long i = 0; i < (long)c->out * c->in; i++)
        dw->v[i] = dot(dy->v + i / c->in, c->out, x->v + i % c->in, c->in, c->rows);
    finish(GEMM);
}

/* An activation or its slope over a sweep and at extremes, against libm; errors of values beyond 1
 * are relative. The sweep is the bias of a product that is zero, so that an infinity arrives whole.
 * The slope of tanh GELU holds x^3 (1 - tanh^2), which magnifies tanh's rounding fourfold. */
static void activation(int kind, bool slope)
{
    static const double ends[] = {1e4, -1e4, 1e3, -1e3, 88, -88, 1e-30, -1e-30, 0, -0.0, INFINITY};
    enum { SWEEP = 20001 };
    int n = SWEEP + COUNT(ends) - slope; /* no slope at infinity */
    begin("%s %d over a sweep", slope ? "slope of activation" : "activation", kind);
    absolute = slope ? 4e-6 : 1e-6;
    Mat *one = vec("one", IN, 1), *w = mat("w", IN, slope ? 1 : n, slope ? n : 1, 0);
    Mat *x = vec("sweep", IN, n), *y = vec("y", OUT, n);
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
                                            .tokens = 1});
    for (int i = 0; i < n; i++)
        y->v[i] = slope ? act_slope(x->v[i], kind) : act(x->v[i], kind);
    finish(EXACT);
}

/* ------------------------------------------------------------------------------------------------
 * Patches and embedding */

typedef struct {
    int B, H, W, P, pad;
    bool u8, mix;
} PatchCase;

static const PatchCase patch_cases[] = {
    {1, 32, 32, 4, 0, 1, 0}, {3, 12, 20, 4, 5, 1, 1}, {2, 9, 15, 3, 0, 0, 0},
    {3, 14, 7, 7, 3, 0, 1},  {1, 1, 1, 1, 2, 1, 0},
};

static void patchify(const PatchCase *c)
{
    begin("patchify %dx%d patch %d u8 %d mix %d", c->H, c->W, c->P, c->u8, c->mix);
    long gw = c->W / c->P, Np = c->H / c->P * gw, PP = (long)c->P * c->P;
    long pixels = (long)c->H * c->W, n = c->B * pixels * VIT_CHANNELS;
    Mat *images = vec("images", IN, n);
    Mat *out = mat("out", OUT, c->B * Np, VIT_CHANNELS * PP, c->pad);
    Mix mix[] = {{0.3f, 2}, {1, 0}, {0.85f, 2}};
    uint8_t *bytes = xmalloc((size_t)n);
    dev *bytes_dev = be->alloc((size_t)n), *mix_dev = be->alloc(sizeof mix);
    Patchify a = {tensor(out),
                  c->u8 ? bytes_dev : pointer(images),
                  c->u8,
                  c->mix ? mix_dev : NULL,
                  c->B,
                  c->H,
                  c->W,
                  c->P,
                  {0.485, 0.456, 0.406},
                  {0.229, 0.224, 0.225}};
    for (long i = 0; i < n; i++)
        bytes[i] = (uint8_t)philox(3, (uint32_t)i, 0, 0, 0).v[0];
    be->wait(be->upload(bytes_dev, bytes, (size_t)n));
    be->wait(be->upload(mix_dev, mix, sizeof mix));
    be->patchify(&a);
    for (long i = 0; i < out->rows * out->cols; i++) {
        long b = i / out->cols / Np, patch = i / out->cols % Np, ch = i % out->cols / PP;
        long y = patch / gw * c->P + i % PP / c->P, x = patch % gw * c->P + i % c->P;
        double v[2] = {0}, lambda = c->mix ? (double)mix[b].lambda : 1;
        for (int k = 0; k < 1 + c->mix; k++) {
            long image = k ? mix[b].partner : b, at = y * c->W + x;
            v[k] = c->u8 ? bytes[(image * pixels + at) * VIT_CHANNELS + ch] / 255.0
                         : images->v[(image * VIT_CHANNELS + ch) * pixels + at];
            if (c->u8)
                v[k] = (v[k] - a.mean[ch]) / a.std[ch];
        }
        out->v[i] = lambda * v[0] + (1 - lambda) * v[1];
    }
    finish(EXACT);
    be->release(bytes_dev);
    be->release(mix_dev);
    free(bytes);
}

typedef struct {
    int B, T, cls, C, pad;
    double drop;
    bool dbias;
} EmbedCase;

static const EmbedCase embed_cases[] = {
    {1, 197, 1, 48, 0, 0, 1},
    {3, 65, 0, 17, 5, 0, 0},
    {2, 257, 8, 80, 3, 0.1, 1},
    {5, 2, 1, 7, 0, 0.5, 1},
};

/* Forward: x = factor (source + pos), the source being a class token or a patch; backward the sums
 * over images of factor dx, where dx may be destroyed. */
static void embed(const EmbedCase *c, bool backward)
{
    begin("embed_%s B %d T %d", backward ? "backward" : "forward", c->B, c->T);
    long Np = c->T - c->cls, first = (long)c->cls * c->C, each = (long)c->T * c->C;
    int in = backward ? OUT : IN, out = !backward ? OUT : c->drop > 0 ? SCRATCH : IN;
    Mat *x = mat("x", out, (long)c->B * c->T, c->C, c->pad);
    Mat *patches = mat("patches", in, c->B * Np, c->C, 2 * c->pad);
    Mat *cls = vec("cls", in, first), *pos = vec("pos", in, each);
    Mat *dbias = vec("dbias", OUT, backward && c->dbias ? c->C : 0);
    Embed a = {tensor(x),      tensor(patches),
               pointer(cls),   pointer(pos),
               pointer(dbias), c->B,
               c->T,           c->cls,
               c->C,           {c->drop, RNG_EMBED_DROPOUT, 0}};
    (backward ? be->embed_backward : be->embed_forward)(&a);
    for (long i = 0; i < c->B * each; i++) {
        long b = i / each, e = i % each;
        double factor = drop_factor(a.drop, b, e);
        double *source = e < first ? &cls->v[e] : &patches->v[b * Np * c->C + e - first];
        if (backward) {
            pos->v[e] = (b ? pos->v[e] : 0) + factor * x->v[i];
            *source = (e < first && b ? *source : 0) + factor * x->v[i];
        } else {
            x->v[i] = factor * (*source + pos->v[e]);
        }
    }
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
    {2, 31, 16, 0, 1, 0, 0, 0, 0, 0},
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

static void norm_forward(const NormCase *c)
{
    begin("residual_norm_forward B %d tokens %d C %d", c->B, c->tokens, c->C);
    long rows = (long)c->B * c->tokens, C = c->C, normed = c->norm * rows;
    Mat *x = mat("x", IN, rows, C, c->pad), *ls = vec("ls", IN, c->ls * C);
    Mat *branch = mat("branch", IN, c->branch * rows, C, c->pad / 2);
    Mat *x_out = mat("x_out", OUT, c->branch * rows, C, 2 * c->pad);
    Mat *gamma = vec("gamma", IN, c->norm * C), *beta = vec("beta", IN, c->norm * C);
    Mat *y = mat("y", OUT, normed, C, c->pad);
    Mat *mean = vec("mean", OUT, normed), *rstd = vec("rstd", OUT, normed);
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
                      .drop = {c->drop, RNG_PROJ_DROPOUT, 3},
                      .path = {c->path, RNG_ATTN_PATH, 3},
                      .eps = 1e-5,
                      .rows = (int)rows,
                      .C = c->C,
                      .tokens = c->tokens};
    be->residual_norm_forward(&a);
    const double *stream = x_out ? x_out->v : x->v;
    for (long i = 0; x_out && i < rows * C; i++)
        x_out->v[i] = x->v[i] + branch_factor(&a, ls, i / C, i % C) * branch->v[i];
    for (long r = 0; r < normed; r++)
        moments(stream + r * C, C, a.eps, &mean->v[r], &rstd->v[r]);
    for (long i = 0; i < normed * C; i++)
        y->v[i] = (stream[i] - mean->v[i / C]) * rstd->v[i / C] * gamma->v[i % C] + beta->v[i % C];
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

static void norm_backward(const NormCase *c)
{
    begin("residual_norm_backward B %d tokens %d C %d", c->B, c->tokens, c->C);
    long rows = (long)c->B * c->tokens, C = c->C, normed = c->norm * rows, normed_C = c->norm * C;
    bool changed = c->drop > 0 || c->path > 0 || c->ls; /* else dbranch is dx and not wanted */
    Mat *x = mat("x", IN, rows, C, c->pad), *branch = mat("branch", IN, rows, C, c->pad / 2);
    Mat *dx = mat("dx", c->norm ? INOUT : IN, rows, C, c->pad);
    Mat *dy = mat("dy", IN, normed, C, c->pad);
    Mat *dbranch = mat("dbranch", OUT, changed * rows, C, 2 * c->pad);
    Mat *ls = vec("ls", IN, c->ls * C), *dls = vec("dls", OUT, c->ls * C);
    Mat *gamma = vec("gamma", IN, normed_C), *dbias = vec("dbias", OUT, c->branch * C);
    Mat *dgamma = vec("dgamma", OUT, normed_C), *dbeta = vec("dbeta", OUT, normed_C);
    Mat *mean = vec("mean", IN, normed), *rstd = vec("rstd", IN, normed);
    for (long r = 0; r < normed; r++)
        moments(x->v + r * C, C, 1e-2, &mean->v[r], &rstd->v[r]);
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
                      .drop = {c->drop, RNG_FC2_DROPOUT, 1},
                      .path = {c->path, RNG_MLP_PATH, 1},
                      .rows = (int)rows,
                      .C = c->C,
                      .tokens = c->tokens,
                      .dy = tensor(dy),
                      .dx = tensor(dx),
                      .dbranch = tensor(dbranch),
                      .dgamma = pointer(dgamma),
                      .dbeta = pointer(dbeta),
                      .dls = pointer(dls),
                      .dbias = pointer(dbias)};
    be->residual_norm_backward(&a);
    for (long r = 0; r < normed; r++)
        norm_row((const Mat *const[]){x, dy, gamma, rstd}, r, dx->v, dgamma->v, dbeta->v);
    for (long i = 0; i < rows * C; i++) {
        long r = i / C, j = i % C;
        if (dbranch)
            dbranch->v[i] = branch_factor(&a, ls, r, j) * dx->v[i];
        double scaled = branch_factor(&a, NULL, r, j) * branch->v[i];
        if (dls)
            dls->v[j] = (r ? dls->v[j] : 0) + dx->v[i] * scaled;
    }
    sum_columns(dbias, dbranch ? dbranch : dx);
    finish(EXACT);
}

/* ------------------------------------------------------------------------------------------------
 * Attention */

typedef struct {
    int B, T, Tq, heads, hs, pad;
    double drop;
    int spread; /* > 0: q and k are integers up to this: saturated, with exact logits */
} AttentionCase;

static const AttentionCase attention_cases[] = {
    {1, 1, 1, 1, 16, 0, 0, 0},       {1, 197, 197, 3, 64, 0, 0, 0}, {2, 197, 1, 3, 64, 0, 0, 0},
    {1, 257, 257, 2, 80, 5, 0.1, 0}, {2, 300, 300, 1, 24, 3, 0, 0}, {1, 300, 1, 2, 80, 1, 0.3, 0},
    {3, 65, 65, 3, 24, 0, 0.5, 0},   {2, 197, 8, 2, 16, 7, 0.2, 0}, {1, 513, 300, 1, 16, 0, 0, 0},
    {1, 50, 50, 2, 1, 1, 0, 0},      {1, 197, 197, 2, 16, 0, 0, 9}, {1, 257, 257, 1, 64, 0, 0, 300},
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
        mask[j] = drop_factor(a->drop, y.b, (y.h * a->T + y.i) * a->T + j);
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

/* A row's share: dv_j += p m dout; with dp = m (dout . v_j), ds = p (dp - sum p dp) / sqrt(hs):
 * dq = sum_j ds k_j, dk_j += ds q */
static void attention_slope(const Attention *a, Query y, const double *qkv, const double *dout,
                            double *dqkv)
{
    long ld = 3L * a->heads * a->hs;
    double p[a->T], mask[a->T], ds[a->T], mean = 0;
    probabilities(a, y, qkv, p, mask);
    for (long j = 0; j < a->T; j++) {
        ds[j] = mask[j] * dot(dout + y.out, 1, qkv + y.v + j * ld, 1, a->hs);
        mean += p[j] * ds[j];
    }
    for (long j = 0; j < a->T; j++) {
        ds[j] = p[j] * (ds[j] - mean) / sqrt(a->hs);
        for (long e = 0; e < a->hs; e++) {
            dqkv[y.k + j * ld + e] += ds[j] * qkv[y.q + e];
            dqkv[y.v + j * ld + e] += p[j] * mask[j] * dout[y.out + e];
        }
    }
    for (long e = 0; e < a->hs; e++)
        dqkv[y.q + e] = dot(ds, 1, qkv + y.k + e, ld, a->T);
}

static void attention(const AttentionCase *c, bool backward)
{
    begin("attention_%s B %d T %d Tq %d heads %d hs %d spread %d",
          backward ? "backward" : "forward", c->B, c->T, c->Tq, c->heads, c->hs, c->spread);
    if (c->spread > 100)
        gate = 1e-3; /* lse is of order 1e5: as float it is good to 1e-2 */
    long C = c->heads * c->hs, queries = (long)c->B * c->heads * c->Tq, n = 3 * C * c->B * c->T;
    long few = (long)c->B * c->Tq;
    int kind = backward ? INOUT : OUT;
    Mat *qkv = mat("qkv", IN, (long)c->B * c->T, 3 * C, c->pad), *lse = vec("lse", kind, queries);
    Mat *out = mat("out", kind, few, C, c->pad), *dbias = vec("dbias", OUT, backward * 3 * C);
    Mat *dout = mat("dout", IN, backward * few, C, 2 * c->pad);
    Mat *dqkv = mat("dqkv", OUT, backward * (long)c->B * c->T, 3 * C, c->pad / 2);
    for (long i = 0; c->spread && i < n; i++)
        if (i % (3 * C) < 2 * C)
            qkv->v[i] = round(c->spread * qkv->v[i] / sqrt(3));
    push(qkv);
    Attention a = {tensor(qkv),  tensor(out),  pointer(lse),
                   c->B,         c->T,         c->Tq,
                   c->heads,     c->hs,        {c->drop, RNG_ATTN_DROPOUT, 4},
                   tensor(dqkv), tensor(dout), pointer(dbias)};
    if (!backward)
        be->attention_forward(&a);
    for (long i = 0; i < queries; i++)
        attention_row(&a, query(&a, i), qkv->v, out->v, lse->v);
    if (backward) {
        push(out);
        push(lse);
        out->kind = lse->kind = IN;
        be->attention_backward(&a);
        for (long i = 0; i < n; i++) /* q's of the rows beyond Tq must not be written */
            dqkv->v[i] = i % (3 * C) < C && i / (3 * C) % c->T >= c->Tq ? NAN : 0;
        for (long i = 0; i < queries; i++)
            attention_slope(&a, query(&a, i), qkv->v, dout->v, dqkv->v);
        sum_columns(dbias, dqkv);
    }
    finish(EXACT);
}

/* Two keys, x and 0, with values 1 and 0: the output is the softmax of x, lse its denominator. */
static void softmax_sweep(void)
{
    static const double ends[] = {1e4, -1e4, 87.5, -87.5, 200, -200};
    enum { SWEEP = 8001 };
    int n = SWEEP + COUNT(ends);
    begin("softmax over a sweep");
    absolute = 1e-6;
    Mat *qkv = mat("qkv", IN, 2 * n, 3, 0), *out = mat("out", OUT, n, 1, 0);
    Mat *lse = vec("lse", OUT, n);
    for (int i = 0; i < n; i++) {
        double x = i < SWEEP ? (i - SWEEP / 2) * 0.025 + 1e-4 : ends[i - SWEEP];
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
 * Pooling and loss */

static void pool(int B, int T, int C, int first, int pad, bool backward)
{
    begin("pool_%s B %d T %d first %d", backward ? "backward" : "forward", B, T, first);
    Mat *y = mat("y", backward ? IN : OUT, B, C, pad);
    Mat *x = mat("x", backward ? OUT : IN, (long)B * T, C, 2 * pad);
    (backward ? be->pool_backward : be->pool_forward)(&(Pool){y->t, x->t, B, T, C, first});
    for (long i = 0; i < (long)B * C; i++) {
        double *column = x->v + i / C * T * C + i % C, share = 1.0 / (T - first);
        if (!backward)
            y->v[i] = dot(column + first * C, C, &share, 0, T - first);
        for (long t = 0; backward && t < T; t++)
            column[t * C] = t < first ? 0 : y->v[i] * share;
    }
    finish(EXACT);
}

enum { SOFT, ONE_HOT, TIES, EXTREME, NOT_FINITE };
typedef struct {
    int kind, B, K, inputs, pad;
    bool dlogits, dbias;
    double loss_scale;
} LossCase;

static const LossCase loss_cases[] = {
    {LOSS_SOFTMAX, 1, 10, SOFT, 0, 1, 1, 1},        {LOSS_SOFTMAX, 37, 1000, SOFT, 3, 1, 1, 1024},
    {LOSS_SOFTMAX, 65, 10, ONE_HOT, 1, 1, 0, 1},    {LOSS_SOFTMAX, 200, 10, TIES, 0, 0, 0, 1},
    {LOSS_SOFTMAX, 64, 3, TIES, 5, 1, 1, 1},        {LOSS_SOFTMAX, 33, 10, EXTREME, 0, 1, 1, 1},
    {LOSS_SOFTMAX, 30, 10, NOT_FINITE, 2, 1, 0, 1}, {LOSS_SOFTMAX, 5, 1, SOFT, 0, 1, 1, 1},
    {LOSS_SIGMOID, 1, 10, SOFT, 0, 1, 1, 1},        {LOSS_SIGMOID, 37, 100, ONE_HOT, 3, 1, 1, 1024},
    {LOSS_SIGMOID, 200, 10, TIES, 0, 0, 0, 1},      {LOSS_SIGMOID, 33, 10, EXTREME, 1, 1, 1, 1},
    {LOSS_SIGMOID, 30, 10, NOT_FINITE, 0, 1, 0, 1}, {LOSS_SOFTMAX, 30, 3, NOT_FINITE, 0, 1, 0, 1},
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
    begin("loss %d B %d K %d inputs %d", c->kind, c->B, c->K, c->inputs);
    long K = c->K;
    Mat *logits = mat("logits", IN, c->B, K, c->pad), *targets = mat("targets", IN, c->B, K, 0);
    Mat *dlogits = mat("dlogits", OUT, c->dlogits * c->B, K, 2 * c->pad);
    Mat *stats = mat("stats", OUT, c->B, 3, 0), *dbias = vec("dbias", OUT, c->dbias * K);
    for (long b = 0; b < c->B; b++)
        loss_inputs(c, b, logits->v + b * K, targets->v + b * K);
    push(logits);
    push(targets);
    st.loss_scale = c->loss_scale;
    send_state();
    be->loss(&(Loss){tensor(logits), tensor(dlogits), pointer(targets), pointer(stats),
                     pointer(dbias), c->B, c->K, c->kind, 0.3});
    for (long b = 0; b < c->B; b++) {
        double dz[K];
        loss_row(c, logits->v + b * K, targets->v + b * K, dz, stats->v + 3 * b);
        if (dlogits)
            memcpy(dlogits->v + b * K, dz, sizeof dz);
    }
    sum_columns(dbias, dlogits);
    finish(EXACT);
}

/* ------------------------------------------------------------------------------------------------
 * Norms and optimisers */

/* Tensors of a small model: several chunks, one element, all zeros (LAMB's trust ratio is 1). */
static const struct {
    int n, flags;
    bool zero;
} tensors[] = {{9000, CHUNK_DECAY, 0},         {7, CHUNK_1D, 0}, {4096, CHUNK_DECAY, 0},
               {1, CHUNK_1D | CHUNK_DECAY, 0}, {50, 0, 1},       {301, 0, 0}};
enum { N_CHUNKS = 8, N = 64 * 216 };
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
            chunks[k++] = (Chunk){offset + at, n, t, tensors[t].flags};
        }
        offset += (tensors[t].n + 63) / 64 * 64;
    }
    if (k != N_CHUNKS || offset > N)
        die(NULL, "test_ops: wrong sizes of the chunks");
    chunks_dev = be->alloc(sizeof chunks);
    be->wait(be->upload(chunks_dev, chunks, sizeof chunks));
}

/* The chunk that holds element i, or NULL in a gap. */
static const Chunk *chunk_of(long i)
{
    for (int k = 0; k < N_CHUNKS; k++)
        if (i >= chunks[k].offset && i < chunks[k].offset + chunks[k].n)
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

static const OptCase opt_cases[] = {
    {"adamw, first step", {OPT_ADAMW, 0.9, 0.999, 1e-8, 0, 0.05, 0}, 1, 0, 0, 1, 1},
    {"adamw", {OPT_ADAMW, 0.9, 0.95, 1e-3, 0, 0.3, 0.99}, 7, 1, 0, 0.37, 1024},
    {"adam, first step", {OPT_ADAM, 0.9, 0.999, 1e-8, 0, 0.05, 0.9}, 1, 1, 0, 0.5, 1},
    {"adam", {OPT_ADAM, 0.8, 0.99, 1e-6, 0, 0.3, 0}, 1000, 0, 0, 0.37, 8},
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
    Mat *w, *grad, *m, *v, *ema, *norms;
} OptMats;

/* One element's new moments and, without LAMB, weight; LAMB's direction goes to grad. */
static void opt_element(const OptCase *c, const OptMats *a, long i, double wd)
{
    const OptConfig *o = &c->opt;
    double *w = &a->w->v[i], *m = &a->m->v[i], *v = a->v ? &a->v->v[i] : NULL;
    double g = c->clip * a->grad->v[i] / c->loss_scale;
    if (o->kind == OPT_SGD) {
        *m = c->t > 1 ? o->momentum * *m + g + wd * *w : g + wd * *w;
        *w -= st.lr * *m;
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
        *w = *w * (o->kind == OPT_ADAMW ? 1 - st.lr * wd : 1) - st.lr * step;
}

/* Norms per chunk and tensor, then the step along u, which is in grad */
static void lamb_reference(const OptMats *a)
{
    double ww[COUNT(tensors)] = {0}, uu[COUNT(tensors)] = {0};
    for (int k = 0; k < N_CHUNKS; k++) {
        const double *w = a->w->v + chunks[k].offset, *u = a->grad->v + chunks[k].offset;
        ww[chunks[k].tensor] += a->norms->v[k] = dot(w, 1, w, 1, chunks[k].n);
        uu[chunks[k].tensor] += a->norms->v[N_CHUNKS + k] = dot(u, 1, u, 1, chunks[k].n);
    }
    for (long i = 0; i < N; i++) {
        const Chunk *c = chunk_of(i);
        if (!c)
            continue;
        bool plain = c->flags & CHUNK_1D || ww[c->tensor] == 0 || uu[c->tensor] == 0;
        a->w->v[i] -= st.lr * (plain ? 1 : sqrt(ww[c->tensor] / uu[c->tensor])) * a->grad->v[i];
    }
}

/* What the step leaves; the gaps, and everything in a skipped step, must keep their bits. */
static void opt_reference(const OptCase *c, const OptMats *a)
{
    bool lamb = c->opt.kind == OPT_LAMB;
    double decay = c->opt.ema_decay;
    for (long i = 0; !c->skip && i < N; i++) {
        const Chunk *k = chunk_of(i);
        if (k)
            opt_element(c, a, i, k->flags & CHUNK_DECAY ? c->opt.weight_decay : 0);
    }
    if (lamb && !c->skip)
        lamb_reference(a);
    for (long i = 0; i < N; i++) {
        Mat *all[] = {a->w, a->m, a->v, a->ema, lamb ? a->grad : NULL};
        if (a->ema)
            a->ema->v[i] = decay * a->ema->v[i] + (1 - decay) * a->w->v[i];
        for (int k = 0; k < COUNT(all); k++)
            if (all[k] && (c->skip || !chunk_of(i)))
                all[k]->v[i] = NAN;
    }
}

static void optimiser(const OptCase *c)
{
    begin("%s", c->name);
    bool lamb = c->opt.kind == OPT_LAMB, sgd = c->opt.kind == OPT_SGD;
    OptMats a = {vec("w", INOUT, N),
                 vec("grad", lamb ? INOUT : IN, N),
                 vec("m", INOUT, N),
                 vec("v", INOUT, !sgd * N),
                 vec("ema", INOUT, c->ema * N),
                 vec("norms", OUT, lamb * 2 * N_CHUNKS)};
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
    st.t = c->t, st.clip = c->clip, st.loss_scale = c->loss_scale, st.skip = c->skip;
    send_state();
    OptStep step = {
        &c->opt,         chunks_dev,   N_CHUNKS,     pointer(a.w),   pointer(a.w),    F32,
        pointer(a.grad), pointer(a.m), pointer(a.v), pointer(a.ema), pointer(a.norms)};
    (sgd ? be->sgd : lamb ? be->lamb_direction : be->adam)(&step);
    if (lamb)
        be->lamb_apply(&step);
    opt_reference(c, &a);
    finish(EXACT);
}

/* sum_squares and finish_norm, on gradients with `bad` (if not 0) in one place, and the state that
 * they leave. The norm is about 116: max_norm 1 clips it, 150 does not. */
static void norms(double max_norm, double loss_scale, double bad)
{
    begin("finish_norm max %g scale %g bad %g", max_norm, loss_scale, bad);
    Mat *x = vec("x", IN, N), *partial = vec("partial", OUT, N_CHUNKS);
    if (bad != 0)
        x->v[chunks[2].offset + 5] = bad;
    rescale(x, loss_scale, 0);
    st = (StepState){.seed = 1,
                     .lr = 0.5,
                     .step = 9,
                     .sample0 = 4,
                     .t = 6,
                     .skip = 1,
                     .skipped = 3,
                     .skipped_in_row = 2,
                     .loss_scale = loss_scale};
    send_state();
    be->sum_squares(pointer(partial), pointer(x), chunks_dev, N_CHUNKS);
    be->finish_norm(pointer(partial), N_CHUNKS, max_norm);
    double sum = 0;
    for (int k = 0; k < N_CHUNKS; k++) {
        const double *v = x->v + chunks[k].offset;
        sum += partial->v[k] = finite_or_not(dot(v, 1, v, 1, chunks[k].n));
    }
    StepState s;
    be->download(&s, st_dev, sizeof s);
    double norm = sqrt(sum) / loss_scale;
    double clip = max_norm > 0 ? fmin(1, max_norm / (norm + 1e-6)) : 1;
    bool skip = !isfinite(norm);
    CHECK(memcmp(&s, &st, STEP_HOST_BYTES) == 0 && s.loss_scale == loss_scale, "%s", title);
    CHECK(s.skip == skip && s.t == 6u + !skip, "%s: skip %u t %u", title, s.skip, s.t);
    CHECK(s.skipped == 3u + skip, "%s: %u skipped", title, s.skipped);
    CHECK(s.skipped_in_row == (skip ? 3u : 0u), "%s: %u in a row", title, s.skipped_in_row);
    CHECK(skip ? !isfinite(s.grad_norm) : fabs(s.grad_norm / norm - 1) <= gate, "%s: norm %g",
          title, s.grad_norm);
    CHECK(skip || fabs(s.clip / clip - 1) <= gate, "%s: clip %g, not %g", title, s.clip, clip);
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
    begin("rates of p %g", p);
    Mat *ones = mat("ones", IN, B * T, C, 0), *zeros = mat("zeros", IN, ALL, 1, 0);
    Mat *results[] = {mat("x", SCRATCH, B * T, C, 0), mat("x_out", SCRATCH, ALL, 1, 0)};
    real *host = xmalloc(ALL * sizeof *host);
    rescale(ones, 0, 1);
    rescale(zeros, 0, 0);
    be->embed_forward(&(Embed){
        results[0]->t, ones->t, NULL, pointer(zeros), NULL, B, T, 0, C, {p, RNG_EMBED_DROPOUT, 0}});
    be->residual_norm_forward(&(ResidualNorm){.x = zeros->t,
                                              .x_out = results[1]->t,
                                              .branch = {ones->t.p, 1, F32, NULL},
                                              .rows = ALL,
                                              .C = 1,
                                              .path = {p, RNG_MLP_PATH, 5},
                                              .tokens = 1});
    for (int k = 0; k < 2; k++) {
        double kept = 0, other = 0;
        be->download(host, pointer(results[k]), ALL * sizeof *host);
        for (long i = 0; i < ALL; i++) {
            kept += host[i] != 0;
            other += host[i] != 0 && !(fabs((double)host[i] * (1 - p) - 1) <= 1e-6);
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
    const Drop base = {p, RNG_PROJ_DROPOUT, 3};
    double agree[5] = {0}, chance = p * p + (1 - p) * (1 - p);
    for (long i = 0; i < ALL; i++) {
        bool kept = drop_factor(base, 2, i) > 0;
        for (int k = 0; k < 5; k++) {
            Drop d = {p, base.purpose + (k == 0), base.layer + (k == 1)};
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
    begin("memory");
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

    Mat *a = vec("a", IN, ELEMENTS), *sum = vec("sum", INOUT, ELEMENTS);
    Mat *copy = vec("copy", OUT, ELEMENTS), *zero = vec("zero", OUT, ELEMENTS);
    Mat *converted = vec("converted", OUT, ELEMENTS);
    be->add(pointer(sum), pointer(a), ELEMENTS);
    be->copy(pointer(copy), pointer(a), sizeof got);
    be->zero(pointer(zero), sizeof got);
    be->convert(pointer(converted), F32, pointer(a), F32, ELEMENTS);
    for (int i = 0; i < ELEMENTS; i++) {
        sum->v[i] += a->v[i];
        copy->v[i] = converted->v[i] = a->v[i];
        zero->v[i] = 0;
    }
    finish(EXACT);
}

/* ------------------------------------------------------------------------------------------------
 * All of it */

static void layer_cases(void)
{
    for (int i = 0; i < COUNT(linear_cases); i++) {
        linear_forward(&linear_cases[i]);
        linear_backward_input(&linear_cases[i]);
        linear_backward_weight(&linear_cases[i]);
    }
    for (int i = 0; i < COUNT(patch_cases); i++)
        patchify(&patch_cases[i]);
    for (int i = 0; i < COUNT(norm_cases); i++) {
        norm_forward(&norm_cases[i]);
        norm_backward(&norm_cases[i]);
    }
    for (int backward = 0; backward < 2; backward++) {
        for (int kind = ACT_GELU; kind <= ACT_TANH; kind++)
            activation(kind, backward);
        for (int i = 0; i < COUNT(embed_cases); i++)
            embed(&embed_cases[i], backward);
        for (int i = 0; i < COUNT(attention_cases); i++)
            attention(&attention_cases[i], backward);
        pool(1, 197, 80, 1, 0, backward);
        pool(3, 65, 17, 0, 5, backward);
        pool(2, 257, 24, 8, 3, backward);
    }
    softmax_sweep();
    for (int i = 0; i < COUNT(loss_cases); i++)
        loss(&loss_cases[i]);
}

static void run_cases(const Backend *backend)
{
    static const double bad[] = {0, NAN, INFINITY, -INFINITY};
    be = backend;
    for (pass = 0; pass < COUNT(threads); pass++) {
        double start = now();
        n_cases = 0;
        be->init(threads[pass]);
        st_dev = be->alloc(sizeof st);
        be->bind_state(st_dev);
        memory();
        layer_cases();
        make_chunks();
        for (int i = 0; i < COUNT(opt_cases); i++)
            optimiser(&opt_cases[i]);
        for (int i = 0; i < COUNT(bad); i++) {
            norms(1, 1, bad[i]);
            norms(150, 1024, bad[i]);
            norms(0, 8, bad[i]);
        }
        for (int i = 1; i < 10; i += 4)
            keep_rates(i / 10.0);
        be->release(chunks_dev);
        be->release(st_dev);
        printf("%s, %d threads: %d cases in %.1f s\n", be->name, be->threads(), n_cases,
               now() - start);
    }
}

int main(int argc, char **argv)
{
    (void)argc;
    backend_cpu_reexec(argv);
    known_answers();
    run_cases(backend_cpu());
    for (int i = 1; i < 10; i += 4)
        independent_masks(i / 10.0);
    return check_report();
}
