/* test_cuda_ranks.cpp - the CUDA backend on the stand-in, where ranks could drift apart or hang.
 *
 * Ranks are processes, forked before anything of CUDA has happened here. One that has not ended
 * after LIMIT seconds is killed and counts as hung. What ops compute is tested by test_ops.c, whole
 * runs by test_cuda.sh.
 */
#include "check.h"
#include "cuda_on_cpu/standin.h"

extern "C" {
#include "backend.h"
#include "util/util.h"
}

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <sys/wait.h>
#include <unistd.h>

constexpr double LIMIT = 10;
enum { HUNG = -1, N = 32 };      /* N: rows and columns of all matrices */
static int rank, ranks, news[2]; /* a pipe from rank 0 to rank 1 */
static const Backend *be;
static Tensor x, w, y;

static void broadcast(void *data, size_t bytes)
{
    ssize_t n = rank == 0 ? write(news[1], data, bytes) : read(news[0], data, bytes);
    if (n != ssize_t(bytes))
        die(NULL, "rank %d wants news of %zu bytes, there are %zd", rank, bytes, n);
}

static void start(bool measure)
{
    Device d = {};
    d.type = F32;
    d.measure = measure;
    d.rank = d.local_rank = rank;
    d.ranks = ranks;
    d.broadcast = broadcast;
    be = backend_cuda();
    be->init(&d);
    for (Tensor *t : {&x, &w, &y})
        *t = {be->alloc(N * N * sizeof(float)), N, F32, NULL};
}

/* What became of the ranks: exit status or HUNG, and what they wrote. */
struct End {
    int status[2];
    std::string said;
};

static End run(int n, int (*body)())
{
    End end = {{HUNG, HUNG}, ""};
    pid_t pid[2];
    FILE *log = tmpfile();
    fflush(stdout);
    if (!log || pipe(news) != 0)
        die(NULL, "no pipe: %s", strerror(errno));
    for (int r = 0; r < n; r++)
        if ((pid[r] = fork()) == 0) {
            dup2(fileno(log), 1);
            dup2(fileno(log), 2);
            rank = r;
            ranks = n;
            int status = body();
            fflush(NULL);
            _exit(status);
        }
    close(news[0]); /* so that a rank's end is the end of its pipe */
    close(news[1]);
    bool there[2] = {true, n == 2};
    for (double until = now() + LIMIT; there[0] || there[1]; usleep(10000))
        for (int r = 0; r < n; r++) {
            int how;
            bool late = now() > until;
            if (!there[r] || (late && kill(pid[r], SIGKILL) != 0))
                continue;
            if (waitpid(pid[r], &how, late ? 0 : WNOHANG) != pid[r])
                continue;
            there[r] = false;
            end.status[r] = late ? HUNG : WIFEXITED(how) ? WEXITSTATUS(how) : 128 + WTERMSIG(how);
        }
    char line[512];
    rewind(log);
    while (fgets(line, sizeof line, log))
        end.said += line;
    fclose(log);
    return end;
}

/* Until the other rank has ended. */
static int wait_for_the_end()
{
    char c;
    close(news[1]);
    return int(read(news[0], &c, 1));
}

static void must_end(const char *name, const End &e, int n, int status)
{
    for (int r = 0; r < n; r++)
        CHECK(e.status[r] == status, "%s: rank %d ended with %d, not %d (-1: hung); said: %.400s",
              name, r, e.status[r], status, e.said.c_str());
}

/* ------------------------------------------------------------------------------------------------
 * Choices of algorithms: what all ranks make together they choose together. */

enum { TRAIN = 1, EVALUATE };
static char file[] = "/tmp/vit-ranks-XXXXXX";

static void forward(void *)
{
    LinearForward a = {};
    a.y = y, a.x = x, a.w = w;
    a.rows = a.in = a.out = N;
    be->linear_forward(&a);
}

/* The first rank alone evaluates between a step's first call and its second, which is timed. */
static int evaluate_between()
{
    for (int i = 0; i < 3; i++) {
        be->run(TRAIN, true, forward, NULL);
        for (int j = 0; rank == 0 && i == 0 && j < 2; j++)
            be->run(EVALUATE, false, forward, NULL);
    }
    return 0;
}

static void test_choices()
{
    must_end("evaluation", run(2, [] {
                 start(true);
                 return evaluate_between();
             }), 2, 0);
    must_end("choices are written", run(1, [] {
                 start(true);
                 be->run(TRAIN, true, forward, NULL);
                 be->run(TRAIN, true, forward, NULL);
                 be->algorithms(file, true);
                 return 0;
             }), 1, 0);
    FILE *f = fopen(file, "r+"); /* each becomes an algorithm that does not exist */
    int changed = 0;
    for (char line[2048]; f && fgets(line, sizeof line, f);)
        if (char *tab = strchr(line, '\t')) {
            fseek(f, -long(strlen(tab)) + 1 + 16, SEEK_CUR);
            fputs("77", f);
            fseek(f, long(strlen(tab)) - 1 - 18, SEEK_CUR);
            changed++;
        }
    CHECK(f && changed == 1, "%d products are in the file", changed);
    if (f)
        fclose(f);
    must_end("choices from a file that do not work", run(2, [] {
                 start(true);
                 be->algorithms(file, false);
                 return evaluate_between();
             }), 2, 0);
}

/* ------------------------------------------------------------------------------------------------
 * Ends: a sum waits for the other rank on the device, and nobody may wait for that sum for ever. */

static void begin_sum()
{
    be->all_reduce(x.p, F32, N * N);
    be->join();
}

static void test_failing()
{
    End e = run(2, [] {
        start(false);
        if (rank == 0)
            return wait_for_the_end();
        begin_sum();
        die("none", "rank 1 fails");
    });
    CHECK(e.status[0] == 0 && e.status[1] == 1, "a rank fails: %d %d (-1: hung); said: %.400s",
          e.status[0], e.status[1], e.said.c_str());
    CHECK(e.said.find("hint: none") != std::string::npos, "said: %.400s", e.said.c_str());
}

/* ------------------------------------------------------------------------------------------------
 * A product that is added to what is there: timed like all others, added once. */

static void accumulate(void *)
{
    LinearBackwardInput a = {};
    a.dx = y, a.dy = x, a.w = w;
    a.rows = a.in = a.out = N;
    a.tokens = 1;
    a.accumulate = true;
    be->linear_backward_input(&a);
}

static void test_accumulating()
{
    End e = run(1, [] {
        static float one[N * N], sum[N * N];
        start(true);
        for (int i = 0; i < N; i++) /* the identity */
            one[i * N + i] = 1;
        be->upload(x.p, one, sizeof one);
        be->upload(w.p, one, sizeof one);
        for (int i = 0; i < 3; i++)
            be->run(TRAIN, true, accumulate, NULL);
        be->algorithms(file, true);
        be->download(sum, y.p, sizeof sum);
        for (int i = 0; i < N * N; i++)
            if (sum[i] != 3 * one[i])
                die(NULL, "sum %d is %g", i, sum[i]);
        return 0;
    });
    must_end("accumulating", e, 1, 0);
    FILE *f = fopen(file, "r");
    int measured = 0;
    for (char line[2048]; f && fgets(line, sizeof line, f);)
        measured += strstr(line, " c1 ") != NULL;
    CHECK(f && measured == 1, "%d such choices in the file", measured);
    if (f)
        fclose(f);
}

/* The other rank is gone: whatever waits for the device says so. */
static int go_on_alone(void (*wait)())
{
    start(true);
    if (rank == 1)
        return 1;
    begin_sum();
    wait();
    return 0;
}

static void test_waits()
{
    const struct {
        const char *name;
        int (*body)();
    } waits[] = {
        {"alloc", [] { return go_on_alone([] { be->alloc(64); }); }},
        {"release", [] { return go_on_alone([] { be->release(y.p); }); }},
        {"upload", [] { return go_on_alone([] { be->upload(y.p, "upload", 4); }); }},
        {"download", [] { return go_on_alone([] { be->download(news, y.p, 4); }); }},
        {"timing", [] { return go_on_alone([] { forward(NULL); }); }},
    };
    for (const auto &w : waits) {
        End e = run(2, w.body);
        must_end(w.name, e, 2, 1);
        CHECK(e.said.find("another rank") != std::string::npos, "%s said: %.400s", w.name,
              e.said.c_str());
    }
    End e = run(2, [] { /* it is there, but its kernel does not come */
        setenv("VIT_SHARE_GPU", "2", 1);
        start(false);
        if (rank == 1)
            return wait_for_the_end();
        begin_sum();
        be->wait(be->mark());
        return 0;
    });
    CHECK(e.status[0] == 1 && e.status[1] == 0, "a shared GPU: %d %d (-1: hung); said: %.400s",
          e.status[0], e.status[1], e.said.c_str());
    CHECK(e.said.find("VIT_SHARE_GPU") != std::string::npos, "said: %.400s", e.said.c_str());
}

/* ------------------------------------------------------------------------------------------------
 * Sums run beside the backward pass, before it and on few multiprocessors, when replayed too. */

static void test_priority()
{
    must_end("priority of replayed sums", run(2, [] {
                 start(false);
                 for (int i = 0; i < 3; i++)
                     be->run(TRAIN, true, [](void *) { be->all_reduce(x.p, F32, N * N); }, NULL);
                 be->wait(be->mark());
                 printf("priority %d\n", standin::replayed_priority());
                 return standin::replayed_priority() == -5 && getenv("NCCL_MAX_CTAS") ? 0 : 3;
             }), 2, 0);
}

int main()
{
    setenv("VIT_STANDIN_DEVICES", "2", 1);
    unsetenv("XDG_CACHE_HOME"); /* no cache of choices */
    unsetenv("HOME");
    int fd = mkstemp(file);
    test_choices();
    test_failing();
    test_accumulating();
    test_waits();
    test_priority();
    close(fd);
    unlink(file);
    return check_report();
}
