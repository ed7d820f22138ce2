/* help.c - what people are told about flags. See help.h.
 *
 * The flags themselves are rows of options.h, each with its help; here is chosen which of them a
 * command's help begins with, in the order in which people need them.
 *
 * Read in this order: help by command, other programs' names.
 */
#include "train/help.h"

#include "backend.h"
#include "train/options.h"
#include "util/text.h"

#include <string.h>

/* ---- help by command ---- */

/* Flags that are mostly used: titles end with a colon. */
static const char *const train_flags[] = {
    "what to train on, and from:", "data",   "val-data", "weights", "model",  "image-size",
    "recipe", "resume", "out",
    "how long and how:", "epochs", "batch-size", "lr", "warmup-steps", "opt", "weight-decay",
    "seed",
    "against overfitting:", "mixup", "cutmix", "auto-augment", "color-jitter", "label-smoothing",
    "drop-path", "erase", "ema",
    "machine and reports:", "gpus", "ranks", "threads", "precision", "micro-batch", "eval-every",
    "save-every", "log-every", NULL};
static const char *const eval_flags[] = {"what to evaluate:", "weights", "data", "val-data",
                                         "classes", "ema",
                                         "how:", "batch-size", "resize", "crop", "precision",
                                         "threads", NULL};
static const char *const predict_flags[] = {"what to predict:", "weights", "classes", "topk", "ema",
                                            "how:", "batch-size", "resize", "crop", "precision",
                                            "threads", NULL};
static const char *const bench_flags[] = {"what to time:", "model", "image-size", "batch-size",
                                          "steps", "precision", "threads", "gpus", "ranks", NULL};

static const struct {
    const char *name, *usage, *what;
    const char *const *flags;
} commands[] = {
    {"train", "[train] [--data DIR] [--flag value ...]",
     "Trains a Vision Transformer on a folder with a folder of pictures per class; without "
     "arguments\na small one on drawn shapes.\n",
     train_flags},
    {"eval", "eval RUN [--data DIR] [--flag value ...]",
     "Accuracy of a run's best checkpoint, or of a safetensors file, on validation images.\n",
     eval_flags},
    {"predict", "predict RUN IMAGE... [--flag value ...]",
     "Classes of single pictures, on standard output; everything else goes to standard error.\n",
     predict_flags},
    {"bench", "bench [--model B/16] [--flag value ...]",
     "Times training and inference steps without data.\n", bench_flags},
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
            k ? "" : "; eval, predict and bench --help are about these commands,\n"
                     "--version about what was compiled in");
}

/* ---- other programs' names ---- */

/* Of timm's train.py, torchvision's references, big_vision and Hugging Face's trainer. */
static const struct {
    const char *theirs, *ours;
} synonyms[] = {
    {"aa", "--auto-augment"},
    {"amp", "--precision bf16 (a GPU's default)"},
    {"amp-dtype", "--precision"},
    {"attn-drop-rate", "--attention-dropout"},
    {"aug-repeats", "--repeats"},
    {"augmentation", "--auto-augment"},
    {"b", "--batch-size"},
    {"batch", "--batch-size"},
    {"bce-loss", "--loss sigmoid"},
    {"bf16", "--precision bf16"},
    {"bs", "--batch-size"},
    {"checkpoint", "--weights, or --resume to continue a run"},
    {"checkpoint-hist", "--keep"},
    {"class-map", "--classes"},
    {"clip-grad", "--clip"},
    {"config", "--recipe"},
    {"crop-pct", "--resize, in pixels: 224 at 0.875 is --resize 256"},
    {"data-dir", "--data"},
    {"data-path", "--data"},
    {"dataset", "--data"},
    {"decay-epochs", "--step-size, in steps"},
    {"decay-rate", "--step-gamma"},
    {"drop", "--dropout"},
    {"drop-path-rate", "--drop-path"},
    {"drop-rate", "--dropout"},
    {"eval-interval", "--eval-every, in steps"},
    {"eval-steps", "--eval-every"},
    {"fp16", "--precision fp16"},
    {"fsdp", "--zero 3"},
    {"global-pool", "--pool"},
    {"gp", "--pool"},
    {"grad-accum-steps", "--micro-batch: --batch-size counts the images of a whole update"},
    {"grad-checkpointing", "--recompute full"},
    {"gradient-accumulation-steps",
     "--micro-batch: --batch-size counts the images of a whole update"},
    {"gradient-checkpointing", "--recompute full"},
    {"grad-clip", "--clip"},
    {"hflip", "--flip"},
    {"img-size", "--image-size"},
    {"initial-checkpoint", "--weights"},
    {"input-size", "--image-size"},
    {"j", "--workers"},
    {"jsd-loss", "nothing: there is no such loss"},
    {"learning-rate", "--lr"},
    {"log-interval", "--log-every"},
    {"logging-steps", "--log-every"},
    {"lr-min", "--lr-floor"},
    {"lr-scheduler", "--schedule"},
    {"lr-scheduler-type", "--schedule"},
    {"lr-warmup-epochs", "--warmup-steps, in steps"},
    {"max-grad-norm", "--clip"},
    {"max-steps", "--steps"},
    {"min-lr", "--lr-floor"},
    {"mixup-mode", "--mix-per"},
    {"mixup-prob", "--mix-prob"},
    {"mixup-switch-prob", "--mix-switch"},
    {"model-ema", "--ema 0.9999"},
    {"model-ema-decay", "--ema"},
    {"nb-classes", "--num-classes"},
    {"nproc-per-node", "--gpus, or --ranks on a CPU"},
    {"num-train-epochs", "--epochs"},
    {"num-workers", "--workers"},
    {"opt-betas", "--beta1 and --beta2"},
    {"opt-eps", "--adam-eps"},
    {"optim", "--opt"},
    {"optimizer", "--opt"},
    {"output", "--out"},
    {"output-dir", "--out"},
    {"patience-epochs", "nothing: the schedule does not look at the loss"},
    {"per-device-train-batch-size", "--batch-size, of all devices together"},
    {"pretrained", "--weights FILE"},
    {"random-erase", "--erase"},
    {"ratio", "--ratio-min and --ratio-max"},
    {"recount", "nothing: one box is erased"},
    {"recovery-interval", "--save-every"},
    {"remode", "--erase-mode"},
    {"reprob", "--erase"},
    {"resume-from-checkpoint", "--resume"},
    {"save-steps", "--save-every"},
    {"scale", "--area-min and --area-max"},
    {"sched", "--schedule"},
    {"scheduler", "--schedule"},
    {"smoothing", "--label-smoothing"},
    {"train-interpolation", "--interpolation"},
    {"use-ema", "--ema 0.9999"},
    {"val-dir", "--val-data"},
    {"validation-batch-size", "--batch-size of eval"},
    {"warmup", "--warmup-steps"},
    {"warmup-epochs", "--warmup-steps, in steps"},
    {"wd", "--weight-decay"},
    {"weight-init", "--init"},
    {"world-size", "--gpus, or --ranks on a CPU"},
};

const char *help_synonym(const char *name)
{
    for (int i = 0; i < COUNT(synonyms); i++)
        if (same_name(synonyms[i].theirs, name))
            return synonyms[i].ours;
    return NULL;
}
