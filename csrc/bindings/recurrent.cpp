// Stacks of recurrent layers: packing, forward, backward.
#include <cmath>
#include <cstring>

#include "../dispatch.h"
#include "../stack.h"
#include "arrays.h"

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
  return "_l" + std::to_string(part / s.directions) + (part % s.directions ? "_reverse" : "");
}

// Arrays of one (layer, direction): weight_ih, weight_hh, bias_ih, bias_hh, weight_peephole; the last three may be None. They are
// kept in `held` as long as the pointers are used.
template <class T, class Raw>
Raw raw_arrays(const StackShape& s, const CellTraits& traits, Index part, const py::sequence& arrays, const char* prefix, bool writable,
               std::vector<py::object>& held) {
  const std::string names[] = {"weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole"};
  const auto label = [&](int i) { return prefix + names[i] + suffix(s, part); };
  if (py::len(arrays) != 5) fail("weights", "5 arrays a layer and direction", std::to_string(py::len(arrays)));
  const Index rows = traits.gates * s.hidden, input = s.layer_input(part / s.directions);
  const auto get = [&](int i, const std::vector<Axis>& axes, bool needed) -> decltype(Raw::weight_ih) {
    const py::object a = arrays[i];
    held.push_back(a);
    if (a.is_none() && needed) fail(label(i), "an array", "None");
    return optional_view<T>(a, label(i), axes, Strides::kContiguous, writable).data;
  };
  const std::string gates = traits.gates == 1 ? "H" : std::to_string(traits.gates) + "*H";
  Raw raw{};
  raw.weight_ih = get(0, {{gates.c_str(), rows}, {"I", input}}, !writable);
  raw.weight_hh = get(1, {{gates.c_str(), rows}, {"H", s.hidden}}, !writable);
  raw.bias_ih = get(2, {{gates.c_str(), rows}}, false);
  raw.bias_hh = get(3, {{gates.c_str(), rows}}, false);
  if (traits.params) raw.params = get(4, {{"gates", traits.params}, {"H", s.hidden}}, !writable);
  return raw;
}

// A scale needs finite weights: a NaN would be lost in the rounding.
template <class T>
void refuse_not_finite(const StackShape& s, const CellTraits& traits, Index part, const RawWeights<T>& raw) {
  const Index rows = traits.gates * s.hidden;
  const auto check = [&](const T* w, const char* name, Index n) {
    for (Index i = 0; i < rows * n; ++i)
      if (!std::isfinite(w[i]))
        fail(name + suffix(s, part), "finite weights for int8", std::to_string(w[i]) + " in row " + std::to_string(i / n));
  };
  check(raw.weight_ih, "weight_ih", s.layer_input(part / s.directions));
  check(raw.weight_hh, "weight_hh", s.hidden);
}

template <class T>
std::shared_ptr<PackedStack<T>> pack_stack(const std::string& cell, Index input, Index hidden, Index layers, bool bidirectional,
                                           const py::sequence& weights, bool backward, bool reverse, const std::string& precision_name) {
  const Precision precision = precision_named<T>(precision_name, backward);
  const StackShape s{cell_named(cell), input, hidden, layers, bidirectional ? 2 : 1, reverse};
  const std::pair<const char*, Index> sizes[] = {{"input_size", input}, {"hidden_size", hidden}, {"num_layers", layers}};
  for (const auto& [name, size] : sizes)
    if (size < 1) fail(name, "at least 1", std::to_string(size));
  const KernelTable* table = kernels();
  if (Index(py::len(weights)) != layers * s.directions)
    fail("weights", std::to_string(layers * s.directions) + " groups of arrays", std::to_string(py::len(weights)));
  std::vector<RawWeights<T>> raw;
  std::vector<py::object> held;
  for (Index part = 0; part < layers * s.directions; ++part)
    raw.push_back(raw_arrays<const T, RawWeights<T>>(s, table->traits[int(s.cell)], part, weights[part], "", false, held));
  if (precision == Precision::kInt8) {  // sums of 127 * 128 a link must fit 32 bits
    for (const auto& [name, size] : sizes)
      if (size > 131072) fail(name, "at most 131072 for int8", std::to_string(size));
    for (Index part = 0; part < layers * s.directions; ++part) refuse_not_finite(s, table->traits[int(s.cell)], part, raw[part]);
  }
  py::gil_scoped_release release;
  return std::make_shared<PackedStack<T>>(table, s, precision, raw, backward);
}

// What Python holds between forward and pullback. The arrays are kept alive here.
template <class T>
struct PyTape {
  Tape<T> tape;
  py::object x, y, h0, c0;
  bool batch_first;
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

template <class T>
py::tuple forward(std::shared_ptr<PackedStack<T>> packed, const py::object& x, const py::object& h0, const py::object& c0,
                  const py::object& lengths, bool batch_first, const py::object& out, bool train, double dropout, std::uint64_t key) {
  const StackShape& s = packed->shape;
  const bool has_cells = packed->traits().states > 1;
  const auto xv = time_major(view<T>(x, "x", sequence_axes(-1, -1, "I", s.input, batch_first)), batch_first);
  const Index steps = xv.shape[0], batch = xv.shape[1], parts = s.layers * s.directions;
  const std::vector<Axis> state{{parts == 1 ? "1" : "L*D", parts}, {"B", batch}, {"H", s.hidden}};
  const auto h0v = optional_view<T>(h0, "h0", state), c0v = optional_view<T>(c0, "c0", state);

  StackCall<T> call;
  call.steps = steps, call.batch = batch, call.dropout = dropout, call.key = key;
  call.x = {xv.data, xv.strides[0], xv.strides[1]};
  if (!h0.is_none()) call.h0 = h0v.data;
  if (!c0.is_none()) call.c0 = c0v.data;
  if (!lengths.is_none()) {
    const auto lv = view<Index>(lengths, "lengths", {{"B", batch}}, Strides::kContiguous);
    call.lengths.assign(lv.data, lv.data + batch);
    for (Index b = 0; b < batch; ++b)
      if (lv.data[b] < 0 || lv.data[b] > steps)
        fail("lengths", "values from 0 to T = " + std::to_string(steps), std::to_string(lv.data[b]) + " at b = " + std::to_string(b));
  }
  py::object y = out;
  if (out.is_none()) y = batch_first ? new_array<T>({batch, steps, s.width()}) : new_array<T>({steps, batch, s.width()});
  auto yv =
      time_major(view<T>(y, "out", sequence_axes(steps, batch, "D*H", s.width(), batch_first), Strides::kUnitLast, true), batch_first);
  if (!out.is_none()) {
    // Rows of its own for every (t, b): the finer axis steps over whole rows, the coarser over all that the finer covers.
    const Index st = std::abs(yv.strides[0]), sb = std::abs(yv.strides[1]), width = s.width();
    const bool apart = st >= sb ? (batch < 2 || sb >= width) && (steps < 2 || st >= (batch - 1) * sb + width)
                                : (steps < 2 || st >= width) && (batch < 2 || sb >= (steps - 1) * st + width);
    if (!apart && steps * batch > 1) fail("out", "rows of its own for every (t, b)", "strides by which they overlap");
    refuse_overlap(yv, xv, "out", "x");
    if (!h0.is_none()) refuse_overlap(yv, h0v, "out", "h0");
    if (!c0.is_none()) refuse_overlap(yv, c0v, "out", "c0");
  }
  call.y = yv.rows();
  auto hn = new_array<T>({parts, batch, s.hidden});
  call.hn = hn.mutable_data();
  py::object cn = py::none();
  if (has_cells) {
    auto array = new_array<T>({parts, batch, s.hidden});
    call.cn = array.mutable_data();
    cn = array;
  }
  std::shared_ptr<PyTape<T>> tape;
  if (train) {
    tape = std::make_shared<PyTape<T>>();
    tape->x = x, tape->y = y, tape->h0 = h0, tape->c0 = c0, tape->batch_first = batch_first;
    tape->tape.packed = packed;
  }
  SignalPoll signals;
  call.poll = signals.poll();
  int status;
  {
    py::gil_scoped_release release;
    status = stack_forward(*packed, call, tape ? &tape->tape : nullptr);
  }
  check_status(status);
  if (tape) {
    call.poll = {};
    tape->tape.call = std::move(call);
    return py::make_tuple(y, hn, cn, py::cast(tape));
  }
  return py::make_tuple(y, hn, cn, py::none());
}

template <class T>
py::tuple backward(PyTape<T>& t, const py::object& dy, const py::object& dhn, const py::object& dcn, const py::sequence& gradients,
                   bool need_dx) {
  const Tape<T>& tape = t.tape;
  const StackShape& s = tape.packed->shape;
  const CellTraits& traits = tape.packed->traits();
  if (!tape.packed->backward) fail("packed", "weights packed for training", "weights packed for inference only");
  const Index steps = tape.call.steps, batch = tape.call.batch, parts = s.layers * s.directions;
  const std::vector<Axis> state{{parts == 1 ? "1" : "L*D", parts}, {"B", batch}, {"H", s.hidden}};
  StackGradients<T> g;
  if (!dy.is_none()) {
    const auto v = time_major(view<T>(dy, "dy", sequence_axes(steps, batch, "D*H", s.width(), t.batch_first)), t.batch_first);
    g.dy = {v.data, v.strides[0], v.strides[1]};
    if (steps * batch == 0) g.dy.data = nullptr;
  }
  g.dhn = optional_view<T>(dhn, "dh_n", state).data;
  g.dcn = optional_view<T>(dcn, "dc_n", state).data;
  if (Index(py::len(gradients)) != parts) fail("grads", std::to_string(parts) + " groups of arrays", std::to_string(py::len(gradients)));
  std::vector<py::object> held;
  for (Index part = 0; part < parts; ++part)
    g.weights.push_back(raw_arrays<T, RawGradients<T>>(s, traits, part, gradients[part], "grads: ", true, held));
  py::object dx = py::none(), dc0 = py::none();
  if (need_dx) {
    auto array = t.batch_first ? new_array<T>({batch, steps, s.input}) : new_array<T>({steps, batch, s.input});
    g.dx = time_major(view<T>(array, "dx", sequence_axes(steps, batch, "I", s.input, t.batch_first)), t.batch_first).rows();
    dx = array;
  }
  auto dh0 = new_array<T>({parts, batch, s.hidden});
  g.dh0 = dh0.mutable_data();
  if (traits.states > 1) {
    auto array = new_array<T>({parts, batch, s.hidden});
    g.dc0 = array.mutable_data();
    dc0 = array;
  }
  SignalPoll signals;
  int status;
  {
    py::gil_scoped_release release;
    status = stack_backward(tape, g, signals.poll());
  }
  check_status(status);
  return py::make_tuple(dx, dh0, dc0);
}

// A stack that runs one step a call, on arrays of its own that the caller fills and reads: nothing is allocated for Python.
template <class T>
class Stream {
 public:
  Stream(std::shared_ptr<PackedStack<T>> packed, Index batch) : packed_(std::move(packed)), batch_(batch) {
    const StackShape& s = packed_->shape;
    if (batch < 1) fail("batch", "at least 1", std::to_string(batch));
    if (s.directions != 1 || s.reverse) fail("stream", "a layer of one direction, forward", "one that needs the end of the sequence first");
    x = zeros({batch, s.input}), y = zeros({batch, s.hidden}), h = zeros({s.layers, batch, s.hidden});
    T* hidden = static_cast<T*>(h.mutable_data());
    T* cells = nullptr;
    if (packed_->traits().states > 1) {
      py::array array = zeros({s.layers, batch, s.hidden});
      cells = static_cast<T*>(array.mutable_data());
      c = array;
    }
    const Index state = batch * s.hidden;
    inner_ = Buffer<T>(s.layers * state, "layer outputs");
    for (Index layer = 0; layer < s.layers; ++layer) {
      ForwardCall<T> f{};
      f.weights = &packed_->parts[layer];
      f.steps = 1, f.batch = batch;
      f.x = {layer == 0 ? static_cast<const T*>(x.data()) : inner_.get() + (layer - 1) * state, 0, s.layer_input(layer)};
      f.y = {layer + 1 == s.layers ? static_cast<T*>(y.mutable_data()) : inner_.get() + layer * state, 0, s.hidden};
      f.h0 = f.hn = hidden + layer * state;  // read before it is written
      if (cells) f.c0 = f.cn = cells + layer * state;
      calls_.push_back(f);
      work_ += double(batch) * double(s.layer_input(layer) + s.hidden) * double(packed_->traits().gates * s.hidden);
    }
  }

  py::array step(const py::object& input) {
    if (busy_) throw std::runtime_error("stream: expected one step at a time, got a second from another thread");
    busy_ = true;
    struct Leave {
      bool& busy;
      ~Leave() { busy = false; }
    } leave{busy_};
    if (!input.is_none()) {
      const auto v = view<T>(input, "x", {{"B", batch_}, {"I", packed_->shape.input}});
      T* to = static_cast<T*>(x.mutable_data());
      if (v.data != to || v.strides[0] != v.shape[1])
        refuse_overlap(view<T>(x, "stream.x", {{"B", batch_}, {"I", -1}}), v, "stream.x", "x");
      for (Index b = 0; b < batch_; ++b) std::memmove(to + b * v.shape[1], v.data + b * v.strides[0], std::size_t(v.shape[1]) * sizeof(T));
    }
    int status = kOk;
    if (work_ < 1e6) {  // a few microseconds: giving the GIL away and taking it back would cost more than it gains
      status = run();
    } else {
      py::gil_scoped_release release;
      status = run();
    }
    check_status(status);
    return y;
  }

  py::array x, y, h;
  py::object c = py::none();

 private:
  static py::array zeros(std::vector<Index> shape) {
    auto a = new_array<T>(std::move(shape));
    std::memset(a.mutable_data(), 0, std::size_t(a.nbytes()));
    return a;
  }
  int run() {
    for (const ForwardCall<T>& call : calls_)
      if (const int status = packed_->cell().forward(&call, 1, false)) return status;
    return kOk;
  }

  std::shared_ptr<PackedStack<T>> packed_;
  Index batch_;
  Buffer<T> inner_;
  std::vector<ForwardCall<T>> calls_;
  double work_ = 0;
  bool busy_ = false;
};

// How a call would be run: a list of groups of layers.
template <class T>
py::list plan(const std::string& cell, Index input, Index hidden, Index layers, bool bidirectional, const std::string& precision_name,
              Index steps, Index batch, bool dropout, bool train, bool backward) {
  const StackShape s{cell_named(cell), input, hidden, layers, bidirectional ? 2 : 1, false};
  const Precision precision = precision_named<T>(precision_name, train);
  const auto& k = typed<T>(kernels()).cells[int(precision)][int(s.cell)];
  py::list out;
  for (const GroupPlan& g : stack_plan(k, s, steps, batch, dropout, backward)) {
    const CallPlan& p = g.plan;
    py::dict d;
    d["first_layer"] = g.first_layer, d["layers"] = g.layers;
    d["spread"] = p.spread, d["threads"] = p.threads, d["lanes"] = p.lanes, d["lane_rows"] = p.lane_rows;
    d["block_steps"] = p.block_steps, d["together"] = p.together;
    d["tile"] = py::make_tuple(p.tile_rows, p.tile_vectors);
    d["tape_bytes"] = p.tape_bytes, d["workspace_bytes"] = p.workspace_bytes, d["model_seconds"] = p.model_seconds;
    Index packed = 0;
    for (Index layer = g.first_layer; layer < g.first_layer + g.layers; ++layer)
      packed += s.directions * k.packed_size(s.layer_input(layer), hidden, train) * Index(sizeof(T));
    d["packed_bytes"] = packed;
    out.append(d);
  }
  return out;
}

template <class T>
void bind_typed(py::module_& m, const char* packed_name, const char* tape_name, const char* stream_name) {
  using Packed = PackedStack<T>;
  py::class_<Packed, std::shared_ptr<Packed>>(m, packed_name)
      .def(py::init(&pack_stack<T>), py::arg("cell"), py::arg("input_size"), py::arg("hidden_size"), py::arg("num_layers"),
           py::arg("bidirectional"), py::arg("weights"), py::arg("backward"), py::arg("reverse") = false, py::arg("precision") = "exact")
      .def_property_readonly("precision", [](const Packed& p) { return std::string(kPrecisions[int(p.precision)]); })
      .def_property_readonly("kernels", [](const Packed& p) { return std::string(p.table->name); })
      .def_property_readonly("backward", [](const Packed& p) { return p.backward; })
      .def_property_readonly("input_size", [](const Packed& p) { return p.shape.input; })
      .def_property_readonly("hidden_size", [](const Packed& p) { return p.shape.hidden; })
      .def_property_readonly("reverse", [](const Packed& p) { return p.shape.reverse; })
      .def_property_readonly("cell", [](const Packed& p) { return std::string(p.traits().name); })
      .def("forward", &forward<T>, py::arg("x"), py::arg("h0"), py::arg("c0"), py::arg("lengths"), py::arg("batch_first"), py::arg("out"),
           py::arg("train"), py::arg("dropout"), py::arg("key"));
  py::class_<Stream<T>>(m, stream_name)
      .def(py::init<std::shared_ptr<Packed>, Index>(), py::arg("packed"), py::arg("batch"))
      .def("step", &Stream<T>::step, py::arg("x") = py::none())
      .def_property_readonly("x", [](const Stream<T>& s) { return s.x; })
      .def_property_readonly("y", [](const Stream<T>& s) { return s.y; })
      .def_property_readonly("h", [](const Stream<T>& s) { return s.h; })
      .def_property_readonly("c", [](const Stream<T>& s) { return s.c; });
  py::class_<PyTape<T>, std::shared_ptr<PyTape<T>>>(m, tape_name)
      .def("backward", &backward<T>, py::arg("dy"), py::arg("dh_n"), py::arg("dc_n"), py::arg("grads"), py::arg("need_dx"));
}

}  // namespace

void bind_recurrent(py::module_& m) {
  bind_typed<float>(m, "PackedFloat32", "TapeFloat32", "StreamFloat32");
  bind_typed<double>(m, "PackedFloat64", "TapeFloat64", "StreamFloat64");
  m.def("cells", [] {
    py::dict out;
    for (const CellTraits& t : kernels()->traits) {
      py::dict d;
      d["gates"] = t.gates, d["states"] = t.states, d["params"] = t.params, d["saved"] = t.saved;
      out[t.name] = d;
    }
    return out;
  });
  m.def(
      "plan",
      [](int itemsize, const std::string& cell, Index input, Index hidden, Index layers, bool bidirectional, const std::string& precision,
         Index steps, Index batch, bool dropout, bool train, bool backward) {
        return (itemsize == 4 ? plan<float> : plan<double>)(cell, input, hidden, layers, bidirectional, precision, steps, batch, dropout,
                                                            train, backward);
      },
      py::arg("itemsize"), py::arg("cell"), py::arg("input"), py::arg("hidden"), py::arg("layers"), py::arg("bidirectional"),
      py::arg("precision"), py::arg("steps"), py::arg("batch"), py::arg("dropout"), py::arg("train"), py::arg("backward"));
  m.def("philox_word", &philox_word, py::arg("key"), py::arg("layer_direction"), py::arg("t"), py::arg("b"), py::arg("unit"));
}

}  // namespace ost
