/* test_metrics.c - metrics of evaluations: by hand, and against scikit-learn.
 *
 * The numbers of scikit-learn (1.9.1) are written down here: accuracy_score,
 * balanced_accuracy_score, f1_score (macro and per class), confusion_matrix, log_loss and
 * roc_auc_score of the logits that draw() makes, which a few lines of Python make too. ECE has no
 * function there; it was computed by numpy from its definition.
 */
#include "check.h"

#include "results/metrics.h"

#include <math.h>
#include <string.h>

enum { N = 200 };

static bool near(double a, double b)
{
    return fabs(a - b) < 1e-5 * (1 + fabs(b));
}

/* ---- against scikit-learn ---- */

static unsigned long state;
static double uniform(void)
{
    state = (state * 1103515245 + 12345) % 2147483648u;
    return (double)state / 2147483648.0;
}

/* Logits of one digit behind the point, so that some are equal; one is added to the label's. */
static void draw(Outcome *o, int K)
{
    state = 123;
    for (int i = 0; i < N; i++) {
        real z[8], stats[3] = {0};
        double p[8];
        int label = (int)(uniform() * K);
        for (int k = 0; k < K; k++)
            z[k] = (real)(float)(floor(40 * uniform() + 0.5) / 10);
        z[label] = (real)((float)z[label] + 1.0f);
        probabilities(z, K, false, p);
        stats[0] = (real)-log(p[label]);
        o[i] = outcome_of(z, K, false, label, stats);
        o[i].top1 = o[i].prediction == label;
        CHECK(near(o[i].truth, p[label]) && near(o[i].probability, p[(int)o[i].prediction]));
    }
}

static const struct {
    int K;
    double top1, balanced, macro_f1, ece, loss, auc, f1[5];
    long confused[5][5];
} expected[] = {
    {.K = 2,
     .top1 = 71.5,
     .balanced = 71.5475712565235,
     .macro_f1 = 71.46504467973267,
     .ece = 9.973286698931512,
     .loss = 0.5463064095183996,
     .auc = 79.99799277398635,
     .f1 = {70.46632124352331, 72.46376811594203},
     .confused = {{68, 26}, {31, 75}}},
    {.K = 5,
     .top1 = 45.5,
     .balanced = 45.83493617765343,
     .macro_f1 = 45.19052774480207,
     .ece = 9.077962586940124,
     .loss = 1.3488086889621578,
     .f1 = {51.28205128205128, 51.11111111111111, 35.61643835616438, 35.44303797468354, 52.5},
     .confused = {{20, 4, 6, 3, 2},
                  {4, 23, 3, 10, 6},
                  {9, 8, 13, 3, 5},
                  {8, 5, 8, 14, 8},
                  {2, 4, 5, 6, 21}}},
};

static void test_scikit_learn(int which)
{
    Outcome o[N];
    int K = expected[which].K;
    draw(o, K);
    Metrics m = metrics_of(o, N, K);
    CHECK(near(m.top1, expected[which].top1), "%.10g", m.top1);
    CHECK(near(m.balanced, expected[which].balanced), "%.10g", m.balanced);
    CHECK(near(m.macro_f1, expected[which].macro_f1), "%.10g", m.macro_f1);
    CHECK(near(m.ece, expected[which].ece), "%.10g", m.ece);
    CHECK(near(m.loss, expected[which].loss), "%.10g", m.loss);
    CHECK(K > 2 ? isnan(m.auc) : near(m.auc, expected[which].auc), "%.10g", m.auc);
    long seen = 0;
    for (long i = 0; i < m.n_confused; i++) {
        const Confusion *c = &m.confused[i];
        seen += c->images;
        CHECK(c->images == expected[which].confused[c->label][c->prediction], "%d as %d: %ld",
              c->label, c->prediction, c->images);
    }
    CHECK(seen == N);
    for (int k = 0; k < K; k++)
        CHECK(near(m.classes[k].f1, expected[which].f1[k]), "%d: %.10g", k, m.classes[k].f1);
    metrics_free(&m);
}

/* ---- by hand ---- */

static Outcome said(int label, int prediction, double probability, double truth)
{
    bool right = label == prediction;
    return (Outcome){.label = label,
                     .prediction = prediction,
                     .probability = probability,
                     .truth = truth,
                     .top1 = right,
                     .top5 = 1};
}

/* Three classes, of which one does not occur and one is never predicted. */
static void test_missing_classes(void)
{
    const Outcome o[] = {said(0, 0, 0.9, 0.9), said(0, 0, 0.9, 0.9), said(0, 2, 0.6, 0.2),
                         said(1, 0, 0.7, 0.1)};
    Metrics m = metrics_of(o, COUNT(o), 3);
    CHECK(near(m.top1, 50) && near(m.balanced, (200.0 / 3 + 0) / 2));
    CHECK(near(m.classes[0].accuracy, 200.0 / 3) && near(m.classes[0].precision, 200.0 / 3));
    CHECK(near(m.classes[1].accuracy, 0) && isnan(m.classes[1].precision));
    CHECK(isnan(m.classes[2].accuracy) && near(m.classes[2].precision, 0));
    CHECK(near(m.macro_f1, (200.0 / 3 + 0 + 0) / 3));
    /* bins of 0.9, 0.7 and 0.6: |2 - 1.8|, |0 - 0.7|, |0 - 0.6| of 4 images */
    CHECK(near(m.ece, 100 * (0.2 + 0.7 + 0.6) / 4), "%g", m.ece);
    CHECK(m.calibration[13][0] == 2 && m.calibration[13][1] == 2 && m.calibration[8][0] == 1);
    metrics_free(&m);
}

/* A probability at the edge of two bins belongs to the lower one; 1 is in the last. */
static void test_bins(void)
{
    const Outcome o[] = {said(0, 0, 1, 1), said(0, 0, 0.2, 0.2)};
    Metrics m = metrics_of(o, COUNT(o), 9);
    CHECK(m.calibration[14][0] == 1 && m.calibration[2][0] == 1);
    metrics_free(&m);
}

static void test_auc(void)
{
    Outcome o[] = {{.label = 0, .margin = -1},
                   {.label = 1, .margin = 2},
                   {.label = 1, .margin = 0},
                   {.label = 0, .margin = 0}};
    Metrics m = metrics_of(o, COUNT(o), 2);
    CHECK(near(m.auc, 100 * 3.5 / 4), "%g", m.auc); /* four pairs: three in order, one equal */
    metrics_free(&m);
    o[1].label = o[2].label = 0;
    m = metrics_of(o, COUNT(o), 2);
    CHECK(isnan(m.auc), "of one class alone");
    metrics_free(&m);
    m = metrics_of(o, 0, 2);
    CHECK(m.images == 0 && m.n_confused == 0);
    metrics_free(&m);
}

/* Equal logits are no hit, whichever comes first; a sigmoid's probabilities stand by themselves. */
static void test_outcomes(void)
{
    const real ties[] = {2, 2, 1}, stats[] = {0, 0, 1};
    CHECK(outcome_of(ties, 3, false, 0, stats).prediction == 1);
    CHECK(outcome_of(ties, 3, false, 1, stats).prediction == 0);
    CHECK(outcome_of(ties, 3, false, 2, stats).prediction == 0);
    Outcome o = outcome_of(ties, 3, true, 2, stats);
    CHECK(near(o.probability, 1 / (1 + exp(-2.0))) && near(o.truth, 1 / (1 + exp(-1.0))));
    o = outcome_of((const real[]){1, 4}, 2, false, 1, stats);
    CHECK(o.margin == 3 && o.prediction == 1);
}

static void test_lists(void)
{
    const Outcome o[] = {said(0, 1, 0.5, 0.4), said(0, 0, 0.9, 0.9), said(0, 1, 0.9, 0.1),
                         said(1, 0, 0.6, 0.3), said(1, 1, 0.6, 0.6), said(1, 0, 0.8, 0.1),
                         said(1, 1, 0.7, 0.7)};
    long at[8];
    CHECK(metrics_worst(o, COUNT(o), 3, at) == 3 && at[0] == 2 && at[1] == 5 && at[2] == 3);
    CHECK(metrics_worst(o, COUNT(o), 8, at) == 4 && at[3] == 0);
    CHECK(metrics_worst(o, 2, 8, at) == 1);
    CHECK(metrics_right(o, COUNT(o), 8, at) == 3 && at[0] == 1 && at[1] == 4 && at[2] == 6);
    CHECK(metrics_right(o, COUNT(o), 2, at) == 2 && at[0] == 1 && at[1] == 4);
}

int main(void)
{
    for (int i = 0; i < COUNT(expected); i++)
        test_scikit_learn(i);
    test_missing_classes();
    test_bins();
    test_auc();
    test_outcomes();
    test_lists();
    return check_report();
}
