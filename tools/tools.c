/* tools.c - ./vit: what needs no GPU and trains nothing.
 *
 * main() finds the command in a table. `index` is here, the larger ones have files of their own.
 *
 * Read in this order: index, the table of commands.
 */
#include "tools/tools.h"

#include "datasets/dali_index.h"
#include "datasets/tar.h"
#include "util/files.h"
#include "util/report.h"
#include "util/text.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

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
    printf("%s of %s in %s (%.1f s)\n", amount(archives.n, "index").s,
           amount((double)samples, "sample").s, dir, now() - start);
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

static const Command *const commands[] = {&command_info,  &command_import, &command_export,
                                          &command_index, &command_plan,   &command_shard,
                                          &command_show,  &command_top,    &command_report};

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
        if (strcmp(argv[1], names[i]) == 0) {
            int status = commands[i]->run(commands[i], argc - 1, argv + 1);
            report_written(stdout);
            return status;
        }
    }
    if (find_word("train|eval|predict|bench", argv[1]) >= 0)
        die_usage(xasprintf("of the training program: ./train_cpu %s", argv[1]),
                  "no command is called '%s'", argv[1]);
    die_usage(did_you_mean("./vit ", argv[1], names, hint), "no command is called '%s'", argv[1]);
}
