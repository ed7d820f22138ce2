/* util.c - errors, memory, files and time: the few things every host file needs.
 *
 * It holds no knowledge of models or data. Two ways to fail: die() for what nobody can handle, and
 * an Error for what the caller may want to handle or describe better.
 *
 * Read in this order: errors, memory, files, nearest word. */
#include "util/util.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- errors ---- */

void (*die_hook)(void);

static _Noreturn void leave(int status, const char *hint, const char *fmt, va_list args)
{
    fflush(stdout); /* what was printed before the error stays before it */
    fputs("error: ", stderr);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    if (hint && *hint)
        fprintf(stderr, "hint: %s\n", hint);
    void (*hook)(void) = die_hook;
    die_hook = NULL; /* a hook that dies itself must not come back here */
    if (hook)
        hook();
    /* exit() takes down libraries (OpenBLAS, CUDA) with which the main thread is still at work: it
     * would crash, or wait for it forever. */
    if (gettid() != getpid()) {
        fflush(stderr);
        _exit(status);
    }
    exit(status);
}

_Noreturn void die(const char *hint, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    leave(1, hint, fmt, args);
}

_Noreturn void die_usage(const char *hint, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    leave(2, hint, fmt, args);
}

void warn(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fflush(stdout);
    fputs("warning: ", stderr);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
}

/* Formatted into a local buffer first: an argument may be part of *e itself. */
bool fail(Error *e, const char *hint, const char *fmt, ...)
{
    if (!e)
        return false;
    char what[sizeof e->what];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    char advice[sizeof e->hint];
    snprintf(advice, sizeof advice, "%s", hint ? hint : "");
    memcpy(e->what, what, sizeof what);
    memcpy(e->hint, advice, sizeof advice);
    return false;
}

/* ---- memory ---- */

static _Noreturn void out_of_memory(size_t bytes)
{
    die("free some memory, or lower the batch or model size",
        "out of memory: cannot allocate %zu bytes", bytes);
}

void *xmalloc(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    if (!p)
        out_of_memory(bytes);
    return p;
}

void *xcalloc(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size ? size : 1);
    if (!p)
        out_of_memory(size && n > SIZE_MAX / size ? SIZE_MAX : n * size);
    return p;
}

void *xrealloc(void *old, size_t bytes)
{
    void *p = realloc(old, bytes ? bytes : 1);
    if (!p)
        out_of_memory(bytes);
    return p;
}

char *xstrdup(const char *s)
{
    size_t n = strlen(s) + 1;
    return memcpy(xmalloc(n), s, n);
}

char *xasprintf(const char *fmt, ...)
{
    char *s;
    va_list args;
    va_start(args, fmt);
    int n = vasprintf(&s, fmt, args);
    va_end(args);
    if (n < 0)
        die("free some memory", "cannot format a message: %s", strerror(errno));
    return s;
}

/* ---- time and files ---- */

double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

bool path_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
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

/* ---- the nearest word ---- */

/* Levenshtein distance, one row of the table at a time; words are cut at 63 characters. */
static int edit_distance(const char *a, const char *b)
{
    int row[64];
    int n = (int)strnlen(b, 63), m = (int)strnlen(a, 63);
    for (int j = 0; j <= n; j++)
        row[j] = j;
    for (int i = 1; i <= m; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[n];
}

/* Near means: at most a third of the longer word's letters differ (at least one may). */
const char *nearest(const char *word, const char *const *list)
{
    const char *best = NULL;
    int least = 0;
    for (; *list; list++) {
        size_t longer = strlen(word) > strlen(*list) ? strlen(word) : strlen(*list);
        int allowed = longer < 3 ? 1 : (int)(longer + 2) / 3;
        int d = edit_distance(word, *list);
        if (d <= allowed && d < (int)longer && (!best || d < least)) {
            best = *list;
            least = d;
        }
    }
    return best;
}
