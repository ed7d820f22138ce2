/* classes.h - names of classes, in label order: files that list them, and which label a name has.
 */
#pragma once

#include "util/names.h"

/* The lines of a class file, white space at their ends removed. Line k (from 0) is class k, so only
 * the end of the file may have empty lines. */
bool classes_read(const char *path, Names *out, Error *e);
/* Names for `n` numbered classes: the class file, if not NULL, which must have as many; else the
 * lines of `list`, if it is not NULL and has as many; else their numbers. */
bool classes_number(Names *out, int n, const char *file, const char *list, Error *e);

/* Names to labels: a line answers to all of its text, or to its first word. NULL and an error if
 * two lines of the list (named by `list`) are equal. The names must outlive it. */
typedef struct ClassKeys ClassKeys;
ClassKeys *class_keys(const Names *classes, const char *list, Error *e);
/* -1 if no line, -2 if more than one line's first word is this name. */
int class_label(const ClassKeys *k, const char *name);
void class_keys_free(ClassKeys *k);
