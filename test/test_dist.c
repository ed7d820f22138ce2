/* test_dist.c - several processes on this machine: finding each other, talking, ending.
 *
 * Every scene is a set of processes that this one forks, each with its own environment and a log
 * file for what it prints. Scenes that have to wait for something all run at the same time, on
 * ports of their own. The launcher starts this very program again: main() then plays the part that
 * the arguments name.
 *
 * Read in this order: processes; the environment; calls; strangers; ends; the watchdog; the
 * launcher.
 */
#include "train/hosts.h"

#include "check.h"
#include "util/calls.h"
#include "util/files.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- processes ---- */

typedef int Body(void *arg); /* what a process does; returns its exit status */

typedef struct {
    pid_t pid;
    double started, ended;
    int status; /* exit status, 128 + signal, -1: still running */
    char log[128];
} Process;

static char folder[] = "/tmp/test_dist.XXXXXX";
static int logs;

static const char *const launchers[] = {
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "PMIX_NAMESPACE",
    "OMPI_MCA_ess_base_jobid",
    "PMI_RANK",
    "PMI_SIZE",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_LOCALID",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_NUM_NODES",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "VIT_PORT",
    "VIT_DIST_TIMEOUT",
    "VIT_DIST_KEY",
    "VIT_DIST_FD",
};

/* The environment of none of them, then the words "NAME=value ..." */
static void environment(const char *words)
{
    char copy[1024], *rest = copy, *word;
    for (int i = 0; i < COUNT(launchers); i++)
        unsetenv(launchers[i]);
    snprintf(copy, sizeof copy, "%s", words);
    while ((word = strsep(&rest, " "))) {
        char *equals = strchr(word, '=');
        if (!equals)
            continue;
        *equals = 0;
        setenv(word, equals + 1, 1);
    }
}

static Process start(const char *words, Body *body, void *arg)
{
    Process p = {.status = -1, .started = now()};
    snprintf(p.log, sizeof p.log, "%s/%d.log", folder, logs++);
    fflush(NULL);
    p.pid = fork();
    if (p.pid != 0)
        return p;
    int fd = open(p.log, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(fd, 1);
    dup2(fd, 2);
    close(fd);
    environment(words);
    exit(body(arg));
}

static Process start_rank(int rank, int ranks, int port, const char *more, Body *body, void *arg)
{
    char words[512];
    snprintf(words, sizeof words,
             "RANK=%d WORLD_SIZE=%d LOCAL_RANK=%d MASTER_ADDR=127.0.0.1 VIT_PORT=%d %s", rank,
             ranks, rank, port, more);
    return start(words, body, arg);
}

/* Its exit status, once it has ended; killed where that takes longer than `seconds`. All processes
 * are looked after meanwhile, for the time of their end. */
static int finish(Process *p, double seconds)
{
    static struct {
        pid_t pid;
        int how;
        double time;
    } over[256];
    static int n;
    for (double until = now() + seconds; p->status < 0; usleep(2000)) {
        int how;
        pid_t pid;
        while (n < COUNT(over) && (pid = waitpid(-1, &how, WNOHANG)) > 0) {
            over[n].pid = pid;
            over[n].how = how;
            over[n++].time = now();
        }
        for (int i = 0; i < n; i++)
            if (over[i].pid == p->pid) {
                how = over[i].how;
                p->status = WIFSIGNALED(how) ? 128 + WTERMSIG(how) : WEXITSTATUS(how);
                p->ended = over[i].time;
            }
        if (p->status < 0 && now() > until)
            kill(p->pid, SIGKILL);
    }
    return p->status;
}

static bool printed(const Process *p, const char *text)
{
    char *log = read_text(p->log, 1 << 20, NULL);
    bool there = log && strstr(log, text);
    free(log);
    return there;
}

static void show(const Process *p)
{
    char *log = read_text(p->log, 1 << 20, NULL);
    printf("  status %d after %.1f s; printed:\n%s", p->status, p->ended - p->started,
           log ? log : "");
    free(log);
}

/* It ends within so many seconds with this status, having printed that. */
#define EXPECT(p, seconds, wanted, text)                                                     \
    do {                                                                                     \
        int got = finish(&(p), (seconds));                                                   \
        if (!CHECK(got == (wanted) && printed(&(p), (text)), "want %d and \"%s\"", (wanted), \
                   text))                                                                    \
            show(&(p));                                                                      \
    } while (0)

static int listener(int *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(fd, 8) != 0)
        die(NULL, "test_dist: no free port");
    getsockname(fd, (struct sockaddr *)&a, &size);
    *port = ntohs(a.sin_port);
    return fd;
}

static int free_port(void)
{
    int port;
    close(listener(&port));
    return port;
}

/* ---- the environment ---- */

static void test_environment(void)
{
    static const struct {
        const char *words;
        int rank, ranks, local, port; /* rank -1: an error that contains `host` */
        const char *host;
    } table[] = {
        {"", 0, 1, 0, 0, ""},
        {"WORLD_SIZE=1", 0, 1, 0, 0, ""},
        {"RANK=0 WORLD_SIZE=1", 0, 1, 0, 0, ""},
        {"RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 MASTER_ADDR=node7 MASTER_PORT=29500",
         5, 8, 1, 29501, "node7"},
        {"RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=::1 MASTER_PORT=9 VIT_PORT=77", 0, 2, 0, 77,
         "::1"},
        {"RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_PORT=9", 1, 2, 1, 10,
         "127.0.0.1"},
        {"RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a", -1, 0, 0, 0, "without MASTER_PORT"},
        {"RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_PORT=9", -1, 0, 0, 0, "not where rank 0 is"},
        {"RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=9", -1, 0, 0, 0, "without LOCAL_RANK"},
        {"RANK=2 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a MASTER_PORT=9", -1, 0, 0, 0, "RANK=2"},
        {"RANK=1x WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a MASTER_PORT=9", -1, 0, 0, 0, "RANK=1x"},
        {"RANK=-1 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a MASTER_PORT=9", -1, 0, 0, 0, "RANK=-1"},
        {"RANK=1 WORLD_SIZE=0 LOCAL_RANK=0 MASTER_ADDR=a MASTER_PORT=9", -1, 0, 0, 0,
         "WORLD_SIZE=0"},
        {"RANK=1 WORLD_SIZE=2 LOCAL_RANK=2 MASTER_ADDR=a MASTER_PORT=9", -1, 0, 0, 0,
         "LOCAL_RANK=2"},
        {"RANK=1 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=3 MASTER_ADDR=a MASTER_PORT=9", -1, 0,
         0, 0, "of 3 on this machine"},
        {"RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 MASTER_ADDR=a MASTER_PORT=70000", -1, 0, 0, 0,
         "MASTER_PORT=70000"},
        {"RANK=1 WORLD_SIZE=99999999999999999999 LOCAL_RANK=1", -1, 0, 0, 0, "WORLD_SIZE="},
        {"RANK=3", -1, 0, 0, 0, "RANK=3"},
        {"WORLD_SIZE=4 MASTER_ADDR=a", -1, 0, 0, 0, "WORLD_SIZE=4"},
        /* Open MPI */
        {"OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=1 "
         "OMPI_COMM_WORLD_LOCAL_SIZE=2",
         1, 2, 1, 29401, "127.0.0.1"},
        {"OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=0 "
         "OMPI_COMM_WORLD_LOCAL_SIZE=1",
         -1, 0, 0, 0, "not where rank 0 is"},
        {"OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=0 "
         "OMPI_COMM_WORLD_LOCAL_SIZE=1 MASTER_ADDR=10.0.0.1",
         1, 2, 0, 29401, "10.0.0.1"},
        {"OMPI_COMM_WORLD_RANK=1", -1, 0, 0, 0, "without OMPI_COMM_WORLD_SIZE"},
        /* mpirun under Slurm, whose own numbers are those of mpirun's helpers */
        {"OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=1 "
         "OMPI_COMM_WORLD_LOCAL_SIZE=2 SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_STEP_NODELIST=n1 "
         "SLURM_STEP_NUM_TASKS=1",
         1, 2, 1, 29401, "127.0.0.1"},
        /* MPICH, Intel MPI */
        {"PMI_RANK=2 PMI_SIZE=3 MPI_LOCALRANKID=2 MPI_LOCALNRANKS=3", 2, 3, 2, 29401, "127.0.0.1"},
        {"PMI_RANK=2 PMI_SIZE=3 MPI_LOCALRANKID=0 MPI_LOCALNRANKS=1 MASTER_ADDR=h MASTER_PORT=5", 2,
         3, 0, 6, "h"},
        {"PMI_RANK=2 PMI_SIZE=3", -1, 0, 0, 0, "without MPI_LOCALRANKID"},
        /* Slurm: a step, a step of one task, a batch script, an salloc shell */
        {"SLURM_PROCID=3 SLURM_NTASKS=4 SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=1 "
         "SLURM_STEP_NUM_NODES=2 "
         "SLURM_STEP_NODELIST=gpu[07-09,12]-ib,x SLURM_JOB_ID=1 VIT_PORT=5",
         3, 4, 1, 5, "gpu07-ib"},
        {"SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_LOCALID=0 SLURM_STEP_NODELIST=a-1,a-2 VIT_PORT=5", 1,
         2, 0, 5, "a-1"},
        {"SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_LOCALID=0 SLURM_STEP_NODELIST=r[2,4]n[3-5] "
         "VIT_PORT=5",
         1, 2, 0, 5, "r2n3"},
        {"SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_LOCALID=0 SLURM_STEP_NODELIST=r[2 VIT_PORT=5", -1, 0,
         0, 0, "names no host"},
        {"SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_LOCALID=1 SLURM_STEP_NUM_NODES=1 "
         "SLURM_STEP_NODELIST=a VIT_PORT=5",
         1, 2, 1, 5, "127.0.0.1"},
        {"SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_LOCALID=1 SLURM_STEP_NUM_NODES=1 "
         "SLURM_STEP_NODELIST=a VIT_PORT=5 PMI_RANK=1 PMI_SIZE=2",
         1, 2, 1, 5, "127.0.0.1"},
        {"SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_LOCALID=1 SLURM_STEP_NODELIST=a WORLD_SIZE=3", -1, 0,
         0, 0, "WORLD_SIZE=3, but this is process 1 of 2"},
        {"SLURM_PROCID=1 SLURM_NTASKS=2 SLURM_LOCALID=1 SLURM_STEP_NODELIST=a WORLD_SIZE=2 "
         "VIT_PORT=5",
         1, 2, 1, 5, "a"},
        {"SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_LOCALID=0 SLURM_STEP_NODELIST=n1 "
         "SLURM_STEP_NUM_TASKS=1",
         0, 1, 0, 0, ""},
        {"SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_LOCALID=0 SLURM_JOB_ID=3", 0, 1, 0, 0, ""},
        {"SLURM_NTASKS=8 SLURM_JOB_ID=3", 0, 1, 0, 0, ""},
    };
    for (int i = 0; i < COUNT(table); i++) {
        Place p;
        Error e = {"", ""};
        environment(table[i].words);
        bool ok = launch_environment(&p, &e);
        if (table[i].rank < 0) {
            CHECK(!ok && strstr(e.what, table[i].host) && *e.hint, "%s: %s", table[i].words,
                  e.what);
            continue;
        }
        CHECK(ok && p.world.rank == table[i].rank && p.world.ranks == table[i].ranks &&
                  p.world.local_rank == table[i].local && p.port == table[i].port &&
                  strcmp(p.host, table[i].host) == 0,
              "%s: %d %d %d %s:%d %s", table[i].words, p.world.rank, p.world.ranks,
              p.world.local_rank, p.host, p.port, e.what);
    }
    Place one, two;
    Error e;
    environment("SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_LOCALID=0 SLURM_STEP_NODELIST=a "
                "SLURM_JOB_ID=41 SLURM_STEP_ID=0");
    bool ok = launch_environment(&one, &e);
    setenv("SLURM_STEP_ID", "1", 1);
    ok = launch_environment(&two, &e) && ok;
    CHECK(ok && one.port != two.port && one.port >= 15000 && one.port < 31000, "ports %d and %d",
          one.port, two.port);
    environment("");
}

/* ---- calls ---- */

/* Sums whose value depends on their order. */
static double term(int rank, int i)
{
    return (rank % 2 ? -1 : 1) * (double)(i + 1) * 1e15 / (3 + rank) + 0.1 * rank;
}

static int do_calls(void *arg)
{
    World w = hosts_start(0, false, NULL);
    (void)arg;
    for (int round = 0; round < 50; round++) {
        double x[33];
        for (int i = 0; i < 33; i++)
            x[i] = term(w.rank, i + round);
        hosts_sum(x, 33);
        for (int i = 0; i < 33; i++) {
            double sum = term(0, i + round);
            for (int r = 1; r < w.ranks; r++)
                sum += term(r, i + round);
            CHECK(memcmp(&sum, &x[i], sizeof sum) == 0, "%a is not %a", x[i], sum);
        }
        hosts_barrier();
        int n = round == 7 ? 5000000 : 100 * round;
        unsigned char *data = xmalloc((size_t)n);
        for (int i = 0; i < n; i++)
            data[i] = w.rank ? 0 : (unsigned char)(i * 7 + round);
        hosts_broadcast(data, (size_t)n);
        int wrong = 0;
        for (int i = 0; i < n; i++)
            wrong += data[i] != (unsigned char)(i * 7 + round);
        CHECK(wrong == 0, "%d of %d bytes differ", wrong, n);
        free(data);
    }
    if (w.rank == w.ranks - 1)
        usleep(300000); /* the others wait for it at the end */
    hosts_end();
    hosts_end();
    hosts_barrier();
    return check_report();
}

static int start_late(void *arg)
{
    usleep(400000);
    return do_calls(arg);
}

static void test_calls(const char *address, int ranks)
{
    Process p[8];
    int port = free_port();
    char more[64];
    snprintf(more, sizeof more, "MASTER_ADDR=%s", address);
    for (int r = ranks - 1; r >= 0; r--)
        p[r] = start_rank(r, ranks, port, more, r == 0 ? start_late : do_calls, NULL);
    for (int r = 0; r < ranks; r++)
        EXPECT(p[r], 20, 0, " 0 failed");
}

static bool has_ipv6(void)
{
    struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    bool ok = fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0;
    if (fd >= 0)
        close(fd);
    return ok;
}

/* ---- strangers ---- */

static int connect_to(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                            .sin_port = htons((uint16_t)port)};
    for (int i = 0; i < 500; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)&a, sizeof a) == 0)
            return fd;
        close(fd);
        usleep(10000);
    }
    return -1;
}

/* Before all have come: text, silence, half a greeting, another job's rank, one of another world,
 * and one that is there already. The job runs as if none of them had been there. */
static void test_strangers(void)
{
    int port = free_port(), silent, text, half;
    static const char http[] =
        "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n0123456789012345678901234567"
        "89012345678901234567890123456789012345678901234567890123456789";
    Process p[3], other, larger, twice;
    p[0] = start_rank(0, 3, port, "", do_calls, NULL);
    silent = connect_to(port);
    text = connect_to(port);
    half = connect_to(port);
    CHECK(silent >= 0 && text >= 0 && half >= 0);
    CHECK(write(text, http, sizeof http) == sizeof http);
    CHECK(write(half, "\x02\xb2", 2) == 2);
    p[1] = start_rank(1, 3, port, "", do_calls, NULL);
    other = start_rank(2, 3, port, "TORCHELASTIC_RUN_ID=other VIT_DIST_TIMEOUT=1", do_calls, NULL);
    EXPECT(other, 10, 1, "another job's rank 0");
    larger = start_rank(2, 4, port, "VIT_DIST_TIMEOUT=5", do_calls, NULL);
    EXPECT(larger, 10, 1, "it counts another number of ranks");
    twice = start_rank(1, 3, port, "VIT_DIST_TIMEOUT=5", do_calls, NULL);
    EXPECT(twice, 10, 1, "that rank is here already");
    p[2] = start_rank(2, 3, port, "", do_calls, NULL);
    for (int r = 0; r < 3; r++)
        EXPECT(p[r], 20, 0, " 0 failed");
    CHECK(printed(&p[0], "warning: refused rank 1"));
    close(silent);
    close(text);
    close(half);
}

/* ---- ends ---- */

typedef struct {
    int rank;     /* the one that ends, */
    int how;      /* with this status, by the signal -how, or by die() */
    bool waiting; /* the others wait for it; else they are busy with something that never ends */
} End;

static void hook(void)
{
    fprintf(stderr, "the hook was here\n");
}

static int do_end(void *arg)
{
    const End *end = arg;
    die_hook = hook;
    World w = hosts_start(0, false, NULL);
    hosts_barrier();
    if (w.rank == end->rank) {
        usleep(100000);
        if (end->how < 0)
            kill(getpid(), -end->how);
        if (end->how == 1)
            die("a hint", "a reason");
        exit(end->how);
    }
    for (double x = 1;; sleep(1))
        if (end->waiting)
            hosts_sum(&x, 1);
    return 0;
}

static int do_nothing_in_step(void *arg)
{
    (void)arg;
    World w = hosts_start(0, false, NULL);
    double x[2] = {0};
    if (w.rank == 2)
        hosts_sum(x, 2);
    else
        hosts_sum(x, 1);
    hosts_end();
    return 0;
}

enum { ENDS = 7 };
typedef struct {
    End end[ENDS];
    Process p[ENDS][3], absent[2], alone, taken[1], step[3], clash;
    int held; /* a socket that listens and never answers */
} Ends;

/* Started before the other tests, looked at after them: most of it is waiting. */
static void start_ends(Ends *s)
{
    const End end[ENDS] = {{1, 3, true}, {1, -SIGKILL, false}, {0, 0, true}, {0, -SIGABRT, false},
                           {2, 0, true}, {0, 1, true},         {1, 1, false}};
    memcpy(s->end, end, sizeof end);
    for (int i = 0; i < ENDS; i++) {
        int port = free_port();
        for (int r = 0; r < 3; r++)
            s->p[i][r] = start_rank(r, 3, port, "", do_end, &s->end[i]);
    }
    int port = free_port();
    for (int r = 0; r < 2; r++)
        s->absent[r] = start_rank(r, 3, port, r ? "" : "VIT_DIST_TIMEOUT=1", do_calls, NULL);
    s->alone = start_rank(1, 2, free_port(), "VIT_DIST_TIMEOUT=1", do_calls, NULL);
    s->held = listener(&port);
    s->taken[0] = start_rank(0, 2, port, "VIT_DIST_TIMEOUT=1", do_calls, NULL);
    s->clash = start_rank(1, 2, port, "VIT_DIST_TIMEOUT=6", do_calls, NULL);
    port = free_port();
    for (int r = 0; r < 3; r++)
        s->step[r] = start_rank(r, 3, port, "", do_nothing_in_step, NULL);
}

static void finish_ends(Ends *s)
{
    for (int i = 0; i < ENDS; i++) {
        const End *end = &s->end[i];
        Process *gone = &s->p[i][end->rank];
        char want[64];
        snprintf(want, sizeof want, "error: rank %d (", end->rank);
        CHECK(finish(gone, 10) == (end->how < 0 ? 128 - end->how : end->how));
        for (int r = 0; r < 3; r++) {
            if (r == end->rank)
                continue;
            /* the first of those that are left, where the one that has ended has not done it */
            bool speaks = end->how != 1 && r == (end->rank == 0);
            EXPECT(s->p[i][r], 15, 1, speaks ? want : "");
            CHECK(printed(&s->p[i][r], "error: ") == speaks, "rank %d of scene %d", r, i);
            CHECK(printed(&s->p[i][r], "hint: ") == speaks);
            CHECK(printed(&s->p[i][r], "the hook was here") == speaks);
            double took = s->p[i][r].ended - gone->ended;
            CHECK(took < 2, "rank %d of scene %d took %.1f s", r, i, took);
        }
    }
    EXPECT(s->absent[0], 10, 1, "error: 2 of 3 ranks came to 127.0.0.1 port");
    EXPECT(s->absent[1], 10, 1, "");
    CHECK(printed(&s->absent[0], "missing: 2") && !printed(&s->absent[1], "missing"));
    EXPECT(s->alone, 10, 1, "error: rank 1 of 2 could not reach rank 0 at 127.0.0.1 port");
    EXPECT(s->taken[0], 10, 1, "error: rank 0 cannot listen on port");
    EXPECT(s->clash, 15, 1, "another program answers there");
    close(s->held);
    EXPECT(s->step[0], 10, 1, "error: ranks out of step: rank 2 is at call 1 (sum of 16 bytes)");
    EXPECT(s->step[1], 10, 1, "");
    EXPECT(s->step[2], 10, 1, "");
}

/* ---- the watchdog ---- */

enum { PATIENCE = 2 };

/* What the rank in question does; the others wait for it, each in another way. */
enum { STUCK, STOPPED, BUSY, WAITING, PAUSED };
typedef struct {
    int rank, how;
} Hang;

static int do_hang(void *arg)
{
    const Hang *h = arg;
    die_hook = hook;
    World w = hosts_start(0, false, NULL);
    double until = now() + 3 * PATIENCE, x = 0;
    hosts_watch(w.rank ? 0 : PATIENCE); /* rank 0's word counts */
    hosts_at("reading images", 12);
    int sum = call_kind(CALL_ALL_REDUCE, "data parallel", 4.2e6);
    call_note(CALL_WORD(sum, 341, w.rank == h->rank && h->how == WAITING));
    if (w.rank == h->rank) {
        if (h->how == STOPPED) {
            usleep(PATIENCE * 700000); /* it has told where it is */
            kill(getpid(), SIGSTOP);
        }
        while (h->how == STUCK)
            sleep(1);
        while (h->how == BUSY && now() < until) { /* long, but gets on */
            usleep(100000);
            alive();
        }
        while (h->how == WAITING) { /* for a device, for ever */
            usleep(100000);
            hosts_check();
        }
        if (h->how == PAUSED) /* but not for so long */
            usleep(PATIENCE * 500000);
    }
    hosts_at("computing", 12);
    if (w.rank == 2)
        call_note(CALL_WORD(sum, 342, true));
    while (w.rank == 2 && h->how != BUSY && h->how != PAUSED) {
        usleep(20000);
        hosts_check();
    }
    hosts_sum(&x, 1);
    hosts_end();
    return 0;
}

enum { HANGS = 7 };
typedef struct {
    Hang hang[HANGS];
    Process p[HANGS][3];
} Hangs;

static void start_hangs(Hangs *s)
{
    const Hang hang[HANGS] = {{1, STUCK},   {0, STUCK}, {1, STOPPED}, {0, STOPPED},
                              {1, WAITING}, {1, BUSY},  {1, PAUSED}};
    memcpy(s->hang, hang, sizeof hang);
    for (int i = 0; i < HANGS; i++) {
        int port = free_port();
        for (int r = 0; r < 3; r++)
            s->p[i][r] = start_rank(r, 3, port, "", do_hang, &s->hang[i]);
    }
}

static void finish_hangs(Hangs *s)
{
#define CALL(n) "all-reduce " #n " of 4.2 MB (data parallel)"
#define SUM     "computing (step 12), in sum 2 of the hosts"
#define REDUCE  "rank 2 computing (step 12), in " CALL(342)
    static const char *const said[HANGS] = {
        ") has done nothing for 2 s, and others wait: it was reading images (step 12), after " CALL(
            341) "; waiting: rank 0 " SUM "; " REDUCE,
        ") has done nothing for 2 s, and others wait: it was reading images (step 12), after " CALL(
            341) "; waiting: rank 1 " SUM "; " REDUCE,
        ") has not answered for 2 s, stopped or on a machine that hangs: it was reading images "
        "(step 12), after " CALL(341) "; waiting: rank 0 " SUM "; " REDUCE,
        ") has not answered for 2 s, stopped or on a machine that hangs: it was reading images "
        "(step 12), after " CALL(341) "; rank 1: " SUM,
        "error: all ranks have waited for each other for 2 s: rank 0 " SUM
        "; rank 1 reading images (step 12), in " CALL(341) "; " REDUCE};
    for (int i = 0; i < HANGS; i++) {
        int hung = s->hang[i].rank, speaker = s->hang[i].how == STOPPED && hung == 0;
        char want[64];
        snprintf(want, sizeof want, said[i] && said[i][0] == ')' ? "error: rank %d (" : "", hung);
        for (int r = 0; r < 3; r++) {
            Process *p = &s->p[i][r];
            if (r == hung && s->hang[i].how == STOPPED) { /* goes on once the others have ended */
                finish(&s->p[i][hung == 0], 20);
                finish(&s->p[i][2], 20);
                kill(p->pid, SIGCONT);
            }
            EXPECT(*p, 20, said[i] ? 1 : 0, said[i] && r == speaker ? said[i] : "");
            CHECK(printed(p, "error: ") == (said[i] && r == speaker), "rank %d of %d", r, i);
            if (said[i] && r == speaker)
                CHECK(printed(p, want) && printed(p, "hint: ") && printed(p, "the hook was here"));
        }
    }
}

/* ---- the launcher ---- */

static volatile sig_atomic_t signals;

static void count_signal(int sig)
{
    (void)sig;
    signals++;
}

/* What a rank of the launcher's does, by the program's second argument. */
static int play(char **argv)
{
    const char *part = argv[2];
    struct sigaction a = {.sa_handler = count_signal};
    if (strcmp(part, "deaf") == 0 && getenv("RANK")) { /* neither signals nor the others reach it */
        signal(SIGTERM, SIG_IGN);
        usleep(strcmp(getenv("RANK"), "1") == 0 ? 500000 : 60000000);
        return 7;
    }
    World w = hosts_start(3, false, argv);
    double x = w.rank, pids[3] = {0};
    hosts_sum(&x, 1);
    pids[w.rank] = getpid();
    hosts_sum(pids, 3);
    if (w.rank == 0)
        printf("sum %g, pids %.0f %.0f %.0f\n", x, pids[0], pids[1], pids[2]);
    fflush(stdout);
    sigaction(SIGTERM, &a, NULL);
    sigaction(SIGUSR1, &a, NULL);
    hosts_barrier();
    if (strcmp(part, "fail") == 0 && w.rank == 1)
        return 3;
    if (strcmp(part, "crash") == 0 && w.rank == 1)
        abort();
    if (strcmp(part, "signal") == 0) {
        while (!signals)
            usleep(10000);
        usleep(200000); /* time for another */
        printf("rank %d: signals %d, local %d\n", w.rank, (int)signals, w.local_rank);
    }
    if (strcmp(part, "sleep") == 0)
        for (;;)
            sleep(1);
    hosts_end();
    return 0;
}

static int launch(void *arg)
{
    execl("/proc/self/exe", "test_dist", "play", arg, (char *)NULL);
    return 99;
}

/* The launcher's ranks, once rank 0 has printed them. */
static bool read_pids(const Process *p, int pid[3])
{
    for (double until = now() + 10; now() < until; usleep(10000)) {
        char *log = read_text(p->log, 1 << 20, NULL), *at = log ? strstr(log, "pids ") : NULL;
        bool ok =
            at && strchr(at, '\n') && sscanf(at, "pids %d %d %d", &pid[0], &pid[1], &pid[2]) == 3;
        free(log);
        if (ok)
            return true;
    }
    return false;
}

static void test_launcher(void)
{
    int pid[3];
    Process all = start("", launch, "all"), fails = start("", launch, "fail");
    Process crash = start("", launch, "crash"), slept = start("", launch, "sleep");
    Process told = start("", launch, "signal"), killed = start("", launch, "sleep");
    Process other = start_rank(0, 2, free_port(), "", launch, "all");

    CHECK(read_pids(&killed, pid)); /* one rank from outside; the others catch SIGTERM and go on */
    usleep(200000);
    kill(pid[2], SIGKILL);

    EXPECT(all, 10, 0, "sum 3, pids ");
    EXPECT(other, 10, 2, "error: --gpus 3, but torchrun has started 2 processes");
    EXPECT(fails, 10, 3, "error: rank 1 ended with status 3");
    CHECK(fails.ended - fails.started < 8, "%.1f s", fails.ended - fails.started);
    EXPECT(crash, 10, 128 + SIGABRT, "error: rank 1 was killed by signal 6");

    CHECK(read_pids(&told, pid)); /* all have their handlers a moment later */
    usleep(300000);
    kill(told.pid, SIGTERM);
    EXPECT(told, 10, 0, "rank 2: signals 1, local 2");
    CHECK(printed(&told, "rank 0: signals 1, local 0"));

    CHECK(read_pids(&slept, pid));
    kill(slept.pid, SIGKILL);
    finish(&slept, 10);
    int left = 3;
    for (double until = now() + 5; left && now() < until; usleep(10000))
        for (int i = left = 0; i < 3; i++)
            left += kill(pid[i], 0) == 0;
    CHECK(left == 0, "%d of 3 ranks outlived their launcher", left);
    EXPECT(killed, 12, 128 + SIGKILL, "error: rank 2 was killed by signal 9");
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "play") == 0)
        return play(argv);
    if (!mkdtemp(folder))
        die("make /tmp writable", "test_dist: cannot make %s", folder);
    Ends ends;
    Hangs hangs;
    test_environment();
    Process deaf = start("", launch, "deaf");
    start_ends(&ends);
    start_hangs(&hangs);
    test_calls("127.0.0.1", 1);
    test_calls("127.0.0.1", 2);
    test_calls("localhost", 3);
    test_calls("127.0.0.1", 5);
    if (has_ipv6())
        test_calls("::1", 3);
    else
        SKIP("no IPv6 here");
    test_strangers();
    test_launcher();
    finish_ends(&ends);
    finish_hangs(&hangs);
    EXPECT(deaf, 20, 7, "error: rank 1 ended with status 7");
    double took = deaf.ended - deaf.started;
    CHECK(took > 4 && took < 9, "ranks that hear no SIGTERM lived %.1f s", took);
    if (check_failed == 0) {
        char command[64];
        snprintf(command, sizeof command, "rm -r %s", folder);
        CHECK(system(command) == 0);
    }
    return check_report();
}
