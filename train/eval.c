/* eval.c - accuracy over a data set.
 *
 * evaluate() serves the eval command and the training loop.
 */
#include "train/eval.h"

#include "results/page.h"
#include "train/flip.h"
#include "train/hosts.h"
#include "train/parallel.h"
#include "train/pictures.h"
#include "train/results.h"
#include "util/report.h"
#include "util/rng.h"
#include "util/text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- evaluate ---- */

/* The batch that is being computed, and what is known of all images. */
typedef struct {
    Outcome *all; /* [count] */
    long first;   /* image of the set */
    int n;        /* 0: nothing is being computed */
    int *labels;  /* [micro] */
    real *logits; /* [micro, K] */
} Judged;

/* Of the batch's logits, and stats [n, 3] as the loss op has them. Of the ranks that have the same
 * logits, one speaks. */
static void add_outcomes(const Session *s, Judged *j, const real *stats)
{
    const Config *c = &s->config;
    int n = j->n, K = c->classes;
    j->n = 0;
#pragma omp parallel for
    for (int i = 0; i < n; i++)
        j->all[j->first + i] = outcome_of(j->logits + (size_t)i * (size_t)K, K,
                                          c->loss == LOSS_SIGMOID, j->labels[i], stats + 3 * i);
}

/* Waits for the batch, where one is being computed. */
static void take_outcomes(const Session *s, Judged *j)
{
    if (!split_speaks(&s->split))
        j->n = 0;
    if (j->n == 0)
        return;
    const StepResult *r = vit_result(s->m, 0);
    vit_read_act(s->m, s->m->now->logits, 0, (long)j->n * s->config.classes, j->logits);
    add_outcomes(s, j, r->stats);
}

/* --tta flip: the batch of n images that was computed last, together with its mirror images. */
static void take_flipped(Session *s, Judged *j, const uint8_t *images, const real *targets)
{
    int n = j->n ? j->n : 1; /* one of no matter */
    real *stats = xcalloc(3 * (size_t)n, sizeof *stats);
    flip_logits(s, n, images, targets, j->logits);
    if (!split_speaks(&s->split))
        j->n = 0;
    flip_stats(&s->config, j->n, j->logits, j->labels, stats);
    add_outcomes(s, j, stats);
    free(stats);
}

/* Labels of a batch, where other ranks have read it: from the targets that came with it. */
static void read_labels(const Session *s, int *labels, int n)
{
    const Micro *b = s->m->now;
    int K = s->config.classes;
    real *targets = xcalloc((size_t)n * (size_t)K, sizeof *targets);
    s->be->download(targets, b->inputs[b->set].targets, (size_t)n * (size_t)K * sizeof *targets);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < K; k++)
            if (targets[(size_t)i * (size_t)K + (size_t)k] > 0)
                labels[i] = k;
    free(targets);
}

/* All ranks are told of all images: each adds its own to zeros. */
static void share_outcomes(Outcome *all, long count)
{
    enum { AT_ONCE = 65536 };
    long n = count * (long)(sizeof *all / sizeof(double));
    for (long at = 0; at < n; at += AT_ONCE)
        hosts_sum((double *)all + at, (int)(n - at < AT_ONCE ? n - at : AT_ONCE));
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

/* Where ranks compute together, one that has no images left joins in with one of no matter. While a
 * batch is computed the next is read and sent; then its outcomes are taken. */
bool evaluate(Session *s, Dataset *d, const volatile int *stop, Evaluation *out)
{
    const Axis *dp = &s->split.dp;
    int K = s->config.classes;
    size_t micro = (size_t)s->micro;
    bool reads = split_reads(&s->split), together = parallel_together(s);
    bool asks = split_speaks(&s->split) && !reads;
    long count = data_count(d), turn = (long)dp->ranks * s->micro;
    real *targets = xcalloc(micro * (size_t)K, sizeof *targets);
    uint8_t *none = xcalloc(1, vit_image_bytes(&s->config, true));
    LoaderOptions options = {.batch = s->micro,
                             .start = (long)dp->rank * s->micro,
                             .stride = turn,
                             .end = count,
                             .workers = (int)s->o.workers,
                             .max_workers = s->max_workers,
                             .at_once = true,
                             .neighbours = s->world.local_ranks - 1};
    Loader *loader = reads ? loader_open(d, &options) : NULL;
    Judged j = {.all = xcalloc((size_t)count + 1, sizeof *j.all),
                .labels = xcalloc(micro, sizeof *j.labels),
                .logits = xcalloc(micro * (size_t)K, sizeof *j.logits)};
    double from = now(), done = 0;
    for (long k = 0; k * turn < count && !stopped(s, stop); k++) {
        int n = images_of(s, count, k);
        if (n == 0 && !together)
            break;
        hosts_at("reading images to evaluate", s->state.step);
        const Batch *b = reads && n ? loader_next(loader) : NULL;
        hosts_at("evaluating", s->state.step);
        const uint8_t *images = reads ? none : NULL;
        if (b) {
            images = b->images;
            soft_targets(targets, b->labels, b->n, K, 0, NULL, 0);
        }
        vit_set_batch(s->m, n ? n : 1, images, true, reads ? targets : NULL, NULL);
        take_outcomes(s, &j);
        vit_evaluate(s->m);
        j.n = n;
        j.first = (k * dp->ranks + dp->rank) * s->micro;
        if (b)
            memcpy(j.labels, b->labels, (size_t)n * sizeof *j.labels);
        else if (asks && n)
            read_labels(s, j.labels, n);
        if (s->o.tta)
            take_flipped(s, &j, images, reads ? targets : NULL);
        done += n;
        report_progress("evaluating", (long)(done * dp->ranks), count,
                        done * dp->ranks / (now() - from));
    }
    take_outcomes(s, &j);
    done = split_speaks(&s->split) ? done : 0;
    hosts_sum(&done, 1);
    *out = (Evaluation){.outcomes = j.all};
    bool complete = (long)done == count;
    if (complete) {
        share_outcomes(j.all, count);
        out->metrics = metrics_of(j.all, count, K);
    } else {
        evaluation_free(out);
    }
    out->seconds = now() - from;
    if (loader)
        out->waited = loader_stats(loader).waited;
    loader_close(loader);
    free(targets);
    free(none);
    free(j.labels);
    free(j.logits);
    return complete;
}

void evaluation_free(Evaluation *v)
{
    metrics_free(&v->metrics);
    free(v->outcomes);
    *v = (Evaluation){0};
}

/* In --out, or else in the run's folder where there is one. */
static void write_results(Session *s, const Evaluation *v)
{
    char *dir = *s->o.out ? xstrdup(s->o.out) : s->run_dir;
    Error e = {"", ""};
    if (!dir || s->world.rank > 0)
        return;
    char *page = xasprintf("%s/report.html", dir);
    bool ok = results_write(s, s->val, v, -1, dir, &e) && pictures_write(s, s->val, v, dir, &e) &&
              page_write(&dir, 1, page, &e);
    if (!ok && *s->o.out)
        die(e.hint, "%s", e.what);
    if (!ok)
        warn("%s; --out DIR writes the results elsewhere", e.what);
    else
        printf("results   %s: report.html, eval.json, eval.csv%s, worst.csv\n", dir,
               v->metrics.K <= CONFUSION_MOST ? ", confusion.csv" : "");
    free(page);
    if (dir != s->run_dir)
        free(dir);
}

int command_eval(Session *s)
{
    Evaluation v;
    setup_data(s, false);
    setup_model(s, false);
    fflush(stdout);
    evaluate(s, s->val, NULL, &v);
    const Metrics *m = &v.metrics;
    report_clear();
    if (data_damaged(s->val))
        printf("note: %s replaced by others\n",
               amount((double)data_damaged(s->val), "damaged image").s);
    if (!isfinite(m->loss))
        die("use a checkpoint from before training diverged", "the model's outputs are not finite");
    results_print(s, s->val, &v);
    write_results(s, &v);
    printf("%s in %.1f s, %.1f images/s, %.0f%% of the time waiting for data\n",
           amount((double)m->images, "image").s, v.seconds, (double)m->images / v.seconds,
           100 * v.waited / v.seconds);
    printf("top1 %.2f top5 %.2f loss %.4f images %ld\n", m->top1, m->top5, m->loss, m->images);
    evaluation_free(&v);
    return 0;
}
