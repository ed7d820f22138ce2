/* test_augment.c - images changed at random: each operation, and what is drawn.
 *
 * argv[1] is the folder that holds fixtures/preprocess.safetensors; further arguments are files of
 * its format, whose tensors `aug.OP` and `aug.OP:MAGNITUDE` are Pillow's results on `aug.input`.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../checkpoint.h"
#include "../image.h"
#include "check.h"

/* ---- operations ---- */

static int find_op(const char *name, size_t n)
{
    for (int op = 0; op < OP_COUNT; op++)
        if (strlen(image_op_name(op)) == n && strncmp(image_op_name(op), name, n) == 0)
            return op;
    return -1;
}

/* rgb changed by an operation; static, until the next call */
static const uint8_t *changed(int op, double m, int filter, const uint8_t *rgb, int w, int h)
{
    static uint8_t *out, *scratch;
    size_t n = 3 * (size_t)w * (size_t)h;
    out = xrealloc(out, n);
    free(scratch);
    scratch = xmalloc(image_op_scratch(w, h)); /* of this size: sanitizers see what is beyond */
    memcpy(out, rgb, n);
    image_op(op, m, filter, out, w, h, scratch);
    return out;
}

static void check_golden(const SafeTensors *f, const StTensor *in, const StTensor *t)
{
    const char *name = t->name + strlen("aug."), *colon = strchr(name, ':');
    int op = find_op(name, colon ? (size_t)(colon - name) : strlen(name));
    if (!CHECK(op >= 0 && t->type == ST_U8 && t->n == in->n, "%s: no such operation", t->name))
        return;
    const uint8_t *want = st_data(f, t);
    const uint8_t *got = changed(op, colon ? atof(colon + 1) : 0, FILTER_BILINEAR, st_data(f, in),
                                 (int)in->shape[1], (int)in->shape[0]);
    double sum = 0;
    long beyond = 0;
    for (long i = 0; i < t->n; i++) {
        int d = abs(got[i] - want[i]);
        sum += d;
        beyond += d > 3;
    }
    CHECK(sum / (double)t->n <= 0.5 && beyond * 1000 <= t->n, "%s: mean %.3f, %ld beyond 3",
          t->name, sum / (double)t->n, beyond);
}

static void test_golden(const char *path)
{
    Error e = {"", ""};
    SafeTensors *f = st_open(path, &e);
    if (!CHECK(f != NULL, "%s", e.what))
        return;
    const StTensor *in = st_find(f, "aug.input");
    int found = 0;
    if (CHECK(in && in->type == ST_U8 && in->ndim == 3 && in->shape[2] == 3, "%s", path))
        for (int i = 0; i < st_count(f); i++)
            if (strncmp(st_at(f, i)->name, "aug.", 4) == 0 && st_at(f, i) != in) {
                check_golden(f, in, st_at(f, i));
                found++;
            }
    CHECK(found > 0, "%s has no aug.*", path);
    st_close(f);
}

int main(int argc, char **argv)
{
    char *path = argc > 1 ? xasprintf("%s/fixtures/preprocess.safetensors", argv[1]) : NULL;
    if (path && path_exists(path))
        test_golden(path);
    else
        SKIP("operations against Pillow: no fixtures/preprocess.safetensors");
    for (int i = 2; i < argc; i++)
        test_golden(argv[i]);
    free(path);
    return check_report();
}
