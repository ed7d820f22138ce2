/* hub.c - what lies beside weights as people download them. See hub.h.
 *
 * timm's config.json: {"architecture", "num_classes", "global_pool", "pretrained_cfg": {"mean",
 * "std", "crop_pct", "interpolation", "crop_mode", "input_size": [3, H, W]}, "model_args": {...},
 * "label_names"}. transformers': {"hidden_size", "num_hidden_layers", "num_attention_heads",
 * "intermediate_size", "patch_size", "image_size", "hidden_act", "layer_norm_eps", "id2label",
 * "label2id"}, and its preprocessor_config.json: {"image_processor_type", "image_mean",
 * "image_std", "do_normalize", "rescale_factor", "do_rescale", "size", "crop_size",
 * "do_center_crop", "resample"} (Pillow's number), which is "image_processor" in
 * processor_config.json where there is a tokenizer too; open_clip's is open_clip_config.json. Files
 * are untrusted: a value of another type or range is unknown.
 *
 * Read in this order: values, files, the model, its images, open_clip, all files, timm's args,
 * labels.
 */
#include "weights/hub.h"

#include "util/files.h"
#include "util/text.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- values ---- */

static const cJSON *get(const cJSON *object, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(object, key);
}

static const char *get_text(const cJSON *object, const char *key)
{
    const char *text = cJSON_GetStringValue(get(object, key));
    return text ? text : "";
}

/* A number from 1 to 2^24, else 0. */
static int count_of(const cJSON *item)
{
    double d = cJSON_IsNumber(item) ? item->valuedouble : 0;
    return d >= 1 && d <= 1 << 24 ? (int)d : 0;
}

/* A side, or [height, width], or [3, height, width]. */
static void read_sides(const cJSON *item, int *h, int *w)
{
    int n = cJSON_GetArraySize(item);
    if (cJSON_IsNumber(item))
        *h = *w = count_of(item);
    if (cJSON_IsArray(item) && (n == 2 || n == 3)) {
        *h = count_of(cJSON_GetArrayItem(item, n - 2));
        *w = count_of(cJSON_GetArrayItem(item, n - 1));
    }
}

/* Three numbers, or one for all; deviations must not be 0. */
static bool read_colour(const cJSON *item, bool deviation, double out[3])
{
    double read[3];
    for (int i = 0; i < 3; i++) {
        const cJSON *x = cJSON_GetArraySize(item) == 3 ? cJSON_GetArrayItem(item, i) : item;
        if (!cJSON_IsNumber(x) || !(x->valuedouble >= 0 && x->valuedouble <= 1e6) ||
            (deviation && x->valuedouble < 1e-6))
            return false;
        read[i] = x->valuedouble;
    }
    memcpy(out, read, sizeof read);
    return true;
}

static void read_normalisation(const cJSON *mean, const cJSON *std, Hub *h)
{
    double m[3], s[3];
    if (!read_colour(mean, false, m) || !read_colour(std, true, s))
        return;
    memcpy(h->mean, m, sizeof m);
    memcpy(h->std, s, sizeof s);
    h->has_mean = true;
}

static void cannot(Hub *h, const char *key, const char *value)
{
    size_t at = strlen(h->unknown);
    snprintf(h->unknown + at, sizeof h->unknown - at, "%s%s = %.30s", at ? ", " : "", key, value);
}

static void read_filter(const char *name, Hub *h)
{
    if (strcmp(name, "bilinear") == 0)
        h->interpolation = 0;
    else if (strcmp(name, "bicubic") == 0)
        h->interpolation = 1;
    else if (*name)
        cannot(h, "interpolation", name);
}

/* ---- files ---- */

enum { MAX_JSON = 16 << 20 };
static const char file_hint[] = "download it again, or move the weights to a folder of their own";

static char *beside(const char *path, const char *name)
{
    const char *slash = strrchr(path, '/');
    return xasprintf("%.*s%s", slash ? (int)(slash - path) + 1 : 0, path, name);
}

/* NULL where there is none, or it is damaged: then with an error. */
static cJSON *read_json(const char *path, const char *name, bool *ok, Error *e)
{
    char *file = beside(path, name), *text = NULL;
    cJSON *json = NULL;
    *ok = true;
    if (path_exists(file)) {
        text = read_text(file, MAX_JSON, e);
        json = text ? cJSON_Parse(text) : NULL;
        *ok = cJSON_IsObject(json) ||
              (text ? fail(e, file_hint, "%s: is no JSON object", file) : false);
    }
    if (!*ok) {
        cJSON_Delete(json);
        json = NULL;
    }
    free(text);
    free(file);
    return json;
}

static void read_from(Hub *h, const char *name)
{
    size_t at = strlen(h->from);
    snprintf(h->from + at, sizeof h->from - at, "%s%s", at ? ", " : "", name);
}

/* ---- the model ---- */

static const struct {
    const char *name;
    int act;
} activations[] = {{"gelu", ACT_GELU},
                   {"gelu_python", ACT_GELU},
                   {"gelu_new", ACT_GELU_TANH},
                   {"gelu_tanh", ACT_GELU_TANH},
                   {"gelu_fast", ACT_GELU_TANH},
                   {"gelu_pytorch_tanh", ACT_GELU_TANH},
                   {"quick_gelu", ACT_QUICK_GELU},
                   {"quickgelu", ACT_QUICK_GELU},
                   {"silu", ACT_SWIGLU},
                   {"swish", ACT_SWIGLU}}; /* of a gate, else refused */

/* from: "config.json beside it" */
static bool read_activation(const char *path, const char *from, const char *name, Hub *h, Error *e)
{
    int i = 0;
    while (*name && i < COUNT(activations) && strcmp(activations[i].name, name) != 0)
        i++;
    if (*name && i == COUNT(activations))
        return fail(e, "take weights that were trained with GELU (erf, tanh, quick) or SwiGLU",
                    "%s: %s: the activation is %.50s", path, from, name);
    if (*name)
        h->act = activations[i].act;
    return true;
}

/* What timm's architectures have that no tensor and no key of config.json shows, by a part of their
 * names. The first that fits counts. */
static const struct {
    const char *part;
    int act;
    const char *refused;
} habits[] = {{"quickgelu", ACT_QUICK_GELU, NULL},
              {"rope", ACT_NONE, "rotary positions"},
              {"dinov3", ACT_NONE, "rotary positions"},
              {"vit_pe_", ACT_NONE, "rotary positions"},
              {"lingbot", ACT_NONE, "rotary positions"},
              {"eva02_enormous", ACT_NONE, "norms behind attention and MLP"},
              {"eva02", ACT_NONE, "rotary positions"},
              {"_rpn_", ACT_NONE, "norms behind attention and MLP"},
              {"vit_base_patch32_siglip", ACT_GELU_TANH, NULL},
              {"vit_large_patch16_siglip_512", ACT_GELU_TANH, NULL},
              {"vit_large_patch16_siglip_gap_512", ACT_GELU_TANH, NULL},
              {"vit_giantopt_patch16_siglip", ACT_GELU_TANH, NULL},
              {"vit_so400m_patch16_siglip", ACT_GELU_TANH, NULL},
              {"", ACT_GELU, NULL}};

/* Those whose heads are not 64 wide, nor as those of a preset. */
static const struct {
    const char *part;
    int width;
} heads[] = {{"so400m", 72},
             {"giantopt", 96},
             {"gigantic", 104},
             {"vit_giant_patch16_gap", 88},
             {"vit_base_patch16_gap", 48},
             {"test_vit", 32}};

static bool read_architecture(const char *path, const char *from, const char *name, Hub *h,
                              Error *e)
{
    int i = 0;
    while (!strstr(name, habits[i].part))
        i++;
    h->timm = *name != 0;
    if (h->timm)
        h->act = habits[i].act;
    for (int k = 0; k < COUNT(heads); k++)
        if (strstr(name, heads[k].part))
            h->head_width = heads[k].width;
    return !habits[i].refused || fail(e, "take weights of a plain ViT, with learned positions",
                                      "%s: %s says %.60s: %s", path, from, name, habits[i].refused);
}

/* What transformers' configurations leave out is as their classes have it: a part of model_type,
 * its activation and eps. */
static void read_kind(const char *model_type, Hub *h)
{
    static const struct {
        const char *part;
        int act;
        double eps;
    } kinds[] = {{"siglip", ACT_GELU_TANH, 1e-6}, {"clip", ACT_QUICK_GELU, 1e-5},
                 {"dinov2", ACT_GELU, 1e-6},      {"vit_msn", ACT_GELU, 1e-6},
                 {"vit", ACT_GELU, 1e-12},        {"deit", ACT_GELU, 1e-12}};
    for (int i = 0; i < COUNT(kinds); i++)
        if (strstr(model_type, kinds[i].part)) {
            h->act = kinds[i].act;
            h->eps = kinds[i].eps;
            return;
        }
}

static bool read_pool(const char *path, const char *from, const char *pool, Hub *h, Error *e)
{
    if (strcmp(pool, "avg") == 0)
        h->pool = POOL_GAP;
    if (strcmp(pool, "token") == 0 || strcmp(pool, "tok") == 0)
        h->pool = POOL_CLS;
    if (strcmp(pool, "map") == 0)
        h->pool = POOL_MAP;
    return (strncmp(pool, "avgmax", 6) != 0 && strcmp(pool, "max") != 0) ||
           fail(e, "take weights of a model that pools by a class token, a mean or attention",
                "%s: %s: global_pool = %.20s", path, from, pool);
}

/* The image part of a larger model of transformers'. */
static const cJSON *tower_in(const cJSON *json)
{
    static const char *const keys[] = {"vision_config", "encoder", "backbone_config"};
    const cJSON *tower = NULL;
    for (int i = 0; i < COUNT(keys) && !cJSON_IsObject(tower); i++)
        tower = get(json, keys[i]);
    return cJSON_IsObject(tower) ? tower : NULL;
}

/* transformers' keys, at the top, or those of an image tower; timm's model_args
 * have some of the same meaning. */
static bool read_model(const char *path, const char *from, const cJSON *json, Hub *h, Error *e)
{
    const cJSON *whole = json, *tower = tower_in(json), *args = get(json, "model_args");
    read_kind(get_text(json, "model_type"), h);
    if (tower)
        json = tower;
    read_kind(get_text(json, "model_type"), h);
    const cJSON *eps = get(json, "layer_norm_eps");
    const char *pool = get_text(get(args, "global_pool") ? args : json, "global_pool");
    const struct {
        int *to;
        const cJSON *in;
        const char *key;
    } counts[] = {{&h->width, json, "hidden_size"},
                  {&h->layers, json, "num_hidden_layers"},
                  {&h->heads, json, "num_attention_heads"},
                  {&h->mlp, json, "intermediate_size"},
                  {&h->patch, json, "patch_size"},
                  {&h->width, args, "embed_dim"},
                  {&h->layers, args, "depth"},
                  {&h->heads, args, "num_heads"},
                  {&h->patch, args, "patch_size"}};
    for (int i = 0; i < COUNT(counts); i++) {
        int n = count_of(get(counts[i].in, counts[i].key));
        if (n)
            *counts[i].to = n;
    }
    h->several = strcmp(get_text(whole, "problem_type"), "multi_label_classification") == 0;
    read_sides(get(json, "image_size"), &h->image_h, &h->image_w);
    read_sides(get(get(json, "pretrained_cfg"), "input_size"), &h->image_h, &h->image_w);
    read_sides(get(args, "img_size"), &h->image_h, &h->image_w);
    if (cJSON_IsNumber(eps) && eps->valuedouble >= 0 && eps->valuedouble <= 1)
        h->eps = eps->valuedouble;
    h->pools_all = cJSON_IsTrue(get(args, "pool_include_prefix"));
    if (!read_pool(path, from, pool, h, e) ||
        !read_architecture(path, from, get_text(json, "architecture"), h, e) ||
        !read_activation(path, from, get_text(args, "act_layer"), h, e))
        return false;
    return read_activation(path, from, get_text(json, "hidden_act"), h, e);
}

/* ---- its images ---- */

/* Both sides to those of the crop / share, whatever the picture's shape. */
static void set_square(Hub *h, double share)
{
    h->crop = share < 1 ? 2 : 1;
    h->crop_pct = share;
}

/* timm's pretrained_cfg, or args of the same names */
static void read_timm_images(const cJSON *cfg, Hub *h)
{
    const cJSON *crop = get(cfg, "crop_pct");
    const char *mode = get_text(cfg, "crop_mode");
    read_normalisation(get(cfg, "mean"), get(cfg, "std"), h);
    read_filter(get_text(cfg, "interpolation"), h);
    if (cJSON_IsNumber(crop) && crop->valuedouble > 0 && crop->valuedouble <= 1)
        h->crop_pct = crop->valuedouble;
    if (*mode)
        h->crop = 0;
    if (strcmp(mode, "squash") == 0)
        set_square(h, h->crop_pct > 0 ? h->crop_pct : 0.875);
    if (strcmp(mode, "border") == 0)
        cannot(h, "crop_mode", mode);
}

/* transformers' pixels are bytes times rescale_factor before the mean is taken, ours are bytes /
 * 255: (255 f x - mean) / std = (x - mean / 255 f) / (std / 255 f). */
static void read_rescale(const cJSON *json, Hub *h)
{
    const cJSON *factor = get(json, "rescale_factor");
    double scale = 1;
    if (cJSON_IsFalse(get(json, "do_rescale")))
        scale = 255;
    else if (cJSON_IsNumber(factor) && factor->valuedouble > 0)
        scale = 255 * factor->valuedouble;
    for (int i = 0; h->has_mean && fabs(scale - 1) > 1e-6 && i < 3; i++) {
        h->mean[i] /= scale;
        h->std[i] /= scale;
    }
}

/* What transformers' image processors do where their files are silent, by a part of their names;
 * files from before 4.0 have no name, and belong to the model_type. Old files have one number for
 * `size`: both sides of a square, or the shorter one. */
typedef struct {
    const char *type, *model;
    int interpolation; /* -1: unknown */
    bool crops, shorter;
} Processor;

static const Processor *processor_of(const cJSON *json, const char *model)
{
    static const Processor all[] = {{"CLIP", "clip", 1, true, true},
                                    {"Bit", "dinov2", 1, true, true},
                                    {"DeiT", "deit", 1, true, false},
                                    {"Siglip", "siglip", 1, false, false},
                                    {"ConvN", "convnext", -1, false, true},
                                    {"ViT", "vit", 0, false, false},
                                    {"", "", -1, false, false}};
    const char *type = get_text(json, "image_processor_type");
    int i = 0;
    if (!*type)
        type = get_text(json, "feature_extractor_type");
    while (!strstr(*type ? type : model, *type ? all[i].type : all[i].model))
        i++;
    return &all[i];
}

/* To `edge`, and of that the middle of `side` pixels; without a crop everything. Where the picture
 * becomes a square, its shape is lost. */
static void read_geometry(const cJSON *json, const Processor *p, Hub *h)
{
    const cJSON *size = get(json, "size"), *crop = get(json, "crop_size");
    const cJSON *middle = get(json, "do_center_crop"), *share = get(json, "crop_pct");
    bool number = cJSON_IsNumber(size);
    bool crops = cJSON_IsBool(middle) ? cJSON_IsTrue(middle) : p->crops;
    int edge = count_of(number ? size : get(size, "shortest_edge"));
    int side = count_of(cJSON_IsNumber(crop) ? crop : get(crop, "height"));
    bool shorter = number ? p->shorter : edge > 0;
    if (!edge)
        edge = count_of(get(size, "height"));
    if (!edge)
        return;
    if (!crops || !side)
        side = edge;
    if (side > edge) { /* with black around it */
        cannot(h, "crop_size", "more than size");
        return;
    }
    set_square(h, (double)side / edge);
    if (shorter)
        h->crop = 0;
    if (cJSON_IsNumber(share) && share->valuedouble > 0 && share->valuedouble <= 1) {
        h->crop = 0;
        h->crop_pct = share->valuedouble;
    }
}

static void read_processor(const cJSON *json, const char *model, Hub *h)
{
    const Processor *p = processor_of(json, model);
    const cJSON *resample = get(json, "resample");
    read_normalisation(get(json, "image_mean"), get(json, "image_std"), h);
    if (cJSON_IsFalse(get(json, "do_normalize"))) {
        static const double none[3] = {0, 0, 0}, one[3] = {1, 1, 1};
        memcpy(h->mean, none, sizeof none);
        memcpy(h->std, one, sizeof one);
        h->has_mean = true;
    }
    read_rescale(json, h);
    static const char *const filters[] = {"nearest", "lanczos", "bilinear",
                                          "bicubic", "box",     "hamming"};
    if (cJSON_IsNumber(resample) && resample->valuedouble >= 0 && resample->valuedouble < 6)
        read_filter(filters[(int)resample->valuedouble], h);
    else if (!resample && p->interpolation >= 0)
        h->interpolation = p->interpolation;
    read_geometry(json, p, h);
}

/* ---- open_clip ---- */

/* {"model_cfg": {"quick_gelu", "vision_cfg": {"image_size", "layers", "width", "head_width",
 * "patch_size", "pool_type", "final_ln_after_pool", "act_kwargs", "norm_kwargs"}}}, or one of
 * timm's architectures in place of all these: {"timm_model_name", "timm_pool"}. */
static bool read_tower(const char *path, const cJSON *model, Hub *h, Error *e)
{
    static const char from[] = "open_clip_config.json beside it";
    const cJSON *tower = get(model, "vision_cfg"), *eps = get(get(tower, "norm_kwargs"), "eps");
    const char *timm = get_text(tower, "timm_model_name"), *pool = get_text(tower, "pool_type");
    read_sides(get(tower, "image_size"), &h->image_h, &h->image_w);
    if (*timm)
        return read_pool(path, from, get_text(tower, "timm_pool"), h, e) &&
               read_architecture(path, from, timm, h, e);
    int width = count_of(get(tower, "width")), head = count_of(get(tower, "head_width"));
    h->width = width;
    h->layers = count_of(get(tower, "layers"));
    h->patch = count_of(get(tower, "patch_size"));
    h->heads = width / (head ? head : 64);
    h->eps = cJSON_IsNumber(eps) && eps->valuedouble >= 0 && eps->valuedouble <= 1
                 ? eps->valuedouble
                 : 1e-5;
    h->act = ACT_GELU;
    if (cJSON_IsTrue(get(model, "quick_gelu")))
        h->act = ACT_QUICK_GELU;
    else if (strcmp(get_text(get(tower, "act_kwargs"), "approximate"), "tanh") == 0)
        h->act = ACT_GELU_TANH;
    if (strcmp(pool, "avg") == 0 && cJSON_IsTrue(get(tower, "final_ln_after_pool")))
        return fail(e, "take weights of a model whose last norm comes before its pooling",
                    "%s: %s: final_ln_after_pool", path, from);
    return read_pool(path, from, pool, h, e);
}

/* {"mean", "std", "interpolation", "resize_mode"}: the shorter side to the image's size and the
 * middle of that, unless it says otherwise. */
static void read_clip_images(const cJSON *json, Hub *h)
{
    const char *mode = get_text(json, "resize_mode");
    read_normalisation(get(json, "mean"), get(json, "std"), h);
    h->interpolation = 1;
    read_filter(get_text(json, "interpolation"), h);
    set_square(h, 1);
    if (strcmp(mode, "squash") != 0)
        h->crop = 0;
    if (strcmp(mode, "longest") == 0)
        cannot(h, "resize_mode", mode);
}

/* ---- all files ---- */

bool hub_read(const char *path, Hub *h, Error *e)
{
    *h = (Hub){.eps = -1, .pool = -1, .interpolation = -1, .crop = -1};
    bool ok, fine = true;
    char model[32] = "";
    cJSON *json = read_json(path, "config.json", &ok, e);
    if (json) {
        read_from(h, "config.json");
        snprintf(model, sizeof model, "%s", get_text(json, "model_type"));
        fine = read_model(path, "config.json beside it", json, h, e);
        read_timm_images(get(json, "pretrained_cfg"), h);
    }
    cJSON_Delete(json);
    if (!ok || !fine)
        return false;
    json = *h->from ? NULL : read_json(path, "open_clip_config.json", &ok, e);
    if (json) {
        read_from(h, "open_clip_config.json");
        fine = read_tower(path, get(json, "model_cfg"), h, e);
        read_clip_images(get(json, "preprocess_cfg"), h);
    }
    cJSON_Delete(json);
    if (!ok || !fine)
        return false;
    static const char *const files[] = {"preprocessor_config.json", "processor_config.json"};
    for (int i = 0; ok && i < COUNT(files); i++) {
        json = read_json(path, files[i], &ok, e);
        const cJSON *images = i == 0 ? json : get(json, "image_processor");
        if (images) {
            read_from(h, files[i]);
            read_processor(images, model, h);
        }
        cJSON_Delete(json);
        if (images)
            break;
    }
    return ok;
}

/* ---- timm's args ---- */

/* What timm's plain architectures have, as pretrained_cfg of their first weights: vit_ and deit_ of
 * 224 and 384 pixels, without a dot and the name of other weights. */
static void read_timm_default(const char *name, Hub *h)
{
    static const double imagenet[2][3] = {{0.485, 0.456, 0.406}, {0.229, 0.224, 0.225}};
    char family[8], size[12];
    int patch, pixels, end = 0;
    if (sscanf(name, "%7[a-z3]_%11[a-z]_patch%d_%d%n", family, size, &patch, &pixels, &end) != 4 &&
        sscanf(name, "%7[a-z3]_%11[a-z]_distilled_patch%d_%d%n", family, size, &patch, &pixels,
               &end) != 4)
        return;
    bool vit = strcmp(family, "vit") == 0, deit = strncmp(family, "deit", 4) == 0;
    if (name[end] || !(vit || deit) || (pixels != 224 && pixels != 384))
        return;
    bool half = vit && strcmp(name, "vit_small_patch8_224") != 0;
    for (int i = 0; i < 3 && !h->has_mean; i++) {
        h->mean[i] = half ? 0.5 : imagenet[0][i];
        h->std[i] = half ? 0.5 : imagenet[1][i];
    }
    h->has_mean = true;
    if (h->crop_pct <= 0)
        h->crop_pct = pixels == 384 ? 1 : 0.9;
    h->crop = h->crop < 0 ? 0 : h->crop;
    h->interpolation = h->interpolation < 0 ? 1 : h->interpolation;
}

/* Three numbers, or one that stands for three. */
static bool read_timm_colour(const cJSON *item, bool deviation, double out[3])
{
    cJSON *three = cJSON_Duplicate(item, true);
    for (int i = 0; cJSON_GetArraySize(item) == 1 && i < 2; i++)
        cJSON_AddItemToArray(three, cJSON_Duplicate(item->child, true));
    bool ok = read_colour(three, deviation, out);
    cJSON_Delete(three);
    return ok;
}

bool hub_args(const char *path, const char *args, Hub *h, Error *e)
{
    cJSON *json = cJSON_Parse(args);
    const cJSON *images = get(json, "pretrained_cfg"), *side = get(images, "img_size");
    char from[sizeof h->from];
    bool ok = read_model(path, "its timm args", json, h, e);
    read_sides(side, &h->image_h, &h->image_w);
    read_timm_default(get_text(json, "architecture"), h);
    read_timm_images(images, h);
    bool mean = read_timm_colour(get(images, "mean"), false, h->mean);
    bool std = read_timm_colour(get(images, "std"), true, h->std);
    h->has_mean |= mean && std;
    snprintf(from, sizeof from, "%s", h->from);
    snprintf(h->from, sizeof h->from, "its timm args%s%.200s", *from ? ", " : "", from);
    cJSON_Delete(json);
    return ok;
}

/* ---- labels ---- */

/* One entry of {"0": "cat", "1": "dog"} or ["cat", "dog"], or of label2id, {"cat": 0, "dog": 1}. */
typedef struct {
    const char *text;
    double id; /* -1: none */
} Label;

static Label label_of(const cJSON *entry, int i, bool by_name)
{
    char *end = NULL;
    Label l = {by_name ? entry->string : cJSON_GetStringValue(entry), i};
    if (by_name)
        l.id = cJSON_IsNumber(entry) ? entry->valuedouble : -1;
    else if (entry->string)
        l.id = (double)strtol(entry->string, &end, 10);
    if (end && (end == entry->string || *end))
        l.id = -1;
    return l;
}

/* Whether anybody named a class: transformers fills in LABEL_7 where nobody named class 7. */
static bool is_named(const cJSON *labels, bool by_name)
{
    const cJSON *entry;
    cJSON_ArrayForEach(entry, labels)
    {
        const char *text = label_of(entry, 0, by_name).text;
        if (text && strncmp(text, "LABEL_", 6) != 0)
            return true;
    }
    return false;
}

/* Each class once, onto `out`. */
static bool read_labels(const cJSON *labels, const char *key, int K, Names *out, Error *e)
{
    const char *hint = "give --classes the file with the model's classes, in order";
    const cJSON *entry;
    bool by_name = strcmp(key, "label2id") == 0;
    int n = cJSON_GetArraySize(labels), i = 0, k = 0;
    if (n != K)
        return fail(e, hint, "config.json: %s names %s, the head has %d", key, amount(n, "class").s,
                    K);
    *out = (Names){xcalloc((size_t)K, sizeof *out->at), K};
    cJSON_ArrayForEach(entry, labels)
    {
        Label l = label_of(entry, i++, by_name);
        if (l.text && l.id >= 0 && l.id < K && !out->at[(int)l.id])
            out->at[(int)l.id] = xstrdup(l.text);
    }
    for (; k < K && out->at[k]; k++)
        for (char *c = out->at[k]; *c; c++)
            *c = (unsigned char)*c < ' ' || *c == 0x7f ? '?' : *c;
    return k == K ||
           fail(e, hint, "config.json: %s does not name class %d (of 0 to %d)", key, k, K - 1);
}

bool hub_labels(const char *path, int K, Names *out, Error *e)
{
    static const char *const keys[] = {"id2label", "label_names", "label2id"};
    bool ok, all = false;
    cJSON *json = read_json(path, "config.json", &ok, NULL);
    if (e)
        *e = (Error){"", ""};
    for (int i = 0; !all && i < COUNT(keys); i++) {
        const cJSON *labels = get(json, keys[i]);
        bool said = e && *e->what;
        if (!is_named(labels, strcmp(keys[i], "label2id") == 0))
            continue;
        all = read_labels(labels, keys[i], K, out, said ? NULL : e);
        if (!all)
            names_free(out);
    }
    cJSON_Delete(json);
    return all;
}
