// Hochreiter and Schmidhuber (1997) with the forget gate of Gers, Schmidhuber, Cummins (2000). Gates i f g o.
//     i, f, o = sigmoid(a_i, a_f, a_o)   g = tanh(a_g)   c' = f c + i g   h' = o tanh(c')
// With peepholes (Gers, Schraudolph, Schmidhuber 2002), weights p a unit in the order i f o:
//     a_i += p_i c   a_f += p_f c   a_o += p_o c'
#pragma once
#include "../core/cell.h"

namespace ost::OST_SET {

template <bool kPeephole>
struct LstmCell {
  static constexpr int kColumns = 4, kGates = 4, kStates = 2, kSaved = 4, kParams = kPeephole ? 3 : 0;
  static constexpr Columns kInput{0, 4};
  static constexpr Phase kPhases[] = {{Operand::kHidden, {0, 4}, {0, 4}}};
  static constexpr int kInputBlocks[] = {0, 1, 2, 3}, kRecurrentBlocks[] = {0, 1, 2, 3};
  static constexpr Columns kHiddenReads{3, 4};  // o

  template <int P, class V>
  OST_HD static void forward(const ForwardIn<LstmCell, V>& in, ForwardOut<LstmCell, V>& out) {
    V ai = in.a[0], af = in.a[1], ag = in.a[2], ao = in.a[3];
    const V c = in.state[1];
    if constexpr (kPeephole) ai = fma(in.param[0], c, ai), af = fma(in.param[1], c, af);
    const V i = sigmoid(ai), f = sigmoid(af), g = tanh(ag);
    const V c1 = fma(f, c, i * g);
    if constexpr (kPeephole) ao = fma(in.param[2], c1, ao);
    const V o = sigmoid(ao);
    out.state[1] = c1;
    out.saved[0] = i, out.saved[1] = f, out.saved[2] = g, out.saved[3] = o;
    out.state[0] = hidden(out.saved, out.state);
  }
  template <class V>
  OST_HD static V hidden(const V* saved, const V* next) {
    return saved[3] * tanh(next[1]);
  }

  template <int P, class V>
  OST_HD static void backward(const BackwardIn<LstmCell, V>& in, BackwardOut<LstmCell, V>& out) {
    const V i = in.saved[0], f = in.saved[1], g = in.saved[2], o = in.saved[3];
    const V c = in.previous[1], c1 = in.next[1], dh = in.dstate[0];
    const V s = tanh(c1);
    const V da_o = dh * s * o * (V(1) - o);
    V dc1 = fma(dh * o, fma(-s, s, V(1)), in.dstate[1]);
    if constexpr (kPeephole) dc1 = fma(in.param[2], da_o, dc1);
    const V da_i = dc1 * g * i * (V(1) - i);
    const V da_f = dc1 * c * f * (V(1) - f);
    const V da_g = dc1 * i * fma(-g, g, V(1));
    V dc = dc1 * f;
    if constexpr (kPeephole) {
      dc = fma(in.param[0], da_i, fma(in.param[1], da_f, dc));
      out.dparam[0] = da_i * c, out.dparam[1] = da_f * c, out.dparam[2] = da_o * c1;
    }
    out.da[0] = da_i, out.da[1] = da_f, out.da[2] = da_g, out.da[3] = da_o;
    out.dprevious[1] = out.dprevious[1] + dc;
    out.dcell = dc1;
  }
};

using Lstm = LstmCell<false>;
struct LstmPeephole : LstmCell<true> {
  static constexpr UnitWeights kUnitWeights[] = {{"weight_peephole", 3}};  // i f o
};

// Sak, Senior, Beaufays (2014), "Long short-term memory recurrent neural network architectures for large scale acoustic modeling":
//     m = o tanh(c')   h' = W_hr m, P wide
struct LstmProjected {
  static constexpr int kColumns = 4, kGates = 4, kStates = 2, kSaved = 4, kParams = 0;
  static constexpr bool kProjected = true;
  static constexpr Columns kInput{0, 4};
  static constexpr Phase kPhases[] = {{Operand::kHidden, {0, 4}, {0, 4}}};
  static constexpr int kInputBlocks[] = {0, 1, 2, 3}, kRecurrentBlocks[] = {0, 1, 2, 3};

  // m is o tanh(c'), which is what an LSTM calls h: its equations serve as they are.
  template <int P, class V>
  OST_HD static void forward(const ForwardIn<Lstm, V>& in, ForwardOut<Lstm, V>& out) {
    Lstm::forward<P>(in, out);
    out.emitted = out.state[0];
  }
  template <class V>
  OST_HD static V emitted(const V* saved, const V*, const V* next) {
    return Lstm::hidden(saved, next);
  }
  template <int P, class V>
  OST_HD static void backward(const BackwardIn<Lstm, V>& in, BackwardOut<Lstm, V>& out) {
    BackwardIn<Lstm, V> inner = in;
    inner.dstate[0] = in.demitted;
    Lstm::backward<P>(inner, out);
  }
};

}  // namespace ost::OST_SET
