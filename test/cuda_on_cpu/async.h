/* async.h - what happens in a cluster beside its threads: mbarriers, tensor copies, warp groups.
 *
 * Not for users of the stand-in. kernel.cpp runs the threads and asks here when none can go on;
 * async.cpp has barriers and copies, wgmma.cpp products.
 *
 * Asynchronous operations see shared memory through another proxy than the threads' loads and
 * stores: `proxy` is a second image of it. Copies write both; what threads have written gets there
 * only by fence.proxy.async. An asynchronous read of bytes that differ in the two is an error: the
 * fence is missing, or somebody wrote while the operation was under way.
 *
 * Blocks of a cluster share it all. Threads have numbers in the cluster, and so have bytes of
 * shared memory addresses: those of block r are r strides behind those that it knows.
 */
#ifndef STANDIN_ASYNC_H
#define STANDIN_ASYNC_H

#include "hopper.h"
#include "standin.h"

#include <deque>
#include <map>

namespace standin
{

/* ---- the cluster that runs on this OS thread (kernel.cpp) ---- */

struct Async;
struct Block {
    int threads;   /* of one block */
    int room;      /* numbers that each block's threads have: whole warp groups */
    int blocks;    /* of the cluster */
    char *smem;    /* the first one's */
    size_t bytes;  /* of one block */
    size_t stride; /* bytes from one block's to the next's */
    Random *random;
    Async *async; /* null: nothing asynchronous yet */
};
Block &block();
bool block_left(unsigned rank);        /* all of its threads have left the kernel */
int self();                            /* the running thread's number */
void says(const char *what, int line); /* where it is, for messages */
void stop();                           /* it goes on after go_on() */
void may_go(int thread);
/* For ThreadSanitizer: while there is one, it does not look at this thread, who does the stand-in's
 * work; what came before a release is before what follows an acquire. */
struct Unseen {
    Unseen();
    ~Unseen();
};
void order_release(void *address);
void order_acquire(void *address);
/* Ends the process; `thread` is who did it. */
[[noreturn]] void block_error(int thread, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- tensor maps ---- */

struct TensorMap { /* what CUtensorMap holds here */
    uint64_t magic;
    char *address;
    uint64_t size[4], stride[4]; /* elements, bytes */
    uint32_t box[4], dimensions, element;
    uint32_t swizzle; /* CUtensorMapSwizzle */
};

uint32_t box_bytes(const TensorMap &m);

/* ---- state ---- */

struct Mbarrier {
    uint32_t count, pending;
    long bytes; /* announced and not yet written */
    unsigned phase;
    bool fenced;                                   /* copies may use it */
    bool known;                                    /* other blocks may */
    std::vector<std::pair<int, unsigned>> waiting; /* threads, their parity */
};

/* A tensor copy that has not happened. */
struct Load {
    TensorMap map;
    Place place;
    uint32_t to, bar;
    int thread, line;
};
struct Store {
    TensorMap map;
    Place place;
    uint32_t from;
    int line;
    unsigned group;
    bool read;              /* shared memory has been: */
    std::vector<char> data; /* the box */
};

struct NamedBarrier {
    int expected, arrived;
    std::vector<int> waiting;
};

/* Registers of a warp group that products write, as a matrix [64][n]. */
struct Accumulator {
    int n;
    std::vector<float> m;
};
struct LateProduct {
    Product p;
    std::shared_ptr<Accumulator> d;
    std::vector<uint32_t> a; /* from registers: four of each thread */
    int issued, line;
    bool early;
};
struct WarpGroup {
    std::deque<LateProduct> products;
    unsigned long done; /* products computed: the number of the first in the queue */
};
/* A thread's own view. */
struct Flight { /* registers that products under way write */
    float *d;
    std::shared_ptr<Accumulator> m;
    unsigned long last; /* product */
};
struct Registers { /* A, as a product since the last fence has read it */
    const void *at;
    uint32_t a[4];
};
struct AsyncThread {
    std::vector<Store> stores;
    unsigned store_groups;
    bool fenced;                      /* wgmma.fence */
    unsigned long issued;             /* products */
    std::deque<unsigned long> groups; /* `issued` at each commit */
    std::vector<Flight> flights;
    std::vector<Registers> read;
    unsigned long waits_for; /* all before this product to be issued; 0: nothing */
    char detail[128];        /* of what it waits for */
};

enum Timing { LATE, AT_ONCE, SOMETIME };

struct Async {
    bool active;
    std::vector<char> proxy;
    Timing timing; /* of copies */
    std::map<uint32_t, Mbarrier> bars;
    std::vector<Load> loads;
    std::vector<NamedBarrier> named; /* 16 of each block; the first one is the cluster's */
    std::vector<AsyncThread> threads;
    std::vector<WarpGroup> groups;
    std::vector<int> registers;      /* of each warp group's threads; 0: as launched */
    std::vector<int> register_calls; /* threads that said so */
    int elected;                     /* lane */
};

Async &async();                               /* of the block; the first call begins it */
char *shared(uint32_t address, size_t bytes); /* null: not in one block's shared memory */
uint32_t window();                            /* what lies before the running thread's block */
char *proxy(uint32_t address);
uint32_t swizzled(uint32_t address, unsigned bytes);

/* ---- for kernel.cpp ---- */

void async_begin(Async *a);   /* a cluster begins */
bool async_advance(Async *a); /* nobody can go on: let something happen; false: nothing is left */
void async_chance(Async *a);  /* threads change */
void async_leave(Async *a);   /* a thread leaves the kernel */
void async_end(Async *a);     /* the cluster ends */
const char *async_detail(Async *a, int thread); /* what it waits for */
/* wgmma.cpp */
void products_leave(AsyncThread &t);

} // namespace standin

#endif
