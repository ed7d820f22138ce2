/* names.c - lists of names, and what the braces of a pattern stand for. See names.h.
 *
 * Read in this order: lists, ranges, walking through a pattern.
 */
#include "util/names.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- lists of names ---- */

void names_add(Names *l, const char *s)
{
    l->at = xgrow(l->at, l->n, sizeof *l->at);
    l->at[l->n++] = xstrdup(s);
}

void names_free(Names *l)
{
    for (int i = 0; i < l->n; i++)
        free(l->at[i]);
    free(l->at);
    *l = (Names){0};
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

void names_sort(Names *l)
{
    if (l->n > 1)
        qsort(l->at, (size_t)l->n, sizeof(char *), by_name);
}

bool names_in(const char *dir, const char *ending, Names *out, Error *e)
{
    DIR *d = opendir(dir);
    if (!d)
        return fail(e, "check the path and its permissions", "cannot read the directory %s: %s",
                    dir, strerror(errno));
    size_t end = strlen(ending);
    for (struct dirent *f; (f = readdir(d));) {
        size_t n = strlen(f->d_name);
        if (n >= end && strcmp(f->d_name + n - end, ending) == 0)
            names_add(out, f->d_name);
    }
    closedir(d);
    names_sort(out);
    return true;
}

/* ---- braces ----
 *
 * A pattern is a row of plain characters and groups; its names are the product of its groups'
 * alternatives, the last group changing fastest. So the number of names is known before the first
 * is made, and name k is found by dividing k by the groups' counts: nothing is stored in between.
 */

enum { MAX_NAMES = 10000000, MAX_PATTERN = 4096, MAX_DEPTH = 16 };
static const uint64_t MAX_NAME_BYTES = 1u << 30; /* of all names of a pattern */

typedef struct {
    long first, step, count;
    int width; /* zero-padded to so many characters, the sign included */
} Range;

/* A whole number of at most 18 digits; where it ends, or NULL. */
static const char *read_whole(const char *s, const char *end, long *n)
{
    bool minus = s < end && *s == '-';
    const char *digit = s + minus;
    long v = 0;
    for (s = digit; s < end && *s >= '0' && *s <= '9' && s - digit < 18; s++)
        v = 10 * v + (*s - '0');
    *n = minus ? -v : v;
    return s > digit && !(s < end && *s >= '0' && *s <= '9') ? s : NULL;
}

/* `{0..9}` and `{0..9..2}`, between the braces. As in bash: counts down where the second end is the
 * lower one, whatever the sign of the step; padded to the wider end if either begins with a 0. */
static bool read_range(const char *s, const char *end, Range *r)
{
    long last, step = 1;
    const char *a = s, *dots = read_whole(a, end, &r->first);
    if (!dots || end - dots < 3 || dots[0] != '.' || dots[1] != '.')
        return false;
    const char *b = dots + 2, *stop = read_whole(b, end, &last);
    if (!stop)
        return false;
    if (stop < end && (end - stop < 3 || stop[0] != '.' || stop[1] != '.' ||
                       read_whole(stop + 2, end, &step) != end || step == 0))
        return false;
    bool zero = (a[*a == '-'] == '0' && dots - a > 1 + (*a == '-')) ||
                (b[*b == '-'] == '0' && stop - b > 1 + (*b == '-'));
    long wider = dots - a > stop - b ? dots - a : stop - b;
    r->width = zero ? (int)wider : 0;
    r->step = step < 0 ? -step : step;
    long distance = last < r->first ? r->first - last : last - r->first;
    r->count = distance / r->step + 1;
    if (last < r->first)
        r->step = -r->step;
    return true;
}

/* Where the part that begins at s ends: at the first `stop` outside inner groups, or at `end`. A
 * backslash takes the next character as it is. */
static const char *part_end(const char *s, const char *end, char stop)
{
    int depth = 0;
    for (; s < end; s++) {
        if (depth == 0 && *s == stop)
            return s;
        if (*s == '\\' && s + 1 < end)
            s++;
        else if (*s == '{')
            depth++;
        else if (*s == '}')
            depth--;
    }
    return end;
}

/* Products and sums of counts stay at most one beyond what is allowed. */
static long capped(long n)
{
    return n > MAX_NAMES ? MAX_NAMES + 1 : n;
}

/* Both of the following return how many names the text from s to end stands for; 0 and an error if
 * it is no pattern. With `out` they also write name k of these, and move *out behind it. */
static long walk_names(const char *s, const char *end, int depth, long k, long names, char **out,
                       Error *e);

/* A group, between its braces. */
static long walk_group(const char *s, const char *end, int depth, long k, char **out, Error *e)
{
    Range r;
    if (read_range(s, end, &r)) {
        if (out) /* never wider than the wider end */
            *out += sprintf(*out, "%0*ld", r.width, r.first + k * r.step);
        return capped(r.count);
    }
    const char *comma = part_end(s, end, ',');
    if (comma == end) {
        fail(e, "braces hold a list {a,b} or a range {000000..000146}; write \\{ for a plain brace",
             "{%.*s} is neither a list nor a range", (int)(end - s > 60 ? 60 : end - s), s);
        return 0;
    }
    long sum = 0;
    for (;; comma = part_end(s, end, ',')) {
        long n = walk_names(s, comma, depth, 0, 0, NULL, e);
        if (n == 0)
            return 0;
        if (out && k >= sum && k < sum + n)
            walk_names(s, comma, depth, k - sum, n, out, e);
        sum = capped(sum + n);
        if (comma == end)
            return sum;
        s = comma + 1;
    }
}

/* `names` is how many there are, where that is known already: for `out`. */
static long walk_names(const char *s, const char *end, int depth, long k, long names, char **out,
                       Error *e)
{
    long product = 1;
    if (depth > MAX_DEPTH) {
        fail(e, "use fewer braces inside braces", "braces are nested more than %d deep", MAX_DEPTH);
        return 0;
    }
    for (; s < end; s++) {
        if (*s == '}') {
            fail(e, "give each } its {, or write \\} for a plain brace", "a } without its {");
            return 0;
        }
        if (*s != '{') {
            s += *s == '\\' && s + 1 < end;
            if (out)
                *(*out)++ = *s;
            continue;
        }
        const char *group = s + 1;
        s = part_end(group, end, '}');
        if (s == end) {
            fail(e, "give each { its }, or write \\{ for a plain brace", "a { without its }");
            return 0;
        }
        long n = walk_group(group, s, depth + 1, 0, NULL, e);
        if (n == 0)
            return 0;
        product = capped(product * n);
        if (out) {
            names /= n; /* of what follows */
            walk_group(group, s, depth + 1, k / names % n, out, e);
        }
    }
    return product;
}

long brace_count(const char *pattern, Error *e)
{
    size_t length = strlen(pattern);
    Error why = {"", ""};
    if (length > MAX_PATTERN) {
        fail(e, "use a shorter pattern", "a pattern of %zu characters, at most %d are read", length,
             MAX_PATTERN);
        return 0;
    }
    long n = walk_names(pattern, pattern + length, 0, 0, 0, NULL, &why);
    if (n == 0)
        fail(e, why.hint, "%.200s: %s", pattern, why.what);
    else if (n > MAX_NAMES)
        fail(e, "use fewer or smaller ranges", "%.200s: more than %d names", pattern, MAX_NAMES);
    else if ((uint64_t)n * length > MAX_NAME_BYTES)
        fail(e, "use fewer or shorter names", "%.200s: %ld names of such a length", pattern, n);
    else
        return n;
    return 0;
}

bool brace_expand(const char *pattern, Names *out, Error *e)
{
    long n = brace_count(pattern, e);
    if (n == 0)
        return false;
    size_t length = strlen(pattern);
    char *name = xmalloc(length + 1); /* a group is longer than each name that it stands for */
    for (long k = 0; k < n; k++) {
        char *at = name;
        walk_names(pattern, pattern + length, 0, k, n, &at, e);
        *at = 0;
        names_add(out, name);
    }
    free(name);
    return true;
}
