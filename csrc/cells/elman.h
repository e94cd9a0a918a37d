// Elman (1990), "Finding structure in time"; with ReLU: Le, Jaitly, Hinton (2015), the IRNN's cell.
//     h' = phi(a),   a = W x + b_ih + R h + b_hh
// phi' needs h' alone: 1 - h'^2 for tanh, [h' > 0] for ReLU. So nothing is saved.
#pragma once
#include "../core/cell.h"

namespace ost::OST_SET {

struct Tanh {
  template <class V>
  OST_HD static V forward(V a) {
    return tanh(a);
  }
  template <class V>
  OST_HD static V slope(V h) {
    return fma(-h, h, V(1));
  }
};
struct Relu {
  template <class V>
  OST_HD static V forward(V a) {
    return select(a < V(0), V(0), a);
  }  // NaN passes
  template <class V>
  OST_HD static V slope(V h) {
    return select(V(0) < h, V(1), V(0));
  }
};

template <class Phi>
struct Elman {
  static constexpr int kColumns = 1, kGates = 1, kStates = 1, kSaved = 0, kParams = 0;
  static constexpr Columns kInput{0, 1};
  static constexpr Phase kPhases[] = {{Operand::kHidden, {0, 1}, {0, 1}}};
  static constexpr int kInputBlocks[] = {0}, kRecurrentBlocks[] = {0};

  template <int P, class V>
  OST_HD static void forward(const ForwardIn<Elman, V>& in, ForwardOut<Elman, V>& out) {
    out.state[0] = Phi::forward(in.a[0]);
  }
  template <int P, class V>
  OST_HD static void backward(const BackwardIn<Elman, V>& in, BackwardOut<Elman, V>& out) {
    out.da[0] = in.dstate[0] * Phi::slope(in.next[0]);
  }
};

}  // namespace ost::OST_SET
