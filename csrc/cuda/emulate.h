// Runs kernels on the CPU, block after block and thread after thread: what the tests hold against the reference on machines without a GPU.
#pragma once
#include <cstring>
#include <memory>

#include "block.h"

namespace ost::OST_SET {

struct Emulator {
  bool turned;  // blocks and threads from the last to the first: no result may depend on it

  template <class K>
  void operator()(const K& kernel) const {
    using Space = typename K::Space;
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

}  // namespace ost::OST_SET
