/* classes.c - names of classes: files that list them, and which label a name has.
 *
 * Order: class files; numbered classes; names to labels.
 */
#include <stdlib.h>
#include <string.h>

#include "datasets/source.h"
#include "util/files.h"
#include "util/names.h"

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
    char *text;
    int label;
    bool id; /* text is the line's first word */
} ClassKey;

struct ClassKeys {
    int n;
    ClassKey *key; /* sorted */
    char *ids;     /* the first words */
};

static int by_key(const void *a, const void *b)
{
    const ClassKey *x = a, *y = b;
    int order = strcmp(x->text, y->text);
    return order ? order : x->id - y->id;
}

/* Two keys per line. */
ClassKeys *class_keys(const Names *classes, const char *list, Error *e)
{
    size_t size = 1, at = 0;
    for (int i = 0; i < classes->n; i++)
        size += strlen(classes->at[i]) + 1;
    ClassKeys *k = xmalloc(sizeof *k);
    *k = (ClassKeys){2 * classes->n, xmalloc(sizeof(ClassKey) * 2 * classes->n), xmalloc(size)};
    for (int i = 0; i < classes->n; i++) {
        size_t n = strcspn(classes->at[i], " \t");
        memcpy(k->ids + at, classes->at[i], n);
        k->ids[at + n] = '\0';
        k->key[2 * i] = (ClassKey){classes->at[i], i, false};
        k->key[2 * i + 1] = (ClassKey){k->ids + at, i, true};
        at += n + 1;
    }
    qsort(k->key, k->n, sizeof *k->key, by_key);
    for (int i = 1; i < k->n; i++)
        if (!k->key[i].id && strcmp(k->key[i].text, k->key[i - 1].text) == 0) {
            fail(e, "every class stands once", "%s: lines %d and %d are both '%s'", list,
                 k->key[i - 1].label + 1, k->key[i].label + 1, k->key[i].text);
            class_keys_free(k);
            return NULL;
        }
    return k;
}

int class_label(const ClassKeys *k, const char *name)
{
    int lo = 0, hi = k->n; /* first key >= name */
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (strcmp(k->key[mid].text, name) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    const ClassKey *key = k->key + lo;
    if (lo == k->n || strcmp(key->text, name) != 0)
        return -1;
    bool again = key->id && lo + 1 < k->n && strcmp(key[1].text, name) == 0;
    return again ? -2 : key->label;
}

void class_keys_free(ClassKeys *k)
{
    if (!k)
        return;
    free(k->key);
    free(k->ids);
    free(k);
}
