/* fuzz_brace.c - brace_count, and brace_expand where the names are few. */
#include "fuzz.h"
#include "util/names.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    Error e = {"", ""};
    Names l = {0};
    char *pattern = malloc(n + 1);
    memcpy(pattern, bytes, n);
    pattern[n] = 0;
    long count = brace_count(pattern, &e);
    MUST(count > 0 ? !*e.what : *e.what && *e.hint);
    if (count > 0 && count <= 1000) {
        MUST(brace_expand(pattern, &l, &e) && l.n == count);
        for (int i = 0; i < l.n; i++)
            MUST(strlen(l.at[i]) <= strlen(pattern));
    }
    names_free(&l);
    free(pattern);
    return 0;
}
