/* wgmma.cpp - products of warp groups, which happen behind the threads' backs.
 *
 * A product is issued when all 128 threads have issued it. It reads its operands and is computed
 * then, or, by the seed, only when a thread waits for it; either way a thread's registers hold
 * NOTHING until that thread has waited. Products on the same registers follow each other as a
 * chain, whose sums are kept as a matrix. Those of 8-bit numbers lose what is beyond 14 bits after
 * each product, a model of what Hopper's tensor cores are known to do: which bits they lose is not.
 *
 * Read: where an element is in shared memory; issuing; computing; waiting.
 */
#include "async.h"

#include <algorithm>

namespace standin
{

constexpr uint32_t NOTHING = 0xFFFDEAD1u; /* a NaN */

/* ------------------------------------------------------------------------------------------------
 * Operands in shared memory (PTX ISA: matrix descriptor format, canonical layouts). */

struct Operand {
    uint32_t start, leading, stride, width; /* bytes; width of the swizzle, 16: none */
    bool mn_major;
};

static Operand decode(uint64_t d, bool mn_major)
{
    static const uint32_t widths[] = {16, 128, 64, 32};
    return {window() + (uint32_t(d & 0x3FFF) << 4), uint32_t(d >> 16 & 0x3FFF) << 4,
            uint32_t(d >> 32 & 0x3FFF) << 4, widths[d >> 62], mn_major};
}
/* The address of a 16-byte chunk. K-major: of row `mn`, the chunk `k`th along k. MN-major: of `k`,
 * the chunk `mn`th along m or n. */
static uint32_t chunk(const Operand &o, uint32_t mn, uint32_t k)
{
    const uint32_t w = o.width, n = w / 16;
    uint32_t at = o.start;
    if (o.mn_major && n == 1)
        at += mn * o.stride + k % 8 * 16 + k / 8 * o.leading;
    else if (o.mn_major)
        at += mn % n * 16 + mn / n * o.leading + k % 8 * w + k / 8 * o.stride;
    else if (n == 1)
        at += mn % 8 * 16 + mn / 8 * o.stride + k * o.leading;
    else
        at += mn % 8 * w + mn / 8 * o.stride + k * 16;
    return n == 1 ? at : swizzled(at, w);
}

static void check_operand(uint64_t d, const Operand &o)
{
    if (d >> 49 & 7)
        block_error(self(), "a matrix descriptor with a base offset, which is not modelled");
    if (o.width > 16 && o.start % (8 * o.width) >= o.width)
        block_error(self(),
                    "a matrix with a swizzle of %u bytes begins at %u: not within the "
                    "first of 8 rows",
                    o.width, o.start);
}

/* ------------------------------------------------------------------------------------------------
 * Numbers. */

static float e4m3_float(unsigned b)
{
    float sign = b & 0x80 ? -1.0f : 1.0f;
    unsigned e = b >> 3 & 15, m = b & 7;
    if (e == 15 && m == 7)
        return NAN;
    return sign * (e ? ldexpf(float(8 + m), int(e) - 10) : ldexpf(float(m), -9));
}
static float wide(Narrow type, const unsigned char *p)
{
    static const std::vector<float> e4m3 = [] {
        std::vector<float> v(256);
        for (unsigned i = 0; i < 256; i++)
            v[i] = e4m3_float(i);
        return v;
    }();
    if (type == E4M3_TYPE)
        return e4m3[*p];
    if (type == E5M2_TYPE)
        return half_float(uint16_t(*p << 8));
    uint16_t bits = uint16_t(p[0] | p[1] << 8);
    return type == BF16_TYPE ? bf16_float(bits) : half_float(bits);
}
static int bytes_of(Narrow type)
{
    return type == BF16_TYPE || type == F16_TYPE ? 2 : 1;
}

/* ------------------------------------------------------------------------------------------------
 * Computing. */

/* A chunk of 0xFF bytes may be one that a copy under way is going to fill. */
static void check_arrived(uint32_t at, const char *p, const LateProduct &l)
{
    static const std::vector<char> empty(16, char(0xFF));
    if (memcmp(p, empty.data(), 16))
        return;
    for (const Load &load : async().loads)
        if (at >= load.to && at < load.to + box_bytes(load.map))
            block_error(self(),
                        "the product of line %d reads where the tensor copy of line %d is "
                        "under way",
                        l.line, load.line);
}

/* x[k * k_step + mn * mn_step] of an operand of `rows` m or n. */
static void fetch(float *x, const Operand &o, Narrow type, int rows, int k_step, int mn_step,
                  const LateProduct &l)
{
    const int bytes = bytes_of(type), in_chunk = 16 / bytes, k = 32 / bytes;
    const int mns = o.mn_major ? rows / in_chunk : rows, ks = o.mn_major ? k : k / in_chunk;
    for (int i = 0; i < mns; i++)
        for (int j = 0; j < ks; j++) {
            uint32_t at = chunk(o, uint32_t(i), uint32_t(j));
            const char *seen = shared(at, 16);
            if (!seen)
                block_error(self(), "the product of line %d reads outside of shared memory",
                            l.line);
            const char *p = proxy(at);
            if (memcmp(seen, p, 16))
                block_error(self(),
                            "the product of line %d reads what was written without "
                            "fence_proxy_async(), or before it was waited for",
                            l.line);
            check_arrived(at, p, l);
            for (int e = 0; e < in_chunk; e++) {
                int mn = o.mn_major ? i * in_chunk + e : i, kk = o.mn_major ? j : j * in_chunk + e;
                x[kk * k_step + mn * mn_step] =
                    wide(type, reinterpret_cast<const unsigned char *>(p) + e * bytes);
            }
        }
}
/* A [64][K] from the registers of 128 threads (PTX ISA, register fragments). */
static void fetch_registers(float *x, const LateProduct &l, int k)
{
    const int bytes = bytes_of(l.p.a_type), in_register = 4 / bytes;
    for (int t = 0; t < 128; t++)
        for (int r = 0; r < 4; r++) {
            int row = t / 32 * 16 + t % 32 / 4 + r % 2 * 8;
            int column = (t % 4 + r / 2 * 4) * in_register;
            const auto *p = reinterpret_cast<const unsigned char *>(&l.a[size_t(t * 4 + r)]);
            for (int e = 0; e < in_register; e++)
                x[row * k + column + e] = wide(l.p.a_type, p + e * bytes);
        }
}

/* Cut off towards zero, as sums of 8-bit products are */
static float fourteen_bits(float x)
{
    return __uint_as_float(__float_as_uint(x) & ~((1u << (24 - 14)) - 1));
}

static void compute(const LateProduct &l)
{
    const bool cut = bytes_of(l.p.a_type) == 1;
    const int n = l.p.n, k = 32 / bytes_of(l.p.a_type);
    float a[64 * 32], b[32 * 256], sum[256];
    if (l.p.a_in_registers)
        fetch_registers(a, l, k);
    else
        fetch(a, decode(l.p.a, l.p.mn_a), l.p.a_type, 64, 1, k, l);
    fetch(b, decode(l.p.b, l.p.mn_b), l.p.b_type, n, n, 1, l);
    for (int i = 0; i < 64; i++) {
        float *d = &l.d->m[size_t(i * n)];
        std::fill(sum, sum + n, 0.0f);
        for (int kk = 0; kk < k; kk++)
            for (int j = 0; j < n; j++)
                sum[j] += a[i * k + kk] * b[kk * n + j];
        for (int j = 0; j < n; j++)
            d[j] = l.p.accumulate ? d[j] + sum[j] : sum[j];
        for (int j = 0; cut && j < n; j++)
            d[j] = fourteen_bits(d[j]);
    }
}
static void compute_to(WarpGroup &g, unsigned long end)
{
    for (; g.done < end; g.done++) {
        compute(g.products.front());
        g.products.pop_front();
    }
}

/* ------------------------------------------------------------------------------------------------
 * Issuing. */

/* f(index in the matrix, index in the registers) of a thread's pairs of numbers. */
template <class F> static void each_pair(int thread, int n, F f)
{
    const int row = thread % 128 / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
    for (int j = 0; j < n / 8; j++) {
        f(row * n + 8 * j + column, 4 * j);
        f((row + 8) * n + 8 * j + column, 4 * j + 2);
    }
}
static void check_untouched(const float *d, int n, const char *when)
{
    for (int i = 0; i < n / 2; i++)
        if (__float_as_uint(d[i]) != NOTHING)
            block_error(self(), "d[%d] of a product under way was written before %s", i, when);
}

/* The thread's registers d, which this product is going to write: their matrix. */
static Flight &flight_of(AsyncThread &t, float *d, int n)
{
    for (Flight &f : t.flights)
        if (f.d == d) {
            if (f.m->n != n)
                block_error(self(), "products of different shapes under way on the same registers");
            check_untouched(d, n, "the next one");
            return f;
        }
    t.flights.push_back({d, nullptr, 0});
    return t.flights.back();
}
/* The first product of a chain takes over what is in the registers. */
static void take_over(const Product &p, Accumulator &m, float *d)
{
    if (p.accumulate)
        each_pair(self(), p.n, [&](int i, int r) {
            m.m[size_t(i)] = d[r];
            m.m[size_t(i) + 1] = d[r + 1];
        });
    for (int i = 0; i < p.n / 2; i++)
        d[i] = __uint_as_float(NOTHING);
}
static bool same(const Product &p, const Product &q)
{
    return p.a_type == q.a_type && p.b_type == q.b_type && p.n == q.n && p.mn_a == q.mn_a &&
           p.mn_b == q.mn_b && p.accumulate == q.accumulate &&
           p.a_in_registers == q.a_in_registers && p.a == q.a && p.b == q.b;
}

/* The warp group's product with the thread's next number. */
static LateProduct &next_product(WarpGroup &g, const AsyncThread &t, const Product &p, int line)
{
    if (t.issued == g.done + g.products.size()) {
        g.products.push_back({p, nullptr, {}, 0, line, block().random->below(2) == 0});
        if (p.a_in_registers)
            g.products.back().a.resize(512);
    }
    LateProduct &l = g.products[t.issued - g.done];
    if (l.line != line || !same(l.p, p))
        block_error(self(), "threads of a warp group issue different products (lines %d and %d)",
                    l.line, line);
    return l;
}

/* A from registers, copied: the compiler gives what is written later other registers. */
static void keep_registers(AsyncThread &t, LateProduct &l, const Product &p)
{
    for (const Registers &r : t.read)
        if (r.at == p.registers_at && memcmp(r.a, p.registers, sizeof r.a))
            block_error(self(), "A in registers was written since wgmma_fence()");
    t.read.push_back({p.registers_at, {}});
    memcpy(t.read.back().a, p.registers, sizeof p.registers);
    memcpy(&l.a[size_t(self() % 128 * 4)], p.registers, sizeof p.registers);
}

static void wake_waiting(Async &a, int group, unsigned long issued)
{
    for (int i = group * 128; i < group * 128 + 128; i++) {
        AsyncThread &t = a.threads[size_t(i)];
        if (t.waits_for && t.waits_for <= issued) {
            t.waits_for = 0;
            may_go(i);
        }
    }
}

void wgmma_issue(float *d, const Product &p, int line)
{
    const Unseen unseen;
    says("wgmma", line);
    Async &a = async();
    const int group = self() / 128;
    AsyncThread &t = a.threads[size_t(self())];
    if (self() % block().room / 128 * 128 + 128 > block().threads)
        block_error(self(), "a product of a warp group that is not whole");
    if (!p.a_in_registers)
        check_operand(p.a, decode(p.a, p.mn_a));
    check_operand(p.b, decode(p.b, p.mn_b));
    LateProduct &l = next_product(a.groups[size_t(group)], t, p, line);
    Flight &f = flight_of(t, d, p.n);
    if (!t.fenced && (!f.m || p.a_in_registers))
        block_error(self(), "a product without wgmma_fence() before it");
    const bool first = !f.m;
    if (!l.d)
        l.d = first ? std::make_shared<Accumulator>(
                          Accumulator{p.n, std::vector<float>(size_t(64 * p.n))})
                    : f.m;
    if (first)
        f.m = l.d;
    if (f.m != l.d)
        block_error(self(), "threads of a warp group name different accumulators");
    if (first)
        take_over(p, *l.d, d);
    if (p.a_in_registers)
        keep_registers(t, l, p);
    f.last = ++t.issued;
    if (++l.issued < 128)
        return;
    /* everything before has been issued, too */
    if (l.early)
        compute_to(a.groups[size_t(group)], f.last);
    wake_waiting(a, group, f.last);
}

/* ------------------------------------------------------------------------------------------------
 * Waiting. */

void wgmma_fence()
{
    const Unseen unseen;
    AsyncThread &t = async().threads[size_t(self())];
    t.fenced = true;
    t.read.clear();
}
void wgmma_commit()
{
    const Unseen unseen;
    AsyncThread &t = async().threads[size_t(self())];
    t.groups.push_back(t.issued);
}
/* Registers whose last product is computed get their numbers. */
static void deliver(AsyncThread &t, unsigned long end)
{
    size_t kept = 0;
    for (Flight &f : t.flights) {
        if (f.last > end) {
            t.flights[kept++] = f;
            continue;
        }
        check_untouched(f.d, f.m->n, "it was waited for");
        each_pair(self(), f.m->n, [&](int i, int r) {
            f.d[r] = f.m->m[size_t(i)];
            f.d[r + 1] = f.m->m[size_t(i) + 1];
        });
    }
    t.flights.resize(kept);
}
void wgmma_wait(unsigned groups_left)
{
    const Unseen unseen;
    Async &a = async();
    AsyncThread &t = a.threads[size_t(self())];
    WarpGroup &g = a.groups[size_t(self() / 128)];
    unsigned long end = 0;
    for (; t.groups.size() > groups_left; t.groups.pop_front())
        end = t.groups.front();
    if (!end)
        return;
    t.fenced = false;
    unsigned long issued = g.done;
    for (const LateProduct &l : g.products)
        issued += l.issued == 128;
    if (issued < end) {
        says("wgmma_wait", g.products[issued - g.done].line);
        snprintf(t.detail, sizeof t.detail, "a product that only %d of 128 threads have issued",
                 g.products[issued - g.done].issued);
        t.waits_for = end;
        stop();
        t.detail[0] = 0;
    }
    compute_to(g, std::max(end, g.done));
    deliver(t, end);
}

void products_leave(AsyncThread &t)
{
    if (!t.flights.empty())
        block_error(self(),
                    "leaves the kernel while products are under way, or were not committed");
}

} // namespace standin
