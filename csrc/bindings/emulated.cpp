// The kernels of the GPU, emulated: for the tests.
#include "../cuda/calls.h"
#include "../cuda/emulate.h"

namespace ost {

void bind_emulated(py::module_& m) {
  m.def("emulated", [](const std::string& action, int cell, int itemsize, const py::dict& addresses, bool turned) {
    const emulated::Emulator run{turned};
    emulated::act_by_name(run, action, cell, itemsize, addresses);
  });
  m.def("device_columns", [] { return emulated::columns_of(emulated::Cells()); });
  m.def("loop_bytes", [](int cell, const std::string& precision, int room) {
    return emulated::loop_bytes_of(CellId(cell), precision, room, emulated::Cells());
  });
  m.def("gradient_parts", &emulated::gradient_parts);
}

}  // namespace ost
