/* schedule.h - the learning rate of each step, a pure function; test/test_options.c checks it. */
#pragma once

#include "train/options.h"

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
