/* hopper.c - our own kernels for Hopper: which operations they take, in what time. See hopper.h.
 *
 * NOTHING HERE HAS BEEN MEASURED. A multiprocessor is assumed to have 1.75 GHz under load and, each
 * cycle, 4,096 FLOP of 16-bit products, four instructions of 32 lanes and 16 exponentials; the L2
 * gives 8 TB/s to all of them, memory what gpu_pass assumes. Instructions were counted as compiled.
 * Which operations a kernel takes stands once more here, since no C file can include the kernels':
 * the function that decides is named at each. Addresses are not looked at; the model's are aligned.
 *
 * Products without an end and weights' gradients have candidates too. Single blocks are bound by
 * the L2 at 683 TFLOP/s, pairs of blocks at 1,024, beyond what the chip's power allows: what that
 * is nobody has measured, so they are assumed to be no faster than gpu_product says of the library,
 * and are left out.
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
 * Tiles of 128 rows; a stage is 128 bytes of each row and column, which take longer to come from
 * the L2 than products of them. Two groups in turns have a tile each: one multiplies while the
 * other does what follows, so that a tile takes as long as its product, or as half of both.
 * Together they have one, whose bytes arrive while what follows the one before is done. What
 * follows is done by the four warps of a group, one on each scheduler, which is assumed to issue
 * one of them every second cycle, or one of two every cycle. */
typedef struct {
    int columns; /* of a tile */
    bool turns, eight;
    double instructions; /* an element, of what follows */
} Way;
static const Way gelu = {128, true, false, 17}, gelu_eight = {128, true, true, 24.5},
                 slope = {128, true, false, 23}, slope_eight = {192, false, true, 33};
enum { ROWS = 128, STAGE = 128 };
static const HopperProduct none = {.seconds = INFINITY};

/* By blocks on their own, or in twos with tiles one below the other, which share columns' bytes */
static double product_time(const Gpu *g, const Way *w, double M, double N, double K, int blocks)
{
    double size = w->eight ? 1 : 2, elements = (double)ROWS * w->columns;
    double stages = tiles(K * size, STAGE), speed = PRODUCT * 2 / size;
    double multiply = stages * 2 * elements * STAGE / size / speed / CLOCK;
    double fetch = stages * (ROWS + w->columns / (double)blocks) * STAGE * g->processors / L2;
    double end = elements / 128 * w->instructions * (w->turns ? 2 : 1) / CLOCK;
    double longer = fmax(multiply, fetch);
    double tile = w->turns ? fmax(longer, (longer + end) / 2) : fmax(fetch, multiply + end);
    double all = blocks * tiles(M, ROWS * blocks) * tiles(N, w->columns);
    return tiles(all, g->processors) * tile + (w->turns ? end : fetch) + g->launch;
}
/* matrices: bytes of elements of [M, N], that are read or written */
static HopperProduct product(const Gpu *g, const Way *w, double M, double N, double K,
                             int matrices)
{
    double seconds = fmin(product_time(g, w, M, N, K, 1), product_time(g, w, M, N, K, 2));
    double size = w->eight ? 1 : 2, bytes = size * (M * K + K * N) + matrices * M * N;
    return (HopperProduct){fmax(seconds, gpu_pass(g, bytes)), M, N, K, bytes};
}

/* cuda_linear_forward and cuda_linear_backward_input (gemm.cuh), sm90_takes (gemm_sm90.cuh). Of
 * operands in 8 bits, what is made has 8 bits as well, in two copies. */
static bool takes_end(const Gpu *g, int act, double drop, int columns, const Tensor *made,
                      const Tensor *a, const Tensor *b, const Tensor *pre)
{
    const Tensor *tensors[] = {made, pre, a, b};
    const bool eight = a->scale && b->scale;
    if ((act != ACT_GELU && act != ACT_GELU_TANH) || drop > 0 || columns % (eight ? 16 : 8) != 0)
        return false;
    if (eight)
        return (made->type == E4M3 || made->type == E5M2) && takes(g, BF16, &pre, 1);
    return takes(g, made->type, tensors, COUNT(tensors));
}

HopperProduct hopper_forward(const Gpu *g, const LinearForward *a)
{
    bool eight = a->x.scale && a->w.scale;
    if (a->residual.p || !takes_end(g, a->act, a->drop.p, a->out, &a->y, &a->x, &a->w, &a->pre))
        return none;
    return product(g, eight ? &gelu_eight : &gelu, a->rows, a->out, a->in, a->pre.p ? 4 : 2);
}

/* Tiles leave their column sums, each group by itself where they share one, in the library's
 * workspace, and a pass adds them up. */
HopperProduct hopper_backward_input(const Gpu *g, const LinearBackwardInput *a)
{
    enum { ROOM = 128 << 20 };
    const Way *w = a->dy.scale && a->w.scale ? &slope_eight : &slope;
    double owners = tiles(a->rows, ROWS) * (w->turns ? 1 : 2);
    double sums = a->dbias ? owners * a->in * sizeof(float) : 0;
    if (sums > ROOM || !takes_end(g, a->act, a->drop.p, a->in, &a->dx, &a->dy, &a->w, &a->pre))
        return none;
    HopperProduct p = product(g, w, a->rows, a->in, a->out, 4);
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
