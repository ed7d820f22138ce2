/* shards.c - data sets of tar shards (WebDataset): wds:PATTERN.
 *
 * What the shards hold is shard_index.c's. An epoch's order is a permutation of the shards, cut
 * into windows of a few consecutive ones, and a permutation of all samples within each window:
 * random enough to train with, and for the disk a few files after the other, which are read ahead
 * into the page cache. Any position's sample is found directly, so that ranks, workers and a
 * resumed run need no state. Order: files; an epoch's order; reading ahead; opening.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "datasets/source.h"
#include "image/decoder.h"
#include "util/names.h"

#define BLOCK 512
/* Keys of rng_shuffle, besides 0, the one of data sets without shards. */
enum { KEY_SHARDS = 1, KEY_WINDOW, KEY_MOST = 65535 };
/* Whole windows are read ahead on machines that read at least one of so many samples: into a page
 * cache that all their processes share. */
#define SHARE_FOR_WINDOWS 4
/* Bytes asked for at a time: what a fast disk reads in the time of a batch. */
#define AHEAD_AT_ONCE ((uint64_t)64 << 20)

/* A file that is open while somebody reads it, and longer. */
typedef struct {
    int fd, readers;
    uint64_t used; /* when, in readings */
} OpenFile;

/* An epoch's order of the shards. */
typedef struct {
    long epoch;     /* IN_ORDER: as they come */
    int *shard;     /* [shards] */
    long *first;    /* [shards+1]: samples before the kth */
    uint64_t *byte; /* [shards+1]: bytes before the kth */
    uint64_t asked; /* of these bytes, read ahead so far */
    uint64_t used;
} Epoch;
enum { IN_ORDER = -1, UNUSED = -2 };

typedef struct {
    Source base; /* item: entry in sample */
    ShardIndex *shard;
    int shards, window;
    bool fits; /* two windows in the page cache */
    struct {
        ShardSample at;
        int shard;
    } * sample;           /* all of them, before a subset is taken */
    pthread_mutex_t lock; /* guards all below */
    OpenFile *file;       /* [shards] */
    int open, most_open;
    long *count;    /* [shards]: of the samples in use; NULL: not counted yet */
    long *first;    /* [shards]: the shard's first sample */
    Epoch epoch[3]; /* this one and the next, and the one in order */
    uint64_t tick;
} Shards;

/* ---- files ---- */

static void close_one(Shards *s)
{
    int oldest = -1;
    for (int k = 0; k < s->shards; k++)
        if (s->file[k].fd >= 0 && s->file[k].readers == 0 &&
            (oldest < 0 || s->file[k].used < s->file[oldest].used))
            oldest = k;
    if (oldest < 0)
        return;
    close(s->file[oldest].fd);
    s->file[oldest].fd = -1;
    s->open--;
}

static int open_shard(const ShardIndex *shard)
{
    struct stat st;
    int fd = open(shard->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) != 0)
        source_lost("see whether it is still there, and the disk mounted", "%s: %s", shard->path,
                    strerror(errno));
    if ((uint64_t)st.st_size != shard->bytes || st.st_ino != shard->file ||
        st.st_mtim.tv_sec * 1000000000L + st.st_mtim.tv_nsec != shard->time)
        source_lost("leave shards in use alone, and start again",
                    "%s: has changed since its index was read (%" PRIu64 " bytes then, %ld now)",
                    shard->path, shard->bytes, (long)st.st_size);
    return fd;
}

static int acquire(Shards *s, int k)
{
    pthread_mutex_lock(&s->lock);
    OpenFile *f = &s->file[k];
    if (f->fd < 0) {
        if (s->open >= s->most_open)
            close_one(s);
        f->fd = open_shard(&s->shard[k]);
        s->open++;
    }
    f->readers++;
    f->used = ++s->tick;
    pthread_mutex_unlock(&s->lock);
    return f->fd;
}

static void release(Shards *s, int k)
{
    pthread_mutex_lock(&s->lock);
    s->file[k].readers--;
    pthread_mutex_unlock(&s->lock);
}

static void read_exactly(const char *path, int fd, uint8_t *bytes, size_t n, uint64_t at)
{
    for (ssize_t got; n; n -= (size_t)got, bytes += got, at += (uint64_t)got) {
        got = pread(fd, bytes, n, (off_t)at);
        if (got < 0 && errno == EINTR)
            got = 0;
        else if (got < 0)
            source_lost("see whether the disk is well and still mounted",
                        "%s: byte %" PRIu64 ": cannot read: %s", path, at, strerror(errno));
        else if (got == 0)
            source_lost("leave the shards alone while they are in use, or start again",
                        "%s: ends at byte %" PRIu64 ", it has become shorter", path, at);
    }
}

/* The picture with the header before it, which says whether the index still holds. */
static bool read_member(Source *base, long i, Decoder *d, Error *e)
{
    Shards *s = (Shards *)base;
    int k = s->sample[base->item[i]].shard;
    ShardSample m = s->sample[base->item[i]].at;
    const char *path = s->shard[k].path;
    uint8_t *room = decoder_room(d, (size_t)m.size + BLOCK, e);
    if (!room)
        return false;
    int fd = acquire(s, k);
    read_exactly(path, fd, room, (size_t)m.size + BLOCK, m.offset - BLOCK);
    release(s, k);
    if (!tar_is_header(room, m.size))
        source_lost("write the index again (./vit index), and leave shards in use alone",
                    "%s: byte %" PRIu64 ": no member of %" PRIu32 " bytes, as its index says", path,
                    m.offset, m.size);
    return decoder_open(d, room + BLOCK, m.size, e);
}

static char *member_path(const Source *base, long i)
{
    const Shards *s = (const Shards *)base;
    uint64_t item = base->item[i];
    return shard_sample_path(&s->shard[s->sample[item].shard], &s->sample[item].at);
}

/* ---- an epoch's order ---- */

static void free_epoch(Epoch *t)
{
    free(t->shard);
    free(t->first);
    free(t->byte);
    *t = (Epoch){.epoch = UNUSED};
}

/* Samples in use of each shard: a subset may have been taken since it was opened. */
static void count_samples(Shards *s)
{
    s->count = xcalloc((size_t)s->shards, sizeof *s->count);
    s->first = xcalloc((size_t)s->shards, sizeof *s->first);
    for (long i = 0; i < s->base.n; i++) {
        int k = s->sample[s->base.item[i]].shard;
        if (s->count[k]++ == 0)
            s->first[k] = i;
    }
}

/* The lock is held, as long as the result is used. */
static Epoch *epoch_of(Shards *s, uint64_t seed, long epoch)
{
    Epoch *t = s->epoch;
    for (int i = 0; i < COUNT(s->epoch); i++) {
        if (s->epoch[i].epoch == epoch) {
            s->epoch[i].used = ++s->tick;
            return &s->epoch[i];
        }
        if (s->epoch[i].used < t->used)
            t = &s->epoch[i];
    }
    if (!s->count)
        count_samples(s);
    free_epoch(t);
    t->epoch = epoch;
    t->used = ++s->tick;
    t->shard = xmalloc(sizeof *t->shard * (size_t)s->shards);
    t->first = xcalloc((size_t)s->shards + 1, sizeof *t->first);
    t->byte = xcalloc((size_t)s->shards + 1, sizeof *t->byte);
    for (int k = 0; k < s->shards; k++) {
        int shard =
            epoch == IN_ORDER ? k : (int)rng_shuffle(seed, epoch, KEY_SHARDS, s->shards, k);
        t->shard[k] = shard;
        t->first[k + 1] = t->first[k] + s->count[shard];
        t->byte[k + 1] = t->byte[k] + (s->count[shard] ? s->shard[shard].bytes : 0);
    }
    return t;
}

/* Which shard of an epoch's order holds a position. */
static int find_shard(const Shards *s, const Epoch *t, long position)
{
    int lo = 0, hi = s->shards; /* first[lo] <= position < first[hi] */
    while (hi - lo > 1) {
        int mid = lo + (hi - lo) / 2;
        if (t->first[mid] <= position)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

/* Where the window of a shard begins and ends. */
static void window_of(const Shards *s, const Epoch *t, int k, int *from, int *to)
{
    int window = t->epoch == IN_ORDER ? 1 : s->window;
    *from = k / window * window;
    *to = s->shards - *from < window ? s->shards : *from + window;
}

/* The lock is held. */
static long sample_at(Shards *s, const Epoch *t, uint64_t seed, long position)
{
    if (t->epoch == IN_ORDER)
        return position;
    int from, to;
    window_of(s, t, find_shard(s, t, position), &from, &to);
    long first = t->first[from];
    int key = KEY_WINDOW + from / s->window % (KEY_MOST - KEY_WINDOW);
    position = first + rng_shuffle(seed, t->epoch, key, t->first[to] - first, position - first);
    int k = find_shard(s, t, position);
    return s->first[t->shard[k]] + position - t->first[k];
}

static long shard_order(Source *base, uint64_t seed, long epoch, long position)
{
    Shards *s = (Shards *)base;
    pthread_mutex_lock(&s->lock);
    long i = sample_at(s, epoch_of(s, seed, epoch), seed, position);
    pthread_mutex_unlock(&s->lock);
    return i;
}

/* ---- reading ahead ---- */

/* Bytes of a shard that are wanted in the page cache. */
typedef struct {
    int shard;
    uint64_t from, n;
} Piece;

typedef struct {
    Piece *at;
    int n, room;
} Pieces;

static void add_piece(Pieces *p, int shard, uint64_t from, uint64_t n)
{
    if (p->n == p->room) {
        p->room = p->room ? 2 * p->room : 64;
        p->at = xrealloc(p->at, sizeof *p->at * (size_t)p->room);
    }
    p->at[p->n++] = (Piece){shard, from, n};
}

/* Asks for an epoch's bytes from where it was asked for last, or from `low` on, up to `high`. */
static void ask_up_to(const Shards *s, Epoch *t, uint64_t low, uint64_t high, Pieces *out)
{
    t->asked = t->asked < low ? low : t->asked;
    if (high > t->asked + AHEAD_AT_ONCE)
        high = t->asked + AHEAD_AT_ONCE;
    for (int k = 0; k < s->shards && t->asked < high; k++) {
        if (t->byte[k + 1] <= t->asked)
            continue;
        uint64_t end = t->byte[k + 1] < high ? t->byte[k + 1] : high;
        add_piece(out, t->shard[k], t->asked - t->byte[k], end - t->asked);
        t->asked = end;
    }
}

/* The whole window that is being read, and of the next one as large a part as has been read of this
 * one: whole files in order, in steps. After the last window comes the next epoch's first. */
static void ask_for_windows(Shards *s, uint64_t seed, Epoch *t, const Upcoming *u, Pieces *out)
{
    int from, to, next;
    window_of(s, t, find_shard(s, t, u->first), &from, &to);
    double read = (double)(u->first - t->first[from]) / (double)(t->first[to] - t->first[from]);
    uint64_t low = t->byte[from], high = t->byte[to];
    if (to < s->shards) {
        window_of(s, t, to, &(int){0}, &next);
        high += (uint64_t)(read * (double)(t->byte[next] - t->byte[to]));
    }
    ask_up_to(s, t, low, high, out);
    if (to == s->shards && t->epoch != IN_ORDER) {
        Epoch *after = epoch_of(s, seed, t->epoch + 1);
        window_of(s, after, 0, &from, &to);
        ask_up_to(s, after, 0, (uint64_t)(read * (double)after->byte[to]), out);
    }
}

static void read_ahead(Source *base, uint64_t seed, const Upcoming *u)
{
    Shards *s = (Shards *)base;
    Pieces pieces = {0};
    if (u->first >= base->n)
        return;
    pthread_mutex_lock(&s->lock);
    Epoch *t = epoch_of(s, seed, u->shuffle ? u->epoch : IN_ORDER);
    if (u->every <= SHARE_FOR_WINDOWS && s->fits) {
        ask_for_windows(s, seed, t, u, &pieces);
    } else {
        for (long p = u->first; p < u->first + u->count && p < base->n; p++) {
            uint64_t item = base->item[sample_at(s, t, seed, p)];
            const ShardSample *m = &s->sample[item].at;
            add_piece(&pieces, s->sample[item].shard, m->offset - BLOCK, (uint64_t)m->size + BLOCK);
        }
    }
    pthread_mutex_unlock(&s->lock);
    for (int i = 0; i < pieces.n; i++) {
        Piece *p = &pieces.at[i];
        int fd = acquire(s, p->shard);
        (void)posix_fadvise(fd, (off_t)p->from, (off_t)p->n, POSIX_FADV_WILLNEED);
        release(s, p->shard);
    }
    free(pieces.at);
}

/* ---- opening ---- */

static void close_shards(Source *base)
{
    Shards *s = (Shards *)base;
    for (int k = 0; k < s->shards; k++) {
        if (s->file && s->file[k].fd >= 0)
            close(s->file[k].fd);
        free(s->shard[k].path);
        free(s->shard[k].sample);
    }
    for (int i = 0; i < COUNT(s->epoch); i++)
        free_epoch(&s->epoch[i]);
    pthread_mutex_destroy(&s->lock);
    free(s->shard);
    free(s->sample);
    free(s->file);
    free(s->count);
    free(s->first);
}

static const SourceKind kind = {.read = read_member,
                                .path = member_path,
                                .close = close_shards,
                                .order = shard_order,
                                .ahead = read_ahead};

/* All shards' samples, one shard after the other. */
static void join_shards(Shards *s)
{
    long n = 0;
    for (int k = 0; k < s->shards; k++)
        n += s->shard[k].n;
    s->sample = xcalloc((size_t)n, sizeof *s->sample);
    source_reserve(&s->base, n);
    for (int k = 0; k < s->shards; k++) {
        for (long i = 0; i < s->shard[k].n; i++) {
            uint64_t item = (uint64_t)s->base.n;
            s->sample[item].at = s->shard[k].sample[i];
            s->sample[item].shard = k;
            source_add(&s->base, item, s->sample[item].at.label);
        }
        free(s->shard[k].sample);
        s->shard[k].sample = NULL;
    }
}

/* The class file's names, or numbers: as many as the model has, or as occur. */
static bool find_classes(Shards *s, const DataOptions *o, Error *e)
{
    int most = 0;
    long where = 0;
    for (long i = 0; i < s->base.n; i++)
        if (s->base.labels[i] > most)
            most = s->base.labels[where = i];
    bool ok = o->classes
                  ? classes_read(o->classes, &s->base.classes, e)
                  : classes_number(&s->base.classes, o->num_classes > 0 ? o->num_classes : most + 1,
                                   NULL, NULL, e);
    if (ok && most >= s->base.classes.n) {
        char *path = member_path(&s->base, where);
        ok = fail(e, "give --classes the file with all classes, or a larger --num-classes",
                  "%s has label %d, but there are %d classes", path, most, s->base.classes.n);
        free(path);
    }
    return ok;
}

/* Whether two windows of the largest shards may lie in the page cache: half of the memory. */
static bool windows_fit(const Shards *s)
{
    uint64_t largest = 0;
    for (int k = 0; k < s->shards; k++)
        largest = s->shard[k].bytes > largest ? s->shard[k].bytes : largest;
    double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    int n = 2 * (s->window < s->shards ? s->window : s->shards);
    return (double)n * (double)largest < 0.5 * memory;
}

static int descriptors(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur > 1024)
        return 256;
    return limit.rlim_cur < 16 ? 4 : (int)limit.rlim_cur / 4;
}

Source *shards_open(const char *patterns, const DataOptions *o, Error *e)
{
    Shards *s = xcalloc(1, sizeof *s);
    Names paths = {0};
    s->base.kind = &kind;
    s->window = o->window > 0 ? o->window : 4;
    s->most_open = descriptors();
    pthread_mutex_init(&s->lock, NULL);
    for (int i = 0; i < COUNT(s->epoch); i++)
        s->epoch[i].epoch = UNUSED;
    bool ok = tar_names(patterns, &paths, e);
    if (ok) {
        s->shards = paths.n;
        s->shard = xcalloc((size_t)paths.n, sizeof *s->shard);
        s->file = xcalloc((size_t)paths.n, sizeof *s->file);
        for (int k = 0; k < paths.n; k++) {
            s->shard[k].path = xstrdup(paths.at[k]);
            s->file[k].fd = -1;
        }
        ok = shards_index(s->shard, s->shards, o->index_dir, e);
    }
    names_free(&paths);
    if (ok) {
        s->fits = windows_fit(s);
        join_shards(s);
        ok = find_classes(s, o, e);
    }
    if (ok)
        return &s->base;
    source_close(&s->base);
    return NULL;
}
