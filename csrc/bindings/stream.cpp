// A model that runs one step a call, on arrays of its own that the caller fills and reads. A step
// allocates nothing.
#include <atomic>
#include <cstring>

#include "../dispatch.h"
#include "../stack.h"
#include "arrays.h"
#include "packed_linear.h"

namespace ost {
namespace {

template <class A>
py::array zeros(std::vector<Index> shape) {
  auto a = new_array<A>(std::move(shape));
  std::memset(a.mutable_data(), 0, std::size_t(a.nbytes()));
  return a;
}

// One layer. It reads rows [n,input] and writes rows [n,output]. slots: the rows of the states that
// they belong to; null: row i is slot i.
template <class T>
struct Stage {
  virtual ~Stage() = default;
  virtual int run(Index n, const Index* slots) = 0;
  // Takes the states over that run() has made, once all layers have run: a step that fails changes none.
  virtual void commit(Index, const Index*) {}
};

template <class T>
struct RecurrentStage : Stage<T> {
  std::shared_ptr<PackedStack<T>> packed;
  py::array h;  // [L,B,H]
  py::object c = py::none();
  Buffer<T> inner, new_h, new_c;      // new_h, new_c: the states that a step makes
  std::vector<ForwardCall<T>> calls;  // on all slots
  T *hidden, *cells = nullptr;        // data of h and c: a step touches no Python object
  Index batch;

  RecurrentStage(std::shared_ptr<PackedStack<T>> p, Index batch, const T* x, T* y) : packed(std::move(p)), batch(batch) {
    const StackShape& s = packed->shape;
    if (s.directions != 1 || s.reverse) fail("stream", "a layer of one direction, forward", "one that needs the end of the sequence first");
    const Index state = batch * s.output, cell_state = batch * s.hidden;
    h = zeros<T>({s.layers, batch, s.output});
    hidden = static_cast<T*>(h.mutable_data());
    new_h = Buffer<T>(s.layers * state, "states of the slots");
    if (packed->traits().states > 1) {
      py::array array = zeros<T>({s.layers, batch, s.hidden});
      cells = static_cast<T*>(array.mutable_data()), c = array;
      new_c = Buffer<T>(s.layers * cell_state, "states of the slots");
    }
    inner = Buffer<T>(s.layers * state, "layer outputs");
    for (Index layer = 0; layer < s.layers; ++layer) {
      ForwardCall<T> f{};
      f.weights = &packed->parts[layer];
      f.steps = 1, f.batch = batch;
      f.x = {layer == 0 ? x : inner.get() + (layer - 1) * state, 0, s.layer_input(layer)};
      f.y = {layer + 1 == s.layers ? y : inner.get() + layer * state, 0, s.output};
      f.h0 = hidden + layer * state, f.hn = new_h.get() + layer * state;
      if (cells) f.c0 = cells + layer * cell_state, f.cn = new_c.get() + layer * cell_state;
      calls.push_back(f);
    }
  }

  // Copy between the states of the slots and contiguous rows.
  void move(const Index* slots, Index n, bool gather) {
    const StackShape& s = packed->shape;
    const auto copy = [&](T* all, T* some, Index width) {
      for (Index layer = 0; layer < s.layers; ++layer)
        for (Index i = 0; i < n; ++i) {
          T *one = all + (layer * batch + slots[i]) * width, *row = some + (layer * batch + i) * width;
          std::memcpy(gather ? row : one, gather ? one : row, std::size_t(width) * sizeof(T));
        }
    };
    copy(hidden, new_h.get(), s.output);
    if (cells) copy(cells, new_c.get(), s.hidden);
  }

  void commit(Index n, const Index* slots) override {
    if (slots) return move(slots, n, false);
    const std::size_t rows = std::size_t(packed->shape.layers * batch);
    std::memcpy(hidden, new_h.get(), rows * std::size_t(packed->shape.output) * sizeof(T));
    if (cells) std::memcpy(cells, new_c.get(), rows * std::size_t(packed->shape.hidden) * sizeof(T));
  }

  int run(Index n, const Index* slots) override {
    if (slots) move(slots, n, true);
    for (std::size_t layer = 0; layer < calls.size(); ++layer) {
      ForwardCall<T> call = calls[layer];
      call.batch = n;
      if (slots) call.h0 = call.hn, call.c0 = call.cn;  // the rows of the slots; h0 is read before hn is written
      if (const int status = packed->cell().forward(&call, 1, false)) return status;
    }
    return kOk;
  }
};

template <class T>
struct LinearStage : Stage<T> {
  std::shared_ptr<PackedLinear<T>> packed;
  const T* x;
  T* y;
  LinearStage(std::shared_ptr<PackedLinear<T>> p, const T* x, T* y) : packed(std::move(p)), x(x), y(y) {}
  int run(Index n, const Index*) override {
    return typed<T>(packed->table).linear.forward(packed->memory.get(), n, packed->input, packed->output, x, packed->input, y);
  }
};

template <class T>
struct EmbeddingStage : Stage<T> {
  const KernelTable* table = kernels();
  Buffer<T> weight;  // a copy: the stream keeps the parameters that it was made with
  Index width;
  const Index* ids;
  T* y;
  EmbeddingStage(const View<T>& w, const Index* ids, T* y) : weight(w.size(), "embedding"), width(w.shape[1]), ids(ids), y(y) {
    std::memcpy(weight.get(), w.data, std::size_t(w.size()) * sizeof(T));
  }
  int run(Index n, const Index*) override {
    typed<T>(table).train.embedding_gather(n, width, ids, weight.get(), y);
    return kOk;
  }
};

template <class T>
struct MapStage : Stage<T> {
  enum Kind { kTanh, kSigmoid, kRelu } kind;
  const KernelTable* table = kernels();
  Index width;
  const T* x;
  T* y;
  MapStage(Kind kind, Index width, const T* x, T* y) : kind(kind), width(width), x(x), y(y) {}
  int run(Index n, const Index*) override {
    const auto& train = typed<T>(table).train;
    if (kind == kRelu)
      for (Index i = 0; i < n * width; ++i) y[i] = x[i] < T(0) ? T(0) : x[i];
    else
      (kind == kTanh ? train.tanh : train.sigmoid)(n * width, x, y);
    return kOk;
  }
};

template <class T>
class Stream : public Shared {
 public:
  explicit Stream(Index batch) : batch_(batch) {
    if (batch < 1) fail("batch", "at least 1", std::to_string(batch));
  }

  // Layers are added in the order in which they run.
  py::tuple add_recurrent(std::shared_ptr<PackedStack<T>> packed) {
    const StackShape s = packed->shape;
    const T* from = input(s.input);
    auto stage = std::make_unique<RecurrentStage<T>>(packed, batch_, from, output(s.output));
    for (Index layer = 0; layer < s.layers; ++layer)
      work_ += double(batch_) * double(s.layer_input(layer) + s.output) * double(packed->traits().gates * s.hidden);
    py::tuple states = py::make_tuple(stage->h, stage->c);
    stages_.push_back(std::move(stage));
    return states;
  }
  void add_linear(std::shared_ptr<PackedLinear<T>> packed) {
    const T* from = input(packed->input);
    work_ += double(batch_) * double(packed->input) * double(packed->output);
    stages_.push_back(std::make_unique<LinearStage<T>>(packed, from, output(packed->output)));
  }
  void add_embedding(const py::object& weight) {
    if (!stages_.empty()) throw py::type_error("stream: expected an Embedding as the first layer, got one further on");
    const auto w = view<const T>(weight, "weight", {{"N", -1}, {"E", -1}}, Strides::kContiguous);
    rows_ = w.shape[0];
    x_ = zeros<Index>({batch_});
    stages_.push_back(std::make_unique<EmbeddingStage<T>>(w, static_cast<const Index*>(x_.data()), output(w.shape[1])));
  }
  void add_map(const std::string& name, Index width) {
    if (width < 0 && stages_.empty()) fail("width", "a number of inputs for the first layer", std::to_string(width));
    const T* from = input(stages_.empty() ? width : width_);
    const auto kind = name == "tanh" ? MapStage<T>::kTanh : name == "sigmoid" ? MapStage<T>::kSigmoid : MapStage<T>::kRelu;
    stages_.push_back(std::make_unique<MapStage<T>>(kind, width_, from, output(width_)));
  }

  py::array step(const py::object& input, const py::object& slots) {
    if (busy_.exchange(true)) throw std::runtime_error("stream: expected one step at a time, got a second from another thread");
    struct Leave {
      std::atomic<bool>& busy;
      ~Leave() { busy = false; }
    } leave{busy_};
    const Index* rows = nullptr;
    Index n = batch_;
    if (!slots.is_none()) rows = chosen(slots, &n);  // null for no slots at all: then there is nothing to run
    if (rows_ >= 0)
      take_ids(input, n);
    else if (!input.is_none())
      take_rows(input, n);
    int status = kOk;
    if (work_ < 1e6) {  // a few microseconds: releasing the GIL and taking it back would cost more than it gains
      status = run(n, rows);
    } else {
      GilRelease release;
      status = run(n, rows);
    }
    check_status(status);
    return slots.is_none() ? y_ : py::array(y_[py::slice(0, n, 1)]);
  }

  py::array x() const { return x_; }
  py::array y() const { return y_; }

 private:
  const T* input(Index width) {  // the input of the next layer
    if (stages_.empty()) {
      x_ = zeros<T>({batch_, width}), width_ = width_in_ = width;
      return static_cast<const T*>(x_.data());
    }
    if (width != width_) fail("stream", "a layer with " + std::to_string(width_) + " inputs", std::to_string(width));
    return static_cast<const T*>(y_.data());
  }
  T* output(Index width) {
    outputs_.push_back(y_ = zeros<T>({batch_, width}));
    width_ = width;
    return static_cast<T*>(y_.mutable_data());
  }
  const Index* chosen(const py::object& slots, Index* n) {
    const auto v = view<const Index>(slots, "slots", {{"n", -1}}, Strides::kContiguous);
    *n = v.shape[0];
    seen_.assign(std::size_t(batch_), 0), slots_.assign(v.data, v.data + *n);
    for (const Index slot : slots_) {
      if (slot < 0 || slot >= batch_) fail("slots", "numbers from 0 to " + std::to_string(batch_ - 1), std::to_string(slot));
      if (seen_[slot]++) fail("slots", "each slot once", std::to_string(slot) + " twice");
    }
    return slots_.data();
  }
  void take_rows(const py::object& input, Index n) {
    const auto v = view<T>(input, "x", {{n == batch_ ? "B" : "slots", n}, {"I", width_in_}});  // not x_.shape(1), which a caller may set
    T* to = static_cast<T*>(x_.mutable_data());
    if (v.data != to || v.strides[0] != v.shape[1]) {
      const View<T> own{to, {batch_, width_in_}, {width_in_, 1}};
      Memory memory;
      memory.writes(own, "stream.x"), memory.reads(v, "x");
      memory.check();
    }
    for (Index b = 0; b < n; ++b) std::memmove(to + b * v.shape[1], v.data + b * v.strides[0], std::size_t(v.shape[1]) * sizeof(T));
  }
  void take_ids(const py::object& input, Index n) {
    Index* to = static_cast<Index*>(x_.mutable_data());
    if (!input.is_none()) {
      const auto v = view<const Index>(input, "x", {{n == batch_ ? "B" : "slots", n}}, Strides::kContiguous);
      std::memmove(to, v.data, std::size_t(n) * sizeof(Index));
    }
    for (Index i = 0; i < n; ++i)
      if (to[i] < 0 || to[i] >= rows_)
        fail("x", "indices from 0 to " + std::to_string(rows_ - 1), std::to_string(to[i]) + " at position " + std::to_string(i));
  }
  int run(Index n, const Index* slots) {
    if (n == 0) return kOk;
    for (const auto& stage : stages_)
      if (const int status = stage->run(n, slots)) return status;
    for (const auto& stage : stages_) stage->commit(n, slots);
    return kOk;
  }

  Index batch_, width_ = 0, width_in_ = 0, rows_ = -1;  // rows of the embedding, if the first layer is one
  py::array x_, y_;
  std::vector<py::array> outputs_;
  std::vector<std::unique_ptr<Stage<T>>> stages_;
  std::vector<Index> slots_, seen_;
  double work_ = 0;
  std::atomic<bool> busy_{false};
};

template <class T>
void bind_typed(py::module_& m, const char* name) {
  py::class_<Stream<T>, std::shared_ptr<Stream<T>>>(m, name)
      .def(py::init([](Index batch) { return std::make_shared<Stream<T>>(batch); }), py::arg("batch"))
      .def("add_recurrent", &Stream<T>::add_recurrent, py::arg("packed"))
      .def("add_linear", &Stream<T>::add_linear, py::arg("packed"))
      .def("add_embedding", &Stream<T>::add_embedding, py::arg("weight"))
      .def("add_map", &Stream<T>::add_map, py::arg("name"), py::arg("width"))
      .def("step", &Stream<T>::step, py::arg("x") = py::none(), py::arg("slots") = py::none())
      .def_property_readonly("x", &Stream<T>::x)
      .def_property_readonly("y", &Stream<T>::y);
}

}  // namespace

void bind_stream(py::module_& m) {
  bind_typed<float>(m, "StreamFloat32");
  bind_typed<double>(m, "StreamFloat64");
}

}  // namespace ost
