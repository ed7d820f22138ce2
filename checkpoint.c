/* checkpoint.c - weights and runs on disk, as safetensors files with timm's names.
 *
 * A weights file holds every tensor of the parameter tables under timm's name and in timm's shape;
 * ours says in its metadata what the shapes cannot (heads, epsilons, pooling, normalisation), for a
 * foreign one that is inferred or assumed. A checkpoint is a directory of two such files, the model
 * and the optimiser's state. Nothing here knows how a model is laid out in memory: tensors are
 * reached by walking over the parameter table and copied one at a time.
 * Files of other families (npz, Hugging Face names) are not read, position embeddings not resized.
 *
 * Read in this order: names, configuration of a file, tensors from a file, tensors to a file, the
 * run's directory, resuming. */
#include "checkpoint.h"
#include "util/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_SIZE 4096
#define NAME_SIZE 192

/* ---- names ---- */

#define X(field, name, ...) name,
static const char *const embed_names[] = {EMBED_PARAMS(X) NULL};
static const char *const block_names[] = {BLOCK_PARAMS(X) NULL};
static const char *const head_names[] = {HEAD_PARAMS(X) NULL};
#undef X

static bool is_among(const char *name, const char *const *list)
{
    while (*list && strcmp(name, *list) != 0)
        list++;
    return *list != NULL;
}

/* "blocks.7.norm1.weight" -> 7 and "norm1.weight"; -1 for a name that is not of this form. */
static int block_of(const char *name, const char **rest)
{
    if (strncmp(name, "blocks.", 7) != 0)
        return -1;
    const char *digits = name + 7;
    size_t n = strspn(digits, "0123456789");
    if (n < 1 || n > 6 || (n > 1 && *digits == '0') || digits[n] != '.')
        return -1;
    *rest = digits + n + 1;
    return atoi(digits);
}

static bool is_vit_name(const char *name)
{
    const char *rest;
    if (block_of(name, &rest) >= 0)
        return is_among(rest, block_names);
    return is_among(name, embed_names) || is_among(name, head_names);
}

/* What a new head replaces: everything behind the final norm. */
static bool is_head_name(const char *name)
{
    return strncmp(name, "head.", 5) == 0 || strncmp(name, "pre_logits.", 11) == 0;
}

/* "[3, 4]" */
static const char *shape_text(char *out, size_t size, int ndim, const long *shape)
{
    size_t at = (size_t)snprintf(out, size, "[");
    for (int i = 0; i < ndim && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%ld", i ? ", " : "", shape[i]);
    if (at < size)
        snprintf(out + at, size - at, "]");
    return out;
}

/* ---- configuration of a file ---- */

static const char timm_hint[] = "the file must hold a plain Vision Transformer under timm's names";

/* A tensor with `ndim` dimensions, each of a believable size. */
static const StTensor *need(const SafeTensors *f, const char *name, int ndim, Error *e)
{
    char text[128];
    const StTensor *t = st_find(f, name);
    if (!t) {
        fail(e, timm_hint, "%s: there is no tensor %s", st_path(f), name);
        return NULL;
    }
    bool ok = t->ndim == ndim;
    for (int i = 0; i < t->ndim; i++)
        ok = ok && t->shape[i] >= 1 && t->shape[i] <= 1 << 24;
    if (ok)
        return t;
    fail(e, timm_hint, "%s: tensor %s has shape %s, expected %d dimensions from 1 to 2^24",
         st_path(f), name, shape_text(text, sizeof text, t->ndim, t->shape), ndim);
    return NULL;
}

/* Every block up to the highest must be there: a hostile number must not become a size. */
static bool count_blocks(const SafeTensors *f, int *layers, Error *e)
{
    int highest = -1;
    const char *rest;
    for (int i = 0; i < st_count(f); i++) {
        int block = block_of(st_at(f, i)->name, &rest);
        highest = block > highest ? block : highest;
    }
    for (int i = 0; i <= highest; i++) {
        char name[NAME_SIZE];
        snprintf(name, sizeof name, "blocks.%d.norm1.weight", i);
        if (!st_find(f, name))
            return fail(e, timm_hint, "%s: tensor %s is missing, though there is a block %d",
                        st_path(f), name, highest);
    }
    *layers = highest + 1;
    return true;
}

/* Everything that shapes and presence tell; the rest of *c is left alone. classes = 0: no head. */
static bool infer_dimensions(const SafeTensors *f, Config *c, Error *e)
{
    const StTensor *patch = need(f, "patch_embed.proj.weight", 4, e), *t;
    if (!patch)
        return false;
    if (patch->shape[1] != VIT_CHANNELS || patch->shape[2] != patch->shape[3])
        return fail(e, "only square patches of RGB images are supported",
                    "%s: patch_embed.proj.weight takes patches of %ldx%ld with %ld channels",
                    st_path(f), patch->shape[2], patch->shape[3], patch->shape[1]);
    c->width = (int)patch->shape[0];
    c->patch = (int)patch->shape[2];
    if (!count_blocks(f, &c->layers, e) || !(t = need(f, "blocks.0.mlp.fc1.weight", 2, e)))
        return false;
    c->mlp = (int)t->shape[0];
    c->cls_tokens = c->classes = c->representation = 0;
    if (st_find(f, "cls_token")) {
        if (!(t = need(f, "cls_token", 3, e)))
            return false;
        c->cls_tokens = (int)t->shape[1];
    }
    if (st_find(f, "head.weight")) {
        if (!(t = need(f, "head.weight", 2, e)))
            return false;
        c->classes = (int)t->shape[0];
    }
    if (st_find(f, "pre_logits.fc.weight")) {
        if (!(t = need(f, "pre_logits.fc.weight", 2, e)))
            return false;
        c->representation = (int)t->shape[0];
    }
    c->patch_bias = st_find(f, "patch_embed.proj.bias") != NULL;
    c->norm_pre = st_find(f, "norm_pre.weight") != NULL;
    c->layer_scale = st_find(f, "blocks.0.ls1.gamma") != NULL;
    return true;
}

/* Position embeddings [1, T, C], less the class tokens -> side of a square grid, 0 if none. */
static int square_side(const StTensor *pos, int cls_tokens)
{
    long patches = pos->ndim == 3 ? pos->shape[1] - cls_tokens : 0;
    long side = patches > 0 && patches <= 1 << 24 ? lround(sqrt((double)patches)) : 0;
    return side * side == patches ? (int)side : 0;
}

static bool infer_image(const SafeTensors *f, Config *c, Error *e)
{
    const StTensor *pos = need(f, "pos_embed", 3, e);
    if (!pos)
        return false;
    long side = square_side(pos, c->cls_tokens), pixels = side * c->patch;
    if (side == 0 || pixels > 65536)
        return fail(e, "a file without our metadata must have a square grid of patches",
                    "%s: pos_embed has %ld positions, with %d class tokens no square grid",
                    st_path(f), pos->shape[1], c->cls_tokens);
    c->image_h = c->image_w = (int)pixels;
    return true;
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

/* Heads leave no trace in the shapes. Nearly every published model has heads of 64. */
static const char *guess_heads(Config *c)
{
    Config preset;
    const char *name = matching_preset(c, &preset);
    c->heads = name ? preset.heads : c->width < 64 ? 1 : c->width / 64;
    while (c->width % c->heads)
        c->heads--;
    return name;
}

static bool check_names(const SafeTensors *f, Error *e)
{
    for (int i = 0; i < st_count(f); i++)
        if (!is_vit_name(st_at(f, i)->name))
            return fail(e, timm_hint, "%s: tensor %.150s does not belong to a plain ViT",
                        st_path(f), st_at(f, i)->name);
    return true;
}

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
            return fail(e, why.hint, "%s: metadata: %s", st_path(f), why.what);
        if (text || at >= size)
            continue;
        vit_config_get(c, field, value, sizeof value);
        at += (size_t)snprintf(assumed + at, size - at, "%s%s = %s",
                               at ? ", " : "not in the file: ", field->name, value);
    }
    return true;
}

/* The first setting in which two configurations differ, except those named in `ignore`. */
static const ConfigField *first_difference(const Config *a, const Config *b,
                                           const char *const *ignore, char *in_a, char *in_b,
                                           size_t size)
{
    for (int i = 0; i < vit_config_count; i++) {
        const ConfigField *field = &vit_config_fields[i];
        vit_config_get(a, field, in_a, size);
        vit_config_get(b, field, in_b, size);
        if (strcmp(in_a, in_b) != 0 && !is_among(field->name, ignore))
            return field;
    }
    return NULL;
}

/* Metadata that contradicts the tensors is refused before anyone allocates by it. */
static bool config_of_ours(const SafeTensors *f, Config *c, char *assumed, size_t size, Error *e)
{
    static const char *const none[] = {NULL};
    char says[64], are[64];
    if (!read_config(f, c, assumed, size, e))
        return false;
    Config seen = *c;
    if (!infer_dimensions(f, &seen, e))
        return false;
    const ConfigField *field = first_difference(c, &seen, none, says, are, sizeof says);
    if (field)
        return fail(e, "the metadata was changed, or belongs to another file",
                    "%s: metadata says %s = %s, but the tensors say %s", st_path(f), field->name,
                    says, are);
    return true;
}

static bool config_of_foreign(const SafeTensors *f, Config *c, char *assumed, size_t size, Error *e)
{
    *c = vit_config_default(); /* eps 1e-6, erf GELU, ImageNet mean and deviation */
    if (!infer_dimensions(f, c, e) || !infer_image(f, c, e))
        return false;
    c->pool = c->cls_tokens ? POOL_CLS : POOL_GAP;
    const char *preset = guess_heads(c);
    snprintf(
        assumed, size,
        "assumed: %d heads (%s%s), %dx%d pixels, pool %s, eps %g, erf GELU, ImageNet mean/std%s",
        c->heads, preset ? "as " : "width ", preset ? preset : "/ 64", c->image_h, c->image_w,
        c->pool == POOL_CLS ? "cls" : "gap", c->eps, c->classes ? "" : "; the file has no head");
    return true;
}

static bool config_of(const SafeTensors *f, Config *c, char *assumed, size_t size, Error *e)
{
    Error why = {0};
    if (!(is_ours(f) ? config_of_ours : config_of_foreign)(f, c, assumed, size, e) ||
        !check_names(f, e))
        return false;
    Config whole = *c;
    if (whole.classes == 0)
        whole.classes = 1; /* the caller decides about the head */
    if (!vit_config_check(&whole, &why))
        return fail(e, why.hint, "%s: %s", st_path(f), why.what);
    return true;
}

bool ckpt_config(const char *path, Config *c, char *assumed, size_t size, Error *e)
{
    SafeTensors *f = st_open(path, e);
    bool ok = f && config_of(f, c, assumed, size, e);
    st_close(f);
    return ok;
}

/* ---- tensors from a file ---- */

static const char state_hint[] =
    "the file is not the train_state.safetensors of this run, or was changed";

/* One parameter buffer of the model and what its tensors are called: "exp_avg." + name. */
typedef struct {
    const char *prefix;
    dev *buffer;
} Part;

typedef struct {
    Model *m;
    const SafeTensors *f;
    Part part;
    bool *used;     /* [tensors of the file] */
    bool skip_head; /* leave the model's head alone and the file's aside */
    real *host;
    Error *e;
} Transfer;

static const StTensor *find_part(const Transfer *x, const char *name)
{
    char full[NAME_SIZE];
    snprintf(full, sizeof full, "%s%s", x->part.prefix, name);
    return st_find(x->f, full);
}

static bool same_shape(const StTensor *t, const Param *p)
{
    bool same = t->ndim == p->ndim;
    for (int i = 0; same && i < t->ndim; i++)
        same = t->shape[i] == p->shape[i];
    return same;
}

typedef struct {
    int rows, columns; /* patches; 0: unknown */
} Grid;

static Grid model_grid(const Config *c)
{
    return (Grid){c->image_h / c->patch, c->image_w / c->patch};
}

/* The patches behind a file's position embeddings: by its metadata, else a square. */
static Grid file_grid(const SafeTensors *f, const StTensor *pos)
{
    const StTensor *cls = st_find(f, "cls_token");
    int n = cls && cls->ndim == 3 && cls->shape[1] < pos->shape[1] ? (int)cls->shape[1] : 0;
    int side = square_side(pos, n);
    Config c;
    char ignored[8];
    if (is_ours(f) && read_config(f, &c, ignored, sizeof ignored, NULL) && c.patch > 0)
        return model_grid(&c);
    return (Grid){side, side};
}

static const char *grid_text(Grid g, char *out, size_t size)
{
    if (g.rows > 0 && g.columns > 0)
        snprintf(out, size, "%dx%d", g.rows, g.columns);
    else
        snprintf(out, size, "unknown");
    return out;
}

static const char grid_hint[] =
    "use the file's image and patch size: positions are not resized yet";

static bool wrong_shape(const Transfer *x, const StTensor *t, const Param *p)
{
    char theirs[128], ours[128], grid[32], hint[256];
    const Config *c = &x->m->config;
    shape_text(theirs, sizeof theirs, t->ndim, t->shape);
    shape_text(ours, sizeof ours, p->ndim,
               (long[]){p->shape[0], p->shape[1], p->shape[2], p->shape[3]});
    if (p->role == ROLE_POS && t->ndim == 3) {
        char own[32];
        return fail(x->e, grid_hint,
                    "%s: tensor %s has shape %s, a grid of %s patches; the model's is %s, %s",
                    st_path(x->f), t->name, theirs,
                    grid_text(file_grid(x->f, t), grid, sizeof grid), ours,
                    grid_text(model_grid(c), own, sizeof own));
    }
    if (is_head_name(p->name) && !*x->part.prefix)
        snprintf(hint, sizeof hint,
                 "--num-classes %ld keeps the file's head; training makes a new one for %d classes "
                 "by itself",
                 t->shape[0], c->classes);
    else
        snprintf(hint, sizeof hint, "leave the dimensions out: they are taken from the file");
    return fail(x->e, hint, "%s: tensor %.150s has shape %s; the model's is %s", st_path(x->f),
                t->name, theirs, ours);
}

typedef bool (*ParamVisitor)(void *ctx, int unit, const Param *p, const char *name, long offset);
static bool vit_each_param(const Model *m, ParamVisitor visit, void *ctx)
{
    const Layout *l = m->layout;
    for (int i = 0; i < l->tensors; i++)
        if (!visit(ctx, l->param[i].unit, &l->param[i], l->param[i].name, l->param[i].offset))
            return false;
    return true;
}

/* Visitor, first pass: nothing is written before everything is known to fit. */
static bool check_one(void *ctx, int unit, const Param *p, const char *name, long offset)
{
    Transfer *x = ctx;
    (void)unit, (void)offset;
    if (x->skip_head && is_head_name(name))
        return true;
    const StTensor *t = find_part(x, name);
    if (!t)
        return fail(x->e,
                    *x->part.prefix      ? state_hint
                    : is_head_name(name) ? "training makes a new head by itself; to evaluate, give "
                                           "a file whose head fits the model"
                                         : timm_hint,
                    "%s: there is no tensor %s%s", st_path(x->f), x->part.prefix, name);
    x->used[t - st_at(x->f, 0)] = true;
    if (t->type > ST_BF16)
        return fail(x->e, "weights must be F64, F32, F16 or BF16: convert the file",
                    "%s: tensor %s has type %s, not a floating-point type", st_path(x->f), t->name,
                    t->dtype);
    return same_shape(t, p) || wrong_shape(x, t, p);
}

static bool load_one(void *ctx, int unit, const Param *p, const char *name, long offset)
{
    Transfer *x = ctx;
    (void)unit;
    if (x->skip_head && is_head_name(name))
        return true;
    if (!st_read_real(x->f, find_part(x, name), x->host, x->e))
        return false;
    units_write(&x->m->own, x->part.buffer, offset, p->n, x->host);
    return true;
}

static bool largest_one(void *ctx, int unit, const Param *p, const char *name, long offset)
{
    long *most = ctx;
    (void)unit, (void)name, (void)offset;
    *most = p->n > *most ? p->n : *most;
    return true;
}

/* Room for the model's largest tensor: all that saving and loading need. */
static real *host_buffer(const Model *m)
{
    long most = 0;
    vit_each_param(m, largest_one, &most);
    return xmalloc((size_t)most * sizeof(real));
}

/* Every tensor of these parts is in the file in its shape, and the file has no others. */
static bool check_parts(Model *m, const SafeTensors *f, const Part *parts, int n, bool skip_head,
                        Error *e)
{
    Transfer x = {.m = m, .f = f, .skip_head = skip_head, .e = e};
    x.used = xcalloc((size_t)st_count(f), sizeof *x.used);
    bool ok = true;
    for (int i = 0; ok && i < n; i++) {
        x.part = parts[i];
        ok = vit_each_param(m, check_one, &x);
    }
    for (int i = 0; ok && i < st_count(f); i++) {
        const char *name = st_at(f, i)->name;
        if (!x.used[i] && !(skip_head && is_head_name(name)))
            ok = fail(e, "the model's dimensions or settings differ from the file's",
                      "%s: tensor %.150s has no place in the model", st_path(f), name);
    }
    free(x.used);
    return ok;
}

static bool load_parts(Model *m, const SafeTensors *f, const Part *parts, int n, bool skip_head,
                       Error *e)
{
    Transfer x = {.m = m, .f = f, .skip_head = skip_head, .host = host_buffer(m), .e = e};
    bool ok = true;
    for (int i = 0; ok && i < n; i++) {
        x.part = parts[i];
        ok = vit_each_param(m, load_one, &x);
    }
    free(x.host);
    return ok;
}

/* Counts the head's tensors that fit; stops at one that does not. */
static bool head_one(void *ctx, int unit, const Param *p, const char *name, long offset)
{
    Transfer *x = ctx;
    (void)unit, (void)offset;
    if (!is_head_name(name))
        return true;
    const StTensor *t = find_part(x, name);
    if (!t || !same_shape(t, p))
        return false;
    x->used[t - st_at(x->f, 0)] = true;
    return true;
}

/* The head fits as a whole or not at all: a last layer is no use behind another pre_logits. */
static bool head_fits(Model *m, const SafeTensors *f)
{
    Transfer x = {.m = m, .f = f, .part = {"", m->own.weights}};
    x.used = xcalloc((size_t)st_count(f), sizeof *x.used);
    bool fits = vit_each_param(m, head_one, &x);
    for (int i = 0; i < st_count(f); i++)
        fits = fits && (x.used[i] || !is_head_name(st_at(f, i)->name));
    free(x.used);
    return fits;
}

/* No shape shows the number of heads, and weights mean nothing with another. */
static bool check_heads(const Model *m, const SafeTensors *f, Error *e)
{
    char heads[16];
    snprintf(heads, sizeof heads, "%d", m->config.heads);
    if (!is_ours(f) || strcmp(st_meta(f, "heads"), heads) == 0)
        return true;
    return fail(e, "leave --heads out: it is taken from the file",
                "%s: has %.20s heads, the model %s", st_path(f), st_meta(f, "heads"), heads);
}

/* Other grids have as many patches: 2x8 and 4x4. */
static bool check_grid(const Model *m, const SafeTensors *f, Error *e)
{
    const StTensor *pos = st_find(f, "pos_embed");
    Grid is = pos ? file_grid(f, pos) : (Grid){0, 0}, want = model_grid(&m->config);
    char theirs[32], ours[32];
    if (is.rows == 0 || (is.rows == want.rows && is.columns == want.columns))
        return true;
    return fail(e, grid_hint,
                "%s: tensor pos_embed is for a grid of %s patches (rows x columns); the model's is "
                "%s",
                st_path(f), grid_text(is, theirs, sizeof theirs),
                grid_text(want, ours, sizeof ours));
}

bool ckpt_load_weights(Model *m, const char *path, bool new_head, char *report, size_t size,
                       Error *e)
{
    SafeTensors *f = st_open(path, e);
    if (!f)
        return false;
    bool skip = new_head && !head_fits(m, f);
    const StTensor *head = st_find(f, "head.weight");
    const Part parts[] = {{"", m->own.weights}, {"", m->own.ema}}; /* an average starts at the weights */
    bool ok = check_heads(m, f, e) && check_parts(m, f, parts, 1, skip, e) && check_grid(m, f, e) &&
              load_parts(m, f, parts, m->own.ema ? 2 : 1, skip, e);
    snprintf(report, size, "%s", "");
    if (ok && skip && head && head->ndim > 0)
        snprintf(report, size, "the head is new, for %d classes; the file's has %ld outputs",
                 m->config.classes, head->shape[0]);
    else if (ok && skip)
        snprintf(report, size, "the head is new, for %d classes; the file has none",
                 m->config.classes);
    st_close(f);
    return ok;
}

/* ---- tensors to a file ---- */

typedef struct {
    Model *m;
    StWriter *w;
    Part part;
    real *host;
    Error *e;
} Output;

static bool declare_one(void *ctx, int unit, const Param *p, const char *name, long offset)
{
    Output *x = ctx;
    char full[NAME_SIZE];
    (void)unit, (void)offset;
    snprintf(full, sizeof full, "%s%s", x->part.prefix, name);
    st_add_tensor(x->w, full, ST_REAL, p->ndim, p->shape);
    return true;
}

static bool write_one(void *ctx, int unit, const Param *p, const char *name, long offset)
{
    Output *x = ctx;
    (void)unit, (void)name;
    units_read(&x->m->own, x->part.buffer, offset, p->n, x->host);
    return st_write(x->w, x->host, (size_t)p->n * sizeof(real), x->e);
}

/* Declares and writes the parts, then finishes or abandons w, whose metadata is complete. */
static bool write_parts(Model *m, StWriter *w, const Part *parts, int n, Error *e)
{
    Output x = {.m = m, .w = w, .e = e};
    for (int i = 0; i < n; i++) {
        x.part = parts[i];
        vit_each_param(m, declare_one, &x);
    }
    bool ok = st_begin(w, e);
    x.host = host_buffer(m);
    for (int i = 0; ok && i < n; i++) {
        x.part = parts[i];
        ok = vit_each_param(m, write_one, &x);
    }
    free(x.host);
    if (ok)
        return st_finish(w, e);
    st_abandon(w);
    return false;
}

static bool save_model(Model *m, const char *path, Error *e)
{
    Config preset;
    const char *name = matching_preset(&m->config, &preset);
    StWriter *w = st_create(path, e);
    if (!w)
        return false;
    st_add_meta(w, "format", "pt"); /* what Python's loaders look for */
    if (name && preset.heads == m->config.heads)
        st_add_meta(w, "model", name);
    for (int i = 0; i < vit_config_count; i++) {
        char value[64];
        vit_config_get(&m->config, &vit_config_fields[i], value, sizeof value);
        st_add_meta(w, vit_config_fields[i].name, value);
    }
    return write_parts(m, w, &(Part){"", m->own.weights}, 1, e);
}

static const char *const optimisers[] = {"adamw", "adam", "sgd", "lamb"}; /* by OPT_* */

#define MAX_STATE_PARTS 3

static int state_parts(const Model *m, Part *parts)
{
    int n = 0;
    bool sgd = m->plan.opt.kind == OPT_SGD;
    parts[n++] = (Part){sgd ? "momentum." : "exp_avg.", m->own.exp_avg};
    if (!sgd)
        parts[n++] = (Part){"exp_avg_sq.", m->own.exp_avg_sq};
    if (m->plan.ema)
        parts[n++] = (Part){"ema.", m->own.ema};
    return n;
}

static void add_count(StWriter *w, const char *key, uint64_t value)
{
    char text[32];
    snprintf(text, sizeof text, "%" PRIu64, value);
    st_add_meta(w, key, text);
}

/* 17 digits bring every double back exactly. */
static void add_double(StWriter *w, const char *key, double value)
{
    char text[32];
    snprintf(text, sizeof text, "%.17g", value);
    st_add_meta(w, key, text);
}

static bool save_state(Model *m, const char *path, const RunState *run, Error *e)
{
    const StepState *s = vit_state(m);
    Part parts[MAX_STATE_PARTS];
    int n = state_parts(m, parts);
    StWriter *w = st_create(path, e);
    if (!w)
        return false;
    st_add_meta(w, "format", "pt");
    st_add_meta(w, "optimizer", optimisers[m->plan.opt.kind]);
    add_count(w, "step", run->step);
    add_count(w, "samples", run->samples);
    add_count(w, "seed", run->seed);
    add_double(w, "best_metric", run->best_metric);
    add_count(w, "best_step", run->best_step);
    add_count(w, "t", s->t);
    add_count(w, "skipped", s->skipped);
    add_count(w, "skipped_in_row", s->skipped_in_row);
    if (m->plan.scaling.kind != SCALING_NONE) {
        add_double(w, "loss_scale", s->loss_scale);
        add_count(w, "good_steps", s->good_steps);
        add_count(w, "patience", s->patience);
    }
    return write_parts(m, w, parts, n, e);
}

/* ---- the run's directory ----
 * step_00000100/     a published checkpoint: always complete
 * step_00000100.tmp/ one being written, or being removed: never looked at, swept at the next save
 * step_00000100.old/ one being replaced, where the file system cannot exchange two names
 * latest, best       text files with the name of a published checkpoint */

#define TEMPORARY ".tmp"
#define REPLACED  ".old"

static const char long_hint[] = "use a directory with a shorter path";

static bool path_of(char *out, const char *dir, const char *name, const char *suffix, Error *e)
{
    int n = snprintf(out, PATH_SIZE, "%s/%s%s", dir, name, suffix);
    return (n > 0 && n < PATH_SIZE) || fail(e, long_hint, "%.200s...: the path is too long", dir);
}

/* "step_" and eight or more digits, then exactly `suffix`. Pointer files are untrusted too: no
 * other name is ever followed or removed. */
static bool parse_step(const char *name, const char *suffix, uint64_t *step)
{
    size_t digits = strncmp(name, "step_", 5) == 0 ? strspn(name + 5, "0123456789") : 0;
    if (digits < 8 || digits > 18 || strcmp(name + 5 + digits, suffix) != 0)
        return false;
    *step = strtoull(name + 5, NULL, 10);
    return true;
}

/* Removes a checkpoint's directory, which holds files alone. */
static bool remove_dir(const char *path)
{
    DIR *d = opendir(path);
    struct dirent *entry;
    if (!d)
        return errno == ENOENT;
    while ((entry = readdir(d)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(dirfd(d), entry->d_name, 0);
    closedir(d);
    return rmdir(path) == 0;
}

static void remove_or_warn(const char *path)
{
    if (!remove_dir(path))
        warn("%s: cannot remove: %s", path, strerror(errno));
}

/* The steps of all entries of `dir` that end in `suffix`, highest first; free() them. */
static uint64_t *list_steps(const char *dir, const char *suffix, int *count)
{
    DIR *d = opendir(dir);
    struct dirent *entry;
    uint64_t *list = NULL, step;
    *count = 0;
    while (d && (entry = readdir(d))) {
        if (!parse_step(entry->d_name, suffix, &step))
            continue;
        list = xrealloc(list, (size_t)(*count + 1) * sizeof *list);
        int at = (*count)++;
        for (; at > 0 && list[at - 1] < step; at--)
            list[at] = list[at - 1];
        list[at] = step;
    }
    if (d)
        closedir(d);
    return list;
}

static void step_name(char *out, size_t size, uint64_t step)
{
    snprintf(out, size, "step_%08" PRIu64, step);
}

/* What an interrupted save left. A replaced checkpoint whose successor never came is put back. */
static void sweep(const char *dir, const char *suffix)
{
    int count;
    uint64_t *steps = list_steps(dir, suffix, &count);
    char name[32], path[PATH_SIZE], left[PATH_SIZE];
    for (int i = 0; i < count; i++) {
        step_name(name, sizeof name, steps[i]);
        if (!path_of(path, dir, name, "", NULL) || !path_of(left, dir, name, suffix, NULL))
            continue;
        if (strcmp(suffix, REPLACED) != 0 || rename(left, path) != 0)
            remove_or_warn(left);
    }
    free(steps);
}

/* A pointer file is written as carefully as a checkpoint. */
static bool write_pointer(const char *dir, const char *which, const char *name, Error *e)
{
    char path[PATH_SIZE], text[64];
    snprintf(text, sizeof text, "%s\n", name);
    return path_of(path, dir, which, "", e) && save_text(path, text, e);
}

/* The checkpoint that a pointer file names, if it is there. */
static bool read_pointer(const char *dir, const char *which, uint64_t *step)
{
    char path[PATH_SIZE], name[32];
    if (!path_of(path, dir, which, "", NULL))
        return false;
    char *text = read_text(path, 256, NULL);
    if (!text)
        return false;
    text[strcspn(text, "\r\n")] = 0;
    bool ok = parse_step(text, "", step);
    free(text);
    step_name(name, sizeof name, ok ? *step : 0);
    return ok && path_of(path, dir, name, "", NULL) && is_dir(path);
}

static bool exchange(const char *a, const char *b)
{
#ifdef RENAME_EXCHANGE
    return renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE) == 0;
#else
    (void)a, (void)b;
    return false;
#endif
}

/* Give the finished temporary directory its name. A checkpoint of the same step, left by an earlier
 * run, is exchanged in one step where the file system can, else moved aside first. */
static bool publish(const char *dir, const char *name, const char *temporary, Error *e)
{
    char path[PATH_SIZE], old[PATH_SIZE];
    if (!path_of(path, dir, name, "", e) || !path_of(old, dir, name, REPLACED, e))
        return false;
    bool exchanged = path_exists(path) && exchange(temporary, path);
    bool aside = !exchanged && path_exists(path) && rename(path, old) == 0;
    if (!exchanged && rename(temporary, path) != 0) {
        fail(e, "see whether the directory can be written to, or choose another --out",
             "%s: cannot rename to %s: %s", temporary, path, strerror(errno));
        if (aside)
            rename(old, path);
        return false;
    }
    bool ok = sync_dir(dir, e);
    if (exchanged)
        remove_or_warn(temporary);
    if (aside)
        remove_or_warn(old);
    return ok;
}

/* Keep the newest `keep` of the checkpoints up to this step, and the best. Later ones are of a run
 * that went on from here before; they are not this run's to remove. */
static void prune(const char *dir, uint64_t step, int keep)
{
    int count, kept = 0;
    uint64_t *steps = list_steps(dir, "", &count), best = 0;
    bool has_best = read_pointer(dir, "best", &best);
    char name[32], path[PATH_SIZE], doomed[PATH_SIZE];
    for (int i = 0; i < count; i++) {
        if (steps[i] > step || kept++ < keep || (has_best && steps[i] == best))
            continue;
        step_name(name, sizeof name, steps[i]);
        if (!path_of(path, dir, name, "", NULL) || !path_of(doomed, dir, name, TEMPORARY, NULL))
            continue;
        /* renamed first, so that a crash half-way leaves no incomplete checkpoint */
        if (rename(path, doomed) != 0)
            warn("%s: cannot remove: %s", path, strerror(errno));
        else
            remove_or_warn(doomed);
    }
    free(steps);
}

/* Point `latest` at this checkpoint and `best` at the best one, where that was saved. */
static bool point(const char *dir, const RunState *run, Error *e)
{
    char name[32], path[PATH_SIZE];
    step_name(name, sizeof name, run->step);
    if (!write_pointer(dir, "latest", name, e))
        return false;
    step_name(name, sizeof name, run->best_step);
    if (run->best_metric < 0 || !path_of(path, dir, name, "", NULL) || !is_dir(path))
        return true;
    return write_pointer(dir, "best", name, e);
}

static bool save_both(Model *m, const char *dir, const RunState *run, Error *e)
{
    char model[PATH_SIZE], state[PATH_SIZE];
    return path_of(model, dir, "model.safetensors", "", e) &&
           path_of(state, dir, "train_state.safetensors", "", e) && make_dirs(dir, e) &&
           save_model(m, model, e) && save_state(m, state, run, e);
}

bool ckpt_save(Model *m, const char *dir, const RunState *run, int keep, Error *e)
{
    char name[32], temporary[PATH_SIZE];
    step_name(name, sizeof name, run->step);
    if (!m->own.exp_avg)
        return fail(e, "only a model that was set up for training is saved as a checkpoint",
                    "%s: a model without optimiser state has no run to save", dir);
    if (!path_of(temporary, dir, name, TEMPORARY, e) || !make_dirs(dir, e))
        return false;
    sweep(dir, TEMPORARY);
    sweep(dir, REPLACED);
    if (!save_both(m, temporary, run, e) || !publish(dir, name, temporary, e)) {
        remove_dir(temporary);
        return false;
    }
    if (!point(dir, run, e))
        return false;
    if (keep > 0)
        prune(dir, run->step, keep);
    return true;
}

/* ---- resuming ---- */

static bool is_checkpoint(const char *dir)
{
    char path[PATH_SIZE];
    return path_of(path, dir, "model.safetensors", "", NULL) && path_exists(path) &&
           path_of(path, dir, "train_state.safetensors", "", NULL) && path_exists(path);
}

static bool named_checkpoint(const char *dir, uint64_t step, char *path)
{
    char name[32];
    step_name(name, sizeof name, step);
    return path_of(path, dir, name, "", NULL) && is_checkpoint(path);
}

static bool give_path(const char *path, char *out, size_t size, Error *e)
{
    return snprintf(out, size, "%s", path) < (int)size ||
           fail(e, long_hint, "%.200s...: the path is too long", path);
}

/* The directory itself, else what `latest` names, else the highest step that is complete. */
bool ckpt_find(const char *dir, char *out, size_t size, Error *e)
{
    char path[PATH_SIZE];
    uint64_t step;
    bool found = is_checkpoint(dir);
    if (found)
        snprintf(path, sizeof path, "%s", dir);
    else if (!is_dir(dir))
        return fail(e, "give the directory of a run (its --out) or of a checkpoint",
                    "%s: no such directory", dir);
    else
        found = read_pointer(dir, "latest", &step) && named_checkpoint(dir, step, path);
    if (!found) {
        int count;
        uint64_t *steps = list_steps(dir, "", &count);
        for (int i = 0; !found && i < count; i++)
            found = named_checkpoint(dir, steps[i], path);
        free(steps);
    }
    if (!found)
        return fail(e, "give the directory of a run (its --out) or of a checkpoint",
                    "%s: holds no checkpoint", dir);
    return give_path(path, out, size, e);
}

/* Weights alone do: who looks for the best evaluates it. */
bool ckpt_best(const char *dir, char *out, size_t size, Error *e)
{
    char name[32], path[PATH_SIZE], model[PATH_SIZE];
    uint64_t step;
    if (is_checkpoint(dir) || !read_pointer(dir, "best", &step))
        return ckpt_find(dir, out, size, e);
    step_name(name, sizeof name, step);
    if (!path_of(path, dir, name, "", e) || !path_of(model, path, "model.safetensors", "", e))
        return false;
    return path_exists(model) ? give_path(path, out, size, e) : ckpt_find(dir, out, size, e);
}

static bool get_count(const SafeTensors *f, const char *key, uint64_t most, uint64_t *out, Error *e)
{
    const char *text = st_meta(f, key);
    if (!text)
        return fail(e, state_hint, "%s: metadata has no %s", st_path(f), key);
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || value > most)
        return fail(e, state_hint, "%s: metadata: %s is \"%.50s\", not a count up to %" PRIu64,
                    st_path(f), key, text, most);
    *out = value;
    return true;
}

static bool get_double(const SafeTensors *f, const char *key, double *out, Error *e)
{
    const char *text = st_meta(f, key);
    if (!text)
        return fail(e, state_hint, "%s: metadata has no %s", st_path(f), key);
    char *end;
    *out = strtod(text, &end);
    if (end == text || *end)
        return fail(e, state_hint, "%s: metadata: %s is \"%.50s\", not a number", st_path(f), key,
                    text);
    return true;
}

/* s keeps its loss scale where the file or the model has none. */
static bool read_counters(const SafeTensors *f, const Model *m, RunState *run, StepState *s,
                          Error *e)
{
    uint64_t t, skipped, in_row, good = s->good_steps, patience = s->patience;
    bool scaled = m->plan.scaling.kind != SCALING_NONE && st_meta(f, "patience");
    if (!get_count(f, "step", UINT32_MAX, &run->step, e) ||
        !get_count(f, "samples", UINT64_MAX, &run->samples, e) ||
        !get_count(f, "seed", UINT64_MAX, &run->seed, e) ||
        !get_double(f, "best_metric", &run->best_metric, e) ||
        !get_count(f, "best_step", UINT32_MAX, &run->best_step, e) ||
        !get_count(f, "t", UINT32_MAX, &t, e) ||
        !get_count(f, "skipped", UINT32_MAX, &skipped, e) ||
        !get_count(f, "skipped_in_row", UINT32_MAX, &in_row, e) ||
        (scaled && (!get_double(f, "loss_scale", &s->loss_scale, e) ||
                    !get_count(f, "good_steps", UINT32_MAX, &good, e) ||
                    !get_count(f, "patience", UINT32_MAX, &patience, e))))
        return false;
    if (!(s->loss_scale > 0) || !isfinite(s->loss_scale))
        return fail(e, state_hint, "%s: metadata: loss_scale is %g", st_path(f), s->loss_scale);
    s->seed = run->seed;
    s->step = (uint32_t)run->step;
    s->t = (uint32_t)t;
    s->skipped = (uint32_t)skipped;
    s->skipped_in_row = (uint32_t)in_row;
    s->good_steps = (uint32_t)good;
    s->patience = (uint32_t)patience;
    s->skip = 0;
    return true;
}

/* The saved model must be this one; its regularisation alone may change. */
static bool check_same_model(const Model *m, const SafeTensors *f, Error *e)
{
    static const char *const may_change[] = {"dropout", "attention_dropout", "drop_path", NULL};
    char assumed[8], theirs[64], ours[64];
    Config c;
    if (!is_ours(f))
        return fail(e, "start a new run from it with --weights",
                    "%s: has no configuration, so it is no checkpoint of a run", st_path(f));
    if (!read_config(f, &c, assumed, sizeof assumed, e))
        return false;
    const ConfigField *field =
        first_difference(&c, &m->config, may_change, theirs, ours, sizeof ours);
    if (field)
        return fail(e, "resume with the settings of the run, or start a new one with --weights",
                    "%s: was saved with %s = %s, the model has %s", st_path(f), field->name, theirs,
                    ours);
    return true;
}

static bool check_optimiser(const Model *m, const SafeTensors *f, Error *e)
{
    const char *saved = st_meta(f, "optimizer"), *ours = optimisers[m->plan.opt.kind];
    if (!saved)
        return fail(e, state_hint, "%s: metadata has no optimizer", st_path(f));
    if (strcmp(saved, ours) != 0)
        return fail(e, "resume with the settings of the run, or start a new one with --weights",
                    "%s: holds the state of %.50s, the run uses %s", st_path(f), saved, ours);
    bool has_ema = false;
    for (int i = 0; i < st_count(f); i++)
        has_ema = has_ema || strncmp(st_at(f, i)->name, "ema.", 4) == 0;
    if (has_ema != m->plan.ema)
        return fail(e, "resume with the settings of the run, or start a new one with --weights",
                    "%s: was saved %s an average of the weights, the run is %s one", st_path(f),
                    has_ema ? "with" : "without", has_ema ? "without" : "with");
    return true;
}

static bool resume_from(Model *m, const SafeTensors *model, const SafeTensors *state, RunState *run,
                        Error *e)
{
    Part weights = {"", m->own.weights}, parts[MAX_STATE_PARTS];
    int n = state_parts(m, parts);
    RunState r;
    StepState s = *vit_state(m);
    if (!check_same_model(m, model, e) || !check_parts(m, model, &weights, 1, false, e) ||
        !check_optimiser(m, state, e) || !check_parts(m, state, parts, n, false, e) ||
        !read_counters(state, m, &r, &s, e) || !load_parts(m, model, &weights, 1, false, e) ||
        !load_parts(m, state, parts, n, false, e))
        return false;
    vit_set_state(m, &s);
    *run = r;
    return true;
}

bool ckpt_resume(Model *m, const char *checkpoint_dir, RunState *run, Error *e)
{
    char path[PATH_SIZE];
    SafeTensors *model = NULL, *state = NULL;
    if (!m->own.exp_avg)
        return fail(e, "load the weights alone with --weights",
                    "%s: a model without optimiser state cannot resume", checkpoint_dir);
    bool ok = path_of(path, checkpoint_dir, "model.safetensors", "", e) &&
              (model = st_open(path, e)) &&
              path_of(path, checkpoint_dir, "train_state.safetensors", "", e) &&
              (state = st_open(path, e)) && resume_from(m, model, state, run, e);
    st_close(model);
    st_close(state);
    return ok;
}
