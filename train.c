/* train.c - the program: commands, the training loop, what happens when it is interrupted.
 *
 * The loop is ordinary: batches come in the order of (seed, epoch), each is computed in
 * micro-batches whose gradients add up, one update follows; now and then it evaluates and saves.
 * Everything random is a function of the step, so that --resume continues bit for bit.
 * A GPU computes while this program prepares the next step: what a step came to is collected once
 * the next one is on its way, and before anything is saved.
 * Setting up is in train/setup.h, measuring and reporting in meter.c, evaluation in eval.c.
 *
 * Read in this order: signals, one step, evaluation and checkpoints, the loop, main.
 */
#include "train/setup.h"

#include "results/page.h"
#include "train/bench.h"
#include "train/effects.h"
#include "train/eval.h"
#include "train/hosts.h"
#include "train/meter.h"
#include "train/mixup.h"
#include "train/pictures.h"
#include "train/predict.h"
#include "train/results.h"
#include "train/tuning.h"
#include "util/files.h"
#include "util/report.h"
#include "util/text.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A run on its way. What of it a checkpoint holds is in s->state. */
typedef struct {
    Session *s;
    Meter meter;
    Mix mix;
    /* the loader's batch [batch->n], of which `used` images have been computed */
    Loader *loader;
    const Batch *batch;
    int used;
    /* one micro-batch on the host, n = s->micro */
    real *targets;      /* [n, K] */
    Augment *augment;   /* [n]; NULL: nothing is done to the images */
    double *weights;    /* [K] of the classes in the loss; NULL: all count alike */
    uint64_t collected; /* steps of the run whose results are known, */
    StepState state;    /* and the state after the newest of them */
    uint64_t saved;     /* step of the newest checkpoint */
    bool stopped;       /* by a signal, here or in another rank */
    bool patient;       /* evaluations still get better now and then (--patience) */
} Training;

/* What ranks tell each other with every step (vit_tell). */
enum { TELL_STOP, TELL_DAMAGED };

/* ---- signals ---- */

static volatile int stop_signal;  /* int: evaluate() looks at it too */
static const char *run_to_resume; /* for die_hook; there may be no checkpoint in it yet */
static const char *run_as_word;   /* the same as a shell takes it */

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

static bool have_checkpoint(void)
{
    char latest[4096];
    snprintf(latest, sizeof latest, "%s/latest", run_to_resume ? run_to_resume : "");
    return run_to_resume && path_exists(latest);
}

static void say_how_to_resume(void)
{
    if (have_checkpoint())
        fprintf(stderr, "the last checkpoint is safe; continue it with: %s --resume %s\n", PROGRAM,
                run_as_word);
    else if (run_to_resume)
        fprintf(stderr, "there was no checkpoint yet: --save-every N writes one every N steps\n");
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

/* The first one is a wish: the loop looks at stop_signal after each step, saves and ends. */
static void catch_signals(void)
{
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &a, NULL);
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGUSR1, &a, NULL);
}

/* ---- one step ---- */

/* The next n images of the run; a micro-batch never reaches beyond a batch of the loader. */
static void next_images(Training *t, int n, const uint8_t **images, const int **labels)
{
    if (!t->batch || t->used == t->batch->n) {
        hosts_at("reading images", t->s->state.step + 1);
        t->batch = loader_next(t->loader);
        t->used = 0;
    }
    if (!t->batch || t->used + n > t->batch->n)
        die("this is a mistake in data.c", "the loader ended before the run");
    *images = t->batch->images + (size_t)t->used * vit_image_bytes(&t->s->config, true);
    *labels = t->batch->labels + t->used;
    t->used += n;
}

/* A batch of B images is shared out among the data parallel ranks, B / ranks each; a rank computes
 * its part `micro` images at a time. Positions in the batch, which decide what is random, are
 * counted over all ranks. Ranks that read no images are sent what they need. */
static void micro_step(void *arg, int micro, bool backward)
{
    Training *t = arg;
    Session *s = t->s;
    const Options *o = &s->o;
    const Axis *dp = &s->split.dp;
    int batch = (int)o->batch_size, mine = batch / dp->ranks, done = micro * s->micro;
    int n = s->micro < mine - done ? s->micro : mine - done, first = mine * dp->rank + done;
    const uint8_t *images;
    const int *labels;
    hosts_at("computing", s->state.step + 1);
    if (backward) {
        vit_micro_backward(s->m, micro, done + n == mine);
        return;
    }
    if (t->augment)
        mix_batch(&t->mix, s->state.seed, (uint32_t)s->state.step, (uint32_t)first, n, t->augment);
    if (t->loader) {
        next_images(t, n, &images, &labels);
        hosts_at("computing", s->state.step + 1);
        soft_targets(t->targets, labels, n, s->config.classes, o->label_smoothing, t->augment,
                     (long)s->config.image_h * s->config.image_w);
        if (o->target_threshold >= 0)
            harden_targets(t->targets, (long)n * s->config.classes, o->target_threshold);
        if (t->weights)
            weigh_targets(t->targets, n, s->config.classes, t->weights);
        vit_set_batch(s->m, n, images, true, t->targets, t->augment);
    } else {
        vit_set_batch(s->m, n, NULL, true, NULL, t->augment);
    }
    real tally[TALLY];
    tally[TELL_STOP] = stop_signal != 0;
    tally[TELL_DAMAGED] = (real)data_damaged(s->train);
    vit_tell(s->m, tally);
    vit_micro_forward(s->m, first, batch);
}

/* Step s->state.step of the run. */
static void train_step(Training *t)
{
    Session *s = t->s;
    int mine = (int)s->o.batch_size / s->split.dp.ranks;
    uint32_t step = (uint32_t)s->state.step;
    vit_begin_step(s->m, step, schedule_lr(&s->o, s->steps, step), s->state.seed);
    run_schedule(&s->split, (mine + s->micro - 1) / s->micro, micro_step, t);
    vit_update(s->m);
    s->state.step++;
    s->state.samples += (uint64_t)s->o.batch_size;
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
    hosts_die(hint, "training diverged: no finite gradients in %u steps in a row, at step %lu",
              state->skipped_in_row, (unsigned long)t->collected);
}

/* Collects the results of steps until only `keep` are still on their way. With them comes whether
 * any rank had been asked to stop: all know it of the same step, one or two after the signal. */
static void collect(Training *t, uint64_t keep)
{
    const Session *s = t->s;
    while (t->collected + keep < s->state.step) {
        const StepResult *r = vit_result(s->m, (int)(s->state.step - t->collected - 1));
        t->collected++;
        t->state = r->state;
        t->stopped |= r->tally[TELL_STOP] > 0;
        check_diverged(t);
        meter_step(&t->meter, r, t->collected, (double)r->tally[TELL_DAMAGED]);
    }
}

/* ---- evaluation and checkpoints ---- */

/* report.html, from the files of the run. What cannot be written costs itself alone. */
static void leave_page(const Session *s)
{
    Error e = {"", ""};
    char *path = xasprintf("%s/report.html", s->out);
    if (s->world.rank == 0 && !page_write(&(char *){s->out}, 1, path, &e))
        warn("%s", e.what);
    free(path);
}

/* Files that say what the evaluation came to; at the end with pictures. */
static void leave_results(Session *s, const Evaluation *v)
{
    Error e = {"", ""};
    if (s->world.rank > 0)
        return;
    bool ok = results_write(s, s->val, v, (long)s->state.step, s->out, &e);
    if (ok && s->state.step == s->steps)
        ok = pictures_write(s, s->val, v, s->out, &e);
    if (!ok)
        warn("%s", e.what);
    leave_page(s);
}

/* Whether this is the best so far. */
static bool say_evaluation(Session *s, const Evaluation *v)
{
    const Metrics *m = &v->metrics;
    bool best = isfinite(m->loss) && m->top1 > s->state.best_metric;
    printf("eval  step %lu  epoch %.2f  top1 %.2f  top5 %.2f  loss %.4f  %.0f images/s%s\n",
           (unsigned long)s->state.step, meter_epoch(s, s->state.step), m->top1, m->top5, m->loss,
           (double)m->images / v->seconds, best ? "  best" : "");
    fflush(stdout);
    log_begin("eval");
    log_num("step", (double)s->state.step);
    log_num("epoch", meter_epoch(s, s->state.step));
#define X(number) log_num(#number, m->number);
    X(top1)
    X(top5) X(loss) X(balanced) X(macro_f1) X(ece)
#undef X
        log_num("images", (double)m->images);
    log_num("seconds", v->seconds);
    log_end();
    s->state.since_best++;
    if (best) {
        s->state.best_metric = m->top1;
        s->state.best_step = s->state.step;
        s->state.since_best = 0;
    }
    return best;
}

/* On the validation images, with the average of the weights where there is one: it is what is
 * judged. Returns whether this is the best so far. An evaluation that a signal ends does not count.
 */
static bool train_evaluate(Training *t)
{
    Session *s = t->s;
    Evaluation v;
    double from = now(), sent = s->be->sent(), waited = s->be->waited();
    if (s->m->own.ema)
        units_swap_ema(&s->m->own);
    bool complete = evaluate(s, s->val, &stop_signal, &v);
    report_clear();
    bool best = complete && say_evaluation(s, &v);
    if (complete)
        leave_results(s, &v);
    else
        printf("note: a signal has ended the evaluation after step %lu, which counts for nothing; "
               "%s eval %s makes it\n",
               (unsigned long)s->state.step, PROGRAM, run_as_word);
    evaluation_free(&v);
    if (s->m->own.ema)
        units_swap_ema(&s->m->own);
    meter_pause(&t->meter, now() - from, s->be->sent() - sent, s->be->waited() - waited);
    if (complete)
        t->patient = !s->o.patience || s->state.since_best < (uint64_t)s->o.patience;
    return best;
}

/* What was measured of the device's algorithms lies beside the checkpoints: with the same ones a
 * resumed run computes the same bits. */
static void algorithms(const Session *s, const char *dir, bool write)
{
    char *path = xasprintf("%s/algorithms.txt", dir);
    s->be->algorithms(path, write);
    free(path);
}

/* All ranks have the whole model, but no place that all see: the first one writes it. */
static bool save_alone(const Session *s, Error *e)
{
    const Split one = split_alone(&s->config);
    Units own = s->m->own;
    own.split = &one;
    return s->world.rank > 0 || ckpt_save(&own, s->out, &s->state, (int)s->o.keep, NULL, e);
}

/* Writes a checkpoint, once a step at most. All ranks call this together. */
static void save(Training *t)
{
    Session *s = t->s;
    Error e = {"", ""};
    double from = now();
    const CkptRanks ranks = {s->world.rank, s->world.ranks, hosts_sum};
    if (t->saved == s->state.step)
        return;
    hosts_at("saving a checkpoint", s->state.step);
    if (s->world.rank == 0)
        algorithms(s, s->out, true);
    s->state.counters = *vit_state(s->m);
    s->state.scaled = s->m->plan.scaling.kind != SCALING_NONE;
    vit_amax(s->m, s->state.amax);
    bool ok = s->shared ? ckpt_save(&s->m->own, s->out, &s->state, (int)s->o.keep, &ranks, &e)
                        : save_alone(s, &e);
    if (!ok) {
        report_clear();
        s->shared ? hosts_die(e.hint, "%s", e.what) : die(e.hint, "%s", e.what);
    }
    t->saved = s->state.step;
    meter_pause(&t->meter, now() - from, 0, 0);
    log_begin("save");
    log_num("step", (double)s->state.step);
    log_num("seconds", now() - from);
    log_end();
}

/* Whether `every` steps, or an epoch where it is 0, have just been completed. */
static bool is_due(const Training *t, long every)
{
    const Session *s = t->s;
    uint64_t n = (uint64_t)data_count(s->train), batch = (uint64_t)s->o.batch_size;
    if (s->state.step == s->steps)
        return true;
    if (every)
        return s->state.step % (uint64_t)every == 0;
    return s->state.samples / n != (s->state.samples - batch) / n;
}

/* ---- the loop ---- */

static void weigh_classes(Training *t)
{
    const Session *s = t->s;
    const char *spec = s->o.class_weights;
    Error e = {"", ""};
    if (!*spec)
        return;
    t->weights = xcalloc((size_t)s->config.classes, sizeof *t->weights);
    setup_check(class_weights(spec, s->train, s->config.classes, t->weights, &e), &e);
    class_weights_describe(spec, s->train, t->weights);
}

static void begin(Training *t)
{
    Session *s = t->s;
    size_t n = (size_t)s->micro, K = (size_t)s->config.classes;
    t->targets = xcalloc(n * K, sizeof *t->targets);
    t->mix = mix_of(&s->o, &s->config);
    t->augment = mix_changes_anything(&t->mix) ? xcalloc(n, sizeof *t->augment) : NULL;
    t->patient = true;
    weigh_classes(t);
    t->loader = setup_loader(s);
    t->saved = t->collected = s->state.step;
    meter_begin(&t->meter, s, t->loader);
    if (s->state.step)
        printf("resumed   at step %lu, epoch %.2f\n", (unsigned long)s->state.step,
               meter_epoch(s, s->state.step));
    fflush(stdout);
}

/* Of the signals that ranks have had, which may be none of this one's: what a shell says of a
 * program that one has ended, so that `train && deploy` does not deploy. */
static int stopped_status(void)
{
    static const int known[] = {SIGTERM, SIGINT, SIGUSR1};
    double had[COUNT(known)];
    int first = 0;
    for (int i = 0; i < COUNT(known); i++)
        had[i] = stop_signal == known[i];
    hosts_sum(had, COUNT(known));
    while (first < COUNT(known) - 1 && had[first] == 0)
        first++;
    return 128 + known[first];
}

/* Says what came of it, and what to do next. Returns the program's status. */
static int finish(Training *t)
{
    Session *s = t->s;
    char took[32], memory[32];
    format_seconds(now() - t->meter.began, took, sizeof took);
    format_count(meter_usage().peak_bytes, memory, sizeof memory);
    report_clear();
    if (t->stopped) {
        printf("stopped after step %lu of %lu", (unsigned long)s->state.step,
               (unsigned long)s->steps);
        if (have_checkpoint())
            printf("; continue with: %s --resume %s\n", PROGRAM, run_as_word);
        else
            printf("; nothing was saved: no step had finite gradients\n");
    } else {
        if (s->state.step < s->steps)
            printf("stopped early, after step %lu of %lu: %s without a better top-1 (--patience)\n",
                   (unsigned long)s->state.step, (unsigned long)s->steps,
                   amount((double)s->state.since_best, "evaluation").s);
        printf("done in %s, peak memory %sB", took, memory);
        if (s->state.best_metric >= 0)
            printf(": best top-1 %.2f%% at step %lu", s->state.best_metric,
                   (unsigned long)s->state.best_step);
        printf("\nresults   %s: report.html, config.ini, log.jsonl, metrics.csv, classes.txt,%s\n"
               "          TensorBoard's events, checkpoints in step_*\n",
               s->out, s->state.best_metric >= 0 ? " eval.json," : "");
        printf("try next  %s eval %s\n"
               "          %s predict %s IMAGE.jpg\n"
               "          %s --resume %s --epochs %g\n",
               PROGRAM, run_as_word, PROGRAM, run_as_word, PROGRAM, run_as_word,
               fmax(2 * round(meter_epoch(s, s->state.step)), 1));
    }
    meter_end(&t->meter);
    leave_page(s);
    fflush(stdout); /* a launcher may end the last ranks when the first has left */
    if (t->loader)
        loader_close(t->loader);
    free(t->targets);
    free(t->augment);
    free(t->weights);
    return t->stopped ? stopped_status() : 0;
}

/* Whether any rank has a signal by now: a round of messages, and so not for every step of many. */
static bool asked_to_stop(void)
{
    double stop = stop_signal;
    hosts_sum(&stop, 1);
    return stop > 0;
}

/* A device that computes by itself is given the next step before the results of this one are
 * collected, except where they decide something at once: before an evaluation or a checkpoint. */
static void train(Training *t)
{
    Session *s = t->s;
    const Options *o = &s->o;
    while (s->state.step < s->steps && !t->stopped && t->patient) {
        train_step(t);
        bool evaluates = s->val && is_due(t, o->eval_every);
        bool saves = is_due(t, o->save_every ? o->save_every : o->eval_every);
        if (s->world.ranks == 1 || evaluates || saves)
            t->stopped |= asked_to_stop();
        collect(t, s->be->asynchronous && !evaluates && !saves ? 1 : 0);
        if (t->stopped)
            collect(t, 0);
        bool best = evaluates && !t->stopped && train_evaluate(t);
        /* never a checkpoint of a run that is about to fail: the last good one stays the last */
        if ((saves || best || t->stopped || !t->patient) && !t->state.skipped_in_row)
            save(t);
    }
    if (t->state.skipped_in_row && !t->stopped) {
        report_clear();
        hosts_die("lower --lr, raise --warmup-steps, or clip gradients with --clip 1",
                  "no finite gradients in the last %s: nothing was saved after step %lu",
                  amount(t->state.skipped_in_row, "step").s, (unsigned long)t->saved);
    }
}

/* All ranks come here, and take the same turns: what they do together (sums, barriers) would wait
 * forever for one that goes another way. */
static int command_train(Session *s)
{
    Training t = {.s = s};
    setup_data(s, true);
    setup_model(s, true);
    setup_length(s);
    if (s->state.step >= s->steps) {
        printf(
            "nothing left to do: the run is at step %lu, epoch %.2f, already (--epochs, --steps)\n",
            (unsigned long)s->state.step, meter_epoch(s, s->state.step));
        return 0;
    }
    setup_out(s);
    run_to_resume = s->out;
    run_as_word = shell_word(s->out);
    if (s->checkpoint)
        algorithms(s, s->run_dir ? s->run_dir : s->checkpoint, false);
    catch_signals();
    begin(&t);
    train(&t);
    return finish(&t);
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

/* ---- main ---- */

typedef struct {
    const char *name;
    int (*run)(Session *s);
    bool of_weights, of_files; /* computes with trained weights; on files that are named */
} Command;
static const Command commands[] = {{"train", command_train, false, false},
                                   {"eval", command_eval, true, false},
                                   {"predict", command_predict, true, true},
                                   {"bench", command_bench, false, false}};

/* Whether nothing will be computed. */
static bool asks_for_help(char **argv)
{
    static const char *const flags[] = {"--help", "-h", "--version"};
    bool asks = false;
    for (int i = 0; argv[i]; i++)
        for (int k = 0; k < COUNT(flags); k++)
            asks |= strcmp(argv[i], flags[k]) == 0;
    return asks;
}

int main(int argc, char **argv)
{
    open_streams();
    if (!asks_for_help(argv))
        backend_cpu_reexec(argv);
    signal(SIGPIPE, SIG_IGN); /* `train | head` goes on training */
    signal(SIGXFSZ, SIG_IGN); /* a file too large is a failed write, which says what to do */
    signal(SIGBUS, on_lost_bytes);
    die_hook = say_how_to_resume;
    Session s;
    setup_options(&s, argc, argv);
    const Command *c = commands;
    while (strcmp(c->name, s.o.command) != 0)
        c++;
    if (c->of_files && s.o.n_files == 0)
        die_usage("give their names: predict RUN IMAGE...", "predict needs images");
    if (c->of_weights && !*s.o.weights && !*s.o.resume)
        die_usage("name a run's folder or a file of weights: eval RUN, or --weights FILE",
                  "%s needs --weights", c->name);
    if (bench_is_of_many(&s.o))
        return bench_many(&s.o, argv);
    setup_config(&s);
    effects_note(&s, c->name);
    int status = c->run(&s);
    FILE *results = s.results;
    die_hook = NULL; /* it speaks of a run that is freed now */
    session_free(&s);
    report_written(results);
    report_written(stdout);
    return status;
}
