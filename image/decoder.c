/* decoder.c - picture files to pixels: opening them, and pulling out of them what a resize needs.
 *
 * JPEG and TIFF are read in parts. Pictures of the other formats are decoded whole when their
 * pixels are first asked for, and kept until the next picture. All are turned upright here.
 *
 * Not here: what the formats are and where they differ from Pillow (formats.c), the resize
 * (resize.c).
 * Order: orientation; the decoder; opening; pixels.
 */
#include "image/decoder.h"

#include "image/formats.h"
#include "image/parts.h"
#include "image/resize.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Larger files are mapped and not read: slides have gigabytes, of which a crop needs a few parts.
 */
#define MAX_READ_BYTES (16L << 20)
#define MAX_FILE_BYTES (1L << 40)

/* ---- orientation ---- */

/* Where the upright pixel (x, y) is stored: at (y, x) if turned; then mirrored. */
static const struct {
    bool turned, mirror_x, mirror_y;
} orientations[] = {[2] = {0, 1, 0}, [3] = {0, 1, 1}, [4] = {0, 0, 1}, [5] = {1, 0, 0},
                    [6] = {1, 0, 1}, [7] = {1, 1, 1}, [8] = {1, 1, 0}};

/* The stored area of an upright one, in a stored picture of w x h. */
static Box stored_area(Box b, int orientation, int w, int h)
{
    if (orientations[orientation].turned)
        b = (Box){b.top, b.left, b.height, b.width};
    if (orientations[orientation].mirror_x)
        b.left = w - b.left - b.width;
    if (orientations[orientation].mirror_y)
        b.top = h - b.top - b.height;
    return b;
}

/* Where the upright pixel (x, y) stands, in pixels from the first. */
static long stored_at(const Image *im, int orientation, int x, int y)
{
    Box b = stored_area((Box){x, y, 1, 1}, orientation, im->w, im->h);
    return (long)b.top * im->w + b.left;
}

/* Turn the picture upright. */
static void orient(Image *im, int orientation)
{
    if (orientation == 1)
        return;
    Image out;
    bool turned = orientations[orientation].turned;
    image_alloc(&out, turned ? im->h : im->w, turned ? im->w : im->h);
    long origin = stored_at(im, orientation, 0, 0);
    long step_x = stored_at(im, orientation, 1, 0) - origin;
    long step_y = stored_at(im, orientation, 0, 1) - origin;
    uint8_t *dst = out.rgb;
    for (long y = 0; y < out.h; y++)
        for (long x = 0; x < out.w; x++, dst += 3)
            memcpy(dst, im->rgb + 3 * (origin + x * step_x + y * step_y), 3);
    image_free(im);
    *im = out;
}

/* ---- the decoder ---- */

struct Decoder {
    const Format *format; /* of the open picture; NULL: its pixels are in memory */
    const uint8_t *bytes;
    size_t n;
    Header header;    /* as stored */
    int w, h;         /* upright */
    PixelRows pixels; /* upright; rgb NULL: not decoded yet */
    Image owned;      /* what they are in, if it is ours: a picture or its oriented area */
    void *reader[FORMATS];
    Room room, scratch;
    void *map;
    size_t mapped;
    Resizer resizer;
    uint64_t total;
};

Decoder *decoder_new(void)
{
    return xcalloc(1, sizeof(Decoder));
}

static void close_picture(Decoder *d)
{
    image_free(&d->owned);
    d->format = NULL;
    d->pixels = (PixelRows){0};
    d->header = (Header){0, 0, 1};
    d->w = d->h = 0;
}

static void unmap_file(Decoder *d)
{
    if (d->mapped)
        munmap(d->map, d->mapped);
    d->mapped = 0;
}

void decoder_free(Decoder *d)
{
    if (!d)
        return;
    close_picture(d);
    unmap_file(d);
    for (int i = 0; i < FORMATS; i++)
        if (d->reader[i])
            formats[i].parts->free(d->reader[i]);
    room_free(&d->room);
    room_free(&d->scratch);
    resizer_free(&d->resizer);
    free(d);
}

int decoder_width(const Decoder *d)
{
    return d->w;
}

int decoder_height(const Decoder *d)
{
    return d->h;
}

uint64_t decoder_bytes(const Decoder *d)
{
    return d->total;
}

uint8_t *decoder_scratch(Decoder *d, size_t n)
{
    return room_get(&d->scratch, n);
}

/* ---- opening ---- */

uint8_t *decoder_room(Decoder *d, size_t n, Error *e)
{
    enum { MOST = 1 << 30 };
    if (n <= MOST)
        return room_get(&d->room, n + 1);
    fail(e, "remove it from the data set", "%zu bytes, a picture in memory may have %d", n, MOST);
    return NULL;
}

static void *reader_of(Decoder *d)
{
    void **r = &d->reader[d->format - formats];
    if (!*r)
        *r = xcalloc(1, d->format->parts->size);
    return *r;
}

bool decoder_open(Decoder *d, const uint8_t *bytes, size_t n, Error *e)
{
    close_picture(d);
    d->bytes = bytes;
    d->n = n;
    d->total += n;
    if (n == 0)
        return fail(e, hint_damaged, "file is empty");
    d->format = format_of(bytes, n, e);
    if (!d->format)
        return false;
    Header *h = &d->header;
    const PartReader *parts = d->format->parts;
    if (!(parts ? parts->open(reader_of(d), bytes, n, h, e)
                : d->format->read(bytes, n, h, NULL, e))) {
        close_picture(d);
        return false;
    }
    bool turned = orientations[h->orientation].turned;
    d->w = turned ? h->h : h->w;
    d->h = turned ? h->w : h->h;
    return true;
}

/* Bytes of an open file: read, or mapped where they are many. */
static bool open_bytes(Decoder *d, int fd, Error *e)
{
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0)
        return fail(e, "check the path and its permissions", "%s", strerror(errno));
    if (!S_ISREG(st.st_mode) || st.st_size > MAX_FILE_BYTES)
        return fail(e, "remove it from the data set", "not a regular file of at most %ld bytes",
                    MAX_FILE_BYTES);
    size_t n = (size_t)st.st_size, at = 0;
    if (n > (size_t)MAX_READ_BYTES) {
        void *map = mmap(NULL, n, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED)
            return fail(e, "check the file system", "cannot map %zu bytes: %s", n, strerror(errno));
        d->map = map;
        d->mapped = n;
        return decoder_open(d, map, n, e);
    }
    uint8_t *bytes = room_get(&d->room, n + 1);
    ssize_t got = 1;
    while (at < n && (got = read(fd, bytes + at, n - at)) > 0)
        at += (size_t)got;
    if (got < 0)
        return fail(e, "check the disk", "read error: %s", strerror(errno));
    return decoder_open(d, bytes, at, e);
}

bool decoder_open_file(Decoder *d, const char *path, Error *e)
{
    close_picture(d);
    unmap_file(d);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    bool ok = open_bytes(d, fd, e);
    if (fd >= 0)
        close(fd);
    return ok;
}

bool picture_file(const char *path)
{
    uint8_t bytes[16];
    Error e;
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    long n = -1;
    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
        n = pread(fd, bytes, sizeof bytes, 0);
    if (fd >= 0)
        close(fd);
    if (n < 0 || !format_of(bytes, (size_t)n, &e))
        return false;
    Decoder *d = decoder_new();
    bool ok = decoder_open_file(d, path, &e);
    decoder_free(d);
    return ok;
}

void decoder_open_pixels(Decoder *d, const uint8_t *rgb, int w, int h)
{
    close_picture(d);
    d->pixels = (PixelRows){rgb, w, NULL};
    d->w = w;
    d->h = h;
}

/* ---- pixels ---- */

/* The whole picture, upright, in d->owned. */
static bool load_whole(Decoder *d, Error *e)
{
    image_free(&d->owned);
    if (!d->format->read(d->bytes, d->n, &d->header, &d->owned, e))
        return false;
    orient(&d->owned, d->header.orientation);
    d->pixels = (PixelRows){d->owned.rgb, d->owned.w, NULL};
    return true;
}

/* An area of the picture as stored, in d->owned. */
static bool load_area(Decoder *d, Box area, Error *e)
{
    const PartReader *parts = d->format->parts;
    if (!size_is_sane(area.width, area.height, true, e) || !parts->start(reader_of(d), area, e))
        return false;
    image_free(&d->owned);
    image_alloc(&d->owned, area.width, area.height);
    size_t row_bytes = (size_t)area.width * 3;
    for (int y = 0; y < area.height; y += ROWS) {
        const uint8_t *row[ROWS];
        int n = lesser(area.height - y, ROWS);
        if (!parts->rows(reader_of(d), n, row, e))
            return false;
        for (int i = 0; i < n; i++)
            memcpy(d->owned.rgb + row_bytes * (y + i), row[i], row_bytes);
    }
    return true;
}

/* Of a picture that is read in parts and not upright, the area is held in memory and turned. */
typedef struct {
    PixelRows pixels; /* first: the rows come out of them */
    Decoder *d;
    int w, h; /* the picture as stored, perhaps reduced */
} TurnedRows;

static bool turned_start(void *ctx, Box area, Error *e)
{
    TurnedRows *t = ctx;
    Decoder *d = t->d;
    int orientation = d->header.orientation;
    if (!load_area(d, stored_area(area, orientation, t->w, t->h), e))
        return false;
    orient(&d->owned, orientation);
    t->pixels = (PixelRows){d->owned.rgb, d->owned.w, d->owned.rgb};
    return true;
}

static bool decoder_resize(Decoder *d, Resize *r, uint8_t *out, Error *e)
{
    if (d->format && d->format->read && !d->pixels.rgb && !load_whole(d, e))
        return false;
    if (d->pixels.rgb) {
        RowSource rows = rows_of_pixels(&d->pixels);
        return resizer_run(&d->resizer, r, &rows, out, e);
    }
    if (!d->format)
        return fail(e, "open a picture first", "no picture is open");
    const PartReader *parts = d->format->parts;
    bool turned = orientations[d->header.orientation].turned;
    TurnedRows t = {.d = d};
    parts->reduce(reader_of(d), resize_shrink(r), r->p->decode, &t.w, &t.h);
    if (t.w != d->header.w || t.h != d->header.h)
        resize_reduce(r, d->w, d->h, turned ? t.h : t.w, turned ? t.w : t.h);
    RowSource rows = {parts->start, parts->rows, reader_of(d)};
    if (d->header.orientation != 1) {
        rows = rows_of_pixels(&t.pixels);
        rows.start = turned_start;
    }
    return resizer_run(&d->resizer, r, &rows, out, e);
}

bool decoder_crop(Decoder *d, const Preprocess *p, Box b, bool flip, uint8_t *out, Error *e)
{
    Resize r = resize_of_crop(b, p, flip);
    return decoder_resize(d, &r, out, e);
}

bool decoder_simple_crop(Decoder *d, const Preprocess *p, RngStream *rng, bool flip, uint8_t *out,
                         Error *e)
{
    Resize r = resize_of_simple_crop(rng, d->w, d->h, p, flip);
    if (!decoder_resize(d, &r, out, e))
        return false;
    resize_mirror(&r, out);
    return true;
}

bool decoder_eval(Decoder *d, const Preprocess *p, uint8_t *out, Error *e)
{
    Resize r = resize_of_eval(d->w, d->h, p);
    return decoder_resize(d, &r, out, e);
}
