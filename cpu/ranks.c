/* ranks.c - groups of ranks and their collectives, over MPI. See ranks.h, and backend.h for what
 * each entry means.
 *
 * One thread alone speaks MPI, from MPI_Init to MPI_Finalize (so that MPI_THREAD_FUNNELED is
 * enough): the speaker. The thread that computes gives it jobs and goes on; `join` waits for one of
 * them. Everything that the speaker asks of MPI is a message between two ranks that it does not
 * wait for. It goes round the jobs and takes each as far as it can: those of one group in order, so
 * that all its ranks speak of the same one; passes and receptions at once.
 *
 * Sums are made here and not by MPI, whose order would be its own: each rank gets its part of all
 * ranks' x, adds in the order of the ranks, and gives the sum to all. Those are as many bytes as in
 * a ring, and the bits of one process that adds the same numbers one after the other.
 *
 * Order: sums; messages; collectives; jobs; the speaker; MPI itself; the entries.
 */
#include "cpu/ranks.h"

#ifdef HAVE_MPI
#include "cpu/bf16.h"
#include "util/calls.h"
#include "util/util.h"

#include <mpi.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))

static Device device; /* as ranks_start was given it */

/* ------------------------------------------------------------------------------------------------
 * Sums: out[i] = x[0][i] + x[1][i] + ..., for x [ranks][n], in real; out may be one of the x */

#define SUM(name, stored, wide, load, store)                             \
    static void name(void *out, const void *const *x, int ranks, long n) \
    {                                                                    \
        enum { BLOCK = 512 }; /* stays in cache */                       \
        for (long i = 0; i < n; i += BLOCK) {                            \
            wide sum[BLOCK];                                             \
            const long m = MIN(n - i, BLOCK);                            \
            for (long j = 0; j < m; j++)                                 \
                sum[j] = load(((const stored *)x[0])[i + j]);            \
            for (int r = 1; r < ranks; r++)                              \
                for (long j = 0; j < m; j++)                             \
                    sum[j] += load(((const stored *)x[r])[i + j]);       \
            for (long j = 0; j < m; j++)                                 \
                ((stored *)out)[i + j] = store(sum[j]);                  \
        }                                                                \
    }
#define AS_IT_IS(x) (x)
SUM(sum_reals, real, real, AS_IT_IS, AS_IT_IS)
SUM(sum_bf16, uint16_t, real, bf16_to_real, bf16_from_real)
SUM(sum_counters, uint64_t, uint64_t, AS_IT_IS, AS_IT_IS)

static void (*const sum_of[])(void *out, const void *const *x, int ranks, long n) = {
    [F32] = sum_reals, [BF16] = sum_bf16, [U64] = sum_counters};

/* ------------------------------------------------------------------------------------------------
 * Messages */

struct Job;
struct Group {
    MPI_Comm comm;
    const char *name;
    int rank, ranks;
    struct Job *speaking; /* the collective that is under way */
    char *room;           /* for what is being received and added */
    struct Group *next;
};

/* What the speaker has to do. */
typedef struct Job {
    struct Job *next;
    Ticket ticket;
    uint64_t word;                /* what util/calls.h calls it; 0: nothing */
    int (*advance)(struct Job *); /* as far as it gets without waiting */
    Group *group;
    char *x;
    /* A collective: x [n], of which part r begins at element n * r / ranks. First, if it adds, rank
     * r's own part becomes the sum of all ranks' part r; then, if it gathers, each gives its own
     * part to all. In pieces: `at` is the first element of this one in every part. */
    char *own;
    int type;
    long n, at;
    bool adds, gathers;
    /* pass and receive */
    bool sends;
    int peer;
    size_t bytes;
    /* something else */
    void (*call)(void *arg);
    void *arg;
    /* messages on their way */
    bool begun;
    MPI_Request *request;
    int requests;
} Job;
enum { WAITS, MOVED, DONE }; /* what `advance` says */
enum { COLLECTIVE, PASSED }; /* messages of one kind do not overtake each other */

/* Where a rank is gone, device.check soon knows which one. */
static void mpi_check(int code, const char *what)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int length;
    if (code == MPI_SUCCESS)
        return;
    for (double until = now() + 1; now() < until; sched_yield())
        device.check();
    MPI_Error_string(code, text, &length);
    die("where another rank names an error before this, that one is the cause",
        "MPI: %s (%s, rank %d of %d)", text, what, device.rank, device.ranks);
}
#define CHECK_MPI(call) mpi_check(call, #call)

/* Begins a message to or from `peer`; MPI counts in int. */
static void message(Job *j, bool sends, int tag, int peer, char *p, size_t bytes)
{
    enum { LONGEST = 1 << 30 };
    for (size_t at = 0; at < bytes; at += LONGEST) {
        int n = (int)MIN(bytes - at, LONGEST);
        MPI_Request *request = &j->request[j->requests++];
        if (sends)
            CHECK_MPI(MPI_Isend(p + at, n, MPI_BYTE, peer, tag, j->group->comm, request));
        else
            CHECK_MPI(MPI_Irecv(p + at, n, MPI_BYTE, peer, tag, j->group->comm, request));
    }
}

/* All messages have arrived. One by one: of several, MPI says no more of a fault than that there is
 * one. */
static bool landed(Job *j)
{
    for (; j->requests; j->requests--) {
        int arrived;
        CHECK_MPI(MPI_Test(&j->request[j->requests - 1], &arrived, MPI_STATUS_IGNORE));
        if (!arrived)
            return false;
    }
    return true;
}

static int advance_passed(Job *j)
{
    if (j->begun)
        return landed(j) ? DONE : WAITS;
    j->begun = true;
    message(j, j->sends, PASSED, j->peer, j->x, j->bytes);
    return MOVED;
}

/* ------------------------------------------------------------------------------------------------
 * Collectives */

/* A piece bounds the room for what is received. */
static long piece(const Job *j)
{
    enum { PIECE = 1 << 20 };
    return PIECE / j->group->ranks + 1;
}

static long part_begin(const Job *j, int r)
{
    return j->n * r / j->group->ranks;
}

/* Elements of part r in this piece */
static long part_n(const Job *j, int r)
{
    long left = part_begin(j, r + 1) - part_begin(j, r) - j->at;
    return left < 0 ? 0 : MIN(left, piece(j));
}

static size_t bytes_of(const Job *j, long n)
{
    return (size_t)n * type_size(j->type);
}

/* Part r of x, in this piece */
static char *part_x(const Job *j, int r)
{
    return j->x + bytes_of(j, part_begin(j, r) + j->at);
}

static char *own_x(const Job *j)
{
    return j->own + bytes_of(j, j->at);
}

/* Where rank r's numbers arrive while this rank adds: [ranks] times this piece */
static char *room_of(const Job *j, int r)
{
    return j->group->room + bytes_of(j, r * part_n(j, j->group->rank));
}

/* Every rank begins with its neighbour, so that not all speak to the same one. */
static void begin_piece(Job *j)
{
    const Group *g = j->group;
    size_t mine = bytes_of(j, part_n(j, g->rank));
    for (int k = 1; k < g->ranks; k++) {
        int from = (g->rank - k + g->ranks) % g->ranks, to = (g->rank + k) % g->ranks;
        if (j->adds) {
            message(j, false, COLLECTIVE, from, room_of(j, from), mine);
            message(j, true, COLLECTIVE, to, part_x(j, to), bytes_of(j, part_n(j, to)));
        } else {
            message(j, false, COLLECTIVE, from, part_x(j, from), bytes_of(j, part_n(j, from)));
            message(j, true, COLLECTIVE, to, own_x(j), mine);
        }
    }
    if (!j->adds && own_x(j) != part_x(j, g->rank))
        memcpy(part_x(j, g->rank), own_x(j), mine);
}

static void end_piece(Job *j)
{
    const Group *g = j->group;
    if (j->adds) {
        const void *x[g->ranks];
        for (int r = 0; r < g->ranks; r++)
            x[r] = r == g->rank ? part_x(j, r) : room_of(j, r);
        sum_of[j->type](own_x(j), x, g->ranks, part_n(j, g->rank));
    }
    j->at += piece(j);
}

static int advance_collective(Job *j)
{
    Group *g = j->group;
    long longest = (j->n + g->ranks - 1) / g->ranks;
    if (!g->speaking)
        g->speaking = j;
    if (g->speaking != j || !landed(j))
        return WAITS;
    if (j->begun)
        end_piece(j);
    if (j->at >= longest && j->adds && j->gathers) {
        j->adds = false;
        j->at = 0;
    }
    if (j->at >= longest) {
        g->speaking = NULL;
        return DONE;
    }
    if (j->adds && !g->room)
        g->room = xmalloc((size_t)(g->ranks * piece(j)) * sizeof(uint64_t));
    j->begun = true;
    begin_piece(j);
    return MOVED;
}

/* ------------------------------------------------------------------------------------------------
 * Jobs, in the order of calls. The list is both threads', each job's fields the speaker's. */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t more; /* there is something to do, or somebody waits */
    pthread_cond_t less; /* a job is done */
    Job *first, **last;
    Ticket tickets;
    uint64_t word;              /* of the last call */
    uint32_t calls[CALL_KINDS]; /* so far, of each series */
    bool waited_for;            /* the thread that computes does not */
    bool quit;
    bool started;
    pthread_t speaker;
    Group *groups;
    double sent, waited; /* bytes, seconds */
} us = {.lock = PTHREAD_MUTEX_INITIALIZER, .last = &us.first};

enum { ANY = 0 }; /* ticket */

/* requests: how many messages are on their way at a time, at most */
static Ticket submit(const Job *job, int requests)
{
    Job *j = xmalloc(sizeof *j);
    *j = *job;
    j->next = NULL;
    j->request = xmalloc((size_t)requests * sizeof *j->request);
    pthread_mutex_lock(&us.lock);
    Ticket ticket = j->ticket = ++us.tickets;
    *us.last = j;
    us.last = &j->next;
    pthread_cond_signal(&us.more);
    pthread_mutex_unlock(&us.lock);
    return ticket;
}

/* The next one of the list; the first after NULL */
static Job *job_after(const Job *j)
{
    pthread_mutex_lock(&us.lock);
    Job *next = j ? j->next : us.first;
    pthread_mutex_unlock(&us.lock);
    return next;
}

static void job_done(Job *j)
{
    pthread_mutex_lock(&us.lock);
    Job **at = &us.first;
    while (*at != j)
        at = &(*at)->next;
    *at = j->next;
    if (!j->next)
        us.last = at;
    pthread_cond_broadcast(&us.less);
    pthread_mutex_unlock(&us.lock);
    free(j->request);
    free(j);
}

/* NULL: it is done. */
static const Job *pending(Ticket ticket)
{
    const Job *j = us.first;
    while (j && ticket != ANY && j->ticket != ticket)
        j = j->next;
    return j;
}

/* At most so long; `lock` is held. */
static void sleep_until_signal(pthread_cond_t *signal, double seconds)
{
    struct timespec until = deadline(CLOCK_MONOTONIC, seconds);
    pthread_cond_timedwait(signal, &us.lock, &until);
}

/* A library's own wait would neither leave the core to others nor see that a rank is gone. */
static void await(Ticket ticket)
{
    pthread_mutex_lock(&us.lock);
    for (const Job *j; (j = pending(ticket));) {
        if (!us.waited_for)
            pthread_cond_signal(&us.more); /* no more naps */
        if (j->word)
            call_note(j->word | CALL_WORD(0, 0, true));
        us.waited_for = true;
        sleep_until_signal(&us.less, 0.02);
        pthread_mutex_unlock(&us.lock);
        device.check();
        pthread_mutex_lock(&us.lock);
    }
    us.waited_for = false;
    pthread_mutex_unlock(&us.lock);
    call_note(us.word);
}

static int advance_call(Job *j)
{
    j->call(j->arg);
    return DONE;
}

/* The speaker calls f(arg), after everything; waits. */
static void call(void (*f)(void *), void *arg)
{
    await(submit(&(Job){.advance = advance_call, .call = f, .arg = arg}, 0));
}

/* ------------------------------------------------------------------------------------------------
 * The speaker */

/* Without work, until there is some. While messages are on their way, MPI must be called for them
 * to move. Where the other thread waits, its core is free for that; where it computes, it shall
 * have the core: naps in between, longer ones the longer nothing has come. Returns whether to go
 * on. */
static bool rest(bool moved)
{
    static const double shortest = 5e-5, longest = 1e-3;
    static double nap;
    pthread_mutex_lock(&us.lock);
    nap = moved || us.waited_for ? shortest : MIN(1.25 * nap, longest);
    while (!us.first && !us.quit)
        pthread_cond_wait(&us.more, &us.lock);
    bool quit = us.quit, yield = us.waited_for;
    if (!quit && !moved && !yield)
        sleep_until_signal(&us.more, nap);
    pthread_mutex_unlock(&us.lock);
    if (!quit && !moved && yield)
        sched_yield();
    return !quit;
}

static void *speak(void *none)
{
    bool moved = true;
    while (rest(moved)) {
        moved = false;
        for (Job *j = job_after(NULL), *next; j; j = next) {
            int how = j->advance(j);
            moved |= how != WAITS;
            next = job_after(j);
            if (how == DONE)
                job_done(j);
        }
    }
    return none;
}

/* exit() takes down the library that the speaker may be in: not before it has stopped, unless it
 * waits for a rank that is gone. */
static void stop(void)
{
    if (!us.started)
        return;
    us.started = false;
    pthread_mutex_lock(&us.lock);
    us.quit = true;
    pthread_cond_signal(&us.more);
    pthread_mutex_unlock(&us.lock);
    struct timespec until = deadline(CLOCK_REALTIME, 1);
    pthread_timedjoin_np(us.speaker, NULL, &until);
}

/* ------------------------------------------------------------------------------------------------
 * MPI itself: what the speaker calls */

/* The control connection has found the same ranks by the launcher's variables, which another MPI's
 * launcher or torchrun may have set. */
static void meet(void *none)
{
    int threads, rank, ranks;
    (void)none;
    /* Open MPI reads a neighbour's memory by itself, and complains where that one has just ended,
     * before we say so; copying through shared memory is as fast here. */
    setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
    CHECK_MPI(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &threads));
    CHECK_MPI(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    CHECK_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &rank));
    CHECK_MPI(MPI_Comm_size(MPI_COMM_WORLD, &ranks));
    if (rank != device.rank || ranks != device.ranks)
        die("use --ranks, or the mpirun of the MPI that the program was built with",
            "this is rank %d of %d, but MPI calls it %d of %d", device.rank, device.ranks, rank,
            ranks);
}

static void share_cores(void *share)
{
    cpu_set_t cores;
    MPI_Comm here;
    int ranks;
    CPU_ZERO(&cores);
    sched_getaffinity(0, sizeof cores, &cores);
    CHECK_MPI(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &here));
    CHECK_MPI(MPI_Comm_size(here, &ranks));
    CHECK_MPI(MPI_Allreduce(MPI_IN_PLACE, &cores, sizeof cores, MPI_BYTE, MPI_BOR, here));
    CHECK_MPI(MPI_Comm_free(&here));
    *(int *)share = CPU_COUNT(&cores) / ranks;
}

typedef struct {
    int colour;
    const char *name;
    Group *group;
} Splitting;

static void split(void *arg)
{
    Splitting *s = arg;
    Group *g = xcalloc(1, sizeof *g);
    CHECK_MPI(MPI_Comm_split(MPI_COMM_WORLD, s->colour, device.rank, &g->comm));
    CHECK_MPI(MPI_Comm_set_errhandler(g->comm, MPI_ERRORS_RETURN));
    CHECK_MPI(MPI_Comm_rank(g->comm, &g->rank));
    CHECK_MPI(MPI_Comm_size(g->comm, &g->ranks));
    g->name = s->name;
    g->next = us.groups;
    us.groups = g;
    s->group = g->ranks > 1 ? g : NULL;
}

static void leave(void *none)
{
    (void)none;
    for (Group *g = us.groups, *next; g; g = next) {
        next = g->next;
        free(g->room);
        free(g);
    }
    us.groups = NULL;
    CHECK_MPI(MPI_Finalize());
}

/* ------------------------------------------------------------------------------------------------
 * The entries */

void ranks_start(const Device *d)
{
    pthread_condattr_t clock;
    if (us.started)
        return;
    device = *d;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&us.more, &clock);
    pthread_cond_init(&us.less, &clock);
    if (pthread_create(&us.speaker, NULL, speak, NULL) != 0)
        die("raise the limit on processes (ulimit -u)", "cannot start the thread that speaks MPI");
    us.started = true;
    atexit(stop);
    call(meet, NULL);
}

int ranks_cores(void)
{
    int share;
    call(share_cores, &share);
    return share > 0 ? share : 1;
}

Group *ranks_split(int colour, const char *name)
{
    Splitting s = {.colour = colour, .name = name};
    if (us.started)
        call(split, &s);
    return s.group;
}

/* The thread that computes has come to this call. */
static uint64_t come_to(int what, const Group *g, double bytes)
{
    int kind = call_kind(what, g->name, bytes);
    us.word = CALL_WORD(kind, ++us.calls[call_series(kind)], false);
    call_note(us.word);
    return us.word;
}

/* A collective on x [n], which begins with its sum where that is wanted; a rank sends each other
 * one a part of n / ranks elements in each of its two halves. */
static Ticket collective(Job j)
{
    if (j.adds && !sum_of[j.type])
        die("sums are of fp32, bf16 or counters", "the CPU backend adds no numbers of type %d",
            j.type);
    double part = (double)j.n / j.group->ranks * (double)type_size(j.type);
    us.sent += (j.adds + j.gathers) * (j.group->ranks - 1) * part;
    int what = j.gathers ? CALL_ALL_GATHER : CALL_REDUCE_SCATTER;
    j.word = come_to(j.adds && j.gathers ? CALL_ALL_REDUCE : what, j.group,
                     (double)j.n * (double)type_size(j.type));
    j.advance = advance_collective;
    return submit(&j, 2 * j.group->ranks);
}

Ticket ranks_all_reduce(Group *g, dev *x, int type, long n)
{
    if (!g)
        return 0;
    dev *own = dev_at(x, n * g->rank / g->ranks, type);
    return collective((Job){.group = g,
                            .x = (char *)x,
                            .own = (char *)own,
                            .type = type,
                            .n = n,
                            .adds = true,
                            .gathers = true});
}

Ticket ranks_reduce_scatter(Group *g, dev *own, const dev *x, int type, long n)
{
    if (!g)
        return 0;
    return collective((Job){.group = g,
                            .x = (char *)x,
                            .own = (char *)own,
                            .type = type,
                            .n = n * g->ranks,
                            .adds = true});
}

Ticket ranks_all_gather(Group *g, dev *x, const dev *own, int type, long n)
{
    if (!g)
        return 0;
    return collective((Job){.group = g,
                            .x = (char *)x,
                            .own = (char *)own,
                            .type = type,
                            .n = n * g->ranks,
                            .gathers = true});
}

static Ticket passed(Group *g, bool sends, int peer, const dev *x, size_t bytes)
{
    if (!g)
        return 0;
    us.sent += sends ? (double)bytes : 0;
    return submit(&(Job){.advance = advance_passed,
                         .word = come_to(sends ? CALL_PASS : CALL_RECEIVE, g, (double)bytes),
                         .group = g,
                         .x = (char *)x,
                         .sends = sends,
                         .peer = peer,
                         .bytes = bytes},
                  (int)(bytes >> 30) + 1);
}

Ticket ranks_pass(Group *g, int peer, const dev *x, size_t bytes)
{
    return passed(g, true, peer, x, bytes);
}

Ticket ranks_receive(Group *g, int peer, dev *x, size_t bytes)
{
    return passed(g, false, peer, x, bytes);
}

void ranks_join(Ticket t)
{
    double start = now();
    if (t == 0)
        return;
    await(t);
    us.waited += now() - start;
}

double ranks_sent(void)
{
    return us.sent;
}

double ranks_waited(void)
{
    return us.waited;
}

void ranks_end(void)
{
    if (!us.started)
        return;
    await(ANY);
    call(leave, NULL);
    stop();
}

#else /* one rank alone */

void ranks_start(const Device *d)
{
    (void)d;
}

int ranks_cores(void)
{
    return 1;
}

Group *ranks_split(int colour, const char *name)
{
    (void)colour, (void)name;
    return NULL;
}

Ticket ranks_all_reduce(Group *g, dev *x, int type, long n)
{
    (void)g, (void)x, (void)type, (void)n;
    return 0;
}

Ticket ranks_reduce_scatter(Group *g, dev *own, const dev *x, int type, long n)
{
    (void)g, (void)own, (void)x, (void)type, (void)n;
    return 0;
}

Ticket ranks_all_gather(Group *g, dev *x, const dev *own, int type, long n)
{
    (void)g, (void)own, (void)x, (void)type, (void)n;
    return 0;
}

Ticket ranks_pass(Group *g, int peer, const dev *x, size_t bytes)
{
    (void)g, (void)peer, (void)x, (void)bytes;
    return 0;
}

Ticket ranks_receive(Group *g, int peer, dev *x, size_t bytes)
{
    (void)g, (void)peer, (void)x, (void)bytes;
    return 0;
}

void ranks_join(Ticket t)
{
    (void)t;
}

double ranks_sent(void)
{
    return 0;
}

double ranks_waited(void)
{
    return 0;
}

void ranks_end(void)
{
}
#endif
