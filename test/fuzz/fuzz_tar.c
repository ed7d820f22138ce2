/* fuzz_tar.c - tar_read: as given, and with the checksums of what looks like a header put right. */
#include "fuzz.h"
#include "datasets/tar.h"

#include <string.h>

static bool check_member(void *ctx, const TarMember *m, Error *e)
{
    uint64_t size = *(size_t *)ctx;
    (void)e;
    size_t n = strlen(m->name);
    MUST(m->offset % 512 == 0 && m->offset <= size && m->size <= size - m->offset);
    MUST(m->stem > 0 && m->ext == m->stem + 1 && m->ext < n && m->name[m->stem] == '.');
    return true;
}

static void read_it(const uint8_t *bytes, size_t n)
{
    Error e = {"", ""};
    bool ok = tar_read(fuzz_file(bytes, n), check_member, &n, NULL, &e);
    MUST(ok || (*e.what && *e.hint));
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    read_it(bytes, n);
    uint8_t *sealed = malloc(n + 1);
    memcpy(sealed, bytes, n);
    for (size_t at = 0; at + 512 <= n; at += 512) {
        uint8_t *h = sealed + at;
        unsigned sum = 0;
        if (memcmp(h + 257, "ustar", 5) != 0)
            continue;
        memset(h + 148, ' ', 8);
        for (int i = 0; i < 512; i++)
            sum += h[i];
        snprintf((char *)h + 148, 8, "%06o", sum);
    }
    read_it(sealed, n);
    free(sealed);
    return 0;
}
