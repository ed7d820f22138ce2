/* tools.c - ./vit: what needs no GPU and trains nothing.
 *
 * main() finds the command in a table; each command has a table of flags, which drives parsing and
 * --help. `index` is here, the larger ones have files of their own (tools.h).
 *
 * Read in this order: flags, index, the table of commands.
 */
#include "tools/tools.h"

#include <errno.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "datasets/dali_index.h"
#include "datasets/tar.h"
#include "util/files.h"
#include "util/report.h"
#include "util/text.h"

/* ---- flags ---- */

static NORETURN void print_help(const Command *c)
{
    printf("usage: ./vit %s %s\n\n%s\n", c->name, c->usage, c->help);
    for (int i = 0; i < c->n_flags; i++) {
        char left[64];
        snprintf(left, sizeof left, "--%s %s", c->flags[i].name, c->flags[i].what);
        printf("  %-22s %s\n", left, c->flags[i].help);
    }
    if (c->more_help)
        c->more_help(stdout);
    exit(0);
}

static void set_number(const Flag *f, const char *value)
{
    static const char *const suffixes = "KMG";
    char *end;
    errno = 0;
    long n = strtol(value, &end, 10);
    const char *suffix = f->kind == FLAG_BYTES && *end ? strchr(suffixes, *end & ~32) : NULL;
    bool ok = end != value && *value != ' ' && !errno;
    for (const char *p = suffixes; ok && suffix && p <= suffix; p++)
        ok = !__builtin_mul_overflow(n, 1000L, &n);
    end += suffix != NULL;
    if (!ok || *end)
        die_usage(f->kind == FLAG_BYTES ? "give bytes, as 500000000 or 500M"
                                        : "give a whole number",
                  "--%s: '%s' is not a %s", f->name, value,
                  f->kind == FLAG_BYTES ? "number of bytes" : "whole number");
    if (n < f->least || n > f->most)
        die_usage(f->help, "--%s: %s is outside %ld..%ld", f->name, value, f->least, f->most);
    *(long *)f->at = n;
}

/* The flag that argv[i] names, `--name` or `--name=value`. */
static const Flag *find_flag(const Command *c, const char *arg, const char **value)
{
    const char *equals = strchr(arg, '=');
    const Flag *found = NULL;
    if (strncmp(arg, "--", 2) != 0)
        return NULL;
    char *name = xasprintf("%.*s", (int)strcspn(arg + 2, "="), arg + 2);
    for (int i = 0; i < c->n_flags && !found; i++)
        found = same_name(c->flags[i].name, name) ? &c->flags[i] : NULL;
    free(name);
    *value = equals ? equals + 1 : NULL;
    return found;
}

void flags_take(const Command *c, int *argc, char **argv)
{
    int left = 1;
    for (int i = 1; i < *argc; i++) {
        const char *value = NULL;
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            print_help(c);
        const Flag *f = find_flag(c, argv[i], &value);
        if (!f) {
            argv[left++] = argv[i];
            continue;
        }
        if (f->kind == FLAG_SWITCH) {
            if (value)
                die_usage("give the flag alone", "--%s takes no value", f->name);
            *(bool *)f->at = true;
            continue;
        }
        if (!value && i + 1 == *argc)
            die_usage(f->help, "--%s needs a value", f->name);
        value = value ? value : argv[++i];
        if (f->kind == FLAG_TEXT)
            *(const char **)f->at = value;
        else
            set_number(f, value);
    }
    *argc = left;
    argv[left] = NULL;
}

void flags_none_left(const Command *c, int argc, char **argv)
{
    if (argc < 2)
        return;
    const char **names = xcalloc((size_t)c->n_flags + 1, sizeof *names);
    for (int i = 0; i < c->n_flags; i++)
        names[i] = c->flags[i].name;
    const char *word = strncmp(argv[1], "--", 2) == 0 ? argv[1] + 2 : "";
    char *name = xasprintf("%.*s", (int)strcspn(word, "="), word);
    char *list = xasprintf("./vit %s --help lists all flags", c->name);
    die_usage(did_you_mean("--", name, names, list), "%s: no such flag", argv[1]);
}

/* ---- index ---- */

static struct {
    const char *archive, *dir;
    long threads;
} index_options;

static const Flag index_flags[] = {
    {"archive", "PATTERN", "the tar files, as in DIR/train-{000000..000146}.tar, or their folder",
     FLAG_TEXT, &index_options.archive, 0, 0},
    {"index-dir", "DIR", "where idx_0.txt, idx_1.txt, ... go", FLAG_TEXT, &index_options.dir, 0, 0},
    {"threads", "N", "archives read at a time; 0: one per core [0]", FLAG_NUMBER,
     &index_options.threads, 0, 4096},
};

/* An index for each archive. The first failure by position is reported, whichever thread is first.
 */
static long index_all(const Names *archives, const char *dir, int threads)
{
    Error failure;
    int done = 0, failed = archives->n;
    long samples = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) reduction(+ : samples)
    for (int i = 0; i < archives->n; i++) {
        Error why = {"", ""};
        long n = 0;
        char *path = xasprintf("%s/idx_%d.txt", dir, i);
        bool ok = index_write(archives->at[i], path, &n, &why);
        samples += n;
#pragma omp critical
        {
            if (!ok && i < failed) {
                failed = i;
                failure = why;
            }
            report_progress("indexing", ++done, archives->n, 0);
        }
        free(path);
    }
    report_clear();
    if (failed < archives->n)
        die(failure.hint, "%s", failure.what);
    return samples;
}

static int run_index(const Command *c, int argc, char **argv)
{
    Error e = {"", ""};
    Names archives = {0};
    const char *dir, *pattern;
    flags_take(c, &argc, argv);
    flags_none_left(c, argc, argv);
    dir = index_options.dir;
    pattern = index_options.archive;
    if (!pattern || !dir)
        die_usage("./vit index --archive PATTERN --index-dir DIR", "--%s is missing",
                  pattern ? "index-dir" : "archive");
    if (strncmp(pattern, "wds:", 4) == 0) /* as --data has it */
        pattern += 4;
    if (!tar_names(pattern, &archives, &e))
        die(e.hint, "--archive %s", e.what);
    if (!make_dirs(dir, &e))
        die(e.hint, "%s", e.what);
    double start = now();
    long threads = index_options.threads, samples;
    samples = index_all(&archives, dir, threads ? (int)threads : omp_get_num_procs());
    printf("%d indexes of %ld samples in %s (%.1f s)\n", archives.n, samples, dir, now() - start);
    char *beyond = xasprintf("%s/idx_%d.txt", dir, archives.n);
    if (path_exists(beyond))
        warn("%s is of another set of archives: this one ends at idx_%d.txt", beyond,
             archives.n - 1);
    free(beyond);
    names_free(&archives);
    return 0;
}

/* ---- commands ---- */

static const Command command_index = {
    .name = "index",
    .summary = "write index files of tar shards",
    .usage = "--archive PATTERN --index-dir DIR [--threads N]",
    .help = "Writes an index of each tar file of samples, idx_N.txt for the pattern's Nth, in the "
            "format of\nNVIDIA DALI's wds2idx (v1.2): where each sample's files stand. --index-dir "
            "DIR of the training\nprogram then finds the samples without reading the archives.\n",
    .flags = index_flags,
    .n_flags = COUNT(index_flags),
    .run = run_index,
};

static const Command *const commands[] = {&command_index, &command_shard, &command_show};

static NORETURN void list_commands(void)
{
    printf("usage: ./vit COMMAND [--flag value ...]\n\n");
    for (int i = 0; i < COUNT(commands); i++)
        printf("  %-8s %s\n", commands[i]->name, commands[i]->summary);
    printf(
        "\n./vit COMMAND --help says more. The training program is ./train_cpu or ./train_gpu.\n");
    exit(0);
}

int main(int argc, char **argv)
{
    static const char hint[] = "./vit --help lists the commands";
    const char *names[COUNT(commands) + 1] = {NULL};
    if (argc < 2)
        die_usage(hint, "no command was given");
    if (find_word("--help|-h|help", argv[1]) >= 0)
        list_commands();
    for (int i = 0; i < COUNT(commands); i++) {
        names[i] = commands[i]->name;
        if (strcmp(argv[1], names[i]) == 0)
            return commands[i]->run(commands[i], argc - 1, argv + 1);
    }
    die_usage(did_you_mean("./vit ", argv[1], names, hint), "no command is called '%s'", argv[1]);
}
