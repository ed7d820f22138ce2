/* vit.c - the Vision Transformer, once: forward and backward pass, a step of training, memory.
 *
 * Read from the top: embed_forward, block_forward and head_forward are the paper's equations, and
 * each backward function undoes its forward one line by line. Then comes what a step is made of,
 * and last the memory that all of it lives in. All arithmetic is behind the Backend table of
 * backend.h; what is here is order and shape. There is no device code, no file format and no
 * training loop in this file, and it does not know which rank holds which part of the weights.
 * What it knows of many ranks: a tensor parallel rank has some of the heads, of the MLP's columns
 * and of the classes, and sum_parts adds up what they made of one input; a stage of a pipeline
 * has some of the units, and takes the stream from the stage before.
 */
#include "vit.h"

#include "util/rng.h"

#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------
 * What the passes share. Shapes: B images, T tokens, C width, H heads, F width of the MLP, K
 * classes, R width of the representation layer. Laid out by hand: one operation, one sentence. */
enum { STAT = F32 };
/* Which pass through a block this is: the first, or one that makes again what the first one did not
 * save: with the stream behind the block (THROUGH), or without, for its backward pass (AGAIN). */
enum { FIRST, THROUGH, AGAIN };
/* clang-format off */

/* A matrix of the model's type with rows of `ld` elements, and the place n such elements further
 * on. Macros, so that the equations below need not repeat which model they speak of. */
#define mat(p, ld)  ((Tensor){p, ld, m->plan.type, NULL})
#define from(p, n)  dev_at(p, n, m->plan.type)
#define NONE        ((Tensor){NULL, 0, F32, NULL})

/* A unit's tensors by name, in a buffer of numbers of `type`: weights, or gradients. */
#define X(field, ...) p.field = *place < 0 ? NULL : dev_at(unit, *place, type), place++;
static EmbedParams embed_params(const Model *m, dev *unit, int type)
{
    const long *place = m->layout->place[UNIT_EMBED];
    EmbedParams p;
    EMBED_PARAMS(X)
    return p;
}

static BlockParams block_params(const Model *m, dev *unit, int type)
{
    const long *place = m->layout->place[UNIT_BLOCK];
    BlockParams p;
    BLOCK_PARAMS(X)
    return p;
}

static HeadParams head_params(const Model *m, dev *unit, int type)
{
    const long *place = m->layout->place[UNIT_HEAD];
    HeadParams p;
    HEAD_PARAMS(X)
    return p;
}
#undef X

static Drop drop(const Micro *b, double p, int purpose, int layer)
{
    return (Drop){.p = b->train_mode ? p : 0, .purpose = purpose, .layer = layer};
}

/* The same of `mine` columns or heads where every tensor parallel rank has as many. */
static Drop drop_part(const Model *m, const Micro *b, double p, int purpose, int layer, int mine)
{
    Drop d = drop(b, p, purpose, layer);
    d.first = m->split.tp.rank * mine;
    d.of = m->split.tp.ranks * mine;
    return d;
}

/* Stochastic depth rises linearly from 0 in the first block to drop_path in the last. */
static Drop path(const Model *m, const Micro *b, int purpose, int l)
{
    int L = m->config.layers;
    return drop(b, L > 1 ? m->config.drop_path * l / (L - 1) : m->config.drop_path, purpose, l);
}

/* Rows of the residual stream that go on: Tq of each image's, n in all, `ld` elements apart. */
typedef struct {
    int Tq, n;
    long ld;
} Rows;

static Rows rows_of(const Model *m, const Micro *b, bool class_only)
{
    int T = vit_tokens(&m->config), C = m->config.width;
    return class_only ? (Rows){1, b->B, (long)T * C} : (Rows){T, b->B * T, C};
}

/* Only the class token leaves the last block of a class-token model, so that its queries, its MLP
 * and the final norm need the class rows alone: exact, and 7% of the work of ViT-B/16. */
static bool class_rows_only(const Model *m, int l)
{
    return l == m->config.layers - 1 && m->config.pool == POOL_CLS && !m->plan.keep_streams;
}

static bool is_first_stage(const Model *m)
{
    return m->split.first == 0;
}

static bool is_last_stage(const Model *m)
{
    return m->split.end == m->layout->units;
}

/* The block that this stage begins with, and the one that the next begins with. */
static int first_block(const Model *m)
{
    return is_first_stage(m) ? 0 : m->split.first - 1;
}

static int end_block(const Model *m)
{
    return is_last_stage(m) ? m->config.layers : m->split.end - 1;
}

/* The unit at which this stage's backward pass ends; split.end: nothing of it learns. */
static int lowest_unit(const Model *m)
{
    int lowest = m->layout->lowest < m->split.end ? m->layout->lowest : m->split.end;
    return lowest > m->split.first ? lowest : m->split.first;
}

/* Whether not all that the backward pass of a block needs is saved. */
static bool is_recomputed(const Model *m, int l)
{
    const Recompute *r = &m->plan.recompute;
    return r->kind != RECOMPUTE_NONE && (r->blocks == 0 || l - first_block(m) < r->blocks);
}

/* The first block of the group that l belongs to: the streams inside of a group are not saved. */
static int group_of(const Model *m, int l)
{
    if (!is_recomputed(m, l) || m->plan.recompute.kind != RECOMPUTE_FULL)
        return l;
    return l - (l - first_block(m)) % m->plan.recompute.group;
}

/* Whether the backward pass finds activation `act` of block l. */
static bool is_saved(const Model *m, int l, int act)
{
#define X(field, type, elements, cost) cost,
    static const unsigned char costs[] = {BLOCK_ACTS(X)};
#undef X
    if (!m->plan.training) /* all blocks share one set, but who looks at streams looks at these */
        return m->plan.keep_streams && act == ACT_qkv;
    if (l + 1 < m->layout->lowest)
        return false;
    if (!is_recomputed(m, l) || costs[act] == ALWAYS)
        return true;
    if (m->plan.recompute.kind == RECOMPUTE_LIGHT)
        return costs[act] != NOTHING;
    if (m->plan.recompute.kind == RECOMPUTE_SELECTIVE)
        return costs[act] == DEAR;
    return m->plan.recompute.keep >> act & 1;
}

/* Whether a pass through block l has to make an activation. */
#define lacks(act) (pass == FIRST || !is_saved(m, l, ACT_##act))

/* Whether nothing is done to a branch: then it joins the residual stream inside its last linear
 * layer, unless that makes but this rank's part of it. */
static bool plain_branch(const Model *m, const Micro *b, int l)
{
    const Config *c = &m->config;
    return !c->layer_scale && !(b->train_mode && (c->dropout > 0 || path(m, b, 0, l).p > 0));
}

/* The operands of a block's four linear layers, each with a scale of its own where they are
 * multiplied in 8 bits. */
#define SCALES(layer) layer##_X, layer##_W, layer##_DY
enum { SCALES(QKV), SCALES(PROJ), SCALES(FC1), SCALES(FC2), BLOCK_SCALES };
#undef SCALES

/* Whether block l multiplies in 8 bits. One that computes class rows alone has nothing to gain. */
static bool block_in_fp8(const Model *m, int l)
{
    bool skipped = m->plan.fp8.skip_ends && (l == 0 || l == m->config.layers - 1);
    return m->scales && !skipped && !class_rows_only(m, l);
}

/* Delayed scaling begins when its history is full. */
static bool scales_are_delayed(const Model *m)
{
    const Fp8Plan *p = &m->plan.fp8;
    return m->scales && !p->current && m->state.step - m->fp8_since >= (uint32_t)p->history;
}

/* An operand that nothing but 8-bit products reads: whoever makes it rounds it, if its scale is
 * known before. Not where weight gradients want it in BF16, or watch() would count it. */
static bool is_made_in_fp8(const Model *m, const Micro *b, int operand)
{
    static const bool alone[BLOCK_SCALES] = {[QKV_X] = true, [QKV_DY] = true, [FC1_X] = true,
                                             [FC1_DY] = true, [FC2_X] = true};
    if (operand == QKV_DY && m->config.qk_norm) /* which goes through what attention made */
        return false;
    return alone[operand] && b->train_mode && scales_are_delayed(m) && !m->plan.fp8.wgrad_bf16 &&
           m->plan.scaling.kind != SCALING_AUTO;
}

/* An operand with its scale; in other blocks as it is. */
static Tensor with_scale(const Model *m, const Micro *b, Tensor t, int l, int operand)
{
    size_t at = (size_t)(l * BLOCK_SCALES + operand) * sizeof(Fp8Scale);
    if (!block_in_fp8(m, l))
        return t;
    t.scale = (dev *)((char *)m->scales + at);
    if (is_made_in_fp8(m, b, operand))
        t.type = operand % 3 == QKV_DY % 3 ? E5M2 : E4M3;
    return t;
}
#define scaled(t, operand) with_scale(m, b, t, l, operand)

static int scales_of(const Model *m)
{
    return m->config.layers * BLOCK_SCALES;
}

/* y = x w^T + bias: the layers with nothing else to them. x [rows, in], y [rows, out] */
static void linear(const Model *m, Tensor y, Tensor x, Tensor w, dev *bias, int rows, int in,
                   int out)
{
    m->be->linear_forward(&(LinearForward){.y = y, .x = x, .w = w, .bias = bias,
                                           .rows = rows, .in = in, .out = out, .tokens = 1});
}

/* dw = dy^T x, dx = dy w and, where no other operation makes it, the gradient of the bias */
static void linear_backward(const Model *m, dev *dw, dev *dbias, Tensor dx, Tensor dy, Tensor x,
                            Tensor w, int rows, int in, int out)
{
    m->be->linear_backward_weight(&(LinearBackwardWeight){.dw = dw, .dbias = dbias, .dy = dy,
                                                          .x = x, .rows = rows, .in = in,
                                                          .out = out});
    m->be->linear_backward_input(&(LinearBackwardInput){.dx = dx, .dy = dy, .w = w, .rows = rows,
                                                        .in = in, .out = out, .tokens = 1});
}

/* x [rows, cols] = the sum of what each tensor parallel rank has there. These four sums a block,
 * and two at the head, are all that ranks tell each other of activations (Shoeybi et al. 2019). */
static void sum_parts(const Model *m, const Axis *ranks, Tensor x, int rows, int cols)
{
    m->be->join(m->be->all_reduce(ranks->group, x.p, x.type, (long)rows * cols));
}

/* A bias that is added to a sum of parts: one rank adds it. */
static dev *once(const Axis *ranks, dev *bias)
{
    return ranks->rank == 0 ? bias : NULL;
}

/* ------------------------------------------------------------------------------------------------
 * Forward: images [B,3,H,W] -> stream [B,T,C] -> ... -> logits [B,K]
 *
 * A picture becomes a row of T tokens of C numbers each. This residual stream runs through the
 * blocks, each of which adds to it twice: what the tokens learn from each other (attention), and
 * what each makes of that by itself (MLP). What a pass saves in the Micro is what its backward pass
 * reads again. */

/* x = drop(concat(cls, patches w^T + b) + pos)
 * A picture is cut into squares of P x P pixels, the words of the sentence that the rest reads. A
 * square's 3PP numbers become C by one matrix, which is a convolution of stride P written as what
 * it is. In front stand class tokens, learned and the same for every picture; a learned position
 * is added to every token, since nothing after this knows where a token comes from. */
static void embed_forward(Model *m, Micro *b)
{
    const Config *c = &m->config;
    const Inputs *in = &b->inputs[b->set];
    int B = b->B, T = vit_tokens(c), C = c->width, Np = vit_patches(c);
    int PP = VIT_CHANNELS * c->patch * c->patch;
    EmbedParams w = embed_params(m, unit_acquire(&m->own, 0, 1), m->plan.type);

    m->be->patchify(&(Patchify){ /* patches [B*Np, 3PP] */
        .out = mat(b->patches, PP), .images = in->images, .u8 = b->images_u8,
        .augment = b->use_augment ? in->augment : NULL,
        .B = B, .H = c->image_h, .W = c->image_w, .P = c->patch,
        .mean = {c->mean_r, c->mean_g, c->mean_b}, .std = {c->std_r, c->std_g, c->std_b}});
    linear(m, mat(b->patch_out, C), mat(b->patches, PP), mat(w.patch_w, PP), w.patch_b, B * Np, PP,
           C);
    m->be->embed_forward(&(Embed){ /* x [B,T,C] */
        .x = mat(c->norm_pre ? b->embed_x : b->stream[0], C), .patches = mat(b->patch_out, C),
        .cls = w.cls_token, .pos = w.pos_embed, .B = B, .T = T, .cls_tokens = c->cls_tokens, .C = C,
        .drop = drop(b, c->dropout, RNG_EMBED_DROPOUT, 0)});
    if (c->norm_pre)
        m->be->residual_norm_forward(&(ResidualNorm){ /* stream[0] = LN(x) */
            .x = mat(b->embed_x, C), .y = mat(b->stream[0], C), .gamma = w.norm_w, .beta = w.norm_b,
            .mean = b->embed_mean, .rstd = b->embed_rstd, .eps = c->eps, .rows = B * T, .C = C,
            .tokens = T});
}

/* x = x + proj(attention(qkv(LN1(x))));  x = x + fc2(gelu(fc1(LN2(x))))
 * In attention each token asks (q) all others, is asked (k), and gives what it has (v), in H heads
 * of C/H numbers; proj mixes what the heads have brought. The norm stands before each branch and
 * not in the stream (pre-norm), so that gradients reach the first block undiminished.
 * Fused across the branch's edge: the addition to the stream with the norm that reads it next, or,
 * where nothing is done to the branch (joins), with the linear layer that ends it. */
static void block_forward(Model *m, Micro *b, int l, int pass)
{
    const Config *c = &m->config;
    const Backend *be = m->be;
    const Axis *tp = &m->split.tp;
    int B = b->B, T = vit_tokens(c), C = c->width, hs = C / c->heads;
    int H = c->heads / tp->ranks, A = H * hs;                          /* of this rank */
    int F = c->mlp / tp->ranks, F1 = vit_hidden(c) / tp->ranks;
    int next = pass == AGAIN ? -1 : l + 2; /* unit */
    BlockParams w = block_params(m, unit_acquire(&m->own, l + 1, next), m->plan.type);
    BlockActs *a = &b->blocks[l];
    bool few = class_rows_only(m, l), joins = plain_branch(m, b, l) && tp->ranks == 1;
    bool through = pass != AGAIN, has_mid = joins || !lacks(mid);
    Rows r = rows_of(m, b, few); /* that leave the attention */
    Tensor x = mat(b->stream[l], r.ld), mid = mat(a->mid, r.ld), out = mat(b->stream[l + 1], r.ld);
    Tensor branch1 = joins ? NONE : mat(c->layer_scale ? a->branch1 : m->branch, C);
    Tensor branch2 = joins ? NONE : mat(c->layer_scale ? a->branch2 : m->branch, C);

    if (lacks(norm1_y))
        be->residual_norm_forward(&(ResidualNorm){ /* norm1_y [B,T,C] = LN1(x) */
            .x = mat(b->stream[l], C), .y = scaled(mat(a->norm1_y, C), QKV_X), .gamma = w.norm1_w,
            .beta = w.norm1_b, .mean = a->norm1_mean, .rstd = a->norm1_rstd, .eps = c->eps,
            .rows = B * T, .C = C, .tokens = T});
    bool asks = lacks(qkv) || (c->qk_norm && lacks(qk));
    if (asks && few) { /* q [B,1,A] of class rows; k, v [B,T,2A] of all */
        linear(m, mat(a->qkv, 3L * A * T), mat(a->norm1_y, r.ld), mat(w.qkv_w, C), w.qkv_b, B, C,
               A);
        linear(m, mat(from(a->qkv, A), 3L * A), mat(a->norm1_y, C),
               mat(from(w.qkv_w, (long)A * C), C), from(w.qkv_b, A), B * T, C, 2 * A);
    } else if (asks) { /* qkv [B,T,3A] */
        linear(m, mat(a->qkv, 3L * A), scaled(mat(a->norm1_y, C), QKV_X),
               scaled(mat(w.qkv_w, C), QKV_W), w.qkv_b, B * T, C, 3 * A);
    }
    if (asks && c->qk_norm) { /* q = LN(q), k = LN(k), of each head */
        be->head_norm_forward(&(HeadNorm){
            .x = mat(a->qkv, 3L * A * T / r.Tq), .input = mat(a->qk, 2L * A * T / r.Tq),
            .gamma = w.q_norm_w, .beta = w.q_norm_b, .eps = c->eps, .rows = r.n, .heads = H,
            .hs = hs});
        be->head_norm_forward(&(HeadNorm){
            .x = mat(from(a->qkv, A), 3L * A), .input = mat(from(a->qk, A), 2L * A),
            .gamma = w.k_norm_w, .beta = w.k_norm_b, .eps = c->eps, .rows = B * T, .heads = H,
            .hs = hs});
    }
    if (lacks(att))
        be->attention_forward(&(Attention){ /* att [B,Tq,A] = softmax(q k^T / sqrt(hs)) v */
            .qkv = mat(a->qkv, 3L * A), .out = mat(a->att, A), .lse = a->lse, .B = B, .T = T,
            .Tq = r.Tq, .heads = H, .hs = hs,
            .drop = drop_part(m, b, c->attention_dropout, RNG_ATTN_DROPOUT, l, H)});
    if (lacks(mid) || (c->layer_scale && lacks(branch1))) {
        be->linear_forward(&(LinearForward){ /* branch1 [B,Tq,C] = proj(att), or mid = x + that */
            .y = joins ? mid : branch1, .x = scaled(mat(a->att, A), PROJ_X),
            .w = scaled(mat(w.proj_w, A), PROJ_W), .bias = once(tp, w.proj_b), .rows = r.n,
            .in = A, .out = C, .residual = joins ? x : NONE, .tokens = r.Tq});
        sum_parts(m, tp, branch1, r.n, C);
    }
    if (lacks(mid) || lacks(norm2_y))
        be->residual_norm_forward(&(ResidualNorm){ /* mid = x + branch1; norm2_y = LN2(mid) */
            .x = has_mid ? mid : x, .x_out = mid, .branch = has_mid ? NONE : branch1,
            .y = scaled(mat(a->norm2_y, C), FC1_X), .gamma = w.norm2_w, .beta = w.norm2_b,
            .mean = a->norm2_mean, .rstd = a->norm2_rstd, .ls = w.ls1,
            .drop = drop(b, c->dropout, RNG_PROJ_DROPOUT, l), .path = path(m, b, RNG_ATTN_PATH, l),
            .eps = c->eps, .rows = r.n, .C = C, .tokens = r.Tq});

    LinearForward up = { /* gelu [B,Tq,F] = gelu(fc1(norm2_y)) */
        .y = scaled(mat(a->gelu, F), FC2_X), .x = scaled(mat(a->norm2_y, C), FC1_X),
        .w = scaled(mat(w.fc1_w, C), FC1_W), .bias = w.fc1_b, .rows = r.n, .in = C, .out = F,
        .act = c->act,
        .pre = b->train_mode || F1 > F ? mat(a->fc1, F1) : NONE, .tokens = r.Tq,
        .drop = drop_part(m, b, c->dropout, RNG_MLP_DROPOUT, l, F),
        .kept = !is_saved(m, l, ACT_fc1) || is_saved(m, l, ACT_gelu)};
    if (lacks(fc1))
        be->linear_forward(&up);
    else if (lacks(gelu))
        be->activate(&up);
    if (through || (c->layer_scale && lacks(branch2))) {
        be->linear_forward(&(LinearForward){ /* branch2 [B,Tq,C] = fc2(gelu), or out = mid + that */
            .y = joins ? out : branch2, .x = scaled(mat(a->gelu, F), FC2_X),
            .w = scaled(mat(w.fc2_w, F), FC2_W), .bias = once(tp, w.fc2_b), .rows = r.n, .in = F,
            .out = C, .residual = joins ? mid : NONE, .tokens = r.Tq});
        sum_parts(m, tp, branch2, r.n, C);
    }
    if (through && !joins)
        be->residual_norm_forward(&(ResidualNorm){ /* out = mid + branch2 */
            .x = mid, .x_out = out, .branch = branch2, .ls = w.ls2,
            .drop = drop(b, c->dropout, RNG_FC2_DROPOUT, l), .path = path(m, b, RNG_MLP_PATH, l),
            .rows = r.n, .C = C, .tokens = r.Tq});
}

/* pooled [B,C] = mid + fc2(gelu(fc1(LN(mid)))), mid = proj(attention(q of a learned query, k and v
 * of all tokens)): a block with one query that no token has asked (Zhai et al. 2022, SigLIP). */
static void map_forward(const Model *m, Micro *b, const HeadParams *w, Tensor pooled)
{
    const Config *c = &m->config;
    int B = b->B, T = vit_tokens(c), C = c->width, F = c->mlp;

    m->be->embed_forward(&(Embed){ /* query [B,C]: the same for every image */
        .x = mat(b->map.query, C), .cls = w->latent, .B = B, .T = 1, .cls_tokens = 1, .C = C});
    linear(m, mat(b->map.qkv, 3L * C * T), mat(b->map.query, C), mat(w->q_w, C), w->q_b, B, C, C);
    linear(m, mat(from(b->map.qkv, C), 3L * C), mat(b->final_y, C), mat(w->kv_w, C), w->kv_b,
           B * T, C, 2 * C);
    m->be->attention_forward(&(Attention){ /* att [B,1,C] */
        .qkv = mat(b->map.qkv, 3L * C), .out = mat(b->map.att, C), .lse = b->map.lse, .B = B,
        .T = T, .Tq = 1, .heads = c->heads, .hs = C / c->heads});
    linear(m, mat(b->map.mid, C), mat(b->map.att, C), mat(w->proj_w, C), w->proj_b, B, C, C);
    m->be->residual_norm_forward(&(ResidualNorm){ /* norm [B,C] = LN(mid) */
        .x = mat(b->map.mid, C), .y = mat(b->map.norm, C), .gamma = w->mlp_norm_w,
        .beta = w->mlp_norm_b, .mean = b->map.mean, .rstd = b->map.rstd, .eps = c->eps, .rows = B,
        .C = C, .tokens = 1});
    m->be->linear_forward(&(LinearForward){ /* gelu [B,F] */
        .y = mat(b->map.gelu, F), .x = mat(b->map.norm, C), .w = mat(w->fc1_w, C),
        .bias = w->fc1_b, .rows = B, .in = C, .out = F, .act = c->act,
        .pre = mat(b->map.fc1, F), .tokens = 1, .kept = true});
    m->be->linear_forward(&(LinearForward){
        .y = pooled, .x = mat(b->map.gelu, F), .w = mat(w->fc2_w, F), .bias = w->fc2_b, .rows = B,
        .in = F, .out = C, .residual = mat(b->map.mid, C), .tokens = 1});
}

/* One of the two things side by side that a head of two tokens reads, or the one that others do:
 * y [B,C] = the mean of tokens first .. end - 1, and its place among D = vit_features columns. */
static Pool pool_of(const Config *c, int i, int B)
{
    bool mean = c->pool == POOL_GAP || (c->pool == POOL_CLS_GAP && i == 1);
    int T = vit_tokens(c), first = mean ? c->cls_tokens : i;
    return (Pool){.B = B, .T = T, .C = c->width, .first = first, .end = mean ? T : first + 1,
                  .beside = i > 0};
}

/* pooled [B,D] = pool(x), of x [B,T,C]; where class rows alone were normalised, they are it */
static void pool_forward(const Model *m, Micro *b, const HeadParams *w, dev *x, dev *pooled)
{
    const Config *c = &m->config;
    int C = c->width, D = vit_features(c);
    if (c->pool == POOL_MAP)
        map_forward(m, b, w, mat(pooled, C));
    for (int i = 0; c->pool != POOL_CLS && c->pool != POOL_MAP && i < D / C; i++) {
        Pool p = pool_of(c, i, b->B);
        p.x = mat(x, C);
        p.y = mat(from(pooled, (long)i * C), D);
        m->be->pool_forward(&p);
    }
}

/* logits = head(tanh(rep(pool(LN(x))))), the middle layer where there is one; or LN(pool(x))
 * The picture's answer is read off its class token, or off the mean of its patches. Where only the
 * class rows are read, only they are normalised. */
static void head_forward(Model *m, Micro *b)
{
    const Config *c = &m->config;
    int B = b->B, C = c->width, K = c->classes, R = c->representation;
    int u = m->layout->units - 1, D = vit_features(c);
    int mine = K / m->classes.ranks, first = m->classes.rank * mine; /* classes of this rank */
    HeadParams w = head_params(m, unit_acquire(&m->own, u, -1), m->plan.type);
    Rows r = rows_of(m, b, c->pool == POOL_CLS);
    Tensor features = R ? mat(b->rep, R) : mat(b->pooled, D);
    dev *stream = b->stream[c->layers];

    if (!c->fc_norm)
        m->be->residual_norm_forward(&(ResidualNorm){ /* final_y = LN(x), [B,C] or [B,T,C] */
            .x = mat(stream, r.ld), .y = mat(b->final_y, C), .gamma = w.norm_w, .beta = w.norm_b,
            .mean = b->final_mean, .rstd = b->final_rstd, .eps = c->eps_final, .rows = r.n, .C = C,
            .tokens = r.Tq});
    pool_forward(m, b, &w, c->fc_norm ? stream : b->final_y, c->fc_norm ? b->found : b->pooled);
    if (c->fc_norm)
        m->be->residual_norm_forward(&(ResidualNorm){ /* pooled [B,C] = LN(found) */
            .x = mat(b->found, C), .y = mat(b->pooled, C), .gamma = w.fc_norm_w,
            .beta = w.fc_norm_b, .mean = b->final_mean, .rstd = b->final_rstd,
            .eps = c->eps_final, .rows = B, .C = C, .tokens = 1});
    if (R)
        m->be->linear_forward(&(LinearForward){ /* rep [B,R] */
            .y = mat(b->rep, R), .x = mat(b->pooled, D), .w = mat(w.rep_w, D), .bias = w.rep_b,
            .rows = B, .in = D, .out = R, .act = ACT_TANH, .pre = mat(b->rep_pre, R), .tokens = 1});
    if (mine < K) /* the others' columns are theirs to add */
        m->be->zero(b->logits, (size_t)B * K * type_size(m->plan.type));
    linear(m, mat(from(b->logits, first), K), features, mat(w.head_w, R ? R : D), w.head_b, B,
           R ? R : D, mine);
    sum_parts(m, &m->classes, mat(b->logits, K), B, K); /* [B,K] */
}

/* Before a pass: what its operations read besides their operands. Evaluation scales by what it
 * computes itself, so that it comes to the same whatever the training was. */
static void prepare(const Model *m, const Micro *b)
{
    const Fp8Plan *p = &m->plan.fp8;
    m->be->bind(m->state_dev, m->scratch, m->scratch_bytes);
    if (m->scales)
        m->be->fp8(&(Fp8){.current = !b->train_mode || !scales_are_delayed(m),
                          .learns = b->train_mode, .wgrad = !p->wgrad_bf16, .margin = p->margin});
}

static void forward(Model *m, Micro *b, bool train_mode)
{
    b->train_mode = train_mode;
    prepare(m, b);
    for (int u = m->split.first; u < m->split.end; u++) {
        if (u == 0)
            embed_forward(m, b);
        else if (u <= m->config.layers)
            block_forward(m, b, u - 1, FIRST);
        else
            head_forward(m, b);
    }
}

/* Loss, hits and, where something is learned, dlogits [B,K]: the gradient is made where the loss
 * is, since both need the same softmax. */
static void loss(Model *m, Micro *b, double scale)
{
    const Config *c = &m->config;
    bool learn = m->plan.training && b->train_mode;
    if (!is_last_stage(m))
        return;
    m->be->loss(&(Loss){.logits = mat(b->logits, c->classes),
                        .dlogits = learn ? mat(b->dlogits, c->classes) : NONE,
                        .targets = b->inputs[b->set].targets, .stats = m->stats,
                        .B = b->B, .K = c->classes, .kind = c->loss, .scale = scale});
}

/* ------------------------------------------------------------------------------------------------
 * Backward: each function mirrors its forward one, from the bottom up. For y = x w^T + b the rules
 * are dx = dy w, dw = dy^T x and db = the column sums of dy; the rest is the chain rule.
 *
 * dstream [B,T,C] is the gradient of the residual stream, wherever the pass has come to. The stream
 * itself hands it on unchanged, and each branch adds its own part: dx is the one operand that is
 * accumulated. A bias's gradient comes from the operation that makes its dy, where it costs no pass
 * of its own: the norm that finishes dstream also leaves its column sums, which are the gradient of
 * the bias before it, fc2's of the next block, where nothing comes between. Activations' gradients
 * live in the model's scratch, one block's at a time. */

/* Automatic loss scaling looks at the gradients of activations. */
static void watch(const Model *m, Tensor gradient, int rows, int cols)
{
    if (m->plan.scaling.kind == SCALING_AUTO)
        m->be->count_large(gradient, rows, cols);
}

/* From dpooled [B,C], which becomes the gradient of mid, to dy [B,T,C], that of final_y. */
static void map_backward(const Model *m, Micro *b, const HeadParams *w, const HeadParams *g)
{
    const Config *c = &m->config;
    const Backend *be = m->be;
    int B = b->B, T = vit_tokens(c), C = c->width, F = c->mlp;
    Tensor dmid = mat(m->dpooled, C), dwide = mat(m->dwide, F), some = mat(m->dbranch, C);
    Tensor dq = mat(m->dqkv, 3L * C * T), dkv = mat(from(m->dqkv, C), 3L * C);

    be->linear_backward_weight(&(LinearBackwardWeight){
        .dw = g->fc2_w, .dbias = g->fc2_b, .dy = dmid, .x = mat(b->map.gelu, F), .rows = B,
        .in = F, .out = C});
    be->linear_backward_input(&(LinearBackwardInput){ /* dwide [B,F] */
        .dx = dwide, .dy = dmid, .w = mat(w->fc2_w, F), .rows = B, .in = F, .out = C,
        .act = c->act, .pre = mat(b->map.fc1, F), .dbias = g->fc1_b, .tokens = 1});
    linear_backward(m, g->fc1_w, NULL, some, dwide, mat(b->map.norm, C), mat(w->fc1_w, C), B,
                    C, F);
    be->residual_norm_backward(&(ResidualNorm){ /* dmid += LN'(some) */
        .x = mat(b->map.mid, C), .gamma = w->mlp_norm_w, .mean = b->map.mean,
        .rstd = b->map.rstd, .rows = B, .C = C, .tokens = 1, .dy = some, .dx = dmid,
        .dgamma = g->mlp_norm_w, .dbeta = g->mlp_norm_b});
    linear_backward(m, g->proj_w, g->proj_b, some, dmid, mat(b->map.att, C), mat(w->proj_w, C),
                    B, C, C);
    be->attention_backward(&(Attention){
        .qkv = mat(b->map.qkv, 3L * C), .out = mat(b->map.att, C), .lse = b->map.lse, .B = B,
        .T = T, .Tq = 1, .heads = c->heads, .hs = C / c->heads, .dqkv = mat(m->dqkv, 3L * C),
        .dout = some, .delta = m->delta});
    linear_backward(m, g->q_w, g->q_b, some, dq, mat(b->map.query, C), mat(w->q_w, C), B, C, C);
    linear_backward(m, g->kv_w, g->kv_b, mat(m->dy, C), dkv, mat(b->final_y, C),
                    mat(w->kv_w, C), B * T, C, 2 * C);
    be->embed_backward(&(Embed){ /* latent: the sum over images */
        .x = some, .cls = g->latent, .B = B, .T = 1, .cls_tokens = 1, .C = C});
}

/* dx [B,T,C] of a pooling of x: dpooled where it came from, zero elsewhere */
static void pool_backward(const Model *m, const Micro *b, dev *dx, dev *dpooled)
{
    const Config *c = &m->config;
    int C = c->width, D = vit_features(c);
    for (int i = 0; i < D / C; i++) {
        Pool p = pool_of(c, i, b->B);
        p.x = mat(dx, C);
        p.y = mat(from(dpooled, (long)i * C), D);
        m->be->pool_backward(&p);
    }
}

/* From dlogits to the stream after the last block, whose gradient begins here. Where the class rows
 * alone were read, that of the others is zero: the last block knows, or finds zeros. */
static void head_backward(Model *m, Micro *b)
{
    const Config *c = &m->config;
    const Backend *be = m->be;
    int B = b->B, T = vit_tokens(c), C = c->width, K = c->classes, R = c->representation;
    int u = m->layout->units - 1, D = vit_features(c);
    int mine = K / m->classes.ranks, first = m->classes.rank * mine; /* classes of this rank */
    HeadParams w = head_params(m, unit_acquire(&m->own, u, u > lowest_unit(m) ? u - 1 : -1),
                               m->plan.type);
    HeadParams g = head_params(m, unit_gradient(&m->own, u, b->number), F32);
    Rows r = rows_of(m, b, c->pool == POOL_CLS);
    Tensor dlogits = mat(from(b->dlogits, first), K), pooled = mat(b->pooled, D);
    Tensor dpooled = mat(m->dpooled, D);
    Tensor rep = mat(b->rep, R), drep = mat(m->drep, R);

    watch(m, dlogits, B, mine);
    be->linear_backward_weight(&(LinearBackwardWeight){ /* head_w [K, R or D], head_b [K] */
        .dw = g.head_w, .dbias = g.head_b, .dy = dlogits, .x = R ? rep : pooled, .rows = B,
        .in = R ? R : D, .out = mine});
    be->linear_backward_input(&(LinearBackwardInput){ /* drep [B,R], before its tanh, or dpooled */
        .dx = R ? drep : dpooled, .dy = dlogits, .w = mat(w.head_w, R ? R : D), .rows = B,
        .in = R ? R : D, .out = mine, .act = R ? ACT_TANH : ACT_NONE,
        .pre = R ? mat(b->rep_pre, R) : NONE, .tokens = 1});
    sum_parts(m, &m->classes, R ? drep : dpooled, B, R ? R : D);
    if (R) /* dpooled [B,D] */
        linear_backward(m, g.rep_w, g.rep_b, dpooled, drep, pooled, mat(w.rep_w, D), B, D, R);
    if (c->pool == POOL_CLS && !class_rows_only(m, c->layers - 1))
        be->zero(m->dstream, (size_t)B * T * C * type_size(m->plan.type));
    if (c->fc_norm) {
        be->residual_norm_backward(&(ResidualNorm){ /* the gradient of found, [B,C] of dstream */
            .x = mat(b->found, C), .gamma = w.fc_norm_w, .mean = b->final_mean,
            .rstd = b->final_rstd, .rows = B, .C = C, .tokens = 1, .dy = dpooled,
            .dx = mat(m->dstream, C), .dgamma = g.fc_norm_w, .dbeta = g.fc_norm_b, .fresh = 1});
        be->copy(m->dpooled, m->dstream, (size_t)B * C * type_size(m->plan.type));
        pool_backward(m, b, m->dstream, m->dpooled);
    } else {
        if (c->pool == POOL_MAP)
            map_backward(m, b, &w, &g);
        else if (c->pool != POOL_CLS)
            pool_backward(m, b, m->dy, m->dpooled);
        be->residual_norm_backward(&(ResidualNorm){ /* dstream [B,T,C], or of its class rows */
            .x = mat(b->stream[c->layers], r.ld), .gamma = w.norm_w, .mean = b->final_mean,
            .rstd = b->final_rstd, .rows = r.n, .C = C, .tokens = r.Tq,
            .dy = c->pool == POOL_CLS ? dpooled : mat(m->dy, C), .dx = mat(m->dstream, r.ld),
            .dgamma = g.norm_w, .dbeta = g.norm_b, .dbias = m->dstream_sums, .fresh = 1});
        m->has_sums = true;
    }
    unit_reduce(&m->own, u, b->number, b->last);
}

/* dqkv, of q and k behind their norms, becomes that of what qkv made. A tensor parallel rank has
 * gone through its own heads alone; the bias, whose gradient attention would have made, is summed
 * here. */
static void qk_norm_backward(const Model *m, const Micro *b, int l, const BlockParams *w,
                             const BlockParams *g)
{
    const Config *c = &m->config;
    const Axis *tp = &m->split.tp;
    int T = vit_tokens(c), hs = c->width / c->heads, H = c->heads / tp->ranks, A = H * hs;
    const BlockActs *a = &b->blocks[l];
    Rows r = rows_of(m, b, class_rows_only(m, l));
    dev *const sums[] = {g->q_norm_w, g->q_norm_b, g->k_norm_w, g->k_norm_b};

    m->be->head_norm_backward(&(HeadNorm){
        .x = mat(m->dqkv, 3L * A * T / r.Tq), .input = mat(a->qk, 2L * A * T / r.Tq),
        .gamma = w->q_norm_w, .dgamma = g->q_norm_w, .dbeta = g->q_norm_b, .eps = c->eps,
        .rows = r.n, .heads = H, .hs = hs});
    m->be->head_norm_backward(&(HeadNorm){
        .x = mat(from(m->dqkv, A), 3L * A), .input = mat(from(a->qk, A), 2L * A),
        .gamma = w->k_norm_w, .dgamma = g->k_norm_w, .dbeta = g->k_norm_b, .eps = c->eps,
        .rows = b->B * T, .heads = H, .hs = hs});
    for (int i = 0; i < COUNT(sums); i++)
        sum_parts(m, tp, (Tensor){sums[i], hs, F32, NULL}, 1, hs);
}

/* What block_forward did, last line first. gelu and its dropout are undone with fc2, because its
 * input gradient is what they are applied to; a branch's layer scale, dropout and path with the
 * norm of the branch that follows it. The gradients of q, k and v come in one dqkv. */
static void block_backward(Model *m, Micro *b, int l)
{
    const Config *c = &m->config;
    const Backend *be = m->be;
    const Axis *tp = &m->split.tp;
    int B = b->B, T = vit_tokens(c), C = c->width, hs = C / c->heads;
    int H = c->heads / tp->ranks, A = H * hs;                          /* of this rank */
    int F = c->mlp / tp->ranks, F1 = vit_hidden(c) / tp->ranks;
    int next = l > 0 && group_of(m, l) == l ? group_of(m, l - 1) + 1 : l; /* unit */
    next = l < lowest_unit(m) ? -1 : next;
    BlockParams w = block_params(m, unit_acquire(&m->own, l + 1, next), m->plan.type);
    BlockParams g = block_params(m, unit_gradient(&m->own, l + 1, b->number), F32);
    BlockActs *a = &b->blocks[l];
    bool few = class_rows_only(m, l), plain = plain_branch(m, b, l);
    Rows r = rows_of(m, b, few);
    Tensor dx = mat(m->dstream, r.ld); /* the gradient of out, of mid and of x in turn */
    Tensor dbranch = plain ? dx : mat(m->dbranch, C), dbranch_out = plain ? NONE : dbranch;
    Tensor dwide = scaled(mat(m->dwide, F1), FC1_DY), dy = mat(m->dy, C), datt = mat(m->dy, A);
    Tensor dqkv = scaled(mat(m->dqkv, 3L * A), QKV_DY);
    dev *dbias = c->qk_norm ? g.qkv_b : NULL; /* else attention_backward makes it */

    /* MLP */
    if (plain && m->has_sums && g.fc2_b)
        be->copy(g.fc2_b, m->dstream_sums, (size_t)C * sizeof(real));
    else
        be->residual_norm_backward(&(ResidualNorm){ /* dbranch [B,Tq,C] */
            .branch = mat(a->branch2, C), .ls = w.ls2,
            .drop = drop(b, c->dropout, RNG_FC2_DROPOUT, l), .path = path(m, b, RNG_MLP_PATH, l),
            .rows = r.n, .C = C, .tokens = r.Tq, .dx = dx, .dbranch = dbranch_out, .dls = g.ls2,
            .dbias = g.fc2_b});
    be->linear_backward_weight(&(LinearBackwardWeight){ /* fc2_w [C,F] */
        .dw = g.fc2_w, .dy = scaled(dbranch, FC2_DY), .x = scaled(mat(a->gelu, F), FC2_X),
        .rows = r.n, .in = F, .out = C});
    be->linear_backward_input(&(LinearBackwardInput){ /* dwide [B,Tq,F1], before the GELU */
        .dx = dwide, .dy = scaled(dbranch, FC2_DY), .w = scaled(mat(w.fc2_w, F), FC2_W),
        .rows = r.n, .in = F, .out = C, .act = c->act, .pre = mat(a->fc1, F1), .dbias = g.fc1_b,
        .tokens = r.Tq, .drop = drop_part(m, b, c->dropout, RNG_MLP_DROPOUT, l, F)});
    watch(m, dwide, r.n, F1);
    linear_backward(m, g.fc1_w, NULL, dy, dwide, scaled(mat(a->norm2_y, C), FC1_X),
                    scaled(mat(w.fc1_w, C), FC1_W), r.n, C, F1); /* dy */
    sum_parts(m, tp, dy, r.n, C);
    be->residual_norm_backward(&(ResidualNorm){ /* dx += LN2'(dy); dbranch [B,Tq,C] of it */
        .x = mat(a->mid, r.ld), .branch = mat(a->branch1, C), .gamma = w.norm2_w,
        .mean = a->norm2_mean, .rstd = a->norm2_rstd, .ls = w.ls1,
        .drop = drop(b, c->dropout, RNG_PROJ_DROPOUT, l), .path = path(m, b, RNG_ATTN_PATH, l),
        .rows = r.n, .C = C, .tokens = r.Tq, .dy = dy, .dx = dx, .dbranch = dbranch_out,
        .dgamma = g.norm2_w, .dbeta = g.norm2_b, .dls = g.ls1, .dbias = g.proj_b});

    /* attention */
    linear_backward(m, g.proj_w, NULL, datt, scaled(dbranch, PROJ_DY),
                    scaled(mat(a->att, A), PROJ_X), scaled(mat(w.proj_w, A), PROJ_W), r.n, A, C);
    be->attention_backward(&(Attention){ /* dqkv [B,T,3A] */
        .qkv = mat(a->qkv, 3L * A), .out = mat(a->att, A), .lse = a->lse, .B = B, .T = T,
        .Tq = r.Tq, .heads = H, .hs = hs,
        .drop = drop_part(m, b, c->attention_dropout, RNG_ATTN_DROPOUT, l, H),
        .dqkv = dqkv, .dout = datt, .delta = m->delta, .dbias = c->qk_norm ? NULL : g.qkv_b});
    if (c->qk_norm)
        qk_norm_backward(m, b, l, &w, &g);
    watch(m, mat(from(m->dqkv, A), 3L * A), B * T, 2 * A);
    if (few) { /* k and v [B,T,2A] gave to all rows, q [B,1,A] to the class rows: dy is their sum */
        linear_backward(m, dev_at(g.qkv_w, (long)A * C, F32), dev_at(dbias, A, F32), dy,
                        mat(from(m->dqkv, A), 3L * A), mat(a->norm1_y, C),
                        mat(from(w.qkv_w, (long)A * C), C), B * T, C, 2 * A);
        be->linear_backward_weight(&(LinearBackwardWeight){
            .dw = g.qkv_w, .dbias = dbias, .dy = mat(m->dqkv, 3L * A * T),
            .x = mat(a->norm1_y, r.ld), .rows = B, .in = C, .out = A});
        be->linear_backward_input(&(LinearBackwardInput){
            .dx = mat(m->dy, r.ld), .dy = mat(m->dqkv, 3L * A * T), .w = mat(w.qkv_w, C),
            .rows = B, .in = C, .out = A, .tokens = 1, .accumulate = true});
    } else { /* dy [B,T,C] */
        linear_backward(m, g.qkv_w, dbias, dy, dqkv, scaled(mat(a->norm1_y, C), QKV_X),
                        scaled(mat(w.qkv_w, C), QKV_W), B * T, C, 3 * A);
    }
    sum_parts(m, tp, dy, B * T, C);
    be->residual_norm_backward(&(ResidualNorm){ /* dstream += LN1'(dy), all rows from here on */
        .x = mat(b->stream[l], C), .gamma = w.norm1_w, .mean = a->norm1_mean,
        .rstd = a->norm1_rstd, .rows = B * T, .C = C, .tokens = T, .dy = dy,
        .dx = mat(m->dstream, C), .dgamma = g.norm1_w, .dbeta = g.norm1_b,
        .dbias = m->dstream_sums, .fresh = few ? T : 0});
    m->has_sums = true;
    watch(m, mat(m->dstream, C), B * T, C);
    unit_reduce(&m->own, l + 1, b->number, b->last);
}

/* Before block_backward of the last block of a group: makes again what of the group was not saved.
 */
static void block_again(Model *m, Micro *b, int l)
{
    bool ends = l + 1 == end_block(m) || group_of(m, l + 1) == l + 1;
    if (!is_recomputed(m, l) || !ends)
        return;
    for (int k = group_of(m, l); k <= l; k++)
        block_forward(m, b, k, k < l ? THROUGH : AGAIN);
}

/* Positions and class tokens are the same for every picture: their gradients are sums over B. The
 * pixels' own gradient is nobody's business. */
static void embed_backward(Model *m, Micro *b)
{
    const Config *c = &m->config;
    int B = b->B, T = vit_tokens(c), C = c->width, Np = vit_patches(c);
    int PP = VIT_CHANNELS * c->patch * c->patch;
    EmbedParams w = embed_params(m, unit_acquire(&m->own, 0, -1), m->plan.type);
    EmbedParams g = embed_params(m, unit_gradient(&m->own, 0, b->number), F32);
    Tensor dx = mat(m->dstream, C);

    if (c->norm_pre) { /* the one norm that is not beside the stream but in it */
        dx = mat(m->dbranch, C);
        m->be->residual_norm_backward(&(ResidualNorm){ /* dbranch [B,T,C] = LN'(dstream) */
            .x = mat(b->embed_x, C), .gamma = w.norm_w, .mean = b->embed_mean,
            .rstd = b->embed_rstd, .rows = B * T, .C = C, .tokens = T, .dy = mat(m->dstream, C),
            .dx = dx, .dgamma = g.norm_w, .dbeta = g.norm_b, .fresh = 1});
    }
    m->be->embed_backward(&(Embed){ /* patch_out [B*Np, C] becomes its own gradient */
        .x = dx, .patches = mat(b->patch_out, C), .cls = g.cls_token, .pos = g.pos_embed,
        .dbias = g.patch_b, .B = B, .T = T, .cls_tokens = c->cls_tokens, .C = C,
        .drop = drop(b, c->dropout, RNG_EMBED_DROPOUT, 0)});
    m->be->linear_backward_weight(&(LinearBackwardWeight){ /* patch_w [C, 3PP] */
        .dw = g.patch_w, .dy = mat(b->patch_out, C), .x = mat(b->patches, PP), .rows = B * Np,
        .in = PP, .out = C});
    unit_reduce(&m->own, 0, b->number, b->last);
}
/* clang-format on */

static void backward(Model *m, Micro *b)
{
    prepare(m, b);
    m->has_sums = false;
    for (int u = m->split.end - 1; u >= lowest_unit(m); u--) {
        if (u > m->config.layers) {
            head_backward(m, b);
        } else if (u > 0) {
            block_again(m, b, u - 1);
            block_backward(m, b, u - 1);
        } else {
            embed_backward(m, b);
        }
    }
    units_settle(&m->own);
}

/* ------------------------------------------------------------------------------------------------
 * A step. What runs on the device is in the functions do_*, which a backend may record once and
 * repeat: they depend on nothing but what Key tells apart. What changes from step to step (learning
 * rate, seed, sample numbers) is read from StepState in device memory. The host never waits inside
 * a step: inputs go to the device while it computes on those before, results come back a step late.
 */

size_t vit_image_bytes(const Config *c, bool u8)
{
    return (size_t)c->image_h * (size_t)c->image_w * VIT_CHANNELS * (u8 ? 1 : sizeof(real));
}

/* The host's copy of the inputs may be written once the last transfer from it has ended; the
 * device's, which the transfer waits for, once the pass that used it is done. */
void vit_set_batch(Model *m, int B, const void *images, bool u8, const real *targets,
                   const Augment *augment)
{
    const Backend *be = m->be;
    if (B < 1 || B > m->plan.max_batch)
        die("plan the model for the largest micro-batch",
            "a micro-batch of %d images, planned for %d", B, m->plan.max_batch);
    if (!u8 && !m->plan.float_images)
        die("plan the model for float images", "a micro-batch of float images");
    Micro *b = m->now = &m->micro[m->begun % m->plan.in_flight];
    b->B = B;
    b->images_u8 = u8;
    b->use_augment = augment != NULL;
    b->sample0 = 0;
    b->set = !b->set;
    Inputs *in = &b->inputs[b->set];
    be->wait(in->sent);
    const struct {
        dev *dst;
        void *host;
        const void *src;
        size_t bytes; /* of one image */
    } parts[] = {
        {in->images, in->host_images, images, vit_image_bytes(&m->config, u8)},
        {in->targets, in->host_targets, targets, (size_t)m->config.classes * sizeof(real)},
        {in->augment, in->host_augment, augment, sizeof(Augment)},
    };
    for (int i = 0; i < COUNT(parts); i++) {
        size_t bytes = (size_t)B * parts[i].bytes;
        if (!parts[i].src || !parts[i].dst) /* later stages take no images */
            continue;
        memcpy(parts[i].host, parts[i].src, bytes);
        in->sent = be->send(parts[i].dst, parts[i].host, bytes, in->used);
    }
}

/* The host's part of the state, the same way. */
static void send_state(Model *m, Micro *b)
{
    Inputs *in = &b->inputs[b->set];
    m->state.sample0 = b->sample0;
    m->be->wait(in->state_sent);
    memcpy(in->host_state, &m->state, STEP_HOST_BYTES);
    in->state_sent = m->be->send(in->state, in->host_state, STEP_HOST_BYTES, in->used);
}

/* Inside a recording: the state that was sent becomes the one that operations read. */
static void take_state(Model *m, const Micro *b)
{
    m->be->copy(m->state_dev, b->inputs[b->set].state, STEP_HOST_BYTES);
}

/* The working weights after the master weights were written. */
static void refresh(Model *m)
{
    m->be->bind(m->state_dev, m->scratch, m->scratch_bytes);
    units_refresh(&m->own);
}

static size_t stream_bytes(const Model *m, const Micro *b)
{
    return (size_t)b->B * (size_t)vit_tokens(&m->config) * (size_t)m->config.width *
           type_size(m->plan.type);
}

/* Everything that makes a phase call other operations, or with other arguments. */
typedef struct {
    uint64_t model, units;
    int phase, micro, B, set;
    int loss_images;  /* of the forward pass of training */
    bool first, last; /* of the backward pass */
    bool images_u8, use_augment;
    bool delayed; /* scales, of training */
} Key;

/* Ranks evaluate other numbers of images, and stages are at other phases: else all do the same. */
enum { FORWARD, BACKWARD, UPDATE, EVALUATE };

/* FNV-1a of a Key's bytes. */
static uint64_t key_of(const Model *m, const Micro *b, int phase)
{
    Key key;
    memset(&key, 0, sizeof key); /* the bytes between the fields too */
    key.model = m->id;
    key.phase = phase;
    key.micro = (int)(b - m->micro);
    key.B = b->B;
    key.set = b->set;
    key.loss_images = phase == FORWARD ? b->loss_images : 0;
    key.first = phase == BACKWARD && b->number == 0;
    key.last = phase == BACKWARD && b->last;
    key.images_u8 = b->images_u8;
    key.use_augment = b->use_augment;
    key.delayed = (phase == FORWARD || phase == BACKWARD) && scales_are_delayed(m);
    key.units = units_state(&m->own);
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof key; i++)
        h = (h ^ ((const unsigned char *)&key)[i]) * 0x100000001b3u;
    return h;
}

typedef struct {
    Model *m;
    Micro *b;
} Work;

static void run(Model *m, Micro *b, int phase, void (*body)(void *))
{
    /* Stages make other products; tensor parallel ranks the same, of pointers less aligned. */
    bool alike = m->split.pp.ranks == 1 && m->split.tp.ranks == 1;
    bool together = phase != EVALUATE && alike;
    m->be->run(key_of(m, b, phase), together, body, &(Work){m, b});
}

/* Tensor parallel ranks compute on the same images: the first one has read them, each gives them to
 * the next. */
static void share_inputs(Model *m, Micro *b)
{
    const Backend *be = m->be;
    const Axis *tp = &m->split.tp;
    const Inputs *in = &b->inputs[b->set];
    dev *const part[2] = {in->images, in->targets};
    const size_t bytes[2] = {(size_t)b->B * vit_image_bytes(&m->config, b->images_u8),
                             (size_t)b->B * (size_t)m->config.classes * sizeof(real)};
    if (!is_first_stage(m))
        return;
    for (int i = 0; i < 2; i++) {
        if (tp->rank > 0)
            be->join(be->receive(tp->group, tp->rank - 1, part[i], bytes[i]));
        if (tp->rank + 1 < tp->ranks)
            b->shared[i] = be->pass(tp->group, tp->rank + 1, part[i], bytes[i]);
    }
}

static void inputs_shared(Model *m, Micro *b)
{
    for (int i = 0; i < 2; i++) {
        m->be->join(b->shared[i]);
        b->shared[i] = 0;
    }
}

/* This micro-batch's inputs may be written again. */
static void inputs_used(Model *m, Micro *b)
{
    inputs_shared(m, b);
    b->inputs[b->set].used = m->be->mark();
}

/* The stream between two stages, and the targets with it: the last one alone needs them, the first
 * one alone has read them. What is on its way waits for nobody but its reader; buffers are written
 * again when it has arrived. Never part of a recording: a stage may be repeating another phase. */
static void take_over(Model *m, Micro *b)
{
    const Backend *be = m->be;
    const Axis *pp = &m->split.pp;
    const Config *c = &m->config;
    dev *stream = b->stream[first_block(m)];
    be->join(b->passed);
    b->passed = 0;
    share_inputs(m, b);
    if (is_first_stage(m))
        return;
    be->join(be->receive(pp->group, pp->rank - 1, b->inputs[b->set].targets,
                         (size_t)b->B * (size_t)c->classes * sizeof(real)));
    be->join(be->receive(pp->group, pp->rank - 1, stream, stream_bytes(m, b)));
}

static void hand_over(Model *m, Micro *b)
{
    const Axis *pp = &m->split.pp;
    if (is_last_stage(m))
        return;
    m->be->pass(pp->group, pp->rank + 1, b->inputs[b->set].targets,
                (size_t)b->B * (size_t)m->config.classes * sizeof(real));
    b->passed = m->be->pass(pp->group, pp->rank + 1, b->stream[m->split.end - 1],
                            stream_bytes(m, b));
}

void vit_begin_step(Model *m, uint32_t step, double lr, uint64_t seed)
{
    m->state.step = step;
    m->state.lr = lr;
    m->state.seed = seed;
    m->begun = 0;
    m->be->zero(m->stats, 3 * (size_t)m->plan.batch * sizeof(real)); /* other ranks fill the rest */
}

void vit_tell(Model *m, const real *tally)
{
    memcpy(m->state.tally, tally, sizeof m->state.tally);
}

static void do_forward(void *arg)
{
    const Work *w = arg;
    take_state(w->m, w->b);
    forward(w->m, w->b, true);
    loss(w->m, w->b, 1.0 / w->b->loss_images);
}

void vit_micro_forward(Model *m, int first_sample, int batch)
{
    Micro *b = m->now;
    b->number = m->begun++;
    b->sample0 = (uint32_t)first_sample;
    b->loss_images = batch;
    send_state(m, b);
    refresh(m);
    take_over(m, b);
    run(m, b, FORWARD, do_forward);
    units_left(&m->own, m->split.end - 1, m->split.end - 2);
    hand_over(m, b);
    b->train_mode = true;
}

/* Masks are drawn anew: the state must be this micro-batch's again. */
static void do_backward(void *arg)
{
    const Work *w = arg;
    take_state(w->m, w->b);
    backward(w->m, w->b);
}

void vit_micro_backward(Model *m, int micro, bool last)
{
    Micro *b = &m->micro[micro % m->plan.in_flight];
    const Axis *pp = &m->split.pp;
    b->last = last;
    m->be->join(m->returned);
    m->returned = 0;
    if (!is_last_stage(m))
        m->be->join(m->be->receive(m->split.back, pp->rank + 1, m->dstream, stream_bytes(m, b)));
    run(m, b, BACKWARD, do_backward);
    int low = lowest_unit(m); /* where nothing learns, what the forward pass left is still there */
    if (low < m->split.end)
        units_left(&m->own, low, low == m->split.first ? low + 1 : low);
    if (!is_first_stage(m))
        m->returned = m->be->pass(m->split.back, pp->rank - 1, m->dstream, stream_bytes(m, b));
    inputs_used(m, b);
}

void vit_micro_step(Model *m, int first_sample, int batch, bool last)
{
    vit_micro_forward(m, first_sample, batch);
    vit_micro_backward(m, m->now->number, last);
}

/* Stages have other blocks, and tensor parallel ranks other columns: the largest number that any
 * rank has seen is everyone's. */
static void update_scales(Model *m)
{
    const Axis *world = &m->split.world;
    int n = scales_of(m);
    long floats = n * (long)(sizeof(Fp8Scale) / sizeof(float));
    m->be->join(m->be->all_gather(world->group, m->all_scales, m->scales, F32, floats));
    m->be->fp8_update(&(Fp8Update){.scales = m->scales, .amax = m->amax_history,
                                   .all = m->all_scales, .n = n, .ranks = world->ranks,
                                   .history = m->plan.fp8.history, .margin = m->plan.fp8.margin});
}

/* The ranks' statistics and tallies become one sum, then the optimiser has its turn. Of the ranks
 * that have computed the same losses, one counts. */
static void do_update(void *arg)
{
    Model *m = ((const Work *)arg)->m;
    const Backend *be = m->be;
    long stats = 3L * m->plan.batch;
    be->bind(m->state_dev, m->scratch, m->scratch_bytes);
    if (m->split.tp.rank > 0)
        be->zero(m->stats, (size_t)stats * sizeof(real));
    be->copy(dev_at(m->stats, stats, F32),
             (dev *)((char *)m->state_dev + offsetof(StepState, tally)), sizeof m->state.tally);
    be->join(be->all_reduce(m->split.world.group, m->stats, F32, stats + TALLY));
    if (m->plan.scaling.kind == SCALING_AUTO)
        be->join(be->all_reduce(m->split.world.group,
                                (dev *)((char *)m->state_dev + offsetof(StepState, large)), U64,
                                2));
    units_update(&m->own);
    if (m->scales)
        update_scales(m);
    be->scale_loss(&m->plan.scaling);
}

/* Losses and state on their way to the host, in turn into two places. */
static void fetch_result(Model *m, int images)
{
    StepResult *r = &m->results[m->steps % 2];
    m->be->fetch(m->result_state[m->steps++ % 2], m->state_dev, sizeof(StepState));
    m->be->fetch(r->tally, dev_at(m->stats, 3L * m->plan.batch, F32), TALLY * sizeof(real));
    r->ready = m->be->fetch(r->stats, m->stats, 3 * (size_t)images * sizeof(real));
}

void vit_update(Model *m)
{
    run(m, m->now, UPDATE, do_update);
    units_left(&m->own, -1, -1);
    fetch_result(m, m->plan.batch);
}

const StepResult *vit_result(Model *m, int ago)
{
    if (ago < 0 || ago > 1 || m->steps <= (uint32_t)ago)
        return NULL;
    int slot = (int)((m->steps - 1 - (uint32_t)ago) % 2);
    m->be->wait(m->results[slot].ready);
    m->results[slot].state = *(StepState *)m->result_state[slot];
    return &m->results[slot];
}

static void do_evaluate(void *arg)
{
    const Work *w = arg;
    take_state(w->m, w->b);
    forward(w->m, w->b, false);
    loss(w->m, w->b, 1);
}

void vit_evaluate(Model *m)
{
    Micro *b = m->now;
    send_state(m, b);
    refresh(m);
    take_over(m, b);
    run(m, b, EVALUATE, do_evaluate);
    units_left(&m->own, m->split.end - 1, m->split.end - 2);
    hand_over(m, b);
    b->train_mode = false;
    inputs_used(m, b);
    fetch_result(m, b->B);
}

/* ------------------------------------------------------------------------------------------------
 * The parts of a micro-step, and what they left */

void vit_forward(Model *m, bool train_mode)
{
    refresh(m);
    forward(m, m->now, train_mode);
}

void vit_loss(Model *m, double scale)
{
    loss(m, m->now, scale);
}

void vit_stats(const Model *m, real *out)
{
    const Micro *b = m->now;
    m->be->download(out, dev_at(m->stats, 3L * m->state.sample0, F32),
                    3 * (size_t)b->B * sizeof(real));
}

void vit_logits(const Model *m, real *out)
{
    vit_read_act(m, m->now->logits, 0, (long)m->now->B * m->config.classes, out);
}

const StepState *vit_state(Model *m)
{
    m->be->download(&m->state, m->state_dev, sizeof m->state);
    return &m->state;
}

void vit_set_state(Model *m, const StepState *s)
{
    m->state = *s;
    m->be->upload(m->state_dev, &m->state, sizeof m->state);
}

int vit_scales(const Model *m)
{
    return m->scales ? scales_of(m) : 0;
}

static size_t history_bytes(const Model *m)
{
    return (size_t)vit_scales(m) * (size_t)m->plan.fp8.history * sizeof(real);
}

void vit_amax(const Model *m, real *amax)
{
    if (m->scales)
        m->be->download(amax, m->amax_history, history_bytes(m));
}

/* The scales follow from the history: a step that has seen nothing ends with the same. */
void vit_set_amax(Model *m, const real *amax, uint32_t since)
{
    m->fp8_since = since;
    if (!m->scales)
        return;
    m->be->upload(m->amax_history, amax, history_bytes(m));
    m->be->zero(m->scales, (size_t)scales_of(m) * sizeof(Fp8Scale));
    m->be->bind(m->state_dev, m->scratch, m->scratch_bytes);
    update_scales(m);
}

void vit_read_act(const Model *m, const dev *buffer, long offset, long n, real *out)
{
    int type = m->plan.type;
    dev *from = dev_at((dev *)buffer, offset, type);
    if (type == F32) {
        m->be->download(out, from, (size_t)n * sizeof(real));
        return;
    }
    dev *full = m->be->alloc((size_t)n * sizeof(real));
    if (!full)
        die("use a smaller --micro-batch", "no memory to read %ld numbers", n);
    m->be->convert(full, F32, from, type, n);
    m->be->download(out, full, (size_t)n * sizeof(real));
    m->be->release(full);
}

/* ------------------------------------------------------------------------------------------------
 * Memory: everything is planned here, once; no pass allocates. Three allocations, by how long
 * things live and what they grow with: parameters (the model), activations (images at a time),
 * inputs. */

/* Numbers behind an activation of up to so many columns that 8-bit copies may need besides: rows of
 * zeros, and a gap between the two (Fp8 in backend.h). */
static double spare(const Model *m, double columns)
{
    return m->plan.fp8.on ? 8 * columns + 128 : 0;
}

/* Buffers for what block l saves, and of `again` for the rest; those of `again` itself where that
 * is NULL: for what block l does not save. */
static void take_block(const Model *m, Arena *a, int l, BlockActs *b, const BlockActs *again)
{
    const Config *c = &m->config;
    int tp = m->split.tp.ranks, ACT = m->plan.type;
    double B = m->plan.max_batch, T = vit_tokens(c), C = c->width, A = C / tp, F = c->mlp / tp;
    double H = c->heads / tp, F1 = vit_hidden(c) / tp;
#define X(field, type, n, ...)                                                                     \
    b->field = again ? again->field : NULL;                                                        \
    if (is_saved(m, l, ACT_##field) == (again != NULL))                                            \
        b->field = take(a, type, (n) + spare(m, C + F1));
    BLOCK_ACTS(X)
#undef X
}

/* Residual streams before and behind this stage's blocks; without a backward pass two take turns.
 */
static void plan_streams(const Model *m, Arena *a, Micro *b)
{
    double n = (double)m->plan.max_batch * vit_tokens(&m->config) * m->config.width;
    int first = first_block(m), end = end_block(m);
    bool all = m->plan.training || m->plan.keep_streams;
    for (int l = first; l <= end; l++) {
        int into = l < end ? l - group_of(m, l) : 0; /* its group */
        if (m->plan.training && into)
            b->stream[l] = m->streams[into];
        else
            b->stream[l] = all || l - first < 2 ? take(a, m->plan.type, n) : b->stream[l - 2];
    }
}

static void plan_map(const Model *m, Arena *a, Micro *b)
{
    const Config *c = &m->config;
    double B = c->pool == POOL_MAP ? m->plan.max_batch : 0, T = vit_tokens(c), C = c->width;
    int ACT = m->plan.type;
    b->map.query = take(a, ACT, B * C);
    b->map.qkv = take(a, ACT, B * T * 3 * C);
    b->map.lse = take(a, STAT, B * c->heads);
    b->map.att = take(a, ACT, B * C);
    b->map.mid = take(a, ACT, B * C);
    b->map.mean = take(a, STAT, B);
    b->map.rstd = take(a, STAT, B);
    b->map.norm = take(a, ACT, B * C);
    b->map.fc1 = take(a, ACT, B * c->mlp);
    b->map.gelu = take(a, ACT, B * c->mlp);
}

static void plan_micro(const Model *m, Arena *a, Micro *b)
{
    const Config *c = &m->config;
    bool train = m->plan.training;
    double B = m->plan.max_batch, T = vit_tokens(c), C = c->width, K = c->classes;
    double Np = vit_patches(c), PP = VIT_CHANNELS * c->patch * c->patch, R = c->representation;
    double pooled_rows = c->pool == POOL_CLS || c->fc_norm ? B : B * T;
    int ACT = m->plan.type;

    plan_streams(m, a, b);
    for (int l = first_block(m); l < end_block(m); l++)
        take_block(m, a, l, &b->blocks[l], &m->again[l - group_of(m, l)]);
    if (is_first_stage(m)) {
        b->patches = take(a, ACT, B * Np * PP);
        b->patch_out = take(a, ACT, B * Np * C); /* its gradient too, in the backward pass */
        b->embed_x = take(a, ACT, c->norm_pre ? B * T * C : 0);
        b->embed_mean = take(a, STAT, c->norm_pre ? B * T : 0);
        b->embed_rstd = take(a, STAT, c->norm_pre ? B * T : 0);
    }
    if (!is_last_stage(m))
        return;
    b->final_y = take(a, ACT, pooled_rows * C);
    b->final_mean = take(a, STAT, pooled_rows);
    b->final_rstd = take(a, STAT, pooled_rows);
    b->pooled = c->pool == POOL_CLS ? b->final_y : take(a, ACT, B * vit_features(c));
    b->found = take(a, ACT, c->fc_norm ? B * C : 0);
    plan_map(m, a, b);
    b->rep = take(a, ACT, B * R);
    b->rep_pre = take(a, ACT, B * R);
    b->logits = take(a, ACT, B * K);
    b->dlogits = take(a, ACT, train ? B * K : 0);
}

/* Whether there are blocks that do not save everything. */
static bool some_again(const Model *m)
{
    int first = first_block(m);
    return !m->plan.training || is_recomputed(m, first) || first + 1 < m->layout->lowest;
}

/* What such blocks share: one set for each block of a group. */
static void plan_again(Model *m, Arena *a)
{
    int first = first_block(m);
    double n = (double)m->plan.max_batch * vit_tokens(&m->config) * m->config.width;
    for (int i = 0; some_again(m) && i < m->plan.recompute.group; i++) {
        m->streams[i] = take(a, m->plan.type, i ? n : 0);
        take_block(m, a, first, &m->again[i], NULL);
    }
}

/* One place for what is wide: a GELU that is made again, unless with a whole group's, has been read
 * when the gradient of the MLP's width is written, and that when attention's is. */
static void plan_wide(Model *m, Arena *a)
{
    const Config *c = &m->config;
    int tp = c->pool == POOL_MAP ? 1 : m->split.tp.ranks; /* a map is whole */
    double F1 = vit_hidden(c) / tp, A3 = 3 * c->width / tp, wide = F1 > A3 ? F1 : A3;
    bool again = some_again(m) && !is_saved(m, first_block(m), ACT_gelu);
    if (again && m->plan.recompute.group == 1 && c->mlp / m->split.tp.ranks >= wide)
        m->dwide = m->again[0].gelu;
    else
        m->dwide = take(a, m->plan.type,
                        (double)m->plan.max_batch * vit_tokens(c) * wide + spare(m, wide));
    m->dqkv = m->dwide;
}

/* Every micro-batch in flight has activations of its own; gradients of activations are one block's
 * at a time, and shared. */
static void plan_activations(Model *m, Arena *a)
{
    const Config *c = &m->config;
    int ACT = m->plan.type, tp = c->pool == POOL_MAP ? 1 : m->split.tp.ranks; /* a map is whole */
    double B = m->plan.max_batch, T = vit_tokens(c), C = c->width;

    plan_again(m, a);
    for (int i = 0; i < m->plan.in_flight; i++)
        plan_micro(m, a, &m->micro[i]);
    m->branch = take(a, ACT, B * T * C);
    m->scratch_bytes =
        m->be->scratch_bytes(&(Sizes){m->plan.max_batch, vit_tokens(c), c->width, c->heads,
                                      vit_hidden(c), c->classes, c->representation,
                                      m->layout->chunks, m->plan.fp8.on});
    m->scratch = take_bytes(a, (double)m->scratch_bytes);
    if (!m->plan.training)
        return;
    m->drep = take(a, ACT, B * c->representation);
    m->dpooled = take(a, ACT, B * vit_features(c));
    m->dstream = take(a, ACT, B * T * C);
    m->dstream_sums = take(a, STAT, C);
    m->dbranch = take(a, ACT, B * T * C);
    m->dy = take(a, ACT, B * T * C);
    plan_wide(m, a);
    m->delta = take(a, STAT, B * c->heads / tp * T);
}

static size_t planned_image_bytes(const Model *m)
{
    return vit_image_bytes(&m->config, !m->plan.float_images);
}

/* Two sets of inputs a micro-batch: one is filled while the other is computed on. */
static void plan_inputs(Model *m, Arena *a)
{
    double B = m->plan.max_batch;
    for (int i = 0; i < 2 * m->plan.in_flight; i++) {
        Inputs *in = &m->micro[i / 2].inputs[i % 2];
        bool reads = is_first_stage(m);
        in->images = take_bytes(a, reads ? B * (double)planned_image_bytes(m) : 0);
        in->targets = take(a, F32, B * m->config.classes);
        in->augment = take_bytes(a, reads ? B * sizeof(Augment) : 0);
        in->state = take_bytes(a, STEP_HOST_BYTES);
    }
    m->stats = take(a, F32, 3.0 * m->plan.batch + TALLY);
    m->state_dev = take_bytes(a, sizeof(StepState));
}

/* A table of all blocks on every rank, and every rank's table. */
static void plan_scales(Model *m, Arena *a)
{
    int n = m->plan.fp8.on ? scales_of(m) : 0, ranks = m->split.world.ranks;
    m->scales = take_bytes(a, n * (double)sizeof(Fp8Scale));
    m->amax_history = take(a, F32, (double)n * m->plan.fp8.history);
    m->all_scales = m->scales;
    if (ranks > 1)
        m->all_scales = take_bytes(a, (double)ranks * n * (double)sizeof(Fp8Scale));
}

/* Offloaded, the optimiser's state is in pinned host memory, which the device reads and writes. */
static void plan_parameters(Model *m, Arena *a)
{
    m->host.bytes = 0;
    units_plan(&m->own, a, m->plan.offload ? &m->host : a);
    plan_scales(m, a);
}

static const struct {
    void (*plan)(Model *, Arena *);
    const char *what;
} plans[] = {{plan_parameters, "parameters and optimiser state"},
             {plan_activations, "activations"},
             {plan_inputs, "inputs"}};

/* ------------------------------------------------------------------------------------------------
 * Creation */

static void place(Model *m, int which, size_t *bytes)
{
    Arena a = {.gap = m->plan.gap};
    plans[which].plan(m, &a);
    *bytes = a.bytes;
    if (m->host.bytes && !m->host.base) {
        m->host.base = m->be->host_alloc(m->host.bytes);
        memset(m->host.base, 0, m->host.bytes);
    }
    a.base = m->memory[which] = m->be->alloc(a.bytes);
    if (!a.base) {
        int fits = 0;
        char hint[200] = "use a smaller model, or a machine with more memory";
        for (int i = 0; i < which; i++) {
            m->be->release(m->memory[i]);
            m->memory[i] = NULL;
        }
        if (m->be->memory_free() > 0)
            fits = vit_largest_batch(&m->config, &m->plan, m->be, m->be->memory_free());
        int half = m->plan.max_batch / 2;
        if (which > 0 && fits > 0 && fits < m->plan.max_batch)
            snprintf(hint, sizeof hint, "--micro-batch %d is the largest that fits", fits);
        else if (which > 0 && fits && half) /* what is free may be in pieces, or not ours to take */
            snprintf(hint, sizeof hint, "try a smaller one, such as --micro-batch %d", half);
        die(hint, "no memory for %.2f GiB of %s (micro-batch %d)", (double)a.bytes / (1 << 30),
            plans[which].what, m->plan.max_batch);
    }
    a.bytes = 0;
    plans[which].plan(m, &a);
}

/* Everything but device memory. */
static Model *new_model(const Config *c, const Plan *plan, const Backend *be)
{
    static uint64_t id;
    Model *m = xcalloc(1, sizeof *m);
    m->id = ++id;
    m->config = *c;
    m->plan = *plan;
    m->split = plan->split ? *plan->split : split_alone(c);
    m->plan.batch = plan->batch > plan->max_batch ? plan->batch : plan->max_batch;
    if (!plan->in_flight)
        m->plan.in_flight = plan->training ? split_in_flight(&m->split) : 1;
    if (!plan->training)
        m->plan.recompute = (Recompute){0};
    if (m->plan.recompute.group < 1)
        m->plan.recompute.group = 1;
    m->be = be;
    Cut cut = split_cut(&m->split);
    m->layout = layout_new(c, plan->decay, &cut);
    layout_rates(m->layout, plan->layer_decay > 0 ? plan->layer_decay : 1, plan->frozen,
                 plan->position);
    m->classes = c->classes % m->split.tp.ranks ? (Axis){0, 1, NULL} : m->split.tp;
    m->own = (Units){.layout = m->layout,
                     .be = be,
                     .split = &m->split,
                     .type = plan->type,
                     .training = plan->training,
                     .stochastic = plan->stochastic,
                     .transient = !plan->stochastic && m->plan.recompute.kind == RECOMPUTE_LIGHT,
                     .average = plan->ema,
                     .opt = plan->opt,
                     .clip = plan->clip};
    units_new(&m->own);
    size_t L = (size_t)c->layers, group = (size_t)m->plan.recompute.group;
    m->again = xcalloc(group, sizeof *m->again);
    m->streams = xcalloc(group, sizeof *m->streams);
    m->now = m->micro = xcalloc((size_t)m->plan.in_flight, sizeof *m->micro);
    for (int i = 0; i < m->plan.in_flight; i++) {
        m->micro[i].stream = xcalloc(L + 1, sizeof(dev *));
        m->micro[i].blocks = xcalloc(L, sizeof(BlockActs));
    }
    return m;
}

Memory vit_memory(const Config *c, const Plan *plan, const Backend *be)
{
    Model *m = new_model(c, plan, be);
    double bytes[COUNT(plans)];
    for (int i = 0; i < COUNT(plans); i++) {
        Arena a = {.gap = m->plan.gap};
        plans[i].plan(m, &a);
        bytes[i] = (double)a.bytes;
    }
    const Units *u = &m->own;
    double host = (double)m->host.bytes, opt = (double)u->bytes_opt - host;
    Memory r = {(double)u->bytes_weights, (double)u->bytes_grads, opt, bytes[1], bytes[2], host};
    vit_free(m);
    return r;
}

double vit_bytes(const Config *c, const Plan *plan, const Backend *be)
{
    Memory m = vit_memory(c, plan, be);
    return m.weights + m.gradients + m.optimiser + m.activations + m.inputs;
}

int vit_largest_batch(const Config *c, const Plan *plan, const Backend *be, double bytes)
{
    int fits = 0, over = plan->max_batch + 1;
    while (over - fits > 1) { /* fits: known to; over: known not to, or not asked for */
        Plan p = *plan;
        p.max_batch = fits + (over - fits) / 2;
        if (vit_bytes(c, &p, be) <= bytes)
            fits = p.max_batch;
        else
            over = p.max_batch;
    }
    return fits;
}

/* Pinned memory on the host's side of each transfer. */
static void allocate_host(Model *m)
{
    const Backend *be = m->be;
    size_t B = (size_t)m->plan.max_batch;
    for (int i = 0; i < 2 * m->plan.in_flight; i++) {
        Inputs *in = &m->micro[i / 2].inputs[i % 2];
        in->host_images = be->host_alloc(is_first_stage(m) ? B * planned_image_bytes(m) : 1);
        in->host_targets = be->host_alloc(B * (size_t)m->config.classes * sizeof(real));
        in->host_augment = be->host_alloc(B * sizeof(Augment));
        in->host_state = be->host_alloc(STEP_HOST_BYTES);
    }
    for (int i = 0; i < 2; i++) {
        m->results[i].stats = be->host_alloc(3 * (size_t)m->plan.batch * sizeof(real));
        m->results[i].tally = be->host_alloc(TALLY * sizeof(real));
        m->result_state[i] = be->host_alloc(sizeof(StepState));
    }
}

/* Sums of 8-bit products are over multiples of 16, and so are the widths that they are over. */
static bool check_fp8(const Config *c, const Plan *plan, const Backend *be, Error *e)
{
    int tp = plan->split ? plan->split->tp.ranks : 1;
    const char *of = tp > 1 ? " of a tensor parallel rank" : "";
    const struct {
        const char *what, *of;
        int width;
    } widths[] = {{"width", "", c->width},
                  {"width", of, c->width / tp},
                  {"mlp", of, c->mlp / tp},
                  {"hidden", of, vit_hidden(c) / tp}};
    if (!plan->fp8.on)
        return true;
    if (!be->fp8)
        return fail(e, "choose another --precision", "the %s backend has no fp8", be->name);
    for (int i = 0; i < COUNT(widths); i++)
        if (widths[i].width % 16)
            return fail(e, "choose widths that are multiples of 16, or --precision bf16",
                        "fp8: %s%s is %d", widths[i].what, widths[i].of, widths[i].width);
    return true;
}

Model *vit_create(const Config *c, const Plan *plan, const Backend *be)
{
    Error e;
    if (!vit_config_check(c, &e) || !check_fp8(c, plan, be, &e))
        die(e.hint, "%s", e.what);
    if (plan->max_batch < 1)
        die("give a --batch-size of at least 1", "a batch of %d images", plan->max_batch);
    Model *m = new_model(c, plan, be);
    size_t ignored, *bytes[] = {&ignored, &m->bytes_acts, &m->bytes_inputs};
    for (int i = 0; i < COUNT(plans); i++)
        place(m, i, bytes[i]);
    allocate_host(m);
    units_start(&m->own);
    m->state.loss_scale = plan->scaling.kind == SCALING_NONE ? 1 : plan->scaling.init;
    m->state.patience = (uint32_t)plan->scaling.hysteresis;
    m->state.clip = 1;
    vit_set_state(m, &m->state);
    return m;
}

static void host_free(const Backend *be, void *p)
{
    if (p)
        be->host_release(p);
}

void vit_free(Model *m)
{
    if (!m)
        return;
    const Backend *be = m->be;
    be->join(m->returned); /* nothing may be on its way from memory that goes now */
    for (int i = 0; i < m->plan.in_flight; i++) {
        be->join(m->micro[i].passed);
        inputs_shared(m, &m->micro[i]);
    }
    for (int i = 0; i < COUNT(m->memory); i++)
        if (m->memory[i])
            be->release(m->memory[i]);
    for (int i = 0; i < 2 * m->plan.in_flight; i++) {
        const Inputs *in = &m->micro[i / 2].inputs[i % 2];
        host_free(be, in->host_images);
        host_free(be, in->host_targets);
        host_free(be, in->host_augment);
        host_free(be, in->host_state);
    }
    for (int i = 0; i < 2; i++) {
        host_free(be, m->results[i].stats);
        host_free(be, m->results[i].tally);
        host_free(be, m->result_state[i]);
    }
    for (int i = 0; i < m->plan.in_flight; i++) {
        free(m->micro[i].stream);
        free(m->micro[i].blocks);
    }
    free(m->micro);
    host_free(be, m->host.base);
    free(m->again);
    free(m->streams);
    units_free(&m->own);
    layout_free(m->layout);
    free(m);
}

/* This rank's part alone, a stretch at a time. */
bool vit_init(Model *m, const char *scheme, uint64_t seed, double head_bias, double layer_scale,
              Error *e)
{
    enum { PIECE = 1 << 20 };
    const Layout *l = m->layout;
    Units *u = &m->own;
    real *values = xcalloc(PIECE, sizeof *values);
    bool ok = true;
    for (int i = 0; ok && i < l->tensors; i++) {
        const Param *p = &l->param[i];
        long begin, end, at = units_kept(u, p, false, &begin, &end);
        for (Run r = {.part = begin}; ok && r.part < end; r.part += r.n) {
            r = param_run(l, p, r.part, r.part + PIECE < end ? r.part + PIECE : end);
            ok = param_init(l, p, scheme, seed, head_bias, layer_scale, r.whole, r.n, values, e);
            if (ok)
                units_write(u, u->weights, at + r.part - begin, r.n, values);
        }
    }
    free(values);
    if (ok && u->ema)
        m->be->copy(u->ema, u->weights, (size_t)l->n_own * sizeof(real));
    return ok;
}

void vit_set_positions(Model *m)
{
    const Layout *l = m->layout;
    Units *u = &m->own;
    for (int i = 0; i < l->unit[0].count && m->plan.position != POSITION_LEARNED; i++) {
        const Param *p = &l->param[l->unit[0].first + i];
        long begin, end, at = units_kept(u, p, false, &begin, &end);
        if (p->role != ROLE_POS || begin == end)
            continue;
        real *values = xcalloc((size_t)(end - begin), sizeof *values);
        param_positions(&l->config, m->plan.position, begin, end - begin, values);
        units_write(u, u->weights, at, end - begin, values);
        if (u->ema)
            units_write(u, u->ema, at, end - begin, values);
        free(values);
    }
}
