/* onnx.h - a model as an ONNX graph, for programs that run such: opset 17, any number of images.
 *
 * Input `image` [N, 3, H, W] of floats, output `logits` [N, K] (`features` of a model without a
 * head). The images are normalised already; or with ONNX_NORMALISE they are pixels from 0 to 255
 * and (x / 255 - mean) / std is a part of the graph. Files of 2 GiB and more, which the format
 * cannot hold, and those with ONNX_BESIDE have their weights in FILE.data beside them.
 */
#pragma once

#include "weights/export.h"

enum { ONNX_NORMALISE = 1, ONNX_BESIDE = 2 };
bool export_onnx(Export *x, const char *file, int flags, Error *e);
