// Ba, Kiros, Hinton (2016), "Layer normalization": the LSTM of the supplement, gates i f g o.
//     a = LN(W x) gain_ih + LN(R h) gain_hh + b   i, f, o = sigmoid(a_i, a_f, a_o)   g = tanh(a_g)
//     c' = f c + i g   h' = o tanh(LN(c') gain_c + shift_c)
// LN makes a row zero mean and unit variance: all 4H columns of a product together, and c' over H. c' itself is carried.
// The biases of both products come after their norms, as the shift.
#pragma once
#include "../core/cell.h"

namespace ost::OST_SET {

struct LstmLayerNorm {
  static constexpr int kColumns = 4, kGates = 4, kStates = 2, kSaved = 4, kParams = 2;  // gain_c, shift_c
  static constexpr Columns kInput{0, 4};
  static constexpr Phase kPhases[] = {{Operand::kHidden, {0, 4}, {0, 4}}, {Operand::kEmitted, {0, 0}, {0, 0}, RowOp::kLayerNorm}};
  static constexpr ProductOp kProductOps[] = {{0, {0, 4}, RowOp::kLayerNorm}, {1, {0, 4}, RowOp::kLayerNorm}};
  static constexpr UnitWeights kUnitWeights[] = {
      {"weight_ln_ih", 4, true}, {"weight_ln_hh", 4, true}, {"weight_ln_c", 1, true}, {"bias_ln_c", 1, true}};
  static constexpr int kInputBlocks[] = {0, 1, 2, 3}, kRecurrentBlocks[] = {0, 1, 2, 3};

  template <int P, class V>
  OST_HD static void forward(const ForwardIn<LstmLayerNorm, V>& in, ForwardOut<LstmLayerNorm, V>& out) {
    if constexpr (P == 0) {
      const V i = sigmoid(in.a[0]), f = sigmoid(in.a[1]), g = tanh(in.a[2]), o = sigmoid(in.a[3]);
      out.emitted = fma(f, in.state[1], i * g);
      out.saved[0] = i, out.saved[1] = f, out.saved[2] = g, out.saved[3] = o;
    } else {
      out.state[0] = in.saved[3] * tanh(fma(in.param[0], in.carried, in.param[1]));
      out.state[1] = in.emitted;
    }
  }
  template <class V>
  OST_HD static V emitted(const V*, const V*, const V* next) {
    return next[1];
  }
  template <int P, class V>
  OST_HD static void backward(const BackwardIn<LstmLayerNorm, V>& in, BackwardOut<LstmLayerNorm, V>& out) {
    const V i = in.saved[0], f = in.saved[1], g = in.saved[2], o = in.saved[3];
    const V s = tanh(fma(in.param[0], in.carried, in.param[1]));
    if constexpr (P == 1) {
      const V du = in.dstate[0] * o * fma(-s, s, V(1));
      out.dcarried = du * in.param[0];
      out.dparam[0] = du * in.carried, out.dparam[1] = du;
    } else {
      const V dc1 = in.dstate[1] + in.demitted;
      out.da[0] = dc1 * g * i * (V(1) - i);
      out.da[1] = dc1 * in.previous[1] * f * (V(1) - f);
      out.da[2] = dc1 * i * fma(-g, g, V(1));
      out.da[3] = in.dstate[0] * s * o * (V(1) - o);
      out.dprevious[1] = fma(dc1, f, out.dprevious[1]);
      out.dcell = dc1;
    }
  }
};

}  // namespace ost::OST_SET
