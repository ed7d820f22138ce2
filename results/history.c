/* history.c - how a run went. See history.h.
 *
 * Read in this order: tables, lines of the log, reading, CSV.
 */
#include "results/history.h"

#include "util/files.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define X(number, known) #number,
const char *const step_columns[STEP_COLUMNS] = {STEP_NUMBERS(X)};
#undef X
#define X(number) #number,
const char *const eval_columns[EVAL_COLUMNS] = {EVAL_NUMBERS(X)};
#undef X

/* ---- tables ---- */

/* Column 0 is the step: rows from there on were of a try that has been repeated. */
static void add_row(Table *t, const cJSON *line, const char *const *names)
{
    const cJSON *step = cJSON_GetObjectItemCaseSensitive(line, "step");
    if (!cJSON_IsNumber(step))
        return;
    while (t->rows && t->at[(t->rows - 1) * t->columns] >= step->valuedouble)
        t->rows--;
    size_t width = (size_t)t->columns * sizeof *t->at;
    t->at = xgrow(t->at, t->rows, width);
    double *row = t->at + t->rows++ * t->columns;
    for (int c = 0; c < t->columns; c++)
        row[c] = NAN;
    for (const cJSON *x = line->child; x; x = x->next)
        for (int c = 0; c < t->columns && cJSON_IsNumber(x); c++)
            if (strcmp(x->string, names[c]) == 0)
                row[c] = x->valuedouble;
}

/* ---- lines of the log ---- */

static void take_text(const cJSON *line, const char *key, char *out, size_t size)
{
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(line, key);
    if (cJSON_IsString(x))
        snprintf(out, size, "%s", x->valuestring);
}

static void take_number(const cJSON *line, const char *key, double *out)
{
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(line, key);
    if (cJSON_IsNumber(x))
        *out = x->valuedouble;
}

static void read_start(History *h, const cJSON *line)
{
    const struct {
        const char *key;
        double *to;
    } numbers[] = {{"steps", &h->total},           {"train_images", &h->train_images},
                   {"val_images", &h->val_images}, {"classes", &h->classes},
                   {"parameters", &h->parameters}, {"forward_gflop", &h->forward_gflop},
                   {"batch", &h->batch},           {"ranks", &h->ranks}};
    const struct {
        const char *key;
        char *to;
        size_t size;
    } texts[] = {{"device", h->device, sizeof h->device},
                 {"data", h->data, sizeof h->data},
                 {"built", h->built, sizeof h->built},
                 {"host", h->host, sizeof h->host},
                 {"time", h->started, sizeof h->started}};
    for (int i = 0; i < COUNT(numbers); i++)
        take_number(line, numbers[i].key, numbers[i].to);
    for (int i = 0; i < COUNT(texts); i++)
        take_text(line, texts[i].key, texts[i].to, texts[i].size);
    h->ended = false;
}

static void read_end(History *h, const cJSON *line)
{
    double seconds = 0;
    take_number(line, "seconds", &seconds);
    take_number(line, "damaged", &h->damaged);
    h->seconds += seconds;
    h->ended = true;
}

static void read_line(History *h, const char *text)
{
    cJSON *line = cJSON_Parse(text);
    char event[16] = "";
    if (line)
        take_text(line, "event", event, sizeof event);
    if (strcmp(event, "step") == 0)
        add_row(&h->steps, line, step_columns);
    else if (strcmp(event, "eval") == 0)
        add_row(&h->evals, line, eval_columns);
    else if (strcmp(event, "start") == 0)
        read_start(h, line);
    else if (strcmp(event, "end") == 0)
        read_end(h, line);
    cJSON_Delete(line);
}

/* ---- reading ---- */

bool history_read(const char *dir, History *h, Error *e)
{
    *h = (History){.steps.columns = STEP_COLUMNS, .evals.columns = EVAL_COLUMNS, .ranks = 1};
    char *path = xasprintf("%s/log.jsonl", dir), *line = NULL;
    size_t size = 0;
    FILE *f = fopen(path, "r");
    bool ok = f || fail(e, "name the directory of a run", "%s: %s", path, path_trouble("no log"));
    while (f && getline(&line, &size, f) >= 0)
        read_line(h, line);
    if (f)
        fclose(f);
    free(line);
    free(path);
    return ok;
}

void history_free(History *h)
{
    free(h->steps.at);
    free(h->evals.at);
    *h = (History){0};
}

/* ---- CSV ---- */

static void csv_names(FILE *f, const char *before, const char *const *names, int n, int from)
{
    for (int c = from; c < n; c++)
        fprintf(f, ",%s%s", before, names[c]);
}

static void csv_numbers(FILE *f, const double *row, int n, int from)
{
    for (int c = from; c < n; c++)
        if (row && isfinite(row[c]))
            fprintf(f, ",%.9g", row[c]);
        else
            fputc(',', f);
}

bool history_csv(const History *h, const char *dir, Error *e)
{
    char *text = NULL, *path = xasprintf("%s/metrics.csv", dir);
    size_t size = 0;
    long i = 0, k = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f)
        die("free some memory", "out of memory: cannot write %s", path);
    fprintf(f, "step,epoch");
    csv_names(f, "", step_columns, STEP_COLUMNS, 2);
    csv_names(f, "eval_", eval_columns, EVAL_COLUMNS, 2);
    while (i < h->steps.rows || k < h->evals.rows) {
        const double *s = i < h->steps.rows ? h->steps.at + i * STEP_COLUMNS : NULL;
        const double *v = k < h->evals.rows ? h->evals.at + k * EVAL_COLUMNS : NULL;
        if (s && v && s[0] < v[0])
            v = NULL;
        else if (s && v && v[0] < s[0])
            s = NULL;
        const double *any = s ? s : v;
        fprintf(f, "\n%.0f,%.9g", any[0], any[1]);
        csv_numbers(f, s, STEP_COLUMNS, 2);
        csv_numbers(f, v, EVAL_COLUMNS, 2);
        i += s != NULL;
        k += v != NULL;
    }
    fputc('\n', f);
    fclose(f);
    bool ok = save_file(path, text, size, false, e);
    free(text);
    free(path);
    return ok;
}
