/* npz.h - numpy's archives of arrays: what Google publishes its Vision Transformers as, in and out.
 *
 * A zip archive of .npy files. The tensors are called as the arrays are, "Transformer/encoder_norm/
 * scale", and lie in the archive; compressed ones are unpacked into memory.
 */
#pragma once

#include "weights/safetensors.h"
#include "weights/zip.h"

/* `f` is mapped, and has become the file's tensors where this returns true. */
bool npz_read(SafeTensors *f, const Zip *z, Error *e);

typedef struct {
    char *name; /* without .npy */
    int ndim, shape[ST_MAX_DIMS];
    long n; /* elements */
    real *values;
} NpzArray;
/* An archive of them, not compressed, of up to 4 GiB. */
bool npz_write(const char *path, const NpzArray *array, int n, Error *e);
