/* flip.c - evaluating an image together with its mirror image. See flip.h.
 *
 * The device has the logits of either in turn; their mean, and what follows from it, is made here.
 */
#include "train/flip.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* out [H, W, 3] from right to left. */
static void mirror(uint8_t *out, const uint8_t *in, int h, int w)
{
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++)
            memcpy(out + 3 * ((size_t)y * (size_t)w + (size_t)x),
                   in + 3 * ((size_t)y * (size_t)w + (size_t)(w - 1 - x)), 3);
}

void flip_logits(Session *s, int n, const uint8_t *images, const real *targets, real *logits)
{
    const Config *c = &s->config;
    size_t bytes = vit_image_bytes(c, true), count = (size_t)n * (size_t)c->classes;
    uint8_t *mirrored = images ? xmalloc((size_t)n * bytes) : NULL;
    real *other = xcalloc(count, sizeof *other);
#pragma omp parallel for schedule(static)
    for (int i = 0; i < (images ? n : 0); i++)
        mirror(mirrored + (size_t)i * bytes, images + (size_t)i * bytes, c->image_h, c->image_w);
    vit_logits(s->m, logits);
    vit_set_batch(s->m, n, mirrored, true, targets, NULL);
    vit_evaluate(s->m);
    vit_logits(s->m, other);
    for (size_t k = 0; k < count; k++)
        logits[k] = (logits[k] + other[k]) / 2;
    free(mirrored);
    free(other);
}

/* -log softmax(z)[label], or the sum of the binary cross-entropies. */
static double loss_of(const Config *c, const real *z, int label)
{
    double top = (double)z[0], sum = 0, binary = 0;
    for (int k = 1; k < c->classes; k++)
        top = fmax(top, (double)z[k]);
    for (int k = 0; k < c->classes; k++) {
        double v = (double)z[k];
        sum += exp(v - top);
        binary += fmax(v, 0) - (k == label ? v : 0) + log1p(exp(-fabs(v)));
    }
    return c->loss == LOSS_SIGMOID ? binary : top + log(sum) - (double)z[label];
}

void flip_stats(const Config *c, int n, const real *logits, const int *labels, real *stats)
{
    for (int i = 0; i < n; i++) {
        const real *z = logits + (size_t)i * (size_t)c->classes;
        bool finite = isfinite((double)z[labels[i]]);
        int above = 0; /* classes that are as likely as the label: a tie counts against it */
        for (int k = 0; k < c->classes; k++)
            above += k != labels[i] && !(z[k] < z[labels[i]]);
        stats[3 * i] = (real)loss_of(c, z, labels[i]);
        stats[3 * i + 1] = finite && above < 1;
        stats[3 * i + 2] = finite && above < 5;
    }
}
