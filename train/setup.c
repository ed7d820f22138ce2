/* setup.c - from flags to a session: config, data, model, length of the run, run directory.
 *
 * What wins, from weakest to strongest: defaults; a built-in recipe (training without a recipe: for
 * a small model, or for --weights), or the config.ini of the run that is continued or evaluated;
 * recipes and flags in the order they were given. The model's settings start from the weights file
 * or the preset. The training loop is in train.c; what flags are called is in options.h.
 *
 * Read in this order: the built-in recipe, options, config, data, model, length, run directory.
 */
#include "train/setup.h"

#include "datasets/shapes.h"
#include "image/augment.h"
#include "image/formats.h"
#include "train/help.h"
#include "train/hosts.h"
#include "train/parallel.h"
#include "train/spec.h"
#include "train/tuning.h"
#include "util/files.h"
#include "util/machine.h"
#include "util/report.h"
#include "util/text.h"
#include "util/tfevents.h"
#include "weights/open.h"
#include "weights/weights.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <libgen.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

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
enum { SHAPES_TRAIN = 500, SHAPES_VAL = 100 }; /* images per class */

static Error why; /* what the call that has just failed says of it */

void setup_check(bool ok, const Error *e)
{
    if (!ok)
        die(e->hint, "%s", e->what);
}

static void check(bool ok)
{
    setup_check(ok, &why);
}

/* What all ranks find, the first one says. */
static void warn_of(const Session *s, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void warn_of(const Session *s, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (s->world.rank == 0)
        warn("%s", text);
}

static void check_usage(bool ok)
{
    const char *hint = *why.hint ? why.hint : "--help lists all flags with what they take";
    if (!ok)
        die_usage(hint, "%s", why.what);
}

/* ---- options ---- */

/* Whether dir holds a run of ours, and not just anybody's config.ini. */
static bool is_run(const char *dir)
{
    char *ini = xasprintf("%s/config.ini", dir), *latest = xasprintf("%s/latest", dir);
    bool yes = path_exists(ini) && path_exists(latest);
    free(ini);
    free(latest);
    return yes;
}

/* "runs/a, runs/b ...": the first few runs in a folder, or NULL. */
static char *runs_in(const char *dir)
{
    struct dirent **list = NULL;
    char *runs = NULL;
    int n = scandir(dir, &list, NULL, alphasort), found = 0;
    for (int i = 0; i < n; i++) {
        char *run = xasprintf("%s/%s", dir, list[i]->d_name);
        if (list[i]->d_name[0] != '.' && is_run(run) && ++found <= 6) {
            char *more =
                xasprintf("%s%s%s", runs ? runs : "", runs ? ", " : "", found < 6 ? run : "...");
            free(runs);
            runs = more;
        }
        free(run);
        free(list[i]);
    }
    free(list);
    return runs;
}

/* Says what is in the folder that was taken for a run. */
static _Noreturn void not_a_run(const char *dir)
{
    Error e = {"", ""};
    char found[4096], *ini = xasprintf("%s/config.ini", dir), *runs = runs_in(dir);
    char *hint = runs ? xasprintf("name one of %s", runs) : NULL;
    if (runs)
        die(hint, "%s is a folder of runs", dir);
    if (ckpt_find(dir, found, sizeof found, &e))
        die("give the settings of the run with --recipe FILE", "%s has no run with a config.ini",
            dir);
    if (path_exists(ini)) {
        hint = xasprintf("start it again: --recipe %s --out %s (--save-every N saves more often)",
                         ini, dir);
        die(hint, "%s holds a run that has not saved a checkpoint", dir);
    }
    die("give the directory of a run (its --out) or of a checkpoint", "%s holds no run", dir);
}

/* The run that a run directory, one of its checkpoints or a file in one belongs to, or NULL. */
static char *run_of(const char *path)
{
    if (is_run(path))
        return xstrdup(path);
    char *dir = realpath(path, NULL);
    for (int up = 0; dir && up < 2; up++)
        if (is_run(dirname(dir))) /* which cuts an absolute path in place */
            return dir;
    free(dir);
    return NULL;
}

static bool is_tiny_data(const char *spec)
{
    return strncmp(spec, "cifar", 5) == 0 || strncmp(spec, "mnist:", 6) == 0;
}

/* What was said, "" where nothing was. */
static const char *said(const Settings *asked, const char *name)
{
    const char *value = settings_last(asked, name);
    return value ? value : "";
}

/* Words of --precision, and what they mean for the model and for its matrix products. */
enum {
    PRECISION_AUTO,
    PRECISION_FP32,
    PRECISION_TF32,
    PRECISION_BF16,
    PRECISION_FP16,
    PRECISION_FP8
};
static const int types[] = {F32, F32, F32, BF16, F16, BF16}; /* activations, working weights */
static const char *const precisions[] = {NULL, NULL, "tf32", "bf16", "fp16", "fp8"}; /* not fp32 */

/* The run's config.ini, and what of it does not hold for this process. */
static void apply_run(Session *s, const Settings *asked)
{
    Options *o = &s->o;
    Place place;
    char *ini = xasprintf("%s/config.ini", s->run_dir);
    bool train = strcmp(o->command, "train") == 0;
    check(options_file(o, ini, &why));
    if (!backend_cuda && !(train && o->precision == PRECISION_BF16)) { /* other devices' */
        const char *now = said(asked, "precision");
        s->ran_in = *now && strcmp(now, "auto") ? NULL : precisions[o->precision];
        check(options_set(o, "precision", "auto", "", &why));
    }
    /* how many processes there are is for this device to say, and for a launcher */
    check(options_set(o, backend_cuda ? "ranks" : "gpus", "1", "", &why));
    if (launch_environment(&place, &why) && place.world.ranks > 1)
        check(options_set(o, backend_cuda ? "gpus" : "ranks", "1", "", &why));
    /* how ranks shared the model goes for training alone, and where nothing else is said */
    static const char *const layout[][2] = {
        {"tp", "1"}, {"pp", "1"}, {"layers_per_stage", ""}, {"zero", "0"}};
    s->run_layout = true;
    for (int i = 0; i < COUNT(layout); i++)
        s->run_layout &= !settings_last(asked, layout[i][0]);
    for (int i = 0; i < COUNT(layout) && !(train && s->run_layout); i++)
        check(options_set(o, layout[i][0], layout[i][1], "", &why));
    if (*said(asked, "resume")) /* the checkpoint holds the weights now */
        check(options_set(o, "weights", "", "", &why));
    /* --data is what to evaluate, whatever the run evaluated */
    if (!train && settings_last(asked, "data") && !*said(asked, "val-data")) {
        check(options_set(o, "val-data", "", "", &why));
        check(options_set(o, "val-fraction", "0", "", &why));
        check(options_set(o, "index-dir", "", "", &why));
    }
    free(ini);
}

/* One of the two built-in recipes, where no other is named. */
static void apply_built_in(Session *s, const Settings *asked)
{
    Options *o = &s->o;
    bool ok = true;
    if (*said(asked, "weights")) {
        s->built_in = "fine-tuning";
        ok = options_lines(o, fine_tuning, "built-in recipe", &why);
        if (ok && !settings_last(asked, "opt"))
            ok = options_lines(o, fine_tuning_steps, "built-in recipe", &why);
    } else if (!*said(asked, "model")) {
        s->built_in = "a small model";
        ok = options_lines(o, built_in, "built-in recipe", &why);
        if (ok && is_tiny_data(said(asked, "data")))
            ok = options_lines(o, built_in_tiny, "built-in recipe", &why);
    }
    check(ok);
}

/* Of a file of several (bench). */
static void apply_configuration(Session *s, const Settings *asked)
{
    Spec spec;
    check_usage(spec_read(&spec, said(asked, "spec"), &why));
    const Configuration *c = spec_find(&spec, said(asked, "only"), &why);
    check_usage(c && spec_apply(&spec, c, &s->o, &why));
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

/* What is wrong between settings; each by itself has been checked when it was set. */
static void check_options(const Options *o)
{
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
    check_usage(mix_parse_twist(o->color_twist, twist, &why));
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
    Options *o = &s->o;
    Settings asked = {0};
    *s = (Session){.argv = argv, .lock = -1};
    options_init(o);
    check_usage(options_args(o, &asked, argc, argv, &why));
    if (!o->help && !o->version)
        apply_base(s, &asked);
    char *was = *said(&asked, "resume") && s->run_dir ? options_text(o, &o->config, "") : NULL;
    s->before = *o;
    s->asked_batch = settings_last(&asked, "batch-size");
    check_usage(options_apply(o, &asked, &why));
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
    s->changes = augmentation_new(o->color_jitter, o->auto_augment, &why);
    check_usage(s->changes != NULL);
}

/* ---- config ---- */

/* A weights file, that of a folder as people download them, or the best or newest checkpoint of a
 * run. */
static char *find_weights(const char *path)
{
    if (!path_exists(path))
        die("name a file of weights, a folder with one, or a run directory; nothing is downloaded",
            "%s: %s", path, path_trouble("no such file or directory"));
    if (!is_dir(path))
        return xstrdup(path);
    char *file = weights_in_folder(path);
    if (file)
        return file;
    char dir[4096], *ini = xasprintf("%s/config.ini", path), *runs = runs_in(path);
    bool found = ckpt_best(path, dir, sizeof dir, &why);
    if (!found && (runs || path_exists(ini)))
        not_a_run(path);
    free(runs);
    free(ini);
    if (!found)
        die("name the file itself: in a folder, model.safetensors, its .index.json, "
            "pytorch_model.bin or a single file of weights are looked for, and a run's checkpoints",
            "%s: holds no weights", path);
    return xasprintf("%s/model.safetensors", dir);
}

/* How evaluation prepares images, where files beside the weights say it and no flag does. */
static void use_images(Session *s, const Hub *h)
{
    Options *o = &s->o;
    if (h->crop >= 0 && !options_given(o, "crop"))
        o->crop = h->crop ? CROP_STRETCH : CROP_CENTER;
    if (h->interpolation >= 0 && !options_given(o, "interpolation"))
        o->interpolation = h->interpolation ? FILTER_BICUBIC : FILTER_BILINEAR;
    if (h->crop_pct > 0 && !options_given(o, "crop-pct"))
        o->crop_pct = h->crop_pct;
    if (*h->unknown)
        warn_of(s, "%s: %s is not known here: see --interpolation, --crop and --crop-pct", h->from,
                h->unknown);
    if (h->crop < 0 && h->crop_pct == 0)
        return;
    printf("          images as %s says: %s, %s", h->from,
           o->interpolation == FILTER_BICUBIC ? "bicubic" : "bilinear",
           o->crop == CROP_STRETCH ? "stretched\n" : "centre crop of ");
    if (o->crop != CROP_STRETCH)
        printf("%g (--crop-pct)\n", o->crop_pct);
}

/* The model that weights are of, and what nobody says about it and is assumed. */
static void use_weights(Session *s)
{
    WeightsInfo w;
    char text[1024] = "";
    printf("weights   %s\n", s->weights);
    Config given = {0}; /* its image size, if there is one */
    options_apply_config(&s->o, &given);
    check(weights_describe(s->weights, given.image_h, given.image_w, &w, &why));
    s->config = w.config;
    if (*w.form)
        printf("          %s\n", w.form);
    if (*w.notes)
        printf("note: %s\n", w.notes);
    use_images(s, &w.hub);
    for (int i = 0; i < w.assumptions; i++) {
        size_t at = strlen(text);
        if (!options_config_given(&s->o, w.assumed[i].setting))
            snprintf(text + at, sizeof text - at, "%s%s", at ? ", " : "", w.assumed[i].text);
    }
    if (*text && s->world.rank == 0)
        warn_of(s, "neither the file nor a config.json beside it says, and it is assumed: %s",
                text);
    bool eval = strcmp(s->o.command, "eval") == 0 || strcmp(s->o.command, "predict") == 0;
    if (w.config.classes == 0 && strcmp(s->o.command, "bench") == 0)
        s->config.classes = vit_config_default().classes;
    if (w.config.classes == 0 && eval)
        die("train one first: train --weights FILE --data DIR; or give weights with a head",
            "%s: has no head, so it knows no classes", s->weights);
}

/* The number of classes may still be the data's to say. */
static void check_config(const Session *s)
{
    Config c = s->config;
    if (c.classes == 0 && !options_config_given(&s->o, "classes"))
        c.classes = 1;
    check_usage(vit_config_check(&c, &why));
    if (s->o.position != POSITION_LEARNED && (c.width % 4 || c.width < 8))
        die_usage(
            "give --width such a number, or --position learned",
            "--position: sines and cosines of two axes take a multiple of four from 8 on, not "
            "a width of %d",
            c.width);
}

/* One process at a time trains in a directory: checkpoints of two would mix. */
static void lock_run(Session *s, const char *dir)
{
    if (s->lock >= 0 || s->world.rank > 0)
        return;
    char *path = xasprintf("%s/lock", dir);
    s->lock = lock_file(path, dir, &why);
    check(s->lock >= 0);
    free(path);
}

static void unlock_run(Session *s)
{
    char *path = xasprintf("%s/lock", s->out ? s->out : s->run_dir ? s->run_dir : "");
    unlock_file(path, s->lock);
    free(path);
}

/* Whether a run that is continued stays where it is: --out may name another place. */
static bool stays(const Session *s)
{
    const char *out = s->o.out;
    return *s->o.resume && s->run_dir && (!*out || strcmp(s->run_dir, out) == 0);
}

/* Which weights the model starts from: none, those of --weights, or those of a checkpoint that
 * training continues, optimiser and all. */
static void find_start(Session *s)
{
    const Options *o = &s->o;
    if (*o->resume) {
        char dir[4096];
        if (stays(s) && strcmp(o->command, "train") == 0)
            lock_run(s, s->run_dir);
        bool found = s->world.rank > 0 || ckpt_find(o->resume, dir, sizeof dir, &why);
        check(found);
        hosts_broadcast(dir, sizeof dir); /* others may not see the newest yet */
        s->checkpoint = xstrdup(dir);
        s->weights = xasprintf("%s/model.safetensors", dir);
    } else if (*o->weights) {
        s->weights = find_weights(o->weights);
    }
}

/* timm's and torchvision's names of plain models: vit_tiny_patch16_224.augreg_in21k,
 * google/vit-base-patch16-224, deit_small_patch16_224, vit_b_16. False: it is none of them. */
static bool foreign_preset(const char *name, Config *c, int *pixels)
{
    static const char *const sizes[][2] = {
        {"tiny", "Ti/16"}, {"small", "S/16"}, {"base", "B/16"}, {"large", "L/16"},
        {"huge", "H/14"},  {"giant", "g/14"}, {"b", "B/16"},    {"gigantic", "G/14"},
        {"l", "L/16"},     {"h", "H/14"}};
    const char *last = strrchr(name, '/');
    char plain[64], family[8] = "", size[16] = "";
    int patch = 0, i = 0;
    snprintf(plain, sizeof plain, "%s", last ? last + 1 : name);
    for (char *p = plain; *p; p++)
        *p = *p == '-' ? '_' : (char)tolower((unsigned char)*p);
    *pixels = 0;
    if (sscanf(plain, "%7[a-z]_%15[a-z]_patch%d_%d", family, size, &patch, pixels) < 3 &&
        sscanf(plain, "%7[a-z]_%15[a-z]_%d", family, size, &patch) < 3)
        return false;
    while (i < COUNT(sizes) && strcmp(sizes[i][0], size) != 0)
        i++;
    bool known = strcmp(family, "vit") == 0 || strcmp(family, "deit") == 0;
    if (!known || i == COUNT(sizes) || patch < 1 || !vit_preset(sizes[i][1], c))
        return false;
    c->patch = patch;
    return true;
}

/* B/16 for b/16, but not g/14, which is another model than G/14. */
static const char *preset_in_any_case(const char *name)
{
    const char *found = NULL;
    for (int i = 0; vit_preset_names[i]; i++)
        if (strcasecmp(name, vit_preset_names[i]) == 0)
            found = vit_preset_names[i];
    return found;
}

/* Dimensions of --model onto those of the weights; flags for single ones come after it. */
static void use_preset(const char *name, Config *c)
{
    int pixels;
    if (!*name || vit_preset(name, c))
        return;
    if (foreign_preset(name, c, &pixels)) {
        if (pixels)
            c->image_h = c->image_w = pixels;
        printf("          %s: width %d, %d layers, %d heads, patch %d, %dx%d pixels; weights are "
               "those "
               "of --weights alone\n",
               name, c->width, c->layers, c->heads, c->patch, c->image_h, c->image_w);
        return;
    }
    const char *same = preset_in_any_case(name), *near = nearest(name, vit_preset_names);
    if (same && vit_preset(same, c))
        return;
    char hint[200];
    snprintf(
        hint, sizeof hint,
        "%s%s%sthere are Ti/16 S/16 B/16 B/32 L/16 H/16 H/14 g/14 G/14 10B/14, and timm's plain "
        "ones, as vit_tiny_patch16_224",
        near ? "did you mean " : "", near ? near : "", near ? "? " : "");
    die_usage(hint, "no model is called '%s'", name);
}

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

/* What a built-in recipe has become under the flags. */
static void describe_recipe(const Session *s)
{
    static const char *const names[] = {"adamw", "adam", "sgd", "lamb"}; /* by OPT_* */
    const Options *o = &s->o;
    char length[64];
    snprintf(length, sizeof length, o->steps ? "%.0f steps" : "%g epochs",
             o->steps ? (double)o->steps : o->epochs);
    report_line("recipe    built-in, %s: %s, lr %g, %ld images a step, %s (flags change it; %s or "
                "--recipe choose another)",
                s->built_in, names[o->opt], o->lr, o->batch_size, length,
                *o->weights ? "--opt" : "--model, --weights");
}

void setup_architecture(Session *s)
{
    if (!s->weights && *s->o.weights)
        s->weights = find_weights(s->o.weights);
    s->config = vit_config_default();
    if (s->weights)
        use_weights(s);
    use_preset(s->o.model, &s->config);
    options_apply_config(&s->o, &s->config);
    check_config(s);
    check_usage(tuning_frozen(&s->o, s->config.layers, &s->frozen, &why));
}

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

/* ---- data ---- */

/* One per core, shared with the other ranks of this machine; a launcher may have shared them out
 * already. */
static int workers_of(const Session *s)
{
    if (s->o.workers > 0)
        return (int)s->o.workers;
    long share = sysconf(_SC_NPROCESSORS_ONLN) / s->world.local_ranks, cores = machine_cores();
    long workers = cores < share ? cores : share;
    if (workers < 1)
        return 1;
    return workers < 64 ? (int)workers : 64;
}

/* `shapes` and `shapes:DIR` are a folder in data/, or in DIR, that is drawn the first time. */
static char *data_spec(Session *s, const char *spec)
{
    bool named = strncmp(spec, "shapes:", 7) == 0, plain = strcmp(spec, "shapes") == 0;
    const char *parent = named ? spec + 7 : "data";
    if ((plain || strcmp(spec, "fake") == 0) && is_dir(spec) && s->world.rank == 0)
        warn("%s is made by the program; the folder of that name is --data ./%s", spec, spec);
    if (!named && !plain)
        return xstrdup(spec);
    if (!*parent)
        die("the folder to draw in follows the colon: shapes:DIR", "%s names no place", spec);
    int size = s->config.image_h > s->config.image_w ? s->config.image_h : s->config.image_w;
    char *dir = xasprintf("%s/shapes-%d", parent, size), *stamp = xasprintf("%s/shapes.txt", dir);
    if (!path_exists(stamp))
        printf("data      drawing %d images into %s (--data shapes:DIR draws elsewhere)\n",
               10 * (SHAPES_TRAIN + SHAPES_VAL), dir);
    fflush(stdout);
    if (!make_dirs(dir, &why))
        die("--data shapes:DIR and --out DIR name places that you may write to", "%s", why.what);
    check(shapes_write(dir, SHAPES_TRAIN, SHAPES_VAL, size, 0, &why));
    free(stamp);
    return dir;
}

/* Evaluated images are named by the run's classes: they may be of a few of them. NULL: there is no
 * run, or --classes says it. */
static const Names *run_classes(Session *s)
{
    if (strcmp(s->o.command, "train") == 0 || !s->run_dir || *s->o.classes)
        return NULL;
    char *path = xasprintf("%s/classes.txt", s->run_dir), *line;
    char *text = path_exists(path) ? read_text(path, 64 << 20, &why) : NULL, *rest = text;
    while (rest && (line = strsep(&rest, "\n")))
        if (*line)
            names_add(&s->classes, line);
    free(text);
    free(path);
    return s->classes.n == s->config.classes ? &s->classes : NULL;
}

Dataset *setup_split(Session *s, const char *spec, bool train)
{
    const Options *o = &s->o;
    const Config *c = &s->config;
    Error e = {"", ""};
    char *where = data_spec(s, spec);
    /* The validation images are in their own shards, or else in those of --data. */
    bool own = !train && *o->val_data && strcmp(spec, o->val_data) == 0;
    own |= !train && strncmp(spec, "wds:", 4) == 0 && webdataset_divided(spec + 4);
    const char *index = own ? o->val_index_dir : o->index_dir;
    if (o->classes_fraction < 1 && !*o->classes &&
        (strncmp(spec, "wds:", 4) == 0 || strncmp(spec, "fake", 4) == 0))
        die_usage("give --classes the file with all classes, one a line",
                  "--classes-fraction: %s does not say how many classes there are", spec);
    /* Training on with new data makes a new head, for as many classes as its labels say. */
    bool known = options_config_given(o, "classes") || s->run_dir || s->checkpoint ||
                 (s->weights && strcmp(o->command, "train") != 0);
    int classes = s->train ? data_classes(s->train) : 0;
    if (known)
        classes = c->classes;
    const Names *like = s->train ? data_class_names(s->train) : run_classes(s);
    if (o->classes_fraction < 1)
        like = NULL;
    DataOptions d = {.spec = where,
                     .classes = *o->classes ? o->classes : NULL,
                     .index_dir = *index ? index : NULL,
                     .wds_label = o->wds_label,
                     .class_order = o->class_order,
                     .like = like,
                     .train = train,
                     .num_classes = classes,
                     .classes_fraction = o->classes_fraction,
                     .val_fraction = *o->val_data ? 0 : o->val_fraction,
                     .per_class = o->data_per_class,
                     .window = (int)o->shuffle_shards,
                     .max_damaged = o->max_damaged > 0 ? o->max_damaged : -1,
                     .images = s->images,
                     .fake_classes = c->classes ? c->classes : vit_config_default().classes,
                     .fake_count = train ? 1280 : 256,
                     .seed = (uint64_t)o->seed};
    d.images.augment &= train;
    Dataset *data = data_open(&d, &e);
    setup_check(data != NULL, &e);
    free(where);
    return data;
}

/* Both splits must number their classes alike: labels come from sorted folder names. */
static void check_splits(const Session *s)
{
    const Dataset *a = s->train, *b = s->val;
    const char *hint = "give --classes a file with all classes, one a line";
    if (data_classes(a) != data_classes(b))
        die(hint, "the training images have %d classes, the validation images %d", data_classes(a),
            data_classes(b));
    for (int k = 0; k < data_classes(a); k++)
        if (strcmp(data_class_name(a, k), data_class_name(b, k)) != 0)
            die(hint, "class %d is '%s' in the training images and '%s' in the validation images",
                k, data_class_name(a, k), data_class_name(b, k));
    char *first = data_sample_path(a, 0), *second = data_sample_path(b, 0);
    if (data_count(a) == data_count(b) && strcmp(first, second) == 0 &&
        strcmp(s->o.data, "fake") != 0)
        warn_of(s, "evaluating on the training images: the data has no split of its own, see "
                   "--val-data and --val-fraction 0.1");
    free(first);
    free(second);
}

/* A run that is evaluated or continued keeps its classes: labels are positions in that list. */
static void check_run_classes(const Session *s, const Dataset *d)
{
    char *path = xasprintf("%s/classes.txt", s->run_dir), *line;
    char *text = path_exists(path) ? read_text(path, 64 << 20, &why) : NULL, *rest = text;
    for (int k = 0; text && k < data_classes(d) && (line = strsep(&rest, "\n")); k++)
        if (strcmp(line, data_class_name(d, k)) != 0)
            die("give --classes the file with the model's classes, in order",
                "class %d is '%s' in the data and '%s' in %s", k, data_class_name(d, k), line,
                path);
    free(text);
    free(path);
}

/* What to evaluate on; NULL: nothing, while training. */
static const char *validation_spec(const Options *o, bool train)
{
    if (strcmp(o->val_data, "none") == 0)
        return train ? NULL : o->data;
    if (*o->val_data)
        return o->val_data;
    if (train && strncmp(o->data, "wds:", 4) == 0 && !webdataset_divided(o->data + 4))
        die("name the validation shards with --val-data wds:PATTERN, or --val-data none",
            "%s has no validation split of its own", o->data);
    return o->data;
}

/* Sorted names are labels only where the weights' classes were sorted alike. `heads` is how many
 * classes the weights know. */
static void check_class_order(const Session *s, const Dataset *d, int heads)
{
    const Options *o = &s->o;
    if (!s->weights || s->run_dir || s->world.rank || options_given(o, "class-order") ||
        !data_order_matters(d) || data_classes(d) != heads)
        return;
    warn_of(
        s,
        "classes are numbered in byte order (10 before 2, B before a); if the weights were trained "
        "with another, labels are wrong: --class-order natural (2 before 10), --class-order timm "
        "(and a before B), or --classes FILE");
}

/* Whoever trained without validation images has none to evaluate on. */
static void check_evaluated(const Session *s)
{
    if (!s->train && s->run_dir && strcmp(s->o.val_data, "none") == 0 &&
        data_split(s->val) < SPLIT_VAL)
        warn_of(
            s, "these are the run's training images, it had no others: name validation images with "
               "--data or --val-data");
}

/* The first rank opens its splits before the others do: it draws `shapes`. */
static void open_splits(Session *s, bool train, const char *val)
{
    if (s->world.rank > 0)
        hosts_barrier();
    hosts_at("opening the data", 0);
    if (train)
        s->train = setup_split(s, s->o.data, true);
    if (val)
        s->val = setup_split(s, val, false);
    if (s->world.rank == 0)
        hosts_barrier();
}

/* K classes of the data against those of the model. A model may be trained with more classes than
 * there are; evaluated with fewer, its labels would be those of another list. */
static void check_class_count(const Session *s, bool train, int K)
{
    const Options *o = &s->o;
    const char *hint = "raise --num-classes, or leave it out";
    if (s->weights && !options_config_given(o, "classes"))
        hint = "give --classes the file with the model's classes, in order";
    if (K > s->config.classes)
        die(hint, "the data has %d classes, the model %d", K, s->config.classes);
    if (!train && K < s->config.classes)
        die("labels would be wrong: give --classes the file with the model's classes, in order",
            "%s has %d classes, the model %d", *o->classes ? o->classes : "the data", K,
            s->config.classes);
}

/* "data      flowers: 1020 training images, 1020 validation images, 102 classes, 224x224 pixels" */
static void describe_data(const Session *s, const char *spec, int K)
{
    char train[48] = "", val[48] = "";
    if (s->train)
        snprintf(train, sizeof train, "%ld training images, ", data_count(s->train));
    if (s->val)
        snprintf(val, sizeof val, "%ld validation images, ", data_count(s->val));
    report_line("data      %s: %s%s%d classes, %dx%d pixels", spec, train, val, K,
                s->config.image_h, s->config.image_w);
    if (s->train)
        data_describe(s->train, "          training    ", NULL);
    if (s->val)
        data_describe(s->val, "          validation  ", s->train);
}

/* The number of classes, where it was not given, is the training data's; evaluation keeps the
 * model's. */
void setup_data(Session *s, bool train)
{
    const char *val = validation_spec(&s->o, train);
    s->max_workers = workers_of(s);
    open_splits(s, train, val);
    if (s->train && s->val)
        check_splits(s);
    const Dataset *any = s->train ? s->train : s->val;
    int K = data_classes(any), heads = s->config.classes;
    if (train && !options_config_given(&s->o, "classes"))
        s->config.classes = K;
    check_class_count(s, train, K);
    if (s->run_dir && (!train || s->checkpoint))
        check_run_classes(s, any);
    describe_data(s, train ? s->o.data : val, K);
    if (K <= 5 && s->val)
        printf("          with %d classes, top5 is always 100\n", K);
    check_class_order(s, any, heads);
    check_evaluated(s);
}

/* ---- model ---- */

/* Runs with --ema are judged by the average of their weights, and so all start from it: evaluation,
 * prediction, other trainings. --no-ema asks for those of the last step, --ema for nothing else.
 * What stands beside a model.safetensors is the rest of its checkpoint; a file that was copied has
 * what it holds, and says which that is. */
static void choose_average(Session *s, bool training)
{
    bool said = !training && options_given(&s->o, "ema"), raw = said && s->o.ema <= 0;
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
    else if (beside && said && s->o.ema > 0)
        die("leave --ema out", "%s has no averaged weights", s->weights);
    free(copy);
}

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
    if (o->batch_size % ranks != 0)
        die_usage("give a --batch-size that the ranks can share",
                  "%ld images do not divide among %ld data parallel ranks", o->batch_size, ranks);
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
    report_line(
        "model     width %d, %d layers, %d heads, mlp %d, patch %d, %d classes: %s parameters, "
        "%sFLOP per image",
        c->width, c->layers, c->heads, c->mlp, c->patch, c->classes, text[PARAMETERS], text[FLOP]);
    char trained[128] = "";
    if (training)
        snprintf(trained, sizeof trained, ", %sB gradients, %sB optimiser", text[GRADIENTS],
                 text[OPTIMISER]);
    report_line("memory    %sB weights%s, %sB activations, %sB inputs; %d images at a time%s",
                text[WEIGHTS], trained, text[ACTIVATIONS], text[INPUTS], p->max_batch,
                s->world.ranks > 1 ? ", on the first rank" : "");
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
    const Options *o = &s->o;
    check_usage(vit_config_check(&s->config, &why)); /* again: classes may come from the data */
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
        check(ckpt_resume(own, s->checkpoint, &s->state, &why));
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
    check(vit_init(s->m, scheme, (uint64_t)o->seed, o->head_bias, o->layer_scale_init, &why));
    if (s->weights) {
        char report[1024] = "";
        bool new_head = training || strcmp(o->command, "bench") == 0;
        int how = LOAD_POS(o->pos_resize) | (new_head ? LOAD_NEW_HEAD : 0);
        check(ckpt_load_weights(own, s->weights, how, report, sizeof report, &why));
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

/* The loader makes micro-batches where they divide the batch, else whole batches to cut up. With
 * several data parallel ranks it makes this rank's part of each batch: `mine` images at a stride of
 * the whole. */
Loader *setup_loader(const Session *s)
{
    const Axis *dp = &s->split.dp;
    int mine = (int)s->o.batch_size / dp->ranks;
    int chunk = mine % s->micro ? mine : s->micro;
    bool alone = dp->ranks == 1;
    LoaderOptions options = {.batch = alone ? chunk : mine,
                             .shuffle = true,
                             .start = (long)s->state.samples + (long)mine * dp->rank,
                             .stride = alone ? chunk : s->o.batch_size,
                             .repeats = (int)s->o.repeats,
                             .workers = (int)s->o.workers,
                             .max_workers = s->max_workers,
                             .neighbours = s->world.local_ranks - 1};
    return split_reads(&s->split) ? loader_open(s->train, &options) : NULL;
}

/* ---- length ---- */

double schedule_lr(const Options *o, uint64_t total, uint64_t step)
{
    uint64_t warmup = o->warmup_steps < 0 ? total / 20 : (uint64_t)o->warmup_steps;
    if (step < warmup)
        return o->lr * (double)(step + 1) / (double)warmup;
    double f = total > warmup ? (double)(step - warmup) / (double)(total - warmup) : 0;
    if (f > 1)
        f = 1; /* a run that goes on after its schedule stays at the floor */
    double span = o->lr - o->lr_floor;
    if (o->schedule == SCHEDULE_COSINE)
        return o->lr_floor + span * 0.5 * (1 + cos(M_PI * f));
    if (o->schedule == SCHEDULE_LINEAR)
        return o->lr_floor + span * (1 - f);
    if (o->schedule == SCHEDULE_CONSTANT)
        return fmax(o->lr, o->lr_floor);
    uint64_t third = total / 3 ? total / 3 : 1;
    uint64_t drops = (step - warmup) / (o->step_size ? (uint64_t)o->step_size : third);
    return fmax(o->lr * pow(o->step_gamma, (double)drops), o->lr_floor);
}

/* --steps, or as many as it takes to see the rest of --epochs. */
static double steps_of(const Session *s, const Options *o)
{
    const RunState *r = &s->state; /* a resumed run may have had another batch size before */
    double left = o->epochs * (double)data_count(s->train) - (double)r->samples;
    if (o->steps)
        return (double)o->steps;
    return (double)r->step + ceil(left / (double)o->batch_size);
}

/* The curve of the learning rate is that of the whole run: a longer one is at another place of it.
 */
static void describe_lr(const Session *s)
{
    uint64_t step = s->state.step;
    double total = s->changed ? steps_of(s, &s->before) : 0;
    bool longer = total > 0 && total <= 4294967295.0 && total != (double)s->steps;
    if (step == 0 || step >= s->steps || !longer)
        return;
    double was = schedule_lr(&s->before, (uint64_t)total, step - 1);
    double expected = schedule_lr(&s->before, (uint64_t)total, step);
    double is = schedule_lr(&s->o, s->steps, step);
    if (fabs(is - expected) > 1e-9 * expected)
        printf(
            "          lr goes from %.2g to %.2g: the schedule is now that of %lu steps, not %.0f "
            "(--lr, --schedule)\n",
            was, is, (unsigned long)s->steps, total);
}

void setup_length(Session *s)
{
    const Options *o = &s->o;
    double steps = steps_of(s, o);
    if (steps > 4294967295.0)
        die_usage("lower --epochs or raise --batch-size", "%g steps are more than a run can count",
                  steps);
    s->steps = steps < 0 ? 0 : (uint64_t)steps;
    if (s->steps <= s->state.step)
        return; /* there is nothing left to do */
    printf("plan      %lu steps of %ld images%s", (unsigned long)s->steps, o->batch_size,
           s->micro < o->batch_size ? ", " : "\n");
    if (s->micro < o->batch_size)
        printf("%d at a time\n", s->micro);
    describe_lr(s);
    if (o->batch_size > data_count(s->train) && data_count(s->train) > 0)
        warn_of(s,
                "a step takes %ld images, and there are %ld to train on: every step goes over them "
                "%.1f times; lower --batch-size for more steps of other images",
                o->batch_size, data_count(s->train),
                (double)o->batch_size / (double)data_count(s->train));
    if (o->lr == 0)
        warn_of(s, "--lr 0: nothing will be learned");
    if (mix_mixes(o))
        printf("mixing    within groups of %ld images\n", o->mix_group);
}

/* ---- run directory ---- */

/* runs/<data>-<model>-NNN with the first free number; mkdir decides between two that start at once.
 */
static char *new_run_dir(const Options *o)
{
    char *spec = xstrdup(o->data), *colon = strchr(spec, ':');
    char model[64];
    if (colon)
        *colon = 0;
    const char *data = colon ? spec : basename(spec); /* the kind of data, or a folder's name */
    snprintf(model, sizeof model, "%s", *o->model ? o->model : "vit");
    for (char *p = model; *p; p++)
        if (*p == '/')
            *p = '-';
    check(make_dirs("runs", &why));
    for (int i = 1; i < 100000; i++) {
        char *dir = xasprintf("runs/%.48s-%s-%03d", data, model, i);
        if (mkdir(dir, 0777) == 0) {
            free(spec);
            return dir;
        }
        if (errno != EEXIST)
            die("choose another place with --out", "cannot make %s: %s", dir, strerror(errno));
        free(dir);
    }
    die("clear out runs/, or name a place with --out", "runs/ is full");
}

/* Names of the classes beside the weights, for predict. */
static void write_classes(const Session *s)
{
    char *path = xasprintf("%s/classes.txt", s->out);
    FileWriter *f = file_create(path, &why);
    bool ok = f != NULL;
    for (int k = 0; ok && k < data_classes(s->train); k++) {
        const char *name = data_class_name(s->train, k);
        ok = file_write(f, name, strlen(name), &why) && file_write(f, "\n", 1, &why);
    }
    if (ok)
        ok = file_publish(f, true, &why);
    else
        file_abandon(f);
    check(ok);
    free(path);
}

/* Where every rank has the whole of the model, the first one can save it by itself. */
static void check_shared(Session *s)
{
    const CkptRanks ranks = {s->world.rank, s->world.ranks, hosts_sum};
    s->shared = ckpt_shared(s->out, &ranks, &why);
    if (s->shared)
        return;
    bool writable = access(s->out, W_OK) == 0; /* by rank 0, whose word counts */
    hosts_broadcast(&writable, sizeof writable);
    if (parallel_together(s) || !writable)
        die(why.hint, "%s", why.what);
    printf("note: %s; rank 0 saves the run by itself\n", why.what);
}

/* Rank 0's directory is all ranks'. */
static void tell_out(Session *s)
{
    char path[4096] = "";
    if (s->out)
        snprintf(path, sizeof path, "%s", s->out);
    hosts_broadcast(path, sizeof path);
    if (!s->out)
        s->out = xstrdup(path);
}

/* The settings of a continued run that it no longer has are kept as config.ini.1, config.ini.2 ...
 */
static void write_settings(const Session *s)
{
    char *ini = xasprintf("%s/config.ini", s->out), *kept = NULL;
    char *was = path_exists(ini) ? read_text(ini, 1 << 20, NULL) : NULL;
    char *is = options_text(&s->o, &s->config, ini);
    for (int i = 1; was && strcmp(was, is) != 0 && i < 100000; i++) {
        free(kept);
        kept = xasprintf("%s.%d", ini, i);
        if (path_exists(kept))
            continue;
        check(save_text(kept, was, &why));
        break;
    }
    check(save_text(ini, is, &why));
    free(was);
    free(is);
    free(kept);
    free(ini);
}

/* TensorBoard shows them as text. */
static void send_settings(const Session *s)
{
    char *ini = options_text(&s->o, &s->config, "config.ini");
    char *text = xasprintf("```\n%s```\n", ini);
    events_text((long)s->state.step, "settings", text);
    free(text);
    free(ini);
}

/* A continued run stays where it is, unless --out names another place. No run is written over. */
static void open_out(Session *s)
{
    const Options *o = &s->o;
    bool same_run = stays(s);
    if (*o->out)
        s->out = xstrdup(o->out);
    else
        s->out = same_run ? xstrdup(s->run_dir) : new_run_dir(o);
    check(make_dirs(s->out, &why));
    lock_run(s, s->out);
    char *latest = xasprintf("%s/latest", s->out);
    char *log = xasprintf("%s/log.jsonl", s->out);
    if (path_exists(latest) && !same_run)
        die("continue it with --resume, or choose another --out", "%s already holds a run", s->out);
    write_settings(s);
    check(log_open(log, same_run, &why));
    check(events_open(s->out, (long)s->state.step, &why));
    send_settings(s);
    free(latest);
    free(log);
    write_classes(s);
    printf("run       %s\n", s->out);
}

void setup_out(Session *s)
{
    if (s->world.rank == 0)
        open_out(s);
    tell_out(s);
    check_shared(s);
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
