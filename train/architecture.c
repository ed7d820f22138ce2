/* architecture.c - which model it is. See architecture.h.
 *
 * The settings start from the default (B/16) or from the weights' own; --model and then single
 * settings come after them. Read in this order: weights, presets, the call.
 */
#include "train/architecture.h"

#include "train/rundir.h"
#include "train/tuning.h"
#include "util/files.h"
#include "util/report.h"
#include "util/text.h"
#include "weights/open.h"
#include "weights/weights.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- weights ---- */

char *find_weights(const char *path)
{
    Error e;
    if (!path_exists(path))
        die("name a file of weights, a folder with one, or a run directory; nothing is downloaded",
            "%s: %s", path, path_trouble("no such file or directory"));
    const char *name = strrchr(path, '/');
    name = name ? name + 1 : path;
    if (!is_dir(path) && find_word("latest|best|config.ini|log.jsonl|classes.txt", name) >= 0)
        die("name the directory that it is in", "%s: is a file of a run, and holds no weights",
            path);
    if (!is_dir(path))
        return xstrdup(path);
    Error none;
    char *file = weights_in_folder(path, &none);
    if (file)
        return file;
    char dir[4096], *ini = xasprintf("%s/config.ini", path), *runs = runs_in(path);
    bool found = ckpt_best(path, dir, sizeof dir, &e);
    if (!found && (runs || path_exists(ini)))
        not_a_run(path);
    free(runs);
    free(ini);
    if (!found)
        die(none.hint, "%s", none.what);
    return xasprintf("%s/model.safetensors", dir);
}

/* How evaluation prepares images, where files beside the weights say it and no flag does. */
static void use_images(Session *s, const Hub *h)
{
    static const char *const crops[] = {[CROP_CENTER] = "centre crop of ",
                                        [CROP_STRETCH] = "stretched",
                                        [CROP_SQUASH] = "stretched, then a centre crop of "};
    Options *o = &s->o;
    if (h->crop >= 0 && !options_given(o, "crop"))
        o->crop = h->crop;
    if (h->interpolation >= 0 && !options_given(o, "interpolation"))
        o->interpolation = h->interpolation ? FILTER_BICUBIC : FILTER_BILINEAR;
    if (h->crop_pct > 0 && !options_given(o, "crop-pct"))
        o->crop_pct = h->crop_pct;
    if (*h->unknown)
        warn_of(s, "%s: %s is not known here: see --interpolation, --crop and --crop-pct", h->from,
                h->unknown);
    bool said = h->crop >= 0 || h->crop_pct > 0;
    if (!said && (s->run_dir || s->checkpoint)) /* its own settings say it */
        return;
    printf("          images %s%s: %s, %s", said ? "by " : "as usual, nothing says otherwise",
           said ? h->from : "", o->interpolation == FILTER_BICUBIC ? "bicubic" : "bilinear",
           crops[o->crop]);
    if (o->crop != CROP_STRETCH)
        printf("%g (--crop-pct)", o->crop_pct);
    printf("\n");
}

/* The model that weights are of, and what nobody says about it and is assumed. */
static void use_weights(Session *s)
{
    Error e;
    WeightsInfo w;
    char text[1024] = "";
    printf("weights   %s\n", s->weights);
    Config given = {0}; /* its image size, if there is one */
    options_apply_config(&s->o, &given);
    setup_check(weights_describe(s->weights, given.image_h, given.image_w, &w, &e), &e);
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
    if (eval && w.hub.several && !options_config_given(&s->o, "loss")) {
        s->config.loss = LOSS_SIGMOID;
        printf(
            "note: by %s several classes may be there at once: each has a probability of its own "
            "(--loss softmax: one of them is)\n",
            w.hub.from);
    }
    if (w.config.classes == 0 && strcmp(s->o.command, "bench") == 0)
        s->config.classes = vit_config_default().classes;
    if (w.config.classes == 0 && eval)
        die("train one first: train --weights FILE --data DIR; or give weights with a head",
            "%s: has no head, so it knows no classes", s->weights);
}

/* ---- presets ---- */

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
        printf("          %s: width %d, %s, %s, patch %d, %dx%d pixels; weights are those of "
               "--weights alone\n",
               name, c->width, amount(c->layers, "layer").s, amount(c->heads, "head").s, c->patch,
               c->image_h, c->image_w);
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

/* ---- the call ---- */

/* The number of classes may still be the data's to say. */
static void check_config(const Session *s)
{
    Error e;
    Config c = s->config;
    if (c.classes == 0 && !options_config_given(&s->o, "classes"))
        c.classes = 1;
    setup_check_usage(vit_config_check(&c, &e), &e);
    if (s->o.position != POSITION_LEARNED && (c.width % 4 || c.width < 8))
        die_usage(
            "give --width such a number, or --position learned",
            "--position: sines and cosines of two axes take a multiple of four from 8 on, not "
            "a width of %d",
            c.width);
}

void setup_architecture(Session *s)
{
    Error e;
    if (!s->weights && *s->o.weights)
        s->weights = find_weights(s->o.weights);
    s->config = vit_config_default();
    if (s->weights)
        use_weights(s);
    use_preset(s->o.model, &s->config);
    options_apply_config(&s->o, &s->config);
    check_config(s);
    setup_check_usage(tuning_frozen(&s->o, s->config.layers, &s->frozen, &e), &e);
}
