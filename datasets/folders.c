/* folders.c - data sets of class folders: one folder per class, one file per image.
 *
 * DIR/train/<class>/... with DIR/val, DIR/validation or DIR/test; or DIR/<class>/... alone. An
 * image's label is its class folder's place in the class list, wherever below that folder it lies.
 * Which files there are is listing.c's; a damaged file is found when it is read.
 * Order: reading; splits; labels; opening.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "datasets/source.h"
#include "image/decoder.h"
#include "util/files.h"
#include "util/names.h"

typedef struct {
    Source base; /* item: where its path begins in list.text */
    char *root;
    Listing list;
} Folders;

/* ---- reading ---- */

static char *folder_path(const Source *s, long i)
{
    const Folders *f = (const Folders *)s;
    return xasprintf("%s/%s", f->root, f->list.text + s->item[i]);
}

static bool read_file(Source *s, long i, Decoder *d, Error *e)
{
    char *path = folder_path(s, i);
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
    listing_free(&f->list);
    free(f->root);
}

static const SourceKind kind = {.read = read_file, .path = folder_path, .close = close_folders};

/* ---- splits ---- */

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

/* ---- labels ---- */

/* Class names: the class file's lines; else the folders of train/, so that both splits agree; else
 * the folders themselves. */
static bool folder_classes(Folders *f, const char *file, const char *train_dir, Error *e)
{
    if (file)
        return classes_read(file, &f->base.classes, e);
    if (train_dir)
        return list_folders(train_dir, &f->base.classes, e);
    for (int i = 0; i < f->list.folder.n; i++)
        names_add(&f->base.classes, f->list.folder.at[i]);
    return true;
}

/* Adds the images in one folder, which begin at *path, and moves it behind them. */
static bool add_folder(Folders *f, const char *folder, const char **path, int label, Error *e)
{
    size_t n = strlen(folder);
    long before = f->base.n;
    const char *end = f->list.text + f->list.size;
    while (*path < end && strncmp(*path, folder, n) == 0 && (*path)[n] == '/') {
        source_add(&f->base, (uint64_t)(*path - f->list.text), label);
        *path += strlen(*path) + 1;
    }
    return f->base.n > before ||
           fail(e, "add jpg, png, ppm, pgm, bmp, gif, tif or webp files, or remove the folder",
                "the class folder %s/%s has no images", f->root, folder);
}

static bool add_folders(Folders *f, const char *list, Error *e)
{
    ClassKeys *keys = class_keys(&f->base.classes, list, e);
    const char *path = f->list.text;
    bool ok = keys != NULL;
    source_reserve(&f->base, f->list.n);
    for (int i = 0; ok && i < f->list.folder.n; i++) {
        const char *folder = f->list.folder.at[i];
        int label = class_label(keys, folder);
        if (label < 0)
            ok = fail(e, "add it there, or move the folder away", "the class folder %s/%s is %s %s",
                      f->root, folder, label == -1 ? "not in" : "on more than one line of", list);
        else
            ok = add_folder(f, folder, &path, label, e);
    }
    class_keys_free(keys);
    return ok;
}

/* ---- opening ---- */

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
    bool ok = f->root && listing_read(f->root, &f->list, e);
    if (ok && f->list.folder.n == 0)
        ok = fail(e, "images belong into one folder per class: DIR/train/<class>/*.jpg",
                  "%s has no class folders", f->root);
    ok = ok && folder_classes(f, o->classes, train_dir, e) &&
         add_folders(f,
                     o->classes  ? o->classes
                     : train_dir ? train_dir
                                 : f->root,
                     e);
    free(train_dir);
    if (ok)
        return &f->base;
    source_close(&f->base);
    return NULL;
}
