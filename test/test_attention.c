/* test_attention.c - maps of attention, against what the network itself made of it.
 *
 * A small model for training has kept what its blocks' attention gave: that must be the maps'
 * weights times the values. The rollout is computed a second time from its definition, as a product
 * of whole matrices in double. A model for inference that keeps its streams must give the same
 * maps.
 */
#include "check.h"

#include "results/attention.h"
#include "util/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { B = 2, PIXELS = 24, P = 8, C = 24, H = 3, L = 3, HS = C / H, NP = 9 };

static Model *model_of(int pool, int cls_tokens, bool qk_norm, bool training, bool keeps)
{
    Config c = vit_config_default();
    c.image_h = c.image_w = PIXELS;
    c.patch = P;
    c.width = C;
    c.layers = L;
    c.heads = H;
    c.mlp = 32;
    c.classes = 5;
    c.pool = pool;
    c.cls_tokens = cls_tokens;
    c.qk_norm = qk_norm;
    Split split = split_alone(&c);
    Plan plan = {.max_batch = B, .training = training, .keep_streams = keeps, .split = &split};
    Error e = {"", ""};
    Model *m = vit_create(&c, &plan, backend_cpu());
    CHECK(vit_init(m, "xavier", 7, 0, 0, &e), "%s", e.what);
    uint8_t images[B * PIXELS * PIXELS * 3];
    real targets[B * 5] = {1, 0, 0, 0, 0, 0, 1};
    for (int i = 0; i < COUNT(images); i++)
        images[i] = (uint8_t)philox(3, (uint32_t)i, 0, 0, 0).v[0];
    vit_set_batch(m, B, images, true, targets, NULL);
    vit_evaluate(m);
    return m;
}

static bool near(double a, double b)
{
    return fabs(a - b) < 2e-5 * (1 + fabs(b));
}

/* att [A] of the class token in the last block = sum over tokens of weight x value. One class
 * token: its own weight is what the patches leave of 1. */
static void test_heads(void)
{
    enum { T = NP + 1 };
    Model *m = model_of(POOL_CLS, 1, false, true, false);
    real qkv[T * 3 * C], att[C];
    CHECK(attention_kept(m));
    for (int i = 0; i < B; i++) {
        AttentionMaps a;
        attention_maps(m, i, &a);
        CHECK(a.rows == 3 && a.columns == 3 && a.heads == H);
        const BlockActs *last = &m->now->blocks[L - 1];
        vit_read_act(m, last->qkv, (long)i * T * 3 * C, T * 3 * C, qkv);
        vit_read_act(m, last->att, (long)i * C, C, att); /* [B,1,A]: class rows alone */
        for (int h = 0; h < H; h++) {
            double rest = 1;
            for (int p = 0; p < NP; p++)
                rest -= (double)a.head[h * NP + p];
            for (int k = 0; k < HS; k++) {
                const real *v = qkv + 2 * C + h * HS + k; /* of token 0 */
                double sum = rest * (double)v[0];
                for (int p = 0; p < NP; p++)
                    sum += (double)a.head[h * NP + p] * (double)v[(p + 1) * 3 * C];
                CHECK(near(sum, (double)att[h * HS + k]), "image %d head %d: %g, %g", i, h, sum,
                      (double)att[h * HS + k]);
            }
        }
        attention_free(&a);
    }
    vit_free(m);
}

/* roll = (A + I) / 2 x roll, A [T,T] the mean over heads of block l of image i. */
static void roll_on(const Model *m, int T, int i, int l, double *roll)
{
    real *qkv = xcalloc((size_t)T * 3 * C, sizeof *qkv);
    double *a = xcalloc((size_t)T * (size_t)T, sizeof *a);
    double *next = xcalloc((size_t)T * (size_t)T, sizeof *next);
    vit_read_act(m, m->now->blocks[l].qkv, (long)i * T * 3 * C, (long)T * 3 * C, qkv);
    for (int h = 0; h < H; h++)
        for (int t = 0; t < T; t++) {
            double e[64], sum = 0;
            for (int j = 0; j < T; j++) {
                double dot = 0;
                for (int k = 0; k < HS; k++)
                    dot += (double)qkv[t * 3 * C + h * HS + k] *
                           (double)qkv[j * 3 * C + C + h * HS + k];
                sum += e[j] = exp(dot / sqrt(HS));
            }
            for (int j = 0; j < T; j++)
                a[t * T + j] += e[j] / sum / H / 2;
        }
    for (int t = 0; t < T; t++) {
        a[t * T + t] += 0.5;
        for (int j = 0; j < T; j++)
            for (int k = 0; k < T; k++)
                next[t * T + j] += a[t * T + k] * roll[k * T + j];
    }
    memcpy(roll, next, (size_t)T * (size_t)T * sizeof *roll);
    free(qkv);
    free(a);
    free(next);
}

static void test_rollout(int pool, int cls_tokens, bool qk_norm)
{
    int T = NP + cls_tokens;
    Model *m = model_of(pool, cls_tokens, qk_norm, false, true);
    Model *same = model_of(pool, cls_tokens, qk_norm, true, false);
    CHECK(attention_kept(m));
    for (int i = 0; i < B; i++) {
        double roll[64 * 64] = {0};
        AttentionMaps a, b;
        for (int t = 0; t < T; t++)
            roll[t * T + t] = 1;
        for (int l = 0; l < L; l++)
            roll_on(m, T, i, l, roll);
        attention_maps(m, i, &a);
        attention_maps(same, i, &b);
        for (int p = 0; p < NP; p++) {
            double sum = 0;
            for (int t = cls_tokens; t < T; t++)
                sum += roll[t * T + cls_tokens + p] / NP;
            double expected = pool == POOL_GAP ? sum : roll[cls_tokens + p];
            CHECK(near((double)a.rollout[p], expected), "patch %d: %g, %g", p, (double)a.rollout[p],
                  expected);
            CHECK(near((double)a.rollout[p], (double)b.rollout[p]), "patch %d, for training", p);
        }
        for (int k = 0; k < H * NP; k++)
            CHECK(near((double)a.head[k], (double)b.head[k]), "head %d, for training", k / NP);
        attention_free(&a);
        attention_free(&b);
    }
    vit_free(m);
    vit_free(same);
}

int main(void)
{
    backend_cpu()->init(&(Device){.threads = 2, .ranks = 1});
    test_heads();
    test_rollout(POOL_CLS, 1, false);
    test_rollout(POOL_CLS, 2, true);
    test_rollout(POOL_GAP, 0, false);
    test_rollout(POOL_GAP, 1, false);
    Model *m = model_of(POOL_CLS, 1, false, false, false);
    CHECK(!attention_kept(m), "blocks share their activations");
    vit_free(m);
    return check_report();
}
