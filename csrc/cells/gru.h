// Cho et al. (2014). Gates r z n in public order; z keeps the old state, as in every framework.
//     r, z = sigmoid(a_r, a_z)   h' = (1 - z) n + z h
// reset-after  (cuDNN, PyTorch, Keras' default):  n = tanh(n_x + r n_h),  n_x = W_n x + b_in,  n_h = R_n h + b_hn
// reset-before (the paper, ONNX' default):        n = tanh(a_n),          a_n = W_n x + b_in + R_n (r h) + b_hn
#pragma once
#include "../core/cell.h"

namespace ost::OST_SET {

struct Gru {  // columns n_x r z n_h
  static constexpr int kColumns = 4, kGates = 3, kStates = 1, kSaved = 4, kParams = 0;
  static constexpr Columns kInput{0, 3};
  static constexpr Phase kPhases[] = {{Operand::kHidden, {1, 4}, {0, 4}}};
  static constexpr int kInputBlocks[] = {1, 2, 0}, kRecurrentBlocks[] = {1, 2, 3};

  template <int P, class V>
  OST_HD static void forward(const ForwardIn<Gru, V>& in, ForwardOut<Gru, V>& out) {
    const V r = sigmoid(in.a[1]), z = sigmoid(in.a[2]), nh = in.a[3];
    const V n = tanh(fma(r, nh, in.a[0]));
    out.state[0] = fma(z, in.state[0] - n, n);
    out.saved[0] = r, out.saved[1] = z, out.saved[2] = n, out.saved[3] = nh;
  }

  template <int P, class V>
  OST_HD static void backward(const BackwardIn<Gru, V>& in, BackwardOut<Gru, V>& out) {
    const V r = in.saved[0], z = in.saved[1], n = in.saved[2], nh = in.saved[3];
    const V h = in.previous[0], dh1 = in.dstate[0];
    const V da_n = dh1 * (V(1) - z) * fma(-n, n, V(1));
    out.da[0] = da_n;
    out.da[1] = da_n * nh * r * (V(1) - r);
    out.da[2] = dh1 * (h - n) * z * (V(1) - z);
    out.da[3] = da_n * r;
    out.dprevious[0] = fma(dh1, z, out.dprevious[0]);
  }
};

struct GruResetBefore {  // columns r z n; phase 0 emits r h, which feeds the second product
  static constexpr int kColumns = 3, kGates = 3, kStates = 1, kSaved = 3, kParams = 0;
  static constexpr Columns kInput{0, 3};
  static constexpr Phase kPhases[] = {{Operand::kHidden, {0, 2}, {0, 2}}, {Operand::kEmitted, {2, 3}, {2, 3}}};
  static constexpr int kInputBlocks[] = {0, 1, 2}, kRecurrentBlocks[] = {0, 1, 2};

  template <int P, class V>
  OST_HD static void forward(const ForwardIn<GruResetBefore, V>& in, ForwardOut<GruResetBefore, V>& out) {
    if constexpr (P == 0) {
      out.saved[0] = sigmoid(in.a[0]);
      out.saved[1] = sigmoid(in.a[1]);
      out.emitted = emitted(out.saved, in.state, in.state);  // r h: no state after the step in it
    } else {
      const V z = in.saved[1], n = tanh(in.a[2]);
      out.state[0] = fma(z, in.state[0] - n, n);
      out.saved[2] = n;
    }
  }

  // The operand of R_n, which the backward pass needs for its gradient.
  template <class V>
  OST_HD static V emitted(const V* saved, const V* previous, const V*) {
    return saved[0] * previous[0];
  }

  template <int P, class V>
  OST_HD static void backward(const BackwardIn<GruResetBefore, V>& in, BackwardOut<GruResetBefore, V>& out) {
    const V r = in.saved[0], z = in.saved[1], n = in.saved[2], h = in.previous[0], dh1 = in.dstate[0];
    if constexpr (P == 1) {
      out.da[2] = dh1 * (V(1) - z) * fma(-n, n, V(1));
    } else {
      out.da[0] = in.demitted * h * r * (V(1) - r);
      out.da[1] = dh1 * (h - n) * z * (V(1) - z);
      out.dprevious[0] = fma(in.demitted, r, fma(dh1, z, out.dprevious[0]));
    }
  }
};

}  // namespace ost::OST_SET
