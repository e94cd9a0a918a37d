#include "dispatch.h"

#include <atomic>
#include <chrono>
#include <cmath>

#include "core/lines.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(OST_HAS_amx) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// The kernel sets that CMake compiled (OST_HAS_*), best first: the name, the set whose exact
// kernels it uses, and whether this CPU has all that it needs.
#if defined(OST_HAS_amx)
#define OST_AMX(X) X(amx, avx512, cpu().amx)
#else
#define OST_AMX(X)
#endif
#if defined(OST_HAS_avx512bf16)
#define OST_AVX512BF16(X) X(avx512bf16, avx512, cpu().avx512bf16)
#else
#define OST_AVX512BF16(X)
#endif
#if defined(OST_HAS_avx512)
#define OST_AVX512(X) X(avx512, avx512, cpu().avx512)
#else
#define OST_AVX512(X)
#endif
#if defined(OST_HAS_avx2)
#define OST_AVX2(X) X(avx2, avx2, cpu().avx2)
#else
#define OST_AVX2(X)
#endif
#if defined(OST_HAS_neonbf16)
#define OST_NEONBF16(X) X(neonbf16, baseline, cpu().neonbf16)
#else
#define OST_NEONBF16(X)
#endif
#if defined(OST_HAS_neondot)
#define OST_NEONDOT(X) X(neondot, baseline, cpu().neondot)
#else
#define OST_NEONDOT(X)
#endif
#define OST_FOR_SETS(X) OST_AMX(X) OST_AVX512BF16(X) OST_AVX512(X) OST_AVX2(X) OST_NEONBF16(X) OST_NEONDOT(X) X(baseline, baseline, true)

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

// What multiplies by tiles is compiled with the set whose vectors it uses (csrc/cpu/tiles.h).
#if defined(OST_HAS_amx)
namespace avx512bf16 {
void fill_tiles(KernelTable& table);
}
void amx::fill_low(KernelTable& table) { avx512bf16::fill_tiles(table); }
#endif
#if defined(OST_HAS_avx512bf16) && defined(OST_HAS_tile_model)
namespace avx512bf16 {
void fill_tile_model(KernelTable& table);
}
#endif
#if defined(OST_HAS_tile_model)
namespace baseline {
void fill_tile_model(KernelTable& table);
}
#endif

namespace {

// Which sets this CPU runs, and whose registers the system keeps.
struct Cpu {
  bool amx = false, avx512bf16 = false, avx512 = false, avx2 = false, neonbf16 = false, neondot = false;

  // Linux keeps the registers of tiles for processes that have asked for them, and for all of their threads and children.
  static bool tiles_permitted() {
#if defined(OST_HAS_amx) && defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM of <asm/prctl.h>, and the state of XCR0
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
  }

  // Asked of the CPU itself: __builtin_cpu_supports says no to everything where it is linked by Zig.
  Cpu() {
#if defined(__x86_64__)
    unsigned a, b, c, d;
    const auto bit = [](unsigned word, int k) { return (word >> k & 1) != 0; };
    if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return;  // OSXSAVE
    const bool fma = bit(c, 12);
    unsigned kept, rest;
    asm("xgetbv" : "=a"(kept), "=d"(rest) : "c"(0));
    const bool ymm = (kept & 0x06) == 0x06, zmm = (kept & 0xe6) == 0xe6;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    avx2 = ymm && fma && bit(b, 5);
    avx512 = zmm && avx2 && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);  // F, DQ, BW, VL
    const bool vnni = bit(c, 11), tiles = bit(d, 22) && bit(d, 24) && bit(d, 25);  // AMX-BF16, AMX-TILE, AMX-INT8
    avx512bf16 = avx512 && vnni && __get_cpuid_count(7, 1, &a, &b, &c, &d) && bit(a, 5);
    amx = avx512bf16 && tiles && (kept >> 17 & 3) == 3 && tiles_permitted();
#elif defined(__aarch64__) && defined(__linux__)
    // The bits have these places in Linux' <asm/hwcap.h>: ASIMDDP; I8MM and BF16 of the second word.
    const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    neondot = (first >> 20 & 1) != 0;
    neonbf16 = neondot && (second >> 13 & 1) != 0 && (second >> 14 & 1) != 0;
#endif
  }
};

[[maybe_unused]] const Cpu& cpu() {
  static const Cpu found;
  return found;
}

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

const std::vector<const KernelTable*>& tile_models() {
  static const std::vector<const KernelTable*> all = [] {
    std::vector<const KernelTable*> out;
#if defined(OST_HAS_avx512bf16) && defined(OST_HAS_tile_model)
    if (cpu().avx512bf16)
      out.push_back(make("amx-model", [](KernelTable& t) {
        avx512::fill(t.f32), avx512::fill(t.f64), avx512::fill_ctc(t);
        avx512bf16::fill_tile_model(t);
        plain::fill_traits(t.traits);
      }));
#endif
#if defined(OST_HAS_tile_model)
    out.push_back(make("amx-model-baseline", [](KernelTable& t) {
      baseline::fill(t.f32), baseline::fill(t.f64), baseline::fill_ctc(t);
      baseline::fill_tile_model(t);
      plain::fill_traits(t.traits);
    }));
#endif
    return out;
  }();
  return all;
}

bool choose_kernels(const std::string& name) {
  for (const KernelTable* t : tile_models())
    if (name == t->name) {
      g_chosen.store(t, std::memory_order_release);
      return true;
    }
  for (const KernelTable* t : supported_kernels())
    if (name == t->name) {
      g_chosen.store(t, std::memory_order_release);
      return true;
    }
  return false;
}

std::string cpu_name() {
  std::string name = "unknown", family, model, implementer, part;
  for (const std::string& line : lines_of("/proc/cpuinfo")) {
    if (line.empty()) break;  // the first CPU ends
    const std::size_t colon = line.find(": ");
    if (colon == std::string::npos) continue;
    const std::string value = line.substr(colon + 2);
    if (line.rfind("model name", 0) == 0)
      name = value;
    else if (line.rfind("cpu family", 0) == 0)
      family = value;
    else if (line.rfind("model", 0) == 0)
      model = value;
    else if (line.rfind("CPU implementer", 0) == 0)  // of aarch64, which has no name
      implementer = value;
    else if (line.rfind("CPU part", 0) == 0)
      part = value;
  }
  if (!implementer.empty()) return "aarch64, implementer " + implementer + " part " + part;
  return family.empty() || model.empty() ? name : name + ", family " + family + " model " + model;
}

}  // namespace ost
