/* classes.c - names of classes: files that list them, and which label a name has. See classes.h.
 *
 * Order: class files; numbered classes; names to labels.
 */
#include "datasets/classes.h"
#include "util/files.h"

#include <stdlib.h>
#include <string.h>

/* ---- class files ---- */

bool classes_read(const char *path, Names *out, Error *e)
{
    static const char one_a_line[] = "name a text file with one class a line: `id` or `id name`";
    Error why;
    char *text = read_text(path, 64 << 20, &why), *rest = text, *line;
    long number = 0, empty = 0;
    if (!text)
        return fail(e, one_a_line, "%s", why.what);
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
    return out->n > 0 || fail(e, one_a_line, "%s: no classes", path);
}

bool classes_number(Names *out, int n, const char *file, const char *list, Error *e)
{
    if (file) {
        if (!classes_read(file, out, e))
            return false;
        return out->n == n || fail(e, "give one line per class, in label order",
                                   "%s has %d classes, the data %d", file, out->n, n);
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

/* ---- names to labels ---- */

typedef struct {
    const char *text;
    int n; /* bytes of it */
    int label;
    bool id; /* it is the line's first word */
} ClassKey;

/* Two keys a line, sorted. */
struct ClassKeys {
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
    *k = (ClassKeys){2 * classes->n, xcalloc((size_t)classes->n, 2 * sizeof(ClassKey))};
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

void class_keys_free(ClassKeys *k)
{
    if (!k)
        return;
    free(k->key);
    free(k);
}
