/* machine.h - what this computer is and can give. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* Where OpenBLAS (whose kernels are called `core`) does not know the CPU and has chosen slow
 * kernels, or OpenMP would spin at barriers: starts the program again, once, with the variables
 * that say better. Both libraries read them as they load. */
void machine_restart(char **argv, const char *core);
/* Whether so many bytes of addresses are still to be had: `ulimit -v` and batch systems limit them.
 */
bool machine_has_addresses(size_t bytes);
/* What OpenBLAS takes for every thread that multiplies: where it cannot, it tries forever. */
#define MACHINE_BLAS_BUFFER ((size_t)128 << 20)
/* What had to be changed for OpenBLAS, in words; NULL: nothing. Of several ranks one says it. */
const char *machine_restarted(void);
/* Bytes that the machine, and the container it may be, can still give; -1: not known. */
double machine_memory_free(void);
void machine_cpu(char *out, size_t size); /* its name */
/* Cores that this process may use: a launcher may have given it a share. */
int machine_cores(void);
