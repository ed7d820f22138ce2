/* test_data.c - images in: decoding, resizing, datasets, order and batches.
 *
 * argv[1] is the folder that holds fixtures/ and data/; what needs them is skipped without. The
 * rest runs anywhere, on files it writes into a temporary folder.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../checkpoint.h"
#include "../data.h"
#include "check.h"

enum { SIZE = 224, BYTES = 3 * SIZE * SIZE };

static char temporary[] = "/tmp/test_data.XXXXXX";
static const char *shared; /* NULL if absent */

/* "dir/name"; kept to the end of the program */
static const char *at(const char *dir, const char *name)
{
    static char *kept[1024];
    static int n;
    if (n == COUNT(kept))
        die("raise the number of them", "test_data.c: too many paths");
    return kept[n++] = xasprintf("%s/%s", dir, name);
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
    for (int filter = FILTER_BILINEAR; filter <= FILTER_BICUBIC; filter++) {
        image_resize(&im, 0, 0, W, H, filter, W, H, false, out);
        CHECK(memcmp(in, out, sizeof in) == 0, "same size, same pixels");
        image_resize(&im, 0, 0, W, H, filter, W, H, true, out);
        Image mirrored = {W, H, out};
        image_resize(&mirrored, 0, 0, W, H, filter, W, H, true, back);
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
                long r = image_default_resize(ow, oh, w, h), least = w < h ? w : h;
                bool covers = r * w / least >= ow && r * h / least >= oh;
                if (!covers || (ow == oh && r != (ow * 256 + 112) / 224))
                    CHECK(false, "%d x %d to %d x %d: %ld", w, h, ow, oh, r);
            }
    CHECK(image_default_resize(224, 224, 500, 375) == 256);
    CHECK(image_default_resize(64, 32, 50, 50) == 73, "256/224 of the larger side");
    CHECK(image_default_resize(64, 32, 100, 50) == 37, "of both sides of the same shape");

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

static double mean_difference(const char *a, const char *b)
{
    enum { N = 32 };
    uint8_t x[3 * N * N], y[3 * N * N];
    Image p, q;
    Error e;
    if (!CHECK(image_load(a, &p, &e), "%s", e.what) || !CHECK(image_load(b, &q, &e), "%s", e.what))
        return 1e9;
    double sum = fabs((double)p.w - q.w) + fabs((double)p.h - q.h);
    image_eval(&p, CROP_STRETCH, 0, FILTER_BILINEAR, N, N, x);
    image_eval(&q, CROP_STRETCH, 0, FILTER_BILINEAR, N, N, y);
    for (int i = 0; i < 3 * N * N; i++)
        sum += abs(x[i] - y[i]) / (3.0 * N * N);
    image_free(&p);
    image_free(&q);
    return sum;
}

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

/* ---- order ---- */

static void test_shuffle(void)
{
    static const long sizes[] = {1, 2, 3, 4, 5, 10, 97, 1000, 4096, 4097};
    for (int k = 0; k < COUNT(sizes); k++) {
        long n = sizes[k], moved = 0, same = 0;
        char *seen = xcalloc(n, 1);
        bool exact = true;
        for (long p = 0; p < n; p++) {
            long i = data_shuffle(5, 3, 0, n, p);
            exact &= i >= 0 && i < n && !seen[i];
            if (i >= 0 && i < n)
                seen[i] = 1;
            moved += i != p;
            same += i == data_shuffle(5, 4, 0, n, p);
        }
        free(seen);
        CHECK(exact, "a bijection on [0, %ld)", n);
        CHECK(n < 97 || (moved > n - n / 10 && same < n / 10),
              "n %ld: %ld moved, %ld as next epoch", n, moved, same);
    }
    /* Every sample is as likely in every place: chi-squared, 49 degrees of freedom. */
    int count[8][8] = {{0}};
    for (int epoch = 0; epoch < 8000; epoch++)
        for (int p = 0; p < 8; p++)
            count[p][data_shuffle(1, epoch, 0, 8, p)]++;
    double chi2 = 0;
    for (int p = 0; p < 8; p++)
        for (int i = 0; i < 8; i++)
            chi2 += (count[p][i] - 1000.0) * (count[p][i] - 1000.0) / 1000;
    CHECK(chi2 < 100, "chi-squared %.1f", chi2);
    CHECK(data_shuffle(1, 0, 0, 1L << 40, 12345) < 1L << 40);
}

/* ---- datasets ---- */

static Decoder *decoder;

static Loader *open_strided(Dataset *d, int batch, bool shuffle, long start, long stride, long end,
                            int workers)
{
    return loader_open(d, &(LoaderOptions){batch, shuffle, 1, start, stride, end, workers, workers});
}

static Loader *open_loader(Dataset *d, int batch, bool shuffle, long start, long end, int workers)
{
    return open_strided(d, batch, shuffle, start, batch, end, workers);
}

static const DataOptions defaults = {.train = true,
                                     .image_h = 16,
                                     .image_w = 16,
                                     .fake_classes = 10,
                                     .fake_count = 50,
                                     .augment = true,
                                     .filter = FILTER_BICUBIC,
                                     .area_min = 0.3,
                                     .area_max = 1,
                                     .ratio_min = 0.75,
                                     .ratio_max = 4 / 3.0,
                                     .flip = 0.5,
                                     .seed = 3};

static void write_file(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0, "%s", path);
}

static void write_text(const char *path, const char *text)
{
    write_file(path, text, strlen(text));
}

/* dir/a/0.ppm .. : grey levels that tell the sample; sample 3*folder + file has level 10 + that. */
static const char *make_folders(const char *name, int folders)
{
    const char *dir = at(temporary, name);
    for (int k = 0; k < folders; k++)
        for (int i = 0; i < 3; i++) {
            char path[512], ppm[11 + 3 * 4];
            Error e;
            snprintf(path, sizeof path, "%s/%c", dir, 'a' + k);
            CHECK(make_dirs(path, &e));
            snprintf(path, sizeof path, "%s/%c/%d.PPM", dir, 'a' + k, i);
            memcpy(ppm, "P6 2 2 255 ", 11);
            memset(ppm + 11, 10 + 3 * k + i, 12);
            write_file(path, ppm, sizeof ppm);
        }
    return dir;
}

static Dataset *open_dir(const char *dir, bool train, const char *classes, Error *e)
{
    DataOptions o = defaults;
    o.spec = dir;
    o.train = train;
    o.classes = classes;
    return data_open(&o, e);
}

static void refuse(const char *dir, bool train, const char *classes, const char *say)
{
    Error e = {"", ""};
    Dataset *d = open_dir(dir, train, classes, &e);
    CHECK(!d && strstr(e.what, say), "expected '...%s...', got '%s'", say, d ? "success" : e.what);
    CHECK(d || e.hint[0], "a hint for '%s'", e.what);
    data_close(d);
}

static void test_folders(void)
{
    Error e = {"", ""};
    const char *dir = make_folders("set", 4), *classes = at(temporary, "classes.txt");
    Dataset *d = open_dir(dir, true, NULL, &e);
    if (CHECK(d != NULL, "%s", e.what)) {
        uint8_t out[3 * 16 * 16];
        CHECK(data_count(d) == 12 && data_classes(d) == 4);
        CHECK(strcmp(data_class_name(d, 2), "c") == 0);
        CHECK(data_sample(d, decoder, 7, 0, 0, out) == 2 && out[0] == 17 && data_label(d, 7) == 2);
        CHECK(strstr(data_sample_path(d, 7), "/c/1.PPM") != NULL);
        char *one = data_sample_path(d, 7), *other = data_sample_path(d, 8);
        CHECK(strcmp(one, other) != 0 && strcmp(one, data_sample_path(d, 7)) == 0, "%s", one);
        free(one);
        free(other);
        data_close(d);
    }
    write_text(classes, "z zebra\r\nd\nc third one\na\nb b\n\n");
    d = open_dir(dir, true, classes, &e);
    if (CHECK(d != NULL, "%s", e.what)) {
        CHECK(data_classes(d) == 5 && data_label(d, 0) == 3 && data_label(d, 6) == 2);
        data_close(d);
    }
    write_text(classes, "a\nb\nd\n");
    refuse(dir, true, classes, "/c is not in");
    write_text(classes, "a\nb\n\nc\nd\n");
    refuse(dir, true, classes, "line 3 is empty");
    write_text(classes, "a\nb\na\nc\nd\n");
    refuse(dir, true, classes, "lines 1 and 3");
    refuse(dir, true, at(temporary, "none.txt"), "none.txt: cannot open");
    refuse(dir, true, temporary, "cannot read");
    write_file(classes, "a\0b", 3);
    refuse(dir, true, classes, "not a text file");
    write_text(classes, "\n");
    refuse(dir, true, classes, "no classes");
    CHECK(make_dirs(at(dir, "empty"), &e));
    refuse(dir, true, NULL, "empty has no images");
    refuse(at(temporary, "missing"), true, NULL, "no such directory");
    CHECK(make_dirs(at(temporary, "bare"), &e));
    refuse(at(temporary, "bare"), true, NULL, "no class folders");
}

/* Labels of val/ follow train/, also where a class is missing in val/. */
static void test_splits(void)
{
    Error e = {"", ""};
    make_folders("splits/train", 3);
    refuse(at(temporary, "splits"), false, NULL, "no val/");
    make_folders("splits/validation", 3);
    char path[256];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/splits/validation/a/%d.PPM", temporary, i);
        CHECK(unlink(path) == 0);
    }
    refuse(at(temporary, "splits"), false, NULL, "validation/a has no images");
    CHECK(rmdir(at(temporary, "splits/validation/a")) == 0);
    Dataset *d = open_dir(at(temporary, "splits"), false, NULL, &e);
    if (CHECK(d != NULL, "%s", e.what))
        CHECK(data_count(d) == 6 && data_classes(d) == 3 && data_label(d, 0) == 1);
    data_close(d);
    CHECK(make_dirs(at(temporary, "splits/validation/x"), &e));
    refuse(at(temporary, "splits"), false, NULL, "x is not in");
}

static void test_damaged_images(void)
{
    Error e = {"", ""};
    const char *dir = make_folders("damaged", 2);
    const char *path[2] = {at(dir, "a/2.PPM"), at(dir, "b/0.PPM")};
    for (int i = 0; i < 2; i++)
        write_text(path[i], "P6 2 2 255 short");
    Dataset *d = open_dir(dir, true, NULL, &e);
    if (!CHECK(d != NULL, "%s", e.what))
        return;
    printf("two warnings about damaged images belong here:\n");
    fflush(stdout);
    uint8_t out[3 * 16 * 16];
    for (int epoch = 0; epoch < 3; epoch++)
        CHECK(data_sample(d, decoder, 2, epoch, 0, out) == 1 && out[0] == 14, "the next readable one: level %d",
              out[0]);
    CHECK(data_damaged(d) == 2, "%ld", data_damaged(d));
    Loader *l = open_loader(d, 4, true, 0, 40, 3);
    while (loader_next(l))
        ;
    loader_close(l);
    CHECK(data_damaged(d) == 2, "still %ld", data_damaged(d));
    data_close(d);
}

/* A data set without a readable image ends the program, with one error, from any thread. */
static void test_all_damaged(void)
{
    Error e = {"", ""};
    const char *dir = make_folders("hopeless", 1), *log = at(temporary, "hopeless.log");
    for (int i = 0; i < 3; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/a/%d.PPM", dir, i);
        write_text(path, "nonsense");
    }
    pid_t child = fork();
    if (child == 0) {
        if (!freopen(log, "w", stderr))
            _exit(9);
        Dataset *d = open_dir(dir, true, NULL, &e);
        Loader *l = d ? open_loader(d, 2, true, 0, 0, 4) : NULL;
        if (l)
            loader_next(l);
        _exit(8);
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 1, "status %d", status);
    char *text = read_text(log, 1 << 16, &e), *first = text ? strstr(text, "error:") : NULL;
    CHECK(first && strstr(first, "no readable image") && !strstr(first + 1, "error:"), "%s",
          text ? text : e.what);
    free(text);
}

static void test_cifar(void)
{
    enum { RECORD = 3073 };
    static uint8_t file[4 * RECORD];
    Error e = {"", ""};
    CHECK(make_dirs(at(temporary, "cifar"), &e));
    for (int i = 0; i < 4; i++) {
        file[i * RECORD] = (uint8_t)(2 * i);
        for (int c = 0; c < 3; c++)
            memset(file + i * RECORD + 1 + c * 1024, 50 * c + i, 1024);
    }
    write_file(at(temporary, "cifar/data_batch_1.bin"), file, 2 * RECORD);
    write_file(at(temporary, "cifar/data_batch_2.bin"), file + 2 * RECORD, 2 * RECORD);
    char spec[256];
    snprintf(spec, sizeof spec, "cifar10:%s", at(temporary, "cifar"));
    Dataset *d = open_dir(spec, true, NULL, &e);
    if (CHECK(d != NULL, "%s", e.what)) {
        uint8_t out[3 * 16 * 16];
        CHECK(data_count(d) == 4 && data_classes(d) == 10);
        CHECK(data_sample(d, decoder, 3, 0, 0, out) == 6 && out[0] == 3 && out[1] == 53 && out[2] == 103);
        CHECK(strstr(data_sample_path(d, 3), "data_batch_2.bin#1") != NULL);
        data_close(d);
    }
    refuse(spec, false, NULL, "no test_batch");
    write_file(at(temporary, "cifar/data_batch_2.bin"), file, 2 * RECORD - 1);
    refuse(spec, true, NULL, "whole number of 3073-byte records");
    file[0] = 10;
    write_file(at(temporary, "cifar/data_batch_2.bin"), file, RECORD);
    refuse(spec, true, NULL, "label 10");
    write_file(at(temporary, "cifar/data_batch_2.bin"), file, 0);
    refuse(spec, true, NULL, "empty");

    snprintf(spec, sizeof spec, "cifar10:%s/data/cifar10", shared ? shared : "");
    if (!shared || !is_dir(spec + 8)) {
        SKIP("CIFAR-10: no %s", spec + 8);
        return;
    }
    d = open_dir(spec, true, NULL, &e);
    if (CHECK(d != NULL, "%s", e.what))
        CHECK(data_count(d) == 10000 && strcmp(data_class_name(d, data_label(d, 0)), "frog") == 0);
    data_close(d);
    d = open_dir(spec, false, NULL, &e);
    CHECK(d && data_count(d) == 1000, "%s", e.what);
    data_close(d);
}

static void test_mnist(void)
{
    uint8_t images[16 + 2 * 6] = {0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 2};
    uint8_t labels[8 + 2] = {0, 0, 8, 1, 0, 0, 0, 2, 9, 4};
    memset(images + 16, 20, 6);
    memset(images + 22, 70, 6);
    Error e = {"", ""};
    CHECK(make_dirs(at(temporary, "mnist"), &e));
    write_file(at(temporary, "mnist/train-images-idx3-ubyte"), images, sizeof images);
    write_file(at(temporary, "mnist/train-labels.idx1-ubyte"), labels, sizeof labels);
    char spec[256];
    snprintf(spec, sizeof spec, "mnist:%s", at(temporary, "mnist"));
    Dataset *d = open_dir(spec, true, NULL, &e);
    if (CHECK(d != NULL, "%s", e.what)) {
        uint8_t out[3 * 16 * 16];
        CHECK(data_count(d) == 2 && data_sample(d, decoder, 1, 0, 0, out) == 4 && out[0] == 70 && out[2] == 70);
        data_close(d);
    }
    refuse(spec, false, NULL, "t10k-images");
    write_file(at(temporary, "mnist/train-labels.idx1-ubyte"), labels, sizeof labels - 1);
    refuse(spec, true, NULL, "not a whole idx1 file");
    labels[7] = 1;
    write_file(at(temporary, "mnist/train-labels.idx1-ubyte"), labels, sizeof labels - 1);
    refuse(spec, true, NULL, "2 images");
    /* No images at all; one that is too long; a product of 2^32 or more. */
    const char *path = at(temporary, "mnist/train-images-idx3-ubyte");
    images[7] = labels[7] = 0;
    write_file(at(temporary, "mnist/train-labels.idx1-ubyte"), labels, 8);
    write_file(path, images, 16);
    refuse(spec, true, NULL, "no images");
    static const uint8_t big[3][12] = {{0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0},
                                       {0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0},
                                       {0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0}};
    static uint8_t file[16 + 65536] = {0, 0, 8, 3};
    labels[7] = 1;
    write_file(at(temporary, "mnist/train-labels.idx1-ubyte"), labels, sizeof labels - 1);
    for (int k = 0; k < COUNT(big); k++) {
        memcpy(file + 4, big[k], 12);
        write_file(path, file, sizeof file);
        refuse(spec, true, NULL, k == 0 ? "65536 x 1 pixels" : "not a whole idx3 file");
    }
}

/* ---- directories ---- */

/* The reason is mkdir's. Nobody may write to a directory without its write bits, except root. */
static void test_make_dirs(void)
{
    Error e = {"", ""};
    const char *dir = at(temporary, "locked"), *file = at(temporary, "plain");
    write_text(file, "");
    CHECK(!make_dirs(file, &e) && strstr(e.what, "a file is in its place") && e.hint[0]);
    CHECK(!make_dirs("", &e) && e.hint[0]);
    CHECK(make_dirs(dir, &e) && make_dirs(dir, &e), "%s", e.what);
    uid_t me = geteuid();
    if (chmod(dir, 0555) != 0 || chmod(temporary, 0711) != 0 || (me == 0 && seteuid(65534) != 0)) {
        SKIP("an unwritable directory: cannot become another user");
        return;
    }
    bool ok = make_dirs(at(dir, "new"), &e);
    CHECK(me != 0 || seteuid(me) == 0);
    CHECK(!ok && strstr(e.what, "Permission denied") && e.hint[0], "%s", e.what);
}

static void test_shapes(void)
{
    Error e = {"", ""};
    const char *dir = at(temporary, "shapes");
    CHECK(shapes_write(dir, 3, 2, 32, 5, &e), "%s", e.what);
    Dataset *d = open_dir(dir, true, NULL, &e), *v = open_dir(dir, false, NULL, &e);
    CHECK(d && data_count(d) == 30 && data_classes(d) == 10, "%s", e.what);
    CHECK(v && data_count(v) == 20);
    data_close(d);
    data_close(v);
    /* A second call with the same arguments does nothing; other arguments are refused. */
    CHECK(unlink(at(dir, "train/ring/0001.jpg")) == 0);
    CHECK(shapes_write(dir, 3, 2, 32, 5, &e) && !path_exists(at(dir, "train/ring/0001.jpg")));
    CHECK(!shapes_write(dir, 3, 2, 32, 6, &e) && strstr(e.what, "another set"));
    /* An image does not depend on how many there are. */
    const char *more = at(temporary, "more");
    CHECK(shapes_write(more, 5, 1, 32, 5, &e), "%s", e.what);
    CHECK(mean_difference(at(dir, "train/star/0002.jpg"), at(more, "train/star/0002.jpg")) == 0);
    CHECK(mean_difference(at(dir, "train/star/0002.jpg"), at(more, "train/star/0001.jpg")) > 1);
}

/* ---- batches ---- */

/* FNV-1a of all batches from position `start` on; *images counts them. */
static uint64_t hash_run(Dataset *d, int batch, long start, long end, int workers, long *images)
{
    size_t bytes = 3 * 16 * 16;
    uint64_t h = 14695981039346656037u;
    Loader *l = open_loader(d, batch, true, start, end, workers);
    const Batch *b;
    *images = 0;
    while ((b = loader_next(l))) {
        CHECK(b->position == start + *images && b->n > 0 && b->n <= batch);
        for (int i = 0; i < b->n; i++) {
            for (size_t k = 0; k < bytes; k++)
                h = (h ^ b->images[i * bytes + k]) * 1099511628211u;
            h = (h ^ (uint64_t)b->labels[i]) * 1099511628211u;
        }
        *images += b->n;
    }
    CHECK(loader_next(l) == NULL && loader_stats(l).waited >= 0);
    loader_close(l);
    return h;
}

static void test_loader(void)
{
    Error e = {"", ""};
    Dataset *d = open_dir(at(temporary, "shapes"), true, NULL, &e);
    if (!CHECK(d != NULL, "%s", e.what))
        return;
    static const int workers[] = {1, 2, 3, 7};
    long n, end = 2 * data_count(d) + 11; /* into the third epoch */
    uint64_t first = hash_run(d, 8, 0, end, 1, &n), later = hash_run(d, 8, 40, end, 1, &n);
    for (int k = 0; k < COUNT(workers); k++) {
        CHECK(hash_run(d, 8, 0, end, workers[k], &n) == first && n == end, "%d workers",
              workers[k]);
        CHECK(hash_run(d, 5, 0, end, workers[k], &n) == first, "batches of another size");
        CHECK(hash_run(d, 8, 40, end, workers[k], &n) == later && n == end - 40, "a later start");
    }
    CHECK(hash_run(d, 8, 0, end - 1, 2, &n) != first);

    /* The later start is the tail of the whole; two strided readers are the halves of the whole. */
    Loader *whole = open_loader(d, 8, true, 0, end, 2), *tail = open_loader(d, 8, true, 40, end, 3);
    Loader *half[2] = {open_strided(d, 4, true, 0, 8, end, 1),
                       open_strided(d, 4, true, 4, 8, end, 2)};
    const Batch *b;
    for (int k = 0; (b = loader_next(whole)); k++) {
        for (int r = 0; r < 2; r++) {
            const Batch *h = loader_next(half[r]);
            int want = b->n - 4 * r < 4 ? b->n - 4 * r : 4;
            CHECK(h ? h->n == want && memcmp(h->images, b->images + r * 4 * 768, 768 * want) == 0
                    : want <= 0,
                  "half %d of batch %d", r, k);
        }
        if (k < 5)
            continue;
        const Batch *t = loader_next(tail);
        CHECK(t && t->n == b->n && t->position == b->position &&
                  memcmp(t->images, b->images, 768 * b->n) == 0 &&
                  memcmp(t->labels, b->labels, sizeof(int) * b->n) == 0,
              "batch %d", k);
    }
    loader_close(whole);
    loader_close(tail);
    loader_close(half[0]);
    loader_close(half[1]);
    loader_close(open_loader(d, 3, true, 0, 0, 4)); /* closed while it fills */
    data_close(d);
}

static void test_fake(void)
{
    Error e = {"", ""};
    DataOptions o = defaults;
    o.spec = "fake";
    o.fake_count = 0;
    CHECK(!data_open(&o, &e) && e.hint[0], "%s", e.what);
    o.fake_count = 1;
    o.image_w = 0;
    CHECK(!data_open(&o, &e) && e.hint[0], "%s", e.what);
    Dataset *d = open_dir("fake", true, NULL, &e);
    if (!CHECK(d != NULL, "%s", e.what))
        return;
    uint8_t a[768], b[768];
    CHECK(data_count(d) == 50 && data_sample(d, decoder, 13, 0, 0, a) == 3);
    data_sample(d, decoder, 13, 1, 0, b);
    CHECK(memcmp(a, b, 768) == 0);
    data_sample(d, decoder, 14, 0, 0, b);
    CHECK(memcmp(a, b, 768) != 0);
    data_close(d);
}

int main(int argc, char **argv)
{
    shared = argc > 1 && is_dir(argv[1]) ? argv[1] : NULL;
    if (!CHECK(mkdtemp(temporary) != NULL, "%s", temporary))
        return check_report();
    if (shared) {
        test_fixtures();
        test_odd();
    } else {
        SKIP("comparisons with Pillow: name the folder with fixtures/ and data/");
    }
    decoder = decoder_new();
    test_resize();
    test_default_resize();
    test_random_box();
    test_formats();
    test_damaged_bytes();
    test_shuffle();
    test_folders();
    test_splits();
    test_damaged_images();
    test_all_damaged();
    test_cifar();
    test_mnist();
    test_make_dirs();
    test_shapes();
    test_loader();
    test_fake();
    decoder_free(decoder);
    char *remove_all = xasprintf("rm -rf '%s'", temporary);
    if (system(remove_all) != 0)
        printf("could not remove %s\n", temporary);
    free(remove_all);
    return check_report();
}
