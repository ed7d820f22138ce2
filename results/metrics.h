/* metrics.h - what an evaluation comes to, from what the model said of each image.
 *
 * Everything is counted in the order of the images, so that it does not depend on which rank has
 * computed which of them. */
#pragma once

#include "util/real.h"
#include "util/util.h"

/* What the model said of one image. All numbers are doubles: ranks send them to each other. */
typedef struct {
    double loss, top1, top5;  /* as the loss operation has them; hits are 0 or 1 */
    double label, prediction; /* classes; the prediction is the label where top1 is 1 alone */
    double probability;       /* of the prediction */
    double truth;             /* of the label */
    double margin;            /* two classes: logit of class 1 - logit of class 0; else 0 */
} Outcome;

/* From an image's logits z [K] and its `stats`, {loss, top-1 hit, top-5 hit}. Probabilities are
 * softmax(z), or sigmoid(z) of each class. */
Outcome outcome_of(const real *z, int K, bool sigmoid, int label, const real *stats);

/* Probabilities of logits z [K] into p [K]. */
void probabilities(const real *z, int K, bool sigmoid, double *p);

enum { ECE_BINS = 15 };
typedef struct {
    long images, predicted, correct; /* of this label; as this label; both */
    double accuracy, precision, f1;  /* percent; NAN where there is nothing to divide by */
} ClassMetrics;

/* Images of class `label` that were taken for class `prediction`. */
typedef struct {
    int label, prediction;
    long images;
} Confusion;

typedef struct {
    int K;
    long images;
    double top1, top5; /* percent */
    double loss;       /* mean */
    double balanced;   /* mean over the classes that occur of their accuracy, percent */
    double macro_f1;   /* mean F1 of the classes that occur or were predicted, percent */
    /* Expected calibration error, percent: sum over 15 equal bins of the prediction's probability
     * of |accuracy - mean probability|, weighted by their images (Guo et al. 2017). */
    double ece;
    double auc;            /* area under the ROC curve of class 1 of two, percent; else NAN */
    ClassMetrics *classes; /* [K] */
    Confusion *confused;   /* [n_confused] by label, then prediction; those that occur alone, */
    long n_confused;       /* right ones too */
    long calibration[ECE_BINS][2]; /* images of a bin, and those of them that were right */
    double confidence[ECE_BINS];   /* mean probability there */
} Metrics;

Metrics metrics_of(const Outcome *o, long n, int K);
void metrics_free(Metrics *m);
/* The images by how wrong they were: the least probability of the label first. Up to `most` of
 * those that were wrong, or of those that were right, into `out`; how many. */
long metrics_worst(const Outcome *o, long n, long most, long *out);
/* Such as stand for those that were right: evenly spread over the set. */
long metrics_right(const Outcome *o, long n, long most, long *out);
