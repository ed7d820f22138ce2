/* decode.h - inside a decoder: what image.c, jpeg.c, tiff.c and resize.c say to each other.
 *
 * A resize pulls rows, top to bottom, out of whatever holds the picture: a file format that can be
 * read row by row, or pixels in memory. It asks for the area it needs and for nothing else, so that
 * a picture is never in memory where it need not be.
 */
#pragma once

#include "image/image.h"

/* ---- memory that is kept between pictures ---- */

typedef struct {
    void *p;
    size_t bytes;
} Room;
void *room_get(Room *r, size_t bytes); /* at least these, of any content; valid until the next */
void room_free(Room *r);

/* ---- rows ---- */

/* Rows that are handed over at once. */
enum { ROWS = 4 };

typedef struct {
    /* From here on the rows of this area of the picture. */
    bool (*start)(void *ctx, Box area, Error *e);
    /* The next n <= ROWS rows: row[i] is [area.width, 3], valid until the next call. */
    bool (*rows)(void *ctx, int n, const uint8_t **row, Error *e);
    void *ctx;
} RowSource;

/* Of pixels in memory, rows of w of them; they cannot fail. */
typedef struct {
    const uint8_t *rgb;
    int w;
    const uint8_t *next;
} PixelRows;
RowSource rows_of_pixels(PixelRows *p);

/* ---- formats that are read in parts ---- */

/* What a file's header says. */
typedef struct {
    int w, h;        /* as stored, */
    int orientation; /* before this one of EXIF's eight is undone */
} Header;

/* None of them names the file in an error. The bytes stay until the next open. */
typedef struct {
    void *(*new)(void);
    void (*free)(void *reader);
    bool (*open)(void *reader, const uint8_t *bytes, size_t n, Header *out, Error *e);
    /* From now on, read the coarsest version of the picture that has what a resize needs: `shrink`
     * pixels become one. Its size. */
    void (*reduce)(void *reader, double shrink, int decode, int *w, int *h);
    /* As in RowSource, of that version as stored. May be started again. */
    bool (*start)(void *reader, Box area, Error *e);
    bool (*rows)(void *reader, int n, const uint8_t **row, Error *e);
} PartReader;

extern const PartReader jpeg_reader; /* jpeg.c */
#ifdef HAVE_TIFF
extern const PartReader tiff_reader; /* tiff.c */
#endif

/* The entropy decoder of sequential JPEG (huffman.c), and its tables from picture to picture. It is
 * put into a decoder that has started and not read yet, where it can be. */
typedef struct Huffman Huffman;
struct jpeg_decompress_struct;
Huffman *huffman_new(void);
void huffman_free(Huffman *h);
void huffman_take_over(Huffman *h, struct jpeg_decompress_struct *d);

extern const char hint_damaged[];
/* Tag 0x0112 of the first directory of a TIFF block; 1 (upright) if absent or malformed. */
int exif_orientation(const uint8_t *tiff, size_t n);
/* Sides within the limits; in_memory: and the pixels. */
bool size_is_sane(long w, long h, bool in_memory, Error *e);

/* ---- resize.c ---- */

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
    int filter, out_w, out_h;
    bool flip;
} Resize;

Resize resize_of_crop(Box b, int filter, int out_w, int out_h, bool flip);
Resize resize_of_eval(int w, int h, const Preprocess *p);
/* Input pixels per output pixel, of the axis that has fewer. */
double resize_shrink(const Resize *r);
/* The same of a version of the w x h picture with rw x rh pixels. */
void resize_reduce(Resize *r, int w, int h, int rw, int rh);

typedef struct Resizer Resizer; /* scratch */
Resizer *resizer_new(void);
void resizer_free(Resizer *r);
bool resizer_run(Resizer *s, const Resize *r, const RowSource *from, uint8_t *out, Error *e);
