/* layers.cuh - what else is between the matrix products but attention: patches, embedding, what a
 * product's epilogue left undone, pooling, loss, conversions. Norms have norms.cuh.
 *
 * Each host function is the Backend entry of its name; the formulas are in backend.h, the shapes of
 * work and what "floor" means in rows.cuh.
 */
#pragma once

#include "cuda/norms.cuh"

/* ------------------------------------------------------------------------------------------------
 * Patches */

struct Normal { /* pixels of 0..1 become (pixel - mean) * inv_std */
    float mean[3], inv_std[3];
};
__device__ inline float of_channel(const float (&v)[3], int c)
{
    return c == 0 ? v[0] : c == 1 ? v[1] : v[2];
}

/* Random erasing's standard normal: sqrt(-2 ln u0) cos(2 pi u1). A call of its own: it is rare. */
__device__ __attribute__((noinline)) float erase_noise(const StepState *s, uint32_t element,
                                                       uint32_t sample)
{
    Philox r = rng_block(s->seed, element, s->sample0 + sample, s->step, RNG_ERASE, 0);
    const float unit = 1.0f / 4294967296.0f;
    /* ln u0 by the distance from 1 where u0 is near 1, since a float would round that away */
    float log_u = r.v[0] >> 31 ? log1pf(-((float)~r.v[0] + 0.5f) * unit)
                               : logf(((float)r.v[0] + 0.5f) * unit);
    float turn = ((float)r.v[1] + 0.5f) * unit - 0.5f; /* cos(2 pi u) = -cos(2 pi (u - 1/2)) */
    return sqrtf(-2 * log_u) * -__cosf(6.28318530717958648f * turn);
}

__device__ inline bool in_rect(const Rect &r, int y, int x)
{
    return (unsigned)(y - r.y) < (unsigned)r.h && (unsigned)(x - r.x) < (unsigned)r.w;
}

/* Channel c of the pixel in row y, column x of image b, augmented and normalised. */
__device__ inline float pixel(const Patchify &a, const Normal &norm, const StepState *s, int b,
                              int c, int y, int x)
{
    if (!a.u8)
        return ((const float *)a.images)[(((long)b * VIT_CHANNELS + c) * a.H + y) * a.W + x];
    const Augment *g = a.augment ? (const Augment *)a.augment + b : NULL;
    if (g && g->erase && in_rect(g->erased, y, x))
        return g->erase == ERASE_ZERO
                   ? 0
                   : erase_noise(s, (uint32_t)((c * a.H + y) * a.W + x), (uint32_t)b);
    const uint8_t *in = (const uint8_t *)a.images + (((long)b * a.H + y) * a.W + x) * VIT_CHANNELS;
    float v;
    if (g && g->use_colour) {
        v = g->colour[9 + c];
        for (int k = 0; k < VIT_CHANNELS; k++)
            v += g->colour[3 * c + k] * ((float)in[k] * (1 / 255.0f));
        v = fminf(fmaxf(v, 0.0f), 1.0f);
    } else {
        v = (float)in[c] * (1 / 255.0f);
    }
    return (v - of_channel(norm.mean, c)) * of_channel(norm.inv_std, c);
}

/* The same of image b and its partner together, as g = Augment[b] mixes them. */
__device__ inline float mixed_pixel(const Patchify &a, const Normal &norm, const StepState *s,
                                    const Augment *g, int b, int c, int y, int x)
{
    const bool cut = in_rect(g->cut, y, x);
    const float lambda = g->lambda, v = pixel(a, norm, s, cut ? g->partner : b, c, y, x);
    return cut || lambda == 1 ? v
                              : lambda * v + (1 - lambda) * pixel(a, norm, s, g->partner, c, y, x);
}

/* images -> out [B*Np, 3*P*P]. A block writes one patch, a thread packs of neighbouring columns;
 * the bytes, three apart, are fetched from L1 by all but the first of their readers. Reads 38.5 MB
 * of bytes (again as much where images are mixed), writes 77.1 MB: floor 27 us. */
template <class E, int N>
__global__ void patchify_kernel(Patchify a, Normal norm, const StepState *state)
{
    const int P = a.P, gh = a.H / P, gw = a.W / P, n = VIT_CHANNELS * P * P;
    const int b = (int)(blockIdx.x / (unsigned)(gh * gw));
    const int y0 = (int)blockIdx.x / gw % gh * P, x0 = (int)blockIdx.x % gw * P;
    const Augment *g = a.augment ? (const Augment *)a.augment + b : NULL;
    const bool mixed = g && (g->lambda < 1 || g->cut.h > 0); /* the same for the whole block */
    E *out = row_of<E>(a.out, blockIdx.x);
    for (int col = (int)threadIdx.x * N; col < n; col += (int)blockDim.x * N) {
        int c = col / (P * P), i = col / P % P, j = col % P;
        float v[N];
        each<N>([&](int k) {
            v[k] = mixed ? mixed_pixel(a, norm, state, g, b, c, y0 + i, x0 + j)
                         : pixel(a, norm, state, b, c, y0 + i, x0 + j);
            if (++j == P) {
                j = 0;
                if (++i == P) {
                    i = 0;
                    c++;
                }
            }
        });
        store(out + col, v);
    }
}
static void cuda_patchify(const Patchify *a)
{
    int n = VIT_CHANNELS * a->P * a->P, patches = a->B * (a->H / a->P) * (a->W / a->P);
    Normal norm;
    for (int c = 0; c < VIT_CHANNELS; c++) {
        norm.mean[c] = (float)a->mean[c];
        norm.inv_std[c] = (float)(1 / a->std[c]);
    }
    by_pack(a->out.type, wide_access(n, a->out.type, a->out), [&](auto e, auto width) {
        int threads = ceil_div(ceil_div(n, width), 32) * 32;
        launch(patchify_kernel<decltype(e), width>, (unsigned)patches,
               (unsigned)(threads < 256 ? threads : 256), 0, cu.stream, *a, norm, cu.state);
    });
}

/* ------------------------------------------------------------------------------------------------
 * Embedding */

/* x = drop(concat(cls, patches) + pos), [B*T, C]. Reads patches, writes x; pos, where there are
 * positions, comes from L2: 155 MB, floor 36 us. */
template <class E, int N>
__global__ void embed_forward_kernel(Embed a, Mask mask, const StepState *state)
{
    const long rows = (long)a.B * a.T, col = my_column(N);
    const long end = range_begin(rows, blockIdx.y + 1, gridDim.y);
    if (col >= a.C)
        return;
    for (long r = range_begin(rows, blockIdx.y, gridDim.y); r < end; r++) {
        int b = (int)r / a.T, t = (int)r % a.T, patch = t - a.cls_tokens;
        const E *in = patch < 0 ? (const E *)a.cls + (long)t * a.C
                                : row_of<E>(a.patches, (long)b * (a.T - a.cls_tokens) + patch);
        float x[N], pos[N] = {};
        load(x, in + col);
        if (a.pos)
            load(pos, (const E *)a.pos + (long)t * a.C + col);
        each<N>([&](int k) { x[k] += pos[k]; });
        if (mask.keep)
            drop_pack(x, mask, state, mask.element(t, (int)col), (uint32_t)b);
        store(row_of<E>(a.x, r) + col, x);
    }
}
static void cuda_embed_forward(const Embed *a)
{
    bool wide = wide_access(a->C, a->x.type, a->x, a->patches, a->cls, a->pos, a->drop);
    by_pack(a->x.type, wide, [&](auto e, auto width) {
        Walk w = walk_of((long)a->B * a->T, a->C, width, RESIDENT_32);
        launch(embed_forward_kernel<decltype(e), width>, w.grid(), (unsigned)w.threads, 0,
               cu.stream, *a, mask_of(a->drop, a->C), cu.state);
    });
}

/* dx = drop(dx); dpatches = its rows of patches; dpos[t] = sum over images of row t; dcls = dpos of
 * the class tokens. A thread takes the packs of one token and column and walks over the images, 8
 * loads in flight. dx as stored is what is summed, so dbias [C], the column sums of dpatches, are
 * those of dpos: a matrix of T rows. Reads dx, writes dpatches (and dx where it was dropped out):
 * 155 MB, floor 36 us. */
template <class E, int N>
__global__ void embed_backward_kernel(Embed a, Mask mask, const StepState *state)
{
    const int t = (int)blockIdx.y, patch = t - a.cls_tokens, BATCH = 8;
    const long col = my_column(N), Np = a.T - a.cls_tokens;
    if (col >= a.C)
        return;
    float sum[N] = {};
    for (int b0 = 0; b0 < a.B; b0 += BATCH) {
        Pack<E, N> in[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) /* the last image again, where there is none */
            in[i] = fetch_pack<E, N>(row_of<E>(a.x, (long)min(b0 + i, a.B - 1) * a.T + t) + col);
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int b = b0 + i;
            if (b >= a.B)
                break;
            float dx[N];
            unpack(dx, in[i]);
            if (mask.keep) {
                drop_pack(dx, mask, state, mask.element(t, (int)col), (uint32_t)b);
                unpack(dx, store(row_of<E>(a.x, (long)b * a.T + t) + col, dx));
            }
            if (patch >= 0)
                store(row_of<E>(a.patches, b * Np + patch) + col, dx);
            each<N>([&](int k) { sum[k] += dx[k]; });
        }
    }
    if (a.pos)
        store_sums((float *)a.pos + (long)t * a.C + col, sum);
    if (patch < 0)
        store_sums((float *)a.cls + (long)t * a.C + col, sum);
}
static void cuda_embed_backward(const Embed *a)
{
    bool wide = wide_access(a->C, a->x.type, a->x, a->patches, a->cls, a->pos, a->drop);
    by_pack(a->x.type, wide, [&](auto e, auto width) {
        int packs = ceil_div(a->C, width), threads = packs < 64 ? ceil_div(packs, 32) * 32 : 64;
        dim3 grid((unsigned)ceil_div(packs, threads), (unsigned)a->T);
        launch(embed_backward_kernel<decltype(e), width>, grid, (unsigned)threads, 0, cu.stream, *a,
               mask_of(a->drop, a->C), cu.state);
    });
    if (a->dbias) {
        Tensor dpos = {dev_at(a->pos, (long)a->cls_tokens * a->C, F32), a->C, F32, NULL};
        column_sums(ptr<float>(a->dbias), dpos, a->T - a->cls_tokens, a->C);
    }
}

/* ------------------------------------------------------------------------------------------------
 * Linear layers: what the matrix product's epilogue does not do. GELU (Hendrycks & Gimpel 2016) is
 * x Phi(x), with Phi by erf, by its tanh approximation or by sigmoid(1.702 x). Where Phi is small,
 * 1 + erf and 1 + tanh cancel and would leave few of bf16's 8 bits below x = -4; the forms here
 * keep them, and cost less: one exponential and one reciprocal serve a function and its slope, and
 * in 16-bit types an exponential alone.
 *
 * HALVES is 2 for ACT_SWIGLU, whose rows have gates in the left half and values in the right one,
 * else 1. */

/* e^(-x^2/2) */
__device__ inline float bell(float x)
{
    return ex2_approx(-0.721347520f * x * x);
}

/* The standard normal distribution Phi(x), given e = exp(-x^2/2): below 0 it is e times a
 * polynomial in 1 / (1 + 0.3 |x|), our own fit, relative error 1.5e-7 before rounding. */
__device__ inline float normal_below(float x, float e)
{
    float t = rcp_approx(1 + 0.3f * fabsf(x));
    float p = 0.0356753453f;
    p = p * t - 0.157205355f;
    p = p * t + 0.206357206f;
    p = p * t - 0.0536868260f;
    p = p * t + 0.128563183f;
    p = p * t + 0.0999130606f;
    p = p * t + 0.120754019f;
    p = p * t + 0.119629295f;
    float tail = e * (p * t);
    return x < 0 ? tail : 1 - tail;
}

/* c0 + c1 u + c2 u^2 + ... */
__device__ inline float polynomial(float, float c)
{
    return c;
}
template <class... C> __device__ inline float polynomial(float u, float c, C... more)
{
    return polynomial(u, more...) * u + c;
}

/* GELU by erf in 16-bit types, whose rounding hides what shorter polynomials miss. With u = |x|,
 * the tail t(u) = Phi(-u) and h(u) = t - u phi(u), phi being the normal density:
 *
 *   gelu(x) = max(x, 0) - u t(u)         log2 t(u) is the first polynomial
 *   gelu'(x) = h(u), or 1 - h(u) above 0       h(u) e^(u^2/2) the second one
 *
 * Our own fits, minimax on [0, 6]: of t to 2.6e-4 in bf16, 3e-5 in fp16, relative where u t(u) is
 * above 1e-7; of h to 3.4e-4 and 2.6e-5, relative where |h| is above 1e-3. So before rounding gelu
 * is within 0.07 ulp. Beyond 16 both are 0, and u stops there, lest a power overflow; NaN stays. */
__device__ inline float log2_tail(bf16, float u)
{
    return polynomial(u, -1.00038218f, -1.14600372f, -0.470125496f, -0.0443369411f, 0.00480792532f,
                      -0.000228220961f);
}
__device__ inline float log2_tail(fp16, float u)
{
    return polynomial(u, -1.00004327f, -1.15047884f, -0.460578471f, -0.0517568141f, 0.00740626687f,
                      -0.000646581175f, 2.52131158e-05f);
}
__device__ inline float scaled_slope(bf16, float u)
{
    return polynomial(u, 0.499830484f, -0.794259012f, 0.23377645f, -0.101270042f, 0.0289907791f,
                      -0.00470780581f, 0.000321075699f);
}
__device__ inline float scaled_slope(fp16, float u)
{
    return polynomial(u, 0.499986917f, -0.797443807f, 0.24711287f, -0.124813274f, 0.0499011278f,
                      -0.014680177f, 0.00288478704f, -0.000330521725f, 1.64733174e-05f);
}
template <class E> __device__ inline float gelu_erf(float x)
{
    if constexpr (sizeof(E) == 2) {
        float u = min_nan(fabsf(x), 16);
        return fmaxf(x, 0) - u * ex2_approx(log2_tail(E(), u));
    } else {
        return x * normal_below(x, bell(x));
    }
}
template <class E> __device__ inline float gelu_erf_slope(float x)
{
    if constexpr (sizeof(E) == 2) {
        float u = min_nan(fabsf(x), 16), h = bell(u) * scaled_slope(E(), u);
        return x < 0 ? h : 1 - h;
    } else {
        float e = bell(x);
        return normal_below(x, e) + x * 0.398942280f * e;
    }
}

/* 1 / (1 + e^-2u) and the same of -u, as (1 + tanh u) / 2 and (1 - tanh u) / 2 */
__device__ inline void sigmoids(float u, float *plus, float *minus)
{
    float e = ex2_approx(-2.88539008f * fabsf(u)), s = rcp_approx(1 + e);
    *plus = u >= 0 ? s : e * s;
    *minus = u >= 0 ? e * s : s;
}

__device__ inline float gelu_tanh_inner(float x)
{
    return 0.797884561f * (x + 0.044715f * x * x * x);
}

/* v[0] = act(v) */
template <class E, int HALVES, int N>
__device__ inline void act_forward(float (&v)[HALVES][N], int act)
{
    float plus, minus;
    if constexpr (HALVES == 2) {
        each<N>([&](int k) {
            sigmoids(0.5f * v[0][k], &plus, &minus);
            v[0][k] *= plus * v[1][k];
        });
    } else if (act == ACT_GELU) {
        each<N>([&](int k) { v[0][k] = gelu_erf<E>(v[0][k]); });
    } else if (act == ACT_GELU_TANH || act == ACT_QUICK_GELU) {
        each<N>([&](int k) {
            sigmoids(act == ACT_QUICK_GELU ? 0.851f * v[0][k] : gelu_tanh_inner(v[0][k]), &plus,
                     &minus);
            v[0][k] *= plus;
        });
    } else if (act == ACT_TANH) {
        each<N>([&](int k) { v[0][k] = tanhf(v[0][k]); });
    }
}

/* d *= act'(x). Of two halves, d comes with the gradient of y in its right one; with x = (g, v) and
 * s = sigmoid(g), it becomes d v (s + g s (1 - s)) and d g s. */
template <class E, int HALVES, int N>
__device__ inline void act_backward(float (&d)[HALVES][N], const float (&x)[HALVES][N], int act)
{
    float plus, minus;
    if constexpr (HALVES == 2) {
        each<N>([&](int k) {
            float g = x[0][k], dy = d[1][k];
            sigmoids(0.5f * g, &plus, &minus);
            d[0][k] = dy * x[1][k] * (plus + g * plus * minus);
            d[1][k] = dy * g * plus;
        });
    } else if (act == ACT_GELU) {
        each<N>([&](int k) { d[0][k] *= gelu_erf_slope<E>(x[0][k]); });
    } else if (act == ACT_GELU_TANH) {
        each<N>([&](int k) {
            float inner = 0.797884561f * (1 + 3 * 0.044715f * x[0][k] * x[0][k]);
            sigmoids(gelu_tanh_inner(x[0][k]), &plus, &minus);
            d[0][k] *= plus + 2 * x[0][k] * plus * minus * inner;
        });
    } else if (act == ACT_QUICK_GELU) {
        each<N>([&](int k) {
            sigmoids(0.851f * x[0][k], &plus, &minus);
            d[0][k] *= plus + 1.702f * x[0][k] * plus * minus;
        });
    } else if (act == ACT_TANH) {
        each<N>([&](int k) {
            sigmoids(x[0][k], &plus, &minus);
            d[0][k] *= 4 * plus * minus;
        });
    }
}

/* f(Width<HALVES>(), RESIDENT_...) */
template <class F> static void by_halves(int act, F f)
{
    if (act == ACT_SWIGLU)
        f(Width<2>(), RESIDENT_96);
    else
        f(Width<1>(), RESIDENT_64);
}

/* Rows whose loads are in flight together. They are loaded without conditions (an operand that is
 * not there by reading another again), since behind a branch loads wait for those before it. */
enum { TAIL_ROWS = 2, TAIL_THREADS = 128 };

/* y = drop(act(pre + bias)) + residual, [rows, out], where the product was left in pre, or in y
 * itself where there is no activation to save it for. Reads the product (and the residual), writes
 * y (and pre, if the bias was not in it): for fc1 620 MB, floor 144 us; of two halves [rows, 2 out]
 * 930 MB, floor 216 us. What follows pre is made of it as it is stored, so that it can be made
 * again. */
template <class E, int N, int HALVES>
__global__ void linear_tail_kernel(LinearForward a, Tensor product, const E *bias, Mask mask,
                                   const StepState *state)
{
    const long col = my_column(N), end = range_begin(a.rows, blockIdx.y + 1, gridDim.y);
    if (col >= a.out)
        return;
    float add[HALVES][N] = {};
    if (bias)
        each<HALVES>([&](int h) { load(add[h], bias + h * a.out + col); });
    for (long r0 = range_begin(a.rows, blockIdx.y, gridDim.y); r0 < end; r0 += TAIL_ROWS) {
        Pack<E, N> in[TAIL_ROWS][HALVES], residual[TAIL_ROWS];
#pragma unroll
        for (int i = 0; i < TAIL_ROWS; i++) {
            long r = r0 + i < end ? r0 + i : end - 1;
            each<HALVES>([&](int h) {
                in[i][h] = fetch_pack<E, N>(row_of<E>(product, r) + h * a.out + col);
            });
            residual[i] = fetch_pack<E, N>(row_of<E>(a.residual.p ? a.residual : product, r) + col);
        }
#pragma unroll
        for (int i = 0; i < TAIL_ROWS; i++) {
            long r = r0 + i;
            if (r >= end)
                break;
            float pre[HALVES][N], (&v)[N] = pre[0];
            each<HALVES>([&](int h) {
                unpack(pre[h], in[i][h]);
                each<N>([&](int k) { pre[h][k] += add[h][k]; });
                if (bias && product.p != a.y.p)
                    unpack(pre[h], store(row_of<E>(product, r) + h * a.out + col, pre[h]));
            });
            act_forward<E>(pre, a.act);
            if (mask.keep)
                drop_pack(v, mask, state, mask.element((int)r % a.tokens, (int)col),
                          (uint32_t)((int)r / a.tokens));
            if (a.residual.p)
                each<N>([&](int k) { v[k] += to_float(residual[i].v[k]); });
            store(row_of<E>(a.y, r) + col, v);
        }
    }
}

/* A y in 8 bits, drop(act(pre)) with pre whole: a Source. For fc1: reads 2 bytes an element, writes
 * both copies, 620 MB, floor 144 us. */
template <int HALVES> struct Activated {
    Tensor pre; /* bf16 [rows, HALVES * out] */
    int out, act, tokens;
    Mask mask;
    const StepState *state;
    static constexpr int PAIRS = 1;
    static constexpr bool SUMS = false;
    static constexpr int BLOCKS = HALVES == 2 ? 3 : 4;
    struct Raw {
        Pack<bf16, 8> pre[HALVES];
    };

    __device__ inline void fetch(Raw &raw, long r, long c) const
    {
        each<HALVES>([&](int h) {
            raw.pre[h] = fetch_pack<bf16, 8>(row_of<const bf16>(pre, r) + h * out + c);
        });
    }
    __device__ inline void make(float (&v)[8], const Raw &raw, long r, long c) const
    {
        float x[HALVES][8];
        each<HALVES>([&](int h) { unpack(x[h], raw.pre[h]); });
        act_forward<bf16>(x, act);
        if (mask.keep)
            drop_pack(x[0], mask, state, mask.element((int)r % tokens, (int)c),
                      (uint32_t)((int)r / tokens));
        unpack(v, rounded_pack<bf16>(x[0]));
    }
};
static void linear_tail_fp8(const LinearForward *a, const Tensor &product)
{
    if (product.p != a->pre.p || a->residual.p || !wide_access(a->out, BF16, product, a->drop))
        die("this is a mistake in vit.c", "a y of 8 bits without pre, or with a residual");
    by_halves(a->act, [&](auto halves, int) {
        cast<__NV_E4M3>(fp8_copies_of(a->y, a->rows, a->out),
                        Activated<halves>{product, a->out, a->act, a->tokens,
                                          mask_of(a->drop, a->out), cu.state});
    });
}

static void linear_tail(const LinearForward *a, const Tensor &product, const dev *bias)
{
    if (is_fp8(a->y.type) && bias) { /* which the library could not add */
        LinearForward sum = *a;
        sum.y = product;
        sum.out = a->act == ACT_SWIGLU ? 2 * a->out : a->out;
        sum.act = ACT_NONE;
        sum.drop = {};
        linear_tail(&sum, product, bias);
    }
    if (is_fp8(a->y.type)) {
        linear_tail_fp8(a, product);
        return;
    }
    bool wide = wide_access(a->out, a->y.type, a->y, product, a->residual, bias, a->drop);
    by_pack(a->y.type, wide, [&](auto e, auto width) {
        by_halves(a->act, [&](auto halves, int resident) {
            Walk w = walk_of(a->rows, a->out, width, resident);
            launch(linear_tail_kernel<decltype(e), width, halves>, w.grid(), (unsigned)w.threads, 0,
                   cu.stream, *a, product, ptr<decltype(e)>(bias), mask_of(a->drop, a->out),
                   cu.state);
        });
    });
}
static void cuda_activate(const LinearForward *a)
{
    LinearForward again = *a;
    again.residual = {};
    linear_tail(&again, a->pre, NULL);
}

/* dx = drop(dx) * act'(pre), in place, [rows, in], and its column sums, of dx as stored. Reads dx
 * and pre, writes dx: for fc1 930 MB, floor 216 us. Of two halves [rows, 2 in], the product was
 * left in the right one: 1550 MB, floor 360 us. partial: [ranges][HALVES * in] */
template <class E, int N, int HALVES>
__global__ void __launch_bounds__(TAIL_THREADS, HALVES == 2 ? 5 : 8)
    input_tail_kernel(LinearBackwardInput a, Mask mask, const StepState *state, float *partial)
{
    launched_within<TAIL_THREADS>();
    const long col = my_column(N), end = range_begin(a.rows, blockIdx.y + 1, gridDim.y);
    if (col >= a.in)
        return;
    const long product = (HALVES - 1) * (long)a.in; /* its first column */
    float sum[HALVES][N] = {};
    for (long r0 = range_begin(a.rows, blockIdx.y, gridDim.y); r0 < end; r0 += TAIL_ROWS) {
        Pack<E, N> dx[TAIL_ROWS], pre[TAIL_ROWS][HALVES];
#pragma unroll
        for (int i = 0; i < TAIL_ROWS; i++) {
            long r = r0 + i < end ? r0 + i : end - 1;
            dx[i] = fetch_pack<E, N>(row_of<E>(a.dx, r) + product + col);
            each<HALVES>([&](int h) {
                pre[i][h] = fetch_pack<E, N>(row_of<E>(a.act ? a.pre : a.dx, r) + h * a.in + col);
            });
        }
#pragma unroll
        for (int i = 0; i < TAIL_ROWS; i++) {
            long r = r0 + i;
            if (r >= end)
                break;
            float d[HALVES][N], x[HALVES][N];
            unpack(d[HALVES - 1], dx[i]);
            each<HALVES>([&](int h) { unpack(x[h], pre[i][h]); });
            if (mask.keep)
                drop_pack(d[HALVES - 1], mask, state, mask.element((int)r % a.tokens, (int)col),
                          (uint32_t)((int)r / a.tokens));
            act_backward<E>(d, x, a.act);
            each<HALVES>([&](int h) {
                unpack(d[h], store(row_of<E>(a.dx, r) + h * a.in + col, d[h]));
                each<N>([&](int k) { sum[h][k] += d[h][k]; });
            });
        }
    }
    if (partial)
        each<HALVES>([&](int h) {
            store_sums(partial + ((long)blockIdx.y * HALVES + h) * a.in + col, sum[h]);
        });
}
static void input_tail(const LinearBackwardInput *a)
{
    if (!a->act && a->drop.p <= 0) {
        if (a->dbias)
            column_sums(ptr<float>(a->dbias), a->dx, a->rows, a->in);
        return;
    }
    Tensor none = {};
    bool wide = wide_access(a->in, a->dx.type, a->dx, a->act ? a->pre : none, a->drop);
    by_pack(a->dx.type, wide, [&](auto e, auto width) {
        by_halves(a->act, [&](auto halves, int resident) {
            Walk w = walk_of(a->rows, a->in, width, resident);
            const long n = (long)halves * a->in;
            float *partial = a->dbias ? scratch_floats((size_t)w.ranges * (size_t)n) : NULL;
            launch(input_tail_kernel<decltype(e), width, halves>, w.grid(), (unsigned)w.threads, 0,
                   cu.stream, *a, mask_of(a->drop, a->in), cu.state, partial);
            if (partial)
                sum_ranges(Sums{{ptr<float>(a->dbias)}}, 1, partial, w.ranges, n);
        });
    });
}

/* A dx in 8 bits, drop(product) * act'(pre): a Source. For fc1: reads 4 bytes an element, writes
 * both copies, 930 MB, floor 216 us. SwiGLU's halves are made one beside the other, of the same
 * numbers, which the second one finds in the L2. */
template <int HALVES> struct Sloped {
    Tensor product, pre; /* bf16 [rows, in], [rows, HALVES * in] */
    int in, act, tokens;
    Mask mask;
    const StepState *state;
    static constexpr int PAIRS = 1;
    static constexpr bool SUMS = true;
    static constexpr int BLOCKS = HALVES == 2 ? 2 : 3;
    struct Raw {
        Pack<bf16, 8> product, pre[HALVES];
    };

    __device__ inline void fetch(Raw &raw, long r, long c) const
    {
        const long col = HALVES == 2 && c >= in ? c - in : c;
        raw.product = fetch_pack<bf16, 8>(row_of<const bf16>(product, r) + col);
        each<HALVES>([&](int h) {
            raw.pre[h] = fetch_pack<bf16, 8>(row_of<const bf16>(act ? pre : product, r) +
                                             (act ? h * in : 0) + col);
        });
    }
    __device__ inline void make(float (&v)[8], const Raw &raw, long r, long c) const
    {
        const bool right = HALVES == 2 && c >= in;
        float d[HALVES][8], x[HALVES][8];
        unpack(d[HALVES - 1], raw.product);
        each<HALVES>([&](int h) { unpack(x[h], raw.pre[h]); });
        if (mask.keep)
            drop_pack(d[HALVES - 1], mask, state,
                      mask.element((int)r % tokens, (int)(right ? c - in : c)),
                      (uint32_t)((int)r / tokens));
        act_backward<bf16>(d, x, act);
        each<8>([&](int k) { d[0][k] = right ? d[HALVES - 1][k] : d[0][k]; });
        unpack(v, rounded_pack<bf16>(d[0]));
    }
};
static void input_tail_fp8(const LinearBackwardInput *a, const Tensor &product)
{
    if (!wide_access(a->in, BF16, product, a->act ? a->pre : product, a->drop))
        die("this is a mistake in vit.c", "a dx of 8 bits from rows that are not aligned");
    by_halves(a->act, [&](auto halves, int) {
        using From = Sloped<halves>;
        Fp8Cast to = fp8_copies_of(a->dx, a->rows, (long)halves * a->in);
        const int ranges = to.ranges(From::BLOCKS);
        if (a->dbias)
            to.sums = scratch_floats((size_t)ranges * (size_t)to.n);
        cast<__NV_E5M2>(
            to, From{product, a->pre, a->in, a->act, a->tokens, mask_of(a->drop, a->in), cu.state});
        if (a->dbias)
            sum_ranges(Sums{{ptr<float>(a->dbias)}}, 1, to.sums, ranges, to.n);
    });
}

/* ------------------------------------------------------------------------------------------------
 * Pooling */

/* y[b] = mean of tokens first..end-1 of x. A thread takes one pack of columns of one image. Reads
 * x: floor 18 us. */
template <class E, int N> __global__ void pool_forward_kernel(Pool a)
{
    const long b = blockIdx.y, col = my_column(N);
    if (col >= a.C)
        return;
    float sum[N] = {};
#pragma unroll 8
    for (int t = a.first; t < a.end; t++) {
        float v[N];
        load(v, row_of<E>(a.x, b * a.T + t) + col);
        each<N>([&](int k) { sum[k] += v[k]; });
    }
    const float inv = 1 / (float)(a.end - a.first);
    each<N>([&](int k) { sum[k] *= inv; });
    store(row_of<E>(a.y, b) + col, sum);
}

/* dx = dy / (end - first) in the pooled tokens; 0 in the others, or they are left alone. Writes dx:
 * floor 18 us. */
template <class E, int N> __global__ void pool_backward_kernel(Pool a)
{
    const long rows = (long)a.B * a.T, col = my_column(N);
    const long end = range_begin(rows, blockIdx.y + 1, gridDim.y);
    const float inv = 1 / (float)(a.end - a.first);
    if (col >= a.C)
        return;
    for (long r = range_begin(rows, blockIdx.y, gridDim.y); r < end; r++) {
        int b = (int)r / a.T, t = (int)r % a.T;
        bool pooled = t >= a.first && t < a.end;
        if (!pooled && a.beside)
            continue;
        float d[N];
        load(d, row_of<E>(a.y, b) + col);
        each<N>([&](int k) { d[k] = pooled ? d[k] * inv : 0; });
        store(row_of<E>(a.x, r) + col, d);
    }
}
static void cuda_pool_forward(const Pool *a)
{
    by_pack(a->x.type, wide_access(a->C, a->x.type, a->x, a->y), [&](auto e, auto width) {
        int packs = ceil_div(a->C, width), threads = packs < 64 ? ceil_div(packs, 32) * 32 : 64;
        dim3 grid((unsigned)ceil_div(packs, threads), (unsigned)a->B);
        launch(pool_forward_kernel<decltype(e), width>, grid, (unsigned)threads, 0, cu.stream, *a);
    });
}
static void cuda_pool_backward(const Pool *a)
{
    by_pack(a->x.type, wide_access(a->C, a->x.type, a->x, a->y), [&](auto e, auto width) {
        Walk w = walk_of((long)a->B * a->T, a->C, width, RESIDENT_32);
        launch(pool_backward_kernel<decltype(e), width>, w.grid(), (unsigned)w.threads, 0,
               cu.stream, *a);
    });
}

/* ------------------------------------------------------------------------------------------------
 * Loss. A block takes an image and reads its K logits and targets three times, from L1 after the
 * first. B*K numbers are little: a few us. Written so that what is nearly right stays accurate in
 * float: 1 - p of the leading class is the sum of the others' exponentials, not a difference, and
 * logarithms of numbers near 1 are log1p. */

enum { LOSS_THREADS = 256 };

/* The position of the largest target, the first of equals. room: 2 floats per warp */
__device__ inline int block_label(const float *y, int K, float *room)
{
    float best = -INFINITY;
    int at = K;
    auto take = [&](float v, int k) {
        if (v > best || (v == best && k < at))
            best = v, at = k;
    };
    for (int k = (int)threadIdx.x; k < K; k += (int)blockDim.x)
        take(y[k], k);
    for (int d = 16; d; d >>= 1) {
        float v = __shfl_xor_sync(0xffffffffu, best, d);
        int k = __shfl_xor_sync(0xffffffffu, at, d);
        take(v, k);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        room[threadIdx.x / 32] = best;
        room[32 + threadIdx.x / 32] = __int_as_float(at);
    }
    __syncthreads();
    for (int w = 0; w < (int)blockDim.x / 32; w++)
        take(room[w], __float_as_int(room[32 + w]));
    return at < K ? at : 0; /* all of them NaN */
}

/* softmax:  loss = sum_k y_k (lse - z_k),  dz_k = p_k sum(y) - y_k
 * sigmoid:  loss = sum_k max(z,0) - z y + log(1 + e^-|z|),  dz_k = sigmoid(z_k) - y_k */
template <class E, class D> __global__ void loss_kernel(Loss a, const StepState *state)
{
    float *room = dynamic_smem<float>(); /* [64] */
    const int K = a.K, first = (int)threadIdx.x, step = (int)blockDim.x;
    const long b = blockIdx.x;
    const E *z = row_of<E>(a.logits, b);
    const float *y = (const float *)a.targets + b * K;
    D *dz = a.dlogits.p ? row_of<D>(a.dlogits, b) : NULL;
    const float scale = (float)(a.scale * state->loss_scale);
    const int label = block_label(y, K, room);
    const float z_label = to_float(z[label]);
    float loss = 0;
    int above = 0;
    for (int k = first; k < K; k += step) /* written so that NaN counts as above */
        above += k != label && !(to_float(z[k]) < z_label);

    if (a.kind == LOSS_SOFTMAX) {
        float top = -INFINITY, mass = 0, others = 0;
        for (int k = first; k < K; k += step) {
            top = fmaxf(top, to_float(z[k]));
            mass += y[k];
        }
        top = block_max(top, room);
        mass = block_sum(mass, room);
        int tops = 0; /* each of them adds e^0 to the sum, of which one is left out of `others` */
        for (int k = first; k < K; k += step) {
            float v = to_float(z[k]);
            if (v == top)
                tops++;
            else
                others += expf(v - top);
        }
        others = block_sum(others, room) + (float)(block_sum(tops, (int *)room) - 1);
        others += top - top; /* NaN where the largest is infinite */
        const float inv = 1 / (1 + others), log_sum = log1pf(others);
        for (int k = first; k < K; k += step) {
            float v = to_float(z[k]), t = y[k];
            if (t != 0)
                loss += t * ((top - v) + log_sum);
            if (dz)
                dz[k] = from_float<D>(scale * (v == top ? (mass - t) - mass * others * inv
                                                        : mass * expf(v - top) * inv - t));
        }
    } else {
        for (int k = first; k < K; k += step) {
            float v = to_float(z[k]), t = y[k], e = expf(-fabsf(v)), tail = e / (1 + e);
            loss += (v > 0 ? v - v * t : -v * t) + log1pf(e);
            if (dz)
                dz[k] = from_float<D>(scale * (v >= 0 ? (1 - t) - tail : tail - t));
        }
    }
    loss = block_sum(loss, room);
    above = block_sum(above, (int *)room);
    if (threadIdx.x == 0) {
        float *stats = (float *)a.stats + 3 * ((long)state->sample0 + b);
        bool finite = isfinite(z_label);
        stats[0] = loss;
        stats[1] = finite && above < 1 ? 1 : 0;
        stats[2] = finite && above < 5 ? 1 : 0;
    }
}
static void cuda_loss(const Loss *a)
{
    by_type(a->logits.type, [&](auto e) {
        by_type(a->dlogits.p ? a->dlogits.type : a->logits.type, [&](auto d) {
            launch(loss_kernel<decltype(e), decltype(d)>, (unsigned)a->B, LOSS_THREADS,
                   64 * sizeof(float), cu.stream, *a, cu.state);
        });
    });
}

/* ------------------------------------------------------------------------------------------------
 * Counting, converting, adding */

/* state->large += elements of x [rows, cols] beyond an eighth of fp16's largest number, or NaN */
template <class E, int N>
__global__ void count_large_kernel(StepState *state, Tensor x, long rows, long cols)
{
    const long col = my_column(N), end = range_begin(rows, blockIdx.y + 1, gridDim.y);
    int large = 0;
    if (col < cols) {
#pragma unroll 4
        for (long r = range_begin(rows, blockIdx.y, gridDim.y); r < end; r++) {
            float v[N];
            load(v, row_of<E>(x, r) + col);
            each<N>([&](int k) { large += !(fabsf(v[k]) <= 0.125f * 65504); });
        }
    }
    large = block_sum(large, dynamic_smem<int>());
    if (threadIdx.x == 0 && large)
        atomicAdd((unsigned long long *)&state->large, (unsigned long long)large);
    if (threadIdx.x == 0 && blockIdx.x == 0 && blockIdx.y == 0)
        state->counted += (uint64_t)(rows * cols);
}
static void cuda_count_large(Tensor x, int rows, int cols)
{
    by_pack(x.type, wide_access(cols, x.type, x), [&](auto e, auto width) {
        Walk w = walk_of(rows, cols, width, RESIDENT_64);
        launch(count_large_kernel<decltype(e), width>, w.grid(), (unsigned)w.threads,
               32 * sizeof(int), cu.stream, (StepState *)cu.state, x, (long)rows, (long)cols);
    });
}

/* Blocks of 256 threads for a vector of n elements, N to a thread at a time */
static unsigned vector_blocks(long n, int N)
{
    int blocks = ceil_div(n, 256L * N), most = cu.gpu.multiProcessorCount * 8;
    return (unsigned)(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

/* to = from, rounded to nearest even where D is narrower */
template <class D, class S, int N> __global__ void convert_kernel(D *to, const S *from, long n)
{
    const long step = (long)gridDim.x * blockDim.x * N;
    for (long i = my_column(N); i < n; i += step) {
        float v[N];
        take(v, from + i, n - i);
        put(to + i, v, n - i);
    }
}
static void cuda_convert(dev *dst, int dst_type, const dev *src, int src_type, long n)
{
    if (n <= 0)
        return;
    by_type(dst_type, [&](auto d) {
        by_type(src_type, [&](auto s) {
            by_quads(aligned(dst) && aligned(src), [&](auto quad) {
                launch(convert_kernel<decltype(d), decltype(s), quad>, vector_blocks(n, quad), 256,
                       0, cu.stream, ptr<decltype(d)>(dst), ptr<const decltype(s)>(src), n);
            });
        });
    });
}

/* sum += x. Two reads and a write of n floats: for B/16 (86.6 M) 1.04 GB, floor 242 us. */
template <int N> __global__ void add_kernel(float *sum, const float *x, long n)
{
    const long step = (long)gridDim.x * blockDim.x * N;
    for (long i = my_column(N); i < n; i += step) {
        float a[N], b[N];
        take(a, sum + i, n - i);
        take(b, x + i, n - i);
        each<N>([&](int k) { a[k] += b[k]; });
        put(sum + i, a, n - i);
    }
}
static void cuda_add(dev *sum, const dev *x, long n)
{
    if (n <= 0)
        return;
    by_quads(aligned(sum) && aligned(x), [&](auto quad) {
        launch(add_kernel<quad>, vector_blocks(n, quad), 256, 0, cu.stream, ptr<float>(sum),
               ptr<const float>(x), n);
    });
}

/* ------------------------------------------------------------------------------------------------
 * Floats of scratch memory for micro-batches of B images: the most that one op asks for, which is
 *   ranges * n         column sums of a matrix [B*T, n], n up to max(3C, 2F, K, representation)
 *   2 * ranges * F     the two halves of ACT_SWIGLU, in as many ranges as one
 *   4 * ranges * C     the norm's backward pass
 *   2 * blocks * hs    that of norms of heads
 * where the number of ranges depends on whether rows can be read in packs (N = 1, 4 or 8). */
static size_t layers_scratch(const Sizes *s)
{
    const long rows = (long)s->B * s->T, C = s->C;
    const long columns[] = {C, 2 * C, 3 * C, s->F, 2L * s->F, s->K, s->R};
    size_t most = 2 * (size_t)(cu.gpu.multiProcessorCount * HEAD_BLOCKS) * HEAD_MOST;
    for (int N = 1; N <= 8; N = N == 1 ? 4 : 2 * N) {
        for (long n : columns) {
            size_t floats = n > 0 ? (size_t)walk_of(rows, n, N, RESIDENT_64).ranges * (size_t)n : 0;
            most = floats > most ? floats : most;
        }
        size_t halves = 2 * (size_t)walk_of(rows, s->F, N, RESIDENT_96).ranges * (size_t)s->F;
        size_t norm =
            (size_t)SUMS * (size_t)norm_walk(rows, C, N, norm_packs(C, N)).ranges * (size_t)C;
        most = std::max({most, halves, norm});
    }
    return most;
}
