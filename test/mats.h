/* mats.h - matrices in device memory and their comparison with what backend.h promises.
 *
 * A case calls begin, makes matrices, calls the op on their tensors, writes what must come out into
 * the outputs' `v` in double, and ends with `finish`, which compares. Every matrix is a device
 * block with guards in front and behind and, where padded, a gap after each row; inputs, guards,
 * gaps and whatever an op must leave alone are compared bit for bit. Outputs are NaN before the op,
 * as are the gaps of inputs and the start of the scratch memory, so that reading what nobody wrote
 * shows.
 *
 * 16-bit types: inputs are rounded before both sides see them, and the expected values are rounded
 * once, at the end. Where an implementation may round on the way as well, because another kernel
 * takes over from memory, the case writes each order of roundings down as a `way` of its own; the
 * matrix is held to the nearest of them as a whole.
 *
 * Gates are relative L2 norms (README, "How it is tested"):
 *                                        fp32  tf32  bf16  fp16
 *   what matrix products make            1e-5  2e-3  1e-3  1.25e-4
 *   the rest                             1e-5  1e-5  1e-3  1.25e-4
 *   attention (P and dS are rounded)     1e-5  2e-3  4e-3  5e-4
 *   real numbers of 16-bit inputs                    1e-5  1e-5
 *   real sums of rounded outputs                     as those outputs
 * and of 16-bit elements, but attention's, at most one in a hundred may be beyond one ulp. One
 * element that rounds to the other neighbour is no error, however small the matrix.
 */
#pragma once

#include "check.h"
#include "device.h"
#include "util/rng.h"

enum { GUARD = 256 }; /* bytes */
enum { SCRATCH_BYTES = 8 << 20, MAX_MATS = 24, MAX_CASES = 768, WAYS = 8 };
enum { IN, OUT, INOUT, SCRATCH }; /* scratch: may end as anything */
enum { GEMM, EXACT };             /* do the bits of a case depend on the number of threads? */
enum { PLAIN, PRODUCT, ATTENTION };
static const real filler = (real)-7e-3;

typedef struct {
    const char *name;
    int kind, type;
    long rows, cols, ld, guard, n; /* guard, n: elements in front, and of the whole block */
    dev *block;
    Tensor t;     /* without the guards */
    char *before; /* the block as it was sent */
    double *v;    /* [rows, cols]: the values sent, then those expected; NaN: as it was sent,
                     infinite: anything that is not finite */
    int ways;     /* way[0] is v, the others further orders of roundings */
    double *way[WAYS];
    bool sums; /* of rounded numbers: held to the gate of the 16-bit types */
    int parts; /* groups of columns that are compared each by itself */
    double noise[4]; /* L2 of each part that rounding alone may make of it, besides the gate */
} Mat;

static const Backend *be;
static StepState st; /* as the device has it */
static dev *st_dev, *scratch_dev;

static Mat mats[MAX_MATS];
static int n_mats, n_cases, pass;
static bool same_threads; /* as in the pass before */
static char title[160];
static uint64_t digests[MAX_CASES]; /* of every case's results in the pass before */
static double gate, gate_half;      /* relative L2 of real outputs and of 16-bit ones */
static double absolute;             /* where > 0: gate on each element's error as well */
static double ulps;                 /* to be added to it */
static bool count_beyond;           /* 16 bits: gate on the number of elements beyond one ulp */

/* Uniform with mean 0 and variance 1, a function of the case's and the number's index. */
static uint32_t n_drawn;
static int seed; /* of other numbers: test_ops seed=N */
static inline double draw(void)
{
    return sqrt(12) * (rng_unit(philox(99, n_drawn++, (uint32_t)n_cases, (uint32_t)seed, 0).v[0]) - 0.5);
}

static void send_state(void)
{
    be->upload(st_dev, &st, sizeof st);
}

/* `made_by` says which row of gates holds. */
PRINTF_LIKE(2, 3) static void begin(int made_by, const char *fmt, ...)
{
    static char poison[1 << 20];
    va_list args;
    va_start(args, fmt);
    vsnprintf(title, sizeof title, fmt, args);
    va_end(args);
    n_drawn = 0;
    absolute = 0;
    ulps = 1;
    gate = under.tf32 && made_by != PLAIN ? 2e-3 : 1e-5;
    gate_half = (made_by == ATTENTION ? 4e-3 : 1e-3) / (under.type == F16 ? 8 : 1);
    count_beyond = made_by != ATTENTION;
    memset(poison, 0xFF, sizeof poison);
    be->upload(scratch_dev, poison, sizeof poison);
    st = (StepState){.seed = 0x123456789abcdef1u,
                     .lr = 0.5,
                     .step = 17,
                     .sample0 = 5,
                     .t = 3,
                     .clip = 1,
                     .loss_scale = 1};
    send_state();
}

/* ------------------------------------------------------------------------------------------------
 * Making them */

static inline long place(const Mat *m, long i) /* of element i of v in the block */
{
    return m->guard + i / m->cols * m->ld + i % m->cols;
}

/* Send the values to the device; v becomes what the device has. */
static void push(Mat *m)
{
    for (long i = 0; i < m->rows * m->cols; i++) {
        put(m->before, m->type, place(m, i), m->v[i]);
        m->v[i] = get(m->before, m->type, place(m, i));
    }
    be->upload(m->block, m->before, (size_t)m->n * type_size(m->type));
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
static Mat *mat_of(int type, const char *name, int kind, long rows, long cols, int pad)
{
    if (rows * cols == 0)
        return NULL;
    if (n_mats == MAX_MATS)
        die(NULL, "%s: MAX_MATS is too small", title);
    Mat *m = &mats[n_mats++];
    long ld = cols + pad, size = (long)type_size(type), n = 2 * GUARD / size + rows * ld;
    *m = (Mat){name,      kind,         type, rows, cols,
               ld,        GUARD / size, n,    NULL, {NULL, ld, type, NULL},
               .ways = 1, .parts = 1};
    m->block = be->alloc((size_t)(n * size));
    if (!m->block)
        die(NULL, "%s: no memory for %ld bytes", title, n * size);
    m->t.p = (dev *)((char *)m->block + GUARD);
    m->before = xmalloc((size_t)(n * size));
    m->v = m->way[0] = xmalloc((size_t)(rows * cols) * sizeof(double));
    for (long i = 0; i < n; i++)
        put(m->before, type, i, kind == IN ? NAN : (double)filler);
    for (long i = 0; i < rows * cols; i++)
        m->v[i] = kind == OUT ? NAN : draw();
    push(m);
    return m;
}

/* Of the type under test; a vector of it; and the same of real numbers. */
static Mat *mat(const char *name, int kind, long rows, long cols, int pad)
{
    return mat_of(under.type, name, kind, rows, cols, pad);
}

static Mat *vec(const char *name, int kind, long n)
{
    return mat_of(under.type, name, kind, 1, n, 0);
}

static Mat *real_vec(const char *name, int kind, long n)
{
    return mat_of(F32, name, kind, 1, n, 0);
}

static Tensor tensor(const Mat *m)
{
    return m ? m->t : (Tensor){.p = NULL};
}

static dev *pointer(const Mat *m)
{
    return m ? m->t.p : NULL;
}

/* How many of n orders of roundings there are to write down: one where the type does not round. */
static int ways(Mat *m, int n)
{
    if (!m || !is_half(under.type))
        return 1;
    for (; m->ways < n; m->ways++)
        m->way[m->ways] = xmalloc((size_t)(m->rows * m->cols) * sizeof(double));
    return n;
}

static inline double rounded(double x)
{
    return round_to(under.type, x);
}

/* What the device has in m. */
static void pull(const Mat *m, double *out)
{
    char *after = xmalloc((size_t)m->n * type_size(m->type));
    be->download(after, m->block, (size_t)m->n * type_size(m->type));
    for (long i = 0; i < m->rows * m->cols; i++)
        out[i] = get(after, m->type, place(m, i));
    free(after);
}

/* out[j] = sum of column j of x; elements that are not computed (NaN) do not count. Of each of x's
 * ways there may be the sum of what was stored, and of what was not yet rounded. */
static void sum_columns(Mat *out, const Mat *x)
{
    if (!out)
        return;
    int both = is_half(x->type) ? 2 : 1, most = x->ways * both;
    int n = ways(out, most < WAYS ? most : WAYS);
    out->sums = true;
    for (int k = 0; k < n; k++)
        for (long j = 0; j < x->cols; j++) {
            out->way[k][j] = 0;
            for (long r = 0; r < x->rows; r++) {
                double e = x->way[k / both][r * x->cols + j];
                out->way[k][j] += isnan(e) ? 0 : k % both ? e : round_to(x->type, e);
            }
        }
}

/* ------------------------------------------------------------------------------------------------
 * Comparing */

typedef struct {
    double l2;    /* relative; the largest over the parts */
    double worst; /* by how much an element misses, see `absolute` */
    long worst_at;
    long other, beyond; /* elements that differ from the rounded value, and by more than one ulp */
} Difference;

static double finite_or_not(double x)
{
    return isfinite(x) ? x : INFINITY;
}

static Difference difference(const Mat *m, const double *v, const double *got)
{
    double diff[4] = {0}, norm[4] = {0}, all = 0;
    Difference d = {.worst = -INFINITY, .worst_at = -1};
    for (long i = 0; i < m->rows * m->cols; i++) {
        double want = round_to(m->type, v[i]), u = ulp(m->type, want);
        int part = (int)(i % m->cols * m->parts / m->cols);
        if (isnan(m->v[i]))
            continue;
        if (isinf(want)) {
            diff[part] += isfinite(got[i]) ? INFINITY : 0;
            continue;
        }
        double error = fabs(got[i] - want);
        double miss = (error - ulps * u) / fmax(1, fabs(want));
        diff[part] += error * error;
        norm[part] += want * want;
        d.other += got[i] != want;
        d.beyond += !(error <= u);
        if (!(miss <= d.worst))
            d.worst = miss, d.worst_at = i;
    }
    for (int p = 0; p < m->parts; p++)
        all += norm[p];
    for (int p = 0; p < m->parts; p++) { /* a part that is all but zero: against the whole */
        double base = sqrt(norm[p] > all / 900 ? norm[p] : all);
        double l2 = sqrt(diff[p]) - m->noise[p];
        l2 /= base > 0 ? base : 1;
        d.l2 = l2 <= d.l2 || isnan(d.l2) ? d.l2 : l2;
    }
    return d;
}

/* The largest errors of each op, for --verbose: `op` is the title's first word. */
static struct Worst {
    char op[32];
    double real, half, sums, beyond; /* relative to the gate; beyond: elements */
    int ways;                        /* bits: which orders of roundings were the nearest */
} worst_of[64];

static void remember(const Mat *m, const Difference *d, double allowed, int way)
{
    char op[32];
    struct Worst *w = worst_of;
    snprintf(op, sizeof op, "%.*s", (int)strcspn(title, " ,"), title);
    while (w->op[0] && strcmp(w->op, op) != 0 && w < worst_of + COUNT(worst_of) - 1)
        w++;
    memcpy(w->op, op, sizeof op);
    double *to = is_half(m->type) ? &w->half : m->sums ? &w->sums : &w->real;
    *to = fmax(*to, d->l2 / allowed);
    if (is_half(m->type) && count_beyond && absolute == 0)
        w->beyond = fmax(w->beyond, (double)d->beyond / (double)(m->rows * m->cols) / 0.01);
    if (m->ways > 1 && d->other)
        w->ways |= 1 << way;
}

static void report_worst(void)
{
    printf("largest errors in fractions of their gates\n  %-28s %8s %8s %8s %16s %5s\n", "", "real",
           "16-bit", "sums", "beyond one ulp", "ways");
    for (const struct Worst *w = worst_of; w->op[0]; w++)
        printf("  %-28s %8.3f %8.3f %8.3f %16.3f %5x\n", w->op, w->real, w->half, w->sums,
               w->beyond, (unsigned)w->ways);
}

static void judge(const Mat *m, const double *got)
{
    bool half = is_half(m->type);
    double allowed = half || (m->sums && is_half(under.type)) ? gate_half : gate;
    Difference best = {.l2 = INFINITY};
    int way = 0;
    for (int k = 0; k < m->ways; k++) {
        Difference d = difference(m, m->way[k], got);
        if (k == 0 || d.l2 < best.l2)
            best = d, way = k;
    }
    remember(m, &best, allowed, way);
    bool one_flip = half && best.other <= 1 && best.beyond == 0;
    CHECK(best.l2 <= allowed || one_flip, "%s %s, %s: relative L2 %.2e > %.1e", under.name, title,
          m->name, best.l2, allowed);
    if (half && count_beyond && absolute == 0)
        CHECK(best.beyond <= m->rows * m->cols / 100, "%s %s, %s: %ld of %ld beyond one ulp",
              under.name, title, m->name, best.beyond, m->rows * m->cols);
    if (absolute > 0 && m->kind == OUT)
        CHECK(best.worst <= absolute, "%s %s, %s: element %ld off by %.2e", under.name, title,
              m->name, best.worst_at, best.worst);
}

/* Compare one block with what is expected; folds its bits into the digest. */
static void compare(const Mat *m, uint64_t *digest)
{
    size_t size = type_size(m->type);
    char *after = xmalloc((size_t)m->n * size);
    double *got = xmalloc((size_t)(m->rows * m->cols) * sizeof(double));
    long touched = 0;
    be->download(after, m->block, (size_t)m->n * size);
    for (long i = 0; i < m->n; i++) {
        long at = i - m->guard, r = at / m->ld, j = at % m->ld;
        bool inside = at >= 0 && r < m->rows && j < m->cols;
        if (inside && m->kind == SCRATCH)
            continue;
        for (size_t k = 0; k < size; k++) /* FNV-1a */
            *digest = (*digest ^ (unsigned char)after[(size_t)i * size + k]) * 0x100000001b3u;
        if (inside)
            got[r * m->cols + j] = get(after, m->type, i);
        if (!inside || m->kind == IN || isnan(m->v[r * m->cols + j]))
            touched += memcmp(after + (size_t)i * size, m->before + (size_t)i * size, size) != 0;
    }
    CHECK(touched == 0, "%s %s, %s: %ld elements to leave alone", under.name, title, m->name,
          touched);
    if (m->kind == OUT || m->kind == INOUT)
        judge(m, got);
    free(after);
    free(got);
}

/* End of a case. */
static void finish(int exact)
{
    uint64_t digest = 0xcbf29ce484222325u;
    for (int k = 0; k < n_mats; k++) {
        Mat *m = &mats[k];
        compare(m, &digest);
        be->release(m->block);
        free(m->before);
        for (int w = 0; w < m->ways; w++)
            free(m->way[w]);
    }
    n_mats = 0;
    if (n_cases == MAX_CASES)
        die(NULL, "MAX_CASES is too small");
    if (pass > 0 && (exact || same_threads))
        CHECK(digests[n_cases] == digest, "%s %s: other bits in pass %d", under.name, title, pass);
    digests[n_cases++] = digest;
}
