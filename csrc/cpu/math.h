// exp, sigmoid and tanh on vectors. One reduction serves all three: x = n ln2 + r, |r| <= ln2/2, and
// expm1(r) = r + r^2 q(r) with q a near-minimax polynomial (Chebyshev nodes; relative error of expm1(r) 2.5e-8 for
// float32, 4e-17 for float64). Largest errors seen, in ULP, over 10^7 points each (tests/test_math.py repeats them):
//            float32   float64   range
//   exp      1.5       1.5       [-87, 88], [-708, 709]; clamped outside, never 0 or infinity
//   sigmoid  3         3         all x; below -88 (-709) the value at the clamp, or 0 with denormals flushed
//   tanh     3         3         all x
// NaN passes through all three.
#pragma once
#include "simd.h"

namespace ost::OST_SET {

template <class T>
struct ExpTable;
template <>
struct ExpTable<float> {
  static constexpr float kLow = -87.0f, kHigh = 88.0f, kLog2e = 1.44269504f;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // High has 9 bits: n * High is exact
  static constexpr int kBias = 127, kMantissa = 23;
  static constexpr float kQ[] = {0.0013926213466332443f, 0.00836320297157585495f, 0.0416665544376859389f, 0.166665768459939763f, 0.5f};
};
template <>
struct ExpTable<double> {
  static constexpr double kLow = -708.0, kHigh = 709.0, kLog2e = 1.4426950408889634;
  static constexpr double kLn2High = 0.693147180369123816490, kLn2Low = 1.90821492927058770002e-10;
  static constexpr int kBias = 1023, kMantissa = 52;
  static constexpr double kQ[] = {
      2.51004241570050668e-8, 2.76201387197339956e-7, 2.75572683786841929e-6, 2.48015211902177277e-5, 0.000198412698631059687,
      0.00138888889172817933, 0.00833333333333005135, 0.0416666666666239915,  0.166666666666666675,   0.5};
};

// e^x = scale (1 + m): x must lie in the table's range (or be NaN).
template <class T>
struct ExpParts {
  Vec<T> scale, m;
};

template <class T>
OST_HD ExpParts<T> exp_parts(Vec<T> x) {
  using V = Vec<T>;
  using E = ExpTable<T>;
  const V magic(RoundMagic<T>::value);
  const V shifted = fma(x, V(E::kLog2e), magic);
  const V n = shifted - magic;
  V r = fma(n, V(-E::kLn2High), x);
  r = fma(n, V(-E::kLn2Low), r);
  V q(E::kQ[0]);
#pragma GCC unroll 16
  for (unsigned i = 1; i < sizeof(E::kQ) / sizeof(T); ++i) q = fma(q, r, V(E::kQ[i]));
  typename V::Mask bits;
  __builtin_memcpy(&bits, &shifted.v, sizeof bits);
  bits = (bits + E::kBias) << E::kMantissa;  // the integer n stands in the low bits of `shifted`
  V scale;
  __builtin_memcpy(&scale.v, &bits, sizeof bits);
  return {scale, fma(r * r, q, r)};
}

template <class T>
OST_HD Vec<T> exp(Vec<T> x) {
  const ExpParts<T> e = exp_parts(clamp(x, ExpTable<T>::kLow, ExpTable<T>::kHigh));
  return fma(e.scale, e.m, e.scale);
}

template <class T>
OST_HD Vec<T> sigmoid(Vec<T> x) {
  return Vec<T>(1) / (Vec<T>(1) + exp(-x));
}

// tanh(x) = u / (u + 2), u = expm1(2x). Near zero n = 0 and u has its full relative accuracy, which 2 sigmoid(2x) - 1 has not.
template <class T>
OST_HD Vec<T> tanh(Vec<T> x) {
  const T bound = sizeof(T) == 4 ? T(10) : T(20);  // beyond, tanh rounds to 1
  const Vec<T> t = clamp(x, -bound, bound);
  const ExpParts<T> e = exp_parts(t + t);
  const Vec<T> u = fma(e.scale, e.m, e.scale - Vec<T>(1));
  return u / (u + Vec<T>(2));
}

}  // namespace ost::OST_SET
