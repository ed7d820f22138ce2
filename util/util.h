/* util.h - errors, memory and time: the few things every host file needs. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#ifdef __cplusplus
#define NORETURN [[noreturn]]
#else
#define NORETURN _Noreturn
#endif
#if defined(__GNUC__)
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))
#else
#define PRINTF_LIKE(f, a)
#endif

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

/* Print "error: <message>" and "hint: <hint>" to stderr, then exit: 1 for a failure, 2 for wrong
 * usage. `hint` may be NULL. The message names the file and the value at fault; the hint says what
 * to do next. */
NORETURN void die(const char *hint, const char *fmt, ...) PRINTF_LIKE(2, 3);
NORETURN void die_usage(const char *hint, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Asked by die() before it speaks: whether another process of the run has said the same. */
extern bool (*die_is_said)(void);
/* What its message begins with: which process of the run this is; NULL: nothing. */
extern const char *die_from;
/* Called once by die() before it exits (e.g. to say where the last checkpoint is). */
extern void (*die_hook)(void);
/* After it: tells the other processes of the run that this one has said why it ends. */
extern void (*die_farewell)(void);

void warn(const char *fmt, ...) PRINTF_LIKE(1, 2); /* "warning: ..." on stderr */

/* An error that the caller may handle: functions that take one return false (or NULL) and fill it.
 */
typedef struct {
    char what[512], hint[256];
} Error;
bool fail(Error *e, const char *hint, const char *fmt, ...)
    PRINTF_LIKE(3, 4); /* fills, returns false */

/* Allocation that cannot fail quietly: dies with the size. xcalloc zeroes. */
void *xmalloc(size_t bytes);
void *xcalloc(size_t n, size_t size);
void *xrealloc(void *p, size_t bytes);
/* An array p[n] with room for one element more; grown by nothing else, it has room for the next
 * power of two. */
void *xgrow(void *p, long n, size_t size);
char *xstrdup(const char *s);
char *xasprintf(const char *fmt, ...) PRINTF_LIKE(1, 2);

double now(void); /* seconds, monotonic */
/* So many seconds from now, for functions that wait until a time of that clock. */
struct timespec deadline(clockid_t clock, double seconds);

/* Work that takes long calls alive() whenever it has got on, on any thread: who watches over it
 * sees the count of such signs grow. */
void alive(void);
uint64_t alive_count(void);
