/* npz.c - numpy's archives of arrays. See npz.h.
 *
 * Format of .npy (numpy.lib.format): "\x93NUMPY", version, the length of a header (2 bytes, from
 * version 2 on 4), the header as a Python dict {'descr': '<f4', 'fortran_order': False, 'shape':
 * (3, 4), }, then the elements. Arrays of other types than the weights' are passed over: a
 * checkpoint also holds counters.
 */
#include "weights/npz.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char hint[] = "save it again with numpy.savez";

typedef struct {
    StType type;
    bool known; /* a type of weights or counters; others are passed over, */
    bool big;   /* or are these in the order of other machines */
    bool fortran;
    int ndim;
    long shape[ST_MAX_DIMS];
    uint64_t elements; /* where they begin in the member */
} Npy;

static const struct {
    const char *descr;
    StType type;
} descrs[] = {{"<f8", ST_F64}, {"<f4", ST_F32}, {"<f2", ST_F16}, {"<i8", ST_I64}, {"<i4", ST_I32},
              {"<i2", ST_I16}, {"|i1", ST_I8},  {"|u1", ST_U8},  {"|b1", ST_BOOL}};

/* What follows 'key': in the header, or NULL. */
static const char *value_of(const char *header, const char *key)
{
    const char *p = strstr(header, key);
    p = p ? p + strlen(key) : NULL;
    while (p && (*p == ':' || *p == ' '))
        p++;
    return p;
}

/* "(3, 4)", "(5,)", "()". */
static bool read_shape(const char *p, Npy *a)
{
    if (!p || *p++ != '(')
        return false;
    while (*p && *p != ')') {
        char *end;
        long n = strtol(p, &end, 10);
        if (end == p || n < 0 || a->ndim == ST_MAX_DIMS)
            return false;
        a->shape[a->ndim++] = n;
        for (p = end; *p == ',' || *p == ' ' || *p == 'L';)
            p++;
    }
    return *p == ')';
}

static bool read_npy(const uint8_t *bytes, uint64_t n, Npy *a)
{
    *a = (Npy){0};
    if (n < 12 || memcmp(bytes, "\x93NUMPY", 6) != 0)
        return false;
    uint64_t length = (uint64_t)bytes[8] | (uint64_t)bytes[9] << 8, start = 10;
    if (bytes[6] >= 2) {
        length |= (uint64_t)bytes[10] << 16 | (uint64_t)bytes[11] << 24;
        start = 12;
    }
    if (length > n - start || length > 1 << 20)
        return false;
    char *header = xasprintf("%.*s", (int)length, (const char *)bytes + start);
    const char *descr = value_of(header, "'descr'"), *order = value_of(header, "'fortran_order'");
    bool ok = descr && order && read_shape(value_of(header, "'shape'"), a);
    for (int i = 0; ok && i < COUNT(descrs); i++)
        if (*descr == '\'' && strncmp(descr + 2, descrs[i].descr + 1, 2) == 0 && descr[4] == '\'') {
            a->type = descrs[i].type;
            a->known = descr[1] == *descrs[i].descr;
            a->big = descr[1] == '>';
        }
    a->fortran = ok && strncmp(order, "True", 4) == 0;
    a->elements = start + length;
    free(header);
    return ok;
}

/* Whether all elements are in the member's n bytes. */
static bool is_whole(const Npy *a, uint64_t n)
{
    uint64_t need = (uint64_t)st_type_bytes(a->type);
    for (int d = 0; d < a->ndim; d++)
        if (__builtin_mul_overflow(need, (uint64_t)a->shape[d], &need))
            return false;
    return need <= n - a->elements;
}

/* Fortran's order: the first axis is the one whose elements are neighbours. */
static void add_array(SafeTensors *f, const char *name, const Npy *a, const uint8_t *elements)
{
    StTensor *t = st_add(f, name, a->type, a->ndim, a->shape);
    StPiece p = {.data = elements, .type = a->type, .ndim = a->ndim};
    long stride = 1;
    for (int i = 0; i < a->ndim; i++) {
        int d = a->fortran ? i : a->ndim - 1 - i;
        p.shape[d] = a->shape[d];
        p.stride[d] = stride;
        stride *= t->n ? a->shape[d] : 0;
    }
    st_add_piece(t, p);
}

static bool read_member(SafeTensors *f, const ZipMember *m, Error *e)
{
    Npy a;
    uint8_t *made;
    size_t length = strlen(m->name);
    if (length < 4 || strcmp(m->name + length - 4, ".npy") != 0)
        return true;
    m->name[length - 4] = 0;
    const uint8_t *bytes = zip_bytes(m, f->path, &made, e);
    if (!bytes)
        return false;
    if (made)
        st_own(f, made);
    if (!read_npy(bytes, m->size, &a))
        return fail(e, hint, "%s: %.150s is no array of numpy's", f->path, m->name);
    if (a.big)
        return fail(e, "save it again with a.astype(a.dtype.newbyteorder('='))",
                    "%s: %.150s is in the byte order of other machines (big-endian)", f->path,
                    m->name);
    if (!a.known)
        return true;
    if (!is_whole(&a, m->size))
        return fail(e, hint, "%s: %.150s: %" PRIu64 " bytes are too few for its shape", f->path,
                    m->name, m->size);
    add_array(f, m->name, &a, bytes + a.elements);
    return true;
}

bool npz_read(SafeTensors *f, const Zip *z, Error *e)
{
    for (int i = 0; i < z->count; i++)
        if (!read_member(f, &z->member[i], e))
            return false;
    return st_index(f, e);
}

/* Version 1.0; padded with blanks to a multiple of 64 bytes. free() it. */
static char *npy_header(const NpzArray *a, size_t *n)
{
    char shape[16 * ST_MAX_DIMS] = "";
    for (int d = 0; d < a->ndim; d++) {
        size_t at = strlen(shape);
        snprintf(shape + at, sizeof shape - at, "%d%s", a->shape[d],
                 a->ndim == 1      ? ","
                 : d + 1 < a->ndim ? ", "
                                   : "");
    }
    char *text = xasprintf("{'descr': '<f%d', 'fortran_order': False, 'shape': (%s), }",
                           (int)sizeof(real), shape);
    *n = (10 + strlen(text) + 1 + 63) / 64 * 64;
    size_t rest = *n - 10;
    char *header = xasprintf("\x93NUMPY%c%c%c%c%-*s\n", 1, 1, 1, 1, (int)rest - 1, text);
    const uint8_t numbers[] = {1, 0, (uint8_t)rest, (uint8_t)(rest >> 8)};
    memcpy(header + 6, numbers, sizeof numbers);
    free(text);
    return header;
}

bool npz_write(const char *path, const NpzArray *array, int n, Error *e)
{
    ZipEntry *entry = xcalloc((size_t)n, sizeof *entry);
    for (int i = 0; i < n; i++) {
        entry[i].name = xasprintf("%s.npy", array[i].name);
        entry[i].begin = npy_header(&array[i], &entry[i].begins);
        entry[i].rest = array[i].values;
        entry[i].n = (size_t)array[i].n * sizeof(real);
    }
    bool ok = zip_write(path, entry, n, e);
    for (int i = 0; i < n; i++) {
        free(entry[i].name);
        free(entry[i].begin);
    }
    free(entry);
    return ok;
}
