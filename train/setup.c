/* setup.c - the device, the start and the end of a session. See setup.h.
 *
 * Read in this order: the device, what the run starts from, the calls.
 */
#include "train/setup.h"

#include "image/augment.h"
#include "image/formats.h"
#include "train/hosts.h"
#include "train/parallel.h"
#include "util/machine.h"
#include "util/report.h"
#include "util/text.h"
#include "util/tfevents.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the device ---- */

/* Of activations and working weights, by PRECISION_*. */
static const int types[] = {F32, F32, F32, BF16, F16, BF16};
enum { COLLECTIVES_FAST, COLLECTIVES_ORDERED };

/* Which process this is. Ranks other than the first keep silent. */
static void start_ranks(Session *s)
{
    const Options *o = &s->o;
    if (backend_cuda && o->ranks > 1)
        die_usage("--gpus N starts one process for each GPU", "--ranks is for ./train_cpu");
    if (!backend_cuda && o->gpus > 1)
        die_usage("build ./train_gpu with nvcc; here --ranks N starts several processes",
                  "this program was built for the CPU: no --gpus");
    if (o->ranks > 1)
        backend_cpu_need_mpi();
    s->world = hosts_start((int)(backend_cuda ? o->gpus : o->ranks), !backend_cuda, s->argv);
    hosts_watch((int)o->watchdog);
    if (s->world.ranks == 1 || !s->world.local_ranks)
        s->world.local_ranks = 1;
    if (s->world.rank > 0 && !freopen("/dev/null", "w", stdout))
        warn("cannot silence rank %d", s->world.rank);
}

/* What a program reads from our output is the results alone: all that is printed besides, where and
 * how it computes, goes the way of errors. */
static FILE *keep_results(void)
{
    int out = dup(STDOUT_FILENO);
    FILE *results = out < 0 ? NULL : fdopen(out, "w");
    if (!results || dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
        die("raise the limit of open files (ulimit -n)", "cannot open the output: %s",
            strerror(errno));
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    return results;
}

/* A GPU computes in bf16. A CPU trains in fp32, and applies weights in bf16 where it multiplies
 * that faster. */
static void choose_precision(Session *s)
{
    Options *o = &s->o;
    bool applies = strcmp(o->command, "eval") == 0 || strcmp(o->command, "predict") == 0;
    bool fast = backend_cuda || (applies && backend_cpu_bf16_pays());
    s->chosen_bf16 = !backend_cuda && o->precision == PRECISION_AUTO && fast;
    if (o->precision == PRECISION_AUTO)
        o->precision = fast ? PRECISION_BF16 : PRECISION_FP32;
    s->type = types[o->precision];
    s->be = backend_cuda ? backend_cuda() : s->type == BF16 ? backend_cpu_bf16() : backend_cpu();
}

/* Processes are started before the device is: it cannot be shared with a copy of the process. */
static void start_device(Session *s)
{
    Options *o = &s->o;
    choose_precision(s);
    start_ranks(s);
    s->results = stdout;
    if (strcmp(o->command, "predict") == 0 && s->world.rank == 0)
        s->results = keep_results();
    hosts_at("starting its device", 0);
    s->be->init(&(Device){.threads = (int)o->threads,
                          .type = s->type,
                          .tf32 = o->precision == PRECISION_TF32,
                          .fp8 = o->precision == PRECISION_FP8,
                          .measure = o->autotune,
                          .rank = s->world.rank,
                          .ranks = s->world.ranks,
                          .local_rank = s->world.local_rank,
                          .ordered = o->collectives == COLLECTIVES_ORDERED,
                          .broadcast = hosts_broadcast,
                          .check = hosts_check});
}

/* ---- what the run starts from ---- */

/* Which weights the model starts from: none, those of --weights, or those of a checkpoint that
 * training continues, optimiser and all. */
static void find_start(Session *s)
{
    Error e;
    const Options *o = &s->o;
    if (*o->resume) {
        char dir[4096];
        if (run_stays(s) && strcmp(o->command, "train") == 0)
            lock_run(s, s->run_dir);
        bool found = s->world.rank > 0 || ckpt_find(o->resume, dir, sizeof dir, &e);
        setup_check(found, &e);
        hosts_broadcast(dir, sizeof dir); /* others may not see the newest yet */
        s->checkpoint = xstrdup(dir);
        s->weights = xasprintf("%s/model.safetensors", dir);
    } else if (*o->weights) {
        s->weights = find_weights(o->weights);
    }
}

/* What a built-in recipe has become under the flags. */
static void describe_recipe(const Session *s)
{
    static const char *const names[] = {"adamw", "adam", "sgd", "lamb"}; /* by OPT_* */
    const Options *o = &s->o;
    char length[64];
    snprintf(length, sizeof length, "%g epoch%s", o->epochs, o->epochs == 1 ? "" : "s");
    report_line("recipe    built-in, %s: %s, lr %g, %s a step, %s (flags change it; %s or "
                "--recipe choose another)",
                s->built_in, names[o->opt], o->lr, amount((double)o->batch_size, "image").s,
                o->steps ? amount((double)o->steps, "step").s : length,
                *o->weights ? "--opt" : "--model, --weights");
}

/* ---- the calls ---- */

void setup_config(Session *s)
{
    Options *o = &s->o;
    char device[1024] = "";
    start_device(s);
    if (s->built_in)
        describe_recipe(s);
    s->be->describe(device, sizeof device);
    report_line("device    %s; with %s, %s", device, s->be->built, formats_built);
    if (s->chosen_bf16)
        report_line("          in bf16, within some tenths of a point of fp32 (--precision fp32)");
    else if (s->ran_in)
        report_line("          in fp32, where the run was in %s%s", s->ran_in,
                    strcmp(s->ran_in, "bf16") == 0 ? " (--precision bf16)" : "");
    if (machine_restarted())
        report_line("note: %s", machine_restarted());
    if (s->changed) /* a run that goes on may do so with other settings, but not in silence */
        fputs(s->changed, stdout);
    find_start(s);
    setup_architecture(s);
    if (*o->class_weights && s->config.loss != LOSS_SOFTMAX)
        die_usage("leave --class-weights or --loss sigmoid out",
                  "--class-weights are of the softmax loss alone");
    if (o->target_threshold >= 0 && s->config.loss != LOSS_SIGMOID)
        die_usage("give --loss sigmoid, or leave --target-threshold out",
                  "--target-threshold is of the sigmoid loss alone: several classes may be there");
    parallel_split(s);
    bool known = false;
    for (int i = 0; param_init_names[i]; i++)
        known |= strcmp(param_init_names[i], o->init) == 0;
    if (!known)
        die_usage("choose jax, timm, torch, megatron or xavier", "no initialiser is called '%s'",
                  o->init);
    s->images = (Preprocess){.out_w = s->config.image_w,
                             .out_h = s->config.image_h,
                             .filter = o->interpolation,
                             .decode = o->decode,
                             .crop = o->crop,
                             .resize = (int)o->resize,
                             .crop_pct = o->crop_pct,
                             .augment = o->augment,
                             .train_crop = o->train_crop,
                             .area_min = o->area_min,
                             .area_max = o->area_max,
                             .ratio_min = o->ratio_min,
                             .ratio_max = o->ratio_max,
                             .flip = o->flip,
                             .changes = s->changes};
}

void session_free(Session *s)
{
    hosts_at("ending", 0);
    log_close();
    events_close();
    unlock_run(s);
    data_close(s->train);
    data_close(s->val);
    augmentation_free(s->changes);
    vit_free(s->m);
    s->be->end();
    hosts_end();
    free(s->weights);
    free(s->checkpoint);
    free(s->run_dir);
    names_free(&s->classes);
    free(s->changed);
    free(s->out);
    options_free(&s->o);
}
