/* names.c - what other programs call the tensors of a Vision Transformer. See names.h.
 *
 * A family is a table of names (families.h). It is known by the name of its patch embedding, and
 * whatever stands before that is the prefix of all names ("module.", "vit.", "model_ema.",
 * "teacher.backbone."): a classifier may have a shorter one. Every tensor under the prefix is in
 * the table, or in one of two others: what may be left out, and what makes the network another one
 * than ours.
 *
 * Read in this order: our names, matching, pieces, tokens and positions, heads and pooling, the
 * view. */
#include "weights/names.h"

#include "model/params.h"
#include "util/text.h"
#include "weights/families.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---- our names ---- */

#define X(field, name, ...) name,
static const char *const embed_names[] = {EMBED_PARAMS(X) NULL};
static const char *const block_names[] = {BLOCK_PARAMS(X) NULL};
static const char *const head_names[] = {HEAD_PARAMS(X) NULL};
#undef X

static bool is_among(const char *name, const char *const *list)
{
    while (*list && strcmp(name, *list) != 0)
        list++;
    return *list != NULL;
}

int names_block(const char *name, const char **rest)
{
    char prefix[32];
    int block;
    if (sscanf(name, "blocks.%6d", &block) != 1 || block < 0)
        return -1;
    int n = snprintf(prefix, sizeof prefix, "blocks.%d.", block);
    if (strncmp(name, prefix, (size_t)n) != 0) /* 07, +7, 1234567 */
        return -1;
    *rest = name + n;
    return block;
}

bool names_is_vit(const char *name)
{
    const char *rest;
    if (names_block(name, &rest) >= 0)
        return is_among(rest, block_names);
    return is_among(name, embed_names) || is_among(name, head_names);
}

bool names_is_head(const char *name)
{
    return strncmp(name, "head.", 5) == 0 || strncmp(name, "pre_logits.", 11) == 0;
}

/* ST_MAX_DIMS of 16 digits fit. */
ShapeText names_shape(int ndim, const long *shape)
{
    ShapeText t;
    size_t at = (size_t)snprintf(t.s, sizeof t.s, "[");
    for (int i = 0; i < ndim; i++)
        at += (size_t)snprintf(t.s + at, sizeof t.s - at, "%s%ld", i ? ", " : "", shape[i]);
    snprintf(t.s + at, sizeof t.s - at, "]");
    return t;
}

static const char variant_hint[] =
    "this model has one LayerNorm before attention and MLP each, plain attention, a GELU or SwiGLU "
    "MLP, learned positions and a linear head: take the weights of such a ViT";
static const char family_hint[] =
    "give a Vision Transformer under the names of timm, transformers, open_clip, torchvision, "
    "mmpretrain or Google";

/* ---- matching ---- */

/* A tensor of theirs, and which part of which of ours it is. */
typedef struct {
    char ours[NAME_SIZE];
    const Name *name;
    int layer; /* of an array of all blocks; else -1 */
    const StTensor *t;
} Match;

typedef struct {
    const SafeTensors *raw;
    const Family *family;
    char prefix[NAME_SIZE];
    Match *match;
    int matches;
    SafeTensors *view;
    NamesKnown known;
    bool loose; /* its blocks may stand under a part of the prefix */
    NamesReport *report;
    Error *e;
} Reader;

/* Whether `name` is the pattern, and the number that is in place of its `#`. */
static bool fits(const char *pattern, const char *name, int *block)
{
    for (*block = -1; *pattern; pattern++) {
        if (*pattern != '#') {
            if (*pattern != *name++)
                return false;
            continue;
        }
        const char *digit = name;
        for (*block = 0; *name >= '0' && *name <= '9' && name - digit < 6; name++)
            *block = 10 * *block + (*name - '0');
        if (name == digit || (*digit == '0' && name - digit > 1))
            return false;
    }
    return *name == 0;
}

static void add_match(Reader *r, const Name *n, int block, int layer, const StTensor *t)
{
    r->match = xgrow(r->match, r->matches, sizeof *r->match);
    Match *m = &r->match[r->matches++];
    *m = (Match){.name = n, .layer = layer, .t = t};
    const char *hash = strchr(n->ours, '#');
    if (hash)
        snprintf(m->ours, sizeof m->ours, "%.*s%d%s", (int)(hash - n->ours), n->ours, block,
                 hash + 1);
    else
        snprintf(m->ours, sizeof m->ours, "%s", n->ours);
}

/* Whether a tensor of ours may stand outside the prefix: a head beside the backbone, and the blocks
 * where transformers 5 has lost a prefix that other tensors have. */
static bool may_stand_outside(const Reader *r, const char *ours)
{
    return names_is_head(ours) || strncmp(ours, SECOND_HEAD, strlen(SECOND_HEAD)) == 0 ||
           (r->loose && strncmp(ours, "blocks.", 7) == 0);
}

/* Whether one of the matches from `first` on is this part of the same tensor of ours. */
static bool is_matched(const Reader *r, int first, const Name *n)
{
    for (int i = first; i < r->matches; i++)
        if (r->match[i].name->slot == n->slot && strcmp(r->match[i].name->ours, n->ours) == 0)
            return true;
    return false;
}

/* Finds `name`, their tensor's less the prefix, in the family's table; it may be there more than
 * once, with a part for each of several of ours, or in two numberings. */
static bool match_name(Reader *r, const char *name, bool outside, const StTensor *t)
{
    int block, first = r->matches;
    for (const Name *n = r->family->name; n->ours; n++) {
        bool all_blocks = strncmp(n->theirs, "**", 2) == 0;
        if (outside && !may_stand_outside(r, n->ours))
            continue;
        if (!fits(n->theirs + 2 * all_blocks, name, &block) || is_matched(r, first, n))
            continue;
        if (!all_blocks)
            add_match(r, n, block, -1, t);
        for (int i = 0; all_blocks && t->ndim > 0 && i < t->shape[0] && i < 1000; i++)
            add_match(r, n, i, i, t);
    }
    return r->matches > first;
}

/* The prefix less its last part: "module.vit." -> "module.". Its length. */
static size_t shorter(const char *prefix, size_t n)
{
    while (n > 0 && (--n == 0 || (prefix[n - 1] != '.' && prefix[n - 1] != '/')))
        ;
    return n;
}

/* A file may hold several models: an average, or what a student learns from, comes before others.
 * -1: not a model's weights, but an optimiser's moments. */
static int preference(const char *prefix)
{
    static const char *const best[] = {"ema", "swa_", "averaged", "teacher", "target", NULL};
    static const char *const worst[] = {"student", "momentum", NULL};
    static const char *const never[] = {"exp_avg", "momentum_buffer", "optimizer", NULL};
    for (int i = 0; never[i]; i++)
        if (strstr(prefix, never[i]))
            return -1;
    for (int i = 0; best[i]; i++)
        if (strstr(prefix, best[i]))
            return 2;
    for (int i = 0; worst[i]; i++)
        if (strstr(prefix, worst[i]))
            return 0;
    return 1;
}

PRINTF_LIKE(2, 3) static void note(NamesReport *report, const char *fmt, ...)
{
    size_t at = strlen(report->notes);
    va_list args;
    va_start(args, fmt);
    if (at && at + 2 < sizeof report->notes)
        at += (size_t)snprintf(report->notes + at, sizeof report->notes - at, "; ");
    vsnprintf(report->notes + at, sizeof report->notes - at, fmt, args);
    va_end(args);
}

/* Wrappers of PyTorch's around a part of a model stand in the names of all that is in it. */
static void unwrap(SafeTensors *raw)
{
    static const char *const wrappers[] = {"_orig_mod.", "_fsdp_wrapped_module.",
                                           "_checkpoint_wrapped_module."};
    for (int i = 0; i < raw->count; i++)
        for (int k = 0; k < COUNT(wrappers); k++) {
            const char *name = raw->tensor[i].name, *at = strstr(name, wrappers[k]);
            for (; at; name = raw->tensor[i].name, at = strstr(name, wrappers[k]))
                raw->tensor[i].name = st_own(
                    raw, xasprintf("%.*s%s", (int)(at - name), name, at + strlen(wrappers[k])));
        }
}

/* Which family's names, under which prefix. */
static bool find_family(Reader *r)
{
    int found = 0, best = -1;
    for (int i = 0; i < r->raw->count; i++)
        for (int k = 0; k < family_count; k++) {
            const char *name = r->raw->tensor[i].name, *last = families[k].mark;
            size_t n = strlen(name), m = strlen(last);
            if (n < m || n - m >= NAME_SIZE || strcmp(name + n - m, last) != 0 ||
                (n > m && !strchr("./", name[n - m - 1])))
                continue;
            char prefix[NAME_SIZE];
            snprintf(prefix, sizeof prefix, "%.*s", (int)(n - m), name);
            found += preference(prefix) >= 0;
            if (preference(prefix) <= best)
                continue;
            best = preference(prefix);
            r->family = &families[k];
            memcpy(r->prefix, prefix, sizeof prefix);
        }
    if (found > 1)
        note(r->report, "of %d models in it, the one called %.60s is taken", found, r->prefix);
    return found > 0;
}

/* What another network the file holds, by the first of its names that a list has; NULL: nobody
 * knows. */
static const char *what_else(const SafeTensors *f, const char *(*list)(const char *),
                             const char **name)
{
    const char *what = NULL;
    for (int i = 0; i < f->count && !what; i++) {
        *name = f->tensor[i].name;
        what = list(*name);
    }
    return what;
}

static bool no_family(const Reader *r)
{
    const SafeTensors *f = r->raw;
    const char *name, *what = what_else(f, family_other, &name);
    if (!what)
        what = what_else(f, family_refused, &name);
    if (what)
        return fail(r->e, family_hint,
                    "%s: holds no plain Vision Transformer, but %s (tensor %.100s)", f->path, what,
                    name);
    return fail(
        r->e, family_hint,
        "%s: holds no Vision Transformer: there is no tensor patch_embed.proj.weight or the "
        "like; the first of its %d is %.100s",
        f->path, f->count, f->count ? f->tensor[0].name : "missing");
}

/* A tensor under the prefix that no table has. Image towers share names with language models: what
 * is no ViT, this tensor itself must show. */
static bool not_plain(const Reader *r, const char *name)
{
    const char *known, *what = what_else(r->raw, family_refused, &known);
    if (!what)
        what = family_other(known = name);
    if (what)
        return fail(r->e, variant_hint, "%s: %s (tensor %.100s)", r->raw->path, what, known);
    return fail(r->e, variant_hint, "%s: tensor %.150s does not belong to a plain ViT",
                r->raw->path, name);
}

/* Under the prefix, or of a classifier beside the backbone. */
static bool match_tensor(Reader *r, const StTensor *t)
{
    size_t n = strlen(r->prefix);
    bool found = strncmp(t->name, r->prefix, n) == 0 && match_name(r, t->name + n, false, t);
    while (!found && n > 0) {
        n = shorter(r->prefix, n);
        found = strncmp(t->name, r->prefix, n) == 0 && match_name(r, t->name + n, true, t);
    }
    return found;
}

/* Whether a tensor of a block stands under the prefix. */
static bool has_blocks_within(const Reader *r)
{
    size_t length = strlen(r->prefix);
    int block;
    for (int i = 0; i < r->raw->count; i++) {
        const char *name = r->raw->tensor[i].name;
        for (const Name *n = r->family->name; n->ours; n++)
            if (strncmp(n->ours, "blocks.", 7) == 0 && strncmp(name, r->prefix, length) == 0 &&
                (*n->theirs == '*' || fits(n->theirs, name + length, &block)))
                return true;
    }
    return false;
}

/* Whether a name of what is no ViT's is a last layer's, as people write it: "head.1.weight",
 * "fc.weight", "1.weight" behind Sequential(vit, Linear); *stem is its length without the kind. */
static bool is_last_layer(const char *name, size_t *stem)
{
    static const char words[] = "head|heads|fc|classifier|cls_head|linear|last_layer";
    const char *kind = strrchr(name, '.');
    if (!kind || find_word("weight|bias", kind + 1) < 0)
        return false;
    *stem = (size_t)(kind - name);
    for (const char *part = name; part < kind;) {
        char word[16];
        int n = (int)strcspn(part, ".");
        snprintf(word, sizeof word, "%.*s", n, part);
        bool number = strspn(word, "0123456789") == (size_t)n;
        if (n >= (int)sizeof word || (!number && find_word(words, word) < 0))
            return false;
        part += n + 1;
    }
    return true;
}

static bool is_taken(const Reader *r, const StTensor *t)
{
    for (int i = r->matches - 1; i >= 0; i--)
        if (r->match[i].t == t)
            return true;
    return false;
}

/* A head under another name than the library's: where one layer alone, of as many columns as the
 * model is wide, is called like a last one. A dropout before it leaves no trace; a norm or another
 * layer would. */
static void match_head(Reader *r)
{
    static const Name names[] = {{"head.weight", "", 0, 0}, {"head.bias", "", 0, 0}};
    const StTensor *found[2] = {NULL};
    size_t length = strlen(r->prefix), shared = shorter(r->prefix, length), stem;
    long width = 0;
    for (int i = 0; i < r->matches; i++) {
        if (names_is_head(r->match[i].ours))
            return;
        if (strcmp(r->match[i].ours, "patch_embed.proj.bias") == 0)
            width = r->match[i].t->n;
    }
    for (int i = 0, all = 0; i < r->raw->count; i++) {
        const StTensor *t = &r->raw->tensor[i];
        const char *name = t->name, *within = NULL;
        if (strncmp(name, r->prefix, length) == 0)
            within = name + length;
        else if (strncmp(name, r->prefix, shared) == 0)
            within = name + shared;
        if (!within || !is_last_layer(within, &stem))
            continue;
        int k = strcmp(within + stem, ".weight") != 0;
        if (++all > 2 || found[k])
            return;
        found[k] = t;
    }
    const StTensor *w = found[0], *b = found[1];
    size_t n = w ? strlen(w->name) - strlen("weight") : 0;
    if (!w || !b || strncmp(w->name, b->name, n) != 0 || w->ndim != 2 || b->ndim != 1 ||
        w->shape[1] != width || w->shape[0] != b->shape[0])
        return;
    size_t parent = n - 1;
    while (parent > 0 && w->name[parent - 1] != '.')
        parent--;
    for (int i = 0; i < r->raw->count; i++) { /* MAE's linear probe has a norm there */
        const StTensor *t = &r->raw->tensor[i];
        if (t != w && t != b && strncmp(t->name, w->name, parent) == 0 && !is_taken(r, t))
            return;
    }
    for (int k = 0; k < 2; k++)
        add_match(r, &names[k], 0, -1, found[k]);
    note(r->report, "its head is %.*s", (int)n - 1, w->name);
}

/* Every tensor of theirs: where it belongs, or that it may be left out. */
static bool match_all(Reader *r)
{
    size_t length = strlen(r->prefix);
    int outside = 0;
    const char *first = NULL;
    r->loose = !has_blocks_within(r);
    for (int i = 0; i < r->raw->count; i++)
        match_tensor(r, &r->raw->tensor[i]);
    match_head(r);
    for (int i = 0; i < r->raw->count; i++) {
        const StTensor *t = &r->raw->tensor[i];
        if (is_taken(r, t))
            continue;
        bool ours = strncmp(t->name, r->prefix, length) == 0;
        const char *why = family_left_out(t->name);
        if (!ours && why && strstr(why, "head")) /* another model's own */
            why = NULL;
        if (ours && (!why || family_refused(t->name)))
            return not_plain(r, t->name);
        if (why && !strstr(r->report->notes, why))
            note(r->report, "left out: %s (%.60s)", why, t->name);
        if (!why && outside++ == 0)
            first = t->name;
    }
    if (outside)
        note(r->report, "left out: %d tensors beside the model, such as %.60s", outside, first);
    return true;
}

/* ---- pieces ---- */

/* Of n axes, which of theirs is the d-th of ours: outputs first. */
static int axis_of(int how, int n, int d)
{
    static const int convolution[] = {3, 2, 0, 1};
    switch (how) {
    case CONV:
        return convolution[d];
    case KERNEL:
        return (d + 1) % n;
    case OUT_KERNEL:
        return (d + n - 1) % n;
    default:
        return d;
    }
}

/* Which axis of our tensor the d-th, in our order, is a part of: heads and their size are one. */
static int part_of(int how, int n, int d)
{
    const int parts[] = {
        [AS_IS] = d,          [TOKENS] = d + 3 - n, [FLAT] = 0,        [KERNEL] = d == n - 1,
        [OUT_KERNEL] = d > 0, [CONV] = d,           [FIRST_THIRD] = d, [LAST_THIRDS] = d};
    return parts[how];
}

/* Theirs as a piece of ours, in our order of axes, and its shape as ours. */
static bool make_piece(const Reader *r, const Match *m, StPiece *out, int *ndim,
                       long shape[ST_MAX_DIMS])
{
    const StPiece p = st_piece(r->raw, m->t);
    if (p.n == 0)
        return fail(r->e, family_hint, "%s: tensor %.150s is empty: shape %s", r->raw->path,
                    m->t->name, names_shape(m->t->ndim, m->t->shape).s);
    int how = m->name->how, skip = m->layer >= 0, n = p.ndim - skip;
    const int dims[] = {[AS_IS] = n,      [TOKENS] = 3, [FLAT] = 1,        [KERNEL] = 2,
                        [OUT_KERNEL] = 2, [CONV] = 4,   [FIRST_THIRD] = n, [LAST_THIRDS] = n};
    bool third = how == FIRST_THIRD || how == LAST_THIRDS;
    if ((how == CONV && n != 4) || ((how == KERNEL || how == OUT_KERNEL) && n < 2) ||
        (how == TOKENS && n > 3) || (third && (n < 1 || p.shape[skip] % 3)))
        return fail(r->e, family_hint, "%s: tensor %.150s has shape %s", r->raw->path, m->t->name,
                    names_shape(m->t->ndim, m->t->shape).s);
    *out = (StPiece){.data = p.data, .type = p.type, .ndim = n};
    if (skip)
        out->data += m->layer * p.stride[0] * st_type_bytes(p.type);
    *ndim = dims[how];
    for (int d = 0; d < *ndim; d++)
        shape[d] = 1;
    for (int d = 0; d < n; d++) {
        int from = axis_of(how, n, d) + skip;
        out->shape[d] = p.shape[from];
        out->stride[d] = p.stride[from];
        shape[part_of(how, n, d)] *= p.shape[from];
    }
    if (third) {
        long rows = out->shape[0] / 3;
        out->shape[0] = shape[0] = how == FIRST_THIRD ? rows : 2 * rows;
        if (how == LAST_THIRDS)
            out->data += rows * out->stride[0] * st_type_bytes(p.type);
    }
    return true;
}

static int compare_match(const void *a, const void *b)
{
    const Match *x = a, *y = b;
    int order = strcmp(x->ours, y->ours);
    return order ? order : x->name->slot - y->name->slot;
}

/* Our tensor of `n` matches, whose pieces follow each other along its first axis, or the tokens'.
 */
static bool add_made(Reader *r, const Match *m, int n)
{
    int ndim = 0, axis = m->name->how == TOKENS;
    long shape[ST_MAX_DIMS] = {0};
    StPiece piece[3];
    for (int i = 0; i < n; i++) {
        int other_ndim = 0;
        long other[ST_MAX_DIMS];
        if (i == COUNT(piece) || (i > 0 && m[i].name->slot == m[i - 1].name->slot))
            return fail(r->e, family_hint, "%s: tensor %s is there as %.100s and as %.100s",
                        r->raw->path, m->ours, m[i - 1].t->name, m[i].t->name);
        if (!st_is_real(r->raw, m[i].t, r->e) ||
            !make_piece(r, &m[i], &piece[i], &other_ndim, other))
            return false;
        for (int d = 0; i > 0 && d < ndim; d++)
            if (other_ndim != ndim || (d != axis && other[d] != shape[d]))
                return fail(r->e, family_hint, "%s: tensors %.100s and %.100s do not fit together",
                            r->raw->path, m[0].t->name, m[i].t->name);
        for (int d = 0; i == 0 && d < other_ndim; d++)
            shape[d] = other[d];
        if (i > 0 && other_ndim > axis)
            shape[axis] += other[axis];
        ndim = other_ndim;
    }
    bool no_key = n == 2 && m[0].name->slot == 0 && m[1].name->slot == 2 && ndim == 1;
    StPiece zeros = piece[0];
    zeros.data = NULL;
    if (no_key) /* softmax does not notice what is added to all keys alike */
        shape[0] += zeros.shape[0];
    StTensor *t = st_add(r->view, m->ours, m->t->type, ndim, shape);
    for (int i = 0; i < n; i++) {
        if (no_key && i == 1)
            st_add_piece(t, zeros);
        st_add_piece(t, piece[i]);
    }
    return true;
}

static StTensor *find_made(const Reader *r, const char *name)
{
    for (int i = 0; i < r->view->count; i++)
        if (strcmp(r->view->tensor[i].name, name) == 0)
            return &r->view->tensor[i];
    return NULL;
}

/* A vector of n zeros in place of a bias that they do without. */
static void add_zeros(Reader *r, const char *name, long n)
{
    st_add_piece(st_add(r->view, name, ST_F32, 1, &n),
                 (StPiece){.type = ST_F32, .ndim = 1, .shape = {n}});
}

/* Biases that are absent are zero. Of the patches it is a setting; of the rest all or none. */
static void add_biases(Reader *r)
{
    static const char *const layers[] = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"};
    int absent = 0, n = r->view->count;
    for (int i = 0; i < n; i++) {
        char name[NAME_SIZE];
        const char *rest, *full = r->view->tensor[i].name;
        long rows = r->view->tensor[i].shape[0];
        bool layer = strcmp(full, "head.weight") == 0 || strcmp(full, SECOND_HEAD ".weight") == 0 ||
                     strcmp(full, "attn_pool.q.weight") == 0 ||
                     strcmp(full, "attn_pool.kv.weight") == 0;
        for (int k = 0; names_block(full, &rest) >= 0 && k < COUNT(layers); k++)
            layer |= strncmp(rest, layers[k], strlen(layers[k])) == 0 &&
                     strcmp(rest + strlen(layers[k]), ".weight") == 0;
        if (!layer || r->view->tensor[i].ndim != 2)
            continue;
        snprintf(name, sizeof name, "%.*s.bias", (int)strlen(full) - 7, full);
        if (find_made(r, name))
            continue;
        if (absent++ == 0)
            note(r->report, "no %s: zeros", name);
        add_zeros(r, name, rows);
    }
}

/* ---- tokens and positions ---- */

static bool is_square(long n)
{
    long side = n > 0 && n < 1l << 40 ? lround(sqrt((double)n)) : 0;
    return side > 0 && side * side == n;
}

/* Rows `from`.. of the positions, n of them. */
static void add_rows(StTensor *t, StPiece p, long from, long n)
{
    if (n == 0)
        return;
    int axis = p.ndim - 2;
    p.data += from * p.stride[axis] * st_type_bytes(p.type);
    p.shape[axis] = n;
    st_add_piece(t, p);
}

/* Of P positions, how many are of tokens before the patches: as many as leave the number of patches
 * that is known (0: it is not), else a square. The last count is what is left. */
static long with_position(const long *counts, int n, long P, long patches)
{
    for (int i = 0; i < n; i++)
        if (patches > 0 && P - counts[i] == patches)
            return counts[i];
    for (int i = 0; i < n; i++)
        if (is_square(P - counts[i]))
            return counts[i];
    return counts[n - 1];
}

/* Positions [1, k + patches, C] of the first k of N tokens before the patches, or of none: the
 * others' are zero (DeiT III's class token, registers). */
static void complete_positions(Reader *r)
{
    StTensor *pos = find_made(r, "pos_embed"), *cls = find_made(r, "cls_token");
    if (!pos || !cls || pos->ndim != 3 || cls->ndim != 3 || pos->piece->ndim < 2 ||
        pos->shape[2] == 0)
        return;
    long all = cls->shape[1], first = 0, P = pos->shape[1], width = pos->shape[2];
    long registers = cls->pieces > 1 ? all - cls->piece[0].n / width : 0;
    const long counts[] = {0, all - registers, all}; /* 9 with 4 registers: 3x3, not 2x2 */
    const StTensor *patch = find_made(r, "patch_embed.proj.weight");
    long side = patch && patch->ndim == 4 && patch->shape[3] > 0 ? patch->shape[3] : 1;
    const NamesKnown *k = &r->known;
    first = with_position(counts, COUNT(counts), P, (k->image_h / side) * (k->image_w / side));
    if (first == all)
        return;
    StPiece whole = *pos->piece;
    const StPiece zeros = {.type = whole.type, .ndim = 2, .shape = {all - first, width}};
    pos->pieces = 0;
    add_rows(pos, whole, 0, first);
    st_add_piece(pos, zeros);
    add_rows(pos, whole, first, P - first);
    pos->shape[1] = P - first + all;
    pos->n = pos->shape[1] * width;
    note(r->report, "%ld of %ld tokens before the patches have no position: zeros", all - first,
         all);
}

/* ---- heads and pooling ---- */

/* Takes tensors out of the view whose names begin so; how many. */
static int drop_made(Reader *r, const char *begin)
{
    int kept = 0, n = r->view->count;
    for (int i = 0; i < n; i++) {
        StTensor *t = &r->view->tensor[i];
        if (strncmp(t->name, begin, strlen(begin)) == 0)
            free(t->piece);
        else
            r->view->tensor[kept++] = *t;
    }
    r->view->count = kept;
    return n - kept;
}

static real *read_made(const Reader *r, const StTensor *t)
{
    real *x = xmalloc((size_t)t->n * sizeof *x);
    if (t->type <= ST_BF16 && st_read_real(r->view, t, 0, t->n, x, r->e))
        return x;
    free(x);
    return NULL;
}

/* Values in memory in place of a tensor's. */
static void replace_made(Reader *r, StTensor *t, real *values, int ndim, const long *shape)
{
    StPiece p = {.data = st_own(r->view, values), .type = ST_REAL, .ndim = ndim};
    t->type = ST_REAL;
    t->ndim = ndim;
    t->pieces = 0;
    t->n = 1;
    for (int d = ndim - 1; d >= 0; d--) {
        t->shape[d] = p.shape[d] = shape[d];
        p.stride[d] = t->n;
        t->n *= shape[d];
    }
    st_add_piece(t, p);
}

/* y = (W0 x0 + b0 + W1 x1 + b1) / 2 = [W0, W1] / 2 [x0, x1] + (b0 + b1) / 2. */
static bool join_heads(Reader *r, StTensor *w, StTensor *b)
{
    const StTensor *w1 = find_made(r, SECOND_HEAD ".weight"), *b1;
    b1 = find_made(r, SECOND_HEAD ".bias");
    if (w1->ndim != 2 || w->ndim != 2 || w1->shape[0] != w->shape[0] ||
        w1->shape[1] != w->shape[1] || !b1 || b->n != w->shape[0] || b1->n != b->n)
        return false;
    long K = w->shape[0], C = w->shape[1];
    const StTensor *from[] = {w, w1, b, b1};
    real *x[4] = {NULL}, *whole = xmalloc((size_t)(2 * K * C) * sizeof *whole);
    bool ok = true;
    for (int i = 0; i < 4; i++)
        ok &= (x[i] = read_made(r, from[i])) != NULL;
    for (long k = 0; ok && k < K; k++) {
        for (long i = 0; i < 2 * C; i++)
            whole[k * 2 * C + i] = x[i >= C][k * C + i % C] / 2;
        x[2][k] = (x[2][k] + x[3][k]) / 2;
    }
    if (ok) {
        replace_made(r, w, whole, 2, (const long[]){K, 2 * C});
        replace_made(r, b, x[2], 1, &K);
        whole = x[2] = NULL;
    }
    for (int i = 0; i < 4; i++)
        free(x[i]);
    free(whole);
    return ok;
}

/* Two heads become one over both tokens, or the class token's alone is kept. */
static void settle_heads(Reader *r)
{
    StTensor *w = find_made(r, "head.weight"), *b = find_made(r, "head.bias");
    const StTensor *cls = find_made(r, "cls_token"), *second = find_made(r, SECOND_HEAD ".weight");
    bool both = r->known.want == -1 || r->known.want == POOL_CLS_DIST;
    if (second && w && b && both && cls && cls->ndim == 3 && cls->shape[1] >= 2 &&
        join_heads(r, w, b)) {
        r->report->pool = POOL_CLS_DIST;
        note(r->report, "its two heads are one over both tokens, their mean (--pool cls: the class "
                        "token's alone)");
    } else if (second) {
        note(r->report, "left out: the head of the distillation token");
    }
    drop_made(r, SECOND_HEAD);
}

/* transformers has a classifier beside an image tower that says nothing of the tower's own pooling.
 */
static bool settle_classifier(Reader *r)
{
    bool classifier = false;
    for (int i = 0; i < r->matches; i++)
        classifier |= strcmp(r->match[i].name->theirs, "classifier.weight") == 0;
    if (!classifier || strcmp(r->family->mark, "embeddings.patch_embedding.weight") != 0)
        return true;
    if (find_made(r, "cls_token"))
        return fail(r->e, variant_hint,
                    "%s: CLIP's image tower with a classifier of transformers', which takes the "
                    "mean of patches without the final norm",
                    r->raw->path);
    if (drop_made(r, "attn_pool."))
        note(r->report, "left out: attention pooling, which its classifier does not use");
    r->report->pool = POOL_GAP;
    return true;
}

/* What the tensors show of pooling. */
static void settle_pool(Reader *r)
{
    const StTensor *pos = find_made(r, "pos_embed"), *head = find_made(r, "pre_logits.fc.weight");
    if (!head)
        head = find_made(r, "head.weight");
    if (find_made(r, "attn_pool.latent"))
        r->report->pool = POOL_MAP;
    else if (r->report->pool < 0 && head && head->ndim == 2 && pos && pos->ndim == 3 &&
             head->shape[1] == 2 * pos->shape[2])
        r->report->pool = POOL_CLS_GAP;
    for (int i = 0; i < r->matches && r->report->pool < 0; i++)
        if (strcmp(r->match[i].ours, "cls_token") == 0) { /* registers alone are no class token */
            r->report->pool = r->match[i].name->slot == 2 ? POOL_GAP : -1;
            break;
        }
}

/* Behind a pooling that takes one token there is no difference between a norm before and after. */
static void settle_norm(Reader *r)
{
    bool one = r->known.pool == POOL_CLS || r->known.want == POOL_CLS;
    one = one && !find_made(r, "norm.weight");
    for (int i = 0; one && i < r->view->count; i++) {
        StTensor *t = &r->view->tensor[i];
        if (strcmp(t->name, "fc_norm.weight") == 0)
            t->name = st_own(r->view, xstrdup("norm.weight"));
        else if (strcmp(t->name, "fc_norm.bias") == 0)
            t->name = st_own(r->view, xstrdup("norm.bias"));
    }
}

/* An RMS norm looks like a LayerNorm without its bias, and computes something else. */
static bool check_norms(const Reader *r)
{
    for (int i = 0; i < r->view->count; i++) {
        const StTensor *t = &r->view->tensor[i];
        const char *end = strstr(t->name, ".weight"), *rest;
        char bias[NAME_SIZE];
        if (!end || t->ndim != 1 || names_block(t->name, &rest) > 0) /* the first says it of all */
            continue;
        snprintf(bias, sizeof bias, "%.*s.bias", (int)(end - t->name), t->name);
        if (!find_made(r, bias))
            return fail(r->e, variant_hint,
                        "%s: norms without a bias (tensor %.100s), as RMS norms", r->raw->path,
                        t->name);
    }
    return true;
}

/* ---- the view ---- */

static bool has_blocks(const Reader *r)
{
    for (int i = 0; i < r->matches; i++)
        if (strncmp(r->match[i].ours, "blocks.", 7) == 0)
            return true;
    return fail(r->e, "the file is incomplete: save all parameters of the model",
                "%s: there is no tensor blocks.0.mlp.fc1.weight or the like: under %s it has an "
                "embedding, but no blocks",
                r->raw->path, r->report->family);
}

static bool has_positions(const Reader *r)
{
    return find_made(r, "pos_embed") ||
           fail(r->e, variant_hint,
                "%s: there is no tensor pos_embed: its positions are not learned, but rotary, "
                "relative or sines",
                r->raw->path);
}

static bool has_norm(const Reader *r)
{
    return find_made(r, "norm.weight") || find_made(r, "fc_norm.weight") ||
           fail(r->e, variant_hint,
                "%s: there is no tensor norm.weight: no norm behind the last block (as RADIO's)",
                r->raw->path);
}

/* Keys without a bias and a gated MLP are EVA-02's, whose rotary positions leave no trace. */
static bool check_gate(const Reader *r)
{
    const StTensor *fc1 = find_made(r, "blocks.0.mlp.fc1.weight");
    const StTensor *fc2 = find_made(r, "blocks.0.mlp.fc2.weight");
    bool gated = fc1 && fc2 && fc1->ndim == 2 && fc2->ndim == 2 && fc1->shape[0] > fc2->shape[1];
    for (int i = 0; gated && i < r->matches; i++)
        if (strcmp(r->match[i].name->theirs, "blocks.#.attn.q_bias") == 0)
            return fail(r->e, variant_hint,
                        "%s: EVA-02, with rotary positions (a gated MLP beside tensor %.100s)",
                        r->raw->path, r->match[i].t->name);
    return true;
}

/* Our tensors, in the order of their names. */
static bool make_tensors(Reader *r)
{
    qsort(r->match, (size_t)r->matches, sizeof *r->match, compare_match);
    for (int i = 0, n; i < r->matches; i += n) {
        n = 1;
        while (i + n < r->matches && strcmp(r->match[i].ours, r->match[i + n].ours) == 0)
            n++;
        if (!add_made(r, &r->match[i], n))
            return false;
    }
    return true;
}

static bool build(Reader *r)
{
    if (!find_family(r))
        return no_family(r);
    snprintf(r->report->family, sizeof r->report->family, "%s names%s%.60s", r->family->title,
             *r->prefix ? " under " : "", r->prefix);
    if (!match_all(r) || !has_blocks(r) || !make_tensors(r) || !has_positions(r))
        return false;
    if (!has_norm(r) || !check_gate(r) || !settle_classifier(r))
        return false;
    add_biases(r);
    settle_heads(r);
    settle_pool(r);
    settle_norm(r);
    complete_positions(r);
    return check_norms(r) && st_index(r->view, r->e);
}

SafeTensors *names_view(SafeTensors *raw, const NamesKnown *known, NamesReport *report, Error *e)
{
    Reader r = {.raw = raw, .view = st_view(raw->path), .known = *known, .report = report, .e = e};
    *report = (NamesReport){.pool = -1, .by_openai = st_find(raw, "context_length") != NULL};
    st_take(r.view, raw);
    unwrap(raw);
    bool ok = build(&r);
    free(r.match);
    if (ok)
        return r.view;
    st_close(r.view);
    return NULL;
}
