/* bf16_product.h - a matrix product of bf16 operands, handed out in float, a block at a time.
 *
 * C [M,N] = A [M,K] B [K,N], sums in float. Nothing of C is stored here: each block of it goes to
 * `take` while it is in cache, which does to it what the op wants and rounds.
 */
#pragma once

#include "backend.h"

/* Rows and columns of a block of C, at most: `c` has rows BLOCK_COLUMNS floats apart. */
enum { BLOCK_ROWS = 192, BLOCK_COLUMNS = 768 };
/* A block has a whole number of such groups of rows, which no number of threads changes. */
enum { ROW_GROUP = 48 };
typedef struct {
    const float *c;
    int row, rows;       /* its first row in C, and how many there are */
    int column, columns; /* the same of columns */
} Block;

typedef struct {
    int M, N, K;
    Tensor a; /* [M,K], or [K,M] with a_turned */
    Tensor b; /* [K,N], or [N,K] with b_turned */
    bool a_turned, b_turned;
    /* Called by any thread, for each block once; the blocks of other threads at the same time */
    void (*take)(const void *op, const Block *block);
    const void *op;
} Product;

void bf16_product(const Product *p);
/* How many rows a block has where so many threads are to end together */
int bf16_block_rows(const Product *p, int threads);

/* How products are made: by fp32's instructions, of operands that are widened on their way to them;
 * by instructions that multiply pairs of bf16; or by oneDNN. The same numbers, added in other
 * orders. */
enum { PRODUCTS_FLOATS, PRODUCTS_PAIRS, PRODUCTS_ONEDNN };
void bf16_products_by(int how);
/* Numbers of bf16 in a unit of a packed operand: 1 or 2 */
int bf16_per_unit(void);
