/* fuzz_pickle.c - pickles, as CIFAR's are read and as PyTorch's. */
#include "fuzz.h"
#include "util/pickle.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    for (int torch = 0; torch < 2; torch++) {
        Error e = {"", ""};
        Pickle *p = pickle_open(bytes, n, "input", torch, "hint", &e);
        MUST(p || (*e.what && *e.hint));
        if (!p)
            continue;
        const PickleItem *root = pickle_root(p);
        for (long i = 0; i < root->count; i++)
            pickle_is_object(p, pickle_at(p, root, i), "torch._utils _rebuild_tensor_v2");
        if (!torch) {
            uint8_t out[1 << 16];
            long size = pickle_array(p, "data");
            if (size >= 0 && size <= (long)sizeof out)
                pickle_array_bytes(p, "data", out);
            for (long i = 0; i < pickle_list(p, "labels"); i++)
                pickle_list_number(p, "labels", i);
        }
        pickle_close(p);
    }
    return 0;
}
