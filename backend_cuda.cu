/* backend_cuda.cu - the fast path: every op of backend.h on an NVIDIA GPU.
 *
 * This file holds what is not arithmetic: the device, memory, streams, graphs, and collectives. The
 * ops are in cuda/, which is one unit with it: gemm.cuh (linear layers, by cuBLASLt), fp8.cuh
 * (8-bit copies for them), norms.cuh, layers.cuh (embedding, loss), attention.cuh, optimizer.cuh.
 * Kernels are launched by function call, so that the same source is also plain C++ and runs on a
 * CPU (test/cuda_on_cpu).
 *
 * Streams: ops run in call order on one; inputs arrive beside them on a second, so that a batch is
 * there when its step begins; each group of ranks has one more for its collectives, which run while
 * the ops go on. Events are all that orders them. A step is recorded as a CUDA graph the third time
 * it is called and replayed from then on: ops read what changes from StepState in device memory.
 *
 * Order: errors, the device, waiting, memory, tickets, transfers, collectives, graphs, the table.
 */
#include "cuda/common.cuh"

#include "cuda/layers.cuh"
#include "cuda/attention.cuh"
#include "cuda/gemm.cuh"
#include "cuda/attention_sm90.cuh"
#include "cuda/attention_sm90_backward.cuh"
#include "cuda/attention_sm90_large.cuh"
#include "cuda/attention_sm90_long.cuh"
#include "cuda/optimizer.cuh"
extern "C" {
#include "util/calls.h"
}

#include <unistd.h>

#if __has_include(<nccl.h>)
#include <nccl.h>
#define HAVE_NCCL 1
#endif

/* ------------------------------------------------------------------------------------------------
 * Errors */

static const struct {
    cudaError_t error;
    const char *hint;
} hints[] = {
    {cudaErrorNoDevice, "no GPU is visible to this program: nvidia-smi must list one, and "
                        "CUDA_VISIBLE_DEVICES must not hide it; ./train_cpu needs none"},
    {cudaErrorInsufficientDriver,
     "there is no NVIDIA driver here, or one older than this program's "
     "CUDA (nvidia-smi shows which): update it; ./train_cpu needs none"},
    {cudaErrorNoKernelImageForDevice,
     "this program was built for other GPUs: build it again here, "
     "make clean train_gpu, or name the architecture, make GPU=90a"},
    {cudaErrorMemoryAllocation, "use a smaller --micro-batch"},
};

void cuda_check(cudaError_t e, const char *what)
{
    if (e == cudaSuccess)
        return;
    const char *hint = "run it again with CUDA_LAUNCH_BLOCKING=1 to see which call it was";
    for (const auto &h : hints)
        if (h.error == e)
            hint = h.hint;
    die(hint, "CUDA: %s (%s)", cudaGetErrorString(e), what);
}

/* ------------------------------------------------------------------------------------------------
 * The device */

/* Ranks that talk to each other, by a communicator and a stream of their own. */
struct Group {
#ifdef HAVE_NCCL
    ncclComm_t comm;
#endif
    cudaStream_t stream;
    int ranks, number; /* number: of its stream in tickets */
    const char *name;
};
static auto &groups = *new std::vector<Group *>; /* for as long as the process lives */

static cudaStream_t copies;
static cudaEvent_t fork_event;
static double shared_limit; /* seconds to wait; VIT_SHARE_GPU: more ranks than GPUs, for tests */
#ifdef HAVE_NCCL
static ncclComm_t world;

static void nccl_check(ncclResult_t r, const char *what)
{
    if (r != ncclSuccess && r != ncclInProgress)
        die("NCCL_DEBUG=INFO says more; if a rank has ended, its own error is the cause",
            "NCCL: %s (%s, rank %d of %d)", ncclGetErrorString(r), what, cu.device.rank,
            cu.device.ranks);
}
#define CHECK_NCCL(call) nccl_check(call, #call)

/* What exit() calls first. Next would be the libraries' own ends, which may wait for kernels, and a
 * kernel waits for ever for a rank that is gone, or that waits for this one's end. */
static void fail_at_once(int status, void *)
{
    if (status == 0)
        return;
    fflush(stdout);
    _exit(status);
}

/* For tests on one GPU: NCCL refuses two ranks there unless they seem to be on two hosts, which
 * then talk through sockets. */
static void share_gpu()
{
    std::string host = "rank" + std::to_string(cu.device.rank);
    setenv("NCCL_HOSTID", host.c_str(), 1);
    setenv("NCCL_NET", "Socket", 0);
    setenv("NCCL_SOCKET_IFNAME", "=lo", 0);
    setenv("NCCL_ALGO", "Ring", 0);
    setenv("NCCL_PROTO", "Simple", 0);
    setenv("NCCL_MAX_CTAS", "2", 0); /* those of all ranks must run at once */
    for (const char *name : {"NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE"})
        setenv(name, "1", 0);
    for (const char *name : {"NCCL_CUMEM_ENABLE", "NCCL_MNNVL_ENABLE", "NCCL_NVLS_ENABLE",
                             "NCCL_RAS_ENABLE"})
        setenv(name, "0", 0);
}

/* How NCCL shall work; what the user has set stays. */
static void tell_nccl()
{
    int driver = 0;
    CHECK_CUDA(cudaDriverGetVersion(&driver));
    if (shared_limit > 0)
        share_gpu();
    if (cu.device.ordered) { /* one order of summation; NVLS has none that it keeps */
        setenv("NCCL_ALGO", "Ring", 0);
        setenv("NCCL_NVLS_ENABLE", "0", 0);
    }
    /* Collectives go before the ops beside them, and take no more multiprocessors from them than
     * these: by estimate enough to end in their time; not measured. */
    setenv("NCCL_MAX_CTAS", "8", 0);
    /* A collective keeps its multiprocessors until its peers have come, so that those of several
     * groups can wait for each other in a circle. NCCL (from 2.26) prevents that by starting them
     * in the order of the host's calls, if asked to; from CUDA 12.3 on it waits for their starts
     * alone. Before, it would wait for their ends, which is what a pipeline must not do. */
    if (driver >= 12030)
        setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", 0);
}

static void join_ranks()
{
    ncclUniqueId id;
    tell_nccl();
    if (cu.device.rank == 0)
        CHECK_NCCL(ncclGetUniqueId(&id));
    cu.device.broadcast(&id, sizeof id);
    CHECK_NCCL(ncclCommInitRank(&world, cu.device.ranks, id, cu.device.rank));
    on_exit(fail_at_once, NULL);
}
#else
static void join_ranks()
{
    die("install NCCL and build again, or leave --gpus out",
        "this program was built without NCCL: it can use one GPU alone");
}
#endif

/* The device itself, its limits and its streams: once, whatever init is called for afterwards. */
static void open_device(void)
{
    int devices = 0, local = cu.device.local_rank;
    if (cudaGetDeviceCount(&devices) != cudaSuccess && local > 0)
        sleep(5); /* the machine's first rank says it for all, and its launcher ends us */
    CHECK_CUDA(cudaGetDeviceCount(&devices));
    if (const char *share = getenv("VIT_SHARE_GPU"))
        shared_limit = atof(share) > 1 ? atof(share) : 300;
    if (devices == 1 && getenv("CUDA_VISIBLE_DEVICES")) /* a launcher gave each its own */
        local = 0;
    if (local >= devices && shared_limit == 0)
        die("start as many processes as the machine has GPUs, see --gpus",
            "there is no GPU %d here: this machine has %d", local, devices);
    CHECK_CUDA(cudaSetDevice(local % devices));
    CHECK_CUDA(cudaGetDeviceProperties(&cu.gpu, local % devices));
    if (cu.gpu.major < 8)
        die("an A100, RTX 30 or anything newer will do; ./train_cpu needs no GPU",
            "%s has compute capability %d.%d; the kernels need 8.0", cu.gpu.name, cu.gpu.major,
            cu.gpu.minor);
    cu.smem = (int)cu.gpu.sharedMemPerBlockOptin;
    CHECK_CUDA(cudaStreamCreateWithFlags(&cu.stream, cudaStreamNonBlocking));
    CHECK_CUDA(cudaStreamCreateWithFlags(&copies, cudaStreamNonBlocking));
    CHECK_CUDA(cudaEventCreateWithFlags(&fork_event, cudaEventDisableTiming));
}

static void cuda_init(const Device *d)
{
    bool first = !cu.stream;
    cu.device = *d;
    if (first)
        open_device();
    if (d->type > F16)
        die("choose fp32, tf32, bf16 or fp16", "this GPU backend has no such --precision");
    if (d->fp8 && cu.gpu.major < 9)
        die("choose --precision bf16; fp8 is for a Hopper (H100, H200, sm_90) or anything newer",
            "%s is sm_%d%d: this program has no 8-bit products for it", cu.gpu.name, cu.gpu.major,
            cu.gpu.minor);
    gemm_init();
    if (first && d->ranks > 1)
        join_ranks();
}

static int cuda_threads(void)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

static void cuda_describe(char *out, size_t size)
{
    int driver = 0, runtime = 0;
    CHECK_CUDA(cudaDriverGetVersion(&driver));
    CHECK_CUDA(cudaRuntimeGetVersion(&runtime));
    static const char *const types[] = {"fp32", "bf16", "fp16"};
    const char *name = cu.device.tf32 ? "tf32" : types[cu.device.type];
    if (cu.device.fp8)
        name = "fp8";
    snprintf(out, size,
             "%s, %.0f GiB, sm_%d%d, %s, driver CUDA %d.%d, CUDA %d.%d, cuBLASLt %zu (%zu MiB)",
             cu.gpu.name, (double)cu.gpu.totalGlobalMem / (1 << 30), cu.gpu.major, cu.gpu.minor,
             name, driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10,
             cublasLtGetVersion(), workspace_bytes >> 20);
}

/* Dense rates of the vendor's data sheets, TFLOP/s: the yardstick of MFU, reached by nobody. */
static double cuda_peak_flops(void)
{
    static const struct {
        const char *name;
        double half, tf32, full;
    } peaks[] = {{"H100 PCIe", 756.4, 378.2, 51.2},
                 {"H100 NVL", 835, 417.5, 60},
                 {"H200 NVL", 835, 417.5, 60},
                 {"H100", 989.4, 494.7, 66.9},
                 {"H200", 989.4, 494.7, 66.9},
                 {"GH200", 989.4, 494.7, 66.9},
                 {"H800", 989.4, 494.7, 66.9},
                 {"H20", 148, 74, 44},
                 {"B200", 2250, 1125, 75},
                 {"A100", 311.9, 156, 19.5},
                 {"A800", 311.9, 156, 19.5},
                 {"L40S", 362, 183, 91.6},
                 {"A10G", 70, 35, 31.2},
                 {"RTX 4090", 165.2, 82.6, 82.6},
                 {"RTX 3090", 71, 35.6, 35.6}};
    for (const auto &p : peaks)
        if (strstr(cu.gpu.name, p.name))
            return 1e12 * (cu.device.type != F32 ? p.half : cu.device.tf32 ? p.tf32 : p.full);
    return 0;
}

/* NVML, which comes with the driver, by the few of its functions that it takes: a program that is
 * linked with it would not start without a driver. It is asked by bus address, since its numbers of
 * devices know nothing of CUDA_VISIBLE_DEVICES. */
typedef struct {
    unsigned gpu, memory; /* percent of the last sixth of a second to second */
} NvmlUtilization;

static void *nvml_device; /* NULL: nobody to ask */
static int (*nvml_utilization)(void *device, NvmlUtilization *u);

static void nvml_open()
{
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return;
    auto init = (int (*)())dlsym(library, "nvmlInit_v2");
    auto find = (int (*)(const char *, void **))dlsym(library, "nvmlDeviceGetHandleByPciBusId_v2");
    nvml_utilization =
        (int (*)(void *, NvmlUtilization *))dlsym(library, "nvmlDeviceGetUtilizationRates");
    char bus[32];
    snprintf(bus, sizeof bus, "%08x:%02x:%02x.0", (unsigned)cu.gpu.pciDomainID,
             (unsigned)cu.gpu.pciBusID, (unsigned)cu.gpu.pciDeviceID);
    if (!init || !find || !nvml_utilization || init() != 0 || find(bus, &nvml_device) != 0)
        nvml_device = NULL;
}

static double cuda_busy(void)
{
    static bool asked;
    NvmlUtilization u;
    if (!asked)
        nvml_open();
    asked = true;
    return nvml_device && nvml_utilization(nvml_device, &u) == 0 ? u.gpu / 100.0 : -1;
}

/* ------------------------------------------------------------------------------------------------
 * Waiting, always here. With other ranks, look at their health meanwhile: a sum whose partner is
 * gone never ends. Nor may one on a shared GPU, where it can keep its partner's from running. */

#ifdef HAVE_NCCL
static void check_health(ncclComm_t comm)
{
    ncclResult_t health = ncclSuccess;
    CHECK_NCCL(ncclCommGetAsyncError(comm, &health));
    /* where a rank is gone, device.check soon knows which one */
    for (double until = now() + 1; health != ncclSuccess && health != ncclInProgress;) {
        if (cu.device.check)
            cu.device.check();
        if (!cu.device.check || now() > until)
            nccl_check(health, "another rank");
        usleep(1000);
    }
}
#endif

static void wait_event(cudaEvent_t e)
{
#ifdef HAVE_NCCL
    const double since = now();
    for (double asked = since; world;) {
        cudaError_t s = cudaEventQuery(e);
        check_health(world);
        for (const Group *g : groups)
            check_health(g->comm);
        if (s == cudaSuccess)
            return;
        if (s != cudaErrorNotReady)
            CHECK_CUDA(s);
        if (cu.device.check && now() - asked > 1) { /* NCCL may not notice, on one machine */
            cu.device.check();
            asked = now();
        }
        if (shared_limit > 0 && now() - since > shared_limit)
            die("give each rank its own GPU, or allow more seconds, as in VIT_SHARE_GPU=900",
                "waited %g s for a GPU that ranks share (VIT_SHARE_GPU)", shared_limit);
        usleep(50);
    }
#endif
    CHECK_CUDA(cudaEventSynchronize(e));
}

static void wait_stream(cudaStream_t s)
{
    static cudaEvent_t e;
    if (!e)
        CHECK_CUDA(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    CHECK_CUDA(cudaEventRecord(e, s));
    wait_event(e);
}

/* The host waits until ops, inputs and collectives are done: none of them touches memory then. */
static void settle()
{
    wait_stream(copies);
    wait_stream(cu.stream);
    for (const Group *g : groups)
        wait_stream(g->stream);
}

/* ------------------------------------------------------------------------------------------------
 * Memory */

/* What comes later needs some too: kernels' code, graphs, with several ranks NCCL's buffers. By
 * estimate: 1 GiB, with ranks 2; on small cards an eighth. */
static double cuda_memory_free(void)
{
    size_t left, total, later = (size_t)(cu.device.ranks > 1 ? 2 : 1) << 30;
    CHECK_CUDA(cudaMemGetInfo(&left, &total));
    later = std::min(later, total / 8);
    return left > later ? (double)(left - later) : 0;
}

static bool drop_graphs();

static dev *cuda_alloc(size_t bytes)
{
    void *p = NULL;
    cudaError_t e = cudaMalloc(&p, bytes ? bytes : 1);
    if (e == cudaErrorMemoryAllocation && drop_graphs())
        e = cudaMalloc(&p, bytes ? bytes : 1);
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError(); /* the caller says it better */
        return NULL;
    }
    CHECK_CUDA(e);
    CHECK_CUDA(cudaMemsetAsync(p, 0, bytes, cu.stream));
    settle(); /* the other streams may write there next */
    return (dev *)p;
}

static void cuda_release(dev *p)
{
    settle();
    CHECK_CUDA(cudaFree(p));
}

static void *cuda_host_alloc(size_t bytes)
{
    void *p;
    CHECK_CUDA(cudaMallocHost(&p, bytes ? bytes : 1));
    return p;
}

static void cuda_host_release(void *p)
{
    settle();
    CHECK_CUDA(cudaFreeHost(p));
}

/* ------------------------------------------------------------------------------------------------
 * Tickets. A ticket is a stream and a count of marks on it, and stands for an event of that
 * stream's ring: one that was recorded again since then marks a later point of the same stream, so
 * that who waits for it waits longer than needed but never too little. */

enum { EVENTS = 64 };
/* Low bits of a ticket, which is never 0; the groups' follow. */
enum { ON_OPS = 1, ON_COPIES = 2, ON_GROUPS = 3, STREAMS = 64 };
static cudaEvent_t ring[STREAMS][EVENTS];
static int kind_of[STREAMS][EVENTS]; /* util/calls.h: of the collective before a mark */
static int last_kind[STREAMS];
static Ticket marks[STREAMS]; /* counts */

static cudaEvent_t &event_of(Ticket t)
{
    return ring[t % STREAMS][t / STREAMS % EVENTS];
}

static Ticket mark_stream(int number, cudaStream_t stream)
{
    Ticket t = ++marks[number] * STREAMS + (Ticket)number;
    cudaEvent_t &e = event_of(t);
    if (!e)
        CHECK_CUDA(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    CHECK_CUDA(cudaEventRecord(e, stream));
    kind_of[number][t / STREAMS % EVENTS] = last_kind[number];
    return t;
}

static Ticket cuda_mark(void)
{
    return mark_stream(ON_OPS, cu.stream);
}

static void cuda_wait(Ticket ticket)
{
    if (ticket)
        wait_event(event_of(ticket));
}

/* ------------------------------------------------------------------------------------------------
 * Transfers. Memory of host_alloc has one address everywhere, and may take the device's place. */

static Ticket cuda_send(dev *dst, const void *src, size_t bytes, Ticket after)
{
    if (after)
        CHECK_CUDA(cudaStreamWaitEvent(copies, event_of(after), 0));
    CHECK_CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, copies));
    Ticket t = mark_stream(ON_COPIES, copies);
    CHECK_CUDA(cudaStreamWaitEvent(cu.stream, event_of(t), 0));
    return t;
}

static Ticket cuda_fetch(void *dst, const dev *src, size_t bytes)
{
    CHECK_CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, cu.stream));
    return cuda_mark();
}

static void cuda_upload(dev *dst, const void *src, size_t bytes)
{
    settle();
    CHECK_CUDA(cudaMemcpy(dst, src, bytes, cudaMemcpyDefault));
    CHECK_CUDA(cudaDeviceSynchronize()); /* memory that is not pinned may still be on its way */
}

static void cuda_download(void *dst, const dev *src, size_t bytes)
{
    cuda_wait(cuda_mark());
    CHECK_CUDA(cudaMemcpy(dst, src, bytes, cudaMemcpyDefault));
}

static void cuda_copy(dev *dst, const dev *src, size_t bytes)
{
    CHECK_CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, cu.stream));
}

static void cuda_zero(dev *dst, size_t bytes)
{
    CHECK_CUDA(cudaMemsetAsync(dst, 0, bytes, cu.stream));
}

/* ------------------------------------------------------------------------------------------------
 * Collectives. Each forks its group's stream from the ops' and leaves a mark there, which is its
 * ticket; a join makes the ops wait for that mark. */

static Ticket joined[STREAMS]; /* counts: up to which mark of a group the ops wait already */

/* A body that has been recorded as a graph. */
struct Recording {
    int calls;
    cudaGraphExec_t graph;
    double sent;     /* bytes, at every replay */
    uint64_t groups; /* bits: whose collectives it has in it, or joins from before it */
};
static Recording *recording;     /* the body that is being recorded, or NULL */
static Ticket earlier[STREAMS];  /* counts, when the body began */
static double sent_bytes;

/* At which joins the ops wait, and for how long: the device says it before and after each, in
 * graphs as well. By estimate 3 us a join, for two kernels of one thread. */
struct JoinClock {
    uint64_t since, waited;     /* ns */
    uint32_t calls[CALL_KINDS]; /* joined, of each series */
};
/* The host's copy, which the device writes and nobody waits for. */
struct Joins {
    uint64_t waited, word; /* word: of util/calls.h */
};
static JoinClock *join_clock; /* the device's */
static Joins *joins;

static __global__ void join_clock_kernel(JoinClock *c, volatile Joins *copy, int kind, int series,
                                         bool joined)
{
    if (!joined) {
        c->since = clock_ns();
        copy->word = CALL_WORD(kind, ++c->calls[series], true);
    } else {
        copy->waited = c->waited += clock_ns() - c->since;
        copy->word = CALL_WORD(kind, c->calls[series], false);
    }
}

static void read_join_clock(int kind, bool joined)
{
    launch(join_clock_kernel, 1, 1, 0, cu.stream, join_clock, joins, kind, call_series(kind),
           joined);
}

#ifdef HAVE_NCCL
static void make_join_clock()
{
    CHECK_CUDA(cudaMalloc((void **)&join_clock, sizeof *join_clock));
    CHECK_CUDA(cudaMemsetAsync(join_clock, 0, sizeof *join_clock, cu.stream));
    CHECK_CUDA(cudaMallocHost((void **)&joins, sizeof *joins));
    *joins = {};
    call_look_at(&joins->word);
}

static Group *group_new(ncclComm_t comm, int ranks, const char *name)
{
    int low, high;
    if (ON_GROUPS + groups.size() == STREAMS)
        die("this is a mistake in the program", "there are more than %d groups of ranks",
            STREAMS - ON_GROUPS);
    if (!join_clock)
        make_join_clock();
    Group *g = new Group{comm, NULL, ranks, ON_GROUPS + (int)groups.size(), name};
    CHECK_CUDA(cudaDeviceGetStreamPriorityRange(&low, &high));
    CHECK_CUDA(cudaStreamCreateWithPriority(&g->stream, cudaStreamNonBlocking, high));
    groups.push_back(g);
    return g;
}

static Group *cuda_split(int colour, const char *name)
{
    ncclComm_t comm;
    int ranks;
    if (!world)
        return NULL;
    CHECK_NCCL(ncclCommSplit(world, colour, cu.device.rank, &comm, NULL));
    CHECK_NCCL(ncclCommCount(comm, &ranks));
    if (ranks > 1)
        return group_new(comm, ranks, name);
    CHECK_NCCL(ncclCommDestroy(comm));
    return NULL;
}

/* Calls `collective`, which puts something on the group's stream, behind what the ops have been
 * asked to do so far. sent: bytes that this rank sends in it, which is `what` (util/calls.h) of so
 * many bytes. */
template <class F>
static Ticket begin(const Group *g, double sent, int what, double bytes, F collective)
{
    if (!g)
        return 0;
    CHECK_CUDA(cudaEventRecord(fork_event, cu.stream));
    CHECK_CUDA(cudaStreamWaitEvent(g->stream, fork_event, 0));
    CHECK_NCCL(collective());
    (recording ? recording->sent : sent_bytes) += sent;
    if (recording)
        recording->groups |= 1ull << g->number;
    last_kind[g->number] = call_kind(what, g->name, bytes);
    return mark_stream(g->number, g->stream);
}

/* Of what can be added. */
static ncclDataType_t nccl_type(int type)
{
    if (type == U64)
        return ncclUint64;
    if (type == BF16)
        return ncclBfloat16;
    return type == F16 ? ncclFloat16 : ncclFloat32;
}

static double bytes_of(long n, int type)
{
    return (double)n * (double)type_size(type);
}

static Ticket cuda_all_reduce(Group *g, dev *x, int type, long n)
{
    const double bytes = bytes_of(n, type), sent = g ? 2.0 * (g->ranks - 1) / g->ranks * bytes : 0;
    return begin(g, sent, CALL_ALL_REDUCE, bytes, [&] {
        return ncclAllReduce(x, x, (size_t)n, nccl_type(type), ncclSum, g->comm, g->stream);
    });
}

static Ticket cuda_reduce_scatter(Group *g, dev *own, const dev *x, int type, long n)
{
    const double own_bytes = bytes_of(n, type), ranks = g ? g->ranks : 1;
    return begin(g, (ranks - 1) * own_bytes, CALL_REDUCE_SCATTER, ranks * own_bytes, [&] {
        return ncclReduceScatter(x, own, (size_t)n, nccl_type(type), ncclSum, g->comm, g->stream);
    });
}

static Ticket cuda_all_gather(Group *g, dev *x, const dev *own, int type, long n)
{
    const double own_bytes = bytes_of(n, type), ranks = g ? g->ranks : 1;
    return begin(g, (ranks - 1) * own_bytes, CALL_ALL_GATHER, ranks * own_bytes, [&] {
        return ncclAllGather(own, x, (size_t)n * type_size(type), ncclUint8, g->comm, g->stream);
    });
}

static Ticket cuda_pass(Group *g, int peer, const dev *x, size_t bytes)
{
    return begin(g, (double)bytes, CALL_PASS, (double)bytes,
                 [&] { return ncclSend(x, bytes, ncclUint8, peer, g->comm, g->stream); });
}

static Ticket cuda_receive(Group *g, int peer, dev *x, size_t bytes)
{
    return begin(g, 0, CALL_RECEIVE, (double)bytes,
                 [&] { return ncclRecv(x, bytes, ncclUint8, peer, g->comm, g->stream); });
}
#else
static Group *cuda_split(int, const char *) { return NULL; }
static Ticket cuda_all_reduce(Group *, dev *, int, long) { return 0; }
static Ticket cuda_reduce_scatter(Group *, dev *, const dev *, int, long) { return 0; }
static Ticket cuda_all_gather(Group *, dev *, const dev *, int, long) { return 0; }
static Ticket cuda_pass(Group *, int, const dev *, size_t) { return 0; }
static Ticket cuda_receive(Group *, int, dev *, size_t) { return 0; }
#endif

/* One that began before the body that is being recorded is no part of the graph: whoever launches
 * it waits for it then. */
static void cuda_join(Ticket t)
{
    const Ticket number = t % STREAMS, count = t / STREAMS;
    if (count <= joined[number])
        return;
    if (recording && count <= earlier[number]) {
        recording->groups |= 1ull << number;
        return;
    }
    const int kind = kind_of[number][count % EVENTS];
    read_join_clock(kind, false);
    CHECK_CUDA(cudaStreamWaitEvent(cu.stream, event_of(t), 0));
    read_join_clock(kind, true);
    joined[number] = count;
}

static double cuda_sent(void)
{
    return sent_bytes;
}

static double cuda_waited(void)
{
    return joins ? 1e-9 * (double)*(volatile uint64_t *)&joins->waited : 0;
}

/* The communicators end with the process. */
static void cuda_end(void)
{
}

/* ------------------------------------------------------------------------------------------------
 * Graphs */

/* Twice a body is called, then it is recorded: the first time kernels are loaded and algorithms are
 * timed; the second time those are looked at again whose results were zero (gradients below a new
 * head), where a wrong one does not show. */
static auto &recordings = *new std::map<uint64_t, Recording>; /* for as long as the process lives */

/* Calls a body; what it began and did not join is joined. */
static void call_body(bool together, int calls, void (*body)(void *), void *arg)
{
    memcpy(earlier, marks, sizeof earlier);
    choosing = {.together = together && cu.device.ranks > 1, .time = calls < 2};
    body(arg);
    choosing = Choosing();
    for (Ticket i = ON_GROUPS; i < STREAMS; i++)
        if (marks[i] > earlier[i])
            cuda_join(marks[i] * STREAMS + i);
}

/* They take memory, and can be made again. False: there are none. */
static bool drop_graphs()
{
    bool any = false;
    (void)cudaGetLastError(); /* what brought us here */
    for (auto &[key, r] : recordings)
        any |= r.graph != NULL;
    if (any)
        settle();
    for (auto &[key, r] : recordings) {
        if (r.graph)
            CHECK_CUDA(cudaGraphExecDestroy(r.graph));
        const int calls = r.calls;
        r = {};
        r.calls = calls;
    }
    return any;
}

static void record_body(Recording &r, bool together, void (*body)(void *), void *arg)
{
    cudaGraph_t graph;
    recording = &r;
    CHECK_CUDA(cudaStreamBeginCapture(cu.stream, cudaStreamCaptureModeThreadLocal));
    call_body(together, r.calls, body, arg);
    CHECK_CUDA(cudaStreamEndCapture(cu.stream, &graph));
    recording = NULL;
    auto instantiate = [&] { /* collectives keep their stream's priority */
        return cudaGraphInstantiate(&r.graph, graph, cudaGraphInstantiateFlagUseNodePriority);
    };
    const Recording made = r;
    cudaError_t e = instantiate();
    if (e == cudaErrorMemoryAllocation) {
        drop_graphs();
        r = made;
        e = instantiate();
    }
    cuda_check(e, "cudaGraphInstantiate");
    CHECK_CUDA(cudaGraphDestroy(graph));
}

static void cuda_run(uint64_t key, bool together, void (*body)(void *), void *arg)
{
    Recording &r = recordings[key];
    if (r.calls < 2) {
        call_body(together, r.calls++, body, arg);
        keep_choices();
        return;
    }
    uint64_t open = 0; /* bits: groups with collectives on their way */
    for (int i = ON_GROUPS; i < STREAMS; i++)
        open |= (uint64_t)(marks[i] > joined[i]) << i;
    if (!r.graph)
        record_body(r, together, body, arg);
    for (const Group *g : groups)
        if (r.groups & open & 1ull << g->number)
            cuda_join(mark_stream(g->number, g->stream));
    CHECK_CUDA(cudaGraphLaunch(r.graph, cu.stream));
    sent_bytes += r.sent;
}

static size_t cuda_scratch_bytes(const Sizes *s)
{
    return sizeof(float) * std::max({attention_scratch(s), layers_scratch(s), (size_t)s->chunks}) +
           fp8_scratch(s);
}

static void cuda_bind(dev *state, dev *scratch, size_t bytes)
{
    cu.state = (const StepState *)state;
    cu.scratch = (char *)scratch;
    cu.scratch_bytes = bytes;
    cu.copies = 0;
}

/* ------------------------------------------------------------------------------------------------
 * The table */

#define AS_TEXT(...) #__VA_ARGS__
#define VALUE(...)   AS_TEXT(__VA_ARGS__)
#ifdef __CUDA_ARCH_LIST__
#define ARCHITECTURES "architectures " VALUE(__CUDA_ARCH_LIST__)
#else
#define ARCHITECTURES "no machine code"
#endif
#ifdef HAVE_NCCL
#define NCCL_TEXT "NCCL " VALUE(NCCL_MAJOR) "." VALUE(NCCL_MINOR)
#else
#define NCCL_TEXT "no NCCL"
#endif

extern "C" const Backend *backend_cuda(void)
{
    static const Backend table = {
        .name = "cuda",
        .built = "CUDA " VALUE(CUDART_VERSION) ", " ARCHITECTURES ", " NCCL_TEXT,
        .asynchronous = true,
        .init = cuda_init,
        .threads = cuda_threads,
        .describe = cuda_describe,
        .peak_flops = cuda_peak_flops,
        .busy = cuda_busy,
        .algorithms = cuda_algorithms,
        .memory_free = cuda_memory_free,
        .alloc = cuda_alloc,
        .release = cuda_release,
        .host_alloc = cuda_host_alloc,
        .host_release = cuda_host_release,
        .upload = cuda_upload,
        .download = cuda_download,
        .send = cuda_send,
        .fetch = cuda_fetch,
        .mark = cuda_mark,
        .wait = cuda_wait,
        .copy = cuda_copy,
        .zero = cuda_zero,
        .convert = cuda_convert,
        .add = cuda_add,
        .run = cuda_run,
        .scratch_bytes = cuda_scratch_bytes,
        .bind = cuda_bind,
        .fp8 = cuda_fp8,
        .fp8_update = cuda_fp8_update,
        .linear_forward = cuda_linear_forward,
        .linear_backward_input = cuda_linear_backward_input,
        .linear_backward_weight = cuda_linear_backward_weight,
        .activate = cuda_activate,
        .patchify = cuda_patchify,
        .embed_forward = cuda_embed_forward,
        .embed_backward = cuda_embed_backward,
        .residual_norm_forward = cuda_residual_norm_forward,
        .residual_norm_backward = cuda_residual_norm_backward,
        .attention_forward = cuda_attention_forward,
        .attention_backward = cuda_attention_backward,
        .head_norm_forward = cuda_head_norm_forward,
        .head_norm_backward = cuda_head_norm_backward,
        .pool_forward = cuda_pool_forward,
        .pool_backward = cuda_pool_backward,
        .loss = cuda_loss,
        .count_large = cuda_count_large,
        .sum_squares = cuda_sum_squares,
        .finish_norm = cuda_finish_norm,
        .adam = cuda_adam,
        .sgd = cuda_sgd,
        .lamb_direction = cuda_lamb_direction,
        .lamb_apply = cuda_lamb_apply,
        .round_weights = cuda_round_weights,
        .scale_loss = cuda_scale_loss,
        .split = cuda_split,
        .all_reduce = cuda_all_reduce,
        .reduce_scatter = cuda_reduce_scatter,
        .all_gather = cuda_all_gather,
        .pass = cuda_pass,
        .receive = cuda_receive,
        .join = cuda_join,
        .sent = cuda_sent,
        .waited = cuda_waited,
        .end = cuda_end,
    };
    return &table;
}
