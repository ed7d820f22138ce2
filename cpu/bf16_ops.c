/* bf16_ops.c - what the CPU's ops on 16-bit tensors share: room, sums over rows, dropout masks. The
 * formulas are the oracle's, on floats. */
#include "cpu/bf16_ops.h"

#include "cpu/dropout.h"
#include "util/rng.h"
#include "util/util.h"

#include <stdlib.h>

const StepState *bf16_state;

/* It grows to the largest request and stays. */
float *bf16_scratch(size_t n)
{
    static float *p;
    static size_t size;
    if (n > size) {
        free(p);
        p = xmalloc(n * sizeof *p);
        size = n;
    }
    return p;
}

float *bf16_group_sums(int count, long n)
{
    size_t size = (size_t)count * BF16_GROUPS * (size_t)n;
    return memset(bf16_scratch(size), 0, size * sizeof(float));
}

void bf16_sum_rows(dev *out, const float *x, int rows, long n)
{
    float *sum = (float *)out;
#pragma omp parallel for simd schedule(static)
    for (long j = 0; j < n; j++) {
        float s = x[j];
        for (int i = 1; i < rows; i++)
            s += x[i * n + j];
        sum[j] = s;
    }
}

void bf16_sum_groups(dev *out, const float *partial, long n)
{
    if (out)
        bf16_sum_rows(out, partial, BF16_GROUPS, n);
}

void bf16_column_sums(dev *out, Tensor x, long rows, long n)
{
    float *partial = bf16_group_sums(1, n);
#pragma omp parallel for schedule(static)
    for (int g = 0; g < BF16_GROUPS; g++) {
        float *sum = partial + g * n;
        for (long r = bf16_group_begin(rows, g); r < bf16_group_begin(rows, g + 1); r++) {
            const uint16_t *in = bf16_row(x, r);
            long j = 0;
            for (; j + LANES <= n; j += LANES)
                f32_store(sum + j, f32_load(sum + j) + bf16_load(in + j));
            for (; j < n; j++)
                sum[j] += (float)bf16_to_real(in[j]);
        }
    }
    bf16_sum_groups(out, partial, n);
}

void bf16_drop_elements(float *x, long n, long first, long sample, const Drop *d)
{
    uint32_t keep = rng_threshold(d->p), room[DROPOUT_MOST];
    float kept = (float)(1 / (1 - d->p));
    for (long i = 0, count; i < n; i += count) {
        count = n - i;
        const uint32_t *r = dropout_numbers(room, first + i, &count, sample, d, bf16_state);
#pragma omp simd
        for (long k = 0; k < count; k++)
            x[i + k] *= r[k] >= keep ? kept : 0;
    }
}

void bf16_drop_row(float *x, long n, long r, int tokens, const Drop *d)
{
    long width = d->of > 0 ? d->of : n;
    if (d->p > 0)
        bf16_drop_elements(x, n, r % tokens * width + d->first, r / tokens, d);
}

float bf16_path_scale(long sample, const Drop *d)
{
    float scale = 1;
    if (d->p > 0)
        bf16_drop_elements(&scale, 1, 0, sample, d);
    return scale;
}
