/* bf16.h - a bfloat16, the upper half of a float's bits, and a real number: exact one way, to
 * nearest with ties to even the other. */
#pragma once

#include "util/real.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline real bf16_to_real(uint16_t b)
{
    uint32_t bits = (uint32_t)b << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return (real)f;
}

/* A double passes through a float that is rounded to odd (towards 0, and the last bit set where
 * anything was lost): rounding it to nearest twice could make a tie of what is none. */
static inline uint16_t bf16_from_real(real x)
{
    float f = (float)x;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if (x != x)
        return (uint16_t)(bits >> 16 | 0x40); /* quiet, and no infinity */
    if ((real)f != x) {
        bits -= fabs((double)f) > fabs((double)x);
        bits |= 1;
    }
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
