/* bench: how fast the model trains and infers, as a fraction of what the matrix product reaches.
 *
 *   build/bench [MODEL BATCH [ROUNDS [fp32|bf16]]]   MODEL is a preset or `cifar`: Ti with patch 4
 *                                          at 32x32, 10 classes; without arguments: B/16, Ti/16 and
 *                                          cifar
 *
 * One round times a training step, a forward pass, and then the bare matrix products of that step
 * (every linear layer's forward, input-gradient and weight-gradient shape, without epilogues), so
 * that all three see the same machine at the same time; medians over the rounds are printed.
 *   sgemm     FLOPs of those products / their time
 *   fraction  images/s * FLOPs per image / sgemm, attention counted in the FLOPs, training = 3
 *             forward; in bf16 of the same fp32 products: what it is above 1, bf16 is worth
 * Each model runs in a process of its own, so that its peak memory is its own.
 */
#include "vit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* The distinct matrix products of a step: [rows, in] x [out, in], `count` times per forward pass.
 */
typedef struct {
    int rows, in, out, count;
    bool no_dx; /* the patch embedding needs no input gradient */
} Product;

static int products(const Config *c, int B, Product *p)
{
    int rows = B * vit_tokens(c), C = c->width, F = c->mlp, L = c->layers,
        PP = VIT_CHANNELS * c->patch * c->patch;
    Product all[] = {{rows, C, 3 * C, L, false},
                     {rows, C, C, L, false},
                     {rows, C, F, L, false},
                     {rows, F, C, L, false},
                     {B * vit_patches(c), PP, C, 1, true},
                     {B, C, c->classes, 1, false}};
    memcpy(p, all, sizeof all);
    return COUNT(all);
}

static Tensor matrix(dev *p, long ld)
{
    return (Tensor){p, ld, F32, NULL};
}

/* Seconds and FLOPs of all products of a training step (forward alone for `inference`). */
static double time_products(const Backend *be, const Config *c, int B, bool inference,
                            dev *buffers[3], double *flops)
{
    Product p[8];
    int n = products(c, B, p);
    double seconds = 0;
    *flops = 0;
    for (int i = 0; i < n; i++) {
        Tensor x = matrix(buffers[0], p[i].in), w = matrix(buffers[1], p[i].in),
               y = matrix(buffers[2], p[i].out);
        double start = now(), each = 2.0 * p[i].rows * p[i].in * p[i].out;
        int done = 1;
        be->linear_forward(&(LinearForward){
            .y = y, .x = x, .w = w, .rows = p[i].rows, .in = p[i].in, .out = p[i].out});
        if (!inference && !p[i].no_dx) {
            be->linear_backward_input(&(LinearBackwardInput){
                .dx = x, .dy = y, .w = w, .rows = p[i].rows, .in = p[i].in, .out = p[i].out});
            done++;
        }
        if (!inference) {
            be->linear_backward_weight(&(LinearBackwardWeight){.dw = buffers[1],
                                                               .dy = y,
                                                               .x = x,
                                                               .rows = p[i].rows,
                                                               .in = p[i].in,
                                                               .out = p[i].out});
            done++;
        }
        seconds += (now() - start) * p[i].count;
        *flops += each * done * p[i].count;
    }
    return seconds;
}

static void product_buffers(const Backend *be, const Config *c, int B, dev *buffers[3])
{
    size_t rows = (size_t)B * (size_t)vit_tokens(c),
           wide = (size_t)(c->mlp > 3 * c->width ? c->mlp : 3 * c->width);
    size_t pixels = VIT_CHANNELS * (size_t)c->patch * (size_t)c->patch;
    wide = wide > pixels ? wide : pixels;
    wide = wide > (size_t)c->classes ? wide : (size_t)c->classes;
    for (int i = 0; i < 3; i++)
        buffers[i] = be->alloc((i == 1 ? wide * wide : rows * wide) * sizeof(real));
}

static int ascending(const void *a, const void *b)
{
    double d = *(const double *)a - *(const double *)b;
    return (d > 0) - (d < 0);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, ascending);
    return n % 2 ? v[n / 2] : 0.5 * (v[n / 2 - 1] + v[n / 2]);
}

static double peak_gib(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)u.ru_maxrss / (1 << 20);
}

/* A model on random images, ready to step. */
static Model *prepare(const Config *c, int B, int type)
{
    Error e;
    Plan plan = {.max_batch = B,
                 .training = true,
                 .type = type,
                 .recompute = {.kind = type == BF16 ? RECOMPUTE_LIGHT : RECOMPUTE_NONE}, /* auto */
                 .clip = 1,
                 .decay = DECAY_NO_1D,
                 .opt = {OPT_ADAMW, 0.9, 0.999, 1e-8, 0, 0.05, 0}};
    Model *m = vit_create(c, &plan, type == BF16 ? backend_cpu_bf16() : backend_cpu());
    if (!vit_init(m, "timm", 1, 0, 1e-5, &e))
        die(e.hint, "%s", e.what);
    size_t bytes = (size_t)B * vit_image_bytes(c, true);
    uint8_t *images = xmalloc(bytes);
    for (size_t i = 0; i < bytes; i++)
        images[i] = (uint8_t)(i * 2654435761u >> 13);
    real *targets = xcalloc((size_t)B * (size_t)c->classes, sizeof(real));
    for (int b = 0; b < B; b++)
        targets[(long)b * c->classes + b % c->classes] = 1;
    vit_set_batch(m, B, images, true, targets, NULL);
    free(images);
    free(targets);
    return m;
}

static void step(Model *m, uint32_t number)
{
    vit_begin_step(m, number, 1e-4, 1);
    vit_micro_step(m, 0, m->now->B, true);
    vit_update(m);
}

enum { MAX_ROUNDS = 200 };

static void run(const char *name, const Config *c, int B, int rounds, int type)
{
    const Backend *be = backend_cpu();
    Model *m = prepare(c, B, type);
    double train[MAX_ROUNDS], infer[MAX_ROUNDS], gemm[MAX_ROUNDS], gemm_forward[MAX_ROUNDS];
    double flops = 0, flops_forward = 0, peak = 0;
    dev *buffers[3];
    step(m, 0); /* first touch of every page */
    peak = peak_gib();
    product_buffers(be, c, B, buffers);
    time_products(be, c, B, false, buffers, &flops);
    for (int r = 0; r < rounds; r++) {
        double t = now();
        step(m, (uint32_t)r + 1);
        train[r] = now() - t;
        gemm[r] = time_products(be, c, B, false, buffers, &flops);
        t = now();
        vit_forward(m, false);
        infer[r] = now() - t;
        gemm_forward[r] = time_products(be, c, B, true, buffers, &flops_forward);
    }
    double per_image = vit_forward_flops(c), fraction[MAX_ROUNDS], fraction_forward[MAX_ROUNDS];
    for (int r = 0; r < rounds; r++) { /* of each round: the speed may drift between them */
        fraction[r] = B * 3 * per_image / train[r] / (flops / gemm[r]);
        fraction_forward[r] = B * per_image / infer[r] / (flops_forward / gemm_forward[r]);
    }
    printf("%-10s %s batch %-3d train %8.2f images/s  fraction %.3f   infer %8.2f images/s  "
           "fraction %.3f   sgemm %.0f GFLOP/s   peak %.2f GiB\n",
           name, type == BF16 ? "bf16" : "fp32", B, B / median(train, rounds),
           median(fraction, rounds), B / median(infer, rounds),
           median(fraction_forward, rounds), flops / median(gemm, rounds) * 1e-9, peak);
    fflush(stdout);
    vit_free(m);
}

static void run_apart(const char *name, const Config *c, int B, int rounds, int type)
{
    fflush(stdout);
    pid_t child = fork(); /* before any thread exists in this process */
    if (child == 0) {
        const Backend *be = type == BF16 ? backend_cpu_bf16() : backend_cpu();
        be->init(&(Device){.type = type, .ranks = 1});
        run(name, c, B, rounds, type);
        _exit(0);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) < 0 || status != 0)
        die(NULL, "the benchmark of %s failed", name);
}

/* A preset, or cifar: 65 tokens */
static bool model_config(const char *name, Config *c)
{
    *c = vit_config_default();
    if (strcmp(name, "cifar") != 0)
        return vit_preset(name, c);
    vit_preset("Ti/16", c);
    c->image_h = c->image_w = 32;
    c->patch = 4;
    c->classes = 10;
    return true;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int batch, rounds;
    } all[] = {{"B/16", 16, 7},
               {"B/16", 8, 3}, /* the memory of batch 8 is a promise: below 3 GB */
               {"Ti/16", 32, 15},
               {"cifar", 128, 15}};
    backend_cpu_reexec(argv);
    char line[256];
    backend_cpu()->describe(line, sizeof line);
    printf("%s\n", line);
    Config c;
    if (argc > 2) {
        int rounds = argc > 3 ? atoi(argv[3]) : 5, batch = atoi(argv[2]);
        if (!model_config(argv[1], &c) || batch < 1 || rounds < 1 || rounds > MAX_ROUNDS)
            die_usage("build/bench B/16 16 5", "no such model, batch or number of rounds");
        bool bf16 = argc > 4 && strcmp(argv[4], "bf16") == 0;
        run_apart(argv[1], &c, batch, rounds, bf16 ? BF16 : F32);
        return 0;
    }
    for (int i = 0; i < COUNT(all); i++)
        if (model_config(all[i].name, &c))
            run_apart(all[i].name, &c, all[i].batch, all[i].rounds, F32);
    return 0;
}
