// Cells that the library does not offer yet, as structs of the same contract: layer norm of single gates, zoneout, minGRU
// and sLSTM. They run on the plain float64 path only and are gradient-checked there, as the proof that the contract holds
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

// sLSTM (Beck et al. 2024, xLSTM, equations 8 to 17) with exponential gates and heads; n normalises c, and both are held
// divided by exp(m), which keeps them in range and does not change h.
//     m' = max(a_f + m, a_i)   i = exp(a_i - m')   f = exp(a_f + m - m')   z = tanh(a_z)   o = sigmoid(a_o)
//     c' = f c + i z   n' = f n + i   h' = o c' / n'
struct SLstm {  // columns i f z o
  static constexpr int kColumns = 4, kGates = 4, kStates = 4, kSaved = 4, kParams = 0;
  static constexpr const char* kStateNames[] = {"h", "c", "n", "m"};
  static constexpr bool kBlockDiagonal = true;
  static constexpr Columns kInput{0, 4};
  static constexpr Phase kPhases[] = {{Operand::kHidden, {0, 4}, {0, 4}}};
  static constexpr int kInputBlocks[] = {0, 1, 2, 3}, kRecurrentBlocks[] = {0, 1, 2, 3};

  template <int P, class V>
  OST_HD static void forward(const ForwardIn<SLstm, V>& in, ForwardOut<SLstm, V>& out) {
    const V c = in.state[1], n = in.state[2], kept = in.a[1] + in.state[3];
    const V m1 = select(in.a[0] < kept, kept, in.a[0]);
    const V i = exp(in.a[0] - m1), f = exp(kept - m1), z = tanh(in.a[2]), o = sigmoid(in.a[3]);
    out.state[1] = fma(f, c, i * z), out.state[2] = fma(f, n, i), out.state[3] = m1;
    out.state[0] = o * out.state[1] / out.state[2];
    out.saved[0] = i, out.saved[1] = f, out.saved[2] = z, out.saved[3] = o;
  }
  template <int P, class V>
  OST_HD static void backward(const BackwardIn<SLstm, V>& in, BackwardOut<SLstm, V>& out) {
    const V i = in.saved[0], f = in.saved[1], z = in.saved[2], o = in.saved[3], n1 = in.next[2];
    const V ratio = in.next[1] / n1, dh = in.dstate[0];
    const V dc1 = in.dstate[1] + dh * o / n1, dn1 = in.dstate[2] - dh * o * ratio / n1;
    const V along_f = (dc1 * in.previous[1] + dn1 * in.previous[2]) * f, along_i = (dc1 * z + dn1) * i;
    const V dm1 = in.dstate[3] - along_f - along_i;
    const auto kept = i < f;  // the larger exponent was that of f, which is exp(0)
    const V da_f = along_f + select(kept, dm1, V(0));
    out.da[0] = along_i + select(kept, V(0), dm1);
    out.da[1] = da_f;
    out.da[2] = dc1 * i * (V(1) - z * z);
    out.da[3] = dh * ratio * o * (V(1) - o);
    out.dprevious[1] = dc1 * f, out.dprevious[2] = dn1 * f, out.dprevious[3] = da_f;
    out.dcell = dc1;
  }
};

static_assert(Cell<LstmGateNorm> && Cell<SLstm>);
static_assert(Cell<Zoneout<Gru>> && Cell<Zoneout<Lstm>>);
static_assert(Cell<MinGru>);

}  // namespace ost::OST_SET
