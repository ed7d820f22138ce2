/* cuda_bf16.h - a stand-in: bfloat16 with CUDA's names and exact round-to-nearest-even.
 *
 * Arithmetic is done in float and rounded once, as the device does; fma too. See cuda_runtime.h.
 */
#ifndef CUDA_ON_CPU_BF16_H
#define CUDA_ON_CPU_BF16_H

#include "cuda_runtime.h"

namespace standin
{
inline uint16_t bf16_bits(float x)
{
    uint32_t u = __float_as_uint(x);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u)
        return 0x7FFF; /* every NaN becomes the device's */
    return uint16_t((u + 0x7FFFu + (u >> 16 & 1)) >> 16);
}
inline float bf16_float(uint16_t h)
{
    return __uint_as_float(uint32_t(h) << 16);
}
} // namespace standin

struct __nv_bfloat16_raw {
    unsigned short x;
};
struct __nv_bfloat16 {
    unsigned short __x;
    __nv_bfloat16() = default;
    __nv_bfloat16(float x) : __x(standin::bf16_bits(x))
    {
    }
    __nv_bfloat16(__nv_bfloat16_raw r) : __x(r.x)
    {
    }
    operator float() const
    {
        return standin::bf16_float(__x);
    }
    operator __nv_bfloat16_raw() const
    {
        return {__x};
    }
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

#define STANDIN_NARROW  __nv_bfloat16
#define STANDIN_NARROW2 __nv_bfloat162
#include "narrow.h"
#undef STANDIN_NARROW
#undef STANDIN_NARROW2

/* clang-format off */
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __nv_bfloat16 __double2bfloat16(double x)
{
    /* to odd first, so that the second rounding sees what the first cut off */
    float f = float(x);
    uint32_t u = __float_as_uint(f);
    if (double(f) != x && x == x && !std::isinf(f) && !(u & 1))
        u = std::fabs(double(f)) > std::fabs(x) ? u - 1 : u + 1;
    return __uint_as_float(u);
}
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return {x, x}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.__x; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) { return __nv_bfloat16_raw{u}; }
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
/* clang-format on */

#endif
