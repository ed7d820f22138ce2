/* fuzz_weights.c - weights of any form: archives, pickles, arrays, indices, names. */
#include "fuzz.h"
#include "weights/names.h"
#include "weights/open.h"
#include "weights/weights.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    Error e = {"", ""};
    NamesReport report;
    const char *path = fuzz_file(bytes, n);
    SafeTensors *f = weights_open_file(path, &e);
    f = f ? names_view(f, &NAMES_UNKNOWN, &report, &e) : NULL;
    MUST(f || (*e.what && *e.hint));
    for (int i = 0; f && i < f->count; i++) {
        real x[64];
        const StTensor *t = &f->tensor[i];
        long last = t->n > 64 ? t->n - 64 : 0;
        MUST(t->n >= 0);
        for (int k = 0; k < 2; k++) /* both ends: what lies between is within */
            st_read_real(f, t, k ? last : 0, t->n < 64 ? t->n : 64, x, &e);
    }
    st_close(f);
    WeightsInfo w;
    if (!weights_describe(path, 0, 0, &w, &e))
        MUST(*e.what);
    return 0;
}
