/* huffman.c - the entropy decoder of sequential JPEG, in place of libjpeg's.
 *
 * A crop of a JPEG spends most of its time in Huffman codes: whatever is above, beside and in the
 * area has to go through them. libjpeg looks up a code, then takes the bits of the value behind it,
 * and branches on both; here one look-up gives two values with their codes, or one and the end of
 * the block, and only what does not fit is a branch, out of a 64-bit buffer that is filled by whole
 * words. Where no pixel is made of a block, a look-up passes over all the codes that it sees, and
 * only DC values are kept account of. Everything around it stays libjpeg's, and the coefficients
 * are the same, of damaged files too: markers, restarts and codes that do not exist are treated
 * alike.
 *
 * libjpeg's modules are joined by pointers that its header jpegint.h declares; where a system does
 * not install it, libjpeg's own decoder stays.
 *
 * Order: tables, bits, blocks, the module.
 */
#if defined(__has_include)
#if __has_include(<jpegint.h>)
#define HAVE_JPEGINT
#endif
#endif

#ifdef HAVE_JPEGINT
#define JPEG_INTERNALS
#include "image/huffman.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "util/util.h"

/* ---- tables ---- */

enum { LOOK = 10, CODE = 16 }; /* bits that are looked at; of the longest code */

/* What the next LOOK bits begin with: how many bits a code and the value behind it have together,
 * in the lowest six; from SIZE on, of the value alone; from RUN on, how many zeros come before it.
 * STOP: no more values, or 16 zeros. LONG: a code of more than LOOK bits. */
typedef uint32_t Entry;
enum { BOTH = 63, SIZE = 8, RUN = 16, STOP = 1 << 24, LONG = 1 << 25 };

/* The same of AC codes, with values: the bits and positions to go on by, the values v[0] and v[1]
 * and at how many positions from here they stand. One value: both stand at the same place, and v[0]
 * is stored last. The end of the block goes on by 64 positions. RARE: see the other table. */
typedef struct {
    uint8_t bits, on, at[2];
    int16_t v[2];
} Pair;
enum { RARE = 255 };

/* Where values do not matter: the bits and positions to go on by, through all codes that the next
 * WALK bits determine, with the values behind them, in MOST bits at most (of 56 in the buffer, so
 * that it is filled once for three steps). Bits in the lowest six; from ON on positions, at most 64
 * of them; the end of the block counts as one, and END more. NOWHERE, beyond any block: see the
 * first table. */
typedef uint16_t Step;
enum { WALK = 12, MOST = 18, ON = 6, NOWHERE = 128, END = 256 };

typedef struct {
    JHUFF_TBL from; /* what it was made of */
    bool made;
    Entry look[1 << LOOK];
    Pair pair[1 << LOOK];
    Step step[2 << WALK];                    /* of n known bits: from 1 << n on */
    int32_t max[CODE + 2], offset[CODE + 1]; /* largest code of a length; symbol - code */
} Table;

/* A symbol is a run of zeros (none in a DC table) and the size of the value; no size: the end, or
 * 16 zeros. */
static Entry entry_of(int symbol, int length)
{
    int size = symbol & 15;
    return (Entry)(length + size) | (Entry)size << SIZE | (Entry)(symbol >> 4) << RUN |
           (size == 0 ? STOP : 0);
}

static __attribute__((noinline)) Entry long_entry(const Table *t, uint64_t bits)
{
    int length = LOOK + 1;
    while (length <= CODE && (int)(bits >> (64 - length)) > t->max[length])
        length++;
    if (length > CODE) /* no such code: libjpeg goes on with symbol 0 */
        return entry_of(0, CODE + 1);
    return entry_of(t->from.huffval[((int)(bits >> (64 - length)) + t->offset[length]) & 255],
                    length);
}

/* The code that the upper bits begin with. */
static inline Entry entry_at(const Table *t, uint64_t bits)
{
    Entry e = t->look[bits >> (64 - LOOK)];
    return __builtin_expect(e & LONG, 0) ? long_entry(t, bits) : e;
}

/* What a value's `size` bits say: the upper half stand for themselves, the lower are below zero. */
static inline int value_of(unsigned bits, unsigned mask)
{
    return (int)((bits & mask) - ((bits & mask) > mask >> 1 ? 0 : mask));
}

static Pair pair_of(const Table *t, unsigned bits)
{
    enum { MASK = (1 << LOOK) - 1 };
    Pair p = {.at = {RARE}};
    int used = 0, at = 0;
    for (int i = 0; i < 2; i++) {
        Entry e = t->look[bits << used & MASK];
        int run = (int)(e >> RUN & 15);
        bool end = e & STOP;
        used += (int)(e & BOTH);
        if ((e & LONG) || used > LOOK || (end && run == 15))
            return p;
        at += end ? 0 : run;
        p.bits = (uint8_t)used;
        p.on = (uint8_t)(end ? 64 : at + 1);
        p.at[1] = p.at[i] = (uint8_t)at;
        if (end)
            return p;
        p.v[i] = (int16_t)value_of(bits >> (LOOK - used), (1u << (e >> SIZE & 15)) - 1);
        at++;
    }
    return p;
}

/* The steps of `n` known bits that begin with this code: it alone, or with the step of those bits
 * that are known behind it and its value, which may be any. */
static void add_steps(Step *step, int code, int length, int symbol, int n)
{
    int size = symbol & 15, run = symbol >> 4, rest = n - length - size;
    bool end = size == 0 && run != 15;
    Step first = (Step)(length + size) | (Step)((end ? END + 1 : run + 1) << ON);
    Step *to = step + (1 << n) + (code << (n - length)), *last = to + (1 << (n - length));
    if (length + size > MOST)
        return;
    if (rest < 0 || end) {
        while (to < last)
            *to++ = first;
        return;
    }
    for (; to < last; to += 1 << rest)
        for (int i = 0; i < 1 << rest; i++) {
            Step both = (Step)(first + step[(1 << rest) + i]);
            bool fits = (both & BOTH) <= MOST && (both >> ON & (END - 1)) <= 64;
            to[i] = fits ? both : first;
        }
}

/* libjpeg has checked that the codes of each length fit. */
static void make_table(Table *t, const JHUFF_TBL *from, bool ac)
{
    if (t->made && memcmp(t->from.bits, from->bits, sizeof from->bits) == 0 &&
        memcmp(t->from.huffval, from->huffval, sizeof from->huffval) == 0)
        return;
    t->from = *from;
    t->made = true;
    int code = 0, symbols = 0, codes[256], lengths[256]; /* shorter ones first */
    for (int length = 1; length <= CODE; length++, code <<= 1) {
        t->offset[length] = symbols - code;
        for (int i = 0; i < from->bits[length] && symbols < 256; i++, code++, symbols++) {
            codes[symbols] = code;
            lengths[symbols] = length;
        }
        t->max[length] = from->bits[length] ? code - 1 : -1;
    }
    for (int i = 0; i < 1 << LOOK; i++)
        t->look[i] = LONG;
    for (int s = 0; s < symbols && lengths[s] <= LOOK; s++) {
        int rest = LOOK - lengths[s];
        for (int b = 0; b < 1 << rest; b++)
            t->look[(codes[s] << rest | b) & ((1 << LOOK) - 1)] =
                entry_of(from->huffval[s], lengths[s]);
    }
    if (!ac)
        return;
    for (int i = 0; i < 1 << LOOK; i++)
        t->pair[i] = pair_of(t, (unsigned)i);
    for (int i = 0; i < 2 << WALK; i++)
        t->step[i] = NOWHERE << ON;
    for (int n = 1; n <= WALK; n++)
        for (int s = 0; s < symbols && lengths[s] <= n; s++)
            add_steps(t->step, codes[s], lengths[s], from->huffval[s], n);
}

/* ---- bits ---- */

/* The next bits are the upper `left` of `bits`. Below them are zeros, or bits of the byte at p. A
 * negative `left`: that many zeros were taken beyond the end. */
typedef struct {
    uint64_t bits;
    int left;
    const uint8_t *p, *end;
    int marker; /* that was met; nothing behind it is read */
} Bits;

static inline bool has_ff(uint64_t v)
{
    return ((~v - 0x0101010101010101u) & v & 0x8080808080808080u) != 0;
}

static __attribute__((noinline)) void fill_by_bytes(Bits *b)
{
    while (b->left < 56 && b->p < b->end && !b->marker) {
        int c = *b->p++;
        if (c == 0xFF) { /* FF 00 is the byte FF; before a marker there may be more of FF */
            const uint8_t *at = b->p;
            while (at < b->end && *at == 0xFF)
                at++;
            if (at == b->end) {
                b->end = --b->p; /* cut within: this is the end */
                return;
            }
            b->p = at + 1;
            if (*at != 0) {
                b->marker = *at;
                return;
            }
        }
        if (b->left >= 0)
            b->bits |= (uint64_t)c << (56 - b->left);
        b->left += 8;
    }
}

/* At least 56 bits, if there are as many. Bits are taken beyond the end only where there are no
 * more bytes to read. */
static inline void fill(Bits *b)
{
    uint64_t v;
    if (__builtin_expect(b->end - b->p >= 8 && !b->marker, 1)) {
        memcpy(&v, b->p, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        v = __builtin_bswap64(v);
#endif
        if (__builtin_expect(!has_ff(v), 1)) {
            b->bits |= v >> b->left;
            b->p += (63 - b->left) >> 3;
            b->left |= 56;
            return;
        }
    }
    Bits copy = *b; /* so that *b itself can stay in registers */
    fill_by_bytes(&copy);
    *b = copy;
}

/* The next code and the value behind it. Takes at most 32 bits. */
static inline Entry next(Bits *b, const Table *t, int *value)
{
    Entry e = entry_at(t, b->bits);
    *value = value_of((unsigned)(b->bits >> (-e & 63)), (1u << (e >> SIZE & 15)) - 1);
    b->bits <<= e & BOTH;
    b->left -= (int)(e & BOTH);
    return e;
}

/* ---- blocks ---- */

/* Where in a block its coefficients stand; a run may reach 15 beyond the end. */
static const uint8_t zigzag[64 + 16] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33,
    40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36,
    29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63};

/* One value, by the table that knows all of them. block may be NULL. */
static inline void decode_one(Bits *b, const Table *t, JCOEF *block, int *k)
{
    int value;
    fill(b);
    Entry e = next(b, t, &value);
    fill(b);
    int run = (int)(e >> RUN & 15), at = *k + run;
    *k = (e & STOP) && run != 15 ? 64 : at + 1;
    if (block && !(e & STOP))
        block[zigzag[at]] = (JCOEF)value;
}

/* A pair must lie within the block, which otherwise ends before its second half. */
static inline void decode_ac(Bits *bits, const Table *t, JCOEF *block)
{
    enum { UNROLL = 4 }; /* times LOOK bits are in the buffer */
    Bits b = *bits;      /* in registers */
    for (int k = 1; k < 64;) {
        fill(&b);
        for (int i = 0; i < UNROLL && k < 64; i++) {
            Pair p = t->pair[b.bits >> (64 - LOOK)];
            if (__builtin_expect(p.at[0] == RARE || k + p.at[1] > 63, 0)) {
                decode_one(&b, t, block, &k);
                continue;
            }
            block[zigzag[k + p.at[1]]] = p.v[1];
            block[zigzag[k + p.at[0]]] = p.v[0];
            k += p.on;
            b.bits <<= p.bits;
            b.left -= p.bits;
        }
    }
    *bits = b;
}

/* As decode_ac, without the values. A step must not lead beyond the block, which otherwise ends
 * before its last code. */
static inline void skip_ac(Bits *bits, const Table *t)
{
    enum { UNROLL = 56 / MOST };
    Bits b = *bits;
    for (int k = 1; k < 64;) {
        fill(&b);
        for (int i = 0; i < UNROLL && k < 64; i++) {
            Step s = t->step[1 << WALK | b.bits >> (64 - WALK)];
            int to = k + (s >> ON);
            if (__builtin_expect(to > 64 && (to & (END - 1)) > 64, 0)) {
                decode_one(&b, t, NULL, &k);
                continue;
            }
            k = to;
            b.bits <<= s & BOTH;
            b.left -= s & BOTH;
        }
    }
    *bits = b;
}

struct Huffman {
    struct jpeg_entropy_decoder module; /* what libjpeg sees; first */
    Table dc[NUM_HUFF_TBLS], ac[NUM_HUFF_TBLS];
    uint64_t bits;
    int left;
    unsigned restarts_to_go;
    uint32_t last_dc[MAX_COMPS_IN_SCAN];
    JDIMENSION column; /* of the next MCU */
};

static boolean restart(j_decompress_ptr d, Huffman *h)
{
    d->marker->discarded_bytes += (unsigned)(h->left > 0 ? h->left / 8 : 0);
    h->bits = 0;
    h->left = 0;
    if (!d->marker->read_restart_marker(d))
        return FALSE;
    memset(h->last_dc, 0, sizeof h->last_dc);
    h->restarts_to_go = d->restart_interval;
    if (d->unread_marker == 0)
        h->module.insufficient_data = FALSE;
    return TRUE;
}

/* ---- the module ---- */

/* At an eighth of the size a block is one pixel. */
static bool has_ac(const jpeg_component_info *comp)
{
#if JPEG_LIB_VERSION >= 70
    return comp->DCT_h_scaled_size > 1 || comp->DCT_v_scaled_size > 1;
#else
    return comp->DCT_scaled_size > 1;
#endif
}

/* One MCU; without `blocks` it is only passed over. FALSE: the file ends here. */
static boolean read_mcu(j_decompress_ptr d, Huffman *h, JBLOCKROW *blocks)
{
    if (d->restart_interval && h->restarts_to_go == 0 && !restart(d, h))
        return FALSE;
    if (d->restart_interval)
        h->restarts_to_go--;
    if (h->module.insufficient_data)
        return TRUE; /* the blocks are zeros already */
    const uint8_t *from = d->src->next_input_byte;
    Bits b = {h->bits, h->left, from, from + d->src->bytes_in_buffer, d->unread_marker};
    for (int i = 0; i < d->blocks_in_MCU; i++) {
        int c = d->MCU_membership[i];
        const jpeg_component_info *comp = d->cur_comp_info[c];
        const Table *ac = &h->ac[comp->ac_tbl_no];
        int difference;
        fill(&b);
        next(&b, &h->dc[comp->dc_tbl_no], &difference);
        h->last_dc[c] += (uint32_t)difference;
        if (blocks)
            blocks[i][0][0] = (JCOEF)h->last_dc[c];
        if (blocks && comp->component_needed && has_ac(comp))
            decode_ac(&b, ac, blocks[i][0]);
        else
            skip_ac(&b, ac);
        if (b.left >= 0)
            continue;
        if (!b.marker)
            return FALSE;
        h->module.insufficient_data = TRUE; /* zeros to the end of this MCU */
        b.left = 0;
        b.bits = 0;
    }
    h->bits = b.bits;
    h->left = b.left;
    d->unread_marker = b.marker;
    d->src->bytes_in_buffer -= (size_t)(b.p - from);
    d->src->next_input_byte = b.p;
    return TRUE;
}

/* libjpeg asks for every MCU in turn, whole rows with no blocks to put them in, and transforms
 * those of some columns. */
static boolean decode_mcu(j_decompress_ptr d, JBLOCKROW *blocks)
{
    Huffman *h = (Huffman *)d->entropy;
    bool seen = h->column >= d->master->first_iMCU_col && h->column <= d->master->last_iMCU_col;
    if (!read_mcu(d, h, seen ? blocks : NULL))
        return FALSE;
    h->column = h->column + 1 < d->MCUs_per_row ? h->column + 1 : 0;
    return TRUE;
}

void huffman_take_over(Huffman **kept, j_decompress_ptr d)
{
    if (d->progressive_mode || d->arith_code || jpeg_has_multiple_scans(d) ||
        d->comps_in_scan != d->num_components)
        return;
    Huffman *h = *kept = *kept ? *kept : xcalloc(1, sizeof *h);
    for (int c = 0; c < d->comps_in_scan; c++) {
        const jpeg_component_info *comp = d->cur_comp_info[c];
        make_table(&h->dc[comp->dc_tbl_no], d->dc_huff_tbl_ptrs[comp->dc_tbl_no], false);
        make_table(&h->ac[comp->ac_tbl_no], d->ac_huff_tbl_ptrs[comp->ac_tbl_no], true);
    }
    h->module = *d->entropy;
    h->module.decode_mcu = decode_mcu;
    h->module.insufficient_data = FALSE;
    h->bits = 0;
    h->left = 0;
    h->column = 0;
    h->restarts_to_go = d->restart_interval;
    memset(h->last_dc, 0, sizeof h->last_dc);
    d->entropy = &h->module;
}
#else
#include "image/huffman.h"

void huffman_take_over(Huffman **h, j_decompress_ptr d)
{
    (void)h, (void)d;
}
#endif
