/* driver.c - runs a fuzz target where there is no libFuzzer: seeds, then mutations of them.
 *
 *     fuzz_NAME SECONDS SEED...      seeds are files, or folders of them
 *     fuzz_NAME 0 FILE               once: to see again what a saved input does
 *
 * The target is LLVMFuzzerTestOneInput, compiled by gcc with -fsanitize-coverage=trace-pc, so that
 * an input that reaches new code is kept and mutated further. Mutations are philox numbers: the
 * same inputs in every run, as far as time allows. What makes the target crash, exit, hang or take
 * too much memory is written to crash-NAME in the current folder. The last line is `N passed, N
 * failed, N skipped`, for test/run: one test, the target.
 */
#include <dirent.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "util/rng.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);
void __sanitizer_set_death_callback(void (*f)(void));
const char *__asan_default_options(void);

enum { ROOM = 1 << 16, MAX_CORPUS = 4096, MAX_SECONDS_EACH = 20 };

/* A large allocation is a finding; so is a leak. */
const char *__asan_default_options(void)
{
    return "max_allocation_size_mb=1024:hard_rss_limit_mb=2500:detect_leaks=1";
}

/* ---- coverage ---- */

static uint8_t reached[1 << 16];
static bool new_code;

/* Called at each basic block: a pair of blocks in turn is one thing reached. */
void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void)
{
    static uint32_t before;
    uint32_t pc =
        (uint32_t)((uintptr_t)__builtin_return_address(0) - (uintptr_t)LLVMFuzzerTestOneInput);
    uint8_t *r = &reached[((pc ^ before) * 2654435761u) >> 16];
    new_code |= !*r;
    *r = 1;
    before = pc * 31;
}

/* ---- inputs ---- */

typedef struct {
    uint8_t *bytes;
    size_t n;
} Input;

static Input corpus[MAX_CORPUS];
static int corpus_n;
static uint8_t now_bytes[ROOM]; /* the input at work */
static size_t now_n;
static bool at_work;
static const char *program;

static void keep(const uint8_t *bytes, size_t n)
{
    if (corpus_n == MAX_CORPUS)
        return;
    Input *i = &corpus[corpus_n++];
    i->bytes = malloc(n + 1);
    i->n = n;
    memcpy(i->bytes, bytes, n);
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static void load(const char *path)
{
    struct stat st;
    struct dirent **names;
    if (stat(path, &st) != 0) {
        fprintf(stderr, "error: %s: cannot open\n", path);
        exit(2);
    }
    if (S_ISDIR(st.st_mode)) {
        int n = scandir(path, &names, NULL, by_name);
        for (int i = 0; i < n; i++) {
            char inner[4096];
            snprintf(inner, sizeof inner, "%s/%s", path, names[i]->d_name);
            if (names[i]->d_name[0] != '.')
                load(inner);
            free(names[i]);
        }
        free(names);
        return;
    }
    FILE *f = fopen(path, "rb");
    now_n = f ? fread(now_bytes, 1, sizeof now_bytes, f) : 0;
    if (f)
        fclose(f);
    keep(now_bytes, now_n);
}

/* ---- mutations ---- */

static uint32_t turn, draws;

static uint32_t draw(uint32_t below)
{
    return philox(1, turn, draws++, 0, 0).v[0] % (below ? below : 1);
}

/* Numbers at the edges of types and blocks. */
static uint64_t edge(void)
{
    static const uint64_t edges[] = {
        0,          1,          2,         7,          8,          127,      128,        255,
        256,        511,        512,       1023,       1024,       4096,     32767,      32768,
        65500,      65535,      65536,     1 << 20,    0x7fffffff, 1u << 31, 0xfffffffe, 0xffffffff,
        1ull << 32, 1ull << 62, INT64_MAX, 1ull << 63, UINT64_MAX};
    return edges[draw(sizeof edges / sizeof *edges)];
}

static void put_edge(size_t at)
{
    uint64_t v = edge() + draw(3) - 1;
    size_t size = (size_t)1 << draw(4);
    bool big = draw(2);
    for (size_t i = 0; i < size && at + i < now_n; i++)
        now_bytes[at + i] = (uint8_t)(v >> 8 * (big ? size - 1 - i : i));
}

static void put_decimal(size_t at)
{
    char text[32];
    int n = snprintf(text, sizeof text, draw(2) ? "%llu" : "%llo", (unsigned long long)edge());
    for (int i = 0; i < n && at + (size_t)i < now_n; i++)
        now_bytes[at + (size_t)i] = (uint8_t)text[i];
}

static void insert(size_t at, const uint8_t *bytes, size_t n)
{
    if (n > ROOM - now_n)
        n = ROOM - now_n;
    memmove(now_bytes + at + n, now_bytes + at, now_n - at);
    memmove(now_bytes + at, bytes, n);
    now_n += n;
}

static void mutate(void)
{
    static uint8_t piece[ROOM];
    size_t at = draw((uint32_t)now_n + 1), left = now_n - at, n;
    const Input *other = &corpus[draw((uint32_t)corpus_n)];
    switch (draw(10)) {
    case 0: /* a bit */
        if (left)
            now_bytes[at] ^= (uint8_t)(1 << draw(8));
        break;
    case 1: /* a byte */
        if (left)
            now_bytes[at] = (uint8_t)draw(256);
        break;
    case 2:
    case 3:
        put_edge(at);
        break;
    case 4:
        put_decimal(at);
        break;
    case 5: /* the end is missing */
        now_n = at;
        break;
    case 6: /* a piece is missing */
        n = draw((uint32_t)(left < 600 ? left : 600) + 1);
        memmove(now_bytes + at, now_bytes + at + n, left - n);
        now_n -= n;
        break;
    case 7: /* a piece once more, elsewhere */
        n = draw((uint32_t)(left < 600 ? left : 600) + 1);
        memcpy(piece, now_bytes + at, n);
        insert(draw((uint32_t)now_n + 1), piece, n);
        break;
    case 8: /* a piece of another input */
        if (other->n) {
            size_t from = draw((uint32_t)other->n);
            insert(at, other->bytes + from, draw((uint32_t)(other->n - from)) + 1);
        }
        break;
    default: /* a piece of another input over this one */
        n = left < other->n ? left : other->n;
        n = draw((uint32_t)n + 1);
        memcpy(now_bytes + at, other->bytes + (other->n - n), n);
    }
}

/* ---- running ---- */

static void save(void)
{
    char path[512];
    if (!at_work)
        return;
    at_work = false;
    snprintf(path, sizeof path, "%s.crash", program);
    FILE *f = fopen(path, "wb");
    if (f) {
        fwrite(now_bytes, 1, now_n, f);
        fclose(f);
    }
    fprintf(stderr, "FAIL %s: the input of %zu bytes is in %s\n", program, now_n, path);
}

static void ended(void) /* the target called exit() */
{
    if (at_work) {
        save();
        _exit(1);
    }
}

static void too_long(int signal)
{
    (void)signal;
    fprintf(stderr, "FAIL %s: one input took more than %d s\n", program, MAX_SECONDS_EACH);
    abort();
}

static void aborted(int signal) /* by MUST */
{
    (void)signal;
    save();
    _exit(1);
}

static void run(void)
{
    /* a copy of exactly its size: reading beyond it is seen */
    uint8_t *copy = malloc(now_n ? now_n : 1);
    memcpy(copy, now_bytes, now_n);
    new_code = false;
    at_work = true;
    alarm(MAX_SECONDS_EACH);
    LLVMFuzzerTestOneInput(copy, now_n);
    alarm(0);
    at_work = false;
    free(copy);
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv)
{
    program = argv[0];
    if (argc < 3) {
        fprintf(stderr, "usage: %s SECONDS SEED...\n", program);
        return 2;
    }
    double limit = atof(argv[1]), start = seconds();
    for (int i = 2; i < argc; i++)
        load(argv[i]);
    if (corpus_n == 0)
        keep((const uint8_t *)"", 0);
    __sanitizer_set_death_callback(save);
    signal(SIGALRM, too_long);
    signal(SIGABRT, aborted);
    atexit(ended);
    int seeds = corpus_n;
    for (int i = 0; i < seeds; i++) {
        memcpy(now_bytes, corpus[i].bytes, now_n = corpus[i].n);
        run();
    }
    for (; seconds() - start < limit; turn++) {
        draws = 0;
        const Input *from = &corpus[draw(4) ? draw((uint32_t)corpus_n) : draw((uint32_t)seeds)];
        memcpy(now_bytes, from->bytes, now_n = from->n);
        for (uint32_t k = 1 + draw(4); k > 0; k--)
            mutate();
        run();
        if (new_code)
            keep(now_bytes, now_n);
    }
    for (int i = 0; i < corpus_n; i++)
        free(corpus[i].bytes);
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    printf("%s: %u mutations of %d seeds in %.1f s, %d kept, %ld MB\n", program, turn, seeds,
           seconds() - start, corpus_n - seeds, use.ru_maxrss >> 10);
    printf("1 passed, 0 failed, 0 skipped\n");
    return 0;
}
