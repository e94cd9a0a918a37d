// Stacks of recurrent layers: packing, forward, backward.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "../dispatch.h"
#include "../stack.h"
#include "arrays.h"
#include "device_backend.h"

namespace ost {
namespace {

CellId cell_named(const std::string& name) {
  std::string known;
  for (int i = 0; i < kCellCount; ++i) {
    const char* cell = kernels()->traits[i].name;
    if (name == cell) return CellId(i);
    known += (i ? ", " : "") + std::string(cell);
  }
  fail("cell", "one of " + known, "'" + name + "'");
}

constexpr const char* kPrecisions[kPrecisionCount] = {"exact", "bfloat16", "int8"};

template <class T>
Precision precision_named(const std::string& name, bool backward) {
  int i = 0;
  while (i < kPrecisionCount && name != kPrecisions[i]) ++i;
  if (i == kPrecisionCount) fail("precision", "one of exact, bfloat16, int8", "'" + name + "'");
  if (i > 0 && sizeof(T) != 4) fail("precision", "exact for a float64 layer", "'" + name + "'");
  if (Precision(i) == Precision::kInt8 && backward) fail("precision", "one that can be trained (int8 is for inference)", "'int8'");
  return Precision(i);
}

std::string suffix(const StackShape& s, Index part) {
  if (!s.numbered) return "";
  return "_l" + std::to_string(part / s.directions) + (part % s.directions ? "_reverse" : "");
}

// Arrays of one (layer, direction): weight_ih, weight_hh, bias_ih, bias_hh, of which the biases may be None; the cell's unit weights, or
// one None; and weight_hr of a cell that is projected. They are kept in `held` as long as the pointers are used.
template <class T, class Raw>
Raw raw_arrays(const StackShape& s, const CellTraits& traits, Index part, const py::sequence& arrays, const char* prefix, bool writable,
               std::vector<py::object>& held, const py::object& device) {
  std::vector<std::string> names{"weight_ih", "weight_hh", "bias_ih", "bias_hh"};
  for (int k = 0; k < traits.unit_weights; ++k) names.push_back(traits.units[k].name);
  if (!traits.unit_weights) names.push_back("");  // the place of weights that this cell has none of
  if (traits.projected) names.push_back("weight_hr");
  const auto label = [&](int i) { return prefix + names[i] + suffix(s, part); };
  const Index count = Index(names.size());
  if (Index(py::len(arrays)) != count)
    fail("weights", std::to_string(count) + " arrays a layer and direction", std::to_string(py::len(arrays)));
  const Index rows = traits.gates * s.hidden, input = s.layer_input(part / s.directions);
  const auto get = [&](int i, const std::vector<Axis>& axes, bool needed) -> decltype(Raw::weight_ih) {
    const py::object a = arrays[i];
    held.push_back(a);
    if (a.is_none() && needed) fail(label(i), "an array", "None");
    return optional_view<T>(a, label(i), axes, Strides::kContiguous, writable, device).data;
  };
  const std::string gates = traits.gates == 1 ? "H" : std::to_string(traits.gates) + "*H";
  Raw raw{};
  raw.weight_ih = get(0, {{gates.c_str(), rows}, {"I", input}}, !writable);
  raw.weight_hh = get(1, {{gates.c_str(), rows}, {traits.projected ? "P" : "H", s.output}}, !writable);
  raw.bias_ih = get(2, {{gates.c_str(), rows}}, false);
  raw.bias_hh = get(3, {{gates.c_str(), rows}}, false);
  int row = 0;
  for (int k = 0; k < traits.unit_weights; ++k) {
    const UnitWeights& w = traits.units[k];
    const std::string rows_name = w.rows == 1 ? "H" : std::to_string(w.rows) + "*H";
    auto* data = w.flat ? get(4 + k, {{rows_name.c_str(), w.rows * s.hidden}}, !writable)
                        : get(4 + k, {{"gates", w.rows}, {"H", s.hidden}}, !writable);
    for (int i = 0; i < w.rows; ++i, ++row) raw.units[row] = data ? data + i * s.hidden : nullptr;
  }
  if (traits.projected) raw.weight_hr = get(int(count) - 1, {{"P", s.output}, {"H", s.hidden}}, !writable);
  return raw;
}

// A scale needs finite weights: a NaN would be lost in the rounding.
template <class T>
void refuse_not_finite(const StackShape& s, const CellTraits& traits, Index part, const RawWeights<T>& raw) {
  const Index rows = traits.gates * s.hidden;
  const auto check = [&](const T* w, const char* name, Index rows, Index n) {
    for (Index i = 0; i < rows * n; ++i)
      if (!std::isfinite(w[i]))
        fail(name + suffix(s, part), "finite weights for int8", std::to_string(w[i]) + " in row " + std::to_string(i / n));
  };
  check(raw.weight_ih, "weight_ih", rows, s.layer_input(part / s.directions));
  check(raw.weight_hh, "weight_hh", rows, s.output);
  if (raw.weight_hr) check(raw.weight_hr, "weight_hr", s.output, s.hidden);
}

// `projection` is P of a projected cell, and 0 of the others, whose h is as wide as they have units.
StackShape shape_of(const std::string& cell, Index input, Index hidden, Index layers, bool bidirectional, bool reverse, bool numbered,
                    Index projection) {
  const CellId id = cell_named(cell);
  const bool projected = kernels()->traits[int(id)].projected;
  if (!projected && projection != 0) fail("proj_size", "0 for the cell " + cell, std::to_string(projection));
  return {id, input, hidden, projected ? projection : hidden, layers, bidirectional ? 2 : 1, reverse, numbered};
}

template <class T>
std::shared_ptr<PackedStack<T>> pack_stack(const std::string& cell, Index input, Index hidden, Index layers, bool bidirectional,
                                           const py::sequence& weights, bool backward, bool reverse, const std::string& precision_name,
                                           bool numbered, Index projection, const py::object& launcher) {
  const bool on_cpu = launcher.is_none();
  const py::object device = on_cpu ? py::object(py::none()) : py::object(launcher.attr("device"));
  const Precision precision = on_cpu ? precision_named<T>(precision_name, backward) : Precision::kExact;
  const StackShape s = shape_of(cell, input, hidden, layers, bidirectional, reverse, numbered, projection);
  const std::pair<const char*, Index> sizes[] = {
      {"input_size", input}, {"hidden_size", hidden}, {"num_layers", layers}, {"proj_size", s.output}};
  for (const auto& [name, size] : sizes)
    if (size < 1) fail(name, "at least 1", std::to_string(size));
  const KernelTable* table = kernels();
  if (Index(py::len(weights)) != layers * s.directions)
    fail("weights", std::to_string(layers * s.directions) + " groups of arrays", std::to_string(py::len(weights)));
  std::vector<RawWeights<T>> raw;
  std::vector<py::object> held;
  for (Index part = 0; part < layers * s.directions; ++part)
    raw.push_back(raw_arrays<const T, RawWeights<T>>(s, table->traits[int(s.cell)], part, weights[part], "", false, held, device));
  if (!on_cpu) {
    launcher.attr("pack")(weights);
    return std::make_shared<PackedStack<T>>(table, s, std::make_shared<DeviceBackend<T>>(launcher), backward);
  }
  if (precision == Precision::kInt8) {  // sums of 127 * 128 a link must fit 32 bits
    for (const auto& [name, size] : sizes)
      if (size > 131072) fail(name, "at most 131072 for int8", std::to_string(size));
    for (Index part = 0; part < layers * s.directions; ++part) refuse_not_finite(s, table->traits[int(s.cell)], part, raw[part]);
  }
  GilRelease release;
  return std::make_shared<PackedStack<T>>(table, s, precision, raw, backward);
}

template <class T>
const DeviceBackend<T>* on_device(const PackedStack<T>& packed) {
  return packed.backend->on_cpu ? nullptr : static_cast<const DeviceBackend<T>*>(packed.backend.get());
}
template <class T>
py::object device_of(const PackedStack<T>& packed) {
  const auto* backend = on_device(packed);
  return backend ? backend->device() : py::object(py::none());
}

// What Python holds between forward and pullback. The arrays are kept alive here.
template <class T>
struct PyTape {
  Tape<T> tape;
  py::object x, y, h0, c0, restart_h, restart_c, table;
  bool batch_first, resets, ragged;
};

template <class T>
View<T> time_major(View<T> v, bool batch_first) {
  if (batch_first) std::swap(v.shape[0], v.shape[1]), std::swap(v.strides[0], v.strides[1]);
  return v;
}

std::vector<Axis> sequence_axes(Index steps, Index batch, const char* name, Index width, bool batch_first) {
  if (batch_first) return {{"B", batch}, {"T", steps}, {name, width}};
  return {{"T", steps}, {"B", batch}, {name, width}};
}

// Axes of the states of all layers and directions: of h, or of c; without B where `batch` is negative.
std::vector<Axis> state_axes(const StackShape& s, Index batch, bool hidden) {
  const Index parts = s.layers * s.directions;
  std::vector<Axis> axes{{parts == 1 ? "1" : "L*D", parts}};
  if (batch >= 0) axes.push_back({"B", batch});
  axes.push_back(hidden && s.output != s.hidden ? Axis{"P", s.output} : Axis{"H", s.hidden});
  return axes;
}

// Where the sequences of flat rows lie: sequence b is `lengths[b]` rows from starts[b] on.
void place_rows(const Index* starts, const Index* lengths, Index batch, Index rows, std::vector<Index>* begins, std::vector<Index>* ends) {
  for (Index b = 0; b < batch; ++b) {
    if (starts[b] < 0 || lengths[b] > rows - starts[b])
      fail("starts", "sequences within the " + std::to_string(rows) + " rows",
           std::to_string(lengths[b]) + " rows from row " + std::to_string(starts[b]));
    begins->push_back(starts[b]), ends->push_back(starts[b] + lengths[b]);
  }
}

// Resets, mask and cuts: for every step of every row, or one for each of `rows` flat ones.
std::vector<Axis> flag_axes(bool ragged, Index steps, Index batch, Index rows) {
  return ragged ? std::vector<Axis>{{"N", rows}} : std::vector<Axis>{{"T", steps}, {"B", batch}};
}

// Tables of a call in the memory of a device: when rows take part, and where those of flat arrays lie.
template <class T>
void device_times(const DeviceBackend<T>& backend, StackCall<T>& call, const py::object& lengths, const py::object& starts,
                  const py::object& resets, const py::object& mask, bool repeat, const py::object& held_rows,
                  const py::object& resets_after, const py::object& restarted) {
  const auto array = [](const std::vector<Index>& v) {
    auto out = new_array<Index>({Index(v.size())});
    std::copy(v.begin(), v.end(), out.mutable_data());
    return out;
  };
  const auto rows = [&](int k) { return py::make_tuple(array(call.starts[k]), array(call.ends[k])); };
  py::object times = backend.python().attr("times")(call.steps, call.batch, lengths, starts, rows(0), rows(1), resets, mask, repeat,
                                                    held_rows, resets_after, restarted);
  const auto* ends = pointer_to<const Index>(backend.device(), times.attr("lengths"));
  const py::sequence tables = times.attr("tables");
  for (int k : {0, 1}) call.device_times[k] = {ends, pointer_to<const std::int32_t>(backend.device(), tables[k]), nullptr};
  call.device_tables = held(std::move(times));
}

template <class T>
py::tuple forward(std::shared_ptr<PackedStack<T>> packed, const py::object& x, const py::object& h0, const py::object& c0,
                  const py::object& lengths, bool batch_first, const py::object& out, bool train, double dropout, std::uint64_t key,
                  const py::object& resets, const py::object& mask, bool repeat, const py::object& restart_h, const py::object& restart_c,
                  Index first_step, const py::object& held, const py::object& resets_after, const py::object& restarted,
                  const py::object& order, const py::object& starts, Index span, bool states_only, const py::object& table) {
  const StackShape& s = packed->shape;
  const bool has_cells = packed->traits().states > 1;
  const bool ragged = !starts.is_none();
  const py::object device = device_of(*packed);
  const bool on_cpu = device.is_none();
  const auto sequences = [&](auto kind, const char* width_name, Index width) {
    using E = decltype(kind);
    const auto axes = ragged ? std::vector<Axis>{{"N", -1}, {width_name, width}} : sequence_axes(-1, -1, width_name, width, batch_first);
    return time_major(view<E>(x, "x", axes, Strides::kUnitLast, false, device), batch_first && !ragged);
  };
  const bool lookup = !table.is_none();
  const auto xv = lookup ? View<T>{} : sequences(T(), "I", s.input);
  const auto iv = lookup ? sequences(Index(), "1", 1) : View<Index>{};
  const std::vector<Index>& shape = lookup ? iv.shape : xv.shape;
  const auto sv = optional_view<Index>(starts, "starts", {{"B", -1}}, Strides::kContiguous);
  const Index steps = ragged ? span : shape[0], batch = ragged ? sv.shape[0] : shape[1];
  const Index parts = s.layers * s.directions;
  const auto state = [&](const py::object& a, const char* name, Index rows, bool hidden) {
    return optional_view<T>(a, name, state_axes(s, rows, hidden), Strides::kContiguous, false, device);
  };
  const auto h0v = state(h0, "h0", batch, true), c0v = state(c0, "c0", batch, false);

  StackCall<T> call;
  call.steps = steps, call.batch = batch, call.dropout = dropout, call.key = key;
  if (!h0.is_none()) call.h0 = h0v.data;
  if (!c0.is_none()) call.c0 = c0v.data;
  if (ragged && lengths.is_none()) fail("lengths", "one for each sequence", "None");
  const bool lengths_here = on_cpu || py::isinstance<py::array>(lengths);  // a device's are not read: that would wait for it
  const auto lv = lengths_here ? optional_view<Index>(lengths, "lengths", {{"B", batch}}) : View<Index>{};
  if (lv.data) {
    for (Index b = 0; b < batch; ++b)
      if (lv.data[b] < 0 || lv.data[b] > steps)
        fail("lengths", "values from 0 to T = " + std::to_string(steps), std::to_string(lv.data[b]) + " at b = " + std::to_string(b));
  }
  if (ragged) place_rows(sv.data, lv.data, batch, shape[0], &call.starts[0], &call.ends[0]);
  if ((!resets.is_none() || !mask.is_none()) && steps > 2147483640)  // the tables count steps in 32 bits
    fail("x", "at most 2147483640 steps with resets or a mask", std::to_string(steps));
  call.restart_h = state(restart_h, "restart_h", -1, true).data, call.restart_c = state(restart_c, "restart_c", -1, false).data;
  call.first_step = first_step;
  if (on_cpu) {
    const std::vector<Axis> flags = flag_axes(ragged, steps, batch, shape[0]), row{{"B", batch}};
    const auto bytes = [](const py::object& a, const char* name, const std::vector<Axis>& axes) {
      return optional_view<std::uint8_t>(a, name, axes).data;
    };
    set_times(call, s, lv.data, bytes(resets, "resets", flags), bytes(mask, "mask", flags), repeat, bytes(held, "held", row),
              bytes(resets_after, "resets_after", row), bytes(restarted, "restarted", row));
  }
  if (on_cpu && !order.is_none()) {  // kernels of a device need no order
    const auto v = view<Index>(order, "order", {{"B", batch}}, Strides::kContiguous);
    std::vector<bool> seen(std::size_t(batch), false);
    for (Index i = 0; i < batch; ++i) {
      if (v.data[i] < 0 || v.data[i] >= batch || seen[v.data[i]])
        fail("order", "each number below B = " + std::to_string(batch) + " once", std::to_string(v.data[i]) + " at " + std::to_string(i));
      seen[v.data[i]] = true;
    }
    call.order.assign(v.data, v.data + batch);
  }
  // Flat outputs lie as x does; where they are made here, one after the other.
  py::object y = out;
  if (ragged) {
    Index rows = 0;
    for (Index b = 0; b < batch; ++b) {
      call.starts[1].push_back(out.is_none() ? rows : sv.data[b]);
      call.ends[1].push_back(call.starts[1][b] + lv.data[b]);
      rows += lv.data[b];
    }
    if (out.is_none()) y = make_array<T>(device, {rows, s.width()}).object;
  } else if (out.is_none())
    y = make_array<T>(device, {batch_first ? batch : steps, batch_first ? steps : batch, s.width()}).object;
  const auto y_axes = ragged ? std::vector<Axis>{{"N", out.is_none() ? -1 : shape[0]}, {"D*H", s.width()}}
                             : sequence_axes(steps, batch, "D*H", s.width(), batch_first);
  auto yv = time_major(view<T>(y, "out", y_axes, Strides::kUnitLast, true, device), batch_first && !ragged);
  if (!on_cpu) {
    call.flat_rows = ragged ? shape[0] : 0;
    device_times(*on_device(*packed), call, lengths, starts, resets, mask, repeat, held, resets_after, restarted);
  }
  const auto rows_of = [&](const View<T>& v, int k) {
    if (!ragged) return v.rows();
    if (on_cpu) return Rows<T>{v.data, v.strides[0], 0, call.starts[k].data(), call.ends[k].data()};
    const py::sequence flat = held_object(call.device_tables).attr(k == 0 ? "x_rows" : "y_rows");
    return Rows<T>{v.data, v.strides[0], 0, pointer_to<const Index>(device, flat[0]), pointer_to<const Index>(device, flat[1])};
  };
  if (!out.is_none()) {
    // Rows of its own for every (t, b): the finer axis steps over whole rows, the coarser over all that the finer covers.
    const Index st = std::abs(yv.strides[0]), sb = ragged ? 0 : std::abs(yv.strides[1]), width = s.width();
    const bool apart = ragged     ? st >= width
                       : st >= sb ? (batch < 2 || sb >= width) && (steps < 2 || st >= (batch - 1) * sb + width)
                                  : (steps < 2 || st >= width) && (batch < 2 || sb >= (steps - 1) * st + width);
    if (!apart && steps * batch > 1) fail("out", "rows of its own for every (t, b)", "strides by which they overlap");
    if (!lookup) refuse_overlap(yv, xv, "out", "x");
    if (!h0.is_none()) refuse_overlap(yv, h0v, "out", "h0");
    if (!c0.is_none()) refuse_overlap(yv, c0v, "out", "c0");
  }
  if (lookup) {  // the rows' numbers are copied: they are checked, and without the GIL another thread may change the caller's
    const auto tv = view<T>(table, "table", {{"V", -1}, {"I", s.input}}, Strides::kContiguous);
    call.ids = checked_rows(iv, tv.shape[0], "step");
    const Index* starts_of = ragged ? call.starts[0].data() : nullptr;
    call.lookup = {{call.ids.data(), ragged ? 1 : batch, ragged ? 0 : 1, starts_of, ragged ? call.ends[0].data() : nullptr}, tv.shape[0]};
    call.x.data = tv.data;
  } else {
    const Rows<T> x_rows = rows_of(xv, 0);
    call.x = {x_rows.data, x_rows.t, x_rows.b, x_rows.starts, x_rows.ends};
  }
  call.y = rows_of(yv, 1);
  const auto hn = make_array<T>(device, {parts, batch, s.output});
  const auto cn = has_cells ? make_array<T>(device, {parts, batch, s.hidden}) : NewArray<T>{py::none(), nullptr};
  call.hn = hn.data, call.cn = cn.data;
  std::shared_ptr<PyTape<T>> tape;
  if (train) {
    tape = std::make_shared<PyTape<T>>();
    tape->x = x, tape->y = y, tape->h0 = h0, tape->c0 = c0, tape->batch_first = batch_first;
    tape->table = table;
    tape->restart_h = restart_h, tape->restart_c = restart_c, tape->resets = !resets.is_none() || !resets_after.is_none();
    tape->tape.packed = packed, tape->tape.states_only = states_only, tape->ragged = ragged;
  }
  SignalPoll signals;
  call.poll = signals.poll();
  int status;
  {
    std::optional<GilRelease> release;  // launches on a device need the GIL
    if (on_cpu) release.emplace();
    status = stack_forward(*packed, call, tape ? &tape->tape : nullptr);
  }
  check_status(status);
  if (tape) {
    call.poll = {};
    tape->tape.call = std::move(call);  // the vectors keep their memory: x.starts and y.starts stay
    return py::make_tuple(y, hn.object, cn.object, py::cast(tape));
  }
  return py::make_tuple(y, hn.object, cn.object, py::none());
}

// Rows [part][T,B,width] (or [B,T,width]) of something that the tape holds; zeros where a row does not take part.
template <class T, class F>
py::array_t<T> tape_rows(const PyTape<T>& t, Index width, F&& copy) {
  const StackCall<T>& call = t.tape.call;
  const StackShape& s = t.tape.packed->shape;
  const Index parts = s.layers * s.directions, n = call.steps * call.batch;
  auto array = t.batch_first ? new_array<T>({parts, call.batch, call.steps, width}) : new_array<T>({parts, call.steps, call.batch, width});
  T* out = array.mutable_data();
  for (Index part = 0; part < parts; ++part)
    for (Index i = 0; i < n; ++i) {
      const Index step = i / call.batch, position = i % call.batch, b = call.order.empty() ? position : call.order[position];
      T* row = out + (part * n + (t.batch_first ? b * call.steps + step : step * call.batch + b)) * width;
      if (takes_part(call, step, b))
        copy(part, call.tape.empty() ? i : call.tape[b] + step, step, b, row);
      else
        std::memset(row, 0, std::size_t(width) * sizeof(T));
    }
  return array;
}
// Ask the library of a device's arrays about the tape.
template <class T, class... A>
py::object ask_device(const PyTape<T>& t, const char* what, A&&... rest) {
  py::list passes;
  for (const auto& pass : t.tape.passes) passes.append(held_object(pass));
  return on_device(*t.tape.packed)
      ->python()
      .attr(what)(passes, held_object(t.tape.call.device_tables), t.batch_first, std::forward<A>(rest)...);
}
template <class T>
py::object cells(const PyTape<T>& t) {
  const PackedStack<T>& packed = *t.tape.packed;
  if (packed.traits().states < 2) throw py::type_error(std::string("cells: expected a cell with two states, got ") + packed.traits().name);
  if (on_device(packed)) return ask_device(t, "cells");
  const Index h = packed.shape.hidden, padded = packed.padded_hidden();
  return tape_rows(t, h, [&](Index part, Index i, Index, Index, T* row) {
    std::memcpy(row, t.tape.cells[part].get() + i * padded, std::size_t(h) * sizeof(T));
  });
}
template <class T>
py::object hidden(const PyTape<T>& t) {
  const StackShape& s = t.tape.packed->shape;
  const StackCall<T>& call = t.tape.call;
  if (on_device(*t.tape.packed)) return ask_device(t, "hidden", t.y);
  return tape_rows(t, s.output, [&](Index part, Index, Index step, Index b, T* row) {
    const Index layer = part / s.directions;
    const T* from = layer + 1 < s.layers ? t.tape.outputs[layer].get() + (step * call.batch + b) * s.width()
                    : call.y.starts      ? call.y.data + (call.y.starts[b] + step) * call.y.t
                                         : call.y.data + step * call.y.t + b * call.y.b;
    std::memcpy(row, from + part % s.directions * s.output, std::size_t(s.output) * sizeof(T));
  });
}
template <class T>
py::object active(const PyTape<T>& t) {
  const StackCall<T>& call = t.tape.call;
  if (on_device(*t.tape.packed)) return ask_device(t, "active");
  py::array_t<bool> out(std::vector<py::ssize_t>{call.steps, call.batch});
  for (Index step = 0; step < call.steps; ++step)
    for (Index b = 0; b < call.batch; ++b) out.mutable_at(step, b) = takes_part(call, step, b);
  return out;
}
template <class T>
py::object saved(const PyTape<T>& t, int k) {
  const PackedStack<T>& packed = *t.tape.packed;
  const int count = packed.traits().saved;
  if (t.tape.states_only) throw py::type_error("gates: expected a pass that keeps them, got one that keeps the states only");
  if (k < 0 || k >= count) fail("k", "a number from 0 to " + std::to_string(count - 1), std::to_string(k));
  if (on_device(packed)) return ask_device(t, "saved", k);
  const Index h = packed.shape.hidden;
  return tape_rows(t, h, [&](Index part, Index i, Index, Index, T* row) {
    const bool ahead = t.tape.call.lookup.ids.data && part < packed.shape.directions;
    packed.cell().saved(t.tape.saved[part].get() + i * packed.tape_width(ahead), h, k, row);
  });
}

// Sums of the weights' gradients that outlive a call: one for each layer and direction.
template <class T>
struct Sums {
  std::vector<Buffer<T>> parts;
  Index block_steps = 1, bytes = 0, batch = 0;
  const PackedStack<T>* packed = nullptr;  // that it was made for
};
template <class T>
std::shared_ptr<Sums<T>> sums(const PackedStack<T>& packed, Index batch) {
  auto out = std::make_shared<Sums<T>>();
  out->packed = &packed, out->batch = batch;
  const StackShape& s = packed.shape;
  if (on_device(packed)) return out;  // nothing outlives a call there: each adds to the gradients
  if (!packed.cell().sums_size) fail("packed", "weights packed for training", "weights packed for inference only");
  for (Index part = 0; part < s.layers * s.directions; ++part) {
    const Index n = packed.cell().sums_size(batch, s.layer_input(part / s.directions), s.widths(), &out->block_steps);
    out->parts.emplace_back(n, "sums of gradients");
    out->bytes += n * Index(sizeof(T));
  }
  return out;
}
// What dropout leaves of the outputs y [T,B,D*H] of a layer that is run by itself: as in a stack.
template <class T>
void drop(const PackedStack<T>& packed, Index layer, const py::object& y, double rate, std::uint64_t key, Index first_step) {
  const auto v = view<T>(y, "y", {{"T", -1}, {"B", -1}, {"D*H", packed.shape.width()}}, Strides::kContiguous, true, device_of(packed));
  StackCall<T> call;
  call.steps = v.shape[0], call.batch = v.shape[1], call.dropout = rate, call.key = key, call.first_step = first_step;
  packed.backend->drop(packed.shape, layer, call, v.data, v.data);
}

template <class T>
py::tuple backward(PyTape<T>& t, const py::object& dy, const py::object& dhn, const py::object& dcn, const py::sequence& gradients,
                   bool need_dx, double clip_value, double clip_norm, const py::object& cuts, const py::object& dcells, bool flow,
                   const py::object& dx_out, bool dx_add, const Sums<T>* sums, bool resume, bool more, const py::object& drestart) {
  const Tape<T>& tape = t.tape;
  const StackShape& s = tape.packed->shape;
  const CellTraits& traits = tape.packed->traits();
  if (!tape.packed->backward) fail("packed", "weights packed for training", "weights packed for inference only");
  const Index steps = tape.call.steps, batch = tape.call.batch, parts = s.layers * s.directions;
  StackGradients<T> g;
  const bool ragged = t.ragged, on_cpu = !on_device(*tape.packed);
  const py::object device = device_of(*tape.packed);
  // Return a view of x or y, or of their gradients; `flat` is the number of rows where they are ragged.
  const auto sequences = [&](const py::object& a, const char* name, Index flat, const char* width_name, Index width, bool writable) {
    const auto axes =
        ragged ? std::vector<Axis>{{"N", flat}, {width_name, width}} : sequence_axes(steps, batch, width_name, width, t.batch_first);
    return time_major(view<T>(a, name, axes, Strides::kUnitLast, writable, device), t.batch_first && !ragged);
  };
  if (!dy.is_none()) {
    const auto v = sequences(dy, "dy", ragged ? Index(py::len(t.y)) : 0, "D*H", s.width(), false);
    g.dy = {v.data, v.strides[0], ragged ? 0 : v.strides[1], tape.call.y.starts, tape.call.y.ends};
    if (steps * batch == 0) g.dy.data = nullptr;
  }
  const auto state = [&](const py::object& a, const char* name, Index rows, bool hidden, bool writable) {
    return optional_view<T>(a, name, state_axes(s, rows, hidden), Strides::kContiguous, writable, device).data;
  };
  g.dhn = state(dhn, "dh_n", batch, true, false), g.dcn = state(dcn, "dc_n", batch, false, false);
  if (Index(py::len(gradients)) != parts) fail("grads", std::to_string(parts) + " groups of arrays", std::to_string(py::len(gradients)));
  std::vector<py::object> held;
  StackShape of_gradients = s;  // weight_ih of a first layer that looks its input up has a column for each row of the table
  const bool lookup = tape.call.lookup.ids.data;
  if (lookup) of_gradients.input = tape.call.lookup.rows;
  if (lookup && (need_dx || !dx_out.is_none())) fail("need_dx", "False with a table", "True");
  for (Index part = 0; part < parts; ++part)
    g.weights.push_back(raw_arrays<T, RawGradients<T>>(of_gradients, traits, part, gradients[part], "grads: ", true, held, device));
  py::object dx = dx_out;
  const Index flat = ragged ? Index(py::len(t.x)) : 0;
  if (dx.is_none() && need_dx) {
    const Index rows[] = {t.batch_first ? batch : steps, t.batch_first ? steps : batch};
    dx = make_array<T>(device, ragged ? std::vector<Index>{flat, s.input} : std::vector<Index>{rows[0], rows[1], s.input}).object;
  }
  if (!dx.is_none()) {
    const auto v = sequences(dx, "dx", flat, "I", s.input, true);
    g.dx = {v.data, v.strides[0], ragged ? 0 : v.strides[1], tape.call.x.starts, tape.call.x.ends};
    g.dx_add = !dx_out.is_none() && dx_add;
  }
  const bool has_cells = traits.states > 1;
  const auto states_of = [&](Index rows, bool hidden, bool zeros) {
    const Index width = hidden ? s.output : s.hidden;
    return make_array<T>(device, rows < 0 ? std::vector<Index>{parts, width} : std::vector<Index>{parts, rows, width}, zeros);
  };
  const NewArray<T> nothing{py::none(), nullptr};
  const auto dh0 = states_of(batch, true, false), dc0 = has_cells ? states_of(batch, false, false) : nothing;
  g.dh0 = dh0.data, g.dc0 = dc0.data;
  const auto bound = [](double x) { return x > 0 ? std::max(T(x), std::numeric_limits<T>::min()) : T(0); };  // 0 would be no bound
  g.clip_value = bound(clip_value), g.clip_norm = bound(clip_norm);
  py::object device_cuts = py::none();
  if (on_cpu) {
    g.cuts = optional_view<std::uint8_t>(cuts, "cuts", flag_axes(ragged, steps, batch, flat)).data;
  } else if (!cuts.is_none()) {
    device_cuts = on_device(*tape.packed)->python().attr("cuts")(cuts, held_object(tape.call.device_tables));
    g.cuts = pointer_to<const std::uint8_t>(device, device_cuts);
  }
  if (!dcells.is_none()) {
    if (traits.states < 2) fail("dcells", std::string("None for the cell ") + traits.name, "an array");
    const std::vector<Axis> axes = t.batch_first ? std::vector<Axis>{{"L*D", parts}, {"B", batch}, {"T", steps}, {"H", s.hidden}}
                                                 : std::vector<Axis>{{"L*D", parts}, {"T", steps}, {"B", batch}, {"H", s.hidden}};
    const auto v = view<T>(dcells, "dcells", axes, Strides::kUnitLast, false, device);
    g.dcells = {v.data, v.strides[t.batch_first ? 2 : 1], v.strides[t.batch_first ? 1 : 2]};
    g.dcells_part = v.strides[0];
  }
  NewArray<T> drestart_h = nothing, drestart_c = nothing;
  if (sums && on_cpu) {
    if (sums->packed != tape.packed.get() || sums->batch != batch) fail("sums", "those made for these weights and B", "others");
    g.sums = &sums->parts, g.resume = resume, g.more = more;
  }
  if (!drestart.is_none()) {
    const auto pair = py::reinterpret_borrow<py::sequence>(drestart);
    const py::object h = pair[0], c = pair[1];
    g.drestart_h = state(h, "drestart_h", -1, true, true), g.drestart_c = state(c, "drestart_c", -1, false, true);
  } else if (t.resets) {
    drestart_h = states_of(-1, true, true);
    if (has_cells) drestart_c = states_of(-1, false, true);
    g.drestart_h = drestart_h.data, g.drestart_c = drestart_c.data;
  }
  NewArray<double> norms{py::none(), nullptr};
  if (flow) {  // the kernels of a device leave the sum over the rows to the library of its arrays
    std::vector<Index> axes{parts, steps, traits.states};
    if (!on_cpu) axes.push_back(batch);
    norms = make_array<double>(device, axes, true);
    g.flow = norms.data, g.flow_part = steps * traits.states * (on_cpu ? 1 : batch);
  }
  SignalPoll signals;
  int status;
  {
    std::optional<GilRelease> release;
    if (on_cpu) release.emplace();
    status = stack_backward(tape, g, signals.poll());
  }
  check_status(status);
  if (flow && !on_cpu) norms.object = on_device(*tape.packed)->python().attr("sum_rows")(norms.object);
  return py::make_tuple(dx, dh0.object, dc0.object, drestart_h.object, drestart_c.object, norms.object);
}

// How a call would be run: a list of groups of layers.
template <class T>
py::list plan(const std::string& cell, Index input, Index hidden, Index layers, bool bidirectional, const std::string& precision_name,
              Index steps, Index batch, bool dropout, bool train, bool backward, Index projection) {
  const StackShape s = shape_of(cell, input, hidden, layers, bidirectional, false, true, projection);
  const Precision precision = precision_named<T>(precision_name, train);
  const auto& k = typed<T>(kernels()).cells[int(precision)][int(s.cell)];
  py::list out;
  for (const GroupPlan& g : stack_plan(k, s, steps, batch, dropout, backward)) {
    const CallPlan& p = g.plan;
    py::dict d;
    d["first_layer"] = g.first_layer, d["layers"] = g.layers;
    d["spread"] = p.spread, d["threads"] = p.threads, d["lanes"] = p.row_blocks, d["lane_rows"] = p.row_block_rows;
    d["block_steps"] = p.block_steps, d["together"] = p.concurrent;
    d["tile"] = py::make_tuple(p.tile_rows, p.tile_vectors);
    d["tape_bytes"] = p.tape_bytes, d["workspace_bytes"] = p.workspace_bytes, d["model_seconds"] = p.model_seconds;
    Index packed = 0;
    for (Index layer = g.first_layer; layer < g.first_layer + g.layers; ++layer)
      packed += s.directions * k.packed_size(s.layer_input(layer), s.widths(), train) * Index(sizeof(T));
    d["packed_bytes"] = packed;
    out.append(d);
  }
  return out;
}

template <class T>
void bind_typed(py::module_& m, const char* packed_name, const char* tape_name) {
  using Packed = PackedStack<T>;
  py::class_<Packed, std::shared_ptr<Packed>>(m, packed_name)
      .def(py::init(&pack_stack<T>), py::arg("cell"), py::arg("input_size"), py::arg("hidden_size"), py::arg("num_layers"),
           py::arg("bidirectional"), py::arg("weights"), py::arg("backward"), py::arg("reverse") = false, py::arg("precision") = "exact",
           py::arg("numbered") = true, py::arg("proj_size") = 0, py::arg("backend") = py::none())
      .def_property_readonly("precision",
                             [](const Packed& p) {
                               const auto* backend = on_device(p);
                               return backend ? py::object(backend->python().attr("precision"))
                                              : py::object(py::str(kPrecisions[int(p.precision)]));
                             })
      .def_property_readonly("backend",
                             [](const Packed& p) {
                               const auto* backend = on_device(p);
                               return backend ? backend->python() : py::object(py::none());
                             })
      .def_property_readonly("kernels", [](const Packed& p) { return std::string(p.table->name); })
      .def_property_readonly("backward", [](const Packed& p) { return p.backward; })
      .def_property_readonly("input_size", [](const Packed& p) { return p.shape.input; })
      .def_property_readonly("hidden_size", [](const Packed& p) { return p.shape.hidden; })
      .def_property_readonly("output_size", [](const Packed& p) { return p.shape.output; })
      .def_property_readonly("layers", [](const Packed& p) { return p.shape.layers; })
      .def_property_readonly("reverse", [](const Packed& p) { return p.shape.reverse; })
      .def_property_readonly("cell", [](const Packed& p) { return std::string(p.traits().name); })
      .def("forward", &forward<T>, py::arg("x"), py::arg("h0"), py::arg("c0"), py::arg("lengths"), py::arg("batch_first"), py::arg("out"),
           py::arg("train"), py::arg("dropout"), py::arg("key"), py::arg("resets") = py::none(), py::arg("mask") = py::none(),
           py::arg("repeat") = false, py::arg("restart_h") = py::none(), py::arg("restart_c") = py::none(), py::arg("first_step") = 0,
           py::arg("held") = py::none(), py::arg("resets_after") = py::none(), py::arg("restarted") = py::none(),
           py::arg("order") = py::none(), py::arg("starts") = py::none(), py::arg("span") = 0, py::arg("states_only") = false,
           py::arg("table") = py::none())
      .def("sums", &sums<T>, py::arg("batch"))
      .def("drop", &drop<T>, py::arg("layer"), py::arg("y"), py::arg("rate"), py::arg("key"), py::arg("first_step"));
  py::class_<Sums<T>, std::shared_ptr<Sums<T>>>(m, (std::string("Sums") + (packed_name + 6)).c_str())
      .def_readonly("block_steps", &Sums<T>::block_steps)
      .def_readonly("bytes", &Sums<T>::bytes);
  py::class_<PyTape<T>, std::shared_ptr<PyTape<T>>>(m, tape_name)
      .def("backward", &backward<T>, py::arg("dy"), py::arg("dh_n"), py::arg("dc_n"), py::arg("grads"), py::arg("need_dx"),
           py::arg("clip_value") = 0.0, py::arg("clip_norm") = 0.0, py::arg("cuts") = py::none(), py::arg("dcells") = py::none(),
           py::arg("flow") = false, py::arg("dx") = py::none(), py::arg("dx_add") = false, py::arg("sums") = py::none(),
           py::arg("resume") = false, py::arg("more") = false, py::arg("drestart") = py::none())
      .def_property_readonly("bytes",
                             [](const PyTape<T>& t) {
                               Index n = 0;
                               for (const auto* list : {&t.tape.saved, &t.tape.cells, &t.tape.outputs, &t.tape.dropped, &t.tape.projected})
                                 for (const Buffer<T>& b : *list) n += b.bytes();
                               for (const auto& pass : t.tape.passes) n += held_object(pass).attr("bytes").template cast<Index>();
                               return n;
                             })
      .def_property_readonly("shape", [](const PyTape<T>& t) { return py::make_tuple(t.tape.call.steps, t.tape.call.batch); })
      .def("cells", &cells<T>)
      .def("hidden", &hidden<T>)
      .def("active", &active<T>)
      .def("saved", &saved<T>, py::arg("k"));
}

}  // namespace

void bind_recurrent(py::module_& m) {
  bind_typed<float>(m, "PackedFloat32", "TapeFloat32");
  bind_typed<double>(m, "PackedFloat64", "TapeFloat64");
  m.def("cells", [] {
    py::dict out;
    for (const CellTraits& t : kernels()->traits) {
      py::dict d;
      d["gates"] = t.gates, d["states"] = t.states, d["params"] = t.params, d["saved"] = t.saved;
      d["tape"] = t.saved + t.deviations[0] + t.deviations[1];
      if (t.projected) d["projected"] = 1;
      out[t.name] = d;
    }
    return out;
  });
  // By cell: the names of its unit weights, their rows, and whether they are flat.
  m.def("unit_weights", [] {
    py::dict out;
    for (const CellTraits& t : kernels()->traits) {
      py::list list;
      for (int k = 0; k < t.unit_weights; ++k) list.append(py::make_tuple(t.units[k].name, t.units[k].rows, t.units[k].flat));
      out[t.name] = list;
    }
    return out;
  });
  // By cell and driver: what the driver lacks for it, or nothing.
  m.def("drivers", [] {
    constexpr const char* names[kDriverCount] = {"plain", "cpu", "step", "loop", "persistent"};
    py::dict out;
    for (const CellTraits& t : kernels()->traits) {
      py::dict d;
      for (int i = 0; i < kDriverCount; ++i) d[names[i]] = t.lacks[i] ? t.lacks[i] : "";
      out[t.name] = d;
    }
    return out;
  });
  m.def(
      "plan",
      [](int itemsize, const std::string& cell, Index input, Index hidden, Index layers, bool bidirectional, const std::string& precision,
         Index steps, Index batch, bool dropout, bool train, bool backward, Index projection) {
        return (itemsize == 4 ? plan<float> : plan<double>)(cell, input, hidden, layers, bidirectional, precision, steps, batch, dropout,
                                                            train, backward, projection);
      },
      py::arg("itemsize"), py::arg("cell"), py::arg("input"), py::arg("hidden"), py::arg("layers"), py::arg("bidirectional"),
      py::arg("precision"), py::arg("steps"), py::arg("batch"), py::arg("dropout"), py::arg("train"), py::arg("backward"),
      py::arg("proj_size") = 0);
  m.def("balance_rows", [](const py::object& lengths) {
    const auto v = view<Index>(lengths, "lengths", {{"B", -1}}, Strides::kContiguous);
    const std::vector<Index> order = balance_rows(std::vector<Index>(v.data, v.data + v.shape[0]));
    auto out = new_array<Index>({v.shape[0]});
    std::copy(order.begin(), order.end(), out.mutable_data());
    return out;
  });
  // The table of what each step starts from, [T+1,B], which kernels that are given addresses need.
  m.def("times_table", [](Index steps, Index batch, const py::object& lengths, const py::object& resets, const py::object& mask,
                          bool repeat, bool reverse) {
    const auto lv = optional_view<Index>(lengths, "lengths", {{"B", batch}}, Strides::kContiguous);
    const auto rv = optional_view<std::uint8_t>(resets, "resets", {{"T", steps}, {"B", batch}}, Strides::kContiguous);
    const auto mv = optional_view<std::uint8_t>(mask, "mask", {{"T", steps}, {"B", batch}}, Strides::kContiguous);
    if (!rv.data && !mv.data) fail("resets, mask", "one of them", "None");
    StackCall<float> call;
    call.steps = steps, call.batch = batch;
    set_times(call, {CellId::kGru, 1, 1, 1, 1, 1, reverse}, lv.data, rv.data, mv.data, repeat);
    py::array_t<std::int32_t> out(std::vector<py::ssize_t>{steps + 1, batch});
    std::copy(call.predecessors[reverse].begin(), call.predecessors[reverse].end(), out.mutable_data());
    return out;
  });
  m.def("philox_word", &philox_word, py::arg("key"), py::arg("layer_direction"), py::arg("t"), py::arg("b"), py::arg("unit"));
}

}  // namespace ost
