/* bf16_onednn.h - products of bf16 operands by oneDNN, which has AMX's kernels. */
#pragma once

#include "cpu/bf16_product.h"

/* Whether it was compiled in, and whether it multiplies with AMX on this CPU. */
bool onednn_there(void);
bool onednn_has_amx(void);
/* "oneDNN 2.6.3" */
const char *onednn_version(void);
/* What bf16_product does. */
void onednn_product(const Product *p);
