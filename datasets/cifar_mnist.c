/* cifar_mnist.c - CIFAR-10, CIFAR-100 and MNIST in their binary formats, mapped into memory, and
 * CIFAR in Python's, copied there.
 *
 * All images of such a file have the same size, and so few pixels that they are stretched rather
 * than cropped in evaluation. Everything that can be wrong with a file is found when it is opened;
 * an image cannot be damaged.
 * Order: files; samples; CIFAR; MNIST.
 */
#include "datasets/source.h"
#include "datasets/classes.h"
#include "util/pickle.h"
#include "datasets/splits.h"
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

static Records *new_records(int h, int w, int channels, bool train)
{
    Records *r = xcalloc(1, sizeof *r);
    *r = (Records){.base.kind = &kind, .h = h, .w = w, .channels = channels};
    r->base.split = train ? SPLIT_TRAIN : SPLIT_TEST;
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

/* The two data sets: how the files of their parts begin, in either version, and what is in them. */
typedef struct {
    const char *train, *test;
    const char *list;                  /* of class names, in text */
    const char *labels, *meta, *names; /* Python: keys, and the file with class names */
    const char *below[2];              /* the folders that their archives have */
    int label_bytes, classes;
} Cifar;
static const Cifar cifars[] = {{"data_batch_",
                                "test_batch",
                                "batches.meta.txt",
                                "labels",
                                "batches.meta",
                                "label_names",
                                {"cifar-10-batches-bin", "cifar-10-batches-py"},
                                1,
                                10},
                               {"train",
                                "test",
                                "fine_label_names.txt",
                                "fine_labels",
                                "meta",
                                "fine_label_names",
                                {"cifar-100-binary", "cifar-100-python"},
                                2,
                                100}};

static const char pickle_hint[] = "only plain dicts of texts, numbers, lists and arrays are read; "
                                  "download it again, or take the binary version";

/* The images of a pickle, as a file of its own in memory. */
static bool take_pickle(Records *r, const Pickle *p, const char *path, const Cifar *c, Error *e)
{
    enum { IMAGE = 3 * 32 * 32 };
    long n = pickle_list(p, c->labels), size = pickle_array(p, "data");
    if (n < 1 || size != n * IMAGE)
        return fail(e, "download it again, or take the binary version",
                    "%s: %ld labels in '%s', and %ld bytes in 'data', which is not %d for each",
                    path, n, c->labels, size, IMAGE);
    uint8_t *bytes =
        mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == MAP_FAILED)
        return fail(e, "free some memory", "%s: no memory for %ld bytes", path, size);
    r->file = xgrow(r->file, r->files, sizeof *r->file);
    r->file[r->files++] = (File){.path = xstrdup(path),
                                 .bytes = bytes,
                                 .size = (size_t)size,
                                 .stride = IMAGE,
                                 .first = r->base.n,
                                 .count = n};
    if (!pickle_array_bytes(p, "data", bytes))
        return fail(e, "download it again, or take the binary version",
                    "%s: 'data' has not the %ld bytes of its shape", path, size);
    for (long i = 0; i < n; i++) {
        long label = pickle_list_number(p, c->labels, i);
        if (label < 0 || label >= c->classes)
            return fail(e, "download it again, or take the binary version",
                        "%s: label %ld is %ld, of %d classes", path, i, label, c->classes);
        source_add(&r->base, (uint64_t)r->base.n, (int)label);
    }
    return true;
}

static bool add_pickle(Records *r, const char *path, const Cifar *c, Error *e)
{
    File f;
    if (!map_file(path, &f, e))
        return false;
    Pickle *p = pickle_open(f.bytes, f.size, path, false, pickle_hint, e);
    bool ok = p && take_pickle(r, p, path, c, e);
    pickle_close(p);
    unmap_file(&f);
    return ok;
}

/* Class names of the Python version; none where they cannot be read. */
static void pickled_names(const char *dir, const Cifar *c, Names *out)
{
    Error e;
    File f;
    char *path = xasprintf("%s/%s", dir, c->meta);
    if (path_exists(path) && map_file(path, &f, &e)) {
        Pickle *p = pickle_open(f.bytes, f.size, path, false, pickle_hint, &e);
        for (long i = 0; p && i < pickle_list(p, c->names); i++) {
            char *name = pickle_list_text(p, c->names, i);
            names_add(out, name ? name : "?");
            free(name);
        }
        pickle_close(p);
        unmap_file(&f);
    }
    free(path);
}

/* All files of one part, in the binary version or in Python's. */
static bool add_files(Records *r, const char *dir, const char *prefix, const Cifar *c, bool python,
                      Error *e)
{
    Names files = {0};
    bool ok = names_in(dir, python ? "" : ".bin", &files, e);
    for (int i = 0; ok && i < files.n; i++) {
        const char *name = files.at[i];
        size_t n = strlen(prefix);
        if (strncmp(name, prefix, n) != 0 || (python && name[n + strspn(name + n, "0123456789")]))
            continue;
        char *path = xasprintf("%s/%s", dir, name);
        ok = python ? is_dir(path) || add_pickle(r, path, c, e)
                    : add_cifar(r, path, c->label_bytes, c->classes, e);
        free(path);
    }
    names_free(&files);
    return ok;
}

/* Its files are in dir, or in the folder of that name that the archive has made there. */
static bool open_files(Records *r, const char *dir, const DataOptions *o, const Cifar *c, Error *e)
{
    const char *prefix = o->train ? c->train : c->test;
    bool python = false, ok = true;
    char *at = NULL;
    for (int i = 0; ok && r->files == 0 && i < 6; i++) {
        python = i % 2;
        free(at);
        at = i < 2 ? xstrdup(dir) : xasprintf("%s/%s", dir, c->below[i / 2 - 1]);
        ok = (i >= 2 && !is_dir(at)) || add_files(r, at, prefix, c, python, e);
    }
    if (ok && r->files == 0)
        ok =
            fail(e, "unpack the data set, in its binary or its Python version, and name its folder",
                 "%s has no %s*.bin and no %s", dir, prefix, prefix);
    int parts = o->train && c->classes == 10 ? 5 : 1;
    if (ok && r->files < parts)
        source_note(&r->base, "%s has %d of the %d files %s*", at, r->files, parts, prefix);
    Names names = {0};
    if (ok && python && !o->classes)
        pickled_names(at, c, &names);
    char *list = xasprintf("%s/%s", at, c->list);
    if (names.n == c->classes)
        r->base.classes = names;
    else
        ok = ok && classes_number(&r->base.classes, c->classes, o->classes, list, e);
    if (names.n != c->classes)
        names_free(&names);
    r->base.place = at;
    free(list);
    return ok;
}

static Source *open_cifar(const char *dir, const DataOptions *o, const Cifar *c, Error *e)
{
    Records *r = new_records(32, 32, 3, o->train);
    return source_opened(&r->base, open_files(r, dir, o, c, e));
}

Source *cifar10_open(const char *dir, const DataOptions *o, Error *e)
{
    return open_cifar(dir, o, &cifars[0], e);
}

Source *cifar100_open(const char *dir, const DataOptions *o, Error *e)
{
    return open_cifar(dir, o, &cifars[1], e);
}

/* ---- MNIST ---- */

static uint32_t big_endian(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* The image files of a split in dir, without their endings: [...]train-, t10k- or (EMNIST) test-,
 * beginning with `prefix`, as in "emnist-letters-train-". */
static void find_stems(const char *dir, const char *prefix, bool train, const char *packed,
                       Names *out)
{
    static const char *const words[2][2] = {{"t10k-", "test-"}, {"train-", "train-"}};
    static const char marks[] = "-."; /* some archives have a dot before idx */
    Error e;
    for (int m = 0; marks[m]; m++) {
        Names found = {0};
        char ending[32];
        snprintf(ending, sizeof ending, "images%cidx3-ubyte%s", marks[m], packed);
        bool ok = names_in(dir, ending, &found, &e);
        for (int i = 0; ok && i < found.n; i++) {
            const char *name = found.at[i];
            size_t n = strlen(name) - strlen(ending), word = strlen(words[train][0]);
            if (n < word || strncmp(name, prefix, strlen(prefix)) != 0 ||
                (strncmp(name + n - word, words[train][0], word) != 0 &&
                 strncmp(name + n - word, words[train][1], word) != 0))
                continue;
            char *stem = xasprintf("%s/%.*s", dir, (int)n, name);
            names_add(out, stem);
            free(stem);
        }
        names_free(&found);
    }
}

/* WHERE is a folder, or one and how the files' names begin. They are in it, or one or two levels
 * down, as torchvision has them (MNIST/raw). Returns the stem of the split's files; NULL and an
 * error. */
static char *find_files(const char *where, bool train, const char *packed, Error *e)
{
    const char *slash = strrchr(where, '/'), *prefix = "";
    char *dir = xstrdup(where), *stem = NULL;
    if (!is_dir(where) && slash) {
        dir[slash - where] = '\0';
        prefix = slash + 1;
    }
    Names found = {0}, below = {0};
    find_stems(dir, prefix, train, packed, &found);
    if (!found.n && names_in(dir, "", &below, e))
        for (int i = 0; i < 2 * below.n; i++) { /* DIR/x, and DIR/x/raw */
            char *path = xasprintf("%s/%s%s", dir, below.at[i / 2], i % 2 ? "/raw" : "");
            if (below.at[i / 2][0] != '.' && is_dir(path))
                find_stems(path, prefix, train, packed, &found);
            free(path);
        }
    if (found.n == 1)
        stem = xstrdup(found.at[0]);
    else if (found.n > 1)
        fail(e, "name one of them, folder and beginning: mnist:DIR/emnist-letters",
             "%s has more than one data set: %simages and %simages", where, found.at[0],
             found.at[1]);
    else
        fail(e, "name the folder with the four idx files", "%s has no %s-images-idx3-ubyte", where,
             train ? "train" : "t10k");
    names_free(&found);
    names_free(&below);
    free(dir);
    return stem;
}

static char *find_stem(const char *where, bool train, Error *e)
{
    Error none;
    char *stem = find_files(where, train, "", e), *packed = NULL;
    if (!stem && strstr(e->what, " has no ") && (packed = find_files(where, train, ".gz", &none)))
        fail(e, "unpack it with gunzip", "%simages-idx3-ubyte.gz is still compressed", packed);
    free(packed);
    return stem;
}

/* STEM + "images-idx3-ubyte", or with a dot before idx; NULL and an error. */
static char *find_idx(const char *stem, const char *what, int dims, Error *e)
{
    char *path = xasprintf("%s%s.idx%d-ubyte", stem, what, dims);
    if (path_exists(path))
        return path;
    path[strlen(stem) + strlen(what)] = '-';
    if (path_exists(path))
        return path;
    char *packed = xasprintf("%s.gz", path);
    if (path_exists(packed))
        fail(e, "unpack it with gunzip", "%s is still compressed", packed);
    else
        fail(e, "name the folder with the four idx files", "%s: no such file", path);
    free(packed);
    free(path);
    return NULL;
}

/* An idx file of bytes: 0, 0, type 8, the number of dimensions, each of them in 32 bits, values. */
static bool map_idx(const char *stem, const char *what, int dims, File *f, Error *e)
{
    char *path = find_idx(stem, what, dims, e);
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
    for (long i = 0; i < f->count; i++)
        source_add(&r->base, (uint64_t)i, labels->bytes[labels->offset + (size_t)i]);
    return true;
}

/* One more than the largest label of both splits' files, and 10 at least. */
static int count_labels(const char *where, const File *labels)
{
    Error e;
    File other = {0};
    int most = 9;
    char *stems[2] = {find_files(where, true, "", &e), find_files(where, false, "", &e)};
    for (int split = -1; split < 2; split++) {
        bool mapped = split >= 0 && stems[split] && map_idx(stems[split], "labels", 1, &other, &e);
        const File *f = split < 0 ? labels : &other;
        for (size_t i = f->offset; (split < 0 || mapped) && i < f->size; i++)
            most = f->bytes[i] > most ? f->bytes[i] : most;
        if (mapped)
            unmap_file(&other);
    }
    free(stems[0]);
    free(stems[1]);
    return most + 1;
}

static bool open_mnist(Records *r, const char *where, const DataOptions *o, Error *e)
{
    File labels;
    char *stem = find_stem(where, o->train, e);
    bool ok = stem && map_idx(stem, "images", 3, r->file, e);
    r->files = ok;
    if (ok && map_idx(stem, "labels", 1, &labels, e)) {
        ok = add_mnist(r, &labels, e) &&
             classes_number(&r->base.classes, count_labels(where, &labels), o->classes, NULL, e);
        r->base.place = xasprintf("%s*", stem);
        if (strcasestr(stem, "emnist"))
            source_note(&r->base, "EMNIST's files have rows and columns exchanged; pictures are "
                                  "used as they are stored, as torchvision does");
        unmap_file(&labels);
    } else {
        ok = false;
    }
    free(stem);
    return ok;
}

Source *mnist_open(const char *where, const DataOptions *o, Error *e)
{
    Records *r = new_records(0, 0, 1, o->train);
    r->file = xcalloc(1, sizeof(File));
    return source_opened(&r->base, open_mnist(r, where, o, e));
}
