/* names.h - lists of names, and patterns with braces that stand for many. */
#pragma once

#include "util/util.h"

typedef struct {
    char **at;
    int n;
} Names;
void names_add(Names *l, const char *s); /* copied */
void names_free(Names *l);
void names_sort(Names *l); /* by strcmp */
/* What a directory holds that ends in `ending`, hidden or not, sorted. */
bool names_in(const char *dir, const char *ending, Names *out, Error *e);

/* Shell braces: `{a,b}`, `{000000..000146}` (zero-padded as the wider end is), `{1..9..2}`, nested
 * and several, expanded in order; a pattern without braces gives itself. At most 10,000,000 names,
 * and a gigabyte of them. A backslash before a brace or a comma makes it a plain character. */
long brace_count(const char *pattern, Error *e); /* how many names; 0 is an error */
bool brace_expand(const char *pattern, Names *out, Error *e);
