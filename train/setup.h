/* setup.h - the session: one run of the program, from its flags to data and a model that are ready.
 *
 * A command (train.c, eval.c) fills it step by step with the calls below, in their order; those
 * that it does not need it leaves out. All of them end the program through die() when something is
 * wrong. Ranks other than the first do the same and keep silent.
 */
#pragma once

#include "checkpoint.h"
#include "data.h"
#include "train/launch.h"
#include "train/mixup.h"
#include "train/options.h"
#include "vit.h"

/* Learning rate of step 0, 1, ..., total-1 of a run, as the flags have it. Warm-up: lr * (step+1) /
 * warmup, so that the first step already learns and the last warm-up step has the peak; then, with
 * f = (step - warmup) / (total - warmup), the curve goes from lr at f = 0 towards the floor at f =
 * 1, which it would reach with the step after the last (as optax.warmup_cosine_decay_schedule and
 * timm's per-update scheduler). */
double schedule_lr(const Options *o, uint64_t total, uint64_t step);

typedef struct {
    Options o; /* what was asked for, and what was chosen where that was `auto` */
    char **argv;
    FILE *results; /* predict's: stdout as it was, where stdout itself is stderr now */
    /* setup_options */
    const char *built_in;  /* nothing said how to train: which recipe took its place, else NULL */
    char *run_dir;         /* the run that --resume or --weights named, or NULL */
    char *changed;         /* what is asked for that was otherwise in a run that is continued */
    bool asked_batch;      /* --batch-size, and not the run's */
    Options before;        /* what that run asked for: numbers alone, the texts are gone */
    bool run_layout;       /* how ranks share the model is as that run had it */
    Augmentation *changes; /* of training images */
    Preprocess images;     /* how training makes them; evaluation has augment off */
    /* setup_config */
    const Backend *be;
    World world;      /* which of how many processes this is; local_ranks is 1 where not known */
    int type;         /* F32, BF16, F16: what the model computes in */
    bool chosen_bf16; /* on a CPU, without having been asked to */
    const char *ran_in; /* the run's --precision, where this device chooses another; or NULL */
    char *weights;    /* file to start from, or NULL */
    char *checkpoint; /* directory to resume from, or NULL */
    Config config;    /* its number of classes may come from the data */
    Split split;      /* what of the model this rank has */
    int frozen;       /* units that do not learn */
    /* setup_data */
    Dataset *train, *val; /* NULL: not needed */
    int max_workers;      /* data workers, where --workers does not say */
    Names classes;        /* of the run that is evaluated */
    /* setup_model */
    Model *m;
    int micro;      /* images computed at a time */
    RunState state; /* where the run stands */
    /* setup_length, setup_out: training alone */
    uint64_t steps; /* of the whole run */
    char *out;      /* run directory */
    int lock;       /* on it, rank 0's; -1: none */
    bool shared;    /* all ranks see it */
} Session;

void setup_options(Session *s, int argc, char **argv); /* flags, recipes, the run's config.ini */
void setup_config(Session *s);                         /* device; weights or preset, then flags */
void setup_data(Session *s, bool train);     /* the validation split, and the training one */
void setup_model(Session *s, bool training); /* memory plan, initial or loaded weights */
void setup_length(Session *s);               /* steps of the run */
void setup_out(Session *s);                  /* run directory with config.ini and log */
void session_free(Session *s);

/* Parts of these for who plans a run and does not start it. The config alone: later wins of the
 * default (B/16), the weights' own settings, --model, single settings. The plan but for the number
 * of images; s->type and s->split are known. Images at a time as asked for, memory aside, those of
 * this rank's step, and the group that must divide both. */
void setup_architecture(Session *s);
Plan setup_plan(const Session *s, bool training);
long setup_micro(Session *s, bool training, long *batch, long *group);

/* This rank's part of the training images of each step, in the order of (seed, epoch) from where
 * the run stands; NULL: it reads none (split_reads). Once there is a model. */
Loader *setup_loader(const Session *s);
/* One split: the images of `spec` as the flags say, for training or evaluation. */
Dataset *setup_split(Session *s, const char *spec, bool train);
void setup_check(bool ok, const Error *e); /* die with the error unless ok */
