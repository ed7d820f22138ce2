/* test_reduce.c - what ranks on CPUs say to each other: sums in rank order, bit for bit, groups,
 * tickets, messages.
 *
 * The program starts itself again by mpirun, three times. Every rank knows all ranks' numbers, and
 * so what must come out. Rank 0 prints what all have found. Whoever waits for ever is ended by an
 * alarm.
 */
#include "backend.h"
#include "train/hosts.h"

#include "check.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RANKS = 3, GUARD = 3, PATIENCE = 600 /* s */ };

static const Backend *be;
static int rank;
static const int everyone[RANKS] = {0, 1, 2};
static const char *const type_name[] = {[F32] = "fp32", [BF16] = "bf16", [U64] = "counters"};
static const int types[] = {F32, BF16, U64};

/* AddressSanitizer asks this: MPI keeps what it has until the end. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}

/* ------------------------------------------------------------------------------------------------
 * Numbers and buffers of them */

/* An element of any type. */
typedef union {
    real f;
    uint16_t b;
    uint64_t u;
} Number;

static real wide(uint16_t b)
{
    uint32_t bits = (uint32_t)b << 16;
    float f;
    memcpy(&f, &bits, 4);
    return (real)f;
}

/* To the nearest number of eight bits, ties to even */
static uint16_t narrow(real x)
{
    double step = ldexp(1, x == 0 ? 0 : ilogb((double)x) - 7);
    float f = (float)(nearbyint((double)x / step) * step);
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return (uint16_t)(bits >> 16);
}

/* Rank r's element i. Of such different sizes that another order of the sum has other bits. */
static Number number(int type, int r, long i)
{
    static const double size[] = {1, 1e7, -1e7};
    uint64_t h = ((uint64_t)i * RANKS + (uint64_t)r + 1) * 0x9e3779b97f4a7c15u;
    double x = size[((uint64_t)r + (h >> 60)) % 3] * (double)(h >> 11) * 0x1p-53;
    Number n = {.u = 0};
    if (type == U64)
        n.u = h;
    else if (type == BF16)
        n.b = narrow((real)x);
    else
        n.f = (real)x;
    return n;
}

/* The sum of element i of these ranks, in this order */
static Number sum_of(int type, long i, const int *ranks, int n)
{
    Number sum = number(type, ranks[0], i);
    real s = type == BF16 ? wide(sum.b) : sum.f;
    for (int k = 1; k < n; k++) {
        Number x = number(type, ranks[k], i);
        sum.u += type == U64 ? x.u : 0;
        if (type != U64)
            s += type == BF16 ? wide(x.b) : x.f;
    }
    if (type == BF16)
        sum.b = narrow(s);
    else if (type == F32)
        sum.f = s;
    return sum;
}

/* This rank's elements 0 .. n-1 in device memory, and guards around them */
typedef struct {
    dev *block, *p;
    int type;
    long n;
} Buffer;

static char *element(const Buffer *b, char *host, long i)
{
    return host + (size_t)(i + GUARD) * type_size(b->type);
}

static size_t size_of(const Buffer *b)
{
    return (size_t)(b->n + 2 * GUARD) * type_size(b->type);
}

static Buffer buffer(int type, long n)
{
    Buffer b = {.type = type, .n = n};
    char *host = malloc(size_of(&b));
    for (long i = -GUARD; i < n + GUARD; i++) {
        Number x = number(type, rank, i);
        memcpy(element(&b, host, i), &x, type_size(type));
    }
    b.block = be->alloc(size_of(&b));
    b.p = dev_at(b.block, GUARD, type);
    be->upload(b.block, host, size_of(&b));
    free(host);
    return b;
}

/* Elements first .. first+n-1 must be those that `want` says, the others what they were. */
static void check_buffer(const char *what, Buffer *b, long first, long n,
                         Number (*want)(int type, long i, const void *arg), const void *arg)
{
    size_t size = type_size(b->type);
    char *host = malloc(size_of(b));
    long wrong = 0, changed = 0;
    be->download(host, b->block, size_of(b));
    for (long i = -GUARD; i < b->n + GUARD; i++) {
        bool inside = i >= first && i < first + n;
        Number x = inside ? want(b->type, i - first, arg) : number(b->type, rank, i);
        bool other = memcmp(element(b, host, i), &x, size) != 0;
        wrong += inside && other;
        changed += !inside && other;
    }
    CHECK(wrong == 0 && changed == 0, "rank %d, %s of %ld %s: %ld are wrong, %ld others changed",
          rank, what, n, type_name[b->type], wrong, changed);
    be->release(b->block);
    free(host);
}

typedef struct {
    const int *ranks;
    int n;
    long first; /* of the whole, that element 0 is */
} Sum;

static Number want_sum(int type, long i, const void *arg)
{
    const Sum *s = arg;
    return sum_of(type, s->first + i, s->ranks, s->n);
}

/* Of [ranks][n], each rank's own n, which began at element `first` */
typedef struct {
    const int *ranks;
    long n, first;
} Gathered;

static Number want_gathered(int type, long i, const void *arg)
{
    const Gathered *g = arg;
    return number(type, g->ranks[i / g->n], g->first + i % g->n);
}

/* ------------------------------------------------------------------------------------------------
 * Collectives */

/* The numbers must be such that another order of the sum, and rounding on the way, would show. */
static void discerning(void)
{
    static const int other[RANKS] = {2, 1, 0};
    enum { MANY = 1000 };
    long order = 0, rounding = 0;
    for (long i = 0; i < MANY; i++) {
        Number a = sum_of(F32, i, everyone, RANKS), b = sum_of(F32, i, other, RANKS);
        order += a.f != b.f;
        uint16_t two = sum_of(BF16, i, everyone, 2).b;
        rounding +=
            narrow(wide(two) + wide(number(BF16, 2, i).b)) != sum_of(BF16, i, everyone, RANKS).b;
    }
    CHECK(order > MANY / 10 && rounding > MANY / 10, "%ld, %ld of %d", order, rounding, MANY);
}

static void all_reduce(Group *g, const int *ranks, int n_ranks, int type, long n)
{
    Buffer x = buffer(type, n);
    be->join(be->all_reduce(g, x.p, type, n));
    check_buffer("all_reduce", &x, 0, n, want_sum, &(Sum){ranks, n_ranks, 0});
}

/* own beside x, or this rank's part of it */
static void reduce_scatter(Group *g, const int *ranks, int n_ranks, int me, int type, long n,
                           bool in_place)
{
    Buffer x = buffer(type, n * n_ranks), own = buffer(type, n);
    const Sum sum = {ranks, n_ranks, n * me};
    be->join(be->reduce_scatter(g, in_place ? dev_at(x.p, n * me, type) : own.p, x.p, type, n));
    check_buffer("reduce_scatter, own", &own, 0, in_place ? 0 : n, want_sum, &sum);
    check_buffer("reduce_scatter, x", &x, n * me, in_place ? n : 0, want_sum, &sum);
}

static void all_gather(Group *g, const int *ranks, int n_ranks, int me, int type, long n,
                       bool in_place)
{
    Buffer x = buffer(type, n * n_ranks), own = buffer(type, n);
    if (in_place)
        be->copy(dev_at(x.p, n * me, type), own.p, (size_t)n * type_size(type));
    be->join(be->all_gather(g, x.p, in_place ? dev_at(x.p, n * me, type) : own.p, type, n));
    check_buffer("all_gather, own", &own, 0, 0, NULL, NULL);
    check_buffer("all_gather, x", &x, 0, n * n_ranks, want_gathered, &(Gathered){ranks, n, 0});
}

static void collectives(Group *g, const int *ranks, int n_ranks, int me)
{
    static const long sizes[] = {1, 2, 3, 4, 1000, (1 << 20) + 4};
    for (int t = 0; t < COUNT(types); t++)
        for (int i = 0; i < COUNT(sizes); i++) {
            all_reduce(g, ranks, n_ranks, types[t], sizes[i]);
            for (int in_place = 0; in_place < 2; in_place++) {
                reduce_scatter(g, ranks, n_ranks, me, types[t], sizes[i] / 2 + 1, in_place);
                all_gather(g, ranks, n_ranks, me, types[t], sizes[i] / 2 + 1, in_place);
            }
        }
    /* numbers of a type that is gathered, not added */
    Buffer x = buffer(U64, 4L * n_ranks);
    be->join(be->all_gather(g, x.p, dev_at(x.p, 4L * me, U64), F16, 16));
    be->release(x.block);
}

/* A rank by itself: nothing happens, and nobody waits. */
static void alone(Group *g)
{
    Buffer x = buffer(F32, 100);
    double sent = be->sent();
    CHECK(g == NULL, "rank %d alone is a group", rank);
    CHECK(be->all_reduce(g, x.p, F32, 100) == 0);
    CHECK(be->reduce_scatter(g, x.p, x.p, F32, 100) == 0);
    CHECK(be->all_gather(g, x.p, x.p, F32, 100) == 0);
    CHECK(be->pass(g, 0, x.p, 8) == 0 && be->receive(g, 0, x.p, 8) == 0);
    be->join(0);
    CHECK(be->sent() == sent, "rank %d alone has sent bytes", rank);
    check_buffer("nothing", &x, 0, 0, NULL, NULL);
}

/* ------------------------------------------------------------------------------------------------
 * Tickets and messages */

/* Many on their way at once, of two groups, with messages between; joined backwards. */
static void outstanding(Group *world, Group *pair)
{
    enum { N = 3 << 18, SMALL = 5 };
    int next = (rank + 1) % RANKS, before = (rank + RANKS - 1) % RANKS;
    static const int two[] = {0, 2};
    Buffer large = buffer(F32, N), small = buffer(U64, SMALL), shard = buffer(BF16, RANKS * 1000L);
    Buffer gathered = buffer(F32, 2 * N), out = buffer(F32, N), in = buffer(F32, N);
    Buffer paired = buffer(F32, N), last = buffer(BF16, N);
    Ticket t[] = {
        be->all_reduce(world, large.p, F32, N),
        be->receive(world, before, in.p, N * sizeof(real)),
        be->all_reduce(pair, paired.p, F32, N),
        be->all_reduce(world, small.p, U64, SMALL),
        be->reduce_scatter(world, dev_at(shard.p, rank * 1000L, BF16), shard.p, BF16, 1000),
        be->pass(world, next, out.p, N * sizeof(real)),
        be->all_gather(pair, gathered.p, dev_at(gathered.p, rank == 2 ? N : 0, F32), F32, N),
        be->all_reduce(world, last.p, BF16, N),
    };
    for (int i = COUNT(t) - 1; i >= 0; i--)
        be->join(t[i]);
    for (int i = 0; i < COUNT(t); i++)
        be->join(t[i]); /* once more: they are done */
    check_buffer("outstanding, large", &large, 0, N, want_sum, &(Sum){everyone, RANKS, 0});
    check_buffer("outstanding, small", &small, 0, SMALL, want_sum, &(Sum){everyone, RANKS, 0});
    check_buffer("outstanding, shard", &shard, rank * 1000L, 1000, want_sum,
                 &(Sum){everyone, RANKS, rank * 1000L});
    check_buffer("outstanding, message", &in, 0, N, want_gathered, &(Gathered){&before, N, 0});
    check_buffer("outstanding, sent", &out, 0, 0, NULL, NULL);
    check_buffer("outstanding, last", &last, 0, N, want_sum, &(Sum){everyone, RANKS, 0});
    check_buffer("outstanding, pair", &paired, 0, pair ? N : 0, want_sum, &(Sum){two, 2, 0});
    if (pair) { /* rank 2's second half was its own elements from N on */
        char *host = malloc(2 * N * sizeof(real));
        long wrong = 0;
        be->download(host, gathered.p, 2 * N * sizeof(real));
        for (long i = 0; i < 2 * N; i++)
            wrong += ((real *)(void *)host)[i] != number(F32, i < N ? 0 : 2, i).f;
        CHECK(wrong == 0, "rank %d: %ld gathered", rank, wrong);
        free(host);
    }
    be->release(gathered.block);
}

/* 8 MB each way between two ranks at once, in several messages that must not overtake each other;
 * the passes are joined first. */
static void both_ways(Group *pair)
{
    enum { PARTS = 4, N = 1 << 19 };
    if (!pair)
        return;
    int peer = rank == 0, other = rank == 0 ? 2 : 0;
    Buffer out = buffer(F32, PARTS * N), in = buffer(F32, PARTS * N);
    Ticket passes[PARTS], receptions[PARTS];
    for (int i = 0; i < PARTS; i++)
        passes[i] = be->pass(pair, peer, dev_at(out.p, i * N, F32), N * sizeof(real));
    for (int i = 0; i < PARTS; i++)
        receptions[i] = be->receive(pair, peer, dev_at(in.p, i * N, F32), N * sizeof(real));
    for (int i = 0; i < PARTS; i++)
        be->join(passes[i]);
    for (int i = PARTS - 1; i >= 0; i--)
        be->join(receptions[i]);
    check_buffer("both ways, in", &in, 0, PARTS * N, want_gathered,
                 &(Gathered){&other, PARTS * N, 0});
    check_buffer("both ways, out", &out, 0, 0, NULL, NULL);
}

/* Nobody waits who does not join: rank 0 comes after the others have gone on, and a message to
 * whom has not asked for it yet holds nothing up. That it was waited for is on the others' clock.
 */
static void unhurried(Group *world, Group *pair)
{
    enum { N = 1 << 20 };
    Buffer x = buffer(F32, N), y = buffer(F32, 10), message = buffer(F32, N);
    static const int second = 2;
    Ticket t = 0, passed = 0;
    if (rank == 2)
        passed = be->pass(pair, 0, message.p, N * sizeof(real));
    if (rank != 0)
        t = be->all_reduce(world, x.p, F32, N);
    hosts_barrier();
    if (rank == 0) {
        usleep(200000);
        t = be->all_reduce(world, x.p, F32, N);
    }
    double before = be->waited();
    be->join(t);
    double after = be->waited();
    CHECK(rank == 0 || after - before > 0.1, "rank %d has waited %.3f s", rank, after - before);
    be->join(be->all_reduce(pair, y.p, F32, 10));
    hosts_barrier();
    if (rank == 0)
        be->join(be->receive(pair, 1, message.p, N * sizeof(real)));
    be->join(passed);
    check_buffer("unhurried", &x, 0, N, want_sum, &(Sum){everyone, RANKS, 0});
    check_buffer("unhurried, message", &message, 0, rank == 0 ? N : 0, want_gathered,
                 &(Gathered){&second, N, 0});
    be->release(y.block);
}

/* The formulas of backend.h; what is received is another rank's. */
static void counted(Group *world, Group *pair)
{
    enum { N = 3000 };
    Buffer x = buffer(F32, 3 * N), counters = buffer(U64, 10);
    static const size_t R = sizeof(real);
    double at[6] = {be->sent()};
    be->join(be->all_reduce(world, x.p, F32, N));
    at[1] = be->sent();
    be->join(be->reduce_scatter(world, x.p, x.p, BF16, N));
    at[2] = be->sent();
    be->join(be->all_gather(world, x.p, dev_at(x.p, rank * N, F32), F32, N));
    at[3] = be->sent();
    be->join(be->all_reduce(pair, counters.p, U64, 10));
    at[4] = be->sent();
    if (rank == 0)
        be->join(be->pass(pair, 1, x.p, 77));
    if (rank == 2)
        be->join(be->receive(pair, 0, x.p, 77));
    at[5] = be->sent();
    double want[] = {4.0 / 3 * N * R, 2.0 * N * 2, 2.0 * N * R, pair ? 80 : 0, rank == 0 ? 77 : 0};
    for (int i = 0; i < COUNT(want); i++)
        CHECK(fabs(at[i + 1] - at[i] - want[i]) < 0.5, "rank %d, %d: %.1f bytes, not %.1f", rank, i,
              at[i + 1] - at[i], want[i]);
    be->release(x.block);
    be->release(counters.block);
}

/* ------------------------------------------------------------------------------------------------
 * A rank that fails while others wait for it ends all of them, soon. Three more processes by
 * mpirun, told so by the environment: rank 1 dies with a sum on its way. */

static const char failing[] = "TEST_REDUCE_FAILING";

static void fail_here(Group *world)
{
    enum { N = 1 << 20 };
    Buffer x = buffer(F32, N), y = buffer(F32, 10);
    be->all_reduce(world, x.p, F32, N);
    be->all_reduce(world, y.p, F32, 10);
    if (rank == 1)
        die("it was to be so", "rank 1 has had enough");
    be->join(be->receive(world, 1, x.p, N));
    die(NULL, "rank %d has received what nobody sent", rank);
}

static bool failure_ends_all(char **argv)
{
    double start = now();
    int status = -1;
    pid_t child = fork();
    if (child == 0) {
        setenv(failing, "1", 1);
        if (!freopen("/dev/null", "w", stderr))
            _exit(9);
        execv("/proc/self/exe", argv);
        _exit(9);
    }
    waitpid(child, &status, 0);
    return CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 1 && now() - start < PATIENCE / 3,
                 "status %x after %.1f s", (unsigned)status, now() - start);
}

int main(int argc, char **argv)
{
    (void)argc;
    be = backend_cpu();
    backend_cpu_reexec(argv);
#ifndef HAVE_MPI
    SKIP("built without MPI");
    return check_report();
#endif
    if (system("command -v mpirun >/dev/null") != 0) {
        SKIP("no mpirun");
        return check_report();
    }
    if (!getenv("OMPI_COMM_WORLD_RANK") && !getenv("PMI_RANK") && !getenv(failing) &&
        !failure_ends_all(argv))
        return check_report();
    World w = hosts_start(RANKS, true, argv);
    alarm(PATIENCE);
    rank = w.rank;
    be->init(&(Device){
        .ranks = w.ranks, .rank = w.rank, .broadcast = hosts_broadcast, .check = hosts_check});
    Group *world = be->split(0, "test"), *pair = be->split(rank == 1, "test");
    if (getenv(failing))
        fail_here(world);
    discerning();
    collectives(world, everyone, RANKS, rank);
    if (rank == 1)
        alone(pair);
    else
        collectives(pair, (const int[]){0, 2}, 2, rank == 2);
    outstanding(world, pair);
    both_ways(pair);
    unhurried(world, pair);
    counted(world, pair);
    CHECK(be->threads() >= 1);
    double all[] = {check_passed, check_failed};
    hosts_sum(all, COUNT(all));
    check_passed = (int)all[0];
    check_failed = (int)all[1];
    be->end();
    hosts_end();
    return rank == 0 ? check_report() : 0;
}
