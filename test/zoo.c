/* zoo.c - what test/zoo.py asks of this program, in double:
 *
 *   zoo logits IN OUT FILE...     logits of the images in IN, of each file's model: OUT has "0",
 * "1", ... [B, K]; of one without a head what the head would read, [B, D] zoo step IN BEFORE AFTER
 * OPT  one update of BEFORE on IN, by sgd or adamw, beside the one that AFTER holds: prints the
 * worst distance and its tensor
 *
 * IN is a safetensors file with `images` [B, 3, H, W], as the network sees them, and `labels` [B].
 * Files are what --weights takes; nothing is said about them.
 */
#include "checkpoint.h"
#include "util/files.h"
#include "vit.h"
#include "weights/names.h"
#include "weights/open.h"
#include "weights/weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static Error e;

static void must(bool ok)
{
    if (!ok)
        die(e.hint, "%s", e.what);
}

static char *file_of(const char *path)
{
    char *file = is_dir(path) ? weights_in_folder(path, &(Error){0}) : xstrdup(path);
    return file ? file : xstrdup(path);
}

static Model *load(const char *path, int B, bool training, int opt, WeightsInfo *w)
{
    static const OptConfig opts[] = {
        [OPT_ADAMW] = {OPT_ADAMW, 0.9, 0.999, 1e-8, 0, 0.05, 0},
        [OPT_SGD] = {OPT_SGD, 0, 0, 0, 0, 0, 0},
    };
    char report[512];
    char *file = file_of(path);
    must(weights_describe(file, 0, 0, w, &e));
    Config c = w->config;
    c.classes = c.classes ? c.classes : 1;
    Plan plan = {.max_batch = B, .batch = B, .float_images = true, .training = training};
    plan.opt = opts[opt];
    plan.decay = DECAY_ALL;
    Model *m = vit_create(&c, &plan, backend_cpu());
    must(ckpt_load_weights(&m->own, file, w->config.classes ? 0 : LOAD_NEW_HEAD, report,
                           sizeof report, &e));
    free(file);
    return m;
}

/* Images, and labels as targets [B, K]; free() both. */
static int read_batch(const char *path, int K, real **images, real **targets)
{
    SafeTensors *f = st_open(path, &e);
    must(f != NULL);
    long n;
    const StTensor *labels = st_find(f, "labels");
    *images = weights_values(f, "images", &n, &e);
    must(*images && labels);
    int B = (int)labels->n;
    int64_t *k = xmalloc((size_t)B * sizeof *k);
    *targets = xcalloc((size_t)B * (size_t)K, sizeof **targets);
    must(st_read_i64(f, labels, k, &e));
    for (int i = 0; i < B; i++)
        (*targets)[i * K + (int)(k[i] % K)] = 1;
    free(k);
    st_close(f);
    return B;
}

static void logits(const char *in, const char *out, char **file, int n)
{
    real **y = xcalloc((size_t)n, sizeof *y);
    int(*shape)[2] = xcalloc((size_t)n, sizeof *shape);
    StWriter *w = st_create(out);
    for (int i = 0; i < n; i++) {
        real *images, *targets;
        WeightsInfo info;
        int B = read_batch(in, 1, &images, &targets);
        Model *m = load(file[i], B, false, OPT_SGD, &info);
        int K = info.config.classes, D = vit_features(&m->config);
        shape[i][0] = B;
        shape[i][1] = K ? K : D;
        y[i] = xmalloc((size_t)B * (size_t)shape[i][1] * sizeof **y);
        vit_set_batch(m, B, images, false, NULL, NULL);
        vit_forward(m, false);
        if (K)
            vit_logits(m, y[i]);
        else
            vit_read_act(m, m->now->pooled, 0, (long)B * D, y[i]);
        vit_free(m);
        free(images);
        free(targets);
        char name[16];
        snprintf(name, sizeof name, "%d", i);
        st_add_tensor(w, name, ST_REAL, 2, shape[i]);
    }
    must(st_begin(w, 0, &e));
    uint64_t at = 0;
    for (int i = 0; i < n; i++) {
        size_t bytes = (size_t)shape[i][0] * (size_t)shape[i][1] * sizeof **y;
        must(st_write(w, at, y[i], bytes, &e));
        at += bytes;
        free(y[i]);
    }
    must(st_finish(w, 0, &e));
    free(y);
    free(shape);
}

/* Parameters whose first update is another one there, because theirs is made of two or of none:
 * positions of tokens that have none, heads that are joined, biases that are absent. They change
 * nothing of the first update of all others. */
static bool is_comparable(const WeightsInfo *w, const SafeTensors *after, const Param *p)
{
    const StTensor *t = st_find(after, p->name);
    bool zeros = t == NULL;
    for (int i = 0; t && i < t->pieces; i++)
        zeros |= t->piece[i].data == NULL;
    return !zeros && !(w->config.pool == POOL_CLS_DIST && names_is_head(p->name));
}

static void step(const char *in, const char *before, const char *after, const char *how)
{
    enum { RATE = 1000 }; /* 1 / lr */
    WeightsInfo w, other;
    int opt = strcmp(how, "sgd") == 0 ? OPT_SGD : OPT_ADAMW;
    char *file = file_of(before), *result = file_of(after);
    must(weights_describe(file, 0, 0, &w, &e));
    real *images, *targets;
    int B = read_batch(in, w.config.classes, &images, &targets);
    Model *m = load(before, B, true, opt, &w);
    vit_set_batch(m, B, images, false, targets, NULL);
    vit_begin_step(m, 0, 1.0 / RATE, 0);
    vit_micro_step(m, 0, B, true);
    vit_update(m);
    vit_result(m, 0);
    SafeTensors *f = weights_open(result, 0, 0, &other, &e);
    must(f != NULL);
    double worst = 0;
    const char *which = "";
    int compared = 0;
    for (int i = 0; i < m->layout->tensors; i++) {
        const Param *p = &m->layout->param[i];
        if (!is_comparable(&w, f, p))
            continue;
        long n;
        real *theirs = weights_values(f, p->name, &n, &e),
             *ours = xmalloc((size_t)n * sizeof *ours);
        must(theirs != NULL && n == p->n);
        vit_read_act(m,
                     (const dev *)((const char *)m->own.weights + p->offset * (long)sizeof(real)),
                     0, n, ours);
        for (long k = 0; k < n; k++) {
            double far = fabs((double)(ours[k] - theirs[k])) * RATE;
            if (!(far <= worst)) {
                worst = far;
                which = p->name;
            }
        }
        compared++;
        free(theirs);
        free(ours);
    }
    printf("%.3e %s %d of %d tensors\n", worst, which, compared, m->layout->tensors);
    st_close(f);
    vit_free(m);
    free(images);
    free(targets);
    free(file);
    free(result);
}

int main(int argc, char **argv)
{
    backend_cpu_reexec(argv);
    backend_cpu()->init(&(Device){0});
    if (argc > 4 && strcmp(argv[1], "logits") == 0)
        logits(argv[2], argv[3], argv + 4, argc - 4);
    else if (argc == 6 && strcmp(argv[1], "step") == 0)
        step(argv[2], argv[3], argv[4], argv[5]);
    else
        die_usage("test/zoo.py calls it",
                  "zoo logits IN OUT FILE... | zoo step IN BEFORE AFTER OPT");
    return 0;
}
