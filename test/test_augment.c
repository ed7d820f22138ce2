/* test_augment.c - images changed at random: each operation, and what is drawn.
 *
 * argv[1] is the folder that holds fixtures/preprocess.safetensors; further arguments are files of
 * its format, whose tensors `aug.OP` and `aug.OP:MAGNITUDE` are Pillow's results on `aug.input`.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "weights/safetensors.h"
#include "data.h"
#include "check.h"
#include "image/augment.h"
#include "image/decoder.h"
#include "image/pixels.h"
#include "util/files.h"
#include "util/rng.h"

/* ---- operations ---- */

static const char *const op_names[OP_COUNT] = {
    [OP_IDENTITY] = "identity",
    [OP_AUTOCONTRAST] = "autocontrast",
    [OP_EQUALIZE] = "equalize",
    [OP_INVERT] = "invert",
    [OP_POSTERIZE] = "posterize",
    [OP_SOLARIZE] = "solarize",
    [OP_SOLARIZE_ADD] = "solarize_add",
    [OP_BRIGHTNESS] = "brightness",
    [OP_CONTRAST] = "contrast",
    [OP_COLOR] = "color",
    [OP_SHARPNESS] = "sharpness",
    [OP_HUE] = "hue",
    [OP_ROTATE] = "rotate",
    [OP_SHEAR_X] = "shear_x",
    [OP_SHEAR_Y] = "shear_y",
    [OP_TRANSLATE_X] = "translate_x",
    [OP_TRANSLATE_Y] = "translate_y",
    [OP_BLUR] = "blur",
};

static int find_op(const char *name, size_t n)
{
    for (int op = 0; op < OP_COUNT; op++)
        if (strlen(op_names[op]) == n && strncmp(op_names[op], name, n) == 0)
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

/* exact: what this was written against has the same bytes, but for a compiler's fused products. */
static void check_golden(const SafeTensors *f, const StTensor *in, const StTensor *t, bool exact)
{
    const char *name = t->name + strlen("aug."), *colon = strchr(name, ':');
    int op = find_op(name, colon ? (size_t)(colon - name) : strlen(name));
    if (!CHECK(op >= 0 && t->type == ST_U8 && t->n == in->n, "%s: no such operation", t->name))
        return;
    const uint8_t *want = st_data(f, t);
    const uint8_t *got = changed(op, colon ? atof(colon + 1) : 0, FILTER_BILINEAR, st_data(f, in),
                                 (int)in->shape[1], (int)in->shape[0]);
    double sum = 0;
    long beyond = 0, other = 0;
    for (long i = 0; i < t->n; i++) {
        int d = abs(got[i] - want[i]);
        sum += d;
        other += d > 0;
        beyond += d > 3;
    }
    CHECK(sum / (double)t->n <= 0.5 && beyond * 1000 <= t->n, "%s: mean %.3f, %ld beyond 3",
          t->name, sum / (double)t->n, beyond);
    CHECK(!exact || other * 10000 <= t->n, "%s: %ld bytes differ", t->name, other);
}

static void test_golden(const char *path, bool exact)
{
    Error e = {"", ""};
    SafeTensors *f = st_open(path, &e);
    if (!CHECK(f != NULL, "%s", e.what))
        return;
    const StTensor *in = st_find(f, "aug.input");
    int found = 0;
    if (CHECK(in && in->type == ST_U8 && in->ndim == 3 && in->shape[2] == 3, "%s", path))
        for (int i = 0; i < f->count; i++)
            if (strncmp(f->tensor[i].name, "aug.", 4) == 0 && &f->tensor[i] != in) {
                check_golden(f, in, &f->tensor[i], exact);
                found++;
            }
    CHECK(found > 0, "%s has no aug.*", path);
    st_close(f);
}

/* A picture of noise. */
static uint8_t *noise(int w, int h, uint32_t key)
{
    uint8_t *rgb = xmalloc(3 * (size_t)w * (size_t)h + sizeof(Philox));
    for (int i = 0; i < 3 * w * h; i += (int)sizeof(Philox)) {
        Philox p = philox(7, (uint32_t)i, key, 0, 0);
        memcpy(rgb + i, p.v, sizeof p);
    }
    return rgb;
}

static bool leaves(int op, double m, int filter, const uint8_t *rgb, int w, int h)
{
    return memcmp(changed(op, m, filter, rgb, w, h), rgb, 3 * (size_t)w * (size_t)h) == 0;
}

/* Magnitudes that change nothing, and changes that undo each other, for any size. */
static void test_neutral(void)
{
    static const int sizes[][2] = {{1, 1}, {2, 5}, {5, 2}, {63, 3}, {64, 64}, {65, 17}, {131, 97}};
    static const struct {
        int op;
        double m;
    } neutral[] = {{OP_IDENTITY, 3},    {OP_POSTERIZE, 8}, {OP_SOLARIZE, 256}, {OP_SOLARIZE_ADD, 0},
                   {OP_BRIGHTNESS, 1},  {OP_CONTRAST, 1},  {OP_COLOR, 1},      {OP_SHARPNESS, 1},
                   {OP_ROTATE, 0},      {OP_ROTATE, 360},  {OP_SHEAR_X, 0},    {OP_SHEAR_Y, 0},
                   {OP_TRANSLATE_X, 0}, {OP_BLUR, 0}};
    for (int s = 0; s < COUNT(sizes); s++) {
        int w = sizes[s][0], h = sizes[s][1];
        uint8_t *rgb = noise(w, h, (uint32_t)s), *back = xmalloc(3 * (size_t)w * (size_t)h);
        for (int i = 0; i < COUNT(neutral); i++)
            for (int f = FILTER_BILINEAR; f <= FILTER_NEAREST; f++)
                CHECK(leaves(neutral[i].op, neutral[i].m, f, rgb, w, h), "%s, %d x %d, filter %d",
                      op_names[neutral[i].op], w, h, f);
        for (int f = FILTER_BILINEAR; f <= FILTER_NEAREST; f++) {
            memcpy(back, changed(OP_ROTATE, 180, f, rgb, w, h), 3 * (size_t)w * (size_t)h);
            int other = 0;
            for (int i = 0; i < w * h; i++)
                other += memcmp(back + 3 * i, rgb + 3 * (w * h - 1 - i), 3) != 0;
            CHECK(other == 0, "half a turn of %d x %d, filter %d: %d pixels", w, h, f, other);
        }
        memcpy(back, changed(OP_INVERT, 0, 0, rgb, w, h), 3 * (size_t)w * (size_t)h);
        CHECK(memcmp(changed(OP_SOLARIZE, 0, 0, rgb, w, h), back, 3 * (size_t)w * (size_t)h) == 0);
        CHECK(memcmp(changed(OP_INVERT, 0, 0, back, w, h), rgb, 3 * (size_t)w * (size_t)h) == 0);
        /* any magnitude is safe: sanitizers look on */
        static const double wild[] = {-1e9, -300, -1, 0.3, 7, 1e9};
        for (int op = 0; op < OP_COUNT; op++)
            for (int i = 0; i < COUNT(wild); i++)
                changed(op, wild[i], (op + i) % 3, rgb, w, h);
        free(rgb);
        free(back);
    }
}

/* Small pictures, worked out by hand. */
static void test_by_hand(void)
{
    /* the fill, and which way: output pixel x shows source pixel x + m */
    static const uint8_t row[12] = {10, 11, 12, 20, 21, 22, 30, 31, 32, 50, 51, 52};
    static const uint8_t left[12] = {20, 21, 22, 30, 31, 32, 50, 51, 52, 128, 128, 128};
    static const uint8_t right[12] = {128, 128, 128, 10, 11, 12, 20, 21, 22, 30, 31, 32};
    for (int f = FILTER_BILINEAR; f <= FILTER_NEAREST; f++) {
        CHECK(memcmp(changed(OP_TRANSLATE_X, 1, f, row, 4, 1), left, 12) == 0, "filter %d", f);
        CHECK(memcmp(changed(OP_TRANSLATE_X, -1, f, row, 4, 1), right, 12) == 0, "filter %d", f);
        CHECK(memcmp(changed(OP_TRANSLATE_Y, 1, f, row, 1, 4), left, 12) == 0, "filter %d", f);
    }
    /* half a pixel: (20 + 30) / 2, and with weights -1 5 5 -1 eighths (20 and 30 between 10, 50) */
    CHECK(changed(OP_TRANSLATE_X, 0.5, FILTER_BILINEAR, row, 4, 1)[3] == 25);
    CHECK(changed(OP_TRANSLATE_X, 0.5, FILTER_BICUBIC, row, 4, 1)[3] == 23); /* 190/8 = 23.75 */
    /* a quarter turn against the clock: the right column becomes the upper row */
    static const uint8_t square[12] = {1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4};
    static const uint8_t turned[12] = {2, 2, 2, 4, 4, 4, 1, 1, 1, 3, 3, 3};
    for (int f = FILTER_BILINEAR; f <= FILTER_NEAREST; f++)
        CHECK(memcmp(changed(OP_ROTATE, 90, f, square, 2, 2), turned, 12) == 0, "filter %d", f);
    /* a third of the circle: 85 of 255; grey has no hue */
    static const uint8_t colors[12] = {200, 0, 0, 0, 200, 0, 0, 0, 200, 90, 90, 90};
    static const uint8_t third[12] = {0, 200, 0, 0, 0, 200, 200, 0, 0, 90, 90, 90};
    CHECK(memcmp(changed(OP_HUE, 1 / 3.0, 0, colors, 4, 1), third, 12) == 0);
    /* grey of (200, 0, 0) is 59.8; contrast's grey is the mean of 60, 117, 23 and 90: 72.5 */
    static const uint8_t pale[3] = {60, 60, 60};
    CHECK(memcmp(changed(OP_COLOR, 0, 0, colors, 4, 1), pale, 3) == 0);
    CHECK(changed(OP_CONTRAST, 0, 0, colors, 4, 1)[5] == 73);
    CHECK(changed(OP_BRIGHTNESS, 1.5, 0, colors, 4, 1)[0] == 255 &&
          changed(OP_BRIGHTNESS, 0.5, 0, colors, 4, 1)[9] == 45);
    /* (8 * 0 + 5 * 130) / 13 in the middle, the border as it was */
    uint8_t dot[27] = {0};
    memset(dot + 12, 130, 3);
    CHECK(changed(OP_SHARPNESS, 0, 0, dot, 3, 3)[12] == 50 &&
          changed(OP_SHARPNESS, 2, 0, dot, 3, 3)[12] == 210);
    CHECK(changed(OP_SHARPNESS, 0, 0, dot, 3, 3)[9] == 0);
    /* 10..50 to 0..255: 20 becomes 63.75, 30 127.5 */
    const uint8_t *wide = changed(OP_AUTOCONTRAST, 0, 0, row, 4, 1);
    CHECK(wide[0] == 0 && wide[3] == 63 && wide[7] == 127 && wide[11] == 255);
    CHECK(changed(OP_POSTERIZE, 3, 0, colors, 4, 1)[0] == 192 &&
          changed(OP_POSTERIZE, 1, 0, colors, 4, 1)[9] == 0);
    CHECK(changed(OP_SOLARIZE, 90.5, 0, colors, 4, 1)[9] == 90 &&
          changed(OP_SOLARIZE, 90, 0, colors, 4, 1)[9] == 165);
    CHECK(changed(OP_SOLARIZE_ADD, 60, 0, colors, 4, 1)[9] == 150 &&
          changed(OP_SOLARIZE_ADD, 60, 0, colors, 4, 1)[0] == 200);
    /* equalize 1, 509 and 10 pixels of levels 7 to 9: the step is 510 / 255 = 2, and they become
     * (1 + 0) / 2, (1 + 1) / 2 and (1 + 510) / 2 */
    uint8_t *flat = xmalloc(3 * 520);
    for (int i = 0; i < 3 * 520; i++)
        flat[i] = (uint8_t)(i < 3 ? 7 : i < 3 * 510 ? 8 : 9);
    const uint8_t *even = changed(OP_EQUALIZE, 0, 0, flat, 520, 1);
    CHECK(even[0] == 0 && even[3] == 1 && even[3 * 520 - 1] == 255, "%d %d %d", even[0], even[3],
          even[3 * 520 - 1]);
    free(flat);
}

static uint64_t hash_of(const uint8_t *v, int n)
{
    uint64_t h = 14695981039346656037u; /* FNV-1a */
    for (int i = 0; i < n; i++)
        h = (h ^ v[i]) * 1099511628211u;
    return h;
}

/* What numpy makes of (x*x*7 + y*13 + c*50 + (x*y)%5*40) % 256. */
static uint8_t *formula(int w, int h)
{
    uint8_t *rgb = xmalloc(3 * (size_t)w * (size_t)h);
    for (int i = 0; i < 3 * w * h; i++) {
        int c = i % 3, x = i / 3 % w, y = i / 3 / w;
        rgb[i] = (uint8_t)(x * x * 7 + y * 13 + c * 50 + x * y % 5 * 40);
    }
    return rgb;
}

/* Hashes of Pillow 13.0's filter(ImageFilter.GaussianBlur(deviation)) of such pictures, and of what
 * else 3-Augment does: torchvision's Grayscale(3) and ImageOps.solarize. */
static void test_blur(void)
{
    static const struct {
        int w, h;
        double deviation;
        uint64_t hash;
    } pillow[] = {
        {31, 23, 0.1, 0xfc3d83da0b1c7578u}, {31, 23, 0.5, 0x2ae5b286b839ce5au},
        {31, 23, 1, 0x75fc6c138ad404feu},   {31, 23, 1.3, 0x217f02f6ab63e243u},
        {31, 23, 2, 0xc7e09ce4c0e3c2f8u},   {31, 23, 7.5, 0x53efd39e952e15d0u},
        {1, 9, 0.1, 0xdeecd54dd19d35e9u},   {1, 9, 0.5, 0xd96224964188a95du},
        {1, 9, 1, 0x3f8dfcb4c03abcccu},     {1, 9, 1.3, 0x009d120bb2735dd3u},
        {1, 9, 2, 0xce74598e7da4adffu},     {1, 9, 7.5, 0xec878f7f790c62fdu},
        {224, 3, 0.1, 0x4d3e0abe4528c7f0u}, {224, 3, 0.5, 0x3ece8c19e6376e29u},
        {224, 3, 1, 0x2a48ddea10661c46u},   {224, 3, 1.3, 0x1d69148e24942dc4u},
        {224, 3, 2, 0x5c11238c68372d93u},   {224, 3, 7.5, 0xe497761d98137502u},
        {2, 2, 0.1, 0x62b399aa2fe03f71u},   {2, 2, 0.5, 0x4c16cbf78a05ccf9u},
        {2, 2, 1, 0x728fa7377e4db909u},     {2, 2, 1.3, 0x10526463adcd3eb9u},
        {2, 2, 2, 0x9363a361a1158ce5u},
    };
    for (int i = 0; i < COUNT(pillow); i++) {
        int w = pillow[i].w, h = pillow[i].h;
        uint8_t *in = formula(w, h);
        uint64_t got = hash_of(changed(OP_BLUR, pillow[i].deviation, 0, in, w, h), 3 * w * h);
        CHECK(got == pillow[i].hash, "%d x %d, deviation %g", w, h, pillow[i].deviation);
        free(in);
    }
    uint8_t *in = formula(31, 23);
    CHECK(hash_of(changed(OP_COLOR, 0, 0, in, 31, 23), 3 * 31 * 23) == 0x21b43aca85d9ef88u);
    CHECK(hash_of(changed(OP_SOLARIZE, 128, 0, in, 31, 23), 3 * 31 * 23) == 0x45129ade1f4d54b6u);
    free(in);
}

/* ---- what is drawn ---- */

/* large enough for equalize, which leaves pictures of up to 255 pixels alone */
enum { SIDE = 17, BYTES = 3 * SIDE * SIDE, VIEWS = 100000 };

static uint64_t hash(const uint8_t *rgb)
{
    return hash_of(rgb, BYTES);
}

/* Pictures that may come out, each with its probability and how often it did. */
typedef struct {
    uint64_t hash;
    double probability;
    int count;
} Outcome;
typedef struct {
    Outcome at[20000];
    int n;
} Outcomes;

static Outcome *find_outcome(Outcomes *o, const uint8_t *rgb)
{
    uint64_t h = hash(rgb);
    for (int i = 0; i < o->n; i++)
        if (o->at[i].hash == h)
            return &o->at[i];
    return NULL;
}

static void add_outcome(Outcomes *o, const uint8_t *rgb, double probability)
{
    Outcome *known = find_outcome(o, rgb);
    if (known)
        known->probability += probability;
    else if (o->n < COUNT(o->at))
        o->at[o->n++] = (Outcome){hash(rgb), probability, 0};
}

/* What an operation may be at level k of a scheme: magnitudes, each as likely as the others, as the
 * scheme's authors state them. */
typedef struct {
    int n, filter[4];
    double m[4];
} Choices;

typedef Choices Levels(const char *op, double k);

static Choices one(double m)
{
    return (Choices){1, {0}, {m}};
}

static Choices either(double m, int filter)
{
    return (Choices){2, {filter, filter}, {m, -m}};
}

static Choices either_of_both(double m)
{
    return (Choices){4, {0, 1, 0, 1}, {m, m, -m, -m}}; /* bilinear or bicubic */
}

static bool is(const char *op, const char *words)
{
    return strstr(words, op) != NULL;
}

static Choices paper_levels(const char *op, double k)
{
    if (is(op, "color contrast sharpness"))
        return (Choices){2, {0}, {1 + k / 10 * 0.9, 1 - k / 10 * 0.9}};
    return is(op, "posterize")  ? one(nearbyint(8 - k / 10 * 4))
           : is(op, "solarize") ? one(256 - k / 10 * 256)
           : is(op, "rotate")   ? (Choices){1, {FILTER_NEAREST}, {k / 10 * 30}}
           : is(op, "shear_x")  ? either(k / 10 * 0.3, FILTER_BICUBIC)
                                : one(0);
}

static Choices v0_levels(const char *op, double k)
{
    double bits = nearbyint(k / 10 * 4);
    return is(op, "posterize")         ? one(bits < 1 ? 1 : bits)
           : is(op, "solarize")        ? one(k / 10 * 256)
           : is(op, "solarize_add")    ? one(fmin(128, floor(k / 10 * 110)))
           : is(op, "color")           ? one(0.1 + k / 10 * 1.8)
           : is(op, "rotate")          ? either(k / 10 * 30, FILTER_BILINEAR)
           : is(op, "shear_x shear_y") ? either(k / 10 * 0.3, FILTER_BILINEAR)
           : is(op, "translate_y")     ? either(k / 10 * 0.45 * SIDE, FILTER_BILINEAR)
                                       : one(0);
}

static Choices timm_levels(const char *op, double k)
{
    double bits = floor(k / 10 * 4);
    return is(op, "posterize")                             ? one(bits < 1 ? 1 : bits)
           : is(op, "solarize")                            ? one(floor(k / 10 * 256))
           : is(op, "solarize_add")                        ? one(fmin(128, floor(k / 10 * 110)))
           : is(op, "rotate")                              ? either_of_both(k / 10 * 30)
           : is(op, "shear_x shear_y")                     ? either_of_both(k / 10 * 0.3)
           : is(op, "translate_x translate_y")             ? either_of_both(k / 10 * 0.45 * SIDE)
           : is(op, "color contrast brightness sharpness") ? one(0.1 + k / 10 * 1.8)
                                                           : one(0);
}

static Choices timm_inc_levels(const char *op, double k)
{
    if (is(op, "color contrast brightness sharpness"))
        return (Choices){2, {0}, {1 + k / 10 * 0.9, fmax(0.1, 1 - k / 10 * 0.9)}};
    double bits = 4 - floor(k / 10 * 4);
    return is(op, "posterize")  ? one(bits < 1 ? 1 : bits)
           : is(op, "solarize") ? one(256 - floor(k / 10 * 256))
                                : timm_levels(op, k);
}

static Choices big_vision_levels(const char *op, double k)
{
    double bits = floor(k / 10 * 4);
    return is(op, "posterize")         ? one(bits < 1   ? 1
                                             : bits > 8 ? 8
                                                        : bits)
           : is(op, "rotate")          ? either(k / 10 * 30, FILTER_NEAREST)
           : is(op, "shear_x shear_y") ? either(k / 10 * 0.3, FILTER_NEAREST)
           : is(op, "translate_x translate_y")
               ? either(k / 10 * (100.0 / 224) * SIDE, FILTER_NEAREST)
               : timm_levels(op, k);
}

/* All that one step may make of a picture: what it leaves goes on to the next step. */
typedef struct {
    const char *op;
    double probability, level;
} Step;

static void add_steps(Outcomes *o, const uint8_t *rgb, double p, const Step *s, int n,
                      Levels *levels)
{
    if (p == 0)
        return;
    if (n == 0) {
        add_outcome(o, rgb, p);
        return;
    }
    add_steps(o, rgb, p * (1 - s->probability), s + 1, n - 1, levels);
    Choices c = levels(s->op, s->level);
    int op = find_op(s->op, strlen(s->op));
    if (op < 0) {
        CHECK(op >= 0, "%s", s->op);
        return;
    }
    for (int i = 0; i < c.n; i++) {
        uint8_t next[BYTES];
        memcpy(next, changed(op, c.m[i], c.filter[i], rgb, SIDE, SIDE), BYTES);
        add_steps(o, next, p * s->probability / c.n, s + 1, n - 1, levels);
    }
}

/* Every picture that comes out must be expected, and come as often as expected: within 5 standard
 * deviations, which chance alone exceeds once in 1.7 million. */
static void check_outcomes(Outcomes *o, const char *policy, const uint8_t *in, int views)
{
    Error e = {"", ""};
    Augmentation *a = augmentation_new("", policy, &e);
    if (!CHECK(a != NULL, "%s: %s", policy, e.what))
        return;
    uint8_t *rgb = xmalloc(BYTES), *scratch = xmalloc(image_op_scratch(SIDE, SIDE));
    int strange = 0;
    for (int i = 0; i < views; i++) {
        memcpy(rgb, in, BYTES);
        augment_image(a, (View){3, (uint32_t)i, 5, 0}, rgb, SIDE, SIDE, scratch);
        Outcome *known = find_outcome(o, rgb);
        if (known)
            known->count++;
        else
            strange++;
    }
    CHECK(strange == 0, "%s: %d of %d pictures that it cannot make", policy, strange, views);
    double sum = 0;
    for (int i = 0; i < o->n; i++) {
        double p = o->at[i].probability, mean = views * p, sd = sqrt(views * p * (1 - p));
        CHECK(fabs(o->at[i].count - mean) <= 5 * sd + 3, "%s: picture %d came %d times, not %.1f",
              policy, i, o->at[i].count, mean);
        sum += p;
    }
    CHECK(fabs(sum - 1) < 1e-9, "%s: the test's own probabilities sum to %g", policy, sum);
    free(rgb);
    free(scratch);
    augmentation_free(a);
}

/* The policies once more, from their publications: "op probability level" twice in each. */
static const char paper[] =
    "posterize .4 8 rotate .6 9|solarize .6 5 autocontrast .6 5|equalize .8 8 equalize .6 3|"
    "posterize .6 7 posterize .6 6|equalize .4 7 solarize .2 4|equalize .4 4 rotate .8 8|"
    "solarize .6 3 equalize .6 7|posterize .8 5 equalize 1 2|rotate .2 3 solarize .6 8|"
    "equalize .6 8 posterize .4 6|rotate .8 8 color .4 0|rotate .4 9 equalize .6 2|"
    "equalize 0 7 equalize .8 8|invert .6 4 equalize 1 8|color .6 4 contrast 1 8|"
    "rotate .8 8 color 1 2|color .8 8 solarize .8 7|sharpness .4 7 invert .6 8|"
    "shear_x .6 5 equalize 1 9|color .4 0 equalize .6 3|equalize .4 7 solarize .2 4|"
    "solarize .6 5 autocontrast .6 5|invert .6 4 equalize 1 8|color .6 4 contrast 1 8|"
    "equalize .8 8 equalize .6 3";
static const char v0[] =
    "equalize .8 0 shear_y .8 4|color .4 9 equalize .6 0|color .4 1 rotate .6 8|"
    "solarize .8 3 equalize .4 0|solarize .4 2 solarize .6 2|color .2 0 equalize .8 0|"
    "equalize .4 0 solarize_add .8 3|shear_x .2 9 rotate .6 8|color .6 1 equalize 1 0|"
    "invert .4 0 rotate .6 0|equalize 1 0 shear_y .6 3|color .4 7 equalize .6 0|"
    "posterize .4 6 autocontrast .4 0|solarize .6 8 color .6 9|solarize .2 4 rotate .8 9|"
    "rotate 1 7 translate_y .8 9|solarize .8 4 identity 0 0|shear_y .8 0 color .6 4|"
    "color 1 0 rotate .6 2|equalize .8 0 identity 0 0|equalize 1 0 autocontrast .6 0|"
    "shear_y .4 7 solarize_add .6 7|posterize .8 2 solarize .6 10|solarize .6 8 equalize .6 0|"
    "color .8 6 rotate .4 5";

static void test_auto_augment(const char *name, const char *policy, Levels *levels)
{
    static Outcomes o;
    uint8_t *in = noise(SIDE, SIDE, 1);
    o.n = 0;
    for (const char *at = policy; at; at = strchr(at, '|') ? strchr(at, '|') + 1 : NULL) {
        char op[2][32];
        Step s[2] = {{.op = op[0]}, {.op = op[1]}};
        if (CHECK(sscanf(at, "%31s %lf %lf %31s %lf %lf", op[0], &s[0].probability, &s[0].level,
                         op[1], &s[1].probability, &s[1].level) == 6))
            add_steps(&o, in, 1.0 / 25, s, 2, levels);
    }
    check_outcomes(&o, name, in, VIEWS);
    free(in);
}

static const char timm_ops[] =
    "autocontrast equalize invert rotate posterize solarize solarize_add "
    "color contrast brightness sharpness shear_x shear_y translate_x "
    "translate_y";

/* One or two operations of 15, each drawn from all; or one of 16 with cutout. */
static void test_rand_augment(const char *name, int layers, double p, double level, Levels *levels,
                              bool cut)
{
    static Outcomes o;
    char ops[16][32];
    int n = 0, length;
    uint8_t *in = noise(SIDE, SIDE, 2);
    for (const char *at = timm_ops; n < 15 && sscanf(at, "%31s%n", ops[n], &length) == 1; n++)
        at += length;
    o.n = 0;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < (layers == 2 ? n : 1); j++)
            add_steps(&o, in, 1.0 / (n + cut) / (layers == 2 ? n : 1),
                      (const Step[]){{ops[i], p, level}, {ops[j], p, level}}, layers, levels);
    if (cut) { /* a square of twice `half` pixels about each pixel */
        int half = (int)(level * 4 * SIDE / 224);
        for (int y = 0; y < SIDE; y++)
            for (int x = 0; x < SIDE; x++) {
                uint8_t rgb[BYTES];
                for (int i = 0; i < BYTES; i++) {
                    int r = i / 3 / SIDE - y, c = i / 3 % SIDE - x;
                    bool inside = r >= -half && r < half && c >= -half && c < half;
                    rgb[i] = inside ? 128 : in[i];
                }
                add_outcome(&o, rgb, p / (n + 1) / (SIDE * SIDE));
            }
    }
    check_outcomes(&o, name, in, VIEWS);
    free(in);
}

/* How much solarize_add adds says which level was drawn: 11 per level, rounded down. */
static void check_levels(const char *policy, double mean, double sd, double least, double most)
{
    enum { LEVELS = 15000 };
    uint8_t in[BYTES], *rgb = xmalloc(BYTES), *scratch = xmalloc(image_op_scratch(SIDE, SIDE));
    Error e = {"", ""};
    Augmentation *a = augmentation_new("", policy, &e);
    double n = 0, sum = 0, square = 0, lo = 1e9, hi = -1e9;
    for (int i = 0; i < BYTES; i++)
        in[i] = (uint8_t)(i * 7 % 16);
    CHECK(a != NULL, "%s", e.what);
    for (int i = 0; i < LEVELS; i++) { /* without a nothing happens */
        memcpy(rgb, in, BYTES);
        augment_image(a, (View){11, (uint32_t)i, 0, 0}, rgb, SIDE, SIDE, scratch);
        int add = rgb[0] - in[0];
        if (add <= 0 || memcmp(rgb, changed(OP_SOLARIZE_ADD, add, 0, in, SIDE, SIDE), BYTES) != 0)
            continue;
        double level = (add + 0.5) / 11;
        n++;
        sum += level;
        square += level * level;
        lo = level < lo ? level : lo;
        hi = level > hi ? level : hi;
    }
    double got = sum / n, spread = sqrt(square / n - got * got);
    CHECK(n > LEVELS / 15 - 200 && fabs(got - mean) < 5 * sd / sqrt(n) &&
              fabs(spread - sd) < 5 * sd / sqrt(n) && lo >= least && hi <= most,
          "%s: levels %.2f +- %.2f in %.2f..%.2f", policy, got, spread, lo, hi);
    augmentation_free(a);
    free(rgb);
    free(scratch);
}

/* ---- 3-Augment ---- */

/* Every blur of a picture, GRID of them from 0.1 to 2; and which of them another picture is nearest
 * to, or 0 where none is near. */
enum { GRID = 381 };

static double blur_of(const uint8_t (*blurs)[BYTES], const uint8_t *rgb)
{
    long least = 4 * BYTES;
    double nearest = 0;
    for (int k = 0; k < GRID; k++) {
        long distance = 0;
        for (int i = 0; i < BYTES; i++)
            distance += abs(blurs[k][i] - rgb[i]);
        if (distance < least) {
            least = distance;
            nearest = 0.1 + 1.9 * k / (GRID - 1);
        }
    }
    return nearest;
}

/* One of three for each picture, of blurs any in 0.1..2; and colour jitter after it, not before. */
static void test_three(void)
{
    enum { N = 1500 };
    static uint8_t blurred[GRID][BYTES];
    Error e = {"", ""};
    Augmentation *a = augmentation_new("", "3-augment", &e), *j = augmentation_new("0.3", "", &e);
    Augmentation *both = augmentation_new("0.3", "3-augment", &e);
    uint8_t *in = noise(SIDE, SIDE, 6), rgb[BYTES], two[BYTES];
    uint8_t *scratch = xmalloc(image_op_scratch(SIDE, SIDE));
    for (int k = 0; k < GRID; k++)
        memcpy(blurred[k], changed(OP_BLUR, 0.1 + 1.9 * k / (GRID - 1), 0, in, SIDE, SIDE), BYTES);
    int grey = 0, solar = 0, blurs = 0;
    double sum = 0, lo = 2, hi = 0;
    for (uint32_t i = 0; i < N && CHECK(a && j && both, "%s", e.what); i++) {
        const View v = {5, i, 0, 0};
        memcpy(rgb, in, BYTES);
        memcpy(two, in, BYTES);
        augment_image(a, v, rgb, SIDE, SIDE, scratch);
        double deviation = blur_of(blurred, rgb);
        grey += memcmp(rgb, changed(OP_COLOR, 0, 0, in, SIDE, SIDE), BYTES) == 0;
        solar += memcmp(rgb, changed(OP_SOLARIZE, 128, 0, in, SIDE, SIDE), BYTES) == 0;
        if (deviation > 0) {
            blurs++;
            sum += deviation;
            lo = fmin(lo, deviation);
            hi = fmax(hi, deviation);
        }
        augment_image(both, v, two, SIDE, SIDE, scratch);
        augment_image(j, v, rgb, SIDE, SIDE, scratch);
        CHECK(memcmp(rgb, two, BYTES) == 0, "picture %u", i);
    }
    double sd = sqrt(N * 2 / 9.0), spread = 1.9 / sqrt(12.0 * blurs);
    CHECK(fabs(grey - N / 3.0) < 5 * sd && fabs(solar - N / 3.0) < 5 * sd &&
              grey + solar + blurs == N,
          "%d grey, %d inverted, %d blurred", grey, solar, blurs);
    CHECK(fabs(sum / blurs - 1.05) < 5 * spread && lo < 0.15 && hi > 1.95, "%g in %g..%g",
          sum / blurs, lo, hi);
    augmentation_free(a);
    augmentation_free(j);
    augmentation_free(both);
    free(in);
    free(scratch);
}

/* ---- colour jitter ---- */

static void jitter(const char *text, uint32_t sample, const uint8_t *in, int pixels, uint8_t *out)
{
    static Augmentation *a;
    static char last[64];
    Error e = {"", ""};
    uint8_t *scratch = xmalloc(image_op_scratch(pixels, 1));
    if (!a || strcmp(text, last) != 0) {
        augmentation_free(a);
        a = augmentation_new(text, "", &e);
        snprintf(last, sizeof last, "%s", text);
    }
    memcpy(out, in, 3 * (size_t)pixels);
    if (!a)
        CHECK(a != NULL, "%s", e.what);
    augment_image(a, (View){1, sample, 2, 0}, out, pixels, 1, scratch);
    free(scratch);
}

static void test_jitter(void)
{
    enum { N = 4000 };
    static const uint8_t grey[3] = {100, 100, 100}, ends[6] = {0, 0, 0, 255, 255, 255};
    static const uint8_t red[3] = {200, 0, 0};
    uint8_t out[6];
    double sum = 0, lo = 1e9, hi = 0, red_sum = 0;
    int first = 0, hue[3] = {0};
    for (uint32_t i = 0; i < N; i++) {
        jitter("0.4,0,0", i, grey, 1, out);
        sum += out[0];
        lo = out[0] < lo ? out[0] : lo;
        hi = out[0] > hi ? out[0] : hi;
        /* Brightness above 1 and then contrast below 1 keeps black and white 255 apart in sum; the
         * other order does not: an eighth of all. */
        jitter("1,1,0", i, ends, 2, out);
        int both = out[0] + out[3];
        first += both >= 253 && both <= 256 && out[3] < 255;
        jitter("0,0,0,0.5", i, red, 1, out);
        for (int c = 0; c < 3; c++)
            hue[c] += out[c] == 200 && out[(c + 1) % 3] < 200;
        jitter("0,0,0.5", i, red, 1, out); /* red is 60 + f 140, f in 0.5..1.5 */
        red_sum += out[0];
    }
    /* uniform in 60..140, truncated: mean 99.5, deviation 80 / sqrt(12) */
    CHECK(fabs(sum / N - 99.5) < 5 * 23.1 / sqrt(N) && lo >= 59 && lo < 61 && hi > 138 && hi <= 140,
          "mean %.2f in %.0f..%.0f", sum / N, lo, hi);
    CHECK(abs(first - N / 8) < 5 * sqrt(N / 8.0) + N / 200.0, "%d of %d", first, N);
    for (int c = 0; c < 3; c++)
        CHECK(abs(hue[c] - N / 3) < 5 * sqrt(N * 2 / 9.0) + N / 50.0, "hue %d: %d of %d", c, hue[c],
              N);
    CHECK(fabs(red_sum / N - 199.5) < 5 * 40.4 / sqrt(N), "%.2f", red_sum / N);
    jitter("none", 1, red, 1, out);
    CHECK(memcmp(out, red, 3) == 0);
    jitter("0", 1, red, 1, out);
    CHECK(memcmp(out, red, 3) == 0);
    /* one number is brightness, contrast and saturation */
    uint8_t other[6];
    for (uint32_t i = 0; i < 20; i++) {
        jitter("0.3", i, ends, 2, out);
        jitter("0.3,0.3,0.3", i, ends, 2, other);
        CHECK(memcmp(out, other, 6) == 0);
    }
}

/* ---- the same and not the same ---- */

static void test_views(void)
{
    static const char *const policies[] = {"imagenet",
                                           "imagenet-v0",
                                           "rand-m9-n2-mstd0.5-inc1",
                                           "rand-m9-n3-mstd101-p1",
                                           "randaug(2,15)",
                                           "3-augment",
                                           ""};
    uint8_t *in = noise(SIDE, SIDE, 3), *scratch = xmalloc(image_op_scratch(SIDE, SIDE));
    for (int k = 0; k < COUNT(policies); k++) {
        Error e = {"", ""};
        Augmentation *a = augmentation_new("0.4,0.4,0.4,0.1", policies[k], &e);
        const View v = {1, 2, 3, 0},
                   views[] = {v, v, {9, 2, 3, 0}, {1, 9, 3, 0}, {1, 2, 9, 0}, {1, 2, 3, 1}};
        uint64_t h[COUNT(views)];
        for (int i = 0; i < COUNT(views) && CHECK(a != NULL, "%s", e.what); i++) {
            uint8_t rgb[BYTES];
            memcpy(rgb, in, BYTES);
            memset(scratch, i, image_op_scratch(SIDE, SIDE)); /* what was there does not matter */
            augment_image(a, views[i], rgb, SIDE, SIDE, scratch);
            h[i] = hash(rgb);
            CHECK(i < 2 ? h[i] == h[0] : h[i] != h[0], "'%s', view %d", policies[k], i);
        }
        augmentation_free(a);
    }
    /* the stream is the policy's own, and its first number chooses: the third of 16 inverts */
    uint8_t rgb[BYTES];
    Error e = {"", ""};
    Augmentation *a = augmentation_new("", "randaug(1,10)", &e);
    for (uint32_t i = 0; i < 200; i++) {
        const View v = {1, i, 3, 0};
        RngStream s = view_draw(v, DRAW_POLICY);
        bool third = (int)(rng_next(&s) * 16) == 2;
        memcpy(rgb, in, BYTES);
        augment_image(a, v, rgb, SIDE, SIDE, scratch);
        CHECK(third == (memcmp(rgb, changed(OP_INVERT, 0, 0, in, SIDE, SIDE), BYTES) == 0));
    }
    augmentation_free(a);
    memcpy(rgb, in, BYTES);
    augment_image(NULL, (View){0}, rgb, SIDE, SIDE, scratch);
    CHECK(memcmp(rgb, in, BYTES) == 0);
    free(in);
    free(scratch);
}

/* A sample is the crop that it would be without changes, changed. */
static void test_samples(void)
{
    char dir[] = "/tmp/test_augment.XXXXXX";
    Error e = {"", ""};
    if (!CHECK(mkdtemp(dir) != NULL))
        return;
    char *class = xasprintf("%s/a", dir), *file = xasprintf("%s/a/x.ppm", dir);
    FILE *f = make_dirs(class, &e) ? fopen(file, "wb") : NULL;
    uint8_t *in = noise(40, 30, 4), *scratch = xmalloc(image_op_scratch(SIDE, SIDE));
    if (CHECK(f != NULL, "%s", file)) {
        fprintf(f, "P6 40 30 255\n");
        fwrite(in, 3, 40 * 30, f);
        fclose(f);
    }
    DataOptions o = {.spec = dir,
                     .train = true,
                     .images.out_h = SIDE,
                     .images.out_w = SIDE,
                     .images.augment = true,
                     .images.area_min = 0.3,
                     .images.area_max = 1,
                     .images.ratio_min = 0.75,
                     .images.ratio_max = 1.3,
                     .images.flip = 0.5,
                     .seed = 17};
    Augmentation *a = augmentation_new("0.4", "imagenet", &e);
    Dataset *plain = data_open(&o, &e);
    o.images.changes = a;
    Dataset *changing = data_open(&o, &e);
    Decoder *decoder = decoder_new();
    for (int epoch = 0; epoch < 20 && CHECK(plain && changing && a, "%s", e.what); epoch++) {
        uint8_t want[BYTES], got[BYTES];
        data_sample(plain, decoder, 0, epoch, epoch % 3, want);
        augment_image(a, (View){17, 0, (uint32_t)epoch, (uint32_t)epoch % 3}, want, SIDE, SIDE,
                      scratch);
        data_sample(changing, decoder, 0, epoch, epoch % 3, got);
        CHECK(memcmp(want, got, BYTES) == 0, "epoch %d", epoch);
    }
    o.images.changes = NULL;
    o.images.train_crop = TRAIN_CROP_SIMPLE;
    Dataset *simple = data_open(&o, &e);
    for (int epoch = 0; epoch < 20 && CHECK(simple != NULL, "%s", e.what); epoch++) {
        const View v = {17, 0, (uint32_t)epoch, 0};
        RngStream place = view_draw(v, DRAW_BOX), flip = view_draw(v, DRAW_FLIP);
        uint8_t want[BYTES], got[BYTES];
        data_sample(simple, decoder, 0, epoch, 0, got);
        decoder_open_pixels(decoder, in, 40, 30);
        decoder_simple_crop(decoder, &o.images, &place, rng_next(&flip) < 0.5, want, &e);
        CHECK(memcmp(want, got, BYTES) == 0, "simple crop, epoch %d", epoch);
    }
    data_close(simple);
    decoder_free(decoder);
    data_close(plain);
    data_close(changing);
    augmentation_free(a);
    remove(file);
    remove(class);
    remove(dir);
    free(file);
    free(class);
    free(in);
    free(scratch);
}

/* Of a picture whose resized whole is known, the simple crop is a part of that, with its mirror
 * image around: each of the places as often as the others, flipped half the time. */
static void test_simple_crop(void)
{
    enum {
        W = 40,
        H = 30,
        WIDE = SIDE * W / H,
        PLACES_X = WIDE + 8 - SIDE + 1,
        PLACES_Y = 9,
        N = 100 * PLACES_X * PLACES_Y
    };
    static int count[2][PLACES_Y][PLACES_X];
    static uint8_t want[2][PLACES_Y][PLACES_X][BYTES];
    uint8_t *in = noise(W, H, 8), got[BYTES], whole[3 * WIDE * SIDE];
    Preprocess p = {.out_w = WIDE, .out_h = SIDE, .filter = FILTER_BICUBIC};
    Decoder *d = decoder_new();
    Error e = {"", ""};
    int strange = 0;
    decoder_open_pixels(d, in, W, H);
    CHECK(decoder_crop(d, &p, (Box){0, 0, W, H}, false, whole, &e), "%s", e.what);
    for (int flip = 0; flip < 2; flip++)
        for (int i = 0; i < PLACES_Y * PLACES_X * SIDE * SIDE; i++) {
            int x = i % SIDE, y = i / SIDE % SIDE, place = i / SIDE / SIDE;
            int left = place % PLACES_X, top = place / PLACES_X;
            int sx = abs(left - 4 + (flip ? SIDE - 1 - x : x)), sy = abs(top - 4 + y);
            sx = sx < WIDE ? sx : 2 * (WIDE - 1) - sx;
            sy = sy < SIDE ? sy : 2 * (SIDE - 1) - sy;
            memcpy(want[flip][top][left] + 3 * (y * SIDE + x), whole + 3 * (sy * WIDE + sx), 3);
        }
    p.out_w = SIDE;
    for (uint32_t i = 0; i < N; i++) {
        RngStream rng = view_draw((View){2, i, 0, 0}, DRAW_BOX);
        int flip = i % 2, found = -1;
        CHECK(decoder_simple_crop(d, &p, &rng, flip, got, &e), "%s", e.what);
        for (int k = 0; k < PLACES_Y * PLACES_X && found < 0; k++)
            if (memcmp(got, want[flip][k / PLACES_X][k % PLACES_X], BYTES) == 0)
                found = k;
        strange += found < 0;
        if (found >= 0)
            count[flip][found / PLACES_X][found % PLACES_X]++;
    }
    CHECK(strange == 0, "%d of %d crops that it cannot make", strange, N);
    for (int k = 0; k < 2 * PLACES_Y * PLACES_X; k++)
        CHECK(abs((&count[0][0][0])[k] - 50) < 5 * 7.1, "place %d: %d times", k,
              (&count[0][0][0])[k]);
    /* of any size: sanitizers look on */
    for (int side = 1; side <= 12; side++) {
        RngStream rng = view_draw((View){3, 1, 0, 0}, DRAW_BOX);
        p.out_w = side, p.out_h = 13 - side;
        uint8_t *small = xmalloc(3 * (size_t)side * (size_t)(13 - side));
        for (int i = 0; i < 50; i++)
            CHECK(decoder_simple_crop(d, &p, &rng, i % 2, small, &e), "%s", e.what);
        free(small);
    }
    decoder_free(d);
    free(in);
}

/* ---- texts ---- */

static void test_texts(void)
{
    static const char *const good[][2] = {{"", ""},
                                          {"none", "none"},
                                          {"0.4", "rand"},
                                          {"0,0,0,0", "rand-n1"},
                                          {"1,2,3,0.5", "rand-inc0-m5-p0.25-mmax20-mstdinf"},
                                          {"1e-1,.5,2", "randaug"},
                                          {"", "randaug(1, 10)"},
                                          {"", "imagenet"},
                                          {"", "imagenet-v0"},
                                          {"0.3", "3-augment"}};
    /* and what the message must name */
    static const char *const bad[][3] = {{"x", "", "'x'"},
                                         {"0.4,", "", "'0.4,'"},
                                         {"1,2", "", "'1,2'"},
                                         {"1,2,3,0.1,5", "", "1,2,3,0.1,5"},
                                         {"-0.1", "", "-0.1"},
                                         {"nan", "", "nan"},
                                         {"inf", "", "inf"},
                                         {"1,1,1,0.6", "", "hue"},
                                         {"0.4 ", "", "'0.4 '"},
                                         {"", "imagnet", "imagnet"},
                                         {"", "v0", "'v0'"},
                                         {"", "rand-m9-q1", "'q1'"},
                                         {"", "rand-", "''"},
                                         {"", "rand-m9--n2", "''"},
                                         {"", "rand-m", "'m'"},
                                         {"", "rand-m9x", "'m9x'"},
                                         {"", "rand-mnan", "'mnan'"},
                                         {"", "rand-m-9", "'m'"},
                                         {"", "rand-p1.5", "'p1.5'"},
                                         {"", "rand-n0", "'n0'"},
                                         {"", "rand-n1.5", "whole"},
                                         {"", "rand-n1000000000", "n1000000000"},
                                         {"", "rand-inc2", "'inc2'"},
                                         {"", "rand-w0", "'w0'"},
                                         {"", "random", "random"},
                                         {"", "3-augments", "3-augments"},
                                         {"", "randaug()", "randaug()"},
                                         {"", "randaug(2)", "randaug(2)"},
                                         {"", "randaug(2,15", "randaug(2,15"},
                                         {"", "randaug(2,15) ", "randaug(2,15) "},
                                         {"", "randaug(0,15)", "randaug(0,15)"},
                                         {"", "randaug(2,1e9)", "randaug(2,1e9)"}};
    for (int i = 0; i < COUNT(good); i++) {
        Error e = {"", ""};
        Augmentation *a = augmentation_new(good[i][0], good[i][1], &e);
        CHECK(a != NULL, "'%s' '%s': %s", good[i][0], good[i][1], e.what);
        augmentation_free(a);
    }
    for (int i = 0; i < COUNT(bad); i++) {
        Error e = {"", ""};
        Augmentation *a = augmentation_new(bad[i][0], bad[i][1], &e);
        CHECK(!a && strstr(e.what, bad[i][2]) && *e.hint, "'%s' '%s': %s", bad[i][0], bad[i][1],
              e.what);
        augmentation_free(a);
    }
    Error e = {"", ""};
    CHECK(!augmentation_new("", "imagnet", &e) && strstr(e.hint, "did you mean imagenet?"));
    char text[3000];
    memset(text, 'm', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    CHECK(!augmentation_new(text, "", &e) && !augmentation_new("", text, &e));
    memcpy(text, "rand-", 5);
    CHECK(!augmentation_new("", text, &e));
}

int main(int argc, char **argv)
{
    char *path = argc > 1 ? xasprintf("%s/fixtures/preprocess.safetensors", argv[1]) : NULL;
    if (path && path_exists(path))
        test_golden(path, true);
    else
        SKIP("operations against Pillow: no fixtures/preprocess.safetensors");
    for (int i = 2; i < argc; i++)
        test_golden(argv[i], false);
    free(path);
    test_neutral();
    test_by_hand();
    test_blur();
    test_three();
    test_auto_augment("imagenet", paper, paper_levels);
    test_auto_augment("imagenet-v0", v0, v0_levels);
    test_rand_augment("rand-m9-n1", 1, 0.5, 9, timm_levels, false);
    test_rand_augment("rand-m10-n1-inc1-p0.8", 1, 0.8, 10, timm_inc_levels, false);
    test_rand_augment("rand-m20-mmax15-n1-inc1-p1", 1, 1, 15, timm_inc_levels, false);
    test_rand_augment("rand-m20-n1-p1", 1, 1, 10, timm_levels, false);
    test_rand_augment("rand-m9-n2-inc1", 2, 0.5, 9, timm_inc_levels, false);
    test_rand_augment("randaug(1,9)", 1, 1, 9, big_vision_levels, true);
    check_levels("rand-m5-n1-mstd1-p1", 5, 1, 0.5, 9.5);
    check_levels("rand-m9-n1-mstd101-p1", 4.5, 9 / sqrt(12), 0, 9);
    test_jitter();
    test_views();
    test_samples();
    test_simple_crop();
    test_texts();
    return check_report();
}
