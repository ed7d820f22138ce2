/* files.c - paths, whole text files, and files that appear only when complete. See files.h. */
#include "util/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- paths and whole files ---- */

bool path_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

const char *path_trouble(const char *missing)
{
    if (errno == ELOOP)
        return "symbolic links that lead in a circle";
    return errno == ENOENT ? missing : strerror(errno);
}

bool is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* One component. Another process may create it at the same moment, so existing is no failure;
 * existing as something else than a directory is. */
static bool make_dir(const char *path, Error *e)
{
    if (mkdir(path, 0777) == 0)
        return true;
    int why = errno; /* of mkdir: is_dir has its own */
    if (is_dir(path))
        return true;
    return fail(e, "name a directory that you may write to", "%s: cannot create directory: %s",
                path, why == EEXIST ? "a file is in its place" : strerror(why));
}

int visit(Visited *v, const char *dir)
{
    struct stat st;
    if (stat(dir, &st) != 0)
        return -1;
    for (int i = 0; i < v->n; i++)
        if (v->seen[i][0] == st.st_dev && v->seen[i][1] == st.st_ino)
            return 0;
    v->seen = xgrow(v->seen, v->n, sizeof *v->seen);
    v->seen[v->n][0] = st.st_dev;
    v->seen[v->n++][1] = st.st_ino;
    return 1;
}

bool make_dirs(const char *path, Error *e)
{
    if (!*path)
        return fail(e, "give the directory a name", "cannot create a directory with an empty name");
    char *copy = xstrdup(path);
    bool ok = true;
    for (char *p = copy + 1; ok && *p; p++) {
        if (*p != '/' || p[-1] == '/')
            continue;
        *p = 0;
        ok = make_dir(copy, e);
        *p = '/';
    }
    ok = ok && make_dir(copy, e);
    free(copy);
    return ok;
}

/* Reads until the end rather than trusting a size: pipes and /proc files have none. */
char *read_text(const char *path, size_t max_bytes, Error *e)
{
    FILE *f = fopen(path, "rb");
    if (!f) {
        fail(e, "check the path and its permissions", "%s: cannot open: %s", path, strerror(errno));
        return NULL;
    }
    size_t n = 0, room = 4096;
    char *text = xmalloc(room + 1);
    errno = 0;
    for (;;) {
        size_t got = fread(text + n, 1, room - n, f);
        n += got;
        if (got == 0 || n > max_bytes)
            break;
        if (n == room)
            text = xrealloc(text, (room *= 2) + 1);
    }
    bool ok = true;
    if (ferror(f))
        ok = fail(e, "name a readable text file", "%s: cannot read: %s", path, strerror(errno));
    else if (n > max_bytes)
        ok = fail(e, "name a text file of its usual size",
                  "%s: larger than the %zu bytes allowed here", path, max_bytes);
    else if (memchr(text, 0, n))
        ok = fail(e, "name a text file", "%s: not a text file (it has zero bytes)", path);
    fclose(f);
    if (!ok) {
        free(text);
        return NULL;
    }
    text[n] = 0;
    return text;
}

long read_at(int fd, void *bytes, size_t n, uint64_t at)
{
    size_t done = 0;
    while (done < n) {
        ssize_t got = pread(fd, (char *)bytes + done, n - done, (off_t)(at + done));
        if (got == 0)
            break;
        if (got > 0)
            done += (size_t)got;
        else if (errno != EINTR)
            return -1;
    }
    return (long)done;
}

/* ---- writing ---- */

struct FileWriter {
    FILE *f;
    char *path, *temporary;
    bool joined; /* another process created it */
};

/* Always false. */
static bool cannot(const char *what, const char *path, int why, Error *e)
{
    bool full = why == ENOSPC || why == EDQUOT || why == EFBIG;
    return fail(e,
                full ? "free some space, or write to another directory"
                     : "name a directory that you may write to",
                "%s: cannot %s: %s", path, what, strerror(why));
}

static FileWriter *open_temporary(const char *path, long pid, int flags, Error *e)
{
    FileWriter *f = xcalloc(1, sizeof *f);
    f->path = xstrdup(path);
    f->temporary = xasprintf("%s.%ld.tmp", path, pid);
    f->joined = !(flags & O_CREAT);
    int fd = open(f->temporary, O_WRONLY | O_CLOEXEC | flags, 0666);
    f->f = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (f->f)
        return f;
    cannot(f->joined ? "open" : "create", path, errno, e);
    file_abandon(f);
    return NULL;
}

/* rename() would put a file in the place of a device or a pipe, as root even of /dev/null. */
FileWriter *file_create(const char *path, Error *e)
{
    struct stat st;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
        fail(e, "name a file, new or to be replaced", "%s: is %s, not a file", path,
             S_ISDIR(st.st_mode) ? "a directory" : "a device or a pipe");
        return NULL;
    }
    return open_temporary(path, getpid(), O_CREAT | O_TRUNC, e);
}

FileWriter *file_join(const char *path, long pid, Error *e)
{
    return open_temporary(path, pid, 0, e);
}

/* Not posix_fallocate: where the file system cannot, that writes into every block. */
static int take_space(int fd, uint64_t bytes)
{
    int result = -1;
    errno = EOPNOTSUPP;
#ifdef FALLOC_FL_KEEP_SIZE
    while ((result = fallocate(fd, 0, 0, (off_t)bytes)) != 0 && errno == EINTR) {
    }
#endif
    return result;
}

bool file_length(FileWriter *f, uint64_t bytes, Error *e)
{
    int fd = fileno(f->f);
    bool ok = take_space(fd, bytes) == 0;
    if (!ok && (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL))
        ok = ftruncate(fd, (off_t)bytes) == 0;
    return ok || cannot("write", f->path, errno, e);
}

bool file_write_at(FileWriter *f, const void *bytes, size_t n, uint64_t at, Error *e)
{
    for (size_t done = 0; done < n;) {
        const char *rest = (const char *)bytes + done;
        alive();
        ssize_t put = pwrite(fileno(f->f), rest, n - done, (off_t)(at + done));
        if (put > 0)
            done += (size_t)put;
        else if (put == 0 || errno != EINTR)
            return cannot("write", f->path, put == 0 ? ENOSPC : errno, e);
    }
    return true;
}

bool file_write(FileWriter *f, const void *bytes, size_t n, Error *e)
{
    alive();
    errno = ENOSPC; /* a short write sets none */
    return fwrite(bytes, 1, n, f->f) == n || cannot("write", f->path, errno, e);
}

void file_abandon(FileWriter *f)
{
    if (!f)
        return;
    if (f->f) {
        fclose(f->f);
        if (!f->joined)
            unlink(f->temporary);
    }
    free(f->path);
    free(f->temporary);
    free(f);
}

/* Some file systems cannot sync a directory and say so with EINVAL; they have nothing to sync. */
bool sync_dir(const char *path, Error *e)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool ok = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL);
    int why = errno;
    if (fd >= 0)
        close(fd);
    return ok || cannot("sync the directory", path, why, e);
}

static bool sync_parent(const char *path, Error *e)
{
    const char *slash = strrchr(path, '/');
    char *parent =
        slash ? xasprintf("%.*s", (int)(slash - path) + (slash == path), path) : xstrdup(".");
    bool ok = sync_dir(parent, e);
    free(parent);
    return ok;
}

bool file_sync(FileWriter *f, Error *e)
{
    return (fflush(f->f) == 0 && fsync(fileno(f->f)) == 0) || cannot("write", f->path, errno, e);
}

/* fsync before rename: the name must never point at data that a power cut can still lose. */
bool file_publish(FileWriter *f, bool durable, Error *e)
{
    bool ok = !durable || file_sync(f, e);
    if (fclose(f->f) != 0 && ok) /* NFS may say only now that the disk is full */
        ok = cannot("write", f->path, errno, e);
    f->f = NULL;
    ok = ok && (rename(f->temporary, f->path) == 0 ||
                cannot("rename the finished file to its name", f->path, errno, e));
    if (!ok)
        unlink(f->temporary);
    ok = ok && (!durable || sync_parent(f->path, e));
    file_abandon(f);
    return ok;
}

bool save_file(const char *path, const void *bytes, size_t n, bool durable, Error *e)
{
    FileWriter *f = file_create(path, e);
    if (f && file_write(f, bytes, n, e))
        return file_publish(f, durable, e);
    file_abandon(f);
    return false;
}

bool save_text(const char *path, const char *text, Error *e)
{
    return save_file(path, text, strlen(text), true, e);
}

/* ---- locks ---- */

/* The line of a lock's file that says whose it is, or was. */
static void read_holder(int fd, char *out, size_t size)
{
    long n = read_at(fd, out, size - 1, 0);
    out[n > 0 ? n : 0] = 0;
    out[strcspn(out, "\n")] = 0;
}

/* A lock of fcntl is the process's: gone with it, and known to other hosts where the file system
 * is theirs too. A holder that ended well has removed the file, perhaps after it was opened here.
 */
int lock_file(const char *path, const char *what, Error *e)
{
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    char holder[320], host[256] = "", mine[320];
    struct stat st;
    gethostname(host, sizeof host - 1);
    snprintf(mine, sizeof mine, "process %ld on %s", (long)getpid(), host);
    for (;;) {
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (fd < 0) {
            cannot("create", path, errno, e);
            return -1;
        }
        int why = fcntl(fd, F_SETLK, &whole) == 0 ? 0 : errno;
        read_holder(fd, holder, sizeof holder);
        if (why == EACCES || why == EAGAIN) {
            fail(e, "wait until it ends, or stop it; another run takes another --out",
                 "%s is in use by %s", what, *holder ? holder : "another process");
            close(fd);
            return -1;
        }
        if (why == 0 && fstat(fd, &st) == 0 && st.st_nlink == 0) {
            close(fd);
            continue;
        }
        const char *on = strstr(holder, " on ");
        bool elsewhere = on && strcmp(on + 4, host) != 0;
        if (why || elsewhere)
            warn("%s: %s%s%s; see that no other process writes there", what,
                 why ? "cannot be locked: " : "was left by ", why ? strerror(why) : holder,
                 why ? "" : ", which may still be at work where locks do not reach");
        if (ftruncate(fd, 0) == 0)
            dprintf(fd, "%s\n", mine);
        return fd;
    }
}

void unlock_file(const char *path, int fd)
{
    if (fd < 0)
        return;
    unlink(path); /* first: who waits for the lock would take the name of another's */
    close(fd);
}
