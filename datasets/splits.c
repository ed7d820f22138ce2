/* splits.c - the parts of a data set, by the names of folders and of shards. See splits.h. */
#include "datasets/splits.h"
#include "util/util.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

const char *const split_names[SPLITS] = {"", "train", "val", "test"};

static int split_word(const char *word, size_t n)
{
    static const struct {
        const char *word;
        int split;
    } known[] = {{"train", SPLIT_TRAIN}, {"training", SPLIT_TRAIN}, {"val", SPLIT_VAL},
                 {"valid", SPLIT_VAL},   {"validation", SPLIT_VAL}, {"dev", SPLIT_VAL},
                 {"test", SPLIT_TEST},   {"testing", SPLIT_TEST}};
    for (int i = 0; i < COUNT(known); i++)
        if (strlen(known[i].word) == n && strncasecmp(known[i].word, word, n) == 0)
            return known[i].split;
    return SPLIT_NONE;
}

/* train, training_set, Test Images, val-data, train2017 */
int split_named(const char *name)
{
    static const char *const behind[] = {"", "set", "data", "images"};
    size_t n = strcspn(name, "_- ");
    const char *rest = name + n + (name[n] != '\0');
    if (n > 4 && strspn(name + n - 4, "0123456789") >= 4 && !isdigit((unsigned char)name[n - 5]))
        n -= 4; /* a year */
    for (int i = 0; i < COUNT(behind); i++)
        if (strcasecmp(rest, behind[i]) == 0)
            return split_word(name, n);
    return SPLIT_NONE;
}

/* Letters at the beginning of a name. */
static size_t word_length(const char *name)
{
    size_t n = 0;
    while (isalpha((unsigned char)name[n]))
        n++;
    return n;
}

int split_in(const char *name)
{
    int found = SPLIT_NONE;
    while (*name) {
        size_t n = word_length(name);
        int split = split_word(name, n);
        if (split && found && split != found)
            return SPLIT_NONE;
        found = split ? split : found;
        name += n + (name[n] != '\0');
    }
    return found;
}

bool split_pair(const char *a, const char *b)
{
    int words = 0;
    while (*a && *b) {
        size_t n = word_length(a), m = word_length(b);
        int of_a = split_word(a, n), of_b = split_word(b, m);
        bool same = n == m && strncasecmp(a, b, n) == 0;
        if (!same && !(of_a && of_b && of_a != of_b))
            return false;
        words += !same;
        a += n;
        b += m;
        if (*a != *b)
            return false;
        a += *a != '\0';
        b += *b != '\0';
    }
    return words == 1 && !*a && !*b;
}

int split_for(const int count[SPLITS], bool train)
{
    int split = count[SPLIT_VAL] ? SPLIT_VAL : SPLIT_TEST;
    if (train)
        split = SPLIT_TRAIN;
    return count[split] ? split : SPLIT_NONE;
}
