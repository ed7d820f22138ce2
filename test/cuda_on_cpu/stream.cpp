/* stream.cpp - device, memory, streams, events, capture and graphs of the stand-in.
 *
 * Streams are queues that run late: work waits until the host synchronises, and then runs in a
 * seeded order that only streams, events and the legacy stream's rules constrain. A missing wait,
 * a host buffer reused too early or read too soon therefore shows as a wrong result. Device memory
 * is a region that the host can touch only while queued work runs. Copies refuse host memory that
 * is not pinned, since that would make them synchronous on a GPU; kernels refuse it as operand.
 *
 * Read: State, memory, Op and the scheduler, streams and events, capture and graphs, launch.
 */
#include "standin.h"

#include <algorithm>
#include <cstdarg>
#include <csignal>
#include <ctime>
#include <dlfcn.h>
#include <link.h>
#include <map>
#include <mutex>
#include <omp.h>
#include <pthread.h>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>

#ifdef STANDIN_ASAN
#include <sanitizer/asan_interface.h>
#endif

using standin::Chain;
using standin::Op;
using standin::Work;

namespace standin
{
struct Capture;
struct Op {
    Work work; /* empty: only a point in the order */
    CUstream_st *stream;
    int waiting = 0; /* for this many other works */
    bool done = false;
    double time = 0; /* when it was done */
    std::vector<std::shared_ptr<Op>> next;
};
} // namespace standin
using standin::Capture;
using OpPtr = std::shared_ptr<Op>;

/* A kernel in a queue, and the one behind it that may begin early. */
struct Launched {
    standin::Kernel kernel;
    std::shared_ptr<Launched> dependent;
};
struct CUstream_st {
    bool blocking; /* takes part in the legacy stream's rules */
    OpPtr last = nullptr;
    Capture *capture = nullptr;
    std::vector<int> frontier = {}; /* while capturing: what the next node depends on */
    int priority = 0;
    std::shared_ptr<Launched> kernel = nullptr; /* launched last, */
    OpPtr kernel_op = nullptr; /* and its place: this, or while capturing that */
    int kernel_node = -1;
};
struct CUevent_st {
    bool timing;
    OpPtr op;             /* what was recorded last */
    uint64_t capture = 0; /* or: which capture it was recorded in, and where */
    std::vector<int> frontier;
};
struct Node {
    Work work;
    std::vector<int> after;
    Chain *chain;
    int priority;
};
struct CUgraph_st {
    std::vector<Node> nodes;
};
struct CUgraphExec_st {
    std::vector<Node> nodes;
    bool node_priority;
    OpPtr last; /* launches of one executable graph follow each other */
};

namespace standin
{

constexpr int PROCESSORS = 4;
constexpr size_t LARGE_PAGE = 2 << 20;
constexpr size_t GUARD = 256; /* at least this between allocations, filled with 0xFF */

struct Capture {
    uint64_t id;
    CUgraph_st *graph;
    CUstream_st *origin;
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    bool invalid = false;
};

struct State {
    std::recursive_mutex lock;
    Random random{0};
    /* device */
    int devices, device = 0, sm;
    cudaError_t absent = cudaSuccess;
    bool no_kernel;
    /* memory */
    size_t total, used = 0, reserved;
    char *base;
    std::map<uintptr_t, size_t> device_memory, pinned, owned;
    int open = 0; /* depth of code that may touch device memory */
    /* queues */
    std::vector<OpPtr> ready;
    std::vector<CUstream_st *> streams;
    CUstream_st null{true};
    int replayed_priority = 0;
    int graphs = 0;
    bool idle = true; /* see standin::idle() */
    uint64_t kernels = 0, captures = 0, calls = 0;
    std::vector<Capture *> capturing;
    std::map<const void *, int> smem_limit;

    State();
    size_t span() /* bytes from base to beyond the last allocation, in large pages */
    {
        if (device_memory.empty())
            return 0;
        size_t end = device_memory.rbegin()->first + device_memory.rbegin()->second + GUARD;
        return (end - uintptr_t(base) + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
    }
};
static State &g()
{
    static State *s = new State; /* never destroyed: work may be queued by other destructors */
    return *s;
}
static thread_local cudaError_t last_error;

void die(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fflush(stdout);
    fprintf(stderr, "cuda_on_cpu: ");
    vfprintf(stderr, fmt, args);
    fprintf(stderr, "\n");
    va_end(args);
    abort();
}
long long setting(const char *name, long long otherwise)
{
    const char *s = getenv(name);
    return s && *s ? atoll(s) : otherwise;
}

/* What a crash means that is not obvious from its address. */
static char *touch_first, *touch_last;
static void on_touch(int signal, siginfo_t *info, void *)
{
    char *at = static_cast<char *>(info->si_addr);
    if (at >= touch_first && at < touch_last)
        fprintf(stderr, "cuda_on_cpu: host code touched device memory (%p)\n", info->si_addr);
    std::signal(signal, SIG_DFL); /* the instruction runs again, and ends the process */
}
static void explain_touch(char *base, size_t bytes)
{
    struct sigaction now, old;
    touch_first = base;
    touch_last = base + bytes;
    memset(&now, 0, sizeof now);
    now.sa_sigaction = on_touch;
    now.sa_flags = SA_SIGINFO;
    if (sigaction(SIGSEGV, nullptr, &old) == 0 && old.sa_handler == SIG_DFL)
        sigaction(SIGSEGV, &now, nullptr); /* unless a sanitizer or the program has one */
}

State::State()
{
    random.state = uint64_t(setting("VIT_STANDIN_SEED", 1));
    devices = int(setting("VIT_STANDIN_DEVICES", 1));
    sm = int(setting("VIT_STANDIN_SM", 80));
    no_kernel = setting("VIT_STANDIN_NO_KERNEL", 0);
    if (setting("VIT_STANDIN_NO_DEVICE", 0))
        absent = cudaErrorNoDevice;
    if (setting("VIT_STANDIN_OLD_DRIVER", 0))
        absent = cudaErrorInsufficientDriver;
    total = size_t(setting("VIT_STANDIN_MEMORY", 4LL << 30));
    /* Twice the memory: addresses are not what runs out on a GPU. Large pages, since opening and
     * closing the region costs time for each page. */
    reserved = (2 * total + 2 * LARGE_PAGE) / LARGE_PAGE * LARGE_PAGE;
    char *map = (char *)mmap(nullptr, reserved + LARGE_PAGE, PROT_NONE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        die("cannot reserve %zu bytes of address space for device memory", reserved);
    base = map + (-uintptr_t(map) & (LARGE_PAGE - 1));
    madvise(base, reserved, MADV_HUGEPAGE);
    explain_touch(base, reserved);
    /* The threads of OpenMP do not survive a fork: the child goes on with one. */
    pthread_atfork(nullptr, nullptr, [] { omp_set_num_threads(1); });
}

static cudaError_t result(cudaError_t e)
{
    if (e != cudaSuccess)
        last_error = e;
    return e;
}

/* Holds the lock; fails where there is no device. */
#define API                                               \
    std::lock_guard<std::recursive_mutex> hold(g().lock); \
    g().calls++;                                          \
    if (g().absent != cudaSuccess)                        \
    return result(g().absent)

/* ------------------------------------------------------------------------------------------------
 * Memory. */

/* While one exists, device memory may be touched. */
struct Open {
    size_t span = g().span();
    Open()
    {
        protect(g().open++ == 0, PROT_READ | PROT_WRITE);
    }
    ~Open()
    {
        protect(--g().open == 0, PROT_NONE);
    }
    void protect(bool now, int what)
    {
        if (now && span && mprotect(g().base, span, what))
            die("mprotect of device memory failed");
    }
};

static bool inside(const std::map<uintptr_t, size_t> &map, const void *p, size_t bytes)
{
    auto i = map.upper_bound(uintptr_t(p));
    if (i == map.begin())
        return false;
    --i;
    return uintptr_t(p) + bytes <= i->first + i->second;
}
bool is_device(const void *p, size_t bytes)
{
    std::lock_guard<std::recursive_mutex> hold(g().lock);
    return inside(g().device_memory, p, bytes);
}

static void poison(const void *p, size_t bytes, bool on)
{
#ifdef STANDIN_ASAN
    on ? __asan_poison_memory_region(p, bytes) : __asan_unpoison_memory_region(p, bytes);
#else
    (void)p, (void)bytes, (void)on;
#endif
}

/* First fit, at odd multiples of 256 (no more is promised), with a guard on either side. */
static char *place(size_t bytes)
{
    uintptr_t at = uintptr_t(g().base) + GUARD, end = uintptr_t(g().base) + g().reserved;
    for (auto &m : g().device_memory) {
        if (at + bytes + GUARD <= m.first)
            break;
        at = ((m.first + m.second + 511) & ~uintptr_t(511)) + 256;
    }
    return at + bytes + GUARD <= end ? (char *)at : nullptr;
}
/* Without a sanitizer, writes just outside of an allocation show when it is freed. */
static void check_guards(const char *at, size_t bytes)
{
#ifndef STANDIN_ASAN
    for (size_t i = 1; i <= GUARD; i++)
        if (at[-long(i)] != char(0xFF) || at[bytes + i - 1] != char(0xFF))
            die("something wrote just outside of device memory %p of %zu bytes", (const void *)at,
                bytes);
#else
    (void)at, (void)bytes;
#endif
}

} // namespace standin
using namespace standin;

/* A mistake during a capture spoils it. */
static cudaError_t spoil(Capture *c, cudaError_t e)
{
    c->invalid = true;
    return result(e);
}

/* Calls that may synchronise are illegal while a capture that forbids them is under way. */
cudaError_t standin::synchronous_call()
{
    std::lock_guard<std::recursive_mutex> hold(g().lock);
    cudaError_t e = cudaSuccess;
    for (Capture *c : g().capturing)
        if (c->mode == cudaStreamCaptureModeGlobal ||
            (c->mode == cudaStreamCaptureModeThreadLocal &&
             c->thread == std::this_thread::get_id())) {
            c->invalid = true;
            e = cudaErrorStreamCaptureUnsupported;
        }
    return e;
}
#define SYNCHRONOUS                                                       \
    API;                                                                  \
    if (cudaError_t not_now = synchronous_call(); not_now != cudaSuccess) \
        return result(not_now);                                           \
    g().idle = true

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    SYNCHRONOUS;
    if (!p)
        return result(cudaErrorInvalidValue);
    *p = nullptr;
    if (bytes == 0)
        return cudaSuccess;
    size_t rounded = (bytes + 255) / 256 * 256;
    char *at = rounded < bytes || rounded > g().total - g().used ? nullptr : place(bytes);
    if (!at)
        return result(cudaErrorMemoryAllocation);
    g().used += rounded;
    g().device_memory[uintptr_t(at)] = bytes;
    Open open;
    poison(at - GUARD, bytes + 2 * GUARD, false);
    memset(at - GUARD, 0xFF, bytes + 2 * GUARD);
    poison(at - GUARD, GUARD, true);
    poison(at + bytes, GUARD, true);
    *p = at;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    SYNCHRONOUS;
    if (!p)
        return cudaSuccess;
    auto i = g().device_memory.find(uintptr_t(p));
    if (i == g().device_memory.end())
        return result(cudaErrorInvalidValue);
    drain();
    {
        Open open;
        check_guards(static_cast<char *>(p), i->second);
        memset(p, 0xFF, i->second);
        poison(p, i->second, true);
    }
    g().used -= (i->second + 255) / 256 * 256;
    g().device_memory.erase(i);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned)
{
    SYNCHRONOUS;
    if (!p)
        return result(cudaErrorInvalidValue);
    *p = nullptr;
    if (bytes && posix_memalign(p, 256, bytes))
        return result(cudaErrorMemoryAllocation);
    if (!bytes)
        return cudaSuccess;
    memset(*p, 0xFF, bytes);
    g().pinned[uintptr_t(*p)] = g().owned[uintptr_t(*p)] = bytes;
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **p, size_t bytes, unsigned flags)
{
    return cudaHostAlloc(p, bytes, flags);
}
cudaError_t cudaFreeHost(void *p)
{
    SYNCHRONOUS;
    if (!p)
        return cudaSuccess;
    if (!g().owned.erase(uintptr_t(p)))
        return result(cudaErrorInvalidValue);
    drain();
    g().pinned.erase(uintptr_t(p));
    free(p);
    return cudaSuccess;
}
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned)
{
    SYNCHRONOUS;
    if (!p || !bytes)
        return result(cudaErrorInvalidValue);
    if (inside(g().pinned, p, 1))
        return result(cudaErrorHostMemoryAlreadyRegistered);
    g().pinned[uintptr_t(p)] = bytes;
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *p)
{
    SYNCHRONOUS;
    if (g().owned.count(uintptr_t(p)) || !g().pinned.count(uintptr_t(p)))
        return result(cudaErrorHostMemoryNotRegistered);
    drain();
    g().pinned.erase(uintptr_t(p));
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free, size_t *total)
{
    API;
    *free = g().total - g().used;
    *total = g().total;
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *a, const void *p)
{
    API;
    *a = {cudaMemoryTypeUnregistered, -1, nullptr, nullptr};
    if (is_device(p, 1))
        *a = {cudaMemoryTypeDevice, g().device, const_cast<void *>(p), nullptr};
    else if (inside(g().pinned, p, 1))
        *a = {cudaMemoryTypeHost, g().device, const_cast<void *>(p), const_cast<void *>(p)};
    return cudaSuccess;
}

/* ------------------------------------------------------------------------------------------------
 * The scheduler. An Op is ready when everything it waits for is done. */

static double seconds()
{
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

static void after(const OpPtr &op, const OpPtr &first)
{
    if (!first || first->done || first == op)
        return;
    first->next.push_back(op);
    op->waiting++;
}

/* Runs ready[i]; false if it must be asked again. */
static bool run_ready(size_t i)
{
    OpPtr op = g().ready[i];
    g().ready[i] = g().ready.back();
    g().ready.pop_back();
    if (op->work && !op->work()) {
        g().ready.push_back(op);
        return false;
    }
    op->work = nullptr;
    op->done = true;
    op->time = seconds();
    for (OpPtr &n : op->next)
        if (--n->waiting == 0)
            g().ready.push_back(n);
    op->next.clear();
    return true;
}

/* Runs works until `enough`. How other streams fare meanwhile is drawn anew each time: they lag as
 * far as they may, run ahead as far as they may, or anything between. */
template <class F> static void run_until(CUstream_st *stream, F enough)
{
    if (enough())
        return;
    Open open;
    unsigned mode = g().random.below(3), idle = 0;
    while (!enough()) {
        size_t n = g().ready.size();
        if (!n)
            die("nothing in the queues can run (a work waits for one never queued)");
        size_t i = g().random.below(unsigned(n));
        if (mode < 2 && !idle) /* 0: this stream first; 1: the others first */
            for (size_t j = 0; j < n; j++)
                if ((g().ready[(i + j) % n]->stream == stream) == (mode == 0)) {
                    i = (i + j) % n;
                    break;
                }
        if (run_ready(i))
            idle = 0;
        else if (++idle > 4 * n) /* all of them wait for other processes */
            usleep(20);
    }
}
static void run_op(const OpPtr &op)
{
    if (op)
        run_until(op->stream, [&] { return op->done; });
}
void standin::drain()
{
    std::lock_guard<std::recursive_mutex> hold(g().lock);
    run_until(nullptr, [] { return g().ready.empty(); });
}
/* A few works, whichever: when something is queued or asked about. */
static void run_some(unsigned n)
{
    if (g().ready.empty())
        return;
    Open open;
    for (; n && !g().ready.empty(); n--)
        run_ready(g().random.below(unsigned(g().ready.size())));
}

void standin::progress()
{
    static std::once_flag once;
    std::call_once(once, [] {
        std::thread([] {
            for (uint64_t before = 0;; usleep(20000)) {
                std::lock_guard<std::recursive_mutex> hold(g().lock);
                if (before == g().calls) /* nobody has called since the last look */
                    run_some(64);
                before = g().calls;
            }
        }).detach();
    });
}

static CUstream_st *resolve(cudaStream_t s)
{
    if (!s || s == cudaStreamLegacy || s == &g().null)
        return &g().null;
    if (std::find(g().streams.begin(), g().streams.end(), s) == g().streams.end())
        die("a stream that does not exist (destroyed?) was used");
    return s;
}

/* Puts an Op at the end of a stream that is not capturing. */
static OpPtr append(CUstream_st *s, Work work)
{
    OpPtr op = std::make_shared<Op>();
    op->work = std::move(work);
    op->stream = s;
    after(op, s->last);
    if (s == &g().null) {
        for (CUstream_st *other : g().streams)
            if (other->blocking)
                after(op, other->last);
    } else if (s->blocking) {
        after(op, g().null.last);
    }
    s->last = op;
    return op;
}
/* To be called once an Op's dependencies are complete. */
static void release(const OpPtr &op)
{
    if (op->waiting == 0)
        g().ready.push_back(op);
}

/* The legacy stream would wait for blocking streams, captured ones too: an error. */
static cudaError_t implicit_capture(CUstream_st *s)
{
    cudaError_t e = cudaSuccess;
    if (s == &g().null)
        for (CUstream_st *other : g().streams)
            if (other->blocking && other->capture) {
                other->capture->invalid = true;
                e = cudaErrorStreamCaptureImplicit;
            }
    return e;
}

cudaError_t standin::enqueue(cudaStream_t stream, Work work, Chain *chain)
{
    std::lock_guard<std::recursive_mutex> hold(g().lock);
    g().calls++;
    CUstream_st *s = resolve(stream);
    if (Capture *c = s->capture) {
        if (c->invalid)
            return cudaErrorStreamCaptureInvalidated;
        c->graph->nodes.push_back({std::move(work), s->frontier, chain, s->priority});
        s->frontier = {int(c->graph->nodes.size()) - 1};
        return cudaSuccess;
    }
    if (cudaError_t e = implicit_capture(s); e != cudaSuccess)
        return e;
    g().idle &= !work;
    OpPtr op = append(s, std::move(work));
    if (chain) {
        after(op, chain->last);
        chain->last = op;
    }
    release(op);
    if (g().random.below(32) == 0)
        run_some(1 + g().random.below(8));
    return cudaSuccess;
}

/* ------------------------------------------------------------------------------------------------
 * Copies. */

static const char *place_name(const void *p, size_t bytes)
{
    return is_device(p, bytes) ? "device" : inside(g().pinned, p, bytes) ? "pinned" : "host";
}
/* Which memory `p` must be in for this side of a copy. */
static cudaError_t check_side(const void *p, size_t bytes, bool device, bool pageable_too)
{
    const char *where = place_name(p, bytes);
    if (device)
        return *where == 'd' ? cudaSuccess : cudaErrorInvalidValue;
    if (*where == 'd' || is_device(p, 1))
        return cudaErrorInvalidValue;
    if (*where == 'h' && !pageable_too)
        die("cudaMemcpyAsync of %zu bytes with host memory that is not pinned (all of it)", bytes);
    return cudaSuccess;
}
static cudaError_t copy(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                        size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t s,
                        bool pageable_too)
{
    if (!width || !height)
        return cudaSuccess;
    if (!to || !from || (height > 1 && (to_pitch < width || from_pitch < width)))
        return cudaErrorInvalidValue;
    size_t to_bytes = to_pitch * (height - 1) + width;
    size_t from_bytes = from_pitch * (height - 1) + width;
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind == cudaMemcpyDefault) {
        to_device = is_device(to, 1);
        from_device = is_device(from, 1);
    }
    if (cudaError_t e = check_side(to, to_bytes, to_device, pageable_too); e != cudaSuccess)
        return e;
    if (cudaError_t e = check_side(from, from_bytes, from_device, pageable_too); e != cudaSuccess)
        return e;
    return enqueue(s, [=] {
        for (size_t i = 0; i < height; i++)
            memcpy((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width);
        return true;
    });
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t s)
{
    API;
    return result(copy(to, bytes, from, bytes, bytes, 1, kind, s, false));
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t s)
{
    API;
    return result(copy(to, to_pitch, from, from_pitch, width, height, kind, s, false));
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    SYNCHRONOUS;
    cudaError_t e = copy(to, bytes, from, bytes, bytes, 1, kind, nullptr, true);
    if (e == cudaSuccess)
        run_op(g().null.last);
    return result(e);
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s)
{
    API;
    if (!bytes)
        return cudaSuccess;
    if (!is_device(p, bytes) && !inside(g().pinned, p, bytes))
        return result(cudaErrorInvalidValue);
    return result(enqueue(s, [=] {
        memset(p, value, bytes);
        return true;
    }));
}
cudaError_t cudaMemset(void *p, int value, size_t bytes)
{
    SYNCHRONOUS;
    return cudaMemsetAsync(p, value, bytes, nullptr);
}

/* ------------------------------------------------------------------------------------------------
 * Streams and events. */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    API;
    if (!s || flags > cudaStreamNonBlocking)
        return result(cudaErrorInvalidValue);
    *s = new CUstream_st{!(flags & cudaStreamNonBlocking)};
    g().streams.push_back(*s);
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *s)
{
    return cudaStreamCreateWithFlags(s, 0);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority)
{
    cudaError_t e = cudaStreamCreateWithFlags(s, flags);
    if (e == cudaSuccess)
        (*s)->priority = priority;
    return e;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    API;
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    API;
    if (!s)
        return result(cudaErrorInvalidResourceHandle);
    resolve(s);
    if (s->capture)
        return spoil(s->capture, cudaErrorStreamCaptureUnsupported);
    run_op(s->last); /* CUDA returns at once and finishes the work; nothing can tell */
    g().streams.erase(std::find(g().streams.begin(), g().streams.end(), s));
    delete s;
    return cudaSuccess;
}

/* A captured stream can be neither waited for nor asked. */
static cudaError_t not_captured(CUstream_st *s)
{
    if (s->capture) {
        s->capture->invalid = true;
        return cudaErrorStreamCaptureUnsupported;
    }
    return implicit_capture(s);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    SYNCHRONOUS;
    CUstream_st *s = resolve(stream);
    if (cudaError_t e = not_captured(s); e != cudaSuccess)
        return result(e);
    if (s == &g().null) /* waits for all blocking streams */
        release(append(s, nullptr));
    run_op(s->last);
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    SYNCHRONOUS;
    CUstream_st *s = resolve(stream);
    if (cudaError_t e = not_captured(s); e != cudaSuccess)
        return result(e);
    run_some(1 + g().random.below(3));
    return s->last && !s->last->done ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaDeviceSynchronize()
{
    SYNCHRONOUS;
    for (Capture *c : g().capturing) /* even in relaxed mode */
        return spoil(c, cudaErrorStreamCaptureUnsupported);
    drain();
    return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *data)
{
    API;
    return result(enqueue(s, [=] {
        f(data);
        return true;
    }));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    API;
    if (!e)
        return result(cudaErrorInvalidValue);
    *e = new CUevent_st{!(flags & cudaEventDisableTiming), nullptr, 0, {}};
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *e)
{
    return cudaEventCreateWithFlags(e, 0);
}
cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    API;
    if (!e)
        return result(cudaErrorInvalidResourceHandle);
    delete e;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream)
{
    API;
    if (!e)
        return result(cudaErrorInvalidResourceHandle);
    CUstream_st *s = resolve(stream);
    if (Capture *c = s->capture) {
        if (c->invalid)
            return result(cudaErrorStreamCaptureInvalidated);
        e->capture = c->id;
        e->frontier = s->frontier;
        e->op = nullptr;
        return cudaSuccess;
    }
    cudaError_t error = enqueue(s, nullptr);
    if (error == cudaSuccess) {
        e->op = s->last;
        e->capture = 0;
    }
    return result(error);
}
static Capture *capture_of(uint64_t id)
{
    for (Capture *c : g().capturing)
        if (c->id == id)
            return c;
    return nullptr;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t e, unsigned)
{
    API;
    if (!e)
        return result(cudaErrorInvalidResourceHandle);
    CUstream_st *s = resolve(stream);
    if (s->capture && s->capture->invalid)
        return result(cudaErrorStreamCaptureInvalidated);
    if (e->capture) {
        Capture *c = capture_of(e->capture);
        if (!c || c->invalid)
            return result(c ? cudaErrorStreamCaptureInvalidated : cudaErrorCapturedEvent);
        if (s->capture && s->capture != c) {
            s->capture->invalid = c->invalid = true;
            return result(cudaErrorStreamCaptureMerge);
        }
        if (s == &g().null)
            return spoil(c, cudaErrorStreamCaptureImplicit);
        if (!s->capture) /* the stream joins the capture */
            s->frontier.clear();
        s->capture = c;
        for (int n : e->frontier)
            if (std::find(s->frontier.begin(), s->frontier.end(), n) == s->frontier.end())
                s->frontier.push_back(n);
        return cudaSuccess;
    }
    if (s->capture) {
        if (!e->op)
            return cudaSuccess; /* never recorded: nothing to wait for */
        return spoil(s->capture, cudaErrorStreamCaptureIsolation);
    }
    if (!e->op || e->op->done)
        return cudaSuccess;
    OpPtr op = append(s, nullptr);
    after(op, e->op);
    release(op);
    return cudaSuccess;
}
static cudaError_t event_not_captured(cudaEvent_t e)
{
    if (!e)
        return cudaErrorInvalidResourceHandle;
    if (!e->capture)
        return cudaSuccess;
    if (Capture *c = capture_of(e->capture))
        c->invalid = true;
    return cudaErrorCapturedEvent;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    SYNCHRONOUS;
    if (cudaError_t error = event_not_captured(e); error != cudaSuccess)
        return result(error);
    run_op(e->op);
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t e)
{
    SYNCHRONOUS;
    if (cudaError_t error = event_not_captured(e); error != cudaSuccess)
        return result(error);
    run_some(1 + g().random.below(3));
    return e->op && !e->op->done ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    API;
    for (cudaEvent_t e : {start, end}) {
        if (cudaError_t error = event_not_captured(e); error != cudaSuccess)
            return result(error);
        if (!e->timing || !e->op)
            return result(cudaErrorInvalidResourceHandle);
        if (!e->op->done)
            return cudaErrorNotReady;
    }
    *ms = float(1e3 * (end->op->time - start->op->time));
    return cudaSuccess;
}

/* ------------------------------------------------------------------------------------------------
 * Capture and graphs. */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
    API;
    CUstream_st *s = resolve(stream);
    if (s == &g().null)
        return result(cudaErrorStreamCaptureUnsupported);
    if (s->capture)
        return spoil(s->capture, cudaErrorInvalidValue);
    s->capture = new Capture{++g().captures, new CUgraph_st, s, mode, std::this_thread::get_id()};
    s->frontier.clear();
    g().capturing.push_back(s->capture);
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status)
{
    API;
    CUstream_st *s = resolve(stream);
    if (cudaError_t e = implicit_capture(s); e != cudaSuccess)
        return result(e);
    *status = !s->capture           ? cudaStreamCaptureStatusNone
              : s->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                    : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
/* All work of forked streams must lie before what the origin stream has come to. */
static bool joined(const Capture &c)
{
    std::vector<char> before(c.graph->nodes.size());
    for (int n : c.origin->frontier)
        before[size_t(n)] = 1;
    for (size_t i = before.size(); i-- > 0;)
        if (before[i])
            for (int n : c.graph->nodes[i].after)
                before[size_t(n)] = 1;
    return std::find(before.begin(), before.end(), 0) == before.end();
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    API;
    CUstream_st *s = resolve(stream);
    Capture *c = s->capture;
    *graph = nullptr;
    if (!c)
        return result(cudaErrorInvalidValue);
    if (c->origin != s)
        return spoil(c, cudaErrorStreamCaptureUnmatched);
    if (c->mode != cudaStreamCaptureModeRelaxed && c->thread != std::this_thread::get_id())
        return spoil(c, cudaErrorStreamCaptureWrongThread);
    cudaError_t e = c->invalid   ? cudaErrorStreamCaptureInvalidated
                    : joined(*c) ? cudaSuccess
                                 : cudaErrorStreamCaptureUnjoined;
    for (CUstream_st *other : g().streams)
        if (other->capture == c)
            other->capture = nullptr;
    g().capturing.erase(std::find(g().capturing.begin(), g().capturing.end(), c));
    if (e == cudaSuccess)
        *graph = c->graph;
    else
        delete c->graph;
    delete c;
    return result(e);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                 unsigned long long flags)
{
    API;
    if (!exec || !graph)
        return result(cudaErrorInvalidValue);
    *exec = new CUgraphExec_st{
        graph->nodes, (flags & cudaGraphInstantiateFlagUseNodePriority) != 0, nullptr};
    g().graphs++;
    return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t)
{
    API;
    return exec ? cudaSuccess : result(cudaErrorInvalidValue);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    API;
    if (!exec)
        return result(cudaErrorInvalidValue);
    CUstream_st *s = resolve(stream);
    if (cudaError_t e = not_captured(s); e != cudaSuccess)
        return result(e);
    OpPtr begin = append(s, nullptr); /* waits for the stream; the nodes wait for it */
    after(begin, exec->last);
    std::vector<OpPtr> ops;
    for (const Node &n : exec->nodes) {
        OpPtr op = std::make_shared<Op>();
        op->work = n.work;
        op->stream = s;
        g().replayed_priority =
            std::min(g().replayed_priority, exec->node_priority ? n.priority : s->priority);
        after(op, begin);
        for (int i : n.after)
            after(op, ops[size_t(i)]);
        if (n.chain) {
            after(op, n.chain->last);
            n.chain->last = op;
        }
        ops.push_back(op);
    }
    OpPtr end = append(s, nullptr);
    for (OpPtr &op : ops)
        after(end, op);
    exec->last = end;
    release(begin);
    return cudaSuccess;
}
int standin::capability()
{
    return g().sm;
}
int standin::graphs()
{
    return g().graphs;
}
bool standin::idle()
{
    return g().idle;
}
int standin::replayed_priority()
{
    return g().replayed_priority;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    API;
    delete graph;
    return graph ? cudaSuccess : result(cudaErrorInvalidValue);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    API;
    if (!exec)
        return result(cudaErrorInvalidValue);
    run_op(exec->last);
    delete exec;
    g().graphs--;
    return cudaSuccess;
}

/* ------------------------------------------------------------------------------------------------
 * Kernels. */

/* Dynamic shared memory of one block, and of a multiprocessor, in bytes. */
static int smem_optin()
{
    int sm = g().sm;
    return 1024 * (sm == 80 || sm == 87                ? 163
                   : sm == 86 || sm == 89 || sm >= 120 ? 99
                   : sm >= 90                          ? 227
                   : sm == 75                          ? 64
                   : sm >= 70                          ? 96
                                                       : 48);
}
static int smem_of(const void *kernel)
{
    auto i = g().smem_limit.find(kernel);
    return i == g().smem_limit.end() ? 48 * 1024 : i->second;
}
cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute what, int value)
{
    API;
    if (what == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        if (value < 0 || value > smem_optin())
            return result(cudaErrorInvalidValue);
        g().smem_limit[kernel] = value;
    }
    return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, const void *kernel)
{
    API;
    if (g().no_kernel)
        return result(cudaErrorNoKernelImageForDevice);
    *a = {};
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 64;
    a->ptxVersion = a->binaryVersion = g().sm;
    a->maxDynamicSharedSizeBytes = smem_of(kernel);
    return cudaSuccess;
}
const char *standin::function_name(const void *function)
{
    /* Kernels are often static, which only the debugger's tools can name. */
    static std::map<const void *, std::string> names;
    std::string &name = names[function];
    if (!name.empty())
        return name.c_str();
    uintptr_t offset = uintptr_t(function);
    Dl_info info = {};
    if (dladdr(function, &info) &&
        static_cast<const ElfW(Ehdr) *>(info.dli_fbase)->e_type == ET_DYN)
        offset -= uintptr_t(info.dli_fbase); /* position-independent */
    char exe[512] = "", command[640], line[1024] = "";
    if (readlink("/proc/self/exe", exe, sizeof exe - 1) > 0) {
        snprintf(command, sizeof command, "addr2line -Cfe '%s' %#zx 2>/dev/null", exe, offset);
        if (FILE *p = popen(command, "r")) {
            if (!fgets(line, sizeof line, p))
                line[0] = 0;
            pclose(p);
        }
    }
    line[strcspn(line, "\n")] = 0;
    if (line[0] && line[0] != '?') {
        name = line;
    } else {
        snprintf(line, sizeof line, "%p", function);
        name = line;
    }
    return name.c_str();
}
cudaError_t cudaFuncGetName(const char **name, const void *kernel)
{
    *name = function_name(kernel);
    return cudaSuccess;
}
cudaError_t standin::occupancy(int *blocks, const void *kernel, int threads, size_t smem)
{
    API;
    if (!blocks || threads <= 0)
        return result(cudaErrorInvalidValue);
    size_t room = size_t(smem_optin()) + 1024;
    *blocks = threads > 1024 || smem > size_t(smem_of(kernel))
                  ? 0
                  : int(std::min({size_t(2048 / ((threads + 31) / 32 * 32)), room / (smem + 1024),
                                  size_t(32)}));
    return cudaSuccess;
}
/* An address is what lies in a page that exists. Between the fields of a struct lies whatever was
 * there: a bool or an int with half an old address behind it is none, and is odd, or very round. */
void standin::check_words(const void *kernel, const void *argument, size_t bytes)
{
    const uintptr_t page = 4096;
    for (size_t at = 0; at + sizeof(uintptr_t) <= bytes; at += sizeof(uintptr_t)) {
        uintptr_t p;
        memcpy(&p, (const char *)argument + at, sizeof p);
        if (p % 2 || uint32_t(p) < page || p >= uintptr_t(1) << 47 ||
            p - uintptr_t(g().base) < g().reserved ||
            msync((void *)(p / page * page), 1, MS_ASYNC) != 0)
            continue;
        std::lock_guard<std::recursive_mutex> hold(g().lock);
        if (!inside(g().pinned, (void *)p, 1))
            die("%s was given host memory that is not pinned (%p, byte %zu of an argument)",
                function_name(kernel), (void *)p, at);
    }
}
/* Whether the kernel may begin before the one in front of it has ended (programmatic dependent
 * launch); only where nothing is between the two does the stand-in let it. */
static bool begins_early(const cudaLaunchConfig_t &c)
{
    for (unsigned i = 0; i < c.numAttrs; i++)
        if (c.attrs[i].id == cudaLaunchAttributeProgrammaticStreamSerialization &&
            c.attrs[i].val.programmaticStreamSerializationAllowed)
            return true;
    return false;
}
/* Blocks of a cluster; 0: they do not divide the grid, or are more than GPUs have. */
static unsigned cluster_of(const cudaLaunchConfig_t &c)
{
    unsigned blocks = 1;
    for (unsigned i = 0; i < c.numAttrs; i++) {
        const auto &cluster = c.attrs[i].val.clusterDim;
        if (c.attrs[i].id != cudaLaunchAttributeClusterDimension)
            continue;
        if (cluster.y != 1 || cluster.z != 1)
            die("clusters are modelled along x alone");
        blocks = cluster.x;
    }
    return blocks && blocks <= MAX_CLUSTER && c.gridDim.x % blocks == 0 ? blocks : 0;
}
/* One block on each multiprocessor */
cudaError_t standin::clusters(int *most, const cudaLaunchConfig_t &c)
{
    API;
    const unsigned blocks = cluster_of(c);
    if (!blocks)
        return result(cudaErrorInvalidClusterSize);
    *most = blocks > 1 && g().sm < 90 ? 0 : PROCESSORS / int(blocks);
    return cudaSuccess;
}
static bool nothing_since_kernel(const CUstream_st &s)
{
    if (!s.kernel)
        return false;
    if (s.capture)
        return s.frontier.size() == 1 && s.frontier[0] == s.kernel_node;
    return s.kernel_op && s.last == s.kernel_op && !s.kernel_op->done;
}
/* Every other time, one of the dependent kernel's blocks begins first. */
static void run_launched(Launched &l)
{
    l.kernel.seed = g().random.next();
    auto whole = [&] {
        run_kernel(l.kernel);
        l.kernel.done = -1;
    };
    if (!l.dependent || g().random.below(2))
        return whole();
    l.dependent->kernel.seed = g().random.next();
    l.dependent->kernel.done = run_early(l.dependent->kernel, whole);
}
cudaError_t standin::launch(const cudaLaunchConfig_t &c, const void *kernel,
                            std::function<void()> thread)
{
    API;
    if (g().no_kernel)
        return result(cudaErrorNoKernelImageForDevice);
    dim3 n = c.gridDim, b = c.blockDim;
    if (!kernel)
        return result(cudaErrorInvalidDeviceFunction);
    if (!n.x || !n.y || !n.z || n.x > 0x7FFFFFFFu || n.y > 65535 || n.z > 65535 || !b.x || !b.y ||
        !b.z || b.x > 1024 || b.y > 1024 || b.z > 64 || b.x * b.y * b.z > 1024)
        return result(cudaErrorInvalidConfiguration);
    if (c.dynamicSmemBytes > size_t(smem_of(kernel)))
        return result(cudaErrorInvalidValue);
    const bool dependent = begins_early(c);
    const unsigned cluster = cluster_of(c);
    if (!cluster)
        return result(cudaErrorInvalidClusterSize);
    if ((dependent || cluster > 1) && g().sm < 90)
        return result(cudaErrorNotSupported);
    auto l = std::make_shared<Launched>(
        Launched{{std::move(thread), kernel, n, b, c.dynamicSmemBytes, 0, cluster}, nullptr});
    CUstream_st *s = resolve(c.stream);
    if (dependent && nothing_since_kernel(*s))
        s->kernel->dependent = l;
    cudaError_t e = enqueue(c.stream, [l] {
        run_launched(*l);
        return true;
    });
    s->kernel = l;
    s->kernel_op = s->capture ? nullptr : s->last;
    s->kernel_node = s->capture && s->frontier.size() == 1 ? s->frontier[0] : -1;
    return result(e);
}

/* ------------------------------------------------------------------------------------------------
 * Device. */

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 0;
    API;
    *count = g().devices;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device)
{
    API;
    if (device < 0 || device >= g().devices)
        return result(cudaErrorInvalidDevice);
    g().device = device;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device)
{
    API;
    *device = g().device;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device)
{
    API;
    if (!p || device < 0 || device >= g().devices)
        return result(cudaErrorInvalidDevice);
    *p = {};
    snprintf(p->name, sizeof p->name, "CPU stand-in for sm_%d", g().sm);
    p->totalGlobalMem = g().total;
    p->sharedMemPerBlock = 48 * 1024;
    p->sharedMemPerBlockOptin = size_t(smem_optin());
    p->sharedMemPerMultiprocessor = size_t(smem_optin()) + 1024;
    p->regsPerBlock = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->major = g().sm / 10;
    p->minor = g().sm % 10;
    p->multiProcessorCount = PROCESSORS;
    p->memoryBusWidth = 64;
    p->l2CacheSize = 1 << 20;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxBlocksPerMultiProcessor = 32;
    p->pciBusID = device + 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr what, int device)
{
    cudaDeviceProp p;
    if (cudaError_t e = cudaGetDeviceProperties(&p, device); e != cudaSuccess)
        return e;
    switch (what) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = p.maxThreadsPerBlock;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = int(p.sharedMemPerBlock);
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = p.multiProcessorCount;
        break;
    case cudaDevAttrL2CacheSize:
        *value = p.l2CacheSize;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = p.maxThreadsPerMultiProcessor;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = p.major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = p.minor;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = int(p.sharedMemPerMultiprocessor);
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = int(p.sharedMemPerBlockOptin);
        break;
    default:
        return result(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version)
{
    *version = g().absent == cudaErrorNoDevice             ? 0
               : g().absent == cudaErrorInsufficientDriver ? 11040
                                                           : CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaDeviceReset()
{
    return cudaDeviceSynchronize();
}

cudaError_t cudaGetLastError()
{
    cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}
cudaError_t cudaPeekAtLastError()
{
    return last_error;
}
const char *cudaGetErrorName(cudaError_t e)
{
    switch (e) {
#define X(name, number, text) \
    case name:                \
        return #name;
        STANDIN_ERRORS(X)
#undef X
    }
    return "unrecognized error code";
}
const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
#define X(name, number, text) \
    case name:                \
        return text;
        STANDIN_ERRORS(X)
#undef X
    }
    return "unrecognized error code";
}
