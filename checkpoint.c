/* checkpoint.c - runs on disk. See checkpoint.h.
 *
 * A checkpoint is a directory of two safetensors files, the model and what else training needs: the
 * optimiser's moments, the average of the weights and, as metadata, a few counters. Tensors are
 * copied by weights/, which knows their names and places and checks what it reads; dist.c knows
 * which elements a rank holds. Directories and pointers are the first rank's business alone.
 *
 * Read in this order: tensors, counters, the run's directory, ranks, saving, finding, resuming. */
#include "checkpoint.h"

#include "util/files.h"
#include "weights/weights.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODEL_FILE "model.safetensors"
#define STATE_FILE "train_state.safetensors"

/* ---- tensors ---- */

static long kept(const TensorSet *set, const Param *p, bool once, long *begin, long *end)
{
    return units_kept(set->owner, p, once, begin, end);
}

static void put(const TensorSet *set, long at, long n, real *values)
{
    units_write(set->owner, set->buffer, at, n, values);
}

static void get(const TensorSet *set, long at, long n, real *values)
{
    units_read(set->owner, set->buffer, at, n, values);
}

/* The first set is the model file's, the others are the state's. The model file holds what is
 * evaluated: the average, where there is one; then the weights that training goes on with are
 * `raw.` in the state. Older runs have it the other way round, with the average as `ema.`. */
enum { MAX_SETS = 4 };
static int run_sets(Units *u, TensorCopy *copy, bool older, TensorSet *sets)
{
    const char *first = u->opt.kind == OPT_SGD ? "momentum." : "exp_avg.";
    bool average = u->ema && !older;
    const TensorSet all[MAX_SETS] = {
        {"", u, average ? u->ema : u->weights, kept, copy},
        {first, u, u->exp_avg, kept, copy},
        {"exp_avg_sq.", u, u->exp_avg_sq, kept, copy},
        {average ? "raw." : "ema.", u, average ? u->weights : u->ema, kept, copy}};
    int n = 0;
    for (int i = 0; i < MAX_SETS; i++)
        if (all[i].buffer)
            sets[n++] = all[i];
    return n;
}

bool ckpt_load_weights(Units *u, const char *path, int how, char *report, size_t size, Error *e)
{
    const TensorSet sets[] = {{"", u, u->weights, kept, put}, {"", u, u->ema, kept, put}};
    return weights_load(path, u->layout, sets, u->ema ? 2 : 1, how, report, size, e);
}

/* ---- counters ---- */

static const char *const optimisers[] = {"adamw", "adam", "sgd", "lamb"}; /* by OPT_* */

/* Metadata of the state, in the order of the file. */
#define AT(field) offsetof(RunState, field), sizeof((RunState){0}.field)
static const struct {
    const char *key;
    size_t offset, size; /* in RunState: 4 or 8 bytes, the lowest first */
    uint64_t most;       /* of a count; 0: the number is a double */
    bool scaled;         /* there with a scaled loss alone */
    bool optional;       /* left out where it is 0: older files have none */
} counters[] = {
    {"step", AT(step), UINT32_MAX, false, false},
    {"samples", AT(samples), UINT64_MAX, false, false},
    {"seed", AT(seed), UINT64_MAX, false, false},
    {"best_metric", AT(best_metric), 0, false, false},
    {"best_step", AT(best_step), UINT32_MAX, false, false},
    {"since_best", AT(since_best), UINT32_MAX, false, true},
    {"t", AT(counters.t), UINT32_MAX, false, false},
    {"skipped", AT(counters.skipped), UINT32_MAX, false, false},
    {"skipped_in_row", AT(counters.skipped_in_row), UINT32_MAX, false, false},
    {"loss_scale", AT(counters.loss_scale), 0, true, false},
    {"good_steps", AT(counters.good_steps), UINT32_MAX, true, false},
    {"patience", AT(counters.patience), UINT32_MAX, true, false},
    {"fp8_since", AT(fp8_since), UINT32_MAX, false, true},
};
#undef AT

/* 17 digits bring every double back exactly. */
static void write_counters(StWriter *w, const RunState *run)
{
    for (int i = 0; i < COUNT(counters); i++) {
        const void *at = (const char *)run + counters[i].offset;
        uint64_t count = 0;
        char text[32];
        if (counters[i].scaled && !run->scaled)
            continue;
        memcpy(&count, at, counters[i].size);
        if (counters[i].optional && count == 0)
            continue;
        if (counters[i].most)
            snprintf(text, sizeof text, "%" PRIu64, count);
        else
            snprintf(text, sizeof text, "%.17g", *(const double *)at);
        st_add_meta(w, counters[i].key, text);
    }
}

/* The history of 8-bit copies: "16:" and 16 numbers for each scale, the newest first. */
static void write_amax(StWriter *w, const RunState *run)
{
    enum { DIGITS = sizeof(real) == 4 ? 9 : 17 }; /* bring every number back exactly */
    long n = (long)run->scales * run->history;
    if (n == 0)
        return;
    size_t size = 32 + (size_t)n * 32, at = 0;
    char *text = xmalloc(size);
    at += (size_t)snprintf(text, size, "%d:", run->history);
    for (long i = 0; i < n; i++)
        at += (size_t)snprintf(text + at, size - at, " %.*g", DIGITS, (double)run->amax[i]);
    st_add_meta(w, "fp8_amax", text);
    free(text);
}

static bool read_amax(const SafeTensors *f, const RunState *run, Error *e)
{
    const char *text = st_meta(f, "fp8_amax"), *p = text;
    char *end;
    if (!text || !run->scales)
        return true;
    long history = strtol(p, &end, 10);
    bool ok = end != p && *end == ':' && history > 0;
    p = ok ? end + 1 : p;
    for (long i = 0; ok && i < run->scales * history; i++) {
        double x = strtod(p, &end);
        ok = end != p && isfinite(x) && x >= 0;
        p = end;
        if (ok && i % history < run->history)
            run->amax[i / history * run->history + i % history] = (real)x;
    }
    return (ok && !*p) || fail(e, weights_state_hint,
                               "%s: metadata: fp8_amax is not %d times as many numbers as it says",
                               f->path, run->scales);
}

static bool read_counter(const SafeTensors *f, int i, RunState *run, Error *e)
{
    const char *key = counters[i].key, *text = st_meta(f, key);
    void *at = (char *)run + counters[i].offset;
    char *end;
    if (!text && counters[i].optional) {
        memset(at, 0, counters[i].size);
        return true;
    }
    if (!text)
        return fail(e, weights_state_hint, "%s: metadata has no %s", f->path, key);
    if (!counters[i].most) {
        *(double *)at = strtod(text, &end);
        return (end != text && !*end) ||
               fail(e, weights_state_hint, "%s: metadata: %s is \"%.50s\", not a number", f->path,
                    key, text);
    }
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || value > counters[i].most)
        return fail(e, weights_state_hint,
                    "%s: metadata: %s is \"%.50s\", not a count up to %" PRIu64, f->path, key, text,
                    counters[i].most);
    memcpy(at, &value, counters[i].size);
    return true;
}

static bool read_counters(const SafeTensors *f, RunState *run, Error *e)
{
    bool scaled = run->scaled && st_meta(f, "patience");
    StepState *s = &run->counters;
    for (int i = 0; i < COUNT(counters); i++)
        if ((scaled || !counters[i].scaled) && !read_counter(f, i, run, e))
            return false;
    if (!run->scales) /* a run without 8-bit copies has no history to begin */
        run->fp8_since = 0;
    else if (!st_meta(f, "fp8_amax"))
        run->fp8_since = run->step;
    if (!(s->loss_scale > 0) || !isfinite(s->loss_scale))
        return fail(e, weights_state_hint, "%s: metadata: loss_scale is %g", f->path,
                    s->loss_scale);
    if (!read_amax(f, run, e))
        return false;
    s->seed = run->seed;
    s->step = (uint32_t)run->step;
    s->skip = 0;
    return true;
}

/* ---- the run's directory ----
 * step_00000100/     a published checkpoint: always complete
 * step_00000100.tmp/ one being written, or being removed: never looked at, swept at the next save
 * step_00000100.old/ one being replaced, where the file system cannot exchange two names
 * latest, best       text files with the name of a published checkpoint */

#define TEMPORARY ".tmp"
#define REPLACED  ".old"

typedef struct {
    char s[4096];
} Path;

static const char long_hint[] = "use a directory with a shorter path";

/* Asked first of every directory that a caller names: all paths below it fit into a Path then. */
static bool is_short(const char *dir, Error *e)
{
    return strlen(dir) < 3900 || fail(e, long_hint, "%.200s...: the path is too long", dir);
}

static Path in_dir(const char *dir, const char *name)
{
    Path p;
    snprintf(p.s, sizeof p.s, "%.4000s/%s", dir, name);
    return p;
}

static Path step_dir(const char *dir, uint64_t step, const char *suffix)
{
    Path p;
    snprintf(p.s, sizeof p.s, "%.4000s/step_%08" PRIu64 "%s", dir, step, suffix);
    return p;
}

/* "step_" and eight or more digits, then exactly `suffix`. Pointer files are untrusted too: no
 * other form of a name is followed. */
static bool parse_step(const char *name, const char *suffix, uint64_t *step)
{
    size_t digits = strncmp(name, "step_", 5) == 0 ? strspn(name + 5, "0123456789") : 0;
    if (digits < 8 || digits > 18 || strcmp(name + 5 + digits, suffix) != 0)
        return false;
    *step = strtoull(name + 5, NULL, 10);
    return true;
}

/* Removes a checkpoint's directory, which holds files alone. */
static bool remove_dir(const char *path)
{
    DIR *d = opendir(path);
    struct dirent *entry;
    if (!d)
        return errno == ENOENT;
    while ((entry = readdir(d)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(dirfd(d), entry->d_name, 0);
    closedir(d);
    return rmdir(path) == 0;
}

static void remove_or_warn(const char *path)
{
    if (!remove_dir(path))
        warn("%s: cannot remove: %s", path, strerror(errno));
}

/* The steps of all entries of `dir` that end in `suffix`, highest first; free() them. */
static uint64_t *list_steps(const char *dir, const char *suffix, int *count)
{
    DIR *d = opendir(dir);
    struct dirent *entry;
    uint64_t *list = NULL, step;
    *count = 0;
    while (d && (entry = readdir(d))) {
        if (!parse_step(entry->d_name, suffix, &step))
            continue;
        list = xrealloc(list, (size_t)(*count + 1) * sizeof *list);
        int at = (*count)++;
        for (; at > 0 && list[at - 1] < step; at--)
            list[at] = list[at - 1];
        list[at] = step;
    }
    if (d)
        closedir(d);
    return list;
}

/* A pointer file is written as carefully as a checkpoint. */
static bool write_pointer(const char *dir, const char *which, uint64_t step, Error *e)
{
    char text[32];
    snprintf(text, sizeof text, "step_%08" PRIu64 "\n", step);
    return save_text(in_dir(dir, which).s, text, e);
}

/* The checkpoint that a pointer file names, if it is there. */
static bool read_pointer(const char *dir, const char *which, uint64_t *step)
{
    char *text = read_text(in_dir(dir, which).s, 256, NULL);
    if (!text)
        return false;
    text[strcspn(text, "\r\n")] = 0;
    bool ok = parse_step(text, "", step);
    free(text);
    return ok && is_dir(step_dir(dir, *step, "").s);
}

/* ---- ranks ---- */

static const CkptRanks alone = {0, 1, NULL};

/* Rank `from`'s bytes to all: the others add zeros. */
static void tell(const CkptRanks *r, int from, void *bytes, size_t n)
{
    if (r->ranks == 1)
        return;
    uint8_t *byte = bytes;
    double *x = xcalloc(n, sizeof *x);
    for (size_t i = 0; r->rank == from && i < n; i++)
        x[i] = byte[i];
    r->sum(x, (int)n);
    for (size_t i = 0; i < n; i++)
        byte[i] = (uint8_t)x[i];
    free(x);
}

/* Whether all ranks are well; else all have the error of the first that is not. Waits for all. */
static bool agree(const CkptRanks *r, bool ok, Error *e)
{
    if (r->ranks == 1)
        return ok;
    int first = 0;
    double *failed = xcalloc((size_t)r->ranks, sizeof *failed);
    failed[r->rank] = !ok;
    r->sum(failed, r->ranks);
    while (first < r->ranks && failed[first] == 0)
        first++;
    free(failed);
    if (first == r->ranks)
        return true;
    Error why = {"", ""}; /* to their ends: all of it is told */
    if (r->rank == first)
        fail(&why, e->hint, "%s", e->what);
    tell(r, first, &why, sizeof why);
    return fail(e, why.hint, "rank %d: %.480s", first, why.what);
}

/* A name that nobody has looked for before: clients of NFS remember what was not there. Opening a
 * directory makes them ask again. */
static bool comes(const char *dir, const char *path)
{
    enum { TRIES = 100 };
    for (int i = 0; i < TRIES; i++) {
        DIR *d = opendir(dir);
        if (d)
            closedir(d);
        if (path_exists(path))
            return true;
        usleep(50000);
    }
    return false;
}

/* Whether rank 0's file is here, and may be written to. */
static bool joins(const char *dir, const char *path, Error *e)
{
    if (!comes(dir, path))
        return fail(e, "give --out a directory of a file system that all hosts share",
                    "%s: does not show what rank 0 writes there", dir);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return fail(e, "give --out a directory that all ranks may write to",
                    "%s: cannot write to a file of rank 0: %s", dir, strerror(errno));
    close(fd);
    return true;
}

bool ckpt_shared(const char *dir, const CkptRanks *r, Error *e)
{
    char token[40] = "";
    r = r ? r : &alone;
    if (!is_short(dir, e))
        return false;
    snprintf(token, sizeof token, ".shared.%ld.%.0f", (long)getpid(), now() * 1e9);
    tell(r, 0, token, sizeof token);
    Path path = in_dir(dir, token);
    bool ok = r->rank > 0 || (make_dirs(dir, e) && save_file(path.s, "", 0, false, e));
    if (!agree(r, ok, e))
        return false;
    ok = agree(r, r->rank == 0 || joins(dir, path.s, e), e);
    if (r->rank == 0)
        unlink(path.s);
    return ok;
}

/* ---- saving ---- */

/* What an interrupted save left. A replaced checkpoint whose successor never came is put back. */
static void sweep(const char *dir, const char *suffix)
{
    int count;
    uint64_t *steps = list_steps(dir, suffix, &count);
    for (int i = 0; i < count; i++) {
        Path path = step_dir(dir, steps[i], ""), left = step_dir(dir, steps[i], suffix);
        if (strcmp(suffix, REPLACED) != 0 || rename(left.s, path.s) != 0)
            remove_or_warn(left.s);
    }
    free(steps);
}

static bool exchange(const char *a, const char *b)
{
#ifdef RENAME_EXCHANGE
    return renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE) == 0;
#else
    (void)a, (void)b;
    return false;
#endif
}

/* Give the finished temporary directory its name. A checkpoint of the same step, left by an earlier
 * run, is exchanged in one step where the file system can, else moved aside first. */
static bool publish(const char *dir, uint64_t step, const char *temporary, Error *e)
{
    Path path = step_dir(dir, step, ""), old = step_dir(dir, step, REPLACED);
    bool exchanged = path_exists(path.s) && exchange(temporary, path.s);
    bool aside = !exchanged && path_exists(path.s) && rename(path.s, old.s) == 0;
    if (!exchanged && rename(temporary, path.s) != 0) {
        fail(e, "see whether the directory can be written to, or choose another --out",
             "%s: cannot rename to %s: %s", temporary, path.s, strerror(errno));
        if (aside)
            rename(old.s, path.s);
        return false;
    }
    bool ok = sync_dir(dir, e);
    if (exchanged)
        remove_or_warn(temporary);
    if (aside)
        remove_or_warn(old.s);
    return ok;
}

/* Keep the newest `keep` of the checkpoints up to this step, and the best. Later ones are of a run
 * that went on from here before; they are not this run's to remove. */
static void prune(const char *dir, uint64_t step, int keep)
{
    int count, kept = 0;
    uint64_t *steps = list_steps(dir, "", &count), best = 0;
    bool has_best = read_pointer(dir, "best", &best);
    for (int i = 0; i < count; i++) {
        if (steps[i] > step || kept++ < keep || (has_best && steps[i] == best))
            continue;
        Path path = step_dir(dir, steps[i], ""), doomed = step_dir(dir, steps[i], TEMPORARY);
        /* renamed first, so that a crash half-way leaves no incomplete checkpoint */
        if (rename(path.s, doomed.s) != 0)
            warn("%s: cannot remove: %s", path.s, strerror(errno));
        else
            remove_or_warn(doomed.s);
    }
    free(steps);
}

/* One file by all ranks: `owner`, a process id, is the first's, which creates it. Frees w. */
static bool write_together(StWriter *w, const Layout *l, const TensorSet *sets, int n, long owner,
                           const CkptRanks *r, Error *e)
{
    bool first = r->rank == 0;
    weights_declare(w, l, sets, n);
    if (!agree(r, !first || st_begin(w, 0, e), e)) {
        st_abandon(w);
        return false;
    }
    bool ok = (first || st_begin(w, owner, e)) && weights_write(w, l, sets, n, e) && st_sync(w, e);
    double others = first ? 0 : (double)st_written(w);
    if (!first)
        st_abandon(w); /* closed, before anyone removes it */
    if (r->ranks > 1)
        r->sum(&others, 1);
    if (agree(r, ok, e))
        return agree(r, !first || st_finish(w, (uint64_t)others, e), e);
    if (first)
        st_abandon(w);
    return false;
}

static bool save_both(Units *u, const char *dir, const RunState *run, long owner,
                      const CkptRanks *r, Error *e)
{
    TensorSet sets[MAX_SETS];
    int n = run_sets(u, get, false, sets);
    StWriter *model = weights_create(in_dir(dir, MODEL_FILE).s, u->layout);
    if (u->ema)
        st_add_meta(model, "weights", "average"); /* those of the last step: raw. in the state */
    if (!write_together(model, u->layout, sets, 1, owner, r, e))
        return false;
    StWriter *state = st_create(in_dir(dir, STATE_FILE).s);
    st_add_meta(state, "format", "pt"); /* what Python's loaders look for */
    st_add_meta(state, "optimizer", optimisers[u->opt.kind]);
    write_counters(state, run);
    write_amax(state, run);
    return write_together(state, u->layout, sets + 1, n - 1, owner, r, e);
}

/* Names and pointers, of a checkpoint that is complete. */
static bool finish(const char *dir, const char *temporary, const RunState *run, int keep, Error *e)
{
    if (!publish(dir, run->step, temporary, e))
        return false;
    /* the best one may never have been saved: then `best` stays where it is */
    bool has_best = run->best_metric >= 0 && is_dir(step_dir(dir, run->best_step, "").s);
    if (!write_pointer(dir, "latest", run->step, e) ||
        (has_best && !write_pointer(dir, "best", run->best_step, e)))
        return false;
    if (keep > 0)
        prune(dir, run->step, keep);
    return true;
}

bool ckpt_save(Units *u, const char *dir, const RunState *run, int keep, const CkptRanks *r,
               Error *e)
{
    struct {
        RunState run;
        long owner;
    } all = {*run, getpid()};
    r = r ? r : &alone;
    if (!u->exp_avg)
        return fail(e, "only a model that was set up for training is saved as a checkpoint",
                    "%s: a model without optimiser state has no run to save", dir);
    if (!is_short(dir, e))
        return false;
    tell(r, 0, &all, sizeof all);
    all.run.amax = run->amax; /* which all ranks have alike */
    Path temporary = step_dir(dir, all.run.step, TEMPORARY);
    bool first = r->rank == 0;
    if (first) {
        sweep(dir, TEMPORARY);
        sweep(dir, REPLACED);
    }
    bool saved = agree(r, !first || make_dirs(temporary.s, e), e) &&
                 save_both(u, temporary.s, &all.run, all.owner, r, e);
    bool ok = saved && (!first || finish(dir, temporary.s, &all.run, keep, e));
    if (first && !ok)
        remove_dir(temporary.s);
    return saved && agree(r, ok, e);
}

/* ---- finding ---- */

static bool is_checkpoint(const char *dir)
{
    return path_exists(in_dir(dir, MODEL_FILE).s) && path_exists(in_dir(dir, STATE_FILE).s);
}

/* What `latest` names, else the highest step that is complete. */
static bool newest(const char *dir, uint64_t *step)
{
    if (read_pointer(dir, "latest", step) && is_checkpoint(step_dir(dir, *step, "").s))
        return true;
    int count;
    bool found = false;
    uint64_t *steps = list_steps(dir, "", &count);
    for (int i = 0; !found && i < count; i++) {
        *step = steps[i];
        found = is_checkpoint(step_dir(dir, *step, "").s);
    }
    free(steps);
    return found;
}

static bool give_path(const char *path, char *out, size_t size, Error *e)
{
    return snprintf(out, size, "%s", path) < (int)size ||
           fail(e, long_hint, "%.200s...: the path is too long", path);
}

bool ckpt_find(const char *dir, char *out, size_t size, Error *e)
{
    uint64_t step;
    if (!is_short(dir, e))
        return false;
    if (is_checkpoint(dir))
        return give_path(dir, out, size, e);
    if (newest(dir, &step))
        return give_path(step_dir(dir, step, "").s, out, size, e);
    const char *what = "no such directory";
    if (path_exists(dir))
        what = is_dir(dir) ? "holds no checkpoint" : "is a file, not the directory that it is in";
    return fail(e, "give the directory of a run (its --out) or of a checkpoint", "%s: %s", dir,
                what);
}

/* Weights alone do: who looks for the best evaluates it. */
bool ckpt_best(const char *dir, char *out, size_t size, Error *e)
{
    uint64_t step;
    if (!is_short(dir, e))
        return false;
    if (is_checkpoint(dir) || !read_pointer(dir, "best", &step))
        return ckpt_find(dir, out, size, e);
    Path best = step_dir(dir, step, "");
    return path_exists(in_dir(best.s, MODEL_FILE).s) ? give_path(best.s, out, size, e)
                                                     : ckpt_find(dir, out, size, e);
}

/* ---- resuming ---- */

static const char same_hint[] =
    "resume with the settings of the run, or start a new one with --weights";

static bool has_prefix(const SafeTensors *f, const char *prefix)
{
    for (int i = 0; i < f->count; i++)
        if (strncmp(f->tensor[i].name, prefix, strlen(prefix)) == 0)
            return true;
    return false;
}

static bool check_optimiser(const SafeTensors *f, const Units *u, Error *e)
{
    const char *saved = st_meta(f, "optimizer"), *ours = optimisers[u->opt.kind];
    bool has_ema = has_prefix(f, "raw.") || has_prefix(f, "ema.");
    if (!saved)
        return fail(e, weights_state_hint, "%s: metadata has no optimizer", f->path);
    if (strcmp(saved, ours) != 0)
        return fail(e, same_hint, "%s: holds the state of %.50s, the run uses %s", f->path, saved,
                    ours);
    if (has_ema != (u->ema != NULL))
        return fail(e, same_hint, "%s: was saved %s an average of the weights, the run is %s one",
                    f->path, has_ema ? "with" : "without", has_ema ? "without" : "with");
    return true;
}

/* The saved model must be this one; its regularisation alone may change. Nothing is overwritten
 * before both files are known to fit. */
static bool resume_from(Units *u, const SafeTensors *model, const SafeTensors *state, RunState *run,
                        Error *e)
{
    static const char *const may_change[] = {"dropout", "attention_dropout", "drop_path", NULL};
    const Layout *l = u->layout;
    TensorSet sets[MAX_SETS];
    RunState r = *run;
    int n = run_sets(u, put, has_prefix(state, "ema."), sets);
    /* everything is looked at before anything is read */
    bool ok = weights_same_config(model, &l->config, may_change, e);
    ok = ok && weights_check(model, l, sets, 1, WEIGHTS_WHOLE, e);
    ok = ok && check_optimiser(state, u, e);
    ok = ok && weights_check(state, l, sets + 1, n - 1, WEIGHTS_WHOLE, e);
    ok = ok && read_counters(state, &r, e);
    ok = ok && weights_read(model, l, sets, 1, WEIGHTS_WHOLE, e);
    ok = ok && weights_read(state, l, sets + 1, n - 1, WEIGHTS_WHOLE, e);
    if (!ok)
        return false;
    *run = r;
    return true;
}

bool ckpt_resume(Units *u, const char *checkpoint_dir, RunState *run, Error *e)
{
    SafeTensors *model = NULL, *state = NULL;
    if (!u->exp_avg)
        return fail(e, "load the weights alone with --weights",
                    "%s: a model without optimiser state cannot resume", checkpoint_dir);
    bool ok = is_short(checkpoint_dir, e) &&
              (model = st_open(in_dir(checkpoint_dir, MODEL_FILE).s, e)) &&
              (state = st_open(in_dir(checkpoint_dir, STATE_FILE).s, e)) &&
              resume_from(u, model, state, run, e);
    st_close(model);
    st_close(state);
    return ok;
}

/* Where the model file holds one kind of weights, the state holds the other. */
static bool load_part(Units *u, const char *checkpoint_dir, const char *prefix, int pos)
{
    const TensorSet sets[] = {{prefix, u, u->weights, kept, put}, {prefix, u, u->ema, kept, put}};
    SafeTensors *f = st_open(in_dir(checkpoint_dir, STATE_FILE).s, NULL);
    SafeTensors *model = st_open(in_dir(checkpoint_dir, MODEL_FILE).s, NULL);
    int n = u->ema ? 2 : 1;
    if (f && model)
        weights_resize_positions(f, model, prefix, u->layout, pos);
    bool ok = f && weights_check(f, u->layout, sets, n, WEIGHTS_PART, NULL) &&
              weights_read(f, u->layout, sets, n, WEIGHTS_PART, NULL);
    st_close(f);
    st_close(model);
    return ok;
}

bool ckpt_is_average(const char *path)
{
    SafeTensors *f = st_open(path, NULL);
    const char *weights = f ? st_meta(f, "weights") : NULL;
    bool average = weights && strcmp(weights, "average") == 0;
    st_close(f);
    return average;
}

bool ckpt_load_average(Units *u, const char *checkpoint_dir, int pos)
{
    bool has = ckpt_is_average(in_dir(checkpoint_dir, MODEL_FILE).s);
    return has || load_part(u, checkpoint_dir, "ema.", pos);
}

bool ckpt_load_raw(Units *u, const char *checkpoint_dir, int pos)
{
    bool has = ckpt_is_average(in_dir(checkpoint_dir, MODEL_FILE).s);
    return has && load_part(u, checkpoint_dir, "raw.", pos);
}
