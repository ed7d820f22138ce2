/* options.h - every flag of the program, once.
 *
 * A row per flag: C type, field, default, what is allowed (as in field.h), help. The flag is the
 * field with dashes. The table drives parsing, --help, recipe files and the echo in config.ini; the
 * model's own settings (VIT_CONFIG in config.h) follow it. A word's names are in the order of the
 * enum for them: here, or in backend.h, model/params.h, image/image.h.
 *
 * Settings are read once, from the command line and from recipes, into a list in the order they
 * were given (Settings). What wins over what is decided by the order in which lists are applied.
 */
#pragma once

#include "model/config.h"

enum { SCHEDULE_COSINE, SCHEDULE_LINEAR, SCHEDULE_CONSTANT, SCHEDULE_STEP };
enum { MIX_PER_BATCH, MIX_PER_SAMPLE };
enum { PAIRS_REVERSE, PAIRS_ROLL };
enum { ERASE_TO_NOISE, ERASE_TO_ZERO };
enum { TTA_NONE, TTA_FLIP };
enum {
    PRECISION_AUTO,
    PRECISION_FP32,
    PRECISION_TF32,
    PRECISION_BF16,
    PRECISION_FP16,
    PRECISION_FP8
};
enum { LOSS_SCALING_DEFAULT, LOSS_SCALING_NONE, LOSS_SCALING_STATIC, LOSS_SCALING_DYNAMIC };

/* clang-format off */
#define OPTIONS(GROUP, X)                                                                         \
  GROUP("what to work on")                                                                        \
    X(text,   recipe, "", "",                                                                     \
      "file of `key = value` lines; what comes later on the command line wins")                   \
    X(text,   data, "shapes", "",                                                                 \
      "DIR | wds:PATTERN of tar shards | cifar10:DIR | cifar100:DIR | mnist:DIR | shapes[:DIR], "  \
      "drawn into DIR (data) | fake[:zeros][:COUNT]")                                             \
    X(text,   val_data, "", "",                                                                   \
      "the same for validation; default: the other split of --data; none: do not evaluate")       \
    X(double, val_fraction, "0", "0..0.9",                                                        \
      "folder without validation images: share of each class that is kept for them, by a hash "   \
      "of the files' names")                                                                      \
    X(text,   classes, "", "",                                                                    \
      "file with one class a line, `id` or `id name`; a folder's label is its line")              \
    X(word,   class_order, "byte", "byte|natural|timm",                                           \
      "of classes that no file lists: 10 before 2; 2 before 10; the same with a before B")        \
    X(text,   wds_label, "cls", "",                                                               \
      "wds: file with a sample's label: cls, txt, json:KEY ...; folder: the one in its name")     \
    X(double, classes_fraction, "1", "0..1",                                                      \
      "share of the classes, the first in label order, that is used")                             \
    X(double, data_per_class, "1", "0..1000000000",                                               \
      "training images used of each class, the first: a share up to 1, a number above")           \
    X(text,   index_dir, "", "",                                                                  \
      "wds: folder with the training shards' idx_N.txt; default: read the shards' headers, once") \
    X(text,   val_index_dir, "", "", "the same for the shards of --val-data")                     \
    X(text,   model, "", "",                                                                      \
      "preset such as Ti/16, S/16, B/16, L/16; dimensions given after it override it")            \
    X(text,   weights, "", "",                                                                    \
      "weights to start from: a file of ours, timm's, transformers', Google's ..., a folder with " \
      "one and its config.json, or a run directory")                                              \
    X(word,   pos_resize, "timm", "timm|google|bilinear|bicubic",                                 \
      "weights of another image size: how their position embeddings are resized")                 \
    X(text,   resume, "", "", "run or checkpoint directory to continue, bit for bit")             \
    X(text,   out, "", "", "run directory; default: runs/<data>-<model>-NNN")                     \
    X(long,   seed, "0", "0..", "of initialisation, order, augmentation and dropout")             \
  GROUP("length and batch")                                                                       \
    X(long,   batch_size, "128", "1..16777216", "images per step (eval: per forward pass)")       \
    X(long,   micro_batch, "auto", "0..16777216|auto",                                            \
      "images computed at a time; auto: as many as fit in memory")                                \
    X(double, epochs, "10", "0..", "passes over the training images")                             \
    X(long,   repeats, "1", "1..1000",                                                            \
      "times a sample is shown in an epoch, each time differently; an epoch has as many fewer "   \
      "samples")                                                                                  \
    X(long,   shuffle_shards, "4", "1..1000000",                                                  \
      "wds: shards whose samples are shuffled together")                                          \
    X(long,   steps, "0", "0..4294967295", "steps in place of epochs (bench: repetitions)")       \
  GROUP("learning rate")                                                                          \
    X(double, lr, "0.001", "0..", "peak learning rate")                                           \
    X(long,   warmup_steps, "-1", "-1..", "linear warm-up from 0; -1: a twentieth of the run")    \
    X(word,   schedule, "cosine", "cosine|linear|constant|step", "shape after the warm-up")       \
    X(double, lr_floor, "0", "0..", "lowest learning rate after the warm-up")                     \
    X(long,   step_size, "0", "0..",                                                              \
      "schedule step: steps between two drops; 0: a third of the run")                            \
    X(double, step_gamma, "0.1", "0..1", "schedule step: factor of a drop")                       \
    X(double, layer_decay, "1", "0.01..1",                                                        \
      "each layer learns at this share of the rate of the one above it, the head at --lr; 1: all "\
      "alike")                                                                                    \
  GROUP("fine-tuning")                                                                            \
    X(text,   freeze, "", "",                                                                     \
      "N: the embedding and the first N blocks stay as they are; head-only: all but the head's "  \
      "own weight and bias do, a linear probe")                                                   \
    X(text,   class_weights, "", "",                                                              \
      "weights of the classes in the loss: balanced, inversely to their images; or a file with "  \
      "one number a line, in label order, which may stand behind its class's name")               \
    X(long,   patience, "0", "0..1000000000",                                                     \
      "end after so many evaluations without a better top-1; 0: never")                           \
  GROUP("optimiser")                                                                              \
    X(word,   opt, "adamw", "adamw|adam|sgd|lamb", "see backend.h for the formulas")              \
    X(double, weight_decay, "0.05", "0..",                                                        \
      "decoupled for adamw and lamb; L2, through the gradient, for adam and sgd: 0 unless given") \
    X(word,   decay, "matrices", "all|no_1d|matrices",                                            \
      "what is decayed; matrices: weights of two or more dimensions")                             \
    X(double, beta1, "0.9", "0..0.999999999", "decay of the first moment")                        \
    X(double, beta2, "0.999", "0..0.999999999", "decay of the second moment")                     \
    X(double, adam_eps, "1e-8", "0..1", "epsilon of adam, adamw and lamb")                        \
    X(double, momentum, "0.9", "0..0.999999999", "of sgd")                                        \
    X(double, clip, "1", "0..", "largest global gradient norm; 0: no clipping")                   \
    X(double, ema, "0", "0..0.999999999",                                                         \
      "decay of an average of the weights, which is then evaluated; 0: none")                     \
  GROUP("regularisation")                                                                         \
    X(double, label_smoothing, "0.1", "0..1", "targets (1-s) one-hot + s/K")                      \
    X(double, target_threshold, "-1", "-1..1",                                                    \
      "sigmoid loss: targets above it count as 1, others as 0, so that both of two mixed images "  \
      "are there in full (timm's bce-target-thresh; DeiT III: 0); -1: as they are")               \
    X(double, mixup, "0", "0..1000",                                                              \
      "blend pairs of images: alpha of the Beta distribution of their shares; 0: off")            \
    X(double, cutmix, "0", "0..1000",                                                             \
      "paste a box of another image: alpha of the Beta distribution of its area; 0: off")         \
    X(double, mix_switch, "0.5", "0..1",                                                          \
      "where both are on: probability of cutmix rather than mixup")                               \
    X(double, mix_prob, "1", "0..1", "probability that images are mixed at all")                  \
    X(word,   mix_per, "batch", "batch|sample",                                                   \
      "draw shares and boxes once a step, or for each image")                                     \
    X(word,   mix_pairs, "reverse", "reverse|roll",                                               \
      "partner: position counted from the group's end, or the image before")                      \
    X(long,   mix_group, "auto", "0..16777216|auto",                                              \
      "partners are among N consecutive images of a batch; auto: 8 or less, as divides it")       \
    X(double, erase, "0", "0..1", "random erasing: probability that an image loses a box")        \
    X(word,   erase_mode, "noise", "noise|zero",                                                  \
      "what is in the box instead: normal noise, or the mean colour")                             \
    X(text,   color_twist, "", "",                                                                \
      "B,C,S[,H] (or one number for B,C,S): brightness, contrast, saturation within 1+-x, hue "   \
      "within +-H degrees")                                                                       \
  GROUP("start")                                                                                  \
    X(text,   init, "timm", "", "initialiser: jax, timm, torch, megatron, xavier")                \
    X(word,   position, "learned", "learned|sincos2d|sincos2d_big_vision",                        \
      "position embeddings: learned; or sines and cosines that stay, as in MAE and MoCo v3, or as "\
      "big_vision has them, also in place of those of --weights")                                 \
    X(double, head_bias, "0", "", "initial bias of the head (sigmoid loss: about -log K)")        \
    X(double, layer_scale_init, "1e-5", "", "initial layer scale, where --layer-scale is on")     \
  GROUP("images")                                                                                 \
    X(bool,   augment, "true", "",                                                                \
      "training: random crop, flip, colour jitter, auto-augment; off: as in evaluation")         \
    X(word,   train_crop, "resized", "resized|simple",                                            \
      "training: random resized crop; or the shorter side to the image's size, 4 mirrored pixels " \
      "around, and any crop of that (DeiT III's)")                                                \
    X(double, area_min, "0.08", "0..1", "random crop: smallest share of the image")               \
    X(double, area_max, "1", "0..1", "random crop: largest share")                                \
    X(double, ratio_min, "0.75", "0.01..100", "random crop: smallest width / height")             \
    X(double, ratio_max, "1.3333333333333333", "0.01..100", "random crop: largest width / height")\
    X(double, flip, "0.5", "0..1", "probability of mirroring left and right")                     \
    X(text,   color_jitter, "", "",                                                               \
      "brightness, contrast, saturation and hue by up to B,C,S,HUE; 0.4 is 0.4,0.4,0.4,0")        \
    X(text,   auto_augment, "", "",                                                               \
      "imagenet | imagenet-v0 | rand-m9-n2-mstd0.5-inc1 | randaug(2,15), after the colour jitter; "\
      "or 3-augment, before it")                                                                  \
    X(word,   crop, "center", "center|stretch|squash",                                            \
      "evaluation: centre of the resized image; the whole, stretched; or the centre of that")     \
    X(long,   resize, "0", "0..65536",                                                            \
      "evaluation: shorter side before the crop; 0: the size / --crop-pct, rounded down")         \
    X(double, crop_pct, "0.875", "0.01..1",                                                       \
      "evaluation: share of the shorter side that the centre crop keeps")                         \
    X(word,   tta, "none", "none|flip",                                                           \
      "evaluation and predict: mean logits of an image and its mirror image, at twice the time")  \
    X(word,   interpolation, "bicubic", "bilinear|bicubic", "of every resize")                    \
    X(word,   decode, "exact", "exact|fast",                                                      \
      "JPEG: at full scale, or at 1/2 ... 1/8 while twice the size needed remains")               \
    X(double, max_damaged, "0.01", "0..1",                                                        \
      "share of the images that may be damaged before the run stops; up to 10 always may, "       \
      "except with 0")                                                                            \
  GROUP("machine")                                                                                \
    X(long,   threads, "0", "0..4096", "that compute; 0: one per core, shared among the ranks")   \
    X(long,   workers, "0", "0..256",                                                             \
      "threads that decode images; 0: as many as it turns out to take (eval, predict: all cores)") \
    X(long,   gpus, "1", "1..1024", "start one process for each of this machine's first N GPUs")  \
    X(long,   ranks, "1", "1..1024", "train_cpu: start N processes on this machine, by mpirun")   \
    X(long,   watchdog, "600", "0..1000000",                                                      \
      "seconds after which a rank that hangs, and makes the others wait, ends the run; 0: never") \
    X(word,   collectives, "fast", "fast|ordered",                                                \
      "GPU: fast is NCCL's choice, the same sums every time on the same machines; ordered pins "  \
      "its ring: to compare bits with other machines, slower beyond a few GPUs")                  \
    X(word,   precision, "auto", "auto|fp32|tf32|bf16|fp16|fp8",                                  \
      "auto: bf16 on a GPU; on a CPU fp32, and bf16 for eval and predict where it is faster")     \
    X(word,   fp8_scaling, "delayed", "delayed|current",                                          \
      "fp8 (H100 and newer: the blocks' linear layers, e4m3 forward, e5m2 gradients; the rest "   \
      "bf16): each tensor's scale is by its largest number in the last steps, or of itself")      \
    X(long,   fp8_history, "16", "1..1024",                                                       \
      "fp8: steps that delayed scaling looks back; until there are as many, it is current")       \
    X(long,   fp8_margin, "0", "0..32", "fp8: powers of two of room above the largest number")    \
    X(word,   fp8_skip, "none", "none|ends", "fp8: ends: the first and the last block in bf16")   \
    X(word,   fp8_wgrad, "fp8", "fp8|bf16", "fp8: weight gradients' products in")                 \
    X(word,   loss_scaling, "default", "default|none|static|dynamic|auto",                        \
      "of fp16 gradients; default: dynamic with fp16, else none")                                 \
    X(double, loss_scale, "65536", "1..4294967296", "the first loss scale")                       \
    X(long,   scale_interval, "1000", "1..1000000000",                                            \
      "dynamic: good steps before the loss scale doubles")                                        \
    X(long,   hysteresis, "2", "1..1000", "dynamic: overflows before the loss scale is halved")   \
    X(bool,   stochastic_rounding, "false", "", "of 16-bit working weights")                      \
    X(bool,   autotune, "true", "",                                                               \
      "GPU: time the algorithms of each matrix product, once; off: the library's first choice")   \
  GROUP("parallelism")                                                                            \
    X(long,   tp, "1", "1..4096",                                                                 \
      "tensor parallel ranks: each has some of the heads, of the MLP and of the classes")         \
    X(long,   pp, "1", "1..1000",                                                                 \
      "pipeline stages: each has some of the layers; other ranks are data parallel")              \
    X(text,   layers_per_stage, "", "", "3,3,3,3; otherwise as equal as can be")                  \
    X(long,   zero, "0", "0..3",                                                                  \
      "data parallel ranks share out 1: optimiser state; 2: gradients too; 3: weights too (FSDP)")\
    X(bool,   reshard_after_forward, "true", "",                                                  \
      "zero 3: off keeps the gathered weights until the update: faster, more memory")             \
    X(word,   reduce_dtype, "fp32", "fp32|bf16", "of gradients on their way between the ranks")   \
    X(bool,   offload_optimizer, "false", "", "optimiser state in the host's memory")             \
    X(word,   recompute, "auto", "auto|none|light|selective|full",                                \
      "made again in the backward pass; light: norms, GELU; selective: attention too; auto: "     \
      "light in bf16 on a CPU, else none")                                                        \
    X(long,   recompute_blocks, "0", "0..1000", "of each stage the first N blocks; 0: all")       \
    X(long,   recompute_group, "1", "1..1000", "full: one stream is saved for every N blocks")    \
    X(text,   recompute_keep, "", "",                                                             \
      "full: saved all the same: norm1_y qkv att mid norm2_y fc1 gelu, by commas")                \
  GROUP("reports and checkpoints")                                                                \
    X(long,   eval_every, "0", "0..", "steps between evaluations; 0: after each epoch")           \
    X(long,   save_every, "0", "0..", "steps between checkpoints; 0: with each evaluation")       \
    X(long,   log_every, "10", "1..", "steps between log lines")                                  \
    X(long,   keep, "2", "1..1000000", "newest checkpoints to keep, besides the best")            \
    X(long,   topk, "5", "1..1000000", "predict: classes named for each image")                   \
    X(word,   format, "text", "text|csv|jsonl", "predict: of the results")                        \
    X(text,   features, "", "",                                                                   \
      "predict: FILE.npy gets what the head reads, [images, D]; FILE.txt the images' names")      \
    X(text,   attention, "", "",                                                                  \
      "predict: FILE.png gets the first images with the attention drawn over them")               \
  GROUP("bench")                                                                                  \
    X(text,   spec, "", "", "bench: file of named configurations, as bench/specs.ini")            \
    X(text,   only, "", "", "bench: one of them, in this process (or its ranks); default: all")   \
    X(text,   json, "", "", "bench: file that the results go to as well")
/* clang-format on */

/* Rows of all settings: the model's group and what stands for several of its settings
 * (--image-size, --mean, --std) come between. */
#define X(...)       +1
#define GROUP(title) +1
enum { CONFIG_FIELDS = VIT_CONFIG(X), MODEL_ROW = OPTIONS(GROUP, X) + 4 };
#undef GROUP
#undef X

typedef struct {
#define GROUP(title)
#define X(type, field, ...) type field;
    OPTIONS(GROUP, X)
#undef X
#undef GROUP
    Config config;                         /* the model's settings that were given */
    bool given[MODEL_ROW + CONFIG_FIELDS]; /* which settings were, as a recipe's line or a flag */
    bool asked[MODEL_ROW + CONFIG_FIELDS]; /* those on the command line */
    const char *command;                   /* "train", "eval", "predict", "bench" */
    char **files;                          /* what is no flag: predict's images */
    int n_files;
    bool help, help_all, version; /* are asked for */
} Options;

/* ---- settings as they are given ---- */

typedef struct {
    char *name, *value; /* as the user wrote them */
    char *where;        /* begins an error's text: "--", "file:12: " */
    char *section;      /* the name in [brackets] above it in a file; NULL: none */
} Setting;
typedef struct {
    Setting *list; /* [n], in order: later wins */
    int n;
} Settings;

/* The value that wins, by flag or key (`-` and `_` are the same); NULL where it was not given. */
const char *settings_last(const Settings *s, const char *name);
/* Appends the lines of a file, which nothing looks up yet. */
bool settings_file(Settings *s, const char *path, Error *e);
void settings_free(Settings *s);

/* ---- options ---- */

void options_init(Options *o); /* the defaults */
void options_free(Options *o);

/* The command line: an optional command and --help, which go to o; then `--name value`,
 * `--name=value`, `--name` and `--no-name` for switches (`--no-name` is 0 for numbers and "" for
 * texts), which go to `asked` with the lines of each --recipe behind it. They are looked up when
 * options_apply sets them, in order, and frees the list; sections make no difference there. */
bool options_args(Options *o, Settings *asked, int argc, char **argv, Error *e);
bool options_apply(Options *o, Settings *asked, Error *e);

/* At once: one setting, by flag or key; or lines `key = value`; `#` starts a comment; a [section]
 * line names what follows; a value that holds `#` or begins or ends with a blank stands in double
 * quotes, where \" \\ and \n are a quote, a backslash and the end of a line. */
bool options_set(Options *o, const char *name, const char *value, const char *where, Error *e);
bool options_lines(Options *o, const char *lines, const char *where, Error *e);
bool options_file(Options *o, const char *path, Error *e);

bool options_given(const Options *o, const char *flag);
bool options_asked(const Options *o, const char *flag); /* on the command line, in no recipe */
bool options_off(const Options *o, const char *flag);   /* it is a switch, which is off */
bool options_config_given(const Options *o, const char *field); /* by name in Config */
void options_apply_config(const Options *o, Config *c);         /* given settings onto c */
void options_help(FILE *f);                                     /* all flags, with their defaults */
void options_help_row(FILE *f, const char *flag);
/* Everything as a recipe that repeats the run, from any directory: the options, places as absolute
 * paths, and c as the model's settings. Left out are recipe, resume and out. free() it. */
char *options_text(const Options *o, const Config *c, const char *path);
/* "changed   lr 0.001 -> 0.5", a line for each setting that differs between two such texts. */
char *options_changes(const char *before, const char *after);
/* That text as a file. On failure the old one, if any, is untouched. */
bool options_write(const Options *o, const Config *c, const char *path, Error *e);
