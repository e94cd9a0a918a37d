#include "arrays.h"
#include "sizes.h"

namespace ost {
namespace {

std::string type_name(py::handle object) { return py::str(py::type::of(object).attr("__name__")); }

std::vector<Index> numbers(const py::tuple& of) {
  std::vector<Index> out;
  for (const py::handle n : of) out.push_back(n.cast<Index>());
  return out;
}

ArrayFacts numpy_facts(py::handle object, const std::string& name, const std::string& dtype) {
  if (!py::isinstance<py::array>(object) && py::hasattr(object, "__cuda_array_interface__"))
    throw py::type_error(name + ": expected a numpy.ndarray of " + dtype + ", as the weights are on the CPU, got an array of a GPU; use " +
                         name + ".get(), or move the layer");
  if (!py::isinstance<py::array>(object))
    throw py::type_error(name + ": expected a numpy.ndarray of " + dtype + ", got " + type_name(object) + "; use np.asarray(" + name +
                         ", dtype=np." + dtype + ")");
  const auto array = py::reinterpret_borrow<py::array>(object);
  return {const_cast<void*>(array.data()),
          array.writeable(),
          array.dtype(),
          {array.shape(), array.shape() + array.ndim()},
          {array.strides(), array.strides() + array.ndim()}};
}

}  // namespace

void Memory::add(py::handle array, const char* name, bool written) {
  if (!py::isinstance<py::array>(array)) return;
  const auto a = py::reinterpret_borrow<py::array>(array);
  const auto first = reinterpret_cast<std::uintptr_t>(a.data());
  std::uintptr_t low = first, high = first + std::uintptr_t(a.itemsize());
  for (py::ssize_t i = 0; i < a.ndim(); ++i) (a.strides(i) < 0 ? low : high) += std::uintptr_t((a.shape(i) - 1) * a.strides(i));
  if (a.size() > 0) add({low, high}, name, written);
}

void Memory::check() {
  std::sort(parts_.begin(), parts_.end(), [](const Part& a, const Part& b) { return a.begin < b.begin; });
  const Part *written = nullptr, *read = nullptr;  // those that reach farthest so far
  for (const Part& part : parts_) {
    const bool behind_output = written && part.begin < written->end, behind_input = part.written && read && part.begin < read->end;
    if (behind_output || behind_input) {
      const Part& other = behind_output ? *written : *read;
      const Part &out = part.written ? part : other, &rest = part.written ? other : part;
      fail(out.name, "memory of its own", std::string("an array whose memory range overlaps that of ") + rest.name);
    }
    const Part*& farthest = part.written ? written : read;
    if (!farthest || farthest->end < part.end) farthest = &part;
  }
}

void check_sequence(const py::sequence& given, const char* name) {
  if (PySequence_Size(given.ptr()) >= 0) return;
  PyErr_Clear();
  throw py::type_error(std::string(name) + ": expected a sequence, got " + std::string(py::repr(given)));
}

Index check_size(Index n, const char* name, Index least) {
  if (n < least || n > Index(1) << 40) fail(name, "a size from " + std::to_string(least) + " to 2^40", std::to_string(n));
  return n;
}

void check_product(Index a, const char* name_a, Index b, const char* name_b) {
  if (double(check_size(a, name_a)) * check_size(b, name_b) > kMostElements)
    fail(name_a, std::string("a product with ") + name_b + " of at most 2^46", std::to_string(a) + " and " + std::to_string(b));
}

std::vector<double> numbers_of(const py::sequence& given, const char* name) {
  std::vector<double> out;
  check_sequence(given, name);
  for (const py::handle one : given) {
    const double x = PyFloat_AsDouble(one.ptr());
    if (x == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      throw py::type_error(std::string(name) + ": expected numbers, got " + std::string(py::repr(one)));
    }
    out.push_back(x);
  }
  return out;
}

ArrayFacts facts_of(py::handle object, const std::string& name, const std::string& dtype, const py::object& device) {
  if (device.is_none()) return numpy_facts(object, name, dtype);
  device.attr("require")(name, object);
  return {reinterpret_cast<void*>(device.attr("address")(object).cast<std::uintptr_t>()), true, py::dtype::from_args(object.attr("dtype")),
          numbers(object.attr("shape")), numbers(object.attr("strides"))};
}

std::pair<py::object, void*> new_device_array(const py::object& device, const std::vector<Index>& shape, const py::dtype& dtype,
                                              bool zeros) {
  py::tuple sizes(shape.size());
  for (std::size_t i = 0; i < shape.size(); ++i) sizes[i] = shape[i];
  const py::object array = device.attr(zeros ? "zeros" : "empty")(sizes, dtype);
  return {array, reinterpret_cast<void*>(device.attr("address")(array).cast<std::uintptr_t>())};
}

}  // namespace ost
