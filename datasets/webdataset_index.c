/* webdataset_index.c - which samples tar shards hold: where each picture is, and its label. See
 * webdataset_index.h.
 *
 * A sample needs a picture and a `cls`, its label in decimal digits; other components are passed
 * over. What is wrong with a shard is found here, before the first step: a sample that lacks one of
 * the two, a label that is no number, an index file that belongs to another archive.
 * Order: one sample; a shard's headers; its index file; what is cached; all shards.
 */
#include "datasets/webdataset_index.h"
#include "datasets/dali_index.h"
#include "datasets/source.h"
#include "datasets/tar.h"
#include "util/cache.h"
#include "util/files.h"
#include "util/report.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BLOCK     TAR_BLOCK
#define MAX_LABEL ((1 << 24) - 1)
#define NEEDS     "a sample needs a picture (jpg, png, ...) and a cls file, one after the other"

/* A shard that is being read. */
typedef struct {
    Shard *out;
    int fd;
    const char *index; /* its index file, or NULL */
    char *stem;        /* headers: of the sample so far, or NULL */
    ShardSample now;   /* the sample so far; offset 0: no picture yet, label -1: none */
} Reader;

/* ---- one sample ---- */

/* The label is in the file's `size` bytes at `offset`; *out < 0 if it is no number. Every label's
 * header is looked at, which tells an index file of another archive. */
static bool read_label(const Reader *r, uint64_t offset, uint64_t size, int32_t *out, Error *e)
{
    enum { MOST = 64 };
    uint8_t bytes[BLOCK + MOST + 1];
    size_t n = BLOCK + (size < MOST ? (size_t)size : MOST);
    long got = read_at(r->fd, bytes, n, offset - BLOCK);
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
    r->out->sample = xgrow(r->out->sample, r->out->n, sizeof *r->out->sample);
    r->out->sample[r->out->n++] = r->now;
    r->now = (ShardSample){.label = -1};
    return true;
}

/* ---- a shard's headers ---- */

static bool read_header(void *ctx, const TarMember *m, Error *e)
{
    Reader *r = ctx;
    if (!tar_same_sample(r->stem, m)) {
        if (r->stem && !end_sample(r, r->stem, e))
            return false;
        free(r->stem);
        r->stem = xasprintf("%.*s", (int)m->stem, m->name);
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
    if (strncmp(name, "idx", 3) != 0)
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
    Names found = {0};
    bool ok = names_in(dir, ".txt", &found, e);
    for (int i = 0; i < found.n; i++) {
        if (index_number(found.at[i]) < 0)
            continue;
        char *path = xasprintf("%s/%s", dir, found.at[i]);
        names_add(out, path);
        free(path);
    }
    names_free(&found);
    if (out->n)
        qsort(out->at, (size_t)out->n, sizeof(char *), by_number);
    return ok && (out->n == shards ||
                  fail(e, "write one for each shard, in their order: ./vit index",
                       "%s has %d files idx_N.txt for %d shards", dir, out->n, shards));
}

/* ---- what is cached ---- */

static int64_t nanoseconds(struct timespec t)
{
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

bool shard_same_file(const Shard *shard, const struct stat *st)
{
    return (uint64_t)st->st_size == shard->bytes && st->st_ino == shard->inode &&
           nanoseconds(st->st_mtim) == shard->time;
}

/* Says which file what is known was read from. *settled is false if it changed so lately that it
 * may change again unseen. */
static bool add_to_key(FILE *key, const char *path, struct stat *st, bool *settled, Error *e)
{
    char *real = realpath(path, NULL);
    if (!real || stat(real, st) != 0) {
        free(real);
        return fail(e,
                    strpbrk(path, "*?") ? "write numbers as {000000..000146}: * is not expanded"
                                        : "check the path and the pattern",
                    "%s: %s", path, strerror(errno));
    }
    fprintf(key, "%s %ld %ld.%09ld %ld.%09ld\n", real, (long)st->st_size, (long)st->st_mtim.tv_sec,
            st->st_mtim.tv_nsec, (long)st->st_ctim.tv_sec, st->st_ctim.tv_nsec);
    long trusted = (long)time(NULL) - CACHE_MARGIN;
    *settled &= st->st_mtim.tv_sec < trusted && st->st_ctim.tv_sec < trusted;
    free(real);
    return true;
}

/* The cache's key for these shards and their index files, and what it says of the shards. */
static char *make_key(Shard *shard, int n, const Names *index, bool *settled, Error *e)
{
    char *text = NULL;
    size_t size;
    struct stat st = {0};
    FILE *key = open_memstream(&text, &size);
    bool ok = key != NULL;
    *settled = true;
    for (int k = 0; ok && k < n; k++) {
        ok = add_to_key(key, shard[k].path, &st, settled, e);
        shard[k].bytes = (uint64_t)st.st_size;
        shard[k].time = nanoseconds(st.st_mtim);
        shard[k].inode = st.st_ino;
    }
    for (int k = 0; ok && k < index->n; k++)
        ok = add_to_key(key, index->at[k], &st, settled, e);
    if (!key || fclose(key) != 0)
        die("free some memory", "out of memory: cannot open %d shards", n);
    if (ok)
        return text;
    free(text);
    return NULL;
}

/* In the file: for each shard its number of samples as int64_t, then its samples. */
static void save_shards(const char *key, const Shard *shard, int n)
{
    char *bytes = NULL;
    size_t size;
    FILE *file = open_memstream(&bytes, &size);
    for (int k = 0; file && k < n; k++) {
        int64_t count = shard[k].n;
        fwrite(&count, sizeof count, 1, file);
        fwrite(shard[k].sample, sizeof(ShardSample), (size_t)count, file);
    }
    if (file && fclose(file) == 0)
        cache_save("shards", key, bytes, size);
    free(bytes);
}

static bool sane(const Shard *shard, const ShardSample *s)
{
    return s->offset >= BLOCK && s->offset <= shard->bytes && s->size <= shard->bytes - s->offset &&
           s->label >= 0 && s->label <= MAX_LABEL;
}

/* Takes a shard's samples from what is left of the file, none of which is to be trusted. */
static bool take_shard(Shard *shard, const uint8_t **file, size_t *left)
{
    int64_t n;
    if (*left < sizeof n)
        return false;
    memcpy(&n, *file, sizeof n);
    *left -= sizeof n;
    if (n < 1 || (uint64_t)n > *left / sizeof(ShardSample))
        return false;
    size_t bytes = sizeof(ShardSample) * (size_t)n;
    shard->n = n;
    shard->sample = memcpy(xmalloc(bytes), *file + sizeof n, bytes);
    *file += sizeof n + bytes;
    *left -= bytes;
    for (long i = 0; i < n; i++)
        if (!sane(shard, &shard->sample[i]))
            return false;
    return true;
}

static bool load_shards(const char *key, Shard *shard, int n)
{
    size_t left;
    uint8_t *file = cache_load("shards", key, &left);
    const uint8_t *at = file;
    bool ok = file != NULL;
    for (int k = 0; ok && k < n; k++)
        ok = take_shard(&shard[k], &at, &left);
    ok = ok && left == 0;
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
    Shard *shard;
    int n;
    const Names *index; /* their index files, or none */
    pthread_mutex_t lock;
    double from;
    int done;
    bool said;
} Reading;

/* A line where it takes long; a bar on terminals. */
static void show_progress(Reading *r)
{
    double seconds = now() - r->from;
    if (seconds < 2)
        return;
    if (!r->said)
        printf("data      reading the %s of %d shards\n",
               r->index->n ? "index and labels" : "headers", r->n);
    fflush(stdout);
    r->said = true;
    report_progress("shards", r->done, r->n, 0);
}

static bool read_shard(void *ctx, int k, Error *e)
{
    Reading *all = ctx;
    Reader r = {.out = &all->shard[k],
                .index = all->index->n ? all->index->at[k] : NULL,
                .now.label = -1,
                .fd = open(all->shard[k].path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    bool ok = r.fd >= 0;
    if (!ok)
        fail(e, "check the path and its permissions", "%s: cannot open: %s", r.out->path,
             strerror(errno));
    else /* labels alone: no reading ahead */
        (void)posix_fadvise(r.fd, 0, 0, POSIX_FADV_RANDOM);
    ok = ok && (r.index ? index_read(r.index, read_line, &r, e) : read_headers(&r, e));
    if (ok && r.out->n == 0)
        ok = fail(e, NEEDS, "%s: no samples", r.out->path);
    if (r.fd >= 0)
        close(r.fd);
    free(r.stem);
    pthread_mutex_lock(&all->lock);
    all->done++;
    show_progress(all);
    pthread_mutex_unlock(&all->lock);
    return ok;
}

static bool read_shards(Shard *shard, int n, const Names *index, Error *e)
{
    Reading r = {.shard = shard, .n = n, .index = index, .from = now()};
    pthread_mutex_init(&r.lock, NULL);
    bool ok = source_parallel(n, read_shard, &r, e);
    pthread_mutex_destroy(&r.lock);
    if (r.said)
        report_clear();
    return ok;
}

bool shards_index(Shard *shard, int n, const char *index_dir, Error *e)
{
    Names index = {0};
    bool settled;
    bool ok = !index_dir || find_indices(index_dir, n, &index, e);
    char *key = ok ? make_key(shard, n, &index, &settled, e) : NULL;
    ok = key != NULL;
    if (ok && !load_shards(key, shard, n)) {
        double from = now();
        long samples = 0;
        ok = read_shards(shard, n, &index, e);
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
char *shard_sample_path(const Shard *shard, const ShardSample *s)
{
    char name[101] = "";
    int fd = open(shard->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || read_at(fd, name, 100, s->offset - BLOCK) != 100)
        *name = '\0';
    if (fd >= 0)
        close(fd);
    for (char *p = name; *p; p++)
        if (*p < ' ' || *p > '~')
            *p = '?';
    return *name ? xasprintf("%s#%s", shard->path, name)
                 : xasprintf("%s#%" PRIu64, shard->path, s->offset);
}
