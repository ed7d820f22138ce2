/* said.h - what is said of a data set, for tests. */
#pragma once

#include "data.h"
#include "files.h"

/* What data_describe prints. */
static char *said_of(const Dataset *d)
{
    const char *log = at(temporary, "said.log");
    Error e;
    fflush(stdout);
    int screen = dup(STDOUT_FILENO);
    if (!d || !freopen(log, "w", stdout))
        return xstrdup("");
    data_describe(d, "", NULL);
    fflush(stdout);
    dup2(screen, STDOUT_FILENO);
    close(screen);
    return read_text(log, 1 << 16, &e);
}

static void check_said(const Dataset *d, const char *want)
{
    char *said = said_of(d);
    CHECK(d && strstr(said, want), "'%s' is not in '%s'", want, said);
    free(said);
}
