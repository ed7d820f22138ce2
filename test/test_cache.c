/* test_cache.c - indices that are remembered: used while they hold, and never trusted; and folders,
 * which are read again each time.
 *
 * Whether a remembered one was used shows in its file: finding out again writes a new one in its
 * place.
 */
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>

#include "data.h"
#include "datasets/tar.h"
#include "check.h"
#include "files.h"
#include "util/cache.h"
#include "util/files.h"
#include "util/rng.h"

/* So many samples would make an index worth keeping: images in three folders. */
enum { FOLDERS = 3, FILES = 3400, ALL = FOLDERS * FILES };

static const char *const cache = "cache";

static void touch(const char *path)
{
    FILE *f = fopen(path, "w");
    CHECK(f && fclose(f) == 0, "%s", path);
}

/* a/0.jpg ..., b/below/0.jpg ..., c/... */
static const char *make_set(const char *name)
{
    const char *dir = at(temporary, name);
    Error e;
    for (int k = 0; k < FOLDERS; k++) {
        char folder[256], path[512];
        snprintf(folder, sizeof folder, "%s/%c%s", dir, 'a' + k, k == 1 ? "/below" : "");
        CHECK(make_dirs(folder, &e), "%s", e.what);
        for (int i = 0; i < FILES; i++) {
            snprintf(path, sizeof path, "%s/%d.jpg", folder, i);
            touch(path);
        }
    }
    return dir;
}

static const char *make_shard(const char *name, int samples)
{
    const char *path = at(temporary, name);
    Error e;
    TarWriter *w = tar_create(path, &e);
    for (int i = 0; w && i < samples; i++) {
        char member[32];
        snprintf(member, sizeof member, "%07d.cls", i);
        CHECK(tar_add(w, member, "1", 1, &e), "%s", e.what);
        snprintf(member, sizeof member, "%07d.jpg", i);
        CHECK(tar_add(w, member, "picture", 7, &e), "%s", e.what);
    }
    CHECK(w && tar_close(w, &e), "%s", e.what);
    return path;
}

static long count_images(const char *spec)
{
    Error e = {"", ""};
    DataOptions o = {.spec = spec, .train = true, .images.out_h = 8, .images.out_w = 8};
    Dataset *d = data_open(&o, &e);
    long n = CHECK(d != NULL, "%s", e.what) ? data_count(d) : -1;
    data_close(d);
    return n;
}

/* The one remembered file of a kind; false if there is none. */
static bool remembered(const char *kind, char *path, size_t size, struct stat *st)
{
    char folder[256];
    snprintf(folder, sizeof folder, "%s/%s/vit.c", temporary, cache);
    DIR *d = opendir(folder);
    int found = 0;
    for (struct dirent *f; d && (f = readdir(d));)
        if (strncmp(f->d_name, kind, strlen(kind)) == 0) {
            found++;
            snprintf(path, size, "%s/%s", folder, f->d_name);
        }
    if (d)
        closedir(d);
    CHECK(found <= 1, "%d files of %s", found, kind);
    return found == 1 && stat(path, st) == 0;
}

static void forget(const char *kind)
{
    char path[512];
    struct stat st;
    if (remembered(kind, path, sizeof path, &st))
        CHECK(unlink(path) == 0);
}

/* Opens twice: the second time what was remembered is used. */
static void check_remembered(const char *kind, const char *spec, long n)
{
    char path[512];
    struct stat before, after;
    forget(kind);
    CHECK(count_images(spec) == n);
    if (!CHECK(remembered(kind, path, sizeof path, &before), "nothing kept of %s", spec))
        return;
    CHECK(count_images(spec) == n);
    CHECK(remembered(kind, path, sizeof path, &after) && before.st_ino == after.st_ino &&
              before.st_ctim.tv_nsec == after.st_ctim.tv_nsec,
          "%s was found out again", spec);
}

/* Damage of the file, wherever it is: found out again, and kept again. */
static void check_damage(const char *kind, const char *spec, long n)
{
    char path[512];
    struct stat st, after;
    for (int i = 0; i < 40; i++) {
        if (!CHECK(remembered(kind, path, sizeof path, &st)))
            return;
        Philox p = philox(3, (uint32_t)i, 0, 0, 0);
        long where = i < 20 ? i * 4 : (long)(p.v[0] % (uint64_t)st.st_size);
        if (i % 5 == 4) {
            CHECK(truncate(path, where) == 0);
        } else {
            int fd = open(path, O_RDWR);
            uint8_t byte = 0;
            CHECK(fd >= 0 && pread(fd, &byte, 1, where) == 1);
            byte ^= (uint8_t)(1 << p.v[1] % 8);
            CHECK(pwrite(fd, &byte, 1, where) == 1 && close(fd) == 0);
        }
        CHECK(stat(path, &st) == 0 && count_images(spec) == n, "damage %d at %ld", i, where);
        CHECK(remembered(kind, path, sizeof path, &after) &&
                  (st.st_ino != after.st_ino || st.st_ctim.tv_nsec != after.st_ctim.tv_nsec),
              "damage %d at %ld was believed", i, where);
    }
}

/* Files that are whole and lie: every number in turn is changed. */
static void check_lies(const char *kind, const char *key, const char *spec, long n)
{
    static const int64_t lies[] = {
        -1,         0, 1, 5, INT64_MAX, INT64_MIN, 1L << 40, 0x7fffffff00000007, -(1L << 32) + 7,
        0x17fffffff};
    size_t size;
    uint8_t *good = cache_load(kind, key, &size);
    if (!CHECK(good != NULL && size > 400, "%s", key))
        return;
    uint8_t *bad = xmalloc(size);
    for (size_t where = 0; where < 400; where += 8)
        for (int i = 0; i < COUNT(lies); i++) {
            memcpy(bad, good, size);
            memcpy(bad + where, &lies[i], 8);
            cache_save(kind, key, bad, size);
            long got = count_images(spec);
            CHECK(got == n, "%s: byte %zu is %ld: %ld images", kind, where, (long)lies[i], got);
        }
    for (size_t cut = 0; cut < size; cut += cut < 300 ? 7 : size / 9) {
        cache_save(kind, key, good, cut);
        CHECK(count_images(spec) == n, "%zu of %zu bytes", cut, size);
    }
    memset(bad, 'x', size);
    cache_save(kind, key, bad, size);
    CHECK(count_images(spec) == n, "no zeros at all");
    free(bad);
    free(good);
}

/* What changes a directory is seen at once. */
static void check_changes(const char *dir)
{
    Error e;
    char path[512];
    struct stat st;
    CHECK(count_images(dir) == ALL && !remembered("listing", path, sizeof path, &st));
    touch(at(dir, "b/below/new.png"));
    CHECK(count_images(dir) == ALL + 1, "a new file");
    CHECK(unlink(at(dir, "b/below/new.png")) == 0);
    CHECK(count_images(dir) == ALL, "a file less");
    CHECK(rename(at(dir, "a/0.jpg"), at(dir, "a/0.txt")) == 0);
    CHECK(count_images(dir) == ALL - 1, "a file of another name");
    CHECK(rename(at(dir, "a"), at(temporary, "old")) == 0 && make_dirs(at(dir, "a"), &e));
    touch(at(dir, "a/only.jpg"));
    CHECK(count_images(dir) == ALL - FILES + 1, "another directory in the place of one");
    CHECK(make_dirs(at(dir, "d"), &e));
    touch(at(dir, "d/one.jpg"));
    CHECK(count_images(dir) == ALL - FILES + 2, "a new class");
}

/* A file that changed a moment ago may change again without a new time. */
static void check_fresh(const char *kind, const char *spec, long n)
{
    char path[512];
    struct stat st;
    CHECK(count_images(spec) == n);
    CHECK(!remembered(kind, path, sizeof path, &st), "what is fresh is remembered: %s", spec);
}

/* Another user's file in our folder. */
static void check_foreign(const char *kind, const char *spec, long n)
{
    char path[512];
    struct stat st, after;
    if (!CHECK(count_images(spec) == n && remembered(kind, path, sizeof path, &st)))
        return;
    if (chown(path, 65534, (gid_t)-1) != 0) {
        SKIP("another user's file: cannot make one");
        return;
    }
    CHECK(count_images(spec) == n && remembered(kind, path, sizeof path, &after) &&
              st.st_ino != after.st_ino,
          "another user's file was believed");
}

static void check_off(const char *kind, const char *spec, long n, const char *file)
{
    char path[512];
    struct stat st;
    forget(kind);
    setenv("VIT_CACHE", "off", 1);
    CHECK(count_images(spec) == n && !remembered(kind, path, sizeof path, &st));
    unsetenv("VIT_CACHE");
    setenv("XDG_CACHE_HOME", file, 1); /* no folder can be made there */
    CHECK(count_images(spec) == n);
    setenv("XDG_CACHE_HOME", at(temporary, cache), 1);
}

int main(int argc, char **argv)
{
    if (!files_begin(argc, argv))
        return check_report();
    Error e;
    CHECK(make_dirs(at(temporary, cache), &e));
    setenv("XDG_CACHE_HOME", at(temporary, cache), 1);
    unsetenv("VIT_CACHE");
    enum { SAMPLES = 10001 };
    const char *dir = make_set("set"), *shard = make_shard("shard.tar", SAMPLES);
    const char *spec = xasprintf("wds:%s", shard);
    check_fresh("shards", spec, SAMPLES);
    sleep(CACHE_MARGIN + 2); /* until the times above are old enough to be trusted */
    check_remembered("shards", spec, SAMPLES);
    check_damage("shards", spec, SAMPLES);
    check_foreign("shards", spec, SAMPLES);
    check_off("shards", spec, SAMPLES, shard);
    CHECK(count_images(spec) == SAMPLES);
    struct stat st;
    CHECK(stat(shard, &st) == 0);
    char *key =
        xasprintf("labels and facts cls\n%s %ld %ld.%09ld %ld.%09ld\n", shard, (long)st.st_size, (long)st.st_mtim.tv_sec,
                  st.st_mtim.tv_nsec, (long)st.st_ctim.tv_sec, st.st_ctim.tv_nsec);
    check_lies("shards", key, spec, SAMPLES);
    free(key);
    make_shard("shard.tar", SAMPLES + 1);
    CHECK(count_images(spec) == SAMPLES + 1, "another archive in its place");
    check_changes(dir);
    free((char *)spec);
    files_end();
    return check_report();
}
