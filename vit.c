/* vit.c - the Vision Transformer, once: layout, initialisation, forward and backward pass.
 *
 * A reader who wants the model starts at "Forward" and reads down; embed_forward, block_forward and
 * head_forward are the paper's equations, and each backward function undoes its forward one line by
 * line. All arithmetic is behind the Backend table of vit.h; what is here is order and shape.
 * There is no device code, no file format and no training loop in this file; settings are in
 * config.c.
 */
#include "vit.h"
#include "util/rng.h"
#include "util/text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------
 * Parameters: the tables of vit.h become a layout */

#define ALIGN 64 /* elements: every tensor starts 256 bytes aligned in fp32 */

static long round_up(long n, long to)
{
    return (n + to - 1) / to * to;
}

/* The tensors of one kind of unit with shapes and offsets; returns the unit's padded size. */
static long param_table(const Config *c, int kind, ParamInfo *p, int *count)
{
    int C = c->width, F = c->mlp, K = c->classes, P = c->patch, R = c->representation;
    int N = c->cls_tokens, T = vit_tokens(c);
#define SHAPE(a, b, d, e) {a, b, d, e}
#define X(field, name, shape, init, split, present) \
    *p++ = (ParamInfo){name, 0, SHAPE shape, INIT_##init, split, present, 0};
    ParamInfo *first = p;
    if (kind == UNIT_EMBED) {
        EMBED_PARAMS(X)
    } else if (kind == UNIT_BLOCK) {
        BLOCK_PARAMS(X)
    } else {
        HEAD_PARAMS(X)
    }
#undef X
    long offset = 0;
    *count = (int)(p - first);
    for (ParamInfo *q = first; q < p; q++) {
        while (q->ndim < 4 && q->shape[q->ndim])
            q->n *= q->shape[q->ndim++]; /* n was 1 where present, 0 where absent */
        q->offset = offset;
        offset = round_up(offset + q->n, ALIGN);
    }
    return offset;
}

#define MAX_UNIT_PARAMS 16

static void build_layout(Model *m)
{
    const Config *c = &m->config;
    ParamInfo *table[UNIT_KINDS];
    long size[UNIT_KINDS];
    int count[UNIT_KINDS];
    for (int k = 0; k < UNIT_KINDS; k++) {
        table[k] = xcalloc(MAX_UNIT_PARAMS, sizeof(ParamInfo));
        size[k] = param_table(c, k, table[k], &count[k]);
    }
    m->units = c->layers + 2;
    m->unit = xcalloc((size_t)m->units, sizeof(Unit));
    for (int u = 0; u < m->units; u++) {
        int k = u == 0 ? UNIT_EMBED : u <= c->layers ? UNIT_BLOCK : UNIT_HEAD;
        m->unit[u] = (Unit){k, count[k], table[k], m->n_padded, size[k]};
        m->n_padded += size[k];
        for (int i = 0; i < count[k]; i++) {
            m->n_params += table[k][i].n;
            m->tensors += table[k][i].n > 0;
        }
    }
}

bool vit_each_param(const Model *m, ParamVisitor visit, void *ctx)
{
    for (int u = 0; u < m->units; u++) {
        const Unit *unit = &m->unit[u];
        for (int i = 0; i < unit->count; i++) {
            const ParamInfo *p = &unit->params[i];
            char name[96];
            if (!p->n)
                continue;
            if (unit->kind == UNIT_BLOCK)
                snprintf(name, sizeof name, "blocks.%d.%s", u - 1, p->name);
            else
                snprintf(name, sizeof name, "%s", p->name);
            if (!visit(ctx, u, p, name, unit->offset + p->offset))
                return false;
        }
    }
    return true;
}

/* Chunks of all tensors, in order, with the decay mask. */
typedef struct {
    Chunk *list;
    int n, tensor, decay;
} ChunkList;

static bool add_chunks(void *ctx, int unit, const ParamInfo *p, const char *name, long offset)
{
    ChunkList *l = ctx;
    size_t len = strlen(name);
    bool is_weight = len > 7 && strcmp(name + len - 7, ".weight") == 0;
    bool decay = l->decay == DECAY_ALL || (p->ndim > 1 && (l->decay == DECAY_NO_1D || is_weight));
    int flags = (decay ? CHUNK_DECAY : 0) | (p->ndim <= 1 ? CHUNK_1D : 0);
    (void)unit;
    for (long at = 0; at < p->n; at += VIT_CHUNK, l->n++) {
        long left = p->n - at;
        if (!l->list)
            continue;
        l->list[l->n] =
            (Chunk){offset + at, (int)(left < VIT_CHUNK ? left : VIT_CHUNK), l->tensor, flags};
    }
    l->tensor++;
    return true;
}

/* ------------------------------------------------------------------------------------------------
 * Initialisers: one row per scheme, one column per role of a tensor */

enum {
    Z,   /* zero */
    N02, /* normal(0.02) */
    N_6, /* normal(1e-6) */
    XU,  /* Xavier uniform: U(+-sqrt(6 / (fan_in + fan_out))), Glorot & Bengio 2010 */
    XN,  /* Xavier normal: std sqrt(2 / (fan_in + fan_out)) */
    LN_, /* LeCun normal as Flax: std sqrt(1 / fan_in), cut at two deviations, variance restored */
    TU,  /* PyTorch's default: U(+-1 / sqrt(fan_in)) */
    OUT, /* Megatron's output layers: normal(0.02 / sqrt(2 L)) */
    KF,  /* Kaiming normal, fan out: std sqrt(2 / fan_out) */
    ONE, /* one */
    HB,  /* the head bias given */
    LS_  /* the layer scale given */
};

const char *const vit_init_names[] = {"jax", "timm", "torch", "megatron", "xavier", NULL};

/* clang-format off */
static const unsigned char init_rows[][INIT_LS + 1] = {
/*            ZERO ONE  CLS  POS  PATCH QKV  PROJ FC1 FC2 BIAS MLPB PATCHB REP REPB HEAD HEADB LS */
/* jax */      {Z, ONE, Z,   N02, LN_,  XU,  XU,  XU, XU, Z,   N_6, Z,     LN_, Z,  Z,   HB,   LS_},
/* timm */     {Z, ONE, N_6, N02, TU,   N02, N02, N02,N02,Z,   Z,   TU,    N02, Z,  N02, HB,   LS_},
/* torch */    {Z, ONE, Z,   N02, TU,   TU,  TU,  TU, TU, TU,  TU,  TU,    TU,  TU, TU,  TU,   LS_},
/* megatron */ {Z, ONE, Z,   N02, TU,   N02, OUT, N02,OUT,Z,   Z,   TU,    TU,  TU, TU,  HB,   LS_},
/* xavier */   {Z, ONE, Z,   N02, KF,   XN,  XN,  XN, XN, Z,   Z,   Z,     XN,  Z,  XN,  HB,   LS_},
};
/* clang-format on */

bool vit_init_param(const Model *m, int unit, const ParamInfo *p, const char *scheme, uint64_t seed,
                    double head_bias, double layer_scale, real *out)
{
    int row = 0;
    while (vit_init_names[row] && strcmp(vit_init_names[row], scheme) != 0)
        row++;
    if (!vit_init_names[row])
        return false;
    const ParamInfo *unit_params = m->unit[unit].params;
    int rule = init_rows[row][p->init], number = (int)(p - unit_params);

    /* fans: of q, k and v each for the fused qkv; a bias takes its weight's, which stands before it
     */
    const ParamInfo *of = p->ndim <= 1 && number > 0 ? p - 1 : p;
    double fan_in = of->ndim > 1 ? (double)of->n / of->shape[0] : 1, fan_out = of->shape[0];
    if (p->init == INIT_QKV)
        fan_out /= 3;
    if (p->init == INIT_PATCH && rule == KF)
        fan_out *= (double)m->config.patch * m->config.patch;
    double std = 0, bound = 0, value = 0, cut = 1e30;
    switch (rule) {
    case N02:
        std = 0.02;
        break;
    case N_6:
        std = 1e-6;
        break;
    case XN:
        std = sqrt(2 / (fan_in + fan_out));
        break;
    case LN_:
        std = sqrt(1 / fan_in) / 0.87962566103423978;
        cut = 2;
        break;
    case OUT:
        std = 0.02 / sqrt(2.0 * m->config.layers);
        break;
    case KF:
        std = sqrt(2 / fan_out);
        break;
    case XU:
        bound = sqrt(6 / (fan_in + fan_out));
        break;
    case TU:
        bound = 1 / sqrt(fan_in);
        break;
    case ONE:
        value = 1;
        break;
    case HB:
        value = head_bias;
        break;
    case LS_:
        value = layer_scale;
        break;
    default:
        break;
    }
#pragma omp parallel for schedule(static)
    for (long i = 0; i < p->n; i++) {
        double v = value;
        if (bound > 0)
            v = bound *
                (2 * rng_unit(
                         rng_block(seed, (uint32_t)i, (uint32_t)number, 0, RNG_INIT, unit).v[0]) -
                 1);
        for (uint32_t attempt = 0; std > 0; attempt++) {
            Philox r = rng_block(seed, (uint32_t)i, (uint32_t)number, attempt, RNG_INIT, unit);
            v = rng_normal(rng_unit(r.v[0]), rng_unit(r.v[1]));
            if (fabs(v) > cut)
                continue;
            v *= std;
            break;
        }
        out[i] = (real)v;
    }
    return true;
}

typedef struct {
    Model *m;
    const char *scheme;
    uint64_t seed;
    double head_bias, layer_scale;
} InitArgs;

static bool init_one(void *ctx, int unit, const ParamInfo *p, const char *name, long offset)
{
    InitArgs *a = ctx;
    real *host = xmalloc((size_t)p->n * sizeof *host);
    bool ok = vit_init_param(a->m, unit, p, a->scheme, a->seed, a->head_bias, a->layer_scale, host);
    if (ok)
        vit_write(a->m, a->m->weights, offset, p->n, host);
    free(host);
    (void)name;
    return ok;
}

bool vit_init(Model *m, const char *scheme, uint64_t seed, double head_bias, double layer_scale,
              Error *e)
{
    InitArgs a = {m, scheme, seed, head_bias, layer_scale};
    bool ok = vit_each_param(m, init_one, &a);
    if (ok && m->ema)
        m->be->copy(m->ema, m->weights, (size_t)m->n_padded * sizeof(real));
    if (ok)
        return true;
    const char *near = nearest(scheme, vit_init_names);
    return fail(e, "choose jax, timm, torch, megatron or xavier",
                "no initialiser is called '%s'%s%s", scheme, near ? "; did you mean " : "",
                near ? near : "");
}

/* ------------------------------------------------------------------------------------------------
 * Memory: everything is planned here, once; no pass allocates */

static dev *at(dev *base, long elements, int type)
{
    return base ? (dev *)((char *)base + elements * (long)type_size(type)) : NULL;
}

/* A plan runs twice over the same list of take()s: first without memory, to add up, then with it.
 * Tests leave room between buffers, to see that nothing is written there. */
typedef struct {
    const Plan *plan;
    dev *base;
    size_t bytes;
} Arena;

enum { STAT = F32, GAP = 1024 /* bytes */ };

static dev *take_bytes(Arena *a, double bytes)
{
    if (bytes <= 0)
        return NULL;
    dev *p = a->base ? (dev *)((char *)a->base + a->bytes) : NULL;
    size_t used = (size_t)bytes;
    a->bytes += (size_t)round_up((long)used, 256);
    if (a->plan->gap) {
        a->bytes += GAP;
        if (p)
            a->plan->gap((dev *)((char *)p + used), (size_t)round_up((long)used, 256) + GAP - used);
    }
    return p;
}

static dev *take(Arena *a, int type, double elements)
{
    return take_bytes(a, elements * (double)type_size(type));
}

static void take_block(Arena *a, const Config *c, double B, BlockActs *b)
{
    double T = vit_tokens(c), C = c->width, F = c->mlp, H = c->heads;
    int ACT = a->plan->type;
#define X(field, type, n) b->field = take(a, type, n);
    BLOCK_ACTS(X)
#undef X
}

static void plan_activations(Model *m, Arena *a)
{
    const Config *c = &m->config;
    bool train = m->plan.training, all = train || m->plan.keep_streams;
    double B = m->plan.max_batch, T = vit_tokens(c), C = c->width, F = c->mlp, K = c->classes;
    double Np = vit_patches(c), PP = VIT_CHANNELS * c->patch * c->patch, R = c->representation;
    double pooled_rows = c->pool == POOL_CLS ? B : B * T;
    int ACT = m->plan.type;

    m->patches = take(a, ACT, B * Np * PP);
    m->patch_out = take(a, ACT, B * Np * C); /* its gradient too, in the backward pass */
    m->embed_x = take(a, ACT, c->norm_pre ? B * T * C : 0);
    m->embed_mean = take(a, STAT, c->norm_pre ? B * T : 0);
    m->embed_rstd = take(a, STAT, c->norm_pre ? B * T : 0);
    for (int l = 0; l <= c->layers; l++) /* without a backward pass two streams take turns */
        m->stream[l] = all || l < 2 ? take(a, ACT, B * T * C) : m->stream[l % 2];
    for (int l = 0; l < c->layers; l++)
        if (train || l == 0)
            take_block(a, c, B, &m->blocks[l]);
        else
            m->blocks[l] = m->blocks[0];
    m->branch = take(a, ACT, B * T * C);
    m->final_y = take(a, ACT, pooled_rows * C);
    m->final_mean = take(a, STAT, pooled_rows);
    m->final_rstd = take(a, STAT, pooled_rows);
    m->pooled = c->pool == POOL_CLS ? m->final_y : take(a, ACT, B * C);
    m->rep = take(a, ACT, B * R);
    m->rep_pre = take(a, ACT, B * R);
    m->logits = take(a, ACT, B * K);
    m->scratch_bytes = m->be->scratch_bytes(c, m->plan.max_batch);
    m->scratch = take_bytes(a, (double)m->scratch_bytes);
    if (!train)
        return;
    m->dlogits = take(a, ACT, B * K);
    m->drep = take(a, ACT, B * R);
    m->dpooled = take(a, ACT, B * C);
    m->dstream = take(a, ACT, B * T * C);
    m->dbranch = take(a, ACT, B * T * C);
    m->dy = take(a, ACT, B * T * C);
    m->dwide = take(a, ACT, B * T * F);
    m->dqkv = take(a, ACT, B * T * 3 * C);
    m->delta = take(a, STAT, B * c->heads * T);
}

static size_t planned_image_bytes(const Model *m)
{
    return vit_image_bytes(&m->config, !m->plan.float_images);
}

static void plan_inputs(Model *m, Arena *a)
{
    double B = m->plan.max_batch;
    for (int i = 0; i < COUNT(m->inputs); i++) {
        Inputs *in = &m->inputs[i];
        in->images = take_bytes(a, B * (double)planned_image_bytes(m));
        in->targets = take(a, F32, B * m->config.classes);
        in->augment = take_bytes(a, B * sizeof(Augment));
        in->state = take_bytes(a, STEP_HOST_BYTES);
    }
    m->stats = take(a, F32, 3.0 * m->plan.batch);
    m->state_dev = take_bytes(a, sizeof(StepState));
}

static void plan_parameters(Model *m, Arena *a)
{
    long largest = 0;
    double n = (double)m->n_padded;
    bool same = m->plan.type == F32;
    for (int u = 0; u < m->units; u++)
        largest = m->unit[u].n > largest ? m->unit[u].n : largest;
    m->weights = take(a, F32, n);
    m->work = same ? m->weights : take(a, m->plan.type, n);
    m->bytes_params = a->bytes;
    if (m->plan.ema)
        m->ema = take(a, F32, n);
    if (!m->plan.training)
        return;
    size_t before = a->bytes;
    m->grads = take(a, F32, n);
    m->unit_grad = take(a, F32, (double)largest);
    m->bytes_grads = a->bytes - before;
    m->m = take(a, F32, n);
    if (m->plan.opt.kind != OPT_SGD)
        m->v = take(a, F32, n);
    m->chunks = take_bytes(a, (double)m->n_chunks * sizeof(Chunk));
    m->partial = take(a, F32, m->n_chunks);
    if (m->plan.opt.kind == OPT_LAMB)
        m->norms = take(a, F32, 2.0 * m->n_chunks);
    m->bytes_opt = a->bytes - m->bytes_params - m->bytes_grads;
}

static const struct {
    void (*plan)(Model *, Arena *);
    const char *what;
} plans[] = {{plan_parameters, "parameters and optimiser state"},
             {plan_activations, "activations"},
             {plan_inputs, "inputs"}};

static void place(Model *m, int which, size_t *bytes)
{
    Arena a = {&m->plan, NULL, 0};
    plans[which].plan(m, &a);
    *bytes = a.bytes;
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
        if (fits)
            snprintf(hint, sizeof hint, "--micro-batch %d is the largest that fits", fits);
        die(hint, "no memory for %.2f GiB of %s (micro-batch %d)", (double)a.bytes / (1 << 30),
            plans[which].what, m->plan.max_batch);
    }
    a.bytes = 0;
    plans[which].plan(m, &a);
}

static Model *new_model(const Config *c, const Plan *plan, const Backend *be)
{
    static uint64_t id;
    Model *m = xcalloc(1, sizeof *m);
    m->id = ++id;
    m->config = *c;
    m->plan = *plan;
    m->plan.batch = plan->batch > plan->max_batch ? plan->batch : plan->max_batch;
    m->be = be;
    build_layout(m);
    ChunkList list = {NULL, 0, 0, plan->decay};
    vit_each_param(m, add_chunks, &list);
    m->n_chunks = list.n;
    m->stream = xcalloc((size_t)c->layers + 1, sizeof *m->stream);
    m->blocks = xcalloc((size_t)c->layers, sizeof *m->blocks);
    return m;
}

double vit_bytes(const Config *c, const Plan *plan, const Backend *be)
{
    Model *m = new_model(c, plan, be);
    double bytes = 0;
    for (int i = 0; i < COUNT(plans); i++) {
        Arena a = {&m->plan, NULL, 0};
        plans[i].plan(m, &a);
        bytes += (double)a.bytes;
    }
    vit_free(m);
    return bytes;
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

Model *vit_create(const Config *c, const Plan *plan, const Backend *be)
{
    Error e;
    if (!vit_config_check(c, &e))
        die(e.hint, "%s", e.what);
    if (plan->max_batch < 1)
        die("give a --batch-size of at least 1", "a batch of %d images", plan->max_batch);
    Model *m = new_model(c, plan, be);
    size_t ignored, *bytes[] = {&ignored, &m->bytes_acts, &m->bytes_inputs};
    for (int i = 0; i < COUNT(plans); i++)
        place(m, i, bytes[i]);

    size_t B = (size_t)plan->max_batch;
    for (int i = 0; i < 2; i++) {
        m->inputs[i].host_images = be->host_alloc(B * planned_image_bytes(m));
        m->inputs[i].host_targets = be->host_alloc(B * (size_t)c->classes * sizeof(real));
        m->inputs[i].host_augment = be->host_alloc(B * sizeof(Augment));
        m->inputs[i].host_state = be->host_alloc(STEP_HOST_BYTES);
        m->results[i].stats = be->host_alloc(3 * (size_t)m->plan.batch * sizeof(real));
        m->result_state[i] = be->host_alloc(sizeof(StepState));
    }
    if (plan->training) {
        ChunkList list = {xcalloc((size_t)m->n_chunks, sizeof(Chunk)), 0, 0, plan->decay};
        vit_each_param(m, add_chunks, &list);
        be->upload(m->chunks, list.list, (size_t)m->n_chunks * sizeof(Chunk));
        free(list.list);
    }
    bool scaled = plan->scaling.kind != SCALING_NONE;
    m->state.loss_scale = scaled ? plan->scaling.init : 1;
    m->state.patience = (uint32_t)plan->scaling.hysteresis;
    m->state.clip = 1;
    vit_set_state(m, &m->state);
    m->stale = true;
    return m;
}

void vit_free(Model *m)
{
    if (!m)
        return;
    const Backend *be = m->be;
    for (int i = 0; i < COUNT(m->memory); i++)
        if (m->memory[i])
            be->release(m->memory[i]);
    for (int i = 0; i < 2; i++) {
        void *host[] = {m->inputs[i].host_images,  m->inputs[i].host_targets,
                        m->inputs[i].host_augment, m->inputs[i].host_state,
                        m->results[i].stats,       m->result_state[i]};
        for (int k = 0; k < COUNT(host); k++)
            if (host[k])
                be->host_release(host[k]);
    }
    free(m->unit[0].params);
    free(m->unit[1].params);
    free(m->unit[m->units - 1].params);
    free(m->unit);
    free(m->stream);
    free(m->blocks);
    free(m);
}

void vit_read(const Model *m, const dev *buffer, long offset, long n, real *out)
{
    m->be->download(out, at((dev *)buffer, offset, F32), (size_t)n * sizeof(real));
}

void vit_write(Model *m, dev *buffer, long offset, long n, const real *in)
{
    m->be->upload(at(buffer, offset, F32), in, (size_t)n * sizeof(real));
    m->stale |= buffer == m->weights;
}

void vit_read_act(const Model *m, const dev *buffer, long offset, long n, real *out)
{
    int type = m->plan.type;
    dev *from = at((dev *)buffer, offset, type);
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

/* The working weights after the master weights were written. */
static void refresh(Model *m)
{
    if (m->stale && m->work != m->weights && m->plan.stochastic) {
        m->be->bind(m->state_dev, m->scratch, m->scratch_bytes);
        m->be->round_weights(m->work, m->plan.type, m->weights, m->n_padded);
    } else if (m->stale && m->work != m->weights) {
        m->be->convert(m->work, m->plan.type, m->weights, F32, m->n_padded);
    }
    m->stale = false;
}

/* ------------------------------------------------------------------------------------------------
 * Units: where weights come from and where gradients go. With one process these hand out places in
 * the model's buffers; gathering, sharding and recomputing a unit happen behind the same four
 * calls. */

static dev *unit_acquire(Model *m, int u)
{
    return at(m->work, m->unit[u].offset, m->plan.type);
}

static void unit_release(Model *m, int u)
{
    (void)m;
    (void)u;
}

/* The first micro-batch writes its gradient where the sum will stand, later ones beside it. */
static dev *unit_gradient(Model *m, int u)
{
    return m->micro == 0 ? at(m->grads, m->unit[u].offset, F32) : m->unit_grad;
}

static void unit_reduce(Model *m, int u)
{
    dev *sum = at(m->grads, m->unit[u].offset, F32);
    if (m->micro > 0)
        m->be->add(sum, m->unit_grad, m->unit[u].n);
    if (m->last)
        m->be->all_reduce(sum, F32, m->unit[u].n);
}

#define X(field, ...) p.field = i->n ? at(base, i->offset, type) : NULL, i++;
static EmbedParams embed_params(const Model *m, dev *base, int type)
{
    const ParamInfo *i = m->unit[0].params;
    EmbedParams p;
    EMBED_PARAMS(X)
    return p;
}

static BlockParams block_params(const Model *m, dev *base, int type)
{
    const ParamInfo *i = m->unit[1].params;
    BlockParams p;
    BLOCK_PARAMS(X)
    return p;
}

static HeadParams head_params(const Model *m, dev *base, int type)
{
    const ParamInfo *i = m->unit[m->units - 1].params;
    HeadParams p;
    HEAD_PARAMS(X)
    return p;
}
#undef X

/* A unit's weights, and its gradients. */
#define EMBED_WEIGHTS(m)    embed_params(m, unit_acquire(m, 0), m->plan.type)
#define EMBED_GRADS(m)      embed_params(m, unit_gradient(m, 0), F32)
#define BLOCK_WEIGHTS(m, l) block_params(m, unit_acquire(m, (l) + 1), m->plan.type)
#define BLOCK_GRADS(m, l)   block_params(m, unit_gradient(m, (l) + 1), F32)
#define HEAD_WEIGHTS(m)     head_params(m, unit_acquire(m, m->units - 1), m->plan.type)
#define HEAD_GRADS(m)       head_params(m, unit_gradient(m, m->units - 1), F32)

/* ------------------------------------------------------------------------------------------------
 * Forward. Laid out by hand: one operation, one sentence. */
/* clang-format off */

/* A matrix of the model's type, and the place n such elements further on. Macros, so that the
 * equations below need not repeat which model they speak of. */
#define mat(p, ld)  ((Tensor){p, ld, m->plan.type, NULL})
#define from(p, n)  at(p, n, m->plan.type)
#define NONE        ((Tensor){NULL, 0, F32, NULL})

static Drop drop(const Model *m, double p, int purpose, int layer)
{
    return (Drop){m->train_mode ? p : 0, purpose, layer};
}

/* Stochastic depth rises linearly from 0 in the first block to drop_path in the last. */
static Drop path(const Model *m, int purpose, int l)
{
    int L = m->config.layers;
    return drop(m, L > 1 ? m->config.drop_path * l / (L - 1) : m->config.drop_path, purpose, l);
}

/* Only the class token leaves the last block of a class-token model, so that its queries, its MLP
 * and the final norm need the class rows alone: exact, and 7% of the work of ViT-B/16. */
static bool class_rows_only(const Model *m, int l)
{
    return l == m->config.layers - 1 && m->config.pool == POOL_CLS && !m->plan.keep_streams;
}

/* A branch that nothing is done to joins the residual stream inside its last linear layer. */
static bool plain_branch(const Model *m, int l)
{
    const Config *c = &m->config;
    return !c->layer_scale && !(m->train_mode && (c->dropout > 0 || path(m, 0, l).p > 0));
}

/* y = x w^T + bias: the layers with nothing else to them. x [rows, in], y [rows, out] */
static void linear(const Model *m, Tensor y, Tensor x, dev *w, dev *bias, int rows, int in, int out)
{
    m->be->linear_forward(&(LinearForward){.y = y, .x = x, .w = mat(w, in), .bias = bias,
                                           .rows = rows, .in = in, .out = out, .tokens = 1});
}

/* dw = dy^T x and dx = dy w */
static void linear_backward(const Model *m, dev *dw, Tensor dx, Tensor dy, Tensor x, dev *w,
                            int rows, int in, int out)
{
    m->be->linear_backward_weight(&(LinearBackwardWeight){.dw = dw, .dy = dy, .x = x,
                                                          .rows = rows, .in = in, .out = out});
    m->be->linear_backward_input(&(LinearBackwardInput){.dx = dx, .dy = dy, .w = mat(w, in),
                                                        .rows = rows, .in = in, .out = out,
                                                        .tokens = 1});
}

/* x = drop(concat(cls, patches w^T + b) + pos) */
static void embed_forward(Model *m)
{
    const Config *c = &m->config;
    int B = m->B, T = vit_tokens(c), C = c->width, Np = vit_patches(c);
    int PP = VIT_CHANNELS * c->patch * c->patch;
    EmbedParams w = EMBED_WEIGHTS(m);

    m->be->patchify(&(Patchify){
        .out = mat(m->patches, PP), .images = m->inputs[m->set].images, .u8 = m->images_u8,
        .augment = m->use_augment ? m->inputs[m->set].augment : NULL,
        .B = B, .H = c->image_h, .W = c->image_w, .P = c->patch,
        .mean = {c->mean_r, c->mean_g, c->mean_b}, .std = {c->std_r, c->std_g, c->std_b}});
    linear(m, mat(m->patch_out, C), mat(m->patches, PP), w.patch_w, w.patch_b, B * Np, PP, C);
    m->be->embed_forward(&(Embed){
        .x = mat(c->norm_pre ? m->embed_x : m->stream[0], C), .patches = mat(m->patch_out, C),
        .cls = w.cls_token, .pos = w.pos_embed, .B = B, .T = T, .cls_tokens = c->cls_tokens, .C = C,
        .drop = drop(m, c->dropout, RNG_EMBED_DROPOUT, 0)});
    if (c->norm_pre)
        m->be->residual_norm_forward(&(ResidualNorm){
            .x = mat(m->embed_x, C), .y = mat(m->stream[0], C), .gamma = w.norm_w, .beta = w.norm_b,
            .mean = m->embed_mean, .rstd = m->embed_rstd, .eps = c->eps, .rows = B * T, .C = C,
            .tokens = T});
    unit_release(m, 0);
}

/* x = x + proj(attention(qkv(LN1(x))));  x = x + fc2(gelu(fc1(LN2(x)))) */
static void block_forward(Model *m, int l)
{
    const Config *c = &m->config;
    const Backend *be = m->be;
    int B = m->B, T = vit_tokens(c), C = c->width, F = c->mlp, H = c->heads;
    BlockParams w = BLOCK_WEIGHTS(m, l);
    BlockActs *a = &m->blocks[l];
    bool few = class_rows_only(m, l), plain = plain_branch(m, l);
    int Tq = few ? 1 : T, R = B * Tq;   /* rows that leave the attention */
    long ld = few ? (long)T * C : C;    /* from one of them to the next in the residual stream */
    Tensor x = mat(m->stream[l], ld), mid = mat(a->mid, ld), out = mat(m->stream[l + 1], ld);
    Tensor branch1 = plain ? NONE : mat(c->layer_scale ? a->branch1 : m->branch, C);
    Tensor branch2 = plain ? NONE : mat(c->layer_scale ? a->branch2 : m->branch, C);

    be->residual_norm_forward(&(ResidualNorm){
        .x = mat(m->stream[l], C), .y = mat(a->norm1_y, C), .gamma = w.norm1_w, .beta = w.norm1_b,
        .mean = a->norm1_mean, .rstd = a->norm1_rstd, .eps = c->eps, .rows = B * T, .C = C,
        .tokens = T});
    if (few) { /* q of the class rows; k and v of all rows */
        linear(m, mat(a->qkv, 3L * C * T), mat(a->norm1_y, ld), w.qkv_w, w.qkv_b, R, C, C);
        linear(m, mat(from(a->qkv, C), 3L * C), mat(a->norm1_y, C), from(w.qkv_w, (long)C * C),
               from(w.qkv_b, C), B * T, C, 2 * C);
    } else {
        linear(m, mat(a->qkv, 3L * C), mat(a->norm1_y, C), w.qkv_w, w.qkv_b, R, C, 3 * C);
    }
    be->attention_forward(&(Attention){
        .qkv = mat(a->qkv, 3L * C), .out = mat(a->att, C), .lse = a->lse, .B = B, .T = T, .Tq = Tq,
        .heads = H, .hs = C / H, .drop = drop(m, c->attention_dropout, RNG_ATTN_DROPOUT, l)});
    be->linear_forward(&(LinearForward){
        .y = plain ? mid : branch1, .x = mat(a->att, C), .w = mat(w.proj_w, C), .bias = w.proj_b,
        .rows = R, .in = C, .out = C, .residual = plain ? x : NONE, .tokens = Tq});
    be->residual_norm_forward(&(ResidualNorm){
        .x = plain ? mid : x, .x_out = mid, .branch = branch1, .y = mat(a->norm2_y, C),
        .gamma = w.norm2_w, .beta = w.norm2_b, .mean = a->norm2_mean, .rstd = a->norm2_rstd,
        .ls = w.ls1, .drop = drop(m, c->dropout, RNG_PROJ_DROPOUT, l),
        .path = path(m, RNG_ATTN_PATH, l), .eps = c->eps, .rows = R, .C = C, .tokens = Tq});

    be->linear_forward(&(LinearForward){
        .y = mat(a->gelu, F), .x = mat(a->norm2_y, C), .w = mat(w.fc1_w, C), .bias = w.fc1_b,
        .rows = R, .in = C, .out = F, .act = c->act,
        .pre = m->train_mode ? mat(a->fc1, F) : NONE, .tokens = Tq,
        .drop = drop(m, c->dropout, RNG_MLP_DROPOUT, l)});
    be->linear_forward(&(LinearForward){
        .y = plain ? out : branch2, .x = mat(a->gelu, F), .w = mat(w.fc2_w, F), .bias = w.fc2_b,
        .rows = R, .in = F, .out = C, .residual = plain ? mid : NONE, .tokens = Tq});
    if (!plain)
        be->residual_norm_forward(&(ResidualNorm){
            .x = mid, .x_out = out, .branch = branch2, .ls = w.ls2,
            .drop = drop(m, c->dropout, RNG_FC2_DROPOUT, l), .path = path(m, RNG_MLP_PATH, l),
            .rows = R, .C = C, .tokens = Tq});
    unit_release(m, l + 1);
}

/* The rows that the final norm takes: class token 0 of each image, or all tokens. */
static void final_rows(const Model *m, int *rows, long *ld)
{
    bool cls = m->config.pool == POOL_CLS;
    int T = vit_tokens(&m->config);
    *rows = cls ? m->B : m->B * T;
    *ld = (cls ? (long)T : 1) * m->config.width;
}

/* logits = head(tanh(rep(pool(LN(x))))), the middle layer where there is one */
static void head_forward(Model *m)
{
    const Config *c = &m->config;
    int B = m->B, T = vit_tokens(c), C = c->width, K = c->classes, R = c->representation, rows;
    long ld;
    HeadParams w = HEAD_WEIGHTS(m);
    Tensor features = R ? mat(m->rep, R) : mat(m->pooled, C);

    final_rows(m, &rows, &ld);
    m->be->residual_norm_forward(&(ResidualNorm){
        .x = mat(m->stream[c->layers], ld), .y = mat(m->final_y, C), .gamma = w.norm_w,
        .beta = w.norm_b, .mean = m->final_mean, .rstd = m->final_rstd, .eps = c->eps_final,
        .rows = rows, .C = C, .tokens = rows / B});
    if (c->pool == POOL_GAP)
        m->be->pool_forward(&(Pool){.y = mat(m->pooled, C), .x = mat(m->final_y, C), .B = B, .T = T,
                                    .C = C, .first = c->cls_tokens});
    if (R)
        m->be->linear_forward(&(LinearForward){
            .y = mat(m->rep, R), .x = mat(m->pooled, C), .w = mat(w.rep_w, C), .bias = w.rep_b,
            .rows = B, .in = C, .out = R, .act = ACT_TANH, .pre = mat(m->rep_pre, R), .tokens = 1});
    linear(m, mat(m->logits, K), features, w.head_w, w.head_b, B, R ? R : C, K);
    unit_release(m, m->units - 1);
}

static void forward(Model *m, bool train_mode)
{
    m->train_mode = train_mode;
    m->be->bind(m->state_dev, m->scratch, m->scratch_bytes);
    embed_forward(m);
    for (int l = 0; l < m->config.layers; l++)
        block_forward(m, l);
    head_forward(m);
}

void vit_forward(Model *m, bool train_mode)
{
    refresh(m);
    forward(m, train_mode);
}

void vit_loss(Model *m, double scale)
{
    const Config *c = &m->config;
    bool learn = m->plan.training && m->train_mode;
    dev *dbias = learn ? HEAD_GRADS(m).head_b : NULL;
    m->be->loss(&(Loss){.logits = mat(m->logits, c->classes),
                        .dlogits = learn ? mat(m->dlogits, c->classes) : NONE,
                        .targets = m->inputs[m->set].targets, .stats = m->stats, .dbias = dbias,
                        .B = m->B, .K = c->classes, .kind = c->loss, .scale = scale});
}

/* ------------------------------------------------------------------------------------------------
 * Backward: each function mirrors its forward one, from the bottom up */

/* Automatic loss scaling looks at the gradients of activations. */
static void watch(const Model *m, Tensor gradient, int rows, int cols)
{
    if (m->plan.scaling.kind == SCALING_AUTO)
        m->be->count_large(gradient, rows, cols);
}

static void head_backward(Model *m)
{
    const Config *c = &m->config;
    const Backend *be = m->be;
    int B = m->B, T = vit_tokens(c), C = c->width, K = c->classes, R = c->representation;
    int u = m->units - 1, rows;
    long ld;
    HeadParams w = HEAD_WEIGHTS(m), g = HEAD_GRADS(m);
    Tensor dlogits = mat(m->dlogits, K), pooled = mat(m->pooled, C), dpooled = mat(m->dpooled, C);
    Tensor rep = mat(m->rep, R), drep = mat(m->drep, R);

    watch(m, dlogits, B, K);
    if (R) {
        be->linear_backward_weight(&(LinearBackwardWeight){
            .dw = g.head_w, .dy = dlogits, .x = rep, .rows = B, .in = R, .out = K});
        be->linear_backward_input(&(LinearBackwardInput){
            .dx = drep, .dy = dlogits, .w = mat(w.head_w, R), .rows = B, .in = R, .out = K,
            .act = ACT_TANH, .pre = mat(m->rep_pre, R), .dbias = g.rep_b, .tokens = 1});
        linear_backward(m, g.rep_w, dpooled, drep, pooled, w.rep_w, B, C, R);
    } else {
        linear_backward(m, g.head_w, dpooled, dlogits, pooled, w.head_w, B, C, K);
    }
    if (c->pool == POOL_GAP)
        be->pool_backward(&(Pool){.y = dpooled, .x = mat(m->dy, C), .B = B, .T = T, .C = C,
                                  .first = c->cls_tokens});
    final_rows(m, &rows, &ld);
    be->zero(m->dstream, (size_t)B * T * C * type_size(m->plan.type)); /* the sum starts here */
    be->residual_norm_backward(&(ResidualNorm){
        .x = mat(m->stream[c->layers], ld), .gamma = w.norm_w, .mean = m->final_mean,
        .rstd = m->final_rstd, .rows = rows, .C = C, .tokens = rows / B,
        .dy = c->pool == POOL_GAP ? mat(m->dy, C) : dpooled, .dx = mat(m->dstream, ld),
        .dgamma = g.norm_w, .dbeta = g.norm_b});
    unit_release(m, u);
    unit_reduce(m, u);
}

static void block_backward(Model *m, int l)
{
    const Config *c = &m->config;
    const Backend *be = m->be;
    int B = m->B, T = vit_tokens(c), C = c->width, F = c->mlp, H = c->heads;
    BlockParams w = BLOCK_WEIGHTS(m, l), g = BLOCK_GRADS(m, l);
    BlockActs *a = &m->blocks[l];
    bool few = class_rows_only(m, l), plain = plain_branch(m, l);
    int Tq = few ? 1 : T, R = B * Tq;
    long ld = few ? (long)T * C : C;
    Tensor dx = mat(m->dstream, ld); /* the gradient of the residual stream, at every point of it */
    Tensor dbranch = plain ? dx : mat(m->dbranch, C), dbranch_out = plain ? NONE : dbranch;
    Tensor dwide = mat(m->dwide, F), dy = mat(m->dy, C), dqkv = mat(m->dqkv, 3L * C);

    /* MLP */
    be->residual_norm_backward(&(ResidualNorm){
        .branch = mat(a->branch2, C), .ls = w.ls2, .drop = drop(m, c->dropout, RNG_FC2_DROPOUT, l),
        .path = path(m, RNG_MLP_PATH, l), .rows = R, .C = C, .tokens = Tq, .dx = dx,
        .dbranch = dbranch_out, .dls = g.ls2, .dbias = g.fc2_b});
    be->linear_backward_weight(&(LinearBackwardWeight){
        .dw = g.fc2_w, .dy = dbranch, .x = mat(a->gelu, F), .rows = R, .in = F, .out = C});
    be->linear_backward_input(&(LinearBackwardInput){
        .dx = dwide, .dy = dbranch, .w = mat(w.fc2_w, F), .rows = R, .in = F, .out = C,
        .act = c->act, .pre = mat(a->fc1, F), .dbias = g.fc1_b, .tokens = Tq,
        .drop = drop(m, c->dropout, RNG_MLP_DROPOUT, l)});
    watch(m, dwide, R, F);
    linear_backward(m, g.fc1_w, dy, dwide, mat(a->norm2_y, C), w.fc1_w, R, C, F);
    be->residual_norm_backward(&(ResidualNorm){
        .x = mat(a->mid, ld), .branch = mat(a->branch1, C), .gamma = w.norm2_w,
        .mean = a->norm2_mean, .rstd = a->norm2_rstd, .ls = w.ls1,
        .drop = drop(m, c->dropout, RNG_PROJ_DROPOUT, l), .path = path(m, RNG_ATTN_PATH, l),
        .rows = R, .C = C, .tokens = Tq, .dy = dy, .dx = dx, .dbranch = dbranch_out,
        .dgamma = g.norm2_w, .dbeta = g.norm2_b, .dls = g.ls1, .dbias = g.proj_b});

    /* attention */
    linear_backward(m, g.proj_w, dy, dbranch, mat(a->att, C), w.proj_w, R, C, C);
    be->attention_backward(&(Attention){
        .qkv = mat(a->qkv, 3L * C), .out = mat(a->att, C), .lse = a->lse, .B = B, .T = T, .Tq = Tq,
        .heads = H, .hs = C / H, .drop = drop(m, c->attention_dropout, RNG_ATTN_DROPOUT, l),
        .dqkv = dqkv, .dout = dy, .delta = m->delta, .dbias = g.qkv_b});
    watch(m, mat(from(m->dqkv, C), 3L * C), B * T, 2 * C);
    if (few) { /* k and v gave to all rows, q to the class rows */
        linear_backward(m, at(g.qkv_w, (long)C * C, F32), dy, mat(from(m->dqkv, C), 3L * C),
                        mat(a->norm1_y, C), from(w.qkv_w, (long)C * C), B * T, C, 2 * C);
        be->linear_backward_weight(&(LinearBackwardWeight){
            .dw = g.qkv_w, .dy = mat(m->dqkv, 3L * C * T), .x = mat(a->norm1_y, ld), .rows = R,
            .in = C, .out = C});
        be->linear_backward_input(&(LinearBackwardInput){
            .dx = mat(m->dy, ld), .dy = mat(m->dqkv, 3L * C * T), .w = mat(w.qkv_w, C), .rows = R,
            .in = C, .out = C, .tokens = Tq, .accumulate = true});
    } else {
        linear_backward(m, g.qkv_w, dy, dqkv, mat(a->norm1_y, C), w.qkv_w, R, C, 3 * C);
    }
    be->residual_norm_backward(&(ResidualNorm){
        .x = mat(m->stream[l], C), .gamma = w.norm1_w, .mean = a->norm1_mean,
        .rstd = a->norm1_rstd, .rows = B * T, .C = C, .tokens = T, .dy = dy,
        .dx = mat(m->dstream, C), .dgamma = g.norm1_w, .dbeta = g.norm1_b});
    watch(m, mat(m->dstream, C), B * T, C);
    unit_release(m, l + 1);
    unit_reduce(m, l + 1);
}

static void embed_backward(Model *m)
{
    const Config *c = &m->config;
    int B = m->B, T = vit_tokens(c), C = c->width, Np = vit_patches(c);
    int PP = VIT_CHANNELS * c->patch * c->patch;
    EmbedParams w = EMBED_WEIGHTS(m), g = EMBED_GRADS(m);
    Tensor dx = mat(m->dstream, C);

    if (c->norm_pre) { /* the one norm that is not beside the stream but in it */
        dx = mat(m->dbranch, C);
        m->be->zero(m->dbranch, (size_t)B * T * C * type_size(m->plan.type));
        m->be->residual_norm_backward(&(ResidualNorm){
            .x = mat(m->embed_x, C), .gamma = w.norm_w, .mean = m->embed_mean,
            .rstd = m->embed_rstd, .rows = B * T, .C = C, .tokens = T, .dy = mat(m->dstream, C),
            .dx = dx, .dgamma = g.norm_w, .dbeta = g.norm_b});
    }
    m->be->embed_backward(&(Embed){
        .x = dx, .patches = mat(m->patch_out, C), .cls = g.cls_token, .pos = g.pos_embed,
        .dbias = g.patch_b, .B = B, .T = T, .cls_tokens = c->cls_tokens, .C = C,
        .drop = drop(m, c->dropout, RNG_EMBED_DROPOUT, 0)});
    m->be->linear_backward_weight(&(LinearBackwardWeight){
        .dw = g.patch_w, .dy = mat(m->patch_out, C), .x = mat(m->patches, PP), .rows = B * Np,
        .in = PP, .out = C});
    unit_release(m, 0);
    unit_reduce(m, 0);
}

void vit_backward(Model *m)
{
    head_backward(m);
    for (int l = m->config.layers - 1; l >= 0; l--)
        block_backward(m, l);
    embed_backward(m);
}
/* clang-format on */

/* ------------------------------------------------------------------------------------------------
 * A step. What runs on the device is in the functions do_*, which a backend may record once and
 * repeat: they depend on nothing but what key() tells apart. */

size_t vit_image_bytes(const Config *c, bool u8)
{
    return (size_t)c->image_h * (size_t)c->image_w * VIT_CHANNELS * (u8 ? 1 : sizeof(real));
}

/* The host's copy of the inputs may be written once the last transfer from it has ended; the
 * device's, which the transfer waits for, once the micro-batch before the last is done. */
void vit_set_batch(Model *m, int B, const void *images, bool u8, const real *targets,
                   const Augment *augment)
{
    const Backend *be = m->be;
    if (B < 1 || B > m->plan.max_batch)
        die("plan the model for the largest micro-batch",
            "a micro-batch of %d images, planned for %d", B, m->plan.max_batch);
    if (!u8 && !m->plan.float_images)
        die("plan the model for float images", "a micro-batch of float images");
    m->B = B;
    m->images_u8 = u8;
    m->use_augment = augment != NULL;
    m->set = !m->set;
    Inputs *in = &m->inputs[m->set];
    be->wait(in->sent);
    struct {
        dev *dst;
        void *host;
        const void *src;
        size_t bytes;
    } parts[] = {
        {in->images, in->host_images, images, (size_t)B * vit_image_bytes(&m->config, u8)},
        {in->targets, in->host_targets, targets,
         (size_t)B * (size_t)m->config.classes * sizeof(real)},
        {in->augment, in->host_augment, augment, (size_t)B * sizeof(Augment)},
    };
    for (int i = 0; i < COUNT(parts); i++)
        if (parts[i].src) {
            memcpy(parts[i].host, parts[i].src, parts[i].bytes);
            in->sent = be->send(parts[i].dst, parts[i].host, parts[i].bytes, in->used);
        }
    m->state.sample0 = 0;
}

/* The host's part of the state, the same way. */
static void send_state(Model *m)
{
    Inputs *in = &m->inputs[m->set];
    m->be->wait(in->state_sent);
    memcpy(in->host_state, &m->state, STEP_HOST_BYTES);
    in->state_sent = m->be->send(in->state, in->host_state, STEP_HOST_BYTES, in->used);
}

static void take_state(Model *m)
{
    m->be->copy(m->state_dev, m->inputs[m->set].state, STEP_HOST_BYTES);
}

/* FNV-1a of what a recorded step depends on. */
static uint64_t key(const Model *m, int phase)
{
    const uint64_t parts[] = {m->id,
                              (uint64_t)phase,
                              (uint64_t)m->B,
                              m->micro > 0,
                              m->last,
                              (uint64_t)m->set,
                              m->images_u8,
                              m->use_augment,
                              m->averaged,
                              m->plan.clip > 0,
                              (uint64_t)m->loss_images};
    uint64_t h = 0xcbf29ce484222325u;
    for (int i = 0; i < COUNT(parts); i++)
        h = (h ^ parts[i]) * 0x100000001b3u;
    return h;
}

/* Ranks evaluate other numbers of images. */
enum { MICRO_STEP, UPDATE, EVALUATE };
static void run(Model *m, int phase, void (*body)(void *))
{
    m->be->run(key(m, phase), phase != EVALUATE, body, m);
}

void vit_begin_step(Model *m, uint32_t step, double lr, uint64_t seed)
{
    m->state.step = step;
    m->state.lr = lr;
    m->state.seed = seed;
    m->micro = 0;
    m->be->zero(m->stats, 3 * (size_t)m->plan.batch * sizeof(real)); /* other ranks fill the rest */
}

static void do_micro_step(void *arg)
{
    Model *m = arg;
    take_state(m);
    forward(m, true);
    vit_loss(m, 1.0 / m->loss_images);
    vit_backward(m);
}

void vit_micro_step(Model *m, int first_sample, int batch, bool last)
{
    m->state.sample0 = (uint32_t)first_sample;
    m->loss_images = batch;
    m->last = last;
    send_state(m);
    refresh(m);
    run(m, MICRO_STEP, do_micro_step);
    m->train_mode = true;
    m->inputs[m->set].used = m->be->mark();
    m->micro++;
}

static void do_update(void *arg)
{
    Model *m = arg;
    const Backend *be = m->be;
    OptStep s = {.opt = &m->plan.opt,
                 .chunks = m->chunks,
                 .n = m->n_chunks,
                 .w = m->weights,
                 .work = m->work,
                 .work_type = m->plan.type,
                 .stochastic = m->plan.stochastic,
                 .grad = m->grads,
                 .m = m->m,
                 .v = m->v,
                 .ema = m->ema,
                 .norms = m->norms};
    be->bind(m->state_dev, m->scratch, m->scratch_bytes);
    be->all_reduce(m->stats, F32, 3L * m->plan.batch);
    if (m->plan.scaling.kind == SCALING_AUTO)
        be->all_reduce((dev *)((char *)m->state_dev + offsetof(StepState, large)), U64, 2);
    be->join();
    be->sum_squares(m->partial, m->grads, m->chunks, m->n_chunks);
    be->finish_norm(m->partial, m->n_chunks, m->plan.clip);
    switch (m->plan.opt.kind) {
    case OPT_SGD:
        be->sgd(&s);
        break;
    case OPT_LAMB:
        be->lamb_direction(&s);
        be->lamb_apply(&s);
        break;
    default:
        be->adam(&s);
    }
    be->scale_loss(&m->plan.scaling);
}

/* Losses and state on their way to the host, in turn into two places. */
static void fetch_result(Model *m, int images)
{
    int slot = (int)(m->steps++ % 2);
    m->be->fetch(m->result_state[slot], m->state_dev, sizeof(StepState));
    m->results[slot].ready =
        m->be->fetch(m->results[slot].stats, m->stats, 3 * (size_t)images * sizeof(real));
}

void vit_update(Model *m)
{
    run(m, UPDATE, do_update);
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
    Model *m = arg;
    take_state(m);
    forward(m, false);
    vit_loss(m, 1);
}

void vit_evaluate(Model *m)
{
    send_state(m);
    refresh(m);
    run(m, EVALUATE, do_evaluate);
    m->train_mode = false;
    m->inputs[m->set].used = m->be->mark();
    fetch_result(m, m->B);
}

void vit_stats(const Model *m, real *out)
{
    m->be->download(out, at(m->stats, 3L * m->state.sample0, F32), 3 * (size_t)m->B * sizeof(real));
}

void vit_logits(const Model *m, real *out)
{
    vit_read_act(m, m->logits, 0, (long)m->B * m->config.classes, out);
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

void vit_swap_ema(Model *m)
{
    dev *t = m->weights;
    m->weights = m->ema;
    m->ema = t;
    if (m->plan.type == F32)
        m->work = m->weights;
    m->averaged = !m->averaged;
    m->stale = true;
}
