// The one product of the stepwise kernels: a tile of out[m][n] = sum over k of a(m, k) b(k, n), by blocks of k through shared memory. Every
// element is one chain of multiply-adds in ascending k, so it depends neither on the tile that it lies in nor on its neighbours.
#pragma once
#include "block.h"
#include "math.h"

namespace ost::OST_SET {

constexpr int kTileM = 32, kTileN = 64, kTileK = 16;
constexpr int kThreadM = 2, kThreadN = 4;  // of the tile, a thread's
static_assert(kTileM / kThreadM * (kTileN / kThreadN) == kThreads);

template <class T>
struct ProductSpace {  // shared memory
  T a[kTileK][kTileM + 1];
  T b[kTileK][kTileN];
};
template <class T>
struct Sums {
  T v[kThreadM][kThreadN];
};

template <class T>
OST_HD void clear(const Block& block, PerThread<Sums<T>>& sums) {
  block.each([&](int thread) {
    OST_UNROLL
    for (int i = 0; i < kThreadM; ++i) {
      OST_UNROLL
      for (int j = 0; j < kThreadN; ++j) sums[thread].v[i][j] = T(0);
    }
  });
}

// a(m, k) and b(k, n) give zeros where there is nothing.
template <class T, class A, class B>
OST_HD void multiply(const Block& block, ProductSpace<T>& space, Range ks, A&& a, B&& b, PerThread<Sums<T>>& sums) {
  for (Index k0 = ks.begin; k0 < ks.end; k0 += kTileK) {
    block.each([&](int thread) {
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
    block.each([&](int thread) {
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

// f(m, n, sum) for every element of the tile, by the thread that has it.
template <class T, class F>
OST_HD void for_sums(const Block& block, PerThread<Sums<T>>& sums, F&& f) {
  block.each([&](int thread) {
    const int m = thread / (kTileN / kThreadN) * kThreadM, n = thread % (kTileN / kThreadN) * kThreadN;
    OST_UNROLL
    for (int i = 0; i < kThreadM; ++i) {
      OST_UNROLL
      for (int j = 0; j < kThreadN; ++j) f(m + i, n + j, sums[thread].v[i][j]);
    }
  });
}

}  // namespace ost::OST_SET
