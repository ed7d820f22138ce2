/* tiff.c - TIFF files in parts, through libtiff: slides of gigabytes too.
 *
 * Only the tiles, or the strips, that the area touches are decoded: one row of them at a time. Of a
 * pyramid (smaller versions of the picture as further pages or in SubIFDs) the coarsest version is
 * read in which an output pixel still has an input pixel. Read like this are 8 and 16 bits of grey,
 * RGB, CMYK and palette, in any compression, with samples together or apart, and YCbCr in JPEG;
 * 16 bits keep the upper 8, and alpha is dropped. Everything else (bits, nibbles, other YCbCr) is
 * decoded whole by libtiff's own conversion to RGBA, within the limits of pictures in memory.
 *
 * Files are untrusted: libtiff checks offsets against the file's size, and here the sizes that it
 * would allocate are checked before.
 *
 * Order: the file in memory, the header and its versions, samples to pixels, bands of rows.
 */
#include "image/parts.h"

#ifdef HAVE_TIFF
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <tiffio.h>

enum {
    MAX_SIDE = 1 << 20,  /* of a slide; what is read of it is at most IMAGE_MAX_SIDE wide */
    MAX_VERSIONS = 32,   /* pages that are looked at */
    MAX_SAMPLES = 16,    /* per pixel */
    MAX_BAND = 512 << 20 /* bytes of a row of tiles */
};
#define MAX_AREA ((double)IMAGE_MAX_SIDE * IMAGE_MAX_SIDE) /* pixels that are read at once */

typedef struct {
    int w, h;
    uint64_t offset; /* of its directory */
} Version;

/* How the pixels of the chosen version are laid out. */
typedef struct {
    uint16_t bits, samples, photometric;
    bool tiled, exotic;
    int planes; /* 1, or as many as samples: each stands apart */
    int strip;  /* rows of a strip that has to be decoded from its first; 0: any row can be read */
    int unit_w, unit_h;  /* of a tile, or of a strip */
    tmsize_t unit_bytes; /* in one plane */
    uint16_t *palette[3];
} Layout;

typedef struct {
    TIFF *tiff;
    const uint8_t *bytes;
    uint64_t n, at;
    uint16_t orientation;
    Version version[MAX_VERSIONS];
    int versions;
    const Version *chosen;
    Layout layout;
    Box area;
    int y;                /* next row */
    int band_y, band_end; /* rows in `band`, [][area.width, 3] */
    Room unit, band, rows;
} TiffReader;

static bool damaged(Error *e)
{
    return fail(e, hint_damaged, "damaged or truncated TIFF");
}

/* ---- the file in memory ---- */

static tmsize_t client_read(thandle_t ctx, void *out, tmsize_t want)
{
    TiffReader *r = ctx;
    uint64_t left = r->at < r->n ? r->n - r->at : 0;
    size_t n = want > 0 ? (size_t)want : 0;
    n = n < left ? n : (size_t)left;
    if (n)
        memcpy(out, r->bytes + r->at, n);
    r->at += n;
    return (tmsize_t)n;
}

static tmsize_t client_write(thandle_t ctx, void *bytes, tmsize_t n)
{
    (void)ctx, (void)bytes, (void)n;
    return -1;
}

static toff_t client_seek(thandle_t ctx, toff_t to, int whence)
{
    TiffReader *r = ctx;
    const uint64_t from[] = {[SEEK_SET] = 0, [SEEK_CUR] = r->at, [SEEK_END] = r->n};
    return r->at = from[whence] + to;
}

static int client_close(thandle_t ctx)
{
    (void)ctx;
    return 0;
}

static toff_t client_size(thandle_t ctx)
{
    return ((TiffReader *)ctx)->n;
}

static int client_map(thandle_t ctx, void **base, toff_t *size)
{
    TiffReader *r = ctx;
    *base = (void *)(uintptr_t)r->bytes;
    *size = r->n;
    return 1;
}

static void be_quiet(void)
{
    TIFFSetErrorHandler(NULL);
    TIFFSetWarningHandler(NULL);
}

static void tiff_close(TiffReader *r)
{
    if (r->tiff)
        TIFFClose(r->tiff);
    r->tiff = NULL;
}

static void tiff_free(void *reader)
{
    TiffReader *r = reader;
    tiff_close(r);
    room_free(&r->unit);
    room_free(&r->band);
    room_free(&r->rows);
    free(r);
}

/* ---- the header and its versions ---- */

static bool current_size(TiffReader *r, Version *out)
{
    uint32_t w = 0, h = 0;
    TIFFGetField(r->tiff, TIFFTAG_IMAGEWIDTH, &w);
    TIFFGetField(r->tiff, TIFFTAG_IMAGELENGTH, &h);
    *out = (Version){(int)w, (int)h, TIFFCurrentDirOffset(r->tiff)};
    return w >= 1 && h >= 1 && w <= MAX_SIDE && h <= MAX_SIDE;
}

/* The current directory, if it holds a smaller version of the picture: of the same shape but for
 * the rounding of its sides. */
static void add_version(TiffReader *r)
{
    Version v, first = r->version[0];
    if (r->versions == MAX_VERSIONS || !current_size(r, &v) || v.w >= first.w || v.h >= first.h)
        return;
    double fx = (double)first.w / v.w, fy = (double)first.h / v.h, f = fx > fy ? fx : fy;
    if (fabs(fx - fy) / f <= f / (v.w < v.h ? first.w : first.h) + 0.002)
        r->version[r->versions++] = v;
}

static void find_versions(TiffReader *r)
{
    uint16_t count = 0;
    uint64_t *listed = NULL, offset[MAX_VERSIONS];
    bool tiled = TIFFIsTiled(r->tiff);
    if (TIFFGetField(r->tiff, TIFFTAG_SUBIFD, &count, &listed)) {
        count = (uint16_t)lesser(count, MAX_VERSIONS);
        memcpy(offset, listed, sizeof *offset * count);
    } else {
        count = 0;
    }
    for (int i = 1; i < MAX_VERSIONS && TIFFReadDirectory(r->tiff); i++) {
        uint32_t type = 0;
        TIFFGetField(r->tiff, TIFFTAG_SUBFILETYPE, &type);
        /* Slides' versions are tiled and often not marked as such. Pages of a document are not
         * versions of the first. */
        if ((type & FILETYPE_REDUCEDIMAGE) || (tiled && TIFFIsTiled(r->tiff)))
            add_version(r);
    }
    for (int i = 0; i < count; i++)
        if (TIFFSetSubDirectory(r->tiff, offset[i]))
            add_version(r);
}

static bool tiff_open(void *reader, const uint8_t *bytes, size_t n, Header *out, Error *e)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT; /* the handlers are the whole process's */
    pthread_once(&once, be_quiet);
    TiffReader *r = reader;
    tiff_close(r);
    r->bytes = bytes;
    r->n = n;
    r->at = 0;
    r->versions = 1;
    r->tiff = TIFFClientOpen("TIFF", "r", r, client_read, client_write, client_seek, client_close,
                             client_size, client_map, NULL);
    if (!r->tiff)
        return damaged(e);
    if (!current_size(r, &r->version[0]))
        return fail(e, "scale it down, or remove it from the data set",
                    "TIFF of %u x %u pixels, the limit of a side is %d", (unsigned)r->version[0].w,
                    (unsigned)r->version[0].h, MAX_SIDE);
    TIFFGetFieldDefaulted(r->tiff, TIFFTAG_ORIENTATION, &r->orientation);
    int orientation = r->orientation >= 1 && r->orientation <= 8 ? r->orientation : 1;
    find_versions(r);
    *out = (Header){r->version[0].w, r->version[0].h, orientation};
    return true;
}

static void tiff_reduce(void *reader, double shrink, int decode, int *w, int *h)
{
    (void)decode;
    TiffReader *r = reader;
    const Version *first = r->chosen = r->version;
    for (const Version *v = first + 1; v < first + r->versions; v++)
        if (first->w <= shrink * v->w && first->h <= shrink * v->h && v->w < r->chosen->w)
            r->chosen = v;
    *w = r->chosen->w;
    *h = r->chosen->h;
}

/* ---- samples to pixels ---- */

/* What is read here and not by libtiff's conversion. */
static bool is_plain(TIFF *t, Layout *l, int compression)
{
    static const int colours[] = {[PHOTOMETRIC_MINISWHITE] = 1,
                                  [PHOTOMETRIC_MINISBLACK] = 1,
                                  [PHOTOMETRIC_RGB] = 3,
                                  [PHOTOMETRIC_PALETTE] = 1,
                                  [PHOTOMETRIC_SEPARATED] = 4};
    uint16_t format = 0, ink = INKSET_CMYK;
    TIFFGetFieldDefaulted(t, TIFFTAG_SAMPLEFORMAT, &format);
    TIFFGetField(t, TIFFTAG_INKSET, &ink);
    int needed = l->photometric < COUNT(colours) ? colours[l->photometric] : 0;
    if (needed == 0 || l->samples < needed || l->samples > MAX_SAMPLES)
        return false;
    if (format != SAMPLEFORMAT_UINT || compression == COMPRESSION_OJPEG)
        return false;
    if (l->photometric == PHOTOMETRIC_SEPARATED && ink != INKSET_CMYK)
        return false;
    if (l->photometric == PHOTOMETRIC_PALETTE)
        return l->bits == 8 &&
               TIFFGetField(t, TIFFTAG_COLORMAP, &l->palette[0], &l->palette[1], &l->palette[2]);
    return l->bits == 8 || l->bits == 16;
}

/* What is decoded at once: a tile, a strip of a plane, or a row. */
static bool read_unit_size(TiffReader *r, int compression, Error *e)
{
    TIFF *t = r->tiff;
    Layout *l = &r->layout;
    uint32_t w = 0, h = 0, rows = (uint32_t)r->chosen->h;
    if (l->tiled) {
        TIFFGetField(t, TIFFTAG_TILEWIDTH, &w);
        TIFFGetField(t, TIFFTAG_TILELENGTH, &h);
    } else {
        w = (uint32_t)r->chosen->w;
        TIFFGetFieldDefaulted(t, TIFFTAG_ROWSPERSTRIP, &h);
        h = h < rows ? h : rows;
        l->strip = compression != COMPRESSION_NONE ? (int)h : 0;
        h = l->planes > 1 ? h : 1; /* samples together: row by row */
    }
    if (w < 1 || h < 1 || w > MAX_SIDE || h > MAX_SIDE)
        return damaged(e);
    l->unit_w = (int)w;
    l->unit_h = (int)h;
    uint64_t bytes = l->tiled ? TIFFTileSize64(t) : TIFFScanlineSize64(t) * h;
    uint64_t least = (uint64_t)w * h * (l->samples / (unsigned)l->planes) * (l->bits / 8);
    uint64_t most = l->exotic && !l->tiled ? TIFFStripSize64(t) : bytes;
    if ((!l->exotic && bytes < least) || most < 1 || most > MAX_BAND)
        return damaged(e);
    l->unit_bytes = (tmsize_t)bytes;
    return true;
}

static bool read_layout(TiffReader *r, Error *e)
{
    TIFF *t = r->tiff;
    Layout *l = &r->layout;
    uint16_t compression = 0, planar = 0;
    *l = (Layout){0};
    if (!TIFFSetSubDirectory(t, r->chosen->offset))
        return damaged(e);
    TIFFGetFieldDefaulted(t, TIFFTAG_COMPRESSION, &compression);
    if (!TIFFGetField(t, TIFFTAG_PHOTOMETRIC, &l->photometric))
        return damaged(e);
    if (!TIFFIsCODECConfigured(compression))
        return fail(e, "convert it to PNG, or remove it from the data set",
                    "libtiff cannot read TIFF compression %d", compression);
    if (l->photometric >= PHOTOMETRIC_CIELAB && l->photometric <= PHOTOMETRIC_ITULAB)
        return fail(e, "convert it to RGB, or remove it from the data set",
                    "a TIFF of Lab colours, which libtiff turns into darker or lighter ones");
    if (l->photometric == PHOTOMETRIC_YCBCR && compression == COMPRESSION_JPEG) {
        TIFFSetField(t, TIFFTAG_JPEGCOLORMODE, JPEGCOLORMODE_RGB);
        l->photometric = PHOTOMETRIC_RGB;
    }
    TIFFGetFieldDefaulted(t, TIFFTAG_BITSPERSAMPLE, &l->bits);
    TIFFGetFieldDefaulted(t, TIFFTAG_SAMPLESPERPIXEL, &l->samples);
    TIFFGetFieldDefaulted(t, TIFFTAG_PLANARCONFIG, &planar);
    l->tiled = TIFFIsTiled(t);
    l->planes = planar == PLANARCONFIG_SEPARATE && l->samples > 1 ? l->samples : 1;
    l->exotic = !is_plain(t, l, compression);
    return read_unit_size(r, compression, e);
}

/* n pixels; sample s of pixel x is `bytes` wide at in[s] + x * step. */
static void to_rgb(const Layout *l, const uint8_t *const *in, size_t step, int n, uint8_t *out)
{
    int upper = l->bits == 16 && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__; /* the byte kept */
    for (int x = 0; x < n; x++, out += 3) {
        size_t at = x * step + (size_t)upper;
        int v = in[0][at];
        switch (l->photometric) {
        case PHOTOMETRIC_RGB:
            for (int c = 0; c < 3; c++)
                out[c] = in[c][at];
            break;
        case PHOTOMETRIC_SEPARATED:
            rgb_of_inks(v, in[1][at], in[2][at], 255 - in[3][at], out);
            break;
        case PHOTOMETRIC_PALETTE:
            for (int c = 0; c < 3; c++)
                out[c] = (uint8_t)(l->palette[c][v] >> 8);
            break;
        default:
            memset(out, l->photometric == PHOTOMETRIC_MINISWHITE ? 255 - v : v, 3);
        }
    }
}

/* ---- bands of rows ---- */

/* The tile or strip at pixel (x, y), its sample planes one after the other. What a damaged one
 * leaves out, without libtiff's saying so, is zeros and not the picture before. */
static bool read_unit(TiffReader *r, int x, int y)
{
    const Layout *l = &r->layout;
    uint8_t *to = r->unit.p;
    memset(to, 0, (size_t)l->unit_bytes * (size_t)l->planes);
    for (int s = 0; s < l->planes; s++, to += l->unit_bytes) {
        uint16_t plane = (uint16_t)s;
        if (l->tiled) {
            uint32_t tile = TIFFComputeTile(r->tiff, (uint32_t)x, (uint32_t)y, 0, plane);
            if (TIFFReadEncodedTile(r->tiff, tile, to, l->unit_bytes) != l->unit_bytes)
                return false;
        } else if (l->planes > 1) {
            uint32_t strip = TIFFComputeStrip(r->tiff, (uint32_t)y, plane);
            int rows = lesser(r->chosen->h - y / l->unit_h * l->unit_h, l->unit_h);
            tmsize_t want = l->unit_bytes / l->unit_h * rows;
            if (TIFFReadEncodedStrip(r->tiff, strip, to, want) != want)
                return false;
        } else if (TIFFReadScanline(r->tiff, to, (uint32_t)y, 0) < 0) {
            return false;
        }
    }
    return true;
}

/* What the area has of the row of units at row y. */
static bool read_band(TiffReader *r, int y)
{
    const Layout *l = &r->layout;
    int top = y / l->unit_h * l->unit_h, right = r->area.left + r->area.width;
    int bottom = r->area.top + r->area.height;
    r->band_y = greater(top, r->area.top);
    r->band_end = lesser(top + l->unit_h, bottom);
    size_t bytes = l->bits / 8, step = bytes * (size_t)(l->samples / l->planes);
    size_t apart = l->planes > 1 ? (size_t)l->unit_bytes : bytes; /* samples of a pixel */
    for (int left = r->area.left / l->unit_w * l->unit_w; left < right; left += l->unit_w) {
        if (!read_unit(r, left, y))
            return false;
        int x0 = greater(left, r->area.left), x1 = lesser(left + l->unit_w, right);
        for (int row = r->band_y; row < r->band_end; row++) {
            const uint8_t *in[MAX_SAMPLES];
            size_t at = ((size_t)(row - top) * l->unit_w + (size_t)(x0 - left)) * step;
            size_t to = (size_t)(row - r->band_y) * r->area.width + (size_t)(x0 - r->area.left);
            for (int s = 0; s < l->samples; s++)
                in[s] = (const uint8_t *)r->unit.p + at + s * apart;
            to_rgb(l, in, step, x1 - x0, (uint8_t *)r->band.p + 3 * to);
        }
    }
    return true;
}

/* Everything that is not read in units: the whole picture, of which the band is the area. */
static bool read_exotic(TiffReader *r, Error *e)
{
    int w = r->chosen->w, h = r->chosen->h;
    char why[1024];
    if (!size_is_sane(w, h, true, e))
        return false;
    if (!TIFFRGBAImageOK(r->tiff, why))
        return fail(e, "convert it to PNG, or remove it from the data set",
                    "libtiff cannot read this TIFF: %s", why);
    uint32_t *pixels = room_get(&r->unit, (size_t)w * h * sizeof *pixels);
    memset(pixels, 0, (size_t)w * h * sizeof *pixels);
    /* in the order it is stored: the caller turns it */
    if (!TIFFReadRGBAImageOriented(r->tiff, (uint32_t)w, (uint32_t)h, pixels, r->orientation, 1))
        return damaged(e);
    uint8_t *out = room_get(&r->band, (size_t)r->area.width * r->area.height * 3);
    for (int y = 0; y < r->area.height; y++)
        for (int x = 0; x < r->area.width; x++, out += 3) {
            uint32_t p = pixels[(size_t)(r->area.top + y) * w + (size_t)(r->area.left + x)];
            out[0] = (uint8_t)TIFFGetR(p);
            out[1] = (uint8_t)TIFFGetG(p);
            out[2] = (uint8_t)TIFFGetB(p);
        }
    r->band_y = r->area.top;
    r->band_end = r->area.top + r->area.height;
    return true;
}

static bool tiff_start(void *reader, Box area, Error *e)
{
    TiffReader *r = reader;
    const Layout *l = &r->layout;
    r->area = area;
    r->y = r->band_y = r->band_end = area.top;
    if (!read_layout(r, e))
        return false;
    if (l->exotic)
        return read_exotic(r, e);
    uint64_t band = (uint64_t)area.width * 3 * l->unit_h;
    uint64_t unit = (uint64_t)l->unit_bytes * (unsigned)l->planes;
    if (area.width > IMAGE_MAX_SIDE || (double)area.width * area.height > MAX_AREA ||
        band > MAX_BAND || unit > MAX_BAND)
        return fail(e, "save it in smaller tiles or strips",
                    "TIFF is too large to read in parts: %d x %d pixels in tiles or strips %d x %d",
                    area.width, area.height, l->unit_w, l->unit_h);
    room_get(&r->unit, unit);
    room_get(&r->band, band);
    room_get(&r->rows, (size_t)area.width * 3 * ROWS);
    /* Most compressions cannot begin within a strip. */
    for (int y = l->strip ? area.top / l->strip * l->strip : area.top;
         !l->tiled && l->planes == 1 && y < area.top; y++)
        if (TIFFReadScanline(r->tiff, r->unit.p, (uint32_t)y, 0) < 0)
            return damaged(e);
    return true;
}

static bool tiff_rows(void *reader, int n, const uint8_t **row, Error *e)
{
    TiffReader *r = reader;
    size_t bytes = (size_t)r->area.width * 3;
    for (int i = 0; i < n; i++, r->y++) {
        if (r->y >= r->band_end && !read_band(r, r->y))
            return damaged(e);
        const uint8_t *from = (const uint8_t *)r->band.p + bytes * (r->y - r->band_y);
        row[i] = from;
        if (!r->layout.exotic) /* the next row may be in another band */
            row[i] = memcpy((uint8_t *)r->rows.p + bytes * i, from, bytes);
    }
    return true;
}

const PartReader tiff_reader = {sizeof(TiffReader), tiff_free,  tiff_open,
                                tiff_reduce,        tiff_start, tiff_rows};
#endif
