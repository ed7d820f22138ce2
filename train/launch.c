/* launch.c - what launchers say in the environment, and a launcher of our own for one machine.
 *
 * Nothing here talks to another rank: hosts.c does, above this file. The launcher only opens the
 * socket that its rank 0 will listen on, starts its processes and waits for them.
 *
 * Read in this order: the environment, sockets, statuses, the launcher.
 */
#include "train/launch.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define LAST_GRACE   5.0   /* seconds that processes have between SIGTERM and SIGKILL */
#define DEFAULT_PORT 29401 /* under an MPI that does not name the job */
#define NO_MPIRUN    127   /* status of a child that could not be started, and has said so */

/* ---- the environment ---- */

/* A variable's text; NULL where it is not set or empty. */
static const char *env(const char *name)
{
    const char *value = name ? getenv(name) : NULL;
    return value && *value ? value : NULL;
}

int launch_env_int(const char *name, int low, int high, int absent, Error *e)
{
    const char *text = env(name);
    if (!text)
        return absent;
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || value < low || value > high) {
        fail(e, "the launcher (torchrun, mpirun, srun) sets it; unset it where none is used",
             "environment: %s=%s is not a whole number in %d..%d", name, text, low, high);
        return absent;
    }
    return (int)value;
}

typedef struct {
    const char *name, *rank, *ranks, *local, *local_ranks;
    const char *job, *step; /* name the job: its key, and its port where none is given */
} Launcher;

/* Inner ones first: torchrun may run under srun, and so may mpirun's own helpers. */
enum { TORCHRUN, OPEN_MPI, HYDRA, SLURM };
/* clang-format off */
static const Launcher launchers[] = {
    [TORCHRUN] = {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
                  "VIT_DIST_KEY", "TORCHELASTIC_RUN_ID"},
    [OPEN_MPI] = {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                  "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
                  "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"},
    [HYDRA] = {"mpiexec", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS",
               "VIT_DIST_KEY", NULL},
    [SLURM] = {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", NULL,
               "SLURM_JOB_ID", "SLURM_STEP_ID"},
};
/* clang-format on */

static uint64_t hash(uint64_t h, const char *text)
{
    for (; text && *text; text++)
        h = (h ^ (unsigned char)*text) * 0x100000001b3u; /* FNV-1a */
    return (h ^ 0xff) * 0x100000001b3u;                  /* an end, so that ab,c is not a,bc */
}

/* Of the file that runs; 0: it cannot be read. */
static uint64_t hash_program(void)
{
    unsigned char bytes[1 << 16];
    uint64_t h = 0xcbf29ce484222325u;
    FILE *f = fopen("/proc/self/exe", "rb");
    for (size_t n; f && (n = fread(bytes, 1, sizeof bytes, f)) > 0;)
        for (size_t i = 0; i < n; i++)
            h = (h ^ bytes[i]) * 0x100000001b3u;
    if (!f || fclose(f) != 0)
        return 0;
    return h;
}

/* srun --mpi=pmi2 sets PMI_RANK as well, but not what Intel's and MPICH's mpiexec add to it. */
static const Launcher *find_launcher(void)
{
    bool step = env("SLURM_PROCID") && env("SLURM_STEP_NODELIST");
    if (env("RANK") && env("WORLD_SIZE"))
        return &launchers[TORCHRUN];
    if (env("OMPI_COMM_WORLD_RANK"))
        return &launchers[OPEN_MPI];
    if (env("PMI_RANK") && !(step && !env("MPI_LOCALRANKID")))
        return &launchers[HYDRA];
    return step ? &launchers[SLURM] : NULL;
}

/* "gpu[01-04,07]-ib,login" -> "gpu01-ib": each bracket's first entry, up to the first comma outside
 * of brackets. */
static bool first_node(const char *list, char *host, size_t size)
{
    size_t n = 0;
    for (const char *p = list; *p && *p != ','; p++) {
        if (*p == '[') {
            for (p++; *p && !strchr("-,]", *p) && n + 1 < size; p++)
                host[n++] = *p;
            p += strcspn(p, "]");
            if (!*p)
                return false;
        } else if (n + 1 < size) {
            host[n++] = *p;
        }
    }
    host[n] = 0;
    return n > 0;
}

static bool find_host(Place *p, const Launcher *l, Error *e)
{
    const char *given = env("MASTER_ADDR"), *nodes = env("SLURM_STEP_NUM_NODES");
    bool slurm = l == &launchers[SLURM];
    bool one_machine =
        slurm ? nodes && strcmp(nodes, "1") == 0 : p->world.local_ranks == p->world.ranks;
    if (given && strlen(given) >= sizeof p->host)
        return fail(e, "give it a host's name or address", "environment: MASTER_ADDR is too long");
    if (given || one_machine) {
        strcpy(p->host, given ? given : "127.0.0.1");
        return true;
    }
    if (slurm) {
        const char *list = env("SLURM_STEP_NODELIST");
        return first_node(list, p->host, sizeof p->host) ||
               fail(e, "set MASTER_ADDR to the host of rank 0",
                    "environment: SLURM_STEP_NODELIST=%s names no host", list);
    }
    return fail(e, "set MASTER_ADDR to the host of rank 0, on every rank (mpirun -x MASTER_ADDR)",
                "environment: %s started %d ranks, but not where rank 0 is", l->name,
                p->world.ranks);
}

/* MASTER_PORT + 1, since torchrun listens on MASTER_PORT itself; the job's own number otherwise,
 * below the ports that systems give to those who ask for any. */
static bool find_port(Place *p, const Launcher *l, Error *e)
{
    int master = launch_env_int("MASTER_PORT", 1, 65534, 0, e);
    p->port = launch_env_int("VIT_PORT", 1, 65535, master ? master + 1 : 0, e);
    if (*e->what || p->port)
        return !*e->what;
    if (l == &launchers[TORCHRUN])
        return fail(e, "set MASTER_PORT (rank 0 will listen on the next one) or VIT_PORT",
                    "environment: RANK and WORLD_SIZE without MASTER_PORT");
    p->port = env(l->job) ? 15000 + (int)(p->key % 16000) : DEFAULT_PORT;
    return true;
}

static bool find_rank(Place *p, const Launcher *l, Error *e)
{
    World *w = &p->world;
    const char *size = l == &launchers[SLURM] && !env(l->ranks) ? "SLURM_NTASKS" : l->ranks;
    w->ranks = launch_env_int(size, 1, 1 << 20, 0, e);
    w->rank = launch_env_int(l->rank, 0, 1 << 20, 0, e);
    w->local_rank = launch_env_int(l->local, 0, 1 << 20, w->ranks == 1 ? 0 : -1, e);
    w->local_ranks = launch_env_int(l->local_ranks, 1, 1 << 20, 0, e);
    if (*e->what)
        return false;
    if (!w->ranks)
        return fail(e, "start all ranks by a launcher, or unset the variable",
                    "environment: %s without %s", l->rank, size);
    if (w->rank >= w->ranks)
        return fail(e, "ranks count from 0", "environment: %s=%d, but %s=%d", l->rank, w->rank,
                    size, w->ranks);
    if (w->local_rank < 0)
        return fail(e, "set it to this process's number on its machine, from 0",
                    "environment: %s and %s without %s", l->rank, size, l->local);
    int most = w->local_ranks ? w->local_ranks : w->ranks;
    if (w->local_rank >= most || most > w->ranks)
        return fail(e, "a machine's processes count from 0, and are no more than all",
                    "environment: %s=%d of %d on this machine, and %s=%d", l->local, w->local_rank,
                    most, size, w->ranks);
    return true;
}

bool launch_environment(Place *p, Error *e)
{
    const Launcher *l = find_launcher();
    World *w = &p->world;
    *p = (Place){.world = {.ranks = 1}, .launcher = l ? l->name : NULL};
    e->what[0] = e->hint[0] = 0;
    if (l && !find_rank(p, l, e))
        return false;
    /* Scripts for srun often export one of the two; alone they may repeat the truth, no more. */
    int ranks = launch_env_int("WORLD_SIZE", 1, 1 << 20, 1, e);
    int rank = launch_env_int("RANK", 0, 1 << 20, w->rank, e);
    if (*e->what)
        return false;
    if (l != &launchers[TORCHRUN] && ((ranks > 1 && ranks != w->ranks) || rank != w->rank))
        return fail(e, "start all ranks by a launcher (torchrun, srun, mpirun), or unset it",
                    "environment: %s=%d, but this is process %d of %d",
                    rank != w->rank ? "RANK" : "WORLD_SIZE", rank != w->rank ? rank : ranks,
                    w->rank, w->ranks);
    if (w->ranks == 1)
        return true;
    p->key = hash(hash(hash(0xcbf29ce484222325u, l->name), env(l->job)), env(l->step));
    p->build = hash_program();
    return find_host(p, l, e) && find_port(p, l, e);
}

/* ---- sockets ---- */

struct addrinfo *launch_resolve(const char *host, int port, int flags, char *why, size_t size)
{
    char service[8];
    struct addrinfo hints = {.ai_flags = flags, .ai_socktype = SOCK_STREAM}, *list;
    snprintf(service, sizeof service, "%d", port);
    int code = getaddrinfo(host, service, &hints, &list);
    if (code == 0)
        return list;
    snprintf(why, size, "%s", code == EAI_SYSTEM ? strerror(errno) : gai_strerror(code));
    return NULL;
}

static int listen_at(const struct addrinfo *a, char *why, size_t size)
{
    int fd = socket(a->ai_family, SOCK_STREAM, 0), on = 1, off = 0;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (a->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (fd >= 0 && bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, 1024) == 0)
        return fd;
    snprintf(why, size, "%s", strerror(errno));
    if (fd >= 0)
        close(fd);
    return -1;
}

int launch_listen(const char *host, int port, char *why, size_t size)
{
    static const int families[] = {AF_INET6, AF_INET}; /* IPv6 hears IPv4 too */
    bool local =
        strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0 || strcmp(host, "localhost") == 0;
    struct addrinfo *list =
        launch_resolve(local ? host : NULL, port, local ? 0 : AI_PASSIVE, why, size);
    int fd = -1;
    for (int i = 0; i < COUNT(families); i++)
        for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next)
            if (a->ai_family == families[i])
                fd = listen_at(a, why, size);
    if (list)
        freeaddrinfo(list);
    return fd;
}

/* ---- what ranks tell their launcher ----
 *
 * MPICH's mpirun ends with the statuses of all ranks ORed, of those too that it has killed itself;
 * with 0 where a rank's output was closed before it looked at its status. And no mpirun says when
 * its ranks are there. So they tell our launcher themselves, through a pipe that they open by its
 * name: what mpirun starts inherits no files. */

#define STATUS_NAME "VIT_STATUS" /* the pipe's */
#define IS_HERE     255          /* told in the beginning; no status of ours */

static int status_pipe = -1;

void launch_tell(int status)
{
    unsigned char byte = (unsigned char)status;
    if (status_pipe >= 0)
        (void)!write(status_pipe, &byte, 1);
}

static void tell_at_exit(int status, void *none)
{
    (void)none;
    launch_tell(status);
}

void launch_tell_at_exit(void)
{
    const char *name = env(STATUS_NAME);
    status_pipe = name ? open(name, O_WRONLY | O_NONBLOCK | O_CLOEXEC) : -1;
    unsetenv(STATUS_NAME); /* not for what this process may start */
    if (status_pipe < 0)
        return;
    launch_tell(IS_HERE);
    on_exit(tell_at_exit, NULL);
}

/* Opens the pipe that ranks will find; returns the end that is read. */
static int open_status_pipe(void)
{
    int ends[2];
    char name[64];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0)
        die("raise the limit of open files (ulimit -n)", "cannot make a pipe: %s", strerror(errno));
    snprintf(name, sizeof name, "/proc/%d/fd/%d", (int)getpid(), ends[1]);
    setenv(STATUS_NAME, name, 1);
    return ends[0];
}

/* What mpirun's end means, whose ranks have told a status. Open MPI's says a rank's signal as we
 * do; MPICH's as the number alone, unless a rank knows better. */
static int mpirun_status(int how, int told)
{
    int status = WIFSIGNALED(how) ? 128 + WTERMSIG(how) : WEXITSTATUS(how);
    if (status < 32 && told)
        return told;
    return status > 2 && status < 32 ? 128 + status : status;
}

/* ---- the launcher ---- */

typedef struct {
    pid_t *pid; /* 0: has ended */
    int n, alive;
    int mpirun;       /* the one child is mpirun, of so many ranks; 0: it is not, */
    int pipe;         /* which tell us here: */
    int here;         /* so many that they have begun, */
    int told, signal; /* the worst status of a failure; of one that a signal has stopped */
    int rank, how;    /* the first failure: whose, and as waitpid says it; 0: none */
    int asked;        /* the signal that has been passed on: ending by it is no failure */
    int stopped;      /* a status by a signal: the checkpoint is safe, but the run not complete */
    double ends_at;   /* when those that are left are killed; 0: not yet known */
} Family;

static void set_int(const char *name, int value)
{
    char text[16];
    snprintf(text, sizeof text, "%d", value);
    setenv(name, text, 1);
}

/* A child with this program file; -1: there can be none. Its own process group: Ctrl-C reaches the
 * launcher alone, which passes it on once (train.c takes a second signal as an order to exit at
 * once). Such a group may not read the terminal, and writes to it undisturbed only when SIGTTOU is
 * ignored. */
static pid_t start(const char *file, char **argv, const sigset_t *mask)
{
    pid_t launcher = getpid(), pid = fork();
    if (pid != 0)
        return pid;
    setpgid(0, 0);
    signal(SIGTTOU, SIG_IGN);
    int null = open("/dev/null", O_RDONLY);
    if (null >= 0)
        dup2(null, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != launcher) /* it was gone before prctl */
        _exit(1);
    sigprocmask(SIG_SETMASK, mask, NULL);
    execvp(file, argv);
    execvp(argv[0], argv);
    fprintf(stderr, "error: cannot start %s: %s\nhint: %s\n", argv[0], strerror(errno),
            strcmp(file, "mpirun") ? "see its permissions" : "install openmpi-bin (make deps)");
    _exit(NO_MPIRUN);
}

static void signal_all(const Family *f, int sig)
{
    for (int i = 0; i < f->n; i++)
        if (f->pid[i])
            kill(f->pid[i], sig);
}

static void hear(Family *f)
{
    unsigned char byte;
    while (f->mpirun && read(f->pipe, &byte, 1) == 1) {
        if (byte == IS_HERE)
            f->here++;
        else if (byte > 128)
            f->signal = byte;
        else if (byte > f->told)
            f->told = byte;
    }
}

/* All end at once. */
static void end_all(Family *f)
{
    signal_all(f, SIGTERM);
    f->ends_at = now() + LAST_GRACE;
}

/* mpirun takes SIGTERM and SIGINT as orders to kill within two seconds; SIGUSR1 it passes on, but
 * only to ranks that it has started: before they have begun there is nothing to save. */
static void pass_on(Family *f, int sig)
{
    hear(f);
    f->asked = sig;
    if (f->here < f->mpirun) {
        f->stopped = 128 + sig;
        end_all(f);
    } else {
        signal_all(f, f->mpirun ? SIGUSR1 : sig);
    }
}

/* The first failure is the cause, and the others' ends are its consequences: they exit with 1 or
 * are stopped by us. But they may be over before it is: the system takes a while to clear away a
 * large process. So for two seconds a better explanation is taken. */
static int weight(int how)
{
    if (WIFSIGNALED(how))
        return 3;
    return WEXITSTATUS(how) > 1 ? 2 : WEXITSTATUS(how);
}

/* Whether it has saved and left, after a signal that it may have had from somebody else: of
 * mpirun's ranks, those that were killed by one tell nothing. */
static bool left_in_order(const Family *f, int how)
{
    int status = WIFEXITED(how) ? WEXITSTATUS(how) : 0;
    bool told = !f->mpirun || f->asked || (status == f->signal && !f->told);
    return status > 128 && told;
}

static void note_end(Family *f, int rank, int how)
{
    if (f->mpirun && f->stopped) /* before its ranks had begun */
        return;
    if (left_in_order(f, how)) {
        f->stopped = f->asked ? 128 + f->asked : WEXITSTATUS(how);
        return;
    }
    bool first = f->how == 0, by_us = !first && WIFSIGNALED(how) && WTERMSIG(how) == SIGTERM;
    bool late = !first && now() > f->ends_at - LAST_GRACE + 2;
    if (weight(how) <= weight(f->how) || by_us || late)
        return;
    f->rank = rank;
    f->how = how;
    if (first)
        end_all(f);
}

static void reap(Family *f)
{
    int how;
    for (int i = 0; i < f->n; i++)
        if (f->pid[i] && waitpid(f->pid[i], &how, WNOHANG) == f->pid[i]) {
            f->pid[i] = 0;
            f->alive--;
            hear(f);
            if (f->mpirun)
                how = W_EXITCODE(mpirun_status(how, f->told ? f->told : f->signal), 0);
            note_end(f, i, how);
        }
}

static int explain(const Family *f)
{
    int status = WIFSIGNALED(f->how) ? 128 + WTERMSIG(f->how) : WEXITSTATUS(f->how);
    int sig = WIFSIGNALED(f->how) || (f->mpirun && status > 128) ? status - 128 : 0;
    char rank[32] = "a rank";
    if (status <= 2 || f->asked || (f->mpirun && status == NO_MPIRUN))
        return status; /* 1, 2: a rank has said why */
    if (!f->mpirun)
        snprintf(rank, sizeof rank, "rank %d", f->rank);
    fflush(stdout);
    const char *hint = "the other ranks were stopped; --resume continues the last checkpoint";
    if (sig == SIGKILL)
        hint = "the system kills when memory runs out, see dmesg; --resume continues the last "
               "checkpoint";
    if (sig)
        fprintf(stderr, "error: %s was killed by signal %d (%s)\n", rank, sig, strsignal(sig));
    else
        fprintf(stderr, "error: %s ended with status %d\n", rank, status);
    fprintf(stderr, "hint: %s\n", hint);
    return status;
}

static _Noreturn void wait_for_all(Family *f, const sigset_t *set)
{
    while (f->alive) {
        struct timespec tick = {.tv_nsec = 100000000};
        int sig = sigtimedwait(set, NULL, f->ends_at > 0 ? &tick : NULL);
        if (sig > 0 && sig != SIGCHLD)
            pass_on(f, sig);
        reap(f);
        if (f->ends_at > 0 && now() > f->ends_at)
            signal_all(f, SIGKILL);
    }
    int status = f->stopped && !f->how ? f->stopped : explain(f);
    fflush(NULL);
    exit(status);
}

/* A name for the job, by which its ranks know each other. */
static void name_job(void)
{
    uint64_t random = 0;
    char key[17];
    if (getrandom(&random, sizeof random, GRND_NONBLOCK) != sizeof random)
        random = (uint64_t)getpid() << 32 ^ (uint64_t)(now() * 1e9);
    snprintf(key, sizeof key, "%016llx", (unsigned long long)random);
    setenv("VIT_DIST_KEY", key, 1);
}

/* Opens rank 0's socket and says in the environment, as torchrun does, what all ranks shall know.
 * Rank 0 inherits the socket, so that nobody can take the port in between. */
static int prepare_environment(int ranks)
{
    Error e = {"", ""};
    char why[256];
    int wanted = launch_env_int("VIT_PORT", 1, 65535, 0, &e);
    if (*e.what)
        die(e.hint, "%s", e.what);
    int listener = launch_listen("127.0.0.1", wanted, why, sizeof why);
    if (listener < 0)
        die("set VIT_PORT to a free port", "cannot listen on 127.0.0.1 port %d: %s", wanted, why);
    struct sockaddr_in a = {0};
    socklen_t size = sizeof a;
    getsockname(listener, (struct sockaddr *)&a, &size);
    name_job();
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    set_int("MASTER_PORT", ntohs(a.sin_port));
    set_int("VIT_PORT", ntohs(a.sin_port));
    set_int("WORLD_SIZE", ranks);
    set_int("LOCAL_WORLD_SIZE", ranks);
    return listener;
}

/* The signals that a launcher waits for instead of being interrupted by them. */
static sigset_t hold_signals(sigset_t *before)
{
    static const int held[] = {SIGCHLD, SIGTERM, SIGINT, SIGUSR1};
    sigset_t set;
    sigemptyset(&set);
    for (int i = 0; i < COUNT(held); i++)
        sigaddset(&set, held[i]);
    signal(SIGCHLD, SIG_DFL); /* inherited as ignored, ended children would not wait for us */
    sigprocmask(SIG_BLOCK, &set, before);
    fflush(NULL);
    return set;
}

_Noreturn void launch_ranks(int ranks, char **argv)
{
    int listener = prepare_environment(ranks);
    sigset_t before, set = hold_signals(&before);
    Family f = {.pid = xcalloc((size_t)ranks, sizeof *f.pid), .n = ranks};
    set_int("VIT_DIST_FD", listener);
    for (int rank = 0; rank < ranks; rank++) {
        set_int("RANK", rank);
        set_int("LOCAL_RANK", rank);
        pid_t pid = start("/proc/self/exe", argv, &before);
        if (pid < 0) {
            int reason = errno;
            signal_all(&f, SIGKILL);
            die("lower --gpus, or raise the limit of processes (ulimit -u)",
                "cannot start process %d of %d: %s", rank + 1, ranks, strerror(reason));
        }
        f.pid[rank] = pid;
        f.alive++;
        if (rank == 0) { /* the socket is its own now */
            unsetenv("VIT_DIST_FD");
            close(listener);
        }
    }
    wait_for_all(&f, &set);
}

/* What mpirun shall do: Open MPI 4's names, then Open MPI 5's; MPICH needs none. Small machines may
 * have more ranks than cores, containers are root's, each rank's threads are its own affair, and
 * what has gone wrong is said by us. What the user has set stays. */
static const char *const mpirun_settings[][2] = {
    {"OMPI_ALLOW_RUN_AS_ROOT", "1"},
    {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
    {"OMPI_MCA_rmaps_base_oversubscribe", "1"},
    {"OMPI_MCA_hwloc_base_binding_policy", "none"},
    {"OMPI_MCA_orte_execute_quiet", "1"},
    {"PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"},
    {"PRTE_MCA_hwloc_default_binding_policy", "none"},
};

/* What one process alone may have been told, and would come before what mpirun says. */
static const char *const torchrun_settings[] = {
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"};

_Noreturn void launch_mpirun(int ranks, char **argv)
{
    char n[16], program[4096];
    int argc = 0;
    while (argv[argc])
        argc++;
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length < 0)
        die("mount /proc", "cannot tell where this program is: %s", strerror(errno));
    program[length] = 0;
    snprintf(n, sizeof n, "%d", ranks);
    char **args = xcalloc((size_t)argc + 5, sizeof *args);
    memcpy(args, (char *[]){"mpirun", "-n", n, program}, 4 * sizeof *args);
    memcpy(args + 4, argv + 1, (size_t)(argc - 1) * sizeof *args);
    for (int i = 0; i < COUNT(torchrun_settings); i++)
        unsetenv(torchrun_settings[i]);
    for (int i = 0; i < COUNT(mpirun_settings); i++)
        setenv(mpirun_settings[i][0], mpirun_settings[i][1], 0);
    name_job(); /* MPICH has none, and runs side by side must not be taken for one */
    int pipe = open_status_pipe();
    setenv("VIT_TERMINAL", isatty(STDOUT_FILENO) ? "1" : "0", 1);
    sigset_t before, set = hold_signals(&before);
    pid_t pid = start("mpirun", args, &before);
    if (pid < 0)
        die("raise the limit of processes (ulimit -u)", "cannot start mpirun: %s", strerror(errno));
    Family f = {.pid = &pid, .n = 1, .alive = 1, .mpirun = ranks, .pipe = pipe};
    wait_for_all(&f, &set);
}
