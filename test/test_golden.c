/* test_golden FILE...: compare with values that PyTorch computed in float64.
 *
 * A file is one small model: its parameters, a batch, and what must come out of it - the residual
 * stream after every block, logits, loss, every gradient, their norm, the losses of a few optimiser
 * steps and the parameters after them. (A file with `model` in its metadata instead holds images
 * and the logits of published weights, which lie in ../data/weights beside the file's folder.)
 *
 * Measure: relative L2 per tensor, |a - b| / |b|. Gate: 1e-5 for the float build (PyTorch in
 * float32 stays below 5e-6), 3e-7 for the double build (the files are stored as float32). One
 * exception: softmax cancels a key bias, so its true gradient is zero, and an Adam-type step
 * divides rounding noise by rounding noise; the key third of attn.qkv.bias after such steps is held
 * to steps * lr.
 */
#include "../checkpoint.h"
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double gate = sizeof(real) == 8 ? 3e-7 : 1e-5;

typedef struct {
    SafeTensors *file;
    Model *m;
    real *host, *want; /* room for the largest tensor */
    int compared, steps;
    double worst, lr;
    char worst_name[160];
    bool adam_type;
} Case;

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

/* The tensor `name` of the file into c->want; it must hold n elements. */
static bool expected(Case *c, const char *name, long n)
{
    Error e;
    const StTensor *t = st_find(c->file, name);
    if (!CHECK(t != NULL, "%s: tensor %s is missing", st_path(c->file), name))
        return false;
    if (!CHECK(t->n == n, "%s: %s has %ld elements, the model %ld", st_path(c->file), name, t->n,
               n))
        return false;
    return CHECK(st_read_real(c->file, t, c->want, &e), "%s", e.what);
}

static void judge(Case *c, const char *name, double error)
{
    c->compared++;
    if (!(error <= c->worst)) {
        c->worst = error;
        snprintf(c->worst_name, sizeof c->worst_name, "%s", name);
    }
    CHECK(error <= gate, "%s: %s: relative L2 %.2e is above %.0e", st_path(c->file), name, error,
          gate);
}

static void compare(Case *c, const char *name, const real *got, long n)
{
    if (expected(c, name, n))
        judge(c, name, relative(got, c->want, n));
}

static void compare_dev(Case *c, const char *name, const dev *buffer, long offset, long n)
{
    if (!expected(c, name, n))
        return; /* first: the host buffer is as large as the file's tensors */
    vit_read(c->m, buffer, offset, n, c->host);
    judge(c, name, relative(c->host, c->want, n));
}

static void compare_step(Case *c, const char *name, long offset, long n)
{
    size_t len = strlen(name);
    if (!c->adam_type || len < 8 || strcmp(name + len - 8, "qkv.bias") != 0) {
        compare_dev(c, name, c->m->weights, offset, n);
        return;
    }
    if (!expected(c, name, n))
        return;
    vit_read(c->m, c->m->weights, offset, n, c->host);
    long third = n / 3;
    double worst = 0;
    for (long i = third; i < 2 * third; i++) {
        double d = fabs((double)(c->host[i] - c->want[i]));
        worst = isnan(worst) || d <= worst ? worst : d;
    }
    CHECK(worst <= c->steps * c->lr, "%s: %s, key third: %.2e is above steps*lr", st_path(c->file),
          name, worst);
    memmove(c->host + third, c->host + 2 * third, (size_t)third * sizeof(real));
    memmove(c->want + third, c->want + 2 * third, (size_t)third * sizeof(real));
    judge(c, name, relative(c->host, c->want, 2 * third));
}

/* ---- one model case ---- */

static double number(Case *c, const char *key)
{
    const char *s = st_meta(c->file, key);
    char *end = NULL;
    double v = s ? strtod(s, &end) : NAN;
    CHECK(s && end != s && isfinite(v), "%s: metadata %s is '%s'", st_path(c->file), key,
          s ? s : "(absent)");
    return v;
}

static int choose(Case *c, const char *key, const char *const *words)
{
    const char *s = st_meta(c->file, key);
    for (int i = 0; s && words[i]; i++)
        if (strcmp(s, words[i]) == 0)
            return i;
    CHECK(false, "%s: metadata %s is '%s'", st_path(c->file), key, s ? s : "(absent)");
    return -1;
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
        if (CHECK(v != NULL, "%s: metadata %s is missing", st_path(c->file), must[i]))
            CHECK(vit_config_set(config, must[i], v, &e), "%s: %s", st_path(c->file), e.what);
    }
    CHECK(vit_config_check(config, &e), "%s: %s", st_path(c->file), e.what);
    *plan =
        (Plan){.max_batch = (int)number(c, "batch"), .training = true, .clip = number(c, "clip")};
    plan->opt = (OptConfig){choose(c, "optimizer", opts),
                            number(c, "beta1"),
                            number(c, "beta2"),
                            number(c, "adam_eps"),
                            number(c, "momentum"),
                            number(c, "weight_decay"),
                            0};
    plan->decay = choose(c, "decay", decays);
    c->lr = number(c, "lr");
    c->steps = (int)number(c, "steps");
    c->adam_type = plan->opt.kind != OPT_SGD;
    CHECK(plan->max_batch > 0 && plan->max_batch <= 4096 && c->steps > 0 && c->steps < 1000);
    return check_failed == failed;
}

/* param.NAME, grad.NAME and step.NAME have the parameter's shape, not only its size. */
static bool same_shape(Case *c, const char *key, const ParamInfo *p)
{
    const StTensor *t = st_find(c->file, key);
    bool same = t && t->ndim == p->ndim;
    for (int i = 0; same && i < p->ndim; i++)
        same = t->shape[i] == p->shape[i];
    return CHECK(same, "%s: %s has another shape than the model's", st_path(c->file), key);
}

static bool load_param(void *ctx, int unit, const ParamInfo *p, const char *name, long offset)
{
    Case *c = ctx;
    char key[128];
    (void)unit;
    snprintf(key, sizeof key, "param.%s", name);
    if (!expected(c, key, p->n) || !same_shape(c, key, p))
        return false;
    vit_write(c->m, c->m->weights, offset, p->n, c->want);
    return true;
}

static bool check_grad(void *ctx, int unit, const ParamInfo *p, const char *name, long offset)
{
    char key[128];
    (void)unit;
    snprintf(key, sizeof key, "grad.%s", name);
    if (same_shape(ctx, key, p))
        compare_dev(ctx, key, ((Case *)ctx)->m->grads, offset, p->n);
    return true;
}

static bool check_step(void *ctx, int unit, const ParamInfo *p, const char *name, long offset)
{
    char key[128];
    (void)unit;
    snprintf(key, sizeof key, "step.%s", name);
    if (same_shape(ctx, key, p))
        compare_step(ctx, key, offset, p->n);
    return true;
}

static double mean_loss(const Model *m)
{
    real stats[3 * m->B];
    double sum = 0;
    vit_stats(m, stats);
    for (int b = 0; b < m->B; b++)
        sum += (double)stats[3 * b];
    return sum / m->B;
}

/* Inputs and parameters into a fresh model. */
static bool start(Case *c, const Config *config, const Plan *plan)
{
    long B = plan->max_batch, pixels = (long)(vit_image_bytes(config, false) / sizeof(real));
    c->m = vit_create(config, plan, backend_cpu());
    if (!vit_each_param(c->m, load_param, c))
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

/* Forward and backward pass. `streams`: every row of every block is computed, and compared. */
static void check_passes(Case *c, bool streams)
{
    Model *m = c->m;
    const Config *config = &m->config;
    long B = m->B, stream = B * vit_tokens(config) * config->width;
    vit_begin_step(m, 0, c->lr, 0);
    vit_micro_step(m, 0, (int)B);
    for (int k = 0; streams && k <= config->layers; k++) {
        char name[32];
        snprintf(name, sizeof name, "act.%d", k);
        compare_dev(c, name, m->stream[k], 0, stream);
    }
    compare_dev(c, "out.logits", m->logits, 0, B * config->classes);
    real loss = (real)mean_loss(m);
    compare(c, "out.loss", &loss, 1);
    vit_each_param(m, check_grad, c);
    vit_update(m);
    real norm = (real)vit_state(m)->grad_norm;
    compare(c, "gradnorm", &norm, 1);
}

static void check_steps(Case *c)
{
    real losses[1000];
    losses[0] = (real)mean_loss(c->m);
    for (int step = 1; step < c->steps; step++) { /* the first was made by check_passes */
        vit_begin_step(c->m, (uint32_t)step, c->lr, 0);
        vit_micro_step(c->m, 0, c->m->B);
        losses[step] = (real)mean_loss(c->m);
        vit_update(c->m);
    }
    compare(c, "losses", losses, c->steps);
    vit_each_param(c->m, check_step, c);
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
        vit_free(c->m);
        c->m = NULL;
    }
}

/* ---- published weights ---- */

static void weights_case(Case *c)
{
    char folder[1024], path[1280], note[512];
    const char *file = st_path(c->file), *slash = strrchr(file, '/');
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
    if (!CHECK(ckpt_config(path, &config, note, sizeof note, &e), "%s", e.what))
        return;
    int B = (int)images->shape[0];
    c->m = vit_create(&config, &(Plan){.max_batch = B}, backend_cpu());
    if (CHECK(ckpt_load_weights(c->m, path, false, note, sizeof note, &e), "%s", e.what) &&
        expected(c, "input.images", B * (long)(vit_image_bytes(&config, false) / sizeof(real)))) {
        vit_set_batch(c->m, B, c->want, false, NULL, NULL);
        vit_forward(c->m, false);
        compare_dev(c, "out.logits", c->m->logits, 0, (long)B * config.classes);
    }
    vit_free(c->m);
}

int main(int argc, char **argv)
{
    backend_cpu_reexec(argv);
    backend_cpu()->init(0);
    for (int i = 1; i < argc; i++) {
        Error e;
        Case c = {0};
        c.file = st_open(argv[i], &e);
        if (!CHECK(c.file != NULL, "%s", e.what))
            continue;
        long largest = 1;
        for (int k = 0; k < st_count(c.file); k++)
            largest = st_at(c.file, k)->n > largest ? st_at(c.file, k)->n : largest;
        c.host = xmalloc((size_t)largest * sizeof(real));
        c.want = xmalloc((size_t)largest * sizeof(real));
        int failed = check_failed;
        if (st_meta(c.file, "model") && !st_find(c.file, "param.pos_embed"))
            weights_case(&c);
        else
            model_case(&c);
        const char *slash = strrchr(argv[i], '/');
        if (c.compared || check_failed > failed)
            printf("%-32s %4d tensors, worst %.1e %-40s %s\n", slash ? slash + 1 : argv[i],
                   c.compared, c.worst, c.worst_name, check_failed > failed ? "FAILED" : "ok");
        free(c.host);
        free(c.want);
        st_close(c.file);
    }
    return check_report();
}
