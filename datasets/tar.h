/* tar.h - tar files of samples (WebDataset shards): their names and members, writing them.
 *
 * A sample is the members whose names share everything before the first dot of the last path
 * component: `0000123.cls` and `0000123.jpg`. Everything read here is untrusted.
 */
#pragma once

#include "util/names.h"
#include "util/util.h"

/* ---- names ---- */

/* PATTERN[::PATTERN...], each with braces, or a folder: its *.tar, sorted; if it has none, those of
 * its folders that are named like splits. */
bool tar_names(const char *patterns, Names *out, Error *e);
/* Adds the names of compressed archives in a folder that do not lie unpacked beside themselves. */
bool tar_packed(const char *dir, Names *out, Error *e);

/* ---- reading ---- */

enum { TAR_BLOCK = 512 }; /* of a header; what members are padded to */

/* A regular file in an archive. */
typedef struct {
    const char *name; /* as stored, pax and GNU long names resolved */
    size_t stem, ext; /* length of what names the sample; where the extension begins in name */
    uint64_t offset;  /* of its data in the archive, a multiple of 512 */
    uint64_t size;    /* bytes */
} TarMember;

/* Calls `each` for every regular file in order, until it returns false (which then is the result).
 * Directories, links, hidden files (a base name that is empty or begins with a dot), files without
 * an extension and members of unknown types are passed over. ustar, pax and GNU headers; checksums
 * are verified; sparse files, a member that reaches beyond the file's end and a file that ends in
 * the middle of a header are errors. A closing zero block may be missing; what follows it is not
 * read.
 * Errors name the archive and the offset. */
typedef bool TarEach(void *ctx, const TarMember *m, Error *e);
/* What is no error: links that have names of members, and whether no zero block closes the file. */
typedef struct {
    long links;
    bool open;
} TarRest;
/* `rest` may be NULL. */
bool tar_read(const char *path, TarEach *each, void *ctx, TarRest *rest, Error *e);
/* Whether a member belongs to the sample that `stem` names; NULL is none. */
bool tar_same_sample(const char *stem, const TarMember *m);

/* Whether a block of 512 bytes is the header of a regular file with so many bytes. */
bool tar_is_header(const uint8_t *block, uint64_t size);

/* ---- writing ---- */

typedef struct TarWriter TarWriter;
/* The file appears when tar_close has published it. Same members, same bytes: times are 0. */
TarWriter *tar_create(const char *path, Error *e);
bool tar_add(TarWriter *w, const char *name, const void *bytes, size_t n, Error *e);
uint64_t tar_bytes(const TarWriter *w); /* written so far */
bool tar_close(TarWriter *w, Error *e); /* frees w in any case */
void tar_abandon(TarWriter *w);         /* removes the unfinished file */
