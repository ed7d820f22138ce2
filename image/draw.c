/* draw.c - see draw.h. Text is stb_easy_font's: rectangles, no file of a font.
 *
 * Read in this order: text, images, sheets, heat, files.
 */
#include "image/draw.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wsign-compare"
#include <stb/stb_easy_font.h>
#pragma GCC diagnostic pop

#include "image/write.h"
#include "util/text.h"

/* ---- text ---- */

enum { GAP = 12, SCALE = 2, BIG = 65535, PAPER = 236, INK = 20, SECOND_INK = 100 };

static void fill(const Canvas *c, int x0, int y0, int x1, int y1, int grey)
{
    for (int y = y0 < 0 ? 0 : y0; y < y1 && y < c->h; y++)
        for (int x = x0 < 0 ? 0 : x0; x < x1 && x < c->w; x++)
            memset(c->rgb + ((size_t)y * (size_t)c->w + (size_t)x) * 3, grey, 3);
}

/* The UTF-8 character of n bytes at s. */
static unsigned code_of(const uint8_t *s, int n)
{
    unsigned c = n == 1 ? s[0] : s[0] & (0xffu >> (n + 1));
    for (int i = 1; i < n; i++)
        c = c << 6 | (s[i] & 0x3f);
    return c;
}

/* What the font has in place of it: U+00C0 to U+017F are Latin letters with marks. */
static void spell(unsigned code, char out[16])
{
    static const struct {
        unsigned code;
        const char *as;
    } pairs[] = {{0xc4, "Ae"}, {0xd6, "Oe"},  {0xdc, "Ue"}, {0xe4, "ae"},
                 {0xf6, "oe"}, {0xfc, "ue"},  {0xdf, "ss"}, {0xc6, "Ae"},
                 {0xe6, "ae"}, {0x152, "Oe"}, {0x153, "oe"}};
    static const char latin[] = "AAAAAAACEEEEIIIIDNOOOOOxOUUUUYTsaaaaaaaceeeeiiiidnooooo/ouuuuyty"
                                "AaAaAaCcCcCcCcDdDdEeEeEeEeEeGgGgGgGgHhHhIiIiIiIiIiIiJjKkkLlLlLlL"
                                "lLlNnNnNnnNnOoOoOoOoRrRrRrSsSsSsSsTtTtTtUuUuUuUuUuUuWwYyYZzZzZzs";
    bool combining = code >= 0x300 && code < 0x370; /* a mark of the letter before */
    bool ascii = code >= 32 && code < 127, letter = code >= 0xc0 && code < 0x180;
    if (ascii || letter)
        snprintf(out, 16, "%c", ascii ? (int)code : latin[code - 0xc0]);
    else if (combining)
        *out = 0;
    else
        snprintf(out, 16, "U+%04X ", code);
    for (int i = 0; i < COUNT(pairs); i++)
        if (pairs[i].code == code)
            snprintf(out, 16, "%s", pairs[i].as);
}

/* A character is about 6 x 9 units. The font has ASCII: other Latin letters are spelled in it, of
 * other scripts it is said which character it would be, and what is no UTF-8 is a '?'. */
static void plain(const char *text, char *out, size_t size)
{
    const uint8_t *s = (const uint8_t *)text;
    size_t n = 0;
    out[0] = 0;
    while (*s && n + 16 < size) {
        int bytes = utf8_bytes(s);
        char as[16] = "?";
        if (bytes)
            spell(code_of(s, bytes), as);
        n += (size_t)snprintf(out + n, size - n, "%s", as);
        s += bytes ? bytes : 1;
    }
}

/* One line, cut off with dots where it is wider than `width` pixels. stb gives rectangles, four
 * corners of (float x, y, z, colour) each. */
static void write_line(const Canvas *c, int x, int y, int width, int grey, const char *text)
{
    static float quads[512 * 70][4];
    char line[256], cut[256 + 4];
    plain(text, line, sizeof line);
    snprintf(cut, sizeof cut, "%s", line);
    for (size_t n = strlen(line); n > 0 && stb_easy_font_width(cut) * SCALE > width;)
        snprintf(cut, sizeof cut, "%.*s..", (int)--n, line);
    int n = stb_easy_font_print(0, 0, cut, NULL, quads, sizeof quads);
    for (int i = 0; i < n; i++) {
        const float *from = quads[4 * i], *to = quads[4 * i + 2];
        fill(c, x + SCALE * (int)from[0], y + SCALE * (int)from[1], x + SCALE * (int)to[0],
             y + SCALE * (int)to[1], grey);
    }
}

/* Pixels of small images become squares of `zoom` pixels. */
static void draw_image(const Canvas *c, int x0, int y0, int zoom, const uint8_t *rgb, int w, int h)
{
    for (int y = 0; y < h * zoom; y++)
        for (int x = 0; x < w * zoom; x++)
            memcpy(c->rgb + ((size_t)(y0 + y) * (size_t)c->w + (size_t)(x0 + x)) * 3,
                   rgb + ((size_t)(y / zoom) * (size_t)w + (size_t)(x / zoom)) * 3, 3);
}

Sheet sheet_new(int w, int h, int lines, int count, int columns, const char *hint)
{
    Sheet s = {.w = w, .h = h, .lines = lines, .columns = columns < count ? columns : count};
    s.zoom = w >= 150 ? 1 : (159 + w) / w;
    s.tile_w = w * s.zoom + GAP;
    s.tile_h = h * s.zoom + 6 + lines * 11 * SCALE + GAP;
    s.top = 2 * GAP + 20;
    long width = GAP + (long)s.tile_w * s.columns;
    long height = s.top + (long)s.tile_h * ((count + s.columns - 1) / s.columns) + GAP;
    if (width > BIG || height > BIG || width * height > 500000000)
        die_usage(hint, "a sheet of %ld x %ld pixels", width, height);
    s.canvas = (Canvas){.w = (int)width, .h = (int)height};
    size_t bytes = (size_t)width * (size_t)height * 3;
    s.canvas.rgb = memset(xmalloc(bytes), PAPER, bytes);
    return s;
}

void sheet_title(const Sheet *s, const char *title)
{
    write_line(&s->canvas, GAP, GAP, s->canvas.w - 2 * GAP, INK, title);
}

void sheet_tile(const Sheet *s, long tile, const uint8_t *rgb, char lines[][256])
{
    int x = GAP + (int)tile % s->columns * s->tile_w;
    int y = s->top + (int)tile / s->columns * s->tile_h;
    draw_image(&s->canvas, x, y, s->zoom, rgb, s->w, s->h);
    for (int k = 0; k < s->lines; k++)
        write_line(&s->canvas, x, y + s->h * s->zoom + 6 + k * 11 * SCALE, s->tile_w - GAP,
                   k ? SECOND_INK : INK, lines[k]);
}

/* ---- heat ---- */

/* Bilinear between the centres of the map's cells. */
static double sample(const float *map, int rows, int columns, double y, double x)
{
    y = fmin(fmax(y, 0), rows - 1);
    x = fmin(fmax(x, 0), columns - 1);
    int y0 = (int)y, x0 = (int)x;
    int y1 = y0 + (y0 < rows - 1), x1 = x0 + (x0 < columns - 1);
    double fy = y - y0, fx = x - x0;
    double top = (1 - fx) * (double)map[y0 * columns + x0] + fx * (double)map[y0 * columns + x1];
    double low = (1 - fx) * (double)map[y1 * columns + x0] + fx * (double)map[y1 * columns + x1];
    return (1 - fy) * top + fy * low;
}

/* Dark violet, red, orange, light yellow, evenly. */
static void warmth(double a, double rgb[3])
{
    static const double stops[5][3] = {
        {20, 11, 52}, {114, 31, 129}, {211, 67, 94}, {251, 140, 60}, {252, 245, 180}};
    int k = a < 1 ? (int)(4 * a) : 3;
    for (int c = 0; c < 3; c++)
        rgb[c] = stops[k][c] + (4 * a - k) * (stops[k + 1][c] - stops[k][c]);
}

void draw_heat(uint8_t *rgb, int w, int h, const float *map, int rows, int columns)
{
    double most = (double)map[0], least = most;
    for (int i = 1; i < rows * columns; i++) {
        most = fmax(most, (double)map[i]);
        least = fmin(least, (double)map[i]);
    }
    double span = fmax(most - least, 1e-30);
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++, rgb += 3) {
            double heat[3], grey = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2];
            double a = sample(map, rows, columns, (y + 0.5) * rows / h - 0.5,
                              (x + 0.5) * columns / w - 0.5);
            a = (a - least) / span;
            warmth(a, heat);
            double cover = 0.30 + 0.35 * a;
            for (int c = 0; c < 3; c++)
                rgb[c] =
                    (uint8_t)lround((1 - cover) * (0.7 * grey + 0.3 * rgb[c]) + cover * heat[c]);
        }
}

/* ---- files ---- */

bool canvas_write(const Canvas *c, const char *path, Error *e)
{
    const char *end = strrchr(path, '.');
    if (end && (strcasecmp(end, ".jpg") == 0 || strcasecmp(end, ".jpeg") == 0))
        return image_write_jpeg(path, c->rgb, c->w, c->h, 90, e);
    if (!end || strcasecmp(end, ".png") != 0)
        warn("%s: written as PNG; .jpg makes it a JPEG", path);
    return image_write_png(path, c->rgb, c->w, c->h, e);
}
