/* machine.h - what this computer is and can give. */
#pragma once

#include <stddef.h>

/* Where OpenBLAS (whose kernels are called `core`) does not know the CPU and has chosen slow
 * kernels, or OpenMP would spin at barriers: starts the program again, once, with the variables
 * that say better. Both libraries read them as they load. */
void machine_restart(char **argv, const char *core);
/* What had to be changed for OpenBLAS, in words; NULL: nothing. Of several ranks one says it. */
const char *machine_restarted(void);
/* Bytes that the machine, and the container it may be, can still give; -1: not known. */
double machine_memory_free(void);
void machine_cpu(char *out, size_t size); /* its name */
/* Cores that this process may use: a launcher may have given it a share. */
int machine_cores(void);
