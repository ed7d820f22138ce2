/* show.c - ./vit show: a contact sheet of the images as the model will see them, with their labels;
 * or these images as numpy's array, for another program to train on.
 *
 * The images come from the loader in the order of training, and go through the CPU backend's
 * patchify with the Augments of their steps, so that mixing, erasing and colour twist are there
 * too; then the normalisation is undone. Flags are those of the training program, from the same
 * table.
 *
 * Read in this order: flags, images, labels, an array, the command.
 */
#include "tools/tools.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "image/decoder.h"
#include "image/draw.h"
#include "train/effects.h"
#include "train/results.h"
#include "train/setup.h"
#include "util/files.h"
#include "util/npy.h"
#include "util/report.h"
#include "util/text.h"

/* ---- flags ---- */

static struct {
    long count, columns, epoch;
    bool val, same;
} o = {.count = 32, .columns = 8};

static const Flag flags[] = {
    {"count", "N", "images on the sheet [32]", FLAG_NUMBER, &o.count, 1, 10000},
    {"columns", "N", "images in a row [8]", FLAG_NUMBER, &o.columns, 1, 1000},
    {"epoch", "N", "begin with this epoch's first image [0]", FLAG_NUMBER, &o.epoch, 0, 1000000},
    {"val", "", "validation images from all over the set, as evaluation sees them", FLAG_SWITCH,
     &o.val, 0, 0},
    {"same", "", "the first image again and again, in the epochs that follow", FLAG_SWITCH, &o.same,
     0, 0},
};

/* ---- images ---- */

/* What makes of loaded images what the model sees: one group of images that mix among themselves
 * at a time. */
typedef struct {
    Session *s;
    Mix mix;
    int group;
    Augment *augment;         /* [group]; NULL: nothing is done to the images */
    dev *state, *sums;        /* of the backend */
    dev *images, *augment_in; /* its inputs */
    dev *patches;             /* [group * Np, 3*P*P] */
    uint8_t *seen;            /* [group, H, W, 3] */
    Sheet sheet;              /* where they are drawn; or */
    FileWriter *array; /* an array [count, H, W, 3] of bytes, and of its labels a line each: */
    FILE *labels;      /* "3 bees" */
    char *labels_text;
    size_t labels_bytes;
} Viewer;

static dev *device_room(const Session *s, size_t bytes)
{
    dev *p = s->be->alloc(bytes);
    if (!p)
        die("lower --mix-group or --image-size", "out of memory: cannot allocate %zu bytes", bytes);
    return p;
}

static Viewer viewer_new(Session *s, bool train)
{
    enum { SUMS = 1 << 16 };
    Options *p = &s->o;
    Viewer v = {.s = s, .group = 1};
    size_t bytes = vit_image_bytes(&s->config, true);
    if (train) {
        if (!p->mix_group)
            p->mix_group = mix_auto_group(p->batch_size);
        v.mix = mix_of(p, &s->config);
        v.group = v.mix.group;
        if (p->batch_size % v.group)
            die_usage("give --batch-size and --mix-group numbers of which one divides the other",
                      "groups of %d images do not divide a batch of %ld", v.group, p->batch_size);
        if (mix_changes_anything(&v.mix))
            v.augment = xcalloc((size_t)v.group, sizeof *v.augment);
    }
    size_t n = (size_t)v.group;
    v.state = device_room(s, sizeof(StepState));
    v.sums = device_room(s, SUMS);
    s->be->bind(v.state, v.sums, SUMS);
    v.images = device_room(s, n * bytes);
    v.augment_in = device_room(s, n * sizeof(Augment));
    v.patches = device_room(s, n * bytes * sizeof(real));
    v.seen = xmalloc(n * bytes);
    return v;
}

static void viewer_free(Viewer *v)
{
    dev *all[] = {v->state, v->sums, v->images, v->augment_in, v->patches};
    for (int i = 0; i < COUNT(all); i++)
        v->s->be->release(all[i]);
    free(v->augment);
    free(v->seen);
}

/* Normalised patches [Np, 3*P*P] of an image to bytes [H, W, 3]. */
static void unpatch(const Config *c, const real *patches, uint8_t *rgb)
{
    const double mean[3] = {c->mean_r, c->mean_g, c->mean_b};
    const double std[3] = {c->std_r, c->std_g, c->std_b};
    int P = c->patch, columns = c->image_w / P;
    for (int y = 0; y < c->image_h; y++)
        for (int x = 0; x < c->image_w; x++)
            for (int k = 0; k < 3; k++) {
                const real *patch =
                    patches + (size_t)(y / P * columns + x / P) * (size_t)(3 * P * P);
                double value = (double)patch[(k * P + y % P) * P + x % P] * std[k] + mean[k];
                *rgb++ = (uint8_t)lround(fmin(fmax(255 * value, 0), 255));
            }
}

/* `images` [group] stand at positions first.. of a step's batch; v->seen and v->augment say what
 * becomes of them. */
static void view(Viewer *v, const uint8_t *images, long step, long first)
{
    Session *s = v->s;
    const Config *c = &s->config;
    size_t bytes = vit_image_bytes(c, true);
    int np = vit_patches(c), pixels = 3 * c->patch * c->patch;
    StepState state = {
        .seed = (uint64_t)s->o.seed, .step = (uint32_t)step, .sample0 = (uint32_t)first};
    s->be->upload(v->state, &state, sizeof state);
    s->be->upload(v->images, images, (size_t)v->group * bytes);
    if (v->augment) {
        mix_batch(&v->mix, state.seed, state.step, state.sample0, v->group, v->augment);
        s->be->upload(v->augment_in, v->augment, (size_t)v->group * sizeof *v->augment);
    }
    s->be->patchify(&(Patchify){
        .out = {.p = v->patches, .type = F32, .ld = pixels},
        .images = v->images,
        .u8 = true,
        .augment = v->augment ? v->augment_in : NULL,
        .B = v->group,
        .H = c->image_h,
        .W = c->image_w,
        .P = c->patch,
        .mean = {c->mean_r, c->mean_g, c->mean_b},
        .std = {c->std_r, c->std_g, c->std_b},
    });
    real *patches = xmalloc((size_t)v->group * bytes * sizeof *patches);
    s->be->download(patches, v->patches, (size_t)v->group * bytes * sizeof *patches);
    for (int i = 0; i < v->group; i++)
        unpatch(c, patches + (size_t)i * (size_t)np * (size_t)pixels, v->seen + (size_t)i * bytes);
    free(patches);
}

/* ---- labels ---- */

/* "ants", or "62% ants" and under it "38% bees". */
static void label_lines(const Viewer *v, const Dataset *d, const int *labels, int i,
                        char lines[2][256])
{
    const Config *c = &v->s->config;
    const char *name = class_title(v->s, d, labels[i]);
    snprintf(lines[0], 256, "%s", name);
    lines[1][0] = 0;
    if (!v->augment)
        return;
    const Augment *a = &v->augment[i];
    const char *other = class_title(v->s, d, labels[a->partner]);
    double cut = (double)a->cut.h * a->cut.w / ((double)c->image_h * c->image_w);
    double own = a->lambda * (1 - cut);
    if (own > 0.995 || other == name)
        return;
    if (own < 0.005) {
        snprintf(lines[0], 256, "%s", other);
    } else {
        snprintf(lines[0], 256, "%.0f%% %s", 100 * own, name);
        snprintf(lines[1], 256, "%.0f%% %s", 100 * (1 - own), other);
    }
}

/* ---- an array ---- */

static bool is_array(const char *path)
{
    const char *end = strrchr(path, '.');
    return end && strcmp(end, ".npy") == 0;
}

/* The image is what training has, to the bit, where nothing happens to it on the device. */
static void array_begin(Viewer *v)
{
    const Config *c = &v->s->config;
    char header[NPY_HEADER];
    Error e = {"", ""};
    if (v->augment)
        die_usage("leave --mixup, --cutmix, --erase and --color-twist out, or draw a picture",
                  "%s: an array has one label an image, and images as they come from the loader",
                  v->s->o.out);
    npy_header(header, "|u1", (const long[]){o.count, c->image_h, c->image_w, 3}, 4);
    v->array = file_create(v->s->o.out, &e);
    setup_check(v->array && file_write(v->array, header, sizeof header, &e), &e);
    v->labels = open_memstream(&v->labels_text, &v->labels_bytes);
    if (!v->labels)
        die("free some memory", "out of memory");
}

static void array_end(Viewer *v)
{
    const char *path = v->s->o.out;
    char *names = xasprintf("%.*s.txt", (int)strlen(path) - 4, path);
    Error e = {"", ""};
    setup_check(file_publish(v->array, false, &e), &e);
    fclose(v->labels);
    setup_check(save_file(names, v->labels_text, v->labels_bytes, false, &e), &e);
    free(v->labels_text);
    free(names);
}

/* ---- the command ---- */

static void show_image(const Viewer *v, const Dataset *d, long tile, const int *labels, int i)
{
    size_t bytes = vit_image_bytes(&v->s->config, true);
    const uint8_t *seen = v->seen + (size_t)i * bytes;
    char lines[2][256];
    Error e = {"", ""};
    if (v->array) {
        setup_check(file_write(v->array, seen, bytes, &e), &e);
        fprintf(v->labels, "%d %s\n", labels[i], class_title(v->s, d, labels[i]));
        return;
    }
    label_lines(v, d, labels, i, lines);
    sheet_tile(&v->sheet, tile, seen, lines);
}

/* Training images in their order: groups from the one that holds the epoch's first image on. */
static void show_run(Viewer *v, Dataset *d)
{
    long batch = v->s->o.batch_size, start = o.epoch * data_count(d);
    long begin = start - start % batch % v->group;
    Loader *l = loader_open(d, &(LoaderOptions){.batch = v->group,
                                                .shuffle = true,
                                                .repeats = (int)v->s->o.repeats,
                                                .start = begin,
                                                .workers = 2});
    for (long at = begin, drawn = 0; drawn < o.count; at += v->group) {
        const Batch *b = loader_next(l);
        view(v, b->images, at / batch, at % batch);
        for (int i = at < start ? (int)(start - at) : 0; i < v->group && drawn < o.count; i++)
            show_image(v, d, drawn++, b->labels, i);
    }
    loader_close(l);
}

/* Group after group, made of these samples of an epoch:
 *   --same  the one that comes first in --epoch, as epoch after epoch sees it, and behind it those
 *           that it may be mixed with
 *   --val   samples all over the set, which is sorted by class; nothing is mixed */
static void show_chosen(Viewer *v, Dataset *d)
{
    size_t bytes = vit_image_bytes(&v->s->config, true);
    long n = data_count(d), first = o.val ? 0 : data_order(d, o.epoch, 0);
    uint8_t *images = xmalloc((size_t)v->group * bytes);
    int *labels = xcalloc((size_t)v->group, sizeof *labels);
    Decoder *decoder = decoder_new();
    for (long k = 0; k < o.count; k++) {
        long epoch = o.epoch + (o.same ? k : 0);
        for (int i = 0; i < v->group; i++) {
            long sample = o.same ? first : k * n / o.count;
            if (i > 0)
                sample = data_order(d, epoch, i % n);
            labels[i] = data_sample(d, decoder, sample, epoch, 0, images + (size_t)i * bytes);
        }
        view(v, images, k, 0);
        show_image(v, d, k, labels, 0);
    }
    decoder_free(decoder);
    free(images);
    free(labels);
}

static void sheet_begin(Viewer *v, const char *spec)
{
    const Session *s = v->s;
    char title[256], from[64] = "";
    if (!o.val)
        snprintf(from, sizeof from, ", epoch %ld%s, seed %ld", o.epoch, o.same ? " and on" : "",
                 s->o.seed);
    snprintf(title, sizeof title, "%s: %s images%s, %d x %d", spec,
             o.val ? "validation" : "training", from, s->config.image_h, s->config.image_w);
    v->sheet = sheet_new(s->config.image_w, s->config.image_h, v->group > 1 ? 2 : 1, (int)o.count,
                         (int)o.columns, "lower --count, --columns or --image-size");
    sheet_title(&v->sheet, title);
}

/* Pictures are the same on every machine: what a recipe says of its own is not asked for here. */
static void use_this_machine(Options *to)
{
    static const char *const here[][2] = {
        {"precision", "auto"}, {"tp", "1"},    {"pp", "1"},  {"layers_per_stage", ""},
        {"zero", "0"},         {"ranks", "1"}, {"gpus", "1"}};
    Error e = {"", ""};
    for (int i = 0; i < COUNT(here); i++)
        setup_check(options_set(to, here[i][0], here[i][1], "", &e), &e);
}

static int run_show(const Command *c, int argc, char **argv)
{
    Session s;
    Error e = {"", ""};
    flags_take(c, &argc, argv);
    if (argc > 1 && argv[1][0] != '-')
        die_usage("./vit show --help lists all flags", "'%s' is no flag", argv[1]);
    setup_options(&s, argc, argv);
    if (!*s.o.out)
        die_usage("name the picture, --out grid.png, or an array, --out batches.npy",
                  "--out is missing");
    flags_note(!is_array(s.o.out), "columns", "on an array");
    flags_note(!o.val, "epoch", "with --val: its images are always the same");
    use_this_machine(&s.o);
    setup_config(&s);
    effects_note(&s, c->name);
    const char *spec = o.val && *s.o.val_data ? s.o.val_data : s.o.data;
    Dataset *d = setup_split(&s, spec, !o.val);
    Viewer v = viewer_new(&s, !o.val);
    if (o.val && !o.same && o.count > data_count(d))
        o.count = data_count(d);
    if (is_array(s.o.out))
        array_begin(&v);
    else
        sheet_begin(&v, spec);
    (o.same || o.val ? show_chosen : show_run)(&v, d);
    if (v.array)
        array_end(&v);
    else
        setup_check(canvas_write(&v.sheet.canvas, s.o.out, &e), &e);
    printf("%s: %ld of %s of %s\n", s.o.out, o.count, amount((double)data_count(d), "image").s,
           amount(data_classes(d), "class").s);
    free(v.sheet.canvas.rgb);
    viewer_free(&v);
    data_close(d);
    session_free(&s);
    return 0;
}

static void more_help(FILE *f)
{
    fprintf(f, "\nand the flags of the training program:\n\n");
    options_help(f);
}

const Command command_show = {
    .name = "show",
    .summary = "draw images as the model will see them",
    .usage = "--data DIR --out grid.png [--count 32] [...]",
    .help = "Draws a contact sheet of the images as the model will see them, in the order of "
            "training, with their\nlabels; where images are mixed, with the shares of both. All "
            "flags of the training program that\nsay what becomes of images do the same here. A "
            "name that ends in .npy gets the images themselves, bytes\n[count, H, W, 3], and "
            "beside it a .txt their labels, so that another program can train on the same.\n",
    .flags = flags,
    .n_flags = COUNT(flags),
    .run = run_show,
    .more_help = more_help,
};
