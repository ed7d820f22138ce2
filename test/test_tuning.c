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
            layout_rates(l, 0.75, frozen, POSITION_LEARNED);
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
static void test_training(int opt, int frozen, int position)
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
                 .position = position,
                 .opt = {opt, 0.9, 0.99, 1e-8, 0.9, 0.1, 0.5}};
    Model *m = vit_create(&c, &plan, backend_cpu());
    const Layout *l = m->layout;
    real *was = xcalloc((size_t)l->n_own, sizeof *was), *is = xcalloc((size_t)l->n_own, sizeof *is);
    CHECK(vit_init(m, "torch", 3, 0.1, 1, &e), "%s", e.what);
    vit_set_positions(m);
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
            bool fixed = position != POSITION_LEARNED && strcmp(p->name, "pos_embed") == 0;
            CHECK(same == (fixed || rate_of(p->name, 0.5, frozen) == 0),
                  "optimiser %d, %d frozen, %s: %s", opt, frozen, p->name,
                  same ? "has not moved" : "has moved");
        }
    }
    real table[2 * 16]; /* of the class token, and the first patch */
    param_positions(&c, position ? position : POSITION_SINCOS, 0, COUNT(table), table);
    units_read(&m->own, m->own.ema, l->param[1].offset, COUNT(table), is);
    CHECK(!strcmp(l->param[1].name, "pos_embed") &&
              (memcmp(table, is, sizeof table) == 0) == (position != POSITION_LEARNED),
          "position %d: not the positions of its table", position);
    CHECK(isfinite(vit_result(m, 0)->state.grad_norm) && vit_result(m, 0)->state.grad_norm > 0);
    free(was);
    free(is);
    vit_free(m);
}

/* ---- fixed positions ---- */

/* timm 1.0's build_sincos2d_pos_embed([2, 3], dim=16), whose quarters are sin y, sin x, cos y,
 * cos x: each is 0 or 1 where its coordinate is 0, else one of these rows. */
static const double timm_sin[3][4] = {{0, 0, 0, 0},
                                      {0.841471, 0.09983342, 0.009999833, 0.0009999999},
                                      {0.9092974, 0.1986693, 0.01999867, 0.001999999}};
static const double timm_cos[3][4] = {{1, 1, 1, 1},
                                      {0.5403023, 0.9950042, 0.99995, 0.9999995},
                                      {-0.4161468, 0.9800666, 0.9998, 0.999998}};
/* The last row of big_vision's posemb_sincos_2d(2, 3, 16), by numpy in double. */
static const double big_vision[16] = {
    9.09297427e-01, 9.26985008e-02, 4.30885605e-03, 1.99999999e-04, -4.16146837e-01, 9.95694224e-01,
    9.99990717e-01, 9.99999980e-01, 8.41470985e-01, 4.63992235e-02, 2.15443302e-03,  9.99999998e-05,
    5.40302306e-01, 9.98922976e-01, 9.99997679e-01, 9.99999995e-01};

static void test_positions(void)
{
    enum { C = 16, ROWS = 2 + 6 };
    real all[ROWS * C], some[5];
    Config c = vit_config_default();
    c.image_h = 8, c.image_w = 12, c.patch = 4, c.width = C, c.cls_tokens = 2;
    param_positions(&c, POSITION_SINCOS, 0, ROWS * C, all);
    for (int i = 0; i < ROWS * C; i++) {
        int patch = i / C - 2, part = i % C / 4, k = i % 4, x = patch % 3, y = patch / 3;
        const double(*table)[4] = part % 2 ? timm_cos : timm_sin;
        double want = patch < 0 ? 0 : table[part < 2 ? x : y][k];
        CHECK(fabs((double)all[i] - want) < 1e-6, "row %d, column %d: %g", i / C, i % C,
              (double)all[i]);
    }
    param_positions(&c, POSITION_SINCOS, 77, COUNT(some), some);
    CHECK(memcmp(some, all + 77, sizeof some) == 0);
    param_positions(&c, POSITION_BIG_VISION, 0, ROWS * C, all);
    for (int i = 0; i < C; i++)
        CHECK(fabs((double)all[(ROWS - 1) * C + i] - big_vision[i]) < 1e-6, "column %d: %g", i,
              (double)all[(ROWS - 1) * C + i]);
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
    test_positions();
    test_flops();
    backend_cpu()->init(&(Device){.threads = 1, .type = F32, .ranks = 1});
    for (int opt = OPT_ADAMW; opt <= OPT_LAMB; opt++)
        for (int frozen = 0; frozen <= LAYERS + 2; frozen++)
            test_training(opt, frozen, (opt + frozen) % 3);
    test_weights();
    files_end();
    return check_report();
}
