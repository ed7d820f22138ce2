/* formats.c - the formats of picture files: how each is recognised, and those that are read whole.
 *
 * Decoding follows Pillow's open().convert("RGB"), so that weights trained elsewhere see the pixels
 * they were trained on. The content decides, never the file's name. PNG, GIF (first frame) and BMP
 * come through stb_image, WebP through libwebp, PPM and PGM are read here. JPEG (jpeg.c) and TIFF
 * (tiff.c) are read in parts.
 *
 * Where it differs from Pillow on purpose: EXIF orientation is applied. 16-bit grey is scaled to 8
 * bits, where Pillow would clip it to white, and of 12 bits that were never scaled to 16, refused.
 * Damage in rows of a JPEG or TIFF that are not needed is not seen. A bomb in a PNG's text is never
 * unpacked, and so no reason to refuse it. As in Pillow, alpha is dropped (not blended) and colour
 * profiles are ignored. stb_image accepts files that end early or whose checksums fail, so both are
 * checked around it.
 *
 * Order: stb_image and its three formats, PPM and PGM, WebP, the table of formats.
 */
#include "image/formats.h"

#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef HAVE_WEBP
#include <webp/decode.h>
#endif

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
    if (bytes[0] == 0x89 && n >= 24) { /* stb_image cannot say what is wrong with these */
        uint64_t w = get_uint(bytes + 16, 4, false), h = get_uint(bytes + 20, 4, false);
        if ((w > 1 << 24 || h > 1 << 24 || w * h > 1 << 28) && w <= INT_MAX && h <= INT_MAX)
            return size_is_sane((int)w, (int)h, true, e);
    }
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

/* 16 bits keep the upper 8, in place. Values of 8 bits that were never scaled to 16 stay as they
 * are (as grey ones do in Pillow); of 12 bits, next to nothing would be left. */
static bool narrow(const Image *im, Error *e)
{
    const uint16_t *wide = (const uint16_t *)im->rgb;
    size_t n = (size_t)3 * im->w * im->h;
    int most = 0;
    for (size_t i = 0; i < n; i++)
        most = wide[i] > most ? wide[i] : most;
    if (most > 255 && most < 4096)
        return fail(e, "scale its values to 16 bits, or convert it to 8",
                    "a PNG of 16 bits whose largest value is %d: 12 bits that were never scaled",
                    most);
    for (size_t i = 0; i < n; i++)
        im->rgb[i] = (uint8_t)(most > 255 ? wide[i] >> 8 : wide[i]);
    return true;
}

static bool stb_load(const uint8_t *bytes, size_t n, bool wide, Image *im, Error *e)
{
    StbSource s = {.p = bytes, .n = n};
    int channels;
    if (wide)
        im->rgb =
            (uint8_t *)stbi_load_16_from_callbacks(&stb_calls, &s, &im->w, &im->h, &channels, 3);
    else
        im->rgb = stbi_load_from_callbacks(&stb_calls, &s, &im->w, &im->h, &channels, 3);
    if (!im->rgb && stb_most == 0)
        return fail(e, hint_damaged, "PNG with more rows than its header says");
    if (!im->rgb)
        return fail(e, hint_damaged, "damaged image: %s", stbi_failure_reason());
    if (s.beyond)
        return fail(e, hint_damaged, "truncated image");
    return !wide || narrow(im, e);
}

/* Where the flags of a GIF's first frame are, in the last of the control blocks before it; 0: there
 * are none. Colours follow the header; each block is a type and runs of bytes up to an empty one.
 */
static size_t gif_flags(const uint8_t *bytes, size_t n)
{
    size_t at = 13, flags = 0;
    if (n > 13 && bytes[10] & 0x80)
        at += (size_t)3 << ((bytes[10] & 7) + 1);
    while (at + 3 < n && bytes[at] == 0x21) {
        if (bytes[at + 1] == 0xF9)
            flags = at + 3;
        for (at += 2; at < n && bytes[at]; at += bytes[at] + 1u)
            ;
        at++;
    }
    return flags;
}

/* Transparent pixels of a GIF have a colour, which stb_image leaves black and Pillow does not. */
static bool read_gif_or_bmp(const uint8_t *bytes, size_t n, Header *out, Image *im, Error *e)
{
    size_t flags = im && bytes[0] == 'G' ? gif_flags(bytes, n) : 0;
    if (!stb_header(bytes, n, out, e))
        return false;
    if (!flags || !(bytes[flags] & 1))
        return !im || stb_load(bytes, n, false, im, e);
    uint8_t *opaque = xmalloc(n);
    memcpy(opaque, bytes, n);
    opaque[flags] &= 0xFE;
    bool ok = stb_load(opaque, n, false, im, e);
    free(opaque);
    return ok;
}

static bool read_png(const uint8_t *bytes, size_t n, Header *out, Image *im, Error *e)
{
    static const uint8_t samples[8] = {1, 0, 3, 1, 2, 0, 4}; /* of a pixel, by colour type */
    if (!stb_header(bytes, n, out, e) || !png_walk(bytes, n, im != NULL, &out->orientation, e))
        return false;
    if (!im)
        return true;
    /* Buffers double, of packed bytes and of rows; interlaced, there are almost twice as many rows,
     * each with a byte more and up to one to fill it. */
    size_t w = get_uint(bytes + 16, 4, false), h = get_uint(bytes + 20, 4, false);
    size_t row = (w * bytes[24] * samples[bytes[25] & 7] + 7) / 8, rows = 2 * h * (row + 4) + 4096;
    stb_most = rows > 2 * n ? rows : 2 * n;
    bool ok = stb_load(bytes, n, bytes[24] == 16, im, e);
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

/* The format is text up to the first value; in P2 and P3 the values are text too. */
static bool read_pnm(const uint8_t *bytes, size_t n, Header *out, Image *im, Error *e)
{
    Bytes b = {bytes + 2, bytes + n};
    bool text = bytes[1] <= '3', grey = bytes[1] == '2' || bytes[1] == '5';
    long w = pnm_number(&b), h = pnm_number(&b), max = pnm_number(&b);
    if (max < 1 || max > 65535)
        return fail(e, hint_damaged, "damaged PPM or PGM header");
    if (!size_is_sane(w, h, true, e))
        return false;
    b.p += b.p < b.end; /* one white space ends the header */
    out->w = (int)w;
    out->h = (int)h;
    long values = w * h * (grey ? 1 : 3), width = !text && max > 255 ? 2 : 1;
    if (b.end - b.p < values * width)
        return fail(e, hint_damaged, "truncated PPM or PGM");
    if (!im)
        return true;
    image_alloc(im, out->w, out->h);
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
/* A chunk of a RIFF file, the first of this name: chunks are a name, a length, and data of an even
 * length. NULL: there is none, or it is cut. */
static const uint8_t *find_chunk(const uint8_t *p, size_t n, const char *name, size_t *length)
{
    for (size_t at = 12; at < n && n - at >= 8;) {
        size_t len = get_uint(p + at + 4, 4, true), left = n - at - 8;
        if (len > left)
            break;
        *length = len;
        if (memcmp(p + at, name, 4) == 0)
            return p + at + 8;
        if (len + (len & 1) > left)
            break;
        at += 8 + len + (len & 1);
    }
    return NULL;
}

static int webp_orientation(const uint8_t *p, size_t n)
{
    size_t len;
    const uint8_t *data = find_chunk(p, n, "EXIF", &len);
    size_t skip = data && len >= 6 && memcmp(data, "Exif\0\0", 6) == 0 ? 6 : 0;
    return data ? exif_orientation(data + skip, len - skip) : 1;
}

/* Of an animation the first frame, as of a GIF: x, y, width - 1, height - 1 (24 bits each), a
 * duration (24) and flags (8), then what a picture's file has. One that covers a part is refused.
 */
static bool first_frame(const uint8_t **bytes, size_t *n, const WebPBitstreamFeatures *f)
{
    enum { HEADER = 16 };
    size_t len;
    const uint8_t *p = find_chunk(*bytes, *n, "ANMF", &len);
    if (!p || len <= HEADER || get_uint(p, 3, true) || get_uint(p + 3, 3, true) ||
        (int)get_uint(p + 6, 3, true) + 1 != f->width ||
        (int)get_uint(p + 9, 3, true) + 1 != f->height)
        return false;
    *bytes = p + HEADER;
    *n = len - HEADER;
    return true;
}

static bool read_webp(const uint8_t *bytes, size_t n, Header *out, Image *im, Error *e)
{
    WebPBitstreamFeatures f;
    if (WebPGetFeatures(bytes, n, &f) != VP8_STATUS_OK)
        return fail(e, hint_damaged, "damaged WebP");
    *out = (Header){f.width, f.height, webp_orientation(bytes, n)};
    if (f.has_animation && !first_frame(&bytes, &n, &f))
        return fail(e, "convert its first frame to PNG, or remove it from the data set",
                    "animated WebP whose first frame is not all of the picture");
    if (!size_is_sane(out->w, out->h, true, e))
        return false;
    if (!im)
        return true;
    image_alloc(im, out->w, out->h);
    return WebPDecodeRGBInto(bytes, n, im->rgb, (size_t)im->w * im->h * 3, im->w * 3) ||
           fail(e, hint_damaged, "damaged or truncated WebP");
}
#endif

/* ---- the table of formats ---- */

enum { JPEG, PNG, GIF_OR_BMP, PNM, WEBP, TIFF };

const Format formats[FORMATS] = {
    [JPEG] = {.parts = &jpeg_reader},
    [PNG] = {.read = read_png},
    [GIF_OR_BMP] = {.read = read_gif_or_bmp},
    [PNM] = {.read = read_pnm},
#ifdef HAVE_WEBP
    [WEBP] = {.read = read_webp},
#else
    [WEBP] = {.missing = "WebP: built without libwebp"},
#endif
#ifdef HAVE_TIFF
    [TIFF] = {.parts = &tiff_reader},
#else
    [TIFF] = {.missing = "TIFF: built without libtiff"},
#endif
};

/* What files begin with; a dot is any byte. A TIFF has one of two byte orders, then 42, or 43 for
 * BigTIFF. */
static const struct {
    int format;
    size_t n;
    const char *bytes;
} signatures[] = {
    {JPEG, 3, "\xFF\xD8\xFF"},
    {PNG, 8, "\x89PNG\r\n\x1A\n"},
    {GIF_OR_BMP, 6, "GIF8.."},
    {GIF_OR_BMP, 2, "BM"},
    {PNM, 2, "P2"},
    {PNM, 2, "P3"},
    {PNM, 2, "P5"},
    {PNM, 2, "P6"},
    {WEBP, 12, "RIFF....WEBP"},
    {TIFF, 8, "II*\0...."},
    {TIFF, 8, "MM\0*...."},
    {TIFF, 8, "II+\0...."},
    {TIFF, 8, "MM\0+...."},
};

static bool begins_with(const uint8_t *bytes, const char *pattern, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (pattern[i] != '.' && bytes[i] != (uint8_t)pattern[i])
            return false;
    return true;
}

/* Pictures that are not read, and what stands in a picture's place. */
static const struct {
    size_t n;
    const char *bytes, *what;
} others[] = {
    {12, "....ftypavif", "an AVIF image"},
    {12, "....ftyphe..", "a HEIC image"},
    {12, "....ftypmif1", "a HEIC or AVIF image"},
    {12, "\0\0\0\x0CJXL ..\x87\n", "a JPEG XL image"},
    {2, "\xFF\x0A", "a JPEG XL image"},
    {8, "\0\0\0\x0CjP  ", "a JPEG 2000 image"},
    {4, "8BPS", "a Photoshop file"},
    {4, "%PDF", "a PDF file"},
    {4, "<svg", "an SVG drawing"},
    {5, "<html", "a web page"},
    {9, "<!DOCTYPE", "a web page"},
    {9, "<!doctype", "a web page"},
    {5, "<?xml", "an XML file"},
    {14, "version https:", "a Git LFS pointer (git lfs pull)"},
};

static void not_read(const uint8_t *bytes, size_t n, Error *e)
{
    static const char read[] = "not a JPEG, PNG, GIF, BMP, PPM, PGM, WebP or TIFF image";
    int i = 0;
    while (i < COUNT(others) &&
           (n < others[i].n || !begins_with(bytes, others[i].bytes, others[i].n)))
        i++;
    fail(e, "convert it to JPEG or PNG, or remove it from the data set", "%s%s%s",
         i < COUNT(others) ? others[i].what : "", i < COUNT(others) ? ", " : "", read);
}

const Format *format_of(const uint8_t *bytes, size_t n, Error *e)
{
    const Format *f = NULL;
    for (int i = 0; i < COUNT(signatures) && !f; i++)
        if (n >= signatures[i].n && begins_with(bytes, signatures[i].bytes, signatures[i].n))
            f = &formats[signatures[i].format];
    if (!f)
        not_read(bytes, n, e);
    else if (f->missing)
        fail(e, "install the library (make deps) and build again, or convert it to PNG", "%s",
             f->missing);
    return f && !f->missing ? f : NULL;
}

const char formats_built[] =
#ifdef HAVE_WEBP
    "WebP"
#else
    "no WebP"
#endif
#ifdef HAVE_TIFF
    ", TIFF";
#else
    ", no TIFF";
#endif
