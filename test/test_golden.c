/* test_golden [--backend cpu|cuda] [--type fp32|tf32|bf16|fp16|fp8]
 *   [--ranks N [--tp N] [--pp N] [--zero N]] FILE...: compare with values that PyTorch computed in
 * float64.
 *
 * A file is one small model: its parameters, a batch, and what must come out of it - the residual
 * stream after every block, logits, loss, every gradient, their norm, the losses of a few optimiser
 * steps and the parameters after them. (A file with `model` in its metadata instead holds images
 * and the logits of published weights, which lie in ../data/weights beside the file's folder.)
 *
 * Measure: relative L2 per tensor, |a - b| / |b|. Gates:
 *   double build   3e-7   the files are stored as float32
 *   fp32           1e-5   PyTorch in float32 stays below 5e-6
 *   tf32           5e-3
 *   bf16           4e-2   storing every activation in 16 bits costs up to 2e-2; two good
 *                         implementations differ as much from each other (roundings decorrelate),
 *                         so that operations are judged one by one by test_ops
 *   fp16           1e-2   up to 3e-3; its loss is scaled by 1024
 *   fp8            8e-2   and a cosine of 0.995: streams, loss, parameters after steps, and the
 *                         whole gradient as one vector. In float64 with nothing rounded but the
 *                         operands that fp8 rounds, PyTorch's gradients of single tensors miss by
 *                         up to 1.4e-1, the whole one by 7e-2, and DeiT-Tiny's logits by 1.3e-1
 *                         (golden/fp8.py): single gradients and logits may miss by 3e-1, with a
 *                         cosine of 0.95. Skipped: widths that are no multiples of 16, or below
 *                         32, where PyTorch's whole gradient misses by up to 9.5e-2
 *   and in 16 bits a cosine of at least 0.999.
 * Two exceptions. Softmax cancels a key bias, so its true gradient is zero, and an Adam-type step
 * divides rounding noise by rounding noise: such elements (keys.h) are held to steps * lr after
 * such steps, and their gradient in less than fp32, or where a tensor has no others, to the gate
 * times the whole tensor's, or the whole model's. And where gradients are as noisy as in 16 bits,
 * Adam-type steps go up or down by chance where a gradient is near zero: every parameter is then
 * held to 2 * steps * lr as well.
 *
 * Between any two of the model's buffers lies a gap full of NaN, which must be there in the end.
 *
 * With --ranks the program starts itself again as so many processes, each of which compares what it
 * has of the model under the same gates. All data parallel ranks compute the file's whole batch,
 * and divide its loss by as many: so every batch divides. Models that do not divide as asked are
 * skipped.
 */
#include "checkpoint.h"
#include "vit.h"
#include "weights/weights.h"
#include "keys.h"
#include "team.h"
#include "util/files.h"

static double gate;                     /* relative L2 */
static int ranks, tp = 1, pp = 1, zero; /* ranks 0: this process alone */

typedef struct {
    SafeTensors *file;
    Model *m;
    Split split;
    real *host, *want; /* room for the largest tensor */
    int compared, steps;
    double worst, lr, scale; /* scale: of the loss, and of m->grads with it */
    double all_grads;        /* the file's gradnorm */
    char worst_name[160];
    bool adam_type;
    double ours, theirs, both; /* of all gradients: sums of squares, and of products */
} Case;

/* ---- gaps ---- */

static struct {
    dev *p;
    size_t bytes;
} gaps[4096];
static int n_gaps;

static void fill_gap(dev *p, size_t bytes)
{
    unsigned char nan[4096];
    memset(nan, 0xFF, sizeof nan);
    if (n_gaps == COUNT(gaps) || bytes > sizeof nan)
        die(NULL, "test_golden: too many gaps, or too large a one (%zu bytes)", bytes);
    under.be->upload(p, nan, bytes);
    gaps[n_gaps].p = p;
    gaps[n_gaps++].bytes = bytes;
}

static void check_gaps(const Case *c)
{
    int touched = 0;
    unsigned char now[4096];
    CHECK(n_gaps > 0, "%s: no gaps between buffers", c->file->path);
    for (int i = 0; i < n_gaps; i++) {
        bool same = true;
        under.be->download(now, gaps[i].p, gaps[i].bytes);
        for (size_t k = 0; k < gaps[i].bytes; k++)
            same = same && now[k] == 0xFF;
        touched += !same;
    }
    CHECK(touched == 0, "%s: %d of %d gaps between buffers were written", c->file->path, touched,
          n_gaps);
    n_gaps = 0;
}

/* ---- comparing ---- */

static double relative(const real *a, const real *b, long n)
{
    double d = 0, s = 0;
    for (long i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        s += (double)b[i] * (double)b[i];
    }
    return s > 0 ? sqrt(d / s) : sqrt(d);
}

static double cosine(const real *a, const real *b, long n)
{
    double ab = 0, aa = 0, bb = 0;
    for (long i = 0; i < n; i++) {
        ab += (double)a[i] * (double)b[i];
        aa += (double)a[i] * (double)a[i];
        bb += (double)b[i] * (double)b[i];
    }
    return aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : aa == bb;
}

/* The tensor `name` of the file into c->want; it must hold n elements. */
static bool expected(Case *c, const char *name, long n)
{
    Error e;
    const StTensor *t = st_find(c->file, name);
    if (!CHECK(t != NULL, "%s: tensor %s is missing", c->file->path, name))
        return false;
    if (!CHECK(t->n == n, "%s: %s has %ld elements, the model %ld", c->file->path, name, t->n, n))
        return false;
    return CHECK(st_read_real(c->file, t, 0, t->n, c->want, &e), "%s", e.what);
}

/* Of a cosine, and through *l2 of the relative norm, for one tensor. */
static double gates_of(const char *name, double *l2)
{
    bool coarse = strncmp(name, "grad", 4) == 0 || strcmp(name, "out.logits") == 0;
    *l2 = under.fp8 && coarse ? 3e-1 : gate;
    if (!under.fp8)
        return 0.999;
    return coarse ? 0.95 : 0.995;
}

static void judge(Case *c, const char *name, const real *got, long n)
{
    double error = relative(got, c->want, n), allowed;
    double least = gates_of(name, &allowed);
    if (n == 0) /* another rank has it */
        return;
    for (long i = 0; strncmp(name, "grad.", 5) == 0 && i < n; i++) {
        c->ours += (double)got[i] * (double)got[i];
        c->theirs += (double)c->want[i] * (double)c->want[i];
        c->both += (double)got[i] * (double)c->want[i];
    }
    c->compared++;
    if (!(error <= c->worst)) {
        c->worst = error;
        snprintf(c->worst_name, sizeof c->worst_name, "%s", name);
    }
    CHECK(error <= allowed, "%s: %s: relative L2 %.2e is above %.0e", c->file->path, name, error,
          allowed);
    if (is_half(under.type) && n > 1)
        CHECK(cosine(got, c->want, n) >= least, "%s: %s: cosine %.5f", c->file->path, name,
              cosine(got, c->want, n));
}

/* All gradients together, as one vector. */
static void check_direction(Case *c)
{
    double l2 = sqrt((c->ours + c->theirs - 2 * c->both) / c->theirs);
    double cosine = c->both / sqrt(c->ours * c->theirs);
    CHECK(l2 <= gate && cosine >= 0.995, "%s: the gradient: relative L2 %.2e, cosine %.5f",
          c->file->path, l2, cosine);
    if (under.verbose)
        printf("%s: the gradient: relative L2 %.2e, cosine %.5f\n", c->file->path, l2, cosine);
    c->ours = c->theirs = c->both = 0;
}

static void compare(Case *c, const char *name, const real *got, long n)
{
    if (expected(c, name, n))
        judge(c, name, got, n);
}

static void compare_act(Case *c, const char *name, const dev *buffer, long n)
{
    if (!expected(c, name, n))
        return; /* first: the host buffer is as large as the file's tensors */
    vit_read_act(c->m, buffer, 0, n, c->host);
    judge(c, name, c->host, n);
}

/* What this rank has of a tensor, in one of its buffers, into c->host, and the same elements of
 * c->want, which holds it whole. Returns how many. `keys`: these do not count among them, but their
 * largest difference and their length over the whole tensor's are found. */
typedef struct {
    double worst, length;
} Keys;

static long own_part(Case *c, const Param *p, const dev *buffer, Keys *keys)
{
    const Units *u = &c->m->own;
    long begin, end, at = units_kept(u, p, false, &begin, &end), n = 0;
    double sum = 0, all = 0;
    Keys k = {0};
    for (long i = 0; i < p->n; i++)
        all += (double)c->want[i] * (double)c->want[i];
    if (is_key_bias(&u->layout->config, p, p->n, p->n - 1))
        all = c->all_grads * c->all_grads;
    units_read(u, buffer, at, end - begin, c->host);
    for (Run r = {.part = begin}; r.part < end; r.part += r.n) {
        r = param_run(u->layout, p, r.part, end);
        for (long i = 0; i < r.n; i++) {
            double x = (double)c->host[r.part - begin + i], y = (double)c->want[r.whole + i];
            if (keys && is_key_bias(&u->layout->config, p, p->n, r.whole + i)) {
                sum += x * x;
                if (!isnan(k.worst) && !(fabs(x - y) <= k.worst))
                    k.worst = fabs(x - y);
                continue;
            }
            c->host[n] = (real)x;
            c->want[n++] = (real)y;
        }
    }
    k.length = sqrt(sum / all);
    if (keys)
        *keys = k;
    return n;
}

static void compare_grad(Case *c, const char *name, const Param *p)
{
    Keys keys;
    if (p->unit < c->m->layout->lowest) /* nobody needs it */
        return;
    if (!expected(c, name, p->n))
        return;
    for (long i = 0; i < p->n; i++)
        c->want[i] *= (real)c->scale;
    bool no_others = is_key_bias(&c->m->config, p, p->n, p->n - 1);
    bool coarse = is_half(under.type) || under.tf32 || no_others;
    long n = own_part(c, p, c->m->own.grads, coarse ? &keys : NULL);
    if (coarse)
        CHECK(keys.length <= gate, "%s: %s, key biases: %.2e of the whole", c->file->path, name,
              keys.length);
    judge(c, name, c->host, n);
}

static void compare_step(Case *c, const char *name, const Param *p)
{
    Keys keys;
    if (!expected(c, name, p->n))
        return;
    long n = own_part(c, p, c->m->own.weights, c->adam_type ? &keys : NULL);
    if (c->adam_type)
        CHECK(keys.worst <= (is_half(under.type) ? 2 : 1) * c->steps * c->lr,
              "%s: %s, key third: %.2e is above steps*lr", c->file->path, name, keys.worst);
    if (is_half(under.type)) {
        double worst = 0;
        for (long i = 0; i < n; i++)
            worst = fmax(worst, fabs((double)c->host[i] - (double)c->want[i]));
        CHECK(worst <= 2 * c->steps * c->lr, "%s: %s: %.2e is above 2*steps*lr", c->file->path,
              name, worst);
    }
    judge(c, name, c->host, n);
}

/* ---- one model case ---- */

static double number(Case *c, const char *key)
{
    const char *s = st_meta(c->file, key);
    char *end = NULL;
    double v = s ? strtod(s, &end) : NAN;
    CHECK(s && end != s && isfinite(v), "%s: metadata %s is '%s'", c->file->path, key,
          s ? s : "(absent)");
    return v;
}

static int choose(Case *c, const char *key, const char *const *words)
{
    const char *s = st_meta(c->file, key);
    for (int i = 0; s && words[i]; i++)
        if (strcmp(s, words[i]) == 0)
            return i;
    CHECK(false, "%s: metadata %s is '%s'", c->file->path, key, s ? s : "(absent)");
    return -1;
}

/* The groups of one split are those of every other: they last, and a process has only so many. */
static void connect(Split *s)
{
    static Split first;
    if (!first.world.ranks) {
        first = *s;
        split_connect(&first, under.be);
    }
    s->world.group = first.world.group;
    s->tp.group = first.tp.group;
    s->dp.group = first.dp.group;
    s->pp.group = first.pp.group;
    s->back = first.back;
    s->parts = first.parts;
}

/* How the ranks share the model. */
static bool share(Case *c, const Config *config, Plan *plan)
{
    Error e;
    if (!ranks)
        return true;
    if (!split_new(&c->split, config, team.rank, team.ranks, tp, pp, "", zero, &e)) {
        if (team.rank == 0)
            SKIP("%s: %s", c->file->path, e.what);
        return false;
    }
    connect(&c->split);
    plan->split = &c->split;
    plan->batch *= c->split.dp.ranks;
    return true;
}

/* Whether products of 8-bit numbers are possible. */
static bool divides(const Case *c, const Config *config)
{
    bool sixteens = config->width / tp % 16 == 0 && config->mlp / tp % 16 == 0;
    bool possible = sixteens && config->width >= 32;
    if (under.fp8 && !possible && team.rank == 0)
        SKIP("%s: widths that are no multiples of 16, or below 32", c->file->path);
    return !under.fp8 || possible;
}

static bool read_case(Case *c, Config *config, Plan *plan)
{
    static const char *const must[] = {
        "image_h", "image_w", "patch",     "width",       "layers",     "heads",
        "mlp",     "classes", "pool",      "cls_tokens",  "patch_bias", "representation",
        "act",     "eps",     "eps_final", "layer_scale", "norm_pre",   "loss"};
    static const char *const opts[] = {"adamw", "adam", "sgd", "lamb", NULL};
    static const char *const decays[] = {"all", "no_1d", "matrices", NULL};
    int failed = check_failed;
    Error e;
    *config = vit_config_default();
    for (int i = 0; i < COUNT(must); i++) {
        const char *v = st_meta(c->file, must[i]);
        if (CHECK(v != NULL, "%s: metadata %s is missing", c->file->path, must[i]))
            CHECK(vit_config_set(config, must[i], v, &e), "%s: %s", c->file->path, e.what);
    }
    static const char *const may[] = {"fc_norm", "qk_norm"};
    for (int i = 0; i < COUNT(may); i++)
        if (st_meta(c->file, may[i]))
            CHECK(vit_config_set(config, may[i], st_meta(c->file, may[i]), &e), "%s: %s",
                  c->file->path, e.what);
    CHECK(vit_config_check(config, &e), "%s: %s", c->file->path, e.what);
    *plan = (Plan){.max_batch = (int)number(c, "batch"),
                   .batch = (int)number(c, "batch"),
                   .type = under.type,
                   .training = true,
                   .float_images = true,
                   .clip = number(c, "clip"),
                   .fp8 = {.on = under.fp8, .history = 2},
                   .gap = fill_gap};
    if (under.type == F16)
        plan->scaling = (LossScaling){SCALING_STATIC, 1024, 0, 0};
    c->scale = under.type == F16 ? plan->scaling.init : 1;
    plan->opt = (OptConfig){choose(c, "optimizer", opts),
                            number(c, "beta1"),
                            number(c, "beta2"),
                            number(c, "adam_eps"),
                            number(c, "momentum"),
                            number(c, "weight_decay"),
                            0};
    plan->decay = choose(c, "decay", decays);
    if (st_meta(c->file, "layer_decay")) {
        plan->layer_decay = number(c, "layer_decay");
        plan->frozen = (int)number(c, "frozen");
    }
    c->lr = number(c, "lr");
    c->steps = (int)number(c, "steps");
    c->adam_type = plan->opt.kind != OPT_SGD;
    if (expected(c, "gradnorm", 1))
        c->all_grads = (double)c->want[0] * c->scale;
    CHECK(plan->max_batch > 0 && plan->max_batch <= 4096 && c->steps > 0 && c->steps < 1000);
    return check_failed == failed && divides(c, config) && share(c, config, plan);
}

/* param.NAME, grad.NAME and step.NAME have the parameter's shape, not only its size. */
static bool same_shape(Case *c, const char *key, const Param *p)
{
    const StTensor *t = st_find(c->file, key);
    bool same = t && t->ndim == p->ndim;
    for (int i = 0; same && i < p->ndim; i++)
        same = t->shape[i] == p->shape[i];
    return CHECK(same, "%s: %s has another shape than the model's", c->file->path, key);
}

static bool load_param(Case *c, const Param *p)
{
    char key[128];
    snprintf(key, sizeof key, "param.%s", p->name);
    Units *u = &c->m->own;
    long begin, end, at = units_kept(u, p, false, &begin, &end);
    if (!expected(c, key, p->n) || !same_shape(c, key, p))
        return false;
    for (Run r = {.part = begin}; r.part < end; r.part += r.n) {
        r = param_run(u->layout, p, r.part, end);
        units_write(u, u->weights, at + r.part - begin, r.n, c->want + r.whole);
    }
    return true;
}

/* `compare_it` for all tensors, against the file's PREFIX.NAME. */
static void compare_all(Case *c, const char *prefix,
                        void (*compare_it)(Case *c, const char *name, const Param *p))
{
    for (int i = 0; i < c->m->layout->tensors; i++) {
        const Param *p = &c->m->layout->param[i];
        char key[128];
        snprintf(key, sizeof key, "%s.%s", prefix, p->name);
        if (same_shape(c, key, p))
            compare_it(c, key, p);
    }
}

static real mean_loss(const real *stats, int B)
{
    double sum = 0;
    for (int b = 0; b < B; b++)
        sum += (double)stats[3 * b];
    return (real)(sum / B);
}

/* Inputs and parameters into a fresh model. */
static bool start(Case *c, const Config *config, const Plan *plan)
{
    long B = plan->max_batch, pixels = (long)(vit_image_bytes(config, false) / sizeof(real));
    c->m = vit_create(config, plan, under.be);
    for (int i = 0; i < c->m->layout->tensors; i++)
        if (!load_param(c, &c->m->layout->param[i]))
            return false;
    if (!expected(c, "input.targets", B * config->classes))
        return false;
    real *targets = xmalloc((size_t)(B * config->classes) * sizeof(real));
    memcpy(targets, c->want, (size_t)(B * config->classes) * sizeof(real));
    bool ok = expected(c, "input.images", B * pixels);
    if (ok)
        vit_set_batch(c->m, (int)B, c->want, false, targets, NULL);
    free(targets);
    return ok;
}

/* The sums of squares of one rank's share of a unit's gradient, which it holds alone: shard `rank`
 * of size `n`. Returns how many of them differ in any bit from those of the whole. */
static int differ_in_shard(const Case *c, const Unit *unit, int rank, long n, const real *whole)
{
    const Layout *l = c->m->layout;
    long from = unit->offset + rank * n, end = unit->offset + unit->n, have = end - from;
    Chunk *own = xcalloc((size_t)l->chunks, sizeof *own);
    real *sums = xcalloc((size_t)l->chunks, sizeof *sums);
    int count = 0, first = 0, differ = 0;
    for (int i = 0; i < l->chunks; i++)
        if (l->chunk[i].offset >= from && l->chunk[i].offset < from + n &&
            l->chunk[i].offset < end) {
            first = count ? first : i;
            own[count] = l->chunk[i];
            own[count++].offset -= from;
        }
    have = have < n ? have : n;
    if (count) {
        const Backend *be = under.be;
        dev *shard = be->alloc((size_t)n * sizeof(real)), *chunks = be->alloc(sizeof *own * count);
        dev *partial = be->alloc(sizeof *sums * count);
        be->copy(shard, dev_at(c->m->own.grads, from, F32), (size_t)have * sizeof(real));
        be->upload(chunks, own, sizeof *own * count);
        be->sum_squares(partial, shard, chunks, count);
        be->download(sums, partial, sizeof *sums * count);
        for (int i = 0; i < count; i++)
            differ += memcmp(&sums[i], &whole[first + i], sizeof *sums) != 0;
        be->release(shard);
        be->release(chunks);
        be->release(partial);
    }
    free(own);
    free(sums);
    return differ;
}

/* Norms do not depend on how a unit's buffer is spread over ranks: equal shards of whole chunks
 * have the sums that the whole has. */
static void check_shards(Case *c)
{
    const Units *own = &c->m->own;
    const Layout *l = c->m->layout;
    real *whole = xcalloc((size_t)l->chunks, sizeof *whole);
    under.be->sum_squares(own->partial, own->grads, own->chunks, l->chunks);
    under.be->download(whole, own->partial, (size_t)l->chunks * sizeof *whole);
    for (int ranks = 2; ranks <= 8; ranks += 3) {
        int cut = 0, differ = 0;
        for (int u = 0; u < l->units; u++) {
            const Unit *unit = &l->unit[u];
            long unit_of_shards = (long)ranks * VIT_CHUNK;
            long n = (unit->n + unit_of_shards - 1) / unit_of_shards * VIT_CHUNK;
            for (int i = 0; i < l->chunks; i++) {
                long at = l->chunk[i].offset - unit->offset;
                if (l->param[l->chunk[i].tensor].unit == u)
                    cut += at / n != (at + l->chunk[i].n - 1) / n;
            }
            for (int r = 0; r < ranks; r++)
                differ += differ_in_shard(c, unit, r, n, whole);
        }
        CHECK(cut == 0, "%s: %d chunks lie in two of %d shards", c->file->path, cut, ranks);
        CHECK(differ == 0, "%s: %d sums differ over %d shards", c->file->path, differ, ranks);
    }
    free(whole);
}

/* A step on this rank's copy of the batch. */
static void step(Case *c, int number)
{
    const Axis *dp = &c->m->split.dp;
    int B = c->m->now->B;
    vit_begin_step(c->m, (uint32_t)number, c->lr, 0);
    vit_micro_step(c->m, dp->rank * B, dp->ranks * B, true);
}

/* What the model's last stage has made of the batch. */
static void check_outputs(Case *c, real *stats)
{
    int B = c->m->now->B;
    if (!c->m->now->logits)
        return;
    vit_stats(c->m, stats);
    real loss = mean_loss(stats, B);
    compare(c, "out.loss", &loss, 1);
    compare_act(c, "out.logits", c->m->now->logits, (long)B * c->m->config.classes);
}

/* Evaluation, then forward and backward pass. `streams`: every row of every block is computed, and
 * compared. */
static void check_passes(Case *c, bool streams)
{
    Model *m = c->m;
    const Config *config = &m->config;
    long B = m->now->B, stream = B * vit_tokens(config) * config->width;
    real *stats = xcalloc(3 * (size_t)B, sizeof(real)), norm;
    vit_evaluate(m);
    check_outputs(c, stats);
    step(c, 0);
    for (int k = 0; streams && k <= config->layers; k++) {
        char name[32];
        snprintf(name, sizeof name, "act.%d", k);
        if (m->now->stream[k]) /* of this stage */
            compare_act(c, name, m->now->stream[k], stream);
    }
    check_outputs(c, stats);
    compare_all(c, "grad", compare_grad);
    if (under.fp8)
        check_direction(c);
    if (!ranks)
        check_shards(c);
    vit_update(m);
    const StepResult *r = vit_result(m, 0);
    const real *mine = r->stats + 3 * B * m->split.dp.rank;
    if (m->now->logits)
        CHECK(memcmp(stats, mine, 3 * (size_t)B * sizeof(real)) == 0, "%s: stats of the result",
              c->file->path);
    norm = (real)r->state.grad_norm;
    compare(c, "gradnorm", &norm, 1);
    CHECK(r->state.t == 1 && r->state.skipped == 0 && vit_state(m)->loss_scale == c->scale,
          "%s: t %u, %u skipped", c->file->path, r->state.t, r->state.skipped);
    free(stats);
}

static void check_steps(Case *c)
{
    real losses[1000];
    int batch = c->m->plan.batch;
    losses[0] = mean_loss(vit_result(c->m, 0)->stats, batch); /* it was made by check_passes */
    for (int i = 1; i < c->steps; i++) {
        step(c, i);
        vit_update(c->m);
        if (i > 1) /* the step before, while this one is under way */
            losses[i - 1] = mean_loss(vit_result(c->m, 1)->stats, batch);
    }
    losses[c->steps - 1] = mean_loss(vit_result(c->m, 0)->stats, batch);
    compare(c, "losses", losses, c->steps);
    compare_all(c, "step", compare_step);
}

static void model_case(Case *c)
{
    Config config;
    Plan plan;
    if (!read_case(c, &config, &plan))
        return;
    for (int streams = 1; streams >= 0; streams--) { /* the second time as training runs it */
        plan.keep_streams = streams;
        if (start(c, &config, &plan)) {
            check_passes(c, streams);
            if (!streams)
                check_steps(c);
        }
        check_gaps(c);
        vit_free(c->m);
        c->m = NULL;
    }
}

/* ---- published weights ---- */

/* How many of B rows have their largest number in another column. */
static int other_answers(const real *a, const real *b, int B, int K)
{
    int other = 0;
    for (int i = 0; i < B; i++) {
        const real *x = a + (long)i * K, *y = b + (long)i * K;
        int most = 0, right = 0;
        for (int k = 1; k < K; k++) {
            most = x[k] > x[most] ? k : most;
            right = y[k] > y[right] ? k : right;
        }
        other += most != right;
    }
    return other;
}

static void weights_case(Case *c)
{
    char folder[1024], path[1280], note[512];
    const char *file = c->file->path, *slash = strrchr(file, '/');
    snprintf(folder, sizeof folder, "%.*s../data/weights", slash ? (int)(slash - file) + 1 : 0,
             file);
    snprintf(path, sizeof path, "%s/%s.safetensors", folder, st_meta(c->file, "model"));
    if (!is_dir(folder)) {
        SKIP("%s: no weights in %s", file, folder);
        return;
    }
    const StTensor *images = st_find(c->file, "input.images");
    if (!CHECK(images && images->ndim == 4, "%s: input.images", file))
        return;
    Config config;
    Error e;
    if (!CHECK(weights_config(path, &config, note, sizeof note, &e), "%s", e.what))
        return;
    int B = (int)images->shape[0];
    Plan plan = {.max_batch = B,
                 .type = under.type,
                 .float_images = true,
                 .fp8 = {.on = under.fp8, .history = 2},
                 .gap = fill_gap};
    if (!share(c, &config, &plan))
        return;
    c->m = vit_create(&config, &plan, under.be);
    if (CHECK(ckpt_load_weights(&c->m->own, path, false, note, sizeof note, &e), "%s", e.what) &&
        expected(c, "input.images", B * (long)(vit_image_bytes(&config, false) / sizeof(real)))) {
        vit_set_batch(c->m, B, c->want, false, NULL, NULL);
        vit_evaluate(c->m);
        if (c->m->now->logits) {
            compare_act(c, "out.logits", c->m->now->logits, (long)B * config.classes);
            int other = other_answers(c->host, c->want, B, config.classes);
            CHECK(other <= under.fp8, "%s: other answers for %d of %d images", file, other, B);
        }
        check_gaps(c);
    }
    n_gaps = 0;
    vit_free(c->m);
}

/* Reads the options about ranks, and leaves the files in argv[1..]; returns the new argc. */
static int ranks_options(int argc, char **argv)
{
    static const struct {
        const char *name;
        int *value;
    } options[] = {{"--ranks", &ranks}, {"--tp", &tp}, {"--pp", &pp}, {"--zero", &zero}};
    int n = 1;
    for (int i = 1; i < argc; i++) {
        int k = 0;
        while (k < COUNT(options) && strcmp(argv[i], options[k].name) != 0)
            k++;
        if (k == COUNT(options))
            argv[n++] = argv[i];
        else if (i + 1 == argc || sscanf(argv[++i], "%d", options[k].value) != 1)
            die_usage("--ranks 2 --tp 2", "%s needs a number", options[k].name);
    }
    return n;
}

int main(int argc, char **argv)
{
    backend_cpu_reexec(argv);
    argc = ranks_options(device_options(argc, argv), argv);
    if (ranks && !team_possible())
        return check_report();
    if (ranks)
        team_start(ranks);
    else
        device_init(0);
    gate = under.fp8            ? 8e-2
           : under.type == BF16 ? 4e-2
           : under.type == F16  ? 1e-2
           : under.tf32         ? 5e-3
           : sizeof(real) == 8  ? 3e-7
                                : 1e-5;
    for (int i = 1; i < argc; i++) {
        Error e;
        Case c = {0};
        c.file = st_open(argv[i], &e);
        if (!CHECK(c.file != NULL, "%s", e.what))
            continue;
        long largest = 1;
        for (int k = 0; k < c.file->count; k++)
            largest = c.file->tensor[k].n > largest ? c.file->tensor[k].n : largest;
        c.host = xmalloc((size_t)largest * sizeof(real));
        c.want = xmalloc((size_t)largest * sizeof(real));
        int failed = check_failed;
        if (st_meta(c.file, "model") && !st_find(c.file, "param.pos_embed"))
            weights_case(&c);
        else
            model_case(&c);
        const char *slash = strrchr(argv[i], '/');
        if ((c.compared && team.rank == 0) || check_failed > failed)
            printf("%-32s %4d tensors, worst %.1e %-40s %s\n", slash ? slash + 1 : argv[i],
                   c.compared, c.worst, c.worst_name, check_failed > failed ? "FAILED" : "ok");
        free(c.host);
        free(c.want);
        st_close(c.file);
    }
    return ranks ? team_report() : check_report();
}
