/* safetensors.c - reading and writing safetensors files.
 *
 * A file is 8 bytes of header length (little-endian), a JSON object that names every tensor with
 * its type, shape and byte range, and the data. The reader trusts none of it: st_open() returns
 * either a file in which every tensor lies inside the mapping and every byte belongs to one tensor,
 * or an Error that names file, tensor and value. It cannot guard against a program that truncates
 * the file while it is mapped. The JSON is cJSON's work, its nesting limit included.
 *
 * This file knows nothing of models; weights.c gives the tensors their meaning. Files of other
 * kinds (torch.h, npz.h) are given the same form, and read by the same function.
 *
 * Read in this order: look-ups, numbers in the header, one entry, the whole header, opening, other
 * kinds of files, elements, writer. */
#include "weights/safetensors.h"
#include "util/files.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors data is little-endian; this machine is not"
#endif

#define LENGTH_BYTES 8
#define MAX_HEADER   100000000          /* the limit that the format's own library has */
#define MAX_EXACT    9007199254740991.0 /* 2^53 - 1: larger JSON numbers may have been rounded */

static const struct {
    const char *name;
    int bytes;
} dtypes[] = {
#define X(name, bytes) {#name, bytes},
    ST_TYPES(X)
#undef X
};

/* ---- look-ups ---- */

static int compare_key(const void *a, const void *b)
{
    return strcmp(((const StEntry *)a)->key, ((const StEntry *)b)->key);
}

/* Sorts for find_key. Returns a key that is there twice, or NULL. */
static const char *sort_keys(StEntry *list, int n)
{
    qsort(list, (size_t)n, sizeof *list, compare_key);
    for (int i = 1; i < n; i++)
        if (compare_key(&list[i - 1], &list[i]) == 0)
            return list[i].key;
    return NULL;
}

static const void *find_key(const StEntry *list, int n, const char *key)
{
    StEntry wanted = {key, NULL};
    const StEntry *found = n ? bsearch(&wanted, list, (size_t)n, sizeof *list, compare_key) : NULL;
    return found ? found->value : NULL;
}

const StTensor *st_find(const SafeTensors *f, const char *name)
{
    return find_key(f->by_name, f->count, name);
}

const char *st_meta(const SafeTensors *f, const char *key)
{
    return find_key(f->meta, f->metas, key);
}

/* ---- numbers in the header ---- */

static const char damaged[] =
    "the file is damaged, incomplete, or was not written by a careful program";
static const char open_hint[] = "is the path right, and may you read it?";
static const char mistake[] = "this is a mistake in the program that writes the file";

PRINTF_LIKE(4, 5)
static bool bad_tensor(const SafeTensors *f, const StTensor *t, Error *e, const char *fmt, ...)
{
    char what[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return fail(e, damaged, "%s: tensor %.150s: %s", f->path, t->name, what);
}

/* A JSON number as a count: whole, not negative, exact. `what` says in an Error where it stands. */
static bool read_count(const SafeTensors *f, const StTensor *t, const char *what, const cJSON *item,
                       uint64_t *out, Error *e)
{
    double d = item->valuedouble;
    if (!cJSON_IsNumber(item))
        return bad_tensor(f, t, e, "%s is not a number", what);
    if (!(d >= 0 && d <= MAX_EXACT) || d != floor(d))
        return bad_tensor(f, t, e, "%s is %.17g, not a whole number from 0 to 2^53", what, d);
    *out = (uint64_t)d;
    return true;
}

/* ---- one entry ---- */

static bool read_dtype(const SafeTensors *f, const cJSON *item, StTensor *t, Error *e)
{
    if (!cJSON_IsString(item))
        return bad_tensor(f, t, e, "dtype is not a string");
    for (int i = 0; i < COUNT(dtypes); i++)
        if (strcmp(dtypes[i].name, item->valuestring) == 0) {
            t->type = (StType)i;
            t->dtype = dtypes[i].name;
            return true;
        }
    return bad_tensor(f, t, e, "unknown dtype \"%.50s\"", item->valuestring);
}

/* shape -> ndim, shape, n. A zero is a legal dimension: the tensor is then empty. */
static bool read_shape(const SafeTensors *f, const cJSON *item, StTensor *t, Error *e)
{
    const cJSON *dim;
    if (!cJSON_IsArray(item))
        return bad_tensor(f, t, e, "shape is not an array");
    t->n = 1;
    cJSON_ArrayForEach(dim, item)
    {
        uint64_t d = 0;
        if (t->ndim == ST_MAX_DIMS)
            return bad_tensor(f, t, e, "%d dimensions, more than %d", cJSON_GetArraySize(item),
                              ST_MAX_DIMS);
        if (!read_count(f, t, "a dimension", dim, &d, e))
            return false;
        t->shape[t->ndim++] = (long)d;
        if (__builtin_mul_overflow(t->n, (long)d, &t->n))
            return bad_tensor(f, t, e, "dimension %" PRIu64 " makes it too large", d);
    }
    return true;
}

/* data_offsets -> begin and bytes; they must agree with dtype and shape and lie in the file. */
static bool read_offsets(const SafeTensors *f, const cJSON *item, StTensor *t, Error *e)
{
    uint64_t begin = 0, end = 0, have = f->size - f->data;
    if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) != 2)
        return bad_tensor(f, t, e, "data_offsets is not a pair");
    if (!read_count(f, t, "data_offsets[0]", item->child, &begin, e) ||
        !read_count(f, t, "data_offsets[1]", item->child->next, &end, e))
        return false;
    if (begin > end)
        return bad_tensor(f, t, e, "data_offsets begin at %" PRIu64 " and end at %" PRIu64, begin,
                          end);
    if (end > have)
        return bad_tensor(f, t, e, "data_offsets end at %" PRIu64 ", the data at %" PRIu64, end,
                          have);
    if (__builtin_mul_overflow((uint64_t)t->n, (uint64_t)dtypes[t->type].bytes, &t->bytes))
        return bad_tensor(f, t, e, "%ld elements are too many", t->n);
    if (end - begin != t->bytes)
        return bad_tensor(f, t, e,
                          "data_offsets span %" PRIu64 " bytes, dtype %s and shape need %" PRIu64,
                          end - begin, t->dtype, t->bytes);
    t->begin = f->data + begin;
    return true;
}

/* Names end up on terminals and in paths of messages: control characters have no business there. */
static bool is_clean(const char *name)
{
    for (; *name; name++)
        if ((unsigned char)*name < 0x20 || *name == 0x7f)
            return false;
    return true;
}

/* What describes a tensor, in the order of reading: where its data lies is checked by the rest. */
static const struct {
    const char *key;
    bool (*read)(const SafeTensors *f, const cJSON *item, StTensor *t, Error *e);
} members[] = {{"dtype", read_dtype}, {"shape", read_shape}, {"data_offsets", read_offsets}};

static bool read_entry(const SafeTensors *f, const cJSON *entry, StTensor *t, Error *e)
{
    if (!is_clean(entry->string))
        return fail(e, damaged, "%s: a tensor's name has control characters", f->path);
    t->name = entry->string;
    if (!cJSON_IsObject(entry))
        return bad_tensor(f, t, e, "not described by an object");
    for (int i = 0; i < COUNT(members); i++) {
        const cJSON *found = NULL, *item;
        cJSON_ArrayForEach(item, entry)
        {
            if (strcmp(item->string, members[i].key) != 0)
                continue;
            if (found)
                return bad_tensor(f, t, e, "%s is there twice", members[i].key);
            found = item;
        }
        if (!found)
            return bad_tensor(f, t, e, "%s is missing", members[i].key);
        if (!members[i].read(f, found, t, e))
            return false;
    }
    return true;
}

/* ---- the whole header ---- */

static const char meta_hint[] = "metadata is one object of texts: save the file again without "
                                "anything else in it";

static bool read_meta(SafeTensors *f, const cJSON *object, Error *e)
{
    if (f->meta)
        return fail(e, meta_hint, "%s: __metadata__ is there twice", f->path);
    if (!cJSON_IsObject(object))
        return fail(e, meta_hint, "%s: __metadata__ is not an object", f->path);
    const cJSON *item;
    f->meta = xcalloc((size_t)cJSON_GetArraySize(object), sizeof *f->meta);
    cJSON_ArrayForEach(item, object)
    {
        if (!cJSON_IsString(item))
            return fail(e, meta_hint, "%s: __metadata__: the value of \"%.100s\" is not a string",
                        f->path, is_clean(item->string) ? item->string : "?");
        f->meta[f->metas++] = (StEntry){item->string, item->valuestring};
    }
    const char *twice = sort_keys(f->meta, f->metas);
    return !twice || fail(e, meta_hint, "%s: __metadata__: \"%.100s\" is there twice", f->path,
                          is_clean(twice) ? twice : "?");
}

static int compare_place(const void *a, const void *b)
{
    const StTensor *s = a, *t = b;
    if (s->begin != t->begin)
        return s->begin < t->begin ? -1 : 1;
    if (s->bytes != t->bytes) /* an empty tensor stands before the one that starts at its place */
        return s->bytes < t->bytes ? -1 : 1;
    return strcmp(s->name, t->name);
}

/* For look-ups; a name may stand there once. */
static bool index_names(SafeTensors *f, Error *e)
{
    f->by_name = xcalloc((size_t)f->count, sizeof *f->by_name);
    for (int i = 0; i < f->count; i++)
        f->by_name[i] = (StEntry){f->tensor[i].name, &f->tensor[i]};
    const char *twice = sort_keys(f->by_name, f->count);
    return !twice || bad_tensor(f, st_find(f, twice), e, "is there twice");
}

/* Every byte of the data belongs to exactly one tensor. */
static bool check_places(const SafeTensors *f, Error *e)
{
    uint64_t at = f->data;
    for (int i = 0; i < f->count; i++) {
        const StTensor *t = &f->tensor[i];
        if (t->begin < at)
            return bad_tensor(f, t, e, "overlaps tensor %.150s", f->tensor[i - 1].name);
        if (t->begin > at)
            return fail(e, damaged,
                        "%s: %" PRIu64 " bytes before tensor %.150s belong to no tensor", f->path,
                        t->begin - at, t->name);
        at += t->bytes;
    }
    if (at != f->size)
        return fail(e, damaged, "%s: %" PRIu64 " bytes after the last tensor belong to none",
                    f->path, f->size - at);
    return true;
}

static bool read_header(SafeTensors *f, Error *e)
{
    const cJSON *entry;
    if (!cJSON_IsObject(f->json))
        return fail(e, damaged, "%s: the header is not a JSON object", f->path);
    f->tensor = xcalloc((size_t)cJSON_GetArraySize(f->json), sizeof *f->tensor);
    cJSON_ArrayForEach(entry, f->json)
    {
        bool is_meta = strcmp(entry->string, "__metadata__") == 0;
        if (is_meta ? !read_meta(f, entry, e) : !read_entry(f, entry, &f->tensor[f->count++], e))
            return false;
    }
    qsort(f->tensor, (size_t)f->count, sizeof *f->tensor, compare_place);
    return index_names(f, e) && check_places(f, e);
}

/* The text of the header, [LENGTH_BYTES, f->data), as JSON with nothing but blanks behind it. */
static bool parse_header(SafeTensors *f, Error *e)
{
    const char *text = (const char *)f->map + LENGTH_BYTES, *end = (const char *)f->map + f->data;
    const char *stop = NULL;
    if (memchr(text, 0, (size_t)(end - text)))
        return fail(e, damaged, "%s: the header has zero bytes", f->path);
    f->json = cJSON_ParseWithLengthOpts(text, (size_t)(end - text), &stop, false);
    while (f->json && stop < end && strchr(" \t\r\n", *stop))
        stop++;
    return (f->json && stop == end) ||
           fail(e, damaged, "%s: the header is not valid JSON near its byte %ld", f->path,
                stop ? (long)(stop - text) : 0L);
}

/* ---- opening ---- */

/* Opens and maps `f->path`. O_NONBLOCK, so that a pipe without a writer is an error, not a wait. */
static bool map_file(SafeTensors *f, Error *e)
{
    struct stat st;
    void *map = MAP_FAILED;
    int fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return fail(e, open_hint, "%s: cannot open: %s", f->path, strerror(errno));
    if (fstat(fd, &st) != 0)
        fail(e, open_hint, "%s: cannot read: %s", f->path, strerror(errno));
    else if (S_ISDIR(st.st_mode))
        fail(e, "give the weights file in it", "%s: is a directory", f->path);
    else if (!S_ISREG(st.st_mode))
        fail(e, "give the weights file itself", "%s: not a regular file", f->path);
    else if (st.st_size < LENGTH_BYTES)
        fail(e, "the file is empty or was not copied completely",
             "%s: %lld bytes are too few for a file of weights", f->path, (long long)st.st_size);
    else if ((map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0)) == MAP_FAILED)
        fail(e, "copy the file to a local disk", "%s: cannot map: %s", f->path, strerror(errno));
    close(fd);
    if (map == MAP_FAILED)
        return false;
    f->map = map;
    f->size = (uint64_t)st.st_size;
    return true;
}

/* The header's length; it must leave room for what it says, and a brace must follow it. */
static bool read_length(SafeTensors *f, Error *e)
{
    static const char advice[] = "is this a safetensors file, and was it copied completely?";
    uint64_t length, rest = f->size - LENGTH_BYTES;
    memcpy(&length, f->map, sizeof length);
    if (length > MAX_HEADER)
        return fail(e, advice, "%s: header length %" PRIu64 " is over the limit of %d bytes",
                    f->path, length, MAX_HEADER);
    if (length > rest)
        return fail(e, advice,
                    "%s: header length %" PRIu64 " is more than the %" PRIu64 " bytes that follow",
                    f->path, length, rest);
    if (length < 2 || f->map[LENGTH_BYTES] != '{')
        return fail(e, advice, "%s: header of %" PRIu64 " bytes does not start with {", f->path,
                    length);
    f->data = LENGTH_BYTES + length;
    return true;
}

SafeTensors *st_view(const char *path)
{
    SafeTensors *f = xcalloc(1, sizeof *f);
    f->path = xstrdup(path);
    return f;
}

SafeTensors *st_map(const char *path, Error *e)
{
    SafeTensors *f = st_view(path);
    if (map_file(f, e))
        return f;
    st_close(f);
    return NULL;
}

bool st_read(SafeTensors *f, Error *e)
{
    return read_length(f, e) && parse_header(f, e) && read_header(f, e);
}

SafeTensors *st_open(const char *path, Error *e)
{
    SafeTensors *f = st_map(path, e);
    if (f && st_read(f, e))
        return f;
    st_close(f);
    return NULL;
}

void st_give_back(const SafeTensors *f)
{
    if (f->map)
        madvise((void *)f->map, f->size, MADV_DONTNEED);
    for (int i = 0; i < f->files; i++)
        st_give_back(f->file[i]);
}

void st_close(SafeTensors *f)
{
    if (!f)
        return;
    if (f->map)
        munmap((void *)f->map, f->size);
    for (int i = 0; i < f->files; i++)
        st_close(f->file[i]);
    for (int i = 0; i < f->owns; i++)
        free(f->owned[i]);
    for (int i = 0; i < f->count; i++)
        free(f->tensor[i].piece);
    cJSON_Delete(f->json);
    free(f->file);
    free(f->owned);
    free(f->tensor);
    free(f->by_name);
    free(f->meta);
    free(f->path);
    free(f);
}

/* ---- other kinds of files ---- */

void *st_own(SafeTensors *f, void *memory)
{
    f->owned = xgrow(f->owned, f->owns, sizeof *f->owned);
    return f->owned[f->owns++] = memory;
}

void st_take(SafeTensors *f, SafeTensors *file)
{
    f->file = xgrow(f->file, f->files, sizeof *f->file);
    f->file[f->files++] = file;
}

/* Of a shape with a zero the other numbers may be anything. */
static long elements(int ndim, const long *shape)
{
    long n = 1;
    for (int d = 0; d < ndim; d++)
        if (shape[d] == 0)
            return 0;
    for (int d = 0; d < ndim; d++)
        n *= shape[d];
    return n;
}

StTensor *st_add(SafeTensors *f, const char *name, StType type, int ndim, const long *shape)
{
    f->tensor = xgrow(f->tensor, f->count, sizeof *f->tensor);
    StTensor *t = &f->tensor[f->count++];
    *t = (StTensor){.name = st_own(f, xstrdup(name)),
                    .type = type,
                    .dtype = dtypes[type].name,
                    .ndim = ndim,
                    .n = elements(ndim, shape)};
    for (int d = 0; d < ndim; d++)
        t->shape[d] = shape[d];
    t->bytes = (uint64_t)t->n * (uint64_t)dtypes[type].bytes;
    return t;
}

void st_add_piece(StTensor *t, StPiece piece)
{
    piece.n = elements(piece.ndim, piece.shape);
    t->piece = xgrow(t->piece, t->pieces, sizeof *t->piece);
    t->piece[t->pieces++] = piece;
}

StPiece st_piece(const SafeTensors *f, const StTensor *t)
{
    if (t->pieces == 1)
        return t->piece[0];
    StPiece p = {.data = st_data(f, t), .type = t->type, .ndim = t->ndim, .n = t->n};
    long stride = 1;
    for (int d = t->ndim - 1; d >= 0; d--) {
        p.shape[d] = t->shape[d];
        p.stride[d] = stride;
        stride *= t->n ? t->shape[d] : 0;
    }
    return p;
}

bool st_index(SafeTensors *f, Error *e)
{
    return index_names(f, e);
}

int st_type_bytes(StType type)
{
    return dtypes[type].bytes;
}

/* ---- elements ---- */

const void *st_data(const SafeTensors *f, const StTensor *t)
{
    return f->map + t->begin;
}

/* IEEE half: 1 sign, 5 exponent (bias 15), 10 fraction; every value is exact in float. */
static float from_half(uint16_t h)
{
    int exponent = h >> 10 & 31, fraction = h & 1023;
    float x =
        ldexpf((float)(exponent ? fraction + 1024 : fraction), (exponent ? exponent : 1) - 25);
    if (exponent == 31)
        x = fraction ? NAN : INFINITY;
    return h >> 15 ? -x : x;
}

/* bfloat16 is the upper half of a float. */
static float from_bfloat(uint16_t h)
{
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* One element, at any address, as a number: exact for every type listed. */
static double float_at(const uint8_t *p, StType type)
{
    double d;
    float x;
    uint16_t h;
    switch (type) {
    case ST_F64:
        memcpy(&d, p, 8);
        return d;
    case ST_F32:
        memcpy(&x, p, 4);
        return x;
    case ST_F16:
        memcpy(&h, p, 2);
        return from_half(h);
    default:
        memcpy(&h, p, 2);
        return from_bfloat(h);
    }
}

bool st_is_real(const SafeTensors *f, const StTensor *t, Error *e)
{
    const char *hint = "weights must be F64, F32, F16 or BF16: convert the file";
    if (t->type == ST_F8_E4M3 || t->type == ST_F8_E5M2)
        hint =
            "take the weights in 16 or 32 bits; or in Python, v.float() of each, times its scale";
    return t->type <= ST_BF16 || fail(e, hint, "%s: tensor %.150s has type %s, which is not read",
                                      f->path, t->name, t->dtype);
}

static void read_run(const uint8_t *data, StType type, long stride, long n, real *out)
{
    long step = stride * dtypes[type].bytes;
    if (type == ST_REAL && stride == 1)
        memcpy(out, data, (size_t)n * sizeof *out);
    else
        for (long i = 0; i < n; i++)
            out[i] = (real)float_at(data + i * step, type);
}

/* Elements first .. first+n-1 of a piece, a run along its last axis at a time. */
static void read_piece(const StPiece *p, long first, long n, real *out)
{
    if (!p->data) {
        for (long i = 0; i < n; i++)
            out[i] = 0;
        return;
    }
    int last = p->ndim - 1;
    for (long done = 0, run; done < n; done += run) {
        long rest = first + done, at = 0, within = 0;
        for (int d = last; d >= 0; d--) {
            long i = rest % p->shape[d];
            rest /= p->shape[d];
            at += i * p->stride[d];
            within = d == last ? i : within;
        }
        run = last < 0 ? 1 : p->shape[last] - within;
        run = run < n - done ? run : n - done;
        read_run(p->data + at * dtypes[p->type].bytes, p->type, last < 0 ? 1 : p->stride[last], run,
                 out + done);
    }
}

bool st_read_real(const SafeTensors *f, const StTensor *t, long first, long n, real *out, Error *e)
{
    alive(); /* large files take their time */
    if (!st_is_real(f, t, e))
        return false;
    if (!t->pieces)
        read_run((const uint8_t *)st_data(f, t) + first * dtypes[t->type].bytes, t->type, 1, n,
                 out);
    for (int i = 0; i < t->pieces; first -= t->piece[i++].n) {
        long from = first > 0 ? first : 0, to = first + n;
        to = to < t->piece[i].n ? to : t->piece[i].n;
        if (from < to)
            read_piece(&t->piece[i], from, to - from, out + (from - first));
    }
    return true;
}

/* Shifted up and down again, a number keeps its sign. */
bool st_read_i64(const SafeTensors *f, const StTensor *t, int64_t *out, Error *e)
{
    const uint8_t *data = st_data(f, t);
    int bytes = dtypes[t->type].bytes, up = t->type < ST_U8 ? 64 - 8 * bytes : 0;
    if (t->type < ST_I64 || t->type > ST_BOOL)
        return bad_tensor(f, t, e, "%s where a signed integer type is expected", t->dtype);
    for (long i = 0; i < t->n; i++) {
        uint64_t x = 0;
        memcpy(&x, data + i * bytes, (size_t)bytes);
        out[i] = (int64_t)(x << up) >> up;
    }
    return true;
}

/* ---- writer ---- */

struct StWriter {
    char *path;
    FileWriter *file;
    cJSON *header, *meta;
    uint64_t data;              /* where it starts in the file */
    uint64_t declared, written; /* bytes of it */
    bool sound;                 /* no declaration has failed */
};

StWriter *st_create(const char *path)
{
    StWriter *w = xcalloc(1, sizeof *w);
    w->path = xstrdup(path);
    w->header = cJSON_CreateObject();
    w->meta = cJSON_AddObjectToObject(w->header, "__metadata__");
    w->sound = w->meta != NULL;
    return w;
}

void st_add_meta(StWriter *w, const char *key, const char *value)
{
    w->sound = w->sound && cJSON_AddStringToObject(w->meta, key, value);
}

void st_add_tensor(StWriter *w, const char *name, StType type, int ndim, const int *shape)
{
    uint64_t bytes = (uint64_t)dtypes[type].bytes, end;
    for (int i = 0; i < ndim; i++)
        w->sound =
            w->sound && shape[i] >= 0 && !__builtin_mul_overflow(bytes, (uint64_t)shape[i], &bytes);
    w->sound = w->sound && !__builtin_add_overflow(w->declared, bytes, &end) && end < MAX_EXACT;
    cJSON *entry = w->sound ? cJSON_AddObjectToObject(w->header, name) : NULL;
    w->sound =
        entry && cJSON_AddStringToObject(entry, "dtype", dtypes[type].name) &&
        cJSON_AddItemToObject(entry, "shape", cJSON_CreateIntArray(ndim ? shape : &ndim, ndim)) &&
        cJSON_AddItemToObject(
            entry, "data_offsets",
            cJSON_CreateDoubleArray((double[]){(double)w->declared, (double)end}, 2));
    if (w->sound)
        w->declared = end;
}

static bool create(StWriter *w, const char *header, size_t n, Error *e)
{
    uint64_t length = w->data - LENGTH_BYTES;
    if (length > MAX_HEADER)
        return fail(e, "the file would have too many tensors",
                    "%s: a header of %" PRIu64 " bytes is over the limit of %d", w->path, length,
                    MAX_HEADER);
    w->file = file_create(w->path, e);
    return w->file && file_length(w->file, w->data + w->declared, e) &&
           file_write_at(w->file, &length, sizeof length, 0, e) &&
           file_write_at(w->file, header, n, LENGTH_BYTES, e) &&
           file_write_at(w->file, "       ", (size_t)length - n, LENGTH_BYTES + n, e);
}

/* Length and header, padded with blanks so that the data starts at a multiple of 8. */
bool st_begin(StWriter *w, long owner, Error *e)
{
    if (w->meta && !w->meta->child)
        cJSON_Delete(cJSON_DetachItemViaPointer(w->header, w->meta));
    char *text = w->sound ? cJSON_PrintUnformatted(w->header) : NULL;
    if (!text)
        return fail(e, mistake, "%s: no header: out of memory, or impossible shapes", w->path);
    size_t n = strlen(text);
    w->data = LENGTH_BYTES + (n + 7) / 8 * 8;
    bool ok = owner ? (w->file = file_join(w->path, owner, e)) != NULL : create(w, text, n, e);
    cJSON_free(text);
    return ok;
}

bool st_write(StWriter *w, uint64_t at, const void *data, size_t bytes, Error *e)
{
    if (at > w->declared || bytes > w->declared - at)
        return fail(e, mistake, "%s: more data than the %" PRIu64 " bytes that were declared",
                    w->path, w->declared);
    w->written += bytes;
    return file_write_at(w->file, data, bytes, w->data + at, e);
}

bool st_sync(StWriter *w, Error *e)
{
    return file_sync(w->file, e);
}

uint64_t st_written(const StWriter *w)
{
    return w->written;
}

void st_abandon(StWriter *w)
{
    if (!w)
        return;
    file_abandon(w->file);
    cJSON_Delete(w->header);
    free(w->path);
    free(w);
}

bool st_finish(StWriter *w, uint64_t others, Error *e)
{
    uint64_t written = w->written + others;
    bool ok = written == w->declared ||
              fail(e, mistake, "%s: %" PRIu64 " of %" PRIu64 " declared bytes were written",
                   w->path, written, w->declared);
    if (ok) {
        ok = file_publish(w->file, true, e);
        w->file = NULL; /* freed there */
    }
    st_abandon(w);
    return ok;
}
