/* torch_zip.c - files of torch.save. See torch_zip.h.
 *
 * A tensor is torch._utils._rebuild_tensor_v2(storage, offset, shape, stride, ...), whose storage
 * is a persistent object named ("storage", torch.FloatStorage, key, device, elements); a parameter
 * is _rebuild_parameter(tensor, ...). Offsets, shapes and strides are checked against the bytes of
 * the storage's member.
 *
 * Read in this order: storages, one tensor, nested dicts, the archive.
 */
#include "weights/torch_zip.h"

#include "util/pickle.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char hint[] = "in Python: torch.save(model.state_dict(), 'weights.pth'), or "
                           "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')";

/* Whose objects may stand in the file: they are looked past, and nothing of them is called. */
static const char *const modules[] = {"torch",   "collections",     "argparse",     "numpy",
                                      "pathlib", "omegaconf",       "typing",       "yacs",
                                      "timm",    "__builtin__ set", "builtins set", NULL};

typedef struct {
    SafeTensors *f;
    const Zip *zip;
    const char *root; /* "archive/", which all members begin with */
    const Pickle *pickle;
    int tensors;
    long entries; /* seen so far, in all dicts */
    Error *e;
} Reader;

/* ---- storages ---- */

static const struct {
    const char *name;
    StType type;
} storages[] = {{"torch FloatStorage", ST_F32},     {"torch HalfStorage", ST_F16},
                {"torch BFloat16Storage", ST_BF16}, {"torch DoubleStorage", ST_F64},
                {"torch LongStorage", ST_I64},      {"torch IntStorage", ST_I32},
                {"torch ShortStorage", ST_I16},     {"torch CharStorage", ST_I8},
                {"torch ByteStorage", ST_U8},       {"torch BoolStorage", ST_BOOL}};

static const ZipMember *find_member(const Reader *r, const char *name, size_t n)
{
    char *full = xasprintf("%s%.*s", r->root, (int)n, name);
    const ZipMember *found = NULL;
    for (int i = 0; i < r->zip->count && !found; i++)
        if (strcmp(r->zip->member[i].name, full) == 0)
            found = &r->zip->member[i];
    free(full);
    return found;
}

/* Its type and its member; NULL for what is no storage of these. */
static const ZipMember *find_storage(const Reader *r, const PickleItem *storage, StType *type)
{
    const PickleItem *name = pickle_at(r->pickle, storage, 0);
    const PickleItem *kind = pickle_at(r->pickle, name, 1), *key = pickle_at(r->pickle, name, 2);
    if (!storage || storage->kind != PICKLE_PERSISTENT || name->kind != PICKLE_TUPLE || !key ||
        !pickle_is(pickle_at(r->pickle, name, 0), "storage") || key->kind != PICKLE_TEXT ||
        key->n > 100)
        return NULL;
    int k = 0;
    while (k < COUNT(storages) && !pickle_is_object(r->pickle, kind, storages[k].name))
        k++;
    if (k == COUNT(storages))
        return NULL;
    *type = storages[k].type;
    char *member = xasprintf("data/%.*s", (int)key->n, (const char *)key->bytes);
    const ZipMember *m = find_member(r, member, strlen(member));
    free(member);
    return m;
}

/* ---- one tensor ---- */

/* A tuple of numbers from 0 on. */
static bool read_numbers(const Reader *r, const PickleItem *tuple, long *out, int *n)
{
    if (!tuple || tuple->kind != PICKLE_TUPLE || tuple->count > ST_MAX_DIMS)
        return false;
    *n = (int)tuple->count;
    for (int d = 0; d < *n; d++) {
        const PickleItem *i = pickle_at(r->pickle, tuple, d);
        if (i->kind != PICKLE_NUMBER || i->number < 0 || i->number > INT64_MAX / 16)
            return false;
        out[d] = i->number;
    }
    return true;
}

/* Whether the last element of the piece, `offset` elements in, is among the storage's. */
static bool is_within(const StPiece *p, long offset, uint64_t bytes)
{
    long last = offset, n = 1, step;
    for (int d = 0; d < p->ndim; d++)
        if (p->shape[d] == 0)
            return true;
    for (int d = 0; d < p->ndim; d++)
        if (__builtin_mul_overflow(p->shape[d] - 1, p->stride[d], &step) ||
            __builtin_add_overflow(last, step, &last) ||
            __builtin_mul_overflow(n, p->shape[d], &n) || (uint64_t)n > bytes)
            return false;
    return (uint64_t)last < bytes / (uint64_t)st_type_bytes(p->type);
}

static bool add_tensor(Reader *r, const char *name, const PickleItem *args)
{
    StPiece p = {0};
    int strides = 0;
    const PickleItem *offset = pickle_at(r->pickle, args, 1);
    const ZipMember *m = find_storage(r, pickle_at(r->pickle, args, 0), &p.type);
    bool known = m && offset && offset->kind == PICKLE_NUMBER && offset->number >= 0 &&
                 read_numbers(r, pickle_at(r->pickle, args, 2), p.shape, &p.ndim) &&
                 read_numbers(r, pickle_at(r->pickle, args, 3), p.stride, &strides) &&
                 strides == p.ndim;
    if (!known)
        return fail(r->e, hint, "%s: tensor %.150s is described in a way that is not known here",
                    r->f->path, name);
    if (m->method != ZIP_STORED || !is_within(&p, offset->number, m->size))
        return fail(r->e, hint, "%s: tensor %.150s is not within its storage of %" PRIu64 " bytes",
                    r->f->path, name, m->size);
    p.data = m->bytes;
    if (offset->number < (long)m->size) /* an empty one may begin behind the end */
        p.data += offset->number * st_type_bytes(p.type);
    st_add_piece(st_add(r->f, name, p.type, p.ndim, p.shape), p);
    r->tensors++;
    return true;
}

/* ---- nested dicts ---- */

enum { DEEPEST = 8, LONGEST = 180, MOST_ENTRIES = 1 << 20 }; /* dicts may hold each other */

static bool add_dict(Reader *r, const char *path, const PickleItem *dict, int depth);

/* What is neither a tensor nor a dict of them is no matter. */
static bool add_value(Reader *r, const char *name, const PickleItem *value, int depth)
{
    static const char rebuild[] = "torch._utils _rebuild_tensor_v2";
    static const char old_rebuild[] = "torch._utils _rebuild_tensor";
    static const char parameter[] = "torch._utils _rebuild_parameter";
    if (pickle_is_object(r->pickle, value, parameter))
        value = pickle_at(r->pickle, pickle_at(r->pickle, value, 1), 0);
    if (value && value->kind == PICKLE_OBJECT &&
        (pickle_is_object(r->pickle, value, rebuild) ||
         pickle_is_object(r->pickle, value, old_rebuild)))
        return add_tensor(r, name, pickle_at(r->pickle, value, 1));
    if (value && value->kind == PICKLE_DICT && depth < DEEPEST)
        return add_dict(r, name, value, depth + 1);
    return true;
}

/* Keys are texts; those of an optimiser's state are numbers, and it is no matter here. */
static bool add_dict(Reader *r, const char *path, const PickleItem *dict, int depth)
{
    for (long i = 0; i + 1 < dict->count; i += 2) {
        const PickleItem *key = pickle_at(r->pickle, dict, i);
        char name[LONGEST + 2];
        if (r->entries++ == MOST_ENTRIES)
            return fail(r->e, hint, "%s: more than %d values", r->f->path, MOST_ENTRIES);
        if (key->kind != PICKLE_TEXT || key->n + strlen(path) > LONGEST)
            continue;
        snprintf(name, sizeof name, "%s%s%.*s", path, *path ? "." : "", (int)key->n,
                 (const char *)key->bytes);
        for (char *c = name; *c; c++)
            *c = *c < ' ' || *c == 0x7f ? '?' : *c;
        if (!add_value(r, name, pickle_at(r->pickle, dict, i + 1), depth))
            return false;
    }
    return true;
}

/* ---- the archive ---- */

static const char pickle_name[] = "/data.pkl";

static const ZipMember *find_pickle(const Zip *z)
{
    for (int i = 0; i < z->count; i++) {
        const char *slash = strchr(z->member[i].name, '/');
        if (slash && strcmp(slash, pickle_name) == 0)
            return &z->member[i];
    }
    return NULL;
}

bool torch_is_zip(const Zip *z)
{
    return find_pickle(z) != NULL;
}

static bool read_pickle(Reader *r)
{
    const PickleItem *root = pickle_root(r->pickle);
    if (root->kind != PICKLE_DICT)
        return fail(r->e, hint, "%s: holds a Python object, not a dict of tensors", r->f->path);
    return add_dict(r, "", root, 0) &&
           (r->tensors || fail(r->e, hint, "%s: there is no tensor in it", r->f->path));
}

bool torch_read(SafeTensors *f, const Zip *z, Error *e)
{
    const ZipMember *m = find_pickle(z);
    Reader r = {.f = f, .zip = z, .e = e};
    char *root = xasprintf("%.*s", (int)(strlen(m->name) + 1 - strlen(pickle_name)), m->name);
    r.root = root;
    uint8_t *made = NULL;
    const ZipMember *order = find_member(&r, "byteorder", 9);
    bool little = !order || order->size != 3 || memcmp(order->bytes, "big", 3) != 0;
    const uint8_t *bytes = zip_bytes(m, f->path, &made, e);
    bool ok = bytes && (little || fail(e, hint, "%s: was saved on a big-endian machine", f->path));
    Pickle *p = ok ? pickle_open(bytes, m->size, f->path, modules, hint, e) : NULL;
    r.pickle = p;
    ok = p && read_pickle(&r) && st_index(f, e);
    pickle_close(p);
    free(made);
    free(root);
    return ok;
}
