/* options.c - parses flags and recipe files into Options, prints --help and config.ini.
 *
 * It knows nothing of what the flags mean: the tables are in options.h (the program's flags) and
 * config.h (the model's settings). First the command line and recipes become a list of names and
 * values; only when a list is applied are names looked up and values read.
 *
 * Read in this order: tables, a list of settings, recipe lines, the command line, applying a list,
 * output.
 */
#include "train/options.h"

#include "backend.h"
#include "datasets/source.h"
#include "train/synonyms.h"
#include "util/files.h"
#include "util/text.h"
#include "weights/open.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- tables ---- */

/* All rows, with their offsets in Options: the program's, then the model's. */
static const Field fields[] = {
#define GROUP(title) {.type = T_group, .name = title},
#define X(type, field, value, allowed, help) \
    {T_##type, #field, #field, value, allowed, help, offsetof(Options, field)},
    OPTIONS(GROUP, X)
#undef X
#define PARTS(flag, field, allowed, help) \
    {T_parts, flag, flag, "", allowed, help, offsetof(Options, config.field)},
#define X(type, field, flag, value, allowed, help) \
    {T_##type, #field, flag, value, allowed, help, offsetof(Options, config.field)},
        GROUP("model") PARTS("image-size", image_h, "N|HxW", "image height and width in pixels")
            PARTS("mean", mean_r, "X|R,G,B|imagenet", "normalisation mean of pixels in 0..1")
                PARTS("std", std_r, "X|R,G,B|imagenet", "normalisation standard deviation")
                    VIT_CONFIG(X)
#undef X
#undef PARTS
#undef GROUP
};

static const Field *find(const char *name)
{
    return field_find(fields, COUNT(fields), name);
}

/* A flag's name is a field's with dashes. */
static const char *dashes(const char *name, char out[64])
{
    snprintf(out, 64, "%s", name);
    for (char *p = out; *p; p++)
        if (*p == '_')
            *p = '-';
    return out;
}

/* What a name that is no setting may have meant, or NULL. */
static const char *nearest_flag(const char *name)
{
    static char flags[COUNT(fields)][64];
    const char *all[COUNT(fields) + 2];
    char wanted[64];
    int n = 0;
    for (int i = 0; i < COUNT(fields); i++)
        if (fields[i].type != T_group)
            all[n++] = dashes(fields[i].flag, flags[i]);
    all[n++] = "help";
    all[n] = NULL;
    return nearest(dashes(name, wanted), all);
}

/* ---- a list of settings ---- */

/* The user's text as it is, whatever it may mean: it is looked up when the list is applied. */
static void add(Settings *s, const char *name, const char *value, const char *where,
                const char *section)
{
    s->list = xrealloc(s->list, (size_t)(s->n + 1) * sizeof *s->list);
    s->list[s->n++] =
        (Setting){xstrdup(name), xstrdup(value), xstrdup(where), section ? xstrdup(section) : NULL};
}

void settings_free(Settings *s)
{
    for (int i = 0; i < s->n; i++) {
        free(s->list[i].name);
        free(s->list[i].value);
        free(s->list[i].where);
        free(s->list[i].section);
    }
    free(s->list);
    *s = (Settings){0};
}

const char *settings_last(const Settings *s, const char *name)
{
    for (int i = s->n - 1; i >= 0; i--)
        if (same_name(s->list[i].name, name))
            return s->list[i].value;
    return NULL;
}

/* ---- recipe lines ---- */

/* Shells leave the ~ of --data=~/pictures and of cifar10:~/data as it is, and so do recipes: the
 * home directory, where a text begins or goes on behind a colon; free() it. */
static char *at_home(const char *value)
{
    const char *home = getenv("HOME"), *tilde = value;
    while ((tilde = strstr(tilde, "~/")) && tilde != value && tilde[-1] != ':')
        tilde++;
    if (!tilde || !home || !*home)
        return xstrdup(value);
    return xasprintf("%.*s%s%s", (int)(tilde - value), value, home, tilde + 1);
}

/* In place: without blanks at either end. */
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

/* One line, which is cut up. `where` is its "file:12: "; a section's name is *section until the
 * next. */
static bool read_line(Settings *s, char *line, const char *where, const char **section, Error *e)
{
    line = trim(line);
    if (*line == '[') {
        line[strcspn(line, "]")] = 0;
        *section = trim(line + 1);
        return true;
    }
    if (!*line || *line == '#')
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
    char *home = at_home(value);
    add(s, key, home, where, *section);
    free(home);
    return true;
}

static bool read_lines(Settings *s, const char *lines, const char *where, Error *e)
{
    char *copy = xstrdup(lines), *rest = copy, *line;
    const char *section = NULL;
    bool ok = true;
    for (int n = 1; ok && (line = strsep(&rest, "\n")); n++) {
        char *at = xasprintf("%s:%d: ", where, n);
        ok = read_line(s, line, at, &section, e);
        free(at);
    }
    free(copy);
    return ok;
}

bool settings_file(Settings *s, const char *path, Error *e)
{
    Error why = {"", ""};
    char *lines = read_text(path, 1 << 20, &why);
    char *ini = xasprintf("%s/config.ini", path);
    if (!lines && path_exists(ini))
        snprintf(why.hint, sizeof why.hint, "a run's recipe is --recipe %.100s", ini);
    free(ini);
    if (!lines)
        return fail(e, *why.hint ? why.hint : "a recipe is a text file of `key = value` lines",
                    "%s", why.what);
    bool marked = strncmp(lines, "\xef\xbb\xbf", 3) == 0; /* as Windows' editors do */
    bool ok = read_lines(s, lines + (marked ? 3 : 0), path, e);
    free(lines);
    return ok;
}

/* ---- the command line ---- */

/* What --no-name sets. */
static const char *no_value(const Field *f)
{
    if (f->type == T_bool)
        return "false";
    return f->type == T_text ? "" : "0";
}

/* Whether the word is a number and no file. */
static bool is_number(const char *word)
{
    char *end;
    strtod(word, &end);
    return *word && !*end && !path_exists(word);
}

/* argparse's way of giving a list: --mean 0.5 0.5 0.5. Joins what follows argv[*i] to it, as far as
 * these are numbers; free() it. */
static char *join_numbers(int argc, char **argv, int *i)
{
    char *joined = xstrdup(argv[*i]);
    for (int n = 1; n < 4 && is_number(argv[*i]) && *i + 1 < argc && is_number(argv[*i + 1]); n++) {
        char *longer = xasprintf("%s,%s", joined, argv[++*i]);
        free(joined);
        joined = longer;
    }
    return joined;
}

/* Settings that name places: a recipe that repeats a run does so from any directory. On the command
 * line an empty one is a mistake: --resume "$RUN" would begin a run, where the shell knows no RUN.
 */
static bool names_place(const Field *p)
{
    static const char *const places[] = {"data",          "val_data", "classes",       "index_dir",
                                         "val_index_dir", "weights",  "class_weights", "resume",
                                         "recipe",        "out"};
    for (int i = 0; i < COUNT(places); i++)
        if (strcmp(p->name, places[i]) == 0)
            return true;
    return false;
}

/* No value looks like one: text that begins so is --FLAG=--text. */
static bool is_flag(const char *word)
{
    return strncmp(word, "--", 2) == 0 && isalpha((unsigned char)word[2]);
}

/* One flag at argv[*i]; moves *i past its value. A switch takes the next word only where that is
 * true or false. What is no flag takes one too, and is refused when it is applied. */
static bool read_flag(Settings *s, int argc, char **argv, int *i, Error *e)
{
    char name[64];
    const char *flag = argv[*i] + 2, *equals = strchr(flag, '='), *value = "";
    size_t len = equals ? (size_t)(equals - flag) : strlen(flag);
    snprintf(name, sizeof name, "%.*s", (int)(len < sizeof name ? len : sizeof name - 1), flag);
    const char *next = *i + 1 < argc && !is_flag(argv[*i + 1]) ? argv[*i + 1] : NULL;
    bool no = strncmp(name, "no-", 3) == 0 || strncmp(name, "no_", 3) == 0;
    const Field *f = find(name), *off = no ? find(name + 3) : NULL;
    if (equals && off) {
        char hint[160];
        snprintf(hint, sizeof hint, "--no-%s alone, or --%s=VALUE", name + 3, name + 3);
        return fail(e, hint, "--%s takes no value", name);
    } else if (equals) {
        value = equals + 1;
    } else if (f && f->type == T_bool) {
        bool takes = next && find_bool(next) >= 0;
        value = takes ? argv[++*i] : "true";
    } else if (off && off->type != T_parts) {
        memmove(name, name + 3, strlen(name + 3) + 1);
        value = no_value(off);
    } else if (next) {
        value = argv[++*i];
    } else if (f) {
        return fail(e, f->help, "--%s needs a value", name);
    }
    if (f && !*value && (equals || value == next) &&
        (names_place(f) || strcmp(f->name, "model") == 0)) {
        char hint[160];
        snprintf(hint, sizeof hint, "is a variable of the shell empty? --no-%s says none", name);
        return fail(e, hint, "--%s: its value is empty", name);
    }
    bool list = f && f->type == T_parts && value == next;
    char *whole = list ? join_numbers(argc, argv, i) : at_home(value);
    add(s, name, whole, "--", NULL);
    bool ok = strcmp(name, "recipe") != 0 || settings_file(s, whole, e);
    free(whole);
    return ok;
}

static const char *const commands[] = {"train", "eval", "predict", "bench", NULL};

/* What a file or folder may be meant for that stands where a command or a flag does. */
static void meant_path(const char *path, char *hint, size_t size)
{
    char *latest = xasprintf("%s/latest", path);
    const char *dot = strrchr(path, '.');
    if (path_exists(latest))
        snprintf(hint, size, "of a run: eval %s, or --resume %s", path, path);
    else if (is_dir(path))
        snprintf(hint, size, "images are --data %s, weights --weights %s", path, path);
    else if (weights_ending(path))
        snprintf(hint, size, "weights are --weights %s, as in eval --weights FILE --data DIR",
                 path);
    else if (dot && strcmp(dot, ".ini") == 0)
        snprintf(hint, size, "a recipe is --recipe %s", path);
    else if (dot && image_extension(dot + 1))
        snprintf(hint, size, "of a picture: predict RUN %s", path);
    free(latest);
}

static bool read_command(Options *o, const char *word, Error *e)
{
    for (int k = 0; commands[k]; k++)
        if (strcmp(word, commands[k]) == 0) {
            o->command = commands[k];
            return true;
        }
    const char *near = nearest(word, commands);
    char hint[sizeof e->hint] = "train, eval, predict or bench; --help, --version";
    if (path_exists(word))
        meant_path(word, hint, sizeof hint);
    else if (find_word("info|import|export|index|plan|shard|show|top|report", word) >= 0)
        snprintf(hint, sizeof hint, "of the tools: ./vit %s", word);
    else if (near)
        snprintf(hint, sizeof hint, "did you mean %s?", near);
    return fail(e, hint, "no command is called '%s'", word);
}

/* "-b" and the like. */
static bool one_dash(const char *arg, Error *e)
{
    const char *theirs = flag_synonym(arg + 1);
    char hint[160] = "flags begin with --, as in --data DIR; a file of that name is ./-...";
    if (theirs)
        snprintf(hint, sizeof hint, "flags begin with --; here it is %s", theirs);
    return fail(e, hint, "'%s' is no flag", arg);
}

/* `eval RUN` and `predict RUN IMAGE...` name the weights first: a folder, or a file with an ending
 * that no image has. */
static void take_weights(Options *o, Settings *asked)
{
    bool eval = strcmp(o->command, "eval") == 0, predict = strcmp(o->command, "predict") == 0;
    bool named = settings_last(asked, "weights") || settings_last(asked, "resume");
    if (named || !(eval || predict) || !o->n_files)
        return;
    const char *first = o->files[0];
    if (predict && !weights_ending(first) && !is_dir(first))
        return;
    add(asked, "weights", first, "--", NULL);
    o->n_files--;
    memmove(o->files, o->files + 1, (size_t)o->n_files * sizeof *o->files);
}

/* With what it may be called here. */
static bool no_such(const char *name, const char *where, Error *e)
{
    const char *theirs = flag_synonym(name), *near = theirs ? theirs : nearest_flag(name);
    bool dashed = strcmp(where, "--") == 0 && !theirs;
    char hint[200] = "--help all lists all settings";
    if (near)
        snprintf(hint, sizeof hint,
                 theirs ? "here it is %s%s; --help all lists all settings"
                        : "did you mean %s%s? --help all lists all settings",
                 dashed ? where : "", near);
    return fail(e, hint, "%s%s: no such setting", where, name);
}

bool options_args(Options *o, Settings *asked, int argc, char **argv, Error *e)
{
    int i = 1;
    if (argc > 1 && argv[1][0] != '-' && !read_command(o, argv[i++], e))
        return false;
    o->files = xcalloc((size_t)argc + 1, sizeof *o->files);
    for (; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            o->help_all = i + 1 < argc && strcmp(argv[i + 1], "all") == 0;
            i += o->help_all;
            o->help = true;
        } else if (strcmp(argv[i], "--version") == 0) {
            o->version = true;
        } else if (argv[i][0] == '-' && argv[i][1] && argv[i][1] != '-') {
            return one_dash(argv[i], e);
        } else if (strcmp(argv[i], "--") == 0) { /* what follows is no flag */
            while (++i < argc)
                o->files[o->n_files++] = argv[i];
        } else if (strncmp(argv[i], "--", 2) != 0) {
            o->files[o->n_files++] = argv[i];
        } else if (!read_flag(asked, argc, argv, &i, e)) {
            return false;
        }
    }
    take_weights(o, asked);
    char hint[sizeof e->hint] = "flags begin with --, as in --data DIR";
    if (o->n_files && path_exists(o->files[0]))
        meant_path(o->files[0], hint, sizeof hint);
    for (int k = 0; o->n_files && k < asked->n; k++) /* --input-size 3 224 224 */
        if (!find(asked->list[k].name))
            return no_such(asked->list[k].name, asked->list[k].where, e);
    if (o->n_files && strcmp(o->command, "predict") != 0)
        return fail(e, hint, "'%s' is no flag", o->files[0]);
    return true;
}

/* ---- applying a list ---- */

/* Below, `name` is the setting as the user wrote it, for errors; `where` stands in front of it. The
 * model's ranges are checked once all its settings are known (vit_config_check). */
static bool set(Options *o, const Field *f, const char *name, const char *value, const char *where,
                Error *e)
{
    bool model = f >= fields + MODEL_ROW;
    bool ok = field_set(f, o, value, where, name, model ? NULL : f->help, e);
    const char *ours = ok || !e || f->type != T_word ? NULL : value_synonym(value, f->allowed);
    if (ours) {
        char hint[64];
        snprintf(hint, sizeof hint, "here it is %s", ours);
        return fail(e, hint, "%s", e->what);
    }
    if (!ok)
        return false;
    if (!model && !field_in_range(f, o))
        return fail(e, f->help, "%s%s: %s is outside %s", where, name, value, f->allowed);
    o->given[f - fields] = true;
    o->asked[f - fields] |= strcmp(where, "--") == 0;
    return true;
}

/* "224", "224x160", "0.5", "0.5,0.5,0.5", "imagenet" (the default): each part to its setting, one
 * part to all. */
static bool set_parts(Options *o, const Field *f, const char *name, const char *value,
                      const char *where, Error *e)
{
    char buffer[128], hint[128], *part[3], *rest = buffer, *p;
    bool size = strcmp(f->flag, "image-size") == 0;
    bool usual = !size && strcmp(value, "imagenet") == 0;
    int n = 0, want = size ? 2 : 3;
    const Field *to = fields + MODEL_ROW;
    while (to->offset != f->offset)
        to++;
    snprintf(buffer, sizeof buffer, "%s", value);
    while ((p = strsep(&rest, size ? "xX," : ",")) && n < 3)
        part[n++] = p;
    bool ok = !p && (n == 1 || n == want);
    for (int i = 0; ok && i < want; i++)
        ok = set(o, &to[i], "", usual ? to[i].value : part[n == 1 ? 0 : i], "", NULL);
    snprintf(hint, sizeof hint, "give %s: %s", f->allowed, f->help);
    return ok || fail(e, hint, "%s%s: cannot read '%s'", where, name, value);
}

/* What a setting says of others: later wins. */
static void replace_others(Options *o, const Field *f)
{
    static const char *const preset[] = {"width", "layers", "heads", "mlp", "patch"};
    /* epochs and steps say the same thing; 0 says nothing */
    if (strcmp(f->name, "epochs") == 0 && o->epochs > 0)
        o->steps = 0;
    if (strcmp(f->name, "steps") == 0 && o->steps > 0)
        o->epochs = 0;
    /* both say where the validation images are */
    if (strcmp(f->name, "val_data") == 0 && *o->val_data)
        o->val_fraction = 0;
    if (strcmp(f->name, "val_fraction") == 0 && o->val_fraction > 0)
        set(o, find("val_data"), "", "", "", NULL);
    /* the default of weight_decay is of a decoupled one: 0.05 of a weight through the gradient
     * wears pretrained weights away within some hundred steps */
    const Field *decay = find("weight_decay");
    bool decoupled = o->opt == OPT_ADAMW || o->opt == OPT_LAMB;
    if (strcmp(f->name, "opt") == 0 && !o->given[decay - fields])
        o->weight_decay = decoupled ? strtod(decay->value, NULL) : 0;
    /* a preset takes the place of the dimensions given before it */
    for (int i = 0; strcmp(f->name, "model") == 0 && *o->model && i < COUNT(preset); i++)
        o->given[find(preset[i]) - fields] = false;
}

bool options_set(Options *o, const char *name, const char *value, const char *where, Error *e)
{
    const Field *f = find(name);
    if (f && f->type == T_parts)
        return set_parts(o, f, name, value, where, e);
    if (f) {
        bool ok = set(o, f, name, value, where, e);
        if (ok)
            replace_others(o, f);
        return ok;
    }
    return no_such(name, where, e);
}

bool options_apply(Options *o, Settings *s, Error *e)
{
    bool ok = true;
    for (int i = 0; i < s->n; i++) {
        Setting *x = &s->list[i];
        ok = ok && options_set(o, x->name, x->value, x->where, e);
    }
    settings_free(s);
    return ok;
}

bool options_lines(Options *o, const char *lines, const char *where, Error *e)
{
    Settings s = {0};
    bool ok = read_lines(&s, lines, where, e);
    return options_apply(o, &s, ok ? e : NULL) && ok;
}

bool options_file(Options *o, const char *path, Error *e)
{
    Settings s = {0};
    bool ok = settings_file(&s, path, e);
    return options_apply(o, &s, ok ? e : NULL) && ok;
}

/* Defaults count as not given. */
void options_init(Options *o)
{
    *o = (Options){.command = "train"};
    fields_default(fields, COUNT(fields), o);
}

void options_free(Options *o)
{
    for (int i = 0; i < COUNT(fields); i++)
        if (fields[i].type == T_text)
            free((char *)*(text *)((char *)o + fields[i].offset));
    free(o->files);
    *o = (Options){0};
}

bool options_given(const Options *o, const char *flag)
{
    return o->given[find(flag) - fields];
}

bool options_asked(const Options *o, const char *flag)
{
    return o->asked[find(flag) - fields];
}

bool options_off(const Options *o, const char *flag)
{
    const Field *f = find(flag);
    return f->type == T_bool && !*(const bool *)((const char *)o + f->offset);
}

bool options_config_given(const Options *o, const char *field)
{
    const ConfigField *f = vit_config_find(field);
    return f && o->given[MODEL_ROW + (f - vit_config_fields)];
}

void options_apply_config(const Options *o, Config *c)
{
    char value[64]; /* reads back the same */
    for (const ConfigField *f = vit_config_fields; f < vit_config_fields + vit_config_count; f++)
        if (options_config_given(o, f->name)) {
            field_text(f, &o->config, value, sizeof value);
            field_set(f, c, value, "", f->name, NULL, NULL);
        }
}

/* ---- output ---- */

/* "  --lr X                       peak learning rate [0.001]" */
static void help_field(FILE *f, const Field *p)
{
    static const char *const takes[] = {
        [T_text] = "TEXT", [T_int] = "N", [T_long] = "N", [T_double] = "X", [T_bool] = ""};
    bool says = p->type == T_word || p->type == T_parts;
    char flag[64], left[128];
    snprintf(left, sizeof left, "--%s %s", dashes(p->flag, flag),
             says ? field_words(p) : takes[p->type]);
    fprintf(f, "  %-28s %s%s%s%s%s\n", left,
            strlen(left) > 28 ? "\n                               " : "", p->help,
            *p->value ? " [" : "", p->value, *p->value ? "]" : "");
}

void options_help_row(FILE *f, const char *flag)
{
    help_field(f, find(flag));
}

void options_help(FILE *f)
{
    fprintf(f,
            "A recipe holds the same settings as `key = value` lines; later settings win.\n"
            "--no-FLAG turns a switch off, sets a number to 0 and empties a text.\n"
            "Without --model, --weights or --recipe the built-in recipe for small images applies: "
            "image-size 64,\n  patch-size 8, width 128, layers 4, heads 4, mlp 256, batch-size 64, "
            "epochs 16, area-min 0.7\n  (cifar and mnist: image-size 32, patch-size 4, area-min "
            "0.5). With --weights it is that for\n  fine-tuning: opt sgd, lr 0.01, batch-size 32, "
            "epochs 6. Else the defaults in [brackets] apply.\n");
    for (const Field *p = fields; p < fields + COUNT(fields); p++)
        if (p->type == T_group)
            fprintf(f, "\n%s%s\n", p->name,
                    strcmp(p->name, "model") == 0 ? " (defaults are those of B/16)" : "");
        else
            help_field(f, p);
}

/* A text, in quotes where clean_value would not give it back without. */
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

/* Where the path begins in what --data takes: behind wds: and the like; NULL: there is none. */
static const char *path_of(const char *value)
{
    static const char *const kinds[] = {"wds:", "cifar10:", "cifar100:", "mnist:", "shapes:"};
    static const char *const nowhere[] = {"", "none", "fake"};
    for (int i = 0; i < COUNT(nowhere); i++)
        if (strcmp(value, nowhere[i]) == 0)
            return NULL;
    for (int i = 0; i < COUNT(kinds); i++)
        if (strncmp(value, kinds[i], strlen(kinds[i])) == 0)
            return value + strlen(kinds[i]);
    return strncmp(value, "fake:", 5) == 0 ? NULL : value;
}

/* The same places as absolute paths, those of shards one by one (A::B); free() it. */
static char *absolute(const char *value)
{
    char here[4096], *out = NULL, *part;
    value = strcmp(value, "shapes") == 0 ? "shapes:data" : value; /* where they are drawn */
    const char *path = path_of(value);
    if (!path || !getcwd(here, sizeof here))
        return xstrdup(value);
    char *copy = xstrdup(path), *rest = copy;
    out = xasprintf("%.*s", (int)(path - value), value);
    while (rest) {
        part = rest;
        rest = strstr(part, "::");
        if (rest) {
            *rest = 0;
            rest += 2;
        }
        while (strncmp(part, "./", 2) == 0)
            part += 2;
        bool whole = *part == '/' || !*part;
        char *more = xasprintf("%s%s%s%s%s", out, whole ? "" : here, whole ? "" : "/", part,
                               rest ? "::" : "");
        free(out);
        out = more;
    }
    free(copy);
    return out;
}

/* "lr = 0.001": a number in as many digits as give it back. */
static void write_field(FILE *f, const Options *o, const Field *p)
{
    char flag[64], number[64];
    fprintf(f, "%s = ", dashes(p->flag, flag));
    if (p->type == T_text) {
        const char *value = *(const text *)((const char *)o + p->offset);
        bool named = names_place(p) && strcmp(value, "balanced") != 0;
        char *place = named ? absolute(value) : xstrdup(value);
        write_value(f, place);
        free(place);
    } else {
        field_text(p, o, number, sizeof number);
        fputs(number, f);
    }
    fputc('\n', f);
}

static void write_all(FILE *f, const Options *o, const char *path)
{
    static const char *const places[] = {"recipe", "resume", "out"};
    fprintf(f, "# repeat this run: %s --recipe ", PROGRAM);
    write_value(f, path);
    fputc('\n', f);
    for (const Field *p = fields; p < fields + COUNT(fields); p++) {
        bool skip = p->type == T_parts;
        for (int k = 0; k < COUNT(places); k++)
            skip |= strcmp(p->name, places[k]) == 0;
        if (p->type == T_group)
            fprintf(f, "\n# %s\n", p->name);
        else if (!skip)
            write_field(f, o, p);
    }
}

char *options_text(const Options *o, const Config *c, const char *path)
{
    char *written = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&written, &size);
    Options all = *o;
    all.config = *c;
    if (f)
        write_all(f, &all, path);
    if (!f || fclose(f) != 0)
        die("free some memory", "out of memory: cannot write %s", path);
    return written;
}

/* Written to memory first, so that the file appears whole or not at all. */
bool options_write(const Options *o, const Config *c, const char *path, Error *e)
{
    char *written = options_text(o, c, path);
    bool ok = save_text(path, written, e);
    free(written);
    return ok;
}

/* The next line of *at with its value behind " = ", or NULL; both texts have the same keys in the
 * same order. */
static char *next_setting(char **at, char **value)
{
    char *line;
    while ((line = strsep(at, "\n")))
        if (*line && *line != '#' && (*value = strstr(line, " = "))) {
            **value = 0;
            *value += 3;
            return line;
        }
    return NULL;
}

char *options_changes(const char *before, const char *after)
{
    char *a = xstrdup(before), *b = xstrdup(after), *at = a, *to = b, *was, *is, *key;
    char *changes = xstrdup("");
    while (next_setting(&at, &was) && (key = next_setting(&to, &is))) {
        if (strcmp(was, is) == 0)
            continue;
        char *more = xasprintf("%schanged   %s %s -> %s\n", changes, key, *was ? was : "(none)",
                               *is ? is : "(none)");
        free(changes);
        changes = more;
    }
    free(a);
    free(b);
    return changes;
}
