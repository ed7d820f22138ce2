/* weights.c - a model's weights in a file. See weights.h.
 *
 * Files are untrusted: a configuration is believed only where the tensors agree with it, and no
 * number becomes a size before it was checked. Files of other families (npz, Hugging Face names)
 * are not read, position embeddings not resized.
 *
 * Read in this order: names, configuration of a file, the grid of patches, tensors from a file
 * (what must be there), tensors in pieces, loading, tensors to a file. */
#include "weights/weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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
    char prefix[32];
    int block;
    if (sscanf(name, "blocks.%6d", &block) != 1 || block < 0)
        return -1;
    int n = snprintf(prefix, sizeof prefix, "blocks.%d.", block);
    if (strncmp(name, prefix, (size_t)n) != 0) /* 07, +7, 1234567 */
        return -1;
    *rest = name + n;
    return block;
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

typedef struct {
    char s[160];
} Text;

/* "[3, 4]"; ST_MAX_DIMS of 16 digits fit. */
static Text shape_text(int ndim, const long *shape)
{
    Text t;
    size_t at = (size_t)snprintf(t.s, sizeof t.s, "[");
    for (int i = 0; i < ndim; i++)
        at += (size_t)snprintf(t.s + at, sizeof t.s - at, "%s%ld", i ? ", " : "", shape[i]);
    snprintf(t.s + at, sizeof t.s - at, "]");
    return t;
}

/* ---- configuration of a file ---- */

static const char timm_hint[] = "the file must hold a plain Vision Transformer under timm's names";

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
             f->path, name, shape_text(t->ndim, t->shape).s, ndim);
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
        int block = block_of(f->tensor[i].name, &rest);
        highest = block > highest ? block : highest;
    }
    *layers = n;
    return n > highest || fail(e, timm_hint, "%s: tensor %s is missing, though there is a block %d",
                               f->path, name, highest);
}

/* Everything that shapes and presence tell; the rest of *c is left alone. classes = 0: no head. */
static bool infer_dimensions(const SafeTensors *f, Config *c, Error *e)
{
    const struct {
        const char *name;
        int ndim, axis; /* the length of this axis is the setting, and 0 where a tensor is absent */
        bool may_be_absent;
        int *setting;
    } lengths[] = {{"blocks.0.mlp.fc1.weight", 2, 0, false, &c->mlp},
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
                    "%s: pos_embed has %ld positions, with %d class tokens no square grid", f->path,
                    pos->shape[1], c->cls_tokens);
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
    c->heads = name ? preset.heads : c->width / 64 + (c->width < 64);
    while (c->width % c->heads)
        c->heads--;
    return name;
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
    if (!(is_ours(f) ? config_of_ours : config_of_foreign)(f, c, assumed, size, e))
        return false;
    for (int i = 0; i < f->count; i++)
        if (!is_vit_name(f->tensor[i].name))
            return fail(e, timm_hint, "%s: tensor %.150s does not belong to a plain ViT", f->path,
                        f->tensor[i].name);
    Config with_head = *c;
    if (with_head.classes == 0)
        with_head.classes = 1; /* the caller decides about the head */
    return vit_config_check(&with_head, &why) || fail(e, why.hint, "%s: %s", f->path, why.what);
}

bool weights_config(const char *path, Config *c, char *assumed, size_t size, Error *e)
{
    SafeTensors *f = st_open(path, e);
    bool ok = f && config_of(f, c, assumed, size, e);
    st_close(f);
    return ok;
}

/* ---- the grid of patches ---- */

typedef struct {
    int rows, columns; /* 0: unknown */
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
    if (is_ours(f) && read_config(f, &c, NULL, 0, NULL) && c.patch > 0)
        return model_grid(&c);
    return (Grid){side, side};
}

static Text grid_text(Grid g)
{
    Text t = {"unknown"};
    if (g.rows > 0 && g.columns > 0)
        snprintf(t.s, sizeof t.s, "%dx%d", g.rows, g.columns);
    return t;
}

static const char grid_hint[] =
    "use the file's image and patch size: positions are not resized yet";

/* Other grids have as many patches: 2x8 and 4x4. */
static bool check_grid(const SafeTensors *f, const Config *c, Error *e)
{
    const StTensor *pos = st_find(f, "pos_embed");
    Grid is = pos ? file_grid(f, pos) : (Grid){0, 0}, want = model_grid(c);
    if (is.rows == 0 || (is.rows == want.rows && is.columns == want.columns))
        return true;
    return fail(e, grid_hint,
                "%s: tensor pos_embed is for a grid of %s patches (rows x columns); the model's is "
                "%s",
                f->path, grid_text(is).s, grid_text(want).s);
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
    Text theirs = shape_text(t->ndim, t->shape), ours = shape_text(p->ndim, shape);
    if (p->role == ROLE_POS && t->ndim == 3)
        return fail(e, grid_hint,
                    "%s: tensor %s has shape %s, a grid of %s patches; the model's is %s, %s",
                    f->path, t->name, theirs.s, grid_text(file_grid(f, t)).s, ours.s,
                    grid_text(model_grid(c)).s);
    snprintf(hint, sizeof hint, "leave the dimensions out: they are taken from the file");
    if (is_weight && is_head_name(p->name))
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
    if (is_weight && is_head_name(p->name))
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
    bool head = is_head_name(name);
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

bool weights_load(const char *path, const Layout *l, const TensorSet *sets, int n, bool new_head,
                  char *report, size_t size, Error *e)
{
    SafeTensors *f = st_open(path, e);
    if (!f)
        return false;
    const Config *c = &l->config;
    const StTensor *head = st_find(f, "head.weight");
    /* the head fits as a whole or not at all: a last layer is no use behind another pre_logits */
    bool keep = !new_head || weights_check(f, l, sets, n, WEIGHTS_HEAD, NULL);
    int extent = keep ? WEIGHTS_WHOLE : WEIGHTS_NO_HEAD;
    bool ok = check_heads(f, c, e) && weights_check(f, l, sets, n, extent, e) &&
              check_grid(f, c, e) && weights_read(f, l, sets, n, extent, e);
    snprintf(report, size, "%s", "");
    if (ok && !keep && head && head->ndim > 0)
        snprintf(report, size, "the head is new, for %d classes; the file's has %ld outputs",
                 c->classes, head->shape[0]);
    else if (ok && !keep)
        snprintf(report, size, "the head is new, for %d classes; the file has none", c->classes);
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
