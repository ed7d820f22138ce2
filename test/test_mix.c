/* test_mix.c - mixup, cutmix, erasing, colour twist and soft targets: what is drawn, and what of it
 * does not depend on how a batch is cut up. What a backend then does to pixels is checked by
 * test_ops.
 */
#include "check.h"

#include "train/mixup.h"
#include "util/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = 240, K = 5, H = 24, W = 40, PIXELS = H * W };

/* Everything is on: 8 images a group. */
static Mix everything(void)
{
    return (Mix){.mixup = 0.8,
                 .cutmix = 1,
                 .to_cutmix = 0.5,
                 .prob = 0.9,
                 .per = MIX_PER_SAMPLE,
                 .group = 8,
                 .erase = 0.5,
                 .twist = {0.4, 0.3, 0.2, 30},
                 .image_h = H,
                 .image_w = W};
}

static bool same_rect(Rect a, Rect b)
{
    return memcmp(&a, &b, sizeof a) == 0;
}

static bool is_cut(const Augment *a)
{
    return a->cut.h > 0 && a->cut.w > 0;
}

/* Whether r is inside the image, or empty. */
static bool is_inside(Rect r)
{
    return r.y >= 0 && r.x >= 0 && r.h >= 0 && r.w >= 0 && r.y + r.h <= H && r.x + r.w <= W;
}

/* ---- Beta ---- */

/* Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)). */
static void test_beta(void)
{
    static const double alphas[] = {0.01, 0.2, 0.8, 1, 4, 1000};
    enum { DRAWS = 40000 };
    for (int i = 0; i < COUNT(alphas); i++) {
        double sum = 0, squares = 0, a = alphas[i];
        bool inside = true;
        for (uint32_t step = 0; step < DRAWS; step++) {
            RngStream rng = {.seed = 5, .step = step, .purpose = RNG_MIXUP};
            double x = mix_beta(a, &rng);
            inside &= x >= 0 && x <= 1;
            sum += x;
            squares += x * x;
        }
        double mean = sum / DRAWS, var = squares / DRAWS - mean * mean;
        double want = 1 / (4 * (2 * a + 1));
        CHECK(inside);
        CHECK(fabs(mean - 0.5) < 5 * sqrt(want / DRAWS), "alpha %g: mean %g", a, mean);
        CHECK(fabs(var / want - 1) < 0.05, "alpha %g: variance %g, not %g", a, var, want);
    }
}

/* ---- a batch, however it is cut up ---- */

static void test_splits(void)
{
    static const int splits[] = {8, 16, 24, 40, 80, 120, 240};
    static Augment whole[N], part[N];
    static real all[N * K], some[N * K];
    int labels[N];
    for (int i = 0; i < N; i++)
        labels[i] = i * i % K;
    for (int variant = 0; variant < 4; variant++) {
        Mix m = everything();
        m.per = variant % 2 ? MIX_PER_BATCH : MIX_PER_SAMPLE;
        m.pairs = variant / 2 ? PAIRS_ROLL : PAIRS_REVERSE;
        mix_batch(&m, 3, 7, 0, N, whole);
        soft_targets(all, labels, N, K, 0.1, whole, PIXELS);
        for (int s = 0; s < COUNT(splits); s++) {
            int n = splits[s];
            for (int first = 0; first < N; first += n) {
                mix_batch(&m, 3, 7, (uint32_t)first, n, part + first);
                soft_targets(some + first * K, labels + first, n, K, 0.1, part + first, PIXELS);
                for (int i = first; i < first + n; i++)
                    part[i].partner += first;
            }
            CHECK(memcmp(part, whole, sizeof whole) == 0, "variant %d, %d at a time", variant, n);
            CHECK(memcmp(some, all, sizeof all) == 0, "targets of variant %d, %d at a time",
                  variant, n);
        }
    }
}

static void test_counters(void)
{
    Mix m = everything();
    static Augment a[N], b[N];
    mix_batch(&m, 1, 1, 0, N, a);
    mix_batch(&m, 1, 2, 0, N, b);
    CHECK(memcmp(a, b, sizeof a) != 0, "another step");
    mix_batch(&m, 2, 1, 0, N, b);
    CHECK(memcmp(a, b, sizeof a) != 0, "another seed");
    /* each has draws of its own: one does not change when another is switched off */
    m.mixup = m.cutmix = 0;
    mix_batch(&m, 1, 1, 0, N, b);
    bool same = true, alone = true;
    for (int i = 0; i < N; i++) {
        same &= a[i].erase == b[i].erase && same_rect(a[i].erased, b[i].erased) &&
                memcmp(a[i].colour, b[i].colour, sizeof a[i].colour) == 0;
        alone &= b[i].lambda == 1 && !is_cut(&b[i]);
    }
    CHECK(same);
    CHECK(alone);
}

static void test_partners(void)
{
    static const int groups[] = {2, 3, 8, 30};
    static Augment a[N];
    for (int g = 0; g < COUNT(groups); g++) {
        Mix m = everything();
        int G = m.group = groups[g], bad = 0;
        mix_batch(&m, 1, 1, 120, 120, a);
        for (int i = 0; i < 120; i++)
            bad += a[i].partner / G != i / G || a[a[i].partner].partner != i;
        CHECK(bad == 0, "reversal in groups of %d: %d partners", G, bad);
        m.pairs = PAIRS_ROLL;
        mix_batch(&m, 1, 1, 120, 120, a);
        for (int i = 0; i < 120; i++) {
            int at = i, steps = 0;
            do {
                at = a[at].partner;
                steps++;
            } while (at != i && steps <= G);
            bad += steps != G || (i % G && a[i].partner != i - 1);
        }
        CHECK(bad == 0, "roll in groups of %d: %d partners", G, bad);
    }
}

/* ---- shares and boxes ---- */

/* Mean share of a cut box where lambda is uniform, by its definition. */
static double mean_box(void)
{
    enum { GRID = 2000 };
    double sum = 0;
    for (int l = 0; l < GRID; l++) {
        double side = sqrt(1 - (l + 0.5) / GRID), mean[2];
        for (int axis = 0; axis < 2; axis++) {
            int size = axis ? W : H, length = (int)(size * side), total = 0;
            for (int centre = 0; centre < size; centre++)
                for (int i = 0; i < length; i++) {
                    int at = centre - length / 2 + i;
                    total += at >= 0 && at < size;
                }
            mean[axis] = (double)total / (size * size);
        }
        sum += mean[0] * mean[1];
    }
    return sum / GRID;
}

static void test_cutmix(void)
{
    Mix m = {.cutmix = 1,
             .to_cutmix = 0, /* no matter where mixup is off */
             .prob = 1,
             .per = MIX_PER_SAMPLE,
             .group = 2,
             .image_h = H,
             .image_w = W};
    static Augment a[N];
    static real t[N * 2];
    int labels[N], bad = 0, edges[4] = {0}, odd = 0, whole = 0, steps = 50;
    double sum = 0, squares = 0;
    for (int i = 0; i < N; i++)
        labels[i] = i % 2;
    for (uint32_t step = 0; step < (uint32_t)steps; step++) {
        mix_batch(&m, 9, step, 0, N, a);
        soft_targets(t, labels, N, 2, 0, a, PIXELS);
        for (int i = 0; i < N; i++) {
            int area = 0;
            for (int p = 0; p < PIXELS; p++)
                area += p / W >= a[i].cut.y && p / W < a[i].cut.y + a[i].cut.h &&
                        p % W >= a[i].cut.x && p % W < a[i].cut.x + a[i].cut.w;
            double share = (double)area / PIXELS;
            bad += !is_inside(a[i].cut) || a[i].lambda != 1 ||
                   t[2 * i + labels[i]] != (real)(1 - share);
            sum += share;
            squares += share * share;
            if (a[i].cut.y > 0 && a[i].cut.y + a[i].cut.h < H) {
                odd += a[i].cut.h % 2;
                whole++;
            }
            edges[0] += is_cut(&a[i]) && a[i].cut.y == 0;
            edges[1] += is_cut(&a[i]) && a[i].cut.y + a[i].cut.h == H;
            edges[2] += is_cut(&a[i]) && a[i].cut.x == 0;
            edges[3] += is_cut(&a[i]) && a[i].cut.x + a[i].cut.w == W;
        }
    }
    double n = (double)N * steps, mean = sum / n, sd = sqrt((squares / n - mean * mean) / n);
    CHECK(bad == 0, "%d boxes whose share is not the label's", bad);
    CHECK(fabs(mean - mean_box()) < 5 * sd, "mean share %g, not %g", mean, mean_box());
    CHECK(odd > whole / 3 && odd < whole * 2 / 3, "%d of %d heights are odd", odd, whole);
    for (int i = 0; i < 4; i += 2) /* opposite edges alike, within five standard deviations */
        CHECK(abs(edges[i] - edges[i + 1]) < 5 * sqrt(edges[i] + edges[i + 1]),
              "%d and %d boxes at opposite edges", edges[i], edges[i + 1]);
}

static void test_mixup(void)
{
    Mix m = {.mixup = 0.4, .to_cutmix = 1, .prob = 1, .group = 4, .image_h = H, .image_w = W};
    static Augment a[N];
    static real t[N * N];
    int labels[N], bad = 0;
    for (int i = 0; i < N; i++)
        labels[i] = i;
    mix_batch(&m, 9, 0, 0, N, a);
    soft_targets(t, labels, N, N, 0, a, PIXELS);
    for (int i = 0; i < N; i++)
        for (int k = 0; k < N; k++) {
            double lambda = (double)a[i].lambda;
            double want = (k == i) * lambda + (k == a[i].partner) * (1 - lambda);
            bad += is_cut(&a[i]) || (double)t[i * N + k] != (double)(real)want;
        }
    CHECK(bad == 0, "%d targets", bad);
}

static bool between(double x, double p, double n)
{
    return fabs(x - n * p) < 5 * sqrt(n * p * (1 - p)); /* binomial */
}

/* How often what is chosen, once a step or for each image. */
static void test_choices(void)
{
    static Augment a[N];
    for (int per = MIX_PER_BATCH; per <= MIX_PER_SAMPLE; per++) {
        Mix m = everything();
        int steps = per == MIX_PER_BATCH ? 2000 : 20, uniform = 0, distinct = 0, both = 0;
        double mixed = 0, cut = 0, n = per == MIX_PER_BATCH ? steps : steps * N;
        m.per = per;
        m.prob = 0.7;
        m.to_cutmix = 0.3;
        for (int step = 0; step < steps; step++) {
            bool same = true;
            mix_batch(&m, 4, (uint32_t)step, 0, N, a);
            for (int i = 0; i < (per == MIX_PER_BATCH ? 1 : N); i++) {
                mixed += a[i].lambda < 1 || is_cut(&a[i]);
                cut += is_cut(&a[i]);
                both += a[i].lambda < 1 && is_cut(&a[i]);
            }
            for (int i = 1; i < N; i++)
                same &= a[i].lambda == a[0].lambda && same_rect(a[i].cut, a[0].cut);
            uniform += same;
            distinct += a[0].lambda != a[1].lambda || !same_rect(a[0].cut, a[1].cut);
        }
        /* a cut may have no pixel: 1 - lambda below 1/24^2 */
        CHECK(between(mixed, 0.7, n), "%g of %g are mixed", mixed, n);
        CHECK(between(cut, 0.7 * 0.3, n), "%g of %g are cut", cut, n);
        CHECK(both == 0);
        CHECK(uniform == (per == MIX_PER_BATCH ? steps : 0));
        CHECK(per == MIX_PER_BATCH ? distinct == 0 : distinct > steps / 2);
    }
}

/* ---- erasing ---- */

static void test_erase(void)
{
    Mix m = {.erase = 0.3, .group = 1, .image_h = 90, .image_w = 120};
    static Augment a[N];
    enum { STEPS = 100 };
    const double pixels = 90 * 120;
    double erased = 0, y = 0, x = 0, areas = 0, logs = 0, least = 1, most = 0, flat = 1, high = 1;
    int bad = 0;
    for (uint32_t step = 0; step < STEPS; step++) {
        mix_batch(&m, 2, step, 0, N, a);
        for (int i = 0; i < N; i++) {
            Rect r = a[i].erased;
            if (!a[i].erase) {
                bad += r.h != 0;
                continue;
            }
            erased++;
            double area = r.h * r.w / pixels, ratio = (double)r.h / r.w;
            /* sides are rounded by up to a half */
            bad += a[i].erase != ERASE_NOISE || r.h < 1 || r.w < 1 || r.y < 0 || r.x < 0 ||
                   r.y + r.h > 90 || r.x + r.w > 120 || r.h == 90 || r.w == 120;
            bad +=
                (r.h + 0.5) * (r.w + 0.5) < 0.02 * pixels || (r.h - 0.5) * (r.w - 0.5) > pixels / 3;
            bad += (r.h + 0.5) / (r.w - 0.5) < 0.3 || (r.h - 0.5) / (r.w + 0.5) > 1 / 0.3;
            least = fmin(least, area);
            most = fmax(most, area);
            flat = fmin(flat, ratio);
            high = fmax(high, ratio);
            areas += area;
            logs += log(ratio);
            y += (r.y + 0.5) / (90 - r.h + 1);
            x += (r.x + 0.5) / (120 - r.w + 1);
        }
    }
    CHECK(bad == 0, "%d boxes", bad);
    CHECK(between(erased, 0.3, N * STEPS), "%g of %d are erased", erased, N * STEPS);
    /* nearly every first attempt fits: uniform area, log-uniform ratio */
    CHECK(least < 0.022 && most > 0.32 && flat < 0.31 && high > 2.8, "areas %g..%g, ratios %g..%g",
          least, most, flat, high);
    CHECK(fabs(areas / erased - (0.02 + 1.0 / 3) / 2) < 0.01, "mean area %g", areas / erased);
    CHECK(fabs(logs / erased) < 0.06, "mean logarithm of the ratio %g", logs / erased);
    CHECK(fabs(y / erased - 0.5) < 0.02 && fabs(x / erased - 0.5) < 0.02, "centre at %g, %g",
          y / erased, x / erased);
    m.erase_mode = ERASE_TO_ZERO;
    m.erase = 1;
    mix_batch(&m, 2, 0, 0, 8, a);
    CHECK(a[0].erase == ERASE_ZERO && a[7].erase == ERASE_ZERO);
    m.image_h = m.image_w = 1; /* no room: nothing happens */
    mix_batch(&m, 2, 0, 0, 8, a);
    CHECK(a[0].erase == ERASE_NONE);
}

/* ---- colour twist ---- */

static void apply(const float map[12], const double in[3], double out[3])
{
    for (int c = 0; c < 3; c++) {
        out[c] = (double)map[9 + c];
        for (int k = 0; k < 3; k++)
            out[c] += (double)map[3 * c + k] * in[k];
    }
}

/* The map on some colours against the steps that it is made of, one after the other. */
static void test_twist_map(void)
{
    static const double colours[][3] = {{0, 0, 0},       {1, 1, 1},       {0.5, 0.5, 0.5},
                                        {0.9, 0.2, 0.1}, {0.1, 0.8, 0.3}, {0.25, 0.5, 1}};
    float map[12], turned[12];
    double out[3], again[3];
    for (int i = 0; i < COUNT(colours); i++) {
        const double *v = colours[i];
        double luma = 0.299 * v[0] + 0.587 * v[1] + 0.114 * v[2];
        mix_twist_map(1, 1, 1, 0, map);
        apply(map, v, out);
        for (int c = 0; c < 3; c++)
            CHECK(fabs(out[c] - v[c]) < 1e-6, "nothing: channel %d is %g, not %g", c, out[c], v[c]);
        mix_twist_map(1.2, 0.7, 1.3, 0, map);
        apply(map, v, out);
        for (int c = 0; c < 3; c++) {
            double saturated = luma + 1.3 * (v[c] - luma);
            double want = 1.2 * (0.7 * (saturated - 0.5) + 0.5);
            CHECK(fabs(out[c] - want) < 1e-6, "channel %d is %g, not %g", c, out[c], want);
        }
        /* a hue keeps luma and greys, and 30 degrees twelve times are none */
        mix_twist_map(1, 1, 1, 30, turned);
        apply(turned, v, out);
        CHECK(fabs(0.299 * out[0] + 0.587 * out[1] + 0.114 * out[2] - luma) < 1e-4);
        CHECK((i < 3) == (fabs(out[0] - v[0]) < 1e-6));
        memcpy(out, v, sizeof out);
        for (int turn = 0; turn < 12; turn++) {
            apply(turned, out, again);
            memcpy(out, again, sizeof out);
        }
        for (int c = 0; c < 3; c++)
            CHECK(fabs(out[c] - v[c]) < 1e-5, "a whole turn: channel %d is %g", c, out[c]);
    }
}

/* The tables of DALI have three digits. */
static void test_twist_dali(void)
{
    static const double rgb2yiq[3][3] = {
        {.299, .587, .114}, {.596, -.274, -.321}, {.211, -.523, .311}};
    static const double yiq2rgb[3][3] = {{1, .956, .621}, {1, -.272, -.647}, {1, -1.107, 1.705}};
    const double b = 1.1, c = 0.8, s = 1.25, turn = 20 * acos(-1) / 180;
    float map[12];
    mix_twist_map(b, c, s, 20, map);
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) {
            double I = rgb2yiq[1][j], Q = rgb2yiq[2][j];
            double want = b * c *
                          (yiq2rgb[i][0] * rgb2yiq[0][j] +
                           yiq2rgb[i][1] * s * (cos(turn) * I + sin(turn) * Q) +
                           yiq2rgb[i][2] * s * (cos(turn) * Q - sin(turn) * I));
            CHECK(fabs((double)map[3 * i + j] - want) < 2e-3, "element %d %d is %g, not %g", i, j,
                  (double)map[3 * i + j], want);
        }
}

/* The factors of a map, from what it makes of black, of white and of a colour. */
static void factors_of(const float map[12], double f[4])
{
    static const double white[] = {1, 1, 1}, colour[] = {0.7, 0.4, 0.2};
    double top[3], out[3], chroma[2][2];
    apply(map, white, top);
    apply(map, colour, out);
    double bottom = (double)map[9];
    f[0] = bottom + top[0];          /* b (1 - c) / 2 + b (1 + c) / 2 */
    f[1] = (top[0] - bottom) / f[0]; /* b c / b */
    for (int k = 0; k < 2; k++) {
        const double *v = k ? out : colour;
        chroma[k][0] = 0.5959 * v[0] - 0.2746 * v[1] - 0.3213 * v[2];
        chroma[k][1] = 0.2115 * v[0] - 0.5227 * v[1] + 0.3112 * v[2];
    }
    f[2] = hypot(chroma[1][0], chroma[1][1]) / hypot(chroma[0][0], chroma[0][1]) / (f[0] * f[1]);
    f[3] = (atan2(chroma[0][1], chroma[0][0]) - atan2(chroma[1][1], chroma[1][0])) * 180 / acos(-1);
}

static void test_twist_draws(void)
{
    static const double middle[] = {1, 1, 1, 0};
    Mix m = {.twist = {0.4, 0.3, 0.2, 25}, .group = 1, .image_h = H, .image_w = W};
    static Augment a[N];
    enum { STEPS = 40 };
    double n = (double)N * STEPS, sum[4] = {0}, products[4][4] = {{0}};
    double most[4] = {0};
    for (uint32_t step = 0; step < STEPS; step++) {
        mix_batch(&m, 6, step, 0, N, a);
        for (int i = 0; i < N; i++) {
            double f[4];
            factors_of(a[i].colour, f);
            for (int k = 0; k < 4; k++) {
                f[k] = (f[k] - middle[k]) / m.twist[k]; /* -1..1 */
                sum[k] += f[k];
                most[k] = fmax(most[k], fabs(f[k]));
                for (int l = 0; l <= k; l++)
                    products[k][l] += f[k] * f[l];
            }
        }
    }
    for (int k = 0; k < 4; k++) {
        CHECK(most[k] > 0.99 && most[k] < 1 + 1e-4, "factor %d reaches %g", k, most[k]);
        CHECK(fabs(sum[k] / n) < 5 * sqrt(1.0 / 3 / n), "mean of factor %d: %g", k, sum[k] / n);
        for (int l = 0; l <= k; l++) /* variance 1/3, no correlation */
            CHECK(fabs(products[k][l] / n - (k == l) / 3.0) < 5 / 3.0 / sqrt(n),
                  "factors %d and %d: %g", k, l, products[k][l] / n);
    }
}

/* Whether an image is mixed, erased and brightened has nothing to do with each other. */
static void test_independence(void)
{
    Mix m = everything();
    static Augment a[N];
    enum { STEPS = 40 };
    double both[3] = {0};
    m.prob = 0.5;
    for (uint32_t step = 0; step < STEPS; step++) {
        mix_batch(&m, 11, step, 0, N, a);
        for (int i = 0; i < N; i++) {
            double f[4];
            factors_of(a[i].colour, f);
            bool mixed = a[i].lambda < 1 || is_cut(&a[i]);
            both[0] += mixed && a[i].erase;
            both[1] += mixed && f[0] > 1;
            both[2] += a[i].erase && f[0] > 1;
        }
    }
    for (int k = 0; k < 3; k++)
        CHECK(between(both[k], 0.25, N * STEPS), "pair %d: %g of %d", k, both[k], N * STEPS);
}

static void test_parse_twist(void)
{
    static const struct {
        const char *text;
        double want[4]; /* [0] < 0: an error */
    } cases[] = {
        {"", {0}},
        {"0.4", {0.4, 0.4, 0.4, 0}},
        {"0.1,0.2,0.3", {0.1, 0.2, 0.3, 0}},
        {"0,0,1,45.5", {0, 0, 1, 45.5}},
        {"0.1,0.2", {-1}},
        {"0.1,0.2,0.3,", {-1}},
        {"0.1,0.2,0.3,4,5", {-1}},
        {"-0.1", {-1}},
        {"1.1", {-1}},
        {"0,0,0,181", {-1}},
        {"nan", {-1}},
        {"0.4x", {-1}},
        {",", {-1}},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        Error e = {"", ""};
        double got[4];
        bool ok = mix_parse_twist(cases[i].text, got, &e);
        if (cases[i].want[0] < 0)
            CHECK(!ok && *e.what && *e.hint, "'%s'", cases[i].text);
        else
            CHECK(ok && memcmp(got, cases[i].want, sizeof got) == 0, "'%s'", cases[i].text);
    }
}

/* ---- targets and flags ---- */

static void test_targets(void)
{
    static const int labels[] = {0, 3, 1};
    real t[12];
    soft_targets(t, labels, 3, 4, 0.2, NULL, 0);
    CHECK(fabs((double)t[0] - 0.85) < 1e-6 && fabs((double)t[1] - 0.05) < 1e-6);
    CHECK(fabs((double)t[4 + 3] - 0.85) < 1e-6);
    /* a quarter of the pixels is the partner's; both; the middle one is its own partner */
    Augment a[] = {{.lambda = 1, .partner = 2, .cut = {0, 0, 5, 5}},
                   {.lambda = 0.5f, .partner = 1},
                   {.lambda = 0.5f, .partner = 0, .cut = {0, 0, 10, 5}}};
    soft_targets(t, labels, 3, 4, 0.2, a, 100);
    CHECK(fabs((double)t[0] - (0.05 + 0.8 * 0.75)) < 1e-6);
    CHECK(fabs((double)t[1] - (0.05 + 0.8 * 0.25)) < 1e-6);
    CHECK(fabs((double)t[4 + 3] - 0.85) < 1e-6);
    CHECK(fabs((double)t[8 + 1] - (0.05 + 0.8 * 0.25)) < 1e-6);
    CHECK(fabs((double)t[8 + 0] - (0.05 + 0.8 * 0.75)) < 1e-6);
    soft_targets(t, labels, 3, 4, 0, a, 100);
    harden_targets(t, COUNT(t), 0);
    static const real both[12] = {1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0};
    CHECK(memcmp(t, both, sizeof both) == 0);
    soft_targets(t, labels, 3, 4, 0, a, 100); /* three quarters and one */
    harden_targets(t, COUNT(t), 0.5);
    static const real larger[12] = {1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0};
    CHECK(memcmp(t, larger, sizeof larger) == 0);

    Mix m = everything();
    static Augment drawn[N];
    static real all[N * K];
    int many[N], bad = 0;
    for (int i = 0; i < N; i++)
        many[i] = i % K;
    mix_batch(&m, 8, 1, 0, N, drawn);
    soft_targets(all, many, N, K, 0.1, drawn, PIXELS);
    for (int i = 0; i < N; i++) {
        double sum = 0;
        for (int k = 0; k < K; k++) {
            sum += (double)all[i * K + k];
            bad += !((double)all[i * K + k] >= 0.1 / K - 1e-7);
        }
        bad += !(fabs(sum - 1) < 1e-6);
    }
    CHECK(bad == 0, "%d targets do not sum to 1", bad);
}

static void test_flags(void)
{
    static const long groups[][2] = {{1, 1},  {2, 2},    {4096, 8},           {12, 6},
                                     {15, 5}, {13, 13},  {121, 11},           {22, 2},
                                     {18, 6}, {1001, 7}, {16777213, 16777213}};
    for (int i = 0; i < COUNT(groups); i++)
        CHECK(mix_auto_group(groups[i][0]) == groups[i][1], "%ld images: groups of %ld",
              groups[i][0], mix_auto_group(groups[i][0]));
    Options o;
    Config c = vit_config_default();
    Error e = {"", ""};
    options_init(&o);
    Mix m = mix_of(&o, &c);
    CHECK(!mix_changes_anything(&m) && !mix_mixes(&o) && m.group == 1);
    CHECK(options_lines(&o, "color-twist = 0,0,0.1", "", &e));
    m = mix_of(&o, &c);
    CHECK(mix_changes_anything(&m) && !mix_mixes(&o) && m.twist[2] == 0.1);
    CHECK(options_lines(&o,
                        "mixup = 0.2\ncutmix = 0.3\nmix-switch = 0.4\nmix-prob = 0.5\n"
                        "mix-per = sample\nmix-pairs = roll\nmix-group = 6\nerase = 0.7\n"
                        "erase-mode = zero\ncolor-twist =",
                        "", &e));
    m = mix_of(&o, &c);
    CHECK(mix_mixes(&o) && m.mixup == 0.2 && m.cutmix == 0.3 && m.to_cutmix == 0.4 &&
          m.prob == 0.5 && m.per == MIX_PER_SAMPLE && m.pairs == PAIRS_ROLL && m.group == 6 &&
          m.erase == 0.7 && m.erase_mode == ERASE_TO_ZERO && m.twist[2] == 0);
    options_free(&o);
}

int main(void)
{
    test_beta();
    test_splits();
    test_counters();
    test_partners();
    test_cutmix();
    test_mixup();
    test_choices();
    test_erase();
    test_twist_map();
    test_twist_dali();
    test_twist_draws();
    test_independence();
    test_parse_twist();
    test_targets();
    test_flags();
    return check_report();
}
