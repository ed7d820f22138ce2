/* webdataset.c - data sets of tar shards (WebDataset): wds:PATTERN.
 *
 * What the shards hold is webdataset_index.c's. An epoch's order is a permutation of the shards,
 * cut into windows of a few consecutive ones, and a permutation of all samples within each window:
 * random enough to train with, and for the disk a few files after the other, which are read ahead
 * into the page cache. Any position's sample is found directly, so that ranks, workers and a
 * resumed run need no state.
 * Order: files; an epoch's order; reading ahead; closing; classes; which shards; opening.
 */
#include "datasets/source.h"
#include "datasets/classes.h"
#include "datasets/splits.h"
#include "datasets/tar.h"
#include "datasets/webdataset_index.h"
#include "image/decoder.h"
#include "util/files.h"
#include "util/text.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK TAR_BLOCK
/* Keys of rng_shuffle, besides 0, the one of data sets without shards. */
enum { KEY_SHARDS = 1, KEY_WINDOW, KEY_MOST = 65535 };
/* Whole windows are read ahead on machines that read at least one of so many samples: into a page
 * cache that all their processes share. */
#define SHARE_FOR_WINDOWS 4
/* Bytes asked for at a time: what a fast disk reads in the time of a batch. */
#define AHEAD_AT_ONCE ((uint64_t)64 << 20)

/* A shard in use. Its file is open while somebody reads it, and longer. */
typedef struct {
    int fd, readers;
    uint64_t used; /* when it was read last, in readings */
    long count;    /* of its samples in use, */
    long first;    /* and the first of them */
} Use;

/* A shard's turn in an epoch. */
typedef struct {
    int shard;
    long first;    /* samples before it, */
    uint64_t byte; /* and bytes */
} Turn;

/* An epoch's order of the shards. */
typedef struct {
    long epoch;     /* IN_ORDER: as they come */
    Turn *turn;     /* [shards+1] */
    uint64_t asked; /* of these bytes, read ahead so far */
    uint64_t used;
} Epoch;
enum { IN_ORDER = -1, UNUSED = -2 };

typedef struct {
    Source base; /* item: shard << 32 | sample of the shard */
    Shard *shard;
    int shards, window;
    uint64_t seed;
    bool fits;            /* two windows in the page cache */
    pthread_mutex_t lock; /* guards all below */
    Use *use;             /* [shards] */
    int open, most_open;
    bool counted;   /* the samples in use */
    Epoch epoch[3]; /* this one and the next, and the one in order */
    uint64_t tick;
} Shards;

static int shard_of(const Shards *s, long i)
{
    return (int)(s->base.item[i] >> 32);
}

static const ShardSample *sample_of(const Shards *s, long i)
{
    return &s->shard[shard_of(s, i)].sample[(uint32_t)s->base.item[i]];
}

/* ---- files ---- */

static void close_one(Shards *s)
{
    int oldest = -1;
    for (int k = 0; k < s->shards; k++)
        if (s->use[k].fd >= 0 && s->use[k].readers == 0 &&
            (oldest < 0 || s->use[k].used < s->use[oldest].used))
            oldest = k;
    if (oldest < 0)
        return;
    close(s->use[oldest].fd);
    s->use[oldest].fd = -1;
    s->open--;
}

static int open_shard(const Shard *shard)
{
    struct stat st;
    int fd = open(shard->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) != 0)
        source_lost("see whether it is still there, and the disk mounted", "%s: %s", shard->path,
                    strerror(errno));
    if (!shard_same_file(shard, &st))
        source_lost("leave shards in use alone, and start again",
                    "%s: has changed since its index was read (%" PRIu64 " bytes then, %ld now)",
                    shard->path, shard->bytes, (long)st.st_size);
    return fd;
}

static int acquire(Shards *s, int k)
{
    pthread_mutex_lock(&s->lock);
    Use *f = &s->use[k];
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
    s->use[k].readers--;
    pthread_mutex_unlock(&s->lock);
}

/* The picture with the header before it, which says whether the index still holds. */
static bool read_member(Source *base, long i, Decoder *d, Error *e)
{
    Shards *s = (Shards *)base;
    int k = shard_of(s, i);
    const ShardSample *m = sample_of(s, i);
    const char *path = s->shard[k].path;
    size_t n = (size_t)m->size + BLOCK;
    uint64_t at = m->offset - BLOCK;
    uint8_t *room = decoder_room(d, n, e);
    if (!room)
        return false;
    long got = read_at(acquire(s, k), room, n, at);
    int why = errno;
    release(s, k);
    if (got < 0)
        source_lost("see whether the disk is well and still mounted",
                    "%s: byte %" PRIu64 ": cannot read: %s", path, at, strerror(why));
    if ((size_t)got < n)
        source_lost("leave the shards alone while they are in use, or start again",
                    "%s: ends at byte %" PRIu64 ", it has become shorter", path,
                    at + (uint64_t)got);
    if (!tar_is_header(room, m->size))
        source_lost("write the index again (./vit index), and leave shards in use alone",
                    "%s: byte %" PRIu64 ": no member of %" PRIu32 " bytes, as its index says", path,
                    m->offset, m->size);
    return decoder_open(d, room + BLOCK, m->size, e);
}

static char *member_path(const Source *base, long i)
{
    const Shards *s = (const Shards *)base;
    return shard_sample_path(&s->shard[shard_of(s, i)], sample_of(s, i));
}

/* ---- an epoch's order ---- */

/* Samples in use of each shard: a subset may have been taken since it was opened. */
static void count_samples(Shards *s)
{
    for (long i = 0; i < s->base.n; i++) {
        Use *u = &s->use[shard_of(s, i)];
        if (u->count++ == 0)
            u->first = i;
    }
    s->counted = true;
}

/* The lock is held, as long as the result is used. */
static Epoch *epoch_of(Shards *s, long epoch)
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
    if (!s->counted)
        count_samples(s);
    t->turn = xrealloc(t->turn, sizeof *t->turn * (size_t)(s->shards + 1));
    *t = (Epoch){.epoch = epoch, .turn = t->turn, .used = ++s->tick};
    *t->turn = (Turn){0};
    for (int k = 0; k < s->shards; k++) {
        Turn *now = &t->turn[k], *next = now + 1;
        now->shard =
            epoch == IN_ORDER ? k : (int)rng_shuffle(s->seed, epoch, KEY_SHARDS, s->shards, k);
        long n = s->use[now->shard].count;
        next->first = now->first + n;
        next->byte = now->byte + (n ? s->shard[now->shard].bytes : 0);
    }
    return t;
}

/* Which shard of an epoch's order holds a position. */
static int find_shard(const Shards *s, const Epoch *t, long position)
{
    int lo = 0, hi = s->shards; /* turn[lo].first <= position < turn[hi].first */
    while (hi - lo > 1) {
        int mid = lo + (hi - lo) / 2;
        if (t->turn[mid].first <= position)
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
static long sample_at(Shards *s, const Epoch *t, long position)
{
    if (t->epoch == IN_ORDER)
        return position;
    int from, to;
    window_of(s, t, find_shard(s, t, position), &from, &to);
    long first = t->turn[from].first;
    int key = KEY_WINDOW + from / s->window % (KEY_MOST - KEY_WINDOW);
    position =
        first + rng_shuffle(s->seed, t->epoch, key, t->turn[to].first - first, position - first);
    const Turn *turn = &t->turn[find_shard(s, t, position)];
    return s->use[turn->shard].first + position - turn->first;
}

static long shard_order(Source *base, long epoch, long position)
{
    Shards *s = (Shards *)base;
    pthread_mutex_lock(&s->lock);
    long i = sample_at(s, epoch_of(s, epoch), position);
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
    int n;
} Pieces;

static void add_piece(Pieces *p, int shard, uint64_t from, uint64_t n)
{
    p->at = xgrow(p->at, p->n, sizeof *p->at);
    p->at[p->n++] = (Piece){shard, from, n};
}

/* Asks for an epoch's bytes from where it was asked for last, or from `low` on, up to `high`. */
static void ask_up_to(const Shards *s, Epoch *t, uint64_t low, uint64_t high, Pieces *out)
{
    t->asked = t->asked < low ? low : t->asked;
    if (high > t->asked + AHEAD_AT_ONCE)
        high = t->asked + AHEAD_AT_ONCE;
    for (int k = 0; k < s->shards && t->asked < high; k++) {
        const Turn *turn = &t->turn[k];
        uint64_t end = turn[1].byte < high ? turn[1].byte : high;
        if (end <= t->asked)
            continue;
        add_piece(out, turn->shard, t->asked - turn->byte, end - t->asked);
        t->asked = end;
    }
}

/* The whole window that is being read, and of the next one as large a part as has been read of this
 * one: whole files in order, in steps. After the last window comes the next epoch's first. */
static void ask_for_windows(Shards *s, Epoch *t, const Upcoming *u, Pieces *out)
{
    int from, to, next;
    window_of(s, t, find_shard(s, t, u->first), &from, &to);
    const Turn *begin = &t->turn[from], *end = &t->turn[to];
    double read = (double)(u->first - begin->first) / (double)(end->first - begin->first);
    uint64_t high = end->byte;
    if (to < s->shards) {
        window_of(s, t, to, &(int){0}, &next);
        high += (uint64_t)(read * (double)(t->turn[next].byte - end->byte));
    }
    ask_up_to(s, t, begin->byte, high, out);
    if (to == s->shards && t->epoch != IN_ORDER) {
        Epoch *after = epoch_of(s, t->epoch + 1);
        window_of(s, after, 0, &from, &to);
        ask_up_to(s, after, 0, (uint64_t)(read * (double)after->turn[to].byte), out);
    }
}

static void read_ahead(Source *base, const Upcoming *u)
{
    Shards *s = (Shards *)base;
    Pieces pieces = {0};
    if (u->first >= base->n)
        return;
    pthread_mutex_lock(&s->lock);
    Epoch *t = epoch_of(s, u->shuffle ? u->epoch : IN_ORDER);
    if (u->every <= SHARE_FOR_WINDOWS && s->fits) {
        ask_for_windows(s, t, u, &pieces);
    } else {
        for (long p = u->first; p < u->first + u->count && p < base->n; p++) {
            long i = sample_at(s, t, p);
            const ShardSample *m = sample_of(s, i);
            add_piece(&pieces, shard_of(s, i), m->offset - BLOCK, (uint64_t)m->size + BLOCK);
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

/* ---- closing; classes ---- */

static void close_shards(Source *base)
{
    Shards *s = (Shards *)base;
    for (int k = 0; k < s->shards; k++) {
        if (s->use && s->use[k].fd >= 0)
            close(s->use[k].fd);
        shard_free(&s->shard[k]);
    }
    for (int i = 0; i < COUNT(s->epoch); i++)
        free(s->epoch[i].turn);
    pthread_mutex_destroy(&s->lock);
    free(s->shard);
    free(s->use);
}

static const SourceKind kind = {.read = read_member,
                                .path = member_path,
                                .close = close_shards,
                                .order = shard_order,
                                .ahead = read_ahead};

/* Labels that are names of their shard become those of the whole: of the class file, of the
 * training images, or of all that occur. */
static bool number_names(Shards *s, const DataOptions *o, Error *e)
{
    Names *classes = &s->base.classes;
    const char *list = o->classes ? o->classes : "the training images' classes";
    for (int k = 0; !o->classes && k < s->shards; k++)
        for (int i = 0; i < (o->like ? 0 : s->shard[k].names.n); i++)
            names_add(classes, s->shard[k].names.at[i]);
    for (int i = 0; o->like && i < o->like->n; i++)
        names_add(classes, o->like->at[i]);
    if (o->classes && !classes_read(o->classes, classes, e))
        return false;
    if (!o->classes && !o->like) {
        classes_distinct(classes);
        classes_sort(classes, o->class_order);
    }
    s->base.sorted = !o->classes;
    if (s->base.n >= 20 && 2L * classes->n > s->base.n)
        source_note(&s->base, "%d classes in %ld images, such as '%.60s': are these labels?",
                    classes->n, s->base.n, classes->at[0]);
    ClassKeys *keys = class_keys(classes, list, e);
    bool ok = keys != NULL;
    for (long i = 0; ok && i < s->base.n; i++) {
        const Shard *shard = &s->shard[shard_of(s, i)];
        const char *name = shard->names.at[s->base.labels[i]];
        char *what = xasprintf("%s: the label '%s'", shard->path, name);
        s->base.labels[i] = class_label_of(keys, name, what, e);
        ok = s->base.labels[i] >= 0;
        free(what);
    }
    class_keys_free(keys);
    return ok;
}

/* The class file's names, or numbers: as many as the model has, or as occur. */
static bool number_classes(Shards *s, const DataOptions *o, Error *e)
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
                  "%s has label %d, but there %s %s", path, most,
                  s->base.classes.n == 1 ? "is" : "are", amount(s->base.classes.n, "class").s);
        free(path);
    }
    return ok;
}

static bool find_classes(Shards *s, const DataOptions *o, Error *e)
{
    int named = 0;
    for (int k = 0; k < s->shards; k++)
        named += s->shard[k].names.n > 0;
    if (named && named < s->shards)
        return fail(e, "write them all as numbers, or all as names",
                    "labels are names in %d of the %d shards, and numbers in the others", named,
                    s->shards);
    return named ? number_names(s, o, e) : number_classes(s, o, e);
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

/* ---- which shards ---- */

/* By a word of a shard's name, or by its folder's name. */
static int split_of(const char *path)
{
    const char *slash = strrchr(path, '/'), *from = slash;
    int split = split_in(slash ? slash + 1 : path);
    while (from && from > path && from[-1] != '/')
        from--;
    if (split || !slash)
        return split;
    char *folder = xasprintf("%.*s", (int)(slash - from), from);
    split = split_named(folder);
    free(folder);
    return split;
}

/* How many shards are for each split, by their names; returns how many splits these are, and none.
 */
static int count_splits(const Names *paths, int count[SPLITS])
{
    int kinds = 0;
    for (int k = 0; k < SPLITS; k++)
        count[k] = 0;
    for (int i = 0; i < paths->n; i++)
        kinds += count[split_of(paths->at[i])]++ == 0;
    return kinds;
}

bool webdataset_divided(const char *where)
{
    int count[SPLITS], kinds = 0;
    Error e;
    Names paths = {0};
    if (is_dir(where) && tar_names(where, &paths, &e))
        kinds = count_splits(&paths, count);
    names_free(&paths);
    return kinds > 1 && (count[SPLIT_VAL] || count[SPLIT_TEST]);
}

/* Leaves the shards of one split, where the patterns are one folder that is divided; other patterns
 * name what is meant. */
static bool choose_shards(Shards *s, const char *patterns, bool train, Names *paths, Error *e)
{
    int count[SPLITS], n = 0, kinds = count_splits(paths, count);
    int others = train ? count[SPLIT_VAL] + count[SPLIT_TEST] : count[SPLIT_TRAIN];
    if (kinds == 1)
        s->base.split = split_of(paths->at[0]);
    if (kinds == 1 || !is_dir(patterns)) {
        if (others)
            source_note(&s->base, "%d of %d shards are named for %s: %s uses them all the same",
                        others, paths->n, train ? "validation or tests" : "training",
                        train ? "training" : "evaluation");
        return true;
    }
    int split = s->base.split = split_for(count, train);
    if (!split)
        return fail(e, "name them with a pattern, such as wds:DIR/x-{000..009}.tar",
                    "%s has no %s shards: none is named so, but %d for training, %d for "
                    "validation, %d for tests",
                    patterns, train ? "training" : "validation", count[SPLIT_TRAIN],
                    count[SPLIT_VAL], count[SPLIT_TEST]);
    for (int i = 0; i < paths->n; i++) {
        int other = split_of(paths->at[i]);
        if (!other)
            names_add(&s->base.passed, "named for no split");
        if (other == split)
            paths->at[n++] = paths->at[i];
        else
            free(paths->at[i]);
    }
    paths->n = n;
    if (split == SPLIT_TEST)
        source_note(&s->base, "%s has no validation shards: those for tests are used", patterns);
    return true;
}

/* Archives of a whole data set have its splits as folders; of other things that are no errors, what
 * was made of them. */
static void note_facts(Shards *s, bool train)
{
    long lies[SPLITS] = {0}, pictures = 0, links = 0, open = 0;
    const char *cut = "";
    for (int k = 0; k < s->shards; k++) {
        const ShardFacts *f = &s->shard[k].facts;
        for (int i = 0; i < SPLITS; i++)
            lies[i] += (long)f->lies[i];
        pictures += (long)f->pictures;
        links += (long)f->links;
        open += f->open != 0;
        cut = f->open ? s->shard[k].path : cut;
    }
    if (pictures)
        source_note(&s->base, "%ld of %s: several pictures, of which the first counts", pictures,
                    amount((double)s->base.n, "sample").s);
    if (links)
        source_note(&s->base,
                    "%s in the shards: not followed; tar -h --hard-dereference writes "
                    "the files themselves",
                    amount((double)links, "link").s);
    if (open)
        source_note(&s->base,
                    "%ld of %s without the zeros that close an archive, such as %s: was "
                    "it copied completely?",
                    open, amount(s->shards, "shard").s, cut);
    long others = train ? lies[SPLIT_VAL] + lies[SPLIT_TEST] : lies[SPLIT_TRAIN];
    if (others && others < s->base.n)
        source_note(&s->base,
                    "%ld of %ld samples lie in folders for %s: %s uses them all the same; archives "
                    "of their own keep them apart, --data wds:train.tar --val-data wds:val.tar",
                    others, s->base.n, train ? "validation or tests" : "training",
                    train ? "training" : "evaluation");
}

/* The shards of the pattern, with all their samples. */
static bool open_shards(Shards *s, const char *patterns, const DataOptions *o, Error *e)
{
    Names paths = {0}, packed = {0};
    const char *label = o->wds_label && *o->wds_label ? o->wds_label : "cls";
    label += *label == '.';
    bool ok = tar_names(patterns, &paths, e) && choose_shards(s, patterns, o->train, &paths, e);
    ok = ok && (!is_dir(patterns) || tar_packed(patterns, &packed, e));
    for (int k = 0; k < packed.n; k++)
        names_add(&s->base.passed, "compressed, which gunzip -k (or unzstd) unpacks");
    names_free(&packed);
    if (ok) {
        s->shards = paths.n;
        s->shard = xcalloc((size_t)paths.n, sizeof *s->shard);
        s->use = xcalloc((size_t)paths.n, sizeof *s->use);
        for (int k = 0; k < paths.n; k++) {
            s->shard[k].path = xstrdup(paths.at[k]);
            s->use[k].fd = -1;
        }
        s->base.place =
            xasprintf("%s (%d %s%sshard%s)", patterns, paths.n, split_names[s->base.split],
                      s->base.split ? " " : "", paths.n == 1 ? "" : "s");
        ok = shards_index(s->shard, s->shards, o->index_dir, label, e);
    }
    for (int k = 0; ok && k < s->shards; k++)
        for (long i = 0; i < s->shard[k].n; i++)
            source_add(&s->base, (uint64_t)k << 32 | (uint64_t)i, s->shard[k].sample[i].label);
    if (ok)
        note_facts(s, o->train);
    names_free(&paths);
    return ok;
}

/* ---- opening ---- */

Source *webdataset_open(const char *patterns, const DataOptions *o, Error *e)
{
    Shards *s = xcalloc(1, sizeof *s);
    s->base.kind = &kind;
    s->seed = o->seed;
    s->window = o->window > 0 ? o->window : 4;
    s->most_open = descriptors();
    pthread_mutex_init(&s->lock, NULL);
    for (int i = 0; i < COUNT(s->epoch); i++)
        s->epoch[i].epoch = UNUSED;
    bool ok = open_shards(s, patterns, o, e) && find_classes(s, o, e);
    s->fits = ok && windows_fit(s);
    return source_opened(&s->base, ok);
}
