// The product of the stepwise kernels: a tile of out[m][n] = sum over k of a(m, k) b(k, n), by
// blocks of k through shared memory. An element depends neither on the tile that holds it nor on
// its neighbours: it is one chain of multiply-adds in ascending k, or with 2-byte operands a chain
// of matrix instructions.
#pragma once
#include "mma.h"

namespace ost::OST_SET {

constexpr int kTileM = 32, kTileN = 64, kTileK = 16;
constexpr int kThreadM = 2, kThreadN = 4;  // the elements of the tile that a thread has
static_assert(kTileM / kThreadM * (kTileN / kThreadN) == kThreads);
static_assert(kTileM / 16 * (kTileN / 16) * 32 == kThreads && kThreadM == 2 && kThreadN == 4);  // a lane has two fragments of four sums

template <class T, class W>
struct alignas(16) ProductSpace {  // shared memory; two words are read at a time
  static constexpr int kDepth = 32;
  W a[kTileM][kDepth + 8], b[kTileN][kDepth + 8];  // padded by 8, so that the words of a fragment lie in 32 banks
};
template <class T>
struct ProductSpace<T, T> {
  T a[kTileK][kTileM + 1];
  T b[kTileK][kTileN];
};
template <class T>
struct Sums {
  T v[kThreadM][kThreadN];
};

// a(m, k) and b(k, n) return zeros outside of the operands.
template <class T, class A, class B>
OST_HD void multiply(const Block& block, ProductSpace<T, T>& space, Range ks, A&& a, B&& b, PerThread<Sums<T>>& sums) {
  for (Index k0 = ks.begin; k0 < ks.end; k0 += kTileK) {
    block.for_each_thread_sync([&](int thread) {
      OST_ROLLED
      for (int i = thread; i < kTileM * kTileK; i += kThreads) {
        const int m = i / kTileK, k = i % kTileK;
        space.a[k][m] = k0 + k < ks.end ? a(m, k0 + k) : T(0);
      }
      OST_ROLLED
      for (int i = thread; i < kTileN * kTileK; i += kThreads) {
        const int n = i % kTileN, k = i / kTileN;
        space.b[k][n] = k0 + k < ks.end ? b(k0 + k, n) : T(0);
      }
    });
    block.for_each_thread_sync([&](int thread) {
      const int m = thread / (kTileN / kThreadN) * kThreadM, n = thread % (kTileN / kThreadN) * kThreadN;
      const int left = int(smaller<Index>(kTileK, ks.end - k0));
      for (int k = 0; k < left; ++k) {
        OST_UNROLL
        for (int i = 0; i < kThreadM; ++i) {
          OST_UNROLL
          for (int j = 0; j < kThreadN; ++j) sums[thread].v[i][j] = fma(space.a[k][m + i], space.b[k][n + j], sums[thread].v[i][j]);
        }
      }
    });
  }
}

// The position of a warp's 16 x 16 in the tile: two neighbouring matrix instructions.
OST_HD int warp_m(int thread) { return thread / 32 % (kTileM / 16) * 16; }
OST_HD int warp_n(int thread) { return thread / 32 / (kTileM / 16) * 16; }

template <class T, class W, class A, class B>
OST_HD void multiply(const Block& block, ProductSpace<T, W>& space, Range ks, A&& a, B&& b, PerThread<Sums<T>>& sums) {
  constexpr int depth = ProductSpace<T, W>::kDepth;
  PerThread<FragmentA> left;
  PerThread<FragmentB> right[2];
  for (Index k0 = ks.begin; k0 < ks.end; k0 += depth) {
    block.for_each_thread_sync([&](int thread) {
      OST_ROLLED
      for (int i = thread; i < kTileM * depth; i += kThreads) {
        const int m = i / depth, k = i % depth;
        space.a[m][k] = Narrow<W>::of(k0 + k < ks.end ? a(m, k0 + k) : T(0));
      }
      OST_ROLLED
      for (int i = thread; i < kTileN * depth; i += kThreads) {
        const int n = i % kTileN, k = i / kTileN;
        if (k0 + k < ks.end)
          space.b[n][k] = Narrow<W>::of(b(k0 + k, n));
        else
          space.b[n][k] = W{};
      }
    });
    OST_UNROLL
    for (int k = 0; k < depth; k += 16) {
      block.for_each_thread([&](int thread) {
        const Lane lane(thread);
        OST_UNROLL
        for (int w = 0; w < 4; ++w) left[thread].word[w] = pair_at(&space.a[warp_m(thread) + lane.a_row(w)][k + lane.a_column(w)]);
        OST_UNROLL
        for (int j = 0; j < 2; ++j) {
          OST_UNROLL
          for (int w = 0; w < 2; ++w)
            right[j][thread].word[w] = pair_at(&space.b[warp_n(thread) + j * 8 + lane.b_column()][k + lane.b_row(w)]);
        }
      });
      OST_UNROLL
      for (int j = 0; j < 2; ++j)
        multiply_fragments<W>(
            block, [&](int thread) -> FragmentA& { return left[thread]; }, [&](int thread) -> FragmentB& { return right[j][thread]; },
            [&](int thread) -> float* { return sums[thread].v[j]; });
    }
    block.sync_block();
  }
}

// Call f(m, n, sum) for every element of the tile, from the thread that has it.
template <class W, class T, class F>
OST_HD void for_sums(const Block& block, PerThread<Sums<T>>& sums, F&& f) {
  block.for_each_thread_sync([&](int thread) {
    const int m = thread / (kTileN / kThreadN) * kThreadM, n = thread % (kTileN / kThreadN) * kThreadN;
    const Lane lane(thread);
    OST_UNROLL
    for (int i = 0; i < kThreadM; ++i) {
      OST_UNROLL
      for (int j = 0; j < kThreadN; ++j)
        if constexpr (sizeof(W) == 2)
          f(warp_m(thread) + lane.sum_row(j), warp_n(thread) + i * 8 + lane.sum_column(j), sums[thread].v[i][j]);
        else
          f(m + i, n + j, sums[thread].v[i][j]);
    }
  });
}

}  // namespace ost::OST_SET
