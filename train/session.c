/* session.c - what all parts of the set-up end or warn with. See session.h. */
#include "train/session.h"

#include "util/report.h"

#include <stdarg.h>
#include <stdio.h>

void setup_check(bool ok, const Error *e)
{
    if (!ok)
        die(e->hint, "%s", e->what);
}

void setup_check_usage(bool ok, const Error *e)
{
    const char *hint = *e->hint ? e->hint : "--help lists all flags with what they take";
    if (!ok)
        die_usage(hint, "%s", e->what);
}

void warn_of(const Session *s, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (s->world.rank == 0)
        warn("%s", text);
}
