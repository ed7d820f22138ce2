/* resize.c - an image to the size a model wants.
 *
 * Bit for bit what Pillow's Image.resize makes of uint8 pixels: a separable filter, stretched over
 * all inputs when it shrinks (antialiasing), fixed-point weights, each pass rounded to bytes.
 * Around it the geometry of torchvision's Resize, CenterCrop and RandomResizedCrop.
 *
 * The picture comes row by row (RowSource): each group of rows goes through the horizontal pass at
 * once, and only its narrow result is kept for the vertical one.
 *
 * Order: the weights of one axis; the two passes; geometry; pixels in memory.
 */
#include "image/resize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

/* ---- weights ---- */

enum { WEIGHT_BITS = 22 };

/* Weights of the inputs lo + k, k < n, for an output at `center`; `step` is 1 / how far the filter
 * is stretched. Loops without branches: the compiler makes vectors of them. */
static void weigh_linear(double *restrict w, int lo, int n, double center, double step)
{
    for (int k = 0; k < n; k++) {
        double x = fabs((lo + k - center + 0.5) * step);
        w[k] = x < 1 ? 1 - x : 0;
    }
}

static void weigh_cubic(double *restrict w, int lo, int n, double center, double step)
{
    const double a = -0.5; /* Keys' cubic convolution */
    for (int k = 0; k < n; k++) {
        double x = fabs((lo + k - center + 0.5) * step);
        double inner = ((a + 2) * x - (a + 3)) * x * x + 1;
        double outer = (((x - 5) * x + 8) * x - 4) * a;
        w[k] = x < 1 ? inner : x < 2 ? outer : 0;
    }
}

/* Inputs outside [0, in) do not take part. Shrinking stretches the filter over all inputs it
 * covers. */
static void axis_set(Axis *a, const Span *s, int filter)
{
    double scale = (s->to - s->from) / s->size, stretch = scale < 1 ? 1 : scale;
    double support = (filter == FILTER_BILINEAR ? 1 : 2) * stretch;
    a->n = s->n;
    a->taps = (int)ceil(support) * 2 + 1;
    a->lo = s->in;
    a->hi = 0;
    size_t numbers = (size_t)a->n * (2 + (size_t)a->taps);
    double *w = room_get(&a->room, sizeof *w * a->taps + sizeof(int32_t) * numbers);
    a->first = (int32_t *)(w + a->taps);
    a->count = a->first + a->n;
    a->weight = a->count + a->n;
    for (int i = 0; i < a->n; i++) {
        double center = s->from + (s->start + i + 0.5) * scale, sum = 0;
        int lo = (int)(center - support + 0.5), hi = (int)(center + support + 0.5);
        lo = greater(lo, 0);
        hi = lesser(hi, s->in);
        (filter == FILTER_BILINEAR ? weigh_linear : weigh_cubic)(w, lo, hi - lo, center,
                                                                 1 / stretch);
        for (int k = 0; k < hi - lo; k++)
            sum += w[k];
        sum = sum != 0 ? sum : 1;
        int32_t *weight = a->weight + (size_t)i * a->taps;
        for (int k = 0; k < hi - lo; k++) {
            double v = w[k] / sum * (1 << WEIGHT_BITS);
            weight[k] = (int32_t)(v + (v < 0 ? -0.5 : 0.5));
        }
        a->first[i] = lo;
        a->count[i] = hi - lo;
        a->lo = lesser(lo, a->lo);
        a->hi = greater(hi, a->hi);
    }
}

/* ---- the two passes ---- */

enum { HALF = 1 << (WEIGHT_BITS - 1) }; /* makes the shift round */

/* Sums of bytes times weights, as many at once as the machine's vectors hold. widen() makes numbers
 * of bytes, store_levels() clamps them to bytes again. Intrinsics, because gcc 12 converts vectors
 * of bytes element by element. */
#if defined(__AVX2__) && !defined(__AVX512F__)
enum { VECTOR = 8 };
#else
enum { VECTOR = 16 };
#endif
typedef int32_t Vector __attribute__((vector_size(VECTOR * sizeof(int32_t))));

#if defined(__AVX512F__)
static inline Vector widen(const uint8_t *p)
{
    return (Vector)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
}

static inline void store_levels(uint8_t *out, const Vector *sum)
{
    __m512i v = _mm512_max_epi32((__m512i)(*sum >> WEIGHT_BITS), _mm512_setzero_si512());
    _mm_storeu_si128((__m128i *)out, _mm512_cvtusepi32_epi8(v));
}
#elif defined(__AVX2__)
static inline Vector widen(const uint8_t *p)
{
    return (Vector)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
}

static inline void store_levels(uint8_t *out, const Vector *sum)
{
    __m256i v = (__m256i)(*sum >> WEIGHT_BITS);
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64((__m128i *)out, _mm_packus_epi16(words, words));
}
#else
#pragma GCC diagnostic ignored "-Wpsabi" /* nothing is passed to another file */
static inline Vector widen(const uint8_t *p)
{
    Vector v;
    for (int i = 0; i < VECTOR; i++)
        v[i] = p[i];
    return v;
}

static inline void store_levels(uint8_t *out, const Vector *sum)
{
    for (int i = 0; i < VECTOR; i++)
        out[i] = (uint8_t)lesser(greater((*sum)[i] >> WEIGHT_BITS, 0), 255);
}
#endif

/* The weighted sum of `count` runs of bytes, `stride` apart, of so many vectors each. */
enum { MOST_VECTORS = 4 };
static inline void sum_products(const uint8_t *in, size_t stride, const int32_t *w, int count,
                                int vectors, uint8_t *restrict out)
{
    Vector sum[MOST_VECTORS];
    for (int v = 0; v < vectors; v++)
        sum[v] = (Vector){0} + HALF;
    for (int k = 0; k < count; k++, in += stride)
        for (int v = 0; v < vectors; v++)
            sum[v] += w[k] * widen(in + v * VECTOR);
    for (int v = 0; v < vectors; v++)
        store_levels(out + v * VECTOR, &sum[v]);
}

/* The horizontal pass takes ROWS rows at once, interleaved to [w][ROWS][4] (the fourth value of a
 * pixel is never used), so that one weight applies to a whole vector. */
enum { LANES = ROWS * 4 };

static void interleave(const uint8_t *const *row, int w, uint8_t *restrict out)
{
    for (int r = 0; r < ROWS; r++) {
        const uint8_t *in = row[r];
        uint8_t *o = out + 4 * r;
        int x = 0;
        for (; x < w - 1; x++) /* a copy of four bytes is one move; the last pixel has three */
            memcpy(o + (size_t)x * LANES, in + 3 * x, 4);
        memcpy(o + (size_t)x * LANES, in + 3 * x, 3);
    }
}

/* in: inputs lo .. hi-1, [][ROWS][4] -> out [n][ROWS][4] */
static void sum_pixels(const uint8_t *in, const Axis *ax, uint8_t *out)
{
    for (int i = 0; i < ax->n; i++, out += LANES)
        sum_products(in + (size_t)(ax->first[i] - ax->lo) * LANES, LANES,
                     ax->weight + (size_t)i * ax->taps, ax->count[i], LANES / VECTOR, out);
}

/* in [n][ROWS][4] -> `rows` rows [n][3], `stride` bytes apart, 3*n < stride: each pixel is one move
 * of four bytes, of which the next pixel overwrites the last. */
static void separate(const uint8_t *in, int n, int rows, bool flip, uint8_t *out, size_t stride)
{
    for (int r = 0; r < rows; r++, in += 4, out += stride)
        for (int x = 0; x < n; x++)
            memcpy(out + 3 * x, in + (size_t)(flip ? n - 1 - x : x) * LANES, 4);
}

/* One output row of the vertical pass: the weighted sum of `count` rows. STEP values are summed in
 * registers at a time; the rows of `in` have room for a whole last step. */
enum { STEP = MOST_VECTORS * VECTOR };

static void sum_rows(const uint8_t *in, size_t stride, const int32_t *w, int count, int n,
                     uint8_t *out)
{
    for (int j = 0; j < n; j += STEP) {
        uint8_t last[STEP];
        bool whole = n - j >= STEP;
        sum_products(in + j, stride, w, count, MOST_VECTORS, whole ? out + j : last);
        if (!whole)
            memcpy(out + j, last, (size_t)(n - j));
    }
}

void resizer_free(Resizer *s)
{
    Room *rooms[] = {&s->x.room, &s->y.room, &s->wide, &s->summed, &s->narrow};
    for (int i = 0; i < COUNT(rooms); i++)
        room_free(rooms[i]);
}

/* Horizontal, then vertical; only the rows that the vertical pass reads go through the first. */
bool resizer_run(Resizer *s, const Resize *r, const RowSource *from, uint8_t *out, Error *e)
{
    Axis *ax = &s->x, *ay = &s->y;
    axis_set(ax, &r->x, r->p->filter);
    axis_set(ay, &r->y, r->p->filter);
    int w = ax->hi - ax->lo, h = ay->hi - ay->lo;
    if (!from->start(from->ctx, (Box){r->x.origin + ax->lo, r->y.origin + ay->lo, w, h}, e))
        return false;
    size_t row_bytes = (size_t)ax->n * 3, stride = (row_bytes + STEP) / STEP * STEP;
    uint8_t *wide = room_get(&s->wide, (size_t)w * LANES);
    uint8_t *summed = room_get(&s->summed, (size_t)ax->n * LANES);
    uint8_t *narrow = room_get(&s->narrow, stride * h);
    for (int y = 0; y < h; y += ROWS) {
        int rows = lesser(h - y, ROWS);
        const uint8_t *row[ROWS];
        if (!from->rows(from->ctx, rows, row, e))
            return false;
        for (int i = rows; i < ROWS; i++)
            row[i] = row[0];
        interleave(row, w, wide);
        sum_pixels(wide, ax, summed);
        separate(summed, ax->n, rows, r->flip, narrow + stride * y, stride);
    }
    size_t out_row = (size_t)r->p->out_w * 3;
    if (ax->n < r->p->out_w || ay->n < r->p->out_h)
        memset(out, 0, out_row * r->p->out_h);
    for (int i = 0; i < ay->n; i++)
        sum_rows(narrow + stride * (ay->first[i] - ay->lo), stride,
                 ay->weight + (size_t)i * ay->taps, ay->count[i], (int)row_bytes,
                 out + out_row * (r->y.pad + i) + 3 * r->x.pad);
    return true;
}

/* ---- geometry ---- */

Resize resize_of_crop(Box b, const Preprocess *p, bool flip)
{
    Span x = {b.left, b.width, 0, b.width, p->out_w, 0, p->out_w, 0};
    Span y = {b.top, b.height, 0, b.height, p->out_h, 0, p->out_h, 0};
    return (Resize){x, y, p, flip};
}

/* A side of which a crop keeps n, rounded down as timm does. 37 of 32 / 37 is 37, also where that
 * share was written with six digits. */
static long enlarged(double n, double crop_pct)
{
    return (long)floor(n / crop_pct + 1e-4);
}

/* What a centre crop of n keeps of `in` pixels resized to `size`: a smaller picture is padded. */
static Span centre(int in, long size, int n)
{
    Span s = {0, in, 0, in, size, 0, n, 0};
    if (size < n) {
        s.n = (int)size;
        s.pad = (n - s.n) / 2;
    } else {
        s.start = lrint((double)(size - n) / 2);
    }
    return s;
}

Resize resize_of_eval(int w, int h, const Preprocess *p)
{
    Resize r = resize_of_crop((Box){0, 0, w, h}, p, false);
    double crop_pct = p->crop_pct ? p->crop_pct : CROP_PCT;
    if (p->crop == CROP_SQUASH) {
        if (p->resize)
            crop_pct = (double)lesser(p->out_w, p->out_h) / p->resize;
        r.x = centre(w, enlarged(p->out_w, crop_pct), p->out_w);
        r.y = centre(h, enlarged(p->out_h, crop_pct), p->out_h);
    } else if (p->crop == CROP_CENTER) {
        long side =
            p->resize ? p->resize : image_default_resize(p->out_w, p->out_h, w, h, crop_pct);
        r.x = centre(w, w > h ? side * w / h : side, p->out_w);
        r.y = centre(h, w > h ? side : side * h / w, p->out_h);
    }
    return r;
}

/* Of `in` pixels resized to `size`, n from a random place on. Images of up to 2 MIRRORED pixels
 * have less of a border: what is mirrored must be there. */
static Span anywhere(RngStream *rng, int in, long size, int n)
{
    int border = n > 2 * MIRRORED ? MIRRORED : (n - 1) / 2;
    long at =
        rng_below(rng, (int)(size + 2 * border - n + 1)) - border; /* in the resized picture */
    Span s = {0, in, 0, in, size, at > 0 ? at : 0, n, at < 0 ? (int)-at : 0};
    s.n -= s.pad;
    if (s.start + s.n > size)
        s.n = (int)(size - s.start);
    return s;
}

/* torchvision's Resize(shorter side), RandomCrop(padding 4, reflect). */
Resize resize_of_simple_crop(RngStream *rng, int w, int h, const Preprocess *p, bool flip)
{
    Resize r = resize_of_crop((Box){0, 0, w, h}, p, flip);
    long side = image_default_resize(p->out_w, p->out_h, w, h, 1);
    r.y = anywhere(rng, h, w > h ? side : side * h / w, p->out_h);
    r.x = anywhere(rng, w, w > h ? side * w / h : side, p->out_w);
    if (flip)
        r.x.pad = p->out_w - r.x.n - r.x.pad;
    return r;
}

/* Output i, as one between the first and the last that are there; an edge is not repeated. */
static int mirrored(int i, const Span *s)
{
    int first = s->pad, last = s->pad + s->n - 1;
    if (i < first)
        return 2 * first - i;
    return i > last ? 2 * last - i : i;
}

void resize_mirror(const Resize *r, uint8_t *out)
{
    int w = r->p->out_w, h = r->p->out_h;
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++) {
            int from_x = mirrored(x, &r->x), from_y = mirrored(y, &r->y);
            if (from_x != x || from_y != y)
                memcpy(out + 3 * ((size_t)y * w + x), out + 3 * ((size_t)from_y * w + from_x), 3);
        }
}

double resize_shrink(const Resize *r)
{
    double x = (r->x.to - r->x.from) / r->x.size, y = (r->y.to - r->y.from) / r->y.size;
    return x < y ? x : y;
}

static void span_reduce(Span *s, int size, int reduced)
{
    double f = (double)reduced / size, from = (s->origin + s->from) * f;
    double to = (s->origin + s->to) * f;
    int lo = (int)floor(s->origin * f), hi = (int)ceil((s->origin + s->in) * f);
    lo = lesser(lo, reduced - 1);
    s->origin = lo;
    s->in = lesser(greater(hi, lo + 1), reduced) - lo;
    s->from = from - lo;
    s->to = to - lo;
}

void resize_reduce(Resize *r, int w, int h, int rw, int rh)
{
    span_reduce(&r->x, w, rw);
    span_reduce(&r->y, h, rh);
}

/* All sizes are those of the image's shorter side. A square crop asks for the first alone. */
int image_default_resize(int out_w, int out_h, int w, int h, double crop_pct)
{
    bool wide = w > h;
    long shorter = wide ? h : w, longer = wide ? w : h;
    long across = wide ? out_h : out_w, along = wide ? out_w : out_h;
    long by_shorter = enlarged((double)across, crop_pct);
    long by_longer = enlarged((double)(along * shorter) / (double)longer, crop_pct);
    long covers = (along * shorter + longer - 1) / longer; /* rounded up */
    long most = by_shorter > by_longer ? by_shorter : by_longer;
    return (int)(most > covers ? most : covers);
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
            int top = rng_below(rng, h - (int)bh + 1), left = rng_below(rng, w - (int)bw + 1);
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

/* ---- pictures in memory ---- */

static bool pixel_start(void *ctx, Box area, Error *e)
{
    (void)e;
    PixelRows *p = ctx;
    p->next = p->rgb + 3 * ((size_t)area.top * p->w + area.left);
    return true;
}

static bool pixel_rows(void *ctx, int n, const uint8_t **row, Error *e)
{
    (void)e;
    PixelRows *p = ctx;
    for (int i = 0; i < n; i++, p->next += 3 * (size_t)p->w)
        row[i] = p->next;
    return true;
}

RowSource rows_of_pixels(PixelRows *p)
{
    return (RowSource){pixel_start, pixel_rows, p};
}
