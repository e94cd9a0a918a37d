// Functions that a call chooses by number, with their slopes: the number and two parameters of each are scalars of the call.
//
//     tanh  sigmoid  exponential: e^a  softplus: log(1 + e^a)  softsign: a / (1 + |a|)  relu: max(0, a)
//     affine: alpha a + beta                          leaky_relu: a >= 0 ? a : alpha a
//     thresholded_relu: a > alpha ? a : 0             scaled_tanh: alpha tanh(beta a)
//     hard_sigmoid: max(0, min(1, alpha a + beta))    elu: a >= 0 ? a : alpha (e^a - 1)
//
// With a clip, a function is given a within [-clip, clip], and its slope is zero beyond.
#pragma once
#include "../core/cell.h"

namespace ost::OST_SET {

// In the order of FUNCTIONS in python/ostinato/_functions.py.
enum class Function : int {
  kTanh,
  kSigmoid,
  kRelu,
  kAffine,
  kLeakyRelu,
  kThresholdedRelu,
  kScaledTanh,
  kHardSigmoid,
  kElu,
  kSoftsign,
  kSoftplus,
  kExponential
};
constexpr int kFunctionScalars = 3;  // its number, alpha, beta

template <class V>
struct Activated {
  V value, slope;
};

template <class V>
OST_HD V absolute(V a) {
  return select(a < V(0), -a, a);
}
// log(1 + u) = 2 atanh(s) with s = u / (u + 2), for 0 <= u <= 1: s <= 1/3, and the first term left out is below a rounding.
template <class V>
OST_HD V log1p_of_unit(V u) {
  const V s = u / (u + V(2)), square = s * s;
  constexpr int last = sizeof(RealOf<V>) == 4 ? 7 : 16;
  V sum(RealOf<V>(1) / (2 * last + 1));
#pragma GCC unroll 1
  for (int k = last - 1; k >= 0; --k) sum = fma(sum, square, V(RealOf<V>(1) / RealOf<V>(2 * k + 1)));
  return (s + s) * sum;
}
template <class V>
OST_HD Activated<V> elu(V a, V alpha) {
  const V t = tanh(a * V(RealOf<V>(0.5))), minus = alpha * ((t + t) / (V(1) - t));  // e^a - 1, exact near 0
  const auto below = a < V(0);
  return {select(below, minus, a), select(below, minus + alpha, V(1))};
}

// One function for all cells: a branch that all lanes take, and a call, cost less than its copies.
template <class V, class T = RealOf<V>>
OST_ONCE Activated<V> activated(const T* function, V a) {
  const V zero(T(0)), one(T(1)), alpha(function[1]), beta(function[2]);
  switch (Function(int(function[0]))) {
    case Function::kTanh: {
      const V y = tanh(a);
      return {y, fma(-y, y, one)};
    }
    case Function::kSigmoid: {
      const V y = sigmoid(a);
      return {y, y * (one - y)};
    }
    case Function::kRelu:
      return {select(a < zero, zero, a), select(zero < a, one, zero)};
    case Function::kAffine:
      return {fma(alpha, a, beta), alpha};
    case Function::kLeakyRelu:
      return {select(a < zero, alpha * a, a), select(a < zero, alpha, one)};
    case Function::kThresholdedRelu:  // NaN passes
      return {select(alpha < a, a, select(a < alpha, zero, a - alpha)), select(alpha < a, one, zero)};
    case Function::kScaledTanh: {
      const V y = tanh(beta * a);
      return {alpha * y, alpha * beta * fma(-y, y, one)};
    }
    case Function::kHardSigmoid: {
      const V y = fma(alpha, a, beta);
      return {select(y < zero, zero, select(one < y, one, y)), select(zero < y, select(y < one, alpha, zero), zero)};
    }
    case Function::kElu:
      return elu(a, alpha);
    case Function::kSoftsign: {
      const V below = one + absolute(a), scale = one / below;
      return {a / below, scale * scale};  // a * scale would lose a large a, whose scale is below the normal numbers
    }
    case Function::kSoftplus:
      return {select(a < zero, zero, a) + log1p_of_unit(exp(-absolute(a))), sigmoid(a)};
    case Function::kExponential:
    default: {
      constexpr bool single = sizeof(T) == 4;
      const V y = select(V(T(single ? 88.72283 : 709.782712893384)) < a, V(T(__builtin_inf())), exp(a));  // exp stops short of infinity
      return {y, y};
    }
  }
}
template <class V, class T = RealOf<V>>
OST_HD Activated<V> activated(const T* function, T clip, V a) {
  if (!(clip > 0)) return activated(function, a);
  const V low(-clip), high(clip);
  Activated<V> out = activated(function, select(a < low, low, select(high < a, high, a)));
  out.slope = select(a < low, V(T(0)), select(high < a, V(T(0)), out.slope));
  return out;
}

}  // namespace ost::OST_SET
