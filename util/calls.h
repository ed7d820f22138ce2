/* calls.h - which call to other ranks this process is in, for whoever watches over it.
 *
 * A backend gives each kind of call a number (a sum of so many bytes in such a group is a kind) and
 * says with one word which call it has come to last and whether it waits there. The word is written
 * where that is known: by the thread that computes, or by a GPU into the host's memory. A text is
 * made of it only when somebody asks.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CALL_ALL_REDUCE, CALL_REDUCE_SCATTER, CALL_ALL_GATHER, CALL_PASS, CALL_RECEIVE };
enum { CALL_KINDS = 256 };

/* number: of this call within its series; waits: 1 or 0 */
#define CALL_WORD(kind, number, waits) \
    ((uint64_t)(number) << 16 | (uint64_t)(kind) << 1 | (uint64_t)(waits))

/* CALL_... of `bytes` in the group of this name, a constant: the same number for the same three,
 * 1 .. CALL_KINDS - 1; 0 where there are too many. For one thread. */
int call_kind(int what, const char *group, double bytes);
/* A group's collectives are one series, since all its ranks make the same ones in one order; what a
 * rank passes on in it is another, and what it receives. 0 .. CALL_KINDS - 1. */
int call_series(int kind);

/* This process is there now; or *word says always where it is. */
void call_note(uint64_t word);
void call_look_at(const volatile uint64_t *word);

/* "all-reduce 341 of 4.2 MB (data parallel)"; "": there has been none. Returns whether this process
 * waits there. On any thread. */
bool call_text(char *out, size_t size);
