/* ptx.cuh - every PTX instruction that the CUDA backend uses, one small function each.
 *
 * Under CUDA_ON_CPU each has a plain C++ equivalent, so this file is also the place to read what an
 * instruction does; test/test_cuda_on_cpu.cpp checks the equivalents. All need sm_80 or later.
 * Fragments follow the PTX ISA (mma.m16n8k16; g = lane / 4, t = lane % 4); places are (row,
 * column):
 *
 *   A [16,16] by rows      a[0]  (g,   2t), (g,   2t+1)     a[2]  (g,   2t+8), (g,   2t+9)
 *                          a[1]  (g+8, 2t), (g+8, 2t+1)     a[3]  (g+8, 2t+8), (g+8, 2t+9)
 *   B [16,8] by columns    b[0]  (2t, g), (2t+1, g)         b[1]  (2t+8, g), (2t+9, g)
 *   D [16,8]               d[0]  (g, 2t)   d[1] (g, 2t+1)   d[2]  (g+8, 2t)  d[3] (g+8, 2t+1)
 *
 * Two 16-bit numbers share a register, the one with the lower index in the lower half.
 */
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>
#include <time.h>

#ifdef CUDA_ON_CPU

namespace ptx_cpu
{

inline float widen(uint16_t bits, __nv_bfloat16)
{
    return standin::bf16_float(bits);
}
inline float widen(uint16_t bits, __half)
{
    return standin::half_float(bits);
}

/* A warp's registers, by lane, before and after one instruction. */
struct Mma {
    float *d;
    const uint32_t *a, *b;
};
template <class T> STANDIN_NO_TSAN void mma(void *const *warp, unsigned)
{
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const Mma *m = static_cast<const Mma *>(warp[lane]);
        int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++)
            for (int half = 0; half < 2; half++)
                a[g + i % 2 * 8][t * 2 + i / 2 * 8 + half] =
                    widen(uint16_t(m->a[i] >> 16 * half), T());
        for (int i = 0; i < 2; i++)
            for (int half = 0; half < 2; half++)
                b[t * 2 + i * 8 + half][g] = widen(uint16_t(m->b[i] >> 16 * half), T());
    }
    float d[16][8] = {};
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++)
                d[i][j] += a[i][k] * b[k][j];
    for (int lane = 0; lane < 32; lane++) {
        float *to = static_cast<const Mma *>(warp[lane])->d;
        int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++)
            to[i] += d[g + i / 2 * 8][t * 2 + i % 2];
    }
}

/* Lane 8i+j brings row j of matrix i; `to` receives one register of each matrix. */
struct Ldmatrix {
    uint32_t row[4], to[4];
};
template <int N, bool trans> STANDIN_NO_TSAN void ldmatrix(void *const *warp, unsigned)
{
    for (int lane = 0; lane < 32; lane++) {
        Ldmatrix *m = static_cast<Ldmatrix *>(warp[lane]);
        int g = lane / 4, t = lane % 4;
        for (int i = 0; i < N; i++) {
            if (!trans) {
                m->to[i] = static_cast<Ldmatrix *>(warp[8 * i + g])->row[t];
                continue;
            }
            uint32_t low = static_cast<Ldmatrix *>(warp[8 * i + 2 * t])->row[g / 2];
            uint32_t high = static_cast<Ldmatrix *>(warp[8 * i + 2 * t + 1])->row[g / 2];
            m->to[i] = (low >> 16 * (g % 2) & 0xFFFFu) | (high >> 16 * (g % 2)) << 16;
        }
    }
}
template <int N, bool trans> void load(uint32_t *r, const void *row, int line)
{
    Ldmatrix m;
    if (int(standin::lane()) < 8 * N) { /* only these lanes' addresses count */
        const uint4 v = *static_cast<const uint4 *>(row);
        m.row[0] = v.x, m.row[1] = v.y, m.row[2] = v.z, m.row[3] = v.w;
    }
    standin::meet_warp(0xFFFFFFFFu,
                       N == 4   ? "ldmatrix x4"
                       : N == 2 ? "ldmatrix x2"
                                : "ldmatrix x1",
                       line, &m, ldmatrix<N, trans>, false);
    for (int i = 0; i < N; i++)
        r[i] = m.to[i];
}

} // namespace ptx_cpu

#define PTX_LINE , int line = __builtin_LINE() /* tells meeting points apart; never given */
#else
#define PTX_LINE
#endif

/* An address in shared memory, as PTX wants it. */
#ifndef CUDA_ON_CPU
__device__ __forceinline__ uint32_t ptx_shared(const void *p)
{
    return uint32_t(__cvta_generic_to_shared(p));
}
#endif

/* d += A B for one warp; T is __nv_bfloat16 or __half. */
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2] PTX_LINE);
/* clang-format off */
#ifdef CUDA_ON_CPU
template <class T>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line)
{
    ptx_cpu::Mma m = {d, a, b};
    standin::meet_warp(0xFFFFFFFFu, "mma", line, &m, ptx_cpu::mma<T>, false);
}
#else
#define PTX_MMA(T, type)                                                                          \
    template <>                                                                                   \
    __device__ __forceinline__ void mma_m16n8k16<T>(float (&d)[4], const uint32_t (&a)[4],        \
                                                    const uint32_t (&b)[2])                       \
    {                                                                                             \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "               \
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                      \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                             \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));         \
    }
PTX_MMA(__nv_bfloat16, "bf16")
PTX_MMA(__half, "f16")
#undef PTX_MMA
#endif

/* Load N = 1, 2, 4 matrices of 8x8 16-bit numbers from shared memory. Lane 8i+j gives the address
 * of row j of matrix i (16 bytes, aligned to 16); register i of lane 4r+c receives elements
 * (r, 2c..2c+1) of matrix i, or with _trans elements (2c..2c+1, r). */
#ifdef CUDA_ON_CPU
#define PTX_LDMATRIX(N, suffix, trans, modifier)                                                  \
    inline void ldmatrix_x##N##suffix(uint32_t (&r)[N], const void *row PTX_LINE)                 \
    {                                                                                             \
        ptx_cpu::load<N, trans>(r, row, line);                                                    \
    }
PTX_LDMATRIX(1, , false, )
PTX_LDMATRIX(1, _trans, true, )
PTX_LDMATRIX(2, , false, )
PTX_LDMATRIX(2, _trans, true, )
PTX_LDMATRIX(4, , false, )
PTX_LDMATRIX(4, _trans, true, )
#else
#define PTX_LDMATRIX(suffix, modifier)                                                            \
    __device__ __forceinline__ void ldmatrix_x1##suffix(uint32_t (&r)[1], const void *row)        \
    {                                                                                             \
        asm volatile("ldmatrix.sync.aligned.m8n8.x1" modifier ".shared.b16 {%0}, [%1];"           \
                     : "=r"(r[0]) : "r"(ptx_shared(row)) : "memory");                             \
    }                                                                                             \
    __device__ __forceinline__ void ldmatrix_x2##suffix(uint32_t (&r)[2], const void *row)        \
    {                                                                                             \
        asm volatile("ldmatrix.sync.aligned.m8n8.x2" modifier ".shared.b16 {%0,%1}, [%2];"        \
                     : "=r"(r[0]), "=r"(r[1]) : "r"(ptx_shared(row)) : "memory");                 \
    }                                                                                             \
    __device__ __forceinline__ void ldmatrix_x4##suffix(uint32_t (&r)[4], const void *row)        \
    {                                                                                             \
        asm volatile("ldmatrix.sync.aligned.m8n8.x4" modifier ".shared.b16 {%0,%1,%2,%3}, [%4];"  \
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                             \
                     : "r"(ptx_shared(row)) : "memory");                                          \
    }
PTX_LDMATRIX(, "")
PTX_LDMATRIX(_trans, ".trans")
#endif
#undef PTX_LDMATRIX
#undef PTX_LINE
/* clang-format on */

/* Start a copy from global to shared memory, both aligned to its size; bytes after from_bytes are
 * set to zero (from_bytes = 0 reads nothing). It has arrived only after cp_async_wait by this
 * thread, and for other threads after a barrier that follows. */
template <int bytes>
__device__ __forceinline__ void cp_async(void *to, const void *from, int from_bytes = bytes)
{
    static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async has no such size");
#ifdef CUDA_ON_CPU
    standin::copy_issue(to, from, bytes, unsigned(from_bytes));
#else
    if constexpr (bytes == 16) /* only 16 bytes may go past L1 */
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(ptx_shared(to)),
                     "l"(__cvta_generic_to_global(from)), "r"(from_bytes)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(ptx_shared(to)),
                     "l"(__cvta_generic_to_global(from)), "n"(bytes), "r"(from_bytes)
                     : "memory");
#endif
}
/* Close the group of the copies issued since the last commit. */
__device__ __forceinline__ void cp_async_commit()
{
#ifdef CUDA_ON_CPU
    standin::copy_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/* Wait until at most the N newest groups of this thread are under way. */
template <int N> __device__ __forceinline__ void cp_async_wait()
{
#ifdef CUDA_ON_CPU
    standin::copy_wait(N, false);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}
/* Wait for all copies of this thread, committed or not. */
__device__ __forceinline__ void cp_async_wait_all()
{
#ifdef CUDA_ON_CPU
    standin::copy_wait(0, true);
#else
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

/* Two floats rounded to nearest even, `low` in the lower half. T is __nv_bfloat16 or __half. */
template <class T> __device__ __forceinline__ uint32_t pack(float low, float high);
template <> __device__ __forceinline__ uint32_t pack<__nv_bfloat16>(float low, float high)
{
#ifdef CUDA_ON_CPU
    return standin::bf16_bits(low) | uint32_t(standin::bf16_bits(high)) << 16;
#else
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
#endif
}
template <> __device__ __forceinline__ uint32_t pack<__half>(float low, float high)
{
#ifdef CUDA_ON_CPU
    return standin::half_bits(low) | uint32_t(standin::half_bits(high)) << 16;
#else
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
#endif
}

/* x, hidden from the compiler: what is made of it is made here each time, and not before a loop to
 * be kept in registers across it. */
__device__ __forceinline__ int anew(int x)
{
#ifndef CUDA_ON_CPU
    asm volatile("" : "+r"(x));
#endif
    return x;
}

/* 1/x: within one ulp, subnormals count as zero. One instruction; __fdividef scales as well. */
__device__ __forceinline__ float rcp_approx(float x)
{
#ifdef CUDA_ON_CPU
    return 1 / x;
#else
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

/* 2^x: relative error 2^-22, subnormal results become zero. */
__device__ __forceinline__ float ex2_approx(float x)
{
#ifdef CUDA_ON_CPU
    float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

/* The smaller one, or NaN where either is: fminf would take the other. */
__device__ __forceinline__ float min_nan(float x, float y)
{
#ifdef CUDA_ON_CPU
    return x < y || x != x ? x : y;
#else
    float z;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
    return z;
#endif
}

/* The larger ones of two pairs of 16-bit numbers without a sign: one instruction from sm_90 on */
__device__ __forceinline__ uint32_t max_halves(uint32_t x, uint32_t y)
{
#ifdef CUDA_ON_CPU
    return max(x & 0xFFFFu, y & 0xFFFFu) | max(x >> 16, y >> 16) << 16;
#else
    return __vmaxu2(x, y);
#endif
}

/* The device's clock, in nanoseconds since some moment; it may tick once in a microsecond. */
__device__ __forceinline__ uint64_t clock_ns()
{
#ifdef CUDA_ON_CPU
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
#else
    uint64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
#endif
}
