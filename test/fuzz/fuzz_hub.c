/* fuzz_hub.c - config.json and preprocessor_config.json beside weights, and args in their form. */
#include "fuzz.h"
#include "util/files.h"
#include "weights/hub.h"

#include <string.h>

static char dir[] = "/dev/shm/fuzz_hub.XXXXXX";

static void remove_dir(void)
{
    rmdir(dir);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    static char path[64];
    static const char *const names[] = {"config.json", "preprocessor_config.json"};
    if (!*path) {
        MUST(mkdtemp(dir) != NULL);
        MUST(atexit(remove_dir) == 0);
        snprintf(path, sizeof path, "%s/model.safetensors", dir);
    }
    for (int i = 0; i < 2; i++) {
        Error e = {"", ""};
        Hub h;
        char file[96];
        snprintf(file, sizeof file, "%s/%s", dir, names[i]);
        MUST(save_file(file, bytes, n, false, &e));
        MUST(hub_read(path, &h, &e) || *e.what);
        char *text = xasprintf("%.*s", (int)n, (const char *)bytes);
        if (i == 0)
            MUST(hub_args(path, text, &h, &e) || *e.what);
        free(text);
        MUST(h.heads >= 0 && h.crop_pct >= 0 && h.crop_pct <= 1 && strlen(h.from) < sizeof h.from);
        Names labels = {0};
        MUST(hub_labels(path, 3, &labels, &e) == (labels.n == 3));
        names_free(&labels);
        unlink(file);
    }
    return 0;
}
