/* loss.c - loss, gradient and hits of one image on the CPU. In double: they are sums over up to
 * thousands of classes, and cost nothing beside the rest. */
#include "cpu/loss.h"

#include <math.h>

/* With z, y, dz [K] logits, targets and gradient (NULL: not wanted):
 *   loss = sum_k y_k (lse - z_k),  lse = log(sum(exp(z)))
 *   dz   = scale (softmax(z) sum(y) - y) */
static double softmax_row(const real *z, const real *y, real *dz, int K, double scale)
{
    double top = (double)z[0], sum = 0, mass = 0, loss = 0;
    for (int k = 1; k < K; k++)
        top = (double)z[k] > top ? (double)z[k] : top;
    for (int k = 0; k < K; k++)
        sum += exp((double)z[k] - top);
    double lse = top + log(sum);
    for (int k = 0; k < K; k++) {
        if (y[k] != 0) /* 0 times an infinite lse - z is no loss */
            loss += (double)y[k] * (lse - (double)z[k]);
        mass += (double)y[k];
    }
    for (int k = 0; dz && k < K; k++)
        dz[k] = (real)(scale * (exp((double)z[k] - lse) * mass - (double)y[k]));
    return loss;
}

/* The same for binary cross-entropies, written so that no exponential overflows:
 *   loss = sum_k max(z,0) - z y + log(1 + e^-|z|)
 *   dz   = scale (sigmoid(z) - y) */
static double sigmoid_row(const real *z, const real *y, real *dz, int K, double scale)
{
    double loss = 0;
    for (int k = 0; k < K; k++) {
        double v = (double)z[k], e = exp(-fabs(v));
        loss += (v > 0 ? v : 0) - v * (double)y[k] + log1p(e);
        if (dz)
            dz[k] = (real)(scale * ((v >= 0 ? 1 : e) / (1 + e) - (double)y[k]));
    }
    return loss;
}

/* The label is the first of the largest targets, and `above` counts the logits that are not below
 * its own. */
void loss_of_image(const Loss *a, const StepState *state, int b, const real *z, real *dz)
{
    int K = a->K, label = 0, above = 0;
    double scale = a->scale * state->loss_scale;
    const real *y = (const real *)a->targets + (long)b * K;
    real *stats = (real *)a->stats + 3L * (state->sample0 + (uint32_t)b);
    double loss =
        a->kind == LOSS_SOFTMAX ? softmax_row(z, y, dz, K, scale) : sigmoid_row(z, y, dz, K, scale);
    for (int k = 1; k < K; k++)
        label = y[k] > y[label] ? k : label;
    for (int k = 0; k < K; k++) /* not >=, so that NaN counts as above */
        above += k != label && !(z[k] < z[label]);
    bool finite = isfinite(z[label]);
    stats[0] = (real)loss;
    stats[1] = finite && above < 1;
    stats[2] = finite && above < 5;
}
