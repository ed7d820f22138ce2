/* schedule.c - the learning rate as a pure function; see schedule.h. */
#include "train/schedule.h"

#include <math.h>

double schedule_lr(const Schedule *s, uint64_t step)
{
    if (step < s->warmup)
        return s->lr * (double)(step + 1) / (double)s->warmup;
    double f =
        s->total > s->warmup ? (double)(step - s->warmup) / (double)(s->total - s->warmup) : 0;
    if (f > 1)
        f = 1; /* a run that goes on after its schedule stays at the floor */
    double lr = s->lr, span = s->lr - s->floor;
    if (s->kind == SCHEDULE_COSINE)
        return s->floor + span * 0.5 * (1 + cos(M_PI * f));
    if (s->kind == SCHEDULE_LINEAR)
        return s->floor + span * (1 - f);
    if (s->kind == SCHEDULE_STEP && s->step_size)
        lr *= pow(s->gamma, (double)((step - s->warmup) / s->step_size));
    return lr > s->floor ? lr : s->floor;
}
