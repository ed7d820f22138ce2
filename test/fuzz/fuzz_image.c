/* fuzz_image.c - pictures of every format: whole, cropped, and for evaluation, exact and fast; the
 * same whatever was read before. */
#include "fuzz.h"
#include "image/decoder.h"

#include <string.h>

/* A decoder that has read nothing before gives the same. */
static void compare_with_fresh(const uint8_t *bytes, size_t n, const Preprocess *t, Box b, bool ok,
                               const uint8_t *out)
{
    static uint8_t again[24 * 16 * 3];
    Error e = {"", ""};
    Decoder *d = decoder_new();
    MUST((decoder_open(d, bytes, n, &e) && decoder_crop(d, t, b, false, again, &e)) == ok);
    MUST(!ok || memcmp(out, again, sizeof again) == 0);
    decoder_free(d);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    static Decoder *d;
    static uint8_t out[24 * 16 * 3];
    Error e = {"", ""};
    if (!d)
        d = decoder_new();
    if (!decoder_open(d, bytes, n, &e)) {
        MUST(*e.what);
        return 0;
    }
    int w = decoder_width(d), h = decoder_height(d);
    MUST(w > 0 && h > 0);
    if ((double)w * h > 3e5) /* slow, and no other code */
        return 0;
    for (int decode = DECODE_EXACT; decode <= DECODE_FAST; decode++) {
        Preprocess t = {.out_w = 24, .out_h = 16, .filter = FILTER_BICUBIC, .decode = decode};
        Box all = {0, 0, w, h}, part = {w / 3, h / 4, w - w / 2, h - h / 2},
            one = {w - 1, h - 1, 1, 1};
        bool ok = decoder_crop(d, &t, all, false, out, &e);
        MUST(ok || *e.what);
        compare_with_fresh(bytes, n, &t, all, ok, out);
        decoder_crop(d, &t, part, true, out, &e);
        decoder_crop(d, &t, one, false, out, &e);
        t.crop = (int)(n % 3);
        decoder_eval(d, &t, out, &e);
    }
    return 0;
}
