/* safetensors.h - files of named tensors, first of all safetensors.
 *
 * safetensors (huggingface/safetensors, format description): 8 bytes little-endian header length,
 * a JSON object {name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {key: string}},
 * then the data, without holes or overlaps. Headers are untrusted input: every length, product,
 * offset and duplicate is checked, and a bad file is an Error that names file, tensor and value.
 */
#pragma once

#include "util/real.h"
#include "util/util.h"

#define ST_MAX_DIMS 8

/* Types of elements, as files spell them, and their bytes; those of the last line are not read. */
/* clang-format off */
#define ST_TYPES(X)                                            \
    X(F64, 8) X(F32, 4) X(F16, 2) X(BF16, 2)                   \
    X(I64, 8) X(I32, 4) X(I16, 2) X(I8, 1) X(U8, 1) X(BOOL, 1) \
    X(U64, 8) X(U32, 4) X(U16, 2) X(F8_E4M3, 1) X(F8_E5M2, 1)
/* clang-format on */
#define X(name, bytes) ST_##name,
typedef enum { ST_TYPES(X) } StType;
#undef X

/* The type that holds a `real` exactly: what this build writes, so that resuming loses no bit. */
#define ST_REAL (sizeof(real) == sizeof(double) ? ST_F64 : ST_F32)

/* Elements of a tensor that follow each other there, and lie in a file with steps between: along
 * the d-th of `ndim` axes there are shape[d] of them, stride[d] elements apart. Thus a transposed
 * matrix, or one of q, k and v, is read where it lies. data NULL: zeros. */
typedef struct {
    const uint8_t *data; /* the first element */
    StType type;
    int ndim;
    long shape[ST_MAX_DIMS], stride[ST_MAX_DIMS];
    long n;
} StPiece;

typedef struct {
    const char *name;
    StType type;
    const char *dtype; /* as the file spells it */
    int ndim;
    long shape[ST_MAX_DIMS];
    long n;         /* elements */
    uint64_t begin; /* in the file, from its start */
    uint64_t bytes;
    StPiece *piece; /* [pieces], one after the other; none: all of it stands at `begin` */
    int pieces;
} StTensor;

/* A name and what it stands for: a text of the metadata, or a StTensor. */
typedef struct {
    const char *key;
    const void *value;
} StEntry;

/* An open file, mapped read-only; or what other files hold, under the names and in the shapes that
 * we use: a view of them, which closes them with itself. */
typedef struct SafeTensors SafeTensors;
struct SafeTensors {
    char *path;
    const uint8_t *map;
    uint64_t size, data; /* bytes of the file; where the tensors' data starts in it */
    int count, metas;
    StTensor *tensor;   /* [count], in file order */
    StEntry *by_name;   /* [count], sorted */
    StEntry *meta;      /* [metas], sorted */
    struct cJSON *json; /* the header, to which all names and texts belong */
    const char *args;   /* another file's: what it says of itself, as hub_args has it; or NULL */
    SafeTensors **file; /* [files] that this is a view of */
    void **owned;       /* [owns], memory that goes with it: names, pieces, values */
    int files, owns;
};

SafeTensors *st_open(const char *path, Error *e); /* st_map, then st_read */
void st_close(SafeTensors *f);
const StTensor *st_find(const SafeTensors *f, const char *name); /* NULL if absent */
const char *st_meta(const SafeTensors *f, const char *key);      /* NULL if absent */
const void *st_data(const SafeTensors *f, const StTensor *t);    /* raw bytes, at any alignment */
/* Elements as numbers, whatever the float type in the file; false if it is no float type.
 * st_read_real: elements first .. first+n-1, which the caller knows to be there. */
bool st_is_real(const SafeTensors *f, const StTensor *t, Error *e);
bool st_read_real(const SafeTensors *f, const StTensor *t, long first, long n, real *out, Error *e);
bool st_read_i64(const SafeTensors *f, const StTensor *t, int64_t *out, Error *e);
/* What was read of a mapped file counts as this process's memory until this gives it back; it can
 * be read again. */
void st_give_back(const SafeTensors *f);

/* Other kinds of files in the same form. st_map opens and maps a file and looks at nothing in it.
 * st_add appends a tensor, whose name is copied; a piece of it is copied too, and lies within the
 * file or in memory that st_own gives to f. st_index ends the list: false if a name is there twice.
 */
SafeTensors *st_map(const char *path, Error *e);
bool st_read(SafeTensors *f, Error *e); /* a safetensors file that is mapped */
SafeTensors *st_view(const char *path);
StTensor *st_add(SafeTensors *f, const char *name, StType type, int ndim, const long *shape);
void st_add_piece(StTensor *t, StPiece piece);
StPiece st_piece(const SafeTensors *f, const StTensor *t); /* all of a tensor that is one */
void *st_own(SafeTensors *f, void *memory);                /* returns it */
void st_take(SafeTensors *f, SafeTensors *file);
bool st_index(SafeTensors *f, Error *e);
int st_type_bytes(StType type);

/* Writing: declare all tensors, begin, write their data in pieces of any order, finish. The file
 * appears under its name only when finish has synced and renamed it.
 *
 * Several processes can write one file. All declare the same. One begins, then the others with its
 * process id as `owner`; all write and sync; the others abandon theirs, then the first finishes. */
typedef struct StWriter StWriter;
StWriter *st_create(const char *path); /* touches no file yet */
void st_add_meta(StWriter *w, const char *key, const char *value);
void st_add_tensor(StWriter *w, const char *name, StType type, int ndim, const int *shape);
bool st_begin(StWriter *w, long owner, Error *e); /* owner 0: creates the file, header and length */
/* at: of the data, which is the tensors' in the order of their declaration. */
bool st_write(StWriter *w, uint64_t at, const void *data, size_t bytes, Error *e);
bool st_sync(StWriter *w, Error *e);
uint64_t st_written(const StWriter *w); /* bytes of data, by this process */
/* Frees w; on failure the old file, if any, is untouched. others: bytes of data by the others. */
bool st_finish(StWriter *w, uint64_t others, Error *e);
void st_abandon(StWriter *w); /* frees w and removes the unfinished file, if it is its own */
