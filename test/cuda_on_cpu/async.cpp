/* async.cpp - mbarriers, tensor copies, named barriers and what else belongs to Hopper but
 * products.
 *
 * A copy to shared memory fills its destination with 0xFF bytes when it is issued, and happens, by
 * the seed of the block, at once, at some later time, or when no thread can go on without: then
 * copies under way happen in a random order. A copy to global memory reads shared memory when that
 * is waited for, and writes when that is waited for or its thread ends.
 *
 * Read: async(), the two images of shared memory; mbarriers; maps; copies; the rest.
 */
#include "async.h"

#include <algorithm>

namespace standin
{

/* ------------------------------------------------------------------------------------------------
 * A cluster's state, and its shared memory. Addresses begin at 1024, as on the device, and have the
 * low bits of pointers. */

constexpr uint32_t FIRST = 1024;

Async &async()
{
    Block &b = block();
    if (!b.async)
        b.async = new Async();
    Async &a = *b.async;
    if (a.active)
        return a;
    if (capability() != 90)
        block_error(self(),
                    "instructions of sm_90a on a GPU of compute capability %d.%d: "
                    "VIT_STANDIN_SM=90",
                    capability() / 10, capability() % 10);
    a.active = true;
    a.proxy.assign(size_t(b.blocks - 1) * b.stride + b.bytes, char(0xFF));
    a.timing = b.random->below(2) ? LATE : Timing(1 + b.random->below(2));
    a.bars.clear();
    a.loads.clear();
    const size_t threads = size_t(b.blocks * b.room);
    a.named.assign(16 * size_t(b.blocks), {});
    a.threads.assign(threads, {});
    a.groups.assign(threads / 128, {});
    a.registers.assign(threads / 128, 0);
    a.register_calls.assign(threads / 128, 0);
    a.elected = int(b.random->below(32));
    return a;
}

static uint32_t address_of(const void *p)
{
    return FIRST + uint32_t(static_cast<const char *>(p) - block().smem);
}
uint32_t window()
{
    return uint32_t(cluster_rank() * block().stride);
}
uint32_t shared_address(const void *p)
{
    return address_of(p) - window();
}
static unsigned rank_of(uint32_t address)
{
    return block().blocks > 1 ? unsigned((address - FIRST) / block().stride) : 0;
}
char *shared(uint32_t address, size_t bytes)
{
    Block &b = block();
    const unsigned rank = address < FIRST ? 0 : rank_of(address);
    const size_t at = address - FIRST - rank * b.stride;
    bool inside = address >= FIRST && rank < unsigned(b.blocks) && at + bytes <= b.bytes;
    return inside ? b.smem + (address - FIRST) : nullptr;
}
char *proxy(uint32_t address)
{
    return async().proxy.data() + (address - FIRST);
}
/* 16-byte chunks change places within `bytes` (PTX ISA, swizzling modes). */
uint32_t swizzled(uint32_t address, unsigned bytes)
{
    return address ^ ((address >> 7) & (bytes / 16 - 1)) << 4;
}

void fence_proxy_async()
{
    const Unseen unseen;
    Async &a = async();
    Block &b = block();
    constexpr size_t step = 1024;
    for (size_t i = window(), end = i + b.bytes; i < end; i += step) {
        size_t n = std::min(step, end - i);
        if (memcmp(&a.proxy[i], b.smem + i, n))
            memcpy(&a.proxy[i], b.smem + i, n);
    }
    mbarrier_init_fence();
}

/* ------------------------------------------------------------------------------------------------
 * mbarrier. What is in shared memory only marks the place. */

constexpr uint64_t MARK = 0xB7B7B7B7B7B7B7B7u;

static uint32_t mark_of(const uint64_t *bar, const char *what, int line)
{
    says(what, line);
    uint32_t address = address_of(bar);
    if (!shared(address, 8) || address % 8)
        block_error(self(), "an mbarrier outside of dynamic shared memory, or misaligned");
    return address;
}
static Mbarrier &mbarrier_at(const uint64_t *bar, const char *what, int line)
{
    uint32_t address = mark_of(bar, what, line);
    const unsigned rank = rank_of(address);
    auto found = async().bars.find(address);
    const bool there = found != async().bars.end();
    if (rank != cluster_rank() && !(there && found->second.known))
        block_error(self(),
                    "an mbarrier of block %u of the cluster: no cluster_sync() since it was "
                    "initialised and fenced",
                    rank);
    if (!there)
        block_error(self(), "the mbarrier at %u is not initialised", address);
    if (*bar != MARK)
        block_error(self(), "the mbarrier at %u was overwritten", address);
    if (block_left(rank))
        block_error(self(), "an mbarrier of block %u of the cluster, which has left the kernel",
                    rank);
    return found->second;
}

void mbarrier_init(uint64_t *bar, uint32_t count, int line)
{
    const Unseen unseen;
    uint32_t address = mark_of(bar, "mbarrier_init", line);
    if (!count || count >= 1u << 20)
        block_error(self(), "an mbarrier for %u threads", count);
    if (!async().bars.insert({address, {count, count, 0, 0, false, false, {}}}).second)
        block_error(self(), "the mbarrier at %u is initialised twice", address);
    *bar = MARK;
    memcpy(proxy(address), bar, 8);
}
void mbarrier_init_fence()
{
    const Unseen unseen;
    for (auto &bar : async().bars)
        if (rank_of(bar.first) == cluster_rank())
            bar.second.fenced = true;
}

/* The next phase begins where nothing is missing from this one. */
static void check_phase(Mbarrier &m)
{
    if (m.pending || m.bytes)
        return;
    unsigned done = m.phase++ & 1;
    m.pending = m.count;
    size_t kept = 0;
    for (auto &w : m.waiting) {
        if (w.second == done)
            may_go(w.first);
        else
            m.waiting[kept++] = w;
    }
    m.waiting.resize(kept);
}
static void announce(Mbarrier &m, long bytes, int thread)
{
    m.bytes += bytes;
    if (m.bytes >= 1 << 20 || m.bytes <= -(1 << 20))
        block_error(thread, "%ld bytes are announced for one phase of an mbarrier", m.bytes);
}

void mbarrier_arrive(uint64_t *bar, uint32_t bytes, int line)
{
    const Unseen unseen;
    Mbarrier &m = mbarrier_at(bar, bytes ? "mbarrier_arrive_expect" : "mbarrier_arrive", line);
    order_release(bar);
    announce(m, long(bytes), self());
    if (!m.pending--)
        block_error(self(), "more than %u threads arrive in one phase of an mbarrier", m.count);
    check_phase(m);
}
/* What is at this place in another block of the cluster */
template <class T> static T *in_block(T *p, unsigned rank)
{
    if (rank >= cluster_blocks())
        block_error(self(), "there is no block %u in a cluster of %u", rank, cluster_blocks());
    auto *own = reinterpret_cast<char *>(p);
    return reinterpret_cast<T *>(own + rank * block().stride - window());
}
void mbarrier_arrive_at(uint64_t *bar, uint32_t rank, int line)
{
    says("mbarrier_arrive_at", line);
    mbarrier_arrive(in_block(bar, rank), 0, line);
}
void mbarrier_wait(uint64_t *bar, uint32_t parity, int line)
{
    const Unseen unseen;
    Mbarrier &m = mbarrier_at(bar, "mbarrier_wait", line);
    if (parity > 1)
        block_error(self(), "an mbarrier's parity is 0 or 1, not %u", parity);
    if ((m.phase & 1) == parity) {
        AsyncThread &t = async().threads[size_t(self())];
        snprintf(t.detail, sizeof t.detail,
                 "mbarrier at %u, parity %u, phase %u: %u arrivals and %ld bytes missing",
                 shared_address(bar), parity, m.phase, m.pending, m.bytes);
        m.waiting.push_back({self(), parity});
        stop();
        t.detail[0] = 0;
    }
    order_acquire(bar);
}

/* ------------------------------------------------------------------------------------------------
 * Tensor maps. */

constexpr uint64_t MAGIC = 0x70616D20726F736Eu;
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

static uint32_t element_bytes(CUtensorMapDataType type)
{
    static const uint32_t bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};
    return unsigned(type) < sizeof bytes / sizeof *bytes ? bytes[type] : 0;
}
/* What the driver asks for; where a box is narrower than its swizzle, its layout is not modelled.
 */
static bool valid(const TensorMap &m)
{
    if (!m.element || m.dimensions < 2 || m.dimensions > 4 || uintptr_t(m.address) % 16)
        return false;
    for (unsigned i = 0; i < m.dimensions; i++) {
        if (!m.size[i] || m.size[i] > 1ull << 32 || !m.box[i] || m.box[i] > 256)
            return false;
        if (i && (m.stride[i] % 16 || m.stride[i] >= 1ull << 40))
            return false;
    }
    uint32_t row = m.box[0] * m.element;
    return row % 16 == 0 && (m.swizzle == CU_TENSOR_MAP_SWIZZLE_NONE || row == 16u << m.swizzle);
}

} // namespace standin

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                                void *address, const cuuint64_t *size, const cuuint64_t *stride,
                                const cuuint32_t *box, const cuuint32_t *element_stride,
                                CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill)
{
    standin::TensorMap m = {};
    m.magic = standin::MAGIC;
    m.address = static_cast<char *>(address);
    m.dimensions = rank;
    m.element = standin::element_bytes(type);
    m.swizzle = swizzle;
    m.stride[0] = m.element;
    for (unsigned i = 0; i < 4; i++) {
        m.size[i] = i < rank ? size[i] : 1;
        m.box[i] = i < rank ? box[i] : 1;
        if (i && i < rank)
            m.stride[i] = stride[i - 1];
        if (i < rank && element_stride[i] != 1)
            return CUDA_ERROR_INVALID_VALUE;
    }
    if (uintptr_t(map) % 64 || !standin::valid(m))
        return CUDA_ERROR_INVALID_VALUE;
    size_t bytes = m.element;
    for (unsigned i = 0; i < rank; i++)
        bytes += (m.size[i] - 1) * m.stride[i];
    if (!standin::is_device(address, bytes))
        standin::die("a tensor map of %zu bytes that are not all in one allocation", bytes);
    memset(map, 0, sizeof *map);
    memcpy(map, &m, sizeof m);
    return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult *found)
{
    bool known = !strcmp(name, "cuTensorMapEncodeTiled");
    *function = known ? (void *)cuTensorMapEncodeTiled : nullptr;
    if (found)
        *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

namespace standin
{

static TensorMap read_map(const CUtensorMap *map, const Place &place)
{
    TensorMap m;
    memcpy(&m, map, sizeof m);
    if (m.magic != MAGIC)
        block_error(self(), "this is no tensor map");
    if (uintptr_t(map) % 64)
        block_error(self(), "a tensor map that is not aligned to 64 bytes");
    if (int(m.dimensions) != place.dimensions)
        block_error(self(), "a tensor map of %u dimensions, %d coordinates", m.dimensions,
                    place.dimensions);
    return m;
}

/* ------------------------------------------------------------------------------------------------
 * Tensor copies. */

uint32_t box_bytes(const TensorMap &m)
{
    return m.box[0] * m.box[1] * m.box[2] * m.box[3] * m.element;
}
static uint32_t chunk_address(const TensorMap &m, uint32_t first, uint32_t offset)
{
    return m.swizzle ? swizzled(first + offset, 16u << m.swizzle) : first + offset;
}

/* f(offset in the box, address in global memory, bytes): pieces of at most 16 bytes, of which only
 * those inside of the tensor have an address. A chunk at the tensor's edge is two pieces. */
template <class F> static void each_piece(const TensorMap &m, const Place &place, F f)
{
    const uint32_t row = m.box[0] * m.element;
    const long x = long(place.at[0]) * m.element, end = long(m.size[0] * m.element);
    for (uint32_t i = 0; i < m.box[1] * m.box[2] * m.box[3]; i++) {
        const long y = long(place.at[1]) + i % m.box[1]; /* coordinates that are not there are 0 */
        const long z = long(place.at[2]) + i / m.box[1] % m.box[2];
        const long w = long(place.at[3]) + i / m.box[1] / m.box[2];
        bool outside = y < 0 || uint64_t(y) >= m.size[1];
        outside |= z < 0 || uint64_t(z) >= m.size[2];
        outside |= w < 0 || uint64_t(w) >= m.size[3];
        for (uint32_t c = 0; c < row; c += 16) {
            long from = std::min(std::max(-(x + c), 0l), 16l);
            long to = outside ? from : std::max(from, std::min(end - (x + c), 16l));
            char *at = m.address + x + c + y * long(m.stride[1]) + z * long(m.stride[2]) +
                       w * long(m.stride[3]);
            if (from > 0)
                f(i * row + c, static_cast<char *>(nullptr), uint32_t(from));
            if (to > from)
                f(i * row + c + uint32_t(from), at + from, uint32_t(to - from));
            if (to < 16)
                f(i * row + c + uint32_t(to), static_cast<char *>(nullptr), uint32_t(16 - to));
        }
    }
}

/* Whether all bytes are still what the copy's begin has left there. */
static bool untouched(const char *p, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (p[i] != char(0xFF))
            return false;
    return true;
}
static void happen(Load l)
{
    if (block_left(rank_of(l.to)))
        block_error(l.thread, "the tensor copy of line %d arrives in a block that has left",
                    l.line);
    each_piece(l.map, l.place, [&](uint32_t offset, const char *from, uint32_t n) {
        uint32_t address = chunk_address(l.map, l.to, offset / 16 * 16) + offset % 16;
        for (char *to : {shared(address, n), proxy(address)}) {
            if (!untouched(to, n))
                block_error(l.thread,
                            "the destination of the tensor copy of line %d was written "
                            "while that was under way",
                            l.line);
            if (from)
                memcpy(to, from, n);
            else
                memset(to, 0, n);
        }
    });
    Mbarrier &m = async().bars.at(l.bar);
    announce(m, -long(box_bytes(l.map)), l.thread);
    check_phase(m);
}
static void one_happens(Async &a)
{
    size_t i = block().random->below(unsigned(a.loads.size()));
    Load l = a.loads[i];
    a.loads[i] = a.loads.back();
    a.loads.pop_back();
    happen(l);
}

static void load(void *to, const CUtensorMap *map, uint64_t *bar, Place place, int line)
{
    Async &a = async();
    Mbarrier &m = mbarrier_at(bar, "tma_load", line);
    if (!m.fenced)
        block_error(self(), "an mbarrier without mbarrier_init_fence()");
    Load l = {read_map(map, place), place, address_of(to), address_of(bar), self(), line};
    uint32_t n = box_bytes(l.map);
    if (!shared(l.to, n) || l.to % 128)
        block_error(self(), "a tensor copy to outside of shared memory, or not aligned to 128");
    memset(to, 0xFF, n);
    memset(proxy(l.to), 0xFF, n);
    a.loads.push_back(l);
    if (a.timing == AT_ONCE)
        one_happens(a);
}
void tma_load(void *to, const CUtensorMap *map, uint64_t *bar, Place place, int line)
{
    const Unseen unseen;
    load(to, map, bar, place, line);
}
/* To the same place in several blocks, each of which has it in its own time. */
void tma_multicast(void *to, const CUtensorMap *map, uint64_t *bar, unsigned ranks, Place place,
                   int line)
{
    const Unseen unseen;
    says("tma_multicast", line);
    if (!ranks || ranks >> cluster_blocks())
        block_error(self(), "a copy to blocks %#x of a cluster of %u", ranks, cluster_blocks());
    for (unsigned rank = 0; rank < cluster_blocks(); rank++)
        if (ranks >> rank & 1)
            load(in_block(static_cast<char *>(to), rank), map, in_block(bar, rank), place, line);
}

/* A store's two halves. */
static void read_box(Store &s)
{
    if (s.read)
        return;
    s.read = true;
    s.data.resize(box_bytes(s.map));
    each_piece(s.map, s.place, [&](uint32_t offset, const char *to, uint32_t n) {
        uint32_t address = chunk_address(s.map, s.from, offset / 16 * 16) + offset % 16;
        if (to && memcmp(shared(address, n), proxy(address), n))
            block_error(self(),
                        "the tensor store of line %d reads what was written without "
                        "fence_proxy_async(), or before it was waited for",
                        s.line);
        memcpy(&s.data[offset], proxy(address), n);
    });
}
static void write_box(Store &s)
{
    read_box(s);
    each_piece(s.map, s.place, [&](uint32_t offset, char *to, uint32_t n) {
        if (to)
            memcpy(to, &s.data[offset], n);
    });
}

void tma_store(const CUtensorMap *map, const void *from, Place place, int line)
{
    const Unseen unseen;
    says("tma_store", line);
    AsyncThread &t = async().threads[size_t(self())];
    Store s = {read_map(map, place), place, address_of(from), line, t.store_groups, false, {}};
    if (!shared(s.from, box_bytes(s.map)) || s.from % 128)
        block_error(self(), "a tensor copy from outside of shared memory, or not aligned to 128");
    t.stores.push_back(s);
    if (async().timing == AT_ONCE)
        read_box(t.stores.back());
}
void tma_store_commit()
{
    const Unseen unseen;
    async().threads[size_t(self())].store_groups++;
}
void tma_store_wait(unsigned groups_left, bool only_read)
{
    const Unseen unseen;
    AsyncThread &t = async().threads[size_t(self())];
    size_t kept = 0;
    for (Store &s : t.stores) {
        bool waited = s.group + groups_left < t.store_groups;
        if (waited && only_read)
            read_box(s);
        if (waited && !only_read)
            write_box(s);
        else
            std::swap(t.stores[kept++], s);
    }
    t.stores.resize(kept);
}

/* ------------------------------------------------------------------------------------------------
 * Named barriers, registers, lanes. */

/* Whether this thread is the last to arrive; else, told to wait, it goes on behind that. */
static bool meet(NamedBarrier &n, int id, bool wait)
{
    order_release(&n);
    const bool last = ++n.arrived == n.expected;
    if (last) {
        n.arrived = 0;
        for (int other : n.waiting)
            may_go(other);
        n.waiting.clear();
    } else if (wait) {
        AsyncThread &t = async().threads[size_t(self())];
        snprintf(t.detail, sizeof t.detail, "barrier %d of %d threads", id, n.expected);
        n.waiting.push_back(self());
        stop();
        t.detail[0] = 0;
    }
    if (wait)
        order_acquire(&n);
    return last;
}
void named_barrier(int id, int threads, bool wait, int line)
{
    const Unseen unseen;
    says(wait ? "named_barrier_sync" : "named_barrier_arrive", line);
    if (id < 1 || id > 15)
        block_error(self(), "there are named barriers 1 to 15, not %d", id);
    NamedBarrier &n = async().named[16 * cluster_rank() + unsigned(id)];
    if (threads % 32 || threads < 32 || threads > block().threads)
        block_error(self(), "barrier %d of %d threads", id, threads);
    if (n.arrived && n.expected != threads)
        block_error(self(), "barrier %d of %d threads is one of %d for others", id, threads,
                    n.expected);
    n.expected = threads;
    meet(n, id, wait);
}
/* Behind it all blocks may use mbarriers that were made before. */
void cluster_sync(int line)
{
    const Unseen unseen;
    says("cluster_sync", line);
    Async &a = async();
    a.named[0].expected = block().threads * block().blocks;
    if (meet(a.named[0], 0, true))
        for (auto &bar : a.bars)
            bar.second.known = bar.second.fenced;
}

/* A multiprocessor has 65536 registers; a block begins with as many a thread as fit. */
static int registers_at_start()
{
    return std::min(65536 / block().threads / 8 * 8, 256);
}
void set_registers(int registers, bool more, int line)
{
    const Unseen unseen;
    says(more ? "registers_take" : "registers_release", line);
    Async &a = async();
    int &mine = a.registers[size_t(self()) / 128], now = mine ? mine : registers_at_start();
    if (mine != registers && (more ? registers < now : registers > now))
        block_error(self(), "%s %d registers from %d", more ? "takes" : "releases to", registers,
                    now);
    mine = registers;
    a.register_calls[size_t(self()) / 128]++;
}
static void check_registers(Async &a)
{
    const size_t groups = size_t(block().room) / 128;
    const int pool = int(groups) * 128 * registers_at_start(); /* what a block was launched with */
    for (size_t first = 0; first < a.registers.size(); first += groups) {
        int sum = 0;
        for (size_t i = first; i < first + groups; i++)
            sum += 128 * (a.registers[i] ? a.registers[i] : registers_at_start());
        if (sum > pool)
            block_error(self(), "its warp groups take %d registers together, there are %d", sum,
                        pool);
    }
    for (int calls : a.register_calls)
        if (calls % 128)
            block_error(self(), "setmaxnreg by %d threads of a warp group", calls % 128);
}

static void nothing(void *const *, unsigned)
{
}
/* The same lane every time, as on the device; which one, the seed says. */
bool elect_one(int line)
{
    meet_warp(0xFFFFFFFFu, "elect_one", line, nullptr, nothing, false);
    return int(lane()) == async().elected;
}

struct Stmatrix {
    const uint32_t *from;
    uint32_t row[4];
};
STANDIN_NO_TSAN static void transpose(void *const *warp, unsigned)
{
    for (int lane = 0; lane < 32; lane++)
        for (int c = 0; c < 4; c++)
            static_cast<Stmatrix *>(warp[lane])->row[c] =
                static_cast<Stmatrix *>(warp[lane % 8 * 4 + c])->from[lane / 8];
}
void stmatrix_x4(void *row, const uint32_t (&r)[4], int line)
{
    Stmatrix m = {r, {}};
    meet_warp(0xFFFFFFFFu, "mma's stmatrix_x4", line, &m, transpose, false);
    if (uintptr_t(row) % 16)
        block_error(self(), "stmatrix to a misaligned address");
    memcpy(row, m.row, sizeof m.row);
}
/* Row j of matrix i, which lane 8i+j writes, is its column j: halves of what eight lanes bring. */
STANDIN_NO_TSAN static void transpose_halves(void *const *warp, unsigned)
{
    for (int lane = 0; lane < 32; lane++) {
        const int j = lane % 8;
        auto half = [&](int i) {
            return static_cast<Stmatrix *>(warp[4 * i + j / 2])->from[lane / 8] >> j % 2 * 16 &
                   0xFFFFu;
        };
        for (int c = 0; c < 4; c++)
            static_cast<Stmatrix *>(warp[lane])->row[c] = half(2 * c) | half(2 * c + 1) << 16;
    }
}
void stmatrix_x4_trans(void *row, const uint32_t (&r)[4], int line)
{
    Stmatrix m = {r, {}};
    meet_warp(0xFFFFFFFFu, "mma's stmatrix_x4_trans", line, &m, transpose_halves, false);
    if (uintptr_t(row) % 16)
        block_error(self(), "stmatrix to a misaligned address");
    memcpy(row, m.row, sizeof m.row);
}

/* ------------------------------------------------------------------------------------------------
 * For kernel.cpp. */

void async_begin(Async *a)
{
    if (a)
        a->active = false;
}
bool async_advance(Async *a)
{
    const Unseen unseen;
    if (!a || !a->active || a->loads.empty())
        return false;
    one_happens(*a);
    return true;
}
void async_chance(Async *a)
{
    const Unseen unseen;
    if (a && a->active && a->timing == SOMETIME && !a->loads.empty() && !block().random->below(8))
        one_happens(*a);
}
void async_leave(Async *a)
{
    const Unseen unseen;
    if (!a || !a->active)
        return;
    AsyncThread &t = a->threads[size_t(self())];
    products_leave(t);
    for (Store &s : t.stores) {
        if (!s.read)
            block_error(self(),
                        "leaves the kernel while the tensor store of line %d may still "
                        "read shared memory",
                        s.line);
        write_box(s);
    }
    t.stores.clear();
}
void async_end(Async *a)
{
    const Unseen unseen;
    if (!a || !a->active)
        return;
    for (Load &l : a->loads)
        block_error(l.thread, "the block ends while the tensor copy of line %d is under way",
                    l.line);
    check_registers(*a);
}
const char *async_detail(Async *a, int thread)
{
    return a && a->active ? a->threads[size_t(thread)].detail : "";
}

} // namespace standin
