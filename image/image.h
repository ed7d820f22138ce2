/* image.h - pictures: from files to pixels, to the size a model wants, and changed at random.
 *
 * Pixels are uint8 RGB, [h, w, 3]; the model normalises them. What is random is a function of a
 * View: which sample, in which epoch.
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
enum { CROP_CENTER, CROP_STRETCH };
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

/* ---- image.c: image files (JPEG in jpeg.c, TIFF in tiff.c) ---- */

/* A whole picture: JPEG (CMYK and YCCK converted as Pillow does), PNG, GIF, BMP, PPM, PGM, WebP or
 * TIFF, by content and not by name; EXIF orientation applied. Truncated or corrupt data is an
 * error, as in Pillow. */
bool image_decode(const uint8_t *bytes, size_t n, Image *out, Error *e);
bool image_load(const char *path, Image *out, Error *e);
void image_free(Image *im);
/* quality 1..100; writes a temporary file and renames it */
bool image_write_jpeg(const char *path, const uint8_t *rgb, int w, int h, int quality, Error *e);
bool image_write_png(const char *path, const uint8_t *rgb, int w, int h, Error *e);
/* The bytes of a JPEG file in *bytes; free() them. */
bool image_encode_jpeg(const uint8_t *rgb, int w, int h, int quality, uint8_t **bytes, size_t *n,
                       Error *e);

/* What reads pictures, one after the other, and keeps its scratch between them: one per thread. A
 * picture is opened, which decodes no pixel, and then a part of it is made into an image. */
typedef struct Decoder Decoder;
Decoder *decoder_new(void);
void decoder_free(Decoder *d);
/* The bytes must stay until the next open. Errors do not name the picture. */
bool decoder_open(Decoder *d, const uint8_t *bytes, size_t n, Error *e);
/* Room for n bytes of a file, for decoder_open; valid until the next call. NULL and an error if
 * they are more than a picture may have. */
uint8_t *decoder_room(Decoder *d, size_t n, Error *e);
bool decoder_open_file(Decoder *d, const char *path, Error *e);
/* Pixels that are in memory already: [h, w, 3]. */
void decoder_open_pixels(Decoder *d, const uint8_t *rgb, int w, int h);
/* Size of the open picture, upright. */
int decoder_width(const Decoder *d);
int decoder_height(const Decoder *d);
/* n bytes for whoever holds the decoder, aligned as malloc does; valid until the next call. */
uint8_t *decoder_scratch(Decoder *d, size_t n);
uint64_t decoder_bytes(const Decoder *d); /* of all files so far */

/* What to make of a picture: [out_h, out_w, 3]. */
typedef struct {
    int out_w, out_h;
    int filter, decode; /* FILTER_*, DECODE_* */
    int crop, resize;   /* evaluation: CROP_*, shorter side (0: image_default_resize) */
    bool augment;       /* training: random resized crop, flip and `changes`; else evaluation */
    double area_min, area_max, ratio_min, ratio_max, flip; /* flip: how probable it is */
    const struct Augmentation *changes;                    /* the caller's, or NULL */
} Preprocess;

/* Training: the box of the upright picture, resized to out [out_h, out_w, 3]; flip mirrors left and
 * right afterwards. As image_crop_resize of the decoded picture, but only what is needed is
 * decoded. */
bool decoder_crop(Decoder *d, const Preprocess *p, Box b, bool flip, uint8_t *out, Error *e);
/* Evaluation: as image_eval of the decoded picture. */
bool decoder_eval(Decoder *d, const Preprocess *p, uint8_t *out, Error *e);

/* ---- resize.c: to the size a model wants ---- */

/* Pillow's Image.resize of the box (left, top, right, bottom): antialiased, separable, the
 * horizontal pass rounded to bytes first. out is [out_h, out_w, 3]. flip mirrors left and right
 * afterwards. */
void image_resize(const Image *im, double left, double top, double right, double bottom, int filter,
                  int out_w, int out_h, bool flip, uint8_t *out);
/* Evaluation. CROP_CENTER: shorter side to `resize` (the longer side truncated), then the centre
 * out_h x out_w (offset rounded, a smaller picture padded with zeros), all as in torchvision;
 * CROP_STRETCH: straight to size. `resize` 0 is image_default_resize. */
void image_eval(const Image *im, int crop, int resize, int filter, int out_w, int out_h,
                uint8_t *out);
/* What the shorter side of a w x h image becomes before the centre crop when nothing else is asked
 * for: 256/224 of what covers the crop on both sides, so 256 for 224 x 224 and any image. */
int image_default_resize(int out_w, int out_h, int w, int h);
/* Crop, then resize: as image_resize, but pixels outside the box take no part in its edges. */
void image_crop_resize(const Image *im, Box b, int filter, int out_w, int out_h, bool flip,
                       uint8_t *out);
/* Random resized crop as torchvision draws it: area in [area_min, area_max] of the image,
 * log-uniform ratio in [ratio_min, ratio_max], ten attempts, then the largest central crop within
 * the ratios. */
Box image_random_box(RngStream *rng, int w, int h, double area_min, double area_max,
                     double ratio_min, double ratio_max);

/* ---- pixels.c: one change ---- */

/* What ImageOps, ImageEnhance and Image.transform of Pillow do, bit for bit. The magnitude: bits
 * that are kept (posterize), the first level that is inverted (solarize), what is added below 128
 * (solarize_add), a factor where 1 changes nothing (brightness to sharpness), a part of the circle
 * (hue), degrees against the clock about the centre (rotate), source pixels per pixel (shear_*) or
 * source pixels (translate_*). What comes from outside the image is (128, 128, 128). */
enum {
    OP_IDENTITY,
    OP_AUTOCONTRAST,
    OP_EQUALIZE,
    OP_INVERT,
    OP_POSTERIZE,
    OP_SOLARIZE,
    OP_SOLARIZE_ADD,
    OP_BRIGHTNESS,
    OP_CONTRAST,
    OP_COLOR,
    OP_SHARPNESS,
    OP_HUE,
    OP_ROTATE,
    OP_SHEAR_X,
    OP_SHEAR_Y,
    OP_TRANSLATE_X,
    OP_TRANSLATE_Y,
    OP_COUNT
};
const char *image_op_name(int op); /* "solarize_add" */
/* rgb [h, w, 3] in place; `filter` is FILTER_* of the last five; scratch as malloc aligns it. */
void image_op(int op, double magnitude, int filter, uint8_t *rgb, int w, int h, uint8_t *scratch);
size_t image_op_scratch(int w, int h); /* bytes */

/* ---- augment.c: changed at random ---- */

/* One look at a sample. Repeated augmentation shows a sample several times in an epoch. */
typedef struct {
    uint64_t seed;
    uint32_t sample, epoch, repeat;
} View;

/* What is drawn for a view, each from a stream of its own. Part of every run's bits: append. */
enum { DRAW_BOX, DRAW_FLIP, DRAW_JITTER, DRAW_POLICY };
static inline RngStream view_draw(View v, int what)
{
    RngStream s = {.seed = v.seed,
                   .sample = v.sample,
                   .step = v.epoch,
                   .purpose = RNG_AUGMENT,
                   .layer = what + 16 * (int)v.repeat};
    return s;
}

/* What happens to an image after crop and flip: colour jitter, then a policy. */
typedef struct Augmentation Augmentation;
/* jitter: "" or "none", or torchvision's ColorJitter: "0.4" for brightness, contrast and saturation
 * alike, "B,C,S" or "B,C,S,H". policy: "" or "none", "imagenet" (the paper's AutoAugment policy),
 * "imagenet-v0" (TensorFlow's policy v0), timm's "rand-m9-n2-mstd0.5-inc1", or big_vision's
 * "randaug(2,15)". NULL and an error if a text is none of these. */
Augmentation *augmentation_new(const char *jitter, const char *policy, Error *e);
void augmentation_free(Augmentation *a);
/* rgb [h, w, 3] in place; scratch: image_op_scratch(w, h) bytes. a may be NULL: nothing happens. */
void augment_image(const Augmentation *a, View v, uint8_t *rgb, int w, int h, uint8_t *scratch);
