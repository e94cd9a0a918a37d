// A thin layer over the vector extensions of GCC and Clang: about twenty operations, one source for every set. Intrinsics
// stand only where the extensions have no word (fused multiply-add, masked tails).
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
template <class T>
OST_HD Vec<T> clamp(Vec<T> x, T low, T high) {  // NaN passes: both comparisons are false
  x = select(x < Vec<T>(low), Vec<T>(low), x);
  return select(Vec<T>(high) < x, Vec<T>(high), x);
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
