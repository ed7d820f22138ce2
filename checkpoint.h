/* checkpoint.h - runs on disk: saving, finding, resuming. What a weights file holds: weights.h. */
#pragma once

#include "dist.h"

/* What a run needs besides tensors; written into train_state.safetensors' metadata. */
typedef struct {
    uint64_t step, samples, seed;
    double best_metric; /* best top-1 so far, -1 before the first evaluation */
    uint64_t best_step;
    StepState counters; /* the device's: t, skipped steps, loss scale */
    bool scaled;        /* the loss is scaled, and counters says how */
} RunState;

/* Save to DIR/step_%08d/{model,train_state}.safetensors, published atomically: written to a
 * temporary directory, synced, renamed. Then points DIR/latest and DIR/best (text files with a
 * directory name) at it and at best_step, and of the checkpoints up to this step removes all but
 * the newest `keep` (0: keeps all) and the best. A failure (full disk, ...) leaves every earlier
 * checkpoint intact and removes the unfinished one. */
bool ckpt_save(Units *u, const char *dir, const RunState *run, int keep, Error *e);
/* Find the checkpoint a run directory (or a checkpoint directory itself) would resume from. */
bool ckpt_find(const char *dir, char *out, size_t size, Error *e);
/* The checkpoint that DIR/best names; where there is none, the one that ckpt_find finds. */
bool ckpt_best(const char *dir, char *out, size_t size, Error *e);
/* Load weights, optimiser state, EMA and counters: the run continues bit for bit. run->counters
 * and run->scaled are this run's; a loss scale that the file does not have stays. */
bool ckpt_resume(Units *u, const char *checkpoint_dir, RunState *run, Error *e);

/* weights_load, into the weights and their average, which starts there. */
bool ckpt_load_weights(Units *u, const char *path, bool new_head, char *report, size_t size,
                       Error *e);
/* Puts the average of a checkpoint's weights into their place; false where it has none that fits.
 */
bool ckpt_load_average(Units *u, const char *checkpoint_dir);
