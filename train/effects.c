/* effects.c - which flags can make no difference to a run. See effects.h.
 *
 * Two tables: the commands that know a flag, and what must hold in a run for it to do something.
 * Both speak of what is known before the data are opened; what these alone know (validation images
 * of their own, say) their readers say. A flag's default counts as given where it was: whoever
 * writes --momentum 0.9 believes in it; --no-ema asks for nothing.
 * What contradicts itself is an error, which check_options and others make of it.
 *
 * Read in this order: the commands, the run, the text.
 */
#include "train/effects.h"

#include "train/setup_options.h"
#include "util/names.h"
#include "util/report.h"
#include "util/text.h"

#include <stdlib.h>
#include <string.h>

#define AREA         "area-min area-max ratio-min ratio-max"
#define AUGMENTATION "train-crop flip color-jitter auto-augment " AREA
#define CROP         "crop resize crop-pct"
#define IMAGES       "augment interpolation decode " AUGMENTATION " " CROP
#define SHARDS       "wds-label shuffle-shards index-dir val-index-dir"
#define MIXING       "mix-prob mix-per mix-pairs mix-group"

/* ---- the commands ---- */

enum { TRAIN = 1, EVAL = 2, PREDICT = 4, BENCH = 8, SHOW = 16, PLAN = 32 };
static const char command_names[] = "train|eval|predict|bench|show|plan"; /* by bit */

/* What is not listed, all know. A plan is of a whole command line: it knows all. */
static const struct {
    int commands;
    const char *flags;
} known[] = {
    {TRAIN, "epochs lr warmup-steps schedule lr-floor step-size step-gamma class-weights patience "
            "weight-decay decay beta1 beta2 adam-eps momentum label-smoothing target-threshold "
            "init head-bias layer-scale-init eval-every save-every log-every keep"},
    {TRAIN | BENCH, "steps layer-decay freeze opt clip position fp8-wgrad loss-scaling loss-scale "
                    "scale-interval hysteresis stochastic-rounding dropout attention-dropout "
                    "drop-path reduce-dtype offload-optimizer recompute recompute-blocks "
                    "recompute-group recompute-keep"},
    {TRAIN | BENCH | SHOW, "augment repeats data-per-class shuffle-shards " AUGMENTATION},
    {TRAIN | SHOW, "mixup cutmix mix-switch " MIXING " erase erase-mode color-twist"},
    {TRAIN | EVAL | SHOW, "val-data val-fraction val-index-dir out"},
    {TRAIN | EVAL | PREDICT, "tta"},
    {TRAIN | EVAL | BENCH, "micro-batch"},
    {TRAIN | EVAL | BENCH | SHOW,
     "data seed class-order wds-label classes-fraction index-dir max-damaged"},
    {PREDICT, "topk format features attention"},
};

/* Flags that a command does not know, by blanks; free() it. */
static char *unknown_to(int command)
{
    char *flags = xstrdup("");
    for (int i = 0; i < COUNT(known); i++) {
        if (command & (known[i].commands | PLAN))
            continue;
        char *more = xasprintf("%s%s%s", flags, *flags ? " " : "", known[i].flags);
        free(flags);
        flags = more;
    }
    return flags;
}

/* ---- the run ---- */

static bool is_kind(const char *spec, const char *kind)
{
    return strncmp(spec, kind, strlen(kind)) == 0;
}

typedef struct {
    bool works;        /* what follows, */
    const char *flags; /* by blanks, */
    const char *where; /* and how the note goes on that it does not */
} Row;

/* Calls `each` with the rows that hold against flags. Of several against one, the first counts. */
static void each_row(const Session *s, int command, void (*each)(void *arg, const Row *r),
                     void *arg)
{
    const Options *o = &s->o;
    bool none = strcmp(o->val_data, "none") == 0, trains = command & (TRAIN | PLAN);
    const char *data = o->data, *val = *o->val_data && !none ? o->val_data : data;
    bool files = command == PREDICT, cpu = s->be && !backend_cuda;
    bool fake = !files && is_kind(data, "fake") && is_kind(val, "fake");
    bool pixels = !files && setup_pixels(data) && setup_pixels(val);
    bool resident = command == BENCH && !options_given(o, "data");
    bool evaluates = !trains || !none, one = s->split.dp.ranks == 1;
    bool either = o->mixup > 0 || o->cutmix > 0, both = o->mixup > 0 && o->cutmix > 0;
    bool half = s->type == F16, dynamic = o->loss_scaling == LOSS_SCALING_DYNAMIC;
    bool chosen = o->loss_scaling == LOSS_SCALING_DEFAULT && half;
    bool proposes = command == PLAN && !options_given(o, "zero");
    const Row rows[] = {
        /* what another flag takes the place of */
        {!o->steps, "epochs", "before --steps"},
        {o->steps || !options_given(o, "epochs"), "steps", "before --epochs"},
        {*o->val_data || !o->val_fraction, "val-data", "before --val-fraction"},
        {!*o->val_data, "val-fraction", "with --val-data"},
        {!*o->classes, "class-order", "with --classes: its lines are the order"},
        /* data */
        {!resident, "workers max-damaged " IMAGES, "without --data: images are on the device"},
        {!fake, "class-order max-damaged " IMAGES, "on fake data"},
        {!pixels, "class-order decode", "on cifar and mnist"},
        {!pixels, CROP, "on cifar and mnist, which are stretched"},
        {is_kind(data, "wds:") || is_kind(val, "wds:"), SHARDS, "without --data wds:PATTERN"},
        {o->augment, AUGMENTATION, "with --no-augment"},
        {o->train_crop == TRAIN_CROP_RESIZED, AREA, "with --train-crop simple"},
        {evaluates, "tta", "with --val-data none"},
        {evaluates || !o->augment, CROP, "with --val-data none"},
        {evaluates || !o->save_every, "eval-every", "with --val-data none and --save-every"},
        {o->crop != CROP_STRETCH, "resize crop-pct", "with --crop stretch"},
        {!o->resize, "crop-pct", "with --resize"},
        /* what the model starts from */
        {!(trains && s->checkpoint), "init head-bias layer-scale-init pos-resize", "with --resume"},
        {s->weights, "pos-resize", "without --weights"},
        {s->config.layer_scale, "layer-scale-init", "without --layer-scale"},
        /* how it learns */
        {o->schedule == SCHEDULE_STEP, "step-size step-gamma", "without --schedule step"},
        {o->schedule != SCHEDULE_CONSTANT, "lr-floor", "with --schedule constant"},
        {o->opt != OPT_SGD, "beta1 beta2 adam-eps", "with --opt sgd"},
        {o->opt == OPT_SGD, "momentum", "without --opt sgd"},
        {o->weight_decay > 0, "decay", "without --weight-decay"},
        {o->layer_decay == 1 || s->frozen <= s->config.layers, "layer-decay",
         "where the head alone learns (--freeze)"},
        {both, "mix-switch", "without both --mixup and --cutmix"},
        {either, MIXING, "without --mixup or --cutmix"},
        {o->erase > 0, "erase-mode", "without --erase"},
        /* numbers */
        {o->precision == PRECISION_FP8, "fp8-scaling fp8-history fp8-margin fp8-skip fp8-wgrad",
         "without --precision fp8"},
        {o->fp8_scaling == 0, "fp8-history", "with --fp8-scaling current"},
        {chosen || o->loss_scaling > LOSS_SCALING_NONE, "loss-scale",
         "without --precision fp16 or --loss-scaling"},
        {chosen || dynamic, "scale-interval hysteresis",
         "without --precision fp16 or --loss-scaling dynamic"},
        {s->type != F32 || !o->stochastic_rounding, "stochastic-rounding", "on weights in fp32"},
        /* machines */
        {!backend_cuda, "threads", "on a GPU: see --workers"},
        {!cpu, "collectives autotune", "on a CPU"},
        {!cpu || !o->offload_optimizer, "offload-optimizer", "on a CPU"},
        {s->world.ranks > 1 || command == PLAN, "watchdog collectives", "with one rank"},
        {!one || !o->zero, "zero", "with one data parallel rank"},
        {!one || !o->reduce_dtype, "reduce-dtype", "with one data parallel rank"},
        {o->reshard_after_forward || s->split.zero == 3 || proposes, "reshard-after-forward",
         "without --zero 3"},
        {s->split.pp.ranks > 1, "layers-per-stage", "without --pp"},
    };
    for (int i = 0; i < COUNT(rows); i++)
        if (!rows[i].works)
            each(arg, &rows[i]);
}

/* ---- the text ---- */

typedef struct {
    const Options *o;
    Names said; /* flags that have a line already */
    FILE *f;
} Notes;

static bool is_said(const Notes *n, const char *flag)
{
    for (int i = 0; i < n->said.n; i++)
        if (strcmp(n->said.at[i], flag) == 0)
            return true;
    return false;
}

/* "note: --beta1, --beta2 have no effect with --opt sgd", of those that were asked for. */
static void note(void *arg, const Row *r)
{
    Notes *n = arg;
    char *list = xstrdup(r->flags), *rest = list, *flag;
    int found = 0;
    while ((flag = strsep(&rest, " "))) {
        if (!*flag || !options_asked(n->o, flag) || is_said(n, flag))
            continue;
        fprintf(n->f, "%s--%s%s", found++ ? ", " : "note: ", options_off(n->o, flag) ? "no-" : "",
                flag);
        names_add(&n->said, flag);
    }
    if (found)
        fprintf(n->f, " %s no effect %s\n", found > 1 ? "have" : "has", r->where);
    free(list);
}

char *effects_text(const Session *s, const char *command)
{
    int bit = 1 << find_word(command_names, command);
    char *text = NULL, *where = xasprintf("in %s", command);
    size_t size;
    Notes n = {.o = &s->o, .f = open_memstream(&text, &size)};
    if (!n.f)
        die("free some memory", "out of memory");
    char *others = unknown_to(bit);
    note(&n, &(Row){false, others, where});
    each_row(s, bit, note, &n);
    fclose(n.f);
    names_free(&n.said);
    free(others);
    free(where);
    return text;
}

void effects_note(const Session *s, const char *command)
{
    char *text = effects_text(s, command), *rest = text, *line;
    while ((line = strsep(&rest, "\n")))
        if (*line)
            report_line("%s", line);
    free(text);
}
