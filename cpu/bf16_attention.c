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
enum { STEPS = 256 }; /* at a time: what B has of them, 64 columns wide, fits half of the L1 cache */

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
    _Pragma("GCC unroll 4") for (int round = 0; round < 4; round++)
    {
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
        {&at->mask, 2 * N, true},
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

/* ------------------------------------------------------------------------------------------------
 * Forward */

/* s [N] becomes exp(s - top) M in units; returns 1 / sum(exp(s - top)). */
static inline float softmax_row(float *s, const Head *h, int i, const int per)
{
    f32x16 tops = f32_all(-INFINITY), sums = {0};
    float *mask = h->at.mask, lane[LANES];
    hide_beyond(s, h);
    mask_row(mask, h, i);
    for (int j = 0; j < h->N; j += LANES)
        tops = f32_max(f32_load(s + j), tops);
    f32_store(lane, tops);
    float top = lane[0];
    for (int k = 1; k < LANES; k++)
        top = lane[k] > top ? lane[k] : top;
    for (int j = 0; j < h->N; j += LANES) {
        f32x16 p = exp2_of((f32_load(s + j) - top) * h->scale2);
        sums += p;
        put_along((uint32_t *)s, j, p * f32_load(mask + j), per);
    }
    float sum = f32_sum(sums);
    h->lse[i] = top * h->scale + logf(sum);
    return 1 / sum;
}

/* y [n] = factor x, rounded; sums [n] += y, where it is not NULL */
static void store_row(uint16_t *y, const float *x, float factor, int n, float *sums)
{
    for (int j = 0; j < n; j += LANES) {
        int some = MIN(n - j, LANES);
        f32x16 z = f32_load(x + j) * factor;
        if (some == LANES)
            bf16_store(y + j, z);
        else
            bf16_store_some(y + j, z, some);
        if (!sums)
            continue;
        z = bf16_widen(bf16_round(z));
        if (some == LANES)
            f32_store(sums + j, f32_load(sums + j) + z);
        for (int k = 0; some < LANES && k < some; k++)
            sums[j + k] += z[k];
    }
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
        scores(h, at->q, at->kt, at->s, n);
        for (int i = 0; i < n; i++)
            factor[i] = h->per == 2 ? softmax_row(at->s + i * h->N, h, i0 + i, 2)
                                    : softmax_row(at->s + i * h->N, h, i0 + i, 1);
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
                      factor[i], hs, NULL);
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

/* `per` query rows from i on, of which `rows` exist: s and d have S and dP; P M and dS go to a row
 * of units across them. Of pairs, d has dS in units along it besides: else those are the same. */
static inline void score_gradient(float *s, float *d, uint32_t *pt, uint32_t *dst, const Head *h,
                                  int i, int rows, const int per)
{
    const Attention *a = h->a;
    long row = (long)h->b * a->Tq + i, first = (long)h->h * a->hs, N = h->N;
    float D[2] = {0}, lse[2] = {INFINITY, INFINITY}, *mask = h->at.mask;
    for (int r = 0; r < rows; r++) {
        D[r] =
            row_dot(bf16_row(a->dout, row + r) + first, bf16_row(a->out, row + r) + first, a->hs);
        lse[r] = h->lse[i + r] * LOG2E;
        hide_beyond(s + r * N, h);
        mask_row(mask + r * N, h, i + r);
    }
    if (rows < per) { /* its lse says that P is 0 */
        memset(s + N, 0, (size_t)N * sizeof *s);
        memset(d + N, 0, (size_t)N * sizeof *d);
    }
    for (int j = 0; j < N; j += LANES) {
        f32x16 p[2] = {{0}}, dx[2] = {{0}};
        for (int r = 0; r < per; r++) {
            f32x16 x = exp2_of(f32_load(s + r * N + j) * h->scale2 - lse[r]);
            f32x16 m = f32_load(mask + (a->drop.p > 0 ? r * N : 0) + j);
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
static void tile_backward(const Head *h, int block, int i0, int n, float *sums)
{
    const Attention *a = h->a;
    const Places *at = &h->at;
    const int N = h->N, D = h->D, hs = a->hs, per = h->per;
    long row = (long)h->b * a->Tq + i0, step = (i0 - block) / per;
    const uint16_t *dout = bf16_row(a->dout, row) + h->h * hs, *q = h->q + i0 * h->ld;
    uint32_t *qs = at->qs + step * D, *douts = at->douts + step * D;
    uint32_t *pt = at->pt + step * N, *dst = at->dst + step * N;
    pack_across(qs, D, q, h->ld, n, hs, per);
    pack_across(douts, D, dout, a->dout.ld, n, hs, per);
    if (per == 2) {
        pack_along(at->q, D, q, h->ld, n, hs, per);
        pack_along(at->dout, D, dout, a->dout.ld, n, hs, per);
    }
    scores(h, per == 2 ? at->q : qs, at->kt, at->s, n);
    scores(h, per == 2 ? at->dout : douts, at->vt, at->dp, n);
    for (int i = 0; i < n; i += per, pt += N) {
        float *s = at->s + i * N, *d = at->dp + i * N;
        if (per == 2)
            score_gradient(s, d, pt, dst + i / 2 * N, h, i0 + i, MIN(n - i, 2), 2);
        else
            score_gradient(s, d, pt, dst + i * N, h, i0 + i, 1, 1);
    }
    multiply(&(Units){.a = per == 2 ? (uint32_t *)at->dp : dst,
                      .a_row = N,
                      .a_step = 1,
                      .b = at->k,
                      .ldb = D,
                      .c = at->sums,
                      .ldc = D,
                      .rows = n,
                      .columns = D,
                      .steps = h->T_steps},
             per);
    for (int i = 0; i < n; i++)
        store_row(bf16_row(a->dqkv, (long)h->b * a->T + i0 + i) + h->h * hs, at->sums + i * D,
                  h->scale, hs, sums);
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
        store_row(dk, at->dk + j * D, h->scale, hs, sums ? sums + C : NULL);
        store_row(dv, at->dv + j * D, 1, hs, sums ? sums + 2 * C : NULL);
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
