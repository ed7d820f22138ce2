/* torch.c - files of torch.save. See torch.h.
 *
 * A tensor is torch._utils._rebuild_tensor_v2(storage, offset, shape, stride, ...), whose storage
 * is a persistent object named ("storage", torch.FloatStorage, key, device, elements); a parameter
 * is _rebuild_parameter(tensor, ...). Offsets, shapes and strides are checked against the bytes of
 * the storage.
 *
 * Read in this order: storages, one tensor, nested dicts, timm's args, the archive, the old form.
 */
#include "weights/torch.h"

#include "util/pickle.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char hint[] = "in Python: torch.save(model.state_dict(), 'weights.pth'), or "
                           "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')";

/* Bytes of a storage; of the old form also the key and the type that it is named by. */
typedef struct {
    const uint8_t *bytes; /* NULL: there is none */
    uint64_t size;
    const PickleItem *key;
    StType type;
} Storage;

typedef struct {
    SafeTensors *f;
    const Zip *zip;   /* NULL in the old form */
    const char *root; /* "archive/", which all members begin with */
    Storage *storage; /* of the old form, by key */
    long storages;
    const Pickle *pickle;
    int tensors;
    long entries; /* seen so far, in all dicts */
    char *other;  /* the first value that might be a tensor, and is not read: its name, */
    int kind;     /* and which of `others` it is */
    Error *e;
} Reader;

/* ---- storages ---- */

static const struct {
    const char *name;
    StType type;
} storages[] = {{"torch FloatStorage", ST_F32},         {"torch HalfStorage", ST_F16},
                {"torch BFloat16Storage", ST_BF16},     {"torch DoubleStorage", ST_F64},
                {"torch LongStorage", ST_I64},          {"torch IntStorage", ST_I32},
                {"torch ShortStorage", ST_I16},         {"torch CharStorage", ST_I8},
                {"torch ByteStorage", ST_U8},           {"torch BoolStorage", ST_BOOL},
                {"torch.storage UntypedStorage", ST_U8}}; /* of the types that follow */

/* Which _rebuild_tensor_v3 names by themselves. Their tensors are listed, and refused when one is
 * asked for its numbers. */
static const struct {
    const char *name;
    StType type;
} dtypes[] = {{"torch float8_e4m3fn", ST_F8_E4M3},
              {"torch float8_e5m2", ST_F8_E5M2},
              {"torch uint16", ST_U16},
              {"torch uint32", ST_U32},
              {"torch uint64", ST_U64}};

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

static int compare_storage(const void *a, const void *b)
{
    const PickleItem *x = ((const Storage *)a)->key, *y = ((const Storage *)b)->key;
    if (x->n != y->n)
        return x->n < y->n ? -1 : 1;
    return memcmp(x->bytes, y->bytes, x->n);
}

static Storage *find_old(const Reader *r, const PickleItem *key)
{
    const Storage wanted = {.key = key};
    return r->storages
               ? bsearch(&wanted, r->storage, (size_t)r->storages, sizeof wanted, compare_storage)
               : NULL;
}

/* A persistent object that names a storage, ("storage", type, key, ...), as key and type. */
static bool read_storage(const Reader *r, const PickleItem *storage, Storage *s)
{
    const PickleItem *name = pickle_at(r->pickle, storage, 0);
    const PickleItem *kind = pickle_at(r->pickle, name, 1), *key = pickle_at(r->pickle, name, 2);
    const PickleItem *view = pickle_at(r->pickle, name, 5); /* a part of another, before 1.0 */
    if (!storage || storage->kind != PICKLE_PERSISTENT || name->kind != PICKLE_TUPLE || !key ||
        !pickle_is(pickle_at(r->pickle, name, 0), "storage") || key->kind != PICKLE_TEXT ||
        key->n > 100 || (view && view->kind != PICKLE_NONE))
        return false;
    int k = 0;
    while (k < COUNT(storages) && !pickle_is_object(r->pickle, kind, storages[k].name))
        k++;
    if (k == COUNT(storages))
        return false;
    *s = (Storage){.key = key, .type = storages[k].type};
    return true;
}

/* Its type and its bytes; false for what is no storage of these. */
static bool find_storage(const Reader *r, const PickleItem *storage, Storage *s)
{
    if (!read_storage(r, storage, s))
        return false;
    if (!r->zip) {
        const Storage *old = find_old(r, s->key);
        s->bytes = old ? old->bytes : NULL;
        s->size = old ? old->size : 0;
        return s->bytes != NULL;
    }
    char *member = xasprintf("data/%.*s", (int)s->key->n, (const char *)s->key->bytes);
    const ZipMember *m = find_member(r, member, strlen(member));
    free(member);
    if (!m || m->method != ZIP_STORED)
        return false;
    s->bytes = m->bytes;
    s->size = m->size;
    return true;
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
    Storage s;
    bool known = find_storage(r, pickle_at(r->pickle, args, 0), &s) && offset &&
                 offset->kind == PICKLE_NUMBER && offset->number >= 0 &&
                 read_numbers(r, pickle_at(r->pickle, args, 2), p.shape, &p.ndim) &&
                 read_numbers(r, pickle_at(r->pickle, args, 3), p.stride, &strides) &&
                 strides == p.ndim;
    if (!known)
        return fail(r->e, hint, "%s: tensor %.150s is described in a way that is not known here",
                    r->f->path, name);
    const PickleItem *dtype = pickle_at(r->pickle, args, 6); /* of v3 alone is it a type */
    p.type = s.type;
    for (int i = 0; i < COUNT(dtypes); i++)
        if (pickle_is_object(r->pickle, dtype, dtypes[i].name))
            p.type = dtypes[i].type;
    if (!is_within(&p, offset->number, s.size))
        return fail(r->e, hint, "%s: tensor %.150s is not within its storage of %" PRIu64 " bytes",
                    r->f->path, name, s.size);
    p.data = s.bytes;
    if (offset->number < (long)s.size) /* an empty one may begin behind the end */
        p.data += offset->number * st_type_bytes(p.type);
    st_add_piece(st_add(r->f, name, p.type, p.ndim, p.shape), p);
    r->tensors++;
    return true;
}

/* ---- nested dicts ---- */

enum { DEEPEST = 8, LONGEST = 180, MOST_ENTRIES = 1 << 20 }; /* dicts may hold each other */

static bool add_dict(Reader *r, const char *path, const PickleItem *dict, int depth);

/* What might be a tensor and is not read: by the call that makes it, or what a pickle has of it.
 * `always` refuses the file, even if it has others that are. */
static const struct {
    const char *call;
    PickleKind kind;
    const char *what, *hint;
    bool always;
} others[] = {{"torch._utils _rebuild_sparse_tensor", PICKLE_OBJECT, "a sparse tensor",
               "in Python: save {k: v.to_dense() for k, v in model.state_dict().items()}", true},
              {"torch._utils _rebuild_qtensor", PICKLE_OBJECT, "a quantised tensor",
               "take the model from before it was quantised, or save v.dequantize() of each", true},
              {"torch._tensor _rebuild_from_type_v2", PICKLE_OBJECT,
               "a tensor of a class of its own",
               "in Python: save v.full_tensor() of each if these are DTensors, else "
               "v.as_subclass(torch.Tensor)",
               true},
              {NULL, PICKLE_ARRAY, "an array of numpy's",
               "in Python: numpy.savez('weights.npz', **arrays), and give that", false},
              {NULL, PICKLE_OBJECT, "a Python object", hint, false}};

/* Which of them; -1: none. Quantised modules keep theirs in tuples. */
static int find_other(const Reader *r, const PickleItem *value)
{
    if (value && value->kind == PICKLE_TUPLE)
        value = pickle_at(r->pickle, value, 0);
    for (int k = 0; value && k < COUNT(others); k++)
        if (value->kind == others[k].kind &&
            (!others[k].call || pickle_is_object(r->pickle, value, others[k].call)))
            return k;
    return -1;
}

static void keep_other(Reader *r, const char *name, int k)
{
    if (k < 0 || strncmp(name, "optimizer", 9) == 0)
        return;
    if (r->other && (others[r->kind].always || !others[k].always))
        return;
    free(r->other);
    r->other = xstrdup(name);
    r->kind = k;
}

/* What is neither a tensor nor a dict of them is no matter. */
static bool add_value(Reader *r, const char *name, const PickleItem *value, int depth)
{
    static const char *const rebuild[] = {"torch._utils _rebuild_tensor_v2",
                                          "torch._utils _rebuild_tensor",
                                          "torch._utils _rebuild_tensor_v3"};
    static const char parameter[] = "torch._utils _rebuild_parameter";
    if (pickle_is_object(r->pickle, value, parameter))
        value = pickle_at(r->pickle, pickle_at(r->pickle, value, 1), 0);
    for (int i = 0; value && value->kind == PICKLE_OBJECT && i < COUNT(rebuild); i++)
        if (pickle_is_object(r->pickle, value, rebuild[i]))
            return add_tensor(r, name, pickle_at(r->pickle, value, 1));
    if (value && value->kind == PICKLE_DICT && depth < DEEPEST)
        return add_dict(r, name, value, depth + 1);
    keep_other(r, name, find_other(r, value));
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

/* ---- timm's args ---- */

static const PickleItem *find_value(const Reader *r, const PickleItem *dict, const char *key)
{
    for (long i = 0; dict && dict->kind == PICKLE_DICT && i + 1 < dict->count; i += 2)
        if (pickle_is(pickle_at(r->pickle, dict, i), key))
            return pickle_at(r->pickle, dict, i + 1);
    return NULL;
}

/* Texts, numbers, and lists of up to three of them; else NULL. */
static cJSON *plain_json(const Reader *r, const PickleItem *item)
{
    if (item->kind == PICKLE_TEXT && item->n < 200) {
        char text[200] = "";
        memcpy(text, item->bytes, item->n);
        return cJSON_CreateString(text);
    }
    if (item->kind == PICKLE_NUMBER)
        return cJSON_CreateNumber((double)item->number);
    if (item->kind == PICKLE_REAL)
        return cJSON_CreateNumber(item->real);
    bool list = item->kind == PICKLE_LIST || item->kind == PICKLE_TUPLE;
    cJSON *json = list && item->count <= 3 ? cJSON_CreateArray() : NULL;
    for (long i = 0; json && i < item->count; i++) {
        const PickleItem *part = pickle_at(r->pickle, item, i);
        bool number = part->kind == PICKLE_NUMBER || part->kind == PICKLE_REAL;
        cJSON_AddItemToArray(json, number ? plain_json(r, part) : cJSON_CreateNull());
    }
    return json;
}

/* Those of the dict's values that are plain, onto `to` under the same keys. */
static void copy_plain(const Reader *r, const PickleItem *dict, cJSON *to)
{
    for (long i = 0; dict && dict->kind == PICKLE_DICT && i + 1 < dict->count; i += 2) {
        cJSON *plain = plain_json(r, pickle_at(r->pickle, dict, i + 1));
        cJSON *key = plain_json(r, pickle_at(r->pickle, dict, i));
        if (plain && cJSON_IsString(key))
            cJSON_AddItemToObject(to, key->valuestring, plain);
        else
            cJSON_Delete(plain);
        cJSON_Delete(key);
    }
}

/* {"args": argparse.Namespace(model=..., mean=..., crop_pct=...)} of timm's train.py, or the same
 * as a dict, as its config.json would have it. Other programs' args have other names. */
static void keep_args(const Reader *r)
{
    static const char *const keys[][2] = {{"model", "architecture"}, {"gp", "global_pool"}};
    const PickleItem *args = find_value(r, pickle_root(r->pickle), "args");
    if (args && pickle_is_object(r->pickle, args, "argparse Namespace"))
        args = pickle_at(r->pickle, args, 2);
    if (!find_value(r, args, "mean") || !find_value(r, args, "crop_pct"))
        return;
    cJSON *json = cJSON_CreateObject();
    for (int i = 0; i < COUNT(keys); i++) {
        const PickleItem *value = find_value(r, args, keys[i][0]);
        cJSON *plain = value ? plain_json(r, value) : NULL;
        if (plain)
            cJSON_AddItemToObject(json, keys[i][1], plain);
    }
    copy_plain(r, args, cJSON_AddObjectToObject(json, "pretrained_cfg"));
    copy_plain(r, find_value(r, args, "model_kwargs"), cJSON_AddObjectToObject(json, "model_args"));
    char *text = cJSON_PrintUnformatted(json);
    r->f->args = text ? st_own(r->f, xstrdup(text)) : NULL;
    cJSON_free(text);
    cJSON_Delete(json);
}

/* ---- the archive ---- */

static const char pickle_name[] = "/data.pkl";

/* The first member of this name, or of this folder ("/code/"), in the folder that all are in. */
static const ZipMember *find_inside(const Zip *z, const char *name)
{
    size_t n = strlen(name);
    for (int i = 0; i < z->count; i++) {
        const char *slash = strchr(z->member[i].name, '/');
        if (slash && strncmp(slash, name, n) == 0 && (name[n - 1] == '/' || !slash[n]))
            return &z->member[i];
    }
    return NULL;
}

static const ZipMember *find_pickle(const Zip *z)
{
    return find_inside(z, pickle_name);
}

bool torch_is_zip(const Zip *z)
{
    return find_pickle(z) != NULL;
}

static bool read_pickle(Reader *r)
{
    const PickleItem *root = pickle_root(r->pickle);
    if (root->kind != PICKLE_DICT && r->zip && find_inside(r->zip, "/code/"))
        return fail(r->e, "in Python: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')",
                    "%s: is TorchScript, a program with its weights", r->f->path);
    if (root->kind != PICKLE_DICT)
        return fail(r->e, hint, "%s: holds a Python object, not a dict of tensors", r->f->path);
    keep_args(r);
    bool ok = add_dict(r, "", root, 0);
    if (ok && r->other && (!r->tensors || others[r->kind].always))
        ok = fail(r->e, others[r->kind].hint, "%s: %.150s is %s, which is not read", r->f->path,
                  r->other, others[r->kind].what);
    else if (ok && !r->tensors && find_value(r, root, "param_groups"))
        ok =
            fail(r->e, "give the model's file; the optimiser's is not needed to start from weights",
                 "%s: is the state of an optimiser, not a model", r->f->path);
    else if (ok && !r->tensors)
        ok = fail(r->e, hint, "%s: there is no tensor in it", r->f->path);
    free(r->other);
    return ok;
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
    Pickle *p = ok ? pickle_open(bytes, m->size, f->path, true, hint, e) : NULL;
    r.pickle = p;
    ok = p && read_pickle(&r) && st_index(f, e);
    pickle_close(p);
    free(made);
    free(root);
    return ok;
}

/* ---- the old form ---- */

static const uint8_t magic[] = {0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9,
                                0x20, 0x6a, 0xa8, 0x50, 0x19, '.'};
enum { MAGIC_AT = 2, VERSION = 1001 }; /* behind the protocol */

bool torch_is_old(const SafeTensors *f)
{
    return f->size > MAGIC_AT + sizeof magic && f->map[0] == 0x80 &&
           memcmp(f->map + MAGIC_AT, magic, sizeof magic) == 0;
}

/* The pickle at *at, which moves behind it. */
static Pickle *next_pickle(const Reader *r, uint64_t *at)
{
    Pickle *p = pickle_open(r->f->map + *at, r->f->size - *at, r->f->path, true, hint, r->e);
    if (p)
        *at += pickle_bytes(p);
    return p;
}

static bool bad_old(const Reader *r, const char *what)
{
    return fail(r->e, hint, "%s: %s", r->f->path, what);
}

/* The version, and whether the bytes are in this machine's order. */
static bool read_preamble(const Reader *r, uint64_t *at)
{
    Pickle *version = next_pickle(r, at), *machine = version ? next_pickle(r, at) : NULL;
    bool ok = machine != NULL;
    if (ok &&
        (pickle_root(version)->kind != PICKLE_NUMBER || pickle_root(version)->number != VERSION))
        ok = bad_old(r, "a version of PyTorch's old form that is not known here");
    const PickleItem *facts = ok ? pickle_root(machine) : NULL;
    for (long i = 0; ok && facts->kind == PICKLE_DICT && i + 1 < facts->count; i += 2)
        if (pickle_is(pickle_at(machine, facts, i), "little_endian") &&
            pickle_at(machine, facts, i + 1)->number != 1)
            ok = bad_old(r, "was saved on a big-endian machine");
    pickle_close(version);
    pickle_close(machine);
    return ok;
}

/* Every storage that the object names, by key, once. */
static void list_storages(Reader *r)
{
    const PickleItem *item;
    long kept = 0;
    for (long i = 0; (item = pickle_item(r->pickle, i)); i++) {
        Storage s;
        if (item->kind != PICKLE_PERSISTENT || !read_storage(r, item, &s))
            continue;
        r->storage = xgrow(r->storage, r->storages, sizeof *r->storage);
        r->storage[r->storages++] = s;
    }
    if (r->storages)
        qsort(r->storage, (size_t)r->storages, sizeof *r->storage, compare_storage);
    for (long i = 0; i < r->storages; i++)
        if (i == 0 || compare_storage(&r->storage[kept - 1], &r->storage[i]) != 0)
            r->storage[kept++] = r->storage[i];
    r->storages = kept;
}

/* Behind the keys, in their order: 8 bytes that count elements, and the elements. */
static bool place_storages(Reader *r, const Pickle *keys, uint64_t at)
{
    const PickleItem *list = pickle_root(keys), *key;
    if (list->kind != PICKLE_LIST)
        return bad_old(r, "there is no list of storages");
    for (long i = 0; (key = pickle_at(keys, list, i)); i++) {
        uint64_t n, size;
        Storage *s = key->kind == PICKLE_TEXT ? find_old(r, key) : NULL;
        if (!s || r->f->size - at < sizeof n)
            return bad_old(r, s ? "the file ends before its storages do"
                                : "a storage that no tensor has, so that its type is not known");
        memcpy(&n, r->f->map + at, sizeof n);
        at += sizeof n;
        if (__builtin_mul_overflow(n, (uint64_t)st_type_bytes(s->type), &size) ||
            size > r->f->size - at)
            return bad_old(r, "the file ends before its storages do");
        s->bytes = r->f->map + at;
        s->size = size;
        at += size;
    }
    return true;
}

bool torch_read_old(SafeTensors *f, Error *e)
{
    Reader r = {.f = f, .e = e};
    uint64_t at = MAGIC_AT + sizeof magic;
    Pickle *object = read_preamble(&r, &at) ? next_pickle(&r, &at) : NULL;
    Pickle *keys = object ? next_pickle(&r, &at) : NULL;
    r.pickle = object;
    if (keys)
        list_storages(&r);
    bool ok = keys && place_storages(&r, keys, at) && read_pickle(&r) && st_index(f, e);
    free(r.storage);
    pickle_close(object);
    pickle_close(keys);
    return ok;
}
