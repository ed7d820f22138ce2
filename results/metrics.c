/* metrics.c - what an evaluation comes to. See metrics.h for the definitions.
 *
 * Read in this order: one image, per class, calibration, AUC, lists of images.
 */
#include "results/metrics.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- one image ---- */

void probabilities(const real *z, int K, bool sigmoid, double *p)
{
    double max = (double)z[0], sum = 0;
    for (int k = 1; k < K; k++)
        max = fmax(max, (double)z[k]);
    for (int k = 0; k < K; k++) {
        p[k] = sigmoid ? 1 / (1 + exp(-(double)z[k])) : exp((double)z[k] - max);
        sum += p[k];
    }
    for (int k = 0; k < K && !sigmoid; k++)
        p[k] /= sum;
}

/* The largest logit; between equals it is decided against the label, as a top-1 hit is. */
static int predicted(const real *z, int K, int label)
{
    int best = label == 0 && K > 1; /* the first of the others */
    for (int k = 0; k < K; k++)
        if (k != label && z[k] > z[best])
            best = k;
    return z[label] > z[best] ? label : best;
}

Outcome outcome_of(const real *z, int K, bool sigmoid, int label, const real *stats)
{
    int best = predicted(z, K, label);
    double max = (double)z[best], sum = 0;
    for (int k = 0; k < K && !sigmoid; k++)
        sum += exp((double)z[k] - max);
    Outcome o = {.loss = (double)stats[0],
                 .top1 = (double)stats[1],
                 .top5 = (double)stats[2],
                 .label = label,
                 .prediction = best,
                 .probability = sigmoid ? 1 / (1 + exp(-max)) : 1 / sum,
                 .truth = sigmoid ? 1 / (1 + exp(-(double)z[label]))
                                  : exp((double)z[label] - max) / sum};
    if (K == 2)
        o.margin = (double)z[1] - (double)z[0];
    return o;
}

/* ---- per class ---- */

static int by_pair(const void *a, const void *b)
{
    const Confusion *x = a, *y = b;
    int label = (x->label > y->label) - (x->label < y->label);
    return label ? label : (x->prediction > y->prediction) - (x->prediction < y->prediction);
}

/* The pairs that occur: of n images sorted by pair, each run of equal ones is one. */
static void count_pairs(Metrics *m, const Outcome *o, long n)
{
    Confusion *c = xcalloc((size_t)n + 1, sizeof *c);
    for (long i = 0; i < n; i++)
        c[i] = (Confusion){(int)o[i].label, (int)o[i].prediction, 1};
    qsort(c, (size_t)n, sizeof *c, by_pair);
    long pairs = 0;
    for (long i = 0; i < n; i++)
        if (pairs && by_pair(&c[pairs - 1], &c[i]) == 0)
            c[pairs - 1].images++;
        else
            c[pairs++] = c[i];
    m->confused = c;
    m->n_confused = pairs;
}

static double percent(double part, double whole)
{
    return whole > 0 ? 100 * part / whole : NAN;
}

static void measure_classes(Metrics *m)
{
    double recalls = 0, f1s = 0;
    int occur = 0, seen = 0;
    m->classes = xcalloc((size_t)m->K, sizeof *m->classes);
    for (long i = 0; i < m->n_confused; i++) {
        const Confusion *c = &m->confused[i];
        m->classes[c->label].images += c->images;
        m->classes[c->prediction].predicted += c->images;
        if (c->label == c->prediction)
            m->classes[c->label].correct = c->images;
    }
    for (int k = 0; k < m->K; k++) {
        ClassMetrics *c = &m->classes[k];
        c->accuracy = percent((double)c->correct, (double)c->images);
        c->precision = percent((double)c->correct, (double)c->predicted);
        c->f1 = percent(2 * (double)c->correct, (double)(c->images + c->predicted));
        if (c->images) {
            recalls += c->accuracy;
            occur++;
        }
        if (c->images + c->predicted) {
            f1s += c->f1;
            seen++;
        }
    }
    m->balanced = recalls / occur;
    m->macro_f1 = f1s / seen;
}

/* ---- calibration ---- */

/* Bin b holds probabilities in (b, b + 1] / 15. */
static void calibrate(Metrics *m, const Outcome *o, long n)
{
    double sums[ECE_BINS] = {0};
    for (long i = 0; i < n; i++) {
        int b = (int)ceil(o[i].probability * ECE_BINS) - 1;
        if (!(b >= 0)) /* nothing, or no number */
            b = 0;
        b = b < ECE_BINS ? b : ECE_BINS - 1;
        m->calibration[b][0]++;
        m->calibration[b][1] += o[i].label == o[i].prediction;
        sums[b] += o[i].probability;
    }
    for (int b = 0; b < ECE_BINS; b++) {
        double images = (double)m->calibration[b][0], right = (double)m->calibration[b][1];
        m->confidence[b] = sums[b] / images;
        m->ece += 100 * fabs(right - sums[b]) / (double)n;
    }
}

/* ---- AUC ---- */

typedef struct {
    double margin;
    bool positive;
} Score;

static int by_margin(const void *a, const void *b)
{
    const Score *x = a, *y = b;
    return (x->margin > y->margin) - (x->margin < y->margin);
}

/* The probability that an image of class 1 has a higher score than one of class 0, equal ones
 * counting half: from the sum of ranks (Mann and Whitney 1947). */
static double area(const Outcome *o, long n)
{
    Score *s = xcalloc((size_t)n + 1, sizeof *s);
    double below = 0, sum = 0, positives = 0; /* negatives so far */
    for (long i = 0; i < n; i++)
        s[i] = (Score){o[i].margin, o[i].label > 0};
    qsort(s, (size_t)n, sizeof *s, by_margin);
    for (long i = 0, end; i < n; i = end) {
        double up = 0, down = 0; /* of those that are equal */
        for (end = i; end < n && s[end].margin == s[i].margin; end++)
            s[end].positive ? up++ : down++;
        if (end == i) /* no number */
            end++;
        sum += up * (below + down / 2);
        below += down;
        positives += up;
    }
    free(s);
    return percent(sum, positives * below);
}

/* ---- all of it ---- */

Metrics metrics_of(const Outcome *o, long n, int K)
{
    Metrics m = {.K = K, .images = n};
    double loss = 0, top1 = 0, top5 = 0, images = n ? (double)n : 1;
    for (long i = 0; i < n; i++) {
        loss += o[i].loss;
        top1 += o[i].top1;
        top5 += o[i].top5;
    }
    m.loss = isnan(loss) ? NAN : loss / images; /* without a sign */
    m.top1 = 100 * top1 / images;
    m.top5 = 100 * top5 / images;
    count_pairs(&m, o, n);
    measure_classes(&m);
    calibrate(&m, o, n);
    m.auc = K == 2 ? area(o, n) : NAN;
    return m;
}

void metrics_free(Metrics *m)
{
    free(m->classes);
    free(m->confused);
    *m = (Metrics){0};
}

/* ---- lists of images ---- */

/* Insertion into a short list, sorted; equals stay in the order of the images. */
long metrics_worst(const Outcome *o, long n, long most, long *out)
{
    long found = 0;
    for (long i = 0; i < n; i++) {
        if (o[i].label == o[i].prediction)
            continue;
        long at = found;
        while (at > 0 && o[out[at - 1]].truth > o[i].truth)
            at--;
        if (at == most)
            continue;
        found += found < most;
        memmove(out + at + 1, out + at, (size_t)(found - 1 - at) * sizeof *out);
        out[at] = i;
    }
    return found;
}

long metrics_right(const Outcome *o, long n, long most, long *out)
{
    long right = 0, seen = 0, found = 0;
    for (long i = 0; i < n; i++)
        right += o[i].label == o[i].prediction;
    long wanted = right < most ? right : most;
    for (long i = 0; i < n && found < wanted; i++)
        if (o[i].label == o[i].prediction && seen++ == found * right / wanted)
            out[found++] = i;
    return found;
}
