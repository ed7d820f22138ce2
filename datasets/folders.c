/* folders.c - data sets of class folders: one folder per class, one file per image.
 *
 * DIR/train/<class>/... with DIR/val or DIR/test, by all names that splits.h knows; or
 * DIR/<class>/... alone. An image's label is its class folder's place in the class list, wherever
 * below that folder it lies: every file with an image's extension, in any letter case, and every
 * other that begins as a picture does. What is no picture is counted; hidden files and folders, and
 * what a NAS or an archive has left, are passed over; links are followed. A damaged file is found
 * when it is read. A folder of pictures with Tiny ImageNet's list of their labels is read as well.
 *
 * Class folders are listed in parallel. All of ImageNet takes less than a second on a local disk,
 * so nothing is remembered from one opening to the next.
 * Order: reading; directories; splits; one class folder; what these are not; a list of labels; what
 * is no folder of pictures; labels; opening.
 */
#include "datasets/source.h"
#include "datasets/classes.h"
#include "datasets/splits.h"
#include "image/decoder.h"
#include "util/files.h"
#include "util/text.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

typedef struct {
    Source base;       /* item: where its path begins in text */
    char *root, *text; /* paths below root, zero-terminated, one after the other */
    size_t size;       /* of text */
    bool train;
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
    char *path = xasprintf("%s/%s", dir, f->d_name);
    bool folder = is_dir(path);
    free(path);
    return folder;
}

/* Files, by their names below a root: what is used, and the endings of what is not. */
typedef struct {
    Names images, passed;
} Files;

static void files_free(Files *f)
{
    names_free(&f->images);
    names_free(&f->passed);
}

static void pass_over(Files *f, const char *name)
{
    char ending[16], *p = ending;
    const char *dot = strrchr(name, '.');
    size_t n = dot ? strlen(dot) : 0;
    if (n < 2 || n >= sizeof ending) {
        names_add(&f->passed, "without an ending");
        return;
    }
    while (*dot)
        *p++ = (char)tolower((unsigned char)*dot++);
    *p = '\0';
    names_add(&f->passed, ending);
}

static void add_file(Files *f, const char *root, const char *path, const char *name)
{
    char *full = is_image(name) ? NULL : xasprintf("%s/%s", root, path);
    if (!full || picture_file(full))
        names_add(&f->images, path);
    else
        pass_over(f, name);
    free(full);
}

bool is_litter(const char *name)
{
    static const char *const names[] = {"@eaDir",      "#recycle",     "@Recycle",
                                        "lost+found",  "$RECYCLE.BIN", "System Volume Information",
                                        "__pycache__", "__MACOSX"};
    int i = 0;
    while (i < COUNT(names) && strcmp(names[i], name) != 0)
        i++;
    return *name == '.' || i < COUNT(names);
}

/* What root/path holds: its folders, sorted, and unless that is NULL its files, as paths below
 * root. `path` may be empty. */
static bool list_folder(const char *root, const char *path, Names *folders, Files *files, Error *e)
{
    const char *slash = *path ? "/" : "";
    char *dir = xasprintf("%s%s%s", root, slash, path);
    Names below = {0};
    DIR *d = opendir(dir);
    bool ok = d || cannot_read(dir, e);
    for (struct dirent *f; ok && (f = readdir(d));) {
        if (is_litter(f->d_name))
            continue;
        char *full = xasprintf("%s%s%s", path, slash, f->d_name);
        if (is_folder(dir, f))
            names_add(&below, full);
        else if (files)
            add_file(files, root, full, f->d_name);
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

/* ---- splits ---- */

/* DIR, as it is divided. */
typedef struct {
    Names folders;     /* in it; */
    int count[SPLITS]; /* how many are named like each split, or like none, */
    int at[SPLITS];    /* and the first of them */
    int split;         /* the one that is wanted; SPLIT_NONE: DIR itself */
} Divided;

/* Names like splits' are classes' where a class file has all of them. */
static bool all_listed(const Names *folders, const char *file, bool *yes, Error *e)
{
    Names classes = {0};
    *yes = false;
    if (!file)
        return true;
    ClassKeys *keys = classes_read(file, &classes, e) ? class_keys(&classes, file, e) : NULL;
    *yes = keys != NULL;
    for (int i = 0; *yes && i < folders->n; i++)
        *yes = class_label(keys, folders->at[i]) >= 0;
    bool ok = keys != NULL;
    class_keys_free(keys);
    names_free(&classes);
    return ok;
}

/* Whether there is no part for validation, and a share of the images is to be one: who asks for
 * that keeps test/ for later. */
static bool takes_share(const Divided *d, const DataOptions *o)
{
    return o->val_fraction > 0 && !d->count[SPLIT_VAL];
}

static bool divide(const char *dir, const DataOptions *o, Divided *d, Error *e)
{
    bool listed, train = o->train;
    const char *classes = o->classes;
    if (!list_folder(dir, "", &d->folders, NULL, e) ||
        !all_listed(&d->folders, classes, &listed, e))
        return false;
    for (int i = d->folders.n - 1; i >= 0; i--) {
        int k = listed ? SPLIT_NONE : split_named(d->folders.at[i]);
        d->count[k]++;
        d->at[k] = i;
    }
    d->split = split_for(d->count, train || takes_share(d, o));
    const char *first = d->folders.n ? d->folders.at[d->at[d->split]] : "";
    if (d->split && d->count[d->split] > 1)
        return fail(e, "name the folder that is meant itself, with --data and --val-data",
                    "%s has both %s/ and another folder of a name for the same split", dir, first);
    if (d->count[SPLIT_NONE] == d->folders.n || d->split)
        return true;
    const char *hint = "name the validation images with --val-data, keep a share for them with "
                       "--val-fraction 0.1, or --val-data none";
    if (train)
        hint = "name the folder that holds the class folders itself";
    if (d->count[SPLIT_NONE])
        hint = "name the validation images with --val-data, or --val-data none; if that is a "
               "class, list all class folders in --classes FILE";
    if (train && d->count[SPLIT_NONE])
        hint = "name the folder that holds the class folders itself; if that is a class, list all "
               "class folders in --classes FILE";
    int other = d->count[SPLIT_VAL] ? SPLIT_VAL : SPLIT_TEST;
    if (train)
        return fail(e, hint, "%s has a validation split but no train/: %s/", dir,
                    d->folders.at[d->at[other]]);
    return fail(e, hint, "%s has %s/ but no val/, validation/ or test/", dir,
                d->folders.at[d->at[SPLIT_TRAIN]]);
}

/* ---- one class folder ---- */

typedef struct {
    const char *root;
    const Names *folder; /* class folders, or the classes of a list */
    Files *files;        /* [folder->n]: paths below root, sorted */
    bool listed;
} Walk;

/* Class folder k and everything below it, no directory twice. */
static bool walk_class(void *ctx, int k, Error *e)
{
    Walk *w = ctx;
    Names todo = {0};
    Visited visited = {0};
    bool ok = visit(&visited, w->root) > 0 || cannot_read(w->root, e);
    names_add(&todo, w->folder->at[k]);
    for (int i = 0; ok && i < todo.n; i++) {
        char *dir = xasprintf("%s/%s", w->root, todo.at[i]);
        int first = visit(&visited, dir);
        ok = first >= 0 || cannot_read(dir, e);
        if (first > 0)
            ok = list_folder(w->root, todo.at[i], &todo, &w->files[k], e);
        free(dir);
    }
    names_sort(&w->files[k].images);
    names_free(&todo);
    free(visited.seen);
    return ok;
}

/* ---- what class folders are not ---- */

/* A class folder without pictures of its own, whose pictures are in several folders: where these
 * part, in its first picture's path. One folder in it (class/images/1.jpg) is looked through. 0:
 * it is none of that. */
static size_t parting(const Names *images, size_t at)
{
    for (;;) {
        const char *first = images->at[0];
        size_t to_slash = at + strcspn(first + at, "/") + 1;
        bool part = false;
        for (int i = 0; i < images->n; i++) {
            if (!strchr(images->at[i] + at, '/'))
                return 0;
            part |= strncmp(first, images->at[i], to_slash) != 0;
        }
        if (part)
            return at;
        at = to_slash;
    }
}

/* Where class folders hold several folders each and not one picture, the classes are taken to be a
 * level too high, unless other class folders hold pictures and none is named like a split. A folder
 * that stands alone need not hold several. */
static bool right_level(const Walk *w, Error *e)
{
    const char *deep = NULL, *folder = ""; /* the first picture's path in a class folder */
    size_t level = 0;
    bool pictures = false, split = false;
    for (int k = 0; k < w->folder->n; k++) {
        const Names *images = &w->files[k].images;
        const char *name = w->folder->at[k];
        size_t n = strlen(name) + 1, at = images->n ? parting(images, n) : 0;
        if (images->n && w->folder->n == 1 && strchr(images->at[0] + n, '/'))
            at = n;
        for (int i = 0; i < images->n; i++)
            pictures |= !strchr(images->at[i] + n, '/');
        split |= split_in(name) != SPLIT_NONE;
        if (!at || (deep && (split_in(name) != SPLIT_TRAIN || split_in(folder) == SPLIT_TRAIN)))
            continue;
        deep = images->at[0];
        folder = name;
        level = at;
    }
    if (!deep || (pictures && !split))
        return true;
    char *hint = xasprintf("name the level with the class folders, such as %.80s/%.*s; if %.40s is "
                           "a class, list the classes in --classes FILE",
                           w->root, (int)(level < 81 ? level - 1 : 80), deep, folder);
    fail(e, hint, "%s: %s no pictures, but folders, such as %.*s", w->root,
         pictures ? "a folder in it has" : "the folders in it have",
         (int)(level + strcspn(deep + level, "/")), deep);
    free(hint);
    return false;
}

/* Folders that are called like what is in them: pictures beside a list of their labels, or masks.
 */
static bool only_parts(const Names *folder)
{
    static const char *const parts[] = {
        "images", "image",      "imgs",  "img",         "jpg",       "jpeg",
        "jpegs",  "JPEGImages", "png",   "pictures",    "photos",    "masks",
        "mask",   "labels",     "label", "annotations", "annotation"};
    int n = 0;
    for (int k = 0; k < folder->n; k++)
        for (int i = 0; i < COUNT(parts); i++)
            n += strcasecmp(folder->at[k], parts[i]) == 0;
    return n == folder->n;
}

/* What can be seen of names and levels alone, where nobody has listed the classes. */
static bool are_classes(const Walk *w, Error *e)
{
    const Names *folder = w->folder;
    for (int i = 0; i < folder->n; i++)
        for (int k = i + 1; split_in(folder->at[i]) && k < folder->n; k++)
            if (split_pair(folder->at[i], folder->at[k]))
                return fail(e,
                            "name them with --data and --val-data; if these are classes, list all "
                            "of them in --classes FILE",
                            "%s: %s/ and %s/ are called like splits, not like classes", w->root,
                            folder->at[i], folder->at[k]);
    if (!right_level(w, e))
        return false;
    return !only_parts(folder) ||
           fail(e,
                "images belong into one folder per class: DIR/train/<class>/*.jpg; labels in a "
                "list (csv, json) or in masks are not read; if it is a class, list the classes "
                "in --classes FILE",
                "%s: its %s %s/ %s called like what is in it, not like a class", w->root,
                folder->n > 1 ? "folders" : "folder", folder->at[0],
                folder->n > 1 ? "and others are" : "is");
}

/* ---- a list of labels ---- */

/* Tiny ImageNet's validation images are all in val/images, and beside that folder this file has a
 * line for each: its name, its class, its box. They are taken as class folders would be. */
#define LIST_FILE   "val_annotations.txt"
#define LIST_IMAGES "images"
static const char list_hint[] = "unpack the data set again; or sort the images into class folders, "
                                "and take the list away";

/* Many sort the images into class folders, and leave the list where it is. */
static bool has_list(const char *root)
{
    char *list = xasprintf("%s/" LIST_FILE, root);
    Names folders = {0};
    bool listed = path_exists(list) && list_folder(root, "", &folders, NULL, NULL) &&
                  folders.n == 1 && strcmp(folders.at[0], LIST_IMAGES) == 0;
    names_free(&folders);
    free(list);
    return listed;
}

/* A list's lines: paths of images below the root, and their classes. */
static bool read_list(const char *root, Names *images, Names *classes, Error *e)
{
    char *path = xasprintf("%s/" LIST_FILE, root), *text = read_text(path, 64 << 20, e), *line;
    bool ok = text != NULL;
    char *rest = text;
    for (int n = 1; ok && (line = strsep(&rest, "\n")); n++) {
        char *more, *name = strtok_r(line, "\t\r ", &more);
        char *class = name ? strtok_r(NULL, "\t\r ", &more) : NULL;
        if (!name)
            continue;
        ok = class || fail(e, list_hint, "%s:%d: no class behind '%.100s'", path, n, name);
        char *image = xasprintf(LIST_IMAGES "/%s", name);
        names_add(images, image);
        names_add(classes, class ? class : "");
        free(image);
    }
    free(text);
    free(path);
    return ok;
}

static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Where it is in a sorted list; -1: it is not. */
static int find_text(const Names *l, const char *text)
{
    char **at = l->n ? bsearch(&text, l->at, (size_t)l->n, sizeof text, compare_texts) : NULL;
    return at ? (int)(at - l->at) : -1;
}

/* Every line's image must be there, and have one line; images without a line are passed over. */
static bool share_out(Folders *f, Walk *w, const Names *images, const Names *classes,
                      const Names *there, Error *e)
{
    bool *taken = xcalloc((size_t)there->n + 1, sizeof *taken), ok = true;
    for (int i = 0; ok && i < images->n; i++) {
        int at = find_text(there, images->at[i]);
        if (at < 0 || taken[at])
            ok = fail(e, list_hint, "%s/" LIST_FILE ": %.100s %s", w->root, images->at[i],
                      at < 0 ? "is not there" : "has two lines");
        else
            taken[at] = true;
        names_add(&w->files[find_text(w->folder, classes->at[i])].images, images->at[i]);
    }
    for (int i = 0; i < there->n; i++)
        if (!taken[i])
            names_add(&f->base.passed, "not in " LIST_FILE);
    for (int k = 0; k < w->folder->n; k++)
        names_sort(&w->files[k].images);
    free(taken);
    return ok;
}

/* The classes of the list become `folder`. */
static bool walk_list(Folders *f, Walk *w, Names *folder, Error *e)
{
    Names images = {0}, classes = {0}, deeper = {0};
    Files there = {0};
    bool ok = read_list(w->root, &images, &classes, e) &&
              list_folder(w->root, LIST_IMAGES, &deeper, &there, e);
    for (int i = 0; i < classes.n; i++)
        names_add(folder, classes.at[i]);
    classes_distinct(folder);
    names_sort(&there.images);
    w->files = xcalloc((size_t)folder->n + 1, sizeof *w->files);
    ok = ok && (images.n > 0 || fail(e, list_hint, "%s/" LIST_FILE ": has no lines", w->root));
    ok = ok && share_out(f, w, &images, &classes, &there.images, e);
    source_note(&f->base, "labels of %s/" LIST_IMAGES " are those of %s/" LIST_FILE, w->root,
                w->root);
    files_free(&there);
    names_free(&images);
    names_free(&classes);
    names_free(&deeper);
    return ok;
}

/* ---- what is no folder of pictures ---- */

/* By the ending of a file that stands in a picture's or a folder's place; "" for any. */
static const char *hint_of(const char *name)
{
    static const char *const hints[][2] = {
        {".parquet", "a data set of Hugging Face's: write its images into one folder per class"},
        {".arrow", "a data set of Hugging Face's: write its images into one folder per class"},
        {".tfrecord", "TensorFlow's records: write their images into one folder per class"},
        {".zip", "unpack it, and name the folder"},
        {".tgz", "unpack it, and name the folder"},
        {".gz", "unpack it, and name the folder"},
        {".tar", "these may be shards: --data wds:DIR, or wds:FILE; else unpack them"},
        {".npz", "write the pictures into one folder per class"},
        {".npy", "write the pictures into one folder per class"},
        {".h5", "write the pictures into one folder per class"},
        {".heic", "convert them to JPEG or PNG"},
        {".avif", "convert them to JPEG or PNG"}};
    const char *dot = strrchr(name, '.');
    for (int i = 0; dot && i < COUNT(hints); i++)
        if (strcasecmp(dot, hints[i][0]) == 0)
            return hints[i][1];
    return "";
}

/* Files of data sets that are named otherwise; "" for none. */
static const char *hint_of_set(const char *dir)
{
    static const char *const sets[][2] = {
        {"data_batch_1", "CIFAR-10's own files: --data cifar10:DIR"},
        {"data_batch_1.bin", "CIFAR-10's own files: --data cifar10:DIR"},
        {"train.bin", "CIFAR-100's own files: --data cifar100:DIR"},
        {"train-images-idx3-ubyte", "MNIST's own files: --data mnist:DIR"},
        {"train-images-idx3-ubyte.gz", "MNIST's own files: --data mnist:DIR, unpacked"}};
    const char *hint = "";
    for (int i = 0; !*hint && i < COUNT(sets); i++) {
        char *path = xasprintf("%s/%s", dir, sets[i][0]);
        if (path_exists(path))
            hint = sets[i][1];
        free(path);
    }
    return hint;
}

/* Of the files that are passed over, the first that says what they are. */
static const char *hint_of_any(const Names *endings)
{
    const char *hint = "";
    for (int i = 0; !*hint && i < endings->n; i++)
        hint = hint_of(endings->at[i]);
    return hint;
}

/* ", only 3 other files (.txt, ...)", or nothing. */
static void describe_others(const Names *endings, char out[static 128])
{
    *out = '\0';
    if (endings->n)
        snprintf(out, 128, ", only %s (%s%s)", amount(endings->n, "other file").s, endings->at[0],
                 endings->n > 1 ? ", ..." : "");
}

static bool no_directory(const char *dir, Error *e)
{
    const char *hint = hint_of(dir), *what = "not a directory";
    if (!path_exists(dir)) {
        what = path_trouble("no such directory");
        hint = "";
    }
    if (strstr(dir, "://"))
        return fail(e, "download it, and name the folder: nothing is read over a network",
                    "%s: is an address", dir);
    if (!*hint)
        hint = "data is DIR with class folders, wds:PATTERN, cifar10:DIR, cifar100:DIR, mnist:DIR, "
               "shapes or fake";
    return fail(e, hint, "%s: %s", dir, what);
}

/* ---- labels ---- */

static bool add_folder(Folders *f, const char *folder, const Files *files, int label, Error *e)
{
    const Names *passed = &files->passed;
    char others[128];
    describe_others(passed, others);
    for (int i = 0; i < files->images.n; i++) {
        source_add(&f->base, f->size, label);
        f->size += strlen(strcpy(f->text + f->size, files->images.at[i])) + 1;
    }
    for (int i = 0; i < passed->n; i++)
        names_add(&f->base.passed, passed->at[i]);
    char *dir = xasprintf("%s/%s", f->root, folder);
    const char *hint = hint_of_set(dir);
    free(dir);
    if (!*hint)
        hint = hint_of_any(passed);
    if (!*hint)
        hint =
            "add jpg, png, ppm, pgm, bmp, gif, tif or webp files, or remove the folder; lists of "
            "labels are not read: images belong into one folder per class";
    return files->images.n > 0 || !f->train ||
           fail(e, hint, "the class folder %s/%s has no images%s", f->root, folder, others);
}

/* Class names: the class file's lines; else the folders of train/, so that both splits agree, or
 * what the training images' are; else the folders themselves. */
static bool list_names(Folders *f, const Walk *w, const DataOptions *o, const char *train_dir,
                       Error *e)
{
    Names *classes = &f->base.classes;
    if (o->classes)
        return classes_read(o->classes, classes, e);
    f->base.sorted = true;
    for (int k = 0; o->like && k < o->like->n; k++)
        names_add(classes, o->like->at[k]);
    for (int k = 0; !o->like && !train_dir && k < w->folder->n; k++)
        names_add(classes, w->folder->at[k]);
    if (!o->like && train_dir && !list_folder(train_dir, "", classes, NULL, e))
        return false;
    if (!o->like)
        classes_sort(classes, o->class_order);
    return true;
}

static bool add_folders(Folders *f, const Walk *w, const DataOptions *o, const char *train_dir,
                        Error *e)
{
    const char *list = train_dir ? train_dir : f->root;
    if (o->like)
        list = "the training images' classes";
    if (o->classes)
        list = o->classes;
    if (!list_names(f, w, o, train_dir, e))
        return false;
    ClassKeys *keys = class_keys(&f->base.classes, list, e);
    size_t size = 0;
    for (int k = 0; k < w->folder->n; k++)
        for (int i = 0; i < w->files[k].images.n; i++)
            size += strlen(w->files[k].images.at[i]) + 1;
    f->text = xmalloc(size);
    bool ok = keys != NULL;
    for (int k = 0; ok && k < w->folder->n; k++) {
        const char *folder = w->folder->at[k];
        char *what = w->listed ? xasprintf("%s/" LIST_FILE ": the class %s", f->root, folder)
                               : xasprintf("the class folder %s/%s", f->root, folder);
        int label = class_label_of(keys, folder, what, e);
        ok = label >= 0 && add_folder(f, folder, &w->files[k], label, e);
        free(what);
    }
    class_keys_free(keys);
    return ok;
}

/* ---- opening ---- */

/* What a folder without class folders is taken for. */
static bool no_classes(const Folders *f, const Divided *d, const Files *files, Error *e)
{
    int n = files->images.n;
    bool both = d->count[SPLIT_TRAIN] && d->count[SPLIT_VAL] + d->count[SPLIT_TEST];
    if (n && d->split && d->count[SPLIT_NONE] && !both)
        return fail(e,
                    "a class of that name: list all class folders in --classes FILE; a split: "
                    "it needs class folders",
                    "%s has %s and no class folders, beside %s/: is it a class or a split?",
                    f->root, amount(n, "picture").s, d->folders.at[d->at[SPLIT_NONE]]);
    if (n && d->split && !f->train)
        return fail(e,
                    "sort them into class folders; or train without validation: --val-data none; "
                    "or keep a share of the training images for it: --val-fraction 0.1",
                    "%s has %s, but no class folders: they have no labels", f->root,
                    amount(n, "picture").s);
    char others[128];
    const char *hint = n ? "" : hint_of_set(f->root);
    if (!n && !*hint)
        hint = hint_of_any(&files->passed);
    describe_others(&files->passed, others);
    if (*hint)
        return fail(e, hint, "%s has no class folders%s", f->root, others);
    return fail(e,
                "images belong into one folder per class: DIR/train/<class>/*.jpg; labels in a "
                "list (csv, json) are not read",
                "%s has %sno class folders", f->root, n ? "pictures, but " : "");
}

/* Validation may lack images of some classes, not of all: then what there is instead. */
static bool has_images(const Folders *f, Error *e)
{
    const Names *passed = &f->base.passed;
    const char *hint = hint_of_any(passed);
    char others[128];
    describe_others(passed, others);
    if (!*hint)
        hint = "add jpg, png, ppm, pgm, bmp, gif, tif or webp files, or train without validation: "
               "--val-data none";
    return f->base.n > 0 || !passed->n || fail(e, hint, "%s has no images%s", f->root, others);
}

/* Class folders become `folder`, other files `beside`. */
static bool walk_folders(const Folders *f, const Divided *d, const DataOptions *o, Walk *w,
                         Names *folder, Files *beside, Error *e)
{
    bool ok = list_folder(f->root, "", folder, beside, e);
    w->files = xcalloc((size_t)folder->n + 1, sizeof *w->files);
    ok = ok && (folder->n > 0 || no_classes(f, d, beside, e));
    ok = ok && source_parallel(folder->n, walk_class, w, e);
    return ok && (o->classes || are_classes(w, e));
}

static bool open_folders(Folders *f, const Divided *d, const DataOptions *o, const char *train_dir,
                         Error *e)
{
    Names folder = {0};
    Files beside = {0};
    Walk w = {.root = f->root, .folder = &folder, .listed = has_list(f->root)};
    bool ok =
        w.listed ? walk_list(f, &w, &folder, e) : walk_folders(f, d, o, &w, &folder, &beside, e);
    ok = ok && add_folders(f, &w, o, train_dir, e) && has_images(f, e);
    for (int i = 0; i < beside.passed.n; i++)
        names_add(&f->base.passed, beside.passed.at[i]);
    for (int i = 0; i < beside.images.n; i++)
        names_add(&f->base.passed, "beside the class folders");
    for (int k = 0; ok && !o->classes && k < folder.n; k++)
        if (split_named(folder.at[k]))
            source_note(&f->base,
                        "the folder %s/%s is taken for a class: --classes FILE lists the classes",
                        f->root, folder.at[k]);
    for (int k = 0; k < folder.n; k++)
        files_free(&w.files[k]);
    free(w.files);
    files_free(&beside);
    names_free(&folder);
    return ok;
}

static char *folder_of(const char *dir, const Divided *d, int split)
{
    return split ? xasprintf("%s/%s", dir, d->folders.at[d->at[split]]) : xstrdup(dir);
}

Source *folders_open(const char *dir, const DataOptions *o, Error *e)
{
    if (!is_dir(dir)) {
        no_directory(dir, e);
        return NULL;
    }
    Divided d = {0};
    Folders *f = xcalloc(1, sizeof *f);
    f->base.kind = &kind;
    f->train = o->train;
    bool ok = divide(dir, o, &d, e);
    if (ok) {
        char *train_dir = d.count[SPLIT_TRAIN] ? folder_of(dir, &d, SPLIT_TRAIN) : NULL;
        f->root = folder_of(dir, &d, d.split);
        f->base.split = d.split;
        f->base.place = xstrdup(f->root);
        ok = open_folders(f, &d, o, train_dir, e);
        free(train_dir);
    }
    for (int i = 0; ok && d.split && i < d.folders.n; i++)
        if (!split_named(d.folders.at[i])) {
            char *other = xasprintf("folder %s", d.folders.at[i]);
            names_add(&f->base.passed, other);
            free(other);
        }
    if (ok && takes_share(&d, o))
        source_divide(&f->base, f->text, o);
    else if (ok && o->val_fraction > 0)
        source_note(&f->base, "%s has validation images of its own: --val-fraction has no effect",
                    dir);
    if (d.split == SPLIT_TEST)
        source_note(&f->base, "%s has no val/: %s is used for validation", dir, f->root);
    names_free(&d.folders);
    return source_opened(&f->base, ok);
}
