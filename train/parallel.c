/* parallel.c - from flags to how the ranks share the model. See parallel.h.
 *
 * What the layouts mean is in dist.h, what is recomputed in vit.h; here are their names for users,
 * and what is said where they make no sense.
 */
#include "train/parallel.h"

#include "train/hosts.h"
#include "util/text.h"

#include <string.h>

/* A run that goes on among other ranks may not fit its own layout; what was asked for must. */
static void fit_run(Session *s)
{
    Options *o = &s->o;
    Error e;
    int ranks = s->world.ranks;
    if (!s->run_layout || ranks % (o->tp * o->pp) == 0)
        return;
    printf("note: the run's --tp %ld --pp %ld does not fit %s: --tp 1 --pp 1\n", o->tp, o->pp,
           amount(ranks, "rank").s);
    o->tp = o->pp = 1;
    options_set(o, "layers-per-stage", "", "", &e);
}

bool parallel_new(Split *s, const Options *o, const Config *c, int rank, int ranks, Error *e)
{
    static const int types[] = {F32, BF16}; /* by --reduce-dtype */
    if (!split_new(s, c, rank, ranks, (int)o->tp, (int)o->pp, o->layers_per_stage, (int)o->zero, e))
        return false;
    s->reshard = o->reshard_after_forward;
    s->reduce_type = types[o->reduce_dtype];
    return true;
}

void parallel_split(Session *s)
{
    Options *o = &s->o;
    Error e = {"", ""};
    fit_run(s);
    bool ok = parallel_new(&s->split, o, &s->config, s->world.rank, s->world.ranks, &e);
    if (!ok && s->world.rank > 0) /* all find the same: the first one says it, and they end */
        hosts_barrier();
    if (!ok)
        die_usage(e.hint, "%s", e.what);
    split_connect(&s->split, s->be);
    if (s->world.ranks == 1)
        return;
    printf("ranks     %d processes, one device each", s->world.ranks);
    if (s->split.pp.ranks > 1)
        printf(", %d stages", s->split.pp.ranks);
    if (s->split.tp.ranks > 1)
        printf(", %d tensor parallel", s->split.tp.ranks);
    if (s->split.dp.ranks > 1)
        printf(", %d data parallel", s->split.dp.ranks);
    printf(s->split.zero ? " (zero %d)\n" : "\n", s->split.zero);
}

/* The bit of an activation that may be kept, or 0. */
static unsigned bit_of(const char *name, size_t length)
{
#define X(field, type, elements, cost) {#field, cost},
    static const struct {
        const char *name;
        int cost;
    } acts[] = {BLOCK_ACTS(X)};
#undef X
    for (int i = 0; i < COUNT(acts); i++)
        if (acts[i].cost != ALWAYS && strlen(acts[i].name) == length &&
            strncmp(acts[i].name, name, length) == 0)
            return 1u << i;
    return 0;
}

Recompute parallel_recompute(const Options *o, bool light)
{
    const int kinds[] = {light ? RECOMPUTE_LIGHT : RECOMPUTE_NONE, RECOMPUTE_NONE, RECOMPUTE_LIGHT,
                         RECOMPUTE_SELECTIVE, RECOMPUTE_FULL}; /* by the words of the flag */
    Recompute r = {kinds[o->recompute], (int)o->recompute_blocks, (int)o->recompute_group, 0};
    if (r.kind != RECOMPUTE_FULL && (r.group > 1 || *o->recompute_keep))
        die_usage(r.group > 1 ? "give --recompute full, or --recompute-group 1"
                              : "give --recompute full, or --recompute-keep ''",
                  "--recompute-%s goes with --recompute full", r.group > 1 ? "group" : "keep");
    if (r.kind == RECOMPUTE_NONE && r.blocks)
        die_usage("give --recompute light, selective or full, or --recompute-blocks 0",
                  "--recompute-blocks says of what, not how");
    for (const char *p = o->recompute_keep; *p;) {
        size_t length = strcspn(p, ",");
        unsigned bit = bit_of(p, length);
        if (!bit)
            die_usage("choose of norm1_y qkv att mid norm2_y fc1 gelu, with commas between",
                      "--recompute-keep: no activation is called '%.*s'", (int)length, p);
        r.keep |= bit;
        p += length + (p[length] == ',');
    }
    return r;
}

bool parallel_together(const Session *s)
{
    return s->split.zero || s->split.tp.ranks > 1 || s->split.pp.ranks > 1;
}
