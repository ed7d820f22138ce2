/* synonyms.h - what other programs' flags, and their values, are called here. */
#pragma once

/* "--label-smoothing" for timm's "smoothing", with what is to be said about it; NULL: no program
 * that we know of has such a flag. Names are compared as flags are. */
const char *flag_synonym(const char *name);
/* "bf16" for PyTorch's "bfloat16": what a value is called here, of those that `words` ("a|b") has;
 * else NULL. */
const char *value_synonym(const char *value, const char *words);
