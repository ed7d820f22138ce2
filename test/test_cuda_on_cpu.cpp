/* test_cuda_on_cpu.cpp - tests of the stand-in for CUDA itself (test/cuda_on_cpu).
 *
 * Two questions: does it compute what CUDA computes, and does it notice what goes wrong on a GPU?
 * For the second, small programs with a mistake run as `test_cuda_on_cpu SCENARIO` in a process of
 * their own, which must die with the right words. Orders are drawn anew at every launch and every
 * synchronisation, so a mistake is tried several times. It does not test the CUDA backend.
 */
#include "on_cpu.h"

#include "cuda/ptx.cuh"

#include <algorithm>
#include <cmath>
#include <cublasLt.h>
#include <nccl.h>
#include <sys/wait.h>

/* ------------------------------------------------------------------------------------------------
 * Kernels: meeting points, layouts, orders. */

__global__ void sums(const float *x, float *out, int rows, int n)
{
    float *part = dynamic_smem<float>();
    for (int row = int(blockIdx.x); row < rows; row += int(gridDim.x)) {
        float s = 0;
        for (int i = int(threadIdx.x); i < n; i += int(blockDim.x))
            s += x[row * n + i];
        for (int with = 16; with; with /= 2)
            s += __shfl_xor_sync(0xFFFFFFFFu, s, with);
        if (threadIdx.x % 32 == 0)
            part[threadIdx.x / 32] = s;
        __syncthreads();
        if (threadIdx.x == 0) {
            s = 0;
            for (unsigned i = 0; i < blockDim.x / 32; i++)
                s += part[i];
            out[row] = s;
        }
        __syncthreads();
    }
}

static void test_sums()
{
    int rows = 37, n = 203;
    std::vector<float> x(size_t(rows * n));
    for (size_t i = 0; i < x.size(); i++)
        x[i] = float(i * 7 % 64);
    float *dx = device(x), *out = device(std::vector<float>(size_t(rows)));
    for (int blocks : {1, 5, 37})
        for (int threads : {32, 96, 256}) {
            OK(cudaMemset(out, 0, size_t(rows) * 4));
            launch(sums, dim3(unsigned(blocks)), dim3(unsigned(threads)), 32 * 4, nullptr, dx, out,
                   rows, n);
            std::vector<float> got = host(out, size_t(rows));
            bool same = true;
            for (int r = 0; r < rows; r++) {
                float s = 0;
                for (int i = 0; i < n; i++)
                    s += x[size_t(r * n + i)];
                same &= got[size_t(r)] == s;
            }
            CHECK(same, "%d blocks of %d", blocks, threads);
        }
    OK(cudaFree(dx));
    OK(cudaFree(out));
}

__global__ void warp_functions(unsigned *out)
{
    unsigned i = threadIdx.x, *o = out + i * 16, lane = i % 32;
    o[0] = __shfl_sync(0xFFFFFFFFu, i, 5);
    o[1] = __shfl_sync(0xFFFFFFFFu, i, 9, 8);
    o[2] = __shfl_xor_sync(0xFFFFFFFFu, i, 3);
    o[3] = __shfl_down_sync(0xFFFFFFFFu, i, 2, 16);
    o[4] = __shfl_up_sync(0xFFFFFFFFu, i, 3, 16);
    o[5] = __ballot_sync(0xFFFFFFFFu, lane % 3 == 0);
    o[6] = unsigned(__any_sync(0xFFFFFFFFu, lane == 7));
    o[7] = unsigned(__all_sync(0xFFFFFFFFu, lane < 31));
    double d = __shfl_xor_sync(0xFFFFFFFFu, double(i) + 0.25, 1);
    o[8] = unsigned(d * 4);
    unsigned mask = lane < 16 ? 0xFFFFu : 0xFFFF0000u; /* the halves part, and come back */
    if (lane < 16)
        o[9] = __shfl_xor_sync(mask, i, 1) + __shfl_xor_sync(mask, i, 2);
    else
        o[9] = __shfl_xor_sync(mask, i, 4);
    __syncwarp();
    o[10] = __activemask();
    o[11] = unsigned(__syncthreads_count(i % 5 == 0));
    o[12] = unsigned(__syncthreads_or(i == 70));
    o[13] = unsigned(__syncthreads_and(i != 70));
    o[14] = __shfl_sync(0xFFFFFFFFu, i, int((lane + 1) % 32));
    o[15] = blockDim.x + gridDim.x + unsigned(warpSize);
}

static void test_warp_functions()
{
    unsigned n = 96, *out = device(std::vector<unsigned>(n * 16));
    for (int trial = 0; trial < 12; trial++) {
        launch(warp_functions, 1, n, 0, nullptr, out);
        std::vector<unsigned> got = host(out, n * 16);
        int wrong = 0;
        for (unsigned i = 0; i < n; i++) {
            unsigned lane = i % 32, base = i - lane;
            unsigned down = lane % 16 + 2 < 16 ? i + 2 : i, up = lane % 16 >= 3 ? i - 3 : i;
            unsigned want[16] = {base + 5,
                                 base + lane / 8 * 8 + 1,
                                 i ^ 3,
                                 down,
                                 up,
                                 0x49249249u,
                                 1,
                                 0,
                                 ((i ^ 1) * 4 + 1),
                                 lane < 16 ? (i ^ 1) + (i ^ 2) : i ^ 4,
                                 0xFFFFFFFFu,
                                 20,
                                 1,
                                 0,
                                 base + (lane + 1) % 32,
                                 n + 1 + 32};
            for (int j = 0; j < 16; j++)
                wrong += got[i * 16 + unsigned(j)] != want[j];
        }
        CHECK(wrong == 0, "%d wrong", wrong);
    }
    OK(cudaFree(out));
}

/* One warp: A [16,16] row-major and B^T [8,16] from shared memory by ldmatrix; with `trans`, A^T
 * and B are stored instead. */
template <class T, bool trans> __global__ void product(const T *a, const T *b, float *d)
{
    T *sa = dynamic_smem<T>(), *sb = sa + 256;
    unsigned lane = threadIdx.x;
    for (unsigned i = lane; i < 256; i += 32)
        sa[trans ? i % 16 * 16 + i / 16 : i] = a[i];
    for (unsigned i = lane; i < 128; i += 32) /* i: row k, column j of B */
        sb[trans ? i : i % 8 * 16 + i / 8] = b[i];
    __syncwarp();
    uint32_t fa[4], fb[2], one[1];
    float acc[4] = {1, 1, 1, 1};
    if constexpr (trans) {
        ldmatrix_x4_trans(fa, sa + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8);
        ldmatrix_x2_trans(fb, sb + lane % 16 * 8);
        ldmatrix_x1_trans(one, sb + lane % 8 * 8);
    } else {
        ldmatrix_x4(fa, sa + lane % 16 * 16 + lane / 16 * 8);
        ldmatrix_x2(fb, sb + lane % 8 * 16 + lane / 8 % 2 * 8);
        ldmatrix_x1(one, sb + lane % 8 * 16);
    }
    fb[0] = one[0];
    mma_m16n8k16<T>(acc, fa, fb);
    for (unsigned i = 0; i < 4; i++)
        d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = acc[i];
}

template <class T, bool trans> static void test_product()
{
    std::vector<T> a(256), b(128);
    for (unsigned i = 0; i < 256; i++)
        a[i] = T(noise(i));
    for (unsigned i = 0; i < 128; i++)
        b[i] = T(noise(1000 + i));
    T *da = device(a), *db = device(b);
    float *d = device(std::vector<float>(128));
    for (int trial = 0; trial < 6; trial++) {
        launch(product<T, trans>, 1, 32, 384 * 2, nullptr, (const T *)da, (const T *)db, d);
        std::vector<float> got = host(d, 128);
        double worst = 0;
        for (unsigned i = 0; i < 16; i++)
            for (unsigned j = 0; j < 8; j++) {
                double s = 1;
                for (unsigned k = 0; k < 16; k++)
                    s += double(float(a[i * 16 + k])) * double(float(b[k * 8 + j]));
                worst = std::fmax(worst, std::fabs(s - got[i * 8 + j]));
            }
        CHECK(worst < 1e-5, "off by %g", worst);
    }
    OK(cudaFree(da));
    OK(cudaFree(db));
    OK(cudaFree(d));
}

/* What is in shared memory before and after the wait, and how much of a group is still out. */
__global__ void copies(const float *x, float *out)
{
    float *s = dynamic_smem<float>();
    unsigned i = threadIdx.x;
    cp_async<16>(s + 4 * i, x + 4 * i);
    cp_async_commit();
    cp_async<8>(s + 128 + 2 * i, x + 2 * i, 4); /* the second of two is zero */
    cp_async_commit();
    cp_async<4>(s + 192 + i, x + i, 0);
    out[8 * i] = s[4 * i];
    cp_async_wait<1>();
    out[8 * i + 1] = s[4 * i + 3];
    out[8 * i + 2] = s[128 + 2 * i];
    out[8 * i + 3] = s[192 + i];
    cp_async_wait_all();
    out[8 * i + 4] = s[128 + 2 * i];
    out[8 * i + 5] = s[128 + 2 * i + 1];
    out[8 * i + 6] = s[192 + i];
    __syncthreads();
    out[8 * i + 7] = s[4 * ((i + 1) % 32)];
}
static void test_copies()
{
    std::vector<float> x(128);
    for (unsigned i = 0; i < 128; i++)
        x[i] = float(i + 1);
    float *dx = device(x), *out = device(std::vector<float>(256));
    launch(copies, 1, 32, 224 * 4, nullptr, (const float *)dx, out);
    std::vector<float> got = host(out, 256);
    int wrong = 0;
    for (unsigned i = 0; i < 32; i++) {
        const float *o = &got[8 * i];
        wrong += !std::isnan(o[0]) || o[1] != x[4 * i + 3] || !std::isnan(o[2]) ||
                 !std::isnan(o[3]) || o[4] != x[2 * i] || o[5] != 0 || o[6] != 0 ||
                 o[7] != x[4 * ((i + 1) % 32)];
    }
    CHECK(wrong == 0, "%d lanes", wrong);
    OK(cudaFree(dx));
    OK(cudaFree(out));
}

/* A value handed to the neighbour through shared memory, with the barriers it takes or without. */
template <bool before, bool after> __global__ void pass_on(float *out, int rounds)
{
    float *s = dynamic_smem<float>();
    unsigned i = threadIdx.x, n = blockDim.x;
    float v = float(i);
    for (int r = 0; r < rounds; r++) {
        s[i] = v;
        if (before)
            __syncthreads();
        v = s[(i + 1) % n];
        if (after)
            __syncthreads();
    }
    out[blockIdx.x * n + i] = v;
}
template <bool before, bool after> static bool passes_on(unsigned threads)
{
    float *out = device(std::vector<float>(threads * 4));
    launch(pass_on<before, after>, 4, threads, threads * 4, nullptr, out, 3);
    std::vector<float> got = host(out, threads * 4);
    bool right = true;
    for (unsigned i = 0; i < threads * 4; i++)
        right &= got[i] == float((i + 3) % threads);
    OK(cudaFree(out));
    return right;
}
static void test_missing_barriers()
{
    int right = 0, no_before = 0, no_after = 0;
    for (int trial = 0; trial < 20; trial++) {
        right += passes_on<true, true>(trial % 2 ? 64 : 128);
        if (tsan)
            continue;
        no_before += !passes_on<false, true>(64);
        no_after += !passes_on<true, false>(128);
    }
    CHECK(right == 20, "wrong with every barrier in place, %d times", 20 - right);
    if (!tsan) {
        CHECK(no_before == 20, "seen %d times of 20", no_before);
        CHECK(no_after == 20, "seen %d times of 20", no_after);
    }
}

__global__ void counters(unsigned long long *sum, int *most, unsigned *order)
{
    atomicAdd(sum, (unsigned long long)threadIdx.x + 1);
    atomicMax(most, int(blockIdx.x * 1000 + threadIdx.x));
    if (threadIdx.x == 0)
        order[atomicAdd(&order[0], 1u) + 1] = blockIdx.x;
}
__global__ void shape(uint3 *out)
{
    unsigned t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    unsigned b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    out[b * 24 + t] = make_uint3(threadIdx.x + 100 * blockIdx.x, threadIdx.y + 100 * blockIdx.y,
                                 threadIdx.z + 100 * blockIdx.z);
}
static void test_grids()
{
    auto *sum = device(std::vector<unsigned long long>{0});
    int *most = device(std::vector<int>{-1});
    unsigned *order = device(std::vector<unsigned>(201));
    launch(counters, 200, 64, 0, nullptr, sum, most, order);
    CHECK(host(sum, 1)[0] == 200ull * 65 * 32);
    CHECK(host(most, 1)[0] == 199 * 1000 + 63);
    std::vector<unsigned> seen(200), got = host(order, 201);
    for (unsigned i = 1; i <= 200; i++)
        seen[got[i]]++;
    CHECK(*std::max_element(seen.begin(), seen.end()) == 1 && got[0] == 200);

    uint3 *out = device(std::vector<uint3>(24 * 60));
    launch(shape, dim3(3, 4, 5), dim3(4, 3, 2), 0, nullptr, out);
    std::vector<uint3> at = host(out, 24 * 60);
    int wrong = 0;
    for (unsigned i = 0; i < 24 * 60; i++) {
        unsigned t = i % 24, b = i / 24;
        wrong += at[i].x != t % 4 + b % 3 * 100 || at[i].y != t / 4 % 3 + b / 3 % 4 * 100 ||
                 at[i].z != t / 12 + b / 12 * 100;
    }
    CHECK(wrong == 0, "%d wrong", wrong);
    for (void *p : {(void *)sum, (void *)most, (void *)order, (void *)out})
        OK(cudaFree(p));

    cudaLaunchConfig_t c = {};
    c.gridDim = dim3(1), c.blockDim = dim3(1025);
    CHECK(cudaLaunchKernelEx(&c, counters, sum, most, order) == cudaErrorInvalidConfiguration);
    c.gridDim = dim3(0), c.blockDim = dim3(32);
    CHECK(cudaLaunchKernelEx(&c, counters, sum, most, order) == cudaErrorInvalidConfiguration);
    c.gridDim = dim3(1), c.dynamicSmemBytes = 48 * 1024 + 1; /* not asked for */
    CHECK(cudaLaunchKernelEx(&c, counters, sum, most, order) == cudaErrorInvalidValue);
    CHECK(cudaFuncSetAttribute(counters, cudaFuncAttributeMaxDynamicSharedMemorySize, 164 * 1024) ==
          cudaErrorInvalidValue);
    CHECK(cudaGetLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaSuccess);
    int blocks = 0;
    OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, counters, 256, 0));
    CHECK(blocks == 8);
}

/* ------------------------------------------------------------------------------------------------
 * Narrow types, against a search for the nearest value. */

template <class T> static float value_of(unsigned bits)
{
    T x;
    x.__x = (unsigned short)bits;
    return x;
}
/* `bits` counts up from +0 to infinity; halfway cases must go to even, overflow to infinity. */
template <class T> static void test_rounding(unsigned infinity, float largest, float step)
{
    int wrong = 0;
    for (unsigned b = 0; b < infinity; b++) {
        double x = value_of<T>(b);
        double y = b + 1 < infinity ? double(value_of<T>(b + 1)) : double(largest) + double(step);
        wrong += T(float(x)).__x != b || T(float(-x)).__x != (b | 0x8000u);
        float middle = float((x + y) / 2);
        wrong += T(middle).__x != b + b % 2;
        wrong += T(std::nextafterf(middle, 0)).__x != b;
        wrong += T(std::nextafterf(middle, INFINITY)).__x != b + 1;
        wrong += T(-middle).__x != ((b + b % 2) | 0x8000u);
    }
    CHECK(wrong == 0, "%d wrong", wrong);
    CHECK(T(INFINITY).__x == infinity && T(-INFINITY).__x == (infinity | 0x8000u));
    CHECK(T(NAN).__x == 0x7FFF && T(__uint_as_float(0xFF800001u)).__x == 0x7FFF);
    CHECK(std::isinf(value_of<T>(infinity)) && std::isnan(value_of<T>(infinity + 1)));
    CHECK(T(3.4e38f).__x == (infinity == 0x7C00 ? infinity : T(3.4e38f).__x));
    CHECK(float(T(1.5f) + T(0.25f)) == 1.75f && T(2.0f) > T(1.0f));
}
static void test_narrow()
{
    CHECK(value_of<__nv_bfloat16>(0x3F80) == 1.0f && value_of<__nv_bfloat16>(1) == 0x1p-133f);
    CHECK(value_of<__half>(0x3C00) == 1.0f && value_of<__half>(1) == 0x1p-24f);
    CHECK(value_of<__half>(0x7BFF) == 65504.0f && value_of<__half>(0x03FF) == 1023 * 0x1p-24f);
    test_rounding<__half>(0x7C00, 65504.0f, 32.0f);
    test_rounding<__nv_bfloat16>(0x7F80, value_of<__nv_bfloat16>(0x7F7F), 0x1p120f);
    CHECK(pack<__nv_bfloat16>(1.0f, -2.0f) == 0xC0003F80u);
    CHECK(pack<__half>(1.0f, -2.0f) == 0xC0003C00u);
    float2 f = __bfloat1622float2(__float22bfloat162_rn(make_float2(1.5f, 3.0f)));
    CHECK(f.x == 1.5f && f.y == 3.0f);
    f = __half22float2(__floats2half2_rn(1.5f, 3.0f));
    CHECK(f.x == 1.5f && f.y == 3.0f);
    CHECK(float(__double2bfloat16(1 + 0x1p-8 + 0x1p-40)) == 1 + 0x1p-7f); /* float would tie */
}

/* ------------------------------------------------------------------------------------------------
 * Streams. */

__global__ void add(float *x, float by, int n)
{
    int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n)
        x[i] += by;
}
__global__ void copy_of(float *to, const float *from, int n)
{
    int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n)
        to[i] = from[i];
}

static void test_late_streams()
{
    cudaStream_t s;
    float *pinned, *d = device(std::vector<float>(64));
    OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    OK(cudaMallocHost(&pinned, 64 * 4));
    int overwritten = 0, unread = 0;
    for (int trial = 0; trial < 20; trial++) {
        for (int i = 0; i < 64; i++)
            pinned[i] = 1;
        OK(cudaMemcpyAsync(d, pinned, 64 * 4, cudaMemcpyHostToDevice, s));
        pinned[0] = 2; /* too early */
        OK(cudaStreamSynchronize(s));
        overwritten += host(d, 1)[0] == 2;
        pinned[0] = 3;
        OK(cudaMemcpyAsync(pinned, d, 64 * 4, cudaMemcpyDeviceToHost, s));
        unread += pinned[0] == 3; /* too soon */
        OK(cudaStreamSynchronize(s));
        CHECK(pinned[0] == host(d, 1)[0]);
    }
    CHECK(overwritten > 10, "seen %d times of 20", overwritten);
    CHECK(unread > 10, "seen %d times of 20", unread);
    OK(cudaFreeHost(pinned));
    OK(cudaFree(d));
    OK(cudaStreamDestroy(s));
}

/* a = 1 on one stream, b = a on another; `wait`: with the event that this takes. */
static bool crosses(bool wait, bool reuse)
{
    cudaStream_t s, t;
    cudaEvent_t e;
    float *a = device(std::vector<float>(32)), *b = device(std::vector<float>(32));
    OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    OK(cudaStreamCreateWithPriority(&t, cudaStreamNonBlocking, -1));
    OK(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    launch(add, 1, 32, 0, s, a, 1.0f, 32);
    OK(cudaEventRecord(e, s));
    if (wait)
        OK(cudaStreamWaitEvent(t, e, 0));
    launch(copy_of, 1, 32, 0, t, b, (const float *)a, 32);
    if (reuse) { /* the first stream may write again only after the second has read */
        OK(cudaEventRecord(e, t));
        if (wait)
            OK(cudaStreamWaitEvent(s, e, 0));
        launch(add, 1, 32, 0, s, a, 1.0f, 32);
    }
    OK(cudaStreamSynchronize(s));
    OK(cudaStreamSynchronize(t));
    bool right = host(b, 1)[0] == 1;
    OK(cudaFree(a));
    OK(cudaFree(b));
    OK(cudaEventDestroy(e));
    OK(cudaStreamDestroy(s));
    OK(cudaStreamDestroy(t));
    return right;
}
static void test_events()
{
    int right = 0, wrong = 0;
    for (int trial = 0; trial < 60; trial++) {
        right += crosses(true, trial % 2);
        wrong += !crosses(false, trial % 2);
    }
    CHECK(right == 60, "%d of 60", right);
    CHECK(wrong > 10, "a missing wait shows in %d of 60", wrong);

    cudaEvent_t a, b;
    float ms = -1;
    OK(cudaEventCreate(&a));
    OK(cudaEventCreate(&b));
    OK(cudaEventRecord(a));
    OK(cudaEventRecord(b));
    int asked = 0;
    while (cudaEventQuery(b) == cudaErrorNotReady)
        asked++;
    CHECK(asked < 10 && cudaEventElapsedTime(&ms, a, b) == cudaSuccess && ms >= 0);
    OK(cudaEventDestroy(a));
    OK(cudaEventDestroy(b));
}
/* The legacy stream and blocking streams wait for each other; others do not. */
static void test_legacy_stream()
{
    cudaStream_t s, other;
    OK(cudaStreamCreate(&s));
    OK(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
    int wrong = 0, free = 0;
    for (int trial = 0; trial < 30; trial++) {
        float *a = device(std::vector<float>(32)), *b = device(std::vector<float>(32));
        float *c = device(std::vector<float>(32));
        launch(add, 1, 32, 0, s, a, 1.0f, 32);
        launch(add, 1, 32, 0, nullptr, a, 2.0f, 32);
        launch(copy_of, 1, 32, 0, s, b, (const float *)a, 32);
        launch(copy_of, 1, 32, 0, other, c, (const float *)a, 32);
        wrong += host(b, 1)[0] != 3; /* cudaMemcpy waits for s */
        OK(cudaDeviceSynchronize());
        free += host(c, 1)[0] != 3;
        for (float *p : {a, b, c})
            OK(cudaFree(p));
    }
    CHECK(wrong == 0 && free > 5, "%d wrong, %d free", wrong, free);
    OK(cudaStreamDestroy(s));
    OK(cudaStreamDestroy(other));
}

/* ------------------------------------------------------------------------------------------------
 * Capture. */

static void test_graphs()
{
    cudaStream_t s, t;
    cudaEvent_t fork, join;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    OK(cudaStreamCreateWithFlags(&t, cudaStreamNonBlocking));
    OK(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming));
    OK(cudaEventCreateWithFlags(&join, cudaEventDisableTiming));
    float *a = device(std::vector<float>(32)), *b = device(std::vector<float>(32));
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    cudaStreamCaptureStatus status;
    OK(cudaStreamIsCapturing(s, &status));
    CHECK(status == cudaStreamCaptureStatusActive);
    launch(add, 1, 32, 0, s, a, 1.0f, 32);
    OK(cudaEventRecord(fork, s));
    OK(cudaStreamWaitEvent(t, fork, 0));
    OK(cudaStreamIsCapturing(t, &status));
    CHECK(status == cudaStreamCaptureStatusActive);
    launch(copy_of, 1, 32, 0, t, b, (const float *)a, 32);
    launch(add, 1, 32, 0, t, b, 10.0f, 32);
    OK(cudaEventRecord(join, t));
    OK(cudaStreamWaitEvent(s, join, 0));
    launch(add, 1, 32, 0, s, a, 1.0f, 32);
    OK(cudaStreamEndCapture(s, &graph));
    OK(cudaStreamIsCapturing(t, &status));
    CHECK(status == cudaStreamCaptureStatusNone);
    OK(cudaGraphInstantiate(&exec, graph, 0));
    OK(cudaGraphDestroy(graph));
    CHECK(host(a, 1)[0] == 0, "capture must not run anything");
    for (int i = 0; i < 20; i++) {
        OK(cudaGraphLaunch(exec, s));
        launch(add, 1, 32, 0, s, a, 0.5f, 32);
        OK(cudaStreamSynchronize(s));
        float want = 2.5f * float(i);
        CHECK(host(a, 1)[0] == want + 2.5f && host(b, 1)[0] == want + 11);
    }
    for (int i = 0; i < 5; i++)
        OK(cudaGraphLaunch(exec, i % 2 ? s : t)); /* one after another, whatever the stream */
    OK(cudaDeviceSynchronize());
    CHECK(host(a, 1)[0] == 60 && host(b, 1)[0] == 69);
    OK(cudaGraphExecDestroy(exec));
    OK(cudaFree(a));
    OK(cudaFree(b));
    OK(cudaEventDestroy(fork));
    OK(cudaEventDestroy(join));
    OK(cudaStreamDestroy(s));
    OK(cudaStreamDestroy(t));
}

static void test_capture_rules()
{
    cudaStream_t s, t, blocking;
    cudaEvent_t e, outside;
    OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    OK(cudaStreamCreateWithFlags(&t, cudaStreamNonBlocking));
    OK(cudaStreamCreate(&blocking));
    OK(cudaEventCreate(&e));
    OK(cudaEventCreate(&outside));
    float *d = device(std::vector<float>(32)), h[32];
    OK(cudaEventRecord(outside, t));
    void *p = nullptr;
    cudaGraph_t g;
    /* each mistake gives its error, and spoils the capture */
    auto mistake = [&](cudaStreamCaptureMode mode, cudaError_t want, auto call, const char *what) {
        OK(cudaStreamBeginCapture(s, mode));
        launch(add, 1, 32, 0, s, d, 1.0f, 32);
        OK(cudaEventRecord(e, s));
        cudaError_t got = call();
        CHECK(got == want, "%s: %s", what, cudaGetErrorName(got));
        got = cudaStreamEndCapture(s, &g);
        CHECK(got == cudaErrorStreamCaptureInvalidated && !g, "%s: %s", what,
              cudaGetErrorName(got));
    };
    const cudaError_t no = cudaErrorStreamCaptureUnsupported;
    for (auto mode : {cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeGlobal}) {
        mistake(
            mode, no, [&] { return cudaMalloc(&p, 4); }, "malloc");
        mistake(
            mode, no, [&] { return cudaFree(d); }, "free");
        mistake(
            mode, no, [&] { return cudaMallocHost(&p, 4); }, "pinned");
        mistake(
            mode, no, [&] { return cudaMemcpy(h, d, 4, cudaMemcpyDeviceToHost); }, "memcpy");
        mistake(
            mode, no, [&] { return cudaStreamSynchronize(t); }, "synchronise another");
        mistake(
            mode, no, [&] { return cudaEventQuery(outside); }, "query");
    }
    auto relaxed = cudaStreamCaptureModeRelaxed;
    mistake(
        relaxed, no, [&] { return cudaStreamSynchronize(s); }, "synchronise");
    mistake(
        relaxed, no, [&] { return cudaDeviceSynchronize(); }, "device");
    mistake(
        relaxed, no, [&] { return cudaStreamQuery(s); }, "stream query");
    mistake(
        relaxed, cudaErrorCapturedEvent, [&] { return cudaEventQuery(e); }, "captured event");
    mistake(
        relaxed, cudaErrorCapturedEvent, [&] { return cudaEventSynchronize(e); }, "its wait");
    mistake(
        relaxed, cudaErrorStreamCaptureIsolation,
        [&] { return cudaStreamWaitEvent(s, outside, 0); }, "an event from outside");

    OK(cudaStreamBeginCapture(s, relaxed)); /* a fork that is not joined */
    OK(cudaEventRecord(e, s));
    OK(cudaStreamWaitEvent(t, e, 0));
    launch(add, 1, 32, 0, t, d, 1.0f, 32);
    CHECK(cudaStreamEndCapture(s, &g) == cudaErrorStreamCaptureUnjoined && !g);
    CHECK(cudaStreamBeginCapture(nullptr, relaxed) == no);
    OK(cudaStreamBeginCapture(blocking, relaxed));
    CHECK(cudaMemsetAsync(d, 0, 4, nullptr) == cudaErrorStreamCaptureImplicit);
    CHECK(cudaStreamEndCapture(blocking, &g) == cudaErrorStreamCaptureInvalidated);
    OK(cudaStreamBeginCapture(s, relaxed)); /* relaxed: allocation is allowed */
    OK(cudaMalloc(&p, 4));
    OK(cudaStreamEndCapture(s, &g));
    OK(cudaGraphDestroy(g));
    OK(cudaFree(p));
    cudaGetLastError();
    OK(cudaFree(d));
    for (cudaStream_t x : {s, t, blocking})
        OK(cudaStreamDestroy(x));
    OK(cudaEventDestroy(e));
    OK(cudaEventDestroy(outside));
}

/* ------------------------------------------------------------------------------------------------
 * Memory. */

/* Memory of the host that a kernel may touch, and copies and memset too. */
static void test_pinned()
{
    enum { n = 100 };
    float *x, *on_device = device(std::vector<float>(n, 3));
    OK(cudaMallocHost(&x, n * sizeof *x));
    CHECK(std::isnan(x[0]), "fresh memory must not be zero");
    OK(cudaMemsetAsync(x, 0, n * sizeof *x, nullptr));
    launch(add, 1, 128, 0, nullptr, x, 2.0f, int(n));
    OK(cudaDeviceSynchronize());
    CHECK(x[0] == 2 && x[n - 1] == 2, "%g", double(x[0]));
    OK(cudaMemcpyAsync(on_device, x, n * sizeof *x, cudaMemcpyDefault, nullptr));
    launch(copy_of, 1, 128, 0, nullptr, x, (const float *)on_device, int(n));
    OK(cudaDeviceSynchronize());
    CHECK(host(on_device, n) == std::vector<float>(n, 2));
    OK(cudaFreeHost(x));
    OK(cudaFree(on_device));
}

static void test_memory()
{
    size_t free0, free1, total;
    char *p, *q;
    OK(cudaMemGetInfo(&free0, &total));
    CHECK(cudaMalloc(&p, total + 1) == cudaErrorMemoryAllocation && !p);
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
    OK(cudaMalloc(&p, 1000));
    OK(cudaMalloc(&q, 1));
    CHECK(uintptr_t(p) % 256 == 0 && uintptr_t(q) % 256 == 0);
    OK(cudaMemGetInfo(&free1, &total));
    CHECK(free0 - free1 == 1024 + 256);
    CHECK(std::isnan(host((float *)p, 1)[0]), "fresh memory must not be zero");
    CHECK(cudaMemset(p, 0, 1001) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(p, q, 2, cudaMemcpyDeviceToDevice) == cudaErrorInvalidValue);
    cudaPointerAttributes a;
    OK(cudaPointerGetAttributes(&a, p + 999));
    CHECK(a.type == cudaMemoryTypeDevice);
    OK(cudaPointerGetAttributes(&a, &a));
    CHECK(a.type == cudaMemoryTypeUnregistered);
    OK(cudaFree(p));
    CHECK(cudaFree(p) == cudaErrorInvalidValue);
    OK(cudaFree(q));
    OK(cudaMemGetInfo(&free1, &total));
    CHECK(free0 == free1);
    cudaGetLastError();
}

/* ------------------------------------------------------------------------------------------------
 * cuBLASLt, against plain loops in double. */

template <class T> struct TypeOf;
template <> struct TypeOf<float> {
    static constexpr cudaDataType_t type = CUDA_R_32F;
};
template <> struct TypeOf<__half> {
    static constexpr cudaDataType_t type = CUDA_R_16F;
};
template <> struct TypeOf<__nv_bfloat16> {
    static constexpr cudaDataType_t type = CUDA_R_16BF;
};

static double gelu(double x)
{
    return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

static cublasLtHandle_t blas;
#define BLAS(call) CHECK((call) == CUBLAS_STATUS_SUCCESS)
template <class V>
static void attribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a, V v)
{
    BLAS(cublasLtMatmulDescSetAttribute(d, a, &v, sizeof v));
}

template <class TI, class TO>
static void test_matmul(bool ta, bool tb, cublasLtEpilogue_t epilogue, cublasComputeType_t compute)
{
    const uint64_t m = 24, n = 19, k = 200;
    const float alpha = 0.75f, beta = epilogue == CUBLASLT_EPILOGUE_BIAS ? 0.5f : 0.0f;
    std::vector<TI> a(m * k), b(k * n);
    std::vector<TO> c(m * n), bias(m), aux(m * n), out(m * n);
    for (unsigned i = 0; i < m * k; i++)
        a[i] = TI(noise(i));
    for (unsigned i = 0; i < k * n; i++)
        b[i] = TI(noise(i + 77777));
    for (unsigned i = 0; i < m * n; i++)
        c[i] = aux[i] = TO(noise(i + 99999));
    for (unsigned i = 0; i < m; i++)
        bias[i] = TO(noise(i + 555));
    TI *da = device(a), *db = device(b);
    TO *dc = device(c), *dbias = device(bias), *daux = device(aux), *dd = device(out);
    char *workspace = device(std::vector<char>(4 << 20));
    float one = 1;
    (void)one;
    cublasLtMatmulDesc_t d;
    cublasLtMatrixLayout_t la, lb, lc;
    cublasLtMatmulPreference_t pref;
    BLAS(cublasLtMatmulDescCreate(&d, compute, CUDA_R_32F));
    attribute(d, CUBLASLT_MATMUL_DESC_TRANSA, ta ? CUBLAS_OP_T : CUBLAS_OP_N);
    attribute(d, CUBLASLT_MATMUL_DESC_TRANSB, tb ? CUBLAS_OP_T : CUBLAS_OP_N);
    attribute(d, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    attribute(d, CUBLASLT_MATMUL_DESC_BIAS_POINTER, dbias);
    attribute(d, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, daux);
    attribute(d, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, int64_t(m));
    BLAS(cublasLtMatrixLayoutCreate(&la, TypeOf<TI>::type, ta ? k : m, ta ? m : k, ta ? k : m));
    BLAS(cublasLtMatrixLayoutCreate(&lb, TypeOf<TI>::type, tb ? n : k, tb ? k : n, tb ? n : k));
    BLAS(cublasLtMatrixLayoutCreate(&lc, TypeOf<TO>::type, m, n, m));
    BLAS(cublasLtMatmulPreferenceCreate(&pref));
    size_t room = 4 << 20;
    BLAS(cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room,
                                              sizeof room));
    cublasLtMatmulHeuristicResult_t algos[8];
    int found = 0;
    BLAS(cublasLtMatmulAlgoGetHeuristic(blas, d, la, lb, lc, lc, pref, 8, algos, &found));
    CHECK(found >= (tb ? 1 : 3));
    std::vector<std::vector<TO>> results;
    for (int i = 0; i < found; i++) {
        OK(cudaMemset(dd, 0xFF, m * n * sizeof(TO)));
        if (epilogue != CUBLASLT_EPILOGUE_DGELU)
            OK(cudaMemset(daux, 0xFF, m * n * sizeof(TO)));
        BLAS(cublasLtMatmul(blas, d, &alpha, da, la, db, lb, &beta, dc, lc, dd, lc, &algos[i].algo,
                            workspace, room, nullptr));
        results.push_back(host(dd, m * n));
        std::vector<TO> got_aux = host(daux, m * n);
        double error = 0, norm = 0;
        int aux_wrong = 0;
        for (size_t j = 0; j < n; j++)
            for (size_t r = 0; r < m; r++) {
                double s = 0;
                for (size_t q = 0; q < k; q++)
                    s += double(float(a[ta ? r * k + q : q * m + r])) *
                         double(float(b[tb ? q * n + j : j * k + q]));
                s = alpha * s + beta * double(float(c[j * m + r]));
                if (epilogue & CUBLASLT_EPILOGUE_BIAS)
                    s += double(float(bias[r]));
                if (epilogue & 32 && epilogue & 128)
                    aux_wrong +=
                        std::fabs(float(got_aux[j * m + r]) - s) > 0.02 + 0.01 * std::fabs(s);
                if (epilogue & 32)
                    s = gelu(s);
                if (epilogue & 64) {
                    double x = double(float(aux[j * m + r])), h = 1e-5;
                    s *= (gelu(x + h) - gelu(x - h)) / (2 * h);
                }
                double e = double(float(results.back()[j * m + r])) - s;
                error += e * e;
                norm += s * s;
            }
        bool exact = sizeof(TO) == 4 && compute == CUBLAS_COMPUTE_32F;
        double gate = exact ? 1e-6 : sizeof(TO) == 4 ? 1e-3 : 3e-3;
        CHECK(std::sqrt(error / norm) < gate, "%g, epilogue %d, algorithm %d",
              std::sqrt(error / norm), int(epilogue), i);
        CHECK(aux_wrong == 0, "%d", aux_wrong);
    }
    if (found == 3 && sizeof(TO) == 4) /* a choice of algorithm must be visible */
        CHECK(memcmp(&results[0][0], &results[1][0], m * n * 4) &&
              memcmp(&results[1][0], &results[2][0], m * n * 4));
    cublasLtMatmulDescDestroy(d);
    cublasLtMatrixLayoutDestroy(la);
    cublasLtMatrixLayoutDestroy(lb);
    cublasLtMatrixLayoutDestroy(lc);
    cublasLtMatmulPreferenceDestroy(pref);
    for (void *p : {(void *)da, (void *)db, (void *)dc, (void *)dbias, (void *)daux, (void *)dd,
                    (void *)workspace})
        OK(cudaFree(p));
}

static void test_cublas()
{
    BLAS(cublasLtCreate(&blas));
    for (int t = 0; t < 4; t++)
        test_matmul<float, float>(t & 1, t & 2, CUBLASLT_EPILOGUE_BIAS, CUBLAS_COMPUTE_32F);
    for (cublasLtEpilogue_t e :
         {CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU,
          CUBLASLT_EPILOGUE_GELU_BIAS, CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
          CUBLASLT_EPILOGUE_DGELU}) {
        test_matmul<float, float>(true, false, e, CUBLAS_COMPUTE_32F);
        test_matmul<__nv_bfloat16, __nv_bfloat16>(true, false, e, CUBLAS_COMPUTE_32F);
        test_matmul<__half, __half>(false, false, e, CUBLAS_COMPUTE_32F);
    }
    auto plain = CUBLASLT_EPILOGUE_DEFAULT;
    test_matmul<__nv_bfloat16, float>(false, true, plain, CUBLAS_COMPUTE_32F);
    test_matmul<__half, float>(true, true, plain, CUBLAS_COMPUTE_32F);
    test_matmul<float, float>(false, false, plain, CUBLAS_COMPUTE_32F_FAST_TF32);

    /* what it must refuse */
    cublasLtMatmulDesc_t d;
    cublasLtMatrixLayout_t l;
    cublasLtMatmulPreference_t pref;
    cublasLtMatmulHeuristicResult_t r;
    int found;
    const float one = 1, zero = 0;
    char *p = device(std::vector<char>(20 * 20 * 4 + 4));
    BLAS(cublasLtMatmulDescCreate(&d, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    BLAS(cublasLtMatrixLayoutCreate(&l, CUDA_R_32F, 20, 20, 20));
    BLAS(cublasLtMatmulPreferenceCreate(&pref));
    BLAS(cublasLtMatmulAlgoGetHeuristic(blas, d, l, l, l, l, pref, 1, &r, &found));
    CHECK(r.workspaceSize == 0);
    auto multiply = [&](void *a, void *out) {
        return cublasLtMatmul(blas, d, &one, a, l, p, l, &zero, out, l, out, l, &r.algo, nullptr, 0,
                              nullptr);
    };
    CHECK(multiply(p, p) == CUBLAS_STATUS_SUCCESS);
    CHECK(multiply(nullptr, p) == CUBLAS_STATUS_INVALID_VALUE);
    CHECK(multiply(p, p + 8) == CUBLAS_STATUS_INVALID_VALUE); /* ends outside */
    attribute(d, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_GELU_AUX);
    attribute(d, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p);
    attribute(d, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, int64_t(20)); /* not a multiple of 8 */
    CHECK(multiply(p, p) == CUBLAS_STATUS_INVALID_VALUE);
    attribute(d, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS); /* without a bias */
    CHECK(multiply(p, p) == CUBLAS_STATUS_INVALID_VALUE);
    cublasLtMatmulDescDestroy(d);
    cublasLtMatrixLayoutDestroy(l);
    cublasLtMatmulPreferenceDestroy(pref);
    OK(cudaFree(p));
    BLAS(cublasLtDestroy(blas));
}

/* ------------------------------------------------------------------------------------------------
 * NCCL: each rank is a process forked before anything else happened here. */

#define NCCL(call) CHECK((call) == ncclSuccess)

template <class T> static T *ramp(size_t n, int rank)
{
    std::vector<T> v(n);
    for (size_t i = 0; i < n; i++)
        v[i] = T(float((i * 13 + size_t(rank) * 7) % 50));
    return device(v);
}
static float ramp_at(size_t i, int rank)
{
    return float((i * 13 + size_t(rank) * 7) % 50);
}

template <class T>
static void all_reduce(ncclComm_t c, cudaStream_t s, int rank, int ranks, size_t n,
                       ncclDataType_t type)
{
    T *x = ramp<T>(n, rank);
    NCCL(ncclAllReduce(x, x, n, type, ncclSum, c, s));
    OK(cudaStreamSynchronize(s));
    std::vector<T> got = host(x, n);
    int wrong = 0;
    for (size_t i = 0; i < n; i++) {
        float sum = 0;
        for (int r = 0; r < ranks; r++)
            sum += ramp_at(i, r);
        wrong += float(got[i]) != sum;
    }
    CHECK(wrong == 0, "%d of %zu wrong, type %d", wrong, n, int(type));
    OK(cudaFree(x));
}

static void nccl_rank(int rank, int ranks, ncclUniqueId id)
{
    ncclComm_t c;
    cudaStream_t s, t;
    NCCL(ncclCommInitRank(&c, ranks, id, rank));
    OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    OK(cudaStreamCreateWithFlags(&t, cudaStreamNonBlocking));
    int count = 0, me = -1;
    NCCL(ncclCommCount(c, &count));
    NCCL(ncclCommUserRank(c, &me));
    CHECK(count == ranks && me == rank);
    all_reduce<float>(c, s, rank, ranks, 3, ncclFloat32);
    all_reduce<float>(c, s, rank, ranks, 700001, ncclFloat32); /* several rounds */
    all_reduce<__nv_bfloat16>(c, s, rank, ranks, 1000, ncclBfloat16);
    all_reduce<__half>(c, s, rank, ranks, 1000, ncclFloat16);
    all_reduce<double>(c, s, rank, ranks, 1000, ncclFloat64);
    all_reduce<int>(c, s, rank, ranks, 1000, ncclInt32);
    all_reduce<uint64_t>(c, s, rank, ranks, 1000, ncclUint64);

    size_t n = 300000, all = n * size_t(ranks), wrong = 0;
    float *x = ramp<float>(all, rank), *y = device(std::vector<float>(all));
    float *mine = x + n * size_t(rank); /* in place, as FSDP does */
    NCCL(ncclReduceScatter(x, mine, n, ncclFloat32, ncclSum, c, s));
    NCCL(ncclAllGather(mine, x, n, ncclFloat32, c, t)); /* another stream, same communicator: */
    OK(cudaDeviceSynchronize());                        /* in order of the calls, as NCCL does */
    std::vector<float> got = host(x, all);
    for (size_t i = 0; i < all; i++) {
        float sum = 0;
        for (int r = 0; r < ranks; r++)
            sum += ramp_at(i, r);
        wrong += got[i] != sum;
    }
    CHECK(wrong == 0, "%zu wrong", wrong);
    OK(cudaMemset(y, rank + 1, all * 4));
    OK(cudaDeviceSynchronize()); /* a non-blocking stream does not wait for the memset */
    NCCL(ncclBroadcast(y, y, all, ncclFloat32, ranks - 1, c, s));
    OK(cudaStreamSynchronize(s));
    CHECK(host((char *)y, all * 4)[all * 4 - 1] == char(ranks));

    /* a ring: everyone sends to the right before receiving from the left */
    NCCL(ncclGroupStart());
    NCCL(ncclSend(x, all, ncclFloat32, (rank + 1) % ranks, c, s));
    NCCL(ncclRecv(y, all, ncclFloat32, (rank + ranks - 1) % ranks, c, s));
    NCCL(ncclGroupEnd());
    OK(cudaStreamSynchronize(s));
    CHECK(host(y, all) == got);

    /* parts of the ranks, in the order of their keys; the first part is everyone but rank 0 */
    ncclComm_t part, none;
    NCCL(ncclCommSplit(c, rank == 0 ? NCCL_SPLIT_NOCOLOR : 5, -rank, &part, nullptr));
    CHECK(!part == (rank == 0));
    if (part) {
        float *mine = device(std::vector<float>(1, float(rank)));
        float *all_of = device(std::vector<float>(size_t(ranks - 1)));
        NCCL(ncclCommCount(part, &count));
        NCCL(ncclCommUserRank(part, &me));
        CHECK(count == ranks - 1 && me == ranks - 1 - rank, "%d of %d", me, count);
        NCCL(ncclAllGather(mine, all_of, 1, ncclFloat32, part, s));
        OK(cudaStreamSynchronize(s));
        for (int r = 0; r < count; r++)
            CHECK(host(all_of, size_t(count))[size_t(r)] == float(ranks - 1 - r));
        NCCL(ncclCommDestroy(part));
        OK(cudaFree(mine));
        OK(cudaFree(all_of));
    }
    NCCL(ncclCommSplit(c, rank, 0, &none, nullptr)); /* of one rank each */
    NCCL(ncclCommCount(none, &count));
    CHECK(count == 1);
    NCCL(ncclCommDestroy(none));

    /* captured, replayed */
    cudaGraph_t g;
    cudaGraphExec_t exec;
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    launch(add, 1, 32, 0, s, x, 1.0f, 1);
    NCCL(ncclAllReduce(x, y, 1, ncclFloat32, ncclSum, c, s));
    OK(cudaStreamEndCapture(s, &g));
    OK(cudaGraphInstantiate(&exec, g, 0));
    float first = got[0];
    for (int i = 1; i <= 3; i++) {
        OK(cudaGraphLaunch(exec, s));
        OK(cudaStreamSynchronize(s));
        CHECK(host(y, 1)[0] == float(ranks) * (first + float(i)));
    }
    OK(cudaGraphExecDestroy(exec));
    OK(cudaGraphDestroy(g));

    /* the last rank does not come; the others must be told instead of waiting for ever */
    ncclResult_t error;
    NCCL(ncclCommGetAsyncError(c, &error));
    CHECK(error == ncclSuccess);
    if (rank < ranks - 1) {
        setenv("VIT_STANDIN_NCCL_TIMEOUT", "1", 1);
        NCCL(ncclAllReduce(x, y, 1, ncclFloat32, ncclSum, c, s));
        OK(cudaStreamSynchronize(s));
        NCCL(ncclCommGetAsyncError(c, &error));
        CHECK(error == ncclSystemError || error == ncclRemoteError, "%d", int(error));
        NCCL(ncclCommAbort(c));
    } else {
        NCCL(ncclCommDestroy(c));
    }
    OK(cudaFree(x));
    OK(cudaFree(y));
    OK(cudaStreamDestroy(s));
    OK(cudaStreamDestroy(t));
}
/* Ranks that disagree about the size. */
static void nccl_mismatch(int rank, int ranks, ncclUniqueId id)
{
    ncclComm_t c;
    NCCL(ncclCommInitRank(&c, ranks, id, rank));
    float *x = device(std::vector<float>(8));
    NCCL(ncclAllReduce(x, x, size_t(4 + rank), ncclFloat32, ncclSum, c, nullptr));
    OK(cudaDeviceSynchronize());
    ncclResult_t error;
    NCCL(ncclCommGetAsyncError(c, &error));
    CHECK(error == ncclInvalidUsage || error == ncclRemoteError, "%d", int(error));
    NCCL(ncclCommAbort(c));
    OK(cudaFree(x));
}
static void test_nccl(int ranks, void (*rank_main)(int, int, ncclUniqueId))
{
    ncclUniqueId id;
    NCCL(ncclGetUniqueId(&id));
    fflush(stdout);
    std::vector<pid_t> children;
    for (int r = 0; r < ranks; r++) {
        pid_t p = fork();
        if (p == 0) {
            check_passed = check_failed = 0;
            rank_main(r, ranks, id);
            fflush(stdout);
            _exit(check_failed > 0 || check_passed == 0);
        }
        children.push_back(p);
    }
    for (int r = 0; r < ranks; r++) {
        int status = -1;
        waitpid(children[size_t(r)], &status, 0);
        CHECK(status == 0, "rank %d of %d: status %x", r, ranks, unsigned(status));
    }
    CHECK(access(("/dev/shm" + std::string(id.internal)).c_str(), F_OK) != 0,
          "shared memory was left behind");
}

/* ------------------------------------------------------------------------------------------------
 * Scenarios: programs with a mistake. */

__global__ void __launch_bounds__(64, 2) bounded(float *x)
{
    launched_within<64>();
    x[threadIdx.x] = 1;
}
__global__ void some_leave(float *x)
{
    if (threadIdx.x > 40)
        return;
    __syncthreads();
    x[0] = 1;
}
__global__ void two_barriers(float *x)
{
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    x[0] = 1;
}
__global__ void waits_for_ever(float *x)
{
    if (threadIdx.x < 32)
        __syncthreads();
    else
        x[1] = __shfl_sync(threadIdx.x == 32 ? 3u : 3u, x[0], 0);
}
__global__ void two_shuffles(float *x)
{
    if (threadIdx.x % 2)
        x[1] = __shfl_xor_sync(0xFFFFFFFFu, x[0], 1);
    else
        x[0] = __shfl_down_sync(0xFFFFFFFFu, x[1], 1);
}
__global__ void overrun(float *x)
{
    float *s = dynamic_smem<float>();
    s[threadIdx.x + 1] = 1;
    x[0] = s[0];
}
__global__ void all_write(float *x)
{
    x[0] = float(threadIdx.x);
}
__global__ void blocks_write(float *x)
{
    if (threadIdx.x == 3)
        x[0] = float(blockIdx.x);
}
/* Through shared memory within a warp: a shuffle is no barrier for memory. */
template <bool barrier> __global__ void warp_pass(float *x)
{
    float *s = dynamic_smem<float>();
    s[threadIdx.x] = 1;
    if (barrier)
        __syncwarp();
    else
        __shfl_sync(0xFFFFFFFFu, 1, 0);
    x[blockIdx.x * 32 + threadIdx.x] = s[threadIdx.x ^ 1];
}

struct Inside {
    int n;
    float *x;
};
__global__ void add_inside(Inside a)
{
    if (int(threadIdx.x) < a.n)
        a.x[threadIdx.x] += 1;
}
static int scenario(const std::string &name)
{
    if (name == "count") {
        int n = -1;
        cudaError_t e = cudaGetDeviceCount(&n);
        printf("%d %s\n", n, cudaGetErrorName(e));
        return e != cudaSuccess;
    }
    if (name == "kernel") {
        cudaLaunchConfig_t c = {};
        c.gridDim = c.blockDim = dim3(1);
        cudaError_t e = cudaLaunchKernelEx(&c, all_write, nullptr);
        printf("%s\n", cudaGetErrorName(e));
        return e != cudaSuccess;
    }
    float *x = device(std::vector<float>(4096)), unpinned[4];
    if (name == "bounded" || name == "bounded_well")
        launch(bounded, 1, name == "bounded" ? 96 : 64, 0, nullptr, x);
    else if (name == "some_leave")
        launch(some_leave, 1, 64, 0, nullptr, x);
    else if (name == "two_barriers")
        launch(two_barriers, 1, 64, 0, nullptr, x);
    else if (name == "waits_for_ever")
        launch(waits_for_ever, 1, 64, 0, nullptr, x);
    else if (name == "two_shuffles")
        launch(two_shuffles, 1, 32, 0, nullptr, x);
    else if (name == "overrun")
        launch(overrun, 1, 64, 64 * 4, nullptr, x);
    else if (name == "unpinned")
        cudaMemcpyAsync(x, unpinned, 16, cudaMemcpyHostToDevice, nullptr);
    else if (name == "pageable")
        launch(add, 1, 32, 0, nullptr, unpinned, 1.0f, 4);
    else if (name == "pageable_inside")
        launch(add_inside, 1, 32, 0, nullptr, Inside{4, unpinned});
    else if (name == "host_touch")
        printf("%f\n", double(x[0]));
    else if (name == "beyond")
        launch(warp_pass<true>, 1, 32, 32 * 4, nullptr, x + 4096 - 16);
    else if (name == "race_barrier")
        launch(pass_on<false, true>, 1, 64, 64 * 4, nullptr, x, 1);
    else if (name == "race_reuse")
        launch(pass_on<true, false>, 1, 64, 64 * 4, nullptr, x, 2);
    else if (name == "race_global")
        launch(all_write, 1, 64, 0, nullptr, x);
    else if (name == "race_blocks")
        launch(blocks_write, 8, 32, 0, nullptr, x);
    else if (name == "race_warp")
        launch(warp_pass<false>, 1, 32, 32 * 4, nullptr, x);
    else if (name == "no_race_warp")
        launch(warp_pass<true>, 8, 32, 32 * 4, nullptr, x);
    else if (name == "no_race_reuse")
        launch(pass_on<true, true>, 8, 64, 64 * 4, nullptr, x, 5);
    else
        return 2;
    OK(cudaDeviceSynchronize());
    OK(cudaFree(x));
    return 0;
}

static void test_scenarios()
{
    must_die("some_leave", "some_leave");
    must_die("some_leave", "have left");
    must_die("bounded", "larger than its __launch_bounds__");
    must_die("two_barriers", "another barrier");
    must_die("waits_for_ever", "cuda_on_cpu: kernel");
    must_die("two_shuffles", "different points");
    must_die("unpinned", "not pinned");
    must_die("pageable", "not pinned");
#ifdef STANDIN_CLEAR_PADDING
    must_die("pageable_inside", "not pinned");
#endif
    must_die("host_touch", asan || tsan ? "Sanitizer" : "host code touched");
    must_die("count", "0 cudaErrorNoDevice", "VIT_STANDIN_NO_DEVICE=1");
    must_die("count", "cudaErrorInsufficientDriver", "VIT_STANDIN_OLD_DRIVER=1");
    must_die("kernel", "cudaErrorNoKernelImageForDevice", "VIT_STANDIN_NO_KERNEL=1");
    must_die("some_leave", "cudaMalloc", "VIT_STANDIN_MEMORY=16383"); /* it needs 16 KiB */
    std::string said;
    CHECK(run_scenario("", "bounded_well", &said), "said: %.600s", said.c_str());
    if (!tsan) {
        must_die("overrun", asan ? "AddressSanitizer" : "beyond its dynamic shared memory");
        must_die("beyond", asan ? "AddressSanitizer" : "wrote just outside");
    }
    if (!tsan) /* races that no order shows need ThreadSanitizer: make races */
        return;
    for (const char *race :
         {"race_barrier", "race_reuse", "race_global", "race_blocks", "race_warp"})
        must_die(race, "data race");
    for (const char *race : {"no_race_warp", "no_race_reuse"}) {
        bool well = run_scenario("", race, &said);
        CHECK(well, "%s said: %.600s", race, said.c_str());
    }
}

int main(int argc, char **argv)
{
    if (argc > 1 && access(argv[1], F_OK)) /* the path of the fixtures is for other tests */
        return scenario(argv[1]);
    test_nccl(2, nccl_rank);
    test_nccl(3, nccl_rank);
    test_nccl(2, nccl_mismatch);
    test_sums();
    test_warp_functions();
    test_product<__nv_bfloat16, false>();
    test_product<__nv_bfloat16, true>();
    test_product<__half, false>();
    test_product<__half, true>();
    test_copies();
    test_missing_barriers();
    test_grids();
    test_narrow();
    test_late_streams();
    test_events();
    test_legacy_stream();
    test_graphs();
    test_capture_rules();
    test_memory();
    test_pinned();
    test_cublas();
    test_scenarios();
    return check_report();
}
