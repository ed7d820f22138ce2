/* pixels.c - one change of an image's pixels: levels, colours, sharpness, blur, geometry.
 *
 * Bit for bit what Pillow computes (ImageOps, ImageEnhance, GaussianBlur, Image.transform and
 * Image.rotate, and the HSV conversion around torchvision's adjust_hue), with its rounding: bytes
 * between operations, float in blends, double in geometry. Loops are written so that a compiler
 * makes vectors of them: over bytes where a channel needs no neighbour, else over runs of RUN
 * pixels taken apart into channels.
 *
 * Not here: which change an image gets, and how strong (augment.c).
 * Order: levels; blends; blur; hue; geometry; the table of operations.
 */
#include "image/pixels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An image on its way through one operation. */
typedef struct {
    uint8_t *rgb; /* [h, w, 3] */
    int w, h;
    double m;         /* magnitude */
    int filter;       /* of geometry */
    int element;      /* of affine() */
    uint8_t *scratch; /* image_op_scratch(w, h) bytes */
} Work;

enum { FILL = 128, RUN = 64 };

static long values(const Work *p)
{
    return 3L * p->w * p->h;
}

/* ---- levels: each byte by itself ---- */

static void invert(Work *p)
{
    uint8_t *restrict v = p->rgb;
    for (long i = 0, n = values(p); i < n; i++)
        v[i] = (uint8_t)~v[i];
}

/* Keeps the upper bits. */
static void posterize(Work *p)
{
    int bits = (int)fmin(fmax(p->m, 0), 8);
    uint8_t *restrict v = p->rgb, mask = (uint8_t)(0xFF00 >> bits);
    for (long i = 0, n = values(p); i < n; i++)
        v[i] &= mask;
}

/* Inverts levels from m on. */
static void solarize(Work *p)
{
    int from = (int)ceil(fmin(fmax(p->m, 0), 256));
    if (from > 255)
        return;
    uint8_t *restrict v = p->rgb, least = (uint8_t)from;
    for (long i = 0, n = values(p); i < n; i++)
        v[i] = v[i] < least ? v[i] : (uint8_t)~v[i];
}

/* Adds m to levels below 128. */
static void solarize_add(Work *p)
{
    uint8_t add = (uint8_t)fmin(fmax(p->m, 0), 255), room = (uint8_t)(255 - add);
    uint8_t *restrict v = p->rgb;
    for (long i = 0, n = values(p); i < n; i++) {
        uint8_t sum = (uint8_t)((v[i] < room ? v[i] : room) + add);
        v[i] = v[i] < 128 ? sum : v[i];
    }
}

static void map_levels(Work *p, uint8_t (*map)[256])
{
    uint8_t *v = p->rgb;
    for (long i = 0, n = values(p) / 3; i < n; i++, v += 3) {
        v[0] = map[0][v[0]];
        v[1] = map[1][v[1]];
        v[2] = map[2][v[2]];
    }
}

/* Stretches each channel to 0..255. */
static void autocontrast(Work *p)
{
    enum { N = 3 * RUN }; /* columns that are compared alone, so that they may be a vector */
    uint8_t least[N], most[N], map[3][256];
    long n = values(p);
    memset(least, 255, N);
    memset(most, 0, N);
    for (long at = 0; at < n; at += N) {
        int some = n - at < N ? (int)(n - at) : N;
        for (int i = 0; i < some; i++) {
            uint8_t v = p->rgb[at + i];
            least[i] = v < least[i] ? v : least[i];
            most[i] = v > most[i] ? v : most[i];
        }
    }
    for (int c = 0; c < 3; c++) {
        int lo = 255, hi = 0;
        for (int i = c; i < N; i += 3) {
            lo = least[i] < lo ? least[i] : lo;
            hi = most[i] > hi ? most[i] : hi;
        }
        double scale = hi > lo ? 255.0 / (hi - lo) : 1, offset = hi > lo ? -lo * scale : 0;
        for (int i = 0; i < 256; i++) {
            double v = i * scale;
            v += offset;
            v = v > 0 ? v : 0;
            map[c][i] = (uint8_t)(v < 255 ? v : 255);
        }
    }
    map_levels(p, map);
}

/* Spreads each channel's levels so that every one is used about as often. */
static void equalize(Work *p)
{
    enum { ODD = 3 }; /* every other pixel is counted apart: equal neighbours need not wait */
    uint32_t count[6][256] = {{0}};
    uint8_t map[3][256];
    const uint8_t *v = p->rgb;
    long n = values(p), i = 0;
    for (; i + 6 <= n; i += 6)
        for (int k = 0; k < 6; k++)
            count[k][v[i + k]]++;
    for (int k = 0; i + k < n; k++)
        count[k][v[i + k]]++;
    for (int c = 0; c < 3; c++) {
        uint32_t last = 0, step, sum;
        for (int l = 0; l < 256; l++) {
            count[c][l] += count[c + ODD][l];
            last = count[c][l] ? count[c][l] : last;
        }
        step = (uint32_t)((n / 3 - last) / 255);
        sum = step / 2;
        for (int l = 0; l < 256; l++) {
            uint32_t to = step ? sum / step : (uint32_t)l;
            map[c][l] = (uint8_t)(to > 255 ? 255 : to);
            sum += count[c][l];
        }
    }
    map_levels(p, map);
}

/* ---- blends: out = other + m * (image - other), truncated ---- */

static inline uint8_t blend(int other, int v, float m)
{
    float out = (float)other + m * (float)(v - other);
    out = out < 0 ? 0 : out;
    out = out > 255 ? 255 : out;
    return (uint8_t)(int)out;
}

/* Rec. 601 luma as Pillow's mode L. */
static inline int grey(const uint8_t *v)
{
    return (19595 * v[0] + 38470 * v[1] + 7471 * v[2] + 32768) >> 16;
}

static void blend_level(Work *p, int level)
{
    uint8_t *restrict v = p->rgb;
    float m = (float)p->m;
    for (long i = 0, n = values(p); i < n; i++)
        v[i] = blend(level, v[i], m);
}

static void brightness(Work *p)
{
    blend_level(p, 0);
}

/* With the mean of the grey image. */
static void contrast(Work *p)
{
    uint64_t sum = 0;
    for (int y = 0; y < p->h; y++) {
        const uint8_t *row = p->rgb + 3L * y * p->w;
        uint32_t part = 0; /* of a row: at most 65535 * 255 */
        for (int x = 0; x < p->w; x++)
            part += (uint32_t)grey(row + 3 * x);
        sum += part;
    }
    blend_level(p, (int)((double)sum / ((double)p->w * p->h) + 0.5));
}

/* With the grey image. */
static void color(Work *p)
{
    float m = (float)p->m;
    uint8_t *v = p->rgb;
    for (long i = 0, n = values(p) / 3; i < n; i++) {
        int g = grey(v + 3 * i);
        for (int c = 0; c < 3; c++)
            v[3 * i + c] = blend(g, v[3 * i + c], m);
    }
}

/* With the image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13; the outermost pixels stay. */
static void sharpness(Work *p)
{
    if (p->w < 3 || p->h < 3)
        return;
    long row = 3L * p->w;
    float m = (float)p->m;
    uint16_t *restrict sum = (uint16_t *)p->scratch; /* [w, 3]: of three rows */
    uint8_t *in = p->scratch + 2 * row;
    memcpy(in, p->rgb, (size_t)row * p->h);
    for (int y = 1; y < p->h - 1; y++) {
        const uint8_t *v = in + row * y;
        uint8_t *restrict out = p->rgb + row * y;
        for (long i = 0; i < row; i++)
            sum[i] = (uint16_t)(v[i - row] + v[i] + v[i + row]);
        for (long i = 3; i < row - 3; i++) {
            int all = sum[i - 3] + sum[i] + sum[i + 3] + 4 * v[i];
            /* all/13 + 1/2 is never nearer than 1/26 to a whole number: float is enough */
            out[i] = blend((int)((float)all * (1.0f / 13) + 0.5f), v[i], m);
        }
    }
}

/* ---- blur: three box filters along each axis, whose lengths are fractions ---- */

enum { BOXES = 3, WIDEST = 1 << 12 };

/* A box of 2 radius + 1 pixels, each of weight `inner`, and one beyond either end of weight `edge`:
 * fixed point with 24 bits. */
typedef struct {
    int radius;
    uint32_t inner, edge;
} Boxes;

/* The length L + a of a box, BOXES of which have the Gaussian's variance (Gwosdek et al. 2011,
 * equations 7, 11 and 14), in Pillow's mixture of float and double. */
static Boxes boxes_of(double deviation)
{
    float sigma = (float)deviation, variance = sigma * sigma / BOXES;
    float length = (float)sqrt(12.0 * (double)variance + 1.0);
    float whole = (float)floor(((double)length - 1.0) / 2.0);
    float part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance);
    part /= 6 * (variance - (whole + 1) * (whole + 1));
    Boxes b = {.radius = (int)(whole + part)};
    b.inner = (uint32_t)((float)(1 << 24) / ((whole + part) * 2 + 1));
    b.edge = ((1 << 24) - (uint32_t)(b.radius * 2 + 1) * b.inner) / 2;
    return b;
}

static inline int repeat_edge(int i, int n)
{
    int from = i < 0 ? 0 : i;
    return from < n ? from : n - 1;
}

/* One box over n bytes that stand together; the sum moves along. */
static void box_line(const uint8_t *restrict in, uint8_t *restrict out, int n, const Boxes *b)
{
    uint32_t sum = 0; /* of the box about pixel -1 */
    for (int i = -1 - b->radius; i < b->radius; i++)
        sum += in[repeat_edge(i, n)];
    for (int i = 0; i < n; i++) {
        uint32_t left = in[repeat_edge(i - b->radius - 1, n)];
        sum += in[repeat_edge(i + b->radius, n)] - left;
        uint32_t ends = left + in[repeat_edge(i + b->radius + 1, n)];
        out[i] = (uint8_t)((sum * b->inner + ends * b->edge + (1 << 23)) >> 24);
    }
}

/* The n values that stand `step` bytes apart from v on. */
static void blur_line(uint8_t *v, int n, long step, const Boxes *b, uint8_t *scratch)
{
    uint8_t *line = scratch, *other = scratch + n;
    for (int i = 0; i < n; i++)
        line[i] = v[i * step];
    for (int pass = 0; pass < BOXES; pass++) {
        box_line(line, other, n, b);
        uint8_t *swap = line;
        line = other;
        other = swap;
    }
    for (int i = 0; i < n; i++)
        v[i * step] = line[i];
}

static void blur(Work *p)
{
    if (p->m <= 0)
        return;
    Boxes b = boxes_of(fmin(p->m, WIDEST));
    long row = 3L * p->w;
    for (int y = 0; y < p->h; y++)
        for (int c = 0; c < 3; c++)
            blur_line(p->rgb + y * row + c, p->w, 3, &b, p->scratch);
    for (long i = 0; i < row; i++)
        blur_line(p->rgb + i, p->h, row, &b, p->scratch);
}

/* ---- hue ---- */

/* A run of pixels, channel by channel. */
typedef struct {
    uint8_t c[3][RUN];
} Channels;

static void take_apart(const uint8_t *rgb, int n, Channels *out)
{
    for (int i = 0; i < n; i++)
        for (int c = 0; c < 3; c++)
            out->c[c][i] = rgb[3 * i + c];
}

static void put_together(const Channels *in, int n, uint8_t *rgb)
{
    for (int i = 0; i < n; i++)
        for (int c = 0; c < 3; c++)
            rgb[3 * i + c] = in->c[c][i];
}

/* Pillow's HSV has bytes for all three: hue and saturation are truncated to 255ths. */
static inline void turn_hue(uint8_t *red, uint8_t *green, uint8_t *blue, int turn)
{
    int r = *red, g = *green, b = *blue;
    int v = r > g ? r : g, least = r < g ? r : g;
    v = v > b ? v : b;
    least = least < b ? least : b;
    float spread = (float)(v > least ? v - least : 1);
    float rc = (float)(v - r) / spread, gc = (float)(v - g) / spread, bc = (float)(v - b) / spread;
    float sextant = r == v   ? bc - gc
                    : g == v ? (float)(2.0 + (double)rc - (double)bc)
                             : (float)(4.0 + (double)gc - (double)rc);
    double circle = (double)sextant / 6.0 + 1.0;
    float hue = (float)(circle >= 1 ? circle - 1 : circle);
    int h = ((int)((double)hue * 255.0) + turn) & 255;
    float s = (float)(v - least) / (float)(v > 0 ? v : 1);
    s = (float)(int)((double)s * 255.0) / 255.0f;

    double place = (double)h * 6.0 / 255.0;
    int i = (int)place;
    float f = (float)(place - i);
    int low = (int)((double)v * (1.0 - (double)s) + 0.5);
    int fall = (int)((double)v * (1.0 - (double)(s * f)) + 0.5);
    int rise = (int)((double)v * (1.0 - (double)s * (1.0 - (double)f)) + 0.5);
    i = i == 6 ? 0 : i;
    *red = (uint8_t)(i == 0 || i == 5 ? v : i == 1 ? fall : i == 4 ? rise : low);
    *green = (uint8_t)(i == 1 || i == 2 ? v : i == 3 ? fall : i == 0 ? rise : low);
    *blue = (uint8_t)(i == 3 || i == 4 ? v : i == 5 ? fall : i == 2 ? rise : low);
}

/* By m of the circle. */
static void hue(Work *p)
{
    int turn = (int)(p->m * 255);
    Channels v = {0};
    for (long at = 0, n = values(p) / 3; at < n; at += RUN) {
        int some = n - at < RUN ? (int)(n - at) : RUN;
        take_apart(p->rgb + 3 * at, some, &v);
        for (int i = 0; i < RUN; i++)
            turn_hue(&v.c[0][i], &v.c[1][i], &v.c[2][i], turn);
        put_together(&v, some, p->rgb + 3 * at);
    }
}

/* ---- geometry ---- */

/* A matrix says where the centre of output pixel (x, y) comes from: X = a0 (x + 1/2) + a1 (y + 1/2)
 * + a2, Y with a3, a4, a5. What comes from outside is FILL. */

/* A row of the copy in scratch, moved to the left by dx. */
static void shift_row(const Work *p, int64_t dx, int64_t y, uint8_t *out)
{
    int64_t first = dx < 0 ? -dx : 0, end = dx > 0 ? p->w - dx : p->w;
    memset(out, FILL, 3 * (size_t)p->w);
    if (y >= 0 && y < p->h && first < end)
        memcpy(out + 3 * first, p->scratch + 3 * (y * p->w + first + dx),
               3 * (size_t)(end - first));
}

/* A row from the points (x, y), (x + step_x, y + step_y)... of the copy, which a grey pixel
 * ends. */
static void pick_row(const Work *p, int64_t x, int64_t y, int64_t step_x, int64_t step_y,
                     uint8_t *out)
{
    int64_t w = p->w, right = w << 16, bottom = (int64_t)p->h << 16, outside = values(p);
    const uint8_t *restrict in = p->scratch;
    int64_t from[RUN];
    for (int64_t x0 = 0; x0 < w; x0 += RUN, x += step_x * RUN, y += step_y * RUN, out += 3 * RUN) {
        int n = w - x0 < RUN ? (int)(w - x0) : RUN;
        for (int i = 0; i < RUN; i++) {
            int64_t sx = x + step_x * i, sy = y + step_y * i;
            bool inside = (sx >= 0) & (sx < right) & (sy >= 0) & (sy < bottom);
            from[i] = inside ? 3 * ((sy >> 16) * w + (sx >> 16)) : outside;
        }
        for (int i = 0; i < n - 1; i++) /* four bytes are one move */
            memcpy(out + 3 * i, in + from[i], 4);
        memcpy(out + 3 * (n - 1), in + from[n - 1], 3);
    }
}

/* Nearest: in fixed point with 16 bits, as Pillow steps. */
static void transform_nearest(Work *p, const double a[6])
{
    int64_t fixed[6];
    double start[6] = {a[0], a[1], a[2] + a[0] * 0.5 + a[1] * 0.5,
                       a[3], a[4], a[5] + a[3] * 0.5 + a[4] * 0.5};
    for (int i = 0; i < 6; i++)
        fixed[i] = (int64_t)floor(start[i] * 65536 + 0.5);
    long bytes = values(p);
    memcpy(p->scratch, p->rgb, (size_t)bytes);
    memset(p->scratch + bytes, FILL, 4);
    for (int y = 0; y < p->h; y++) {
        int64_t fx = fixed[2] + fixed[1] * y, fy = fixed[5] + fixed[4] * y;
        uint8_t *out = p->rgb + 3L * y * p->w;
        if (fixed[0] == 1 << 16 && fixed[3] == 0)
            shift_row(p, fx >> 16, fy >> 16, out);
        else
            pick_row(p, fx, fy, fixed[0], fixed[3], out);
    }
}

/* Around the image MARGIN pixels repeat its edge, so that taps need no test, and below stand rows
 * of FILL, where a point outside finds all its taps. */
enum { MARGIN = 2, SIDE = 2 * MARGIN };

static void with_margin(const Work *p, uint32_t *out)
{
    long stride = p->w + SIDE;
    for (int y = -MARGIN; y < p->h + MARGIN; y++, out += stride) {
        int from = y < 0 ? 0 : y;
        const uint8_t *in = p->rgb + 3L * p->w * (from < p->h ? from : p->h - 1);
        for (int x = 0; x < p->w; x++, in += 3)
            out[MARGIN + x] = in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16;
        for (int i = 0; i < MARGIN; i++) {
            out[i] = out[MARGIN];
            out[MARGIN + p->w + i] = out[MARGIN + p->w - 1];
        }
    }
    memset(out, FILL, sizeof *out * SIDE * (size_t)stride);
}

/* A run of output pixels: the pixel left of and above each source point, and how far it is. */
typedef struct {
    long at[RUN];
    double dx[RUN], dy[RUN];
    uint32_t tap[16][RUN]; /* the 2 x 2 or 4 x 4 pixels around, row by row */
} Run;

static void locate(Run *r, const Work *p, const double a[6], int x0, int y)
{
    double a1 = a[1] * (y + 0.5), a4 = a[4] * (y + 0.5), w = p->w, h = p->h;
    long stride = p->w + SIDE, outside = (SIDE + p->h + MARGIN - 1) * stride + MARGIN - 1;
    for (int i = 0; i < RUN; i++) {
        double x = x0 + i + 0.5, sx = a[0] * x + a1, sy = a[3] * x + a4;
        sx += a[2];
        sy += a[5];
        bool inside = (sx >= 0) & (sx < w) & (sy >= 0) & (sy < h);
        sx = inside ? sx - 0.5 : 0;
        sy = inside ? sy - 0.5 : 0;
        double left = floor(sx), top = floor(sy);
        r->dx[i] = sx - left;
        r->dy[i] = sy - top;
        long at = ((long)top + MARGIN) * stride + (long)left + MARGIN;
        r->at[i] = inside ? at : outside;
    }
}

static inline void gather(Run *restrict r, const uint32_t *restrict in, long stride, int side)
{
    int before = side / 2 - 1;
    for (int i = 0; i < RUN; i++) {
        const uint32_t *from = in + r->at[i] - before * (stride + 1);
        for (int k = 0; k < side * side; k++)
            r->tap[k][i] = from[k / side * stride + k % side];
    }
}

static inline double linear(double a, double b, double d)
{
    return a + (b - a) * d;
}

/* Keys' cubic convolution with a = -1: Pillow's transforms have it, where its resize has -1/2. */
static inline double cubic(double a, double b, double c, double d, double t)
{
    double p1 = b, p2 = -a + c, p3 = 2 * (a - b) + c - d, p4 = -a + b - c + d;
    return p1 + t * (p2 + t * (p3 + t * p4));
}

static void mix_linear(const Run *restrict r, Channels *restrict out)
{
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < RUN; i++) {
#define TAP(k) (double)(int)(r->tap[k][i] >> 8 * c & 255)
            double top = linear(TAP(0), TAP(1), r->dx[i]);
            double low = linear(TAP(2), TAP(3), r->dx[i]);
            out->c[c][i] = (uint8_t)(int)linear(top, low, r->dy[i]);
        }
}

static void mix_cubic(const Run *restrict r, Channels *restrict out)
{
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < RUN; i++) {
            double t = r->dx[i];
            double v = cubic(cubic(TAP(0), TAP(1), TAP(2), TAP(3), t),
                             cubic(TAP(4), TAP(5), TAP(6), TAP(7), t),
                             cubic(TAP(8), TAP(9), TAP(10), TAP(11), t),
                             cubic(TAP(12), TAP(13), TAP(14), TAP(15), t), r->dy[i]);
#undef TAP
            v = v < 0 ? 0 : v;
            v = v > 255 ? 255 : v;
            out->c[c][i] = (uint8_t)(int)v;
        }
}

static void transform(Work *p, const double a[6])
{
    if (p->filter == FILTER_NEAREST) {
        transform_nearest(p, a);
        return;
    }
    bool cubic = p->filter == FILTER_BICUBIC;
    uint32_t *in = (uint32_t *)p->scratch;
    Run r;
    Channels out;
    with_margin(p, in);
    for (int y = 0; y < p->h; y++)
        for (int x = 0; x < p->w; x += RUN) {
            locate(&r, p, a, x, y);
            if (cubic) {
                gather(&r, in, p->w + SIDE, 4);
                mix_cubic(&r, &out);
            } else {
                gather(&r, in, p->w + SIDE, 2);
                mix_linear(&r, &out);
            }
            put_together(&out, p->w - x < RUN ? p->w - x : RUN, p->rgb + 3 * ((long)y * p->w + x));
        }
}

/* To 15 decimals, and the double nearest to that: the cosine of a right angle is to be 0. */
static double rounded(double v)
{
    char text[32];
    snprintf(text, sizeof text, "%.15f", v);
    return strtod(text, NULL);
}

/* By m degrees against the clock about the centre; what leaves the frame is lost. */
static void rotate(Work *p)
{
    double angle = -(p->m - 360 * floor(p->m / 360)) * (3.14159265358979323846 / 180);
    double c = rounded(cos(angle)), s = rounded(sin(angle));
    double x = p->w / 2.0, y = p->h / 2.0;
    transform(p, (const double[6]){c, s, c * -x + s * -y + x, -s, c, -s * -x + c * -y + y});
}

/* Shears and translations: m is one element of the matrix. */
static void affine(Work *p)
{
    double a[6] = {1, 0, 0, 0, 1, 0};
    a[p->element] = p->m;
    transform(p, a);
}

/* ---- the table of operations ---- */

static const struct {
    void (*run)(Work *p);
    int element;
} ops[OP_COUNT] = {
    [OP_AUTOCONTRAST] = {autocontrast, 0},
    [OP_EQUALIZE] = {equalize, 0},
    [OP_INVERT] = {invert, 0},
    [OP_POSTERIZE] = {posterize, 0},
    [OP_SOLARIZE] = {solarize, 0},
    [OP_SOLARIZE_ADD] = {solarize_add, 0},
    [OP_BRIGHTNESS] = {brightness, 0},
    [OP_CONTRAST] = {contrast, 0},
    [OP_COLOR] = {color, 0},
    [OP_SHARPNESS] = {sharpness, 0},
    [OP_HUE] = {hue, 0},
    [OP_ROTATE] = {rotate, 0},
    [OP_SHEAR_X] = {affine, 1},
    [OP_SHEAR_Y] = {affine, 3},
    [OP_TRANSLATE_X] = {affine, 2},
    [OP_TRANSLATE_Y] = {affine, 5},
    [OP_BLUR] = {blur, 0},
};

size_t image_op_scratch(int w, int h)
{
    return 4 * (size_t)(w + SIDE) * (size_t)(h + 2 * SIDE);
}

void image_op(int op, double magnitude, int filter, uint8_t *rgb, int w, int h, uint8_t *scratch)
{
    Work p = {rgb, w, h, magnitude, filter, ops[op].element, scratch};
    if (ops[op].run)
        ops[op].run(&p);
}
