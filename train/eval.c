/* eval.c - accuracy over a data set, and the speed of both passes.
 *
 * Read in this order: evaluate, bench.
 *
 * evaluate() serves the eval command and the training loop. The bench command times steps without
 * data; how far that is from what the machine's matrix product allows is measured by bench/bench.c.
 */
#include "train/eval.h"

#include "train/hosts.h"
#include "train/page.h"
#include "train/parallel.h"
#include "train/pictures.h"
#include "train/results.h"
#include "util/report.h"
#include "util/rng.h"

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

/* Waits for the batch. Of the ranks that have the same logits, one speaks. */
static void take_outcomes(const Session *s, Judged *j)
{
    const Config *c = &s->config;
    int n = j->n, K = c->classes;
    j->n = 0;
    if (n == 0 || !split_speaks(&s->split))
        return;
    const StepResult *r = vit_result(s->m, 0);
    vit_read_act(s->m, s->m->now->logits, 0, (long)n * K, j->logits);
#pragma omp parallel for
    for (int i = 0; i < n; i++)
        j->all[j->first + i] = outcome_of(j->logits + (size_t)i * (size_t)K, K,
                                          c->loss == LOSS_SIGMOID, j->labels[i], r->stats + 3 * i);
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
        if (b)
            soft_targets(targets, b->labels, b->n, K, 0, NULL, 0);
        vit_set_batch(s->m, n ? n : 1, b ? b->images : none, true, reads ? targets : NULL, NULL);
        take_outcomes(s, &j);
        vit_evaluate(s->m);
        j.n = n;
        j.first = (k * dp->ranks + dp->rank) * s->micro;
        if (b)
            memcpy(j.labels, b->labels, (size_t)n * sizeof *j.labels);
        else if (asks && n)
            read_labels(s, j.labels, n);
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
        printf("note: %ld damaged images were replaced by others\n", data_damaged(s->val));
    if (!isfinite(m->loss))
        die("use a checkpoint from before training diverged", "the model's outputs are not finite");
    results_print(s, s->val, &v);
    write_results(s, &v);
    printf("%ld images in %.1f s, %.1f images/s\n", m->images, v.seconds,
           (double)m->images / v.seconds);
    printf("top1 %.2f top5 %.2f loss %.4f images %ld\n", m->top1, m->top5, m->loss, m->images);
    evaluation_free(&v);
    return 0;
}

/* ---- bench ---- */

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The same images again and again. */
typedef struct {
    Session *s;
    uint8_t *images;
    real *targets;
    int micros; /* of this rank in a step */
    bool sent;  /* they are on the device */
} Bench;

static void bench_micro(void *arg, int micro, bool backward)
{
    Bench *b = arg;
    Session *s = b->s;
    bool last = micro == b->micros - 1;
    alive();
    if (backward) {
        vit_micro_backward(s->m, micro, last);
        return;
    }
    if (!b->sent || b->micros > 1)
        vit_set_batch(s->m, s->micro, b->images, true, b->targets, NULL);
    b->sent = true;
    vit_micro_forward(s->m, 0, (int)s->o.batch_size);
}

static void bench_step(Bench *b, int step, bool training)
{
    Session *s = b->s;
    if (training) {
        vit_begin_step(s->m, (uint32_t)step, 1e-4, 1);
        run_schedule(&s->split, b->micros, bench_micro, b);
        vit_update(s->m);
        return;
    }
    if (!b->sent)
        vit_set_batch(s->m, s->micro, b->images, true, b->targets, NULL);
    b->sent = true;
    vit_evaluate(s->m);
}

/* Median seconds of a step out of `repeat`, on images that are on the device already where a step
 * has one micro-batch. A device that computes by itself is given each step while it is at the one
 * before. */
static double time_steps(Session *s, int repeat, bool training)
{
    enum { WARM = 4 }; /* memory is touched, algorithms are chosen, graphs recorded */
    int B = s->micro, lag = s->be->asynchronous ? 1 : 0;
    size_t bytes = vit_image_bytes(&s->config, true), K = (size_t)s->config.classes;
    int *labels = xcalloc((size_t)B, sizeof *labels);
    Bench b = {.s = s,
               .images = xmalloc(bytes * (size_t)B),
               .targets = xcalloc(K * (size_t)B, sizeof *b.targets),
               .micros = (int)s->o.batch_size / s->split.dp.ranks / B};
    double *took = xcalloc((size_t)repeat, sizeof *took), from = now();
    Ticket done[2] = {0, 0};
    for (size_t i = 0; i < bytes * (size_t)B; i++)
        b.images[i] = (uint8_t)(philox(1, (uint32_t)i, (uint32_t)(i >> 32), 0, 0).v[0]);
    for (int i = 0; i < B; i++)
        labels[i] = i % s->config.classes;
    soft_targets(b.targets, labels, B, s->config.classes, 0.1, NULL, 0);
    for (int i = 0; i < WARM + repeat; i++) {
        bench_step(&b, i, training);
        done[i % 2] = s->be->mark();
        s->be->wait(done[(i + lag) % 2]); /* the one before, with a lag */
        if (i >= WARM)
            took[i - WARM] = now() - from;
        from = now();
        report_progress(training ? "training" : "inference", i + 1, WARM + repeat, 0);
    }
    report_clear();
    qsort(took, (size_t)repeat, sizeof *took, ascending);
    double median = took[repeat / 2];
    free(b.images);
    free(labels);
    free(b.targets);
    free(took);
    return median;
}

/* `flop` is that of one image, `peak` the device's in a second (0: not known). */
static void print_rate(const char *what, double seconds, int B, double flop, double peak)
{
    printf("%-10s %8.2f images/s  %8.2f ms per step of %d  %7.1f GFLOP/s", what, B / seconds,
           1000 * seconds, B, B * flop / seconds / 1e9);
    if (peak > 0)
        printf("  MFU %.1f%%", 100 * B * flop / seconds / peak);
    printf("\n");
    fflush(stdout);
}

/* Two models one after the other: a plan for training holds more than inference needs. */
int command_bench(Session *s)
{
    if (!options_given(&s->o, "batch-size"))
        s->o.batch_size = s->be->asynchronous ? 256 : 8;
    int repeat = s->be->asynchronous ? 30 : 5;
    if (s->o.steps)
        repeat = (int)s->o.steps;
    double forward = vit_forward_flops(&s->config);
    setup_model(s, true);
    double peak = s->be->peak_flops() * s->world.ranks;
    print_rate("training", time_steps(s, repeat, true), (int)s->o.batch_size, 3 * forward, peak);
    vit_free(s->m);
    setup_model(s, false);
    print_rate("inference", time_steps(s, repeat, false), s->micro * s->split.dp.ranks, forward,
               peak);
    return 0;
}
