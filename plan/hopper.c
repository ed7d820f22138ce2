/* hopper.c - our own kernels for Hopper: which operations they take, in what time. See hopper.h.
 *
 * NOTHING HERE HAS BEEN MEASURED. A multiprocessor is assumed to have 1.75 GHz under load and, each
 * cycle, 4,096 FLOP of 16-bit products, four instructions of 32 lanes and 16 exponentials; the L2
 * gives 8 TB/s to all of them, memory what gpu_pass assumes. Instructions were counted as compiled.
 * Which operations a kernel takes stands once more here, since no C file can include the kernels':
 * the function that decides is named at each. Addresses are not looked at; the model's are aligned.
 *
 * Products without an end and weights' gradients have candidates too. Bound by the L2 at 683
 * TFLOP/s, they are never faster than what gpu_product assumes of the library, and are left out.
 *
 * Read in this order: shapes, products, attention.
 */
#include "plan/hopper.h"

#include "model/config.h"

#include <limits.h>
#include <math.h>

#define CLOCK   1.75e9 /* Hz */
#define PRODUCT 4096.0 /* FLOP a cycle, of one multiprocessor */
#define L2      8e12   /* bytes/s, all multiprocessors together */

/* ---- shapes ---- */

static double tiles(double n, double size)
{
    return ceil(n / size);
}

/* Kernels are for compute capability 9.0 and 16-bit numbers, in rows that are whole packs of 16
 * bytes: sm90_here, wide_rows. */
static bool takes(const Gpu *g, int type, const Tensor *const *tensors, int n)
{
    if (g->capability != 90 || (type != BF16 && type != F16))
        return false;
    for (int i = 0; i < n; i++)
        if (tensors[i]->p && (tensors[i]->type != type || tensors[i]->ld % 8 != 0))
            return false;
    return true;
}

/* ---- products ----
 *
 * Tiles of 128x128 by two groups in turns: one multiplies while the other does what follows, so
 * that a tile takes as long as its product, or as half of both. 64 terms are 512 cycles of products
 * and 32 KiB from the L2, which takes longer. What follows is done by four warps, one on each
 * scheduler, which is assumed to issue every second cycle. */
enum { TILE = 128, TERMS = 64 };
static const double gelu_instructions = 17, slope_instructions = 23; /* an element */
static const HopperProduct none = {.seconds = INFINITY};

/* matrices: of [M, N], that are read or written */
static HopperProduct product(const Gpu *g, double M, double N, double K, double instructions,
                             int matrices)
{
    double cycles = 2.0 * TILE * TILE * TERMS / PRODUCT;
    double fetch = 2.0 * TILE * TERMS * 2 * g->processors / L2;
    double multiply = tiles(K, TERMS) * fmax(cycles / CLOCK, fetch);
    double end = TILE * TILE / 128.0 * instructions * 2 / CLOCK;
    double rounds = tiles(tiles(M, TILE) * tiles(N, TILE), g->processors);
    double seconds = rounds * fmax(multiply, (multiply + end) / 2) + end + g->launch;
    double bytes = 2 * (M * K + K * N + matrices * M * N);
    return (HopperProduct){fmax(seconds, gpu_pass(g, bytes)), M, N, K, bytes};
}

/* cuda_linear_forward and cuda_linear_backward_input (gemm.cuh), sm90_takes (gemm_sm90.cuh) */
static bool takes_end(int act, double drop, int columns)
{
    return (act == ACT_GELU || act == ACT_GELU_TANH) && drop <= 0 && columns % 8 == 0;
}

HopperProduct hopper_forward(const Gpu *g, const LinearForward *a)
{
    const Tensor *tensors[] = {&a->x, &a->w, &a->y, &a->pre};
    bool eight = a->x.scale && a->w.scale;
    if (eight || a->residual.p || !takes(g, a->y.type, tensors, COUNT(tensors)))
        return none;
    if (!takes_end(a->act, a->drop.p, a->out))
        return none;
    return product(g, a->rows, a->out, a->in, gelu_instructions, a->pre.p ? 2 : 1);
}

/* Tiles leave their column sums in the library's workspace, and a pass adds them up. */
HopperProduct hopper_backward_input(const Gpu *g, const LinearBackwardInput *a)
{
    enum { ROOM = 128 << 20 };
    const Tensor *tensors[] = {&a->dx, &a->dy, &a->w, &a->pre};
    bool eight = a->dy.scale && a->w.scale;
    double sums = a->dbias ? tiles(a->rows, TILE) * a->in * sizeof(float) : 0;
    if (eight || sums > ROOM || !takes(g, a->dx.type, tensors, COUNT(tensors)))
        return none;
    if (!takes_end(a->act, a->drop.p, a->in))
        return none;
    HopperProduct p = product(g, a->rows, a->in, a->out, slope_instructions, 2);
    p.seconds += a->dbias ? gpu_pass(g, 2 * sums) : 0;
    return p;
}

/* ---- attention ----
 *
 * A multiprocessor has one head at a time. Its scores take exponentials and what goes with them,
 * beside products: the longer one hides the other but for a share. by_head90 (attention_sm90.cuh),
 * by_long90 (attention_sm90_long.cuh), backward90_takes (attention_sm90_backward.cuh) and
 * by_large90 (attention_sm90_large.cuh) say which heads there are kernels for; the first row that a
 * head fits is its. */
typedef struct {
    bool backward;
    int columns, tokens; /* of a head, at the most; columns are computed as many */
    bool drops;          /* there is dropout */
    int keys, queries;   /* are computed in multiples of these */
    int sums, results;    /* products of queries x keys x columns; sums take 16 columns a time */
    double peak;          /* what these reach of it */
    double score, shared; /* cycles of an element of the scores; share that is not hidden */
    double begin;         /* cycles of a head beside which nothing happens */
    bool waits;           /* for its bytes: they don't arrive while the head before is computed */
} Own;
static const Own own[] = {
    /* 16 exponentials a cycle, assumed to hide all else */
    {false, 64, 208, true, 208, 64, 1, 1, 1, 1 / 16.0, 0, 0, true},
    {false, 64, 272, true, 272, 64, 1, 1, 1, 1 / 16.0, 0, 0, true},
    {false, 80, 272, false, 272, 64, 1, 1, 1, 1 / 16.0, 0, 0, true},
    {false, 96, 272, false, 272, 64, 1, 1, 1, 1 / 16.0, 0, 0, true},
    {false, 112, 272, false, 272, 64, 1, 1, 1, 1 / 16.0, 0, 0, true},
    {false, 128, 272, false, 272, 64, 1, 1, 1, 1 / 16.0, 0, 0, true},
    /* 9.4 instructions an element; three groups overlap three quarters (a guess). Begin: where one
     * head follows the other (a guess). A ring's tiles are for 192 queries */
    {false, 64, 704, true, 16, 64, 1, 1, 1, 9.4 / 128, 0.25, 2000, false},
    {false, 64, INT_MAX, true, 16, 192, 1, 1, 1, 9.4 / 128, 0.25, 2000, false},
    {false, 80, INT_MAX, true, 16, 192, 1, 1, 1, 9.4 / 128, 0.25, 2000, false},
    {false, 104, INT_MAX, true, 16, 192, 1, 1, 1, 9.4 / 128, 0.25, 2000, false},
    {false, 128, INT_MAX, true, 16, 192, 1, 1, 1, 9.4 / 128, 0.25, 2000, false},
    /* 12.3 instructions an element; two groups overlap three quarters. Begin: 1,800 until the rest
     * of a head has arrived (a guess), 2,200 for results and column sums */
    {true, 64, 208, true, 64, 16, 2, 3, 1, 12.3 / 128, 0.25, 4000, false},
    /* Two kinds of blocks, both of which make exponentials, beside products at 85% (a guess).
     * Begin: in each kind 2,000 where one head follows the other */
    {true, 64, 1408, true, 64, 16, 4, 3, 0.85, 2 / 16.0, 0, 4000, false},
    {true, 80, 1408, true, 64, 16, 4, 3, 0.85, 2 / 16.0, 0, 4000, false},
    {true, 88, 1408, true, 64, 16, 4, 3, 0.85, 2 / 16.0, 0, 4000, false},
    {true, 104, 1408, true, 64, 16, 4, 3, 0.85, 2 / 16.0, 0, 4000, false},
    /* S and dP of 32 queries, two of the four, take half as long again; 128 keys to a round */
    {true, 128, 1408, true, 128, 16, 5, 3, 0.85, 2 / 16.0, 0, 4000, false},
};

/* What rounding a gradient to 8 bits takes more than its column sums alone, 13.5 for two numbers:
 * of one, whose slabs have 64 columns */
static const double eight_instructions = 13.5 / 2;

static const Own *kernel_of(const Attention *a, bool backward)
{
    for (const Own *o = own; o < own + COUNT(own); o++) {
        bool fits = a->hs <= o->columns && a->T <= o->tokens;
        if (o->backward == backward && fits && (o->drops || a->drop.p <= 0))
            return o;
    }
    return NULL;
}

double hopper_attention(const Gpu *g, const Attention *a, bool backward, double bytes)
{
    const bool eight = backward && a->dqkv.type == E5M2;
    const Tensor *tensors[] = {&a->qkv, &a->out, &a->dout, &a->dqkv};
    const Own *o = kernel_of(a, backward);
    if (!o || a->hs % 8 != 0 || !takes(g, a->qkv.type, tensors, 2 + 2 * backward - eight))
        return INFINITY;
    double scores = o->keys * tiles(a->T, o->keys) * o->queries * tiles(a->Tq, o->queries);
    double columns = o->sums * 16 * tiles(o->columns, 16) + o->results * o->columns;
    double products = 2 * scores * columns / PRODUCT / o->peak, others = scores * o->score;
    double cycles = o->begin + fmax(products, others) + o->shared * fmin(products, others);
    cycles += eight ? 3.0 * a->T * 64 * tiles(a->hs, 64) * eight_instructions / 128 : 0;
    double heads = tiles((double)a->B * a->heads, g->processors) * cycles / CLOCK;
    double memory = gpu_pass(g, bytes);
    return o->waits ? heads + memory : fmax(heads + g->launch, memory);
}
