// The plain path: the phases of any cell, one unit after the other, on float64, for one layer and direction. It is slow and
// short, and the only driver that takes every feature of the contract (row operations, projections, noise). The tests run
// every cell through it against finite differences, before any fast kernel is believed.
#pragma once
#include <cmath>
#include <vector>

#include "drivers.h"

namespace ost::OST_SET {

OST_HD double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
OST_HD double tanh(double x) { return std::tanh(x); }
OST_HD double fma(double a, double b, double c) { return a * b + c; }
OST_HD double select(bool test, double yes, double no) { return test ? yes : no; }

// weight_ih [G*H,I], weight_hh [G*H,P], bias_* [G*H], params [kParams,H], projection [P,H] (P = H without one),
// x [T,B,I], h0 [B,P], c0 [B,H], noise [T,B,H], y [T,B,P], dy [T,B,P]; all contiguous.
struct PlainWeights {
  std::vector<double> weight_ih, weight_hh, bias_ih, bias_hh, params, projection;
};
struct PlainProblem {
  Index steps, batch, input, hidden, projected;
  PlainWeights weights;
  std::vector<double> x, h0, c0, noise;
};
struct PlainGradients {
  PlainWeights weights;
  std::vector<double> x, h0, c0;
};

template <Cell C>
class Plain {
  static_assert(supports<C, PlainDriver>);

 public:
  explicit Plain(const PlainProblem& problem) : p_(problem), rows_(p_.steps * p_.batch) {
    in_.resize(rows_ * p_.hidden);
    out_.resize(rows_ * p_.hidden);
    y.resize(rows_ * p_.projected);
    inverse_deviation_.resize(rows_);
  }

  std::vector<double> y;  // [T,B,P]
  double state(Index b, Index u) const {
    return p_.steps ? out_[((p_.steps - 1) * p_.batch + b) * p_.hidden + u].state[C::kStates - 1] : p_.c0[b * p_.hidden + u];
  }

  void forward() {
    for (Index row = 0; row < rows_; ++row) forward_row(row, std::make_integer_sequence<int, kPhaseCount<C>>());
  }

  PlainGradients backward(const std::vector<double>& dy, const std::vector<double>& dc) {
    PlainGradients d;
    d.weights = {zeros(p_.weights.weight_ih), zeros(p_.weights.weight_hh), zeros(p_.weights.bias_ih),
                 zeros(p_.weights.bias_hh),   zeros(p_.weights.params),    zeros(p_.weights.projection)};
    d.x = zeros(p_.x), d.h0.assign(p_.batch * p_.projected, 0), d.c0 = dc;
    for (Index t = p_.steps; t-- > 0;)
      for (Index b = 0; b < p_.batch; ++b) backward_row(t, b, dy, d, std::make_integer_sequence<int, kPhaseCount<C>>());
    return d;
  }

 private:
  static std::vector<double> zeros(const std::vector<double>& like) { return std::vector<double>(like.size()); }
  Index gate_row(const int* blocks, int column, Index unit) const {  // row of the weight that feeds this column
    for (int g = 0; g < C::kGates; ++g)
      if (blocks[g] == column) return g * p_.hidden + unit;
    return -1;
  }
  double h_before(Index row, Index j) const {
    return row < p_.batch ? p_.h0[row * p_.projected + j] : y[(row - p_.batch) * p_.projected + j];
  }
  double operand(const Phase& phase, Index row, Index j) const {
    return phase.operand == Operand::kHidden ? h_before(row, j) : emitted(row, j);
  }
  Index operand_width(const Phase& phase) const { return phase.operand == Operand::kHidden ? p_.projected : p_.hidden; }
  double emitted(Index row, Index u) const { return out_[row * p_.hidden + u].emitted; }
  // The same in the backward pass, as the other drivers have it: made again, so that differences hold the cell to it.
  double emitted_again(Index row, Index u) const {
    const Index i = row * p_.hidden + u;
    return C::emitted(out_[i].saved, in_[i].state, out_[i].state);
  }

  void before_step(Index row, Index u) {
    auto& in = in_[row * p_.hidden + u];
    const Index h = p_.hidden, b = row % p_.batch;
    in.state[0] = p_.projected == h ? h_before(row, u) : 0;
    if constexpr (C::kStates > 1) in.state[1] = row < p_.batch ? p_.c0[b * h + u] : out_[(row - p_.batch) * h + u].state[1];
    for (int k = 0; k < C::kParams; ++k) in.param[k] = p_.weights.params[k * h + u];
    in.noise = p_.noise.empty() ? 0 : p_.noise[row * h + u];
    for (int column = 0; column < C::kColumns; ++column) {
      in.a[column] = 0;
      if (!C::kInput.has(column)) continue;
      const Index w = gate_row(C::kInputBlocks, column, u);
      in.a[column] = p_.weights.bias_ih[w];
      for (Index j = 0; j < p_.input; ++j) in.a[column] += p_.weights.weight_ih[w * p_.input + j] * p_.x[row * p_.input + j];
    }
  }

  template <int... P>
  void forward_row(Index row, std::integer_sequence<int, P...>) {
    for (Index u = 0; u < p_.hidden; ++u) before_step(row, u);
    (forward_phase<P>(row), ...);
    for (Index j = 0; j < p_.projected; ++j) {
      double h = 0;
      if constexpr (is_projected<C>())
        for (Index u = 0; u < p_.hidden; ++u) h += p_.weights.projection[j * p_.hidden + u] * emitted(row, u);
      else
        h = out_[row * p_.hidden + j].state[0];
      y[row * p_.projected + j] = h;
    }
  }

  template <int P>
  void forward_phase(Index row) {
    constexpr Phase phase = C::kPhases[P];
    const Index h = p_.hidden, width = operand_width(phase);
    if constexpr (phase.before == RowOp::kLayerNorm) layer_norm(row);
    for (Index u = 0; u < h; ++u)
      for (int column = phase.product.begin; column < phase.product.end; ++column) {
        const Index w = gate_row(C::kRecurrentBlocks, column, u);
        double sum = p_.weights.bias_hh[w];
        for (Index j = 0; j < width; ++j) sum += p_.weights.weight_hh[w * width + j] * operand(phase, row, j);
        in_[row * h + u].a[column] += sum;
      }
    for (Index u = 0; u < h; ++u) {
      auto& in = in_[row * h + u];
      auto& out = out_[row * h + u];
      C::template forward<P>(in, out);
      for (int k = 0; k < C::kSaved; ++k) in.saved[k] = out.saved[k];
    }
  }

  void layer_norm(Index row) {
    double mean = 0, variance = 0;
    for (Index u = 0; u < p_.hidden; ++u) mean += emitted(row, u) / p_.hidden;
    for (Index u = 0; u < p_.hidden; ++u) variance += (emitted(row, u) - mean) * (emitted(row, u) - mean) / p_.hidden;
    inverse_deviation_[row] = 1 / std::sqrt(variance + 1e-5);
    for (Index u = 0; u < p_.hidden; ++u) in_[row * p_.hidden + u].carried = (emitted(row, u) - mean) * inverse_deviation_[row];
  }

  template <int... P>
  void backward_row(Index t, Index b, const std::vector<double>& dy, PlainGradients& d, std::integer_sequence<int, P...>) {
    const Index h = p_.hidden, row = t * p_.batch + b;
    std::vector<double> dh(p_.projected);
    for (Index j = 0; j < p_.projected; ++j)
      dh[j] = dy[row * p_.projected + j] + d.h0[b * p_.projected + j], d.h0[b * p_.projected + j] = 0;
    std::vector<BackwardOut<C, double>> out(h);
    std::vector<BackwardIn<C, double>> in(h);
    for (Index u = 0; u < h; ++u) {
      const auto& f = in_[row * h + u];
      const auto& o = out_[row * h + u];
      for (int k = 0; k < C::kSaved; ++k) in[u].saved[k] = o.saved[k];
      for (int k = 0; k < C::kStates; ++k) in[u].previous[k] = f.state[k], in[u].next[k] = o.state[k], out[u].dprevious[k] = 0;
      for (int k = 0; k < C::kParams; ++k) in[u].param[k] = f.param[k], out[u].dparam[k] = 0;
      for (int k = 0; k < C::kColumns; ++k) out[u].da[k] = 0;
      in[u].carried = f.carried, in[u].noise = f.noise, in[u].demitted = 0;
      if constexpr (C::kStates > 1) in[u].dstate[1] = d.c0[b * h + u];
      in[u].dstate[0] = is_projected<C>() ? 0 : dh[u];
      if constexpr (is_projected<C>())
        for (Index j = 0; j < p_.projected; ++j) {
          in[u].demitted += p_.weights.projection[j * h + u] * dh[j];
          d.weights.projection[j * h + u] += dh[j] * emitted_again(row, u);
        }
    }
    (backward_phase<kPhaseCount<C> - 1 - P>(row, b, in, out, d), ...);
    for (Index u = 0; u < h; ++u) {
      if constexpr (C::kStates > 1) d.c0[b * h + u] = out[u].dprevious[1];
      if constexpr (!is_projected<C>()) d.h0[b * h + u] += out[u].dprevious[0];
      for (int k = 0; k < C::kParams; ++k) d.weights.params[k * h + u] += out[u].dparam[k];
      for (int column = C::kInput.begin; column < C::kInput.end; ++column) {
        const Index w = gate_row(C::kInputBlocks, column, u);
        d.weights.bias_ih[w] += out[u].da[column];
        for (Index j = 0; j < p_.input; ++j) {
          d.weights.weight_ih[w * p_.input + j] += out[u].da[column] * p_.x[row * p_.input + j];
          d.x[row * p_.input + j] += p_.weights.weight_ih[w * p_.input + j] * out[u].da[column];
        }
      }
    }
  }

  template <int P>
  void backward_phase(Index row, Index b, std::vector<BackwardIn<C, double>>& in, std::vector<BackwardOut<C, double>>& out,
                      PlainGradients& d) {
    constexpr Phase phase = C::kPhases[P];
    const Index h = p_.hidden, width = operand_width(phase);
    for (Index u = 0; u < h; ++u) C::template backward<P>(in[u], out[u]);
    for (Index u = 0; u < h; ++u)
      for (int column = phase.product.begin; column < phase.product.end; ++column) {
        const Index w = gate_row(C::kRecurrentBlocks, column, u);
        d.weights.bias_hh[w] += out[u].da[column];
        for (Index j = 0; j < width; ++j) {
          d.weights.weight_hh[w * width + j] += out[u].da[column] * operand(phase, row, j);
          (phase.operand == Operand::kHidden ? d.h0[b * p_.projected + j] : in[j].demitted) +=
              p_.weights.weight_hh[w * width + j] * out[u].da[column];
        }
      }
    if constexpr (phase.before == RowOp::kLayerNorm) {
      double mean = 0, dot = 0;
      for (Index u = 0; u < h; ++u) mean += out[u].dcarried / h, dot += out[u].dcarried * in[u].carried / h;
      for (Index u = 0; u < h; ++u) in[u].demitted += inverse_deviation_[row] * (out[u].dcarried - mean - in[u].carried * dot);
    }
  }

  const PlainProblem& p_;
  Index rows_;
  std::vector<ForwardIn<C, double>> in_;
  std::vector<ForwardOut<C, double>> out_;
  std::vector<double> inverse_deviation_;
};

}  // namespace ost::OST_SET
