/* bf16_onednn.c - products of bf16 operands by oneDNN (versions 2 and 3, the C interface), whose
 * threads are OpenMP's own. A stretch of rows is multiplied by all threads, and handed on in blocks
 * by all threads. What the library compiles for a shape is kept. */
#include "cpu/bf16_onednn.h"

#include "util/util.h"

#ifndef HAVE_DNNL

bool onednn_there(void)
{
    return false;
}

bool onednn_has_amx(void)
{
    return false;
}

const char *onednn_version(void)
{
    return "no oneDNN";
}

void onednn_product(const Product *p)
{
    (void)p;
    die("make deps installs oneDNN; build again", "there is no oneDNN in this program");
}

#else

#include <dnnl.h>
#include <string.h>

#define CHECK_DNNL(call)                                                                           \
    do {                                                                                           \
        dnnl_status_t status_ = (call);                                                            \
        if (status_ != dnnl_success)                                                               \
            die("give --precision fp32", "oneDNN: %s failed with status %d", #call, (int)status_); \
    } while (0)

static dnnl_engine_t engine;
static dnnl_stream_t stream;

bool onednn_there(void)
{
    return true;
}

bool onednn_has_amx(void)
{
    return (dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core_amx) ==
           dnnl_cpu_isa_avx512_core_amx;
}

const char *onednn_version(void)
{
    static char text[48];
    const dnnl_version_t *v = dnnl_version();
    snprintf(text, sizeof text, "oneDNN %d.%d.%d", v->major, v->minor, v->patch);
    return text;
}

/* ------------------------------------------------------------------------------------------------
 * Descriptions of matrices, and the product of a shape. Version 3 has them behind pointers. */

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t Matrix;
#define USE(matrix) (matrix)
#define FREE(matrix) dnnl_memory_desc_destroy(matrix)
#else
typedef dnnl_memory_desc_t Matrix;
#define USE(matrix) (&(matrix))
#define FREE(matrix) (void)(matrix)
#endif

/* [rows, columns], in memory with rows of `ld`, or turned: with columns of `ld` */
static Matrix matrix(long rows, long columns, long ld, bool turned, dnnl_data_type_t type)
{
    Matrix m;
    dnnl_dims_t size = {rows, columns}, step = {turned ? 1 : ld, turned ? ld : 1};
#if DNNL_VERSION_MAJOR >= 3
    CHECK_DNNL(dnnl_memory_desc_create_with_strides(&m, 2, size, type, step));
#else
    CHECK_DNNL(dnnl_memory_desc_init_by_strides(&m, 2, size, type, step));
#endif
    return m;
}

/* Everything that the library compiles for: M, N, K, how A and B lie */
typedef struct {
    long M, N, K, lda, ldb;
    long turned; /* A: 1, B: 2 */
} Key;

typedef struct {
    Key key;
    Matrix a, b, c;
    dnnl_primitive_t run;
} Compiled;

static void compile(Compiled *p, const Key *k)
{
    dnnl_primitive_desc_t desc;
    p->key = *k;
    p->a = matrix(k->M, k->K, k->lda, k->turned & 1, dnnl_bf16);
    p->b = matrix(k->K, k->N, k->ldb, k->turned & 2, dnnl_bf16);
    p->c = matrix(k->M, k->N, BLOCK_COLUMNS, false, dnnl_f32);
#if DNNL_VERSION_MAJOR >= 3
    CHECK_DNNL(
        dnnl_matmul_primitive_desc_create(&desc, engine, p->a, p->b, NULL, p->c, NULL));
#else
    dnnl_matmul_desc_t matmul;
    CHECK_DNNL(dnnl_matmul_desc_init(&matmul, &p->a, &p->b, NULL, &p->c));
    CHECK_DNNL(dnnl_primitive_desc_create(&desc, &matmul, NULL, engine, NULL));
#endif
    CHECK_DNNL(dnnl_primitive_create(&p->run, desc));
    CHECK_DNNL(dnnl_primitive_desc_destroy(desc));
}

/* The product of a shape; the oldest of many shapes is forgotten. */
static const Compiled *compiled(const Key *k)
{
    static Compiled kept[64];
    static int n, next;
    for (int i = 0; i < n; i++)
        if (memcmp(&kept[i].key, k, sizeof *k) == 0)
            return &kept[i];
    Compiled *p = &kept[next];
    next = (next + 1) % COUNT(kept);
    if (n < COUNT(kept)) {
        n++;
    } else {
        dnnl_primitive_destroy(p->run);
        FREE(p->a);
        FREE(p->b);
        FREE(p->c);
    }
    compile(p, k);
    return p;
}

/* c [M, N], rows of BLOCK_COLUMNS, = a b */
static void multiply(const Key *k, const void *a, const void *b, float *c)
{
    const Compiled *p = compiled(k);
    dnnl_memory_t of_a, of_b, of_c;
    CHECK_DNNL(dnnl_memory_create(&of_a, USE(p->a), engine, (void *)a));
    CHECK_DNNL(dnnl_memory_create(&of_b, USE(p->b), engine, (void *)b));
    CHECK_DNNL(dnnl_memory_create(&of_c, USE(p->c), engine, c));
    dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, of_a}, {DNNL_ARG_WEIGHTS, of_b}, {DNNL_ARG_DST, of_c}};
    CHECK_DNNL(dnnl_primitive_execute(p->run, stream, COUNT(args), args));
    CHECK_DNNL(dnnl_stream_wait(stream));
    dnnl_memory_destroy(of_a);
    dnnl_memory_destroy(of_b);
    dnnl_memory_destroy(of_c);
}

/* ------------------------------------------------------------------------------------------------
 * Stretches of rows and columns */

enum { STRETCH = 32 * ROW_GROUP }; /* rows that are multiplied together */

/* Number i of the element in row `row` and column `column` of an operand of the product */
static const void *place(Tensor t, bool turned, long row, long column)
{
    return (const uint16_t *)t.p + (turned ? column * t.ld + row : row * t.ld + column);
}

/* c: rows `row` .. `end` - 1 of the product */
static void hand_on(const Product *p, const float *c, int row, int end, int column, int columns)
{
#pragma omp parallel for schedule(dynamic)
    for (int r = row; r < end; r += ROW_GROUP) {
        Block block = {.c = c + (long)(r - row) * BLOCK_COLUMNS,
                       .row = r,
                       .rows = end - r < ROW_GROUP ? end - r : ROW_GROUP,
                       .column = column,
                       .columns = columns};
        p->take(p->op, &block);
    }
}

void onednn_product(const Product *p)
{
    static float *c;
    if (!engine) {
        CHECK_DNNL(dnnl_engine_create(&engine, dnnl_cpu, 0));
        CHECK_DNNL(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
        c = xmalloc((size_t)STRETCH * BLOCK_COLUMNS * sizeof *c);
    }
    for (int column = 0; column < p->N; column += BLOCK_COLUMNS)
        for (int row = 0; row < p->M; row += STRETCH) {
            Key k = {.M = p->M - row < STRETCH ? p->M - row : STRETCH,
                     .N = p->N - column < BLOCK_COLUMNS ? p->N - column : BLOCK_COLUMNS,
                     .K = p->K,
                     .lda = p->a.ld,
                     .ldb = p->b.ld,
                     .turned = p->a_turned + 2 * p->b_turned};
            multiply(&k, place(p->a, p->a_turned, row, 0), place(p->b, p->b_turned, 0, column), c);
            hand_on(p, c, row, row + (int)k.M, column, (int)k.N);
        }
}

#endif
