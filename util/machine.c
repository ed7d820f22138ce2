/* machine.c - what this computer is and can give. See machine.h.
 *
 * Read in this order: memory, addresses, cores, the new start.
 */
#include "util/machine.h"

#include "util/util.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <unistd.h>

/* The number behind `key` at the beginning of a line of a file; -1 where there is none. */
static double read_number(const char *path, const char *key)
{
    FILE *f = fopen(path, "r");
    char line[256];
    double value = -1;
    size_t skip = strlen(key);
    while (f && value < 0 && fgets(line, sizeof line, f))
        if (strncmp(line, key, skip) == 0 && sscanf(line + skip, "%lf", &value) != 1)
            value = -1;
    if (f)
        fclose(f);
    return value;
}

/* The smaller of what the machine has left and what the container may still take. */
double machine_memory_free(void)
{
    double kib = read_number("/proc/meminfo", "MemAvailable:");
    double machine = kib < 0 ? -1 : kib * 1024;
    double limit = read_number("/sys/fs/cgroup/memory.max", "");
    double used = read_number("/sys/fs/cgroup/memory.current", "");
    if (limit < 0 || used < 0)
        return machine;
    double cache = read_number("/sys/fs/cgroup/memory.stat", "inactive_file ");
    used -= cache > 0 ? cache : 0; /* the kernel gives this back when asked */
    return machine < 0 || limit - used < machine ? limit - used : machine;
}

bool machine_has_addresses(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return false;
    munmap(p, bytes);
    return true;
}

/* Runs before the libraries start, of which OpenBLAS takes its first buffer then; a program takes
 * another at least. */
static __attribute__((unused)) void ask_for_addresses(void)
{
    static const char what[] =
        "error: no address space for OpenBLAS's buffers of 128 MiB\n"
        "hint: `ulimit -v` shows the limit of this shell, `ulimit -v unlimited` lifts it; batch "
        "systems set it from the memory that a job asks for\n";
    if (machine_has_addresses(2 * MACHINE_BLAS_BUFFER))
        return;
    if (write(STDERR_FILENO, what, sizeof what - 1) > 0)
        _exit(1);
    _exit(1);
}
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* are a library, too */
__attribute__((section(".preinit_array"), used)) static void (*const before_libraries)(void) =
    ask_for_addresses;
#endif

void machine_cpu(char *out, size_t size)
{
    char line[256], name[128] = "CPU";
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "model name : %127[^\n]", name) == 1)
            break;
    if (f)
        fclose(f);
    snprintf(out, size, "%s", name);
}

int machine_cores(void)
{
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0)
        return CPU_COUNT(&allowed);
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

/* Which kernels this CPU could run and which OpenBLAS chose: 3 AVX-512, 2 AVX2, 1 older. */
static int cpu_level(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return 3;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return 2;
#endif
    return 1;
}

static int openblas_level(const char *core)
{
    static const struct {
        const char *core;
        int level;
    } known[] = {{"SkylakeX", 3}, {"Cooperlake", 3}, {"SapphireRapids", 3},
                 {"Haswell", 2},  {"Zen", 2},        {"Excavator", 2}};
    for (int i = 0; i < COUNT(known); i++)
        if (strcasecmp(core, known[i].core) == 0)
            return known[i].level;
    return 1;
}

/* The mark of a restart, which is made once (the library may lack the better kernels), and what it
 * was for. */
static const char mark[] = "VIT_STARTED";

const char *machine_restarted(void)
{
    const char *note = getenv(mark);
    return note && strchr(note, ' ') ? note : NULL;
}

/* Both libraries read their variables as they load, hence a new start of the program.
 * GOMP_SPINCOUNT: threads that wait for each other at a barrier by spinning are hardly faster on an
 * idle machine, and many times slower beside one other busy process. */
void machine_restart(char **argv, const char *core)
{
    static const char *const types[] = {NULL, NULL, "HASWELL", "SKYLAKEX"};
    char note[160] = "1";
    int can = cpu_level();
    bool slow = can > openblas_level(core);
    bool spins = !getenv("OMP_WAIT_POLICY") && !getenv("GOMP_SPINCOUNT");
    if (getenv(mark) || (!slow && !spins))
        return;
    if (slow) {
        snprintf(note, sizeof note,
                 "OpenBLAS %s %s kernels on a faster CPU: started again with OPENBLAS_CORETYPE=%s",
                 getenv("OPENBLAS_CORETYPE") ? "was told to use" : "chose", core, types[can]);
        setenv("OPENBLAS_CORETYPE", types[can], 1);
    }
    if (spins)
        setenv("GOMP_SPINCOUNT", "1000", 1);
    setenv(mark, note, 1);
    fflush(NULL);
    execv("/proc/self/exe", argv); /* only returns if it failed: slower, but it works */
}
