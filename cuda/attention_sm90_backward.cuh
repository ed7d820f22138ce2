/* attention_sm90_backward.cuh - the gradient of attention for Hopper: one block a head.
 *
 * The portable kernels (attention.cuh) make S = q k^T and dP = dO v^T twice, once for dq and once
 * for dk and dv, in seven products; each reads q, k, v and dO for itself. Here a block has a whole
 * head in shared memory, and five products do, of bf16 and fp16, where a head has up to 208 tokens
 * (the 197 of pictures of 224 in patches of 16) and 64 columns. It is a candidate beside the
 * portable kernels and used where it is faster; NOTHING HERE HAS RUN ON A GPU.
 *
 * Two warp groups take the keys in turns, 64 at a time; queries come in tiles of 64, or of 16 for
 * the last ones. Phase 1, of each such pair, all transposed, so that sums over queries stay in
 * registers and what a product needs of the one before is there as its left operand:
 *
 *   S^T [64, N] = k q^T           dP^T [64, N] = v dO^T          wgmma from shared memory
 *   P^T = exp(S^T - lse)          dS^T = P^T (M dP^T - delta)    16 bits
 *   dv [64, hs] += (M P)^T dO     dk [64, hs] += dS^T q          wgmma, left operand in registers
 *
 * dS also goes to shared memory, all of it. Phase 2, when both groups are there:
 *
 *   dq [64, hs] = dS k            by the group whose turn the queries are
 *
 * So no sum crosses a group, and all have one order: the same bits every time. Nobody reads q and
 * dO in phase 2: those of the block's next head arrive then, its k and v after it.
 *
 * What else was considered. (1) dq tile by tile in phase 1 needs no room for dS (106 KB), but dk
 * and dv of all keys at once in registers: 128 in each thread, which leave room for tiles of 32
 * queries, and a barrier of both groups for each; S and dP would be bound by shared memory. (2) dq
 * as a sum over rounds of keys, kept in shared memory: 65 KB in float, read and written each round.
 * (3) Heads that are larger: 257 tokens have 148 KB of dS, which leaves no room for four matrices
 * even of 64 columns (139 KB). attention_sm90_large.cuh has these.
 *
 * Predicted for one layer of B/16 at batch 256 (3,072 heads, 23.3 on each multiprocessor): 1,800
 * cycles until k, v and the rows that delta is made of have arrived; phase 1, 6,700 of products and
 * 5,100 of exponentials and rounding (372 instructions a warp and tile, as compiled), of which the
 * two groups overlap three quarters: 8,000; phase 2, 1,700; results and their column sums, 2,200.
 * That is 13,700 cycles at 1.75 GHz, 182 us. Bytes alone: 620 MB, 144 us. A gradient in 8 bits
 * takes 2,000 cycles more, 25 instructions for two numbers instead of 12, and writes 116 MB less.
 *
 * Read: shared memory, before the products, phase 1, results, both phases of a group, the kernel,
 * the host's part.
 */
#pragma once

#include "cuda/attention_sm90.cuh"
#include "cuda/fp8.cuh"

struct Backward90Args {
    const void *out, *dout; /* [B*Tq, C] */
    const float *lse;       /* [B, heads, Tq] */
    float *sums;            /* each image's column sums: [B, C] of dq, then [B, 2C]; or NULL */
    long ld_out, ld_dout;
    int B, T, Tq, heads, hs;
    float scale, scale2; /* 1/sqrt(hs), and the same for exponents to base 2 */
    Mask mask;
    const StepState *state;
    Fp8Cast eight; /* EIGHT: of dqkv [B*T, 3C], the copy by rows */
};
/* Of [B, rows, heads, hs], rows of an image: beyond the last and beyond hs, zeros come in and
 * nothing goes out. */
struct Backward90Maps {
    CUtensorMap keys, queries, dout; /* in: a whole head. `keys` has T rows, the others Tq */
    CUtensorMap dkeys, dqueries;     /* out: 16 rows; not used where they have 8 bits */
};

/* ------------------------------------------------------------------------------------------------
 * Shared memory: slabs of 208 rows of 64 columns, 128 bytes, mixed as the copy engine does. The
 * last 64 keys of 208 are 16: products read on into the slab behind, to no harm. */

struct Backward90 {
    static constexpr int ROWS = 208, MATRIX = ROWS * SLAB_ROW; /* bytes */
    static constexpr int GROUPS = 2, THREADS = GROUPS * SM90_GROUP, WARPS = THREADS / 32;

    unsigned char *v, *k, *q, *dout; /* [ROWS]; v becomes room for results */
    unsigned char *ds;               /* [tiles of 64 queries][ROWS keys] of 64 queries */
    float *lse, *delta;              /* [ROWS]; lse to base 2 */
    float *sums;                     /* [3][WARPS][64] */
    uint64_t *there;                 /* [2]: q and dout; k and v */
    float *most;                     /* of dqkv in 8 bits, so far */
    uint8_t *keep;

    __device__ inline Backward90()
    {
        v = dynamic_tiles<unsigned char>();
        k = v + MATRIX;
        q = k + MATRIX;
        dout = q + MATRIX;
        ds = dout + MATRIX;
        lse = (float *)(ds + 4 * MATRIX);
        delta = lse + ROWS;
        sums = delta + ROWS;
        there = (uint64_t *)(sums + 3 * WARPS * 64);
        most = (float *)(there + 2);
        keep = (uint8_t *)(most + 1);
    }
    static size_t bytes(int T, bool drop)
    {
        return 8 * MATRIX + (2 * ROWS + 3 * WARPS * 64 + 1) * sizeof(float) + 16 +
               (drop ? Keep90::room(ROWS, T, 256) : 0);
    }
};

/* Four 8x8 matrices that a warp has of 16 rows, as wgmma leaves them: columns 16c to 16c + 15 of
 * `rows`, the first of which is a slab's or a multiple of 8 behind. */
__device__ inline void put_16(unsigned char *rows, const uint32_t (&x)[4], int c, int lane)
{
    const int row = lane / 8 % 2 * 8 + lane % 8, chunk = 2 * c + lane / 16;
    stmatrix_x4(rows + row * SLAB_ROW + ((chunk ^ lane % 8) << 4), x);
}

/* ------------------------------------------------------------------------------------------------
 * Before the products */

__device__ inline void fetch_queries(const Backward90 &at, const Backward90Maps &maps, int b, int h)
{
    mbarrier_arrive_expect(at.there, 2 * Backward90::MATRIX);
    tma_load_4d(at.q, &maps.queries, at.there, 0, h, 0, b);
    tma_load_4d(at.dout, &maps.dout, at.there, 0, h, 0, b);
}
__device__ inline void fetch_keys(const Backward90 &at, const Backward90Maps &maps, int heads,
                                  int b, int h)
{
    mbarrier_arrive_expect(at.there + 1, 2 * Backward90::MATRIX);
    tma_load_4d(at.k, &maps.keys, at.there + 1, 0, heads + h, 0, b);
    tma_load_4d(at.v, &maps.keys, at.there + 1, 0, 2 * heads + h, 0, b);
}

/* x . y of a pack */
template <class E> __device__ inline float pack_dot(const uint4 &x, const uint4 &y)
{
    float u[8], w[8], sum = 0;
    unpack_pairs<E>(u, {x.x, x.y, x.z, x.w});
    unpack_pairs<E>(w, {y.x, y.y, y.z, y.w});
    each<8>([&](int k) { sum += u[k] * w[k]; });
    return sum;
}
/* lse, and delta = rowsum(dO * O): eight lanes have a row, and a thread asks for all its packs at
 * once. Zero for queries that do not exist: their q and dO are zero too, and what they add. */
template <class E>
__device__ inline void row_stats(const Backward90 &at, const Backward90Args &a, int b, int h)
{
    constexpr int EACH = (Backward90::ROWS + 31) / 32;
    const int first = threadIdx.x / 8, c = threadIdx.x % 8 * 8;
    uint4 x[EACH] = {}, y[EACH] = {};
    float lse[EACH] = {};
    each<EACH>([&](int i) {
        const long row = first + 32 * i, query = (long)b * a.Tq + row;
        if (row < a.Tq && c < a.hs) {
            x[i] = *(const uint4 *)((const E *)a.dout + query * a.ld_dout + h * a.hs + c);
            y[i] = *(const uint4 *)((const E *)a.out + query * a.ld_out + h * a.hs + c);
            lse[i] = a.lse[((long)b * a.heads + h) * a.Tq + row];
        }
    });
    each<EACH>([&](int i) {
        const int row = first + 32 * i;
        float sum = pack_dot<E>(x[i], y[i]);
        for (int d = 1; d < 8; d *= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, d);
        if (c == 0 && row < Backward90::ROWS) {
            at.lse[row] = lse[i] * LOG2E;
            at.delta[row] = sum;
        }
    });
}

/* ------------------------------------------------------------------------------------------------
 * Phase 1: a group's 64 keys, of which a thread has two, and N queries. Sums go on: the products of
 * dk and dv are under way at the end, and those of the call before done with after the first
 * wait. */

struct Keys90 {
    int tile, warp, lane;
    uint64_t k, v;     /* operands: its 64 rows */
    uint32_t there[2]; /* all bits: the key exists */
};

/* Bit 4j + e of a tile: whether its element is kept */
template <int N, class Keep>
__device__ inline uint32_t kept_of(const Keep &keep, int query, int key)
{
    uint32_t kept = 0;
    each<N / 4>([&](int i) {
        const uint32_t two = keep.from(query + i / 2 * 8 + i % 2, key); /* key, and key + 8 */
        kept |= ((two & 1) | (two >> 8 & 1) << 2) << (i / 2 * 4 + i % 2);
    });
    return kept;
}

template <class E, int N>
__device__ inline void queries_90(float (&dk)[32], float (&dv)[32], const Backward90 &at,
                                  const Keys90 &keys, const Backward90Args &a, const Keep90 &keep,
                                  int query)
{
    const uint64_t q =
        wgmma_operand(at.q + query * SLAB_ROW, SWIZZLE_128, 8 * SLAB_ROW, Backward90::MATRIX);
    const uint64_t dout =
        wgmma_operand(at.dout + query * SLAB_ROW, SWIZZLE_128, 8 * SLAB_ROW, Backward90::MATRIX);
    const int column = query + keys.lane % 4 * 2, row = 64 * keys.tile + 16 * keys.warp;
    float s[N / 2], dp[N / 2];
    uint32_t p[N / 16][4], kept = ~0u;

    wgmma_fence(s, dp);
    each<4>([&](int c) {
        wgmma<E, E>(s, wgmma_advance(keys.k, 32 * c), wgmma_advance(q, 32 * c), c > 0);
    });
    wgmma_commit();
    each<4>([&](int c) {
        wgmma<E, E>(dp, wgmma_advance(keys.v, 32 * c), wgmma_advance(dout, 32 * c), c > 0);
    });
    wgmma_commit();
    if (a.mask.keep)
        kept = kept_of<N>(keep, column, row + keys.lane / 4);
    wgmma_wait<1>(s);

    /* a thread's rows are g and g + 8, its queries 8j + 2t and the next */
    each<N / 8>([&](int j) {
        float lse[2];
        load(lse, at.lse + column + 8 * j);
        each<4>([&](int e) {
            float &x = s[4 * j + e];
            x = ex2_approx(fmaf(x, a.scale2, -lse[e % 2]));
        });
        each<2>([&](int r) {
            uint32_t &pair = p[j / 2][j % 2 * 2 + r];
            pair = pack<E>(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]);
            if (a.mask.keep)
                pair &= both_halves(kept >> (4 * j + 2 * r));
        });
    });
    wgmma_fence(dv);
    each<N / 16>([&](int c) {
        wgmma<E, E, false, true>(dv, p[c], wgmma_advance(dout, 16 * c * SLAB_ROW), true);
    });
    wgmma_commit();
    wgmma_wait<1>(dp);

    uint32_t ds[N / 16][4];
    each<N / 8>([&](int j) {
        float delta[2];
        load(delta, at.delta + column + 8 * j);
        each<4>([&](int e) {
            float &x = dp[4 * j + e];
            if (a.mask.keep)
                x = kept >> (4 * j + e) & 1 ? x * a.mask.scale : 0;
            x = s[4 * j + e] * (x - delta[e % 2]);
        });
        each<2>([&](int r) {
            ds[j / 2][j % 2 * 2 + r] =
                pack<E>(dp[4 * j + 2 * r], dp[4 * j + 2 * r + 1]) & keys.there[r];
        });
    });
    if (row < a.T)
        each<N / 16>([&](int c) {
            put_16(at.ds + query / 64 * Backward90::MATRIX + row * SLAB_ROW, ds[c], c, keys.lane);
        });
    wgmma_fence(dk);
    each<N / 16>([&](int c) {
        wgmma<E, E, false, true>(dk, ds[c], wgmma_advance(q, 16 * c * SLAB_ROW), true);
    });
    wgmma_commit();
}

/* ------------------------------------------------------------------------------------------------
 * Results: a warp's 16 rows go out through a strip of shared memory, by the copy engine; in 8 bits
 * by the warp itself, which reads them once more for their column sums. */

/* Where 16 rows of a slab belong; heads as a token's row has them, 3 * a.heads */
struct Place90 {
    const CUtensorMap *map;
    int slab, head, row, rows, b; /* rows: of an image */
};

/* Before anything else, by all threads; a barrier follows. */
__device__ inline void begin_eight(const Fp8Cast &eight, float *most)
{
    if (threadIdx.x > 0)
        return;
    *most = 0;
    if (blockIdx.x == 0)
        eight.scale->inverse = 1 / delayed_scale(eight.scale);
}
/* A warp's largest. To memory goes what is larger than all that the block has seen: little. */
__device__ inline void note_eight(const Fp8Cast &eight, float *most, float x, int lane)
{
    const uint32_t bits = __float_as_uint(warp_amax(x));
    if (lane == 0 && eight.how.learns && atomicMax((unsigned *)most, bits) < bits)
        raise_amax(&eight.scale->amax, __uint_as_float(bits));
}
/* The lane's two columns of the strip's rows, as they were rounded to 16 bits: their sums, and what
 * they are in 8. */
template <class E, bool EIGHT>
__device__ inline void read_rows(float2 &sum, float *most, const unsigned char *strip,
                                 const Place90 &to, const Backward90Args &a, int lane)
{
    const int column = 64 * to.slab + 2 * lane;
    const float scale = EIGHT ? delayed_scale(a.eight.scale) : 1;
    uint8_t *out = a.eight.to + ((long)to.b * a.T + to.row) * a.eight.n + to.head * a.hs + column;
    const int rows = column < a.hs ? min(to.rows - to.row, 16) : 0; /* beyond are zeros */
    float largest = 0;
    for (int r = 0; r < rows; r++) {
        float x[2];
        load(x, (const E *)(strip + r * SLAB_ROW + ((lane / 4 ^ r % 8) << 4) + lane % 4 * 4));
        sum.x += x[0];
        sum.y += x[1];
        if (EIGHT)
            store_fp8<__NV_E5M2>(out, x, scale, &largest);
        out += a.eight.n;
    }
    if (EIGHT)
        note_eight(a.eight, most, largest, lane);
}
template <class E, bool EIGHT, int R>
__device__ inline void put_rows(float2 &sum, float *most, unsigned char *strip, const float (&x)[R],
                                float factor, const Place90 &to, const Backward90Args &a, int lane)
{
    const int slab = to.slab;
    if (lane == 0)
        tma_store_read_wait<0>(); /* of what went through it before */
    __syncwarp();
    each<4>([&](int c) {
        uint32_t pairs[4];
        each<4>([&](int i) {
            const int at = 32 * slab + 8 * c + 2 * i;
            pairs[i] = at < R ? pack<E>(x[at % R] * factor, x[(at + 1) % R] * factor) : 0;
        });
        if (32 * slab + 8 * c < R)
            put_16(strip, pairs, c, lane);
    });
    fence_proxy_async();
    __syncwarp();
    if (lane == 0 && !EIGHT) {
        tma_store_4d(to.map, strip, 64 * slab, to.head, to.row, to.b);
        tma_store_commit();
    }
    if (EIGHT || a.sums)
        read_rows<E, EIGHT>(sum, most, strip, to, a, lane);
}
/* The head's column sums: those of the block's warps, in order; after a barrier */
__device__ inline void sum_head(const float *warps, const Backward90Args &a, int b, int h)
{
    constexpr int WARPS = Backward90::WARPS;
    const int i = threadIdx.x / 64, c = threadIdx.x % 64, C = a.heads * a.hs;
    if (i >= 3 || c >= a.hs)
        return;
    float sum = 0;
    for (int w = 0; w < WARPS; w++)
        sum += warps[(i * WARPS + w) * 64 + c];
    const long row = i ? a.B + 2L * b + i - 1 : b;
    a.sums[row * C + h * a.hs + c] = sum;
}

/* ------------------------------------------------------------------------------------------------
 * A group's share of both phases */

/* dk and dv of the tiles of keys whose turn it is, and their column sums */
template <class E, bool EIGHT>
__device__ inline void keys_90(float2 &dk_sum, float2 &dv_sum, const Backward90 &at,
                               const Backward90Maps &maps, const Backward90Args &a,
                               const Keep90 &keep, int b, int h, int group, int warp, int lane)
{
    const int whole = (a.Tq + 47) / 64; /* 17 to 63 queries count as 64 */
    for (int tile = group; 64 * tile < a.T; tile += Backward90::GROUPS) {
        const int first = 64 * tile + 16 * warp, key = first + lane / 4;
        unsigned char *strip = at.v + first * SLAB_ROW;
        const Keys90 keys = {tile,
                             warp,
                             lane,
                             wgmma_operand(at.k + tile * SLAB, SWIZZLE_128, 8 * SLAB_ROW),
                             wgmma_operand(at.v + tile * SLAB, SWIZZLE_128, 8 * SLAB_ROW),
                             {key < a.T ? ~0u : 0, key + 8 < a.T ? ~0u : 0}};
        float dk[32] = {}, dv[32] = {};
        for (int j = 0; j < whole; j++)
            queries_90<E, 64>(dk, dv, at, keys, a, keep, 64 * j);
        if (64 * whole < a.Tq)
            queries_90<E, 16>(dk, dv, at, keys, a, keep, 64 * whole);
        wgmma_wait<0>(dk, dv);
        named_barrier_sync(1 + group, SM90_GROUP); /* the tile of v is room now */
        if (first >= a.T)
            continue;
        put_rows<E, EIGHT>(dv_sum, at.most, strip, dv, a.mask.scale,
                           {&maps.dkeys, 0, 2 * a.heads + h, first, a.T, b}, a, lane);
        put_rows<E, EIGHT>(dk_sum, at.most, strip, dk, a.scale,
                           {&maps.dkeys, 0, a.heads + h, first, a.T, b}, a, lane);
    }
}
/* dq of the tiles of queries, through the strips of v that the warp has used before */
template <class E, bool EIGHT>
__device__ inline void dq_90(float2 &sum, const Backward90 &at, const Backward90Maps &maps,
                             const Backward90Args &a, int b, int h, int group, int warp, int lane)
{
    const uint64_t ds = wgmma_operand(at.ds, SWIZZLE_128, 8 * SLAB_ROW, Backward90::MATRIX);
    const uint64_t k = wgmma_operand(at.k, SWIZZLE_128, 8 * SLAB_ROW, Backward90::MATRIX);
    for (int tile = group; 64 * tile < a.Tq; tile += Backward90::GROUPS) {
        const int first = 64 * tile + 16 * warp;
        unsigned char *strip = at.v + first * SLAB_ROW;
        float dq[32] = {};
        wgmma_fence(dq);
#pragma unroll 1
        for (int key = 0; key < a.T; key += 16)
            wgmma<E, E, true, true>(dq,
                                    wgmma_advance(ds, tile * Backward90::MATRIX + key * SLAB_ROW),
                                    wgmma_advance(k, key * SLAB_ROW), true);
        wgmma_commit();
        wgmma_wait<0>(dq);
        if (first >= a.Tq)
            continue;
        put_rows<E, EIGHT>(sum, at.most, strip, dq, a.scale, {&maps.dqueries, 0, h, first, a.Tq, b},
                           a, lane);
    }
}

/* ------------------------------------------------------------------------------------------------
 * Grid: a block for each multiprocessor, which stays for one head after another. 10 Tq T hs FLOPs a
 * head; 4T + 4Tq rows of hs elements, each once (dO a second time, from the L2, for delta). */
template <class E, bool EIGHT>
__global__ void __launch_bounds__(HAS_SM90 ? Backward90::THREADS : 32, 1)
    attention_sm90_backward_kernel(const __grid_constant__ Backward90Maps maps,
                                   const Backward90Args a)
{
    launched_within<Backward90::THREADS>();
    if constexpr (HAS_SM90) {
        const int group = threadIdx.x / SM90_GROUP, warp = threadIdx.x % SM90_GROUP / 32;
        const int lane = threadIdx.x % 32, heads = a.B * a.heads;
        const Backward90 at;
        if (EIGHT)
            begin_eight(a.eight, at.most);
        if (threadIdx.x == 0) {
            mbarrier_init(at.there, 1);
            mbarrier_init(at.there + 1, 1);
            mbarrier_init_fence();
            fetch_queries(at, maps, blockIdx.x / a.heads, blockIdx.x % a.heads);
            fetch_keys(at, maps, a.heads, blockIdx.x / a.heads, blockIdx.x % a.heads);
        }
        for (int head = blockIdx.x, parity = 0; head < heads; head += gridDim.x, parity ^= 1) {
            const int h = head % a.heads, b = head / a.heads, next = head + gridDim.x;
            row_stats<E>(at, a, b, h);
            const Keep90 keep(at.keep, a.mask, h, a.T);
            if (a.mask.keep)
                keep.make(a.mask, a.state, b, a.Tq);
            __syncthreads();
            mbarrier_wait(at.there, parity);
            mbarrier_wait(at.there + 1, parity);
            float2 sums[3] = {}; /* of dq, dk, dv */
            keys_90<E, EIGHT>(sums[1], sums[2], at, maps, a, keep, b, h, group, warp, lane);
            __syncthreads(); /* all of dS is there, and q and dO have been read */
            if (threadIdx.x == 0 && next < heads)
                fetch_queries(at, maps, next / a.heads, next % a.heads);
            dq_90<E, EIGHT>(sums[0], at, maps, a, b, h, group, warp, lane);
            if (lane == 0)
                tma_store_read_wait<0>();
            each<3>([&](int i) {
                *(float2 *)(at.sums + (i * Backward90::WARPS + threadIdx.x / 32) * 64 + 2 * lane) =
                    sums[i];
            });
            __syncthreads(); /* k, v and what was made for this head have been read */
            if (threadIdx.x == 0 && next < heads)
                fetch_keys(at, maps, a.heads, next / a.heads, next % a.heads);
            if (a.sums)
                sum_head(at.sums, a, b, h);
        }
    }
}

/* ------------------------------------------------------------------------------------------------
 * Host */

static bool backward90_takes(const Attention *a)
{
    if (!sm90_here() || a->qkv.type == F32 || a->hs % 8 != 0 || a->hs > 64)
        return false;
    if (a->T > Backward90::ROWS || Backward90::bytes(a->T, a->drop.p > 0) > (size_t)cu.smem)
        return false;
    return wide_rows(a->qkv) && wide_rows(a->out) && wide_rows(a->dqkv) && wide_rows(a->dout);
}

/* Of the first `rows` of each image's `all`, in boxes of `box` rows; heads: how many follow each
 * other in a row. None of rows that the copy engine does not move. */
template <class E>
static CUtensorMap heads_of_images(const Attention *a, const Tensor &t, int heads, int rows,
                                   int all, int box)
{
    CUtensorMap map = {};
    if (is_fp8(t.type))
        return map;
    const uint64_t size[4] = {(uint64_t)a->hs, (uint64_t)heads, (uint64_t)rows, (uint64_t)a->B};
    const uint64_t row = (uint64_t)t.ld * sizeof(E);
    const uint64_t stride[4] = {sizeof(E), a->hs * sizeof(E), row, (uint64_t)all * row};
    const uint32_t boxes[4] = {64, 1, (uint32_t)box, 1};
    if (!tensor_map<E, 4>(&map, t.p, size, stride, boxes, SWIZZLE_128))
        die("VIT_GEMM=cublaslt does without this program's own kernels for Hopper",
            "the driver refuses a map of %d heads of %d", a->heads, a->hs);
    return map;
}

static Backward90Args backward90_args(const Attention *a, float *sums)
{
    return {a->out.p,
            a->dout.p,
            ptr<float>(a->lse),
            sums,
            a->out.ld,
            a->dout.ld,
            a->B,
            a->T,
            a->Tq,
            a->heads,
            a->hs,
            (float)(1 / sqrt((double)a->hs)),
            (float)(1.4426950408889634 / sqrt((double)a->hs)),
            mask_of(a->drop, a->heads),
            cu.state,
            is_fp8(a->dqkv.type) ? fp8_copies_of(a->dqkv, (long)a->B * a->T, a->dqkv.ld)
                                 : Fp8Cast{}};
}
template <class E, bool EIGHT> static void backward90_launch(const Attention *a)
{
    const int H = a->heads, T = a->T, Tq = a->Tq, C = H * a->hs;
    const Backward90Maps maps = {
        heads_of_images<E>(a, a->qkv, 3 * H, T, T, Backward90::ROWS),
        heads_of_images<E>(a, a->qkv, 3 * H, Tq, T, Backward90::ROWS),
        heads_of_images<E>(a, a->dout, H, Tq, Tq, Backward90::ROWS),
        heads_of_images<E>(a, a->dqkv, 3 * H, T, T, 16),
        heads_of_images<E>(a, a->dqkv, 3 * H, Tq, T, 16),
    };
    float *sums = a->dbias ? scratch_floats(3 * (size_t)a->B * C) : NULL;
    const Backward90Args args = backward90_args(a, sums);
    launch(attention_sm90_backward_kernel<E, EIGHT>,
           (unsigned)std::min(a->B * H, cu.gpu.multiProcessorCount), Backward90::THREADS,
           Backward90::bytes(T, a->drop.p > 0), cu.stream, maps, args);
    if (sums)
        launch(attention_dbias_kernel, dim3(ceil_div(3L * C, 32)), dim3(1024),
               32 * 33 * sizeof(float), cu.stream, ptr<float>(a->dbias), (const float *)sums, a->B,
               (const float *)sums + (size_t)a->B * C, a->B, C);
}
/* f(e, eight) with e an element and constexpr bool EIGHT = eight: whether dqkv has 8 bits */
template <class F> static void by_gradient(const Attention *a, F f)
{
    if (a->qkv.type == F16)
        f(fp16(), Width<0>());
    else if (is_fp8(a->dqkv.type))
        f(bf16(), Width<1>());
    else
        f(bf16(), Width<0>());
}
static void backward90(const Attention *a)
{
    by_gradient(a, [&](auto e, auto eight) { backward90_launch<decltype(e), eight != 0>(a); });
}
