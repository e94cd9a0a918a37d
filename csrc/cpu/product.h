// The one product of the library: forward, da R, dx, dW, dR and Linear all run through `tile_product`. No cell in it.
//
// A panel is [K][n][lanes], n <= kMaxVectors: weights of n vectors of outputs, packed by layout.h. MR rows times n
// vectors accumulate in registers. Every element is one chain of fused multiply-adds in ascending k that starts from
// `init`, whatever MR and n are: the bits of a result do not depend on how its rows were tiled.
#pragma once
#include "simd.h"

namespace ost::OST_SET {

// 32 registers: 4 vectors x 5 rows = 20 accumulators, 4 panel vectors, the rest for broadcasts (6 rows spill with gcc 12).
// 16 registers: 2 vectors x 4 rows; 3 x 3 for the three columns of a GRU.
constexpr int kMaxVectors = kRegisters == 32 ? 4 : 3;
constexpr int kMaxRows = 8;
constexpr int max_rows(int vectors) {
  if (kRegisters == 32) return vectors == 4 ? 5 : vectors == 3 ? 7 : 8;
  return vectors == 3 ? 3 : vectors == 2 ? 4 : 6;
}

// `vectors` are cut into pieces of at most kMaxVectors, as evenly as possible; element p of the cut.
struct Piece {
  int begin, count;
};
OST_HD constexpr int piece_count(int vectors) { return (vectors + kMaxVectors - 1) / kMaxVectors; }
OST_HD constexpr Piece piece(int vectors, int p) {
  const int n = piece_count(vectors), begin = vectors * p / n;
  return {begin, vectors * (p + 1) / n - begin};
}

// The same for rows: tiles of at most `most` rows whose sizes differ by one at most (16 rows: 4 4 4 4, not 5 5 5 1).
template <class F>
OST_HD void for_row_tiles(Index rows, int most, F&& f) {
  const Index tiles = ceil_div(rows, most);
  for (Index i = 0, begin = 0; i < tiles; ++i) {
    const Index end = rows * (i + 1) / tiles;
    f(begin, int(end - begin));
    begin = end;
  }
}

// out[m] = init[m] + a[m] . panel. a[m] points at K operands with unit stride; init and out rows may be the same.
template <class T>
using TileProduct = void (*)(Index depth, const T* const* a, const T* panel, const T* const* init, T* const* out);

template <class T, int MR, int N>
__attribute__((noinline)) void tile_product(Index depth, const T* const* a, const T* panel, const T* const* init, T* const* out) {
  using V = Vec<T>;
  V acc[MR][N];
  const T* row[MR];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
    row[m] = a[m];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) acc[m][j] = V::load(init[m] + j * V::kLanes);
  }
  Index k = 0;
  do {  // depth >= 1; a loop that may be empty makes gcc copy the accumulators through the stack
    V b[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) b[j] = V::load(panel + j * V::kLanes);
    panel += N * V::kLanes;
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const V x(row[m][k]);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) acc[m][j] = fma(x, b[j], acc[m][j]);
    }
  } while (++k < depth);
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) acc[m][j].store(out[m] + j * V::kLanes);
}

// out[m] += sum over k of a[k][column + m] * b[k][offset ..]: an outer-product sum over rows k, from zero. For dW and dR: a
// are rows of operands, b rows of da, so neither is packed or copied.
template <class T>
using TileOuter = void (*)(Index depth, const T* const* a, Index column, const T* const* b, Index offset, T* out, Index out_stride);

template <class T, int MR, int N>
__attribute__((noinline)) void tile_outer(Index depth, const T* const* a, Index column, const T* const* b, Index offset, T* out,
                                          Index out_stride) {
  using V = Vec<T>;
  V acc[MR][N];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) acc[m][j] = V(T(0));
  for (Index k = 0; k < depth; ++k) {
    const T* x = a[k] + column;
    const T* d = b[k] + offset;
    V v[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) v[j] = V::load(d + j * V::kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const V s(x[m]);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) acc[m][j] = fma(s, v[j], acc[m][j]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      T* p = out + m * out_stride + j * V::kLanes;
      (V::load(p) + acc[m][j]).store(p);
    }
}

// Tables [vectors - 1][rows - 1] of both, filled for rows <= max_rows(vectors).
template <class T>
struct Products {
  TileProduct<T> product[kMaxVectors][kMaxRows];
  TileOuter<T> outer[kMaxVectors][kMaxRows];
};

template <class T, int N, int MR>
constexpr void fill_products(Products<T>& p) {
  if constexpr (MR <= max_rows(N)) {
    p.product[N - 1][MR - 1] = tile_product<T, MR, N>;
    p.outer[N - 1][MR - 1] = tile_outer<T, MR, N>;
    fill_products<T, N, MR + 1>(p);
  } else if constexpr (N < kMaxVectors) {
    fill_products<T, N + 1, 1>(p);
  }
}
template <class T>
constexpr Products<T> make_products() {
  Products<T> p{};
  fill_products<T, 1, 1>(p);
  return p;
}
template <class T>
inline constexpr Products<T> kProducts = make_products<T>();

// A matrix of outputs in groups of up to kMaxVectors vectors, as the products that write plain rows use it (dx, dh, Linear).
// panels: [group][K][vectors of the group][lanes]; the last group may have fewer vectors.
OST_HD constexpr Index plain_groups(Index vectors) { return ceil_div(vectors, kMaxVectors); }
OST_HD constexpr int plain_vectors(Index vectors, Index g) { return int(smaller<Index>(kMaxVectors, vectors - g * kMaxVectors)); }

// out[r][first ..] = init + a[r] . panels for the groups [g0, g1): rows are whole vectors long (padded).
template <class T>
void rows_product(Index rows, Index depth, const T* const* a, const T* panels, Index vectors, Index g0, Index g1, const T* const* init,
                  T* const* out) {
  constexpr int L = Vec<T>::kLanes;
  for (Index g = g0; g < g1; ++g) {
    const int n = plain_vectors(vectors, g);
    const Index first = g * kMaxVectors * L;
    const T* panel = panels + depth * first;
    for_row_tiles(rows, max_rows(n), [&](Index r, int m) {
      const T* in[kMaxRows];
      T* to[kMaxRows];
      for (int i = 0; i < m; ++i) in[i] = init[r + i] + first, to[i] = out[r + i] + first;
      kProducts<T>.product[n - 1][m - 1](depth, a + r, panel, in, to);
    });
  }
}

// The same into the caller's rows of `width` elements, which need not be whole vectors: through a tile in L1.
template <class T>
void rows_product_exact(Index rows, Index depth, const T* const* a, const T* panels, Index width, const T* init, T* const* out, bool add) {
  constexpr int L = Vec<T>::kLanes;
  const Index vectors = ceil_div(width, L);
  alignas(64) T tile[kMaxRows][kMaxVectors * L];
  for (Index g = 0; g < plain_groups(vectors); ++g) {
    const int n = plain_vectors(vectors, g);
    const Index first = g * kMaxVectors * L;
    for_row_tiles(rows, max_rows(n), [&](Index r, int m) {
      const T* in[kMaxRows];
      T* to[kMaxRows];
      for (int i = 0; i < m; ++i) in[i] = init + first, to[i] = tile[i];
      kProducts<T>.product[n - 1][m - 1](depth, a + r, panels + depth * first, in, to);
      for (int i = 0; i < m; ++i)
        for (int j = 0; j < n; ++j) {
          const Index left = width - first - j * L;
          T* p = out[r + i] + first + j * L;
          Vec<T> v = Vec<T>::load(tile[i] + j * L);
          if (left >= L) {
            if (add) v = Vec<T>::load(p) + v;
            v.store(p);
          } else {
            if (add) v = Vec<T>::load_part(p, int(left)) + v;
            v.store_part(p, int(left));
          }
        }
    });
  }
}

// accumulator[m][...] += a^T b over `rows` rows, for columns m of a in `range` and vectors [v0, v0 + vectors) of b.
template <class T>
void outer_product(Index rows, const T* const* a, Range range, const T* const* b, Index v0, int vectors, T* accumulator, Index stride) {
  constexpr int L = Vec<T>::kLanes;
  for (int p = 0; p < piece_count(vectors); ++p) {
    const Piece cut = piece(vectors, p);
    const Index offset = (v0 + cut.begin) * L;
    for_row_tiles(range.end - range.begin, max_rows(cut.count), [&](Index i, int count) {
      const Index m = range.begin + i;
      kProducts<T>.outer[cut.count - 1][count - 1](rows, a, m, b, offset, accumulator + m * stride + offset, stride);
    });
  }
}

}  // namespace ost::OST_SET
