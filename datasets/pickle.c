/* pickle.c - Python's pickles of plain data. See pickle.h.
 *
 * A pickle is a program for a machine with a stack and a memo. This machine knows the operations
 * that make texts, numbers, lists, tuples and dicts, and four callables, each of which it has in
 * place of calling it: numpy's _reconstruct, its dtype and ndarray, and _codecs.encode, which is
 * how Python 3 writes bytes for Python 2. Items are made by operations, one each, and refer to each
 * other by number: a pickle of n bytes needs memory in proportion to n, and whatever refers in
 * circles does no harm, because nothing walks along it.
 *
 * Formats: CPython's Lib/pickletools.py describes the operations, numpy's methods.c the state of an
 * array: (version, shape, dtype, Fortran order, bytes).
 * Read in this order: items, the stack, callables, operations, what is asked for.
 */
#include "datasets/pickle.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- items ---- */

typedef enum { NONE, NUMBER, TEXT, LIST, TUPLE, DICT, CALLABLE, DTYPE, ARRAY, MARK } Kind;

/* NUMBER: `number`, also of bools. TEXT: `n` bytes; `number` is 1 if they are UTF-8 of the values
 * below 256 that are meant. LIST, TUPLE, DICT: item numbers, keys before values. ARRAY: the numbers
 * of its shape, its dtype and its bytes. CALLABLE: `number` is its row in `callables`. */
typedef struct {
    Kind kind;
    long number;
    const uint8_t *bytes;
    size_t n;
    int *at;
    long count;
} Item;

struct Pickle {
    const char *path;
    const uint8_t *begin, *p, *end;
    Item *item;
    int *stack, *memo; /* item numbers; in the memo -1: none */
    long items, depth, memos;
    int dict; /* the result */
    Error *e;
};

static bool bad(Pickle *p, const char *what)
{
    return fail(p->e,
                "only plain dicts of texts, numbers, lists and arrays are read; download it "
                "again, or take the binary version",
                "%s: byte %ld: %s", p->path, (long)(p->p - p->begin), what);
}

static bool push_item(Pickle *p, Item item)
{
    p->item = xgrow(p->item, p->items, sizeof *p->item);
    p->stack = xgrow(p->stack, p->depth, sizeof *p->stack);
    p->item[p->items] = item;
    p->stack[p->depth++] = (int)p->items++;
    return p->items < INT32_MAX || bad(p, "too many items");
}

static bool push_number(Pickle *p, long number)
{
    return push_item(p, (Item){.kind = NUMBER, .number = number});
}

static bool add_to(Pickle *p, int to, int from)
{
    Item *list = &p->item[to];
    list->at = xgrow(list->at, list->count, sizeof *list->at);
    list->at[list->count++] = from;
    return true;
}

/* ---- the stack ---- */

static Item *top(Pickle *p, long below)
{
    return p->depth > below ? &p->item[p->stack[p->depth - 1 - below]] : NULL;
}

/* How many items lie above the last mark; -1: there is none. */
static long above_mark(Pickle *p)
{
    for (long n = 0; n < p->depth; n++)
        if (top(p, n)->kind == MARK)
            return n;
    return -1;
}

/* Moves the n items on top into the one below them, and what lies between (the mark) away. */
static bool collect(Pickle *p, long n, int below, Kind kind)
{
    if (n < 0 || p->depth < n + below + 1 || top(p, n + below)->kind != kind)
        return bad(p, "nothing to add to");
    int to = p->stack[p->depth - 1 - n - below];
    if (kind == DICT && n % 2)
        return bad(p, "a key without a value");
    for (long i = p->depth - n; i < p->depth; i++)
        add_to(p, to, p->stack[i]);
    p->depth -= n + below;
    return true;
}

/* The n items on top become a tuple in their place; `mark` lies below them. */
static bool make_tuple(Pickle *p, long n, bool mark)
{
    if (n < 0 || p->depth < n + mark)
        return bad(p, "a tuple without its items");
    Item tuple = {.kind = TUPLE};
    for (long i = p->depth - n; i < p->depth; i++) {
        tuple.at = xgrow(tuple.at, tuple.count, sizeof *tuple.at);
        tuple.at[tuple.count++] = p->stack[i];
    }
    p->depth -= n + mark;
    return push_item(p, tuple);
}

static bool put(Pickle *p, uint64_t where)
{
    if (p->depth == 0 || where > (uint64_t)p->items)
        return bad(p, "a place in the memo that cannot be");
    while ((uint64_t)p->memos <= where) {
        p->memo = xgrow(p->memo, p->memos, sizeof *p->memo);
        p->memo[p->memos++] = -1;
    }
    p->memo[where] = p->stack[p->depth - 1];
    return true;
}

static bool get(Pickle *p, uint64_t where)
{
    if (where >= (uint64_t)p->memos || p->memo[where] < 0)
        return bad(p, "nothing in this place of the memo");
    p->stack = xgrow(p->stack, p->depth, sizeof *p->stack);
    p->stack[p->depth++] = p->memo[where];
    return true;
}

/* ---- callables ---- */

enum { RECONSTRUCT, NDARRAY, A_DTYPE, ENCODE, BYTES };
static const struct {
    const char *name;
    int what;
} callables[] = {
    {"numpy.core.multiarray _reconstruct", RECONSTRUCT},
    {"numpy._core.multiarray _reconstruct", RECONSTRUCT},
    {"numpy ndarray", NDARRAY},
    {"numpy dtype", A_DTYPE},
    {"_codecs encode", ENCODE},
    {"__builtin__ bytes", BYTES}, /* no bytes at all */
};

/* Two lines: module and name. */
static bool push_callable(Pickle *p)
{
    const uint8_t *line = memchr(p->p, '\n', (size_t)(p->end - p->p));
    const uint8_t *second = line ? memchr(line + 1, '\n', (size_t)(p->end - line - 1)) : NULL;
    if (!second || second - p->p > 100)
        return bad(p, "no name of a callable");
    char *name = xasprintf("%.*s %.*s", (int)(line - p->p), (const char *)p->p,
                           (int)(second - line - 1), (const char *)line + 1);
    int k = 0;
    while (k < COUNT(callables) && strcmp(callables[k].name, name) != 0)
        k++;
    bool ok = k < COUNT(callables);
    if (ok) {
        p->p = second + 1;
        push_item(p, (Item){.kind = CALLABLE, .number = callables[k].what});
    } else {
        for (char *c = name; *c; c++)
            *c = *c < ' ' || *c > '~' ? '?' : *c;
        char *what = xasprintf("asks for '%.80s', which is not called here", name);
        bad(p, what);
        free(what);
    }
    free(name);
    return ok;
}

static bool is_text(const Item *t, const char *text)
{
    return t->kind == TEXT && t->n == strlen(text) && memcmp(t->bytes, text, t->n) == 0;
}

/* What the callable below the tuple on top would return. */
static bool reduce(Pickle *p)
{
    const Item *args = top(p, 0), *f = top(p, 1);
    if (!args || !f || args->kind != TUPLE || f->kind != CALLABLE)
        return bad(p, "a call of what cannot be called");
    Item result = {0}, *first = args->count ? &p->item[args->at[0]] : NULL;
    switch (f->number) {
    case RECONSTRUCT:
        if (!first || first->kind != CALLABLE || first->number != NDARRAY)
            return bad(p, "an object that is no array");
        result.kind = ARRAY;
        break;
    case A_DTYPE:
        if (!first || first->kind != TEXT)
            return bad(p, "a dtype without a name");
        result = *first;
        result.kind = DTYPE;
        break;
    case ENCODE:
        if (args->count != 2 || first->kind != TEXT || !is_text(&p->item[args->at[1]], "latin1"))
            return bad(p, "bytes in an encoding that is not latin1");
        result = *first;
        result.number = 1;
        break;
    case BYTES:
        if (first)
            return bad(p, "bytes of something else");
        result.kind = TEXT;
        break;
    default:
        return bad(p, "an array made in another way");
    }
    p->depth -= 2;
    return push_item(p, result);
}

/* The state on top is the array's below it; a dtype's says nothing that is used of uint8. */
static bool build(Pickle *p)
{
    const Item *state = top(p, 0);
    Item *object = top(p, 1);
    if (!object || state->kind != TUPLE || (object->kind != ARRAY && object->kind != DTYPE))
        return bad(p, "a state of what has none");
    if (object->kind == ARRAY) {
        if (state->count != 5 || object->count)
            return bad(p, "an array of a version that is not known");
        for (int i = 1; i < 5; i++)
            add_to(p, p->stack[p->depth - 2], p->item[p->stack[p->depth - 1]].at[i]);
    }
    p->depth--;
    return true;
}

/* ---- operations ---- */

/* A little-endian number of n bytes, or the file's end. */
static bool take(Pickle *p, int n, uint64_t *out)
{
    *out = 0;
    if (p->end - p->p < n)
        return bad(p, "the file ends within a number");
    for (int i = n - 1; i >= 0; i--)
        *out = *out << 8 | p->p[i];
    p->p += n;
    return true;
}

static bool push_text(Pickle *p, int length_bytes)
{
    uint64_t n;
    if (!take(p, length_bytes, &n))
        return false;
    if (n > (uint64_t)(p->end - p->p))
        return bad(p, "the file ends within a text");
    push_item(p, (Item){.kind = TEXT, .bytes = p->p, .n = (size_t)n});
    p->p += n;
    return true;
}

/* Digits up to the end of the line; "00" and "01" are bools, an L ends a long. */
static bool push_decimal(Pickle *p)
{
    uint64_t v = 0;
    const uint8_t *digit = p->p;
    for (; p->p < p->end && *p->p >= '0' && *p->p <= '9' && p->p - digit < 18; p->p++)
        v = 10 * v + (*p->p - '0');
    p->p += p->p < p->end && *p->p == 'L';
    if (p->p == digit || p->p == p->end || *p->p++ != '\n')
        return bad(p, "a number that cannot be read");
    return push_number(p, (long)v);
}

/* One operation; *done is set by the last. */
static bool operate(Pickle *p, bool *done)
{
    uint64_t n;
    int op = *p->p++;
    switch (op) {
    case 0x80: /* PROTO */
        return take(p, 1, &n) && (n <= 3 || bad(p, "a pickle of protocol 4 or above"));
    case '.': /* STOP */
        *done = true;
        p->dict = p->depth == 1 ? p->stack[0] : -1;
        return (p->dict >= 0 && p->item[p->dict].kind == DICT) || bad(p, "no dict at the end");
    case '(':
        return push_item(p, (Item){.kind = MARK});
    case 'N':
        return push_item(p, (Item){.kind = NONE});
    case '}':
        return push_item(p, (Item){.kind = DICT});
    case ']':
        return push_item(p, (Item){.kind = LIST});
    case ')':
        return push_item(p, (Item){.kind = TUPLE});
    case 0x88: /* NEWTRUE */
    case 0x89: /* NEWFALSE */
        return push_number(p, op == 0x88);
    case 'K': /* BININT1, 2 and BININT, which is signed */
    case 'M':
        return take(p, op == 'K' ? 1 : 2, &n) && push_number(p, (long)n);
    case 'J':
        return take(p, 4, &n) && push_number(p, (int32_t)(uint32_t)n);
    case 'I':
    case 'L':
        return push_decimal(p);
    case 'U': /* SHORT_BINSTRING, BINSTRING, BINUNICODE, SHORT_BINBYTES, BINBYTES */
    case 'C':
        return push_text(p, 1);
    case 'T':
    case 'X':
    case 'B':
        return push_text(p, 4);
    case 'q': /* BINPUT, LONG_BINPUT, BINGET, LONG_BINGET */
    case 'r':
        return take(p, op == 'q' ? 1 : 4, &n) && put(p, n);
    case 'h':
    case 'j':
        return take(p, op == 'h' ? 1 : 4, &n) && get(p, n);
    case 'a': /* APPEND, APPENDS, SETITEM, SETITEMS */
        return collect(p, 1, 0, LIST);
    case 'e':
        return collect(p, above_mark(p), 1, LIST);
    case 's':
        return collect(p, 2, 0, DICT);
    case 'u':
        return collect(p, above_mark(p), 1, DICT);
    case 't':
        return make_tuple(p, above_mark(p), true);
    case 0x85: /* TUPLE1, 2, 3 */
    case 0x86:
    case 0x87:
        return make_tuple(p, op - 0x84, false);
    case 'c':
        return push_callable(p);
    case 'R':
        return reduce(p);
    case 'b':
        return build(p);
    }
    p->p--;
    char what[64];
    snprintf(what, sizeof what, "an operation that is not known here: 0x%02x", op);
    return bad(p, what);
}

Pickle *pickle_open(const uint8_t *bytes, size_t n, const char *path, Error *e)
{
    Pickle *p = xcalloc(1, sizeof *p);
    *p = (Pickle){.path = path, .begin = bytes, .p = bytes, .end = bytes + n, .e = e};
    bool done = false, ok = true;
    while (ok && !done)
        ok = p->p < p->end ? operate(p, &done) : bad(p, "the file ends before the pickle does");
    if (ok)
        return p;
    pickle_close(p);
    return NULL;
}

void pickle_close(Pickle *p)
{
    if (!p)
        return;
    for (long i = 0; i < p->items; i++)
        free(p->item[i].at);
    free(p->item);
    free(p->stack);
    free(p->memo);
    free(p);
}

/* ---- what is asked for ---- */

static const Item *find(const Pickle *p, const char *key, Kind kind)
{
    const Item *dict = &p->item[p->dict];
    for (long i = 0; i + 1 < dict->count; i += 2)
        if (is_text(&p->item[dict->at[i]], key)) {
            const Item *value = &p->item[dict->at[i + 1]];
            return value->kind == kind ? value : NULL;
        }
    return NULL;
}

long pickle_list(const Pickle *p, const char *key)
{
    const Item *list = find(p, key, LIST);
    return list ? list->count : -1;
}

long pickle_list_number(const Pickle *p, const char *key, long i)
{
    const Item *item = &p->item[find(p, key, LIST)->at[i]];
    return item->kind == NUMBER ? item->number : -1;
}

char *pickle_list_text(const Pickle *p, const char *key, long i)
{
    const Item *item = &p->item[find(p, key, LIST)->at[i]];
    if (item->kind != TEXT || item->n > 255)
        return NULL;
    return xasprintf("%.*s", (int)item->n, (const char *)item->bytes);
}

long pickle_array(const Pickle *p, const char *key)
{
    const Item *array = find(p, key, ARRAY);
    if (!array || array->count != 4)
        return -1;
    const Item *shape = &p->item[array->at[0]], *dtype = &p->item[array->at[1]];
    const Item *fortran = &p->item[array->at[2]];
    uint64_t size = 1;
    if (shape->kind != TUPLE || dtype->kind != DTYPE || fortran->number != 0 || dtype->n != 2 ||
        memcmp(dtype->bytes, "u1", 2) != 0 || p->item[array->at[3]].kind != TEXT)
        return -1;
    for (long i = 0; i < shape->count && size <= INT32_MAX; i++) {
        const Item *side = &p->item[shape->at[i]];
        if (side->kind != NUMBER || side->number < 0 || side->number > INT32_MAX)
            return -1;
        size *= (uint64_t)side->number;
    }
    return size <= INT32_MAX ? (long)size : -1;
}

/* Of bytes that Python 3 wrote for Python 2, those from 128 on are two of UTF-8. */
bool pickle_array_bytes(const Pickle *p, const char *key, uint8_t *out)
{
    long size = pickle_array(p, key), n = 0;
    if (size < 0)
        return false;
    const Item *text = &p->item[find(p, key, ARRAY)->at[3]];
    for (size_t i = 0; i < text->n; i++, n++) {
        unsigned byte = text->bytes[i];
        if (text->number && byte >= 0x80) {
            if ((byte != 0xC2 && byte != 0xC3) || i + 1 == text->n)
                return false;
            byte = (byte & 3) << 6 | (text->bytes[++i] & 0x3Fu);
        }
        if (n == size)
            return false;
        out[n] = (uint8_t)byte;
    }
    return n == size;
}
