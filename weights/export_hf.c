/* export_hf.c - a model's weights as transformers has them. See export_hf.h.
 *
 * Read in this order: which of its classes, config.json, its images, tensors.
 */
#include "weights/export_hf.h"

#include "util/files.h"
#include "weights/export_list.h"
#include "weights/names.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- which of its classes ---- */

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
    const StTensor *t = st_find(x->f, name);
    long n = t ? t->n : 0;
    real *v = n ? export_values(x, name) : NULL;
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

/* ---- config.json ---- */

static void add_labels(const Export *x, cJSON *json)
{
    cJSON *names = cJSON_AddObjectToObject(json, "id2label");
    cJSON *numbers = cJSON_AddObjectToObject(json, "label2id");
    for (int k = 0; k < x->c->classes; k++) {
        char number[24], key[16];
        const char *name = export_label(x, k, number);
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
    cJSON_AddItemToObject(model, "image_size", export_sides(c));
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

/* ---- its images ---- */

/* Images as evaluation here prepares them. */
static cJSON *hf_processor(const Export *x)
{
    const Config *c = x->c;
    cJSON *json = cJSON_CreateObject(), *whole = cJSON_CreateObject();
    static const char *const types[] = {"CLIPImageProcessor", "ViTImageProcessor",
                                        "DeiTImageProcessor"};
    bool stretch = x->crop == 1;
    int side = c->image_h < c->image_w ? c->image_h : c->image_w;
    cJSON_AddStringToObject(json, "image_processor_type", types[x->crop]);
    cJSON_AddNumberToObject(whole, "height", c->image_h);
    cJSON_AddNumberToObject(whole, "width", c->image_w);
    cJSON_AddBoolToObject(json, "do_resize", true);
    cJSON_AddNumberToObject(json, "resample", x->interpolation == 0 ? 2 : 3); /* Pillow's */
    if (stretch) {
        cJSON_AddItemToObject(json, "size", whole);
    } else {
        cJSON *size = cJSON_AddObjectToObject(json, "size");
        const struct {
            const char *key;
            int side;
        } keys[] = {{x->crop ? "height" : "shortest_edge", x->crop ? c->image_h : side},
                    {"width", c->image_w}};
        for (int i = 0; i < (x->crop ? 2 : 1); i++)
            cJSON_AddNumberToObject(size, keys[i].key, floor(keys[i].side / x->crop_pct + 1e-4));
        cJSON_AddItemToObject(json, "crop_size", whole);
    }
    cJSON_AddBoolToObject(json, "do_center_crop", !stretch);
    cJSON_AddBoolToObject(json, "do_convert_rgb", true);
    cJSON_AddBoolToObject(json, "do_rescale", true);
    cJSON_AddNumberToObject(json, "rescale_factor", 1.0 / 255);
    cJSON_AddBoolToObject(json, "do_normalize", true);
    cJSON_AddItemToObject(json, "image_mean", export_mean(c));
    cJSON_AddItemToObject(json, "image_std", export_std(c));
    return json;
}

/* ---- tensors ---- */

/* Registers have no positions there, and take ours with them. */
static void hf_embedding(const Export *x, List *l, int kind, const char *prefix)
{
    const Config *c = x->c;
    int C = c->width, N = c->cls_tokens, T = vit_tokens(c);
    char name[NAME_SIZE];
    bool fold = kind == HF_CLIP && c->patch_bias; /* its patch embedding has no bias */
    real *pos = export_positions(x, fold);
#define AT(what) (snprintf(name, sizeof name, "%sembeddings.%s", prefix, what), name)
    if (kind == HF_REGISTERS) {
        real *tokens = export_values(x, "cls_token"),
             *kept = xmalloc((size_t)(T * C) * sizeof *kept);
        for (long i = C; i < (long)N * C; i++)
            tokens[i] += pos[i];
        memcpy(kept, pos, (size_t)C * sizeof *kept);
        memcpy(kept + C, pos + (long)N * C, (size_t)(T - N) * (size_t)C * sizeof *kept);
        list_add(l, AT("cls_token"), list_copy(tokens, C), 3, (const int[]){1, 1, C});
        list_add(l, AT("register_tokens"), list_copy(tokens + C, (long)(N - 1) * C), 3,
                 (const int[]){1, N - 1, C});
        list_add(l, AT("position_embeddings"), kept, 3, (const int[]){1, 1 + T - N, C});
        free(tokens);
        free(pos);
    } else if (kind == HF_CLIP || kind == HF_SIGLIP) {
        if (N)
            list_add(l, AT("class_embedding"), export_values(x, "cls_token"), 1, &C);
        list_add(l, AT("position_embedding.weight"), pos, 2, (const int[]){T, C});
    } else {
        list_add_tokens(x, l, AT("cls_token"), 0, 1);
        if (kind == HF_DEIT)
            list_add_tokens(x, l, AT("distillation_token"), 1, 1);
        list_add(l, AT("position_embeddings"), pos, 3, (const int[]){1, T, C});
    }
    if (kind == HF_DINOV2 || kind == HF_REGISTERS)
        list_add(l, AT("mask_token"), list_zeros(C), 2, (const int[]){1, C});
    if (kind == HF_SIGLIP)
        list_add_zero_bias(x, l, AT("patch_embedding.bias"));
    else if (kind != HF_CLIP)
        list_add_zero_bias(x, l, AT("patch_embeddings.projection.bias"));
#undef AT
}

/* Layer scale that the model does without is one. */
static void hf_scales(const Export *x, List *l, const char *prefix)
{
    int C = x->c->width;
    for (int i = 0; i < 2 * x->c->layers && !x->c->layer_scale; i++) {
        char name[NAME_SIZE];
        real *ones = list_zeros(C);
        for (int k = 0; k < C; k++)
            ones[k] = 1;
        snprintf(name, sizeof name, "%sencoder.layer.%d.layer_scale%d.lambda1", prefix, i / 2,
                 1 + i % 2);
        list_add(l, name, ones, 1, &C);
    }
}

/* The query that SigLIP learns has q, k and v in one. */
static void hf_attention_pool(const Export *x, List *l, const char *prefix)
{
    int C = x->c->width;
    for (int bias = 0; bias < 2; bias++) {
        char name[NAME_SIZE];
        real *q = export_values(x, bias ? "attn_pool.q.bias" : "attn_pool.q.weight");
        real *kv = export_values(x, bias ? "attn_pool.kv.bias" : "attn_pool.kv.weight");
        size_t n = (size_t)C * (bias ? 1 : (size_t)C);
        real *all = xmalloc(3 * n * sizeof *all);
        memcpy(all, q, n * sizeof *all);
        memcpy(all + n, kv, 2 * n * sizeof *all);
        snprintf(name, sizeof name, "%shead.attention.in_proj_%s", prefix,
                 bias ? "bias" : "weight");
        list_add(l, name, all, 2 - bias, (const int[]){3 * C, C});
        free(q);
        free(kv);
    }
}

/* DINOv2's classifier reads the class token and the mean: of a head without the mean, zeros. */
static void hf_head(const Export *x, List *l, int kind)
{
    int C = x->c->width, K = x->c->classes;
    real *w = export_values(x, "head.weight");
    if (kind == HF_CLIP) {
        list_add(l, "visual_projection.weight", w, 2, (const int[]){K, C});
        return;
    }
    int D = kind == HF_DINOV2 || kind == HF_REGISTERS ? 2 * C : C;
    if (D > vit_features(x->c)) {
        real *wide = list_zeros((long)K * D);
        for (long i = 0; i < (long)K * C; i++)
            wide[i / C * D + i % C] = w[i];
        free(w);
        w = wide;
    }
    list_add(l, "classifier.weight", w, 2, (const int[]){K, D});
    list_add(l, "classifier.bias", export_values(x, "head.bias"), 1, &K);
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
    if (!list_add_by_table(x, l, table, prefix, e))
        return false;
    hf_embedding(x, l, kind, prefix);
    if (table == names_dinov2 || table == names_dinov2_gated)
        hf_scales(x, l, prefix);
    if (c->pool == POOL_MAP)
        hf_attention_pool(x, l, prefix);
    if (c->classes && kind == HF_DEIT)
        list_add_two_heads(x, l, "cls_classifier", "distillation_classifier");
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
    bool ok = hf_tensors(x, &l, kind, e) && list_write(&l, dir, e) &&
              export_json(hf_config(x, kind), dir, "config.json", e) &&
              export_json(hf_processor(x), dir, "preprocessor_config.json", e);
    export_note(x, "it is a %s", x->c->classes ? kinds[kind].with_head : kinds[kind].without);
    if (x->crop == 0 && x->c->image_h != x->c->image_w)
        export_note(x,
                    "its processor cannot crop %d x %d pixels as here (it looks at the shorter "
                    "side alone): resize pictures before, or train with --crop stretch",
                    x->c->image_h, x->c->image_w);
    list_free(&l);
    return ok;
}
