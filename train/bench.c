/* bench.c - the bench command.
 *
 * A configuration is timed in steady state, step by step: the middle step counts, and the deciles
 * say how much steps differ. Images are on the device already (--data fake:resident, the default),
 * or come as in training, by a loader and an upload, from whatever --data names: the difference is
 * the loader's share. How far a CPU is from what its matrix product allows is measured by
 * bench/bench.c.
 *
 * A file of configurations (spec.h) is worked off by a process for each, since a process has one
 * device, one number of ranks and one layout.
 *
 * Read in this order: a step, one configuration, many.
 */
#include "train/bench.h"

#include "train/hosts.h"
#include "train/meter.h"
#include "train/spec.h"
#include "util/files.h"
#include "util/report.h"
#include "util/rng.h"
#include "util/text.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char resident[] = "fake:resident";

/* ---- a step ---- */

typedef struct {
    Session *s;
    Loader *loader; /* NULL: the same images again and again, */
    bool sent;      /* which are on the device */
    uint8_t *images;
    int *labels;
    real *targets; /* [micro, classes] */
    const Batch *batch;
    int used;   /* images of batch */
    int micros; /* of this rank in a step */
} Bench;

/* The next micro-batch. */
static void set_batch(Bench *b)
{
    Session *s = b->s;
    const uint8_t *images = b->images;
    const int *labels = b->labels;
    if (b->loader) {
        if (!b->batch || b->used == b->batch->n) {
            b->batch = loader_next(b->loader);
            b->used = 0;
        }
        images = b->batch->images + (size_t)b->used * vit_image_bytes(&s->config, true);
        labels = b->batch->labels + b->used;
        b->used += s->micro;
    }
    if (!b->loader && b->sent)
        return;
    soft_targets(b->targets, labels, s->micro, s->config.classes, s->o.label_smoothing, NULL, 0);
    vit_set_batch(s->m, s->micro, images, true, b->targets, NULL);
    b->sent = b->micros == 1;
}

static void bench_micro(void *arg, int micro, bool backward)
{
    Bench *b = arg;
    Session *s = b->s;
    alive();
    if (backward) {
        vit_micro_backward(s->m, micro, micro == b->micros - 1);
        return;
    }
    set_batch(b);
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
    set_batch(b);
    vit_evaluate(s->m);
}

/* ---- one configuration ---- */

typedef struct {
    double seconds;    /* of the middle step, */
    double fast, slow; /* and of those that a tenth of the steps is below and above */
    double waited;     /* share of the time in which there were no images */
    double images;     /* of a step, all ranks, */
    int micro;         /* and computed at a time */
} Times;

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static Bench bench_new(Session *s, bool training)
{
    size_t bytes = vit_image_bytes(&s->config, true) * (size_t)s->micro;
    Bench b = {.s = s,
               .images = xmalloc(bytes),
               .labels = xcalloc((size_t)s->micro, sizeof *b.labels),
               .targets = xcalloc((size_t)s->config.classes * (size_t)s->micro, sizeof *b.targets),
               .micros = (int)s->o.batch_size / s->split.dp.ranks / s->micro};
    for (size_t i = 0; i < bytes; i++)
        b.images[i] = (uint8_t)(philox(1, (uint32_t)i, (uint32_t)(i >> 32), 0, 0).v[0]);
    for (int i = 0; i < s->micro; i++)
        b.labels[i] = i % s->config.classes;
    if (s->train && training)
        b.loader = setup_loader(s);
    return b;
}

/* A device that computes by itself is given each step while it is at the one before. */
static Times time_steps(Session *s, int repeat, bool training)
{
    enum { WARM = 4 }; /* memory is touched, algorithms are chosen, graphs recorded */
    int lag = s->be->asynchronous ? 1 : 0;
    Bench b = bench_new(s, training);
    double *took = xcalloc((size_t)repeat, sizeof *took), from = now(), began = from, waited = 0;
    Ticket done[2] = {0, 0};
    for (int i = 0; i < WARM + repeat; i++) {
        bench_step(&b, i, training);
        done[i % 2] = s->be->mark();
        s->be->wait(done[(i + lag) % 2]); /* the one before, with a lag */
        if (i >= WARM)
            took[i - WARM] = now() - from;
        from = now();
        if (i == WARM - 1) {
            began = from;
            waited = b.loader ? loader_stats(b.loader).waited : 0;
        }
        report_progress(training ? "training" : "inference", i + 1, WARM + repeat, 0);
    }
    report_clear();
    qsort(took, (size_t)repeat, sizeof *took, ascending);
    Times t = {.seconds = took[repeat / 2],
               .fast = took[repeat / 10],
               .slow = took[repeat - 1 - repeat / 10],
               .micro = s->micro,
               .images = training ? (double)s->o.batch_size : s->micro * s->split.dp.ranks};
    if (b.loader) {
        t.waited = (loader_stats(b.loader).waited - waited) / (from - began);
        loader_close(b.loader);
    }
    free(b.images);
    free(b.labels);
    free(b.targets);
    free(took);
    return t;
}

/* Half of what lies between the deciles, of the middle; percent. */
static double spread_of(const Times *t)
{
    return 50 * (t->slow - t->fast) / t->seconds;
}

/* `flop` is that of one image, `peak` the devices' in a second (0: not known). */
static void print_rate(const char *what, const Times *t, double flop, double peak)
{
    double rate = t->images / t->seconds;
    printf("%-10s %8.2f images/s  %8.2f ms per step of %.0f  %7.1f GFLOP/s", what, rate,
           1000 * t->seconds, t->images, rate * flop / 1e9);
    if (peak > 0)
        printf("  MFU %.1f%%", 100 * rate * flop / peak);
    printf("  +-%.1f%%", spread_of(t));
    if (t->waited > 0)
        printf("  wait %.0f%%", 100 * t->waited);
    printf("\n");
    fflush(stdout);
}

/* What this rank has planned to take of the device. */
static double planned_bytes(const Model *m)
{
    return (double)m->own.bytes_weights + (double)m->own.bytes_grads + (double)m->own.bytes_opt +
           (double)m->bytes_acts + (double)m->bytes_inputs;
}

static void log_configuration(const Options *o)
{
    Error e;
    Spec spec;
    if (!*o->spec)
        return;
    if (!spec_read(&spec, o->spec, &e))
        die_usage(e.hint, "%s", e.what);
    const Configuration *c = spec_find(&spec, o->only, &e);
    log_text("name", c->name);
    log_text("on", c->on);
    log_text("source", c->source);
    log_text("baseline", c->baseline);
    if (c->published > 0) {
        log_num("published", c->published);
        printf("published  %8.2f images/s: %s%s%s\n", c->published, c->on, *c->source ? "; " : "",
               c->source);
    }
    spec_free(&spec);
}

/* The line of a configuration: images_per_s counts all ranks, mfu is in percent, wait a share. */
static void write_result(const Session *s, const Times *train, const Times *infer, double memory,
                         double peak)
{
    const Options *o = &s->o;
    Error e;
    char device[1024];
    double rate = train->images / train->seconds, flop = 3 * vit_forward_flops(&s->config);
    if (s->world.rank > 0)
        return;
    if (*o->json)
        setup_check(log_open(o->json, false, &e), &e);
    s->be->describe(device, sizeof device);
    log_begin("bench");
    log_configuration(o);
    log_text("device", device);
    log_num("ranks", s->world.ranks);
    log_num("tp", s->split.tp.ranks);
    log_num("pp", s->split.pp.ranks);
    log_num("zero", s->split.zero);
    log_num("batch", (double)o->batch_size);
    log_num("micro_batch", train->micro);
    log_text("data", s->train ? o->data : resident);
    log_num("images_per_s", rate);
    log_num("spread", spread_of(train));
    log_num("ms", 1000 * train->seconds);
    log_num("tflops", rate * flop / 1e12);
    if (peak > 0)
        log_num("mfu", 100 * rate * flop / peak);
    log_num("wait", train->waited);
    log_num("inference_images_per_s", infer->images / infer->seconds);
    log_num("memory", memory);
    log_num("peak_memory", meter_usage().peak_bytes);
    log_end();
    log_close();
}

/* Two models one after the other: a plan for training holds more than inference needs. */
int command_bench(Session *s)
{
    Options *o = &s->o;
    if (!options_given(o, "batch-size"))
        o->batch_size = s->be->asynchronous ? 256 : 8;
    int repeat = s->be->asynchronous ? 30 : 5;
    if (o->steps)
        repeat = (int)o->steps;
    if (options_given(o, "data") && strcmp(o->data, resident) != 0) {
        options_set(o, "val-data", "none", "", NULL); /* nothing is evaluated */
        setup_data(s, true);
    }
    double forward = vit_forward_flops(&s->config);
    setup_model(s, true);
    if (o->batch_size / s->split.dp.ranks % s->micro != 0)
        die_usage("give a --micro-batch that divides it", "%s at a time, of %ld on each rank",
                  amount(s->micro, "image").s, o->batch_size / s->split.dp.ranks);
    double peak = s->be->peak_flops() * s->world.ranks, memory = planned_bytes(s->m);
    Times train = time_steps(s, repeat, true);
    print_rate("training", &train, 3 * forward, peak);
    vit_free(s->m);
    if (s->split.pp.ranks > 1 && !options_given(o, "micro-batch"))
        o->micro_batch = o->batch_size / s->split.dp.ranks; /* small ones are training's alone */
    setup_model(s, false);
    Times infer = time_steps(s, repeat, false);
    print_rate("inference", &infer, forward, peak);
    write_result(s, &train, &infer, memory, peak);
    return 0;
}

/* ---- many ---- */

bool bench_is_of_many(const Options *o)
{
    return strcmp(o->command, "bench") == 0 && *o->spec && !*o->only;
}

typedef struct {
    const Configuration *of;
    cJSON *line;      /* NULL: it failed, */
    char reason[256]; /* and why */
} Result;

static double number(const cJSON *line, const char *key)
{
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(line, key);
    return cJSON_IsNumber(x) ? x->valuedouble : NAN;
}

/* This program, with the same arguments, for one of them; what it prints goes to `log`. */
static bool run_one(const char *name, char **argv, const char *log, const char *json)
{
    int argc = 0, how = 1;
    while (argv[argc])
        argc++;
    char **args = xcalloc((size_t)argc + 5, sizeof *args);
    memcpy(args, argv, (size_t)argc * sizeof *args);
    memcpy(args + argc, (char *[]){"--only", (char *)name, "--json", (char *)json},
           4 * sizeof *args);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        int fd = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0)
            _exit(1);
        execv("/proc/self/exe", args);
        _exit(1);
    }
    while (pid > 0 && waitpid(pid, &how, 0) < 0 && errno == EINTR)
        ;
    free(args);
    return pid > 0 && WIFEXITED(how) && WEXITSTATUS(how) == 0;
}

/* The first thing that a failed process has called an error. */
static void find_reason(const char *log, char *out, size_t size)
{
    char *text = read_text(log, 1 << 24, NULL), *at = text ? strstr(text, "error: ") : NULL;
    snprintf(out, size, "it ended without a word");
    if (at)
        snprintf(out, size, "%.*s", (int)strcspn(at + 7, "\n"), at + 7);
    free(text);
}

static Result run(const Configuration *c, char **argv, const char *dir)
{
    Result r = {.of = c};
    char *log = xasprintf("%s/log", dir), *json = xasprintf("%s/json", dir);
    bool ok = run_one(c->name, argv, log, json);
    char *text = ok ? read_text(json, 1 << 20, NULL) : NULL;
    r.line = text ? cJSON_Parse(text) : NULL;
    if (!r.line)
        find_reason(log, r.reason, sizeof r.reason);
    if (r.line)
        fprintf(stderr, "%s: %.1f images/s\n", c->name, number(r.line, "images_per_s"));
    else
        fprintf(stderr, "%s: %s\n", c->name, r.reason);
    remove(log);
    remove(json);
    free(text);
    free(log);
    free(json);
    return r;
}

/* images/s per device, against those of the configuration that is the baseline. */
static void add_efficiency(const Result *all, int n, Result *r)
{
    for (int i = 0; i < n && r->line; i++)
        if (all[i].line && strcmp(all[i].of->name, r->of->baseline) == 0) {
            double one = number(all[i].line, "images_per_s") / number(all[i].line, "ranks");
            double each = number(r->line, "images_per_s") / number(r->line, "ranks");
            cJSON_AddNumberToObject(r->line, "efficiency", each / one);
        }
}

/* " | 12.3%", or an empty cell where the number is not known. */
static void cell(const char *fmt, double x) PRINTF_LIKE(1, 0);
static void cell(const char *fmt, double x)
{
    printf(" | ");
    if (isfinite(x))
        printf(fmt, x);
}

static void print_row(const Result *r)
{
    const cJSON *l = r->line;
    double rate = number(l, "images_per_s"), ranks = number(l, "ranks");
    printf("| %s", r->of->name);
    if (!l) {
        printf(" | | | | | | | | | | | %s |\n", r->reason);
        return;
    }
    cell("%.0f", ranks);
    cell("%.0f", number(l, "batch"));
    cell("%.1f", rate);
    cell("%.1f%%", number(l, "spread"));
    cell("%.2f", number(l, "tflops") / ranks);
    cell("%.1f%%", number(l, "mfu"));
    cell("%.2f", number(l, "memory") / 1e9);
    cell("%.2f", number(l, "efficiency"));
    cell("%.0f%%", 100 * number(l, "wait"));
    cell("%.1f", number(l, "inference_images_per_s"));
    printf(" | ");
    if (r->of->published > 0)
        printf("%.1f on %s: ours is %.2f of it", r->of->published, r->of->on,
               rate / r->of->published);
    printf(" |\n");
}

static void print_table(const Result *all, int n, const char *spec)
{
    char date[32];
    time_t today = time(NULL);
    strftime(date, sizeof date, "%F", localtime(&today));
    const char *device = "";
    for (int i = 0; i < n; i++)
        if (all[i].line && !*device)
            device = cJSON_GetStringValue(cJSON_GetObjectItem(all[i].line, "device"));
    printf("%s bench --spec %s, %s, %s\n\n", PROGRAM, spec, device, date);
    printf("| configuration | devices | batch | images/s | +- | TFLOP/s each | MFU | GB each | "
           "efficiency "
           "| waits for data | inference, images/s | published, images/s |\n");
    printf("|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (int i = 0; i < n; i++)
        print_row(&all[i]);
}

static void write_lines(const Result *all, int n, const char *path)
{
    char *text = xstrdup("");
    Error e;
    for (int i = 0; i < n; i++) {
        if (!all[i].line)
            continue;
        char *line = cJSON_PrintUnformatted(all[i].line), *more = xasprintf("%s%s\n", text, line);
        free(line);
        free(text);
        text = more;
    }
    setup_check(save_text(path, text, &e), &e);
    free(text);
}

int bench_many(const Options *o, char **argv)
{
    Spec spec;
    Place place;
    Error e;
    int failed = 0;
    char dir[] = "/tmp/vit-bench-XXXXXX";
    if (!spec_read(&spec, o->spec, &e))
        die_usage(e.hint, "%s", e.what);
    if (launch_environment(&place, &e) && place.world.ranks > 1)
        die_usage("name one of them: --only NAME",
                  "%s has started %d processes, and --spec %s starts its own", place.launcher,
                  place.world.ranks, o->spec);
    if (!mkdtemp(dir))
        die("make some room there", "%s: %s", dir, strerror(errno));
    Result *all = xcalloc((size_t)spec.n, sizeof *all);
    for (int i = 0; i < spec.n; i++) {
        all[i] = run(&spec.list[i], argv, dir);
        failed += !all[i].line;
    }
    rmdir(dir);
    for (int i = 0; i < spec.n; i++)
        add_efficiency(all, spec.n, &all[i]);
    print_table(all, spec.n, o->spec);
    if (*o->json)
        write_lines(all, spec.n, o->json);
    report_written(stdout);
    for (int i = 0; i < spec.n; i++)
        cJSON_Delete(all[i].line);
    free(all);
    spec_free(&spec);
    return failed > 0;
}
