/* options.h - every flag of the program, once.
 *
 * One line per flag: C type, field, flag, default, what is allowed, help. The table drives parsing,
 * --help, recipe files and the echo in config.ini; the model's own settings (VIT_CONFIG in vit.h)
 * join them under the flags named there. Words are an int whose value is the position in `allowed`,
 * in the order of the enum that vit.h or data.h has for them; "a..b" is a range, either end
 * optional.
 */
#pragma once

#include "vit.h"

enum { SCHEDULE_COSINE, SCHEDULE_LINEAR, SCHEDULE_CONSTANT, SCHEDULE_STEP };
enum { MIX_PER_BATCH, MIX_PER_SAMPLE };
enum { PAIRS_REVERSE, PAIRS_ROLL };
enum { ERASE_TO_NOISE, ERASE_TO_ZERO };

typedef const char *text;

/* clang-format off */
#define OPTIONS(GROUP, X)                                                                               \
  GROUP("what to work on")                                                                              \
    X(text,   recipe,      "recipe",      "",       "",      "file of `key = value` lines; what comes later on the command line wins") \
    X(text,   data,        "data",        "shapes", "",      "DIR | wds:PATTERN of tar shards | shapes | fake[:zeros][:COUNT] | cifar10:DIR | cifar100:DIR | mnist:DIR") \
    X(text,   val_data,    "val-data",    "",       "",      "the same for validation; default: the other split of --data; none: do not evaluate") \
    X(text,   classes,     "classes",     "",       "",      "file with one class a line, `id` or `id name`; a folder's label is its line") \
    X(double, classes_fraction, "classes-fraction", "1", "0..1", "share of the classes, the first in label order, that is used") \
    X(double, data_per_class, "data-per-class", "1", "0..1000000000", "training images used of each class, the first: a share up to 1, a number above") \
    X(text,   index_dir,   "index-dir",   "",       "",      "wds: folder with the training shards' idx_N.txt; default: read the shards' headers, once") \
    X(text,   val_index_dir, "val-index-dir", "",   "",      "the same for the shards of --val-data") \
    X(text,   model,       "model",       "",       "",      "preset such as Ti/16, S/16, B/16, L/16; dimensions given after it override it") \
    X(text,   weights,     "weights",     "",       "",      "safetensors file with timm names to start from, or a run directory") \
    X(text,   resume,      "resume",      "",       "",      "run or checkpoint directory to continue, bit for bit")     \
    X(text,   out,         "out",         "",       "",      "run directory; default: runs/<data>-<model>-NNN")          \
    X(long,   seed,        "seed",        "0",      "0..",   "of initialisation, order, augmentation and dropout")       \
  GROUP("length and batch")                                                                             \
    X(long,   batch_size,  "batch-size",  "128",    "1..16777216", "images per step (eval: per forward pass)")           \
    X(long,   micro_batch, "micro-batch", "auto",   "0..16777216|auto", "images computed at a time; auto: as many as fit in memory") \
    X(double, epochs,      "epochs",      "10",     "0..",   "passes over the training images")                          \
    X(long,   repeats,     "repeats",     "1",      "1..1000", "times a sample is shown in an epoch, each time differently; an epoch has as many fewer samples") \
    X(long,   shuffle_shards, "shuffle-shards", "4", "1..1000000", "wds: shards whose samples are shuffled together")    \
    X(long,   steps,       "steps",       "0",      "0..4294967295", "steps in place of epochs (bench: repetitions)")    \
  GROUP("learning rate")                                                                                \
    X(double, lr,          "lr",          "0.001",  "0..",   "peak learning rate")                                       \
    X(long,   warmup_steps, "warmup-steps", "-1",   "-1..",  "linear warm-up from 0; -1: a twentieth of the run")        \
    X(word,   schedule,    "schedule",    "cosine", "cosine|linear|constant|step", "shape after the warm-up")            \
    X(double, lr_floor,    "lr-floor",    "0",      "0..",   "lowest learning rate after the warm-up")                   \
    X(long,   step_size,   "step-size",   "0",      "0..",   "schedule step: steps between two drops; 0: a third of the run") \
    X(double, step_gamma,  "step-gamma",  "0.1",    "0..1",  "schedule step: factor of a drop")                          \
  GROUP("optimiser")                                                                                    \
    X(word,   opt,         "opt",         "adamw",  "adamw|adam|sgd|lamb", "see vit.h for the formulas")                 \
    X(double, weight_decay, "weight-decay", "0.05", "0..",   "decoupled for adamw and lamb, L2 for adam and sgd")        \
    X(word,   decay,       "decay",       "matrices", "all|no_1d|matrices", "what is decayed; matrices: weights of two or more dimensions") \
    X(double, beta1,       "beta1",       "0.9",    "0..0.999999999", "decay of the first moment")                       \
    X(double, beta2,       "beta2",       "0.999",  "0..0.999999999", "decay of the second moment")                      \
    X(double, adam_eps,    "adam-eps",    "1e-8",   "0..1",  "epsilon of adam, adamw and lamb")                          \
    X(double, momentum,    "momentum",    "0.9",    "0..0.999999999", "of sgd")                                          \
    X(double, clip,        "clip",        "1",      "0..",   "largest global gradient norm; 0: no clipping")              \
    X(double, ema,         "ema",         "0",      "0..0.999999999", "decay of an average of the weights, which is then evaluated; 0: none") \
  GROUP("regularisation")                                                                               \
    X(double, label_smoothing, "label-smoothing", "0.1", "0..1", "targets (1-s) one-hot + s/K")                          \
    X(double, mixup,       "mixup",       "0",      "0..1000", "blend pairs of images: alpha of the Beta distribution of their shares; 0: off") \
    X(double, cutmix,      "cutmix",      "0",      "0..1000", "paste a box of another image: alpha of the Beta distribution of its area; 0: off") \
    X(double, mix_switch,  "mix-switch",  "0.5",    "0..1",  "where both are on: probability of cutmix rather than mixup") \
    X(double, mix_prob,    "mix-prob",    "1",      "0..1",  "probability that images are mixed at all")                 \
    X(word,   mix_per,     "mix-per",     "batch",  "batch|sample", "draw shares and boxes once a step, or for each image") \
    X(word,   mix_pairs,   "mix-pairs",   "reverse", "reverse|roll", "partner: position counted from the group's end, or the image before") \
    X(long,   mix_group,   "mix-group",   "auto",   "0..16777216|auto", "partners are among N consecutive images of a batch; auto: 8 or less, as divides it") \
    X(double, erase,       "erase",       "0",      "0..1",  "random erasing: probability that an image loses a box")    \
    X(word,   erase_mode,  "erase-mode",  "noise",  "noise|zero", "what is in the box instead: normal noise, or the mean colour") \
    X(text,   color_twist, "color-twist", "",       "",      "B,C,S[,H] (or one number for B,C,S): brightness, contrast, saturation within 1+-x, hue within +-H degrees") \
  GROUP("start")                                                                                        \
    X(text,   init,        "init",        "timm",   "",      "initialiser: jax, timm, torch, megatron, xavier")          \
    X(double, head_bias,   "head-bias",   "0",      "",      "initial bias of the head (sigmoid loss: about -log K)")    \
    X(double, layer_scale_init, "layer-scale-init", "1e-5", "", "initial layer scale, where --layer-scale is on")        \
  GROUP("images")                                                                                       \
    X(bool,   augment,     "augment",     "true",   "",      "training: random resized crop, flip and the two below; off: as in evaluation") \
    X(double, area_min,    "area-min",    "0.08",   "0..1",  "random crop: smallest share of the image")                 \
    X(double, area_max,    "area-max",    "1",      "0..1",  "random crop: largest share")                               \
    X(double, ratio_min,   "ratio-min",   "0.75",   "0.01..100", "random crop: smallest width / height")                 \
    X(double, ratio_max,   "ratio-max",   "1.3333333333333333", "0.01..100", "random crop: largest width / height")      \
    X(double, flip,        "flip",        "0.5",    "0..1",  "probability of mirroring left and right")                  \
    X(text,   color_jitter, "color-jitter", "",     "",      "brightness, contrast, saturation and hue by up to B,C,S,HUE; 0.4 is 0.4,0.4,0.4,0") \
    X(text,   auto_augment, "auto-augment", "",     "",      "imagenet | imagenet-v0 | rand-m9-n2-mstd0.5-inc1 | randaug(2,15), after the colour jitter") \
    X(word,   crop,        "crop",        "center", "center|stretch", "evaluation: centre of the resized image, or the whole stretched") \
    X(long,   resize,      "resize",      "0",      "0..65536", "evaluation: shorter side before the crop; 0: 256/224 of the size") \
    X(word,   interpolation, "interpolation", "bicubic", "bilinear|bicubic", "of every resize")                          \
    X(word,   decode,      "decode",      "exact",  "exact|fast", "JPEG: at full scale, or at 1/2 ... 1/8 while twice the size needed remains") \
    X(double, max_damaged, "max-damaged", "0.01",   "0..1",  "share of the images that may be damaged before the run stops; up to 10 always may, except with 0") \
  GROUP("machine")                                                                                      \
    X(long,   threads,     "threads",     "0",      "0..4096", "that compute; 0: one per core")                          \
    X(long,   workers,     "workers",     "0",      "0..256", "threads that decode images; 0: as many as it turns out to take") \
    X(long,   gpus,        "gpus",        "1",      "1..1024", "start one process for each of this machine's first N GPUs") \
    X(word,   precision,   "precision",   "auto",   "auto|fp32|tf32|bf16|fp16", "auto: bf16 on a GPU; the CPU computes in fp32 alone") \
    X(word,   loss_scaling, "loss-scaling", "default", "default|none|static|dynamic|auto", "of fp16 gradients; default: dynamic with fp16, else none") \
    X(double, loss_scale,  "loss-scale",  "65536",  "1..4294967296", "the first loss scale")                            \
    X(long,   scale_interval, "scale-interval", "1000", "1..1000000000", "dynamic: good steps before the loss scale doubles") \
    X(long,   hysteresis,  "hysteresis",  "2",      "1..1000", "dynamic: overflows before the loss scale is halved")     \
    X(bool,   stochastic_rounding, "stochastic-rounding", "false", "", "of 16-bit working weights")                      \
    X(bool,   autotune,    "autotune",    "true",   "",      "GPU: time the algorithms of each matrix product, once; off: the library's first choice") \
  GROUP("reports and checkpoints")                                                                      \
    X(long,   eval_every,  "eval-every",  "0",      "0..",   "steps between evaluations; 0: after each epoch")           \
    X(long,   save_every,  "save-every",  "0",      "0..",   "steps between checkpoints; 0: with each evaluation")       \
    X(long,   log_every,   "log-every",   "10",     "1..",   "steps between log lines")                                  \
    X(long,   keep,        "keep",        "2",      "1..1000000", "newest checkpoints to keep, besides the best")
/* clang-format on */

#define X(...) +1
enum { CONFIG_FIELDS = VIT_CONFIG(X) };
#undef X

typedef struct {
#define GROUP(name)
#define X(type, field, flag, value, allowed, help) \
    type field;                                    \
    bool has_##field; /* set by the user, in a recipe or as a flag */
    OPTIONS(GROUP, X)
#undef X
#undef GROUP
    Config config;                      /* the model's settings that were given, */
    bool has_config[CONFIG_FIELDS]; /* and which those are, as in vit_config_fields */
    const char *command;                /* "train", "eval", "predict", "bench" */
    char **files;                       /* what is no flag: predict's images */
    int n_files;
} Options;

void options_init(Options *o); /* the defaults */
void options_free(Options *o);

/* One setting, by flag or key (`-` and `_` are the same). `where` begins an error's text ("--",
 * "file:12: "). Values are copied. */
bool options_set(Options *o, const char *name, const char *value, const char *where, Error *e);
/* Lines `key = value`; `#` starts a comment; [section] lines are ignored; a value that holds `#` or
 * begins or ends with a blank stands in double quotes, where \" \\ and \n are a quote, a backslash
 * and the end of a line. */
bool options_lines(Options *o, const char *lines, const char *where, Error *e);
bool options_file(Options *o, const char *path, Error *e);
/* The command line: an optional command, then `--name value`, `--name=value`, `--name` and
 * `--no-name` for switches (`--no-name` is 0 for numbers and "" for texts). Sets help when --help is
 * there. */
bool options_args(Options *o, int argc, char **argv, bool *help, Error *e);

bool options_config_given(const Options *o, const char *field); /* by name in Config */
void options_apply_config(const Options *o, Config *c);         /* given settings onto c */
void options_help(FILE *f);
/* Everything as a recipe that repeats the run: the options, and c as the model's settings. Left out
 * is what names places: recipe, resume, out. On failure the old file, if any, is untouched. */
bool options_write(const Options *o, const Config *c, const char *path, Error *e);
