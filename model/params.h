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
 * and of the file; a line's number is a counter of its initial values, so that new ones come last.
 * `split` is how tensor parallelism cuts: WHOLE on every rank, by ROWS (outputs), by COLUMNS
 * (inputs), HEADS: by rows of q, of k and of v, or GATES: by rows, of gate and value each where fc1
 * makes both. N is the number of class tokens, R the width of the representation layer,
 * F1 = vit_hidden, D = vit_features, hs = C / H, map: pool is POOL_MAP. */
enum { SPLIT_WHOLE, SPLIT_ROWS, SPLIT_COLUMNS, SPLIT_HEADS, SPLIT_GATES };

/* clang-format off */
#define EMBED_PARAMS(X)                                                                            \
  X(cls_token, "cls_token",               (1, N, C, 0),         CLS,        WHOLE,   N > 0)        \
  X(pos_embed, "pos_embed",               (1, T, C, 0),         POS,        WHOLE,   true)         \
  X(patch_w,   "patch_embed.proj.weight", (C, 3, P, P),         PATCH,      WHOLE,   true)         \
  X(patch_b,   "patch_embed.proj.bias",   (C, 0, 0, 0),         PATCH_BIAS, WHOLE,   c->patch_bias)\
  X(norm_w,    "norm_pre.weight",         (C, 0, 0, 0),         ONE,        WHOLE,   c->norm_pre)  \
  X(norm_b,    "norm_pre.bias",           (C, 0, 0, 0),         ZERO,       WHOLE,   c->norm_pre)
#define BLOCK_PARAMS(X)                                                                            \
  X(norm1_w,   "norm1.weight",            (C, 0, 0, 0),         ONE,        WHOLE,   true)         \
  X(norm1_b,   "norm1.bias",              (C, 0, 0, 0),         ZERO,       WHOLE,   true)         \
  X(qkv_w,     "attn.qkv.weight",         (3 * C, C, 0, 0),     QKV,        HEADS,   true)         \
  X(qkv_b,     "attn.qkv.bias",           (3 * C, 0, 0, 0),     BIAS,       HEADS,   true)         \
  X(proj_w,    "attn.proj.weight",        (C, C, 0, 0),         PROJ,       COLUMNS, true)         \
  X(proj_b,    "attn.proj.bias",          (C, 0, 0, 0),         BIAS,       WHOLE,   true)         \
  X(ls1,       "ls1.gamma",               (C, 0, 0, 0),         LS,         WHOLE,  c->layer_scale)\
  X(norm2_w,   "norm2.weight",            (C, 0, 0, 0),         ONE,        WHOLE,   true)         \
  X(norm2_b,   "norm2.bias",              (C, 0, 0, 0),         ZERO,       WHOLE,   true)         \
  X(fc1_w,     "mlp.fc1.weight",          (F1, C, 0, 0),        FC1,        GATES,   true)         \
  X(fc1_b,     "mlp.fc1.bias",            (F1, 0, 0, 0),        MLP_BIAS,   GATES,   true)         \
  X(fc2_w,     "mlp.fc2.weight",          (C, F, 0, 0),         FC2,        COLUMNS, true)         \
  X(fc2_b,     "mlp.fc2.bias",            (C, 0, 0, 0),         MLP_BIAS,   WHOLE,   true)         \
  X(ls2,       "ls2.gamma",               (C, 0, 0, 0),         LS,         WHOLE,  c->layer_scale)\
  X(q_norm_w,  "attn.q_norm.weight",      (hs, 0, 0, 0),        ONE,        WHOLE,   c->qk_norm)   \
  X(q_norm_b,  "attn.q_norm.bias",        (hs, 0, 0, 0),        ZERO,       WHOLE,   c->qk_norm)   \
  X(k_norm_w,  "attn.k_norm.weight",      (hs, 0, 0, 0),        ONE,        WHOLE,   c->qk_norm)   \
  X(k_norm_b,  "attn.k_norm.bias",        (hs, 0, 0, 0),        ZERO,       WHOLE,   c->qk_norm)
#define HEAD_PARAMS(X)                                                                             \
  X(norm_w,    "norm.weight",             (C, 0, 0, 0),         ONE,        WHOLE,   !c->fc_norm)  \
  X(norm_b,    "norm.bias",               (C, 0, 0, 0),         ZERO,       WHOLE,   !c->fc_norm)  \
  X(rep_w,     "pre_logits.fc.weight",    (R, D, 0, 0),         REP,        WHOLE,   R > 0)        \
  X(rep_b,     "pre_logits.fc.bias",      (R, 0, 0, 0),         REP_BIAS,   WHOLE,   R > 0)        \
  X(head_w,    "head.weight",             (K, R ? R : D, 0, 0), HEAD,       ROWS,    true)         \
  X(head_b,    "head.bias",               (K, 0, 0, 0),         HEAD_BIAS,  ROWS,    true)         \
  X(latent,    "attn_pool.latent",        (1, 1, C, 0),         POS,        WHOLE,   map)          \
  X(q_w,       "attn_pool.q.weight",      (C, C, 0, 0),         PROJ,       WHOLE,   map)          \
  X(q_b,       "attn_pool.q.bias",        (C, 0, 0, 0),         BIAS,       WHOLE,   map)          \
  X(kv_w,      "attn_pool.kv.weight",     (2 * C, C, 0, 0),     PROJ,       WHOLE,   map)          \
  X(kv_b,      "attn_pool.kv.bias",       (2 * C, 0, 0, 0),     BIAS,       WHOLE,   map)          \
  X(proj_w,    "attn_pool.proj.weight",   (C, C, 0, 0),         PROJ,       WHOLE,   map)          \
  X(proj_b,    "attn_pool.proj.bias",     (C, 0, 0, 0),         BIAS,       WHOLE,   map)          \
  X(mlp_norm_w,"attn_pool.norm.weight",   (C, 0, 0, 0),         ONE,        WHOLE,   map)          \
  X(mlp_norm_b,"attn_pool.norm.bias",     (C, 0, 0, 0),         ZERO,       WHOLE,   map)          \
  X(fc1_w,     "attn_pool.mlp.fc1.weight",(F, C, 0, 0),         FC1,        WHOLE,   map)          \
  X(fc1_b,     "attn_pool.mlp.fc1.bias",  (F, 0, 0, 0),         MLP_BIAS,   WHOLE,   map)          \
  X(fc2_w,     "attn_pool.mlp.fc2.weight",(C, F, 0, 0),         FC2,        WHOLE,   map)          \
  X(fc2_b,     "attn_pool.mlp.fc2.bias",  (C, 0, 0, 0),         MLP_BIAS,   WHOLE,   map)          \
  X(fc_norm_w, "fc_norm.weight",          (C, 0, 0, 0),         ONE,        WHOLE,   c->fc_norm)   \
  X(fc_norm_b, "fc_norm.bias",            (C, 0, 0, 0),         ZERO,       WHOLE,   c->fc_norm)
/* clang-format on */

typedef struct dev dev; /* device memory; incomplete, so that the model cannot dereference it */

/* One unit's tensors as named device pointers (NULL where absent). */
#define X(field, ...) dev *field;
typedef struct { EMBED_PARAMS(X) } EmbedParams;
typedef struct { BLOCK_PARAMS(X) } BlockParams;
typedef struct { HEAD_PARAMS(X) } HeadParams;
#undef X

/* What of the model one rank has: of every tensor that tensor parallelism cuts the tp_rank-th of tp
 * parts; of the units those from first on, before end; and of each unit's buffer, where its state
 * is sharded, the shard-th of `shards` equal parts. WHOLE_MODEL: all of it. */
typedef struct {
    int tp, tp_rank;
    int shards, shard;
    int first, end; /* units; end 0: all */
} Cut;
#define WHOLE_MODEL ((Cut){.tp = 1, .shards = 1})

/* The same lines as data, for one configuration and all of its units: what checkpoints,
 * initialisers, sharding and tests walk over. */
typedef struct {
    char name[64]; /* in full: "blocks.3.mlp.fc1.bias" */
    int unit, line; /* which unit, and which line of its table */
    int role, split;
    int ndim, shape[4]; /* as in files: of the whole tensor */
    long n;      /* elements of it */
    int part[4]; /* shape of this rank's part */
    long n_part; /* elements of it */
    long offset; /* its first element, in buffers of whole units; this rank's units alone */
} Param;

typedef struct {
    int kind;         /* UNIT_* */
    int first, count; /* its tensors: param[first] .. param[first + count - 1] */
    long offset;      /* first element of its buffers, in those of this rank's units */
    long n;           /* elements of its buffer, the gaps between tensors and up to whole shards
                         included; 0 where another rank has the unit */
} Unit;

/* Norms, optimisers and sharding work on chunks: consecutive elements of one tensor, up to its end
 * or to the next multiple of VIT_CHUNK in the unit's buffer. Equal shards of a unit that is padded
 * to shards * VIT_CHUNK are therefore whole chunks, and sums over chunks, combined in order, are
 * the same however the chunks are distributed. Every rank lists all chunks of the model: those that
 * others have are empty. */
#define VIT_CHUNK 4096
typedef struct {
    long offset; /* first element, in buffers of this rank's shards */
    int n;       /* elements, 1..VIT_CHUNK; 0: another rank has it */
    int tensor;  /* param[tensor] */
    int flags;   /* CHUNK_* */
    float rate;  /* factor of the learning rate; 0: frozen, neither updated nor in any norm */
} Chunk;
/* CHUNK_COPY: of a tensor that every rank of a tensor parallel group has, on another than the first
 * of them: it is updated here, but counts there. */
enum { CHUNK_DECAY = 1, CHUNK_1D = 2, CHUNK_COPY = 4 };
/* What is decayed: everything, all but vectors, or `.weight` of two or more dimensions. */
enum { DECAY_ALL, DECAY_NO_1D, DECAY_MATRICES };

enum { MAX_UNIT_PARAMS = 24 };
typedef struct {
    Config config;
    Cut cut;
    int units; /* L + 2 */
    Unit *unit;
    int tensors; /* that are present, over all units */
    Param *param;
    int chunks;
    Chunk *chunk;
    long n_params; /* elements of the whole model, without the gaps between tensors */
    long n_padded; /* elements of a buffer of whole units: this rank's */
    long n_own;    /* n_padded / shards: elements of a buffer of this rank's shards */
    long largest;  /* elements of the largest unit's buffer */
    int lowest;    /* the first unit that learns: those before it need no gradient */
    /* First element of each line's tensor in its unit's buffer; -1: this configuration has none. */
    long place[UNIT_KINDS][MAX_UNIT_PARAMS];
} Layout;

Layout *layout_new(const Config *c, int decay, const Cut *cut); /* DECAY_*; layout_free() */
void layout_free(Layout *l);
/* Where the position embeddings come from: they learn, or are sines and cosines of their patches'
 * places and stay so. sincos2d: with MAE's (He et al. 2022) and MoCo v3's frequencies;
 * sincos2d_big_vision: with those of big_vision's sincos2d, which reach down to 1/10000 itself. */
enum { POSITION_LEARNED, POSITION_SINCOS, POSITION_BIG_VISION };

/* How fast what learns, of a layout in which all learns alike. Unit u has decay^(L+1-u) of the
 * learning rate, so that the head has all of it (layer-wise decay as in BEiT, Bao et al. 2022; its
 * norm is of the head's unit). Units before `frozen` do not learn; of all L + 2, head.weight and
 * head.bias still do. Positions do not where they are fixed (POSITION_*). */
void layout_rates(Layout *l, double decay, int frozen, int position);

/* A stretch of elements that stands together in a tensor as files have it and in this rank's part:
 * from element `whole` of the one, `part` of the other on. */
typedef struct {
    long whole, part, n;
} Run;
/* The longest run of p from element `part` of this rank's part on, before element `end`. */
Run param_run(const Layout *l, const Param *p, long part, long end);
/* Which of this rank's part of p is in shard number `shard`: elements *begin .. *end - 1. Returns
 * where the first of them stands in buffers of that shard, in elements. */
long param_shard(const Layout *l, const Param *p, int shard, long *begin, long *end);

/* Initial values of elements first .. first+n-1 of a whole tensor, out [n], by `scheme`: "jax"
 * (zero head, Xavier uniform), "timm" (truncated normal 0.02), "torch" (U(+-1/sqrt(fan_in))),
 * "megatron" (normal 0.02, output layers / sqrt(2L)), "xavier" (normal). Drawn in double from
 * counters, so that CPU and GPU start from the same bits. False and an error for another scheme. */
bool param_init(const Layout *l, const Param *p, const char *scheme, uint64_t seed,
                double head_bias, double layer_scale, long first, long n, real *out, Error *e);
extern const char *const param_init_names[]; /* NULL-terminated */
/* Elements first .. first+n-1 of pos_embed [1, T, C], by POSITION_SINCOS or _BIG_VISION. */
void param_positions(const Config *c, int position, long first, long n, real *out);
