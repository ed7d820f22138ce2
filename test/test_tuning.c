/* test_tuning.c - what is particular to fine-tuning: which parts learn and how fast, weights of
 * classes in the loss.
 */
#include "check.h"
#include "files.h"

#include "train/tuning.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 3 };

/* ---- what learns ---- */

static void test_freeze(void)
{
    static const struct {
        const char *flag;
        int units; /* -1: refused */
    } cases[] = {{"", 0},  {"none", 0}, {"0", 1},   {"2", 3},   {"3", 4},
                 {"4", -1}, {"-1", -1},  {"x", -1}, {"2x", -1}, {"head-only", LAYERS + 2}};
    for (int i = 0; i < COUNT(cases); i++) {
        Options o;
        Error e = {"", ""};
        int units = -1;
        options_init(&o);
        CHECK(options_set(&o, "freeze", cases[i].flag, "", &e));
        bool ok = tuning_frozen(&o, LAYERS, &units, &e);
        CHECK(ok == (cases[i].units >= 0) && (!ok || units == cases[i].units), "'%s': %d, %s",
              cases[i].flag, units, e.what);
        CHECK(ok || (*e.hint && *e.what), "'%s' is refused in silence", cases[i].flag);
        options_free(&o);
    }
}

/* Every chunk's rate, by its tensor's name alone, written out again. */
static double rate_of(const char *name, double decay, int frozen)
{
    int block, unit = LAYERS + 1;
    bool own = strcmp(name, "head.weight") == 0 || strcmp(name, "head.bias") == 0;
    if (sscanf(name, "blocks.%d.", &block) == 1)
        unit = block + 1;
    else if (strstr("cls_token pos_embed patch_embed.proj.weight patch_embed.proj.bias", name))
        unit = 0;
    if (unit < frozen && !own)
        return 0;
    double rate = 1;
    for (int u = unit; u < LAYERS + 1; u++)
        rate *= decay;
    return rate;
}

static void test_rates(void)
{
    static const Cut cuts[] = {{.tp = 1, .shards = 1},
                               {.tp = 2, .tp_rank = 1, .shards = 1},
                               {.tp = 1, .shards = 4, .shard = 2},
                               {.tp = 1, .shards = 1, .first = 2, .end = 4}};
    Config c = vit_config_default();
    c.layers = LAYERS;
    for (int i = 0; i < COUNT(cuts); i++)
        for (int frozen = 0; frozen <= LAYERS + 2; frozen++) {
            Layout *l = layout_new(&c, DECAY_MATRICES, &cuts[i]);
            int wrong = 0;
            for (int k = 0; k < l->chunks; k++)
                wrong += l->chunk[k].rate != 1;
            CHECK(wrong == 0, "cut %d: %d chunks are not at the learning rate at first", i, wrong);
            layout_rates(l, 0.75, frozen);
            for (int k = 0; k < l->chunks; k++) {
                double want = rate_of(l->param[l->chunk[k].tensor].name, 0.75, frozen);
                wrong += fabs((double)l->chunk[k].rate - want) > 1e-7;
            }
            CHECK(wrong == 0, "cut %d, %d frozen: %d of %d rates", i, frozen, wrong, l->chunks);
            CHECK(l->lowest == (frozen <= LAYERS ? frozen : LAYERS + 1), "lowest %d", l->lowest);
            layout_free(l);
        }
}

/* What is frozen keeps its bits, whatever the optimiser and the decay, and all else moves; the norm
 * that clips is that of what learns, and nothing but a backward pass as far as that is needed. */
static void test_training(int opt, int frozen)
{
    enum { B = 2, K = 3, PIXELS = 8 * 8 * VIT_CHANNELS };
    static uint8_t images[B * PIXELS];
    static const real targets[B * K] = {1, 0, 0, 0, 1, 0};
    Config c = vit_config_default();
    Error e;
    c.image_h = c.image_w = 8;
    c.patch = 4, c.width = 16, c.layers = LAYERS, c.heads = 2, c.mlp = 32, c.classes = K;
    for (int i = 0; i < COUNT(images); i++)
        images[i] = (uint8_t)(i * 37);
    Plan plan = {.max_batch = B,
                 .training = true,
                 .ema = true,
                 .decay = DECAY_ALL,
                 .layer_decay = 0.5,
                 .frozen = frozen,
                 .opt = {opt, 0.9, 0.99, 1e-8, 0.9, 0.1, 0.5}};
    Model *m = vit_create(&c, &plan, backend_cpu());
    const Layout *l = m->layout;
    real *was = xcalloc((size_t)l->n_own, sizeof *was), *is = xcalloc((size_t)l->n_own, sizeof *is);
    CHECK(vit_init(m, "torch", 3, 0.1, 1, &e), "%s", e.what);
    units_read(&m->own, m->own.weights, 0, l->n_own, was);
    for (int step = 0; step < 3; step++) {
        vit_begin_step(m, (uint32_t)step, 0.01, 1);
        vit_set_batch(m, B, images, true, targets, NULL);
        vit_micro_step(m, 0, B, true);
        vit_update(m);
    }
    const dev *const buffers[] = {m->own.weights, m->own.ema};
    for (int b = 0; b < COUNT(buffers); b++) {
        units_read(&m->own, buffers[b], 0, l->n_own, is);
        for (int t = 0; t < l->tensors; t++) {
            const Param *p = &l->param[t];
            long at = p->offset;
            bool same = memcmp(was + at, is + at, (size_t)p->n * sizeof *is) == 0;
            CHECK(same == (rate_of(p->name, 0.5, frozen) == 0), "optimiser %d, %d frozen, %s: %s",
                  opt, frozen, p->name, same ? "has not moved" : "has moved");
        }
    }
    CHECK(isfinite(vit_result(m, 0)->state.grad_norm) && vit_result(m, 0)->state.grad_norm > 0);
    free(was);
    free(is);
    vit_free(m);
}

static void test_flops(void)
{
    Config c = vit_config_default();
    Layout l = {.lowest = 0};
    Model m = {.layout = &l};
    c.layers = LAYERS;
    m.config = c;
    const double times[] = {3, 3, 1 + 2 * 2.0 / 3, 1 + 2 / 3.0, 1}; /* by the lowest unit */
    for (l.lowest = 0; l.lowest <= LAYERS + 1; l.lowest++)
        CHECK(fabs(tuning_flops(&m) / vit_forward_flops(&c) - times[l.lowest]) < 1e-12, "%d",
              l.lowest);
}

/* ---- weights of classes ---- */

/* DIR/a with 6 pictures, DIR/b with 2, DIR/c with 4. */
static Dataset *open_unequal(void)
{
    static const int images[] = {6, 2, 4};
    Error e = {"", ""};
    const char *dir = at(temporary, "unequal");
    for (int k = 0; k < COUNT(images); k++) {
        char *folder = xasprintf("%s/%c", dir, 'a' + k);
        CHECK(make_dirs(folder, &e), "%s", e.what);
        for (int i = 0; i < images[k]; i++) {
            char *path = xasprintf("%s/%d.ppm", folder, i);
            CHECK(save_text(path, "P6 1 1 255 abc", &e), "%s", e.what);
            free(path);
        }
        free(folder);
    }
    Dataset *d = data_open(
        &(DataOptions){.spec = dir, .train = true, .images = {.out_h = 1, .out_w = 1}}, &e);
    CHECK(d != NULL, "%s", e.what);
    return d;
}

static void test_weights(void)
{
    static const struct {
        const char *lines;
        double w[3]; /* before they are scaled; w[0] < 0: refused */
    } cases[] = {{"1\n3\n2\n", {1, 3, 2}}, {"a 1\nb\t0.5 \nc 0", {1, 0.5, 0}},
                 {"1\n3\n", {-1}},         {"1\n3\n2\n1\n", {-1}},
                 {"a 1\nc 2\nb 3\n", {-1}}, {"1\n-3\n2\n", {-1}},
                 {"1\nx\n2\n", {-1}},      {"0\n0\n0\n", {-1}},
                 {"1\n\n2\n", {-1}}};
    const double n[] = {6, 2, 4}, balanced[] = {12 / 18.0, 12 / 6.0, 12 / 12.0};
    Dataset *d = open_unequal();
    Error e = {"", ""};
    double w[4];
    CHECK(class_weights("balanced", d, 4, w, &e), "%s", e.what);
    for (int k = 0; k < 3; k++)
        CHECK(fabs(w[k] - balanced[k]) < 1e-12, "class %d: %g, not %g", k, w[k], balanced[k]);
    CHECK(w[3] == 1, "a class that the data does not have: %g", w[3]);
    for (int i = 0; i < COUNT(cases); i++) {
        double mean = 0;
        bool refused = cases[i].w[0] < 0;
        const char *path = at(temporary, "weights.txt");
        CHECK(save_text(path, cases[i].lines, &e), "%s", e.what);
        e = (Error){"", ""};
        bool ok = class_weights(path, d, 3, w, &e);
        CHECK(ok == !refused && (ok || (*e.what && *e.hint)), "case %d: %s", i, e.what);
        for (int k = 0; k < 3; k++)
            mean += n[k] * cases[i].w[k] / 12;
        for (int k = 0; ok && k < 3; k++)
            CHECK(fabs(w[k] - cases[i].w[k] / mean) < 1e-12, "case %d, class %d: %g", i, k, w[k]);
    }
    CHECK(!class_weights("/nowhere/w.txt", d, 3, w, &e));
    data_close(d);
    real targets[] = {1, 0, 0, (real)0.25, (real)0.25, (real)0.5};
    weigh_targets(targets, 2, 3, (double[]){2, 4, 8});
    CHECK(targets[0] == 2 && targets[1] == 0 && targets[3] == (real)0.5 && targets[4] == 1 &&
          targets[5] == 4);
}

int main(int argc, char **argv)
{
    if (!files_begin(argc, argv))
        return check_report();
    test_freeze();
    test_rates();
    test_flops();
    backend_cpu()->init(&(Device){.threads = 1, .type = F32, .ranks = 1});
    for (int opt = OPT_ADAMW; opt <= OPT_LAMB; opt++)
        for (int frozen = 0; frozen <= LAYERS + 2; frozen++)
            test_training(opt, frozen);
    test_weights();
    files_end();
    return check_report();
}
