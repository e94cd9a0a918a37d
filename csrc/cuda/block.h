// A block of threads, on the device or emulated one thread after the other: kernels are written
// once over it. The code between two barriers is one `for_each_thread_sync`, so the emulation needs
// no threads. A kernel that reads what another thread wrote between the same two barriers gives
// other numbers when the threads run in reverse order, which the tests do.
#pragma once
#include <type_traits>

#include "../core/common.h"
#if !defined(__CUDACC__)
#include <atomic>

#include "turns.h"
#endif

namespace ost::OST_SET {

// Loops over arrays in registers must be unrolled on the device, or the arrays go to the stack;
// loops over loads from memory must not be unrolled.
#if defined(__CUDACC__)
#define OST_UNROLL _Pragma("unroll")
#define OST_ROLLED _Pragma("unroll 1")
#define OST_UNROLL_4 _Pragma("unroll 4")
#else
#define OST_UNROLL
#define OST_ROLLED
#define OST_UNROLL_4
#endif

constexpr int kThreads = 256;  // threads of a block, unless its kernel has fewer

// The threads of a block of a kernel.
template <class K>
constexpr int threads_of() {
  if constexpr (requires { K::kBlockThreads; })
    return K::kBlockThreads;
  else
    return kThreads;
}

constexpr int kMostPeers = 16;

#if !defined(__CUDACC__)
// A cluster of emulated blocks, which see each other's shared memory.
class Cluster {
 public:
  explicit Cluster(int blocks) : blocks_(blocks) {}
  void* spaces[kMostPeers] = {};
  void sync() {
    const int round = round_;
    if (++here_ == blocks_)
      here_ = 0, ++round_;
    else
      while (round_ == round) Turns::pass();
  }

 private:
  const int blocks_;
  std::atomic<int> here_ = 0, round_ = 0;
};
#else
class Cluster;
#endif

struct Block {
  Index x, y, z;       // its position in the grid
  bool reverse_order;  // emulated from the last thread to the first
  Cluster* cluster;    // emulated: null unless the block has peers
  int threads = kThreads;

  // Run f for every thread, then a barrier of the block.
  template <class F>
  OST_HD void for_each_thread_sync(F&& f) const {
    for_each_thread(f);
    sync_block();
  }
  // Run f for every thread without a barrier: what follows must not read what another thread wrote
  // here.
  template <class F>
  OST_HD void for_each_thread(F&& f) const {
#if defined(__CUDA_ARCH__)
    f(int(threadIdx.x));
#else
    for (int i = 0; i < threads; ++i) f(reverse_order ? threads - 1 - i : i);
#endif
  }
  OST_HD void sync_block() const {
#if defined(__CUDA_ARCH__)
    __syncthreads();
#endif
  }
  // A barrier that also tells whether `any` thread of the block says so.
  OST_HD bool sync_block_any(bool any) const {
#if defined(__CUDA_ARCH__)
    return __syncthreads_or(any);
#else
    return any;
#endif
  }
  // Whether all threads of a warp say so; emulated it is asked once for the whole block.
  OST_HD bool all_of_warp(bool all) const {
#if defined(__CUDA_ARCH__)
    return __all_sync(0xffffffffu, all);
#else
    return all;
#endif
  }
  // Barrier of all threads of a cluster. It stands before the first write to a peer, and after the
  // last one.
  OST_HD void sync_cluster() const {
#if defined(__CUDA_ARCH__)
#if __CUDA_ARCH__ >= 900
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
#endif
#elif !defined(__CUDACC__)
    cluster->sync();
#endif
  }
  // Return the shared memory of a block of the cluster, to write to.
  template <class Space>
  OST_HD Space& peer([[maybe_unused]] Space& own, [[maybe_unused]] int rank) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    return *static_cast<Space*>(__cluster_map_shared_rank(&own, unsigned(rank)));
#elif !defined(__CUDACC__)
    return *static_cast<Space*>(cluster->spaces[rank]);
#else
    return own;
#endif
  }
  // Barrier of the threads of each warp.
  OST_HD void sync_warp() const {
#if defined(__CUDA_ARCH__)
    __syncwarp();
#endif
  }
};

// Start an asynchronous copy to shared memory; `async_commit` makes a group of those that a thread has
// started. After `async_wait` it sees those of its own groups, but for the last kGroups of them.
template <int kBytes>
OST_HD void copy_async(void* to, const void* from) {
#if defined(__CUDA_ARCH__)
  const unsigned place = unsigned(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16)  // past the first cache: they are read once
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place), "l"(from) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(place), "l"(from), "n"(kBytes) : "memory");
#else
  __builtin_memcpy(to, from, kBytes);
#endif
}
OST_HD void async_commit() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kGroups = 0>
OST_HD void async_wait() {
#if defined(__CUDA_ARCH__)
  if constexpr (kGroups > 0)
    asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
  else
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Prefetch a word that is read later.
OST_HD void prefetch([[maybe_unused]] const void* word) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L1 [%0];" ::"l"(word));
#endif
}

// Neighbouring numbers that are read or written at once.
template <class T, int n>
struct alignas((n % 4 == 0   ? 4
                : n % 2 == 0 ? 2
                             : 1) *
               sizeof(T)) Numbers {
  T v[n];
};

// Registers of a thread that live from one loop over threads to the next.
template <class R>
struct PerThread {
#if defined(__CUDA_ARCH__)
  OST_HD R& operator[](int) { return value; }
  R value;
#else
  OST_HD R& operator[](int thread) { return values[thread]; }
  R values[kThreads];
#endif
};

// get(values) of the thread whose number differs in the bit kBit. All threads of a warp ask.
template <int kBit, class R, class Get>
OST_HD auto of_partner(PerThread<R>& values, [[maybe_unused]] int thread, Get&& get) {
#if defined(__CUDA_ARCH__)
  return __shfl_xor_sync(0xffffffffu, get(values.value, thread), kBit);
#else
  return get(values.values[thread ^ kBit], thread ^ kBit);
#endif
}
template <int kBit, class R>
OST_HD R of_neighbour(PerThread<R>& values, int thread) {
  return of_partner<kBit>(values, thread, [](const R& value, int) { return value; });
}

// The same number, of which the compiler does not know how it was computed: it stays in a register
// where the compiler would compute it anew at every use.
OST_HD int kept(int n) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(n));
#endif
  return n;
}

// Set sums, which are an array `v` of floats or doubles, to zero in every thread.
template <class R>
OST_HD void clear(const Block& block, PerThread<R>& sums) {
  block.for_each_thread([&](int thread) {
    using Number = std::remove_all_extents_t<decltype(R::v)>;
    Number* v = reinterpret_cast<Number*>(&sums[thread].v);
    OST_UNROLL
    for (int i = 0; i < int(sizeof(R) / sizeof(Number)); ++i) v[i] = Number(0);
  });
}

struct Grid {
  Index x, y = 1, z = 1;
};

}  // namespace ost::OST_SET
