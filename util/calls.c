/* calls.c - which call to other ranks this process is in. See calls.h. */
#include "util/calls.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

/* An entry is complete before there is a word with its number. */
static struct {
    int what, series;
    const char *group;
    double bytes;
} kinds[CALL_KINDS];
static int n_kinds = 1;

static _Atomic uint64_t noted;
static const volatile uint64_t *_Atomic looked_at;

int call_kind(int what, const char *group, double bytes)
{
    int series = n_kinds;
    for (int k = 1; k < n_kinds; k++) {
        if (strcmp(kinds[k].group, group) != 0)
            continue;
        if (kinds[k].what == what && kinds[k].bytes == bytes)
            return k;
        bool alike = what < CALL_PASS ? kinds[k].what < CALL_PASS : kinds[k].what == what;
        if (alike)
            series = kinds[k].series;
    }
    if (n_kinds == CALL_KINDS)
        return 0;
    kinds[n_kinds].what = what;
    kinds[n_kinds].series = series;
    kinds[n_kinds].group = group;
    kinds[n_kinds].bytes = bytes;
    return n_kinds++;
}

int call_series(int kind)
{
    return kinds[kind].series;
}

void call_note(uint64_t word)
{
    atomic_store_explicit(&noted, word, memory_order_release);
}

void call_look_at(const volatile uint64_t *word)
{
    atomic_store(&looked_at, word);
}

bool call_text(char *out, size_t size)
{
    static const char *const names[] = {"all-reduce", "reduce-scatter", "all-gather", "pass",
                                        "receive"};
    static const char *const units[] = {"bytes", "kB", "MB", "GB", "TB"};
    const volatile uint64_t *there = atomic_load(&looked_at);
    uint64_t word = there ? *there : atomic_load_explicit(&noted, memory_order_acquire);
    int kind = word >> 1 & (CALL_KINDS - 1), unit = 0;
    double bytes = kinds[kind].bytes;
    for (; bytes >= 999.5 && unit < 4; unit++)
        bytes /= 1000;
    *out = 0;
    if (kind)
        snprintf(out, size, "%s %llu of %.3g %s (%s)", names[kinds[kind].what],
                 (unsigned long long)(word >> 16), bytes, units[unit], kinds[kind].group);
    return word & 1;
}
