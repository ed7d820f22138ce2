/* attention_sm90_large.cuh - the gradient of attention for Hopper, of heads that are too large for
 * attention_sm90_backward.cuh: up to 128 columns and 1,408 tokens (the 1,370 of pictures of 518 in
 * patches of 14).
 *
 * All dS of such a head (148 KB at 257 tokens) and four matrices are more than shared memory holds,
 * so S and dP are made twice, in seven products, as in attention.cuh. Formulas stand there; bf16
 * and fp16. It is a candidate beside the portable kernels and used where it is faster; NOTHING HERE
 * HAS RUN ON A GPU.
 *
 * One kernel, two kinds of blocks: four in seven make dk and dv of one head after another, the
 * others dq, both in the same order, so that what one reads the other finds in the L2. The one side
 * of the head, q and dO or k and v, is in shared memory: whole, up to 640 tokens of 64 columns or
 * 272 of up to 104; beyond, a ring of tiles that are brought again for every 128 rows of the other.
 * Two warp groups go through it for 64 rows of the other side each, a pass:
 *
 *   dk and dv: rows are keys, tiles queries        dq: rows are queries, tiles keys
 *   S^T [64, N] = k q^T    dP^T = v dO^T           S [64, N] = q k^T    dP = dO v^T
 *   P^T = exp(S^T - lse)   dS^T = P^T (M dP^T - delta), likewise        16 bits
 *   dv [64, hs] += (M P)^T dO, dk += dS^T q        dq [64, hs] += dS k
 *
 * P and dS stay in registers, as the left operands they are wanted as; no sum crosses a group, and
 * all have one order: the same bits every time. N is 64, or 16 for the last rows; beyond 104
 * columns dk and dv leave registers for 32. Passes are taken in turns across heads, so that five
 * tiles of 257 rows leave no group idle; where tiles stream, both groups make theirs at once, and
 * the last may be of rows that do not exist. A tile goes when both groups have gone through it for
 * the last time, and the next one for its place comes; a group's own rows do so during the last
 * products and the results. A third group has no products: one warp of it brings the tiles, three
 * make delta of the next head.
 *
 * What else was considered. (1) A block for each 64 rows, all others streamed: 1 MB a head of 257
 * tokens from the L2, 43 bytes a cycle and multiprocessor beside products at their peak; it has
 * about 35. Here it is 0.6 MB, and half as much a cycle where 128 rows share what streams. (2) Both
 * results in one block, in turns: each head once, but no tile of the one while the other is made,
 * and at 104 columns more registers than there are. (3) The fifth tile, of one row, costs what a
 * whole one does, a fifth of the products. mma.sync could make it of 16 rows in half of that; it
 * would be a second set of kernels.
 *
 * Predicted for 257 tokens of 80 columns (H/14), cycles a head: products, 5 * 64 * 272 * (4 + 3) *
 * 80 multiplications at 2,048 a cycle, 23,800. Beside them run 10,900 of exponentials and about
 * 15,000 of instructions (380 a warp and tile of keys, as compiled). At 85% of the products' peak
 * (a guess: two groups, each of which alone keeps the tensor cores busy two thirds of its time),
 * and 2,000 in each kind of block where one head follows the other (a group waits for the first
 * tile, which the other group still needs): 32,000. Bytes: 329 KB, 17,700 at 4.3 TB/s. At 1.75 GHz
 * on 132 multiprocessors that is 71 us an image; g/14, 36,400 cycles, 101 us; G/14, 42,000, 140 us.
 *
 * Read: shared memory, who does what, the third group, a tile, a pass, the kernel, the host's part.
 */
#pragma once

#include "cuda/attention_sm90_backward.cuh"

/* Rows come in tiles of 64, of which 17 and more count as all, or of 16, the last ones. */
constexpr int whole_tiles(int rows)
{
    return (rows + 47) / 64;
}
constexpr int all_tiles(int rows)
{
    return (rows + 63) / 64;
}
constexpr int tiled_rows(int rows)
{
    return 64 * whole_tiles(rows) + (all_tiles(rows) > whole_tiles(rows) ? 16 : 0);
}

/* Of [B, rows, heads, hs], rows of an image: beyond the last and beyond hs, zeros come in and
 * nothing goes out. */
struct Large90Maps {
    struct Rows {
        CUtensorMap whole, few;  /* boxes of 64 rows, of 16 */
    } keys, queries, dout;       /* in. `keys` has T rows, the others Tq */
    CUtensorMap dkeys, dqueries; /* out: 16 rows */
};

/* ------------------------------------------------------------------------------------------------
 * Shared memory. A pair is the same rows of two matrices: k and v, or q and dO; of each its slabs
 * of 64 columns, of each the rows, 128 bytes. */

template <int COLUMNS, bool RING> struct Large90 {
    static constexpr int D = COLUMNS, SLABS = (D + 63) / 64;
    static constexpr bool STREAMS = RING;
    static constexpr int MATRIX = SLABS * SLAB, PAIR = 2 * MATRIX; /* bytes */
    /* most of a head; tiles that there is room for, where they stay the last one of 16 rows */
    static constexpr int ROWS = STREAMS ? 1408 : SLABS == 1 ? 640 : 272;
    static constexpr int TILES = !STREAMS ? all_tiles(ROWS) : SLABS == 1 ? 8 : 3;
    static constexpr int QUERIES = D > 104 ? 32 : 64; /* at a time: dk and dv take registers */
    static constexpr int ROOM = STREAMS ? TILES * PAIR : ROWS / 16 * (PAIR / 4);
    static constexpr int OWN = 2; /* matrices of its own rows that a group needs */
    static constexpr int GROUPS = 2, READERS = GROUPS * SM90_GROUP, THREADS = READERS + SM90_GROUP;
    static constexpr int LANES = SLABS == 1 ? 8 : 16; /* that read a row for its delta */
    static constexpr int STATS = SM90_GROUP - 32;     /* threads that do */
    static constexpr int KEEP = 64 * 9 + 8;

    unsigned char *tiles;        /* of the side that is gone through: pairs of PAIR bytes */
    unsigned char *own;          /* [GROUPS] pairs */
    unsigned char *strips;       /* [8 warps]: 16 rows of a slab, on their way out */
    float *stats, *sums;         /* [2 heads][2: lse, delta][ROWS]; [GROUPS][2][4 warps][64] */
    uint64_t *full, *empty;      /* [TILES] */
    uint64_t *known, *forgotten; /* [2]: stats */
    uint64_t *own_there;         /* [GROUPS] */
    float *most;                 /* of dqkv in 8 bits, so far */
    uint8_t *keep;               /* [GROUPS] of KEEP bytes */

    __device__ inline Large90()
    {
        tiles = dynamic_tiles<unsigned char>();
        own = tiles + ROOM;
        strips = own + GROUPS * PAIR;
        stats = (float *)(strips + READERS / 32 * 16 * SLAB_ROW);
        sums = stats + 4 * ROWS;
        full = (uint64_t *)(sums + GROUPS * 2 * 4 * 64);
        empty = full + TILES;
        known = empty + TILES;
        forgotten = known + 2;
        own_there = forgotten + 2;
        most = (float *)(own_there + GROUPS);
        keep = (uint8_t *)(most + 1);
    }
    __device__ inline float *lse(int n) const { return stats + n % 2 * 2 * ROWS; }
    __device__ inline float *delta(int n) const { return lse(n) + ROWS; }
    static constexpr size_t BYTES = ROOM + GROUPS * PAIR + READERS / 32 * 16 * SLAB_ROW +
                                    4 * ROWS * sizeof(float) + GROUPS * 2 * 4 * 64 * sizeof(float) +
                                    (2 * TILES + 4 + GROUPS) * sizeof(uint64_t) + sizeof(float) +
                                    GROUPS * KEEP;
    static_assert(BYTES <= 227 * 1024, "more than a block can have");
};

/* ------------------------------------------------------------------------------------------------
 * Who does what. A block makes dk and dv of one head after another (KEYS), or dq; the first
 * `key_blocks` do the former. A pass is a tile of its 64 keys, or queries: pass `number` of a block
 * is one group's, the next the other's, from one head to the next without a break. */

struct Large90Args : Backward90Args {
    int key_blocks;
};

template <class At, bool KEYS> struct Pass90 {
    int n, tile, b, h; /* tile of the block's n-th head, which is h of image b */
    bool exists;

    __device__ inline Pass90(const Large90Args &a, int number)
        : Pass90(a, number / passes(a), number % passes(a))
    {
    }
    __device__ inline Pass90(const Large90Args &a, int n, int tile) : n(n), tile(tile)
    {
        const int block = KEYS ? blockIdx.x : blockIdx.x - a.key_blocks;
        const int head = block + n * (KEYS ? a.key_blocks : gridDim.x - a.key_blocks);
        exists = head < a.B * a.heads;
        b = head / a.heads;
        h = head % a.heads;
    }
    static __device__ inline int rows(const Large90Args &a) { return KEYS ? a.T : a.Tq; }
    static __device__ inline int others(const Large90Args &a) { return KEYS ? a.Tq : a.T; }
    /* Where tiles stream, all groups go through them in each round: the last may have no rows. */
    static __device__ inline int passes(const Large90Args &a)
    {
        constexpr int ROWS = 64 * At::GROUPS;
        return At::STREAMS ? (rows(a) + ROWS - 1) / ROWS * At::GROUPS : all_tiles(rows(a));
    }
};

/* Where a tile of the other side is. They come in rounds: a head, whose tiles stay for all passes,
 * or a pass of each group, in a ring. full's and empty's phases are counted from 0. */
template <class At, bool KEYS> struct Slot90 {
    int slot, phase;

    __device__ inline Slot90(const Large90Args &a, int number, int tile)
    {
        using Pass = Pass90<At, KEYS>;
        const int count = number / At::GROUPS * all_tiles(Pass::others(a)) + tile;
        slot = At::STREAMS ? count % At::TILES : tile;
        phase = At::STREAMS ? count / At::TILES : number / Pass::passes(a);
    }
};

/* N rows of keys or of queries: of their first matrix, or of both */
template <class At, int N, bool KEYS, int MATRICES = 2>
__device__ inline void fetch_rows(unsigned char *to, uint64_t *there, const Large90Maps &maps,
                                  int heads, int b, int h, int row)
{
    constexpr int ROWS = N * SLAB_ROW, SLABS = At::SLABS;
    const Large90Maps::Rows &first = KEYS ? maps.keys : maps.queries;
    const Large90Maps::Rows &second = KEYS ? maps.keys : maps.dout;
    mbarrier_arrive_expect(there, MATRICES * SLABS * ROWS);
    each<MATRICES * SLABS>([&](int i) {
        const Large90Maps::Rows &from = i < SLABS ? first : second;
        tma_load_4d(to + i * ROWS, N == 64 ? &from.whole : &from.few, there, i % SLABS * 64,
                    KEYS ? (i < SLABS ? heads : 2 * heads) + h : h, row, b);
    });
}
/* The 64 rows of its own that the calling thread's group needs for a pass */
template <class At, bool KEYS>
__device__ inline void fetch_own(const At &at, const Large90Maps &maps, const Large90Args &a,
                                 int number)
{
    const int group = threadIdx.x / SM90_GROUP - 1;
    const Pass90<At, KEYS> pass(a, number);
    if (pass.exists)
        fetch_rows<At, 64, KEYS, At::OWN>(at.own + group * At::OWN * At::MATRIX,
                                          at.own_there + group, maps, a.heads, pass.b, pass.h,
                                          64 * pass.tile);
}

/* ------------------------------------------------------------------------------------------------
 * The first group's warps: one brings the other side's tiles, three make delta of the next head. */

template <class At, bool KEYS>
__device__ inline void bring_tiles(const At &at, const Large90Maps &maps, const Large90Args &a)
{
    using Pass = Pass90<At, KEYS>;
    const int rows = Pass::others(a), round = At::STREAMS ? At::GROUPS : Pass::passes(a);
    for (int number = 0; Pass(a, number).exists; number += round) {
        const Pass pass(a, number);
        for (int i = 0; i < all_tiles(rows); i++) {
            const Slot90<At, KEYS> in(a, number, i);
            unsigned char *to = at.tiles + in.slot * At::PAIR;
            uint64_t *full = at.full + in.slot;
            mbarrier_wait(at.empty + in.slot, in.phase % 2 ^ 1);
            if (i < whole_tiles(rows))
                fetch_rows<At, 64, !KEYS>(to, full, maps, a.heads, pass.b, pass.h, 64 * i);
            else
                fetch_rows<At, 16, !KEYS>(to, full, maps, a.heads, pass.b, pass.h, 64 * i);
        }
    }
}
/* lse to base 2, and delta = rowsum(dO * O), of `rows` queries. LANES lanes have a row, and a
 * thread asks for the packs of EACH rows at once. Zero for queries that do not exist: their q and
 * dO are zero too, and what they add. */
template <class E, int LANES, int EACH>
__device__ inline void stats_of_rows(float *lse, float *delta, int rows, const Large90Args &a,
                                     int b, int h, int thread, int threads)
{
    const int step = threads / LANES, c = thread % LANES * 8;
    const E *dout = (const E *)a.dout + (long)b * a.Tq * a.ld_dout + h * a.hs + c;
    const E *out = (const E *)a.out + (long)b * a.Tq * a.ld_out + h * a.hs + c;
    const float *log_sums = a.lse + ((long)b * a.heads + h) * a.Tq;
#pragma unroll 1
    for (int row = thread; row < rows; row += threads)
        lse[row] = row < a.Tq ? log_sums[row] * LOG2E : 0;
    for (int from = 0; from < rows; from += EACH * step) {
        uint4 x[EACH] = {}, y[EACH] = {};
        each<EACH>([&](int i) {
            const int row = from + i * step + thread / LANES;
            if (row < a.Tq && c < a.hs) {
                x[i] = *(const uint4 *)(dout + row * (int)a.ld_dout);
                y[i] = *(const uint4 *)(out + row * (int)a.ld_out);
            }
        });
        each<EACH>([&](int i) {
            const int row = from + i * step + thread / LANES;
            float sum = pack_dot<E>(x[i], y[i]);
            for (int d = 1; d < LANES; d *= 2)
                sum += __shfl_xor_sync(0xffffffffu, sum, d);
            if (c == 0 && row < rows)
                delta[row] = sum;
        });
    }
}
/* Those of the first head are there already. */
template <class E, class At, bool KEYS>
__device__ inline void bring_stats(const At &at, const Large90Args &a, int thread)
{
    mbarrier_arrive(at.known);
    for (int n = 1; Pass90<At, KEYS>(a, n, 0).exists; n++) {
        const Pass90<At, KEYS> pass(a, n, 0);
        mbarrier_wait(at.forgotten + n % 2, n / 2 % 2 ^ 1);
        stats_of_rows<E, At::LANES, 2>(at.lse(n), at.delta(n), tiled_rows(a.Tq), a, pass.b, pass.h,
                                       thread, At::STATS);
        mbarrier_arrive(at.known + n % 2);
    }
}

/* ------------------------------------------------------------------------------------------------
 * A tile */

/* A tile's dropout mask in shared memory, by the threads that use it: of each query the bits of
 * KEYS keys, which begin in a block of Philox */
template <int KEYS> struct KeepTile90 {
    static constexpr int BYTES = (KEYS + 10) / 8;
    uint8_t *bytes;
    uint64_t first; /* element of the first query and key */
    int T;

    __device__ inline KeepTile90(uint8_t *bytes, const Mask &m, int h, int T, int query, int key)
        : bytes(bytes), first((((uint64_t)m.first + h) * T + query) * T + key), T(T)
    {
    }
    __device__ inline void make(const Mask &m, const StepState *state, int b, int queries,
                                int thread) const
    {
        for (int i = thread; i < queries * BYTES; i += SM90_GROUP) {
            const uint64_t element = first + (uint64_t)(i / BYTES) * T;
            bytes[i] = (uint8_t)kept_8(m, state, (uint32_t)(element / 4) + i % BYTES * 2, b);
        }
    }
    /* Bit i, up to 8: whether (query, key + i) of the tile is kept */
    __device__ inline uint32_t from(int query, int key) const
    {
        const uint32_t at = ((uint32_t)first + (uint32_t)query * T) % 4 + key;
        const uint8_t *two = bytes + query * BYTES + at / 8;
        return (two[0] | (uint32_t)two[1] << 8) >> at % 8;
    }
};

/* What a thread knows during a pass. lse and delta: of dq, those of the thread's two queries */
struct Rows90 {
    int number; /* of the pass */
    bool last;  /* of the group's passes of this head */
    float lse[2], delta[2];
};
__device__ inline int my_group() /* as a number that its threads share, by a way that says so */
{
    return __shfl_sync(0xffffffffu, anew(threadIdx.x) / SM90_GROUP, 0) - 1;
}
__device__ inline int my_thread()
{
    return anew(threadIdx.x) % SM90_GROUP;
}

/* Bit 4j + e of a tile of N columns: whether its element is kept */
template <class At, bool KEYS, int N>
__device__ inline uint32_t tile_kept(const At &at, const Large90Args &a, int number, int column)
{
    const int group = my_group(), thread = my_thread();
    const Pass90<At, KEYS> pass(a, anew(number));
    const int own = 64 * pass.tile, row = thread / 32 * 16 + thread % 32 / 4, t = thread % 4 * 2;
    const KeepTile90<KEYS ? 64 : N> keep(at.keep + group * At::KEEP, a.mask, pass.h, a.T,
                                         KEYS ? column : own, KEYS ? own : column);
    uint32_t kept = 0;
    keep.make(a.mask, a.state, pass.b, KEYS ? N : 64, thread);
    named_barrier_sync(1 + group, SM90_GROUP);
    if constexpr (KEYS)
        kept = kept_of<N>(keep, t, row);
    else
        each<N / 4>(
            [&](int i) { kept |= (keep.from(row + i % 2 * 8, i / 2 * 8 + t) & 3) << 2 * i; });
    named_barrier_sync(1 + group, SM90_GROUP);
    return kept;
}

/* N rows of a tile of the other side, which has TILE of them, and begins with `from`. KEYS: rows of
 * S are keys, columns queries; else the other way round. Sums go on: the last products are under
 * way at the end, and those of the call before done with after the first wait: where the group goes
 * through the tiles for the last time, others may come. sums: dk and dv, or dq */
template <class E, class At, bool KEYS, int TILE, int N>
__device__ inline void tile_90(float (&sums)[1 + KEYS][At::D / 2], const At &at,
                               const Large90Args &a, const Rows90 &my, int tile, int from)
{
    constexpr int ROWS = TILE * SLAB_ROW;
    const int n = Pass90<At, KEYS>(a, my.number).n;
    const Slot90<At, KEYS> in(a, my.number, tile);
    const uint64_t left = wgmma_operand(at.own + my_group() * At::PAIR, SWIZZLE_128, 8 * SLAB_ROW);
    const uint64_t first = wgmma_operand(at.tiles + in.slot * At::PAIR + from * SLAB_ROW,
                                         SWIZZLE_128, 8 * SLAB_ROW, ROWS);
    const uint64_t second = wgmma_advance(first, At::SLABS * ROWS);
    float s[N / 2], dp[N / 2];
    uint32_t p[N / 16][4], ds[N / 16][4], kept = ~0u;

    if (a.mask.keep) /* it takes more registers than are left while products are made */
        kept = tile_kept<At, KEYS, N>(at, a, my.number, 64 * tile + from);
    mbarrier_wait(at.full + in.slot, in.phase % 2);
    wgmma_fence(s, dp);
    each<(At::D + 15) / 16>([&](int c) {
        wgmma<E, E>(s, wgmma_advance(left, c / 4 * SLAB + c % 4 * 32),
                    wgmma_advance(first, c / 4 * ROWS + c % 4 * 32), c > 0);
    });
    wgmma_commit();
    each<(At::D + 15) / 16>([&](int c) {
        wgmma<E, E>(dp, wgmma_advance(left, At::MATRIX + c / 4 * SLAB + c % 4 * 32),
                    wgmma_advance(second, c / 4 * ROWS + c % 4 * 32), c > 0);
    });
    wgmma_commit();
    wgmma_wait<1>(s);
    const int lane = threadIdx.x % 32, column = 64 * tile + from + lane % 4 * 2;
    if (my.last && tile > 0 && from == 0 && lane == 0)
        mbarrier_arrive(at.empty + Slot90<At, KEYS>(a, my.number, tile - 1).slot);

    /* a thread's rows are g and g + 8, its columns 8j + 2t and the next */
    each<N / 8>([&](int j) {
        float lse[2];
        if (KEYS)
            load(lse, at.lse(n) + column + 8 * j);
        each<4>([&](int e) {
            float &x = s[4 * j + e];
            x = ex2_approx(fmaf(x, a.scale2, -(KEYS ? lse[e % 2] : my.lse[e / 2])));
        });
        if (KEYS)
            each<2>([&](int r) {
                p[j / 2][j % 2 * 2 + r] = pack<E>(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]);
            });
    });
    if constexpr (KEYS) {
        if (a.mask.keep) {
            kept = anew(kept); /* a branch: not done without */
            each<N / 4>([&](int i) { p[i / 4][i % 4] &= both_halves(kept >> 2 * i); });
        }
        wgmma_fence(sums[1]);
        each<N / 16>([&](int c) {
            wgmma<E, E, false, true>(sums[1], p[c], wgmma_advance(second, 16 * c * SLAB_ROW), true);
        });
        wgmma_commit();
        wgmma_wait<1>(dp);
    } else {
        if (64 * tile + from + N > a.T) /* keys that do not exist */
            each<N / 2>([&](int i) { s[i] = column + i / 4 * 8 + i % 2 < a.T ? s[i] : 0; });
        wgmma_pin(s); /* while dP is made */
        wgmma_wait<0>(dp);
    }
    if (a.mask.keep) {
        kept = anew(kept);
        each<N / 2>([&](int i) { dp[i] = kept >> i & 1 ? dp[i] * a.mask.scale : 0; });
    }
    each<N / 8>([&](int j) {
        float delta[2];
        if (KEYS)
            load(delta, at.delta(n) + column + 8 * j);
        each<4>([&](int e) {
            float &x = dp[4 * j + e];
            x = s[4 * j + e] * (x - (KEYS ? delta[e % 2] : my.delta[e / 2]));
        });
        each<2>([&](int r) {
            ds[j / 2][j % 2 * 2 + r] = pack<E>(dp[4 * j + 2 * r], dp[4 * j + 2 * r + 1]);
        });
    });
    wgmma_fence(sums[0]);
    each<N / 16>([&](int c) {
        wgmma<E, E, false, true>(sums[0], ds[c], wgmma_advance(first, 16 * c * SLAB_ROW), true);
    });
    wgmma_commit();
    if constexpr (KEYS) /* its registers are needed: P of the next tile */
        wgmma_wait<1>(sums[1]);
}

/* ------------------------------------------------------------------------------------------------
 * A pass */

/* The group's 64 rows of a result, and their column sums. `heads`: before those of this result in a
 * row; which: of the pass's results */
template <class E, bool EIGHT, class At, bool KEYS>
__device__ inline void put_result(const At &at, const float (&x)[At::D / 2], float factor,
                                  const CUtensorMap *map, int heads, const Pass90<At, KEYS> &pass,
                                  const Large90Args &a, int which, float *sums)
{
    constexpr int SLABS = At::SLABS;
    const int group = my_group(), thread = my_thread(), warp = thread / 32, lane = thread % 32;
    const int first = 64 * pass.tile + 16 * warp, rows = Pass90<At, KEYS>::rows(a);
    unsigned char *strip = at.strips + (4 * group + warp) * 16 * SLAB_ROW;
    each<SLABS>([&](int s) {
        /* room is used in turns: who writes it has met those that read it before */
        float *room = at.sums + (2 * group + (which * SLABS + s) % 2) * 4 * 64;
        float2 sum = {};
        if (first < rows)
            put_rows<E, EIGHT>(sum, at.most, strip, x, factor,
                               {map, s, heads + pass.h, first, rows, pass.b}, a, lane);
        if (!sums)
            return;
        *(float2 *)(room + warp * 64 + 2 * lane) = sum;
        named_barrier_sync(1 + group, SM90_GROUP);
        const int c = 64 * s + thread;
        if (thread < 64 && c < a.hs)
            sums[pass.h * a.hs + c] =
                room[thread] + room[64 + thread] + room[128 + thread] + room[192 + thread];
    });
}

template <class E, bool EIGHT, class At, bool KEYS>
__device__ inline void pass_90(const At &at, const Large90Maps &maps, const Large90Args &a,
                               int number)
{
    using Pass = Pass90<At, KEYS>;
    const int whole = whole_tiles(Pass::others(a)), all = all_tiles(Pass::others(a));
    float sums[1 + KEYS][At::D / 2] = {};
    Rows90 my = {
        number, At::STREAMS || Pass(a, number).tile + At::GROUPS >= Pass::passes(a), {}, {}};
    if (!KEYS)
        each<2>([&](int r) {
            const Pass pass(a, number);
            const int row = 64 * pass.tile + my_thread() / 32 * 16 + my_thread() % 32 / 4 + 8 * r;
            my.lse[r] = row < a.Tq ? at.lse(pass.n)[row] : 0;
            my.delta[r] = row < a.Tq ? at.delta(pass.n)[row] : 0;
        });
    constexpr int STEP = KEYS ? At::QUERIES : 64;
    for (int i = 0; i < whole; i++)
#pragma unroll 1
        for (int from = 0; from < 64; from += STEP)
            tile_90<E, At, KEYS, 64, STEP>(sums, at, a, my, i, from);
    if (all > whole)
        tile_90<E, At, KEYS, 16, 16>(sums, at, a, my, whole, 0);

    /* products with the rows of its own are done: the next ones arrive during the rest */
    named_barrier_sync(1 + my_group(), SM90_GROUP);
    if (my_thread() == 0)
        fetch_own<At, KEYS>(at, maps, a, anew(number) + At::GROUPS);
    if constexpr (KEYS)
        wgmma_wait<0>(sums[0], sums[1]);
    else
        wgmma_wait<0>(sums[0]);
    if (my.last && my_thread() % 32 == 0)
        mbarrier_arrive(at.empty + Slot90<At, KEYS>(a, anew(number), all - 1).slot);

    const Pass pass(a, anew(number));
    const int tiles = all_tiles(Pass::rows(a));
    const long C = a.heads * a.hs, place = (long)pass.b * tiles + pass.tile;
    const bool adds = a.sums && pass.tile < tiles;
    if constexpr (KEYS) {
        float *to = adds ? a.sums + ((long)a.B * all_tiles(a.Tq) + 2 * place) * C : NULL;
        put_result<E, EIGHT, At>(at, sums[1], a.mask.scale, &maps.dkeys, 2 * a.heads, pass, a, 0,
                                 to ? to + C : NULL);
        put_result<E, EIGHT, At>(at, sums[0], a.scale, &maps.dkeys, a.heads, pass, a, 1, to);
    } else {
        put_result<E, EIGHT, At>(at, sums[0], a.scale, &maps.dqueries, 0, pass, a, 0,
                                 adds ? a.sums + place * C : NULL);
    }
}

/* A group's passes of all of the block's heads: known(n) before those of its n-th, pass(number),
 * forgotten(n) behind them. */
template <class At, bool KEYS, class Known, class One, class Forgotten>
__device__ inline void each_pass(const At &at, const Large90Maps &maps, const Large90Args &a,
                                 Known known, One pass, Forgotten forgotten)
{
    using Pass = Pass90<At, KEYS>;
    const int group = my_group(), lane = threadIdx.x % 32;
    int number = group, own_parity = 0;
    if (my_thread() == 0)
        fetch_own<At, KEYS>(at, maps, a, group);
    for (int n = 0; Pass(a, n, 0).exists; n++) {
        bool passed = false;
        known(n);
        for (; number < (n + 1) * Pass::passes(a); number += At::GROUPS) {
            mbarrier_wait(at.own_there + group, own_parity);
            pass(number);
            own_parity ^= 1;
            passed = true;
        }
        __syncwarp(); /* one lane arrives for all, which have all waited */
        forgotten(n);
        /* tiles that stay: it had no pass of this head, and is done with them */
        for (int i = 0; !passed && i < all_tiles(Pass::others(a)); i++) {
            mbarrier_wait(at.full + i, n % 2);
            __syncwarp();
            if (lane == 0)
                mbarrier_arrive(at.empty + i);
        }
    }
    if (lane == 0)
        tma_store_read_wait<0>();
}

/* ------------------------------------------------------------------------------------------------
 * A block's work */

template <class E, bool EIGHT, class At, bool KEYS>
__device__ inline void backward_large90(const Large90Maps &maps, const Large90Args &a)
{
    const At at;
    const int group = (int)threadIdx.x / SM90_GROUP - 1, thread = threadIdx.x % SM90_GROUP;
    if (EIGHT)
        begin_eight(a.eight, at.most);
    if (threadIdx.x == 0) {
        for (int i = 0; i < At::TILES; i++) {
            mbarrier_init(at.full + i, 1);
            mbarrier_init(at.empty + i, At::READERS / 32);
        }
        for (int i = 0; i < 2; i++) {
            mbarrier_init(at.known + i, At::STATS);
            mbarrier_init(at.forgotten + i, At::READERS / 32);
            mbarrier_init(at.own_there + i, 1);
        }
        mbarrier_init_fence();
    }
    const Pass90<At, KEYS> first(a, 0);
    stats_of_rows<E, At::LANES, 4>(at.lse(0), at.delta(0), tiled_rows(a.Tq), a, first.b, first.h,
                                   threadIdx.x, At::THREADS);
    __syncthreads();
    if (group < 0) {
        registers_release<40>();
        if (thread == 0)
            bring_tiles<At, KEYS>(at, maps, a);
        else if (thread >= 32)
            bring_stats<E, At, KEYS>(at, a, thread - 32);
    } else {
        registers_take<232>();
        each_pass<At, KEYS>(
            at, maps, a, [&](int n) { mbarrier_wait(at.known + n % 2, n / 2 % 2); },
            [&](int number) { pass_90<E, EIGHT, At, KEYS>(at, maps, a, number); },
            [&](int n) {
                if (threadIdx.x % 32 == 0)
                    mbarrier_arrive(at.forgotten + n % 2);
            });
    }
}
/* Grid: a block for each multiprocessor. */
template <class E, bool EIGHT, class At>
__global__ void __launch_bounds__(HAS_SM90 ? At::THREADS : 32, 1)
    attention_sm90_large_kernel(const __grid_constant__ Large90Maps maps,
                                const __grid_constant__ Large90Args a)
{
    launched_within<At::THREADS>();
    if constexpr (HAS_SM90) {
        if ((int)blockIdx.x < a.key_blocks)
            backward_large90<E, EIGHT, At, true>(maps, a);
        else
            backward_large90<E, EIGHT, At, false>(maps, a);
    }
}

/* ------------------------------------------------------------------------------------------------
 * Host */

template <class T> struct Kind {
    using type = T;
};
/* f(Kind<Large90<...>>()) of the kernel for such heads; false: there is none. */
template <class F> static bool by_large90(int hs, int T, F f)
{
    auto of_width = [&](auto d) {
        if (T <= Large90<d, false>::ROWS)
            f(Kind<Large90<d, false>>());
        else
            f(Kind<Large90<d, true>>());
    };
    if (hs > 128 || T > Large90<128, true>::ROWS)
        return false;
    if (hs <= 64)
        of_width(Width<64>());
    else if (hs <= 80)
        of_width(Width<80>());
    else if (hs <= 88)
        of_width(Width<88>());
    else if (hs <= 104)
        of_width(Width<104>());
    else
        f(Kind<Large90<128, true>>()); /* tiles that stay would spill a register */
    return true;
}

static bool large90_takes(const Attention *a)
{
    bool fits = false;
    if (!sm90_here() || a->qkv.type == F32 || a->hs % 8 != 0)
        return false;
    if (!wide_rows(a->qkv) || !wide_rows(a->out) || !wide_rows(a->dqkv) || !wide_rows(a->dout))
        return false;
    by_large90(a->hs, a->T,
               [&](auto kind) { fits = decltype(kind)::type::BYTES <= (size_t)cu.smem; });
    return fits;
}
template <class E, bool EIGHT, class At> static void large90_launch(const Attention *a)
{
    const int H = a->heads, T = a->T, Tq = a->Tq, C = H * a->hs;
    auto rows = [&](const Tensor &t, int heads, int rows, int all) {
        return Large90Maps::Rows{heads_of_images<E>(a, t, heads, rows, all, 64),
                                 heads_of_images<E>(a, t, heads, rows, all, 16)};
    };
    const Large90Maps maps = {
        rows(a->qkv, 3 * H, T, T),
        rows(a->qkv, 3 * H, Tq, T),
        rows(a->dout, H, Tq, Tq),
        heads_of_images<E>(a, a->dqkv, 3 * H, T, T, 16),
        heads_of_images<E>(a, a->dqkv, 3 * H, Tq, T, 16),
    };
    const size_t q_rows = (size_t)a->B * all_tiles(Tq), kv_rows = (size_t)a->B * all_tiles(T);
    float *sums = a->dbias ? scratch_floats((q_rows + 2 * kv_rows) * C) : NULL;
    /* Four products to three. Each has a head at least. */
    const int most = std::max(cu.gpu.multiProcessorCount, 2), heads = a->B * H;
    const int key_blocks = std::min((4 * most + 3) / 7, heads);
    const int blocks = key_blocks + std::min(most - key_blocks, heads);
    const Large90Args args = {backward90_args(a, sums), key_blocks};
    launch(attention_sm90_large_kernel<E, EIGHT, At>, (unsigned)blocks, At::THREADS, At::BYTES,
           cu.stream, maps, args);
    if (sums)
        launch(attention_dbias_kernel, dim3(ceil_div(3L * C, 32)), dim3(1024),
               32 * 33 * sizeof(float), cu.stream, ptr<float>(a->dbias), (const float *)sums,
               (int)q_rows, (const float *)sums + q_rows * C, (int)kv_rows, C);
}
static void large90(const Attention *a)
{
    by_large90(a->hs, a->T, [&](auto kind) {
        using At = typename decltype(kind)::type;
        by_gradient(a, [&](auto e, auto eight) { large90_launch<decltype(e), eight != 0, At>(a); });
    });
}

/* What the two are compared by has no rows that nobody writes: where queries are fewer, it is the
 * gradient of keys and values. */
static bool backward_is_ours(const Attention *a, bool small)
{
    const Instead ours = [&] { small ? backward90(a) : large90(a); };
    const Instead portable = [&] { attention_backward(a); };
    const long C = (long)a->heads * a->hs, from = a->Tq < a->T ? C : 0;
    Tensor written = a->dqkv;
    written.p = (dev *)((char *)written.p + from * type_size(written.type));
    char more[64];
    snprintf(more, sizeof more, ",%ld,%ld%s", a->dqkv.ld, a->dout.ld, a->dbias ? " sums" : "");
    return (small || large90_takes(a)) &&
           own_is_faster(attention_key("attention backward", a, more), written, (long)a->B * a->T,
                         3 * C - from, ours, portable);
}

/* A dqkv in 8 bits: ours write its copy by rows, which is turned behind them. The portable kernels
 * leave bf16 in the scratch memory, where the two are compared too, and both copies are cast. */
static void cuda_attention_backward(const Attention *a)
{
    const bool eight = is_fp8(a->dqkv.type);
    const long rows = (long)a->B * a->T, n = 3L * a->heads * a->hs;
    Attention half = *a;
    Fp8Cast copies = {};
    if (eight && a->Tq < a->T)
        die("this is a mistake in vit.c", "a dqkv of 8 bits of which not all is written");
    if (eight) {
        cu.copies = 0;
        copies = fp8_copies_of(a->dqkv, rows, n);
        half.dqkv = {(dev *)fp8_room((size_t)(rows * n) * sizeof(bf16)), n, BF16, NULL};
    }
    const bool small = backward90_takes(&half);
    if (backward_is_ours(&half, small)) {
        small ? backward90(a) : large90(a);
        if (eight)
            turn(copies);
    } else {
        attention_backward(&half);
        if (eight)
            cast<__NV_E5M2>(copies, Stored{half.dqkv});
    }
}
