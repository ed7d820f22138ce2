/* test_reduce.c - sums over ranks of the CPU backend: each element in rank order, bit for bit.
 *
 * The program starts itself again by mpirun, three times. Every rank knows all ranks' numbers, and
 * so what their sum must be. Rank 0 prints what all have found.
 */
#include "backend.h"
#include "train/hosts.h"

#include "check.h"

#include <stdlib.h>
#include <string.h>

enum { RANKS = 3 };

/* AddressSanitizer asks this: MPI keeps what it has until the end. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}

/* Numbers of such different sizes that another order of the sum has other bits. */
static real number(int rank, long i)
{
    static const real size[] = {1, (real)1e7, (real)-1e7};
    uint64_t h = ((uint64_t)i * RANKS + (uint64_t)rank + 1) * 0x9e3779b97f4a7c15u;
    return size[((uint64_t)rank + (h >> 60)) % 3] * (real)((double)(h >> 11) * 0x1p-53);
}

static real sum_of(long i, const int order[RANKS])
{
    real sum = number(order[0], i);
    for (int r = 1; r < RANKS; r++)
        sum += number(order[r], i);
    return sum;
}

static void reals(const Backend *be, int rank, long n)
{
    static const int order[RANKS] = {0, 1, 2}, other[RANKS] = {2, 1, 0};
    enum { GUARD = 2 };
    size_t bytes = (size_t)(n + GUARD) * sizeof(real);
    real *x = malloc(bytes);
    long wrong = 0, differ = 0;
    for (long i = 0; i < n + GUARD; i++)
        x[i] = number(rank, i);
    dev *d = be->alloc(bytes);
    be->upload(d, x, bytes);
    be->all_reduce(d, F32, n);
    be->join();
    be->download(x, d, bytes);
    for (long i = 0; i < n + GUARD; i++) {
        real want = i < n ? sum_of(i, order) : number(rank, i), back = sum_of(i, other);
        wrong += memcmp(&x[i], &want, sizeof want) != 0;
        differ += memcmp(&want, &back, sizeof want) != 0;
    }
    CHECK(wrong == 0, "rank %d: %ld of %ld sums", rank, wrong, n);
    CHECK(n < 1000 || differ > n / 10, "the order would show in %ld of %ld alone", differ, n);
    be->release(d);
    free(x);
}

static void counters(const Backend *be, int rank)
{
    uint64_t x[3] = {(uint64_t)rank, 1ull << 62, ~0ull};
    dev *d = be->alloc(sizeof x);
    be->upload(d, x, sizeof x);
    be->all_reduce(d, U64, 3);
    be->join();
    be->download(x, d, sizeof x);
    CHECK(x[0] == 3 && x[1] == 3ull << 62 && x[2] == (uint64_t)-3, "rank %d: counters", rank);
    be->release(d);
}

int main(int argc, char **argv)
{
    (void)argc;
    const Backend *be = backend_cpu();
    backend_cpu_reexec(argv);
#ifndef HAVE_MPI
    SKIP("built without MPI");
    return check_report();
#endif
    if (system("command -v mpirun >/dev/null") != 0) {
        SKIP("no mpirun");
        return check_report();
    }
    World w = hosts_start(RANKS, true, argv);
    be->init(&(Device){
        .ranks = w.ranks, .rank = w.rank, .broadcast = hosts_broadcast, .check = hosts_check});
    static const long sizes[] = {1, 2, 3, 4, 1000, 1 << 20, (1 << 20) + 1, (5 << 19) + 7};
    for (int i = 0; i < COUNT(sizes); i++)
        reals(be, w.rank, sizes[i]);
    counters(be, w.rank);
    int cores = be->threads();
    CHECK(cores >= 1);
    double all[] = {check_passed, check_failed};
    hosts_sum(all, COUNT(all));
    check_passed = (int)all[0];
    check_failed = (int)all[1];
    be->end();
    hosts_end();
    return w.rank == 0 ? check_report() : 0;
}
