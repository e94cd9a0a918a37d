// The plain path: the phases of any cell, one unit after the other, on float64, for one layer and direction. It is slow and
// short, and the only driver that takes every feature of the contract (phases without a product, noise). The tests run
// every cell through it against finite differences, before any fast kernel is believed.
#pragma once
#include <cmath>
#include <vector>

#include "drivers.h"

namespace ost::OST_SET {

OST_HD double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
OST_HD double tanh(double x) { return std::tanh(x); }
OST_HD double exp(double x) { return std::exp(x); }
OST_HD double fma(double a, double b, double c) { return a * b + c; }
OST_HD double select(bool test, double yes, double no) { return test ? yes : no; }

// weight_ih [G*H,I], weight_hh [G*H,P] (of a block-diagonal R [G*H,H/heads]), bias_* [G*H], units [kGains + kParams,H],
// projection [P,H] (P = H without one), x [T,B,I], h0 [B,P], states [kStates-1,B,H], noise [T,B,H], y [T,B,P], dy [T,B,P];
// all contiguous.
struct PlainWeights {
  std::vector<double> weight_ih, weight_hh, bias_ih, bias_hh, units, projection;
};
struct PlainProblem {
  Index steps, batch, input, hidden, projected, heads;
  PlainWeights weights;
  std::vector<double> x, h0, states, noise, scalars;
};
struct PlainGradients {
  PlainWeights weights;
  std::vector<double> x, h0, states;
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
    deviations_.resize(rows_ * kGains<C> * p_.hidden);
    inverse_deviations_.resize(rows_ * op_count<C>());
  }

  std::vector<double> y;  // [T,B,P]
  // State k > 0 behind the last step.
  double state(int k, Index b, Index u) const {
    return p_.steps ? out_[((p_.steps - 1) * p_.batch + b) * p_.hidden + u].state[k] : p_.states[state_place(k, b, u)];
  }

  void forward() {
    for (Index row = 0; row < rows_; ++row) forward_row(row, std::make_integer_sequence<int, kPhaseCount<C>>());
  }

  PlainGradients backward(const std::vector<double>& dy, const std::vector<double>& dstates) {
    PlainGradients d;
    d.weights = {zeros(p_.weights.weight_ih), zeros(p_.weights.weight_hh), zeros(p_.weights.bias_ih),
                 zeros(p_.weights.bias_hh),   zeros(p_.weights.units),     zeros(p_.weights.projection)};
    d.x = zeros(p_.x), d.h0.assign(p_.batch * p_.projected, 0), d.states = dstates;
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
  Index state_place(int k, Index b, Index u) const { return ((k - 1) * p_.batch + b) * p_.hidden + u; }
  double h_before(Index row, Index j) const {
    return row < p_.batch ? p_.h0[row * p_.projected + j] : y[(row - p_.batch) * p_.projected + j];
  }
  double operand(const Phase& phase, Index row, Index j) const {
    return phase.operand == Operand::kHidden ? h_before(row, j) : emitted(row, j);
  }
  Index operand_width(const Phase& phase) const { return (phase.operand == Operand::kHidden ? p_.projected : p_.hidden) / p_.heads; }
  Index head_begin(Index u) const { return u / (p_.hidden / p_.heads) * (p_.hidden / p_.heads); }  // where R of this unit begins
  double emitted(Index row, Index u) const { return out_[row * p_.hidden + u].emitted; }
  // The backward pass has it as the other drivers do: recomputed, so that differences hold the cell to it.
  double emitted_recomputed(Index row, Index u) const {
    const Index i = row * p_.hidden + u;
    return C::emitted(out_[i].saved, in_[i].state, out_[i].state);
  }

  void before_step(Index row, Index u) {
    auto& in = in_[row * p_.hidden + u];
    const Index h = p_.hidden, b = row % p_.batch;
    in.state[0] = p_.projected == h ? h_before(row, u) : 0;
    for (int k = 1; k < C::kStates; ++k)
      in.state[k] = row < p_.batch ? p_.states[state_place(k, b, u)] : out_[(row - p_.batch) * h + u].state[k];
    for (int k = 0; k < C::kParams; ++k) in.param[k] = p_.weights.units[(kGains<C> + k) * h + u];
    in.noise = p_.noise.empty() ? 0 : p_.noise[row * h + u];
    in.scalar = p_.scalars.data();
    for (int column = 0; column < C::kColumns; ++column) {
      in.a[column] = 0;
      if (!C::kInput.has(column)) continue;
      const Index w = gate_row(C::kInputBlocks, column, u);
      double sum = 0;
      for (Index j = 0; j < p_.input; ++j) sum += p_.weights.weight_ih[w * p_.input + j] * p_.x[row * p_.input + j];
      add_product(row, 0, column, u, sum, p_.weights.bias_ih[w]);
    }
  }

  template <int... P>
  void forward_row(Index row, std::integer_sequence<int, P...>) {
    for (Index u = 0; u < p_.hidden; ++u) before_step(row, u);
    product_norms(row, 0);
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
    if constexpr (phase.before == RowOp::kLayerNorm) norm_emitted(row);
    for (Index u = 0; u < h; ++u)
      for (int column = phase.product.begin; column < phase.product.end; ++column) {
        const Index w = gate_row(C::kRecurrentBlocks, column, u);
        double sum = 0;
        for (Index j = 0; j < width; ++j) sum += p_.weights.weight_hh[w * width + j] * operand(phase, row, head_begin(u) + j);
        add_product(row, P + 1, column, u, sum, p_.weights.bias_hh[w]);
      }
    product_norms(row, P + 1);
    for (Index u = 0; u < h; ++u) {
      auto& in = in_[row * h + u];
      auto& out = out_[row * h + u];
      C::template forward<P>(in, out);
      for (int k = 0; k < C::kSaved; ++k) in.saved[k] = out.saved[k];
    }
  }

  // Makes n numbers zero mean and unit variance; returns what they were divided by, inverted.
  static double layer_norm(double* x, Index n) {
    double mean = 0, variance = 0;
    for (Index i = 0; i < n; ++i) mean += x[i] / n;
    for (Index i = 0; i < n; ++i) variance += (x[i] - mean) * (x[i] - mean) / n;
    const double inverse = 1 / std::sqrt(variance + kNormEps);
    for (Index i = 0; i < n; ++i) x[i] = (x[i] - mean) * inverse;
    return inverse;
  }
  // From the gradient of what the operation gave, n numbers of which `normed` are, to that of what it was given.
  static void layer_norm_gradient(double* d, const double* normed, double inverse, Index n) {
    double mean = 0, dot = 0;
    for (Index i = 0; i < n; ++i) mean += d[i] / n, dot += d[i] * normed[i] / n;
    for (Index i = 0; i < n; ++i) d[i] = inverse * (d[i] - mean - normed[i] * dot);
  }
  void norm_emitted(Index row) {
    std::vector<double> normed(p_.hidden);
    for (Index u = 0; u < p_.hidden; ++u) in_[row * p_.hidden + u].emitted = normed[u] = emitted(row, u);
    inverse_deviation_[row] = layer_norm(normed.data(), p_.hidden);
    for (Index u = 0; u < p_.hidden; ++u) in_[row * p_.hidden + u].carried = normed[u];
  }

  // Where operation j has what it is about: [columns][H].
  double* normed(Index row, int j) { return deviations_.data() + (row * kGains<C> + gains_before<C>(j)) * p_.hidden; }
  Index place(int j, int column, Index u) const { return (column - product_op<C>(j).columns.begin) * p_.hidden + u; }
  double gain(int j, Index place) const { return p_.weights.units[gains_before<C>(j) * p_.hidden + place]; }
  void add_product(Index row, int q, int column, Index u, double product, double bias) {
    double& a = in_[row * p_.hidden + u].a[column];
    a += bias;
    const int j = op_of<C>(q, column);
    if (j < 0)
      a += product;
    else
      normed(row, j)[place(j, column, u)] = product;
  }
  void product_norms(Index row, int q) {
    for (int j = 0; j < op_count<C>(); ++j) {
      if (product_op<C>(j).product != q) continue;
      double* x = normed(row, j);
      inverse_deviations_[row * op_count<C>() + j] = layer_norm(x, product_op<C>(j).columns.count() * p_.hidden);
      for (int column = product_op<C>(j).columns.begin; column < product_op<C>(j).columns.end; ++column)
        for (Index u = 0; u < p_.hidden; ++u) in_[row * p_.hidden + u].a[column] += gain(j, place(j, column, u)) * x[place(j, column, u)];
    }
  }
  // [H][columns] gradients of what product q made, before its operations; with those of the gains.
  std::vector<double> product_gradient(Index row, int q, const std::vector<BackwardOut<C, double>>& out, PlainGradients& d) {
    std::vector<double> da(p_.hidden * C::kColumns);
    for (Index u = 0; u < p_.hidden; ++u)
      for (int column = 0; column < C::kColumns; ++column) da[u * C::kColumns + column] = out[u].da[column];
    for (int j = 0; j < op_count<C>(); ++j) {
      if (product_op<C>(j).product != q) continue;
      const double* x = normed(row, j);
      std::vector<double> dx(product_op<C>(j).columns.count() * p_.hidden);
      const auto all = [&](auto&& f) {
        for (int column = product_op<C>(j).columns.begin; column < product_op<C>(j).columns.end; ++column)
          for (Index u = 0; u < p_.hidden; ++u) f(da[u * C::kColumns + column], place(j, column, u));
      };
      all([&](double& a, Index i) {
        d.weights.units[gains_before<C>(j) * p_.hidden + i] += a * x[i];
        dx[i] = a * gain(j, i);
      });
      layer_norm_gradient(dx.data(), x, inverse_deviations_[row * op_count<C>() + j], Index(dx.size()));
      all([&](double& a, Index i) { a = dx[i]; });
    }
    return da;
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
      in[u].carried = f.carried, in[u].noise = f.noise, in[u].demitted = 0, in[u].scalar = f.scalar;
      for (int k = 1; k < C::kStates; ++k) in[u].dstate[k] = d.states[state_place(k, b, u)];
      in[u].dstate[0] = is_projected<C>() ? 0 : dh[u];
      if constexpr (is_projected<C>())
        for (Index j = 0; j < p_.projected; ++j) {
          in[u].demitted += p_.weights.projection[j * h + u] * dh[j];
          d.weights.projection[j * h + u] += dh[j] * emitted_recomputed(row, u);
        }
    }
    (backward_phase<kPhaseCount<C> - 1 - P>(row, b, in, out, d), ...);
    for (Index u = 0; u < h; ++u) {
      for (int k = 1; k < C::kStates; ++k) d.states[state_place(k, b, u)] = out[u].dprevious[k];
      if constexpr (!is_projected<C>()) d.h0[b * h + u] += out[u].dprevious[0];
      for (int k = 0; k < C::kParams; ++k) d.weights.units[(kGains<C> + k) * h + u] += out[u].dparam[k];
    }
    const std::vector<double> da = product_gradient(row, 0, out, d);
    for (Index u = 0; u < h; ++u)
      for (int column = C::kInput.begin; column < C::kInput.end; ++column) {
        const Index w = gate_row(C::kInputBlocks, column, u);
        d.weights.bias_ih[w] += out[u].da[column];
        for (Index j = 0; j < p_.input; ++j) {
          d.weights.weight_ih[w * p_.input + j] += da[u * C::kColumns + column] * p_.x[row * p_.input + j];
          d.x[row * p_.input + j] += p_.weights.weight_ih[w * p_.input + j] * da[u * C::kColumns + column];
        }
      }
  }

  template <int P>
  void backward_phase(Index row, Index b, std::vector<BackwardIn<C, double>>& in, std::vector<BackwardOut<C, double>>& out,
                      PlainGradients& d) {
    constexpr Phase phase = C::kPhases[P];
    const Index h = p_.hidden, width = operand_width(phase);
    for (Index u = 0; u < h; ++u) C::template backward<P>(in[u], out[u]);
    const std::vector<double> da = product_gradient(row, P + 1, out, d);
    for (Index u = 0; u < h; ++u)
      for (int column = phase.product.begin; column < phase.product.end; ++column) {
        const Index w = gate_row(C::kRecurrentBlocks, column, u);
        const double da_column = da[u * C::kColumns + column];
        d.weights.bias_hh[w] += out[u].da[column];
        for (Index j = 0; j < width; ++j) {
          const Index from = head_begin(u) + j;
          d.weights.weight_hh[w * width + j] += da_column * operand(phase, row, from);
          (phase.operand == Operand::kHidden ? d.h0[b * p_.projected + from] : in[from].demitted) +=
              p_.weights.weight_hh[w * width + j] * da_column;
        }
      }
    if constexpr (phase.before == RowOp::kLayerNorm) {
      std::vector<double> dcarried(h), carried(h);
      for (Index u = 0; u < h; ++u) dcarried[u] = out[u].dcarried, carried[u] = in[u].carried;
      layer_norm_gradient(dcarried.data(), carried.data(), inverse_deviation_[row], h);
      for (Index u = 0; u < h; ++u) in[u].demitted += dcarried[u];
    }
  }

  const PlainProblem& p_;
  Index rows_;
  std::vector<ForwardIn<C, double>> in_;
  std::vector<ForwardOut<C, double>> out_;
  std::vector<double> inverse_deviation_;                // of the emitted rows
  std::vector<double> deviations_, inverse_deviations_;  // of product operations: what each has made, and by what it divided
};

}  // namespace ost::OST_SET
