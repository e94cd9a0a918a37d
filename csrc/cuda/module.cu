// The extension module for NVIDIA GPUs. It links the CUDA runtime statically and no driver: without
// one it loads, and says why there is no device. Kernels are launched on the caller's stream.
// Nothing here allocates device memory, waits for it or reads from it.
#include <cuda_runtime.h>

#include <map>

#include "calls.h"
#include "entry.h"

namespace ost::OST_SET {
namespace {

constexpr int kPortablePeers = 8;  // blocks of a cluster that every device with clusters takes

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clear the error, which is not the next call's
  throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")");
}

// Ask for the shared memory of a kernel that is more than needs no attribute, and return its bytes.
template <class K>
std::size_t dynamic_bytes() {
  constexpr std::size_t bytes = sizeof(typename K::Space);
  if constexpr (bytes > kStaticBytes)
    check(cudaFuncSetAttribute(entry<K>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)), "asking for shared memory");
  return bytes > kStaticBytes ? bytes : 0;
}

// A launch of one cluster of a kernel whose clusters run independently of each other.
template <class K>
cudaLaunchConfig_t cluster_config(cudaLaunchAttribute* attribute) {
  if (K::kPeers > kPortablePeers)
    check(cudaFuncSetAttribute(entry<K>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "asking for large clusters");
  attribute->id = cudaLaunchAttributeClusterDimension, attribute->val.clusterDim = {unsigned(K::kPeers), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(K::kPeers)), config.blockDim = dim3(threads_of<K>());
  config.attrs = attribute, config.numAttrs = 1;
  config.dynamicSmemBytes = dynamic_bytes<K>();
  return config;
}

struct Stream {
  cudaStream_t stream;

  template <class K>
  void operator()(const K& kernel) const {
    const Grid grid = kernel.grid();
    const Index blocks = grid.x * grid.y * grid.z;
    if (blocks == 0) return;
    if (blocks > Index(0x7fffffff)) fail("x", "fewer than 2^31 blocks of work for a kernel", std::to_string(blocks));
    if constexpr (requires { K::kIndependent; }) {
      cudaLaunchAttribute attribute{};
      cudaLaunchConfig_t config = cluster_config<K>(&attribute);
      config.gridDim = dim3(unsigned(blocks)), config.stream = stream;
      check(cudaLaunchKernelEx(&config, entry<K>, kernel, grid.x, grid.y), "launching a kernel of clusters");
    } else if constexpr (requires { K::kPeers; }) {  // refused unless all blocks can run at the same time
      cudaLaunchAttribute attributes[2] = {};
      attributes[0].id = cudaLaunchAttributeCooperative, attributes[0].val.cooperative = 1;
      attributes[1].id = cudaLaunchAttributeClusterDimension;
      attributes[1].val.clusterDim = {unsigned(K::kPeers), 1, 1};
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(unsigned(blocks)), config.blockDim = dim3(kThreads), config.stream = stream;
      config.dynamicSmemBytes = dynamic_bytes<K>();
      config.attrs = attributes, config.numAttrs = K::kPeers > 1 ? 2 : 1;
      check(cudaLaunchKernelEx(&config, entry<K>, kernel, grid.x, grid.y), "launching a kernel whose blocks run together");
    } else {
      static_assert(sizeof(typename K::Space) <= 96 << 10);  // the least of all devices
      entry<<<dim3(unsigned(blocks)), kThreads, dynamic_bytes<K>(), stream>>>(kernel, grid.x, grid.y);
      check(cudaGetLastError(), "launching a kernel");
    }
  }
};

// Launches recorded on a stream of our own, since the caller's may be the default one, which cannot be captured.
class Graph {
 public:
  template <class F>
  explicit Graph(F&& launches) {
    const cudaStream_t side = of_device();
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(side, cudaStreamCaptureModeThreadLocal), "recording a graph");
    try {
      launches(Stream{side});
    } catch (...) {
      cudaStreamEndCapture(side, &graph);
      if (graph) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
    check(cudaStreamEndCapture(side, &graph), "recording a graph");
    const cudaError_t status = cudaGraphInstantiate(&run_, graph, 0);
    cudaGraphDestroy(graph);
    check(status, "making a graph ready");
  }
  Graph() = default;  // empty: the launches cannot be recorded
  Graph(Graph&& other) noexcept : run_(std::exchange(other.run_, nullptr)) {}
  ~Graph() {
    if (run_) cudaGraphExecDestroy(run_);
  }
  bool empty() const { return !run_; }
  void launch(cudaStream_t stream) const { check(cudaGraphLaunch(run_, stream), "launching a graph"); }

 private:
  static cudaStream_t of_device() {
    static auto* streams = new std::map<int, cudaStream_t>;
    int device = 0;
    check(cudaGetDevice(&device), "asking for the device");
    const auto found = streams->find(device);
    if (found != streams->end()) return found->second;
    cudaStream_t stream;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream to record on");
    return (*streams)[device] = stream;
  }
  cudaGraphExec_t run_ = nullptr;
};

bool capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(stream, &status), "asking whether the stream is recorded");
  return status != cudaStreamCaptureStatusNone;
}

// Launch directly, or as a graph if that pays and the caller is not recording one. The GIL is held.
Ran run(const std::string& action, int cell, int itemsize, const py::dict& values, std::uintptr_t address) {
  static auto* replay = new Replay<Graph>;  // never freed: at the end of the process the driver may be gone
  const auto stream = reinterpret_cast<cudaStream_t>(address);
  Ran ran = Ran::kDirectly;
  with_action(action, cell, itemsize, values, [&](const auto& args, const auto& act) {
    const auto direct = [&] { act(Stream{stream}); };
    const Index launches = launches_of(args);
    if (launches < kFewestLaunches || launches > kMostLaunches || capturing(stream)) return direct();
    int device = 0;
    check(cudaGetDevice(&device), "asking for the device");
    const std::string key = key_of(action, cell, itemsize, args, address) + std::to_string(device);
    const auto record = [&] {
      try {
        return Graph(act);
      } catch (const std::runtime_error&) {  // something else invalidated the recording: never record this call again
        return Graph();
      }
    };
    const auto launch = [&](const Graph& graph) { graph.empty() ? direct() : graph.launch(stream); };
    ran = (*replay)(key, direct, record, launch);
  });
  return ran;
}

// Return "" if there is a device that the kernels run on, else the reason.
std::string why_not() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorInsufficientDriver)
    return "there is no NVIDIA driver, or one that is too old for CUDA " + std::to_string(CUDART_VERSION / 1000);
  if (status != cudaSuccess) {
    cudaGetLastError();
    return std::string(cudaGetErrorString(status)) + " (" + cudaGetErrorName(status) + ")";
  }
  if (count == 0) return "the driver knows of no device";
  int major = 0, minor = 0, device = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  // Code of a target runs on devices of the same major version that are not older; that of the last
  // target, as PTX, runs on all newer devices.
  constexpr int targets[] = {__CUDA_ARCH_LIST__};
  int newest = 0;
  for (const int target : targets) {
    newest = larger(newest, target);
    if (target / 100 == major && target % 100 / 10 <= minor) return "";
  }
  if (major * 100 + minor * 10 >= newest) return "";
  return "no kernel was compiled for its capability, " + std::to_string(major) + "." + std::to_string(minor);
}

// Return how many clusters of a kernel, the one with the most shared memory, run at the same time on
// the current device.
template <class K>
int clusters_of(int device, int major) {
  constexpr int bytes = sizeof(typename K::Space);
  int most = 0, present = 0, count = 0;
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaGetDevice(&present);
  if (major < 9 || most < bytes || present != device) return 0;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension, attribute.val.clusterDim = {unsigned(K::kPeers), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(K::kPeers)), config.blockDim = dim3(kThreads), config.dynamicSmemBytes = bytes;
  config.attrs = &attribute, config.numAttrs = 1;
  if (cudaFuncSetAttribute(entry<K>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) == cudaSuccess &&
      cudaOccupancyMaxActiveClusters(&count, entry<K>, &config) == cudaSuccess)
    return count;
  cudaGetLastError();  // then there are no clusters
  return 0;
}

// Return (blocks of a cluster, how many such clusters run at the same time on the current device) for the clusters that take rows
// through all steps and that the device takes.
py::tuple cluster_fits(int device, int major) {
  py::list out;
  int present = 0;
  cudaGetDevice(&present);
  if (major < 9 || present != device) return py::tuple(out);
  for (const int blocks : {2, 4, 8, 16}) {
    int least = 0x7fffffff;  // of both passes
    const auto ask = [&]<class K>(K*) {
      int count = 0;
      cudaLaunchAttribute attribute{};
      try {
        const cudaLaunchConfig_t config = cluster_config<K>(&attribute);
        check(cudaOccupancyMaxActiveClusters(&count, entry<K>, &config), "asking how many clusters fit");
      } catch (const std::runtime_error&) {
        count = 0;  // the device does not take so many blocks
      }
      least = smaller(least, count);
    };
    with_cluster<Lstm, float, Half>(blocks, ask), with_cluster_backward<Lstm, float, Bfloat>(blocks, ask);
    if (least) out.append(py::make_tuple(blocks, least));
  }
  return py::tuple(out);
}

py::dict device_info(int device) {
  cudaDeviceProp p;
  check(cudaGetDeviceProperties(&p, device), "asking for a device's properties");
  int driver = 0;
  check(cudaDriverGetVersion(&driver), "asking for the driver's version");
  int khz = 0;
  check(cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, device), "asking for a device's clock");
  py::dict d;
  d["clock_hz"] = khz * 1e3,
  d["clusters"] = clusters_of<BackwardPersistentOf<GruResetBefore, float, Bfloat, 16, 4, false>>(device, p.major);
  d["pairs"] = clusters_of<BackwardPersistentOf<GruResetBefore, float, float, 8, 2, false>>(device, p.major);
  d["cluster_fits"] = cluster_fits(device, p.major);
  d["name"] = std::string(p.name), d["capability"] = py::make_tuple(p.major, p.minor), d["multiprocessors"] = p.multiProcessorCount;
  d["shared_bytes"] = p.sharedMemPerBlockOptin, d["l2_bytes"] = p.l2CacheSize;
  d["memory_bytes"] = p.totalGlobalMem, d["driver"] = driver, d["runtime"] = CUDART_VERSION;
  return d;
}

}  // namespace
}  // namespace ost::OST_SET

PYBIND11_MODULE(_cuda, m) {
  using namespace ost;
  m.doc() = "Kernels for NVIDIA GPUs: private to the package.";
  m.attr("__version__") = OST_VERSION;
  m.def("why_not", &cuda::why_not);
  m.def("device_count", [] {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
  });
  m.def("device_info", &cuda::device_info, py::arg("device"));
  m.def("run", [](const std::string& action, int cell, int itemsize, const py::dict& addresses, std::uintptr_t stream) {
    return int(cuda::run(action, cell, itemsize, addresses, stream));
  });
}
