/* write.c - pictures to files: JPEG through libjpeg-turbo, PNG through stb_image_write. */
#include "image/write.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

#include <jpeglib.h>
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STBI_WRITE_NO_STDIO
#include <stb/stb_image_write.h>

#include "util/files.h"

typedef struct {
    struct jpeg_error_mgr errors;
    jmp_buf jump;
    char what[JMSG_LENGTH_MAX];
    unsigned char *bytes;
    unsigned long n;
} JpegWriter;

static void on_write_error(j_common_ptr c)
{
    JpegWriter *w = c->client_data;
    c->err->format_message(c, w->what);
    longjmp(w->jump, 1);
}

bool image_encode_jpeg(const uint8_t *rgb, int w, int h, int quality, uint8_t **bytes, size_t *n,
                       Error *e)
{
    JpegWriter wr = {.n = 0};
    struct jpeg_compress_struct c = {.err = jpeg_std_error(&wr.errors), .client_data = &wr};
    if (w < 1 || h < 1 || w > JPEG_MAX_DIMENSION || h > JPEG_MAX_DIMENSION)
        return fail(e, "scale it down", "a JPEG cannot have %d x %d pixels", w, h);
    wr.errors.error_exit = on_write_error;
    if (setjmp(wr.jump)) { /* no memory: libjpeg has kept the bytes to itself */
        jpeg_destroy_compress(&c);
        return fail(e, "free some memory", "cannot encode %d x %d pixels: %s", w, h, wr.what);
    }
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, &wr.bytes, &wr.n);
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
    *bytes = wr.bytes;
    *n = wr.n;
    return true;
}

static bool save_bytes(const char *path, uint8_t *bytes, size_t n, Error *e)
{
    bool ok = save_file(path, bytes, n, false, e);
    free(bytes);
    return ok;
}

bool image_write_jpeg(const char *path, const uint8_t *rgb, int w, int h, int quality, Error *e)
{
    uint8_t *bytes;
    size_t n;
    return image_encode_jpeg(rgb, w, h, quality, &bytes, &n, e) && save_bytes(path, bytes, n, e);
}

bool image_write_png(const char *path, const uint8_t *rgb, int w, int h, Error *e)
{
    int n;
    unsigned char *bytes = stbi_write_png_to_mem(rgb, 3 * w, w, h, 3, &n);
    return bytes ? save_bytes(path, bytes, (size_t)n, e)
                 : fail(e, "make it smaller", "cannot encode %d x %d pixels as PNG", w, h);
}
