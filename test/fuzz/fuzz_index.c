/* fuzz_index.c - index_read. */
#include "fuzz.h"
#include "datasets/dali_index.h"

#include <string.h>

static bool check_sample(void *ctx, long sample, const IndexPart *parts, int n, Error *e)
{
    long *next = ctx;
    (void)e;
    MUST(sample == (*next)++ && n > 0);
    for (int i = 0; i < n; i++)
        MUST(*parts[i].ext && parts[i].name && parts[i].offset % 512 == 0 && parts[i].offset > 0 &&
             parts[i].offset + parts[i].size < UINT64_MAX / 2 && !strpbrk(parts[i].name, " \n"));
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    Error e = {"", ""};
    long next = 0;
    bool ok = index_read(fuzz_file(bytes, n), check_sample, &next, &e);
    MUST(ok ? next > 0 : *e.what && *e.hint);
    return 0;
}
