/* schedule.h - what changes from step to step on the host: learning rate, mixup, soft targets.
 *
 * Pure functions of their arguments; test/test_options.c checks them by themselves.
 */
#ifndef SCHEDULE_H
#define SCHEDULE_H

#include "options.h"

typedef struct {
    int kind;               /* SCHEDULE_* */
    double lr, floor;       /* peak, and the lowest after the warm-up */
    uint64_t warmup, total; /* steps */
    uint64_t step_size;     /* steps between drops (SCHEDULE_STEP) */
    double gamma;           /* factor of a drop */
} Schedule;

/* Learning rate of step 0, 1, ..., total-1. Warm-up: lr * (step+1) / warmup, so that the first step
 * already learns and the last warm-up step has the peak; then, with f = (step - warmup) / (total -
 * warmup), the curve goes from lr at f = 0 towards the floor at f = 1, which it would reach with
 * the step after the last (as optax.warmup_cosine_decay_schedule and timm's per-update scheduler).
 */
double schedule_lr(const Schedule *s, uint64_t step);

/* lambda ~ Beta(alpha, alpha), drawn in double from (seed, step) (Zhang et al. 2018). */
double mixup_lambda(double alpha, uint64_t seed, uint32_t step);

/* Targets [n, K]: label smoothing (1 - s) onehot + s / K, and where mixed, lambda of the own and
 * 1 - lambda of the partner's; the partner of image i is image n-1-i. augment [n] is
 * filled if mixed.
 */
void soft_targets(real *targets, const int *labels, int n, int K, double smoothing, bool mixed,
                  double lambda, Augment *augment);

#endif
