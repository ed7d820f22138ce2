/* shapes.c - the built-in image set: ten kinds of drawn shapes, written as JPEG files.
 *
 * Enough to see a Vision Transformer learn within minutes on a CPU, with nothing to download, and
 * through the same code that reads real data. Colours, position, size, rotation and stretch are
 * random, over a textured background with clutter and noise: a mean colour or a single pixel says
 * nothing about the class.
 *
 * Each image is a function of (seed, split, class, number). A shape is a signed distance (negative
 * inside, in units of its radius); the distance to the edge in pixels gives the anti-aliased
 * coverage. Order: distances; one image; the set on disk.
 */
#include "datasets/shapes.h"
#include "image/image.h"
#include "image/write.h"
#include "util/files.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define VERSION 1 /* of the drawings: part of the stamp */
#define PI      3.14159265358979323846

typedef struct {
    double x, y;
} Point;

/* ---- distances ---- */

static double length(double x, double y)
{
    return sqrt(x * x + y * y);
}

/* To a polygon's nearest edge; inside if a ray to the right crosses an odd number of edges. */
static double polygon(Point p, const Point *v, int n)
{
    double nearest = 1e9;
    bool inside = false;
    for (int i = 0, j = n - 1; i < n; j = i++) {
        double ex = v[j].x - v[i].x, ey = v[j].y - v[i].y, wx = p.x - v[i].x, wy = p.y - v[i].y;
        double t = fmin(1, fmax(0, (wx * ex + wy * ey) / (ex * ex + ey * ey)));
        nearest = fmin(nearest, length(wx - t * ex, wy - t * ey));
        if ((v[i].y > p.y) != (v[j].y > p.y) && wx < wy * ex / ey)
            inside = !inside;
    }
    return inside ? -nearest : nearest;
}

static double box(Point p, double half_w, double half_h)
{
    return fmax(fabs(p.x) - half_w, fabs(p.y) - half_h);
}

static double bar(Point p)
{
    return box(p, 1, 0.28);
}

static double circle(Point p)
{
    return length(p.x, p.y) - 0.95;
}

static double crescent(Point p)
{
    return fmax(length(p.x, p.y) - 1, 0.85 - length(p.x - 0.5, p.y));
}

static double cross(Point p)
{
    return fmin(box(p, 1, 0.3), box(p, 0.3, 1));
}

/* A square on its tip, with a disc on each of its two upper sides. */
static double heart(Point p)
{
    const double h = 0.8;
    double square = (fabs(p.x) + fabs(p.y) - h) * sqrt(0.5);
    return fmin(square, length(fabs(p.x) - h / 2, p.y + h / 2) - h * sqrt(0.5));
}

static double ring(Point p)
{
    return fabs(length(p.x, p.y) - 0.75) - 0.22;
}

static double square(Point p)
{
    return box(p, 0.8, 0.8);
}

static double star(Point p)
{
    Point v[10];
    for (int i = 0; i < 10; i++) {
        double r = i % 2 ? 0.42 : 1.1, a = i * PI / 5;
        v[i] = (Point){r * sin(a), -r * cos(a)};
    }
    return polygon(p, v, 10);
}

static double stripes(Point p)
{
    return fmax(box(p, 0.9, 0.9), 0.18 - fabs(fabs(p.y) - 0.45));
}

static double triangle(Point p)
{
    static const Point v[3] = {{0, -1.1}, {0.95, 0.55}, {-0.95, 0.55}};
    return polygon(p, v, 3);
}

static const struct {
    const char *name;
    double (*distance)(Point p);
} shapes[] = {{"bar", bar},         {"circle", circle},    {"crescent", crescent}, {"cross", cross},
              {"heart", heart},     {"ring", ring},        {"square", square},     {"star", star},
              {"stripes", stripes}, {"triangle", triangle}};

/* ---- one image ---- */

static double between(RngStream *r, double low, double high)
{
    return low + (high - low) * rng_next(r);
}

static void random_colour(RngStream *r, double c[3])
{
    for (int k = 0; k < 3; k++)
        c[k] = between(r, 15, 240);
}

static double brightness(const double c[3])
{
    return 0.299 * c[0] + 0.587 * c[1] + 0.114 * c[2];
}

/* Any two colours, the darker one for the background: shapes that may be lighter or darker than it
 * take much longer to learn. */
static void random_colours(RngStream *r, double ground[3], double shape[3])
{
    do {
        random_colour(r, ground);
        random_colour(r, shape);
    } while (brightness(shape) - brightness(ground) < 60);
}

/* A waviness of some levels in a random direction. */
typedef struct {
    double amplitude, fx, fy, phase;
} Texture;

static Texture random_texture(RngStream *r, int size)
{
    double angle = between(r, 0, 2 * PI), waves = between(r, 1, 8);
    double f = 2 * PI * waves / size;
    return (Texture){between(r, 0, 10), f * cos(angle), f * sin(angle), between(r, 0, 2 * PI)};
}

static double texture_at(const Texture *t, double x, double y)
{
    return t->amplitude * sin(t->fx * x + t->fy * y + t->phase);
}

static void blend(double *pixel, const double c[3], double add, double cover)
{
    for (int k = 0; k < 3; k++)
        pixel[k] += cover * (c[k] + add - pixel[k]);
}

static double coverage(double pixels_outside)
{
    return fmin(1, fmax(0, 0.5 - pixels_outside));
}

static void draw_background(RngStream *r, double *im, int size, const double a[3],
                            const double b[3])
{
    Texture t = random_texture(r, size);
    double angle = between(r, 0, 2 * PI), dx = cos(angle) / size, dy = sin(angle) / size;
    for (int y = 0; y < size; y++)
        for (int x = 0; x < size; x++) {
            double s = fmin(1, fmax(0, 0.5 + dx * (x - size / 2.0) + dy * (y - size / 2.0)));
            for (int k = 0; k < 3; k++)
                im[3 * (y * size + x) + k] = a[k] + s * (b[k] - a[k]) + texture_at(&t, x, y);
        }
}

/* n short strokes and specks, much smaller than the shape. */
static void draw_clutter(RngStream *r, double *im, int size, int n)
{
    for (int i = 0; i < n; i++) {
        double c[3], x0 = between(r, 0, size), y0 = between(r, 0, size);
        double angle = between(r, 0, 2 * PI);
        double span = rng_next(r) < 0.5 ? 0 : between(r, 0.03, 0.12) * size;
        double ex = span * cos(angle), ey = span * sin(angle);
        double thick = between(r, 0.006, 0.02) * size, reach = fabs(ex) + fabs(ey) + thick + 1;
        double square = fmax(1e-9, ex * ex + ey * ey);
        random_colour(r, c);
        for (int y = (int)fmax(0, y0 - reach); y < fmin(size, y0 + reach); y++)
            for (int x = (int)fmax(0, x0 - reach); x < fmin(size, x0 + reach); x++) {
                double wx = x - x0, wy = y - y0;
                double t = fmin(1, fmax(0, (wx * ex + wy * ey) / square));
                double cover = coverage(length(wx - t * ex, wy - t * ey) - thick);
                if (cover > 0)
                    blend(im + 3 * (y * size + x), c, 0, cover);
            }
    }
}

static void draw_shape(RngStream *r, double *im, int size, int class, const double c[3])
{
    Texture t = random_texture(r, size);
    double radius = between(r, 0.28, 0.44) * size, angle = between(r, -PI / 8, PI / 8);
    double stretch = exp(between(r, -0.15, 0.15));
    double cx = between(r, 0.4, 0.6) * size, cy = between(r, 0.4, 0.6) * size;
    double co = cos(angle) / radius, si = sin(angle) / radius;
    for (int y = 0; y < size; y++)
        for (int x = 0; x < size; x++) {
            double dx = x - cx, dy = y - cy;
            if (length(dx, dy) > 1.5 * radius + 2)
                continue;
            Point p = {(co * dx + si * dy) * stretch, (co * dy - si * dx) / stretch};
            double cover = coverage(shapes[class].distance(p) * radius);
            if (cover > 0)
                blend(im + 3 * (y * size + x), c, texture_at(&t, x, y), cover);
        }
}

/* Noise with a triangular distribution (the sum of the halves of 32 random bits), rounded. */
static void add_noise(RngStream *r, const double *im, int size, uint8_t *out)
{
    double width = between(r, 2, 16) / 65536;
    for (int i = 0; i < 3 * size * size; i += 3) {
        Philox p = rng_block(r->seed, (uint32_t)i, r->sample, r->step, RNG_SHAPES, 2);
        for (int k = 0; k < 3; k++) {
            double noise = ((double)(p.v[k] >> 16) + (double)(p.v[k] & 0xFFFF) - 65535) * width;
            out[i + k] = (uint8_t)lrint(fmin(255, fmax(0, im[i + k] + noise)));
        }
    }
}

static void draw(uint64_t seed, int split, int class, int number, int size, double *im,
                 uint8_t *out)
{
    RngStream r = {.seed = seed,
                   .sample = (uint32_t)number,
                   .step = (uint32_t)(split << 8 | class),
                   .purpose = RNG_SHAPES};
    double a[3], b[3], c[3];
    random_colours(&r, a, c);
    for (int k = 0; k < 3; k++)
        b[k] = fmin(240, fmax(0, a[k] + between(&r, -40, 20)));
    draw_background(&r, im, size, a, b);
    draw_clutter(&r, im, size, (int)between(&r, 2, 9));
    draw_shape(&r, im, size, class, c);
    draw_clutter(&r, im, size, (int)between(&r, 0, 4));
    add_noise(&r, im, size, out);
}

/* ---- the set on disk ---- */

static bool write_class(const char *dir, int split, int class, int count, int size, uint64_t seed,
                        Error *e)
{
    char *folder = xasprintf("%s/%s/%s", dir, split ? "val" : "train", shapes[class].name);
    bool ok = make_dirs(folder, e);
    double *im = xmalloc(sizeof(double) * 3 * size * size);
    uint8_t *rgb = xmalloc((size_t)3 * size * size);
    for (int i = 0; ok && i < count; i++) {
        char *path = xasprintf("%s/%04d.jpg", folder, i);
        draw(seed, split, class, i, size, im, rgb);
        ok = image_write_jpeg(path, rgb, size, size, 92, e);
        free(path);
    }
    free(rgb);
    free(im);
    free(folder);
    return ok;
}

/* The stamp is written last: without one, whatever is there is an unfinished set and is redone. */
bool shapes_write(const char *dir, int train_per_class, int val_per_class, int size, uint64_t seed,
                  Error *e)
{
    char *stamp = xasprintf("%s/shapes.txt", dir);
    char *text = xasprintf("shapes version %d: %d train, %d val, %d pixels, seed %llu\n", VERSION,
                           train_per_class, val_per_class, size, (unsigned long long)seed);
    char *found = path_exists(stamp) ? read_text(stamp, 4096, e) : NULL;
    bool ok = true, done = found && strcmp(found, text) == 0;
    if (found && !done)
        ok = fail(e, "remove it, or name another folder", "%s holds another set of shapes: %.*s",
                  dir, (int)strcspn(found, "\n"), found);
#pragma omp parallel for schedule(dynamic) if (!done)
    for (int job = 0; job < 2 * COUNT(shapes); job++) {
        int split = job % 2, class = job / 2;
        Error why;
        if (done || !ok)
            continue;
        int count = split ? val_per_class : train_per_class;
        if (!write_class(dir, split, class, count, size, seed, &why)) {
#pragma omp critical(shapes_failed)
            {
                ok = false;
                *e = why;
            }
        }
    }
    if (ok && !done)
        ok = save_text(stamp, text, e);
    free(found);
    free(text);
    free(stamp);
    return ok;
}
