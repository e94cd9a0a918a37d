// The function that a device runs for a kernel.
#pragma once
#include "passes.h"

namespace ost::OST_SET {

constexpr std::size_t kStaticBytes = 48 << 10;  // shared memory that needs no attribute

template <class K>
__global__ void __launch_bounds__(threads_of<K>(), 1) entry(const __grid_constant__ K kernel, Index x, Index y) {
#if __CUDA_ARCH__ < 900
  if constexpr (requires { K::kPeers; })
    if constexpr (K::kPeers > 1) return;  // the planner does not use clusters there
#endif
  const Index i = blockIdx.x;
  const Block block{i % x, i / x % y, i / x / y, false, nullptr};
  if constexpr (sizeof(typename K::Space) <= kStaticBytes) {
    __shared__ typename K::Space space;
    kernel(block, space);
  } else {
    extern __shared__ uint4 bytes[];
    kernel(block, *reinterpret_cast<typename K::Space*>(bytes));
  }
}

}  // namespace ost::OST_SET
