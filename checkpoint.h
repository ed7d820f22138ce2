/* checkpoint.h - runs on disk: saving, finding, resuming. What a weights file holds: weights.h.
 *
 * A checkpoint does not remember how many ranks there were or how they shared the model: its bytes
 * are the same for every Split, and every Split resumes it. */
#pragma once

#include "dist.h"

/* What a run needs besides tensors; written into train_state.safetensors' metadata. */
typedef struct {
    uint64_t step, samples, seed;
    double best_metric; /* best top-1 so far, -1 before the first evaluation */
    uint64_t best_step;
    uint64_t since_best; /* evaluations after that one */
    StepState counters; /* the device's: t, skipped steps, loss scale */
    bool scaled;        /* the loss is scaled, and counters says how */
    /* of 8-bit copies (vit_amax): the largest numbers of the last steps [scales][history], and the
     * step with which that history began; scales 0: there are no such copies */
    real *amax;
    int scales, history;
    uint64_t fp8_since;
} RunState;

/* The ranks that save together. sum: x[n] becomes the sum over them, on all (hosts_sum). */
typedef struct {
    int rank, ranks;
    void (*sum)(double *x, int n);
} CkptRanks;

/* Whether all ranks see one directory, and may write to its files. It is made where there is none.
 * To be asked before a run's first step, not found out at its first save. Called by all, as
 * ckpt_save is; ranks NULL: alone. Where one does not see it, it takes five seconds to say so. */
bool ckpt_shared(const char *dir, const CkptRanks *ranks, Error *e);

/* Called by all ranks, of which each writes what it holds of the same two files, in pieces of few
 * megabytes. Returns the same on all; where it fails on one, all have that one's error. The first
 * rank's `run` counts.
 *
 * Save to DIR/step_%08d/{model,train_state}.safetensors (the model is the average of the weights
 * where there is one: what was evaluated), published atomically: written to a
 * temporary directory, synced, renamed. Then points DIR/latest and DIR/best (text files with a
 * directory name) at it and at best_step, and of the checkpoints up to this step removes all but
 * the newest `keep` (0: keeps all) and the best. A failure (full disk, ...) leaves every earlier
 * checkpoint intact and removes the unfinished one. */
bool ckpt_save(Units *u, const char *dir, const RunState *run, int keep, const CkptRanks *ranks,
               Error *e);
/* Find the checkpoint a run directory (or a checkpoint directory itself) would resume from. */
bool ckpt_find(const char *dir, char *out, size_t size, Error *e);
/* The checkpoint that DIR/best names; where there is none, the one that ckpt_find finds. */
bool ckpt_best(const char *dir, char *out, size_t size, Error *e);
/* Load what this rank holds of weights, optimiser state and EMA, and the counters: the run goes on
 * bit for bit where the ranks share the model as before. run->counters and run->scaled are this
 * run's; a loss scale that the file does not have stays. Of run->amax the newest are read; where
 * the file has none, a history begins with this step. */
bool ckpt_resume(Units *u, const char *checkpoint_dir, RunState *run, Error *e);

/* weights_load, with its `how`, into the weights and their average, which starts there. */
bool ckpt_load_weights(Units *u, const char *path, int how, char *report, size_t size, Error *e);
/* Once a checkpoint's model file is loaded: makes the weights (and their average, which starts
 * there) the average, or those of the last step, whichever the file holds; position embeddings are
 * resized as `pos` (POS_*) says. False: it has none that fits, and nothing has changed; of a
 * checkpoint without an average ckpt_load_raw too is false. */
bool ckpt_load_average(Units *u, const char *checkpoint_dir, int pos);
bool ckpt_load_raw(Units *u, const char *checkpoint_dir, int pos);
bool ckpt_is_average(const char *path); /* whether the model file says so of its weights */
