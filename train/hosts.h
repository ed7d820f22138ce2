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
 * When a rank ends, every other one dies with "error: rank 3 (host) ended": at once inside the
 * calls below; elsewhere at the next of them or after five seconds, whichever is first, even if the
 * main thread is waiting for a device that will never answer.
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
/* Waits until all ranks have come here. */
void hosts_barrier(void);
/* Dies here where another rank has ended: for those who wait for a device. */
void hosts_check(void);
/* Waits for all, and takes leave: a rank that ends without it has failed, which ends the others. */
void hosts_end(void);
