/* loss.h - the loss of one image, whatever type its logits are stored in. */
#pragma once

#include "backend.h"

/* Image b of a->B, whose logits are z [K]: its stats, and dz [K], the gradient of the logits, which
 * is NULL where nobody wants it. Formulas: Loss in backend.h. */
void loss_of_image(const Loss *a, const StepState *state, int b, const real *z, real *dz);
