/* open.h - a file of weights, whatever its form.
 *
 * Told apart by their first bytes: safetensors, PyTorch's zip archives (.pth, .bin), numpy's .npz,
 * and the index of a model that is cut into several files. What is none of these is named: a Git
 * LFS pointer, a web page, PyTorch's older form.
 */
#pragma once

#include "weights/safetensors.h"

bool weights_ending(const char *name); /* .safetensors, .pth, ... */
/* The tensors as the file calls them. */
SafeTensors *weights_open_file(const char *path, Error *e);
/* The weights in a folder as people download it: model.safetensors, its index, pytorch_model.bin,
 * or the only file with an ending of weights. NULL if there is none, or several, and then *e says
 * what is there instead. free() it. */
char *weights_in_folder(const char *dir, Error *e);
