// The CTC loss of arrays.
#include <algorithm>

#include "../dispatch.h"
#include "../stack.h"
#include "arrays.h"

namespace ost {
namespace {

// A copy, checked: without the GIL another thread may change the caller's array.
std::vector<Index> numbers(const py::object& object, const std::string& name, Index end) {
  const auto v = view<const Index>(object, name, {{"n", -1}}, Strides::kContiguous);
  const std::vector<Index> out(v.data, v.data + v.shape[0]);
  for (Index i : out)
    if (i < 0 || i >= end) fail(name, "numbers from 0 to " + std::to_string(end - 1), std::to_string(i));
  return out;
}
std::vector<Index> offsets(const py::object& object, const std::string& name, Index end) {
  auto out = numbers(object, name, end + 1);
  if (out.empty() || out.front() != 0 || out.back() != end) fail(name, "offsets from 0 to " + std::to_string(end), "others");
  for (std::size_t i = 1; i < out.size(); ++i)
    if (out[i] < out[i - 1]) fail(name, "offsets that do not decrease", std::to_string(out[i]));
  return out;
}

template <class T>
py::tuple ctc(const py::object& logits, const py::object& rows, const py::object& row_offsets, const py::object& labels,
              const py::object& label_offsets, const py::object& scales, Index blank, bool zero_infinite, bool need_gradient) {
  const auto l = view<const T>(logits, "y", {{"N", -1}, {"V", -1}}, Strides::kContiguous);
  const Index n = l.shape[0], classes = l.shape[1];
  const auto r = numbers(rows, "rows", n), ro = offsets(row_offsets, "row_offsets", Index(r.size()));
  const auto t = numbers(labels, "labels", classes), to = offsets(label_offsets, "label_offsets", Index(t.size()));
  const Index batch = Index(ro.size()) - 1;
  if (Index(to.size()) != batch + 1) fail("label_offsets", std::to_string(batch + 1) + " numbers", std::to_string(to.size()));
  if (!(0 <= blank && blank < classes)) fail("blank", "a class below V = " + std::to_string(classes), std::to_string(blank));
  std::vector<char> seen(std::size_t(n), 0);
  for (Index i : r)
    if (seen[std::size_t(i)]++) fail("rows", "each row once", std::to_string(i) + " twice");
  const auto s = view<const double>(scales, "scales", {{"B", batch}}, Strides::kContiguous);
  const std::vector<double> factors(s.data, s.data + batch);
  auto losses = new_array<double>({batch});
  py::object d = py::none();
  T* dlogits = nullptr;
  if (need_gradient) {
    auto array = new_array<T>({n, classes});
    dlogits = array.mutable_data();
    d = array;
  }
  const CtcCall<T> call{batch,    classes,   blank,          l.data,        r.data(), ro.data(),
                        t.data(), to.data(), factors.data(), zero_infinite, dlogits,  losses.mutable_data()};
  int status;
  {
    GilRelease release;
    if (dlogits)
      for (Index i = 0; i < n; ++i)
        if (!seen[std::size_t(i)]) std::fill_n(dlogits + i * classes, classes, T(0));
    status = typed<T>(kernels()).ctc(call);
  }
  check_status(status);
  return py::make_tuple(losses, d);
}

template <class T>
void bind_typed(py::module_& m, const char* name) {
  m.def(name, &ctc<T>, py::arg("y"), py::arg("rows"), py::arg("row_offsets"), py::arg("labels"), py::arg("label_offsets"),
        py::arg("scales"), py::arg("blank"), py::arg("zero_infinite"), py::arg("need_gradient"));
}

}  // namespace

void bind_ctc(py::module_& m) {
  bind_typed<float>(m, "ctc_Float32");
  bind_typed<double>(m, "ctc_Float64");
}

}  // namespace ost
