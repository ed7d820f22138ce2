/* test_layouts [--backend cpu|cuda] [--type fp32|bf16] [RANKS] [all] [case=N] [part=I/N]: ranks that
 * share a model, in every layout, train as one process does.
 *
 * The program starts itself again as RANKS processes (4), which go through a list of cases: layout
 * (tensor parallel x stages x data parallel, ZeRO), micro-batches, recomputation, model, optimiser.
 * By default as few cases as have every pair of these settings in one of them; `all`: every
 * combination of what meets in a pass, with the optimiser's settings taking turns. `part`: each Nth
 * of these, from the Ith on.
 *
 * In each case every rank trains up to three models for a few steps:
 *   shared     the one under test
 *   reference  the same part of a tensor parallel model, and all else alone: one stage, one data
 *              parallel rank, nothing recomputed. It computes all ranks' micro-batches one by one,
 *              and their gradients are added here, on the host, in the order that dist.h and
 *              backend.h promise. `shared` must have the same bits: gradients of every step, norm,
 *              losses, weights, moments, average, logits of evaluations.
 *   whole      where tp > 1, the model by one rank. Sums of products are cut in two by tensor
 *              parallelism, so that `reference` is held to a gate (near()).
 * Ranks of a tensor parallel group must agree on the bits of what each of them has, and a step must
 * send as many bytes as the formulas below say.
 *
 * Order: cases, the models, training, comparing, bytes, main.
 */
#include "vit.h"
#include "keys.h"
#include "team.h"
#include "util/rng.h"

#include <unistd.h>

enum { LAYERS = 4, MICRO = 2, MOST_MICROS = 5, MOST_RANKS = 8 };
enum { IMAGES = MOST_RANKS * MICRO * MOST_MICROS, SIDE = 16, CLASSES = 8 };
static const double lr = 1e-3;
/* Some gradients cancel but for rounding (3e-7 in a tensor of 0.1). Adam divides them by themselves,
 * so that with its usual 1e-8 the order of a sum would decide a step. */
static const double adam_eps = 1e-4;

/* ------------------------------------------------------------------------------------------------
 * Cases: one value of each factor */

enum { SPREAD, MICROS, STAGES, AGAIN, MODEL, NOISE, RATES, OPTIMISER, DECAY, EMA, OFFLOAD, REDUCE, ROUND };
enum { FACTORS = ROUND + 1 };
enum { PASS_FACTORS = RATES + 1 }; /* these meet in a forward or backward pass */

typedef struct {
    int tp, pp, zero;
    bool reshard;
    Split groups; /* connected */
} Spread;
static Spread spread[64];

static const int micros[] = {1, 2, MOST_MICROS}; /* of each data parallel rank */
static const struct {
    const char *name;
    Recompute recompute;
} again[] = {
    {"none", {RECOMPUTE_NONE, 0, 0, 0}},
    {"selective", {RECOMPUTE_SELECTIVE, 0, 0, 0}},
    {"full", {RECOMPUTE_FULL, 0, 0, 0}},
    {"full, groups of 2", {RECOMPUTE_FULL, 0, 2, 0}},
    {"full, block 1", {RECOMPUTE_FULL, 1, 0, 0}},
    {"full, keep mid", {RECOMPUTE_FULL, 0, 0, 1u << ACT_mid}},
    {"selective, 2 blocks", {RECOMPUTE_SELECTIVE, 2, 0, 0}},
    {"full, 3 blocks in groups of 2", {RECOMPUTE_FULL, 3, 2, 0}},
    {"light", {RECOMPUTE_LIGHT, 0, 0, 0}},
    {"light, 2 blocks", {RECOMPUTE_LIGHT, 2, 0, 0}},
};
/* Where a GPU makes the tanh GELU of 16-bit types inside the product it is that of the sum before it
 * is rounded; one that is made again is that of the sum as stored. */
static bool is_remade(const Recompute *r, const char *setting)
{
    bool remade = r->kind == RECOMPUTE_SELECTIVE || r->kind == RECOMPUTE_LIGHT;
    return under.type != F32 && remade && strcmp(setting, "gelu_tanh") == 0;
}

/* Settings of config.h on top of the tiny model's; tp 4 does not divide 6 classes, nor any tp 5. */
static const struct {
    const char *name, *set[8];
} models[] = {
    {"cls", {0}},
    {"gap", {"pool", "gap", "cls_tokens", "0"}},
    {"layer scale", {"layer_scale", "true", "act", "gelu_tanh"}},
    {"norm_pre", {"norm_pre", "true", "pool", "gap"}},
    {"representation", {"representation", "24", "classes", "6"}},
    {"swiglu, qk_norm", {"act", "swiglu", "qk_norm", "true"}},
    {"attention pooling", {"pool", "map", "cls_tokens", "0", "act", "quick_gelu"}},
    {"fc_norm", {"pool", "gap", "fc_norm", "true"}},
    {"cls_gap", {"pool", "cls_gap", "cls_tokens", "2"}},
    {"5 classes, 3 class tokens", {"classes", "5", "cls_tokens", "3", "loss", "sigmoid"}},
};
/* What learns, and how fast (layout_rates). */
static const struct {
    const char *name;
    double decay;
    int frozen;
} rates[] = {{"", 0, 0},
             {", layer decay", 0.5, 0},
             {", embedding frozen", 1, 1},
             {", 3 blocks frozen", 0.75, 4},
             {", head alone", 1, LAYERS + 2}};
static const char *const optimisers[] = {
    [OPT_ADAMW] = "adamw", [OPT_ADAM] = "adam", [OPT_SGD] = "sgd", [OPT_LAMB] = "lamb"};

static int counts[FACTORS] = {
    [MICROS] = COUNT(micros), [STAGES] = 2,    [AGAIN] = COUNT(again), [MODEL] = COUNT(models),
    [NOISE] = 2,              [RATES] = COUNT(rates), [OPTIMISER] = 4, [DECAY] = 3,
    [EMA] = 2,                [OFFLOAD] = 2,   [REDUCE] = 2,           [ROUND] = 2};

typedef struct {
    int value[FACTORS];
} Case;

/* All layouts of the ranks; those that differ in ZeRO alone have the same groups. */
static void spread_ranks(void)
{
    static const struct {
        int zero;
        bool reshard;
    } zeros[] = {{0, true}, {1, true}, {2, true}, {3, true}, {3, false}};
    int n = 0;
    for (int tp = 1; tp <= team.ranks; tp *= 2)
        for (int pp = 1; pp * tp <= team.ranks; pp *= 2)
            for (int z = 0; z < (pp * tp < team.ranks ? COUNT(zeros) : 1); z++)
                spread[n++] = (Spread){.tp = tp,
                                       .pp = pp,
                                       .zero = zeros[z].zero,
                                       .reshard = zeros[z].reshard};
    counts[SPREAD] = n;
}

static bool is_possible(const Case *c)
{
    const int *v = c->value;
    const Spread *s = &spread[v[SPREAD]];
    bool dp = s->tp * s->pp < team.ranks;
    return (s->pp == 2 || !v[STAGES]) && (dp || !v[REDUCE]) && (under.type == BF16 || !v[ROUND]);
}

/* Every combination of the factors that meet in a pass. Returns how many cases there are. */
static int all_cases(Case **cases)
{
    int n = 0, product = 1;
    for (int f = 0; f < PASS_FACTORS; f++)
        product *= counts[f];
    Case *list = *cases = xcalloc((size_t)product, sizeof *list);
    for (int i = 0; i < product; i++) {
        Case c = {{0}};
        for (int f = 0, rest = i; f < PASS_FACTORS; rest /= counts[f++])
            c.value[f] = rest % counts[f];
        if (!is_possible(&c))
            continue;
        for (int f = PASS_FACTORS; f < FACTORS; f++) {
            uint32_t random = rng_block(7, (uint32_t)n, (uint32_t)f, 0, 0, 0).v[0];
            c.value[f] = (int)(random % (uint32_t)counts[f]);
            if (!is_possible(&c))
                c.value[f] = 0;
        }
        list[n++] = c;
    }
    return n;
}

enum { MOST_VALUES = 32, MOST_PAIRWISE = 1 << 10 };
static bool covered[FACTORS][MOST_VALUES][FACTORS][MOST_VALUES];

/* Pairs of values that no case has had so far; marks them. */
static int new_pairs(const Case *c, bool mark)
{
    int n = 0;
    for (int f = 0; f < FACTORS; f++)
        for (int g = 0; g < f; g++) {
            bool *seen = &covered[f][c->value[f]][g][c->value[g]];
            n += !*seen;
            *seen |= mark;
        }
    return n;
}

/* Greedily: of many random cases the one with the most new pairs, until none has any. */
static int pairwise_cases(Case **cases)
{
    enum { TRIES = 3000 };
    Case *list = *cases = xcalloc(MOST_PAIRWISE, sizeof *list);
    for (int n = 0;; n++) {
        Case best = {{0}};
        int most = 0;
        for (int i = 0; i < TRIES; i++) {
            Case c;
            for (int f = 0; f < FACTORS; f++) {
                Philox r = rng_block(1, (uint32_t)i, (uint32_t)f, (uint32_t)n, 0, 0);
                c.value[f] = (int)(r.v[0] % (uint32_t)counts[f]);
            }
            int pairs = is_possible(&c) ? new_pairs(&c, false) : 0;
            if (pairs > most) {
                most = pairs;
                best = c;
            }
        }
        if (!most)
            return n;
        if (n == MOST_PAIRWISE)
            die("enlarge MOST_PAIRWISE", "test_layouts: more than %d cases", n);
        new_pairs(&best, true);
        list[n] = best;
    }
}

static void describe(const Case *c, char *out, size_t size)
{
    const int *v = c->value;
    const Spread *s = &spread[v[SPREAD]];
    snprintf(out, size, "tp %d pp %d%s dp %d zero %d%s, %d micros, recompute %s, %s%s%s, %s decay %d%s%s%s%s",
             s->tp, s->pp, v[STAGES] ? " (3,1)" : "", team.ranks / s->tp / s->pp, s->zero,
             s->reshard ? "" : " kept", micros[v[MICROS]], again[v[AGAIN]].name,
             models[v[MODEL]].name, v[NOISE] ? " with noise" : "", rates[v[RATES]].name, optimisers[v[OPTIMISER]],
             v[DECAY], v[EMA] ? ", average" : "", v[OFFLOAD] ? ", offload" : "",
             v[REDUCE] ? ", reduced in bf16" : "", v[ROUND] ? ", stochastic" : "");
}

/* ------------------------------------------------------------------------------------------------
 * The models of a case */

static struct {
    const Case *c;
    char name[320];
    int number;
    Config config;
    Split split;
    Model *shared, *reference, *whole; /* whole is NULL where it would be the reference */
    int micros, mine, batch, step;     /* mine: images of a data parallel rank's part of a step */
    int failures;
    double sent; /* bytes of the newest step */
} on; /* the case at hand */
static double worst_near; /* of all cases */

static uint8_t images[IMAGES][SIDE * SIDE * VIT_CHANNELS];
static real targets[IMAGES * CLASSES];
static Augment augment[IMAGES];
static real *host[3]; /* room for all parameters */

/* Pictures, soft targets that add up to 1, and something to do to each picture. */
static void draw_inputs(void)
{
    for (int i = 0; i < IMAGES; i++) {
        double sum = 0;
        for (int j = 0; j < COUNT(images[i]); j++)
            images[i][j] = (uint8_t)rng_block(2, (uint32_t)j, (uint32_t)i, 0, 0, 0).v[0];
        for (int k = 0; k < CLASSES; k++) {
            targets[i * CLASSES + k] = (real)rng_unit(rng_block(3, (uint32_t)k, (uint32_t)i, 0, 0, 0).v[0]);
            sum += (double)targets[i * CLASSES + k];
        }
        for (int k = 0; k < CLASSES; k++)
            targets[i * CLASSES + k] /= (real)sum;
        augment[i] = (Augment){.lambda = 0.5f + 0.1f * (float)(i % 4),
                               .erase = i % 2 ? ERASE_NOISE : ERASE_NONE,
                               .erased = {2, i % 8, 5, 7},
                               .cut = {i % 5, 3, i % 3 ? 0 : 6, 9}};
    }
}

static Config tiny(const Case *c)
{
    static const char *const base[] = {"image_h", "16", "image_w", "16", "patch", "8", "width", "32", "layers", "4",
                                       "heads", "4", "mlp", "64", "classes", "8", NULL};
    static const char *const noise[] = {"dropout", "0.1", "attention_dropout", "0.2", "drop_path", "0.3", NULL};
    Config config = vit_config_default();
    Error e;
    const char *const *lists[] = {base, models[c->value[MODEL]].set, c->value[NOISE] ? noise : NULL};
    for (int l = 0; l < COUNT(lists); l++)
        for (const char *const *s = lists[l]; s && *s; s += 2)
            if (!is_remade(&again[c->value[AGAIN]].recompute, s[1]) && !vit_config_set(&config, s[0], s[1], &e))
                die(NULL, "test_layouts: %s", e.what);
    return config;
}

/* The split of a case; its groups are connected the first time, by all ranks. */
static Split split_of(Spread *s, const Config *c, bool uneven)
{
    Split split;
    Error e;
    if (!split_new(&split, c, team.rank, team.ranks, s->tp, s->pp, uneven ? "3,1" : "", s->zero, &e))
        die(NULL, "test_layouts: %s", e.what);
    split.reshard = s->reshard;
    for (Spread *other = spread; !s->groups.world.ranks; other++)
        if (other == s || (other->groups.world.ranks && other->tp == s->tp && other->pp == s->pp && !other->zero == !s->zero)) {
            s->groups = other == s ? split : other->groups;
            if (other == s)
                split_connect(&s->groups, under.be);
        }
    split.world.group = s->groups.world.group;
    split.tp.group = s->groups.tp.group;
    split.dp.group = s->groups.dp.group;
    split.pp.group = s->groups.pp.group;
    split.back = s->groups.back;
    split.parts = s->groups.parts;
    return split;
}

/* This rank's part of the tensor parallel model alone. */
static Split tp_alone(const Split *s, const Config *c)
{
    Split alone;
    split_new(&alone, c, s->tp.rank, s->tp.ranks, s->tp.ranks, 1, "", 0, NULL);
    alone.world.group = alone.tp.group = alone.parts = s->tp.group;
    return alone;
}

static Model *create(const Split *split, bool shared)
{
    const int *v = on.c->value;
    Error e;
    Plan plan = {.max_batch = MICRO,
                 .batch = on.batch,
                 .split = split,
                 .type = under.type,
                 .training = true,
                 .ema = v[EMA],
                 .decay = v[DECAY],
                 .layer_decay = rates[v[RATES]].decay,
                 .frozen = rates[v[RATES]].frozen,
                 .clip = 0.05,
                 .stochastic = v[ROUND],
                 .opt = {v[OPTIMISER], 0.9, 0.99, adam_eps, 0.9, 0.05, 0.8}};
    if (shared) {
        plan.recompute = again[v[AGAIN]].recompute;
        plan.offload = v[OFFLOAD];
    }
    Model *m = vit_create(&on.config, &plan, under.be);
    if (!vit_init(m, "torch", 5, 0.1, 0.7, &e))
        die(NULL, "test_layouts: %s", e.what);
    return m;
}

/* Initial values have zeros and ones; from here on every tensor has numbers of its own. */
static void disturb(Model *m)
{
    Units *u = &m->own;
    const Layout *l = m->layout;
    for (int t = 0; t < l->tensors; t++) {
        long begin, end, at = units_kept(u, &l->param[t], false, &begin, &end);
        units_read(u, u->weights, at, end - begin, host[0]);
        for (Run r = {.part = begin}; r.part < end; r.part += r.n) {
            r = param_run(l, &l->param[t], r.part, end);
            for (long i = 0; i < r.n; i++) {
                Philox random = rng_block(4, (uint32_t)(r.whole + i), (uint32_t)t, 0, 0, 0);
                host[0][r.part - begin + i] += (real)(0.2 * rng_unit(random.v[0]) - 0.1);
            }
        }
        units_write(u, u->weights, at, end - begin, host[0]);
    }
}

/* ------------------------------------------------------------------------------------------------
 * Training */

static void set_images(Model *m, int first, int n)
{
    bool noise = on.c->value[NOISE];
    int K = on.config.classes;
    Augment mixed[MICRO];
    real soft[MICRO * CLASSES];
    for (int i = 0; i < n; i++) {
        mixed[i] = augment[first + i];
        mixed[i].partner = (i + 1) % n;
        memcpy(&soft[i * K], &targets[(first + i) * CLASSES], (size_t)K * sizeof(real));
    }
    bool reads = split_reads(&m->split); /* the others have it from this one */
    vit_set_batch(m, n, reads ? images[first] : NULL, true, reads ? soft : NULL,
                  m->split.first == 0 && noise ? mixed : NULL);
}

/* Micro-batch `micro` of data parallel rank `rank`: its first image; how many. The last one is
 * smaller. */
static int images_of(int rank, int micro, int *n)
{
    int left = on.mine - micro * MICRO;
    *n = left < MICRO ? left : MICRO;
    return on.mine * rank + micro * MICRO;
}

static void shared_micro(void *ctx, int micro, bool backward)
{
    Model *m = ctx;
    int n, first = images_of(m->split.dp.rank, micro, &n);
    if (backward) {
        vit_micro_backward(m, micro, micro == on.micros - 1);
        return;
    }
    set_images(m, first, n);
    vit_tell(m, (real[TALLY]){1, (real)(micro + team.rank)});
    vit_micro_forward(m, first, on.batch);
}

static void round_all(real *x, long n)
{
    for (long i = 0; on.split.reduce_type == BF16 && i < n; i++)
        x[i] = (real)round_to(BF16, (double)x[i]);
}

static void add(real *sum, const real *x, long n, bool first)
{
    for (long i = 0; i < n; i++)
        sum[i] = first ? x[i] : sum[i] + x[i];
}

/* All ranks' micro-batches, one by one. ZeRO 2 and 3 add up each micro-batch over the ranks, and
 * then the micro-batches; else each rank adds up its own first. Sums over ranks are made in full
 * precision of what was rounded to reduce_type, and are rounded to it themselves. */
static void add_gradients(Model *m)
{
    bool by_micro = on.split.zero >= 2;
    int outer = by_micro ? on.micros : on.split.dp.ranks;
    int inner = by_micro ? on.split.dp.ranks : on.micros;
    long n = m->layout->n_own;
    real *total = host[0], *sum = host[1], *one = host[2];
    for (int o = 0; o < outer; o++) {
        for (int i = 0; i < inner; i++) {
            int images, first = images_of(by_micro ? i : o, by_micro ? o : i, &images);
            m->begun = 0; /* as if it were the step's only one */
            set_images(m, first, images);
            vit_micro_step(m, first, on.batch, true);
            units_read(&m->own, m->own.grads, 0, n, one);
            if (by_micro)
                round_all(one, n);
            add(sum, one, n, i == 0);
        }
        round_all(sum, n);
        add(total, sum, n, o == 0);
    }
    if (!by_micro)
        round_all(total, n);
    units_write(&m->own, m->own.grads, 0, n, total);
}

/* ------------------------------------------------------------------------------------------------
 * Comparing */

/* A check of the case at hand, of which a few failures are enough. */
__attribute__((format(printf, 2, 3))) static void same(bool ok, const char *fmt, ...)
{
    char what[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    if (ok || on.failures++ < 4)
        check_that(ok, on.name, on.number, what, " (rank %d, step %d)", team.rank, on.step);
}

/* Nobody writes the gradients of units before this one. */
static int lowest(void)
{
    int frozen = rates[on.c->value[RATES]].frozen;
    return frozen < LAYERS + 1 ? frozen : LAYERS + 1;
}

/* This rank's shards, in `mine` of `shared`, against the same elements of the reference's: of units
 * from `unit` on. */
static void same_bits(const char *what, const dev *mine, const dev *theirs, int unit)
{
    const Units *a = &on.shared->own, *b = &on.reference->own;
    const Layout *l = a->layout;
    int wrong = 0;
    const char *name = "";
    same(!mine == !theirs, "%s: one of two has it", what);
    if (!mine || !theirs)
        return;
    units_read(a, mine, 0, l->n_own, host[0]);
    units_read(b, theirs, 0, b->layout->n_own, host[1]);
    for (int t = 0; t < l->tensors; t++) {
        long begin, end, at = units_kept(a, &l->param[t], false, &begin, &end);
        long from = b->layout->param[t].offset + begin;
        size_t bytes = (size_t)(end - begin) * sizeof(real);
        bool differs = l->param[t].unit >= unit && memcmp(&host[0][at], &host[1][from], bytes) != 0;
        wrong += differs;
        name = differs ? l->param[t].name : name;
    }
    same(wrong == 0, "%s: %d tensors have other bits, the last is %s", what, wrong, name);
}

/* The reference's part of each tensor against the whole one: relative L2 without key biases, and
 * the largest difference with them. */
static void near(const char *what, const dev *part, const dev *all, double gate, double furthest,
                 int unit)
{
    const Layout *l = on.reference->layout, *w = on.whole->layout;
    double worst = 0, far = 0;
    const char *name = "";
    if (!part)
        return;
    units_read(&on.reference->own, part, 0, l->n_own, host[0]);
    units_read(&on.whole->own, all, 0, w->n_own, host[1]);
    for (int t = 0; t < l->tensors; t++) {
        const Param *p = &l->param[t];
        double d = 0, s = 0;
        for (Run r = {0}; p->unit >= unit && r.part < p->n_part; r.part += r.n) {
            r = param_run(l, p, r.part, p->n_part);
            for (long i = 0; i < r.n; i++) {
                double x = (double)host[0][p->offset + r.part + i];
                double y = (double)host[1][w->param[t].offset + r.whole + i];
                far = fmax(far, fabs(x - y));
                d += is_key_bias(&l->config, p, p->n_part, r.part + i) ? 0 : (x - y) * (x - y);
                s += is_key_bias(&l->config, p, p->n_part, r.part + i) ? 0 : y * y;
            }
        }
        if (!(d <= worst * worst * s)) {
            worst = sqrt(d / s);
            name = p->name;
        }
    }
    same(worst <= gate, "%s: relative L2 %.2e of %s is above %.0e", what, worst, name, gate);
    same(far <= furthest, "%s: an element is off by %.2e", what, far);
    if (on.split.reduce_type == F32)
        worst_near = fmax(worst_near, worst);
}

/* Both models round to bf16, each within test_golden.c's 4e-2 of the exact value, and so within twice
 * that of each other. Where gradients are rounded to bf16 on their way, noise of fp32 decides which
 * of two neighbours, 2^-8 apart, some of them become, twice. */
static double gate(void)
{
    if (under.type == BF16)
        return 2 * 4e-2;
    return on.split.reduce_type == BF16 ? 0x1p-7 : 1e-5;
}

static void compare_results(void)
{
    const StepResult *a = vit_result(on.shared, 0), *b = vit_result(on.reference, 0);
    const StepResult *whole = on.whole ? vit_result(on.whole, 0) : NULL;
    double ranks = team.ranks, told = ranks * (on.micros - 1) + ranks * (ranks - 1) / 2;
    same(memcmp(a->stats, b->stats, 3 * (size_t)on.batch * sizeof(real)) == 0, "losses");
    same(a->state.grad_norm == b->state.grad_norm, "norm %.9g, not %.9g", a->state.grad_norm,
         b->state.grad_norm);
    same(a->state.clip == b->state.clip && a->state.clip < 1, "clip %g", a->state.clip);
    same(a->state.t == (uint32_t)on.step + 1 && a->state.skipped == 0, "t %u", a->state.t);
    same(a->tally[0] == ranks && a->tally[1] == told, "tally %g %g", (double)a->tally[0],
         (double)a->tally[1]);
    if (!whole)
        return;
    double worst = fabs(b->state.grad_norm / whole->state.grad_norm - 1);
    for (int i = 0; i < on.batch; i++)
        worst = fmax(worst, fabs((double)b->stats[3 * i] / (double)whole->stats[3 * i] - 1));
    same(worst <= gate(), "norm or losses: relative error %.2e", worst);
}

/* A step of all models, looked at between the backward passes and the update. */
static void train(int step)
{
    Model *models[] = {on.shared, on.reference, on.whole};
    on.step = step;
    for (int i = 0; i < COUNT(models) && models[i]; i++)
        vit_begin_step(models[i], (uint32_t)step, lr, 77);
    double before = under.be->sent();
    run_schedule(&on.shared->split, on.micros, shared_micro, on.shared);
    on.sent = under.be->sent() - before;
    add_gradients(on.reference);
    same_bits("gradients", on.shared->own.grads, on.reference->own.grads, lowest());
    if (on.whole)
        add_gradients(on.whole);
    if (on.whole && step == 0)
        near("gradients", on.reference->own.grads, on.whole->own.grads, gate(), INFINITY, lowest());
    before = under.be->sent();
    vit_update(on.shared);
    on.sent += under.be->sent() - before;
    for (int i = 1; i < COUNT(models) && models[i]; i++)
        vit_update(models[i]);
    compare_results();
}

/* Logits of all stages' work, in the weights as they are. */
static void evaluate(const char *what)
{
    Model *models[] = {on.shared, on.reference, on.whole};
    size_t n = MICRO * (size_t)on.config.classes;
    for (int i = 0; i < COUNT(models) && models[i]; i++) {
        set_images(models[i], 1, MICRO);
        vit_evaluate(models[i]);
        if (i > 0 || on.split.end == on.shared->layout->units)
            vit_logits(models[i], host[i]);
    }
    if (on.split.end == on.shared->layout->units)
        same(memcmp(host[0], host[1], n * sizeof(real)) == 0, "logits of %s", what);
    double d = 0, s = 0;
    for (size_t k = 0; on.whole && k < n; k++) {
        d += pow((double)host[1][k] - (double)host[2][k], 2);
        s += pow((double)host[2][k], 2);
    }
    same(d <= gate() * gate() * s, "logits of %s: relative L2 %.2e", what, sqrt(d / s));
}

/* Where the average stands in the weights' place, training goes on as if it never had. */
static void evaluate_average(void)
{
    Model *models[] = {on.shared, on.reference, on.whole};
    for (int i = 0; i < COUNT(models) && models[i]; i++)
        units_swap_ema(&models[i]->own);
    evaluate("the average");
    for (int i = 0; i < COUNT(models) && models[i]; i++)
        units_swap_ema(&models[i]->own);
}

static void compare_state(void)
{
    const Units *a = &on.shared->own, *b = &on.reference->own, *w = on.whole ? &on.whole->own : NULL;
    same_bits("weights", a->weights, b->weights, 0);
    same_bits("first moment", a->exp_avg, b->exp_avg, 0);
    same_bits("second moment", a->exp_avg_sq, b->exp_avg_sq, 0);
    same_bits("average", a->ema, b->ema, 0);
    if (!w)
        return;
    bool half = is_half(under.type);
    double far = (half ? 2 : 1) * (on.step + 1) * lr;
    near("weights", b->weights, w->weights, half ? INFINITY : gate(), far, 0);
    near("average", b->ema, w->ema, half ? INFINITY : gate(), far, 0);
    if (half)
        return;
    /* of gradients in weights that have drifted apart by then, which may nearly cancel */
    near("first moment", b->exp_avg, w->exp_avg, 10 * gate(), INFINITY, 0);
    near("second moment", b->exp_avg_sq, w->exp_avg_sq, 10 * gate(), INFINITY, 0);
}

/* What every rank of a tensor parallel group has is the same on all of them. */
static void compare_copies(void)
{
    const Units *u = &on.shared->own;
    const Layout *l = u->layout;
    const dev *const buffers[] = {u->weights, u->exp_avg, u->exp_avg_sq, u->ema};
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (int b = 0; b < COUNT(buffers); b++) {
        if (!buffers[b])
            continue;
        units_read(u, buffers[b], 0, l->n_own, host[0]);
        for (int t = 0; t < l->tensors; t++) {
            long begin, end, at = units_kept(u, &l->param[t], false, &begin, &end);
            const unsigned char *bytes = (const unsigned char *)&host[0][at];
            size_t n = (size_t)(end - begin) * sizeof(real);
            for (size_t i = 0; l->param[t].split == SPLIT_WHOLE && i < n; i++)
                h = (h ^ bytes[i]) * 0x100000001b3u;
        }
    }
    double hash[MOST_RANKS] = {0};
    hash[team.rank] = (double)(h >> 16);
    hosts_sum(hash, team.ranks);
    int first = team.rank - on.split.tp.rank;
    same(hash[team.rank] == hash[first], "ranks %d and %d have copies that differ", first,
         team.rank);
}

/* ------------------------------------------------------------------------------------------------
 * Bytes of a step that this rank sends, written out. A ring sends 2 (r-1)/r of what all reduce, and
 * (r-1)/r of what is reduced to shards or gathered from them. */

static double ring(double elements, int ranks, int type)
{
    return 2 * (ranks - 1.0) / ranks * elements * (double)type_size(type);
}

/* The tensors of unit u as this rank has them, in order; returns how many. */
static int tensors_of(const Config *c, int u, int tp, long *n)
{
    long C = c->width, A = C / tp, F = c->mlp / tp, F1 = c->act == ACT_SWIGLU ? 2 * F : F;
    long R = c->representation, D = c->pool >= POOL_CLS_DIST ? 2 * C : C, in = R ? R : D;
    long K = c->classes % tp ? c->classes : c->classes / tp, N = c->cls_tokens, P = c->patch;
    long ls = c->layer_scale ? C : 0, pre = c->norm_pre ? C : 0, last = c->fc_norm ? 0 : C;
    long qk = c->qk_norm ? C / c->heads : 0, M = c->pool == POOL_MAP ? C : 0, MF = M ? c->mlp : 0;
    const long embed[] = {N * C, vit_tokens(c) * C, 3 * P * P * C, C, pre, pre};
    const long block[] = {C, C, 3 * A * C, 3 * A, C * A, C, ls, C, C, F1 * C, F1, C * F, C,
                          ls, qk, qk, qk, qk};
    const long head[] = {last, last, R * D, R, K * in, K, M, M * C, M, 2 * M * C, 2 * M, M * C, M,
                         M, M, MF * C, MF, C * MF, M, C - last, C - last};
    const long *list = u == 0 ? embed : u <= c->layers ? block : head;
    int count = u == 0 ? COUNT(embed) : u <= c->layers ? COUNT(block) : COUNT(head);
    memcpy(n, list, (size_t)count * sizeof *n);
    return count;
}

/* Elements of its buffer: tensors begin at multiples of 64, shards are whole chunks. *chunks grows
 * by how many there are. */
static double unit_size(const Config *c, int u, int tp, int shards, double *chunks)
{
    long n[MAX_UNIT_PARAMS], size = 0, whole = (long)shards * VIT_CHUNK;
    int count = tensors_of(c, u, tp, n);
    for (int i = 0; i < count; i++) {
        if (n[i])
            *chunks += (double)((size + n[i] - 1) / VIT_CHUNK - size / VIT_CHUNK + 1);
        size += (n[i] + 63) / 64 * 64;
    }
    return (double)(shards > 1 ? (size + whole - 1) / whole * whole : size);
}

typedef struct {
    double unit[LAYERS + 2], chunks;
    double bytes;
    int here[2]; /* ZeRO 3: a unit's weights stand in one of two places; -1: nobody's */
    bool kept[LAYERS + 2];
} Sent;

static void need(Sent *s, int u)
{
    const Split *p = &on.split;
    bool resharded = p->zero == 3 && p->reshard;
    if (!p->zero || (resharded ? s->here[u % 2] == u : s->kept[u]))
        return;
    s->here[u % 2] = u;
    s->kept[u] = true;
    s->bytes += ring(s->unit[u], p->dp.ranks, under.type) / 2;
}

/* Two sums of a block's output, of its class rows alone in the last block that is read by them. */
static double rows_of(int l, int B)
{
    const Config *c = &on.config;
    bool few = l == c->layers - 1 && c->pool == POOL_CLS;
    return (double)B * (few ? 1 : vit_tokens(c)) * c->width;
}

static double head_sum(double elements)
{
    return on.config.classes % on.split.tp.ranks ? 0 : ring(elements, on.split.tp.ranks, under.type);
}

static void forward_bytes(Sent *s, int B)
{
    const Split *p = &on.split;
    const Config *c = &on.config;
    if (p->first == 0 && p->tp.rank + 1 < p->tp.ranks)
        s->bytes += (double)B * (sizeof images[0] + (size_t)c->classes * sizeof(real));
    for (int u = p->first; u < p->end; u++) {
        need(s, u);
        if (u > 0 && u <= c->layers)
            s->bytes += 2 * ring(rows_of(u - 1, B), p->tp.ranks, under.type);
    }
    if (p->end == c->layers + 2)
        s->bytes += head_sum((double)B * c->classes);
    else
        s->bytes += (double)B * c->classes * sizeof(real) +
                    (double)B * vit_tokens(c) * c->width * (double)type_size(under.type);
}

/* Forward passes within the backward pass of block l: of its group, when it is the last of it. The
 * sum of the attention's output is made again where the stream behind it is not kept, that of the
 * MLP's where another block of the group begins with it; layer scale needs both. */
static void again_bytes(Sent *s, int l, int B)
{
    const Recompute *r = &again[on.c->value[AGAIN]].recompute;
    const Split *p = &on.split;
    int begin = p->first ? p->first - 1 : 0, end = p->end == LAYERS + 2 ? LAYERS : p->end - 1;
    int group = r->group ? r->group : 1, most = r->blocks ? begin + r->blocks : end;
    int start = l - (l - begin) % group;
    most = most < end ? most : end;
    if (r->kind != RECOMPUTE_FULL || l >= most || (l + 1 < most && l + 1 < start + group))
        return;
    for (int k = start; k <= l; k++) {
        int sums = on.config.layer_scale ? 2 : !r->keep + (k < l);
        need(s, k + 1);
        s->bytes += sums * ring(rows_of(k, B), p->tp.ranks, under.type);
    }
}

static void backward_bytes(Sent *s, int B)
{
    const Split *p = &on.split;
    const Config *c = &on.config;
    double all = (double)B * vit_tokens(c) * c->width;
    if (p->end == c->layers + 2)
        s->bytes += head_sum((double)B * (c->representation ? c->representation : vit_features(c)));
    for (int u = p->end - 1; u >= p->first && u >= lowest(); u--) {
        if (u > 0 && u <= c->layers) {
            again_bytes(s, u - 1, B);
            s->bytes += ring(rows_of(u - 1, B), p->tp.ranks, under.type);
            s->bytes += ring(all, p->tp.ranks, under.type);
            if (c->qk_norm) /* four vectors of a head's size, that all heads share */
                s->bytes += 4 * ring((double)c->width / c->heads, p->tp.ranks, F32);
        }
        need(s, u);
    }
    if (lowest() > p->first && lowest() < p->end) /* of a pass that ends early, one unit is kept */
        s->here[(lowest() + 1) % 2] = -1;
    s->bytes += p->first ? all * (double)type_size(under.type) : 0;
}

static double expected_bytes(void)
{
    const Split *p = &on.split;
    int dp = p->dp.ranks, parts = p->zero ? team.ranks : team.ranks / dp;
    int B, ahead = p->pp.ranks - 1 - p->pp.rank, sums = p->zero >= 2 ? on.micros : 1;
    bool lamb = on.c->value[OPTIMISER] == OPT_LAMB;
    Sent s = {.here = {-1, -1}};
    for (int u = 0; u < LAYERS + 2; u++)
        s.unit[u] = unit_size(&on.config, u, p->tp.ranks, p->zero ? dp : 1, &s.chunks);
    for (int i = 0; i < on.micros + ahead; i++) { /* 1F1B */
        if (i < on.micros) {
            images_of(0, i, &B);
            forward_bytes(&s, B);
        }
        if (i >= ahead) {
            images_of(0, i - ahead, &B);
            backward_bytes(&s, B);
        }
    }
    for (int u = p->first > lowest() ? p->first : lowest(); u < p->end; u++)
        s.bytes += sums * ring(s.unit[u], dp, p->reduce_type) / (p->zero ? 2 : 1);
    s.bytes += ring(3.0 * on.batch + TALLY, team.ranks, F32);
    return s.bytes + ring((lamb ? 3 : 1) * s.chunks, parts, F32);
}

/* ------------------------------------------------------------------------------------------------ */

/* A pass is recorded the third time that it is met, and repeated from then on. Each micro-batch has
 * two sets of inputs in turn, which tell its passes apart: an even number of micro-batches meets
 * each of its own at every step, an odd one at every other. */
static int steps_of(int micros)
{
    if (!under.be->asynchronous)
        return 3;
    return micros % 2 ? 8 : 5;
}

static void run_case(const Case *c, int number)
{
    Spread *s = &spread[c->value[SPREAD]];
    on.c = c;
    on.number = number;
    on.failures = 0;
    describe(c, on.name, sizeof on.name);
    if (under.verbose && team.rank == 0)
        printf("case %d: %s\n", number, on.name);
    on.config = tiny(c);
    on.split = split_of(s, &on.config, c->value[STAGES]);
    on.split.reduce_type = c->value[REDUCE] ? BF16 : F32;
    on.micros = micros[c->value[MICROS]];
    on.mine = on.micros * MICRO - (on.micros > 1);
    on.batch = on.mine * on.split.dp.ranks;
    Split tp = tp_alone(&on.split, &on.config);
    on.shared = create(&on.split, true);
    on.reference = create(&tp, false);
    on.whole = s->tp > 1 ? create(NULL, false) : NULL;
    same_bits("initial weights", on.shared->own.weights, on.reference->own.weights, 0);
    if (on.whole)
        near("initial weights", on.reference->own.weights, on.whole->own.weights, 0, 0, 0);
    disturb(on.shared);
    disturb(on.reference);
    if (on.whole)
        disturb(on.whole);
    for (int step = 0; step < steps_of(on.micros); step++) {
        train(step);
        if (step == 0)
            evaluate("the first step");
        if (step == 0 && on.shared->own.ema)
            evaluate_average();
    }
    evaluate("the end");
    compare_state();
    compare_copies();
    double want = expected_bytes();
    same(fabs(on.sent - want) <= 1e-9 * want, "a step sends %.17g bytes, not %.17g", on.sent, want);
    vit_free(on.shared);
    vit_free(on.reference);
    vit_free(on.whole);
}

int main(int argc, char **argv)
{
    Case *cases;
    const char *full = getenv("TEST_FULL");
    int ranks = 4, one = -1, part = 1, parts = 1;
    bool all = full && strcmp(full, "0") != 0;
    backend_cpu_reexec(argv);
    argc = device_options(argc, argv);
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "all") == 0)
            all = true;
        else if (sscanf(argv[i], "part=%d/%d", &part, &parts) != 2 &&
                 sscanf(argv[i], "case=%d", &one) != 1 && sscanf(argv[i], "%d", &ranks) != 1)
            die_usage("RANKS, all, case=N, part=I/N", "unknown argument '%s'", argv[i]);
    }
    if (part < 1 || part > parts)
        die_usage("part=1/4 to part=4/4", "there is no part %d of %d", part, parts);
    if (!team_possible())
        return check_report();
    team_start(ranks);
    for (int i = 0; i < COUNT(host); i++)
        host[i] = xcalloc(1 << 17, sizeof(real));
    draw_inputs();
    spread_ranks();
    int n = all ? all_cases(&cases) : pairwise_cases(&cases), run = 0;
    const char *which = all ? "every combination of a pass" : "every pair of settings";
    if (!under.full && !all && one < 0) {
        n /= 4; /* a CPU that plays a GPU takes its time; the first cases have the most pairs */
        which = "most pairs of settings";
    }
    double start = now();
    for (int i = 0; i < n; i++) {
        alarm(1800); /* whoever waits for ever has failed; sanitizers take minutes */
        if (one < 0 ? i % parts == part - 1 : one == i) {
            run_case(&cases[i], i);
            run++;
        }
    }
    alarm(0);
    free(cases);
    if (team.rank == 0)
        printf("%d ranks, %s: %d of %d cases, %s, %.0f s; tensor parallel within %.1e\n",
               team.ranks, under.name, run, n, which, now() - start, worst_near);
    return team_report();
}
