/* kernel.cpp - runs one kernel: clusters of blocks on OpenMP threads, their threads as fibers.
 *
 * A thread runs until it meets others (barrier, shuffle, mma) or ends; then another thread of its
 * cluster goes on, chosen in one of several orders that the seed decides per cluster. Data that one
 * thread leaves for another without a barrier is therefore missing in some of these orders. Fibers
 * are reused: a thread gets one only when it starts, and threads that never meet share one. A
 * cluster is one block, unless the launch says otherwise; of several, warps have numbers one after
 * the other, and shared memory lies in one piece.
 *
 * Under ThreadSanitizer every thread has a fiber of its own and blocks run on one OS thread; only
 * barriers order memory there, so a race is reported even where no order shows it. This file itself
 * is then compiled without the sanitizer (-fno-sanitize=thread -DSTANDIN_TSAN).
 *
 * Read: Worker, then meet_warp and meet_block, go_on (who runs next), run_cluster, run_kernel.
 */
#include "async.h"

#include <algorithm>
#include <boost/context/detail/fcontext.hpp>
#include <condition_variable>
#include <mutex>
#include <numeric>
#include <omp.h>
#include <stdarg.h>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>

#ifdef STANDIN_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#error "compile this file with -fno-sanitize=thread -DSTANDIN_TSAN: it looks like races to TSan"
#endif
#ifdef STANDIN_TSAN
extern "C" {
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
void __tsan_acquire(void *address);
void __tsan_release(void *address);
void __tsan_read_range(void *address, unsigned long bytes);
void __tsan_write_range(void *address, unsigned long bytes);
void AnnotateIgnoreReadsBegin(const char *file, int line);
void AnnotateIgnoreReadsEnd(const char *file, int line);
void AnnotateIgnoreWritesBegin(const char *file, int line);
void AnnotateIgnoreWritesEnd(const char *file, int line);
}
constexpr bool tsan = true;
#else
constexpr bool tsan = false;
#endif

using boost::context::detail::fcontext_t;
using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

constinit thread_local uint3 threadIdx = {0, 0, 0}, blockIdx = {0, 0, 0};
constinit thread_local dim3 blockDim, gridDim;

namespace standin
{

struct Fiber {
    fcontext_t context = nullptr;
    char *stack = nullptr; /* lowest address; null: the OS thread's own */
    size_t bytes = 0;
    void *tsan = nullptr, *fake_stack = nullptr;
};

/* A cp.async that has not arrived. */
struct Copy {
    void *to;
    const void *from;
    unsigned bytes, from_bytes, group;
};

struct Thread {
    Fiber *fiber;  /* null: not started */
    unsigned mask; /* of the warp meeting it waits in */
    int line;
    const char *what; /* what it waits in, for messages */
    uint3 index;
    unsigned committed; /* groups of copies */
    std::vector<Copy> copies;
};

struct Warp {
    /* sets of lanes; the running one is ready */
    unsigned exists, ready, met, at_barrier, stopped, exited;
    void *operands[32];
    Thread threads[32];
};

enum Order { FORWARD, REVERSE, RANDOM };
constexpr unsigned TURNS = 16;

/* A block that has begun before the kernel in front of its own has ended. */
struct Early {
    std::vector<int> waiting;       /* threads, for that kernel */
    std::function<void()> the_rest; /* returns when it has ended; empty: it has */
};

/* One block of the cluster. */
struct Resident {
    uint3 index;
    int exited, arrived, votes[2], generation;
    int barrier_line;
    const char *barrier;
};

/* What one OS thread needs to run clusters. */
struct Worker {
    Warp warps[32];      /* every block's begin with a multiple of four */
    unsigned ready;      /* warps with ready lanes */
    unsigned warp, lane; /* running */
    int threads;         /* of a block */
    Resident residents[MAX_CLUSTER];
    const Kernel *kernel;
    Order warp_order, lane_order;
    bool interleave; /* warps change at every meeting, not only at barriers */
    Random random;
    unsigned turn; /* TSan: thread i has fiber i + turn, turn < TURNS */
    char *smem;
    size_t smem_bytes; /* as allocated */
    char *sync;        /* TSan: one address per warp, then each block's */
    Fiber main;
    std::vector<Fiber *> idle, all;
    Block block; /* what async.cpp knows of it */
    Early early;

    Thread &running()
    {
        return warps[warp].threads[lane];
    }
    unsigned block_warps() const
    {
        return unsigned(block.room) / 32;
    }
    Resident &resident() /* the running thread's block */
    {
        return residents[warp / block_warps()];
    }
    void show() /* the running thread */
    {
        threadIdx = running().index;
        blockIdx = resident().index;
    }
};
static thread_local Worker *worker;
[[maybe_unused]] static char fence_address, launch_address;

/* ------------------------------------------------------------------------------------------------
 * Messages. */

/* Threads that wait in the same place are one line. */
static void describe_waiting(Worker &w)
{
    std::string last;
    int lines = 0, first = 0, left = 0;
    const int all = w.block.blocks * w.block.room;
    for (int i = 0; i <= all && lines < 24; i++) {
        std::string here;
        Warp &p = w.warps[i / 32 % 32];
        Thread &t = p.threads[i % 32];
        unsigned bit = 1u << i % 32;
        if (i < all && (p.met | p.at_barrier | p.stopped) & bit & p.exists & ~p.exited) {
            char text[256], mask[32] = "", of[48] = "";
            if (p.met & bit)
                snprintf(mask, sizeof mask, ", mask %08x", t.mask);
            if (w.block.blocks > 1)
                snprintf(of, sizeof of, "in block %d of the cluster, ", i / w.block.room);
            const char *detail = async_detail(w.block.async, i);
            snprintf(text, sizeof text, "%sin %s, line %d%s%s%s", of, t.what, t.line, mask,
                     *detail ? ": " : "", detail);
            here = text;
        }
        if (here == last)
            continue;
        if (!last.empty()) {
            uint3 at = w.warps[first / 32].threads[first % 32].index;
            fprintf(stderr, "    thread %u,%u,%u", at.x, at.y, at.z);
            if (i - first > 1)
                fprintf(stderr, " and %d more", i - first - 1);
            fprintf(stderr, " %s %s\n", i - first > 1 ? "wait" : "waits", last.c_str());
            lines++;
        }
        last = here;
        first = i;
    }
    for (int i = 0; i < w.block.blocks; i++)
        left += w.residents[i].exited;
    fprintf(stderr, "    %d of %d threads have left the kernel\n", left,
            w.threads * w.block.blocks);
}

[[noreturn]] static void kernel_error(Worker &w, const char *what)
{
    Thread &t = w.running();
    fflush(stdout);
    fprintf(stderr, "cuda_on_cpu: kernel %s, block %u,%u,%u, thread %u,%u,%u",
            function_name(w.kernel->function), blockIdx.x, blockIdx.y, blockIdx.z, t.index.x,
            t.index.y, t.index.z);
    if (t.line)
        fprintf(stderr, " (last meeting: %s, line %d)", t.what, t.line);
    fprintf(stderr, ": %s\n", what);
    describe_waiting(w);
    abort();
}

void launched_within(int most)
{
    if (worker->threads > most)
        kernel_error(*worker, "its block is larger than its __launch_bounds__");
}

/* ------------------------------------------------------------------------------------------------
 * Fibers. */

/* On another stack now: keep where the other one stopped. */
static void landed(transfer_t t, Fiber *here)
{
    Fiber *from = static_cast<Fiber *>(t.data);
    from->context = t.fctx;
#ifdef STANDIN_ASAN
    const void *stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(here->fake_stack, &stack, &bytes);
    if (!from->stack) {
        from->stack = static_cast<char *>(const_cast<void *>(stack));
        from->bytes = bytes;
    }
#else
    (void)here;
#endif
}

static void jump(Fiber *from, Fiber *to)
{
#ifdef STANDIN_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->bytes);
#endif
#ifdef STANDIN_TSAN
    __tsan_switch_to_fiber(to->tsan, 1);
#endif
    landed(jump_fcontext(to->context, from), from);
}

/* TSan must not take it for a race that fibers share memory of the stand-in itself. */
static void tsan_ignore(bool on)
{
#ifdef STANDIN_TSAN
    (on ? AnnotateIgnoreReadsBegin : AnnotateIgnoreReadsEnd)(__FILE__, __LINE__);
    (on ? AnnotateIgnoreWritesBegin : AnnotateIgnoreWritesEnd)(__FILE__, __LINE__);
#else
    (void)on;
#endif
}

/* ------------------------------------------------------------------------------------------------
 * cp.async. Until it is waited for, the destination holds NaNs: a correct kernel neither reads it
 * before (no wait) nor still needs what was there (no barrier after the last use). */

static void fiber_main(transfer_t t);

static Fiber *new_fiber(Worker &w)
{
    static const size_t bytes = size_t(setting("VIT_STANDIN_STACK", 256 << 10));
    tsan_ignore(true);
    Fiber *f = new Fiber;
    char *map = static_cast<char *>(mmap(nullptr, bytes + 4096, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (map == MAP_FAILED || mprotect(map, 4096, PROT_NONE))
        die("no memory for the stack of a thread");
    /* Stacks start at different lines of the cache: lanes at one offset would evict each other. */
    size_t shift = w.all.size() * 17 % 64 * 64;
    f->stack = map + 4096;
    f->bytes = bytes - shift;
    f->context = make_fcontext(f->stack + f->bytes, f->bytes, fiber_main);
#ifdef STANDIN_TSAN
    f->tsan = __tsan_create_fiber(0);
#endif
    w.all.push_back(f);
    tsan_ignore(false);
    return f;
}

/* ------------------------------------------------------------------------------------------------
 * Who runs next. */

static unsigned pick(unsigned set, Order order, Random &random)
{
    if (order == FORWARD)
        return unsigned(__builtin_ctz(set));
    if (order == REVERSE)
        return 31u - unsigned(__builtin_clz(set));
    unsigned turn = random.below(32), turned = set >> turn | set << (-turn & 31);
    return (unsigned(__builtin_ctz(turned)) + turn) & 31u;
}

/* Nobody can go on but who waits in dependent_wait(): now is the time for the kernel before. */
static bool others_end(Worker &w)
{
    if (w.early.waiting.empty())
        return false;
    w.early.the_rest();
    w.early.the_rest = nullptr;
    for (int thread : w.early.waiting)
        may_go(thread);
    w.early.waiting.clear();
    return true;
}

/* Chooses the next thread and makes it the running one; false: the cluster has ended. */
static bool choose(Worker &w)
{
    async_chance(w.block.async);
    while (!w.ready) {
        int left = 0;
        for (int i = 0; i < w.block.blocks; i++)
            left += w.residents[i].exited;
        if (left == w.threads * w.block.blocks)
            return false;
        if (!async_advance(w.block.async) && !others_end(w))
            kernel_error(w, "deadlock: every thread waits");
    }
    if (w.interleave || !(w.ready >> w.warp & 1))
        w.warp = pick(w.ready, w.warp_order, w.random);
    w.lane = pick(w.warps[w.warp].ready, w.lane_order, w.random);
    w.show();
    return true;
}

/* The fiber on which the chosen thread runs, or can start. */
static Fiber *fiber_of(Worker &w)
{
    Thread &t = w.running();
    if (t.fiber)
        return t.fiber;
    Fiber *f;
    if (tsan) { /* the fiber with the thread's number, shifted so that blocks use different ones */
        f = w.all[w.warp * 32 + w.lane + w.turn];
    } else if (w.idle.empty()) {
        f = new_fiber(w);
    } else {
        f = w.idle.back();
        w.idle.pop_back();
    }
    return t.fiber = f;
}

/* The running thread stops; it goes on when this returns. */
static void go_on(Worker &w, Thread &me)
{
    if (!choose(w))
        kernel_error(w, "the block ended while a thread waits");
    if (&w.running() == &me)
        return;
    Fiber *mine = me.fiber;
    jump(mine, fiber_of(w));
}

static void run_thread(Worker &w)
{
    Thread &t = w.running();
#ifdef STANDIN_TSAN
    __tsan_acquire(&launch_address);
#endif
    w.kernel->thread();
    Warp &p = w.warps[w.warp];
    unsigned bit = 1u << w.lane;
    if (w.resident().arrived)
        kernel_error(w, "leaves the kernel while others wait at a barrier of the block");
    for (unsigned left = p.met; left; left &= left - 1)
        if (p.threads[__builtin_ctz(left)].mask & bit)
            kernel_error(w, "leaves the kernel while its warp waits for it");
    async_leave(w.block.async);
    t.copies.clear();
    p.ready &= ~bit;
    p.exited |= bit;
    if (!p.ready)
        w.ready &= ~(1u << w.warp);
    w.resident().exited++;
}

static void fiber_main(transfer_t from)
{
    Worker &w = *worker;
    Fiber *me = w.running().fiber;
    landed(from, me);
    for (;;) {
        run_thread(w);
        Fiber *next = &w.main;
        if (choose(w)) {
            if (!tsan && !w.running().fiber) { /* a thread that never met anyone costs no switch */
                w.running().fiber = me;
                continue;
            }
            next = fiber_of(w);
        }
        if (!tsan)
            w.idle.push_back(me);
        jump(me, next);
    }
}

/* ------------------------------------------------------------------------------------------------
 * Meeting points. */

/* Everything that the threads in `lanes` of each warp did happens before what they do next. */
static void order_memory(Worker &w, unsigned first, unsigned last, unsigned lanes, char *address)
{
#ifdef STANDIN_TSAN
    void *me = __tsan_get_current_fiber();
    for (int acquire = 0; acquire < 2; acquire++)
        for (unsigned i = first; i <= last; i++)
            for (unsigned left = lanes & w.warps[i].exists; left; left &= left - 1) {
                __tsan_switch_to_fiber(w.warps[i].threads[__builtin_ctz(left)].fiber->tsan, 1);
                acquire ? __tsan_acquire(address) : __tsan_release(address);
            }
    __tsan_switch_to_fiber(me, 1);
#else
    (void)w, (void)first, (void)last, (void)lanes, (void)address;
#endif
}

unsigned lane()
{
    return worker->lane;
}
unsigned live_lanes()
{
    Warp &p = worker->warps[worker->warp];
    return p.exists & ~p.exited;
}
void *shared_memory()
{
    return worker->smem + size_t(cluster_rank()) * worker->block.stride;
}

void memory_fence()
{
#ifdef STANDIN_TSAN
    __tsan_release(&fence_address);
    __tsan_acquire(&fence_address);
#endif
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* Whether all lanes of `mask` are at the same point; an error if they wait for each other. */
static bool all_met(Worker &w, Warp &p, unsigned mask, Thread &me, unsigned bit)
{
    if ((p.met & mask) != mask)
        return false;
    for (unsigned left = mask; left; left &= left - 1) {
        Thread &t = p.threads[__builtin_ctz(left)];
        if (t.mask == me.mask && t.line == me.line && t.what == me.what)
            continue;
        if (t.mask & bit)
            kernel_error(w, "lanes of a warp wait for each other at different points");
        return false;
    }
    return true;
}

void meet_warp(unsigned mask, const char *what, int line, void *operand, WarpOp op, bool fence)
{
    Worker &w = *worker;
    Warp &p = w.warps[w.warp];
    Thread &me = w.running();
    unsigned bit = 1u << w.lane;
    mask &= p.exists;
    me.mask = mask, me.line = line, me.what = what;
    if (!(mask & bit))
        kernel_error(w, "the mask does not name the calling lane");
    if (mask & p.exited)
        kernel_error(w, "the mask names a lane that has left the kernel");
    if (op && mask != 0xFFFFFFFFu && (what[0] == 'm' || what[0] == 'l'))
        kernel_error(w, "mma and ldmatrix need a whole warp");
    p.operands[w.lane] = operand;
    p.met |= bit;
    if (all_met(w, p, mask, me, bit)) {
        if (op)
            op(p.operands, mask);
        if (fence && tsan)
            order_memory(w, w.warp, w.warp, mask, &w.sync[w.warp]);
        p.met &= ~mask;
        p.ready |= mask;
    } else {
        p.ready &= ~bit;
        if (!p.ready)
            w.ready &= ~(1u << w.warp);
    }
    go_on(w, me);
}

/* `vote` is counted over the block; the two counters take turns, for a thread may be at the next
 * barrier before another has read the last one's. */
int meet_block_count(bool vote, const char *what, int line)
{
    Worker &w = *worker;
    Warp &p = w.warps[w.warp];
    Thread &me = w.running();
    Resident &b = w.resident();
    unsigned bit = 1u << w.lane;
    me.line = line, me.what = what;
    if (b.exited)
        kernel_error(w, "waits at a barrier of the block that other threads have left");
    int generation = b.generation;
    if (!b.arrived++) {
        b.barrier = what;
        b.barrier_line = line;
        b.votes[generation & 1] = 0;
    } else if (line != b.barrier_line || strcmp(what, b.barrier)) {
        p.at_barrier |= bit;
        kernel_error(w, "is at another barrier than the rest of the block");
    }
    b.votes[generation & 1] += vote;
    p.ready &= ~bit;
    p.at_barrier |= bit;
    if (!p.ready)
        w.ready &= ~(1u << w.warp);
    if (b.arrived == w.threads) {
        const unsigned rank = cluster_rank(), first = rank * w.block_warps();
        if (tsan)
            order_memory(w, first, first + w.block_warps() - 1, 0xFFFFFFFFu, &w.sync[32 + rank]);
        for (unsigned i = first; i < first + w.block_warps(); i++) {
            w.warps[i].at_barrier = 0;
            w.warps[i].ready = w.warps[i].exists;
            w.ready |= unsigned(w.warps[i].exists != 0) << i;
        }
        b.arrived = 0;
        b.generation++;
        w.warp = pick(w.ready, w.warp_order, w.random); /* else the last warp would go on */
    }
    go_on(w, me);
    return b.votes[generation & 1];
}
void meet_block(const char *what, int line)
{
    meet_block_count(false, what, line);
}

/* ------------------------------------------------------------------------------------------------
 * For async.cpp. */

Block &block()
{
    return worker->block;
}
int self()
{
    return int(worker->warp * 32 + worker->lane);
}
void says(const char *what, int line)
{
    Thread &t = worker->running();
    t.what = what, t.line = line;
}
void stop()
{
    Worker &w = *worker;
    Warp &p = w.warps[w.warp];
    unsigned bit = 1u << w.lane;
    p.stopped |= bit;
    p.ready &= ~bit;
    if (!p.ready)
        w.ready &= ~(1u << w.warp);
    go_on(w, w.running());
}
void may_go(int thread)
{
    unsigned warp = unsigned(thread) / 32, bit = 1u << thread % 32;
    worker->warps[warp].stopped &= ~bit;
    worker->warps[warp].ready |= bit;
    worker->ready |= 1u << warp;
}
void dependent_wait(int line)
{
    Worker &w = *worker;
    if (!w.early.the_rest)
        return;
    says("dependent_wait", line);
    w.early.waiting.push_back(self());
    stop();
}
Unseen::Unseen()
{
    tsan_ignore(true);
}
Unseen::~Unseen()
{
    tsan_ignore(false);
}
void order_release([[maybe_unused]] void *address)
{
#ifdef STANDIN_TSAN
    __tsan_release(address);
#endif
}
void order_acquire([[maybe_unused]] void *address)
{
#ifdef STANDIN_TSAN
    __tsan_acquire(address);
#endif
}
bool block_left(unsigned rank)
{
    return worker->residents[rank].exited == worker->threads;
}
unsigned cluster_rank()
{
    return worker->warp / worker->block_warps();
}
unsigned cluster_blocks()
{
    return unsigned(worker->block.blocks);
}
void block_error(int thread, const char *fmt, ...)
{
    char text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    worker->warp = unsigned(thread) / 32, worker->lane = unsigned(thread) % 32;
    worker->show();
    kernel_error(*worker, text);
}

struct Ballot {
    bool predicate;
    unsigned result;
};
STANDIN_NO_TSAN static void count_ballot(void *const *operands, unsigned mask)
{
    unsigned result = 0;
    for (unsigned left = mask; left; left &= left - 1) {
        int i = __builtin_ctz(left);
        result |= unsigned(static_cast<Ballot *>(operands[i])->predicate) << i;
    }
    for (unsigned left = mask; left; left &= left - 1)
        static_cast<Ballot *>(operands[__builtin_ctz(left)])->result = result;
}
unsigned ballot(unsigned mask, bool predicate, const char *what, int line)
{
    Ballot b = {predicate, 0};
    meet_warp(mask, what, line, &b, count_ballot, false);
    return b.result;
}

static void touch(void *p, size_t bytes, bool write)
{
#ifdef STANDIN_TSAN
    (write ? __tsan_write_range : __tsan_read_range)(p, bytes);
#else
    (void)p, (void)bytes, (void)write;
#endif
}
void copy_issue(void *to, const void *from, unsigned bytes, unsigned from_bytes)
{
    Worker &w = *worker;
    Thread &t = w.running();
    if (uintptr_t(to) % bytes || uintptr_t(from) % bytes)
        kernel_error(w, "cp.async with a misaligned address");
    if (from_bytes > bytes)
        kernel_error(w, "cp.async reads more than it writes");
    char *smem = static_cast<char *>(shared_memory());
    if (static_cast<char *>(to) < smem || static_cast<char *>(to) + bytes > smem + w.block.bytes)
        kernel_error(w, "cp.async writes outside of the block's shared memory");
    touch(to, bytes, true);
    memset(to, 0xFF, bytes);
    tsan_ignore(true);
    t.copies.push_back({to, from, bytes, from_bytes, t.committed});
    tsan_ignore(false);
}
void copy_commit()
{
    worker->running().committed++;
}
void copy_wait(unsigned groups_left, bool uncommitted_too)
{
    Thread &t = worker->running();
    size_t kept = 0;
    for (Copy &c : t.copies) {
        if (!uncommitted_too && c.group + groups_left >= t.committed) {
            t.copies[kept++] = c;
            continue;
        }
        touch(const_cast<void *>(c.from), c.from_bytes, false);
        touch(c.to, c.bytes, true);
        memcpy(c.to, c.from, c.from_bytes);
        memset(static_cast<char *>(c.to) + c.from_bytes, 0, c.bytes - c.from_bytes);
    }
    t.copies.resize(kept);
}

/* ------------------------------------------------------------------------------------------------
 * Blocks. */

/* The last one's shared memory is exactly as large as asked for under a sanitizer; else, and behind
 * that of others, a guard shows overruns. */
#if defined(STANDIN_ASAN) || defined(STANDIN_TSAN)
constexpr size_t GUARD = 0;
#else
constexpr size_t GUARD = 128;
#endif
static void *fresh_memory(size_t bytes)
{
    void *p;
    if (posix_memalign(&p, 1024, bytes ? bytes : 1))
        die("no memory for a block");
    return p;
}
static void check_guard(Worker &w)
{
    const Block &b = w.block;
    for (int i = 1; i <= b.blocks; i++)
        for (size_t at = (i - 1) * b.stride + b.bytes,
                    end = i < b.blocks ? i * b.stride : w.smem_bytes;
             at < end; at++)
            if (w.smem[at] != char(0xFF))
                kernel_error(w, "the block wrote beyond its dynamic shared memory");
}
/* Bytes from one block's shared memory to the next one's, and of all. */
static size_t smem_stride(const Kernel &k)
{
    return k.cluster > 1 ? (k.smem + 128 + 1023) / 1024 * 1024 : k.smem;
}
static size_t smem_total(const Kernel &k)
{
    return (k.cluster - 1) * smem_stride(k) + k.smem + GUARD;
}

static void begin_warps(Worker &w)
{
    w.ready = 0;
    for (int i = 0; i < w.block.blocks * w.block.room / 32; i++) {
        Warp &p = w.warps[i];
        int lanes = std::clamp(w.threads - 32 * i % w.block.room, 0, 32);
        p.exists = p.ready = lanes == 32 ? 0xFFFFFFFFu : (1u << lanes) - 1;
        p.met = p.at_barrier = p.stopped = p.exited = 0;
        w.ready |= unsigned(lanes > 0) << i;
        for (int j = 0; j < lanes; j++) {
            p.threads[j].fiber = nullptr;
            p.threads[j].committed = 0;
            p.threads[j].line = 0;
        }
    }
}

static void run_cluster(Worker &w, const Kernel &k, unsigned long long number)
{
    for (unsigned i = 0; i < k.cluster; i++) {
        unsigned long long at = number * k.cluster + i;
        w.residents[i] = {};
        w.residents[i].index = {unsigned(at % k.grid.x), unsigned(at / k.grid.x % k.grid.y),
                                unsigned(at / k.grid.x / k.grid.y)};
    }
    w.random.state = k.seed + number * 0xD1B54A32D192ED03u;
    w.random.next();
    w.warp_order = Order(w.random.below(3));
    w.lane_order = Order(w.random.below(3));
    w.interleave = w.random.below(4) == 0;
    w.turn = w.random.below(TURNS);
    tsan_ignore(true);
    if (tsan) {
        free(w.smem);
        free(w.sync);
        w.smem = static_cast<char *>(fresh_memory(w.smem_bytes));
        w.sync = static_cast<char *>(fresh_memory(32 + MAX_CLUSTER));
    }
    memset(w.smem, 0xFF, w.smem_bytes);
    tsan_ignore(false);
    w.block.smem = w.smem;
    begin_warps(w);
    async_begin(w.block.async);
    w.warp = pick(w.ready, w.warp_order, w.random);
    choose(w);
    jump(&w.main, fiber_of(w));
    async_end(w.block.async);
    check_guard(w);
}

static void prepare(Worker &w, const Kernel &k)
{
    w.kernel = &k;
    blockDim = k.block;
    gridDim = k.grid;
    w.threads = int(k.block.x * k.block.y * k.block.z);
    w.main.stack = nullptr; /* asked again: the same Worker may serve from another depth */
    const int blocks = int(k.cluster), room = (w.threads + 127) / 128 * 128;
    if (blocks * room > 1024)
        die("a cluster of %d blocks of %d threads: 1024 are modelled", blocks, w.threads);
    w.block = {w.threads, room, blocks, w.smem, k.smem, smem_stride(k), &w.random, w.block.async};
    for (int i = 0; i < blocks * room; i++) {
        unsigned n = unsigned(i % room), x = n % k.block.x, yz = n / k.block.x;
        w.warps[i / 32].threads[i % 32].index = {x, yz % k.block.y, yz / k.block.y};
    }
    /* Creating a fiber orders what its creator did before it: no thread of a block may do that. */
    while (tsan && w.all.size() < size_t(blocks * room) + TURNS)
        new_fiber(w);
    if (!w.smem || w.smem_bytes != smem_total(k)) {
        free(w.smem);
        w.smem_bytes = smem_total(k);
        w.smem = static_cast<char *>(fresh_memory(w.smem_bytes));
    }
}

/* Order of the blocks: an affine permutation, so that none relies on a lower number. */
struct BlockOrder {
    unsigned long long n, step, start;
    BlockOrder(unsigned long long n, Random r) : n(n)
    {
        unsigned kind = r.below(3);
        start = kind == FORWARD ? 0 : kind == REVERSE ? n - 1 : r.next() % n;
        step = kind == FORWARD ? 1 : kind == REVERSE ? n - 1 : r.next() % n;
        while (std::gcd(step, n) != 1)
            step = step + 1;
        step %= n;
    }
    unsigned long long operator()(unsigned long long i) const
    {
        return (unsigned long long)((start + (unsigned __int128)i * step) % n);
    }
};

static void run_blocks(const Kernel &k, const BlockOrder &order, unsigned long long *next)
{
    if (!worker) {
        worker = new Worker(); /* kept by the OS thread to its end, with its fibers */
    }
    Worker &w = *worker;
#ifdef STANDIN_TSAN
    w.main.tsan = __tsan_get_current_fiber();
#endif
    prepare(w, k);
    for (;;) {
        unsigned long long i = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (i >= order.n)
            break;
        if ((long long)order(i) != k.done)
            run_cluster(w, k, order(i));
    }
    w.kernel = nullptr;
}

/* What came before the kernel is ordered before it, and it before what follows. */
static void order_launch(bool end)
{
#ifdef STANDIN_TSAN
    if (!end) {
        __tsan_release(&launch_address);
        return;
    }
    Worker &w = *worker;
    for (Fiber *f : w.all) {
        __tsan_switch_to_fiber(f->tsan, 1);
        __tsan_release(&launch_address);
    }
    __tsan_switch_to_fiber(w.main.tsan, 1);
    __tsan_acquire(&launch_address);
#else
    (void)end;
#endif
}

void run_kernel(const Kernel &k)
{
    BlockOrder order((unsigned long long)k.grid.x * k.grid.y * k.grid.z / k.cluster, {k.seed});
    unsigned long long next = 0;
    bool parallel = !tsan && order.n > 1 && order.n * k.block.x > 512 && !omp_in_parallel();
    order_launch(false);
    if (parallel) {
#pragma omp parallel
        run_blocks(k, order, &next);
    } else {
        run_blocks(k, order, &next);
    }
    order_launch(true);
}

/* ------------------------------------------------------------------------------------------------
 * A cluster of the next kernel, which begins early: on an OS thread of its own, since the kernel in
 * front of it runs in the middle. */

struct Helper {
    std::mutex lock;
    std::condition_variable change;
    std::function<void()> job;
    pid_t process = getpid();

    Helper()
    {
        std::thread([this] {
            std::unique_lock<std::mutex> hold(lock);
            for (;;) {
                change.wait(hold, [&] { return bool(job); });
                hold.unlock();
                job();
                hold.lock();
                job = nullptr;
                change.notify_all();
            }
        }).detach();
    }
};

long long run_early(const Kernel &k, const std::function<void()> &others)
{
    if (tsan) { /* who knows one OS thread */
        others();
        return -1;
    }
    static Helper *helper;
    if (!helper || helper->process != getpid()) /* threads are not copied by fork() */
        helper = new Helper;
    Helper &h = *helper;
    unsigned long long n = (unsigned long long)k.grid.x * k.grid.y * k.grid.z / k.cluster;
    unsigned long long number = Random{k.seed}.next() % n;
    bool reached = false, ended = false; /* dependent_wait(), the other kernel */
    std::unique_lock<std::mutex> hold(h.lock);
    h.job = [&] {
        if (!worker)
            worker = new Worker();
        Worker &w = *worker;
        w.early.the_rest = [&] {
            std::unique_lock<std::mutex> hold(h.lock);
            reached = true;
            h.change.notify_all();
            h.change.wait(hold, [&] { return ended; });
        };
        prepare(w, k);
        run_cluster(w, k, number);
        if (w.early.the_rest)
            kernel_error(w, "a dependent kernel that nowhere calls dependent_wait()");
        w.kernel = nullptr;
    };
    h.change.notify_all();
    h.change.wait(hold, [&] { return reached || !h.job; });
    hold.unlock();
    others();
    hold.lock();
    ended = true;
    h.change.notify_all();
    h.change.wait(hold, [&] { return !h.job; });
    return (long long)number;
}

} // namespace standin
