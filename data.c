/* data.c - datasets: which images there are, their labels, and one preprocessed sample.
 *
 * Three kinds: class folders, whose images are decoded when they are asked for; the binary records
 * of CIFAR and MNIST, mapped into memory; and noise, which needs no disk. Everything that can be
 * wrong with a data set as a whole is found by data_open; a damaged image is found when it is read,
 * and replaced. All functions but open and close may be called from several threads.
 *
 * Not here: decoding (image.c), resizing (resize.c), batches and their order (loader.c).
 * Order: lists of names; class lists; folders; records; opening; one sample.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data.h"

/* After so many unreadable images in a row the data set is taken to be gone (an unmounted disk). */
#define MAX_DAMAGED_IN_A_ROW 1000

typedef struct {
    char **at;
    int n, room;
} Names;

/* A file of equal records: image k starts at bytes + offset + k*stride. */
typedef struct {
    char *path;
    const uint8_t *bytes;
    size_t size, offset, stride;
    long first, count; /* of the data set's samples */
} Records;

struct Dataset {
    DataOptions o; /* its strings belong to the caller and are cleared */
    enum { FOLDERS, RECORDS, FAKE } kind;
    long n, room;
    Names classes;
    int *labels; /* [n] */
    /* FOLDERS: sample i is root/(text + name[i]) */
    char *root, *text;
    size_t text_size, text_room, *name; /* [n] */
    atomic_uchar *damaged;              /* [n]: 1 once reported */
    atomic_long damaged_count;
    /* RECORDS: uint8 [3, h, w], or grey [h, w] */
    Records *files;
    int file_count, record_h, record_w, record_channels;
};

/* ---- lists of names ---- */

static void names_add(Names *l, const char *s)
{
    if (l->n == l->room) {
        l->room = l->room ? 2 * l->room : 16;
        l->at = xrealloc(l->at, sizeof(char *) * l->room);
    }
    l->at[l->n++] = xstrdup(s);
}

static void names_free(Names *l)
{
    for (int i = 0; i < l->n; i++)
        free(l->at[i]);
    free(l->at);
    *l = (Names){0};
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

typedef bool Wanted(const char *dir, const struct dirent *f);

/* The entries of a directory that `want` wants, sorted by strcmp; hidden ones never are. */
static bool list_dir(const char *dir, Wanted *want, Names *out, Error *e)
{
    DIR *d = opendir(dir);
    if (!d)
        return fail(e, "check the path and its permissions", "cannot read the directory %s: %s",
                    dir, strerror(errno));
    struct dirent *f;
    while ((f = readdir(d)))
        if (f->d_name[0] != '.' && want(dir, f))
            names_add(out, f->d_name);
    closedir(d);
    if (out->n)
        qsort(out->at, out->n, sizeof(char *), by_name);
    return true;
}

static bool want_folder(const char *dir, const struct dirent *f)
{
    if (f->d_type != DT_UNKNOWN && f->d_type != DT_LNK)
        return f->d_type == DT_DIR;
    char *path = xasprintf("%s/%s", dir, f->d_name);
    bool yes = is_dir(path);
    free(path);
    return yes;
}

static bool want_image(const char *dir, const struct dirent *f)
{
    static const char *const known[] = {"jpg", "jpeg", "png", "ppm", "pgm", "bmp", "gif"};
    (void)dir;
    const char *dot = strrchr(f->d_name, '.');
    for (int i = 0; dot && i < COUNT(known); i++)
        if (strcasecmp(dot + 1, known[i]) == 0)
            return f->d_type != DT_DIR;
    return false;
}

static bool want_bin(const char *dir, const struct dirent *f)
{
    (void)dir;
    size_t n = strlen(f->d_name);
    return n >= 4 && strcmp(f->d_name + n - 4, ".bin") == 0;
}

/* ---- class lists ---- */

/* The lines of a class file, white space at their ends removed. Line k (from 0) is class k, so only
 * the end of the file may have empty lines. */
static bool read_classes(const char *path, Names *out, Error *e)
{
    static const char one_a_line[] = "name a text file with one class a line: `id` or `id name`";
    Error why;
    char *text = read_text(path, 64 << 20, &why), *rest = text, *line;
    long number = 0, empty = 0;
    if (!text)
        return fail(e, one_a_line, "%s", why.what);
    while ((line = strsep(&rest, "\n"))) {
        number++;
        line += strspn(line, " \t\r");
        size_t n = strlen(line);
        while (n && strchr(" \t\r", line[n - 1]))
            line[--n] = '\0';
        if (n == 0) {
            empty = empty ? empty : number;
        } else if (empty) {
            fail(e, "a line's number is its label: remove the empty line",
                 "%s: line %ld is empty, but more classes follow", path, empty);
            free(text);
            return false;
        } else {
            names_add(out, line);
        }
    }
    free(text);
    return out->n > 0 || fail(e, one_a_line, "%s: no classes", path);
}

/* Folder names to labels. A line answers to all of its text, or to its first word. */
typedef struct {
    char *text;
    int label;
    bool id;
} ClassKey;

static int by_key(const void *a, const void *b)
{
    const ClassKey *x = a, *y = b;
    int order = strcmp(x->text, y->text);
    return order ? order : x->id - y->id;
}

/* Two keys per line, sorted; NULL if two lines are equal. free() the result, not its texts. */
static ClassKey *class_keys(const Names *classes, const char *path, Error *e)
{
    size_t size = sizeof(ClassKey) * 2 * classes->n, at = 0;
    for (int i = 0; i < classes->n; i++)
        size += strlen(classes->at[i]) + 1;
    ClassKey *k = xmalloc(size); /* and the first words behind it */
    char *ids = (char *)(k + 2 * classes->n);
    for (int i = 0; i < classes->n; i++) {
        size_t n = strcspn(classes->at[i], " \t");
        memcpy(ids + at, classes->at[i], n);
        ids[at + n] = '\0';
        k[2 * i] = (ClassKey){classes->at[i], i, false};
        k[2 * i + 1] = (ClassKey){ids + at, i, true};
        at += n + 1;
    }
    qsort(k, 2 * classes->n, sizeof *k, by_key);
    for (int i = 1; i < 2 * classes->n; i++)
        if (!k[i].id && strcmp(k[i].text, k[i - 1].text) == 0) {
            fail(e, "every class stands once", "%s: lines %d and %d are both '%s'", path,
                 k[i - 1].label + 1, k[i].label + 1, k[i].text);
            free(k);
            return NULL;
        }
    return k;
}

/* -1 if no line, -2 if more than one line's first word is this name. */
static int class_label(const ClassKey *k, int n, const char *name)
{
    int lo = 0, hi = n; /* first key >= name */
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (strcmp(k[mid].text, name) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == n || strcmp(k[lo].text, name) != 0)
        return -1;
    bool again = k[lo].id && lo + 1 < n && strcmp(k[lo + 1].text, name) == 0;
    return again ? -2 : k[lo].label;
}

/* ---- class folders ---- */

static void samples_reserve(Dataset *d, long more)
{
    if (d->n + more <= d->room)
        return;
    d->room = 2 * d->room > d->n + more ? 2 * d->room : d->n + more;
    d->labels = xrealloc(d->labels, sizeof(int) * d->room);
    if (d->kind == FOLDERS)
        d->name = xrealloc(d->name, sizeof(size_t) * d->room);
}

static void add_file(Dataset *d, const char *folder, const char *file, int label)
{
    size_t n = strlen(folder) + strlen(file) + 2;
    while (d->text_size + n > d->text_room) {
        d->text_room = d->text_room ? 2 * d->text_room : 4096;
        d->text = xrealloc(d->text, d->text_room);
    }
    samples_reserve(d, 1);
    snprintf(d->text + d->text_size, n, "%s/%s", folder, file);
    d->name[d->n] = d->text_size;
    d->labels[d->n++] = label;
    d->text_size += n;
}

static bool add_folder(Dataset *d, const char *folder, int label, Error *e)
{
    char *path = xasprintf("%s/%s", d->root, folder);
    Names files = {0};
    bool ok = list_dir(path, want_image, &files, e);
    if (ok && files.n == 0)
        ok = fail(e, "add jpg, jpeg, png, ppm, pgm, bmp or gif files, or remove the folder",
                  "the class folder %s has no images", path);
    for (int i = 0; ok && i < files.n; i++)
        add_file(d, folder, files.at[i], label);
    names_free(&files);
    free(path);
    return ok;
}

/* Which of DIR/train, DIR/val ... the split is; `train_dir` receives DIR/train if that exists. */
static char *split_dir(const char *dir, bool train, char **train_dir, Error *e)
{
    static const char *const names[] = {"val", "validation", "test"};
    char *val = NULL;
    *train_dir = xasprintf("%s/train", dir);
    if (!is_dir(*train_dir)) {
        free(*train_dir);
        *train_dir = NULL;
    }
    for (int i = 0; i < COUNT(names) && !val; i++) {
        val = xasprintf("%s/%s", dir, names[i]);
        if (!is_dir(val)) {
            free(val);
            val = NULL;
        }
    }
    if (!*train_dir && !val)
        return xstrdup(dir);
    char *found = train ? (*train_dir ? xstrdup(*train_dir) : NULL) : val;
    if (train)
        free(val);
    if (!found && train)
        fail(e, "name the folder that holds the class folders itself",
             "%s has a validation split but no train/", dir);
    else if (!found)
        fail(e, "name the validation images with --val-data, or --val-data none",
             "%s has train/ but no val/, validation/ or test/", dir);
    return found;
}

/* Class names: the class file's lines; else the folders of train/, so that both splits agree; else
 * the folders themselves. */
static bool folder_classes(Dataset *d, const char *train_dir, const Names *folders, Error *e)
{
    if (d->o.classes)
        return read_classes(d->o.classes, &d->classes, e);
    if (train_dir)
        return list_dir(train_dir, want_folder, &d->classes, e);
    for (int i = 0; i < folders->n; i++)
        names_add(&d->classes, folders->at[i]);
    return true;
}

static bool add_folders(Dataset *d, const Names *folders, const char *list, Error *e)
{
    ClassKey *keys = class_keys(&d->classes, list, e);
    bool ok = keys != NULL;
    for (int i = 0; ok && i < folders->n; i++) {
        int label = class_label(keys, 2 * d->classes.n, folders->at[i]);
        if (label < 0)
            ok = fail(e, "add it there, or move the folder away", "the class folder %s/%s is %s %s",
                      d->root, folders->at[i], label == -1 ? "not in" : "on more than one line of",
                      list);
        else
            ok = add_folder(d, folders->at[i], label, e);
    }
    free(keys);
    return ok;
}

static bool open_folders(Dataset *d, const char *dir, Error *e)
{
    if (!is_dir(dir))
        return fail(e,
                    "data is DIR with class folders, cifar10:DIR, cifar100:DIR, mnist:DIR or fake",
                    "%s: %s", dir, path_exists(dir) ? "not a directory" : "no such directory");
    char *train_dir;
    Names folders = {0};
    d->root = split_dir(dir, d->o.train, &train_dir, e);
    bool ok = d->root && list_dir(d->root, want_folder, &folders, e);
    if (ok && folders.n == 0)
        ok = fail(e, "images belong into one folder per class: DIR/train/<class>/*.jpg",
                  "%s has no class folders", d->root);
    ok = ok && folder_classes(d, train_dir, &folders, e) &&
         add_folders(d, &folders,
                     d->o.classes ? d->o.classes
                     : train_dir  ? train_dir
                                  : d->root,
                     e);
    if (ok)
        d->damaged = xcalloc(d->n, sizeof *d->damaged);
    names_free(&folders);
    free(train_dir);
    return ok;
}

/* ---- records: CIFAR and MNIST ---- */

static bool map_file(const char *path, Records *r, Error *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st = {0};
    *r = (Records){.path = xstrdup(path), .bytes = MAP_FAILED};
    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0)
        r->bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    int why = errno;
    if (fd >= 0)
        close(fd);
    if (r->bytes != MAP_FAILED) {
        r->size = (size_t)st.st_size;
        return true;
    }
    free(r->path);
    if (fd >= 0 && st.st_size == 0)
        return fail(e, "download it again", "%s: empty", path);
    return fail(e, "check the path and its permissions", "%s: %s", path, strerror(why));
}

static void unmap_file(Records *r)
{
    munmap((void *)r->bytes, r->size);
    free(r->path);
}

/* Append a file of records whose last label byte stands just before the image. */
static bool add_cifar(Dataset *d, const char *path, int label_bytes, int classes, Error *e)
{
    size_t image = 3 * 32 * 32, record = label_bytes + image;
    d->files = xrealloc(d->files, sizeof(Records) * (d->file_count + 1));
    Records *r = &d->files[d->file_count];
    if (!map_file(path, r, e))
        return false;
    d->file_count++;
    if (r->size % record)
        return fail(e, "download it again, in the binary version",
                    "%s: %zu bytes are not a whole number of %zu-byte records", path, r->size,
                    record);
    r->offset = label_bytes;
    r->stride = record;
    r->first = d->n;
    r->count = (long)(r->size / record);
    samples_reserve(d, r->count);
    for (long i = 0; i < r->count; i++) {
        int label = r->bytes[i * record + label_bytes - 1];
        if (label >= classes)
            return fail(e, "download it again, in the binary version",
                        "%s: record %ld has label %d of %d classes", path, i, label, classes);
        d->labels[d->n++] = label;
    }
    return true;
}

static bool open_cifar(Dataset *d, const char *dir, int classes, Error *e)
{
    Names files = {0};
    const char *prefix = classes == 10 ? (d->o.train ? "data_batch_" : "test_batch")
                                       : (d->o.train ? "train" : "test");
    bool ok = list_dir(dir, want_bin, &files, e);
    for (int i = 0; ok && i < files.n; i++) {
        char *path = xasprintf("%s/%s", dir, files.at[i]);
        if (strncmp(files.at[i], prefix, strlen(prefix)) == 0)
            ok = add_cifar(d, path, classes == 10 ? 1 : 2, classes, e);
        free(path);
    }
    if (ok && d->n == 0)
        ok = fail(e, "unpack the binary version of the data set and name its folder",
                  "%s has no %s*.bin", dir, prefix);
    names_free(&files);
    d->record_h = d->record_w = 32;
    d->record_channels = 3;
    return ok;
}

static uint32_t big_endian(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* DIR/train-images-idx3-ubyte, or with a dot before idx, as some archives name it. */
static char *find_idx(const char *dir, const char *what, int dims, Error *e)
{
    char *dash = xasprintf("%s/%s-idx%d-ubyte", dir, what, dims);
    char *dot = xasprintf("%s/%s.idx%d-ubyte", dir, what, dims);
    char *packed = xasprintf("%s.gz", dash), *found = NULL;
    if (path_exists(dash))
        found = xstrdup(dash);
    else if (path_exists(dot))
        found = xstrdup(dot);
    else if (path_exists(packed))
        fail(e, "unpack it with gunzip", "%s is still compressed", packed);
    else
        fail(e, "name the folder with the four idx files", "%s: no such file", dash);
    free(packed);
    free(dot);
    free(dash);
    return found;
}

/* An idx file of bytes: 0, 0, type 8, the number of dimensions, each of them in 32 bits, values. */
static bool map_idx(const char *dir, const char *what, int dims, Records *r, Error *e)
{
    char *path = find_idx(dir, what, dims, e);
    bool ok = path && map_file(path, r, e);
    free(path);
    if (!ok)
        return false;
    r->offset = 4 + 4 * (size_t)dims;
    bool sane = r->size >= r->offset && r->size <= UINT32_MAX;
    uint64_t bytes = 1; /* a product beyond the file's size stays there, so it cannot wrap around */
    for (int i = 0; sane && i < dims && bytes <= r->size; i++)
        bytes *= big_endian(r->bytes + 4 + 4 * i);
    if (!sane || big_endian(r->bytes) != 0x800u + dims || r->size - r->offset != bytes) {
        fail(e, "download it again", "%s: not a whole idx%d file", r->path, dims);
        unmap_file(r);
        return false;
    }
    return true;
}

static bool open_mnist(Dataset *d, const char *dir, Error *e)
{
    Records labels;
    d->files = xcalloc(1, sizeof(Records));
    Records *r = d->files;
    if (!map_idx(dir, d->o.train ? "train-images" : "t10k-images", 3, r, e))
        return false;
    d->file_count = 1;
    if (!map_idx(dir, d->o.train ? "train-labels" : "t10k-labels", 1, &labels, e))
        return false;
    r->count = (long)big_endian(r->bytes + 4);
    d->record_h = (int)big_endian(r->bytes + 8);
    d->record_w = (int)big_endian(r->bytes + 12);
    d->record_channels = 1;
    r->stride = (size_t)d->record_h * d->record_w;
    bool ok = true;
    if (big_endian(r->bytes + 8) > IMAGE_MAX_SIDE || big_endian(r->bytes + 12) > IMAGE_MAX_SIDE)
        ok = fail(e, "download it again", "%s: its images have %u x %u pixels", r->path,
                  big_endian(r->bytes + 12), big_endian(r->bytes + 8));
    else if ((r->count && r->stride == 0) || r->count != (long)(labels.size - labels.offset))
        ok = fail(e, "download both again", "%s has %ld images, %s has %zu labels", r->path,
                  r->count, labels.path, labels.size - labels.offset);
    samples_reserve(d, ok ? r->count : 0);
    for (; ok && d->n < r->count; d->n++) {
        d->labels[d->n] = labels.bytes[labels.offset + d->n];
        if (d->labels[d->n] > 9)
            ok = fail(e, "download it again", "%s: label %ld is %d, of 10 classes", labels.path,
                      d->n, d->labels[d->n]);
    }
    unmap_file(&labels);
    return ok;
}

/* Names for `classes` numbered classes: the class file; else the list that comes with the records;
 * else their numbers. */
static bool number_classes(Dataset *d, int classes, const char *dir, const char *list, Error *e)
{
    if (d->o.classes) {
        if (!read_classes(d->o.classes, &d->classes, e))
            return false;
        return d->classes.n == classes ||
               fail(e, "give one line per class, in label order", "%s has %d classes, the data %d",
                    d->o.classes, d->classes.n, classes);
    }
    if (list) {
        Error ignored;
        char *path = xasprintf("%s/%s", dir, list);
        bool found = path_exists(path) && read_classes(path, &d->classes, &ignored);
        free(path);
        if (found && d->classes.n == classes)
            return true;
        names_free(&d->classes);
    }
    for (int k = 0; k < classes; k++) {
        char number[16];
        snprintf(number, sizeof number, "%d", k);
        names_add(&d->classes, number);
    }
    return true;
}

/* ---- opening ---- */

static const char *after(const char *spec, const char *prefix)
{
    size_t n = strlen(prefix);
    return strncmp(spec, prefix, n) == 0 ? spec + n : NULL;
}

static bool open_spec(Dataset *d, const char *spec, Error *e)
{
    const char *dir;
    if (strcmp(spec, "fake") == 0) {
        d->kind = FAKE;
        d->n = d->o.fake_count;
        if (d->n < 1 || d->o.fake_classes < 1)
            return fail(e, "raise the number of images and of classes to 1 or more",
                        "fake data needs at least one image and one class");
        return number_classes(d, d->o.fake_classes, NULL, NULL, e);
    }
    d->kind = RECORDS;
    if ((dir = after(spec, "cifar10:")))
        return open_cifar(d, dir, 10, e) && number_classes(d, 10, dir, "batches.meta.txt", e);
    if ((dir = after(spec, "cifar100:")))
        return open_cifar(d, dir, 100, e) && number_classes(d, 100, dir, "fine_label_names.txt", e);
    if ((dir = after(spec, "mnist:")))
        return open_mnist(d, dir, e) && number_classes(d, 10, NULL, NULL, e);
    d->kind = FOLDERS;
    return open_folders(d, spec, e);
}

Dataset *data_open(const DataOptions *o, Error *e)
{
    Dataset *d = xcalloc(1, sizeof *d);
    d->o = *o;
    bool ok = o->image_h > 0 && o->image_w > 0
                  ? open_spec(d, o->spec, e)
                  : fail(e, "give both sides of an image 1 pixel or more",
                         "cannot make images of %d x %d pixels", o->image_h, o->image_w);
    if (ok && d->n == 0) /* nothing below works without a sample to take */
        ok = fail(e, "download it again, or name another data set", "%s has no images", o->spec);
    d->o.spec = d->o.classes = NULL;
    if (ok)
        return d;
    data_close(d);
    return NULL;
}

void data_close(Dataset *d)
{
    if (!d)
        return;
    for (int i = 0; i < d->file_count; i++)
        unmap_file(&d->files[i]);
    names_free(&d->classes);
    free(d->files);
    free(d->labels);
    free(d->root);
    free(d->text);
    free(d->name);
    free(d->damaged);
    free(d);
}

const DataOptions *data_options(const Dataset *d)
{
    return &d->o;
}

long data_count(const Dataset *d)
{
    return d->n;
}

int data_classes(const Dataset *d)
{
    return d->classes.n;
}

const char *data_class_name(const Dataset *d, int label)
{
    return label >= 0 && label < d->classes.n ? d->classes.at[label] : "?";
}

int data_label(const Dataset *d, long i)
{
    return d->kind == FAKE ? (int)(i % d->o.fake_classes) : d->labels[i];
}

long data_damaged(const Dataset *d)
{
    return atomic_load(&d->damaged_count);
}

static const Records *record_file(const Dataset *d, long i)
{
    const Records *r = d->files;
    while (i >= r->first + r->count)
        r++;
    return r;
}

char *data_sample_path(const Dataset *d, long i)
{
    if (d->kind == FOLDERS)
        return xasprintf("%s/%s", d->root, d->text + d->name[i]);
    if (d->kind == FAKE)
        return xasprintf("fake#%ld", i);
    const Records *r = record_file(d, i);
    return xasprintf("%s#%ld", r->path, i - r->first);
}

long data_order(Dataset *d, long epoch, long position)
{
    return data_shuffle(d->o.seed, epoch, 0, d->n, position);
}

/* ---- one sample ---- */

/* Planes or grey to RGB pixels. */
static void record_image(const Dataset *d, long i, Decoder *decoder)
{
    Error none;
    const Records *r = record_file(d, i);
    const uint8_t *p = r->bytes + r->offset + (size_t)(i - r->first) * r->stride;
    size_t plane = (size_t)d->record_h * d->record_w, step = d->record_channels == 3 ? plane : 0;
    uint8_t *rgb = decoder_room(decoder, 3 * plane, &none);
    for (size_t k = 0; k < plane; k++)
        for (int c = 0; c < 3; c++)
            rgb[3 * k + c] = p[c * step + k];
    decoder_open_pixels(decoder, rgb, d->record_w, d->record_h);
}

static bool preprocess(const Dataset *d, Decoder *decoder, View v, uint8_t *out, Error *e)
{
    const DataOptions *o = &d->o;
    /* Records are objects without margin: the evaluation crop would cut into them. */
    Target t = {.out_w = o->image_w,
                .out_h = o->image_h,
                .filter = o->filter,
                .decode = o->decode,
                .crop = d->kind == RECORDS ? CROP_STRETCH : o->crop,
                .resize = o->resize};
    if (!o->augment)
        return decoder_eval(decoder, &t, out, e);
    RngStream box = view_draw(v, DRAW_BOX), flip = view_draw(v, DRAW_FLIP);
    Box b = image_random_box(&box, decoder_width(decoder), decoder_height(decoder), o->area_min,
                             o->area_max, o->ratio_min, o->ratio_max);
    if (!decoder_crop(decoder, &t, b, rng_next(&flip) < o->flip, out, e))
        return false;
    augment_image(o->changes, v, out, t.out_w, t.out_h,
                  decoder_scratch(decoder, image_op_scratch(t.out_w, t.out_h)));
    return true;
}

/* False if sample i is damaged. It is reported by whichever thread meets it first. */
static bool sample_image(Dataset *d, Decoder *decoder, long i, View v, uint8_t *out)
{
    Error e;
    bool ok = true;
    char *path = data_sample_path(d, i);
    if (d->kind == RECORDS)
        record_image(d, i, decoder);
    else
        ok = decoder_open_file(decoder, path, &e);
    ok = ok && preprocess(d, decoder, v, out, &e);
    if (!ok && !atomic_exchange(&d->damaged[i], 1)) {
        atomic_fetch_add(&d->damaged_count, 1);
        warn("%s: %s; the next readable image takes its place", path, e.what);
    }
    free(path);
    return ok;
}

static void fake_image(const DataOptions *o, long i, uint8_t *out)
{
    size_t bytes = (size_t)3 * o->image_h * o->image_w;
    for (size_t at = 0; at < bytes; at += sizeof(Philox)) {
        Philox p = rng_block(o->seed, (uint32_t)(at / sizeof p), (uint32_t)i, 0, RNG_SHAPES, 1);
        memcpy(out + at, p.v, bytes - at < sizeof p ? bytes - at : sizeof p);
    }
}

int data_sample(Dataset *d, Decoder *decoder, long i, long epoch, int repeat, uint8_t *out)
{
    if (d->kind == FAKE) {
        fake_image(&d->o, i, out);
        return data_label(d, i);
    }
    View v = {d->o.seed, (uint32_t)i, (uint32_t)epoch, (uint32_t)repeat};
    long tries = d->n < MAX_DAMAGED_IN_A_ROW ? d->n : MAX_DAMAGED_IN_A_ROW;
    for (long t = 0; t < tries; t++) {
        long j = (i + t) % d->n;
        if (sample_image(d, decoder, j, v, out))
            return d->labels[j];
    }
    static pthread_mutex_t last_words = PTHREAD_MUTEX_INITIALIZER; /* one thread's are enough */
    pthread_mutex_lock(&last_words);
    die("check that the disk is mounted and the files are whole",
        "no readable image among the %ld from %s on", tries, data_sample_path(d, i));
}
