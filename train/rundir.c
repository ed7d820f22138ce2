/* rundir.c - run directories: which there are, who may train in one, what a run begins it with. See
 * rundir.h.
 *
 * A directory is a run's when it has a config.ini and a `latest`, the name of its newest checkpoint
 * (checkpoint.c), or at least a checkpoint, where that was not copied. Read in this order: what is
 * a run, the lock, the directory of this run.
 */
#include "train/rundir.h"

#include "train/hosts.h"
#include "train/parallel.h"
#include "util/files.h"
#include "util/report.h"
#include "util/text.h"
#include "util/tfevents.h"

#include <dirent.h>
#include <errno.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- what is a run ---- */

/* Whether dir holds a run of ours, and not just anybody's config.ini. */
static bool is_run(const char *dir)
{
    char found[4096], *ini = xasprintf("%s/config.ini", dir), *latest = xasprintf("%s/latest", dir);
    bool yes =
        path_exists(ini) && (path_exists(latest) || ckpt_find(dir, found, sizeof found, NULL));
    free(ini);
    free(latest);
    return yes;
}

char *runs_in(const char *dir)
{
    struct dirent **list = NULL;
    char *runs = NULL;
    int n = scandir(dir, &list, NULL, alphasort), found = 0;
    for (int i = 0; i < n; i++) {
        char *run = xasprintf("%s/%s", dir, list[i]->d_name);
        if (list[i]->d_name[0] != '.' && is_run(run) && ++found <= 6) {
            char *more =
                xasprintf("%s%s%s", runs ? runs : "", runs ? ", " : "", found < 6 ? run : "...");
            free(runs);
            runs = more;
        }
        free(run);
        free(list[i]);
    }
    free(list);
    return runs;
}

_Noreturn void not_a_run(const char *dir)
{
    Error e = {"", ""};
    char found[4096], *ini = xasprintf("%s/config.ini", dir), *runs = runs_in(dir);
    char *hint = runs ? xasprintf("name one of %s", runs) : NULL;
    if (runs)
        die(hint, "%s is a folder of runs", dir);
    if (ckpt_find(dir, found, sizeof found, &e))
        die("give the settings of the run with --recipe FILE", "%s has no run with a config.ini",
            dir);
    if (path_exists(ini)) {
        hint = xasprintf("start it again: --recipe %s --out %s (--save-every N saves more often)",
                         ini, dir);
        die(hint, "%s holds a run that has not saved a checkpoint", dir);
    }
    die("give the directory of a run (its --out) or of a checkpoint", "%s holds no run", dir);
}

char *run_of(const char *path)
{
    if (is_run(path))
        return xstrdup(path);
    char *dir = realpath(path, NULL);
    for (int up = 0; dir && up < 2; up++)
        if (is_run(dirname(dir))) /* which cuts an absolute path in place */
            return dir;
    free(dir);
    return NULL;
}

/* ---- the lock ---- */

bool run_stays(const Session *s)
{
    const char *out = s->o.out;
    return *s->o.resume && s->run_dir && (!*out || strcmp(s->run_dir, out) == 0);
}

void lock_run(Session *s, const char *dir)
{
    Error e;
    if (s->lock >= 0 || s->world.rank > 0)
        return;
    char *path = xasprintf("%s/lock", dir);
    s->lock = lock_file(path, dir, &e);
    setup_check(s->lock >= 0, &e);
    free(path);
}

void unlock_run(Session *s)
{
    char *path = xasprintf("%s/lock", s->out ? s->out : s->run_dir ? s->run_dir : "");
    unlock_file(path, s->lock);
    free(path);
}

/* ---- the directory of this run ---- */

/* runs/<data>-<model>-NNN with the first free number; mkdir decides between two that start at once.
 */
static char *new_run_dir(const Options *o)
{
    Error e;
    char *spec = xstrdup(o->data), *colon = strchr(spec, ':');
    char model[64];
    if (colon)
        *colon = 0;
    const char *data = colon ? spec : basename(spec); /* the kind of data, or a folder's name */
    snprintf(model, sizeof model, "%s", *o->model ? o->model : "vit");
    for (char *p = model; *p; p++)
        if (*p == '/')
            *p = '-';
    setup_check(make_dirs("runs", &e), &e);
    for (int i = 1; i < 100000; i++) {
        char *dir = xasprintf("runs/%.48s-%s-%03d", data, model, i);
        if (mkdir(dir, 0777) == 0) {
            free(spec);
            return dir;
        }
        if (errno != EEXIST)
            die("choose another place with --out", "cannot make %s: %s", dir, strerror(errno));
        free(dir);
    }
    die("clear out runs/, or name a place with --out", "runs/ is full");
}

/* Names of the classes beside the weights, for predict. */
static void write_classes(const Session *s)
{
    Error e;
    char *path = xasprintf("%s/classes.txt", s->out);
    FileWriter *f = file_create(path, &e);
    bool ok = f != NULL;
    for (int k = 0; ok && k < data_classes(s->train); k++) {
        const char *name = data_class_name(s->train, k);
        ok = file_write(f, name, strlen(name), &e) && file_write(f, "\n", 1, &e);
    }
    if (ok)
        ok = file_publish(f, true, &e);
    else
        file_abandon(f);
    setup_check(ok, &e);
    free(path);
}

/* Where every rank has the whole of the model, the first one can save it by itself. */
static void check_shared(Session *s)
{
    Error e;
    const CkptRanks ranks = {s->world.rank, s->world.ranks, hosts_sum};
    s->shared = ckpt_shared(s->out, &ranks, &e);
    if (s->shared)
        return;
    bool writable = access(s->out, W_OK) == 0; /* by rank 0, whose word counts */
    hosts_broadcast(&writable, sizeof writable);
    if (parallel_together(s) || !writable)
        die(e.hint, "%s", e.what);
    printf("note: %s; rank 0 saves the run by itself\n", e.what);
}

/* Rank 0's directory is all ranks'. */
static void tell_out(Session *s)
{
    char path[4096] = "";
    if (s->out)
        snprintf(path, sizeof path, "%s", s->out);
    hosts_broadcast(path, sizeof path);
    if (!s->out)
        s->out = xstrdup(path);
}

/* The settings of a continued run that it no longer has are kept as config.ini.1, config.ini.2 ...
 */
static void write_settings(const Session *s)
{
    Error e;
    char *ini = xasprintf("%s/config.ini", s->out), *kept = NULL;
    char *was = path_exists(ini) ? read_text(ini, 1 << 20, NULL) : NULL;
    char *is = options_text(&s->o, &s->config, ini);
    for (int i = 1; was && strcmp(was, is) != 0 && i < 100000; i++) {
        free(kept);
        kept = xasprintf("%s.%d", ini, i);
        if (path_exists(kept))
            continue;
        setup_check(save_text(kept, was, &e), &e);
        break;
    }
    setup_check(save_text(ini, is, &e), &e);
    free(was);
    free(is);
    free(kept);
    free(ini);
}

/* TensorBoard shows them as text. */
static void send_settings(const Session *s)
{
    char *ini = options_text(&s->o, &s->config, "config.ini");
    char *text = xasprintf("```\n%s```\n", ini);
    events_text((long)s->state.step, "settings", text);
    free(text);
    free(ini);
}

/* A continued run stays where it is, unless --out names another place. No run is written over. */
static void open_out(Session *s)
{
    Error e;
    const Options *o = &s->o;
    bool same_run = run_stays(s);
    if (*o->out)
        s->out = xstrdup(o->out);
    else
        s->out = same_run ? xstrdup(s->run_dir) : new_run_dir(o);
    setup_check(make_dirs(s->out, &e), &e);
    lock_run(s, s->out);
    char *latest = xasprintf("%s/latest", s->out);
    char *log = xasprintf("%s/log.jsonl", s->out);
    if (path_exists(latest) && !same_run)
        die("continue it with --resume, or choose another --out", "%s already holds a run", s->out);
    write_settings(s);
    setup_check(log_open(log, same_run, &e), &e);
    setup_check(events_open(s->out, (long)s->state.step, &e), &e);
    send_settings(s);
    free(latest);
    free(log);
    write_classes(s);
    printf("run       %s\n", s->out);
}

void setup_out(Session *s)
{
    hosts_at("opening the run's directory", 0);
    if (s->world.rank == 0)
        open_out(s);
    tell_out(s);
    check_shared(s);
}
