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
    char name[64];
    if (strncmp(arg, "--", 2) != 0)
        return NULL;
    const char *equals = strchr(arg, '=');
    size_t n = equals ? (size_t)(equals - arg) - 2 : strlen(arg + 2);
    if (n >= sizeof name)
        return NULL;
    memcpy(name, arg + 2, n);
    name[n] = 0;
    *value = equals ? equals + 1 : NULL;
    for (int i = 0; i < c->n_flags; i++)
        if (same_name(c->flags[i].name, name))
            return &c->flags[i];
    return NULL;
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
    const char *names[32], *near = NULL;
    char hint[160], name[64];
    int n = 0;
    if (argc < 2)
        return;
    for (; n < c->n_flags && n < COUNT(names) - 1; n++)
        names[n] = c->flags[n].name;
    names[n] = NULL;
    if (strncmp(argv[1], "--", 2) == 0) {
        snprintf(name, sizeof name, "%.*s", (int)strcspn(argv[1] + 2, "="), argv[1] + 2);
        near = nearest(name, names);
    }
    if (near)
        snprintf(hint, sizeof hint, "did you mean --%s? ./vit %s --help lists all flags", near,
                 c->name);
    else
        snprintf(hint, sizeof hint, "./vit %s --help lists all flags", c->name);
    die_usage(hint, "%s: no such flag", argv[1]);
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

static int run_index(const Command *c, int argc, char **argv)
{
    Error e = {"", ""}, failure;
    Names archives = {0};
    flags_take(c, &argc, argv);
    flags_none_left(c, argc, argv);
    if (!index_options.archive || !index_options.dir)
        die_usage("./vit index --archive PATTERN --index-dir DIR", "--%s is missing",
                  index_options.archive ? "index-dir" : "archive");
    bool wds = strncmp(index_options.archive, "wds:", 4) == 0; /* as --data has it */
    if (!tar_names(index_options.archive + (wds ? 4 : 0), &archives, &e))
        die(e.hint, "--archive %s", e.what);
    if (!make_dirs(index_options.dir, &e))
        die(e.hint, "%s", e.what);
    /* The first failure by position is reported, whichever thread is first. */
    int threads = index_options.threads ? (int)index_options.threads : omp_get_num_procs();
    int done = 0, failed = archives.n;
    long samples = 0;
    double start = now();
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) reduction(+ : samples)
    for (int i = 0; i < archives.n; i++) {
        Error why = {"", ""};
        long n = 0;
        char *path = xasprintf("%s/idx_%d.txt", index_options.dir, i);
        bool ok = index_write(archives.at[i], path, &n, &why);
        samples += n;
#pragma omp critical
        {
            if (!ok && i < failed) {
                failed = i;
                failure = why;
            }
            report_progress("indexing", ++done, archives.n, 0);
        }
        free(path);
    }
    report_clear();
    if (failed < archives.n)
        die(failure.hint, "%s", failure.what);
    printf("%d indexes of %ld samples in %s (%.1f s)\n", archives.n, samples, index_options.dir,
           now() - start);
    char *beyond = xasprintf("%s/idx_%d.txt", index_options.dir, archives.n);
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
    .usage = "--archive PATTERN --index-dir DIR [--threads N]",
    .help = "Writes an index of each tar file of samples, idx_N.txt for the pattern's Nth, in the "
            "format of\nNVIDIA DALI's wds2idx (v1.2): where each sample's files stand. --index-dir "
            "DIR of the training\nprogram then finds the samples without reading the archives.\n",
    .flags = index_flags,
    .n_flags = COUNT(index_flags),
    .run = run_index,
};

static const struct {
    const Command *command;
    const char *summary;
} commands[] = {
    {&command_index, "write index files of tar shards"},
    {&command_shard, "turn a folder of images into tar shards"},
    {&command_show, "draw images as the model will see them"},
};

static NORETURN void list_commands(void)
{
    printf("usage: ./vit COMMAND [--flag value ...]\n\n");
    for (int i = 0; i < COUNT(commands); i++)
        printf("  %-8s %s\n", commands[i].command->name, commands[i].summary);
    printf(
        "\n./vit COMMAND --help says more. The training program is ./train_cpu or ./train_gpu.\n");
    exit(0);
}

int main(int argc, char **argv)
{
    const char *names[COUNT(commands) + 1] = {NULL};
    for (int i = 0; i < COUNT(commands); i++)
        names[i] = commands[i].command->name;
    if (argc < 2)
        die_usage("./vit --help lists the commands", "no command was given");
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0)
        list_commands();
    for (int i = 0; i < COUNT(commands); i++)
        if (strcmp(argv[1], names[i]) == 0)
            return commands[i].command->run(commands[i].command, argc - 1, argv + 1);
    const char *near = nearest(argv[1], names);
    char hint[96] = "./vit --help lists the commands";
    if (near)
        snprintf(hint, sizeof hint, "did you mean ./vit %s? ./vit --help lists the commands", near);
    die_usage(hint, "no command is called '%s'", argv[1]);
}
