/* data.c - data sets: opening one by its name, one preprocessed sample, the order of an epoch, and
 * batches made ahead of time by a pool of threads.
 *
 * What a data set consists of is its source's business (datasets/source.h). Everything that can be
 * wrong with a data set as a whole is found by data_open; a damaged image is found when it is read,
 * and replaced. All data_ functions but open and close may be called from several threads.
 *
 * Batches come from a ring of them: workers take one image at a time, in order, and fill the ring
 * ahead of the reader; the reader takes whole batches, in order. What a batch holds depends on its
 * position alone, so any number of workers makes the same bytes, and a run resumes from its
 * position.
 *
 * Not here: decoding, resizing and augmentation (image/), where samples come from (datasets/).
 * Order: opening; damage; one sample; batches; workers; the reader's side.
 */
#include "data.h"
#include "datasets/classes.h"
#include "image/augment.h"
#include "image/decoder.h"
#include "image/pixels.h"
#include "image/resize.h"
#include "util/rng.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* After so many unreadable images in a row the data set is taken to be gone (an unmounted disk). */
#define MAX_DAMAGED_IN_A_ROW 1000
/* So many damaged images are no reason to stop, however small the data set. */
#define DAMAGED_FLOOR 10
/* Of so many damaged images the path is kept for the last words. */
#define DAMAGED_NAMED 4
/* Repeats of a sample stand this far apart, so that they share a large batch but no small one; in
 * an epoch that is too short for that, as far apart as can be. */
#define REPEAT_APART 64

struct Dataset {
    DataOptions o; /* without its texts, which are the caller's */
    Source *s;
    atomic_uchar *damaged; /* [n]: 1 once reported */
    long damaged_limit;
    atomic_long damaged_count;
    pthread_mutex_t naming; /* guards damaged_path, the first that were counted */
    char *damaged_path[DAMAGED_NAMED];
    double reported_by_all; /* the sum over the processes when they last compared, */
    long damaged_by_all;    /* and how many samples that were */
};

/* ---- opening ---- */

static Source *open_spec(const DataOptions *o, Error *e)
{
    static const struct {
        const char *prefix;
        SourceOpen *open;
    } kinds[] = {
        {"wds:", webdataset_open}, {"cifar10:", cifar10_open}, {"cifar100:", cifar100_open},
        {"mnist:", mnist_open},    {"fake:", fake_open},       {"", folders_open},
    };
    const char *spec = strcmp(o->spec, "fake") == 0 ? "fake:" : o->spec;
    int k = 0;
    while (strncmp(spec, kinds[k].prefix, strlen(kinds[k].prefix)) != 0)
        k++;
    bool place = spec[strlen(kinds[k].prefix)] || kinds[k].open == webdataset_open ||
                 kinds[k].open == fake_open;
    if (*spec && !place) {
        fail(e, "the path follows the colon, as in cifar10:DIR", "%s names no place", spec);
        return NULL;
    }
    if (o->val_fraction > 0 && kinds[k].open != folders_open) {
        fail(e, "name the validation images with --val-data, or leave --val-fraction out",
             "--val-fraction is for folders of pictures, not for %s", o->spec);
        return NULL;
    }
    return kinds[k].open(spec + strlen(kinds[k].prefix), o, e);
}

/* How many damaged samples are bearable: max_damaged of n, but not fewer than the floor. */
static long damaged_limit(double share, long n)
{
    if (share < 0)
        return 0;
    long limit = (long)((share > 0 ? share : 1) * (double)n);
    return limit > DAMAGED_FLOOR ? limit : DAMAGED_FLOOR;
}

Dataset *data_open(const DataOptions *o, Error *e)
{
    const Preprocess *images = &o->images;
    if (images->out_h < 1 || images->out_w < 1) {
        fail(e, "give both sides of an image 1 pixel or more",
             "cannot make images of %d x %d pixels", images->out_h, images->out_w);
        return NULL;
    }
    Source *s = open_spec(o, e);
    if (!s)
        return NULL;
    source_subset(s, o);
    if (s->n == 0) { /* nothing below works without a sample to take */
        if (o->val_fraction > 0)
            fail(e, "one image of a class stays for training: add images, or --val-data none",
                 "%s has one image in each class, and none to keep for validation", o->spec);
        else
            fail(e,
                 o->train ? "download it again, or name another data set"
                          : "download it again; or train without validation: --val-data none; or "
                            "keep a share of the training images for it: --val-fraction 0.1",
                 "%s has no images", s->place ? s->place : o->spec);
        source_close(s);
        return NULL;
    }
    names_sort(&s->passed);
    if (!s->place)
        s->place = xstrdup(o->spec);
    if (!s->kind->make)
        source_note_classes(s);
    Dataset *d = xcalloc(1, sizeof *d);
    d->o = *o;
    d->o.spec = d->o.classes = d->o.index_dir = d->o.wds_label = NULL;
    d->o.like = NULL;
    d->s = s;
    if (s->kind->stretch)
        d->o.images.crop = CROP_STRETCH;
    d->damaged = xcalloc((size_t)s->n, sizeof *d->damaged);
    d->damaged_limit = damaged_limit(o->max_damaged, s->n);
    pthread_mutex_init(&d->naming, NULL);
    return d;
}

void data_close(Dataset *d)
{
    if (!d)
        return;
    source_close(d->s);
    pthread_mutex_destroy(&d->naming);
    for (int i = 0; i < DAMAGED_NAMED; i++)
        free(d->damaged_path[i]);
    free(d->damaged);
    free(d);
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

const Names *data_class_names(const Dataset *d)
{
    return &d->s->classes;
}

int data_split(const Dataset *d)
{
    return d->s->split;
}

void data_describe(const Dataset *d, const char *before, const Dataset *said)
{
    const Names *notes = &d->s->notes;
    if (d->s->kind->make) /* there is nothing to know about it */
        return;
    char *summary = source_summary(d->s);
    printf("%s%s\n", before, summary);
    free(summary);
    for (int i = 0; i < notes->n; i++) {
        bool again = false;
        for (int k = 0; said && k < said->s->notes.n; k++)
            again |= strcmp(notes->at[i], said->s->notes.at[k]) == 0;
        if (!again)
            printf("note: %s\n", notes->at[i]);
    }
}

bool data_classes_sorted(const Dataset *d)
{
    return d->s->sorted;
}

bool data_order_matters(const Dataset *d)
{
    return d->s->sorted && classes_orders_differ(&d->s->classes);
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
        return d->s->kind->order(d->s, epoch, position);
    return rng_shuffle(d->o.seed, epoch, 0, d->s->n, position);
}

/* ---- damage ---- */

long data_damaged(const Dataset *d)
{
    return d->damaged_count;
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
    pthread_mutex_lock(&d->naming);
    if (d->damaged_count < DAMAGED_NAMED)
        d->damaged_path[d->damaged_count] = path;
    else
        free(path);
    if (++d->damaged_count > d->damaged_limit)
        stop_for_damage(d, d->damaged_count);
    pthread_mutex_unlock(&d->naming);
}

/* Comparing takes n numbers, so it is done only when the sum is too high, and has changed. */
long data_damaged_by_all(Dataset *d, double reported, void (*sum)(double *x, int n))
{
    enum { CHUNK = 4096 };
    double found[CHUNK];
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
    const Preprocess *p = &d->o.images;
    if (!p->augment)
        return decoder_eval(decoder, p, out, e);
    RngStream box = view_draw(v, DRAW_BOX), mirror = view_draw(v, DRAW_FLIP);
    bool flip = rng_next(&mirror) < p->flip, ok;
    if (p->train_crop == TRAIN_CROP_SIMPLE) {
        ok = decoder_simple_crop(decoder, p, &box, flip, out, e);
    } else {
        Box b = image_random_box(&box, decoder_width(decoder), decoder_height(decoder), p->area_min,
                                 p->area_max, p->ratio_min, p->ratio_max);
        ok = decoder_crop(decoder, p, b, flip, out, e);
    }
    if (!ok)
        return false;
    augment_image(p->changes, v, out, p->out_w, p->out_h,
                  decoder_scratch(decoder, image_op_scratch(p->out_w, p->out_h)));
    return true;
}

int data_sample(Dataset *d, Decoder *decoder, long i, long epoch, int repeat, uint8_t *out)
{
    Source *s = d->s;
    if (s->kind->make) {
        s->kind->make(s, i, out);
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

/* ---- batches ---- */

typedef struct {
    Batch batch;
    long index; /* of the batch in it, -1 before the first */
    int left;   /* images still to come */
} Slot;

struct Loader {
    Dataset *data;
    LoaderOptions o;
    Slot *slot;
    int slots;
    pthread_mutex_t lock; /* guards all below, and the slots' index and left */
    pthread_cond_t room, ready;
    long filling; /* batch that workers take images from, */
    int taken;    /* and how many of it are taken */
    long reading; /* batch that loader_next returned last, -1 before the first */
    bool stop;
    double waited;
    uint64_t bytes;

    int workers; /* of o.max_workers in thread */
    pthread_t *thread;
    struct { /* the last look at whether the workers suffice */
        long batch;
        double time, waited;
    } look;
};

static size_t image_bytes(const Loader *l)
{
    const Preprocess *p = &l->data->o.images;
    return (size_t)3 * (size_t)p->out_h * (size_t)p->out_w;
}

static long batch_position(const Loader *l, long index)
{
    return l->o.start + index * l->o.stride;
}

/* Images in a batch; 0 past the end. */
static int batch_size(const Loader *l, long index)
{
    long left = l->o.end - batch_position(l, index);
    if (l->o.end == 0 || left >= l->o.batch)
        return l->o.batch;
    return left > 0 ? (int)left : 0;
}

/* ---- workers ---- */

/* A position within an epoch to the place in its order, and which look at that sample it is: blocks
 * of repeats*64 positions show 64 consecutive samples `repeats` times. */
static long place_of(const Loader *l, long position, int *repeat)
{
    long apart = data_count(l->data) / l->o.repeats;
    if (apart > REPEAT_APART)
        apart = REPEAT_APART;
    if (apart < 1)
        apart = 1;
    *repeat = (int)(position / apart % l->o.repeats);
    return position / (apart * l->o.repeats) * apart + position % apart;
}

static void load_image(Loader *l, Decoder *decoder, Batch *b, int at)
{
    long n = data_count(l->data), epoch = (b->position + at) / n;
    int repeat;
    long i = place_of(l, (b->position + at) % n, &repeat);
    if (l->o.shuffle)
        i = data_order(l->data, epoch, i);
    uint8_t *out = b->images + image_bytes(l) * (size_t)at;
    b->labels[at] = data_sample(l->data, decoder, i, epoch, repeat, out);
}

/* Tells the source what will be read after the batch that begins to be filled: positions, or
 * samples where they come in order. This machine reads one out of `every` of them. */
static void look_ahead(Loader *l, long index)
{
    Source *s = l->data->s;
    long position = batch_position(l, index), size = batch_size(l, index);
    int repeat;
    if (size == 0 || !s->kind->ahead)
        return;
    s->kind->ahead(s,
                   &(Upcoming){.shuffle = l->o.shuffle,
                               .epoch = position / s->n,
                               .first = place_of(l, position % s->n, &repeat),
                               .count = (size + l->o.repeats - 1) / l->o.repeats,
                               .every = (double)l->o.stride / l->o.batch / (1 + l->o.neighbours)});
}

/* A batch may be filled when its slot is neither being read nor waiting to be read. */
static bool may_fill(const Loader *l)
{
    return l->filling < (l->reading < 0 ? 0 : l->reading) + l->slots;
}

static void *work(void *arg)
{
    Loader *l = arg;
    Decoder *decoder = decoder_new();
    uint64_t counted = 0;
    pthread_mutex_lock(&l->lock);
    for (;;) {
        while (!l->stop && !may_fill(l))
            pthread_cond_wait(&l->room, &l->lock);
        int n = batch_size(l, l->filling);
        if (l->stop || n == 0)
            break;
        long index = l->filling;
        Slot *s = &l->slot[index % l->slots];
        if (l->taken == 0) {
            s->index = index;
            s->left = s->batch.n = n;
            s->batch.position = batch_position(l, index);
        }
        int at = l->taken++;
        if (l->taken == n) {
            l->taken = 0;
            l->filling++;
        }
        pthread_mutex_unlock(&l->lock);
        load_image(l, decoder, &s->batch, at);
        uint64_t bytes = decoder_bytes(decoder);
        pthread_mutex_lock(&l->lock);
        l->bytes += bytes - counted;
        counted = bytes;
        if (--s->left == 0)
            pthread_cond_signal(&l->ready);
        if (at == 0) { /* once for each batch; a slow disk may take its time over it */
            pthread_mutex_unlock(&l->lock);
            look_ahead(l, index + 1);
            pthread_mutex_lock(&l->lock);
        }
    }
    pthread_mutex_unlock(&l->lock);
    decoder_free(decoder);
    return NULL;
}

/* Signals are the main thread's: workers start with all of them blocked but SIGBUS, which says that
 * a mapped file has become shorter. The lock is held, or there are no workers yet. */
static void start_workers(Loader *l, int n)
{
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; l->workers < n; l->workers++)
        if (pthread_create(&l->thread[l->workers], NULL, work, l) != 0) {
            if (l->workers > 0 && l->o.workers == 0) { /* those there are must do */
                l->o.max_workers = l->workers;
                break;
            }
            die("use fewer --workers", "cannot start data worker %d of %d", l->workers + 1, n);
        }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* How many workers would have kept the reader busy, judged by the last batches: w workers whose
 * reader waited for a share x of the time made 1 - x of what it takes. At most twice as many at
 * once, because what else slows them down (a disk, other threads) is not in the formula. */
static void look_at_workers(Loader *l)
{
    double time = now(), seconds = time - l->look.time;
    bool first = l->reading == 0; /* which is always waited for */
    if (!first && (l->reading - l->look.batch < 4 || seconds < 0.02))
        return;
    double share = (l->waited - l->look.waited) / seconds;
    int most = 2 * l->workers < l->o.max_workers ? 2 * l->workers : l->o.max_workers;
    if (!first && share > 0.02 && l->workers < most) {
        double need = share < 0.99 ? l->workers / (1 - share) : most;
        int n = need < most ? (int)need : most;
        start_workers(l, n > l->workers ? n : l->workers + 1);
    }
    l->look.batch = l->reading;
    l->look.time = time;
    l->look.waited = l->waited;
}

/* ---- the reader's side ---- */

Loader *loader_open(Dataset *d, const LoaderOptions *o)
{
    Loader *l = xcalloc(1, sizeof *l);
    *l = (Loader){.data = d, .o = *o, .reading = -1};
    l->o.stride = o->stride ? o->stride : o->batch;
    l->o.repeats = o->repeats < 1 ? 1 : o->repeats;
    if (o->workers > 0 || o->max_workers < 1)
        l->o.max_workers = o->workers < 1 ? 1 : o->workers;
    /* One batch being read and three ahead, or enough of them for two images per worker. */
    l->slots = 4 + 2 * l->o.max_workers / o->batch;
    l->slot = xcalloc(l->slots, sizeof(Slot));
    for (int i = 0; i < l->slots; i++) {
        l->slot[i].index = -1;
        l->slot[i].batch.images = xmalloc(image_bytes(l) * (size_t)o->batch);
        l->slot[i].batch.labels = xmalloc(sizeof(int) * o->batch);
    }
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->room, NULL);
    pthread_cond_init(&l->ready, NULL);
    l->thread = xmalloc(sizeof(pthread_t) * l->o.max_workers);
    look_ahead(l, 0);
    start_workers(l, o->workers > 0 || o->at_once ? l->o.max_workers : 1);
    return l;
}

const Batch *loader_next(Loader *l)
{
    pthread_mutex_lock(&l->lock);
    long index = ++l->reading; /* which frees the slot of the batch before it */
    pthread_cond_broadcast(&l->room);
    Slot *s = &l->slot[index % l->slots];
    const Batch *b = NULL;
    if (batch_size(l, index) > 0) {
        double from = now();
        bool waited = false;
        while (s->index != index || s->left > 0) {
            waited = true;
            pthread_cond_wait(&l->ready, &l->lock);
        }
        if (waited)
            l->waited += now() - from;
        if (l->workers < l->o.max_workers)
            look_at_workers(l);
        b = &s->batch;
    } else {
        l->reading--;
    }
    pthread_mutex_unlock(&l->lock);
    return b;
}

LoaderStats loader_stats(Loader *l)
{
    pthread_mutex_lock(&l->lock);
    LoaderStats s = {.waited = l->waited, .bytes = l->bytes, .workers = l->workers};
    pthread_mutex_unlock(&l->lock);
    return s;
}

void loader_close(Loader *l)
{
    if (!l)
        return;
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_broadcast(&l->room);
    pthread_mutex_unlock(&l->lock);
    for (int i = 0; i < l->workers; i++)
        pthread_join(l->thread[i], NULL);
    for (int i = 0; i < l->slots; i++) {
        free(l->slot[i].batch.images);
        free(l->slot[i].batch.labels);
    }
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->room);
    pthread_cond_destroy(&l->ready);
    free(l->slot);
    free(l->thread);
    free(l);
}
