/* safetensors.h - files of named tensors.
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

typedef enum {
    ST_F64,
    ST_F32,
    ST_F16,
    ST_BF16,
    ST_I64,
    ST_I32,
    ST_I16,
    ST_I8,
    ST_U8,
    ST_BOOL,
    ST_OTHER
} StType;

/* The type that holds a `real` exactly: what this build writes, so that resuming loses no bit. */
#define ST_REAL (sizeof(real) == sizeof(double) ? ST_F64 : ST_F32)

typedef struct {
    char *name;
    StType type;
    const char *dtype; /* as the file spells it */
    int ndim;
    long shape[ST_MAX_DIMS];
    long n;         /* elements */
    uint64_t begin; /* in the file, from its start */
    uint64_t bytes;
} StTensor;

typedef struct SafeTensors SafeTensors; /* an open file, mapped read-only */

SafeTensors *st_open(const char *path, Error *e);
void st_close(SafeTensors *f);
const char *st_path(const SafeTensors *f);
int st_count(const SafeTensors *f);
const StTensor *st_at(const SafeTensors *f, int i);              /* in file order */
const StTensor *st_find(const SafeTensors *f, const char *name); /* NULL if absent */
const char *st_meta(const SafeTensors *f, const char *key);      /* NULL if absent */
int st_meta_count(const SafeTensors *f);
void st_meta_at(const SafeTensors *f, int i, const char **key, const char **value);
/* Elements as numbers, whatever the float type in the file; false if it is no float type. */
bool st_read_real(const SafeTensors *f, const StTensor *t, real *out, Error *e);
bool st_read_i64(const SafeTensors *f, const StTensor *t, int64_t *out, Error *e);
const void *st_data(const SafeTensors *f, const StTensor *t); /* raw bytes, at any alignment */

/* Writing: declare all tensors, begin, then write each one's data in order, then finish.
 * The file appears under its name only when finish has synced and renamed it. */
typedef struct StWriter StWriter;
StWriter *st_create(const char *path, Error *e);
void st_add_meta(StWriter *w, const char *key, const char *value);
void st_add_tensor(StWriter *w, const char *name, StType type, int ndim, const int *shape);
bool st_begin(StWriter *w, Error *e);
bool st_write(StWriter *w, const void *data, size_t bytes,
              Error *e);               /* next bytes, in declared order */
bool st_finish(StWriter *w, Error *e); /* frees w; on failure the old file, if any, is untouched */
void st_abandon(StWriter *w);          /* frees w and removes the unfinished file */
