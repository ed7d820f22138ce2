/* dropout.c - the random numbers of dropout masks. A mask is a function of seed, step, layer,
 * sample and element: it is never stored, and backward makes the forward pass's again. One block of
 * numbers serves four elements; sixteen blocks at a time are vectors. */
#include "cpu/dropout.h"

#include "util/rng.h"

const uint32_t *dropout_numbers(uint32_t room[DROPOUT_MOST], long first, long *n, long sample,
                                const Drop *d, const StepState *state)
{
    enum { BLOCKS = DROPOUT_MOST / 4 };
    long skip = first % 4, blocks = (skip + *n + 3) / 4;
    uint32_t block = (uint32_t)(first / 4), by_place[4][BLOCKS];
    if (blocks > BLOCKS)
        blocks = BLOCKS;
    if (*n > 4 * blocks - skip)
        *n = 4 * blocks - skip;
#pragma omp simd
    for (int i = 0; i < blocks; i++) {
        Philox r = rng_block(state->seed, block + (uint32_t)i, state->sample0 + (uint32_t)sample,
                             state->step, d->purpose, d->layer);
        by_place[0][i] = r.v[0];
        by_place[1][i] = r.v[1];
        by_place[2][i] = r.v[2];
        by_place[3][i] = r.v[3];
    }
    for (int i = 0; i < blocks; i++)
        for (int k = 0; k < 4; k++)
            room[4 * i + k] = by_place[k][i];
    return room + skip;
}
