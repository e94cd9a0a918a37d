// The extension module that emulates the GPU's kernels, for the tests.
#include "../cuda/emulate.h"

namespace ost {
namespace OST_SET {

static_assert(kDeviceCellCount == 12);
OST_EMULATED(extern, 0);
OST_EMULATED(extern, 1);
OST_EMULATED(extern, 2);
OST_EMULATED(extern, 3);
OST_EMULATED(extern, 4);
OST_EMULATED(extern, 5);
OST_EMULATED(extern, 6);
OST_EMULATED(extern, 7);
OST_EMULATED(extern, 8);
OST_EMULATED(extern, 9);
OST_EMULATED(extern, 10);
OST_EMULATED(extern, 11);

}  // namespace OST_SET

namespace {

// `delays` and `absent`: see Emulation.
int run_emulated(const std::string& action, int cell, int itemsize, const py::dict& values, bool reverse_order, std::uint32_t delays,
                 Index absent) {
  using Graph = std::vector<emulated::Recorded>;
  static auto* replay = new emulated::Replay<Graph>;
  const emulated::Emulation how{reverse_order, delays, absent};
  int ran = 0;
  emulated::with_action(action, cell, itemsize, values, [&](const auto& args, const auto& act) {
    const auto direct = [&] { act(emulated::Emulator{how, nullptr}); };
    if (emulated::launches_of(args) < emulated::kFewestLaunches) return direct();
    const auto record = [&] {
      Graph graph;
      act(emulated::Emulator{how, &graph});
      return graph;
    };
    const auto launch = [&](const Graph& graph) {
      for (const auto& kernel : graph) kernel.run(kernel.kernel.data(), how);
    };
    ran = int((*replay)(emulated::key_of(action, cell, itemsize, args, reverse_order), direct, record, launch));
  });
  return ran;
}

}  // namespace
}  // namespace ost

// The tests run it from one thread at a time; with the GIL it would take it back for all of free-threaded Python.
PYBIND11_MODULE(_emulated, m, pybind11::mod_gil_not_used()) {
  namespace py = pybind11;
  m.doc() = "For the tests: the kernels for NVIDIA GPUs on the CPU, and the plain float64 path. Private to the package.";
  m.def("run", &ost::run_emulated, py::arg("action"), py::arg("cell"), py::arg("itemsize"), py::arg("values"), py::arg("reverse_order"),
        py::arg("delays") = 0, py::arg("absent") = -1);
  ost::bind_proof(m);
}
