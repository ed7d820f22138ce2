/* sm90.cuh - Hopper's asynchronous instructions: tensor copies (TMA), barriers in shared memory
 * (mbarrier), products of warp groups (wgmma), named barriers, clusters of blocks, dependent
 * launches.
 *
 * One small function for each PTX instruction, as in cuda/ptx.cuh. On the CPU each calls the
 * stand-in (test/cuda_on_cpu/hopper.h), which is adversarial: what is asynchronous happens as late
 * as it may. Where the code is compiled for another GPU than sm_90a nothing is left of them, so a
 * kernel keeps its whole body inside `if constexpr (HAS_SM90)`.
 *
 * Read: mbarrier; copies; wgmma and its operands; warps and blocks; on the host, tensor_map().
 */
#pragma once

#include "cuda/ptx.cuh"

#include <cuda.h>
#include <type_traits>

/* SM90(asm statement, call of the stand-in) */
#if defined(CUDA_ON_CPU)
#include <hopper.h>
constexpr bool HAS_SM90 = true;
#define SM90(ptx, call) call
#define SM90_LINE       , int line = __builtin_LINE() /* for reports; never given */
#define SM90_LINE1      int line = __builtin_LINE()
#else
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool HAS_SM90 = true;
#define SM90(ptx, call) ptx
#else
constexpr bool HAS_SM90 = false;
#define SM90(ptx, call)
#endif
#define SM90_LINE
#define SM90_LINE1
#endif

/* ------------------------------------------------------------------------------------------------
 * mbarrier: 8 bytes of shared memory that count the arrivals and the bytes of one phase after
 * another. A phase is complete when `count` threads have arrived and every byte that was announced
 * has been written. Phases alternate between parity 0 (the first) and 1; a wait for the parity of
 * the phase before the current one returns at once, so that a producer's first wait is for
 * parity 1. */

/* One thread, before anybody uses it; then mbarrier_init_fence() and a barrier of the block. */
__device__ __forceinline__ void mbarrier_init(uint64_t *bar, uint32_t count SM90_LINE)
{
    SM90(asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(ptx_shared(bar)), "r"(count)
                      : "memory"),
         standin::mbarrier_init(bar, count, line));
}
/* Copies may use what this thread has initialised. */
__device__ __forceinline__ void mbarrier_init_fence()
{
    SM90(asm volatile("fence.mbarrier_init.release.cluster;" ::
                          : "memory"),
         standin::mbarrier_init_fence());
}
/* Arrives; what this thread did before is seen by whoever waits for the phase. */
__device__ __forceinline__ void mbarrier_arrive(uint64_t *bar SM90_LINE)
{
    SM90(asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(ptx_shared(bar))
                      : "memory"),
         standin::mbarrier_arrive(bar, 0, line));
}
/* Arrives at the one in the same place of block `rank` of the cluster, which may be this block. It
 * says that products and copies which were waited for have read their operands. For what this
 * thread has written it would have to be a release of the cluster, which waits for all its writes.
 */
__device__ __forceinline__ void mbarrier_arrive_at(uint64_t *bar, uint32_t rank SM90_LINE)
{
    SM90(asm volatile("{\n"
                      ".reg .b32 there;\n"
                      "mapa.shared::cluster.u32 there, %0, %1;\n"
                      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                      "}" ::"r"(ptx_shared(bar)),
                      "r"(rank)
                      : "memory"),
         standin::mbarrier_arrive_at(bar, rank, line));
}
/* Announces `bytes` more that copies will write, and arrives. */
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t *bar, uint32_t bytes SM90_LINE)
{
    SM90(asm volatile(
             "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(ptx_shared(bar)),
             "r"(bytes)
             : "memory"),
         standin::mbarrier_arrive(bar, bytes, line));
}
/* Waits until the phase with this parity is complete. */
__device__ __forceinline__ void mbarrier_wait(uint64_t *bar, uint32_t parity SM90_LINE)
{
    SM90(asm volatile("{\n"
                      ".reg .pred done;\n"
                      "again:\n"
                      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                      "@!done bra again;\n"
                      "}" ::"r"(ptx_shared(bar)),
                      "r"(parity)
                      : "memory"),
         standin::mbarrier_wait(bar, parity, line));
}

/* What this thread has written to shared memory is seen by copies and products that are issued
 * after it (by others: after a barrier that follows). Ordinary writes are not, without it. */
__device__ __forceinline__ void fence_proxy_async()
{
    SM90(asm volatile("fence.proxy.async.shared::cta;" ::: "memory"), standin::fence_proxy_async());
}

/* ------------------------------------------------------------------------------------------------
 * Tensor copies (TMA), issued by one thread. A map (tensor_map() below) says what the tensor in
 * global memory is and how large a box is copied; coordinates are those of the box's first element,
 * the fastest dimension first, and may lie outside: what is outside is read as zero and not
 * written. The map is a kernel's parameter, `const __grid_constant__ CUtensorMap`.
 *
 * In shared memory the box lies densely, its address aligned to 128 bytes. With a swizzle of W =
 * 32, 64 or 128 bytes its rows are W bytes long and 16-byte chunks change places: bits 4.. of the
 * address are xored with bits 7.. of it, 1, 2 or 3 of them. A box then begins at a multiple of 8 W
 * bytes. */

enum Swizzle { SWIZZLE_NONE, SWIZZLE_32, SWIZZLE_64, SWIZZLE_128 };

/* Fetches a map that is going to be used. */
__device__ __forceinline__ void tma_prefetch(const CUtensorMap *map)
{
    SM90(asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"), (void)map);
}
/* Starts a copy of one box to shared memory; its bytes, those outside too, count for `bar`. */
__device__ __forceinline__ void tma_load_2d(void *to, const CUtensorMap *map, uint64_t *bar, int x,
                                            int y SM90_LINE)
{
    SM90(asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                      "[%0], [%1, {%3, %4}], [%2];" ::"r"(ptx_shared(to)),
                      "l"(map), "r"(ptx_shared(bar)), "r"(x), "r"(y)
                      : "memory"),
         standin::tma_load(to, map, bar, {2, {x, y}}, line));
}
__device__ __forceinline__ void tma_load_3d(void *to, const CUtensorMap *map, uint64_t *bar, int x,
                                            int y, int z SM90_LINE)
{
    SM90(asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(ptx_shared(to)),
                      "l"(map), "r"(ptx_shared(bar)), "r"(x), "r"(y), "r"(z)
                      : "memory"),
         standin::tma_load(to, map, bar, {3, {x, y, z}}, line));
}
__device__ __forceinline__ void tma_load_4d(void *to, const CUtensorMap *map, uint64_t *bar, int x,
                                            int y, int z, int w SM90_LINE)
{
    SM90(asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(ptx_shared(to)),
                      "l"(map), "r"(ptx_shared(bar)), "r"(x), "r"(y), "r"(z), "r"(w)
                      : "memory"),
         standin::tma_load(to, map, bar, {4, {x, y, z, w}}, line));
}
/* The same to several blocks of the cluster, bits of `ranks`: to the same place in each, where the
 * bytes count for the barrier in the same place. */
__device__ __forceinline__ void tma_multicast_2d(void *to, const CUtensorMap *map, uint64_t *bar,
                                                 uint32_t ranks, int x, int y SM90_LINE)
{
    SM90(asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                      ".multicast::cluster [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(ptx_shared(to)),
                      "l"(map), "r"(ptx_shared(bar)), "h"((uint16_t)ranks), "r"(x), "r"(y)
                      : "memory"),
         standin::tma_multicast(to, map, bar, ranks, {2, {x, y}}, line));
}
/* Starts a copy of one box to global memory. It reads shared memory until tma_store_read_wait() by
 * the same thread; the kernel's end, or tma_store_wait(), is what completes it. */
__device__ __forceinline__ void tma_store_2d(const CUtensorMap *map, const void *from, int x,
                                             int y SM90_LINE)
{
    SM90(asm volatile(
             "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%1, {%2, %3}], [%0];" ::"r"(
                 ptx_shared(from)),
             "l"(map), "r"(x), "r"(y)
             : "memory"),
         standin::tma_store(map, from, {2, {x, y}}, line));
}
__device__ __forceinline__ void tma_store_3d(const CUtensorMap *map, const void *from, int x, int y,
                                             int z SM90_LINE)
{
    SM90(asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%1, {%2, %3, %4}], "
                      "[%0];" ::"r"(ptx_shared(from)),
                      "l"(map), "r"(x), "r"(y), "r"(z)
                      : "memory"),
         standin::tma_store(map, from, {3, {x, y, z}}, line));
}
__device__ __forceinline__ void tma_store_4d(const CUtensorMap *map, const void *from, int x, int y,
                                             int z, int w SM90_LINE)
{
    SM90(asm volatile(
             "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%1, {%2, %3, %4, %5}], "
             "[%0];" ::"r"(ptx_shared(from)),
             "l"(map), "r"(x), "r"(y), "r"(z), "r"(w)
             : "memory"),
         standin::tma_store(map, from, {4, {x, y, z, w}}, line));
}
/* Closes the group of the stores issued since the last commit. */
__device__ __forceinline__ void tma_store_commit()
{
    SM90(asm volatile("cp.async.bulk.commit_group;" ::: "memory"), standin::tma_store_commit());
}
/* At most the N newest groups of this thread still read shared memory. */
template <int N> __device__ __forceinline__ void tma_store_read_wait()
{
    SM90(asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N)
                      : "memory"),
         standin::tma_store_wait(N, true));
}
/* At most the N newest groups of this thread are not yet in global memory. */
template <int N> __device__ __forceinline__ void tma_store_wait()
{
    SM90(asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N)
                      : "memory"),
         standin::tma_store_wait(N, false));
}

/* ------------------------------------------------------------------------------------------------
 * wgmma: D [64,N] += A [64,K] B [K,N] by a warp group, four warps that begin with a multiple of
 * four; K is 16 for 16-bit types, 32 for FP8. PTX ISA, "Asynchronous Warpgroup Level Matrix
 * Instructions".
 *
 * Warp w of the group holds rows 16w to 16w+15. With g = lane / 4, t = lane % 4 its d[4j + i] is
 * (16w + g + i / 2 * 8, 8j + 2t + i % 2), and A from registers is, two 16-bit or four 8-bit numbers
 * in a register, with u = 2 or 4 of them:
 *
 *     a[0]  row g,   columns ut ...       a[2]  row g,   columns 4u + ut ...
 *     a[1]  row g+8, columns ut ...       a[3]  row g+8, columns 4u + ut ...
 *
 * A and B in shared memory are named by descriptors. K-major: k runs fastest in memory, as in rows
 * of A and in columns of B. MN-major (16-bit types only): m or n runs fastest. A matrix is made of
 * atoms, 8 rows of W bytes each, as a tensor copy with that swizzle leaves them; without a swizzle
 * W is 16.
 *
 *   - K-major: `stride` bytes from 8 rows (of m or n) to the next 8. `leading` counts only without
 *     a swizzle: bytes from 16 bytes of k to the next 16. With one, a product further along k is 32
 *     bytes further within the row.
 *   - MN-major: a row is W/2 of m or n at one k. `stride` bytes from 8 k to the next 8, `leading`
 *     bytes from W/2 of m or n to the next. Without a swizzle these two change places.
 */

__device__ __forceinline__ uint64_t wgmma_operand(const void *p, Swizzle swizzle, uint32_t stride,
                                                  uint32_t leading = 16)
{
#ifdef CUDA_ON_CPU
    const uint32_t address = standin::shared_address(p);
#elif defined(__CUDA_ARCH__)
    const uint32_t address = ptx_shared(p);
#else
    const uint32_t address = 0;
#endif
    return uint64_t(address >> 4 & 0x3FFF) | uint64_t(leading >> 4 & 0x3FFF) << 16 |
           uint64_t(stride >> 4 & 0x3FFF) << 32 | uint64_t((4 - swizzle) & 3) << 62;
}
/* The same matrix `bytes` (a multiple of 16) further: the next step along k. */
__device__ __forceinline__ uint64_t wgmma_advance(uint64_t operand, uint32_t bytes)
{
    return operand + (bytes >> 4);
}

/* The compiler must not move what is done with these registers to the other side. */
template <int R> __device__ __forceinline__ void wgmma_pin([[maybe_unused]] float (&d)[R])
{
#ifndef CUDA_ON_CPU
#pragma unroll
    for (int i = 0; i < R; i++)
        asm volatile("" : "+f"(d[i])::"memory");
#endif
}
/* Before the first product, and again where ordinary code has touched since what products use of
 * registers, A too: name all accumulators. (Products of one shape may follow each other on one d
 * without. Where ptxas says that it has added one, C7519, this stands too early.) */
template <int... R> __device__ __forceinline__ void wgmma_fence(float (&...d)[R])
{
    (wgmma_pin(d), ...);
    SM90(asm volatile("wgmma.fence.sync.aligned;" ::: "memory"), standin::wgmma_fence());
}
/* Closes the group of the products issued since the last commit. */
__device__ __forceinline__ void wgmma_commit()
{
    SM90(asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"), standin::wgmma_commit());
}
/* At most the N newest groups are under way. Of the others results may be read, which those of d
 * are, and operands in shared memory overwritten. */
template <int N, int... R> __device__ __forceinline__ void wgmma_wait(float (&...d)[R])
{
    SM90(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N)
                      : "memory"),
         standin::wgmma_wait(N));
    (wgmma_pin(d), ...);
}

struct __nv_fp8_e4m3; /* of cuda_fp8.h, for whoever needs more than their names */
struct __nv_fp8_e5m2;
template <class T>
constexpr bool sm90_is_wide = std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* clang-format off */
/* SM90_R64(f): f(i) for the registers of N = 64 but the first. SM90_SIZES(f, ...): f(N, six numbers
 * of operands behind these registers, ...) for every N. */
#define SM90_R8(R) R(1) R(2) R(3)
#define SM90_R16(R) SM90_R8(R) R(4) R(5) R(6) R(7)
#define SM90_R24(R) SM90_R16(R) R(8) R(9) R(10) R(11)
#define SM90_R32(R) SM90_R24(R) R(12) R(13) R(14) R(15)
#define SM90_R40(R) SM90_R32(R) R(16) R(17) R(18) R(19)
#define SM90_R48(R) SM90_R40(R) R(20) R(21) R(22) R(23)
#define SM90_R56(R) SM90_R48(R) R(24) R(25) R(26) R(27)
#define SM90_R64(R) SM90_R56(R) R(28) R(29) R(30) R(31)
#define SM90_R72(R) SM90_R64(R) R(32) R(33) R(34) R(35)
#define SM90_R80(R) SM90_R72(R) R(36) R(37) R(38) R(39)
#define SM90_R88(R) SM90_R80(R) R(40) R(41) R(42) R(43)
#define SM90_R96(R) SM90_R88(R) R(44) R(45) R(46) R(47)
#define SM90_R104(R) SM90_R96(R) R(48) R(49) R(50) R(51)
#define SM90_R112(R) SM90_R104(R) R(52) R(53) R(54) R(55)
#define SM90_R120(R) SM90_R112(R) R(56) R(57) R(58) R(59)
#define SM90_R128(R) SM90_R120(R) R(60) R(61) R(62) R(63)
#define SM90_R136(R) SM90_R128(R) R(64) R(65) R(66) R(67)
#define SM90_R144(R) SM90_R136(R) R(68) R(69) R(70) R(71)
#define SM90_R152(R) SM90_R144(R) R(72) R(73) R(74) R(75)
#define SM90_R160(R) SM90_R152(R) R(76) R(77) R(78) R(79)
#define SM90_R168(R) SM90_R160(R) R(80) R(81) R(82) R(83)
#define SM90_R176(R) SM90_R168(R) R(84) R(85) R(86) R(87)
#define SM90_R184(R) SM90_R176(R) R(88) R(89) R(90) R(91)
#define SM90_R192(R) SM90_R184(R) R(92) R(93) R(94) R(95)
#define SM90_R200(R) SM90_R192(R) R(96) R(97) R(98) R(99)
#define SM90_R208(R) SM90_R200(R) R(100) R(101) R(102) R(103)
#define SM90_R216(R) SM90_R208(R) R(104) R(105) R(106) R(107)
#define SM90_R224(R) SM90_R216(R) R(108) R(109) R(110) R(111)
#define SM90_R232(R) SM90_R224(R) R(112) R(113) R(114) R(115)
#define SM90_R240(R) SM90_R232(R) R(116) R(117) R(118) R(119)
#define SM90_R248(R) SM90_R240(R) R(120) R(121) R(122) R(123)
#define SM90_R256(R) SM90_R248(R) R(124) R(125) R(126) R(127)
#define SM90_SIZES(f, ...) \
    f(8, 4, 5, 6, 7, 8, 9, __VA_ARGS__) \
    f(16, 8, 9, 10, 11, 12, 13, __VA_ARGS__) \
    f(24, 12, 13, 14, 15, 16, 17, __VA_ARGS__) \
    f(32, 16, 17, 18, 19, 20, 21, __VA_ARGS__) \
    f(40, 20, 21, 22, 23, 24, 25, __VA_ARGS__) \
    f(48, 24, 25, 26, 27, 28, 29, __VA_ARGS__) \
    f(56, 28, 29, 30, 31, 32, 33, __VA_ARGS__) \
    f(64, 32, 33, 34, 35, 36, 37, __VA_ARGS__) \
    f(72, 36, 37, 38, 39, 40, 41, __VA_ARGS__) \
    f(80, 40, 41, 42, 43, 44, 45, __VA_ARGS__) \
    f(88, 44, 45, 46, 47, 48, 49, __VA_ARGS__) \
    f(96, 48, 49, 50, 51, 52, 53, __VA_ARGS__) \
    f(104, 52, 53, 54, 55, 56, 57, __VA_ARGS__) \
    f(112, 56, 57, 58, 59, 60, 61, __VA_ARGS__) \
    f(120, 60, 61, 62, 63, 64, 65, __VA_ARGS__) \
    f(128, 64, 65, 66, 67, 68, 69, __VA_ARGS__) \
    f(136, 68, 69, 70, 71, 72, 73, __VA_ARGS__) \
    f(144, 72, 73, 74, 75, 76, 77, __VA_ARGS__) \
    f(152, 76, 77, 78, 79, 80, 81, __VA_ARGS__) \
    f(160, 80, 81, 82, 83, 84, 85, __VA_ARGS__) \
    f(168, 84, 85, 86, 87, 88, 89, __VA_ARGS__) \
    f(176, 88, 89, 90, 91, 92, 93, __VA_ARGS__) \
    f(184, 92, 93, 94, 95, 96, 97, __VA_ARGS__) \
    f(192, 96, 97, 98, 99, 100, 101, __VA_ARGS__) \
    f(200, 100, 101, 102, 103, 104, 105, __VA_ARGS__) \
    f(208, 104, 105, 106, 107, 108, 109, __VA_ARGS__) \
    f(216, 108, 109, 110, 111, 112, 113, __VA_ARGS__) \
    f(224, 112, 113, 114, 115, 116, 117, __VA_ARGS__) \
    f(232, 116, 117, 118, 119, 120, 121, __VA_ARGS__) \
    f(240, 120, 121, 122, 123, 124, 125, __VA_ARGS__) \
    f(248, 124, 125, 126, 127, 128, 129, __VA_ARGS__) \
    f(256, 128, 129, 130, 131, 132, 133, __VA_ARGS__)
/* clang-format on */
#define SM90_NAME(i) ", %" #i
#define SM90_D(i)    , "+f"(d[i])
#define SM90_PTX(N, type, scale)                         \
    "{\n.reg .pred p;\nsetp.ne.b32 p, %" #scale ", 0;\n" \
    "wgmma.mma_async.sync.aligned.m64n" #N type " {%0" SM90_R##N(SM90_NAME) "}, "

#define SM90_SS(N, scale, b, a, a1, a2, a3, type, trans_ab, trans_b)                      \
    if constexpr (R == N / 2)                                                             \
        asm volatile(SM90_PTX(N, type, scale) "%" #a ", %" #b ", p, 1, 1" trans_ab ";\n}" \
                     : "+f"(d[0])SM90_R##N(SM90_D)                                        \
                     : "r"(int(accumulate)), "l"(b_matrix), "l"(a_matrix));
#define SM90_RS(N, scale, b, a, a1, a2, a3, type, trans_ab, trans_b)                          \
    if constexpr (R == N / 2)                                                                 \
        asm volatile(SM90_PTX(N, type, scale) "{%" #a ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b \
                                              ", p, 1, 1" trans_b ";\n}"                      \
                     : "+f"(d[0])SM90_R##N(SM90_D)                                            \
                     : "r"(int(accumulate)), "l"(b_matrix), "r"(rows[0]), "r"(rows[1]),       \
                       "r"(rows[2]), "r"(rows[3]));

template <class A, class B, bool mn_a, bool mn_b> struct Sm90Product; /* no other combination */
#define SM90_PRODUCT(A, B, mn_a, mn_b, ...)                                                   \
    template <> struct Sm90Product<A, B, mn_a, mn_b> {                                        \
        template <int R>                                                                      \
        static __device__ __forceinline__ void from(float (&d)[R], uint64_t a_matrix,         \
                                                    uint64_t b_matrix, bool accumulate)       \
        {                                                                                     \
            SM90_SIZES(SM90_SS, __VA_ARGS__)                                                  \
        }                                                                                     \
        template <int R>                                                                      \
        static __device__ __forceinline__ void from(float (&d)[R], const uint32_t (&rows)[4], \
                                                    uint64_t b_matrix, bool accumulate)       \
        {                                                                                     \
            static_assert(!mn_a, "A in registers has no major dimension");                    \
            SM90_SIZES(SM90_RS, __VA_ARGS__)                                                  \
        }                                                                                     \
    };
#define SM90_WIDE(T, type)                                  \
    SM90_PRODUCT(T, T, false, false, type, ", 0, 0", ", 0") \
    SM90_PRODUCT(T, T, false, true, type, ", 0, 1", ", 1")  \
    SM90_PRODUCT(T, T, true, false, type, ", 1, 0", ", 0")  \
    SM90_PRODUCT(T, T, true, true, type, ", 1, 1", ", 1")
SM90_WIDE(__nv_bfloat16, "k16.f32.bf16.bf16")
SM90_WIDE(__half, "k16.f32.f16.f16")
SM90_PRODUCT(__nv_fp8_e4m3, __nv_fp8_e4m3, false, false, "k32.f32.e4m3.e4m3", "", "")
SM90_PRODUCT(__nv_fp8_e4m3, __nv_fp8_e5m2, false, false, "k32.f32.e4m3.e5m2", "", "")
SM90_PRODUCT(__nv_fp8_e5m2, __nv_fp8_e4m3, false, false, "k32.f32.e5m2.e4m3", "", "")
SM90_PRODUCT(__nv_fp8_e5m2, __nv_fp8_e5m2, false, false, "k32.f32.e5m2.e5m2", "", "")
#undef SM90_WIDE
#undef SM90_PRODUCT
#undef SM90_RS
#undef SM90_SS
#undef SM90_PTX
#undef SM90_D
#undef SM90_NAME
#endif

/* Starts d = A B, with `accumulate` d += A B, for N = 2 R columns; A is a descriptor or in
 * registers. A and B are __nv_bfloat16, __half (both the same) or any two FP8 types. mn_a, mn_b:
 * MN-major. */
template <class A, class B, bool mn_a = false, bool mn_b = false, int R, class From>
__device__ __forceinline__ void wgmma(float (&d)[R], const From &a, uint64_t b,
                                      bool accumulate SM90_LINE)
{
    static_assert(R % 4 == 0 && R >= 4 && R <= 128, "N is a multiple of 8 up to 256");
    static_assert(sm90_is_wide<A> ? std::is_same_v<A, B> : !sm90_is_wide<B> && !mn_a && !mn_b,
                  "two 16-bit numbers of one type, or FP8, which is K-major");
    SM90((Sm90Product<A, B, mn_a, mn_b>::from(d, a, b, accumulate)),
         (standin::wgmma<A, B>(d, 2 * R, a, b, mn_a, mn_b, accumulate, line)));
}

/* ------------------------------------------------------------------------------------------------
 * Warps and blocks. */

/* True in one lane of the warp, all of which call it. */
__device__ __forceinline__ bool elect_one(SM90_LINE1)
{
    uint32_t elected = 0;
    SM90(asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xFFFFFFFF;\nselp.u32 %0, 1, 0, p;\n}"
                      : "=r"(elected)),
         elected = standin::elect_one(line));
    return elected;
}
/* A cluster's blocks run at the same time on neighbouring multiprocessors; launch_cluster()
 * (cuda/launch.cuh) says how many there are, elsewhere a block is alone in its own. */
__device__ __forceinline__ uint32_t cluster_rank()
{
    uint32_t rank = 0;
    SM90(asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)), rank = standin::cluster_rank());
    return rank;
}
__device__ __forceinline__ uint32_t cluster_blocks()
{
    uint32_t blocks = 1;
    SM90(asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks)), blocks = standin::cluster_blocks());
    return blocks;
}
/* A barrier of all threads of the cluster: before mbarriers of another block are used, and before a
 * block ends that others may still use. */
__device__ __forceinline__ void cluster_sync(SM90_LINE1)
{
    SM90(asm volatile("barrier.cluster.arrive.release.aligned;\n"
                      "barrier.cluster.wait.acquire.aligned;" ::
                          : "memory"),
         standin::cluster_sync(line));
}
/* Barrier `id` (1 to 15; 0 is __syncthreads) of `threads`, a multiple of 32, all at once. */
__device__ __forceinline__ void named_barrier_sync(int id, int threads SM90_LINE)
{
    SM90(asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads)
                      : "memory"),
         standin::named_barrier(id, threads, true, line));
}
/* Arrives at it and goes on; `threads` counts those that wait as well. */
__device__ __forceinline__ void named_barrier_arrive(int id, int threads SM90_LINE)
{
    SM90(asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads)
                      : "memory"),
         standin::named_barrier(id, threads, false, line));
}
/* N registers for each thread of this warp group, all of which call it: fewer than before, or more.
 * The kernel's launch bounds say how many it begins with. */
template <int N> __device__ __forceinline__ void registers_release(SM90_LINE1)
{
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg has no such number");
    SM90(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)),
         standin::set_registers(N, false, line));
}
template <int N> __device__ __forceinline__ void registers_take(SM90_LINE1)
{
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg has no such number");
    SM90(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)),
         standin::set_registers(N, true, line));
}
/* Four matrices of 8x8 16-bit numbers to shared memory: the reverse of ldmatrix_x4 (sm_90). */
__device__ __forceinline__ void stmatrix_x4(void *row, const uint32_t (&r)[4] SM90_LINE)
{
    SM90(asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                          ptx_shared(row)),
                      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                      : "memory"),
         standin::stmatrix_x4(row, r, line));
}
/* The same of transposed matrices: the reverse of ldmatrix_x4_trans. */
__device__ __forceinline__ void stmatrix_x4_trans(void *row, const uint32_t (&r)[4] SM90_LINE)
{
    SM90(
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                         ptx_shared(row)),
                     "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                     : "memory"),
        standin::stmatrix_x4_trans(row, r, line));
}
/* A kernel that was launched by launch_dependent() may run while the one before it in the stream
 * still does. It must not read what that one writes, nor write what that one uses, before this. */
__device__ __forceinline__ void dependent_wait(SM90_LINE1)
{
    SM90(asm volatile("griddepcontrol.wait;" ::: "memory"), standin::dependent_wait(line));
}
/* The next kernel may begin once every block has said so or ended. */
__device__ __forceinline__ void dependent_launch()
{
    SM90(asm volatile("griddepcontrol.launch_dependents;" ::: "memory"), );
}
/* The block's dynamic shared memory, aligned to 1024 bytes, as tiles with a swizzle need it. */
template <class T> __device__ __forceinline__ T *dynamic_tiles()
{
#ifdef CUDA_ON_CPU
    return static_cast<T *>(standin::shared_memory());
#else
    extern __shared__ __align__(1024) unsigned char sm90_dynamic_tiles[];
    return reinterpret_cast<T *>(sm90_dynamic_tiles);
#endif
}
#undef SM90
#undef SM90_LINE
#undef SM90_LINE1

/* ------------------------------------------------------------------------------------------------
 * On the host. */

template <class E> constexpr CUtensorMapDataType sm90_type = CU_TENSOR_MAP_DATA_TYPE_UINT8;
template <>
constexpr CUtensorMapDataType sm90_type<__nv_bfloat16> = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
template <> constexpr CUtensorMapDataType sm90_type<__half> = CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
template <> constexpr CUtensorMapDataType sm90_type<float> = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;

/* The driver's function, which a program that links the runtime alone asks for by name; NULL: it is
 * too old. */
inline auto tensor_map_encoder()
{
    using Encode = decltype(&cuTensorMapEncodeTiled);
    static const Encode encode = [] {
        void *f = nullptr;
        cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
        const cudaError_t e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000,
                                                               cudaEnableDefault, &found);
#else
        const cudaError_t e =
            cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &f, cudaEnableDefault, &found);
#endif
        return e == cudaSuccess && found == cudaDriverEntryPointSuccess ? Encode(f) : nullptr;
    }();
    return encode;
}
/* A map of a tensor of D dimensions, the fastest first: how many elements, bytes from one index to
 * the next (stride[0] is sizeof(E)), elements of a box. False: the driver does not take it; the
 * address and strides must be multiples of 16 bytes, a box at most 256 elements a side and as wide
 * as the swizzle. FP8's map is that of bytes. */
template <class E, int D>
bool tensor_map(CUtensorMap *map, const void *p, const uint64_t (&size)[D],
                const uint64_t (&stride)[D], const uint32_t (&box)[D], Swizzle swizzle)
{
    static_assert(D >= 2 && D <= 4, "a copy has two to four dimensions");
    const uint32_t every[4] = {1, 1, 1, 1};
    const auto encode = tensor_map_encoder();
    return encode && encode(map, sm90_type<E>, D, const_cast<void *>(p), size, stride + 1, box,
                            every, CU_TENSOR_MAP_INTERLEAVE_NONE, CUtensorMapSwizzle(swizzle),
                            CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                            CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}
