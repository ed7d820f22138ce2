/* npy.h - the header of an array as numpy saves it (format 1.0); the elements follow, row by row.
 */
#pragma once

#include "util/util.h"

enum { NPY_HEADER = 128 };
/* type: numpy's, "<f4" or "|u1"; shape [n], numbers of 40 characters in all. */
void npy_header(char out[NPY_HEADER], const char *type, const long *shape, int n);
