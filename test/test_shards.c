/* test_shards.c - tar shards as data sets: order, bytes, index files, and what is refused.
 *
 * The shards are written here. A sample's picture is one colour that tells which sample it is.
 */
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "data.h"
#include "datasets/dali_index.h"
#include "datasets/tar.h"
#include "check.h"
#include "files.h"
#include "image/decoder.h"
#include "said.h"
#include "util/files.h"

enum { SIDE = 8, BYTES = 3 * SIDE * SIDE, SHARDS = 7, CLASSES = 5 };
static const int counts[SHARDS] = {5, 9, 1, 12, 3, 8, 6}; /* samples of each shard */
enum { SAMPLES = 44 };

static Decoder *decoder;

/* ---- writing shards ---- */

static void add(TarWriter *w, int sample, const char *ext, const void *bytes, size_t n)
{
    char name[64];
    Error e;
    snprintf(name, sizeof name, "%07d.%s", sample, ext);
    CHECK(tar_add(w, name, bytes, n, &e), "%s", e.what);
}

static void add_label(TarWriter *w, int sample, const char *label)
{
    add(w, sample, "cls", label, strlen(label));
}

static void add_picture(TarWriter *w, int sample)
{
    uint8_t ppm[11 + 12];
    memcpy(ppm, "P6 2 2 255 ", 11);
    memset(ppm + 11, 10 + sample, 12);
    add(w, sample, "ppm", ppm, sizeof ppm);
}

static TarWriter *create(const char *path)
{
    Error e;
    TarWriter *w = tar_create(path, &e);
    if (!w)
        die(e.hint, "%s", e.what);
    return w;
}

static void finish(TarWriter *w)
{
    Error e;
    CHECK(tar_close(w, &e), "%s", e.what);
}

static void write_shard(const char *path, int first, int n)
{
    TarWriter *w = create(path);
    for (int i = first; i < first + n; i++) {
        char label[16];
        snprintf(label, sizeof label, i % 2 ? "%d" : " %d\n", i % CLASSES);
        add_label(w, i, label);
        if (i % 3 == 0)
            add(w, i, "json", "{}", 2);
        add_picture(w, i);
        if (i % 4 == 0)
            add(w, i, "seg.png", "no picture of the sample", 24);
        if (i % 4 == 2)
            add(w, i, "png", "not the first picture", 21);
    }
    finish(w);
}

/* DIR/NAME-0.tar ... with all samples; the pattern that names them. */
static const char *write_shards(const char *name)
{
    char path[256];
    for (int k = 0, first = 0; k < SHARDS; first += counts[k++]) {
        snprintf(path, sizeof path, "%s/%s-%d.tar", temporary, name, k);
        write_shard(path, first, counts[k]);
    }
    snprintf(path, sizeof path, "%s-{0..%d}.tar", name, SHARDS - 1);
    return at(temporary, path);
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0, "%s", path);
}

static DataOptions options(const char *pattern)
{
    return (DataOptions){.spec = xasprintf("wds:%s", pattern),
                         .train = true,
                         .images.out_h = SIDE,
                         .images.out_w = SIDE,
                         .images.filter = FILTER_BILINEAR,
                         .images.crop = CROP_STRETCH,
                         .seed = 5};
}

static Dataset *open_options(DataOptions o)
{
    Error e = {"", ""};
    Dataset *d = data_open(&o, &e);
    CHECK(d != NULL, "%s", e.what);
    free((char *)o.spec);
    return d;
}

static void refuse_options(DataOptions o, const char *say)
{
    Error e = {"", ""};
    Dataset *d = data_open(&o, &e);
    CHECK(!d && strstr(e.what, say) && e.hint[0], "expected '...%s...', got '%s'", say,
          d ? "success" : e.what);
    data_close(d);
    free((char *)o.spec);
}

/* ---- order ---- */

static int shard_of(int sample)
{
    int k = 0;
    while (sample >= counts[k])
        sample -= counts[k++];
    return k;
}

/* An epoch in the order of d: every sample once; at most `window` shards at a time, each shard's
 * samples within one window. */
static void check_epoch(Dataset *d, int window, long epoch)
{
    int seen[SAMPLES] = {0}, shard[SHARDS], shards = 0, left[SHARDS];
    memcpy(left, counts, sizeof left);
    for (long p = 0; p < SAMPLES; p++) {
        long i = data_order(d, epoch, p);
        if (!CHECK(i >= 0 && i < SAMPLES && !seen[i], "position %ld is sample %ld", p, i))
            return;
        seen[i] = 1;
        int k = shard_of((int)i), j = 0;
        while (j < shards && shard[j] != k)
            j++;
        if (j == shards)
            shard[shards++] = k;
        left[k]--;
        /* A shard of a later window comes when all of the earlier ones are through. */
        for (int m = 0; m < j / window * window; m++)
            CHECK(left[shard[m]] == 0, "window %d: %d of shard %d left", window, left[shard[m]],
                  shard[m]);
    }
}

static void test_order(const char *pattern)
{
    static const int windows[] = {1, 2, 3, 4, 7, 100};
    for (int w = 0; w < COUNT(windows); w++) {
        DataOptions o = options(pattern);
        o.window = windows[w];
        Dataset *d = open_options(o);
        if (!d)
            return;
        CHECK(data_count(d) == SAMPLES && data_classes(d) == CLASSES);
        int moved = 0, same = 0;
        for (long epoch = 0; epoch < 4; epoch++)
            check_epoch(d, windows[w], epoch);
        for (long p = 0; p < SAMPLES; p++) {
            long i = data_order(d, 1, p);
            moved += i != p;
            same += i == data_order(d, 2, p);
            CHECK(i == data_order(d, 1, p), "the same when asked again");
        }
        CHECK(moved > SAMPLES / 2 && same < SAMPLES / 2, "%d moved, %d as in the next epoch", moved,
              same);
        int begins[SHARDS] = {0}, different = 0; /* shards that come first in some epoch */
        for (long epoch = 0; epoch < 40; epoch++)
            different += begins[shard_of((int)data_order(d, epoch, 0))]++ == 0;
        CHECK(different > SHARDS / 2, "window %d: %d shards begin an epoch", windows[w], different);
        data_close(d);
    }
}

static void test_samples(const char *pattern)
{
    Dataset *d = open_options(options(pattern));
    uint8_t out[BYTES];
    for (long i = 0; d && i < SAMPLES; i++) {
        int label = data_sample(d, decoder, i, 0, 0, out);
        CHECK(label == i % CLASSES && out[0] == 10 + i && out[BYTES - 1] == 10 + i,
              "sample %ld: level %d", i, out[0]);
        char *path = data_sample_path(d, i), name[64];
        snprintf(name, sizeof name, "-%d.tar#%07ld.ppm", shard_of((int)i), i);
        CHECK(strstr(path, name) != NULL, "%s, not %s", path, name);
        free(path);
    }
    data_close(d);
    /* A folder, and patterns one after the other. */
    const char *dir = at(temporary, "two");
    Error e;
    CHECK(make_dirs(dir, &e));
    write_shard(at(dir, "a.tar"), 0, 3);
    write_shard(at(dir, "b.tar"), 3, 4);
    d = open_options(options(dir));
    CHECK(d && data_count(d) == 7);
    data_close(d);
    char *both = xasprintf("%s::%s", pattern, dir);
    d = open_options(options(both));
    CHECK(d && data_count(d) == SAMPLES + 7 && data_label(d, SAMPLES + 6) == 6 % CLASSES);
    data_close(d);
    free(both);
}

static void test_subsets(const char *pattern)
{
    DataOptions o = options(pattern);
    o.classes_fraction = 0.5; /* 3 of 5 */
    o.per_class = 4;
    Dataset *d = open_options(o);
    if (!d)
        return;
    CHECK(data_count(d) == 12 && data_classes(d) == 3, "%ld of %d classes", data_count(d),
          data_classes(d));
    char seen[12] = {0};
    uint8_t out[BYTES];
    for (long p = 0; p < 12; p++) {
        long i = data_order(d, 3, p);
        CHECK(i >= 0 && i < 12 && !seen[i]++);
        int label = data_sample(d, decoder, i, 0, 0, out);
        CHECK(label == (out[0] - 10) % CLASSES, "label %d, level %d", label, out[0]);
        CHECK((out[0] - 10) % CLASSES < 3 && out[0] - 10 < 4 * CLASSES, "one of the first");
    }
    data_close(d);
}

/* ---- batches ---- */

static long read_run(Dataset *d, LoaderOptions o, uint8_t *images, int *labels)
{
    long n = 0;
    Loader *l = loader_open(d, &o);
    for (const Batch *b; (b = loader_next(l)); n += b->n) {
        memcpy(images + n * BYTES, b->images, (size_t)b->n * BYTES);
        memcpy(labels + n, b->labels, sizeof(int) * (size_t)b->n);
    }
    loader_close(l);
    return n;
}

static void test_batches(const char *pattern)
{
    enum { END = 3 * SAMPLES + 7 };
    static uint8_t whole[END * BYTES], other[END * BYTES];
    static int labels[END], others[END];
    DataOptions o = options(pattern);
    o.images.augment = true;
    o.images.flip = 0.5;
    o.images.area_min = 0.3;
    o.images.area_max = o.images.ratio_min = o.images.ratio_max = 1;
    Dataset *d = open_options(o);
    if (!d)
        return;
    LoaderOptions run = {.batch = 6, .shuffle = true, .end = END, .workers = 1};
    CHECK(read_run(d, run, whole, labels) == END);
    for (int workers = 0; workers < 9; workers += 2) {
        run.workers = workers; /* 0: added while it runs */
        run.max_workers = 6;
        CHECK(read_run(d, run, other, others) == END && memcmp(whole, other, sizeof whole) == 0 &&
                  memcmp(labels, others, sizeof labels) == 0,
              "%d workers", workers);
    }
    run.start = 49; /* in the second epoch */
    CHECK(read_run(d, run, other, others) == END - 49 &&
              memcmp(whole + 49 * BYTES, other, (END - 49) * BYTES) == 0,
          "a later start");
    for (int rank = 0; rank < 3; rank++) { /* batches of 6, in shares of 2 */
        LoaderOptions share = {
            .batch = 2, .shuffle = true, .start = 2 * rank, .stride = 6, .end = END, .workers = 2};
        long n = read_run(d, share, other, others);
        for (long k = 0; k < n; k++) {
            long p = k / 2 * 6 + 2 * rank + k % 2;
            CHECK(p < END && memcmp(whole + p * BYTES, other + k * BYTES, BYTES) == 0 &&
                      labels[p] == others[k],
                  "rank %d, image %ld", rank, k);
        }
    }
    /* Evaluation: everything in order, once, over all ranks. */
    int seen[SAMPLES] = {0};
    for (int rank = 0; rank < 2; rank++) {
        LoaderOptions eval = {
            .batch = 4, .start = 4 * rank, .stride = 8, .end = SAMPLES, .workers = 3};
        long n = read_run(d, eval, other, others);
        for (long k = 0; k < n; k++)
            seen[other[k * BYTES] - 10]++;
    }
    for (int i = 0; i < SAMPLES; i++)
        CHECK(seen[i] == 1, "sample %d: %d times", i, seen[i]);
    data_close(d);
}

/* ---- index files ---- */

static void test_index(const char *pattern)
{
    Error e = {"", ""};
    const char *dir = at(temporary, "index");
    CHECK(make_dirs(dir, &e));
    char path[512], shard[512];
    for (int k = 0; k < SHARDS; k++) {
        snprintf(path, sizeof path, "%s/idx_%d.txt", dir, k + 4); /* 10 comes after 9 */
        snprintf(shard, sizeof shard, "%s/set-%d.tar", temporary, k);
        CHECK(index_write(shard, path, NULL, &e), "%s", e.what);
    }
    DataOptions o = options(pattern);
    o.index_dir = dir;
    Dataset *d = open_options(o), *plain = open_options(options(pattern));
    uint8_t a[BYTES], b[BYTES];
    for (long i = 0; d && plain && i < SAMPLES; i++)
        CHECK(data_sample(d, decoder, i, 0, 0, a) == data_sample(plain, decoder, i, 0, 0, b) &&
                  data_label(d, i) == i % CLASSES && memcmp(a, b, BYTES) == 0,
              "sample %ld", i);
    data_close(d);
    data_close(plain);
    /* Beyond the file's end; in the middle of another file, which begins as a label does. */
    snprintf(path, sizeof path, "%s/alone/idx_0.txt", temporary);
    o = options(at(temporary, "two/a.tar"));
    o.index_dir = at(temporary, "alone");
    CHECK(make_dirs(o.index_dir, &e));
    write_text(path, "v1.2 1\ncls 512 3 a.cls ppm 2560 99999999 a.ppm\n");
    refuse_options(o, "ends beyond the");
    static const char large[2000] = "1";
    const char *other = at(temporary, "other.tar");
    TarWriter *w = create(other);
    add(w, 0, "txt", large, sizeof large);
    finish(w);
    o = options(other);
    o.index_dir = at(temporary, "alone");
    write_text(path, "v1.2 1\ncls 512 1 a.cls ppm 1536 23 a.ppm\n");
    refuse_options(o, "other.tar: byte 512: no cls file of 1 bytes");
    /* Of another archive, of one too few, of none. */
    snprintf(path, sizeof path, "%s/idx_7.txt", dir);
    snprintf(shard, sizeof shard, "%s/set-1.tar", temporary);
    CHECK(index_write(shard, path, NULL, &e), "%s", e.what);
    o = options(pattern);
    o.index_dir = dir;
    refuse_options(o, "set-3.tar");
    CHECK(truncate(path, 60) == 0);
    o = options(pattern);
    o.index_dir = dir;
    refuse_options(o, "idx_7.txt");
    CHECK(unlink(path) == 0);
    o = options(pattern);
    o.index_dir = dir;
    refuse_options(o, "6 files idx_N.txt for 7 shards");
    o = options(pattern);
    o.index_dir = at(temporary, "nowhere");
    refuse_options(o, "cannot read the directory");
}

/* More shards than may be open: files are closed when nobody reads them, and not before. */
static void test_descriptors(void)
{
    enum { MANY = 60 };
    struct rlimit before, few;
    Error e;
    const char *dir = at(temporary, "many");
    CHECK(make_dirs(dir, &e));
    for (int i = 0; i < MANY; i++) {
        char path[256];
        snprintf(path, sizeof path, "%s/%02d.tar", dir, i);
        write_shard(path, i, 1);
    }
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    few = before;
    few.rlim_cur = 48; /* of which open shards get 12 */
    CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
    DataOptions o = options(dir);
    o.window = MANY;
    Dataset *d = open_options(o);
    LoaderOptions run = {.batch = 4, .shuffle = true, .end = 40 * MANY, .workers = 12};
    Loader *l = d ? loader_open(d, &run) : NULL;
    for (const Batch *b; l && (b = loader_next(l));)
        for (int i = 0; i < b->n; i++) {
            int level = b->images[i * BYTES];
            CHECK(b->labels[i] == (level - 10) % CLASSES, "level %d", level);
        }
    loader_close(l);
    CHECK(d && data_count(d) == MANY && data_damaged(d) == 0);
    data_close(d);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
}

/* ---- what is refused ---- */

static void refuse(const char *path, const char *say)
{
    refuse_options(options(path), say);
}

static void test_refused(const char *pattern)
{
    const char *path = at(temporary, "bad.tar");
    TarWriter *w = create(path);
    add_label(w, 0, "1");
    add_picture(w, 0);
    add_label(w, 1, "1");
    finish(w);
    refuse(path, "bad.tar: the sample 0000001 has no picture");
    w = create(path);
    add_picture(w, 0);
    add_picture(w, 1);
    finish(w);
    refuse(path, "bad.tar: the sample 0000000 has no cls file");
    static const char *const labels[] = {"",        "x", "-1", "1.5", "1 2", "99999999999999999999",
                                         "16777216"};
    for (int i = 0; i < COUNT(labels); i++) {
        w = create(path);
        add_label(w, 0, labels[i]);
        add_picture(w, 0);
        finish(w);
        refuse(path, "no label from 0");
    }
    w = create(path);
    finish(w);
    refuse(path, "bad.tar");
    w = create(path);
    add(w, 0, "txt", "only text", 9);
    finish(w);
    refuse(path, "has no picture");
    write_shard(path, 0, 4);
    CHECK(truncate(path, 512 * 9 + 100) == 0);
    refuse(path, "bad.tar");
    refuse(at(temporary, "bad-{0..2}.tar"), "bad-0.tar");
    refuse(at(temporary, "bad-{0..2"), "bad-{0..2");
    refuse("", "no shards are named");
    Error e;
    CHECK(make_dirs(at(temporary, "bare"), &e));
    refuse(at(temporary, "bare"), "no .tar files");
    /* Labels outside of what the model or the class file has. */
    DataOptions o = options(pattern);
    o.num_classes = 4;
    refuse_options(o, "has label 4, but there are 4 classes");
    o = options(pattern);
    o.num_classes = 9;
    Dataset *d = open_options(o);
    CHECK(d && data_classes(d) == 9 && strcmp(data_class_name(d, 8), "8") == 0);
    data_close(d);
    write_text(at(temporary, "names.txt"), "a\nb\nc\n");
    o = options(pattern);
    o.classes = at(temporary, "names.txt");
    refuse_options(o, "there are 3 classes");
}

/* An archive of "0.ppm 0.cls=1 ...": what stands behind `=`, where % is a blank, or a picture. */
static void write_members(const char *path, const char *members)
{
    static const char ppm[] = "P6 2 2 255 abcabcabcabc";
    char *text = xstrdup(members), *rest = text, *name;
    Error e;
    Error none = {"", ""};
    TarWriter *w = create(path);
    while ((name = strsep(&rest, " "))) {
        char *value = strchr(name, '=');
        if (value)
            *value++ = '\0';
        for (char *p = value; p && *p; p++)
            *p = *p == '%' ? ' ' : *p;
        const char *bytes = value ? value : ppm;
        CHECK(tar_add(w, name, bytes, strlen(bytes), &none), "%s", none.what);
    }
    free(text);
    CHECK(tar_close(w, &e), "%s", e.what);
}

/* Names, endings, and where the labels are: labels and classes of what is right, the error of what
 * is not. */
static void test_labels(void)
{
    static const struct {
        const char *label, *members, *want, *classes; /* classes NULL: an error, `want` */
    } cases[] = {
        {NULL, "a/b.c/0.PPM a/b.c/0.CLS=1 ./1.ppm ./1.cls=0", "1 0", "0 1"},
        {NULL, "._0.ppm=x ._0.cls=x 0.ppm 0.cls=2", "2", "0 1 2"},
        {NULL, "0.jfif 0.cls=1 1.JPE 1.cls=0 2.jif 2.cls=1", "1 0 1", "0 1"},
        {"txt", "0.ppm 0.txt=1 1.ppm 1.txt=0", "1 0", "0 1"},
        {"txt", "0.ppm 0.TXT=cat 1.ppm 1.txt=a%dog%", "1 0", "a dog cat"},
        {".txt", "0.ppm 0.txt=10 0.cls=3", "10", "0 1 2 3 4 5 6 7 8 9 10"},
        {"json:label", "0.ppm 0.json={\"label\":2} 1.json={\"x\":1,\"label\":0} 1.ppm", "2 0",
         "0 1 2"},
        {"json:id", "0.ppm 0.json={\"id\":\"b\"} 1.ppm 1.json={\"id\":\"a\"}", "1 0", "a b"},
        {"folder", "x/b/0.ppm x/a/0.ppm x/b/1.ppm x/b/1.cls=5", "1 0 1", "a b"},
        {"folder", "10/0.ppm 2/0.ppm", "0 1", "10 2"},
        {"folder", "0.ppm", "0.ppm has no folder in its name", NULL},
        {"folder", "./0.ppm", "0.ppm has no folder in its name", NULL},
        {"json:labl", "0.ppm 0.json={\"label\":2}", "0.json has no number and no name", NULL},
        {"json:label", "0.ppm 0.json=2", "0.json has no number and no name", NULL},
        {"json:label", "0.ppm 0.json={", "0.json is no JSON object with the key", NULL},
        {"json:label", "0.ppm 0.json={\"label\":1.5}", "0.json: '1.5' is no label", NULL},
        {"json:label", "0.ppm 0.json={\"label\":null}", "has no number and no name", NULL},
        {"json", "0.ppm 0.json={}", "0.json holds JSON, no label", NULL},
        {"txt", "0.ppm 0.txt=1.0", "0.txt: '1.0' is no label", NULL},
        {"txt", "0.ppm 0.txt=-1", "0.txt: '-1' is no label", NULL},
        {"txt", "0.ppm 0.txt=a 1.ppm 1.txt=1", "1.txt: '1' is a number, labels before", NULL},
        {"txt", "0.ppm 0.txt=1 1.ppm 1.txt=a", "1.txt: 'a' is a name, labels before", NULL},
        {"txt", "0.ppm 0.cls=1", "the sample 0 has no txt file, only cls, ppm", NULL},
        {NULL, "0.json={} 0.cls=1", "the sample 0 has no picture, only cls, json", NULL},
        {NULL,
         "0.ppm 0.cls=\xef\xbb\xbf"
         "1",
         "1", "0 1"},
        {NULL, "0.ppm 0.cls=1.0", "0.cls: '1.0' is no label", NULL},
        {NULL, "0.ppm 0.cls=cat", "0.cls: 'cat' is no label", NULL},
        {NULL, "0.ppm 0.cls=0 0.ppm 0.cls=1", "the sample 0 has cls twice, at byte", NULL},
        {NULL, "0.ppm 0.PPM 0.cls=1", "the sample 0 has ppm twice, at byte", NULL},
        {NULL, "0.ppm 0.cls=0 1.ppm 1.cls=0 0.ppm 0.cls=1", "the sample 0 stands twice, at byte",
         NULL},
        {NULL, "0.ppm 0.cls=0 0.2.ppm 0.2.cls=1", "0.ppm and 0.2.ppm have the same key, 0", NULL},
        {NULL, "0.ppm 0.cls=0 0.2.cls=1", "0.ppm and 0.2.cls have the same key, 0", NULL},
        {NULL, "0.ppm 0.cls=0 0.seg.ppm 0.mask.2.ppm", "0", "0"},
        {NULL, "A.2023.0.ppm A.2023.0.cls=1", "A has no picture, but A.2023.0.ppm", NULL},
        {NULL, "0.in.ppm 0.cls=1", "0 has no picture, but 0.in.ppm", NULL},
        {NULL, "0.ppm 0.in.cls=1", "0 has no label, but 0.in.cls", NULL},
        {NULL, "0.ppm 1.ppm 0.cls=1 1.cls=1", "0 is not in one piece: 0.cls stands apart", NULL},
        {NULL, "0.ppm 0.cls=1 1.ppm", "the sample 1 has no cls file", NULL},
        {NULL, "0.ppm 0.index=1", "--wds-label index reads it there", NULL},
        {NULL, "0.json={} 0.ppm", "--wds-label json:KEY reads it there", NULL},
        {NULL, "a/0.ppm b/1.ppm", "--wds-label folder takes", NULL},
        {"index", "0.ppm 0.index=1 1.ppm 1.index=0", "1 0", "0 1"},
    };
    const char *path = at(temporary, "labels.tar");
    for (int i = 0; i < COUNT(cases); i++) {
        Error e = {"", ""};
        char labels[64] = "", classes[64] = "";
        write_members(path, cases[i].members);
        DataOptions o = options(path);
        o.wds_label = cases[i].label;
        Dataset *d = data_open(&o, &e);
        free((char *)o.spec);
        if (!cases[i].classes) {
            CHECK(!d && (strstr(e.what, cases[i].want) || strstr(e.hint, cases[i].want)) &&
                      e.hint[0],
                  "case %d: %s; %s", i, e.what, e.hint);
            data_close(d);
            continue;
        }
        for (long k = 0; d && k < data_count(d); k++)
            snprintf(labels + strlen(labels), 8, "%s%d", k ? " " : "", data_label(d, k));
        for (int k = 0; d && k < data_classes(d); k++)
            snprintf(classes + strlen(classes), 8, "%s%s", k ? " " : "", data_class_name(d, k));
        CHECK(d && strcmp(labels, cases[i].want) == 0 && strcmp(classes, cases[i].classes) == 0,
              "case %d: labels %s of %s: %s", i, labels, classes, e.what);
        data_close(d);
    }
}

/* Names are numbered over all shards alike: sorted, as another split has them, or as a file has. */
static void test_label_names(void)
{
    static const char *const members[] = {"b/0.ppm 10/1.ppm", "a/0.ppm b/1.ppm", "2/0.ppm"};
    static const struct {
        const char *list; /* NULL: sorted; by `order` */
        int order;
        bool like;
        int labels[5];
    } cases[] = {{NULL, 0, false, {3, 0, 2, 3, 1}},
                 {NULL, 1, false, {3, 1, 2, 3, 0}},
                 {"b\n2\na\n10\nmore\n", 0, false, {0, 3, 2, 0, 1}},
                 {"b\n2\na\n10\nmore\n", 0, true, {0, 3, 2, 0, 1}}};
    const char *dir = at(temporary, "named"), *list = at(temporary, "named.txt");
    Error e;
    CHECK(make_dirs(dir, &e));
    for (int k = 0; k < COUNT(members); k++) {
        char name[32];
        snprintf(name, sizeof name, "named/%d.tar", k);
        write_members(at(temporary, name), members[k]);
    }
    for (int i = 0; i < COUNT(cases); i++) {
        DataOptions o = options(dir);
        Names like = {0};
        o.wds_label = "folder";
        o.class_order = cases[i].order;
        if (cases[i].list)
            write_text(list, cases[i].list);
        if (cases[i].list && !cases[i].like)
            o.classes = list;
        static const char *const names[] = {"b", "2", "a", "10", "more"};
        for (int k = 0; k < COUNT(names); k++)
            names_add(&like, names[k]);
        if (cases[i].like)
            o.like = &like;
        Dataset *d = open_options(o);
        CHECK(d && data_classes(d) == (cases[i].list ? 5 : 4) &&
                  data_order_matters(d) == !o.classes,
              "case %d", i);
        for (int k = 0; d && k < 5; k++)
            CHECK(data_label(d, k) == cases[i].labels[k], "case %d: label %d is %d", i, k,
                  data_label(d, k));
        data_close(d);
        names_free(&like);
    }
    write_text(list, "b\n");
    DataOptions o = options(dir);
    o.wds_label = "folder";
    o.classes = list;
    refuse_options(o, "0.tar: the label '10' is not in");
    write_members(at(temporary, "named/3.tar"), "0.ppm 0.txt=1");
    write_members(at(temporary, "named/4.tar"), "0.ppm 0.txt=x");
    o = options(at(temporary, "named/{3..4}.tar"));
    o.wds_label = "txt";
    refuse_options(o, "labels are names in 1 of the 2 shards");
}

/* A folder of shards is divided by their names, or by the folders in it. */
static void test_divided(void)
{
    static const struct {
        const char *shards[6];
        int train, val; /* samples found; -1: refused */
        bool divided;
    } cases[] = {
        {{"set-train-0", "set-train-1", "set-val-0", "set-test-0"}, 3, 4, true},
        {{"Training0", "x_valid_0"}, 1, 2, true},
        {{"train/0", "train/1", "dev/0"}, 3, 4, true},
        {{"train-0", "test-0"}, 1, 2, true},
        {{"train-0", "train-1"}, 3, 3, false},
        {{"a-0", "b-0"}, 3, 3, false},
        {{"train-0", "b-0"}, 1, -1, false},
        {{"b-0", "val-0"}, -1, 2, true},
        {{"trainval-0", "train-val-0"}, 3, 3, false},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        Error e;
        char name[64];
        snprintf(name, sizeof name, "divided%d", i);
        const char *dir = at(temporary, name);
        for (int k = 0; cases[i].shards[k]; k++) { /* 1, 2, 4 ... samples */
            snprintf(name, sizeof name, "%s.tar", cases[i].shards[k]);
            char *path = xstrdup(at(dir, name));
            *strrchr(path, '/') = '\0';
            CHECK(make_dirs(path, &e));
            path[strlen(path)] = '/';
            write_shard(path, 0, 1 << k);
            free(path);
        }
        CHECK(webdataset_divided(dir) == cases[i].divided, "case %d", i);
        for (int train = 0; train < 2; train++) {
            DataOptions o = options(dir);
            o.train = train;
            int want = train ? cases[i].train : cases[i].val;
            if (want < 0) {
                refuse_options(o, train ? "no training shards" : "no validation shards");
                continue;
            }
            Dataset *d = open_options(o);
            CHECK(d && data_count(d) == want, "case %d: %ld", i, d ? data_count(d) : -1);
            CHECK(d && (data_split(d) >= SPLIT_VAL) == (!train && i != 4 && i != 5 && i != 8),
                  "case %d: split %d", i, data_split(d));
            data_close(d);
        }
    }
    char *both = xasprintf("%s/set-{train-0,val-0}.tar", at(temporary, "divided0"));
    for (int train = 0; train < 2; train++) {
        DataOptions o = options(both);
        o.train = train;
        Dataset *d = open_options(o);
        check_said(d, train ? "note: 1 of 2 shards are named for validation or tests: training uses"
                            : "note: 1 of 2 shards are named for training: evaluation uses");
        data_close(d);
    }
    free(both);
    /* What a whole data set's archive has as folders; a class of such a name is none. */
    static const struct {
        const char *label, *members, *train, *val; /* what is said; NULL: nothing */
    } inside[] = {
        {"folder", "train/a/0.ppm train/b/1.ppm val/a/2.ppm",
         "note: 1 of 3 samples lie in folders for validation or tests: training uses them all",
         "note: 2 of 3 samples lie in folders for training: evaluation uses"},
        {NULL, "./set/train/0.ppm ./set/train/0.cls=0 ./set/Test/1.ppm ./set/Test/1.cls=1",
         "note: 1 of 2 samples lie", "note: 1 of 2 samples lie"},
        {"folder", "train/a/0.ppm train/b/1.ppm", NULL, NULL},
        {"folder", "train/0.ppm test/1.ppm", NULL, NULL},
    };
    for (int i = 0; i < 2 * COUNT(inside); i++) {
        write_members(at(temporary, "inside.tar"), inside[i / 2].members);
        DataOptions o = options(at(temporary, "inside.tar"));
        o.wds_label = inside[i / 2].label;
        o.train = i % 2 == 0;
        const char *want = o.train ? inside[i / 2].train : inside[i / 2].val;
        Dataset *all = open_options(o);
        char *said = said_of(all);
        CHECK(want ? strstr(said, want) && strstr(said, "--val-data wds:")
                   : !strstr(said, "lie in"),
              "%s: '%s'", inside[i / 2].members, said);
        free(said);
        data_close(all);
    }
    write_members(at(temporary, "several.tar"), "0.ppm 0.PNG 0.cls=0 1.ppm 1.cls=1");
    Dataset *several = open_options(options(at(temporary, "several.tar")));
    check_said(several, "note: 1 of 2 samples: several pictures, of which the first counts");
    data_close(several);
    struct stat st;
    const char *open_end = at(temporary, "open.tar");
    write_members(open_end, "0.ppm 0.cls=0 1.ppm 1.cls=1");
    CHECK(stat(open_end, &st) == 0 && truncate(open_end, st.st_size - 1024) == 0);
    several = open_options(options(open_end));
    check_said(several, "note: 1 of 1 shard without the zeros that close an archive");
    data_close(several);
    DataOptions captions = options(at(temporary, "captions.tar"));
    char *members = xstrdup("0.ppm 0.txt=a");
    for (int i = 1; i < 20; i++) {
        char *more = xasprintf("%s %d.ppm %d.txt=a%%picture%%%d", members, i, i, i);
        free(members);
        members = more;
    }
    write_members(at(temporary, "captions.tar"), members);
    free(members);
    captions.wds_label = "txt";
    Dataset *d = open_options(captions);
    check_said(d, "note: 20 classes in 20 images, such as 'a': are these labels?");
    data_close(d);
    Error e;
    const char *dir = at(temporary, "packed");
    CHECK(make_dirs(dir, &e));
    write_text(at(dir, "a.tar.gz"), "");
    refuse_options(options(dir), "no .tar files, but compressed ones: a.tar.gz");
    write_text(at(dir, "a.tar.gz"), "\x1f\x8b");
    CHECK(truncate(at(dir, "a.tar.gz"), 1024) == 0);
    refuse_options(options(at(dir, "a.tar.gz")), "compressed with gzip");
    write_text(at(dir, "b.tar"), "\x28\xb5\x2f\xfd");
    CHECK(truncate(at(dir, "b.tar"), 1024) == 0);
    refuse_options(options(at(dir, "b.tar")), "compressed with zstd");
    write_members(at(dir, "b.tar"), "0.ppm 0.cls=0 1.ppm 1.cls=1");
    write_text(at(dir, "b.tar.gz"), "what gunzip -k leaves");
    write_text(at(dir, "c.tgz"), "");
    d = open_options(options(dir));
    check_said(d, "; passed over: 2 compressed, which gunzip -k");
    data_close(d);
}

/* A member that is no picture is replaced, in every epoch alike; a file that changes under our
 * hands ends the program. */
static void test_damage(void)
{
    const char *path = at(temporary, "damaged.tar"), *log = at(temporary, "damaged.log");
    TarWriter *w = create(path);
    for (int i = 0; i < 6; i++) {
        add_label(w, i, "0");
        if (i == 2)
            add(w, i, "ppm", "P6 2 2 255 abc", 14);
        else
            add_picture(w, i);
    }
    finish(w);
    printf("one warning about a damaged image belongs here:\n");
    fflush(stdout);
    Dataset *d = open_options(options(path));
    uint8_t out[BYTES];
    for (int epoch = 0; d && epoch < 3; epoch++)
        CHECK(data_sample(d, decoder, 2, epoch, 0, out) == 0 && out[0] == 13, "level %d", out[0]);
    CHECK(d && data_damaged(d) == 1);
    data_close(d);
    static const char *const say[] = {"has changed", "has changed", "no member of", "shorter"};
    for (int how = 0; how < COUNT(say); how++) {
        write_shard(path, 0, 6);
        pid_t child = fork();
        if (child == 0) {
            if (!freopen(log, "w", stderr))
                _exit(9);
            d = open_options(options(path));
            struct stat st;
            if (how >= 2) /* while it is open */
                data_sample(d, decoder, 1, 0, 0, out);
            if (stat(path, &st) != 0 || (how != 1 && truncate(path, 512 * 6) != 0))
                _exit(9);
            if (how == 1)
                write_shard(path, 30, 6);
            if (how == 2 && truncate(path, st.st_size) != 0) /* zeros from there on */
                _exit(9);
            data_sample(d, decoder, 5, 0, 0, out);
            data_sample(d, decoder, 0, 0, 0, out);
            _exit(8);
        }
        int status = -1;
        Error e;
        CHECK(child > 0 && waitpid(child, &status, 0) == child);
        char *text = read_text(log, 1 << 16, &e);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 1 && text && strstr(text, "damaged.tar"),
              "status %d, %s", status, text ? text : e.what);
        CHECK(text && strstr(text, say[how]), "%d: %s", how, text ? text : "");
        free(text);
    }
}

int main(int argc, char **argv)
{
    if (!files_begin(argc, argv))
        return check_report();
    setenv("VIT_CACHE", "off", 1);
    decoder = decoder_new();
    const char *pattern = write_shards("set");
    test_order(pattern);
    test_samples(pattern);
    test_subsets(pattern);
    test_batches(pattern);
    test_index(pattern);
    test_descriptors();
    test_refused(pattern);
    test_labels();
    test_label_names();
    test_divided();
    test_damage();
    decoder_free(decoder);
    files_end();
    return check_report();
}
