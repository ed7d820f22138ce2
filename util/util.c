/* util.c - errors, memory and time: the few things every host file needs.
 *
 * It holds no knowledge of models or data. Two ways to fail: die() for what nobody can handle, and
 * an Error for what the caller may want to handle or describe better.
 *
 * Read in this order: errors, memory, time, signs of life. */
#include "util/util.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- errors ---- */

bool (*die_is_said)(void);
const char *die_from;
void (*die_hook)(void);
void (*die_farewell)(void);

static _Noreturn void leave(int status, const char *hint, const char *fmt, va_list args)
{
    char text[4096];
    bool has_hint = hint && *hint;
    fflush(stdout); /* what was printed before the error stays before it */
    vsnprintf(text, sizeof text, fmt, args);
    if (!die_is_said || !die_is_said()) {
        /* at once: other ranks write to the same terminal */
        fprintf(stderr, "error: %s%s\n%s%s%s", die_from ? die_from : "", text,
                has_hint ? "hint: " : "", has_hint ? hint : "", has_hint ? "\n" : "");
        void (*hook)(void) = die_hook;
        die_hook = NULL; /* a hook that dies itself must not come back here */
        if (hook)
            hook();
    }
    if (die_farewell)
        die_farewell();
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
    char text[4096];
    va_list args;
    va_start(args, fmt);
    fflush(stdout);
    vsnprintf(text, sizeof text, fmt, args);
    fprintf(stderr, "warning: %s\n", text); /* at once, as above */
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

void *xgrow(void *p, long n, size_t size)
{
    return n & (n - 1) ? p : xrealloc(p, size * (size_t)(n ? 2 * n : 1));
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

/* ---- time ---- */

double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

struct timespec deadline(clockid_t clock, double seconds)
{
    struct timespec t;
    clock_gettime(clock, &t);
    long nanoseconds = t.tv_nsec + (long)(seconds * 1e9);
    return (struct timespec){t.tv_sec + nanoseconds / 1000000000, nanoseconds % 1000000000};
}

/* ---- signs of life ---- */

static _Atomic uint64_t signs;

void alive(void)
{
    atomic_fetch_add_explicit(&signs, 1, memory_order_relaxed);
}

uint64_t alive_count(void)
{
    return atomic_load_explicit(&signs, memory_order_relaxed);
}
