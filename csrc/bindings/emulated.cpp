// The kernels of the GPU, emulated: for the tests.
#include <functional>

#include "../cuda/calls.h"
#include "../cuda/emulate.h"

namespace ost {

namespace {

// Kernels recorded and run again, as a graph of the device's.
struct Recorder {
  emulated::Emulator run;
  std::vector<std::function<void()>>* kernels;
  template <class K>
  void operator()(const K& kernel) const {
    kernels->push_back([kernel, run = run] { run(kernel); });
  }
};

int run_emulated(const std::string& action, int cell, int itemsize, const py::dict& values, bool turned) {
  using Graph = std::vector<std::function<void()>>;
  static auto* replay = new emulated::Replay<Graph>;
  const emulated::Emulator emulator{turned};
  const auto on = [&](const auto& run) { emulated::act_by_name(run, action, cell, itemsize, values); };
  if (emulated::Addresses(values).number<int>("launches") < emulated::kFewestLaunches) return on(emulator), 0;
  const auto record = [&] {
    Graph graph;
    on(Recorder{emulator, &graph});
    return graph;
  };
  const auto launch = [](const Graph& graph) {
    for (const auto& kernel : graph) kernel();
  };
  return int((*replay)(emulated::key_of(action, cell, itemsize, values, turned), [&] { on(emulator); }, record, launch));
}

}  // namespace

void bind_emulated(py::module_& m) {
  m.def("emulated", &run_emulated);
  m.def("device_columns", [] { return emulated::columns_of(emulated::Cells()); });
  m.def("loop_bytes", [](int cell, const std::string& precision, int room) {
    return emulated::loop_bytes_of(CellId(cell), precision, room, emulated::Cells());
  });
  m.def("gradient_parts", &emulated::gradient_parts);
}

}  // namespace ost
