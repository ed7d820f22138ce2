/* chart.c - line charts as SVG. See chart.h.
 *
 * Read in this order: numbers, axes, series, a chart.
 */
#include "results/chart.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "util/text.h"

/* Of the drawing, and of the plot in it. */
enum { WIDTH = 400, HEIGHT = 220, LEFT = 46, RIGHT = 392, TOP = 10, BOTTOM = 194, STRETCHES = 240 };

/* ---- numbers ---- */

void chart_number(double v, char *out, size_t size)
{
    static const struct {
        double from, unit;
        const char *letter;
    } units[] = {{1e12, 1e12, "T"}, {1e9, 1e9, "G"}, {1e6, 1e6, "M"}, {1e4, 1e3, "k"}};
    double a = fabs(v);
    for (int i = 0; i < COUNT(units); i++)
        if (a >= units[i].from * 0.99995) {
            snprintf(out, size, "%.3g%s", v / units[i].unit, units[i].letter);
            return;
        }
    if (a >= 1000)
        snprintf(out, size, "%.0f", v);
    else if (a == 0 || a >= 1e-3)
        snprintf(out, size, "%.4g", v);
    else { /* 5e-4, 7.6e-7 */
        int power = (int)floor(log10(a) + 1e-9);
        snprintf(out, size, "%.2ge%d", v * pow(10, -power), power);
    }
}

/* ---- axes ---- */

typedef struct {
    double from, to;
    bool log;
    int at, end; /* in the drawing */
} Scale;

static double place(const Scale *a, double v)
{
    double f = a->log ? log(v / a->from) / log(a->to / a->from) : (v - a->from) / (a->to - a->from);
    return a->at + f * (a->end - a->at);
}

/* 1, 2 or 5 times a power of ten, so that there are about `count` steps. */
static double tick_of(double span, int count)
{
    double raw = span / count, power = pow(10, floor(log10(raw))), f = raw / power;
    static const double nice[] = {1, 2, 5, 10};
    for (int i = 0; i < COUNT(nice); i++)
        if (f <= nice[i] * 1.0001)
            return nice[i] * power;
    return 10 * power;
}

static void draw_tick(FILE *f, const Scale *a, bool upright, double v, const char *unit)
{
    char text[32];
    chart_number(fabs(v) < 1e-12 * fabs(a->to) ? 0 : v, text, sizeof text);
    double at = place(a, v);
    if (upright)
        fprintf(f, "<path class=grid d=\"M%d %.1fH%d\"/><text class=y x=%d y=%.1f>%s%s</text>",
                LEFT, at, RIGHT, LEFT - 6, at + 4, text, unit);
    else
        fprintf(f, "<text class=x x=%.1f y=%d>%s</text>", at, BOTTOM + 18, text);
}

static void draw_axis(FILE *f, const Scale *a, bool upright, const char *unit)
{
    static const double steps[] = {1, 2, 5};
    double decades = a->log ? log10(a->to / a->from) : 0;
    if (!a->log) {
        double tick = tick_of(a->to - a->from, 5);
        for (double k = ceil(a->from / tick - 1e-9); k * tick <= a->to * (1 + 1e-12); k++)
            draw_tick(f, a, upright, k * tick, unit);
        return;
    }
    for (double p = pow(10, floor(log10(a->from))); p <= a->to; p *= 10)
        for (int i = 0; i < (decades < 2.5 ? 3 : 1); i++)
            if (p * steps[i] >= a->from && p * steps[i] <= a->to)
                draw_tick(f, a, upright, p * steps[i], unit);
}

/* ---- series ---- */

static double x_of(const Series *s, long i)
{
    return s->x[i * s->stride];
}

static double y_of(const Series *s, long i)
{
    return s->y[i * s->stride];
}

/* The mean point of up to `stretch` points from i on, those that are numbers; false: there is none.
 */
static bool mean_point(const Series *s, long i, long stretch, double *x, double *y)
{
    long n = 0;
    *x = *y = 0;
    for (long k = i; k < i + stretch && k < s->n; k++)
        if (isfinite(y_of(s, k))) {
            *x += x_of(s, k);
            *y += y_of(s, k);
            n++;
        }
    *x /= (double)n;
    *y /= (double)n;
    return n > 0;
}

static double inside(const Scale *a, double v)
{
    return fmin(fmax(v, a->from), a->to);
}

static void draw_series(FILE *f, const Series *s, const Scale *ax, const Scale *ay,
                        const char *unit)
{
    long stretch = s->dots ? 1 : (s->n + STRETCHES - 1) / STRETCHES;
    double x, y;
    bool any = false;
    fprintf(f, "<path class=\"line c%d%s\" d=\"", s->color, s->dots ? " eval" : "");
    for (long i = 0; i < s->n; i += stretch)
        if (mean_point(s, i, stretch, &x, &y)) {
            fprintf(f, "%c%.1f %.1f", any ? 'L' : 'M', place(ax, x), place(ay, inside(ay, y)));
            any = true;
        }
    fprintf(f, "\"/>");
    for (long i = 0; i < s->n && s->dots; i++) {
        char number[32];
        if (!mean_point(s, i, 1, &x, &y))
            continue;
        chart_number(y, number, sizeof number);
        fprintf(f, "<circle class=\"dot c%d\" cx=%.1f cy=%.1f r=%s><title>", s->color, place(ax, x),
                place(ay, inside(ay, y)), s->n > 60 ? "1.6" : "2.8");
        html_string(f, s->name);
        fprintf(f, ": %s%s at step %.0f</title></circle>", number, unit, x);
    }
}

/* ---- a chart ---- */

static void extend(Scale *a, double v)
{
    if (!isfinite(v))
        return;
    a->from = fmin(a->from, v);
    a->to = fmax(a->to, v);
}

/* Some room above and below; a span of nothing gets one. Numbers a hundred times as large as others
 * make the axis logarithmic. */
static void settle(Scale *a, const Chart *c)
{
    a->log = a->from > 0 && a->to > 100 * a->from && isnan(c->least);
    if (a->log)
        return;
    double span = a->to - a->from, from = a->from, least = c->least, most = c->most;
    if (span <= 1e-9 * fabs(a->to))
        span = a->to != 0 ? fabs(a->to) / 2 : 1;
    if (!(from == least))
        a->from = from - 0.06 * span;
    if (from >= 0 && a->from < 0)
        a->from = 0;
    if (!(a->to == most))
        a->to += 0.06 * span;
}

/* The last number of the last series, which stands beside the title. */
static double newest(const Chart *c)
{
    for (int k = c->n - 1; k >= 0; k--)
        for (long i = c->series[k].n - 1; i >= 0; i--)
            if (isfinite(y_of(&c->series[k], i)))
                return y_of(&c->series[k], i);
    return NAN;
}

void chart_svg(FILE *f, const Chart *c)
{
    Scale x = {INFINITY, -INFINITY, false, LEFT, RIGHT};
    Scale y = {INFINITY, -INFINITY, false, BOTTOM, TOP};
    char last[32];
    for (int k = 0; k < c->n; k++)
        for (long i = 0; i < c->series[k].n; i++)
            if (isfinite(y_of(&c->series[k], i))) {
                extend(&x, x_of(&c->series[k], i));
                extend(&y, y_of(&c->series[k], i));
            }
    if (x.from > x.to)
        return;
    extend(&y, c->least);
    extend(&y, c->most);
    if (x.from == x.to)
        x.to = x.from + 1;
    settle(&y, c);
    fprintf(f, "<figure class=chart><figcaption><b>%s</b>", c->title);
    if (c->n <= 2) { /* of one run */
        chart_number(newest(c), last, sizeof last);
        fprintf(f, "<span>%s%s</span>", last, c->unit);
    }
    fprintf(f, "</figcaption><svg viewBox=\"0 0 %d %d\" role=img aria-label=\"%s\">", WIDTH, HEIGHT,
            c->title);
    draw_axis(f, &y, true, c->unit);
    draw_axis(f, &x, false, "");
    for (int k = 0; k < c->n; k++)
        draw_series(f, &c->series[k], &x, &y, c->unit);
    fprintf(f, "</svg></figure>\n");
}
