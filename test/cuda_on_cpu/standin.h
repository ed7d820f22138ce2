/* standin.h - what the stand-in's own files share: work in queues, random choices, settings.
 *
 * Not for users of the stand-in. kernel.cpp runs a kernel; stream.cpp owns the queues; cublaslt.cpp
 * and nccl.cpp put their work into them.
 */
#ifndef STANDIN_H
#define STANDIN_H

#include "cuda_runtime.h"

#include <functional>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define STANDIN_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define STANDIN_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define STANDIN_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define STANDIN_TSAN 1
#endif
#endif

namespace standin
{

/* Ends the process: the program under test broke a rule that CUDA would punish at random. */
[[noreturn]] void die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

long long setting(const char *name, long long otherwise); /* an environment variable */

/* Seeded choices (splitmix64). */
struct Random {
    uint64_t state;
    uint64_t next()
    {
        uint64_t z = (state += 0x9E3779B97F4A7C15u);
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        return z ^ z >> 31;
    }
    unsigned below(unsigned n)
    {
        return unsigned((next() >> 32) * n >> 32);
    }
};

/* kernel.cpp */
struct Kernel {
    std::function<void()> thread;
    const void *function;
    dim3 grid, block;
    size_t smem;
    uint64_t seed;
    unsigned cluster = 1; /* blocks, neighbours in x */
    long long done = -1;  /* a cluster that has run already */
};
enum { MAX_CLUSTER = 8 }; /* what every GPU that has clusters can */
void run_kernel(const Kernel &k);
/* Lets one cluster of `k` begin before `others`, which it waits for in dependent_wait(); both have
 * run when this returns. Returns the cluster's number. */
long long run_early(const Kernel &k, const std::function<void()> &others);
const char *function_name(const void *function);

/* Work of a queue: returns true when done, false to be asked again (NCCL waits for a peer). It is
 * copied for every replay of a graph, so what it changes it must hold by value. */
using Work = std::function<bool()>;
struct Op;
/* Works of one chain run in the order in which they were queued, whatever their streams. */
struct Chain {
    std::shared_ptr<Op> last;
};
cudaError_t enqueue(cudaStream_t s, Work work, Chain *chain = nullptr);
cudaError_t synchronous_call(); /* an error if a capture forbids host synchronisation now */
void drain();                   /* run everything queued */
/* From now on a thread runs what is queued while the program is elsewhere: other processes may wait
 * for it. */
void progress();

/* The highest (least) priority with which a graph's nodes have been replayed: a node has its stream's
 * where cudaGraphInstantiate was asked for that. Nothing here runs by it. */
int replayed_priority();

/* Compute capability times ten. */
int capability();
/* Graphs that are ready to be launched. */
int graphs();
/* Whether nothing has been queued since the host last waited for something. */
bool idle();
/* How often an algorithm of cuBLASLt's has been launched; of all: with an epilogue of GELU. */
enum { LT_ALGOS = 3 };
extern int products[LT_ALGOS], gelu_products;

/* Whether [p, p+bytes) lies in one allocation of device memory. */
bool is_device(const void *p, size_t bytes);

} // namespace standin

#endif
