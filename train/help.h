/* help.h - what people are told about flags: --help by command, and what other programs' flags are
 * called here. */
#pragma once

#include <stdbool.h>
#include <stdio.h>

/* What --help prints for a command: what it does and the flags it is mostly used with, or with `all`
 * every flag. */
void help_print(FILE *f, const char *command, bool all);
/* "--label-smoothing" for timm's "smoothing", with what is to be said about it; NULL: no program
 * that we know of has such a flag. Names are compared as flags are. */
const char *help_synonym(const char *name);
