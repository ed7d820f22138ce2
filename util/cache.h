/* cache.h - what took long to find out, kept for the next run. */
#pragma once

#include "util/util.h"

/* What was last saved for this key, or NULL: absent, damaged, another version's or not this user's.
 * free() it. */
uint8_t *cache_load(const char *kind, const char *key, size_t *n);
/* What is quicker to find out again is not worth a file. */
#define CACHE_ENTRIES 10000
#define CACHE_SECONDS 0.5
/* What changed so shortly before it was read may change again without a new time: FAT counts in
 * steps of two seconds, and other machines' clocks differ. */
#define CACHE_MARGIN 3
/* Failures are silent: it is only a cache. */
void cache_save(const char *kind, const char *key, const void *bytes, size_t n);
