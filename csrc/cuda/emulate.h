// Runs kernels on the CPU, block after block and thread after thread: what the tests hold against the reference on machines without a GPU.
#pragma once
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "calls.h"

namespace ost::OST_SET {

// A kernel that can be run later, as those of a graph; its type is known to `run` alone.
struct Recorded {
  void (*run)(const void* kernel, bool turned);
  std::vector<char> kernel;
};

struct Emulator {
  bool turned;                      // blocks and threads from the last to the first: no result may depend on it
  std::vector<Recorded>* recorded;  // where kernels are put in place of being run, or null

  template <class K>
  void operator()(const K& kernel) const {
    static_assert(std::is_trivially_copyable_v<K>);
    launch(&emulate<K>, &kernel, sizeof kernel);
  }
  void launch(void (*run)(const void*, bool), const void* kernel, std::size_t size) const {
    const char* bytes = static_cast<const char*>(kernel);
    if (recorded)
      recorded->push_back({run, {bytes, bytes + size}});
    else
      run(kernel, turned);
  }

  template <class K>
  static void emulate(const void* pointer, bool turned) {
    using Space = typename K::Space;
    const K& kernel = *static_cast<const K*>(pointer);
    const auto space = std::make_unique<Space>();
    const Grid grid = kernel.grid();
    const Index count = grid.x * grid.y * grid.z;
    for (Index i = 0; i < count; ++i) {
      const Index at = turned ? count - 1 - i : i;
      std::memset(static_cast<void*>(space.get()), 0xff, sizeof(Space));  // NaN: shared memory begins with anything
      kernel(Block{at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y, turned}, *space);
    }
  }
};

// Cell number I of the list; each is compiled by itself (csrc/bindings/emulated_cell.cpp), which takes a fifth of the memory.
template <int I, class List>
struct CellAt;
template <int I, class First, class... N>
struct CellAt<I, CellList<First, N...>> : CellAt<I - 1, CellList<N...>> {};
template <class First, class... N>
struct CellAt<0, CellList<First, N...>> {
  using Cell = typename First::Cell;
};
#define OST_EMULATED(I) \
  template void act_in<typename CellAt<I, Cells>::Cell, const Emulator>(const Emulator&, Action, int, const std::string&, const Addresses&)

}  // namespace ost::OST_SET
