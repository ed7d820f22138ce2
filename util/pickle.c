/* pickle.c - Python's pickles of plain data. See pickle.h.
 *
 * A pickle is a program for a machine with a stack and a memo. This machine knows the operations
 * that make texts, numbers, lists, tuples and dicts, and four callables, each of which it has in
 * place of calling it: numpy's _reconstruct, its dtype and ndarray, and _codecs.encode, which is
 * how Python 3 writes bytes for Python 2. Other callables are refused, or, if the caller wants
 * objects, written down and not called either. Items are made by operations, one each, and refer to
 * each other by number: a pickle of n bytes needs memory in proportion to n, and whatever refers in
 * circles does no harm, because nothing walks along it.
 *
 * Formats: CPython's Lib/pickletools.py describes the operations, numpy's methods.c the state of an
 * array: (version, shape, dtype, Fortran order, bytes).
 * Read in this order: items, the stack, callables, operations, what is asked for.
 */
#include "util/pickle.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- items ---- */

typedef PickleKind Kind;
typedef PickleItem Item;

struct Pickle {
    const char *path, *hint;
    bool objects; /* other callables may stand in it */
    const uint8_t *begin, *p, *end;
    Item *item;
    int *stack, *memo; /* item numbers; in the memo -1: none */
    long items, depth, memos;
    int dict; /* the result */
    Error *e;
};

static bool bad(Pickle *p, const char *what)
{
    return fail(p->e, p->hint, "%s: byte %ld: %s", p->path, (long)(p->p - p->begin), what);
}

/* Its number. */
static int add_item(Pickle *p, Item item)
{
    p->item = xgrow(p->item, p->items, sizeof *p->item);
    p->item[p->items] = item;
    return (int)p->items++;
}

static bool push_item(Pickle *p, Item item)
{
    p->stack = xgrow(p->stack, p->depth, sizeof *p->stack);
    p->stack[p->depth] = add_item(p, item);
    p->depth++;
    return p->items < INT32_MAX || bad(p, "too many items");
}

static bool push_number(Pickle *p, long number)
{
    return push_item(p, (Item){.kind = PICKLE_NUMBER, .number = number});
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
        if (top(p, n)->kind == PICKLE_MARK)
            return n;
    return -1;
}

/* Moves the n items on top into the one below them, and what lies between (the mark) away. */
static bool collect(Pickle *p, long n, int below, Kind kind)
{
    bool there = n >= 0 && p->depth >= n + below + 1;
    if (there && top(p, n + below)->kind == PICKLE_OBJECT) { /* a dict or a list of another kind */
        p->depth -= n + below;
        return true;
    }
    if (!there || top(p, n + below)->kind != kind)
        return bad(p, "nothing to add to");
    int to = p->stack[p->depth - 1 - n - below];
    if (kind == PICKLE_DICT && n % 2)
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
    Item tuple = {.kind = PICKLE_TUPLE};
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

static bool push_function(Pickle *p, Item module, Item function)
{
    char *name = xasprintf("%.*s %.*s", (int)module.n, (const char *)module.bytes, (int)function.n,
                           (const char *)function.bytes);
    int k = 0;
    while (k < COUNT(callables) && strcmp(callables[k].name, name) != 0)
        k++;
    bool ok = k < COUNT(callables);
    if (ok) {
        push_item(p, (Item){.kind = PICKLE_CALLABLE, .number = callables[k].what});
    } else if (p->objects) {
        Item both = {.kind = PICKLE_FUNCTION};
        both.at = xmalloc(2 * sizeof *both.at);
        both.at[both.count++] = add_item(p, module);
        both.at[both.count++] = add_item(p, function);
        ok = push_item(p, both);
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

enum { LONGEST_NAME = 100 };

/* Two lines: module and name. */
static bool push_callable(Pickle *p)
{
    const uint8_t *start = p->p, *line = memchr(start, '\n', (size_t)(p->end - start));
    const uint8_t *second = line ? memchr(line + 1, '\n', (size_t)(p->end - line - 1)) : NULL;
    if (!second || second - start > LONGEST_NAME)
        return bad(p, "no name of a callable");
    Item module = {.kind = PICKLE_TEXT, .bytes = start, .n = (size_t)(line - start)};
    Item name = {.kind = PICKLE_TEXT, .bytes = line + 1, .n = (size_t)(second - line - 1)};
    if (!push_function(p, module, name))
        return false;
    p->p = second + 1;
    return true;
}

/* The same from the stack. */
static bool pop_callable(Pickle *p)
{
    const Item *name = top(p, 0), *module = top(p, 1);
    if (!module || name->kind != PICKLE_TEXT || module->kind != PICKLE_TEXT ||
        name->n + module->n > LONGEST_NAME)
        return bad(p, "no name of a callable");
    p->depth -= 2;
    return push_function(p, *module, *name);
}

static bool is_text(const Item *t, const char *text)
{
    return t->kind == PICKLE_TEXT && t->n == strlen(text) && memcmp(t->bytes, text, t->n) == 0;
}

/* The function below the tuple on top becomes an object. Dicts with an order are dicts. */
static bool make_object(Pickle *p)
{
    static const char *const dicts[] = {"OrderedDict", "defaultdict"};
    const Item *name = pickle_at(p, top(p, 1), 1);
    Item object = {.kind = PICKLE_OBJECT};
    for (int i = 0; i < COUNT(dicts); i++)
        if (is_text(name, dicts[i]))
            object.kind = PICKLE_DICT;
    if (object.kind == PICKLE_OBJECT) {
        object.at = xmalloc(2 * sizeof *object.at);
        object.at[object.count++] = p->stack[p->depth - 2];
        object.at[object.count++] = p->stack[p->depth - 1];
    }
    p->depth -= 2;
    return push_item(p, object);
}

/* What the callable below the tuple on top would return. */
static bool reduce(Pickle *p)
{
    const Item *args = top(p, 0), *f = top(p, 1);
    if (args && f && args->kind == PICKLE_TUPLE && f->kind == PICKLE_FUNCTION)
        return make_object(p);
    if (!args || !f || args->kind != PICKLE_TUPLE || f->kind != PICKLE_CALLABLE)
        return bad(p, "a call of what cannot be called");
    Item result = {0}, *first = args->count ? &p->item[args->at[0]] : NULL;
    switch (f->number) {
    case RECONSTRUCT:
        if (!first || first->kind != PICKLE_CALLABLE || first->number != NDARRAY)
            return bad(p, "an object that is no array");
        result.kind = PICKLE_ARRAY;
        break;
    case A_DTYPE:
        if (!first || first->kind != PICKLE_TEXT)
            return bad(p, "a dtype without a name");
        result = *first;
        result.kind = PICKLE_DTYPE;
        break;
    case ENCODE:
        if (args->count != 2 || first->kind != PICKLE_TEXT ||
            !is_text(&p->item[args->at[1]], "latin1"))
            return bad(p, "bytes in an encoding that is not latin1");
        result = *first;
        result.number = 1;
        break;
    case BYTES:
        if (first)
            return bad(p, "bytes of something else");
        result.kind = PICKLE_TEXT;
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
    if (object && object->kind == PICKLE_OBJECT)
        add_to(p, p->stack[p->depth - 2], p->stack[p->depth - 1]);
    if (object && (object->kind == PICKLE_OBJECT || object->kind == PICKLE_DICT)) {
        p->depth--; /* a dict's attributes say nothing of its entries */
        return true;
    }
    if (!object || state->kind != PICKLE_TUPLE ||
        (object->kind != PICKLE_ARRAY && object->kind != PICKLE_DTYPE))
        return bad(p, "a state of what has none");
    if (object->kind == PICKLE_ARRAY) {
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
    push_item(p, (Item){.kind = PICKLE_TEXT, .bytes = p->p, .n = (size_t)n});
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

static bool bad_operation(Pickle *p, int op)
{
    char what[64];
    p->p--;
    snprintf(what, sizeof what, "an operation that is not known here: 0x%02x", op);
    return bad(p, what);
}

/* LONG1: a number of up to 255 bytes, of which those up to 8 are told. */
static bool push_long(Pickle *p)
{
    uint64_t bytes, n = 0;
    if (!take(p, 1, &bytes))
        return false;
    if (bytes <= 8)
        return take(p, (int)bytes, &n) && push_number(p, (long)n);
    if ((uint64_t)(p->end - p->p) < bytes)
        return bad(p, "the file ends within a number");
    p->p += bytes;
    return push_number(p, -1);
}

/* 8 bytes, the highest first. */
static bool push_real(Pickle *p)
{
    uint64_t n;
    Item item = {.kind = PICKLE_REAL};
    if (!take(p, 8, &n))
        return false;
    n = __builtin_bswap64(n);
    memcpy(&item.real, &n, sizeof n);
    return push_item(p, item);
}

/* What names the object on top stands for it. */
static bool push_persistent(Pickle *p)
{
    if (p->depth == 0)
        return bad(p, "nothing that is named");
    Item item = {.kind = PICKLE_PERSISTENT};
    item.at = xmalloc(sizeof *item.at);
    item.at[item.count++] = p->stack[--p->depth];
    return push_item(p, item);
}

/* Operations of the pickles that PyTorch writes, and of protocols 4 and 5. */
static bool operate_torch(Pickle *p, int op)
{
    uint64_t n;
    switch (op) {
    case 'Q': /* BINPERSID */
        return push_persistent(p);
    case 'G': /* BINFLOAT */
        return push_real(p);
    case 0x8a:
        return push_long(p);
    case 0x8c: /* SHORT_BINUNICODE, BINUNICODE8, BINBYTES8 */
        return push_text(p, 1);
    case 0x8d:
    case 0x8e:
    case 0x96: /* BYTEARRAY8 */
        return push_text(p, 8);
    case 0x8f: /* EMPTY_SET, ADDITEMS */
        return push_item(p, (Item){.kind = PICKLE_LIST});
    case 0x90:
        return collect(p, above_mark(p), 1, PICKLE_LIST);
    case 0x91: /* FROZENSET */
        return make_tuple(p, above_mark(p), true);
    case 0x93: /* STACK_GLOBAL */
        return pop_callable(p);
    case 0x94: /* MEMOIZE */
        return put(p, (uint64_t)p->memos);
    case 0x95: /* FRAME */
        return take(p, 8, &n);
    case '0': /* POP */
        return p->depth-- > 0 || bad(p, "nothing to take away");
    default:
        return bad_operation(p, op);
    }
}

/* One operation; *done is set by the last. */
static bool operate(Pickle *p, bool *done)
{
    uint64_t n;
    int op = *p->p++;
    switch (op) {
    case 0x80: /* PROTO */
        return take(p, 1, &n) &&
               (n <= (p->objects ? 5 : 3) || bad(p, "a pickle of protocol 4 or above"));
    case '.': /* STOP */
        *done = true;
        p->dict = p->depth == 1 ? p->stack[0] : -1;
        if (p->depth != 1)
            return bad(p, "no single value at the end");
        return p->objects || p->item[p->dict].kind == PICKLE_DICT || bad(p, "no dict at the end");
    case '(':
        return push_item(p, (Item){.kind = PICKLE_MARK});
    case 'N':
        return push_item(p, (Item){.kind = PICKLE_NONE});
    case '}':
        return push_item(p, (Item){.kind = PICKLE_DICT});
    case ']':
        return push_item(p, (Item){.kind = PICKLE_LIST});
    case ')':
        return push_item(p, (Item){.kind = PICKLE_TUPLE});
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
        return collect(p, 1, 0, PICKLE_LIST);
    case 'e':
        return collect(p, above_mark(p), 1, PICKLE_LIST);
    case 's':
        return collect(p, 2, 0, PICKLE_DICT);
    case 'u':
        return collect(p, above_mark(p), 1, PICKLE_DICT);
    case 't':
        return make_tuple(p, above_mark(p), true);
    case 0x85: /* TUPLE1, 2, 3 */
    case 0x86:
    case 0x87:
        return make_tuple(p, op - 0x84, false);
    case 'c':
        return push_callable(p);
    case 'R':
    case 0x81: /* NEWOBJ */
        return reduce(p);
    case 'b':
        return build(p);
    default:
        return p->objects ? operate_torch(p, op) : bad_operation(p, op);
    }
}

Pickle *pickle_open(const uint8_t *bytes, size_t n, const char *path, bool objects,
                    const char *hint, Error *e)
{
    Pickle *p = xcalloc(1, sizeof *p);
    *p = (Pickle){.path = path,
                  .hint = hint,
                  .objects = objects,
                  .begin = bytes,
                  .p = bytes,
                  .end = bytes + n,
                  .e = e};
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

const Item *pickle_root(const Pickle *p)
{
    return &p->item[p->dict];
}

const Item *pickle_item(const Pickle *p, long i)
{
    return i < p->items ? &p->item[i] : NULL;
}

size_t pickle_bytes(const Pickle *p)
{
    return (size_t)(p->p - p->begin);
}

const Item *pickle_at(const Pickle *p, const Item *of, long i)
{
    return of && i < of->count ? &p->item[of->at[i]] : NULL;
}

bool pickle_is(const Item *item, const char *text)
{
    return item && is_text(item, text);
}

bool pickle_is_object(const Pickle *p, const Item *item, const char *name)
{
    const char *function = strchr(name, ' ') + 1;
    size_t n = (size_t)(function - name) - 1;
    if (item && item->kind == PICKLE_OBJECT)
        item = pickle_at(p, item, 0);
    const Item *module = pickle_at(p, item, 0);
    return item && item->kind == PICKLE_FUNCTION && module->n == n &&
           memcmp(module->bytes, name, n) == 0 && pickle_is(pickle_at(p, item, 1), function);
}

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
    const Item *list = find(p, key, PICKLE_LIST);
    return list ? list->count : -1;
}

long pickle_list_number(const Pickle *p, const char *key, long i)
{
    const Item *item = &p->item[find(p, key, PICKLE_LIST)->at[i]];
    return item->kind == PICKLE_NUMBER ? item->number : -1;
}

char *pickle_list_text(const Pickle *p, const char *key, long i)
{
    const Item *item = &p->item[find(p, key, PICKLE_LIST)->at[i]];
    if (item->kind != PICKLE_TEXT || item->n > 255)
        return NULL;
    return xasprintf("%.*s", (int)item->n, (const char *)item->bytes);
}

long pickle_array(const Pickle *p, const char *key)
{
    const Item *array = find(p, key, PICKLE_ARRAY);
    if (!array || array->count != 4)
        return -1;
    const Item *shape = &p->item[array->at[0]], *dtype = &p->item[array->at[1]];
    const Item *fortran = &p->item[array->at[2]];
    uint64_t size = 1;
    if (shape->kind != PICKLE_TUPLE || dtype->kind != PICKLE_DTYPE || fortran->number != 0 ||
        dtype->n != 2 || memcmp(dtype->bytes, "u1", 2) != 0 ||
        p->item[array->at[3]].kind != PICKLE_TEXT)
        return -1;
    for (long i = 0; i < shape->count && size <= INT32_MAX; i++) {
        const Item *side = &p->item[shape->at[i]];
        if (side->kind != PICKLE_NUMBER || side->number < 0 || side->number > INT32_MAX)
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
    const Item *text = &p->item[find(p, key, PICKLE_ARRAY)->at[3]];
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
