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

  // V is T, or a vector of them.
  template <class V>
  OST_HD void apply(V& p, V grad, V& m, V& v) const {
    const V g = grad + V(decay) * p;
    m = V(b1) * m + V(c1) * g;
    v = V(b2) * v + V(c2) * g * g;
    p = V(keep) * p - V(rate) * m / (square_root(v) * V(root) + V(eps));
  }
};

}  // namespace ost::OST_SET
