/* webdataset_index.c - which samples tar shards hold: where each picture is, and its label. See
 * webdataset_index.h.
 *
 * A sample needs a picture and a label: a member with the label's extension, `cls` by default,
 * which holds a number or a name; or the folder in the members' names. Other components are passed
 * over. What is wrong with a shard is found here, before the first step: a sample that lacks one of
 * the two, members or samples that stand twice or apart, an index file of another archive. Order:
 * labels; one sample; a shard's headers; its index file; what is cached; all shards.
 */
#include "datasets/webdataset_index.h"
#include "datasets/classes.h"
#include "datasets/dali_index.h"
#include "datasets/source.h"
#include "datasets/tar.h"
#include "util/cache.h"
#include "util/files.h"
#include "util/report.h"
#include "util/text.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <strings.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#define BLOCK     TAR_BLOCK
#define MAX_LABEL ((1 << 24) - 1)
#define NEEDS                                                                                    \
    "a sample needs a picture (jpg, png, ...) and a label (cls, or what --wds-label says), one " \
    "after the other"

/* A member, or a sample, which its first member stands for. */
typedef struct {
    char *name;
    uint64_t at;
} Place;
typedef struct {
    Place *at;
    long n;
} Places;

/* A shard that is being read. */
typedef struct {
    Shard *out;
    int fd;
    const char *index; /* its index file, or NULL */
    const char *label; /* the extension of labels, up to a colon; NULL: the folder is the label */
    int label_n;       /* its length */
    const char *key;   /* of a JSON object, or NULL */
    char *stem;        /* headers: of the sample so far, or NULL */
    ShardSample now;   /* the sample so far; offset 0: no picture yet, label -1: none */
    Places parts;      /* all of its members, */
    char *picture,
        *dotted;    /* of these the picture, and one whose name has a dot too many; or NULL */
    Places samples; /* all so far, by their stems */
    int pictures;   /* of the sample so far */
    Names names;    /* and their labels, where these are names */
} Reader;

/* ---- what stands twice ---- */

static void add_place(Places *p, const char *name, size_t n, uint64_t at)
{
    p->at = xgrow(p->at, p->n, sizeof *p->at);
    p->at[p->n++] = (Place){xasprintf("%.*s", (int)n, name), at};
}

static void clear_places(Places *p)
{
    for (long i = 0; i < p->n; i++)
        free(p->at[i].name);
    p->n = 0;
}

static int by_place(const void *a, const void *b)
{
    const Place *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order ? order : (x->at > y->at) - (x->at < y->at);
}

/* The first of two equal names, or NULL; sorts them. */
static const Place *find_twice(Places *p)
{
    if (p->n > 1)
        qsort(p->at, (size_t)p->n, sizeof *p->at, by_place);
    for (long i = 1; i < p->n; i++)
        if (strcmp(p->at[i - 1].name, p->at[i].name) == 0)
            return &p->at[i - 1];
    return NULL;
}

/* ---- labels ---- */

/* A member's bytes, zero-terminated; free() it. NULL and an error. Every label's header is looked
 * at, which tells an index file of another archive. */
static char *read_text_at(const Reader *r, uint64_t offset, uint64_t size, Error *e)
{
    enum { MOST = 1 << 20 };
    size_t n = BLOCK + (size < MOST ? (size_t)size : MOST);
    char *bytes = xmalloc(n + 1);
    long got = read_at(r->fd, bytes, n, offset - BLOCK);
    if (size > MOST)
        fail(e, "take it out of the archive", "%s: byte %" PRIu64 ": a label of %" PRIu64 " bytes",
             r->out->path, offset, size);
    else if (got < 0)
        fail(e, "see whether the disk is well and still mounted",
             "%s: byte %" PRIu64 ": cannot read: %s", r->out->path, offset, strerror(errno));
    else if ((size_t)got < n || (r->index && !tar_is_header((uint8_t *)bytes, size)))
        fail(e, "write the index again: ./vit index",
             "%s: byte %" PRIu64 ": no %.*s file of %" PRIu64 " bytes, as %s says", r->out->path,
             offset, r->label_n, r->label, size, r->index ? r->index : "its header");
    else {
        memmove(bytes, bytes + BLOCK, (size_t)size);
        bytes[size] = '\0';
        return bytes;
    }
    free(bytes);
    return NULL;
}

/* What the JSON object says under the key, as text; NULL and an error. */
static char *json_label(const Reader *r, const char *text, const char *name, Error *e)
{
    cJSON *object = cJSON_Parse(text);
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, r->key);
    char *label = NULL;
    if (cJSON_IsString(value))
        label = xstrdup(value->valuestring);
    else if (cJSON_IsNumber(value))
        label = xasprintf("%.17g", value->valuedouble);
    else
        fail(e, "name the key that holds the label, a number or a name: --wds-label json:KEY",
             "%s: %.200s %s \"%.60s\"", r->out->path, name,
             object ? "has no number and no name as its" : "is no JSON object with the key",
             r->key);
    cJSON_Delete(object);
    return label;
}

/* The label in text: a number from 0, or else, but not in a cls file, a name. */
static bool take_label(Reader *r, const char *text, size_t n, const char *name, Error *e)
{
    while (n && strchr(" \t\r\n", text[n - 1]))
        n--;
    if (n >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) /* as Windows' editors do */
        text += 3, n -= 3;
    while (n && strchr(" \t\r\n", *text))
        text++, n--;
    char *label = xasprintf("%.*s", (int)n, text), *end;
    bool digits = *label && n < 10 && strspn(label, "0123456789") == n;
    bool number = (strtod(label, &end), *label && !*end);
    bool cls = r->label && r->label_n == 3 && strncasecmp(r->label, "cls", 3) == 0;
    bool names = r->names.n > 0 || !r->label, ok = false;
    long value = digits ? strtol(label, NULL, 10) : -1;
    if (*label == '{' && r->label && !r->key) {
        fail(e, "name the key of the label: --wds-label json:KEY",
             "%s: %.200s holds JSON, no label", r->out->path, name);
    } else if (digits && value <= MAX_LABEL && !names) {
        r->now.label = (int32_t)value;
        ok = true;
    } else if (!*label || n > 200 || strpbrk(label, "\r\n") || cls || (number && !names)) {
        fail(e,
             number ? "labels are whole numbers from 0; leave samples without one (-1) out"
                    : "a label is a number in decimal digits, from 0; names are read from txt, "
                      "json:KEY or "
                      "the folder (--wds-label)",
             "%s: %.200s: '%.40s' is no label from 0 to %d", r->out->path, name, label, MAX_LABEL);
    } else if (r->label && (number || r->out->n > r->names.n)) {
        fail(e, "write them all as numbers, or all as names",
             "%s: %.200s: '%.40s' is a %s, labels before it are not", r->out->path, name, label,
             number ? "number" : "name");
    } else {
        names_add(&r->names, label); /* of the next sample in out->sample */
        r->now.label = 0;
        ok = true;
    }
    free(label);
    return ok;
}

static bool read_label(Reader *r, const char *name, uint64_t offset, uint64_t size, Error *e)
{
    char *text = read_text_at(r, offset, size, e);
    char *label = text && r->key ? json_label(r, text, name, e) : text;
    bool ok = label && take_label(r, label, strlen(label), name, e);
    if (label != text)
        free(label);
    free(text);
    return ok;
}

/* "set/cat/0001.jpg": cat. */
static bool folder_label(Reader *r, const char *name, Error *e)
{
    const char *end = strrchr(name, '/'), *from = end;
    while (from && from > name && from[-1] != '/')
        from--;
    if (from && from < end && strncmp(from, "./", 2) != 0)
        return take_label(r, from, (size_t)(end - from), name, e);
    return fail(e, "--wds-label says where the labels are: cls, txt, json:KEY or folder",
                "%s: %.200s has no folder in its name", r->out->path, name);
}

/* ---- one sample ---- */

static bool is_label(const Reader *r, const char *ext)
{
    return r->label && strncasecmp(ext, r->label, (size_t)r->label_n) == 0 && !ext[r->label_n];
}

/* A component. The first picture counts. */
static bool add_part(Reader *r, const char *name, const char *ext, uint64_t offset, uint64_t size,
                     Error *e)
{
    const char *last = strrchr(ext, '.');
    add_place(&r->parts, ext, strlen(ext), offset);
    for (char *p = r->parts.at[r->parts.n - 1].name; *p; p++)
        *p = (char)tolower((unsigned char)*p);
    if (last && !r->dotted && (image_extension(last + 1) || is_label(r, last + 1)) &&
        !is_label(r, ext))
        r->dotted = xstrdup(name);
    if (is_label(r, ext) && r->now.label < 0)
        return read_label(r, name, offset, size, e);
    r->pictures += image_extension(ext);
    if (!image_extension(ext) || r->now.offset)
        return true;
    if (size > INT32_MAX)
        return fail(e, "take it out of the archive",
                    "%s: byte %" PRIu64 ": a picture of %" PRIu64 " bytes", r->out->path, offset,
                    size);
    r->now.offset = offset;
    r->now.size = (uint32_t)size;
    r->picture = xstrdup(name);
    return r->label || folder_label(r, name, e);
}

/* Whether a member's name goes on with a number behind the first dot, as in cat.2.jpg: that was to
 * be another sample. */
static bool numbered(const char *name)
{
    const char *slash = strrchr(name, '/'), *dot = strchr(slash ? slash : name, '.');
    return dot && dot[1] >= '0' && dot[1] <= '9';
}

/* What a sample lacks may stand elsewhere in the archive. */
typedef struct {
    const Reader *r;
    const char *stem;
} Apart;

static bool find_apart(void *ctx, const TarMember *m, Error *e)
{
    const Apart *a = ctx;
    if (!tar_same_sample(a->stem, m))
        return true;
    for (long i = 0; i < a->r->parts.n; i++)
        if (a->r->parts.at[i].at == m->offset)
            return true;
    return fail(e,
                "members of a sample stand one after the other: write the archive again with tar "
                "--sort=name",
                "%s: the sample %.150s is not in one piece: %.150s stands apart, at byte %" PRIu64,
                a->r->out->path, a->stem, m->name, m->offset);
}

/* "jpg, json": the endings of a sample's members */
static void list_endings(const Reader *r, char out[static 128])
{
    *out = '\0';
    for (long i = 0; i < r->parts.n; i++) {
        size_t n = strlen(out);
        snprintf(out + n, 128 - n, "%s%.30s", i ? ", " : "", r->parts.at[i].name);
    }
}

/* Where the label may be, by the members of a sample without one; "" where nothing looks like it.
 */
static void guess_label(const Reader *r, const char *name, char out[static 128])
{
    *out = '\0';
    for (long i = 0; i < r->parts.n && !*out; i++) {
        const char *ending = r->parts.at[i].name;
        bool json = find_word("json", ending) == 0;
        if (json || find_word("txt|index|label|labels|class|class_id|target|id", ending) >= 0)
            snprintf(out, 128, "--wds-label %.20s%s reads it there", ending, json ? ":KEY" : "");
    }
    if (!*out && strchr(name, '/'))
        snprintf(out, 128, "--wds-label folder takes the last folder in its name");
}

static bool whole_sample(Reader *r, const char *name, Error *e)
{
    const char *path = r->out->path, *dots =
                                         "the key of a sample ends at the first dot of its name: "
                                         "write _ for the others";
    const Place *twice = find_twice(&r->parts);
    bool picture = r->now.offset != 0, label = r->now.label >= 0;
    if (twice)
        return fail(e, "write every sample once, each under a name of its own",
                    "%s: the sample %.200s has %s twice, at byte %" PRIu64 " and at byte %" PRIu64,
                    path, name, twice->name, twice[0].at, twice[1].at);
    if (picture && label && r->dotted && numbered(r->dotted))
        return fail(e, dots, "%s: %.150s and %.150s have the same key, %.100s", path, r->picture,
                    r->dotted, name);
    if (picture && label)
        return true;
    if (!r->index && !tar_read(path, find_apart, &(Apart){r, name}, NULL, e))
        return false;
    if (r->dotted)
        return fail(e, dots, "%s: the sample %.150s has no %s, but %.150s", path, name,
                    picture ? "label" : "picture", r->dotted);
    char has[128];
    list_endings(r, has);
    if (!picture)
        return fail(e, NEEDS, "%s: the sample %.150s has no picture, only %s", path, name, has);
    char guess[128];
    guess_label(r, name, guess);
    return fail(e, *guess ? guess : NEEDS, "%s: the sample %.150s has no %.*s file, only %s", path,
                name, r->label_n, r->label, has);
}

/* By the folders in a member's name, "set/val/cat/1.jpg"; that of the class is none of them. */
static int split_of_folders(const Reader *r, const char *name)
{
    int split = SPLIT_NONE, folders = 0;
    for (const char *p = name; *p; p++)
        folders += *p == '/';
    if (!r->label)
        folders--;
    for (; folders > 0 && !split; folders--) {
        size_t n = strcspn(name, "/");
        char *folder = xasprintf("%.*s", (int)n, name);
        split = split_named(folder);
        free(folder);
        name += n + 1;
    }
    return split;
}

static void clear_sample(Reader *r)
{
    clear_places(&r->parts);
    free(r->picture);
    free(r->dotted);
    r->picture = r->dotted = NULL;
    r->pictures = 0;
    r->now = (ShardSample){.label = -1};
}

static bool end_sample(Reader *r, const char *name, Error *e)
{
    if (!whole_sample(r, name, e))
        return false;
    add_place(&r->samples, name, strlen(name), r->now.offset);
    r->out->sample = xgrow(r->out->sample, r->out->n, sizeof *r->out->sample);
    r->out->sample[r->out->n++] = r->now;
    r->out->facts.lies[split_of_folders(r, r->picture)]++;
    r->out->facts.pictures += r->pictures > 1;
    clear_sample(r);
    return true;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* No key may come again; labels that are names become places in the sorted list of them. */
static bool end_shard(Reader *r, Error *e)
{
    const Place *twice = find_twice(&r->samples);
    Names *names = &r->out->names;
    if (twice)
        return fail(e, "write every sample once, each under a name of its own",
                    "%s: the sample %.200s stands twice, at byte %" PRIu64 " and at byte %" PRIu64,
                    r->out->path, twice->name, twice[0].at, twice[1].at);
    for (int i = 0; i < r->names.n; i++)
        names_add(names, r->names.at[i]);
    classes_distinct(names);
    for (int i = 0; i < r->names.n; i++) {
        char **at = bsearch(&r->names.at[i], names->at, (size_t)names->n, sizeof(char *), by_name);
        r->out->sample[i].label = (int32_t)(at - names->at);
    }
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
    return add_part(r, m->name, m->name + m->ext, m->offset, m->size, e);
}

static bool read_headers(Reader *r, Error *e)
{
    TarRest rest;
    bool ok = tar_read(r->out->path, read_header, r, &rest, e);
    r->out->facts.links = rest.links;
    r->out->facts.open = rest.open;
    return ok && (!r->stem || end_sample(r, r->stem, e)) &&
           (r->out->n > 0 || fail(e, NEEDS, "%s: no samples", r->out->path)) && end_shard(r, e);
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
        const char *name = *parts[i].name ? parts[i].name : parts[i].ext;
        if (!add_part(r, name, parts[i].ext, parts[i].offset, parts[i].size, e))
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
    return ok &&
           (out->n == shards || fail(e, "write one for each shard, in their order: ./vit index",
                                     "%s has %s idx_N.txt for %s", dir, amount(out->n, "file").s,
                                     amount(shards, "shard").s));
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
static char *make_key(Shard *shard, int n, const Names *index, const char *label, bool *settled,
                      Error *e)
{
    char *text = NULL;
    size_t size;
    struct stat st = {0};
    FILE *key = open_memstream(&text, &size);
    bool ok = key && fprintf(key, "labels and facts %s\n", label) > 0;
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
        die("free some memory", "out of memory: cannot open %s", amount(n, "shard").s);
    if (ok)
        return text;
    free(text);
    return NULL;
}

/* In the file: for each shard its numbers of samples and of names as int64_t, its facts, then its
 * samples, and its names, each with its zero byte. */
static void save_shards(const char *key, const Shard *shard, int n)
{
    char *bytes = NULL;
    size_t size;
    FILE *file = open_memstream(&bytes, &size);
    for (int k = 0; file && k < n; k++) {
        int64_t count[2] = {shard[k].n, shard[k].names.n};
        fwrite(count, sizeof count, 1, file);
        fwrite(&shard[k].facts, sizeof shard[k].facts, 1, file);
        fwrite(shard[k].sample, sizeof(ShardSample), (size_t)shard[k].n, file);
        for (int i = 0; i < shard[k].names.n; i++)
            fwrite(shard[k].names.at[i], strlen(shard[k].names.at[i]) + 1, 1, file);
    }
    if (file && fclose(file) == 0)
        cache_save("shards", key, bytes, size);
    free(bytes);
}

static bool sane(const Shard *shard, const ShardSample *s)
{
    return s->offset >= BLOCK && s->offset <= shard->bytes && s->size <= shard->bytes - s->offset &&
           s->label >= 0 && s->label <= (shard->names.n ? shard->names.n - 1 : MAX_LABEL);
}

/* Takes a shard's samples and names from what is left of the file, none of which is to be
 * trusted. */
static bool take_shard(Shard *shard, const uint8_t **file, size_t *left)
{
    int64_t n[2];
    if (*left < sizeof n + sizeof shard->facts)
        return false;
    memcpy(n, *file, sizeof n);
    memcpy(&shard->facts, *file + sizeof n, sizeof shard->facts);
    *left -= sizeof n + sizeof shard->facts;
    *file += sizeof n + sizeof shard->facts;
    if (n[0] < 1 || (uint64_t)n[0] > *left / sizeof(ShardSample) || n[1] < 0)
        return false;
    size_t bytes = sizeof(ShardSample) * (size_t)n[0];
    shard->n = n[0];
    shard->sample = memcpy(xmalloc(bytes), *file, bytes);
    *left -= bytes;
    *file += bytes;
    for (long i = 0; i < n[1]; i++) {
        const uint8_t *end = memchr(*file, 0, *left);
        if (!end)
            return false;
        names_add(&shard->names, (const char *)*file);
        *left -= (size_t)(end + 1 - *file);
        *file = end + 1;
    }
    for (long i = 0; i < n[0]; i++)
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
        names_free(&shard[k].names);
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
    const char *label;
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
        printf("data      reading the %s of %s\n", r->index->n ? "index and labels" : "headers",
               amount(r->n, "shard").s);
    fflush(stdout);
    r->said = true;
    report_progress("shards", r->done, r->n, 0);
}

static bool read_shard(void *ctx, int k, Error *e)
{
    Reading *all = ctx;
    Reader r = {.out = &all->shard[k],
                .index = all->index->n ? all->index->at[k] : NULL,
                .label = strcmp(all->label, "folder") == 0 ? NULL : all->label,
                .label_n = (int)strcspn(all->label, ":"),
                .key = strchr(all->label, ':'),
                .now.label = -1,
                .fd = open(all->shard[k].path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    bool ok = r.fd >= 0;
    if (!ok)
        fail(e, "check the path and its permissions", "%s: cannot open: %s", r.out->path,
             strerror(errno));
    else /* labels alone: no reading ahead */
        (void)posix_fadvise(r.fd, 0, 0, POSIX_FADV_RANDOM);
    r.key += r.key != NULL;
    ok = ok && (r.index ? index_read(r.index, read_line, &r, e) && end_shard(&r, e)
                        : read_headers(&r, e));
    if (r.fd >= 0)
        close(r.fd);
    clear_sample(&r);
    clear_places(&r.samples);
    free(r.parts.at);
    free(r.samples.at);
    names_free(&r.names);
    free(r.stem);
    pthread_mutex_lock(&all->lock);
    all->done++;
    show_progress(all);
    pthread_mutex_unlock(&all->lock);
    return ok;
}

static bool read_shards(Shard *shard, int n, const Names *index, const char *label, Error *e)
{
    Reading r = {.shard = shard, .n = n, .index = index, .label = label, .from = now()};
    pthread_mutex_init(&r.lock, NULL);
    bool ok = source_parallel(n, read_shard, &r, e);
    pthread_mutex_destroy(&r.lock);
    if (r.said)
        report_clear();
    return ok;
}

bool shards_index(Shard *shard, int n, const char *index_dir, const char *label, Error *e)
{
    Names index = {0};
    bool settled;
    bool ok = !index_dir || find_indices(index_dir, n, &index, e);
    char *key = ok ? make_key(shard, n, &index, label, &settled, e) : NULL;
    ok = key != NULL;
    if (ok && !load_shards(key, shard, n)) {
        double from = now();
        long samples = 0;
        ok = read_shards(shard, n, &index, label, e);
        for (int k = 0; ok && k < n; k++)
            samples += shard[k].n;
        if (ok && settled && (samples > CACHE_ENTRIES || now() - from > CACHE_SECONDS))
            save_shards(key, shard, n);
    }
    names_free(&index);
    free(key);
    return ok;
}

void shard_free(Shard *shard)
{
    free(shard->path);
    free(shard->sample);
    names_free(&shard->names);
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
