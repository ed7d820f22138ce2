/* files.h - what tests of files share: a temporary folder, the shared one, paths, comparing images.
 */
#pragma once

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "image/image.h"
#include "check.h"
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
    static char *kept[1024];
    static int n;
    if (n == COUNT(kept))
        die("raise the number of them", "test/files.h: too many paths");
    return kept[n++] = xasprintf("%s/%s", dir, name);
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
