/* formulas.h - what the formulas of several ops share: dropout, sums of products; the state. */
#pragma once

#include "test/mats.h"

static const double pi = 3.14159265358979323846;

/* The factor of one element, 0 or 1/(1-p), from the definition above Drop in backend.h. */
static double drop_factor(Drop d, long sample, long element)
{
    if (d.p <= 0)
        return 1;
    Philox r = rng_block(st.seed, (uint32_t)(element / 4), st.sample0 + (uint32_t)sample, st.step,
                         d.purpose, d.layer);
    return r.v[element % 4] >= rng_threshold(d.p) ? 1 / (1 - d.p) : 0;
}

/* Which columns (of attention: heads), of how many, a case's matrix has; of = 0: all of them. */
static struct {
    int first, of;
} cut;

static Drop drop_of(double p, int purpose, int layer)
{
    return (Drop){.p = p, .purpose = purpose, .layer = layer, .first = cut.first, .of = cut.of};
}

/* Where (row, column) of a matrix [.., cols] stands in the whole one. */
static long whole(long row, long col, long cols)
{
    return row * (cut.of ? cut.of : cols) + cut.first + col;
}

/* Sum of products of n elements, `sa` and `sb` apart. */
static double dot(const double *a, long sa, const double *b, long sb, long n)
{
    double s = 0;
    for (long i = 0; i < n; i++)
        s += a[i * sa] * b[i * sb];
    return s;
}

static StepState state_now(void)
{
    StepState s;
    be->download(&s, st_dev, sizeof s);
    return s;
}
