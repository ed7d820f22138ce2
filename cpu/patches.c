/* patches.c - images to patches on the CPU: what Patchify in backend.h says, a row of the matrix at
 * a time. In this order: a pixel, a row of pixels, a patch. */
#include "cpu/patches.h"

#include "util/rng.h"

#include <string.h>

#define MIN(a, b)        ((a) < (b) ? (a) : (b))
#define CLAMP(x, lo, hi) ((x) < (lo) ? (lo) : (x) > (hi) ? (hi) : (x))

static const Augment *augment_of(const Patchify *a, int b)
{
    static const Augment none = {.lambda = 1};
    return a->augment ? (const Augment *)a->augment + b : &none;
}

/* The three bytes of a pixel of image b, in u8 images [B,H,W,3] */
static const uint8_t *pixel_bytes(const Patchify *a, int b, int y, int x)
{
    return (const uint8_t *)a->images + (((long)b * a->H + y) * a->W + x) * VIT_CHANNELS;
}

static bool in_rect(const Rect *r, int y, int x)
{
    return y >= r->y && y < r->y + r->h && x >= r->x && x < r->x + r->w;
}

/* Pixel (row y, column x) of channel c of image b, as Augment wants it before images are mixed:
 * erased, or clamp(M rgb / 255 + t, 0, 1) and then (v - mean) / std. Colours are in double, as the
 * table of normalised bytes is. */
static real augmented(const Patches *p, int b, int c, int y, int x)
{
    const Patchify *a = p->a;
    const StepState *s = p->state;
    const Augment *g = augment_of(a, b);
    if (g->erase && in_rect(&g->erased, y, x)) {
        if (g->erase == ERASE_ZERO)
            return 0;
        Philox r = rng_block(s->seed, (uint32_t)((c * a->H + y) * a->W + x),
                             s->sample0 + (uint32_t)b, s->step, RNG_ERASE, 0);
        return (real)rng_normal(rng_unit(r.v[0]), rng_unit(r.v[1]));
    }
    const uint8_t *in = pixel_bytes(a, b, y, x);
    if (!g->use_colour)
        return p->table[c][in[c]];
    double v = (double)g->colour[9 + c];
    for (int k = 0; k < 3; k++)
        v += (double)g->colour[3 * c + k] * in[k] / 255.0;
    return (real)((CLAMP(v, 0, 1) - a->mean[c]) / a->std[c]);
}

/* out [n] += scale * n pixels of a row of channel c of image b, from (y, x) on. Three kinds: float
 * images [B,3,H,W], which are taken as they are; bytes that `augmented` changes; bytes that are
 * only normalised, by a table. */
static void row_add(real *out, const Patches *p, int b, int c, int y, int x, int n, real scale)
{
    const Patchify *a = p->a;
    const Augment *g = augment_of(a, b);
    if (scale == 0)
        return;
    if (!a->u8) {
        const real *images = (const real *)a->images;
        const real *in = images + (((long)b * VIT_CHANNELS + c) * a->H + y) * a->W + x;
        for (int j = 0; j < n; j++)
            out[j] += scale * in[j];
    } else if (g->use_colour || g->erase) {
        for (int j = 0; j < n; j++)
            out[j] += scale * augmented(p, b, c, y, x + j);
    } else {
        const uint8_t *in = pixel_bytes(a, b, y, x) + c;
        for (int j = 0; j < n; j++)
            out[j] += scale * p->table[c][in[j * VIT_CHANNELS]];
    }
}

/* out [3,P,P] += patch (py, px) of image b: pixels in `cut` with weight `inside`, the others with
 * weight `outside`. A row that meets `cut` has three parts: left of it, in it, right of it. */
static void patch_add(real *out, const Patches *p, int b, int py, int px, Rect cut, real inside,
                      real outside)
{
    const int P = p->a->P, x0 = px * P, x1 = x0 + P;
    int from = cut.x < x0 ? x0 : cut.x, to = MIN(cut.x + cut.w, x1);
    for (int c = 0; c < VIT_CHANNELS; c++)
        for (int i = 0; i < P; i++) {
            real *o = out + (c * P + i) * P;
            int y = py * P + i;
            if (from >= to || y < cut.y || y >= cut.y + cut.h) {
                row_add(o, p, b, c, y, x0, P, outside);
                continue;
            }
            row_add(o, p, b, c, y, x0, from - x0, outside);
            row_add(o + from - x0, p, b, c, y, from, to - from, inside);
            row_add(o + to - x0, p, b, c, y, to, x1 - to, outside);
        }
}

Patches patches_of(const Patchify *a, const StepState *state)
{
    Patches p = {.a = a, .state = state, .rows = a->B * (a->H / a->P) * (a->W / a->P)};
    for (int c = 0; c < VIT_CHANNELS; c++)
        for (int v = 0; v < 256; v++)
            p.table[c][v] = (real)((v / 255.0 - a->mean[c]) / a->std[c]);
    return p;
}

/* The sum of two: image b outside `cut` with weight lambda, and its partner, with weight 1 in `cut`
 * and 1 - lambda outside */
void patches_row(real *out, const Patches *p, int i)
{
    int gh = p->a->H / p->a->P, gw = p->a->W / p->a->P;
    int b = i / (gh * gw), py = i / gw % gh, px = i % gw;
    const Augment *g = augment_of(p->a, b);
    real lambda = (real)g->lambda;
    memset(out, 0, (size_t)(VIT_CHANNELS * p->a->P * p->a->P) * sizeof(real));
    patch_add(out, p, b, py, px, g->cut, 0, lambda);
    patch_add(out, p, g->partner, py, px, g->cut, 1, 1 - lambda);
}
