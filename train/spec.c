/* spec.c - reads a file of named configurations. See spec.h. The lines are read as a recipe's are
 * (options.c); here is told apart what is a setting and what is said of a configuration. */
#include "train/spec.h"

#include "util/text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Keys that are no settings; where their values go. */
static const struct {
    const char *key;
    size_t at;
} words[] = {{"on", offsetof(Configuration, on)},
             {"source", offsetof(Configuration, source)},
             {"baseline", offsetof(Configuration, baseline)}};

/* Whether the line says something of c, which it then does. A wrong number fills e. */
static bool says(const Setting *line, Configuration *c, Error *e)
{
    for (int i = 0; i < COUNT(words); i++)
        if (same_name(line->name, words[i].key)) {
            *(const char **)((char *)c + words[i].at) = line->value;
            return true;
        }
    if (!same_name(line->name, "published"))
        return false;
    char *end;
    c->published = strtod(line->value, &end);
    if (end == line->value || *end || !(c->published > 0) || !isfinite(c->published))
        fail(e, "images/s of all devices together", "%spublished: '%s' is not a positive number",
             line->where, line->value);
    return true;
}

static Configuration *find(const Spec *s, const char *name)
{
    for (int i = 0; i < s->n; i++)
        if (strcmp(s->list[i].name, name) == 0)
            return &s->list[i];
    return NULL;
}

const Configuration *spec_find(const Spec *s, const char *name, Error *e)
{
    const Configuration *c = find(s, name);
    if (c)
        return c;
    const char **names = xcalloc((size_t)s->n + 1, sizeof *names);
    for (int i = 0; i < s->n; i++)
        names[i] = s->list[i].name;
    const char *near = nearest(name, names);
    char hint[160];
    snprintf(hint, sizeof hint, "did you mean %s?", near ? near : names[0]);
    fail(e, hint, "no configuration is called '%s'", name);
    free(names);
    return NULL;
}

/* A configuration for each section, in order; their lines may not come in two places. */
static bool collect(Spec *s, Error *e)
{
    const char *now = NULL;
    for (int i = 0; i < s->lines.n; i++) {
        const Setting *line = &s->lines.list[i];
        if (!line->section || (now && strcmp(line->section, now) == 0))
            continue;
        now = line->section;
        if (!*now || find(s, now))
            return fail(e, "give each configuration a name of its own", "%s[%s] %s", line->where,
                        now, *now ? "is there already" : "has no name");
        s->list = xgrow(s->list, s->n, sizeof *s->list);
        s->list[s->n++] = (Configuration){.name = now, .on = "", .source = "", .baseline = ""};
    }
    return true;
}

/* Of what holds for all, or for c. */
static bool is_of(const Setting *line, const Configuration *c)
{
    return !line->section || strcmp(line->section, c->name) == 0;
}

bool spec_apply(const Spec *s, const Configuration *c, Options *o, Error *e)
{
    Configuration said;
    for (int i = 0; i < s->lines.n; i++) {
        const Setting *line = &s->lines.list[i];
        if (is_of(line, c) && !says(line, &said, NULL) &&
            !options_set(o, line->name, line->value, line->where, e))
            return false;
    }
    return true;
}

static bool read_configuration(const Spec *s, Configuration *c, Error *e)
{
    Options o;
    for (int i = 0; i < s->lines.n; i++)
        if (is_of(&s->lines.list[i], c))
            says(&s->lines.list[i], c, e);
    if (*e->what)
        return false;
    options_init(&o);
    bool ok = spec_apply(s, c, &o, e);
    options_free(&o);
    if (ok && *c->baseline && !find(s, c->baseline))
        ok = fail(e, "name another configuration of the file", "[%s] baseline: there is no '%s'",
                  c->name, c->baseline);
    return ok;
}

bool spec_read(Spec *s, const char *path, Error *e)
{
    *s = (Spec){0};
    e->what[0] = e->hint[0] = 0;
    bool ok = settings_file(&s->lines, path, e) && collect(s, e);
    for (int i = 0; ok && i < s->n; i++)
        ok = read_configuration(s, &s->list[i], e);
    if (ok && !s->n)
        ok = fail(e, "a spec has [names], and `key = value` lines below them",
                  "%s has no configuration", path);
    if (!ok)
        spec_free(s);
    return ok;
}

void spec_free(Spec *s)
{
    settings_free(&s->lines);
    free(s->list);
    *s = (Spec){0};
}
