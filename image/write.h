/* write.h - pictures to files. */
#pragma once

#include "util/util.h"

/* rgb is [h, w, 3], quality 1..100. The file appears under its name when it is complete. */
bool image_write_jpeg(const char *path, const uint8_t *rgb, int w, int h, int quality, Error *e);
bool image_write_png(const char *path, const uint8_t *rgb, int w, int h, Error *e);
/* The bytes of a JPEG file in *bytes; free() them. */
bool image_encode_jpeg(const uint8_t *rgb, int w, int h, int quality, uint8_t **bytes, size_t *n,
                       Error *e);
