/* torch.h - files of torch.save: .pth, .pt, .bin, .pth.tar, .ckpt.
 *
 * Since PyTorch 1.6 a zip archive of NAME/data.pkl, a pickle in which a tensor is a call that names
 * its storage, and NAME/data/KEY, the storages. Before, and on request, five pickles one after the
 * other (a magic number, a version, facts about the machine, the object, the storages' keys) and
 * the storages behind them, each after its length. The pickle is read, not executed
 * (util/pickle.h). Tensors of nested dicts are called as the path to them: {"model":
 * {"norm.weight": ...}} has "model.norm.weight". What timm's training was asked for is kept too.
 */
#pragma once

#include "weights/safetensors.h"
#include "weights/zip.h"

/* Whether the archive, or the mapped file, is one of these. */
bool torch_is_zip(const Zip *z);
bool torch_is_old(const SafeTensors *f);
/* `f` is mapped, and has become the file's tensors where this returns true. */
bool torch_read(SafeTensors *f, const Zip *z, Error *e);
bool torch_read_old(SafeTensors *f, Error *e);
