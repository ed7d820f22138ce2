/* export_list.h - the tensors of a file in another program's form, in memory; the JSON beside it.
 *
 * A list is made from ours by a table of names (families.h) and, for what stands before the patches
 * and behind the last norm, by hand. Values that are added become the list's.
 */
#pragma once

#include "weights/export.h"
#include "weights/families.h"
#include "weights/npz.h"

#include <cjson/cJSON.h>

typedef struct {
    NpzArray *at; /* name, shape, values: those of any form */
    int n;
} List;

void list_add(List *l, const char *name, real *values, int ndim, const int *shape);
void list_free(List *l);
real *list_copy(const real *x, long n);
real *list_zeros(long n);
bool list_write(const List *l, const char *dir, Error *e); /* model.safetensors there */

/* Every tensor of ours that the table has, under prefix + theirs, but those that are made by hand:
 * tokens, positions and heads. */
bool list_add_by_table(const Export *x, List *l, const Name *names, const char *prefix, Error *e);
/* `count` rows of a tensor of ours, as n says, under `name`. */
void list_add_part(const Export *x, List *l, const Name *n, const char *name, const StTensor *t,
                   const real *rows, int count);
void list_add_same(const Export *x, List *l, const char *name, const char *theirs);
bool export_by_hand(const char *name);

/* Tokens first .. first+n-1 before the patches, [1, n, C]. */
void list_add_tokens(const Export *x, List *l, const char *name, int first, int n);
/* Of a patch embedding that must have a bias, where ours has none. */
void list_add_zero_bias(const Export *x, List *l, const char *name);
/* The head over two tokens as one for each, whose mean it is. */
void list_add_two_heads(const Export *x, List *l, const char *first, const char *second);

/* A tensor of ours, which is known to be there; free() it. */
real *export_values(const Export *x, const char *name);
/* Positions [1, T, C]; with `bias` those of the patches have that of their embedding in them. */
real *export_positions(const Export *x, bool bias);

void export_note(Export *x, const char *fmt, ...) PRINTF_LIKE(2, 3);
cJSON *export_sides(const Config *c); /* of an image: a number, or [height, width] */
cJSON *export_mean(const Config *c);
cJSON *export_std(const Config *c);
/* The name of class k, or LABEL_k, which is written to `number`. */
const char *export_label(const Export *x, int k, char number[24]);
bool export_json(cJSON *json, const char *dir, const char *name, Error *e); /* frees it */
