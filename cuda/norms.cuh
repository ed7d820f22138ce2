/* norms.cuh - the residual step with its LayerNorm, and norms of heads.
 *
 * Each host function is the Backend entry of its name; the formulas are in backend.h, the shapes of
 * work and what "floor" means in rows.cuh.
 */
#pragma once

#include "cuda/rows.cuh"

/* ------------------------------------------------------------------------------------------------
 * Residual step and LayerNorm */

/* scale[k] = stochastic depth * dropout mask of a branch's columns col.. in one row */
template <int N>
__device__ inline void branch_scale(float (&scale)[N], const ResidualNorm &a, const Mask &mask,
                                    const Mask &path, const StepState *state, long r, int col)
{
    uint32_t sample = 0, token = 0;
    if (mask.keep || path.keep) {
        sample = (uint32_t)r / (uint32_t)a.tokens;
        token = (uint32_t)r % (uint32_t)a.tokens;
    }
    float s = path_scale(path, state, sample);
    each<N>([&](int k) { scale[k] = s; });
    if (mask.keep)
        drop_pack(scale, mask, state, mask.element((int)token, col), sample);
}

/* Blocks of 128 threads that run at once on a multiprocessor, for as many numbers in registers */
template <int N, int R> constexpr int NORM_BLOCKS = N *R > 32 ? N / 2 : N *R > 24 ? 5 : 6;

/* Whether a y in 8 bits is turned in the norm's own kernel, where rows are in registers */
template <class E, int N, int R> constexpr bool NORM_TURNS = std::is_same_v<E, bf16> && N == 8 && R;

/* x_out = x + s * ls * drop(branch), y = LayerNorm(x_out); shapes [rows, C]. A warp takes a row,
 * then the one `warps` further down; its lanes hold the row in R packs of N numbers each (R = 0: in
 * shared memory, for any C and for rows that are not aligned), so that memory is read once, and the
 * norm is that of x_out as stored, which a pass that finds it saved reads again. Norm alone: reads
 * x, writes y, 155 MB, floor 36 us; with a branch twice that. Of a y in 8 bits
 * (`to`: its copies) that is turned here a block takes 16 rows at a time. */
template <class E, int N, int R, bool BRANCH>
__global__ void __launch_bounds__(128, NORM_BLOCKS<N, R>)
    residual_norm_forward_kernel(ResidualNorm a, Mask mask, Mask path, const StepState *state,
                                 Fp8Cast to)
{
    launched_within<128>();
    constexpr bool EIGHT = FP8_HERE && std::is_same_v<E, bf16>; /* may y have 8 bits? */
    constexpr bool TURNS = EIGHT && NORM_TURNS<E, N, R>;        /* and be turned here? */
    const bool eight = EIGHT && to.to, turns = TURNS && to.to;
    const float scale = eight ? delayed_scale(to.scale) : 1;
    float most = 0; /* of y */
    using Slot = float[N];
    using Bytes = Pack<uint8_t, N>;
    Slot held[R ? R : 1], *row = held;
    const int packs = R ? R : (a.C + 32 * N - 1) / (32 * N), lane = (int)threadIdx.x % 32;
    const int step = R ? 1 : (int)blockDim.x;
    if constexpr (R == 0)
        row = dynamic_smem<Slot>() + threadIdx.x;
    /* f(numbers, their pack of `from`): loads without a condition, so that all are in flight at
     * once; lanes beyond the row's end read its beginning and do not use it */
    auto load_packs = [&](const E *from, auto f) {
#pragma unroll
        for (int i = 0; i < packs; i++) {
            int col = (i * 32 + lane) * N;
            float in[N];
            load(in, from + (col < a.C ? col : 0));
            f(row[i * step], in);
        }
    };
    auto copy = [](float(&v)[N], const float(&in)[N]) { each<N>([&](int k) { v[k] = in[k]; }); };
    auto add = [](float(&v)[N], const float(&in)[N]) { each<N>([&](int k) { v[k] += in[k]; }); };
    /* f(numbers, their first column) for each pack of this lane */
    auto packs_do = [&](auto f) {
#pragma unroll
        for (int i = 0; i < packs; i++) {
            int col = (i * 32 + lane) * N;
            if (col < a.C)
                f(row[i * step], col);
        }
    };

    auto row_do = [&](long r, uint8_t *turned) {
        const E *x = row_of<E>(a.x, r);
        if constexpr (BRANCH) {
            const E *ls = (const E *)a.ls;
            E *out = row_of<E>(a.x_out, r);
            load_packs(row_of<E>(a.branch, r), copy);
            packs_do([&](float(&v)[N], int col) {
                float scale[N], gain[N];
                branch_scale(scale, a, mask, path, state, r, col);
                each<N>([&](int k) { v[k] *= scale[k]; });
                if (ls) {
                    load(gain, ls + col);
                    each<N>([&](int k) { v[k] *= gain[k]; });
                }
            });
            load_packs(x, add);
            packs_do([&](float(&v)[N], int col) { unpack(v, store(out + col, v)); });
        } else {
            load_packs(x, copy);
        }
        if (!a.gamma)
            return;
        float sum = 0, squares = 0;
        packs_do([&](float(&v)[N], int) { each<N>([&](int k) { sum += v[k]; }); });
        const float mean = warp_sum(sum) / (float)a.C;
        packs_do([&](float(&v)[N], int) {
            each<N>([&](int k) { squares += (v[k] - mean) * (v[k] - mean); });
        });
        const float rstd = 1 / sqrtf(warp_sum(squares) / (float)a.C + (float)a.eps);
        if (lane == 0) {
            ((float *)a.mean)[r] = mean;
            ((float *)a.rstd)[r] = rstd;
        }
        packs_do([&](float(&v)[N], int col) {
            float gamma[N], beta[N];
            load(gamma, (const E *)a.gamma + col);
            load(beta, (const E *)a.beta + col);
            each<N>([&](int k) { gamma[k] = (v[k] - mean) * rstd * gamma[k] + beta[k]; });
            if constexpr (EIGHT)
                if (eight) {
                    unpack(gamma, rounded_pack<E>(gamma));
                    Bytes y;
                    store_fp8<__NV_E4M3>(y.v, gamma, scale, &most);
                    *(Bytes *)(to.to + r * to.n + col) = y;
                    if (turns)
                        *(Bytes *)(turned + col) = y;
                    return;
                }
            store(row_of<E>(a.y, r) + col, gamma);
        });
    };
    const int per_block = (int)blockDim.x / 32, warp = (int)threadIdx.x / 32;
    if constexpr (TURNS) {
        const int rows = turns ? TURN_ROWS : per_block; /* of a block, at a time */
        for (long r0 = (long)blockIdx.x * rows; r0 < a.rows; r0 += (long)gridDim.x * rows) {
            uint8_t *room = dynamic_smem<uint8_t>(); /* [TURN_ROWS][C] */
            for (int i = warp; i < rows && r0 + i < a.rows; i += per_block)
                row_do(r0 + i, room + i * a.C);
            if (turns)
                turn_rows(to, room, r0);
        }
    } else {
        const int warps = (int)gridDim.x * per_block;
        for (long r = blockIdx.x * per_block + warp; r < a.rows; r += warps)
            row_do(r, NULL);
    }
    if (!eight)
        return;
    if (blockIdx.x == 0 && threadIdx.x == 0)
        to.scale->inverse = 1 / scale;
    if (to.how.learns)
        block_amax(&to.scale->amax, most, dynamic_smem<float>());
}

/* f(R) with the least R, of a few, for which 32 lanes hold C numbers in R packs of N; else f(0) */
template <int N, class F> static void by_row_packs(int C, F f)
{
    constexpr int unit = N == 1 ? 0 : 256 / (32 * N); /* packs that hold 256 numbers */
    int units = ceil_div(C, 256);
    if (N == 1 || units > 7)
        f(Width<0>());
    else if (units <= 2)
        f(Width<2 * unit>());
    else if (units == 3)
        f(Width<3 * unit>());
    else if (units == 4)
        f(Width<4 * unit>());
    else if (units <= 6)
        f(Width<6 * unit>());
    else
        f(Width<7 * unit>());
}

template <class E, int N, int R>
static void residual_norm_forward(const ResidualNorm *a, const Fp8Cast &to)
{
    int warps = 4;
    size_t smem = 0;
    if (R == 0) { /* as many rows as 48 KiB hold, but at least one */
        size_t row = (size_t)ceil_div(a->C, 32 * N) * 32 * N * sizeof(float);
        while (warps > 1 && warps * row > 48 * 1024)
            warps /= 2;
        smem = warps * row;
    }
    smem = std::max(smem, warps * sizeof(float));
    const bool turns = NORM_TURNS<E, N, R> && to.to;
    if (turns)
        smem = TURN_ROWS * (size_t)a->C;
    int most = cu.gpu.multiProcessorCount * NORM_BLOCKS<N, R>;
    int blocks = ceil_div(a->rows, turns ? TURN_ROWS : warps);
    auto kernel = a->branch.p ? residual_norm_forward_kernel<E, N, R, true>
                              : residual_norm_forward_kernel<E, N, R, false>;
    launch(kernel, (unsigned)(blocks < most ? blocks : most), (unsigned)warps * 32, smem, cu.stream,
           *a, mask_of(a->drop, a->C), mask_of(a->path, a->C), cu.state, to);
    if (to.to && !turns)
        turn(to);
}
static void cuda_residual_norm_forward(const ResidualNorm *a)
{
    Tensor none = {};
    Fp8Cast to = {};
    if (a->gamma && is_fp8(a->y.type))
        to = fp8_copies_of(a->y, a->rows, a->C);
    bool wide = wide_access(a->C, a->x.type, a->x, a->branch.p ? a->x_out : none, a->branch,
                            a->gamma ? a->y : none, a->gamma, a->beta, a->ls, a->drop);
    by_pack(a->x.type, wide, [&](auto e, auto width) {
        by_row_packs<width>(a->C, [&](auto packs) {
            constexpr int R = packs;
            residual_norm_forward<decltype(e), width, R>(a, to);
        });
    });
}

/* Whether row r of dx is written, whatever was there */
__device__ inline bool is_fresh(const ResidualNorm &a, long r)
{
    return a.fresh == 1 || (a.fresh && (uint32_t)r % (uint32_t)a.fresh);
}

/* The norm's and the residual step's gradients, with n = (x - mean) * rstd and g = dy * gamma:
 *
 *   dx      += rstd * (g - mean(g) - n * mean(g n))   (NORM false: left as it is)
 *   dbranch  = s * ls * drop(dx)
 *
 * and column sums: dgamma of dy n, dbeta of dy, dls of dx * s * drop(branch), dbias of dbranch as
 * stored, or of dx as stored. A block takes a range of rows, M at a time, and a thread R packs of
 * columns of each, so that its sums over the range stay in registers; between its two looks at a
 * pack the block adds up the means. Where R > 1 the sums take most registers, and the packs are
 * fetched again for the second look; sums of 16 packs, of rows that are wide and not aligned, would
 * take too many, and stay in memory. partial: [SUMS][ranges][C]. Reads x, dy, dx, writes dx:
 * 310 MB, floor 72 us; with dbranch 90 us. BRANCH: dbranch or dls is wanted; FRESH: a.fresh is not
 * 0. */
enum { SUM_DGAMMA, SUM_DBETA, SUM_DBIAS, SUM_DLS, SUMS };
enum { NORM_THREADS = 512 }; /* at most, in a block and about in a multiprocessor */
template <int R> constexpr int NORM_ROWS = R == 1 ? 2 : 1;

template <class E, int N, int R, bool NORM, bool BRANCH, bool FRESH>
__global__ void __launch_bounds__(NORM_THREADS)
    residual_norm_backward_kernel(ResidualNorm a, Mask mask, Mask path, const StepState *state,
                                  float *partial)
{
    launched_within<NORM_THREADS>();
    constexpr int M = NORM_ROWS<R>, HELD = R == 1 ? R : 0, PACKS = HELD ? HELD : 1;
    constexpr bool IN_MEMORY = R == 16;
    const int warps = (int)blockDim.x / 32, warp = (int)threadIdx.x / 32;
    const long end = range_begin(a.rows, blockIdx.x + 1, gridDim.x);
    float *room = dynamic_smem<float>(); /* [2][warps][2*M], used in turn */
    float sum[SUMS][IN_MEMORY ? 1 : R][N] = {}, gamma[PACKS][N] = {};
    const float per_column = 1.0f / (float)a.C;
    auto column = [&](int j) {
        return (j * (int)blockDim.x + (HELD ? (int)threadIdx.x : anew((int)threadIdx.x))) * N;
    };
    auto load_gamma = [&](int j) {
        each<N>([&](int k) { gamma[HELD ? j : 0][k] = 0; });
        if (column(j) < a.C)
            load(gamma[HELD ? j : 0], (const E *)a.gamma + column(j));
    };
    if constexpr (NORM && HELD)
        load_gamma(0);
    auto place = [&](int s, int j) {
        return partial + ((long)s * gridDim.x + blockIdx.x) * a.C + column(j);
    };
    auto sum_of = [&](int s, int j, int k) -> float & {
        if constexpr (IN_MEMORY)
            return place(s, j)[k];
        else
            return sum[s][j][k];
    };
    auto each_pack = [&](auto f) { /* sums that are in registers have numbers, not an index */
        if constexpr (IN_MEMORY) {
#pragma unroll 1
            for (int j = 0; j < R; j++)
                f(j);
        } else {
            each<R>(f);
        }
    };
    auto store_all = [&] {
        each_pack([&](int j) {
            if (column(j) < a.C)
                each<SUMS>([&](int s) { store_sums(place(s, j), sum[s][IN_MEMORY ? 0 : j]); });
        });
    };
    if (IN_MEMORY)
        store_all();

    int turn = 0;
    for (long r0 = range_begin(a.rows, blockIdx.x, gridDim.x); r0 < end; r0 += M, turn ^= 1) {
        Pack<E, N> x[M][PACKS], dy[M][PACKS], dx[M][PACKS];
        float mean[M] = {}, rstd[M] = {}, total[2 * M] = {};
        auto fetch = [&](int m, int j, bool for_means) {
            long r = r0 + m < end ? r0 + m : end - 1;  /* the last row again, where there is none */
            int col = column(j) < a.C ? column(j) : 0; /* beyond: times a gamma of 0 */
            int at = HELD ? j : 0;
            if (!for_means)
                dx[m][at] = !FRESH || !is_fresh(a, r) ? fetch_pack<E, N>(row_of<E>(a.dx, r) + col)
                                                      : Pack<E, N>{};
            if constexpr (NORM) {
                x[m][at] = fetch_pack<E, N>(row_of<E>(a.x, r) + col);
                dy[m][at] = fetch_pack<E, N>(row_of<E>(a.dy, r) + col);
                if (!HELD)
                    load_gamma(j);
            }
        };
#pragma unroll
        for (int m = 0; m < M; m++) {
            if constexpr (NORM) {
                long r = r0 + m < end ? r0 + m : end - 1;
                mean[m] = ((const float *)a.mean)[r];
                rstd[m] = ((const float *)a.rstd)[r];
            }
            if constexpr (HELD)
                fetch(m, 0, false);
        }

        if constexpr (NORM) { /* total[2m] = mean(g), total[2m+1] = mean(g n) of row r0 + m */
            float *mine = room + turn * warps * 2 * M;
#pragma unroll
            for (int m = 0; m < M; m++) {
                float g_sum = 0, gn_sum = 0;
#pragma unroll
                for (int j = 0; j < R; j++) {
                    const int at = HELD ? j : 0;
                    if constexpr (!HELD)
                        fetch(m, j, true);
                    each<N>([&](int k) {
                        float n = (to_float(x[m][at].v[k]) - mean[m]) * rstd[m];
                        float g = to_float(dy[m][at].v[k]) * gamma[at][k];
                        g_sum += g;
                        gn_sum += g * n;
                    });
                }
                g_sum = warp_sum(g_sum);
                gn_sum = warp_sum(gn_sum);
                if (threadIdx.x % 32 == 0) {
                    mine[warp * 2 * M + 2 * m] = g_sum;
                    mine[warp * 2 * M + 2 * m + 1] = gn_sum;
                }
            }
            __syncthreads(); /* the other half of room has been read before this */
            for (int w = 0; w < warps; w++)
#pragma unroll
                for (int i = 0; i < 2 * M; i++)
                    total[i] += mine[w * 2 * M + i];
#pragma unroll
            for (int i = 0; i < 2 * M; i++)
                total[i] *= per_column;
        }

#pragma unroll
        for (int m = 0; m < M; m++) {
            long r = r0 + m;
            each_pack([&](int j) {
                const int col = column(j), at = HELD ? j : 0;
                if (r >= end || col >= a.C)
                    return;
                if constexpr (!HELD)
                    fetch(m, j, false);
                float d[N];
                Pack<E, N> stored = dx[m][at]; /* what is read as this layer's gradient */
                unpack(d, stored);
                if constexpr (NORM) {
                    each<N>([&](int k) {
                        float n = (to_float(x[m][at].v[k]) - mean[m]) * rstd[m];
                        float dyk = to_float(dy[m][at].v[k]);
                        d[k] +=
                            rstd[m] * (dyk * gamma[at][k] - total[2 * m] - n * total[2 * m + 1]);
                        sum_of(SUM_DGAMMA, j, k) += dyk * n;
                        sum_of(SUM_DBETA, j, k) += dyk;
                    });
                    stored = store(row_of<E>(a.dx, r) + col, d);
                }
                float v[N];
                if constexpr (BRANCH) {
                    float scale[N];
                    branch_scale(scale, a, mask, path, state, r, col);
                    each<N>([&](int k) { scale[k] *= d[k]; });
                    if (a.dls) {
                        load(v, row_of<E>(a.branch, r) + col);
                        each<N>([&](int k) { sum_of(SUM_DLS, j, k) += scale[k] * v[k]; });
                    }
                    if (a.dbranch.p) {
                        if (a.ls) {
                            load(v, (const E *)a.ls + col);
                            each<N>([&](int k) { scale[k] *= v[k]; });
                        }
                        stored = store(row_of<E>(a.dbranch, r) + col, scale);
                    }
                }
                unpack(v, stored);
                each<N>([&](int k) { sum_of(SUM_DBIAS, j, k) += v[k]; });
            });
        }
    }
    if (!IN_MEMORY)
        store_all();
}

/* Threads and blocks: about NORM_THREADS threads on a multiprocessor, NORM_ROWS rows for each. */
static Walk norm_walk(long rows, long C, int N, int R)
{
    Walk w;
    w.tiles = 1;
    w.threads = ceil_div(ceil_div(C, N * R), 32) * 32;
    int per = NORM_THREADS / w.threads, rows_at_once = R == 1 ? NORM_ROWS<1> : NORM_ROWS<2>;
    per = std::max(1, std::min(per, 16)); /* blocks of a multiprocessor */
    int fit = cu.gpu.multiProcessorCount * per;
    int useful = ceil_div(rows, rows_at_once);
    w.ranges = fit < useful ? fit : useful;
    return w;
}
static int norm_packs(long C, int N) /* R: one pack to a thread, or as many as registers allow */
{
    int packs = ceil_div(C, N);
    if (packs <= NORM_THREADS)
        return 1;
    return N == 1 && packs <= 4 * NORM_THREADS ? 4 : 16 / N;
}
template <class E, int N, int R> static void residual_norm_backward(const ResidualNorm *a)
{
    Walk w = norm_walk(a->rows, a->C, N, R);
    if (w.threads > NORM_THREADS)
        die("use a smaller width", "the norm's backward pass is made for at most %d channels",
            NORM_THREADS * 16);
    float *partial = scratch_floats((size_t)SUMS * (size_t)w.ranges * (size_t)a->C);
    static constexpr decltype(&residual_norm_backward_kernel<E, N, R, true, true, true>)
        kernels[3][2] = {{residual_norm_backward_kernel<E, N, R, false, false, false>,
                          residual_norm_backward_kernel<E, N, R, false, true, false>},
                         {residual_norm_backward_kernel<E, N, R, true, false, false>,
                          residual_norm_backward_kernel<E, N, R, true, true, false>},
                         {residual_norm_backward_kernel<E, N, R, true, false, true>,
                          residual_norm_backward_kernel<E, N, R, true, true, true>}};
    auto kernel = kernels[!a->gamma ? 0 : a->fresh ? 2 : 1][a->dbranch.p || a->dls];
    size_t smem = 2 * (size_t)(w.threads / 32) * 2 * NORM_ROWS<R> * sizeof(float);
    launch(kernel, (unsigned)w.ranges, (unsigned)w.threads, smem, cu.stream, *a,
           mask_of(a->drop, a->C), mask_of(a->path, a->C), cu.state, partial);
    Sums to = {{a->gamma ? ptr<float>(a->dgamma) : NULL, a->gamma ? ptr<float>(a->dbeta) : NULL,
                ptr<float>(a->dbias), ptr<float>(a->dls)}};
    sum_ranges(to, SUMS, partial, w.ranges, a->C);
}
static void cuda_residual_norm_backward(const ResidualNorm *a)
{
    Tensor none = {};
    bool wide = wide_access(a->C, a->dx.type, a->gamma ? a->x : none, a->gamma ? a->dy : none,
                            a->dx, a->dbranch, a->dls ? a->branch : none, a->gamma, a->ls, a->drop);
    by_pack(a->dx.type, wide, [&](auto e, auto width) {
        int packs = norm_packs(a->C, width);
        if (packs == 1)
            residual_norm_backward<decltype(e), width, 1>(a);
        else if (packs == 4)
            residual_norm_backward<decltype(e), width, width == 8 ? 2 : 4>(a);
        else
            residual_norm_backward<decltype(e), width, 16 / width>(a);
    });
}

/* ------------------------------------------------------------------------------------------------
 * Norms of heads. 2^k neighbouring lanes hold a head's hs numbers in R packs of N each, and a warp
 * as many heads as that leaves room for. */

enum { HEAD_MOST = 128 };                 /* numbers of a head */
enum { HEAD_WARPS = 8, HEAD_BLOCKS = 4 }; /* of a block; of a multiprocessor, at once */
template <int N> constexpr int HEAD_PACKS = N == 1 ? HEAD_MOST / 32 : 1; /* R */

/* Sum over the 2^k lanes that share a head */
__device__ inline float lanes_sum(float x, int lanes)
{
    for (int d = lanes / 2; d; d >>= 1)
        x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

/* A lane's part of one head */
template <class E, int N> struct Head {
    static constexpr int R = HEAD_PACKS<N>;
    float v[R][N] = {};
    Pack<E, N> raw[R];

    /* f(r, its first column) for each pack that this lane has */
    template <class F> static __device__ inline void packs_do(int hs, int lanes, F f)
    {
        each<R>([&](int r) {
            int col = (r * lanes + ((int)threadIdx.x & (lanes - 1))) * N;
            if (col < hs)
                f(r, col);
        });
    }
    __device__ inline void read(const E *from, int hs, int lanes)
    {
        packs_do(hs, lanes, [&](int r, int col) {
            raw[r] = fetch_pack<E, N>(from + col);
            unpack(v[r], raw[r]);
        });
    }
    /* v = (v - mean) * rstd; returns rstd. All lanes of the warp come together. */
    __device__ inline float normalise(int hs, int lanes, float eps)
    {
        float sum = 0, squares = 0;
        packs_do(hs, lanes, [&](int r, int) { each<N>([&](int k) { sum += v[r][k]; }); });
        const float mean = lanes_sum(sum, lanes) / (float)hs;
        packs_do(hs, lanes, [&](int r, int) {
            each<N>([&](int k) {
                v[r][k] -= mean;
                squares += v[r][k] * v[r][k];
            });
        });
        const float rstd = 1 / sqrtf(lanes_sum(squares, lanes) / (float)hs + eps);
        packs_do(hs, lanes, [&](int r, int) { each<N>([&](int k) { v[r][k] *= rstd; }); });
        return rstd;
    }
};

/* f(row, first column, whether it is there) for each head of this thread's in turn; a warp's lanes
 * come together, those for whom no head is left too. */
template <class F> __device__ inline void heads_do(const HeadNorm &a, int lanes, F f)
{
    const uint32_t heads = (uint32_t)a.heads, count = (uint32_t)a.rows * heads;
    const uint32_t per_warp = 32u / (uint32_t)lanes, warps = gridDim.x * HEAD_WARPS;
    const uint32_t warp = blockIdx.x * HEAD_WARPS + threadIdx.x / 32;
    for (uint32_t at = warp * per_warp; at < count; at += warps * per_warp) {
        uint32_t i = at + threadIdx.x % 32 / (uint32_t)lanes;
        f((long)(i / heads), (long)(i % heads) * a.hs, i < count);
    }
}

/* input = x, x = LayerNorm(x) of each head, in place. Reads x, writes both: of q or k 232 MB, floor
 * 54 us. */
template <class E, int N>
__global__ void __launch_bounds__(32 * HEAD_WARPS, HEAD_BLOCKS)
    head_norm_forward_kernel(HeadNorm a, int lanes)
{
    launched_within<32 * HEAD_WARPS>();
    using H = Head<E, N>;
    Pack<E, N> gamma[H::R], beta[H::R];
    H::packs_do(a.hs, lanes, [&](int r, int col) {
        gamma[r] = fetch_pack<E, N>((const E *)a.gamma + col);
        beta[r] = fetch_pack<E, N>((const E *)a.beta + col);
    });
    heads_do(a, lanes, [&](long row, long column, bool there) {
        E *x = row_of<E>(a.x, row) + column, *input = row_of<E>(a.input, row) + column;
        H head;
        if (there)
            head.read(x, a.hs, lanes);
        head.normalise(a.hs, lanes, (float)a.eps);
        if (there)
            H::packs_do(a.hs, lanes, [&](int r, int col) {
                *(Pack<E, N> *)(input + col) = head.raw[r];
                each<N>([&](int k) {
                    head.v[r][k] = head.v[r][k] * to_float(gamma[r].v[k]) + to_float(beta[r].v[k]);
                });
                store(x + col, head.v[r]);
            });
    });
}

/* With n = (input - mean) * rstd and g = dy * gamma: dx = rstd * (g - mean(g) - n * mean(g n)), in
 * place of dy; dgamma = sum of dy n, dbeta = sum of dy over rows and heads. Reads dx and input,
 * writes dx: of q or k 232 MB, floor 54 us. A thread's columns are the same in every head, so its
 * sums stay in registers; then a block adds those of its lanes and warps, in order, into partial:
 * [2][blocks][hs]. */
template <class E, int N>
__global__ void __launch_bounds__(32 * HEAD_WARPS, HEAD_BLOCKS)
    head_norm_backward_kernel(HeadNorm a, int lanes, float *partial)
{
    launched_within<32 * HEAD_WARPS>();
    using H = Head<E, N>;
    float *room = dynamic_smem<float>(); /* [HEAD_WARPS][2][hs] */
    float gamma[H::R][N], dgamma[H::R][N] = {}, dbeta[H::R][N] = {};
    H::packs_do(a.hs, lanes, [&](int r, int col) { load(gamma[r], (const E *)a.gamma + col); });
    heads_do(a, lanes, [&](long row, long column, bool there) {
        E *dx = row_of<E>(a.x, row) + column;
        H d, n;
        if (there) {
            d.read(dx, a.hs, lanes);
            n.read(row_of<E>(a.input, row) + column, a.hs, lanes);
        }
        const float rstd = n.normalise(a.hs, lanes, (float)a.eps);
        float g_sum = 0, gn_sum = 0;
        H::packs_do(a.hs, lanes, [&](int r, int) {
            each<N>([&](int k) {
                g_sum += d.v[r][k] * gamma[r][k];
                gn_sum += d.v[r][k] * gamma[r][k] * n.v[r][k];
            });
        });
        g_sum = lanes_sum(g_sum, lanes) / (float)a.hs;
        gn_sum = lanes_sum(gn_sum, lanes) / (float)a.hs;
        if (there)
            H::packs_do(a.hs, lanes, [&](int r, int col) {
                each<N>([&](int k) {
                    float dy = d.v[r][k];
                    dgamma[r][k] += dy * n.v[r][k];
                    dbeta[r][k] += dy;
                    d.v[r][k] = rstd * (dy * gamma[r][k] - g_sum - n.v[r][k] * gn_sum);
                });
                store(dx + col, d.v[r]);
            });
    });

    float *mine = room + threadIdx.x / 32 * 2 * a.hs;
    for (int d = lanes; d < 32; d *= 2) /* the warp's other heads */
        each<H::R>([&](int r) {
            each<N>([&](int k) {
                dgamma[r][k] += __shfl_xor_sync(0xffffffffu, dgamma[r][k], d);
                dbeta[r][k] += __shfl_xor_sync(0xffffffffu, dbeta[r][k], d);
            });
        });
    if ((int)threadIdx.x % 32 < lanes)
        H::packs_do(a.hs, lanes, [&](int r, int col) {
            each<N>([&](int k) {
                mine[col + k] = dgamma[r][k];
                mine[a.hs + col + k] = dbeta[r][k];
            });
        });
    __syncthreads();
    for (int j = (int)threadIdx.x; j < 2 * a.hs; j += (int)blockDim.x) {
        float sum = 0;
        for (int w = 0; w < HEAD_WARPS; w++)
            sum += room[w * 2 * a.hs + j];
        long which = j / a.hs; /* dgamma, dbeta */
        partial[(which * gridDim.x + blockIdx.x) * a.hs + j % a.hs] = sum;
    }
}

/* As many as run at once, but no more than have two heads for each of their groups of lanes */
static int head_blocks(const HeadNorm *a, int lanes)
{
    int useful = ceil_div((long)a->rows * a->heads, 2 * HEAD_WARPS * (32 / lanes));
    return std::min(cu.gpu.multiProcessorCount * HEAD_BLOCKS, useful);
}
/* f(element, width, lanes of a head) */
template <class F> static void by_head(const HeadNorm *a, F f)
{
    if (a->hs > HEAD_MOST)
        die("use more heads, so that width / heads is at most 128",
            "the CUDA backend takes head sizes up to %d, this model has %d", HEAD_MOST, a->hs);
    bool wide = wide_access(a->hs, a->x.type, a->x, a->input, a->gamma, a->beta);
    by_pack(a->x.type, wide, [&](auto e, auto width) {
        int lanes = 1;
        while (lanes < 32 && lanes * width < a->hs)
            lanes *= 2;
        f(e, width, lanes);
    });
}
static void cuda_head_norm_forward(const HeadNorm *a)
{
    by_head(a, [&](auto e, auto width, int lanes) {
        launch(head_norm_forward_kernel<decltype(e), width>, (unsigned)head_blocks(a, lanes),
               32 * HEAD_WARPS, 0, cu.stream, *a, lanes);
    });
}
static void cuda_head_norm_backward(const HeadNorm *a)
{
    by_head(a, [&](auto e, auto width, int lanes) {
        int blocks = head_blocks(a, lanes);
        float *partial = scratch_floats(2 * (size_t)blocks * (size_t)a->hs);
        size_t smem = (size_t)(HEAD_WARPS * 2 * a->hs) * sizeof(float);
        launch(head_norm_backward_kernel<decltype(e), width>, (unsigned)blocks, 32 * HEAD_WARPS,
               smem, cu.stream, *a, lanes, partial);
        sum_ranges(Sums{{ptr<float>(a->dgamma), ptr<float>(a->dbeta)}}, 2, partial, blocks, a->hs);
    });
}
