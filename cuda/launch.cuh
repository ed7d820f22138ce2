/* launch.cuh - how the CUDA backend starts kernels and finds its shared memory.
 *
 * Kernels are started by a function call, never with <<<>>>, so that the same source is ordinary
 * C++ for the stand-ins of test/cuda_on_cpu. It does not choose grids or streams.
 */
#pragma once

#include <cuda_runtime.h>

#include <mutex>
#include <unordered_map>
#include <utility>

/* Defined by the backend: returns if `e` is cudaSuccess, else says what failed and ends the run. */
void cuda_check(cudaError_t e, const char *what);

/* Blocks may use more than 48 KiB of shared memory only after the kernel was told so, once. */
inline void launch_allow_smem(const void *kernel, size_t bytes)
{
    static std::mutex lock;
    static std::unordered_map<const void *, size_t> allowed;
    std::lock_guard<std::mutex> hold(lock);
    size_t &most = allowed[kernel];
    if (bytes <= most)
        return;
    cuda_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)),
        "cudaFuncSetAttribute");
    most = bytes;
}

/* Starts a kernel as `config` says, with shared memory allowed and errors checked. */
template <class... P, class... A>
void launch_as(const cudaLaunchConfig_t &config, void (*kernel)(P...), A &&...args)
{
    if (config.dynamicSmemBytes > 48 * 1024)
        launch_allow_smem((const void *)kernel, config.dynamicSmemBytes);
    cudaError_t e = cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...);
    if (e != cudaSuccess) {
        const char *name = nullptr;
#if CUDART_VERSION >= 12030 /* before, nobody knows it */
        if (cudaFuncGetName(&name, (const void *)kernel) != cudaSuccess)
            name = nullptr;
#endif
        cuda_check(e, name ? name : "a kernel");
    }
}

/* kernel<<<grid, block, smem_bytes, stream>>>(args...), checked. */
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem_bytes, cudaStream_t stream,
            A &&...args)
{
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = smem_bytes;
    config.stream = stream;
    launch_as(config, kernel, std::forward<A>(args)...);
}

/* The same with an attribute of the launch */
template <class... P, class... A>
void launch_with(cudaLaunchAttribute attribute, void (*kernel)(P...), dim3 grid, dim3 block,
                 size_t smem_bytes, cudaStream_t stream, A &&...args)
{
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = smem_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    launch_as(config, kernel, std::forward<A>(args)...);
}

/* The same in clusters of so many neighbouring blocks, which divide the grid (cuda/sm90.cuh). */
inline cudaLaunchAttribute cluster_attribute(unsigned blocks)
{
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {blocks, 1, 1};
    return cluster;
}
template <class... P, class... A>
void launch_cluster(unsigned blocks, void (*kernel)(P...), dim3 grid, dim3 block, size_t smem_bytes,
                    cudaStream_t stream, A &&...args)
{
    launch_with(cluster_attribute(blocks), kernel, grid, block, smem_bytes, stream,
                std::forward<A>(args)...);
}

/* The same for a kernel that may begin before the one in front of it in the stream has ended: until
 * it calls dependent_wait() (cuda/sm90.cuh), it neither reads nor overwrites what that one uses. */
template <class... P, class... A>
void launch_dependent(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem_bytes,
                      cudaStream_t stream, A &&...args)
{
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    launch_with(early, kernel, grid, block, smem_bytes, stream, std::forward<A>(args)...);
}

/* First in a kernel with launch bounds of MOST threads: a GPU refuses a larger block, and the
 * stand-in sees it here. */
template <int MOST> __device__ __forceinline__ void launched_within()
{
#ifdef CUDA_ON_CPU
    standin::launched_within(MOST);
#endif
}

/* The block's dynamic shared memory, aligned to 128 bytes. Every T names the same memory. */
template <class T> __device__ __forceinline__ T *dynamic_smem()
{
#ifdef CUDA_ON_CPU
    return static_cast<T *>(standin::shared_memory());
#else
    extern __shared__ __align__(128) unsigned char launch_dynamic_smem[];
    return reinterpret_cast<T *>(launch_dynamic_smem);
#endif
}
