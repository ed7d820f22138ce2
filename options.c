/* options.c - parses flags and recipe files into Options, prints --help and config.ini.
 *
 * It knows nothing of what the flags mean: the tables are in options.h (the program's flags) and
 * vit.h (the model's settings). A setting is looked up in three places in turn: the shorthands that
 * stand for several settings, the program's flags, the model's settings.
 *
 * Read in this order: tables, one setting, recipe lines, command line, output.
 */
#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- tables ---- */

typedef enum { O_text, O_long, O_double, O_bool, O_word, O_group } OptionType;
typedef struct {
    OptionType type;
    const char *flag, *value, *allowed, *help;
    size_t offset, given;
} Option;

static const Option options[] = {
#define GROUP(name) {O_group, name, "", "", "", 0, 0},
#define X(type, field, flag, value, allowed, help) \
    {O_##type,                                     \
     flag,                                         \
     value,                                        \
     allowed,                                      \
     help,                                         \
     offsetof(Options, field),                     \
     offsetof(Options, has_##field)},
    OPTIONS(GROUP, X)
#undef X
#undef GROUP
};

/* A shorthand sets several of the model's settings from one value. */
static const struct {
    const char *flag, *help, *fields[3], *imagenet;
} shorthands[] = {
    {"image-size",
     "image height and width in pixels: N or HxW",
     {"image_h", "image_w", NULL},
     NULL},
    {"mean",
     "normalisation mean: r,g,b or one number or imagenet",
     {"mean_r", "mean_g", "mean_b"},
     "0.485,0.456,0.406"},
    {"std",
     "normalisation standard deviation: the same",
     {"std_r", "std_g", "std_b"},
     "0.229,0.224,0.225"},
};

static const Option *find_option(const char *flag)
{
    for (int i = 0; i < COUNT(options); i++)
        if (options[i].type != O_group && strcmp(options[i].flag, flag) == 0)
            return &options[i];
    return NULL;
}

static const char *nearest_flag(const char *name)
{
    const char *all[COUNT(options) + COUNT(shorthands) + MAX_CONFIG_FIELDS + 2];
    int n = 0;
    for (int i = 0; i < COUNT(options); i++)
        if (options[i].type != O_group)
            all[n++] = options[i].flag;
    for (int i = 0; i < COUNT(shorthands); i++)
        all[n++] = shorthands[i].flag;
    for (int i = 0; i < vit_config_count && i < MAX_CONFIG_FIELDS; i++)
        all[n++] = vit_config_fields[i].flag;
    all[n++] = "help";
    all[n] = NULL;
    return nearest(name, all);
}

/* ---- one setting ---- */

/* Position of `value` in "a|b|c", or -1. */
static int find_choice(const char *choices, const char *value)
{
    size_t n = strlen(value);
    for (int i = 0;; i++) {
        size_t len = strcspn(choices, "|");
        if (n && len == n && memcmp(choices, value, n) == 0)
            return i;
        if (!choices[len])
            return -1;
        choices += len + 1;
    }
}

static bool in_range(const char *allowed, double v)
{
    const char *dots = strstr(allowed, "..");
    if (!dots)
        return true;
    return (dots == allowed || v >= strtod(allowed, NULL)) &&
           (!dots[2] || v <= strtod(dots + 2, NULL));
}

static int find_bool(const char *value)
{
    static const char *const names[] = {"false", "true", "no", "yes", "off", "on", "0", "1"};
    for (int i = 0; i < COUNT(names); i++)
        if (strcmp(value, names[i]) == 0)
            return i % 2;
    return -1;
}

static bool set_number(const Option *p, void *at, const char *value, const char *where, Error *e)
{
    char *end;
    errno = 0;
    bool whole = p->type == O_long;
    long n = whole ? strtol(value, &end, 10) : 0;
    double x = whole ? (double)n : strtod(value, &end);
    if (!*value || *end || isspace((unsigned char)*value) || (whole && errno) || !isfinite(x))
        return fail(e, NULL, "%s%s: '%s' is not a %snumber", where, p->flag, value,
                    whole ? "whole " : "");
    if (!in_range(p->allowed, x))
        return fail(e, NULL, "%s%s: %s is outside %s", where, p->flag, value, p->allowed);
    if (whole)
        *(long *)at = n;
    else
        *(double *)at = x;
    return true;
}

static bool set_option(Options *o, const Option *p, const char *value, const char *where, Error *e)
{
    void *at = (char *)o + p->offset;
    int k;
    switch (p->type) {
    case O_text:
        free((char *)*(text *)at);
        *(text *)at = xstrdup(value);
        break;
    case O_bool:
        if ((k = find_bool(value)) < 0)
            return fail(e, NULL, "%s%s: '%s' is neither true nor false", where, p->flag, value);
        *(bool *)at = k;
        break;
    case O_word:
        if ((k = find_choice(p->allowed, value)) < 0)
            return fail(e, NULL, "%s%s: '%s' is none of %s", where, p->flag, value, p->allowed);
        *(word *)at = k;
        break;
    default:
        if (!set_number(p, at, value, where, e))
            return false;
    }
    *((bool *)o + p->given) = true;
    return true;
}

static bool set_field(Options *o, const ConfigField *f, const char *value, const char *where,
                      Error *e)
{
    Error inner = {"", ""};
    if (!vit_config_set(&o->config, f->name, value, &inner))
        return fail(e, inner.hint, "%s%s", where, inner.what);
    o->has_config[f - vit_config_fields] = true;
    return true;
}

static const ConfigField *find_field(const char *name)
{
    for (int i = 0; i < vit_config_count && i < MAX_CONFIG_FIELDS; i++)
        if (strcmp(vit_config_fields[i].name, name) == 0 ||
            strcmp(vit_config_fields[i].flag, name) == 0)
            return &vit_config_fields[i];
    return NULL;
}

/* "224", "224x160", "0.5", "0.5,0.5,0.5", "imagenet": each part to its setting, one part to all. */
static bool set_shorthand(Options *o, int row, const char *value, const char *where, Error *e)
{
    char buffer[128], *part[3];
    int n = 0, want = shorthands[row].fields[2] ? 3 : 2;
    const char *separators = want == 3 ? "," : "xX,";
    if (shorthands[row].imagenet && strcmp(value, "imagenet") == 0)
        value = shorthands[row].imagenet;
    snprintf(buffer, sizeof buffer, "%s", value);
    char *rest = buffer, *p;
    while ((p = strsep(&rest, separators)) && n < 3)
        part[n++] = p;
    if (p || (n != 1 && n != want))
        return fail(e, shorthands[row].help, "%s%s: cannot read '%s'", where, shorthands[row].flag,
                    value);
    for (int i = 0; i < want; i++)
        if (!set_field(o, find_field(shorthands[row].fields[i]), part[n == 1 ? 0 : i], where, e))
            return false;
    return true;
}

bool options_set(Options *o, const char *name, const char *value, const char *where, Error *e)
{
    char flag[64];
    snprintf(flag, sizeof flag, "%s", name);
    for (char *p = flag; *p; p++)
        if (*p == '_')
            *p = '-';
    for (int i = 0; i < COUNT(shorthands); i++)
        if (strcmp(shorthands[i].flag, flag) == 0)
            return set_shorthand(o, i, value, where, e);
    const Option *p = find_option(flag);
    if (p) {
        if (!set_option(o, p, value, where, e))
            return false;
        /* epochs and steps say the same thing: the later one counts, and 0 says nothing */
        if (strcmp(flag, "epochs") == 0 && o->epochs > 0)
            o->steps = 0;
        if (strcmp(flag, "steps") == 0 && o->steps > 0)
            o->epochs = 0;
        return true;
    }
    const ConfigField *f = find_field(flag);
    if (!f)
        f = find_field(name); /* a field's own name, such as image_h */
    if (f)
        return set_field(o, f, value, where, e);
    const char *near = nearest_flag(flag);
    char hint[160] = "--help lists all settings";
    if (near)
        snprintf(hint, sizeof hint, "did you mean %s%s? --help lists all settings",
                 strcmp(where, "--") == 0 ? where : "", near);
    return fail(e, hint, "%s%s: no such setting", where, name);
}

void options_init(Options *o)
{
    memset(o, 0, sizeof *o);
    o->config = vit_config_default();
    o->command = "train";
    Error e = {"", ""};
    for (int i = 0; i < COUNT(options); i++) {
        if (options[i].type == O_group)
            continue;
        if (!set_option(o, &options[i], options[i].value, "default of --", &e))
            die("this is a mistake in options.h", "%s", e.what);
        *((bool *)o + options[i].given) = false;
    }
}

void options_free(Options *o)
{
    for (int i = 0; i < COUNT(options); i++)
        if (options[i].type == O_text)
            free((char *)*(text *)((char *)o + options[i].offset));
    free(o->files);
    memset(o, 0, sizeof *o);
}

/* ---- recipe lines ---- */

static char *trim(char *s)
{
    while (isspace((unsigned char)*s))
        s++;
    char *end = s + strlen(s);
    while (end > s && isspace((unsigned char)end[-1]))
        *--end = 0;
    return s;
}

/* The value of a line: its quotes or its comment removed. */
static char *clean_value(char *s)
{
    s = trim(s);
    char *end = *s == '"' ? strchr(s + 1, '"') : NULL;
    if (end) {
        *end = 0;
        return s + 1;
    }
    for (char *p = s; *p; p++)
        if (*p == '#' && (p == s || isspace((unsigned char)p[-1]))) {
            *p = 0;
            break;
        }
    return trim(s);
}

static bool options_line(Options *o, char *line, const char *where, Error *e)
{
    line = trim(line);
    if (!*line || *line == '#' || *line == '[')
        return true;
    char *equals = strchr(line, '=');
    if (!equals)
        return fail(e, "a line of a recipe is `key = value`", "%s'%.60s' has no '='", where, line);
    *equals = 0;
    char *key = trim(line), *value = clean_value(equals + 1);
    if (strcmp(key, "recipe") == 0)
        return fail(e, "give several --recipe flags instead", "%sa recipe cannot name another",
                    where);
    return options_set(o, key, value, where, e);
}

bool options_lines(Options *o, const char *lines, const char *where, Error *e)
{
    char *copy = xstrdup(lines), *rest = copy, *line;
    bool ok = true;
    for (int n = 1; ok && (line = strsep(&rest, "\n")); n++) {
        char *at = xasprintf("%s:%d: ", where, n);
        ok = options_line(o, line, at, e);
        free(at);
    }
    free(copy);
    return ok;
}

bool options_file(Options *o, const char *path, Error *e)
{
    char *lines = read_text(path, 1 << 20, e);
    bool ok = lines && options_lines(o, lines, path, e);
    free(lines);
    return ok;
}

/* ---- command line ---- */

static bool is_switch(const char *name)
{
    const Option *p = find_option(name);
    const ConfigField *f = p ? NULL : find_field(name);
    return p ? p->type == O_bool : f && f->type == T_BOOL;
}

/* One flag at argv[*i]; moves *i past its value. */
static bool options_flag(Options *o, int argc, char **argv, int *i, Error *e)
{
    char name[64];
    const char *flag = argv[*i] + 2, *equals = strchr(flag, '='), *value = NULL;
    size_t len = equals ? (size_t)(equals - flag) : strlen(flag);
    snprintf(name, sizeof name, "%.*s", (int)(len < sizeof name ? len : sizeof name - 1), flag);
    const char *next = *i + 1 < argc ? argv[*i + 1] : NULL;
    if (equals) {
        value = equals + 1;
    } else if (is_switch(name)) {
        bool takes = next && (strcmp(next, "true") == 0 || strcmp(next, "false") == 0);
        value = takes ? argv[++*i] : "true";
    } else if (strncmp(name, "no-", 3) == 0 && (find_option(name + 3) || find_field(name + 3))) {
        memmove(name, name + 3, strlen(name + 3) + 1);
        value = is_switch(name) ? "false" : "0";
    } else if (next) {
        value = argv[++*i];
    } else if (find_option(name) || find_field(name)) {
        return fail(e, "--help says what it takes", "--%s needs a value", name);
    } else {
        value = ""; /* unknown, and says so below */
    }
    if (strcmp(name, "recipe") == 0)
        return options_set(o, name, value, "--", e) && options_file(o, value, e);
    return options_set(o, name, value, "--", e);
}

bool options_args(Options *o, int argc, char **argv, bool *help, Error *e)
{
    static const char *const commands[] = {"train", "eval", "predict", "bench", NULL};
    int i = 1;
    if (argc > 1 && argv[1][0] != '-') {
        for (int k = 0; commands[k]; k++)
            if (strcmp(argv[1], commands[k]) == 0)
                o->command = argv[i++];
        if (i == 1) {
            const char *near = nearest(argv[1], commands);
            char hint[96];
            snprintf(hint, sizeof hint,
                     near ? "did you mean %s?" : "train, eval, predict or bench%s",
                     near ? near : "");
            return fail(e, hint, "no command is called '%s'", argv[1]);
        }
    }
    o->files = xcalloc((size_t)argc + 1, sizeof *o->files);
    for (; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            *help = true;
        else if (strncmp(argv[i], "--", 2) == 0 && argv[i][2]) {
            if (!options_flag(o, argc, argv, &i, e))
                return false;
        } else
            o->files[o->n_files++] = argv[i];
    }
    if (o->n_files && strcmp(o->command, "predict") != 0)
        return fail(e, "flags begin with --, as in --data DIR", "'%s' is no flag", o->files[0]);
    return true;
}

bool options_config_given(const Options *o, const char *field)
{
    const ConfigField *f = find_field(field);
    return f && o->has_config[f - vit_config_fields];
}

void options_apply_config(const Options *o, Config *c)
{
    static const size_t size[] = {sizeof(int), sizeof(double), sizeof(bool), sizeof(word)};
    for (int i = 0; i < vit_config_count && i < MAX_CONFIG_FIELDS; i++) {
        const ConfigField *f = &vit_config_fields[i];
        if (o->has_config[i])
            memcpy((char *)c + f->offset, (const char *)&o->config + f->offset, size[f->type]);
    }
}

/* ---- output ---- */

static void help_line(FILE *f, const char *flag, const char *what, const char *value,
                      const char *help)
{
    char left[64];
    snprintf(left, sizeof left, "--%s %s", flag, what);
    fprintf(f, "  %-28s %s%s%s%s\n", left, help, *value ? " [" : "", value, *value ? "]" : "");
}

void options_help(FILE *f)
{
    fprintf(f, "train_cpu [train | eval | predict IMAGE... | bench] [--flag value ...]\n"
               "Without arguments it trains a small Vision Transformer on drawn shapes.\n"
               "A recipe holds the same settings as `key = value` lines; later settings win.\n");
    static const char *const kinds[] = {"TEXT", "N", "X", "", ""};
    for (int i = 0; i < COUNT(options); i++) {
        const Option *p = &options[i];
        if (p->type == O_group)
            fprintf(f, "\n%s\n", p->flag);
        else if (p->type == O_word)
            help_line(f, p->flag, p->allowed, p->value, p->help);
        else
            help_line(f, p->flag, kinds[p->type], p->value, p->help);
    }
    fprintf(f, "\nmodel (defaults are those of B/16)\n");
    for (int i = 0; i < COUNT(shorthands); i++)
        help_line(f, shorthands[i].flag, "", "", shorthands[i].help);
    Config c = vit_config_default();
    for (int i = 0; i < vit_config_count; i++) {
        const ConfigField *p = &vit_config_fields[i];
        char value[64];
        vit_config_get(&c, p, value, sizeof value);
        const char *what = p->type == T_INT    ? "N"
                           : p->type == T_WORD ? vit_words(p->name)
                           : p->type == T_BOOL ? ""
                                               : "X";
        help_line(f, p->flag, what, value, p->help);
    }
}

static void write_text(FILE *f, const char *value)
{
    size_t n = strlen(value);
    bool quote = n && (strpbrk(value, "#\"") || isspace((unsigned char)value[0]) ||
                       isspace((unsigned char)value[n - 1]));
    fprintf(f, quote ? "\"%s\"" : "%s", value);
}

static void write_option(FILE *f, const Options *o, const Option *p)
{
    const void *at = (const char *)o + p->offset;
    fprintf(f, "%s = ", p->flag);
    if (p->type == O_text) {
        write_text(f, *(const text *)at);
    } else if (p->type == O_long) {
        fprintf(f, "%ld", *(const long *)at);
    } else if (p->type == O_double) {
        char digits[40];
        for (int n = 6; n <= 17; n++) { /* the shortest text that reads back the same */
            snprintf(digits, sizeof digits, "%.*g", n, *(const double *)at);
            if (strtod(digits, NULL) == *(const double *)at)
                break;
        }
        fputs(digits, f);
    } else if (p->type == O_bool) {
        fputs(*(const bool *)at ? "true" : "false", f);
    } else {
        const char *s = p->allowed;
        for (int k = *(const word *)at; k > 0; k--)
            s += strcspn(s, "|") + 1;
        fprintf(f, "%.*s", (int)strcspn(s, "|"), s);
    }
    fputc('\n', f);
}

bool options_write(const Options *o, const Config *c, const char *path, Error *e)
{
    static const char *const places[] = {"recipe", "resume", "out"};
    FILE *f = fopen(path, "w");
    if (!f)
        return fail(e, "choose another --out", "cannot write %s: %s", path, strerror(errno));
    fprintf(f, "# repeat this run: ./train_cpu --recipe %s\n", path);
    for (int i = 0; i < COUNT(options); i++) {
        bool skip = false;
        for (int k = 0; k < COUNT(places); k++)
            skip |= strcmp(options[i].flag, places[k]) == 0;
        if (options[i].type == O_group)
            fprintf(f, "\n# %s\n", options[i].flag);
        else if (!skip)
            write_option(f, o, &options[i]);
    }
    fprintf(f, "\n# model\n");
    for (int i = 0; i < vit_config_count; i++) {
        char value[64];
        vit_config_get(c, &vit_config_fields[i], value, sizeof value);
        fprintf(f, "%s = %s\n", vit_config_fields[i].flag, value);
    }
    bool bad = ferror(f);
    if (fclose(f) != 0 || bad)
        return fail(e, "free some space", "cannot write %s: %s", path, strerror(errno));
    return true;
}
