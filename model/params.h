/* params.h - every tensor of the model, once: name, shape, initialiser, place; and the layout that
 * follows from it.
 *
 * The model is a row of units: unit 0 embeds, units 1..L are the blocks, unit L+1 is the head.
 * A unit begins and ends with the complete residual stream [B,T,C], and no fusion crosses its edge;
 * it is therefore what is gathered, recomputed, updated and sent.
 */
#pragma once

#include "model/config.h"
#include "util/real.h"

enum { UNIT_EMBED, UNIT_BLOCK, UNIT_HEAD, UNIT_KINDS };
/* Roles of a tensor, for which each initialiser has a rule. */
enum { ROLE_ZERO, ROLE_ONE, ROLE_CLS, ROLE_POS, ROLE_PATCH, ROLE_QKV, ROLE_PROJ, ROLE_FC1,
       ROLE_FC2, ROLE_BIAS, ROLE_MLP_BIAS, ROLE_PATCH_BIAS, ROLE_REP, ROLE_REP_BIAS, ROLE_HEAD,
       ROLE_HEAD_BIAS, ROLE_LS, ROLES };

/* One line per tensor says all:
 *
 *   field      name in files (timm's)      shape (0: no such) role       split present if
 *
 * The order of the lines is the layout of a unit's buffers (weights, gradients, optimiser state)
 * and of the file. `split` is the axis that tensor parallelism cuts: 0 rows, 1 columns, -1 neither.
 * N is the number of class tokens, R the width of the representation layer. */

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

/* The same lines as data, for one configuration and all of its units: what checkpoints,
 * initialisers, sharding and tests walk over. */
typedef struct {
    char name[64]; /* in full: "blocks.3.mlp.fc1.bias" */
    int unit, line; /* which unit, and which line of its table */
    int role, split;
    int ndim, shape[4];
    long n;      /* elements */
    long offset; /* first element, in the model's buffers */
} Param;

typedef struct {
    int kind;         /* UNIT_* */
    int first, count; /* its tensors: param[first] .. param[first + count - 1] */
    long offset;      /* first element of its buffers, in the model's */
    long n;           /* elements of its buffer, the gaps between tensors included */
} Unit;

/* Norms, optimisers and sharding work on chunks: consecutive elements of one tensor, up to its end
 * or to the next multiple of VIT_CHUNK in the unit's buffer. Equal shards of a unit that is padded
 * to ranks * VIT_CHUNK are therefore whole chunks, and sums over chunks, combined in order, are the
 * same however the chunks are distributed. */
#define VIT_CHUNK 4096
typedef struct {
    long offset; /* first element, in the model's buffers */
    int n;       /* elements, 1..VIT_CHUNK */
    int tensor;  /* param[tensor] */
    int flags;   /* CHUNK_* */
} Chunk;
enum { CHUNK_DECAY = 1, CHUNK_1D = 2 };
/* What is decayed: everything, all but vectors, or `.weight` of two or more dimensions. */
enum { DECAY_ALL, DECAY_NO_1D, DECAY_MATRICES };

enum { MAX_UNIT_PARAMS = 16 };
typedef struct {
    Config config;
    int units; /* L + 2 */
    Unit *unit;
    int tensors; /* that are present, over all units */
    Param *param;
    int chunks;
    Chunk *chunk;
    long n_params; /* elements, without the gaps between tensors */
    long n_padded; /* elements of each parameter buffer */
    /* First element of each line's tensor in its unit's buffer; -1: this configuration has none. */
    long place[UNIT_KINDS][MAX_UNIT_PARAMS];
} Layout;

Layout *layout_new(const Config *c, int decay); /* DECAY_*; layout_free() */
void layout_free(Layout *l);

/* Initial values of one tensor, out [p->n], by `scheme`: "jax" (zero head, Xavier uniform), "timm"
 * (truncated normal 0.02), "torch" (U(+-1/sqrt(fan_in))), "megatron" (normal 0.02, output layers
 * / sqrt(2L)), "xavier" (normal). Drawn in double from counters, so that CPU and GPU start from the
 * same bits. False and an error for another scheme. */
bool param_init(const Layout *l, const Param *p, const char *scheme, uint64_t seed,
                double head_bias, double layer_scale, real *out, Error *e);
extern const char *const param_init_names[]; /* NULL-terminated */
