/* webdataset_index.h - which samples tar shards hold: where each picture is, and its label. */
#pragma once

#include "datasets/splits.h"
#include "util/names.h"

typedef struct {
    uint64_t offset; /* of the picture's bytes in the shard */
    uint32_t size;
    int32_t label;
} ShardSample;

/* What is said of a shard once. */
typedef struct {
    int64_t lies[SPLITS]; /* samples in a folder named for each split, in the archive; */
    int64_t pictures;     /* those with several pictures, of which the first counts; */
    int64_t links;        /* links, which are not followed; */
    int64_t open;         /* 1: the archive has no end */
} ShardFacts;

typedef struct {
    char *path;
    uint64_t bytes; /* of the file, */
    int64_t time;   /* when it was written, in nanoseconds, */
    uint64_t inode; /* and which file it is: clocks are coarse */
    long n;
    ShardSample *sample; /* [n] */
    ShardFacts facts;
    Names names; /* where labels are names: those that occur, sorted; a label is its place */
} Shard;

struct stat;
/* Whether `st` is of the same file, unchanged. */
bool shard_same_file(const Shard *shard, const struct stat *st);
/* Fills in the n shards, whose paths are given: from idx_N.txt in index_dir, shard by shard, or
 * from the shards' own headers where it is NULL; or from what was found the last time
 * (util/cache.h). Labels are where `label` says: in the member with that extension, in a key of the
 * JSON object there (EXT:KEY), or `folder`: the last folder in the member's name. */
bool shards_index(Shard *shard, int n, const char *index_dir, const char *label, Error *e);
void shard_free(Shard *shard); /* what it holds */
/* "shard.tar#0000123.jpg"; free() it. */
char *shard_sample_path(const Shard *shard, const ShardSample *s);
