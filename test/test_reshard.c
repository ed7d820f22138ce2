/* test_reshard: checkpoints that several ranks write and read, for every way to share a model.
 *
 * Ranks are processes forked here, and their sums go through shared memory, so that it needs no MPI
 * and no device. Which rank has which element is computed here a second time, from shapes alone.
 * Everything is written into a temporary directory, which is removed at the end. Read in this
 * order: ranks, numbers, parts of a model, saving and resuming, other files, failures.
 */
#include "checkpoint.h"
#include "check.h"
#include "util/files.h"
#include "weights/weights.h"

#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- ranks ---- */

enum { MAX_RANKS = 16, BOX = 1024, SETS = 4, PIECE = 1 << 20 };

/* What processes share. */
typedef struct {
    pthread_barrier_t barrier;
    double box[MAX_RANKS][BOX];
    bool ok[MAX_RANKS], done[MAX_RANKS];
    Error error[MAX_RANKS];
} World;
static World *world;
static CkptRanks ranks; /* of this process */

static void sum(double *x, int n)
{
    if (n > BOX)
        die(NULL, "a message of %d numbers", n);
    memcpy(world->box[ranks.rank], x, (size_t)n * sizeof *x);
    pthread_barrier_wait(&world->barrier);
    memset(x, 0, (size_t)n * sizeof *x);
    for (int r = 0; r < ranks.ranks; r++)
        for (int i = 0; i < n; i++)
            x[i] += world->box[r][i];
    pthread_barrier_wait(&world->barrier);
}

/* work() on n ranks at once; on how many it returned true. */
static int on_ranks(int n, bool (*work)(const void *ctx, Error *e), const void *ctx)
{
    pthread_barrierattr_t shared;
    int well = 0;
    memset(world, 0, sizeof *world);
    pthread_barrierattr_init(&shared);
    pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&world->barrier, &shared, (unsigned)n);
    fflush(stdout);
    for (int r = 0; r < n; r++) {
        if (fork())
            continue;
        alarm(300); /* where another rank ended, this one waits for ever */
        ranks = (CkptRanks){r, n, sum};
        world->ok[r] = work(ctx, &world->error[r]);
        world->done[r] = true;
        fflush(stdout);
        _exit(0);
    }
    while (wait(NULL) > 0) {
    }
    for (int r = 0; r < n; r++) {
        CHECK(world->done[r], "rank %d of %d did not come to its end", r, n);
        well += world->ok[r];
    }
    return well;
}

/* ---- numbers ---- */

static uint32_t hash_name(const char *name)
{
    uint32_t h = 2166136261u;
    for (; *name; name++)
        h = (h ^ (uint8_t)*name) * 16777619u;
    return h;
}

/* From the hash of a tensor's name, which set it is of and the element's place in the whole tensor.
 */
static uint32_t mixed(uint32_t h, uint32_t set, uint32_t i)
{
    h = (h ^ set) * 16777619u;
    h = (h ^ i) * 16777619u;
    h ^= h >> 15;
    h *= 2246822519u;
    return h ^ h >> 13;
}

typedef real Numbers(uint32_t name, int set, long i);

static real of_run(uint32_t name, int set, long i)
{
    return (real)((int32_t)mixed(name, (uint32_t)set, (uint32_t)i) / 65536.0 / 65536.0);
}

/* The average in the weights' place; and the other way round. */
static real of_average(uint32_t name, int set, long i)
{
    return of_run(name, set == 0 ? 3 : set, i);
}

static real of_raw(uint32_t name, int set, long i)
{
    return of_run(name, set == 3 ? 0 : set, i);
}

/* Ones that bfloat16 and half have exactly. */
static real of_short(uint32_t name, int set, long i)
{
    (void)set;
    return (real)(((int)(mixed(name, 7, (uint32_t)i) % 255) - 127) / 64.0);
}

/* ---- parts of a model ---- */

static size_t largest, moved; /* bytes: of a copy, and of all, since part_new */

static void count_copy(size_t bytes)
{
    largest = bytes > largest ? bytes : largest;
    moved += bytes;
}

static void upload(dev *to, const void *from, size_t bytes)
{
    count_copy(bytes);
    memcpy(to, from, bytes);
}

static void download(void *to, const dev *from, size_t bytes)
{
    count_copy(bytes);
    memcpy(to, from, bytes);
}

static const Backend host = {.upload = upload, .download = download};

/* How ranks share a model. */
typedef struct {
    int tp, pp, dp, zero;
} Way;

static int ranks_of(Way w)
{
    return w.tp * w.pp * w.dp;
}

/* What one rank has. */
typedef struct {
    Split split;
    Layout *layout;
    Units u;
    void *memory;
    size_t bytes;
    dev *set[SETS]; /* NULL: there is none */
} Part;

static void part_new(Part *m, const Config *c, int optimiser, bool average, Way w, int rank)
{
    Error e = {"", ""};
    memset(m, 0, sizeof *m);
    if (!split_new(&m->split, c, rank, ranks_of(w), w.tp, w.pp, "", w.zero, &e))
        die(e.hint, "%s", e.what);
    Cut cut = split_cut(&m->split);
    m->layout = layout_new(c, DECAY_NO_1D, &cut);
    m->u = (Units){.layout = m->layout,
                   .be = &host,
                   .split = &m->split,
                   .training = true,
                   .average = average,
                   .opt = {.kind = optimiser}};
    units_new(&m->u);
    Arena a = {0};
    units_plan(&m->u, &a, &a);
    m->bytes = (a.bytes + 255) / 256 * 256;
    m->memory = aligned_alloc(256, m->bytes);
    memset(m->memory, 0x5a, m->bytes);
    a = (Arena){.base = m->memory};
    units_plan(&m->u, &a, &a);
    dev *const set[SETS] = {m->u.weights, m->u.exp_avg, m->u.exp_avg_sq, m->u.ema};
    memcpy(m->set, set, sizeof set);
    largest = moved = 0;
}

static void part_free(Part *m)
{
    units_free(&m->u);
    layout_free(m->layout);
    free(m->memory);
}

/* How tensor parallelism cuts p, by its name. */
enum { CUT_NOT, CUT_ROWS, CUT_COLUMNS, CUT_HEADS };
static int cut_of(const Part *m, const Param *p)
{
    int tp = m->split.tp.ranks;
    bool block = p->unit > 0 && p->unit <= m->layout->config.layers;
    if (tp == 1)
        return CUT_NOT;
    if (strncmp(p->name, "head.", 5) == 0)
        return p->shape[0] % tp ? CUT_NOT : CUT_ROWS;
    if (block && strstr(p->name, "attn.qkv"))
        return CUT_HEADS;
    if (block && strstr(p->name, "mlp.fc1"))
        return CUT_ROWS;
    return block && (strstr(p->name, "proj.weight") || strstr(p->name, "fc2.weight")) ? CUT_COLUMNS
                                                                                      : CUT_NOT;
}

/* Where element i of the whole tensor p stands in this rank's buffers; -1: another rank has it.
 * From the shapes: rows [rows, columns], those of q, k and v one after the other. */
static long place_of(const Part *m, const Param *p, int cut, long i)
{
    const Unit *unit = &m->layout->unit[p->unit];
    long tp = m->split.tp.ranks, rows = p->shape[0], columns = p->n / rows;
    long row = i / columns, column = i % columns, owner = m->split.tp.rank, shards = 1, shard = 0;
    if (cut == CUT_HEADS) {
        long of_one = rows / 3, each = of_one / tp;
        owner = row % of_one / each;
        row = row / of_one * each + row % each;
    } else if (cut == CUT_ROWS) {
        owner = row / (rows / tp);
        row %= rows / tp;
    } else if (cut == CUT_COLUMNS) {
        columns /= tp;
        owner = column / columns;
        column %= columns;
    }
    if (m->split.zero > 0) {
        shards = m->split.dp.ranks;
        shard = m->split.dp.rank;
    }
    if (owner != m->split.tp.rank || p->unit < m->split.first || p->unit >= m->split.end)
        return -1;
    long at = p->offset - unit->offset + row * columns + column, size = unit->n / shards;
    return at / size == shard ? unit->offset / shards + at % size : -1;
}

static bool is_head(const Param *p)
{
    return strncmp(p->name, "head.", 5) == 0;
}

/* A file's numbers to their places; what is between them is left alone. */
static void fill(const Part *m, Numbers *numbers, int set, bool head, real *out)
{
    for (int t = 0; t < m->layout->tensors; t++) {
        const Param *p = &m->layout->param[t];
        uint32_t name = hash_name(p->name);
        int cut = cut_of(m, p);
        for (long i = 0; (head || !is_head(p)) && i < p->n; i++) {
            long at = place_of(m, p, cut, i);
            if (at >= 0)
                out[at] = numbers(name, set, i);
        }
    }
}

/* Buffers that differ from what they must hold, gaps between tensors included. */
static int wrong_buffers(const Part *m, Numbers *numbers, int sets, bool head)
{
    size_t bytes = (size_t)m->layout->n_own * sizeof(real);
    real *want = xmalloc(bytes);
    int wrong = 0;
    for (int i = 0; i < sets; i++) {
        if (!m->set[i])
            continue;
        memset(want, 0x5a, bytes);
        fill(m, numbers, i, head, want);
        wrong += memcmp(want, m->set[i], bytes) != 0;
    }
    free(want);
    return wrong;
}

/* ---- saving and resuming ---- */

static char root[256]; /* the temporary directory */

/* Of a model, how it is shared, and where to. */
typedef struct {
    Config config;
    int optimiser;
    bool average;
    Way way;
    char dir[512];
    uint64_t step;
    int bad_rank; /* has a limit on the size of files, or -1 */
    long limit;
    const char *elsewhere; /* or is in another directory */
} Job;

static const RunState run_state = {.step = 12,
                                   .samples = 345,
                                   .seed = 6789,
                                   .best_metric = 0.1,
                                   .best_step = 12,
                                   .counters = {.loss_scale = 1024, .t = 11},
                                   .scaled = true};

static bool save_part(const void *ctx, Error *e)
{
    const Job *j = ctx;
    Part m;
    RunState run = run_state;
    run.step = j->step;
    if (ranks.rank > 0) /* the first rank's counts */
        run.best_metric = 1.0 / 3, run.samples = 1;
    part_new(&m, &j->config, j->optimiser, j->average, j->way, ranks.rank);
    for (int i = 0; i < SETS; i++)
        if (m.set[i])
            fill(&m, of_run, i, true, (real *)m.set[i]);
    if (ranks.rank == j->bad_rank && j->elsewhere && chdir(j->elsewhere) != 0)
        die(NULL, "%s: no such directory", j->elsewhere);
    if (ranks.rank == j->bad_rank && !j->elsewhere) {
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){(rlim_t)j->limit, RLIM_INFINITY});
    }
    bool ok = ckpt_save(&m.u, j->dir, &run, 2, ranks.ranks > 1 ? &ranks : NULL, e);
    return CHECK(largest <= PIECE * sizeof(real), "a copy of %zu bytes", largest) && ok;
}

static bool save(const Job *j)
{
    int n = ranks_of(j->way), well = on_ranks(n, save_part, j);
    return CHECK(well == n, "tp %d pp %d dp %d zero %d: %d of %d ranks saved: %s", j->way.tp,
                 j->way.pp, j->way.dp, j->way.zero, well, n, world->error[0].what);
}

static bool same_file(const char *a, const char *b, const char *name)
{
    char *path[2] = {xasprintf("%s/step_00000012/%s", a, name),
                     xasprintf("%s/step_00000012/%s", b, name)};
    FILE *f[2] = {fopen(path[0], "rb"), fopen(path[1], "rb")};
    bool same = f[0] && f[1];
    for (int c = 0; same && c != EOF;) {
        c = getc(f[0]);
        same = c == getc(f[1]);
    }
    for (int i = 0; i < 2; i++) {
        if (f[i])
            fclose(f[i]);
        free(path[i]);
    }
    return same;
}

static void check_files(const Job *a, const char *b)
{
    static const char *const names[] = {"model.safetensors", "train_state.safetensors"};
    for (int i = 0; i < COUNT(names); i++)
        CHECK(same_file(a->dir, b, names[i]), "tp %d pp %d dp %d zero %d: other bytes in %s",
              a->way.tp, a->way.pp, a->way.dp, a->way.zero, names[i]);
}

/* Every rank of j->way resumes from `dir`, one after the other. */
static void check_resume(const Job *j, const char *dir)
{
    char *path = xasprintf("%s/step_00000012", dir);
    for (int rank = 0; rank < ranks_of(j->way); rank++) {
        Part m;
        Error e = {"", ""};
        RunState run = {.scaled = true};
        part_new(&m, &j->config, j->optimiser, j->average, j->way, rank);
        bool ok = CHECK(ckpt_resume(&m.u, path, &run, &e), "rank %d: %s", rank, e.what);
        int wrong = wrong_buffers(&m, of_run, SETS, true);
        CHECK(!ok || wrong == 0, "tp %d pp %d dp %d zero %d: %d buffers of rank %d", j->way.tp,
              j->way.pp, j->way.dp, j->way.zero, wrong, rank);
        CHECK(run.step == 12 && run.samples == 345 && run.best_metric == 0.1);
        CHECK(largest <= PIECE * sizeof(real) &&
                  moved <= SETS * (size_t)m.layout->n_own * sizeof(real),
              "%zu bytes, %zu at once", moved, largest);
        if (j->average) {
            char report[256], *model = xasprintf("%s/model.safetensors", path);
            CHECK(ckpt_load_raw(&m.u, path, POS_TIMM));
            CHECK(wrong_buffers(&m, of_raw, SETS, true) == 0);
            CHECK(ckpt_load_weights(&m.u, model, 0, report, sizeof report, &e), "%s", e.what);
            CHECK(wrong_buffers(&m, of_average, SETS, true) == 0);
            CHECK(ckpt_load_average(&m.u, path, POS_TIMM));
            CHECK(wrong_buffers(&m, of_average, SETS, true) == 0);
            free(model);
        }
        part_free(&m);
    }
    free(path);
}

static Config small_config(void)
{
    Config c = vit_config_default();
    c.image_h = c.image_w = 16;
    c.patch = 4;
    c.width = 48;
    c.layers = 3;
    c.heads = 4;
    c.mlp = 100;
    c.classes = 6;
    c.layer_scale = true;
    return c;
}

static const Way ways[] = {{1, 1, 1, 0}, {1, 1, 2, 0}, {1, 1, 3, 0}, {1, 1, 2, 1}, {1, 1, 3, 2},
                           {1, 1, 4, 3}, {2, 1, 1, 0}, {2, 1, 2, 0}, {2, 1, 3, 1}, {2, 1, 4, 3},
                           {1, 2, 1, 0}, {1, 2, 2, 0}, {1, 2, 2, 1}, {1, 3, 1, 0}, {2, 2, 1, 0},
                           {2, 2, 2, 0}, {2, 2, 3, 0}, {2, 2, 2, 1}, {2, 2, 4, 3}, {4, 1, 2, 2}};

/* All ways (each: one in so many) write the same bytes, and what one wrote all resume. */
static void test_ways(const char *name, const Config *c, int optimiser, bool average, int each)
{
    Job first = {*c, optimiser, average, ways[0], "", 12, -1, 0, NULL}, job;
    snprintf(first.dir, sizeof first.dir, "%s/%s", root, name);
    save(&first);
    for (int i = 0; i < COUNT(ways); i += each) {
        job = first;
        job.way = ways[i];
        snprintf(job.dir, sizeof job.dir, "%s/%s-%d", root, name, i);
        if (save(&job))
            check_files(&job, first.dir);
        check_resume(&job, first.dir);
    }
}

/* Tensors of more than one piece, cut in the middle of a row; whole, in columns and in halves. */
static void test_pieces(void)
{
    static const Way large[] = {{1, 1, 1, 0}, {2, 1, 1, 0}, {1, 1, 2, 0}};
    Config c = small_config();
    c.layers = 1;
    c.mlp = 45000;
    Job first = {c, OPT_SGD, false, large[0], "", 12, -1, 0, NULL}, job = first;
    snprintf(first.dir, sizeof first.dir, "%s/large", root);
    snprintf(job.dir, sizeof job.dir, "%s/large-more", root);
    save(&first);
    check_resume(&first, first.dir);
    for (int i = 1; i < COUNT(large); i++) {
        job.way = large[i];
        if (save(&job))
            check_files(&job, first.dir);
        check_resume(&job, first.dir);
    }
}

/* FNV-1a of what the program wrote before it knew of ranks, from the same numbers; with an average,
 * since that is the model file's. */
static void test_bytes_of_before(void)
{
    static const struct {
        const char *run, *name;
        bool header;
        uint64_t hash;
    } files[] = {{"plain", "model", false, 0x740123b5fe6a4205},
                 {"plain", "train_state", true, 0xce988235a0879a04},
                 {"adamw", "model", false, 0x7ff44235444a9f43},
                 {"adamw", "train_state", true, 0x7962898c06cfdd50}};
    for (int i = 0; sizeof(real) == 4 && i < COUNT(files); i++) {
        Error e = {"", ""};
        char *path =
            xasprintf("%s/%s/step_00000012/%s.safetensors", root, files[i].run, files[i].name);
        SafeTensors *f = st_open(path, &e);
        uint64_t h = 0xcbf29ce484222325u;
        for (uint64_t k = f && !files[i].header ? f->data : 0; f && k < f->size; k++)
            h = (h ^ f->map[k]) * 0x100000001b3u;
        CHECK(f && h == files[i].hash, "%s: 0x%016lx %s", files[i].name, (unsigned long)h, e.what);
        st_close(f);
        free(path);
    }
}

/* ---- other files ---- */

/* The bits of a short number, at p; returns how many bytes. */
static size_t put(StType type, real x, uint8_t *p)
{
    double d = x;
    float f = (float)x;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint16_t bfloat = (uint16_t)(bits >> 16);
    uint16_t half =
        (uint16_t)(bits >> 31 << 15 | ((bits >> 23 & 255) - 112) << 10 | (bits >> 13 & 1023));
    const void *const from[] = {&d, &f, f == 0 ? &(uint16_t){0} : &half, &bfloat};
    static const size_t bytes[] = {8, 4, 2, 2}; /* F64, F32, F16, BF16 */
    memcpy(p, from[type], bytes[type]);
    return bytes[type];
}

/* A file of weights from elsewhere, whose tensors are of four types in turn. */
static void write_mixed(const char *path, const Config *c)
{
    Layout *l = layout_new(c, DECAY_NO_1D, &WHOLE_MODEL);
    StWriter *w = st_create(path);
    Error e = {"", ""};
    uint8_t *data = xmalloc((size_t)l->n_params * 8);
    size_t n = 0;
    for (int t = 0; t < l->tensors; t++) {
        const Param *p = &l->param[t];
        st_add_tensor(w, p->name, (StType)(t % 4), p->ndim, p->shape);
        for (long i = 0; i < p->n; i++)
            n += put((StType)(t % 4), of_short(hash_name(p->name), 0, i), data + n);
    }
    if (!st_begin(w, 0, &e) || !st_write(w, 0, data, n, &e) || !st_finish(w, 0, &e))
        die(e.hint, "%s", e.what);
    free(data);
    layout_free(l);
}

/* Every rank loads its part of them; with another number of classes all but the head. */
static void test_mixed(void)
{
    Config c = small_config(), other = c;
    other.classes = 8;
    char *path = xasprintf("%s/mixed.safetensors", root), report[256];
    write_mixed(path, &c);
    for (int i = 0; i < COUNT(ways); i++)
        for (int rank = 0; rank < ranks_of(ways[i]); rank++) {
            Part m;
            Error e = {"", ""};
            part_new(&m, &c, OPT_SGD, false, ways[i], rank);
            CHECK(ckpt_load_weights(&m.u, path, false, report, sizeof report, &e), "%s", e.what);
            CHECK(wrong_buffers(&m, of_short, 1, true) == 0, "way %d, rank %d", i, rank);
            part_free(&m);
            part_new(&m, &other, OPT_SGD, false, ways[i], rank);
            CHECK(ckpt_load_weights(&m.u, path, true, report, sizeof report, &e), "%s", e.what);
            CHECK(wrong_buffers(&m, of_short, 1, false) == 0, "way %d, rank %d: head", i, rank);
            part_free(&m);
            /* of tensors that this rank does not read, the shapes count too */
            other.mlp = 104;
            part_new(&m, &other, OPT_SGD, false, ways[i], rank);
            CHECK(!ckpt_load_weights(&m.u, path, true, report, sizeof report, &e) && moved == 0 &&
                      strstr(e.what, "blocks.0.mlp.fc1.weight has shape [100, 48]"),
                  "%s", e.what);
            other.mlp = c.mlp;
            part_free(&m);
        }
    free(path);
}

/* ---- failures ---- */

static int entries;

static int count_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)path, (void)st, (void)type, (void)ftw;
    entries++;
    return 0;
}

/* The run still has the checkpoint of step 12, and nothing else. */
static void check_intact(const Job *j, const char *what)
{
    entries = 0;
    nftw(j->dir, count_entry, 16, FTW_PHYS);
    CHECK(entries == 6, "%s: %d entries", what, entries);
    check_resume(j, j->dir);
}

static void check_same_error(int n, const char *part, const char *more)
{
    for (int r = 0; r < n; r++)
        CHECK(strstr(world->error[r].what, part) && strstr(world->error[r].what, more) &&
                  !strstr(world->error[r].what, ": rank ") && *world->error[r].hint,
              "rank %d has \"%s\", not \"%s\"", r, world->error[r].what, part);
}

/* A disk that is full for one rank, in the first file or in the second; and a rank that does not
 * see the others' directory. */
static void test_failures(void)
{
    char rank[20], here[512], *elsewhere = xasprintf("%s/elsewhere", root), *path;
    Job job = {small_config(), OPT_ADAMW, true, {2, 1, 2, 1}, "", 12, -1, 0, NULL};
    struct stat model;
    Error e;
    snprintf(job.dir, sizeof job.dir, "%s/failing", root);
    save(&job);
    path = xasprintf("%s/step_00000012/model.safetensors", job.dir);
    stat(path, &model);
    for (int bad = 0; bad < 4; bad++)
        for (int second = 0; second < 2; second++) {
            Job full = job;
            full.step = 13;
            full.bad_rank = bad;
            full.limit = second ? (long)model.st_size : 100;
            CHECK(on_ranks(4, save_part, &full) == 0, "a full disk of rank %d was no matter", bad);
            snprintf(rank, sizeof rank, "rank %d: ", bad);
            check_same_error(4, rank,
                             second ? "train_state.safetensors: cannot write"
                                    : "model.safetensors: cannot write");
            check_intact(&job, rank);
        }
    make_dirs(elsewhere, &e);
    Job lost = job;
    lost.step = 13;
    lost.bad_rank = 2;
    lost.elsewhere = elsewhere;
    snprintf(lost.dir, sizeof lost.dir, "failing");
    if (!getcwd(here, sizeof here) || chdir(root) != 0)
        die(NULL, "%s: cannot go there", root);
    CHECK(on_ranks(4, save_part, &lost) == 0);
    check_same_error(4, "rank 2: ", "cannot open");
    check_intact(&job, "elsewhere");
    if (chdir(here) != 0)
        die(NULL, "%s: cannot go there", here);
    free(path);
    free(elsewhere);
}

/* ctx: a directory; rank 2 looks for a relative one elsewhere. */
static bool ask_shared(const void *ctx, Error *e)
{
    if (ranks.rank == 2 && chdir("elsewhere") != 0)
        die(NULL, "elsewhere: no such directory");
    return ckpt_shared(ctx, ranks.ranks > 1 ? &ranks : NULL, e);
}

static void test_shared(void)
{
    char *run = xasprintf("%s/fresh/run", root), *below_file = xasprintf("%s/file/run", root),
         *file = xasprintf("%s/file", root);
    Error e;
    if (chdir(root) != 0 || !save_text(file, "", &e))
        die(NULL, "%s: cannot go there", root);
    CHECK(on_ranks(1, ask_shared, run) == 1, "%s", world->error[0].what);
    CHECK(on_ranks(4, ask_shared, run) == 4, "%s", world->error[0].what);
    entries = 0;
    nftw(run, count_entry, 16, FTW_PHYS);
    CHECK(entries == 1, "%d entries", entries);
    CHECK(on_ranks(2, ask_shared, below_file) == 0);
    check_same_error(2, "rank 0: ", "a file is in its place");
    CHECK(on_ranks(4, ask_shared, "relative") == 0);
    check_same_error(4, "rank 2: ", "does not show what rank 0 writes there");
    entries = 0;
    nftw("relative", count_entry, 16, FTW_PHYS);
    CHECK(entries == 1, "%d entries", entries);
    free(run);
    free(below_file);
    free(file);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

int main(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(root, sizeof root, "%.200s/test_reshard.XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!mkdtemp(root))
        die("set TMPDIR to a writable directory", "%s: cannot create", root);
    world = mmap(NULL, sizeof *world, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (world == MAP_FAILED)
        die(NULL, "no shared memory");

    Config c = small_config(), odd = c;
    odd.classes = 5, odd.representation = 9, odd.cls_tokens = 2, odd.norm_pre = true;
    odd.patch_bias = odd.layer_scale = false;
    test_ways("adamw", &c, OPT_ADAMW, true, 1);
    test_ways("plain", &c, OPT_ADAMW, false, 4);
    test_ways("odd", &odd, OPT_SGD, false, 3);
    test_bytes_of_before();
    test_pieces();
    test_mixed();
    test_failures();
    test_shared();
    nftw(root, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    return check_report();
}
