/* mixup.c - draws what happens to a step's images, and their targets; see mixup.h.
 *
 * Pure functions of their arguments, in double. Nothing here touches a pixel.
 * Read in this order: mixup and cutmix, erasing, colour twist, a batch, targets, flags.
 */
#include "train/mixup.h"

#include "util/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- mixup and cutmix ---- */

/* Gamma(shape, 1): Marsaglia & Tsang, "A simple method for generating gamma variables", 2000. For
 * shape < 1 it draws Gamma(shape + 1) and returns the log of that times U^(1/shape): the power
 * underflows for small shapes, its log does not. */
static double log_gamma_draw(double shape, RngStream *rng)
{
    double boost = 0;
    if (shape < 1) {
        boost = log(rng_next(rng)) / shape;
        shape += 1;
    }
    double d = shape - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (;;) {
        double x = rng_next_normal(rng);
        double v = 1 + c * x, u = rng_next(rng);
        v = v * v * v;
        if (v > 0 && log(u) < 0.5 * x * x + d - d * v + d * log(v))
            return log(d * v) + boost;
    }
}

double mix_beta(double alpha, RngStream *rng)
{
    double a = log_gamma_draw(alpha, rng), b = log_gamma_draw(alpha, rng);
    return 1 / (1 + exp(b - a)); /* A / (A + B) */
}

static int clamp(int v, int high)
{
    if (v < 0)
        return 0;
    return v < high ? v : high;
}

/* A box of 1 - lambda of the area around a uniform centre; what leaves the image is cut off (Yun et
 * al. 2019, sizes rounded down as there). */
static Rect cut_box(const Mix *m, double lambda, RngStream *rng)
{
    double side = sqrt(1 - lambda);
    int h = (int)(m->image_h * side), w = (int)(m->image_w * side);
    int cy = (int)(m->image_h * rng_next(rng)), cx = (int)(m->image_w * rng_next(rng));
    int top = clamp(cy - h / 2, m->image_h), bottom = clamp(cy + (h + 1) / 2, m->image_h);
    int left = clamp(cx - w / 2, m->image_w), right = clamp(cx + (w + 1) / 2, m->image_w);
    return (Rect){.y = top, .x = left, .h = bottom - top, .w = right - left};
}

/* `position` is the image's in the batch, or 0 where all images of a step share the draw. */
static void draw_mix(const Mix *m, uint64_t seed, uint32_t step, uint32_t position, Augment *a)
{
    RngStream rng = {.seed = seed, .sample = position, .step = step, .purpose = RNG_MIXUP};
    double happens = rng_next(&rng), which = rng_next(&rng);
    bool cut = m->cutmix > 0 && (m->mixup <= 0 || which < m->to_cutmix);
    if (happens >= m->prob)
        return;
    double lambda = mix_beta(cut ? m->cutmix : m->mixup, &rng);
    if (cut)
        a->cut = cut_box(m, lambda, &rng);
    else
        a->lambda = (float)lambda;
}

/* Of image i of a micro-batch, which begins where a group does. */
static int partner_of(const Mix *m, int i)
{
    int place = i % m->group, begin = i - place;
    if (m->pairs == PAIRS_ROLL)
        return begin + (place + m->group - 1) % m->group;
    return begin + m->group - 1 - place;
}

/* ---- erasing ---- */

/* Zhong et al. 2020: area uniform in 2% to a third of the image, ratio log-uniform in 0.3 to 1/0.3,
 * in ten attempts a box that is smaller than the image on both sides. */
static void draw_erase(const Mix *m, uint64_t seed, uint32_t step, uint32_t position, Augment *a)
{
    RngStream rng = {.seed = seed, .sample = position, .step = step, .purpose = RNG_ERASE_BOX};
    const double least = 0.02, most = 1.0 / 3, log_ratio = log(1 / 0.3);
    if (rng_next(&rng) >= m->erase)
        return;
    for (int attempt = 0; attempt < 10; attempt++) {
        double area = (least + (most - least) * rng_next(&rng)) * m->image_h * m->image_w;
        double ratio = exp(log_ratio * (2 * rng_next(&rng) - 1));
        int h = (int)lround(sqrt(area * ratio)), w = (int)lround(sqrt(area / ratio));
        if (h < 1 || w < 1 || h >= m->image_h || w >= m->image_w)
            continue;
        a->erase = m->erase_mode == ERASE_TO_ZERO ? ERASE_ZERO : ERASE_NOISE;
        a->erased = (Rect){.y = (int)((m->image_h - h + 1) * rng_next(&rng)),
                           .x = (int)((m->image_w - w + 1) * rng_next(&rng)),
                           .h = h,
                           .w = w};
        return;
    }
}

/* ---- colour twist ---- */

/* The FCC's YIQ, in which rows I and Q sum to 0 (greys have no colour), and its inverse. */
static const double to_yiq[3][3] = {
    {0.299, 0.587, 0.114}, {0.5959, -0.2746, -0.3213}, {0.2115, -0.5227, 0.3112}};
static const double from_yiq[3][3] = {{1, 0.956050226395894, 0.620754941327123},
                                      {1, -0.272052343688924, -0.647205713455178},
                                      {1, -1.106704315324332, 1.704421283696311}};

/* DALI's ColorTwist as one map of (r, g, b) in 0..1, b (c (Yiq2Rgb R S Rgb2Yiq v - 1/2) + 1/2): S
 * scales I and Q by the saturation, R turns them by the hue; then contrast around the middle, then
 * brightness. (DALI rounds its tables to three digits, and for bytes its middle is 128.) */
void mix_twist_map(double brightness, double contrast, double saturation, double hue, float map[12])
{
    double turn = hue * (M_PI / 180), c = saturation * cos(turn), s = saturation * sin(turn);
    const double rs[3][3] = {{1, 0, 0}, {0, c, s}, {0, -s, c}};
    for (int i = 0; i < 3; i++) {
        for (int j = 0; j < 3; j++) {
            double sum = 0;
            for (int k = 0; k < 3; k++)
                for (int l = 0; l < 3; l++)
                    sum += from_yiq[i][k] * rs[k][l] * to_yiq[l][j];
            map[3 * i + j] = (float)(brightness * contrast * sum);
        }
        map[9 + i] = (float)(brightness * (0.5 - 0.5 * contrast));
    }
}

static void draw_twist(const Mix *m, uint64_t seed, uint32_t step, uint32_t position, Augment *a)
{
    RngStream rng = {.seed = seed, .sample = position, .step = step, .purpose = RNG_TWIST};
    double drawn[4];
    for (int i = 0; i < 4; i++)
        drawn[i] = (i < 3) + m->twist[i] * (2 * rng_next(&rng) - 1);
    a->use_colour = true;
    mix_twist_map(drawn[0], drawn[1], drawn[2], drawn[3], a->colour);
}

/* ---- a batch ---- */

static bool twists(const Mix *m)
{
    return m->twist[0] > 0 || m->twist[1] > 0 || m->twist[2] > 0 || m->twist[3] > 0;
}

bool mix_changes_anything(const Mix *m)
{
    return m->mixup > 0 || m->cutmix > 0 || m->erase > 0 || twists(m);
}

void mix_batch(const Mix *m, uint64_t seed, uint32_t step, uint32_t first, int n, Augment *out)
{
    bool mixes = m->mixup > 0 || m->cutmix > 0, colours = twists(m);
    if (first % (uint32_t)m->group || n % m->group)
        die("this is a mistake in train.c", "images %u to %u do not begin and end with a group",
            first, first + (uint32_t)n - 1);
    for (int i = 0; i < n; i++) {
        uint32_t position = first + (uint32_t)i;
        out[i] = (Augment){.lambda = 1, .partner = i};
        if (mixes) {
            out[i].partner = partner_of(m, i);
            draw_mix(m, seed, step, m->per == MIX_PER_SAMPLE ? position : 0, &out[i]);
        }
        if (m->erase > 0)
            draw_erase(m, seed, step, position, &out[i]);
        if (colours)
            draw_twist(m, seed, step, position, &out[i]);
    }
}

/* ---- targets ---- */

/* The own label's part is lambda outside the cut, as the model mixes pixels; in float like there.
 */
void soft_targets(real *targets, const int *labels, int n, int K, double smoothing,
                  const Augment *augment, long pixels)
{
    for (int i = 0; i < n; i++) {
        real *row = targets + (size_t)i * (size_t)K;
        const Augment *a = augment ? augment + i : NULL;
        double own = 1;
        if (a)
            own = (double)a->lambda * (1 - (double)a->cut.h * a->cut.w / (double)pixels);
        for (int k = 0; k < K; k++)
            row[k] = (real)(smoothing / K);
        row[labels[i]] += (real)((1 - smoothing) * own);
        if (own < 1)
            row[labels[a->partner]] += (real)((1 - smoothing) * (1 - own));
    }
}

void harden_targets(real *targets, long n, double threshold)
{
    for (long i = 0; i < n; i++)
        targets[i] = (double)targets[i] > threshold;
}

/* ---- flags ---- */

bool mix_parse_twist(const char *text, double twist[4], Error *e)
{
    static const double most[] = {1, 1, 1, 180};
    const char *p = text;
    int n = 0;
    memset(twist, 0, 4 * sizeof *twist);
    while (*p && n < 4) {
        char *end;
        twist[n] = strtod(p, &end);
        bool ok = end > p && twist[n] >= 0 && twist[n] <= most[n];
        if (!ok || (*end && (*end != ',' || !end[1])))
            break;
        n++;
        p = *end ? end + 1 : end;
    }
    if (*p || n == 2)
        return fail(e,
                    "give one number of 0..1, or three, for brightness, contrast and saturation, "
                    "and after them 0..180 degrees of hue: 0.4 or 0.4,0.4,0.4,10",
                    "--color-twist: '%s' is no such list", text);
    if (n == 1)
        twist[1] = twist[2] = twist[0];
    return true;
}

bool mix_mixes(const Options *o)
{
    return o->mixup > 0 || o->cutmix > 0;
}

long mix_auto_group(long batch)
{
    for (long g = 8; g > 1; g--)
        if (batch % g == 0)
            return g;
    for (long g = 9; g * g <= batch; g++)
        if (batch % g == 0)
            return g;
    return batch;
}

Mix mix_of(const Options *o, const Config *c)
{
    Error e;
    Mix m = {.mixup = o->mixup,
             .cutmix = o->cutmix,
             .to_cutmix = o->mix_switch,
             .prob = o->mix_prob,
             .per = o->mix_per,
             .pairs = o->mix_pairs,
             .group = mix_mixes(o) ? (int)o->mix_group : 1,
             .erase = o->erase,
             .erase_mode = o->erase_mode,
             .image_h = c->image_h,
             .image_w = c->image_w};
    mix_parse_twist(o->color_twist, m.twist, &e);
    return m;
}
