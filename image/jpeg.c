/* jpeg.c - JPEG files in parts, through libjpeg-turbo.
 *
 * Of a picture only the rows from the first that is needed are transformed, in the columns that are
 * needed, and nothing below the last is looked at: what is above and beside still has to be entropy
 * decoded. Bit for bit the same pixels as those of the whole picture, which takes care in two
 * places: chroma is interpolated between neighbours, so that one column more is decoded on each
 * side; and where scans of a progressive file are missing, libjpeg smooths over wider surroundings,
 * so that such a file is decoded whole.
 *
 * Entropy decoding is libjpeg's. A decoder of our own, 461 lines, made crops of ImageNet's
 * originals 1.25 times as fast: too little to keep it (bench/results).
 *
 * Memory: a few rows, whatever the size of the picture, unless it has several scans (progressive):
 * then all coefficients.
 *
 * Order: errors and bytes, the header, the area, rows.
 */
#include "image/parts.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

/* A progressive JPEG has about ten. Hundreds are an attack on time: each goes through all of the
 * picture, in a few bytes. */
#define MAX_SCANS 100

typedef struct {
    struct jpeg_decompress_struct d;
    struct jpeg_error_mgr errors;
    struct jpeg_source_mgr source;
    struct jpeg_progress_mgr progress;
    jmp_buf jump;
    char what[JMSG_LENGTH_MAX];
    const uint8_t *bytes;
    size_t n;
    Header header;
    bool fresh; /* the header is read, and nothing beyond */
    int scale;  /* 1, 2, 4 or 8 */
    Box area;
    uint8_t *row[ROWS]; /* [decoded columns, 3] */
    size_t before;      /* bytes in a row before the area's */
    Room rows, ink;
} JpegReader;

static void on_error(j_common_ptr c)
{
    JpegReader *r = c->client_data;
    c->err->format_message(c, r->what);
    longjmp(r->jump, 1);
}

/* Warnings ("corrupt JPEG data: 3 extraneous bytes ...") are survived silently, as in Pillow. */
static void on_message(j_common_ptr c)
{
    (void)c;
}

static void on_progress(j_common_ptr c)
{
    JpegReader *r = c->client_data;
    if (r->d.input_scan_number > MAX_SCANS) {
        snprintf(r->what, sizeof r->what, "more than %d scans", MAX_SCANS);
        longjmp(r->jump, 1);
    }
}

static void source_nothing(j_decompress_ptr d)
{
    (void)d;
}

/* All bytes are there from the start, so a request for more means that the file is truncated. FALSE
 * suspends the decoder, and each call below then reports that it could not finish. */
static boolean source_fill(j_decompress_ptr d)
{
    (void)d;
    return FALSE;
}

static void source_skip(j_decompress_ptr d, long n)
{
    size_t left = d->src->bytes_in_buffer, skip = n > 0 ? (size_t)n : 0;
    skip = skip < left ? skip : left;
    d->src->next_input_byte += skip;
    d->src->bytes_in_buffer -= skip;
}

/* libjpeg reports errors by a jump to where setjmp was called last: in each function below that the
 * decoder calls, none of which holds memory in its own variables alone. */
static bool damaged(const JpegReader *r, Error *e)
{
    return fail(e, hint_damaged, "damaged JPEG: %s", r->what);
}

static bool truncated(Error *e)
{
    return fail(e, hint_damaged, "truncated JPEG");
}

/* ---- the header ---- */

/* libjpeg keeps the tables of the picture before, and a damaged one may have none of its own. So
 * each begins anew, and looks the same whatever its thread has read before. */
static void renew(JpegReader *r)
{
    jpeg_destroy_decompress(&r->d);
    jpeg_create_decompress(&r->d);
    r->source = (struct jpeg_source_mgr){.init_source = source_nothing,
                                         .fill_input_buffer = source_fill,
                                         .skip_input_data = source_skip,
                                         .resync_to_restart = jpeg_resync_to_restart,
                                         .term_source = source_nothing};
    r->progress.progress_monitor = on_progress;
    r->d.src = &r->source;
    r->d.progress = &r->progress;
    jpeg_save_markers(&r->d, JPEG_APP0 + 1, 0xFFFF); /* EXIF */
}

static void set_up(JpegReader *r)
{
    r->d.err = jpeg_std_error(&r->errors);
    r->errors.error_exit = on_error;
    r->errors.output_message = on_message;
    r->d.client_data = r;
    if (setjmp(r->jump))
        die("install one libjpeg-turbo, its library and header alike", "libjpeg: %s", r->what);
    renew(r);
}

static void jpeg_free(void *reader)
{
    JpegReader *r = reader;
    jpeg_destroy_decompress(&r->d);
    room_free(&r->rows);
    room_free(&r->ink);
    free(r);
}

static int marked_orientation(const JpegReader *r)
{
    for (jpeg_saved_marker_ptr m = r->d.marker_list; m; m = m->next)
        if (m->data_length >= 6 && memcmp(m->data, "Exif\0\0", 6) == 0)
            return exif_orientation(m->data + 6, m->data_length - 6);
    return 1;
}

/* Huffman codes have at least one bit, and a block at least two codes. A file that is too short for
 * its size would not be refused before its last rows, after libjpeg has made a big picture of
 * nothing. */
static bool long_enough(const JpegReader *r)
{
    const struct jpeg_decompress_struct *d = &r->d;
    double blocks = 0;
    for (int c = 0; c < d->num_components; c++)
        blocks += (double)d->comp_info[c].width_in_blocks * d->comp_info[c].height_in_blocks;
    return blocks * 2 / 8 <= (double)r->n;
}

static bool read_header(JpegReader *r, Error *e)
{
    j_decompress_ptr d = &r->d;
    renew(r);
    r->source.next_input_byte = r->bytes;
    r->source.bytes_in_buffer = r->n;
    if (jpeg_read_header(d, TRUE) != JPEG_HEADER_OK)
        return truncated(e);
    bool plain = !jpeg_has_multiple_scans(d) && !d->arith_code;
    if (!size_is_sane(d->image_width, d->image_height, !plain, e))
        return false;
    if ((double)d->image_width * d->image_height > IMAGE_MAX_PIXELS && !long_enough(r))
        return truncated(e);
    if (d->num_components != 1 && d->num_components != 3 && d->num_components != 4)
        return fail(e, hint_damaged, "JPEG with %d colour components", d->num_components);
    d->out_color_space = d->num_components == 4 ? JCS_CMYK : JCS_RGB;
    r->header = (Header){(int)d->image_width, (int)d->image_height, marked_orientation(r)};
    r->fresh = true;
    return true;
}

static bool jpeg_open(void *reader, const uint8_t *bytes, size_t n, Header *out, Error *e)
{
    JpegReader *r = reader;
    if (!r->d.err)
        set_up(r);
    r->bytes = bytes;
    r->n = n;
    if (setjmp(r->jump))
        return damaged(r, e);
    if (!read_header(r, e))
        return false;
    *out = r->header;
    return true;
}

/* Twice the size that is needed remains. */
static void jpeg_reduce(void *reader, double shrink, int decode, int *w, int *h)
{
    JpegReader *r = reader;
    r->scale = 1;
    while (decode == DECODE_FAST && r->scale < 8 && shrink / r->scale >= 4)
        r->scale *= 2;
    *w = (r->header.w + r->scale - 1) / r->scale;
    *h = (r->header.h + r->scale - 1) / r->scale;
}

/* ---- the area ---- */

/* libjpeg interpolates coefficients that no scan has given in full: from this on, in the order of
 * the scans. */
static bool smooths(const struct jpeg_decompress_struct *d)
{
    enum { SMOOTHED = 10 };
    if (!d->progressive_mode || !d->coef_bits)
        return false;
    for (int c = 0; c < d->num_components; c++)
        for (int k = 0; k < SMOOTHED; k++)
            if (d->coef_bits[c][k] != 0)
                return true;
    return false;
}

/* One column more on each side than is needed; and not so few that libjpeg would choose another way
 * to interpolate than it does for the whole row. */
static void crop_columns(JpegReader *r)
{
    enum { LEAST = 32 };
    j_decompress_ptr d = &r->d;
    int w = (int)d->output_width, x0 = r->area.left - 1;
    int x1 = lesser(greater(x0 + r->area.width + 2, x0 + LEAST), w);
    x0 = greater(lesser(x0, x1 - LEAST), 0);
    JDIMENSION left = (JDIMENSION)x0, width = (JDIMENSION)(x1 - x0);
    jpeg_crop_scanline(d, &left, &width);
    r->before = 3 * ((size_t)r->area.left - left);
}

static bool jpeg_start(void *reader, Box area, Error *e)
{
    JpegReader *r = reader;
    j_decompress_ptr d = &r->d;
    r->area = area;
    if (setjmp(r->jump))
        return damaged(r, e);
    if (!r->fresh && !read_header(r, e))
        return false;
    r->fresh = false;
    d->scale_num = 1;
    d->scale_denom = (unsigned)r->scale;
    if (!jpeg_start_decompress(d))
        return truncated(e);
    r->before = 3 * (size_t)r->area.left;
    int skip = r->area.top;
    if (!smooths(d))
        crop_columns(r);
    size_t columns = d->output_width;
    uint8_t *rows = room_get(&r->rows, columns * 3 * ROWS);
    for (int i = 0; i < ROWS; i++)
        r->row[i] = rows + columns * 3 * i;
    if (d->out_color_space == JCS_CMYK)
        room_get(&r->ink, columns * 4);
    if (skip > 0)
        jpeg_skip_scanlines(d, (JDIMENSION)skip);
    return (int)d->output_scanline == skip || truncated(e);
}

/* ---- rows ---- */

static bool jpeg_rows(void *reader, int n, const uint8_t **row, Error *e)
{
    JpegReader *r = reader;
    j_decompress_ptr d = &r->d;
    bool cmyk = d->out_color_space == JCS_CMYK;
    if (setjmp(r->jump))
        return damaged(r, e);
    for (int i = 0; i < n;) {
        JSAMPROW ink = r->ink.p;
        int got =
            (int)jpeg_read_scanlines(d, cmyk ? &ink : r->row + i, cmyk ? 1 : (JDIMENSION)(n - i));
        if (got < 1)
            return truncated(e);
        /* Inverted ink: Adobe's convention, which Pillow assumes for all files of four components;
         * libjpeg has turned YCCK into CMYK. */
        uint8_t *out = r->row[i];
        for (JDIMENSION x = 0; cmyk && x < d->output_width; x++, ink += 4, out += 3)
            rgb_of_inks(255 - ink[0], 255 - ink[1], 255 - ink[2], ink[3], out);
        i += got;
    }
    for (int i = 0; i < n; i++)
        row[i] = r->row[i] + r->before;
    /* A missing end marker is no loss (the result is ignored); garbage in its place is an error. */
    if (d->output_scanline == d->output_height)
        jpeg_finish_decompress(d);
    return true;
}

const PartReader jpeg_reader = {sizeof(JpegReader), jpeg_free,  jpeg_open,
                                jpeg_reduce,        jpeg_start, jpeg_rows};
