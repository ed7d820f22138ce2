/* session.h - what the program's commands share: flags made into a config, data and a model.
 *
 * setup.c fills a Session, train.c runs the training loop, eval.c evaluates, predicts and times.
 * All of these end the program through die() when something is wrong.
 */
#pragma once

#include "checkpoint.h"
#include "data.h"
#include "vit.h"
#include "train/hosts.h"
#include "train/options.h"
#include "train/mixup.h"
#include "train/schedule.h"

typedef struct {
    Options o;
    char **argv;
    const Backend *be;
    World world; /* which of how many processes this is */
    Config config;
    Model *m;
    int type;              /* F32, BF16, F16: what the model computes in */
    bool built_in;         /* nothing said what to train */
    int micro;             /* images computed at a time */
    Augmentation *changes; /* of training images */
    Preprocess images;     /* how training makes them; evaluation has augment off */
    int local_ranks;       /* of this machine; 1 where that is not known */
    int max_workers;       /* data workers, where --workers does not say */
    Dataset *train, *val;
    char *weights;    /* file to start from, or NULL */
    char *checkpoint; /* directory to resume from, or NULL */
    char *run_dir;    /* the run that --resume or --weights named, or NULL */
    char *out;        /* training: run directory */
    RunState state;
} Session;

/* ---- setup.c, in the order of use ---- */
void setup_options(Session *s, int argc, char **argv); /* flags, recipes, the run's config.ini */
void setup_config(Session *s);                         /* weights or preset, then flags */
void setup_data(Session *s, bool train); /* the validation split, and the training one */
Dataset *setup_split(Session *s, const char *spec, bool train); /* one of them */
void setup_model(Session *s, bool training); /* memory plan, initial or loaded weights */
void setup_out(Session *s);                  /* run directory with config.ini and log */
void session_free(Session *s);
void setup_check(bool ok, const Error *e); /* die with the error unless ok */

/* ---- eval.c ---- */
typedef struct {
    double top1, top5; /* percent */
    double loss;       /* mean, without label smoothing */
    double seconds;
    long images;
} Evaluation;
/* All of d in order; `stop` may name a flag that ends it early (false is returned then). */
bool evaluate(Session *s, Dataset *d, const volatile int *stop, Evaluation *out);
int command_eval(Session *s);
int command_predict(Session *s);
int command_bench(Session *s);
