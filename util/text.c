/* text.c - values as text, and the nearest word. See text.h. */
#include "util/text.h"
#include "util/util.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

bool same_name(const char *a, const char *b)
{
    while (*a && (*a == '_' ? '-' : *a) == (*b == '_' ? '-' : *b))
        a++, b++;
    return !*a && !*b;
}

int find_word(const char *words, const char *value)
{
    size_t n = strlen(value);
    for (int i = 0; n; i++) {
        size_t len = strcspn(words, "|");
        if (len == n && strncasecmp(words, value, n) == 0)
            return i;
        if (!words[len])
            break;
        words += len + 1;
    }
    return -1;
}

int find_bool(const char *value)
{
    int k = find_word("false|true|no|yes|off|on|0|1", value);
    return k < 0 ? -1 : k % 2;
}

void word_text(const char *words, int k, char *out, size_t size)
{
    while (k-- > 0)
        words += strcspn(words, "|") + 1;
    snprintf(out, size, "%.*s", (int)strcspn(words, "|"), words);
}

void double_text(double v, char *out, size_t size)
{
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(out, size, "%.*g", digits, v);
        if (strtod(out, NULL) == v)
            break;
    }
}

Amount amount(double n, const char *one)
{
    Amount a;
    size_t length = strlen(one);
    const char *more = length && strchr("sx", one[length - 1]) ? "es" : "s";
    snprintf(a.s, sizeof a.s, "%.0f %s%s", n, one, n == 1 ? "" : more);
    return a;
}

/* ---- words for a shell ---- */

char *shell_word(const char *s)
{
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:=,@%";
    if (*s && !s[strspn(s, plain)])
        return xstrdup(s);
    char *out = xmalloc(4 * strlen(s) + 3), *to = out;
    *to++ = '\'';
    for (; *s; s++)
        if (*s == '\'') /* ends the quotes, is quoted by itself, begins them again */
            to = (char *)memcpy(to, "'\\''", 4) + 4;
        else
            *to++ = *s;
    *to++ = '\'';
    *to = 0;
    return out;
}

/* ---- characters ---- */

int utf8_bytes(const unsigned char *s)
{
    static const int length[] = {1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 2, 2, 3, 4}; /* by s[0] >> 4 */
    static const unsigned least[] = {0, 0, 0x80, 0x800, 0x10000}; /* shorter forms are wrong */
    int n = length[s[0] >> 4];
    if (n < 2)
        return n;
    unsigned c = s[0] & (0xffu >> n); /* from 0xf8 on beyond Unicode */
    for (int i = 1; i < n; i++) {
        if (s[i] >> 6 != 2) /* the end of the text, too */
            return 0;
        c = c << 6 | (s[i] & 0x3f);
    }
    return c < least[n] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff) ? 0 : n;
}

/* ---- strings of formats ---- */

/* Names of files are any bytes: one that is no UTF-8 becomes U+FFFD. */
static const unsigned char *put_utf8(FILE *f, const unsigned char *s)
{
    int n = utf8_bytes(s);
    if (n == 0)
        fputs("\xef\xbf\xbd", f);
    else
        fwrite(s, 1, (size_t)n, f);
    return s + (n ? n : 1);
}

void json_string(FILE *f, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    fputc('"', f);
    while (*s)
        if (*s == '"' || *s == '\\')
            fprintf(f, "\\%c", *s++);
        else if (*s < 0x20)
            fprintf(f, "\\u%04x", *s++);
        else
            s = put_utf8(f, s);
    fputc('"', f);
}

void csv_string(FILE *f, const char *s)
{
    if (!strpbrk(s, "\",\r\n")) {
        fputs(s, f);
        return;
    }
    fputc('"', f);
    for (; *s; s++) {
        if (*s == '"')
            fputc('"', f);
        fputc(*s, f);
    }
    fputc('"', f);
}

void html_string(FILE *f, const char *text)
{
    static const char special[] = "&<>\"'";
    static const char *const as[] = {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;"};
    const unsigned char *s = (const unsigned char *)text;
    while (*s) {
        const char *p = strchr(special, *s);
        if (p)
            fputs(as[p - special], f);
        s = p ? s + 1 : put_utf8(f, s);
    }
}

/* ---- the nearest word ---- */

/* Levenshtein distance, one row of the table at a time; words are cut at 63 characters. */
static int edit_distance(const char *a, const char *b)
{
    int row[64];
    int n = (int)strnlen(b, 63), m = (int)strnlen(a, 63);
    for (int j = 0; j <= n; j++)
        row[j] = j;
    for (int i = 1; i <= m; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[n];
}

/* Near means: at most a third of the longer word's letters differ (at least one may). */
const char *nearest(const char *word, const char *const *list)
{
    const char *best = NULL;
    int least = 0;
    for (; *list; list++) {
        size_t longer = strlen(word) > strlen(*list) ? strlen(word) : strlen(*list);
        int allowed = longer < 3 ? 1 : (int)(longer + 2) / 3;
        int d = edit_distance(word, *list);
        if (d <= allowed && d < (int)longer && (!best || d < least)) {
            best = *list;
            least = d;
        }
    }
    return best;
}

char *did_you_mean(const char *before, const char *word, const char *const *list, const char *hint)
{
    const char *near = nearest(word, list);
    return near ? xasprintf("did you mean %s%s? %s", before, near, hint) : xstrdup(hint);
}
