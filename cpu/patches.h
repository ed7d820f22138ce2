/* patches.h - patchify a row at a time, whatever type the rows are stored in. */
#pragma once

#include "backend.h"

typedef struct {
    const Patchify *a;
    const StepState *state;
    int rows;           /* of the matrix: B*Np */
    real table[3][256]; /* of each channel's bytes, normalised */
} Patches;

Patches patches_of(const Patchify *a, const StepState *state);
/* out [3,P,P]: patch i of all images' */
void patches_row(real *out, const Patches *p, int i);
