/* bench_data: how fast pictures become what a model eats, beside other loaders in the same run.
 *
 *   build/bench_data pipelines IMAGES SCRATCH [PYTHON]     one thread: ours and the peers' in turn
 *   build/bench_data workers   IMAGES SCRATCH [PYTHON]     the loader with 1, 2, ... threads
 *   build/bench_data large     IMAGES SCRATCH [PYTHON]     512 to 32768 pixels a side
 *   build/bench_data opening   IMAGES SCRATCH [PYTHON]     a folder of many files
 *   build/bench_data decoding  IMAGES SCRATCH              what eval decodes, alone: two numbers
 *
 * bench/run_data calls it and says what the variables are. IMAGES is a data set of class folders,
 * or "" for pictures drawn here; SCRATCH gets copies of them, 256 pixels on the shorter side, as
 * files and as tar shards, and the large pictures. PYTHON runs the peers (bench/data_peers.py),
 * which answer requests one at a time. Prints Markdown.
 *
 * Rounds of ours and theirs alternate over the same images, read from the page cache; speeds are
 * images per second of the thread's CPU time, which another load on the machine disturbs less than
 * the clock on the wall; medians over the rounds, ratios within a round.
 *
 * Order: clocks and medians; the peers; pictures; the parts.
 */
#include "data.h"
#include "datasets/tar.h"
#include "image/augment.h"
#include "image/decoder.h"
#include "image/resize.h"
#include "image/write.h"
#include "util/files.h"
#include "util/machine.h"
#include "util/rng.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <jpeglib.h>
#ifdef HAVE_TIFF
#include <tiffio.h>
#endif

enum { SIZE = 224, SHORT_SIDE = 256, SHORT_QUALITY = 92, MOST_IMAGES = 1000, MOST_ROUNDS = 100 };

static const char *images, *scratch, *python;
static int rounds = 10;
static bool small; /* SHORT=1: less of everything that takes long */

/* ---- clocks and medians ---- */

static double cpu_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    double d = *(const double *)a - *(const double *)b;
    return (d > 0) - (d < 0);
}

static double median(const double *v, int n)
{
    double sorted[MOST_ROUNDS];
    memcpy(sorted, v, sizeof(double) * (size_t)n);
    qsort(sorted, (size_t)n, sizeof *sorted, ascending);
    return n % 2 ? sorted[n / 2] : 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]);
}

static void check(bool ok, const Error *e)
{
    if (!ok)
        die(e->hint, "%s", e->what);
}

/* What a piece of work took. */
typedef struct {
    double images, wall, cpu; /* seconds */
    double bytes, peak;       /* read; of the process, 0: not known */
} Cost;

/* ---- the peers ---- */

static FILE *to_peers, *from_peers;
static struct {
    char name[16], about[160];
} peer[8];
static int peers;

/* Run PYTHON bench/data_peers.py [FILE IMAGES SECONDS HOW] with pipes to its input and from its
 * output. */
static pid_t peers_run(char *file, char *images, char *seconds, char *how, FILE **in, FILE **out)
{
    int request[2], reply[2];
    fflush(stdout);
    if (pipe(request) != 0 || pipe(reply) != 0)
        die(NULL, "no pipe: %s", strerror(errno));
    pid_t child = fork();
    if (child == 0) {
        dup2(request[0], STDIN_FILENO);
        dup2(reply[1], STDOUT_FILENO);
        for (int i = 0; i < 2; i++) {
            close(request[i]);
            close(reply[i]);
        }
        execlp(python, python, "bench/data_peers.py", file, images, seconds, how, (char *)NULL);
        _exit(127);
    }
    close(request[0]);
    close(reply[1]);
    *in = fdopen(request[1], "w");
    *out = fdopen(reply[0], "r");
    return child;
}

/* The first lines of the peers name them: "peer NAME what it is", until "ready". */
static void peers_open(void)
{
    char line[256];
    if (!*python)
        return;
    peers_run(NULL, NULL, NULL, NULL, &to_peers, &from_peers);
    while (fgets(line, sizeof line, from_peers) && strcmp(line, "ready\n") != 0)
        if (peers < COUNT(peer) &&
            sscanf(line, "peer %15s %159[^\n]", peer[peers].name, peer[peers].about) == 2)
            peers++;
    if (!peers)
        printf("No peers: %s has no Pillow.\n\n", python);
}

/* A request is a line of words, the first the peer's name; the answer is "NAME IMAGES WALL CPU", or
 * "NAME no" and a reason. */
static bool peers_ask(const char *request, Cost *c)
{
    char line[512];
    size_t name = strcspn(request, " ") + 1;
    fprintf(to_peers, "%s\n", request);
    fflush(to_peers);
    *c = (Cost){0};
    if (!fgets(line, sizeof line, from_peers) || strncmp(line, request, name) != 0)
        die("run it by hand: PYTHON bench/data_peers.py", "the peers give no answer to: %s",
            request);
    return sscanf(line + name, "%lf %lf %lf", &c->images, &c->wall, &c->cpu) == 3;
}

/* ---- pictures ---- */

/* Something like a photograph: noise of all sizes, larger ones stronger, as natural images have it.
 * A tile of TILE pixels a side, mirrored at its edges to any size. */
enum { TILE = 512 };
static uint8_t tile[TILE][TILE][3];

static double noise_at(uint32_t octave, uint32_t color, int x, int y)
{
    return rng_unit(philox(5, (uint32_t)x, (uint32_t)y, octave, color).v[0]) - 0.5;
}

static void tile_draw(void)
{
    for (int y = 0; y < TILE; y++)
        for (int x = 0; x < TILE; x++) {
            double v[3] = {128, 128, 128};
            for (uint32_t octave = 0; octave < 9; octave++) {
                int cell = 256 >> octave;
                double fx = (double)(x % cell) / cell, fy = (double)(y % cell) / cell;
                for (uint32_t c = 0; c < 4; c++) { /* 3: of all colours alike */
                    double a = noise_at(octave, c, x / cell, y / cell),
                           b = noise_at(octave, c, x / cell + 1, y / cell),
                           d = noise_at(octave, c, x / cell, y / cell + 1),
                           e = noise_at(octave, c, x / cell + 1, y / cell + 1);
                    double n = (a + (b - a) * fx) * (1 - fy) + (d + (e - d) * fx) * fy;
                    for (uint32_t k = 0; k < 3; k++)
                        if (c == 3 || c == k)
                            v[k] += n * (c == 3 ? 260 : 60) * pow(0.68, octave);
                }
            }
            for (int k = 0; k < 3; k++)
                tile[y][x][k] = (uint8_t)(v[k] < 0 ? 0 : v[k] > 255 ? 255 : v[k]);
        }
}

static int mirrored(long x)
{
    long at = x % (2 * TILE);
    return (int)(at < TILE ? at : 2 * TILE - 1 - at);
}

typedef void FillRow(uint8_t *rgb, int w, long y);

static void photo_row(uint8_t *rgb, int w, long y)
{
    for (int x = 0; x < w; x++)
        memcpy(rgb + 3 * x, tile[mirrored(y)][mirrored(x)], 3);
}

static void random_row(uint8_t *rgb, int w, long y)
{
    uint64_t s = 0x9E3779B97F4A7C15u * (uint64_t)(y + 1);
    for (int i = 0; i < 3 * w; i++) { /* xorshift64 */
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        rgb[i] = (uint8_t)(s >> 24);
    }
}

static void no_space(const char *path)
{
    die("free some space there, or name another folder with SCRATCH", "cannot write %s: %s", path,
        strerror(errno));
}

/* Row by row, so that a picture of any size can be written. */
static void jpeg_write(const char *path, int w, int h, int quality, FillRow *fill)
{
    struct jpeg_compress_struct c;
    struct jpeg_error_mgr errors;
    char *part = xasprintf("%s.part", path);
    FILE *f = fopen(part, "wb");
    if (!f)
        no_space(part);
    c.err = jpeg_std_error(&errors);
    jpeg_create_compress(&c);
    jpeg_stdio_dest(&c, f);
    c.image_width = (JDIMENSION)w;
    c.image_height = (JDIMENSION)h;
    c.input_components = 3;
    c.in_color_space = JCS_RGB;
    jpeg_set_defaults(&c);
    jpeg_set_quality(&c, quality, TRUE);
    jpeg_start_compress(&c, TRUE);
    uint8_t *row = xmalloc((size_t)w * 3);
    for (long y = 0; y < h; y++) {
        fill(row, w, y);
        JSAMPROW rows[1] = {row};
        jpeg_write_scanlines(&c, rows, 1);
    }
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    free(row);
    if (fclose(f) != 0 || rename(part, path) != 0)
        no_space(path);
    free(part);
}

/* A pyramid of tiles as slide scanners write it: each level half the size of the one before it.
 * False if this libtiff has no JPEG. */
static bool tiff_write(const char *path, int side)
{
#ifdef HAVE_TIFF
    enum { EDGE = 256 };
    if (!TIFFIsCODECConfigured(COMPRESSION_JPEG))
        return false;
    TIFF *t = TIFFOpen(path, "w8");
    if (!t)
        no_space(path);
    uint8_t *block = xmalloc(EDGE * EDGE * 3);
    for (int level = 0; side >> level >= EDGE; level++) {
        int n = side >> level;
        TIFFSetField(t, TIFFTAG_SUBFILETYPE, level ? FILETYPE_REDUCEDIMAGE : 0);
        TIFFSetField(t, TIFFTAG_IMAGEWIDTH, n);
        TIFFSetField(t, TIFFTAG_IMAGELENGTH, n);
        TIFFSetField(t, TIFFTAG_TILEWIDTH, EDGE);
        TIFFSetField(t, TIFFTAG_TILELENGTH, EDGE);
        TIFFSetField(t, TIFFTAG_SAMPLESPERPIXEL, 3);
        TIFFSetField(t, TIFFTAG_BITSPERSAMPLE, 8);
        TIFFSetField(t, TIFFTAG_PLANARCONFIG, PLANARCONFIG_CONTIG);
        TIFFSetField(t, TIFFTAG_PHOTOMETRIC, PHOTOMETRIC_YCBCR);
        TIFFSetField(t, TIFFTAG_COMPRESSION, COMPRESSION_JPEG);
        TIFFSetField(t, TIFFTAG_JPEGQUALITY, 80);
        TIFFSetField(t, TIFFTAG_JPEGCOLORMODE, JPEGCOLORMODE_RGB);
        for (int y = 0; y < n; y += EDGE)
            for (int x = 0; x < n; x += EDGE) {
                for (int i = 0; i < EDGE * EDGE; i++)
                    memcpy(block + 3 * i,
                           tile[mirrored((long)(y + i / EDGE) << level)]
                               [mirrored((long)(x + i % EDGE) << level)],
                           3);
                if (TIFFWriteTile(t, block, (uint32_t)x, (uint32_t)y, 0, 0) < 0)
                    no_space(path);
            }
        TIFFWriteDirectory(t);
    }
    free(block);
    TIFFClose(t);
    return true;
#else
    (void)path;
    (void)side;
    return false;
#endif
}

static double file_size(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 ? (double)st.st_size : 0;
}

/* ---- data sets ---- */

static void make_folder(const char *path)
{
    Error e;
    check(make_dirs(path, &e), &e);
}

/* Pictures of our own, about as large as ImageNet's, in two classes. */
static char *draw_images(void)
{
    char *dir = xasprintf("%s/drawn", scratch);
    for (int i = 0; i < 64; i++) {
        char *folder = xasprintf("%s/%d", dir, i % 2), *file = xasprintf("%s/%03d.jpg", folder, i);
        make_folder(folder);
        if (file_size(file) == 0)
            jpeg_write(file, 400 + 37 * (i * 7 % 8), 320 + 29 * (i * 5 % 8), 90, photo_row);
        free(folder);
        free(file);
    }
    return dir;
}

static DataOptions evaluation(const char *spec)
{
    return (DataOptions){.spec = spec,
                         .train = true,
                         .images.out_h = SIZE,
                         .images.out_w = SIZE,
                         .images.filter = FILTER_BICUBIC,
                         .images.crop = CROP_CENTER};
}

static DataOptions training(const char *spec, int filter, int decode)
{
    DataOptions o = evaluation(spec);
    o.images.augment = true;
    o.images.filter = filter;
    o.images.decode = decode;
    o.images.area_min = 0.08;
    o.images.area_max = 1;
    o.images.ratio_min = 3.0 / 4;
    o.images.ratio_max = 4.0 / 3;
    o.images.flip = 0.5;
    return o;
}

static Dataset *open_or_say(const DataOptions *o)
{
    static const char *said;
    Error e;
    Dataset *d = data_open(o, &e);
    if (!d && said != o->spec)
        fprintf(stderr, "left out: %s: %s\n", o->spec, e.what);
    said = d ? NULL : o->spec;
    return d;
}

/* The first images of a set, their paths in a file for the peers. */
typedef struct {
    const char *title;
    char *spec, *list; /* list: a text file, or the archives' pattern */
    long n;
    double pixels, bytes; /* of an image, mean */
} ImageSet;

static ImageSet list_images(const char *title, const char *spec, const char *name)
{
    Error e;
    DataOptions o = evaluation(spec);
    Dataset *d = data_open(&o, &e);
    check(d != NULL, &e);
    ImageSet s = {.title = title,
                  .spec = xstrdup(spec),
                  .list = xasprintf("%s/%s.txt", scratch, name),
                  .n = data_count(d) < MOST_IMAGES ? data_count(d) : MOST_IMAGES};
    FILE *f = fopen(s.list, "w");
    if (!f)
        no_space(s.list);
    Decoder *decoder = decoder_new();
    for (long i = 0; i < s.n; i++) {
        char *path = data_sample_path(d, i);
        fprintf(f, "%s\n", path);
        check(decoder_open_file(decoder, path, &e), &e);
        s.pixels += (double)decoder_width(decoder) * decoder_height(decoder) / (double)s.n;
        s.bytes += file_size(path) / (double)s.n;
        free(path);
    }
    if (fclose(f) != 0)
        no_space(s.list);
    decoder_free(decoder);
    data_close(d);
    return s;
}

/* The images of `from` with a shorter side of 256 pixels, as files and in tar shards. */
static void shrink(const ImageSet *from, char **dir, char **pattern)
{
    enum { SHARD = 125 };
    Error e;
    DataOptions o = evaluation(from->spec);
    Dataset *d = data_open(&o, &e);
    check(d != NULL, &e);
    *dir = xasprintf("%s/short", scratch);
    long shards = (from->n + SHARD - 1) / SHARD;
    *pattern = xasprintf("wds:%s/short-{000000..%06ld}.tar", scratch, shards - 1);
    TarWriter *tar = NULL;
    Decoder *decoder = decoder_new();
    for (long i = 0; i < from->n; i++) {
        char *path = data_sample_path(d, i), label[16], name[32];
        char *folder = xasprintf("%s/%05d", *dir, data_label(d, i));
        char *file = xasprintf("%s/%07ld.jpg", folder, i);
        uint8_t *bytes;
        size_t n;
        check(decoder_open_file(decoder, path, &e), &e);
        Box all = {.width = decoder_width(decoder), .height = decoder_height(decoder)};
        int shorter = all.width < all.height ? all.width : all.height;
        int w = (int)((long)all.width * SHORT_SIDE / shorter),
            h = (int)((long)all.height * SHORT_SIDE / shorter);
        Preprocess p = {.out_w = w, .out_h = h, .filter = FILTER_BICUBIC};
        uint8_t *rgb = xmalloc((size_t)w * (size_t)h * 3);
        check(decoder_crop(decoder, &p, all, false, rgb, &e), &e);
        make_folder(folder);
        check(image_write_jpeg(file, rgb, w, h, SHORT_QUALITY, &e), &e);
        check(image_encode_jpeg(rgb, w, h, SHORT_QUALITY, &bytes, &n, &e), &e);
        if (i % SHARD == 0) {
            char *archive = xasprintf("%s/short-%06ld.tar", scratch, i / SHARD);
            check(!tar || tar_close(tar, &e), &e);
            check((tar = tar_create(archive, &e)) != NULL, &e);
            free(archive);
        }
        snprintf(label, sizeof label, "%d", data_label(d, i));
        snprintf(name, sizeof name, "%07ld.cls", i);
        check(tar_add(tar, name, label, strlen(label), &e), &e);
        snprintf(name, sizeof name, "%07ld.jpg", i);
        check(tar_add(tar, name, bytes, n, &e), &e);
        free(bytes);
        free(rgb);
        free(file);
        free(folder);
        free(path);
    }
    check(!tar || tar_close(tar, &e), &e);
    decoder_free(decoder);
    data_close(d);
}

static ImageSet source[3];
static int sources;

static void make_sources(const char *images)
{
    char *dir, *pattern, *drawn = *images ? NULL : draw_images();
    source[sources++] = list_images("originals", drawn ? drawn : images, "originals");
    shrink(&source[0], &dir, &pattern);
    source[sources++] = list_images("256 pixels, files", dir, "short");
    free(dir);
    free(drawn);
    source[sources] = source[1];
    source[sources].title = "256 pixels, tar shards";
    source[sources].spec = pattern;
    source[sources++].list = pattern;
    for (int i = 0; i < 2; i++)
        printf("%s%s: %ld images, on average %.0f pixels and %.0f kB. ",
               i ? "The same with a shorter side of 256, quality 92" : "Originals",
               i || *images ? "" : " (drawn here, no photographs)", source[i].n, source[i].pixels,
               source[i].bytes / 1000);
    printf("\n\n");
}

/* ---- one thread ---- */

typedef struct {
    const char *task, *title; /* task: as the peers know it */
    int filter, decode;
    const char *policy;
} Work;

static const Work works[] = {
    {"crop", "random crop, bicubic", FILTER_BICUBIC, DECODE_EXACT, ""},
    {"crop", "random crop, bicubic, fast", FILTER_BICUBIC, DECODE_FAST, ""},
    {"crop", "random crop, bilinear", FILTER_BILINEAR, DECODE_EXACT, ""},
    {"eval", "evaluation, bicubic", FILTER_BICUBIC, DECODE_EXACT, ""},
    {"policy", "random crop, bicubic, RandAugment", FILTER_BICUBIC, DECODE_EXACT,
     "rand-m9-n2-mstd0.5-inc1"},
};
static const char *const filter_names[] = {"bilinear", "bicubic"};

/* `n` images from the `at`th on. */
static Cost ours(Dataset *d, Decoder *decoder, const ImageSet *s, long at, long n)
{
    static uint8_t out[SIZE * SIZE * 3];
    Cost c = {.images = (double)n, .wall = now(), .cpu = cpu_now()};
    uint64_t bytes = decoder_bytes(decoder);
    for (long i = at; i < at + n; i++)
        data_sample(d, decoder, i % s->n, i / s->n, 0, out);
    c.wall = now() - c.wall;
    c.cpu = cpu_now() - c.cpu;
    c.bytes = (double)(decoder_bytes(decoder) - bytes);
    return c;
}

typedef struct {
    int n;
    double per_cpu[MOST_ROUNDS], per_wall[MOST_ROUNDS], ratio[MOST_ROUNDS];
} Series;

static void series_add(Series *s, const Cost *c, const Cost *our)
{
    s->per_cpu[s->n] = c->images / c->cpu;
    s->per_wall[s->n] = c->images / c->wall;
    s->ratio[s->n++] = our->images / our->cpu / (c->images / c->cpu);
}

static void pipeline(const ImageSet *s, const Work *w)
{
    Error e;
    DataOptions o = strcmp(w->task, "eval") == 0 ? evaluation(s->spec)
                                                 : training(s->spec, w->filter, w->decode);
    Augmentation *changes = *w->policy ? augmentation_new("", w->policy, &e) : NULL;
    o.images.changes = changes;
    Dataset *d = *w->policy && !changes ? NULL : open_or_say(&o);
    if (!d) {
        printf("| %s | %s | ours | - | - | |\n", s->title, w->title);
        augmentation_free(changes);
        return;
    }
    Decoder *decoder = decoder_new();
    Series our = {0}, their[COUNT(peer)] = {{0}};
    long n = s->n / 5 ? s->n / 5 : 1;
    ours(d, decoder, s, 0, n); /* scratch memory */
    for (int r = 0; r < rounds; r++) {
        Cost c = ours(d, decoder, s, r * n, n), t;
        series_add(&our, &c, &c);
        for (int p = 0; p < peers; p++) {
            if (their[p].n < r) /* not a work of theirs */
                continue;
            char *request = xasprintf("%s %s %s %ld %ld %s", peer[p].name, w->task,
                                      filter_names[w->filter], r * n % s->n, n, s->list);
            if (peers_ask(request, &t))
                series_add(&their[p], &t, &c);
            free(request);
        }
    }
    printf("| %s | %s | ours | %.0f | %.0f | |\n", s->title, w->title, median(our.per_cpu, our.n),
           median(our.per_wall, our.n));
    for (int p = 0; p < peers; p++)
        if (their[p].n)
            printf("| | | %s | %.0f | %.0f | **%.2f** |\n", peer[p].name,
                   median(their[p].per_cpu, their[p].n), median(their[p].per_wall, their[p].n),
                   median(their[p].ratio, their[p].n));
    fflush(stdout);
    decoder_free(decoder);
    data_close(d);
    augmentation_free(changes);
}

static void part_pipelines(void)
{
    printf(
        "From a file in the page cache to %d x %d pixels, one thread. Random crop: 8%% to 100%% "
        "of the area, ratio 3/4 to 4/3, flipped half the time. Evaluation: shorter side to 256, "
        "centre crop. RandAugment: timm's rand-m9-n2-mstd0.5-inc1. `ours` delivers uint8 HWC (the "
        "model normalises); `fast` is --decode fast, the peers decode as ever. Medians of %d "
        "rounds.\n\n",
        SIZE, SIZE, rounds);
    for (int p = 0; p < peers; p++)
        printf("- `%s`: %s\n", peer[p].name, peer[p].about);
    printf("\n| data | work | by | images/s of CPU time | images/s on the clock | ours/theirs, CPU "
           "time |\n|---|---|---|---|---|---|\n");
    for (int s = 0; s < sources; s++)
        for (int w = 0; w < COUNT(works); w++)
            pipeline(&source[s], &works[w]);
    printf("\n");
}

/* ---- many threads ---- */

enum { BATCH = 32 };

/* Images/s of a loader whose reader does nothing with them, once its threads are at work. With
 * `workers` 0, of the last part of the time, in which their number has settled. */
static double loader_speed(Dataset *d, int workers, int most, double seconds, int *settled)
{
    Loader *l = loader_open(
        d,
        &(LoaderOptions){.batch = BATCH, .shuffle = true, .workers = workers, .max_workers = most});
    double from = now() + (workers ? 0.3 : 0.7 * seconds), until = now() + seconds, begun = 0;
    long images = 0;
    do {
        images += loader_next(l)->n;
        if (!begun && now() > from) {
            begun = now();
            images = 0;
        }
    } while (now() < until || !images);
    double speed = (double)images / (now() - begun);
    *settled = loader_stats(l).workers;
    loader_close(l);
    return speed;
}

/* A count of workers; with a peer's name, those of its loader. */
typedef struct {
    int workers, peer, n;
    double speed[MOST_ROUNDS];
    int settled;
} Team;

static void team_race(Team *t, const ImageSet *s, Dataset *d, double seconds)
{
    int cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
    if (t->peer < 0) {
        t->speed[t->n++] = loader_speed(d, t->workers, t->workers ? t->workers : 2 * cores,
                                        t->workers ? seconds : 3 * seconds, &t->settled);
        return;
    }
    Cost c;
    char *request =
        xasprintf("%s loader bicubic %d %g %s", peer[t->peer].name, t->workers, seconds, s->list);
    if (peers_ask(request, &c))
        t->speed[t->n++] = c.images / c.wall;
    free(request);
}

static void sweep(const ImageSet *s)
{
    enum { TIMES = 3 };
    Team team[32] = {{0}};
    int cores = (int)sysconf(_SC_NPROCESSORS_ONLN), teams = 0, best = 0;
    DataOptions o = training(s->spec, FILTER_BICUBIC, DECODE_EXACT);
    Dataset *d = open_or_say(&o);
    if (!d)
        return;
    for (int n = 1; n <= 2 * cores; n = n < cores && 2 * n > cores ? cores : 2 * n)
        team[teams++] = (Team){.workers = n, .peer = -1};
    int counts = teams;
    team[teams++] = (Team){.workers = 0, .peer = -1};
    for (int p = 0; p < peers; p++)
        team[teams++] = (Team){.workers = cores, .peer = p};
    for (int i = 0; i < TIMES; i++)
        for (int t = 0; t < teams; t++)
            if (team[t].n == i)
                team_race(&team[t], s, d, small ? 0.5 : 1);
    for (int t = 1; t < counts; t++) /* more threads for nothing are not better */
        if (median(team[t].speed, TIMES) > 1.03 * median(team[best].speed, TIMES))
            best = t;
    double speed = median(team[best].speed, TIMES);
    for (int t = 0; t < teams; t++) {
        if (team[t].n < TIMES)
            continue;
        char workers[64];
        snprintf(workers, sizeof workers, team[t].workers ? "%d%s" : "auto: %d%s",
                 team[t].settled ? team[t].settled : team[t].workers, t == best ? ", best" : "");
        double each = median(team[t].speed, TIMES);
        printf("| %s | %s | %s | %.0f | %.2f |\n", s->title,
               team[t].peer < 0 ? "ours" : peer[team[t].peer].name, workers, each, speed / each);
    }
    fflush(stdout);
    data_close(d);
}

static void part_workers(void)
{
    printf("Batches of %d from the loader to a reader that does nothing with them: random crop, "
           "bicubic, exact, shuffled; on the clock, of a machine with %ld cores, medians of three "
           "alternating rounds. torchvision's workers are a DataLoader's processes.\n\n"
           "| data | by | workers | images/s | best of ours/this |\n"
           "|---|---|---|---|---|\n",
           BATCH, sysconf(_SC_NPROCESSORS_ONLN));
    for (int s = 0; s < sources; s++)
        sweep(&source[s]);
    printf("\n");
}

/* ---- large pictures ---- */

static long memory_available(void)
{
    long kib = 0;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %ld", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib << 10;
}

/* Random crops of one picture for at least so many images and seconds, in a process of its own,
 * whose peak memory is then known. */
static void large_child(const char *path, int decode, int images, double seconds, FILE *out)
{
    static uint8_t rgb[SIZE * SIZE * 3];
    Preprocess t = {.out_w = SIZE, .out_h = SIZE, .filter = FILTER_BILINEAR, .decode = decode};
    Error e;
    Decoder *d = decoder_new();
    Cost c = {.wall = now(), .cpu = cpu_now()};
    while (c.images < images || now() - c.wall < seconds) {
        View v = {.seed = 1, .sample = (uint32_t)c.images};
        RngStream draw = view_draw(v, DRAW_BOX);
        check(decoder_open_file(d, path, &e), &e);
        Box b =
            image_random_box(&draw, decoder_width(d), decoder_height(d), 0.08, 1, 3.0 / 4, 4.0 / 3);
        check(decoder_crop(d, &t, b, false, rgb, &e), &e);
        c.images++;
    }
    fprintf(out, "%g %g %g %g\n", c.images, now() - c.wall, cpu_now() - c.cpu,
            (double)decoder_bytes(d));
}

static void cost_of(pid_t child, FILE *out, const char *path, Cost *c)
{
    struct rusage u;
    int status;
    char line[256] = "";
    *c = (Cost){0};
    bool ok = fgets(line, sizeof line, out) &&
              sscanf(line, "%lf %lf %lf %lf", &c->images, &c->wall, &c->cpu, &c->bytes) >= 3;
    fclose(out);
    if (wait4(child, &status, 0, &u) != child || status != 0 || !ok) {
        fprintf(stderr, "%s: failed: %s\n", path, line);
        *c = (Cost){0};
        return;
    }
    c->peak = 1024.0 * (double)u.ru_maxrss;
}

static void large_ours(const char *path, int decode, int images, double seconds, Cost *c)
{
    int ends[2];
    fflush(stdout);
    if (pipe(ends) != 0)
        die(NULL, "no pipe: %s", strerror(errno));
    pid_t child = fork();
    if (child == 0) {
        FILE *out = fdopen(ends[1], "w");
        large_child(path, decode, images, seconds, out);
        fclose(out);
        _exit(0);
    }
    close(ends[1]);
    cost_of(child, fdopen(ends[0], "r"), path, c);
}

static void large_theirs(const char *path, char *how, int images, double seconds, Cost *c)
{
    char count[16], time[16];
    FILE *in, *out;
    snprintf(count, sizeof count, "%d", images);
    snprintf(time, sizeof time, "%g", seconds);
    pid_t child = peers_run((char *)path, count, time, how, &in, &out);
    fclose(in);
    cost_of(child, out, path, c);
}

/* Three digits, and whole numbers from 100 on. */
static const char *digits(double v, char text[16])
{
    snprintf(text, 16, v < 100 ? "%.3g" : "%.0f", v);
    return text;
}

static void large_row(const char *what, const char *path, int side)
{
    enum { FULL, DRAFT, EXACT, FAST, ALL };
    Cost c[ALL] = {{0}};
    char text[16];
    double seconds = small ? 0.5 : 1, full = 8.0 * side * side; /* bytes: two of 4 a pixel */
    int images = side > 8192 ? 3 : 5;
    bool fits = full * 1.1 < (double)memory_available();
    if (*python && fits) {
        large_theirs(path, "full", side > 8192 ? 1 : 3, seconds, &c[FULL]);
        large_theirs(path, "draft", images, seconds, &c[DRAFT]);
    }
    large_ours(path, DECODE_EXACT, images, seconds, &c[EXACT]);
    large_ours(path, DECODE_FAST, images, 2 * seconds, &c[FAST]);
    printf("| %s | %d | %.1f |", what, side, file_size(path) / 1e6);
    double speed = c[FULL].images / c[FULL].cpu;
    for (int i = 0; i < ALL; i++) {
        if (!c[i].images)
            printf(" %s |", fits ? "-" : "no memory for it");
        else if (i == FULL || !c[FULL].images)
            printf(" %s |", digits(c[i].images / c[i].cpu, text));
        else
            printf(" %s (**%.1f**) |", digits(c[i].images / c[i].cpu, text),
                   c[i].images / c[i].cpu / speed);
    }
    printf(" %.0f / %.0f / %.0f / %.0f |", c[FULL].peak / 1e6, c[DRAFT].peak / 1e6,
           c[EXACT].peak / 1e6, c[FAST].peak / 1e6);
    if (!c[FAST].images)
        printf(" - | - |\n");
    else if (strstr(path, ".tif")) /* mapped: nobody counts which pages are touched */
        printf(" - | %.0f%% |\n", 100 * c[FAST].cpu / c[FAST].wall);
    else
        printf(" %.1f | %.0f%% |\n", c[FAST].bytes / c[FAST].wall / 1e6,
               100 * c[FAST].cpu / c[FAST].wall);
    fflush(stdout);
}

static void part_large(void)
{
    static const struct {
        const char *what;
        int first, last, quality;
        FillRow *fill;
    } kinds[] = {{"random", 512, 32768, 5, random_row}, {"photo", 1024, 16384, 90, photo_row}};
    printf(
        "JPEGs of random pixels at quality 5, and like photographs at quality 90; a random crop "
        "to %d x %d, bilinear, in one thread of a process of its own. Images/s of CPU time, in "
        "parentheses against Pillow's full decode (as torchvision's loader has it, with a convert "
        "that copies the picture). `draft` is Pillow told to decode at 1/2, 1/4 or 1/8 by the rule "
        "of fast. Peak memory is in MB for each of the four; MB/s read on the clock and CPU use "
        "are those of fast.\n\n"
        "| picture | side | file, MB | Pillow, full | Pillow, draft | exact | fast | peak MB | "
        "MB/s "
        "| CPU |\n|---|---|---|---|---|---|---|---|---|---|\n",
        SIZE, SIZE);
    for (int k = 0; k < COUNT(kinds); k++)
        for (int side = kinds[k].first; side <= (small ? 8192 : kinds[k].last); side *= 2) {
            char *path = xasprintf("%s/%s-%d.jpg", scratch, kinds[k].what, side);
            if (file_size(path) == 0)
                jpeg_write(path, side, side, kinds[k].quality, kinds[k].fill);
            large_row(kinds[k].what, path, side);
            free(path);
        }
    int side = small ? 8192 : 16384;
    char *path = xasprintf("%s/pyramid-%d.tif", scratch, side);
    if (file_size(path) > 0 || tiff_write(path, side))
        large_row("photo, TIFF pyramid of tiles", path, side);
    free(path);
    printf("\n");
}

/* ---- opening ---- */

enum { FOLDERS = 1000 };

static void make_empty_files(const char *dir, int per_folder)
{
    for (int k = 0; k < FOLDERS; k++) {
        char *folder = xasprintf("%s/n%04d", dir, k);
        make_folder(folder);
        for (int i = 0; i < per_folder; i++) {
            char *file = xasprintf("%s/n%04d_%d.JPEG", folder, k, i);
            FILE *f = fopen(file, "wx");
            if (f)
                fclose(f);
            free(file);
        }
        free(folder);
    }
}

static double time_opening(const char *dir, long *files)
{
    DataOptions o = evaluation(dir);
    Error e;
    double from = now();
    Dataset *d = data_open(&o, &e);
    check(d != NULL, &e);
    double seconds = now() - from;
    *files = data_count(d);
    data_close(d);
    return seconds;
}

/* ImageNet's number of files, without their bytes. */
static void part_opening(void)
{
    int per_folder = small ? 100 : 1281;
    char *dir = xasprintf("%s/many-%d", scratch, per_folder);
    if (!is_dir(dir))
        make_empty_files(dir, per_folder);
    printf("%d folders of %d empty files, their names in the kernel's cache; the same by "
           "torchvision's ImageFolder where there is one.\n\n"
           "| opening | what was found | seconds |\n|---|---|---|\n",
           FOLDERS, per_folder);
    long files;
    time_opening(dir, &files); /* for the kernel's cache */
    double seconds = time_opening(dir, &files);
    printf("| ours | %ld files | %.3f |\n", files, seconds);
    fflush(stdout);
    char *peer = xasprintf(
        "%s -c 'import sys, time; from torchvision.datasets import ImageFolder; t = time.time(); "
        "n = len(ImageFolder(sys.argv[1])); "
        "print(\"| torchvision | %%d files | %%.3f |\" %% (n, time.time() - t))' '%s' 2>/dev/null",
        python, dir);
    if (*python && system(peer) != 0)
        fprintf(stderr, "no torchvision to compare with\n");
    printf("\n");
    char *remove_all = xasprintf("rm -rf '%s'", dir);
    if (system(remove_all) != 0)
        warn("cannot remove %s", dir);
    free(remove_all);
    free(peer);
    free(dir);
}

/* ---- decoding ---- */

/* For bench/run_data: the seconds in which IMAGES are decoded as eval has them decoded, and nothing
 * else is done; on the clock and of all cores. */
static void part_decoding(void)
{
    DataOptions o = evaluation(images);
    Dataset *d = open_or_say(&o);
    if (!d)
        exit(1);
    double from = now();
    Loader *l = loader_open(d, &(LoaderOptions){.batch = BATCH,
                                                .end = data_count(d),
                                                .max_workers = machine_cores(),
                                                .at_once = true});
    while (loader_next(l))
        continue;
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    printf("%.3f %.3f\n", now() - from,
           (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
               1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec));
    loader_close(l);
    data_close(d);
}

static int number(const char *name, int otherwise)
{
    const char *s = getenv(name);
    return s && *s ? atoi(s) : otherwise;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
        bool needs_images;
    } parts[] = {{"pipelines", part_pipelines, true},
                 {"workers", part_workers, true},
                 {"large", part_large, false},
                 {"opening", part_opening, false},
                 {"decoding", part_decoding, false}};
    if (argc < 4)
        die_usage("bench/run_data calls it", "bench_data PART IMAGES SCRATCH [PYTHON]");
    images = argv[2];
    scratch = argv[3];
    python = argc > 4 ? argv[4] : "";
    small = number("SHORT", 0);
    rounds = number("ROUNDS", small ? 5 : 10);
    if (rounds < 1 || rounds > MOST_ROUNDS)
        die_usage("give ROUNDS from 1 to 100", "%d rounds", rounds);
    make_folder(scratch);
    tile_draw();
    for (int i = 0; i < COUNT(parts); i++)
        if (strcmp(argv[1], parts[i].name) == 0) {
            if (parts[i].needs_images) {
                make_sources(images);
                peers_open();
            }
            parts[i].run();
            return 0;
        }
    die_usage("pipelines, workers, large, opening or decoding", "no part '%s'", argv[1]);
}
