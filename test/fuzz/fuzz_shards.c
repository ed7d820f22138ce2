/* fuzz_shards.c - a data set of one tar shard, with an index (the bytes up to a line `--`) or,
 * where there is no such line, without. Where labels are follows from the sum of the bytes. */
#include "data.h"
#include "fuzz.h"
#include "util/files.h"

#include <fcntl.h>
#include <string.h>

static char dir[64], index_path[96], shard_path[96];

static void clean_up(void)
{
    unlink(index_path);
    unlink(shard_path);
    rmdir(dir);
}

static int create(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    MUST(fd >= 0);
    return fd;
}

static void fill(int fd, const uint8_t *bytes, size_t n)
{
    MUST(ftruncate(fd, 0) == 0 && pwrite(fd, bytes, n, 0) == (ssize_t)n);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    static int index = -1, shard;
    char spec[128];
    Error e = {"", ""};
    if (index < 0) {
        setenv("VIT_CACHE", "off", 1);
        snprintf(dir, sizeof dir, "/tmp/fuzz_shards.%ld", (long)getpid());
        snprintf(index_path, sizeof index_path, "%s/idx_0.txt", dir);
        snprintf(shard_path, sizeof shard_path, "%s/s.tar", dir);
        MUST(make_dirs(dir, &e));
        index = create(index_path);
        shard = create(shard_path);
        atexit(clean_up);
    }
    const uint8_t *dashes = memmem(bytes, n, "\n--\n", 4);
    size_t of_index = dashes ? (size_t)(dashes - bytes) + 1 : 0, from = dashes ? of_index + 3 : 0;
    fill(index, bytes, of_index);
    fill(shard, bytes + from, n - from);
    snprintf(spec, sizeof spec, "wds:%s", shard_path);
    static const char *const labels[] = {NULL, "folder", "json:label", "txt", "json"};
    unsigned sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += bytes[i];
    DataOptions o = {.spec = spec,
                     .train = true,
                     .images.out_h = 16,
                     .images.out_w = 16,
                     .wds_label = labels[sum % COUNT(labels)],
                     .index_dir = dashes ? dir : NULL};
    Dataset *d = data_open(&o, &e);
    MUST(d || (*e.what && *e.hint));
    if (!d)
        return 0;
    long count = data_count(d);
    MUST(count > 0);
    for (long i = 0; i < count && i < 8; i++) {
        MUST(data_label(d, i) >= 0 && data_label(d, i) < data_classes(d));
        free(data_sample_path(d, i));
        long sample = data_order(d, 1, i);
        MUST(sample >= 0 && sample < count);
    }
    data_close(d);
    return 0;
}
