/* pickle.h - Python's pickles of plain data: texts, numbers, lists and dicts, as in CIFAR's files
 * with numpy arrays of bytes, and in PyTorch's with tensors. Nothing in them is executed.
 */
#pragma once

#include "util/util.h"

typedef struct Pickle Pickle;
/* Protocols up to 3, written by Python 2 or 3. `bytes` must outlive it. Errors name `path`, and
 * what to do is `hint`. What asks for a callable is refused; with `objects` it stays what the
 * pickle says about it (PICKLE_OBJECT), and protocols up to 5 are read, which PyTorch can be told
 * to write. */
Pickle *pickle_open(const uint8_t *bytes, size_t n, const char *path, bool objects,
                    const char *hint, Error *e);
void pickle_close(Pickle *p); /* NULL does nothing */

/* What a pickle is made of; whatever refers to another says its number.
 * NUMBER: `number`, also of bools. REAL: `real`, with `objects` alone. TEXT: `n` bytes; `number` is
 * 1 if they are UTF-8 of the values below 256 that are meant. LIST, TUPLE, DICT: item numbers, keys
 * before values. FUNCTION: texts of its module and name. OBJECT: function, arguments (a tuple),
 * then perhaps its state. PERSISTENT: what names it. ARRAY: the numbers of its shape, its dtype and
 * its bytes. CALLABLE, DTYPE, MARK: the reader's own. */
typedef enum {
    PICKLE_NONE,
    PICKLE_NUMBER,
    PICKLE_REAL,
    PICKLE_TEXT,
    PICKLE_LIST,
    PICKLE_TUPLE,
    PICKLE_DICT,
    PICKLE_FUNCTION,
    PICKLE_OBJECT,
    PICKLE_PERSISTENT,
    PICKLE_CALLABLE,
    PICKLE_DTYPE,
    PICKLE_ARRAY,
    PICKLE_MARK
} PickleKind;
typedef struct {
    PickleKind kind;
    long number;
    double real;
    const uint8_t *bytes;
    size_t n;
    int *at;
    long count;
} PickleItem;
const PickleItem *pickle_root(const Pickle *p); /* a DICT, except with `objects` */
/* Every item, in the order in which they were made; NULL behind the last. */
const PickleItem *pickle_item(const Pickle *p, long i);
size_t pickle_bytes(const Pickle *p); /* that it takes: another may follow */
/* Item number `i` among those that `of` refers to; NULL if there are not as many. */
const PickleItem *pickle_at(const Pickle *p, const PickleItem *of, long i);
bool pickle_is(const PickleItem *item, const char *text); /* a TEXT of these characters */
/* An OBJECT, or a FUNCTION, of this name: "torch._utils _rebuild_tensor_v2". */
bool pickle_is_object(const Pickle *p, const PickleItem *item, const char *name);

/* Entries of the dict by their keys: -1 or NULL if there is none of this kind. */
long pickle_list(const Pickle *p, const char *key);                /* items of a list */
long pickle_list_number(const Pickle *p, const char *key, long i); /* -1: no number */
char *pickle_list_text(const Pickle *p, const char *key, long i);  /* free() it */
/* An array of uint8: its size, and its values into out[size]; false if there are not as many. */
long pickle_array(const Pickle *p, const char *key);
bool pickle_array_bytes(const Pickle *p, const char *key, uint8_t *out);
