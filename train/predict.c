/* predict.c - classes of pictures that are named, by the thousand: what eval does without labels.
 *
 * Pictures are decoded ahead (reader.c) while a batch is computed; where the device computes by
 * itself, the results of the batch before are printed meanwhile. Results are all that goes to
 * standard output, in the order of the pictures. One that cannot be read is a line that says so,
 * and the program's status at the end; the others are predicted all the same.
 *
 * Read in this order: names of classes, formats, features, attention, batches, the command.
 */
#include "train/predict.h"

#include "datasets/classes.h"
#include "image/draw.h"
#include "results/attention.h"
#include "results/metrics.h"
#include "train/flip.h"
#include "train/reader.h"
#include "util/files.h"
#include "util/npy.h"
#include "util/machine.h"
#include "util/report.h"
#include "util/text.h"
#include "weights/hub.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A batch: `n` pictures, of which `good` could be read; the pixels of these stand side by side. */
typedef struct {
    char **paths;    /* [most] */
    Error *troubles; /* [most] */
    uint8_t *pixels; /* [good, image_h, image_w, 3] */
    int n, good;
} Pictures;

/* What one predict is made of. */
typedef struct {
    Session *s;
    char **names; /* [K] of the classes, each may be NULL */
    double *p;    /* [K] */
    int *best;    /* [topk] */
    int topk;
    Pictures batch[2]; /* batch[turn] is being filled, the other is computed or printed */
    int turn, most;
    real *logits; /* [good, K] */
    bool at_once; /* a batch is printed before the next is computed */
    long done, failed;
    /* --features, [rows, D] */
    FileWriter *features;
    FILE *rows;
    char *rows_text;
    size_t rows_bytes;
    real *values;
    /* --attention */
    Sheet sheet;
    int drawn, wanted, heads;
} Predict;

/* ---- names of classes ---- */

/* A line of --classes is `id` or `id name`, and then the name is shown. */
static void show_names(Names *lines)
{
    bool ids = classes_have_ids(lines);
    for (int i = 0; ids && i < lines->n; i++) {
        char *line = lines->at[i], *name = line + strcspn(line, " \t");
        name += strspn(name, " \t");
        if (*name)
            memmove(line, name, strlen(name) + 1);
    }
}

/* --classes, else the classes.txt of the run the weights come from, else what the config.json
 * beside them names, else none: [K], each may be NULL. */
static char **class_names(const Session *s, int K)
{
    Error e = {"", ""};
    Names names = {0};
    char *path = s->run_dir ? xasprintf("%s/classes.txt", s->run_dir) : NULL;
    if (*s->o.classes) {
        free(path);
        path = xstrdup(s->o.classes);
        setup_check(classes_read(path, &names, &e), &e);
        show_names(&names);
    } else if (path && path_exists(path)) { /* names of folders, whatever they look like */
        char *text = read_text(path, 64 << 20, &e), *rest = text, *line;
        setup_check(text != NULL, &e);
        while ((line = strsep(&rest, "\n")))
            if (*line)
                names_add(&names, line);
        free(text);
    } else {
        bool named = !s->run_dir && hub_labels(s->weights, K, &names, NULL);
        free(path);
        return named ? names.at : xcalloc((size_t)K, sizeof *names.at);
    }
    if (names.n != K)
        die("give --classes the file with the model's classes, in order",
            "%s names %s, the model has %d", path, amount(names.n, "class").s, K);
    free(path);
    return names.at;
}

/* ---- formats ---- */

/* The --topk most likely classes of logits z [K], the most likely first; b->p has how likely. */
static void rank_classes(Predict *b, const real *z)
{
    const Config *c = &b->s->config;
    probabilities(z, c->classes, c->loss == LOSS_SIGMOID, b->p);
    int found = 0;
    for (int k = 0; k < c->classes; k++) {
        if (!isfinite(b->p[k]))
            die("use a checkpoint from before training diverged",
                "the model's outputs are not finite");
        int at = found;
        while (at > 0 && b->p[b->best[at - 1]] < b->p[k])
            at--;
        if (at == b->topk)
            continue;
        found += found < b->topk;
        memmove(b->best + at + 1, b->best + at, (size_t)(found - 1 - at) * sizeof *b->best);
        b->best[at] = k;
    }
}

static void say_error(const Predict *b, const Error *e)
{
    fflush(b->s->results);
    if (b->s->world.rank == 0)
        fprintf(stderr, "error: %s\nhint: %s\n", e->what, e->hint);
}

static void text_picture(const Predict *b, FILE *f, const char *path)
{
    fprintf(f, "%s\n", path);
    for (int i = 0; i < b->topk; i++) {
        const char *name = b->names[b->best[i]];
        fprintf(f, "  %6.2f%%  %s%s%d\n", 100 * b->p[b->best[i]], name ? name : "class",
                name ? "  class " : " ", b->best[i]);
    }
}

/* Results alone are on standard output, for people and pipes: trouble is told elsewhere. */
static void text_trouble(const Predict *b, FILE *f, const char *path, const Error *e)
{
    (void)f, (void)path;
    say_error(b, e);
}

static void csv_header(FILE *f)
{
    fprintf(f, "file,rank,class,name,probability,error\n");
}

static void csv_picture(const Predict *b, FILE *f, const char *path)
{
    for (int i = 0; i < b->topk; i++) {
        const char *name = b->names[b->best[i]];
        csv_string(f, path);
        fprintf(f, ",%d,%d,", i + 1, b->best[i]);
        csv_string(f, name ? name : "");
        fprintf(f, ",%.6g,\n", b->p[b->best[i]]);
    }
}

static void csv_trouble(const Predict *b, FILE *f, const char *path, const Error *e)
{
    csv_string(f, path);
    fprintf(f, ",,,,,");
    csv_string(f, e->what);
    fputc('\n', f);
    say_error(b, e);
}

static void jsonl_picture(const Predict *b, FILE *f, const char *path)
{
    fprintf(f, "{\"file\": ");
    json_string(f, path);
    fprintf(f, ", \"predictions\": [");
    for (int i = 0; i < b->topk; i++) {
        const char *name = b->names[b->best[i]];
        fprintf(f, "%s{\"class\": %d, ", i ? ", " : "", b->best[i]);
        if (name) {
            fprintf(f, "\"name\": ");
            json_string(f, name);
            fprintf(f, ", ");
        }
        fprintf(f, "\"probability\": %.6g}", b->p[b->best[i]]);
    }
    fprintf(f, "]}\n");
}

static void jsonl_trouble(const Predict *b, FILE *f, const char *path, const Error *e)
{
    fprintf(f, "{\"file\": ");
    json_string(f, path);
    fprintf(f, ", \"error\": ");
    json_string(f, e->what);
    fprintf(f, "}\n");
    say_error(b, e);
}

static const struct {
    void (*header)(FILE *f);
    void (*picture)(const Predict *b, FILE *f, const char *path);
    void (*trouble)(const Predict *b, FILE *f, const char *path, const Error *e);
} formats[] = {{NULL, text_picture, text_trouble},
               {csv_header, csv_picture, csv_trouble},
               {NULL, jsonl_picture, jsonl_trouble}}; /* by --format */

/* ---- features ---- */

static int feature_count(const Config *c)
{
    return c->representation ? c->representation : vit_features(c);
}

static void begin_features(Predict *b)
{
    const char *path = b->s->o.features, *end = strrchr(path, '.');
    char header[NPY_HEADER];
    Error e = {"", ""};
    if (!*path || b->s->world.rank > 0)
        return;
    if (!end || strcmp(end, ".npy") != 0)
        die_usage("give it a name such as features.npy; the names of the images go to features.txt",
                  "--features %s does not end in .npy", path);
    npy_header(header, "<f4", (const long[]){0, feature_count(&b->s->config)}, 2);
    b->features = file_create(path, &e);
    setup_check(b->features && file_write(b->features, header, sizeof header, &e), &e);
    b->rows = open_memstream(&b->rows_text, &b->rows_bytes);
    b->values = xcalloc((size_t)b->most * (size_t)feature_count(&b->s->config), sizeof *b->values);
    if (!b->rows)
        die("free some memory", "out of memory");
}

/* What the head has read of the batch: [good, D]. */
static void add_features(Predict *b, const Pictures *batch)
{
    const Model *m = b->s->m;
    int D = feature_count(&m->config);
    size_t n = (size_t)batch->good * (size_t)D;
    Error e = {"", ""};
    if (!b->features)
        return;
    vit_read_act(m, m->config.representation ? m->now->rep : m->now->pooled, 0, (long)n, b->values);
    float *row = xcalloc(n, sizeof *row);
    for (size_t i = 0; i < n; i++)
        row[i] = (float)b->values[i];
    setup_check(file_write(b->features, row, n * sizeof *row, &e), &e);
    free(row);
    for (int i = 0; i < batch->n; i++)
        if (!*batch->troubles[i].what)
            fprintf(b->rows, "%s\n", batch->paths[i]);
}

static void end_features(Predict *b)
{
    const char *path = b->s->o.features;
    char header[NPY_HEADER];
    Error e = {"", ""};
    if (!b->features)
        return;
    int D = feature_count(&b->s->config);
    long rows = b->done - b->failed;
    npy_header(header, "<f4", (const long[]){rows, D}, 2); /* how many is known at the end */
    bool ok = file_sync(b->features, &e) &&
              file_write_at(b->features, header, sizeof header, 0, &e) &&
              file_publish(b->features, false, &e);
    setup_check(ok, &e);
    fclose(b->rows);
    char *names = xasprintf("%.*s.txt", (int)strlen(path) - 4, path);
    setup_check(save_file(names, b->rows_text, b->rows_bytes, false, &e), &e);
    printf("features  %s: %ld x %d numbers; %s: the images' names\n", path, rows, D, names);
    free(names);
    free(b->rows_text);
    free(b->values);
}

/* ---- attention ---- */

enum { ATTENTION_MOST = 16, HEADS_MOST = 16 };

/* A row of tiles for each picture: as it is, the rollout, the last block's heads. */
static void begin_attention(Predict *b)
{
    const Config *c = &b->s->config;
    if (!*b->s->o.attention || b->s->world.rank > 0)
        return;
    if (b->s->o.tta)
        die_usage("leave --tta out", "--attention is drawn for the picture, not its mirror image");
    if (b->s->split.tp.ranks > 1)
        die_usage("leave --tp out", "--attention: each of %d ranks has some of the heads",
                  b->s->split.tp.ranks);
    b->heads = c->heads < HEADS_MOST ? c->heads : HEADS_MOST;
    b->wanted = ATTENTION_MOST;
}

static void draw_map(const Predict *b, int tile, const uint8_t *rgb, const float *map,
                     const AttentionMaps *a, const char *label)
{
    const Config *c = &b->s->config;
    size_t bytes = vit_image_bytes(c, true);
    char lines[1][256];
    uint8_t *copy = memcpy(xmalloc(bytes), rgb, bytes);
    if (map)
        draw_heat(copy, c->image_w, c->image_h, map, a->rows, a->columns);
    snprintf(lines[0], sizeof lines[0], "%s", label);
    sheet_tile(&b->sheet, tile, copy, lines);
    free(copy);
}

/* How many pictures can be read is known at the end: the sheet is made for as many as there may be,
 * and cut then. */
static void draw_attention(Predict *b, const Pictures *batch, int i, const char *path)
{
    const Config *c = &b->s->config;
    int columns = 2 + b->heads, Np = vit_patches(c);
    if (b->drawn >= b->wanted)
        return;
    if (!b->sheet.canvas.rgb)
        b->sheet = sheet_new(c->image_w, c->image_h, 1, b->wanted * columns, columns,
                             "name fewer pictures, or lower --image-size");
    AttentionMaps a;
    attention_maps(b->s->m, i, &a);
    const char *slash = strrchr(path, '/'), *name = b->names[b->best[0]];
    char label[256];
    const uint8_t *rgb = batch->pixels + (size_t)i * vit_image_bytes(c, true);
    int tile = b->drawn++ * columns;
    snprintf(label, sizeof label, "%s", slash ? slash + 1 : path);
    draw_map(b, tile, rgb, NULL, &a, label);
    snprintf(label, sizeof label, "%s %.0f%%", name ? name : "rollout", 100 * b->p[b->best[0]]);
    draw_map(b, tile + 1, rgb, a.rollout, &a, label);
    for (int h = 0; h < b->heads; h++) {
        snprintf(label, sizeof label, "head %d", h + 1);
        draw_map(b, tile + 2 + h, rgb, a.head + (size_t)h * (size_t)Np, &a, label);
    }
    attention_free(&a);
}

static void end_attention(Predict *b)
{
    Sheet *s = &b->sheet;
    Error e = {"", ""};
    if (!b->drawn)
        return;
    s->canvas.h -= s->tile_h * (b->wanted - b->drawn);
    sheet_title(s, "picture, attention rollout, heads of the last block");
    setup_check(canvas_write(&s->canvas, b->s->o.attention, &e), &e);
    printf("attention %s: %d of %ld pictures%s\n", b->s->o.attention, b->drawn, b->done - b->failed,
           b->heads < b->s->config.heads ? ", the first 16 heads" : "");
    free(s->canvas.rgb);
}

/* ---- batches ---- */

/* What the model says of the batch that was computed last. */
static void take_outputs(Predict *b, const Pictures *batch)
{
    Session *s = b->s;
    long n = (long)batch->good * s->config.classes;
    if (!batch->good)
        return;
    vit_read_act(s->m, s->m->now->logits, 0, n, b->logits);
    add_features(b, batch);
    if (s->o.tta)
        flip_logits(s, batch->good, batch->pixels, NULL, b->logits);
}

/* Prints the batch, and empties it. */
static void print_batch(Predict *b, Pictures *batch)
{
    Session *s = b->s;
    size_t K = (size_t)s->config.classes;
    for (int i = 0, at = 0; i < batch->n; i++) {
        if (*batch->troubles[i].what) {
            formats[s->o.format].trouble(b, s->results, batch->paths[i], &batch->troubles[i]);
            b->failed++;
        } else {
            rank_classes(b, b->logits + (size_t)at * K);
            formats[s->o.format].picture(b, s->results, batch->paths[i]);
            draw_attention(b, batch, at++, batch->paths[i]);
        }
        free(batch->paths[i]);
    }
    fflush(s->results);
    b->done += batch->n;
    batch->n = batch->good = 0;
}

/* Computes the batch that was filled, and prints the one before it meanwhile. */
static void predict_batch(Predict *b)
{
    Model *m = b->s->m;
    Pictures *filled = &b->batch[b->turn], *before = &b->batch[!b->turn];
    if (filled->good)
        vit_set_batch(m, filled->good, filled->pixels, true, NULL, NULL);
    take_outputs(b, before);
    if (filled->good)
        vit_evaluate(m);
    print_batch(b, before);
    if (b->at_once) {
        take_outputs(b, filled);
        print_batch(b, filled);
    }
    b->turn = !b->turn;
}

static void add_picture(Predict *b, const Picture *p)
{
    size_t bytes = vit_image_bytes(&b->s->config, true);
    Pictures *batch = &b->batch[b->turn];
    batch->paths[batch->n] = xstrdup(p->path);
    batch->troubles[batch->n++] = p->trouble;
    if (!*p->trouble.what)
        memcpy(batch->pixels + (size_t)batch->good++ * bytes, p->pixels, bytes);
    if (batch->n == b->most)
        predict_batch(b);
}

/* All that there is. */
static void predict_rest(Predict *b)
{
    predict_batch(b);
    predict_batch(b);
}

/* A list may come from a program that names pictures one by one and waits for the answer: what it
 * has named is computed when it pauses. Several ranks must agree on what is in a batch. */
static const Picture *next_picture(Predict *b, Reader *r)
{
    const double pause = 0.1;
    if (b->s->world.ranks == 1 && !reader_soon(r, pause))
        predict_rest(b);
    return reader_next(r);
}

/* ---- the command ---- */

/* No more at a time than there are, where that is known. */
static void choose_batch(Session *s)
{
    bool files = true;
    for (int i = 0; i < s->o.n_files; i++) {
        bool list = strcmp(s->o.files[i], "-") == 0;
        if (list && s->world.ranks > 1)
            die_usage("name a folder, or use one process",
                      "a list on standard input is for one rank, there are %d", s->world.ranks);
        files = files && !list && !is_dir(s->o.files[i]);
    }
    if (!s->asked_batch)
        s->o.batch_size = s->be->asynchronous ? 256 : 32;
    if (files && s->o.batch_size > s->o.n_files)
        s->o.batch_size = s->o.n_files;
    s->o.micro_batch = 0; /* a run's was another matter */
}

static void predict_free(Predict *b)
{
    for (int k = 0; k < b->s->config.classes; k++)
        free(b->names[k]);
    for (int i = 0; i < 2; i++) {
        free(b->batch[i].paths);
        free(b->batch[i].troubles);
        free(b->batch[i].pixels);
    }
    free(b->names);
    free(b->p);
    free(b->best);
    free(b->logits);
}

int command_predict(Session *s)
{
    const Config *c = &s->config;
    if (s->split.pp.ranks > 1)
        die_usage("leave --pp out", "the first stage of %d has no predictions to print",
                  s->split.pp.ranks);
    choose_batch(s);
    setup_model(s, false);
    size_t K = (size_t)c->classes, most = (size_t)s->micro;
    Predict b = {.s = s,
                 .names = class_names(s, c->classes),
                 .p = xcalloc(K, sizeof *b.p),
                 .topk = s->o.topk < c->classes ? (int)s->o.topk : c->classes,
                 .logits = xcalloc(most * K, sizeof *b.logits),
                 .most = s->micro,
                 .at_once = !s->be->asynchronous || s->o.tta || *s->o.attention};
    for (int i = 0; i < 2; i++)
        b.batch[i] = (Pictures){.paths = xcalloc(most, sizeof *b.batch[i].paths),
                                .troubles = xcalloc(most, sizeof *b.batch[i].troubles),
                                .pixels = xmalloc(most * vit_image_bytes(c, true))};
    b.best = xcalloc((size_t)b.topk + 1, sizeof *b.best);
    begin_features(&b);
    begin_attention(&b);
    if (formats[s->o.format].header)
        formats[s->o.format].header(s->results);
    int threads = s->o.workers ? (int)s->o.workers : machine_cores();
    threads = threads < 64 ? threads : 64;
    Reader *r = reader_open(s->o.files, s->o.n_files, &s->images, threads, s->micro + threads);
    double from = now();
    for (const Picture *p; (p = next_picture(&b, r));)
        add_picture(&b, p);
    predict_rest(&b);
    double seconds = now() - from;
    long passed = reader_passed(r);
    reader_close(r);
    end_features(&b);
    end_attention(&b);
    if (b.done > 1)
        printf("%s in %.1f s, %.1f images/s\n", amount((double)b.done, "image").s, seconds,
               (double)b.done / seconds);
    if (passed)
        printf("note: %s in the folders %s\n", amount((double)passed, "file").s,
               passed == 1 ? "is no picture" : "are no pictures");
    if (!b.done)
        die("name pictures, folders of some, or pipe their names to `predict RUN -`",
            "there were no pictures");
    if (b.failed && s->world.rank == 0)
        fprintf(stderr, "%ld of %s could not be read\n", b.failed,
                amount((double)b.done, "image").s);
    predict_free(&b);
    return b.failed ? 1 : 0;
}
