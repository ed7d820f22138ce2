/* model.c - the model that a command of ./vit is given. See model.h. */
#include "tools/model.h"

#include "checkpoint.h"
#include "image/image.h"
#include "train/options.h"
#include "util/files.h"
#include "util/text.h"
#include "weights/open.h"

#include <stdlib.h>
#include <string.h>

/* A file, that of a folder, or of a run's best checkpoint. */
static char *find_file(const char *path, char **run)
{
    char dir[4096];
    *run = NULL;
    if (!path_exists(path))
        die("name a file of weights, a folder with one, or a run's directory", "%s: %s", path,
            path_trouble("no such file or directory"));
    if (!is_dir(path))
        return xstrdup(path);
    Error e, none;
    char *file = weights_in_folder(path, &none);
    if (file)
        return file;
    if (!ckpt_best(path, dir, sizeof dir, &e))
        die(none.hint, "%s", none.what);
    *run = xstrdup(path);
    return xasprintf("%s/model.safetensors", dir);
}

/* The run of a checkpoint's file: DIR of DIR/step_00000010/model.safetensors, where it has a
 * config.ini. NULL: it is none. */
static char *run_of(const char *file)
{
    char *slash = strrchr(file, '/'), *run = slash ? xstrdup(file) : NULL;
    if (run) {
        run[slash - file] = 0;
        slash = strrchr(run, '/');
        if (slash)
            *slash = 0;
    }
    char *ini = run && slash ? xasprintf("%s/config.ini", run) : NULL;
    if (!ini || !path_exists(ini)) {
        free(run);
        run = NULL;
    }
    free(ini);
    return run;
}

/* One name a line, as many as classes; else NULL. */
static char **read_classes(const char *run, int K)
{
    Error e;
    char *path = xasprintf("%s/classes.txt", run);
    char *lines = read_text(path, 16 << 20, &e), *rest = lines, *line;
    char **names = xcalloc((size_t)K + 1, sizeof *names);
    int n = 0;
    while (lines && (line = strsep(&rest, "\n")))
        if (*line && n++ < K)
            names[n - 1] = xstrdup(line);
    free(lines);
    free(path);
    if (n == K)
        return names;
    for (int k = 0; k < K; k++)
        free(names[k]);
    free(names);
    return NULL;
}

/* The run's settings come before the hub's, the hub's before the training program's. */
static void read_images(ToolModel *m)
{
    Error e;
    Options o;
    const Hub *h = &m->info.hub;
    options_init(&o);
    char *ini = m->run ? xasprintf("%s/config.ini", m->run) : NULL;
    bool run = ini && options_file(&o, ini, &e);
    m->crop = o.crop;
    m->interpolation = o.interpolation == FILTER_BICUBIC;
    m->crop_pct = o.crop_pct > 0 ? o.crop_pct : 0.875;
    if (!run && h->crop >= 0)
        m->crop = h->crop;
    if (!run && h->interpolation >= 0)
        m->interpolation = h->interpolation;
    if (!run && h->crop_pct > 0)
        m->crop_pct = h->crop_pct;
    free(ini);
    options_free(&o);
}

/* Settings given by hand: *c has them, *given[i] says which. Takes them out of argv. */
static void take_settings(int *argc, char **argv, Config *c, bool *given)
{
    int left = 1;
    for (int i = 1; i < *argc; i++) {
        Error e;
        char name[64] = "";
        const char *value = strchr(argv[i], '=');
        if (strncmp(argv[i], "--", 2) == 0)
            snprintf(name, sizeof name, "%.*s", (int)strcspn(argv[i] + 2, "="), argv[i] + 2);
        const ConfigField *f = *name ? vit_config_find(name) : NULL;
        if (!f) {
            argv[left++] = argv[i];
            continue;
        }
        if (!value && i + 1 == *argc)
            die_usage("--name value", "%s has no value", argv[i]);
        value = value ? value + 1 : argv[++i];
        if (!vit_config_set(c, name, value, &e))
            die_usage(e.hint, "%s", e.what);
        given[f - vit_config_fields] = true;
    }
    *argc = left;
}

/* What was given by hand is not assumed. */
static void use_settings(ToolModel *m, const Config *c, const bool *given)
{
    Error e;
    WeightsInfo *w = &m->info;
    int kept = 0;
    for (int i = 0; i < vit_config_count; i++) {
        char value[64];
        if (!given[i])
            continue;
        vit_config_get(c, &vit_config_fields[i], value, sizeof value);
        vit_config_set(&w->config, vit_config_fields[i].name, value, &e);
    }
    for (int i = 0; i < w->assumptions; i++)
        if (!given[vit_config_find(w->assumed[i].setting) - vit_config_fields])
            w->assumed[kept++] = w->assumed[i];
    w->assumptions = kept;
    Config whole = w->config;
    whole.classes = whole.classes ? whole.classes : 1;
    if (!vit_config_check(&whole, &e))
        die_usage(e.hint, "%s", e.what);
}

static const char *take_path(const Command *command, int *argc, char **argv)
{
    int at = 1;
    while (at < *argc && strncmp(argv[at], "--", 2) == 0)
        at++;
    if (at == *argc) {
        char *usage = xasprintf("./vit %s %s", command->name, command->usage);
        flags_none_left(command, *argc, argv);
        die_usage(usage, "%s: no file was given", command->name);
    }
    const char *path = argv[at];
    for (--*argc; at < *argc; at++)
        argv[at] = argv[at + 1];
    return path;
}

void tool_model_open(ToolModel *m, const Command *command, int *argc, char **argv)
{
    Error e;
    Config c = {0};
    bool *given = xcalloc((size_t)vit_config_count, sizeof *given);
    take_settings(argc, argv, &c, given);
    const char *path = take_path(command, argc, argv);
    *m = (ToolModel){0};
    m->file = find_file(path, &m->run);
    if (!m->run)
        m->run = run_of(m->file);
    m->f = weights_open(m->file, c.image_h, c.image_w, &m->info, &e);
    if (!m->f)
        die(e.hint, "%s", e.what);
    use_settings(m, &c, given);
    free(given);
    int K = m->info.config.classes;
    Names labels = {0};
    if (K && m->run)
        m->labels = read_classes(m->run, K);
    else if (K && hub_labels(m->file, K, &labels, NULL))
        m->labels = labels.at;
    read_images(m);
}

void tool_model_close(ToolModel *m)
{
    for (int k = 0; m->labels && k < m->info.config.classes; k++)
        free(m->labels[k]);
    free(m->labels);
    st_close(m->f);
    free(m->file);
    free(m->run);
}

void tool_model_say(const ToolModel *m)
{
    const WeightsInfo *w = &m->info;
    fprintf(stderr, "weights   %s\n", m->file);
    if (*w->form)
        fprintf(stderr, "          %s\n", w->form);
    if (st_meta(m->f, "weights"))
        fprintf(stderr, "          the %s of a run of ours\n",
                strcmp(st_meta(m->f, "weights"), "average") == 0 ? "averaged weights" : "weights");
    if (*w->notes)
        fprintf(stderr, "note: %s\n", w->notes);
    char text[1024] = "";
    for (int i = 0; i < w->assumptions; i++) {
        size_t at = strlen(text);
        snprintf(text + at, sizeof text - at, "%s%s", at ? ", " : "", w->assumed[i].text);
    }
    if (*text)
        warn("neither the file nor a config.json beside it says, and it is assumed: %s", text);
}

Export tool_model_export(const ToolModel *m)
{
    return (Export){.c = &m->info.config,
                    .f = m->f,
                    .labels = m->labels,
                    .crop_pct = m->crop_pct,
                    .crop = m->crop,
                    .interpolation = m->interpolation};
}
