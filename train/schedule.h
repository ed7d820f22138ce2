/* schedule.h - how long a run is, and its learning rate step by step. */
#pragma once

#include "train/session.h"

/* Learning rate of step 0, 1, ..., total-1 of a run, as the flags have it. Warm-up: lr * (step+1) /
 * warmup, so that the first step already learns and the last warm-up step has the peak; then, with
 * f = (step - warmup) / (total - warmup), the curve goes from lr at f = 0 towards the floor at f =
 * 1, which it would reach with the step after the last (as optax.warmup_cosine_decay_schedule and
 * timm's per-update scheduler). */
double schedule_lr(const Options *o, uint64_t total, uint64_t step);

void setup_length(Session *s); /* steps of the run */
