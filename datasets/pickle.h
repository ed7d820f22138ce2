/* pickle.h - Python's pickles of plain data, as CIFAR's files are: a dict of texts, numbers, lists
 * and numpy arrays of bytes. Nothing in them is executed; whatever else they hold is refused.
 */
#pragma once

#include "util/util.h"

typedef struct Pickle Pickle;
/* Protocols up to 3, written by Python 2 or 3. `bytes` must outlive it. Errors name `path`. */
Pickle *pickle_open(const uint8_t *bytes, size_t n, const char *path, Error *e);
void pickle_close(Pickle *p); /* NULL does nothing */

/* Entries of the dict by their keys: -1 or NULL if there is none of this kind. */
long pickle_list(const Pickle *p, const char *key);                /* items of a list */
long pickle_list_number(const Pickle *p, const char *key, long i); /* -1: no number */
char *pickle_list_text(const Pickle *p, const char *key, long i);  /* free() it */
/* An array of uint8: its size, and its values into out[size]; false if there are not as many. */
long pickle_array(const Pickle *p, const char *key);
bool pickle_array_bytes(const Pickle *p, const char *key, uint8_t *out);
