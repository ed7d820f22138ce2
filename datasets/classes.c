/* classes.c - names of classes: files that list them, and which label a name has. See classes.h.
 *
 * Order: class files; numbered classes; order; names to labels; Unicode.
 */
#include "datasets/classes.h"
#include "util/files.h"
#include "util/text.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- class files ---- */

/* The number that a line carries, "3: cat", "3,cat", "cat,3", or "3 cat" (*plain: that may be a
 * name, as of "3 stars"); -1: none. */
static long number_in(const char *line, bool *plain)
{
    size_t digits = strspn(line, "0123456789"), n = strlen(line), last = n;
    while (last > 0 && line[last - 1] >= '0' && line[last - 1] <= '9')
        last--;
    *plain = digits > 0 && digits < n && strchr(" \t", line[digits]);
    if (digits > 0 && digits < 9 && digits < n && strchr(" \t:,;", line[digits]))
        return strtol(line, NULL, 10);
    if (last > 1 && last < n && n - last < 9 && strchr("\t:,;", line[last - 1]))
        return strtol(line + last, NULL, 10);
    return -1;
}

/* Lines from `first` on that carry all numbers from 0 or 1 on, each once; *moved: the first one
 * that stands elsewhere than its number says, -1: none. */
static bool are_numbered(const Names *l, int first, int *moved, bool *plain)
{
    int n = l->n - first, from = 1;
    bool *there = xcalloc((size_t)n + 2, sizeof *there), all = n > 1, blank;
    *plain = false;
    *moved = -1;
    for (int i = first; i < l->n; i++)
        from = number_in(l->at[i], &blank) == 0 ? 0 : from;
    for (int i = first; all && i < l->n; i++) {
        long k = number_in(l->at[i], &blank) - from;
        all = k >= 0 && k < n && !there[k];
        if (!all)
            break;
        there[k] = true;
        *plain |= blank;
        if (k != i - first && *moved < 0)
            *moved = i;
    }
    free(there);
    return all;
}

/* A line's place is its label: what says otherwise is no such list. */
static bool check_numbers(const Names *l, const char *path, Error *e)
{
    static bool said;
    int moved;
    bool plain, blank;
    if (l->n > 2 && number_in(l->at[0], &blank) < 0 && are_numbered(l, 1, &moved, &plain))
        return fail(e, "remove it: line 1 is class 0", "%s: line 1, '%.60s', is a heading", path,
                    l->at[0]);
    if (!are_numbered(l, 0, &moved, &plain) || moved < 0)
        return true;
    if (!plain)
        return fail(e, "a line's place is its label: sort the lines by their numbers",
                    "%s: line %d, '%.60s', carries another number than its place", path, moved + 1,
                    l->at[moved]);
    if (!said)
        warn("%s: line %d is '%.60s': a line's place is its label, not the number in it", path,
             moved + 1, l->at[moved]);
    said = true;
    return true;
}

bool classes_read(const char *path, Names *out, Error *e)
{
    static const char one_a_line[] = "name a text file with one class a line: `id` or `id name`";
    Error why;
    char *text = read_text(path, 64 << 20, &why), *rest = text, *line;
    long number = 0, empty = 0;
    if (!text)
        return fail(e, one_a_line, "%s", why.what);
    if (strncmp(rest, "\xEF\xBB\xBF", 3) == 0) /* the mark that some editors begin UTF-8 with */
        rest += 3;
    if (rest[strspn(rest, " \t\r\n")] && strchr("{[", rest[strspn(rest, " \t\r\n")])) {
        free(text);
        return fail(e, "write the names one a line, in the order of their labels",
                    "%s: is JSON or Python, not a list of lines", path);
    }
    while ((line = strsep(&rest, "\n"))) {
        number++;
        line += strspn(line, " \t\r");
        size_t n = strlen(line);
        while (n && strchr(" \t\r", line[n - 1]))
            line[--n] = '\0';
        if (n == 0) {
            empty = empty ? empty : number;
        } else if (empty) {
            fail(e, "a line's number is its label: remove the empty line",
                 "%s: line %ld is empty, but more classes follow", path, empty);
            free(text);
            return false;
        } else {
            names_add(out, line);
        }
    }
    free(text);
    if (out->n == 0)
        return fail(e, one_a_line, "%s: no classes", path);
    return check_numbers(out, path, e);
}

bool classes_have_ids(const Names *lines)
{
    bool two = true, digits = true;
    for (int i = 0; i < lines->n; i++) {
        const char *line = lines->at[i];
        size_t n = strcspn(line, " \t");
        two &= line[n] != '\0';
        digits &= strcspn(line, "0123456789") < n;
    }
    return two || digits;
}

bool classes_number(Names *out, int n, const char *file, const char *list, Error *e)
{
    if (file) {
        if (!classes_read(file, out, e))
            return false;
        return out->n == n || fail(e, "give one line per class, in label order",
                                   "%s has %s, the data %d", file, amount(out->n, "class").s, n);
    }
    Error ignored;
    if (list && path_exists(list) && classes_read(list, out, &ignored) && out->n == n)
        return true;
    names_free(out);
    for (int k = 0; k < n; k++) {
        char number[16];
        snprintf(number, sizeof number, "%d", k);
        names_add(out, number);
    }
    return true;
}

/* ---- order ---- */

/* Text and numbers in turn, as they are split at runs of digits: an end comes before more of the
 * same text, whatever follows. Equal ones are told apart by their bytes. */
static int natural(const char *a, const char *b, bool any_case)
{
    static const char digits[] = "0123456789";
    const char *whole = a, *other = b;
    for (;;) {
        size_t n = strcspn(a, digits), m = strcspn(b, digits), least = n < m ? n : m;
        int order = any_case ? strncasecmp(a, b, least) : strncmp(a, b, least);
        if (order == 0)
            order = (n > m) - (n < m);
        if (order)
            return order;
        a += n;
        b += m;
        if (!*a || !*b)
            return *a || *b ? (*a != 0) - (*b != 0) : strcmp(whole, other);
        a += strspn(a, "0");
        b += strspn(b, "0");
        n = strspn(a, digits);
        m = strspn(b, digits);
        order = n == m ? strncmp(a, b, n) : (n > m) - (n < m);
        if (order)
            return order;
        a += n;
        b += m;
    }
}

static int by_order(const void *a, const void *b, void *order)
{
    const char *x = *(char *const *)a, *y = *(char *const *)b;
    return *(int *)order == ORDER_BYTE ? strcmp(x, y) : natural(x, y, *(int *)order == ORDER_TIMM);
}

void classes_sort(Names *l, int order)
{
    if (l->n > 1)
        qsort_r(l->at, (size_t)l->n, sizeof *l->at, by_order, &order);
}

void classes_distinct(Names *l)
{
    int n = 0;
    names_sort(l);
    for (int i = 0; i < l->n; i++) {
        if (n && strcmp(l->at[i], l->at[n - 1]) == 0)
            free(l->at[i]);
        else
            l->at[n++] = l->at[i];
    }
    l->n = n;
}

bool classes_orders_differ(const Names *l)
{
    bool differ = false;
    Names bytes = {0}, timm = {0};
    for (int k = 0; k < l->n; k++) {
        names_add(&bytes, l->at[k]);
        names_add(&timm, l->at[k]);
    }
    classes_sort(&bytes, ORDER_BYTE);
    classes_sort(&timm, ORDER_TIMM);
    for (int k = 0; k < l->n; k++)
        differ |= strcmp(bytes.at[k], timm.at[k]) != 0;
    names_free(&bytes);
    names_free(&timm);
    return differ;
}

/* ---- names to labels ---- */

typedef struct {
    const char *text;
    int n; /* bytes of it */
    int label;
    bool id; /* it is the line's first word */
} ClassKey;

/* Two keys a line, sorted. */
struct ClassKeys {
    const char *list;
    int n;
    ClassKey *key;
};

static int compare(const ClassKey *k, const char *text, int n)
{
    int order = memcmp(k->text, text, (size_t)(k->n < n ? k->n : n));
    return order ? order : k->n - n;
}

/* A line before another's first word. */
static int by_key(const void *a, const void *b)
{
    const ClassKey *x = a, *y = b;
    int order = compare(x, y->text, y->n);
    return order ? order : x->id - y->id;
}

ClassKeys *class_keys(const Names *classes, const char *list, Error *e)
{
    ClassKeys *k = xmalloc(sizeof *k);
    *k = (ClassKeys){list, 2 * classes->n, xcalloc((size_t)classes->n, 2 * sizeof(ClassKey))};
    for (int i = 0; i < classes->n; i++) {
        const char *line = classes->at[i];
        k->key[2 * i] = (ClassKey){line, (int)strlen(line), i, false};
        k->key[2 * i + 1] = (ClassKey){line, (int)strcspn(line, " \t"), i, true};
    }
    qsort(k->key, (size_t)k->n, sizeof *k->key, by_key);
    for (int i = 1; i < k->n; i++) {
        const ClassKey *a = &k->key[i - 1], *b = &k->key[i];
        if (b->id || compare(a, b->text, b->n) != 0)
            continue;
        fail(e, "every class stands once", "%s: lines %d and %d are both '%s'", list, a->label + 1,
             b->label + 1, b->text);
        class_keys_free(k);
        return NULL;
    }
    return k;
}

int class_label(const ClassKeys *k, const char *name)
{
    int lo = 0, hi = k->n, n = (int)strlen(name); /* first key >= name */
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (compare(&k->key[mid], name, n) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    const ClassKey *key = k->key + lo;
    if (lo == k->n || compare(key, name, n) != 0)
        return -1;
    bool again = key->id && lo + 1 < k->n && compare(key + 1, name, n) == 0;
    return again ? -2 : key->label;
}

/* ---- Unicode ---- */

/* What is left of a name if nobody cares which letters beyond ASCII it has: \1 for each, with its
 * marks. Returns whether it has marks that stand behind their letters: accents (U+0300 to 036F), of
 * Kana (U+3099, 309A), or Hangul's parts (U+1160 to 11FF). */
static bool blur(const char *name, int n, char *out)
{
    bool marks = false;
    char *to = out;
    for (int i = 0, bytes; i < n; i += bytes) {
        uint8_t c[3] = {(uint8_t)name[i], (uint8_t)(i + 1 < n ? name[i + 1] : 0),
                        (uint8_t)(i + 2 < n ? name[i + 2] : 0)};
        bytes = 1 + (c[0] >= 0xC0) + (c[0] >= 0xE0) + (c[0] >= 0xF0);
        bool accent = c[0] == 0xCC || (c[0] == 0xCD && c[1] < 0xB0);
        bool kana = c[0] == 0xE3 && c[1] == 0x82 && (c[2] == 0x99 || c[2] == 0x9A);
        bool hangul =
            c[0] == 0xE1 && (c[1] == 0x86 || c[1] == 0x87 || (c[1] == 0x85 && c[2] >= 0xA0));
        marks |= accent || kana || hangul;
        if (to > out && (accent || kana || hangul))
            to[-1] = '\1';
        else
            *to++ = bytes > 1 ? '\1' : name[i];
    }
    *to = '\0';
    return marks;
}

/* Whether the list seems to have the name in Unicode's other form, composed or not. */
static bool has_other_form(const ClassKeys *k, const char *name)
{
    int n = (int)strlen(name);
    char *seen = xmalloc((size_t)n + 1), *other = NULL;
    bool marks = blur(name, n, seen), found = false;
    for (int i = 0; i < k->n && !found; i++) {
        other = xrealloc(other, (size_t)k->key[i].n + 1);
        found = blur(k->key[i].text, k->key[i].n, other) != marks && strcmp(seen, other) == 0;
    }
    free(seen);
    free(other);
    return found;
}

/* What the list is of shows in its first line: "0,ant" is no class. */
static const char *first_line(const ClassKeys *k)
{
    int i = 0;
    while (i < k->n && (k->key[i].label || k->key[i].id))
        i++;
    return i < k->n ? k->key[i].text : "";
}

/* The name as the list has it in other letter case, or NULL. */
static const ClassKey *in_other_case(const ClassKeys *k, const char *name)
{
    size_t n = strlen(name);
    for (int i = 0; i < k->n; i++)
        if ((size_t)k->key[i].n == n && strncasecmp(k->key[i].text, name, n) == 0)
            return &k->key[i];
    return NULL;
}

int class_label_of(const ClassKeys *k, const char *name, const char *what, Error *e)
{
    int label = class_label(k, name);
    if (label >= 0)
        return label;
    const ClassKey *other = in_other_case(k, name);
    if (label == -2)
        fail(e, "add it there, or move the folder away", "%s is on more than one line of %s", what,
             k->list);
    else if (has_other_form(k, name))
        fail(e,
             "copy the name from one to the other, or rename with convmv --nfc: accents are stored "
             "with their letters (NFC) or behind them (NFD, on some Macs)",
             "%s is not in %s, but a name that looks the same: Unicode has two forms of it", what,
             k->list);
    else if (other)
        fail(e, "write it alike in both: capitals count", "%s is not in %s, but '%.*s' is", what,
             k->list, other->n, other->text);
    else {
        char hint[128];
        snprintf(hint, sizeof hint, "add it there (the first one is '%.60s'), or move it away",
                 first_line(k));
        fail(e, hint, "%s is not in %s", what, k->list);
    }
    return -1;
}

void class_keys_free(ClassKeys *k)
{
    if (!k)
        return;
    free(k->key);
    free(k);
}
