/* cuda_runtime.h - a stand-in for CUDA's header: CUDA code as ordinary C++20, run on the CPU.
 *
 * Compiled with -Itest/cuda_on_cpu in front, a CUDA source that launches kernels by function call
 * (cuda/launch.cuh) and wraps its PTX (cuda/ptx.cuh) becomes a host program. Names, signatures and
 * meaning are CUDA's; only what a training backend uses is here, and a missing name is a compile
 * error. kernel.cpp runs blocks (threads are fibers), stream.cpp holds memory, streams, events and
 * graphs, and README.md says what is stricter than CUDA, what is not modelled, and the switches.
 *
 * Not here: textures, cooperative groups, clusters, float atomics (sums must be deterministic).
 */
#ifndef CUDA_ON_CPU_RUNTIME_H
#define CUDA_ON_CPU_RUNTIME_H

#ifndef CUDA_ON_CPU
#define CUDA_ON_CPU 1
#endif
#define CUDART_VERSION 13000

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

#define __host__
#define __device__
#define __global__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n)    alignas(n)
/* A block runs on one OS thread. It is not poisoned: dynamic_smem() is. */
#define __shared__ static thread_local

/* ------------------------------------------------------------------------------------------------
 * Vector types: CUDA's alignments, so that UBSan sees misaligned vector accesses. */

/* clang-format off */
#define STANDIN_VECTORS(T, name, a2, a4)                                                          \
    struct name##1 { T x; };                                                                      \
    struct alignas(a2) name##2 { T x, y; };                                                       \
    struct name##3 { T x, y, z; };                                                                \
    struct alignas(a4) name##4 { T x, y, z, w; };                                                 \
    inline name##1 make_##name##1(T x) { return {x}; }                                            \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                    \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                            \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
STANDIN_VECTORS(signed char, char, 2, 4)
STANDIN_VECTORS(unsigned char, uchar, 2, 4)
STANDIN_VECTORS(short, short, 4, 8)
STANDIN_VECTORS(unsigned short, ushort, 4, 8)
STANDIN_VECTORS(int, int, 8, 16)
STANDIN_VECTORS(unsigned, uint, 8, 16)
STANDIN_VECTORS(long long, longlong, 16, 16)
STANDIN_VECTORS(unsigned long long, ulonglong, 16, 16)
STANDIN_VECTORS(float, float, 8, 16)
STANDIN_VECTORS(double, double, 16, 16)
#undef STANDIN_VECTORS
/* clang-format on */

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z)
    {
    }
};

extern constinit thread_local uint3 threadIdx, blockIdx;
extern constinit thread_local dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

/* ------------------------------------------------------------------------------------------------
 * Meeting points (kernel.cpp). A thread leaves its operands behind and stops; when the last thread
 * of the warp or block arrives, that one does the work for all of them at once. */

#define STANDIN_NO_TSAN \
    __attribute__((no_sanitize("thread"))) /* for the stand-in's own exchanges */

namespace standin
{
using WarpOp = void (*)(void *const *operands, unsigned mask);
/* All existing lanes of `mask` meet; `fence`: they also see each other's memory afterwards. */
void meet_warp(unsigned mask, const char *what, int line, void *operand, WarpOp op, bool fence);
void meet_block(const char *what, int line);
int meet_block_count(bool predicate, const char *what, int line); /* how many threads said true */
unsigned lane();                                                  /* of the calling thread */
unsigned live_lanes();                                            /* of its warp */
void *shared_memory();                                            /* of its block */
void memory_fence();
void copy_issue(void *to, const void *from, unsigned bytes, unsigned from_bytes); /* cp.async */
void copy_commit();
void copy_wait(unsigned groups_left, bool uncommitted_too);

template <class T> struct Shuffle {
    T value, result;
    unsigned source;
    STANDIN_NO_TSAN static void exchange(void *const *operands, unsigned mask)
    {
        for (unsigned i = 0; i < 32; i++) {
            if (!(mask >> i & 1))
                continue;
            Shuffle *to = static_cast<Shuffle *>(operands[i]);
            if (mask >> to->source & 1)
                to->result = static_cast<Shuffle *>(operands[to->source])->value;
        }
    }
};
template <class T> T shuffle(unsigned mask, T value, unsigned source, const char *what, int line)
{
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles no such type");
    Shuffle<T> s = {value, {}, source};
    memset(static_cast<void *>(&s.result), 0xFF, sizeof s.result); /* from a lane not there */
    meet_warp(mask, what, line, &s, Shuffle<T>::exchange, false);
    return s.result;
}
unsigned ballot(unsigned mask, bool predicate, const char *what, int line);
} // namespace standin

/* The extra parameter `line` is never given: it tells the meeting points of a kernel apart. */
inline void __syncthreads(int line = __builtin_LINE())
{
    standin::meet_block("__syncthreads", line);
}
inline int __syncthreads_count(int p, int line = __builtin_LINE())
{
    return standin::meet_block_count(p, "__syncthreads_count", line);
}
inline int __syncthreads_or(int p, int line = __builtin_LINE())
{
    return standin::meet_block_count(p, "__syncthreads_or", line) > 0;
}
inline int __syncthreads_and(int p, int line = __builtin_LINE())
{
    return standin::meet_block_count(!p, "__syncthreads_and", line) == 0;
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, int line = __builtin_LINE())
{
    standin::meet_warp(mask, "__syncwarp", line, nullptr, nullptr, true);
}
template <class T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32, int line = __builtin_LINE())
{
    unsigned first = standin::lane() & ~unsigned(width - 1);
    return standin::shuffle(mask, v, first + (unsigned(source) & unsigned(width - 1)),
                            "__shfl_sync", line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int with, int width = 32, int line = __builtin_LINE())
{
    unsigned lane = standin::lane(), source = lane ^ unsigned(with);
    return standin::shuffle(mask, v, source > (lane | unsigned(width - 1)) ? lane : source,
                            "__shfl_xor_sync", line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, int line = __builtin_LINE())
{
    unsigned lane = standin::lane(), source = lane + by;
    return standin::shuffle(mask, v, source > (lane | unsigned(width - 1)) ? lane : source,
                            "__shfl_down_sync", line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, int line = __builtin_LINE())
{
    unsigned lane = standin::lane(), first = lane & ~unsigned(width - 1);
    return standin::shuffle(mask, v, lane < first + by ? lane : lane - by, "__shfl_up_sync", line);
}
inline unsigned __ballot_sync(unsigned mask, int p, int line = __builtin_LINE())
{
    return standin::ballot(mask, p, "__ballot_sync", line);
}
inline int __any_sync(unsigned mask, int p, int line = __builtin_LINE())
{
    return standin::ballot(mask, p, "__any_sync", line) != 0;
}
inline int __all_sync(unsigned mask, int p, int line = __builtin_LINE())
{
    return standin::ballot(mask, !p, "__all_sync", line) == 0;
}
inline unsigned __activemask()
{
    return standin::live_lanes();
}

/* ------------------------------------------------------------------------------------------------
 * Memory and arithmetic of device code. */

inline void __threadfence()
{
    standin::memory_fence();
}
inline void __threadfence_block()
{
    standin::memory_fence();
}
inline void __threadfence_system()
{
    standin::memory_fence();
}
[[noreturn]] inline void __trap()
{
    abort();
}

/* Atomics order nothing but themselves, as on the device. */
template <class T, class V> inline T standin_atomic_max(T *p, V v, bool min)
{
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while ((min ? T(v) < old : old < T(v)) &&
           !__atomic_compare_exchange_n(p, &old, T(v), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
/* clang-format off */
#define STANDIN_ATOMICS(T)                                                                        \
    inline T atomicAdd(T *p, T v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }          \
    inline T atomicExch(T *p, T v) { return __atomic_exchange_n(p, v, __ATOMIC_RELAXED); }        \
    inline T atomicMax(T *p, T v) { return standin_atomic_max(p, v, false); }                     \
    inline T atomicMin(T *p, T v) { return standin_atomic_max(p, v, true); }                      \
    inline T atomicOr(T *p, T v) { return __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }            \
    inline T atomicCAS(T *p, T c, T v) {                                                          \
        __atomic_compare_exchange_n(p, &c, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);         \
        return c;                                                                                 \
    }
STANDIN_ATOMICS(int)
STANDIN_ATOMICS(unsigned)
STANDIN_ATOMICS(unsigned long long)
#undef STANDIN_ATOMICS
inline unsigned atomicInc(unsigned *p, unsigned limit)
{
    unsigned old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(p, &old, old >= limit ? 0 : old + 1, false,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}

template <class T> inline T __ldg(const T *p) { return *p; }
template <class T> inline T __ldcs(const T *p) { return *p; }
template <class T> inline T __ldcg(const T *p) { return *p; }
template <class T> inline T __ldca(const T *p) { return *p; }
template <class T> inline T __ldlu(const T *p) { return *p; }
template <class T> inline void __stcs(T *p, T v) { *p = v; }
template <class T> inline void __stcg(T *p, T v) { *p = v; }
template <class T> inline void __stwb(T *p, T v) { *p = v; }
template <class T> inline void __stwt(T *p, T v) { *p = v; }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return float(1.0 / sqrt(double(x))); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
/* volatile: rounded here, and never fused with what follows */
inline float __fadd_rn(float x, float y) { volatile float r = x + y; return r; }
inline float __fsub_rn(float x, float y) { volatile float r = x - y; return r; }
inline float __fmul_rn(float x, float y) { volatile float r = x * y; return r; }

inline unsigned __umulhi(unsigned x, unsigned y) { return unsigned((uint64_t(x) * y) >> 32); }
inline int __mulhi(int x, int y) { return int((int64_t(x) * y) >> 32); }
inline int __float_as_int(float x) { int r; memcpy(&r, &x, 4); return r; }
inline unsigned __float_as_uint(float x) { unsigned r; memcpy(&r, &x, 4); return r; }
inline float __int_as_float(int x) { float r; memcpy(&r, &x, 4); return r; }
inline float __uint_as_float(unsigned x) { float r; memcpy(&r, &x, 4); return r; }
inline long long __double_as_longlong(double x) { long long r; memcpy(&r, &x, 8); return r; }
inline double __longlong_as_double(long long x) { double r; memcpy(&r, &x, 8); return r; }
inline int __float2int_rn(float x) { return int(rintf(x)); }
inline int __float2int_rz(float x) { return int(x); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) /* bytes of y:x, lowest first */
{
    const unsigned long long both = (unsigned long long)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++)
        r |= unsigned(both >> 8 * (s >> 4 * i & 7) & 0xFF) << 8 * i;
    return r;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

#define STANDIN_MIN_MAX(T)                                                                        \
    inline T min(T a, T b) { return b < a ? b : a; }                                              \
    inline T max(T a, T b) { return a < b ? b : a; }
STANDIN_MIN_MAX(int)
STANDIN_MIN_MAX(unsigned)
STANDIN_MIN_MAX(long)
STANDIN_MIN_MAX(unsigned long)
STANDIN_MIN_MAX(long long)
STANDIN_MIN_MAX(unsigned long long)
#undef STANDIN_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
/* clang-format on */

/* ------------------------------------------------------------------------------------------------
 * Runtime API (stream.cpp). Numbers are CUDA's. */

/* clang-format off */
#define STANDIN_ERRORS(X)                                                                         \
    X(cudaSuccess, 0, "no error")                                                                 \
    X(cudaErrorInvalidValue, 1, "invalid argument")                                               \
    X(cudaErrorMemoryAllocation, 2, "out of memory")                                              \
    X(cudaErrorInitializationError, 3, "initialization error")                                    \
    X(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")                         \
    X(cudaErrorInsufficientDriver, 35,                                                            \
      "CUDA driver version is insufficient for CUDA runtime version")                             \
    X(cudaErrorInvalidDeviceFunction, 98, "invalid device function")                              \
    X(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                               \
    X(cudaErrorInvalidDevice, 101, "invalid device ordinal")                                      \
    X(cudaErrorNoKernelImageForDevice, 209,                                                       \
      "no kernel image is available for execution on the device")                                 \
    X(cudaErrorInvalidResourceHandle, 400, "invalid resource handle")                             \
    X(cudaErrorNotReady, 600, "device not ready")                                                 \
    X(cudaErrorIllegalAddress, 700, "an illegal memory access was encountered")                   \
    X(cudaErrorHostMemoryAlreadyRegistered, 712,                                                  \
      "part or all of the requested memory range is already mapped")                              \
    X(cudaErrorHostMemoryNotRegistered, 713,                                                      \
      "pointer does not correspond to a registered memory region")                                \
    X(cudaErrorLaunchFailure, 719, "unspecified launch failure")                                  \
    X(cudaErrorNotPermitted, 800, "operation not permitted")                                      \
    X(cudaErrorNotSupported, 801, "operation not supported")                                      \
    X(cudaErrorStreamCaptureUnsupported, 900, "operation not permitted when stream is capturing") \
    X(cudaErrorStreamCaptureInvalidated, 901,                                                     \
      "operation failed due to a previous error during capture")                                  \
    X(cudaErrorStreamCaptureMerge, 902,                                                           \
      "operation would result in a merge of separate capture sequences")                          \
    X(cudaErrorStreamCaptureUnmatched, 903,                                                       \
      "capture was not ended in the same stream as it began")                                     \
    X(cudaErrorStreamCaptureUnjoined, 904, "capturing stream has unjoined work")                  \
    X(cudaErrorStreamCaptureIsolation, 905,                                                       \
      "dependency created on uncaptured work in another stream")                                  \
    X(cudaErrorStreamCaptureImplicit, 906,                                                        \
      "operation would make the legacy stream depend on a capturing blocking stream")             \
    X(cudaErrorCapturedEvent, 907,                                                                \
      "operation not permitted on an event last recorded in a capturing stream")                  \
    X(cudaErrorStreamCaptureWrongThread, 908,                                                     \
      "attempt to terminate a thread-local capture sequence from another thread")                 \
    X(cudaErrorInvalidClusterSize, 912, "cluster size is invalid")                                \
    X(cudaErrorUnknown, 999, "unknown error")
enum cudaError {
#define X(name, number, text) name = number,
    STANDIN_ERRORS(X)
#undef X
};
typedef cudaError cudaError_t;
const char *cudaGetErrorName(cudaError_t e);
const char *cudaGetErrorString(cudaError_t e);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();

typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
typedef struct CUgraph_st *cudaGraph_t;
typedef struct CUgraphExec_st *cudaGraphExec_t;
#define cudaStreamLegacy ((cudaStream_t)0x1)

/* device */
enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1, cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrMultiProcessorCount = 16, cudaDevAttrL2CacheSize = 38,
    cudaDevAttrMaxThreadsPerMultiProcessor = 39, cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76, cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
struct cudaUUID_t { char bytes[16]; };
struct cudaDeviceProp {
    char name[256];
    cudaUUID_t uuid;
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerMultiprocessor, sharedMemPerBlockOptin;
    int regsPerBlock, warpSize, maxThreadsPerBlock, major, minor, multiProcessorCount;
    int memoryBusWidth, l2CacheSize, maxThreadsPerMultiProcessor, maxBlocksPerMultiProcessor;
    int ECCEnabled, pciBusID, pciDeviceID, pciDomainID, integrated;
};
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr what, int device);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
enum cudaDriverEntryPointQueryResult {
    cudaDriverEntryPointSuccess, cudaDriverEntryPointSymbolNotFound,
    cudaDriverEntryPointVersionNotSufficent
};
#define cudaEnableDefault 0
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags,
                                             cudaDriverEntryPointQueryResult *found = nullptr);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaDeviceReset();

/* memory */
enum cudaMemcpyKind {
    cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice, cudaMemcpyDefault
};
enum cudaMemoryType {
    cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice, cudaMemoryTypeManaged
};
struct cudaPointerAttributes {
    cudaMemoryType type;
    int device;
    void *devicePointer, *hostPointer;
};
#define cudaHostAllocDefault 0
#define cudaHostAllocPortable 1
#define cudaHostAllocMapped 2
#define cudaHostAllocWriteCombined 4
#define cudaHostRegisterDefault 0
#define cudaHostRegisterPortable 1
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocHost(void **p, size_t bytes, unsigned flags = 0);
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void *p);
template <class T> cudaError_t cudaMalloc(T **p, size_t n) { return cudaMalloc((void **)p, n); }
template <class T> cudaError_t cudaMallocHost(T **p, size_t n, unsigned flags = 0)
{
    return cudaMallocHost((void **)p, n, flags);
}
template <class T> cudaError_t cudaHostAlloc(T **p, size_t n, unsigned flags)
{
    return cudaHostAlloc((void **)p, n, flags);
}
cudaError_t cudaMemGetInfo(size_t *free, size_t *total);
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t s = nullptr);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t s = nullptr);
cudaError_t cudaMemset(void *p, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s = nullptr);
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *a, const void *p);

/* streams and events */
#define cudaStreamDefault 0
#define cudaStreamNonBlocking 1
#define cudaEventDefault 0
#define cudaEventBlockingSync 1
#define cudaEventDisableTiming 2
typedef void (*cudaHostFn_t)(void *);
cudaError_t cudaStreamCreate(cudaStream_t *s);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority);
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaStreamQuery(cudaStream_t s);
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags = 0);
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *data);
cudaError_t cudaEventCreate(cudaEvent_t *e);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t e);
cudaError_t cudaEventQuery(cudaEvent_t e);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end);

/* capture and graphs */
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed
};
enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive, cudaStreamCaptureStatusInvalidated
};
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph);
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus *status);
enum cudaGraphInstantiateFlags { cudaGraphInstantiateFlagUseNodePriority = 8 };
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                 unsigned long long flags = 0);
cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t s);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);

/* kernels */
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
struct cudaFuncAttributes {
    size_t sharedSizeBytes, constSizeBytes, localSizeBytes;
    int maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion;
    int maxDynamicSharedSizeBytes, preferredShmemCarveout;
};
enum cudaLaunchAttributeID {
    cudaLaunchAttributeClusterDimension = 4,
    cudaLaunchAttributeProgrammaticStreamSerialization = 6
};
union cudaLaunchAttributeValue {
    char pad[64];
    struct {
        unsigned x, y, z;
    } clusterDim;
    int programmaticStreamSerializationAllowed;
};
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
};
cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute what, int value);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, const void *kernel);
cudaError_t cudaFuncGetName(const char **name, const void *kernel);
namespace standin {
/* Dies if a kernel's argument holds an address of the host's memory that is not pinned. Looking
 * inside of a struct takes a compiler that can clear what lies between its members. */
void check_words(const void *kernel, const void *argument, size_t bytes);
#if defined(__has_builtin)
#if __has_builtin(__builtin_clear_padding)
#define STANDIN_CLEAR_PADDING(p) __builtin_clear_padding(p)
#endif
#endif
template <class T> void check_argument(const void *kernel, T argument)
{
    bool clear = std::is_pointer<T>::value;
#ifdef STANDIN_CLEAR_PADDING
    STANDIN_CLEAR_PADDING(&argument);
    clear = true;
#endif
    if (clear)
        check_words(kernel, &argument, sizeof argument);
}
cudaError_t launch(const cudaLaunchConfig_t &c, const void *kernel, std::function<void()> thread);
void launched_within(int most); /* dies in a block that is larger */
cudaError_t occupancy(int *blocks, const void *kernel, int threads, size_t smem);
cudaError_t clusters(int *most, const cudaLaunchConfig_t &c);
} // namespace standin
template <class T> cudaError_t cudaFuncSetAttribute(T *kernel, cudaFuncAttribute what, int value)
{
    return cudaFuncSetAttribute((const void *)kernel, what, value);
}
template <class T> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, T *kernel)
{
    return cudaFuncGetAttributes(a, (const void *)kernel);
}
template <class T>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, T kernel, int threads,
                                                          size_t smem)
{
    return standin::occupancy(blocks, (const void *)kernel, threads, smem);
}
template <class T>
cudaError_t cudaOccupancyMaxActiveClusters(int *clusters, T *, const cudaLaunchConfig_t *c)
{
    return standin::clusters(clusters, *c);
}
/* clang-format on */

/* Arguments are copied now, as CUDA does, and once more for every thread. */
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *c, void (*kernel)(P...), A &&...args)
{
    std::tuple<P...> values(std::forward<A>(args)...);
    std::apply([&](const P &...value) {
        (standin::check_argument<P>((const void *)kernel, value), ...);
    }, values);
    return standin::launch(*c, (const void *)kernel,
                           [kernel, values] { std::apply(kernel, values); });
}

#endif
