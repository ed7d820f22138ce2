/* source.h - where samples come from: what data.c asks of each kind of data set.
 *
 * A kind is one file (folders.c, records.c, shards.c, and fake data in data.c) with one table of
 * functions, a SourceKind, and one function that opens it. Nothing outside data.c, these files and
 * their tests includes this header.
 */
#pragma once

#include "data.h"
#include "datasets/tar.h"
#include "util/names.h"

typedef struct Source Source;

/* Positions first .. first+count of an epoch are about to be read, and this machine reads one out
 * of `every` positions. */
typedef struct {
    bool shuffle;
    long epoch, first, count;
    double every;
} Upcoming;

/* All but open and close are called by several threads at once. */
typedef struct {
    bool stretch; /* objects without margin: the evaluation's crop would cut into them */
    /* Opens the picture of sample i; false if it is damaged. */
    bool (*read)(Source *s, long i, Decoder *d, Error *e);
    /* In read's place: makes an image of the model's size itself. */
    void (*make)(const Source *s, long i, const DataOptions *o, uint8_t *out);
    char *(*path)(const Source *s, long i); /* free() it */
    void (*close)(Source *s);               /* what is not in Source */
    /* Both may be NULL. A bijection on [0, n) in rng_shuffle's place; reading ahead. */
    long (*order)(Source *s, uint64_t seed, long epoch, long position);
    void (*ahead)(Source *s, uint64_t seed, const Upcoming *u);
} SourceKind;

/* The first member of every kind's own struct. */
struct Source {
    const SourceKind *kind;
    long n, room;
    int *labels;    /* [n] */
    uint64_t *item; /* [n]: where sample i is, as its kind understands it */
    Names classes;
};

/* What stands behind a spec's prefix, without preprocessing. NULL and an error if it cannot be
 * opened as a whole. */
typedef Source *SourceOpen(const char *where, const DataOptions *o, Error *e);
SourceOpen folders_open, cifar10_open, cifar100_open, mnist_open, shards_open, fake_open;

/* ---- data.c ---- */

void source_close(Source *s);
void source_reserve(Source *s, long more);
void source_add(Source *s, uint64_t item, int label);
/* Leaves what classes_fraction and per_class ask for. */
void source_subset(Source *s, const DataOptions *o);
/* each(ctx, i) for all i in [0, n), in several threads: more than there are cores, because the disk
 * is what takes time. */
void source_parallel(int n, void (*each)(void *ctx, int i), void *ctx);
/* Ends the program with one error, whichever threads come here: the data set itself is lost. */
NORETURN void source_lost(const char *hint, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* ---- classes.c: names of classes, in label order ---- */

/* The lines of a class file, white space at their ends removed. Line k (from 0) is class k, so only
 * the end of the file may have empty lines. */
bool classes_read(const char *path, Names *out, Error *e);
/* Names for `n` numbered classes: the class file, if not NULL, which must have as many; else the
 * lines of `list`, if it is not NULL and has as many; else their numbers. */
bool classes_number(Names *out, int n, const char *file, const char *list, Error *e);
/* Names to labels: a line answers to all of its text, or to its first word. NULL and an error if
 * two lines of the list (named by `list`) are equal. */
typedef struct ClassKeys ClassKeys;
ClassKeys *class_keys(const Names *classes, const char *list, Error *e);
/* -1 if no line, -2 if more than one line's first word is this name. */
int class_label(const ClassKeys *k, const char *name);
void class_keys_free(ClassKeys *k);

/* ---- listing.c: the images in a folder of class folders ---- */

typedef struct {
    char *text;   /* paths below root, zero-terminated, one after the other: folder by folder in */
    size_t size;  /* strcmp's order, the paths of one folder in strcmp's order */
    long n;       /* how many */
    Names folder; /* class folders, also those without images */
} Listing;
/* Every file with an image's extension, in any letter case, in a class folder of root or anywhere
 * below one. Hidden files and folders are passed over; links are followed, but no directory is read
 * twice for the same class. */
bool listing_read(const char *root, Listing *out, Error *e);
void listing_free(Listing *l);
bool list_folders(const char *dir, Names *out, Error *e); /* class folders alone, sorted */

bool image_extension(const char *ext); /* jpg, PNG, ... */

/* ---- shard_index.c: the samples in tar shards ---- */

typedef struct {
    uint64_t offset; /* of the picture's bytes in the shard */
    uint32_t size;
    int32_t label;
} ShardSample;
typedef struct {
    char *path;
    uint64_t bytes; /* of the file, */
    int64_t time;   /* when it was written, in nanoseconds, */
    uint64_t file;  /* and its inode: clocks are coarse */
    long n;
    ShardSample *sample; /* [n] */
} ShardIndex;
/* Fills in the n shards, whose paths are given: from idx_N.txt in index_dir, shard by shard, or
 * from the shards' own headers where it is NULL; or from what was found the last time (cache.c). */
bool shards_index(ShardIndex *shard, int n, const char *index_dir, Error *e);
/* "shard.tar#0000123.jpg"; free() it. */
char *shard_sample_path(const ShardIndex *shard, const ShardSample *s);
