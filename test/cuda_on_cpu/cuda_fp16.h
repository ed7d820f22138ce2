/* cuda_fp16.h - a stand-in: IEEE half with CUDA's names and exact round-to-nearest-even.
 *
 * Subnormals are kept, overflow goes to infinity, as on the device. See cuda_runtime.h.
 */
#ifndef CUDA_ON_CPU_FP16_H
#define CUDA_ON_CPU_FP16_H

#include "cuda_runtime.h"

namespace standin
{
inline uint16_t half_bits(float x)
{
    uint32_t u = __float_as_uint(x), sign = u >> 16 & 0x8000u, a = u & 0x7FFFFFFFu;
    if (a > 0x7F800000u)
        return 0x7FFF;
    if (a >= 0x47800000u) /* 2^16 and more; 65520..65536 overflow by rounding below */
        return uint16_t(sign | 0x7C00u);
    if (a < 0x38800000u) { /* below 2^-14: adding 0.5 leaves units of 2^-24 in the last bits */
        float f = __uint_as_float(a) + 0.5f;
        return uint16_t(sign | (__float_as_uint(f) - 0x3F000000u));
    }
    a -= 0x38000000u; /* exponent bias 127 to 15 */
    return uint16_t(sign | ((a + 0xFFFu + (a >> 13 & 1)) >> 13));
}
inline float half_float(uint16_t h)
{
    uint32_t sign = uint32_t(h & 0x8000u) << 16, e = h >> 10 & 31u, m = h & 0x3FFu;
    if (e == 31)
        return __uint_as_float(sign | 0x7F800000u | m << 13);
    if (e == 0) {
        float f = float(m) * 0x1p-24f;
        return __uint_as_float(sign | __float_as_uint(f));
    }
    return __uint_as_float(sign | (e + 112) << 23 | m << 13);
}
} // namespace standin

struct __half_raw {
    unsigned short x;
};
struct __half {
    unsigned short __x;
    __half() = default;
    __half(float x) : __x(standin::half_bits(x))
    {
    }
    __half(__half_raw r) : __x(r.x)
    {
    }
    operator float() const
    {
        return standin::half_float(__x);
    }
    operator __half_raw() const
    {
        return {__x};
    }
};
struct alignas(4) __half2 {
    __half x, y;
};
typedef __half half;
typedef __half2 half2;

#define STANDIN_NARROW  __half
#define STANDIN_NARROW2 __half2
#include "narrow.h"
#undef STANDIN_NARROW
#undef STANDIN_NARROW2

/* clang-format off */
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline __half2 __float2half2_rn(float x) { return {x, x}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline unsigned short __half_as_ushort(__half x) { return x.__x; }
inline __half __ushort_as_half(unsigned short u) { return __half_raw{u}; }
inline __half2 make_half2(__half x, __half y) { return {x, y}; }
/* clang-format on */

#endif
