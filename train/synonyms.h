/* synonyms.h - what other programs' flags are called here. */
#pragma once

/* "--label-smoothing" for timm's "smoothing", with what is to be said about it; NULL: no program
 * that we know of has such a flag. Names are compared as flags are. */
const char *flag_synonym(const char *name);
