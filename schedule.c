/* schedule.c - learning rate, mixup and soft targets as pure functions; see schedule.h. */
#include "schedule.h"

#include <math.h>
#include <string.h>

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

/* Gamma(shape, 1): Marsaglia & Tsang, "A simple method for generating gamma variables", 2000. For
 * shape < 1 it draws Gamma(shape + 1) and returns the log of that times U^(1/shape): the power
 * underflows for small shapes, its log does not. */
static double log_gamma_draw(double shape, RngStream *rng)
{
    double boost = 0;
    if (shape < 1) {
        boost = log(rng_next(rng)) / shape;
        shape += 1;
    }
    double d = shape - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (;;) {
        double radius = sqrt(-2 * log(rng_next(rng)));
        double x = radius * cos(2 * M_PI * rng_next(rng)); /* normal (Box-Muller) */
        double v = 1 + c * x, u = rng_next(rng);
        v = v * v * v;
        if (v > 0 && log(u) < 0.5 * x * x + d - d * v + d * log(v))
            return log(d * v) + boost;
    }
}

double mixup_lambda(double alpha, uint64_t seed, uint32_t step)
{
    RngStream rng = {.seed = seed, .step = step, .purpose = RNG_MIXUP};
    double a = log_gamma_draw(alpha, &rng), b = log_gamma_draw(alpha, &rng);
    return 1 / (1 + exp(b - a)); /* A / (A + B) */
}

void soft_targets(real *targets, const int *labels, int n, int K, double smoothing, bool mixed,
                  double lambda, Augment *augment)
{
    for (int i = 0; i < n; i++) {
        real *row = targets + (size_t)i * (size_t)K;
        int partner = n - 1 - i;
        for (int k = 0; k < K; k++)
            row[k] = (real)(smoothing / K);
        if (!mixed) {
            row[labels[i]] += (real)(1 - smoothing);
            continue;
        }
        /* the model mixes the images with lambda in float: the targets use the same number */
        augment[i] = (Augment){.lambda = (float)lambda, .partner = partner};
        row[labels[i]] += (real)((1 - smoothing) * (double)(float)lambda);
        row[labels[partner]] += (real)((1 - smoothing) * (1 - (double)(float)lambda));
    }
}
