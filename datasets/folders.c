/* folders.c - data sets of class folders: one folder per class, one file per image.
 *
 * DIR/train/<class>/... with DIR/val, DIR/validation or DIR/test; or DIR/<class>/... alone. An
 * image's label is its class folder's place in the class list, wherever below that folder it lies:
 * every file with an image's extension, in any letter case. Hidden files and folders are passed
 * over; links are followed. A damaged file is found when it is read.
 *
 * Class folders are listed in parallel. All of ImageNet takes less than a second on a local disk,
 * so nothing is remembered from one opening to the next.
 * Order: reading; splits; directories; one class folder; labels; opening.
 */
#include "datasets/source.h"
#include "datasets/classes.h"
#include "image/decoder.h"
#include "util/files.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct {
    Source base;       /* item: where its path begins in text */
    char *root, *text; /* paths below root, zero-terminated, one after the other */
    size_t size;       /* of text */
} Folders;

/* ---- reading ---- */

static char *image_path(const Source *s, long i)
{
    const Folders *f = (const Folders *)s;
    return xasprintf("%s/%s", f->root, f->text + s->item[i]);
}

static bool read_image(Source *s, long i, Decoder *d, Error *e)
{
    char *path = image_path(s, i);
    errno = 0;
    bool ok = decoder_open_file(d, path, e);
    /* It is not the picture that is damaged: another one in its place would not do. */
    if (!ok && (errno == EMFILE || errno == ENFILE || errno == ENOMEM))
        source_lost("raise the limit (ulimit -n), use fewer --workers, or free some memory",
                    "%s: %s", path, strerror(errno));
    free(path);
    return ok;
}

static void close_folders(Source *s)
{
    Folders *f = (Folders *)s;
    free(f->text);
    free(f->root);
}

static const SourceKind kind = {.read = read_image, .path = image_path, .close = close_folders};

/* ---- splits ---- */

/* dir/name, or NULL if that is no directory. */
static char *folder_in(const char *dir, const char *name)
{
    char *path = xasprintf("%s/%s", dir, name);
    if (is_dir(path))
        return path;
    free(path);
    return NULL;
}

/* Which of DIR/train, DIR/val ... the split is; `train_dir` receives DIR/train if that exists. */
static char *split_dir(const char *dir, bool train, char **train_dir, Error *e)
{
    static const char *const names[] = {"val", "validation", "test"};
    char *val = NULL;
    *train_dir = folder_in(dir, "train");
    for (int i = 0; i < COUNT(names) && !val; i++)
        val = folder_in(dir, names[i]);
    if (!*train_dir && !val)
        return xstrdup(dir);
    if (!train) {
        if (!val)
            fail(e, "name the validation images with --val-data, or --val-data none",
                 "%s has train/ but no val/, validation/ or test/", dir);
        return val;
    }
    free(val);
    if (*train_dir)
        return xstrdup(*train_dir);
    fail(e, "name the folder that holds the class folders itself",
         "%s has a validation split but no train/", dir);
    return NULL;
}

/* ---- directories ---- */

static bool cannot_read(const char *dir, Error *e)
{
    return fail(e, "check the path and its permissions", "cannot read the directory %s: %s", dir,
                strerror(errno));
}

static bool is_image(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot && image_extension(dot + 1);
}

/* Entries whose kind readdir knows cost no further look; nor do links with an image's name. */
static bool is_folder(const char *dir, const struct dirent *f)
{
    if (f->d_type == DT_LNK ? is_image(f->d_name) : f->d_type != DT_UNKNOWN)
        return f->d_type == DT_DIR;
    char *path = folder_in(dir, f->d_name);
    free(path);
    return path != NULL;
}

/* What root/path holds: its folders, sorted, and unless that is NULL its images, as paths below
 * root. `path` may be empty. */
static bool list_folder(const char *root, const char *path, Names *folders, Names *images, Error *e)
{
    const char *slash = *path ? "/" : "";
    char *dir = xasprintf("%s%s%s", root, slash, path);
    Names below = {0};
    DIR *d = opendir(dir);
    bool ok = d || cannot_read(dir, e);
    for (struct dirent *f; ok && (f = readdir(d));) {
        bool hidden = f->d_name[0] == '.', folder = !hidden && is_folder(dir, f);
        if (!folder && (hidden || !images || !is_image(f->d_name)))
            continue;
        char *full = xasprintf("%s%s%s", path, slash, f->d_name);
        names_add(folder ? &below : images, full);
        free(full);
    }
    if (d)
        closedir(d);
    free(dir);
    names_sort(&below); /* a directory's order is the disk's */
    for (int i = 0; i < below.n; i++)
        names_add(folders, below.at[i]);
    names_free(&below);
    return ok;
}

static bool list_classes(const char *root, Names *out, Error *e)
{
    return list_folder(root, "", out, NULL, e);
}

/* ---- one class folder ---- */

typedef struct {
    const char *root;
    struct stat top;     /* of root */
    const Names *folder; /* class folders */
    Names *images;       /* [folder->n]: paths below root, sorted */
} Walk;

/* Whether a directory comes up for the first time on this walk, by whichever path. */
static bool first_visit(struct stat **seen, int *n, const struct stat *st)
{
    for (int i = 0; i < *n; i++)
        if ((*seen)[i].st_dev == st->st_dev && (*seen)[i].st_ino == st->st_ino)
            return false;
    *seen = xgrow(*seen, *n, sizeof **seen);
    (*seen)[(*n)++] = *st;
    return true;
}

/* Class folder k and everything below it, no directory twice. */
static bool walk_class(void *ctx, int k, Error *e)
{
    Walk *w = ctx;
    Names todo = {0};
    struct stat *seen = NULL, st;
    int visited = 0;
    bool ok = first_visit(&seen, &visited, &w->top);
    names_add(&todo, w->folder->at[k]);
    for (int i = 0; ok && i < todo.n; i++) {
        char *dir = xasprintf("%s/%s", w->root, todo.at[i]);
        ok = stat(dir, &st) == 0 || cannot_read(dir, e);
        if (ok && first_visit(&seen, &visited, &st))
            ok = list_folder(w->root, todo.at[i], &todo, &w->images[k], e);
        free(dir);
    }
    names_sort(&w->images[k]);
    names_free(&todo);
    free(seen);
    return ok;
}

/* ---- labels ---- */

static bool add_folder(Folders *f, const char *folder, const Names *images, int label, Error *e)
{
    for (int i = 0; i < images->n; i++) {
        source_add(&f->base, f->size, label);
        f->size += strlen(strcpy(f->text + f->size, images->at[i])) + 1;
    }
    return images->n > 0 ||
           fail(e, "add jpg, png, ppm, pgm, bmp, gif, tif or webp files, or remove the folder",
                "the class folder %s/%s has no images", f->root, folder);
}

/* Class names: the class file's lines; else the folders of train/, so that both splits agree; else
 * the folders themselves. */
static bool add_folders(Folders *f, const Walk *w, const char *file, const char *train_dir,
                        Error *e)
{
    const char *folders = train_dir ? train_dir : f->root, *list = file ? file : folders;
    if (!(file ? classes_read : list_classes)(list, &f->base.classes, e))
        return false;
    ClassKeys *keys = class_keys(&f->base.classes, list, e);
    size_t size = 0;
    for (int k = 0; k < w->folder->n; k++)
        for (int i = 0; i < w->images[k].n; i++)
            size += strlen(w->images[k].at[i]) + 1;
    f->text = xmalloc(size);
    bool ok = keys != NULL;
    for (int k = 0; ok && k < w->folder->n; k++) {
        const char *folder = w->folder->at[k];
        int label = class_label(keys, folder);
        if (label < 0)
            ok = fail(e, "add it there, or move the folder away", "the class folder %s/%s is %s %s",
                      f->root, folder, label == -1 ? "not in" : "on more than one line of", list);
        else
            ok = add_folder(f, folder, &w->images[k], label, e);
    }
    class_keys_free(keys);
    return ok;
}

/* ---- opening ---- */

static bool open_folders(Folders *f, const char *classes, const char *train_dir, Error *e)
{
    Names folder = {0};
    Walk w = {.root = f->root, .folder = &folder};
    bool ok = stat(f->root, &w.top) == 0 || cannot_read(f->root, e);
    ok = ok && list_classes(f->root, &folder, e);
    w.images = xcalloc((size_t)folder.n, sizeof *w.images);
    ok = ok && source_parallel(folder.n, walk_class, &w, e);
    if (ok && folder.n == 0)
        ok = fail(e, "images belong into one folder per class: DIR/train/<class>/*.jpg",
                  "%s has no class folders", f->root);
    ok = ok && add_folders(f, &w, classes, train_dir, e);
    for (int k = 0; k < folder.n; k++)
        names_free(&w.images[k]);
    free(w.images);
    names_free(&folder);
    return ok;
}

Source *folders_open(const char *dir, const DataOptions *o, Error *e)
{
    if (!is_dir(dir)) {
        fail(e,
             "data is DIR with class folders, wds:PATTERN, cifar10:DIR, cifar100:DIR, mnist:DIR "
             "or fake",
             "%s: %s", dir, path_exists(dir) ? "not a directory" : "no such directory");
        return NULL;
    }
    char *train_dir;
    Folders *f = xcalloc(1, sizeof *f);
    f->base.kind = &kind;
    f->root = split_dir(dir, o->train, &train_dir, e);
    bool ok = f->root && open_folders(f, o->classes, train_dir, e);
    free(train_dir);
    return source_opened(&f->base, ok);
}
