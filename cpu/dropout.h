/* dropout.h - the random numbers of dropout masks, many at a time, whatever type they act on. */
#pragma once

#include "backend.h"

enum { DROPOUT_MOST = 64 };
/* The numbers of elements first, first + 1, ... of a sample of the micro-batch, as Drop in
 * backend.h has them. *n is how many are wanted and becomes how many there are, DROPOUT_MOST or a
 * few less; they lie in `room`. */
const uint32_t *dropout_numbers(uint32_t room[DROPOUT_MOST], long first, long *n, long sample,
                                const Drop *d, const StepState *state);
