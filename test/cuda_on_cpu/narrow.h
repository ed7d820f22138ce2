/* narrow.h - what cuda_bf16.h and cuda_fp16.h define alike, for STANDIN_NARROW and its pair.
 *
 * Included once by each, so there is no include guard. fma is exact before its one rounding in all
 * but ties that float's own rounding makes, which double avoids.
 */
/* clang-format off */
#define T STANDIN_NARROW
#define T2 STANDIN_NARROW2
inline T operator+(T a, T b) { return T(float(a) + float(b)); }
inline T operator-(T a, T b) { return T(float(a) - float(b)); }
inline T operator*(T a, T b) { return T(float(a) * float(b)); }
inline T operator/(T a, T b) { return T(float(a) / float(b)); }
inline T operator-(T a) { return T(-float(a)); }
inline T &operator+=(T &a, T b) { return a = a + b; }
inline T &operator-=(T &a, T b) { return a = a - b; }
inline T &operator*=(T &a, T b) { return a = a * b; }
inline T &operator/=(T &a, T b) { return a = a / b; }
inline bool operator==(T a, T b) { return float(a) == float(b); }
inline bool operator!=(T a, T b) { return float(a) != float(b); }
inline bool operator<(T a, T b) { return float(a) < float(b); }
inline bool operator>(T a, T b) { return float(a) > float(b); }
inline bool operator<=(T a, T b) { return float(a) <= float(b); }
inline bool operator>=(T a, T b) { return float(a) >= float(b); }
inline T __hadd(T a, T b) { return a + b; }
inline T __hsub(T a, T b) { return a - b; }
inline T __hmul(T a, T b) { return a * b; }
inline T __hdiv(T a, T b) { return a / b; }
inline T __hneg(T a) { return -a; }
inline T __hfma(T a, T b, T c) { return T(float(double(a) * double(b) + double(c))); }
inline T __hmax(T a, T b) { return T(fmaxf(a, b)); }
inline T __hmin(T a, T b) { return T(fminf(a, b)); }
inline bool __hgt(T a, T b) { return a > b; }
inline bool __hlt(T a, T b) { return a < b; }
inline bool __hisnan(T a) { return float(a) != float(a); }
inline T2 __hadd2(T2 a, T2 b) { return {a.x + b.x, a.y + b.y}; }
inline T2 __hsub2(T2 a, T2 b) { return {a.x - b.x, a.y - b.y}; }
inline T2 __hmul2(T2 a, T2 b) { return {a.x * b.x, a.y * b.y}; }
inline T2 __hfma2(T2 a, T2 b, T2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
inline float __low2float(T2 v) { return v.x; }
inline float __high2float(T2 v) { return v.y; }
#undef T
#undef T2
/* clang-format on */
