/* export.c - a model's weights in the forms of other programs. See export.h.
 *
 * A form is a list of tensors in memory, made from ours by a table of names (families.h) and, for
 * what stands before the patches and behind the last norm, by hand. Then the list is written.
 *
 * Read in this order: lists, by tables, tokens and positions, heads, JSON, ours, timm,
 * transformers, Google.
 */
#include "weights/export.h"

#include "util/files.h"
#include "weights/families.h"
#include "weights/names.h"
#include "weights/npz.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

PRINTF_LIKE(2, 3) static void note(Export *x, const char *fmt, ...)
{
    size_t at = strlen(x->notes);
    va_list args;
    va_start(args, fmt);
    if (at && at + 2 < sizeof x->notes)
        at += (size_t)snprintf(x->notes + at, sizeof x->notes - at, "; ");
    vsnprintf(x->notes + at, sizeof x->notes - at, fmt, args);
    va_end(args);
}

/* ---- lists ---- */

typedef struct {
    NpzArray *at; /* name, shape, values: those of any form */
    int n;
} List;

/* `values` becomes the list's. */
static void add(List *l, const char *name, real *values, int ndim, const int *shape)
{
    l->at = xgrow(l->at, l->n, sizeof *l->at);
    NpzArray *a = &l->at[l->n++];
    *a = (NpzArray){.name = xstrdup(name), .ndim = ndim, .values = values, .n = 1};
    for (int d = 0; d < ndim; d++) {
        a->shape[d] = shape[d];
        a->n *= shape[d];
    }
}

static void free_list(List *l)
{
    for (int i = 0; i < l->n; i++) {
        free(l->at[i].name);
        free(l->at[i].values);
    }
    free(l->at);
}

static real *copy_of(const real *x, long n)
{
    return memcpy(xmalloc((size_t)n * sizeof *x), x, (size_t)n * sizeof *x);
}

static real *zeros(long n)
{
    return xcalloc((size_t)n, sizeof(real));
}

static bool has(const Export *x, const char *name)
{
    return st_find(x->f, name) != NULL;
}

/* Ours, which is known to be there: weights_open has seen it. */
static real *values_of(const Export *x, const char *name)
{
    Error e;
    long n;
    real *v = weights_values(x->f, name, &n, &e);
    if (!v)
        die(e.hint, "%s", e.what);
    return v;
}

static bool write_safetensors(const List *l, const char *file, Error *e)
{
    StWriter *w = st_create(file);
    uint64_t at = 0;
    st_add_meta(w, "format", "pt");
    for (int i = 0; i < l->n; i++)
        st_add_tensor(w, l->at[i].name, ST_REAL, l->at[i].ndim, l->at[i].shape);
    bool ok = st_begin(w, 0, e);
    for (int i = 0; ok && i < l->n; i++) {
        size_t bytes = (size_t)l->at[i].n * sizeof(real);
        ok = st_write(w, at, l->at[i].values, bytes, e);
        at += bytes;
    }
    if (ok)
        return st_finish(w, 0, e);
    st_abandon(w);
    return false;
}

/* ---- by tables ---- */

/* Whether `name` is the pattern; *block is the number in place of its `#`. */
static bool fits(const char *pattern, const char *name, int *block)
{
    const char *hash = strchr(pattern, '#'), *rest = name;
    *block = -1;
    if (hash && (*block = names_block(name, &rest)) < 0)
        return false;
    return strcmp(hash ? hash + 2 : pattern, rest) == 0;
}

/* Rows first .. first+rows-1 of ours [.., columns] in their order of axes. */
static void add_part(const Export *x, List *l, const Name *n, const char *name, const StTensor *t,
                     const real *rows, int count)
{
    int H = x->c->heads, C = x->c->width, hs = C / H;
    long columns = t->n / t->shape[0];
    int in = (int)columns, P = x->c->patch;
    bool heads = strstr(n->theirs, "Attention_") != NULL; /* Google keeps them apart */
    real *v = copy_of(rows, count * columns);
    if (n->how == CONV) { /* [C, 3, P, P] -> [P, P, 3, C] */
        for (int o = 0; o < count; o++)
            for (int i = 0; i < in; i++)
                v[(long)(i % (P * P)) * 3 * count + (long)(i / (P * P)) * count + o] =
                    rows[(long)o * in + i];
        add(l, name, v, 4, (const int[]){P, P, 3, count});
    } else if (n->how == KERNEL || n->how == OUT_KERNEL) {
        for (int o = 0; o < count; o++)
            for (int i = 0; i < in; i++)
                v[(long)i * count + o] = rows[(long)o * in + i];
        if (heads && n->how == KERNEL)
            add(l, name, v, 3, (const int[]){in, H, hs});
        else if (heads)
            add(l, name, v, 3, (const int[]){H, hs, count});
        else
            add(l, name, v, 2, (const int[]){in, count});
    } else if (n->how == FLAT && heads) {
        add(l, name, v, 2, (const int[]){H, hs});
    } else {
        int shape[ST_MAX_DIMS] = {count};
        for (int d = 1; d < t->ndim; d++)
            shape[d] = (int)t->shape[d];
        add(l, name, v, t->ndim, shape);
    }
}

static int parts_of(const Name *names, const char *ours)
{
    int parts = 0;
    for (const Name *n = names; n->ours; n++)
        parts += strcmp(n->ours, ours) == 0;
    return parts;
}

/* What is made by hand: all but blocks, patches and norms. */
static bool is_by_hand(const char *name)
{
    return names_is_head(name) || strcmp(name, "cls_token") == 0 || strcmp(name, "pos_embed") == 0;
}

/* Every tensor of ours that the table has, under prefix + theirs. */
static bool add_by_table(const Export *x, List *l, const Name *names, const char *prefix, Error *e)
{
    for (int i = 0; i < x->f->count; i++) {
        const StTensor *t = &x->f->tensor[i];
        real *values = NULL;
        for (const Name *n = names; n->ours && !is_by_hand(t->name); n++) {
            int block, parts = parts_of(names, n->ours);
            long n_values;
            if (!fits(n->ours, t->name, &block) || n->how == FIRST_THIRD || n->how == LAST_THIRDS)
                continue;
            if (!values && !(values = weights_values(x->f, t->name, &n_values, e)))
                return false;
            const char *hash = strchr(n->theirs, '#');
            char name[NAME_SIZE], number[16] = "";
            if (hash)
                snprintf(number, sizeof number, "%d", block);
            snprintf(name, sizeof name, "%s%.*s%s%s", prefix,
                     hash ? (int)(hash - n->theirs) : (int)strlen(n->theirs), n->theirs, number,
                     hash ? hash + 1 : "");
            int rows = (int)t->shape[0] / parts;
            add_part(x, l, n, name, t, values + (long)rows * n->slot * (t->n / t->shape[0]), rows);
        }
        free(values);
    }
    return true;
}

/* A tensor as it is. */
static void add_same(const Export *x, List *l, const char *name, const char *theirs)
{
    const StTensor *t = st_find(x->f, name);
    int shape[ST_MAX_DIMS];
    for (int d = 0; d < t->ndim; d++)
        shape[d] = (int)t->shape[d];
    add(l, theirs, values_of(x, name), t->ndim, shape);
}

/* ---- tokens and positions ---- */

/* Tokens first .. first+n-1 before the patches, [1, n, C]. */
static void add_tokens(const Export *x, List *l, const char *name, int first, int n)
{
    real *all = values_of(x, "cls_token");
    int C = x->c->width;
    add(l, name, copy_of(all + (long)first * C, (long)n * C), 3, (const int[]){1, n, C});
    free(all);
}

/* Positions [1, T, C]; `bias` is added to those of the patches, which are what it is added to. */
static real *positions_of(const Export *x, bool bias)
{
    real *pos = values_of(x, "pos_embed"), *b = bias ? values_of(x, "patch_embed.proj.bias") : NULL;
    int C = x->c->width;
    for (long i = (long)x->c->cls_tokens * C; b && i < (long)vit_tokens(x->c) * C; i++)
        pos[i] += b[i % C];
    free(b);
    return pos;
}

/* Of a patch embedding that must have a bias. */
static void add_zero_bias(const Export *x, List *l, const char *name)
{
    if (!x->c->patch_bias)
        add(l, name, zeros(x->c->width), 1, &x->c->width);
}

/* ---- heads ---- */

/* The head over two tokens as one for each, whose mean it is: W = [W0, W1] / 2. */
static void add_two_heads(const Export *x, List *l, const char *first, const char *second)
{
    int C = x->c->width, K = x->c->classes;
    real *w = values_of(x, "head.weight"), *b = values_of(x, "head.bias");
    const char *names[] = {first, second};
    for (int h = 0; h < 2; h++) {
        real *half = xmalloc((size_t)K * (size_t)C * sizeof *half);
        for (long i = 0; i < (long)K * C; i++)
            half[i] = 2 * w[i / C * 2 * C + h * C + i % C];
        char name[NAME_SIZE];
        snprintf(name, sizeof name, "%s.weight", names[h]);
        add(l, name, half, 2, (const int[]){K, C});
        snprintf(name, sizeof name, "%s.bias", names[h]);
        add(l, name, copy_of(b, K), 1, &K);
    }
    free(w);
    free(b);
}

/* ---- JSON ---- */

static cJSON *sides(const Config *c)
{
    if (c->image_h == c->image_w)
        return cJSON_CreateNumber(c->image_h);
    return cJSON_CreateIntArray((const int[]){c->image_h, c->image_w}, 2);
}

static cJSON *mean_of(const Config *c)
{
    return cJSON_CreateDoubleArray((const double[]){c->mean_r, c->mean_g, c->mean_b}, 3);
}

static cJSON *std_of(const Config *c)
{
    return cJSON_CreateDoubleArray((const double[]){c->std_r, c->std_g, c->std_b}, 3);
}

static const char *label(const Export *x, int k, char number[24])
{
    snprintf(number, 24, "LABEL_%d", k); /* as transformers calls them */
    return x->labels && x->labels[k] ? x->labels[k] : number;
}

/* The object is freed. */
static bool write_json(cJSON *json, const char *dir, const char *name, Error *e)
{
    char *path = xasprintf("%s/%s", dir, name), *text = cJSON_Print(json);
    bool ok = text ? save_text(path, text, e) : fail(e, "free some", "%s: out of memory", path);
    cJSON_free(text);
    cJSON_Delete(json);
    free(path);
    return ok;
}

static bool write_model(const List *l, const char *dir, Error *e)
{
    char *path = xasprintf("%s/model.safetensors", dir);
    bool ok = write_safetensors(l, path, e);
    free(path);
    return ok;
}

/* ---- ours ---- */

bool export_ours(const Export *x, const char *file, Error *e)
{
    static const Cut whole = WHOLE_MODEL;
    Config with_head = *x->c;
    with_head.classes = x->c->classes ? x->c->classes : 1;
    Layout *l = layout_new(&with_head, DECAY_ALL, &whole);
    l->config.classes = x->c->classes;
    StWriter *w = weights_create(file, l);
    uint64_t at = 0;
    for (int t = 0; t < l->tensors; t++)
        if (x->c->classes || !names_is_head(l->param[t].name))
            st_add_tensor(w, l->param[t].name, ST_REAL, l->param[t].ndim, l->param[t].shape);
    bool ok = st_begin(w, 0, e);
    for (int t = 0; ok && t < l->tensors; t++) {
        long n = 0;
        if (!x->c->classes && names_is_head(l->param[t].name))
            continue;
        real *v = weights_values(x->f, l->param[t].name, &n, e);
        ok = v &&
             (n == l->param[t].n || fail(e, "the file's tensors do not go together",
                                         "%s: tensor %s has %ld elements"
                                         ", expected %ld",
                                         x->f->path, l->param[t].name, n, l->param[t].n)) &&
             st_write(w, at, v, (size_t)n * sizeof *v, e);
        at += (uint64_t)n * sizeof *v;
        free(v);
    }
    layout_free(l);
    if (ok)
        return st_finish(w, 0, e);
    st_abandon(w);
    return false;
}

/* ---- timm ---- */

static const char timm_instead[] = "export it to onnx, or use our model.safetensors";

/* The architecture whose habits, which are no arguments of it, are the model's. */
static const char *timm_architecture(const Config *c, double *eps)
{
    *eps = 1e-6;
    if (c->pool == POOL_CLS_DIST)
        return "deit_base_distilled_patch16_224";
    if (c->act == ACT_SWIGLU)
        return "vit_giant_patch14_dinov2";
    if (fabs(c->eps - 1e-5) > 1e-9)
        return "vit_base_patch16_224";
    *eps = 1e-5;
    return "vit_base_patch32_clip_224";
}

/* timm computes the width of the MLP as int(C * ratio). */
static double ratio_of(int F, int C)
{
    return F % C ? (F + 0.25) / C : F / C;
}

static bool timm_can(const Config *c, Error *e)
{
    if (c->representation)
        return fail(e, timm_instead, "timm has no layer before the head (representation = %d)",
                    c->representation);
    if (c->pool == POOL_CLS_GAP)
        return fail(e, "export it to hf, whose Dinov2ForImageClassification it is",
                    "timm has no head over the class token and the mean (pool = cls_gap)");
    if (c->pool == POOL_CLS_DIST &&
        (c->cls_tokens != 2 || c->norm_pre || c->layer_scale || c->qk_norm || c->act == ACT_SWIGLU))
        return fail(e, timm_instead,
                    "timm's DeiT has two tokens, and no layer scale, qk-norm, "
                    "SwiGLU or norm after the embedding");
    return true;
}

static const char *const timm_pools[] = {
    [POOL_CLS] = "token", [POOL_GAP] = "avg", [POOL_MAP] = "map", [POOL_CLS_DIST] = "token"};

static cJSON *timm_args(const Config *c)
{
    static const char *const acts[] = {
        [ACT_GELU] = "gelu", [ACT_GELU_TANH] = "gelu_tanh", [ACT_QUICK_GELU] = "quick_gelu"};
    cJSON *a = cJSON_CreateObject();
    cJSON_AddItemToObject(a, "img_size", sides(c));
    cJSON_AddNumberToObject(a, "patch_size", c->patch);
    cJSON_AddNumberToObject(a, "embed_dim", c->width);
    cJSON_AddNumberToObject(a, "depth", c->layers);
    cJSON_AddNumberToObject(a, "num_heads", c->heads);
    cJSON_AddNumberToObject(a, "mlp_ratio", ratio_of(vit_hidden(c), c->width));
    if (c->act != ACT_SWIGLU)
        cJSON_AddStringToObject(a, "act_layer", acts[c->act]);
    if (c->pool == POOL_CLS_DIST)
        return a;
    cJSON_AddStringToObject(a, "global_pool", timm_pools[c->pool]);
    cJSON_AddBoolToObject(a, "class_token", c->cls_tokens > 0);
    cJSON_AddNumberToObject(a, "reg_tokens", c->cls_tokens > 1 ? c->cls_tokens - 1 : 0);
    cJSON_AddBoolToObject(a, "no_embed_class", false);
    cJSON_AddBoolToObject(a, "qk_norm", c->qk_norm);
    cJSON_AddBoolToObject(a, "pre_norm", c->norm_pre);
    cJSON_AddBoolToObject(a, "fc_norm", c->fc_norm);
    cJSON_AddItemToObject(a, "init_values",
                          c->layer_scale ? cJSON_CreateNumber(1e-5) : cJSON_CreateNull());
    return a;
}

static cJSON *timm_config(const Export *x, const char *architecture)
{
    const Config *c = x->c;
    const char *interpolation = x->interpolation == 0 ? "bilinear" : "bicubic";
    cJSON *json = cJSON_CreateObject(), *cfg = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "architecture", architecture);
    cJSON_AddNumberToObject(json, "num_classes", c->classes);
    cJSON_AddNumberToObject(json, "num_features", c->width);
    cJSON_AddStringToObject(json, "global_pool", timm_pools[c->pool]);
    cJSON_AddItemToObject(json, "model_args", timm_args(c));
    cJSON_AddItemToObject(json, "pretrained_cfg", cfg);
    cJSON_AddBoolToObject(cfg, "custom_load", false);
    cJSON_AddItemToObject(cfg, "input_size",
                          cJSON_CreateIntArray((const int[]){3, c->image_h, c->image_w}, 3));
    cJSON_AddBoolToObject(cfg, "fixed_input_size", true);
    cJSON_AddStringToObject(cfg, "interpolation", interpolation);
    cJSON_AddNumberToObject(cfg, "crop_pct", x->crop_pct);
    cJSON_AddStringToObject(cfg, "crop_mode", x->crop == 1 ? "squash" : "center");
    cJSON_AddItemToObject(cfg, "mean", mean_of(c));
    cJSON_AddItemToObject(cfg, "std", std_of(c));
    cJSON_AddNumberToObject(cfg, "num_classes", c->classes);
    cJSON_AddItemToObject(cfg, "pool_size", cJSON_CreateNull());
    cJSON_AddStringToObject(cfg, "first_conv", "patch_embed.proj");
    if (c->pool == POOL_CLS_DIST)
        cJSON_AddItemToObject(cfg, "classifier",
                              cJSON_CreateStringArray((const char *[]){"head", "head_dist"}, 2));
    else
        cJSON_AddStringToObject(cfg, "classifier", "head");
    for (int k = 0; x->labels && k < c->classes; k++) {
        char number[24];
        cJSON *list = cJSON_GetObjectItem(json, "label_names");
        if (!list)
            list = cJSON_AddArrayToObject(json, "label_names");
        cJSON_AddItemToArray(list, cJSON_CreateString(label(x, k, number)));
    }
    return json;
}

/* timm's patch embedding has a bias unless a norm follows it: then positions take it up. */
static void timm_tensors(const Export *x, List *l)
{
    const Config *c = x->c;
    bool dist = c->pool == POOL_CLS_DIST, into_positions = c->norm_pre && c->patch_bias;
    for (int i = 0; i < x->f->count; i++) {
        const char *name = x->f->tensor[i].name;
        bool bias = strcmp(name, "patch_embed.proj.bias") == 0;
        if (!(into_positions && bias) && !is_by_hand(name))
            add_same(x, l, name, name);
    }
    if (c->cls_tokens)
        add_tokens(x, l, "cls_token", 0, 1);
    if (c->cls_tokens > 1)
        add_tokens(x, l, dist ? "dist_token" : "reg_token", 1, c->cls_tokens - 1);
    add(l, "pos_embed", positions_of(x, into_positions), 3,
        (const int[]){1, vit_tokens(c), c->width});
    if (!c->norm_pre)
        add_zero_bias(x, l, "patch_embed.proj.bias");
    if (c->classes && dist)
        add_two_heads(x, l, "head", "head_dist");
    for (int i = 0; i < x->f->count && !dist; i++)
        if (names_is_head(x->f->tensor[i].name))
            add_same(x, l, x->f->tensor[i].name, x->f->tensor[i].name);
}

bool export_timm(Export *x, const char *dir, Error *e)
{
    double eps;
    const Config *c = x->c;
    const char *architecture = timm_architecture(c, &eps);
    if (!timm_can(c, e) || !make_dirs(dir, e))
        return false;
    if (fabs(c->eps - eps) > 1e-9 || fabs(c->eps_final - eps) > 1e-9)
        note(x, "timm's norms have eps %g, the model's %g and %g: its logits differ a little", eps,
             c->eps, c->eps_final);
    List l = {0};
    timm_tensors(x, &l);
    bool ok =
        write_model(&l, dir, e) && write_json(timm_config(x, architecture), dir, "config.json", e);
    free_list(&l);
    return ok;
}

/* ---- transformers ---- */

static const char hf_instead[] = "export it to timm or onnx";

enum { HF_VIT, HF_DEIT, HF_DINOV2, HF_REGISTERS, HF_CLIP, HF_SIGLIP };
static const struct {
    const char *type, *prefix, *with_head, *without;
    bool has_prefix_alone; /* its files without a head have the prefix too */
} kinds[] = {
    [HF_VIT] = {"vit", "vit.", "ViTForImageClassification", "ViTModel", false},
    [HF_DEIT] = {"deit", "deit.", "DeiTForImageClassificationWithTeacher", "DeiTModel", false},
    [HF_DINOV2] = {"dinov2", "dinov2.", "Dinov2ForImageClassification", "Dinov2Model", false},
    [HF_REGISTERS] = {"dinov2_with_registers", "dinov2_with_registers.",
                      "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersModel",
                      false},
    [HF_CLIP] = {"clip_vision_model", "vision_model.", "CLIPVisionModelWithProjection",
                 "CLIPVisionModel", true},
    [HF_SIGLIP] = {"siglip", "vision_model.", "SiglipForImageClassification", "SiglipVisionModel",
                   true}};

static bool is_zero(const Export *x, const char *name)
{
    long n = has(x, name) ? st_find(x->f, name)->n : 0;
    real *v = n ? values_of(x, name) : NULL;
    bool zero = true;
    for (long i = 0; i < n; i++)
        zero &= v[i] == 0;
    free(v);
    return zero;
}

/* DINOv2's gated MLP: F is a multiple of 8 that follows from C * mlp_ratio. */
static int gated_ratio(int F, int C)
{
    for (int ratio = 1; ratio <= 64; ratio++)
        if ((C * ratio * 2 / 3 + 7) / 8 * 8 == F)
            return ratio;
    return 0;
}

/* What none of its kinds has. */
static bool hf_can(const Config *c, Error *e)
{
    if (c->qk_norm)
        return fail(e, hf_instead, "transformers' ViTs have no norms of queries and keys");
    if (c->fc_norm)
        return fail(e, hf_instead, "transformers' ViTs have no norm after pooling");
    if (c->representation)
        return fail(e, "export it to npz or onnx",
                    "transformers' ViTs have no layer before the head");
    if (fabs(c->eps - c->eps_final) > 1e-12)
        return fail(e, hf_instead, "transformers' ViTs have one eps, the model %g and %g", c->eps,
                    c->eps_final);
    return true;
}

static bool hf_kind(const Export *x, int *kind, Error *e)
{
    const Config *c = x->c;
    bool plain = !c->layer_scale && c->act != ACT_SWIGLU;
    *kind = HF_VIT;
    if (c->pool == POOL_CLS_DIST)
        *kind = HF_DEIT;
    else if (c->norm_pre)
        *kind = HF_CLIP;
    else if (c->pool == POOL_GAP || c->pool == POOL_MAP)
        *kind = HF_SIGLIP;
    else if (!plain || c->pool == POOL_CLS_GAP || c->cls_tokens > 1)
        *kind = c->cls_tokens > 1 ? HF_REGISTERS : HF_DINOV2;
    bool tower = *kind == HF_CLIP || *kind == HF_SIGLIP;
    if (!plain && (tower || *kind == HF_DEIT))
        return fail(e, hf_instead, "transformers' %s has no layer scale and no SwiGLU",
                    kinds[*kind].without);
    if (*kind == HF_DEIT && c->cls_tokens != 2)
        return fail(e, hf_instead, "transformers' DeiT has two tokens before the patches");
    if (*kind == HF_SIGLIP && c->cls_tokens)
        return fail(e, hf_instead,
                    "transformers pools by a mean only in SigLIP, which has no "
                    "tokens before the patches; the model has %d",
                    c->cls_tokens);
    if (c->pool == POOL_MAP && c->classes)
        return fail(e, hf_instead, "transformers has no classifier behind attention pooling");
    if (*kind == HF_CLIP && (c->pool != POOL_CLS || c->cls_tokens != 1 || !is_zero(x, "head.bias")))
        return fail(e, hf_instead,
                    "transformers' CLIP takes its one class token, and projects it "
                    "without a bias");
    int ratio = c->act == ACT_SWIGLU ? gated_ratio(c->mlp, c->width) : c->mlp % c->width == 0;
    if ((*kind == HF_DINOV2 || *kind == HF_REGISTERS) && !ratio)
        return fail(e, hf_instead, "transformers' DINOv2 has no MLP of %d for a width of %d",
                    c->mlp, c->width);
    if (tower && c->image_h != c->image_w)
        return fail(e, hf_instead, "transformers' CLIP and SigLIP take square images");
    return true;
}

static void add_labels(const Export *x, cJSON *json)
{
    cJSON *names = cJSON_AddObjectToObject(json, "id2label");
    cJSON *numbers = cJSON_AddObjectToObject(json, "label2id");
    for (int k = 0; k < x->c->classes; k++) {
        char number[24], key[16];
        const char *name = label(x, k, number);
        snprintf(key, sizeof key, "%d", k);
        cJSON_AddStringToObject(names, key, name);
        cJSON_AddNumberToObject(numbers, name, k);
    }
}

static cJSON *hf_config(const Export *x, int kind)
{
    static const char *const acts[] = {[ACT_GELU] = "gelu",
                                       [ACT_GELU_TANH] = "gelu_pytorch_tanh",
                                       [ACT_QUICK_GELU] = "quick_gelu",
                                       [ACT_SWIGLU] = "gelu"};
    const Config *c = x->c;
    cJSON *json = cJSON_CreateObject(), *model = json;
    const char *class = c->classes ? kinds[kind].with_head : kinds[kind].without;
    cJSON_AddItemToObject(json, "architectures", cJSON_CreateStringArray(&class, 1));
    bool inner = kind == HF_SIGLIP && c->classes; /* its classifier's configuration has two */
    cJSON_AddStringToObject(json, "model_type",
                            kind == HF_SIGLIP && !inner ? "siglip_vision_model" : kinds[kind].type);
    if (inner) {
        model = cJSON_AddObjectToObject(json, "vision_config");
        cJSON_AddStringToObject(model, "model_type", "siglip_vision_model");
    }
    if (kind == HF_SIGLIP)
        cJSON_AddBoolToObject(model, "vision_use_head", c->pool == POOL_MAP);
    cJSON_AddNumberToObject(model, "hidden_size", c->width);
    cJSON_AddNumberToObject(model, "num_hidden_layers", c->layers);
    cJSON_AddNumberToObject(model, "num_attention_heads", c->heads);
    cJSON_AddStringToObject(model, "hidden_act", acts[c->act]);
    cJSON_AddNumberToObject(model, "layer_norm_eps", c->eps);
    cJSON_AddItemToObject(model, "image_size", sides(c));
    cJSON_AddNumberToObject(model, "patch_size", c->patch);
    cJSON_AddNumberToObject(model, "num_channels", VIT_CHANNELS);
    if (kind == HF_DINOV2 || kind == HF_REGISTERS) {
        bool gated = c->act == ACT_SWIGLU;
        cJSON_AddBoolToObject(model, "use_swiglu_ffn", gated);
        cJSON_AddNumberToObject(model, "mlp_ratio",
                                gated ? gated_ratio(c->mlp, c->width) : c->mlp / c->width);
        if (kind == HF_REGISTERS)
            cJSON_AddNumberToObject(model, "num_register_tokens", c->cls_tokens - 1);
    } else {
        cJSON_AddNumberToObject(model, "intermediate_size", c->mlp);
    }
    if (kind == HF_CLIP && c->classes)
        cJSON_AddNumberToObject(model, "projection_dim", c->classes);
    else if (c->classes)
        add_labels(x, json);
    return json;
}

/* Images as evaluation here prepares them. */
static cJSON *hf_processor(const Export *x)
{
    const Config *c = x->c;
    cJSON *json = cJSON_CreateObject(), *whole = cJSON_CreateObject();
    bool stretch = x->crop == 1;
    int side = c->image_h < c->image_w ? c->image_h : c->image_w;
    cJSON_AddStringToObject(json, "image_processor_type",
                            stretch ? "ViTImageProcessor" : "CLIPImageProcessor");
    cJSON_AddNumberToObject(whole, "height", c->image_h);
    cJSON_AddNumberToObject(whole, "width", c->image_w);
    cJSON_AddBoolToObject(json, "do_resize", true);
    cJSON_AddNumberToObject(json, "resample", x->interpolation == 0 ? 2 : 3); /* Pillow's */
    if (stretch) {
        cJSON_AddItemToObject(json, "size", whole);
    } else {
        cJSON *size = cJSON_AddObjectToObject(json, "size");
        cJSON_AddNumberToObject(size, "shortest_edge", floor(side / x->crop_pct + 1e-9));
        cJSON_AddItemToObject(json, "crop_size", whole);
    }
    cJSON_AddBoolToObject(json, "do_center_crop", !stretch);
    cJSON_AddBoolToObject(json, "do_convert_rgb", true);
    cJSON_AddBoolToObject(json, "do_rescale", true);
    cJSON_AddNumberToObject(json, "rescale_factor", 1.0 / 255);
    cJSON_AddBoolToObject(json, "do_normalize", true);
    cJSON_AddItemToObject(json, "image_mean", mean_of(c));
    cJSON_AddItemToObject(json, "image_std", std_of(c));
    return json;
}

/* Registers have no positions there, and take ours with them. */
static void hf_embedding(const Export *x, List *l, int kind, const char *prefix)
{
    const Config *c = x->c;
    int C = c->width, N = c->cls_tokens, T = vit_tokens(c);
    char name[NAME_SIZE];
    bool fold = kind == HF_CLIP && c->patch_bias; /* its patch embedding has no bias */
    real *pos = positions_of(x, fold);
#define AT(what) (snprintf(name, sizeof name, "%sembeddings.%s", prefix, what), name)
    if (kind == HF_REGISTERS) {
        real *tokens = values_of(x, "cls_token"), *kept = xmalloc((size_t)(T * C) * sizeof *kept);
        for (long i = C; i < (long)N * C; i++)
            tokens[i] += pos[i];
        memcpy(kept, pos, (size_t)C * sizeof *kept);
        memcpy(kept + C, pos + (long)N * C, (size_t)(T - N) * (size_t)C * sizeof *kept);
        add(l, AT("cls_token"), copy_of(tokens, C), 3, (const int[]){1, 1, C});
        add(l, AT("register_tokens"), copy_of(tokens + C, (long)(N - 1) * C), 3,
            (const int[]){1, N - 1, C});
        add(l, AT("position_embeddings"), kept, 3, (const int[]){1, 1 + T - N, C});
        free(tokens);
        free(pos);
    } else if (kind == HF_CLIP || kind == HF_SIGLIP) {
        if (N)
            add(l, AT("class_embedding"), values_of(x, "cls_token"), 1, &C);
        add(l, AT("position_embedding.weight"), pos, 2, (const int[]){T, C});
    } else {
        add_tokens(x, l, AT("cls_token"), 0, 1);
        if (kind == HF_DEIT)
            add_tokens(x, l, AT("distillation_token"), 1, 1);
        add(l, AT("position_embeddings"), pos, 3, (const int[]){1, T, C});
    }
    if (kind == HF_DINOV2 || kind == HF_REGISTERS)
        add(l, AT("mask_token"), zeros(C), 2, (const int[]){1, C});
    if (kind == HF_SIGLIP)
        add_zero_bias(x, l, AT("patch_embedding.bias"));
    else if (kind != HF_CLIP)
        add_zero_bias(x, l, AT("patch_embeddings.projection.bias"));
#undef AT
}

/* Layer scale that the model does without is one. */
static void hf_scales(const Export *x, List *l, const char *prefix)
{
    int C = x->c->width;
    for (int i = 0; i < 2 * x->c->layers && !x->c->layer_scale; i++) {
        char name[NAME_SIZE];
        real *ones = zeros(C);
        for (int k = 0; k < C; k++)
            ones[k] = 1;
        snprintf(name, sizeof name, "%sencoder.layer.%d.layer_scale%d.lambda1", prefix, i / 2,
                 1 + i % 2);
        add(l, name, ones, 1, &C);
    }
}

/* The query that SigLIP learns has q, k and v in one. */
static void hf_attention_pool(const Export *x, List *l, const char *prefix)
{
    int C = x->c->width;
    for (int bias = 0; bias < 2; bias++) {
        char name[NAME_SIZE];
        real *q = values_of(x, bias ? "attn_pool.q.bias" : "attn_pool.q.weight");
        real *kv = values_of(x, bias ? "attn_pool.kv.bias" : "attn_pool.kv.weight");
        size_t n = (size_t)C * (bias ? 1 : (size_t)C);
        real *all = xmalloc(3 * n * sizeof *all);
        memcpy(all, q, n * sizeof *all);
        memcpy(all + n, kv, 2 * n * sizeof *all);
        snprintf(name, sizeof name, "%shead.attention.in_proj_%s", prefix,
                 bias ? "bias" : "weight");
        add(l, name, all, 2 - bias, (const int[]){3 * C, C});
        free(q);
        free(kv);
    }
}

/* DINOv2's classifier reads the class token and the mean: of a head without the mean, zeros. */
static void hf_head(const Export *x, List *l, int kind)
{
    int C = x->c->width, K = x->c->classes;
    real *w = values_of(x, "head.weight");
    if (kind == HF_CLIP) {
        add(l, "visual_projection.weight", w, 2, (const int[]){K, C});
        return;
    }
    int D = kind == HF_DINOV2 || kind == HF_REGISTERS ? 2 * C : C;
    if (D > vit_features(x->c)) {
        real *wide = zeros((long)K * D);
        for (long i = 0; i < (long)K * C; i++)
            wide[i / C * D + i % C] = w[i];
        free(w);
        w = wide;
    }
    add(l, "classifier.weight", w, 2, (const int[]){K, D});
    add(l, "classifier.bias", values_of(x, "head.bias"), 1, &K);
}

static bool hf_tensors(const Export *x, List *l, int kind, Error *e)
{
    const Config *c = x->c;
    const Name *const names[] = {
        [HF_VIT] = names_vit,          [HF_DEIT] = names_vit,    [HF_DINOV2] = names_dinov2,
        [HF_REGISTERS] = names_dinov2, [HF_CLIP] = names_towers, [HF_SIGLIP] = names_towers};
    const Name *table = names[kind];
    bool alone = !c->classes && !kinds[kind].has_prefix_alone;
    const char *prefix = alone ? "" : kinds[kind].prefix;
    if (table == names_dinov2 && c->act == ACT_SWIGLU)
        table = names_dinov2_gated;
    if (!add_by_table(x, l, table, prefix, e))
        return false;
    hf_embedding(x, l, kind, prefix);
    if (table == names_dinov2 || table == names_dinov2_gated)
        hf_scales(x, l, prefix);
    if (c->pool == POOL_MAP)
        hf_attention_pool(x, l, prefix);
    if (c->classes && kind == HF_DEIT)
        add_two_heads(x, l, "cls_classifier", "distillation_classifier");
    else if (c->classes)
        hf_head(x, l, kind);
    for (int i = 0; i < l->n && kind == HF_CLIP; i++) /* which has gone into the positions */
        if (strstr(l->at[i].name, "patch_embedding.bias")) {
            free(l->at[i].name);
            free(l->at[i].values);
            l->at[i] = l->at[--l->n];
        }
    return true;
}

bool export_hf(Export *x, const char *dir, Error *e)
{
    int kind;
    if (!hf_can(x->c, e) || !hf_kind(x, &kind, e) || !make_dirs(dir, e))
        return false;
    List l = {0};
    bool ok = hf_tensors(x, &l, kind, e) && write_model(&l, dir, e) &&
              write_json(hf_config(x, kind), dir, "config.json", e) &&
              write_json(hf_processor(x), dir, "preprocessor_config.json", e);
    note(x, "it is a %s", x->c->classes ? kinds[kind].with_head : kinds[kind].without);
    free_list(&l);
    return ok;
}

/* ---- Google ---- */

bool export_npz(Export *x, const char *file, Error *e)
{
    const Config *c = x->c;
    static const char instead[] = "export it to timm or onnx";
    const struct {
        bool has;
        const char *what;
    } strange[] = {{c->cls_tokens > 1, "registers"},
                   {c->norm_pre, "a norm after the embedding"},
                   {c->layer_scale, "layer scale"},
                   {c->qk_norm, "norms of queries and keys"},
                   {c->fc_norm, "a norm after pooling"},
                   {c->act == ACT_SWIGLU, "SwiGLU"},
                   {c->pool == POOL_CLS_DIST || c->pool == POOL_CLS_GAP, "a head of two tokens"},
                   {c->pool == POOL_GAP && c->cls_tokens, "a mean beside a class token"}};
    for (int i = 0; i < COUNT(strange); i++)
        if (strange[i].has)
            return fail(e, instead, "Google's ViTs do not have %s", strange[i].what);
    List l = {0};
    bool ok = add_by_table(x, &l, names_google, "params/", e);
    if (ok) {
        if (c->cls_tokens)
            add_tokens(x, &l, "params/cls", 0, 1);
        add(&l, "params/pos_embedding", positions_of(x, false), 3,
            (const int[]){1, vit_tokens(c), c->width});
        add_zero_bias(x, &l, "params/embedding/bias");
        static const char *const layers[][2] = {{"head", "head"}, {"pre_logits.fc", "pre_logits"}};
        for (int i = 0; i < COUNT(layers); i++) {
            char ours[NAME_SIZE], theirs[NAME_SIZE];
            snprintf(ours, sizeof ours, "%s.weight", layers[i][0]);
            const StTensor *t = st_find(x->f, ours);
            if (!t)
                continue;
            const Name kernel = {ours, "kernel", 0, KERNEL};
            real *v = values_of(x, ours);
            snprintf(theirs, sizeof theirs, "params/%s/kernel", layers[i][1]);
            add_part(x, &l, &kernel, theirs, t, v, (int)t->shape[0]);
            free(v);
            snprintf(ours, sizeof ours, "%s.bias", layers[i][0]);
            snprintf(theirs, sizeof theirs, "params/%s/bias", layers[i][1]);
            add_same(x, &l, ours, theirs);
        }
        ok = npz_write(file, l.at, l.n, e);
    }
    if (ok && c->act != ACT_GELU_TANH)
        note(x, "Google's programs compute gelu_tanh, timm erf GELU: the file does not say which");
    free_list(&l);
    return ok;
}
