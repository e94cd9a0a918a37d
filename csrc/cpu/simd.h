// A thin layer over the vector extensions of GCC and Clang: about twenty operations, one source for every set. Intrinsics
// stand only where the extensions have no word (fused multiply-add, masked tails), or two instructions for one (min, max).
#pragma once
#include "../core/common.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace ost::OST_SET {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kRegisters = 32;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

// gcc drops vector_size from a typedef that depends on a template parameter: one explicit struct a type.
template <class T>
struct RawOf;
template <>
struct RawOf<float> {
  typedef float Raw __attribute__((vector_size(kVectorBytes)));
  typedef std::int32_t Mask __attribute__((vector_size(kVectorBytes)));
};
template <>
struct RawOf<double> {
  typedef double Raw __attribute__((vector_size(kVectorBytes)));
  typedef std::int64_t Mask __attribute__((vector_size(kVectorBytes)));
};

template <class T>
struct Vec {
  static constexpr int kLanes = kVectorBytes / sizeof(T);
  using Real = T;
  using Raw = typename RawOf<T>::Raw;
  using Mask = typename RawOf<T>::Mask;  // lanes of all ones or all zeros; also the integers
  Raw v;

  OST_HD Vec() {}
  OST_HD Vec(Raw raw) : v(raw) {}
  OST_HD explicit Vec(T x);

  OST_HD static Vec load(const T* p) {
    Vec r;
    __builtin_memcpy(&r.v, p, kVectorBytes);
    return r;
  }
  OST_HD void store(T* p) const { __builtin_memcpy(p, &v, kVectorBytes); }
  OST_HD static Vec load_part(const T* p, int n);  // lanes from n on are zero and not read
  OST_HD void store_part(T* p, int n) const;

  friend OST_HD Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend OST_HD Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend OST_HD Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend OST_HD Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  friend OST_HD Vec operator-(Vec a) { return -a.v; }
  friend OST_HD Mask operator<(Vec a, Vec b) { return a.v < b.v; }
};

template <class T>
OST_HD Vec<T>::Vec(T x) : v(x - Raw{}) {}  // subtracting zero is free and keeps -0; gcc 12 may miss that a loop over lanes is a broadcast

template <class T>
OST_HD Vec<T> select(typename Vec<T>::Mask test, Vec<T> yes, Vec<T> no) {
  return test ? yes.v : no.v;
}

// max(low, x) and min(high, x), x where it is NaN. gcc makes a comparison and a blend of `select`: these instructions, which give
// their second operand where there is nothing to compare, are one.
#if defined(__AVX512F__)
OST_HD Vec<float> at_least(Vec<float> x, float low) { return (Vec<float>::Raw)_mm512_max_ps((__m512)Vec<float>(low).v, (__m512)x.v); }
OST_HD Vec<float> at_most(Vec<float> x, float high) { return (Vec<float>::Raw)_mm512_min_ps((__m512)Vec<float>(high).v, (__m512)x.v); }
OST_HD Vec<double> at_least(Vec<double> x, double low) {
  return (Vec<double>::Raw)_mm512_max_pd((__m512d)Vec<double>(low).v, (__m512d)x.v);
}
OST_HD Vec<double> at_most(Vec<double> x, double high) {
  return (Vec<double>::Raw)_mm512_min_pd((__m512d)Vec<double>(high).v, (__m512d)x.v);
}
#elif defined(__AVX2__)
OST_HD Vec<float> at_least(Vec<float> x, float low) { return (Vec<float>::Raw)_mm256_max_ps((__m256)Vec<float>(low).v, (__m256)x.v); }
OST_HD Vec<float> at_most(Vec<float> x, float high) { return (Vec<float>::Raw)_mm256_min_ps((__m256)Vec<float>(high).v, (__m256)x.v); }
OST_HD Vec<double> at_least(Vec<double> x, double low) {
  return (Vec<double>::Raw)_mm256_max_pd((__m256d)Vec<double>(low).v, (__m256d)x.v);
}
OST_HD Vec<double> at_most(Vec<double> x, double high) {
  return (Vec<double>::Raw)_mm256_min_pd((__m256d)Vec<double>(high).v, (__m256d)x.v);
}
#else
template <class T>
OST_HD Vec<T> at_least(Vec<T> x, T low) {
  return select(x < Vec<T>(low), Vec<T>(low), x);
}
template <class T>
OST_HD Vec<T> at_most(Vec<T> x, T high) {
  return select(Vec<T>(high) < x, Vec<T>(high), x);
}
#endif

template <class T>
OST_HD Vec<T> clamp(Vec<T> x, T low, T high) {  // NaN passes
  return at_most(at_least(x, low), high);
}

#if defined(__AVX512F__)
OST_HD Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>::Raw)_mm512_fmadd_ps((__m512)a.v, (__m512)b.v, (__m512)c.v);
}
OST_HD Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>::Raw)_mm512_fmadd_pd((__m512d)a.v, (__m512d)b.v, (__m512d)c.v);
}
template <>
OST_HD Vec<float> Vec<float>::load_part(const float* p, int n) {
  return (Raw)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
template <>
OST_HD Vec<double> Vec<double>::load_part(const double* p, int n) {
  return (Raw)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
}
template <>
OST_HD void Vec<float>::store_part(float* p, int n) const {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
}
template <>
OST_HD void Vec<double>::store_part(double* p, int n) const {
  _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
}
#else
template <class T>
OST_HD Vec<T> Vec<T>::load_part(const T* p, int n) {
  Raw r = {};
  __builtin_memcpy(&r, p, n * sizeof(T));
  return r;
}
template <class T>
OST_HD void Vec<T>::store_part(T* p, int n) const {
  __builtin_memcpy(p, &v, n * sizeof(T));
}
#if defined(__FMA__)
OST_HD Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>::Raw)_mm256_fmadd_ps((__m256)a.v, (__m256)b.v, (__m256)c.v);
}
OST_HD Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>::Raw)_mm256_fmadd_pd((__m256d)a.v, (__m256d)b.v, (__m256d)c.v);
}
#elif defined(__aarch64__)
OST_HD Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>::Raw)vfmaq_f32((float32x4_t)c.v, (float32x4_t)a.v, (float32x4_t)b.v);
}
OST_HD Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>::Raw)vfmaq_f64((float64x2_t)c.v, (float64x2_t)a.v, (float64x2_t)b.v);
}
#else  // no fused instruction: two roundings, the same ones everywhere in this set
template <class T>
OST_HD Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  return a.v * b.v + c.v;
}
#endif
#endif

#if defined(__AVX512F__)
OST_HD Vec<float> square_root(Vec<float> x) { return (Vec<float>::Raw)_mm512_sqrt_ps((__m512)x.v); }
OST_HD Vec<double> square_root(Vec<double> x) { return (Vec<double>::Raw)_mm512_sqrt_pd((__m512d)x.v); }
#elif defined(__AVX2__)
OST_HD Vec<float> square_root(Vec<float> x) { return (Vec<float>::Raw)_mm256_sqrt_ps((__m256)x.v); }
OST_HD Vec<double> square_root(Vec<double> x) { return (Vec<double>::Raw)_mm256_sqrt_pd((__m256d)x.v); }
#elif defined(__SSE2__)
OST_HD Vec<float> square_root(Vec<float> x) { return (Vec<float>::Raw)_mm_sqrt_ps((__m128)x.v); }
OST_HD Vec<double> square_root(Vec<double> x) { return (Vec<double>::Raw)_mm_sqrt_pd((__m128d)x.v); }
#else
template <class T>
OST_HD Vec<T> square_root(Vec<T> x) {
  for (int i = 0; i < Vec<T>::kLanes; ++i) x.v[i] = T(__builtin_sqrt(x.v[i]));  // the square root of a float is the same by way of double
  return x;
}
#endif

template <class T>
OST_HD Vec<T> keep_lanes(Vec<T> x, Index n) {  // zeros from lane n on
  typename Vec<T>::Mask lane;
#pragma GCC unroll 16
  for (int i = 0; i < Vec<T>::kLanes; ++i) lane[i] = i;
  return select(lane < (typename Vec<T>::Mask{} + static_cast<decltype(lane[0] + 0)>(n)), x, Vec<T>(T(0)));
}

template <class T>
OST_HD T sum_lanes(Vec<T> x) {  // in a fixed order
  T s = 0;
  for (int i = 0; i < Vec<T>::kLanes; ++i) s += x.v[i];
  return s;
}

// Words of 32 bits, one a lane of floats.
typedef std::uint32_t Words __attribute__((vector_size(kVectorBytes)));
using Ints = typename RawOf<float>::Mask;
typedef std::uint64_t LongWords __attribute__((vector_size(kVectorBytes)));

// Products of the words at even places, of 64 bits.
OST_HD LongWords multiply_even(Words a, Words b) {
#if defined(__AVX512F__)
  return (LongWords)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (LongWords)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (LongWords)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return ((LongWords)a & 0xffffffffu) * ((LongWords)b & 0xffffffffu);
#endif
}

// In each 16 bytes: the four words of lane 0 of the four vectors become the first one's, those of lane 1 the second one's, and so on.
OST_HD void transpose_fours(Words* w) {
#if defined(__AVX512F__)
  const __m512i a = (__m512i)w[0], b = (__m512i)w[1], c = (__m512i)w[2], d = (__m512i)w[3];
  const __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
  const __m512i ab1 = _mm512_unpackhi_epi32(a, b), cd1 = _mm512_unpackhi_epi32(c, d);
  w[0] = (Words)_mm512_unpacklo_epi64(ab, cd), w[1] = (Words)_mm512_unpackhi_epi64(ab, cd);
  w[2] = (Words)_mm512_unpacklo_epi64(ab1, cd1), w[3] = (Words)_mm512_unpackhi_epi64(ab1, cd1);
#elif defined(__AVX2__)
  const __m256i a = (__m256i)w[0], b = (__m256i)w[1], c = (__m256i)w[2], d = (__m256i)w[3];
  const __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
  const __m256i ab1 = _mm256_unpackhi_epi32(a, b), cd1 = _mm256_unpackhi_epi32(c, d);
  w[0] = (Words)_mm256_unpacklo_epi64(ab, cd), w[1] = (Words)_mm256_unpackhi_epi64(ab, cd);
  w[2] = (Words)_mm256_unpacklo_epi64(ab1, cd1), w[3] = (Words)_mm256_unpackhi_epi64(ab1, cd1);
#else
  const Words a = w[0], b = w[1], c = w[2], d = w[3];
  for (int i = 0; i < 4; ++i) w[i] = Words{a[i], b[i], c[i], d[i]};
#endif
}

// A mask from 32-bit integers, of which it takes as many as it has lanes.
OST_HD void load_mask(const std::int32_t* p, Vec<float>::Mask* mask) { __builtin_memcpy(mask, p, sizeof *mask); }
OST_HD void load_mask(const std::int32_t* p, Vec<double>::Mask* mask) {
  typedef std::int32_t Half __attribute__((vector_size(kVectorBytes / 2)));
  Half half;
  __builtin_memcpy(&half, p, sizeof half);
  *mask = __builtin_convertvector(half, Vec<double>::Mask);
}

// Eight numbers as doubles, in as many vectors as they take.
struct EightDoubles {
  static constexpr int kVectors = 8 / Vec<double>::kLanes;
  Vec<double> v[kVectors];

  OST_HD static EightDoubles load(const double* p) {
    EightDoubles out;
    for (int i = 0; i < kVectors; ++i) out.v[i] = Vec<double>::load(p + i * Vec<double>::kLanes);
    return out;
  }
  OST_HD static EightDoubles load(const float* p) {
    EightDoubles out;
    for (int i = 0; i < kVectors; ++i) {
      typedef float Half __attribute__((vector_size(kVectorBytes / 2)));
      Half half;
      __builtin_memcpy(&half, p + i * Vec<double>::kLanes, sizeof half);
      out.v[i] = __builtin_convertvector(half, Vec<double>::Raw);
    }
    return out;
  }
};

// Rounds to the nearest integer by the large-constant trick, which leaves the integer in the low bits: |x| < 2^21.
template <class T>
struct RoundMagic;
template <>
struct RoundMagic<float> {
  static constexpr float value = 12582912.0f;
};  // 1.5 * 2^23
template <>
struct RoundMagic<double> {
  static constexpr double value = 6755399441055744.0;
};  // 1.5 * 2^52

}  // namespace ost::OST_SET
