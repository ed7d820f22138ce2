/* session.h - the session: one run of the program, from its flags to data and a model that are
 * ready. Who fills what of it, and in which order, is in setup.h. */
#pragma once

#include "checkpoint.h"
#include "data.h"
#include "train/launch.h"
#include "train/mixup.h"
#include "train/options.h"
#include "vit.h"

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
    Names classes;        /* of the run that is evaluated, or of the weights */
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

/* For what ends the program unless ok: with the error, as an error of use. */
void setup_check(bool ok, const Error *e);
void setup_check_usage(bool ok, const Error *e);
/* What all ranks find, the first one says. */
void warn_of(const Session *s, const char *fmt, ...) PRINTF_LIKE(2, 3);
