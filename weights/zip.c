/* zip.c - the members of a zip archive. See zip.h.
 *
 * Format: PKWARE's APPNOTE.TXT 4.3. From the end: the end record (22 bytes and a comment) says
 * where the directory is and how many members it lists; where a number does not fit, it is all
 * ones, and stands in the zip64 end record, to which a locator before the end record points, or in
 * a field of the member. A directory entry says where the member's local header is, whose own name
 * and extra field come before the data.
 *
 * Read in this order: numbers, the end record, one member, all of them, unpacking, writing.
 */
#include "weights/zip.h"

#include "util/files.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#ifdef HAVE_ZLIB
#include <zlib.h>
#endif

/* ---- numbers ---- */

typedef struct {
    const uint8_t *bytes;
    uint64_t size;
    const char *path;
    Error *e;
} Archive;

static const char hint[] = "was the file copied completely? Download it again";

static uint64_t number(const uint8_t *p, int bytes)
{
    uint64_t n = 0;
    for (int i = bytes - 1; i >= 0; i--)
        n = n << 8 | p[i];
    return n;
}

/* The n bytes from `at` on, which begin with this signature; NULL where there are none. */
static const uint8_t *record(const Archive *a, uint64_t at, uint64_t n, uint32_t signature)
{
    bool there = at <= a->size && n <= a->size - at && number(a->bytes + at, 4) == signature;
    return there ? a->bytes + at : NULL;
}

/* ---- the end record ---- */

enum { END_BYTES = 22, LOCATOR_BYTES = 20, END64_BYTES = 56, ENTRY_BYTES = 46, LOCAL_BYTES = 30 };
enum {
    END = 0x06054b50,
    LOCATOR = 0x07064b50,
    END64 = 0x06064b50,
    ENTRY = 0x02014b50,
    LOCAL = 0x04034b50
};
#define ONES(bytes) (~0ull >> (64 - 8 * (bytes)))

/* Where the directory begins, and how many members it has. */
static bool find_directory(const Archive *a, uint64_t *at, uint64_t *count)
{
    uint64_t end = a->size < END_BYTES ? 0 : a->size - END_BYTES;
    uint64_t stop = end > 0xffff ? end - 0xffff : 0; /* a comment may follow */
    while (end > stop && !record(a, end, END_BYTES, END))
        end--;
    const uint8_t *p = record(a, end, END_BYTES, END);
    if (!p)
        return fail(a->e, hint, "%s: begins as a zip archive, but has no directory at its end",
                    a->path);
    *count = number(p + 10, 2);
    *at = number(p + 16, 4);
    const uint8_t *locator =
        end < LOCATOR_BYTES ? NULL : record(a, end - LOCATOR_BYTES, LOCATOR_BYTES, LOCATOR);
    const uint8_t *end64 = locator ? record(a, number(locator + 8, 8), END64_BYTES, END64) : NULL;
    if (end64) {
        *count = number(end64 + 32, 8);
        *at = number(end64 + 48, 8);
    }
    return true;
}

/* ---- one member ---- */

static bool bad(const Archive *a, uint64_t i, const char *what)
{
    return fail(a->e, hint, "%s: member %" PRIu64 " of the zip archive: %s", a->path, i, what);
}

/* Of size, packed and where: those that are all ones stand in the field of type 1, in order. */
static void read_zip64(const uint8_t *extra, uint64_t n, uint64_t *const value[3])
{
    while (n >= 4) {
        uint64_t type = number(extra, 2), length = number(extra + 2, 2);
        if (length > n - 4)
            return;
        const uint8_t *p = extra + 4, *end = p + length;
        for (int i = 0; type == 1 && i < 3; i++)
            if (*value[i] == ONES(4) && end - p >= 8) {
                *value[i] = number(p, 8);
                p += 8;
            }
        extra += 4 + length;
        n -= 4 + length;
    }
}

/* The i-th entry of the directory, at *at, which moves on. */
static bool read_member(const Archive *a, uint64_t i, uint64_t *at, ZipMember *m)
{
    const uint8_t *p = record(a, *at, ENTRY_BYTES, ENTRY);
    if (!p)
        return bad(a, i, "its entry in the directory is not there");
    uint64_t name = number(p + 28, 2), extra = number(p + 30, 2), comment = number(p + 32, 2);
    uint64_t all = ENTRY_BYTES + name + extra + comment;
    if (all > a->size - *at)
        return bad(a, i, "its entry ends behind the file");
    uint64_t where = number(p + 42, 4);
    m->method = (int)number(p + 10, 2);
    m->packed = number(p + 20, 4);
    m->size = number(p + 24, 4);
    read_zip64(p + ENTRY_BYTES + name, extra, (uint64_t *const[]){&m->size, &m->packed, &where});
    if (number(p + 8, 2) & 1)
        return bad(a, i, "is encrypted");
    *at += all;
    const uint8_t *local = record(a, where, LOCAL_BYTES, LOCAL);
    if (!local)
        return bad(a, i, "is not where the directory says");
    uint64_t data = where + LOCAL_BYTES + number(local + 26, 2) + number(local + 28, 2);
    if (data > a->size || m->packed > a->size - data)
        return bad(a, i, "ends behind the file");
    if (m->method == ZIP_STORED && m->packed != m->size)
        return bad(a, i, "has two lengths");
    if (memchr(p + ENTRY_BYTES, 0, name))
        return bad(a, i, "has a zero in its name");
    m->bytes = a->bytes + data;
    m->name = xasprintf("%.*s", (int)name, (const char *)p + ENTRY_BYTES);
    return true;
}

/* ---- all of them ---- */

bool zip_read(const uint8_t *bytes, uint64_t size, const char *path, Zip *z, Error *e)
{
    const Archive a = {bytes, size, path, e};
    uint64_t at = 0, count = 0;
    *z = (Zip){0};
    if (!find_directory(&a, &at, &count))
        return false;
    if (count > size / ENTRY_BYTES)
        return fail(e, hint, "%s: the zip archive cannot have %" PRIu64 " members", path, count);
    z->member = xcalloc((size_t)count + 1, sizeof *z->member);
    for (uint64_t i = 0; i < count; i++, z->count++)
        if (!read_member(&a, i, &at, &z->member[i])) {
            zip_free(z);
            return false;
        }
    return true;
}

void zip_free(Zip *z)
{
    for (int i = 0; i < z->count; i++)
        free(z->member[i].name);
    free(z->member);
    *z = (Zip){0};
}

/* ---- unpacking ---- */

#ifdef HAVE_ZLIB
/* Deflate makes at most 1032 bytes of one. */
static uint8_t *inflate_member(const ZipMember *m, const char *path, Error *e)
{
    z_stream s = {.next_in = (Bytef *)m->bytes};
    uint8_t *out = m->size / 1032 <= m->packed ? malloc((size_t)m->size + 1) : NULL;
    uint64_t done = 0, taken = 0;
    int state = Z_OK;
    if (out && inflateInit2(&s, -MAX_WBITS) == Z_OK) {
        for (s.next_out = out; state == Z_OK; done += s.next_out - (out + done)) {
            uint64_t in = m->packed - taken, room = m->size - done;
            s.avail_in = in < 1 << 30 ? (uInt)in : 1 << 30;
            s.avail_out = room < 1 << 30 ? (uInt)room : 1 << 30;
            uInt before = s.avail_in;
            state = inflate(&s, Z_NO_FLUSH);
            taken += before - s.avail_in;
        }
        inflateEnd(&s);
    }
    if (state == Z_STREAM_END && done == m->size)
        return out;
    free(out);
    fail(e, hint, "%s: %.150s: cannot be unpacked to its %" PRIu64 " bytes", path, m->name,
         m->size);
    return NULL;
}
#else
static uint8_t *inflate_member(const ZipMember *m, const char *path, Error *e)
{
    fail(e, "make deps (zlib1g-dev) and build again, or save it with numpy.savez",
         "%s: %.150s is compressed, and this program was built without zlib", path, m->name);
    return NULL;
}
#endif

const uint8_t *zip_bytes(const ZipMember *m, const char *path, uint8_t **made, Error *e)
{
    *made = NULL;
    if (m->method == ZIP_STORED)
        return m->bytes;
    if (m->method == ZIP_DEFLATED)
        return *made = inflate_member(m, path, e);
    fail(e, "unzip it and zip it again without compression (zip -0)",
         "%s: %.150s is packed by method %d, which is not known here", path, m->name, m->method);
    return NULL;
}

/* ---- writing ---- */

/* CRC-32 of IEEE 802.3, reflected: of what has `crc`, and n bytes behind it. */
static uint32_t crc32_of(uint32_t crc, const uint8_t *p, size_t n)
{
    static uint32_t table[256];
    for (uint32_t i = 0; !table[255] && i < 256; i++) {
        uint32_t x = i;
        for (int bit = 0; bit < 8; bit++)
            x = x & 1 ? x >> 1 ^ 0xedb88320u : x >> 1;
        table[i] = x;
    }
    crc = ~crc;
    for (size_t i = 0; i < n; i++)
        crc = crc >> 8 ^ table[(crc ^ p[i]) & 0xff];
    return ~crc;
}

static size_t put(uint8_t *p, size_t at, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        p[at + (size_t)i] = (uint8_t)(value >> 8 * i);
    return at + (size_t)bytes;
}

/* What local headers and the directory say alike, from the version to the name's length. */
static size_t put_member(uint8_t *p, size_t at, const ZipEntry *m, uint32_t crc)
{
    enum { VERSION = 20, STORED = 0, TIME = 0, DATE = 0x21 }; /* 1980-01-01 */
    const struct {
        uint64_t value;
        int bytes;
    } fields[] = {{VERSION, 2},
                  {0, 2},
                  {STORED, 2},
                  {TIME, 2},
                  {DATE, 2},
                  {crc, 4},
                  {m->begins + m->n, 4},
                  {m->begins + m->n, 4},
                  {strlen(m->name), 2},
                  {0, 2}};
    for (int i = 0; i < COUNT(fields); i++)
        at = put(p, at, fields[i].value, fields[i].bytes);
    return at;
}

bool zip_write(const char *path, const ZipEntry *entry, int n, Error *e)
{
    uint64_t total = 22, names = 0;
    for (int i = 0; i < n; i++)
        names += 46 + strlen(entry[i].name);
    for (int i = 0; i < n; i++)
        total += 76 + 2 * strlen(entry[i].name) + entry[i].begins + entry[i].n;
    if (total > UINT32_MAX || n > UINT16_MAX)
        return fail(e, "export it to safetensors (timm)", "%s: would be above 4 GiB", path);
    FileWriter *f = file_create(path, e);
    uint8_t *directory = xmalloc(names + 1), local[30];
    uint64_t offset = 0;
    size_t size = 0;
    bool ok = f != NULL;
    for (int i = 0; ok && i < n; i++) {
        const ZipEntry *m = &entry[i];
        size_t length = strlen(m->name);
        uint32_t crc = crc32_of(0, m->begin, m->begins);
        crc = crc32_of(crc, m->rest, m->n);
        put_member(local, put(local, 0, 0x04034b50, 4), m, crc);
        ok = file_write(f, local, sizeof local, e) && file_write(f, m->name, length, e) &&
             file_write(f, m->begin, m->begins, e) && file_write(f, m->rest, m->n, e);
        size = put(directory, put(directory, size, 0x02014b50, 4), 20, 2);
        size = put_member(directory, size, m, crc);
        size = put(directory, size, 0, 6); /* no comment, disk 0, attributes */
        size = put(directory, size, 0, 4);
        size = put(directory, size, offset, 4);
        memcpy(directory + size, m->name, length);
        size += length;
        offset += sizeof local + length + m->begins + m->n;
    }
    uint8_t end[22];
    size_t at = put(end, 0, 0x06054b50, 4);
    at = put(end, at, 0, 4);
    at = put(end, at, (uint64_t)n, 2);
    at = put(end, at, (uint64_t)n, 2);
    at = put(end, at, size, 4);
    at = put(end, at, offset, 4);
    put(end, at, 0, 2);
    ok = ok && file_write(f, directory, size, e) && file_write(f, end, sizeof end, e);
    free(directory);
    if (ok)
        return file_publish(f, true, e);
    file_abandon(f);
    return false;
}
