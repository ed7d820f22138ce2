/* config.c - the model's settings: presets, text in and out, what is impossible.
 *
 * The settings themselves stand once, in VIT_CONFIG of config.h; flags, recipe files, checkpoints
 * and messages all go through the functions here.
 */
#include "model/config.h"

#include <math.h>
#include <string.h>

const ConfigField vit_config_fields[] = {
#define X(type, field, flag, value, allowed, help)                                                 \
    {T_##type, #field, flag, value, allowed, help, offsetof(Config, field)},
    VIT_CONFIG(X)
#undef X
};
const int vit_config_count = COUNT(vit_config_fields);

Config vit_config_default(void)
{
    Config c;
    fields_default(vit_config_fields, vit_config_count, &c);
    return c;
}

const ConfigField *vit_config_find(const char *name)
{
    return field_find(vit_config_fields, vit_config_count, name);
}

bool vit_config_set(Config *c, const char *name, const char *value, Error *e)
{
    const ConfigField *f = vit_config_find(name);
    if (!f)
        return fail(e, "--help lists all settings", "no setting is called '%s'", name);
    return field_set(f, c, value, "", name, NULL, e);
}

void vit_config_get(const Config *c, const ConfigField *f, char *out, size_t size)
{
    field_text(f, c, out, size);
}

/* ---- presets ---- */

/* Dosovitskiy et al. 2021 and Zhai et al. 2022; the last is the 10-billion model of FSDP, which
 * takes the mean of its patches in place of a class token. */
static const struct {
    const char *name;
    int width, layers, heads, mlp, patch;
    bool mean_pooled;
} presets[] = {
    {"Ti/16", 192, 12, 3, 768, 16, false},   {"S/16", 384, 12, 6, 1536, 16, false},
    {"B/16", 768, 12, 12, 3072, 16, false},  {"B/32", 768, 12, 12, 3072, 32, false},
    {"L/16", 1024, 24, 16, 4096, 16, false}, {"H/16", 1280, 32, 16, 5120, 16, false},
    {"H/14", 1280, 32, 16, 5120, 14, false}, {"g/14", 1408, 40, 16, 6144, 14, false},
    {"G/14", 1664, 48, 16, 8192, 14, false}, {"10B/14", 5120, 32, 32, 20480, 14, true},
};
const char *const vit_preset_names[] = {"Ti/16", "S/16", "B/16", "B/32",   "L/16", "H/16",
                                        "H/14",  "g/14", "G/14", "10B/14", NULL};

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
        if (presets[i].mean_pooled) {
            c->pool = POOL_GAP;
            c->cls_tokens = 0;
            c->eps = 1e-5;
        }
        return true;
    }
    return false;
}

/* ---- what is impossible ---- */

static bool out_of_range(Error *e, const char *what, const char *value, const char *range)
{
    return fail(e, "see --help for what it means", "%s = %s is outside %s", what, value, range);
}

/* First each setting by itself, so that nothing below divides by zero or overflows. */
bool vit_config_check(const Config *c, Error *e)
{
    char value[64], range[64];
    for (int i = 0; i < vit_config_count; i++) {
        const ConfigField *f = &vit_config_fields[i];
        field_text(f, c, value, sizeof value);
        if (!field_in_range(f, c))
            return out_of_range(e, f->flag, value, f->allowed);
    }
    snprintf(value, sizeof value, "%d", c->heads);
    snprintf(range, sizeof range, "1..%d", c->width);
    if (c->heads < 1 || c->heads > c->width)
        return out_of_range(e, "heads", value, range);
    if (c->image_h % c->patch || c->image_w % c->patch)
        return fail(e, "choose an --image-size that is a multiple of --patch-size",
                    "an image of %dx%d pixels does not divide into patches of %dx%d", c->image_h,
                    c->image_w, c->patch, c->patch);
    if (c->width % c->heads)
        return fail(e, "choose --heads so that it divides --width",
                    "%d heads do not divide a width of %d", c->heads, c->width);
    if (fmax(c->mean_r, fmax(c->mean_g, c->mean_b)) > 1)
        return fail(e, "divide means and deviations of pixels in 0..255 by 255",
                    "a mean of %g, %g, %g, where pixels are in 0..1", c->mean_r, c->mean_g,
                    c->mean_b);
    static const int needs[] = {[POOL_CLS] = 1, [POOL_CLS_DIST] = 2, [POOL_CLS_GAP] = 1};
    const ConfigField *pool = vit_config_find("pool");
    field_text(pool, c, value, sizeof value);
    if (c->pool < COUNT(needs) && c->cls_tokens < needs[c->pool]) {
        snprintf(range, sizeof range, "use --pool gap, or --cls-tokens %d", needs[c->pool]);
        return fail(e, range, "pool = %s needs %d class token%s, but cls-tokens = %d", value,
                    needs[c->pool], needs[c->pool] > 1 ? "s" : "", c->cls_tokens);
    }
    if (c->fc_norm && c->pool != POOL_GAP)
        return fail(e, "use --pool gap, or leave out --fc-norm",
                    "fc-norm = true with pool = %s: only a mean is normalised as a whole", value);
    if (c->act == ACT_SWIGLU && c->pool == POOL_MAP)
        return fail(e, "choose another --act or --pool",
                    "act = swiglu with pool = map: the MLP behind that pooling has no gate");
    long tokens = c->cls_tokens + (long)(c->image_h / c->patch) * (c->image_w / c->patch);
    snprintf(value, sizeof value, "%ld", tokens);
    if (tokens > 1 << 20)
        return out_of_range(e, "tokens per image", value, "1..1048576");
    return true;
}

double vit_forward_flops(const Config *c)
{
    double T = vit_tokens(c), C = c->width, F = c->mlp, L = c->layers;
    double linear = 2 * T * L * (4 * C * C + C * F + C * vit_hidden(c));
    double patch = 2.0 * vit_patches(c) * VIT_CHANNELS * c->patch * c->patch * C;
    double features = vit_features(c), head = 2 * features * c->classes;
    if (c->representation)
        head = 2.0 * c->representation * (features + c->classes);
    if (c->pool == POOL_MAP) /* keys and values of all tokens; the rest is one token's */
        head += 2 * (2 * T + 2) * C * C + 4 * T * C + 4 * C * F;
    return linear + patch + head + 4 * T * T * C * L;
}
