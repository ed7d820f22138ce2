/* export.h - a model's weights in the forms of other programs.
 *
 * Each form holds what its program computes; a model that it cannot be is an error that says why.
 * What changes no number is rewritten (a bias into positions, one head into two), what changes the
 * last digits is noted.
 */
#pragma once

#include "weights/weights.h"

typedef struct {
    const Config *c;      /* classes 0: without a head */
    const SafeTensors *f; /* under our names */
    char *const *labels;  /* [classes], or NULL */
    double crop_pct;      /* how evaluation prepares images, as in Hub */
    int crop, interpolation;
    char notes[512];      /* what the reader of the result should know; "" for nothing */
} Export;

/* model.safetensors of ours. */
bool export_ours(const Export *x, const char *file, Error *e);
/* A folder as a hub has it, config.json and model.safetensors, which
 * timm.create_model('local-dir:DIR', pretrained=True) takes. */
bool export_timm(Export *x, const char *dir, Error *e);
/* Google's .npz, as big_vision writes it: the newer numbering, under params/. */
bool export_npz(Export *x, const char *file, Error *e);
