/* schedule.c - how long a run is, and its learning rate step by step. See schedule.h. */
#include "train/schedule.h"

#include "util/report.h"
#include "util/text.h"

#include <math.h>

double schedule_lr(const Options *o, uint64_t total, uint64_t step)
{
    uint64_t warmup = o->warmup_steps < 0 ? total / 20 : (uint64_t)o->warmup_steps;
    if (step < warmup)
        return o->lr * (double)(step + 1) / (double)warmup;
    double f = total > warmup ? (double)(step - warmup) / (double)(total - warmup) : 0;
    if (f > 1)
        f = 1; /* a run that goes on after its schedule stays at the floor */
    double span = o->lr - o->lr_floor;
    if (o->schedule == SCHEDULE_COSINE)
        return o->lr_floor + span * 0.5 * (1 + cos(M_PI * f));
    if (o->schedule == SCHEDULE_LINEAR)
        return o->lr_floor + span * (1 - f);
    if (o->schedule == SCHEDULE_CONSTANT)
        return fmax(o->lr, o->lr_floor);
    uint64_t third = total / 3 ? total / 3 : 1;
    uint64_t drops = (step - warmup) / (o->step_size ? (uint64_t)o->step_size : third);
    return fmax(o->lr * pow(o->step_gamma, (double)drops), o->lr_floor);
}

/* --steps, or as many as it takes to see the rest of --epochs. */
static double steps_of(const Session *s, const Options *o)
{
    const RunState *r = &s->state; /* a resumed run may have had another batch size before */
    double left = o->epochs * (double)data_count(s->train) - (double)r->samples;
    if (o->steps)
        return (double)o->steps;
    return (double)r->step + ceil(left / (double)o->batch_size);
}

/* The curve of the learning rate is that of the whole run: a longer one is at another place of it.
 */
static void describe_lr(const Session *s)
{
    uint64_t step = s->state.step;
    double total = s->changed ? steps_of(s, &s->before) : 0;
    bool longer = total > 0 && total <= 4294967295.0 && total != (double)s->steps;
    if (step == 0 || step >= s->steps || !longer)
        return;
    double was = schedule_lr(&s->before, (uint64_t)total, step - 1);
    double expected = schedule_lr(&s->before, (uint64_t)total, step);
    double is = schedule_lr(&s->o, s->steps, step);
    if (fabs(is - expected) > 1e-9 * expected)
        printf("          lr goes from %.2g to %.2g: the schedule is now that of %s, not %.0f "
               "(--lr, --schedule)\n",
               was, is, amount((double)s->steps, "step").s, total);
}

void setup_length(Session *s)
{
    const Options *o = &s->o;
    double steps = steps_of(s, o);
    if (steps > 4294967295.0)
        die_usage("lower --epochs or raise --batch-size", "%g steps are more than a run can count",
                  steps);
    s->steps = steps < 0 ? 0 : (uint64_t)steps;
    if (s->steps <= s->state.step)
        return; /* there is nothing left to do */
    printf("plan      %s of %s%s", amount((double)s->steps, "step").s,
           amount((double)o->batch_size, "image").s, s->micro < o->batch_size ? ", " : "\n");
    if (s->micro < o->batch_size)
        printf("%d at a time\n", s->micro);
    describe_lr(s);
    if (o->batch_size > data_count(s->train) && data_count(s->train) > 0)
        warn_of(s,
                "a step takes %ld images, and there are %ld to train on: every step goes over them "
                "%.1f times; lower --batch-size for more steps of other images",
                o->batch_size, data_count(s->train),
                (double)o->batch_size / (double)data_count(s->train));
    if (o->warmup_steps > 0 && (uint64_t)o->warmup_steps > s->steps)
        warn_of(s,
                "--warmup-steps %ld in a run of %s: the learning rate rises to the end, and comes "
                "to %.3g of --lr %g; -1 is a twentieth of the run",
                o->warmup_steps, amount((double)s->steps, "step").s,
                schedule_lr(o, s->steps, s->steps - 1), o->lr);
    if (o->lr == 0)
        warn_of(s, "--lr 0: nothing will be learned");
    if (mix_mixes(o))
        printf("mixing    within groups of %ld images\n", o->mix_group);
}
