/* propose.c - which layout is the fastest of those that fit. See propose.h.
 *
 * A search looks at hundreds of layouts. Most of a model is the same layer again and again: a job's
 * memory and time grow by the same amount with every layer of a stage, and its memory with every
 * image. So the search looks at models of two and of three layers a stage and goes on in a straight
 * line; what it proposes is then looked at in full.
 *
 * Read in this order: the micro-batch, straight lines, candidates, the search, words.
 */
#include "plan/propose.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool fits(const Needs *n)
{
    return n->room == 0 || n->total <= n->room;
}

/* ---- the micro-batch ---- */

/* The largest divisor of `batch` up to `most` that is a multiple of group; 0: none. */
static long divisor(long batch, long group, long most)
{
    long n = most < batch ? most : batch;
    while (n > 0 && (batch % n || n % group))
        n--;
    return n;
}

int job_fit(Job *j, long batch, long group, long most)
{
    int first = (int)group;
    j->plan.max_batch = first;
    Needs one = job_needs(j);
    j->plan.max_batch = 2 * first;
    Needs two = job_needs(j);
    double each = (two.total - one.total) / first, left = one.room - one.total;
    long n = most;
    if (one.room > 0)
        n = left < 0 ? 0 : fmin((double)most, (double)group + left / each + 1);
    for (n = divisor(batch, group, n); n > 0; n = divisor(batch, group, n - 1)) {
        j->plan.max_batch = (int)n;
        Needs needs = job_needs(j);
        if (fits(&needs))
            return (int)n;
    }
    j->plan.max_batch = first;
    return 0;
}

/* ---- straight lines ---- */

enum { FEW = 2, MORE = 3 }; /* layers a stage */

static Job shortened(const Job *j, int layers)
{
    Job k = *j;
    k.config.layers = layers * j->pp;
    k.stages = "";
    return k;
}

/* From the values with FEW and MORE layers a stage on to the fullest stage's. */
static double extended(const Job *j, double few, double more)
{
    double layers = ceil((double)j->config.layers / j->pp);
    return few + (layers - FEW) * (more - few) / (MORE - FEW);
}

static double bytes(const Job *j, int micro)
{
    double with[2];
    for (int i = 0; i < 2; i++) {
        Job k = shortened(j, i ? MORE : FEW);
        k.plan.max_batch = micro;
        with[i] = job_needs(&k).total;
    }
    return extended(j, with[0], with[1]);
}

static double seconds(const Job *j)
{
    Job few = shortened(j, FEW), more = shortened(j, MORE);
    return extended(j, job_forecast(&few).seconds, job_forecast(&more).seconds);
}

/* ---- candidates ---- */

typedef struct {
    Job job;
    double seconds;
} Candidate;
typedef struct {
    const Job *job;
    long batch, group;
    double room;
    Candidate *list;
    int n;
    int shared; /* the least tp * pp with which a plain layout fits well; 0: none yet */
} Search;

static int by_seconds(const void *a, const void *b)
{
    double x = ((const Candidate *)a)->seconds, y = ((const Candidate *)b)->seconds;
    return (x > y) - (x < y);
}

static void add(Search *s, const Job *j)
{
    s->list = xgrow(s->list, s->n, sizeof *s->list);
    s->list[s->n++] = (Candidate){*j, seconds(j)};
}

/* Adds the job with micro-batches that fit. Returns whether they are so large that larger ones
 * would make it hardly faster: 16,000 tokens. */
static bool try(Search *s, Job *j)
{
    enum { TOKENS = 16000 };
    int dp = j->ranks / j->tp / j->pp;
    long batch = s->batch / dp, most = batch, enough = TOKENS / vit_tokens(&j->config);
    double one = bytes(j, (int)s->group), each = bytes(j, 2 * (int)s->group) - one;
    if (one > s->room && s->room > 0)
        return false;
    if (s->room > 0)
        most = s->group + (long)((s->room - one) / each * (double)s->group);
    if (j->pp > 1 && most > batch / j->pp)
        most = batch / j->pp; /* a stage each */
    long micro = divisor(batch, s->group, most);
    bool plenty = micro >= enough || micro == batch;
    for (int i = 0; i < (j->pp > 1 ? 3 : 1) && micro > 0; i++) {
        j->plan.max_batch = (int)micro;
        add(s, j);
        micro = divisor(batch, s->group, micro / 2);
    }
    return plenty;
}

/* With more and more given up: the state's copies, then time. Where ZeRO 1 leaves room, more would
 * only cost. */
static void try_split(Search *s, int tp, int pp)
{
    Job j = *s->job;
    Error e;
    j.tp = tp;
    j.pp = pp;
    j.stages = "";
    Split split;
    int dp = j.ranks / tp / pp;
    if (!job_split(&j, 0, &split, &e) || s->batch % dp || s->batch / dp % s->group)
        return;
    for (int zero = 0; zero <= (dp > 1 ? 3 : 0); zero++) {
        bool plenty = false;
        j.zero = zero;
        for (int kind = RECOMPUTE_NONE; kind <= RECOMPUTE_FULL && !plenty; kind++) {
            j.plan.recompute = (Recompute){.kind = kind, .group = 1};
            plenty = try(s, &j);
        }
        bool plain = plenty && j.plan.recompute.kind == RECOMPUTE_NONE;
        if (plain && !s->shared)
            s->shared = tp * pp;
        if (plain && zero > 0)
            break;
    }
}

/* ---- the search ---- */

/* Tensor parallel ranks stay within a machine; both counts are powers of two. What divides the
 * model more than four times finer than needed is not looked at. */
static void try_all(Search *s)
{
    const Job *j = s->job;
    for (int parts = 1; parts <= j->ranks; parts *= 2)
        for (int tp = 1; tp <= parts && tp <= j->cluster.per_machine; tp *= 2)
            if (j->ranks % parts == 0 && (!s->shared || parts <= 4 * s->shared))
                try_split(s, tp, parts / tp);
}

/* Whether it is another layout than those before: not just another micro-batch. */
static bool is_new(const Proposal *out, int n, const Job *j)
{
    for (int i = 0; i < n; i++) {
        const Job *k = &out[i].job;
        if (k->tp == j->tp && k->pp == j->pp && k->zero == j->zero)
            return false;
    }
    return true;
}

int job_propose(const Job *j, long batch, long group, Proposal *out)
{
    int n = 0;
    Job one = *j;
    one.tp = one.pp = 1;
    one.plan.max_batch = 1;
    Job probe = shortened(&one, FEW);
    Search s = {.job = j, .batch = batch, .group = group, .room = job_needs(&probe).room};
    try_all(&s);
    qsort(s.list, (size_t)s.n, sizeof *s.list, by_seconds);
    for (int i = 0; i < s.n && n < MOST_PROPOSALS; i++) {
        Proposal p = {.job = s.list[i].job};
        if (!is_new(out, n, &p.job))
            continue;
        p.needs = job_needs(&p.job);
        if (!fits(&p.needs))
            continue;
        p.forecast = job_forecast(&p.job);
        out[n++] = p;
    }
    for (int i = 1; i < n; i++) /* the straight lines were near, not exact */
        for (int k = i; k > 0 && out[k].forecast.seconds < out[k - 1].forecast.seconds; k--) {
            Proposal p = out[k];
            out[k] = out[k - 1];
            out[k - 1] = p;
        }
    free(s.list);
    return n;
}

/* ---- words ---- */

static const char *const kinds[] = {"", " --recompute selective", " --recompute full"};

void job_flags(const Job *j, char *out, size_t size)
{
    char text[160];
    size_t at = 0;
    if (j->tp > 1)
        at += (size_t)snprintf(text + at, sizeof text - at, " --tp %d", j->tp);
    if (j->pp > 1)
        at += (size_t)snprintf(text + at, sizeof text - at, " --pp %d", j->pp);
    if (j->zero)
        at += (size_t)snprintf(text + at, sizeof text - at, " --zero %d", j->zero);
    snprintf(text + at, sizeof text - at, "%s --micro-batch %d", kinds[j->plan.recompute.kind],
             j->plan.max_batch);
    snprintf(out, size, "%s", text + 1);
}

/* What may be given up for memory, from the least to all of it on more and more GPUs. */
typedef struct {
    bool recompute, zero, tp;
    int times; /* as many GPUs */
} Remedy;
static const Remedy remedies[] = {
    {0, 0, 0, 1}, {1, 0, 0, 1}, {0, 1, 0, 1}, {0, 0, 1, 1},  {1, 1, 1, 1},  {1, 1, 0, 2},
    {1, 1, 1, 2}, {1, 1, 1, 4}, {1, 1, 1, 8}, {1, 1, 1, 16}, {1, 1, 1, 32}, {1, 1, 1, 64},
};

static void split_widely(Job *j)
{
    for (int tp = 2; tp <= j->cluster.per_machine && j->ranks % (tp * j->pp) == 0; tp *= 2)
        if (j->config.heads % tp == 0 && j->config.mlp % tp == 0)
            j->tp = tp;
}

/* The job as small as it gets, and besides with what the remedy says. */
static Job cured(const Job *was, const Remedy *r, int group)
{
    Job j = *was;
    j.plan.max_batch = group;
    j.ranks *= r->times;
    if (r->recompute)
        j.plan.recompute = (Recompute){.kind = RECOMPUTE_FULL, .group = 1};
    if (r->tp)
        split_widely(&j);
    if (r->zero)
        j.zero = j.ranks / j.tp / j.pp > 1 ? 3 : 0;
    return j;
}

/* The first two remedies that help; where more GPUs are needed, the first alone. */
void job_remedy(const Job *j, long group, char *out, size_t size)
{
    enum { ENOUGH = 2 };
    size_t at = 0;
    *out = 0;
    for (int i = 0, found = 0; i < COUNT(remedies) && found < ENOUGH; i++) {
        Split s;
        Error e;
        Job k = cured(j, &remedies[i], (int)group);
        char flags[160], more[32] = "";
        if (!job_split(&k, 0, &s, &e))
            continue;
        Needs n = job_needs(&k);
        if (!fits(&n))
            continue;
        if (k.ranks > j->ranks)
            snprintf(more, sizeof more, "%d GPUs and ", k.ranks);
        job_flags(&k, flags, sizeof flags);
        at += (size_t)snprintf(out + at, size - at, "%s%s%s (%.0f GiB)",
                               at ? "; or " : "what fits: ", more, flags, n.total / (1 << 30));
        found += k.ranks > j->ranks ? ENOUGH : 1;
    }
    if (!at)
        snprintf(out, size, "take a smaller model: nothing that this program has makes it fit");
}
