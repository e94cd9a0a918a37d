#include "stack.h"

namespace ost {
namespace {

struct Words {
  std::uint32_t w[4];
};

Words philox(std::uint64_t key, Words c) {
  std::uint32_t k0 = std::uint32_t(key), k1 = std::uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t(0xD2511F53u) * c.w[0], p1 = std::uint64_t(0xCD9E8D57u) * c.w[2];
    c = {{std::uint32_t(p1 >> 32) ^ c.w[1] ^ k0, std::uint32_t(p1), std::uint32_t(p0 >> 32) ^ c.w[3] ^ k1, std::uint32_t(p0)}};
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return c;
}

Words unit_words(std::uint64_t key, std::uint32_t layer_direction, std::uint64_t t, std::uint32_t b, std::uint32_t quad) {
  return philox(key, {{quad, b, std::uint32_t(t), layer_direction ^ std::uint32_t(t >> 32) << 16}});
}

// rows [T,B,D*H] of layer `layer`: to = from * mask / (1 - rate); from and to may be the same.
template <class T>
void drop_rows(const StackShape& shape, Index layer, Index steps, Index batch, double rate, std::uint64_t key, const T* from, T* to) {
  const T scale = T(1 / (1 - rate));
  for (Index t = 0; t < steps; ++t)
    for (Index b = 0; b < batch; ++b)
      for (int d = 0; d < shape.directions; ++d)
        for (Index u = 0; u < shape.hidden; u += 4) {
          const Words words = unit_words(key, std::uint32_t(layer * 2 + d), std::uint64_t(t), std::uint32_t(b), std::uint32_t(u / 4));
          for (Index k = u; k < shape.hidden && k < u + 4; ++k) {
            const Index i = (t * batch + b) * shape.width() + d * shape.hidden + k;
            to[i] = dropout_keeps(words.w[k - u], rate) ? from[i] * scale : T(0);
          }
        }
}

}  // namespace

std::uint32_t philox_word(std::uint64_t key, std::uint32_t layer_direction, std::uint64_t t, std::uint32_t b, std::uint32_t unit) {
  return unit_words(key, layer_direction, t, b, unit / 4).w[unit % 4];
}

bool dropout_keeps(std::uint32_t word, double rate) { return double(word >> 8) * (1.0 / 16777216.0) >= rate; }

template <class T>
void dropout_flat(Index n, const T* x, T* y, double rate, std::uint64_t key) {
  const T scale = T(1 / (1 - rate));
  for (Index i = 0; i < n; i += 4) {
    const Words words = philox(key, {{std::uint32_t(i / 4), std::uint32_t((i / 4) >> 32), 0, 0x80000000u}});
    for (Index k = i; k < n && k < i + 4; ++k) y[k] = dropout_keeps(words.w[k - i], rate) ? x[k] * scale : T(0);
  }
}

template <class T>
PackedStack<T>::PackedStack(const KernelTable* table, const StackShape& shape, const std::vector<RawWeights<T>>& weights, bool backward)
    : table(table), shape(shape), backward(backward), parts(weights.size()) {
  const auto& cell = kernels().cells[int(shape.cell)];
  const auto rounded = [](Index n) { return (n + 15) / 16 * 16; };
  Index total = 0;
  for (Index layer = 0; layer < shape.layers; ++layer)
    total += shape.directions * rounded(cell.packed_size(shape.layer_input(layer), shape.hidden, backward));
  memory = Buffer<T>(total, "packed weights");
  T* p = memory.get();
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const Index input = shape.layer_input(Index(i) / shape.directions);
    cell.pack(weights[i], input, shape.hidden, backward, p, &parts[i]);
    p += rounded(cell.packed_size(input, shape.hidden, backward));
  }
}

template <class T>
int stack_forward(const PackedStack<T>& packed, const StackCall<T>& call, Tape<T>* tape) {
  const StackShape& s = packed.shape;
  const CellTraits& traits = packed.traits();
  const auto& cell = packed.kernels().cells[int(s.cell)];
  const Index rows = call.steps * call.batch,
              padded = (s.hidden + packed.kernels().lanes - 1) / packed.kernels().lanes * packed.kernels().lanes;
  const Index state = call.batch * s.hidden;
  Buffer<T> spare[2];  // inference: outputs of the layer below and of this one
  Rows<const T> x = call.x;
  for (Index layer = 0; layer < s.layers; ++layer) {
    Rows<T> y = call.y;
    if (layer + 1 < s.layers) {
      Buffer<T>& buffer = spare[layer % 2];
      if (tape || !buffer.get()) buffer = Buffer<T>(rows * s.width(), "layer outputs");
      y = {buffer.get(), call.batch * s.width(), s.width()};
    }
    for (int d = 0; d < s.directions; ++d) {
      const Index part = layer * s.directions + d;
      ForwardCall<T> f{};
      f.weights = &packed.parts[part];
      f.steps = call.steps, f.batch = call.batch, f.reverse = (d == 1) != s.reverse;
      f.lengths = call.lengths.empty() ? nullptr : call.lengths.data();
      f.x = x;
      f.y = {y.data + d * s.hidden, y.t, y.b};
      if (call.h0) f.h0 = call.h0 + part * state;
      if (call.c0) f.c0 = call.c0 + part * state;
      if (call.hn) f.hn = call.hn + part * state;
      if (call.cn) f.cn = call.cn + part * state;
      if (tape) {
        tape->saved.emplace_back(rows * traits.saved * padded, "tape");
        tape->cells.emplace_back(traits.states > 1 ? rows * padded : 0, "tape");
        f.saved = tape->saved.back().get();
        if (traits.states > 1) f.cells = tape->cells.back().get();
      }
      f.poll = call.poll;
      if (const int status = cell.forward(f)) return status;
    }
    if (layer + 1 == s.layers) break;
    x = {y.data, y.t, y.b};
    if (!tape) continue;
    tape->outputs.push_back(std::move(spare[layer % 2]));
    if (call.dropout > 0) {
      tape->dropped.emplace_back(rows * s.width(), "dropout");
      drop_rows(s, layer, call.steps, call.batch, call.dropout, call.key, y.data, tape->dropped.back().get());
      x.data = tape->dropped.back().get();
    }
  }
  return kOk;
}

template <class T>
int stack_backward(const Tape<T>& tape, const StackGradients<T>& g, Poll poll) {
  const PackedStack<T>& packed = *tape.packed;
  const StackShape& s = packed.shape;
  const StackCall<T>& call = tape.call;
  const auto& cell = packed.kernels().cells[int(s.cell)];
  const Index rows = call.steps * call.batch, state = call.batch * s.hidden;
  const Rows<T> inner{nullptr, call.batch * s.width(), s.width()};
  Buffer<T> above, below;  // gradients of a layer's outputs and inputs
  Rows<const T> dy = g.dy;
  for (Index layer = s.layers; layer-- > 0;) {
    Rows<const T> x = call.x, y{call.y.data, call.y.t, call.y.b};
    if (layer > 0) x = {(tape.dropped.empty() ? tape.outputs : tape.dropped)[layer - 1].get(), inner.t, inner.b};
    if (layer + 1 < s.layers) y = {tape.outputs[layer].get(), inner.t, inner.b};
    Rows<T> dx = g.dx;
    if (layer > 0) {
      below = Buffer<T>(rows * s.width(), "gradients of a layer's inputs");
      dx = {below.get(), inner.t, inner.b};
    }
    for (int d = 0; d < s.directions; ++d) {
      const Index part = layer * s.directions + d;
      BackwardCall<T> b{};
      b.weights = &packed.parts[part];
      b.steps = call.steps, b.batch = call.batch, b.reverse = (d == 1) != s.reverse;
      b.lengths = call.lengths.empty() ? nullptr : call.lengths.data();
      b.x = x;
      b.y = {y.data + d * s.hidden, y.t, y.b};
      if (call.h0) b.h0 = call.h0 + part * state;
      if (call.c0) b.c0 = call.c0 + part * state;
      b.saved = tape.saved[part].get(), b.cells = tape.cells[part].get();
      b.dy = {dy.data ? dy.data + d * s.hidden : nullptr, dy.t, dy.b};
      if (g.dhn) b.dhn = g.dhn + part * state;
      if (g.dcn) b.dcn = g.dcn + part * state;
      b.dx = dx, b.dx_add = d > 0;
      if (g.dh0) b.dh0 = g.dh0 + part * state;
      if (g.dc0) b.dc0 = g.dc0 + part * state;
      b.gradients = g.weights[part];
      b.poll = poll;
      if (const int status = cell.backward(b)) return status;
    }
    if (layer == 0) break;
    if (call.dropout > 0) drop_rows(s, layer - 1, call.steps, call.batch, call.dropout, call.key, below.get(), below.get());
    above = std::move(below);
    dy = {above.get(), inner.t, inner.b};
  }
  return kOk;
}

template struct PackedStack<float>;
template struct PackedStack<double>;
template int stack_forward(const PackedStack<float>&, const StackCall<float>&, Tape<float>*);
template int stack_forward(const PackedStack<double>&, const StackCall<double>&, Tape<double>*);
template int stack_backward(const Tape<float>&, const StackGradients<float>&, Poll);
template int stack_backward(const Tape<double>&, const StackGradients<double>&, Poll);
template void dropout_flat(Index, const float*, float*, double, std::uint64_t);
template void dropout_flat(Index, const double*, double*, double, std::uint64_t);

}  // namespace ost
