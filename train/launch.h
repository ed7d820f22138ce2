/* launch.h - who the processes of a run are, and a launcher of our own for one machine.
 *
 * One process per device. What launchers say in the environment is read here, where rank 0 listens
 * is opened here; what the ranks say to each other is in hosts.h.
 *
 * Variables that are ours, besides the launchers':
 *   VIT_PORT       rank 0 listens there (default: MASTER_PORT + 1, since torchrun's own store may
 *                  be on MASTER_PORT; under Slurm or MPI a number made from the job's)
 *   VIT_DIST_KEY   names the job to its ranks; the launchers here set it. MPICH's mpirun names
 *                  none: give it one by hand where several runs share a machine
 *   VIT_DIST_FD    rank 0's socket, which listens; launch_ranks sets it
 *   VIT_STATUS     a pipe, to which ranks write that they are there, and what they end with;
 *                  launch_mpirun sets it
 */
#pragma once

#include "util/util.h"

typedef struct {
    int rank, ranks; /* of all processes */
    int local_rank;  /* among this machine's, */
    int local_ranks; /* of which there are so many; 0: not known */
} World;

typedef struct {
    World world;
    const char *launcher; /* its name; NULL: none */
    char host[256];       /* where rank 0 listens; with one rank "", port 0 */
    int port;
    uint64_t key;   /* made from the job's name, */
    uint64_t build; /* from this program's file: weights of ranks that are computed by code of two
                     * builds would drift apart */
} Place;

/* Which process this is, as the environment says:
 *   torchrun, or by hand        RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT
 *   Open MPI's mpirun           OMPI_COMM_WORLD_{RANK,SIZE,LOCAL_RANK,LOCAL_SIZE}
 *   MPICH's, Intel's mpiexec    PMI_RANK PMI_SIZE MPI_LOCALRANKID MPI_LOCALNRANKS
 *   Slurm's srun                SLURM_PROCID SLURM_STEP_NUM_TASKS SLURM_LOCALID SLURM_STEP_NODELIST
 * The first that is there counts: an inner launcher's comes before the one it runs under. Rank 0's
 * host is MASTER_ADDR, else 127.0.0.1 where all ranks are on one machine, else Slurm's first node.
 * A Slurm batch script and an salloc shell have SLURM_PROCID and SLURM_NTASKS too, but no
 * SLURM_STEP_NODELIST: they are one process. */
bool launch_environment(Place *p, Error *e);
/* A variable as a whole number; `absent` where it is not set, or malformed, which fills e. */
int launch_env_int(const char *name, int low, int high, int absent, Error *e);

/* Starts `ranks` processes of this program with the same arguments (argv as main has it), waits for
 * them, passes SIGTERM, SIGINT and SIGUSR1 on to them, ends all when one fails, and exits with the
 * first failure's status; with 128 + the signal, where they stopped because of it. */
NORETURN void launch_ranks(int ranks, char **argv);
/* The same by mpirun, Open MPI's or MPICH's, for ranks that talk MPI. */
NORETURN void launch_mpirun(int ranks, char **argv);

/* Tells launch_mpirun that this rank is there, and from here on the status that it exits with:
 * MPICH's mpirun may not. What ends by _exit says so before. Nothing, where another launcher has
 * started it. */
void launch_tell_at_exit(void);
void launch_tell(int status);

/* getaddrinfo's list for a TCP port, or NULL and why; freeaddrinfo() it. */
struct addrinfo *launch_resolve(const char *host, int port, int flags, char *why, size_t size);
/* A listening socket, or -1 and why. On this machine's own address (127.0.0.1, ::1, localhost) only
 * this machine is heard; on any other host's name, whatever it may stand for here, all are. Port 0
 * is any free one. */
int launch_listen(const char *host, int port, char *why, size_t size);
