/* bf16_attention.c - softmax attention and its gradient on 16-bit tensors: one head of one image is
 *
 *   S = q k^T / sqrt(hs),  P = softmax(S) by rows,  out = (M P) v,   q, k, v [T,hs], M the dropout
 *
 * A thread takes a head, whose keys and values it packs once and then keeps in its caches, and
 * walks over blocks of query rows. S of a block is made whole, [rows,T], so that softmax needs no
 * second look; P and dS are rounded as they enter the next product, as on a GPU: P before it is
 * divided by its sum, dS before the factor 1/sqrt(hs). Sums are float. No T x T matrix exists, and
 * nothing depends on the number of threads: a head's sums are its own.
 *
 * Operands are packed into 32-bit units, as in bf16_product.c: a bf16 widened to float, or a pair
 * of bf16 that follow each other in the sum, whichever the machine multiplies faster. A "step" is a
 * unit of the sum.
 *
 * Order: products of units; packing; a head; forward; backward.
 */
#include "cpu/bf16_ops.h"
#include "cpu/bf16_product.h"

#include <math.h>
#include <omp.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))

static long round_up(long n, long to)
{
    return (n + to - 1) / to * to;
}

/* ------------------------------------------------------------------------------------------------
 * Products of units: c [rows,columns] (+)= A [rows,steps] B [steps,columns] */

/* A kernel's sums fill the registers: 24 of 32 with AVX-512 or NEON, 12 of 16 with AVX2. */
#ifdef __AVX512F__
enum { ROWS = 6, VECTORS = 4 };
#else
enum { ROWS = 6, VECTORS = 1 };
#endif
enum { STEPS = 96 }; /* at a time: what B has of them, 64 columns wide, fits half of the L1 cache */

/* A's unit (i, s) is a[i * a_row + s * a_step], so that A may also be read by columns. `rows` is
 * rounded up to ROWS: A and c have that many. `columns` is a multiple of LANES. */
typedef struct {
    const uint32_t *a, *b;
    long a_row, a_step, ldb;
    float *c;
    long ldc;
    int rows, columns, steps;
    bool add; /* to what is in c */
} Units;

/* ROWS x n vectors of c, over n_steps steps of both operands */
#define KERNEL(name, n, multiply_add)                                                             \
    static void name(const Units *u, const uint32_t *a, const uint32_t *b, float *c, int n_steps, \
                     bool add)                                                                    \
    {                                                                                             \
        f32x16 sum[ROWS][n];                                                                      \
        _Pragma("GCC unroll 8") for (int i = 0; i < ROWS; i++)                                    \
            _Pragma("GCC unroll 8") for (int v = 0; v < n; v++) sum[i][v] =                       \
                add ? f32_load(c + i * u->ldc + v * LANES) : (f32x16){0};                         \
        for (int s = 0; s < n_steps; s++, a += u->a_step, b += u->ldb) {                          \
            u32x16 y[n];                                                                          \
            memcpy(y, b, sizeof y);                                                               \
            _Pragma("GCC unroll 8") for (int i = 0; i < ROWS; i++)                                \
            {                                                                                     \
                u32x16 x = a[i * u->a_row] - (u32x16){0};                                         \
                _Pragma("GCC unroll 8") for (int v = 0; v < n; v++) sum[i][v] =                   \
                    multiply_add(x, y[v], sum[i][v]);                                             \
            }                                                                                     \
        }                                                                                         \
        _Pragma("GCC unroll 8") for (int i = 0; i < ROWS; i++)                                    \
            _Pragma("GCC unroll 8") for (int v = 0; v < n; v++)                                   \
                f32_store(c + i * u->ldc + v * LANES, sum[i][v]);                                 \
    }

typedef void Kernel(const Units *u, const uint32_t *a, const uint32_t *b, float *c, int n_steps,
                    bool add);
KERNEL(floats_1, 1, FLOATS)
KERNEL(pairs_1, 1, PAIRS)
#ifdef __AVX512F__
KERNEL(floats_2, 2, FLOATS)
KERNEL(floats_3, 3, FLOATS)
KERNEL(floats_4, 4, FLOATS)
KERNEL(pairs_2, 2, PAIRS)
KERNEL(pairs_3, 3, PAIRS)
KERNEL(pairs_4, 4, PAIRS)
static Kernel *const kernels[2][VECTORS] = {{floats_1, floats_2, floats_3, floats_4},
                                            {pairs_1, pairs_2, pairs_3, pairs_4}};
#else
static Kernel *const kernels[2][VECTORS] = {{floats_1}, {pairs_1}};
#endif

/* A block of steps, a panel of columns, which stays in the L1 cache, and all rows */
static void multiply(const Units *u, int per)
{
    int vectors = u->columns / LANES, panels = (vectors + VECTORS - 1) / VECTORS;
    for (int s = 0; s < u->steps; s += STEPS) {
        int n = MIN(u->steps - s, STEPS);
        for (int k = 0; k < panels; k++) {
            int from = vectors * k / panels, to = vectors * (k + 1) / panels;
            Kernel *kernel = kernels[per - 1][to - from - 1];
            for (int i = 0; i < u->rows; i += ROWS)
                kernel(u, u->a + i * u->a_row + s * u->a_step, u->b + s * u->ldb + from * LANES,
                       u->c + i * u->ldc + from * LANES, n, u->add || s > 0);
        }
    }
}

/* ------------------------------------------------------------------------------------------------
 * Packing rows of n bf16 into rows of units. The sum runs along the rows, or across them: then a
 * row of units is made of one row, or of two by turns. */

/* Sixteen units of n bf16 that lie side by side; what is beyond is 0 */
static inline u32x16 units_along(const uint16_t *p, long n, int per)
{
    u32x16 x = {0};
    if (n <= 0)
        return x;
    if (per == 1)
        return (u32x16)(n >= LANES ? bf16_load(p) : bf16_load_some(p, n));
    memcpy(&x, p, (size_t)MIN(n, 2 * LANES) * sizeof *p);
    return x;
}

/* Sixteen units of n bf16 in one row, and those below them */
static inline u32x16 units_across(const uint16_t *p, const uint16_t *below, long n, int per)
{
    u32x16 x = units_along(p, MIN(n, LANES), 1), y = {0};
    if (per == 1)
        return x;
    if (below)
        y = units_along(below, MIN(n, LANES), 1);
    return x >> 16 | y; /* the first of a pair is the lower half */
}

/* A's operand: out [rows,ld] of rows of n bf16 */
static void pack_along(uint32_t *out, long ld, const uint16_t *p, long ldp, int rows, int n,
                       int per)
{
    for (int i = 0; i < rows; i++)
        for (int s = 0; s * per < n; s += LANES) {
            u32x16 x = units_along(p + i * ldp + s * per, n - s * per, per);
            memcpy(out + i * ld + s, &x, sizeof x);
        }
}

/* B's: out [steps,ld], a step of `per` rows, columns beyond n up to the next multiple of 16 zero */
static void pack_across(uint32_t *out, long ld, const uint16_t *p, long ldp, int rows, int n,
                        int per)
{
    for (int i = 0; i < rows; i += per, out += ld)
        for (int j = 0; j < n; j += LANES) {
            const uint16_t *at = p + i * ldp + j;
            u32x16 x = units_across(at, i + 1 < rows ? at + ldp : NULL, n - j, per);
            memcpy(out + j, &x, sizeof x);
        }
}

/* x [16,16] transposed: in each of four rounds the numbers of two rows take turns. */
static inline void transpose(u32x16 *x)
{
    const u32x16 low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    const u32x16 high = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    u32x16 y[LANES];
    for (int round = 0; round < 4; round++) {
        u32x16 *from = round % 2 ? y : x, *to = round % 2 ? x : y;
        _Pragma("GCC unroll 8") for (int i = 0; i < LANES / 2; i++)
        {
            to[2 * i] = __builtin_shuffle(from[i], from[i + LANES / 2], low);
            to[2 * i + 1] = __builtin_shuffle(from[i], from[i + LANES / 2], high);
        }
    }
}

/* B's operand where the sum runs along the rows: out [steps,ld], columns beyond `rows` up to the
 * next multiple of 16 zero */
static void pack_turned(uint32_t *out, long ld, const uint16_t *p, long ldp, int rows, int n,
                        int per)
{
    int steps = (n + per - 1) / per;
    for (int j = 0; j < rows; j += LANES)
        for (int s = 0; s < steps; s += LANES) {
            u32x16 x[LANES];
            for (int i = 0; i < LANES; i++)
                x[i] =
                    units_along(p + (j + i) * ldp + s * per, j + i < rows ? n - s * per : 0, per);
            transpose(x);
            for (int i = 0; i < LANES && s + i < steps; i++)
                memcpy(out + (s + i) * ld + j, &x[i], sizeof x[i]);
        }
}

/* n floats of a row, rounded, as units along it; out may be x. n is a multiple of LANES. */
static void round_along(uint32_t *out, const float *x, int n, int per)
{
    for (int j = 0; j < n; j += LANES)
        if (per == 2)
            bf16_store((uint16_t *)out + j, f32_load(x + j));
        else
            f32_store((float *)out + j, bf16_widen(bf16_round(f32_load(x + j))));
}

/* The same of `per` rows, as units across them */
static void round_across(uint32_t *out, const float *x, long ld, int n, int per)
{
    for (int j = 0; j < n; j += LANES) {
        u32x16 y = (u32x16)bf16_widen(bf16_round(f32_load(x + j)));
        if (per == 2)
            y = y >> 16 | (u32x16)bf16_widen(bf16_round(f32_load(x + ld + j)));
        memcpy(out + j, &y, sizeof y);
    }
}

/* ------------------------------------------------------------------------------------------------
 * A head */

/* Query rows whose S is in the L1 cache, and rows that wait together for the products that sum over
 * queries */
enum { TILE = 4 * ROWS, BLOCK = 3 * TILE };

/* Places in the thread's room; forward has no need of those below `sums` */
typedef struct {
    uint32_t *kt, *vt;    /* [hs steps, N]: k^T, v^T */
    uint32_t *k, *v;      /* [T steps, D] */
    uint32_t *q, *dout;   /* [TILE, D]: rows */
    float *s, *dp, *mask; /* [TILE, N], [TILE, N], [N] */
    float *sums;          /* [TILE, D] */
    uint32_t *pt, *dst;   /* [BLOCK steps, N]: P M and dS, a row a step */
    uint32_t *qs, *douts; /* [BLOCK steps, D] */
    float *dk, *dv;       /* [T, D] */
} Places;

typedef struct {
    const Attention *a;
    Places at;
    int b, h; /* image, head */
    int D, N; /* hs and T, rounded up to whole vectors */
    int per;  /* numbers in a unit */
    int hs_steps, T_steps;
    long ld; /* of qkv */
    const uint16_t *q, *k, *v;
    float scale, scale2; /* 1 / sqrt(hs), and the same for exponents to base 2 */
    float *lse;          /* [Tq] */
} Head;

#define LOG2E 1.44269504f

/* How many units all places take; where `room` is given, it is shared out. A row that is read by
 * columns is ROWS longer, since rows of results are rounded up to that. */
static size_t share_out(Places *at, uint32_t *room, const Head *h, bool backward)
{
    const size_t T = (size_t)round_up(h->a->T, 2), N = (size_t)h->N + LANES, D = (size_t)h->D;
    const struct {
        void *place;
        size_t size;
        bool wanted;
    } all[] = {
        {&at->kt, D * N, true},
        {&at->vt, D * N, backward},
        {&at->k, T * D, backward},
        {&at->v, T * D, !backward},
        {&at->q, TILE * D, true},
        {&at->dout, TILE * D, backward},
        {&at->s, TILE * N, true},
        {&at->dp, TILE * N, backward},
        {&at->mask, N, true},
        {&at->sums, TILE * D, true},
        {&at->pt, BLOCK * N, backward},
        {&at->dst, BLOCK * N, backward},
        {&at->qs, BLOCK * D, backward},
        {&at->douts, BLOCK * D, backward},
        {&at->dk, (T + ROWS) * D, backward},
        {&at->dv, (T + ROWS) * D, backward},
    };
    size_t n = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        uint32_t *place = room && all[i].wanted ? room + n : NULL;
        memcpy(all[i].place, &place, sizeof place);
        n += all[i].wanted ? (size_t)round_up((long)all[i].size, LANES) : 0;
    }
    return n;
}

static Head head_of(const Attention *a, long i)
{
    long C = (long)a->heads * a->hs;
    Head h = {.a = a,
              .b = (int)(i / a->heads),
              .h = (int)(i % a->heads),
              .D = (int)round_up(a->hs, LANES),
              .N = (int)round_up(a->T, LANES),
              .per = bf16_per_unit(),
              .ld = a->qkv.ld,
              .scale = (float)(1 / sqrt(a->hs)),
              .scale2 = (float)(1.4426950408889634 / sqrt(a->hs))};
    h.hs_steps = (a->hs + h.per - 1) / h.per;
    h.T_steps = (a->T + h.per - 1) / h.per;
    h.q = bf16_row(a->qkv, (long)h.b * a->T) + h.h * a->hs;
    h.k = h.q + C;
    h.v = h.k + C;
    h.lse = (float *)a->lse + i * a->Tq;
    return h;
}

/* f(head, sums) for every head of every image; sums [B,3C] is behind the threads' rooms */
static float *each_head(const Attention *a, bool backward, void (*f)(const Head *h, float *sums))
{
    Head first = head_of(a, 0);
    size_t size = share_out(&first.at, NULL, &first, backward);
    size_t C3 = 3 * (size_t)a->heads * (size_t)a->hs, threads = (size_t)omp_get_max_threads();
    size_t n_sums = a->dbias && backward ? (size_t)a->B * C3 : 0;
    float *room = bf16_scratch(threads * size + n_sums + LANES), *sums;
    room += -(uintptr_t)room / sizeof(float) % LANES; /* to the next whole vector */
    sums = room + threads * size;
#pragma omp parallel for schedule(dynamic)
    for (long i = 0; i < (long)a->B * a->heads; i++) {
        Head h = head_of(a, i);
        share_out(&h.at, (uint32_t *)room + (size_t)omp_get_thread_num() * size, &h, backward);
        f(&h, n_sums ? sums + (size_t)h.b * C3 + h.h * a->hs : NULL);
    }
    return n_sums ? sums : NULL;
}

/* 2^x for x that is not above 127, relative error 1e-7; 2^-126 below that. Our own fit to 2^f on
 * -1/2 .. 1/2; the integer part is added to the exponent. */
static inline f32x16 exp2_of(f32x16 x)
{
    x = f32_max(f32_all(-126.0f), x);
    f32x16 shifted = x + 12582912.0f; /* 1.5 * 2^23: the integer in the low bits */
    f32x16 f = x - (shifted - 12582912.0f);
    f32x16 p = 0.00132764713f * f + 0.00967554189f;
    p = p * f + 0.0555071309f;
    p = p * f + 0.240221202f;
    p = p * f + 0.693146944f;
    p = p * f + 1.0f;
    return (f32x16)((u32x16)p + ((u32x16)shifted << 23));
}

/* Keys beyond T are infinitely far. */
static inline void hide_beyond(float *s, const Head *h)
{
    for (int j = h->a->T; j < h->N; j++)
        s[j] = -INFINITY;
}

/* mask [N] = M of query row i of a head: elements of [heads,T,T] per sample, where this rank's
 * heads are drop.first and on */
static void dropout_row(float *mask, const Head *h, int i)
{
    const Drop *d = &h->a->drop;
    int T = h->a->T;
    for (int j = 0; j < h->N; j++)
        mask[j] = 1;
    bf16_drop_elements(mask, T, ((long)(d->first + h->h) * T + i) * T, h->b, d);
}

/* S of query rows i0.. of a head, before the factor 1/sqrt(hs); rows up to a multiple of ROWS */
static void scores(const Head *h, int n)
{
    multiply(&(Units){.a = h->at.q,
                      .a_row = h->D,
                      .a_step = 1,
                      .b = h->at.kt,
                      .ldb = h->N,
                      .c = h->at.s,
                      .ldc = h->N,
                      .rows = n,
                      .columns = h->N,
                      .steps = h->hs_steps},
             h->per);
}

/* ------------------------------------------------------------------------------------------------
 * Forward */

/* s [N] becomes exp(s - top) M in units; returns 1 / sum(exp(s - top)). */
static float softmax_row(float *s, const Head *h, int i)
{
    const bool drop = h->a->drop.p > 0;
    f32x16 tops = f32_all(-INFINITY), sums = {0};
    float *mask = h->at.mask, lane[LANES];
    hide_beyond(s, h);
    if (drop)
        dropout_row(mask, h, i);
    for (int j = 0; j < h->N; j += LANES)
        tops = f32_max(f32_load(s + j), tops);
    f32_store(lane, tops);
    float top = lane[0];
    for (int k = 1; k < LANES; k++)
        top = lane[k] > top ? lane[k] : top;
    for (int j = 0; j < h->N; j += LANES) {
        f32x16 p = exp2_of((f32_load(s + j) - top) * h->scale2);
        sums += p;
        if (drop)
            p *= f32_load(mask + j);
        f32_store(s + j, p);
    }
    round_along((uint32_t *)s, s, h->N, h->per);
    float sum = f32_sum(sums);
    h->lse[i] = top * h->scale + logf(sum);
    return 1 / sum;
}

/* y [n] = factor x, rounded */
static void store_row(uint16_t *y, const float *x, float factor, int n)
{
    int j = 0;
    for (; j + LANES <= n; j += LANES)
        bf16_store(y + j, f32_load(x + j) * factor);
    if (j < n)
        bf16_store_some(y + j, f32_load(x + j) * factor, n - j);
}

static void head_forward(const Head *h, float *unused)
{
    const Attention *a = h->a;
    const Places *at = &h->at;
    int T = a->T, hs = a->hs, D = h->D;
    (void)unused;
    pack_turned(at->kt, h->N, h->k, h->ld, T, hs, h->per);
    pack_across(at->v, D, h->v, h->ld, T, hs, h->per);
    for (int i0 = 0; i0 < a->Tq; i0 += TILE) {
        int n = MIN(a->Tq - i0, TILE);
        float factor[TILE];
        pack_along(at->q, D, h->q + i0 * h->ld, h->ld, n, hs, h->per);
        scores(h, n);
        for (int i = 0; i < n; i++)
            factor[i] = softmax_row(at->s + i * h->N, h, i0 + i);
        multiply(&(Units){.a = (uint32_t *)at->s,
                          .a_row = h->N,
                          .a_step = 1,
                          .b = at->v,
                          .ldb = D,
                          .c = at->sums,
                          .ldc = D,
                          .rows = n,
                          .columns = D,
                          .steps = h->T_steps},
                 h->per);
        for (int i = 0; i < n; i++)
            store_row(bf16_row(a->out, (long)h->b * a->Tq + i0 + i) + h->h * hs, at->sums + i * D,
                      factor[i], hs);
    }
}

void bf16_attention_forward(const Attention *a)
{
    each_head(a, false, head_forward);
}

/* ------------------------------------------------------------------------------------------------
 * Backward
 *   D = rowsum(dout out),  P = exp(S - lse),  dS = P (M dP - D),  dP = dout v^T
 *   dq = dS k / sqrt(hs),  dk = dS^T q / sqrt(hs),  dv = (M P)^T dout
 * Of BLOCK query rows, P M and dS wait as units for the two sums over queries. */

/* x . y, [n] */
static float row_dot(const uint16_t *x, const uint16_t *y, int n)
{
    f32x16 sum = {0};
    int j = 0;
    for (; j + LANES <= n; j += LANES)
        sum += bf16_load(x + j) * bf16_load(y + j);
    if (j < n)
        sum += bf16_load_some(x + j, n - j) * bf16_load_some(y + j, n - j);
    return f32_sum(sum);
}

/* p and d [N], query row i of S and dP, become P M and dS. */
static void score_gradient(float *p, float *d, const Head *h, int i)
{
    const Attention *a = h->a;
    const bool drop = a->drop.p > 0;
    const float *mask = h->at.mask;
    long row = (long)h->b * a->Tq + i, first = (long)h->h * a->hs;
    float D = row_dot(bf16_row(a->dout, row) + first, bf16_row(a->out, row) + first, a->hs);
    float lse = h->lse[i] * LOG2E;
    hide_beyond(p, h);
    if (drop)
        dropout_row(h->at.mask, h, i);
    for (int j = 0; j < h->N; j += LANES) {
        f32x16 x = exp2_of(f32_load(p + j) * h->scale2 - lse), dx = f32_load(d + j);
        f32x16 m = drop ? f32_load(mask + j) : f32_all(1);
        f32_store(d + j, x * (m * dx - D));
        f32_store(p + j, x * m);
    }
}

/* sums [n] += x [n] where sums is not NULL, of x as it was rounded */
static void add_row(float *sums, const uint16_t *x, int n)
{
    for (int j = 0; sums && j < n; j++)
        sums[j] += (float)bf16_to_real(x[j]);
}

/* TILE query rows from i0 on, the first of their block at `block`: S, dP, dq, and P M and dS to
 * the places where they wait */
static void tile_backward(const Head *h, int block, int i0, int n, float *dq_sums)
{
    const Attention *a = h->a;
    const Places *at = &h->at;
    int N = h->N, D = h->D, hs = a->hs, steps = (i0 - block) / h->per;
    long row = (long)h->b * a->Tq + i0;
    const uint16_t *dout = bf16_row(a->dout, row) + h->h * hs, *q = h->q + i0 * h->ld;
    pack_along(at->q, D, q, h->ld, n, hs, h->per);
    pack_along(at->dout, D, dout, a->dout.ld, n, hs, h->per);
    pack_across(at->qs + (long)steps * D, D, q, h->ld, n, hs, h->per);
    pack_across(at->douts + (long)steps * D, D, dout, a->dout.ld, n, hs, h->per);
    scores(h, n);
    multiply(&(Units){.a = at->dout,
                      .a_row = D,
                      .a_step = 1,
                      .b = at->vt,
                      .ldb = N,
                      .c = at->dp,
                      .ldc = N,
                      .rows = n,
                      .columns = N,
                      .steps = h->hs_steps},
             h->per);
    for (int i = 0; i < n; i++)
        score_gradient(at->s + i * N, at->dp + i * N, h, i0 + i);
    if (n % h->per) { /* the second of the last pair */
        memset(at->s + n * N, 0, (size_t)N * sizeof(float));
        memset(at->dp + n * N, 0, (size_t)N * sizeof(float));
    }
    for (int i = 0; i < n; i += h->per, steps++) {
        round_across(at->pt + (long)steps * N, at->s + i * N, N, N, h->per);
        round_across(at->dst + (long)steps * N, at->dp + i * N, N, N, h->per);
    }
    for (int i = 0; i < n; i++)
        round_along((uint32_t *)(at->dp + i * N), at->dp + i * N, N, h->per);
    multiply(&(Units){.a = (uint32_t *)at->dp,
                      .a_row = N,
                      .a_step = 1,
                      .b = at->k,
                      .ldb = D,
                      .c = at->sums,
                      .ldc = D,
                      .rows = n,
                      .columns = D,
                      .steps = h->T_steps},
             h->per);
    for (int i = 0; i < n; i++) {
        uint16_t *dq = bf16_row(a->dqkv, (long)h->b * a->T + i0 + i) + h->h * hs;
        store_row(dq, at->sums + i * D, h->scale, hs);
        add_row(dq_sums, dq, hs);
    }
}

static void head_backward(const Head *h, float *sums)
{
    const Attention *a = h->a;
    const Places *at = &h->at;
    int T = a->T, hs = a->hs, D = h->D, N = h->N, C = a->heads * hs;
    for (int k = 0; sums && k < 3; k++)
        memset(sums + k * C, 0, (size_t)hs * sizeof(float));
    pack_turned(at->kt, N, h->k, h->ld, T, hs, h->per);
    pack_turned(at->vt, N, h->v, h->ld, T, hs, h->per);
    pack_across(at->k, D, h->k, h->ld, T, hs, h->per);
    for (int block = 0; block < a->Tq; block += BLOCK) {
        int end = MIN(a->Tq, block + BLOCK);
        for (int i0 = block; i0 < end; i0 += TILE)
            tile_backward(h, block, i0, MIN(end - i0, TILE), sums);
        Units u = {.a = at->pt,
                   .a_row = 1,
                   .a_step = N,
                   .b = at->douts,
                   .ldb = D,
                   .c = at->dv,
                   .ldc = D,
                   .rows = T,
                   .columns = D,
                   .steps = (end - block + h->per - 1) / h->per,
                   .add = block > 0};
        multiply(&u, h->per);
        u.a = at->dst;
        u.b = at->qs;
        u.c = at->dk;
        multiply(&u, h->per);
    }
    for (int j = 0; j < T; j++) {
        uint16_t *dk = bf16_row(a->dqkv, (long)h->b * T + j) + C + h->h * hs, *dv = dk + C;
        store_row(dk, at->dk + j * D, h->scale, hs);
        store_row(dv, at->dv + j * D, 1, hs);
        add_row(sums ? sums + C : NULL, dk, hs);
        add_row(sums ? sums + 2 * C : NULL, dv, hs);
    }
}

/* dbias [3C]: each image's sums, in order */
void bf16_attention_backward(const Attention *a)
{
    long C3 = 3L * a->heads * a->hs;
    const float *sums = each_head(a, true, head_backward);
    float *dbias = (float *)a->dbias;
    if (!sums)
        return;
    memcpy(dbias, sums, (size_t)C3 * sizeof(float));
    for (int b = 1; b < a->B; b++)
        for (long j = 0; j < C3; j++)
            dbias[j] += sums[b * C3 + j];
}
