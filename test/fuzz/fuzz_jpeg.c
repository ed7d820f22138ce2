/* fuzz_jpeg.c - JPEG: where libjpeg alone has no complaint, our reading in parts gives its pixels;
 * where it complains, an error.
 *
 * The picture is taken whole and in its own size, so that the resize changes nothing. Seeds are
 * read in the order of their names: the one without a table must not take that of the one before.
 */
#include "fuzz.h"
#include "image/decoder.h"

#include <jpeglib.h>
#include <setjmp.h>
#include <string.h>

enum { SIDE = 128 };

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf leave;
} Errors;

static void leave(j_common_ptr j)
{
    longjmp(((Errors *)j->err)->leave, 1);
}

static void count(j_common_ptr j, int level)
{
    j->err->num_warnings += level < 0;
}

/* 1 and its pixels, 0: refused or damaged, -1: not to be compared */
static int by_libjpeg(const uint8_t *bytes, size_t n, uint8_t *rgb, int *w, int *h)
{
    struct jpeg_decompress_struct j;
    Errors errors;
    j.err = jpeg_std_error(&errors.base);
    errors.base.error_exit = leave;
    errors.base.emit_message = count;
    volatile int result = 0;
    jpeg_create_decompress(&j);
    if (setjmp(errors.leave) == 0) {
        jpeg_mem_src(&j, bytes, n);
        jpeg_read_header(&j, TRUE);
        if (j.image_width > SIDE || j.image_height > SIDE || j.num_components == 4 ||
            j.progressive_mode || j.arith_code) {
            result = -1;
        } else {
            j.out_color_space = JCS_RGB;
            jpeg_start_decompress(&j);
            *w = (int)j.output_width;
            *h = (int)j.output_height;
            while (j.output_scanline < j.output_height) {
                uint8_t *row = rgb + (size_t)j.output_scanline * j.output_width * 3;
                jpeg_read_scanlines(&j, &row, 1);
            }
            jpeg_finish_decompress(&j);
            result = errors.base.num_warnings == 0;
        }
    }
    jpeg_destroy_decompress(&j);
    return result;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    static uint8_t want[SIDE * SIDE * 3], got[SIDE * SIDE * 3];
    static Decoder *d;
    Error e = {"", ""};
    int w = 0, h = 0;
    if (!d)
        d = decoder_new();
    if (n < 4 || bytes[0] != 0xff || bytes[1] != 0xd8)
        return 0;
    int sound = by_libjpeg(bytes, n, want, &w, &h);
    if (sound < 0 || !decoder_open(d, bytes, n, &e))
        return 0;
    if (decoder_width(d) > SIDE || decoder_height(d) > SIDE)
        return 0;
    bool turned = decoder_width(d) != w || decoder_height(d) != h;
    Preprocess t = {
        .out_w = decoder_width(d), .out_h = decoder_height(d), .filter = FILTER_BICUBIC};
    Box all = {0, 0, decoder_width(d), decoder_height(d)};
    bool ok = decoder_crop(d, &t, all, false, got, &e);
    if (sound && !turned && !memmem(bytes, n, "Exif", 4))
        MUST(ok && memcmp(want, got, (size_t)w * (size_t)h * 3) == 0);
    return 0;
}
