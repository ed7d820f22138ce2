/* field.h - the settings in a struct as a table: a row a field, text in and text out.
 *
 * A table is made by a macro X(type, field, ...), so that the struct, defaults, flags, files and
 * messages need no second list. A row's C type is also its type here: T_##type.
 */
#pragma once

#include "util/util.h"

typedef const char *text; /* the struct's own copy */
typedef int word;         /* an int whose values have names */

typedef enum { T_group, T_parts, T_text, T_int, T_long, T_double, T_bool, T_word } FieldType;
typedef struct {
    FieldType type;      /* T_group: no field, but the title of those that follow; T_parts: several
                            fields in one, which begin at its offset; its owner sets them */
    const char *name;    /* in C, and the key in files */
    const char *flag;    /* the same for people, where that is another */
    const char *value;   /* default */
    const char *allowed; /* numbers: "low..high", either end optional, "|auto" where that means 0;
                            words: "a|b|c" from value 0 on, where an empty name is nobody's */
    const char *help;
    size_t offset; /* in the struct */
} Field;

/* By name or flag, `-` and `_` alike; NULL: no such field. */
const Field *field_find(const Field *table, int n, const char *name);
/* Sets f of the struct `in`. Errors begin with `where` and call it `name`, as the user did; those
 * about numbers give the hint (NULL: what a number looks like). Ranges are not looked at. */
bool field_set(const Field *f, void *in, const char *value, const char *where, const char *name,
               const char *hint, Error *e);
bool field_in_range(const Field *f, const void *in); /* true where none is set */
void field_text(const Field *f, const void *in, char *out, size_t size); /* reads back the same */
void fields_default(const Field *table, int n, void *in);
/* The words that a user can choose from. */
const char *field_words(const Field *f);
