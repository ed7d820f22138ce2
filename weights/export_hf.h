/* export_hf.h - a model's weights as transformers has them: a folder with config.json,
 * preprocessor_config.json and model.safetensors, which from_pretrained(DIR) of the class in
 * config.json takes.
 *
 * The class follows from the network: ViT; DeiT with its teacher's head; DINOv2 where there are
 * layer scale, SwiGLU, registers or a head over class token and mean; CLIP with a norm after the
 * embedding; SigLIP where patches are pooled.
 */
#pragma once

#include "weights/export.h"

bool export_hf(Export *x, const char *dir, Error *e);
