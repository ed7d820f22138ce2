/* config.c - the model's settings as a table: presets, text in and out, what is impossible.
 *
 * The settings themselves stand once, in VIT_CONFIG of vit.h; flags, recipe files, checkpoints and
 * messages all go through the functions here.
 */
#include "vit.h"
#include "util/text.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FIELD_TYPE_int    T_INT
#define FIELD_TYPE_double T_DOUBLE
#define FIELD_TYPE_bool   T_BOOL
#define FIELD_TYPE_word   T_WORD
const ConfigField vit_config_fields[] = {
#define X(type, field, flag, value, help) \
    {#field, flag, help, FIELD_TYPE_##type, offsetof(Config, field)},
    VIT_CONFIG(X)
#undef X
};
const int vit_config_count = COUNT(vit_config_fields);

/* Names of the enums, in the order of their values; ACT_NONE has no name that a user can give. */
static const struct {
    const char *field;
    int first;
    const char *names;
} vit_word_table[] = {
    {"pool", POOL_CLS, "cls|gap"},
    {"act", ACT_GELU, "gelu|gelu_tanh"},
    {"loss", LOSS_SOFTMAX, "softmax|sigmoid"},
};

static int word_row(const char *field)
{
    for (int i = 0; i < COUNT(vit_word_table); i++)
        if (strcmp(vit_word_table[i].field, field) == 0)
            return i;
    return -1;
}

const char *vit_words(const char *field)
{
    int i = word_row(field);
    return i < 0 ? NULL : vit_word_table[i].names;
}

static const struct {
    const char *name;
    int width, layers, heads, mlp, patch;
} presets[] = {
    {"Ti/16", 192, 12, 3, 768, 16},   {"S/16", 384, 12, 6, 1536, 16},
    {"B/16", 768, 12, 12, 3072, 16},  {"B/32", 768, 12, 12, 3072, 32},
    {"L/16", 1024, 24, 16, 4096, 16}, {"H/16", 1280, 32, 16, 5120, 16},
    {"H/14", 1280, 32, 16, 5120, 14}, {"g/14", 1408, 40, 16, 6144, 14},
    {"G/14", 1664, 48, 16, 8192, 14}, {"10B/14", 5120, 32, 32, 20480, 14},
};
const char *const vit_preset_names[] = {"Ti/16", "S/16", "B/16", "B/32",   "L/16", "H/16",
                                        "H/14",  "g/14", "G/14", "10B/14", NULL};

Config vit_config_default(void)
{
    Config c;
#define X(type, field, flag, value, help) c.field = value;
    VIT_CONFIG(X)
#undef X
    return c;
}

bool vit_preset(const char *name, Config *c)
{
    for (int i = 0; i < COUNT(presets); i++) {
        if (strcmp(presets[i].name, name) != 0)
            continue;
        c->width = presets[i].width;
        c->layers = presets[i].layers;
        c->heads = presets[i].heads;
        c->mlp = presets[i].mlp;
        c->patch = presets[i].patch;
        if (strncmp(name, "10B", 3) ==
            0) { /* the FSDP model: mean pooling, looser norms in blocks */
            c->pool = POOL_GAP;
            c->cls_tokens = 0;
            c->eps = 1e-5;
        }
        return true;
    }
    return false;
}

/* ---- text in and out ---- */

const ConfigField *vit_config_find(const char *name)
{
    for (int i = 0; i < vit_config_count; i++)
        if (same_name(vit_config_fields[i].name, name) ||
            same_name(vit_config_fields[i].flag, name))
            return &vit_config_fields[i];
    return NULL;
}

bool vit_config_set(Config *c, const char *name, const char *value, Error *e)
{
    const ConfigField *f = vit_config_find(name);
    if (!f)
        return fail(e, "--help lists all settings", "no setting is called '%s'", name);
    void *p = (char *)c + f->offset;
    char *end;
    if (f->type == T_INT) {
        long v = strtol(value, &end, 10);
        if (!*value || *end || v < -1000000000 || v > 1000000000)
            return fail(e, "give a whole number", "%s: '%s' is not a whole number", name, value);
        *(int *)p = (int)v;
    } else if (f->type == T_DOUBLE) {
        double v = strtod(value, &end);
        if (!*value || *end || !isfinite(v))
            return fail(e, "give a number such as 0.1", "%s: '%s' is not a number", name, value);
        *(double *)p = v;
    } else if (f->type == T_BOOL) {
        int found = find_bool(value);
        if (found < 0)
            return fail(e, "give true or false", "%s: '%s' is neither true nor false", name, value);
        *(bool *)p = found;
    } else {
        int row = word_row(f->name), k = find_word(vit_word_table[row].names, value);
        if (k < 0)
            return fail(e, "choose one of the words above", "%s: '%s' is none of %s", name, value,
                        vit_word_table[row].names);
        *(word *)p = vit_word_table[row].first + k;
    }
    return true;
}

void vit_config_get(const Config *c, const ConfigField *f, char *out, size_t size)
{
    const void *p = (const char *)c + f->offset;
    if (f->type == T_INT)
        snprintf(out, size, "%d", *(const int *)p);
    else if (f->type == T_DOUBLE)
        double_text(*(const double *)p, out, size);
    else if (f->type == T_BOOL)
        snprintf(out, size, "%s", *(const bool *)p ? "true" : "false");
    else {
        int row = word_row(f->name);
        word_text(vit_word_table[row].names, *(const word *)p - vit_word_table[row].first, out,
                      size);
    }
}

/* ---- what is impossible ---- */

static bool check_range(Error *e, const char *name, long v, long lo, long hi)
{
    if (v >= lo && v <= hi)
        return true;
    return fail(e, "see --help for what it means", "%s = %ld is outside %ld..%ld", name, v, lo, hi);
}

bool vit_config_check(const Config *c, Error *e)
{
    if (!check_range(e, "patch-size", c->patch, 1, 1024) ||
        !check_range(e, "image-height", c->image_h, 1, 65536) ||
        !check_range(e, "image-width", c->image_w, 1, 65536) ||
        !check_range(e, "width", c->width, 1, 65536) ||
        !check_range(e, "layers", c->layers, 1, 1000) ||
        !check_range(e, "heads", c->heads, 1, c->width) ||
        !check_range(e, "mlp", c->mlp, 1, 1 << 20) ||
        !check_range(e, "num-classes", c->classes, 1, 1 << 24) ||
        !check_range(e, "cls-tokens", c->cls_tokens, 0, 4096) ||
        !check_range(e, "representation", c->representation, 0, 1 << 20))
        return false;
    if (c->image_h % c->patch || c->image_w % c->patch)
        return fail(e, "choose an --image-size that is a multiple of --patch-size",
                    "an image of %dx%d pixels does not divide into patches of %dx%d", c->image_h,
                    c->image_w, c->patch, c->patch);
    if (c->width % c->heads)
        return fail(e, "choose --heads so that it divides --width",
                    "%d heads do not divide a width of %d", c->heads, c->width);
    if (c->pool == POOL_CLS && c->cls_tokens == 0)
        return fail(e, "use --pool gap, or --cls-tokens 1",
                    "pool = cls needs a class token, but cls-tokens = 0");
    long tokens = vit_tokens(c);
    if (!check_range(e, "tokens per image", tokens, 1, 1 << 20))
        return false;
    const struct {
        const char *name;
        double v, lo, hi;
    } reals[] = {{"eps", c->eps, 0, 1},
                 {"eps-final", c->eps_final, 0, 1},
                 {"dropout", c->dropout, 0, 0.999},
                 {"attention-dropout", c->attention_dropout, 0, 0.999},
                 {"drop-path", c->drop_path, 0, 0.999},
                 {"std-r", c->std_r, 1e-6, 1e6},
                 {"std-g", c->std_g, 1e-6, 1e6},
                 {"std-b", c->std_b, 1e-6, 1e6}};
    for (int i = 0; i < COUNT(reals); i++)
        if (!(reals[i].v >= reals[i].lo && reals[i].v <= reals[i].hi))
            return fail(e, "see --help for what it means", "%s = %g is outside %g..%g",
                        reals[i].name, reals[i].v, reals[i].lo, reals[i].hi);
    return true;
}

double vit_forward_flops(const Config *c)
{
    double T = vit_tokens(c), C = c->width, F = c->mlp, L = c->layers;
    double linear = 2 * T * L * (4 * C * C + 2 * C * F);
    double patch = 2.0 * vit_patches(c) * VIT_CHANNELS * c->patch * c->patch * C;
    double head = 2 * C * c->classes;
    if (c->representation)
        head = 2.0 * c->representation * (C + c->classes);
    return linear + patch + head + 4 * T * T * C * L;
}
