/* flip.h - evaluating an image together with its mirror image (--tta flip). */
#pragma once

#include "train/session.h"

/* After vit_evaluate of images [n, H, W, 3]: logits [n, K] become the mean of theirs and of their
 * mirror images'. images and targets: as vit_set_batch had them, NULL on ranks that read none. All
 * ranks call this that compute together; none may be a stage of a pipeline, which has either the
 * images or the logits. */
void flip_logits(Session *s, int n, const uint8_t *images, const real *targets, real *logits);
/* What the loss op would say of logits [n, K]: stats [n, 3] (see Loss in backend.h). */
void flip_stats(const Config *c, int n, const real *logits, const int *labels, real *stats);
