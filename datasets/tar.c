/* tar.c - tar files of samples: names, members, writing. See tar.h.
 *
 * Reading hops from header to header with pread() and never touches the members' data, so that a
 * shard of a gigabyte costs a few thousand small reads. What is read is untrusted: each size is
 * compared with what is left of the file before it is used. It does not read the members (their
 * offsets are what its callers want), nor compressed archives, nor sparse files.
 *
 * Formats: POSIX.1-2001 pax and ustar, GNU tar's long names and base-256 numbers.
 *
 * Read in this order: names, headers, extended headers, members, writing.
 */
#include "datasets/tar.h"
#include "datasets/splits.h"
#include "util/files.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK = TAR_BLOCK };
static const uint8_t zeros[2 * BLOCK];

/* ---- names of archives ---- */

/* What a folder holds, by name: *.tar, or the folders of splits. */
static bool each_in(const char *dir, bool folders, Names *out, Error *e)
{
    Names found = {0};
    bool ok = names_in(dir, folders ? "" : ".tar", &found, e);
    for (int i = 0; i < found.n; i++) {
        char *path = xasprintf("%s/%s", dir, found.at[i]);
        if (folders ? split_named(found.at[i]) && is_dir(path) : found.at[i][0] != '.')
            names_add(out, path);
        free(path);
    }
    names_free(&found);
    return ok;
}

bool tar_packed(const char *dir, Names *out, Error *e)
{
    static const char *const packed[] = {".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2"};
    bool ok = true;
    for (int i = 0; ok && i < COUNT(packed); i++) {
        Names found = {0};
        ok = names_in(dir, packed[i], &found, e);
        for (int k = 0; k < found.n; k++) {
            int stem = (int)(strlen(found.at[k]) - strlen(packed[i]));
            char *path = xasprintf("%s/%.*s.tar", dir, stem, found.at[k]);
            if (access(path, F_OK) != 0)
                names_add(out, found.at[k]);
            free(path);
        }
        names_free(&found);
    }
    return ok;
}

/* All *.tar in a folder, or if it has none, in those of its folders that are named like splits. */
static bool add_folder(const char *dir, Names *out, Error *e)
{
    int before = out->n;
    Names found = {0};
    bool ok = each_in(dir, false, out, e);
    if (ok && out->n == before && each_in(dir, true, &found, e))
        for (int i = 0; ok && i < found.n; i++)
            ok = each_in(found.at[i], false, out, e);
    names_free(&found);
    if (!ok || out->n > before)
        return ok;
    if (!tar_packed(dir, &found, e))
        return false;
    if (found.n)
        fail(e, "unpack them (gunzip -k *.gz; unzstd, unxz, bunzip2): samples are read at random",
             "%s has no .tar files, but compressed ones: %.100s", dir, found.at[0]);
    else
        fail(e, "name the folder of the shards, or a pattern", "%s has no .tar files", dir);
    names_free(&found);
    return false;
}

bool tar_names(const char *patterns, Names *out, Error *e)
{
    char *text = xstrdup(patterns);
    bool ok = *text || fail(e, "such as DIR/train-{000000..000146}.tar", "no shards are named");
    for (char *p = text, *next; ok && p; p = next) {
        next = strstr(p, "::");
        if (next) {
            *next = '\0';
            next += 2;
        }
        if (strstr(p, "://") || strncmp(p, "pipe:", 5) == 0)
            ok = fail(e, "mount or download it: shards are read from files", "%s is no file", p);
        else
            ok = is_dir(p) ? add_folder(p, out, e) : brace_expand(p, out, e);
    }
    free(text);
    return ok;
}

/* ---- headers ---- */

/* ustar's header; what is not used has no name here. */
typedef struct {
    char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100];
    char magic[6], version[2], owner[80], prefix[155], rest[12];
} Header;
_Static_assert(sizeof(Header) == BLOCK, "a header is a block");

/* Open for reading. The window holds what was read last: the label of a sample and the headers
 * around it stand close together. */
typedef struct {
    const char *path;
    int fd;
    uint64_t size; /* of the file */
    uint64_t at;   /* the window's first byte in the file */
    size_t have;   /* bytes in it */
    uint8_t window[4096];
    /* what extended headers said of the next member: */
    char *name; /* or NULL */
    bool has_size, sparse;
    uint64_t extended, member_size; /* where the first of them stands; the size */
    TarRest rest;
} Tar;

static bool damaged(const Tar *t, uint64_t at, Error *e, const char *what)
{
    return fail(e, "write the archive again, or take it out of the pattern",
                "%s: byte %" PRIu64 ": %s", t->path, at, what);
}

static bool read_bytes(const Tar *t, void *out, size_t n, uint64_t at, Error *e)
{
    long got = read_at(t->fd, out, n, at);
    if (got < 0)
        return fail(e, "see whether the disk is well and still mounted",
                    "%s: byte %" PRIu64 ": cannot read: %s", t->path, at, strerror(errno));
    return (size_t)got == n || damaged(t, at, e, "the file became shorter while it was read");
}

/* The block at `at`, which must be in the file; NULL and an error. */
static const Header *header_at(Tar *t, uint64_t at, Error *e)
{
    if (at < t->at || at + BLOCK > t->at + t->have) {
        size_t n = t->size - at < sizeof t->window ? (size_t)(t->size - at) : sizeof t->window;
        t->have = 0;
        if (!read_bytes(t, t->window, n, at, e))
            return NULL;
        t->at = at;
        t->have = n;
    }
    return (const Header *)(t->window + (at - t->at));
}

/* A number of a header: octal digits with blanks around them, or, after a byte 128, big-endian
 * binary. */
static bool read_number(const char *field, int n, uint64_t *out)
{
    uint64_t v = 0;
    int i = 0;
    if ((uint8_t)field[0] == 0x80) {
        for (i = 1; i < n; i++) {
            if (v >> 56)
                return false;
            v = v << 8 | (uint8_t)field[i];
        }
    } else {
        while (i < n && field[i] == ' ')
            i++;
        for (; i < n && field[i] >= '0' && field[i] <= '7'; i++)
            v = v << 3 | (uint64_t)(field[i] - '0'); /* 12 digits: 36 bits */
        while (i < n && (field[i] == ' ' || !field[i]))
            i++;
        if (i < n)
            return false;
    }
    *out = v;
    return true;
}

/* The sum of a header's bytes, its checksum counted as blanks. Some old programs summed signed
 * bytes. */
static long header_sum(const Header *h, bool signed_bytes)
{
    const uint8_t *byte = (const uint8_t *)h;
    const size_t from = offsetof(Header, checksum), to = from + sizeof h->checksum;
    long sum = 0;
    for (size_t i = 0; i < sizeof *h; i++) {
        uint8_t b = i >= from && i < to ? ' ' : byte[i];
        sum += signed_bytes ? (int8_t)b : b;
    }
    return sum;
}

static bool checksum_holds(const Header *h)
{
    uint64_t stated;
    if (!read_number(h->checksum, sizeof h->checksum, &stated) || stated > INT32_MAX)
        return false;
    return (long)stated == header_sum(h, false) || (long)stated == header_sum(h, true);
}

/* ---- extended headers: what a header has no room for ---- */

enum { MAX_EXTENDED = 1 << 20 };

static void set_name(Tar *t, const char *name, size_t n)
{
    free(t->name);
    t->name = xasprintf("%.*s", (int)n, name);
}

/* One `key=value` of a pax header, at `at` in the file. */
static bool pax_record(Tar *t, const char *key, size_t n, uint64_t at, Error *e)
{
    const char *value = memchr(key, '=', n);
    if (!value)
        return damaged(t, at, e, "a record of a pax header has no '='");
    size_t length = (size_t)(value++ - key), size = n - length - 1;
    if (length == 4 && memcmp(key, "path", 4) == 0) {
        if (size == 0 || memchr(value, 0, size))
            return damaged(t, at, e, "a pax header's path is empty or has a zero byte");
        set_name(t, value, size);
    } else if (length == 4 && memcmp(key, "size", 4) == 0) {
        if (size == 0 || size > 19 || strspn(value, "0123456789") < size) /* below 2^64 */
            return damaged(t, at, e, "a pax header's size is no number");
        t->has_size = true;
        t->member_size = strtoull(value, NULL, 10);
    } else if (length >= 11 && memcmp(key, "GNU.sparse.", 11) == 0) {
        t->sparse = true;
    }
    return true;
}

/* Records `length key=value\n`, the length counting itself and the end of the line. */
static bool pax_records(Tar *t, const char *text, size_t n, uint64_t at, Error *e)
{
    for (size_t i = 0; i < n;) {
        size_t digits = strspn(text + i, "0123456789"), length = 0;
        if (digits > 0 && digits <= 8 && text[i + digits] == ' ')
            length = strtoul(text + i, NULL, 10);
        if (length < digits + 3 || length > n - i || text[i + length - 1] != '\n')
            return damaged(t, at + i, e, "a pax header's record has a wrong length");
        if (!pax_record(t, text + i + digits + 1, length - digits - 2, at + i, e))
            return false;
        i += length;
    }
    return true;
}

/* pax 'x' and GNU 'L' change the next member; a global 'g' and a long link target 'K' say nothing
 * that is used here. */
static bool read_extended(Tar *t, char type, uint64_t at, uint64_t size, Error *e)
{
    if (type == 'g' || type == 'K')
        return true;
    if (size > MAX_EXTENDED)
        return damaged(t, at, e, "an extended header of more than a megabyte");
    char *text = xmalloc((size_t)size + 1);
    bool ok = read_bytes(t, text, (size_t)size, at, e);
    text[ok ? size : 0] = 0;
    if (ok && type == 'L') {
        set_name(t, text, strlen(text));
        ok = *t->name || damaged(t, at, e, "a long name that is empty");
    } else if (ok) {
        ok = pax_records(t, text, (size_t)size, at, e);
    }
    free(text);
    return ok;
}

/* ---- members ---- */

/* Member's name when no extended header gives one. GNU's old format keeps times where ustar keeps
 * the prefix. */
static void header_name(Tar *t, const Header *h)
{
    bool prefix = memcmp(h->magic, "ustar", sizeof h->magic) == 0 && h->prefix[0];
    t->name = xasprintf("%.*s%s%.*s", prefix ? (int)sizeof h->prefix : 0, h->prefix,
                        prefix ? "/" : "", (int)sizeof h->name, h->name);
}

static void split_name(TarMember *m)
{
    const char *slash = strrchr(m->name, '/'), *base = slash ? slash + 1 : m->name;
    const char *dot = strchr(base, '.');
    m->stem = dot ? (size_t)(dot - m->name) : strlen(m->name);
    m->ext = dot ? m->stem + 1 : m->stem;
}

/* A regular file: '0', nothing (older than ustar), or '7', a contiguous one. */
static bool is_regular(char type)
{
    return type == '0' || !type || type == '7';
}

static bool has_ending(const char *name)
{
    TarMember m = {.name = name};
    split_name(&m);
    return m.name[m.ext] && m.stem > 0 && m.name[m.stem - 1] != '/';
}

/* A member behind its header `h` at `at`; *next is where the next header stands. */
static bool read_member(Tar *t, const Header *h, uint64_t at, uint64_t *next, TarEach *each,
                        void *ctx, Error *e)
{
    TarMember m = {.offset = at + BLOCK};
    char type = h->type;
    if (!read_number(h->size, sizeof h->size, &m.size))
        return damaged(t, at, e, "a size that is no number");
    bool extended = type && strchr("xXgLK", type);
    if (t->has_size && !extended)
        m.size = t->member_size;
    if (type >= '1' && type <= '6') /* links, devices, directories, pipes: no data */
        m.size = 0;
    if (m.size > t->size - m.offset) {
        char what[160];
        snprintf(what, sizeof what,
                 "a member of %" PRIu64 " bytes reaches beyond the file's end at %" PRIu64, m.size,
                 t->size);
        return damaged(t, at, e, what);
    }
    *next = m.offset + (m.size + BLOCK - 1) / BLOCK * BLOCK;
    if (extended) {
        if (!t->extended)
            t->extended = at + 1; /* 0: none */
        return read_extended(t, type, m.offset, m.size, e);
    }
    if (!t->name)
        header_name(t, h);
    bool ok = true;
    if (type == 'S' || t->sparse || type == 'M') {
        ok = fail(e, "write the archive again without --sparse and in one volume",
                  "%s: byte %" PRIu64 ": a sparse or divided file cannot be read", t->path, at);
    } else if (is_regular(type) && *t->name && t->name[strlen(t->name) - 1] != '/') {
        m.name = t->name; /* a slash: a directory, before there was a type for them */
        split_name(&m);
        ok = !has_ending(m.name) || each(ctx, &m, e);
    }
    t->rest.links += (type == '1' || type == '2') && has_ending(t->name);
    free(t->name);
    t->name = NULL;
    t->has_size = t->sparse = false;
    t->extended = 0;
    return ok;
}

static const struct {
    const char *begin, *name, *hint;
} packings[] = {
    {"\x1f\x8b", "gzip", "unpack it (zcat FILE >NEW.tar): samples are read at random"},
    {"\x28\xb5\x2f\xfd", "zstd", "unpack it with unzstd: samples are read at random"},
    {"\xfd"
     "7zXZ",
     "xz", "unpack it with unxz: samples are read at random"},
    {"BZh", "bzip2", "unpack it with bunzip2: samples are read at random"},
};

static bool read_members(Tar *t, TarEach *each, void *ctx, Error *e)
{
    uint64_t at = 0;
    while (at < t->size) {
        if (t->size - at < BLOCK)
            return damaged(t, at, e,
                           at ? "the file ends in the middle of a header"
                              : "too short for a tar file: a Git LFS pointer? (git lfs pull)");
        const Header *h = header_at(t, at, e);
        if (!h)
            return false;
        t->rest.open = memcmp(h, zeros, BLOCK) != 0;
        if (!t->rest.open)
            break;
        if (!checksum_holds(h)) {
            const uint8_t *b = (const uint8_t *)h;
            for (int i = 0; at == 0 && i < COUNT(packings); i++)
                if (memcmp(b, packings[i].begin, strlen(packings[i].begin)) == 0)
                    return fail(e, packings[i].hint, "%s: compressed with %s", t->path,
                                packings[i].name);
            return damaged(t, at, e,
                           at ? "the checksum of a header is wrong"
                              : "not the header of a tar file");
        }
        if (!read_member(t, h, at, &at, each, ctx, e))
            return false;
    }
    return !t->extended || damaged(t, t->extended - 1, e, "an extended header without its member");
}

static bool read_archive(Tar *t, TarEach *each, void *ctx, Error *e)
{
    struct stat st;
    if (t->fd < 0 || fstat(t->fd, &st) != 0)
        return fail(e, "check the path and its permissions", "%s: cannot open: %s", t->path,
                    strerror(errno));
    if (!S_ISREG(st.st_mode))
        return fail(e, "name a tar file", "%s: not a regular file", t->path);
    if (st.st_size == 0)
        return fail(e, "write the archive again, or take it out of the pattern",
                    "%s: an empty file", t->path);
    t->size = (uint64_t)st.st_size;
    (void)posix_fadvise(t->fd, 0, 0, POSIX_FADV_RANDOM); /* headers alone: no reading ahead */
    return read_members(t, each, ctx, e);
}

bool tar_read(const char *path, TarEach *each, void *ctx, TarRest *rest, Error *e)
{
    Tar t = {.path = path, .fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    bool ok = read_archive(&t, each, ctx, e);
    if (rest)
        *rest = t.rest;
    free(t.name);
    if (t.fd >= 0)
        close(t.fd);
    return ok;
}

bool tar_same_sample(const char *stem, const TarMember *m)
{
    return stem && strncmp(stem, m->name, m->stem) == 0 && !stem[m->stem];
}

bool tar_is_header(const uint8_t *block, uint64_t size)
{
    const Header *h = (const Header *)block;
    uint64_t stated;
    return checksum_holds(h) && is_regular(h->type) &&
           read_number(h->size, sizeof h->size, &stated) && stated == size;
}

/* ---- writing ---- */

struct TarWriter {
    char *path;
    FileWriter *file;
    uint64_t bytes; /* written */
};

TarWriter *tar_create(const char *path, Error *e)
{
    FileWriter *file = file_create(path, e);
    if (!file)
        return NULL;
    TarWriter *w = xcalloc(1, sizeof *w);
    w->path = xstrdup(path);
    w->file = file;
    return w;
}

static bool put(TarWriter *w, const void *bytes, size_t n, Error *e)
{
    w->bytes += n;
    return file_write(w->file, bytes, n, e);
}

/* A name longer than 100 bytes is divided at a slash; false if it cannot be. */
static bool put_header_name(Header *h, const char *name)
{
    size_t n = strlen(name), from = 0;
    if (n == 0)
        return false;
    if (n > sizeof h->name) {
        const char *slash = strchr(name + n - sizeof h->name - 1, '/');
        if (!slash || slash == name || !slash[1] || (size_t)(slash - name) > sizeof h->prefix)
            return false;
        from = (size_t)(slash - name) + 1;
        memcpy(h->prefix, name, from - 1);
    }
    memcpy(h->name, name + from, n - from);
    return true;
}

bool tar_add(TarWriter *w, const char *name, const void *bytes, size_t n, Error *e)
{
    Header h = {.mode = "0000644",
                .uid = "0000000",
                .gid = "0000000",
                .mtime = "00000000000",
                .type = '0',
                .magic = "ustar",
                .version = "00"};
    if (!put_header_name(&h, name))
        return fail(e, "use names of up to 100 bytes", "%s: '%.200s' is no name for a member",
                    w->path, name);
    if ((uint64_t)n >> 33)
        return fail(e, "store smaller files", "%s: %s: %zu bytes, at most 8 GiB fit in a member",
                    w->path, name, n);
    snprintf(h.size, sizeof h.size, "%011zo", n);
    unsigned sum = (unsigned)header_sum(&h, false) & 0777777; /* it is below that */
    snprintf(h.checksum, sizeof h.checksum, "%06o", sum);
    h.checksum[7] = ' '; /* behind a zero byte */
    return put(w, &h, BLOCK, e) && put(w, bytes, n, e) &&
           put(w, zeros, (BLOCK - n % BLOCK) % BLOCK, e);
}

uint64_t tar_bytes(const TarWriter *w)
{
    return w->bytes;
}

void tar_abandon(TarWriter *w)
{
    file_abandon(w->file);
    free(w->path);
    free(w);
}

bool tar_close(TarWriter *w, Error *e)
{
    bool ok = put(w, zeros, 2 * BLOCK, e);
    if (ok) {
        ok = file_publish(w->file, true, e);
        w->file = NULL;
    }
    tar_abandon(w);
    return ok;
}
