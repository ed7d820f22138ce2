/* vit.h - the manual: configuration, parameters, backend interface, model API.
 *
 * Read in this order:
 *   1. Config       what a Vision Transformer is made of (Dosovitskiy et al. 2021, and variants)
 *   2. Parameters   every tensor, once: name, shape, initialiser, position in the model
 *   3. Backend      the operations a device must offer: formula, shapes, what is overwritten
 *   4. Model        memory plan and the calls that train.c makes
 *
 * config.c implements 1, vit.c 2 and 4 over 3, and backend_cpu.c 3 in plain C.
 *
 * Names of the field:  B images  T tokens per image  C width  H heads  hs head size (C = H*hs)
 * F width of the MLP  L blocks  K classes  P side of a patch  Np patches (T = class tokens + Np).
 * dx is the gradient of x. Matrices are row-major; a linear layer's weight is [out, in].
 */
#ifndef VIT_H
#define VIT_H

#include "util/rng.h"
#include "util/util.h"

/* The number of everything that is stored at full precision: master weights, gradients, optimiser
 * state, statistics, and whatever the oracle computes. float in the programs, double in the builds
 * that check gradients (make compiles everything twice, the second time with -DREAL=double). */
#ifndef REAL
#define REAL float
#endif
typedef REAL real;

#define VIT_CHANNELS 3

/* ------------------------------------------------------------------------------------------------
 * 1. Config
 * One line per setting: C type, field, flag, default, what it means. The field's name is the key
 * in a checkpoint's metadata; a word type is an enum whose names stand in the table vit_words. */

enum { POOL_CLS, POOL_GAP };
enum { ACT_NONE, ACT_GELU, ACT_GELU_TANH, ACT_TANH };
enum { LOSS_SOFTMAX, LOSS_SIGMOID };

/* clang-format off */
#define VIT_CONFIG(X)                                                                             \
    X(int,    image_h,           "image-height",      224,          "image height in pixels")     \
    X(int,    image_w,           "image-width",       224,          "image width in pixels")      \
    X(int,    patch,             "patch-size",        16,                                         \
      "side of a square patch in pixels")                                                         \
    X(int,    width,             "width",             768,                                        \
      "C, width of the residual stream")                                                          \
    X(int,    layers,            "layers",            12,           "L, number of blocks")        \
    X(int,    heads,             "heads",             12,                                         \
      "H, attention heads; must divide C")                                                        \
    X(int,    mlp,               "mlp",               3072,         "F, hidden width of the MLP") \
    X(int,    classes,           "num-classes",       1000,         "K, outputs of the head")     \
    X(word,   pool,              "pool",              POOL_CLS,                                   \
      "cls: token 0 after the final norm; gap: mean of the patch tokens after it")                \
    X(int,    cls_tokens,        "cls-tokens",        1,                                          \
      "class tokens in front of the patches (0, 1, 8, ...)")                                      \
    X(bool,   patch_bias,        "patch-bias",        true,                                       \
      "bias in the patch embedding")                                                              \
    X(int,    representation,    "representation",    0,                                          \
      "width of a linear+tanh layer before the head; 0: none")                                    \
    X(word,   act,               "act",               ACT_GELU,     "gelu (erf) or gelu_tanh")    \
    X(double, eps,               "eps",               1e-6,                                       \
      "epsilon of the norms in the blocks")                                                       \
    X(double, eps_final,         "eps-final",         1e-6,         "epsilon of the final norm")  \
    X(bool,   layer_scale,       "layer-scale",       false,                                      \
      "learned scale per channel on each branch")                                                 \
    X(bool,   norm_pre,          "norm-pre",          false,                                      \
      "a norm after the embedding, as in CLIP")                                                   \
    X(word,   loss,              "loss",              LOSS_SOFTMAX,                               \
      "softmax or sigmoid cross-entropy")                                                         \
    X(double, dropout,           "dropout",           0.0,                                        \
      "after the embedding, attention projection, GELU and fc2")                                  \
    X(double, attention_dropout, "attention-dropout", 0.0,                                        \
      "on the attention probabilities")                                                           \
    X(double, drop_path,         "drop-path",         0.0,                                        \
      "stochastic depth, rising linearly over the blocks from 0")                                 \
    X(double, mean_r,            "mean-r",            0.485,                                      \
      "normalisation mean, red, of pixels in 0..1")                                               \
    X(double, mean_g,            "mean-g",            0.456,        "normalisation mean, green")  \
    X(double, mean_b,            "mean-b",            0.406,        "normalisation mean, blue")   \
    X(double, std_r,             "std-r",             0.229,                                      \
      "normalisation standard deviation, red")                                                    \
    X(double, std_g,             "std-g",             0.224,                                      \
      "normalisation standard deviation, green")                                                  \
    X(double, std_b,             "std-b",             0.225,                                      \
      "normalisation standard deviation, blue")
/* clang-format on */

typedef int word; /* an int whose values have names */

typedef struct {
#define X(type, field, flag, value, help) type field;
    VIT_CONFIG(X)
#undef X
} Config;

/* Every setting with its type, so that flags, files and messages need no second list. */
typedef enum { T_INT, T_DOUBLE, T_BOOL, T_WORD } ConfigType;
typedef struct {
    const char *name, *flag, *help;
    ConfigType type;
    size_t offset; /* in Config */
} ConfigField;
extern const ConfigField vit_config_fields[];
extern const int vit_config_count;

Config vit_config_default(void);                   /* ViT-B/16 at 224 */
bool vit_preset(const char *name, Config *c);      /* "B/16" sets dimensions; false: unknown */
extern const char *const vit_preset_names[];       /* NULL-terminated */
bool vit_config_set(Config *c, const char *name, const char *value, Error *e); /* by field or flag,
                                                      `-` and `_` alike; errors name it as given */
void vit_config_get(const Config *c, const ConfigField *f, char *out, size_t size); /* as text */
const char *vit_words(const char *field);          /* "softmax|sigmoid" for loss; else NULL */
bool vit_config_check(const Config *c, Error *e);  /* impossible shapes, out-of-range values */
const ConfigField *vit_config_find(const char *name); /* by field or flag; NULL: no such setting */

/* Values as text, the same in flags, recipes and files. */
bool vit_same_name(const char *a, const char *b);  /* `-` and `_` are the same */
int vit_find_bool(const char *value);              /* true yes on 1: 1; false no off 0: 0; or -1 */
int vit_find_word(const char *words, const char *value);       /* position in "a|b|c", or -1 */
void vit_word_text(const char *words, int k, char *out, size_t size); /* the word at position k */
void vit_double_text(double v, char *out, size_t size); /* the shortest that reads back the same */

static inline int vit_patches(const Config *c)
{
    return (c->image_h / c->patch) * (c->image_w / c->patch);
}
static inline int vit_tokens(const Config *c)
{
    return c->cls_tokens + vit_patches(c);
}
/* Floating-point operations of one image's forward pass, multiply-add = 2: the linear layers, the
 * patch embedding, the head, and 4*T*T*C per block for attention. Training counts three times
 * this. */
double vit_forward_flops(const Config *c);

/* ------------------------------------------------------------------------------------------------
 * 2. Parameters
 * The model is a row of units: unit 0 embeds, units 1..L are the blocks, unit L+1 is the head.
 * A unit begins and ends with the complete residual stream [B,T,C], and no fusion crosses its edge;
 * it is therefore what is gathered, recomputed, updated and sent. One line per tensor says all:
 *
 *   field      name in files (timm's)      shape (0: no such) initialiser split present if
 *
 * The order of the lines is the layout of a unit's buffers (weights, gradients, optimiser state)
 * and of the file. `split` is the axis that tensor parallelism cuts: 0 rows, 1 columns, -1 neither.
 * N is the number of class tokens, R the width of the representation layer. */

enum { UNIT_EMBED, UNIT_BLOCK, UNIT_HEAD, UNIT_KINDS };
/* Roles of a tensor, for which each initialiser has a rule (vit.c). */
enum { INIT_ZERO, INIT_ONE, INIT_CLS, INIT_POS, INIT_PATCH, INIT_QKV, INIT_PROJ, INIT_FC1,
       INIT_FC2, INIT_BIAS, INIT_MLP_BIAS, INIT_PATCH_BIAS, INIT_REP, INIT_REP_BIAS, INIT_HEAD,
       INIT_HEAD_BIAS, INIT_LS };

/* clang-format off */
#define EMBED_PARAMS(X)                                                                           \
    X(cls_token, "cls_token",               (1, N, C, 0),         CLS,        -1, N > 0)          \
    X(pos_embed, "pos_embed",               (1, T, C, 0),         POS,        -1, true)           \
    X(patch_w,   "patch_embed.proj.weight", (C, 3, P, P),         PATCH,      -1, true)           \
    X(patch_b,   "patch_embed.proj.bias",   (C, 0, 0, 0),         PATCH_BIAS, -1, c->patch_bias)  \
    X(norm_w,    "norm_pre.weight",         (C, 0, 0, 0),         ONE,        -1, c->norm_pre)    \
    X(norm_b,    "norm_pre.bias",           (C, 0, 0, 0),         ZERO,       -1, c->norm_pre)
#define BLOCK_PARAMS(X)                                                                           \
    X(norm1_w,   "norm1.weight",            (C, 0, 0, 0),         ONE,        -1, true)           \
    X(norm1_b,   "norm1.bias",              (C, 0, 0, 0),         ZERO,       -1, true)           \
    X(qkv_w,     "attn.qkv.weight",         (3 * C, C, 0, 0),     QKV,        0,  true)           \
    X(qkv_b,     "attn.qkv.bias",           (3 * C, 0, 0, 0),     BIAS,       0,  true)           \
    X(proj_w,    "attn.proj.weight",        (C, C, 0, 0),         PROJ,       1,  true)           \
    X(proj_b,    "attn.proj.bias",          (C, 0, 0, 0),         BIAS,       -1, true)           \
    X(ls1,       "ls1.gamma",               (C, 0, 0, 0),         LS,         -1, c->layer_scale) \
    X(norm2_w,   "norm2.weight",            (C, 0, 0, 0),         ONE,        -1, true)           \
    X(norm2_b,   "norm2.bias",              (C, 0, 0, 0),         ZERO,       -1, true)           \
    X(fc1_w,     "mlp.fc1.weight",          (F, C, 0, 0),         FC1,        0,  true)           \
    X(fc1_b,     "mlp.fc1.bias",            (F, 0, 0, 0),         MLP_BIAS,   0,  true)           \
    X(fc2_w,     "mlp.fc2.weight",          (C, F, 0, 0),         FC2,        1,  true)           \
    X(fc2_b,     "mlp.fc2.bias",            (C, 0, 0, 0),         MLP_BIAS,   -1, true)           \
    X(ls2,       "ls2.gamma",               (C, 0, 0, 0),         LS,         -1, c->layer_scale)
#define HEAD_PARAMS(X)                                                                            \
    X(norm_w,    "norm.weight",             (C, 0, 0, 0),         ONE,        -1, true)           \
    X(norm_b,    "norm.bias",               (C, 0, 0, 0),         ZERO,       -1, true)           \
    X(rep_w,     "pre_logits.fc.weight",    (R, C, 0, 0),         REP,        -1, R > 0)          \
    X(rep_b,     "pre_logits.fc.bias",      (R, 0, 0, 0),         REP_BIAS,   -1, R > 0)          \
    X(head_w,    "head.weight",             (K, R ? R : C, 0, 0), HEAD,       -1, true)           \
    X(head_b,    "head.bias",               (K, 0, 0, 0),         HEAD_BIAS,  -1, true)
/* clang-format on */

typedef struct dev dev; /* device memory; incomplete, so that the model cannot dereference it */

/* One unit's tensors as named device pointers (NULL where absent). */
#define X(field, ...) dev *field;
typedef struct { EMBED_PARAMS(X) } EmbedParams;
typedef struct { BLOCK_PARAMS(X) } BlockParams;
typedef struct { HEAD_PARAMS(X) } HeadParams;
#undef X

/* The same lines as data: what the layout, checkpoints, initialisers and tests walk over. */
typedef struct {
    const char *name; /* within the unit */
    int ndim, shape[4];
    int init, split;
    long n;      /* elements; 0 where this configuration lacks the tensor */
    long offset; /* first element in the unit's buffer */
} ParamInfo;

/* Norms, optimisers and sharding work on chunks: at most VIT_CHUNK consecutive elements of one
 * tensor. Sums over chunks, combined in order, are the same however the chunks are distributed. */
#define VIT_CHUNK 4096
typedef struct {
    long offset;  /* first element, in the model's buffer */
    int n;        /* elements, 1..VIT_CHUNK */
    int tensor;   /* number of the tensor in the model, counted over all units */
    int flags;    /* CHUNK_* */
} Chunk;
enum { CHUNK_DECAY = 1, CHUNK_1D = 2 };

typedef struct {
    int kind;          /* UNIT_* */
    int count;         /* tensors, absent ones included */
    ParamInfo *params; /* [count], shared by the blocks */
    long offset;       /* first element of this unit in the model's buffers */
    long n;            /* elements of the unit's buffer */
} Unit;

/* ------------------------------------------------------------------------------------------------
 * 3. Backend
 * About forty operations on device memory. Rules that hold for all of them:
 *  - Everything is asynchronous on one stream, in call order, except where an entry says otherwise.
 *  - A Tensor carries its type. A plain `dev *` that an op reads as a parameter (bias, gamma, cls,
 *    ...) has the type of the op's Tensors; statistics, images that are no bytes, targets and every
 *    gradient of a parameter are `real`.
 *  - What an op writes it overwrites, parameter gradients included (their sum over micro-batches is
 *    made by `add`, once per unit); the one exception is the residual stream's gradient, into which
 *    residual_norm_backward accumulates.
 *  - Every op is deterministic.
 *  - What changes from step to step is read from StepState in device memory, so that a step is the
 *    same sequence of calls every time and can be captured and replayed. */

/* A matrix operand: rows of `ld` elements from one to the next. `type` and, for 8-bit types,
 * `scale` say how its elements are stored; the CPU knows F32 alone, stored as `real`. U64 is the
 * type of counters. */
enum { F32, BF16, F16, E4M3, E5M2, U64 };
typedef struct {
    dev *p;
    long ld;
    int type;
    dev *scale;
} Tensor;

static inline size_t type_size(int type)
{
    return type == F32 ? sizeof(real) : type == U64 ? 8 : type <= F16 ? 2 : 1;
}

/* What a process is and what its device shall do; given to init before anything else. */
typedef struct {
    int threads;       /* CPU: 0: as many as the machine has */
    int type;          /* F32, BF16 or F16, of activations and working weights */
    bool tf32;         /* F32: matrix products of operands rounded to 10 bits of mantissa */
    bool measure;      /* choose matrix products' algorithms by timing them */
    int rank, ranks;   /* of this process and in all; device memory is each its own */
    int local_rank;    /* which of this machine's devices it takes */
    void (*broadcast)(void *data, size_t bytes); /* rank 0's bytes to all; waits */
} Device;

/* Factors that keep small gradients above fp16's smallest number. DYNAMIC: NVIDIA's (Micikevicius
 * et al. 2018, with Megatron's hysteresis): halved once `hysteresis` updates have overflowed since
 * it last grew, doubled after `interval` good ones in a row. AUTO: Graphcore's: with each update,
 * halved where more than 1e-7 of the activation gradients counted by `count_large` were above 0.125
 * of fp16's maximum or the step was skipped, else doubled. Both stay within 1 .. 2^32. */
enum { SCALING_NONE, SCALING_STATIC, SCALING_DYNAMIC, SCALING_AUTO };
typedef struct {
    int kind;
    double init;
    int interval, hysteresis;
} LossScaling;

/* The state of a step, in device memory. The host writes the first part before a micro-batch. */
typedef struct {
    uint64_t seed;
    double lr;
    uint32_t step;    /* counter of all random numbers */
    uint32_t sample0; /* first image of this micro-batch within the global batch */
    /* the device's part: */
    uint32_t t;       /* updates done: Adam's t; a skipped step does not advance it */
    uint32_t skip;    /* this step's gradients are not finite: leave the parameters alone */
    uint32_t skipped; /* steps skipped since the start of the run */
    uint32_t skipped_in_row; /* not counting those whose loss scale could still be lowered */
    double grad_norm;        /* global L2 norm before clipping */
    double clip;             /* factor on every gradient: min(1, max_norm / (norm + 1e-6)) */
    double loss_scale;       /* of dlogits; 1 without fp16 */
    uint32_t good_steps;     /* in a row since the loss scale last changed */
    uint32_t patience;       /* overflows until it is lowered: hysteresis, counting down */
    uint64_t large, counted; /* by count_large, since the last update */
} StepState;
#define STEP_HOST_BYTES offsetof(StepState, t)

/* A point in the order of calls, for wait() and send(); 0 is the beginning. */
typedef uint64_t Ticket;

/* Dropout of one op: keep with probability 1-p, scale by 1/(1-p). The bits are
 * rng_block(seed, element/4, sample, step, purpose, layer); element counts within one sample. */
typedef struct {
    double p;
    int purpose, layer;
} Drop;

/* y = act(x @ w^T + bias), dropped out, + residual */
typedef struct {
    Tensor y;         /* [rows, out] */
    Tensor x;         /* [rows, in] */
    Tensor w;         /* [out, in] */
    dev *bias;        /* [out] or NULL */
    int rows, in, out;
    int act;          /* ACT_* */
    Tensor pre;       /* [rows, out]: where act is given, saves x @ w^T + bias for backward */
    Tensor residual;  /* [rows, out], may not be y; p NULL: none */
    Drop drop;        /* after act */
    int tokens;       /* rows per sample, for dropout's counters */
} LinearForward;

/* dx = (dy @ w) * act'(pre), with the dropout mask of the forward pass */
typedef struct {
    Tensor dx;       /* [rows, in] */
    Tensor dy;       /* [rows, out] */
    Tensor w;        /* [out, in] */
    int rows, in, out;
    int act;         /* of the layer that made x: its act, its pre, its dropout */
    Tensor pre;      /* [rows, in] */
    dev *dbias;      /* [in]: column sums of dx, that layer's bias gradient; NULL: not wanted */
    Drop drop;
    int tokens;
    bool accumulate; /* dx += instead, where dx is a sum of two products; without act and drop */
} LinearBackwardInput;

/* dw = dy^T @ x */
typedef struct {
    dev *dw;   /* [out, in] */
    Tensor dy; /* [rows, out] */
    Tensor x;  /* [rows, in] */
    int rows, in, out;
} LinearBackwardWeight;

/* Images to the matrix of patches, one row a patch, columns (channel, row, column) as the weight of
 * patch_embed has them. Float images [B,3,H,W] are taken as they are. U8 images [B,H,W,3] are
 * normalised, (v/255 - mean) / std, after what `augment` asks for, in this order:
 *   colour  (r,g,b)/255 becomes clamp(M (r,g,b)/255 + t, 0, 1), M = colour[0..8] by rows and
 *           t = colour[9..11]: brightness, contrast, saturation and hue are such maps
 *   erase   the pixels in `erased` become, normalised, 0 (ERASE_ZERO) or a standard normal
 *           (ERASE_NOISE) by Box and Muller, sqrt(-2 ln u0) cos(2 pi u1), of the first two numbers
 *           of rng_block(seed, (c*H + row)*W + column, sample, step, RNG_ERASE, 0)
 *           (Zhong et al. 2020)
 * and a pixel of image b of either kind becomes the partner's in `cut` (cutmix, Yun et al. 2019),
 * elsewhere lambda*b + (1-lambda)*partner (mixup, Zhang et al. 2018), the partner with its own
 * colour and erasing. So an image that is not mixed has lambda = 1 and an empty cut; mixup alone
 * has an empty cut, cutmix alone lambda = 1. */
enum { ERASE_NONE, ERASE_ZERO, ERASE_NOISE };
typedef struct {
    int32_t y, x, h, w; /* rows y..y+h-1, columns x..x+w-1; h = 0: empty */
} Rect;
typedef struct {
    float lambda;
    int32_t partner; /* sample of the same micro-batch */
    int32_t use_colour, erase;
    Rect erased, cut;
    float colour[12];
} Augment;
typedef struct {
    Tensor out; /* [B*Np, 3*P*P] */
    const dev *images;
    bool u8;
    const dev *augment; /* Augment[B] or NULL */
    int B, H, W, P;
    double mean[3], std[3];
} Patchify;

/* x = drop(concat(cls, patches) + pos) and its gradients */
typedef struct {
    Tensor x;         /* [B*T, C]; backward: the gradient of it, dropped out in place */
    Tensor patches;   /* [B*Np, C]; backward: written with the gradient */
    dev *cls, *pos;   /* [cls_tokens, C], [T, C]; backward: dcls, dpos, which are real */
    dev *dbias;       /* backward: [C], column sums of dpatches; NULL: not wanted */
    int B, T, cls_tokens, C;
    Drop drop;
} Embed;

/* The residual step and the norm behind it, in one pass.
 *   x_out = x + s * gamma_ls * drop(branch)       (branch.p NULL: x_out is not written)
 *   y     = (x_out - mean) * rstd * gamma + beta  (gamma NULL: no norm)
 * s = 0 with probability `path.p`, else 1/(1-path.p), once per sample (stochastic depth).
 * LayerNorm over C: Ba et al. 2016; rstd = 1/sqrt(var + eps), biased variance.
 * Backward, with dx the gradient of the residual stream:
 *   dx      += LayerNorm'(dy)                    (gamma NULL: left as it is)
 *   dbranch  = s * gamma_ls * drop(dx)           (dbranch.p NULL: it is dx itself)
 *   dgamma, dbeta [C] with the norm; dls, dbias [C], column sums of dbranch, where not NULL */
typedef struct {
    Tensor x, x_out, branch, y;
    dev *gamma, *beta;
    dev *mean, *rstd; /* real [rows], saved for backward */
    const dev *ls;    /* [C] layer scale or NULL */
    Drop drop, path;
    double eps;
    int rows, C, tokens; /* tokens: rows per sample */
    /* backward: x is the norm's input (x_out of the forward pass) */
    Tensor dy, dx, dbranch;
    dev *dgamma, *dbeta, *dls, *dbias;
} ResidualNorm;

/* Softmax attention, every head: out = drop(softmax(q k^T / sqrt(hs))) v, for the first Tq of the
 * T query rows. q, k and v of a token are columns [0,C), [C,2C), [2C,3C) of qkv, heads inside.
 * lse [B,H,Tq] saves the log of each softmax denominator: backward recomputes the probabilities, so
 * that no T x T matrix is stored (Dao et al. 2022). Backward writes dqkv (the q columns of the
 * first Tq rows of each sample alone) and dbias [3C], its column sums; delta [B,H,Tq] is room for
 * the sums over a head of dout * out. The CUDA backend takes hs up to 128. */
typedef struct {
    Tensor qkv;  /* [B*T, 3C] */
    Tensor out;  /* [B*Tq, C] */
    dev *lse, *delta; /* real */
    int B, T, Tq, heads, hs;
    Drop drop;
    Tensor dqkv, dout;
    dev *dbias;
} Attention;

/* y = mean of tokens first..T-1; backward: dx of those tokens = dy / (T - first), others 0 */
typedef struct {
    Tensor y; /* [B, C] */
    Tensor x; /* [B*T, C] */
    int B, T, C, first;
} Pool;

/* Loss per sample, its gradient and whether the prediction is right, in one pass.
 * softmax: -sum_k target_k log softmax_k; sigmoid: sum_k of the binary cross-entropies.
 * dlogits = loss_scale * scale * dloss/dlogits; stats[sample0 + b] = {loss, top-1 hit, top-5 hit},
 * where the label is the largest target; a tie between logits counts against the label. A logit
 * that is not finite hits nothing. */
typedef struct {
    Tensor logits, dlogits; /* [B, K]; dlogits.p NULL: not wanted */
    const dev *targets;     /* real [B, K] */
    dev *stats;             /* real [images of the step, 3] */
    dev *dbias;             /* [K]: column sums of dlogits; NULL: not wanted */
    int B, K, kind;         /* LOSS_* */
    double scale;
} Loss;

/* One pass of an optimiser over chunks of parameters. With g = clip * grad / loss_scale (decay
 * where the chunk's flag says so), t = updates including this one:
 *   adamw  m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; w = w (1 - lr wd) - lr mh / (sqrt(vh) + eps)
 *          (Loshchilov & Hutter 2019); mh = m / (1 - b1^t), vh = v / (1 - b2^t)
 *   adam   the same with g + wd w in place of g and no decay of w (Kingma & Ba 2015)
 *   sgd    m = momentum m + g + wd w (m = g + wd w the first time); w = w - lr m
 *   lamb   u = mh / (sqrt(vh) + eps) + wd w; w = w - lr r u; r = |w| / |u| per tensor of two or
 *          more dimensions (1 where either is 0), else 1 (You et al. 2020)
 * ema = ema_decay ema + (1 - ema_decay) w, where ema is given. Nothing happens when state->skip. */
enum { OPT_ADAMW, OPT_ADAM, OPT_SGD, OPT_LAMB };
typedef struct {
    int kind;
    double beta1, beta2, eps, momentum, weight_decay;
    double ema_decay;
} OptConfig;
typedef struct {
    const OptConfig *opt;
    const dev *chunks; /* Chunk[n] */
    int n;
    dev *w;            /* master weights */
    dev *work;         /* working weights in work_type; the same buffer as w in fp32 */
    int work_type;
    bool stochastic;   /* round w to work up or down by chance, in proportion: the bits are
                          rng_block(seed, position in the buffer / 4, 0, t, RNG_ROUND, 0) */
    dev *grad, *m, *v; /* v unused by sgd; lamb_direction leaves u in grad */
    dev *ema;          /* or NULL */
    dev *norms;        /* lamb: real [2][n], per chunk sums of squares of w and of u */
} OptStep;

typedef struct Backend {
    const char *name;  /* "cpu", "cuda" */
    bool asynchronous; /* the host can prepare a step while the device computes the one before */
    void (*init)(const Device *d);
    int (*threads)(void);
    void (*describe)(char *out, size_t size); /* device and libraries, one line */
    double (*peak_flops)(void);               /* of matrix products in this type; 0: not known */
    double (*busy)(void); /* share of the last moment in which the device computed; -1: not known */
    /* Which algorithm each matrix product uses, where there is a choice: written to or read from a
     * text file, so that a run that is continued has the same bits. No file to read: no matter. */
    void (*algorithms)(const char *path, bool save);

    /* memory; sizes in bytes. alloc returns zeroed, 256-byte aligned memory or NULL. */
    double (*memory_free)(void); /* that alloc could still give; -1: not known */
    dev *(*alloc)(size_t bytes);
    void (*release)(dev *p);
    void *(*host_alloc)(size_t bytes); /* pinned where that means something */
    void (*host_release)(void *p);
    /* blocking, any host memory, after everything before */
    void (*upload)(dev *dst, const void *src, size_t bytes);
    void (*download)(void *dst, const dev *src, size_t bytes);
    /* asynchronous, host memory of host_alloc, which must be left alone until wait(ticket).
     * send runs beside what was called before it, from `after` on; what is called later waits for
     * it. fetch runs in order. */
    Ticket (*send)(dev *dst, const void *src, size_t bytes, Ticket after);
    Ticket (*fetch)(void *dst, const dev *src, size_t bytes);
    Ticket (*mark)(void);        /* everything called so far */
    void (*wait)(Ticket ticket); /* the host waits */
    void (*copy)(dev *dst, const dev *src, size_t bytes);
    void (*zero)(dev *dst, size_t bytes);
    void (*convert)(dev *dst, int dst_type, const dev *src, int src_type, long n);
    void (*add)(dev *sum, const dev *x, long n); /* sum += x, real */

    /* Call body(arg), or repeat what it called the last time it was run under this key: the key
     * must tell apart whatever makes body call something else. together: all ranks do the same. */
    void (*run)(uint64_t key, bool together, void (*body)(void *), void *arg);
    /* The StepState that the ops below read, and room for sums on their way: scratch_bytes says how
     * much micro-batches of B images need. */
    size_t (*scratch_bytes)(const Config *c, int B);
    void (*bind)(dev *state, dev *scratch, size_t scratch_bytes);

    void (*linear_forward)(const LinearForward *a);
    void (*linear_backward_input)(const LinearBackwardInput *a);
    void (*linear_backward_weight)(const LinearBackwardWeight *a);
    void (*patchify)(const Patchify *a);
    void (*embed_forward)(const Embed *a);
    void (*embed_backward)(const Embed *a);
    void (*residual_norm_forward)(const ResidualNorm *a);
    void (*residual_norm_backward)(const ResidualNorm *a);
    void (*attention_forward)(const Attention *a);
    void (*attention_backward)(const Attention *a);
    void (*pool_forward)(const Pool *a);
    void (*pool_backward)(const Pool *a); /* x is dx, y is dy */
    void (*loss)(const Loss *a);

    /* adds to state: counted += rows*cols, large += elements beyond 0.125 * 65504 or not finite */
    void (*count_large)(Tensor x, int rows, int cols);
    /* partial[i] = sum of squares of chunk i of x */
    void (*sum_squares)(dev *partial, const dev *x, const dev *chunks, int n);
    /* From the partial sums, in order: grad_norm (divided by loss_scale), clip (max_norm 0: no
     * clipping), skip where the norm is not finite, skipped and t. */
    void (*finish_norm)(const dev *partial, int n, double max_norm);
    void (*adam)(const OptStep *a); /* adam and adamw */
    void (*sgd)(const OptStep *a);
    void (*lamb_direction)(const OptStep *a); /* m, v, u, and the partial norms */
    void (*lamb_apply)(const OptStep *a);     /* combines the norms per tensor, updates w */
    /* work = w [n], rounded as the optimiser's last update did with OptStep.stochastic */
    void (*round_weights)(dev *work, int type, const dev *w, long n);
    /* after the optimiser: the next step's loss scale, its counters, and skipped_in_row */
    void (*scale_loss)(const LossScaling *s);

    /* between the ranks; asynchronous beside the ops: they start when what was called before is
     * done, and `join` makes what is called later wait for them */
    void (*all_reduce)(dev *x, int type, long n); /* x = sum over the ranks; F32 or U64 */
    void (*join)(void);
} Backend;

const Backend *backend_cpu(void);
/* Only in programs that were built with nvcc: elsewhere the name is NULL. */
const Backend *backend_cuda(void) __attribute__((weak));
#define PROGRAM (backend_cuda ? "./train_gpu" : "./train_cpu")
/* First thing in main(): where OpenBLAS does not know the CPU and has chosen slow kernels, or
 * OpenMP would spin at barriers, start the program again with the variables that say better. */
void backend_cpu_reexec(char **argv);

/* ------------------------------------------------------------------------------------------------
 * 4. Model */

/* A block's activations, one line each: field, what it stores (ACT: numbers of the model's type,
 * STAT: real ones), elements. In training every block has its own, saved for the backward
 * pass; else all blocks share one set. */
#define BLOCK_ACTS(X)                                                                              \
    X(norm1_mean, STAT, B * T)                                                                     \
    X(norm1_rstd, STAT, B * T)                                                                     \
    X(norm1_y, ACT, B * T * C)        /* LN1(x) */                                                 \
    X(qkv, ACT, B * T * 3 * C)                                                                     \
    X(lse, STAT, B * H * T)                                                                        \
    X(att, ACT, B * T * C)            /* heads concatenated */                                     \
    X(branch1, ACT, c->layer_scale ? B * T * C : 0) /* attn.proj's output, kept for dls1 */        \
    X(mid, ACT, B * T * C)            /* residual stream between attention and MLP */              \
    X(norm2_mean, STAT, B * T)                                                                     \
    X(norm2_rstd, STAT, B * T)                                                                     \
    X(norm2_y, ACT, B * T * C)        /* LN2(mid) */                                               \
    X(fc1, ACT, B * T * F)            /* before GELU */                                            \
    X(gelu, ACT, B * T * F)                                                                        \
    X(branch2, ACT, c->layer_scale ? B * T * C : 0) /* mlp.fc2's output, kept for dls2 */

#define X(field, ...) dev *field;
typedef struct { BLOCK_ACTS(X) } BlockActs;
#undef X

typedef struct {
    int max_batch;       /* images in one micro-batch */
    int batch;           /* images of a whole step, all ranks; 0: max_batch */
    int type;            /* F32, BF16, F16: activations and working weights */
    bool training;       /* plan gradients, optimiser state and saved activations */
    bool keep_streams;   /* compute every row of every block: tests compare the streams */
    bool float_images;   /* vit_set_batch may be given images of floats */
    bool ema;
    int decay;           /* DECAY_* */
    OptConfig opt;
    double clip;         /* global norm; 0: off */
    LossScaling scaling;
    bool stochastic;     /* stochastic rounding of the working weights */
    void (*gap)(dev *p, size_t bytes); /* tests: told of room left between any two buffers */
} Plan;
enum { DECAY_ALL, DECAY_NO_1D, DECAY_MATRICES }; /* matrices: `.weight` of two or more dimensions */

/* One of two sets of inputs: the host fills one while the device computes on the other. */
typedef struct {
    dev *images, *targets, *augment, *state;                        /* state: the host's part */
    void *host_images, *host_targets, *host_augment, *host_state;   /* on their way there */
    Ticket sent, state_sent; /* the host's parts may be written again */
    Ticket used;             /* the device's parts may be */
} Inputs;

/* What a step came to. */
typedef struct {
    StepState state; /* after it */
    real *stats;     /* [images of the step or evaluation, 3] as the loss op has them */
    Ticket ready;
} StepResult;

typedef struct Model {
    Config config;
    Plan plan;
    const Backend *be;
    uint64_t id;     /* of this model among all of the process */
    int units;       /* L + 2 */
    Unit *unit;      /* [units] */
    long n_params;   /* elements, without the gaps between tensors */
    long n_padded;   /* elements of each parameter buffer */
    int tensors;     /* present tensors, over all units */
    int n_chunks;

    dev *memory[3];  /* the three allocations: parameters, activations, inputs */

    /* parameter buffers, n_padded elements each (training: all; else weights and work alone) */
    dev *weights;    /* master weights */
    dev *work;       /* working weights in plan.type; F32: the same buffer */
    bool stale;      /* work is older than weights */
    dev *grads;      /* sum over the micro-batches, and after vit_update over the ranks */
    dev *unit_grad;  /* one unit's gradient of micro-batches after the first */
    dev *m, *v, *ema;
    dev *chunks, *partial, *norms;

    /* activations: blocks[l] share one set of buffers where nothing is saved */
    BlockActs *blocks;
    dev **stream;    /* [L+1]: residual stream before block 0 and after each block */
    dev *patches, *patch_out, *embed_x, *embed_mean, *embed_rstd;
    dev *final_y, *final_mean, *final_rstd, *pooled, *rep, *rep_pre, *logits, *dlogits;
    dev *branch;     /* scratch: a branch's output on its way into the residual stream */
    dev *dstream, *dbranch, *dy, *dwide, *dqkv, *dpooled, *drep; /* gradients, scratch */
    dev *delta;      /* scratch of attention_backward */
    dev *scratch;    /* the backend's */
    size_t scratch_bytes;

    Inputs inputs[2];
    StepResult results[2];
    void *result_state[2]; /* results[i].state on its way from the device */
    dev *stats, *state_dev;
    int set;         /* which inputs are this micro-batch's */
    StepState state; /* host copy; the device's part is fresh after vit_state */
    size_t bytes_params, bytes_grads, bytes_opt, bytes_acts, bytes_inputs;

    /* the current micro-batch */
    int B;           /* images */
    int micro;       /* its number in the step */
    bool last;       /* of the step: gradients go to the other ranks */
    bool train_mode; /* dropout and drop path are on */
    bool images_u8, use_augment;
    bool averaged;   /* the average stands in the weights' place */
    int loss_images; /* the loss is divided by this */
    uint32_t steps;  /* updates and evaluations: results[steps % 2] is the next to be written */
} Model;

/* Layout, memory plan, allocation; weights are zero. Dies if c is impossible or memory is short. */
Model *vit_create(const Config *c, const Plan *plan, const Backend *be);
void vit_free(Model *m);
/* Device memory that vit_create would take, and the largest max_batch up to the plan's for which
 * that fits into `bytes`; 0: none. */
double vit_bytes(const Config *c, const Plan *plan, const Backend *be);
int vit_largest_batch(const Config *c, const Plan *plan, const Backend *be, double bytes);

/* Parameters by `scheme`: "jax" (zero head, Xavier uniform), "timm" (truncated normal 0.02),
 * "torch" (U(+-1/sqrt(fan_in))), "megatron" (normal 0.02, output layers / sqrt(2L)), "xavier"
 * (normal).
 * Every scheme draws in double from counters, so CPU and GPU start from the same bits. */
bool vit_init(Model *m, const char *scheme, uint64_t seed, double head_bias, double layer_scale,
              Error *e);
/* The one initialiser behind it, for a single tensor (a new head, a missing tensor). */
bool vit_init_param(const Model *m, int unit, const ParamInfo *p, const char *scheme, uint64_t seed,
                    double head_bias, double layer_scale, real *out);
extern const char *const vit_init_names[]; /* NULL-terminated */

/* Walk over all present tensors in layout order. `name` is the full name ("blocks.3.mlp.fc1.bias");
 * `offset` counts elements in the model's buffers. Return false from the visitor to stop. */
typedef bool (*ParamVisitor)(void *ctx, int unit, const ParamInfo *p, const char *name,
                             long offset);
bool vit_each_param(const Model *m, ParamVisitor visit, void *ctx);

/* Move one tensor between host and a parameter buffer (weights, grads, m, v, ema). */
void vit_read(const Model *m, const dev *buffer, long offset, long n, real *out);
void vit_write(Model *m, dev *buffer, long offset, long n, const real *in);

/* Bytes of one image as vit_set_batch takes it. */
size_t vit_image_bytes(const Config *c, bool u8);
/* Inputs of the next micro-batch, copied; B <= max_batch. targets [B,K] or NULL; augment
 * Augment[B] or NULL. */
void vit_set_batch(Model *m, int B, const void *images, bool u8, const real *targets,
                   const Augment *augment);

/* A step of training: vit_begin_step, for each of its micro-batches vit_set_batch and
 * vit_micro_step, then vit_update. Nothing of it waits for the device, but vit_set_batch for the
 * micro-batch before the last. */
void vit_begin_step(Model *m, uint32_t step, double lr, uint64_t seed);
/* Forward, loss divided by `batch`, backward. first_sample: of the micro-batch's images within the
 * step's `batch`; last: of this rank in this step. */
void vit_micro_step(Model *m, int first_sample, int batch, bool last);
void vit_update(Model *m);                    /* norm, clip, optimiser */
/* The result of the newest update or evaluation (ago 0) or the one before (ago 1), which it waits
 * for; valid until two more have begun. NULL: there was none. */
const StepResult *vit_result(Model *m, int ago);

void vit_evaluate(Model *m);                  /* images, targets -> logits, stats; no dropout */
void vit_stats(const Model *m, real *out);    /* [B,3] of the last micro-batch; waits */
void vit_logits(const Model *m, real *out);   /* [B,K] of the last micro-batch; waits */

/* The parts of a micro-step, for tests and for those who want to do something between them. */
void vit_forward(Model *m, bool train_mode);  /* images -> logits */
void vit_loss(Model *m, double scale);        /* logits, targets -> stats (training: dlogits too) */
void vit_backward(Model *m);                  /* dlogits -> grads, added to those before */

const StepState *vit_state(Model *m);         /* waits for the device */
void vit_set_state(Model *m, const StepState *s);
void vit_swap_ema(Model *m);                  /* exchange weights and average, for evaluation */
/* Any activation as real numbers, n of them from element `offset` on: tests compare them. */
void vit_read_act(const Model *m, const dev *buffer, long offset, long n, real *out);

#endif
