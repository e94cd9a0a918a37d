#include "stack.h"

#include <algorithm>
#include <numeric>

#include "dispatch.h"

#define OST_SET once
#include "core/philox.h"
#include "core/times.h"

namespace ost {
using namespace once;
namespace {

template <class T>
void add_rows(const Rows<T>& from, const Rows<T>& to, Index steps, Index batch, Index width) {
  if (batch == 0) return;  // no row, however many steps
  for (Index t = 0; t < steps; ++t)
    for (Index b = 0; b < batch; ++b) {
      if (to.starts && to.starts[b] + t >= to.ends[b]) continue;
      const T* __restrict a = from.data + t * from.t + b * from.b;
      T* __restrict c = to.data + (to.starts ? (to.starts[b] + t) * to.t : t * to.t + b * to.b);
      for (Index k = 0; k < width; ++k) c[k] += a[k];
    }
}

// Rows [begin, end), from the longest to the shortest, are divided between two halves in snake order, and so on down to a few rows: any
// range of positions, so whatever one thread takes, has about the same to do, and its rows end one after the other.
void balance_range(std::vector<Index>& rows, Index begin, Index end) {
  if (end - begin <= 8) return;
  const std::vector<Index> all(rows.begin() + begin, rows.begin() + end);
  const Index n = end - begin, middle = begin + n / 4 * 2 + (n % 4 > 0);
  Index to[] = {begin, middle};
  for (std::size_t i = 0; i < all.size(); ++i) rows[to[(i + 1) / 2 % 2]++] = all[i];
  balance_range(rows, begin, middle);
  balance_range(rows, middle, end);
}

// The entries of one row in a flat table; returns the number of steps that it takes part in.
Index fill_row(const MaskInputs& given, Index b, std::int32_t* entries) {
  const Index length = given.end(b);
  RowCursor place = RowCursor::first(given, b);
  Index taken = 0;
  for (Index s = 0; s < length; ++s) {
    const Index t = given.from_end ? length - 1 - s : s;
    entries[t] = place.step(given, t, b);
    taken += entries[t] > kSkipped;
  }
  entries[length] = place.state;
  return taken;
}

template <class T>
std::shared_ptr<const Backend<T>> cpu_backend() {
  static const auto one = std::make_shared<const CpuBackend<T>>();
  return one;
}

}  // namespace

std::uint32_t philox_word(std::uint64_t key, std::uint32_t layer_direction, std::uint64_t t, std::uint32_t b, std::uint32_t unit) {
  return random_words(unit_row(key, layer_direction, t, b), unit / 4).w[unit % 4];
}

template <class T>
void drop_rows(const StackShape& shape, Index layer, const StackCall<T>& call, const T* from, T* to) {
  if (call.batch == 0) return;  // no row, however many steps
  const auto drop = typed<T>(kernels()).train.dropout;
  for (Index t = 0; t < call.steps; ++t)
    for (Index b = 0; b < call.batch; ++b)
      for (int d = 0; d < shape.directions; ++d) {
        const Index at = (t * call.batch + b) * shape.width() + d * shape.output;
        const RandomRow random = unit_row(call.key, std::uint32_t(layer * 2 + d), std::uint64_t(call.first_step + t), std::uint32_t(b));
        drop(shape.output, from + at, to + at, call.dropout, random);
      }
}

template <class T>
void dropout_flat(Index n, const T* x, T* y, double rate, std::uint64_t key) {
  constexpr Index kPart = Index(1) << 34;  // numbers, four a word of the counter
  for (Index part = 0; part * kPart < n; ++part) {
    const Index first = part * kPart;
    typed<T>(kernels()).train.dropout(smaller(kPart, n - first), x + first, y + first, rate, element_row(key, part));
  }
}

constexpr Index kMostLayers = 8;  // of one group of kernel calls

template <class T>
PackedStack<T>::PackedStack(const KernelTable* table, const StackShape& shape, Precision precision,
                            const std::vector<RawWeights<T>>& weights, bool backward, const std::vector<double>& scalars)
    : table(table), shape(shape), precision(precision), backward(backward), parts(weights.size()), backend(cpu_backend<T>()) {
  const auto rounded = [](Index n) { return (n + 15) / 16 * 16; };
  Index total = 0;
  for (Index layer = 0; layer < shape.layers; ++layer)
    total += shape.directions * rounded(cell().packed_size(shape.layer_input(layer), shape.widths(), backward));
  memory = Buffer<T>(total, "packed weights");
  T* p = memory.get();
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const Index input = shape.layer_input(Index(i) / shape.directions);
    if (cell().pack(weights[i], input, shape.widths(), backward, p, &parts[i]) != kOk) throw OutOfMemory("packing: cannot allocate a row");
    std::copy(scalars.begin(), scalars.end(), parts[i].scalars);
    p += rounded(cell().packed_size(input, shape.widths(), backward));
  }
}

template <class T>
PackedStack<T>::PackedStack(const KernelTable* table, const StackShape& shape, std::shared_ptr<const Backend<T>> backend, bool backward)
    : table(table), shape(shape), precision(Precision::kExact), backward(backward), backend(std::move(backend)) {
  for (Index part = 0; part < shape.layers * shape.directions; ++part) {
    PackedWeights<T> sizes{};
    sizes.input = shape.layer_input(part / shape.directions), sizes.widths = shape.widths();
    parts.push_back(sizes);
  }
}

template <class T>
std::vector<GroupPlan> stack_plan(const CellKernels<T>& cell, const StackShape& s, Index steps, Index batch, bool dropout, bool backward) {
  std::vector<GroupPlan> out;
  std::vector<Index> inputs;
  for (Index layer = 0; layer < s.layers;) {
    GroupPlan group{layer, 1, {}, false, nullptr};
    if (s.directions == 1 && s.layers > 1 && !dropout) {  // layers as a wavefront, where that pays
      group.layers = std::min(s.layers - layer, kMostLayers);
      inputs.clear();
      for (Index i = 0; i < group.layers; ++i) inputs.push_back(s.layer_input(layer + i));
      cell.plan(steps, batch, inputs.data(), s.widths(), int(group.layers), true, backward, &group.plan);
      if (!group.plan.concurrent) group.layers = 1;
    }
    if (group.layers == 1) {
      inputs.assign(std::size_t(s.directions), s.layer_input(layer));
      cell.plan(steps, batch, inputs.data(), s.widths(), s.directions, false, backward, &group.plan);
    }
    layer += group.layers;
    out.push_back(group);
  }
  return out;
}

std::vector<Index> balance_rows(const std::vector<Index>& lengths) {
  std::vector<Index> rows(lengths.size());
  std::iota(rows.begin(), rows.end(), Index(0));
  std::stable_sort(rows.begin(), rows.end(), [&](Index a, Index b) { return lengths[a] > lengths[b]; });
  balance_range(rows, 0, Index(rows.size()));
  return rows;
}

template <class T>
void set_times(StackCall<T>& call, const StackShape& shape, const Index* lengths, const std::uint8_t* resets, const std::uint8_t* mask,
               bool repeat, const std::uint8_t* held, const std::uint8_t* resets_after, const std::uint8_t* restarted) {
  const Index steps = call.steps, batch = call.batch;
  if (batch == 0) return;  // no row, however many steps
  if (!lengths && !resets && !mask && !resets_after) return;
  if (lengths || mask) call.lengths.assign(std::size_t(batch), steps);
  if (lengths) call.lengths.assign(lengths, lengths + batch), call.stops = call.lengths;
  if (!call.starts[0].empty()) {  // where most of [T,B] would be empty; else rows of a step lie side by side, which is faster
    const Index rows = std::accumulate(call.stops.begin(), call.stops.end(), Index(0));
    Index begin = 0;
    for (Index b = 0; b < batch && 4 * rows < steps * batch; ++b) call.tape.push_back(begin), begin += lengths[b];
  }
  if (resets || mask || resets_after) {
    const bool flat = !call.starts[0].empty();  // then the table, too, holds the real steps only
    Index entries = flat ? 0 : (steps + 1) * batch;
    for (Index b = 0; flat && b < batch; ++b) call.offsets.push_back(entries), entries += lengths[b] + 1;
    for (const int from_end : {0, 1}) {
      if (from_end && shape.directions == 1 && !shape.reverse) continue;  // none runs from the end; the other tells who takes part
      std::vector<std::int32_t>& table = call.predecessors[from_end];
      table.resize(std::size_t(entries));
      const MaskInputs given{steps,
                             batch,
                             lengths,
                             resets,
                             mask,
                             held,
                             restarted,
                             resets_after,
                             repeat,
                             from_end != 0,
                             flat ? call.starts[0].data() : nullptr};
      const bool count = from_end == 0 && mask;
      if (count) std::fill(call.lengths.begin(), call.lengths.end(), 0);
      if (flat) {
        for (Index b = 0; b < batch; ++b) {
          const Index taken = fill_row(given, b, table.data() + call.offsets[b]);
          if (count) call.lengths[b] = taken;
        }
        continue;
      }
      std::vector<RowCursor> places;
      for (Index b = 0; b < batch; ++b) places.push_back(RowCursor::first(given, b));
      for (Index s = 0; s < steps; ++s) {
        const Index t = from_end ? steps - 1 - s : s;
        for (Index b = 0; b < batch; ++b) {
          table[t * batch + b] = places[b].step(given, t, b);
          if (count) call.lengths[b] += table[t * batch + b] > kSkipped;
        }
      }
      for (Index b = 0; b < batch; ++b) table[steps * batch + b] = places[b].state;
    }
  }
  if (call.lengths.empty()) return;
  call.order = balance_rows(call.lengths);
}

template <class T>
bool takes_part(const StackCall<T>& call, Index t, Index b) {
  if (!call.offsets.empty()) return t < call.stops[b] && call.predecessors[0][call.offsets[b] + t] > kSkipped;
  if (!call.predecessors[0].empty()) return call.predecessors[0][t * call.batch + b] > kSkipped;
  return call.lengths.empty() || t < call.lengths[b];
}

template <class T>
Times times_of(const StackCall<T>& call, bool reverse) {
  if (call.device_tables) return call.device_times[reverse];
  const auto& table = call.predecessors[reverse];
  return {call.lengths.empty() ? nullptr : call.lengths.data(), table.empty() ? nullptr : table.data(),
          call.order.empty() ? nullptr : call.order.data(),     call.stops.empty() ? nullptr : call.stops.data(),
          call.offsets.empty() ? nullptr : call.offsets.data(), call.tape.empty() ? nullptr : call.tape.data()};
}

// What each direction of the first layer makes of the table that its input is looked up in.
template <class T>
int project_table(const PackedStack<T>& packed, const StackCall<T>& call, std::vector<Buffer<T>>* out) {
  const Index rows = call.lookup.rows;
  for (int d = 0; d < packed.shape.directions; ++d) {
    out->emplace_back(packed.cell().projected_size(rows, packed.shape.widths()), "projected rows of the table");
    if (const int status = packed.cell().project(packed.parts[d], rows, call.x.data, out->back().get())) return status;
  }
  return kOk;
}

template <class T>
int stack_forward(const PackedStack<T>& packed, const StackCall<T>& call, Tape<T>* tape) {
  const StackShape& s = packed.shape;
  const Backend<T>& backend = *packed.backend;
  const Index rows = call.steps * call.batch;
  const Index hidden_state = call.batch * s.output, cell_state = call.batch * s.hidden;
  std::vector<Buffer<T>> spare(std::size_t(s.layers));  // outputs of the layers below the last
  std::vector<Buffer<T>> tables;
  const std::vector<Buffer<T>>& projected = tape ? tape->projected : tables;
  if (call.lookup.ids.data)
    if (const int status = project_table(packed, call, tape ? &tape->projected : &tables)) return status;
  Rows<const T> x = call.x;
  for (const GroupPlan& group : backend.plan(packed, call, nullptr)) {
    std::vector<ForwardCall<T>> calls;
    for (Index layer = group.first_layer; layer < group.first_layer + group.layers; ++layer) {
      Rows<T> y = call.y;
      if (layer + 1 < s.layers) {
        Buffer<T>& buffer = spare[layer];
        buffer = backend.allocate(rows * s.width(), "layer outputs");
        y = {buffer.get(), call.batch * s.width(), s.width()};
      }
      for (int d = 0; d < s.directions; ++d) {
        const Index part = layer * s.directions + d;
        ForwardCall<T> f{};
        f.weights = &packed.parts[part];
        f.steps = call.steps, f.batch = call.batch, f.reverse = (d == 1) != s.reverse;
        f.times = times_of(call, f.reverse);
        if (call.restart_h) f.restart_h = call.restart_h + part * s.output;
        if (call.restart_c) f.restart_c = call.restart_c + part * s.hidden;
        f.x = x;
        if (layer == 0 && call.lookup.ids.data) f.lookup = call.lookup, f.projected = projected[d].get();
        f.y = {y.data + d * s.output, y.t, y.b, y.starts, y.ends};
        if (call.h0) f.h0 = call.h0 + part * hidden_state;
        if (call.c0) f.c0 = call.c0 + part * cell_state;
        if (call.hn) f.hn = call.hn + part * hidden_state;
        if (call.cn) f.cn = call.cn + part * cell_state;
        if (tape) backend.save(packed, call, tape, &f);
        f.poll = call.poll;
        calls.push_back(f);
      }
      x = {y.data, y.t, y.b};
    }
    if (const int status = backend.forward(packed, call, group, calls, tape)) return status;
    const Index last = group.first_layer + group.layers - 1;
    if (!tape) {  // what has been read is not needed any more
      for (Index layer = 0; layer < last; ++layer) spare[layer] = {};
      if (call.dropout > 0 && last + 1 < s.layers) backend.drop(s, last, call, x.data, spare[last].get());
      continue;
    }
    for (Index layer = group.first_layer; layer <= last && layer + 1 < s.layers; ++layer) tape->outputs.push_back(std::move(spare[layer]));
    if (call.dropout > 0 && last + 1 < s.layers) {
      tape->dropped.push_back(backend.allocate(rows * s.width(), "dropout"));
      backend.drop(s, last, call, x.data, tape->dropped.back().get());
      x.data = tape->dropped.back().get();
    }
  }
  return kOk;
}

// What the backward pass of one direction of a layer is given of the tape and of the gradients; x, y, dy and dx are left out.
template <class T>
BackwardCall<T> backward_call(const Tape<T>& tape, const StackGradients<T>& g, Index layer, int d, Poll poll) {
  const StackShape& s = tape.packed->shape;
  const StackCall<T>& call = tape.call;
  const Index part = layer * s.directions + d, hidden_state = call.batch * s.output, cell_state = call.batch * s.hidden;
  BackwardCall<T> b{};
  b.weights = &tape.packed->parts[part];
  b.steps = call.steps, b.batch = call.batch, b.reverse = (d == 1) != s.reverse;
  b.times = times_of(call, b.reverse);
  if (call.restart_h) b.restart_h = call.restart_h + part * s.output;
  if (call.restart_c) b.restart_c = call.restart_c + part * s.hidden;
  if (g.drestart_h) b.drestart_h = g.drestart_h + part * s.output;
  if (g.drestart_c) b.drestart_c = g.drestart_c + part * s.hidden;
  // Flat cuts lie as x does, also where that holds the numbers of a table's rows, which call.x is then.
  const bool flat = tape.passes.empty() && !call.starts[0].empty();
  b.control = {g.clip_value, g.clip_norm, g.cuts, g.dcells, nullptr, flat ? call.starts[0].data() : call.x.starts};
  if (g.dcells.data) b.control.dcells.data += part * g.dcells_part;
  if (g.flow) b.control.flow = g.flow + part * g.flow_part;
  if (layer == 0 && call.lookup.ids.data) b.lookup = call.lookup, b.projected = tape.projected[d].get();
  if (call.h0) b.h0 = call.h0 + part * hidden_state;
  if (call.c0) b.c0 = call.c0 + part * cell_state;
  if (tape.passes.empty()) b.saved = tape.saved[part].get(), b.cells = tape.cells[part].get();
  if (g.dhn) b.dhn = g.dhn + part * hidden_state;
  if (g.dcn) b.dcn = g.dcn + part * cell_state;
  if (g.dh0) b.dh0 = g.dh0 + part * hidden_state;
  if (g.dc0) b.dc0 = g.dc0 + part * cell_state;
  b.gradients = g.weights[part], b.overwrite = g.overwrite;
  if (g.sums) b.sums = (*g.sums)[part].get(), b.resume = g.resume, b.more = g.more;
  b.poll = poll;
  return b;
}

template <class T>
int stack_backward(const Tape<T>& tape, const StackGradients<T>& g, Poll poll) {
  const PackedStack<T>& packed = *tape.packed;
  const StackShape& s = packed.shape;
  const Backend<T>& backend = *packed.backend;
  const StackCall<T>& call = tape.call;
  const Index rows = call.steps * call.batch;
  const Rows<T> inner{nullptr, call.batch * s.width(), s.width(), nullptr};
  std::vector<Buffer<T>> below(std::size_t(s.layers));  // gradients of the layers' inputs
  Rows<const T> dy = g.dy;
  std::vector<GroupPlan> groups = backend.plan(packed, call, &g);
  std::reverse(groups.begin(), groups.end());
  for (const GroupPlan& group : groups) {
    std::vector<BackwardCall<T>> calls;
    Buffer<T> other;  // what the second direction gives, where both run at the same time
    Rows<T> dx{}, second{};
    for (Index layer = group.first_layer + group.layers; layer-- > group.first_layer;) {
      Rows<const T> x = call.x, y{call.y.data, call.y.t, call.y.b, call.y.starts, call.y.ends};
      if (layer > 0) x = {(tape.dropped.empty() ? tape.outputs : tape.dropped)[layer - 1].get(), inner.t, inner.b};
      if (layer + 1 < s.layers) y = {tape.outputs[layer].get(), inner.t, inner.b};
      dx = g.dx;
      if (layer > group.first_layer && group.exchanged) {
        dx = {};
      } else if (layer > 0) {
        below[layer] = backend.allocate(rows * s.width(), "gradients of a layer's inputs");
        dx = {below[layer].get(), inner.t, inner.b};
      }
      if (s.directions == 2 && group.plan.concurrent && dx.data) {
        const Index width = s.layer_input(layer);
        other = backend.allocate(rows * width, "gradients of a layer's inputs");
        second = {other.get(), call.batch * width, width};
      }
      for (int d = 0; d < s.directions; ++d) {
        BackwardCall<T> b = backward_call(tape, g, layer, d, poll);
        b.x = x;
        b.y = {y.data + d * s.output, y.t, y.b, y.starts, y.ends};
        b.dy = {dy.data ? dy.data + d * s.output : nullptr, dy.t, dy.b, dy.starts, dy.ends};
        b.dx = d == 1 && second.data ? second : dx;
        b.dx_add = (d == 1 && !second.data) || (layer == 0 && g.dx_add);
        calls.push_back(b);
      }
      dy = {dx.data, dx.t, dx.b};
    }
    if (const int status = backend.backward(tape, g, group, calls)) return status;
    const Index layer = group.first_layer;
    if (second.data) {
      const unsigned mode = flush_denormals_on();  // as in the kernels, which add where directions run one after the other
      add_rows(second, dx, call.steps, call.batch, s.layer_input(layer));
      flush_denormals_restore(mode);
    }
    if (layer == 0) break;
    for (Index above = layer + 1; above < s.layers; ++above) below[above] = {};
    if (call.dropout > 0) backend.drop(s, layer - 1, call, below[layer].get(), below[layer].get());
  }
  return kOk;
}

template struct PackedStack<float>;
template struct PackedStack<double>;
template std::vector<GroupPlan> stack_plan(const CellKernels<float>&, const StackShape&, Index, Index, bool, bool);
template std::vector<GroupPlan> stack_plan(const CellKernels<double>&, const StackShape&, Index, Index, bool, bool);
template void set_times(StackCall<float>&, const StackShape&, const Index*, const std::uint8_t*, const std::uint8_t*, bool,
                        const std::uint8_t*, const std::uint8_t*, const std::uint8_t*);
template void set_times(StackCall<double>&, const StackShape&, const Index*, const std::uint8_t*, const std::uint8_t*, bool,
                        const std::uint8_t*, const std::uint8_t*, const std::uint8_t*);
template void drop_rows(const StackShape&, Index, const StackCall<float>&, const float*, float*);
template void drop_rows(const StackShape&, Index, const StackCall<double>&, const double*, double*);
template bool takes_part(const StackCall<float>&, Index, Index);
template bool takes_part(const StackCall<double>&, Index, Index);
template int stack_forward(const PackedStack<float>&, const StackCall<float>&, Tape<float>*);
template int stack_forward(const PackedStack<double>&, const StackCall<double>&, Tape<double>*);
template int stack_backward(const Tape<float>&, const StackGradients<float>&, Poll);
template int stack_backward(const Tape<double>&, const StackGradients<double>&, Poll);
template void dropout_flat(Index, const float*, float*, double, std::uint64_t);
template void dropout_flat(Index, const double*, double*, double, std::uint64_t);

}  // namespace ost
