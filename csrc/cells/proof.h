// Cells that the library does not offer yet, as structs of the same contract: layer norm of single gates, zoneout and
// minGRU. They run on the plain float64 path only and are gradient-checked there, as the proof that the contract holds
// them without code outside their struct.
#pragma once
#include "gru.h"
#include "layer_norm.h"
#include "lstm.h"

namespace ost::OST_SET {

// The LSTM with every gate normed by itself, as TensorFlow's LayerNormBasicLSTMCell has it, and c' too: operations on parts of
// a product, of which one has none (a_o).
struct LstmGateNorm : LstmLayerNorm {
  static constexpr ProductOp kProductOps[] = {
      {0, {0, 1}, RowOp::kLayerNorm}, {0, {1, 3}, RowOp::kLayerNorm}, {1, {1, 2}, RowOp::kLayerNorm}};
  static constexpr UnitWeights kUnitWeights[] = {
      {"weight_ln_ih", 3, true}, {"weight_ln_hh", 1, true}, {"weight_ln_c", 1, true}, {"bias_ln_c", 1, true}};
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

static_assert(Cell<LstmGateNorm>);
static_assert(Cell<Zoneout<Gru>> && Cell<Zoneout<Lstm>>);
static_assert(Cell<MinGru>);

}  // namespace ost::OST_SET
