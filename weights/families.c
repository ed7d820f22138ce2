/* families.c - names of other programs, as tables. See families.h.
 *
 * Read in this order: families, what is left out or refused.
 */
#include "weights/families.h"

#include "util/util.h"

#include <string.h>

/* ---- families ---- */

#define BOTH(ours, theirs)                    \
    {ours ".weight", theirs ".weight", 0, 0}, \
    {                                         \
        ours ".bias", theirs ".bias", 0, 0    \
    }
#define PIECE(ours, theirs, slot)                \
    {ours ".weight", theirs ".weight", slot, 0}, \
    {                                            \
        ours ".bias", theirs ".bias", slot, 0    \
    }

/* clang-format off */
static const Name timm[] = {
    {"cls_token", "cls_token", 0, TOKENS},
    {"cls_token", "dist_token", 1, TOKENS},
    {"cls_token", "reg_token", 2, TOKENS},
    {"cls_token", "register_tokens", 2, TOKENS}, /* DINOv2 */
    {"pos_embed", "pos_embed", 0, TOKENS},
    BOTH("patch_embed.proj", "patch_embed.proj"),
    BOTH("norm_pre", "norm_pre"),
    BOTH("blocks.#.norm1", "blocks.#.norm1"),
    BOTH("blocks.#.attn.qkv", "blocks.#.attn.qkv"),
    {"blocks.#.attn.qkv.bias", "blocks.#.attn.q_bias", 0, 0}, /* EVA: keys have none */
    {"blocks.#.attn.qkv.bias", "blocks.#.attn.v_bias", 2, 0},
    BOTH("blocks.#.attn.proj", "blocks.#.attn.proj"),
    BOTH("blocks.#.attn.q_norm", "blocks.#.attn.q_norm"),
    BOTH("blocks.#.attn.k_norm", "blocks.#.attn.k_norm"),
    {"blocks.#.ls1.gamma", "blocks.#.ls1.gamma", 0, 0},
    {"blocks.#.ls1.gamma", "blocks.#.gamma_1", 0, 0}, /* DeiT III, BEiT */
    BOTH("blocks.#.norm2", "blocks.#.norm2"),
    BOTH("blocks.#.mlp.fc1", "blocks.#.mlp.fc1"),
    BOTH("blocks.#.mlp.fc2", "blocks.#.mlp.fc2"),
    PIECE("blocks.#.mlp.fc1", "blocks.#.mlp.fc1_g", 0), /* SwiGLU: the gate, then the value */
    PIECE("blocks.#.mlp.fc1", "blocks.#.mlp.fc1_x", 1),
    BOTH("blocks.#.mlp.fc1", "blocks.#.mlp.w12"), /* DINOv2 */
    PIECE("blocks.#.mlp.fc1", "blocks.#.mlp.w1", 0),
    PIECE("blocks.#.mlp.fc1", "blocks.#.mlp.w2", 1),
    BOTH("blocks.#.mlp.fc2", "blocks.#.mlp.w3"),
    {"blocks.#.ls2.gamma", "blocks.#.ls2.gamma", 0, 0},
    {"blocks.#.ls2.gamma", "blocks.#.gamma_2", 0, 0},
    BOTH("norm", "norm"),
    {"attn_pool.latent", "attn_pool.latent", 0, TOKENS},
    BOTH("attn_pool.q", "attn_pool.q"),
    BOTH("attn_pool.kv", "attn_pool.kv"),
    BOTH("attn_pool.proj", "attn_pool.proj"),
    BOTH("attn_pool.norm", "attn_pool.norm"),
    BOTH("attn_pool.mlp.fc1", "attn_pool.mlp.fc1"),
    BOTH("attn_pool.mlp.fc2", "attn_pool.mlp.fc2"),
    BOTH("fc_norm", "fc_norm"),
    BOTH("pre_logits.fc", "pre_logits.fc"),
    BOTH("head", "head"),
    BOTH("head", "head.proj"), /* open_clip's, beside a trunk of timm's */
    BOTH(SECOND_HEAD, "head_dist"),
    {0}};

/* ViT, DeiT, ViT-MAE, ViT-MSN; and DINOv2, where blocks differ. */
#define PATCHES BOTH("patch_embed.proj", "embeddings.patch_embeddings.projection")
#define ATTENTION(their)                                                 \
    PIECE("blocks.#.attn.qkv", their "attention.attention.query", 0),    \
    PIECE("blocks.#.attn.qkv", their "attention.attention.key", 1),      \
    PIECE("blocks.#.attn.qkv", their "attention.attention.value", 2),    \
    BOTH("blocks.#.attn.proj", their "attention.output.dense")
#define VIT(their)                                                       \
    BOTH("blocks.#.norm1", their "layernorm_before"),                    \
    BOTH("blocks.#.norm2", their "layernorm_after"),                     \
    BOTH("blocks.#.mlp.fc1", their "intermediate.dense"),                \
    BOTH("blocks.#.mlp.fc2", their "output.dense")
#define DINOV2(their)                                                    \
    BOTH("blocks.#.norm1", their "norm1"),                               \
    {"blocks.#.ls1.gamma", their "layer_scale1.lambda1", 0, 0},          \
    BOTH("blocks.#.norm2", their "norm2"),                               \
    {"blocks.#.ls2.gamma", their "layer_scale2.lambda1", 0, 0}
#define PLAIN(their)                                                     \
    BOTH("blocks.#.mlp.fc1", their "mlp.fc1"),                           \
    BOTH("blocks.#.mlp.fc2", their "mlp.fc2")
#define GATED(their)                                                     \
    BOTH("blocks.#.mlp.fc1", their "mlp.weights_in"),                    \
    BOTH("blocks.#.mlp.fc2", their "mlp.weights_out")
#define LAYER "encoder.layer.#."
#define LAYER5 "layers.#." /* state_dict() since version 5, which files do not have */
static const Name transformers[] = {
    {"cls_token", "embeddings.cls_token", 0, TOKENS},
    {"cls_token", "embeddings.distillation_token", 1, TOKENS},
    {"cls_token", "embeddings.register_tokens", 2, TOKENS},
    {"pos_embed", "embeddings.position_embeddings", 0, TOKENS},
    PATCHES,
    ATTENTION(LAYER), VIT(LAYER), DINOV2(LAYER), PLAIN(LAYER), GATED(LAYER),
    ATTENTION(LAYER5), VIT(LAYER5), DINOV2(LAYER5), PLAIN(LAYER5), GATED(LAYER5),
    PIECE("blocks.#.attn.qkv", LAYER5 "attention.q_proj", 0),
    PIECE("blocks.#.attn.qkv", LAYER5 "attention.k_proj", 1),
    PIECE("blocks.#.attn.qkv", LAYER5 "attention.v_proj", 2),
    BOTH("blocks.#.attn.proj", LAYER5 "attention.o_proj"),
    BOTH("norm", "layernorm"),
    BOTH("head", "classifier"),
    BOTH("head", "cls_classifier"),
    BOTH(SECOND_HEAD, "distillation_classifier"),
    {0}};
const Name names_vit[] = {PATCHES, ATTENTION(LAYER), VIT(LAYER), BOTH("norm", "layernorm"), {0}};
const Name names_dinov2[] = {PATCHES, ATTENTION(LAYER), DINOV2(LAYER), PLAIN(LAYER),
                             BOTH("norm", "layernorm"), {0}};
const Name names_dinov2_gated[] = {PATCHES, ATTENTION(LAYER), DINOV2(LAYER), GATED(LAYER),
                                   BOTH("norm", "layernorm"), {0}};

/* The image towers of CLIP and SigLIP. */
const Name names_towers[] = {
    {"cls_token", "embeddings.class_embedding", 0, TOKENS},
    {"pos_embed", "embeddings.position_embedding.weight", 0, TOKENS},
    BOTH("patch_embed.proj", "embeddings.patch_embedding"),
    BOTH("norm_pre", "pre_layrnorm"),
    BOTH("blocks.#.norm1", "encoder.layers.#.layer_norm1"),
    PIECE("blocks.#.attn.qkv", "encoder.layers.#.self_attn.q_proj", 0),
    PIECE("blocks.#.attn.qkv", "encoder.layers.#.self_attn.k_proj", 1),
    PIECE("blocks.#.attn.qkv", "encoder.layers.#.self_attn.v_proj", 2),
    BOTH("blocks.#.attn.proj", "encoder.layers.#.self_attn.out_proj"),
    BOTH("blocks.#.norm2", "encoder.layers.#.layer_norm2"),
    BOTH("blocks.#.mlp.fc1", "encoder.layers.#.mlp.fc1"),
    BOTH("blocks.#.mlp.fc2", "encoder.layers.#.mlp.fc2"),
    BOTH("norm", "post_layernorm"),
    {"attn_pool.latent", "head.probe", 0, TOKENS},
    {"attn_pool.q.weight", "head.attention.in_proj_weight", 0, FIRST_THIRD},
    {"attn_pool.q.bias", "head.attention.in_proj_bias", 0, FIRST_THIRD},
    {"attn_pool.kv.weight", "head.attention.in_proj_weight", 0, LAST_THIRDS},
    {"attn_pool.kv.bias", "head.attention.in_proj_bias", 0, LAST_THIRDS},
    BOTH("attn_pool.proj", "head.attention.out_proj"),
    BOTH("attn_pool.norm", "head.layernorm"),
    BOTH("attn_pool.mlp.fc1", "head.mlp.fc1"),
    BOTH("attn_pool.mlp.fc2", "head.mlp.fc2"),
    BOTH("head", "visual_projection"),
    BOTH("head", "classifier"),
    {0}};

/* The image tower of OpenAI's CLIP and of open_clip. */
#define RESBLOCK "transformer.resblocks.#."
static const Name openai[] = {
    {"cls_token", "class_embedding", 0, TOKENS},
    {"pos_embed", "positional_embedding", 0, TOKENS},
    BOTH("patch_embed.proj", "conv1"),
    BOTH("norm_pre", "ln_pre"),
    BOTH("blocks.#.norm1", RESBLOCK "ln_1"),
    {"blocks.#.attn.qkv.weight", RESBLOCK "attn.in_proj_weight", 0, 0},
    {"blocks.#.attn.qkv.bias", RESBLOCK "attn.in_proj_bias", 0, 0},
    BOTH("blocks.#.attn.proj", RESBLOCK "attn.out_proj"),
    {"blocks.#.ls1.gamma", RESBLOCK "ls_1.gamma", 0, 0},
    BOTH("blocks.#.norm2", RESBLOCK "ln_2"),
    BOTH("blocks.#.mlp.fc1", RESBLOCK "mlp.c_fc"),
    BOTH("blocks.#.mlp.fc2", RESBLOCK "mlp.c_proj"),
    {"blocks.#.ls2.gamma", RESBLOCK "ls_2.gamma", 0, 0},
    BOTH("norm", "ln_post"),
    {"head.weight", "proj", 0, KERNEL},
    {0}};

static const Name torchvision[] = {
    {"cls_token", "class_token", 0, TOKENS},
    {"pos_embed", "encoder.pos_embedding", 0, TOKENS},
    BOTH("patch_embed.proj", "conv_proj"),
    BOTH("blocks.#.norm1", "encoder.layers.encoder_layer_#.ln_1"),
    {"blocks.#.attn.qkv.weight", "encoder.layers.encoder_layer_#.self_attention.in_proj_weight",
     0, 0},
    {"blocks.#.attn.qkv.bias", "encoder.layers.encoder_layer_#.self_attention.in_proj_bias", 0, 0},
    BOTH("blocks.#.attn.proj", "encoder.layers.encoder_layer_#.self_attention.out_proj"),
    BOTH("blocks.#.norm2", "encoder.layers.encoder_layer_#.ln_2"),
    BOTH("blocks.#.mlp.fc1", "encoder.layers.encoder_layer_#.mlp.0"),
    BOTH("blocks.#.mlp.fc1", "encoder.layers.encoder_layer_#.mlp.linear_1"),
    BOTH("blocks.#.mlp.fc2", "encoder.layers.encoder_layer_#.mlp.3"),
    BOTH("blocks.#.mlp.fc2", "encoder.layers.encoder_layer_#.mlp.linear_2"),
    BOTH("norm", "encoder.ln"),
    BOTH("pre_logits.fc", "heads.pre_logits"),
    BOTH("head", "heads.head"),
    BOTH("head", "heads.0"),
    {0}};

static const Name mmpretrain[] = {
    {"cls_token", "cls_token", 0, TOKENS},
    {"cls_token", "dist_token", 1, TOKENS},
    {"pos_embed", "pos_embed", 0, TOKENS},
    BOTH("patch_embed.proj", "patch_embed.projection"),
    BOTH("norm_pre", "pre_norm"),
    BOTH("blocks.#.norm1", "layers.#.ln1"),
    BOTH("blocks.#.attn.qkv", "layers.#.attn.qkv"),
    BOTH("blocks.#.attn.proj", "layers.#.attn.proj"),
    {"blocks.#.ls1.gamma", "layers.#.attn.gamma1.weight", 0, 0},
    BOTH("blocks.#.norm2", "layers.#.ln2"),
    BOTH("blocks.#.mlp.fc1", "layers.#.ffn.layers.0.0"),
    BOTH("blocks.#.mlp.fc2", "layers.#.ffn.layers.1"),
    {"blocks.#.ls2.gamma", "layers.#.ffn.gamma2.weight", 0, 0},
    BOTH("norm", "ln1"),
    BOTH("pre_logits.fc", "head.layers.pre_logits"),
    BOTH("head", "head.layers.head"),
    BOTH(SECOND_HEAD, "head.layers.head_dist"),
    BOTH("head", "head.fc"),
    {0}};

/* Google's, in two numberings: one count of all layers in a block, or one for each kind of them. */
#define DENSE(ours, theirs) QKV(ours, theirs, 0)
#define NORM(ours, theirs)      {ours ".weight", theirs "/scale", 0, 0}, \
                                {ours ".bias", theirs "/bias", 0, 0}
#define OLD "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"
#define NEW "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"
#define QKV(ours, theirs, slot) {ours ".weight", theirs "/kernel", slot, KERNEL}, \
                                {ours ".bias", theirs "/bias", slot, FLAT}
#define BLOCK(at, names) BLOCK_OF(at, names)
#define BLOCK_OF(at, attention, norm2, mlp)                                                  \
    NORM("blocks.#.norm1", at "LayerNorm_0"),                                               \
    QKV("blocks.#.attn.qkv", at attention "/query", 0),                                     \
    QKV("blocks.#.attn.qkv", at attention "/key", 1),                                       \
    QKV("blocks.#.attn.qkv", at attention "/value", 2),                                     \
    {"blocks.#.attn.proj.weight", at attention "/out/kernel", 0, OUT_KERNEL},               \
    {"blocks.#.attn.proj.bias", at attention "/out/bias", 0, 0},                            \
    NORM("blocks.#.norm2", at norm2),                                                       \
    DENSE("blocks.#.mlp.fc1", at mlp "/Dense_0"),                                           \
    DENSE("blocks.#.mlp.fc2", at mlp "/Dense_1")
#define MAP_ATTENTION "MAPHead_0/MultiHeadDotProductAttention_0"
#define OUTSIDE                                                                             \
    {"patch_embed.proj.weight", "embedding/kernel", 0, CONV},                               \
    {"patch_embed.proj.bias", "embedding/bias", 0, 0},                                      \
    NORM("norm", "Transformer/encoder_norm"),                                               \
    {"attn_pool.latent", "MAPHead_0/probe", 0, TOKENS},                                     \
    DENSE("attn_pool.q", MAP_ATTENTION "/query"),                                           \
    QKV("attn_pool.kv", MAP_ATTENTION "/key", 0),                                           \
    QKV("attn_pool.kv", MAP_ATTENTION "/value", 1),                                         \
    {"attn_pool.proj.weight", MAP_ATTENTION "/out/kernel", 0, OUT_KERNEL},                  \
    {"attn_pool.proj.bias", MAP_ATTENTION "/out/bias", 0, 0},                               \
    NORM("attn_pool.norm", "MAPHead_0/LayerNorm_0"),                                        \
    DENSE("attn_pool.mlp.fc1", "MAPHead_0/MlpBlock_0/Dense_0"),                             \
    DENSE("attn_pool.mlp.fc2", "MAPHead_0/MlpBlock_0/Dense_1"),                             \
    DENSE("pre_logits.fc", "pre_logits"),                                                   \
    DENSE("head", "head"),                                                                  \
    {"cls_token", "cls", 0, TOKENS}
static const Name google[] = {
    OUTSIDE,
    {"pos_embed", "Transformer/posembed_input/pos_embedding", 0, TOKENS},
    {"pos_embed", "pos_embedding", 0, TOKENS},
    BLOCK("Transformer/encoderblock_#/", OLD),
    BLOCK("Transformer/encoderblock_#/", NEW),
    BLOCK("**Transformer/encoderblock/", NEW),
    {0}};
const Name names_google[] = {
    OUTSIDE,
    BLOCK("Transformer/encoderblock_#/", NEW),
    {0}};
/* clang-format on */

const Family families[] = {
    {"timm's", "patch_embed.proj.weight", timm},
    {"transformers'", "embeddings.patch_embeddings.projection.weight", transformers},
    {"transformers' CLIP and SigLIP", "embeddings.patch_embedding.weight", names_towers},
    {"open_clip's", "ln_pre.weight", openai},
    {"torchvision's", "conv_proj.weight", torchvision},
    {"mmpretrain's", "patch_embed.projection.weight", mmpretrain},
    {"Google's", "embedding/kernel", google}};
const int family_count = COUNT(families);

/* ---- what is left out or refused ---- */

/* Parts of names under the prefix, and what they are. */
typedef struct {
    const char *part, *what;
} Known;

static const Known refused[] = {
    {"attn_pool.", "attention pooling of another kind than SigLIP's"},
    {"gate_proj.", "a gated MLP of another kind than SwiGLU"},
    {"relative_position", "relative positions (as BEiT)"},
    {"rel_pos", "relative positions (as BEiT)"},
    {"rope", "rotary positions"},
    {"freqs", "rotary positions"},
    {"lora_", "adapters that are not merged into the model (merge_and_unload())"},
    {"base_layer.", "adapters that are not merged into the model (merge_and_unload())"},
    {"attn.norm.", "norms inside attention"},
    {"inner_attn_ln", "norms inside attention"},
    {"mlp.norm.", "norms inside the MLP"},
    {"mlp.ffn_ln.", "norms inside the MLP"},
    {"ffn_layernorm", "norms inside the MLP"},
    {".attns.", "parallel branches"},
    {"attn_out_proj.", "attention and MLP side by side"},
    {"in_norm.", "attention and MLP side by side"},
    {"attn.lambda_k", "differential attention"},
    {"lambda_1", "a BEiT, data2vec or InternVL"},
    {"detection_tokens", "a detector (YOLOS)"},
    {".ffns.", "parallel branches"},
    {"blocks_token_only.", "class attention (CaiT)"},
    {"layers.0.blocks.", "a hierarchy of resolutions (as Swin)"},
    {"patch_embed.backbone.", "a hybrid with a convolutional stem"},
    {"patch_embed.norm.", "a norm in the patch embedding"},
    {"patch_embeddings.backbone.", "a hybrid with a convolutional stem"},
    {"conv_root", "a hybrid with a ResNet"},
    {"pos_block", "positions by convolutions"},
    {"downsample.", "a hierarchy of resolutions (as Swin)"},
};

static const Known left_out[] = {
    {"mask_token", "a mask token"},
    {"masked_embed", "a mask token"},
    {"pooler.", "the pooler"},
    {"decoder", "a decoder"},
    {"position_ids", "position numbers"},
    {"head.", "a head of another kind"},
    {"heads.", "a head of another kind"},
    {"head/", "a head of another kind"},
};

/* What else a file of tensors may be: a part of a name that no other kind of model has. */
static const Known others[] = {
    {"convnext", "a ConvNeXt"},
    {"local_mp.", "an XCiT"},
    {"_flat_param", "flat parameters of FSDP (save a FULL_STATE_DICT)"},
    {"layers.0.blocks.0.attn.", "a Swin Transformer"},
    {"transformer.resblocks.", "a text tower, or one of CLIP's without a norm before its blocks"},
    {"text_model.", "the text tower of a CLIP or SigLIP model"},
    {"embeds.proj.", "a NaFlexViT of timm's"},
    {"embeddings.patch_embeddings.weight", "a DINOv3, with rotary positions"},
    {"to_patch_embedding.", "vit-pytorch's"},
    {"stages.0.", "a ConvNeXt or another convolutional network"},
    {"layer1.0.conv1.", "a ResNet"},
    {"features.0.", "a convolutional network"},
    {"conv_stem.", "an EfficientNet or another convolutional network"},
    {"exp_avg", "the state of an optimiser"},
    {"self_attn.k_proj.", "a language model"},
    {"word_embeddings.", "a language model"},
};

static const char *find_known(const Known *list, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (strstr(name, list[i].part))
            return list[i].what;
    return NULL;
}

const char *family_refused(const char *name)
{
    return find_known(refused, COUNT(refused), name);
}

const char *family_left_out(const char *name)
{
    return find_known(left_out, COUNT(left_out), name);
}

const char *family_other(const char *name)
{
    return find_known(others, COUNT(others), name);
}
