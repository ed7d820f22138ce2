/* nccl.cpp - collectives between processes through one piece of shared memory per communicator.
 *
 * A collective moves in rounds of one slot per rank: every rank posts its part, waits until all
 * have posted, and takes what it needs; two slots take turns. Sums are made by every rank alike, in
 * rank order, in float (bf16, f16, f32), so they depend on nothing else. Send and receive use a
 * pair of slots for each ordered pair of ranks. Nothing leaves before its receiver has begun, and then
 * it takes its time, as NCCL is free to do: whoever writes over what is still to be sent, sends that.
 *
 * Works never block: they are asked again, so that other queues go on meanwhile. What one will write
 * is filled with 0xFF when it begins, so that whoever does not wait for it reads what was there
 * before, or NaN. A peer that does
 * not answer for VIT_STANDIN_NCCL_TIMEOUT seconds (60), has died or has aborted makes this and all
 * later works of the communicator give up, which ncclCommGetAsyncError reports. Ranks that call
 * different collectives, or with other counts or types, get ncclInvalidUsage. A process that exits
 * with a communicator first waits for what is queued, and so for its peers, as on a GPU it may.
 */
#include "nccl.h"

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "standin.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <ctime>
#include <fcntl.h>
#include <string>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

using namespace standin;

enum { MAX_RANKS = 64, SLOT = 1 << 20, PAIR_SLOT = 1 << 18 };
enum Kind { ALL_REDUCE, REDUCE, BROADCAST, ALL_GATHER, REDUCE_SCATTER };

/* What a rank says about the collective it is in. */
struct Call {
    int kind, type, op, root;
    size_t count;
    bool operator==(const Call &) const = default;
};
/* Counters that only grow: rounds posted and taken, slots sent and received. */
struct SharedRank {
    std::atomic<uint64_t> posted, taken, splits;
    std::atomic<int> pid;
    Call call[2];
    int colour[2], key[2]; /* of splits in turn */
};
struct SharedPair {
    std::atomic<uint64_t> sent, received;
    std::atomic<uint64_t> wanted; /* receives begun */
    uint64_t sends;               /* begun; its sender's own */
    size_t bytes[2];
};
struct Shared {
    std::atomic<int> joined, aborted;
    SharedRank ranks[MAX_RANKS];
    SharedPair pairs[]; /* [from][to], then the slots of ranks and of pairs */
};

struct ncclComm {
    int rank, ranks;
    std::string name; /* of the shared memory */
    Shared *shared;
    size_t bytes;
    char *slots, *pair_slots;
    uint64_t round = 0, splits = 0;
    ncclResult_t error = ncclSuccess;
    std::string message;
    Chain chain;
    Random chance{0};

    char *slot(int r, uint64_t n)
    {
        return slots + (size_t(r) * 2 + (n & 1)) * SLOT;
    }
    SharedPair &pair(int from, int to)
    {
        return shared->pairs[from * ranks + to];
    }
    char *pair_slot(int from, int to, uint64_t n)
    {
        return pair_slots + (size_t(from * ranks + to) * 2 + (n & 1)) * PAIR_SLOT;
    }
};
static std::string last_message;
static int communicators; /* that exist */

static double seconds()
{
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}
static double timeout()
{
    return double(setting("VIT_STANDIN_NCCL_TIMEOUT", 60));
}

static ncclResult_t fail(ncclComm *c, ncclResult_t e, const std::string &message)
{
    last_message = "rank " + std::to_string(c->rank) + ": " + message;
    if (c->error == ncclSuccess) {
        c->error = e;
        c->message = last_message;
        c->shared->aborted = 1; /* the others need not wait for their own timeout */
    }
    return e;
}

/* Whether a work of `c` need not go on waiting for rank r, as it does while waits() says so; `since` is
 * when something last moved. Other ranks may have done their part and ended. */
template <class F> static bool hopeless(ncclComm *c, double &since, bool moved, int r, F waits)
{
    if (c->error != ncclSuccess)
        return true;
    double t = seconds();
    if (moved || since == 0)
        since = t;
    if (moved)
        return false;
    if (c->shared->aborted) {
        fail(c, ncclRemoteError, "another rank has failed or aborted");
        return true;
    }
    if (t - since < 0.05)
        return false;
    if (kill(c->shared->ranks[r].pid, 0) && errno == ESRCH && waits()) {
        fail(c, ncclRemoteError, "rank " + std::to_string(r) + " has died");
        return true;
    }
    if (t - since > timeout()) {
        fail(c, ncclSystemError, "no answer from the other ranks in time");
        return true;
    }
    return false;
}

/* ------------------------------------------------------------------------------------------------
 * Reductions. */

static size_t size_of(ncclDataType_t t)
{
    switch (t) {
    case ncclInt8:
    case ncclUint8:
        return 1;
    case ncclFloat16:
    case ncclBfloat16:
        return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
        return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
        return 8;
    }
    return 0;
}
/* T: as stored, S: as summed. */
template <class T, class S>
static void reduce_as(void *to, const std::vector<const char *> &from, size_t n, ncclRedOp_t op)
{
    for (size_t i = 0; i < n; i++) {
        S s = S(reinterpret_cast<const T *>(from[0])[i]);
        for (size_t r = 1; r < from.size(); r++) {
            S v = S(reinterpret_cast<const T *>(from[r])[i]);
            s = op == ncclMax    ? (v > s ? v : s)
                : op == ncclMin  ? (v < s ? v : s)
                : op == ncclProd ? S(s * v)
                                 : S(s + v);
        }
        static_cast<T *>(to)[i] = T(op == ncclAvg ? S(s / S(from.size())) : s);
    }
}
static void reduce(void *to, const std::vector<const char *> &from, size_t n, ncclDataType_t type,
                   ncclRedOp_t op)
{
    switch (type) {
    case ncclInt8:
        return reduce_as<int8_t, int8_t>(to, from, n, op);
    case ncclUint8:
        return reduce_as<uint8_t, uint8_t>(to, from, n, op);
    case ncclInt32:
        return reduce_as<int32_t, int32_t>(to, from, n, op);
    case ncclUint32:
        return reduce_as<uint32_t, uint32_t>(to, from, n, op);
    case ncclInt64:
        return reduce_as<int64_t, int64_t>(to, from, n, op);
    case ncclUint64:
        return reduce_as<uint64_t, uint64_t>(to, from, n, op);
    case ncclFloat16:
        return reduce_as<__half, float>(to, from, n, op);
    case ncclBfloat16:
        return reduce_as<__nv_bfloat16, float>(to, from, n, op);
    case ncclFloat32:
        return reduce_as<float, float>(to, from, n, op);
    case ncclFloat64:
        return reduce_as<double, double>(to, from, n, op);
    }
}

/* ------------------------------------------------------------------------------------------------
 * Collectives. */

struct Collective {
    ncclComm *c;
    Call call;
    const char *from;
    char *to;
    /* progress */
    size_t done = 0; /* elements */
    bool posted = false, begun = false;
    double since = 0;

    bool operator()()
    {
        bool moved = false;
        size_t size = size_of(ncclDataType_t(call.type));
        if (!begun) { /* what it will write holds nothing from now on */
            begun = true;
            poison(size);
            return false;
        }
        /* a reduce-scatter posts one part for every rank */
        size_t most = SLOT / size / (call.kind == REDUCE_SCATTER ? size_t(c->ranks) : 1);
        while (done < call.count && c->error == ncclSuccess) {
            size_t n = std::min(most, call.count - done);
            if (!posted) {
                for (int r = 0; r < c->ranks; r++) { /* has the slot been read? */
                    auto unread = [&] { return c->shared->ranks[r].taken + 2 < c->round + 1; };
                    if (unread())
                        return hopeless(c, since, moved, r, unread);
                }
                post(n, size);
                posted = moved = true;
            }
            for (int r = 0; r < c->ranks; r++) {
                auto missing = [&] { return c->shared->ranks[r].posted < c->round + 1; };
                if (missing())
                    return hopeless(c, since, moved, r, missing);
            }
            for (int r = 0; r < c->ranks; r++)
                if (c->shared->ranks[r].call[c->round & 1] != call)
                    fail(c, ncclInvalidUsage,
                         "ranks are in different collectives, or with "
                         "different counts, types or roots");
            if (c->error != ncclSuccess)
                return true;
            take(n, size);
            c->shared->ranks[c->rank].taken = ++c->round;
            posted = false;
            moved = true;
            done += n;
        }
        return true;
    }
    /* All that is written, but for what is read: operands may be the same memory. */
    void poison(size_t size)
    {
        size_t in = call.count * size * (call.kind == REDUCE_SCATTER ? size_t(c->ranks) : 1);
        size_t out = call.count * size * (call.kind == ALL_GATHER ? size_t(c->ranks) : 1);
        if ((call.kind == REDUCE || call.kind == BROADCAST) &&
            (c->rank == call.root) == (call.kind == BROADCAST))
            return; /* the root of a broadcast, or another rank of a reduction */
        if (call.kind == BROADCAST)
            in = 0;
        size_t before = from > to ? std::min(size_t(from - to), out) : 0;
        size_t behind = to + out > from + in ? std::min(size_t(to + out - from) - in, out) : 0;
        memset(to, 0xFF, before);
        memset(to + out - behind, 0xFF, behind);
    }
    void post(size_t n, size_t size)
    {
        char *slot = c->slot(c->rank, c->round);
        if (call.kind == REDUCE_SCATTER)
            for (int r = 0; r < c->ranks; r++)
                memcpy(slot + size_t(r) * n * size, from + (size_t(r) * call.count + done) * size,
                       n * size);
        else if (call.kind != BROADCAST || c->rank == call.root)
            memcpy(slot, from + done * size, n * size);
        c->shared->ranks[c->rank].call[c->round & 1] = call;
        c->shared->ranks[c->rank].posted = c->round + 1;
    }
    void take(size_t n, size_t size)
    {
        char *out = to + done * size;
        size_t part = call.kind == REDUCE_SCATTER ? size_t(c->rank) * n * size : 0;
        std::vector<const char *> parts;
        for (int r = 0; r < c->ranks; r++)
            parts.push_back(c->slot(r, c->round) + part);
        switch (call.kind) {
        case ALL_REDUCE:
        case REDUCE_SCATTER:
        case REDUCE:
            if (call.kind != REDUCE || c->rank == call.root)
                reduce(out, parts, n, ncclDataType_t(call.type), ncclRedOp_t(call.op));
            break;
        case BROADCAST:
            memcpy(out, parts[size_t(call.root)], n * size);
            break;
        case ALL_GATHER:
            for (int r = 0; r < c->ranks; r++)
                memcpy(out + size_t(r) * call.count * size, parts[size_t(r)], n * size);
        }
    }
};

/* ------------------------------------------------------------------------------------------------
 * Send and receive: those of one group move together. */

struct Transfer {
    bool send;
    int peer;
    char *at;
    size_t bytes, done;
    uint64_t number; /* of the sends between these two */
    int late;        /* a send comes so many times in vain */
};
struct Transfers {
    ncclComm *c;
    std::vector<Transfer> list;
    double since = 0;
    bool begun = false;

    SharedPair &pair(const Transfer &t)
    {
        return t.send ? c->pair(c->rank, t.peer) : c->pair(t.peer, c->rank);
    }
    /* Whether it is the peer's turn. */
    bool waits(const Transfer &t)
    {
        const SharedPair &p = pair(t);
        return t.send ? p.wanted <= t.number || p.sent - p.received >= 2 : p.sent == p.received;
    }
    bool move(Transfer &t)
    {
        int from = t.send ? c->rank : t.peer, to = t.send ? t.peer : c->rank;
        SharedPair &p = pair(t);
        size_t n = std::min(size_t(PAIR_SLOT), t.bytes - t.done);
        if (waits(t) || (t.send && t.late-- > 0))
            return false;
        if (t.send) {
            uint64_t i = p.sent;
            memcpy(c->pair_slot(from, to, i), t.at + t.done, n);
            p.bytes[i & 1] = t.bytes;
            p.sent = i + 1;
        } else {
            uint64_t i = p.received;
            if (p.bytes[i & 1] != t.bytes)
                return fail(c, ncclInvalidUsage, "a send and its receive differ in size"), false;
            memcpy(t.at + t.done, c->pair_slot(from, to, i), n);
            p.received = i + 1;
        }
        t.done += n;
        return true;
    }
    bool operator()()
    {
        bool moved = false;
        const Transfer *first = nullptr; /* that is not done */
        for (Transfer &t : list) {
            if (begun)
                break;
            if (t.send) {
                t.number = c->pair(c->rank, t.peer).sends++;
                t.late = c->chance.below(3) ? 0 : int(c->chance.below(400));
            } else {
                memset(t.at, 0xFF, t.bytes); /* nothing is there from now on */
                c->pair(t.peer, c->rank).wanted++;
            }
        }
        begun = true;
        for (size_t i = 0; i < list.size() && c->error == ncclSuccess; i++) {
            Transfer &t = list[i];
            for (size_t j = 0; j < i; j++) /* those of one pair keep their order */
                if (list[j].done < list[j].bytes && list[j].send == t.send &&
                    list[j].peer == t.peer)
                    goto wait;
            while (t.done < t.bytes && move(t))
                moved = true;
            if (t.done == t.bytes)
                continue;
        wait:
            first = first ? first : &t;
        }
        return !first || hopeless(c, since, moved, first->peer, [&] { return waits(*first); });
    }
};

/* ------------------------------------------------------------------------------------------------
 * Groups: nothing is queued before the outermost ncclGroupEnd. */

struct Pending {
    ncclComm *c;
    cudaStream_t stream;
    bool is_transfer;
    Collective collective;
    Transfer transfer;
};
static thread_local int group_depth;
static thread_local std::vector<Pending> group;

static ncclResult_t flush()
{
    ncclResult_t r = ncclSuccess;
    std::vector<Pending> todo;
    todo.swap(group);
    for (size_t i = 0; i < todo.size() && r == ncclSuccess; i++) {
        Pending &p = todo[i];
        if (!p.c)
            continue; /* went with an earlier transfer */
        Work work = p.collective;
        if (p.is_transfer) {
            Transfers all{p.c, {}};
            for (size_t j = i; j < todo.size(); j++)
                if (todo[j].is_transfer && todo[j].c == p.c && todo[j].stream == p.stream) {
                    all.list.push_back(todo[j].transfer);
                    if (j > i)
                        todo[j].c = nullptr;
                }
            work = all;
        }
        if (enqueue(p.stream, work, &p.c->chain) != cudaSuccess)
            r = ncclUnhandledCudaError;
    }
    return r;
}
ncclResult_t ncclGroupStart()
{
    group_depth++;
    return ncclSuccess;
}
ncclResult_t ncclGroupEnd()
{
    if (group_depth == 0)
        return ncclInvalidUsage;
    return --group_depth ? ncclSuccess : flush();
}
static ncclResult_t add(const Pending &p)
{
    group.push_back(p);
    return group_depth ? ncclSuccess : flush();
}

static ncclResult_t collective(ncclComm *c, Kind kind, const void *from, size_t from_n, void *to,
                               size_t to_n, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               int root, cudaStream_t stream)
{
    if (!c || !size_of(type) || root < 0 || root >= c->ranks || op < ncclSum || op > ncclAvg)
        return ncclInvalidArgument;
    if (c->error != ncclSuccess)
        return c->error;
    if (!count)
        return ncclSuccess;
    if ((from_n && !is_device(from, from_n * size_of(type))) ||
        (to_n && !is_device(to, to_n * size_of(type))))
        return fail(c, ncclInvalidArgument, "a buffer is not inside device memory");
    Call call = {kind, type, op, root, count};
    return add({c,
                stream,
                false,
                {c, call, static_cast<const char *>(from), static_cast<char *>(to)},
                {}});
}
ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t c, cudaStream_t s)
{
    return collective(c, ALL_REDUCE, from, count, to, count, count, type, op, 0, s);
}
ncclResult_t ncclReduce(const void *from, void *to, size_t count, ncclDataType_t type,
                        ncclRedOp_t op, int root, ncclComm_t c, cudaStream_t s)
{
    size_t out = c && c->rank == root ? count : 0;
    return collective(c, REDUCE, from, count, to, out, count, type, op, root, s);
}
ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t c, cudaStream_t s)
{
    size_t in = c && c->rank == root ? count : 0;
    return collective(c, BROADCAST, from, in, to, count, count, type, ncclSum, root, s);
}
ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type,
                           ncclComm_t c, cudaStream_t s)
{
    size_t all = c ? count * size_t(c->ranks) : 0;
    return collective(c, ALL_GATHER, from, count, to, all, count, type, ncclSum, 0, s);
}
ncclResult_t ncclReduceScatter(const void *from, void *to, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t c, cudaStream_t s)
{
    size_t all = c ? count * size_t(c->ranks) : 0;
    return collective(c, REDUCE_SCATTER, from, all, to, count, count, type, op, 0, s);
}
static ncclResult_t transfer(bool send, void *at, size_t count, ncclDataType_t type, int peer,
                             ncclComm_t c, cudaStream_t s)
{
    if (!c || !size_of(type) || peer < 0 || peer >= c->ranks)
        return ncclInvalidArgument;
    if (c->error != ncclSuccess)
        return c->error;
    if (!count)
        return ncclSuccess;
    if (!is_device(at, count * size_of(type)))
        return fail(c, ncclInvalidArgument, "a buffer is not inside device memory");
    return add({c, s, true, {}, {send, peer, static_cast<char *>(at), count * size_of(type), 0, 0, 0}});
}
ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer, ncclComm_t c,
                      cudaStream_t s)
{
    return transfer(true, const_cast<void *>(from), count, type, peer, c, s);
}
ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t c,
                      cudaStream_t s)
{
    return transfer(false, to, count, type, peer, c, s);
}

/* ------------------------------------------------------------------------------------------------
 * Communicators. */

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    uint64_t random;
    if (!id || getrandom(&random, sizeof random, 0) != sizeof random)
        return id ? ncclSystemError : ncclInvalidArgument;
    *id = {};
    snprintf(id->internal, sizeof id->internal, "/vit-nccl-%d-%016llx", int(getpid()),
             (unsigned long long)random);
    return ncclSuccess;
}

/* Meets the other ranks in the shared memory of this name. */
static ncclResult_t meet(ncclComm_t *comm, int ranks, const std::string &name, int rank)
{
    size_t pairs = size_t(ranks) * size_t(ranks);
    size_t head = (sizeof(Shared) + pairs * sizeof(SharedPair) + 4095) / 4096 * 4096;
    size_t bytes = head + size_t(ranks) * 2 * SLOT + pairs * 2 * PAIR_SLOT;
    int file = shm_open(name.c_str(), O_RDWR | O_CREAT, 0600);
    void *map = MAP_FAILED;
    if (file >= 0 && ftruncate(file, off_t(bytes)) == 0)
        map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file >= 0)
        close(file);
    if (map == MAP_FAILED) {
        last_message = "cannot make shared memory";
        return ncclSystemError;
    }
    ncclComm *c = new ncclComm;
    c->rank = rank;
    c->ranks = ranks;
    c->name = name;
    c->chance.state = uint64_t(setting("VIT_STANDIN_SEED", 1) << 12 | communicators << 6 | rank);
    c->shared = static_cast<Shared *>(map);
    c->bytes = bytes;
    c->slots = static_cast<char *>(map) + head;
    c->pair_slots = c->slots + size_t(ranks) * 2 * SLOT;
    c->shared->ranks[rank].pid = getpid();
    c->shared->joined++;
    double start = seconds();
    while (c->shared->joined < ranks && !c->shared->aborted && seconds() - start < timeout())
        usleep(200);
    if (rank == 0 || c->shared->joined < ranks)
        shm_unlink(name.c_str()); /* all who will ever come have it open */
    if (c->shared->joined < ranks) {
        fail(c, ncclSystemError, "other ranks did not come in time");
        munmap(map, bytes);
        delete c;
        return ncclSystemError;
    }
    *comm = c;
    communicators++;
    progress();
    static const int at_exit = atexit([] {
        if (communicators)
            drain();
    });
    return at_exit == 0 ? ncclSuccess : ncclSystemError;
}
ncclResult_t ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank)
{
    if (!comm || ranks < 1 || ranks > MAX_RANKS || rank < 0 || rank >= ranks ||
        id.internal[0] != '/')
        return ncclInvalidArgument;
    *comm = nullptr;
    if (cudaError_t e = synchronous_call(); e != cudaSuccess)
        return ncclUnhandledCudaError;
    return meet(comm, ranks, id.internal, rank);
}
/* Every rank says its colour and key, and knows the new ranks when all have. */
ncclResult_t ncclCommSplit(ncclComm_t c, int colour, int key, ncclComm_t *part, ncclConfig_t *)
{
    if (!c || !part || colour < NCCL_SPLIT_NOCOLOR)
        return ncclInvalidArgument;
    *part = nullptr;
    if (cudaError_t e = synchronous_call(); e != cudaSuccess)
        return ncclUnhandledCudaError;
    drain();
    const uint64_t turn = c->splits++;
    SharedRank *all = c->shared->ranks;
    all[c->rank].colour[turn & 1] = colour;
    all[c->rank].key[turn & 1] = key;
    all[c->rank].splits = turn + 1;
    double since = 0;
    for (int r = 0; r < c->ranks; r++)
        for (; all[r].splits <= turn; usleep(200))
            if (hopeless(c, since, false, r, [&] { return all[r].splits <= turn; }))
                return c->error;
    if (colour == NCCL_SPLIT_NOCOLOR)
        return ncclSuccess;
    int ranks = 0, rank = 0;
    for (int r = 0; r < c->ranks; r++) {
        int other = all[r].key[turn & 1];
        if (all[r].colour[turn & 1] != colour)
            continue;
        ranks++;
        rank += other < key || (other == key && r < c->rank);
    }
    return meet(part, ranks,
                c->name + "-" + std::to_string(turn) + "." + std::to_string(colour), rank);
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *)
{
    return ncclCommInitRank(comm, ranks, id, rank);
}
ncclResult_t ncclCommFinalize(ncclComm_t c)
{
    if (!c)
        return ncclInvalidArgument;
    drain();
    return c->error;
}
ncclResult_t ncclCommDestroy(ncclComm_t c)
{
    if (!c)
        return ncclInvalidArgument;
    drain();
    communicators--;
    munmap(c->shared, c->bytes);
    delete c;
    return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t c)
{
    if (!c)
        return ncclInvalidArgument;
    fail(c, ncclRemoteError, "aborted");
    return ncclCommDestroy(c); /* its works give up at once */
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *error)
{
    if (!c || !error)
        return ncclInvalidArgument;
    *error = c->error;
    return ncclSuccess;
}
ncclResult_t ncclCommCount(const ncclComm_t c, int *count)
{
    if (!c || !count)
        return ncclInvalidArgument;
    *count = c->ranks;
    return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t c, int *rank)
{
    if (!c || !rank)
        return ncclInvalidArgument;
    *rank = c->rank;
    return ncclSuccess;
}
ncclResult_t ncclCommCuDevice(const ncclComm_t c, int *device)
{
    return c && cudaGetDevice(device) == cudaSuccess ? ncclSuccess : ncclInvalidArgument;
}
ncclResult_t ncclGetVersion(int *version)
{
    if (!version)
        return ncclInvalidArgument;
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}
const char *ncclGetLastError(ncclComm_t c)
{
    return c && c->error != ncclSuccess ? c->message.c_str() : last_message.c_str();
}
const char *ncclGetErrorString(ncclResult_t r)
{
    switch (r) {
    case ncclSuccess:
        return "no error";
    case ncclUnhandledCudaError:
        return "unhandled cuda error";
    case ncclSystemError:
        return "unhandled system error";
    case ncclInternalError:
        return "internal error";
    case ncclInvalidArgument:
        return "invalid argument";
    case ncclInvalidUsage:
        return "invalid usage";
    case ncclRemoteError:
        return "remote process exited or there was a network error";
    case ncclInProgress:
        return "NCCL operation in progress";
    case ncclNumResults:
        break;
    }
    return "unknown result code";
}
