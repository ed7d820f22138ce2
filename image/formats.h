/* formats.h - the formats of picture files: how each is recognised and read. */
#pragma once

#include "image/parts.h"

/* Either read in parts, by a reader that is kept, or whole. */
typedef struct {
    const PartReader *parts;
    /* The header, which leaves an orientation that it does not mention as it is; and unless im is
     * NULL, all pixels as stored. im may hold some after a failure: image_free(). */
    bool (*read)(const uint8_t *bytes, size_t n, Header *out, Image *im, Error *e);
    const char *missing; /* neither: built without the library */
} Format;

/* "WebP, no TIFF": which libraries were there when this was compiled. */
extern const char formats_built[];

enum { FORMATS = 6 };
extern const Format formats[FORMATS];

/* The format of these bytes, one of `formats`. NULL and an error if there is none, or if it is
 * missing. */
const Format *format_of(const uint8_t *bytes, size_t n, Error *e);
