/* images.h - from images to tokens: patches, with what happens to pixels on the way; embedding. */
#pragma once

#include "test/ops/formulas.h"

typedef struct {
    int B, H, W, P, pad;
    bool u8;
    int augment; /* 0, MIX or ALL */
} PatchCase;
enum { MIX = 1, ALL };

static const PatchCase patch_cases[] = {
    {1, 32, 32, 4, 0, 1, 0},    {3, 12, 20, 4, 5, 1, MIX}, {2, 9, 15, 3, 0, 0, 0},
    {3, 14, 7, 7, 3, 0, MIX},   {1, 1, 1, 1, 2, 1, 0},     {5, 32, 48, 16, 0, 1, ALL},
    {12, 10, 14, 2, 3, 1, ALL}, {1, 24, 16, 8, 0, 1, ALL}, {5, 16, 24, 8, 0, 0, ALL},
};

/* Boxes in and across patches, to the edges, and the whole image. */
static Rect rect(const PatchCase *c, int k)
{
    int y = k * 3 % c->H, x = k * 5 % c->W;
    if (k == 8)
        return (Rect){0, 0, c->H, c->W};
    if (k % 5 == 4)
        return (Rect){y, x, c->H - y, c->W - x};
    return (Rect){y, x, 1 + (c->H - y) / 2, 1 + (c->W - x) / 3};
}

/* What may be asked for image b, in turn: shares and cut boxes alone and together, and neither;
 * some of the colour maps leave 0..1. The images of floats are only mixed, whatever else is asked
 * for. */
static Augment augment(const PatchCase *c, int b)
{
    static const float lambda[] = {0.3f, 1, 0.85f, 0};
    Augment a = {.lambda = lambda[b % 4], .partner = (2 * b + 2) % c->B};
    if (b % 3 == 2 || b == 1)
        a.cut = rect(c, b + 3);
    if (c->augment < ALL)
        return a;
    a.use_colour = b % 3 != 1;
    for (int i = 0; i < 12; i++)
        a.colour[i] = (float)(i < 9 ? (i % 4 == 0) + 0.3 * draw() : 0.2 * draw());
    a.erase = (b + 1) % 3;
    a.erased = rect(c, b);
    return a;
}

static bool within(Rect r, long y, long x)
{
    return y >= r.y && y - r.y < r.h && x >= r.x && x - r.x < r.w;
}

/* Channel ch at (y, x) of image b of bytes [B,H,W,3], augmented and normalised. */
static double pixel(const Patchify *p, const uint8_t *bytes, const Augment *a, long b, int ch,
                    int y, int x)
{
    const uint8_t *rgb = bytes + ((b * p->H + y) * p->W + x) * 3;
    double v = rgb[ch] / 255.0;
    if (a->use_colour) {
        v = (double)a->colour[9 + ch];
        for (int k = 0; k < 3; k++)
            v += (double)a->colour[3 * ch + k] * rgb[k] / 255;
        v = fmin(fmax(v, 0), 1);
    }
    if (a->erase && within(a->erased, y, x)) {
        Philox r = rng_block(st.seed, (uint32_t)((ch * p->H + y) * p->W + x),
                             st.sample0 + (uint32_t)b, st.step, RNG_ERASE, 0);
        return a->erase == ERASE_ZERO
                   ? 0
                   : sqrt(-2 * log(rng_unit(r.v[0]))) * cos(2 * pi * rng_unit(r.v[1]));
    }
    return (v - p->mean[ch]) / p->std[ch];
}

static void patchify(const PatchCase *c)
{
    begin(PLAIN, "patchify B %d %dx%d patch %d u8 %d augment %d", c->B, c->H, c->W, c->P, c->u8,
          c->augment);
    long gw = c->W / c->P, Np = c->H / c->P * gw, PP = (long)c->P * c->P;
    long pixels = (long)c->H * c->W, n = c->B * pixels * VIT_CHANNELS;
    Mat *images = real_vec("images", IN, n);
    Mat *out = mat("out", OUT, c->B * Np, VIT_CHANNELS * PP, c->pad);
    Augment aug[12];
    uint8_t *bytes = xmalloc((size_t)n);
    dev *bytes_dev = be->alloc((size_t)n), *aug_dev = be->alloc(sizeof aug);
    Patchify a = {tensor(out),
                  c->u8 ? bytes_dev : pointer(images),
                  c->u8,
                  c->augment ? aug_dev : NULL,
                  c->B,
                  c->H,
                  c->W,
                  c->P,
                  {0.485, 0.456, 0.406},
                  {0.229, 0.224, 0.225}};
    for (long i = 0; i < n; i++)
        bytes[i] = (uint8_t)philox(3, (uint32_t)i, 0, 0, 0).v[0];
    for (int b = 0; b < c->B; b++)
        aug[b] = augment(c, b);
    be->upload(bytes_dev, bytes, (size_t)n);
    be->upload(aug_dev, aug, (size_t)c->B * sizeof *aug);
    be->patchify(&a);
    for (long i = 0; i < out->rows * out->cols; i++) {
        long b = i / out->cols / Np, patch = i / out->cols % Np, ch = i % out->cols / PP;
        long y = patch / gw * c->P + i % PP / c->P, x = patch % gw * c->P + i % c->P;
        double v[2] = {0}, lambda = c->augment ? (double)aug[b].lambda : 1;
        if (c->augment && within(aug[b].cut, y, x))
            lambda = 0;
        for (int k = 0; k < (lambda < 1 ? 2 : 1); k++) {
            long image = k ? aug[b].partner : b;
            if (c->u8)
                v[k] = pixel(&a, bytes, c->augment ? &aug[image] : &(Augment){0}, image, (int)ch,
                             (int)y, (int)x);
            else
                v[k] = images->v[(image * VIT_CHANNELS + ch) * pixels + y * c->W + x];
        }
        out->v[i] = lambda * v[0] + (1 - lambda) * v[1];
    }
    finish(EXACT);
    be->release(bytes_dev);
    be->release(aug_dev);
    free(bytes);
}

typedef struct {
    int B, T, cls, C, pad;
    double drop;
    bool dbias, no_pos;
} EmbedCase;

static const EmbedCase embed_cases[] = {
    {1, 197, 1, 48, 0, 0, 1, 0}, {3, 65, 0, 17, 5, 0, 0, 0}, {2, 257, 8, 80, 3, 0.1, 1, 0},
    {5, 2, 1, 7, 0, 0.5, 1, 0},  {9, 1, 1, 24, 48, 0, 0, 1}, {3, 4, 4, 17, 0, 0.3, 0, 1},
};

/* Forward: x = factor (source + pos), the source being a class token or a patch; backward the sums
 * over images of factor dx, where dx may be destroyed: sums of what is then stored, or of what is
 * not yet rounded. */
static void embed(const EmbedCase *c, bool backward)
{
    begin(PLAIN, "embed_%s B %d T %d", backward ? "backward" : "forward", c->B, c->T);
    long Np = c->T - c->cls, first = (long)c->cls * c->C, each = (long)c->T * c->C;
    long n_pos = c->no_pos ? 0 : each;
    int in = backward ? OUT : IN, out = !backward ? OUT : c->drop > 0 ? SCRATCH : IN;
    int type = backward ? F32 : under.type; /* gradients of parameters are real */
    Mat *x = mat("x", out, (long)c->B * c->T, c->C, c->pad);
    Mat *patches = mat("patches", in, c->B * Np, c->C, 2 * c->pad);
    Mat *cls = mat_of(type, "cls", in, 1, first, 0), *pos = mat_of(type, "pos", in, 1, n_pos, 0);
    Mat *dbias = real_vec("dbias", OUT, backward && c->dbias ? c->C : 0);
    Embed a = {tensor(x),      tensor(patches),
               pointer(cls),   pointer(pos),
               pointer(dbias), c->B,
               c->T,           c->cls,
               c->C,           drop_of(c->drop, RNG_EMBED_DROPOUT, 0)};
    (backward ? be->embed_backward : be->embed_forward)(&a);
    int n = backward && is_half(under.type) ? 2 : 1;
    Mat *sums_of[] = {pos, cls};
    for (int j = 0; j < 2; j++)
        if (sums_of[j]) {
            ways(sums_of[j], n);
            sums_of[j]->sums = backward;
        }
    for (long i = 0; i < c->B * each; i++) {
        long b = i / each, e = i % each;
        double factor = drop_factor(a.drop, b, e), dx = factor * x->v[i];
        double *patch = e < first ? NULL : &patches->v[b * Np * c->C + e - first];
        if (!backward)
            x->v[i] = factor * ((patch ? *patch : cls->v[e]) + (pos ? pos->v[e] : 0));
        else if (patch)
            *patch = dx;
        for (int k = 0; backward && k < n; k++) {
            double *sums[] = {pos ? &pos->way[k][e] : NULL, patch ? NULL : &cls->way[k][e]};
            for (int j = 0; j < 2; j++)
                if (sums[j])
                    *sums[j] = (b ? *sums[j] : 0) + (k ? rounded(dx) : dx);
        }
    }
    if (backward)
        sum_columns(dbias, patches);
    finish(EXACT);
}
