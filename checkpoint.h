/* checkpoint.h - safetensors files, weights and run states on disk.
 *
 * safetensors (huggingface/safetensors, format description): 8 bytes little-endian header length,
 * a JSON object {name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {key: string}},
 * then the data, without holes or overlaps. Headers are untrusted input: every length, product,
 * offset and duplicate is checked, and a bad file is an Error that names file, tensor and value.
 */
#ifndef CHECKPOINT_H
#define CHECKPOINT_H

#include "vit.h"

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
bool st_sync_dir(const char *path,
                 Error *e); /* makes renames inside a directory survive a power cut */
/* A small text file: written as PATH.tmp, synced, renamed. On failure (full disk, ...) the
 * temporary is removed and the old file, if any, is untouched. */
bool write_file_atomically(const char *path, const char *text, Error *e);

/* ---- weights and runs ---- */

/* The configuration of a weights file: ours from its metadata; a foreign one (timm names) from the
 * shapes, heads from the matching preset (else width/64), eps 1e-6, erf GELU, ImageNet mean and
 * std. classes is 0 where the file has no head. `assumed` receives one line of text that says what
 * was not in the file ("" for ours). */
bool ckpt_config(const char *path, Config *c, char *assumed, size_t size, Error *e);

/* Load weights into m. Every tensor of the model must be there in its shape, except that with
 * `new_head` a head of another shape (or none) is left as it was initialised; `report` receives one
 * line about what was left. Errors name the tensor and both shapes; position embeddings must be of
 * the model's grid, rows and columns. Works on any safetensors with timm names. */
bool ckpt_load_weights(Model *m, const char *path, bool new_head, char *report, size_t size,
                       Error *e);

/* What a resumed run needs besides tensors; written into train_state.safetensors' metadata. */
typedef struct {
    uint64_t step, samples, seed;
    double best_metric; /* best top-1 so far, -1 before the first evaluation */
    uint64_t best_step;
} RunState;

/* Save to DIR/step_%08d/{model,train_state}.safetensors, published atomically: written to a
 * temporary directory, synced, renamed. Then points DIR/latest and DIR/best (text files with a
 * directory name) at it and at best_step, and of the checkpoints up to this step removes all but
 * the newest `keep` (0: keeps all) and the best. A failure (full disk, ...) leaves every earlier
 * checkpoint intact and removes the unfinished one. */
bool ckpt_save(Model *m, const char *dir, const RunState *run, int keep, Error *e);
/* Find the checkpoint a run directory (or a checkpoint directory itself) would resume from. */
bool ckpt_find(const char *dir, char *out, size_t size, Error *e);
/* The checkpoint that DIR/best names; where there is none, the one that ckpt_find finds. */
bool ckpt_best(const char *dir, char *out, size_t size, Error *e);
/* Load weights, optimiser state, EMA and counters: the run continues bit for bit. */
bool ckpt_resume(Model *m, const char *checkpoint_dir, RunState *run, Error *e);

#endif
