/* check.h - counting what tests find.
 *
 * One test program is one .c file that includes this header, runs its checks and ends with
 * `return check_report();`. A failed check prints one line and the program goes on; whatever cannot
 * run here (no data, no device) is skipped with a reason rather than passed in silence.
 * Build trees and sanitizers read the exit status; people read the last line.
 */
#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

static int check_passed, check_failed, check_skipped;

/* CHECK(n == 3) or CHECK(n == 3, "n is %d", n): the message is a literal format; the macro's value
 * is the condition's, so that a test can stop where going on would make no sense. */
#define CHECK(condition, ...) \
    check_that((condition), __FILE__, __LINE__, #condition, " " __VA_ARGS__)

/* SKIP("no GPU"): counts once and says why. */
#define SKIP(...) check_skip(" " __VA_ARGS__)

#if defined(__GNUC__)
__attribute__((unused, format(printf, 5, 6)))
#endif
static bool check_that(bool ok, const char *file, int line, const char *text, const char *fmt, ...)
{
    if (ok) {
        check_passed++;
        return true;
    }
    check_failed++;
    printf("FAIL %s:%d: %s", file, line, text);
    va_list args;
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    putchar('\n');
    fflush(stdout);
    return false;
}

#if defined(__GNUC__)
__attribute__((unused, format(printf, 1, 2)))
#endif
static void check_skip(const char *fmt, ...)
{
    check_skipped++;
    printf("SKIP");
    va_list args;
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    putchar('\n');
}

/* The closing line, and the program's exit status: 0 if nothing failed and anything ran. */
static int check_report(void)
{
    printf("%d passed, %d failed, %d skipped\n", check_passed, check_failed, check_skipped);
    fflush(stdout);
    return check_failed > 0 || check_passed + check_skipped == 0;
}
