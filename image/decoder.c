/* image.c - pictures: files to uint8 RGB, whole or in part, and back.
 *
 * Decoding follows Pillow's open().convert("RGB"), so that weights trained elsewhere see the pixels
 * they were trained on. The content decides, never the file's name. JPEG (jpeg.c) and TIFF (tiff.c)
 * are read in parts; PNG, GIF (first frame) and BMP through stb_image, WebP through libwebp, PPM
 * and PGM here: these are decoded whole when their pixels are first asked for, and kept until the
 * next picture.
 *
 * Where it differs from Pillow on purpose: EXIF orientation is applied. 16-bit grey is scaled to 8
 * bits, where Pillow would clip it to white. Damage in rows of a JPEG or TIFF that are not needed
 * is not seen. A bomb in a PNG's text is never unpacked, and so no reason to refuse it. As in
 * Pillow, alpha is dropped (not blended) and colour profiles are ignored. stb_image accepts files
 * that end early or whose checksums fail, so both are checked around it.
 *
 * Order: memory and limits, orientation, the formats that are read whole, the decoder, writing.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* What a buffer of stb may grow to in this thread, which would unpack whatever a PNG has; 0: it was
 * not enough. */
static _Thread_local size_t stb_most = SIZE_MAX;

static void *stb_grow(void *p, size_t n)
{
    if (n <= stb_most)
        return realloc(p, n);
    stb_most = 0;
    return NULL;
}

#define STBI_MALLOC  malloc
#define STBI_FREE    free
#define STBI_REALLOC stb_grow
#define STB_IMAGE_IMPLEMENTATION
#define STBI_NO_STDIO
#define STBI_ONLY_PNG
#define STBI_ONLY_GIF
#define STBI_ONLY_BMP
#include <stb/stb_image.h>
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STBI_WRITE_NO_STDIO
#include <stb/stb_image_write.h>
#ifdef HAVE_WEBP
#include <webp/decode.h>
#endif

#include "image/parts.h"
#include "util/files.h"

/* Larger files are mapped and not read: slides have gigabytes, of which a crop needs a few parts.
 */
#define MAX_READ_BYTES (16L << 20)
#define MAX_FILE_BYTES (1L << 40)

const char hint_damaged[] = "replace the file, or remove it from the data set";

/* ---- memory and limits ---- */

void *room_get(Room *r, size_t bytes)
{
    enum { KEPT = 64 << 20 }; /* more than this is given back when less will do */
    if (bytes > r->bytes || (r->bytes > KEPT && bytes < r->bytes / 2)) {
        free(r->p);
        r->bytes = bytes + bytes / 4;
        r->p = xmalloc(r->bytes);
    }
    return r->p;
}

void room_free(Room *r)
{
    free(r->p);
    *r = (Room){0};
}

bool size_is_sane(long w, long h, bool in_memory, Error *e)
{
    static const char hint[] = "scale it down, or remove it from the data set";
    if (w < 1 || h < 1)
        return fail(e, hint_damaged, "image has no pixels (%ld x %ld)", w, h);
    if (in_memory && w > IMAGE_MAX_PIXELS / h)
        return fail(e, hint, "image is too large: %ld x %ld, the limit is %ld pixels", w, h,
                    IMAGE_MAX_PIXELS);
    if (w > IMAGE_MAX_SIDE || h > IMAGE_MAX_SIDE)
        return fail(e, hint, "image is too long: %ld x %ld, the limit of a side is %d pixels", w, h,
                    IMAGE_MAX_SIDE);
    return true;
}

static void image_alloc(Image *im, int w, int h)
{
    im->w = w;
    im->h = h;
    im->rgb = xmalloc((size_t)w * h * 3);
}

void image_free(Image *im)
{
    free(im->rgb);
    *im = (Image){0};
}

/* ---- orientation ---- */

static uint32_t get_uint(const uint8_t *p, int bytes, bool little)
{
    uint32_t v = 0;
    for (int i = 0; i < bytes; i++)
        v = v << 8 | p[little ? bytes - 1 - i : i];
    return v;
}

int exif_orientation(const uint8_t *p, size_t n)
{
    if (n < 8 || (memcmp(p, "II*\0", 4) != 0 && memcmp(p, "MM\0*", 4) != 0))
        return 1;
    bool little = p[0] == 'I';
    size_t at = get_uint(p + 4, 4, little);
    if (at > n - 2)
        return 1;
    int entries = (int)get_uint(p + at, 2, little);
    at += 2;
    for (int i = 0; i < entries && n - at >= 12; i++, at += 12) {
        if (get_uint(p + at, 2, little) != 0x0112)
            continue;
        bool is_long = get_uint(p + at + 2, 2, little) == 4;
        uint32_t v = get_uint(p + at + 8, is_long ? 4 : 2, little);
        return v >= 1 && v <= 8 ? (int)v : 1;
    }
    return 1;
}

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

/* Turn the picture upright. */
static void orient(Image *im, int orientation)
{
    if (orientation == 1)
        return;
    Image out;
    bool turned = orientations[orientation].turned;
    image_alloc(&out, turned ? im->h : im->w, turned ? im->w : im->h);
    long step_x = turned ? im->w : 1, step_y = turned ? 1 : im->w, origin = 0; /* in pixels */
    if (orientations[orientation].mirror_x) {
        origin += im->w - 1;
        *(turned ? &step_y : &step_x) *= -1;
    }
    if (orientations[orientation].mirror_y) {
        origin += (long)im->w * (im->h - 1);
        *(turned ? &step_x : &step_y) *= -1;
    }
    uint8_t *dst = out.rgb;
    for (long y = 0; y < out.h; y++)
        for (long x = 0; x < out.w; x++, dst += 3)
            memcpy(dst, im->rgb + 3 * (origin + x * step_x + y * step_y), 3);
    image_free(im);
    *im = out;
}

/* ---- PNG, GIF, BMP ---- */

/* CRC-32 of PNG, four bits at a time. */
static uint32_t crc32(const uint8_t *p, size_t n)
{
    static const uint32_t table[16] = {0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC,
                                       0x76DC4190, 0x6B6B51F4, 0x4DB26158, 0x5005713C,
                                       0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C,
                                       0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C};
    uint32_t crc = ~0u;
    for (size_t i = 0; i < n; i++) {
        crc = crc >> 4 ^ table[(crc ^ p[i]) & 15];
        crc = crc >> 4 ^ table[(crc ^ p[i] >> 4) & 15];
    }
    return ~crc;
}

/* Walk the chunks (length, type, data, CRC of type and data) up to IEND. */
static bool png_walk(const uint8_t *p, size_t n, bool check, int *orientation, Error *e)
{
    for (size_t at = 8; n - at >= 12;) {
        size_t len = get_uint(p + at, 4, false);
        const uint8_t *type = p + at + 4;
        if (len > n - at - 12)
            break;
        if (check && crc32(type, len + 4) != get_uint(type + 4 + len, 4, false))
            return fail(e, hint_damaged, "damaged PNG: wrong checksum at byte %zu", at);
        if (memcmp(type, "eXIf", 4) == 0)
            *orientation = exif_orientation(type + 4, len);
        if (memcmp(type, "IEND", 4) == 0)
            return true;
        at += len + 12;
    }
    return fail(e, hint_damaged, "truncated PNG");
}

/* stb reads through this, so that we see when it runs off the end: it would go on with zeros. */
typedef struct {
    const uint8_t *p;
    size_t n, at;
    bool beyond;
} StbSource;

static int stb_source_read(void *user, char *out, int size)
{
    StbSource *s = user;
    size_t left = s->n - s->at, take = (size_t)size < left ? (size_t)size : left;
    s->beyond |= left == 0;
    memcpy(out, s->p + s->at, take);
    s->at += take;
    return (int)take;
}

static void stb_source_skip(void *user, int n)
{
    StbSource *s = user;
    size_t left = s->n - s->at, skip = n < 0 ? 0 : (size_t)n; /* stb never goes back this way */
    s->beyond |= skip > left;
    s->at += skip < left ? skip : left;
}

static int stb_source_eof(void *user)
{
    StbSource *s = user;
    return s->at == s->n;
}

static const stbi_io_callbacks stb_calls = {stb_source_read, stb_source_skip, stb_source_eof};

static bool stb_header(const uint8_t *bytes, size_t n, Header *out, Error *e)
{
    StbSource s = {.p = bytes, .n = n};
    int channels;
    if (!stbi_info_from_callbacks(&stb_calls, &s, &out->w, &out->h, &channels))
        return fail(e, hint_damaged, "damaged image: %s", stbi_failure_reason());
    if (bytes[0] == 'B' && out->h > INT_MIN) /* below 0: from top to bottom */
        out->h = abs(out->h);
    if (!size_is_sane(out->w, out->h, true, e))
        return false;
    size_t pixels = (size_t)out->w * out->h;
    if (bytes[0] == 'B' && pixels / 8 > n) /* at least one bit per pixel */
        return fail(e, hint_damaged, "truncated image");
    /* A code of a GIF is at most 4095 pixels; a first frame may be smaller than the screen, but a
     * few bytes must not cost a gigabyte. */
    if (bytes[0] == 'G' && pixels > 1 << 24 && pixels / 4096 > n)
        return fail(e, hint_damaged, "truncated image");
    return true;
}

static bool stb_load(const uint8_t *bytes, size_t n, Image *im, Error *e)
{
    StbSource s = {.p = bytes, .n = n};
    int channels;
    im->rgb = stbi_load_from_callbacks(&stb_calls, &s, &im->w, &im->h, &channels, 3);
    if (!im->rgb && stb_most == 0)
        return fail(e, hint_damaged, "PNG with more rows than its header says");
    if (!im->rgb)
        return fail(e, hint_damaged, "damaged image: %s", stbi_failure_reason());
    return !s.beyond || fail(e, hint_damaged, "truncated image");
}

static bool png_header(const uint8_t *bytes, size_t n, Header *out, Error *e)
{
    return stb_header(bytes, n, out, e) && png_walk(bytes, n, false, &out->orientation, e);
}

static bool png_load(const uint8_t *bytes, size_t n, Image *im, Error *e)
{
    static const uint8_t samples[8] = {1, 0, 3, 1, 2, 0, 4}; /* of a pixel, by colour type */
    int orientation;
    /* Buffers double, of packed bytes and of rows; interlaced, there are almost twice as many rows,
     * each with a byte more and up to one to fill it. */
    size_t w = get_uint(bytes + 16, 4, false), h = get_uint(bytes + 20, 4, false);
    size_t row = (w * bytes[24] * samples[bytes[25] & 7] + 7) / 8, rows = 2 * h * (row + 4) + 4096;
    stb_most = rows > 2 * n ? rows : 2 * n;
    bool ok = png_walk(bytes, n, true, &orientation, e) && stb_load(bytes, n, im, e);
    stb_most = SIZE_MAX;
    return ok;
}

/* ---- PPM and PGM: P2, P3 (text), P5, P6 (binary), up to 16 bits ---- */

typedef struct {
    const uint8_t *p, *end;
} Bytes;

/* The next decimal number, past white space and comments; -1 if there is none (or a huge one). */
static long pnm_number(Bytes *b)
{
    bool comment = false;
    for (; b->p < b->end && (comment || *b->p == '#' || strchr(" \t\r\n\v\f", *b->p)); b->p++)
        comment = *b->p == '#' || (comment && *b->p != '\n');
    long v = -1;
    for (; b->p < b->end && *b->p >= '0' && *b->p <= '9' && v < 1000000000; b->p++)
        v = (v < 0 ? 0 : v) * 10 + (*b->p - '0');
    return v;
}

/* What the header says, and *b at the first value. */
static bool pnm_begin(Bytes *b, Header *out, long *max, Error *e)
{
    const uint8_t *bytes = b->p;
    b->p += 2;
    long w = pnm_number(b), h = pnm_number(b);
    *max = pnm_number(b);
    if (*max < 1 || *max > 65535)
        return fail(e, hint_damaged, "damaged PPM or PGM header");
    if (!size_is_sane(w, h, true, e))
        return false;
    b->p += b->p < b->end; /* one white space ends the header */
    out->w = (int)w;
    out->h = (int)h;
    long values = w * h * (bytes[1] == '3' || bytes[1] == '6' ? 3 : 1);
    long width = bytes[1] > '3' && *max > 255 ? 2 : 1;
    return b->end - b->p >= values * width || fail(e, hint_damaged, "truncated PPM or PGM");
}

static bool pnm_header(const uint8_t *bytes, size_t n, Header *out, Error *e)
{
    Bytes b = {bytes, bytes + n};
    long max;
    return pnm_begin(&b, out, &max, e);
}

static bool pnm_load(const uint8_t *bytes, size_t n, Image *im, Error *e)
{
    Bytes b = {bytes, bytes + n};
    Header header = {0, 0, 1};
    long max;
    if (!pnm_begin(&b, &header, &max, e))
        return false;
    image_alloc(im, header.w, header.h);
    bool text = bytes[1] <= '3', grey = bytes[1] == '2' || bytes[1] == '5';
    long values = (long)im->w * im->h * (grey ? 1 : 3), width = max > 255 ? 2 : 1;
    for (long i = 0; i < values; i++) {
        long v = text ? pnm_number(&b) : (long)get_uint(b.p + i * width, (int)width, false);
        if (v < 0 || v > max)
            return fail(e, hint_damaged, "damaged PPM or PGM: value %ld of %ld", i, values);
        uint8_t level = (uint8_t)((v * 255 + max / 2) / max);
        if (grey)
            memset(im->rgb + 3 * i, level, 3);
        else
            im->rgb[i] = level;
    }
    return true;
}

/* ---- WebP ---- */

#ifdef HAVE_WEBP
/* The EXIF chunk of a RIFF file: chunks are a name, a length, and data of an even length. */
static int webp_orientation(const uint8_t *p, size_t n)
{
    for (size_t at = 12; at < n && n - at >= 8;) {
        size_t len = get_uint(p + at + 4, 4, true), left = n - at - 8;
        const uint8_t *data = p + at + 8;
        if (len > left)
            break;
        size_t skip = len >= 6 && memcmp(data, "Exif\0\0", 6) == 0 ? 6 : 0;
        if (memcmp(p + at, "EXIF", 4) == 0)
            return exif_orientation(data + skip, len - skip);
        if (len + (len & 1) > left)
            break;
        at += 8 + len + (len & 1);
    }
    return 1;
}

static bool webp_header(const uint8_t *bytes, size_t n, Header *out, Error *e)
{
    WebPBitstreamFeatures f;
    if (WebPGetFeatures(bytes, n, &f) != VP8_STATUS_OK)
        return fail(e, hint_damaged, "damaged WebP");
    if (f.has_animation)
        return fail(e, "convert its first frame to PNG, or remove it from the data set",
                    "animated WebP");
    out->w = f.width;
    out->h = f.height;
    out->orientation = webp_orientation(bytes, n);
    return size_is_sane(out->w, out->h, true, e);
}

static bool webp_load(const uint8_t *bytes, size_t n, Image *im, Error *e)
{
    Header header;
    if (!webp_header(bytes, n, &header, e))
        return false;
    image_alloc(im, header.w, header.h);
    return WebPDecodeRGBInto(bytes, n, im->rgb, (size_t)im->w * im->h * 3, im->w * 3) ||
           fail(e, hint_damaged, "damaged or truncated WebP");
}
#endif

/* ---- formats ---- */

static bool is_jpeg(const uint8_t *p, size_t n)
{
    return n >= 3 && memcmp(p, "\xFF\xD8\xFF", 3) == 0;
}

static bool is_png(const uint8_t *p, size_t n)
{
    return n >= 8 && memcmp(p, "\x89PNG\r\n\x1A\n", 8) == 0;
}

static bool is_gif_or_bmp(const uint8_t *p, size_t n)
{
    return (n >= 6 && memcmp(p, "GIF8", 4) == 0) || (n >= 2 && memcmp(p, "BM", 2) == 0);
}

static bool is_pnm(const uint8_t *p, size_t n)
{
    return n >= 2 && p[0] == 'P' && memchr("2356", p[1], 4);
}

static bool is_webp(const uint8_t *p, size_t n)
{
    return n >= 12 && memcmp(p, "RIFF", 4) == 0 && memcmp(p + 8, "WEBP", 4) == 0;
}

/* Two byte orders; 42, or 43 for BigTIFF. */
static bool is_tiff(const uint8_t *p, size_t n)
{
    return n >= 8 && ((memcmp(p, "II", 2) == 0 && (p[2] == 42 || p[2] == 43) && p[3] == 0) ||
                      (memcmp(p, "MM", 2) == 0 && p[2] == 0 && (p[3] == 42 || p[3] == 43)));
}

/* Either read in parts, by a reader that is kept, or whole; or by neither, if this program was
 * built without the library. header() finds *out upright. */
typedef struct {
    bool (*is)(const uint8_t *bytes, size_t n);
    const PartReader *parts;
    bool (*header)(const uint8_t *bytes, size_t n, Header *out, Error *e);
    bool (*load)(const uint8_t *bytes, size_t n, Image *im, Error *e);
    const char *missing;
} Format;

static const Format formats[] = {
    {.is = is_jpeg, .parts = &jpeg_reader},
    {.is = is_png, .header = png_header, .load = png_load},
    {.is = is_gif_or_bmp, .header = stb_header, .load = stb_load},
    {.is = is_pnm, .header = pnm_header, .load = pnm_load},
#ifdef HAVE_WEBP
    {.is = is_webp, .header = webp_header, .load = webp_load},
#else
    {.is = is_webp, .missing = "WebP: built without libwebp"},
#endif
#ifdef HAVE_TIFF
    {.is = is_tiff, .parts = &tiff_reader},
#else
    {.is = is_tiff, .missing = "TIFF: built without libtiff"},
#endif
};

/* ---- the decoder ---- */

struct Decoder {
    const Format *format; /* of the open picture; NULL: its pixels are in memory */
    const uint8_t *bytes;
    size_t n;
    Header header;    /* as stored */
    int w, h;         /* upright */
    PixelRows pixels; /* upright; rgb NULL: not decoded yet */
    Image owned;      /* what they are in, if it is ours: a picture or its oriented area */
    void *reader[COUNT(formats)];
    Room room, scratch;
    void *map;
    size_t mapped;
    Resizer *resizer;
    uint64_t total;
};

Decoder *decoder_new(void)
{
    Decoder *d = xcalloc(1, sizeof *d);
    d->resizer = resizer_new();
    return d;
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
    for (int i = 0; i < COUNT(formats); i++)
        if (d->reader[i])
            formats[i].parts->free(d->reader[i]);
    room_free(&d->room);
    room_free(&d->scratch);
    resizer_free(d->resizer);
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
        *r = d->format->parts->new ();
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
    for (int i = 0; i < COUNT(formats) && !d->format; i++)
        if (formats[i].is(bytes, n))
            d->format = &formats[i];
    if (!d->format)
        return fail(e, "convert it to JPEG or PNG, or remove it from the data set",
                    "not a JPEG, PNG, GIF, BMP, PPM, PGM, WebP or TIFF image");
    if (d->format->missing) {
        fail(e, "install the library (make deps) and build again, or convert it to PNG", "%s",
             d->format->missing);
        d->format = NULL;
        return false;
    }
    Header *h = &d->header;
    if (!(d->format->parts ? d->format->parts->open(reader_of(d), bytes, n, h, e)
                           : d->format->header(bytes, n, h, e))) {
        close_picture(d);
        return false;
    }
    bool turned = orientations[h->orientation].turned;
    d->w = turned ? h->h : h->w;
    d->h = turned ? h->w : h->h;
    return true;
}

/* Bytes of an open file: read, or mapped where they are many. */
static bool open_bytes(Decoder *d, int fd, size_t n, Error *e)
{
    if (n > (size_t)MAX_READ_BYTES) {
        void *map = mmap(NULL, n, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED)
            return fail(e, "check the file system", "cannot map %zu bytes: %s", n, strerror(errno));
        d->map = map;
        d->mapped = n;
        return decoder_open(d, map, n, e);
    }
    uint8_t *bytes = room_get(&d->room, n + 1);
    size_t at = 0;
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
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    bool ok;
    if (fd < 0 || fstat(fd, &st) != 0)
        ok = fail(e, "check the path and its permissions", "%s", strerror(errno));
    else if (!S_ISREG(st.st_mode) || st.st_size > MAX_FILE_BYTES)
        ok = fail(e, "remove it from the data set", "not a regular file of at most %ld bytes",
                  MAX_FILE_BYTES);
    else
        ok = open_bytes(d, fd, (size_t)st.st_size, e);
    if (fd >= 0)
        close(fd);
    return ok;
}

void decoder_open_pixels(Decoder *d, const uint8_t *rgb, int w, int h)
{
    close_picture(d);
    d->pixels = (PixelRows){rgb, w, NULL};
    d->w = d->header.w = w;
    d->h = d->header.h = h;
}

/* ---- pixels ---- */

/* The whole picture, upright, in d->owned. */
static bool load_whole(Decoder *d, Error *e)
{
    if (!d->format->load(d->bytes, d->n, &d->owned, e)) {
        image_free(&d->owned);
        return false;
    }
    orient(&d->owned, d->header.orientation);
    d->pixels = (PixelRows){d->owned.rgb, d->owned.w, NULL};
    return true;
}

/* An area of the picture as stored, in memory. */
static bool load_area(Decoder *d, Box area, Image *out, Error *e)
{
    const PartReader *parts = d->format->parts;
    if (!size_is_sane(area.width, area.height, true, e) || !parts->start(reader_of(d), area, e))
        return false;
    image_alloc(out, area.width, area.height);
    size_t row_bytes = (size_t)area.width * 3;
    for (int y = 0; y < area.height; y += ROWS) {
        const uint8_t *row[ROWS];
        int n = area.height - y < ROWS ? area.height - y : ROWS;
        if (!parts->rows(reader_of(d), n, row, e)) {
            image_free(out);
            return false;
        }
        for (int i = 0; i < n; i++)
            memcpy(out->rgb + row_bytes * (y + i), row[i], row_bytes);
    }
    return true;
}

/* Rows of a file that is read in parts. Of a picture that is not upright the area is held in memory
 * and turned. */
typedef struct {
    Decoder *d;
    int w, h; /* the picture as stored, perhaps reduced */
    PixelRows turned;
} PartRows;

static bool part_start(void *ctx, Box area, Error *e)
{
    PartRows *p = ctx;
    Decoder *d = p->d;
    int orientation = d->header.orientation;
    if (orientation == 1)
        return d->format->parts->start(reader_of(d), area, e);
    image_free(&d->owned);
    if (!load_area(d, stored_area(area, orientation, p->w, p->h), &d->owned, e))
        return false;
    orient(&d->owned, orientation);
    p->turned = (PixelRows){d->owned.rgb, d->owned.w, NULL};
    RowSource rows = rows_of_pixels(&p->turned);
    return rows.start(rows.ctx, (Box){0, 0, d->owned.w, d->owned.h}, e);
}

static bool part_rows(void *ctx, int n, const uint8_t **row, Error *e)
{
    PartRows *p = ctx;
    if (p->d->header.orientation == 1)
        return p->d->format->parts->rows(reader_of(p->d), n, row, e);
    RowSource rows = rows_of_pixels(&p->turned);
    return rows.rows(rows.ctx, n, row, e);
}

static bool decoder_resize(Decoder *d, Resize *r, int decode, uint8_t *out, Error *e)
{
    if (d->format && d->format->load && !d->pixels.rgb && !load_whole(d, e))
        return false;
    if (d->pixels.rgb) {
        RowSource rows = rows_of_pixels(&d->pixels);
        return resizer_run(d->resizer, r, &rows, out, e);
    }
    if (!d->format)
        return fail(e, "open a picture first", "no picture is open");
    PartRows part = {.d = d};
    d->format->parts->reduce(reader_of(d), resize_shrink(r), decode, &part.w, &part.h);
    if (part.w != d->header.w || part.h != d->header.h) {
        bool turned = orientations[d->header.orientation].turned;
        resize_reduce(r, d->w, d->h, turned ? part.h : part.w, turned ? part.w : part.h);
    }
    return resizer_run(d->resizer, r, &(RowSource){part_start, part_rows, &part}, out, e);
}

bool decoder_crop(Decoder *d, const Preprocess *t, Box b, bool flip, uint8_t *out, Error *e)
{
    Resize r = resize_of_crop(b, t->filter, t->out_w, t->out_h, flip);
    return decoder_resize(d, &r, t->decode, out, e);
}

bool decoder_eval(Decoder *d, const Preprocess *t, uint8_t *out, Error *e)
{
    Resize r = resize_of_eval(d->w, d->h, t);
    return decoder_resize(d, &r, t->decode, out, e);
}

/* The whole open picture; its pixels are no longer the decoder's. */
static bool decoder_take(Decoder *d, Image *out, Error *e)
{
    int w, h;
    if (d->format->load) {
        if (!load_whole(d, e))
            return false;
    } else {
        d->format->parts->reduce(reader_of(d), 1, DECODE_EXACT, &w, &h);
        if (!load_area(d, (Box){0, 0, w, h}, &d->owned, e))
            return false;
        orient(&d->owned, d->header.orientation);
    }
    *out = d->owned;
    d->owned = (Image){0};
    close_picture(d);
    return true;
}

bool image_decode(const uint8_t *bytes, size_t n, Image *out, Error *e)
{
    *out = (Image){0};
    Decoder *d = decoder_new();
    bool ok = decoder_open(d, bytes, n, e) && decoder_take(d, out, e);
    decoder_free(d);
    return ok;
}

bool image_load(const char *path, Image *out, Error *e)
{
    *out = (Image){0};
    Error why;
    Decoder *d = decoder_new();
    bool ok = decoder_open_file(d, path, &why) && decoder_take(d, out, &why);
    decoder_free(d);
    return ok || fail(e, why.hint, "%s: %s", path, why.what);
}

/* ---- writing ---- */

bool image_write_jpeg(const char *path, const uint8_t *rgb, int w, int h, int quality, Error *e)
{
    uint8_t *bytes;
    size_t n;
    if (!image_encode_jpeg(rgb, w, h, quality, &bytes, &n, e))
        return false;
    bool ok = save_file(path, bytes, n, false, e);
    free(bytes);
    return ok;
}

bool image_write_png(const char *path, const uint8_t *rgb, int w, int h, Error *e)
{
    int n;
    unsigned char *bytes = stbi_write_png_to_mem(rgb, 3 * w, w, h, 3, &n);
    bool ok = bytes ? save_file(path, bytes, (size_t)n, false, e)
                    : fail(e, "make it smaller", "cannot encode %d x %d pixels as PNG", w, h);
    free(bytes);
    return ok;
}
