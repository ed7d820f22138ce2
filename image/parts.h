/* parts.h - what the readers of picture files share, and how pictures are read in parts.
 *
 * A resize pulls rows, top to bottom, out of whatever holds the picture: a file format that can be
 * read row by row, or pixels in memory. It asks for the area it needs and for nothing else, so that
 * a picture is never in memory where it need not be.
 */
#pragma once

#include "image/image.h"

/* ---- memory ---- */

/* Memory that is kept between pictures. */
typedef struct {
    void *p;
    size_t bytes;
} Room;
void *room_get(Room *r, size_t bytes); /* at least these, of any content; valid until the next */
void room_free(Room *r);

void image_alloc(Image *im, int w, int h);
void image_free(Image *im);

/* ---- what headers say ---- */

extern const char hint_damaged[];
/* Sides within the limits; in_memory: and the pixels. */
bool size_is_sane(long w, long h, bool in_memory, Error *e);
/* A number of 1 to 4 bytes, the lowest first or last. */
uint32_t get_uint(const uint8_t *p, int bytes, bool little);
/* Tag 0x0112 of the first directory of a TIFF block; 1 (upright) if absent or malformed. */
int exif_orientation(const uint8_t *tiff, size_t n);

typedef struct {
    int w, h;        /* as stored, */
    int orientation; /* before this one of EXIF's eight is undone */
} Header;

/* ---- parts ---- */

/* Rows that are handed over at once. */
enum { ROWS = 4 };

typedef struct {
    /* From here on the rows of this area of the picture. May be started again. */
    bool (*start)(void *ctx, Box area, Error *e);
    /* The next n <= ROWS rows: row[i] is [area.width, 3], valid until the next call. */
    bool (*rows)(void *ctx, int n, const uint8_t **row, Error *e);
    void *ctx;
} RowSource;

/* A format that is read in parts. The bytes stay until the next open. No error
 * names the file. */
typedef struct {
    size_t size; /* of a reader, which is zeros at first */
    void (*free)(void *reader);
    bool (*open)(void *reader, const uint8_t *bytes, size_t n, Header *out, Error *e);
    /* From now on, read the coarsest version of the picture that has what a resize needs: `shrink`
     * pixels become one. Its size. */
    void (*reduce)(void *reader, double shrink, int decode, int *w, int *h);
    /* As in RowSource, of that version as stored. */
    bool (*start)(void *reader, Box area, Error *e);
    bool (*rows)(void *reader, int n, const uint8_t **row, Error *e);
} PartReader;
extern const PartReader jpeg_reader; /* jpeg.c */
extern const PartReader tiff_reader; /* tiff.c, where libtiff is there */

/* ---- small numbers and colours ---- */

static inline int lesser(int a, int b)
{
    return a < b ? a : b;
}

static inline int greater(int a, int b)
{
    return a > b ? a : b;
}

/* Three inks and the light that black lets through, all 0..255, as Pillow turns them into RGB:
 * light - ink * light, rounded. */
static inline void rgb_of_inks(int c, int m, int y, int light, uint8_t *rgb)
{
    int inks[3] = {c, m, y};
    for (int i = 0; i < 3; i++) {
        int t = inks[i] * light + 128;
        rgb[i] = (uint8_t)(light - ((t + (t >> 8)) >> 8));
    }
}
