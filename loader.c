/* loader.c - batches, made ahead of time by a pool of threads.
 *
 * A ring of batches: workers take one image at a time, in order, and fill the ring ahead of the
 * reader; the reader takes whole batches, in order. What a batch holds depends on its position
 * alone, so any number of workers makes the same bytes, and a run resumes from its position.
 *
 * Order: rng_shuffle; which batches there are; workers; the reader's side.
 */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "data.h"
#include "image/decoder.h"

/* ---- batches ---- */

/* Repeats of a sample stand this far apart, so that they share a large batch but no small one; in
 * an epoch that is too short for that, as far apart as can be. */
#define REPEAT_APART 64

typedef struct {
    Batch batch;
    long index; /* of the batch in it, -1 before the first */
    int left;   /* images still to come */
} Slot;

struct Loader {
    Dataset *data;
    LoaderOptions o;
    size_t image_bytes;

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
    /* Since the last look at whether the workers suffice: */
    long look_batch;
    double look_time, look_waited;
};

static long batch_position(const Loader *l, long index)
{
    return l->o.start + index * l->o.stride;
}

/* Images in a batch; 0 past the end. */
static int batch_size(const Loader *l, long index)
{
    long left = l->o.end - batch_position(l, index);
    return l->o.end == 0 || left >= l->o.batch ? l->o.batch : left > 0 ? (int)left : 0;
}

/* ---- workers ---- */

/* A position within an epoch to the place in its order, and which look at that sample it is: blocks
 * of repeats*64 positions show 64 consecutive samples `repeats` times. */
static long place_of(const Loader *l, long position, int *repeat)
{
    long apart = data_count(l->data) / l->o.repeats;
    apart = apart > REPEAT_APART ? REPEAT_APART : apart < 1 ? 1 : apart;
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
    b->labels[at] =
        data_sample(l->data, decoder, i, epoch, repeat, b->images + l->image_bytes * at);
}

/* Tells the data set what will be read after the batch that begins to be filled. */
static void look_ahead(Loader *l, long index)
{
    int repeat;
    long n = data_count(l->data), position = batch_position(l, index), size = batch_size(l, index);
    if (size > 0)
        data_ahead(l->data, l->o.shuffle, position / n, place_of(l, position % n, &repeat),
                   (size + l->o.repeats - 1) / l->o.repeats,
                   (double)l->o.stride / l->o.batch / (1 + l->o.neighbours));
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
    double time = now(), seconds = time - l->look_time;
    if (l->reading == 0) { /* the first batch is always waited for */
        l->look_batch = 0;
        l->look_time = time;
        l->look_waited = l->waited;
        return;
    }
    if (l->reading - l->look_batch < 4 || seconds < 0.02)
        return;
    double share = (l->waited - l->look_waited) / seconds;
    int most = 2 * l->workers < l->o.max_workers ? 2 * l->workers : l->o.max_workers;
    double need = share < 0.99 ? l->workers / (1 - share) : most;
    if (share > 0.02 && l->workers < most)
        start_workers(l, need >= most ? most : (int)need > l->workers ? (int)need : l->workers + 1);
    l->look_batch = l->reading;
    l->look_time = time;
    l->look_waited = l->waited;
}

/* ---- the reader's side ---- */

Loader *loader_open(Dataset *d, const LoaderOptions *o)
{
    const DataOptions *images = data_options(d);
    Loader *l = xcalloc(1, sizeof *l);
    *l = (Loader){.data = d,
                  .o = *o,
                  .image_bytes = (size_t)3 * images->image_h * images->image_w,
                  .reading = -1};
    l->o.stride = o->stride ? o->stride : o->batch;
    l->o.repeats = o->repeats < 1 ? 1 : o->repeats;
    if (o->workers > 0 || o->max_workers < 1)
        l->o.max_workers = o->workers < 1 ? 1 : o->workers;
    /* One batch being read and three ahead, or enough of them for two images per worker. */
    l->slots = 4 + 2 * l->o.max_workers / o->batch;
    l->slot = xcalloc(l->slots, sizeof(Slot));
    for (int i = 0; i < l->slots; i++) {
        l->slot[i].index = -1;
        l->slot[i].batch.images = xmalloc(l->image_bytes * o->batch);
        l->slot[i].batch.labels = xmalloc(sizeof(int) * o->batch);
    }
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->room, NULL);
    pthread_cond_init(&l->ready, NULL);
    l->thread = xmalloc(sizeof(pthread_t) * l->o.max_workers);
    look_ahead(l, 0);
    start_workers(l, o->workers > 0 ? o->workers : 1);
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
