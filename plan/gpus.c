/* gpus.c - tables of GPUs and links, and the time of single operations. See gpus.h.
 *
 * Read in this order: the tables, products, passes over memory, messages.
 */
#include "plan/gpus.h"

#include "backend.h"
#include "util/text.h"

#include <math.h>
#include <string.h>
#include <strings.h>

/* ---- tables ---- */

#define TERA 1e12
#define GB   1e9
#define GIB  1073741824.0 /* of memory, what drivers show */

/* Dense peaks, memory and NVLink (each way) by NVIDIA's data sheets: V100 (2020), A100 (2021), H100
 * (2023), H200 (2024), B200 (HGX, 2024), L40S (2023). Adapters are those of the usual machine of
 * eight: DGX-1 4 x 100 Gbit/s, DGX A100 8 x 200, DGX H100, H200 and B200 8 x 400, OVX L40S 4 x 200.
 *
 * Reach: of 989 TFLOP/s an H200 has given 790 to one large bf16 product of random numbers; in a
 * step, at its limit of power and with what products do besides, 0.70 is assumed. llm.c came to
 * 0.55 to 0.6 of the peak of an A100 in a whole step, and to 0.4 of an H100's. Attention: mma.sync,
 * which our portable kernels use, has the whole peak up to Ampere and about 0.6 of it on Hopper; at
 * 200 tokens a third of that is assumed.
 *
 * fp8: of its peak three quarters as much is assumed as of half's, 1,040 TFLOP/s of an H200's 1,979
 * (Transformer Engine's own benchmark has come to 1,146 with large matrices). The L40S has it too,
 * but the program takes it from compute capability 9.0 on.
 *
 * xeon-core is one core of the machine of bench/results/ranks-2026-11-29-intel-xeon.md: 133 of
 * sgemm's GFLOP/s on the shapes of Ti/16 (docs/speed.md). Its bandwidth is fitted to 27.9 images/s
 * of one process there, messages to the same table. */
/* clang-format off */
#define GPU(name, cc, eight, half, tf32, full, gib, tb, sms, nvlink, adapter, reach, forward,     \
            backward, us, measured)                                                               \
    {name, half * TERA, tf32 * TERA, full * TERA, eight * TERA, gib * GIB, tb * TERA, cc, sms,    \
     nvlink * GB, adapter * GB, reach, {forward, backward}, us * 1e-6, measured},
const Gpu gpus[] = {
/*   name         cc   fp8   half   tf32   full  GiB  TB/s  SMs  links     reach attention us */
 GPU("h200",      90,  1979, 989.4, 494.7, 66.9, 140, 4.80, 132, 450, 50,   .70, .21, .17, 2, NULL)
 GPU("h100",      90,  1979, 989.4, 494.7, 66.9, 79,  3.35, 132, 450, 50,   .70, .21, .17, 2, NULL)
 GPU("a100-80",   80,  0,    311.9, 156,   19.5, 79,  2.04, 108, 300, 25,   .78, .40, .32, 2, NULL)
 GPU("a100-40",   80,  0,    311.9, 156,   19.5, 39,  1.56, 108, 300, 25,   .78, .40, .32, 2, NULL)
 GPU("b200",      100, 4500, 2250,  1125,  75,   178, 8.00, 148, 900, 50,   .66, .12, .10, 2, NULL)
 GPU("v100",      70,  0,    125,   0,     15.7, 31,  0.90, 80,  150, 6.25, .75, .20, .15, 3, NULL)
 GPU("l40s",      89,  0,    362,   183,   91.6, 44,  0.86, 142, 25,  12.5, .75, .35, .28, 2, NULL)
 GPU("xeon-core", 0,   0,    0,     0,     0.14, 0,   .011, 0,   4,   1,    1,   0,   0,   5,
     "bench/results/ranks-2026-11-29-intel-xeon.md")
};
#undef GPU
/* clang-format on */
const int gpu_count = COUNT(gpus);

/* Share of its bandwidth that memory gives to elementwise passes, and links to large messages.
 * InfiniBand as NCCL's own tests report it. Ethernet: 100 Gbit/s for a machine, and of TCP through
 * the host a sixth, which is fitted to Azure's V100 without InfiniBand (docs/scaling.md). */
#define STREAMED     0.74
#define ALONE_FLOP   0.80 /* an H200 has given 790 TFLOP/s to one large bf16 product, */
#define ALONE_BYTES  0.90 /* and 4.3 TB/s to one large copy */
#define FP8_REACHED  0.75 /* of `eight`, beside what is reached of `half` */
#define FULL_REACHED 0.90 /* of `full`, by plain multiply-adds */
#define LINK_REACHED 0.80
#define INSIDE       4e-6 /* seconds of a message between GPUs of one machine */
static const struct {
    const char *name;
    double machine; /* bytes/s; 0: the GPU's own */
    double reached, latency;
} links[] = {{"ib", 0, 0.85, 8e-6}, {"ethernet", 12.5 * GB, 0.16, 40e-6}};
const char *const link_names[] = {"ib", "ethernet", NULL};

static bool no_such(Error *e, const char *flag, const char *name, const char *const *names)
{
    char hint[sizeof e->hint];
    const char *near = nearest(name, names);
    int at = near ? snprintf(hint, sizeof hint, "did you mean %s? there are", near)
                  : snprintf(hint, sizeof hint, "there are");
    for (int i = 0; names[i]; i++)
        at += snprintf(hint + at, sizeof hint - (size_t)at, " %s", names[i]);
    return fail(e, hint, "--%s: none is called '%s'", flag, name);
}

bool cluster_new(Cluster *c, const char *gpu, const char *link, int per_machine, double gbit,
                 Error *e)
{
    const char *names[COUNT(gpus) + 1] = {NULL};
    int g = 0, l = 0;
    for (int i = 0; i < COUNT(gpus); i++)
        names[i] = gpus[i].name;
    while (g < COUNT(gpus) && strcasecmp(gpus[g].name, gpu) != 0)
        g++;
    while (l < COUNT(links) && strcasecmp(links[l].name, link) != 0)
        l++;
    if (g == COUNT(gpus))
        return no_such(e, "gpu", gpu, names);
    if (l == COUNT(links))
        return no_such(e, "link", link, link_names);
    *c = (Cluster){.gpu = &gpus[g], .per_machine = per_machine, .link = links[l].name};
    double share = links[l].machine > 0 ? links[l].machine / per_machine : gpus[g].adapter;
    if (gbit > 0)
        share = gbit * GB / 8 / per_machine;
    c->adapter = share * links[l].reached;
    c->latency = links[l].latency;
    return true;
}

/* ---- products ---- */

double gpu_peak(const Gpu *g, int type, bool tf32)
{
    if (type == E4M3)
        return g->eight;
    if (type != F32)
        return g->half;
    return tf32 && g->tf32 > 0 ? g->tf32 : g->full;
}

/* A multiprocessor makes one tile of y at a time, and all of them a wave of tiles: the last wave is
 * rarely full. Smaller tiles fill it better and read more for each multiplication, `speed`. A tile
 * costs what its K multiplications take and, before and after, as much as BEGIN more. Where there
 * are few tiles, as in a weight's gradient, `parts` multiprocessors share a sum and add up in
 * memory. The best of these is taken, as a library does that times its candidates. */
static double tiled(const Gpu *g, double rate, double M, double N, double K)
{
    static const struct {
        double m, n, speed;
    } tiles[] = {{128, 256, 1}, {256, 128, 1}, {128, 128, 0.88}, {64, 128, 0.7}, {64, 64, 0.5}};
    enum { BEGIN = 64, MOST_PARTS = 16 };
    double best = INFINITY;
    for (int i = 0; i < COUNT(tiles); i++)
        for (int parts = 1; parts <= MOST_PARTS; parts++) {
            double n = ceil(M / tiles[i].m) * ceil(N / tiles[i].n) * parts;
            double each = 2 * tiles[i].m * tiles[i].n * (K / parts + BEGIN) / tiles[i].speed;
            double t = ceil(n / g->processors) * each * g->processors / rate;
            t += parts > 1 ? gpu_pass(g, 2.0 * parts * M * N * sizeof(float)) : 0;
            best = t < best ? t : best;
        }
    return best;
}

double gpu_product(const Gpu *g, int type, bool tf32, double M, double N, double K,
                   double out_bytes)
{
    bool plain = type == F32 && !(tf32 && g->tf32 > 0);
    double rate = gpu_peak(g, type, tf32) * (plain ? FULL_REACHED : g->reach);
    double bytes = (M * K + K * N) * (double)type_size(type) + M * N * out_bytes;
    rate *= type == E4M3 ? FP8_REACHED : 1;
    if (!g->processors)
        return 2 * M * N * K / g->full;
    return fmax(tiled(g, rate, M, N, K), bytes / g->bandwidth / STREAMED) + g->launch;
}

/* ---- passes over memory ---- */

double gpu_pass(const Gpu *g, double bytes)
{
    return bytes / (g->bandwidth * (g->processors ? STREAMED : 1)) + g->launch;
}

double gpu_floor(const Gpu *g, int type, bool tf32, double flop, double bytes)
{
    bool fitted = !g->processors; /* a CPU's figures are those that it reaches */
    double rate = gpu_peak(g, type, tf32) * (fitted ? 1 : ALONE_FLOP);
    return fmax(flop / rate, bytes / (g->bandwidth * (fitted ? 1 : ALONE_BYTES)));
}

/* In fp32 with plain multiply-adds, half of whose rate is taken for reached. */
double gpu_attention(const Gpu *g, int type, double flop, double bytes, bool backward)
{
    double rate = type == F32 ? 0.5 * g->full : g->attention[backward] * g->half;
    return fmax(flop / rate, bytes / (g->bandwidth * STREAMED)) + g->launch;
}

/* ---- messages ---- */

Circle circle_of(const Cluster *c, int ranks, int stride)
{
    int here = c->per_machine / stride;
    here = here < 1 ? 1 : here < ranks ? here : ranks;
    return (Circle){ranks, here};
}

/* All adapters of the circle's GPUs carry parts of it, as NCCL's rings do; NVLink is the limit
 * where they are more than that. The first byte takes as many messages as a tree has levels. */
double circle_time(const Cluster *c, const Circle *o, double sent, int turns)
{
    double inside = c->gpu->nvlink * LINK_REACHED, between = c->adapter * o->here;
    double machines = (double)o->ranks / o->here;
    double rate = machines <= 1 || between > inside ? inside : between;
    return sent / rate + turns * (INSIDE * log2(o->here) + c->latency * log2(machines) + INSIDE);
}
