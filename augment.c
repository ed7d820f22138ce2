/* augment.c - colour jitter, RandAugment, AutoAugment: images changed at random, as Pillow would.
 */
#include "image.h"

#include <stdlib.h>

struct Augmentation {
    int unused;
};

Augmentation *augmentation_new(const char *jitter, const char *policy, Error *e)
{
    if (*jitter || *policy) {
        fail(e, "leave it out", "%s%s: not there yet", jitter, policy);
        return NULL;
    }
    return xcalloc(1, sizeof(Augmentation));
}

void augmentation_free(Augmentation *a)
{
    free(a);
}

void augment_image(const Augmentation *a, View v, uint8_t *rgb, int w, int h, uint8_t *scratch)
{
    (void)a, (void)v, (void)rgb, (void)w, (void)h, (void)scratch;
}
