/* forecast.c - a run's memory, and its step on a clock. See forecast.h.
 *
 * backend_clock is a device whose operations do nothing but move the clock on by what they would
 * take. vit.c does not see the difference: its memory is never looked into from the host. So the
 * order of operations, what is computed again, which collective goes beside what, and where it is
 * waited for, are the program's own. A collective begins when it is called or when its group's last
 * one is over, whichever is later, and join() waits for its end.
 *
 * All ranks of a stage do the same, so that one of them is looked at, and of a step its first, a
 * middle and its last micro-batch. Stages are put together by dist.c's schedule.
 *
 * Left out: the loader and the way of images to the device; what collectives take from the
 * multiprocessors while they are hidden; differences between ranks.
 *
 * Read in this order: the clock, operations, collectives, the table, memory, a step.
 */
#include "plan/forecast.h"

#include "plan/hopper.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const time_names[] = {"products",  "attention",   "passes over memory",
                                  "optimiser", "collectives", "pipeline bubble"};
const char *const kernel_names[] = {"products forward",
                                    "products, inputs' gradients",
                                    "products, weights' gradients",
                                    "attention",
                                    "attention backward",
                                    "norms",
                                    "norms backward",
                                    "activation",
                                    "activation backward, its bias",
                                    "other biases' gradients",
                                    "patches, embedding, pooling, loss",
                                    "copies and clears",
                                    "optimiser",
                                    "collectives"};
static const int part_of[KERNELS] = {[PRODUCTS_FORWARD] = PRODUCTS,
                                     [PRODUCTS_INPUT] = PRODUCTS,
                                     [PRODUCTS_WEIGHT] = PRODUCTS,
                                     [ATTENTION_FORWARD] = ATTENTION,
                                     [ATTENTION_BACKWARD] = ATTENTION,
                                     [NORMS_FORWARD] = PASSES,
                                     [NORMS_BACKWARD] = PASSES,
                                     [ACT_FORWARD] = PASSES,
                                     [ACT_BACKWARD] = PASSES,
                                     [BIAS_SUMS] = PASSES,
                                     [ENDS] = PASSES,
                                     [COPIES] = PASSES,
                                     [UPDATE] = OPTIMISER,
                                     [MESSAGES] = COLLECTIVES};
const char *const sent_names[] = {"gradients", "weights", "tensor parallel sums",
                                  "streams between stages", "statistics and norms"};

/* ------------------------------------------------------------------------------------------------
 * The clock */

struct Group {
    Circle circle;
    int kind;   /* SENT_*, of what is added up there */
    double end; /* of its last collective */
};
typedef struct {
    double end; /* by the clock */
} Message;

static struct {
    const Job *job;
    double now, part[TIME_PARTS], kernel[KERNELS], floor[KERNELS];
    double talked, sent[SENT_KINDS], messages[SENT_KINDS];
    Message *message; /* [n]; a ticket is its number + 1 */
    long n;
    double elements; /* of this rank's shards: what an update goes through */
    double allocated;
} clk;

static void spend(int kernel, double seconds, double floor)
{
    clk.now += seconds;
    clk.part[part_of[kernel]] += seconds;
    clk.kernel[kernel] += seconds;
    clk.floor[kernel] += floor;
}

static const Gpu *gpu(void)
{
    return clk.job->cluster.gpu;
}

static bool is_eight(const Tensor *x)
{
    return x->type == E4M3 || x->type == E5M2;
}

/* Bytes of a number; one in 8 bits is there twice, by rows and across. */
static double size_of(const Tensor *x)
{
    if (!x->p)
        return 0;
    return is_eight(x) ? 2 : (double)type_size(x->type);
}

static void pass(int kernel, double bytes)
{
    spend(kernel, gpu_pass(gpu(), bytes), gpu_floor(gpu(), F32, false, 0, bytes));
}

/* ------------------------------------------------------------------------------------------------
 * Operations. What the CUDA backend does in the product is free here, what it does beside it is a
 * pass: GELU by erf always, by tanh in the backward pass and with dropout. On Hopper it times our
 * own kernels beside that (hopper.h), and the faster way is taken here as there. */

static void product(int kernel, int type, double M, double N, double K, double out_bytes)
{
    bool tf32 = clk.job->tf32;
    double bytes = (M * K + K * N) * (double)type_size(type) + M * N * out_bytes;
    spend(kernel, gpu_product(gpu(), type, tf32, M, N, K, out_bytes),
          gpu_floor(gpu(), type, tf32, 2 * M * N * K, bytes));
}

/* Of operands with a scale 8-bit copies are multiplied, which are made first. The first steps,
 * which fill the history of delayed scaling, are not what a run takes: see run_stage. */
static Fp8 fp8_how;

static void clock_fp8(const Fp8 *how)
{
    fp8_how = *how;
}

static void clock_fp8_update(const Fp8Update *u)
{
    (void)u;
}

/* The type of the product of a and b */
static int multiplied(const Tensor *a, const Tensor *b)
{
    return a->scale && b->scale ? E4M3 : a->type;
}

/* So many copies of n numbers of x, where they are not all that there is of it */
static void copied(const Tensor *x, double n, int copies)
{
    if (!is_eight(x))
        pass(COPIES, n * (copies + size_of(x) * (fp8_how.current ? 2 : 1)));
}

/* Whether a product and a pass over so many bytes behind it are one kernel of our own for Hopper:
 * where that is faster. */
static bool in_one(int kernel, int type, HopperProduct own, double behind)
{
    double apart = gpu_product(gpu(), type, false, own.M, own.N, own.K, 2);
    apart += behind > 0 ? gpu_pass(gpu(), behind) : 0;
    if (own.seconds < apart)
        spend(kernel, own.seconds,
              gpu_floor(gpu(), type, false, 2 * own.M * own.N * own.K, own.bytes));
    return own.seconds < apart;
}

static void clock_linear_forward(const LinearForward *a)
{
    int columns = a->act == ACT_SWIGLU ? 2 * a->out : a->out, type = multiplied(&a->x, &a->w);
    double y = (double)a->rows * columns * size_of(&a->y);
    bool fused = a->act == ACT_NONE || (a->act == ACT_GELU_TANH && a->y.type != F32 && a->kept);
    double behind = !fused || a->drop.p > 0 || is_eight(&a->y) ? 2 * y : 0;
    if (type == E4M3) {
        copied(&a->x, (double)a->rows * a->in, 1);
        copied(&a->w, (double)columns * a->in, 1);
    }
    if (in_one(PRODUCTS_FORWARD, type, hopper_forward(gpu(), a), behind))
        return;
    product(PRODUCTS_FORWARD, type, a->rows, columns, a->in, size_of(&a->y));
    if (behind > 0)
        pass(ACT_FORWARD, behind);
}

/* An activation's slope takes dx and what the activation was of, and gives dx. */
static void clock_linear_backward_input(const LinearBackwardInput *a)
{
    double dx = (double)a->rows * a->in * size_of(&a->dx);
    double slope = a->act || a->drop.p > 0 ? 3 * dx : 0;
    int type = multiplied(&a->dy, &a->w);
    if (type == E4M3)
        copied(&a->w, (double)a->in * a->out, 1);
    if (in_one(PRODUCTS_INPUT, type, hopper_backward_input(gpu(), a), slope))
        return;
    product(PRODUCTS_INPUT, type, a->rows, a->in, a->out, size_of(&a->dx));
    if (slope > 0)
        pass(ACT_BACKWARD, slope);
    else if (a->dbias)
        pass(BIAS_SUMS, dx);
}

static void clock_linear_backward_weight(const LinearBackwardWeight *a)
{
    int type = multiplied(&a->dy, &a->x);
    if (type == E4M3)
        copied(&a->dy, (double)a->rows * a->out, fp8_how.wgrad ? 2 : 1);
    if (type == E4M3 && fp8_how.wgrad)
        copied(&a->x, (double)a->rows * a->in, 1);
    product(PRODUCTS_WEIGHT, fp8_how.wgrad ? type : a->dy.type, a->out, a->in, a->rows,
            sizeof(float));
    if (a->dbias)
        pass(BIAS_SUMS, (double)a->rows * a->out * size_of(&a->dy));
}

static void clock_activate(const LinearForward *a)
{
    pass(ACT_FORWARD, 2.0 * a->rows * a->out * size_of(&a->y));
}

static void clock_patchify(const Patchify *a)
{
    double pixels = (double)a->B * a->H * a->W * VIT_CHANNELS;
    pass(ENDS, pixels * ((a->u8 ? 1 : 4) + size_of(&a->out)));
}

static void clock_embed(const Embed *a)
{
    pass(ENDS, 2.0 * a->B * a->T * a->C * size_of(&a->x));
}

static void clock_norm_forward(const ResidualNorm *a)
{
    double matrices = 1 + (a->branch.p != NULL) + (a->x_out.p && a->branch.p) + (a->gamma != NULL);
    bool apart = is_eight(&a->y) && a->C > 7 * 256; /* the transposition: by_row_packs, norms.cuh */
    double across = apart ? (double)a->rows * a->C : 0;
    pass(NORMS_FORWARD, matrices * a->rows * a->C * size_of(&a->x) - across);
    if (across > 0)
        pass(COPIES, 2 * across);
}

/* With a norm: reads x, dy and dx where it is not fresh, writes dx. */
static void clock_norm_backward(const ResidualNorm *a)
{
    double matrices = (a->dbranch.p ? 1 : 0) + (a->dls ? 1 : 0) + (a->gamma ? 4 - !!a->fresh : 1);
    if (a->gamma || a->dbranch.p || a->dbias)
        pass(a->gamma || a->dbranch.p ? NORMS_BACKWARD : BIAS_SUMS,
             matrices * a->rows * a->C * size_of(&a->dx));
}

/* Four numbers of C a token are read or written, and eight in the backward pass, where the
 * probabilities are made again: five products of T x T instead of two. Of a gradient in 8 bits,
 * kernels of our own write one copy, from which the other is made; behind the portable ones both
 * are. */
static void attention(const Attention *a, bool backward)
{
    double n = (double)a->B * a->T * a->heads * a->hs, e = size_of(&a->qkv);
    double flop = (backward ? 10.0 : 4.0) * a->Tq * n;
    double bytes = (backward ? 8.0 : 4.0) * n * e;
    double eight = backward && is_eight(&a->dqkv) ? 3 * n : 0;
    double portable = gpu_attention(gpu(), a->qkv.type, flop, bytes, backward);
    double own = hopper_attention(gpu(), a, backward, bytes - eight);
    spend(backward ? ATTENTION_BACKWARD : ATTENTION_FORWARD, fmin(portable, own),
          gpu_floor(gpu(), a->qkv.type, false, flop, bytes - eight));
    if (eight > 0)
        pass(COPIES, eight * (own < portable ? 2 : 4));
}

static void clock_attention_forward(const Attention *a)
{
    attention(a, false);
}

static void clock_attention_backward(const Attention *a)
{
    attention(a, true);
}

/* Forward: x twice, input; backward the same. */
static void head_norm(const HeadNorm *a, int kernel)
{
    pass(kernel, 3.0 * a->rows * a->heads * a->hs * size_of(&a->x));
}

static void clock_head_norm_forward(const HeadNorm *a)
{
    head_norm(a, NORMS_FORWARD);
}

static void clock_head_norm_backward(const HeadNorm *a)
{
    head_norm(a, NORMS_BACKWARD);
}

static void clock_pool(const Pool *a)
{
    pass(ENDS, ((double)a->T + 1) * a->B * a->C * size_of(&a->x));
}

static void clock_loss(const Loss *a)
{
    pass(ENDS, (double)a->B * a->K * (2 * size_of(&a->logits) + sizeof(real)));
}

static void clock_count_large(Tensor x, int rows, int cols)
{
    pass(COPIES, (double)rows * cols * size_of(&x));
}

/* ---- the update: bytes of each element of this rank's shards ---- */

static void update(double bytes)
{
    pass(UPDATE, bytes * clk.elements);
}

static void clock_sum_squares(dev *partial, const dev *x, const dev *chunks, int n)
{
    (void)partial, (void)x, (void)chunks, (void)n;
    update(4);
}

/* Reads and writes w and `moments` numbers, and the average; reads the gradient; writes the working
 * weight. Moments in the host's memory come and go over PCIe, 25 GB/s each way. */
static double touched(const OptStep *a, int moments)
{
    double work = a->work_type == F32 ? 0 : (double)type_size(a->work_type);
    double away = clk.job->plan.offload ? 25e9 : 0;
    if (away > 0)
        spend(UPDATE, (4.0 * moments + (a->ema ? 4 : 0)) * clk.elements / away, 0);
    return 8 + (away > 0 ? 0 : 8.0 * moments + (a->ema ? 8 : 0)) + 4 + work;
}

static void clock_adam(const OptStep *a)
{
    update(touched(a, 2));
}

static void clock_sgd(const OptStep *a)
{
    update(touched(a, 1));
}

static void clock_lamb_direction(const OptStep *a)
{
    update(touched(a, 2));
}

static void clock_lamb_apply(const OptStep *a)
{
    update(12 + (a->work_type == F32 ? 0 : (double)type_size(a->work_type)));
}

static void clock_round_weights(const OptStep *a)
{
    update(4 + (double)type_size(a->work_type));
}

static void clock_finish_norm(const dev *partial, int n, double most)
{
    (void)partial, (void)most;
    pass(UPDATE, 4.0 * n);
}

static void clock_scale_loss(const LossScaling *s)
{
    (void)s;
}

/* ---- memory ---- */

/* An address that nobody looks at. */
static dev *clock_alloc(size_t bytes)
{
    clk.allocated += (double)bytes;
    return (dev *)(uintptr_t)(1 << 20);
}

static void clock_release(dev *p)
{
    (void)p;
}

/* Pages that are not written take no memory. */
static void *clock_host_alloc(size_t bytes)
{
    return xcalloc(bytes ? bytes : 1, 1);
}

static double clock_memory_free(void)
{
    return -1;
}

static void clock_upload(dev *to, const void *from, size_t bytes)
{
    (void)to, (void)from, (void)bytes;
}

static void clock_download(void *to, const dev *from, size_t bytes)
{
    (void)to, (void)from, (void)bytes;
}

static Ticket clock_send(dev *to, const void *from, size_t bytes, Ticket after)
{
    (void)to, (void)from, (void)bytes, (void)after;
    return 0;
}

static Ticket clock_fetch(void *to, const dev *from, size_t bytes)
{
    (void)to, (void)from, (void)bytes;
    return 0;
}

static Ticket clock_mark(void)
{
    return 0;
}

static void clock_wait(Ticket t)
{
    (void)t;
}

static void clock_copy(dev *to, const dev *from, size_t bytes)
{
    (void)to, (void)from;
    pass(COPIES, 2 * (double)bytes);
}

static void clock_zero(dev *to, size_t bytes)
{
    (void)to;
    pass(COPIES, (double)bytes);
}

static void clock_convert(dev *to, int to_type, const dev *from, int from_type, long n)
{
    (void)to, (void)from;
    pass(COPIES, (double)n * (double)(type_size(to_type) + type_size(from_type)));
}

static void clock_add(dev *sum, const dev *x, long n)
{
    (void)sum, (void)x;
    pass(COPIES, 12.0 * (double)n);
}

static void clock_run(uint64_t key, bool together, void (*body)(void *), void *arg)
{
    (void)key, (void)together;
    body(arg);
}

/* What CUDA's kernels take for partial sums: of attention's biases for each image, up to four tiles
 * of 16 rows together; of column sums for each block that runs at once. */
static size_t clock_scratch_bytes(const Sizes *s)
{
    size_t tiles = ((size_t)s->T + 63) / 64, attention = 3 * tiles * (size_t)s->B * (size_t)s->C;
    size_t columns = s->F > 3 * s->C ? (size_t)s->F : 3 * (size_t)s->C;
    size_t layers = (size_t)gpu()->processors * 4 * columns;
    size_t rows = (size_t)s->B * (size_t)s->T;
    size_t eight = s->fp8 ? (3 * rows + (size_t)s->C) * columns : 0;
    if (!gpu()->processors) /* the CPU's grows by itself */
        return 0;
    return sizeof(float) * (attention > layers ? attention : layers) + eight;
}

static void clock_bind(dev *state, dev *scratch, size_t bytes)
{
    (void)state, (void)scratch, (void)bytes;
}

/* ------------------------------------------------------------------------------------------------
 * Collectives */

static Ticket message(Group *g, int kind, double sent, int turns)
{
    double seconds = circle_time(&clk.job->cluster, &g->circle, sent, turns);
    g->end = (clk.now > g->end ? clk.now : g->end) + seconds;
    clk.talked += seconds;
    clk.sent[kind] += sent;
    clk.messages[kind]++;
    clk.message = xgrow(clk.message, clk.n, sizeof *clk.message);
    clk.message[clk.n++].end = g->end;
    return (Ticket)clk.n;
}

/* Of n elements on each rank, (r - 1) / r go around. */
static Ticket around(Group *g, int kind, int type, double n, int turns)
{
    double bytes = n * (double)type_size(type);
    if (!g)
        return 0;
    return message(g, kind, turns * bytes * (g->circle.ranks - 1) / g->circle.ranks, turns);
}

static Ticket clock_all_reduce(Group *g, dev *x, int type, long n)
{
    (void)x;
    return around(g, g ? g->kind : 0, type, (double)n, 2);
}

static Ticket clock_reduce_scatter(Group *g, dev *own, const dev *x, int type, long n)
{
    (void)own, (void)x;
    return around(g, g ? g->kind : 0, type, g ? (double)n * g->circle.ranks : 0, 1);
}

static Ticket clock_all_gather(Group *g, dev *x, const dev *own, int type, long n)
{
    (void)own, (void)x;
    return around(g, SENT_WEIGHTS, type, g ? (double)n * g->circle.ranks : 0, 1);
}

/* Whoever takes it is the schedule's business. Neighbours pass over one link. */
static Ticket clock_pass(Group *g, int peer, const dev *x, size_t bytes)
{
    (void)peer, (void)x;
    return message(g, g->kind, (double)bytes, 1);
}

static Ticket clock_receive(Group *g, int peer, dev *x, size_t bytes)
{
    (void)g, (void)peer, (void)x, (void)bytes;
    return 0;
}

static void clock_join(Ticket t)
{
    double end = t ? clk.message[t - 1].end : 0;
    if (end > clk.now)
        spend(MESSAGES, end - clk.now, 0);
}

static double clock_sent(void)
{
    double sum = 0;
    for (int i = 0; i < SENT_KINDS; i++)
        sum += clk.sent[i];
    return sum;
}

static double clock_waited(void)
{
    return clk.part[COLLECTIVES];
}

/* ------------------------------------------------------------------------------------------------
 * The table */

const Backend *backend_clock(const Job *j)
{
    static const Backend table = {
        .name = "clock",
        .built = "no device",
        .memory_free = clock_memory_free,
        .alloc = clock_alloc,
        .release = clock_release,
        .host_alloc = clock_host_alloc,
        .host_release = free,
        .upload = clock_upload,
        .download = clock_download,
        .send = clock_send,
        .fetch = clock_fetch,
        .mark = clock_mark,
        .wait = clock_wait,
        .copy = clock_copy,
        .zero = clock_zero,
        .convert = clock_convert,
        .add = clock_add,
        .run = clock_run,
        .scratch_bytes = clock_scratch_bytes,
        .bind = clock_bind,
        .fp8 = clock_fp8,
        .fp8_update = clock_fp8_update,
        .linear_forward = clock_linear_forward,
        .linear_backward_input = clock_linear_backward_input,
        .linear_backward_weight = clock_linear_backward_weight,
        .activate = clock_activate,
        .patchify = clock_patchify,
        .embed_forward = clock_embed,
        .embed_backward = clock_embed,
        .residual_norm_forward = clock_norm_forward,
        .residual_norm_backward = clock_norm_backward,
        .attention_forward = clock_attention_forward,
        .attention_backward = clock_attention_backward,
        .head_norm_forward = clock_head_norm_forward,
        .head_norm_backward = clock_head_norm_backward,
        .pool_forward = clock_pool,
        .pool_backward = clock_pool,
        .loss = clock_loss,
        .count_large = clock_count_large,
        .sum_squares = clock_sum_squares,
        .finish_norm = clock_finish_norm,
        .adam = clock_adam,
        .sgd = clock_sgd,
        .lamb_direction = clock_lamb_direction,
        .lamb_apply = clock_lamb_apply,
        .round_weights = clock_round_weights,
        .scale_loss = clock_scale_loss,
        .all_reduce = clock_all_reduce,
        .reduce_scatter = clock_reduce_scatter,
        .all_gather = clock_all_gather,
        .pass = clock_pass,
        .receive = clock_receive,
        .join = clock_join,
        .sent = clock_sent,
        .waited = clock_waited,
    };
    free(clk.message);
    memset(&clk, 0, sizeof clk);
    clk.job = j;
    return &table;
}

double clock_allocated(void)
{
    return clk.allocated;
}

/* ------------------------------------------------------------------------------------------------
 * Memory */

bool job_split(const Job *j, int rank, Split *s, Error *e)
{
    if (!split_new(s, &j->config, rank, j->ranks, j->tp, j->pp, j->stages, j->zero, e))
        return false;
    s->reshard = j->reshard;
    s->reduce_type = j->reduce_type;
    return true;
}

/* The split of the first rank of a stage, whose neighbours plan the same. */
static Split split_of(const Job *j, int stage)
{
    Split s;
    Error e = {"", ""};
    if (!job_split(j, stage * (j->ranks / j->pp), &s, &e))
        die_usage(e.hint, "%s", e.what);
    return s;
}

/* Whether a stage has what the one before it has: in the middle, with as many layers. */
static bool alike(const Job *j, int stage)
{
    if (stage < 2 || stage == j->pp - 1)
        return false;
    Split a = split_of(j, stage), b = split_of(j, stage - 1);
    return a.end - a.first == b.end - b.first;
}

static double total(const Memory *m)
{
    return m->weights + m->gradients + m->optimiser + m->activations + m->inputs;
}

/* Estimates: a CUDA context of half a GiB with the library's 128 MiB; 160 MiB of NCCL's buffers (16
 * channels of about 5 MiB both ways) for each group of more than one rank. */
static double buffers_of(const Job *j, const Split *s)
{
    const int ranks[] = {s->world.ranks, s->tp.ranks,
                         s->dp.ranks,    s->pp.ranks,
                         s->pp.ranks,    s->zero ? s->world.ranks : s->world.ranks / s->dp.ranks};
    int groups = 0;
    for (int i = 0; i < COUNT(ranks); i++)
        groups += ranks[i] > 1;
    if (!j->cluster.gpu->processors)
        return 0;
    return (640 + 160.0 * groups) * (1 << 20);
}

/* The trainer leaves a twentieth of what is free. Of stages that are alike the first one has the
 * most micro-batches in flight. */
Needs job_needs(const Job *j)
{
    Needs most = {0};
    for (int stage = 0; stage < j->pp; stage++) {
        Split s = split_of(j, stage);
        Plan plan = j->plan;
        plan.split = &s;
        if (alike(j, stage))
            continue;
        Needs n = {.stage = stage, .buffers = buffers_of(j, &s)};
        n.memory = vit_memory(&j->config, &plan, backend_clock(j));
        n.total = total(&n.memory) + n.buffers;
        n.room = j->cluster.gpu->memory;
        n.room = n.room > 0 ? n.buffers + 0.95 * (n.room - n.buffers) : 0;
        if (n.total > most.total)
            most = n;
    }
    return most;
}

/* ------------------------------------------------------------------------------------------------
 * A step */

/* Seconds of a stage's passes: with the first micro-batch, another, and the last one of a step. */
enum { FIRST_MICRO, OTHER_MICRO, LAST_MICRO, MICROS };
typedef struct {
    double forward[MICROS], backward[MICROS], update;
    double busy[MICROS + 1][TIME_PARTS]; /* of both passes; then the update */
    double kernel[MICROS + 1][KERNELS], floor[MICROS + 1][KERNELS];
    double sent[MICROS + 1][SENT_KINDS], messages[MICROS + 1][SENT_KINDS];
    double talked[MICROS + 1];
} Stage;

static void take_counts(Stage *s, int i)
{
    memcpy(s->busy[i], clk.part, sizeof clk.part);
    memcpy(s->kernel[i], clk.kernel, sizeof clk.kernel);
    memcpy(s->floor[i], clk.floor, sizeof clk.floor);
    memcpy(s->sent[i], clk.sent, sizeof clk.sent);
    memcpy(s->messages[i], clk.messages, sizeof clk.messages);
    s->talked[i] = clk.talked;
    memset(clk.part, 0, sizeof clk.part);
    memset(clk.kernel, 0, sizeof clk.kernel);
    memset(clk.floor, 0, sizeof clk.floor);
    memset(clk.sent, 0, sizeof clk.sent);
    memset(clk.messages, 0, sizeof clk.messages);
    clk.talked = 0;
}

static void run_micro(Model *m, const Job *j, Stage *s, int i, bool last)
{
    double begin = clk.now;
    vit_set_batch(m, m->plan.max_batch, NULL, true, NULL, NULL);
    vit_micro_forward(m, 0, j->plan.batch);
    s->forward[i] = clk.now - begin;
    begin = clk.now;
    vit_micro_backward(m, m->now->number, last);
    s->backward[i] = clk.now - begin;
    take_counts(s, i);
}

static void run_update(Model *m, Stage *s)
{
    double begin = clk.now;
    vit_update(m);
    s->update = clk.now - begin;
    take_counts(s, MICROS);
}

/* Groups as split_connect makes them, of which those of one rank are NULL. */
static void connect_split(const Job *j, Split *s, Group groups[6])
{
    int dp = s->dp.ranks, tp = s->tp.ranks, pp = s->pp.ranks, all = s->world.ranks;
    const struct {
        Group **at;
        int ranks, stride, kind;
    } list[] = {{&s->world.group, all, 1, SENT_NORMS},
                {&s->tp.group, tp, 1, SENT_SUMS},
                {&s->dp.group, dp, tp, SENT_GRADIENTS},
                {&s->pp.group, pp, tp * dp, SENT_STREAM},
                {&s->back, pp, tp * dp, SENT_STREAM},
                {&s->parts, s->zero ? all : tp * pp, 1, SENT_NORMS}};
    for (int i = 0; i < COUNT(list); i++) {
        groups[i] = (Group){circle_of(&j->cluster, list[i].ranks, list[i].stride), list[i].kind, 0};
        *list[i].at = list[i].ranks > 1 ? &groups[i] : NULL;
    }
}

/* A whole step first: the one after it begins as all others do. Histories of scales are full. */
static Stage run_stage(const Job *j, int stage, long micros)
{
    Stage s = {0};
    Group groups[6];
    Split split = split_of(j, stage);
    Plan plan = j->plan;
    const Backend *be = backend_clock(j);
    connect_split(j, &split, groups);
    plan.split = &split;
    plan.offload = false; /* else there would be memory of the host's to clear */
    Model *m = vit_create(&j->config, &plan, be);
    clk.elements = (double)m->layout->n_own;
    for (int step = 0; step < 2; step++) {
        vit_begin_step(m, (uint32_t)(plan.fp8.history + step), 0, 0);
        take_counts(&s, 0);
        for (int i = 0; i < MICROS; i++)
            if (micros >= MICROS - i)
                run_micro(m, j, &s, i, i == LAST_MICRO);
        run_update(m, &s);
    }
    vit_free(m);
    return s;
}

/* Which of a stage's three kinds micro-batch number k is. */
static int kind_of(long k, long micros)
{
    if (k == micros - 1)
        return LAST_MICRO;
    return k == 0 && micros >= MICROS ? FIRST_MICRO : OTHER_MICRO;
}

typedef struct {
    const Stage *stage;
    double *forward, *backward; /* [micros]: when this stage's passes end, */
    const double *from, *back;  /* and its neighbours'; NULL: there is none */
    double now;
    long micros;
} Course;

static void follow(void *ctx, int micro, bool backward)
{
    Course *c = ctx;
    int kind = kind_of(micro, c->micros);
    const double *other = backward ? c->back : c->from;
    double begin = other && other[micro] > c->now ? other[micro] : c->now;
    c->now = begin + (backward ? c->stage->backward : c->stage->forward)[kind];
    (backward ? c->backward : c->forward)[micro] = c->now;
}

/* When the last stage to be done is done. Each pass of a stage waits for that of a neighbour: as
 * many rounds as it takes until no time changes. */
static double run_pipeline(const Job *j, const Stage *stages, long micros, double passing)
{
    size_t n = (size_t)micros;
    double *ends = xcalloc(2 * n * (size_t)j->pp, sizeof *ends), last = 0, before = -1;
    while (last != before) {
        before = last;
        last = 0;
        for (int k = 0; k < j->pp; k++) {
            double *mine = ends + 2 * n * (size_t)k;
            Split s = split_of(j, k);
            Course c = {.stage = &stages[k],
                        .forward = mine,
                        .backward = mine + n,
                        .from = k ? mine - 2 * n : NULL,
                        .back = k + 1 < j->pp ? mine + 3 * n : NULL,
                        .now = k * passing,
                        .micros = micros};
            run_schedule(&s, (int)micros, follow, &c);
            last = fmax(last, c.now + stages[k].update);
        }
    }
    free(ends);
    return last;
}

/* Micro-batches of kind i in a step. */
static double count_of(int i, long micros)
{
    double n = 0;
    for (long k = 0; k < micros; k++)
        n += kind_of(k, micros) == i;
    return i == MICROS ? 1 : n;
}

/* What one stage does in a step, without waiting for others. */
static void add_up(const Stage *s, long micros, Forecast *f)
{
    for (int i = 0; i <= MICROS; i++) {
        double n = count_of(i, micros);
        for (int k = 0; k < TIME_PARTS; k++)
            f->part[k] += n * s->busy[i][k];
        for (int k = 0; k < KERNELS; k++) {
            f->kernel[k] += n * s->kernel[i][k];
            f->floor[k] += n * s->floor[i][k];
        }
        for (int k = 0; k < SENT_KINDS; k++) {
            f->sent[k] += n * s->sent[i][k];
            f->messages[k] += n * s->messages[i][k];
        }
        f->talked += n * s->talked[i];
    }
    for (int k = 0; k < TIME_PARTS; k++)
        f->seconds += f->part[k];
}

Forecast job_forecast(const Job *j)
{
    Forecast f = {0}, busiest = {0};
    int dp = j->ranks / j->tp / j->pp;
    long micros = j->plan.batch / dp / j->plan.max_batch;
    Stage *stages = xcalloc((size_t)j->pp, sizeof *stages);
    for (int k = 0; k < j->pp; k++) {
        Forecast one = {0};
        stages[k] = alike(j, k) ? stages[k - 1] : run_stage(j, k, micros);
        add_up(&stages[k], micros, &one);
        if (k == 0)
            f = one;
        if (one.seconds > busiest.seconds)
            busiest = one;
    }
    memcpy(f.part, busiest.part, sizeof f.part);
    memcpy(f.kernel, busiest.kernel, sizeof f.kernel);
    memcpy(f.floor, busiest.floor, sizeof f.floor);
    f.talked = busiest.talked;
    f.waited = busiest.part[COLLECTIVES];
    f.seconds = busiest.seconds;
    if (j->pp > 1)
        f.seconds = fmax(f.seconds, run_pipeline(j, stages, micros, j->cluster.latency));
    f.part[BUBBLE] = f.seconds - busiest.seconds;
    f.micros = micros;
    f.images_per_s = j->plan.batch / f.seconds;
    double peak = gpu_peak(j->cluster.gpu, j->plan.type, j->tf32) * j->ranks;
    f.mfu = 3 * vit_forward_flops(&j->config) * f.images_per_s / peak;
    free(stages);
    return f;
}
