// Cells that the library does not offer yet, as structs of the same contract: layer norm of c, zoneout and
// minGRU. They run on the plain float64 path only and are gradient-checked there, as the proof that the contract holds
// them without code outside their struct.
#pragma once
#include "gru.h"
#include "lstm.h"

namespace ost::OST_SET {

// LSTM with layer norm of the cell state (Ba, Kiros, Hinton 2016): h' = o tanh(gamma LN(c') + beta); c' itself is carried.
struct LstmLayerNorm {
  static constexpr int kColumns = 4, kGates = 4, kStates = 2, kSaved = 4, kParams = 2;  // gamma, beta
  static constexpr Columns kInput{0, 4};
  static constexpr Phase kPhases[] = {{Operand::kHidden, {0, 4}, {0, 4}}, {Operand::kEmitted, {0, 0}, {0, 0}, RowOp::kLayerNorm}};
  static constexpr int kInputBlocks[] = {0, 1, 2, 3}, kRecurrentBlocks[] = {0, 1, 2, 3};

  template <int P, class V>
  OST_HD static void forward(const ForwardIn<LstmLayerNorm, V>& in, ForwardOut<LstmLayerNorm, V>& out) {
    if constexpr (P == 0) {
      const V i = sigmoid(in.a[0]), f = sigmoid(in.a[1]), g = tanh(in.a[2]), o = sigmoid(in.a[3]);
      out.emitted = out.state[1] = fma(f, in.state[1], i * g);
      out.saved[0] = i, out.saved[1] = f, out.saved[2] = g, out.saved[3] = o;
    } else {
      out.state[0] = in.saved[3] * tanh(fma(in.param[0], in.carried, in.param[1]));
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
    }
  }
};

// Zoneout of h (Krueger et al. 2017) around any cell of one phase: a unit keeps its old h where noise < kRate.
template <class Base>
struct Zoneout {
  static constexpr int kColumns = Base::kColumns, kGates = Base::kGates, kStates = Base::kStates, kSaved = Base::kSaved,
                       kParams = Base::kParams;
  static constexpr bool kNoise = true;
  static constexpr double kRate = 0.3;
  static constexpr Columns kInput = Base::kInput;
  static constexpr Phase kPhases[] = {Base::kPhases[0]};
  static_assert(kPhaseCount<Base> == 1);
  static constexpr const auto& kInputBlocks = Base::kInputBlocks;
  static constexpr const auto& kRecurrentBlocks = Base::kRecurrentBlocks;

  template <int P, class V>
  OST_HD static void forward(const ForwardIn<Base, V>& in, ForwardOut<Base, V>& out) {
    Base::template forward<P>(in, out);
    out.state[0] = select(in.noise < V(kRate), in.state[0], out.state[0]);
  }
  template <int P, class V>
  OST_HD static void backward(const BackwardIn<Base, V>& in, BackwardOut<Base, V>& out) {
    const auto kept = in.noise < V(kRate);
    BackwardIn<Base, V> inner = in;
    inner.dstate[0] = select(kept, V(0), in.dstate[0]);
    Base::template backward<P>(inner, out);
    out.dprevious[0] = out.dprevious[0] + select(kept, in.dstate[0], V(0));
  }
};

// minGRU (Feng et al. 2024): no recurrent product. z = sigmoid(a_z)   h' = (1 - z) h + z n
struct MinGru {  // columns z n
  static constexpr int kColumns = 2, kGates = 2, kStates = 1, kSaved = 2, kParams = 0;
  static constexpr Columns kInput{0, 2};
  static constexpr Phase kPhases[] = {{Operand::kHidden, {0, 0}, {0, 2}}};
  static constexpr int kInputBlocks[] = {0, 1};
  static constexpr int kRecurrentBlocks[] = {-1, -1};

  template <int P, class V>
  OST_HD static void forward(const ForwardIn<MinGru, V>& in, ForwardOut<MinGru, V>& out) {
    const V z = sigmoid(in.a[0]), n = in.a[1], h = in.state[0];
    out.state[0] = fma(z, n - h, h);
    out.saved[0] = z, out.saved[1] = n;
  }
  template <int P, class V>
  OST_HD static void backward(const BackwardIn<MinGru, V>& in, BackwardOut<MinGru, V>& out) {
    const V z = in.saved[0], n = in.saved[1], dh1 = in.dstate[0];
    out.da[0] = dh1 * (n - in.previous[0]) * z * (V(1) - z);
    out.da[1] = dh1 * z;
    out.dprevious[0] = fma(dh1, V(1) - z, out.dprevious[0]);
  }
};

static_assert(Cell<LstmLayerNorm>);
static_assert(Cell<Zoneout<Gru>> && Cell<Zoneout<Lstm>>);
static_assert(Cell<MinGru>);

}  // namespace ost::OST_SET
