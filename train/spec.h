/* spec.h - a file of named configurations to time: a recipe's lines under [names].
 *
 * What stands before the first name holds for all; a name without lines is none. Keys are the
 * program's settings, and these:
 *   published = X     images/s that somebody has published, all devices together;
 *   on = TEXT         whose, and on which machine
 *   source = TEXT     where that is said
 *   baseline = NAME   the configuration of fewer devices that scaling efficiency is against
 */
#pragma once

#include "train/options.h"

typedef struct {
    const char *name, *on, *source, *baseline; /* "" where it is not said */
    double published;                          /* 0: nothing is */
} Configuration;

typedef struct {
    Configuration *list; /* [n], in the file's order */
    int n;
    Settings lines;
} Spec;

/* Fails where a key is unknown, a value malformed, a name or baseline wrong. */
bool spec_read(Spec *s, const char *path, Error *e);
void spec_free(Spec *s);
const Configuration *spec_find(const Spec *s, const char *name, Error *e);
/* The settings of c, onto o. */
bool spec_apply(const Spec *s, const Configuration *c, Options *o, Error *e);
