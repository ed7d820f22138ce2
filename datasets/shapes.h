/* shapes.h - the built-in image set: ten classes of drawn shapes. */
#pragma once

#include "util/util.h"

/* Write `dir`/{train,val}/<class>/NNNN.jpg: 10 classes of drawn shapes, size x size pixels, JPEG,
 * with random colours, pose, texture, clutter and noise. Does nothing if dir already holds the same
 * set. Reproducible from seed. */
bool shapes_write(const char *dir, int train_per_class, int val_per_class, int size, uint64_t seed,
                  Error *e);
