/* attention.c - maps of attention. See attention.h for what they are.
 *
 * The rollout is computed from its end: a row vector r over tokens, which begins as the one that is
 * read by the head, goes back through the blocks as r (A_l + I) / 2. So no product of two matrices
 * is needed, and of the last block only the rows that are read.
 */
#include "results/attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

bool attention_kept(const Model *m)
{
    const Micro *b = m->now;
    int L = m->config.layers;
    if (m->split.tp.ranks > 1 || m->split.pp.ranks > 1)
        return false;
    return L == 1 || b->blocks[0].qkv != b->blocks[L - 1].qkv;
}

double attention_work(const Config *c)
{
    double T = vit_tokens(c);
    return c->layers * T * T * c->width;
}

/* out [T] = softmax over keys j of q_t k_j / sqrt(hs), of one head; qkv [T, 3A]. */
static void attend(const real *qkv, int T, int A, int hs, int t, int head, float *out)
{
    const real *q = qkv + (size_t)t * 3 * (size_t)A + head * hs;
    float max = -INFINITY, sum = 0, scale = 1 / sqrtf((float)hs);
    for (int j = 0; j < T; j++) {
        const real *k = qkv + (size_t)j * 3 * (size_t)A + A + head * hs;
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int i = 0; i < hs; i++)
            dot += (float)q[i] * (float)k[i];
        out[j] = dot * scale;
        max = out[j] > max ? out[j] : max;
    }
    for (int j = 0; j < T; j++)
        sum += out[j] = expf(out[j] - max);
    for (int j = 0; j < T; j++)
        out[j] /= sum;
}

/* r = r (A + I) / 2, A the mean over the heads; rows that r does not weigh are not computed. */
static void roll_back(const Config *c, const real *qkv, float *r)
{
    int T = vit_tokens(c), H = c->heads, hs = c->width / H;
    float *seen = xcalloc((size_t)T * (size_t)T, sizeof *seen); /* [T, T]: r_t A_t */
#pragma omp parallel
    {
        float *row = xcalloc((size_t)T, sizeof *row);
#pragma omp for
        for (int t = 0; t < T; t++)
            for (int h = 0; h < H && r[t] > 0; h++) {
                attend(qkv, T, c->width, hs, t, h, row);
                for (int j = 0; j < T; j++)
                    seen[t * T + j] += r[t] / (float)H * row[j];
            }
        free(row);
    }
    for (int j = 0; j < T; j++)
        r[j] /= 2;
    for (int t = 0; t < T; t++)
        for (int j = 0; j < T; j++)
            r[j] += seen[t * T + j] / 2;
    free(seen);
}

/* How much the head reads of each token: r [T], which add up to 1. */
static void readers(const Config *c, float *r)
{
    int T = vit_tokens(c), first = c->cls_tokens;
    bool by_class = c->pool == POOL_CLS || c->pool == POOL_CLS_GAP;
    for (int t = 0; t < T; t++)
        if (by_class)
            r[t] = t == 0;
        else
            r[t] = t < first ? 0 : 1 / (float)(T - first);
}

void attention_maps(const Model *m, int i, AttentionMaps *out)
{
    const Config *c = &m->config;
    int T = vit_tokens(c), C = c->width, H = c->heads, first = c->cls_tokens;
    size_t Np = (size_t)vit_patches(c);
    long n = 3L * T * C;
    real *qkv = xcalloc((size_t)n, sizeof *qkv);
    float *r = xcalloc((size_t)T, sizeof *r), *row = xcalloc((size_t)T, sizeof *row);
    *out = (AttentionMaps){.rows = c->image_h / c->patch,
                           .columns = c->image_w / c->patch,
                           .heads = H,
                           .rollout = xcalloc(Np, sizeof(float)),
                           .head = xcalloc(Np * (size_t)H, sizeof(float))};
    readers(c, r);
    for (int l = c->layers - 1; l >= 0; l--) {
        vit_read_act(m, m->now->blocks[l].qkv, i * n, n, qkv);
        for (int h = 0; h < H && l == c->layers - 1; h++)
            for (int t = 0; t < T; t++) {
                if (r[t] == 0)
                    continue;
                attend(qkv, T, C, C / H, t, h, row);
                for (size_t p = 0; p < Np; p++)
                    out->head[(size_t)h * Np + p] += r[t] * row[first + (int)p];
            }
        roll_back(c, qkv, r);
    }
    memcpy(out->rollout, r + first, Np * sizeof *r);
    free(qkv);
    free(r);
    free(row);
}

void attention_free(AttentionMaps *a)
{
    free(a->rollout);
    free(a->head);
    *a = (AttentionMaps){0};
}
