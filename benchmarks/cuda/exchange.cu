// The cost of exchanging h between multiprocessors once a step: each kernel does nothing else,
// `steps` times over P blocks. benchmarks/gpu.py compiles it. Every wait is bounded, and a timeout
// sets `error`.
#include <cooperative_groups.h>

constexpr int kThreads = 256;
constexpr unsigned kUnset = 0xffffffff;  // a pair of 2-byte NaN; no sum below gives it
constexpr int kSpinLimit = 1 << 22;
constexpr int kInFlight = 8;  // looks of 16 bytes that a thread has in flight at once

struct Four {
  unsigned word[4];
};

__device__ unsigned relaxed_load(const unsigned* p) {
  unsigned v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
// Four neighbouring words; each of them may be set before the others.
__device__ Four relaxed_load_four(const unsigned* p) {
  Four v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(p)
               : "memory");
  return v;
}
__device__ void relaxed_store(unsigned* p, unsigned v) { asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }
__device__ unsigned acquire_load(const unsigned* p) {
  unsigned v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ bool is_unset(const Four& v) { return v.word[0] == kUnset || v.word[1] == kUnset || v.word[2] == kUnset || v.word[3] == kUnset; }

// The sum of a thread's share of the words of all blocks, as a persistent kernel takes them in
// (csrc/cuda/exchange_engine.h, `multiply`): all words are asked for before any is looked at, and those
// that were not there yet are asked for again, until none is missing.
__device__ unsigned receive(const unsigned* slot, int words, unsigned* error) {
  unsigned sum = 0;
  for (int first = 4 * threadIdx.x; first < words; first += 4 * kThreads * kInFlight) {
    Four got[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int at = first + 4 * kThreads * k;
      got[k] = Four{};
      if (at < words) got[k] = relaxed_load_four(slot + at);
    }
    for (int polls = 0;; ++polls) {
      bool missing = false;
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) {
        if (is_unset(got[k])) {
          missing = true;
          got[k] = relaxed_load_four(slot + first + 4 * kThreads * k);
        }
      }
      if (!missing) break;
      if (polls == kSpinLimit) {
        *error = 1;
        break;
      }
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
#pragma unroll
      for (int w = 0; w < 4; ++w) sum += got[k].word[w];
    }
  }
  return sum;
}

// The data is its own flag: every thread stores a word, and every block polls the words of all
// threads. Step slots are used once and start unset.
extern "C" __global__ void __launch_bounds__(kThreads, 1) exchange_words(unsigned* slots, int steps, unsigned* error) {
  const int words = gridDim.x * kThreads;
  unsigned sum = 1;
  for (int s = 0; s < steps; ++s) {
    unsigned* slot = slots + (long long)s * words;
    relaxed_store(slot + blockIdx.x * kThreads + threadIdx.x, sum & 0xffff);
    sum += receive(slot, words, error);
    __syncthreads();
  }
  if (sum == kUnset) *error = 2;  // keeps the compiler from removing the loop
}

// As above, with 16 bytes a thread that a step reads from memory: when they are needed, or
// prefetched a step earlier.
template <bool kPrefetch>
__device__ void exchange_with_inputs(unsigned* slots, int steps, unsigned* error, const float4* inputs, long long count) {
  const int words = gridDim.x * kThreads;
  const auto input = [&](int s) { return inputs[((long long)s * words + blockIdx.x * kThreads + threadIdx.x) % count]; };
  unsigned sum = 1;
  float4 next = input(0);
  for (int s = 0; s < steps; ++s) {
    unsigned* slot = slots + (long long)s * words;
    relaxed_store(slot + blockIdx.x * kThreads + threadIdx.x, sum & 0xffff);
    const float4 now = next;
    if (kPrefetch) next = input(s + 1);
    sum += receive(slot, words, error);
    __syncthreads();
    const float4 used = kPrefetch ? now : input(s);
    sum += unsigned(used.x + used.y + used.z + used.w);
  }
  if (sum == kUnset) *error = 2;
}
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    exchange_reading(unsigned* slots, int steps, unsigned* error, const float4* inputs, long long count) {
  exchange_with_inputs<false>(slots, steps, error, inputs, count);
}
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    exchange_prefetching(unsigned* slots, int steps, unsigned* error, const float4* inputs, long long count) {
  exchange_with_inputs<true>(slots, steps, error, inputs, count);
}

// Stores before a fence, then one counter for which all blocks wait. The words are read as above.
extern "C" __global__ void __launch_bounds__(kThreads, 1) barrier(unsigned* slots, int steps, unsigned* error) {
  const int blocks = gridDim.x, words = blocks * kThreads;
  unsigned *counter = slots + 2 * words, sum = 1;
  for (int s = 0; s < steps; ++s) {
    unsigned* slot = slots + s % 2 * words;
    slot[blockIdx.x * kThreads + threadIdx.x] = sum & 0xffff;
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(counter, 1u);
      int n = 0;
      while (acquire_load(counter) < unsigned(blocks) * (s + 1) && ++n < kSpinLimit) {}
      if (n == kSpinLimit) *error = 1;
    }
    __syncthreads();
    sum += receive(slot, words, error);
  }
  if (sum == kUnset) *error = 2;
}

// As above, with the barrier of cooperative groups.
extern "C" __global__ void __launch_bounds__(kThreads, 1) grid_sync(unsigned* slots, int steps, unsigned* error) {
  const auto grid = cooperative_groups::this_grid();
  const int words = gridDim.x * kThreads;
  unsigned sum = 1;
  for (int s = 0; s < steps; ++s) {
    unsigned* slot = slots + s % 2 * words;
    slot[blockIdx.x * kThreads + threadIdx.x] = sum & 0xffff;
    grid.sync();
    sum += receive(slot, words, error);
  }
  if (sum == kUnset) *error = 2;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// Eight blocks of a cluster, through each other's shared memory.
extern "C" __global__ void __cluster_dims__(8, 1, 1) __launch_bounds__(kThreads, 1)
    cluster_sync(unsigned* slots, int steps, unsigned* error) {
  __shared__ unsigned box[2][8][kThreads];
  const auto cluster = cooperative_groups::this_cluster();
  const unsigned rank = cluster.block_rank();
  unsigned sum = 1;
  cluster.sync();
  for (int s = 0; s < steps; ++s) {
    for (unsigned to = 0; to < 8; ++to) cluster.map_shared_rank(&box[s % 2][rank][threadIdx.x], to)[0] = sum;
    cluster.sync();
    for (int from = 0; from < 8; ++from) sum += box[s % 2][from][threadIdx.x];
  }
  cluster.sync();
  if (sum == kUnset) *error = 2;
  (void)slots;
}
#endif
