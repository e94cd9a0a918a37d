// The training step outside the recurrences: Linear, softmax cross entropy, embedding, optimiser, dropout.
#include "../dispatch.h"
#include "../stack.h"
#include "arrays.h"
#include "packed_linear.h"
#include "sizes.h"

namespace ost {
namespace {

template <class T>
py::tuple softmax_cross_entropy(const py::object& logits, const py::object& target, double smoothing, double weight, bool need_gradient) {
  const auto l = view<const T>(logits, "y", {{"N", -1}, {"V", -1}}, Strides::kContiguous);
  const auto t = view<const Index>(target, "target", {{"N", l.shape[0]}}, Strides::kContiguous);
  const Index n = l.shape[0], classes = l.shape[1];
  const std::vector<Index> goals(t.data, t.data + n);  // a copy: without the GIL another thread may change the caller's
  std::vector<double> losses(n);
  for (Index i = 0; i < n; ++i)
    if (goals[i] >= classes) fail("target", "class numbers below V = " + std::to_string(classes), std::to_string(goals[i]));
  py::object d = py::none();
  T* to = nullptr;
  if (need_gradient) {
    auto array = new_array<T>({n, classes});
    to = array.mutable_data();
    d = array;
  }
  double loss;
  {
    GilRelease release;
    loss = typed<T>(kernels()).train.softmax_cross_entropy(n, classes, l.data, goals.data(), smoothing, weight, to, losses.data());
  }
  return py::make_tuple(loss, d);
}

std::vector<Index> rows_of(const py::object& ids, Index rows) {
  return checked_rows(view<const Index>(ids, "x", {{"n", -1}}, Strides::kContiguous), rows, "position");
}

template <class T>
py::array_t<T> embedding_gather(const py::object& ids, const py::object& table) {
  const auto tv = view<const T>(table, "weight", {{"N", -1}, {"E", -1}}, Strides::kContiguous);
  const auto rows = rows_of(ids, tv.shape[0]);
  auto y = new_array<T>({Index(rows.size()), tv.shape[1]});
  T* to = y.mutable_data();
  GilRelease release;
  typed<T>(kernels()).train.embedding_gather(Index(rows.size()), tv.shape[1], rows.data(), tv.data, to);
  return y;
}

template <class T>
void embedding_scatter(const py::object& ids, const py::object& dy, const py::object& dtable) {
  const auto tv = view<T>(dtable, "grads: weight", {{"N", -1}, {"E", -1}}, Strides::kContiguous, true);
  const auto rows = rows_of(ids, tv.shape[0]);
  const auto dv = view<const T>(dy, "dy", {{"n", Index(rows.size())}, {"E", tv.shape[1]}}, Strides::kContiguous);
  Memory memory;
  memory.writes(tv, "grads: weight"), memory.reads(dv, "dy");
  memory.check();
  GilRelease release;
  typed<T>(kernels()).train.embedding_scatter(Index(rows.size()), tv.shape[1], rows.data(), dv.data, tv.data);
}

template <class T>
double square_sum(const py::object& x) {
  const auto v = view<const T>(x, "x", {{"N", -1}}, Strides::kContiguous);
  GilRelease release;
  return typed<T>(kernels()).train.square_sum(v.shape[0], v.data);
}

// The arrays of an update and its ranges, checked: all of them are moved or, on an error, none.
template <class T>
class Updating {
 public:
  Updating(const py::object& p, const py::object& g, double factor, const py::object& previous) : factor_(T(factor)) {
    p_ = take(p, "p", true), g_ = take(g, "g", factor_ != T(1));
    if (!previous.is_none()) previous_ = take(previous, "previous", true);
  }
  void add_buffer(const py::object& buffer, const char* name) { buffers_[count_++] = take(buffer, name, true); }

  // A run is (first, end, ...), in all `count` numbers; `step` makes the step of the numbers behind the range.
  template <class F>
  void run(const py::sequence& runs, Index count, F&& step) {
    memory_.check();
    check_sequence(runs, "runs");
    std::vector<std::pair<Update<T>, std::vector<double>>> all;
    for (const py::handle one : runs) {
      if (!py::isinstance<py::tuple>(one) || Index(py::len(one)) != count)
        throw py::type_error("runs: expected tuples of " + std::to_string(count) + " numbers, got " + std::string(py::repr(one)));
      const std::vector<double> x = numbers_of(py::reinterpret_borrow<py::sequence>(one), "runs");
      if (!(0 <= x[0] && x[0] <= x[1] && x[1] <= double(size_)))
        fail("runs", "ranges within " + std::to_string(size_), std::string(py::repr(one)));
      all.push_back({part(Index(x[0]), Index(x[1])), {x.begin() + 2, x.end()}});
    }
    GilRelease release;
    for (const auto& [update, numbers] : all) step(typed<T>(kernels()).train, update, numbers.data());
  }

 private:
  T* take(const py::object& array, const char* name, bool written) {
    const auto v = view<T>(array, name, {{"N", size_}}, Strides::kContiguous, written);
    size_ = v.shape[0];
    written ? memory_.writes(v, name) : memory_.reads(v, name);
    return v.data;
  }
  Update<T> part(Index first, Index end) const {
    const auto from = [&](T* a) { return a ? a + first : nullptr; };
    return {end - first, from(p_), from(g_), {from(buffers_[0]), from(buffers_[1])}, factor_, from(previous_)};
  }
  Index size_ = -1;
  T factor_, *p_ = nullptr, *g_ = nullptr, *previous_ = nullptr, *buffers_[2]{};
  int count_ = 0;
  Memory memory_;
};

template <class T>
void adam_runs(const py::object& p, const py::object& g, const py::object& m, const py::object& v, const py::sequence& runs, double beta1,
               double beta2, double eps, bool decoupled, double factor, const py::object& previous) {
  Updating<T> updating(p, g, factor, previous);
  updating.add_buffer(m, "m"), updating.add_buffer(v, "v");
  updating.run(runs, 6, [&](const TrainKernels<T>& k, const Update<T>& u, const double* x) {
    k.adam(u, {x[0], beta1, beta2, eps, x[1], x[2], x[3], decoupled});
  });
}

template <class T>
void sgd_runs(const py::object& p, const py::object& g, const py::object& m, const py::sequence& runs, double momentum, bool nesterov,
              double factor, const py::object& previous) {
  Updating<T> updating(p, g, factor, previous);
  if (momentum != 0) updating.add_buffer(m, "m");
  updating.run(runs, 4, [&](const TrainKernels<T>& k, const Update<T>& u, const double* x) { k.sgd(u, {x[0], x[1], momentum, nesterov}); });
}

template <class T>
void rmsprop_runs(const py::object& p, const py::object& g, const py::object& m, const py::sequence& runs, double alpha, double eps,
                  double factor, const py::object& previous) {
  Updating<T> updating(p, g, factor, previous);
  updating.add_buffer(m, "m");
  updating.run(runs, 4, [&](const TrainKernels<T>& k, const Update<T>& u, const double* x) { k.rmsprop(u, {x[0], x[1], alpha, eps}); });
}

template <class T>
py::array_t<T> dropout(const py::object& x, double rate, std::uint64_t key) {
  const auto v = view<const T>(x, "x", {{"N", -1}}, Strides::kContiguous);
  auto y = new_array<T>({v.shape[0]});
  T* to = y.mutable_data();
  GilRelease release;
  dropout_flat<T>(v.shape[0], v.data, to, rate, key);
  return y;
}

template <class T>
py::array_t<T> map(const std::string& name, const py::object& x) {
  const auto v = view<const T>(x, "x", {{"N", -1}}, Strides::kContiguous);
  const auto& k = typed<T>(kernels()).train;
  const auto f = name == "tanh" ? k.tanh : name == "sigmoid" ? k.sigmoid : name == "exp" ? k.exp : nullptr;
  if (!f) fail("name", "tanh, sigmoid or exp", "'" + name + "'");
  auto y = new_array<T>({v.shape[0]});
  T* to = y.mutable_data();
  GilRelease release;
  f(v.shape[0], v.data, to);
  return y;
}

template <class T>
void bind_typed(py::module_& m, const std::string& suffix) {
  using P = PackedLinear<T>;
  const auto name = [&](const char* base) { return base + suffix; };
  py::class_<P, std::shared_ptr<P>>(m, name("PackedLinear").c_str())
      .def(py::init(
               [](const py::object& weight, const py::object& bias, bool backward) { return std::make_shared<P>(weight, bias, backward); }),
           py::arg("weight"), py::arg("bias"), py::arg("backward"))
      .def_property_readonly("kernels", [](const P& p) { return std::string(p.table->name); })
      .def_readonly("backward", &P::backward)
      .def("forward", &P::forward, py::arg("x"))
      .def("run_backward", &P::run_backward, py::arg("x"), py::arg("dy"), py::arg("dweight"), py::arg("dbias"), py::arg("need_dx"));
  m.def(name("softmax_cross_entropy_").c_str(), &softmax_cross_entropy<T>, py::arg("y"), py::arg("target"), py::arg("smoothing"),
        py::arg("weight"), py::arg("need_gradient"));
  m.def(name("embedding_gather_").c_str(), &embedding_gather<T>, py::arg("x"), py::arg("weight"));
  m.def(name("embedding_scatter_").c_str(), &embedding_scatter<T>, py::arg("x"), py::arg("dy"), py::arg("dweight"));
  m.def(name("square_sum_").c_str(), &square_sum<T>, py::arg("x"));
  m.def(name("adam_runs_").c_str(), &adam_runs<T>, py::arg("p"), py::arg("g"), py::arg("m"), py::arg("v"), py::arg("runs"),
        py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("decoupled"), py::arg("factor") = 1.0,
        py::arg("previous") = py::none());
  m.def(name("sgd_runs_").c_str(), &sgd_runs<T>, py::arg("p"), py::arg("g"), py::arg("m"), py::arg("runs"), py::arg("momentum"),
        py::arg("nesterov"), py::arg("factor") = 1.0, py::arg("previous") = py::none());
  m.def(name("rmsprop_runs_").c_str(), &rmsprop_runs<T>, py::arg("p"), py::arg("g"), py::arg("m"), py::arg("runs"), py::arg("alpha"),
        py::arg("eps"), py::arg("factor") = 1.0, py::arg("previous") = py::none());
  m.def(name("dropout_").c_str(), &dropout<T>, py::arg("x"), py::arg("rate"), py::arg("key"));
  m.def(name("map_").c_str(), &map<T>, py::arg("name"), py::arg("x"));
}

}  // namespace

void bind_training(py::module_& m) {
  bind_typed<float>(m, "Float32");
  bind_typed<double>(m, "Float64");
}

}  // namespace ost
