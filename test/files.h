/* files.h - what tests of files share: a temporary folder, the shared one, paths, comparing images.
 */
#pragma once

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "image/decoder.h"
#include "image/parts.h"
#include "util/files.h"

static char temporary[] = "/tmp/vit_test.XXXXXX";
static const char *shared; /* argv[1], the folder with fixtures/ and data/; NULL if absent */

static bool files_begin(int argc, char **argv)
{
    shared = argc > 1 && is_dir(argv[1]) ? argv[1] : NULL;
    return CHECK(mkdtemp(temporary) != NULL, "%s", temporary);
}

static void files_end(void)
{
    char *remove_all = xasprintf("rm -rf '%s'", temporary);
    if (system(remove_all) != 0)
        printf("could not remove %s\n", temporary);
    free(remove_all);
}

/* "dir/name"; kept to the end of the program */
static const char *at(const char *dir, const char *name)
{
    static char *kept[2048];
    static int n;
    if (n == COUNT(kept))
        die("raise the number of them", "test/files.h: too many paths");
    return kept[n++] = xasprintf("%s/%s", dir, name);
}

/* ---- whole pictures in memory ---- */

/* The open picture, all of it in its own size. */
static inline bool take_whole(Decoder *d, Image *out, Error *e)
{
    Box all = {.width = decoder_width(d), .height = decoder_height(d)};
    Preprocess same = {.out_w = all.width, .out_h = all.height};
    if (!size_is_sane(all.width, all.height, true, e))
        return false;
    image_alloc(out, all.width, all.height);
    bool ok = decoder_crop(d, &same, all, false, out->rgb, e);
    if (!ok)
        image_free(out);
    return ok;
}

static inline bool image_decode(const uint8_t *bytes, size_t n, Image *out, Error *e)
{
    *out = (Image){0};
    Decoder *d = decoder_new();
    bool ok = decoder_open(d, bytes, n, e) && take_whole(d, out, e);
    decoder_free(d);
    return ok;
}

/* The error names the file. */
static inline bool image_load(const char *path, Image *out, Error *e)
{
    *out = (Image){0};
    Error why;
    Decoder *d = decoder_new();
    bool ok = decoder_open_file(d, path, &why) && take_whole(d, out, &why);
    decoder_free(d);
    return ok || fail(e, why.hint, "%s: %s", path, why.what);
}

/* What an evaluation looks at. */
static inline void image_eval(const Image *im, int crop, int resize, int filter, int out_w,
                              int out_h, uint8_t *out)
{
    Error none; /* pixels in memory cannot fail */
    Preprocess p = {
        .out_w = out_w, .out_h = out_h, .filter = filter, .crop = crop, .resize = resize};
    Decoder *d = decoder_new();
    decoder_open_pixels(d, im->rgb, im->w, im->h);
    decoder_eval(d, &p, out, &none);
    decoder_free(d);
}

/* Levels between two images, both scaled down; 1e9 if one cannot be read. */
static inline double mean_difference(const char *a, const char *b)
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
