/* cache.c - what took long to find out, kept for the next run.
 *
 * One file per key in ${XDG_CACHE_HOME:-~/.cache}/vit.c, which may be deleted at any time;
 * VIT_CACHE=off neither reads nor writes any. A file is whole and this key's, or it is as if it
 * were not there; whether what it says still holds is for its reader to find out.
 */
#include "util/cache.h"

#include "util/files.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CACHE_VERSION   1
#define CACHE_MAX_BYTES ((int64_t)4 << 30)

/* The file: this, the key, the bytes. */
typedef struct {
    char magic[8];
    uint64_t version, key, bytes, sum; /* key, bytes: lengths; sum: of both texts */
} Header;
static const char magic[8] = "vit.c\n\x1a";

/* FNV's step on words, the rest byte by byte. */
static uint64_t checksum(uint64_t h, const void *bytes, size_t n)
{
    const uint8_t *p = bytes;
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        h = (h ^ word) * 1099511628211u;
        h ^= h >> 32;
    }
    for (; n; n--)
        h = (h ^ *p++) * 1099511628211u;
    return h ^ h >> 29;
}

static uint64_t sum_of(const char *key, const void *bytes, size_t n)
{
    return checksum(checksum(14695981039346656037u, key, strlen(key)), bytes, n);
}

/* Its folder, or NULL: switched off, or nowhere to put it. */
static char *cache_dir(void)
{
    const char *off = getenv("VIT_CACHE"), *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (off && strcmp(off, "off") == 0)
        return NULL;
    if (base && *base == '/')
        return xasprintf("%s/vit.c", base);
    return home && *home == '/' ? xasprintf("%s/.cache/vit.c", home) : NULL;
}

static char *cache_path(const char *dir, const char *kind, const char *key)
{
    return xasprintf("%s/%s-%016lx", dir, kind,
                     (unsigned long)checksum(14695981039346656037u, key, strlen(key)));
}

/* A header that is this version's, of a file with this key and as many bytes. */
static bool fits(const Header *h, const char *key, const struct stat *st)
{
    return S_ISREG(st->st_mode) && st->st_uid == geteuid() && st->st_size <= CACHE_MAX_BYTES &&
           memcmp(h->magic, magic, sizeof magic) == 0 && h->version == CACHE_VERSION &&
           h->key == strlen(key) && h->bytes <= (uint64_t)st->st_size &&
           sizeof *h + h->key + h->bytes == (uint64_t)st->st_size;
}

uint8_t *cache_load(const char *kind, const char *key, size_t *n)
{
    char *dir = cache_dir(), *path = dir ? cache_path(dir, kind, key) : NULL;
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
    free(path);
    free(dir);
    if (fd < 0)
        return NULL;
    struct stat st;
    Header h;
    uint8_t *file = NULL;
    bool ok = fstat(fd, &st) == 0 && read_at(fd, &h, sizeof h, 0) == sizeof h && fits(&h, key, &st);
    if (ok) {
        size_t size = h.key + h.bytes;
        file = xmalloc(size);
        ok = read_at(fd, file, size, sizeof h) == (long)size && memcmp(file, key, h.key) == 0 &&
             sum_of(key, file + h.key, h.bytes) == h.sum;
    }
    close(fd);
    if (!ok) {
        free(file);
        return NULL;
    }
    *n = h.bytes;
    return memmove(file, file + h.key, h.bytes);
}

void cache_save(const char *kind, const char *key, const void *bytes, size_t n)
{
    char *dir = cache_dir();
    if (!dir || !make_dirs(dir, NULL)) {
        free(dir);
        return;
    }
    char *path = cache_path(dir, kind, key);
    Header h = {.version = CACHE_VERSION, .key = strlen(key), .bytes = n};
    memcpy(h.magic, magic, sizeof magic);
    h.sum = sum_of(key, bytes, n);
    FileWriter *f = file_create(path, NULL);
    if (f && file_write(f, &h, sizeof h, NULL) && file_write(f, key, h.key, NULL) &&
        file_write(f, bytes, n, NULL))
        file_publish(f, false, NULL);
    else
        file_abandon(f);
    free(path);
    free(dir);
}
