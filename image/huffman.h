/* huffman.h - the entropy decoder of sequential JPEG, in place of libjpeg's. */
#pragma once

#include <stddef.h>
#include <stdio.h>

#include <jpeglib.h>

/* Puts it into a decoder that has started and not read yet, where it can be. *h keeps its tables
 * from picture to picture: NULL at first, free() it after the last. */
typedef struct Huffman Huffman;
void huffman_take_over(Huffman **h, j_decompress_ptr d);
