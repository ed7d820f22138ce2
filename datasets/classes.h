/* classes.h - names of classes, in label order: files that list them, and which label a name has.
 */
#pragma once

#include "util/names.h"

/* The lines of a class file, white space at their ends removed. Line k (from 0) is class k, so only
 * the end of the file may have empty lines. */
bool classes_read(const char *path, Names *out, Error *e);
/* Whether lines begin with ids, which names follow ("n01440764 tench"): all have two words, or a
 * digit in the first. Names alone have some of one word, "goldfish" beside "great white shark". */
bool classes_have_ids(const Names *lines);
/* Names for `n` numbered classes: the class file, if not NULL, which must have as many; else the
 * lines of `list`, if it is not NULL and has as many; else their numbers. */
bool classes_number(Names *out, int n, const char *file, const char *list, Error *e);

/* The order of names that no file lists. Byte: as strcmp. Natural: runs of digits count as numbers
 * (2 before 10). Timm: natural, and letters in either case alike (timm's natural_key); ASCII's. */
enum { ORDER_BYTE, ORDER_NATURAL, ORDER_TIMM };
void classes_sort(Names *l, int order);
void classes_distinct(Names *l);            /* in byte order, each once */
bool classes_orders_differ(const Names *l); /* byte and timm would number them differently */

/* Names to labels: a line answers to all of its text, or to its first word. NULL and an error if
 * two lines of the list (named by `list`) are equal. Names and `list` must outlive it. */
typedef struct ClassKeys ClassKeys;
ClassKeys *class_keys(const Names *classes, const char *list, Error *e);
/* -1 if no line, -2 if more than one line's first word is this name. */
int class_label(const ClassKeys *k, const char *name);
/* The same, or -1 and an error that begins with `what` ("the class folder DIR/a"). */
int class_label_of(const ClassKeys *k, const char *name, const char *what, Error *e);
void class_keys_free(ClassKeys *k);
