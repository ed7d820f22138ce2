/* npz.h - numpy's archives of arrays: what Google publishes its Vision Transformers as.
 *
 * A zip archive of .npy files. The tensors are called as the arrays are, "Transformer/encoder_norm/
 * scale", and lie in the archive; compressed ones are unpacked into memory.
 */
#pragma once

#include "weights/safetensors.h"
#include "weights/zip.h"

/* `f` is mapped, and has become the file's tensors where this returns true. */
bool npz_read(SafeTensors *f, const Zip *z, Error *e);
