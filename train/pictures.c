/* pictures.c - pictures of an evaluation for its report. See pictures.h.
 *
 * Read in this order: base64, one picture, attention, the sheet, the file.
 */
#include "train/pictures.h"

#include "image/decoder.h"
#include "image/draw.h"
#include "image/write.h"
#include "results/attention.h"
#include "train/parallel.h"
#include "train/results.h"
#include "util/files.h"
#include "util/text.h"
#include "util/tfevents.h"

#include <stdlib.h>
#include <string.h>

enum { WRONG = 12, RIGHT = 6, QUALITY = 85 };
/* Multiplications that attention may take in all: about half a second. */
static const double cheap = 2e9;

/* ---- base64 ---- */

static void base64(FILE *f, const uint8_t *s, size_t n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < n; i += 3) {
        unsigned left = n - i < 3 ? (unsigned)(n - i) : 3;
        unsigned v = (unsigned)s[i] << 16;
        if (left > 1)
            v |= (unsigned)s[i + 1] << 8;
        if (left > 2)
            v |= s[i + 2];
        for (unsigned k = 0; k < 4; k++)
            fputc(k <= left ? digits[v >> (18 - 6 * k) & 63] : '=', f);
    }
}

/* ---- one picture ---- */

/* Those that are shown: n images, of which the first `wrong` are wrong. */
typedef struct {
    Session *s;
    Dataset *d;
    const Evaluation *v;
    long at[WRONG + RIGHT];
    int n, wrong;
    uint8_t *pixels; /* [n, image_h, image_w, 3] */
} Shown;

static uint8_t *pixels_of(const Shown *p, int i)
{
    return p->pixels + (size_t)i * vit_image_bytes(&p->s->config, true);
}

static bool write_jpeg(FILE *f, const Config *c, const uint8_t *rgb, Error *e)
{
    uint8_t *bytes;
    size_t n;
    if (!image_encode_jpeg(rgb, c->image_w, c->image_h, QUALITY, &bytes, &n, e))
        return false;
    fputc('"', f);
    base64(f, bytes, n);
    fputc('"', f);
    free(bytes);
    return true;
}

/* ---- attention ---- */

/* For as many pictures as that is cheap for; 0 where the model has not kept what it takes. Ranks
 * that compute together do not do so for this. */
static int with_attention(const Shown *p)
{
    Session *s = p->s;
    double n = cheap / attention_work(&s->config);
    int most = p->n < s->micro ? p->n : s->micro;
    if (parallel_together(s) || !attention_kept(s->m) || n < 1 || p->n == 0)
        return 0;
    most = n < most ? (int)n : most;
    vit_set_batch(s->m, most, p->pixels, true, NULL, NULL);
    vit_evaluate(s->m);
    return most;
}

static bool write_attention(FILE *f, const Shown *p, int i, Error *e)
{
    const Config *c = &p->s->config;
    size_t bytes = vit_image_bytes(c, true);
    uint8_t *copy = memcpy(xmalloc(bytes), pixels_of(p, i), bytes);
    AttentionMaps a;
    attention_maps(p->s->m, i, &a);
    draw_heat(copy, c->image_w, c->image_h, a.rollout, a.rows, a.columns);
    attention_free(&a);
    fprintf(f, ",\n   \"attention\": ");
    bool ok = write_jpeg(f, c, copy, e);
    free(copy);
    return ok;
}

/* ---- the sheet ---- */

static void send_sheet(const Shown *p)
{
    const Session *s = p->s;
    Error e;
    uint8_t *bytes;
    size_t n;
    bool large = s->config.image_w > 2048 || s->config.image_h > 2048; /* for a dashboard */
    if (!p->wrong || large || !events_are_open())
        return;
    Sheet sheet = sheet_new(s->config.image_w, s->config.image_h, 2, p->wrong, 4, NULL);
    sheet_title(&sheet, "most wrong");
    for (int i = 0; i < p->wrong; i++) {
        const Outcome *o = &p->v->outcomes[p->at[i]];
        char lines[2][256];
        snprintf(lines[0], 256, "%s", class_title(s, p->d, (int)o->label));
        snprintf(lines[1], 256, "%.0f%% %s", 100 * o->probability,
                 class_title(s, p->d, (int)o->prediction));
        sheet_tile(&sheet, i, pixels_of(p, i), lines);
    }
    const Canvas *c = &sheet.canvas;
    if (image_encode_jpeg(c->rgb, c->w, c->h, QUALITY, &bytes, &n, &e)) {
        events_jpeg((long)s->state.step, "eval/mistakes", bytes, n, c->w, c->h);
        free(bytes);
    }
    free(c->rgb);
}

/* ---- the file ---- */

static bool write_picture(FILE *f, const Shown *p, int i, bool attention, Error *e)
{
    const Outcome *o = &p->v->outcomes[p->at[i]];
    char *path = data_sample_path(p->d, p->at[i]);
    fprintf(f, "%s\n  {\"file\": ", i ? "," : "");
    json_string(f, path);
    fprintf(f, ", \"label\": ");
    json_string(f, class_title(p->s, p->d, (int)o->label));
    fprintf(f, ", \"prediction\": ");
    json_string(f, class_title(p->s, p->d, (int)o->prediction));
    fprintf(f, ", \"probability\": %.6g, \"truth\": %.6g,\n   \"jpeg\": ", o->probability,
            o->truth);
    bool ok = write_jpeg(f, &p->s->config, pixels_of(p, i), e) &&
              (!attention || write_attention(f, p, i, e));
    fputc('}', f);
    free(path);
    return ok;
}

static void choose(Shown *p)
{
    const Evaluation *v = p->v;
    long images = v->metrics.images;
    p->wrong = (int)metrics_worst(v->outcomes, images, WRONG, p->at);
    p->n = p->wrong + (int)metrics_right(v->outcomes, images, RIGHT, p->at + p->wrong);
    p->pixels = xmalloc((size_t)(p->n + 1) * vit_image_bytes(&p->s->config, true));
    Decoder *decoder = decoder_new();
    for (int i = 0; i < p->n; i++)
        data_sample(p->d, decoder, p->at[i], 0, 0, pixels_of(p, i));
    decoder_free(decoder);
}

bool pictures_write(Session *s, Dataset *d, const Evaluation *v, const char *dir, Error *e)
{
    Shown p = {.s = s, .d = d, .v = v};
    char *text = NULL, *path = xasprintf("%s/pictures.json", dir);
    size_t n = 0;
    choose(&p);
    FILE *f = open_memstream(&text, &n);
    if (!f)
        die("free some memory", "out of memory: cannot write %s", path);
    int attention = with_attention(&p);
    bool ok = true;
    fprintf(f, "{\"step\": %lu, \"width\": %d, \"height\": %d, \"pictures\": [",
            (unsigned long)s->state.step, s->config.image_w, s->config.image_h);
    for (int i = 0; ok && i < p.n; i++)
        ok = write_picture(f, &p, i, i < attention, e);
    fprintf(f, "]}\n");
    fclose(f);
    ok = ok && save_file(path, text, n, false, e);
    send_sheet(&p);
    free(text);
    free(path);
    free(p.pixels);
    return ok;
}
