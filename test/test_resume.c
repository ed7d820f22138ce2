/* test_resume [all]: a run that was saved under one layout goes on under each other.
 *
 * The program starts itself again as 1 and 2 ranks (`all`: as 4 and 8 too), first to `save`: under
 * each layout (tensor parallel x stages x ZeRO) a model trains two steps, is saved, and trains three
 * more. Then all are started once more, to go `on`: under each layout every one of these
 * checkpoints is resumed and saved again, which must give the same bytes (parameters, moments,
 * average, counters), and trains three steps. Its losses and norms must be those of the run that was
 * saved: the same bits where both add up gradients in the same order, else within 1e-5. Dropout and
 * drop path are on.
 *
 * Order: layouts, training, saving, going on, main.
 */
#include "vit.h"
#include "checkpoint.h"
#include "team.h"
#include "util/files.h"
#include "util/rng.h"

#include <ftw.h>
#include <glob.h>
#include <unistd.h>

enum { MICRO = 2, BATCH = 8, SIDE = 16, CLASSES = 8, BEFORE = 2, AFTER = 3, MOST_WAYS = 32 };
static const double gate = 1e-5;

/* ---- layouts ---- */

typedef struct {
    char name[64];
    Split split; /* connected */
    int micros;  /* of each data parallel rank */
    Recompute recompute;
} Way;
static Way ways[MOST_WAYS];
static int n_ways;

static Config tiny(void)
{
    static const char *const set[][2] = {
        {"image_h", "16"}, {"image_w", "16"}, {"patch", "8"},    {"width", "32"},
        {"layers", "4"},   {"heads", "4"},    {"mlp", "64"},     {"classes", "8"},
        {"dropout", "0.1"}, {"attention_dropout", "0.2"}, {"drop_path", "0.3"}};
    Config c = vit_config_default();
    Error e;
    for (int i = 0; i < COUNT(set); i++)
        if (!vit_config_set(&c, set[i][0], set[i][1], &e))
            die(NULL, "test_resume: %s", e.what);
    return c;
}

/* What is recomputed leaves no trace either: it takes turns. */
static void add_way(int tp, int pp, int zero, bool reshard)
{
    Way *w = &ways[n_ways];
    Config c = tiny();
    Error e;
    if (!split_new(&w->split, &c, team.rank, team.ranks, tp, pp, "", zero, &e))
        die(NULL, "test_resume: %s", e.what);
    w->split.reshard = reshard;
    split_connect(&w->split, under.be);
    w->micros = BATCH / MICRO / w->split.dp.ranks;
    w->recompute = (Recompute){.kind = n_ways % 4};
    snprintf(w->name, sizeof w->name, "tp%d-pp%d-dp%d-zero%d%s", tp, pp, w->split.dp.ranks, zero,
             reshard ? "" : "-kept");
    n_ways++;
}

/* Of eight ranks, those that share the model in all three ways. */
static void add_ways(void)
{
    for (int tp = 1; tp <= team.ranks && tp <= 4; tp *= 2)
        for (int pp = 1; pp * tp <= team.ranks && pp <= 4; pp *= 2) {
            bool alone = tp * pp == team.ranks;
            if (team.ranks == 8 && (tp != 2 || pp != 2))
                continue;
            for (int zero = 0; zero <= (alone ? 0 : 3); zero++)
                add_way(tp, pp, zero, true);
            if (!alone)
                add_way(tp, pp, 3, false);
        }
}

/* ---- training ---- */

/* What three steps came to. */
typedef struct {
    int tp, dp;
    bool by_micro; /* each micro-batch's gradients are summed over the ranks */
    double norm[AFTER];
    real stats[AFTER][3 * BATCH];
} Trained;

static uint8_t images[BATCH][SIDE * SIDE * VIT_CHANNELS];
static real targets[BATCH][CLASSES];
static const Way *way; /* under which the model at hand trains */

static void draw_inputs(void)
{
    for (int i = 0; i < BATCH; i++) {
        for (int j = 0; j < COUNT(images[i]); j++)
            images[i][j] = (uint8_t)rng_block(2, (uint32_t)j, (uint32_t)i, 0, 0, 0).v[0];
        targets[i][i % CLASSES] = (real)0.9;
        targets[i][(i + 3) % CLASSES] = (real)0.1;
    }
}

static Model *create(void)
{
    Config c = tiny();
    Plan plan = {.max_batch = MICRO,
                 .batch = BATCH,
                 .split = &way->split,
                 .type = under.type,
                 .training = true,
                 .ema = true,
                 .decay = 1,
                 .clip = 0.5,
                 .recompute = way->recompute,
                 .opt = {OPT_ADAMW, 0.9, 0.99, 1e-8, 0.9, 0.05, 0.8}};
    return vit_create(&c, &plan, under.be);
}

static void micro_batch(void *ctx, int micro, bool backward)
{
    Model *m = ctx;
    int first = (way->split.dp.rank * way->micros + micro) * MICRO;
    bool reads = split_reads(&m->split);
    if (backward) {
        vit_micro_backward(m, micro, micro == way->micros - 1);
        return;
    }
    vit_set_batch(m, MICRO, reads ? images[first] : NULL, true, reads ? targets[first] : NULL,
                  NULL);
    vit_micro_forward(m, first, BATCH);
}

static void step(Model *m, int number)
{
    vit_begin_step(m, (uint32_t)number, 1e-3, 77);
    run_schedule(&m->split, way->micros, micro_batch, m);
    vit_update(m);
}

static Trained train_on(Model *m)
{
    const Split *s = &way->split;
    Trained t = {.tp = s->tp.ranks,
                 .dp = s->dp.ranks,
                 .by_micro = s->zero >= 2 && s->dp.ranks > 1 && way->micros > 1};
    for (int i = 0; i < AFTER; i++) {
        step(m, BEFORE + i);
        const StepResult *r = vit_result(m, 0);
        t.norm[i] = r->state.grad_norm;
        memcpy(t.stats[i], r->stats, sizeof t.stats[i]);
    }
    return t;
}

/* ---- saving ---- */

static const char *root; /* the directory of all */

static void save(Model *m, const char *dir, RunState run)
{
    CkptRanks ranks = {team.rank, team.ranks, hosts_sum};
    Error e = {"", ""};
    run.counters = *vit_state(m);
    CHECK(ckpt_save(&m->own, dir, &run, 0, team.ranks > 1 ? &ranks : NULL, &e), "%s: %s", dir,
          e.what);
}

static void write_losses(const char *dir, const Trained *t)
{
    char *path = xasprintf("%s.losses", dir);
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(t, sizeof *t, 1, f) == 1 && fclose(f) == 0, "%s: cannot write", path);
    free(path);
}

static void save_all(void)
{
    for (int i = 0; i < n_ways; i++) {
        char *dir = xasprintf("%s/%s", root, ways[i].name);
        Error e = {"", ""};
        way = &ways[i];
        Model *m = create();
        CHECK(vit_init(m, "torch", 5, 0.1, 0.7, &e), "%s", e.what);
        for (int k = 0; k < BEFORE; k++)
            step(m, k);
        save(m, dir, (RunState){.step = BEFORE, .samples = BEFORE * BATCH, .best_metric = -1});
        Trained t = train_on(m);
        if (team.rank == 0)
            write_losses(dir, &t);
        vit_free(m);
        free(dir);
    }
}

/* ---- going on ---- */

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static char *load(const char *dir, const char *name, size_t *size)
{
    char *path = xasprintf("%s/step_%08d/%s", dir, BEFORE, name), *bytes = NULL;
    FILE *f = fopen(path, "rb");
    *size = 0;
    if (f && fseek(f, 0, SEEK_END) == 0) {
        *size = (size_t)ftell(f);
        bytes = xmalloc(*size + 1);
        rewind(f);
        *size = fread(bytes, 1, *size, f);
    }
    if (f)
        fclose(f);
    free(path);
    return bytes;
}

/* What was resumed, saved again under this layout, has the bytes that it was resumed from. */
static void check_files(Model *m, const char *dir, RunState run)
{
    static const char *const names[] = {"model.safetensors", "train_state.safetensors"};
    char *again = xasprintf("%s/again", root);
    save(m, again, run);
    for (int i = 0; team.rank == 0 && i < COUNT(names); i++) {
        size_t before, after;
        char *a = load(dir, names[i], &before), *b = load(again, names[i], &after);
        CHECK(before > 0 && before == after && memcmp(a, b, before) == 0, "%s under %s: %s", dir,
              way->name, names[i]);
        free(a);
        free(b);
    }
    if (team.rank == 0)
        nftw(again, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    hosts_barrier();
    free(again);
}

/* The largest relative difference of losses and norms. */
static double furthest(const Trained *a, const Trained *b)
{
    double worst = 0;
    for (int i = 0; i < AFTER; i++) {
        worst = fmax(worst, fabs(a->norm[i] / b->norm[i] - 1));
        for (int k = 0; k < BATCH; k++)
            worst = fmax(worst, fabs((double)a->stats[i][3 * k] / (double)b->stats[i][3 * k] - 1));
    }
    return worst;
}

static void go_on(const char *dir)
{
    char *losses = xasprintf("%s.losses", dir), *from = xasprintf("%s/step_%08d", dir, BEFORE);
    Trained saved;
    Error e = {"", ""};
    FILE *f = fopen(losses, "rb");
    Model *m = create();
    RunState run = {.counters = *vit_state(m)};
    CHECK(f && fread(&saved, sizeof saved, 1, f) == 1, "%s: cannot read", losses);
    CHECK(ckpt_resume(&m->own, from, &run, &e), "%s under %s: %s", from, way->name, e.what);
    CHECK(run.step == BEFORE, "step %lu", (unsigned long)run.step);
    vit_set_state(m, &run.counters);
    check_files(m, dir, run);
    Trained t = train_on(m);
    double worst = furthest(&t, &saved);
    bool alike = t.tp == saved.tp && t.dp == saved.dp && t.by_micro == saved.by_micro;
    CHECK(worst <= (alike ? 0 : gate), "%s under %s: losses or norms are off by %.2e", dir,
          way->name, worst);
    if (f)
        fclose(f);
    vit_free(m);
    free(losses);
    free(from);
}

static void go_on_all(void)
{
    char *pattern = xasprintf("%s/*.losses", root);
    glob_t found;
    if (glob(pattern, 0, NULL, &found) != 0)
        die(NULL, "%s: nothing there", pattern);
    for (int i = 0; i < n_ways; i++)
        for (size_t k = 0; k < found.gl_pathc; k++) {
            char *dir = found.gl_pathv[k];
            if (i == 0)
                dir[strlen(dir) - strlen(".losses")] = 0;
            way = &ways[i];
            alarm(300); /* whoever waits for ever has failed */
            go_on(dir);
        }
    if (team.rank == 0)
        printf("ranks %d: %d layouts, each resumes %zu checkpoints\n", team.ranks, n_ways,
               found.gl_pathc);
    globfree(&found);
    free(pattern);
}

/* ---- main ---- */

/* save|on RANKS DIR */
static int worker(char **argv)
{
    root = argv[3];
    team_start(atoi(argv[2]));
    draw_inputs();
    add_ways();
    alarm(300);
    if (strcmp(argv[1], "save") == 0)
        save_all();
    else
        go_on_all();
    return team_report();
}

/* Starts this program again, and adds what it counts. */
static void start(const char *program, const char *how, int ranks)
{
    char *command = xasprintf("'%s' %s %d '%s'", program, how, ranks, root), line[512];
    int passed = 0, failed = 1, more[2];
    FILE *f = popen(command, "r");
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "%d passed, %d failed", &more[0], &more[1]) != 2) {
            fputs(line, stdout);
            continue;
        }
        passed = more[0];
        failed = more[1];
    }
    check_passed += passed;
    check_failed += failed;
    CHECK(f && (pclose(f) == 0) == (failed == 0), "%s", command);
    free(command);
}

int main(int argc, char **argv)
{
    char *program = argv[0], dir[300];
    const char *tmp = getenv("TMPDIR");
    backend_cpu_reexec(argv);
    argc = device_options(argc, argv);
    if (argc == 4)
        return worker(argv);
    bool all = argc == 2 && strcmp(argv[1], "all") == 0;
    if (argc > 2 || (argc == 2 && !all))
        die_usage("all, or nothing", "unknown argument '%s'", argv[1]);
    if (!team_possible())
        return check_report();
    snprintf(dir, sizeof dir, "%.200s/test_resume.XXXXXX", tmp && *tmp ? tmp : "/tmp");
    root = mkdtemp(dir);
    if (!root)
        die("set TMPDIR to a writable directory", "%s: cannot create", dir);
    for (int ranks = 1; ranks <= (all ? 8 : 2); ranks *= 2)
        start(program, "save", ranks);
    for (int ranks = 1; ranks <= (all ? 8 : 2); ranks *= 2)
        start(program, "on", ranks);
    nftw(root, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    return check_report();
}
