/* positions.c - position embeddings for another grid of patches. See positions.h.
 *
 * Every way is separable: out = A in B^T, with one row of weights per line of the new grid. Grids
 * are small, so the rows are kept in full.
 *
 * The formulas are those of PyTorch's interpolate (align_corners where `google`), whose antialiased
 * filter is Pillow's.
 */
#include "weights/positions.h"

#include "util/util.h"

#include <math.h>
#include <stdlib.h>

/* Keys 1981: the cubic through the neighbours at distance x. */
static double cubic(double x, double a)
{
    x = fabs(x);
    if (x < 1)
        return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

static int clamp(int i, int n)
{
    if (i < 0)
        return 0;
    return i < n ? i : n - 1;
}

/* Weights of the neighbours at floor(at) - reach + 1 .. floor(at) + reach; beyond the border its
 * last line counts again. row [n] */
static void add_neighbours(double at, int reach, int n, double *row)
{
    double floor_at = floor(at), t = at - floor_at;
    for (int k = 1 - reach; k <= reach; k++) {
        double weight = reach == 1 ? 1 - fabs(t - k) : cubic(t - k, -0.75);
        row[clamp((int)floor_at + k, n)] += weight;
    }
}

/* The filter is as wide as a new line, where that is wider than an old one. row [n] */
static void add_filter(double centre, double scale, int n, double *row)
{
    double wide = scale > 1 ? scale : 1, sum = 0;
    int from = (int)(centre - 2 * wide + 0.5), to = (int)(centre + 2 * wide + 0.5);
    from = from > 0 ? from : 0;
    to = to < n ? to : n;
    for (int j = from; j < to; j++)
        sum += row[j] = cubic((j - centre + 0.5) / wide, -0.5);
    for (int j = from; j < to; j++)
        row[j] /= sum;
}

/* The weights of n old lines in each of `to` new ones, [to, n]; free() it. */
static double *make_rows(int n, int to, int how)
{
    double *row = xcalloc((size_t)to * (size_t)n, sizeof *row), scale = (double)n / to;
    for (int i = 0; i < to; i++) {
        double centre = scale * (i + 0.5), *here = row + (long)i * n;
        double corners = to > 1 ? (double)i * (n - 1) / (to - 1) : 0;
        if (how == POS_GOOGLE)
            add_neighbours(corners, 1, n, here);
        else if (how == POS_BILINEAR)
            add_neighbours(centre - 0.5, 1, n, here);
        else if (how == POS_BICUBIC)
            add_neighbours(centre - 0.5, 2, n, here);
        else
            add_filter(centre, scale, n, here);
    }
    return row;
}

/* out[i, :] = sum over j of row[i, j] in[j, :], for `size` numbers in a line. */
static void combine(const double *row, int n, int to, const double *in, long size, double *out)
{
    for (long i = 0; i < to * size; i++)
        out[i] = 0;
    for (int i = 0; i < to; i++)
        for (int j = 0; j < n; j++)
            for (long k = 0; row[(long)i * n + j] != 0 && k < size; k++)
                out[i * size + k] += row[(long)i * n + j] * in[j * size + k];
}

void positions_resize(const double *in, int h, int w, int C, double *out, int to_h, int to_w,
                      int how)
{
    double *rows = make_rows(h, to_h, how), *columns = make_rows(w, to_w, how);
    double *tall = xmalloc((size_t)to_h * (size_t)w * (size_t)C * sizeof *tall);
    combine(rows, h, to_h, in, (long)w * C, tall);
    for (int y = 0; y < to_h; y++)
        combine(columns, w, to_w, tall + (long)y * w * C, C, out + (long)y * to_w * C);
    free(tall);
    free(rows);
    free(columns);
}
