/* setup_options.c - from the command line to Options. See setup_options.h.
 *
 * What wins, from weakest to strongest: defaults; a built-in recipe (training without a recipe: for
 * a small model, or for --weights), or the config.ini of the run that is continued or evaluated;
 * recipes and flags in the order they were given.
 *
 * Read in this order: the built-in recipes, what lies under the command line, what is wrong between
 * settings, the call. What flags are called is in options.h.
 */
#include "train/setup_options.h"

#include "image/augment.h"
#include "image/formats.h"
#include "train/help.h"
#include "train/rundir.h"
#include "train/spec.h"
#include "util/files.h"
#include "util/report.h"

#include <stdlib.h>
#include <string.h>

/* ---- built-in recipes ---- */

/* What trains when nothing says what to: a model that two cores train in two minutes. Crops stay
 * large, because a shape that is cut away cannot be named. */
static const char built_in[] = "image-size = 64\n"
                               "patch-size = 8\n"
                               "width = 128\n"
                               "layers = 4\n"
                               "heads = 4\n"
                               "mlp = 256\n"
                               "batch-size = 64\n"
                               "epochs = 16\n"
                               "lr = 0.001\n"
                               "label-smoothing = 0.1\n"
                               "area-min = 0.7\n";
/* The same for pictures of 32 and 28 pixels. */
static const char built_in_tiny[] = "image-size = 32\n"
                                    "patch-size = 4\n"
                                    "area-min = 0.5\n";
/* What trains on from --weights: large steps of SGD for a short while (what it reaches is in
 * recipes/finetune_small.ini). The learning rate belongs to the optimiser: who names another has
 * its default. */
static const char fine_tuning[] = "batch-size = 32\n"
                                  "epochs = 6\n";
static const char fine_tuning_steps[] = "opt = sgd\n"
                                        "lr = 0.01\n";

/* ---- what lies under the command line ---- */

bool setup_pixels(const char *spec)
{
    return strncmp(spec, "cifar", 5) == 0 || strncmp(spec, "mnist:", 6) == 0;
}

/* What was said, "" where nothing was. */
static const char *said(const Settings *asked, const char *name)
{
    const char *value = settings_last(asked, name);
    return value ? value : "";
}

static const char *const precisions[] = {NULL, NULL, "tf32", "bf16", "fp16", "fp8"}; /* not fp32 */

/* The run's config.ini, and what of it does not hold for this process. */
static void apply_run(Session *s, const Settings *asked)
{
    Error e;
    Options *o = &s->o;
    Place place;
    char *ini = xasprintf("%s/config.ini", s->run_dir);
    bool train = strcmp(o->command, "train") == 0;
    setup_check(options_file(o, ini, &e), &e);
    if (!backend_cuda && !(train && o->precision == PRECISION_BF16)) { /* other devices' */
        const char *now = said(asked, "precision");
        s->ran_in = *now && strcmp(now, "auto") ? NULL : precisions[o->precision];
        setup_check(options_set(o, "precision", "auto", "", &e), &e);
    }
    /* how many processes there are is for this device to say, and for a launcher */
    setup_check(options_set(o, backend_cuda ? "ranks" : "gpus", "1", "", &e), &e);
    if (launch_environment(&place, &e) && place.world.ranks > 1)
        setup_check(options_set(o, backend_cuda ? "gpus" : "ranks", "1", "", &e), &e);
    /* how ranks shared the model goes for training alone, and where nothing else is said */
    static const char *const layout[][2] = {
        {"tp", "1"}, {"pp", "1"}, {"layers_per_stage", ""}, {"zero", "0"}};
    s->run_layout = true;
    for (int i = 0; i < COUNT(layout); i++)
        s->run_layout &= !settings_last(asked, layout[i][0]);
    for (int i = 0; i < COUNT(layout) && !(train && s->run_layout); i++)
        setup_check(options_set(o, layout[i][0], layout[i][1], "", &e), &e);
    if (*said(asked, "resume")) /* the checkpoint holds the weights now */
        setup_check(options_set(o, "weights", "", "", &e), &e);
    /* --data is what to evaluate, whatever the run evaluated */
    if (!train && settings_last(asked, "data") && !*said(asked, "val-data")) {
        setup_check(options_set(o, "val-data", "", "", &e), &e);
        setup_check(options_set(o, "val-fraction", "0", "", &e), &e);
        setup_check(options_set(o, "index-dir", "", "", &e), &e);
    }
    free(ini);
}

/* One of the two built-in recipes, where no other is named. */
static void apply_built_in(Session *s, const Settings *asked)
{
    Error e;
    Options *o = &s->o;
    bool ok = true;
    if (*said(asked, "weights")) {
        s->built_in = "fine-tuning";
        ok = options_lines(o, fine_tuning, "built-in recipe", &e);
        if (ok && !settings_last(asked, "opt"))
            ok = options_lines(o, fine_tuning_steps, "built-in recipe", &e);
    } else if (!*said(asked, "model")) {
        s->built_in = "a small model";
        ok = options_lines(o, built_in, "built-in recipe", &e);
        if (ok && setup_pixels(said(asked, "data")))
            ok = options_lines(o, built_in_tiny, "built-in recipe", &e);
    }
    setup_check(ok, &e);
}

/* Of a file of several (bench). */
static void apply_configuration(Session *s, const Settings *asked)
{
    Error e;
    Spec spec;
    setup_check_usage(spec_read(&spec, said(asked, "spec"), &e), &e);
    const Configuration *c = spec_find(&spec, said(asked, "only"), &e);
    setup_check_usage(c && spec_apply(&spec, c, &s->o, &e), &e);
    spec_free(&spec);
}

/* What lies under the settings that were asked for: a built-in recipe where nothing says how to
 * train, or the settings of the run that is continued or evaluated. */
static void apply_base(Session *s, const Settings *asked)
{
    if (*said(asked, "spec") && *said(asked, "only"))
        apply_configuration(s, asked);
    const char *resume = said(asked, "resume"), *weights = said(asked, "weights");
    bool train = strcmp(s->o.command, "train") == 0, has_recipe = *said(asked, "recipe");
    if (*resume && *weights)
        die_usage("give one of the two", "--weights and --resume both name weights");
    if (*resume)
        s->run_dir = run_of(resume);
    else if (*weights && !train)
        s->run_dir = run_of(weights);
    if (train && !has_recipe && !*resume) {
        apply_built_in(s, asked);
    } else if (s->run_dir) {
        apply_run(s, asked);
    } else if (*resume && path_exists(resume) && !has_recipe) {
        not_a_run(resume);
    }
}

/* ---- the call ---- */

/* What is wrong between settings; each by itself has been checked when it was set. */
static void check_options(const Options *o)
{
    Error e;
    if (o->area_min > o->area_max || o->area_max <= 0)
        die_usage("--area-min must not exceed --area-max", "no crop has an area in %g..%g",
                  o->area_min, o->area_max);
    if (o->ratio_min > o->ratio_max)
        die_usage("--ratio-min must not exceed --ratio-max", "no crop has a ratio in %g..%g",
                  o->ratio_min, o->ratio_max);
    if (o->lr_floor > o->lr)
        die_usage("--lr-floor must not exceed --lr", "the learning rate would rise from %g to %g",
                  o->lr, o->lr_floor);
    double twist[4];
    setup_check_usage(mix_parse_twist(o->color_twist, twist, &e), &e);
    bool bench = strcmp(o->command, "bench") == 0;
    if (!bench && (*o->spec || *o->only || *o->json))
        die_usage("such as bench --spec bench/specs.ini", "--spec, --only and --json are bench's");
    if (*o->only && !*o->spec)
        die_usage("--spec FILE holds the configurations", "--only %s: of which file?", o->only);
    if (o->patience && strcmp(o->val_data, "none") == 0)
        die_usage("leave one of the two out",
                  "--patience counts evaluations, --val-data none has none");
    if (o->tta && o->pp > 1)
        die_usage("leave --pp or --tta out", "--tta: the last of %ld stages has no images", o->pp);
    if (o->target_threshold < 0 && o->target_threshold != -1)
        die_usage("give 0 to 1, or -1 for targets as they are",
                  "--target-threshold %g: every target is above it", o->target_threshold);
    if (o->target_threshold == 0 && o->label_smoothing > 0)
        die_usage("give --label-smoothing 0",
                  "--target-threshold 0: smoothed targets are all above 0");
    if (o->epochs <= 0 && o->steps == 0)
        die_usage("give --epochs above 0, or --steps", "--epochs %g trains nothing", o->epochs);
}

static _Noreturn void print_version(void)
{
    const Backend *be = backend_cuda ? backend_cuda() : backend_cpu();
    printf("%s of vit.c, compiled with %s, %s by C compiler %s\n", PROGRAM + 2, be->built,
           formats_built, __VERSION__);
    report_written(stdout);
    exit(0);
}

/* The command line is read first, since it names the run or the recipe that lies under it, and
 * applied last. --help prints the defaults, whatever else was said, if that made sense. */
void setup_options(Session *s, int argc, char **argv)
{
    Error e;
    Options *o = &s->o;
    Settings asked = {0};
    *s = (Session){.argv = argv, .lock = -1};
    options_init(o);
    setup_check_usage(options_args(o, &asked, argc, argv, &e), &e);
    if (!o->help && !o->version)
        apply_base(s, &asked);
    char *was = *said(&asked, "resume") && s->run_dir ? options_text(o, &o->config, "") : NULL;
    s->before = *o;
    s->asked_batch = settings_last(&asked, "batch-size");
    setup_check_usage(options_apply(o, &asked, &e), &e);
    if (was) {
        char *is = options_text(o, &o->config, "");
        s->changed = options_changes(was, is);
        free(is);
        free(was);
    }
    if (o->version)
        print_version();
    if (o->help) {
        help_print(stdout, o->command, o->help_all);
        report_written(stdout);
        exit(0);
    }
    check_options(o);
    s->changes = augmentation_new(o->color_jitter, o->auto_augment, &e);
    setup_check_usage(s->changes != NULL, &e);
}
