/* cifar_mnist.c - CIFAR-10, CIFAR-100 and MNIST in their binary formats, mapped into memory.
 *
 * All images of such a file have the same size, and so few pixels that they are stretched rather
 * than cropped in evaluation. Everything that can be wrong with a file is found when it is opened;
 * an image cannot be damaged.
 * Order: files; samples; CIFAR; MNIST.
 */
#include "datasets/source.h"
#include "datasets/classes.h"
#include "image/decoder.h"
#include "util/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* A file of equal records: image k starts at bytes + offset + k*stride. */
typedef struct {
    char *path;
    const uint8_t *bytes;
    size_t size, offset, stride;
    long first, count; /* of all files' images; an item is such a number */
} File;

typedef struct {
    Source base;
    File *file;
    int files, h, w, channels; /* uint8 [3, h, w], or grey [h, w] */
} Records;

/* ---- files ---- */

static bool map_file(const char *path, File *f, Error *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st = {0};
    *f = (File){.path = xstrdup(path), .bytes = MAP_FAILED};
    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0)
        f->bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    int why = errno;
    if (fd >= 0)
        close(fd);
    if (f->bytes != MAP_FAILED) {
        f->size = (size_t)st.st_size;
        return true;
    }
    free(f->path);
    if (fd >= 0 && !S_ISREG(st.st_mode))
        return fail(e, "name the folder that holds the files", "%s: not a file", path);
    if (fd >= 0 && st.st_size == 0)
        return fail(e, "download it again", "%s: empty", path);
    return fail(e, "check the path and its permissions", "%s: %s", path, strerror(why));
}

static void unmap_file(File *f)
{
    munmap((void *)f->bytes, f->size);
    free(f->path);
}

/* ---- samples ---- */

static const File *file_of(const Records *r, uint64_t item)
{
    const File *f = r->file;
    while ((long)item >= f->first + f->count)
        f++;
    return f;
}

/* Planes or grey to RGB pixels. */
static bool read_record(Source *s, long i, Decoder *d, Error *e)
{
    const Records *r = (Records *)s;
    const File *f = file_of(r, s->item[i]);
    const uint8_t *p = f->bytes + f->offset + (s->item[i] - (uint64_t)f->first) * f->stride;
    size_t plane = (size_t)r->h * r->w, step = r->channels == 3 ? plane : 0;
    uint8_t *rgb = decoder_room(d, 3 * plane, e);
    if (!rgb)
        return false;
    for (size_t k = 0; k < plane; k++)
        for (int c = 0; c < 3; c++)
            rgb[3 * k + c] = p[c * step + k];
    decoder_open_pixels(d, rgb, r->w, r->h);
    return true;
}

static char *record_path(const Source *s, long i)
{
    const File *f = file_of((const Records *)s, s->item[i]);
    return xasprintf("%s#%ld", f->path, (long)s->item[i] - f->first);
}

static void close_records(Source *s)
{
    Records *r = (Records *)s;
    for (int i = 0; i < r->files; i++)
        unmap_file(&r->file[i]);
    free(r->file);
}

static const SourceKind kind = {
    .stretch = true, .read = read_record, .path = record_path, .close = close_records};

static Records *new_records(int h, int w, int channels)
{
    Records *r = xcalloc(1, sizeof *r);
    *r = (Records){.base.kind = &kind, .h = h, .w = w, .channels = channels};
    return r;
}

/* ---- CIFAR ---- */

/* Append a file of records whose last label byte stands just before the image. */
static bool add_cifar(Records *r, const char *path, int label_bytes, int classes, Error *e)
{
    size_t image = 3 * 32 * 32, record = label_bytes + image;
    r->file = xgrow(r->file, r->files, sizeof *r->file);
    File *f = &r->file[r->files];
    if (!map_file(path, f, e))
        return false;
    r->files++;
    if (f->size % record)
        return fail(e, "download it again, in the binary version",
                    "%s: %zu bytes are not a whole number of %zu-byte records", path, f->size,
                    record);
    f->offset = label_bytes;
    f->stride = record;
    f->first = r->base.n;
    f->count = (long)(f->size / record);
    for (long i = 0; i < f->count; i++) {
        int label = f->bytes[i * record + label_bytes - 1];
        if (label >= classes)
            return fail(e, "download it again, in the binary version",
                        "%s: record %ld has label %d of %d classes", path, i, label, classes);
        source_add(&r->base, (uint64_t)r->base.n, label);
    }
    return true;
}

static Source *open_cifar(const char *dir, const DataOptions *o, int classes, Error *e)
{
    static const struct {
        const char *train, *test, *list;
        int label_bytes;
    } kinds[] = {{"data_batch_", "test_batch", "batches.meta.txt", 1},
                 {"train", "test", "fine_label_names.txt", 2}};
    int k = classes == 100;
    const char *prefix = o->train ? kinds[k].train : kinds[k].test;
    Records *r = new_records(32, 32, 3);
    Names files = {0};
    bool ok = names_in(dir, ".bin", &files, e);
    for (int i = 0; ok && i < files.n; i++) {
        if (strncmp(files.at[i], prefix, strlen(prefix)) != 0)
            continue;
        char *path = xasprintf("%s/%s", dir, files.at[i]);
        ok = add_cifar(r, path, kinds[k].label_bytes, classes, e);
        free(path);
    }
    if (ok && r->files == 0)
        ok = fail(e, "unpack the binary version of the data set and name its folder",
                  "%s has no %s*.bin", dir, prefix);
    char *list = xasprintf("%s/%s", dir, kinds[k].list);
    ok = ok && classes_number(&r->base.classes, classes, o->classes, list, e);
    free(list);
    names_free(&files);
    return source_opened(&r->base, ok);
}

Source *cifar10_open(const char *dir, const DataOptions *o, Error *e)
{
    return open_cifar(dir, o, 10, e);
}

Source *cifar100_open(const char *dir, const DataOptions *o, Error *e)
{
    return open_cifar(dir, o, 100, e);
}

/* ---- MNIST ---- */

static uint32_t big_endian(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* DIR/train-images-idx3-ubyte, or with a dot before idx, as some archives name it; NULL and an
 * error. */
static char *find_idx(const char *dir, const char *what, int dims, Error *e)
{
    static const char marks[] = "-.";
    char *path = NULL;
    for (int i = 0; marks[i]; i++) {
        free(path);
        path = xasprintf("%s/%s%cidx%d-ubyte", dir, what, marks[i], dims);
        if (path_exists(path))
            return path;
    }
    free(path);
    path = xasprintf("%s/%s-idx%d-ubyte.gz", dir, what, dims);
    if (path_exists(path))
        fail(e, "unpack it with gunzip", "%s is still compressed", path);
    else
        fail(e, "name the folder with the four idx files", "%.*s: no such file",
             (int)strlen(path) - 3, path);
    free(path);
    return NULL;
}

/* An idx file of bytes: 0, 0, type 8, the number of dimensions, each of them in 32 bits, values. */
static bool map_idx(const char *dir, const char *what, int dims, File *f, Error *e)
{
    char *path = find_idx(dir, what, dims, e);
    bool ok = path && map_file(path, f, e);
    free(path);
    if (!ok)
        return false;
    f->offset = 4 + 4 * (size_t)dims;
    bool sane = f->size >= f->offset && f->size <= UINT32_MAX;
    uint64_t bytes = 1; /* a product beyond the file's size stays there, so it cannot wrap around */
    for (int i = 0; sane && i < dims && bytes <= f->size; i++)
        bytes *= big_endian(f->bytes + 4 + 4 * i);
    if (!sane || big_endian(f->bytes) != 0x800u + dims || f->size - f->offset != bytes) {
        fail(e, "download it again", "%s: not a whole idx%d file", f->path, dims);
        unmap_file(f);
        return false;
    }
    return true;
}

static bool add_mnist(Records *r, const File *labels, Error *e)
{
    File *f = r->file;
    uint32_t n = big_endian(f->bytes + 4), h = big_endian(f->bytes + 8),
             w = big_endian(f->bytes + 12);
    if (h > IMAGE_MAX_SIDE || w > IMAGE_MAX_SIDE)
        return fail(e, "download it again", "%s: its images have %u x %u pixels", f->path, w, h);
    r->h = (int)h;
    r->w = (int)w;
    f->stride = (size_t)h * w;
    f->count = n;
    if ((n && f->stride == 0) || n != labels->size - labels->offset)
        return fail(e, "download both again", "%s has %u images, %s has %zu labels", f->path, n,
                    labels->path, labels->size - labels->offset);
    for (long i = 0; i < f->count; i++) {
        int label = labels->bytes[labels->offset + i];
        if (label > 9)
            return fail(e, "download it again", "%s: label %ld is %d, of 10 classes", labels->path,
                        i, label);
        source_add(&r->base, (uint64_t)i, label);
    }
    return true;
}

Source *mnist_open(const char *dir, const DataOptions *o, Error *e)
{
    Records *r = new_records(0, 0, 1);
    File labels;
    r->file = xcalloc(1, sizeof(File));
    if (!map_idx(dir, o->train ? "train-images" : "t10k-images", 3, r->file, e))
        return source_opened(&r->base, false);
    r->files = 1;
    if (!map_idx(dir, o->train ? "train-labels" : "t10k-labels", 1, &labels, e))
        return source_opened(&r->base, false);
    bool ok = add_mnist(r, &labels, e) && classes_number(&r->base.classes, 10, o->classes, NULL, e);
    unmap_file(&labels);
    return source_opened(&r->base, ok);
}
