/* tfevents.h - TensorBoard's event files: scalars, pictures and text, written as a run goes on.
 *
 * A file is a row of records (TFRecord): uint64 length, masked CRC-32C of these 8 bytes, the bytes,
 * their masked CRC-32C, all little-endian. Each record is a protocol buffer, tensorflow.Event, of
 * which these fields are used (docs/results.md has the whole list):
 *
 *   Event    1 double wall_time   2 int64 step   3 string file_version   5 Summary   7 SessionLog
 *   Summary  1 Value, repeated
 *   Value    1 string tag   2 float simple_value   4 Image   8 tensor   9 metadata
 */
#pragma once

#include "util/util.h"

/* A new file events.out.tfevents.TIME.HOST.PID in `dir`: TensorBoard reads all that are there. Of
 * what earlier ones say, it drops what comes at step `step` or later, where that is above 0. One
 * file at a time; without one the calls below do nothing. */
bool events_open(const char *dir, long step, Error *e);
void events_close(void);
bool events_are_open(void);

/* Each is flushed at once. A failed write is warned of once; the run goes on. */
typedef struct {
    char tag[48];
    double value;
} EventScalar;
void events_scalars(long step, const EventScalar *s, int n);
void events_text(long step, const char *tag, const char *text); /* Markdown */
void events_jpeg(long step, const char *tag, const uint8_t *bytes, size_t n, int w, int h);

/* CRC-32C (Castagnoli) of n bytes. */
uint32_t crc32c(const void *bytes, size_t n);
