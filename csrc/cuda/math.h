// The functions that cells call, on single numbers: the compiler's own, without fast-math.
#pragma once
#include <cmath>

#include "../core/common.h"

namespace ost::OST_SET {

OST_HD float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
OST_HD double fma(double a, double b, double c) { return ::fma(a, b, c); }
OST_HD float tanh(float x) { return ::tanhf(x); }
OST_HD double tanh(double x) { return ::tanh(x); }
OST_HD float exp(float x) { return ::expf(x); }
OST_HD double exp(double x) { return ::exp(x); }
OST_HD float sigmoid(float x) { return 1.0f / (1.0f + ::expf(-x)); }
OST_HD double sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }
OST_HD float select(bool test, float yes, float no) { return test ? yes : no; }
OST_HD double select(bool test, double yes, double no) { return test ? yes : no; }

// A float whose functions are those of the special-function unit, for cells whose words have 2 bytes:
// sigmoid and tanh are within 2^-21, and the slope of tanh within 2^-20, where such a word is within
// 2^-12 at best. (The tanh of that unit is not: its error of 2^-11 would change the decay of a forget
// gate near 1 by a quarter.) The emulation takes the exact functions.
struct Quick {
  float v;
  OST_HD Quick() = default;
  OST_HD Quick(float v) : v(v) {}
  OST_HD explicit operator float() const { return v; }
};
OST_HD Quick operator+(Quick a, Quick b) { return a.v + b.v; }
OST_HD Quick operator-(Quick a, Quick b) { return a.v - b.v; }
OST_HD Quick operator*(Quick a, Quick b) { return a.v * b.v; }
OST_HD Quick operator-(Quick a) { return -a.v; }
OST_HD bool operator<(Quick a, Quick b) { return a.v < b.v; }
OST_HD Quick fma(Quick a, Quick b, Quick c) { return fma(a.v, b.v, c.v); }
OST_HD Quick select(bool test, Quick yes, Quick no) { return test ? yes : no; }
#if defined(__CUDA_ARCH__)
// 1 / (1 + 2^x): 1 where the power is 0, 0 where it is infinite, NaN for NaN.
OST_HD float logistic_of_power(float x) {
  float power, out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(1 + power));
  return out;
}
constexpr float kLog2E = 1.4426950408889634f;
OST_HD Quick sigmoid(Quick x) { return logistic_of_power(-kLog2E * x.v); }
OST_HD Quick tanh(Quick x) { return ::fmaf(-2, logistic_of_power(2 * kLog2E * x.v), 1); }
#else
OST_HD Quick sigmoid(Quick x) { return sigmoid(x.v); }
OST_HD Quick tanh(Quick x) { return tanh(x.v); }
#endif

// The numbers of a cell whose products are of words with so many parts.
template <class T, int kParts>
struct CellNumbers {
  using Type = T;
};
template <>
struct CellNumbers<float, 1> {
  using Type = Quick;
};

}  // namespace ost::OST_SET
