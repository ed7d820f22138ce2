/* dist.h - who the processes of a run are, and how their hosts talk.
 *
 * One process per device. dist_start() finds out which of them this is, or starts them itself, and
 * connects them: what the host needs to agree on (NCCL's identifier, counts of an evaluation,
 * whether to stop) goes over TCP, through rank 0. Gradients do not: they are the backend's. There
 * is no MPI here, no NCCL, and no arithmetic but sums.
 *
 * Everything is called by the main thread, by all ranks in the same order; with one rank every call
 * returns at once.
 *
 * Variables it reads, besides the launchers':
 *   VIT_PORT          rank 0 listens there (default: MASTER_PORT + 1, since torchrun's own store
 *                     may be on MASTER_PORT; under Slurm or MPI a number made from the job's)
 *   VIT_DIST_TIMEOUT  seconds until every rank must have come (120)
 */
#pragma once

#include "util/util.h"

typedef struct {
    int rank, ranks; /* of all processes */
    int local_rank;  /* among this machine's */
} World;

/* Which process this is, from the environment of torchrun, mpirun, mpiexec or srun (see
 * dist_environment). Where none of them has started several and gpus > 1, starts `gpus` processes
 * of this program with the same arguments (argv as main has it) and never returns: it waits for
 * them, passes SIGTERM, SIGINT and SIGUSR1 on to them, ends all when one fails, and exits with the
 * first failure's status. Call it before anything that a copy of the process could not have, such
 * as threads and devices. gpus 0 or 1: as many as the launcher has started. Returns when all ranks
 * are connected. Dies when the environment makes no sense or a rank does not come in time. */
World dist_start(int gpus, char **argv);

/* Rank 0's bytes to all. */
void dist_broadcast(void *data, size_t bytes);
/* x[n] = the sum over the ranks, added in their order; the same bits on all. */
void dist_sum(double *x, int n);
/* Waits until all ranks have come here. */
void dist_barrier(void);
/* Waits for all, and takes leave: a rank that ends without it has failed, which ends the others. */
void dist_end(void);

/* When a rank ends, every other one dies with "error: rank 3 (host) ended": at once inside the
 * calls above; elsewhere at the next of them or after five seconds, whichever is first, even if the
 * main thread is waiting for a device that will never answer. */

/* ---- parts of dist_start ---- */

/* launch.c: what the environment says.
 *   torchrun, or by hand        RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT
 *   Open MPI's mpirun           OMPI_COMM_WORLD_{RANK,SIZE,LOCAL_RANK,LOCAL_SIZE}
 *   MPICH's, Intel's mpiexec    PMI_RANK PMI_SIZE MPI_LOCALRANKID MPI_LOCALNRANKS
 *   Slurm's srun                SLURM_PROCID SLURM_STEP_NUM_TASKS SLURM_LOCALID SLURM_STEP_NODELIST
 * The first that is there counts: an inner launcher's comes before the one it runs under. Rank 0's
 * host is MASTER_ADDR, else 127.0.0.1 where all ranks are on one machine, else Slurm's first node.
 * A Slurm batch script and an salloc shell have SLURM_PROCID and SLURM_NTASKS too, but no
 * SLURM_STEP_NODELIST: they are one process. */
typedef struct {
    World world;
    const char *launcher; /* its name; NULL: none */
    int local_ranks;      /* on this machine; 0: not known */
    char host[256];       /* where rank 0 listens; with one rank "", port 0 */
    int port;
    uint64_t key; /* made from the job's name */
} Place;
bool dist_environment(Place *p, Error *e);
/* A variable as a whole number; `absent` where it is not set, or malformed, which fills e. */
int dist_env_int(const char *name, int low, int high, int absent, Error *e);
/* Starts the processes, and exits when they have ended. */
NORETURN void dist_launch(int gpus, char **argv);

/* dist.c: a listening socket, or -1 and why. On this machine's own address (127.0.0.1, ::1,
 * localhost) only this machine is heard; on any other host's name, whatever it may stand for here,
 * all are. Port 0 is any free one. */
int dist_listen(const char *host, int port, char *why, size_t size);
