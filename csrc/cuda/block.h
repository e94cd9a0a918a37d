// A block of threads, on the device or emulated one thread after the other: kernels are written once over it. What threads do between two
// meetings is one `each`; so the emulation needs no threads, and a kernel that reads what another thread wrote in the same `each` gives
// other numbers when the order of the threads is turned round, which the tests do.
#pragma once
#include "../core/common.h"
#if !defined(__CUDACC__)
#include <condition_variable>
#include <mutex>
#endif

namespace ost::OST_SET {

// Loops over what a thread keeps in registers must be unrolled on the device, or it lies on the stack; loops that fetch must not be.
#if defined(__CUDACC__)
#define OST_UNROLL _Pragma("unroll")
#define OST_ROLLED _Pragma("unroll 1")
#define OST_UNROLL_4 _Pragma("unroll 4")
#else
#define OST_UNROLL
#define OST_ROLLED
#define OST_UNROLL_4
#endif

constexpr int kThreads = 256;  // of every block

constexpr int kMostPeers = 8;

#if !defined(__CUDACC__)
// Emulated blocks that see each other's shared memory.
class Cluster {
 public:
  explicit Cluster(int blocks) : blocks_(blocks) {}
  void* spaces[kMostPeers] = {};
  void meet() {
    std::unique_lock lock(mutex_);
    const int round = round_;
    if (++here_ == blocks_) {
      here_ = 0, ++round_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return round_ != round; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  int blocks_, here_ = 0, round_ = 0;
};
#else
class Cluster;
#endif

struct Block {
  Index x, y, z;     // its place in the grid
  bool turned;       // emulated from the last thread to the first
  Cluster* cluster;  // emulated: null unless it has peers

  // What every thread does, and then they meet.
  template <class F>
  OST_HD void each(F&& f) const {
    alone(f);
    meet();
  }
  // The same where nothing that follows reads what another thread wrote here.
  template <class F>
  OST_HD void alone(F&& f) const {
#if defined(__CUDA_ARCH__)
    f(int(threadIdx.x));
#else
    for (int i = 0; i < kThreads; ++i) f(turned ? kThreads - 1 - i : i);
#endif
  }
  OST_HD void meet() const {
#if defined(__CUDA_ARCH__)
    __syncthreads();
#endif
  }
  // The threads of all blocks of a cluster; before the first word to a peer, and after the last.
  OST_HD void peers_meet() const {
#if defined(__CUDA_ARCH__)
#if __CUDA_ARCH__ >= 900
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
#endif
#elif !defined(__CUDACC__)
    cluster->meet();
#endif
  }
  // The shared memory of a block of the cluster, to write to.
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
  // The threads of each warp, and nobody else.
  OST_HD void warps_meet() const {
#if defined(__CUDA_ARCH__)
    __syncwarp();
#endif
  }
};

// Starts a copy to shared memory; what a thread has asked for is there, for itself, after `landed`.
template <int kBytes>
OST_HD void fetch(void* to, const void* from) {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(unsigned(__cvta_generic_to_shared(to))), "l"(from), "n"(kBytes)
               : "memory");
#else
  __builtin_memcpy(to, from, kBytes);
#endif
}
OST_HD void landed() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Asks for a word that is read later.
OST_HD void soon([[maybe_unused]] const void* word) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L1 [%0];" ::"l"(word));
#endif
}

// What a thread keeps from one `each` to the next.
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

struct Grid {
  Index x, y = 1, z = 1;
};

}  // namespace ost::OST_SET
