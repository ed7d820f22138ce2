/* tuning.h - what is particular to training on from weights: which parts learn, and how much a
 * class counts. */
#pragma once

#include "data.h"
#include "train/options.h"
#include "vit.h"

/* Units that --freeze keeps as they are, of a model of so many layers (Plan.frozen); an error where
 * it says neither a number of blocks nor head-only. */
bool tuning_frozen(const Options *o, int layers, int *units, Error *e);
/* Prints what learns, and how fast, where that is not everything alike; `started`: from weights. */
void tuning_describe(const Model *m, bool started);
/* Floating-point operations of one image in training: as many again as forward for each of the
 * backward pass's two products, in the blocks that it goes through. */
double tuning_flops(const Model *m);

/* --class-weights, w [K], for images of `train`: balanced is n / (classes * images of the class).
 * Scaled so that the mean over the training images is 1, because how large a step is, is for --lr
 * to say. Classes without images have 1. */
bool class_weights(const char *spec, const Dataset *train, int K, double *w, Error *e);
/* Prints the smallest and the largest. */
void class_weights_describe(const char *spec, const Dataset *train, const double *w);
/* Targets [n, K] of class k times w[k]: the loss is then -sum_k w_k t_k log p_k, as
 * torch.nn.CrossEntropyLoss(weight=w), but for the mean: over the images, and not their weights. */
void weigh_targets(real *targets, int n, int K, const double *w);
