/* keys.h - parameters whose gradient is zero, because softmax does not notice what is added to all
 * keys alike: the keys' third of a block's qkv bias, their half of attention pooling's, and, where
 * keys are normalised, the bias of that norm. What is computed there is rounding noise, which an
 * Adam-type step divides by rounding noise.
 */
#pragma once

#include "model/params.h"

#include <string.h>

/* Element i of the n that somebody has of p, which is cut by heads alone. */
static bool is_key_bias(const Config *c, const Param *p, long n, long i)
{
    const char *name = strstr(p->name, "attn");
    if (!name)
        return false;
    if (strcmp(name, "attn.k_norm.bias") == 0)
        return true;
    if (strcmp(name, "attn_pool.kv.bias") == 0)
        return i < n / 2;
    return strcmp(name, "attn.qkv.bias") == 0 && !c->qk_norm && i >= n / 3 && i < 2 * n / 3;
}
