/* image.c - image files: bytes to uint8 RGB, and back to JPEG.
 *
 * Decoding follows Pillow's open().convert("RGB") with the EXIF orientation applied, so that
 * weights trained elsewhere see the pixels they were trained on. JPEG goes through libjpeg-turbo;
 * PNG, GIF (first frame) and BMP through stb_image; PPM and PGM are read here. The content decides,
 * never the file's name. Not here: WebP, TIFF, colour profiles (ignored, as in Pillow), blending of
 * alpha (dropped); resizing (resize.c).
 *
 * stb_image accepts files that end early or whose checksums fail, so both are checked around it.
 * 16-bit grey is scaled to 8 bits, where Pillow would clip it to white.
 *
 * Order: orientation, JPEG, PNG and friends, image_decode, image_load; the JPEG writer last.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jpeglib.h>

#define STB_IMAGE_IMPLEMENTATION
#define STBI_NO_STDIO
#define STBI_ONLY_PNG
#define STBI_ONLY_GIF
#define STBI_ONLY_BMP
#include <stb/stb_image.h>

#include "image.h"

#define MAX_FILE_BYTES (1L << 30)
/* A progressive JPEG has about ten; thousands are an attack on time. */
#define MAX_JPEG_SCANS 1000

static const char HINT_DAMAGED[] = "replace the file, or remove it from the data set";

static bool size_is_sane(long w, long h, Error *e)
{
    if (w < 1 || h < 1)
        return fail(e, HINT_DAMAGED, "image has no pixels (%ld x %ld)", w, h);
    if (w > IMAGE_MAX_PIXELS / h)
        return fail(e, "scale it down, or remove it from the data set",
                    "image is too large: %ld x %ld, the limit is %ld pixels", w, h,
                    IMAGE_MAX_PIXELS);
    if (w > IMAGE_MAX_SIDE || h > IMAGE_MAX_SIDE)
        return fail(e, "scale it down, or remove it from the data set",
                    "image is too long: %ld x %ld, the limit of a side is %d pixels", w, h,
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

/* ---- EXIF orientation ---- */

static uint32_t get_uint(const uint8_t *p, int bytes, bool little)
{
    uint32_t v = 0;
    for (int i = 0; i < bytes; i++)
        v = v << 8 | p[little ? bytes - 1 - i : i];
    return v;
}

/* Tag 0x0112 of the first directory of a TIFF block; 1 (upright) if absent or malformed. */
static int tiff_orientation(const uint8_t *p, size_t n)
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

/* Turn the picture upright. Output pixel (x, y) is input pixel origin + x*step_x + y*step_y. */
static void orient(Image *im, int orientation)
{
    long w = im->w, h = im->h;
    long origin = 0, step_x = 1, step_y = w; /* in pixels */
    switch (orientation) {
    case 2:
        origin = w - 1, step_x = -1;
        break;
    case 3:
        origin = w * h - 1, step_x = -1, step_y = -w;
        break;
    case 4:
        origin = w * (h - 1), step_y = -w;
        break;
    case 5:
        step_x = w, step_y = 1;
        break;
    case 6:
        origin = w * (h - 1), step_x = -w, step_y = 1;
        break;
    case 7:
        origin = w * h - 1, step_x = -w, step_y = -1;
        break;
    case 8:
        origin = w - 1, step_x = w, step_y = -1;
        break;
    default:
        return;
    }
    Image out;
    if (orientation >= 5)
        image_alloc(&out, (int)h, (int)w);
    else
        image_alloc(&out, (int)w, (int)h);
    uint8_t *dst = out.rgb;
    for (long y = 0; y < out.h; y++)
        for (long x = 0; x < out.w; x++, dst += 3)
            memcpy(dst, im->rgb + 3 * (origin + x * step_x + y * step_y), 3);
    image_free(im);
    *im = out;
}

/* ---- JPEG ---- */

typedef struct {
    struct jpeg_decompress_struct d;
    struct jpeg_error_mgr errors;
    struct jpeg_source_mgr source;
    struct jpeg_progress_mgr progress;
    jmp_buf jump;
    char what[JMSG_LENGTH_MAX];
    uint8_t *row; /* one row of CMYK */
} JpegReader;

static void jpeg_on_error(j_common_ptr c)
{
    JpegReader *r = c->client_data;
    c->err->format_message(c, r->what);
    longjmp(r->jump, 1);
}

/* Warnings ("corrupt JPEG data: 3 extraneous bytes ...") are survived silently, as in Pillow. */
static void jpeg_on_message(j_common_ptr c)
{
    (void)c;
}

static void jpeg_on_progress(j_common_ptr c)
{
    JpegReader *r = c->client_data;
    if (r->d.input_scan_number > MAX_JPEG_SCANS) {
        snprintf(r->what, sizeof r->what, "more than %d scans", MAX_JPEG_SCANS);
        longjmp(r->jump, 1);
    }
}

static void jpeg_source_nothing(j_decompress_ptr d)
{
    (void)d;
}

/* All bytes are there from the start, so a request for more means that the file is truncated. FALSE
 * suspends the decoder, and each call below then reports that it could not finish. */
static boolean jpeg_source_fill(j_decompress_ptr d)
{
    (void)d;
    return FALSE;
}

static void jpeg_source_skip(j_decompress_ptr d, long n)
{
    size_t left = d->src->bytes_in_buffer;
    size_t skip = n <= 0 ? 0 : (size_t)n < left ? (size_t)n : left;
    d->src->next_input_byte += skip;
    d->src->bytes_in_buffer -= skip;
}

/* Four-component files store inverted ink (Adobe's convention, which Pillow assumes for all of
 * them; libjpeg has turned YCCK into CMYK): rgb = white - black - ink * (1 - black), rounded as in
 * Pillow. */
static void cmyk_row(const uint8_t *in, uint8_t *out, int w)
{
    for (int x = 0; x < w; x++, in += 4, out += 3) {
        int light = in[3];
        for (int c = 0; c < 3; c++) {
            int t = (255 - in[c]) * light + 128;
            int v = light - ((t + (t >> 8)) >> 8);
            out[c] = (uint8_t)(v < 0 ? 0 : v);
        }
    }
}

static int jpeg_orientation(const JpegReader *r)
{
    for (jpeg_saved_marker_ptr m = r->d.marker_list; m; m = m->next)
        if (m->data_length >= 6 && memcmp(m->data, "Exif\0\0", 6) == 0)
            return tiff_orientation(m->data + 6, m->data_length - 6);
    return 1;
}

static bool jpeg_truncated(Error *e)
{
    return fail(e, HINT_DAMAGED, "truncated JPEG");
}

/* Runs under decode_jpeg's setjmp: what must be freed after a longjmp lives in r and im. */
static bool jpeg_pixels(JpegReader *r, Image *im, Error *e)
{
    j_decompress_ptr d = &r->d;
    if (jpeg_read_header(d, TRUE) != JPEG_HEADER_OK)
        return jpeg_truncated(e);
    if (!size_is_sane(d->image_width, d->image_height, e))
        return false;
    int orientation = jpeg_orientation(r); /* the marker list does not outlive finish_decompress */
    bool cmyk = d->num_components == 4;
    if (d->num_components != 1 && d->num_components != 3 && !cmyk)
        return fail(e, HINT_DAMAGED, "JPEG with %d colour components", d->num_components);
    d->out_color_space = cmyk ? JCS_CMYK : JCS_RGB;
    if (!jpeg_start_decompress(d))
        return jpeg_truncated(e);
    image_alloc(im, (int)d->output_width, (int)d->output_height);
    if (cmyk)
        r->row = xmalloc((size_t)im->w * 4);
    while (d->output_scanline < d->output_height) {
        uint8_t *out = im->rgb + (size_t)d->output_scanline * im->w * 3;
        JSAMPROW rows[1] = {cmyk ? r->row : out};
        if (jpeg_read_scanlines(d, rows, 1) != 1)
            return jpeg_truncated(e);
        if (cmyk)
            cmyk_row(r->row, out, im->w);
    }
    /* A missing end marker is no loss (the result is ignored); garbage in its place is an error. */
    jpeg_finish_decompress(d);
    orient(im, orientation);
    return true;
}

static bool decode_jpeg(const uint8_t *bytes, size_t n, Image *im, Error *e)
{
    JpegReader r = {0};
    r.d.err = jpeg_std_error(&r.errors);
    r.errors.error_exit = jpeg_on_error;
    r.errors.output_message = jpeg_on_message;
    r.d.client_data = &r;
    bool ok;
    if (setjmp(r.jump)) {
        ok = fail(e, HINT_DAMAGED, "damaged JPEG: %s", r.what);
    } else {
        jpeg_create_decompress(&r.d);
        r.source = (struct jpeg_source_mgr){.next_input_byte = bytes,
                                            .bytes_in_buffer = n,
                                            .init_source = jpeg_source_nothing,
                                            .fill_input_buffer = jpeg_source_fill,
                                            .skip_input_data = jpeg_source_skip,
                                            .resync_to_restart = jpeg_resync_to_restart,
                                            .term_source = jpeg_source_nothing};
        r.progress.progress_monitor = jpeg_on_progress;
        r.d.src = &r.source;
        r.d.progress = &r.progress;
        jpeg_save_markers(&r.d, JPEG_APP0 + 1, 0xFFFF); /* EXIF */
        ok = jpeg_pixels(&r, im, e);
    }
    jpeg_destroy_decompress(&r.d);
    free(r.row);
    if (!ok)
        image_free(im);
    return ok;
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
static bool png_check(const uint8_t *p, size_t n, int *orientation, Error *e)
{
    for (size_t at = 8; n - at >= 12;) {
        size_t len = get_uint(p + at, 4, false);
        const uint8_t *type = p + at + 4;
        if (len > n - at - 12)
            break;
        if (crc32(type, len + 4) != get_uint(type + 4 + len, 4, false))
            return fail(e, HINT_DAMAGED, "damaged PNG: wrong checksum at byte %zu", at);
        if (memcmp(type, "eXIf", 4) == 0)
            *orientation = tiff_orientation(type + 4, len);
        if (memcmp(type, "IEND", 4) == 0)
            return true;
        at += len + 12;
    }
    return fail(e, HINT_DAMAGED, "truncated PNG");
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

static bool decode_stb(const uint8_t *bytes, size_t n, Image *im, Error *e)
{
    const stbi_io_callbacks io = {stb_source_read, stb_source_skip, stb_source_eof};
    StbSource s = {.p = bytes, .n = n};
    int w, h, channels;
    if (!stbi_info_from_callbacks(&io, &s, &w, &h, &channels))
        return fail(e, HINT_DAMAGED, "damaged image: %s", stbi_failure_reason());
    if (!size_is_sane(w, h, e))
        return false;
    if (bytes[0] == 'B' && (size_t)w * h / 8 > n) /* a BMP has at least one bit per pixel */
        return fail(e, HINT_DAMAGED, "truncated image");
    s = (StbSource){.p = bytes, .n = n};
    im->rgb = stbi_load_from_callbacks(&io, &s, &im->w, &im->h, &channels, 3);
    if (!im->rgb)
        return fail(e, HINT_DAMAGED, "damaged image: %s", stbi_failure_reason());
    if (s.beyond) {
        image_free(im);
        return fail(e, HINT_DAMAGED, "truncated image");
    }
    return true;
}

static bool decode_png(const uint8_t *bytes, size_t n, Image *im, Error *e)
{
    int orientation = 1;
    if (!png_check(bytes, n, &orientation, e) || !decode_stb(bytes, n, im, e))
        return false;
    orient(im, orientation);
    return true;
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

static bool decode_pnm(const uint8_t *bytes, size_t n, Image *im, Error *e)
{
    Bytes b = {bytes + 2, bytes + n};
    bool text = bytes[1] <= '3';
    int channels = bytes[1] == '3' || bytes[1] == '6' ? 3 : 1;
    long w = pnm_number(&b), h = pnm_number(&b), max = pnm_number(&b);
    if (max < 1 || max > 65535)
        return fail(e, HINT_DAMAGED, "damaged PPM or PGM header");
    if (!size_is_sane(w, h, e))
        return false;
    b.p += b.p < b.end; /* one white space ends the header */
    long values = w * h * channels, width = max > 255 ? 2 : 1;
    if (b.end - b.p < values * (text ? 1 : width))
        return fail(e, HINT_DAMAGED, "truncated PPM or PGM");
    image_alloc(im, (int)w, (int)h);
    for (long i = 0; i < values; i++) {
        long v = text ? pnm_number(&b) : (long)get_uint(b.p + i * width, (int)width, false);
        if (v < 0 || v > max) {
            image_free(im);
            return fail(e, HINT_DAMAGED, "damaged PPM or PGM: value %ld of %ld", i, values);
        }
        uint8_t level = (uint8_t)((v * 255 + max / 2) / max);
        if (channels == 3)
            im->rgb[i] = level;
        else
            memset(im->rgb + 3 * i, level, 3);
    }
    return true;
}

/* ---- any image ---- */

bool image_decode(const uint8_t *bytes, size_t n, Image *out, Error *e)
{
    *out = (Image){0};
    if (n == 0)
        return fail(e, HINT_DAMAGED, "file is empty");
    if (n >= 3 && memcmp(bytes, "\xFF\xD8\xFF", 3) == 0)
        return decode_jpeg(bytes, n, out, e);
    if (n >= 8 && memcmp(bytes, "\x89PNG\r\n\x1A\n", 8) == 0)
        return decode_png(bytes, n, out, e);
    if ((n >= 6 && memcmp(bytes, "GIF8", 4) == 0) || (n >= 2 && memcmp(bytes, "BM", 2) == 0))
        return decode_stb(bytes, n, out, e);
    if (n >= 2 && bytes[0] == 'P' && memchr("2356", bytes[1], 4))
        return decode_pnm(bytes, n, out, e);
    return fail(e, "convert it to JPEG or PNG, or remove it from the data set",
                "not a JPEG, PNG, GIF, BMP, PPM or PGM image");
}

/* The whole file; NULL and an error without its path if it cannot be read. */
static uint8_t *read_file(const char *path, size_t *size, Error *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    uint8_t *bytes = NULL;
    if (fd < 0 || fstat(fd, &st) != 0) {
        fail(e, "check the path and its permissions", "%s", strerror(errno));
    } else if (!S_ISREG(st.st_mode) || st.st_size > MAX_FILE_BYTES) {
        fail(e, "remove it from the data set", "not a regular file of at most %ld bytes",
             MAX_FILE_BYTES);
    } else {
        bytes = xmalloc((size_t)st.st_size + 1);
        size_t at = 0;
        ssize_t got = 1;
        while (at < (size_t)st.st_size && (got = read(fd, bytes + at, st.st_size - at)) > 0)
            at += (size_t)got;
        *size = at;
        if (got < 0) {
            fail(e, "check the disk", "read error: %s", strerror(errno));
            free(bytes);
            bytes = NULL;
        }
    }
    if (fd >= 0)
        close(fd);
    return bytes;
}

bool image_load(const char *path, Image *out, Error *e)
{
    *out = (Image){0};
    Error why;
    size_t n;
    uint8_t *bytes = read_file(path, &n, &why);
    bool ok = bytes && image_decode(bytes, n, out, &why);
    free(bytes);
    return ok || fail(e, why.hint, "%s: %s", path, why.what);
}

/* ---- decoder ---- */

struct Decoder {
    uint8_t *room, *scratch;
    size_t scratch_size;
    Image owned;
    const uint8_t *rgb;
    int w, h;
    uint64_t bytes;
};

Decoder *decoder_new(void)
{
    return xcalloc(1, sizeof(Decoder));
}

void decoder_free(Decoder *d)
{
    if (!d)
        return;
    image_free(&d->owned);
    free(d->room);
    free(d->scratch);
    free(d);
}

uint8_t *decoder_scratch(Decoder *d, size_t n)
{
    if (n > d->scratch_size) {
        free(d->scratch);
        d->scratch = xmalloc(n);
        d->scratch_size = n;
    }
    return d->scratch;
}

uint8_t *decoder_room(Decoder *d, size_t n, Error *e)
{
    if (n > MAX_FILE_BYTES) {
        fail(e, HINT_DAMAGED, "more than %ld bytes", MAX_FILE_BYTES);
        return NULL;
    }
    free(d->room);
    return d->room = xmalloc(n + 1);
}

static void decoder_set(Decoder *d, Image im)
{
    image_free(&d->owned);
    d->owned = im;
    d->rgb = im.rgb;
    d->w = im.w;
    d->h = im.h;
}

bool decoder_open(Decoder *d, const uint8_t *bytes, size_t n, Error *e)
{
    Image im;
    if (!image_decode(bytes, n, &im, e))
        return false;
    d->bytes += n;
    decoder_set(d, im);
    return true;
}

bool decoder_open_file(Decoder *d, const char *path, Error *e)
{
    size_t n;
    uint8_t *bytes = read_file(path, &n, e);
    bool ok = bytes && decoder_open(d, bytes, n, e);
    free(bytes);
    return ok;
}

void decoder_open_pixels(Decoder *d, const uint8_t *rgb, int w, int h)
{
    decoder_set(d, (Image){0});
    d->rgb = rgb;
    d->w = w;
    d->h = h;
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
    return d->bytes;
}

bool decoder_crop(Decoder *d, const Target *t, Box b, bool flip, uint8_t *out, Error *e)
{
    Image im = {d->w, d->h, (uint8_t *)d->rgb};
    (void)e;
    image_crop_resize(&im, b, t->filter, t->out_w, t->out_h, flip, out);
    return true;
}

bool decoder_eval(Decoder *d, const Target *t, uint8_t *out, Error *e)
{
    Image im = {d->w, d->h, (uint8_t *)d->rgb};
    (void)e;
    image_eval(&im, t->crop, t->resize, t->filter, t->out_w, t->out_h, out);
    return true;
}

/* ---- writing ---- */

typedef struct {
    struct jpeg_error_mgr errors;
    jmp_buf jump;
    char what[JMSG_LENGTH_MAX];
} JpegWriter;

static void jpeg_on_write_error(j_common_ptr c)
{
    JpegWriter *w = c->client_data;
    c->err->format_message(c, w->what);
    longjmp(w->jump, 1);
}

static bool write_jpeg(FILE *f, const uint8_t *rgb, int w, int h, int quality, Error *e)
{
    JpegWriter wr = {0};
    struct jpeg_compress_struct c = {.err = jpeg_std_error(&wr.errors), .client_data = &wr};
    wr.errors.error_exit = jpeg_on_write_error;
    bool ok = true;
    if (setjmp(wr.jump)) {
        jpeg_destroy_compress(&c);
        return fail(e, "check the free space on the disk", "%s", wr.what);
    }
    jpeg_create_compress(&c);
    jpeg_stdio_dest(&c, f);
    c.image_width = (JDIMENSION)w;
    c.image_height = (JDIMENSION)h;
    c.input_components = 3;
    c.in_color_space = JCS_RGB;
    jpeg_set_defaults(&c);
    jpeg_set_quality(&c, quality, TRUE);
    jpeg_start_compress(&c, TRUE);
    while (c.next_scanline < c.image_height) {
        JSAMPROW row = (JSAMPROW)(rgb + (size_t)c.next_scanline * w * 3);
        jpeg_write_scanlines(&c, &row, 1);
    }
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    return ok;
}

bool image_write_jpeg(const char *path, const uint8_t *rgb, int w, int h, int quality, Error *e)
{
    char *part = xasprintf("%s.%ld.part", path, (long)getpid());
    FILE *f = fopen(part, "wb");
    Error why;
    bool ok = f && write_jpeg(f, rgb, w, h, quality, &why);
    if (!f || (fclose(f) != 0 && ok))
        ok = fail(&why, "check the directory, its permissions and the free space", "%s",
                  strerror(errno));
    if (ok && rename(part, path) != 0)
        ok = fail(&why, "check the directory and its permissions", "%s", strerror(errno));
    if (!ok)
        remove(part);
    free(part);
    return ok || fail(e, why.hint, "cannot write %s: %s", path, why.what);
}
