/* listing.c - the images in a folder of class folders.
 *
 * Class folders are read in parallel, each with everything below it: all of ImageNet takes less
 * than a second on a local disk, so nothing is remembered from one opening to the next.
 * Order: directories; one class folder; all of it.
 */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "datasets/source.h"
#include "util/files.h"
#include "util/names.h"

/* ---- directories ---- */

/* A directory, by whichever path. */
typedef struct {
    dev_t device;
    ino_t inode;
} Place;

/* What one class folder holds. */
typedef struct {
    const char *root, *folder;
    Names files; /* paths below root */
    Place *seen; /* [places]: root, and the directories that were read */
    int places;
    bool failed;
    Error e;
} Scan;

bool image_extension(const char *ext)
{
    static const char *const known[] = {"jpg", "jpeg", "png", "ppm",  "pgm",
                                        "bmp", "gif",  "tif", "tiff", "webp"};
    for (int i = 0; i < COUNT(known); i++)
        if (strcasecmp(ext, known[i]) == 0)
            return true;
    return false;
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
    bool yes = is_dir(path);
    free(path);
    return yes;
}

static bool cannot_read(const char *dir, Error *e)
{
    return fail(e, "check the path and its permissions", "cannot read the directory %s: %s", dir,
                strerror(errno));
}

/* ---- one class folder ---- */

/* Whether the directory was not read before; then it counts as read from now on. */
static bool enter(Scan *s, const struct stat *st)
{
    for (int i = 0; i < s->places; i++)
        if (s->seen[i].device == st->st_dev && s->seen[i].inode == st->st_ino)
            return false;
    s->seen = xrealloc(s->seen, sizeof(Place) * (size_t)(s->places + 1));
    s->seen[s->places++] = (Place){st->st_dev, st->st_ino};
    return true;
}

/* Reads root/path: its images into s->files, its folders into `below`. */
static bool scan_dir(Scan *s, const char *path, Names *below)
{
    char *dir = xasprintf("%s/%s", s->root, path);
    struct stat st;
    DIR *d = opendir(dir);
    bool ok = d && fstat(dirfd(d), &st) == 0;
    if (!ok)
        cannot_read(dir, &s->e);
    bool fresh = ok && enter(s, &st);
    for (struct dirent *f; fresh && (f = readdir(d));) {
        if (f->d_name[0] == '.')
            continue;
        bool folder = is_folder(dir, f);
        if (!folder && !is_image(f->d_name))
            continue;
        char *full = xasprintf("%s/%s", path, f->d_name);
        names_add(folder ? below : &s->files, full);
        free(full);
    }
    if (d)
        closedir(d);
    free(dir);
    return ok;
}

/* Scan i of the array, which knows its class folder's name. */
static void scan_folder(void *scans, int i)
{
    Scan *s = (Scan *)scans + i;
    Names todo = {0};
    names_add(&todo, s->folder);
    bool ok = true;
    for (int i = 0; ok && i < todo.n; i++) {
        Names below = {0};
        ok = scan_dir(s, todo.at[i], &below);
        names_sort(
            &below); /* which of two ways to a directory counts must not depend on the disk */
        for (int k = 0; k < below.n; k++)
            names_add(&todo, below.at[k]);
        names_free(&below);
    }
    s->failed = !ok;
    names_sort(&s->files);
    names_free(&todo);
}

/* ---- all of it ---- */

bool list_folders(const char *dir, Names *out, Error *e)
{
    DIR *d = opendir(dir);
    if (!d)
        return cannot_read(dir, e);
    for (struct dirent *f; (f = readdir(d));)
        if (f->d_name[0] != '.' && is_folder(dir, f))
            names_add(out, f->d_name);
    closedir(d);
    names_sort(out);
    return true;
}

/* The folders' files, one folder after the other. */
static void join_scans(Listing *l, const Scan *scans)
{
    for (int i = 0; i < l->folder.n; i++)
        for (int k = 0; k < scans[i].files.n; k++)
            l->size += strlen(scans[i].files.at[k]) + 1;
    char *at = l->text = xmalloc(l->size);
    for (int i = 0; i < l->folder.n; i++)
        for (int k = 0; k < scans[i].files.n; k++, l->n++)
            at = stpcpy(at, scans[i].files.at[k]) + 1;
}

bool listing_read(const char *root, Listing *out, Error *e)
{
    *out = (Listing){0};
    struct stat st;
    if (stat(root, &st) != 0)
        return cannot_read(root, e);
    if (!list_folders(root, &out->folder, e))
        return false;
    Scan *scans = xcalloc((size_t)out->folder.n, sizeof *scans);
    for (int i = 0; i < out->folder.n; i++) {
        scans[i] = (Scan){.root = root, .folder = out->folder.at[i]};
        enter(&scans[i], &st);
    }
    source_parallel(out->folder.n, scan_folder, scans);
    bool ok = true;
    for (int i = 0; ok && i < out->folder.n; i++)
        if (scans[i].failed) {
            *e = scans[i].e;
            ok = false;
        }
    if (ok)
        join_scans(out, scans);
    for (int i = 0; i < out->folder.n; i++) {
        names_free(&scans[i].files);
        free(scans[i].seen);
    }
    free(scans);
    return ok;
}

void listing_free(Listing *l)
{
    free(l->text);
    names_free(&l->folder);
    *l = (Listing){0};
}
