// Handlers of XLA's custom calls, for ostinato.interop.jax: the buffers of a call become the structs of the stack, as the other bindings
// make them of arrays. XLA calls them on threads of its own, without the GIL, and nothing here knows of Python while it runs. What a
// forward pass keeps for the backward one lies in results of the call: a pass is a function of its arguments alone.
#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <string_view>

#include "recurrent.h"
#include "sizes.h"
#include "xla_ffi.h"

namespace ost {
namespace {

using xla::DataType;

template <class E>
constexpr DataType data_type() {
  if constexpr (std::is_same_v<E, float>) return xla::kF32;
  if constexpr (std::is_same_v<E, double>) return xla::kF64;
  if constexpr (std::is_same_v<E, std::int32_t>) return xla::kS32;
  if constexpr (std::is_same_v<E, Index>) return xla::kS64;
  return xla::kPred;
}

// The arguments and results of a call one after the other, and its attributes by name.
class Frame {
 public:
  explicit Frame(const xla::CallFrame& frame) : f_(frame) {
    const bool known = f_.struct_size >= sizeof(xla::CallFrame) && f_.args.struct_size == sizeof(xla::Args) &&
                       f_.rets.struct_size == sizeof(xla::Rets) && f_.attrs.struct_size == sizeof(xla::Attrs);
    if (!known) fail("jaxlib", "the custom calls of a version that this build knows", "one with other structs");
    if (f_.stage != xla::kExecute) fail("jaxlib", "a call to execute", "stage " + std::to_string(f_.stage));
  }

  std::string text(std::string_view name) const {
    const auto& span = *static_cast<const xla::ByteSpan*>(attribute(name, xla::kString));
    return {span.ptr, span.len};
  }
  Index number(std::string_view name) const {
    const auto& scalar = *static_cast<const xla::Scalar*>(attribute(name, xla::kScalar));
    if (scalar.dtype != xla::kS64) fail(std::string(name), "an attribute of 64 bits", "another");
    return *static_cast<const Index*>(scalar.value);
  }
  std::vector<double> numbers(std::string_view name, std::size_t count) const {
    const auto& array = *static_cast<const xla::Array*>(attribute(name, xla::kArray));
    if (array.dtype != xla::kF64 || array.size < count) fail(std::string(name), std::to_string(count) + " float64 numbers", "others");
    const auto* data = static_cast<const double*>(array.data);
    return {data, data + count};
  }

  bool first_is(DataType dtype) const { return f_.args.size > 0 && buffer(f_.args.args[0], "x").dtype == dtype; }
  // The next argument, which is not taken.
  const xla::Buffer& peek(const char* name) const {
    if (next_argument_ >= f_.args.size) fail(name, "a further argument", "none");
    return buffer(f_.args.args[next_argument_], name);
  }
  template <class E>
  const E* argument(const char* name, Index count) {
    const xla::Buffer& b = peek(name);
    ++next_argument_;
    return checked<E>(b, name, count);
  }
  template <class E>
  E* result(const char* name, Index count) {
    if (next_result_ >= f_.rets.size) fail(name, "a further result", "none");
    return checked<E>(buffer(f_.rets.rets[next_result_++], name), name, count);
  }

 private:
  const void* attribute(std::string_view name, xla::AttrType type) const {
    for (Index i = 0; i < f_.attrs.size; ++i)
      if (std::string_view(f_.attrs.names[i]->ptr, f_.attrs.names[i]->len) == name && f_.attrs.types[i] == type) return f_.attrs.attrs[i];
    fail(std::string(name), "an attribute of the call", "none");
  }
  static const xla::Buffer& buffer(const void* p, const char* name) {
    const auto& b = *static_cast<const xla::Buffer*>(p);
    if (b.struct_size < sizeof(xla::Buffer)) fail(name, "a buffer of a version that this build knows", "another");
    return b;
  }
  // The memory of a buffer; XLA lays it out row by row.
  template <class E>
  static E* checked(const xla::Buffer& b, const char* name, Index count) {
    const Index have = std::accumulate(b.dims, b.dims + b.rank, Index(1), std::multiplies<Index>());
    if (b.dtype != data_type<E>() || have != count)
      fail(name, std::to_string(count) + " elements of XLA's type " + std::to_string(int(data_type<E>())),
           std::to_string(have) + " of type " + std::to_string(int(b.dtype)));
    return static_cast<E*>(b.data);
  }

  const xla::CallFrame& f_;
  Index next_argument_ = 0, next_result_ = 0;
};

const KernelTable* table_named(const std::string& name) {
  for (const KernelTable* table : supported_kernels())
    if (name == table->name) return table;
  fail("kernels", "a set that this CPU runs", "'" + name + "', for which the call was traced");
}

// Bits of `given`, and of `need`: the inputs in their order.
enum Input : int { kX, kH0, kC0, kLengths, kResets, kMask, kResetH, kResetC };

// One layer in one direction; `output` is H but for a projected cell.
StackShape layer_shape(const std::string& cell, Index input, Index hidden, Index output, bool reverse) {
  const bool projected = kernels()->traits[int(cell_named(cell))].projected;
  return shape_of(cell, input, hidden, 1, false, reverse, false, projected ? output : 0);
}

// What the attributes of a call say.
template <class T>
struct Layer {
  explicit Layer(const Frame& f)
      : table(table_named(f.text("kernels"))),
        precision(precision_named<T>(f.text("precision"), true)),
        batch_first(f.number("batch_first")),
        repeat(f.number("repeat")),
        samples(f.number("samples")),
        weights(f.number("weights")),
        given(f.number("given")) {
    const std::string name = f.text("cell");
    shape = layer_shape(name, f.number("input"), f.number("hidden"), f.number("output"), f.number("reverse"));
    scalars = f.numbers("scalars", std::size_t(traits().scalars));
    check_cell<T>(traits(), shape.cell, precision, f.text("precision"), scalars.size());
  }
  const CellTraits& traits() const { return table->traits[int(shape.cell)]; }
  const CellKernels<T>& cell() const { return typed<T>(table).cells[int(precision)][int(shape.cell)]; }
  bool has(Input input) const { return given >> input & 1; }

  const KernelTable* table;
  Precision precision;
  bool batch_first, repeat;
  Index samples;  // that a batch is made of, each of B / samples rows
  Index weights, given;
  StackShape shape;
  std::vector<double> scalars;
};

// The weights, or their gradients, in the order of the other bindings: weight_ih, weight_hh, bias_ih, bias_hh, the cell's unit weights or
// one place without any, weight_hr. `get(k, name, count)` gives the memory of the k-th, or null.
template <class Raw, class F>
Raw raw_of(const StackShape& s, const CellTraits& t, F&& get) {
  const Index rows = t.gates * s.hidden;
  Raw raw{};
  raw.weight_ih = get(0, "weight_ih", rows * s.input);
  raw.weight_hh = get(1, "weight_hh", rows * s.output);
  raw.bias_ih = get(2, "bias_ih", rows);
  raw.bias_hh = get(3, "bias_hh", rows);
  int row = 0;
  for (int k = 0; k < t.unit_weights; ++k) {
    auto* data = get(4 + k, t.units[k].name, t.units[k].rows * s.hidden);
    for (int i = 0; i < t.units[k].rows; ++i, ++row) raw.units[row] = data ? data + i * s.hidden : nullptr;
  }
  if (t.projected) raw.weight_hr = get(4 + std::max(t.unit_weights, 1), "weight_hr", s.output * s.hidden);
  return raw;
}

template <class T>
RawWeights<T> read_weights(Frame& f, const Layer<T>& layer) {
  return raw_of<RawWeights<T>>(layer.shape, layer.traits(), [&](int k, const char* name, Index count) -> const T* {
    return layer.weights >> k & 1 ? f.argument<T>(name, count) : nullptr;
  });
}

// ---- packed weights as an array ----

// They begin with their PackedWeights, in which offsets stand in the place of pointers.
constexpr Index kHeadBytes = 512, kTailBytes = 64;
static_assert(sizeof(PackedWeights<double>) <= kHeadBytes);

template <class T>
Index packed_elements(const CellKernels<T>& cell, const StackShape& s) {
  return cell.packed_size(s.input, s.widths(), true) + (kHeadBytes + kTailBytes) / Index(sizeof(T));
}

template <class P>
void move_by(P& pointer, std::intptr_t bytes) {
  if (pointer) pointer = reinterpret_cast<P>(reinterpret_cast<std::intptr_t>(pointer) + bytes);
}
template <class T>
void move_by(PackedWeights<T>* w, std::intptr_t bytes) {
  for (int q = 0; q < kMaxProducts; ++q) move_by(w->panels[q], bytes), move_by(w->transposed[q], bytes), move_by(w->gains[q], bytes);
  move_by(w->bias, bytes), move_by(w->params, bytes);
}

template <class T>
void pack(Frame& f) {
  const Layer<T> layer(f);
  const RawWeights<T> raw = read_weights(f, layer);
  T* memory = f.result<T>("packed", packed_elements(layer.cell(), layer.shape));
  PackedWeights<T> w;
  T* panels = memory + kHeadBytes / Index(sizeof(T));
  check_status(layer.cell().pack(raw, layer.shape.input, layer.shape.widths(), true, panels, &w));
  std::copy(layer.scalars.begin(), layer.scalars.end(), w.scalars);
  move_by(&w, -reinterpret_cast<std::intptr_t>(memory));
  std::memcpy(memory, &w, sizeof w);
}

// The kernels of the CPU; the tape of the pass lies in memory that is given.
template <class T>
struct GivenTape final : CpuBackend<T> {
  Buffer<T> saved, cells;
  void save(const PackedStack<T>&, const StackCall<T>&, Tape<T>* tape, ForwardCall<T>* f) const override {
    tape->saved.push_back(saved), tape->cells.push_back(cells);
    f->saved = saved.get(), f->cells = cells.get();
  }
};

template <class T>
std::shared_ptr<PackedStack<T>> packed_stack(Frame& f, const Layer<T>& layer, std::shared_ptr<const Backend<T>> backend) {
  const T* memory = f.argument<T>("packed", packed_elements(layer.cell(), layer.shape));
  auto out = std::make_shared<PackedStack<T>>(layer.table, layer.shape, std::move(backend), true);
  out->precision = layer.precision;
  std::memcpy(&out->parts[0], memory, sizeof out->parts[0]);
  move_by(&out->parts[0], reinterpret_cast<std::intptr_t>(memory));
  return out;
}

// ---- passes ----

// [B,T] to [T,B].
std::vector<std::uint8_t> turned(const std::uint8_t* from, Index steps, Index batch) {
  std::vector<std::uint8_t> out(std::size_t(steps * batch));
  for (Index b = 0; b < batch; ++b)
    for (Index t = 0; t < steps; ++t) out[t * batch + b] = from[b * steps + t];
  return out;
}

template <class T, class E>
Rows<E> rows_of(const Layer<T>& layer, E* data, Index steps, Index batch, Index width) {
  return layer.batch_first ? Rows<E>{data, width, steps * width} : Rows<E>{data, batch * width, width};
}

template <class E>
void read_lengths(Frame& f, Index steps, std::vector<Index>* out) {
  const E* data = f.argument<E>("lengths", Index(out->size()));
  for (std::size_t b = 0; b < out->size(); ++b) {
    (*out)[b] = Index(data[b]);
    if (data[b] < 0 || Index(data[b]) > steps)
      fail("lengths", "values from 0 to T = " + std::to_string(steps), std::to_string(data[b]) + " at b = " + std::to_string(b));
  }
}

// The next arguments, x and the inputs that are given, as a call without outputs.
template <class T>
StackCall<T> read_call(Frame& f, const Layer<T>& layer) {
  const StackShape& s = layer.shape;
  const xla::Buffer& x = f.peek("x");
  if (x.rank != 3) fail("x", "3 axes", std::to_string(x.rank));
  StackCall<T> call;
  call.steps = x.dims[layer.batch_first], call.batch = x.dims[!layer.batch_first];
  const Index steps = call.steps, batch = call.batch;
  call.x = rows_of(layer, f.argument<T>("x", steps * batch * s.input), steps, batch, s.input);
  if (layer.has(kH0)) call.h0 = f.argument<T>("h0", batch * s.output);
  if (layer.has(kC0)) call.c0 = f.argument<T>("c0", batch * s.hidden);
  std::vector<Index> lengths(layer.has(kLengths) ? std::size_t(batch) : 0);
  if (layer.has(kLengths)) (f.peek("lengths").dtype == xla::kS32 ? read_lengths<std::int32_t> : read_lengths<Index>)(f, steps, &lengths);
  std::vector<std::uint8_t> turned_flags[2];
  const std::uint8_t* flags[2] = {};
  for (const int k : {0, 1}) {
    if (!layer.has(k == 0 ? kResets : kMask)) continue;
    flags[k] = f.argument<std::uint8_t>(k == 0 ? "resets" : "mask", steps * batch);
    if (layer.batch_first) turned_flags[k] = turned(flags[k], steps, batch), flags[k] = turned_flags[k].data();
  }
  if (layer.has(kResetH)) call.restart_h = f.argument<T>("reset_state", s.output);
  if (layer.has(kResetC)) call.restart_c = f.argument<T>("reset_state", s.hidden);
  if ((flags[0] || flags[1]) && steps > 2147483640) fail("x", "at most 2147483640 steps with resets or a mask", std::to_string(steps));
  set_times(call, s, layer.has(kLengths) ? lengths.data() : nullptr, flags[0], flags[1], layer.repeat);
  // What jax.vmap has made one batch stays apart: the rows of the tape are in this order, and JAX may give each sample its own again.
  const Index rows = layer.samples > 0 ? batch / layer.samples : 0;
  for (Index first = 0; layer.samples > 1 && !call.order.empty() && first < batch; first += rows) {
    const auto begin = call.lengths.begin() + first;
    const std::vector<Index> own = balance_rows({begin, begin + rows});
    for (Index i = 0; i < rows; ++i) call.order[first + i] = first + own[i];
  }
  return call;
}

// Results: y, h_n, c_n of a cell that has it; and the two halves of the tape where there is one.
template <class T>
void write_call(Frame& f, const Layer<T>& layer, StackCall<T>* call) {
  const StackShape& s = layer.shape;
  call->y = rows_of(layer, f.result<T>("y", call->tape_rows() * s.output), call->steps, call->batch, s.output);
  call->hn = f.result<T>("h_n", call->batch * s.output);
  if (layer.traits().states > 1) call->cn = f.result<T>("c_n", call->batch * s.hidden);
}

template <class T>
void infer(Frame& f) {
  const Layer<T> layer(f);
  const PackedStack<T> packed(layer.table, layer.shape, layer.precision, {read_weights(f, layer)}, false, layer.scalars);
  StackCall<T> call = read_call(f, layer);
  write_call(f, layer, &call);
  check_status(stack_forward<T>(packed, call, nullptr));
}

template <class T>
Buffer<T> unowned(T* data, Index count) {
  return {nullptr, data, count};
}

template <class T>
void forward_for_training(Frame& f) {
  const Layer<T> layer(f);
  auto backend = std::make_shared<GivenTape<T>>();
  const auto packed = packed_stack(f, layer, std::shared_ptr<const Backend<T>>(backend));
  StackCall<T> call = read_call(f, layer);
  write_call(f, layer, &call);
  const Index n = call.tape_rows(), saved = n * packed->tape_width(false), cells = n * packed->padded_hidden();
  backend->saved = unowned(f.result<T>("saved", saved), saved);
  if (layer.traits().states > 1) backend->cells = unowned(f.result<T>("cells", cells), cells);
  Tape<T> tape;
  tape.packed = packed;
  check_status(stack_forward(*packed, call, &tape));
}

template <class T>
T* zeros(Frame& f, const char* name, Index count) {
  T* data = f.result<T>(name, count);
  if (count) std::memset(data, 0, std::size_t(count) * sizeof(T));
  return data;
}

// Results: the gradients of weights and inputs that `need_weights` and `need` have bits of, in their order.
template <class T>
void write_gradients(Frame& f, const Layer<T>& layer, const StackCall<T>& call, StackGradients<T>* g) {
  const StackShape& s = layer.shape;
  const Index weights = f.number("need_weights"), need = f.number("need"), n = call.tape_rows();
  g->weights = {raw_of<RawGradients<T>>(s, layer.traits(), [&](int k, const char* name, Index count) -> T* {
    return !(weights >> k & 1) ? nullptr : n ? f.result<T>(name, count) : zeros<T>(f, name, count);
  })};
  g->overwrite = true;
  const auto wanted = [&](Input input) { return need >> input & 1; };
  if (wanted(kX)) g->dx = rows_of(layer, f.result<T>("dx", n * s.input), call.steps, call.batch, s.input);
  if (wanted(kH0)) g->dh0 = f.result<T>("dh0", call.batch * s.output);
  if (wanted(kC0)) g->dc0 = f.result<T>("dc0", call.batch * s.hidden);
  if (wanted(kResetH)) g->drestart_h = zeros<T>(f, "dreset_state", s.output);
  if (wanted(kResetC)) g->drestart_c = zeros<T>(f, "dreset_state", s.hidden);
}

// Arguments: those of the forward pass, y, its tape, and the gradients of y, h_n and c_n that `cotangents` has bits of.
template <class T>
void backward_of_training(Frame& f) {
  const Layer<T> layer(f);
  const StackShape& s = layer.shape;
  Tape<T> tape;
  const auto packed = packed_stack<T>(f, layer, std::make_shared<CpuBackend<T>>());
  tape.packed = packed;
  tape.call = read_call(f, layer);
  StackCall<T>& call = tape.call;
  const Index n = call.tape_rows(), saved = n * packed->tape_width(false), cells = n * packed->padded_hidden();
  // The stack reads y and the tape alone backward; its structs have one type for both directions.
  call.y = rows_of(layer, const_cast<T*>(f.argument<T>("y", n * s.output)), call.steps, call.batch, s.output);
  tape.saved.push_back(unowned(const_cast<T*>(f.argument<T>("saved", saved)), saved));
  tape.cells.emplace_back();
  if (layer.traits().states > 1) tape.cells[0] = unowned(const_cast<T*>(f.argument<T>("cells", cells)), cells);
  StackGradients<T> g;
  const Index cotangents = f.number("cotangents");
  if (cotangents & 1) g.dy = rows_of(layer, f.argument<T>("dy", n * s.output), call.steps, call.batch, s.output);
  if (n == 0) g.dy.data = nullptr;
  if (cotangents & 2) g.dhn = f.argument<T>("dh_n", call.batch * s.output);
  if (cotangents & 4) g.dcn = f.argument<T>("dc_n", call.batch * s.hidden);
  write_gradients(f, layer, call, &g);
  check_status(stack_backward(tape, g, {}));
}

// ---- the border ----

xla::Error* error(const xla::CallFrame& frame, xla::ErrorCode code, const char* message) {
  xla::ErrorCreateArgs args{sizeof(xla::ErrorCreateArgs), nullptr, message, code};
  return frame.api->error_create(&args);
}

// XLA asks for the version when a handler is registered, and refuses what it no longer takes. This one is of the newest that both know.
void tell_version(const xla::CallFrame& frame, xla::MetadataExtension* extension) {
  const int theirs = frame.api && frame.api->api_version.major_version == xla::kMajor ? frame.api->api_version.minor_version : 0;
  xla::ApiVersion& version = extension->metadata->api_version;
  version.struct_size = sizeof(xla::ApiVersion), version.extension_start = nullptr;
  version.major_version = xla::kMajor, version.minor_version = std::clamp(theirs, xla::kOldestMinor, xla::kNewestMinor);
  extension->metadata->traits = 0;
}

template <void (*kFloat)(Frame&), void (*kDouble)(Frame&)>
xla::Error* handle(xla::CallFrame* call) {
  if (call->extension_start && call->extension_start->type == xla::kMetadataExtension) {
    tell_version(*call, reinterpret_cast<xla::MetadataExtension*>(call->extension_start));
    return nullptr;
  }
  try {
    Frame frame(*call);
    (frame.first_is(xla::kF64) ? kDouble : kFloat)(frame);
    return nullptr;
  } catch (const std::bad_alloc& e) { return error(*call, xla::kResourceExhausted, e.what()); } catch (const std::exception& e) {
    return error(*call, xla::kInvalidArgument, e.what());
  }
}

// Elements of the packed weights, of a row of the tape, and of a row of its cell states.
template <class T>
py::tuple sizes(const std::string& name, Index input, Index hidden, Index output, const std::string& precision) {
  const StackShape s = layer_shape(name, input, hidden, output, false);
  const Precision p = precision_named<T>(precision, true);
  const auto& cell = typed<T>(kernels()).cells[int(p)][int(s.cell)];
  if (!cell.forward) fail("precision", "exact for the cell " + name, "'" + precision + "'");
  const PackedStack<T> packed(kernels(), s, std::make_shared<CpuBackend<T>>(), true);
  return py::make_tuple(packed_elements(cell, s), packed.tape_width(false), packed.traits().states > 1 ? packed.padded_hidden() : 0);
}

}  // namespace

void bind_jax(py::module_& m) {
  m.def("xla_handlers", [] {
    const auto capsule = [](xla::Error* (*handler)(xla::CallFrame*)) { return py::capsule(reinterpret_cast<void*>(handler)); };
    py::dict out;
    out["pack"] = capsule(&handle<pack<float>, pack<double>>);
    out["infer"] = capsule(&handle<infer<float>, infer<double>>);
    out["forward"] = capsule(&handle<forward_for_training<float>, forward_for_training<double>>);
    out["backward"] = capsule(&handle<backward_of_training<float>, backward_of_training<double>>);
    return out;
  });
  m.def(
      "xla_sizes",
      [](int itemsize, const std::string& cell, Index input, Index hidden, Index output, const std::string& precision) {
        return (itemsize == 4 ? sizes<float> : sizes<double>)(cell, input, hidden, output, precision);
      },
      py::arg("itemsize"), py::arg("cell"), py::arg("input"), py::arg("hidden"), py::arg("output"), py::arg("precision"));
}

}  // namespace ost
