/* train.c - the program: commands, the training loop, what happens when it is interrupted.
 *
 * The loop is ordinary: batches come in the order of (seed, epoch), each is computed in
 * micro-batches whose gradients add up, one update follows; now and then it reports, evaluates and
 * saves. Everything random is a function of the step, so that --resume continues bit for bit.
 * A GPU computes while this program prepares the next step: what a step came to is looked at once
 * the next one is on its way (settle), and before anything is saved.
 * Setting up is in setup.c, evaluation in eval.c, output in report.c.
 *
 * Read in this order: signals, one step, reports, evaluation and checkpoints, the loop, main.
 */
#include "train/setup.h"

#include "util/report.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

typedef struct {
    Session *s;
    Schedule schedule;
    Mix mix;
    uint64_t total; /* steps of the run */
    uint64_t saved; /* step of the newest checkpoint */
    double began;   /* time the loop began, */
    uint64_t first; /* at this step */
    /* the loader's batch and what is left of it */
    Loader *loader;
    const Batch *batch;
    int used;
    /* one micro-batch on the host */
    real *targets;
    Augment *augment; /* NULL: nothing is done to the images */
    bool stopped;     /* by a signal, here or in another rank */
    uint64_t settled; /* steps of the run whose results are known, */
    StepState state;  /* and the newest of them */
    /* since the last report */
    double loss, hits, since, waited, cpu, reported, bytes;
    long images, steps;
    /* in all since the first report: before it, nothing was there to wait for */
    double training, stalled;
} Training;

/* ---- signals ---- */

static volatile int stop_signal;  /* int: evaluate() looks at it too */
static const char *run_to_resume; /* a run with a checkpoint, for die_hook */

/* Launchers may deliver one signal twice: a second one counts only after a second. */
static void on_signal(int sig)
{
    static double first;
    if (stop_signal && now() - first > 1)
        _exit(128 + sig);
    if (!stop_signal)
        first = now();
    stop_signal = sig;
}

static void say_how_to_resume(void)
{
    if (run_to_resume)
        fprintf(stderr, "the last checkpoint is safe; continue it with: %s --resume %s\n", PROGRAM,
                run_to_resume);
}

/* Large pictures and CIFAR's files are mapped: reading what is gone of one is a signal. */
static void on_lost_bytes(int sig)
{
    static const char what[] =
        "error: a file of the data set became shorter while it was read, or its disk failed\n"
        "hint: see whether the disk is well and still mounted; leave data in use alone\n";
    (void)sig;
    if (write(STDERR_FILENO, what, sizeof what - 1) > 0)
        say_how_to_resume();
    _exit(1);
}

static void catch_signals(void)
{
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &a, NULL);
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGUSR1, &a, NULL);
}

/* ---- one step ---- */

/* Up to n consecutive images of the run; returns how many. */
static int next_images(Training *t, int n, const uint8_t **images, const int **labels)
{
    if (!t->batch || t->used == t->batch->n) {
        t->batch = loader_next(t->loader);
        t->used = 0;
        if (!t->batch)
            die("this is a mistake in data.c", "the loader ended before the run");
    }
    int left = t->batch->n - t->used;
    n = n < left ? n : left;
    *images = t->batch->images + (size_t)t->used * vit_image_bytes(&t->s->config, true);
    *labels = t->batch->labels + t->used;
    t->used += n;
    return n;
}

static void train_step(Training *t)
{
    Session *s = t->s;
    const Options *o = &s->o;
    uint32_t step = (uint32_t)s->state.step;
    long pixels = (long)s->config.image_h * s->config.image_w;
    int batch = (int)o->batch_size, mine = batch / s->world.ranks, first = mine * s->world.rank;

    vit_begin_step(s->m, step, schedule_lr(&t->schedule, step), s->state.seed);
    for (int done = 0, n; done < mine; done += n) {
        const uint8_t *images;
        const int *labels;
        n = next_images(t, s->micro < mine - done ? s->micro : mine - done, &images, &labels);
        if (t->augment)
            mix_batch(&t->mix, s->state.seed, step, (uint32_t)(first + done), n, t->augment);
        soft_targets(t->targets, labels, n, s->config.classes, o->label_smoothing, t->augment,
                     pixels);
        vit_set_batch(s->m, n, images, true, t->targets, t->augment);
        vit_micro_step(s->m, first + done, batch, done + n == mine);
    }
    vit_update(s->m);
    s->state.step++;
    s->state.samples += (uint64_t)batch;
}

/* Ten steps in a row without finite gradients will not get better by themselves. */
static void check_diverged(const Training *t)
{
    const StepState *state = &t->state;
    if (state->skipped_in_row < 10)
        return;
    char hint[160];
    snprintf(hint, sizeof hint,
             "lower --lr (it is %g), raise --warmup-steps, or clip gradients with "
             "--clip 1",
             t->s->o.lr);
    report_clear();
    die(hint, "training diverged: no finite gradients in %u steps in a row, at step %lu",
        state->skipped_in_row, (unsigned long)t->settled);
}

/* ---- reports ---- */

/* Passes over the data after the first `step` steps of the run, of which s->state counts some. */
static double epoch_at(const Session *s, uint64_t step)
{
    double ahead = (double)(s->state.step - step) * (double)s->o.batch_size;
    return ((double)s->state.samples - ahead) / (double)data_count(s->train);
}

/* What the process has used so far. */
static void usage(double *cpu_seconds, double *peak_bytes)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    *cpu_seconds = (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                   1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
    *peak_bytes = 1024.0 * (double)u.ru_maxrss;
}

/* Of all ranks. */
typedef struct {
    double bytes, workers, damaged;
} DataUse;

static DataUse data_use(const Training *t)
{
    LoaderStats l = loader_stats(t->loader);
    double all[] = {(double)l.bytes, l.workers};
    hosts_sum(all, COUNT(all));
    return (DataUse){all[0], all[1], (double)data_damaged_by_all(t->s->train, hosts_sum)};
}

/* The part of a report that is not asked for at every step. */
static void report_use(Training *t, StepReport *r, double seconds)
{
    const Session *s = t->s;
    DataUse use = data_use(t);
    double cpu;
    usage(&cpu, &r->memory);
    r->cpu = (cpu - t->cpu) / ((now() - t->reported) * s->be->threads());
    r->gpu = s->be->busy();
    r->data_bytes_per_s = (use.bytes - t->bytes) / seconds;
    r->workers = (int)use.workers;
    r->damaged = (long)use.damaged;
    t->cpu = cpu;
    t->bytes = use.bytes;
}

static void report(Training *t)
{
    const Session *s = t->s;
    const StepState *state = &t->state;
    uint64_t step = t->settled;
    double seconds = now() - t->since, waited = loader_stats(t->loader).waited - t->waited;
    double per_step = (now() - t->began) / (double)(step - t->first);
    StepReport r = {.step = step,
                    .total = t->total,
                    .epoch = epoch_at(s, step),
                    .loss = t->loss / (double)t->images,
                    .acc = 100 * t->hits / (double)t->images,
                    .lr = state->lr,
                    .grad_norm = state->grad_norm,
                    .ms = 1000 * seconds / (double)t->steps,
                    .images_per_s = (double)t->images / seconds,
                    .wait = waited / seconds,
                    .skipped = state->skipped,
                    .loss_scale = s->m->plan.scaling.kind ? state->loss_scale : 0,
                    .eta = per_step * (double)(t->total - step)};
    double peak = s->be->peak_flops() * s->world.ranks;
    r.gflops = r.images_per_s * 3 * vit_forward_flops(&s->config) / 1e9;
    r.mfu = peak > 0 ? 100 * r.gflops * 1e9 / peak : 0;
    report_bar(&r);
    if (step % (uint64_t)s->o.log_every != 0 && step != t->total && step != t->first + 1)
        return;
    report_use(t, &r, seconds);
    report_step(&r);
    if (step != t->first + 1) {
        t->training += seconds;
        t->stalled += waited;
    }
    t->reported = now();
    t->loss = t->hits = 0;
    t->images = t->steps = 0;
    t->since = now();
    t->waited += waited;
}

/* Take the results of steps until only `keep` are still on their way. */
static void settle(Training *t, uint64_t keep)
{
    const Session *s = t->s;
    while (t->settled + keep < s->state.step) {
        const StepResult *r = vit_result(s->m, (int)(s->state.step - t->settled - 1));
        t->settled++;
        t->state = r->state;
        for (long i = 0; i < s->o.batch_size; i++) {
            t->loss += (double)r->stats[3 * i];
            t->hits += (double)r->stats[3 * i + 1];
        }
        t->images += s->o.batch_size;
        t->steps++;
        check_diverged(t);
        report(t);
    }
}

static void log_start(const Training *t)
{
    const Session *s = t->s;
    char device[256];
    s->be->describe(device, sizeof device);
    log_begin("start");
    log_num("step", (double)s->state.step);
    log_num("steps", (double)t->total);
    log_text("device", device);
    log_text("data", s->o.data);
    log_num("train_images", (double)data_count(s->train));
    log_num("val_images", s->val ? (double)data_count(s->val) : 0);
    log_num("classes", s->config.classes);
    log_num("parameters", (double)s->m->n_params);
    log_num("forward_gflop", vit_forward_flops(&s->config) / 1e9);
    log_num("batch", (double)s->o.batch_size);
    log_num("micro_batch", s->micro);
    log_num("seed", (double)s->state.seed);
    log_end();
}

/* ---- evaluation and checkpoints ---- */

/* Returns whether this is the best so far. */
static bool train_evaluate(Training *t)
{
    Session *s = t->s;
    Evaluation v;
    double from = now();
    if (s->m->ema)
        vit_swap_ema(s->m);
    bool complete = evaluate(s, s->val, &stop_signal, &v);
    if (s->m->ema)
        vit_swap_ema(s->m);
    report_clear();
    t->since += now() - from; /* speeds are those of training */
    if (!complete)
        return false;
    bool best = isfinite(v.loss) && v.top1 > s->state.best_metric;
    printf("eval  step %lu  epoch %.2f  top1 %.2f  top5 %.2f  loss %.4f  %.0f images/s%s\n",
           (unsigned long)s->state.step, epoch_at(s, s->state.step), v.top1, v.top5, v.loss,
           (double)v.images / v.seconds, best ? "  best" : "");
    fflush(stdout);
    log_begin("eval");
    log_num("step", (double)s->state.step);
    log_num("epoch", epoch_at(s, s->state.step));
    log_num("top1", v.top1);
    log_num("top5", v.top5);
    log_num("loss", v.loss);
    log_num("images", (double)v.images);
    log_num("seconds", v.seconds);
    log_end();
    if (best) {
        s->state.best_metric = v.top1;
        s->state.best_step = s->state.step;
    }
    return best;
}

static void save(Training *t)
{
    Session *s = t->s;
    Error e = {"", ""};
    double from = now();
    if (t->saved == s->state.step)
        return;
    if (s->world.rank > 0) { /* all ranks have the same weights; the first writes them */
        t->saved = s->state.step;
        return;
    }
    char *algorithms = xasprintf("%s/algorithms.txt", s->out);
    s->be->algorithms(algorithms, true);
    free(algorithms);
    if (!ckpt_save(s->m, s->out, &s->state, (int)s->o.keep, &e)) {
        report_clear();
        die(e.hint, "%s", e.what);
    }
    t->saved = s->state.step;
    run_to_resume = s->out;
    t->since += now() - from;
    log_begin("save");
    log_num("step", (double)s->state.step);
    log_num("seconds", now() - from);
    log_end();
}

/* Whether `every` steps, or an epoch where it is 0, have just been completed. */
static bool due(const Training *t, long every)
{
    const Session *s = t->s;
    uint64_t n = (uint64_t)data_count(s->train), batch = (uint64_t)s->o.batch_size;
    if (s->state.step == t->total)
        return true;
    if (every)
        return s->state.step % (uint64_t)every == 0;
    return s->state.samples / n != (s->state.samples - batch) / n;
}

/* ---- the loop ---- */

static void plan_run(Training *t)
{
    const Options *o = &t->s->o;
    const RunState *r = &t->s->state; /* a resumed run may have had another batch size before */
    double left = o->epochs * (double)data_count(t->s->train) - (double)r->samples;
    double steps = (double)r->step + ceil(left / (double)o->batch_size);
    if (o->steps)
        steps = (double)o->steps;
    if (steps > 4294967295.0)
        die_usage("lower --epochs or raise --batch-size", "%g steps are more than a run can count",
                  steps);
    t->total = steps < 0 ? 0 : (uint64_t)steps;
    uint64_t warmup = o->warmup_steps < 0 ? t->total / 20 : (uint64_t)o->warmup_steps;
    uint64_t third = t->total / 3 ? t->total / 3 : 1;
    t->schedule = (Schedule){.kind = o->schedule,
                             .lr = o->lr,
                             .floor = o->lr_floor,
                             .warmup = warmup,
                             .total = t->total,
                             .gamma = o->step_gamma,
                             .step_size = o->step_size ? (uint64_t)o->step_size : third};
    printf("plan      %lu steps of %ld images%s", (unsigned long)t->total, o->batch_size,
           t->s->micro < o->batch_size ? ", " : "\n");
    if (t->s->micro < o->batch_size)
        printf("%d at a time\n", t->s->micro);
    if (mix_mixes(o))
        printf("mixing    within groups of %ld images\n", o->mix_group);
}

/* The loader makes micro-batches where they divide the batch, else whole batches to cut up. */
static void begin(Training *t)
{
    Session *s = t->s;
    size_t n = (size_t)s->micro, K = (size_t)s->config.classes;
    int mine = (int)s->o.batch_size / s->world.ranks;
    int chunk = mine % s->micro ? mine : s->micro;
    t->targets = xcalloc(n * K, sizeof *t->targets);
    t->mix = mix_of(&s->o, &s->config);
    t->augment = mix_changes_anything(&t->mix) ? xcalloc(n, sizeof *t->augment) : NULL;
    bool alone = s->world.ranks == 1; /* else a rank reads its share of every batch */
    t->loader = loader_open(
        s->train, &(LoaderOptions){.batch = alone ? chunk : mine,
                                   .shuffle = true,
                                   .start = (long)s->state.samples + (long)mine * s->world.rank,
                                   .stride = alone ? chunk : s->o.batch_size,
                                   .repeats = (int)s->o.repeats,
                                   .workers = (int)s->o.workers,
                                   .max_workers = s->max_workers,
                                   .neighbours = s->local_ranks - 1});
    t->saved = t->first = t->settled = s->state.step;
    double peak;
    usage(&t->cpu, &peak);
    t->began = t->since = t->reported = now();
    log_start(t);
    if (s->state.step)
        printf("resumed   at step %lu, epoch %.2f\n", (unsigned long)s->state.step,
               epoch_at(s, s->state.step));
    fflush(stdout);
}

/* What became of the data, and what would make it faster. */
static void finish_data(Training *t)
{
    Session *s = t->s;
    DataUse use = data_use(t);
    double share = t->training > 0 ? t->stalled / t->training : 0;
    log_begin("end");
    log_num("step", (double)s->state.step);
    log_num("seconds", now() - t->began);
    log_num("data_bytes", use.bytes);
    log_num("wait", share);
    log_num("damaged", use.damaged);
    log_end();
    if (use.damaged > 0)
        printf("note: %.0f damaged training images were replaced by others\n", use.damaged);
    if (share > 0.05 && t->stalled > 0.25)
        printf("note: %.0f%% of the time was spent waiting for images; more --workers (%.0f at "
               "work), --decode fast,\n      or smaller images, made once by ./vit shard "
               "--short-side 256, would help\n",
               100 * share, use.workers);
}

static void finish(Training *t)
{
    Session *s = t->s;
    char took[32], memory[32];
    double cpu, peak;
    usage(&cpu, &peak);
    format_seconds(now() - t->began, took, sizeof took);
    format_count(peak, memory, sizeof memory);
    report_clear();
    if (t->stopped) {
        printf("stopped after step %lu of %lu", (unsigned long)s->state.step,
               (unsigned long)t->total);
        if (run_to_resume)
            printf("; continue with: %s --resume %s\n", PROGRAM, s->out);
        else
            printf("; nothing was saved: no step had finite gradients\n");
    } else {
        printf("done in %s, peak memory %sB", took, memory);
        if (s->state.best_metric >= 0)
            printf(": best top-1 %.2f%% at step %lu", s->state.best_metric,
                   (unsigned long)s->state.best_step);
        printf("\nresults   %s: config.ini, log.jsonl, classes.txt, checkpoints in step_*\n",
               s->out);
        printf("try next  %s eval --weights %s\n"
               "          %s predict --weights %s IMAGE.jpg\n"
               "          %s --resume %s --epochs %g\n",
               PROGRAM, s->out, PROGRAM, s->out, PROGRAM, s->out,
               fmax(2 * round(epoch_at(s, s->state.step)), 1));
    }
    finish_data(t);
    loader_close(t->loader);
    free(t->targets);
    free(t->augment);
}

/* Asked once a step, since a signal may come at any time; one rank's stops all, after that step. */
static bool asked_to_stop(void)
{
    double stop = stop_signal;
    hosts_sum(&stop, 1);
    return stop > 0;
}

static int command_train(Session *s)
{
    Training t = {.s = s};
    setup_data(s, true);
    setup_model(s, true);
    plan_run(&t);
    if (s->state.step >= t.total) {
        printf("nothing left to do: the run has all its %lu steps; --epochs or --steps asks for "
               "more\n",
               (unsigned long)t.total);
        return 0;
    }
    setup_out(s);
    if (s->checkpoint) {
        run_to_resume = s->out;
        char *algorithms = xasprintf("%s/algorithms.txt", s->run_dir ? s->run_dir : s->checkpoint);
        s->be->algorithms(algorithms, false);
        free(algorithms);
    }
    catch_signals();
    begin(&t);
    while (s->state.step < t.total && !t.stopped) {
        train_step(&t);
        t.stopped = asked_to_stop();
        bool evaluation = s->val && due(&t, s->o.eval_every) && !t.stopped;
        bool whole = due(&t, s->o.save_every ? s->o.save_every : s->o.eval_every) || t.stopped;
        settle(&t, s->be->asynchronous && !evaluation && !whole ? 1 : 0);
        bool best = evaluation && train_evaluate(&t);
        /* never a checkpoint of a run that is about to fail: the last good one stays the last */
        if ((whole || best) && !t.state.skipped_in_row)
            save(&t);
    }
    const StepState *state = &t.state;
    if (state->skipped_in_row && !t.stopped) {
        report_clear();
        die("lower --lr, raise --warmup-steps, or clip gradients with --clip 1",
            "the last %u steps had no finite gradients: nothing was saved after step %lu",
            state->skipped_in_row, (unsigned long)t.saved);
    }
    finish(&t);
    return 0;
}

/* Where standard streams were closed, files that we open must not take their place. */
static void open_streams(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd < 3);
    close(fd);
}

int main(int argc, char **argv)
{
    open_streams();
    backend_cpu_reexec(argv);
    signal(SIGPIPE, SIG_IGN); /* `train | head` goes on training */
    signal(SIGXFSZ, SIG_IGN); /* a file too large is a failed write, which says what to do */
    signal(SIGBUS, on_lost_bytes);
    die_hook = say_how_to_resume;
    Session s;
    setup_options(&s, argc, argv);
    const char *command = s.o.command;
    int status = 0;
    if (strcmp(command, "predict") == 0 && s.o.n_files == 0)
        die_usage("give their names: predict --weights FILE IMAGE...", "predict needs images");
    if (strcmp(command, "eval") == 0 || strcmp(command, "predict") == 0)
        if (!*s.o.weights && !*s.o.resume)
            die_usage("name a safetensors file or a run directory", "%s needs --weights", command);
    setup_config(&s);
    if (strcmp(command, "train") == 0)
        status = command_train(&s);
    else if (strcmp(command, "eval") == 0)
        status = command_eval(&s);
    else if (strcmp(command, "predict") == 0)
        status = command_predict(&s);
    else
        status = command_bench(&s);
    session_free(&s);
    if (fflush(stdout) != 0 && errno != EPIPE)
        die("free some space", "cannot write the output: %s", strerror(errno));
    return status;
}
