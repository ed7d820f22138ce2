/* test_image.c - pictures: decoding and resizing.
 *
 * argv[1] is the folder that holds fixtures/ and data/; what needs them is skipped without. The
 * rest runs anywhere, on files it writes into a temporary folder.
 */
#include <dirent.h>
#include <setjmp.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <jpeglib.h>
#ifdef HAVE_TIFF
#include <tiffio.h>
#endif
#ifdef HAVE_WEBP
#include <webp/encode.h>
#endif

#include "weights/safetensors.h"
#include "files.h"
#include "image/decoder.h"
#include "image/resize.h"
#include "image/write.h"
#include "util/files.h"
#include "util/rng.h"

enum { SIZE = 224, BYTES = 3 * SIZE * SIZE };

static Decoder *decoder;

/* The box of a picture in memory, resized. */
static void image_crop_resize(const Image *im, Box b, int filter, int out_w, int out_h, bool flip,
                              uint8_t *out)
{
    Error none; /* pixels in memory cannot fail */
    Preprocess p = {.out_w = out_w, .out_h = out_h, .filter = filter};
    Decoder *d = decoder_new();
    decoder_open_pixels(d, im->rgb, im->w, im->h);
    decoder_crop(d, &p, b, flip, out, &none);
    decoder_free(d);
}

/* ---- preprocessing against Pillow ---- */

static void check_gate(const char *what, int i, const uint8_t *got, const uint8_t *want)
{
    double sum = 0;
    int beyond = 0;
    for (int k = 0; k < BYTES; k++) {
        int d = abs(got[k] - want[k]);
        sum += d;
        beyond += d > 3;
    }
    CHECK(sum / BYTES <= 0.5 && beyond <= BYTES / 1000, "%s of image %d: mean %.3f, %d beyond 3",
          what, i, sum / BYTES, beyond);
}

static const uint8_t *fixture(SafeTensors *f, const char *what, int i)
{
    char name[128];
    snprintf(name, sizeof name, "%s.%d", what, i);
    const StTensor *t = st_find(f, name);
    return CHECK(t && t->type == ST_U8 && t->n == BYTES, "%s", name) ? st_data(f, t) : NULL;
}

static void check_preprocessing(SafeTensors *f, int i, const Image *im)
{
    static uint8_t out[BYTES];
    static const struct {
        const char *name;
        int crop, filter;
    } evals[] = {{"eval.crop_bicubic", CROP_CENTER, FILTER_BICUBIC},
                 {"eval.crop_bilinear", CROP_CENTER, FILTER_BILINEAR},
                 {"eval.stretch_bilinear", CROP_STRETCH, FILTER_BILINEAR}};
    for (int k = 0; k < COUNT(evals); k++) {
        const uint8_t *want = fixture(f, evals[k].name, i);
        image_eval(im, evals[k].crop, 256, evals[k].filter, SIZE, SIZE, out);
        if (want)
            check_gate(evals[k].name, i, out, want);
    }
    char name[32];
    snprintf(name, sizeof name, "train.box.%d", i);
    const StTensor *t = st_find(f, name);
    int64_t b[4];
    Error e;
    if (!CHECK(t && t->n == 4 && st_read_i64(f, t, b, &e)))
        return;
    Box box = {(int)b[0], (int)b[1], (int)b[2], (int)b[3]};
    const uint8_t *cubic = fixture(f, "train.crop_bicubic", i);
    const uint8_t *flipped = fixture(f, "train.crop_bilinear_flip", i);
    image_crop_resize(im, box, FILTER_BICUBIC, SIZE, SIZE, false, out);
    if (cubic)
        check_gate("train.crop_bicubic", i, out, cubic);
    image_crop_resize(im, box, FILTER_BILINEAR, SIZE, SIZE, true, out);
    if (flipped)
        check_gate("train.crop_bilinear_flip", i, out, flipped);
}

static void test_fixtures(void)
{
    Error e = {"", ""};
    const char *path = at(shared, "fixtures/preprocess.safetensors");
    const char *images = at(shared, "data/imagenet_sample");
    if (!path_exists(path) || !is_dir(images)) {
        SKIP("preprocessing against Pillow: no %s", path);
        return;
    }
    SafeTensors *f = st_open(path, &e);
    if (!CHECK(f != NULL, "%s", e.what))
        return;
    /* metadata: files = ["folder/file", ...] */
    const char *files = st_meta(f, "files");
    for (int i = 0; CHECK(files != NULL) && i < 8; i++) {
        char name[256];
        int n = 0;
        Image im;
        if (!CHECK(sscanf(files, "%*[^\"]\"%255[^\"]\"%n", name, &n) == 1 && n))
            break;
        files += n;
        if (CHECK(image_load(at(images, name), &im, &e), "%s", e.what)) {
            check_preprocessing(f, i, &im);
            image_free(&im);
        }
    }
    st_close(f);
}

/* ---- resizing by itself ---- */

static void test_resize(void)
{
    enum { W = 7, H = 5 };
    uint8_t in[3 * W * H], out[3 * W * H], back[3 * W * H];
    for (int i = 0; i < 3 * W * H; i++)
        in[i] = (uint8_t)(i * 89 % 256);
    Image im = {W, H, in};
    Box all = {0, 0, W, H};
    for (int filter = FILTER_BILINEAR; filter <= FILTER_BICUBIC; filter++) {
        image_crop_resize(&im, all, filter, W, H, false, out);
        CHECK(memcmp(in, out, sizeof in) == 0, "same size, same pixels");
        image_crop_resize(&im, all, filter, W, H, true, out);
        Image mirrored = {W, H, out};
        image_crop_resize(&mirrored, all, filter, W, H, true, back);
        CHECK(memcmp(in, out, sizeof in) != 0 && memcmp(in, back, sizeof in) == 0, "flip twice");
    }
    /* The centre crop of a picture smaller than the crop is padded evenly. */
    uint8_t grey[3 * 4 * 2], padded[3 * 8 * 8];
    memset(grey, 200, sizeof grey);
    image_eval(&(Image){4, 2, grey}, CROP_CENTER, 2, FILTER_BICUBIC, 8, 8, padded);
    int set = 0;
    for (int i = 0; i < 8 * 8; i++)
        set += padded[3 * i] == 200 && i / 8 >= 3 && i / 8 < 5 && i % 8 >= 2 && i % 8 < 6;
    CHECK(set == 8 && padded[0] == 0, "%d pixels where they belong", set);
    /* Squashed: all of it to each side / crop_pct, and the middle of that. */
    enum { BIG_W = 9, BIG_H = 6, OUT_W = 6, OUT_H = 4 };
    uint8_t whole[3 * BIG_W * BIG_H], middle[3 * OUT_W * OUT_H];
    image_eval(&im, CROP_STRETCH, 0, FILTER_BICUBIC, BIG_W, BIG_H, whole);
    image_eval(&im, CROP_SQUASH, 6, FILTER_BICUBIC, OUT_W, OUT_H, middle);
    for (int y = 0; y < OUT_H; y++) /* (9 - 6) / 2 to the even number */
        CHECK(memcmp(middle + 3 * y * OUT_W, whole + 3 * ((y + 1) * BIG_W + 2), 3 * OUT_W) == 0,
              "row %d of the middle", y);
    /* Very long pictures: the shorter side's rule makes the longer one huge. */
    uint8_t *line = xcalloc(3, 100000), tiny[3 * 16 * 16];
    image_eval(&(Image){100000, 1, line}, CROP_CENTER, 256, FILTER_BICUBIC, 16, 16, tiny);
    image_eval(&(Image){1, 100000, line}, CROP_STRETCH, 0, FILTER_BILINEAR, 16, 16, tiny);
    free(line);
}

/* Without a `resize` of the user's, the crop lies inside the picture, whatever the two shapes. */
static void test_default_resize(void)
{
    static const int sides[] = {1, 2, 7, 30, 32, 64, 224, 500};
    for (int w = 1; w < 700; w += 1 + w / 8)
        for (int h = 1; h < 700; h += 1 + h / 8)
            for (int i = 0; i < COUNT(sides) * COUNT(sides); i++) {
                int ow = sides[i % COUNT(sides)], oh = sides[i / COUNT(sides)];
                long r = image_default_resize(ow, oh, w, h, 0.875), least = w < h ? w : h;
                bool covers = r * w / least >= ow && r * h / least >= oh;
                if (!covers || (ow == oh && r != ow * 8 / 7))
                    CHECK(false, "%d x %d to %d x %d: %ld", w, h, ow, oh, r);
            }
    CHECK(image_default_resize(224, 224, 500, 375, 0.875) == 256);
    CHECK(image_default_resize(224, 224, 500, 375, 0.9) == 248, "rounded down, as timm does");
    CHECK(image_default_resize(224, 224, 500, 375, 1) == 224);
    CHECK(image_default_resize(32, 32, 500, 375, 32.0 / 37) == 37, "as it was divided");
    CHECK(image_default_resize(64, 32, 50, 50, 0.875) == 73, "256/224 of the larger side");
    CHECK(image_default_resize(64, 32, 100, 50, 0.875) == 36, "of both sides of the same shape");

    enum { W = 64, H = 32 };
    static uint8_t white[3 * 90 * 90], out[3 * W * H];
    static const int shapes[][2] = {{90, 90}, {90, 45}, {45, 90}, {90, 3}, {1, 1}};
    memset(white, 255, sizeof white);
    for (int k = 0; k < COUNT(shapes); k++) {
        int black = 0;
        image_eval(&(Image){shapes[k][0], shapes[k][1], white}, CROP_CENTER, 0, FILTER_BICUBIC, W,
                   H, out);
        for (int i = 0; i < 3 * W * H; i++)
            black += out[i] != 255;
        CHECK(black == 0, "%d x %d: %d values are not white", shapes[k][0], shapes[k][1], black);
    }
}

static void test_random_box(void)
{
    double area = 0;
    bool inside = true, shaped = true;
    enum { N = 4000, W = 500, H = 375 };
    for (int i = 0; i < N; i++) {
        RngStream r = {.seed = 7, .sample = (uint32_t)i, .purpose = RNG_AUGMENT};
        Box b = image_random_box(&r, W, H, 0.08, 1, 0.75, 4 / 3.0);
        inside &= b.left >= 0 && b.top >= 0 && b.left + b.width <= W && b.top + b.height <= H;
        shaped &= (b.width + 0.5) / (b.height - 0.5) > 0.75;
        shaped &= (b.width - 0.5) / (b.height + 0.5) < 4 / 3.0;
        area += (double)b.width * b.height / (W * H) / N;
    }
    CHECK(inside && shaped);
    /* 0.54 but for the draws that do not fit; 0.432 in a simulation with torchvision's code */
    CHECK(fabs(area - 0.432) < 0.015, "mean area %.3f", area);
    RngStream r = {.seed = 7, .purpose = RNG_AUGMENT};
    Box b = image_random_box(&r, 1000, 10, 0.9, 1, 0.75, 4 / 3.0);
    CHECK(b.width == 13 && b.height == 10 && b.left == 493, "fallback: %d x %d at %d", b.width,
          b.height, b.left);
}

/* ---- decoding ---- */

/* Where we differ from the list on purpose. */
static const struct {
    const char *file, *why;
    bool readable;
} exceptions[] = {
    {"png_decompression_dos.png", "the bomb is in a text chunk, which is never unpacked", true},
    {"truncated_exif_dpi.jpg", "only the EXIF resolution is damaged; newer Pillow reads it", true},
};

/* One line of the list: file, bytes, source, format, mode, WxH, progressive, orientation, "ok". */
static void check_odd(const char *dir, char *line)
{
    char *field[9];
    int n = 0;
    for (char *f; n < 9 && (f = strsep(&line, "\t"));)
        field[n++] = f;
    if (!CHECK(n >= 8, "a line of the list"))
        return;
    bool readable = n > 8 ? strcmp(field[8], "ok") == 0 : strcmp(field[7], "ok") == 0;
    bool excepted = false;
    for (int i = 0; i < COUNT(exceptions); i++)
        if (strcmp(field[0], exceptions[i].file) == 0) {
            readable = exceptions[i].readable;
            excepted = true;
        }
    Image im;
    Error e = {"", ""};
    bool ok = image_load(at(dir, field[0]), &im, &e);
    CHECK(ok == readable, "%s: %s", field[0], ok ? "read" : e.what);
    static uint8_t out[BYTES];
    Error why = {"", ""};
    Preprocess target = {.out_w = SIZE, .out_h = SIZE, .crop = CROP_STRETCH};
    bool part = decoder_open_file(decoder, at(dir, field[0]), &why) &&
                decoder_eval(decoder, &target, out, &why);
    CHECK(part == ok, "%s: %s", field[0], part ? "read" : why.what);
    if (!ok)
        CHECK(strstr(e.what, field[0]) && e.hint[0], "the error names the file: %s", e.what);
    int w, h, orientation = atoi(field[7]);
    if (ok && !excepted && CHECK(sscanf(field[5], "%dx%d", &w, &h) == 2, "%s", field[5])) {
        bool turned = orientation >= 5 && orientation <= 8;
        CHECK(im.w == (turned ? h : w) && im.h == (turned ? w : h),
              "%s: %dx%d for %s, orientation %s", field[0], im.w, im.h, field[5], field[7]);
    }
    image_free(&im);
}

/* What Pillow makes of the upper half of some pictures, mean red, green and blue: inks, palettes,
 * 16 bits, alpha and orientation are right. (16-bit grey: scaled to 8 bits, where Pillow clips.) */
static const struct {
    const char *file;
    double rgb[3];
} colours[] = {
    {"gen_cmyk.jpg", {115.71, 105.41, 96.19}},
    {"pil_sample_cmyk.jpg", {45.71, 6.20, 8.67}},
    {"gray_imagenet.JPEG", {203.31, 203.31, 203.31}},
    {"testimgari.jpg", {149.27, 83.12, 78.34}},
    {"monkey16.png", {57.90, 73.08, 85.32}},
    {"gen_palette4bit.png", {118.1, 105.62, 94.44}},
    {"pil123p.png", {31.22, 24.75, 3.30}},
    {"pil123rgba.png", {31.71, 24.67, 3.74}},
    {"gif_named.jpg", {239.32, 239.32, 239.41}},
    {"gen_gray16.png", {107.44, 107.44, 107.44}},
    {"exif_landscape_6.jpg", {115.53, 137.92, 164.67}},
    {"hopper_16bit_qtables.jpg", {101.88, 94.73, 117.88}},
};

static void check_colours(const char *dir)
{
    for (int i = 0; i < COUNT(colours); i++) {
        Image im;
        Error e;
        if (!CHECK(image_load(at(dir, colours[i].file), &im, &e), "%s", e.what))
            continue;
        size_t pixels = (size_t)im.w * (im.h / 2);
        for (int c = 0; c < 3; c++) {
            double mean = 0;
            for (size_t k = 0; k < pixels; k++)
                mean += im.rgb[3 * k + c] / (double)pixels;
            CHECK(fabs(mean - colours[i].rgb[c]) < 0.5, "%s: channel %d is %.2f, not %.2f",
                  colours[i].file, c, mean, colours[i].rgb[c]);
        }
        image_free(&im);
    }
}

static void test_odd(void)
{
    const char *dir = at(shared, "data/odd");
    Error e;
    const char *path = at(dir, "MANIFEST.tsv");
    char *list = path_exists(path) ? read_text(path, 1 << 20, &e) : NULL;
    if (!list) {
        SKIP("odd images: no %s", dir);
        return;
    }
    char *rest = list;
    strsep(&rest, "\n"); /* the header */
    for (char *line; (line = strsep(&rest, "\n"));)
        if (*line)
            check_odd(dir, line);
    free(list);
    check_colours(dir);
    for (int i = 2; i <= 8; i++) {
        char name[64];
        snprintf(name, sizeof name, "exif_landscape_%d.jpg", i);
        double d = mean_difference(at(dir, "exif_landscape_1.jpg"), at(dir, name));
        CHECK(d < 12, "orientation %d: mean difference %.2f", i, d);
    }
}

static bool decode_text(const char *text, size_t n, Image *im)
{
    Error e;
    return image_decode((const uint8_t *)text, n, im, &e);
}

static void test_formats(void)
{
    Image im;
    CHECK(decode_text("P6\n# comment\n2 1\n255\nabcdef", 28, &im) && im.w == 2 && im.h == 1 &&
          memcmp(im.rgb, "abcdef", 6) == 0);
    image_free(&im);
    CHECK(decode_text("P5 1 2 15 \x0f\x05", 12, &im) && im.rgb[0] == 255 && im.rgb[5] == 85);
    image_free(&im);
    CHECK(decode_text("P2 2 1 4\n4 # white\n0\n", 21, &im) && im.rgb[2] == 255 && im.rgb[3] == 0);
    image_free(&im);
    CHECK(!decode_text("P6 2 1 255 abcde", 16, &im), "truncated");
    CHECK(!decode_text("P6 99999 99999 255 abcde", 24, &im), "too large");
    CHECK(!decode_text("P6 0 1 255 abcde", 16, &im), "no pixels");
    Error e = {"", ""};
    uint8_t *line = xcalloc(1, 20 + IMAGE_MAX_SIDE + 1);
    for (int tall = 0; tall < 2; tall++) {
        for (int over = 0; over < 2; over++) {
            int n = IMAGE_MAX_SIDE + over;
            int head = snprintf((char *)line, 20, "P5 %d %d 255 ", tall ? 1 : n, tall ? n : 1);
            bool ok = image_decode(line, (size_t)head + n, &im, &e);
            CHECK(ok == !over && (ok || (strstr(e.what, "too long") && e.hint[0])), "%d, tall %d",
                  n, tall);
            image_free(&im);
        }
    }
    free(line);
    CHECK(!decode_text("GIF89a", 6, &im) && !decode_text("BM", 2, &im) && !decode_text("", 0, &im));

    uint8_t rgb[3 * 16 * 16];
    for (int i = 0; i < 3 * 16 * 16; i++)
        rgb[i] = (uint8_t)(i % 3 * 60 + i / 48 * 4);
    const char *path = at(temporary, "written.jpg");
    CHECK(image_write_jpeg(path, rgb, 16, 16, 95, &e), "%s", e.what);
    int worst = 0;
    if (CHECK(image_load(path, &im, &e) && im.w == 16 && im.h == 16, "%s", e.what))
        for (int i = 0; i < 3 * 16 * 16; i++)
            worst = abs(im.rgb[i] - rgb[i]) > worst ? abs(im.rgb[i] - rgb[i]) : worst;
    CHECK(worst < 12, "written and read: %d levels apart", worst);
    image_free(&im);
    CHECK(!image_write_jpeg(at(temporary, "no/such/folder.jpg"), rgb, 16, 16, 95, &e) && e.what[0]);
    CHECK(!image_load(temporary, &im, &e), "a directory is no image");
}

/* Pictures of other kinds, whatever they are called, and files in a picture's place. */
static void test_others(void)
{
    static const struct {
        const char *bytes, *says;
        size_t n;
    } cases[] = {{"\0\0\0\x1c"
                  "ftypavif\0\0\0\0",
                  "an AVIF image", 16},
                 {"\0\0\0\x18"
                  "ftypheic\0\0\0\0",
                  "a HEIC image", 16},
                 {"\xff\x0a\xfa\x1f", "a JPEG XL image", 4},
                 {"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image", 12},
                 {"<!DOCTYPE html>", "a web page", 15},
                 {"version https://git-lfs.github.com/spec/v1\n", "git lfs pull", 43},
                 {"text", "not a JPEG", 4},
                 {"\0", "not a JPEG", 1}};
    for (int i = 0; i < COUNT(cases); i++) {
        Error e = {"", ""};
        CHECK(!decoder_open(decoder, (const uint8_t *)cases[i].bytes, cases[i].n, &e) &&
                  strstr(e.what, cases[i].says) && strstr(e.what, "not a JPEG") && e.hint[0],
              "case %d: %s", i, e.what);
    }
}

/* Damage of every kind must end in an image or an error. */
static void test_damaged_bytes(void)
{
    const char *path = at(temporary, "written.jpg");
    FILE *f = fopen(path, "rb");
    static uint8_t good[65536], bad[65536];
    size_t n = f ? fread(good, 1, sizeof good, f) : 0;
    if (f)
        fclose(f);
    int refused = 0;
    for (uint32_t i = 0; CHECK(n > 0) && i < 2000; i++) {
        Philox p = philox(11, i, 0, 0, 0);
        memcpy(bad, good, n);
        size_t cut = i % 4 ? n : p.v[2] % n;
        for (uint32_t k = 0; k < 1 + i % 3; k++)
            bad[p.v[k] % n] = (uint8_t)(p.v[3] >> 8 * k);
        Image im;
        Error e;
        if (image_decode(bad, cut, &im, &e))
            image_free(&im);
        else
            refused++;
    }
    CHECK(refused > 100, "%d refused", refused);
}

/* ---- parts of pictures ---- */

static int below(RngStream *r, int n)
{
    return (int)(rng_next(r) * n);
}

/* A box of a w x h picture, kind by kind: any, one pixel, a corner, an edge's strip, all of it. */
static Box some_box(RngStream *r, int kind, int w, int h)
{
    Box b = {0, 0, 1 + below(r, w), 1 + below(r, h)};
    if (kind % 5 == 1)
        b.width = b.height = 1;
    if (kind % 5 == 3)
        *(kind / 5 % 2 ? &b.width : &b.height) = 1;
    if (kind % 5 == 4)
        b = (Box){0, 0, w, h};
    bool corner = kind % 5 == 2;
    b.left = corner ? (kind / 5 % 2) * (w - b.width) : below(r, w - b.width + 1);
    b.top = corner ? (kind / 10 % 2) * (h - b.height) : below(r, h - b.height + 1);
    return b;
}

/* Parts of the picture against the same parts of the whole picture, bit for bit. */
static void check_parts(const char *name, const uint8_t *bytes, size_t n, int boxes)
{
    static uint8_t part[BYTES], whole[BYTES];
    Image im;
    Error e = {"", ""};
    if (!CHECK(image_decode(bytes, n, &im, &e), "%s: %s", name, e.what) ||
        !CHECK(decoder_open(decoder, bytes, n, &e), "%s: %s", name, e.what))
        return;
    CHECK(decoder_width(decoder) == im.w && decoder_height(decoder) == im.h, "%s", name);
    int wrong = 0;
    for (int i = 0; i < boxes; i++) {
        RngStream r = {
            .seed = 3, .sample = (uint32_t)i, .step = (uint32_t)n, .purpose = RNG_AUGMENT};
        Box b = some_box(&r, i, im.w, im.h);
        Preprocess t = {
            .out_w = 1 + below(&r, SIZE), .out_h = 1 + below(&r, SIZE), .filter = i % 2};
        if (b.width <= SIZE && b.height <= SIZE && i % 3) { /* the pixels themselves */
            t.out_w = b.width;
            t.out_h = b.height;
        }
        size_t bytes_out = (size_t)3 * t.out_w * t.out_h;
        bool flip = i / 2 % 2, ok = decoder_crop(decoder, &t, b, flip, part, &e);
        image_crop_resize(&im, b, t.filter, t.out_w, t.out_h, flip, whole);
        wrong += !CHECK(ok && memcmp(part, whole, bytes_out) == 0,
                        "%s (%d x %d): %d x %d at %d, %d to %d x %d: %s", name, im.w, im.h, b.width,
                        b.height, b.left, b.top, t.out_w, t.out_h, ok ? "other pixels" : e.what);
        if (i % 8 == 0) {
            t.crop = i / 8 % 3;
            t.resize = i % 3 ? 0 : 1 + below(&r, 300);
            ok = decoder_eval(decoder, &t, part, &e);
            image_eval(&im, t.crop, t.resize, t.filter, t.out_w, t.out_h, whole);
            wrong += !CHECK(ok && memcmp(part, whole, bytes_out) == 0, "%s: evaluation to %d x %d",
                            name, t.out_w, t.out_h);
        }
        if (wrong > 3)
            break;
    }
    image_free(&im);
}

/* A picture with edges, colours and noise. */
static uint8_t *draw(int w, int h)
{
    uint8_t *rgb = xmalloc((size_t)3 * w * h);
    for (int i = 0; i < w * h; i++) {
        Philox p = philox(9, (uint32_t)i, (uint32_t)w, 0, 0);
        int x = i % w, y = i / w;
        for (int c = 0; c < 3; c++)
            rgb[3 * i + c] = (uint8_t)((x * (3 + c) + y * (5 - c)) % 200 +
                                       ((x / 9 + y / 7) % 2) * 40 + p.v[c] % 16);
    }
    return rgb;
}

/* How a test's JPEG is made: sampling of the first component against the others', and the rest. */
typedef struct {
    int components, h, v, restart;
    bool progressive, arithmetic, apart, ycck;
} JpegKind;

static size_t make_jpeg(JpegKind k, int w, int h, uint8_t *bytes, size_t room)
{
    uint8_t *rgb = draw(w, h), *row = xcalloc(4, (size_t)w);
    struct jpeg_error_mgr errors;
    struct jpeg_compress_struct c = {.err = jpeg_std_error(&errors)};
    unsigned char *out = bytes;
    unsigned long n = room;
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, &out, &n);
    c.image_width = (JDIMENSION)w;
    c.image_height = (JDIMENSION)h;
    c.input_components = k.components;
    c.in_color_space = k.components == 4 ? JCS_CMYK : k.components == 3 ? JCS_RGB : JCS_GRAYSCALE;
    jpeg_set_defaults(&c);
    if (k.ycck)
        jpeg_set_colorspace(&c, JCS_YCCK);
    jpeg_set_quality(&c, 85, TRUE);
    c.comp_info[0].h_samp_factor = k.h;
    c.comp_info[0].v_samp_factor = k.v;
    if (k.components == 4) {
        c.comp_info[3].h_samp_factor = k.h;
        c.comp_info[3].v_samp_factor = k.v;
    }
    c.restart_interval = (unsigned)k.restart;
    c.arith_code = k.arithmetic;
    if (k.progressive)
        jpeg_simple_progression(&c);
    jpeg_scan_info scans[4] = {{1, {0}, 0, 63, 0, 0}, {1, {1}, 0, 63, 0, 0}, {1, {2}, 0, 63, 0, 0}};
    if (k.apart) {
        c.scan_info = scans;
        c.num_scans = k.components;
    }
    jpeg_start_compress(&c, TRUE);
    for (int y = 0; y < h; y++) {
        for (int i = 0; i < w * k.components; i++)
            row[i] = rgb[(size_t)3 * w * y + (size_t)(i % (3 * w))];
        jpeg_write_scanlines(&c, &row, 1);
    }
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    free(rgb);
    free(row);
    return out == bytes ? n : 0;
}

static const struct {
    const char *name;
    JpegKind kind;
} jpegs[] = {
    {"4:4:4", {3, 1, 1, 0, 0, 0, 0, 0}},
    {"4:2:2", {3, 2, 1, 0, 0, 0, 0, 0}},
    {"4:2:0", {3, 2, 2, 0, 0, 0, 0, 0}},
    {"4:4:0", {3, 1, 2, 0, 0, 0, 0, 0}},
    {"4:1:1", {3, 4, 1, 0, 0, 0, 0, 0}},
    {"4:1:0", {3, 4, 2, 0, 0, 0, 0, 0}},
    {"grey", {1, 1, 1, 0, 0, 0, 0, 0}},
    {"grey 2x2", {1, 2, 2, 0, 0, 0, 0, 0}},
    {"CMYK", {4, 1, 1, 0, 0, 0, 0, 0}},
    {"YCCK 4:2:0", {4, 2, 2, 0, 0, 0, 0, 1}},
    {"4:2:0 restarts", {3, 2, 2, 3, 0, 0, 0, 0}},
    {"progressive 4:2:0", {3, 2, 2, 0, 1, 0, 0, 0}},
    {"progressive 4:2:2", {3, 2, 1, 0, 1, 0, 0, 0}},
    {"progressive 4:4:0", {3, 1, 2, 5, 1, 0, 0, 0}},
    {"arithmetic 4:2:0", {3, 2, 2, 0, 0, 1, 0, 0}},
    {"arithmetic progressive", {3, 2, 2, 0, 1, 1, 0, 0}},
    {"three scans 4:2:0", {3, 2, 2, 0, 0, 0, 1, 0}},
    {"three scans 4:1:1", {3, 4, 1, 7, 0, 0, 1, 0}},
};

static uint8_t made[1 << 20];

static void test_parts(void)
{
    static const int sizes[][2] = {{1, 1}, {3, 5}, {17, 33}, {64, 48}, {131, 97}, {250, 161}};
    for (int k = 0; k < COUNT(jpegs); k++)
        for (int i = 0; i < COUNT(sizes); i++) {
            size_t n = make_jpeg(jpegs[k].kind, sizes[i][0], sizes[i][1], made, sizeof made);
            if (CHECK(n > 0))
                check_parts(jpegs[k].name, made, n, 60);
        }
}

/* ---- against plain libjpeg ---- */

static jmp_buf plain_jump;

static void plain_error(j_common_ptr c)
{
    (void)c;
    longjmp(plain_jump, 1);
}

static void plain_message(j_common_ptr c)
{
    (void)c;
}

/* The picture as libjpeg alone decodes it; false if it reports an error. */
static bool plain_decode(const uint8_t *bytes, size_t n, Image *out)
{
    static struct jpeg_decompress_struct d;
    static struct jpeg_error_mgr errors;
    static uint8_t *rgb;
    rgb = NULL;
    d.err = jpeg_std_error(&errors);
    errors.error_exit = plain_error;
    errors.output_message = plain_message;
    if (setjmp(plain_jump)) {
        jpeg_destroy_decompress(&d);
        free(rgb);
        return false;
    }
    jpeg_create_decompress(&d);
    jpeg_mem_src(&d, bytes, n);
    jpeg_read_header(&d, TRUE);
    d.out_color_space = JCS_RGB;
    jpeg_start_decompress(&d);
    rgb = xmalloc((size_t)3 * d.output_width * d.output_height);
    while (d.output_scanline < d.output_height) {
        JSAMPROW row = rgb + (size_t)3 * d.output_width * d.output_scanline;
        jpeg_read_scanlines(&d, &row, 1);
    }
    *out = (Image){(int)d.output_width, (int)d.output_height, rgb};
    jpeg_destroy_decompress(&d);
    return true;
}

/* 1 if the two agree, 0 if they do not, -1 if one of them gives no picture or they are turned. */
static int same_as_plain(const uint8_t *bytes, size_t n)
{
    Image ours, plain;
    Error e;
    if (!image_decode(bytes, n, &ours, &e))
        return -1;
    if (!plain_decode(bytes, n, &plain)) {
        image_free(&ours);
        return -1;
    }
    int same = ours.w != plain.w && ours.w == plain.h
                   ? -1
                   : ours.w == plain.w && ours.h == plain.h &&
                         memcmp(ours.rgb, plain.rgb, (size_t)3 * ours.w * ours.h) == 0;
    image_free(&ours);
    image_free(&plain);
    return same;
}

/* Codes, restarts and the bits of values are read as libjpeg reads them, of damaged files too. */
static void test_plain(void)
{
    uint8_t *bad = xmalloc(sizeof made);
    for (int k = 0; k < COUNT(jpegs); k++) {
        if (jpegs[k].kind.components == 4)
            continue;
        size_t n = make_jpeg(jpegs[k].kind, 131, 97, made, sizeof made);
        CHECK(same_as_plain(made, n) == 1, "%s", jpegs[k].name);
        int compared = 0, same = 0;
        for (uint32_t i = 0; i < 60; i++) {
            Philox p = philox(13, i, (uint32_t)n, 0, 0);
            memcpy(bad, made, n);
            for (uint32_t b = 0; b < 1 + i % 2; b++)
                bad[700 + p.v[b] % (n - 700)] ^= (uint8_t)(1 << (p.v[2] >> 3 * b & 7));
            int s = same_as_plain(bad, n);
            compared += s >= 0;
            same += s > 0;
            if (s > 0)
                check_parts(jpegs[k].name, bad, n, 5);
        }
        CHECK(compared > 10 && same == compared, "%s damaged: %d of %d", jpegs[k].name, same,
              compared);
    }
    free(bad);
}

/* Coefficients as no photograph has them, in codes made for them: many small ones and then a large
 * one, long runs of zeros, blocks that are full to the last. */
static void test_coefficients(void)
{
    enum { WIDE = 24, HIGH = 20 };
    unsigned char *bytes = made;
    unsigned long n = sizeof made;
    struct jpeg_error_mgr errors;
    struct jpeg_compress_struct c = {.err = jpeg_std_error(&errors)};
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, &bytes, &n);
    c.image_width = 8 * WIDE;
    c.image_height = 8 * HIGH;
    c.input_components = 1;
    c.in_color_space = JCS_GRAYSCALE;
    jpeg_set_defaults(&c);
    c.optimize_coding = TRUE;
    jvirt_barray_ptr all =
        c.mem->request_virt_barray((j_common_ptr)&c, JPOOL_IMAGE, TRUE, WIDE, HIGH, 1);
    jpeg_write_coefficients(&c, &all);
    for (JDIMENSION y = 0; y < HIGH; y++) {
        JBLOCKARRAY row = c.mem->access_virt_barray((j_common_ptr)&c, all, y, 1, TRUE);
        for (JDIMENSION x = 0; x < WIDE; x++) {
            Philox p = philox(17, x, y, 0, 0);
            uint32_t every = 3 + p.v[0] % 4, last = p.v[1] % 3 ? 64 : p.v[1] % 64;
            uint32_t zeros = p.v[2] % 4 ? 0 : p.v[2] % 64; /* that many are left out */
            for (uint32_t k = 0, u = 0, v = 0; k < last; k++) {
                row[0][x][8 * v + u] = (JCOEF)(k && k <= zeros ? 0 : k % every ? 1 : 1023);
                uint32_t *up = (u + v) % 2 ? &v : &u, *down = (u + v) % 2 ? &u : &v;
                if (*up == 7) { /* zigzag: along the edge, or on in the diagonal */
                    ++*down;
                } else {
                    ++*up;
                    *down -= *down > 0;
                }
            }
        }
    }
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    if (bytes != made || !CHECK(n < sizeof made)) /* another memory where there was no room */
        return;
    CHECK(same_as_plain(made, n) == 1, "coefficients");
    check_parts("coefficients", made, n, 60);
}

static uint8_t *read_all(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    uint8_t *bytes = NULL;
    if (f && fseek(f, 0, SEEK_END) == 0) {
        *n = (size_t)ftell(f);
        rewind(f);
        bytes = xmalloc(*n + 1);
        *n = fread(bytes, 1, *n, f);
    }
    if (f)
        fclose(f);
    return bytes;
}

/* Every readable picture of a folder, and of its folders. */
static void check_folder(const char *dir, int boxes)
{
    DIR *list = opendir(dir);
    if (!list) {
        SKIP("parts of real pictures: no %s", dir);
        return;
    }
    for (struct dirent *entry; (entry = readdir(list));) {
        char *path = xasprintf("%s/%s", dir, entry->d_name);
        size_t n;
        uint8_t *bytes = NULL;
        Image im;
        Error e;
        if (entry->d_name[0] != '.' && is_dir(path))
            check_folder(path, boxes);
        else if (entry->d_name[0] != '.' && (bytes = read_all(path, &n)) && n < 1000000 &&
                 image_decode(bytes, n, &im, &e)) {
            image_free(&im);
            check_parts(entry->d_name, bytes, n, boxes);
            if (boxes < 10) /* photographs of three colours, all of them */
                CHECK(same_as_plain(bytes, n) != 0, "%s", entry->d_name);
        }
        free(bytes);
        free(path);
    }
    closedir(list);
}

/* Four values of 16 bits in PNGs that Pillow wrote, Image.fromarray(uint16): of 16, of none, of 8
 * and of 12 bits, which are refused. */
static void test_unscaled_png(void)
{
    static const struct {
        size_t n;
        const char *png, *say;
        int last;
    } cases[] = {
        /* 0 1000 2000 4096; 0 0 0 0; 0 100 200 255; 0 1000 2000 4095 */
        {75,
         "\211\120\116\107\015\012\032\012\000\000\000\015\111\110\104\122\000\000\000\002"
         "\000\000\000\002\020\000\000\000\000\007\115\216\273\000\000\000\022\111\104\101"
         "\124\170\332\143\140\140\140\176\301\300\176\101\200\001\000\010\073\001\323\241"
         "\012\377\211\000\000\000\000\111\105\116\104\256\102\140\202",
         NULL, 16},
        {68,
         "\211\120\116\107\015\012\032\012\000\000\000\015\111\110\104\122\000\000\000\002"
         "\000\000\000\002\020\000\000\000\000\007\115\216\273\000\000\000\013\111\104\101"
         "\124\170\332\143\140\200\001\000\000\012\000\001\354\044\003\271\000\000\000\000"
         "\111\105\116\104\256\102\140\202",
         NULL, 0},
        {75,
         "\211\120\116\107\015\012\032\012\000\000\000\015\111\110\104\122\000\000\000\002"
         "\000\000\000\002\020\000\000\000\000\007\115\216\273\000\000\000\022\111\104\101"
         "\124\170\332\143\140\140\140\110\141\140\070\301\360\037\000\005\271\002\054\077"
         "\310\073\036\000\000\000\000\111\105\116\104\256\102\140\202",
         NULL, 255},
        {75,
         "\211\120\116\107\015\012\032\012\000\000\000\015\111\110\104\122\000\000\000\002"
         "\000\000\000\002\020\000\000\000\000\007\115\216\273\000\000\000\022\111\104\101"
         "\124\170\332\143\140\140\140\176\301\300\176\201\377\077\000\011\070\002\321\200"
         "\045\225\162\000\000\000\000\111\105\116\104\256\102\140\202",
         "largest value is 4095: 12 bits", 0},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        Image im;
        Error e = {"", ""};
        bool ok = image_decode((const uint8_t *)cases[i].png, cases[i].n, &im, &e);
        CHECK(ok == !cases[i].say && (ok || (strstr(e.what, cases[i].say) && e.hint[0])), "%d: %s",
              i, e.what);
        if (ok)
            CHECK(im.rgb[0] == 0 && im.rgb[11] == cases[i].last, "%d: %d", i, im.rgb[11]);
        if (ok)
            image_free(&im);
    }
}

/* ---- TIFF ---- */

#ifdef HAVE_TIFF
typedef struct {
    const char *name;
    int photometric, samples, bits, compression;
    bool tiled, apart;
    int orientation;
} TiffKind;

static const TiffKind tiffs[] = {
    {"RGB strips", PHOTOMETRIC_RGB, 3, 8, COMPRESSION_NONE, 0, 0, 1},
    {"RGB tiles LZW", PHOTOMETRIC_RGB, 3, 8, COMPRESSION_LZW, 1, 0, 1},
    {"RGB strips LZW", PHOTOMETRIC_RGB, 3, 8, COMPRESSION_LZW, 0, 0, 1},
    {"RGBA tiles deflate", PHOTOMETRIC_RGB, 4, 8, COMPRESSION_ADOBE_DEFLATE, 1, 0, 1},
    {"RGB strips apart", PHOTOMETRIC_RGB, 3, 8, COMPRESSION_PACKBITS, 0, 1, 1},
    {"RGB tiles apart 16", PHOTOMETRIC_RGB, 3, 16, COMPRESSION_LZW, 1, 1, 1},
    {"RGB 16", PHOTOMETRIC_RGB, 3, 16, COMPRESSION_ADOBE_DEFLATE, 0, 0, 1},
    {"grey", PHOTOMETRIC_MINISBLACK, 1, 8, COMPRESSION_NONE, 0, 0, 1},
    {"grey tiles 16", PHOTOMETRIC_MINISBLACK, 1, 16, COMPRESSION_LZW, 1, 0, 1},
    {"inverted grey", PHOTOMETRIC_MINISWHITE, 1, 8, COMPRESSION_LZW, 0, 0, 1},
    {"grey and alpha", PHOTOMETRIC_MINISBLACK, 2, 8, COMPRESSION_LZW, 0, 0, 1},
    {"palette", PHOTOMETRIC_PALETTE, 1, 8, COMPRESSION_LZW, 0, 0, 1},
    {"CMYK", PHOTOMETRIC_SEPARATED, 4, 8, COMPRESSION_LZW, 1, 0, 1},
    {"JPEG tiles", PHOTOMETRIC_YCBCR, 3, 8, COMPRESSION_JPEG, 1, 0, 1},
    {"JPEG strips", PHOTOMETRIC_YCBCR, 3, 8, COMPRESSION_JPEG, 0, 0, 1},
    {"turned", PHOTOMETRIC_RGB, 3, 8, COMPRESSION_LZW, 1, 0, 6},
    {"mirrored", PHOTOMETRIC_RGB, 3, 8, COMPRESSION_LZW, 0, 0, 2},
    {"bits", PHOTOMETRIC_MINISBLACK, 1, 1, COMPRESSION_PACKBITS, 0, 0, 1},
    {"bits on their side", PHOTOMETRIC_MINISWHITE, 1, 1, COMPRESSION_NONE, 0, 0, 8},
};

/* One sample as stored, 16 bits wide; and what the pixel should be read as. */
static int stored_sample(const TiffKind *k, const uint8_t *rgb, int s)
{
    int v = s < 3 ? rgb[k->samples == 1 ? 0 : s] : 99;
    return k->bits == 16 ? v << 8 | 77 : k->bits == 1 ? v > 127 : v;
}

static void read_pixel(const TiffKind *k, const uint8_t *rgb, uint8_t *out)
{
    bool grey =
        k->photometric == PHOTOMETRIC_MINISBLACK || k->photometric == PHOTOMETRIC_MINISWHITE;
    for (int c = 0; c < 3; c++) {
        int v = rgb[grey || k->photometric == PHOTOMETRIC_PALETTE ? 0 : c];
        v = k->bits == 1 ? 255 * (v > 127) : v;
        if (k->photometric == PHOTOMETRIC_MINISWHITE)
            v = 255 - v;
        if (k->photometric == PHOTOMETRIC_PALETTE)
            v = (v * (c + 3) + 7) % 256;
        if (k->photometric == PHOTOMETRIC_SEPARATED)
            v = (int)lrint((255 - v) * (255 - 99) / 255.0);
        out[c] = (uint8_t)v;
    }
}

/* Rows y0 .. y0+h-1 of the columns from x0 on, as they are stored; beyond the picture: anything. */
static void fill_unit(const TiffKind *k, const uint8_t *rgb, int w, int h, int x0, int y0, int uw,
                      int uh, int plane, uint8_t *out)
{
    size_t row_bytes = k->bits == 1 ? ((size_t)uw + 7) / 8 : 0;
    memset(out, 0, (size_t)uw * uh * 8);
    for (int y = 0; y < uh; y++)
        for (int x = 0; x < uw; x++)
            for (int s = 0; s < k->samples; s++) {
                int px = x0 + x < w ? x0 + x : w - 1, py = y0 + y < h ? y0 + y : h - 1;
                int v = stored_sample(k, rgb + 3 * ((size_t)py * w + px), s);
                size_t i = (size_t)y * uw + x;
                i = k->apart ? i : i * k->samples + s;
                if (k->apart && s != plane)
                    continue;
                if (k->bits == 1)
                    out[y * row_bytes + x / 8] |= (uint8_t)(v << (7 - x % 8));
                else if (k->bits == 16)
                    memcpy(out + 2 * i, &(uint16_t){(uint16_t)v}, 2);
                else
                    out[i] = (uint8_t)v;
            }
}

/* One directory of an open file; type: of subfile. */
static void write_page(TIFF *t, const TiffKind *k, const uint8_t *rgb, int w, int h, int type)
{
    enum { TILE = 48, STRIP = 7 };
    static uint8_t unit[8 * 1024 * TILE];
    TIFFSetField(t, TIFFTAG_SUBFILETYPE, type);
    TIFFSetField(t, TIFFTAG_IMAGEWIDTH, w);
    TIFFSetField(t, TIFFTAG_IMAGELENGTH, h);
    TIFFSetField(t, TIFFTAG_BITSPERSAMPLE, k->bits);
    TIFFSetField(t, TIFFTAG_SAMPLESPERPIXEL, k->samples);
    TIFFSetField(t, TIFFTAG_COMPRESSION, k->compression);
    TIFFSetField(t, TIFFTAG_PHOTOMETRIC, k->photometric);
    TIFFSetField(t, TIFFTAG_ORIENTATION, k->orientation);
    TIFFSetField(t, TIFFTAG_PLANARCONFIG, k->apart ? PLANARCONFIG_SEPARATE : PLANARCONFIG_CONTIG);
    if (k->compression == COMPRESSION_JPEG)
        TIFFSetField(t, TIFFTAG_JPEGCOLORMODE, JPEGCOLORMODE_RGB);
    uint16_t extra = EXTRASAMPLE_UNASSALPHA, map[3][256];
    if (k->samples == 2 || (k->samples == 4 && k->photometric == PHOTOMETRIC_RGB))
        TIFFSetField(t, TIFFTAG_EXTRASAMPLES, 1, &extra);
    for (int i = 0; i < 768; i++)
        map[i / 256][i % 256] = (uint16_t)((i % 256 * (i / 256 + 3) + 7) % 256 * 257);
    if (k->photometric == PHOTOMETRIC_PALETTE)
        TIFFSetField(t, TIFFTAG_COLORMAP, map[0], map[1], map[2]);
    int strip = k->compression == COMPRESSION_JPEG ? 16 : STRIP;
    int uw = k->tiled ? TILE : w, uh = k->tiled ? TILE : strip;
    if (k->tiled) {
        TIFFSetField(t, TIFFTAG_TILEWIDTH, uw);
        TIFFSetField(t, TIFFTAG_TILELENGTH, uh);
    } else {
        TIFFSetField(t, TIFFTAG_ROWSPERSTRIP, uh);
    }
    bool ok = true;
    for (int s = 0; s < (k->apart ? k->samples : 1); s++)
        for (int y = 0; y < h; y += uh)
            for (int x = 0; x < w; x += uw) {
                uint16_t plane = (uint16_t)s;
                int rows = k->tiled || h - y > uh ? uh : h - y;
                fill_unit(k, rgb, w, h, x, y, uw, rows, s, unit);
                tmsize_t n = k->tiled ? TIFFTileSize(t) : TIFFVStripSize(t, (uint32_t)rows);
                ok &= (k->tiled
                           ? TIFFWriteEncodedTile(
                                 t, TIFFComputeTile(t, (uint32_t)x, (uint32_t)y, 0, plane), unit, n)
                           : TIFFWriteEncodedStrip(t, TIFFComputeStrip(t, (uint32_t)y, plane), unit,
                                                   n)) == n;
            }
    CHECK(ok && TIFFWriteDirectory(t), "writing %s", k->name);
}

/* Where the pixel (x, y) of the upright picture stands in the stored one of w x h. */
static size_t stored_at(int orientation, int x, int y, int w, int h)
{
    int sx = orientation >= 5 ? y : x, sy = orientation >= 5 ? x : y;
    if (strchr("\2\3\7\10", orientation))
        sx = w - 1 - sx;
    if (strchr("\3\4\6\7", orientation))
        sy = h - 1 - sy;
    return (size_t)sy * w + sx;
}

static void check_tiff(const TiffKind *k, int w, int h)
{
    uint8_t *rgb = draw(w, h);
    const char *path = at(temporary, "one.tif");
    TIFF *t = TIFFOpen(path, "w");
    if (!CHECK(t != NULL))
        return;
    write_page(t, k, rgb, w, h, 0);
    TIFFClose(t);
    size_t n = 0;
    uint8_t *bytes = read_all(path, &n);
    Image im;
    Error e;
    if (CHECK(image_decode(bytes, n, &im, &e), "%s: %s", k->name, e.what)) {
        bool turned = k->orientation >= 5;
        CHECK(im.w == (turned ? h : w) && im.h == (turned ? w : h), "%s: %d x %d", k->name, im.w,
              im.h);
        double sum = 0;
        for (int i = 0; i < w * h; i++) {
            uint8_t want[3];
            read_pixel(k, rgb + 3 * stored_at(k->orientation, i % im.w, i / im.w, w, h), want);
            for (int c = 0; c < 3; c++)
                sum += abs(want[c] - im.rgb[3 * i + c]) / (3.0 * w * h);
        }
        /* JPEG has quality 75, and colours that change faster than its chroma */
        CHECK(sum <= (k->compression == COMPRESSION_JPEG ? 30 : 0), "%s %d x %d: %.1f levels apart",
              k->name, w, h, sum);
        image_free(&im);
        check_parts(k->name, bytes, n, 40);
    }
    free(bytes);
    free(rgb);
}

static void test_lab(void)
{
    static const TiffKind lab = {"Lab", PHOTOMETRIC_CIELAB, 3, 8, COMPRESSION_NONE, 0, 0, 1};
    uint8_t *rgb = draw(20, 20);
    const char *path = at(temporary, "lab.tif");
    TIFF *t = TIFFOpen(path, "w");
    write_page(t, &lab, rgb, 20, 20, 0);
    TIFFClose(t);
    Image im;
    Error e = {"", ""};
    CHECK(!image_load(path, &im, &e) && strstr(e.what, "Lab colours") && e.hint[0], "%s", e.what);
    free(rgb);
}

/* Versions of one colour each: which one a crop reads is seen by its colour. */
static void check_pyramid(bool tiled, bool marked, bool sub, bool found)
{
    enum { W = 400, H = 300 };
    const TiffKind kind = {"pyramid", PHOTOMETRIC_RGB, 3, 8, COMPRESSION_LZW, tiled, 0, 1};
    static const int sizes[][2] = {{W, H}, {200, 150}, {90, 90}, {100, 75}, {50, 38}};
    const char *path = at(temporary, "pyramid.tif");
    uint8_t *rgb = xcalloc(3, W * H), out[3 * 64 * 64];
    TIFF *t = TIFFOpen(path, "w");
    if (!CHECK(t != NULL))
        return;
    uint64_t offsets[COUNT(sizes) - 1] = {0};
    for (int i = 0; i < COUNT(sizes); i++) {
        memset(rgb, 40 * (i + 1), 3 * W * H);
        if (sub && i == 0)
            TIFFSetField(t, TIFFTAG_SUBIFD, COUNT(offsets), offsets);
        write_page(t, &kind, rgb, sizes[i][0], sizes[i][1],
                   marked && i > 0 ? FILETYPE_REDUCEDIMAGE : 0);
    }
    TIFFClose(t);
    static const struct {
        Box box;
        int side, version;
    } crops[] = {{{0, 0, W, H}, 64, 3},        {{0, 0, W, H}, 32, 4},
                 {{0, 0, W, H}, 19, 4},        {{100, 50, 64, 64}, 64, 0},
                 {{100, 50, 128, 128}, 64, 1}, {{8, 8, 300, 256}, 64, 3}};
    Error e;
    if (CHECK(decoder_open_file(decoder, path, &e), "%s", e.what)) {
        CHECK(decoder_width(decoder) == W && decoder_height(decoder) == H);
        for (int i = 0; i < COUNT(crops); i++) {
            Preprocess target = {.out_w = crops[i].side, .out_h = crops[i].side};
            bool ok = decoder_crop(decoder, &target, crops[i].box, false, out, &e);
            int want = 40 * (1 + (found ? crops[i].version : 0));
            CHECK(ok && out[0] == want && out[3 * crops[i].side * crops[i].side - 1] == want,
                  "tiled %d, marked %d, sub %d, crop %d: %d instead of %d", tiled, marked, sub, i,
                  out[0], want);
        }
    }
    free(rgb);
}

static void test_tiff(void)
{
    static const int sizes[][2] = {{1, 1}, {50, 13}, {131, 97}};
    for (int k = 0; k < COUNT(tiffs); k++)
        for (int i = 0; i < COUNT(sizes); i++)
            check_tiff(&tiffs[k], sizes[i][0], sizes[i][1]);
    check_pyramid(true, false, false, true);
    check_pyramid(false, true, false, true);
    check_pyramid(true, true, true, true);
    check_pyramid(false, false, false, false); /* pages of a document */
    test_lab();
}
#else
static void test_tiff(void)
{
    Image im;
    Error e = {"", ""};
    CHECK(!image_decode((const uint8_t *)"II*\0\10\0\0\0", 8, &im, &e) &&
          strstr(e.what, "libtiff"));
    SKIP("TIFF: built without libtiff");
}
#endif

/* ---- JPEG at reduced scale ---- */

/* Levels between what fast and exact decoding make of random boxes that are large enough for the
 * one to differ from the other. */
static void check_fast(const char *path, int side)
{
    static uint8_t fast[BYTES], exact[BYTES];
    Error e = {"", ""};
    double worst = 0, all = 0;
    if (!CHECK(decoder_open_file(decoder, path, &e), "%s: %s", path, e.what))
        return;
    int w = decoder_width(decoder), h = decoder_height(decoder), n = 3 * side * side;
    for (int i = 0; i < 6; i++) {
        RngStream r = {.seed = 5, .sample = (uint32_t)i, .purpose = RNG_AUGMENT};
        Box b = {0, 0, 4 * side + below(&r, w - 4 * side + 1),
                 4 * side + below(&r, h - 4 * side + 1)};
        b.left = below(&r, w - b.width + 1);
        b.top = below(&r, h - b.height + 1);
        Preprocess t = {.out_w = side, .out_h = side, .filter = i % 2, .decode = DECODE_FAST};
        bool ok = decoder_crop(decoder, &t, b, i / 2 % 2, fast, &e);
        t.decode = DECODE_EXACT;
        ok = ok && decoder_crop(decoder, &t, b, i / 2 % 2, exact, &e);
        double sum = 0;
        CHECK(ok, "%s: %s", path, e.what);
        for (int k = 0; k < n; k++)
            sum += abs(fast[k] - exact[k]) / (double)n;
        worst = sum > worst ? sum : worst;
        all += sum;
    }
    CHECK(worst <= 3 && all > 0, "%s to %d: %.2f levels, %.2f at worst", path, side, all / 6,
          worst);
}

static void test_fast(void)
{
    static const int sides[] = {224, 96, 32};
    for (int k = 0; k < COUNT(sides); k++) {
        for (int i = 1; i <= 8; i++) {
            char name[64];
            snprintf(name, sizeof name, "data/odd/exif_landscape_%d.jpg", i);
            check_fast(at(shared, name), sides[k]);
        }
        if (k < 2)
            check_fast(at(shared, "data/odd/gen_huge_9216x6912.jpg"), sides[k]);
    }
    check_fast(at(shared, "data/odd/junk_jpeg_header.jpg"), 96);
    check_fast(at(shared, "data/odd/gen_progressive_420.jpg"), 64);
}

/* On a ramp every level is a place: a reduced picture is not shifted against the whole one. */
static void test_fast_place(void)
{
    enum { W = 800, H = 640, OUT = 24 };
    static uint8_t rgb[3 * W * H], fast[3 * OUT * OUT], exact[3 * OUT * OUT];
    for (int i = 0; i < W * H; i++) {
        rgb[3 * i] = (uint8_t)(i % W * 255 / W);
        rgb[3 * i + 1] = (uint8_t)(i / W * 255 / H);
        rgb[3 * i + 2] = 90;
    }
    uint8_t *bytes = NULL;
    size_t n = 0;
    Error e = {"", ""};
    if (!CHECK(image_encode_jpeg(rgb, W, H, 97, &bytes, &n, &e), "%s", e.what) ||
        !CHECK(decoder_open(decoder, bytes, n, &e), "%s", e.what))
        return;
    for (int i = 0; i < 16; i++) {
        Box b = {17 + 3 * i, 40 - i, OUT * (4 << i % 3) + 5 * i, OUT * (4 << i % 3) + i};
        b.width = b.width > W - b.left ? W - b.left : b.width;
        b.height = b.height > H - b.top ? H - b.top : b.height;
        Preprocess t = {.out_w = OUT, .out_h = OUT, .filter = i / 3 % 2, .decode = DECODE_FAST};
        bool ok = decoder_crop(decoder, &t, b, false, fast, &e);
        t.decode = DECODE_EXACT;
        ok = ok && decoder_crop(decoder, &t, b, false, exact, &e);
        double shift[2] = {0, 0};
        for (int k = 0; k < OUT * OUT; k++)
            for (int c = 0; c < 2; c++)
                shift[c] += (fast[3 * k + c] - exact[3 * k + c]) / (double)(OUT * OUT);
        CHECK(ok && fabs(shift[0]) < 0.25 && fabs(shift[1]) < 0.25,
              "box %d: %.2f levels to the side, %.2f down", i, shift[0], shift[1]);
    }
    free(bytes);
}

/* ---- very large pictures ---- */

/* A JPEG of side x side pixels, out of one row of blocks that is repeated: restart markers between
 * the rows make each decodable by itself. */
static bool write_huge(const char *path, int side)
{
    enum { BLOCK = 16 };
    static uint8_t row[3 * 32768];
    struct jpeg_error_mgr errors;
    struct jpeg_compress_struct c = {.err = jpeg_std_error(&errors)};
    unsigned char *bytes = NULL;
    unsigned long n = 0;
    jpeg_create_compress(&c);
    jpeg_mem_dest(&c, &bytes, &n);
    c.image_width = (JDIMENSION)side;
    c.image_height = BLOCK;
    c.input_components = 3;
    c.in_color_space = JCS_RGB;
    jpeg_set_defaults(&c);
    jpeg_set_quality(&c, 5, TRUE);
    c.restart_in_rows = 1;
    jpeg_start_compress(&c, TRUE);
    for (int y = 0; y < BLOCK; y++) {
        for (int i = 0; i < 3 * side; i++)
            row[i] = (uint8_t)(i / 3 * 255L / side + (i / 300 % 2) * 20);
        jpeg_write_scanlines(&c, &(JSAMPROW){row}, 1);
    }
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    size_t head = 2; /* segments up to and with the start of the scan */
    for (bool scan = false; !scan && head + 9 < n;
         head += 2 + (bytes[head + 2] << 8 | bytes[head + 3])) {
        scan = bytes[head + 1] == 0xDA;
        if (bytes[head + 1] == 0xC0) {
            bytes[head + 5] = (uint8_t)(side >> 8);
            bytes[head + 6] = (uint8_t)side;
        }
    }
    FILE *f = fopen(path, "wb");
    bool ok = f && fwrite(bytes, 1, head, f) == head;
    for (int y = 0; ok && y < side; y += BLOCK) {
        ok = fwrite(bytes + head, 1, n - 2 - head, f) == n - 2 - head;
        uint8_t marker[2] = {0xFF, (uint8_t)(y + BLOCK < side ? 0xD0 + y / BLOCK % 8 : 0xD9)};
        ok = ok && fwrite(marker, 1, 2, f) == 2;
    }
    ok = f && fclose(f) == 0 && ok;
    free(bytes);
    return ok;
}

/* In a process of its own, which has nothing else in memory. */
static void test_huge(void)
{
    enum { SIDE = 32768, MOST_MB = 200 };
    const char *path = at(temporary, "huge.jpg");
    if (!CHECK(write_huge(path, SIDE)))
        return;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        static uint8_t out[BYTES];
        Decoder *d = decoder_new();
        Error e = {"", ""};
        bool ok = CHECK(decoder_open_file(d, path, &e), "%s", e.what);
        static const Box boxes[] = {{0, 0, SIDE, SIDE}, {20000, 9000, 10000, 3000}};
        for (int i = 0; ok && i < 2 * COUNT(boxes); i++) {
            Preprocess t = {
                .out_w = SIZE, .out_h = SIZE, .filter = FILTER_BICUBIC, .decode = i % 2};
            ok = CHECK(decoder_crop(d, &t, boxes[i / 2], false, out, &e), "%s", e.what);
            /* grey from left to right; the middle's is known */
            int want = i / 2 ? 25000 * 255L / SIDE : 127,
                got = out[3 * (SIZE / 2 * SIZE + SIZE / 2)];
            ok &= CHECK(abs(got - want - 10) < 24, "box %d: %d, about %d", i, got, want);
        }
        decoder_free(d);
        struct rusage use;
        getrusage(RUSAGE_SELF, &use);
        ok &= CHECK(use.ru_maxrss < MOST_MB * 1024L, "%ld MB", use.ru_maxrss / 1024);
        _exit(ok ? 0 : 1);
    }
    int status = 1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0, "status %d", status);
    remove(path);
}

/* ---- damage ---- */

/* Damage is seen where the needed rows reach it, and not elsewhere. */
static void test_needed_rows(void)
{
    enum { W = 250, H = 161 };
    static uint8_t out[BYTES];
    Error e = {"", ""};
    size_t n = make_jpeg((JpegKind){.components = 3, .h = 2, .v = 2}, W, H, made, sizeof made);
    Preprocess t = {.out_w = 32, .out_h = 32};
    for (int cut = 0; cut < 2; cut++) {
        CHECK(decoder_open(decoder, made, cut ? n * 6 / 10 : n, &e), "%s", e.what);
        CHECK(decoder_crop(decoder, &t, (Box){9, 0, 99, 70}, false, out, &e), "%s", e.what);
        bool ok = decoder_crop(decoder, &t, (Box){9, 0, 99, H}, false, out, &e);
        CHECK(ok == !cut && (ok || strstr(e.what, "truncated")), "%s", e.what);
        CHECK(decoder_crop(decoder, &t, (Box){9, 0, 99, 70}, false, out, &e), "again: %s", e.what);
        ok = decoder_crop(decoder, &t, (Box){0, 140, 20, 20}, false, out, &e);
        CHECK(ok == !cut, "below the cut");
    }
    CHECK(!decoder_open(decoder, made, 100, &e) && e.hint[0], "cut in the header");
    CHECK(!decoder_crop(decoder, &t, (Box){0, 0, 1, 1}, false, out, &e), "nothing is open");

    /* A PNG's pixels are not looked at before they are asked for. */
    const char *path = at(temporary, "damaged.png");
    uint8_t *rgb = draw(40, 30);
    CHECK(image_write_png(path, rgb, 40, 30, &e), "%s", e.what);
    free(rgb);
    uint8_t *png = read_all(path, &n);
    CHECK(decoder_open(decoder, png, n, &e) && decoder_eval(decoder, &t, out, &e), "%s", e.what);
    png[n / 2] ^= 1;
    CHECK(decoder_open(decoder, png, n, &e) && decoder_width(decoder) == 40, "%s", e.what);
    CHECK(!decoder_eval(decoder, &t, out, &e) && strstr(e.what, "checksum"));
    free(png);

    /* A header that promises more than the file can hold. */
    n = make_jpeg((JpegKind){.components = 3, .h = 2, .v = 2}, 64, 64, made, sizeof made);
    for (size_t i = 0; i + 9 < n; i++)
        if (made[i] == 0xFF && made[i + 1] == 0xC0)
            memset(made + i + 5, 0xF0, 4);
    CHECK(!decoder_open(decoder, made, n, &e) && strstr(e.what, "truncated"), "%s", e.what);
}

/* Progressive files that end after some of their scans: libjpeg smooths what is missing. */
static void test_missing_scans(void)
{
    size_t n = make_jpeg((JpegKind){.components = 3, .h = 2, .v = 2, .progressive = true}, 131, 97,
                         made, sizeof made);
    int scans = 0;
    size_t last = 0;
    for (size_t i = 2; i + 1 < n; i++)
        if (made[i] == 0xFF && made[i + 1] == 0xDA && scans++ > 0) {
            uint8_t keep[2] = {made[i], made[i + 1]};
            memcpy(made + i, "\xFF\xD9", 2);
            check_parts("missing scans", made, i + 2, 40);
            memcpy(made + i, keep, 2);
            last = i;
        }
    CHECK(scans > 3, "%d scans", scans);
    /* The last one over and over: each goes through the whole picture. */
    size_t again = n - 2 - last;
    Image im;
    Error e = {"", ""};
    for (int k = 0; k < 100; k++, n += again)
        memcpy(made + n - 2, made + last, again);
    memcpy(made + n - 2, "\xFF\xD9", 2);
    CHECK(!image_decode(made, n, &im, &e) && strstr(e.what, "scans"), "%s", e.what);
}

static size_t put(uint8_t *at, uint32_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        at[i] = (uint8_t)(v >> 8 * i);
    return (size_t)bytes;
}

static size_t make_bmp(const uint8_t *rgb, int w, int h, uint8_t *out)
{
    size_t stride = ((size_t)3 * w + 3) / 4 * 4, n = 0;
    memcpy(out, "BM", 2);
    n = 2 + put(out + 2, (uint32_t)(54 + stride * h), 4);
    n += put(out + n, 0, 4) + put(out + n + 4, 54, 4);
    n += put(out + n, 40, 4) + put(out + n + 4, (uint32_t)w, 4);
    n += put(out + n, (uint32_t)h, 4) + put(out + n + 4, 1 | 24 << 16, 4);
    memset(out + n, 0, 24 + stride * h);
    n += 24;
    for (int y = h - 1; y >= 0; y--, n += stride)
        for (int i = 0; i < 3 * w; i++)
            out[n + i] = rgb[3 * w * y + i / 3 * 3 + 2 - i % 3];
    return n;
}

/* 128 greys; codes stay 8 bits wide because the table is cleared in time. */
static size_t make_gif(const uint8_t *rgb, int w, int h, uint8_t *out)
{
    memcpy(out, "GIF89a", 6);
    size_t n = 6 + put(out + 6, (uint32_t)w, 2);
    n += put(out + n, (uint32_t)h, 2) + put(out + n + 2, 0xF6, 3);
    for (int i = 0; i < 384; i++)
        out[n++] = (uint8_t)(i / 3 * 2);
    out[n++] = ',';
    n += put(out + n, 0, 4) + put(out + n + 4, (uint32_t)w, 2);
    n += put(out + n, (uint32_t)h, 3);
    out[n++] = 7;
    for (int i = 0; i < w * h; i += 100) {
        int some = w * h - i < 100 ? w * h - i : 100;
        out[n++] = (uint8_t)(some + 1);
        out[n++] = 128;
        for (int k = 0; k < some; k++)
            out[n++] = rgb[3 * (i + k)] / 2;
    }
    memcpy(out + n, "\1\x81\0;", 4);
    return n + 4;
}

/* Opens, crops and evaluates: an image or an error with a hint, never anything else. */
static bool survives(const uint8_t *bytes, size_t n)
{
    static uint8_t out[3 * 16 * 16];
    Error e = {"", ""};
    uint8_t *copy = xmalloc(n); /* so that a read beyond it is seen */
    memcpy(copy, bytes, n);
    bool ok = decoder_open(decoder, copy, n, &e);
    if (ok) {
        int w = decoder_width(decoder), h = decoder_height(decoder);
        Preprocess t = {.out_w = 16, .out_h = 16, .filter = n % 2, .decode = n / 2 % 2};
        Box b = {w / 3, h / 3, (w + 1) / 2, (h + 1) / 2};
        ok = decoder_crop(decoder, &t, b, true, out, &e);
        ok = decoder_eval(decoder, &t, out, &e) && ok;
    }
    CHECK(ok || (e.what[0] && e.hint[0]), "an error without words");
    free(copy);
    return ok;
}

static void fuzz(const char *name, const uint8_t *good, size_t n)
{
    int refused = 0, tries = 0;
    if (!CHECK(survives(good, n), "%s is read", name))
        return;
    for (size_t cut = 0; cut < n; cut += 97, tries++)
        refused += !survives(good, cut);
    uint8_t *bad = xmalloc(n);
    for (uint32_t i = 0; i < 300; i++, tries++) {
        Philox p = philox(12, i, (uint32_t)n, 0, 0);
        memcpy(bad, good, n);
        /* the header more often than the rest */
        for (uint32_t k = 0; k < 1 + i % 3; k++)
            bad[p.v[k] % (i % 2 && n > 400 ? 400 : n)] ^= (uint8_t)(1 << (p.v[3] >> 3 * k & 7));
        refused += !survives(bad, n);
    }
    free(bad);
    CHECK(refused > 0, "%s: %d of %d refused", name, refused, tries);
}

/* What other programs write, and what only an attacker would. */
static void test_stb(void)
{
    enum { W = 33, H = 20 };
    Error e = {"", ""};
    Image im;
    uint8_t *rgb = draw(W, H), *flipped = xmalloc(3 * W * H);
    for (int y = 0; y < H; y++)
        memcpy(flipped + 3 * W * y, rgb + 3 * W * (H - 1 - y), 3 * W);
    size_t n = make_bmp(rgb, W, H, made);
    put(made + 22, (uint32_t)-H, 4); /* from top to bottom */
    if (CHECK(image_decode(made, n, &im, &e) && im.w == W && im.h == H, "%s", e.what))
        CHECK(memcmp(im.rgb, flipped, 3 * W * H) == 0, "a BMP from top to bottom");
    image_free(&im);
    put(made + 22, 0x80000000u, 4);
    CHECK(!image_decode(made, n, &im, &e), "a BMP without end");
    n = make_gif(rgb, W, H, made);
    put(made + 6, 13000 | 13000 << 16, 4);
    CHECK(!image_decode(made, 4000, &im, &e) && strstr(e.what, "truncated"), "a GIF of nothing");
    free(rgb);
    free(flipped);
    static const uint8_t bomb[33] = {0x89, 'P',  'N', 'G', '\r', '\n', 0x1a, '\n', 0,    0,    0,
                                     13,   'I',  'H', 'D', 'R',  0x00, 0x01, 0x86, 0xA0, 0x00, 0x01,
                                     0x86, 0xA0, 8,   2,   0,    0,    0,    0,    0,    0,    0};
    CHECK(!image_decode(bomb, sizeof bomb, &im, &e) && strstr(e.what, "too large: 100000 x 100000"),
          "%s", e.what);
    /* Pillow's: Image.new("P", (2, 1)), colours (200, 100, 50) and (10, 20, 30),
     * save(transparency=0) */
    static const uint8_t gif[] = {0x47, 0x49, 0x46, 0x38, 0x39, 0x61, 0x02, 0x00, 0x01, 0x00, 0x81,
                                  0x00, 0x00, 0xc8, 0x64, 0x32, 0x0a, 0x14, 0x1e, 0x00, 0x00, 0x00,
                                  0x00, 0x00, 0x00, 0x21, 0xf9, 0x04, 0x01, 0x00, 0x00, 0x00, 0x00,
                                  0x2c, 0x00, 0x00, 0x00, 0x00, 0x02, 0x00, 0x01, 0x00, 0x00, 0x08,
                                  0x05, 0x00, 0x01, 0x04, 0x08, 0x08, 0x00, 0x3b};
    static const uint8_t colours[] = {200, 100, 50, 10, 20, 30};
    if (CHECK(image_decode(gif, sizeof gif, &im, &e) && im.w == 2 && im.h == 1, "%s", e.what))
        CHECK(memcmp(im.rgb, colours, 6) == 0, "a transparent pixel is %d %d %d", im.rgb[0],
              im.rgb[1], im.rgb[2]);
    image_free(&im);
    /* A PNG that says it is small, and unpacks to a megabyte. */
    rgb = xcalloc(3 * 600, 600);
    CHECK(image_write_png(at(temporary, "bomb.png"), rgb, 600, 600, &e), "%s", e.what);
    free(rgb);
    uint8_t *png = read_all(at(temporary, "bomb.png"), &n);
    memcpy(png + 16, "\0\0\0\x08\0\0\0\x08", 8);
    uint32_t crc = ~0u;
    for (int i = 12; i < 29; i++)
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (((crc ^ png[i] >> bit) & 1) ? 0xEDB88320u : 0);
    for (int i = 0; i < 4; i++)
        png[29 + i] = (uint8_t)(~crc >> (24 - 8 * i));
    CHECK(!image_decode(png, n, &im, &e) && strstr(e.what, "more rows"), "%s", e.what);
    free(png);
}

static void fuzz_file(const char *path)
{
    size_t n = 0;
    uint8_t *bytes = read_all(path, &n);
    fuzz(path, bytes, n);
    free(bytes);
}

static void test_fuzz(void)
{
    enum { W = 50, H = 40 };
    Error e = {"", ""};
    uint8_t *rgb = draw(W, H);
    for (int k = 0; k < COUNT(jpegs); k++)
        fuzz(jpegs[k].name, made, make_jpeg(jpegs[k].kind, W, H, made, sizeof made));
    CHECK(image_write_png(at(temporary, "fuzz.png"), rgb, W, H, &e), "%s", e.what);
    fuzz_file(at(temporary, "fuzz.png"));
    fuzz("GIF", made, make_gif(rgb, W, H, made));
    fuzz("BMP", made, make_bmp(rgb, W, H, made));
    int head = sprintf((char *)made, "P6 %d %d 255\n", W, H);
    memcpy(made + head, rgb, 3 * W * H);
    fuzz("PPM", made, (size_t)head + 3 * W * H);
#ifdef HAVE_WEBP
    uint8_t *webp;
    size_t n = WebPEncodeRGB(rgb, W, H, 3 * W, 80, &webp);
    fuzz("WebP", webp, n);
    WebPFree(webp);
    n = WebPEncodeLosslessRGB(rgb, W, H, 3 * W, &webp);
    Image im;
    if (CHECK(image_decode(webp, n, &im, &e) && im.w == W && im.h == H, "%s", e.what))
        CHECK(memcmp(im.rgb, rgb, 3 * W * H) == 0, "WebP without loss");
    image_free(&im);
    WebPFree(webp);
    /* PIL.Image: 3 x 2 pixels (200, 30, 10), the last of them (1, 2, 250); a second frame is green:
     * save(f, "webp", save_all=True, append_images=[green], lossless=True, duration=50). */
    uint8_t moving[] =
        "RIFF\x8e\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\x02\0\0\1\0\0ANIM\6\0\0\0\0\0\0\0\0\0"
        "ANMF\x32\0\0\0\0\0\0\0\0\0\2\0\0\1\0\0\x32\0\0\2VP8L\x1a\0\0\0\x2f\x02\x40\0\0"
        "\x0f\x70\x01\x8e\x3d\x3e\x84\xfe\xfc\x07\x0f\x14\xa4\x6d\xc0\xa2\xfd\x45\xf4\x3f\x6e"
        "ANMF\x28\0\0\0\0\0\0\0\0\0\2\0\0\1\0\0\x32\0\0\0VP8L\x0f\0\0\0\x2f\x02\x40\0\0"
        "\x07\xd0\xff\x88\xfe\x07\x22\xa2\xff\x01\0";
    static const uint8_t first[] = {200, 30, 10, 200, 30, 10, 200, 30, 10,
                                    200, 30, 10, 200, 30, 10, 1,   2,  250};
    enum { X = 52 };
    if (CHECK(image_decode(moving, sizeof moving - 1, &im, &e) && im.w == 3 && im.h == 2, "%s",
              e.what))
        CHECK(memcmp(im.rgb, first, sizeof first) == 0, "the first frame of a WebP");
    image_free(&im);
    fuzz("moving WebP", moving, sizeof moving - 1);
    moving[X] = 1; /* two pixels from the left */
    CHECK(!image_decode(moving, sizeof moving - 1, &im, &e) && strstr(e.what, "first frame"), "%s",
          e.what);
#else
    SKIP("WebP: built without libwebp");
#endif
#ifdef HAVE_TIFF
    for (int k = 0; k < COUNT(tiffs); k++) {
        TIFF *t = TIFFOpen(at(temporary, "fuzz.tif"), "w");
        if (!CHECK(t != NULL))
            break;
        write_page(t, &tiffs[k], rgb, W, H, 0);
        write_page(t, &tiffs[k], rgb, W / 2, H / 2, FILETYPE_REDUCEDIMAGE);
        TIFFClose(t);
        fuzz_file(at(temporary, "fuzz.tif"));
    }
#endif
    free(rgb);
}

int main(int argc, char **argv)
{
    if (!files_begin(argc, argv))
        return check_report();
    test_huge();
    decoder = decoder_new();
    if (shared) {
        test_fixtures();
        test_odd();
        check_folder(at(shared, "data/odd"), 20);
        check_folder(at(shared, "data/imagenet_sample"), 3);
        if (is_dir(at(shared, "data/odd")))
            test_fast();
    } else {
        SKIP("comparisons with Pillow: name the folder with fixtures/ and data/");
    }
    test_resize();
    test_default_resize();
    test_random_box();
    test_formats();
    test_others();
    test_damaged_bytes();
    test_parts();
    test_plain();
    test_coefficients();
    test_fast_place();
    test_unscaled_png();
    test_tiff();
    test_needed_rows();
    test_missing_scans();
    test_stb();
    test_fuzz();
    decoder_free(decoder);
    files_end();
    return check_report();
}
