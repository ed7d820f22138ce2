/* info.c - ./vit info: what a file of weights, a hub's folder or a run is.
 *
 * One description is made, as JSON; without --json its parts are printed as lines.
 *
 * Read in this order: the parts, tensors, the training state, lines, the command.
 */
#include "checkpoint.h"
#include "tools/model.h"
#include "tools/tools.h"
#include "util/report.h"
#include "util/text.h"
#include "weights/names.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

static struct {
    bool json, tensors;
} o;

/* ---- the parts ---- */

static cJSON *config_json(const Config *c)
{
    cJSON *json = cJSON_CreateObject();
    for (int i = 0; i < vit_config_count; i++) {
        const ConfigField *f = &vit_config_fields[i];
        char value[64];
        vit_config_get(c, f, value, sizeof value);
        if (f->type == T_word)
            cJSON_AddStringToObject(json, f->name, value);
        else if (f->type == T_bool)
            cJSON_AddBoolToObject(json, f->name, strcmp(value, "true") == 0);
        else
            cJSON_AddNumberToObject(json, f->name, atof(value));
    }
    return json;
}

static cJSON *assumed_json(const WeightsInfo *w)
{
    cJSON *json = cJSON_CreateObject();
    for (int i = 0; i < w->assumptions; i++)
        cJSON_AddStringToObject(json, w->assumed[i].setting, w->assumed[i].text);
    return json;
}

static cJSON *images_json(const ToolModel *m)
{
    static const char *const crops[] = {"center", "stretch", "squash"};
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "crop", crops[m->crop]);
    cJSON_AddNumberToObject(json, "crop_pct", m->crop_pct);
    cJSON_AddStringToObject(json, "interpolation", m->interpolation ? "bicubic" : "bilinear");
    return json;
}

/* ---- tensors ---- */

static cJSON *tensors_json(const SafeTensors *f, double *parameters)
{
    cJSON *json = cJSON_CreateArray();
    *parameters = 0;
    for (int i = 0; i < f->count; i++) {
        const StTensor *t = &f->tensor[i];
        cJSON *one = cJSON_CreateObject(), *shape;
        cJSON_AddStringToObject(one, "name", t->name);
        cJSON_AddStringToObject(one, "type", t->dtype);
        shape = cJSON_AddArrayToObject(one, "shape");
        for (int d = 0; d < t->ndim; d++)
            cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)t->shape[d]));
        cJSON_AddItemToArray(json, one);
        *parameters += (double)t->n;
    }
    return json;
}

/* ---- the training state ---- */

/* Of the checkpoint that the weights are of; NULL: there is none. */
static cJSON *state_json(const ToolModel *m)
{
    Error e;
    const char *slash = strrchr(m->file, '/');
    char *path =
        xasprintf("%.*s/train_state.safetensors", slash ? (int)(slash - m->file) : 0, m->file);
    SafeTensors *f = m->run ? st_open(path, &e) : NULL;
    free(path);
    if (!f)
        return NULL;
    cJSON *json = cJSON_CreateObject();
    for (int i = 0; i < f->metas; i++) {
        const char *key = f->meta[i].key, *text = f->meta[i].value;
        char *end;
        double number = strtod(text, &end);
        if (strcmp(key, "format") == 0)
            continue;
        if (*text && !*end)
            cJSON_AddNumberToObject(json, key, number);
        else
            cJSON_AddStringToObject(json, key, text);
    }
    st_close(f);
    return json;
}

static cJSON *describe(const ToolModel *m)
{
    double parameters;
    const WeightsInfo *w = &m->info;
    const char *averaged = st_meta(m->f, "weights");
    cJSON *json = cJSON_CreateObject(), *tensors = tensors_json(m->f, &parameters);
    cJSON_AddStringToObject(json, "file", m->file);
    if (m->run)
        cJSON_AddStringToObject(json, "run", m->run);
    cJSON_AddStringToObject(json, "form", *w->form ? w->form : "vit.c's own");
    cJSON_AddBoolToObject(json, "averaged", averaged && strcmp(averaged, "average") == 0);
    cJSON_AddNumberToObject(json, "parameters", parameters);
    cJSON_AddNumberToObject(json, "flops_per_image", vit_forward_flops(&w->config));
    cJSON_AddItemToObject(json, "config", config_json(&w->config));
    cJSON_AddItemToObject(json, "images", images_json(m));
    cJSON_AddItemToObject(json, "assumed", assumed_json(w));
    cJSON_AddStringToObject(json, "notes", w->notes);
    if (m->labels)
        cJSON_AddItemToObject(
            json, "labels",
            cJSON_CreateStringArray((const char *const *)m->labels, w->config.classes));
    cJSON *state = state_json(m);
    if (state)
        cJSON_AddItemToObject(json, "training", state);
    cJSON_AddItemToObject(json, "tensors", tensors);
    return json;
}

/* ---- lines ---- */

static void print_object(const char *title, const cJSON *object)
{
    const cJSON *item;
    size_t column = 0;
    if (!object || !object->child)
        return;
    cJSON_ArrayForEach(item, object)
    {
        char *text = cJSON_PrintUnformatted(item), *value = text;
        size_t n = strlen(text);
        if (*text == '"') { /* names need no quotes */
            text[n - 1] = 0;
            value++;
        }
        bool line = column == 0 || column + strlen(item->string) + n > 76;
        column = line ? 0 : column;
        if (line)
            printf("%s%-9s ", item == object->child ? "" : "\n",
                   item == object->child ? title : "");
        column += (size_t)printf("%s%s %s", line ? "" : ", ", item->string, value);
        cJSON_free(text);
    }
    printf("\n");
}

static void print_tensors(const SafeTensors *f)
{
    for (int i = 0; i < f->count; i++)
        printf("  %-32s %-4s %s\n", f->tensor[i].name, f->tensor[i].dtype,
               names_shape(f->tensor[i].ndim, f->tensor[i].shape).s);
}

static void print_lines(const ToolModel *m, const cJSON *json)
{
    const WeightsInfo *w = &m->info;
    char parameters[32], flops[32];
    format_count(cJSON_GetObjectItem(json, "parameters")->valuedouble, parameters,
                 sizeof parameters);
    format_count(vit_forward_flops(&w->config), flops, sizeof flops);
    printf("weights   %s\n", m->file);
    printf("form      %s%s\n", *w->form ? w->form : "ours",
           cJSON_IsTrue(cJSON_GetObjectItem(json, "averaged")) ? ": averaged weights, those that "
                                                                 "were evaluated"
                                                               : "");
    printf("size      %s, %s parameters, %sFLOP per image\n", amount(m->f->count, "tensor").s,
           parameters, flops);
    print_object("model", cJSON_GetObjectItem(json, "config"));
    print_object("images", cJSON_GetObjectItem(json, "images"));
    for (int i = 0; i < w->assumptions; i++)
        printf("%-9s %s\n", i ? "" : "assumed", w->assumed[i].text);
    if (*w->notes)
        printf("note      %s\n", w->notes);
    if (m->labels) {
        int K = w->config.classes;
        printf("classes   %s", m->labels[0] ? m->labels[0] : "?");
        for (int k = 1; k < K && k < 4; k++)
            printf(", %s", m->labels[k] ? m->labels[k] : "?");
        printf(K > 4 ? ", ... (%d)\n" : "\n", K);
    }
    print_object("training", cJSON_GetObjectItem(json, "training"));
    if (o.tensors)
        print_tensors(m->f);
}

/* ---- the command ---- */

static int run_info(const Command *c, int argc, char **argv)
{
    ToolModel m;
    flags_take(c, &argc, argv);
    tool_model_open(&m, c, &argc, argv);
    flags_none_left(c, argc, argv);
    flags_note(!o.json, "tensors", "with --json, which has them");
    cJSON *json = describe(&m);
    char *text = o.json ? cJSON_Print(json) : NULL;
    if (text)
        printf("%s\n", text);
    else
        print_lines(&m, json);
    cJSON_free(text);
    cJSON_Delete(json);
    tool_model_close(&m);
    return 0;
}

static const Flag info_flags[] = {
    {"json", "", "all of it as one JSON object", FLAG_SWITCH, &o.json, 0, 0},
    {"tensors", "", "every tensor: name, type, shape", FLAG_SWITCH, &o.tensors, 0, 0},
};

const Command command_info = {
    .name = "info",
    .summary = "what a file of weights, a hub's folder or a run is",
    .usage = "FILE|DIR|RUN [--json] [--tensors]",
    .help =
        "Says what the weights are, which settings the model has and which of them were assumed, "
        "how it expects\nimages, and of a run how far it is.\n",
    .flags = info_flags,
    .n_flags = COUNT(info_flags),
    .run = run_info,
};
