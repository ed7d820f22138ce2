/* augment.c - images changed at random: colour jitter, AutoAugment, RandAugment, 3-Augment.
 *
 * A scheme says which operations there are and how strong each is at levels 0 to 10. AutoAugment
 * draws one of 25 pairs of operations, whose levels and probabilities are fixed; RandAugment draws
 * n operations at one level. 3-Augment is RandAugment of one operation among three, at any level.
 * What is drawn is a function of the View alone.
 *
 * Not here: what an operation does to pixels (pixels.c), crop and flip (data.c).
 * Order: the schemes as tables; reading a policy's name; drawing and applying.
 */
#include "image/augment.h"

#include "image/pixels.h"
#include "util/text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- the schemes ---- */

/* What happens to a magnitude after its level has chosen it, in this order. */
enum {
    DOWN = 1, /* rounded down to a whole number */
    UP,       /* up */
    NEAR,     /* to the nearest */
    ROUNDING = 3,
    EITHER_SIGN = 4, /* negated half of the time */
    FROM_ONE = 8,    /* 1 is added; then the limits hold */
    OF_SIDE = 16     /* times the side along which it moves; cutout: the shorter one */
};
enum { FILTER_RANDOM = -1 };   /* bilinear or bicubic, drawn each time */
enum { OP_CUTOUT = OP_COUNT }; /* a square about a random pixel becomes grey; half its side */

/* An operation's magnitude goes from `from` at level 0 to `to` at level 10, and so on above, but
 * stays within least..most. */
typedef struct {
    int op;
    double from, to, least, most;
    int how, filter;
} Range;

typedef struct {
    int op;
    double probability;
    int level;
} Step;

typedef struct {
    const Range *ranges;
    int count;
    const Step (*pairs)[2]; /* AutoAugment's 25, or NULL: RandAugment */
} Scheme;
enum { PAIRS = 25 };

/* What schemes have in common: changes without a magnitude, by a factor, and of places. */
/* clang-format off */
#define LEVELS                                                                                    \
    {OP_AUTOCONTRAST, 0, 0, 0, 0, 0, 0},                                                          \
    {OP_EQUALIZE, 0, 0, 0, 0, 0, 0},                                                              \
    {OP_INVERT, 0, 0, 0, 0, 0, 0}
#define FACTORS(from, to, least, how)                                                             \
    {OP_COLOR, from, to, least, INFINITY, how, 0},                                                \
    {OP_CONTRAST, from, to, least, INFINITY, how, 0},                                             \
    {OP_BRIGHTNESS, from, to, least, INFINITY, how, 0},                                           \
    {OP_SHARPNESS, from, to, least, INFINITY, how, 0}
#define MOVE(op, to, how, filter) {op, 0, to, -INFINITY, INFINITY, EITHER_SIGN | (how), filter}
#define MOVES(side, filter)                                                                       \
    MOVE(OP_SHEAR_X, 0.3, 0, filter),                                                             \
    MOVE(OP_SHEAR_Y, 0.3, 0, filter),                                                             \
    MOVE(OP_TRANSLATE_X, side, OF_SIDE, filter),                                                  \
    MOVE(OP_TRANSLATE_Y, side, OF_SIDE, filter)
/* clang-format on */

/* The policy that the AutoAugment paper found for ImageNet (Cubuk et al. 2019, table 9), with
 * the magnitudes that NeMo and Megatron-LM gave it: color, contrast and sharpness away from 1 to
 * either side, rotation only against the clock. Their rotation is nearest, their shear bicubic. */
static const Range paper_ranges[] = {
    LEVELS,
    {OP_POSTERIZE, 8, 4, 1, 8, NEAR, 0},
    {OP_SOLARIZE, 256, 0, 0, 256, 0, 0},
    {OP_CONTRAST, 0, 0.9, 0.1, 1.9, EITHER_SIGN | FROM_ONE, 0},
    {OP_COLOR, 0, 0.9, 0.1, 1.9, EITHER_SIGN | FROM_ONE, 0},
    {OP_SHARPNESS, 0, 0.9, 0.1, 1.9, EITHER_SIGN | FROM_ONE, 0},
    {OP_ROTATE, 0, 30, 0, 30, 0, FILTER_NEAREST},
    {OP_SHEAR_X, 0, 0.3, -0.3, 0.3, EITHER_SIGN, FILTER_BICUBIC},
};
static const Step paper_pairs[PAIRS][2] = {
    {{OP_POSTERIZE, 0.4, 8}, {OP_ROTATE, 0.6, 9}},
    {{OP_SOLARIZE, 0.6, 5}, {OP_AUTOCONTRAST, 0.6, 5}},
    {{OP_EQUALIZE, 0.8, 8}, {OP_EQUALIZE, 0.6, 3}},
    {{OP_POSTERIZE, 0.6, 7}, {OP_POSTERIZE, 0.6, 6}},
    {{OP_EQUALIZE, 0.4, 7}, {OP_SOLARIZE, 0.2, 4}},
    {{OP_EQUALIZE, 0.4, 4}, {OP_ROTATE, 0.8, 8}},
    {{OP_SOLARIZE, 0.6, 3}, {OP_EQUALIZE, 0.6, 7}},
    {{OP_POSTERIZE, 0.8, 5}, {OP_EQUALIZE, 1, 2}},
    {{OP_ROTATE, 0.2, 3}, {OP_SOLARIZE, 0.6, 8}},
    {{OP_EQUALIZE, 0.6, 8}, {OP_POSTERIZE, 0.4, 6}},
    {{OP_ROTATE, 0.8, 8}, {OP_COLOR, 0.4, 0}},
    {{OP_ROTATE, 0.4, 9}, {OP_EQUALIZE, 0.6, 2}},
    {{OP_EQUALIZE, 0, 7}, {OP_EQUALIZE, 0.8, 8}},
    {{OP_INVERT, 0.6, 4}, {OP_EQUALIZE, 1, 8}},
    {{OP_COLOR, 0.6, 4}, {OP_CONTRAST, 1, 8}},
    {{OP_ROTATE, 0.8, 8}, {OP_COLOR, 1, 2}},
    {{OP_COLOR, 0.8, 8}, {OP_SOLARIZE, 0.8, 7}},
    {{OP_SHARPNESS, 0.4, 7}, {OP_INVERT, 0.6, 8}},
    {{OP_SHEAR_X, 0.6, 5}, {OP_EQUALIZE, 1, 9}},
    {{OP_COLOR, 0.4, 0}, {OP_EQUALIZE, 0.6, 3}},
    {{OP_EQUALIZE, 0.4, 7}, {OP_SOLARIZE, 0.2, 4}},
    {{OP_SOLARIZE, 0.6, 5}, {OP_AUTOCONTRAST, 0.6, 5}},
    {{OP_INVERT, 0.6, 4}, {OP_EQUALIZE, 1, 8}},
    {{OP_COLOR, 0.6, 4}, {OP_CONTRAST, 1, 8}},
    {{OP_EQUALIZE, 0.8, 8}, {OP_EQUALIZE, 0.6, 3}},
};

/* TensorFlow's policy v0, which DALI calls image_net; bilinear, as in DALI. There a translation is
 * up to 250 pixels, which leaves nothing of 224; here it is up to 0.45 of the side, as timm has it.
 * Posterize keeps one bit or more, as in DALI. */
static const Range v0_ranges[] = {
    LEVELS,
    {OP_POSTERIZE, 0, 4, 1, 4, NEAR, 0},
    {OP_SOLARIZE, 0, 256, 0, 256, 0, 0},
    {OP_SOLARIZE_ADD, 0, 110, 0, 110, DOWN, 0},
    {OP_COLOR, 0.1, 1.9, 0.1, 1.9, 0, 0},
    {OP_ROTATE, 0, 30, -30, 30, EITHER_SIGN, FILTER_BILINEAR},
    {OP_SHEAR_X, 0, 0.3, -0.3, 0.3, EITHER_SIGN, FILTER_BILINEAR},
    {OP_SHEAR_Y, 0, 0.3, -0.3, 0.3, EITHER_SIGN, FILTER_BILINEAR},
    {OP_TRANSLATE_Y, 0, 0.45, -0.45, 0.45, EITHER_SIGN | OF_SIDE, FILTER_BILINEAR},
};
static const Step v0_pairs[PAIRS][2] = {
    {{OP_EQUALIZE, 0.8, 1}, {OP_SHEAR_Y, 0.8, 4}},
    {{OP_COLOR, 0.4, 9}, {OP_EQUALIZE, 0.6, 3}},
    {{OP_COLOR, 0.4, 1}, {OP_ROTATE, 0.6, 8}},
    {{OP_SOLARIZE, 0.8, 3}, {OP_EQUALIZE, 0.4, 7}},
    {{OP_SOLARIZE, 0.4, 2}, {OP_SOLARIZE, 0.6, 2}},
    {{OP_COLOR, 0.2, 0}, {OP_EQUALIZE, 0.8, 8}},
    {{OP_EQUALIZE, 0.4, 8}, {OP_SOLARIZE_ADD, 0.8, 3}},
    {{OP_SHEAR_X, 0.2, 9}, {OP_ROTATE, 0.6, 8}},
    {{OP_COLOR, 0.6, 1}, {OP_EQUALIZE, 1, 2}},
    {{OP_INVERT, 0.4, 9}, {OP_ROTATE, 0.6, 0}},
    {{OP_EQUALIZE, 1, 9}, {OP_SHEAR_Y, 0.6, 3}},
    {{OP_COLOR, 0.4, 7}, {OP_EQUALIZE, 0.6, 0}},
    {{OP_POSTERIZE, 0.4, 6}, {OP_AUTOCONTRAST, 0.4, 7}},
    {{OP_SOLARIZE, 0.6, 8}, {OP_COLOR, 0.6, 9}},
    {{OP_SOLARIZE, 0.2, 4}, {OP_ROTATE, 0.8, 9}},
    {{OP_ROTATE, 1, 7}, {OP_TRANSLATE_Y, 0.8, 9}},
    {{OP_SHEAR_X, 0, 0}, {OP_SOLARIZE, 0.8, 4}},
    {{OP_SHEAR_Y, 0.8, 0}, {OP_COLOR, 0.6, 4}},
    {{OP_COLOR, 1, 0}, {OP_ROTATE, 0.6, 2}},
    {{OP_EQUALIZE, 0.8, 4}, {OP_EQUALIZE, 0, 8}},
    {{OP_EQUALIZE, 1, 4}, {OP_AUTOCONTRAST, 0.6, 2}},
    {{OP_SHEAR_Y, 0.4, 7}, {OP_SOLARIZE_ADD, 0.6, 7}},
    {{OP_POSTERIZE, 0.8, 2}, {OP_SOLARIZE, 0.6, 10}},
    {{OP_SOLARIZE, 0.6, 8}, {OP_EQUALIZE, 0.6, 1}},
    {{OP_COLOR, 0.8, 6}, {OP_ROTATE, 0.4, 5}},
};

/* timm's RandAugment: bilinear or bicubic, drawn each time. Its posterize may keep no bit at all,
 * which Pillow refuses by now: here one is left. `inc`: what changes little at level 10 above,
 * changes most at level 10 here. */
static const Range timm_ranges[] = {
    LEVELS,
    MOVE(OP_ROTATE, 30, 0, FILTER_RANDOM),
    {OP_POSTERIZE, 0, 4, 1, 8, DOWN, 0},
    {OP_SOLARIZE, 0, 256, 0, 256, DOWN, 0},
    {OP_SOLARIZE_ADD, 0, 110, 0, 128, DOWN, 0},
    FACTORS(0.1, 1.9, 0.1, 0),
    MOVES(0.45, FILTER_RANDOM),
};
static const Range timm_inc_ranges[] = {
    LEVELS,
    MOVE(OP_ROTATE, 30, 0, FILTER_RANDOM),
    {OP_POSTERIZE, 4, 0, 1, 8, UP, 0},
    {OP_SOLARIZE, 256, 0, 0, 256, UP, 0},
    {OP_SOLARIZE_ADD, 0, 110, 0, 128, DOWN, 0},
    FACTORS(0, 0.9, 0.1, EITHER_SIGN | FROM_ONE),
    MOVES(0.45, FILTER_RANDOM),
};

/* big_vision's randaug: nearest, without chance but in the choice and signs. Its translation of 100
 * pixels and cutout of 2 x 40 are for pictures of 224 pixels, and in proportion for others. */
static const Range big_vision_ranges[] = {
    LEVELS,
    MOVE(OP_ROTATE, 30, 0, FILTER_NEAREST),
    {OP_POSTERIZE, 0, 4, 1, 8, DOWN, 0},
    {OP_SOLARIZE, 0, 256, 0, 256, DOWN, 0},
    FACTORS(0.1, 1.9, 0, 0),
    MOVES(100.0 / 224, FILTER_NEAREST),
    {OP_CUTOUT, 0, 40.0 / 224, 0, INFINITY, OF_SIDE, 0},
    {OP_SOLARIZE_ADD, 0, 110, 0, 255, DOWN, 0},
};

/* DeiT III's 3-Augment (facebookresearch/deit, augment.py): greyscale, inverted levels from 128 on,
 * or a Gaussian blur of deviation 0.1 to 2, one of them for each picture. Grey is no colour. */
static const Range three_ranges[] = {
    {OP_COLOR, 0, 0, 0, 0, 0, 0},
    {OP_SOLARIZE, 128, 128, 0, 256, 0, 0},
    {OP_BLUR, 0.1, 2, 0, 2, 0, 0},
};

static const Scheme paper = {paper_ranges, COUNT(paper_ranges), paper_pairs};
static const Scheme v0 = {v0_ranges, COUNT(v0_ranges), v0_pairs};
static const Scheme timm = {timm_ranges, COUNT(timm_ranges), NULL};
static const Scheme timm_inc = {timm_inc_ranges, COUNT(timm_inc_ranges), NULL};
static const Scheme big_vision = {big_vision_ranges, COUNT(big_vision_ranges), NULL};
static const Scheme three = {three_ranges, COUNT(three_ranges), NULL};

/* ---- reading ---- */

struct Augmentation {
    double jitter[4];     /* brightness, contrast, saturation, hue; all 0: none */
    const Scheme *scheme; /* NULL: none */
    /* RandAugment: n operations, each with probability p, at level m or around it */
    double n, p, m, mstd, mmax, inc;
};

static const char *const policies[] = {
    "imagenet", "imagenet-v0", "rand-m9-n2-mstd0.5-inc1", "randaug(2,15)", "3-augment",
    "none",     NULL};

/* A number at *at, which moves behind it. */
static bool number(const char **at, double *out)
{
    char *end;
    *out = strtod(*at, &end);
    bool ok = end > *at && !isnan(*out);
    *at = end;
    return ok;
}

static bool read_jitter(Augmentation *a, const char *text, Error *e)
{
    static const char hint[] = "give X for brightness, contrast and saturation alike, or B,C,S or "
                               "B,C,S,HUE; a hue of at most 0.5";
    const char *at = text;
    int n = 0;
    if (!*text || strcmp(text, "none") == 0)
        return true;
    do {
        if (n == 4 || !number(&at, &a->jitter[n]) || !isfinite(a->jitter[n]) || a->jitter[n] < 0)
            return fail(e, hint, "--color-jitter '%s' is not one to four numbers from 0 on", text);
        n++;
    } while (*at++ == ',');
    if (at[-1] || n == 2)
        return fail(e, hint, "--color-jitter '%s' is not 1, 3 or 4 numbers", text);
    if (n == 1)
        a->jitter[1] = a->jitter[2] = a->jitter[0];
    if (a->jitter[3] > 0.5)
        return fail(e, hint, "--color-jitter '%s': the hue goes up to 0.5, half of the circle",
                    text);
    return true;
}

/* rand-m9-n2-mstd0.5-inc1: parts in any order, each a name and a number. */
static bool read_timm(Augmentation *a, const char *text, Error *e)
{
    const struct {
        const char *name;
        double *to, least, most;
    } parts[] = {/* the longer name first where one begins with another */
                 {"mstd", &a->mstd, 0, INFINITY},
                 {"mmax", &a->mmax, 0.1, 100},
                 {"m", &a->m, 0, 100},
                 {"n", &a->n, 1, 100},
                 {"p", &a->p, 0, 1},
                 {"inc", &a->inc, 0, 1}};
    a->n = 2;
    a->p = 0.5;
    a->m = a->mmax = 10;
    for (const char *at = text + strlen("rand"); *at;) {
        const char *part = ++at;
        int length = (int)strcspn(part, "-"), i = 0;
        while (i < COUNT(parts) && strncmp(part, parts[i].name, strlen(parts[i].name)) != 0)
            i++;
        if (i == COUNT(parts))
            return fail(e, "parts are m (level), n (operations), p, mstd, mmax and inc",
                        "--auto-augment '%s': no part is called '%.*s'", text, length, part);
        at += strlen(parts[i].name);
        if (!number(&at, parts[i].to) || at != part + length || *parts[i].to < parts[i].least ||
            *parts[i].to > parts[i].most)
            return fail(e, "such as rand-m9-n2-mstd0.5-inc1",
                        "--auto-augment '%s': '%.*s' is not %s with a number in %g..%g", text,
                        length, part, parts[i].name, parts[i].least, parts[i].most);
    }
    if (a->n != floor(a->n) || a->inc != floor(a->inc))
        return fail(e, "such as rand-m9-n2-mstd0.5-inc1",
                    "--auto-augment '%s': n and inc are whole numbers", text);
    a->scheme = a->inc ? &timm_inc : &timm;
    return true;
}

/* randaug(2,15), or randaug with big_vision's defaults (2, 10) */
static bool read_big_vision(Augmentation *a, const char *text, Error *e)
{
    const char *at = text + strlen("randaug");
    a->n = 2;
    a->p = 1;
    a->m = a->mmax = 10;
    bool ok = !*at || (*at++ == '(' && number(&at, &a->n) && *at++ == ',' && number(&at, &a->m) &&
                       strcmp(at, ")") == 0);
    ok = ok && a->n >= 1 && a->n <= 100 && a->n == floor(a->n);
    ok = ok && a->m >= 0 && a->m <= 100;
    if (!ok)
        return fail(e, "such as randaug(2,15)",
                    "--auto-augment '%s' is not randaug(N,M) with N in 1..100 and M in 0..100",
                    text);
    a->mmax = 100;
    a->scheme = &big_vision;
    return true;
}

static void read_three(Augmentation *a)
{
    a->scheme = &three;
    a->n = a->p = 1;
    a->m = a->mmax = 10;
    a->mstd = INFINITY; /* uniform */
}

static bool read_policy(Augmentation *a, const char *text, Error *e)
{
    if (strcmp(text, "imagenet") == 0)
        a->scheme = &paper;
    else if (strcmp(text, "imagenet-v0") == 0)
        a->scheme = &v0;
    else if (strcmp(text, "3-augment") == 0)
        read_three(a);
    if (a->scheme || !*text || strcmp(text, "none") == 0)
        return true;
    if (strncmp(text, "randaug", 7) == 0 && (!text[7] || text[7] == '('))
        return read_big_vision(a, text, e);
    if (strncmp(text, "rand", 4) == 0 && (!text[4] || text[4] == '-'))
        return read_timm(a, text, e);
    const char *near = nearest(text, policies);
    char hint[200];
    snprintf(
        hint, sizeof hint,
        "%s%s%schoose imagenet, imagenet-v0, rand-m9-n2-mstd0.5-inc1, randaug(2,15) or 3-augment",
        near ? "did you mean " : "", near ? near : "", near ? "? " : "");
    return fail(e, hint, "no --auto-augment is called '%s'", text);
}

Augmentation *augmentation_new(const char *jitter, const char *policy, Error *e)
{
    Augmentation *a = xcalloc(1, sizeof *a);
    if (read_jitter(a, jitter, e) && read_policy(a, policy, e))
        return a;
    free(a);
    return NULL;
}

void augmentation_free(Augmentation *a)
{
    free(a);
}

/* ---- drawing ---- */

/* An image and where its random numbers come from. */
typedef struct {
    RngStream rng;
    uint8_t *rgb, *scratch;
    int w, h;
} Canvas;

static double draw_magnitude(Canvas *c, const Range *r, double level)
{
    static double (*const rounded[])(double) = {[DOWN] = floor, [UP] = ceil, [NEAR] = nearbyint};
    double m = r->from + (r->to - r->from) * (level / 10);
    double side = fmin(c->w, c->h);
    if (r->op == OP_TRANSLATE_X)
        side = c->w;
    if (r->op == OP_TRANSLATE_Y)
        side = c->h;
    if (r->how & ROUNDING)
        m = rounded[r->how & ROUNDING](m);
    if (r->how & EITHER_SIGN && rng_next(&c->rng) < 0.5)
        m = -m;
    if (r->how & FROM_ONE)
        m += 1;
    m = fmin(fmax(m, r->least), r->most);
    return r->how & OF_SIDE ? m * side : m;
}

static void cutout(Canvas *c, double half)
{
    int s = half < 65536 ? (int)half : 65536, x = rng_below(&c->rng, c->w),
        y = rng_below(&c->rng, c->h);
    int left = x > s ? x - s : 0, right = x + s < c->w ? x + s : c->w;
    for (int row = y > s ? y - s : 0; row < y + s && row < c->h; row++)
        memset(c->rgb + 3 * ((size_t)row * c->w + left), 128, 3 * (size_t)(right - left));
}

static void apply(Canvas *c, const Range *r, double level)
{
    double m = draw_magnitude(c, r, level);
    if (r->op == OP_CUTOUT) {
        cutout(c, m);
        return;
    }
    int filter = r->filter;
    if (filter == FILTER_RANDOM)
        filter = rng_next(&c->rng) < 0.5 ? FILTER_BILINEAR : FILTER_BICUBIC;
    image_op(r->op, m, filter, c->rgb, c->w, c->h, c->scratch);
}

/* AutoAugment: one of the pairs, each of its steps with its probability. */
static void auto_augment(Canvas *c, const Scheme *s)
{
    const Step *pair = s->pairs[rng_below(&c->rng, PAIRS)];
    for (int i = 0; i < 2; i++) {
        const Range *r = s->ranges;
        while (r->op != pair[i].op)
            r++;
        if (rng_next(&c->rng) < pair[i].probability)
            apply(c, r, pair[i].level);
    }
}

static void rand_augment(Canvas *c, const Augmentation *a)
{
    for (int i = 0; i < a->n; i++) {
        const Range *r = a->scheme->ranges + rng_below(&c->rng, a->scheme->count);
        if (rng_next(&c->rng) >= a->p)
            continue;
        double level = a->m;
        if (a->mstd > 100) /* timm's way to say uniform */
            level *= rng_next(&c->rng);
        else if (a->mstd > 0)
            level += a->mstd * rng_next_normal(&c->rng);
        apply(c, r, fmin(fmax(level, 0), a->mmax));
    }
}

/* torchvision's ColorJitter: four factors, applied in random order. All are drawn, so that none
 * depends on which others there are. */
static void color_jitter(Canvas *c, const double jitter[4])
{
    static const int ops[4] = {OP_BRIGHTNESS, OP_CONTRAST, OP_COLOR, OP_HUE};
    int order[4] = {0, 1, 2, 3};
    double m[4];
    for (int i = 3; i > 0; i--) {
        int j = rng_below(&c->rng, i + 1), swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
    for (int i = 0; i < 4; i++) {
        double middle = i < 3, low = fmax(middle - jitter[i], i < 3 ? 0 : -0.5);
        m[i] = low + (middle + jitter[i] - low) * rng_next(&c->rng);
    }
    for (int i = 0; i < 4; i++)
        if (jitter[order[i]] > 0)
            image_op(ops[order[i]], m[order[i]], 0, c->rgb, c->w, c->h, c->scratch);
}

void augment_image(const Augmentation *a, View v, uint8_t *rgb, int w, int h, uint8_t *scratch)
{
    if (!a)
        return;
    Canvas c = {view_draw(v, DRAW_JITTER), rgb, scratch, w, h};
    Canvas policy = {view_draw(v, DRAW_POLICY), rgb, scratch, w, h};
    if (a->scheme != &three) /* which DeiT III has before its jitter */
        color_jitter(&c, a->jitter);
    if (a->scheme && a->scheme->pairs)
        auto_augment(&policy, a->scheme);
    else if (a->scheme)
        rand_augment(&policy, a);
    if (a->scheme == &three)
        color_jitter(&c, a->jitter);
}
