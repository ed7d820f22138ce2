/* setup_model.c - the model's plan, its memory and its weights. See setup_model.h.
 *
 * Read in this order: how many images at a time, the plan, weights.
 */
#include "train/setup_model.h"

#include "train/hosts.h"
#include "train/parallel.h"
#include "train/tuning.h"
#include "util/report.h"
#include "util/text.h"
#include "weights/weights.h"

#include <libgen.h>
#include <stdlib.h>
#include <string.h>

/* ---- how many images at a time ---- */

/* Euclid. */
static long largest_common(long a, long b)
{
    return b ? largest_common(b, a % b) : a;
}

/* --mix-group, where images are mixed, else 1: `batch` of a rank are computed `micro` at a time (0:
 * not yet known). It goes into config.ini too. */
static long choose_group(Session *s, long batch, long micro)
{
    Options *o = &s->o;
    char hint[160];
    if (strcmp(o->command, "train") != 0 || !mix_mixes(o))
        return 1;
    if (!o->mix_group)
        o->mix_group = mix_auto_group(o->batch_size);
    long group = o->mix_group, fits = largest_common(group, largest_common(batch, micro));
    if (group > 1 && fits == group)
        return group;
    if (group == 1 || fits == 1)
        snprintf(hint, sizeof hint,
                 "give --batch-size and --micro-batch a number of images per rank and micro-batch "
                 "that --mix-group of 2 or more divides");
    else
        snprintf(hint, sizeof hint, "--mix-group %ld divides both", fits);
    if (group == 1)
        die_usage(hint, "in a group of 1 an image would be mixed with itself");
    die_usage(hint, "groups of %ld images do not divide %s of %ld", group,
              batch % group ? "a rank's batch" : "a micro-batch", batch % group ? batch : micro);
}

/* A pipeline stands still for pp - 1 micro-batches of a step: where nobody says how many there are,
 * four for each stage, or as many as the groups leave. */
static long pipeline_micro(const Session *s, long batch, long group)
{
    long micro = batch / (4 * s->split.pp.ranks);
    micro = micro < group ? group : micro;
    while (batch % micro != 0 || micro % group != 0)
        micro++;
    return micro;
}

/* The largest micro-batch up to the plan's for which every rank has the memory: stages differ. */
static long largest_micro(const Session *s, const Plan *plan, double have)
{
    double share = s->be->asynchronous ? 0.95 : 0.8 / s->world.local_ranks;
    double fits[s->world.ranks]; /* a device's memory is ours, a computer's is for others too */
    long least = plan->max_batch;
    for (int i = 0; i < s->world.ranks; i++)
        fits[i] = 0;
    fits[s->world.rank] = vit_largest_batch(&s->config, plan, s->be, share * have);
    hosts_sum(fits, s->world.ranks);
    for (int i = 0; i < s->world.ranks; i++)
        least = fits[i] < (double)least ? (long)fits[i] : least;
    return least;
}

/* Images of a rank's step, and the multiple of which a micro-batch must be. */
long setup_micro(Session *s, bool training, long *batch, long *group)
{
    const Options *o = &s->o;
    long ranks = training ? s->split.dp.ranks : 1;
    if (o->batch_size % ranks != 0) {
        long below = o->batch_size / ranks * ranks;
        char hint[80], lower[24] = "";
        if (below)
            snprintf(lower, sizeof lower, "%ld or ", below);
        snprintf(hint, sizeof hint, "give --batch-size %s%ld", lower, below + ranks);
        die_usage(hint, "a batch of %s does not divide among %ld data parallel ranks",
                  amount((double)o->batch_size, "image").s, ranks);
    }
    *batch = o->batch_size / ranks;
    long micro = o->micro_batch && o->micro_batch < *batch ? o->micro_batch : *batch;
    *group = choose_group(s, *batch, o->micro_batch ? micro : 0);
    if (!o->micro_batch && training && s->split.pp.ranks > 1)
        micro = pipeline_micro(s, *batch, *group);
    return micro;
}

/* The largest divisor of this rank's batch that fits in memory. It goes into config.ini, because a
 * resumed run has the same bits only with the same micro-batches. */
static void choose_micro(Session *s, Plan *plan)
{
    Options *o = &s->o;
    long batch, group, micro = setup_micro(s, plan->training, &batch, &group);
    double have = o->micro_batch ? -1 : s->be->memory_free();
    hosts_broadcast(&have, sizeof have); /* all choose the same */
    plan->max_batch = (int)micro;
    plan->batch = (int)o->batch_size;
    if (have > 0) {
        micro = largest_micro(s, plan, have);
        micro = micro < group ? group : micro;
        while (batch % micro != 0 || micro % group != 0)
            micro--;
    }
    plan->max_batch = s->micro = (int)micro;
    o->micro_batch = micro;
}

/* ---- the plan ---- */

/* All of it but how many images. */
Plan setup_plan(const Session *s, bool training)
{
    const Options *o = &s->o;
    int scaling = o->loss_scaling; /* auto: what the precision needs */
    bool cpu_bf16 = s->be && !backend_cuda && s->type == BF16;
    if (scaling == 0)
        scaling = s->type == F16 ? SCALING_DYNAMIC + 1 : SCALING_NONE + 1;
    return (Plan){.training = training,
                  .keep_streams = !training && *o->attention,
                  .type = s->type,
                  .fp8 = {.on = o->precision == PRECISION_FP8,
                          .current = o->fp8_scaling == 1,
                          .skip_ends = o->fp8_skip == 1,
                          .wgrad_bf16 = o->fp8_wgrad == 1,
                          .history = (int)o->fp8_history,
                          .margin = (int)o->fp8_margin},
                  .stochastic = o->stochastic_rounding,
                  .scaling = {.kind = scaling - 1,
                              .init = o->loss_scale,
                              .interval = (int)o->scale_interval,
                              .hysteresis = (int)o->hysteresis},
                  .ema = training && o->ema > 0,
                  .decay = o->decay,
                  .layer_decay = o->layer_decay,
                  .frozen = s->frozen,
                  .position = o->position,
                  .clip = o->clip,
                  .split = &s->split,
                  .recompute = parallel_recompute(o, cpu_bf16),
                  .offload = o->offload_optimizer,
                  .opt = {.kind = o->opt,
                          .beta1 = o->beta1,
                          .beta2 = o->beta2,
                          .eps = o->adam_eps,
                          .momentum = o->momentum,
                          .weight_decay = o->weight_decay,
                          .ema_decay = o->ema}};
}

static void describe_model(const Session *s, bool training)
{
    const Config *c = &s->config;
    const Model *m = s->m;
    const Plan *p = &m->plan;
    enum { PARAMETERS, FLOP, WEIGHTS, GRADIENTS, OPTIMISER, ACTIVATIONS, INPUTS, COUNTS };
    const double count[COUNTS] = {
        (double)m->layout->n_params,  training ? tuning_flops(m) : vit_forward_flops(c),
        (double)m->own.bytes_weights, (double)m->own.bytes_grads,
        (double)m->own.bytes_opt,     (double)m->bytes_acts,
        (double)m->bytes_inputs};
    char text[COUNTS][32];
    for (int i = 0; i < COUNTS; i++)
        format_count(count[i], text[i], sizeof text[i]);
    report_line("model     width %d, %s, %s, mlp %d, patch %d, %s: %s parameters, %sFLOP per image",
                c->width, amount(c->layers, "layer").s, amount(c->heads, "head").s, c->mlp,
                c->patch, amount(c->classes, "class").s, text[PARAMETERS], text[FLOP]);
    char trained[128] = "";
    if (training)
        snprintf(trained, sizeof trained, ", %sB gradients, %sB optimiser", text[GRADIENTS],
                 text[OPTIMISER]);
    report_line("memory    %sB weights%s, %sB activations, %sB inputs; %s at a time%s",
                text[WEIGHTS], trained, text[ACTIVATIONS], text[INPUTS],
                amount(p->max_batch, "image").s, s->world.ranks > 1 ? ", on the first rank" : "");
    if (p->recompute.kind != RECOMPUTE_NONE) {
        Plan whole = *p;
        whole.recompute = (Recompute){0};
        double saves = vit_bytes(c, &whole, s->be) - vit_bytes(c, p, s->be);
        format_count(saves, text[0], sizeof text[0]);
        printf(p->recompute.kind == RECOMPUTE_LIGHT
                   ? "          norms, GELU and rounded weights, made again, save %sB (--recompute "
                     "none keeps them)\n"
                   : "          activations made again save %sB\n",
               text[0]);
    }
    if (p->offload) {
        format_count((double)m->host.bytes, text[0], sizeof text[0]);
        printf("          %sB of optimiser state in the host's memory\n", text[0]);
    }
}

/* ---- weights ---- */

/* Runs with --ema are judged by the average of their weights, and so all start from it: evaluation,
 * prediction, other trainings. --no-ema asks for those of the last step, --ema for nothing else.
 * What stands beside a model.safetensors is the rest of its checkpoint; a file that was copied has
 * what it holds, and says which that is. */
static void choose_average(Session *s, bool training)
{
    bool judged = !training && strcmp(s->o.command, "bench") != 0;
    bool said = judged && options_given(&s->o, "ema"), raw = said && s->o.ema <= 0;
    const char *slash = strrchr(s->weights, '/'), *file = slash ? slash + 1 : s->weights;
    bool beside = strcmp(file, "model.safetensors") == 0, average = ckpt_is_average(s->weights);
    char *copy = xstrdup(s->weights), *dir = dirname(copy);
    if (raw && beside && ckpt_load_raw(&s->m->own, dir, s->o.pos_resize))
        printf("          those of the last step, not their average\n");
    else if (raw && average)
        printf("          averaged weights: those of the last step are not with them\n");
    else if (average || (!raw && beside && ckpt_load_average(&s->m->own, dir, s->o.pos_resize)))
        printf("          averaged weights%s\n",
               training || !beside ? "" : " (--no-ema: those of the last step)");
    else if (said && s->o.ema > 0)
        die("leave --ema out", "%s has no averaged weights", s->weights);
    free(copy);
}

/* For the history of 8-bit copies, which checkpoints keep */
static void amax_room(Session *s, const Plan *plan)
{
    RunState *run = &s->state;
    run->scales = vit_scales(s->m);
    run->history = plan->fp8.history;
    if (run->scales)
        run->amax = xcalloc((size_t)run->scales * (size_t)run->history, sizeof(real));
}

/* The plan of its memory, and then its weights: of a checkpoint, with the optimiser's state; of a
 * weights file onto a fresh initialisation, which is what remains of a new head; or fresh. */
void setup_model(Session *s, bool training)
{
    Error e;
    const Options *o = &s->o;
    setup_check_usage(vit_config_check(&s->config, &e),
                      &e); /* again: classes may come from the data */
    Plan plan = setup_plan(s, training);
    hosts_at("setting up the model", 0);
    choose_micro(s, &plan);
    s->m = vit_create(&s->config, &plan, s->be);
    Units *own = &s->m->own;
    describe_model(s, training);
    if (training && strcmp(o->command, "train") == 0)
        tuning_describe(s->m, s->weights != NULL);
    if (s->checkpoint && training) {
        s->state.counters = *vit_state(s->m);
        s->state.scaled = plan.scaling.kind != SCALING_NONE;
        amax_room(s, &plan);
        setup_check(ckpt_resume(own, s->checkpoint, &s->state, &e), &e);
        vit_set_state(s->m, &s->state.counters);
        vit_set_positions(s->m);
        vit_set_amax(s->m, s->state.amax, (uint32_t)s->state.fp8_since);
        if (s->state.seed != (uint64_t)o->seed) /* order and augmentation would not continue */
            die("leave --seed out, or start a new run from --weights",
                "the run in %s has seed %lu, not %ld", s->checkpoint, (unsigned long)s->state.seed,
                o->seed);
        return;
    }
    /* a new head on trained weights starts at zero: random logits would only disturb them */
    const char *scheme = s->weights && !options_given(o, "init") ? "jax" : o->init;
    setup_check(vit_init(s->m, scheme, (uint64_t)o->seed, o->head_bias, o->layer_scale_init, &e),
                &e);
    if (s->weights) {
        char report[1024] = "";
        bool new_head = training || strcmp(o->command, "bench") == 0;
        int how = LOAD_POS(o->pos_resize) | (new_head ? LOAD_NEW_HEAD : 0);
        setup_check(ckpt_load_weights(own, s->weights, how, report, sizeof report, &e), &e);
        if (*report)
            report_line(
                "          %s%s", report,
                strcmp(scheme, "jax") ? "" : "; it starts at zero, where all are alike: 0% right");
        choose_average(s, training);
    }
    if (training)
        vit_set_positions(s->m);
    s->state = (RunState){.seed = (uint64_t)o->seed, .best_metric = -1};
    amax_room(s, &plan);
}
