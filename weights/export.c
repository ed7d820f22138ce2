/* export.c - a model's weights in the forms of other programs. See export.h; export_hf.h has
 * transformers', export_list.h what all have in common.
 *
 * Read in this order: ours, timm, Google.
 */
#include "weights/export.h"

#include "util/files.h"
#include "weights/export_list.h"
#include "weights/names.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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
    cJSON_AddItemToObject(a, "img_size", export_sides(c));
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
    cJSON_AddNumberToObject(cfg, "crop_pct", x->crop == 1 ? 1 : x->crop_pct);
    cJSON_AddStringToObject(cfg, "crop_mode", x->crop ? "squash" : "center");
    cJSON_AddItemToObject(cfg, "mean", export_mean(c));
    cJSON_AddItemToObject(cfg, "std", export_std(c));
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
        cJSON_AddItemToArray(list, cJSON_CreateString(export_label(x, k, number)));
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
        if (!(into_positions && bias) && !export_by_hand(name))
            list_add_same(x, l, name, name);
    }
    if (c->cls_tokens)
        list_add_tokens(x, l, "cls_token", 0, 1);
    if (c->cls_tokens > 1)
        list_add_tokens(x, l, dist ? "dist_token" : "reg_token", 1, c->cls_tokens - 1);
    list_add(l, "pos_embed", export_positions(x, into_positions), 3,
             (const int[]){1, vit_tokens(c), c->width});
    if (!c->norm_pre)
        list_add_zero_bias(x, l, "patch_embed.proj.bias");
    if (c->classes && dist)
        list_add_two_heads(x, l, "head", "head_dist");
    for (int i = 0; i < x->f->count && !dist; i++)
        if (names_is_head(x->f->tensor[i].name))
            list_add_same(x, l, x->f->tensor[i].name, x->f->tensor[i].name);
}

bool export_timm(Export *x, const char *dir, Error *e)
{
    double eps;
    const Config *c = x->c;
    const char *architecture = timm_architecture(c, &eps);
    if (!timm_can(c, e) || !make_dirs(dir, e))
        return false;
    if (fabs(c->eps - eps) > 1e-9 || fabs(c->eps_final - eps) > 1e-9)
        export_note(x,
                    "timm's norms have eps %g, the model's %g and %g: its logits differ a little",
                    eps, c->eps, c->eps_final);
    List l = {0};
    timm_tensors(x, &l);
    bool ok =
        list_write(&l, dir, e) && export_json(timm_config(x, architecture), dir, "config.json", e);
    list_free(&l);
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
    bool ok = list_add_by_table(x, &l, names_google, "params/", e);
    if (ok) {
        if (c->cls_tokens)
            list_add_tokens(x, &l, "params/cls", 0, 1);
        list_add(&l, "params/pos_embedding", export_positions(x, false), 3,
                 (const int[]){1, vit_tokens(c), c->width});
        list_add_zero_bias(x, &l, "params/embedding/bias");
        static const char *const layers[][2] = {{"head", "head"}, {"pre_logits.fc", "pre_logits"}};
        for (int i = 0; i < COUNT(layers); i++) {
            char ours[NAME_SIZE], theirs[NAME_SIZE];
            snprintf(ours, sizeof ours, "%s.weight", layers[i][0]);
            const StTensor *t = st_find(x->f, ours);
            if (!t)
                continue;
            const Name kernel = {ours, "kernel", 0, KERNEL};
            real *v = export_values(x, ours);
            snprintf(theirs, sizeof theirs, "params/%s/kernel", layers[i][1]);
            list_add_part(x, &l, &kernel, theirs, t, v, (int)t->shape[0]);
            free(v);
            snprintf(ours, sizeof ours, "%s.bias", layers[i][0]);
            snprintf(theirs, sizeof theirs, "params/%s/bias", layers[i][1]);
            list_add_same(x, &l, ours, theirs);
        }
        ok = npz_write(file, l.at, l.n, e);
    }
    if (ok && c->act != ACT_GELU_TANH)
        export_note(
            x, "Google's programs compute gelu_tanh, timm erf GELU: the file does not say which");
    list_free(&l);
    return ok;
}
