/* attention_sm90_long.cuh - softmax attention's forward pass for Hopper, of heads that are too long
 * for attention_sm90.cuh: any number of tokens, up to 128 columns (577 and 1,025 tokens of pictures
 * of 384 and 512 in patches of 16, 730 and 1,370 of 378 and 518 in patches of 14).
 *
 * The same as attention_forward_kernel of attention.cuh, of bf16 and fp16: softmax goes on from one
 * tile of 64 keys to the next. It is a candidate beside the portable kernel and used where it is
 * faster; NOTHING HERE HAS RUN ON A GPU.
 *
 * Its blocks are those of attention_sm90_large.cuh that make dq, with one product less and o for
 * it: one warp brings tiles, each of three warp groups goes through all of them for 64 queries at a
 * time. k and v of a head are in shared memory whole, up to 704 tokens of 64 columns; beyond, a
 * ring of tiles that are brought again for every 192 queries.
 *
 *   S [64, N] = q k^T                   wgmma; N is 64, or 16 for the last keys
 *   m' = max(m, S), P = exp(S - m')     16 bits; keys beyond T are zero
 *   o [64, hs] = o exp(m - m') + P v    wgmma, P from registers, where S has left it as A is wanted
 *
 * The product that ends a tile is under way while the next tile's begins. A group by itself leaves
 * the tensor cores idle during its exponentials, for which there are three: with 160 registers a
 * thread, o of 128 columns and a tile's S and P just fit. No sum crosses a group, and all have one
 * order: the same bits every time.
 *
 * Predicted for 577 tokens of 64 columns (B/16 at 384 pixels), cycles a head of 640 x 592 scores:
 * products, 23,700; instructions, 27,800 (300 a warp and tile, as compiled, without dropout); with
 * three quarters of the shorter one hidden and 2,000 where one head follows the other (guesses),
 * 35,700. At 1.75 GHz on 132 multiprocessors that is 22 us an image.
 *
 * Read: shared memory, a tile, a pass, the kernel, the host's part.
 */
#pragma once

#include "cuda/attention_sm90_large.cuh"

struct Long90Args : Large90Args {
    float *lse; /* is written */
};

/* ------------------------------------------------------------------------------------------------
 * Shared memory, as in Large90: pairs of k and v; of its own rows a group needs q. */

template <int COLUMNS, bool RING> struct Long90 {
    static constexpr int D = COLUMNS, SLABS = (D + 63) / 64;
    static constexpr bool STREAMS = RING;
    static constexpr int MATRIX = SLABS * SLAB, PAIR = 2 * MATRIX; /* bytes */
    static constexpr int TILES = SLABS == 1 ? 11 : 4, ROWS = 64 * TILES;
    static constexpr int OWN = 1; /* matrices of its own rows that a group needs */
    static constexpr int GROUPS = 3, READERS = GROUPS * SM90_GROUP, THREADS = READERS + SM90_GROUP;
    static constexpr int KEEP = 64 * 9 + 8;

    unsigned char *tiles;   /* [TILES] pairs */
    unsigned char *own;     /* [GROUPS] matrices */
    unsigned char *strips;  /* [12 warps]: 16 rows of a slab, on their way out */
    uint64_t *full, *empty; /* [TILES] */
    uint64_t *own_there;    /* [GROUPS] */
    uint8_t *keep;          /* [GROUPS] of KEEP bytes */

    __device__ inline Long90()
    {
        tiles = dynamic_tiles<unsigned char>();
        own = tiles + TILES * PAIR;
        strips = own + GROUPS * MATRIX;
        full = (uint64_t *)(strips + READERS / 32 * 16 * SLAB_ROW);
        empty = full + TILES;
        own_there = empty + TILES;
        keep = (uint8_t *)(own_there + GROUPS);
    }
    static constexpr size_t BYTES = TILES * PAIR + GROUPS * MATRIX + READERS / 32 * 16 * SLAB_ROW +
                                    (2 * TILES + GROUPS) * sizeof(uint64_t) + GROUPS * KEEP;
    static_assert(BYTES <= 227 * 1024, "more than a block can have");
};

/* ------------------------------------------------------------------------------------------------
 * A tile of N keys. The last product is under way at the end, and that of the call before done with
 * after the first wait. */

template <int D> struct Softmax90 {
    float o[D / 2];
    float top[2], sum[2]; /* of the thread's rows; sum: of its columns alone */
};

template <class E, int N, class At>
__device__ inline void softmax_tile_90(Softmax90<At::D> &my, const At &at, const Long90Args &a,
                                       int number, bool last, int tile)
{
    constexpr int ROWS = N * SLAB_ROW;
    const Slot90<At, false> in(a, number, tile);
    const uint64_t q = wgmma_operand(at.own + my_group() * At::MATRIX, SWIZZLE_128, 8 * SLAB_ROW);
    const uint64_t k =
        wgmma_operand(at.tiles + in.slot * At::PAIR, SWIZZLE_128, 8 * SLAB_ROW, ROWS);
    const uint64_t v = wgmma_advance(k, At::SLABS * ROWS);
    float s[N / 2];
    uint32_t p[N / 16][4], kept = ~0u;

    if (a.mask.keep)
        kept = tile_kept<At, false, N>(at, a, number, 64 * tile);
    mbarrier_wait(at.full + in.slot, in.phase % 2);
    wgmma_fence(s);
    each<(At::D + 15) / 16>([&](int c) {
        wgmma<E, E>(s, wgmma_advance(q, c / 4 * SLAB + c % 4 * 32),
                    wgmma_advance(k, c / 4 * ROWS + c % 4 * 32), c > 0);
    });
    wgmma_commit();
    wgmma_wait<0>(s, my.o);
    const int lane = threadIdx.x % 32, column = 64 * tile + lane % 4 * 2;
    if (last && tile > 0 && lane == 0)
        mbarrier_arrive(at.empty + Slot90<At, false>(a, number, tile - 1).slot);

    /* a thread's rows are g and g + 8, its columns 8j + 2t and the next */
    if (64 * tile + N > a.T) {          /* keys that do not exist */
        const int first = anew(column); /* a branch: not done without */
        each<N / 2>([&](int i) { s[i] = first + i / 4 * 8 + i % 2 < a.T ? s[i] : -INFINITY; });
    }
    float top[2] = {my.top[0], my.top[1]};
    each<N / 2>([&](int i) { top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]); });
    float shrink[2];
    each<2>([&](int r) {
        top[r] = quad_max(top[r]);
        shrink[r] = ex2_approx((my.top[r] - top[r]) * a.scale2);
        my.top[r] = top[r];
        my.sum[r] *= shrink[r];
    });
    each<At::D / 2>([&](int i) { my.o[i] *= shrink[i / 2 % 2]; });
    each<N / 8>([&](int j) {
        float x[4];
        each<4>([&](int e) {
            x[e] = ex2_approx(fmaf(s[4 * j + e], a.scale2, -top[e / 2] * a.scale2));
            my.sum[e / 2] += x[e];
        });
        each<2>([&](int r) { p[j / 2][j % 2 * 2 + r] = pack<E>(x[2 * r], x[2 * r + 1]); });
    });
    if (a.mask.keep) {
        kept = anew(kept); /* a branch: not done without */
        each<N / 4>([&](int i) { p[i / 4][i % 4] &= both_halves(kept >> 2 * i); });
    }
    wgmma_fence(my.o);
    each<N / 16>([&](int c) {
        wgmma<E, E, false, true>(my.o, p[c], wgmma_advance(v, 16 * c * SLAB_ROW), true);
    });
    wgmma_commit();
}

/* ------------------------------------------------------------------------------------------------
 * A pass: 64 queries, all keys */

template <class E, class At>
__device__ inline void softmax_pass_90(const At &at, const Large90Maps &maps, const Long90Args &a,
                                       int number)
{
    using Pass = Pass90<At, false>;
    const int whole = whole_tiles(a.T), all = all_tiles(a.T);
    const bool last = At::STREAMS || Pass(a, number).tile + At::GROUPS >= Pass::passes(a);
    Softmax90<At::D> my = {{}, {-INFINITY, -INFINITY}, {}};
    for (int i = 0; i < whole; i++)
        softmax_tile_90<E, 64>(my, at, a, number, last, i);
    if (all > whole)
        softmax_tile_90<E, 16>(my, at, a, number, last, whole);

    /* products with q are done: the next one arrives during the rest */
    named_barrier_sync(1 + my_group(), SM90_GROUP);
    if (my_thread() == 0)
        fetch_own<At, false>(at, maps, a, anew(number) + At::GROUPS);
    const Pass pass(a, anew(number));
    const int thread = my_thread(), warp = thread / 32, lane = thread % 32;
    const int first = 64 * pass.tile + 16 * warp;
    float factor[2];
    each<2>([&](int r) {
        const float sum = quad_sum(my.sum[r]);
        const int row = first + lane / 4 + 8 * r;
        factor[r] = a.mask.scale / sum;
        if (lane % 4 == 0 && row < a.Tq)
            a.lse[((long)pass.b * a.heads + pass.h) * a.Tq + row] = my.top[r] * a.scale + logf(sum);
    });
    wgmma_wait<0>(my.o);
    if (last && lane == 0)
        mbarrier_arrive(at.empty + Slot90<At, false>(a, anew(number), all - 1).slot);
    if (first >= a.Tq)
        return;
    each<At::D / 2>([&](int i) { my.o[i] *= factor[i / 2 % 2]; });
    unsigned char *strip = at.strips + (4 * my_group() + warp) * 16 * SLAB_ROW;
    each<At::SLABS>([&](int s) {
        float2 sums;
        put_rows<E, false>(sums, NULL, strip, my.o, 1,
                           {&maps.dqueries, s, pass.h, first, a.Tq, pass.b}, a, lane);
    });
}

/* ------------------------------------------------------------------------------------------------
 * Grid: a block for each multiprocessor, which makes one head after another. 2 Tq T hs FLOPs a
 * head, twice. */
template <class E, class At>
__global__ void __launch_bounds__(HAS_SM90 ? At::THREADS : 32, 1)
    attention_sm90_long_kernel(const __grid_constant__ Large90Maps maps,
                               const __grid_constant__ Long90Args a)
{
    launched_within<At::THREADS>();
    if constexpr (HAS_SM90) {
        const At at;
        if (threadIdx.x == 0) {
            for (int i = 0; i < At::TILES; i++) {
                mbarrier_init(at.full + i, 1);
                mbarrier_init(at.empty + i, At::READERS / 32);
            }
            for (int i = 0; i < At::GROUPS; i++)
                mbarrier_init(at.own_there + i, 1);
            mbarrier_init_fence();
        }
        __syncthreads();
        if (threadIdx.x < SM90_GROUP) {
            registers_release<32>();
            if (threadIdx.x == 0)
                bring_tiles<At, false>(at, maps, a);
        } else {
            registers_take<160>();
            each_pass<At, false>(
                at, maps, a, [](int) {},
                [&](int number) { softmax_pass_90<E>(at, maps, a, number); }, [](int) {});
        }
    }
}

/* ------------------------------------------------------------------------------------------------
 * Host */

/* f(Kind<Long90<...>>()) of the kernel for such heads; false: there is none. */
template <class F> static bool by_long90(int hs, int T, F f)
{
    if (hs <= 64 && T <= Long90<64, false>::ROWS)
        f(Kind<Long90<64, false>>());
    else if (hs <= 64)
        f(Kind<Long90<64, true>>());
    else if (hs <= 80)
        f(Kind<Long90<80, true>>());
    else if (hs <= 104)
        f(Kind<Long90<104, true>>());
    else if (hs <= 128)
        f(Kind<Long90<128, true>>());
    else
        return false;
    return true;
}
static bool long90_takes(const Attention *a)
{
    bool fits = false;
    if (!sm90_here() || a->qkv.type == F32 || a->hs % 8 != 0)
        return false;
    if (!wide_rows(a->qkv) || !wide_rows(a->out))
        return false;
    by_long90(a->hs, a->T,
              [&](auto kind) { fits = decltype(kind)::type::BYTES <= (size_t)cu.smem; });
    return fits;
}
template <class E> static void long90_launch(const Attention *a)
{
    const int H = a->heads, T = a->T, Tq = a->Tq;
    Large90Maps maps = {};
    maps.keys = {heads_of_images<E>(a, a->qkv, 3 * H, T, T, 64),
                 heads_of_images<E>(a, a->qkv, 3 * H, T, T, 16)};
    maps.queries.whole = heads_of_images<E>(a, a->qkv, 3 * H, Tq, T, 64);
    maps.dqueries = heads_of_images<E>(a, a->out, H, Tq, Tq, 16);
    Attention forward = *a;
    forward.dout = forward.dqkv = {};
    Long90Args args = {{backward90_args(&forward, NULL), 0}, ptr<float>(a->lse)};
    by_long90(a->hs, T, [&](auto kind) {
        using At = typename decltype(kind)::type;
        launch(attention_sm90_long_kernel<E, At>,
               (unsigned)std::min(a->B * H, cu.gpu.multiProcessorCount), At::THREADS, At::BYTES,
               cu.stream, maps, args);
    });
}
static void long90(const Attention *a)
{
    if (a->qkv.type == BF16)
        long90_launch<bf16>(a);
    else
        long90_launch<fp16>(a);
}

static void cuda_attention_forward(const Attention *a)
{
    const bool short_one = attention90_takes(a);
    const Instead ours = [&] { short_one ? attention90_forward(a) : long90(a); };
    const Instead portable = [&] { attention_forward(a); };
    if ((short_one || long90_takes(a)) &&
        own_is_faster(attention_key("attention", a, ""), a->out, (long)a->B * a->Tq,
                      (long)a->heads * a->hs, ours, portable))
        ours();
    else
        portable();
}
