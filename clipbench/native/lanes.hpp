// What generated programs call: element-wise functions that a compiler can put into vector registers, matrix products whose sizes
// are known when they are compiled, and the moves of a convolution. No header of the C++ library: it would double the time to compile.

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define REGISTER 64
#elif defined(__AVX__)
#define REGISTER 32
#else
#define REGISTER 16
#endif
#define INFINITE __builtin_inf()
#define INLINE static inline __attribute__((always_inline))

// What went wrong, for whoever calls: 1 is an index out of range, 2 a whole number divided by zero.
extern "C" {
__attribute__((visibility("default"))) int wrong = 0;
}

// An index that may count from the end; 0 if it is out of range.
INLINE int64_t within(int64_t index, int64_t size) {
    const int64_t found = index < 0 ? index + size : index;
    if (found >= 0 && found < size) return found;
    wrong = 1;
    return 0;
}

// ------------------------------------------------------------------------------------------------ element-wise functions

INLINE float as_real(int32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
INLINE double as_real(int64_t bits) { double x; memcpy(&x, &bits, 8); return x; }
INLINE int32_t as_bits(float x) { int32_t bits; memcpy(&bits, &x, 4); return bits; }
INLINE int64_t as_bits(double x) { int64_t bits; memcpy(&bits, &x, 8); return bits; }

// 2^n for n within the range of normal numbers.
INLINE float power_of_two(int32_t n) { return as_real((n + 127) << 23); }
INLINE double power_of_two(int64_t n) { return as_real((n + 1023) << 52); }

// The nearest whole number, and the same as an integer in the low bits of the sum.
INLINE float exp_(float x) {
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    const float shifted = x * 1.44269504088896341f + 12582912.0f, n = shifted - 12582912.0f;
    const int32_t whole = as_bits(shifted) - 0x4B400000;
    float r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t half = whole >> 1;
    return p * power_of_two(half) * power_of_two(whole - half);
}

INLINE double exp_(double x) {
    x = x > 710.0 ? 710.0 : x;
    x = x < -746.0 ? -746.0 : x;
    const double shifted = x * 1.4426950408889634074 + 6755399441055744.0, n = shifted - 6755399441055744.0;
    const int64_t whole = as_bits(shifted) - 0x4338000000000000;
    double r = x - n * 6.93145751953125e-1;
    r = r - n * 1.42860682030941723212e-6;
    const double s = r * r;
    const double p = r * ((1.26177193074810590878e-4 * s + 3.02994407707441961300e-2) * s + 9.99999999999999999910e-1);
    const double q = ((3.00198505138664455042e-6 * s + 2.52448340349684104192e-3) * s + 2.27265548208155028766e-1) * s + 2.0;
    const double e = 1.0 + 2.0 * (p / (q - p));
    const int64_t half = whole >> 1;
    return e * power_of_two(half) * power_of_two(whole - half);
}

INLINE float tanh_(float x) {
    const float size = __builtin_fabsf(x), s = x * x;
    float p = -5.70498872745e-3f;
    p = p * s + 2.06390887954e-2f;
    p = p * s - 5.37397155531e-2f;
    p = p * s + 1.33314422036e-1f;
    p = p * s - 3.33332819422e-1f;
    const float near = p * s * x + x, far = __builtin_copysignf(1.0f - 2.0f / (exp_(2.0f * size) + 1.0f), x);
    return size < 0.625f ? near : far;
}

INLINE double tanh_(double x) {
    const double size = __builtin_fabs(x), s = x * x;
    const double p = (-9.64399179425052238628e-1 * s - 9.92877231001918586564e1) * s - 1.61468768441708447952e3;
    const double q = ((s + 1.12811678491632931402e2) * s + 2.23548839060100448583e3) * s + 4.84406305325125486048e3;
    const double near = x + x * s * (p / q), far = __builtin_copysign(1.0 - 2.0 / (exp_(2.0 * size) + 1.0), x);
    return size < 0.625 ? near : far;
}

// Of a negative number NaN, of zero -infinity, of infinity and NaN the same.
INLINE float log_(float given) {
    const bool tiny = given < 1.17549435e-38f;
    const float x = tiny ? given * 8388608.0f : given;
    const int32_t bits = as_bits(x), shifted = bits - 0x3F3504F3;
    const int32_t exponent = shifted >> 23;
    const float m = as_real((shifted & 0x007FFFFF) + 0x3F3504F3) - 1.0f, n = (float)exponent - (tiny ? 23.0f : 0.0f), s = m * m;
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    float y = p * m * s;
    y = y + n * -2.12194440e-4f;
    y = y - 0.5f * s;
    const float found = m + y + n * 0.693359375f;
    const float edge = given == 0.0f ? -(float)INFINITE : given < 0.0f ? (float)__builtin_nan("") : given;
    return given > 0.0f && given < (float)INFINITE ? found : edge;
}

INLINE double log_(double given) {
    const bool tiny = given < 2.2250738585072014e-308;
    const double x = tiny ? given * 4503599627370496.0 : given;
    const int64_t bits = as_bits(x), shifted = bits - 0x3FE6A09E667F3BCD;
    const int64_t exponent = shifted >> 52;
    const double m = as_real((shifted & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD) - 1.0, s = m * m;
    const double n = (double)(int32_t)exponent - (tiny ? 52.0 : 0.0);
    double p = 1.01875663804580931796e-4, q = m + 1.12873587189167450590e1;
    p = p * m + 4.97494994976747001425e-1;
    p = p * m + 4.70579119878881725854;
    p = p * m + 1.44989225341610930846e1;
    p = p * m + 1.79368678507819816313e1;
    p = p * m + 7.70838733755885391666;
    q = q * m + 4.52279145837532221105e1;
    q = q * m + 8.29875266912776603211e1;
    q = q * m + 7.11544750618563894466e1;
    q = q * m + 2.31251620126765340583e1;
    double y = m * (s * p / q);
    y = y - n * 2.121944400546905827679e-4;
    y = y - 0.5 * s;
    const double found = m + y + n * 0.693359375;
    const double edge = given == 0.0 ? -INFINITE : given < 0.0 ? __builtin_nan("") : given;
    return given > 0.0 && given < INFINITE ? found : edge;
}

template <typename Real> INLINE Real log1p_(Real x) {
    const Real u = (Real)1 + x, lost = u - (Real)1;
    return lost == (Real)0 || u > (Real)1e30 ? (u > (Real)1e30 ? log_(u) : x) : log_(u) * (x / lost);
}

template <typename Real> INLINE Real expm1_(Real x) {
    const Real u = exp_(x), less = u - (Real)1;
    const Real near = less * (x / log_(u));
    return u == (Real)1 ? x : less == (Real)-1 || u > (Real)1e30 ? less : near;
}

template <typename Real> INLINE Real cosh_(Real x) {
    const Real size = x < (Real)0 ? -x : x, e = exp_(size), half = exp_((Real)0.5 * size);
    return size > (Real)60 ? (Real)0.5 * half * half : (Real)0.5 * e + (Real)0.5 / e;
}

INLINE float sinh_(float x) {
    const float size = __builtin_fabsf(x), s = x * x, e = exp_(size), half = exp_(0.5f * size);
    float p = 2.03721912945e-4f;
    p = p * s + 8.33028376239e-3f;
    p = p * s + 1.66667160211e-1f;
    const float near = p * s * x + x, far = size > 60.0f ? 0.5f * half * half : 0.5f * e - 0.5f / e;
    return size < 1.0f ? near : __builtin_copysignf(far, x);
}

INLINE double sinh_(double x) {
    const double size = __builtin_fabs(x), s = x * x, e = exp_(size), half = exp_(0.5 * size);
    double p = -7.89474443963537015605e-1, q = s - 2.77711081420602794433e2;
    p = p * s - 1.63725857525983828727e2;
    p = p * s - 1.15614435765005216044e4;
    p = p * s - 3.51754964808151394800e5;
    q = q * s + 3.61578279834431989373e4;
    q = q * s - 2.11052978884890840399e6;
    const double near = x + x * s * (p / q), far = size > 60.0 ? 0.5 * half * half : 0.5 * e - 0.5 / e;
    return size < 1.0 ? near : __builtin_copysign(far, x);
}

template <typename Real> INLINE Real sigmoid_(Real x) { return (Real)1 / ((Real)1 + exp_(-x)); }

// As torch takes them: a NaN on either side is the result.
template <typename Real> INLINE Real larger(Real left, Real right) { return right > left || right != right ? right : left; }
template <typename Real> INLINE Real smaller(Real left, Real right) { return right < left || right != right ? right : left; }
template <typename Real> INLINE Real sign_(Real x) { return (Real)((x > (Real)0) - (x < (Real)0)); }

// With the sign of the divisor, as Python's.
INLINE float remainder_(float x, float y) { const float r = __builtin_fmodf(x, y); return r != 0.0f && (r < 0.0f) != (y < 0.0f) ? r + y : r; }
INLINE double remainder_(double x, double y) { const double r = __builtin_fmod(x, y); return r != 0.0 && (r < 0.0) != (y < 0.0) ? r + y : r; }

// Of whole numbers. The least number by -1 leaves the range, where x86 would end the process.
INLINE int64_t quotient(int64_t x, int64_t y) {
    if (y == 0) wrong = 2;
    return y == 0 ? 0 : y == -1 ? (int64_t)(0 - (uint64_t)x) : x / y;
}
INLINE int64_t rest(int64_t x, int64_t y) {
    if (y == 0) wrong = 2;
    return y == 0 || y == -1 ? 0 : x % y;
}
INLINE int64_t remainder_(int64_t x, int64_t y) { const int64_t r = rest(x, y); return r != 0 && (r < 0) != (y < 0) ? r + y : r; }
