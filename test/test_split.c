/* test_split.c - who has what, without having it: splits and layouts of models that no test machine
 * could hold.
 *
 * The model of 10 billion parameters is shared out among 64 ranks, and a tiny one that divides badly
 * among a few. Each rank says which stretches of which tensors it holds; of every tensor each
 * element must be held as often as the layout means it to be, and written to files exactly once.
 * Printed: the memory that a rank plans.
 */
#include "vit.h"
#include "check.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_RANKS = 64 };

typedef struct {
    int ranks, tp, pp, zero;
    bool reshard;
    const char *stages;
    int recompute;
} Way;

/* The first ones plan less and less memory. */
static const Way planned[] = {
    {64, 1, 1, 0, true, "", RECOMPUTE_NONE},  {64, 1, 1, 1, true, "", RECOMPUTE_NONE},
    {64, 1, 1, 2, true, "", RECOMPUTE_NONE},  {64, 1, 1, 3, true, "", RECOMPUTE_NONE},
    {64, 1, 1, 3, true, "", RECOMPUTE_SELECTIVE}, {64, 1, 1, 3, true, "", RECOMPUTE_FULL},
    {64, 1, 1, 3, false, "", RECOMPUTE_NONE}, {64, 8, 1, 0, true, "", RECOMPUTE_NONE},
    {64, 8, 1, 3, true, "", RECOMPUTE_NONE},  {64, 8, 8, 0, true, "", RECOMPUTE_NONE},
    {64, 1, 32, 1, true, "", RECOMPUTE_NONE},
};
enum { LESS_AND_LESS = 6 };
static const Way large[] = {
    {64, 1, 1, 3, true, "", 0}, {64, 8, 8, 0, true, "", 0}, {64, 16, 2, 3, true, "20,12", 0}};
static const Way small[] = {
    {3, 1, 1, 3, true, "", 0},  {6, 3, 1, 1, true, "", 0},     {12, 2, 3, 3, true, "", 0},
    {12, 2, 3, 2, true, "", 0}, {12, 6, 2, 0, true, "1,4", 0}, {5, 1, 5, 0, true, "", 0},
    {7, 1, 1, 0, true, "", 0},  {4, 2, 1, 3, false, "", 0},
};

/* All ranks' views of one model. Their lists of chunks, which are long, are looked at one by one. */
typedef struct {
    const Way *way;
    int dp;
    Split split[MOST_RANKS];
    Layout *layout[MOST_RANKS];
    Units units[MOST_RANKS];
    int chunks, differ, outside;
    long counted; /* elements of chunks that count */
    char name[64];
} Job;

static void split(Job *j, const Config *c, const Way *w)
{
    Error e = {"", ""};
    memset(j, 0, sizeof *j);
    j->way = w;
    j->dp = w->ranks / w->tp / w->pp;
    snprintf(j->name, sizeof j->name, "tp %d pp %d dp %d zero %d%s%s%s", w->tp, w->pp, j->dp,
             w->zero, w->reshard ? "" : " kept", *w->stages ? " " : "", w->stages);
    for (int r = 0; r < w->ranks; r++) {
        if (!split_new(&j->split[r], c, r, w->ranks, w->tp, w->pp, w->stages, w->zero, &e))
            die(e.hint, "%s", e.what);
        j->split[r].reshard = w->reshard;
    }
}

static void look_at_chunks(Job *j, const Layout *l)
{
    j->chunks = j->chunks ? j->chunks : l->chunks;
    j->differ += l->chunks != j->chunks;
    for (int i = 0; i < l->chunks; i++) {
        const Chunk *k = &l->chunk[i];
        j->counted += k->flags & CHUNK_COPY ? 0 : k->n;
        j->outside += k->n && k->offset + k->n > l->n_own;
        j->differ += i && k->tensor < l->chunk[i - 1].tensor;
    }
}

static void start(Job *j, const Config *c, const Way *w)
{
    split(j, c, w);
    for (int r = 0; r < w->ranks; r++) {
        Cut cut = split_cut(&j->split[r]);
        Layout *l = j->layout[r] = layout_new(c, DECAY_ALL, &cut);
        j->units[r] = (Units){.layout = l, .split = &j->split[r]};
        look_at_chunks(j, l);
        free(l->chunk);
        l->chunk = NULL;
    }
}

static void end(Job *j)
{
    for (int r = 0; r < j->way->ranks; r++)
        layout_free(j->layout[r]);
}

/* ---- every element ---- */

typedef struct {
    long begin, end;
} Range;
static Range *range;
static long ranges, room;

/* What a rank has of tensor t, as stretches of the whole tensor. Returns its elements. */
static long add_ranges(const Units *u, int t, bool once, bool keep)
{
    const Param *p = &u->layout->param[t];
    long begin, end, n = 0;
    units_kept(u, p, once, &begin, &end);
    for (Run r = {.part = begin}; r.part < end; r.part += r.n) {
        r = param_run(u->layout, p, r.part, end);
        n += r.n;
        if (!keep)
            continue;
        if (ranges == room)
            range = xrealloc(range, (size_t)(room = 2 * room + 1024) * sizeof *range);
        range[ranges++] = (Range){r.whole, r.whole + r.n};
    }
    return n;
}

static int by_begin(const void *a, const void *b)
{
    long x = ((const Range *)a)->begin, y = ((const Range *)b)->begin;
    return x < y ? -1 : x > y;
}

/* Where its numbers stand in a rank's buffers: inside, and behind those of the tensor before. */
static bool in_place(const Units *u, int t, long *after)
{
    long begin, end, at = units_kept(u, &u->layout->param[t], false, &begin, &end);
    if (end == begin)
        return true;
    bool fits = at >= *after && at + end - begin <= u->layout->n_own;
    *after = at + end - begin;
    return fits;
}

static void check_elements(const Job *j)
{
    const Way *w = j->way;
    const Layout *l = j->layout[0];
    int dp = j->dp, gaps = 0, wrong = 0, misplaced = 0;
    long written = 0, after[MOST_RANKS] = {0};
    for (int t = 0; t < l->tensors; t++) {
        const Param *p = &l->param[t];
        long held = 0, at = 0;
        ranges = 0;
        for (int r = 0; r < w->ranks; r++) {
            held += add_ranges(&j->units[r], t, false, false);
            written += add_ranges(&j->units[r], t, true, true);
            misplaced += !in_place(&j->units[r], t, &after[r]);
        }
        long copies = (p->split == SPLIT_WHOLE ? w->tp : 1) * (w->zero && dp > 1 ? 1 : dp);
        wrong += held != p->n * copies;
        qsort(range, (size_t)ranges, sizeof *range, by_begin);
        for (long i = 0; i < ranges; at = range[i++].end)
            gaps += range[i].begin != at;
        gaps += at != p->n;
    }
    CHECK(wrong == 0, "%s: of %d tensors not as many elements are held as should be", j->name, wrong);
    CHECK(misplaced == 0, "%s: %d tensors outside of a rank's buffers, or in another's place",
          j->name, misplaced);
    CHECK(gaps == 0, "%s: %d elements or more are in no file, or twice", j->name, gaps);
    CHECK(written == l->n_params, "%s: %ld of %ld elements in files", j->name, written, l->n_params);
}

/* Chunks that count are the whole model, once for each group over which norms are summed; all ranks
 * list the same ones. */
static void check_chunks(const Job *j)
{
    long groups = j->way->zero && j->dp > 1 ? 1 : j->dp, all = groups * j->layout[0]->n_params;
    CHECK(j->differ == 0, "%s: %d lists or chunks differ", j->name, j->differ);
    CHECK(j->outside == 0, "%s: %d chunks are outside", j->name, j->outside);
    CHECK(j->counted == all, "%s: %ld elements count, not %ld", j->name, j->counted, all);
}

/* ---- memory ---- */

/* One rank of each stage: its neighbours plan as much. */
static double most_bytes(const Job *j, const Config *c, double *least)
{
    double most = 0;
    *least = 1e30;
    for (int r = 0; r < j->way->ranks; r += j->way->tp * j->dp) {
        Plan plan = {.max_batch = 8,
                     .batch = 1024,
                     .split = &j->split[r],
                     .recompute = {.kind = j->way->recompute},
                     .type = BF16,
                     .training = true,
                     .opt = {.kind = OPT_ADAMW}};
        double bytes = vit_bytes(c, &plan, backend_cpu());
        most = bytes > most ? bytes : most;
        *least = bytes < *least ? bytes : *least;
    }
    return most;
}

static void test_large(void)
{
    static const char *const recomputes[] = {"", ", recompute selective", ", recompute full"};
    static Job j;
    Config c = vit_config_default();
    CHECK(vit_preset("10B/14", &c));
    double before = 0, least;
    for (int i = 0; i < COUNT(planned); i++) {
        split(&j, &c, &planned[i]);
        double most = most_bytes(&j, &c, &least);
        printf("10B/14 on 64 ranks, %s%s: %.1f .. %.1f GiB a rank\n", j.name,
               recomputes[planned[i].recompute], least / (1 << 30), most / (1 << 30));
        CHECK(i == 0 || i >= LESS_AND_LESS || most < before, "%s: %.0f bytes, no less than %.0f",
              j.name, most, before);
        before = most;
    }
    for (int i = 0; i < COUNT(large); i++) {
        start(&j, &c, &large[i]);
        check_elements(&j);
        check_chunks(&j);
        end(&j);
    }
}

/* 5 layers, 6 heads of 2, 18 columns, 7 classes, shards of a tensor here and there. */
static void test_small(void)
{
    static Job j;
    Config c = vit_config_default();
    c.image_h = c.image_w = 64;
    c.patch = 8;
    c.width = 96;
    c.layers = 5;
    c.heads = 6;
    c.mlp = 186;
    c.classes = 7;
    c.layer_scale = c.norm_pre = true;
    c.representation = 13;
    for (int i = 0; i < COUNT(small); i++) {
        start(&j, &c, &small[i]);
        check_elements(&j);
        check_chunks(&j);
        end(&j);
    }
}

/* ---- the schedule ---- */

typedef struct {
    int forward, backward, most;
    bool in_order;
} Course;

static void follow(void *ctx, int micro, bool backward)
{
    Course *c = ctx;
    int *next = backward ? &c->backward : &c->forward;
    c->in_order = c->in_order && micro == *next && c->backward + backward <= c->forward;
    ++*next;
    c->most = c->forward - c->backward > c->most ? c->forward - c->backward : c->most;
}

static void test_schedule(void)
{
    Config c = vit_config_default();
    for (int rank = 0; rank < 4; rank++)
        for (int micros = 1; micros <= 9; micros++) {
            Split s;
            Course course = {.in_order = true};
            split_new(&s, &c, rank, 4, 1, 4, "", 0, NULL);
            run_schedule(&s, micros, follow, &course);
            int most = micros < 4 - rank ? micros : 4 - rank;
            CHECK(course.in_order && course.forward == micros && course.backward == micros,
                  "stage %d of 4, %d micro-batches", rank, micros);
            CHECK(course.most == most && most <= split_in_flight(&s), "%d in flight", course.most);
        }
}

/* ---- what is impossible ---- */

static void test_errors(void)
{
    static const struct {
        int ranks, tp, pp;
        const char *stages, *what, *hint;
    } bad[] = {
        {8, 3, 1, "", "--tp 3 --pp 1 takes a multiple of 3 processes; there are 8", "--tp 2 --pp 1"},
        {8, 3, 2, "", "a multiple of 6 processes; there are 8", "--tp 2 --pp 2"},
        {8, 8, 1, "", "--tp 8 does not divide 12 heads and an MLP of 3072", "1, 2, 3, 4, 6, 12"},
        {8, 0, 1, "", "--tp 0 does not divide 12 heads", "1, 2, 3, 4, 6, 12"},
        {8, 1, 0, "", "--pp 0", "one layer or more"},
        {8, 1, 3, "", "a multiple of 3 processes; there are 8", "--tp 1 --pp 2"},
        {8, 2, 8, "", "a multiple of 16 processes; there are 8", "--tp 2 --pp 4"},
        {1, 1, 2, "", "there is 1", "start 2 processes"},
        {16, 1, 16, "", "--pp 16, but the model has 12 layers", "--tp 1 --pp 8"},
        {2, 1, 2, "6", "1 stages, 6 layers; there are 2 and 12", ": 6,6"},
        {5, 1, 5, "6,5", "2 stages, 11 layers; there are 5 and 12", ": 2,2,2,3,3"},
        {2, 1, 2, "12,0", "stage 2 has no number", ": 6,6"},
        {2, 1, 2, "6,,6", "stage 2 has no number", ": 6,6"},
        {2, 1, 2, "6,6,", "stage 3 has no number", ": 6,6"},
        {2, 1, 2, "6;6", "stage 1 has no number", ": 6,6"},
    };
    Config c = vit_config_default();
    for (int i = 0; i < COUNT(bad); i++) {
        Split s;
        Error e = {"", ""};
        CHECK(!split_new(&s, &c, 0, bad[i].ranks, bad[i].tp, bad[i].pp, bad[i].stages, 0, &e));
        CHECK(strstr(e.what, bad[i].what) && strstr(e.hint, bad[i].hint), "%s; hint: %s", e.what, e.hint);
    }
}

int main(void)
{
    test_errors();
    test_schedule();
    test_small();
    test_large();
    free(range);
    return check_report();
}
