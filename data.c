/* data.c - data sets: opening one by its name, and one preprocessed sample.
 *
 * What a data set consists of is its source's business (source.h): class folders (folders.c),
 * records (records.c), tar shards (shards.c), or nothing at all (fake, here). Everything that can
 * be wrong with a data set as a whole is found by data_open; a damaged image is found when it is
 * read, and replaced. All functions but open and close may be called from several threads.
 *
 * Not here: decoding (image.c), resizing (resize.c), batches and their order (loader.c).
 * Order: what sources share; fake data; opening; damage; one sample.
 */
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "datasets/source.h"
#include "image/augment.h"
#include "image/decoder.h"
#include "image/pixels.h"
#include "image/resize.h"
#include "util/names.h"
#include "util/rng.h"

/* After so many unreadable images in a row the data set is taken to be gone (an unmounted disk). */
#define MAX_DAMAGED_IN_A_ROW 1000
/* So many damaged images are no reason to stop, however small the data set. */
#define DAMAGED_FLOOR 10
/* Of so many damaged images the path is kept for the last words. */
#define DAMAGED_NAMED 4

struct Dataset {
    DataOptions o; /* its strings belong to the caller and are cleared */
    Source *s;
    atomic_uchar *damaged; /* [n]: 1 once reported */
    long damaged_limit;
    pthread_mutex_t damage; /* guards the two below */
    long damaged_count;
    char *damaged_path[DAMAGED_NAMED];
    double reported_by_all; /* the sum over the processes when they last compared, */
    long damaged_by_all;    /* and how many samples that were */
};

/* ---- what sources share ---- */

void source_close(Source *s)
{
    if (!s)
        return;
    s->kind->close(s);
    names_free(&s->classes);
    free(s->labels);
    free(s->item);
    free(s);
}

void source_reserve(Source *s, long more)
{
    if (s->n + more <= s->room)
        return;
    s->room = 2 * s->room > s->n + more ? 2 * s->room : s->n + more;
    s->labels = xrealloc(s->labels, sizeof *s->labels * (size_t)s->room);
    s->item = xrealloc(s->item, sizeof *s->item * (size_t)s->room);
}

void source_add(Source *s, uint64_t item, int label)
{
    source_reserve(s, 1);
    s->item[s->n] = item;
    s->labels[s->n++] = label;
}

/* Of a class with n images, how many stay. */
static long share_of(double per_class, long n)
{
    double keep = per_class <= 0   ? (double)n
                  : per_class <= 1 ? floor(per_class * (double)n + 1e-9)
                                   : floor(per_class);
    return keep < 1 ? 1 : keep < (double)n ? (long)keep : n;
}

void source_subset(Source *s, const DataOptions *o)
{
    int K = s->classes.n;
    if (o->classes_fraction > 0 && o->classes_fraction < 1)
        K = (int)ceil(o->classes_fraction * s->classes.n - 1e-9);
    double per_class = o->train ? o->per_class : 0;
    long n = s->n, *left = xcalloc((size_t)s->classes.n, sizeof *left);
    for (long i = 0; i < n; i++)
        left[s->labels[i]]++;
    for (int k = 0; k < s->classes.n; k++)
        left[k] = k < K ? share_of(per_class, left[k]) : 0;
    s->n = 0;
    for (long i = 0; i < n; i++)
        if (left[s->labels[i]]-- > 0)
            source_add(s, s->item[i], s->labels[i]);
    while (s->classes.n > K)
        free(s->classes.at[--s->classes.n]);
    free(left);
}

typedef struct {
    atomic_int next;
    int n;
    void (*each)(void *ctx, int i);
    void *ctx;
} Parallel;

static void *parallel_work(void *arg)
{
    Parallel *p = arg;
    for (int i; (i = atomic_fetch_add(&p->next, 1)) < p->n;)
        p->each(p->ctx, i);
    return NULL;
}

/* Plain threads: OpenMP's do not work in a process that was forked. */
void source_parallel(int n, void (*each)(void *ctx, int i), void *ctx)
{
    enum { THREADS = 16 };
    pthread_t thread[THREADS];
    sigset_t all, before;
    int started = 0;
    Parallel p = {0, n, each, ctx};
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the main thread's */
    while (started < THREADS && started < n - 1 &&
           pthread_create(&thread[started], NULL, parallel_work, &p) == 0)
        started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    parallel_work(&p);
    while (started)
        pthread_join(thread[--started], NULL);
}

_Noreturn void source_lost(const char *hint, const char *fmt, ...)
{
    static pthread_mutex_t last_words = PTHREAD_MUTEX_INITIALIZER; /* one thread's are enough */
    char *what;
    va_list args;
    pthread_mutex_lock(&last_words);
    va_start(args, fmt);
    if (vasprintf(&what, fmt, args) < 0)
        what = NULL;
    va_end(args);
    die(hint, "%s", what ? what : "the data set is lost");
}

/* ---- fake data: no disk, and no decoding ---- */

/* Bits of a counter, or zeros: item 1 and 0. */
static void make_fake(const Source *s, long i, const DataOptions *o, uint8_t *out)
{
    size_t bytes = (size_t)3 * o->image_h * o->image_w;
    if (s->item[i] == 0) {
        memset(out, 0, bytes);
        return;
    }
    for (size_t at = 0; at < bytes; at += sizeof(Philox)) {
        Philox p = rng_block(o->seed, (uint32_t)(at / sizeof p), (uint32_t)i, 0, RNG_SHAPES, 1);
        memcpy(out + at, p.v, bytes - at < sizeof p ? bytes - at : sizeof p);
    }
}

static char *fake_path(const Source *s, long i)
{
    (void)s;
    return xasprintf("fake#%ld", i);
}

static void close_fake(Source *s)
{
    (void)s;
}

static const SourceKind fake = {.make = make_fake, .path = fake_path, .close = close_fake};

/* [zeros][:COUNT] */
Source *fake_open(const char *text, const DataOptions *o, Error *e)
{
    long n = o->fake_count;
    bool zeros = strncmp(text, "zeros", 5) == 0 && (!text[5] || text[5] == ':');
    text += zeros ? 5 + (text[5] == ':') : 0;
    if (*text) {
        char *end;
        n = strtol(text, &end, 10);
        if (*end || *text < '0' || *text > '9' || n > INT32_MAX) {
            fail(e, "fake data is fake[:zeros][:COUNT], such as fake:zeros:1281167",
                 "'%s' is no number of fake images", text);
            return NULL;
        }
    }
    if (n < 1 || o->fake_classes < 1) {
        fail(e, "raise the number of images and of classes to 1 or more",
             "fake data needs at least one image and one class");
        return NULL;
    }
    Source *s = xcalloc(1, sizeof *s);
    s->kind = &fake;
    source_reserve(s, n);
    for (long i = 0; i < n; i++)
        source_add(s, !zeros, (int)(i % o->fake_classes));
    if (classes_number(&s->classes, o->fake_classes, o->classes, NULL, e))
        return s;
    source_close(s);
    return NULL;
}

/* ---- opening ---- */

static Source *open_spec(const DataOptions *o, Error *e)
{
    static const struct {
        const char *prefix;
        SourceOpen *open;
    } kinds[] = {
        {"wds:", shards_open},  {"cifar10:", cifar10_open}, {"cifar100:", cifar100_open},
        {"mnist:", mnist_open}, {"fake:", fake_open},       {"", folders_open},
    };
    const char *spec = strcmp(o->spec, "fake") == 0 ? "fake:" : o->spec;
    int k = 0;
    while (strncmp(spec, kinds[k].prefix, strlen(kinds[k].prefix)) != 0)
        k++;
    return kinds[k].open(spec + strlen(kinds[k].prefix), o, e);
}

/* How many damaged samples are bearable: max_damaged of n, but not fewer than the floor. */
static long damaged_limit(double share, long n)
{
    double limit = share < 0 ? 0 : share == 0 ? (double)n : share * (double)n;
    return share < 0 || limit >= DAMAGED_FLOOR ? (long)limit : DAMAGED_FLOOR;
}

Dataset *data_open(const DataOptions *o, Error *e)
{
    if (o->image_h < 1 || o->image_w < 1) {
        fail(e, "give both sides of an image 1 pixel or more",
             "cannot make images of %d x %d pixels", o->image_h, o->image_w);
        return NULL;
    }
    Source *s = open_spec(o, e);
    if (!s)
        return NULL;
    source_subset(s, o);
    if (s->n == 0) { /* nothing below works without a sample to take */
        fail(e, "download it again, or name another data set", "%s has no images", o->spec);
        source_close(s);
        return NULL;
    }
    Dataset *d = xcalloc(1, sizeof *d);
    d->o = *o;
    d->o.spec = d->o.classes = d->o.index_dir = NULL;
    d->s = s;
    d->damaged = xcalloc((size_t)s->n, sizeof *d->damaged);
    d->damaged_limit = damaged_limit(o->max_damaged, s->n);
    pthread_mutex_init(&d->damage, NULL);
    return d;
}

void data_close(Dataset *d)
{
    if (!d)
        return;
    source_close(d->s);
    pthread_mutex_destroy(&d->damage);
    for (int i = 0; i < DAMAGED_NAMED; i++)
        free(d->damaged_path[i]);
    free(d->damaged);
    free(d);
}

const DataOptions *data_options(const Dataset *d)
{
    return &d->o;
}

long data_count(const Dataset *d)
{
    return d->s->n;
}

int data_classes(const Dataset *d)
{
    return d->s->classes.n;
}

const char *data_class_name(const Dataset *d, int label)
{
    return label >= 0 && label < d->s->classes.n ? d->s->classes.at[label] : "?";
}

int data_label(const Dataset *d, long i)
{
    return d->s->labels[i];
}

char *data_sample_path(const Dataset *d, long i)
{
    return d->s->kind->path(d->s, i);
}

long data_order(Dataset *d, long epoch, long position)
{
    if (d->s->kind->order)
        return d->s->kind->order(d->s, d->o.seed, epoch, position);
    return rng_shuffle(d->o.seed, epoch, 0, d->s->n, position);
}

/* ---- damage ---- */

long data_damaged(Dataset *d)
{
    pthread_mutex_lock(&d->damage);
    long n = d->damaged_count;
    pthread_mutex_unlock(&d->damage);
    return n;
}

/* Too much of the data set is damaged: whatever is learned from the rest is not what was asked. */
static _Noreturn void stop_for_damage(Dataset *d, long damaged)
{
    char *text = xstrdup("");
    for (int k = 0; k < DAMAGED_NAMED && d->damaged_path[k]; k++) {
        char *more = xasprintf("%s\n  %s", text, d->damaged_path[k]);
        free(text);
        text = more;
    }
    source_lost("restore the files, or allow a larger share with --max-damaged",
                "%ld of %ld images are damaged so far, more than the %ld that --max-damaged %g "
                "allows%s%s",
                damaged, d->s->n, d->damaged_limit, d->o.max_damaged < 0 ? 0 : d->o.max_damaged,
                *text ? "; among them" : "", text);
}

/* Counts and reports a damaged sample, the first time that any thread meets it. It is not
 * remembered for anything else: another view of the sample may need none of what is damaged, and
 * must come out the same whether or not this one was seen before. */
static void report_damage(Dataset *d, long i, const char *why)
{
    if (atomic_exchange(&d->damaged[i], 1))
        return;
    char *path = data_sample_path(d, i);
    warn("%s: %s; the next readable image takes its place", path, why);
    pthread_mutex_lock(&d->damage);
    if (d->damaged_count < DAMAGED_NAMED)
        d->damaged_path[d->damaged_count] = path;
    else
        free(path);
    if (++d->damaged_count > d->damaged_limit)
        stop_for_damage(d, d->damaged_count);
    pthread_mutex_unlock(&d->damage);
}

/* Comparing takes n numbers, so it is done only when the sum is too high, and has changed. */
long data_damaged_by_all(Dataset *d, void (*sum)(double *x, int n))
{
    enum { CHUNK = 4096 };
    double reported = (double)data_damaged(d), found[CHUNK];
    sum(&reported, 1);
    if (reported <= (double)d->damaged_limit)
        return (long)reported;
    if (reported == d->reported_by_all)
        return d->damaged_by_all;
    long damaged = 0;
    for (long from = 0; from < d->s->n; from += CHUNK) {
        int n = d->s->n - from < CHUNK ? (int)(d->s->n - from) : CHUNK;
        for (int i = 0; i < n; i++)
            found[i] = atomic_load(&d->damaged[from + i]);
        sum(found, n);
        for (int i = 0; i < n; i++)
            damaged += found[i] > 0;
    }
    if (damaged > d->damaged_limit)
        stop_for_damage(d, damaged);
    d->reported_by_all = reported;
    return d->damaged_by_all = damaged;
}

/* ---- one sample ---- */

static bool preprocess(const Dataset *d, Decoder *decoder, View v, uint8_t *out, Error *e)
{
    const DataOptions *o = &d->o;
    Preprocess t = {.out_w = o->image_w,
                    .out_h = o->image_h,
                    .filter = o->filter,
                    .decode = o->decode,
                    .crop = d->s->kind->stretch ? CROP_STRETCH : o->crop,
                    .resize = o->resize};
    if (!o->augment)
        return decoder_eval(decoder, &t, out, e);
    RngStream box = view_draw(v, DRAW_BOX), flip = view_draw(v, DRAW_FLIP);
    Box b = image_random_box(&box, decoder_width(decoder), decoder_height(decoder), o->area_min,
                             o->area_max, o->ratio_min, o->ratio_max);
    if (!decoder_crop(decoder, &t, b, rng_next(&flip) < o->flip, out, e))
        return false;
    augment_image(o->changes, v, out, t.out_w, t.out_h,
                  decoder_scratch(decoder, image_op_scratch(t.out_w, t.out_h)));
    return true;
}

int data_sample(Dataset *d, Decoder *decoder, long i, long epoch, int repeat, uint8_t *out)
{
    Source *s = d->s;
    if (s->kind->make) {
        s->kind->make(s, i, &d->o, out);
        return s->labels[i];
    }
    View v = {d->o.seed, (uint32_t)i, (uint32_t)epoch, (uint32_t)repeat};
    long tries = s->n < MAX_DAMAGED_IN_A_ROW ? s->n : MAX_DAMAGED_IN_A_ROW;
    for (long t = 0; t < tries; t++) {
        long j = (i + t) % s->n;
        Error e;
        if (s->kind->read(s, j, decoder, &e) && preprocess(d, decoder, v, out, &e))
            return s->labels[j];
        report_damage(d, j, e.what);
    }
    source_lost("check that the disk is mounted and the files are whole",
                "no readable image among the %ld from %s on", tries, data_sample_path(d, i));
}

void data_ahead(Dataset *d, bool shuffle, long epoch, long first, long count, double every)
{
    if (d->s->kind->ahead)
        d->s->kind->ahead(d->s, d->o.seed, &(Upcoming){shuffle, epoch, first, count, every});
}
