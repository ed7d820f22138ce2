/* export_list.c - the tensors of a file in another program's form, in memory. See export_list.h.
 *
 * Read in this order: lists, by tables, tokens and positions, heads, JSON.
 */
#include "weights/export_list.h"

#include "util/files.h"
#include "weights/names.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

void export_note(Export *x, const char *fmt, ...)
{
    size_t at = strlen(x->notes);
    va_list args;
    va_start(args, fmt);
    if (at && at + 2 < sizeof x->notes)
        at += (size_t)snprintf(x->notes + at, sizeof x->notes - at, "; ");
    vsnprintf(x->notes + at, sizeof x->notes - at, fmt, args);
    va_end(args);
}

/* ---- lists ---- */

/* `values` becomes the list's. */
void list_add(List *l, const char *name, real *values, int ndim, const int *shape)
{
    l->at = xgrow(l->at, l->n, sizeof *l->at);
    NpzArray *a = &l->at[l->n++];
    *a = (NpzArray){.name = xstrdup(name), .ndim = ndim, .values = values, .n = 1};
    for (int d = 0; d < ndim; d++) {
        a->shape[d] = shape[d];
        a->n *= shape[d];
    }
}

void list_free(List *l)
{
    for (int i = 0; i < l->n; i++) {
        free(l->at[i].name);
        free(l->at[i].values);
    }
    free(l->at);
}

real *list_copy(const real *x, long n)
{
    return memcpy(xmalloc((size_t)n * sizeof *x), x, (size_t)n * sizeof *x);
}

real *list_zeros(long n)
{
    return xcalloc((size_t)n, sizeof(real));
}

/* Ours, which is known to be there: weights_open has seen it. */
real *export_values(const Export *x, const char *name)
{
    Error e;
    long n;
    real *v = weights_values(x->f, name, &n, &e);
    if (!v)
        die(e.hint, "%s", e.what);
    return v;
}

static bool write_safetensors(const List *l, const char *file, Error *e)
{
    StWriter *w = st_create(file);
    uint64_t at = 0;
    st_add_meta(w, "format", "pt");
    for (int i = 0; i < l->n; i++)
        st_add_tensor(w, l->at[i].name, ST_REAL, l->at[i].ndim, l->at[i].shape);
    bool ok = st_begin(w, 0, e);
    for (int i = 0; ok && i < l->n; i++) {
        size_t bytes = (size_t)l->at[i].n * sizeof(real);
        ok = st_write(w, at, l->at[i].values, bytes, e);
        at += bytes;
    }
    if (ok)
        return st_finish(w, 0, e);
    st_abandon(w);
    return false;
}

/* ---- by tables ---- */

/* Whether `name` is the pattern; *block is the number in place of its `#`. */
static bool fits(const char *pattern, const char *name, int *block)
{
    const char *hash = strchr(pattern, '#'), *rest = name;
    *block = -1;
    if (hash && (*block = names_block(name, &rest)) < 0)
        return false;
    return strcmp(hash ? hash + 2 : pattern, rest) == 0;
}

/* Rows first .. first+rows-1 of ours [.., columns] in their order of axes. */
void list_add_part(const Export *x, List *l, const Name *n, const char *name, const StTensor *t,
                   const real *rows, int count)
{
    int H = x->c->heads, C = x->c->width, hs = C / H;
    long columns = t->n / t->shape[0];
    int in = (int)columns, P = x->c->patch;
    bool heads = strstr(n->theirs, "Attention_") != NULL; /* Google keeps them apart */
    real *v = list_copy(rows, count * columns);
    if (n->how == CONV) { /* [C, 3, P, P] -> [P, P, 3, C] */
        for (int o = 0; o < count; o++)
            for (int i = 0; i < in; i++)
                v[(long)(i % (P * P)) * 3 * count + (long)(i / (P * P)) * count + o] =
                    rows[(long)o * in + i];
        list_add(l, name, v, 4, (const int[]){P, P, 3, count});
    } else if (n->how == KERNEL || n->how == OUT_KERNEL) {
        for (int o = 0; o < count; o++)
            for (int i = 0; i < in; i++)
                v[(long)i * count + o] = rows[(long)o * in + i];
        if (heads && n->how == KERNEL)
            list_add(l, name, v, 3, (const int[]){in, H, hs});
        else if (heads)
            list_add(l, name, v, 3, (const int[]){H, hs, count});
        else
            list_add(l, name, v, 2, (const int[]){in, count});
    } else if (n->how == FLAT && heads) {
        list_add(l, name, v, 2, (const int[]){H, hs});
    } else {
        int shape[ST_MAX_DIMS] = {count};
        for (int d = 1; d < t->ndim; d++)
            shape[d] = (int)t->shape[d];
        list_add(l, name, v, t->ndim, shape);
    }
}

static int parts_of(const Name *names, const char *ours)
{
    int parts = 0;
    for (const Name *n = names; n->ours; n++)
        parts += strcmp(n->ours, ours) == 0;
    return parts;
}

/* What is made by hand: all but blocks, patches and norms. */
bool export_by_hand(const char *name)
{
    return names_is_head(name) || strcmp(name, "cls_token") == 0 || strcmp(name, "pos_embed") == 0;
}

/* Every tensor of ours that the table has, under prefix + theirs. */
bool list_add_by_table(const Export *x, List *l, const Name *names, const char *prefix, Error *e)
{
    for (int i = 0; i < x->f->count; i++) {
        const StTensor *t = &x->f->tensor[i];
        real *values = NULL;
        for (const Name *n = names; n->ours && !export_by_hand(t->name); n++) {
            int block, parts = parts_of(names, n->ours);
            long n_values;
            if (!fits(n->ours, t->name, &block) || n->how == FIRST_THIRD || n->how == LAST_THIRDS)
                continue;
            if (!values && !(values = weights_values(x->f, t->name, &n_values, e)))
                return false;
            const char *hash = strchr(n->theirs, '#');
            char name[NAME_SIZE], number[16] = "";
            if (hash)
                snprintf(number, sizeof number, "%d", block);
            snprintf(name, sizeof name, "%s%.*s%s%s", prefix,
                     hash ? (int)(hash - n->theirs) : (int)strlen(n->theirs), n->theirs, number,
                     hash ? hash + 1 : "");
            int rows = (int)t->shape[0] / parts;
            list_add_part(x, l, n, name, t, values + (long)rows * n->slot * (t->n / t->shape[0]),
                          rows);
        }
        free(values);
    }
    return true;
}

/* A tensor as it is. */
void list_add_same(const Export *x, List *l, const char *name, const char *theirs)
{
    const StTensor *t = st_find(x->f, name);
    int shape[ST_MAX_DIMS];
    for (int d = 0; d < t->ndim; d++)
        shape[d] = (int)t->shape[d];
    list_add(l, theirs, export_values(x, name), t->ndim, shape);
}

/* ---- tokens and positions ---- */

/* Tokens first .. first+n-1 before the patches, [1, n, C]. */
void list_add_tokens(const Export *x, List *l, const char *name, int first, int n)
{
    real *all = export_values(x, "cls_token");
    int C = x->c->width;
    list_add(l, name, list_copy(all + (long)first * C, (long)n * C), 3, (const int[]){1, n, C});
    free(all);
}

/* Positions [1, T, C]; `bias` is added to those of the patches, which are what it is added to. */
real *export_positions(const Export *x, bool bias)
{
    real *pos = export_values(x, "pos_embed"),
         *b = bias ? export_values(x, "patch_embed.proj.bias") : NULL;
    int C = x->c->width;
    for (long i = (long)x->c->cls_tokens * C; b && i < (long)vit_tokens(x->c) * C; i++)
        pos[i] += b[i % C];
    free(b);
    return pos;
}

/* Of a patch embedding that must have a bias. */
void list_add_zero_bias(const Export *x, List *l, const char *name)
{
    if (!x->c->patch_bias)
        list_add(l, name, list_zeros(x->c->width), 1, &x->c->width);
}

/* ---- heads ---- */

/* The head over two tokens as one for each, whose mean it is: W = [W0, W1] / 2. */
void list_add_two_heads(const Export *x, List *l, const char *first, const char *second)
{
    int C = x->c->width, K = x->c->classes;
    real *w = export_values(x, "head.weight"), *b = export_values(x, "head.bias");
    const char *names[] = {first, second};
    for (int h = 0; h < 2; h++) {
        real *half = xmalloc((size_t)K * (size_t)C * sizeof *half);
        for (long i = 0; i < (long)K * C; i++)
            half[i] = 2 * w[i / C * 2 * C + h * C + i % C];
        char name[NAME_SIZE];
        snprintf(name, sizeof name, "%s.weight", names[h]);
        list_add(l, name, half, 2, (const int[]){K, C});
        snprintf(name, sizeof name, "%s.bias", names[h]);
        list_add(l, name, list_copy(b, K), 1, &K);
    }
    free(w);
    free(b);
}

/* ---- JSON ---- */

cJSON *export_sides(const Config *c)
{
    if (c->image_h == c->image_w)
        return cJSON_CreateNumber(c->image_h);
    return cJSON_CreateIntArray((const int[]){c->image_h, c->image_w}, 2);
}

cJSON *export_mean(const Config *c)
{
    return cJSON_CreateDoubleArray((const double[]){c->mean_r, c->mean_g, c->mean_b}, 3);
}

cJSON *export_std(const Config *c)
{
    return cJSON_CreateDoubleArray((const double[]){c->std_r, c->std_g, c->std_b}, 3);
}

const char *export_label(const Export *x, int k, char number[24])
{
    snprintf(number, 24, "LABEL_%d", k); /* as transformers calls them */
    return x->labels && x->labels[k] ? x->labels[k] : number;
}

/* The object is freed. */
bool export_json(cJSON *json, const char *dir, const char *name, Error *e)
{
    char *path = xasprintf("%s/%s", dir, name), *text = cJSON_Print(json);
    bool ok = text ? save_text(path, text, e) : fail(e, "free some", "%s: out of memory", path);
    cJSON_free(text);
    cJSON_Delete(json);
    free(path);
    return ok;
}

bool list_write(const List *l, const char *dir, Error *e)
{
    char *path = xasprintf("%s/model.safetensors", dir);
    bool ok = write_safetensors(l, path, e);
    free(path);
    return ok;
}
