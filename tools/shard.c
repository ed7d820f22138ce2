/* shard.c - ./vit shard: a folder of images becomes tar files of samples, as WebDataset's
 * makeshards writes them.
 *
 * A sample is `0001234.cls`, the label in decimal, and `0001234.jpg`; 1234 is its position in the
 * folder's sorted order. The order of the samples in the shards is shuffled once, by the seed.
 * Pictures are read, resized and encoded by all threads, a chunk of samples at a time, and written
 * in order by one: the same bytes for any number of threads.
 *
 * Read in this order: flags, names of shards, one picture, writing, the command.
 */
#include "tools/tools.h"

#include "data.h"
#include "datasets/tar.h"
#include "image/decoder.h"
#include "image/write.h"
#include "util/files.h"
#include "util/report.h"
#include "util/text.h"

#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- flags ---- */

static struct {
    const char *data, *out, *split, *classes;
    long short_side, quality, max_count, max_size, seed, threads;
} o = {.split = "train", .quality = 92, .max_count = 100000, .max_size = 1000000000};

static const Flag flags[] = {
    {"data", "DIR", "folder with train/ and val/, or with a folder for each class", FLAG_TEXT,
     &o.data, 0, 0},
    {"out", "PATTERN", "shards to write, as in DIR/train-%06d.tar, or DIR/train for that",
     FLAG_TEXT, &o.out, 0, 0},
    {"split", "train|val", "which images [train]", FLAG_TEXT, &o.split, 0, 0},
    {"classes", "FILE", "one class a line; a folder's label is its line [sorted folder names]",
     FLAG_TEXT, &o.classes, 0, 0},
    {"short-side", "N", "resize larger images to N pixels on the shorter side; 0: leave them [0]",
     FLAG_NUMBER, &o.short_side, 0, IMAGE_MAX_SIDE},
    {"quality", "N", "of the JPEG files that are encoded [92]", FLAG_NUMBER, &o.quality, 1, 100},
    {"max-count", "N", "samples in a shard [100000]", FLAG_NUMBER, &o.max_count, 1, 1000000000},
    {"max-size", "BYTES", "size of a shard; K, M and G are powers of 1000 [1G]", FLAG_BYTES,
     &o.max_size, 10000, 1000000000000000L},
    {"seed", "N", "of the order [0]", FLAG_NUMBER, &o.seed, 0, INT64_MAX},
    {"threads", "N", "that read and encode; 0: one per core [0]", FLAG_NUMBER, &o.threads, 0, 4096},
};

/* ---- names of shards ---- */

/* dir/head + a number of `width` digits + tail */
typedef struct {
    char *dir, *head, *tail;
    int width;
} Pattern;

static NORETURN void bad_pattern(const char *what)
{
    die_usage("name the shards as in --out DIR/train-%06d.tar, or --out DIR/train", "--out %s: %s",
              o.out, what);
}

/* One conversion %d, %6d or %06d (all are padded with zeros); without any, -%06d.tar is added. */
static Pattern read_pattern(const char *text)
{
    const char *slash = strrchr(text, '/'), *base = slash ? slash + 1 : text;
    const char *percent = strchr(base, '%');
    struct stat st;
    if (stat(text, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
        bad_pattern("a device or a pipe, beside which no shards are kept");
    if (strpbrk(text, "{}"))
        bad_pattern("the number of shards is not known beforehand: braces cannot be used here");
    if (!*base)
        bad_pattern("a directory, not a name");
    if (strcspn(text, "%") < (size_t)(base - text))
        bad_pattern("the number must stand in the file's name, not in the directory's");
    Pattern p = {.width = 6};
    if (!slash)
        p.dir = xstrdup(".");
    else
        p.dir = xasprintf("%.*s", slash == text ? 1 : (int)(slash - text), text);
    if (!percent) {
        size_t n = strlen(base);
        bool tar = n > 4 && strcmp(base + n - 4, ".tar") == 0;
        p.head = xasprintf("%.*s-", (int)(tar ? n - 4 : n), base);
        p.tail = xstrdup(".tar");
        return p;
    }
    const char *type = percent + 1 + strspn(percent + 1, "0123456789");
    long width = type > percent + 1 ? strtol(percent + 1, NULL, 10) : 0;
    if (*type != 'd' || width > 18 || strchr(type, '%'))
        bad_pattern("it must hold one integer conversion such as %06d, and no other %");
    p.width = (int)width;
    p.head = xasprintf("%.*s", (int)(percent - base), base);
    p.tail = xstrdup(type + 1);
    return p;
}

static char *shard_path(const Pattern *p, long shard)
{
    const char *between = strcmp(p->dir, "/") == 0 ? "" : "/";
    return xasprintf("%s%s%s%0*ld%s", p->dir, between, p->head, p->width, shard, p->tail);
}

/* Shards that are there already would be mixed with these. */
static void refuse_existing(const Pattern *p)
{
    Error e;
    Names found = {0};
    if (!names_in(p->dir, p->tail, &found, &e))
        die("name a directory that you may write to", "%s", e.what);
    size_t head = strlen(p->head), tail = strlen(p->tail);
    for (int i = 0; i < found.n; i++) {
        const char *name = found.at[i];
        if (strncmp(name, p->head, head) != 0)
            continue;
        size_t digits = strspn(name + head, "0123456789");
        if (digits > 0 && head + digits + tail == strlen(name))
            die("remove the older shards, or choose another --out", "%s/%s is already there",
                p->dir, name);
    }
    names_free(&found);
}

/* ---- one picture ---- */

typedef struct {
    long sample;
    uint8_t *bytes; /* of a JPEG file; NULL: damaged */
    size_t n;
    bool converted; /* it was no JPEG */
    Error why;
} Picture;

static uint8_t *read_file(Decoder *d, const char *path, size_t *n, Error *e)
{
    struct stat st;
    uint8_t *bytes = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        fail(e, "", "cannot open: %s", fd < 0 ? strerror(errno) : "not a regular file");
    else
        bytes = decoder_room(d, *n = (size_t)st.st_size, e);
    long got = bytes ? read_at(fd, bytes, *n, 0) : 0;
    if (bytes && got != (long)*n) {
        fail(e, "", "cannot read: %s", got < 0 ? strerror(errno) : "it became shorter");
        bytes = NULL;
    }
    if (fd >= 0)
        close(fd);
    return bytes;
}

/* A JPEG file stays as it is, unless it is larger than --short-side: it is decoded all the same, an
 * eighth as large, to see that it can be. Others are encoded, in their size or with that shorter
 * side (the longer truncated, as torchvision does). */
static bool make_picture(Decoder *d, const char *path, Picture *p)
{
    size_t n = 0;
    uint8_t *bytes = read_file(d, path, &n, &p->why);
    if (!bytes || !decoder_open(d, bytes, n, &p->why))
        return false;
    long w = decoder_width(d), h = decoder_height(d), shorter = w < h ? w : h;
    Box all = {0, 0, (int)w, (int)h};
    bool resize = o.short_side > 0 && shorter > o.short_side;
    if (resize) {
        w = w * o.short_side / shorter;
        h = h * o.short_side / shorter;
    }
    p->converted = n <= 3 || memcmp(bytes, "\xff\xd8\xff", 3) != 0;
    bool keep = !p->converted && !resize;
    Preprocess t = {.out_w = (int)w, .out_h = (int)h, .filter = FILTER_BICUBIC};
    if (keep)
        t = (Preprocess){.out_w = 8, .out_h = 8, .decode = DECODE_FAST};
    uint8_t *rgb = malloc((size_t)t.out_w * (size_t)t.out_h * 3);
    if (!rgb)
        return fail(&p->why, "", "%d x %d pixels do not fit in memory", t.out_w, t.out_h);
    bool ok = decoder_crop(d, &t, all, false, rgb, &p->why);
    if (ok && keep)
        p->bytes = memcpy(xmalloc(n), bytes, p->n = n);
    else if (ok)
        ok = image_encode_jpeg(rgb, t.out_w, t.out_h, (int)o.quality, &p->bytes, &p->n, &p->why);
    free(rgb);
    return ok;
}

/* ---- writing ---- */

typedef struct {
    Dataset *data;
    Pattern pattern;
    TarWriter *tar;
    long shards, in_shard; /* begun so far; samples in the open one */
    long samples, converted, damaged;
    uint64_t bytes; /* of finished shards */
} Writer;

static volatile sig_atomic_t stopped;

static void stop(int signal)
{
    stopped = signal;
}

/* No half shard stays behind an error; complete ones do. */
static NORETURN void give_up(Writer *w, const Error *e)
{
    report_clear();
    if (w->tar)
        tar_abandon(w->tar);
    long complete = w->shards - (w->tar != NULL);
    if (complete > 0)
        warn("complete, and left in %s: %s", w->pattern.dir, amount((double)complete, "shard").s);
    die(e->hint, "%s", e->what);
}

static void close_shard(Writer *w)
{
    Error e = {"", ""};
    if (!w->tar)
        return;
    uint64_t size = tar_bytes(w->tar) + 1024;
    bool ok = tar_close(w->tar, &e);
    w->tar = NULL;
    w->shards -= !ok;
    if (!ok)
        give_up(w, &e);
    w->bytes += size;
}

static uint64_t member_bytes(size_t n)
{
    return 512 + ((uint64_t)n + 511) / 512 * 512;
}

static void write_picture(Writer *w, const Picture *p)
{
    Error e = {"", ""};
    char label[16], name[32];
    int n = snprintf(label, sizeof label, "%d", data_label(w->data, p->sample));
    uint64_t need = member_bytes((size_t)n) + member_bytes(p->n) + 1024;
    if (w->tar && (w->in_shard == o.max_count || tar_bytes(w->tar) + need > (uint64_t)o.max_size))
        close_shard(w);
    if (!w->tar) {
        char *path = shard_path(&w->pattern, w->shards);
        w->tar = tar_create(path, &e);
        free(path);
        if (!w->tar)
            give_up(w, &e);
        w->shards++;
        w->in_shard = 0;
        if (need > (uint64_t)o.max_size) {
            report_clear();
            warn("a picture of %zu bytes alone is more than --max-size", p->n);
        }
    }
    snprintf(name, sizeof name, "%07ld.cls", p->sample);
    bool ok = tar_add(w->tar, name, label, (size_t)n, &e);
    snprintf(name, sizeof name, "%07ld.jpg", p->sample);
    if (!ok || !tar_add(w->tar, name, p->bytes, p->n, &e))
        give_up(w, &e);
    w->in_shard++;
    w->samples++;
    w->converted += p->converted;
}

static void report_damaged(Writer *w, const Picture *p)
{
    enum { SHOWN = 20 };
    char *path = data_sample_path(w->data, p->sample);
    report_clear();
    if (w->damaged < SHOWN)
        warn("%s: %s; left out", path, p->why.what);
    else if (w->damaged == SHOWN)
        warn("more damaged pictures, which are counted");
    w->damaged++;
    free(path);
}

/* All samples in shuffled order. A chunk is long enough for the threads not to wait for each other,
 * and short enough for memory. */
static void write_samples(Writer *w, int threads)
{
    long n = data_count(w->data), chunk = 16 * threads;
    Decoder **decoders = xcalloc((size_t)threads, sizeof *decoders);
    Picture *pictures = xcalloc((size_t)chunk, sizeof *pictures);
    double start = now();
    for (int i = 0; i < threads; i++)
        decoders[i] = decoder_new();
    for (long at = 0; at < n; at += chunk) {
        int count = (int)(n - at < chunk ? n - at : chunk);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
        for (int i = 0; i < count; i++) {
            if (stopped)
                continue;
            pictures[i] = (Picture){
                .sample = rng_shuffle((uint64_t)o.seed, 0, 0, n, at + i),
            };
            char *path = data_sample_path(w->data, pictures[i].sample);
            make_picture(decoders[omp_get_thread_num()], path, &pictures[i]);
            free(path);
        }
        for (int i = 0; i < count && !stopped; i++) {
            if (pictures[i].bytes)
                write_picture(w, &pictures[i]);
            else
                report_damaged(w, &pictures[i]);
            free(pictures[i].bytes);
        }
        if (stopped) {
            Error e;
            fail(&e, "nothing of the open shard was kept", "stopped by signal %d", (int)stopped);
            give_up(w, &e);
        }
        report_progress("writing", at + count, n, (double)(at + count) / (now() - start));
    }
    for (int i = 0; i < threads; i++)
        decoder_free(decoders[i]);
    free(decoders);
    free(pictures);
    close_shard(w);
    report_clear();
}

/* ---- the command ---- */

/* Class names by label, for --classes; another list in its place belongs to other shards. */
static char *write_classes(const Dataset *d, const char *dir)
{
    Error e = {"", ""};
    char *path = xasprintf("%s/classes.txt", dir), *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f)
        die("free some memory", "out of memory: cannot write %s", path);
    for (int k = 0; k < data_classes(d); k++)
        fprintf(f, "%s\n", data_class_name(d, k));
    fclose(f);
    char *old = path_exists(path) ? read_text(path, 64 << 20, &e) : NULL;
    if (path_exists(path) && (!old || strcmp(old, text) != 0))
        die("write to another directory, or remove the file",
            "%s is already there, with other classes", path);
    if (!old && !save_text(path, text, &e))
        die(e.hint, "%s", e.what);
    free(old);
    free(text);
    return path;
}

static Dataset *open_source(void)
{
    Error e = {"", ""};
    bool train = strcmp(o.split, "train") == 0;
    if (!o.data || !o.out)
        die_usage("./vit shard --data DIR --out PATTERN", "--%s is missing",
                  o.data ? "out" : "data");
    if (!train && strcmp(o.split, "val") != 0)
        die_usage("give --split train or --split val", "--split: '%s' is neither train nor val",
                  o.split);
    if (!is_dir(o.data))
        die("name a folder with a folder for each class", "%s: %s", o.data,
            strchr(o.data, ':') ? "shards are made from folders of images" : "no such directory");
    DataOptions d = {
        .spec = o.data, .classes = o.classes, .train = train, .images = {.out_h = 1, .out_w = 1}};
    Dataset *data = data_open(&d, &e);
    if (!data)
        die(e.hint, "%s", e.what);
    return data;
}

/* Whether --data has validation images beside those that were written. */
static bool has_validation(void)
{
    DataOptions d = {.spec = o.data, .classes = o.classes, .images = {.out_h = 1, .out_w = 1}};
    Error none;
    Dataset *data = data_open(&d, &none);
    bool has = data && data_split(data) >= SPLIT_VAL;
    data_close(data);
    return has;
}

static void print_summary(const Writer *w, const char *classes)
{
    char *first = shard_path(&w->pattern, 0);
    const char *dir = strcmp(w->pattern.dir, "/") == 0 ? "" : w->pattern.dir;
    int width = w->pattern.width;
    if (w->converted)
        printf("%s encoded as JPEG, at quality %ld\n", amount((double)w->converted, "picture").s,
               o.quality);
    flags_note(w->converted > 0, "short-side quality", "here: no picture was encoded");
    if (w->damaged)
        warn("damaged, and left out: %ld of %s", w->damaged,
             amount((double)data_count(w->data), "picture").s);
    printf("%s, %s, %.3f GB\n", amount((double)w->shards, "shard").s,
           amount((double)w->samples, "sample").s, 1e-9 * (double)w->bytes);
    bool train = strcmp(o.split, "train") == 0;
    char *shards = xasprintf("wds:%s/%s{%0*d..%0*ld}%s", dir, w->pattern.head, width, 0, width,
                             w->shards - 1, w->pattern.tail);
    char *words[] = {shell_word(shards), shell_word(classes),
                     shell_word(has_validation() ? o.data : "none")};
    if (train)
        printf("train from them: --data %s --val-data %s --classes %s\n", words[0], words[2],
               words[1]);
    else
        printf("evaluate on them: --val-data %s --classes %s\n", words[0], words[1]);
    for (int i = 0; i < COUNT(words); i++)
        free(words[i]);
    free(shards);
    free(first);
}

static int run_shard(const Command *c, int argc, char **argv)
{
    Error e = {"", ""};
    flags_take(c, &argc, argv);
    flags_none_left(c, argc, argv);
    Writer w = {.data = open_source()};
    w.pattern = read_pattern(o.out);
    if (!make_dirs(w.pattern.dir, &e))
        die(e.hint, "%s", e.what);
    refuse_existing(&w.pattern);
    char *classes = write_classes(w.data, w.pattern.dir);
    struct sigaction action = {.sa_handler = stop, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGXFSZ, SIG_IGN); /* write() says so */
    int threads = o.threads ? (int)o.threads : omp_get_num_procs();
    data_describe(w.data, "", NULL);
    fflush(stdout);
    write_samples(&w, threads);
    if (w.samples == 0)
        die("see the warnings above", "%s: none of %s is whole", o.data,
            amount((double)w.damaged, "picture").s);
    print_summary(&w, classes);
    free(classes);
    data_close(w.data);
    free(w.pattern.dir);
    free(w.pattern.head);
    free(w.pattern.tail);
    return 0;
}

const Command command_shard = {
    .name = "shard",
    .summary = "turn a folder of images into tar shards",
    .usage = "--data DIR --out PATTERN [--split train|val] [--short-side 256] [...]",
    .help =
        "Writes a folder of images as tar files of samples, as WebDataset does: 0001234.cls (the "
        "label) and\n0001234.jpg, in an order that is shuffled once. JPEG files are copied as they "
        "are unless they are\nresized; others are encoded as JPEG. The class list goes beside "
        "them, to classes.txt.\nThe same bytes for any number of threads.\n",
    .flags = flags,
    .n_flags = COUNT(flags),
    .run = run_shard,
};
