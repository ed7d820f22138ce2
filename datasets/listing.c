/* listing.c - the images in a folder of class folders, read once and remembered.
 *
 * Class folders are read in parallel, each with everything below it. What was found is kept in
 * cache.c together with the identity and the times of every directory that was read: a later run
 * that finds them all unchanged need not read them.
 * Order: directories; one class folder; the cached listing; all of it.
 */
#include <dirent.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>

#include "datasets/source.h"
#include "util/cache.h"
#include "util/files.h"
#include "util/names.h"

/* ---- directories ---- */

/* What changes when an entry comes, goes or is renamed, or another directory takes the place. */
typedef struct {
    uint64_t device, inode;
    int64_t modified, modified_ns, changed, changed_ns;
} Stamp;

static Stamp stamp_of(const struct stat *st)
{
    return (Stamp){st->st_dev,          st->st_ino,         st->st_mtim.tv_sec,
                   st->st_mtim.tv_nsec, st->st_ctim.tv_sec, st->st_ctim.tv_nsec};
}

/* What one class folder holds. */
typedef struct {
    const char *root, *folder;
    Stamp top;         /* of root */
    Names files, dirs; /* paths below root; dirs[0] is the class folder itself */
    Stamp *stamp;      /* [dirs.n] */
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

static bool same_place(const Stamp *a, const Stamp *b)
{
    return a->device == b->device && a->inode == b->inode;
}

/* Whether the directory was not read before; then it counts as read from now on. */
static bool enter(Scan *s, const char *path, const struct stat *st)
{
    Stamp here = stamp_of(st);
    if (same_place(&here, &s->top))
        return false;
    for (int i = 0; i < s->dirs.n; i++)
        if (same_place(&here, &s->stamp[i]))
            return false;
    names_add(&s->dirs, path);
    s->stamp = xrealloc(s->stamp, sizeof(Stamp) * s->dirs.room);
    s->stamp[s->dirs.n - 1] = here;
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
    bool fresh = ok && enter(s, path, &st);
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

/* ---- the cached listing ---- */

/* In the file: the counts, a Stamp for each directory, then zero-terminated texts: the directories'
 * paths (the root's is "."), the class folders, the images' paths. */
typedef struct {
    int64_t dirs, folders, files, bytes; /* bytes: of all texts */
} Counts;

static void save_listing(const char *key, const Listing *l, const Scan *scans, const Stamp *root)
{
    Counts c = {1, l->folder.n, l->n, 2 + (int64_t)l->size};
    for (int i = 0; i < l->folder.n; i++) {
        c.dirs += scans[i].dirs.n;
        c.bytes += (int64_t)strlen(l->folder.at[i]) + 1;
        for (int k = 0; k < scans[i].dirs.n; k++)
            c.bytes += (int64_t)strlen(scans[i].dirs.at[k]) + 1;
    }
    size_t size = sizeof c + (size_t)c.dirs * sizeof(Stamp) + (size_t)c.bytes;
    uint8_t *file = xmalloc(size);
    Stamp *stamp = (Stamp *)(file + sizeof c);
    char *text = (char *)(stamp + c.dirs);
    memcpy(file, &c, sizeof c);
    *stamp++ = *root;
    text = stpcpy(text, ".") + 1;
    for (int i = 0; i < l->folder.n; i++) {
        memcpy(stamp, scans[i].stamp, sizeof(Stamp) * scans[i].dirs.n);
        stamp += scans[i].dirs.n;
        for (int k = 0; k < scans[i].dirs.n; k++)
            text = stpcpy(text, scans[i].dirs.at[k]) + 1;
    }
    for (int i = 0; i < l->folder.n; i++)
        text = stpcpy(text, l->folder.at[i]) + 1;
    memcpy(text, l->text, l->size);
    cache_save("listing", key, file, size);
    free(file);
}

/* Directories as they were when the listing was made. */
typedef struct {
    const char *root;
    Names dirs;
    const Stamp *stamp;
    atomic_bool stale; /* one of them is another one now, or something in it has changed */
} Then;

static void compare_dir(void *ctx, int i)
{
    Then *t = ctx;
    struct stat st;
    if (atomic_load(&t->stale))
        return;
    char *path = xasprintf("%s/%s", t->root, t->dirs.at[i]);
    bool ok = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
    Stamp now = ok ? stamp_of(&st) : (Stamp){0};
    if (!ok || memcmp(&now, &t->stamp[i], sizeof now) != 0)
        atomic_store(&t->stale, true);
    free(path);
}

/* Takes texts from *at on, as many as wanted, and moves *at behind them. Their number is not to be
 * trusted: false if the file ends before. */
static bool take_texts(const char **at, const char *end, int64_t n, Names *out)
{
    for (int64_t i = 0; i < n; i++) {
        const char *zero = memchr(*at, 0, (size_t)(end - *at));
        if (!zero)
            return false;
        if (out)
            names_add(out, *at);
        *at = zero + 1;
    }
    return true;
}

/* Whether each path lies in one of the folders, which come in the same order, and not above it. */
static bool paths_are_sane(const Listing *l)
{
    int folder = 0;
    const char *path = l->text;
    for (long i = 0; i < l->n; i++, path += strlen(path) + 1) {
        const char *slash = strchr(path, '/');
        size_t n = slash ? (size_t)(slash - path) : 0;
        while (folder < l->folder.n &&
               (strlen(l->folder.at[folder]) != n || memcmp(l->folder.at[folder], path, n) != 0))
            folder++;
        if (!slash || folder == l->folder.n || strstr(slash, "/../"))
            return false;
    }
    return true;
}

static bool parse_listing(const char *root, const uint8_t *file, size_t size, Listing *out)
{
    Counts c;
    if (size < sizeof c)
        return false;
    memcpy(&c, file, sizeof c);
    uint64_t left = size - sizeof c;
    if (c.dirs < 1 || (uint64_t)c.dirs > left / sizeof(Stamp) || c.folders < 0 || c.files < 0 ||
        (uint64_t)c.bytes != left - (uint64_t)c.dirs * sizeof(Stamp))
        return false;
    Then then = {.root = root, .stamp = (const Stamp *)(file + sizeof c)}; /* aligned: int64_t's */
    const char *at = (const char *)(then.stamp + c.dirs), *end = at + c.bytes;
    bool ok = take_texts(&at, end, c.dirs, &then.dirs);
    if (ok)
        source_parallel(then.dirs.n, compare_dir, &then);
    ok = ok && !then.stale && take_texts(&at, end, c.folders, &out->folder);
    names_free(&then.dirs);
    const char *first = at;
    if (!ok || !take_texts(&at, end, c.files, NULL) || at != end)
        return false;
    out->size = (size_t)(end - first);
    out->n = (long)c.files;
    out->text = xmalloc(out->size);
    memcpy(out->text, first, out->size);
    return paths_are_sane(out);
}

static bool load_listing(const char *key, const char *root, Listing *out)
{
    size_t size;
    uint8_t *file = cache_load("listing", key, &size);
    bool ok = file && parse_listing(root, file, size, out);
    free(file);
    if (!ok)
        listing_free(out);
    return ok;
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

/* The times of every directory lie so far before the scan that a later change gives new ones. */
static bool settled(const Listing *l, const Scan *scans, const Stamp *root, int64_t began)
{
    int64_t last = root->changed > root->modified ? root->changed : root->modified;
    for (int i = 0; i < l->folder.n; i++)
        for (int k = 0; k < scans[i].dirs.n; k++) {
            const Stamp *s = &scans[i].stamp[k];
            last = s->modified > last ? s->modified : last;
            last = s->changed > last ? s->changed : last;
        }
    return last < began - CACHE_MARGIN;
}

static bool scan_all(const char *root, const char *key, Listing *l, Error *e)
{
    double from = now();
    int64_t began = (int64_t)time(NULL);
    struct stat st;
    if (stat(root, &st) != 0)
        return cannot_read(root, e);
    Stamp top = stamp_of(&st);
    if (!list_folders(root, &l->folder, e))
        return false;
    Scan *scans = xcalloc((size_t)l->folder.n, sizeof *scans);
    for (int i = 0; i < l->folder.n; i++)
        scans[i] = (Scan){.root = root, .folder = l->folder.at[i], .top = top};
    source_parallel(l->folder.n, scan_folder, scans);
    bool ok = true;
    for (int i = 0; ok && i < l->folder.n; i++)
        if (scans[i].failed) {
            *e = scans[i].e;
            ok = false;
        }
    if (ok) {
        join_scans(l, scans);
        bool worth = l->n > CACHE_ENTRIES || now() - from > CACHE_SECONDS;
        if (key && worth && settled(l, scans, &top, began))
            save_listing(key, l, scans, &top);
    }
    for (int i = 0; i < l->folder.n; i++) {
        names_free(&scans[i].files);
        names_free(&scans[i].dirs);
        free(scans[i].stamp);
    }
    free(scans);
    return ok;
}

bool listing_read(const char *root, Listing *out, Error *e)
{
    *out = (Listing){0};
    char *key = realpath(root, NULL);
    bool ok = (key && load_listing(key, root, out)) || scan_all(root, key, out, e);
    free(key);
    return ok;
}

void listing_free(Listing *l)
{
    free(l->text);
    names_free(&l->folder);
    *l = (Listing){0};
}
