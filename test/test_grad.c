/* test_grad: every gradient of every variation of the model against finite differences, in double.
 *
 * For each parameter w the loss is evaluated at w +- e and w +- 2e; the four-point formula
 * (8 (L(w+e) - L(w-e)) - (L(w+2e) - L(w-2e))) / 12e is exact to e^4. Gate: relative L2 of 1e-6 per
 * tensor. Masks of dropout are functions of counters, so the loss is a smooth function of w with
 * them too. The batch is made of two micro-batches, so that the sum over them is checked as well.
 */
#include "vit.h"
#include "check.h"
#include "keys.h"
#include "util/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double gate = 1e-6;
static const char *filter; /* check variations whose name contains this (mutation runs use it) */

typedef struct {
    const char *name;
    const char *set;           /* settings that differ from the base case: "key=value ..." */
    bool streams, mix, sparse; /* sparse: a tensor's every 7th element, where all would take long */
} Variation;

static const Variation variations[] = {
    {"base", "", 0, 0, 0},
    {"every row of the last block", "", 1, 0, 0},
    {"tanh GELU, mean pooling, no class token", "act=gelu_tanh pool=gap cls_tokens=0", 0, 0, 0},
    {"8 class tokens, no patch bias, pre-logits", "cls_tokens=8 patch_bias=false representation=5",
     0, 0, 0},
    {"mean pooling beside a class token, sigmoid", "pool=gap loss=sigmoid", 0, 0, 0},
    {"layer scale and pre-norm", "layer_scale=true norm_pre=true eps=1e-5", 0, 0, 0},
    {"layer scale, every row", "layer_scale=true", 1, 0, 0},
    {"rectangular image, one head, odd sizes",
     "image_h=6 image_w=9 patch=3 width=7 heads=1 mlp=11 classes=3", 0, 0, 0},
    {"dropout, attention dropout, drop path", "dropout=0.2 attention_dropout=0.3 drop_path=0.3", 0,
     0, 0},
    {"all dropouts with layer scale, mean pooling",
     "dropout=0.1 attention_dropout=0.1 drop_path=0.2 layer_scale=true pool=gap", 0, 0, 0},
    {"sigmoid, pre-logits, tanh GELU, dropout",
     "loss=sigmoid representation=6 act=gelu_tanh dropout=0.1", 1, 0, 0},
    {"quick GELU", "act=quick_gelu", 0, 0, 0},
    {"SwiGLU, dropout, mean", "act=swiglu mlp=5 dropout=0.2 pool=gap", 0, 0, 0},
    {"qk-norm", "qk_norm=true", 0, 0, 0},
    {"qk-norm, every row, dropout", "qk_norm=true attention_dropout=0.2 pool=gap", 1, 0, 0},
    {"fc_norm", "fc_norm=true pool=gap", 0, 0, 0},
    {"attention pooling, no class token", "pool=map cls_tokens=0", 0, 0, 0},
    {"attention pooling, tanh GELU, pre-logits", "pool=map act=gelu_tanh representation=5", 0, 0, 0},
    {"two heads of distilled tokens", "pool=cls_dist cls_tokens=2", 0, 0, 0},
    {"class token beside the mean, registers", "pool=cls_gap cls_tokens=3 representation=4", 0, 0,
     0},
    {"mixed images from bytes", "", 0, 1, 0},
    {"several blocks of queries",
     "image_h=36 image_w=34 patch=2 width=4 heads=2 mlp=4 layers=1 pool=gap attention_dropout=0.1",
     0, 0, 1},
};

enum { BATCH = 3, MICRO = 2 };

typedef struct {
    Model *m;
    const Variation *v;
    real *targets, *images, *grads;
    uint8_t *bytes;
    Augment mix[BATCH];
    double worst;
    char worst_name[96];
} Case;

static double normal(uint64_t seed, uint32_t i)
{
    Philox r = philox(seed, i, 0, 0, 0);
    return sqrt(-2 * log(rng_unit(r.v[0]))) * cos(2 * acos(-1) * rng_unit(r.v[1]));
}

/* One micro-batch: samples first..first+n-1 of the batch. Partners lie within it. */
static void set_micro(Case *c, int first, int n)
{
    Model *m = c->m;
    size_t pixels = (size_t)m->config.image_h * (size_t)m->config.image_w * VIT_CHANNELS;
    for (int b = 0; b < n; b++)
        c->mix[b] = (Augment){
            .lambda = 0.3f + 0.2f * (float)b, .partner = n - 1 - b, .cut = {1, 0, 2 * b, 3}};
    if (c->v->mix)
        vit_set_batch(m, n, c->bytes + (size_t)first * pixels, true,
                      c->targets + first * m->config.classes, c->mix);
    else
        vit_set_batch(m, n, c->images + (size_t)first * pixels, false,
                      c->targets + first * m->config.classes, NULL);
}

static double batch_loss(Case *c)
{
    double sum = 0;
    for (int first = 0; first < BATCH; first += MICRO) {
        int n = BATCH - first < MICRO ? BATCH - first : MICRO;
        real stats[3 * MICRO];
        StepState s = c->m->state;
        set_micro(c, first, n);
        s.sample0 = (uint32_t)first;
        vit_set_state(c->m, &s);
        vit_forward(c->m, true);
        vit_loss(c->m, 1.0 / BATCH);
        vit_stats(c->m, stats);
        for (int b = 0; b < n; b++)
            sum += (double)stats[3 * b];
    }
    return sum / BATCH;
}

static void check_tensor(Case *c, const Param *p)
{
    Units *own = &c->m->own;
    const double e = 3e-4;
    double diff = 0, norm = 0;
    const real *grad = c->grads + p->offset;
    for (long i = 0; i < p->n; i += c->v->sparse ? 7 : 1) {
        real w, moved;
        double loss[4];
        units_read(own, own->weights, p->offset + i, 1, &w);
        for (int k = 0; k < 4; k++) {
            moved = w + (real)(e * (k == 0 ? -2 : k == 1 ? -1 : k == 2 ? 1 : 2));
            units_write(own, own->weights, p->offset + i, 1, &moved);
            loss[k] = batch_loss(c);
        }
        units_write(own, own->weights, p->offset + i, 1, &w);
        double fd = (8 * (loss[2] - loss[1]) - (loss[3] - loss[0])) / (12 * e);
        diff += ((double)grad[i] - fd) * ((double)grad[i] - fd);
        norm += fd * fd;
    }
    if (is_key_bias(&c->m->config, p, p->n, p->n - 1)) {
        CHECK(sqrt(norm) < 1e-9 && sqrt(diff) < 1e-9, "%s: %s: the gradient is not zero: %.1e, %.1e",
              c->v->name, p->name, sqrt(norm), sqrt(diff));
        return;
    }
    double error = sqrt(diff) / sqrt(norm > 0 ? norm : 1);
    if (!(error <= c->worst)) {
        c->worst = error;
        snprintf(c->worst_name, sizeof c->worst_name, "%s", p->name);
    }
    CHECK(norm > 0, "%s: %s: the gradient is zero: nothing was checked", c->v->name, p->name);
    CHECK(error <= gate, "%s: %s: relative L2 %.2e is above %.0e", c->v->name, p->name, error,
          gate);
}

/* Parameters that make every path matter: weights of order 1/sqrt(fan in), gains around 1. */
static void draw(Units *own, const Param *p)
{
    double std = p->ndim == 2 ? 1.5 / sqrt((double)p->shape[1]) : p->ndim == 4 ? 0.3 : 0.3;
    double mean = p->role == ROLE_ONE || p->role == ROLE_LS ? 1 : 0;
    for (long i = 0; i < p->n; i++) {
        real w = (real)(mean + std * normal(5, (uint32_t)(p->offset + i)));
        units_write(own, own->weights, p->offset + i, 1, &w);
    }
}

static void configure(const Variation *v, Config *c)
{
    static const char base[] =
        "image_h=4 image_w=4 patch=2 width=6 layers=2 heads=2 mlp=8 classes=4";
    char text[512], *save = NULL;
    Error e;
    *c = vit_config_default();
    snprintf(text, sizeof text, "%s %s", base, v->set);
    for (char *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        char *value = strchr(word, '=');
        *value++ = 0;
        CHECK(vit_config_set(c, word, value, &e), "%s: %s", v->name, e.what);
    }
}

static void make_inputs(Case *c, const Config *config)
{
    long pixels = (long)config->image_h * config->image_w * VIT_CHANNELS, K = config->classes;
    c->images = xmalloc((size_t)(BATCH * pixels) * sizeof(real));
    c->bytes = xmalloc((size_t)(BATCH * pixels));
    c->targets = xmalloc((size_t)(BATCH * K) * sizeof(real));
    for (long i = 0; i < BATCH * pixels; i++) {
        c->images[i] = (real)normal(6, (uint32_t)i);
        c->bytes[i] = (uint8_t)(philox(7, (uint32_t)i, 0, 0, 0).v[0] & 255);
    }
    for (long b = 0; b < BATCH; b++) { /* soft targets that sum to one */
        double sum = 0;
        for (long k = 0; k < K; k++)
            sum += rng_unit(philox(8, (uint32_t)(b * K + k), 0, 0, 0).v[0]);
        for (long k = 0; k < K; k++)
            c->targets[b * K + k] =
                (real)(rng_unit(philox(8, (uint32_t)(b * K + k), 0, 0, 0).v[0]) / sum);
    }
}

static void check_variation(const Variation *v)
{
    Config config;
    Case c = {.v = v};
    configure(v, &config);
    Plan plan = {.max_batch = MICRO,
                 .batch = BATCH,
                 .training = true,
                 .float_images = true,
                 .keep_streams = v->streams};
    c.m = vit_create(&config, &plan, backend_cpu());
    const Layout *l = c.m->layout;
    for (int i = 0; i < l->tensors; i++)
        draw(&c.m->own, &l->param[i]);
    make_inputs(&c, &config);

    vit_begin_step(c.m, 11, 0, 77);
    for (int first = 0; first < BATCH; first += MICRO) {
        set_micro(&c, first, BATCH - first < MICRO ? BATCH - first : MICRO);
        vit_micro_step(c.m, first, BATCH, first + MICRO >= BATCH);
    }
    c.grads = xmalloc((size_t)l->n_padded * sizeof(real));
    units_read(&c.m->own, c.m->own.grads, 0, l->n_padded, c.grads);
    int before = check_failed;
    for (int i = 0; i < l->tensors; i++)
        check_tensor(&c, &l->param[i]);
    printf("%-48s %7ld parameters, worst %.1e %-26s %s\n", v->name, l->n_params, c.worst,
           c.worst_name, check_failed > before ? "FAILED" : "ok");
    vit_free(c.m);
    free(c.grads);
    free(c.images);
    free(c.bytes);
    free(c.targets);
}

/* The gradients of a step whose two micro-batches go forward and backward one after the other, or
 * both forward and then both backward, as a stage of a pipeline has them in flight. */
static real *gradients_of(int in_flight, size_t *bytes)
{
    static const Variation v = {.name = "in flight", .set = "dropout=0.2 drop_path=0.3"};
    Config config;
    Case c = {.v = &v};
    configure(&v, &config);
    Plan plan = {.max_batch = MICRO,
                 .batch = BATCH,
                 .in_flight = in_flight,
                 .training = true,
                 .float_images = true};
    c.m = vit_create(&config, &plan, backend_cpu());
    const Layout *l = c.m->layout;
    for (int i = 0; i < l->tensors; i++)
        draw(&c.m->own, &l->param[i]);
    make_inputs(&c, &config);
    vit_begin_step(c.m, 11, 0, 77);
    for (int micro = 0; micro < 2; micro++) {
        set_micro(&c, MICRO * micro, micro ? BATCH - MICRO : MICRO);
        vit_micro_forward(c.m, MICRO * micro, BATCH);
        if (in_flight == 1)
            vit_micro_backward(c.m, micro, micro == 1);
    }
    for (int micro = 0; micro < 2 && in_flight == 2; micro++)
        vit_micro_backward(c.m, micro, micro == 1);
    *bytes = (size_t)l->n_padded * sizeof(real);
    real *grads = xmalloc(*bytes);
    units_read(&c.m->own, c.m->own.grads, 0, l->n_padded, grads);
    vit_free(c.m);
    free(c.images);
    free(c.bytes);
    free(c.targets);
    return grads;
}

static void check_in_flight(void)
{
    size_t bytes;
    real *one = gradients_of(1, &bytes), *two = gradients_of(2, &bytes);
    CHECK(one[0] != 0 && memcmp(one, two, bytes) == 0,
          "micro-batches in flight disturb each other");
    free(one);
    free(two);
}

/* Chunks of a real model: every element of every tensor in one of them, and none across the edge of
 * two equal shards of its unit, however many ranks share it. */
static void check_chunks(void)
{
    static const int ranks[] = {2, 3, 8, 64};
    Config c = vit_config_default();
    Layout *l = layout_new(&c, DECAY_MATRICES, &WHOLE_MODEL);
    long covered = 0;
    int torn = 0, large = 0;
    for (int i = 0; i < l->chunks; i++) {
        const Chunk *k = &l->chunk[i];
        const Unit *unit = &l->unit[l->param[k->tensor].unit];
        covered += k->n;
        large += k->n < 1 || k->n > VIT_CHUNK;
        for (int r = 0; r < COUNT(ranks); r++) {
            long whole = (long)ranks[r] * VIT_CHUNK, at = k->offset - unit->offset;
            long shard = (unit->n + whole - 1) / whole * VIT_CHUNK;
            torn += at / shard != (at + k->n - 1) / shard;
        }
    }
    CHECK(covered == l->n_params, "chunks hold %ld of %ld parameters", covered, l->n_params);
    CHECK(torn == 0 && large == 0, "%d chunks in two shards, %d too large", torn, large);
    layout_free(l);
}

int main(int argc, char **argv)
{
    backend_cpu_reexec(argv);
    backend_cpu()->init(
        &(Device){.threads = 1, .ranks = 1}); /* the models are too small to share */
    filter = argc > 1 ? argv[1] : "";
    for (int i = 0; i < COUNT(variations); i++)
        if (strstr(variations[i].name, filter))
            check_variation(&variations[i]);
    check_in_flight();
    check_chunks();
    return check_report();
}
