/* tuning.c - which parts of a model learn, and how much a class counts. See tuning.h.
 *
 * Here flags become numbers, and are said; what is done with them is the optimiser's business
 * (Chunk.rate in model/params.h) and the loss's.
 * Order: what learns; weights of classes.
 */
#include "train/tuning.h"

#include "util/files.h"
#include "util/report.h"
#include "util/text.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- what learns ---- */

bool tuning_frozen(const Options *o, int layers, int *units, Error *e)
{
    char *end, hint[120];
    *units = 0;
    if (!*o->freeze || strcmp(o->freeze, "none") == 0)
        return true;
    if (strcmp(o->freeze, "head-only") == 0 || strcmp(o->freeze, "head_only") == 0) {
        *units = layers + 2;
        return true;
    }
    long n = strtol(o->freeze, &end, 10);
    snprintf(hint, sizeof hint, "give head-only, or the number of frozen blocks, 0 to %d", layers);
    if (!isdigit((unsigned char)*o->freeze) || *end)
        return fail(e, hint, "--freeze: '%s' is no number of blocks", o->freeze);
    if (n > layers)
        return fail(e, hint, "--freeze %s: the model has %s", o->freeze, amount(layers, "block").s);
    *units = 1 + (int)n;
    return true;
}

/* Elements of the tensors that learn, of the whole model. */
static double learning(const Model *m)
{
    const Layout *l = m->layout;
    double n = 0;
    for (int i = 0, t = -1; i < l->chunks; i++) {
        const Chunk *c = &l->chunk[i];
        n += c->tensor != t && c->rate > 0 ? (double)l->param[c->tensor].n : 0;
        t = c->tensor;
    }
    return n;
}

void tuning_describe(const Model *m, bool started)
{
    const Plan *p = &m->plan;
    int layers = m->config.layers, frozen = p->frozen;
    char all[32], some[32];
    if (frozen) {
        format_count((double)m->layout->n_params, all, sizeof all);
        format_count(learning(m), some, sizeof some);
        if (frozen > layers + 1)
            printf("learning  head.weight and head.bias alone");
        else if (frozen > layers)
            printf("learning  the final norm and the head");
        else
            printf("learning  blocks %d to %d and the head", frozen - 1, layers - 1);
        printf(": %s of %s parameters (--freeze)\n", some, all);
        if (!started)
            warn("what is frozen is random: give --weights");
    }
    if (p->position != POSITION_LEARNED)
        printf("learning  all but the positions, which are fixed sines and cosines (--position)\n");
    if (p->layer_decay != 1 && frozen <= layers)
        printf("learning  at the learning rate times %g for each layer below the head: %.2g of it "
               "%s\n",
               p->layer_decay, pow(p->layer_decay, layers + 1 - frozen),
               frozen ? "in the lowest that learns" : "in the embedding");
}

double tuning_flops(const Model *m)
{
    int L = m->config.layers, lowest = m->layout->lowest;
    double blocks = lowest < 1 ? L : L + 1 - lowest; /* that the backward pass goes through */
    return vit_forward_flops(&m->config) * (1 + 2 * blocks / L);
}

/* ---- weights of classes ---- */

/* A line is `WEIGHT` or `NAME WEIGHT`, where the name is that of its class. */
static bool read_weight(char *line, const char *name, double *w)
{
    char *end = line + strlen(line), *number;
    while (end > line && isspace((unsigned char)end[-1]))
        *--end = 0;
    for (number = end; number > line && !isspace((unsigned char)number[-1]);)
        number--;
    *w = strtod(number, &end);
    if (end == number || *end || !isfinite(*w) || *w < 0)
        return false;
    while (number > line && isspace((unsigned char)number[-1]))
        *--number = 0;
    return number == line || strcmp(line, name) == 0;
}

static bool read_weights(const char *path, const Dataset *d, double *w, Error *e)
{
    char *lines = read_text(path, 16 << 20, e), *rest = lines, *line;
    int k = 0, K = data_classes(d);
    bool ok = lines != NULL;
    while (ok && (line = strsep(&rest, "\n"))) {
        if (!*line && !rest)
            break;
        const char *name = data_class_name(d, k);
        ok = (k < K && read_weight(line, name, &w[k])) ||
             fail(e,
                  "a line for each class, in label order: its weight, 0 or more, or its name and "
                  "its weight",
                  "%s:%d: no weight of class %d, '%s'", path, k + 1, k, name);
        k++;
    }
    free(lines);
    return ok && (k == K || fail(e, "a line for each class, in label order", "%s has %s for %s",
                                 path, amount(k, "weight").s, amount(K, "class").s));
}

/* Images of each class, [data_classes]; free() it. */
static double *count_images(const Dataset *d)
{
    double *n = xcalloc((size_t)data_classes(d), sizeof *n);
    for (long i = 0; i < data_count(d); i++)
        n[data_label(d, i)]++;
    return n;
}

bool class_weights(const char *spec, const Dataset *train, int K, double *w, Error *e)
{
    int k, classes = data_classes(train);
    double *n = count_images(train), sum = 0;
    bool balanced = strcmp(spec, "balanced") == 0, ok = true;
    for (k = 0; k < K; k++)
        w[k] = 1;
    for (k = 0; balanced && k < classes; k++)
        w[k] = n[k] > 0 ? 1 / n[k] : 1;
    if (!balanced)
        ok = read_weights(spec, train, w, e);
    for (k = 0; ok && k < classes; k++)
        sum += w[k] * n[k];
    if (ok && !(sum > 0))
        ok = fail(e, "give a class with images a weight above 0", "%s: no image counts", spec);
    for (k = 0; ok && k < classes; k++)
        w[k] = n[k] > 0 ? w[k] * (double)data_count(train) / sum : 1;
    free(n);
    return ok;
}

void class_weights_describe(const char *spec, const Dataset *train, const double *w)
{
    int least = 0, most = 0;
    for (int k = 1; k < data_classes(train); k++) {
        least = w[k] < w[least] ? k : least;
        most = w[k] > w[most] ? k : most;
    }
    printf("weighted  classes in the training loss, %s: from %.3g (%s) to %.3g (%s); evaluations "
           "are not\n",
           spec, w[least], data_class_name(train, least), w[most], data_class_name(train, most));
}

void weigh_targets(real *targets, int n, int K, const double *w)
{
    for (int i = 0; i < n; i++)
        for (int k = 0; k < K; k++)
            targets[(size_t)i * (size_t)K + (size_t)k] *= (real)w[k];
}
