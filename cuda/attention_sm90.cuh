/* attention_sm90.cuh - softmax attention's forward pass for Hopper: all keys of a head at once.
 *
 * The same as attention_forward_kernel of attention.cuh, of bf16 and fp16, where a head's keys fit
 * a warp group's registers: up to 272, which are the 197 and 257 tokens of pictures of 224 pixels.
 * Then softmax needs one pass: no running maximum, nothing is scaled again. Longer heads are
 * attention_sm90_long.cuh's. It is a candidate beside the portable kernel and used where it is
 * faster; NOTHING HERE HAS RUN ON A GPU.
 *
 * A block is one head. Its thread 0 asks the copy engine for k, q and v, in this order. Two warp
 * groups then take the head's queries in turns, 64 at a time:
 *
 *   S [64, KEYS] = q k^T        wgmma; 104 or 136 sums in each thread
 *   P = exp(S - max)            16 bits; columns beyond T are zero
 *   O [64, D] = P v / sum       wgmma, P from registers, where S has left it as A is wanted
 *
 * Dropout: the head's mask is made once, as bits, while k and v arrive; P loses what they say.
 *
 * Read: the mask, sizes, the kernel, the host's part.
 */
#pragma once

#include "cuda/attention.cuh"
#include "cuda/gemm.cuh"

struct Attention90 {
    void *out;
    float *lse; /* [B, heads, Tq] */
    long ld_out;
    int T, Tq, heads, hs;
    float scale, scale2; /* 1/sqrt(hs), and the same for exponents to base 2 */
    Mask mask;
    const StepState *state;
};

/* Bit e: whether element 4 block + e of image b is kept, e to 7 */
__device__ inline uint32_t kept_8(const Mask &m, const StepState *state, uint32_t block, int b)
{
    float x[2][4];
    uint32_t kept = 0;
    each<2>([&](int k) {
        mask4(x[k], m, state, block + k, b);
        each<4>([&](int e) { kept |= (uint32_t)(x[k][e] != 0) << (4 * k + e); });
    });
    return kept;
}
/* A head's dropout mask in shared memory, a bit an element in their order: (query, key) is bit
 * phase + query*T + key, since Philox makes four at a time, and a head, T being odd, may begin
 * between them. */
struct Keep90 {
    uint8_t *bytes;
    uint32_t block; /* Philox's first */
    int phase, T;

    __device__ inline Keep90(uint8_t *bytes, const Mask &m, int h, int T) : bytes(bytes), T(T)
    {
        const uint64_t first = ((uint64_t)m.first + h) * T * T;
        block = (uint32_t)(first / 4);
        phase = (int)(first % 4);
    }
    /* By all threads of the block; then a barrier. */
    __device__ inline void make(const Mask &m, const StepState *state, int b, int queries) const
    {
        for (int i = threadIdx.x; 8 * i < phase + queries * T; i += blockDim.x)
            bytes[i] = (uint8_t)kept_8(m, state, block + 2 * i, b);
    }
    /* Bit i, up to 8: whether (query, key + i) is kept. Beyond the head it says nothing. */
    __device__ inline uint32_t from(int query, int key) const
    {
        const int at = phase + query * T + key;
        return (bytes[at / 8] | (uint32_t)bytes[at / 8 + 1] << 8) >> at % 8;
    }
    /* What is asked for queries below `queries` and keys below `keys` */
    static size_t room(int queries, int T, int keys)
    {
        return (3 + (size_t)queries * T + keys) / 8 + 2;
    }
};
/* Two 16-bit numbers of which the lowest two bits say whether they stay */
__device__ inline uint32_t both_halves(uint32_t kept)
{
    return (kept & 1) * 0xFFFFu | (kept >> 1 & 1) * 0xFFFF0000u;
}

/* Rows are 128 bytes, 64 columns of a head; a head has as many slabs of them as that takes. What is
 * beyond hs is zero. Keys beyond T are those of the next image, or zero. */
template <int D, int KEYS> struct Head90 {
    static constexpr int SLABS = (D + 63) / 64;
    static constexpr bool DROPS = D <= 64; /* dropout: of larger ones it would spill registers */
    static constexpr int PARTS = KEYS > 256 ? 2 : 1; /* that k, v and S come in */
    static constexpr int PART = KEYS / PARTS;
    static constexpr int ROWS = KEYS * SLAB_ROW, PATCHES = 4 * PATCH * 2; /* bytes */
    static constexpr int QUERIES = SLABS * SLAB > PATCHES ? SLABS *SLAB : PATCHES;
    static constexpr int GROUPS = 2, THREADS = GROUPS * SM90_GROUP;
    static_assert(PART % 8 == 0 && KEYS % 16 == 0 && D % 16 == 0, "what wgmma takes");

    unsigned char *k, *v, *q; /* [SLABS][KEYS], the same, [tiles of QUERIES bytes][SLABS][64] rows;
                               * each becomes its group's patches when it has been multiplied */
    uint64_t *there;          /* [2]: k and q; v */
    uint8_t *keep;            /* see Keep90 */

    __device__ inline Head90(int tiles)
    {
        k = dynamic_tiles<unsigned char>();
        v = k + SLABS * ROWS;
        q = v + SLABS * ROWS;
        there = (uint64_t *)(q + tiles * QUERIES);
        keep = (uint8_t *)(there + 2);
    }
    static size_t bytes(int Tq, int T, bool drop)
    {
        const size_t rows = 2 * SLABS * ROWS + (size_t)ceil_div(Tq, 64) * QUERIES;
        return rows + 16 + (drop ? Keep90::room(Tq, T, KEYS) : 0);
    }
};

/* keys, queries: maps of qkv as [B*T, 3 heads, hs], in boxes of PART and of 64 rows of 64 columns
 */
template <class Head>
__device__ inline void fetch_head(const Head &at, const CUtensorMap *keys,
                                  const CUtensorMap *queries, const Attention90 &a, int b, int h)
{
    const int tiles = (a.Tq + 63) / 64, row = b * a.T;
    auto rows = [&](unsigned char *to, int head, uint64_t *there) {
        for (int i = 0; i < Head::SLABS * Head::PARTS; i++)
            tma_load_3d(to + i * Head::PART * SLAB_ROW, keys, there, i / Head::PARTS * 64, head,
                        row + i % Head::PARTS * Head::PART);
    };
    mbarrier_arrive_expect(at.there, Head::SLABS * (Head::ROWS + tiles * SLAB));
    rows(at.k, a.heads + h, at.there);
    for (int i = 0; i < tiles * Head::SLABS; i++)
        tma_load_3d(at.q + i / Head::SLABS * Head::QUERIES + i % Head::SLABS * SLAB, queries,
                    at.there, i % Head::SLABS * 64, h, row + i / Head::SLABS * 64);
    mbarrier_arrive_expect(at.there + 1, Head::SLABS * Head::ROWS);
    rows(at.v, 2 * a.heads + h, at.there + 1);
}

/* Grid: B * heads. 2 Tq T hs FLOPs, twice; every byte once. S and P of 64 rows take more than 128
 * registers a thread, so that a multiprocessor has one block, whose two groups overlap products and
 * exponentials but not the next head's arrival. One layer of B/16 at batch 256: 310 MB, 72 us;
 * 133 M exponentials, 36 us; products, 22 us (estimates). */
template <class E, int D, int KEYS>
__global__ void __launch_bounds__(HAS_SM90 ? 256 : 32, 1)
    attention_sm90_kernel(const __grid_constant__ CUtensorMap keys,
                          const __grid_constant__ CUtensorMap queries, const Attention90 a)
{
    launched_within<256>();
    if constexpr (HAS_SM90) {
        using Head = Head90<D, KEYS>;
        constexpr int PART = Head::PART;
        const int h = blockIdx.x % a.heads, b = blockIdx.x / a.heads, tiles = (a.Tq + 63) / 64;
        const int thread = threadIdx.x % SM90_GROUP, warp = thread / 32, lane = thread % 32;
        const Head at(tiles);
        if (threadIdx.x == 0) {
            mbarrier_init(at.there, 1);
            mbarrier_init(at.there + 1, 1);
            mbarrier_init_fence();
            fetch_head(at, &keys, &queries, a, b, h);
        }
        if (Head::DROPS && a.mask.keep)
            Keep90(at.keep, a.mask, h, a.T).make(a.mask, a.state, b, a.Tq);
        __syncthreads();
        const uint64_t k = wgmma_operand(at.k, SWIZZLE_128, 8 * SLAB_ROW, SLAB);
        const uint64_t v = wgmma_operand(at.v, SWIZZLE_128, 8 * SLAB_ROW, Head::ROWS);
        for (int tile = threadIdx.x / SM90_GROUP; tile < tiles; tile += Head::GROUPS) {
            const uint64_t q =
                wgmma_operand(at.q + tile * Head::QUERIES, SWIZZLE_128, 8 * SLAB_ROW, SLAB);
            float s[Head::PARTS][PART / 2], o[D / 2], top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
            mbarrier_wait(at.there, 0);
            each<Head::PARTS>([&](int i) { wgmma_fence(s[i]); });
            /* 16 columns of a head: 32 bytes of rows of a slab */
            each<D / 16>([&](int c) {
                each<Head::PARTS>([&](int i) {
                    const int part = c / 4 * Head::ROWS + i * PART * SLAB_ROW;
                    wgmma<E, E>(s[i], wgmma_advance(q, c / 4 * SLAB + c % 4 * 32),
                                wgmma_advance(k, part + c % 4 * 32), c > 0);
                });
            });
            wgmma_commit();
            each<Head::PARTS>([&](int i) { wgmma_wait<0>(s[i]); });
            named_barrier_sync(1 + threadIdx.x / SM90_GROUP,
                               SM90_GROUP); /* q is room for patches */

            /* rows g and g + 8 of 16; columns 8j + 2t and the next */
            each<Head::PARTS>([&](int i) {
                each<PART / 8>([&](int j) {
                    const int column = i * PART + 8 * j;
                    each<4>([&](int e) {
                        float &x = s[i][4 * j + e];
                        if (column + 8 > a.T && column + lane % 4 * 2 + e % 2 >= a.T)
                            x = -INFINITY;
                        top[e / 2] = fmaxf(top[e / 2], x);
                    });
                });
            });
            uint32_t p[KEYS / 16][4];
            each<2>([&](int r) { top[r] = quad_max(top[r]); });
            each<KEYS / 8>([&](int n) {
                float x[4];
                each<4>([&](int e) {
                    x[e] = ex2_approx(fmaf(s[n * 8 / PART][n * 8 % PART / 2 + e], a.scale2,
                                           -top[e / 2] * a.scale2));
                    sum[e / 2] += x[e];
                });
                p[n / 2][n % 2 * 2] = pack<E>(x[0], x[1]);
                p[n / 2][n % 2 * 2 + 1] = pack<E>(x[2], x[3]);
            });

            if (Head::DROPS && a.mask.keep) {
                const Keep90 keep(at.keep, a.mask, anew(blockIdx.x) % a.heads, a.T);
                /* rows beyond Tq: as the last one, to no harm */
                each<2>([&](int r) {
                    const int row = 64 * tile + 16 * warp + lane / 4 + 8 * r;
                    each<KEYS / 8>([&](int n) {
                        p[n / 2][n % 2 * 2 + r] &=
                            both_halves(keep.from(min(row, a.Tq - 1), 8 * n + lane % 4 * 2));
                    });
                });
            }
            mbarrier_wait(at.there + 1, 0);
            wgmma_fence(o);
            each<KEYS / 16>([&](int c) {
                wgmma<E, E, false, true>(o, p[c], wgmma_advance(v, c * 16 * SLAB_ROW), c > 0);
            });
            wgmma_commit();
            const int row = tile * 64 + 16 * warp;
            float factor[2];
            /* while that goes on */
            each<2>([&](int r) {
                sum[r] = quad_sum(sum[r]);
                factor[r] = a.mask.scale / sum[r];
                const int mine = row + lane / 4 + 8 * r;
                if (lane % 4 == 0 && mine < a.Tq)
                    a.lse[((long)b * a.heads + h) * a.Tq + mine] =
                        top[r] * a.scale + logf(sum[r]);
            });
            wgmma_wait<0>(o);
            E *to = (E *)a.out + (long)b * a.Tq * a.ld_out + h * a.hs;
            each<Head::SLABS>([&](int c) {
                Fragment f;
                each<16>([&](int n) {
                    const int i = n / 8, j = 8 * c + n % 8;
                    if (8 * j < D)
                        f.pair[i][n % 8] = pack<E>(o[(4 * j + 2 * i) % (D / 2)] * factor[i],
                                                   o[(4 * j + 2 * i + 1) % (D / 2)] * factor[i]);
                    else
                        f.pair[i][n % 8] = 0;
                });
                const Patch<E> patch = {(uint16_t *)(at.q + tile * Head::QUERIES) + warp * PATCH,
                                        row,
                                        64 * c,
                                        a.Tq,
                                        a.hs,
                                        lane};
                patch.store(to, a.ld_out, f);
            });
        }
    }
}

/* ------------------------------------------------------------------------------------------------
 * Host */

/* f(Width<D>(), Width<KEYS>()) for what there are kernels of; false: there is none. */
template <class F> static bool by_head90(int hs, int T, F f)
{
    if (hs <= 64 && T <= 208)
        f(Width<64>(), Width<208>());
    else if (hs <= 64 && T <= 272)
        f(Width<64>(), Width<272>());
    else if (hs <= 80 && T <= 272)
        f(Width<80>(), Width<272>());
    else if (hs <= 96 && T <= 272)
        f(Width<96>(), Width<272>());
    else if (hs <= 112 && T <= 272)
        f(Width<112>(), Width<272>());
    else if (hs <= 128 && T <= 272)
        f(Width<128>(), Width<272>());
    else
        return false;
    return true;
}

static bool attention90_takes(const Attention *a)
{
    bool fits = false;
    if (!sm90_here() || a->qkv.type == F32 || a->hs % 8 != 0)
        return false;
    if (!wide_rows(a->qkv) || !wide_rows(a->out))
        return false;
    by_head90(a->hs, a->T, [&](auto d, auto keys) {
        using Head = Head90<d, keys>;
        fits = (Head::DROPS || a->drop.p == 0) &&
               Head::bytes(a->Tq, a->T, a->drop.p > 0) <= (size_t)cu.smem;
    });
    return fits;
}

template <class E> static CUtensorMap rows_of_heads(const Attention *a, int rows)
{
    CUtensorMap map;
    const uint64_t size[3] = {(uint64_t)a->hs, 3 * (uint64_t)a->heads, (uint64_t)a->B * a->T};
    const uint64_t stride[3] = {sizeof(E), a->hs * sizeof(E), (uint64_t)a->qkv.ld * sizeof(E)};
    const uint32_t box[3] = {64, 1, (uint32_t)rows};
    if (!tensor_map<E, 3>(&map, a->qkv.p, size, stride, box, SWIZZLE_128))
        die("VIT_GEMM=cublaslt does without this program's own kernels for Hopper",
            "the driver refuses a map of %d heads of %d", a->heads, a->hs);
    return map;
}
template <class E> static void attention90_launch(const Attention *a)
{
    const Attention90 args = {a->out.p,
                              ptr<float>(a->lse),
                              a->out.ld,
                              a->T,
                              a->Tq,
                              a->heads,
                              a->hs,
                              (float)(1 / sqrt((double)a->hs)),
                              (float)(1.4426950408889634 / sqrt((double)a->hs)),
                              mask_of(a->drop, a->heads),
                              cu.state};
    by_head90(a->hs, a->T, [&](auto d, auto keys) {
        using Head = Head90<d, keys>;
        launch(attention_sm90_kernel<E, d, keys>, (unsigned)(a->B * a->heads), Head::THREADS,
               Head::bytes(a->Tq, a->T, a->drop.p > 0), cu.stream, rows_of_heads<E>(a, Head::PART),
               rows_of_heads<E>(a, 64), args);
    });
}
static void attention90_forward(const Attention *a)
{
    if (a->qkv.type == BF16)
        attention90_launch<bf16>(a);
    else
        attention90_launch<fp16>(a);
}

/* What is timed once: kernels for these shapes. `more`: what else they depend on. */
static std::string attention_key(const char *what, const Attention *a, const char *more)
{
    char key[192];
    snprintf(key, sizeof key, "%s %dx%dx%d %d heads of %d ld%ld,%ld%s t%d%s", what, a->B, a->Tq,
             a->T, a->heads, a->hs, a->qkv.ld, a->out.ld, more, a->qkv.type,
             a->drop.p > 0 ? " drop" : "");
    return key;
}
