/* dali_index.h - index files of tar archives, as NVIDIA DALI's wds2idx writes them: where each
 * sample's components stand.
 *
 * Lines are `ext offset size filename` per component (v1.2) or `ext offset size` (v1.1), one line a
 * sample, after a first line `v1.2 <samples>`. What is read is untrusted.
 */
#pragma once

#include "util/util.h"

/* One component of a sample. */
typedef struct {
    const char *ext, *name; /* name: "" in v1.1 */
    uint64_t offset, size;
} IndexPart;
typedef bool IndexEach(void *ctx, long sample, const IndexPart *parts, int n, Error *e);

/* Calls `each` for every sample. Refused: another version, another number of samples than stated,
 * offsets that are no multiple of 512, no samples, samples without components. */
bool index_read(const char *path, IndexEach *each, void *ctx, Error *e);
/* What DALI's wds2idx writes for an archive, atomically; *samples may be NULL. Refused: names with
 * white space, which an index cannot hold, and archives without samples. */
bool index_write(const char *archive, const char *path, long *samples, Error *e);
