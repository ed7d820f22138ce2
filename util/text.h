/* text.h - values as text, the same in flags, recipes and files; and the nearest word. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

bool same_name(const char *a, const char *b); /* `-` and `_` are the same */
int find_bool(const char *value);             /* true yes on 1: 1; false no off 0: 0; or -1 */
int find_word(const char *words,
              const char *value); /* position in "a|b|c" in any letter case, or -1 */
void word_text(const char *words, int k, char *out, size_t size); /* the word at position k */
void double_text(double v, char *out, size_t size); /* the shortest that reads back the same */

/* "1 step", "3 steps", "2 classes", "0 indexes": an amount of what `one` names. */
typedef struct {
    char s[64];
} Amount;
Amount amount(double n, const char *one);

/* The text as a shell takes it for one word, in quotes where it needs them; free() it. */
char *shell_word(const char *s);
/* Bytes of the UTF-8 character at s: 1 to 4; 0 where none starts. */
int utf8_bytes(const unsigned char *s);

/* As a string of JSON, in its quotes; bytes that are no UTF-8 become U+FFFD. */
void json_string(FILE *f, const char *s);
/* As a field of CSV (RFC 4180), in quotes where it needs them. */
void csv_string(FILE *f, const char *s);
/* As text of HTML, and within an attribute's quotes. */
void html_string(FILE *f, const char *s);

/* The word in `list` (NULL-terminated) nearest to `word` by edit distance, or NULL if none is near.
 */
const char *nearest(const char *word, const char *const *list);
/* "did you mean <before><the nearest>? <hint>", or just the hint; free() it. */
char *did_you_mean(const char *before, const char *word, const char *const *list, const char *hint);
