/* augment.h - what happens to an image after crop and flip: colour jitter, then a policy; or DeiT
 * III's policy, then jitter. */
#pragma once

#include "image/image.h"

/* jitter: "" or "none", or torchvision's ColorJitter: "0.4" for brightness, contrast and saturation
 * alike, "B,C,S" or "B,C,S,H". policy: "" or "none", "imagenet" (the paper's AutoAugment policy),
 * "imagenet-v0" (TensorFlow's policy v0), timm's "rand-m9-n2-mstd0.5-inc1", big_vision's
 * "randaug(2,15)", or DeiT III's "3-augment". NULL and an error if a text is none of these. */
Augmentation *augmentation_new(const char *jitter, const char *policy, Error *e);
void augmentation_free(Augmentation *a);
/* rgb [h, w, 3] in place; scratch: image_op_scratch(w, h) bytes. a may be NULL: nothing happens. */
void augment_image(const Augmentation *a, View v, uint8_t *rgb, int w, int h, uint8_t *scratch);
