/* resize.h - which part of a picture, and to what size.
 *
 * A Resize is a plan, made of sizes alone; a Resizer carries it out on rows.
 */
#pragma once

#include "image/parts.h"

/* ---- which part ---- */

/* Random resized crop as torchvision draws it: area in [area_min, area_max] of the image,
 * log-uniform ratio in [ratio_min, ratio_max], ten attempts, then the largest central crop within
 * the ratios. */
Box image_random_box(RngStream *rng, int w, int h, double area_min, double area_max,
                     double ratio_min, double ratio_max);
/* What the shorter side of a w x h image becomes before the centre crop when nothing else is asked
 * for: what covers the crop on both sides, divided by crop_pct and rounded down as timm does, so
 * 256 for 224 x 224, 0.875 and any image. */
#define CROP_PCT 0.875
int image_default_resize(int out_w, int out_h, int w, int h, double crop_pct);

/* One axis of a resize: inputs origin .. origin+in-1 of the picture take part; their interval
 * [from, to), counted from the origin, becomes `size` outputs, of which `n` from `start` on are
 * wanted, and stand at `pad` in the output. */
typedef struct {
    int origin, in;
    double from, to;
    long size, start;
    int n, pad;
} Span;

typedef struct {
    Span x, y;
    const Preprocess *p;
    bool flip; /* left and right, afterwards */
} Resize;

/* See decoder_crop and decoder_eval. */
Resize resize_of_crop(Box b, const Preprocess *p, bool flip);
Resize resize_of_eval(int w, int h, const Preprocess *p);
/* DeiT III's simple random crop of a w x h picture: what covers the output, with MIRRORED pixels of
 * its mirror image around it, and of that any part. Pixels of the mirror image are left out here,
 * and made of the others by resize_mirror, once they are there. */
enum { MIRRORED = 4 };
Resize resize_of_simple_crop(RngStream *rng, int w, int h, const Preprocess *p, bool flip);
void resize_mirror(const Resize *r, uint8_t *out);
/* Input pixels per output pixel, of the axis that has fewer. */
double resize_shrink(const Resize *r);
/* The same of a version of the w x h picture with rw x rh pixels. */
void resize_reduce(Resize *r, int w, int h, int rw, int rh);

/* ---- carried out ---- */

/* The weights of one axis: output i is the sum over k < count[i] of weight[i*taps + k] times input
 * first[i] + k, in fixed point, like Pillow's. */
typedef struct {
    int n, taps;
    int lo, hi; /* inputs that are needed */
    int32_t *first, *count, *weight;
    Room room;
} Axis;

/* What is kept between pictures; zeros at first. */
typedef struct {
    Axis x, y;
    Room wide, summed, narrow;
} Resizer;
void resizer_free(Resizer *s);
/* Pillow's Image.resize: antialiased, separable, the horizontal pass rounded to bytes first. */
bool resizer_run(Resizer *s, const Resize *r, const RowSource *from, uint8_t *out, Error *e);

/* Of pixels in memory, rows of w of them; they cannot fail. */
typedef struct {
    const uint8_t *rgb;
    int w;
    const uint8_t *next;
} PixelRows;
RowSource rows_of_pixels(PixelRows *p);
