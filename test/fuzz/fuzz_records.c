/* fuzz_records.c - files of CIFAR and MNIST. The first byte says which; of MNIST's two files, the
 * labels come first, as many bytes as the second byte says. */
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

static void clean_up(void)
{
    static const char *const names[] = {"data_batch_1.bin", "train.bin", "train-images-idx3-ubyte",
                                        "train-labels-idx1-ubyte"};
    for (int i = 0; i < COUNT(names); i++)
        link_file(names[i], NULL);
    rmdir(dir);
}

/* A folder whose names are those of one file in memory, or of two. */
static void open_folder(int images, int labels)
{
    char target[2][64];
    setenv("VIT_CACHE", "off", 1);
    snprintf(dir, sizeof dir, "/tmp/fuzz_records.%ld", (long)getpid());
    Error e;
    MUST(make_dirs(dir, &e));
    snprintf(target[0], sizeof target[0], "/proc/self/fd/%d", images);
    snprintf(target[1], sizeof target[1], "/proc/self/fd/%d", labels);
    link_file("data_batch_1.bin", target[0]);
    link_file("train.bin", target[0]);
    link_file("train-images-idx3-ubyte", target[0]);
    link_file("train-labels-idx1-ubyte", target[1]);
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
    static const char *const kinds[] = {"cifar10", "cifar100", "mnist"};
    char spec[128];
    Error e = {"", ""};
    if (images < 0) {
        images = memfd_create("images", 0);
        labels = memfd_create("labels", 0);
        open_folder(images, labels);
    }
    if (n < 2)
        return 0;
    int kind = bytes[0] % 3;
    size_t of_labels = kind < 2 ? 0 : bytes[1] < n - 2 ? bytes[1] : n - 2;
    fill(labels, bytes + 2, of_labels);
    fill(images, bytes + 2 + of_labels, n - 2 - of_labels);
    snprintf(spec, sizeof spec, "%s:%s", kinds[kind], dir);
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
