/* test_cuda_ranks.cpp - the CUDA backend on the stand-in, where ranks could drift apart or hang.
 *
 * Ranks are processes, forked before anything of CUDA has happened here. One that has not ended
 * after LIMIT seconds is killed and counts as hung. What ops compute is tested by test_ops.c, whole
 * runs by test_cuda.sh.
 *
 * Order: ranks; choices of algorithms; timing them; products of our own; ends; groups and collectives; tickets; graphs;
 * settings.
 */
#include "check.h"
#include "cuda_on_cpu/standin.h"

extern "C" {
#include "backend.h"
#include "util/calls.h"
#include "util/util.h"
}

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

constexpr double LIMIT = 20;
enum { HUNG = -1, MOST = 4, N = 32 }; /* N: rows and columns of all matrices */
static int rank, ranks, news[MOST][2]; /* pipes from rank 0 to the others */
static const Backend *be;
static Group *world;
static Tensor x, w, y;

static void broadcast(void *data, size_t bytes)
{
    ssize_t n = ssize_t(bytes);
    for (int r = 1; rank == 0 && r < ranks; r++)
        n = std::min(n, write(news[r][1], data, bytes));
    if (rank > 0)
        n = read(news[rank][0], data, bytes);
    if (n != ssize_t(bytes))
        die(NULL, "rank %d wants news of %zu bytes, there are %zd", rank, bytes, n);
}

static void start(bool measure, bool ordered = true, void (*check)() = [] {})
{
    Device d = {};
    d.type = F32;
    d.measure = measure;
    d.rank = d.local_rank = rank;
    d.ranks = ranks;
    d.ordered = ordered;
    d.broadcast = broadcast;
    d.check = check;
    be = backend_cuda();
    be->init(&d);
    world = be->split(0, "test");
    for (Tensor *t : {&x, &w, &y})
        *t = {be->alloc(N * N * sizeof(float)), N, F32, NULL};
}

/* What became of the ranks: exit status or HUNG, and what they wrote. */
struct End {
    int status[MOST];
    std::string said;
};

static End run(int n, int (*body)())
{
    End end = {{HUNG, HUNG, HUNG, HUNG}, ""};
    pid_t pid[MOST];
    FILE *log = tmpfile();
    fflush(stdout);
    for (auto &p : news)
        if (!log || pipe(p) != 0)
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
    for (auto &p : news) { /* so that a rank's end is the end of its pipes */
        close(p[0]);
        close(p[1]);
    }
    bool there[MOST] = {};
    std::fill_n(there, n, true);
    auto any = [&] { return std::find(there, there + n, true) != there + n; };
    for (double until = now() + LIMIT; any(); usleep(10000))
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
    close(news[1][1]);
    return int(read(news[1][0], &c, 1));
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
 * Timing algorithms, some of which are wrong, slow or fail (see cublaslt.cpp; of a product of [N,N]
 * the library's first guess is algorithm 0). */

extern long cuda_product_limit;

static void set_bits(const char *name, int bits)
{
    setenv((std::string("VIT_STANDIN_LT_") + name).c_str(), std::to_string(bits).c_str(), 1);
}

/* Numbers in x and w, and what y should be: x w^T, of small integers. */
static float want[N * N];
static void fill(bool zero = false)
{
    static float a[N * N], b[N * N];
    for (int i = 0; i < N * N; i++) {
        a[i] = zero ? 0.0f : float(i * 7 % 11 - 5);
        b[i] = float(i * 5 % 13 - 6);
    }
    for (int r = 0; r < N; r++)
        for (int c = 0; c < N; c++) {
            want[r * N + c] = 0;
            for (int k = 0; k < N; k++)
                want[r * N + c] += a[r * N + k] * b[c * N + k];
        }
    be->upload(x.p, a, sizeof a);
    be->upload(w.p, b, sizeof b);
}
static void must_be_right(const char *name, const Tensor &t = y, float times = 1)
{
    static float got[N * N];
    be->download(got, t.p, sizeof got);
    for (int i = 0; i < N * N; i++)
        if (got[i] != times * want[i])
            die(NULL, "%s: number %d is %g, not %g", name, i, double(got[i]),
                double(times * want[i]));
}

/* The algorithm in the file's only line; -1: `-`. */
static int chosen()
{
    be->algorithms(file, true);
    FILE *f = fopen(file, "r");
    unsigned number = 99;
    char line[2048];
    bool dash = false;
    while (f && fgets(line, sizeof line, f))
        if (const char *tab = strchr(line, '\t')) {
            dash |= tab[1] == '-';
            sscanf(tab + 1 + 16, "%2x", &number);
        }
    if (f)
        fclose(f);
    return dash ? -1 : int(number);
}

static int bad; /* an algorithm's number */

/* The fastest leaves a corner wrong, or its result out. */
static int wrong_is_fastest(const char *how)
{
    set_bits(how, 1 << bad);
    set_bits("SLOW", 7 & ~(1 << bad));
    start(true);
    fill();
    for (int i = 0; i < 3; i++) {
        be->run(TRAIN, true, forward, NULL);
        must_be_right(how);
    }
    return chosen() == bad ? 3 : 0;
}

/* Where what it multiplies is zero, a wrong one does not show yet. */
static int wrong_after_zeros()
{
    set_bits("WRONG", 2);
    set_bits("SLOW", 5);
    start(true);
    fill(true);
    be->run(TRAIN, true, forward, NULL);
    if (chosen() != 1)
        return 4;
    fill();
    for (int i = 0; i < 2; i++) {
        be->run(TRAIN, true, forward, NULL);
        must_be_right("after zeros");
    }
    return chosen() == 1 ? 3 : 0;
}

static int failing(bool measure)
{
    set_bits("FAIL", 1);
    start(measure);
    fill();
    for (int i = 0; i < 3; i++) {
        be->run(TRAIN, true, forward, NULL);
        must_be_right("the first guess fails");
    }
    return 0;
}

static void test_wrong_algorithms()
{
    for (bad = 0; bad < 3; bad++) {
        must_end("a wrong algorithm", run(1, [] { return wrong_is_fastest("WRONG"); }), 1, 0);
        must_end("one that does nothing", run(1, [] { return wrong_is_fastest("SILENT"); }), 1, 0);
    }
    must_end("a wrong one after zeros", run(1, wrong_after_zeros), 1, 0);
    must_end("one that fails, not timed", run(1, [] { return failing(false); }), 1, 0);
    must_end("one that fails, timed", run(1, [] { return failing(true); }), 1, 0);
}

/* A slow one is left soon, and where all are slow the choice ends. */
static void test_time_of_choosing()
{
    must_end("a slow algorithm", run(1, [] {
                 set_bits("SLOW", 4);
                 start(true);
                 fill();
                 be->run(TRAIN, true, forward, NULL);
                 be->wait(be->mark());
                 printf("%d launches\n", standin::products[2]);
                 return standin::products[2] > 4 ? 3 : 0;
             }), 1, 0);
    must_end("slow ones all", run(1, [] {
                 set_bits("SLOW", 7);
                 set_bits("MS", 1000);
                 start(true);
                 fill();
                 be->run(TRAIN, true, forward, NULL);
                 must_be_right("slow");
                 return 0;
             }), 1, 0);
}

/* What a sample takes is the products' time, and not the host's. */
static void test_samples()
{
    for (bad = 0; bad < 3; bad++)
        must_end("the host is slow", run(1, [] {
                     set_bits("SLOW", 7 & ~(1 << bad));
                     set_bits("MS", 3);
                     set_bits("IDLE", 40);
                     start(true);
                     fill();
                     be->run(TRAIN, true, forward, NULL);
                     be->wait(be->mark());
                     printf("chosen: %d\n", chosen());
                     return chosen() == bad ? 0 : 3;
                 }), 1, 0);
}

/* A run's first product has the bits of the second: a run without known choices has those of its
 * repetition. Numbers whose sums depend on their order. */
static void test_first_bits()
{
    must_end("bits of the first call", run(1, [] {
                 static float a[N * N], first[N * N], again[N * N];
                 set_bits("SLOW", 5);
                 start(true);
                 for (int i = 0; i < N * N; i++)
                     a[i] = 1.0f / float(i + 3);
                 be->upload(x.p, a, sizeof a);
                 be->upload(w.p, a, sizeof a);
                 be->run(TRAIN, true, forward, NULL);
                 be->download(first, y.p, sizeof first);
                 be->run(TRAIN, true, forward, NULL);
                 be->download(again, y.p, sizeof again);
                 return memcmp(first, again, sizeof first) ? 3 : 0;
             }), 1, 0);
}

/* GELU in the product against GELU after it. */
static void gelu_forward(void *)
{
    LinearForward a = {};
    a.y = {y.p, N, BF16, NULL};
    a.x = {x.p, N, BF16, NULL};
    a.w = {w.p, N, BF16, NULL};
    a.bias = dev_at(w.p, N * N, BF16);
    a.act = ACT_GELU_TANH;
    a.tokens = 1;
    a.rows = a.in = a.out = N;
    be->linear_forward(&a);
}
static int gelu(bool slow)
{
    set_bits("SLOW_GELU", slow ? 1 : 2);
    start(true);
    fill();
    for (int i = 0; i < 3; i++)
        be->run(TRAIN, true, gelu_forward, NULL);
    be->wait(be->mark());
    be->algorithms(file, true);
    int before = standin::gelu_products;
    be->run(EVALUATE, true, gelu_forward, NULL);
    bool used = standin::gelu_products > before;
    return used == !slow && (chosen() == -1) == slow ? 0 : 3;
}
static void test_gelu()
{
    must_end("GELU in the product", run(1, [] { return gelu(false); }), 1, 0);
    must_end("GELU after it", run(1, [] { return gelu(true); }), 1, 0);
    must_end("the file says so", run(1, [] {
                 start(true);
                 be->algorithms(file, false);
                 be->run(TRAIN, true, gelu_forward, NULL);
                 return standin::gelu_products ? 3 : 0;
             }), 1, 0);
}

/* ------------------------------------------------------------------------------------------------
 * Products of our own, which Hopper alone has, are chosen where they are faster: here the library
 * has one algorithm, which is slow, or all of its own. */

extern long cuda_own_products;
extern double cuda_trial_limit;

static int launches()
{
    return standin::products[0] + standin::products[1] + standin::products[2];
}

static void hopper(bool slow)
{
    setenv("VIT_STANDIN_SM", "90", 1);
    set_bits("FAIL", slow ? 6 : 0);
    set_bits("SLOW", slow ? 1 : 0);
    set_bits("MS", 150);
}
static Tensor half_of(const Tensor &t)
{
    return {t.p, N, BF16, NULL};
}
/* y = x w^T; GELU, its slope with a bias gradient, and a weight gradient */
static void half_forward(void *act)
{
    LinearForward a = {};
    a.y = half_of(y), a.x = half_of(x), a.w = half_of(w);
    a.act = act ? ACT_GELU : ACT_NONE;
    a.tokens = 1;
    a.rows = a.in = a.out = N;
    be->linear_forward(&a);
}
static void half_slope(void *)
{
    LinearBackwardInput a = {};
    a.dx = half_of(y), a.dy = half_of(x), a.w = half_of(w), a.pre = half_of(x);
    a.act = ACT_GELU;
    a.tokens = 1;
    a.rows = a.in = a.out = N;
    a.dbias = dev_at(y.p, N * N, BF16);
    be->linear_backward_input(&a);
}
static void half_weight(void *)
{
    LinearBackwardWeight a = {};
    a.dw = y.p, a.dy = half_of(x), a.x = half_of(w);
    a.rows = a.in = a.out = N;
    be->linear_backward_weight(&a);
}
/* GELU and its slope of 8-bit products, in 8 bits: x as it is cast, or its bytes */
static dev *scales; /* Fp8Scale[4] */
static Tensor scaled(const Tensor &t, int i, int type)
{
    return {t.p, N, type, (dev *)((Fp8Scale *)scales + i)};
}
static void eight_forward(void *)
{
    LinearForward a = {};
    a.y = scaled(y, 0, E4M3), a.x = scaled(x, 1, BF16), a.w = scaled(w, 2, BF16);
    a.pre = {dev_at(w.p, N * N, BF16), N, BF16, NULL};
    a.act = ACT_GELU;
    a.tokens = 1;
    a.rows = a.in = a.out = N;
    be->linear_forward(&a);
}
static void eight_slope(void *)
{
    LinearBackwardInput a = {};
    a.dx = scaled(y, 0, E5M2), a.dy = scaled(x, 3, E5M2), a.w = scaled(w, 2, BF16);
    a.pre = half_of(x);
    a.act = ACT_GELU;
    a.tokens = 1;
    a.rows = a.in = a.out = N;
    a.dbias = dev_at(y.p, N * N, BF16);
    be->linear_backward_input(&a);
}
static char act;
static const struct {
    const char *name;
    void (*body)(void *);
    void *arg;
    bool ends;  /* what the library does in two passes */
    bool eight; /* and on no other GPU */
} own_bodies[] = {{"a product", half_forward, NULL, false, false},
                  {"GELU", half_forward, &act, true, false},
                  {"GELU's slope", half_slope, NULL, true, false},
                  {"a weight gradient", half_weight, NULL, false, false},
                  {"GELU in 8 bits", eight_forward, NULL, true, true},
                  {"its slope in 8 bits", eight_slope, NULL, true, true}};
static int body_now; /* of one of them */

/* Random numbers, the same in every process; the bytes are numbers of 8 bits, too */
static void fill_halves()
{
    static uint16_t a[2 * N * N];
    unsigned state = 1;
    for (uint16_t &v : a) {
        state = state * 1664525u + 1013904223u;
        v = uint16_t((state >> 31) << 15 | (0x3F00 + (state >> 24 & 0x3F)));
    }
    be->upload(x.p, a, sizeof a);
    for (uint16_t &v : a)
        v = uint16_t(v ^ 0x8003);
    be->upload(w.p, a, sizeof a);
}
static void run_own()
{
    enum { ROOM = 1 << 20 };
    const Fp8Scale one = {1, 1, 0, 0}, all[4] = {one, one, one, one};
    const Fp8 how = {false, true, false, 0};
    scales = be->alloc(sizeof all);
    be->upload(scales, all, sizeof all);
    be->fp8(&how);
    be->bind(be->alloc(sizeof(StepState)), be->alloc(ROOM), ROOM);
    fill_halves();
    be->run(uint64_t(100 + body_now), true, own_bodies[body_now].body, own_bodies[body_now].arg);
}
/* How many lines of the file have a product of our own, or the library's, or none */
static std::string kinds()
{
    std::string all;
    be->algorithms(file, true);
    FILE *f = fopen(file, "r");
    char line[2048];
    while (f && fgets(line, sizeof line, f))
        if (const char *tab = strchr(line, '\t'))
            all += strncmp(tab + 1, "sm90:", 5) == 0 ? "own " : tab[1] == '-' ? "- " : "library ";
    if (f)
        fclose(f);
    return all;
}
static int own_chosen(bool slow)
{
    hopper(slow);
    start(true);
    run_own();
    long before = cuda_own_products;
    run_own();
    std::string k = kinds();
    printf("%s\n", k.c_str());
    bool own = cuda_own_products > before, written = k.find("own") != std::string::npos;
    bool ends = own_bodies[body_now].ends; /* beside a fast library they may be faster or not */
    return own == written && (own == slow || (ends && !slow)) ? 0 : 3;
}
/* The file is enough: nothing is timed. */
static int own_from_file()
{
    hopper(false);
    start(true);
    be->algorithms(file, false);
    run_own();
    be->wait(be->mark());
    printf("%ld of our own, %d of the library's\n", cuda_own_products, launches());
    return cuda_own_products == 1 && launches() == 0 ? 0 : 3;
}
/* Attention of 20 tokens, both passes: for each one of two kernels, and the file says which. */
static void half_attention(void *)
{
    enum { T = 20, HS = 16 };
    Attention a = {};
    a.qkv = {x.p, 3 * HS, BF16, NULL};
    a.out = {y.p, HS, BF16, NULL};
    a.lse = w.p;
    a.B = a.heads = 1;
    a.T = a.Tq = T;
    a.hs = HS;
    be->attention_forward(&a);
    a.dout = {x.p, HS, BF16, NULL};
    a.dqkv = {dev_at(y.p, T * HS, BF16), 3 * HS, BF16, NULL};
    a.delta = dev_at(w.p, T, F32);
    be->attention_backward(&a);
}
static int attention_chosen()
{
    hopper(false);
    start(true);
    fill_halves();
    be->run(TRAIN, true, half_attention, NULL);
    std::string k = kinds();
    printf("%s\n", k.c_str());
    for (const char *right : {"own own ", "own - ", "- own ", "- - "})
        if (k == right)
            return 0;
    return 3;
}
static int not_forced(const char *value, const char *sm)
{
    setenv("VIT_STANDIN_SM", sm, 1);
    setenv("VIT_GEMM", value, 1);
    start(false);
    run_own();
    return 3;
}
/* Prints a number for the bits of every result of all kinds of products of our own, where rows of
 * tiles are odd; in 8 bits those that there are. */
enum { ROWS = 304, IN = 336, OUT = 272, ROOM = 4 << 20 };
static Tensor matrix(long rows, int columns, unsigned state, dev *scale)
{
    std::vector<uint16_t> v(size_t(rows * columns));
    for (uint16_t &bits :
         v) { /* 2^-7 to 2, of both signs: the bits of sums depend on their order */
        state = state * 1664525u + 1013904223u;
        bits = uint16_t((state >> 31) << 15 | (0x3C00 + (state >> 20 & 0x3FF)));
    }
    Tensor t = {be->alloc(v.size() * 2), columns, BF16, scale};
    be->upload(t.p, v.data(), v.size() * 2);
    return t;
}
static void print_bits(const char *name, const dev *p, size_t bytes)
{
    std::vector<unsigned char> v(bytes);
    uint64_t h = 1469598103934665603u;
    be->download(v.data(), p, bytes);
    for (unsigned char b : v)
        h = (h ^ b) * 1099511628211u;
    printf("%s %016llx\n", name, (unsigned long long)h);
}
static void products(dev *scales)
{
    auto scale = [&](int i) { return scales ? (dev *)((Fp8Scale *)scales + i) : NULL; };
    Tensor a = matrix(ROWS, IN, 1, scale(0)), b = matrix(OUT, IN, 2, scale(1));
    Tensor dy = matrix(ROWS, OUT, 3, scale(2)), pre = matrix(ROWS, OUT, 4, NULL);
    Tensor in = matrix(ROWS, IN, 5, NULL), out = matrix(ROWS, OUT, 6, NULL);
    Tensor bias = matrix(1, OUT, 7, NULL);
    dev *sums = be->alloc(OUT * IN * sizeof(float));
    LinearForward f = {};
    f.y = out, f.x = a, f.w = b, f.bias = bias.p;
    f.tokens = 1, f.rows = ROWS, f.in = IN, f.out = OUT;
    be->linear_forward(&f);
    print_bits("y", out.p, ROWS * OUT * 2);
    LinearBackwardWeight w = {};
    w.dw = sums, w.dy = dy, w.x = a;
    w.rows = ROWS, w.in = IN, w.out = OUT;
    be->linear_backward_weight(&w);
    print_bits("dw", sums, OUT * IN * sizeof(float));
    LinearBackwardInput i = {};
    i.dx = in, i.dy = dy, i.w = b;
    i.tokens = 1, i.rows = ROWS, i.in = IN, i.out = OUT;
    be->linear_backward_input(&i);
    print_bits("dx", in.p, ROWS * IN * 2);
    if (scales)
        return;
    i.pre = a, i.act = ACT_GELU, i.dbias = dev_at(sums, OUT, F32);
    be->linear_backward_input(&i);
    print_bits("slope", in.p, ROWS * IN * 2);
    print_bits("dbias", i.dbias, IN * sizeof(float));
    f.pre = pre, f.act = ACT_GELU;
    be->linear_forward(&f);
    print_bits("GELU", out.p, ROWS * OUT * 2);
    print_bits("pre", pre.p, ROWS * OUT * 2);
}
static int all_products(const char *way)
{
    const Fp8 how = {true, false, true, 0};
    const Fp8Scale none[3] = {};
    setenv("VIT_STANDIN_SM", "90", 1);
    setenv("VIT_GEMM", way, 1);
    start(true);
    be->bind(be->alloc(sizeof(StepState)), be->alloc(ROOM), ROOM);
    dev *scales = be->alloc(sizeof none);
    be->upload(scales, none, sizeof none);
    be->fp8(&how);
    products(NULL);
    products(scales);
    printf("%ld of our own\n", cuda_own_products);
    return cuda_own_products == 8 ? 0 : 3;
}
/* Ways are in twos, each alone and in pairs of blocks, which have the same bits; of the first and
 * the second two, sums in parts are others. */
static void test_pairs()
{
    End ways[] = {run(1, [] { return all_products("sm90:0"); }),
                  run(1, [] { return all_products("sm90:1"); }),
                  run(1, [] { return all_products("sm90:2"); }),
                  run(1, [] { return all_products("sm90:3"); })};
    for (const End &way : ways)
        must_end("own products", way, 1, 0);
    for (int i = 0; i < 4; i += 2)
        CHECK(ways[i].said == ways[i + 1].said, "alone:\n%sin pairs:\n%s", ways[i].said.c_str(),
              ways[i + 1].said.c_str());
    CHECK(ways[0].said != ways[2].said, "sums in parts have the bits of one sum");
}

static void test_own()
{
    for (body_now = 0; body_now < int(std::size(own_bodies)); body_now++) {
        const char *name = own_bodies[body_now].name;
        must_end(name, run(1, [] { return own_chosen(false); }), 1, 0);
        must_end(name, run(1, [] { return own_chosen(true); }), 1, 0);
        must_end(name, run(1, own_from_file), 1, 0);
        must_end(name, run(1, [] { /* another GPU has none */
                     set_bits("FAIL", 6);
                     set_bits("SLOW", 1);
                     start(true);
                     run_own();
                     return cuda_own_products ? 3 : 0;
                 }), 1, own_bodies[body_now].eight);
        must_end(name, run(1, [] {
                     hopper(true);
                     setenv("VIT_GEMM", "cublaslt", 1);
                     start(true);
                     run_own();
                     return cuda_own_products ? 3 : 0;
                 }), 1, 0);
    }
    must_end("attention", run(1, attention_chosen), 1, 0);
    test_pairs();
    body_now = 0;
    End late = run(1, [] {
        cuda_trial_limit = -1;
        return own_chosen(true);
    });
    must_end("a kernel that does not end", late, 1, 1);
    CHECK(late.said.find("has not ended") != std::string::npos, "%s", late.said.c_str());
    must_end("VIT_GEMM=sm90", run(1, [] { return int(not_forced("sm90", "90") + cuda_own_products); }), 1,
             4);
    must_end("no Hopper", run(1, [] { return not_forced("sm90", "80"); }), 1, 1);
    must_end("no such products", run(1, [] { return not_forced("mine", "90"); }), 1, 1);
}

/* ------------------------------------------------------------------------------------------------
 * Matrices of more elements than a kernel counts: in parts. */
static void backward(void *)
{
    LinearBackwardWeight weight = {};
    weight.dw = y.p;
    weight.dy = x;
    weight.x = w;
    weight.rows = weight.in = weight.out = N;
    be->linear_backward_weight(&weight);
}
static int in_parts(bool measure)
{
    cuda_product_limit = 700; /* of N N = 1024 elements */
    start(measure);
    fill();
    for (int i = 0; i < 3; i++) {
        int before = launches();
        be->run(TRAIN, true, forward, NULL);
        must_be_right("in parts");
        if (launches() - before < 2)
            return 4;
    }
    static float a[N * N], b[N * N], dw[N * N];
    be->download(a, x.p, sizeof a);
    be->download(b, w.p, sizeof b);
    int before = launches();
    be->run(EVALUATE, true, backward, NULL);
    be->download(dw, y.p, sizeof dw);
    for (int o = 0; o < N; o++)
        for (int i = 0; i < N; i++) {
            float s = 0;
            for (int r = 0; r < N; r++)
                s += a[r * N + o] * b[r * N + i];
            if (dw[o * N + i] != s)
                die(NULL, "a weight's gradient is %g, not %g", double(dw[o * N + i]), double(s));
        }
    return launches() - before < 2 ? 3 : 0;
}
static void test_parts()
{
    must_end("in parts", run(1, [] { return in_parts(false); }), 1, 0);
    must_end("in parts, timed", run(1, [] { return in_parts(true); }), 1, 0);
}

/* Memory: some is left for what comes later, and graphs give theirs. */
static void test_memory()
{
    must_end("memory that is left", run(1, [] {
                 start(false);
                 size_t left, total;
                 cudaMemGetInfo(&left, &total);
                 double room = double(left) - be->memory_free();
                 return room >= double(total) / 8 || room >= double(1 << 30) ? 0 : 3;
             }), 1, 0);
    must_end("graphs", run(1, [] {
                 start(false);
                 fill();
                 for (int i = 0; i < 3; i++)
                     be->run(TRAIN, true, forward, NULL);
                 if (standin::graphs() != 1 || be->alloc(size_t(1) << 40) || standin::graphs() != 0)
                     return 3;
                 for (int i = 0; i < 3; i++) {
                     be->zero(y.p, sizeof want);
                     be->run(TRAIN, true, forward, NULL);
                     must_be_right("a graph that is recorded again");
                 }
                 return standin::graphs() == 1 ? 0 : 4;
             }), 1, 0);
}

/* ------------------------------------------------------------------------------------------------
 * Ends: a sum waits for the other rank on the device, and nobody may wait for that sum for ever. */

static void begin_sum()
{
    be->join(be->all_reduce(world, x.p, F32, N * N));
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

/* A rank that is there but does not come, and NCCL has nothing to say: device.check is asked. */
static void test_check()
{
    static bool waits;
    End e = run(2, [] {
        start(false, true, [] {
            if (waits)
                die("none", "rank 1 is asked for");
        });
        if (rank == 1)
            return wait_for_the_end();
        begin_sum();
        waits = true;
        be->wait(be->mark());
        return 0;
    });
    CHECK(e.status[0] == 1 && e.status[1] == 0, "check: %d %d (-1: hung); said: %.400s",
          e.status[0], e.status[1], e.said.c_str());
    CHECK(e.said.find("rank 1 is asked for") != std::string::npos, "said: %.400s", e.said.c_str());
}

/* ------------------------------------------------------------------------------------------------
 * Groups and collectives. Numbers are small integers, whose sums every type has. */

/* Number i of a rank. */
static float number(int r, long i)
{
    return float((i * 7 + r * 13) % 16 - 5);
}

/* Device memory with those numbers (of U64: without sign; of 8 bits: as they are). */
static dev *numbers(int type, long n, int r)
{
    std::vector<float> v(size_t(n), 0);
    std::vector<uint64_t> u(size_t(n), 0);
    std::vector<int8_t> b(size_t(n), 0);
    for (size_t i = 0; i < size_t(n); i++) {
        v[i] = number(r, long(i));
        u[i] = uint64_t(v[i] + 5) << 40;
        b[i] = int8_t(v[i]);
    }
    dev *p = be->alloc(size_t(n) * type_size(type)), *wide = be->alloc(size_t(n) * sizeof(float));
    be->upload(wide, v.data(), size_t(n) * sizeof(float));
    if (type == U64)
        be->upload(p, u.data(), size_t(n) * 8);
    else if (type_size(type) == 1)
        be->upload(p, b.data(), size_t(n));
    else
        be->convert(p, type, wide, F32, n);
    be->release(wide);
    return p;
}

/* Dies unless p [n] is what `want` says; of U64 the sum of `terms` numbers. */
static void expect(const char *what, int type, const dev *p, long n, int terms,
                   const std::function<float(long)> &want)
{
    dev *wide = be->alloc(size_t(n) * sizeof(float));
    std::vector<float> v(size_t(n), 0);
    std::vector<uint64_t> u(size_t(n), 0);
    std::vector<int8_t> b(size_t(n), 0);
    if (type == U64)
        be->download(u.data(), p, size_t(n) * 8);
    else if (type_size(type) == 1)
        be->download(b.data(), p, size_t(n));
    else
        be->convert(wide, F32, p, type, n);
    be->download(v.data(), wide, size_t(n) * sizeof(float));
    for (long i = 0; i < n; i++) {
        float got = v[size_t(i)];
        if (type == U64)
            got = float(u[size_t(i)] >> 40) - 5 * float(terms);
        else if (type_size(type) == 1)
            got = b[size_t(i)];
        if (got != want(i))
            die(NULL, "%s: element %ld of type %d is %g, not %g", what, i, type, double(got),
                double(want(i)));
    }
    be->release(wide);
}

/* A group as the test knows it: its ranks are first, first + step ... */
struct Members {
    Group *group;
    int first, step, ranks, mine;
    int at(int r) const { return first + r * step; }
};
static float sum_of(const Members &m, long i)
{
    float s = 0;
    for (int r = 0; r < m.ranks; r++)
        s += number(m.at(r), i);
    return s;
}

static double now_sent; /* what sent() must say */
static void check_sent(const char *what, double bytes)
{
    now_sent += bytes;
    if (be->sent() != now_sent)
        die(NULL, "%s: sent %g bytes, not %g", what, be->sent(), now_sent);
}

static void sums(const Members &m, long n)
{
    for (int type : {F32, BF16, F16, U64}) {
        dev *a = numbers(type, n, rank);
        be->join(be->all_reduce(m.group, a, type, n));
        check_sent("all_reduce", 2.0 * (m.ranks - 1) / m.ranks * double(n) * double(type_size(type)));
        expect("all_reduce", type, a, n, m.ranks, [&](long i) { return sum_of(m, i); });
        be->release(a);
    }
}

static void parts(const Members &m, long n, bool in_place)
{
    const long all = n * m.ranks;
    for (int type : {F32, BF16}) {
        dev *a = numbers(type, all, rank), *own = dev_at(a, m.mine * n, type);
        dev *apart = be->alloc(size_t(n) * type_size(type)), *to = in_place ? own : apart;
        be->join(be->reduce_scatter(m.group, to, a, type, n));
        check_sent("reduce_scatter", double(m.ranks - 1) * double(n) * double(type_size(type)));
        expect("reduce_scatter", type, to, n, m.ranks,
               [&](long i) { return sum_of(m, m.mine * n + i); });
        if (!in_place)
            expect("what was summed", type, a, all, 1, [&](long i) { return number(rank, i); });
        be->release(a);
        be->release(apart);
    }
    for (int type : {F32, BF16, E4M3, U64}) {
        dev *a = be->alloc(size_t(all) * type_size(type)), *own = numbers(type, n, rank);
        if (in_place)
            be->copy(dev_at(a, m.mine * n, type), own, size_t(n) * type_size(type));
        be->join(be->all_gather(m.group, a, in_place ? dev_at(a, m.mine * n, type) : own, type, n));
        check_sent("all_gather", double(m.ranks - 1) * double(n) * double(type_size(type)));
        expect("all_gather", type, a, all, 1,
               [&](long i) { return number(m.at(int(i / n)), i % n); });
        be->release(a);
        be->release(own);
    }
}

/* From the first rank to the last, each adding its own numbers; and back, in another group. */
static void messages(const Members &m, Group *back, long n)
{
    dev *a = numbers(F32, n, rank), *in = be->alloc(size_t(n) * sizeof(float));
    size_t bytes = size_t(n) * sizeof(float);
    if (m.mine > 0) {
        be->join(be->receive(m.group, m.mine - 1, in, bytes));
        be->add(a, in, n);
    }
    Ticket on = 0;
    if (m.mine < m.ranks - 1) {
        on = be->pass(m.group, m.mine + 1, a, bytes);
        check_sent("pass", double(bytes));
        be->join(be->receive(back, m.mine + 1, in, bytes));
    }
    be->join(on);
    if (m.mine == m.ranks - 1)
        be->copy(in, a, bytes);
    if (m.mine > 0) {
        be->pass(back, m.mine - 1, in, bytes);
        check_sent("pass back", double(bytes));
    }
    expect("messages", F32, in, n, 1, [&](long i) { return sum_of(m, i); });
    be->release(a);
    be->release(in);
}

static int all_collectives()
{
    start(false, ranks == 4);
    Group *back = be->split(7, "test"), *pair = be->split(rank / 2, "test"), *every = be->split(rank % 2, "test");
    if (be->split(rank, "test"))
        die(NULL, "a group of one is not NULL");
    const Members all[] = {{world, 0, 1, ranks, rank},
                           {pair, rank / 2 * 2, 1, std::min(2, ranks - rank / 2 * 2), rank % 2},
                           {every, rank % 2, 2, (ranks + 1 - rank % 2) / 2, rank / 2}};
    for (const Members &m : all) {
        if (!m.group != (m.ranks == 1))
            die(NULL, "a group of %d is %s", m.ranks, m.group ? "there" : "not there");
        for (long n : {5, 40000})
            if (m.group) {
                sums(m, n);
                parts(m, n, false);
                parts(m, n, true);
            }
    }
    messages(all[0], back, 300000);
    dev *a = numbers(F32, 5, rank); /* nobody to talk to */
    for (Ticket t : {be->all_reduce(NULL, a, F32, 5), be->reduce_scatter(NULL, a, a, F32, 5),
                     be->all_gather(NULL, a, a, F32, 5), be->pass(NULL, 0, a, 4),
                     be->receive(NULL, 0, a, 4)}) {
        if (t)
            die(NULL, "a group of one has begun something");
        be->join(t);
    }
    check_sent("a group of one", 0);
    expect("a group of one", F32, a, 5, 1, [](long i) { return number(rank, i); });
    return 0;
}

static void test_collectives()
{
    for (int n : {2, 3, 4})
        must_end("collectives", run(n, all_collectives), n, 0);
}

/* ------------------------------------------------------------------------------------------------
 * Tickets */

/* Collectives of two groups on their way together, joined in another order than begun, each one's
 * operands made by the ops before it and read by those after its join; more of them than events. */
static int out_of_order()
{
    enum { ELEMENTS = 3000, AT_ONCE = 3, ROUNDS = 40 };
    start(false);
    Group *again = be->split(1, "test");
    dev *a[AT_ONCE], *base = numbers(F32, ELEMENTS, rank);
    const size_t bytes = ELEMENTS * sizeof(float);
    for (dev *&p : a)
        p = be->alloc(bytes);
    const Members m = {world, 0, 1, ranks, rank};
    for (int round = 0; round < ROUNDS; round++) {
        Ticket t[AT_ONCE];
        for (int i = 0; i < AT_ONCE; i++) {
            be->copy(a[i], base, bytes);
            t[i] = be->all_reduce(i == 1 ? again : world, a[i], F32, ELEMENTS);
        }
        for (int i : {1, 2, 0}) {
            be->join(t[(i + round) % AT_ONCE]);
            be->add(a[(i + round) % AT_ONCE], base, ELEMENTS);
        }
        for (dev *p : a)
            if (round % 8 == 0)
                expect("out of order", F32, p, ELEMENTS, 1,
                       [&](long i) { return sum_of(m, i) + number(rank, i); });
    }
    return 0;
}

static void test_tickets()
{
    must_end("tickets out of order", run(3, out_of_order), 3, 0);
}

/* What is read without its join is seen to be wrong, in some order of the streams; with it, in none:
 * otherwise the tests above would show nothing. */
static int gather_and_read(bool join)
{
    enum { ELEMENTS = 100, TRIES = 60 };
    int wrong = 0;
    start(false);
    std::vector<float> got(size_t(ELEMENTS * ranks), 0);
    dev *own = numbers(F32, ELEMENTS, rank), *to = be->alloc(got.size() * 4);
    dev *read = be->alloc(got.size() * 4);
    for (int i = 0; i < TRIES; i++) {
        be->zero(to, got.size() * 4);
        Ticket t = be->all_gather(world, to, own, F32, ELEMENTS);
        if (join)
            be->join(t);
        be->copy(read, to, got.size() * 4);
        be->download(got.data(), read, got.size() * 4);
        bool same = true;
        for (size_t j = 0; j < got.size(); j++)
            same &= got[j] == number(int(j / ELEMENTS), long(j % ELEMENTS));
        wrong += !same;
        be->join(t);
    }
    printf("%d of %d wrong\n", wrong, int(TRIES));
    return join ? wrong : wrong < TRIES / 4;
}

static void test_missing_join()
{
    must_end("a join", run(2, [] { return gather_and_read(true); }), 2, 0);
    must_end("no join is seen", run(2, [] { return gather_and_read(false); }), 2, 0);
}

/* ------------------------------------------------------------------------------------------------
 * Graphs */

enum { GRAPH_N = 600 };
static struct {
    Group *pair;
    dev *base, *sum, *part, *all, *outside;
    Ticket begun_outside;
    bool join_outside;
} captured;

/* Sums of the pair, scattered and gathered again in the world; what is gathered is joined by run().
 * More collectives than a group has events. */
static void collectives_body(void *)
{
    auto &c = captured;
    if (c.join_outside) {
        be->join(c.begun_outside);
        be->add(c.sum, c.outside, GRAPH_N);
    }
    Ticket summed = 0;
    for (int i = 0; i < 70; i++) {
        be->copy(c.all, c.base, GRAPH_N * sizeof(float));
        be->join(summed);
        summed = be->all_reduce(c.pair, c.all, F32, GRAPH_N);
        be->join(summed);
    }
    be->add(c.sum, c.all, GRAPH_N);
    be->join(be->reduce_scatter(world, c.part, c.sum, F32, GRAPH_N / ranks));
    be->all_gather(world, c.all, c.part, F32, GRAPH_N / ranks);
}

/* Each call adds the pair's sum (and what came from outside) to `sum`, and leaves the world's sum of
 * that in `all`. */
static int replayed_collectives(bool outside)
{
    enum { CALLS = 6 };
    auto &c = captured;
    start(false);
    const size_t bytes = GRAPH_N * sizeof(float);
    const Members everyone = {world, 0, 1, ranks, rank};
    c.join_outside = outside;
    c.pair = be->split(rank / 2, "test");
    c.base = numbers(F32, GRAPH_N, rank);
    c.sum = be->alloc(bytes);
    c.all = be->alloc(bytes);
    c.part = be->alloc(bytes / size_t(ranks));
    c.outside = be->alloc(bytes);
    double before = 0, each = 0;
    for (int call = 1; call <= CALLS; call++) {
        if (outside) {
            be->copy(c.outside, c.base, bytes);
            c.begun_outside = be->all_reduce(world, c.outside, F32, GRAPH_N);
        }
        be->run(TRAIN, true, collectives_body, NULL);
        expect("replayed", F32, c.all, GRAPH_N, 1, [&](long i) {
            /* every rank's number is in its pair's sum twice, in the outer one `ranks` times */
            return float(call * (2 + (outside ? ranks : 0))) * sum_of(everyone, i);
        });
        if (call == 1)
            each = be->sent();
        if (be->sent() - before != each || each <= 0)
            die(NULL, "call %d sent %g bytes, the first %g", call, be->sent() - before, each);
        before = be->sent();
    }
    double element = outside ? 1 : 0, r = ranks, n = bytes; /* the all_reduce outside */
    double want = 70 * 2 * 0.5 * n + 2 * (r - 1) * n / r + element * 2 * (r - 1) / r * n;
    if (each != want)
        die(NULL, "a call sent %g bytes, not %g", each, want);
    return 0;
}

static void test_graphs()
{
    must_end("replayed", run(4, [] { return replayed_collectives(false); }), 4, 0);
    must_end("replayed with one from outside", run(4, [] { return replayed_collectives(true); }), 4,
             0);
}

/* Rank 0 comes late to a sum, and the others' ops wait for it at the join: the device's clock tells, of
 * a body that is called as of one that is replayed. A join of what has arrived costs next to nothing. */
static int late_rank()
{
    enum { CALLS = 5 };
    constexpr double LATE = 0.2;
    start(false);
    for (int call = 0; call < CALLS; call++) {
        const double before = be->waited();
        const std::string at = "all-reduce " + std::to_string(call + 1) + " of 4.1 kB (test)";
        std::atomic<bool> done(false);
        char text[80], last[80] = "";
        if (rank == 0)
            usleep(useconds_t(LATE * 1e6));
        be->run(TRAIN, true, [](void *) { be->join(be->all_reduce(world, x.p, F32, N * N)); }, NULL);
        std::thread watcher([&] {
            for (; !done; usleep(1000))
                if (call_text(text, sizeof text))
                    strcpy(last, text);
        });
        be->wait(be->mark());
        done = true;
        watcher.join();
        const double waited = be->waited() - before;
        printf("call %d: rank %d has waited %.3f s in %s\n", call, rank, waited, last);
        if (call_text(text, sizeof text) || text != at || (rank > 0 && last != at))
            return 4;
        if (rank == 0 ? waited > LATE / 2 : waited < LATE / 2 || waited > 10 * LATE)
            return 3;
    }
    return 0;
}

/* How long it has waited, and where it says that it does: in graphs as well. */
static void test_join_clock()
{
    must_end("a rank that comes late", run(3, late_rank), 3, 0);
}

/* ------------------------------------------------------------------------------------------------
 * Settings. Collectives run beside the backward pass, before it and on few multiprocessors, when
 * replayed too. */

static void test_priority()
{
    must_end("priority of replayed sums", run(2, [] {
                 start(false);
                 for (int i = 0; i < 3; i++)
                     be->run(TRAIN, true,
                             [](void *) { be->all_reduce(world, x.p, F32, N * N); }, NULL);
                 be->wait(be->mark());
                 printf("priority %d\n", standin::replayed_priority());
                 return standin::replayed_priority() == -5 && getenv("NCCL_MAX_CTAS") ? 0 : 3;
             }), 2, 0);
}

static bool is(const char *name, const char *value)
{
    const char *s = getenv(name);
    return value ? s && strcmp(s, value) == 0 : !s;
}

/* Rings alone keep one order; what is fast is left to NCCL, unless the user has said something. */
static void test_settings()
{
    must_end("an ordered run", run(2, [] {
                 start(false, true);
                 return is("NCCL_ALGO", "Ring") && is("NCCL_NVLS_ENABLE", "0") ? 0 : 3;
             }), 2, 0);
    must_end("ranks on one GPU", run(2, [] {
                 setenv("VIT_SHARE_GPU", "1", 1);
                 start(false, false);
                 bool small = is("NCCL_PROTO", "Simple") && is("NCCL_MAX_CTAS", "2");
                 bool no = is("NCCL_CUMEM_ENABLE", "0") && is("NCCL_MNNVL_ENABLE", "0");
                 return small && no ? 0 : 3;
             }), 2, 0);
    must_end("a fast run", run(2, [] {
                 setenv("NCCL_MAX_CTAS", "16", 1);
                 start(false, false);
                 bool free = is("NCCL_ALGO", NULL) && is("NCCL_NVLS_ENABLE", NULL);
                 return free && is("NCCL_MAX_CTAS", "16") ? 0 : 3;
             }), 2, 0);
}

int main()
{
    setenv("VIT_STANDIN_DEVICES", "4", 1);
    for (const char *name : {"NCCL_ALGO", "NCCL_NVLS_ENABLE", "NCCL_MAX_CTAS"})
        unsetenv(name);
    unsetenv("XDG_CACHE_HOME"); /* no cache of choices */
    unsetenv("HOME");
    int fd = mkstemp(file);
    test_choices();
    test_wrong_algorithms();
    test_time_of_choosing();
    test_samples();
    test_first_bits();
    test_gelu();
    test_own();
    test_parts();
    test_memory();
    test_failing();
    test_accumulating();
    test_waits();
    test_check();
    test_collectives();
    test_tickets();
    test_missing_join();
    test_graphs();
    test_join_clock();
    test_priority();
    test_settings();
    close(fd);
    unlink(file);
    return check_report();
}
