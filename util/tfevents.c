/* tfevents.c - TensorBoard's event files. See tfevents.h for the format.
 *
 * A protocol buffer is a row of fields: a varint of (number << 3 | wire type), then 8 bytes (type
 * 1), 4 bytes (5), a varint (0), or a varint of a length and as many bytes (2), which may be fields
 * again. So messages are built from the inside out, each in a Bytes.
 *
 * Read in this order: checksum, protocol buffers, records, events.
 */
#include "util/tfevents.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- checksum ---- */

/* Reflected, polynomial 0x1EDC6F41; four bits at a time. */
uint32_t crc32c(const void *bytes, size_t n)
{
    static const uint32_t table[16] = {0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1,
                                       0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
                                       0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
                                       0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75};
    const uint8_t *s = bytes;
    uint32_t c = ~0u;
    for (size_t i = 0; i < n; i++) {
        c ^= s[i];
        c = c >> 4 ^ table[c & 15];
        c = c >> 4 ^ table[c & 15];
    }
    return ~c;
}

/* So that a checksum of bytes that hold checksums is no constant. */
static uint32_t masked(uint32_t c)
{
    return (c >> 15 | c << 17) + 0xa282ead8u;
}

/* ---- protocol buffers ---- */

typedef struct {
    uint8_t *at;
    size_t n;
} Bytes;

static void put(Bytes *b, const void *bytes, size_t n)
{
    b->at = xrealloc(b->at, b->n + n + 1);
    memcpy(b->at + b->n, bytes, n);
    b->n += n;
}

/* The n lowest bytes of v, the least first. */
static void put_le(Bytes *b, uint64_t v, int n)
{
    for (int i = 0; i < n; i++)
        put(b, &(uint8_t){(uint8_t)(v >> 8 * i)}, 1);
}

static void put_varint(Bytes *b, uint64_t v)
{
    for (; v >= 128; v >>= 7)
        put(b, &(uint8_t){(uint8_t)(v | 128)}, 1);
    put(b, &(uint8_t){(uint8_t)v}, 1);
}

enum { VARINT, FIXED64, LENGTH, FIXED32 = 5 };

static void put_key(Bytes *b, int field, int type)
{
    put_varint(b, (uint64_t)(field << 3 | type));
}

static void put_int(Bytes *b, int field, long v)
{
    put_key(b, field, VARINT);
    put_varint(b, (uint64_t)v);
}

static void put_double(Bytes *b, int field, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_key(b, field, FIXED64);
    put_le(b, bits, 8);
}

static void put_float(Bytes *b, int field, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_key(b, field, FIXED32);
    put_le(b, bits, 4);
}

static void put_bytes(Bytes *b, int field, const void *bytes, size_t n)
{
    put_key(b, field, LENGTH);
    put_varint(b, n);
    put(b, bytes, n);
}

static void put_string(Bytes *b, int field, const char *s)
{
    put_bytes(b, field, s, strlen(s));
}

/* The message `inner`, which is freed. */
static void put_message(Bytes *b, int field, Bytes *inner)
{
    put_bytes(b, field, inner->at, inner->n);
    free(inner->at);
    *inner = (Bytes){0};
}

/* ---- records ---- */

static FILE *file;
static bool failed;

/* An event with `content` (freed) as its field, as one record. */
static void write_event(long step, int field, Bytes *content)
{
    struct timespec t;
    Bytes event = {0}, record = {0};
    clock_gettime(CLOCK_REALTIME, &t);
    put_double(&event, 1, (double)t.tv_sec + 1e-9 * (double)t.tv_nsec);
    put_int(&event, 2, step);
    put_message(&event, field, content);
    put_le(&record, event.n, 8);
    put_le(&record, masked(crc32c(record.at, 8)), 4);
    put(&record, event.at, event.n);
    put_le(&record, masked(crc32c(event.at, event.n)), 4);
    bool ok = fwrite(record.at, 1, record.n, file) == record.n;
    if ((fflush(file) != 0 || !ok) && !failed) {
        failed = true;
        warn("cannot write TensorBoard's events: %s", strerror(errno));
    }
    free(event.at);
    free(record.at);
}

/* ---- events ---- */

enum { FILE_VERSION = 3, SUMMARY = 5, SESSION_LOG = 7 };

bool events_open(const char *dir, long step, Error *e)
{
    char host[256] = "";
    Bytes b = {0};
    gethostname(host, sizeof host - 1);
    char *path =
        xasprintf("%s/events.out.tfevents.%ld.%s.%ld", dir, (long)time(NULL), host, (long)getpid());
    file = fopen(path, "wb");
    bool ok = file || fail(e, "choose another --out", "cannot write %s: %s", path, strerror(errno));
    free(path);
    if (!ok)
        return false;
    put(&b, "brain.Event:2", 13);
    write_event(0, FILE_VERSION, &b);
    if (step > 0) {
        put_int(&b, 1, 1); /* SessionLog.START */
        write_event(step, SESSION_LOG, &b);
    }
    return true;
}

void events_close(void)
{
    if (file)
        fclose(file);
    file = NULL;
}

bool events_are_open(void)
{
    return file != NULL;
}

void events_scalars(long step, const EventScalar *s, int n)
{
    Bytes summary = {0};
    if (!file || n == 0)
        return;
    for (int i = 0; i < n; i++) {
        Bytes value = {0};
        put_string(&value, 1, s[i].tag);
        put_float(&value, 2, (float)s[i].value);
        put_message(&summary, 1, &value);
    }
    write_event(step, SUMMARY, &summary);
}

/* A tensor of one string, which the metadata gives to the plugin for text. */
void events_text(long step, const char *tag, const char *text)
{
    enum { DT_STRING = 7 };
    Bytes dim = {0}, shape = {0}, tensor = {0}, plugin = {0}, metadata = {0}, value = {0},
          summary = {0};
    if (!file)
        return;
    put_int(&dim, 1, 1);
    put_message(&shape, 2, &dim);
    put_int(&tensor, 1, DT_STRING);
    put_message(&tensor, 2, &shape);
    put_string(&tensor, 8, text);
    put_string(&plugin, 1, "text");
    put_message(&metadata, 1, &plugin);
    put_string(&value, 1, tag);
    put_message(&value, 8, &tensor);
    put_message(&value, 9, &metadata);
    put_message(&summary, 1, &value);
    write_event(step, SUMMARY, &summary);
}

void events_jpeg(long step, const char *tag, const uint8_t *bytes, size_t n, int w, int h)
{
    Bytes image = {0}, value = {0}, summary = {0};
    if (!file)
        return;
    put_int(&image, 1, h);
    put_int(&image, 2, w);
    put_int(&image, 3, 3); /* RGB */
    put_bytes(&image, 4, bytes, n);
    put_string(&value, 1, tag);
    put_message(&value, 4, &image);
    put_message(&summary, 1, &value);
    write_event(step, SUMMARY, &summary);
}
