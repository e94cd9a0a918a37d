// Numbers of 2 bytes, as operands of products whose sums are floats.
#pragma once
#include "../core/common.h"
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include <cstring>
#endif

namespace ost::OST_SET {

constexpr float kHalfMax = 65504;
struct Half {  // IEEE binary16: 11 bits, up to kHalfMax
  std::uint16_t bits;
};
OST_HD bool beyond_half(float x) { return x > kHalfMax || x < -kHalfMax; }  // false for NaN
struct Bfloat {                                                             // the upper half of a float: 8 bits
  std::uint16_t bits;
};

#if !defined(__CUDA_ARCH__)
inline std::uint32_t bits_of(float x) {
  std::uint32_t b;
  std::memcpy(&b, &x, sizeof b);
  return b;
}
inline float float_of(std::uint32_t b) {
  float x;
  std::memcpy(&x, &b, sizeof x);
  return x;
}
#endif

OST_HD float widen(Bfloat w) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(std::uint32_t(w.bits) << 16);
#else
  return float_of(std::uint32_t(w.bits) << 16);
#endif
}
OST_HD float widen(Half w) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(w.bits));
#else
  const std::uint32_t sign = std::uint32_t(w.bits & 0x8000) << 16, magnitude = std::uint32_t(w.bits & 0x7fff) << 13;
  const std::uint32_t bits = bits_of(float_of(magnitude) * 0x1p112f);  // the other bias of the exponent, also of those below 2^-14
  return float_of(sign | (magnitude >= 31u << 23 ? 0x7f800000u | magnitude : bits));
#endif
}

// Round to the nearest, ties to even; NaN stays NaN.
template <class W>
struct Narrow;
template <>
struct Narrow<Bfloat> {
  OST_HD static Bfloat of(float x) {
#if defined(__CUDA_ARCH__)
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
    const std::uint32_t b = bits_of(x);
    if (x != x) return {std::uint16_t(b >> 16 | 64)};
    return {std::uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16)};
#endif
  }
  OST_HD static Bfloat of(Bfloat x) { return x; }
};
template <>
struct Narrow<Half> {
  OST_HD static Half of(float x) {
#if defined(__CUDA_ARCH__)
    return {__half_as_ushort(__float2half_rn(x))};
#else
    const std::uint32_t b = bits_of(x), sign = b >> 16 & 0x8000;
    const float a = float_of(b & 0x7fffffff);
    if (x != x) return {std::uint16_t(sign | 0x7e00)};
    if (a >= 65520.0f) return {std::uint16_t(sign | 0x7c00)};
    if (a < 0x1p-14f)
      return {std::uint16_t(sign | (std::uint32_t(a * 0x1p24f + 0x1p23f) - 0x800000))};  // adding 2^23 rounds to a whole number
    const std::uint32_t m = bits_of(a) - (112u << 23);
    return {std::uint16_t(sign | (m + 0xfff + (m >> 13 & 1)) >> 13)};
#endif
  }
  OST_HD static Half of(Half x) { return x; }
};
template <>
struct Narrow<float> {
  OST_HD static float of(float x) { return x; }
};
template <>
struct Narrow<double> {
  OST_HD static double of(double x) { return x; }
};

// A word of an operand as a number.
OST_HD float as_number(float w) { return w; }
OST_HD double as_number(double w) { return w; }
template <class W>
OST_HD float as_number(W w) {
  return widen(w);
}

}  // namespace ost::OST_SET
