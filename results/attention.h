/* attention.h - where the model looks: maps of attention over the patches of a picture.
 *
 * From the queries and keys that a forward pass has left in the model's activations, on the host:
 *   heads     of the last block, softmax(q k^T / sqrt(hs)): the row of the class token, or with
 *             other pooling the mean over the patches' rows
 *   rollout   what reaches that token from each patch through all blocks, if a block hands on half
 *             of what it attends to (mean over heads) and half of what it had: the row of
 *             prod_l (A_l + I) / 2 (Abnar and Zuidema 2020)
 */
#pragma once

#include "vit.h"

typedef struct {
    int rows, columns, heads;
    float *rollout; /* [rows, columns] */
    float *head;    /* [heads, rows, columns] */
} AttentionMaps;

/* Whether every block has kept its queries and keys, of all heads: in a model for training that
 * makes none of them again, or one with plan.keep_streams; not under --tp or --pp. */
bool attention_kept(const Model *m);
/* Multiplications for the maps of one image. */
double attention_work(const Config *c);
/* Of image i of the last batch. */
void attention_maps(const Model *m, int i, AttentionMaps *out);
void attention_free(AttentionMaps *a);
