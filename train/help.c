/* help.c - what --help says. See help.h.
 *
 * The flags themselves are rows of options.h, each with its help; here is chosen which of them a
 * command's help begins with, in the order in which people need them.
 */
#include "train/help.h"

#include "backend.h"
#include "train/options.h"

#include <string.h>

/* Flags that are mostly used: titles end with a colon. */
static const char *const train_flags[] = {"what to train on, and from:",
                                          "data",
                                          "val-data",
                                          "val-fraction",
                                          "weights",
                                          "model",
                                          "image-size",
                                          "recipe",
                                          "resume",
                                          "out",
                                          "how long and how:",
                                          "epochs",
                                          "batch-size",
                                          "lr",
                                          "warmup-steps",
                                          "opt",
                                          "weight-decay",
                                          "layer-decay",
                                          "freeze",
                                          "class-weights",
                                          "patience",
                                          "seed",
                                          "against overfitting:",
                                          "mixup",
                                          "cutmix",
                                          "auto-augment",
                                          "color-jitter",
                                          "label-smoothing",
                                          "drop-path",
                                          "erase",
                                          "ema",
                                          "machine and reports:",
                                          "gpus",
                                          "ranks",
                                          "threads",
                                          "precision",
                                          "micro-batch",
                                          "eval-every",
                                          "save-every",
                                          "log-every",
                                          NULL};
static const char *const eval_flags[] = {
    "what to evaluate:", "weights", "data", "val-data", "classes",   "ema",     "out", "how:",
    "batch-size",        "resize",  "crop", "tta",      "precision", "threads", NULL};
static const char *const predict_flags[] = {
    "what to predict:", "weights",  "classes",   "topk", "ema",        "what comes out:",
    "format",           "features", "attention", "how:", "batch-size", "workers",
    "resize",           "crop",     "tta",       "precision", "threads", NULL};
static const char *const bench_flags[] = {
    "what to time:", "model", "image-size", "batch-size", "steps", "precision", "threads",
    "gpus",          "ranks", "data",       "spec",       "only",  "json",      NULL};

static const struct {
    const char *name, *usage, *what;
    const char *const *flags;
} commands[] = {
    {"train", "[train] [--data DIR] [--flag value ...]",
     "Trains a Vision Transformer on a folder with a folder of pictures per class; without "
     "arguments\na small one on drawn shapes.\n",
     train_flags},
    {"eval", "eval RUN [--data DIR] [--flag value ...]",
     "Accuracy of a run's best checkpoint, or of a safetensors file, on validation images; in the "
     "run's\nfolder, or --out, it leaves eval.json, eval.csv (classes), confusion.csv, worst.csv "
     "and report.html.\n",
     eval_flags},
    {"predict", "predict RUN IMAGE|FOLDER|-... [--flag value ...]",
     "Classes of pictures, of those in folders, of those that standard input lists (-), on "
     "standard output;\neverything else goes to standard error. A picture that cannot be read is a "
     "line that says so; the others\nare predicted, and the exit status is 1 at the end.\n",
     predict_flags},
    {"bench", "bench [--model B/16] [--flag value ...]",
     "Times training and inference steps: on images that are on the device already (--data "
     "fake:resident),\nor that come from any --data as in training. --spec FILE times each of its "
     "configurations.\n",
     bench_flags},
};

static void print_common(FILE *f, const char *const *flags)
{
    for (; *flags; flags++)
        if (strchr(*flags, ':'))
            fprintf(f, "\n%s\n", *flags);
        else
            options_help_row(f, *flags);
}

void help_print(FILE *f, const char *command, bool all)
{
    int k = 0;
    while (k < COUNT(commands) - 1 && strcmp(commands[k].name, command) != 0)
        k++;
    fprintf(f, "%s %s\n%s", PROGRAM, commands[k].usage, commands[k].what);
    if (all) {
        options_help(f);
        return;
    }
    print_common(f, commands[k].flags);
    fprintf(f, "\n%s %s --help all lists every flag%s.\n", PROGRAM, commands[k].name,
            k ? ""
              : "; eval, predict and bench --help are about these commands,\n"
                "--version about what was compiled in");
}
