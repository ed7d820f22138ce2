/* fake.c - fake data: no disk, and no decoding. Images are bits of a counter, or zeros; labels go
 * round. It shows what a model can do where data never makes it wait.
 */
#include "datasets/source.h"
#include "datasets/classes.h"
#include "util/rng.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    Source base; /* item: unused */
    bool zeros;
    uint64_t seed;
    size_t bytes; /* of an image */
} Fake;

static void make_image(const Source *s, long i, uint8_t *out)
{
    const Fake *f = (const Fake *)s;
    if (f->zeros) {
        memset(out, 0, f->bytes);
        return;
    }
    for (size_t at = 0; at < f->bytes; at += sizeof(Philox)) {
        Philox p = rng_block(f->seed, (uint32_t)(at / sizeof p), (uint32_t)i, 0, RNG_SHAPES, 1);
        memcpy(out + at, p.v, f->bytes - at < sizeof p ? f->bytes - at : sizeof p);
    }
}

static char *fake_path(const Source *s, long i)
{
    (void)s;
    return xasprintf("fake#%ld", i);
}

static const SourceKind kind = {.make = make_image, .path = fake_path};

/* [zeros][:COUNT] */
Source *fake_open(const char *text, const DataOptions *o, Error *e)
{
    long n = o->fake_count;
    bool zeros = strncmp(text, "zeros", 5) == 0 && (!text[5] || text[5] == ':');
    text += zeros ? 5 + (text[5] == ':') : 0;
    if (*text) {
        char *end;
        n = strtol(text, &end, 10);
        if (*end || *text < '0' || *text > '9' || n > INT32_MAX) {
            fail(e, "fake data is fake[:zeros][:COUNT], such as fake:zeros:1281167",
                 "'%s' is no number of fake images", text);
            return NULL;
        }
    }
    if (n < 1 || o->fake_classes < 1) {
        fail(e, "raise the number of images and of classes to 1 or more",
             "fake data needs at least one image and one class");
        return NULL;
    }
    Fake *f = xcalloc(1, sizeof *f);
    *f = (Fake){.base.kind = &kind,
                .zeros = zeros,
                .seed = o->seed,
                .bytes = (size_t)3 * o->images.out_h * o->images.out_w};
    for (long i = 0; i < n; i++)
        source_add(&f->base, 0, (int)(i % o->fake_classes));
    return source_opened(&f->base,
                         classes_number(&f->base.classes, o->fake_classes, o->classes, NULL, e));
}
