/* shard_index.c - which samples tar shards hold: where each picture is, and its label.
 *
 * A sample needs a picture and a `cls`, its label in decimal digits; other components are passed
 * over. What is wrong with a shard is found here, before the first step: a sample that lacks one of
 * the two, a label that is no number, an index file that belongs to another archive.
 * Order: one sample; a shard's headers; its index file; what is cached; all shards.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "util/cache.h"
#include "util/names.h"
#include "util/report.h"
#include "datasets/source.h"

#define BLOCK     512
#define MAX_LABEL ((1 << 24) - 1)
#define NEEDS     "a sample needs a picture (jpg, png, ...) and a cls file, one after the other"

/* A shard that is being read. */
typedef struct {
    ShardIndex *out;
    long room;
    int fd;
    const char *index; /* its index file, or NULL */
    /* The sample so far; offset 0: no picture yet, label -1: none. */
    ShardSample now;
    char *stem;
    size_t stem_size;
} Reader;

/* ---- one sample ---- */

/* Reads a header and what is behind it, as far as n bytes and the file reach; the number of bytes,
 * or -1. */
static ssize_t read_around(const Reader *r, uint64_t offset, uint8_t *bytes, size_t n)
{
    ssize_t got;
    do
        got = pread(r->fd, bytes, n, (off_t)(offset - BLOCK));
    while (got < 0 && errno == EINTR);
    return got;
}

/* The label is in the file's `size` bytes at `offset`; *out < 0 if it is no number. Every label's
 * header is looked at, which tells an index file of another archive. */
static bool read_label(const Reader *r, uint64_t offset, uint64_t size, int32_t *out, Error *e)
{
    enum { MOST = 64 };
    uint8_t bytes[BLOCK + MOST + 1];
    size_t n = BLOCK + (size < MOST ? (size_t)size : MOST);
    ssize_t got = read_around(r, offset, bytes, n);
    if (got < 0)
        return fail(e, "see whether the disk is well and still mounted",
                    "%s: byte %" PRIu64 ": cannot read: %s", r->out->path, offset, strerror(errno));
    if ((size_t)got < n || (r->index && !tar_is_header(bytes, size)))
        return fail(e, "write the index again: ./vit index",
                    "%s: byte %" PRIu64 ": no cls file of %" PRIu64 " bytes, as %s says",
                    r->out->path, offset, size, r->index ? r->index : "its header");
    bytes[n] = '\0';
    const char *text = (char *)bytes + BLOCK;
    text += strspn(text, " \t\r\n");
    size_t digits = strspn(text, "0123456789");
    long label = digits && digits < 10 ? strtol(text, NULL, 10) : -1;
    text += digits;
    text += strspn(text, " \t\r\n");
    *out = *text || size > MOST || label > MAX_LABEL ? -1 : (int32_t)label;
    return true;
}

/* A component. The first picture counts. */
static bool add_part(Reader *r, const char *ext, uint64_t offset, uint64_t size, Error *e)
{
    if (strcmp(ext, "cls") == 0) {
        if (!read_label(r, offset, size, &r->now.label, e))
            return false;
        return r->now.label >= 0 ||
               fail(e, "a cls file holds the label in decimal digits, from 0",
                    "%s: byte %" PRIu64 ": a cls file that is no label from 0 to %d", r->out->path,
                    offset, MAX_LABEL);
    }
    if (!image_extension(ext) || r->now.offset)
        return true;
    if (size > INT32_MAX)
        return fail(e, "take it out of the archive",
                    "%s: byte %" PRIu64 ": a picture of %" PRIu64 " bytes", r->out->path, offset,
                    size);
    r->now.offset = offset;
    r->now.size = (uint32_t)size;
    return true;
}

static bool end_sample(Reader *r, const char *name, Error *e)
{
    if (r->now.offset == 0 || r->now.label < 0)
        return fail(e, NEEDS, "%s: the sample %.200s has no %s", r->out->path, name,
                    r->now.offset == 0 ? "picture" : "cls file");
    if (r->out->n == r->room) {
        r->room = r->room ? 2 * r->room : 1024;
        r->out->sample = xrealloc(r->out->sample, sizeof(ShardSample) * (size_t)r->room);
    }
    r->out->sample[r->out->n++] = r->now;
    r->now = (ShardSample){.label = -1};
    return true;
}

/* ---- a shard's headers ---- */

static bool read_header(void *ctx, const TarMember *m, Error *e)
{
    Reader *r = ctx;
    bool same = r->stem && r->stem_size == m->stem && memcmp(r->stem, m->name, m->stem) == 0;
    if (!same) {
        if (r->stem && !end_sample(r, r->stem, e))
            return false;
        free(r->stem);
        r->stem = xcalloc(m->stem + 1, 1);
        memcpy(r->stem, m->name, r->stem_size = m->stem);
    }
    return add_part(r, m->name + m->ext, m->offset, m->size, e);
}

static bool read_headers(Reader *r, Error *e)
{
    return tar_read(r->out->path, read_header, r, e) && (!r->stem || end_sample(r, r->stem, e));
}

/* ---- a shard's index file ---- */

static bool read_line(void *ctx, long sample, const IndexPart *parts, int n, Error *e)
{
    Reader *r = ctx;
    for (int i = 0; i < n; i++) {
        uint64_t end = r->out->bytes;
        if (parts[i].offset < BLOCK || parts[i].offset > end ||
            parts[i].size > end - parts[i].offset)
            return fail(e, "write the index again: ./vit index",
                        "%s: sample %ld ends beyond the %" PRIu64 " bytes of %s", r->index, sample,
                        end, r->out->path);
        if (!add_part(r, parts[i].ext, parts[i].offset, parts[i].size, e))
            return false;
    }
    char number[32];
    snprintf(number, sizeof number, "number %ld", sample);
    return end_sample(r, *parts[0].name ? parts[0].name : number, e);
}

/* The number before the extension of idx_12.txt, or -1. */
static long index_number(const char *name)
{
    const char *dot = strrchr(name, '.'), *first = dot;
    if (strncmp(name, "idx", 3) != 0 || !dot || strcmp(dot, ".txt") != 0)
        return -1;
    while (first > name && first[-1] >= '0' && first[-1] <= '9')
        first--;
    return first == dot || dot - first > 9 ? -1 : strtol(first, NULL, 10);
}

static int by_number(const void *a, const void *b)
{
    const char *x = *(char *const *)a, *y = *(char *const *)b;
    long i = index_number(strrchr(x, '/') + 1), k = index_number(strrchr(y, '/') + 1);
    return i != k ? (i > k) - (i < k) : strcmp(x, y);
}

/* The index files of a folder in the order of their numbers. */
static bool find_indices(const char *dir, int shards, Names *out, Error *e)
{
    DIR *d = opendir(dir);
    if (!d)
        return fail(e, "check the path and its permissions", "cannot read the directory %s: %s",
                    dir, strerror(errno));
    for (struct dirent *f; (f = readdir(d));)
        if (index_number(f->d_name) >= 0) {
            char *path = xasprintf("%s/%s", dir, f->d_name);
            names_add(out, path);
            free(path);
        }
    closedir(d);
    if (out->n)
        qsort(out->at, (size_t)out->n, sizeof(char *), by_number);
    return out->n == shards || fail(e, "write one for each shard, in their order: ./vit index",
                                    "%s has %d files idx_N.txt for %d shards", dir, out->n, shards);
}

/* ---- what is cached ---- */

/* Says which files what is known was read from. *settled is false if one of them changed so lately
 * that it may change again unseen. */
static bool add_to_key(const char *path, char **key, size_t *at, size_t *room, ShardIndex *shard,
                       bool *settled, Error *e)
{
    struct stat st;
    char *real = realpath(path, NULL);
    if (!real || stat(real, &st) != 0) {
        free(real);
        return fail(e,
                    strpbrk(path, "*?") ? "write numbers as {000000..000146}: * is not expanded"
                                        : "check the path and the pattern",
                    "%s: %s", path, strerror(errno));
    }
    char *line =
        xasprintf("%s %ld %ld.%09ld %ld.%09ld\n", real, (long)st.st_size, (long)st.st_mtim.tv_sec,
                  st.st_mtim.tv_nsec, (long)st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
    size_t n = strlen(line) + 1;
    while (*at + n > *room)
        *key = xrealloc(*key, *room *= 2);
    memcpy(*key + *at, line, n);
    *at += n - 1;
    long last =
        (long)(st.st_mtim.tv_sec > st.st_ctim.tv_sec ? st.st_mtim.tv_sec : st.st_ctim.tv_sec);
    *settled &= last < (long)time(NULL) - CACHE_MARGIN;
    if (shard) {
        shard->bytes = (uint64_t)st.st_size;
        shard->time = st.st_mtim.tv_sec * 1000000000L + st.st_mtim.tv_nsec;
        shard->file = st.st_ino;
    }
    free(line);
    free(real);
    return true;
}

/* In the file: for each shard its number of samples as int64_t, then its samples. */
static void save_shards(const char *key, const ShardIndex *shard, int n)
{
    size_t size = 0, at = 0;
    for (int k = 0; k < n; k++)
        size += sizeof(int64_t) + sizeof(ShardSample) * (size_t)shard[k].n;
    uint8_t *file = xmalloc(size);
    for (int k = 0; k < n; k++) {
        int64_t count = shard[k].n;
        memcpy(file + at, &count, sizeof count);
        memcpy(file + at + sizeof count, shard[k].sample, sizeof(ShardSample) * (size_t)count);
        at += sizeof count + sizeof(ShardSample) * (size_t)count;
    }
    cache_save("shards", key, file, size);
    free(file);
}

static bool sane(const ShardIndex *shard)
{
    for (long i = 0; i < shard->n; i++) {
        const ShardSample *s = &shard->sample[i];
        if (s->offset < BLOCK || s->offset > shard->bytes || s->size > shard->bytes - s->offset ||
            s->label < 0 || s->label > MAX_LABEL)
            return false;
    }
    return shard->n > 0;
}

static bool load_shards(const char *key, ShardIndex *shard, int n)
{
    size_t size, at = 0;
    uint8_t *file = cache_load("shards", key, &size);
    bool ok = file != NULL;
    for (int k = 0; ok && k < n; k++) {
        int64_t count = 0;
        ok = size - at >= sizeof count;
        if (ok)
            memcpy(&count, file + at, sizeof count);
        ok = ok && count > 0 && (uint64_t)count <= (size - at - sizeof count) / sizeof(ShardSample);
        if (!ok)
            break;
        shard[k].n = count;
        shard[k].sample = xmalloc(sizeof(ShardSample) * (size_t)count);
        memcpy(shard[k].sample, file + at + sizeof count, sizeof(ShardSample) * (size_t)count);
        at += sizeof count + sizeof(ShardSample) * (size_t)count;
        ok = sane(&shard[k]);
    }
    ok = ok && at == size;
    free(file);
    for (int k = 0; !ok && k < n; k++) {
        free(shard[k].sample);
        shard[k].sample = NULL;
        shard[k].n = 0;
    }
    return ok;
}

/* ---- all shards ---- */

typedef struct {
    ShardIndex *shard;
    int n;
    const Names *index; /* their index files, or NULL */
    pthread_mutex_t lock;
    double from;
    int done;
    bool said;
    atomic_bool failed;
    Error e; /* of the first shard in order that failed, */
    int bad; /* which */
} Reading;

/* A line where it takes long; a bar on terminals. */
static void show_progress(Reading *r)
{
    double seconds = now() - r->from;
    if (seconds < 2)
        return;
    if (!r->said)
        printf("data      reading the %s of %d shards\n", r->index ? "index and labels" : "headers",
               r->n);
    fflush(stdout);
    r->said = true;
    report_progress("shards", r->done, r->n, 0);
}

static void read_shard(void *ctx, int k)
{
    Reading *all = ctx;
    Error e = {"", ""};
    if (atomic_load(&all->failed))
        return;
    Reader r = {.out = &all->shard[k],
                .index = all->index ? all->index->at[k] : NULL,
                .now.label = -1,
                .fd = open(all->shard[k].path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    bool ok = r.fd >= 0;
    if (!ok)
        fail(&e, "check the path and its permissions", "%s: cannot open: %s", r.out->path,
             strerror(errno));
    else /* labels alone: no reading ahead */
        (void)posix_fadvise(r.fd, 0, 0, POSIX_FADV_RANDOM);
    ok = ok && (r.index ? index_read(r.index, read_line, &r, &e) : read_headers(&r, &e));
    if (ok && r.out->n == 0)
        ok = fail(&e, NEEDS, "%s: no samples", r.out->path);
    if (r.fd >= 0)
        close(r.fd);
    free(r.stem);
    pthread_mutex_lock(&all->lock);
    all->done++;
    show_progress(all);
    if (!ok && (!all->failed || k < all->bad)) {
        all->e = e;
        all->bad = k;
        atomic_store(&all->failed, true);
    }
    pthread_mutex_unlock(&all->lock);
}

static bool read_shards(ShardIndex *shard, int n, const Names *index, Error *e)
{
    Reading r = {.shard = shard, .n = n, .index = index, .from = now()};
    pthread_mutex_init(&r.lock, NULL);
    source_parallel(n, read_shard, &r);
    pthread_mutex_destroy(&r.lock);
    if (r.said)
        report_clear();
    if (r.failed)
        *e = r.e;
    return !r.failed;
}

bool shards_index(ShardIndex *shard, int n, const char *index_dir, Error *e)
{
    Names index = {0};
    size_t at = 0, room = 4096;
    char *key = xcalloc(room, 1);
    bool settled = true, ok = !index_dir || find_indices(index_dir, n, &index, e);
    for (int k = 0; ok && k < n; k++)
        ok = add_to_key(shard[k].path, &key, &at, &room, &shard[k], &settled, e);
    for (int k = 0; ok && k < index.n; k++)
        ok = add_to_key(index.at[k], &key, &at, &room, NULL, &settled, e);
    if (ok && !load_shards(key, shard, n)) {
        double from = now();
        long samples = 0;
        ok = read_shards(shard, n, index_dir ? &index : NULL, e);
        for (int k = 0; ok && k < n; k++)
            samples += shard[k].n;
        if (ok && settled && (samples > CACHE_ENTRIES || now() - from > CACHE_SECONDS))
            save_shards(key, shard, n);
    }
    names_free(&index);
    free(key);
    return ok;
}

/* The picture's name is in the header before it: shortened there if it is very long. */
char *shard_sample_path(const ShardIndex *shard, const ShardSample *s)
{
    char name[101] = "";
    int fd = open(shard->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || pread(fd, name, 100, (off_t)(s->offset - BLOCK)) != 100)
        *name = '\0';
    if (fd >= 0)
        close(fd);
    for (char *p = name; *p; p++)
        if (*p < ' ' || *p > '~')
            *p = '?';
    return *name ? xasprintf("%s#%s", shard->path, name)
                 : xasprintf("%s#%" PRIu64, shard->path, s->offset);
}
