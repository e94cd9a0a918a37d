// Run kernels on the CPU, block after block and thread after thread. The tests compare them with
// the reference on machines without a GPU.
#pragma once
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "calls.h"

namespace ost::OST_SET {

struct Emulation {
  bool reverse_order;        // run blocks and threads from the last to the first: no result may depend on it
  std::uint32_t delays = 0;  // seed of random delays of blocks that wait for each other; 0: none
  Index absent = -1;         // one of those blocks that does not run, or -1
};

// A kernel that can be run later, like those of a graph; only `run` knows its type.
struct Recorded {
  void (*run)(const void* kernel, const Emulation& how);
  std::vector<char> kernel;
};

struct Emulator {
  Emulation how;
  std::vector<Recorded>* recorded;  // where kernels are recorded instead of being run, or null

  template <class K>
  void operator()(const K& kernel) const {
    static_assert(std::is_trivially_copyable_v<K>);
    launch(&emulate<K>, &kernel, sizeof kernel);
  }
  void launch(void (*run)(const void*, const Emulation&), const void* kernel, std::size_t size) const {
    const char* bytes = static_cast<const char*>(kernel);
    if (recorded)
      recorded->push_back({run, {bytes, bytes + size}});
    else
      run(kernel, how);
  }

  template <class K>
  static void emulate(const void* pointer, const Emulation& how) {
    const K& kernel = *static_cast<const K*>(pointer);
    const Grid grid = kernel.grid();
    const Index count = grid.x * grid.y * grid.z;
    const auto one = [&](Index i, typename K::Space& space, Cluster* cluster) {
      const Index at = how.reverse_order ? count - 1 - i : i;
      std::memset(static_cast<void*>(&space), 0xff, sizeof space);  // NaN: shared memory is not initialised
      if constexpr (requires { K::kPeers; })
        if (cluster) cluster->spaces[at % K::kPeers] = &space;
      const Index x = at % grid.x, y = at / grid.x % grid.y, z = at / grid.x / grid.y;
      kernel(Block{x, y, z, how.reverse_order, cluster, threads_of<K>()}, space);
    };
    if constexpr (requires { K::kPeers; }) {  // blocks that wait for each other
      std::vector<std::unique_ptr<Cluster>> clusters;
      for (Index i = 0; i < count && K::kPeers > 1; i += K::kPeers) clusters.push_back(std::make_unique<Cluster>(K::kPeers));
      Turns::run(count, [&](Index i) {
        if (how.absent >= 0 && i / K::kPeers == how.absent / K::kPeers) return;  // all blocks of a cluster run, or none
        Delays::begin(how.delays ? how.delays + std::uint32_t(i) * 0x9e3779b9u : 0);
        one(i, *std::make_unique<typename K::Space>(), clusters.empty() ? nullptr : clusters[i / K::kPeers].get());
      });
    } else {
      const auto space = std::make_unique<typename K::Space>();
      for (Index i = 0; i < count; ++i) one(i, *space, nullptr);
    }
  }
};

// Cell number I of the list. Each is compiled on its own (csrc/bindings/emulated_cell.cpp), which
// takes a fifth of the memory.
template <int I, class List>
struct CellAt;
template <int I, class First, class... N>
struct CellAt<I, CellList<First, N...>> : CellAt<I - 1, CellList<N...>> {};
template <class First, class... N>
struct CellAt<0, CellList<First, N...>> {
  using Cell = typename First::Cell;
};
#define OST_EMULATED_ACT(I, A) \
  template void act_in<typename CellAt<I, DeviceCells>::Cell, const Emulator>(const Emulator&, int, const std::string&, const A&)
#define OST_EMULATED(PREFIX, I)         \
  PREFIX OST_EMULATED_ACT(I, Pass);     \
  PREFIX OST_EMULATED_ACT(I, PackArgs); \
  PREFIX OST_EMULATED_ACT(I, PackSharedArgs)

}  // namespace ost::OST_SET
