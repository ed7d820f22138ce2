/* results.c - what an evaluation leaves behind. See results.h.
 *
 * Read in this order: the table on the screen, CSV, JSON, all files.
 */
#include "train/results.h"

#include "datasets/classes.h"
#include "util/files.h"
#include "util/text.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *class_title(const Session *s, const Dataset *d, int k)
{
    static const Dataset *of; /* the last one asked about */
    static bool ids;
    const char *name = data_class_name(d, k), *blank = strpbrk(name, " \t");
    if (of != d)
        ids = classes_have_ids(data_class_names(d));
    of = d;
    return *s->o.classes && ids && blank ? blank + strspn(blank, " \t") : name;
}

/* What files are made of. */
typedef struct {
    const Session *s;
    const Dataset *d;
    const Evaluation *v;
    long step; /* of the run, or -1 */
} Results;

static void csv_class(FILE *f, const Results *r, int k)
{
    csv_string(f, class_title(r->s, r->d, k));
}

/* ---- the table on the screen ---- */

enum { SHOWN = 10 };

static const ClassMetrics *sorted_classes; /* what the order below is about */

static int by_accuracy(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    double p = sorted_classes[x].accuracy, q = sorted_classes[y].accuracy;
    int order = (p > q) - (p < q);
    return order ? order : x - y;
}

static void print_classes(const Session *s, const Dataset *d, const Metrics *m)
{
    int *order = xcalloc((size_t)m->K, sizeof *order), n = 0;
    for (int k = 0; k < m->K; k++)
        if (m->classes[k].images)
            order[n++] = k;
    sorted_classes = m->classes;
    if (n > SHOWN) /* few stand in the order of their labels */
        qsort(order, (size_t)n, sizeof *order, by_accuracy);
    printf("%-10s%-24s  images  accuracy     F1\n", n > SHOWN ? "worst" : "classes", "");
    for (int i = 0; i < n && i < SHOWN; i++) {
        const ClassMetrics *c = &m->classes[order[i]];
        printf("          %-24.24s  %6ld  %7.2f%%  %5.1f\n", class_title(s, d, order[i]), c->images,
               c->accuracy, c->f1);
    }
    free(order);
}

static void print_worst(const Session *s, const Dataset *d, const Evaluation *v)
{
    long worst[SHOWN / 2];
    long n = metrics_worst(v->outcomes, v->metrics.images, COUNT(worst), worst);
    for (long i = 0; i < n; i++) {
        const Outcome *o = &v->outcomes[worst[i]];
        char *path = data_sample_path(d, worst[i]);
        printf("%-10s%s: %s, taken for %s (%.1f%%)\n", i ? "" : "mistakes", path,
               class_title(s, d, (int)o->label), class_title(s, d, (int)o->prediction),
               100 * o->probability);
        free(path);
    }
}

void results_print(const Session *s, const Dataset *d, const Evaluation *v)
{
    const Metrics *m = &v->metrics;
    print_classes(s, d, m);
    print_worst(s, d, v);
    printf("balanced  accuracy %.2f  F1 %.2f  calibration error %.2f%%", m->balanced, m->macro_f1,
           m->ece);
    if (!isnan(m->auc))
        printf("  AUC %.2f", m->auc);
    printf("\n");
}

/* ---- CSV ---- */

static void csv_number(FILE *f, double x)
{
    if (isfinite(x))
        fprintf(f, ",%.6g", x);
    else
        fputc(',', f);
}

static void write_classes(FILE *f, const Results *r)
{
    const Metrics *m = &r->v->metrics;
    fprintf(f, "class,name,images,predicted,correct,accuracy,precision,f1\n");
    for (int k = 0; k < m->K; k++) {
        const ClassMetrics *c = &m->classes[k];
        fprintf(f, "%d,", k);
        csv_class(f, r, k);
        fprintf(f, ",%ld,%ld,%ld", c->images, c->predicted, c->correct);
        csv_number(f, c->accuracy);
        csv_number(f, c->precision);
        csv_number(f, c->f1);
        fputc('\n', f);
    }
}

static void write_confusion(FILE *f, const Results *r)
{
    const Metrics *m = &r->v->metrics;
    long at = 0;
    fprintf(f, "label \\ prediction");
    for (int k = 0; k < m->K; k++) {
        fputc(',', f);
        csv_class(f, r, k);
    }
    for (int k = 0; k < m->K; k++) {
        fputc('\n', f);
        csv_class(f, r, k);
        for (int p = 0; p < m->K; p++) {
            const Confusion *c = &m->confused[at];
            bool has = at < m->n_confused && c->label == k && c->prediction == p;
            fprintf(f, ",%ld", has ? c->images : 0);
            at += has;
        }
    }
    fputc('\n', f);
}

static void write_worst(FILE *f, const Results *r)
{
    const Evaluation *v = r->v;
    long *worst = xcalloc(WORST_MOST, sizeof *worst);
    long n = metrics_worst(v->outcomes, v->metrics.images, WORST_MOST, worst);
    fprintf(f, "file,label,prediction,probability,probability of label\n");
    for (long i = 0; i < n; i++) {
        const Outcome *o = &v->outcomes[worst[i]];
        char *path = data_sample_path(r->d, worst[i]);
        csv_string(f, path);
        fputc(',', f);
        csv_class(f, r, (int)o->label);
        fputc(',', f);
        csv_class(f, r, (int)o->prediction);
        fprintf(f, ",%.6g,%.6g\n", o->probability, o->truth);
        free(path);
    }
    free(worst);
}

/* ---- JSON ---- */

static void json_number(FILE *f, const char *key, double x)
{
    fprintf(f, isfinite(x) ? "  \"%s\": %.9g,\n" : "  \"%s\": null,\n", key, x);
}

static void json_text(FILE *f, const char *key, const char *text)
{
    fprintf(f, "  \"%s\": ", key);
    json_string(f, text);
    fprintf(f, ",\n");
}

static void json_classes(FILE *f, const Results *r)
{
    const Metrics *m = &r->v->metrics;
    fprintf(f, "  \"classes\": [");
    for (int k = 0; k < m->K; k++) {
        const ClassMetrics *c = &m->classes[k];
        fprintf(f, "%s\n    {\"name\": ", k ? "," : "");
        json_string(f, class_title(r->s, r->d, k));
        fprintf(f, ", \"images\": %ld, \"predicted\": %ld, \"correct\": %ld", c->images,
                c->predicted, c->correct);
        const struct {
            const char *key;
            double value;
        } rates[] = {{"accuracy", c->accuracy}, {"precision", c->precision}, {"f1", c->f1}};
        for (int i = 0; i < COUNT(rates); i++)
            fprintf(f, isfinite(rates[i].value) ? ", \"%s\": %.6g" : ", \"%s\": null", rates[i].key,
                    rates[i].value);
        fputc('}', f);
    }
    fprintf(f, "],\n");
}

static void write_json(FILE *f, const Results *r)
{
    const Metrics *m = &r->v->metrics;
    const Session *s = r->s;
    fprintf(f, "{\n");
    if (r->step >= 0)
        json_number(f, "step", (double)r->step);
    json_text(f, "weights", s->weights ? s->weights : "");
    json_text(f, "data", *s->o.val_data ? s->o.val_data : s->o.data);
    json_number(f, "images", (double)m->images);
    json_number(f, "seconds", r->v->seconds);
    json_number(f, "top1", m->top1);
    json_number(f, "top5", m->top5);
    json_number(f, "loss", m->loss);
    json_number(f, "balanced_accuracy", m->balanced);
    json_number(f, "macro_f1", m->macro_f1);
    json_number(f, "ece", m->ece);
    json_number(f, "auc", m->auc);
    json_classes(f, r);
    fprintf(f, "  \"confused\": ["); /* label, prediction, images */
    for (long i = 0; i < m->n_confused; i++)
        fprintf(f, "%s[%d, %d, %ld]", i ? ", " : "", m->confused[i].label,
                m->confused[i].prediction, m->confused[i].images);
    fprintf(f, "],\n  \"calibration\": ["); /* of each bin: images, right ones, mean probability */
    for (int b = 0; b < ECE_BINS; b++)
        fprintf(f, "%s[%ld, %ld, %.6g]", b ? ", " : "", m->calibration[b][0], m->calibration[b][1],
                m->calibration[b][0] ? m->confidence[b] : 0);
    fprintf(f, "]\n}\n");
}

/* ---- all files ---- */

/* What was written to memory goes to a file, whole or not at all. */
static bool publish(const char *dir, const char *name, char *text, size_t n, Error *e)
{
    char *path = xasprintf("%s/%s", dir, name);
    bool ok = save_file(path, text, n, false, e);
    free(path);
    free(text);
    return ok;
}

bool results_write(const Session *s, const Dataset *d, const Evaluation *v, long step,
                   const char *dir, Error *e)
{
    static const struct {
        const char *name;
        void (*write)(FILE *f, const Results *r);
        int most; /* classes */
    } files[] = {{"eval.json", write_json, INT_MAX},
                 {"eval.csv", write_classes, INT_MAX},
                 {"worst.csv", write_worst, INT_MAX},
                 {"confusion.csv", write_confusion, CONFUSION_MOST}};
    const Results r = {s, d, v, step};
    bool ok = make_dirs(dir, e);
    for (int i = 0; ok && i < COUNT(files); i++) {
        char *text = NULL;
        size_t n = 0;
        if (v->metrics.K > files[i].most)
            continue;
        FILE *f = open_memstream(&text, &n);
        if (f)
            files[i].write(f, &r);
        if (!f || fclose(f) != 0)
            die("free some memory", "out of memory: cannot write %s", files[i].name);
        ok = publish(dir, files[i].name, text, n, e);
    }
    return ok;
}
