/* zip.h - the members of a zip archive that is in memory: what .npz and .pth files are.
 *
 * Only the directory at the end is believed, and every number in it is checked: a member that this
 * gives lies within the archive.
 */
#pragma once

#include "util/util.h"

typedef struct {
    char *name;
    const uint8_t *bytes; /* [packed], as they lie in the archive */
    uint64_t packed, size; /* size: when they are unpacked */
    int method;            /* ZIP_STORED: bytes are the member's own */
} ZipMember;
enum { ZIP_STORED = 0, ZIP_DEFLATED = 8 };

typedef struct {
    ZipMember *member;
    int count;
} Zip;

bool zip_read(const uint8_t *bytes, uint64_t size, const char *path, Zip *z, Error *e);
void zip_free(Zip *z);
/* The member's own bytes: where it lies, or unpacked into memory that the caller frees (*made, else
 * NULL). NULL and an error where it is damaged, or packed in a way that this build cannot undo. */
const uint8_t *zip_bytes(const ZipMember *m, const char *path, uint8_t **made, Error *e);

/* Writing: members as they are, `begin` and then `rest`. */
typedef struct {
    char *name;
    void *begin;
    size_t begins;
    const void *rest;
    size_t n;
} ZipEntry;
bool zip_write(const char *path, const ZipEntry *entry, int n, Error *e); /* up to 4 GiB */
