/* flags.c - a command's flags taken out of argv, and its --help. See flags.h. */
#include "tools/flags.h"

#include "util/names.h"
#include "util/report.h"
#include "util/text.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static NORETURN void print_help(const Command *c)
{
    printf("usage: ./vit %s %s\n\n%s\n", c->name, c->usage, c->help);
    for (int i = 0; i < c->n_flags; i++) {
        char left[64];
        snprintf(left, sizeof left, "--%s %s", c->flags[i].name, c->flags[i].what);
        printf("  %-22s %s\n", left, c->flags[i].help);
    }
    if (c->more_help)
        c->more_help(stdout);
    report_written(stdout);
    exit(0);
}

static void set_number(const Flag *f, const char *value)
{
    static const char *const suffixes = "KMG";
    char *end;
    errno = 0;
    long n = strtol(value, &end, 10);
    const char *suffix = f->kind == FLAG_BYTES && *end ? strchr(suffixes, *end & ~32) : NULL;
    bool ok = end != value && *value != ' ' && !errno;
    for (const char *p = suffixes; ok && suffix && p <= suffix; p++)
        ok = !__builtin_mul_overflow(n, 1000L, &n);
    end += suffix != NULL;
    if (!ok || *end)
        die_usage(f->kind == FLAG_BYTES ? "give bytes, as 500000000 or 500M"
                                        : "give a whole number",
                  "--%s: '%s' is not a %s", f->name, value,
                  f->kind == FLAG_BYTES ? "number of bytes" : "whole number");
    if (n < f->least || n > f->most)
        die_usage(f->help, "--%s: %s is outside %ld..%ld", f->name, value, f->least, f->most);
    *(long *)f->at = n;
}

/* The flag that argv[i] names, `--name` or `--name=value`. */
static const Flag *find_flag(const Command *c, const char *arg, const char **value)
{
    const char *equals = strchr(arg, '=');
    const Flag *found = NULL;
    if (strncmp(arg, "--", 2) != 0)
        return NULL;
    char *name = xasprintf("%.*s", (int)strcspn(arg + 2, "="), arg + 2);
    for (int i = 0; i < c->n_flags && !found; i++)
        found = same_name(c->flags[i].name, name) ? &c->flags[i] : NULL;
    free(name);
    *value = equals ? equals + 1 : NULL;
    return found;
}

static Names given; /* flags of this process's command */

void flags_take(const Command *c, int *argc, char **argv)
{
    int left = 1;
    for (int i = 1; i < *argc; i++) {
        const char *value = NULL;
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            print_help(c);
        const Flag *f = find_flag(c, argv[i], &value);
        if (!f) {
            argv[left++] = argv[i];
            continue;
        }
        names_add(&given, f->name);
        if (f->kind == FLAG_SWITCH) {
            if (value)
                die_usage("give the flag alone", "--%s takes no value", f->name);
            *(bool *)f->at = true;
            continue;
        }
        if (!value && i + 1 == *argc)
            die_usage(f->help, "--%s needs a value", f->name);
        value = value ? value : argv[++i];
        if (f->kind == FLAG_TEXT)
            *(const char **)f->at = value;
        else
            set_number(f, value);
    }
    *argc = left;
    argv[left] = NULL;
}

void flags_note(bool works, const char *names, const char *where)
{
    char *list = xstrdup(names), *rest = list, *name;
    int found = 0;
    while (!works && (name = strsep(&rest, " "))) {
        int i = 0;
        while (i < given.n && strcmp(given.at[i], name) != 0)
            i++;
        if (i < given.n)
            fprintf(stderr, "%s--%s", found++ ? ", " : "note: ", name);
    }
    if (found)
        fprintf(stderr, " %s no effect %s\n", found > 1 ? "have" : "has", where);
    free(list);
}

void flags_none_left(const Command *c, int argc, char **argv)
{
    if (argc < 2)
        return;
    const char **names = xcalloc((size_t)c->n_flags + 1, sizeof *names);
    for (int i = 0; i < c->n_flags; i++)
        names[i] = c->flags[i].name;
    const char *word = strncmp(argv[1], "--", 2) == 0 ? argv[1] + 2 : "";
    char *name = xasprintf("%.*s", (int)strcspn(word, "="), word);
    char *list = xasprintf("./vit %s --help lists all flags", c->name);
    die_usage(did_you_mean("--", name, names, list), "%s: no such flag", argv[1]);
}
