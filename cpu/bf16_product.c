/* bf16_product.c - matrix products of bf16 operands: packing, the kernels, blocks.
 *
 * As Goto and van de Geijn (2008) and BLIS have it. Both operands are packed, so that the kernel
 * reads memory in order: A in panels of MR rows, B in panels of NR columns, of KC steps of the sum
 * each. The kernel keeps MR x NR sums in registers, and for each step multiplies NR numbers of B by
 * each of MR numbers of A. B is packed once for all threads, a slab of its columns at a time where
 * it is large; a thread packs the rows of A that its block needs. C's blocks are made one after
 * another in the thread's own memory, and each is handed on when it is whole.
 *
 * A packed operand is made of 32-bit units: a bf16 widened to float, or a pair of bf16 that follow
 * each other in the sum, which vdpbf16ps multiplies and adds in one instruction. Whether that is
 * faster depends on the machine: Zen 4 does one of them where it does one multiplication of
 * floats, Intel's cores half a one for two.
 *
 * The order of every sum is fixed by K alone: bits depend on neither threads nor blocks.
 *
 * Order: units, packing, kernels, blocks. Where another way is faster still, a library's, it is in
 * bf16_onednn.c.
 */
#include "cpu/bf16_product.h"

#include "cpu/bf16_onednn.h"
#include "cpu/bf16_ops.h"
#include "util/util.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <sys/mman.h>

/* A kernel's sums fill the registers: 24 of 32 with AVX-512, 12 of 16 with AVX2, 24 of 32 NEON. */
#ifdef __AVX512F__
enum { MR = 8, NV = 3 };
#else
enum { MR = 6, NV = 1 };
#endif
enum { NR = NV * LANES, KC = 192 }; /* KC: units; a panel of B stays in the first cache */

static int by = PRODUCTS_FLOATS;

void bf16_products_by(int how)
{
    by = how;
}

/* ------------------------------------------------------------------------------------------------
 * Units */

/* Compiled once for each width of a panel and each kind of unit */
#define INLINE static inline __attribute__((always_inline))

/* Numbers of bf16 in one */
int bf16_per_unit(void)
{
    return by == PRODUCTS_PAIRS ? 2 : 1;
}

/* Sixteen units of n <= 16 (pairs: 32) bf16 that lie side by side; what is beyond is 0 */
INLINE u32x16 units_of(const uint16_t *p, long n, int per)
{
    if (per == 1)
        return (u32x16)(n >= LANES ? bf16_load(p) : n > 0 ? bf16_load_some(p, n) : (f32x16){0});
    u32x16 x = {0};
    if (n >= 2 * LANES)
        memcpy(&x, p, sizeof x);
    else if (n > 0)
        memcpy(&x, p, (size_t)n * sizeof *p);
    return x;
}

/* ------------------------------------------------------------------------------------------------
 * Packing: a panel is `width` units of step 0, those of step 1, and so on. Its source is rows that
 * run along the sum (turned: along the panel's width). `some` of the width exist, and `sum` numbers
 * of the sum; what is missing is 0. */

enum { TURN = 8 }; /* rows that are turned together */

/* The first halves of a and b, and the second ones */
INLINE u32x16 halves_low(u32x16 a, u32x16 b)
{
    return SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
}

INLINE u32x16 halves_high(u32x16 a, u32x16 b)
{
    return SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}

/* Sixteen steps of eight rows, the first of which is at p and `some` of which exist, turned in
 * three rounds of taking turns: x[i] has steps 2i and 2i + 1. `left` numbers are left of the sum.
 */
INLINE void turn(u32x16 x[TURN], const uint16_t *p, long ld, int some, int left, const int per)
{
    u32x16 y[TURN];
    for (int i = 0; i < TURN; i++)
        x[i] = i < some ? units_of(p + i * ld, left, per) : (u32x16){0};
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < TURN / 2; i++) {
            y[2 * i] = turns_low(x[i], x[i + TURN / 2]);
            y[2 * i + 1] = turns_high(x[i], x[i + TURN / 2]);
        }
        memcpy(x, y, sizeof y);
    }
}

/* Rows that run along the sum, into a panel of at most TURN of them */
INLINE void pack_few_rows(uint32_t *out, const int width, const uint16_t *p, long ld, int some,
                          int sum, const int per)
{
    for (int k = 0; k < sum; k += LANES * per, out += LANES * width) {
        u32x16 x[TURN];
        int n = (sum - k + per - 1) / per; /* steps that are left */
        turn(x, p + k, ld, some < width ? some : width, sum - k, per);
        const uint32_t *step = (const uint32_t *)x;
        if (width == TURN && n >= LANES)
            memcpy(out, x, sizeof x);
        else
            for (int i = 0; i < n && i < LANES; i++)
                memcpy(out + i * width, step + i * TURN, (size_t)width * sizeof *out);
    }
}

/* The same into a panel of a multiple of LANES */
INLINE void pack_many_rows(uint32_t *out, const int width, const uint16_t *p, long ld, int some,
                           int sum, const int per)
{
    for (int j = 0; j < width; j += LANES)
        for (int k = 0; k < sum; k += LANES * per) {
            u32x16 x[TURN], y[TURN];
            int n = (sum - k + per - 1) / per;
            uint32_t *to = out + (long)(k / per) * width + j;
            turn(x, p + j * ld + k, ld, some - j, sum - k, per);
            turn(y, p + (j + TURN) * ld + k, ld, some - j - TURN, sum - k, per);
            for (int i = 0; i < LANES && i < n; i++, to += width) {
                u32x16 a = x[i / 2], b = y[i / 2];
                a = i % 2 ? halves_high(a, b) : halves_low(a, b);
                memcpy(to, &a, sizeof a);
            }
        }
}

typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));

/* Eight numbers of a row, of which `some` exist, in the upper halves of units */
INLINE u32x8 uppers(const uint16_t *p, int some)
{
    u16x8 x = {0};
    if (some >= TURN)
        memcpy(&x, p, sizeof x);
    for (int i = 0; some < TURN && i < some; i++)
        x[i] = p[i];
    return __builtin_convertvector(x, u32x8) << 16;
}

/* Rows that run along the panel's width: as they are, or two at a time by turns. Some panels side
 * by side, `size` units from one to the next: then whole lines of cache are read at a time. */
INLINE void pack_columns(uint32_t *out, const int width, int panels, long size, const uint16_t *p,
                         long ld, int some, int sum, const int per)
{
    for (int k = 0; k < sum; k += per, out += width, p += per * ld)
        for (int i = 0; i < panels; i++)
            for (int j = 0; j < width; j += TURN) {
                const int n = width - j < TURN ? width - j : TURN, at = i * width + j;
                u32x8 x = uppers(p + at, some - at);
                if (per == 2)
                    x = k + 1 < sum ? x >> 16 | uppers(p + ld + at, some - at) : x >> 16;
                memcpy(out + i * size + j, &x, (size_t)n * sizeof *out);
            }
}

/* Panels from row or column `at` of `all` on, KC steps of the sum from `k` of K on */
INLINE void pack(uint32_t *out, const int width, int panels, long size, Tensor t, bool along_sum,
                 int at, int all, int k, int K, const int per)
{
    int sum = K - k < KC * per ? K - k : KC * per;
    const uint16_t *p = (const uint16_t *)t.p + (along_sum ? at * t.ld + k : k * t.ld + at);
    for (int i = 0; along_sum && i < panels; i++, out += size, p += width * t.ld, at += width)
        if (width <= TURN)
            pack_few_rows(out, width, p, t.ld, all - at, sum, per);
        else
            pack_many_rows(out, width, p, t.ld, all - at, sum, per);
    if (!along_sum)
        pack_columns(out, width, panels, size, p, t.ld, all - at, sum, per);
}

/* From one panel to the next: of A, not a whole number of pages, which would all be in one place
 * of the cache */
enum { A_SIZE = KC * MR + LANES, B_SIZE = KC * NR };

static void pack_a(uint32_t *out, const Product *p, int row, int panels, int k)
{
    if (by == PRODUCTS_PAIRS)
        pack(out, MR, panels, A_SIZE, p->a, !p->a_turned, row, p->M, k, p->K, 2);
    else
        pack(out, MR, panels, A_SIZE, p->a, !p->a_turned, row, p->M, k, p->K, 1);
}

static void pack_b(uint32_t *out, const Product *p, int column, int panels, int k)
{
    if (by == PRODUCTS_PAIRS)
        pack(out, NR, panels, B_SIZE, p->b, p->b_turned, column, p->N, k, p->K, 2);
    else
        pack(out, NR, panels, B_SIZE, p->b, p->b_turned, column, p->N, k, p->K, 1);
}

/* ------------------------------------------------------------------------------------------------
 * Kernels: c [MR,NR] (+)= a [steps,MR]^T b [steps,NR] */

#define KERNEL(name, multiply_add)                                                                 \
    static void name(int steps, const uint32_t *a, const uint32_t *b, float *c, bool add)          \
    {                                                                                              \
        f32x16 sum[MR][NV];                                                                        \
        for (int i = 0; i < MR; i++)                                                               \
            for (int v = 0; v < NV; v++)                                                           \
                sum[i][v] = add ? f32_load(c + i * BLOCK_COLUMNS + v * LANES) : (f32x16){0};       \
        for (int s = 0; s < steps; s++, a += MR, b += NR) {                                        \
            u32x16 y[NV];                                                                          \
            memcpy(y, b, sizeof y);                                                                \
            for (int i = 0; i < MR; i++) {                                                         \
                u32x16 x = a[i] - (u32x16){0};                                                     \
                for (int v = 0; v < NV; v++)                                                       \
                    sum[i][v] = multiply_add(x, y[v], sum[i][v]);                                  \
            }                                                                                      \
        }                                                                                          \
        for (int i = 0; i < MR; i++)                                                               \
            for (int v = 0; v < NV; v++)                                                           \
                f32_store(c + i * BLOCK_COLUMNS + v * LANES, sum[i][v]);                           \
    }

KERNEL(kernel_floats, FLOATS)
KERNEL(kernel_pairs, PAIRS)

/* ------------------------------------------------------------------------------------------------
 * Blocks */

/* What a product needs besides its operands: a slab of B packed, `panels` of them from `first` on,
 * and for each thread A packed and a block */
typedef struct {
    uint32_t *b, *a;
    float *c;
    long a_size, c_size;
    int first, panels;
} Room;

static long round_up(long n, long to)
{
    return (n + to - 1) / to * to;
}

/* Room for n units, in large pages where the system has them, since a block's rows and panels are
 * in many small ones; it grows to the largest request and stays. */
static uint32_t *room_of(size_t n)
{
    enum { PAGE = 2 << 20 };
    static uint32_t *p;
    static size_t size;
    if (n > size) {
        free(p);
        size = n;
        size_t bytes = (size * sizeof *p + PAGE - 1) / PAGE * PAGE;
        p = aligned_alloc(PAGE, bytes);
        if (!p)
            die("give a smaller --micro-batch", "no memory for %zu MB of packed operands",
                bytes >> 20);
        madvise(p, bytes, MADV_HUGEPAGE);
    }
    return p;
}

/* Panel j of step block k in B packed: its place, panels of a step block side by side */
static uint32_t *panel_of(const Room *room, int j, int k)
{
    return room->b + ((long)k * room->panels + j - room->first) * B_SIZE;
}

enum { TOGETHER = 4 }; /* panels of B that are packed side by side */

/* Part i of n of a panel of B, on its way from memory while the panel before it is used */
INLINE void fetch_part(const uint32_t *panel, int i, int n)
{
    enum { LINE = 16, LINES = B_SIZE / LINE };
    int part = (LINES + n - 1) / n;
    for (int k = i * part; k < (i + 1) * part; k++)
        __builtin_prefetch(panel + (long)k * LINE, 0, 2);
}

/* One block of C: for each step block, A's rows are packed and meet all of B's panels. */
static void make_block(const Product *p, const Room *room, int thread, Block *block)
{
    int per = bf16_per_unit(), steps_all = (p->K + per - 1) / per;
    uint32_t *a = room->a + thread * room->a_size;
    float *c = room->c + thread * room->c_size;
    for (int k = 0; k * KC < steps_all; k++) {
        int steps = steps_all - k * KC < KC ? steps_all - k * KC : KC;
        pack_a(a, p, block->row, (block->rows + MR - 1) / MR, k * KC * per);
        for (int j = 0; j < block->columns; j += NR)
            for (int i = 0; i < block->rows; i += MR) {
                const uint32_t *b = panel_of(room, (block->column + j) / NR, k);
                const uint32_t *panel = a + (long)(i / MR) * A_SIZE;
                float *to = c + (long)i * BLOCK_COLUMNS + j;
                fetch_part(b + B_SIZE, i / MR, (block->rows + MR - 1) / MR);
                if (by == PRODUCTS_PAIRS)
                    kernel_pairs(steps, panel, b, to, k > 0);
                else
                    kernel_floats(steps, panel, b, to, k > 0);
            }
    }
    block->c = c;
    p->take(p->op, block);
}

int bf16_block_rows(const Product *p, int threads)
{
    /* what a row costs, since B is read again for every block */
    static const double cost[] = {1.2, 1.05, 1.015, 1};
    int across = (p->N + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS, best = BLOCK_ROWS;
    double least = INFINITY;
    for (int i = COUNT(cost); i > 0; i--) {
        int rows = i * ROW_GROUP, blocks = (p->M + rows - 1) / rows * across;
        double time = (blocks + threads - 1) / threads * rows * cost[i - 1];
        if (time < least) {
            least = time;
            best = rows;
        }
    }
    return best;
}

/* Columns of a slab: whole blocks of them, and of those as many as fit into 8 MB for each thread.
 * Then room is short where few threads are, and blocks are many where many are. */
static int slab_columns(const Product *p, int step_blocks, int threads)
{
    enum { MOST = 2 << 20 }; /* units */
    long blocks = (long)threads * MOST / ((long)step_blocks * KC * BLOCK_COLUMNS);
    long columns = (blocks > 1 ? blocks : 1) * BLOCK_COLUMNS;
    return columns < p->N ? (int)columns : p->N;
}

/* C's columns column .. column + columns - 1, by all threads */
static void make_slab(const Product *p, Room *room, int column, int columns, int rows)
{
    int per = bf16_per_unit(), step_blocks = (int)round_up(p->K, KC * per) / (KC * per);
    int groups = (room->panels + TOGETHER - 1) / TOGETHER, down = (p->M + rows - 1) / rows;
    int across = (columns + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS, end = column + columns;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int i = 0; i < groups * step_blocks; i++) {
            int k = i / groups, j = i % groups * TOGETHER, left = room->panels - j;
            pack_b(panel_of(room, room->first + j, k), p, column + j * NR,
                   left < TOGETHER ? left : TOGETHER, k * KC * per);
        }
#pragma omp for schedule(dynamic)
        for (int i = 0; i < down * across; i++) {
            Block block = {.row = i / across * rows, .column = column + i % across * BLOCK_COLUMNS};
            block.rows = p->M - block.row < rows ? p->M - block.row : rows;
            block.columns = end - block.column < BLOCK_COLUMNS ? end - block.column : BLOCK_COLUMNS;
            make_block(p, room, omp_get_thread_num(), &block);
        }
    }
}

void bf16_product(const Product *p)
{
    if (by == PRODUCTS_ONEDNN) {
        onednn_product(p);
        return;
    }
    int per = bf16_per_unit(), step_blocks = (int)round_up(p->K, KC * per) / (KC * per);
    int threads = omp_get_max_threads(), columns = slab_columns(p, step_blocks, threads);
    Product slab = *p;
    slab.N = columns;
    int rows = bf16_block_rows(&slab, threads);
    Room room = {.a_size = (long)(BLOCK_ROWS / MR + 1) * A_SIZE,
                 .c_size = (long)BLOCK_ROWS * BLOCK_COLUMNS};
    size_t b_size = (size_t)(round_up(columns, NR) / NR) * (size_t)step_blocks * B_SIZE;
    room.b = room_of(b_size + (size_t)threads * (size_t)(room.a_size + room.c_size));
    room.a = room.b + b_size;
    room.c = (float *)(room.a + threads * room.a_size);
    for (int column = 0; column < p->N; column += columns) {
        int n = p->N - column < columns ? p->N - column : columns;
        room.first = column / NR;
        room.panels = (int)round_up(n, NR) / NR;
        make_slab(p, &room, column, n, rows);
    }
}
