// A product whose weights stay in the registers of a block for all steps that it runs: out[o][row]
// = sum over in of weight(o, in) operand[in][row], for the few rows of a block. Threads divide the
// outputs and, if there are fewer outputs than threads, slices of the inputs; the sums of the
// slices are added in order. A sum is the same chain for any number of rows.
#pragma once
#include <numeric>

#include "exchange.h"
#include "mma.h"

namespace ost::OST_SET {

constexpr int kLoopRows = 8;  // rows of a block, at most: the columns of one matrix instruction

constexpr int power_of_two(int n) {
  int p = 1;
  while (p < n) p *= 2;
  return p;
}

// The sums of each slice of the inputs, by column and output. A warp writes pairs of columns 8 banks
// apart, and reads neighbouring outputs.
template <class T, int kSlices, int kColumns, int kOut>
struct alignas(16) SliceSums {
  static constexpr int kStride = (kOut + 15) / 16 * 16 + 4;
  T v[kSlices][kColumns][kStride];
  // Those of n outputs, of which the first is a multiple of n.
  template <int n>
  OST_HD Numbers<T, n> sum(int out, int column) const {
    const auto of_slice = [&](int k) { return *reinterpret_cast<const Numbers<T, n>*>(&v[k][column][out]); };
    Numbers<T, n> all = of_slice(0);
    OST_UNROLL
    for (int k = 1; k < kSlices; ++k) {
      const Numbers<T, n> one = of_slice(k);
      OST_UNROLL
      for (int i = 0; i < n; ++i) all.v[i] += one.v[i];
    }
    return all;
  }
};

// A float as two words of 2 bytes: operands of three products, and of that of both low-order terms.
template <class W>
struct Split {};
template <class W>
struct WordOf {
  using Type = W;
  static constexpr int kParts = 1;
};
template <class W>
struct WordOf<Split<W>> {
  using Type = W;
  static constexpr int kParts = 2;
};

// Operands of 2 bytes, or of two such words. A warp has tiles of 16 outputs; weights are the left
// fragments of matrix instructions. Of two words the columns of an instruction are the first words of
// four rows, and then their low-order terms. Warps beyond the last tile multiply zeros.
template <class T, class W, int kOut, int kIn>
struct Engine {
  using V = typename WordOf<W>::Type;
  static constexpr int kParts = WordOf<W>::kParts, kRows = 8 / kParts;  // rows of an instruction
  static constexpr int kWarps = kThreads / 32, kTiles = power_of_two((kOut + 15) / 16),
                       kTilesPerWarp = kTiles > kWarps ? (kOut / 16 + kWarps - 1) / kWarps : 1,
                       kSlices = kTiles < kWarps ? std::gcd(kWarps / kTiles, kIn / 16) : 1, kDepth = kIn / 16 / kSlices;
  // Whether numbers beyond the range of a word lose more than their last bits: then the weights of each output have a power of two as
  // their scale, and an operand out of range takes another product (`LoopKernel::multiply_floats`).
  static constexpr bool kScaled = kParts > 1 && kResidualScale<V> > 1;
  static_assert(kOut % 16 == 0 && kIn % (16 * kSlices) == 0);
  struct alignas(16) Space {
    V operand[kParts * kLoopRows][kIn + 8];  // 8 more: the words of a fragment lie in 32 banks
    SliceSums<T, kSlices, kParts * kLoopRows, kOut> sums;
    OST_HD static int column(int row) { return row / kRows * 8 + row % kRows; }
    // Set n inputs, of which the first is a multiple of n.
    template <int n>
    OST_HD void put(int in, int row, const T* v) {
      Numbers<V, n> words[kParts];
      OST_UNROLL
      for (int i = 0; i < n; ++i) {
        V own[kParts];
        split_float<V, kParts>(v[i], own);
        OST_UNROLL
        for (int part = 0; part < kParts; ++part) words[part].v[i] = own[part];
      }
      OST_UNROLL
      for (int part = 0; part < kParts; ++part) *reinterpret_cast<Numbers<V, n>*>(&operand[column(row) + part * kRows][in]) = words[part];
    }
    template <int n>
    OST_HD Numbers<T, n> sum(int out, int row) const {
      Numbers<T, n> all = sums.template sum<n>(out, column(row));
      if constexpr (kParts > 1) {
        const Numbers<T, n> low = sums.template sum<n>(out, column(row) + kRows);
        OST_UNROLL
        for (int i = 0; i < n; ++i) all.v[i] += low.v[i];
      }
      return all;
    }
    // Put sums in the place of those of the product.
    OST_HD void replace(int out, int row, T v) {
      OST_UNROLL
      for (int k = 0; k < kSlices; ++k) {
        OST_UNROLL
        for (int part = 0; part < kParts; ++part) sums.v[k][column(row) + part * kRows][out] = k + part == 0 ? v : T(0);
      }
    }
  };
  struct Weights {
    FragmentA a[kParts][kTilesPerWarp][kDepth];
  };
  static constexpr int kChains = kParts * kTilesPerWarp == 1 && kDepth % 2 == 0 ? 2 : 1;  // of a sum: one would wait for each instruction
  struct Sums {
    float v[kChains][kParts][kTilesPerWarp][4];
  };
  OST_HD static int tile(int thread, int n) { return thread / 32 / kSlices + n * (kWarps / kSlices); }
  OST_HD static int first(int thread) { return thread / 32 % kSlices * kDepth * 16; }  // first input of a warp's slice

  using Word = FragmentA;  // packed weights are [part, output tile, input tile][thread], then the scales
  static constexpr Index kPackedBytes = kThreads * Index(sizeof(Weights)) + (kScaled ? kOut * Index(sizeof(float)) : 0);
  OST_HD static float* scales(Word* packed) { return reinterpret_cast<float*>(packed + kThreads * sizeof(Weights) / sizeof(Word)); }
  // What the sums of n outputs are multiplied by.
  template <int n>
  OST_HD static Numbers<T, n> load_scales(const Word* packed, int out) {
    Numbers<T, n> all;
    OST_UNROLL
    for (int i = 0; i < n; ++i) all.v[i] = kScaled ? scales(const_cast<Word*>(packed))[out + i] : T(1);
    return all;
  }

  template <class F>
  OST_HD static void pack(int thread, Word* packed, F&& weight) {
    const Lane lane(thread);
    float factor = 1;
    const auto words = [&](int out, int in, V* to) {
      if constexpr (kParts > 1)
        split_float<V, kParts>(weight(out, in) * factor, to);
      else
        to[0] = weight(out, in);
    };
    OST_ROLLED
    for (int i = 0; i < kTilesPerWarp * kDepth; ++i) {
      FragmentA a[kParts];
      OST_UNROLL
      for (int w = 0; w < 4; ++w) {
        const int out = tile(thread, i / kDepth) * 16 + lane.a_row(w), in = first(thread) + i % kDepth * 16 + lane.a_column(w);
        V low[kParts], high[kParts];
        if constexpr (kScaled) factor = factor_of(out, weight);
        words(out, in, low), words(out, in + 1, high);
        OST_UNROLL
        for (int part = 0; part < kParts; ++part) a[part].word[w] = pair_of<V>(low[part], high[part]);
      }
      OST_UNROLL
      for (int part = 0; part < kParts; ++part) packed[(part * kTilesPerWarp * kDepth + i) * kThreads + thread] = a[part];
    }
    if constexpr (kScaled)
      for (int out = thread; out < kOut; out += kThreads) scales(packed)[out] = 1 / factor_of(out, weight);
  }
  // A power of two that brings the largest weight of an output to [1, 2).
  template <class F>
  OST_HD static float factor_of(int out, F&& weight) {
    float top = 0;
    for (int in = 0; in < kIn; ++in) {
      const float w = weight(out, in), size = w < 0 ? -w : w;
      if (size < __builtin_huge_valf() && size > top) top = size;
    }
    return top == 0 ? 1 : ::ldexpf(1, smaller(126, -::ilogbf(top)));  // 1 / 2^126 is a float still
  }

  OST_HD static void load(const Block& block, PerThread<Weights>& weights, const Word* packed) {
    block.for_each_thread([&](int thread) {
      FragmentA* to = &weights[thread].a[0][0][0];
      OST_UNROLL
      for (int i = 0; i < kParts * kTilesPerWarp * kDepth; ++i) to[i] = packed[i * kThreads + thread];
    });
  }
  OST_HD static void multiply(const Block& block, PerThread<Weights>& weights, Space& space, int rows) {
    PerThread<Sums> sums;
    PerThread<FragmentB> right;
    OST_ROLLED
    for (int column = 0; column == 0 || column * kRows < rows * 8; column += 8) {
      clear(block, sums);
      OST_UNROLL
      for (int k = 0; k < kDepth; ++k) {
        block.for_each_thread([&](int thread) {
          const Lane lane(thread);
          OST_UNROLL
          for (int w = 0; w < 2; ++w)
            right[thread].word[w] = pair_at(&space.operand[column + lane.b_column()][first(thread) + k * 16 + lane.b_row(w)]);
        });
        OST_UNROLL
        for (int part = 0; part < kParts; ++part) {
          OST_UNROLL
          for (int n = 0; n < kTilesPerWarp; ++n)
            multiply_fragments<V>(
                block, [&](int thread) -> FragmentA& { return weights[thread].a[part][n][k]; },
                [&](int thread) -> FragmentB& { return right[thread]; },
                [&](int thread) -> float* { return sums[thread].v[k % kChains][part][n]; });
        }
      }
      block.for_each_thread([&](int thread) { store(thread, sums[thread], space, column); });
    }
    block.sync_block();
  }
  OST_HD static void store(int thread, const Sums& sums, Space& space, int column) {
    const Lane lane(thread);
    const float of_column = lane.i < 2 ? 1.0f : 1 / kResidualScale<V>;  // of two words the last four columns are low-order terms
    OST_UNROLL
    for (int n = 0; n < kTilesPerWarp; ++n) {
      OST_UNROLL
      for (int c = 0; c < 4; ++c) {
        const int out = tile(thread, n) * 16 + lane.sum_row(c);
        float sum = sums.v[0][0][n][c];
        if constexpr (kChains > 1) sum += sums.v[kChains - 1][0][n][c];
        if constexpr (kParts > 1) sum = fma(sums.v[0][kParts - 1][n][c], 1 / kResidualScale<V>, sum) * of_column;
        if (out < kOut) space.sums.v[thread / 32 % kSlices][column + lane.sum_column(c)][out] = sum;
      }
    }
  }
};

// Exact operands. A thread has one output and one slice of the inputs, for all rows.
template <class T, int kOut, int kIn>
struct Engine<T, T, kOut, kIn> {
  static constexpr int kOuts = power_of_two(kOut), kSlices = kThreads / kOuts, kDepth = kIn / kSlices, kChains = 4;
  static constexpr bool kScaled = false;
  static_assert(kOuts <= kThreads && kOuts % 32 == 0 && kIn % (kSlices * kChains) == 0);
  struct Space {
    alignas(16) T operand[kLoopRows][kIn];
    SliceSums<T, kSlices, kLoopRows, kOuts> sums;
    template <int n>
    OST_HD void put(int in, int row, const T* v) {
      *reinterpret_cast<Numbers<T, n>*>(&operand[row][in]) = *reinterpret_cast<const Numbers<T, n>*>(v);
    }
    template <int n>
    OST_HD Numbers<T, n> sum(int out, int row) const {
      return sums.template sum<n>(out, row);
    }
  };
  struct Weights {
    T w[kDepth];
  };

  using Word = T;
  static constexpr Index kPackedBytes = kThreads * Index(sizeof(Weights));
  template <int n>
  OST_HD static Numbers<T, n> load_scales(const Word*, int) {
    return {};
  }

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
  // The threads of a warp have the same slice, so that one read of four inputs serves them all. A sum is four chains, for the latency.
  OST_HD static void multiply(const Block& block, PerThread<Weights>& weights, Space& space, int rows) {
    block.for_each_thread_sync([&](int thread) {
      const int out = thread % kOuts, slice = thread / kOuts;
      OST_ROLLED
      for (int row = 0; row < rows; ++row) {
        T chains[kChains] = {};
        OST_UNROLL
        for (int k = 0; k < kDepth; k += kChains) {
          const auto four = *reinterpret_cast<const Numbers<T, kChains>*>(&space.operand[row][slice * kDepth + k]);
          OST_UNROLL
          for (int i = 0; i < kChains; ++i) chains[i] = fma(weights[thread].w[k + i], four.v[i], chains[i]);
        }
        space.sums.v[slice][row][out] = (chains[0] + chains[1]) + (chains[2] + chains[3]);
      }
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
