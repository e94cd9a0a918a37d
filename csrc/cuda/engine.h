// A product whose weights stay in the registers of a block for all steps that it runs: out[o][row]
// = sum over in of weight(o, in) operand[in][row], for the few rows of a block. Threads divide the
// outputs and, if there are fewer outputs than threads, slices of the inputs; the sums of the
// slices are added in order.
#pragma once
#include "mma.h"

namespace ost::OST_SET {

constexpr int kLoopRows = 8;  // rows of a block: the columns of one matrix instruction

constexpr int power_of_two(int n) {
  int p = 1;
  while (p < n) p *= 2;
  return p;
}

// Operands of 2 bytes. A warp has tiles of 16 outputs; weights are the left fragments of matrix
// instructions.
template <class T, class W, int kOut, int kIn>
struct Engine {
  static constexpr int kWarps = kThreads / 32, kTiles = power_of_two((kOut + 15) / 16),
                       kTilesPerWarp = kTiles > kWarps ? (kOut / 16 + kWarps - 1) / kWarps : 1,
                       kSlices = kTiles < kWarps ? kWarps / kTiles : 1, kDepth = kIn / 16 / kSlices;
  static_assert(kOut % 16 == 0 && kIn % (16 * kSlices) == 0);
  struct alignas(16) Space {
    W operand[kLoopRows][kIn + 8];  // 8 more: the words of a fragment lie in 32 banks
    T sums[kSlices][kOut][kLoopRows + 1];
    OST_HD void put(int in, int row, T v) { operand[row][in] = Narrow<W>::of(v); }
    OST_HD T sum(int out, int row) const {
      T s = sums[0][out][row];
      for (int k = 1; k < kSlices; ++k) s += sums[k][out][row];
      return s;
    }
  };
  struct Weights {
    FragmentA a[kTilesPerWarp][kDepth];
  };
  struct Sums {
    float v[kTilesPerWarp][4];
  };
  OST_HD static int tile(int thread, int n) { return thread / 32 / kSlices + n * (kWarps / kSlices); }
  OST_HD static int first(int thread) { return thread / 32 % kSlices * kDepth * 16; }  // first input of a warp's slice

  using Word = FragmentA;  // packed weights are [output tile, input tile][thread]

  template <class F>
  OST_HD static void pack(int thread, Word* packed, F&& weight) {
    const Lane lane(thread);
    OST_ROLLED
    for (int i = 0; i < kTilesPerWarp * kDepth; ++i) {
      FragmentA a;
      for (int w = 0; w < 4; ++w) {
        const int out = tile(thread, i / kDepth) * 16 + lane.a_row(w), in = first(thread) + i % kDepth * 16 + lane.a_column(w);
        a.word[w] = pair_of<W>(weight(out, in), weight(out, in + 1));
      }
      packed[i * kThreads + thread] = a;
    }
  }
  OST_HD static void load(const Block& block, PerThread<Weights>& weights, const Word* packed) {
    block.for_each_thread([&](int thread) {
      OST_UNROLL
      for (int n = 0; n < kTilesPerWarp; ++n) {
        OST_UNROLL
        for (int k = 0; k < kDepth; ++k) weights[thread].a[n][k] = packed[(n * kDepth + k) * kThreads + thread];
      }
    });
  }
  OST_HD static void multiply(const Block& block, PerThread<Weights>& weights, Space& space) {
    PerThread<Sums> sums;
    PerThread<FragmentB> right;
    block.for_each_thread([&](int thread) {
      OST_UNROLL
      for (int n = 0; n < kTilesPerWarp; ++n) {
        OST_UNROLL
        for (int c = 0; c < 4; ++c) sums[thread].v[n][c] = 0;
      }
    });
    OST_UNROLL
    for (int k = 0; k < kDepth; ++k) {
      block.for_each_thread([&](int thread) {
        const Lane lane(thread);
        OST_UNROLL
        for (int w = 0; w < 2; ++w)
          right[thread].word[w] = pair_at(&space.operand[lane.b_column()][first(thread) + k * 16 + lane.b_row(w)]);
      });
      OST_UNROLL
      for (int n = 0; n < kTilesPerWarp; ++n)
        multiply_fragments<W>(
            block, [&](int thread) -> FragmentA& { return weights[thread].a[n][k]; },
            [&](int thread) -> FragmentB& { return right[thread]; }, [&](int thread) -> float* { return sums[thread].v[n]; });
    }
    block.for_each_thread_sync([&](int thread) {
      const Lane lane(thread);
      OST_UNROLL
      for (int n = 0; n < kTilesPerWarp; ++n) {
        OST_UNROLL
        for (int c = 0; c < 4; ++c) {
          const int out = tile(thread, n) * 16 + lane.sum_row(c);
          if (out < kOut) space.sums[thread / 32 % kSlices][out][lane.sum_column(c)] = sums[thread].v[n][c];
        }
      }
    });
  }
};

// Exact operands. A thread has one output and one slice of the inputs, for all rows.
template <class T, int kOut, int kIn>
struct Engine<T, T, kOut, kIn> {
  static constexpr int kOuts = power_of_two(kOut), kSlices = kThreads / kOuts, kDepth = kIn / kSlices;
  static_assert(kOuts <= kThreads && kIn % kSlices == 0);
  struct Space {
    T operand[kIn][kLoopRows];
    T sums[kSlices][kOuts][kLoopRows + 1];
    OST_HD void put(int in, int row, T v) { operand[in][row] = v; }
    OST_HD T sum(int out, int row) const {
      T s = sums[0][out][row];
      for (int k = 1; k < kSlices; ++k) s += sums[k][out][row];
      return s;
    }
  };
  struct Weights {
    T w[kDepth];
  };

  using Word = T;

  template <class F>
  OST_HD static void pack(int thread, Word* packed, F&& weight) {
    const int out = thread % kOuts, in = thread / kOuts * kDepth;
    for (int k = 0; k < kDepth; ++k) packed[k * kThreads + thread] = weight(out, in + k);
  }
  OST_HD static void load(const Block& block, PerThread<Weights>& weights, const Word* packed) {
    block.for_each_thread([&](int thread) {
      OST_UNROLL
      for (int k = 0; k < kDepth; ++k) weights[thread].w[k] = packed[k * kThreads + thread];
    });
  }
  OST_HD static void multiply(const Block& block, PerThread<Weights>& weights, Space& space) {
    block.for_each_thread_sync([&](int thread) {
      const int out = thread % kOuts, slice = thread / kOuts;
      T sums[kLoopRows];
      OST_UNROLL
      for (int row = 0; row < kLoopRows; ++row) sums[row] = T(0);
      OST_UNROLL
      for (int k = 0; k < kDepth; ++k) {
        OST_UNROLL
        for (int row = 0; row < kLoopRows; ++row) sums[row] = fma(weights[thread].w[k], space.operand[slice * kDepth + k][row], sums[row]);
      }
      OST_UNROLL
      for (int row = 0; row < kLoopRows; ++row) space.sums[slice][out][row] = sums[row];
    });
  }
};

// Pack weights, given by output and input, in the order in which an engine loads them.
template <class E, class F>
struct EnginePackKernel {
  F weight;
  typename E::Word* packed;
  struct Space {};
  Grid grid() const { return {1}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) { E::pack(thread, packed, weight); });
  }
};

}  // namespace ost::OST_SET
