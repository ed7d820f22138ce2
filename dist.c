/* dist.c - which rank owns what of the model, and in which order it works. See dist.h.
 *
 * Read in this order: the split, the schedule, memory; then a unit's weights, its gradient, the
 * update; last, what files see of it.
 */
#include "dist.h"
#include "util/text.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------
 * The split */

static bool divides_model(const Config *c, int tp)
{
    return tp > 0 && c->heads % tp == 0 && c->mlp % tp == 0;
}

/* "1, 2, 4" */
static void legal_tp(const Config *c, char *out, size_t size)
{
    size_t at = 0;
    *out = 0;
    for (int tp = 1; tp <= c->heads && at + 16 < size; tp++)
        if (divides_model(c, tp))
            at += (size_t)snprintf(out + at, size - at, "%s%d", at ? ", " : "", tp);
}

/* Of the layouts that so many ranks can have the one nearest below tp and pp: it shares out the
 * model among as many as it can. */
static void nearest_layout(const Config *c, int ranks, int *tp, int *pp)
{
    int most_tp = *tp, most_pp = *pp < c->layers ? *pp : c->layers;
    *tp = *pp = 1;
    for (int t = most_tp; t > 0; t--)
        for (int p = most_pp; p > 0; p--)
            if (divides_model(c, t) && ranks % (t * p) == 0 && t * p > *tp * *pp) {
                *tp = t;
                *pp = p;
            }
}

static bool check_layout(const Config *c, int ranks, int tp, int pp, Error *e)
{
    char legal[120], hint[200];
    int t = tp, p = pp < 1 ? 1 : pp;
    if (!divides_model(c, tp)) {
        legal_tp(c, legal, sizeof legal);
        snprintf(hint, sizeof hint, "--tp must divide both: %s", legal);
        return fail(e, hint, "--tp %d does not divide %s and an MLP of %d", tp,
                    amount(c->heads, "head").s, c->mlp);
    }
    nearest_layout(c, ranks, &t, &p);
    if (pp < 1 || pp > c->layers) {
        snprintf(hint, sizeof hint, "a stage has one layer or more: give --tp %d --pp %d", t, p);
        return fail(e, hint, "--pp %d, but the model has %s", pp,
                    amount(c->layers, "layer").s);
    }
    if (ranks % (tp * pp) == 0)
        return true;
    snprintf(hint, sizeof hint,
             "start %d processes or a multiple of that (--ranks, --gpus), or give --tp %d --pp %d",
             tp * pp, t, p);
    return fail(e, hint, "--tp %d --pp %d takes a multiple of %d processes; there %s %d", tp, pp,
                tp * pp, ranks == 1 ? "is" : "are", ranks);
}

/* Layers before stage `stage`: as equal as they can be. The first stages have the most
 * micro-batches in flight, so that it is the last ones which take one more. */
static int equal_share(int layers, int pp, int stage)
{
    int more = stage - (pp - layers % pp);
    return layers / pp * stage + (more > 0 ? more : 0);
}

/* "--pp is 2: give as many numbers that add up to 12: 6,6" */
static void example_stages(const Config *c, int pp, char *out, size_t size)
{
    size_t at = (size_t)snprintf(
        out, size, "--pp is %d: give as many numbers that add up to %d: ", pp, c->layers);
    for (int i = 0; i < pp && at + 16 < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%d", i ? "," : "",
                               equal_share(c->layers, pp, i + 1) - equal_share(c->layers, pp, i));
}

/* Layers before this stage and before the next, by the user's list. */
static bool read_stages(const char *list, const Config *c, const Axis *pp, int bound[2], Error *e)
{
    char hint[200];
    int stage = 0, sum = 0;
    example_stages(c, pp->ranks, hint, sizeof hint);
    for (const char *p = list; p; stage++) {
        char *end;
        long n = strtol(p, &end, 10);
        if (end == p || n < 1 || n > c->layers || (*end && *end != ','))
            return fail(e, hint, "--layers-per-stage %s: stage %d has no number of layers", list,
                        stage + 1);
        if (stage == pp->rank)
            bound[0] = sum;
        sum += (int)n;
        if (stage == pp->rank)
            bound[1] = sum;
        p = *end ? end + 1 : NULL;
    }
    if (stage != pp->ranks || sum != c->layers)
        return fail(e, hint, "--layers-per-stage %s: %d stages, %d layers; there are %d and %d",
                    list, stage, sum, pp->ranks, c->layers);
    return true;
}

bool split_new(Split *s, const Config *c, int rank, int ranks, int tp, int pp, const char *stages,
               int zero, Error *e)
{
    if (!check_layout(c, ranks, tp, pp, e))
        return false;
    int dp = ranks / tp / pp;
    *s = (Split){.world = {rank, ranks, NULL},
                 .tp = {rank % tp, tp, NULL},
                 .dp = {rank / tp % dp, dp, NULL},
                 .pp = {rank / tp / dp, pp, NULL},
                 .zero = dp > 1 ? zero : 0,
                 .reshard = true,
                 .reduce_type = F32};
    int bound[2] = {equal_share(c->layers, pp, s->pp.rank),
                    equal_share(c->layers, pp, s->pp.rank + 1)};
    if (*stages && !read_stages(stages, c, &s->pp, bound, e))
        return false;
    s->first = s->pp.rank == 0 ? 0 : bound[0] + 1; /* unit 0 embeds */
    s->end = s->pp.rank == pp - 1 ? c->layers + 2 : bound[1] + 1;
    return true;
}

Split split_alone(const Config *c)
{
    Split s;
    split_new(&s, c, 0, 1, 1, 1, "", 0, NULL);
    return s;
}

/* Every rank takes the same turns, with the colour of its group. */
void split_connect(Split *s, const Backend *be)
{
    s->world.group = be->split(0, "all ranks");
    s->tp.group = be->split(s->world.rank / s->tp.ranks, "tensor parallel");
    s->dp.group = be->split(s->pp.rank * s->tp.ranks + s->tp.rank, "data parallel");
    s->pp.group = be->split(s->dp.rank * s->tp.ranks + s->tp.rank, "pipeline");
    s->back = be->split(s->dp.rank * s->tp.ranks + s->tp.rank, "pipeline, backward");
    s->parts = be->split(s->zero ? 0 : s->dp.rank, "parts of the model");
}

Cut split_cut(const Split *s)
{
    bool sharded = s->zero > 0;
    return (Cut){.tp = s->tp.ranks,
                 .tp_rank = s->tp.rank,
                 .shards = sharded ? s->dp.ranks : 1,
                 .shard = sharded ? s->dp.rank : 0,
                 .first = s->first,
                 .end = s->end};
}

int split_in_flight(const Split *s)
{
    return s->pp.ranks - s->pp.rank;
}

bool split_reads(const Split *s)
{
    return s->pp.rank == 0 && s->tp.rank == 0;
}

bool split_speaks(const Split *s)
{
    return s->pp.rank == s->pp.ranks - 1 && s->tp.rank == 0;
}

/* ------------------------------------------------------------------------------------------------
 * The schedule */

void run_schedule(const Split *s, int micros, void (*work)(void *ctx, int micro, bool backward),
                  void *ctx)
{
    int ahead = split_in_flight(s) - 1;
    ahead = ahead < micros ? ahead : micros;
    for (int micro = 0; micro < micros + ahead; micro++) {
        if (micro < micros)
            work(ctx, micro, false);
        if (micro >= ahead)
            work(ctx, micro - ahead, true);
    }
}

/* ------------------------------------------------------------------------------------------------
 * Memory */

dev *take_bytes(Arena *a, double bytes)
{
    enum { GAP = 1024 };
    if (bytes <= 0)
        return NULL;
    dev *p = a->base ? (dev *)((char *)a->base + a->bytes) : NULL;
    size_t used = (size_t)bytes, room = (used + 255) / 256 * 256 + (a->gap ? GAP : 0);
    a->bytes += room;
    if (a->gap && p)
        a->gap((dev *)((char *)p + used), room - used);
    return p;
}

dev *take(Arena *a, int type, double elements)
{
    return take_bytes(a, elements * (double)type_size(type));
}

/* This rank keeps a shard of each unit's state. */
static bool is_sharded(const Units *u)
{
    return u->layout->cut.shards > 1;
}

/* Gradients of each micro-batch are summed over the ranks at once, and only a shard is kept. */
static bool shards_gradients(const Units *u)
{
    return is_sharded(u) && u->split->zero >= 2;
}

/* Working weights are made, and not kept. */
static bool makes_weights(const Units *u)
{
    return u->transient && u->type != F32 && !is_sharded(u);
}

/* Two units' weights are here at a time. */
static bool takes_turns(const Units *u)
{
    return makes_weights(u) || (is_sharded(u) && u->split->zero == 3 && u->split->reshard);
}

void units_new(Units *u)
{
    u->stale = true;
    u->here = xcalloc((size_t)u->layout->units, sizeof *u->here);
}

void units_free(Units *u)
{
    free(u->here);
}

static void plan_weights(Units *u, Arena *a)
{
    const Layout *l = u->layout;
    double room = takes_turns(u) ? 2.0 * (double)l->largest : (double)l->n_padded;
    bool apart = is_sharded(u) || makes_weights(u);
    u->weights = take(a, F32, (double)l->n_own);
    u->shard = u->weights;
    if (u->type != F32)
        u->shard = take(a, u->type, makes_weights(u) ? 0 : (double)l->n_own);
    u->work = apart ? take(a, u->type, room) : u->shard;
}

static void plan_gradients(Units *u, Arena *a)
{
    const Layout *l = u->layout;
    bool at_once = shards_gradients(u), sums = is_sharded(u) && !at_once;
    u->grads = take(a, F32, (double)l->n_own);
    u->sums = sums ? take(a, F32, (double)l->n_padded) : u->grads;
    for (int i = 0; i < 2; i++) {
        double largest = (double)l->largest;
        u->unit_grad[i] = take(a, F32, at_once || i == 0 ? largest : 0);
        u->unit_sum[i] = take(a, F32, at_once ? largest / l->cut.shards : 0);
        u->packed[i] = take(a, u->split->reduce_type, u->split->reduce_type == F32 ? 0 : largest);
    }
}

static void plan_optimiser(Units *u, Arena *a, Arena *state)
{
    double n = (double)u->layout->n_own, chunks = u->layout->chunks;
    u->chunks = take_bytes(a, chunks * sizeof(Chunk));
    u->ema = take(state, F32, u->average ? n : 0);
    if (!u->training)
        return;
    u->exp_avg = take(state, F32, n);
    u->exp_avg_sq = take(state, F32, u->opt.kind == OPT_SGD ? 0 : n);
    u->partial = take(a, F32, chunks);
    u->norms = take(a, F32, u->opt.kind == OPT_LAMB ? 2 * chunks : 0);
}

void units_plan(Units *u, Arena *a, Arena *state)
{
    size_t at = a->bytes;
    plan_weights(u, a);
    u->bytes_weights = a->bytes - at;
    at = a->bytes;
    if (u->training)
        plan_gradients(u, a);
    u->bytes_grads = a->bytes - at;
    at = a->bytes + (state == a ? 0 : state->bytes);
    plan_optimiser(u, a, state);
    u->bytes_opt = a->bytes + (state == a ? 0 : state->bytes) - at;
}

void units_start(Units *u)
{
    u->be->upload(u->chunks, u->layout->chunk, (size_t)u->layout->chunks * sizeof(Chunk));
}

/* ------------------------------------------------------------------------------------------------
 * A unit's weights */

static dev *place_of(const Units *u, int unit)
{
    long at = u->layout->unit[unit].offset;
    return dev_at(u->work, takes_turns(u) ? unit % 2 * u->layout->largest : at, u->type);
}

/* In buffers of shards. */
static dev *own(const Units *u, dev *buffer, int unit, int type)
{
    return dev_at(buffer, u->layout->unit[unit].offset / u->layout->cut.shards, type);
}

static long own_n(const Units *u, int unit)
{
    return u->layout->unit[unit].n / u->layout->cut.shards;
}

/* Sends for a unit's shards, or makes its weights. They take the place of the last but one's, whose
 * readers were called before, so that nothing overtakes them. */
static void gather(Units *u, int unit)
{
    bool ours = unit >= u->split->first && unit < u->split->end;
    if (!(is_sharded(u) || makes_weights(u)) || !ours || u->here[unit])
        return;
    for (int i = unit % 2; takes_turns(u) && i < u->layout->units; i += 2)
        u->here[i] = false;
    u->here[unit] = true;
    if (makes_weights(u)) {
        u->be->convert(place_of(u, unit), u->type, own(u, u->weights, unit, F32), F32,
                       own_n(u, unit));
        return;
    }
    u->coming[unit % 2] =
        u->be->all_gather(u->split->dp.group, place_of(u, unit), own(u, u->shard, unit, u->type),
                          u->type, own_n(u, unit));
}

dev *unit_acquire(Units *u, int unit, int next)
{
    gather(u, unit);
    u->be->join(u->coming[unit % 2]);
    u->coming[unit % 2] = 0;
    if (!makes_weights(u) && (!takes_turns(u) || (next - unit) % 2)) /* else: while in cache */
        gather(u, next);
    return place_of(u, unit);
}

void units_left(Units *u, int a, int b)
{
    for (int i = 0; i < u->layout->units; i++)
        u->here[i] = takes_turns(u) ? i == a || i == b : is_sharded(u) && a >= 0;
}

uint64_t units_state(const Units *u)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (int i = 0; i < u->layout->units; i++)
        h = (h ^ u->here[i]) * 0x100000001b3u;
    return h;
}

/* ------------------------------------------------------------------------------------------------
 * A unit's gradient */

static dev *sum_of(const Units *u, int unit)
{
    return dev_at(u->sums, u->layout->unit[unit].offset, F32);
}

/* Waits for the sum over the ranks in place i, and adds it where it belongs. */
static void finish(Units *u, int i)
{
    const Backend *be = u->be;
    dev *sum = u->reducing[i].sum, *wide = sum;
    int unit = u->reducing[i].unit, type = u->split->reduce_type;
    if (!sum)
        return;
    dev *grad = own(u, u->grads, unit, F32);
    bool first = u->reducing[i].micro == 0;
    be->join(u->reducing[i].ticket);
    u->reducing[i].sum = NULL;
    if (type != F32) {
        wide = first ? grad : u->unit_sum[i];
        be->convert(wide, F32, sum, type, own_n(u, unit));
    }
    if (!first)
        be->add(grad, wide, own_n(u, unit));
}

/* Begins the sum of a unit's gradient g over the ranks. */
static void start(Units *u, int unit, int micro, dev *g)
{
    const Backend *be = u->be;
    const Axis *dp = &u->split->dp;
    long n = u->layout->unit[unit].n, mine = own_n(u, unit);
    int i = unit % 2, type = u->split->reduce_type;
    if (dp->ranks == 1)
        return;
    finish(u, i);
    if (type != F32) {
        be->convert(u->packed[i], type, g, F32, n);
        g = u->packed[i];
    }
    dev *sum = g;
    if (is_sharded(u) && type != F32)
        sum = dev_at(g, dp->rank * mine, type);
    else if (is_sharded(u))
        sum = micro == 0 ? own(u, u->grads, unit, F32) : u->unit_sum[i];
    u->reducing[i].sum = sum;
    u->reducing[i].unit = unit;
    u->reducing[i].micro = micro;
    u->reducing[i].ticket = is_sharded(u) ? be->reduce_scatter(dp->group, sum, g, type, mine)
                                          : be->all_reduce(dp->group, g, type, n);
}

/* The first micro-batch writes its gradient where the sum will stand, later ones beside it; where
 * gradients are sharded, units take turns. */
dev *unit_gradient(Units *u, int unit, int micro)
{
    if (!shards_gradients(u))
        return micro == 0 ? sum_of(u, unit) : u->unit_grad[0];
    finish(u, unit % 2);
    return u->unit_grad[unit % 2];
}

void unit_reduce(Units *u, int unit, int micro, bool last)
{
    if (shards_gradients(u)) {
        start(u, unit, micro, u->unit_grad[unit % 2]);
        return;
    }
    if (micro > 0)
        u->be->add(sum_of(u, unit), u->unit_grad[0], u->layout->unit[unit].n);
    if (last)
        start(u, unit, 0, sum_of(u, unit));
}

void units_settle(Units *u)
{
    finish(u, 0);
    finish(u, 1);
}

/* ------------------------------------------------------------------------------------------------
 * The update */

static OptStep step_of(const Units *u)
{
    return (OptStep){.opt = &u->opt,
                     .chunks = u->chunks,
                     .n = u->layout->chunks,
                     .w = u->weights,
                     .work = u->shard ? u->shard : u->weights,
                     .work_type = u->type,
                     .stochastic = u->stochastic,
                     .grad = u->grads,
                     .exp_avg = u->exp_avg,
                     .exp_avg_sq = u->exp_avg_sq,
                     .ema = u->ema,
                     .norms = u->norms};
}

/* Sums over chunks of which each rank has some, and zero of the others. */
static void sum_parts(const Units *u, dev *sums, long n)
{
    u->be->join(u->be->all_reduce(u->split->parts, sums, F32, n));
}

/* Chunks are the same ones, and are added in the same order, however they are spread. */
void units_update(Units *u)
{
    const Backend *be = u->be;
    OptStep s = step_of(u);
    be->sum_squares(u->partial, u->grads, u->chunks, s.n);
    sum_parts(u, u->partial, s.n);
    be->finish_norm(u->partial, s.n, u->clip);
    if (u->opt.kind == OPT_SGD) {
        be->sgd(&s);
    } else if (u->opt.kind == OPT_LAMB) {
        be->lamb_direction(&s);
        sum_parts(u, u->norms, 2L * s.n);
        be->lamb_apply(&s);
    } else {
        be->adam(&s);
    }
    units_left(u, -1, -1);
}

void units_refresh(Units *u)
{
    if (!u->stale)
        return;
    u->stale = false;
    units_left(u, -1, -1);
    OptStep s = step_of(u);
    if (u->shard == u->weights || !u->shard)
        return;
    if (u->stochastic)
        u->be->round_weights(&s);
    else
        u->be->convert(u->shard, u->type, u->weights, F32, u->layout->n_own);
}

/* Numbers move and not pointers: the average may be in the host's memory, from which no product
 * should read. The gradient is done with, and its buffer the third place. */
void units_swap_ema(Units *u)
{
    size_t bytes = (size_t)u->layout->n_own * sizeof(real);
    u->be->copy(u->grads, u->weights, bytes);
    u->be->copy(u->weights, u->ema, bytes);
    u->be->copy(u->ema, u->grads, bytes);
    u->stale = true;
}

/* ------------------------------------------------------------------------------------------------
 * What files see */

void units_read(const Units *u, const dev *buffer, long offset, long n, real *out)
{
    u->be->download(out, dev_at((dev *)buffer, offset, F32), (size_t)n * sizeof *out);
}

void units_write(Units *u, dev *buffer, long offset, long n, const real *in)
{
    u->be->upload(dev_at(buffer, offset, F32), in, (size_t)n * sizeof *in);
    u->stale |= buffer == u->weights;
}

long units_kept(const Units *u, const Param *p, bool once, long *begin, long *end)
{
    const Split *s = u->split;
    long at = param_shard(u->layout, p, u->layout->cut.shard, begin, end);
    if (!once)
        return at;
    if (p->split == SPLIT_WHOLE && s->tp.rank > 0)
        *end = *begin;
    long n = *end - *begin, before = 0;
    if (!is_sharded(u)) { /* all data parallel ranks have all of it */
        before = n * s->dp.rank / s->dp.ranks;
        *end = *begin + n * (s->dp.rank + 1) / s->dp.ranks;
        *begin += before;
    }
    return at + before;
}
