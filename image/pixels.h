/* pixels.h - one change of an image's pixels.
 *
 * What ImageOps, ImageEnhance, ImageFilter.GaussianBlur and Image.transform of Pillow do, bit for
 * bit. The magnitude: bits that are kept (posterize), the first level that is inverted (solarize),
 * what is added below 128 (solarize_add), a factor where 1 changes nothing (brightness to
 * sharpness), a part of the circle (hue), degrees against the clock about the centre (rotate),
 * source pixels per pixel (shear_*), source pixels (translate_*) or the standard deviation of a
 * Gaussian in pixels (blur, which repeats the edge). What else comes from outside the image is
 * (128, 128, 128).
 */
#pragma once

#include "image/image.h"

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
    OP_BLUR,
    OP_COUNT
};
/* rgb [h, w, 3] in place; `filter` is FILTER_* of rotate, shears, translations; scratch as malloc
 * aligns it. */
void image_op(int op, double magnitude, int filter, uint8_t *rgb, int w, int h, uint8_t *scratch);
size_t image_op_scratch(int w, int h); /* bytes */
