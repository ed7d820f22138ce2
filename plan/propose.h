/* propose.h - layouts for a run: the micro-batch that fits, and which layouts are the fastest. */
#pragma once

#include "plan/forecast.h"

/* The largest micro-batch up to `most` that fits on every rank, divides a rank's batch and is a
 * multiple of group; 0: none. It becomes the job's. */
int job_fit(Job *j, long batch, long group, long most);

typedef struct {
    Job job;
    Needs needs;
    Forecast forecast;
} Proposal;
enum { MOST_PROPOSALS = 3 };
/* The fastest layouts of the job's ranks that fit, in this order: tensor parallel ranks, stages,
 * ZeRO, recomputation and micro-batch; all else is the job's. `batch` is of a whole step. Returns
 * how many there are. */
int job_propose(const Job *j, long batch, long group, Proposal *out);
/* "--tp 2 --zero 1 --recompute full --micro-batch 32"; "" where all is one GPU's and the default.
 */
void job_flags(const Job *j, char *out, size_t size);
/* What else than the job, which does not fit, would: a hint. */
void job_remedy(const Job *j, long group, char *out, size_t size);
