/* cuda_fp8.h - a stand-in: conversions to and from the two 8-bit types, with CUDA's names.
 *
 * E4M3: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinity, the highest code is NaN, the
 * largest number 448. E5M2: 5 and 2 bits (bias 15), as half's upper byte; largest 57344. Both have
 * subnormals. Rounding is to nearest even; only saturation to the largest finite number is here.
 */
#ifndef CUDA_ON_CPU_FP8_H
#define CUDA_ON_CPU_FP8_H

#include "cuda_runtime.h"

#include <math.h>

typedef unsigned char __nv_fp8_storage_t;
typedef unsigned short __nv_fp8x2_storage_t;
enum __nv_saturation_t { __NV_SATFINITE = 1 };
enum __nv_fp8_interpretation_t { __NV_E4M3 = 0, __NV_E5M2 = 1 };

namespace standin
{
struct Fp8Format {
    int mantissa, lowest; /* bits; exponent of the smallest normal number */
    unsigned most;        /* code of the largest finite number */
};
inline Fp8Format fp8_format(__nv_fp8_interpretation_t kind)
{
    return kind == __NV_E4M3 ? Fp8Format{3, -6, 0x7E} : Fp8Format{2, -14, 0x7B};
}
inline __nv_fp8_storage_t fp8_bits(float x, __nv_fp8_interpretation_t kind)
{
    const Fp8Format f = fp8_format(kind);
    const int cut = 23 - f.mantissa; /* bits that are rounded away */
    unsigned a = __float_as_uint(x) & 0x7FFFFFFFu, sign = __float_as_uint(x) >> 24 & 0x80, code;
    if (isnan(x))
        return 0x7F;
    if (fabsf(x) < ldexpf(1, f.lowest)) /* subnormal: so many units */
        code = unsigned(nearbyintf(fabsf(x) * ldexpf(1, f.mantissa - f.lowest)));
    else /* the carry of rounding goes into the exponent by itself */
        code = ((a + (1u << (cut - 1)) - 1 + (a >> cut & 1)) >> cut) -
               (unsigned(126 + f.lowest) << f.mantissa);
    return __nv_fp8_storage_t(sign | (code < f.most ? code : f.most));
}
inline float fp8_float(__nv_fp8_storage_t bits, __nv_fp8_interpretation_t kind)
{
    const Fp8Format f = fp8_format(kind);
    const int code = bits & 0x7F, e = code >> f.mantissa, m = code & ((1 << f.mantissa) - 1);
    float a = e ? ldexpf(float(m + (1 << f.mantissa)), e - 1 + f.lowest - f.mantissa)
                : ldexpf(float(m), f.lowest - f.mantissa);
    if (code > int(f.most))
        a = kind == __NV_E5M2 && m == 0 ? INFINITY : NAN;
    return bits & 0x80 ? -a : a;
}
} // namespace standin

/* x in the lower byte */
inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 x, __nv_saturation_t,
                                                     __nv_fp8_interpretation_t kind)
{
    return __nv_fp8x2_storage_t(standin::fp8_bits(x.x, kind) | standin::fp8_bits(x.y, kind) << 8);
}

#endif
