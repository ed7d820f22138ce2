/* options.c - parses flags and recipe files into Options, prints --help and config.ini.
 *
 * It knows nothing of what the flags mean: the tables are in options.h (the program's flags) and
 * vit.h (the model's settings). A setting is looked up in three places in turn: the shorthands that
 * stand for several settings, the program's flags, the model's settings.
 *
 * Read in this order: tables, one setting, recipe lines, command line, output.
 */
#include "util/files.h"
#include "util/text.h"
#include "train/options.h"

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
    const char *flag, *what, *help, *fields[3], *imagenet;
} shorthands[] = {
    {"image-size", "N|HxW", "image height and width in pixels", {"image_h", "image_w", NULL}, NULL},
    {"mean",
     "X|R,G,B|imagenet",
     "normalisation mean of pixels in 0..1",
     {"mean_r", "mean_g", "mean_b"},
     "0.485,0.456,0.406"},
    {"std",
     "X|R,G,B|imagenet",
     "normalisation standard deviation",
     {"std_r", "std_g", "std_b"},
     "0.229,0.224,0.225"},
};

static const Option *find_option(const char *flag)
{
    for (int i = 0; i < COUNT(options); i++)
        if (options[i].type != O_group && same_name(options[i].flag, flag))
            return &options[i];
    return NULL;
}

static const char *nearest_flag(const char *name)
{
    const char *all[COUNT(options) + COUNT(shorthands) + CONFIG_FIELDS + 2];
    char flag[64];
    int n = 0;
    snprintf(flag, sizeof flag, "%s", name);
    for (char *p = flag; *p; p++)
        if (*p == '_')
            *p = '-';
    for (int i = 0; i < COUNT(options); i++)
        if (options[i].type != O_group)
            all[n++] = options[i].flag;
    for (int i = 0; i < COUNT(shorthands); i++)
        all[n++] = shorthands[i].flag;
    for (int i = 0; i < CONFIG_FIELDS; i++)
        all[n++] = vit_config_fields[i].flag;
    all[n++] = "help";
    all[n] = NULL;
    return nearest(flag, all);
}

/* ---- one setting ---- */

static bool in_range(const char *allowed, double v)
{
    const char *dots = strstr(allowed, "..");
    if (!dots)
        return true;
    return (dots == allowed || v >= strtod(allowed, NULL)) &&
           (!dots[2] || v <= strtod(dots + 2, NULL));
}

/* Below, `name` is the setting as the user wrote it, for errors; `where` stands in front of it. */

static bool set_number(const Option *p, void *at, const char *name, const char *value,
                       const char *where, Error *e)
{
    char *end;
    errno = 0;
    bool whole = p->type == O_long;
    if (strstr(p->allowed, "|auto") && strcmp(value, "auto") == 0)
        value = "0"; /* a number that the program chooses */
    long n = whole ? strtol(value, &end, 10) : 0;
    double x = whole ? (double)n : strtod(value, &end);
    if (!*value || *end || isspace((unsigned char)*value) || (whole && errno) || !isfinite(x))
        return fail(e, p->help, "%s%s: '%s' is not a %snumber", where, name, value,
                    whole ? "whole " : "");
    if (!in_range(p->allowed, x))
        return fail(e, p->help, "%s%s: %s is outside %s", where, name, value, p->allowed);
    if (whole)
        *(long *)at = n;
    else
        *(double *)at = x;
    return true;
}

static bool set_option(Options *o, const Option *p, const char *name, const char *value,
                       const char *where, Error *e)
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
            return fail(e, "give true or false", "%s%s: '%s' is neither true nor false", where,
                        name, value);
        *(bool *)at = k;
        break;
    case O_word:
        if ((k = find_word(p->allowed, value)) < 0)
            return fail(e, "choose one of the words above", "%s%s: '%s' is none of %s", where, name,
                        value, p->allowed);
        *(word *)at = k;
        break;
    default:
        if (!set_number(p, at, name, value, where, e))
            return false;
    }
    *((bool *)o + p->given) = true;
    return true;
}

static bool set_field(Options *o, const char *name, const char *value, const char *where, Error *e)
{
    Error inner = {"", ""};
    if (!vit_config_set(&o->config, name, value, &inner))
        return fail(e, inner.hint, "%s%s", where, inner.what);
    o->has_config[vit_config_find(name) - vit_config_fields] = true;
    return true;
}

/* "224", "224x160", "0.5", "0.5,0.5,0.5", "imagenet": each part to its setting, one part to all. */
static bool set_shorthand(Options *o, int row, const char *name, const char *value,
                          const char *where, Error *e)
{
    char buffer[128], *part[3];
    int n = 0, want = shorthands[row].fields[2] ? 3 : 2;
    const char *separators = want == 3 ? "," : "xX,", *parts = value;
    if (shorthands[row].imagenet && strcmp(value, "imagenet") == 0)
        parts = shorthands[row].imagenet;
    snprintf(buffer, sizeof buffer, "%s", parts);
    char *rest = buffer, *p;
    while ((p = strsep(&rest, separators)) && n < 3)
        part[n++] = p;
    bool ok = !p && (n == 1 || n == want);
    for (int i = 0; ok && i < want; i++)
        ok = set_field(o, shorthands[row].fields[i], part[n == 1 ? 0 : i], "", NULL);
    char hint[128];
    snprintf(hint, sizeof hint, "give %s: %s", shorthands[row].what, shorthands[row].help);
    return ok || fail(e, hint, "%s%s: cannot read '%s'", where, name, value);
}

bool options_set(Options *o, const char *name, const char *value, const char *where, Error *e)
{
    for (int i = 0; i < COUNT(shorthands); i++)
        if (same_name(shorthands[i].flag, name))
            return set_shorthand(o, i, name, value, where, e);
    const Option *p = find_option(name);
    if (p) {
        if (!set_option(o, p, name, value, where, e))
            return false;
        /* epochs and steps say the same thing: the later one counts, and 0 says nothing */
        if (strcmp(p->flag, "epochs") == 0 && o->epochs > 0)
            o->steps = 0;
        if (strcmp(p->flag, "steps") == 0 && o->steps > 0)
            o->epochs = 0;
        /* later wins: a preset takes the place of the dimensions given before it */
        static const char *const preset[] = {"width", "layers", "heads", "mlp", "patch"};
        for (int i = 0; strcmp(p->flag, "model") == 0 && *o->model && i < COUNT(preset); i++)
            o->has_config[vit_config_find(preset[i]) - vit_config_fields] = false;
        return true;
    }
    if (vit_config_find(name))
        return set_field(o, name, value, where, e);
    const char *near = nearest_flag(name);
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
        if (!set_option(o, &options[i], options[i].flag, options[i].value, "default of --", &e))
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

/* `s` stands behind an opening quote: decodes it in place; what follows its end, NULL if none. */
static char *unquote(char *s)
{
    char *to = s;
    for (; *s && *s != '"'; s++) {
        bool escape = *s == '\\' && s[1] && strchr("\"\\n", s[1]);
        s += escape;
        *to++ = escape && *s == 'n' ? '\n' : *s;
    }
    char *rest = *s ? s + 1 : NULL;
    *to = 0;
    return rest;
}

/* The value of a line, without its quotes or its comment; NULL: its quotes do not match. */
static char *clean_value(char *s)
{
    s = trim(s);
    if (*s == '"') {
        char *rest = unquote(s + 1);
        rest = rest ? trim(rest) : NULL;
        return rest && (!*rest || *rest == '#') ? s + 1 : NULL;
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
    if (!value)
        return fail(e, "a value in quotes ends with one; write \\\" for a quote inside",
                    "%sthe quotes of %s do not match", where, key);
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
    Error why = {"", ""};
    char *lines = read_text(path, 1 << 20, &why);
    if (!lines)
        return fail(e, *why.hint ? why.hint : "a recipe is a text file of `key = value` lines",
                    "%s", why.what);
    bool ok = options_lines(o, lines, path, e);
    free(lines);
    return ok;
}

/* ---- command line ---- */

static bool is_switch(const char *name)
{
    const Option *p = find_option(name);
    const ConfigField *f = p ? NULL : vit_config_find(name);
    return p ? p->type == O_bool : f && f->type == T_BOOL;
}

static bool is_flag(const char *name)
{
    return find_option(name) || vit_config_find(name);
}

/* What --no-name sets. */
static const char *no_value(const char *name)
{
    const Option *p = find_option(name);
    return is_switch(name) ? "false" : p && p->type == O_text ? "" : "0";
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
        bool takes = next && find_bool(next) >= 0;
        value = takes ? argv[++*i] : "true";
    } else if ((strncmp(name, "no-", 3) == 0 || strncmp(name, "no_", 3) == 0) &&
               is_flag(name + 3)) {
        memmove(name, name + 3, strlen(name + 3) + 1);
        value = no_value(name);
    } else if (next) {
        value = argv[++*i];
    } else if (is_flag(name)) {
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
    const ConfigField *f = vit_config_find(field);
    return f && o->has_config[f - vit_config_fields];
}

void options_apply_config(const Options *o, Config *c)
{
    static const size_t size[] = {sizeof(int), sizeof(double), sizeof(bool), sizeof(word)};
    for (int i = 0; i < CONFIG_FIELDS; i++) {
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
    fprintf(f,
            "train_cpu, train_gpu [train | eval | predict IMAGE... | bench] [--flag value ...]\n"
            "Without arguments it trains a small Vision Transformer on drawn shapes.\n"
            "A recipe holds the same settings as `key = value` lines; later settings win.\n"
            "--no-FLAG turns a switch off, sets a number to 0 and empties a text.\n"
            "Without --model, --weights or --recipe the built-in recipe for small images applies: "
            "image-size 64,\n  patch-size 8, width 128, layers 4, heads 4, mlp 256, batch-size 64, "
            "epochs 16, area-min 0.7\n  (cifar and mnist: image-size 32, patch-size 4, area-min "
            "0.5); else the defaults in [brackets].\n");
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
        help_line(f, shorthands[i].flag, shorthands[i].what, "", shorthands[i].help);
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

static void write_value(FILE *f, const char *value)
{
    size_t n = strlen(value);
    bool quote = n && (strpbrk(value, "#\"\n") || isspace((unsigned char)value[0]) ||
                       isspace((unsigned char)value[n - 1]));
    if (!quote) {
        fputs(value, f);
        return;
    }
    fputc('"', f);
    for (; *value; value++) {
        if (strchr("\"\\\n", *value))
            fputc('\\', f);
        fputc(*value == '\n' ? 'n' : *value, f);
    }
    fputc('"', f);
}

static void write_option(FILE *f, const Options *o, const Option *p)
{
    const void *at = (const char *)o + p->offset;
    char value[64];
    fprintf(f, "%s = ", p->flag);
    if (p->type == O_text) {
        write_value(f, *(const text *)at);
        fputc('\n', f);
        return;
    }
    if (p->type == O_long)
        snprintf(value, sizeof value, "%ld", *(const long *)at);
    else if (p->type == O_double)
        double_text(*(const double *)at, value, sizeof value);
    else if (p->type == O_bool)
        snprintf(value, sizeof value, "%s", *(const bool *)at ? "true" : "false");
    else
        word_text(p->allowed, *(const word *)at, value, sizeof value);
    fprintf(f, "%s\n", value);
}

static void write_all(FILE *f, const Options *o, const Config *c, const char *path)
{
    static const char *const places[] = {"recipe", "resume", "out"};
    fprintf(f, "# repeat this run: %s --recipe ", PROGRAM);
    write_value(f, path);
    fputc('\n', f);
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
}

bool options_write(const Options *o, const Config *c, const char *path, Error *e)
{
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (f)
        write_all(f, o, c, path);
    if (!f || fclose(f) != 0)
        die("free some memory", "out of memory: cannot write %s", path);
    bool ok = save_text(path, text, e);
    free(text);
    return ok;
}
