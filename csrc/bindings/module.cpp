// The module ostinato._core: its functions, and the parts that other files bind.
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "../core/lines.h"
#include "../cpu/pool.h"
#include "../dispatch.h"
#include "../stack.h"
#include "arrays.h"

namespace ost {
namespace {

unsigned long g_main_thread = 0;

std::vector<std::string> names(const std::vector<const KernelTable*>& tables) {
  std::vector<std::string> out;
  for (const auto* t : tables) out.emplace_back(t->name);
  return out;
}
py::list list_of(const std::vector<std::string>& items) {
  py::list out;
  for (const auto& i : items) out.append(i);
  return out;
}

void choose(const std::string& name, const char* source) {
  if (choose_kernels(name)) return;
  std::string known;
  for (const auto& n : names(known_kernels())) known += (known.empty() ? "" : ", ") + n;
  std::string runs;
  for (const auto& n : names(supported_kernels())) runs += (runs.empty() ? "" : ", ") + n;
  fail(source, "one of the kernel sets " + known + " (this CPU runs " + runs + ")", "'" + name + "'");
}

void read_environment() {
  if (const char* name = environment("OSTINATO_KERNELS")) choose(name, "OSTINATO_KERNELS");
  if (thread_count() < 1)
    fail("OSTINATO_NUM_THREADS", "a whole number from 1 to 1024", std::string("'") + environment("OSTINATO_NUM_THREADS") + "'");
}

}  // namespace

// Only the main thread handles signals. Any other thread would take the GIL in vain; and a daemon
// thread would be ended by it in the middle of a call when the interpreter exits.
Poll SignalPoll::poll() { return PyThread_get_thread_ident() == g_main_thread ? Poll{&SignalPoll::ask, this} : Poll{}; }

int SignalPoll::ask(void* self) {
  auto& me = *static_cast<SignalPoll*>(self);
  const double now = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  if (me.last_ == 0) me.last_ = now;
  if (now - me.last_ < 0.02) return 0;
  me.last_ = now;
  // Signal handlers of the caller run here, with the caller's treatment of denormals.
  const unsigned mode = flush_denormals_off();
  py::gil_scoped_acquire gil;
  const int stop = PyErr_CheckSignals() != 0;
  flush_denormals_restore(mode);
  return stop;
}

namespace {
std::atomic<bool> g_ending{false};     // set by our exit handler
std::atomic<int> g_taking_the_gil{0};  // threads between reading g_ending and having the GIL

// Called by atexit, with the GIL. Threads that are about to take it back get it now; later ones
// never ask for it.
void end_quietly() {
  g_ending = true;
  py::gil_scoped_release release;
  while (g_taking_the_gil > 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
}
}  // namespace

GilRelease::GilRelease() : state_(PyEval_SaveThread()) {}

GilRelease::~GilRelease() {
  ++g_taking_the_gil;
  if (g_ending && PyThread_get_thread_ident() != g_main_thread) {
    --g_taking_the_gil;
    for (;;) std::this_thread::sleep_for(std::chrono::hours(24));
  }
  PyEval_RestoreThread(state_);
  --g_taking_the_gil;
}

void check_status(int status) {
  if (status == kStopped) throw py::error_already_set();
  if (status == kNoMemory) throw OutOfMemory("workspace: cannot allocate " + std::to_string(refused_bytes()) + " bytes");
}

}  // namespace ost

// Free-threaded Python keeps its GIL off: what calls share is atomic or locked, and a second step of a stream is refused.
// Arrays that are written while a call reads them, and `stream.x` within a step, are left to the caller (docs/kernels.md).
PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  using namespace ost;
  m.doc() = "The native kernels of ostinato. Private: use ostinato.functional and ostinato.nn.";
  m.attr("__version__") = OST_VERSION;
  g_main_thread = py::cast<unsigned long>(py::module_::import("threading").attr("main_thread")().attr("ident"));
  py::module_::import("atexit").attr("register")(py::cpp_function(&end_quietly));
  pthread_atfork(nullptr, nullptr, [] { g_taking_the_gil = 0; });  // a forked child has none of the threads
  read_environment();
  m.def("known_kernels", [] { return list_of(names(known_kernels())); });
  m.def("supported_kernels", [] { return list_of(names(supported_kernels())); });
  m.def("tile_models", [] { return list_of(names(tile_models())); });
  m.def("kernels", [] { return std::string(kernels()->name); });
  m.def("use_kernels", [](const std::string& name) { choose(name, "name"); }, py::arg("name"));
  m.def("cpu_name", &cpu_name);
  m.def("get_num_threads", &thread_count);
  m.def(
      "set_num_threads",
      [](Index n) {
        if (n < 1 || n > kMostThreads) fail("n", "a whole number from 1 to 1024", std::to_string(n));
        set_thread_count(int(n));
      },
      py::arg("n"));
  m.def("get_spin_microseconds", &spin_microseconds);
  m.def("set_spin_microseconds", &set_spin_microseconds, py::arg("n"));
  m.def("set_impatient", &set_impatient, py::arg("impatient"));
  m.def("cgroup_quota", &cgroup_quota, py::arg("root"));
  m.def("find_openmp", &find_openmp);
  m.def("last_team", [] { return std::pair<int, std::string>(last_team().members, last_team().kind); });
  m.def(
      "fma_peak",
      [](double seconds, int bytes) {
        GilRelease release;
        return bytes == 4 ? kernels()->f32.fma_peak(seconds) : kernels()->f64.fma_peak(seconds);
      },
      py::arg("seconds"), py::arg("itemsize"));
  m.def(
      "read_bandwidth",
      [](Index bytes, double seconds) {
        GilRelease release;
        return kernels()->f32.read_bandwidth(bytes, seconds);
      },
      py::arg("bytes"), py::arg("seconds"));
  m.def("release_memory", &release_memory);
  m.def("fma_lanes", [](int bytes) { return bytes == 4 ? kernels()->f32.lanes : kernels()->f64.lanes; }, py::arg("itemsize"));
  m.def("instructions", [] {
    py::dict out;
    out["bfloat16"] = kernels()->bfloat16, out["int8"] = kernels()->int8;
    return out;
  });
  bind_recurrent(m);
  bind_training(m);
  bind_ctc(m);
  bind_stream(m);
  bind_device(m);
  bind_jax(m);
}
