// One step of an optimiser for one parameter. V is T, or a vector of them; kBuffers says how many numbers of its own a rule keeps for
// each parameter.
#pragma once
#include "common.h"

namespace ost::OST_SET {

OST_HD float square_root(float x) { return __builtin_sqrtf(x); }
OST_HD double square_root(double x) { return __builtin_sqrt(x); }

// With AdamW's decay the weight shrinks independently of the gradient.
template <class T>
struct AdamRule {
  static constexpr int kBuffers = 2;  // the mean and the mean square
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

  template <class V>
  OST_HD void apply(V& p, V grad, V& m, V& v) const {
    const V g = grad + V(decay) * p;
    m = V(b1) * m + V(c1) * g;
    v = V(b2) * v + V(c2) * g * g;
    p = V(keep) * p - V(rate) * m / (square_root(v) * V(root) + V(eps));
  }
};

// The gradient with the decay that is part of it. One of 0 is left out: 0 * infinity would be NaN.
template <class V, class T>
OST_HD V with_decay(V grad, V p, T decay) {
  return decay == T(0) ? grad : grad + p * V(decay);
}

template <class T>
struct SgdRule {
  static constexpr int kBuffers = 0;
  T rate, decay;
  explicit SgdRule(const SgdStep& s) : rate(T(s.rate)), decay(T(s.weight_decay)) {}

  template <class V>
  OST_HD void apply(V& p, V grad, V&, V&) const {
    p = p - with_decay(grad, p, decay) * V(rate);
  }
};

template <class T>
struct MomentumRule {
  static constexpr int kBuffers = 1;  // the velocity
  T rate, decay, momentum;
  bool nesterov;
  explicit MomentumRule(const SgdStep& s) : rate(T(s.rate)), decay(T(s.weight_decay)), momentum(T(s.momentum)), nesterov(s.nesterov) {}

  template <class V>
  OST_HD void apply(V& p, V grad, V& m, V&) const {
    const V g = with_decay(grad, p, decay);
    m = m * V(momentum) + g;
    p = p - (nesterov ? g + m * V(momentum) : m) * V(rate);
  }
};

template <class T>
struct RmspropRule {
  static constexpr int kBuffers = 1;  // the mean square
  T rate, decay, alpha, rest, eps;
  explicit RmspropRule(const RmspropStep& s)
      : rate(T(s.rate)), decay(T(s.weight_decay)), alpha(T(s.alpha)), rest(T(1 - s.alpha)), eps(T(s.eps)) {}

  template <class V>
  OST_HD void apply(V& p, V grad, V& m, V&) const {
    const V g = with_decay(grad, p, decay);
    m = m * V(alpha) + g * V(rest) * g;
    p = p - g / (square_root(m) + V(eps)) * V(rate);
  }
};

}  // namespace ost::OST_SET
