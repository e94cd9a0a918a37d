#include "arrays.h"

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
