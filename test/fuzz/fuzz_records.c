/* fuzz_records.c - files of CIFAR and MNIST. The first byte says which, Python's versions of CIFAR
 * last; of MNIST's two files, the labels come first, as many bytes as the second byte says. */
#include "data.h"
#include "fuzz.h"
#include "image/decoder.h"
#include "util/files.h"

#include <string.h>

static char dir[64];

static void link_file(const char *name, const char *target)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    unlink(path);
    if (target)
        MUST(symlink(target, path) == 0);
}

/* What each name is a link to: images or labels. The last four stand in a folder of their own. */
static const struct {
    const char *name;
    int labels;
} names[] = {{"data_batch_1.bin", 0},        {"train.bin", 0},
             {"train-images-idx3-ubyte", 0}, {"train-labels-idx1-ubyte", 1},
             {"python/data_batch_1", 0},     {"python/train", 0},
             {"python/batches.meta", 0},     {"python/meta", 0}};

static void clean_up(void)
{
    char python[80];
    for (int i = 0; i < COUNT(names); i++)
        link_file(names[i].name, NULL);
    snprintf(python, sizeof python, "%s/python", dir);
    rmdir(python);
    rmdir(dir);
}

/* A folder whose names are those of one file in memory, or of two. */
static void open_folder(int images, int labels)
{
    char target[64], python[80];
    setenv("VIT_CACHE", "off", 1);
    snprintf(dir, sizeof dir, "/tmp/fuzz_records.%ld", (long)getpid());
    snprintf(python, sizeof python, "%s/python", dir);
    Error e;
    MUST(make_dirs(python, &e));
    for (int i = 0; i < COUNT(names); i++) {
        snprintf(target, sizeof target, "/proc/self/fd/%d", names[i].labels ? labels : images);
        link_file(names[i].name, target);
    }
    atexit(clean_up);
}

static void fill(int fd, const uint8_t *bytes, size_t n)
{
    MUST(ftruncate(fd, 0) == 0 && pwrite(fd, bytes, n, 0) == (ssize_t)n);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    static int images = -1, labels;
    static uint8_t out[16 * 16 * 3];
    static const char *const kinds[] = {"cifar10", "cifar100", "mnist", "cifar10", "cifar100"};
    char spec[128];
    Error e = {"", ""};
    if (images < 0) {
        images = memfd_create("images", 0);
        labels = memfd_create("labels", 0);
        open_folder(images, labels);
    }
    if (n < 2)
        return 0;
    int kind = bytes[0] % 5;
    size_t of_labels = kind != 2 ? 0 : bytes[1] < n - 2 ? bytes[1] : n - 2;
    fill(labels, bytes + 2, of_labels);
    fill(images, bytes + 2 + of_labels, n - 2 - of_labels);
    snprintf(spec, sizeof spec, "%s:%s%s", kinds[kind], dir, kind > 2 ? "/python" : "");
    DataOptions o = {.spec = spec,
                     .train = true,
                     .images.out_h = 16,
                     .images.out_w = 16,
                     .images.augment = true,
                     .images.area_min = 0.1,
                     .images.area_max = 1,
                     .images.ratio_min = 0.75,
                     .images.ratio_max = 1.33};
    Dataset *d = data_open(&o, &e);
    MUST(d || (*e.what && *e.hint));
    if (!d)
        return 0;
    Decoder *decoder = decoder_new();
    for (long i = 0; i < data_count(d) && i < 4; i++) {
        int label = data_sample(d, decoder, i, 0, 0, out);
        MUST(label >= 0 && label < data_classes(d) && label == data_label(d, i));
    }
    decoder_free(decoder);
    data_close(d);
    return 0;
}
