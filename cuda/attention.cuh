/* attention.cuh - softmax attention and its gradient, fused: no T x T matrix goes to memory.
 *
 * One head of one image is S = q k^T / sqrt(hs), P = softmax(S) by rows, O = (M P) v, where q, k, v
 * are [T, hs] and M is the dropout mask (0 or 1/(1-p)). Written out, S and P would cost more memory
 * traffic than all the rest, so they are made tile by tile where they are used and thrown away
 * (FlashAttention: Dao et al. 2022; Dao 2023). Forward needs an online softmax for that (Milakov
 * and Gimelshein 2018), backward recomputes P from each row's saved log-sum-exp.
 *
 * How the work is cut. S is made in tiles of 16x16. A warp owns 16 rows (of queries, or of keys in
 * the kernel for dk and dv), keeps what belongs to them in registers, and walks over the rows of
 * the other side. These stream through shared memory, 64 at a time, in two stages: the next 64
 * arrive (cp.async) while these are used. A block is up to 8 such warps of one head. Rows beyond T
 * exist in shared memory alone, up to the next 16: T = 197 costs 208, not 256. Every sum belongs to
 * one warp and has a fixed order: no atomics, the same bits every time.
 *
 * Read in this order:
 *   1. Places     tiles, warps, threads
 *   2. Products   two products of 16x16 tiles, on tensor cores (bf16, fp16) or in float
 *   3. Memory     rows in, results out, the dropout mask
 *   4. Forward    the online softmax
 *   5. Backward   one kernel for dq, one for dk and dv, one for the bias gradient
 *   6. Host       sizes, dispatch on type and head size
 *
 * The two products serve all nine matrix multiplications, because the first leaves a tile of S in
 * the registers where the second wants its left operand: P and dS never leave registers.
 *
 * Times below are estimates for one layer of B/16 at batch 256 on an H200 (4.3 TB/s; mma.sync at
 * 62% of the 790 TFLOP/s that wgmma reaches, 490). NOTHING HERE HAS BEEN MEASURED YET. With wgmma
 * and TMA, on Hopper: forward attention_sm90.cuh (up to 272 tokens) and attention_sm90_long.cuh,
 * backward attention_sm90_backward.cuh (208) and attention_sm90_large.cuh.
 */
#pragma once

#include "cuda/common.cuh"

/* What the kernels are told. Shapes and formulas: Attention in backend.h. */
template <class E> struct AttentionArgs {
    const E *qkv, *dout;
    E *out, *dqkv;
    long ld, ld_out, ld_dqkv, ld_dout;
    float *lse, *delta; /* [B, heads, Tq] */
    float *sums;        /* backward: column sums of each block's rows, or NULL */
    int T, Tq, heads, hs, C;
    float scale, scale2; /* 1/sqrt(hs), and the same for exponents to base 2 */
    Mask mask;
    const StepState *state;
    bool wide; /* all rows can be read in packs of 16 bytes */
};

constexpr float LOG2E = 1.44269504f;

/* ------------------------------------------------------------------------------------------------
 * 1. Places */

/* ROWS rows in shared memory. D is the head size rounded up to 16, the rest zero; the padding of
 * one pack puts 8 rows at the same column into different banks (16 bytes times an odd number
 * apart), as ldmatrix and the threads of a tile read and write them. */
template <class E, int D> struct Tile {
    static constexpr int ROWS = sizeof(E) == 2 ? 64 : 32;
    static constexpr int STRIDE = D + WIDE<E>;
    static constexpr int SIZE = ROWS * STRIDE;
};

/* Most warps of a block that owns queries, keys: two such blocks shall fit the 65,536 registers of
 * a multiprocessor (8 warps: 128 for a thread; 6: 168; 4: 255) with next to no spills. */
template <class E, int D, bool DROP> struct Warps {
    static constexpr bool SLOW = DROP || sizeof(E) == 4;
    static constexpr int Q = SLOW || D > 112 ? 4 : D > 64 ? 6 : 8;
    static constexpr int KV = SLOW || D > 64 ? 4 : 8;
    static_assert(32 * (Q > KV ? Q : KV) <= 4 * Tile<E, D>::ROWS, "see sum_columns");
};

/* Where a thread is. Of a 16x16 tile x[2][4] it has x[i][e] at (row(e), column(i, e)); of 16 rows
 * of D, x[D/8][4] in the same way. So does mma.sync; the four threads of equal g are a quad. */
struct Place {
    int b, head, block; /* image, head, block within the head */
    int warp, lane, g, t;
    int row, rows; /* the warp's first row within the head, and how many of its 16 exist */

    explicit __device__ inline Place(int all_rows)
    {
        block = blockIdx.x; /* neighbours share a head, and its data in the L2 */
        head = blockIdx.y;
        b = blockIdx.z;
        warp = threadIdx.x / 32;
        lane = threadIdx.x % 32;
        g = lane / 4;
        t = lane % 4;
        row = first_row();
        rows = min(max(all_rows - row, 0), 16);
    }
    /* `row`, by registers of the block alone */
    static __device__ inline int first_row()
    {
        return 16 * (blockIdx.x * (blockDim.x / 32) + (unsigned)anew(threadIdx.x) / 32);
    }
    __device__ inline int at_row(int e) const { return g + e / 2 * 8; }
    __device__ inline int at_column(int i, int e) const { return 8 * i + 2 * t + e % 2; }
};
/* f(i, e) for a thread's elements of a 16x16 tile */
template <class F> __device__ inline void each_of_tile(F f)
{
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            f(i, e);
}
__device__ inline float quad_sum(float x)
{
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ inline float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

/* `rows` rows to shared memory, of which `valid` exist and the others become zero; asynchronous
 * where they are wide. */
template <class E, int D>
__device__ inline void copy_rows(E *to, const E *from, long ld, int rows, int valid,
                                 const AttentionArgs<E> &a, int thread, int threads)
{
    constexpr int W = WIDE<E>, PACKS = D / W, S = Tile<E, D>::STRIDE;
    thread = anew(thread);
    if (!a.wide) {
#pragma unroll 1 /* rarely used: not worth registers */
        for (int i = thread; i < rows * D; i += threads) {
            int r = i / D, c = i % D;
            to[r * S + c] = r < valid && c < a.hs ? from[r * ld + c] : from_float<E>(0);
        }
    } else if constexpr (32 % PACKS == 0) { /* a thread keeps its column */
        const int c = thread % PACKS * W, end = c < a.hs ? valid : 0, row = (int)ld;
#pragma unroll 1
        for (int r = thread / PACKS; r < rows; r += threads / PACKS)
            cp_async<16>(to + r * S + c, from + (r < end ? r * row + c : 0), r < end ? 16 : 0);
    } else {
        for (int i = thread; i < rows * PACKS; i += threads) {
            int r = i / PACKS, c = i % PACKS * W;
            bool exists = r < valid && c < a.hs;
            cp_async<16>(to + r * S + c, exists ? from + r * ld + c : from, exists ? 16 : 0);
        }
    }
}

/* ------------------------------------------------------------------------------------------------
 * 2. Products of a warp, whose own 16 rows are `left`, with 16 rows of a tile:
 *
 *   dot   c [16,16] += left [16,D] rows^T      S = q k^T, dP = dO v^T, and both transposed
 *   add   o [16,D]  += p [16,16] rows [16,D]   O += P v, dq += dS k, dv += P^T dO, dk += dS^T q
 */

/* 16-bit types: mma.sync m16n8k16, sums in float. `left` stays in registers, in the layout that the
 * instruction wants; p is in it already and is rounded to 16 bits here. */
template <class E, int D> struct Mma {
    static constexpr int ROOM = 0; /* elements of shared memory for a left operand */
    struct Left {
        uint32_t a[D / 16][4];
    };

    /* A quad reads 16 bytes in a row; the L1 has the sector's other half for the second read. */
    static __device__ inline void load_left(Left &left, E *, const E *from, long ld, int rows,
                                            const AttentionArgs<E> &args)
    {
        int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int k = 0; k < D / 16; k++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int r = g + i % 2 * 8, c = 16 * k + 2 * t + i / 2 * 8;
                const E *x = from + r * ld + c;
                uint32_t pair = 0;
                if (r < rows && c < args.hs) {
                    if (args.wide)
                        memcpy(&pair, __builtin_assume_aligned(x, 4), 4);
                    else
                        pair = pack<E>(to_float(x[0]), c + 1 < args.hs ? to_float(x[1]) : 0);
                }
                left.a[k][i] = pair;
            }
    }
    static __device__ inline void dot(float (&c)[2][4], const Left &left, const E *rows)
    {
        int lane = threadIdx.x % 32;
        const E *x = rows + (lane / 16 * 8 + lane % 8) * Tile<E, D>::STRIDE + lane / 8 % 2 * 8;
#pragma unroll
        for (int k = 0; k < D / 16; k++)
            two<false>(c[0], c[1], left.a[k], x + 16 * k);
    }
    static __device__ inline void add(float (&o)[D / 8][4], const float (&p)[2][4], const E *rows)
    {
        int lane = threadIdx.x % 32;
        const E *x = rows + lane % 16 * Tile<E, D>::STRIDE + lane / 16 * 8;
        const uint32_t a[4] = {pack<E>(p[0][0], p[0][1]), pack<E>(p[0][2], p[0][3]),
                               pack<E>(p[1][0], p[1][1]), pack<E>(p[1][2], p[1][3])};
#pragma unroll
        for (int n = 0; n < D / 16; n++)
            two<true>(o[2 * n], o[2 * n + 1], a, x + 16 * n);
    }
    /* 16x16 of a result, as two of 16x8, whose right operands one ldmatrix brings */
    template <bool TRANS>
    static __device__ inline void two(float (&c0)[4], float (&c1)[4], const uint32_t (&a)[4],
                                      const E *x)
    {
        uint32_t b[4];
        if constexpr (TRANS)
            ldmatrix_x4_trans(b, x);
        else
            ldmatrix_x4(b, x);
        const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
        mma_m16n8k16<E>(c0, a, b0);
        mma_m16n8k16<E>(c1, a, b1);
    }
};

/* float: the same tiles with fused multiply-adds, true fp32. `left` is in shared memory, and p is
 * fetched from the thread of the quad that has it. For exact runs, not for speed: shared memory
 * bounds it to about half of the FMA rate (estimate). */
template <int D> struct Mma<float, D> {
    static constexpr int S = Tile<float, D>::STRIDE, ROOM = 16 * S;
    struct Left {
        const float *rows;
    };

    static __device__ inline void load_left(Left &left, float *room, const float *from, long ld,
                                            int rows, const AttentionArgs<float> &args)
    {
        copy_rows<float, D>(room, from, ld, 16, rows, args, threadIdx.x % 32, 32);
        left.rows = room;
    }
    static __device__ inline void dot(float (&c)[2][4], const Left &left, const float *rows)
    {
        int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll 4
        for (int d = 0; d < D; d += 4) {
            float x[2][4], y[4];
            load(x[0], left.rows + g * S + d);
            load(x[1], left.rows + (g + 8) * S + d);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                load(y, rows + (j / 2 * 8 + 2 * t + j % 2) * S + d);
#pragma unroll
                for (int k = 0; k < 8; k++)
                    c[j / 2][k / 4 * 2 + j % 2] += x[k / 4][k % 4] * y[k % 4];
            }
        }
    }
    static __device__ inline void add(float (&o)[D / 8][4], const float (&p)[2][4],
                                      const float *rows)
    {
        int quad = threadIdx.x % 32 / 4 * 4, t = threadIdx.x % 4;
#pragma unroll
        for (int k = 0; k < 16; k++) {
            float x0 = __shfl_sync(0xffffffffu, p[k / 8][k % 2], quad + k % 8 / 2);
            float x1 = __shfl_sync(0xffffffffu, p[k / 8][2 + k % 2], quad + k % 8 / 2);
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                float y[2];
                load(y, rows + k * S + 8 * n + 2 * t);
                o[n][0] += x0 * y[0];
                o[n][1] += x0 * y[1];
                o[n][2] += x1 * y[0];
                o[n][3] += x1 * y[1];
            }
        }
    }
};

/* ------------------------------------------------------------------------------------------------
 * 3. Memory */

/* A block's shared memory: two stages of two tiles, rings in which a streamed row r is at
 * r % (2 ROWS); room for left operands (float alone); lse and delta of the streamed rows, rings as
 * well (used for dk and dv); a dropout mask for each warp. */
template <class E, int D> struct Shared {
    static constexpr int ROWS = Tile<E, D>::ROWS, SIZE = Tile<E, D>::SIZE, ROOM = Mma<E, D>::ROOM;
    static constexpr int KEEP = 20 * ROWS; /* bytes: 16 rows of ROWS + 4, or ROWS rows of 16 + 4 */
    E *tiles, *room;
    float *stats;
    uint8_t *keep;

    __device__ inline Shared(const Place &p)
    {
        tiles = dynamic_smem<E>();
        room = tiles + 4 * SIZE + 2 * p.warp * ROOM;
        stats = (float *)(tiles + 4 * SIZE + 2 * (int)(blockDim.x / 32) * ROOM);
        keep = (uint8_t *)(stats + 4 * ROWS) + p.warp * KEEP;
    }
    __device__ inline static int place(int row) { return (unsigned)row % (2 * ROWS); }
    __device__ inline E *first(int row) const { return tiles + place(row) * Tile<E, D>::STRIDE; }
    __device__ inline E *second(int row) const { return first(row) + 2 * SIZE; }
    __device__ inline float *lse(int row) const { return stats + place(row); }
    __device__ inline float *delta(int row) const { return lse(row) + 2 * ROWS; }
    static size_t bytes(int warps, bool drop)
    {
        return (4 * SIZE + 2 * (size_t)warps * ROOM) * sizeof(E) + 4 * ROWS * sizeof(float) +
               (drop ? (size_t)warps * KEEP : 0);
    }
};

/* The other side's `rows` rows, tile after tile: fetch(row) starts copying the tile from row on,
 * use(row, mask) has STEP of them, with the tile's dropout mask(row). The caller fetches the first
 * tile, and does more while that arrives. `own` is how many rows the head's warps own together.
 * Products take nearly all registers: so `row` alone says where all this stands, and what a warp is
 * asked to know once a tile is computed anew. */
template <int ROWS, int STEP, class Fetch, class Mask, class Use>
__device__ inline void stream(int rows, int own, Fetch fetch, Mask mask, Use use)
{
    cp_async_commit();
    for (int row = 0; row < rows;) {
        cp_async_wait<0>();
        __syncthreads(); /* this stage is complete, and the other's readers are done */
        if (row + ROWS < rows)
            fetch(row + ROWS);
        cp_async_commit();
        if (Place::first_row() >= own) { /* this warp's rows do not exist: it only fetches */
            row += ROWS;
            continue;
        }
        const auto keep = mask(row);
        do {
            use(row, keep);
            row += STEP;
        } while (STEP < ROWS && row % ROWS && row < rows);
    }
    __syncthreads(); /* results go out through the tiles */
}

/* Start copying as many of the rows from `row` on as fit a tile. */
template <class E, int D>
__device__ inline void fetch_tile(E *tile, const E *from, long ld, int row, int rows,
                                  const AttentionArgs<E> &a)
{
    int valid = min(rows - row, Tile<E, D>::ROWS);
    copy_rows<E, D>(tile, from + row * ld, ld, (valid + 15) / 16 * 16, valid, a, threadIdx.x,
                    blockDim.x);
}

/* The warp's rows x[n][e] * factor[e/2], through `tile` (16 rows a warp), where they are rounded */
template <class E, int D>
__device__ inline void write_rows(E *tile, E *to, long ld, const float (&x)[D / 8][4],
                                  const float (&factor)[2], const Place &p,
                                  const AttentionArgs<E> &a)
{
    constexpr int W = WIDE<E>, PACKS = D / W, S = Tile<E, D>::STRIDE;
    E *mine = tile + p.warp * 16 * S;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
            const float pair[2] = {x[n][e] * factor[e / 2], x[n][e + 1] * factor[e / 2]};
            store(mine + p.at_row(e) * S + 8 * n + 2 * p.t, pair);
        }
    __syncwarp();
    for (int i = p.lane; i < p.rows * PACKS; i += 32) {
        int r = i / PACKS, c = i % PACKS * W;
        if (a.wide && c < a.hs)
            *(Pack<E, W> *)(to + r * ld + c) = *(const Pack<E, W> *)(mine + r * S + c);
        for (int k = 0; !a.wide && k < W && c + k < a.hs; k++)
            to[r * ld + c + k] = mine[r * S + c + k];
    }
}

/* Column sums of what the block's warps left in `tile`: what will be read, not what was rounded.
 * As many threads as fit share a column; their sums meet in `room`, a float for each thread that
 * nobody reads any more. `all_rows` as for Place. */
template <class E, int D>
__device__ inline void sum_columns(float *to, const E *tile, float *room, int all_rows,
                                   const Place &p, const AttentionArgs<E> &a)
{
    const int most = blockDim.x / 32 * 16, rows = min(all_rows - p.block * most, most);
    const int parts = max((int)blockDim.x / a.hs, 1);
    const int part = parts > 1 ? threadIdx.x / a.hs : 0, first = threadIdx.x - part * a.hs;
    __syncthreads(); /* the tile has been written, and the room read by the call before */
    for (int c = part < parts ? first : a.hs; c < a.hs; c += blockDim.x) {
        float sum = 0;
#pragma unroll 8
        for (int r = part; r < rows; r += parts)
            sum += to_float(tile[r * Tile<E, D>::STRIDE + c]);
        (parts > 1 ? room + part * a.hs : to)[c] = sum;
    }
    if (parts < 2)
        return;
    __syncthreads();
    if (part > 0)
        return;
    float sum = room[first];
    for (int i = 1; i < parts; i++)
        sum += room[i * a.hs + first];
    to[first] = sum;
}

/* A warp's part of the dropout mask: queries from `query` on, of each the keys from `key` on.
 * Philox makes the mask of four neighbours in (head*T + query)*T + key at a time, `head` among
 * those of all ranks. Four belong to two threads or more and begin anywhere, T being odd, so each
 * four are made once, into bytes, and every query keeps its phase: key j is byte
 * (its first element) % 4 + j. */
struct Keep {
    uint8_t *bytes;
    uint64_t first; /* element of (query, key) */
    int T, stride;
    float scale;

    template <class E>
    __device__ inline Keep(uint8_t *bytes, const Place &p, int query, int key,
                           const AttentionArgs<E> &a)
        : bytes(bytes), first((((uint64_t)a.mask.first + p.head) * a.T + query) * a.T + key),
          T(a.T), stride(0), scale(a.mask.scale)
    {
    }
    /* After a barrier behind the last reader. */
    template <class E>
    __device__ inline void make(int queries, int keys, const Place &p, const AttentionArgs<E> &a)
    {
        int groups = keys / 4 + 1;
        stride = 4 * groups;
        for (int i = p.lane; i < queries * groups; i += 32) {
            float x[4];
            uint64_t element = first + (uint64_t)(i / groups) * T;
            mask4(x, a.mask, a.state, (uint32_t)(element / 4) + i % groups, p.b);
            *(uchar4 *)(bytes + 4 * i) = make_uchar4(x[0] != 0, x[1] != 0, x[2] != 0, x[3] != 0);
        }
        __syncwarp();
    }
    __device__ inline float at(int query, int key) const
    {
        uint32_t phase = ((uint32_t)first + (uint32_t)query * T) % 4;
        return bytes[query * stride + phase + key] ? scale : 0.0f;
    }
};

/* ------------------------------------------------------------------------------------------------
 * 4. Forward */

/* `keys` keys (at most ROWS, and FULL says that it is ROWS) for the warp's 16 queries. top is the
 * largest q.k so far times scale2, as it is rounded; O and sum hold 2^(s scale2 - top) v and
 * 2^(s scale2 - top) added up. When top rises to top', what is there already must shrink by
 * 2^(top - top'), of the same two numbers: of logits of 1e5 the rounding is no small part of 1. */
template <class E, int D, bool DROP, bool FULL>
__device__ inline void forward_tile(float (&o)[D / 8][4], float (&top)[2], float (&sum)[2],
                                    const typename Mma<E, D>::Left &q, const E *k, const E *v,
                                    int keys, const Keep &keep, const Place &p, float scale2)
{
    constexpr int N = Tile<E, D>::ROWS / 16, S = 16 * Tile<E, D>::STRIDE;
    const int limit = keys - p.at_column(0, 0); /* from the thread's first column on */
    float s[N][2][4] = {}, high[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < N; n++) {
        if (!FULL && 16 * n >= keys)
            break;
        Mma<E, D>::dot(s[n], q, k + n * S);
        each_of_tile([&](int i, int e) {
            if (!FULL && 16 * n + 8 * i + e % 2 >= limit)
                s[n][i][e] = -INFINITY;
            high[e / 2] = fmaxf(high[e / 2], s[n][i][e]);
        });
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        high[r] = fmaxf(top[r], quad_max(high[r]) * scale2);
        float shrink = ex2_approx(top[r] - high[r]); /* 0 at first: top is -infinity */
        top[r] = high[r];
        sum[r] *= shrink;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            o[n][2 * r] *= shrink;
            o[n][2 * r + 1] *= shrink;
        }
    }
#pragma unroll
    for (int n = 0; n < N; n++) {
        if (!FULL && 16 * n >= keys)
            break;
        each_of_tile([&](int i, int e) {
            float x = ex2_approx(fmaf(s[n][i][e], scale2, -top[e / 2]));
            sum[e / 2] += x; /* of this thread's columns: the quad's are added at the end */
            s[n][i][e] = DROP ? x * keep.at(p.at_row(e), 16 * n + p.at_column(i, e)) : x;
        });
        Mma<E, D>::add(o, s[n], v + n * S);
    }
}

/* out [Tq, hs] = (M softmax(q k^T / sqrt(hs))) v and lse [Tq], for each of B*heads.
 * Grid: blocks, heads, B; a warp owns 16 queries; k and v stream.
 * 4 Tq T hs FLOPs a head; 2T + 2Tq rows of hs elements once from or to memory (k and v again for
 * each block, from the L2). B/16: 310 MB, 72 us; 34 GFLOP with padding, 69 us; 133 M exponentials,
 * 36 us beside the products. Floor about 72 us (estimates). */
template <class E, int D, bool DROP>
__global__ void __launch_bounds__(32 * Warps<E, D, DROP>::Q, 2)
    attention_forward_kernel(AttentionArgs<E> a)
{
    launched_within<32 * Warps<E, D, DROP>::Q>();
    using M = Mma<E, D>;
    constexpr int ROWS = Tile<E, D>::ROWS;
    const Place p(a.Tq);
    const Shared<E, D> at(p);
    const E *q = a.qkv + (long)p.b * a.T * a.ld + p.head * a.hs, *k = q + a.C, *v = k + a.C;

    auto fetch = [&](int key) {
        fetch_tile<E, D>(at.first(key), k, a.ld, key, a.T, a);
        fetch_tile<E, D>(at.second(key), v, a.ld, key, a.T, a);
    };
    fetch(0);
    typename M::Left left;
    M::load_left(left, at.room, q + p.row * a.ld, a.ld, p.rows, a);

    float o[D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {}, factor[2];
    auto mask = [&](int key) {
        Keep keep(at.keep, p, p.row, key, a);
        if constexpr (DROP)
            keep.make(16, ROWS, p, a);
        return keep;
    };
    stream<ROWS, ROWS>(a.T, a.Tq, fetch, mask, [&](int key, const Keep &keep) {
        if (a.T - key >= ROWS)
            forward_tile<E, D, DROP, true>(o, top, sum, left, at.first(key), at.second(key), ROWS,
                                           keep, p, a.scale2);
        else
            forward_tile<E, D, DROP, false>(o, top, sum, left, at.first(key), at.second(key),
                                            a.T - key, keep, p, a.scale2);
    });
    const Place end(a.Tq); /* again, so that nothing of it was kept during the products */
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] = quad_sum(sum[r]);
        factor[r] = 1 / sum[r];
        int row = end.at_row(2 * r);
        if (end.t == 0 && row < end.rows)
            a.lse[((long)end.b * a.heads + end.head) * a.Tq + end.row + row] =
                top[r] / LOG2E + logf(sum[r]);
    }
    write_rows<E, D>(at.tiles, a.out + ((long)end.b * a.Tq + end.row) * a.ld_out + end.head * a.hs,
                     a.ld_out, o, factor, end, a);
}

/* ------------------------------------------------------------------------------------------------
 * 5. Backward
 *   delta = rowsum(dO * O)      which is rowsum(P * M dP), for Tq hs products
 *   P = exp(S - lse),  dP = dO v^T,  dS = P * (M dP - delta)
 *   dq = dS k / sqrt(hs),  dk = dS^T q / sqrt(hs),  dv = (M P)^T dO
 * P and dS are rounded to 16 bits as they enter a product, dS before the factor 1/sqrt(hs). Two
 * kernels, since dq is a sum over keys and dk, dv are sums over queries: S and dP are made twice,
 * and nothing has to be added across blocks. */

/* x . y over a row of a head, by the threads of a quad, 64 bytes at a time */
template <class E, int N> __device__ inline float row_dot(const E *x, const E *y, int hs, int t)
{
    float sum = 0;
    for (int c = t * N; c < hs; c += 4 * N) {
        float u[N], v[N];
        load(u, x + c);
        load(v, y + c);
#pragma unroll
        for (int i = 0; i < N; i++)
            sum += u[i] * v[i];
    }
    return sum;
}

/* dq [Tq, hs] and delta [Tq], for each of B*heads; a.sums [B * blocks, C].
 * Grid: blocks, heads, B; a warp owns 16 queries; k and v stream.
 * 6 Tq T hs FLOPs a head; 2T + 4Tq rows of hs elements. B/16: 465 MB, 108 us; 51 GFLOP with
 * padding, 104 us. Floor about 108 us (estimates). */
template <class E, int D, bool DROP>
__global__ void __launch_bounds__(32 * Warps<E, D, DROP>::Q, 2)
    attention_dq_kernel(AttentionArgs<E> a)
{
    launched_within<32 * Warps<E, D, DROP>::Q>();
    using M = Mma<E, D>;
    constexpr int ROWS = Tile<E, D>::ROWS;
    const Place p(a.Tq);
    const Shared<E, D> at(p);
    const E *q = a.qkv + (long)p.b * a.T * a.ld + p.head * a.hs, *k = q + a.C, *v = k + a.C;
    const long query = (long)p.b * a.Tq + p.row;
    const E *out = a.out + query * a.ld_out + p.head * a.hs;
    const E *dout = a.dout + query * a.ld_dout + p.head * a.hs;

    auto fetch = [&](int key) {
        fetch_tile<E, D>(at.first(key), k, a.ld, key, a.T, a);
        fetch_tile<E, D>(at.second(key), v, a.ld, key, a.T, a);
    };
    fetch(0);
    typename M::Left left, dleft;
    M::load_left(left, at.room, q + p.row * a.ld, a.ld, p.rows, a);
    M::load_left(dleft, at.room + M::ROOM, dout, a.ld_dout, p.rows, a);

    float lse[2] = {}, delta[2] = {};
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int row = p.at_row(2 * r);
        const E *x = dout + row * a.ld_dout, *y = out + row * a.ld_out;
        long i = ((long)p.b * a.heads + p.head) * a.Tq + p.row + row;
        if (row < p.rows) {
            lse[r] = a.lse[i] * LOG2E;
            delta[r] =
                a.wide ? row_dot<E, WIDE<E>>(x, y, a.hs, p.t) : row_dot<E, 1>(x, y, a.hs, p.t);
        }
        delta[r] = quad_sum(delta[r]);
        if (p.t == 0 && row < p.rows)
            a.delta[i] = delta[r];
    }

    float dq[D / 8][4] = {};
    auto mask = [&](int key) {
        Keep keep(at.keep, p, p.row, key, a);
        if constexpr (DROP)
            keep.make(16, ROWS, p, a);
        return keep;
    };
    stream<ROWS, 16>(a.T, a.Tq, fetch, mask, [&](int first, const Keep &keep) {
        const int c = first % ROWS, limit = a.T - first - p.at_column(0, 0);
        float s[2][4] = {}, dp[2][4] = {};
        M::dot(s, left, at.first(first));
        M::dot(dp, dleft, at.second(first));
        each_of_tile([&](int i, int e) {
            float x = ex2_approx(fmaf(s[i][e], a.scale2, -lse[e / 2]));
            float m = DROP ? keep.at(p.at_row(e), c + p.at_column(i, e)) : 1;
            s[i][e] = 8 * i + e % 2 < limit ? x * (m * dp[i][e] - delta[e / 2]) : 0;
        });
        M::add(dq, s, at.first(first));
    });
    const Place end(a.Tq); /* again: see above */
    const float scale[2] = {a.scale, a.scale};
    write_rows<E, D>(at.tiles, a.dqkv + ((long)end.b * a.T + end.row) * a.ld_dqkv + end.head * a.hs,
                     a.ld_dqkv, dq, scale, end, a);
    if (a.sums)
        sum_columns<E, D>(a.sums + ((long)end.b * gridDim.x + end.block) * a.C + end.head * a.hs,
                          at.tiles, at.stats, a.Tq, end, a);
}

/* dk, dv [T, hs], for each of B*heads; a.sums [B * blocks, 2C].
 * Grid: blocks, heads, B; a warp owns 16 keys, so its tiles are those of S^T; q, dO, lse and
 * delta stream. Where a tile has queries beyond Tq, all four are zero: they add nothing.
 * 8 Tq T hs FLOPs a head; 4T + 2Tq rows of hs elements. B/16: 465 MB, 108 us; 68 GFLOP with
 * padding, 139 us. Floor about 139 us (estimates). */
template <class E, int D, bool DROP>
__global__ void __launch_bounds__(32 * Warps<E, D, DROP>::KV, 2)
    attention_dkv_kernel(AttentionArgs<E> a)
{
    launched_within<32 * Warps<E, D, DROP>::KV>();
    using M = Mma<E, D>;
    constexpr int ROWS = Tile<E, D>::ROWS;
    const Place p(a.T);
    const Shared<E, D> at(p);
    const E *q = a.qkv + (long)p.b * a.T * a.ld + p.head * a.hs, *k = q + a.C, *v = k + a.C;
    const E *dout = a.dout + (long)p.b * a.Tq * a.ld_dout + p.head * a.hs;
    const long head = ((long)p.b * a.heads + p.head) * a.Tq;

    auto fetch = [&](int query) {
        fetch_tile<E, D>(at.first(query), q, a.ld, query, a.Tq, a);
        fetch_tile<E, D>(at.second(query), dout, a.ld_dout, query, a.Tq, a);
        for (int i = threadIdx.x; i < ROWS; i += blockDim.x) {
            long from = head + min(query + i, a.Tq - 1);
            int bytes = query + i < a.Tq ? 4 : 0;
            cp_async<4>(at.lse(query) + i, a.lse + from, bytes);
            cp_async<4>(at.delta(query) + i, a.delta + from, bytes);
        }
    };
    fetch(0);
    typename M::Left kleft, vleft;
    M::load_left(kleft, at.room, k + p.row * a.ld, a.ld, p.rows, a);
    M::load_left(vleft, at.room + M::ROOM, v + p.row * a.ld, a.ld, p.rows, a);

    float dk[D / 8][4] = {}, dv[D / 8][4] = {};
    auto mask = [&](int query) {
        Keep keep(at.keep, p, query, p.row, a);
        if constexpr (DROP)
            keep.make(min(ROWS, a.Tq - query), 16, p, a);
        return keep;
    };
    stream<ROWS, 16>(a.Tq, a.T, fetch, mask, [&](int first, const Keep &keep) {
        const int c = first % ROWS;
        const float *lse = at.lse(first), *delta = at.delta(first);
        float s[2][4] = {}, dp[2][4] = {};
        M::dot(s, kleft, at.first(first));
        M::dot(dp, vleft, at.second(first));
        each_of_tile([&](int i, int e) {
            int query = p.at_column(i, e);
            float x = ex2_approx(fmaf(s[i][e], a.scale2, -lse[query] * LOG2E));
            float m = DROP ? keep.at(c + query, p.at_row(e)) : 1;
            dp[i][e] = x * (m * dp[i][e] - delta[query]);
            s[i][e] = m * x;
        });
        M::add(dv, s, at.second(first));
        M::add(dk, dp, at.first(first));
    });
    const Place end(a.T); /* again: see above */
    const float scale[2] = {a.scale, a.scale}, one[2] = {1, 1};
    E *to = a.dqkv + ((long)end.b * a.T + end.row) * a.ld_dqkv + end.head * a.hs + a.C;
    write_rows<E, D>(at.first(0), to, a.ld_dqkv, dk, scale, end, a);
    write_rows<E, D>(at.second(0), to + a.C, a.ld_dqkv, dv, one, end, a);
    if (a.sums) {
        float *sums = a.sums + ((long)end.b * gridDim.x + end.block) * 2 * a.C + end.head * a.hs;
        sum_columns<E, D>(sums, at.first(0), at.stats, a.T, end, a);
        sum_columns<E, D>(sums + a.C, at.second(0), at.stats, a.T, end, a);
    }
}

/* dbias [3C]: the blocks' column sums q [q_rows, C] and kv [kv_rows, 2C], added. A block has 32
 * columns; its 32 warps take every 32nd row, then warp w adds the 32 sums of column w.
 * B/16 reads 5 MB, from the L2: about 3 us (estimate). */
__global__ void __launch_bounds__(1024)
    attention_dbias_kernel(float *dbias, const float *q, int q_rows, const float *kv, int kv_rows,
                           int C)
{
    launched_within<1024>();
    float *sums = dynamic_smem<float>(); /* [32][33] */
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = blockIdx.x * 32;
    int column = first + lane, ld = column < C ? C : 2 * C;
    const float *from = column < C ? q + column : kv + column - C;
    int rows = column < C ? q_rows : column < 3 * C ? kv_rows : 0;
    float sum = 0;
#pragma unroll 4
    for (int r = warp; r < rows; r += 32)
        sum += from[(long)r * ld];
    sums[warp * 33 + lane] = sum;
    __syncthreads();
    sum = warp_sum(sums[lane * 33 + warp]);
    if (lane == 0 && first + warp < 3 * C)
        dbias[first + warp] = sum;
}

/* ------------------------------------------------------------------------------------------------
 * 6. Host */

/* f(Width<D>()) with D the head size rounded up: to 16 where speed counts (FINE), else to a power
 * of two, for fewer kernels to compile */
template <int D, bool FINE, class F> static void by_head_size(int hs, F f)
{
    if (hs <= D)
        f(Width<D>());
    else if constexpr (D < 128)
        by_head_size<FINE ? D + 16 : 2 * D, FINE>(hs, f);
    else
        die("use more heads, so that width / heads is at most 128",
            "the CUDA backend's attention takes head sizes up to 128, this model has %d", hs);
}
/* f(e, d, drop) with e an element, constexpr int D = d and constexpr bool DROP = drop */
template <class F> static void by_attention(int type, int hs, bool drop, F f)
{
    by_type(type, [&](auto e) {
        constexpr bool NARROW = sizeof(e) == 2;
        if (drop)
            by_head_size<32, false>(hs, [&](auto d) { f(e, d, Width<1>()); });
        else
            by_head_size<NARROW ? 16 : 32, NARROW>(hs, [&](auto d) { f(e, d, Width<0>()); });
    });
}

/* `rows` rows of a head as tiles of 16, shared evenly among the fewest blocks of at most `most`
 * warps; of fewer where shared memory is short. */
struct AttentionPlan {
    int warps, blocks;
    size_t smem;
};
template <class E, int D, bool DROP> static AttentionPlan attention_plan(int rows, int most)
{
    for (int tiles = ceil_div(rows, 16);; most--) {
        AttentionPlan p = {0, ceil_div(tiles, most), 0};
        p.warps = ceil_div(tiles, p.blocks);
        p.smem = Shared<E, D>::bytes(p.warps, DROP);
        if (p.smem <= (size_t)cu.smem || most == 1)
            return p;
    }
}

/* Floats of scratch memory that cuda_attention_backward needs for B images: the column sums of each
 * block, the most over types, dropout or not, and numbers of query rows. Needs cu.smem. */
static size_t attention_scratch(const Sizes *s)
{
    size_t most = 0;
    for (int i = 0; i < 6; i++)
        by_attention(i / 2, s->C / s->H, i % 2, [&](auto e, auto d, auto drop) {
            using E = decltype(e);
            constexpr int D = d;
            constexpr bool DROP = drop;
            int q = attention_plan<E, D, DROP>(s->T, Warps<E, D, DROP>::Q).blocks;
            int kv = attention_plan<E, D, DROP>(s->T, Warps<E, D, DROP>::KV).blocks;
            size_t n = (size_t)s->B * s->C * (q + 2 * (size_t)kv);
            most = n > most ? n : most;
        });
    return most;
}

template <class E> static AttentionArgs<E> attention_args(const Attention *a)
{
    AttentionArgs<E> k = {};
    k.qkv = ptr<E>(a->qkv);
    k.ld = a->qkv.ld;
    k.out = ptr<E>(a->out);
    k.ld_out = a->out.ld;
    k.lse = ptr<float>(a->lse);
    k.T = a->T;
    k.Tq = a->Tq;
    k.heads = a->heads;
    k.hs = a->hs;
    k.C = a->heads * a->hs;
    k.scale = (float)(1 / sqrt((double)a->hs));
    k.scale2 = (float)(1.4426950408889634 / sqrt((double)a->hs));
    k.mask = mask_of(a->drop, a->heads);
    k.state = cu.state;
    k.wide = a->hs % WIDE<E> == 0 && wide_rows(a->qkv) && wide_rows(a->out);
    return k;
}
template <class E>
static void attention_launch(void (*kernel)(AttentionArgs<E>), const AttentionPlan &p,
                             const Attention *a, AttentionArgs<E> k)
{
    if (a->B > 65535)
        die("take fewer images at a time: --micro-batch",
            "attention takes up to 65535 images in one batch, not %d", a->B);
    launch(kernel, dim3(p.blocks, a->heads, a->B), dim3(32 * p.warps), p.smem, cu.stream, k);
}

/* Or attention_sm90.cuh's; backward attention_sm90_backward.cuh's, attention_sm90_large.cuh's. */
static void attention_forward(const Attention *a)
{
    by_attention(a->qkv.type, a->hs, a->drop.p > 0, [&](auto e, auto d, auto drop) {
        using E = decltype(e);
        constexpr int D = d;
        constexpr bool DROP = drop;
        attention_launch(attention_forward_kernel<E, D, DROP>,
                         attention_plan<E, D, DROP>(a->Tq, Warps<E, D, DROP>::Q), a,
                         attention_args<E>(a));
    });
}

static void attention_backward(const Attention *a)
{
    by_attention(a->qkv.type, a->hs, a->drop.p > 0, [&](auto e, auto d, auto drop) {
        using E = decltype(e);
        constexpr int D = d;
        constexpr bool DROP = drop;
        AttentionPlan q = attention_plan<E, D, DROP>(a->Tq, Warps<E, D, DROP>::Q);
        AttentionPlan kv = attention_plan<E, D, DROP>(a->T, Warps<E, D, DROP>::KV);
        AttentionArgs<E> k = attention_args<E>(a);
        k.dqkv = ptr<E>(a->dqkv);
        k.ld_dqkv = a->dqkv.ld;
        k.dout = ptr<E>(a->dout);
        k.ld_dout = a->dout.ld;
        k.delta = ptr<float>(a->delta);
        k.wide = k.wide && wide_rows(a->dqkv) && wide_rows(a->dout);

        size_t q_rows = (size_t)a->B * q.blocks, kv_rows = (size_t)a->B * kv.blocks;
        float *sums = a->dbias ? scratch_floats(k.C * (q_rows + 2 * kv_rows)) : NULL;
        float *kv_sums = sums ? sums + q_rows * k.C : NULL;
        k.sums = sums;
        attention_launch(attention_dq_kernel<E, D, DROP>, q, a, k);
        k.sums = kv_sums;
        attention_launch(attention_dkv_kernel<E, D, DROP>, kv, a, k);
        if (sums)
            launch(attention_dbias_kernel, dim3(ceil_div(3L * k.C, 32)), dim3(1024),
                   32 * 33 * sizeof(float), cu.stream, ptr<float>(a->dbias), (const float *)sums,
                   (int)q_rows, (const float *)kv_sums, (int)kv_rows, k.C);
    });
}
