/* image.h - what a picture is, and what to make of it.
 *
 * Pixels are uint8 RGB, [h, w, 3]; the model normalises them. What is random is a function of a
 * View: which sample, in which epoch. decoder.h reads files, resize.h chooses a part and its size,
 * augment.h changes it at random by the operations of pixels.h, write.h makes files again.
 */
#pragma once

#include "util/rng.h"
#include "util/util.h"

typedef struct {
    int w, h;
    uint8_t *rgb; /* [h, w, 3]; image_free() */
} Image;

typedef struct {
    int left, top, width, height;
} Box;

enum { FILTER_BILINEAR, FILTER_BICUBIC, FILTER_NEAREST }; /* nearest: image_op alone */
enum { CROP_CENTER, CROP_STRETCH, CROP_SQUASH };
enum { TRAIN_CROP_RESIZED, TRAIN_CROP_SIMPLE };
/* exact: as Pillow decodes. fast: JPEG at 1/2, 1/4 or 1/8 scale while at least twice the size that
 * is needed remains. */
enum { DECODE_EXACT, DECODE_FAST };

/* Pixels an image may have, where they must all be in memory at once, before it is refused as a
 * decompression bomb (Pillow's error limit). Formats that are read row by row, or tile by tile, are
 * bounded by their sides alone. */
#define IMAGE_MAX_PIXELS 178956970L
/* Its longest side (JPEG's limit): the scratch of a resize grows with it. A TIFF may be longer, not
 * what is read of it. */
#define IMAGE_MAX_SIDE 65500

/* What to make of a picture: [out_h, out_w, 3]. */
typedef struct {
    int out_w, out_h;
    int filter, decode; /* FILTER_*, DECODE_* */
    int crop, resize;   /* evaluation: CROP_*, shorter side (0: image_default_resize) */
    double crop_pct;    /* of that: what the crop keeps of the shorter side (0: CROP_PCT) */
    bool augment;       /* training: random crop, flip and `changes`; else evaluation */
    int train_crop;     /* TRAIN_CROP_*; areas and ratios are of the resized one */
    double area_min, area_max, ratio_min, ratio_max, flip; /* flip: how probable it is */
    const struct Augmentation *changes;                    /* the caller's, or NULL */
} Preprocess;

/* One look at a sample. Repeated augmentation shows a sample several times in an epoch. */
typedef struct {
    uint64_t seed;
    uint32_t sample, epoch, repeat;
} View;

/* What is drawn for a view, each from a stream of its own. Part of every run's bits: append. */
enum { DRAW_BOX, DRAW_FLIP, DRAW_JITTER, DRAW_POLICY };
static inline RngStream view_draw(View v, int what)
{
    return (RngStream){.seed = v.seed,
                       .sample = v.sample,
                       .step = v.epoch,
                       .purpose = RNG_AUGMENT,
                       .layer = what + 16 * (int)v.repeat};
}

typedef struct Augmentation Augmentation; /* augment.h */
typedef struct Decoder Decoder;           /* decoder.h */
