/* optimizer.h - the entries of backend.h that change parameters on the CPU, from fp32 alone or to
 * working weights in bf16 besides. */
#pragma once

#include "backend.h"

/* The StepState that all of them read and finish_norm and scale_loss write */
void optimizer_bind(dev *state);

void optimizer_sum_squares(dev *partial, const dev *x, const dev *chunks, int n);
void optimizer_finish_norm(const dev *partial, int n, double max_norm);
void optimizer_adam(const OptStep *a);
void optimizer_sgd(const OptStep *a);
void optimizer_lamb_direction(const OptStep *a);
void optimizer_lamb_apply(const OptStep *a);
void optimizer_round_weights(const OptStep *a);
void optimizer_scale_loss(const LossScaling *s);
