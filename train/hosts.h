/* hosts.h - what the hosts of a run's processes say to each other.
 *
 * What they need to agree on (NCCL's identifier, counts of an evaluation, what data was used) goes
 * over TCP, through rank 0. Gradients do not, and what all must know at every step rides with them:
 * they are the backend's. There is no MPI here, no
 * NCCL, and no arithmetic but sums. Which process this is, and where rank 0 is, comes from
 * launch.h.
 *
 * Everything is called by the main thread, by all ranks in the same order; with one rank every call
 * returns at once.
 *
 * When a rank ends, every other one ends within a second, with status 1, whatever its main thread
 * is waiting for; one of each machine says "error: rank 3 (host) ended". The same where a rank
 * hangs (hosts_watch), with "error: rank 3 (host) has done nothing for 600 s ...: it was reading
 * images (step 12), after all-reduce 341 of 4.2 MB (data parallel); waiting: ranks 0-2 ...": which
 * call that is comes from util/calls.h.
 */
#pragma once

#include "train/launch.h"

/* Finds out which process this is and connects it with the others. Where no launcher has started
 * several and ranks > 1, starts so many itself and never returns (launch_mpirun for --ranks,
 * launch_ranks for --gpus). Call it before anything that a copy of the process could not have, such
 * as threads and devices. ranks 0 or 1: as many as the launcher has started. Dies when the
 * environment makes no sense or a rank does not come within VIT_DIST_TIMEOUT seconds (120). */
World hosts_start(int ranks, bool mpi, char **argv);

/* Rank 0's bytes to all. */
void hosts_broadcast(void *data, size_t bytes);
/* x[n] = the sum over the ranks, added in their order; the same bits on all. */
void hosts_sum(double *x, int n);
/* The name of a rank's machine; rank 0 knows all, others rank 0's and their own. */
const char *hosts_name(int rank);
/* Waits until all ranks have come here. */
void hosts_barrier(void);
/* Those who wait for a device, and so for other ranks, call it now and then, on any thread: it says
 * that they wait, and does not return where all must end. */
void hosts_check(void);

/* Dies for a reason that all ranks have found together: one of each machine says it. */
NORETURN void hosts_die(const char *hint, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* The watchdog: ends all when a rank has not answered for so many seconds, or its main thread has
 * done nothing while others waited for it, or all wait for each other. Rank 0's word counts; 0:
 * off. Long work must show that it goes on: by hosts_at, or alive() of util.h. */
void hosts_watch(int seconds);
/* What the main thread is about to do, as in "it was reading images": a constant, at most 35
 * characters; of which step, 0: of none. Cheap. */
void hosts_at(const char *doing, uint64_t step);
/* Waits for all, and takes leave: a rank that ends without it has failed, which ends the others. */
void hosts_end(void);
