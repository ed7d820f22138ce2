/* npy.c - magic, version, length of the rest, then a Python dict with blanks behind it up to
 * NPY_HEADER bytes. See npy.h. */
#include "util/npy.h"

#include <stdio.h>
#include <string.h>

void npy_header(char out[NPY_HEADER], const char *type, const long *shape, int n)
{
    char sizes[48] = "", text[NPY_HEADER - 10];
    int at = 0;
    for (int i = 0; i < n; i++)
        at +=
            snprintf(sizes + at, sizeof sizes - (size_t)at, i + 1 < n ? "%ld, " : "%ld", shape[i]);
    if (n == 1) /* a tuple of one */
        snprintf(sizes + at, sizeof sizes - (size_t)at, ",");
    snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", type,
             sizes);
    memset(out, ' ', NPY_HEADER);
    memcpy(out, "\x93NUMPY\x01\x00", 8);
    out[8] = NPY_HEADER - 10;
    out[9] = 0;
    memcpy(out + 10, text, strlen(text));
    out[NPY_HEADER - 1] = '\n';
}
