/* weights.c - a model's weights in a file. See weights.h.
 *
 * Files are untrusted: a configuration is believed only where the tensors agree with it, and no
 * number becomes a size before it was checked.
 *
 * Read in this order: what the tensors say, our metadata, foreign files, the grid of patches,
 * tensors from a file (what must be there), tensors in pieces, loading, tensors to a file. */
#include "weights/weights.h"

#include "weights/names.h"
#include "weights/open.h"
#include "util/text.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static bool is_among(const char *name, const char *const *list)
{
    while (*list && strcmp(name, *list) != 0)
        list++;
    return *list != NULL;
}

/* ---- what the tensors say ---- */

static const char timm_hint[] =
    "the file must hold all of a plain Vision Transformer (timm's names or another family's)";

/* A tensor with `ndim` dimensions, each of a believable size. */
static const StTensor *need(const SafeTensors *f, const char *name, int ndim, Error *e)
{
    const StTensor *t = st_find(f, name);
    bool ok = t && t->ndim == ndim;
    for (int i = 0; ok && i < ndim; i++)
        ok = t->shape[i] >= 1 && t->shape[i] <= 1 << 24;
    if (!t)
        fail(e, timm_hint, "%s: there is no tensor %s", f->path, name);
    else if (!ok)
        fail(e, timm_hint, "%s: tensor %s has shape %s, expected %d dimensions from 1 to 2^24",
             f->path, name, names_shape(t->ndim, t->shape).s, ndim);
    return ok ? t : NULL;
}

/* Every block up to the highest must be there: a hostile number must not become a size. */
static bool count_blocks(const SafeTensors *f, int *layers, Error *e)
{
    char name[NAME_SIZE];
    const char *rest;
    int n = 0, highest = -1;
    for (;; n++) {
        snprintf(name, sizeof name, "blocks.%d.norm1.weight", n);
        if (!st_find(f, name))
            break;
    }
    for (int i = 0; i < f->count; i++) {
        int block = names_block(f->tensor[i].name, &rest);
        highest = block > highest ? block : highest;
    }
    *layers = n;
    return n > highest || fail(e, timm_hint, "%s: tensor %s is missing, though there is a block %d",
                               f->path, name, highest);
}

/* fc1 makes what fc2 takes, or twice that: a gate and a value. */
static bool infer_mlp(const SafeTensors *f, Config *c, Error *e)
{
    const StTensor *fc1 = need(f, "blocks.0.mlp.fc1.weight", 2, e);
    if (!fc1)
        return false;
    bool gated = fc1->shape[0] == 2l * c->mlp;
    if (gated != (c->act == ACT_SWIGLU))
        c->act = gated ? ACT_SWIGLU : ACT_GELU;
    return gated || fc1->shape[0] == c->mlp ||
           fail(e, timm_hint, "%s: blocks.0.mlp.fc1.weight has %ld rows for the %d columns of fc2",
                f->path, fc1->shape[0], c->mlp);
}

/* Everything that shapes and presence tell; the rest of *c is left alone. classes = 0: no head. */
static bool infer_dimensions(const SafeTensors *f, Config *c, Error *e)
{
    const struct {
        const char *name;
        int ndim, axis; /* the length of this axis is the setting, and 0 where a tensor is absent */
        bool may_be_absent;
        int *setting;
    } lengths[] = {{"blocks.0.mlp.fc2.weight", 2, 1, false, &c->mlp},
                   {"cls_token", 3, 1, true, &c->cls_tokens},
                   {"head.weight", 2, 0, true, &c->classes},
                   {"pre_logits.fc.weight", 2, 0, true, &c->representation}};
    const StTensor *patch = need(f, "patch_embed.proj.weight", 4, e), *t;
    if (!patch)
        return false;
    if (patch->shape[1] != VIT_CHANNELS || patch->shape[2] != patch->shape[3])
        return fail(e, "only square patches of RGB images are supported",
                    "%s: patch_embed.proj.weight takes patches of %ldx%ld with %ld channels",
                    f->path, patch->shape[2], patch->shape[3], patch->shape[1]);
    c->width = (int)patch->shape[0];
    c->patch = (int)patch->shape[2];
    if (!count_blocks(f, &c->layers, e))
        return false;
    for (int i = 0; i < COUNT(lengths); i++) {
        *lengths[i].setting = 0;
        if (lengths[i].may_be_absent && !st_find(f, lengths[i].name))
            continue;
        if (!(t = need(f, lengths[i].name, lengths[i].ndim, e)))
            return false;
        *lengths[i].setting = (int)t->shape[lengths[i].axis];
    }
    c->patch_bias = st_find(f, "patch_embed.proj.bias") != NULL;
    c->norm_pre = st_find(f, "norm_pre.weight") != NULL;
    c->layer_scale = st_find(f, "blocks.0.ls1.gamma") != NULL;
    c->qk_norm = st_find(f, "blocks.0.attn.q_norm.weight") != NULL;
    c->fc_norm = st_find(f, "fc_norm.weight") != NULL;
    if ((c->pool == POOL_MAP) != (st_find(f, "attn_pool.latent") != NULL))
        c->pool = c->pool == POOL_MAP ? POOL_CLS : POOL_MAP;
    return infer_mlp(f, c, e);
}

/* The preset of these dimensions, or NULL. */
static const char *matching_preset(const Config *c, Config *preset)
{
    for (const char *const *name = vit_preset_names; *name; name++) {
        *preset = *c;
        vit_preset(*name, preset);
        if (preset->width == c->width && preset->layers == c->layers && preset->mlp == c->mlp &&
            preset->patch == c->patch)
            return *name;
    }
    return NULL;
}

/* Heads leave no trace in the shapes. Nearly every published model has heads of 64; SigLIP's two
 * shapes without a preset do not. */
static const char *guess_heads(Config *c)
{
    Config preset;
    const char *name = matching_preset(c, &preset);
    c->heads = name ? preset.heads : c->width / 64 + (c->width < 64);
    bool giant = c->width == 1536 && c->mlp == 6144;
    if (c->width == 1152 || giant) {
        c->heads = 16;
        return giant ? "giantopt" : "so400m";
    }
    while (c->width % c->heads)
        c->heads--;
    return name;
}

/* ---- our metadata ---- */

static bool is_ours(const SafeTensors *f)
{
    return st_meta(f, "width") && st_meta(f, "layers") && st_meta(f, "heads");
}

/* Our metadata. A setting that a file from an earlier version lacks keeps its default, and
 * `assumed` says so. */
static bool read_config(const SafeTensors *f, Config *c, char *assumed, size_t size, Error *e)
{
    Error why = {0};
    *c = vit_config_default();
    size_t at = 0;
    snprintf(assumed, size, "%s", "");
    for (int i = 0; i < vit_config_count; i++) {
        const ConfigField *field = &vit_config_fields[i];
        const char *text = st_meta(f, field->name);
        char value[64];
        if (text && !vit_config_set(c, field->name, text, &why))
            return fail(e, why.hint, "%s: metadata: %s", f->path, why.what);
        if (text || at >= size)
            continue;
        vit_config_get(c, field, value, sizeof value);
        at += (size_t)snprintf(assumed + at, size - at, "%s%s = %s",
                               at ? ", " : "not in the file: ", field->name, value);
    }
    return true;
}

/* The first setting in which two configurations differ, with both values, or NULL. */
static const char *difference(const Config *a, const Config *b, const char *const *may_change,
                              char in_a[64], char in_b[64])
{
    for (int i = 0; i < vit_config_count; i++) {
        const ConfigField *field = &vit_config_fields[i];
        vit_config_get(a, field, in_a, 64);
        vit_config_get(b, field, in_b, 64);
        if (strcmp(in_a, in_b) != 0 && !is_among(field->name, may_change))
            return field->name;
    }
    return NULL;
}

bool weights_same_config(const SafeTensors *f, const Config *c, const char *const *may_change,
                         Error *e)
{
    char theirs[64], ours[64];
    Config saved;
    if (!is_ours(f))
        return fail(e, "start a new run from it with --weights",
                    "%s: has no configuration, so it is no checkpoint of a run", f->path);
    if (!read_config(f, &saved, NULL, 0, e))
        return false;
    const char *setting = difference(&saved, c, may_change, theirs, ours);
    return !setting ||
           fail(e, "resume with the settings of the run, or start a new one with --weights",
                "%s: was saved with %s = %s, the model has %s", f->path, setting, theirs, ours);
}

/* Metadata that contradicts the tensors is refused before anyone allocates by it. */
static bool config_of_ours(const SafeTensors *f, Config *c, char *assumed, size_t size, Error *e)
{
    char says[64], are[64];
    if (!read_config(f, c, assumed, size, e))
        return false;
    Config seen = *c;
    if (!infer_dimensions(f, &seen, e))
        return false;
    const char *setting = difference(c, &seen, (const char *const[]){NULL}, says, are);
    return !setting ||
           fail(e, "the metadata was changed, or belongs to another file",
                "%s: metadata says %s = %s, but the tensors say %s", f->path, setting, says, are);
}

/* ---- foreign files ---- */

/* An open file of weights: ours, or a view of a foreign one, and what is known of that. */
typedef struct {
    SafeTensors *f;
    Hub hub;
    NamesReport names;
    int image_h, image_w; /* as the caller says; 0: unknown */
} Weights;

/* want: POOL_* of the model that they are for; -1: any. */
static bool open_weights(const char *path, int image_h, int image_w, int want, Weights *w, Error *e)
{
    *w = (Weights){.f = weights_open_file(path, e), .image_h = image_h, .image_w = image_w};
    if (!w->f || is_ours(w->f))
        return w->f != NULL;
    bool state = st_meta(w->f, "optimizer") != NULL; /* of a run of ours */
    if (state)
        fail(e, "give the model.safetensors beside it, or the run's directory",
             "%s: is the state of an optimiser, not a model", path);
    bool known = !state && hub_read(path, &w->hub, e) &&
                 (!w->f->args || hub_args(path, w->f->args, &w->hub, e));
    if (!known) {
        st_close(w->f);
        return false;
    }
    const Hub *h = &w->hub;
    w->f = names_view(w->f,
                      &(NamesKnown){.image_h = h->image_h ? h->image_h : image_h,
                                    .image_w = h->image_h ? h->image_w : image_w,
                                    .pool = h->pool,
                                    .want = want},
                      &w->names, e);
    return w->f != NULL;
}

/* Files beside the weights may belong to others: what contradicts the tensors counts for nothing.
 */
static void believe(Weights *w, const Config *c, WeightsInfo *info)
{
    const Hub *h = &w->hub;
    const struct {
        const char *what;
        int says, is;
    } pairs[] = {{"width", h->width, c->width},
                 {"layers", h->layers, c->layers},
                 {"mlp", h->mlp, c->mlp},
                 {"patch", h->patch, c->patch},
                 {"heads", h->heads, h->heads && c->width % h->heads ? 0 : h->heads}};
    for (int i = 0; i < COUNT(pairs); i++) {
        if (!pairs[i].says || pairs[i].says == pairs[i].is)
            continue;
        size_t at = strlen(info->notes);
        snprintf(
            info->notes + at, sizeof info->notes - at,
            "%s%s beside it: %s %d does not go with the tensors (width %d, %d layers, patches of "
            "%d): it is of another model, and not used",
            at ? "; " : "", h->from, pairs[i].what, pairs[i].says, c->width, c->layers, c->patch);
        w->hub = (Hub){.eps = -1, .pool = -1, .interpolation = -1, .crop = -1};
        return;
    }
}

typedef struct {
    int rows, columns; /* 0: unknown */
} Grid;

/* The grid behind `n` positions of patches of P x P pixels: what a file beside the weights says, if
 * it has as many, or a square, or what the caller says. */
static Grid foreign_grid(const Weights *w, long n, int P)
{
    const Hub *h = &w->hub;
    long side = n > 0 && n <= 1 << 24 ? lround(sqrt((double)n)) : 0;
    const Grid grids[] = {
        {h->image_h / P, h->image_w / P}, {(int)side, (int)side}, {w->image_h / P, w->image_w / P}};
    for (int i = 0; n > 0 && i < COUNT(grids); i++)
        if ((long)grids[i].rows * grids[i].columns == n)
            return grids[i];
    return (Grid){0, 0};
}

/* The size of the images, by the positions. */
static bool infer_image(const Weights *w, Config *c, Error *e)
{
    const StTensor *pos = need(w->f, "pos_embed", 3, e);
    if (!pos)
        return false;
    Grid g = foreign_grid(w, pos->shape[1] - c->cls_tokens, c->patch);
    if (g.rows > 0 && (long)g.rows * c->patch <= 65536 && (long)g.columns * c->patch <= 65536) {
        c->image_h = g.rows * c->patch;
        c->image_w = g.columns * c->patch;
        return true;
    }
    return fail(e, "say the size of the images that it was trained with: --image-size HxW",
                "%s: pos_embed has %ld positions, with %d class tokens no square grid", w->f->path,
                pos->shape[1], c->cls_tokens);
}

PRINTF_LIKE(3, 4) static void assume(WeightsInfo *w, const char *setting, const char *fmt, ...)
{
    Assumption *a = &w->assumed[w->assumptions++];
    va_list args;
    a->setting = setting;
    va_start(args, fmt);
    vsnprintf(a->text, sizeof a->text, fmt, args);
    va_end(args);
}

/* The tensors, then a file beside them, then what is usual. */
static void settle_pool(const Weights *w, Config *c)
{
    c->pool = c->cls_tokens && !c->fc_norm ? POOL_CLS : POOL_GAP;
    if (w->hub.pool >= 0)
        c->pool = w->hub.pool;
    if (w->names.pool >= 0)
        c->pool = w->names.pool;
}

static void assume_act(const Weights *w, WeightsInfo *info)
{
    static const char *const texts[][2] = {
        {"Google", "erf GELU, as timm does (--act gelu_tanh is what JAX computes)"},
        {"open_clip", "erf GELU (--act quick_gelu is what OpenAI's models have, and some others)"},
        {"transformers' CLIP", "erf GELU (--act: CLIP has quick_gelu, SigLIP gelu_tanh)"},
        {"", "erf GELU (--act)"}};
    int i = 0;
    while (strncmp(w->names.family, texts[i][0], strlen(texts[i][0])) != 0)
        i++;
    if (w->names.by_openai)
        info->config.act = ACT_QUICK_GELU;
    else
        assume(info, "act", "%s", texts[i][1]);
}

/* timm's GluMlp has the same shapes with other gates, which only its architecture's name tells. */
static void settle_gate(const Weights *w, WeightsInfo *info)
{
    bool first = strncmp(w->names.family, "timm", 4) != 0 || w->hub.timm;
    if (!first)
        assume(info, "act", "SwiGLU, whose gate comes first (no other gated MLP is known here)");
}

/* What no tensor shows: told by the files beside the weights, or assumed. */
static void settle(const Weights *w, WeightsInfo *info)
{
    const Hub *h = &w->hub;
    Config *c = &info->config;
    const char *preset = guess_heads(c);
    bool google = strncmp(w->names.family, "Google", 6) == 0;
    const StTensor *q_norm = st_find(w->f, "blocks.0.attn.q_norm.weight");
    if (q_norm && q_norm->n > 0 && c->width % q_norm->n == 0) /* it is as long as a head */
        c->heads = c->width / (int)q_norm->n;
    else if (h->heads)
        c->heads = h->heads;
    else if (h->head_width && c->width % h->head_width == 0)
        c->heads = c->width / h->head_width;
    else if (!h->timm || !preset)
        assume(info, "heads", "%s, %s%s (--heads)", amount(c->heads, "head").s,
               preset ? "as " : "width ", preset ? preset : "/ 64");
    settle_pool(w, c);
    if (c->norm_pre)
        c->eps = c->eps_final = 1e-5; /* as CLIP's */
    if (h->eps >= 0)
        c->eps = c->eps_final = h->eps;
    else if (!h->timm)
        assume(info, "eps", "eps %g (--eps, --eps-final)", c->eps);
    if (c->act == ACT_SWIGLU)
        settle_gate(w, info);
    else if (h->act != ACT_NONE)
        c->act = h->act;
    else
        assume_act(w, info);
    if (h->has_mean) {
        c->mean_r = h->mean[0], c->mean_g = h->mean[1], c->mean_b = h->mean[2];
        c->std_r = h->std[0], c->std_g = h->std[1], c->std_b = h->std[2];
    } else {
        assume(info, "mean_r", "ImageNet mean/std (--mean, --std; %s 0.5)",
               google ? "Google's ViTs have" : "many ViTs have");
    }
}

/* Attention pooling here is over all tokens, a mean over the patches; timm's is over the patches
 * unless its pool_include_prefix says otherwise. */
static bool check_pool(const Weights *w, const Config *c, Error *e)
{
    bool all = w->hub.pools_all, map = c->pool == POOL_MAP;
    if (!c->cls_tokens || (map ? all : !all || c->pool != POOL_GAP))
        return true;
    return fail(e, "take weights whose attention pooling is over all tokens, or a mean of patches",
                "%s: its pooling is %s", w->f->path,
                map ? "attention over the patches alone, beside other tokens"
                    : "a mean of all tokens (pool_include_prefix)");
}

/* Names that are not there for every class are not used for any. */
static void note_labels(const Weights *w, WeightsInfo *info)
{
    Error why;
    Names labels = {0};
    size_t at = strlen(info->notes);
    if (info->config.classes && !hub_labels(w->f->path, info->config.classes, &labels, &why) &&
        *why.what)
        snprintf(info->notes + at, sizeof info->notes - at,
                 "%s%s: its names are not used (--classes FILE gives others)", at ? "; " : "",
                 why.what);
    names_free(&labels);
}

static bool config_of_foreign(Weights *w, WeightsInfo *info, Error *e)
{
    Config *c = &info->config;
    *c = vit_config_default(); /* eps 1e-6, erf GELU, ImageNet mean and deviation */
    snprintf(info->notes, sizeof info->notes, "%s", w->names.notes);
    if (!infer_dimensions(w->f, c, e))
        return false;
    believe(w, c, info);
    if (w->hub.act == ACT_SWIGLU && c->act != ACT_SWIGLU)
        return fail(e, "take weights that were trained with GELU, quick_gelu or SwiGLU",
                    "%s: config.json beside it: the activation is silu", w->f->path);
    if (w->hub.pool == POOL_MAP && w->names.pool != POOL_MAP)
        return fail(e, "take the file that goes with its config.json",
                    "%s: config.json beside it says attention pooling, but there is no tensor "
                    "attn_pool.latent",
                    w->f->path);
    if (!infer_image(w, c, e))
        return false;
    settle(w, info);
    if (!check_pool(w, c, e))
        return false;
    info->hub = w->hub;
    note_labels(w, info);
    snprintf(info->form, sizeof info->form, "%s%s%.100s, %dx%d pixels%s", w->names.family,
             *w->hub.from ? ", " : "", w->hub.from, c->image_h, c->image_w,
             c->classes ? "" : "; the file has no head");
    return true;
}

static bool describe(Weights *w, WeightsInfo *info, Error *e)
{
    Error why = {0};
    const SafeTensors *f = w->f;
    *info = (WeightsInfo){.hub = {.eps = -1, .pool = -1, .interpolation = -1, .crop = -1}};
    if (is_ours(f) ? !config_of_ours(f, &info->config, info->notes, sizeof info->notes, e)
                   : !config_of_foreign(w, info, e))
        return false;
    for (int i = 0; i < f->count; i++)
        if (!names_is_vit(f->tensor[i].name))
            return fail(e, timm_hint, "%s: tensor %.150s does not belong to a plain ViT", f->path,
                        f->tensor[i].name);
    Config with_head = info->config;
    if (with_head.classes == 0)
        with_head.classes = 1; /* the caller decides about the head */
    return vit_config_check(&with_head, &why) || fail(e, why.hint, "%s: %s", f->path, why.what);
}

SafeTensors *weights_open(const char *path, int image_h, int image_w, WeightsInfo *info, Error *e)
{
    Weights w;
    if (!open_weights(path, image_h, image_w, -1, &w, e))
        return NULL;
    if (describe(&w, info, e))
        return w.f;
    st_close(w.f);
    return NULL;
}

bool weights_describe(const char *path, int image_h, int image_w, WeightsInfo *info, Error *e)
{
    SafeTensors *f = weights_open(path, image_h, image_w, info, e);
    st_close(f);
    return f != NULL;
}

real *weights_values(const SafeTensors *f, const char *name, long *n, Error *e)
{
    const StTensor *t = st_find(f, name);
    if (!t) {
        fail(e, timm_hint, "%s: there is no tensor %s", f->path, name);
        return NULL;
    }
    real *x = xmalloc((size_t)(t->n ? t->n : 1) * sizeof *x);
    *n = t->n;
    if (st_read_real(f, t, 0, t->n, x, e))
        return x;
    free(x);
    return NULL;
}

bool weights_config(const char *path, Config *c, char *assumed, size_t size, Error *e)
{
    WeightsInfo w;
    if (!weights_describe(path, 0, 0, &w, e))
        return false;
    *c = w.config;
    size_t at = (size_t)snprintf(assumed, size, "%s", w.assumptions ? "assumed: " : w.notes);
    for (int i = 0; i < w.assumptions && at < size; i++)
        at += (size_t)snprintf(assumed + at, size - at, "%s%s", i ? ", " : "", w.assumed[i].text);
    return true;
}

/* ---- the grid of patches ---- */

static Grid model_grid(const Config *c)
{
    return (Grid){c->image_h / c->patch, c->image_w / c->patch};
}

/* The patches behind a file's position embeddings: by its metadata, or a file beside it, else a
 * square. */
static Grid file_grid(const Weights *w)
{
    const StTensor *pos = st_find(w->f, "pos_embed"), *cls = st_find(w->f, "cls_token");
    Config c;
    if (is_ours(w->f) && read_config(w->f, &c, NULL, 0, NULL) && c.patch > 0)
        return model_grid(&c);
    const StTensor *patch = st_find(w->f, "patch_embed.proj.weight");
    if (!pos || pos->ndim != 3 || !patch || patch->ndim != 4 || patch->shape[3] < 1)
        return (Grid){0, 0};
    int n = cls && cls->ndim == 3 && cls->shape[1] < pos->shape[1] ? (int)cls->shape[1] : 0;
    return foreign_grid(w, pos->shape[1] - n, (int)patch->shape[3]);
}

static ShapeText grid_text(Grid g)
{
    ShapeText t = {"unknown"};
    if (g.rows > 0 && g.columns > 0)
        snprintf(t.s, sizeof t.s, "%dx%d", g.rows, g.columns);
    return t;
}

static const char grid_hint[] =
    "positions are resized between grids that are known, with the file's patch size and tokens: "
    "give --image-size its shape, or leave --patch-size and --cls-tokens out";

/* prefix + "pos_embed" of a file, for a grid of `is` after `tokens` others -> that of `want`. The
 * tensor becomes a piece in memory. False where it is no such tensor: then it does not fit. */
static bool resize_positions(SafeTensors *f, const char *prefix, Grid is, Grid want, int tokens,
                             int how)
{
    char name[NAME_SIZE];
    snprintf(name, sizeof name, "%spos_embed", prefix);
    const StTensor *found = st_find(f, name);
    long old = (long)is.rows * is.columns, new = (long)want.rows *want.columns;
    if (!found || found->ndim != 3 || found->shape[0] != 1 || old == 0 ||
        found->shape[1] != old + tokens)
        return false;
    int C = (int)found->shape[2];
    real *values = xmalloc((size_t)(found->n > 0 ? found->n : 1) * sizeof *values);
    if (found->n == 0 || !st_read_real(f, found, 0, found->n, values, NULL)) {
        free(values);
        return false;
    }
    double *in = xmalloc((size_t)(old * C) * sizeof *in);
    double *out = xmalloc((size_t)(new *C) * sizeof *out);
    for (long i = 0; i < old * C; i++)
        in[i] = (double)values[(long)tokens * C + i];
    positions_resize(in, is.rows, is.columns, C, out, want.rows, want.columns, how);
    values = st_own(f, xrealloc(values, (size_t)((tokens + new) * C) * sizeof *values));
    for (long i = 0; i < new *C; i++)
        values[(long)tokens * C + i] = (real)out[i];
    free(in);
    free(out);
    StTensor *t = &f->tensor[found - f->tensor];
    t->type = ST_REAL;
    t->shape[1] = tokens + new;
    t->n = t->shape[1] * C;
    t->pieces = 0;
    st_add_piece(t, (StPiece){.data = (const uint8_t *)values,
                              .type = ST_REAL,
                              .ndim = 1,
                              .shape = {t->n},
                              .stride = {1}});
    return true;
}

static bool same_grid(Grid a, Grid b)
{
    return a.rows == b.rows && a.columns == b.columns;
}

void weights_resize_positions(SafeTensors *f, const SafeTensors *model, const char *prefix,
                              const Layout *l, int how)
{
    const Weights w = {.f = (SafeTensors *)model};
    Grid is = file_grid(&w), want = model_grid(&l->config);
    if (!same_grid(is, want))
        resize_positions(f, prefix, is, want, l->config.cls_tokens, how);
}

/* ---- tensors from a file ---- */

const char weights_state_hint[] =
    "the file is not the train_state.safetensors of this run, or was changed";

static const StTensor *find_in_set(const SafeTensors *f, const TensorSet *set, const Param *p)
{
    char full[NAME_SIZE];
    snprintf(full, sizeof full, "%s%s", set->prefix, p->name);
    return st_find(f, full);
}

static bool same_shape(const StTensor *t, const Param *p)
{
    bool same = t->ndim == p->ndim;
    for (int i = 0; same && i < t->ndim; i++)
        same = t->shape[i] == p->shape[i];
    return same;
}

static bool wrong_shape(const SafeTensors *f, const StTensor *t, const Param *p, const Config *c,
                        bool is_weight, Error *e)
{
    char hint[256];
    const long shape[] = {p->shape[0], p->shape[1], p->shape[2], p->shape[3]};
    ShapeText theirs = names_shape(t->ndim, t->shape), ours = names_shape(p->ndim, shape);
    if (p->role == ROLE_POS && t->ndim == 3)
        return fail(
            e, grid_hint, "%s: tensor %s has shape %s, a grid of %s patches; the model's is %s, %s",
            f->path, t->name, theirs.s, grid_text(file_grid(&(Weights){.f = (SafeTensors *)f})).s,
            ours.s, grid_text(model_grid(c)).s);
    snprintf(hint, sizeof hint, "leave the dimensions out: they are taken from the file");
    if (is_weight && names_is_head(p->name))
        snprintf(hint, sizeof hint,
                 "--num-classes %ld keeps the file's head; training makes a new one for %d classes "
                 "by itself",
                 t->shape[0], c->classes);
    return fail(e, hint, "%s: tensor %.150s has shape %s; the model's is %s", f->path, t->name,
                theirs.s, ours.s);
}

static bool check_tensor(const SafeTensors *f, const TensorSet *set, const Param *p,
                         const Config *c, Error *e)
{
    bool is_weight = !*set->prefix;
    const StTensor *t = find_in_set(f, set, p);
    const char *hint = is_weight ? timm_hint : weights_state_hint;
    if (is_weight && names_is_head(p->name))
        hint = "training makes a new head by itself; to evaluate, give a file whose head fits the "
               "model";
    if (!t)
        return fail(e, hint, "%s: there is no tensor %s%s", f->path, set->prefix, p->name);
    return st_is_real(f, t, e) && (same_shape(t, p) || wrong_shape(f, t, p, c, is_weight, e));
}

/* Whether a tensor of the file belongs to one of the sets. */
static bool has_place(const char *name, const Layout *l, const TensorSet *sets, int n)
{
    for (int i = 0; i < n; i++) {
        size_t length = strlen(sets[i].prefix);
        if (strncmp(name, sets[i].prefix, length) != 0)
            continue;
        for (int t = 0; t < l->tensors; t++)
            if (strcmp(name + length, l->param[t].name) == 0)
                return true;
    }
    return false;
}

/* Whether an extent takes in a tensor of this name. */
static bool is_within(int extent, const char *name)
{
    bool head = names_is_head(name);
    return extent == WEIGHTS_HEAD ? head : extent != WEIGHTS_NO_HEAD || !head;
}

bool weights_check(const SafeTensors *f, const Layout *l, const TensorSet *sets, int n, int extent,
                   Error *e)
{
    for (int i = 0; i < n; i++)
        for (int t = 0; t < l->tensors; t++)
            if (is_within(extent, l->param[t].name) &&
                !check_tensor(f, &sets[i], &l->param[t], &l->config, e))
                return false;
    for (int i = 0; extent != WEIGHTS_PART && i < f->count; i++) {
        const char *name = f->tensor[i].name;
        if (is_within(extent, name) && !has_place(name, l, sets, n))
            return fail(e, "the model's dimensions or settings differ from the file's",
                        "%s: tensor %.150s has no place in the model", f->path, name);
    }
    return true;
}

/* ---- tensors in pieces ---- */

enum { PIECE = 1 << 20 }; /* elements: all that reading and writing need of the host */

/* A tensor in a file that is read (f, t), or in one that is written (w, its first byte). */
typedef struct {
    const SafeTensors *f;
    const StTensor *t;
    StWriter *w;
    uint64_t begin;
} InFile;

static bool copy_run(const InFile *file, Run run, real *values, Error *e)
{
    if (file->f)
        return st_read_real(file->f, file->t, run.whole, run.n, values, e);
    return st_write(file->w, file->begin + (uint64_t)run.whole * sizeof(real), values,
                    (size_t)run.n * sizeof(real), e);
}

/* What this rank holds of p, between file and memory. host [PIECE]: a piece stands together in
 * memory, and in the file in as many stretches as the part is cut into. */
static bool copy_tensor(const InFile *file, const Layout *l, const TensorSet *set, const Param *p,
                        real *host, Error *e)
{
    long begin, end, place = set->kept(set, p, file->w != NULL, &begin, &end), n;
    for (long at = begin; at < end; at += n) {
        n = end - at < PIECE ? end - at : PIECE;
        if (file->w)
            set->copy(set, place + at - begin, n, host);
        for (long done = 0; done < n;) {
            Run run = param_run(l, p, at + done, at + n);
            if (!copy_run(file, run, host + done, e))
                return false;
            done += run.n;
        }
        if (file->f)
            set->copy(set, place + at - begin, n, host);
    }
    return true;
}

bool weights_read(const SafeTensors *f, const Layout *l, const TensorSet *sets, int n, int extent,
                  Error *e)
{
    real *host = xmalloc(PIECE * sizeof *host);
    bool ok = true;
    for (int i = 0; i < n; i++)
        for (int t = 0; ok && t < l->tensors; t++) {
            const Param *p = &l->param[t];
            InFile in = {.f = f, .t = find_in_set(f, &sets[i], p)};
            if (is_within(extent, p->name))
                ok = copy_tensor(&in, l, &sets[i], p, host, e);
            st_give_back(f);
        }
    free(host);
    return ok;
}

/* ---- loading ---- */

/* No shape shows the number of heads, and weights mean nothing with another. */
static bool check_heads(const SafeTensors *f, const Config *c, Error *e)
{
    char heads[16];
    snprintf(heads, sizeof heads, "%d", c->heads);
    return !is_ours(f) || strcmp(st_meta(f, "heads"), heads) == 0 ||
           fail(e, "leave --heads out: it is taken from the file",
                "%s: has %.20s heads, the model %s", f->path, st_meta(f, "heads"), heads);
}

/* Adds to a line of text. */
PRINTF_LIKE(3, 4) static void add_text(char *line, size_t size, const char *fmt, ...)
{
    size_t at = strlen(line);
    va_list args;
    if (at && at < size)
        at += (size_t)snprintf(line + at, size - at, "; ");
    va_start(args, fmt);
    if (at < size)
        vsnprintf(line + at, size - at, fmt, args);
    va_end(args);
}

bool weights_load(const char *path, const Layout *l, const TensorSet *sets, int n, int how,
                  char *report, size_t size, Error *e)
{
    static const char *const ways[] = {"timm", "google", "bilinear", "bicubic"};
    Weights w;
    snprintf(report, size, "%s", "");
    const Config *c = &l->config;
    if (!open_weights(path, c->image_h, c->image_w, c->pool, &w, e))
        return false;
    SafeTensors *f = w.f;
    Grid is = file_grid(&w), want = model_grid(c);
    if (!same_grid(is, want) && resize_positions(f, "", is, want, c->cls_tokens, how >> 1))
        add_text(report, size, "position embeddings were resized from %s to %s patches (%s)",
                 grid_text(is).s, grid_text(want).s, ways[how >> 1]);
    const StTensor *head = st_find(f, "head.weight");
    /* the head fits as a whole or not at all: a last layer is no use behind another pre_logits */
    bool keep = !(how & LOAD_NEW_HEAD) || weights_check(f, l, sets, n, WEIGHTS_HEAD, NULL);
    int extent = keep ? WEIGHTS_WHOLE : WEIGHTS_NO_HEAD;
    bool ok = check_heads(f, c, e) && weights_check(f, l, sets, n, extent, e) &&
              weights_read(f, l, sets, n, extent, e);
    if (ok && !keep && head && head->ndim > 0)
        add_text(report, size, "the head is new, for %s; the file's has %s",
                 amount(c->classes, "class").s, amount((double)head->shape[0], "output").s);
    else if (ok && !keep)
        add_text(report, size, "the head is new, for %s; the file has none",
                 amount(c->classes, "class").s);
    st_close(f);
    return ok;
}

/* ---- tensors to a file ---- */

StWriter *weights_create(const char *path, const Layout *l)
{
    Config preset;
    const char *name = matching_preset(&l->config, &preset);
    StWriter *w = st_create(path);
    st_add_meta(w, "format", "pt"); /* what Python's loaders look for */
    if (name && preset.heads == l->config.heads)
        st_add_meta(w, "model", name);
    for (int i = 0; i < vit_config_count; i++) {
        char value[64];
        vit_config_get(&l->config, &vit_config_fields[i], value, sizeof value);
        st_add_meta(w, vit_config_fields[i].name, value);
    }
    return w;
}

void weights_declare(StWriter *w, const Layout *l, const TensorSet *sets, int n)
{
    for (int i = 0; i < n; i++)
        for (int t = 0; t < l->tensors; t++) {
            const Param *p = &l->param[t];
            char full[NAME_SIZE];
            snprintf(full, sizeof full, "%s%s", sets[i].prefix, p->name);
            st_add_tensor(w, full, ST_REAL, p->ndim, p->shape);
        }
}

bool weights_write(StWriter *w, const Layout *l, const TensorSet *sets, int n, Error *e)
{
    real *host = xmalloc(PIECE * sizeof *host);
    InFile out = {.w = w};
    bool ok = true;
    for (int i = 0; i < n; i++)
        for (int t = 0; ok && t < l->tensors; t++) {
            const Param *p = &l->param[t];
            ok = copy_tensor(&out, l, &sets[i], p, host, e);
            out.begin += (uint64_t)p->n * sizeof(real);
        }
    free(host);
    return ok;
}
