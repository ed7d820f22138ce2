/* names.h - what other programs call the tensors of a Vision Transformer.
 *
 * A file of another family becomes a view: tensors under our names and in our shapes, each of which
 * is one or several pieces of theirs (queries, keys and values one after the other, kernels
 * transposed, rows of zeros where they have none). Nothing is copied: values are read where they
 * lie, a run at a time.
 */
#pragma once

#include "weights/safetensors.h"

#define NAME_SIZE 192

/* What is known of the network beforehand. */
typedef struct {
    int image_h, image_w; /* the size of its images; 0: unknown */
    int pool;             /* POOL_*, as a file beside it says; -1: unknown */
    int want;             /* POOL_* of the model that the tensors are for; -1: any */
} NamesKnown;
#define NAMES_UNKNOWN ((NamesKnown){.pool = -1, .want = -1})

/* What is found out on the way: for people, lines of a report. */
typedef struct {
    char family[96]; /* "transformers' names under vit." */
    char notes[512]; /* what is left out, or added, and is no part of the network as it is read */
    int pool;        /* POOL_*; -1: the tensors do not show it */
    bool by_openai;  /* who trained its CLIP models with another GELU than others */
} NamesReport;

/* The view of `raw`, which it closes with itself, or at once on failure. Of a network with a head
 * behind each of two tokens whose mean counts (DeiT), the head is one over both, unless pooling by
 * the class token alone is wanted. A network that the model cannot be is an error that says which
 * variant it is. */
SafeTensors *names_view(SafeTensors *raw, const NamesKnown *known, NamesReport *report, Error *e);

/* "blocks.7.norm1.weight" -> 7 and "norm1.weight"; -1 for a name that is not of this form. */
int names_block(const char *name, const char **rest);
bool names_is_vit(const char *name);  /* one of the model's tensors */
bool names_is_head(const char *name); /* what a new head replaces: all behind the final norm */
/* "[3, 4]" */
typedef struct {
    char s[160];
} ShapeText;
ShapeText names_shape(int ndim, const long *shape);
