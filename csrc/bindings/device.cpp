// Facts about the GPU's kernels that Python needs, whether or not there is a GPU.
#include "../cuda/calls.h"

namespace ost {

void bind_device(py::module_& m) {
  m.def("device_columns", [] { return emulated::columns_of(emulated::DeviceCells()); });
  m.def("loop_bytes", [](int cell, const std::string& precision, int capacity) {
    return emulated::loop_bytes_of(CellId(cell), precision, capacity, emulated::DeviceCells());
  });
  m.def("gradient_parts", &emulated::gradient_parts);
}

}  // namespace ost
