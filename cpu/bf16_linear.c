/* bf16_linear.c - linear layers on 16-bit tensors: products, and what follows them while a block of
 * the product is in cache.
 *
 * Rounded is where a GPU stores a number in between, so that the two differ by the order of sums
 * alone: `pre` with its bias; y, made of `pre` as it was stored; a gradient before its slope and
 * dropout, and behind them. Bias gradients are sums of gradients as they were stored.
 *
 * Order: activations, forward, backward.
 */
#include "cpu/bf16_ops.h"
#include "cpu/bf16_product.h"

/* ------------------------------------------------------------------------------------------------
 * Activations: formulas in backend_cpu.c. Where Phi is small, 1 + erf and 1 + tanh cancel and would
 * leave few of bf16's 8 bits below x = -4; the forms here keep them. */

/* 1 / x, of a normal number; a bit of the last place may be off */
static inline f32x16 reciprocal(f32x16 x)
{
#ifdef __AVX512F__ /* a quarter of a division's time: one step of Newton's method */
    f32x16 y = (f32x16)_mm512_rcp14_ps((__m512)x);
    return y + y * (1.0f - x * y);
#else
    return 1.0f / x;
#endif
}

static inline f32x16 absolute(f32x16 x)
{
    return (f32x16)((u32x16)x & 0x7FFFFFFF);
}

static inline f32x16 where(i32x16 test, f32x16 yes, f32x16 no)
{
    return (f32x16)((test & (i32x16)yes) | (~test & (i32x16)no));
}

/* e^(-u^2/2), 0 where no normal number is as small */
static inline f32x16 bell(f32x16 u)
{
    return where(u < 13.19f, f32_exp(-0.5f * u * u), f32_all(0));
}

/* GELU by erf, by the CUDA backend's polynomials (gelu_erf in cuda/layers.cuh), so that the two
 * round alike. With u = |x|, Phi(-u) is 2^p(u), and the slope below 0 e^(-u^2/2) q(u). */
static inline f32x16 gelu(f32x16 x)
{
    f32x16 u = f32_min(f32_all(16.0f), absolute(x));
    f32x16 p = 0.00480792532f - 0.000228220961f * u;
    p = p * u - 0.0443369411f;
    p = p * u - 0.470125496f;
    p = p * u - 1.14600372f;
    p = p * u - 1.00038218f;
    f32x16 tail = where(p > -125.0f, f32_exp(0.693147181f * p), f32_all(0));
    return f32_max(f32_all(0), x) - u * tail;
}

static inline f32x16 gelu_slope(f32x16 x)
{
    f32x16 u = f32_min(f32_all(16.0f), absolute(x));
    f32x16 q = 0.000321075699f * u - 0.00470780581f;
    q = q * u + 0.0289907791f;
    q = q * u - 0.101270042f;
    q = q * u + 0.23377645f;
    q = q * u - 0.794259012f;
    q = q * u + 0.499830484f;
    f32x16 h = bell(u) * q;
    return where(x < 0.0f, h, 1.0f - h);
}

/* 1 / (1 + e^-2u), which is (1 + tanh u) / 2, and the same of -u */
static inline f32x16 sigmoids(f32x16 u, f32x16 *minus)
{
    f32x16 e = f32_exp(-2.0f * absolute(u)), s = reciprocal(1.0f + e);
    *minus = where(u >= 0.0f, e * s, s);
    return where(u >= 0.0f, s, e * s);
}

static inline f32x16 gelu_tanh_inner(f32x16 x)
{
    return 0.797884561f * (x + 0.044715f * x * x * x);
}

/* act(x); of ACT_SWIGLU the gate's part, silu(x) */
static inline f32x16 act(f32x16 x, int kind)
{
    f32x16 minus, plus;
    if (kind == ACT_GELU)
        return gelu(x);
    if (kind == ACT_TANH)
        return sigmoids(x, &minus) - minus;
    plus = sigmoids(kind == ACT_GELU_TANH    ? gelu_tanh_inner(x)
                    : kind == ACT_QUICK_GELU ? 0.851f * x
                                             : 0.5f * x,
                    &minus);
    return x * plus;
}

/* act'(x); of ACT_SWIGLU silu's */
static inline f32x16 slope(f32x16 x, int kind)
{
    f32x16 minus, plus;
    if (kind == ACT_GELU)
        return gelu_slope(x);
    if (kind == ACT_GELU_TANH) {
        plus = sigmoids(gelu_tanh_inner(x), &minus);
        f32x16 inner = 0.797884561f * (1.0f + 3 * 0.044715f * x * x);
        return plus + 2.0f * x * plus * minus * inner;
    }
    if (kind == ACT_TANH) {
        plus = sigmoids(x, &minus);
        return 4.0f * plus * minus;
    }
    float rate = kind == ACT_QUICK_GELU ? 1.702f : 1;
    plus = sigmoids(0.5f * rate * x, &minus);
    return plus + rate * x * plus * minus;
}

/* For k = 0, 16, 32 ..: what stands behind it, of n elements at most, of which `some` exist */
#define EACH_VECTOR(k, some, n)                                                                    \
    for (int k = 0, some = (n) < LANES ? (n) : LANES; k < (n);                                     \
         k += LANES, some = (n) - k < LANES ? (n) - k : LANES)

static inline f32x16 get(const uint16_t *p, int some)
{
    return some == LANES ? bf16_load(p) : bf16_load_some(p, some);
}

static inline void put(uint16_t *p, f32x16 x, int some)
{
    if (some == LANES)
        bf16_store(p, x);
    else
        bf16_store_some(p, x, some);
}

/* y = act(x), for x [n] as it is stored; up [n]: the values that ACT_SWIGLU's gates x let through.
 * One loop for each kind. Compiled once, so that what is made again has the same bits. */
#define ACT_LOOP(kind)                                                                             \
    EACH_VECTOR(k, some, n) f32_store(y + k, act(get(x + k, some), kind))
static __attribute__((noinline)) void act_row(float *y, const uint16_t *x, const uint16_t *up,
                                              int n, int kind)
{
    if (kind == ACT_GELU)
        ACT_LOOP(ACT_GELU);
    else if (kind == ACT_GELU_TANH)
        ACT_LOOP(ACT_GELU_TANH);
    else if (kind == ACT_QUICK_GELU)
        ACT_LOOP(ACT_QUICK_GELU);
    else if (kind == ACT_TANH)
        ACT_LOOP(ACT_TANH);
    else
        EACH_VECTOR(k, some, n)
            f32_store(y + k, act(get(x + k, some), ACT_SWIGLU) * get(up + k, some));
}

/* d *= act'(x), [n] */
#define SLOPE_LOOP(kind)                                                                           \
    EACH_VECTOR(k, some, n) f32_store(d + k, f32_load(d + k) * slope(get(x + k, some), kind))
static void slope_row(float *d, const uint16_t *x, int n, int kind)
{
    if (kind == ACT_GELU)
        SLOPE_LOOP(ACT_GELU);
    else if (kind == ACT_GELU_TANH)
        SLOPE_LOOP(ACT_GELU_TANH);
    else if (kind == ACT_QUICK_GELU)
        SLOPE_LOOP(ACT_QUICK_GELU);
    else if (kind == ACT_TANH)
        SLOPE_LOOP(ACT_TANH);
}

/* ------------------------------------------------------------------------------------------------
 * Forward. Parts of rows, `columns` of them from `column` on, at most BLOCK_COLUMNS. */

/* The same of a Drop that is of whole rows: of columns from `column` on of n */
static void drop_part(float *x, int columns, int column, int n, long r, int tokens, const Drop *d)
{
    Drop part = *d;
    part.of = d->of > 0 ? d->of : n;
    part.first = d->first + column;
    bf16_drop_row(x, columns, r, tokens, &part);
}

/* y = drop(x) + residual, for x [columns], part of row r */
static void finish_row(const LinearForward *a, float *x, long r, int column, int columns)
{
    uint16_t *y = bf16_row(a->y, r) + column;
    const uint16_t *residual = a->residual.p ? bf16_row(a->residual, r) + column : NULL;
    drop_part(x, columns, column, a->out, r, a->tokens, &a->drop);
    EACH_VECTOR(k, some, columns) {
        f32x16 v = f32_load(x + k);
        put(y + k, residual ? v + get(residual + k, some) : v, some);
    }
}

/* x + bias, rounded into `to` */
static void round_row(uint16_t *to, const float *x, const uint16_t *bias, int n)
{
    EACH_VECTOR(k, some, n)
        put(to + k, bias ? f32_load(x + k) + get(bias + k, some) : f32_load(x + k), some);
}

/* A block of the product: to `pre` and through the activation, or to y. Of ACT_SWIGLU only `pre` is
 * made here: gates and values are not in the same block. */
static void forward_block(const void *op, const Block *b)
{
    const LinearForward *a = op;
    const uint16_t *bias = a->bias ? (const uint16_t *)a->bias + b->column : NULL;
    float x[BLOCK_COLUMNS];
    uint16_t room[BLOCK_COLUMNS];
    for (int i = 0; i < b->rows; i++) {
        const float *c = b->c + (long)i * BLOCK_COLUMNS;
        long r = b->row + i;
        if (a->act) {
            uint16_t *pre = a->pre.p ? bf16_row(a->pre, r) + b->column : room;
            round_row(pre, c, bias, b->columns);
            if (a->act == ACT_SWIGLU)
                continue;
            act_row(x, pre, NULL, b->columns, a->act);
        } else {
            EACH_VECTOR(k, some, b->columns)
                f32_store(x + k, bias ? f32_load(c + k) + get(bias + k, some) : f32_load(c + k));
        }
        finish_row(a, x, r, b->column, b->columns);
    }
}

/* y = drop(act(pre)) + residual */
static void activate(const LinearForward *a)
{
#pragma omp parallel for schedule(static)
    for (long r = 0; r < a->rows; r++)
        for (int j = 0; j < a->out; j += BLOCK_COLUMNS) {
            float x[BLOCK_COLUMNS];
            int n = a->out - j < BLOCK_COLUMNS ? a->out - j : BLOCK_COLUMNS;
            const uint16_t *pre = bf16_row(a->pre, r) + j;
            act_row(x, pre, a->act == ACT_SWIGLU ? pre + a->out : NULL, n, a->act);
            finish_row(a, x, r, j, n);
        }
}

void bf16_activate(const LinearForward *a)
{
    LinearForward again = *a;
    again.residual = (Tensor){.p = NULL};
    activate(&again);
}

/* y = drop(act(x w^T + bias)) + residual: x [rows,in], w [out,in] */
void bf16_linear_forward(const LinearForward *a)
{
    bool gated = a->act == ACT_SWIGLU;
    bf16_product(&(Product){.M = a->rows,
                            .N = gated ? 2 * a->out : a->out,
                            .K = a->in,
                            .a = a->x,
                            .b = a->w,
                            .b_turned = true,
                            .take = forward_block,
                            .op = a});
    if (gated)
        activate(a);
}

/* ------------------------------------------------------------------------------------------------
 * Backward */

/* What a block needs to know, and the sums [groups of rows, all columns of dx] of dx's columns */
typedef struct {
    const LinearBackwardInput *a;
    float *sums; /* NULL: not wanted */
} InputOp;

/* x [n] as bf16 has it */
static void round_floats(float *x, int n)
{
    for (int k = 0; k < n; k += LANES)
        f32_store(x + k, bf16_widen(bf16_round(f32_load(x + k))));
}

/* dx = x rounded, and sums += what was stored; [n] */
static void store_and_sum(uint16_t *dx, const float *x, float *sums, int n)
{
    EACH_VECTOR(k, some, n) {
        put(dx + k, f32_load(x + k), some);
        if (!sums)
            continue;
        f32x16 stored = get(dx + k, some);
        if (some == LANES)
            f32_store(sums + k, f32_load(sums + k) + stored);
        else
            for (int i = 0; i < some; i++)
                sums[k + i] += stored[i];
    }
}

/* Gates g and values v, with s = sigmoid(g): dg = d v (s + g s (1 - s)), dv = d g s */
static void gate_row(uint16_t *dx, float *d, const uint16_t *pre, float *sums, int n, int gates)
{
    float dg[BLOCK_COLUMNS];
    EACH_VECTOR(k, some, n) {
        f32x16 g = get(pre + k, some), v = get(pre + gates + k, some), dy = f32_load(d + k);
        f32_store(dg + k, dy * v * slope(g, ACT_SWIGLU));
        f32_store(d + k, dy * act(g, ACT_SWIGLU));
    }
    store_and_sum(dx, dg, sums, n);
    store_and_sum(dx + gates, d, sums ? sums + gates : NULL, n);
}

static void input_block(const void *op, const Block *b)
{
    const InputOp *o = op;
    const LinearBackwardInput *a = o->a;
    bool gated = a->act == ACT_SWIGLU;
    long width = gated ? 2L * a->in : a->in;
    float d[BLOCK_COLUMNS];
    for (int i = 0; i < b->rows; i++) {
        long r = b->row + i;
        float *sums = o->sums ? o->sums + r / ROW_GROUP * width + b->column : NULL;
        uint16_t *dx = bf16_row(a->dx, r) + b->column;
        const uint16_t *pre = a->act ? bf16_row(a->pre, r) + b->column : NULL;
        memcpy(d, b->c + (long)i * BLOCK_COLUMNS, (size_t)b->columns * sizeof *d);
        if (a->act || a->drop.p > 0)
            round_floats(d, b->columns);
        drop_part(d, b->columns, b->column, a->in, r, a->tokens, &a->drop);
        if (gated) {
            gate_row(dx, d, pre, sums, b->columns, a->in);
            continue;
        }
        if (a->act)
            slope_row(d, pre, b->columns, a->act);
        if (a->accumulate)
            EACH_VECTOR(k, some, b->columns)
                f32_store(d + k, f32_load(d + k) + get(dx + k, some));
        store_and_sum(dx, d, sums, b->columns);
    }
}

/* dx = drop(dy w) act'(pre): dy [rows,out], w [out,in] */
void bf16_linear_backward_input(const LinearBackwardInput *a)
{
    int width = a->act == ACT_SWIGLU ? 2 * a->in : a->in;
    int groups = (a->rows + ROW_GROUP - 1) / ROW_GROUP;
    InputOp op = {.a = a};
    if (a->dbias) {
        op.sums = bf16_scratch((size_t)groups * (size_t)width);
        memset(op.sums, 0, (size_t)groups * (size_t)width * sizeof *op.sums);
    }
    bf16_product(&(Product){.M = a->rows,
                            .N = a->in,
                            .K = a->out,
                            .a = a->dy,
                            .b = a->w,
                            .take = input_block,
                            .op = &op});
    if (a->dbias)
        bf16_sum_rows(a->dbias, op.sums, groups, width);
}

static void weight_block(const void *op, const Block *b)
{
    const LinearBackwardWeight *a = op;
    for (int i = 0; i < b->rows; i++)
        memcpy((float *)a->dw + (long)(b->row + i) * a->in + b->column,
               b->c + (long)i * BLOCK_COLUMNS, (size_t)b->columns * sizeof(float));
}

/* dw = dy^T x: dy [rows,out], x [rows,in], dw [out,in] */
void bf16_linear_backward_weight(const LinearBackwardWeight *a)
{
    bf16_product(&(Product){.M = a->out,
                            .N = a->in,
                            .K = a->rows,
                            .a = a->dy,
                            .a_turned = true,
                            .b = a->x,
                            .take = weight_block,
                            .op = a});
    if (a->dbias)
        bf16_column_sums(a->dbias, a->dy, a->rows, a->out);
}
