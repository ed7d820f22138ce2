/* parts.c - what the readers of picture files share: memory that is kept, limits of size, and the
 * orientation that cameras store. */
#include "image/parts.h"

#include <stdlib.h>
#include <string.h>

const char hint_damaged[] = "replace the file, or remove it from the data set";

void *room_get(Room *r, size_t bytes)
{
    enum { KEPT = 64 << 20 }; /* more than this is given back when less will do */
    if (bytes > r->bytes || (r->bytes > KEPT && bytes < r->bytes / 2)) {
        free(r->p);
        r->bytes = bytes + bytes / 4;
        r->p = xmalloc(r->bytes);
    }
    return r->p;
}

void room_free(Room *r)
{
    free(r->p);
    *r = (Room){0};
}

void image_alloc(Image *im, int w, int h)
{
    im->w = w;
    im->h = h;
    im->rgb = xmalloc((size_t)w * h * 3);
}

void image_free(Image *im)
{
    free(im->rgb);
    *im = (Image){0};
}

bool size_is_sane(long w, long h, bool in_memory, Error *e)
{
    static const char hint[] = "scale it down, or remove it from the data set";
    if (w < 1 || h < 1)
        return fail(e, hint_damaged, "image has no pixels (%ld x %ld)", w, h);
    if (in_memory && w > IMAGE_MAX_PIXELS / h)
        return fail(e, hint, "image is too large: %ld x %ld, the limit is %ld pixels", w, h,
                    IMAGE_MAX_PIXELS);
    if (w > IMAGE_MAX_SIDE || h > IMAGE_MAX_SIDE)
        return fail(e, hint, "image is too long: %ld x %ld, the limit of a side is %d pixels", w, h,
                    IMAGE_MAX_SIDE);
    return true;
}

uint32_t get_uint(const uint8_t *p, int bytes, bool little)
{
    uint32_t v = 0;
    for (int i = 0; i < bytes; i++)
        v = v << 8 | p[little ? bytes - 1 - i : i];
    return v;
}

/* A TIFF block: byte order, where the directory stands, and there a count and entries of 12 bytes:
 * tag, type, number of values, the value. */
int exif_orientation(const uint8_t *p, size_t n)
{
    if (n < 8 || (memcmp(p, "II*\0", 4) != 0 && memcmp(p, "MM\0*", 4) != 0))
        return 1;
    bool little = p[0] == 'I';
    size_t at = get_uint(p + 4, 4, little);
    if (at > n - 2)
        return 1;
    int entries = (int)get_uint(p + at, 2, little);
    at += 2;
    for (int i = 0; i < entries && n - at >= 12; i++, at += 12) {
        if (get_uint(p + at, 2, little) != 0x0112)
            continue;
        bool is_long = get_uint(p + at + 2, 2, little) == 4;
        uint32_t v = get_uint(p + at + 8, is_long ? 4 : 2, little);
        return v >= 1 && v <= 8 ? (int)v : 1;
    }
    return 1;
}
