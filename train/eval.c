/* eval.c - accuracy over a data set, and classes of single images.
 *
 * Read in this order: evaluate, predict. evaluate() serves the eval command and the training loop.
 */
#include "train/eval.h"

#include "image/decoder.h"
#include "train/flip.h"
#include "train/hosts.h"
#include "train/parallel.h"
#include "util/files.h"
#include "util/report.h"
#include "util/rng.h"
#include "weights/hub.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- evaluate ---- */

enum { LOSS, TOP1, TOP5, IMAGES, SUMS };

static void add_stats(const Session *s, const real *stats, int n, double sum[SUMS])
{
    if (!split_speaks(&s->split))
        return;
    for (int i = 0; i < n; i++)
        for (int k = LOSS; k <= TOP5; k++)
            sum[k] += (double)stats[3 * i + k];
    sum[IMAGES] += n;
}

/* The batch of n images that was computed `ago` batches before the last, stats [n, 3]. */
static void add_result(Session *s, int ago, int n, double sum[SUMS])
{
    add_stats(s, vit_result(s->m, ago)->stats, n, sum);
}

/* --tta flip: the batch that was computed last, b, together with its mirror images. */
static void add_flipped(Session *s, const Batch *b, const uint8_t *images, int n,
                        const real *targets, double sum[SUMS])
{
    int computed = n ? n : 1;
    real *stats = xcalloc(3 * (size_t)computed, sizeof *stats);
    flip_stats(s, computed, images, targets, b ? b->labels : NULL, stats);
    add_stats(s, stats, n, sum);
    free(stats);
}

/* Images of a data parallel rank's k-th batch: they take turns, batch k of rank r begins at image
 * (k * ranks + r) * micro. The last one may be short, and is computed as it is. */
static int images_of(const Session *s, long count, long k)
{
    const Axis *dp = &s->split.dp;
    long left = count - (k * dp->ranks + dp->rank) * s->micro;
    if (left < 0)
        return 0;
    return left < s->micro ? (int)left : s->micro;
}

/* Whether to go on: where a batch needs other ranks, all stop before the same one. */
static bool stopped(const Session *s, const volatile int *stop)
{
    double any = stop && *stop;
    if (parallel_together(s))
        hosts_sum(&any, 1);
    return any > 0;
}

/* Where ranks compute together, one that has no images left joins in with one of no matter. What a
 * batch came to is read while the next one is computed. */
bool evaluate(Session *s, Dataset *d, const volatile int *stop, Evaluation *out)
{
    const Axis *dp = &s->split.dp;
    int K = s->config.classes, waiting = 0; /* images of the batch before */
    bool reads = split_reads(&s->split), together = parallel_together(s);
    long count = data_count(d), turn = (long)dp->ranks * s->micro;
    real *targets = xcalloc((size_t)s->micro * (size_t)K, sizeof *targets);
    uint8_t *none = xcalloc(1, vit_image_bytes(&s->config, true));
    LoaderOptions options = {.batch = s->micro,
                             .start = (long)dp->rank * s->micro,
                             .stride = turn,
                             .end = count,
                             .workers = (int)s->o.workers,
                             .max_workers = s->max_workers,
                             .neighbours = s->world.local_ranks - 1};
    Loader *loader = reads ? loader_open(d, &options) : NULL;
    double sum[SUMS] = {0}, from = now();
    for (long k = 0; k * turn < count && !stopped(s, stop); k++) {
        int n = images_of(s, count, k);
        if (n == 0 && !together)
            break;
        hosts_at("reading images to evaluate", s->state.step);
        const Batch *b = reads && n ? loader_next(loader) : NULL;
        hosts_at("evaluating", s->state.step);
        if (b)
            soft_targets(targets, b->labels, b->n, K, 0, NULL, 0);
        const uint8_t *images = b ? b->images : none;
        vit_set_batch(s->m, n ? n : 1, images, true, reads ? targets : NULL, NULL);
        vit_evaluate(s->m);
        if (waiting)
            add_result(s, 1, waiting, sum);
        waiting = s->o.tta ? 0 : n;
        if (s->o.tta)
            add_flipped(s, b, reads ? images : NULL, n, reads ? targets : NULL, sum);
        double done = sum[IMAGES] * dp->ranks;
        report_progress("evaluating", (long)done, count, done / (now() - from));
    }
    if (waiting)
        add_result(s, 0, waiting, sum);
    hosts_sum(sum, SUMS);
    double n = fmax(sum[IMAGES], 1);
    *out = (Evaluation){.top1 = 100 * sum[TOP1] / n,
                        .top5 = 100 * sum[TOP5] / n,
                        .loss = isnan(sum[LOSS]) ? NAN : sum[LOSS] / n, /* without a sign */
                        .seconds = now() - from,
                        .images = (long)sum[IMAGES]};
    if (loader)
        loader_close(loader);
    free(targets);
    free(none);
    return out->images == count;
}

int command_eval(Session *s)
{
    Evaluation v;
    setup_data(s, false);
    setup_model(s, false);
    fflush(stdout);
    evaluate(s, s->val, NULL, &v);
    report_clear();
    if (data_damaged(s->val))
        printf("note: %ld damaged images were replaced by others\n", data_damaged(s->val));
    if (!isfinite(v.loss))
        die("use a checkpoint from before training diverged", "the model's outputs are not finite");
    printf("%ld images in %.1f s, %.1f images/s\n", v.images, v.seconds,
           (double)v.images / v.seconds);
    printf("top1 %.2f top5 %.2f loss %.4f images %ld\n", v.top1, v.top5, v.loss, v.images);
    return 0;
}

/* ---- predict ---- */

/* Names of classes: --classes, else the classes.txt of the run the weights come from, else what the
 * config.json beside them names, else none. A line is `id` or `id name`: the name is shown where
 * there is one. */
static char **class_names(const Session *s, int K)
{
    Error e = {"", ""};
    char **names = xcalloc((size_t)K, sizeof *names), *path = NULL;
    if (*s->o.classes)
        path = xstrdup(s->o.classes);
    else if (s->run_dir)
        path = xasprintf("%s/classes.txt", s->run_dir);
    if (!path || (!*s->o.classes && !path_exists(path))) {
        char **labels = s->run_dir ? NULL : hub_labels(s->weights, K);
        free(path);
        if (labels)
            free(names);
        return labels ? labels : names;
    }
    char *lines = read_text(path, 16 << 20, &e), *rest = lines, *line;
    setup_check(lines != NULL, &e);
    int n = 0;
    while ((line = strsep(&rest, "\n"))) {
        line[strcspn(line, "\r")] = 0;
        if (!*line)
            continue;
        if (n < K) {
            char *space = strchr(line, ' ');
            names[n] = xstrdup(*s->o.classes && space && space[1] ? space + 1 : line);
        }
        n++;
    }
    if (n != K)
        die("give --classes the file with the model's classes, in order",
            "%s names %d classes, the model has %d", path, n, K);
    free(lines);
    free(path);
    return names;
}

/* Probabilities in place: softmax, or one sigmoid per class. */
static void probabilities(const Config *c, double *p)
{
    double max = p[0], sum = 0;
    for (int k = 1; k < c->classes; k++)
        max = p[k] > max ? p[k] : max;
    for (int k = 0; k < c->classes; k++) {
        p[k] = c->loss == LOSS_SIGMOID ? 1 / (1 + exp(-p[k])) : exp(p[k] - max);
        sum += p[k];
    }
    for (int k = 0; k < c->classes && c->loss == LOSS_SOFTMAX; k++)
        p[k] /= sum;
}

/* As evaluation sees it, [image_h, image_w, 3]. */
static bool read_image(const Session *s, Decoder *d, const char *path, uint8_t *pixels, Error *e)
{
    Error why;
    return (decoder_open_file(d, path, &why) && decoder_eval(d, &s->images, pixels, &why)) ||
           fail(e, why.hint, "%s: %s", path, why.what);
}

/* Prints the --topk most likely classes of an image, from its logits [K]; p [K] is room. */
static void print_classes(const Session *s, const real *logits, double *p, char **names)
{
    const Config *c = &s->config;
    for (int k = 0; k < c->classes; k++)
        p[k] = (double)logits[k];
    probabilities(c, p);
    for (int rank = 0; rank < s->o.topk && rank < c->classes; rank++) {
        int best = -1;
        for (int k = 0; k < c->classes; k++)
            if (p[k] >= 0 && (best < 0 || p[k] > p[best]))
                best = k;
        if (best < 0)
            die("use a checkpoint from before training diverged",
                "the model's outputs are not finite");
        fprintf(s->results, "  %6.2f%%  %s%s%d\n", 100 * p[best],
                names[best] ? names[best] : "class", names[best] ? "  class " : " ", best);
        p[best] = -1;
    }
}

/* Up to s->micro images at a time: those that can be read stand side by side in `pixels`. */
typedef struct {
    uint8_t *pixels; /* [micro, image_h, image_w, 3] */
    real *logits;    /* [micro, K] */
    double *p;       /* [K] */
    Error *errors;   /* [micro] */
    char **names;    /* [K] */
} Predict;

/* Files [n] of which as many as can be read are predicted; returns how many cannot. */
static int predict_batch(Session *s, const Predict *b, char **files, int n)
{
    size_t bytes = vit_image_bytes(&s->config, true), K = (size_t)s->config.classes;
    int good = 0;
#pragma omp parallel
    {
        Decoder *decoder = decoder_new();
#pragma omp for schedule(dynamic, 1)
        for (int i = 0; i < n; i++) {
            b->errors[i] = (Error){"", ""};
            read_image(s, decoder, files[i], b->pixels + (size_t)i * bytes, &b->errors[i]);
        }
        decoder_free(decoder);
    }
    for (int i = 0; i < n; i++)
        if (!*b->errors[i].what && good++ != i)
            memcpy(b->pixels + (size_t)(good - 1) * bytes, b->pixels + (size_t)i * bytes, bytes);
    if (good) {
        vit_set_batch(s->m, good, b->pixels, true, NULL, NULL);
        vit_evaluate(s->m);
        vit_logits(s->m, b->logits);
        if (s->o.tta)
            flip_logits(s, good, b->pixels, NULL, b->logits);
    }
    const real *logits = b->logits;
    for (int i = 0; i < n; i++) {
        if (*b->errors[i].what) {
            fflush(s->results);
            if (s->world.rank == 0)
                fprintf(stderr, "error: %s\nhint: %s\n", b->errors[i].what, b->errors[i].hint);
            continue;
        }
        fprintf(s->results, "%s\n", files[i]);
        print_classes(s, logits, b->p, b->names);
        logits += K;
    }
    fflush(s->results);
    return n - good;
}

/* Results are all that goes to standard output. A file that cannot be read is an error at the end;
 * the others are predicted all the same. */
int command_predict(Session *s)
{
    const Config *c = &s->config;
    if (!s->asked_batch)
        s->o.batch_size = 32;
    if (s->o.batch_size > s->o.n_files)
        s->o.batch_size = s->o.n_files;
    s->o.micro_batch = 0; /* a run's was another matter */
    if (s->split.pp.ranks > 1)
        die_usage("leave --pp out", "the first stage of %d has no predictions to print",
                  s->split.pp.ranks);
    setup_model(s, false);
    size_t K = (size_t)c->classes, most = (size_t)s->micro;
    Predict b = {.pixels = xmalloc(most * vit_image_bytes(c, true)),
                 .logits = xcalloc(most * K, sizeof *b.logits),
                 .p = xcalloc(K, sizeof *b.p),
                 .errors = xcalloc(most, sizeof *b.errors),
                 .names = class_names(s, c->classes)};
    int failed = 0;
    for (int i = 0; i < s->o.n_files; i += s->micro) {
        int left = s->o.n_files - i;
        failed += predict_batch(s, &b, s->o.files + i, left < s->micro ? left : s->micro);
    }
    for (size_t k = 0; k < K; k++)
        free(b.names[k]);
    free(b.names);
    free(b.pixels);
    free(b.logits);
    free(b.p);
    free(b.errors);
    if (failed && s->world.rank == 0)
        fprintf(stderr, "%d of %d images could not be read\n", failed, s->o.n_files);
    return failed ? 1 : 0;
}
