/* config.h - what a Vision Transformer is made of (Dosovitskiy et al. 2021, and variants).
 *
 * Names of the field:  B images  T tokens per image  C width  H heads  hs head size (C = H*hs)
 * F width of the MLP  L blocks  K classes  P side of a patch  Np patches (T = class tokens + Np).
 */
#pragma once

#include "util/field.h"

#define VIT_CHANNELS 3

enum { POOL_CLS, POOL_GAP, POOL_MAP, POOL_CLS_DIST, POOL_CLS_GAP };
enum { ACT_NONE, ACT_GELU, ACT_GELU_TANH, ACT_QUICK_GELU, ACT_SWIGLU, ACT_TANH };
enum { LOSS_SOFTMAX, LOSS_SIGMOID };

/* A row per setting: C type, field, flag, default, what is allowed (as in field.h), what it means.
 * The field's name is the key in a checkpoint's metadata; a word's names are in the order of its
 * enum, and no user can choose ACT_NONE. */

/* clang-format off */
#define VIT_CONFIG(X)                                                                             \
    X(int,    image_h, "image-height", "224", "1..65536", "image height in pixels")               \
    X(int,    image_w, "image-width", "224", "1..65536", "image width in pixels")                 \
    X(int,    patch, "patch-size", "16", "1..1024", "side of a square patch in pixels")           \
    X(int,    width, "width", "768", "1..65536", "C, width of the residual stream")               \
    X(int,    layers, "layers", "12", "1..1000", "L, number of blocks")                           \
    X(int,    heads, "heads", "12", "", "H, attention heads; must divide C")                      \
    X(int,    mlp, "mlp", "3072", "1..1048576", "F, hidden width of the MLP")                     \
    X(int,    classes, "num-classes", "1000", "1..16777216", "K, outputs of the head")            \
    X(word,   pool, "pool", "cls", "cls|gap|map|cls_dist|cls_gap",                                \
      "cls: token 0 after the final norm; gap: mean of the patch tokens after it; map: what a "   \
      "learned query finds in all tokens (SigLIP); cls_dist: tokens 0 and 1 side by side (DeiT's "\
      "two heads); cls_gap: token 0 beside the mean (DINOv2's classifier)")                       \
    X(bool,   fc_norm, "fc-norm", "false", "", "the final norm after pooling instead of before")  \
    X(int,    cls_tokens, "cls-tokens", "1", "0..4096",                                           \
      "class tokens in front of the patches (0, 1, 8, ...)")                                      \
    X(bool,   patch_bias, "patch-bias", "true", "", "bias in the patch embedding")                \
    X(int,    representation, "representation", "0", "0..1048576",                                \
      "width of a linear+tanh layer before the head; 0: none")                                    \
    X(word,   act, "act", "gelu", "|gelu|gelu_tanh|quick_gelu|swiglu",                            \
      "of the MLP: gelu (erf), gelu_tanh, quick_gelu (CLIP's x sigmoid(1.702 x)), or swiglu "     \
      "(DINOv2 giant: fc1 is 2F wide, its first half gates the second)")                          \
    X(bool,   qk_norm, "qk-norm", "false", "", "norms of each head's queries and keys")           \
    X(double, eps, "eps", "1e-06", "0..1", "epsilon of the norms in the blocks")                  \
    X(double, eps_final, "eps-final", "1e-06", "0..1", "epsilon of the final norm")               \
    X(bool,   layer_scale, "layer-scale", "false", "", "learned scale per channel on each branch")\
    X(bool,   norm_pre, "norm-pre", "false", "", "a norm after the embedding, as in CLIP")        \
    X(word,   loss, "loss", "softmax", "softmax|sigmoid", "softmax or sigmoid cross-entropy")     \
    X(double, dropout, "dropout", "0", "0..0.999",                                                \
      "after the embedding, attention projection, GELU and fc2")                                  \
    X(double, attention_dropout, "attention-dropout", "0", "0..0.999",                            \
      "on the attention probabilities")                                                           \
    X(double, drop_path, "drop-path", "0", "0..0.999",                                            \
      "stochastic depth, rising linearly over the blocks from 0")                                 \
    X(double, mean_r, "mean-r", "0.485", "", "normalisation mean, red, of pixels in 0..1")        \
    X(double, mean_g, "mean-g", "0.456", "", "normalisation mean, green")                         \
    X(double, mean_b, "mean-b", "0.406", "", "normalisation mean, blue")                          \
    X(double, std_r, "std-r", "0.229", "1e-06..1e+06", "normalisation standard deviation, red")   \
    X(double, std_g, "std-g", "0.224", "1e-06..1e+06", "normalisation standard deviation, green") \
    X(double, std_b, "std-b", "0.225", "1e-06..1e+06", "normalisation standard deviation, blue")
/* clang-format on */

typedef struct {
#define X(type, field, ...) type field;
    VIT_CONFIG(X)
#undef X
} Config;

typedef Field ConfigField; /* with its offset in Config */
extern const ConfigField vit_config_fields[];
extern const int vit_config_count;

Config vit_config_default(void);              /* ViT-B/16 at 224 */
bool vit_preset(const char *name, Config *c); /* "B/16" sets dimensions; false: unknown */
extern const char *const vit_preset_names[];  /* NULL-terminated */
const ConfigField *vit_config_find(const char *name); /* by field or flag; NULL: no such setting */
/* By field or flag, `-` and `_` alike; errors name it as given. */
bool vit_config_set(Config *c, const char *name, const char *value, Error *e);
void vit_config_get(const Config *c, const ConfigField *f, char *out, size_t size); /* as text */
bool vit_config_check(const Config *c, Error *e); /* impossible shapes, out-of-range values */

static inline int vit_patches(const Config *c)
{
    return (c->image_h / c->patch) * (c->image_w / c->patch);
}
static inline int vit_tokens(const Config *c)
{
    return c->cls_tokens + vit_patches(c);
}
/* What fc1 makes: F, or a gate and a value of F each. */
static inline int vit_hidden(const Config *c)
{
    return c->act == ACT_SWIGLU ? 2 * c->mlp : c->mlp;
}
/* What the head, or the representation layer before it, reads: C, or two such side by side. */
static inline int vit_features(const Config *c)
{
    return c->pool >= POOL_CLS_DIST ? 2 * c->width : c->width;
}
/* Floating-point operations of one image's forward pass, multiply-add = 2: the linear layers, the
 * patch embedding, the head, and 4*T*T*C per block for attention. Training counts three times
 * this. */
double vit_forward_flops(const Config *c);
