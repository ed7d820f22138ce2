/* hopper.h - Hopper's asynchronous instructions on the CPU: what cuda/sm90.cuh calls.
 *
 * async.cpp and wgmma.cpp have them, and say when what happens. `line` is the caller's, for reports.
 */
#ifndef CUDA_ON_CPU_HOPPER_H
#define CUDA_ON_CPU_HOPPER_H

#include "cuda.h"
#include "cuda_bf16.h"
#include "cuda_fp16.h"

struct __nv_fp8_e4m3;
struct __nv_fp8_e5m2;

namespace standin
{

/* An address as the block's shared memory knows it; its low ten bits are the pointer's. */
uint32_t shared_address(const void *p);

/* mbarrier */
void mbarrier_init(uint64_t *bar, uint32_t count, int line);
void mbarrier_init_fence();
void mbarrier_arrive(uint64_t *bar, uint32_t bytes, int line); /* bytes: announced before */
void mbarrier_arrive_at(uint64_t *bar, uint32_t rank, int line);
void mbarrier_wait(uint64_t *bar, uint32_t parity, int line);
void fence_proxy_async();

/* tensor copies */
struct Place {
    int dimensions, at[4];
};
void tma_load(void *to, const CUtensorMap *map, uint64_t *bar, Place place, int line);
void tma_multicast(void *to, const CUtensorMap *map, uint64_t *bar, unsigned ranks, Place place,
                   int line);
void tma_store(const CUtensorMap *map, const void *from, Place place, int line);
void tma_store_commit();
void tma_store_wait(unsigned groups_left, bool only_read);

/* wgmma. A product as one thread issues it. */
enum Narrow { BF16_TYPE, F16_TYPE, E4M3_TYPE, E5M2_TYPE };
template <class T> struct NarrowOf;
template <> struct NarrowOf<__nv_bfloat16> {
    static constexpr Narrow type = BF16_TYPE;
};
template <> struct NarrowOf<__half> {
    static constexpr Narrow type = F16_TYPE;
};
template <> struct NarrowOf<__nv_fp8_e4m3> {
    static constexpr Narrow type = E4M3_TYPE;
};
template <> struct NarrowOf<__nv_fp8_e5m2> {
    static constexpr Narrow type = E5M2_TYPE;
};
struct Product {
    Narrow a_type, b_type;
    int n;
    bool mn_a, mn_b, accumulate, a_in_registers;
    uint64_t a, b;         /* descriptors */
    uint32_t registers[4]; /* or A, and where it was */
    const void *registers_at;
};
void wgmma_issue(float *d, const Product &p, int line);
template <class A, class B>
void wgmma(float *d, int n, uint64_t a, uint64_t b, bool mn_a, bool mn_b, bool accumulate, int line)
{
    wgmma_issue(
        d,
        {NarrowOf<A>::type, NarrowOf<B>::type, n, mn_a, mn_b, accumulate, false, a, b, {}, nullptr},
        line);
}
template <class A, class B>
void wgmma(float *d, int n, const uint32_t (&a)[4], uint64_t b, bool mn_a, bool mn_b,
           bool accumulate, int line)
{
    wgmma_issue(d,
                {NarrowOf<A>::type,
                 NarrowOf<B>::type,
                 n,
                 mn_a,
                 mn_b,
                 accumulate,
                 true,
                 0,
                 b,
                 {a[0], a[1], a[2], a[3]},
                 a},
                line);
}
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(unsigned groups_left);

/* warps and blocks */
bool elect_one(int line);
void named_barrier(int id, int threads, bool wait, int line);
void set_registers(int registers, bool more, int line);
void stmatrix_x4(void *row, const uint32_t (&r)[4], int line);
void stmatrix_x4_trans(void *row, const uint32_t (&r)[4], int line);
void cluster_sync(int line);
/* kernel.cpp */
unsigned cluster_rank();
unsigned cluster_blocks();
void dependent_wait(int line);

} // namespace standin

#endif
