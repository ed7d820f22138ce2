/* torch_zip.h - files of torch.save since PyTorch 1.6: .pth, .pt, .bin, .pth.tar, .ckpt.
 *
 * A zip archive of NAME/data.pkl, a pickle in which a tensor is a call that names its storage, and
 * NAME/data/KEY, the storages. The pickle is read, not executed (util/pickle.h). Tensors of nested
 * dicts are called as the path to them: {"model": {"norm.weight": ...}} has "model.norm.weight".
 */
#pragma once

#include "weights/safetensors.h"
#include "weights/zip.h"

/* Whether the archive is one of these. */
bool torch_is_zip(const Zip *z);
/* `f` is mapped, and has become the file's tensors where this returns true. */
bool torch_read(SafeTensors *f, const Zip *z, Error *e);
