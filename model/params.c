/* params.c - from the tables of params.h to a layout, and initial values. See params.h. */
#include "model/params.h"

#include "util/rng.h"
#include "util/text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- layout ---- */

#define X(...) +1
_Static_assert((0 EMBED_PARAMS(X)) <= MAX_UNIT_PARAMS && (0 BLOCK_PARAMS(X)) <= MAX_UNIT_PARAMS &&
                   (0 HEAD_PARAMS(X)) <= MAX_UNIT_PARAMS,
               "raise MAX_UNIT_PARAMS");
#undef X

#define ALIGN 64 /* elements: every tensor starts 256 bytes aligned in fp32 */

static long round_up(long n, long to)
{
    return (n + to - 1) / to * to;
}

/* Equal parts of a tensor's rows, each of which is cut for itself. */
static int row_groups(const Config *c, int split)
{
    const int groups[] = {[SPLIT_WHOLE] = 1, [SPLIT_ROWS] = 1, [SPLIT_COLUMNS] = 1,
                          [SPLIT_HEADS] = 3, [SPLIT_GATES] = c->act == ACT_SWIGLU ? 2 : 1};
    return groups[split];
}

/* This rank's part of a tensor: rows or columns that do not divide stay whole. */
static void cut_tensor(const Config *c, Param *p, int tp)
{
    int axis = p->split == SPLIT_COLUMNS ? 1 : 0;
    if (tp == 1 || p->shape[axis] % (tp * row_groups(c, p->split)))
        p->split = SPLIT_WHOLE;
    memcpy(p->part, p->shape, sizeof p->part);
    p->n_part = p->n;
    if (p->split == SPLIT_WHOLE)
        return;
    p->part[axis] /= tp;
    p->n_part /= tp;
}

/* The lines of one kind of unit, absent tensors with n = 0; returns how many. Offsets are counted
 * from the unit's start; *size is its buffer's. */
static int unit_lines(const Config *c, int kind, int tp, Param *p, long *size)
{
    int C = c->width, F = c->mlp, K = c->classes, P = c->patch, R = c->representation;
    int N = c->cls_tokens, T = vit_tokens(c), F1 = vit_hidden(c), D = vit_features(c);
    int hs = C / c->heads, n = 0;
    bool map = c->pool == POOL_MAP;
/* clang-format off */
#define SHAPE(a, b, d, e) {a, b, d, e}
/* clang-format on */
#define X(field, title, dims, role_, split_, present)                                      \
    p[n] = (Param){.line = n, .role = ROLE_##role_, .split = SPLIT_##split_, .shape = SHAPE dims}; \
    p[n].n = present;                                                                      \
    snprintf(p[n++].name, sizeof p->name, "%s", title);
    if (kind == UNIT_EMBED) {
        EMBED_PARAMS(X)
    } else if (kind == UNIT_BLOCK) {
        BLOCK_PARAMS(X)
    } else {
        HEAD_PARAMS(X)
    }
#undef X
#undef SHAPE
    *size = 0;
    for (int i = 0; i < n; i++) {
        while (p[i].ndim < 4 && p[i].shape[p[i].ndim])
            p[i].n *= p[i].shape[p[i].ndim++]; /* n was 1 where present */
        cut_tensor(c, &p[i], tp);
        p[i].offset = *size;
        *size = round_up(*size + p[i].n_part, ALIGN);
    }
    return n;
}

/* Adds unit u with its tensors. */
static void add_unit(Layout *l, int u)
{
    Param line[MAX_UNIT_PARAMS];
    const Cut *cut = &l->cut;
    bool here = u >= cut->first && u < cut->end;
    int kind = u <= l->config.layers ? UNIT_BLOCK : UNIT_HEAD;
    if (u == 0)
        kind = UNIT_EMBED;
    Unit *unit = &l->unit[u];
    *unit = (Unit){.kind = kind, .first = l->tensors, .offset = l->n_padded};
    int lines = unit_lines(&l->config, kind, cut->tp, line, &unit->n);
    for (int i = 0; i < lines; i++) {
        l->place[kind][i] = line[i].n ? line[i].offset : -1;
        if (!line[i].n)
            continue;
        Param *p = &l->param[l->tensors++];
        *p = line[i];
        p->unit = u;
        p->offset += unit->offset;
        if (kind == UNIT_BLOCK)
            snprintf(p->name, sizeof p->name, "blocks.%d.%.40s", u - 1, line[i].name);
        l->n_params += p->n;
    }
    unit->count = l->tensors - unit->first;
    if (cut->shards > 1)
        unit->n = round_up(unit->n, (long)cut->shards * VIT_CHUNK);
    if (!here)
        unit->n = 0;
    l->n_padded += unit->n;
    l->largest = unit->n > l->largest ? unit->n : l->largest;
}

static int chunk_flags(const Layout *l, const Param *p, int decay)
{
    size_t length = strlen(p->name);
    bool is_weight = length > 7 && strcmp(p->name + length - 7, ".weight") == 0;
    bool decays = decay == DECAY_ALL, copy = p->split == SPLIT_WHOLE && l->cut.tp_rank > 0;
    if (p->ndim > 1)
        decays = decay != DECAY_MATRICES || is_weight;
    return (decays ? CHUNK_DECAY : 0) | (p->ndim <= 1 ? CHUNK_1D : 0) | (copy ? CHUNK_COPY : 0);
}

/* Cuts all tensors; list NULL: only counts. */
static int cut_chunks(const Layout *l, int decay, Chunk *list)
{
    int n = 0;
    for (int t = 0; t < l->tensors; t++) {
        const Param *p = &l->param[t];
        const Unit *unit = &l->unit[p->unit];
        long shard = unit->n / l->cut.shards, start = p->offset - unit->offset;
        for (long at = start, end = start + p->n_part, next; at < end; at = next, n++) {
            next = round_up(at + 1, VIT_CHUNK);
            next = next < end ? next : end;
            if (!list)
                continue;
            long from = at - shard * l->cut.shard; /* in this rank's shard */
            bool ours = from >= 0 && from < shard;
            list[n] = (Chunk){ours ? unit->offset / l->cut.shards + from : 0,
                              ours ? (int)(next - at) : 0, t, chunk_flags(l, p, decay), 1};
        }
    }
    return n;
}

Layout *layout_new(const Config *c, int decay, const Cut *cut)
{
    Layout *l = xcalloc(1, sizeof *l);
    l->config = *c;
    l->cut = *cut;
    l->units = c->layers + 2;
    if (!l->cut.end)
        l->cut.end = l->units;
    l->unit = xcalloc((size_t)l->units, sizeof *l->unit);
    l->param = xcalloc((size_t)l->units * MAX_UNIT_PARAMS, sizeof *l->param);
    for (int u = 0; u < l->units; u++)
        add_unit(l, u);
    l->n_own = l->n_padded / cut->shards;
    l->chunks = cut_chunks(l, decay, NULL);
    l->chunk = xcalloc((size_t)l->chunks, sizeof *l->chunk);
    cut_chunks(l, decay, l->chunk);
    return l;
}

void layout_rates(Layout *l, double decay, int frozen, int position)
{
    int last = l->units - 1;
    l->lowest = frozen < last ? frozen : last;
    for (int i = 0; i < l->chunks; i++) {
        const Param *p = &l->param[l->chunk[i].tensor];
        bool head = p->role == ROLE_HEAD || p->role == ROLE_HEAD_BIAS;
        bool fixed = position != POSITION_LEARNED && p->unit == 0 && p->role == ROLE_POS;
        bool learns = !fixed && (head || p->unit >= frozen);
        l->chunk[i].rate = learns ? (float)pow(decay, last - p->unit) : 0;
    }
}

Run param_run(const Layout *l, const Param *p, long part, long end)
{
    long tp = l->cut.tp, r = l->cut.tp_rank, stretch = p->n_part; /* that stands together */
    if (p->split == SPLIT_WHOLE)
        return (Run){part, part, end - part};
    stretch /= row_groups(&l->config, p->split);
    if (p->split == SPLIT_COLUMNS)
        stretch = p->part[1];
    long number = part / stretch, within = part % stretch, n = stretch - within;
    return (Run){(number * tp + r) * stretch + within, part, n < end - part ? n : end - part};
}

long param_shard(const Layout *l, const Param *p, int shard, long *begin, long *end)
{
    const Unit *unit = &l->unit[p->unit];
    long size = unit->n / l->cut.shards, start = p->offset - unit->offset;
    long from = size * shard - start, to = from + size; /* the shard's bounds, in elements of p */
    *begin = from > 0 ? from : 0;
    *end = to < p->n_part ? to : p->n_part;
    if (*end < *begin || !unit->n)
        *end = *begin;
    return unit->offset / l->cut.shards + start + *begin - size * shard;
}

void layout_free(Layout *l)
{
    free(l->unit);
    free(l->param);
    free(l->chunk);
    free(l);
}

/* ---- initial values: one row per scheme, one column per role of a tensor ---- */

/* What is drawn, and how wide: the standard deviation of a normal or the bound of a uniform
 * distribution is sqrt(value / fan), or the value itself where there is no fan. */
enum { CONSTANT, NORMAL, TRUNCATED, UNIFORM, GIVEN_BIAS, GIVEN_SCALE };
enum { NO_FAN, FAN_IN, FAN_OUT, FAN_SUM, DEPTH }; /* of the weight; DEPTH: 2L */
typedef struct {
    int kind;
    double value;
    int fan;
} Init;

/* clang-format off */
#define ZERO      {CONSTANT, 0, 0}
#define ONE       {CONSTANT, 1, 0}
#define N(s)      {NORMAL, s, 0}
#define XAVIER_U  {UNIFORM, 6, FAN_SUM}         /* Glorot & Bengio 2010 */
#define XAVIER_N  {NORMAL, 2, FAN_SUM}
#define LECUN     {TRUNCATED, 1, FAN_IN}        /* Flax */
#define TORCH     {UNIFORM, 1, FAN_IN}          /* PyTorch's default */
#define OUTPUT    {NORMAL, 0.02 * 0.02, DEPTH}  /* Megatron's output layers */
#define KAIMING   {NORMAL, 2, FAN_OUT}
#define HEAD_B    {GIVEN_BIAS, 0, 0}
#define SCALE     {GIVEN_SCALE, 0, 0}

static const struct {
    const char *name;
    Init role[ROLES];
} schemes[] = {
/*            ZERO   ONE    CLS      POS       PATCH       QKV       PROJ      FC1       FC2
              BIAS   MLP_BIAS        PATCH_B.  REP         REP_BIAS  HEAD      HEAD_BIAS LS */
{"jax",      {ZERO,  ONE,   ZERO,    N(0.02),  LECUN,      XAVIER_U, XAVIER_U, XAVIER_U, XAVIER_U,
              ZERO,  N(1e-6),        ZERO,     LECUN,      ZERO,     ZERO,     HEAD_B,   SCALE}},
{"timm",     {ZERO,  ONE,   N(1e-6), N(0.02),  TORCH,      N(0.02),  N(0.02),  N(0.02),  N(0.02),
              ZERO,  ZERO,           TORCH,    N(0.02),    ZERO,     N(0.02),  HEAD_B,   SCALE}},
{"torch",    {ZERO,  ONE,   ZERO,    N(0.02),  TORCH,      TORCH,    TORCH,    TORCH,    TORCH,
              TORCH, TORCH,          TORCH,    TORCH,      TORCH,    TORCH,    TORCH,    SCALE}},
{"megatron", {ZERO,  ONE,   ZERO,    N(0.02),  TORCH,      N(0.02),  OUTPUT,   N(0.02),  OUTPUT,
              ZERO,  ZERO,           TORCH,    TORCH,      TORCH,    TORCH,    HEAD_B,   SCALE}},
{"xavier",   {ZERO,  ONE,   ZERO,    N(0.02),  KAIMING,    XAVIER_N, XAVIER_N, XAVIER_N, XAVIER_N,
              ZERO,  ZERO,           ZERO,     XAVIER_N,   ZERO,     XAVIER_N, HEAD_B,   SCALE}},
};
/* clang-format on */
const char *const param_init_names[] = {"jax", "timm", "torch", "megatron", "xavier", NULL};

/* A normal that is cut at two deviations has less variance than 1: this is its deviation. */
#define CUT           2
#define CUT_DEVIATION 0.87962566103423978

/* The fan of a weight [out, in, ...]: of q, k and v each for the fused qkv. A bias takes that of
 * its weight, which stands before it. */
static double fan_of(const Layout *l, const Param *p, int fan)
{
    const Param *w = p->ndim <= 1 && p > l->param ? p - 1 : p;
    double in = w->ndim > 1 ? (double)w->n / w->shape[0] : 1, out = w->shape[0];
    if (p->role == ROLE_QKV)
        out /= 3;
    if (p->role == ROLE_PATCH && fan == FAN_OUT)
        out *= (double)l->config.patch * l->config.patch;
    const double fans[] = {1, in, out, in + out, 2.0 * l->config.layers};
    return fans[fan];
}

bool param_init(const Layout *l, const Param *p, const char *scheme, uint64_t seed,
                double head_bias, double layer_scale, long first, long n, real *out, Error *e)
{
    int row = 0;
    while (row < COUNT(schemes) && strcmp(schemes[row].name, scheme) != 0)
        row++;
    if (row == COUNT(schemes)) {
        const char *near = nearest(scheme, param_init_names);
        return fail(e, "choose jax, timm, torch, megatron or xavier",
                    "no initialiser is called '%s'%s%s", scheme, near ? "; did you mean " : "",
                    near ? near : "");
    }
    Init init = schemes[row].role[p->role];
    double width = init.fan ? sqrt(init.value / fan_of(l, p, init.fan)) : init.value;
    if (init.kind == GIVEN_BIAS)
        width = head_bias;
    if (init.kind == GIVEN_SCALE)
        width = layer_scale;
    if (init.kind == TRUNCATED)
        width /= CUT_DEVIATION;
#pragma omp parallel for schedule(static)
    for (long j = 0; j < n; j++) {
        long i = first + j;
        double v = 1; /* of a constant */
        for (uint32_t attempt = 0; init.kind == NORMAL || init.kind == TRUNCATED; attempt++) {
            Philox r = rng_block(seed, (uint32_t)i, (uint32_t)p->line, attempt, RNG_INIT, p->unit);
            v = rng_normal(rng_unit(r.v[0]), rng_unit(r.v[1]));
            if (init.kind == NORMAL || fabs(v) <= CUT)
                break;
        }
        if (init.kind == UNIFORM) {
            Philox r = rng_block(seed, (uint32_t)i, (uint32_t)p->line, 0, RNG_INIT, p->unit);
            v = 2 * rng_unit(r.v[0]) - 1;
        }
        out[j] = (real)(width * v);
    }
    return true;
}

/* Row t of patch (x, y) is sin(w x), cos(w x), sin(w y), cos(w y), a quarter of C each, with the
 * frequencies w = 10000^(-k/n) of k = 0 .. C/4 - 1: n is C/4, in big_vision one less. Class tokens
 * have no place: zeros. */
void param_positions(const Config *c, int position, long first, long n, real *out)
{
    int quarter = c->width / 4, across = c->image_w / c->patch;
    int steps = position == POSITION_BIG_VISION ? quarter - 1 : quarter;
    for (long j = 0; j < n; j++) {
        long i = first + j, patch = i / c->width - c->cls_tokens;
        int column = (int)(i % c->width), part = column / quarter;
        double place = (double)(part < 2 ? patch % across : patch / across);
        double angle = place * pow(10000, -(double)(column % quarter) / steps);
        out[j] = (real)(part % 2 ? cos(angle) : sin(angle));
        if (patch < 0)
            out[j] = 0;
    }
}
