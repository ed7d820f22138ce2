/* report.c - ./vit report: report.html of a run again, or of several laid over each other. */
#include "tools/tools.h"

#include "results/page.h"
#include "util/text.h"

#include <stdlib.h>

static const char *out;

static const Flag flags[] = {
    {"out", "FILE", "the page; default: RUN/report.html, of several runs ./report.html", FLAG_TEXT,
     &out, 0, 0},
};

static int run_report(const Command *c, int argc, char **argv)
{
    Error e = {"", ""};
    flags_take(c, &argc, argv);
    for (int i = 1; i < argc; i++)
        if (argv[i][0] == '-')
            flags_none_left(c, argc - i + 1, argv + i - 1);
    if (argc < 2)
        die_usage("./vit report RUN...", "no run was named");
    char *path = argc == 2 ? xasprintf("%s/report.html", argv[1]) : xstrdup("report.html");
    const char *to = out ? out : path;
    double from = now();
    if (!page_write(argv + 1, argc - 1, to, &e))
        die(e.hint, "%s", e.what);
    printf("%s: %s (%.2f s)\n", to, amount(argc - 1, "run").s, now() - from);
    free(path);
    return 0;
}

const Command command_report = {
    .name = "report",
    .summary = "make a page of a run's numbers and pictures, or of several runs",
    .usage = "RUN... [--out report.html]",
    .help =
        "Makes RUN/report.html again from what lies in the run's folder: loss, accuracy, speed, "
        "confusion\nmatrix, classes, pictures right and wrong, settings and cost. Several runs "
        "are laid over each other.\n",
    .flags = flags,
    .n_flags = COUNT(flags),
    .run = run_report,
};
