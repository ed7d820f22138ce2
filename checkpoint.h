/* checkpoint.h - weights and runs on disk. */
#pragma once

#include "vit.h"
#include "weights/safetensors.h"

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
