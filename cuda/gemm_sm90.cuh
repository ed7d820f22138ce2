/* gemm_sm90.cuh - matrix products of our own for Hopper, with the ends that cuBLASLt lacks there.
 *
 * A product is D [M,N] = A [M,K] B [K,N], sums in float, of bf16, fp16, or 8-bit numbers and their
 * scales. What may follow it in the same kernel, while the sums are in registers:
 *
 *   PLAIN   D = A B + bias + addend
 *   ACT     pre = A B + bias, D = act(pre), of pre as it is rounded: what `activate` makes again
 *   SLOPE   D = (A B) act'(pre), and the column sums of D, which are a bias gradient
 *   SUM     D = A B in float, with the sum over K cut into parts that are added in order
 *
 * These save passes over memory: on B/16 GELU after the product costs 7.5 us an image and its slope
 * 11 (estimates, as all times here are: NOTHING IN THIS FILE HAS RUN ON A GPU). It is one more
 * candidate in the timing of gemm.cuh, and is used only where it is faster. Of 8-bit numbers, ACT
 * and SLOPE leave D in 8 bits, too: by rows and transposed, as the next product and the weight
 * gradient read it (fp8.cuh).
 *
 * How it works. A block stays on its multiprocessor and takes one unit of work after another. Its
 * three warp groups divide the labour. One thread of the first, the producer, fetches: it asks the
 * copy engine (TMA) for 64 terms of A and B at a time (128 of 8 bits: the same bytes), into a ring
 * of stages in shared memory. The other two groups consume: their products (wgmma) read the stages
 * where they lie and keep the sums in registers, 128 in each thread. Barriers in shared memory are
 * all they say to each other:
 *
 *   full    the copy engine has written all bytes of the stage       producers -> consumers
 *   empty   every warp that reads it has done so                     consumers -> producers
 *   turn    the other group has begun its last product (ping-pong)   consumer -> consumer
 *
 * There are two ways to share tiles between the consumers:
 *
 *   together    both work on one tile of 128x256, 64 rows each. It needs the fewest bytes from the
 *               L2: 48 KiB for 1,024 cycles of products. What follows a product waits for its end.
 *   ping-pong   each works on a tile of 128x128 of its own, in turns: while one multiplies, the
 *               other does what follows. It needs a third more bytes (32 KiB for 512 cycles), and
 *               pays where what follows takes long: 17 instructions an element with GELU, 23
 *               with its slope and the sums, 8 without; GELU in 8 bits takes 25.
 *
 * Both ways may be taken in pairs. Two blocks on neighbouring multiprocessors (a cluster) take
 * tiles one below the other, which have the columns of B in common: each fetches its own A and half
 * of B, and the copy engine writes that half to both. A tile then needs 32 KiB from the L2 instead
 * of 48, or 24 instead of 32. The price is that the two go in step: a stage is empty when the
 * readers of both blocks have said so to both. Where rows of tiles are odd, one block of the last
 * pair multiplies zeros.
 *
 * Sums of 8-bit products are kept to about 14 bits in the tensor cores. That does in the forward
 * pass, as the library is told, too. What comes back is added to sums in ordinary registers after
 * every 128 terms, by which the consumers, together, have two sets of sums. So the tile is one of
 * 128x192, whose sets take 192 registers of a thread (two of 256 columns would take all 255), and
 * 40 KiB for 768 cycles; 128x128 would need as much from the L2 as ping-pong does. While one group
 * adds, 96 instructions, the other multiplies. What follows, 33 instructions an element with GELU's
 * slope, sums and both copies in 8 bits, has the next tile's bytes beside it alone.
 *
 * Read in this order:
 *   1. Tiles      sizes, shared memory, which unit is whose turn
 *   2. Producer   from global to shared memory
 *   3. Consumer   products
 *   4. Ends       what follows, through a patch of shared memory that belongs to a warp
 *   5. Kernel
 *   6. Host       which products these kernels take, and how
 */
#pragma once

#include "cuda/layers.cuh"
#include "cuda/sm90.cuh"

#include <algorithm>
#include <vector>

enum End { END_PLAIN, END_ACT, END_SLOPE, END_SUM };
enum { MOST_PARTS = 32 }; /* of a sum over K */

/* What the kernels are told besides the maps of A and B. Rows may be any number; N, what rows of D
 * and of the operands below are apart, and all addresses allow packs of 16 bytes. */
struct Sm90Args {
    int M, N, K;
    int parts;          /* that the sum over K is cut into; 1 but for END_SUM */
    int pair;           /* 1: blocks work in pairs; 0: each for itself */
    void *D;            /* END_SUM: float [parts][M, ldd] */
    const void *bias;   /* [N] or NULL */
    const void *addend; /* END_PLAIN: [M,N] or NULL, may be D; END_SLOPE: pre */
    void *pre;          /* END_ACT: [M,N] or NULL */
    float *sums;        /* END_SLOPE: [tiles of rows][Tile::OWNERS][N] column sums, or NULL */
    long ldd, ldadd, ldpre;
    const float *scale_a, *scale_b; /* of 8-bit numbers: what A's and B's are to be multiplied by */
    Fp8Cast eight;                  /* both copies of a D in 8 bits, of which D is the first */
};

/* What is multiplied: bf16 or fp16, which D has, too; or one of these. */
struct Fp8Forward;  /* x and w; D is bf16, or an x */
struct Fp8Backward; /* dy and w or x; D is bf16, a dy, or a sum */
template <class O> struct Sm90Types {
    using A = O;
    using B = O;
    using D = O;
    static constexpr bool NARROW = false, PROMOTES = false;
    static constexpr Fp8Kind KIND = __NV_E4M3; /* D never has 8 bits */
};
template <> struct Sm90Types<Fp8Forward> {
    using A = __nv_fp8_e4m3;
    using B = __nv_fp8_e4m3;
    using D = bf16;
    static constexpr bool NARROW = true, PROMOTES = false;
    static constexpr Fp8Kind KIND = __NV_E4M3; /* of D, where it has 8 bits */
};
template <> struct Sm90Types<Fp8Backward> {
    using A = __nv_fp8_e5m2;
    using B = __nv_fp8_e4m3;
    using D = bf16;
    static constexpr bool NARROW = true, PROMOTES = true; /* to sums in float, see above */
    static constexpr Fp8Kind KIND = __NV_E5M2;
};

/* ------------------------------------------------------------------------------------------------
 * 1. Tiles
 *
 * In shared memory every matrix is made of slabs of 64 rows of 128 bytes, whose 16-byte chunks the
 * copy engine mixes (SWIZZLE_128), so that neither copies nor products meet in a bank. Along K, a
 * row is 64 terms, or 128 of 8 bits, of one row of A or column of B; across, which 8 bits cannot
 * be, it is 64 rows of A or columns of B at one term, which is how they lie in memory where the
 * product is by dy^T or by w untransposed. */

enum { SLAB_ROW = 128, SLAB = 64 * SLAB_ROW }; /* bytes */
enum { SM90_GROUP = 128, SM90_THREADS = 3 * SM90_GROUP };
enum { PATCH_STRIDE = 64 + 8, PATCH = 16 * PATCH_STRIDE }; /* 16-bit numbers; see Patch */

template <bool PINGPONG, class O = bf16> struct Sm90Tile {
    static constexpr bool TURNS = PINGPONG, PROMOTES = Sm90Types<O>::PROMOTES,
                          NARROW = Sm90Types<O>::NARROW;
    static constexpr int M = 128, N = PINGPONG ? 128 : PROMOTES ? 192 : 256;
    static constexpr int K = NARROW ? SLAB_ROW : SLAB_ROW / 2; /* terms of a stage */
    static constexpr int HALVES = PINGPONG ? 2 : 1;            /* of 64 rows, that a group owns */
    static constexpr int OWNERS = M / 64 / HALVES;             /* groups that share a tile */
    static constexpr int READERS = PINGPONG ? 4 : 8;           /* warps that read a stage */
    static constexpr int STAGES = PINGPONG ? 6 : PROMOTES ? 5 : 4;   /* 192 or 200 KiB */
    static constexpr int A = M * SLAB_ROW, STAGE = A + N * SLAB_ROW; /* bytes */

    unsigned char *stages;  /* [STAGES]: A's slabs, then B's */
    uint64_t *full, *empty; /* [STAGES] */
    uint64_t *turn;         /* [2]: of each group, where they play ping-pong */
    uint16_t *patch;        /* one for each of 8 warps */
    float *sums;            /* [2 groups][4 warps][N] */

    __device__ inline Sm90Tile()
    {
        stages = dynamic_tiles<unsigned char>();
        full = (uint64_t *)(stages + STAGES * STAGE);
        empty = full + STAGES;
        turn = empty + STAGES;
        patch = (uint16_t *)(stages + STAGES * STAGE + 128);
        sums = (float *)(patch + 8 * PATCH);
    }
    static constexpr size_t bytes(End end)
    {
        return STAGES * STAGE + 128 + 8 * PATCH * 2 + (end == END_SLOPE ? 2 * 4 * N * 4 : 0);
    }
};

/* The ring: what is fetched and read is counted in blocks of Tile::K terms, by producer and
 * consumers alike. Barriers' phases have parity 0 the first time around. */
template <int STAGES> struct Ring {
    uint32_t at = 0;
    __device__ inline uint32_t stage() const
    {
        return at % STAGES;
    }
    __device__ inline uint32_t parity() const
    {
        return at / STAGES % 2;
    }
};

/* One unit of work: a tile, and which blocks of terms. Tiles that are worked on at the same time
 * shall share what they read while it is in the L2: they lie in bands of 16 rows of tiles, and
 * within a band column after column. 132 of them are about 16 x 8 tiles. A pair's are two of a
 * column, since bands and what is left of them are even. */
struct Sm90Unit {
    int m, n, part;    /* tile, and part of the sum */
    int first, blocks; /* the part's, of Tile::K terms */

    static constexpr int BAND = 16;
    /* Of tiles; in pairs an even number, of which the last one may lie below the matrix. */
    template <class Tile> __host__ __device__ static int rows(const Sm90Args &x, Tile *)
    {
        const int rows = (x.M + Tile::M - 1) / Tile::M;
        return rows + (rows & x.pair);
    }
    template <class Tile> __host__ __device__ static long count(const Sm90Args &x, Tile *tile)
    {
        return (long)rows(x, tile) * ((x.N + Tile::N - 1) / Tile::N) * x.parts;
    }
    template <class Tile> __device__ inline Sm90Unit(const Sm90Args &x, int unit, Tile *)
    {
        const int rows = Sm90Unit::rows(x, (Tile *)0), columns = (x.N + Tile::N - 1) / Tile::N;
        const int tile = unit % (rows * columns), band = tile / (BAND * columns);
        const int height = min(BAND, rows - band * BAND), place = tile % (BAND * columns);
        const int all = (x.K + Tile::K - 1) / Tile::K;
        part = unit / (rows * columns);
        m = band * BAND + place % height;
        n = place / height;
        first = all * part / x.parts; /* below 2^31: K / 64 * MOST_PARTS */
        blocks = all * (part + 1) / x.parts - first;
    }
};

/* ------------------------------------------------------------------------------------------------
 * 2. Producer, one thread */

/* A stage's terms from `k` on, of SIZE rows of A or columns of B from `at` on; or this block's half
 * of them, for both of a pair */
template <int SIZE, bool ALONG_K>
__device__ inline void sm90_fetch(unsigned char *to, const CUtensorMap *map, uint64_t *full, int k,
                                  int at, bool half)
{
    const int first = half ? (int)cluster_rank() * (SIZE / 2) : 0;
    const int end = half ? first + SIZE / 2 : SIZE;
    auto copy = [&](int i, int x, int y) {
        if (half)
            tma_multicast_2d(to + i * SLAB_ROW, map, full, 3, x, y);
        else
            tma_load_2d(to + i * SLAB_ROW, map, full, x, y);
    };
    if constexpr (ALONG_K) {
        copy(first, k, at + first);
    } else {
#pragma unroll 1
        for (int i = first; i < end; i += 64)
            copy(i, at + i, k);
    }
}

template <bool A_ALONG_K, bool B_ALONG_K, class Tile>
__device__ inline void sm90_produce(const Tile &t, const CUtensorMap *a, const CUtensorMap *b,
                                    const Sm90Args &x)
{
    const int units = (int)Sm90Unit::count(x, (Tile *)0);
    uint32_t stage = 0, parity = 1; /* of `empty`, which is waited for: the first time, at once */
    tma_prefetch(a);
    tma_prefetch(b);
    for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
        const Sm90Unit u(x, unit, (Tile *)0);
#pragma unroll 1 /* there are 24 registers */
        for (int i = 0; i < u.blocks; i++) {
            unsigned char *to = t.stages + stage * Tile::STAGE;
            const int k = (u.first + i) * Tile::K;
            mbarrier_wait(t.empty + stage, parity);
            mbarrier_arrive_expect(t.full + stage, Tile::STAGE);
            sm90_fetch<Tile::M, A_ALONG_K>(to, a, t.full + stage, k, u.m * Tile::M, false);
            sm90_fetch<Tile::N, B_ALONG_K>(to + Tile::A, b, t.full + stage, k, u.n * Tile::N,
                                           x.pair);
            stage = stage + 1 < Tile::STAGES ? stage + 1 : 0;
            parity ^= stage == 0;
        }
    }
}

/* ------------------------------------------------------------------------------------------------
 * 3. Consumer: sums [HALVES][64, N] of the block's unit number n, by a group of four warps
 *
 * In ping-pong a group's turn comes when the other has begun its last product. Without that, it
 * could be a whole round of the ring ahead of what is fetched, where a barrier's parity says
 * nothing: that of the phase two before is the same. */

/* This warp has read the stage, and says so to whoever writes there: both blocks of a pair. */
template <class Tile>
__device__ inline void sm90_give_back(const Tile &t, uint32_t stage, const Sm90Args &x)
{
    const uint32_t lane = threadIdx.x % 32;
    if (lane <= (uint32_t)x.pair)
        mbarrier_arrive_at(t.empty + stage, lane);
}

template <class O, bool A_ALONG_K, bool B_ALONG_K, class Tile>
__device__ inline void sm90_consume(float (&sums)[Tile::HALVES][Tile::N / 2], const Tile &t,
                                    const Sm90Args &x, Ring<Tile::STAGES> &ring, int blocks, int n,
                                    int group)
{
    constexpr int STEPS = 4, A_STEP = A_ALONG_K ? SLAB_ROW / STEPS : 16 * SLAB_ROW,
                  B_STEP = B_ALONG_K ? SLAB_ROW / STEPS : 16 * SLAB_ROW; /* bytes to the next */
    const int first_slab = Tile::HALVES == 1 ? group : 0;
    if (Tile::TURNS && n > 0)
        mbarrier_wait(t.turn + group, (n - 1) / 2 % 2);
    for (int i = 0; i < blocks; i++, ring.at++) {
        const uint32_t stage = ring.stage();
        const unsigned char *from = t.stages + stage * Tile::STAGE;
        const uint64_t a = wgmma_operand(from + first_slab * SLAB, SWIZZLE_128, 8 * SLAB_ROW, SLAB);
        const uint64_t b = wgmma_operand(from + Tile::A, SWIZZLE_128, 8 * SLAB_ROW, SLAB);
        mbarrier_wait(t.full + stage, ring.parity());
        each<Tile::HALVES>([&](int h) { wgmma_fence(sums[h]); });
        each<STEPS>([&](int k) {
            each<Tile::HALVES>([&](int h) {
                wgmma<typename Sm90Types<O>::A, typename Sm90Types<O>::B, !A_ALONG_K, !B_ALONG_K>(
                    sums[h], wgmma_advance(a, h * SLAB + k * A_STEP), wgmma_advance(b, k * B_STEP),
                    i > 0 || k > 0);
            });
        });
        wgmma_commit();
        wgmma_wait<1>(); /* those of the block before have read their stage */
        if (i > 0)
            sm90_give_back(t, (ring.at - 1) % Tile::STAGES, x);
    }
    if (Tile::TURNS) {
        __syncwarp(); /* of one block of terms no product was waited for: all have had their turn */
        if (threadIdx.x % 32 == 0)
            mbarrier_arrive(t.turn + (group ^ 1));
    }
    each<Tile::HALVES>([&](int h) { wgmma_wait<0>(sums[h]); });
    if (blocks > 0)
        sm90_give_back(t, (ring.at - 1) % Tile::STAGES, x);
}

/* The same of 8-bit numbers, 64 rows of each group, with sums in ordinary registers */
template <class O, class Tile>
__device__ inline void sm90_consume_promoting(float (&sums)[1][Tile::N / 2], const Tile &t,
                                              const Sm90Args &x, Ring<Tile::STAGES> &ring,
                                              int blocks, int group)
{
    each<Tile::N / 2>([&](int j) { sums[0][j] = 0; });
    for (int i = 0; i < blocks; i++, ring.at++) {
        const uint32_t stage = ring.stage();
        const unsigned char *from = t.stages + stage * Tile::STAGE;
        const uint64_t a = wgmma_operand(from + group * SLAB, SWIZZLE_128, 8 * SLAB_ROW);
        const uint64_t b = wgmma_operand(from + Tile::A, SWIZZLE_128, 8 * SLAB_ROW);
        float part[Tile::N / 2];
        mbarrier_wait(t.full + stage, ring.parity());
        wgmma_fence(part);
        each<4>([&](int k) {
            wgmma<typename Sm90Types<O>::A, typename Sm90Types<O>::B>(
                part, wgmma_advance(a, k * 32), wgmma_advance(b, k * 32), k > 0);
        });
        wgmma_commit();
        wgmma_wait<0>(part);
        sm90_give_back(t, stage, x);
        each<Tile::N / 2>([&](int j) { sums[0][j] += part[j]; });
    }
}

/* ------------------------------------------------------------------------------------------------
 * 4. Ends
 *
 * A thread has pairs of neighbours of a row, eight columns apart: four bytes here and there, of
 * which memory wants 128 in a row. So 16 rows of 64 columns at a time go through a patch of shared
 * memory, in both directions. It belongs to one warp, which needs no barrier but its own. */

/* Pairs [i][j] are of rows g + 8i, columns 8j + 2t and the next (g = lane / 4, t = lane % 4). */
struct Fragment {
    uint32_t pair[2][8];
};
struct Packs {
    uint4 v[4];
};

template <class E> struct Patch {
    uint16_t *room;        /* [16][PATCH_STRIDE], which puts a quad's rows into different banks */
    int row, column, M, N; /* its first ones, and how many there are in all */
    int lane;

    /* f(i, row, column in the patch, is it there) of the thread's four packs of 8 columns */
    template <class F> __device__ inline void each_pack(F f) const
    {
        each<4>([&](int i) {
            const int r = 4 * i + lane / 8, c = lane % 8 * 8;
            f(i, r, c, row + r < M && column + c < N);
        });
    }
    /* Those packs of a matrix; then into the patch, which is free. */
    __device__ inline Packs load(const E *from, long ld) const
    {
        Packs p;
        each_pack([&](int i, int r, int c, bool there) {
            p.v[i] = there ? *(const uint4 *)(from + (row + r) * ld + column + c)
                           : make_uint4(0, 0, 0, 0);
        });
        return p;
    }
    __device__ inline void fill(const Packs &p) const
    {
        each_pack(
            [&](int i, int r, int c, bool) { *(uint4 *)(room + r * PATCH_STRIDE + c) = p.v[i]; });
        __syncwarp();
    }
    /* Four pairs of each thread, from and to the patch: of columns 16q + 2t and 16q + 8 + 2t, in
     * rows g and g + 8 */
    __device__ inline uint16_t *quarter(int q) const
    {
        return room + lane % 16 * PATCH_STRIDE + lane / 16 * 8 + 16 * q;
    }
    __device__ inline void get(uint32_t (&pair)[4], int q) const
    {
        ldmatrix_x4(pair, quarter(q));
    }
    __device__ inline void put(const uint32_t (&pair)[4], int q) const
    {
        stmatrix_x4(quarter(q), pair);
    }
    /* The patch to memory. Then it is free. */
    __device__ inline void flush(E *to, long ld) const
    {
        __syncwarp();
        each_pack([&](int, int r, int c, bool there) {
            if (there)
                *(uint4 *)(to + (row + r) * ld + column + c) =
                    *(const uint4 *)(room + r * PATCH_STRIDE + c);
        });
        __syncwarp();
    }
    __device__ inline void store(E *to, long ld, const Fragment &f) const
    {
        each<4>([&](int q) {
            put({f.pair[0][2 * q], f.pair[1][2 * q], f.pair[0][2 * q + 1], f.pair[1][2 * q + 1]},
                q);
        });
        flush(to, ld);
    }
};

/* Eight numbers of a thread's 32 of a patch, and their four pairs as they are rounded */
template <class E> __device__ inline void round_pairs(uint32_t (&pair)[4], const float (&v)[8])
{
    each<4>([&](int j) { pair[j] = pack<E>(v[2 * j], v[2 * j + 1]); });
}
template <class E> __device__ inline void unpack_pairs(float (&v)[8], const uint32_t (&pair)[4])
{
    each<4>([&](int j) {
        if constexpr (std::is_same_v<E, bf16>) { /* the upper half of a float: one instruction */
            v[2 * j] = __uint_as_float(pair[j] << 16);
            v[2 * j + 1] = __uint_as_float(pair[j] & 0xFFFF0000u);
        } else {
            Pack<E, 2> two;
            memcpy(&two, &pair[j], sizeof two);
            v[2 * j] = to_float(two.v[0]);
            v[2 * j + 1] = to_float(two.v[1]);
        }
    });
}

/* A patch in 8 bits is two: 16 rows of 64 bytes, and 64 columns of 16, in the room of one of 16
 * bits. Quarter q's columns c = 16q + 2t and 16q + 8 + 2t are two words of each thread, bytes
 *
 *   (g, c)  (g+8, c)  (g, c+1)  (g+8, c+1)
 *
 * so that a word of 16-bit numbers, two rows of a column each, can be stored transposed. Bytes that
 * belong together then lie in turns, g and g + 8 here, both groups of columns there, and are put in
 * order on their way to memory. */
enum { BYTES_STRIDE = 64 + 16 }; /* which puts rows into different banks */
static_assert(16 * BYTES_STRIDE + 64 * 16 <= PATCH * 2, "both copies fit into a patch");

template <Fp8Kind KIND>
__device__ inline void round_words(uint32_t (&word)[2], const float (&v)[8], float scale)
{
    /* of rows g and g + 8 */
    auto rows = [&](int k) {
        return fp8_pair<KIND>(fp8_scaled(v[k], scale), fp8_scaled(v[k + 2], scale));
    };
    each<2>([&](int j) { word[j] = rows(4 * j) | rows(4 * j + 1) << 16; });
}
/* Sixteen bytes, of which `low` takes the first half from two words, and `high` the second */
__device__ inline uint4 in_order(const uint4 &v, uint32_t low, uint32_t high)
{
    return make_uint4(__byte_perm(v.x, v.y, low), __byte_perm(v.z, v.w, low),
                      __byte_perm(v.x, v.y, high), __byte_perm(v.z, v.w, high));
}
template <class E>
__device__ inline void store_words(const Patch<E> &at, const uint32_t (&word)[4][2],
                                   const Fp8Cast &to)
{
    uint8_t *rows = (uint8_t *)at.room, *columns = rows + 16 * BYTES_STRIDE;
    const int lane = at.lane;
    __syncwarp(); /* what was in the patch has been read */
    each<2>([&](int i) {
        uint32_t by_row[4], by_column[4];
        each<2>([&](int k) {
            const uint32_t(&w)[2] = word[2 * i + k];
            by_row[2 * k] = __byte_perm(w[0], w[1], 0x6420);     /* g */
            by_row[2 * k + 1] = __byte_perm(w[0], w[1], 0x7531); /* g + 8 */
            by_column[2 * k] = w[0];
            by_column[2 * k + 1] = w[1];
        });
        stmatrix_x4(rows + lane % 16 * BYTES_STRIDE + (2 * i + lane / 16) * 16, by_row);
        stmatrix_x4_trans(columns + (32 * i + lane) * 16, by_column);
    });
    __syncwarp();
    each<2>([&](int i) {
        const int r = 8 * i + lane / 4, c = lane % 4 * 16, across = 32 * i + lane;
        if (at.row + r < at.M && at.column + c < at.N)
            *(uint4 *)(to.to + (at.row + r) * to.n + at.column + c) =
                in_order(*(const uint4 *)(rows + r * BYTES_STRIDE + c), 0x5410, 0x7632);
        if (at.row < at.M && at.column + across < at.N)
            *(uint4 *)(to.across + (at.column + across) * Fp8Cast::padded(to.rows) + at.row) =
                in_order(*(const uint4 *)(columns + across * 16), 0x6420, 0x7531);
    });
    __syncwarp();
}

/* What a thread knows of a D in 8 bits: its scale, and the largest |x| so far, as two numbers */
struct Eight {
    float scale;
    uint32_t most;
};
/* The largest of four pairs in each of two rows, g and g + 8; NaN comes last, as in raise_amax. */
__device__ inline void note_pairs(uint32_t (&most)[2], const uint32_t (&pair)[4])
{
    each<4>([&](int j) { most[j % 2] = max_halves(most[j % 2], pair[j] & 0x7FFF7FFFu); });
}

/* Column sums of a tile's rows that a group owns: a thread has them of its own rows, the patch's 64
 * columns in turn. Eight lanes have the same 16 columns: each time two of them share these, they
 * divide what is left. Then four warps do. Always added in the same order. */
template <int N> __device__ inline void share_sums(float (&sums)[16], int lane, int apart)
{
    const bool upper = lane & apart;
    each<N / 2>([&](int c) {
        const float mine = upper ? sums[c + N / 2] : sums[c];
        const float other = upper ? sums[c] : sums[c + N / 2];
        sums[c] = mine + __shfl_xor_sync(0xffffffffu, other, apart);
    });
}
__device__ inline void sum_lanes(float *room, float (&sums)[16], int lane)
{
    share_sums<16>(sums, lane, 4);
    share_sums<8>(sums, lane, 8);
    share_sums<4>(sums, lane, 16);
    const int j = (lane & 4) + (lane & 8) / 4 + (lane & 16) / 16; /* the pair that is left */
    *(float2 *)(room + 8 * j + lane % 4 * 2) = make_float2(sums[0], sums[1]);
}
template <int N>
__device__ inline void sum_warps(const float *room, float *out, int group, int thread, int columns)
{
    named_barrier_sync(1 + group, SM90_GROUP);
    for (int c = thread; c < N && c < columns; c += SM90_GROUP)
        out[c] = room[c] + room[N + c] + room[2 * N + c] + room[3 * N + c];
    named_barrier_sync(1 + group, SM90_GROUP); /* they may be written again */
}

/* The warp's patch number p of a tile; of 128 rows, both halves of the same columns in turn.
 * `group` is 0 or 1. */
template <class E, class Tile>
__device__ inline Patch<E> sm90_patch(const Tile &t, const Sm90Args &x, const Sm90Unit &u,
                                      int group, int p)
{
    const int warp = threadIdx.x % SM90_GROUP / 32, lane = threadIdx.x % 32;
    const int half = Tile::HALVES == 1 ? group : p % Tile::HALVES;
    return Patch<E>{t.patch + (4 * group + warp) * PATCH,
                    u.m * Tile::M + 64 * half + 16 * warp,
                    u.n * Tile::N + p / Tile::HALVES * 64,
                    x.M,
                    x.N,
                    lane};
}

/* What follows the product of a unit. `next` is the first patch of x.addend, which has arrived
 * during the product. Everything is unrolled: what indexes sums must be known when this is
 * compiled. */
template <class O, End END, int ACT, class Tile>
__device__ inline void sm90_end(const float (&sums)[Tile::HALVES][Tile::N / 2], Packs &next,
                                const Tile &t, const Sm90Args &x, const Sm90Unit &u, int group,
                                float scale, Eight &eight)
{
    using E = typename Sm90Types<O>::D;
    constexpr bool EIGHT = Tile::NARROW && END != END_PLAIN; /* is D in 8 bits? */
    constexpr int PATCHES = Tile::N / 64 * Tile::HALVES;
    const int thread = threadIdx.x % SM90_GROUP, warp = thread / 32, lane = thread % 32;
    auto patch = [&](int p) {
        Patch<E> at = sm90_patch<E>(t, x, u, group, p);
        /* there are two registers too few to keep what follows from it for all patches */
        if (ACT == ACT_GELU_TANH && p % 2 == 0)
            at.lane = anew(at.lane);
        return at;
    };
    const bool adds = END != END_ACT && x.addend;
    float column_sums[16] = {};
    uint32_t bias[8] = {};
    each<PATCHES>([&](int p) {
        const Patch<E> at = patch(p);
        const int c = p / Tile::HALVES, h = p % Tile::HALVES;
        uint32_t pairs[4][4], words[4][2], most[2] = {};
        auto round_eight = [&](int q) {
            float v[8];
            note_pairs(most, pairs[q]);
            unpack_pairs<E>(v, pairs[q]);
            round_words<Sm90Types<O>::KIND>(words[q], v, eight.scale);
        };
        if (adds) {
            at.fill(next);
            if (p + 1 < PATCHES) /* arrives while this one is used */
                next = patch(p + 1).load((const E *)x.addend, x.ldadd);
        }
        if (END != END_SLOPE && x.bias && h == 0)
            each<8>([&](int j) {
                const int column = at.column + 8 * j + lane % 4 * 2;
                if (column < x.N)
                    bias[j] = *(const uint32_t *)((const E *)x.bias + column);
                else if (EIGHT)
                    bias[j] = 0; /* or GELU of it would be noted */
            });
        /* Four pairs, of two rows. END_ACT keeps those of pre until they have left the patch. */
        each<4>([&](int q) {
            float v[1][8], w[1][8];
            each<8>([&](int k) { v[0][k] = sums[h][32 * c + 8 * q + k] * scale; });
            if constexpr (END != END_SLOPE) {
                unpack_pairs<E>(w[0], {bias[2 * q], bias[2 * q], bias[2 * q + 1], bias[2 * q + 1]});
                each<8>([&](int k) { v[0][k] += w[0][k]; });
            }
            if (adds) {
                at.get(pairs[q], q);
                unpack_pairs<E>(w[0], pairs[q]);
            }
            if (END == END_PLAIN && adds)
                each<8>([&](int k) { v[0][k] += w[0][k]; });
            if constexpr (END == END_SLOPE && EIGHT) { /* as a product in memory is rounded */
                uint32_t product[4];
                round_pairs<E>(product, v[0]);
                unpack_pairs<E>(v[0], product);
            }
            if constexpr (END == END_SLOPE)
                act_backward<E>(v, w, ACT);
            round_pairs<E>(pairs[q], v[0]);
            if constexpr (END == END_SLOPE && EIGHT)
                round_eight(q);
            else if (END != END_ACT || x.pre)
                at.put(pairs[q], q);
            if constexpr (END == END_SLOPE) {
                unpack_pairs<E>(w[0], pairs[q]);
                each<4>([&](int k) {
                    const int e = k / 2 * 4 + k % 2; /* of row g; that of row g + 8 is e + 2 */
                    float &sum = column_sums[4 * q + k];
                    sum = (h ? sum : 0) + w[0][e] + w[0][e + 2];
                });
            }
        });
        if constexpr (END == END_ACT) {
            if (x.pre)
                at.flush((E *)x.pre, x.ldpre);
            each<4>([&](int q) {
                float v[1][8];
                unpack_pairs<E>(v[0], pairs[q]);
                act_forward<E>(v, ACT);
                round_pairs<E>(pairs[q], v[0]);
                if constexpr (EIGHT)
                    round_eight(q);
                else
                    at.put(pairs[q], q);
            });
        }
        if constexpr (EIGHT) {
            const bool there[2] = {at.row + lane / 4 < x.M, at.row + lane / 4 + 8 < x.M};
            const uint32_t mask = (there[0] ? 0x00FF00FFu : 0) | (there[1] ? 0xFF00FF00u : 0);
            each<8>([&](int i) { words[i / 2][i % 2] &= mask; }); /* GELU of a bias is not 0 */
            each<2>([&](int r) {
                eight.most = there[r] ? max_halves(eight.most, most[r]) : eight.most;
            });
            store_words(at, words, x.eight);
        } else {
            at.flush((E *)x.D, x.ldd);
        }
        if (END == END_SLOPE && x.sums && h + 1 == Tile::HALVES)
            sum_lanes(t.sums + (4 * group + warp) * Tile::N + 64 * c, column_sums, lane);
    });
    if constexpr (END == END_SLOPE)
        if (x.sums) {
            const long owner = Tile::OWNERS == 1 ? u.m : 2L * u.m + group;
            sum_warps<Tile::N>(t.sums + 4 * group * Tile::N, x.sums + owner * x.N + u.n * Tile::N,
                               group, thread, x.N - u.n * Tile::N);
        }
}

/* Sums in float need no patch: a quad writes 32 bytes of a row, which is a whole sector. */
template <class Tile>
__device__ inline void sm90_end_sum(const float (&sums)[Tile::HALVES][Tile::N / 2],
                                    const Sm90Args &x, const Sm90Unit &u, int group, float scale)
{
    const int thread = threadIdx.x % SM90_GROUP, warp = thread / 32, lane = thread % 32;
    const int row = u.m * Tile::M + (Tile::HALVES == 1 ? 64 * group : 0) + 16 * warp + lane / 4;
    const int column = u.n * Tile::N + lane % 4 * 2;
    float *to = (float *)x.D + (long)u.part * x.M * x.ldd + column;
    each<Tile::HALVES>([&](int h) {
        each<Tile::N / 4>([&](int i) {
            const int r = row + 64 * h + i % 2 * 8, c = i / 2 * 8;
            if (r < x.M && column + c < x.N)
                *(float2 *)(to + r * x.ldd + c) =
                    make_float2(sums[h][2 * i] * scale, sums[h][2 * i + 1] * scale);
        });
    });
}

/* ------------------------------------------------------------------------------------------------
 * 5. Kernel
 *
 * Grid: a block for each multiprocessor, or for each unit if there are fewer; clusters of two where
 * they work in pairs. A block begins with 168 registers a thread, of which the producers leave most
 * to the consumers. Compiled for another GPU it is empty, and refuses to be launched. */
template <class O, bool PINGPONG, bool A_ALONG_K, bool B_ALONG_K, End END, int ACT>
__global__ void __launch_bounds__(HAS_SM90 ? SM90_THREADS : 32, 1)
    gemm_sm90_kernel(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
                     const Sm90Args x)
{
    launched_within<SM90_THREADS>();
    if constexpr (HAS_SM90) {
        using Tile = Sm90Tile<PINGPONG, O>;
        using E = typename Sm90Types<O>::D;
        const Tile t;
        const int group = (int)threadIdx.x / SM90_GROUP - 1; /* -1: the producer's */
        if (threadIdx.x == 0) {
            for (int i = 0; i < Tile::STAGES; i++) {
                mbarrier_init(t.full + i, 1);
                mbarrier_init(t.empty + i, Tile::READERS << x.pair);
            }
            for (int i = 0; i < 2; i++)
                mbarrier_init(t.turn + i, 4);
            mbarrier_init_fence();
        }
        if (x.pair)
            cluster_sync();
        else
            __syncthreads();
        if (group < 0) {
            registers_release<24>();
            if (threadIdx.x == 0)
                sm90_produce<A_ALONG_K, B_ALONG_K>(t, &a, &b, x);
        } else {
            registers_take<240>();
            const int units = (int)Sm90Unit::count(x, (Tile *)0);
            const float scale = Tile::NARROW ? *x.scale_a * *x.scale_b : 1; /* a power of two */
            constexpr bool EIGHT = Tile::NARROW && (END == END_ACT || END == END_SLOPE);
            Eight eight = {EIGHT ? delayed_scale(x.eight.scale) : 1, 0};
            if (EIGHT && blockIdx.x == 0 && threadIdx.x == SM90_GROUP)
                x.eight.scale->inverse = 1 / eight.scale;
            Ring<Tile::STAGES> ring;
            for (int unit = blockIdx.x, n = 0; unit < units; unit += gridDim.x, n++) {
                const Sm90Unit u(x, unit, (Tile *)0);
                if (PINGPONG && n % 2 != group) { /* the other's */
                    ring.at += u.blocks;
                    continue;
                }
                float sums[Tile::HALVES][Tile::N / 2];
                Packs first;
                if ((END == END_PLAIN || END == END_SLOPE) && x.addend)
                    first = sm90_patch<E>(t, x, u, group, 0).load((const E *)x.addend, x.ldadd);
                if constexpr (Tile::PROMOTES)
                    sm90_consume_promoting<O>(sums, t, x, ring, u.blocks, group);
                else
                    sm90_consume<O, A_ALONG_K, B_ALONG_K>(sums, t, x, ring, u.blocks, n, group);
                if (u.m * Tile::M >= x.M)
                    continue; /* the last of an odd number, whose rows are zeros */
                if constexpr (END == END_SUM)
                    sm90_end_sum<Tile>(sums, x, u, group, scale);
                else
                    sm90_end<O, END, ACT>(sums, first, t, x, u, group, scale, eight);
            }
            if (EIGHT && x.eight.how.learns) {
                const float most = warp_amax(larger_amax(__uint_as_float(eight.most << 16),
                                                         __uint_as_float(eight.most & ~0xFFFFu)));
                if (threadIdx.x % 32 == 0)
                    raise_amax(&x.eight.scale->amax, most);
            }
        }
        if (x.pair) {
            __syncwarp();   /* the producer's warp is together again */
            cluster_sync(); /* the other block arrives here until it has read its last stage */
        }
    }
}

/* to[i] = the sum over parts of from[part][i], in order; four numbers a thread. Three parts of a
 * weight of B/16's MLP: 38 MB, 9 us of the product's 700. */
static __global__ void add_parts_kernel(float4 *to, const float4 *from, int parts, long quads)
{
    for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < quads;
         i += (long)gridDim.x * blockDim.x) {
        float4 sum = from[i];
#pragma unroll 4
        for (int p = 1; p < parts; p++) {
            const float4 v = from[p * quads + i];
            sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
        }
        to[i] = sum;
    }
}

/* ------------------------------------------------------------------------------------------------
 * 6. Host */

/* What is asked for. A "way" to do it is a number other than 0, which may be kept: 1 if groups play
 * ping-pong, twice the number of parts, WAY_PAIR if blocks work in pairs. Pairs add in the same
 * order: results have the same bits. */
enum { WAY_PAIR = 128 };
struct OwnProduct {
    int type;          /* BF16 or F16, of A, B and what is not a sum; or E4M3 or E5M2, of A */
    const void *A, *B; /* in 8 bits, B is E4M3; D is BF16, a sum, or in 8 bits (x.eight) */
    long lda, ldb;
    bool a_along_k, b_along_k; /* do A's rows, and B's columns, lie in memory in one piece? */
    End end;
    int act;
    Sm90Args x;       /* parts, pair, and END_SLOPE's sums, are filled in here */
    float *sums;      /* END_SLOPE: [N] column sums or NULL */
    void *room;       /* for sums on their way */
    size_t room_size; /* bytes */
};

template <class T> static bool sm90_packs(const T *p, long ld, int size)
{
    return !p || (aligned((const dev *)p) && ld * size % 16 == 0);
}

/* Whether this GPU runs the kernels, and this program has them. */
static bool sm90_here()
{
    static const bool here = [] {
        cudaFuncAttributes a;
        const void *kernel = (const void *)gemm_sm90_kernel<bf16, true, true, true, END_PLAIN, 0>;
        return cu.gpu.major == 9 && cu.gpu.minor == 0 && tensor_map_encoder() &&
               (size_t)cu.smem >= Sm90Tile<true>::bytes(END_SLOPE) &&
               (size_t)cu.smem >= Sm90Tile<false, Fp8Backward>::bytes(END_SLOPE) &&
               cudaFuncGetAttributes(&a, kernel) == cudaSuccess &&
               a.maxThreadsPerBlock >= SM90_THREADS;
    }();
    return here;
}

/* How many pairs of blocks run at the same time; 0: none can. */
static int sm90_pairs()
{
    static const int pairs = [] {
        const auto kernel = gemm_sm90_kernel<bf16, true, true, true, END_PLAIN, 0>;
        cudaLaunchAttribute cluster = cluster_attribute(2);
        cudaLaunchConfig_t config = {};
        int most = 0;
        config.gridDim = 2;
        config.blockDim = SM90_THREADS;
        config.dynamicSmemBytes = Sm90Tile<true>::bytes(END_PLAIN);
        config.attrs = &cluster;
        config.numAttrs = 1;
        launch_allow_smem((const void *)kernel, config.dynamicSmemBytes);
        if (cudaOccupancyMaxActiveClusters(&most, kernel, &config) == cudaSuccess)
            return most;
        (void)cudaGetLastError();
        return 0;
    }();
    return pairs;
}

/* Of 8 bits: ends that have 8 bits, and only those, are ACT forward and SLOPE backward. */
static bool sm90_takes_narrow(const OwnProduct &p)
{
    const bool eight = p.x.eight.to && p.x.N % 16 == 0 && p.x.ldd == p.x.N;
    switch (p.end) {
    case END_PLAIN:
        return true;
    case END_ACT:
        return eight && p.type == E4M3;
    case END_SLOPE:
        return eight && p.type == E5M2;
    default:
        return p.type == E5M2;
    }
}

static bool sm90_takes(const OwnProduct &p)
{
    const Sm90Args &x = p.x;
    const int in = is_fp8(p.type) ? 1 : 2, out = p.end == END_SUM ? 4 : 2;
    if (!sm90_here() || p.type == F32 || x.K <= 0 || x.N % 8 != 0)
        return false;
    if (p.act && p.act != ACT_GELU && p.act != ACT_GELU_TANH)
        return false;
    if (!sm90_packs(p.A, p.lda, in) || !sm90_packs(p.B, p.ldb, in) || !sm90_packs(x.D, x.ldd, out))
        return false;
    if (!sm90_packs(x.addend, x.ldadd, 2) || !sm90_packs(x.pre, x.ldpre, 2) ||
        (uintptr_t)x.bias % 4 != 0)
        return false;
    if (in == 1)
        return p.a_along_k && p.b_along_k && sm90_takes_narrow(p);
    switch (p.end) {
    case END_PLAIN:
        return p.a_along_k;
    case END_ACT:
        return p.a_along_k && p.b_along_k;
    case END_SLOPE:
        return p.a_along_k && !p.b_along_k;
    default:
        return !p.a_along_k && !p.b_along_k;
    }
}

/* Cycles that a weight gradient takes with its sum in so many parts: four for each column of a
 * stage's tile, and 2,400 bytes of parts that go to memory and back in each. */
template <class O> static double sm90_cycles(const OwnProduct &p, int parts)
{
    using Tile = Sm90Tile<false, O>;
    Sm90Args x = p.x;
    x.parts = parts;
    const double rounds = ceil_div(Sm90Unit::count(x, (Tile *)0), cu.gpu.multiProcessorCount);
    const double stages = ceil_div(ceil_div(x.K, Tile::K), parts);
    return rounds * stages * 4 * Tile::N + (parts > 1 ? parts * 8.0 * x.M * x.N / 2400 : 0);
}
template <class O> static std::vector<int> sm90_parts(const OwnProduct &p)
{
    enum { TRIED = 4 };
    std::vector<int> ways;
    const size_t whole = (size_t)p.x.M * (size_t)p.x.N * sizeof(float);
    const int stages = ceil_div(p.x.K, Sm90Tile<false, O>::K);
    for (int parts = 1; parts <= MOST_PARTS && parts <= stages; parts++)
        if (parts == 1 || (p.x.ldd == p.x.N && parts * whole <= p.room_size))
            ways.push_back(2 * parts);
    std::stable_sort(ways.begin(), ways.end(), [&](int a, int b) {
        return sm90_cycles<O>(p, a / 2) < sm90_cycles<O>(p, b / 2);
    });
    ways.resize(std::min<size_t>(ways.size(), TRIED));
    return ways;
}

/* The ways for single blocks that are worth trying, the likeliest first */
static std::vector<int> sm90_single_ways(const OwnProduct &p)
{
    if (p.end == END_SUM)
        return is_fp8(p.type) ? sm90_parts<Fp8Backward>(p) : sm90_parts<bf16>(p);
    const bool together = p.type == E5M2; /* alone, since it promotes */
    if (p.end == END_PLAIN)
        return together ? std::vector<int>{2} : std::vector<int>{2, 3};
    const size_t owners = (size_t)ceil_div(p.x.M, 128) * (together ? 2 : 1);
    const size_t sums = owners * (size_t)p.x.N * sizeof(float);
    if (p.end == END_SLOPE && p.sums && sums > p.room_size)
        return {};
    return {together ? 2 : 3};
}
/* All, each alone and in pairs; none: the product is not for these kernels. */
static std::vector<int> sm90_ways(const OwnProduct &p)
{
    std::vector<int> ways;
    if (sm90_takes(p))
        for (int way : sm90_single_ways(p)) {
            ways.push_back(way);
            if (sm90_pairs() > 0)
                ways.push_back(way + WAY_PAIR);
        }
    return ways;
}

/* A map of A [rows, K], or of B [K, columns] as [columns, K], in boxes of a stage's terms */
template <class E>
static CUtensorMap sm90_map(const void *p, long ld, bool along_k, int rows, int K, int tile)
{
    CUtensorMap map;
    const uint32_t bytes = sm90_is_wide<E> ? 2 : 1;
    const uint64_t inner = (uint64_t)(along_k ? K : rows), outer = (uint64_t)(along_k ? rows : K);
    const uint64_t size[2] = {inner, outer}, stride[2] = {bytes, (uint64_t)ld * bytes};
    const uint32_t box[2] = {SLAB_ROW / bytes, along_k ? (uint32_t)tile : 64};
    if (!tensor_map<E, 2>(&map, p, size, stride, box, SWIZZLE_128))
        die("VIT_GEMM=cublaslt does without this program's own products",
            "the driver refuses a map of a matrix [%d,%d]", rows, K);
    return map;
}

template <class O, bool PINGPONG, bool A_ALONG_K, bool B_ALONG_K, End END, int ACT>
static void sm90_launch(const OwnProduct &p)
{
    using Tile = Sm90Tile<PINGPONG, O>;
    using A = typename Sm90Types<O>::A;
    using B = typename Sm90Types<O>::B;
    const long units = Sm90Unit::count(p.x, (Tile *)0);
    const long most = p.x.pair ? 2 * sm90_pairs() : cu.gpu.multiProcessorCount;
    const CUtensorMap a = sm90_map<A>(p.A, p.lda, A_ALONG_K, p.x.M, p.x.K, Tile::M);
    const CUtensorMap b = sm90_map<B>(p.B, p.ldb, B_ALONG_K, p.x.N, p.x.K, Tile::N >> p.x.pair);
    launch_cluster(1 + p.x.pair, gemm_sm90_kernel<O, PINGPONG, A_ALONG_K, B_ALONG_K, END, ACT>,
                   (int)std::min(units, most), SM90_THREADS, Tile::bytes(END), cu.stream, a, b,
                   p.x);
}

/* dw, whose sum over all rows of a batch may be cut into parts */
template <class O> static void sm90_sum(OwnProduct p, int parts)
{
    constexpr bool NARROW = Sm90Types<O>::NARROW;
    void *const D = p.x.D;
    p.x.parts = parts;
    if (parts > 1)
        p.x.D = p.room;
    sm90_launch<O, false, NARROW, NARROW, END_SUM, 0>(p);
    const long quads = (long)p.x.M * p.x.N / 4;
    if (parts > 1)
        launch(add_parts_kernel, (unsigned)std::min(ceil_div(quads, 256), 1 << 16), 256, 0,
               cu.stream, (float4 *)D, (const float4 *)p.room, parts, quads);
}

template <class O> static void sm90_act(const OwnProduct &p)
{
    if (p.act == ACT_GELU)
        sm90_launch<O, true, true, true, END_ACT, ACT_GELU>(p);
    else
        sm90_launch<O, true, true, true, END_ACT, ACT_GELU_TANH>(p);
}

template <class O> static void sm90_slope(OwnProduct p)
{
    constexpr bool NARROW = Sm90Types<O>::NARROW;
    using Tile = Sm90Tile<!NARROW, O>;
    if (p.sums)
        p.x.sums = (float *)p.room;
    if (p.act == ACT_GELU)
        sm90_launch<O, !NARROW, true, NARROW, END_SLOPE, ACT_GELU>(p);
    else
        sm90_launch<O, !NARROW, true, NARROW, END_SLOPE, ACT_GELU_TANH>(p);
    if (p.sums)
        sum_ranges(Sums{{p.sums}}, 1, p.x.sums, ceil_div(p.x.M, Tile::M) * Tile::OWNERS, p.x.N);
}

template <class E> static void sm90_by_end(const OwnProduct &p, int way)
{
    const bool pingpong = way % 2;
    if (p.end == END_SUM)
        sm90_sum<E>(p, way / 2);
    else if (p.end == END_SLOPE)
        sm90_slope<E>(p);
    else if (p.end == END_ACT)
        sm90_act<E>(p);
    else if (p.b_along_k && pingpong)
        sm90_launch<E, true, true, true, END_PLAIN, 0>(p);
    else if (p.b_along_k)
        sm90_launch<E, false, true, true, END_PLAIN, 0>(p);
    else if (pingpong)
        sm90_launch<E, true, true, false, END_PLAIN, 0>(p);
    else
        sm90_launch<E, false, true, false, END_PLAIN, 0>(p);
}
static void sm90_narrow(const OwnProduct &p, int way)
{
    if (p.end == END_SUM)
        sm90_sum<Fp8Backward>(p, way / 2);
    else if (p.end == END_SLOPE)
        sm90_slope<Fp8Backward>(p);
    else if (p.end == END_ACT)
        sm90_act<Fp8Forward>(p);
    else if (p.type == E5M2)
        sm90_launch<Fp8Backward, false, true, true, END_PLAIN, 0>(p);
    else if (way % 2)
        sm90_launch<Fp8Forward, true, true, true, END_PLAIN, 0>(p);
    else
        sm90_launch<Fp8Forward, false, true, true, END_PLAIN, 0>(p);
}
/* In one of sm90_ways(p) */
static void sm90_multiply(OwnProduct p, int way)
{
    p.x.pair = way / WAY_PAIR;
    way %= WAY_PAIR;
    if (is_fp8(p.type))
        sm90_narrow(p, way);
    else if (p.type == BF16)
        sm90_by_end<bf16>(p, way);
    else
        sm90_by_end<fp16>(p, way);
}
