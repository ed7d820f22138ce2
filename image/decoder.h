/* decoder.h - picture files to pixels: whole, a part, or what an evaluation looks at.
 *
 * JPEG (CMYK and YCCK converted as Pillow does), PNG, GIF, BMP, PPM, PGM, WebP or TIFF, by content
 * and not by name; EXIF orientation applied. Truncated or corrupt data is an error, as in Pillow.
 *
 * A Decoder reads pictures, one after the other, and keeps its scratch between them: one per
 * thread. A picture is opened, which decodes no pixel, and then a part of it is made into an image.
 */
#pragma once

#include "image/image.h"

Decoder *decoder_new(void);
void decoder_free(Decoder *d);

/* The bytes must stay until the next open. Errors do not name the picture. */
bool decoder_open(Decoder *d, const uint8_t *bytes, size_t n, Error *e);
/* Room for n bytes of a file, for decoder_open; valid until the next call. NULL and an error if
 * they are more than a picture may have. */
uint8_t *decoder_room(Decoder *d, size_t n, Error *e);
bool decoder_open_file(Decoder *d, const char *path, Error *e);
/* Whether a file is a picture that can be read, by its first bytes and its header. */
bool picture_file(const char *path);
/* Pixels that are in memory already: [h, w, 3]. */
void decoder_open_pixels(Decoder *d, const uint8_t *rgb, int w, int h);
/* Size of the open picture, upright. */
int decoder_width(const Decoder *d);
int decoder_height(const Decoder *d);

/* Training: the box of the upright picture, resized to out [out_h, out_w, 3], as if there were no
 * pixels beside it; flip mirrors left and right afterwards. Only what is needed is decoded. */
bool decoder_crop(Decoder *d, const Preprocess *p, Box b, bool flip, uint8_t *out, Error *e);
/* The same of TRAIN_CROP_SIMPLE, whose place rng says. */
bool decoder_simple_crop(Decoder *d, const Preprocess *p, RngStream *rng, bool flip, uint8_t *out,
                         Error *e);
/* Evaluation. CROP_CENTER: the shorter side to p->resize (the longer side truncated), then the
 * centre out_h x out_w (offset rounded, a smaller picture padded with zeros), all as in
 * torchvision; CROP_STRETCH: straight to size; CROP_SQUASH: each side to size / p->crop_pct,
 * rounded down, then the centre, as timm's squash and transformers' resize to a square before a
 * crop. */
bool decoder_eval(Decoder *d, const Preprocess *p, uint8_t *out, Error *e);

/* n bytes for whoever holds the decoder, aligned as malloc does; valid until the next call. */
uint8_t *decoder_scratch(Decoder *d, size_t n);
uint64_t decoder_bytes(const Decoder *d); /* of all files so far */
