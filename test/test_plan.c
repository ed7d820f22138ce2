/* test_plan.c - what is said of runs before they run: memory, bytes between ranks, time.
 *
 * Memory: every preset is allocated in layouts of every kind, on a device without memory and on the
 * CPU, and must take what was forecast, to the byte. Time has no such oracle: what is tested is
 * arithmetic (parts add up, floors hold, bytes are a ring's) and that more of a resource never costs
 * time.
 */
#include "check.h"
#include "plan/hopper.h"
#include "plan/propose.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static Cluster cluster_of(const char *gpu, const char *link, int per_machine)
{
    Cluster c;
    Error e = {"", ""};
    CHECK(cluster_new(&c, gpu, link, per_machine, 0, &e), "%s", e.what);
    return c;
}

static Job job_of(const char *preset, int ranks, int micro, int micros)
{
    Job j = {.config = vit_config_default(),
             .plan = {.max_batch = micro,
                      .type = BF16,
                      .training = true,
                      .opt = {.kind = OPT_ADAMW},
                      .recompute = {.group = 1}},
             .cluster = cluster_of("h100", "ib", 8),
             .ranks = ranks,
             .tp = 1,
             .pp = 1,
             .stages = "",
             .reshard = true,
             .reduce_type = F32};
    CHECK(vit_preset(preset, &j.config), "%s", preset);
    j.plan.batch = micro * micros * ranks;
    return j;
}

/* ---- memory ---- */

typedef struct {
    int ranks, tp, pp, zero, recompute;
    bool kept, ema, sgd;
} Way;
static const Way ways[] = {
    {1, 1, 1, 0, RECOMPUTE_NONE, false, false, false},
    {1, 1, 1, 0, RECOMPUTE_SELECTIVE, false, true, false},
    {1, 1, 1, 0, RECOMPUTE_FULL, false, false, true},
    {1, 1, 1, 0, RECOMPUTE_LIGHT, false, false, false},
    {8, 1, 1, 0, RECOMPUTE_NONE, false, false, false},
    {8, 1, 1, 1, RECOMPUTE_NONE, false, true, false},
    {8, 1, 1, 2, RECOMPUTE_NONE, false, false, false},
    {8, 1, 1, 3, RECOMPUTE_FULL, false, false, false},
    {8, 1, 1, 3, RECOMPUTE_NONE, true, false, false},
    {8, 1, 4, 0, RECOMPUTE_NONE, false, false, false},
    {8, 1, 4, 2, RECOMPUTE_SELECTIVE, false, false, false},
    {8, 2, 1, 0, RECOMPUTE_NONE, false, false, false},
    {8, 2, 1, 3, RECOMPUTE_SELECTIVE, false, true, false},
    {8, 2, 2, 1, RECOMPUTE_NONE, false, false, true},
    {8, 2, 4, 0, RECOMPUTE_FULL, false, false, false},
};

/* Whether this model can be shared so; lists of chunks are long where it is huge. */
static bool fits(const Config *c, const Way *w)
{
    bool huge = c->width > 4096;
    return c->heads % w->tp == 0 && !(huge && (w - ways) % 3);
}

static void shape(Job *j, const Way *w)
{
    int dp = w->ranks / w->tp / w->pp;
    j->ranks = w->ranks;
    j->tp = w->tp;
    j->pp = w->pp;
    j->zero = w->zero;
    j->reshard = !w->kept;
    j->plan.recompute.kind = w->recompute;
    j->plan.ema = w->ema;
    j->plan.opt.kind = w->sgd ? OPT_SGD : OPT_ADAMW;
    j->plan.batch = j->plan.max_batch * dp * 8;
}

static Split split_at(const Job *j, int stage)
{
    Split s;
    Error e;
    CHECK(job_split(j, stage * (j->ranks / j->pp), &s, &e), "%s", e.what);
    return s;
}

/* What the model's own units say they took, and what went to alloc, on the fullest stage. */
static void check_allocation(const Job *j, const char *name)
{
    Needs n = job_needs(j);
    Split s = split_at(j, n.stage);
    Plan plan = j->plan;
    plan.split = &s;
    const Backend *be = backend_clock(j);
    Model *m = vit_create(&j->config, &plan, be);
    const Memory *f = &n.memory;
    double all = f->weights + f->gradients + f->optimiser + f->activations + f->inputs;
    CHECK(clock_allocated() == all, "%s: %.0f bytes allocated, %.0f forecast", name,
          clock_allocated(), all);
    CHECK((double)m->own.bytes_weights == f->weights && (double)m->own.bytes_grads == f->gradients &&
              (double)m->own.bytes_opt == f->optimiser && (double)m->bytes_acts == f->activations &&
              (double)m->bytes_inputs == f->inputs,
          "%s: classes differ", name);
    vit_free(m);
}

static void test_presets(void)
{
    char name[100];
    for (int i = 0; vit_preset_names[i]; i++)
        for (int k = 0; k < COUNT(ways); k++) {
            Job j = job_of(vit_preset_names[i], 1, 4, 1);
            if (!fits(&j.config, &ways[k]))
                continue;
            shape(&j, &ways[k]);
            snprintf(name, sizeof name, "%s, way %d", vit_preset_names[i], k);
            check_allocation(&j, name);
        }
}

/* The same on the CPU, whose scratch memory is its own: counted as it is allocated. Addresses alone:
 * the system gives memory to what is written, and 10 billion parameters are not. */
enum { PAGE = 4096 };
static double taken;

static dev *reserve(size_t bytes)
{
    char *block = mmap(NULL, bytes + PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED)
        die("raise the limit (ulimit -v)", "no address space for %zu bytes", bytes);
    taken += (double)bytes;
    *(size_t *)block = bytes + PAGE;
    return (dev *)(block + PAGE);
}

static void unreserve(dev *p)
{
    char *block = (char *)p - PAGE;
    if (p)
        munmap(block, *(size_t *)block);
}

static void check_cpu(Job *j, const Way *w, const char *name)
{
    Backend be = *backend_cpu();
    be.alloc = reserve;
    be.release = unreserve;
    be.init(&(Device){.threads = 1, .type = F32});
    j->plan.type = F32;
    j->cluster = cluster_of("xeon-core", "ib", 8);
    shape(j, w);
    Needs n = job_needs(j);
    Split s = split_at(j, n.stage);
    Plan plan = j->plan;
    plan.split = &s;
    taken = 0;
    Model *m = vit_create(&j->config, &plan, &be);
    CHECK(taken == n.total, "%s: %.0f bytes on the CPU, %.0f forecast", name, taken, n.total);
    vit_free(m);
}

static void test_cpu(void)
{
    char name[100];
    for (int i = 0; vit_preset_names[i]; i++)
        for (int k = 0; k < COUNT(ways); k++) {
            Job j = job_of(vit_preset_names[i], 1, 2, 1);
            snprintf(name, sizeof name, "%s, way %d", vit_preset_names[i], k);
            if (fits(&j.config, &ways[k]))
                check_cpu(&j, &ways[k], name);
        }
}

/* Moments and average leave the device for the host, and nothing else changes. */
static void test_offload(void)
{
    Job j = job_of("B/16", 4, 8, 1);
    Needs with = job_needs(&j);
    j.plan.offload = true;
    Needs without = job_needs(&j);
    double moved = with.memory.optimiser - without.memory.optimiser;
    CHECK(moved > 0 && moved == without.memory.host, "%.0f and %.0f", moved, without.memory.host);
    CHECK(job_forecast(&j).seconds > 0);
}

/* ---- bytes between ranks ---- */

static void test_bytes(void)
{
    for (int zero = 0; zero <= 3; zero++) {
        Job j = job_of("B/16", 8, 16, 3);
        j.zero = zero;
        Split s = split_at(&j, 0);
        Cut cut = split_cut(&s);
        Layout *l = layout_new(&j.config, DECAY_ALL, &cut);
        Forecast f = job_forecast(&j);
        double all = (double)l->n_padded * 7 / 8; /* elements that go around once */
        double sums = zero >= 2 ? 3 : 1;          /* of gradients, fp32 */
        double grads = all * 4 * (zero == 0 ? 2 : sums);
        CHECK(fabs(f.sent[SENT_GRADIENTS] - grads) < 100, "zero %d: %.0f bytes of gradients, not %.0f",
              zero, f.sent[SENT_GRADIENTS], grads);
        double least = zero ? all * 2 : 0, most = zero == 3 ? 6 * least : least; /* bf16 */
        CHECK(f.sent[SENT_WEIGHTS] >= least - 100 && f.sent[SENT_WEIGHTS] <= most + 100,
              "zero %d: %.0f bytes of weights, not %.0f .. %.0f", zero, f.sent[SENT_WEIGHTS], least,
              most);
        layout_free(l);
    }
    Job j = job_of("B/16", 2, 16, 1); /* four sums a block, on class rows alone some of the last */
    j.tp = 2;
    j.plan.batch = 16;
    Forecast f = job_forecast(&j);
    double sum = 16.0 * 197 * 768 * 2, inputs = 16 * (224.0 * 224 * 3 + 4000);
    CHECK(f.sent[SENT_SUMS] > 45 * sum && f.sent[SENT_SUMS] < 48 * sum + inputs, "%.0f, %.0f",
          f.sent[SENT_SUMS], sum);
}

/* ---- time ---- */

static void check_sum(const Forecast *f, const char *name)
{
    double sum = 0;
    for (int i = 0; i < TIME_PARTS; i++) {
        CHECK(f->part[i] >= 0, "%s: %s take %g s", name, time_names[i], f->part[i]);
        sum += f->part[i];
    }
    CHECK(fabs(sum - f->seconds) < 1e-9 * sum, "%s: %g, in all %g", name, sum, f->seconds);
    sum = f->part[BUBBLE];
    for (int i = 0; i < KERNELS; i++) {
        CHECK(f->floor[i] <= f->kernel[i], "%s: %s take %g s, at the least %g", name,
              kernel_names[i], f->kernel[i], f->floor[i]);
        sum += f->kernel[i];
    }
    CHECK(fabs(sum - f->seconds) < 1e-9 * sum, "%s: %g by kernels, in all %g", name, sum,
          f->seconds);
    CHECK(f->mfu > 0 && f->mfu < 1, "%s: MFU %g", name, f->mfu);
}

static void test_time(void)
{
    for (int g = 0; g < gpu_count; g++) {
        Job j = job_of("B/16", 1, 64, 2);
        j.cluster = cluster_of(gpus[g].name, "ib", 8);
        j.plan.type = gpus[g].half > 0 ? F16 : F32;
        Forecast f = job_forecast(&j);
        check_sum(&f, gpus[g].name);
    }
    /* Micro-batches that are looked at once and counted often. */
    Job j = job_of("B/16", 1, 64, 4);
    double four = job_forecast(&j).seconds;
    j.plan.batch = 64 * 8;
    double eight = job_forecast(&j).seconds;
    j.plan.batch = 64 * 12;
    double twelve = job_forecast(&j).seconds;
    CHECK(fabs(twelve - eight - (eight - four)) < 1e-6 * four, "%g %g %g", four, eight, twelve);
}

/* (pp - 1) / (micros + pp - 1) of the step, where stages are equal; ours are but for the ends. */
static void test_bubble(void)
{
    for (int micros = 4; micros <= 32; micros *= 2) {
        Job j = job_of("L/16", 4, 16, 1);
        j.pp = 4;
        j.plan.batch = 16 * micros;
        Forecast f = job_forecast(&j);
        double share = f.part[BUBBLE] / f.seconds, ideal = 3.0 / (micros + 3);
        check_sum(&f, "stages");
        CHECK(fabs(share - ideal) < 0.05, "%d micro-batches: bubble %.3f, ideal %.3f", micros, share,
              ideal);
    }
}

static void test_more_is_better(void)
{
    static const char *const order[] = {"v100", "a100-80", "h100", "b200"};
    double before = 0;
    for (int i = 0; i < COUNT(order); i++) {
        Job j = job_of("L/16", 1, 64, 1);
        j.cluster = cluster_of(order[i], "ib", 8);
        j.plan.type = F16;
        double rate = job_forecast(&j).images_per_s;
        CHECK(rate > before, "%s: %g images/s, before %g", order[i], rate, before);
        before = rate;
    }
    before = 0;
    for (int ranks = 1; ranks <= 64; ranks *= 2) {
        Job j = job_of("B/16", ranks, 64, 1);
        j.cluster.per_machine = ranks < 8 ? ranks : 8;
        double rate = job_forecast(&j).images_per_s;
        CHECK(rate > before, "%d GPUs: %g images/s, before %g", ranks, rate, before);
        CHECK(ranks == 1 || rate < 2.001 * before, "%d GPUs: more than twice as fast", ranks);
        before = rate;
    }
    Job j = job_of("G/14", 32, 8, 1);
    Job k = j;
    k.cluster = cluster_of("h100", "ethernet", 8);
    CHECK(job_forecast(&j).images_per_s > 1.2 * job_forecast(&k).images_per_s);
    j = k = job_of("L/16", 1, 64, 1);
    k.plan.recompute.kind = RECOMPUTE_FULL;
    double again = job_forecast(&k).seconds / job_forecast(&j).seconds;
    CHECK(again > 1.2 && again < 1.34, "recomputation: %.3f times as long", again);
}

/* No product is faster than the peak, or than its bytes; large ones come to what is reached. */
static void test_products(void)
{
    const Gpu *g = cluster_of("h200", "ib", 8).gpu;
    for (double n = 64; n <= 16384; n *= 2) {
        double t = gpu_product(g, BF16, false, n, n, n, 2);
        CHECK(t >= 2 * n * n * n / (g->half * g->reach) && t >= 6 * n * n / g->bandwidth, "%g", n);
    }
    double large = 2 * pow(8192, 3) / gpu_product(g, BF16, false, 8192, 8192, 8192, 2);
    CHECK(large > 0.9 * g->reach * g->half, "%g FLOP/s", large);
    double thin = gpu_product(g, BF16, false, 768, 768, 100000, 4); /* 18 tiles: sums are shared */
    CHECK(2 * 768.0 * 768 * 100000 / thin > 0.5 * g->reach * g->half, "%g s", thin);
}

/* ---- our own kernels for Hopper ---- */

static Tensor rows_of(long ld, int type)
{
    return (Tensor){(dev *)(uintptr_t)4096, ld, type, NULL};
}

static Attention heads_of(int B, int T, int heads, int hs, int type)
{
    long C = (long)heads * hs;
    return (Attention){.qkv = rows_of(3 * C, type),
                       .out = rows_of(C, type),
                       .B = B,
                       .T = T,
                       .Tq = T,
                       .heads = heads,
                       .hs = hs,
                       .dqkv = rows_of(3 * C, type),
                       .dout = rows_of(C, type)};
}

/* What there are kernels of, on H100 and H200 alone. */
static void test_own_attention(void)
{
    static const struct {
        int T, hs, type;
        double drop;
        bool forward, backward;
    } cases[] = {
        {197, 64, BF16, 0, true, true},     {197, 64, F16, 0.1, true, true},
        {208, 8, BF16, 0, true, true},      {209, 64, BF16, 0, true, true},
        {1408, 64, BF16, 0.1, true, true},  {1409, 64, BF16, 0, true, false},
        {257, 80, BF16, 0, true, true},     {257, 80, BF16, 0.1, true, true},
        {273, 104, BF16, 0, true, true},    {272, 112, BF16, 0, true, true},
        {1408, 128, BF16, 0.1, true, true}, {1409, 128, BF16, 0, true, false},
        {197, 136, BF16, 0, false, false},  {197, 60, BF16, 0, false, false},
        {197, 64, F32, 0, false, false},
    };
    for (int i = 0; i < COUNT(cases); i++)
        for (int k = 0; k < gpu_count; k++) {
            bool hopper = strcmp(gpus[k].name, "h100") == 0 || strcmp(gpus[k].name, "h200") == 0;
            Attention a = heads_of(16, cases[i].T, 16, cases[i].hs, cases[i].type);
            a.drop.p = cases[i].drop;
            bool forward = hopper_attention(&gpus[k], &a, false, 1e6) < INFINITY;
            bool backward = hopper_attention(&gpus[k], &a, true, 1e6) < INFINITY;
            CHECK(forward == (hopper && cases[i].forward), "%s, case %d: forward %d", gpus[k].name,
                  i, forward);
            CHECK(backward == (hopper && cases[i].backward), "%s, case %d: backward %d",
                  gpus[k].name, i, backward);
        }
    Attention odd = heads_of(16, 197, 12, 64, BF16);
    odd.dout.ld += 4; /* rows that are not packs of 16 bytes, of a tensor of the backward pass */
    CHECK(hopper_attention(&gpus[0], &odd, false, 1e6) < INFINITY);
    CHECK(hopper_attention(&gpus[0], &odd, true, 1e6) == INFINITY);
    Attention eight = heads_of(16, 197, 12, 64, BF16);
    eight.dqkv.type = E5M2;
    CHECK(hopper_attention(&gpus[0], &eight, true, 1e6) < INFINITY);
}

static void test_own_products(void)
{
    const int M = 256 * 197, F = 3072, C = 768;
    const Gpu *h200 = cluster_of("h200", "ib", 8).gpu, *a100 = cluster_of("a100-80", "ib", 8).gpu;
    const LinearForward fc1 = {.x = rows_of(C, BF16),
                               .w = rows_of(C, BF16),
                               .y = rows_of(F, BF16),
                               .pre = rows_of(F, BF16),
                               .rows = M,
                               .in = C,
                               .out = F,
                               .act = ACT_GELU};
    const LinearBackwardInput fc2 = {.dx = rows_of(F, BF16),
                                     .dy = rows_of(C, BF16),
                                     .w = rows_of(F, BF16),
                                     .pre = rows_of(F, BF16),
                                     .rows = M,
                                     .in = F,
                                     .out = C,
                                     .act = ACT_GELU_TANH};
    dev *scale = fc1.x.p;
    LinearForward f[] = {fc1, fc1, fc1, fc1, fc1, fc1, fc1};
    LinearBackwardInput b[] = {fc2, fc2, fc2, fc2, fc2};
    CHECK(hopper_forward(h200, &fc1).seconds < INFINITY);
    CHECK(hopper_backward_input(h200, &fc2).seconds < INFINITY);
    CHECK(hopper_forward(a100, &fc1).seconds == INFINITY);
    CHECK(hopper_backward_input(a100, &fc2).seconds == INFINITY);
    f[0].act = ACT_NONE;
    f[1].act = ACT_QUICK_GELU;
    f[2].drop.p = 0.1;
    f[3].residual = rows_of(F, BF16);
    f[4].x.scale = f[4].w.scale = scale; /* operands that are multiplied in 8 bits */
    f[5].y.type = E4M3;
    f[6].out = 3076;
    for (int i = 0; i < COUNT(f); i++)
        CHECK(hopper_forward(h200, &f[i]).seconds == INFINITY, "forward, case %d", i);
    b[0].act = ACT_SWIGLU;
    b[1].drop.p = 0.1;
    b[2].dy.scale = b[2].w.scale = scale;
    b[3].dx.type = b[3].dy.type = b[3].w.type = b[3].pre.type = F32;
    b[4].dbias = scale;
    b[4].rows = 12000000; /* whose tiles' sums have no room */
    for (int i = 0; i < COUNT(b); i++)
        CHECK(hopper_backward_input(h200, &b[i]).seconds == INFINITY, "backward, case %d", i);

    /* what is made of 8 bits has them, too */
    LinearForward x = f[4];
    LinearBackwardInput dy = b[2];
    x.y.type = E4M3;
    dy.dx.type = E5M2;
    CHECK(hopper_forward(h200, &x).seconds < hopper_forward(h200, &fc1).seconds);
    CHECK(hopper_backward_input(h200, &dy).seconds < hopper_backward_input(h200, &fc2).seconds);
    x.out = 3080;
    dy.pre.type = F32;
    CHECK(hopper_forward(h200, &x).seconds == INFINITY);
    CHECK(hopper_backward_input(h200, &dy).seconds == INFINITY);
}

/* The figures that the kernels' own comments come to: 512 TFLOP/s; of attention backward 182 us for
 * a layer of B/16, 36,400 cycles for a head of g/14. */
static void test_own_times(void)
{
    const Gpu *g = cluster_of("h200", "ib", 8).gpu;
    LinearForward fc1 = {.x = rows_of(1024, BF16),
                         .w = rows_of(1024, BF16),
                         .y = rows_of(4096, BF16),
                         .rows = 100000,
                         .in = 1024,
                         .out = 4096,
                         .act = ACT_GELU};
    double rate = 2.0 * 100000 * 1024 * 4096 / hopper_forward(g, &fc1).seconds;
    CHECK(fabs(rate - 683e12) < 0.02 * 683e12, "%g FLOP/s", rate); /* in pairs of blocks */
    Attention a = heads_of(256, 197, 12, 64, BF16);
    double t = hopper_attention(g, &a, true, 620e6);
    CHECK(fabs(t - 182e-6) < 0.05 * 182e-6, "%g s", t);
    a.dqkv.type = E5M2; /* 24 heads, one after the other, take 2,000 cycles each more */
    t = hopper_attention(g, &a, true, 620e6) - t;
    CHECK(fabs(t - 24 * 2000 / 1.75e9) < 1e-6, "%g s more in 8 bits", t);
    a = heads_of(132, 257, 16, 88, BF16);
    t = hopper_attention(g, &a, true, 1e6) / 16 * 1.75e9;
    CHECK(fabs(t - 36400) < 0.02 * 36400, "%g cycles", t);
}

/* A forecast takes the faster way: beside an H200 that is like any other GPU. */
static void test_own_kernels(void)
{
    static const struct {
        const char *model;
        double library; /* times as fast as it is assumed to be */
        bool products;  /* ours are faster, with GELU and with its slope */
    } cases[] = {{"B/16", 1, true}, {"G/14", 1, true}, {"B/16", 4, false}};
    for (int i = 0; i < COUNT(cases); i++) {
        Job j = job_of(cases[i].model, 1, 64, 1);
        j.cluster = cluster_of("h200", "ib", 8);
        Gpu gpu = *j.cluster.gpu, other;
        gpu.reach *= cases[i].library;
        other = gpu;
        other.capability = 80;
        j.cluster.gpu = &gpu;
        Forecast own = job_forecast(&j);
        j.cluster.gpu = &other;
        Forecast portable = job_forecast(&j);
        const double *x = own.kernel, *y = portable.kernel;
        if (cases[i].library <= 1) /* else below the floor */
            check_sum(&own, "our own kernels");
        CHECK(x[ATTENTION_FORWARD] < 0.95 * y[ATTENTION_FORWARD]);
        CHECK(x[PRODUCTS_WEIGHT] == y[PRODUCTS_WEIGHT] && own.seconds < portable.seconds);
        double act = x[ACT_FORWARD] / y[ACT_FORWARD], slope = x[ACT_BACKWARD] / y[ACT_BACKWARD];
        CHECK(cases[i].products ? act < 0.2 && slope < 0.2 : act == 1 && slope == 1,
              "case %d: what is left of passes is %g and %g", i, act, slope);
        CHECK((x[PRODUCTS_FORWARD] != y[PRODUCTS_FORWARD]) == cases[i].products);
        CHECK((x[PRODUCTS_INPUT] != y[PRODUCTS_INPUT]) == cases[i].products);
        CHECK(x[ATTENTION_BACKWARD] < 0.7 * y[ATTENTION_BACKWARD]);
    }
}

/* ---- layouts ---- */

static void test_proposals(void)
{
    static const struct {
        const char *model, *gpu;
        int ranks;
    } cases[] = {{"B/16", "h100", 8}, {"G/14", "a100-40", 16}, {"G/14", "h200", 1}};
    for (int i = 0; i < COUNT(cases); i++) {
        Proposal p[MOST_PROPOSALS];
        Job j = job_of(cases[i].model, cases[i].ranks, 1, 1);
        j.cluster = cluster_of(cases[i].gpu, "ib", cases[i].ranks < 8 ? cases[i].ranks : 8);
        j.plan.batch = 1024;
        int n = job_propose(&j, 1024, 1, p);
        CHECK(n >= 1, "%s on %s: no layout", cases[i].model, cases[i].gpu);
        for (int k = 0; k < n; k++) {
            const Job *one = &p[k].job;
            int dp = one->ranks / one->tp / one->pp;
            CHECK(p[k].needs.total <= p[k].needs.room, "proposal %d does not fit", k);
            CHECK(1024 / dp % one->plan.max_batch == 0, "proposal %d: micro-batches", k);
            CHECK(k == 0 || p[k].forecast.seconds >= p[k - 1].forecast.seconds, "order");
        }
    }
}

static void test_fit(void)
{
    Job j = job_of("L/16", 8, 1, 1);
    j.plan.batch = 8 * 1024;
    j.cluster = cluster_of("a100-40", "ib", 8);
    int micro = job_fit(&j, 1024, 1, 1024);
    Needs n = job_needs(&j);
    CHECK(micro > 1 && n.total <= n.room, "micro-batch %d", micro);
    j.plan.max_batch = 2 * micro;
    n = job_needs(&j);
    CHECK(n.total > n.room, "%d images fit, and %d were said to", 2 * micro, micro);
    Job huge = job_of("10B/14", 1, 1, 1);
    char hint[512];
    CHECK(job_fit(&huge, 1, 1, 1) == 0);
    job_remedy(&huge, 1, hint, sizeof hint);
    CHECK(strstr(hint, "GPUs") != NULL, "%s", hint);
}

static void test_errors(void)
{
    Cluster c;
    Error e;
    CHECK(!cluster_new(&c, "h300", "ib", 8, 0, &e) && strstr(e.hint, "a100-80"), "%s", e.hint);
    CHECK(!cluster_new(&c, "h100", "wifi", 8, 0, &e) && strstr(e.hint, "ethernet"), "%s", e.hint);
}

int main(void)
{
    test_errors();
    test_products();
    test_presets();
    test_cpu();
    test_offload();
    test_bytes();
    test_time();
    test_bubble();
    test_more_is_better();
    test_own_attention();
    test_own_products();
    test_own_times();
    test_own_kernels();
    test_proposals();
    test_fit();
    return check_report();
}
