/* device.h - what test programs need to run on any backend with any element type.
 *
 *   --backend cpu|cuda            cuda where it is linked; default cpu
 *   --type fp32|tf32|bf16|fp16    tf32: fp32 whose matrix products round their operands; fp8, of
 *                                 models: bf16 whose blocks' linear layers multiply 8-bit numbers
 *   --measure                     choose matrix products' algorithms by timing them
 *   --verbose                     the largest errors, also where nothing failed
 *
 * Cases that would take long where a CPU plays the GPU run on `full` devices alone: on the CPU
 * backend, and anywhere with TEST_FULL=1 in the environment.
 * The 16-bit types are converted here by arithmetic in double, independently of every backend.
 */
#pragma once

#include "check.h"
#include "cpu/bf16_onednn.h"
#include "vit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What is under test. */
static struct {
    const Backend *be;
    const char *name; /* of the type */
    int type;
    bool cpu, tf32, fp8, full, measure, verbose;
    char **argv; /* as main was given it: for who starts the program again */
} under;

/* Read the options and leave the other arguments in argv[1..]; returns the new argc. */
static int device_options(int argc, char **argv)
{
    static const char *const types[] = {"fp32", "tf32", "bf16", "fp16", "fp8"};
    const char *backend = "cpu", *type = "fp32";
    int n = 1;
    under.argv = xmalloc(((size_t)argc + 1) * sizeof *argv);
    memcpy(under.argv, argv, ((size_t)argc + 1) * sizeof *argv);
    for (int i = 1; i < argc; i++) {
        bool is_backend = strcmp(argv[i], "--backend") == 0;
        if (strcmp(argv[i], "--verbose") == 0) {
            under.verbose = true;
        } else if (strcmp(argv[i], "--measure") == 0) {
            under.measure = true;
        } else if (is_backend || strcmp(argv[i], "--type") == 0) {
            if (i + 1 == argc)
                die_usage("--backend cpu|cuda, --type fp32|tf32|bf16|fp16|fp8", "%s needs a word",
                          argv[i]);
            *(is_backend ? &backend : &type) = argv[++i];
        } else {
            argv[n++] = argv[i];
        }
    }
    int k = 0;
    while (k < COUNT(types) && strcmp(types[k], type) != 0)
        k++;
    if (k == COUNT(types))
        die_usage("fp32, tf32, bf16, fp16 or fp8", "unknown type '%s'", type);
    bool cpu = strcmp(backend, "cpu") == 0;
    if (!cpu && strcmp(backend, "cuda") != 0)
        die_usage("cpu or cuda", "unknown backend '%s'", backend);
    if (!cpu && !backend_cuda)
        die_usage("use --backend cpu", "the CUDA backend is not linked into this program");
    bool bf16 = k == 2;
    if (cpu && k > 0 && !bf16)
        die_usage("use --type fp32 or bf16", "the CPU backend knows no %s", type);
    if (bf16 && sizeof(real) != sizeof(float))
        die_usage("use the float build", "bf16 has no double");
    if (!cpu && sizeof(real) != sizeof(float))
        die_usage("use the float build", "the CUDA backend has no double");
    const char *products = getenv("VIT_BF16_PRODUCTS");
    if (cpu && bf16 && products && strcmp(products, "onednn") == 0 && !onednn_there()) {
        SKIP("built without oneDNN");
        exit(check_report());
    }
    const char *all = getenv("TEST_FULL");
    under.be = !cpu ? backend_cuda() : bf16 ? backend_cpu_bf16() : backend_cpu();
    under.cpu = cpu;
    under.name = types[k];
    under.type = (int[]){F32, F32, BF16, F16, BF16}[k];
    under.tf32 = k == 1;
    under.fp8 = k == 4;
    if (under.fp8) /* the stand-in plays a Hopper; others do not look at it */
        setenv("VIT_STANDIN_SM", "90", 0);
    under.full = cpu || (all && strcmp(all, "0") != 0);
    return n;
}

static inline void device_init(int threads)
{
    under.be->init(&(Device){.threads = threads,
                             .type = under.type,
                             .tf32 = under.tf32,
                             .fp8 = under.fp8,
                             .measure = under.measure,
                             .ranks = 1});
}

/* ------------------------------------------------------------------------------------------------
 * Element types */

static inline bool is_half(int type)
{
    return type == BF16 || type == F16;
}

/* Distance between neighbouring numbers of the type at x; 0 at full precision. */
static inline double ulp(int type, double x)
{
    if (!is_half(type) || !isfinite(x))
        return 0;
    int bits = type == BF16 ? 8 : 11, lowest = type == BF16 ? -126 : -14, e = 0;
    frexp(x, &e);
    e = x == 0 || e - 1 < lowest ? lowest : e - 1; /* below: subnormal */
    return ldexp(1, e - (bits - 1));
}

/* To the nearest number of a 16-bit type, ties to even, infinity beyond the largest. */
static inline double round_to(int type, double x)
{
    if (!is_half(type) || !isfinite(x))
        return x;
    double step = ulp(type, x), y = nearbyint(x / step) * step;
    return fabs(y) > (type == BF16 ? 0x1.FEp127 : 65504) ? copysign(INFINITY, x) : y;
}

/* Element i of an array of the type, as memory has it. */
static inline void put(void *to, int type, long i, double x)
{
    if (!is_half(type)) {
        ((real *)to)[i] = (real)x;
        return;
    }
    double y = round_to(type, x), a = fabs(y);
    uint16_t bits;
    if (type == BF16) {
        float f = (float)y;
        uint32_t u;
        memcpy(&u, &f, 4);
        bits = isnan(y) ? 0x7FC0 : (uint16_t)(u >> 16);
    } else if (isnan(y)) {
        bits = 0x7E00;
    } else {
        int e = 0;
        frexp(y, &e); /* a = 1.f * 2^(e-1) */
        if (isinf(y))
            bits = 0x7C00;
        else if (a < 0x1p-14)
            bits = (uint16_t)(a * 0x1p24);
        else
            bits = (uint16_t)(((e + 14) << 10) + (int)(ldexp(a, 11 - e) - 1024));
        bits = (uint16_t)(bits | (signbit(y) ? 0x8000 : 0));
    }
    ((uint16_t *)to)[i] = bits;
}

static inline double get(const void *from, int type, long i)
{
    if (!is_half(type))
        return (double)((const real *)from)[i];
    uint16_t bits = ((const uint16_t *)from)[i];
    if (type == BF16) {
        uint32_t u = (uint32_t)bits << 16;
        float f;
        memcpy(&f, &u, 4);
        return (double)f;
    }
    int e = bits >> 10 & 31, m = bits & 1023;
    double a = e == 31 ? (m ? NAN : INFINITY) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
    return bits & 0x8000 ? -a : a;
}
