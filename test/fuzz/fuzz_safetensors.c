/* fuzz_safetensors.c - headers of weights files, and the model's settings that they give. */
#include "fuzz.h"
#include "weights/weights.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    Error e = {"", ""};
    char assumed[256];
    const char *path = fuzz_file(bytes, n);
    SafeTensors *f = st_open(path, &e);
    MUST(f || (*e.what && *e.hint));
    if (f)
        st_close(f);
    Config c;
    if (!weights_config(path, &c, assumed, sizeof assumed, &e))
        MUST(*e.what);
    return 0;
}
