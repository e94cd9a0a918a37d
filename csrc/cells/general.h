// The cells with functions, a clip and coupled gates that a call chooses: ONNX' RNN, LSTM and GRU with all of their attributes.
// A clip bounds what the functions f and g are given, as in ONNX Runtime; the output function h of an LSTM is given c' as it is.
// They save the values of their gates and then their slopes, so that the backward pass asks for no function again but h.
#pragma once
#include "activation.h"

namespace ost::OST_SET {

//     h' = phi(a)
struct ElmanGeneral {
  static constexpr int kColumns = 1, kGates = 1, kStates = 1, kSaved = 1, kParams = 0;
  static constexpr int kScalars = kFunctionScalars + 1;  // phi, clip
  static constexpr Columns kInput{0, 1};
  static constexpr Phase kPhases[] = {{Operand::kHidden, {0, 1}, {0, 1}}};
  static constexpr int kInputBlocks[] = {0}, kRecurrentBlocks[] = {0};

  template <int P, class V>
  OST_HD static void forward(const ForwardIn<ElmanGeneral, V>& in, ForwardOut<ElmanGeneral, V>& out) {
    const Activated<V> h = activated(in.scalar, in.scalar[kFunctionScalars], in.a[0]);
    out.state[0] = h.value;
    out.saved[0] = h.slope;
  }
  template <int P, class V>
  OST_HD static void backward(const BackwardIn<ElmanGeneral, V>& in, BackwardOut<ElmanGeneral, V>& out) {
    out.da[0] = in.dstate[0] * in.saved[0];
  }
};

//     i, f, o = f(a_i + p_i c, a_f + p_f c, a_o + p_o c')   g = g(a_g)   c' = f c + i g   h' = o h(c')
// Coupled gates: f = 1 - i, and a_f is not read.
struct LstmGeneral {
  static constexpr int kColumns = 4, kGates = 4, kStates = 2, kSaved = 8, kParams = 3;
  static constexpr int kClip = 3 * kFunctionScalars, kCoupled = kClip + 1, kScalars = kCoupled + 1;  // f, g, h before them
  static constexpr UnitWeights kUnitWeights[] = {{"weight_peephole", 3, false, true}};               // i f o; null: zeros
  static constexpr Columns kInput{0, 4};
  static constexpr Phase kPhases[] = {{Operand::kHidden, {0, 4}, {0, 4}}};
  static constexpr int kInputBlocks[] = {0, 1, 2, 3}, kRecurrentBlocks[] = {0, 1, 2, 3};

  template <int P, class V>
  OST_HD static void forward(const ForwardIn<LstmGeneral, V>& in, ForwardOut<LstmGeneral, V>& out) {
    const auto* s = in.scalar;
    const auto clip = s[kClip];
    const V c = in.state[1];
    const Activated<V> i = activated(s, clip, fma(in.param[0], c, in.a[0]));
    Activated<V> f{V(1) - i.value, V(0)};
    if (s[kCoupled] == 0) f = activated(s, clip, fma(in.param[1], c, in.a[1]));
    const Activated<V> g = activated(s + kFunctionScalars, clip, in.a[2]);
    const V c1 = fma(f.value, c, i.value * g.value);
    const Activated<V> o = activated(s, clip, fma(in.param[2], c1, in.a[3]));
    out.state[0] = o.value * activated(s + 2 * kFunctionScalars, c1).value;
    out.state[1] = c1;
    out.saved[0] = i.value, out.saved[1] = f.value, out.saved[2] = g.value, out.saved[3] = o.value;
    out.saved[4] = i.slope, out.saved[5] = f.slope, out.saved[6] = g.slope, out.saved[7] = o.slope;
  }

  template <int P, class V>
  OST_HD static void backward(const BackwardIn<LstmGeneral, V>& in, BackwardOut<LstmGeneral, V>& out) {
    const V i = in.saved[0], f = in.saved[1], g = in.saved[2], o = in.saved[3];
    const V c = in.previous[1], c1 = in.next[1], dh = in.dstate[0];
    const Activated<V> s = activated(in.scalar + 2 * kFunctionScalars, c1);
    const V da_o = dh * s.value * in.saved[7];
    const V dc1 = fma(in.param[2], da_o, fma(dh * o, s.slope, in.dstate[1]));
    const bool coupled = in.scalar[kCoupled] != 0;
    const V da_i = dc1 * (coupled ? g - c : g) * in.saved[4];
    const V da_f = coupled ? V(0) : dc1 * c * in.saved[5];
    out.da[0] = da_i, out.da[1] = da_f, out.da[2] = dc1 * i * in.saved[6], out.da[3] = da_o;
    out.dparam[0] = da_i * c, out.dparam[1] = da_f * c, out.dparam[2] = da_o * c1;
    out.dprevious[1] = out.dprevious[1] + fma(in.param[0], da_i, fma(in.param[1], da_f, dc1 * f));
    out.dcell = dc1;
  }
};

//     r, z = f(a_r, a_z)   h' = (1 - z) n + z h   n = g(n_x + r n_h), or g(a_n) with a_n of r h: see gru.h
struct GruGeneral {  // columns n_x r z n_h
  static constexpr int kColumns = 4, kGates = 3, kStates = 1, kSaved = 7, kParams = 0;
  static constexpr int kClip = 2 * kFunctionScalars, kScalars = kClip + 1;  // f, g before it
  static constexpr Columns kInput{0, 3};
  static constexpr Phase kPhases[] = {{Operand::kHidden, {1, 4}, {0, 4}}};
  static constexpr int kInputBlocks[] = {1, 2, 0}, kRecurrentBlocks[] = {1, 2, 3};

  template <int P, class V>
  OST_HD static void forward(const ForwardIn<GruGeneral, V>& in, ForwardOut<GruGeneral, V>& out) {
    const auto* s = in.scalar;
    const Activated<V> r = activated(s, s[kClip], in.a[1]), z = activated(s, s[kClip], in.a[2]);
    const V nh = in.a[3];
    const Activated<V> n = activated(s + kFunctionScalars, s[kClip], fma(r.value, nh, in.a[0]));
    out.state[0] = fma(z.value, in.state[0] - n.value, n.value);
    out.saved[0] = r.value, out.saved[1] = z.value, out.saved[2] = n.value, out.saved[3] = nh;
    out.saved[4] = r.slope, out.saved[5] = z.slope, out.saved[6] = n.slope;
  }

  template <int P, class V>
  OST_HD static void backward(const BackwardIn<GruGeneral, V>& in, BackwardOut<GruGeneral, V>& out) {
    const V r = in.saved[0], z = in.saved[1], n = in.saved[2], nh = in.saved[3], dh1 = in.dstate[0];
    const V da_n = dh1 * (V(1) - z) * in.saved[6];
    out.da[0] = da_n;
    out.da[1] = da_n * nh * in.saved[4];
    out.da[2] = dh1 * (in.previous[0] - n) * in.saved[5];
    out.da[3] = da_n * r;
    out.dprevious[0] = fma(dh1, z, out.dprevious[0]);
  }
};

struct GruResetBeforeGeneral {  // columns r z n; phase 0 emits r h, which feeds the second product
  static constexpr int kColumns = 3, kGates = 3, kStates = 1, kSaved = 6, kParams = 0;
  static constexpr int kClip = GruGeneral::kClip, kScalars = GruGeneral::kScalars;
  static constexpr Columns kInput{0, 3};
  static constexpr Phase kPhases[] = {{Operand::kHidden, {0, 2}, {0, 2}}, {Operand::kEmitted, {2, 3}, {2, 3}}};
  static constexpr int kInputBlocks[] = {0, 1, 2}, kRecurrentBlocks[] = {0, 1, 2};

  template <int P, class V>
  OST_HD static void forward(const ForwardIn<GruResetBeforeGeneral, V>& in, ForwardOut<GruResetBeforeGeneral, V>& out) {
    const auto* s = in.scalar;
    if constexpr (P == 0) {
      const Activated<V> r = activated(s, s[kClip], in.a[0]), z = activated(s, s[kClip], in.a[1]);
      out.saved[0] = r.value, out.saved[1] = z.value, out.saved[3] = r.slope, out.saved[4] = z.slope;
      out.emitted = emitted(out.saved, in.state, in.state);
    } else {
      const Activated<V> n = activated(s + kFunctionScalars, s[kClip], in.a[2]);
      out.state[0] = fma(in.saved[1], in.state[0] - n.value, n.value);
      out.saved[2] = n.value, out.saved[5] = n.slope;
    }
  }
  template <class V>
  OST_HD static V emitted(const V* saved, const V* previous, const V*) {
    return saved[0] * previous[0];
  }

  template <int P, class V>
  OST_HD static void backward(const BackwardIn<GruResetBeforeGeneral, V>& in, BackwardOut<GruResetBeforeGeneral, V>& out) {
    const V r = in.saved[0], z = in.saved[1], n = in.saved[2], h = in.previous[0], dh1 = in.dstate[0];
    if constexpr (P == 1) {
      out.da[2] = dh1 * (V(1) - z) * in.saved[5];
    } else {
      out.da[0] = in.demitted * h * in.saved[3];
      out.da[1] = dh1 * (h - n) * in.saved[4];
      out.dprevious[0] = fma(in.demitted, r, fma(dh1, z, out.dprevious[0]));
    }
  }
};

}  // namespace ost::OST_SET
