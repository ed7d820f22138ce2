/* field.c - settings as text. See field.h.
 *
 * Read in this order: tables, text in, text out.
 */
#include "util/field.h"

#include "util/text.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- tables ---- */

const Field *field_find(const Field *table, int n, const char *name)
{
    for (const Field *f = table; f < table + n; f++)
        if (f->type != T_group && (same_name(f->flag, name) || same_name(f->name, name)))
            return f;
    return NULL;
}

const char *field_words(const Field *f)
{
    return f->allowed + (*f->allowed == '|');
}

static const void *place(const Field *f, const void *in)
{
    return (const char *)in + f->offset;
}

/* ---- text in ---- */

/* A long in decimal digits, or as other programs write one: 1e4, 20.0. Then *end is its end. */
static long read_whole(const char *text, char **end)
{
    errno = 0;
    long n = strtol(text, end, 10);
    if (!**end || text[strspn(text, "+-.0123456789eE")])
        return n;
    double x = strtod(text, end);
    if (x != floor(x) || fabs(x) > 1e15)
        errno = ERANGE;
    return errno ? 0 : (long)x;
}

/* The whole text has to be a number, and a finite one. */
static bool set_number(const Field *f, void *at, const char *value, const char *where,
                       const char *name, const char *hint, Error *e)
{
    const long most = f->type == T_int ? 1000000000 : LONG_MAX;
    bool whole = f->type != T_double;
    bool chosen = strstr(f->allowed, "|auto") && strcmp(value, "auto") == 0; /* by the program */
    const char *digits = chosen ? "0" : value;
    char *end;
    errno = 0;
    long n = whole ? read_whole(digits, &end) : 0;
    double x = whole ? (double)n : strtod(digits, &end);
    bool ok = *digits && !*end && !isspace((unsigned char)*digits) && isfinite(x);
    if (!hint)
        hint = whole ? "give a whole number" : "give a number such as 0.1";
    if (!ok || (whole && (errno || labs(n) > most)))
        return fail(e, hint, "%s%s: '%s' is not a %snumber", where, name, value,
                    whole ? "whole " : "");
    if (f->type == T_int)
        *(int *)at = (int)n;
    else if (whole)
        *(long *)at = n;
    else
        *(double *)at = x;
    return true;
}

bool field_set(const Field *f, void *in, const char *value, const char *where, const char *name,
               const char *hint, Error *e)
{
    void *at = (char *)in + f->offset;
    int k;
    switch (f->type) {
    case T_text:
        free((char *)*(text *)at);
        *(text *)at = xstrdup(value);
        return true;
    case T_bool:
        if ((k = find_bool(value)) < 0)
            return fail(e, "give true or false", "%s%s: '%s' is neither true nor false", where,
                        name, value);
        *(bool *)at = k;
        return true;
    case T_word:
        if ((k = find_word(f->allowed, value)) < 0)
            return fail(e, "choose one of the words above", "%s%s: '%s' is none of %s", where, name,
                        value, field_words(f));
        *(word *)at = k;
        return true;
    default:
        return set_number(f, at, value, where, name, hint, e);
    }
}

void fields_default(const Field *table, int n, void *in)
{
    Error e;
    for (const Field *f = table; f < table + n; f++)
        if (f->type >= T_text && !field_set(f, in, f->value, "default of ", f->name, "", &e))
            die("this is a mistake in a table of settings", "%s", e.what);
}

/* Of any type but text: what a range is compared with. */
static double number_at(const Field *f, const void *at)
{
    if (f->type == T_double)
        return *(const double *)at;
    return f->type == T_long ? (double)*(const long *)at : *(const int *)at;
}

bool field_in_range(const Field *f, const void *in)
{
    const char *low = f->allowed, *dots = strstr(low, "..");
    if (!dots)
        return true;
    double v = number_at(f, place(f, in));
    return (dots == low || v >= strtod(low, NULL)) && (!dots[2] || v <= strtod(dots + 2, NULL));
}

/* ---- text out ---- */

void field_text(const Field *f, const void *in, char *out, size_t size)
{
    const void *at = place(f, in);
    if (f->type == T_text)
        snprintf(out, size, "%s", *(const text *)at);
    else if (f->type == T_bool)
        snprintf(out, size, "%s", *(const bool *)at ? "true" : "false");
    else if (f->type == T_word)
        word_text(f->allowed, *(const word *)at, out, size);
    else if (f->type == T_double)
        double_text(*(const double *)at, out, size);
    else
        snprintf(out, size, "%ld", f->type == T_long ? *(const long *)at : *(const int *)at);
}
