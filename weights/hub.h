/* hub.h - what lies beside weights as people download them: how the model was made, and what images
 * it expects.
 *
 * config.json of timm or transformers, and preprocessor_config.json; in a checkpoint of timm's, the
 * args of its training. All of it is optional; what
 * these files do not say stays unknown.
 */
#pragma once

#include "model/config.h"
#include "util/names.h"

typedef struct {
    char from[256];                /* the files that were read, "" for none */
    int width, layers, mlp, patch; /* 0: unknown */
    int heads, image_h, image_w;
    int head_width; /* where `heads` is unknown; 0: unknown as well */
    bool timm;      /* names one of timm's architectures, whose habits are known */
    double eps;     /* of the norms; < 0: unknown */
    int act;        /* ACT_*; ACT_NONE: unknown */
    int pool;       /* POOL_*; -1: unknown */
    bool pools_all; /* the pooling sees the tokens before the patches too */
    bool several;   /* classes may be there at once: each has a probability of its own */
    bool has_mean;  /* both mean and std are known */
    double mean[3], std[3];
    double crop_pct;   /* size of the crop / shorter side before it; 0: unknown */
    int interpolation; /* FILTER_* of image/image.h: 0 bilinear, 1 bicubic; -1: unknown */
    int crop;          /* CROP_* of it: 0 centre, 1 stretch, 2 squash; -1: unknown */
    char unknown[128]; /* what of that is said and has no equal here; "" for nothing */
} Hub;

/* Of the folder that `path`, a file of weights, is in. False and an error where a file there is
 * damaged, or asks for what the model cannot compute (an activation, a norm). */
bool hub_read(const char *path, Hub *h, Error *e);
/* What timm's train.py was asked for, in the form of its config.json, onto h. As in timm
 * (data/config.py), it goes before a pretrained_cfg; where neither says what the images were, a
 * plain architecture's own does. */
bool hub_args(const char *path, const char *args, Hub *h, Error *e);
/* Names of the K classes, by config.json, in `out`, which is empty. False where it does not name
 * each of them; then e (or NULL) says what it lacks, or is "" where it names none. */
bool hub_labels(const char *path, int K, Names *out, Error *e);
