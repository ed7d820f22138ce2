/* test_bf16.c - whole models in bf16 on the CPU: against fp32 and the CUDA backend, with other
 * numbers of threads, and what they take of memory.
 *
 *   test_bf16 [FOLDER]   (the folder that all tests are given is of no use here)
 *
 * A model is stepped once on random images; compared are the residual stream behind each block,
 * logits, losses and every parameter's gradient, each by relative L2. Two backends that round at
 * the same places still add in other orders, and a sum beside the middle between two bf16 numbers
 * goes another way: what comes of that grows from block to block. The CUDA backend runs on the
 * stand-ins, where it is linked.
 */
#include "check.h"
#include "util/rng.h"
#include "vit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *name;
    int image, patch, width, layers, heads, mlp, classes, pool, act;
    double dropout;
} Shape;

static const Shape shapes[] = {
    {"cls, erf", 48, 8, 48, 3, 3, 192, 10, POOL_CLS, ACT_GELU, 0},
    {"gap, erf, 197 tokens", 112, 8, 64, 2, 2, 136, 17, POOL_GAP, ACT_GELU, 0},
    {"gap, tanh, dropout", 48, 8, 64, 2, 2, 136, 17, POOL_GAP, ACT_GELU_TANH, 0.1},
    {"gap, swiglu", 56, 8, 72, 2, 3, 100, 5, POOL_GAP, ACT_SWIGLU, 0},
};

enum { B = 4 };

/* What came of a step, one number behind the other, and where each tensor begins */
typedef struct {
    real *v;
    long n, begin[512];
    char name[512][64];
    int count;
} Result;

static real *room_for(Result *r, const char *name, long n)
{
    if (r->count + 1 >= COUNT(r->begin))
        die(NULL, "test_bf16: too many tensors");
    snprintf(r->name[r->count], sizeof r->name[0], "%s", name);
    r->begin[r->count++] = r->n;
    r->n += n;
    r->begin[r->count] = r->n;
    r->v = realloc(r->v, (size_t)r->n * sizeof *r->v);
    return r->v + r->n - n;
}

static Config config_of(const Shape *s)
{
    Config c = vit_config_default();
    c.image_h = c.image_w = s->image;
    c.patch = s->patch;
    c.width = s->width;
    c.layers = s->layers;
    c.heads = s->heads;
    c.mlp = s->mlp;
    c.classes = s->classes;
    c.pool = s->pool;
    c.act = s->act;
    c.dropout = s->dropout;
    return c;
}

static Result step(const Shape *s, const Backend *be, int type, int threads)
{
    Config c = config_of(s);
    Plan plan = {.max_batch = B, .training = true, .type = type, .decay = DECAY_NO_1D,
                 .opt = {OPT_ADAMW, 0.9, 0.999, 1e-8, 0, 0.05, 0}};
    Result r = {0};
    Error e;
    be->init(&(Device){.threads = threads, .type = type, .ranks = 1});
    Model *m = vit_create(&c, &plan, be);
    CHECK(vit_init(m, "xavier", 3, 0, 0, &e), "%s", e.what);
    uint8_t *images = xmalloc((size_t)B * vit_image_bytes(&c, true));
    real *targets = xcalloc((size_t)(B * c.classes), sizeof *targets), stats[3 * B];
    for (size_t i = 0; i < B * vit_image_bytes(&c, true); i++)
        images[i] = (uint8_t)philox(5, (uint32_t)i, 0, 0, 0).v[0];
    for (int b = 0; b < B; b++)
        targets[b * c.classes + b] = 1;
    vit_set_batch(m, B, images, true, targets, NULL);
    vit_begin_step(m, 7, 1e-3, 1);
    vit_micro_step(m, 0, B, true);
    for (int l = 1; l <= c.layers; l++) {
        char name[32];
        snprintf(name, sizeof name, "stream %d", l);
        long n = (long)B * vit_tokens(&c) * c.width;
        if (l < c.layers || c.pool != POOL_CLS) /* of the last one there are class rows alone */
            vit_read_act(m, m->now->stream[l], 0, n, room_for(&r, name, n));
    }
    vit_read_act(m, m->now->logits, 0, B * c.classes, room_for(&r, "logits", B * c.classes));
    be->download(stats, m->stats, sizeof stats);
    for (int b = 0; b < B; b++)
        *room_for(&r, "loss", 1) = stats[3 * b];
    for (int i = 0; i < m->layout->tensors; i++) {
        const Param *p = &m->layout->param[i];
        long begin, end, at = units_kept(&m->own, p, false, &begin, &end);
        units_read(&m->own, m->own.grads, at, p->n, room_for(&r, p->name, p->n));
    }
    vit_free(m);
    free(images);
    free(targets);
    return r;
}

/* Largest relative L2 over the tensors; of the keys' biases, whose gradient is zero but for
 * rounding, against all of qkv.bias. */
static double worst(const Result *a, const Result *b, const char **name)
{
    double most = 0;
    for (int i = 0; i < a->count; i++) {
        double d = 0, s = 0;
        for (long k = a->begin[i]; k < a->begin[i + 1]; k++) {
            d += ((double)a->v[k] - (double)b->v[k]) * ((double)a->v[k] - (double)b->v[k]);
            s += (double)b->v[k] * (double)b->v[k];
        }
        double error = sqrt(d / s);
        if (!(error <= most)) {
            most = error;
            *name = a->name[i];
        }
    }
    return most;
}

static void near(const Shape *s, const char *what, const Result *a, const Result *b, double gate)
{
    const char *name = "";
    CHECK(a->n == b->n && a->count == b->count);
    double error = worst(a, b, &name);
    printf("  %-20s %-24s worst %.1e, %s\n", s->name, what, error, name);
    CHECK(error <= gate, "%s %s: %s is off by %.2e", s->name, what, name, error);
}

static void same(const Shape *s, const char *what, const Result *a, Result b)
{
    CHECK(a->n == b.n && memcmp(a->v, b.v, (size_t)a->n * sizeof(real)) == 0, "%s %s: other bits",
          s->name, what);
    free(b.v);
}

static void test_model(const Shape *s)
{
    const Backend *be = backend_cpu_bf16();
    Result exact = step(s, backend_cpu(), F32, 2);
    setenv("VIT_BF16_PRODUCTS", "floats", 1);
    Result floats = step(s, be, BF16, 2);
    same(s, "again", &floats, step(s, be, BF16, 2));
    same(s, "with one thread", &floats, step(s, be, BF16, 1));
    same(s, "with five threads", &floats, step(s, be, BF16, 5));
    setenv("VIT_BF16_PRODUCTS", "pairs", 1);
    Result pairs = step(s, be, BF16, 2);
    same(s, "pairs, again", &pairs, step(s, be, BF16, 3));
    near(s, "against fp32", &floats, &exact, 4e-2);
    near(s, "pairs against floats", &pairs, &floats, 1e-2);
    if (backend_cuda) {
        Result cuda = step(s, backend_cuda(), BF16, 1);
        near(s, "against CUDA", &floats, &cuda, 1e-2);
        free(cuda.v);
    }
    free(exact.v);
    free(floats.v);
    free(pairs.v);
}

/* B/16, a step of 16 images, 8 at a time: weights, gradients, AdamW and all */
static void test_memory(void)
{
    Config c = vit_config_default();
    vit_preset("B/16", &c);
    Plan plan = {.max_batch = 8, .batch = 16, .training = true, .type = BF16,
                 .opt = {.kind = OPT_ADAMW}};
    double half = vit_bytes(&c, &plan, backend_cpu_bf16());
    plan.type = F32;
    double whole = vit_bytes(&c, &plan, backend_cpu());
    CHECK(half < 1.96 * (1 << 30), "%.2f GiB", half / (1 << 30));
    CHECK(half < whole - 300e6, "%.2f GB, in fp32 %.2f", half * 1e-9, whole * 1e-9);
}

int main(int argc, char **argv)
{
    (void)argc;
    backend_cpu_reexec(argv);
    if (!backend_cuda)
        SKIP("the CUDA backend is not linked");
    for (int i = 0; i < COUNT(shapes); i++)
        test_model(&shapes[i]);
    test_memory();
    return check_report();
}
