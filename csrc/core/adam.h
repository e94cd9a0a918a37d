// One step of Adam for one parameter. With AdamW's decay the weight shrinks independently of the
// gradient.
#pragma once
#include "common.h"

namespace ost::OST_SET {

OST_HD float square_root(float x) { return __builtin_sqrtf(x); }
OST_HD double square_root(double x) { return __builtin_sqrt(x); }

template <class T>
struct AdamRule {
  T b1, b2, c1, c2, eps, rate, root, decay, keep;

  explicit AdamRule(const AdamStep& s)
      : b1(T(s.beta1)),
        b2(T(s.beta2)),
        c1(T(1 - s.beta1)),
        c2(T(1 - s.beta2)),
        eps(T(s.eps)),
        rate(T(s.rate / s.correction1)),
        root(T(1 / __builtin_sqrt(s.correction2))),
        decay(s.decoupled ? T(0) : T(s.weight_decay)),
        keep(s.decoupled ? T(1 - s.rate * s.weight_decay) : T(1)) {}

  OST_HD void apply(T& p, T grad, T& m, T& v) const {
    const T g = grad + decay * p;
    m = b1 * m + c1 * g;
    v = b2 * v + c2 * g * g;
    p = keep * p - rate * m / (square_root(v) * root + eps);
  }
};

}  // namespace ost::OST_SET
