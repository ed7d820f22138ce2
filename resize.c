/* resize.c - an image to the size a model wants.
 *
 * Bit for bit what Pillow's Image.resize makes of uint8 pixels: a separable filter, stretched over
 * all inputs when it shrinks (antialiasing), fixed-point weights, each pass rounded to bytes.
 * Around it the geometry of torchvision's Resize, CenterCrop and RandomResizedCrop.
 *
 * Order: the weights of one axis; the two passes; the public functions.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

/* ---- weights ---- */

/* One axis of a resize: output i is the sum over k < count[i] of weight[i*taps + k] times input
 * first[i] + k. Weights are fixed point with WEIGHT_BITS bits, like Pillow's. */
#define WEIGHT_BITS 22

typedef struct {
    int n, taps;
    int *first, *count;
    int32_t *weight;
} Axis;

static double filter_weight(int filter, double x)
{
    x = fabs(x);
    if (filter == FILTER_BILINEAR)
        return x < 1 ? 1 - x : 0;
    const double a = -0.5; /* Keys' cubic convolution */
    if (x < 1)
        return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/* Outputs start .. start+n-1 of the resize of input interval [from, to) to `size` outputs; inputs
 * outside [0, in) do not take part. Shrinking stretches the filter over all inputs it covers. */
static Axis axis_make(int in, double from, double to, long size, long start, int n, int filter)
{
    double scale = (to - from) / size, stretch = scale < 1 ? 1 : scale;
    double support = (filter == FILTER_BILINEAR ? 1 : 2) * stretch;
    Axis a = {.n = n, .taps = (int)ceil(support) * 2 + 1};
    a.first = xmalloc(sizeof(int) * 2 * n);
    a.count = a.first + n;
    a.weight = xcalloc((size_t)n * a.taps, sizeof(int32_t));
    double *w = xmalloc(sizeof(double) * a.taps);
    for (int i = 0; i < n; i++) {
        double center = from + (start + i + 0.5) * scale, sum = 0;
        int lo = (int)(center - support + 0.5), hi = (int)(center + support + 0.5);
        lo = lo < 0 ? 0 : lo;
        hi = hi > in ? in : hi;
        for (int k = 0; k < hi - lo; k++)
            sum += w[k] = filter_weight(filter, (lo + k - center + 0.5) * (1 / stretch));
        for (int k = 0; k < hi - lo; k++) {
            double v = (sum != 0 ? w[k] / sum : w[k]) * (1 << WEIGHT_BITS);
            a.weight[(size_t)i * a.taps + k] = (int32_t)(v < 0 ? v - 0.5 : v + 0.5);
        }
        a.first[i] = lo;
        a.count[i] = hi - lo;
    }
    free(w);
    return a;
}

static void axis_free(Axis *a)
{
    free(a->first);
    free(a->weight);
}

/* ---- the two passes ---- */

static inline uint8_t to_level(int32_t sum)
{
    int32_t v = sum >> WEIGHT_BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

enum { HALF = 1 << (WEIGHT_BITS - 1) }; /* makes the shift round */

/* Part of an image, without a copy. */
typedef struct {
    const uint8_t *rgb;
    long stride; /* bytes from row to row */
    int w, h;
} Rows;

/* The horizontal pass takes ROWS rows at once, interleaved to [w][ROWS][4] (the fourth value of a
 * pixel is never used), so that one weight applies to a whole vector. Values are widened once here
 * and not once per tap. `bytes` is scratch of the same shape. */
enum { ROWS = 4, LANES = ROWS * 4 };
/* As wide as the machine's vectors: gcc takes wider ones apart element by element. */
#if defined(__AVX512F__)
enum { VECTOR = 16 };
#elif defined(__AVX2__)
enum { VECTOR = 8 };
#else
enum { VECTOR = 4 };
#endif
typedef int32_t Vector __attribute__((vector_size(4 * VECTOR), aligned(4), may_alias));

static void interleave(const Rows *v, int y, int rows, uint8_t *restrict bytes,
                       int32_t *restrict wide)
{
    for (int r = 0; r < ROWS; r++) {
        const uint8_t *in = v->rgb + v->stride * (y + (r < rows ? r : 0));
        uint8_t *o = bytes + 4 * r;
        int x = 0;
        for (; x < v->w - 1; x++) /* a copy of four bytes is one move; the last pixel has three */
            memcpy(o + (size_t)x * LANES, in + 3 * x, 4);
        memcpy(o + (size_t)x * LANES, in + 3 * x, 3);
    }
    for (size_t i = 0; i < (size_t)v->w * LANES; i++)
        wide[i] = bytes[i];
}

/* wide [w][ROWS][4] -> out [n][ROWS][4] */
static void sum_pixels(const int32_t *wide, const Axis *ax, int32_t *sums, uint8_t *restrict out)
{
    enum { N = LANES / VECTOR };
    for (int i = 0; i < ax->n; i++) {
        const int32_t *w = ax->weight + (size_t)i * ax->taps;
        const Vector *p = (const Vector *)(wide + (size_t)ax->first[i] * LANES);
        Vector sum[N];
        for (int j = 0; j < N; j++)
            sum[j] = (Vector){0} + HALF;
        for (int k = 0; k < ax->count[i]; k++)
            for (int j = 0; j < N; j++)
                sum[j] += w[k] * p[k * N + j];
        memcpy(sums + (size_t)i * LANES, sum, sizeof sum);
    }
    for (size_t i = 0; i < (size_t)ax->n * LANES; i++)
        out[i] = to_level(sums[i]);
}

/* in [n][ROWS][4] -> `rows` rows [n][3], `stride` bytes apart, 3*n < stride: each pixel is one move
 * of four bytes, of which the next pixel overwrites the last. */
static void separate(const uint8_t *in, int n, int rows, bool flip, uint8_t *out, size_t stride)
{
    for (int r = 0; r < rows; r++, in += 4, out += stride)
        for (int x = 0; x < n; x++)
            memcpy(out + 3 * x, in + (size_t)(flip ? n - 1 - x : x) * LANES, 4);
}

/* One output row of the vertical pass: the weighted sum of `count` rows. Two rows a time halve the
 * traffic on sum. */
static void sum_rows(const uint8_t *restrict in, size_t stride, const int32_t *w, int count, int n,
                     int32_t *restrict sum, uint8_t *restrict out)
{
    for (int j = 0; j < n; j++)
        sum[j] = HALF;
    int k = 0;
    for (; k + 1 < count; k += 2, in += 2 * stride)
        for (int j = 0; j < n; j++)
            sum[j] += w[k] * in[j] + w[k + 1] * in[stride + j];
    if (k < count)
        for (int j = 0; j < n; j++)
            sum[j] += w[k] * in[j];
    for (int j = 0; j < n; j++)
        out[j] = to_level(sum[j]);
}

/* Horizontal, then vertical; only the rows that the vertical pass reads go through the first. Both
 * axes are freed. */
static void resample(const Rows *v, Axis ax, Axis ay, bool flip, uint8_t *out)
{
    int y0 = ay.first[0], y1 = y0;
    for (int i = 0; i < ay.n; i++)
        y1 = ay.first[i] + ay.count[i] > y1 ? ay.first[i] + ay.count[i] : y1;
    size_t row = (size_t)ax.n * 3, stride = row + 1;
    size_t widest = (size_t)(v->w > ax.n ? v->w : ax.n) * LANES;
    uint8_t *bytes = xcalloc(widest, 1), *narrow = xmalloc(stride * (y1 - y0));
    int32_t *wide = xmalloc(widest * sizeof(int32_t));
    int32_t *sums = xmalloc((size_t)ax.n * LANES * sizeof(int32_t));
    for (int y = y0; y < y1; y += ROWS) {
        int rows = y1 - y < ROWS ? y1 - y : ROWS;
        interleave(v, y, rows, bytes, wide);
        sum_pixels(wide, &ax, sums, bytes);
        separate(bytes, ax.n, rows, flip, narrow + stride * (y - y0), stride);
    }
    for (int i = 0; i < ay.n; i++)
        sum_rows(narrow + stride * (ay.first[i] - y0), stride, ay.weight + (size_t)i * ay.taps,
                 ay.count[i], (int)row, sums, out + row * i);
    free(bytes);
    free(narrow);
    free(wide);
    free(sums);
    axis_free(&ax);
    axis_free(&ay);
}

/* ---- geometry ---- */

void image_resize(const Image *im, double left, double top, double right, double bottom, int filter,
                  int out_w, int out_h, bool flip, uint8_t *out)
{
    Rows v = {im->rgb, 3L * im->w, im->w, im->h};
    resample(&v, axis_make(v.w, left, right, out_w, 0, out_w, filter),
             axis_make(v.h, top, bottom, out_h, 0, out_h, filter), flip, out);
}

void image_crop_resize(const Image *im, Box b, int filter, int out_w, int out_h, bool flip,
                       uint8_t *out)
{
    Rows v = {im->rgb + 3 * ((long)b.top * im->w + b.left), 3L * im->w, b.width, b.height};
    resample(&v, axis_make(v.w, 0, v.w, out_w, 0, out_w, filter),
             axis_make(v.h, 0, v.h, out_h, 0, out_h, filter), flip, out);
}

/* All sizes are those of the image's shorter side. A square crop asks for the first alone. */
int image_default_resize(int out_w, int out_h, int w, int h)
{
    bool wide = w > h;
    long shorter = wide ? h : w, longer = wide ? w : h;
    long across = wide ? out_h : out_w, along = wide ? out_w : out_h;
    long by_shorter = (across * 256 + 112) / 224;
    long by_longer = (along * shorter * 256 + longer * 112) / (longer * 224);
    long covers = (along * shorter + longer - 1) / longer; /* rounded up */
    long most = by_shorter > by_longer ? by_shorter : by_longer;
    return (int)(most > covers ? most : covers);
}

void image_eval(const Image *im, int crop, int resize, int filter, int out_w, int out_h,
                uint8_t *out)
{
    if (crop == CROP_STRETCH) {
        image_resize(im, 0, 0, im->w, im->h, filter, out_w, out_h, false, out);
        return;
    }
    if (resize == 0)
        resize = image_default_resize(out_w, out_h, im->w, im->h);
    bool wide = im->w > im->h;
    long w = wide ? (long)resize * im->w / im->h : resize;
    long h = wide ? resize : (long)resize * im->h / im->w;
    /* What the crop keeps of the w x h picture, and where in the output it goes: a picture smaller
     * than the crop is padded with zeros. */
    int n_w = w < out_w ? (int)w : out_w, n_h = h < out_h ? (int)h : out_h;
    long x = w < out_w ? 0 : lrint((double)(w - out_w) / 2);
    long y = h < out_h ? 0 : lrint((double)(h - out_h) / 2);
    Rows v = {im->rgb, 3L * im->w, im->w, im->h};
    Axis ax = axis_make(v.w, 0, v.w, w, x, n_w, filter);
    Axis ay = axis_make(v.h, 0, v.h, h, y, n_h, filter);
    if (n_w == out_w && n_h == out_h) {
        resample(&v, ax, ay, false, out);
        return;
    }
    uint8_t *part = xmalloc((size_t)n_w * n_h * 3);
    resample(&v, ax, ay, false, part);
    memset(out, 0, (size_t)out_w * out_h * 3);
    out += 3 * ((long)(out_h - n_h) / 2 * out_w + (out_w - n_w) / 2);
    for (int r = 0; r < n_h; r++)
        memcpy(out + 3L * r * out_w, part + 3L * r * n_w, (size_t)n_w * 3);
    free(part);
}

/* A whole number in [0, n). */
static int random_below(RngStream *rng, int n)
{
    return (int)(rng_next(rng) * n);
}

Box image_random_box(RngStream *rng, int w, int h, double area_min, double area_max,
                     double ratio_min, double ratio_max)
{
    double log_min = log(ratio_min), log_max = log(ratio_max);
    for (int attempt = 0; attempt < 10; attempt++) {
        double area = (area_min + (area_max - area_min) * rng_next(rng)) * w * h;
        double ratio = exp(log_min + (log_max - log_min) * rng_next(rng));
        double bw = nearbyint(sqrt(area * ratio)), bh = nearbyint(sqrt(area / ratio));
        if (bw >= 1 && bw <= w && bh >= 1 && bh <= h) {
            int top = random_below(rng, h - (int)bh + 1), left = random_below(rng, w - (int)bw + 1);
            return (Box){left, top, (int)bw, (int)bh};
        }
    }
    double ratio = (double)w / h, bw = w, bh = h;
    if (ratio < ratio_min)
        bh = fmax(1, fmin(h, nearbyint(w / ratio_min)));
    else if (ratio > ratio_max)
        bw = fmax(1, fmin(w, nearbyint(h * ratio_max)));
    return (Box){(w - (int)bw) / 2, (h - (int)bh) / 2, (int)bw, (int)bh};
}
