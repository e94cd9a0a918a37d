// The extension module that emulates the GPU's kernels, for the tests.
#include "../cuda/emulate.h"

namespace ost {
namespace OST_SET {

static_assert(kDeviceCellCount == 6);
extern OST_EMULATED(0);
extern OST_EMULATED(1);
extern OST_EMULATED(2);
extern OST_EMULATED(3);
extern OST_EMULATED(4);
extern OST_EMULATED(5);

}  // namespace OST_SET

namespace {

int run_emulated(const std::string& action, int cell, int itemsize, const py::dict& values, bool reverse_order) {
  using Graph = std::vector<emulated::Recorded>;
  static auto* replay = new emulated::Replay<Graph>;
  const emulated::Addresses a(values);
  const emulated::Emulation how{reverse_order, a.number<std::uint32_t>("delays"), a.number<Index>("absent", -1)};
  const auto on = [&](const emulated::Emulator& run) { emulated::act_by_name(run, action, cell, itemsize, values); };
  const auto direct = [&] { on({how, nullptr}); };
  if (a.number<int>("launches") < emulated::kFewestLaunches) return direct(), 0;
  const auto record = [&] {
    Graph graph;
    on({how, &graph});
    return graph;
  };
  const auto launch = [&](const Graph& graph) {
    for (const auto& kernel : graph) kernel.run(kernel.kernel.data(), how);
  };
  return int((*replay)(emulated::key_of(action, cell, itemsize, values, reverse_order), direct, record, launch));
}

}  // namespace
}  // namespace ost

PYBIND11_MODULE(_emulated, m) {
  m.doc() = "For the tests: the kernels for NVIDIA GPUs on the CPU, and the plain float64 path. Private to the package.";
  m.def("run", &ost::run_emulated);
  ost::bind_proof(m);
}
