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
#define UNUSED    __attribute__((unused))

static long round_up(long n, long to)
{
    return (n + to - 1) / to * to;
}

/* ------------------------------------------------------------------------------------------------
 * Products of units: c [rows,columns] (+)= A [rows,steps] B [steps,columns] */

/* A kernel's sums fill the registers: 24 of 32 with AVX-512 or NEON, 12 of 16 with AVX2. STEPS at a
 * time, so that what B has of them in a panel of columns stays near. */
#ifdef __AVX512F__
enum { VECTORS = 4 };
#else
enum { VECTORS = 1 };
#endif
enum { ROWS = 6, STEPS = 256 };

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

/* ROWS rows of n vectors of c, over `steps` of both operands. n and `per` are constants wherever it
 * is called, so that the sums are registers. */
static inline __attribute__((always_inline)) void tile(const Units *u, const uint32_t *a,
                                                       const uint32_t *b, float *c, int steps,
                                                       bool add, const int n, const int per)
{
    f32x16 sum[ROWS][VECTORS];
    UNROLL
    for (int i = 0; i < ROWS; i++)
        UNROLL
    for (int v = 0; v < n; v++)
        sum[i][v] = add ? f32_load(c + i * u->ldc + v * LANES) : (f32x16){0};
    for (int s = 0; s < steps; s++, a += u->a_step, b += u->ldb) {
        u32x16 y[VECTORS];
        memcpy(y, b, (size_t)n * sizeof *y);
        UNROLL
        for (int i = 0; i < ROWS; i++) {
            u32x16 x = a[i * u->a_row] - (u32x16){0};
            UNROLL
            for (int v = 0; v < n; v++)
                sum[i][v] = per == 2 ? PAIRS(x, y[v], sum[i][v]) : FLOATS(x, y[v], sum[i][v]);
        }
    }
    UNROLL
    for (int i = 0; i < ROWS; i++)
        UNROLL
    for (int v = 0; v < n; v++)
        f32_store(c + i * u->ldc + v * LANES, sum[i][v]);
}

typedef void Kernel(const Units *u, const uint32_t *a, const uint32_t *b, float *c, int steps,
                    bool add);
#define KERNEL(name, n, per)                                                                    \
    static void name(const Units *u, const uint32_t *a, const uint32_t *b, float *c, int steps, \
                     bool add)                                                                  \
    {                                                                                           \
        tile(u, a, b, c, steps, add, n, per);                                                   \
    }
KERNEL(floats_1, 1, 1)
KERNEL(pairs_1, 1, 2)
#ifdef __AVX512F__
KERNEL(floats_2, 2, 1)
KERNEL(floats_3, 3, 1)
KERNEL(floats_4, 4, 1)
KERNEL(pairs_2, 2, 2)
KERNEL(pairs_3, 3, 2)
KERNEL(pairs_4, 4, 2)
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

/* One head's columns of a matrix of the model's */
typedef struct {
    uint16_t *p;
    long ld;
    int rows, n;
} Rows;

static inline uint16_t *row_of(Rows x, long i)
{
    return x.p + i * x.ld;
}

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

/* A's operand: out [n,ld], of rows i0.. of x */
static void pack_along(uint32_t *out, long ld, Rows x, int i0, int n, int per)
{
    for (int i = 0; i < n; i++, out += ld)
        for (int s = 0; s * per < x.n; s += LANES) {
            u32x16 units = units_along(row_of(x, i0 + i) + s * per, x.n - s * per, per);
            memcpy(out + s, &units, sizeof units);
        }
}

/* B's: out [steps,ld], a step of `per` of n rows; up to a whole vector columns are zero */
static void pack_across(uint32_t *out, long ld, Rows x, int i0, int n, int per)
{
    for (int i = 0; i < n; i += per, out += ld)
        for (int j = 0; j < x.n; j += LANES) {
            const uint16_t *at = row_of(x, i0 + i) + j, *below = i + 1 < n ? at + x.ld : NULL;
            u32x16 units = units_across(at, below, x.n - j, per);
            memcpy(out + j, &units, sizeof units);
        }
}

/* x [16,16] transposed: in each of four rounds the numbers of two rows take turns. */
static inline void transpose(u32x16 *x)
{
    u32x16 y[LANES];
    UNROLL
    for (int round = 0; round < 4; round++) {
        u32x16 *from = round % 2 ? y : x, *to = round % 2 ? x : y;
        UNROLL
        for (int i = 0; i < LANES / 2; i++) {
            to[2 * i] = turns_low(from[i], from[i + LANES / 2]);
            to[2 * i + 1] = turns_high(from[i], from[i + LANES / 2]);
        }
    }
}

/* B's where the sum runs along the rows: out [steps,ld], a column of each row of x; up to a whole
 * vector columns are zero */
static void pack_turned(uint32_t *out, long ld, Rows x, int per)
{
    int steps = (x.n + per - 1) / per;
    for (int j = 0; j < x.rows; j += LANES)
        for (int s = 0; s < steps; s += LANES) {
            u32x16 units[LANES];
            for (int i = 0; i < LANES; i++)
                units[i] = units_along(row_of(x, j + i) + s * per,
                                       j + i < x.rows ? x.n - s * per : 0, per);
            transpose(units);
            for (int i = 0; i < LANES && s + i < steps; i++)
                memcpy(out + (s + i) * ld + j, &units[i], sizeof units[i]);
        }
}

/* Sixteen floats from column j on of a row of units along it, rounded */
static inline void put_along(uint32_t *row, int j, f32x16 x, int per)
{
    if (per == 2)
        bf16_store((uint16_t *)row + j, x);
    else
        f32_store((float *)row + j, bf16_widen(bf16_round(x)));
}

/* x, and below it y, as units across their rows */
static inline void put_across(uint32_t *row, int j, f32x16 x, f32x16 y, int per)
{
    u32x16 units = (u32x16)bf16_widen(bf16_round(x));
    if (per == 2)
        units = units >> 16 | (u32x16)bf16_widen(bf16_round(y));
    memcpy(row + j, &units, sizeof units);
}

/* ------------------------------------------------------------------------------------------------
 * A head */

/* Query rows whose S is in the L1 cache, and rows that wait together for the products that sum over
 * queries */
enum { TILE = 8 * ROWS, BLOCK = 2 * TILE };

/* Places in the thread's room; forward has no need of those below `sums` */
typedef struct {
    uint32_t *kt, *vt;    /* [hs steps, N]: k^T, v^T */
    uint32_t *k, *v;      /* [T steps, D] */
    uint32_t *q, *dout;   /* [TILE, D]: rows */
    float *s, *dp, *mask; /* [TILE, N], [TILE, N], [2, N] */
    float *sums;          /* [TILE, D] */
    uint32_t *pt, *dst;   /* [BLOCK steps, N]: P M and dS, a row a step */
    uint32_t *qs, *douts; /* [BLOCK steps, D] */
    float *dk, *dv;       /* [T, D] */
} Places;

typedef struct {
    const Attention *a;
    Places at;
    Rows q, k, v, out, dout, dq, dk, dv;
    int b, h; /* image, head */
    int D, N; /* hs and T, rounded up to whole vectors */
    int per;  /* numbers in a unit */
    int hs_steps, T_steps;
    float scale, scale2; /* 1 / sqrt(hs), and the same for exponents to base 2 */
    float *lse;          /* [Tq] */
} Head;

#define LOG2E 1.44269504f

/* The next n units of `room`, after the `taken` ones; NULL where they are only counted */
static void *take(uint32_t *room, size_t *taken, size_t n)
{
    uint32_t *place = room ? room + *taken : NULL;
    *taken += (size_t)round_up((long)n, LANES);
    return place;
}

/* Shares `room` out; returns how many units that takes. A row that is read by columns is longer,
 * since rows of results are rounded up to ROWS. */
static size_t share_out(Places *at, uint32_t *room, const Head *h, bool backward)
{
    const size_t T = (size_t)h->a->T + ROWS, N = (size_t)h->N + LANES, D = (size_t)h->D;
    size_t n = 0;
    at->kt = take(room, &n, D * N);
    at->q = take(room, &n, TILE * D);
    at->s = take(room, &n, TILE * N);
    at->mask = take(room, &n, 2 * N);
    at->sums = take(room, &n, TILE * D);
    at->v = take(room, &n, backward ? 0 : T * D);
    if (!backward)
        return n;
    at->k = take(room, &n, T * D);
    at->vt = take(room, &n, D * N);
    at->dout = take(room, &n, TILE * D);
    at->dp = take(room, &n, TILE * N);
    at->pt = take(room, &n, BLOCK * N);
    at->dst = take(room, &n, BLOCK * N);
    at->qs = take(room, &n, BLOCK * D);
    at->douts = take(room, &n, BLOCK * D);
    at->dk = take(room, &n, T * D);
    at->dv = take(room, &n, T * D);
    return n;
}

/* Of a matrix with `rows` rows for each image: those of image b, and a head's columns from `column`
 * on. p NULL stays NULL. */
static Rows rows_of(Tensor t, int rows, int b, long column, int hs)
{
    return (Rows){t.p ? bf16_row(t, (long)b * rows) + column : NULL, t.ld, rows, hs};
}

static Head head_of(const Attention *a, long i)
{
    const int hs = a->hs, T = a->T, Tq = a->Tq, b = (int)(i / a->heads), h = (int)(i % a->heads);
    const int per = bf16_per_unit();
    const long C = (long)a->heads * hs, first = (long)h * hs;
    return (Head){.a = a,
                  .q = rows_of(a->qkv, T, b, first, hs),
                  .k = rows_of(a->qkv, T, b, first + C, hs),
                  .v = rows_of(a->qkv, T, b, first + 2 * C, hs),
                  .out = rows_of(a->out, Tq, b, first, hs),
                  .dout = rows_of(a->dout, Tq, b, first, hs),
                  .dq = rows_of(a->dqkv, T, b, first, hs),
                  .dk = rows_of(a->dqkv, T, b, first + C, hs),
                  .dv = rows_of(a->dqkv, T, b, first + 2 * C, hs),
                  .b = b,
                  .h = h,
                  .D = (int)round_up(hs, LANES),
                  .N = (int)round_up(T, LANES),
                  .per = per,
                  .hs_steps = (hs + per - 1) / per,
                  .T_steps = (T + per - 1) / per,
                  .scale = (float)(1 / sqrt(hs)),
                  .scale2 = (float)(1.4426950408889634 / sqrt(hs)),
                  .lse = (float *)a->lse + i * Tq};
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
#pragma omp parallel for schedule(static)
    for (long i = 0; i < (long)a->B * a->heads; i++) {
        Head h = head_of(a, i);
        share_out(&h.at, (uint32_t *)room + (size_t)omp_get_thread_num() * size, &h, backward);
        f(&h, n_sums ? sums + (size_t)h.b * C3 + h.h * a->hs : NULL);
    }
    return n_sums ? sums : NULL;
}

/* Rows of one head lie far apart, where no machine guesses the next one: those from i0 on, as many
 * as a tile has, are told to it before the products that keep it busy meanwhile. Never a call,
 * which compilers find to have no effect. */
static inline __attribute__((always_inline)) void fetch(Rows x, int i0, const bool write)
{
    enum { LINE = 32 }; /* bf16 */
    for (int i = i0; i < MIN(x.rows, i0 + TILE); i++)
        for (int j = 0; j < x.n; j += LINE)
            if (write)
                __builtin_prefetch(row_of(x, i) + j, 1);
            else
                __builtin_prefetch(row_of(x, i) + j, 0);
}

/* What the next tile will read, and the next head, which this thread is likely to take */
static void fetch_next(const Head *h, int i0)
{
    Rows k = h->k, v = h->v;
    fetch(h->q, i0 + TILE, false);
    if (h->h + 1 == h->a->heads)
        return;
    k.p += k.n;
    v.p += v.n;
    fetch(k, i0, false);
    fetch(v, i0, false);
}

/* 2^x for x that is not above 127, relative error 1e-7; 0 below -64, which is nothing beside the
 * largest: numbers near the smallest that there are would cost a hundred times their share. Our own
 * fit to 2^f on -1/2 .. 1/2; the integer part is added to the exponent. */
static inline f32x16 exp2_of(f32x16 x)
{
    f32x16 shifted = x + 12582912.0f; /* 1.5 * 2^23: the integer in the low bits */
    f32x16 f = x - (shifted - 12582912.0f);
    f32x16 p = 0.00132764713f * f + 0.00967554189f;
    p = p * f + 0.0555071309f;
    p = p * f + 0.240221202f;
    p = p * f + 0.693146944f;
    p = p * f + 1.0f;
    u32x16 bits = (u32x16)p + ((u32x16)shifted << 23);
#ifdef __AVX512F__ /* gcc 12 would first make a vector of the comparison */
    return (f32x16)_mm512_maskz_mov_epi32(
        _mm512_cmp_ps_mask((__m512)x, (__m512)f32_all(-64), _CMP_NLT_UQ), (__m512i)bits);
#else
    return (f32x16)(bits & ~(u32x16)(x < -64.0f));
#endif
}

/* The largest of sixteen */
static inline float f32_top(f32x16 x)
{
#ifdef __AVX512F__
    return _mm512_reduce_max_ps((__m512)x);
#else
    float top[LANES];
    f32_store(top, x);
    for (int k = 1; k < LANES; k++)
        top[0] = top[k] > top[0] ? top[k] : top[0];
    return top[0];
#endif
}

/* Keys beyond T are infinitely far. */
static inline void hide_beyond(float *s, const Head *h)
{
    for (int j = h->a->T; j < h->N; j++)
        s[j] = -INFINITY;
}

/* mask [N] = M of query row i of a head: elements of [heads,T,T] per sample, where this rank's
 * heads are drop.first and on. Without dropout it stays as it was made for row 0: ones. */
static void mask_row(float *mask, const Head *h, int i)
{
    const Drop *d = &h->a->drop;
    int T = h->a->T;
    if (i > 0 && d->p <= 0)
        return;
    for (int j = 0; j < h->N; j++)
        mask[j] = 1;
    if (d->p > 0)
        bf16_drop_elements(mask, T, ((long)(d->first + h->h) * T + i) * T, h->b, d);
}

/* s [n,N] = A [n,hs] B [hs,N], B being k^T or v^T: S, before the factor 1/sqrt(hs), or dP */
static void scores(const Head *h, const uint32_t *a, const uint32_t *b, float *s, int n)
{
    multiply(&(Units){.a = a,
                      .a_row = h->D,
                      .a_step = 1,
                      .b = b,
                      .ldb = h->N,
                      .c = s,
                      .ldc = h->N,
                      .rows = n,
                      .columns = h->N,
                      .steps = h->hs_steps},
             h->per);
}

/* sums [n,D] = A [n,T] B [T,D], A being P M or dS, B v or k */
static void sums_over_keys(const Head *h, const uint32_t *a, const uint32_t *b, int n)
{
    multiply(&(Units){.a = a,
                      .a_row = h->N,
                      .a_step = 1,
                      .b = b,
                      .ldb = h->D,
                      .c = h->at.sums,
                      .ldc = h->D,
                      .rows = n,
                      .columns = h->D,
                      .steps = h->T_steps},
             h->per);
}

/* ------------------------------------------------------------------------------------------------
 * Forward */

/* s [N] becomes exp(s - top) M in units; returns 1 / sum(exp(s - top)). */
static inline float softmax_row(float *s, const Head *h, int i, const int per)
{
    f32x16 tops = f32_all(-INFINITY), sums = {0};
    float *mask = h->at.mask;
    hide_beyond(s, h);
    mask_row(mask, h, i);
    for (int j = 0; j < h->N; j += LANES)
        tops = f32_max(f32_load(s + j), tops);
    float top = f32_top(tops), scale2 = h->scale2, shift = top * scale2;
    for (int j = 0; j < h->N; j += LANES) {
        f32x16 p = exp2_of(f32_load(s + j) * scale2 - shift);
        sums += p;
        put_along((uint32_t *)s, j, p * f32_load(mask + j), per);
    }
    float sum = f32_sum(sums);
    h->lse[i] = top * h->scale + logf(sum);
    return 1 / sum;
}

/* Row i of y = factor x, rounded; sums [n] += what y has, where they are not NULL. */
static void store_row(Rows y, int i, const float *x, float factor, float *sums)
{
    for (int j = 0; j < y.n; j += LANES) {
        uint16_t *to = row_of(y, i) + j;
        int some = MIN(y.n - j, LANES);
        f32x16 z = f32_load(x + j) * factor, stored = bf16_widen(bf16_round(z));
        if (some == LANES)
            bf16_store(to, z);
        else
            bf16_store_some(to, z, some);
        if (sums && some == LANES)
            f32_store(sums + j, f32_load(sums + j) + stored);
        for (int k = 0; sums && some < LANES && k < some; k++)
            sums[j + k] += stored[k];
    }
}

static void head_forward(const Head *h, UNUSED float *sums)
{
    const Places *at = &h->at;
    const int N = h->N, D = h->D, per = h->per, Tq = h->a->Tq;
    pack_turned(at->kt, N, h->k, per);
    pack_across(at->v, D, h->v, 0, h->v.rows, per);
    for (int i0 = 0; i0 < Tq; i0 += TILE) {
        int n = MIN(Tq - i0, TILE);
        float factor[TILE];
        pack_along(at->q, D, h->q, i0, n, per);
        fetch(h->out, i0, true);
        fetch_next(h, i0);
        scores(h, at->q, at->kt, at->s, n);
        for (int i = 0; i < n; i++)
            factor[i] = per == 2 ? softmax_row(at->s + i * N, h, i0 + i, 2)
                                 : softmax_row(at->s + i * N, h, i0 + i, 1);
        sums_over_keys(h, (uint32_t *)at->s, at->v, n);
        for (int i = 0; i < n; i++)
            store_row(h->out, i0 + i, at->sums + i * D, factor[i], NULL);
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

/* dout . out of query row i */
static float row_dot(const Head *h, int i)
{
    const uint16_t *x = row_of(h->dout, i), *y = row_of(h->out, i);
    f32x16 sum = {0};
    int j = 0, n = h->out.n;
    for (; j + LANES <= n; j += LANES)
        sum += bf16_load(x + j) * bf16_load(y + j);
    if (j < n)
        sum += bf16_load_some(x + j, n - j) * bf16_load_some(y + j, n - j);
    return f32_sum(sum);
}

/* `per` query rows from i on, of which `rows` exist: s and d have S and dP; P M and dS go to a row
 * of units across them. Of pairs, d has dS in units along it besides: else those are the same. */
static inline void score_gradient(float *s, float *d, uint32_t *pt, uint32_t *dst, const Head *h,
                                  int i, int rows, const int per)
{
    const long N = h->N;
    float D[2] = {0}, lse[2] = {INFINITY, INFINITY}, *mask[2] = {h->at.mask, h->at.mask};
    if (rows == 2 && h->a->drop.p > 0) /* else all masks are alike */
        mask[1] += N;
    for (int r = 0; r < rows; r++) {
        D[r] = row_dot(h, i + r);
        lse[r] = h->lse[i + r] * LOG2E;
        hide_beyond(s + r * N, h);
        mask_row(mask[r], h, i + r);
    }
    if (rows < per) { /* its lse says that P is 0 */
        memset(s + N, 0, (size_t)N * sizeof *s);
        memset(d + N, 0, (size_t)N * sizeof *d);
    }
    for (int j = 0; j < N; j += LANES) {
        f32x16 p[2] = {{0}}, dx[2] = {{0}};
        for (int r = 0; r < per; r++) {
            f32x16 x = exp2_of(f32_load(s + r * N + j) * h->scale2 - lse[r]);
            f32x16 m = f32_load(mask[r] + j);
            p[r] = x * m;
            dx[r] = x * (m * f32_load(d + r * N + j) - D[r]);
        }
        put_across(pt, j, p[0], p[1], per);
        put_across(dst, j, dx[0], dx[1], per);
        for (int r = 0; per == 2 && r < 2; r++)
            put_along((uint32_t *)(d + r * N), j, dx[r], per);
    }
}

/* TILE query rows from i0 on, of the block that began with `block`: S, dP, dq; P M and dS to the
 * places where they wait */
static void tile_backward(const Head *h, int block, int i0, int n, float *dq_sums)
{
    const Places *at = &h->at;
    const int N = h->N, D = h->D, per = h->per, step = (i0 - block) / per;
    uint32_t *qs = at->qs + (long)step * D, *douts = at->douts + (long)step * D;
    uint32_t *pt = at->pt + (long)step * N, *dst = at->dst + (long)step * N;
    pack_across(qs, D, h->q, i0, n, per);
    pack_across(douts, D, h->dout, i0, n, per);
    if (per == 2) {
        pack_along(at->q, D, h->q, i0, n, per);
        pack_along(at->dout, D, h->dout, i0, n, per);
    }
    fetch(h->out, i0, false);
    fetch(h->dq, i0, true);
    fetch(h->dout, i0 + TILE, false);
    fetch_next(h, i0);
    scores(h, per == 2 ? at->q : qs, at->kt, at->s, n);
    scores(h, per == 2 ? at->dout : douts, at->vt, at->dp, n);
    for (int i = 0; i < n; i += per) {
        float *s = at->s + i * N, *d = at->dp + i * N;
        long to = (long)(i / per) * N;
        if (per == 2)
            score_gradient(s, d, pt + to, dst + to, h, i0 + i, MIN(n - i, 2), 2);
        else
            score_gradient(s, d, pt + to, dst + to, h, i0 + i, 1, 1);
    }
    sums_over_keys(h, per == 2 ? (uint32_t *)at->dp : dst, at->k, n);
    for (int i = 0; i < n; i++)
        store_row(h->dq, i0 + i, at->sums + i * D, h->scale, dq_sums);
}

/* c [T,D] (+)= A^T B, sums over the n queries of a block: A P M or dS, B dout or q */
static void sums_over_queries(const Head *h, float *c, const uint32_t *a, const uint32_t *b, int n,
                              bool add)
{
    multiply(&(Units){.a = a,
                      .a_row = 1,
                      .a_step = h->N,
                      .b = b,
                      .ldb = h->D,
                      .c = c,
                      .ldc = h->D,
                      .rows = h->a->T,
                      .columns = h->D,
                      .steps = (n + h->per - 1) / h->per,
                      .add = add},
             h->per);
}

static void head_backward(const Head *h, float *sums)
{
    const Places *at = &h->at;
    const int T = h->a->T, Tq = h->a->Tq, C = h->a->heads * h->a->hs;
    float *dk_sums = sums ? sums + C : NULL, *dv_sums = sums ? sums + 2 * C : NULL;
    for (int k = 0; sums && k < 3; k++)
        memset(sums + k * C, 0, (size_t)h->a->hs * sizeof(float));
    pack_turned(at->kt, h->N, h->k, h->per);
    pack_turned(at->vt, h->N, h->v, h->per);
    pack_across(at->k, h->D, h->k, 0, T, h->per);
    for (int block = 0; block < Tq; block += BLOCK) {
        int n = MIN(Tq - block, BLOCK);
        for (int i = 0; i < n; i += TILE) {
            tile_backward(h, block, block + i, MIN(n - i, TILE), sums);
            fetch(h->dk, block + i, true);
            fetch(h->dv, block + i, true);
        }
        sums_over_queries(h, at->dv, at->pt, at->douts, n, block > 0);
        sums_over_queries(h, at->dk, at->dst, at->qs, n, block > 0);
    }
    for (int j = 0; j < T; j++) {
        store_row(h->dk, j, at->dk + j * h->D, h->scale, dk_sums);
        store_row(h->dv, j, at->dv + j * h->D, 1, dv_sums);
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
