#include "dispatch.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <fstream>

// The kernel sets that CMake compiled (OST_HAS_*), best first: the name, the set whose exact
// kernels it uses, and whether this CPU has all that it needs.
#define OST_CPU_AVX512                                                                                             \
  __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && \
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")
#if defined(OST_HAS_avx512bf16)
#define OST_AVX512BF16(X) \
  X(avx512bf16, avx512, OST_CPU_AVX512&& __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni"))
#else
#define OST_AVX512BF16(X)
#endif
#if defined(OST_HAS_avx512)
#define OST_AVX512(X) X(avx512, avx512, OST_CPU_AVX512)
#else
#define OST_AVX512(X)
#endif
#if defined(OST_HAS_avx2)
#define OST_AVX2(X) X(avx2, avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#else
#define OST_AVX2(X)
#endif
#define OST_FOR_SETS(X) OST_AVX512BF16(X) OST_AVX512(X) OST_AVX2(X) X(baseline, baseline, true)

// libm and the clock, for files compiled per instruction set, which must not instantiate library templates.
#define OST_DECLARE(name, exact, supported)                                                                                   \
  namespace name {                                                                                                            \
  void fill(TypedKernels<float>& table);                                                                                      \
  void fill(TypedKernels<double>& table);                                                                                     \
  void fill_low(KernelTable& table);                                                                                          \
  void fill_ctc(KernelTable& table);                                                                                          \
  double log_of(double x);                                                                                                    \
  double now_seconds();                                                                                                       \
  double log_of(double x) { return std::log(x); }                                                                             \
  double now_seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); } \
  }

namespace ost {
namespace plain {
void fill_traits(CellTraits* traits);
}
OST_FOR_SETS(OST_DECLARE)

namespace {

std::atomic<const KernelTable*> g_chosen{nullptr};

template <class Fill>
const KernelTable* make(const char* name, Fill fill) {
  auto* table = new KernelTable{};
  table->name = name;
  fill(*table);
  return table;
}

}  // namespace

const std::vector<const KernelTable*>& known_kernels() {
#define OST_MAKE(name, exact, supported) \
  make(#name, [](KernelTable& t) {       \
    exact::fill(t.f32);                  \
    exact::fill(t.f64);                  \
    name::fill_low(t);                   \
    exact::fill_ctc(t);                  \
    plain::fill_traits(t.traits);        \
  }),
  static const std::vector<const KernelTable*> all{OST_FOR_SETS(OST_MAKE)};
  return all;
}

std::vector<const KernelTable*> supported_kernels() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  const bool has[] = {
#define OST_HAS(name, exact, supported) (supported) != 0,
      OST_FOR_SETS(OST_HAS)};
  std::vector<const KernelTable*> out;
  for (std::size_t i = 0; i < known_kernels().size(); ++i)
    if (has[i]) out.push_back(known_kernels()[i]);
  return out;
}

const KernelTable* kernels() {
  const KernelTable* table = g_chosen.load(std::memory_order_acquire);
  if (!table) g_chosen.store(table = supported_kernels().front(), std::memory_order_release);
  return table;
}

bool choose_kernels(const std::string& name) {
  for (const KernelTable* t : supported_kernels())
    if (name == t->name) {
      g_chosen.store(t, std::memory_order_release);
      return true;
    }
  return false;
}

std::string cpu_name() {
  std::string name = "unknown", family, model;
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line) && !line.empty();) {  // of the first CPU
    const std::size_t colon = line.find(": ");
    if (colon == std::string::npos) continue;
    const std::string value = line.substr(colon + 2);
    if (line.rfind("model name", 0) == 0)
      name = value;
    else if (line.rfind("cpu family", 0) == 0)
      family = value;
    else if (line.rfind("model", 0) == 0)
      model = value;
  }
  return family.empty() || model.empty() ? name : name + ", family " + family + " model " + model;
}

}  // namespace ost
