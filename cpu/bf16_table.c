/* bf16_table.c - the CPU backend whose tensors are bf16: the oracle's table with the ops of
 * bf16_*.c in their places, and how this machine makes its products. */
#include "cpu/bf16_onednn.h"
#include "cpu/bf16_ops.h"
#include "cpu/bf16_product.h"
#include "util/util.h"

#include <stdlib.h>
#include <sys/mman.h>

#ifdef __x86_64__
#include <cpuid.h>
#endif

/* vdpbf16ps is worth it on AMD's cores from Zen 4 on, which do one where they do one multiplication
 * of floats. Intel's do half a one for two, so that floats win by a factor of nearly 2 there. */
static bool pairs_are_faster(void)
{
#ifdef __AVX512BF16__
    __builtin_cpu_init();
    return __builtin_cpu_is("amd");
#else
    return false;
#endif
}

/* PRODUCTS_*, by what this machine is fast at; VIT_BF16_PRODUCTS, for tests, overrules that. */
static int products(void)
{
    static const char *const words[] = {"floats", "pairs", "onednn"};
    const char *word = getenv("VIT_BF16_PRODUCTS");
    if (!word && onednn_has_amx())
        return PRODUCTS_ONEDNN;
    if (!word)
        return pairs_are_faster() ? PRODUCTS_PAIRS : PRODUCTS_FLOATS;
    for (int i = 0; i < COUNT(words); i++)
        if (strcmp(word, words[i]) == 0)
            return i;
    die_usage("floats, pairs or onednn", "VIT_BF16_PRODUCTS is '%s'", word);
}

bool backend_cpu_bf16_pays(void)
{
    return products() != PRODUCTS_FLOATS;
}

static void bf16_init(const Device *d)
{
    Device floats = *d;
    floats.type = F32;
    backend_cpu()->init(&floats);
    bf16_products_by(products());
}

/* In large pages, where the system has them: rows of a block are in many small ones. */
static dev *bf16_alloc(size_t bytes)
{
    enum { PAGE = 2 << 20 };
    dev *p = backend_cpu()->alloc(bytes);
    uintptr_t begin = ((uintptr_t)p + PAGE - 1) / PAGE * PAGE;
    uintptr_t end = ((uintptr_t)p + bytes) / PAGE * PAGE;
    if (p && begin < end)
        madvise((void *)begin, end - begin, MADV_HUGEPAGE);
    return p;
}

static void bf16_bind(dev *state, dev *scratch, size_t bytes)
{
    backend_cpu()->bind(state, scratch, bytes);
    bf16_state = (const StepState *)(void *)state;
}

/* Why products are made by fp32's instructions */
static const char *why_floats(void)
{
    if (getenv("VIT_BF16_PRODUCTS"))
        return "VIT_BF16_PRODUCTS";
#ifdef __x86_64__
    unsigned a, b, c, d;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 22 & 1) /* AMX-BF16 */
        return onednn_there() ? "this system does not let programs use the CPU's AMX"
                              : "the CPU's AMX needs oneDNN, make deps";
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 5 & 1) /* AVX512-BF16 */
        return __builtin_cpu_is("amd") ? "this program was built without AVX512-BF16"
                                       : "the CPU's AVX512-BF16 is slower";
#endif
    return "the CPU has none for bf16";
}

static void bf16_describe(char *out, size_t size)
{
    backend_cpu()->describe(out, size);
    size_t n = strlen(out);
    int by = products();
    if (by == PRODUCTS_FLOATS)
        snprintf(out + n, size - n,
                 ", bf16 products by fp32's instructions (%s): saves memory more than time",
                 why_floats());
    else
        snprintf(out + n, size - n, ", bf16 products by %s",
                 by == PRODUCTS_PAIRS ? "AVX512-BF16" : onednn_version());
}

const Backend *backend_cpu_bf16(void)
{
    static Backend table;
    table = *backend_cpu();
    table.init = bf16_init;
    table.alloc = bf16_alloc;
    table.bind = bf16_bind;
    table.describe = bf16_describe;
    table.linear_forward = bf16_linear_forward;
    table.linear_backward_input = bf16_linear_backward_input;
    table.linear_backward_weight = bf16_linear_backward_weight;
    table.activate = bf16_activate;
    table.patchify = bf16_patchify;
    table.embed_forward = bf16_embed_forward;
    table.embed_backward = bf16_embed_backward;
    table.residual_norm_forward = bf16_residual_norm_forward;
    table.residual_norm_backward = bf16_residual_norm_backward;
    table.head_norm_forward = bf16_head_norm_forward;
    table.head_norm_backward = bf16_head_norm_backward;
    table.attention_forward = bf16_attention_forward;
    table.attention_backward = bf16_attention_backward;
    table.pool_forward = bf16_pool_forward;
    table.pool_backward = bf16_pool_backward;
    table.loss = bf16_loss;
    table.count_large = bf16_count_large;
    return &table;
}
