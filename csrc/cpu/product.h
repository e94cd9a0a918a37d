// The one product of the library: forward, da R, dx, dW, dR and Linear all run through `tile_product`. No cell in it.
//
// A panel is [K][n][lanes] words, n <= kMaxVectors: weights of n vectors of outputs, packed by layout.h. MR rows times n
// vectors accumulate in registers. Every element is one chain of multiply-adds in ascending k that starts from `init`,
// whatever MR and n are: the bits of a result do not depend on how its rows were tiled. K counts words (precision.h).
#pragma once
#include "precision.h"
#include "tiles.h"

namespace ost::OST_SET {

// 32 registers: 4 vectors x 5 rows = 20 accumulators, 4 panel vectors, the rest for broadcasts (6 rows spill with gcc 12).
// 16 registers: 2 vectors x 6 rows; 3 x 4 for the three columns of a GRU. Each is 12 accumulators: with 8, no more than a
// multiply-add takes in latency, training was 9% slower on Zen 3. With SSE2, which hardly a CPU runs, the smaller tiles stay: the
// larger ones and pairs of words that are encoded took 17 KB of a wheel.
constexpr bool kAvx2 = kVectorBytes == 32;
constexpr int kMaxVectors = kRegisters == 32 ? 4 : 3;
constexpr int kMaxRows = 8;                                  // by vectors
constexpr int kMostRows = kHasTiles ? kTileRows : kMaxRows;  // by either
constexpr int max_rows(int vectors) {
  if (kRegisters == 32) return vectors == 4 ? 5 : vectors == 3 ? 7 : 8;
  if (kAvx2) return vectors == 3 ? 4 : 6;
  return vectors == 3 ? 3 : vectors == 2 ? 4 : 6;
}

// How a run of vectors is cut into pieces of at most kMaxVectors, as evenly as possible, the largest last; and the rows of a tile.
struct Piece {
  int begin, count;
};
struct Cut {
  int pieces, rows;
  Piece piece[6];
  // How many panels from piece p on are read side by side, of equal neighbours so many.
  OST_HD constexpr int panels_from(int p, int side_by_side) const {
    return p + 1 < pieces && piece[p + 1].count == piece[p].count ? side_by_side : 1;
  }
};
// Where words have parts, a register less is left for sums: that of a mask, or of a product that is still to be added.
template <class P>
constexpr int tile_rows(int rows) {
  return rows - (P::kParts > 1 && kRegisters == 16);
}
constexpr int kMostVectors = 16;  // of a group of units, with all its columns
constexpr Cut cut_vectors(int vectors) {
  Cut cut{(vectors + kMaxVectors - 1) / kMaxVectors, kMaxRows, {}};
  for (int p = 0; p < cut.pieces; ++p) {
    const int begin = vectors * p / cut.pieces;
    cut.piece[p] = {begin, vectors * (p + 1) / cut.pieces - begin};
    cut.rows = max_rows(cut.piece[p].count);
  }
  return cut;
}
// A table, since its divisions are too many for every tile.
struct Cuts {
  Cut of[kMostVectors + 1];
  constexpr Cuts() : of() {
    for (int n = 0; n <= kMostVectors; ++n) of[n] = cut_vectors(n);
  }
};
inline constexpr Cuts kCuts{};

// Rows are cut likewise: tiles of at most `most` rows whose sizes differ by one at most (16 rows: 4 4 4 4, not 5 5 5 1).
template <class F>
OST_HD void for_row_tiles(Index rows, int most, F&& f) {
  if (rows <= 0) return;
  const int tiles = int(rows + most - 1) / most, each = int(rows) / tiles, larger = int(rows) % tiles;
  Index begin = 0;
  for (int i = 0; i < tiles; ++i) {
    const int count = each + (i < larger);
    f(begin, count);
    begin += count;
  }
}

// So few rows are too few chains for the latency of a multiply-add where panels are narrow: two panels are read side by side.
// (32 registers: panels are wide enough.)
constexpr int kPairRows = kAvx2 ? 2 : 0;
// Tiles wait for panels: with AVX2 they are prefetched at this distance, across the border of a page, at which the hardware stops
// (Zen 3, LSTM 1024: with 4 rows 1.13 times as fast, with 32 and 128 rows 1.07 and 1.11). Tiles of more than kFewRows do so where a
// panel has at least kDeepPanel words for each output: short ones stay in L1, from which lines that come too early would drive others,
// and the distance is zero. One line for each k is that of two vectors; of a panel of three the hardware fetches every third line.
constexpr Index kPrefetchBytes = 4096;
constexpr int kFewRows = 4;
constexpr Index kDeepPanel = 256;

// out[m] = init[m] + a[m] . panel, from column `first` of init and out. a[m] points at K words with unit stride; init and out rows may
// be the same.
template <class P>
using TileProduct = void (*)(Index depth, const typename P::Word* const* a, const typename P::Word* panel,
                             const typename P::Real* const* init, typename P::Real* const* out, Index first);

// G panels of N vectors each, one behind the other.
template <class P, int MR, int N, int G>
__attribute__((noinline)) void tile_product(Index depth, const typename P::Word* const* a, const typename P::Word* panel,
                                            const typename P::Real* const* init, typename P::Real* const* out, Index first) {
  constexpr int L = Vec<typename P::Real>::kLanes;
  typename P::Acc acc[MR][G * N];
  const typename P::Word *row[MR], *head[G], *at[G];
#pragma GCC unroll 2
  for (int g = 0; g < G; ++g) {
    head[g] = panel + g * (depth + P::kHead) * N * L;
    at[g] = head[g] + P::kHead * N * L;
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
    row[m] = a[m];
#pragma GCC unroll 8
    for (int j = 0; j < G * N; ++j) acc[m][j] = P::start(init[m] + first + j * L, head[j / N] + j % N * L);
  }
  const std::uintptr_t distance = MR <= kFewRows || depth >= kDeepPanel ? kPrefetchBytes : 0;
  Index k = 0;
  do {  // depth >= 1; a loop that may be empty makes gcc copy the accumulators through the stack
#pragma GCC unroll 2
    for (int part = 0; part < P::kParts; ++part) {
      typename P::Factor b[G * N];
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
        if constexpr (P::kParts > 1) asm("" : "+r"(at[g]));  // read again for the second part: words would take registers of sums
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) b[g * N + j] = P::factor(at[g] + j * L, part);
        if (part + 1 < P::kParts) continue;
        // Not a sum of pointers, which must not leave what it points into.
        if constexpr (kAvx2) __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(at[g]) + distance));
        at[g] += N * L;
      }
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        const auto x = P::operand(row[m][k * P::kParts + part]);
#pragma GCC unroll 8
        for (int j = 0; j < G * N; ++j) acc[m][j] = P::multiply(x, b[j], acc[m][j]);
      }
    }
  } while (++k < depth);
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 8
    for (int j = 0; j < G * N; ++j)
      P::finish(acc[m][j], init[m] + first + j * L, head[j / N] + (N + j % N) * L, row[m] + depth * P::kParts)
          .store(out[m] + first + j * L);
}

// Sums over so many rows take as long as the tile that they are added to takes to come from memory: it is prefetched.
constexpr Index kPrefetchDepth = 16;
constexpr int kLineVectors = kVectorBytes < 64 ? 64 / kVectorBytes : 1;

// out[m] (+)= sum over k of a[k][column + m] * b[k][offset ..]: an outer-product sum over rows k, from zero; the first one is stored. For
// dW and dR: a are rows of operands, b rows of da; exact ones are read where they lie, others come as words of kPack rows.
template <class P>
using TileOuter = void (*)(Index depth, const typename P::Word* const* a, Index column, const typename P::Word* const* b, Index offset,
                           typename P::Real* out, Index out_stride, bool first);

template <class P, int MR, int N>
__attribute__((noinline)) void tile_outer(Index depth, const typename P::Word* const* a, Index column, const typename P::Word* const* b,
                                          Index offset, typename P::Real* out, Index out_stride, bool first) {
  using T = typename P::Real;
  using V = Vec<T>;
  V acc[MR][N];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) acc[m][j] = V(T(0));
  if (depth >= kPrefetchDepth) {
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int j = 0; j < N; j += kLineVectors) __builtin_prefetch(out + m * out_stride + j * V::kLanes, 1);
  }
  for (Index k = 0; k < depth; ++k) {
    const auto* x = a[k] + column * P::kParts;
    const auto* d = b[k] + offset;
    asm("" : "+r"(x), "+r"(d));  // one address each: gcc would keep one for every column, more than there are registers
#pragma GCC unroll 2
    for (int part = 0; part < P::kParts; ++part) {
      typename P::Factor v[N];
      if constexpr (P::kParts > 1) asm("" : "+r"(d));
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) v[j] = P::factor(d + j * V::kLanes, part);
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        const auto s = P::operand(x[m * P::kParts + part]);
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) acc[m][j] = P::multiply(s, v[j], acc[m][j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      T* p = out + m * out_stride + j * V::kLanes;
      (first ? acc[m][j] : V::load(p) + acc[m][j]).store(p);
    }
}

// Tables [vectors - 1][rows - 1] of both, filled for rows <= tile_rows(max_rows(vectors)). What cannot be trained has no outer products.
template <class P>
struct Products {
  TileProduct<P> product[kMaxVectors][kMaxRows];
  TileProduct<P> two_panels[kMaxVectors][larger(kPairRows, 1)];  // of more than one vector: one is no neighbour of another
  TileOuter<P> outer[kMaxVectors][kMaxRows];
};

template <class P, int N, int MR>
constexpr void fill_products(Products<P>& p) {
  if constexpr (MR <= tile_rows<P>(max_rows(N))) {
    p.product[N - 1][MR - 1] = tile_product<P, MR, N, 1>;
    if constexpr (N > 1 && MR <= kPairRows) p.two_panels[N - 1][MR - 1] = tile_product<P, MR, N, 2>;
    if constexpr (P::kHead == 0) p.outer[N - 1][MR - 1] = tile_outer<P, MR, N>;
    fill_products<P, N, MR + 1>(p);
  } else if constexpr (N < kMaxVectors) {
    fill_products<P, N + 1, 1>(p);
  }
}
template <class P>
constexpr Products<P> make_products() {
  Products<P> p{};
  fill_products<P, 1, 1>(p);
  return p;
}
template <class P>
inline constexpr Products<P> kProducts = make_products<P>();

// How so many rows are multiplied by weights that were packed for a multiplier.
template <class P>
class Multiply {
  using W = typename P::Word;
  using T = typename P::Real;

 public:
  OST_HD Multiply(Multiplier by, Index rows) : by_(kHasTiles && tiles_take<P>(rows) ? by : Multiplier::kVectors) {}
  OST_HD bool vectors() const { return !kHasTiles || !P::kEncodes || by_ == Multiplier::kVectors; }
  OST_HD int most_rows(int of_vectors) const { return vectors() ? tile_rows<P>(of_vectors) : kTileRows; }  // at once

  OST_HD void product(int vectors_, int rows, Index depth, const W* const* a, const W* panel, const T* const* init, T* const* out,
                      Index first) const {
    if (vectors()) return kProducts<P>.product[vectors_ - 1][rows - 1](depth, a, panel, init, out, first);
#if defined(OST_TILES) || defined(OST_TILE_MODEL)
    if constexpr (P::kEncodes) tile_products<P, kMaxVectors>(by_).product[vectors_ - 1](rows, depth, a, panel, init, out, first);
#endif
  }
  static int panels_side_by_side(Index rows) { return kPairRows > 0 && rows <= kPairRows ? 2 : 1; }
  // So many panels of as many vectors each, one behind the other.
  OST_HD void product(int panels, int vectors_, int rows, Index depth, const W* const* a, const W* panel, const T* const* init,
                      T* const* out, Index first) const {
    if (panels == 1) return product(vectors_, rows, depth, a, panel, init, out, first);
    kProducts<P>.two_panels[vectors_ - 1][rows - 1](depth, a, panel, init, out, first);
  }
  // All vectors of a group, which is cut into panels; init and out are rows of all of them. Inlined into every driver it would be
  // 19 KB of a wheel.
  __attribute__((noinline)) void group(const Cut& cut, int rows, Index depth, const W* const* a, const W* panels, const T* const* init,
                                       T* const* out) const {
    constexpr int L = Vec<T>::kLanes;
    const int side_by_side = panels_side_by_side(rows);
    if (cut.panels_from(0, side_by_side) == cut.pieces)
      return product(cut.pieces, cut.piece[0].count, rows, depth, a, panels, init, out, 0);
    for (int p = 0, n; p < cut.pieces; p += n) {
      const Piece piece = cut.piece[p];
      n = cut.panels_from(p, side_by_side);
      product(n, piece.count, rows, depth, a, panels + (depth + P::kHead) * piece.begin * L, init, out, piece.begin * L);
    }
  }
  OST_HD void outer(int vectors_, int rows, Index depth, const W* const* a, Index column, const W* const* b, Index offset, T* out,
                    Index out_stride, bool first) const {
    if (vectors()) return kProducts<P>.outer[vectors_ - 1][rows - 1](depth, a, column, b, offset, out, out_stride, first);
#if defined(OST_TILES) || defined(OST_TILE_MODEL)
    if constexpr (P::kEncodes)
      tile_products<P, kMaxVectors>(by_).outer[vectors_ - 1](rows, depth, a, column, b, offset, out, out_stride, first);
#endif
  }

 private:
  Multiplier by_;
};

// A matrix of outputs in groups of up to kMaxVectors vectors, as the products that write plain rows use it (dx, dh, Linear).
// panels: [group][K][vectors of the group][lanes]; the last group may have fewer vectors.
OST_HD constexpr Index plain_groups(Index vectors) { return ceil_div(vectors, kMaxVectors); }
OST_HD constexpr int plain_vectors(Index vectors, Index g) { return int(smaller<Index>(kMaxVectors, vectors - g * kMaxVectors)); }

// out[r][first ..] = init + a[r] . panels for the groups [g0, g1): rows are whole vectors long (padded). depth in words.
template <class P, class T = typename P::Real, class W = typename P::Word>
void rows_product(Multiplier by, Index rows, Index depth, const W* const* a, const W* panels, Index vectors, Index g0, Index g1,
                  const T* const* init, T* const* out) {
  constexpr int L = Vec<T>::kLanes;
  const Multiply<P> multiply(by, rows);
  const Index side_by_side = multiply.panels_side_by_side(rows);
  for (Index g = g0, groups; g < g1; g += groups) {
    const int n = plain_vectors(vectors, g);
    groups = g + side_by_side <= g1 && plain_vectors(vectors, g + side_by_side - 1) == n ? side_by_side : 1;
    const Index first = g * kMaxVectors * L;
    for_row_tiles(rows, multiply.most_rows(max_rows(n)), [&](Index r, int m) OST_INLINE {
      multiply.product(int(groups), n, m, depth, a + r, panels + depth * first, init + r, out + r, first);
    });
  }
}

// A product into the caller's rows of `width` elements, which need not be whole vectors, goes through a tile in L1.
template <class P, class T = typename P::Real, class W = typename P::Word>
void rows_product_exact(Multiplier by, Index rows, Index depth, const W* const* a, const W* panels, Index width, const T* init,
                        T* const* out, bool add) {
  constexpr int L = Vec<T>::kLanes;
  const Index vectors = ceil_div(width, L);
  const Multiply<P> multiply(by, rows);
  alignas(64) T tile[kMostRows][kMaxVectors * L];
  for (Index g = 0; g < plain_groups(vectors); ++g) {
    const int n = plain_vectors(vectors, g);
    const Index first = g * kMaxVectors * L;
    for_row_tiles(rows, multiply.most_rows(max_rows(n)), [&](Index r, int m) OST_INLINE {
      const T* in[kMostRows];
      T* to[kMostRows];
      for (int i = 0; i < m; ++i) in[i] = init + first, to[i] = tile[i];
      multiply.product(n, m, depth, a + r, panels + depth * first, in, to, 0);
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

// An outer product goes down columns of its operands, each row in another line and mostly in another page. With vectors of 32
// bytes so few rows are taken at once that both operands' lines stay in L1, and those of b are first copied to lie one behind the
// other where they serve enough columns of a (Zen 3, training of LSTM 256 and 512: 1.02 and 1.12 times as fast). With those of 64
// bytes b comes by four lines a row, which is fast as it is.
constexpr Index kOuterRows = kAvx2 ? 64 : Index(1) << 30;
constexpr Index kPackedColumns = 192;

template <class P, class W = typename P::Word>
class PackedRows {
  static constexpr Index kRows = kAvx2 ? kOuterRows : 1;  // else there are none
  static constexpr int kWidth = kMaxVectors * Vec<typename P::Real>::kLanes;

 public:
  OST_HD const W* const* pack(const W* const* from, Index rows, Index offset, int width) {
    for (Index k = 0; k < rows; ++k) {
      rows_[k] = words_ + k * width;
      __builtin_memcpy(words_ + k * width, from[k] + offset, std::size_t(width) * sizeof(W));
    }
    return rows_;
  }

 private:
  alignas(64) W words_[kRows * kWidth];
  const W* rows_[kRows];
};

// sums[m][...] (+)= a^T b over `rows` rows of words, for columns m of a in `range` and `vectors` vectors of b from `first` on.
template <class P, class T = typename P::Real, class W = typename P::Word>
void outer_product(Multiplier by, Index rows, const W* const* a, Range range, const W* const* b, Index first, int vectors, T* sums,
                   Index stride, bool store) {
  constexpr int L = Vec<T>::kLanes;
  const Cut& cut = kCuts.of[vectors];
  const Multiply<P> multiply(by, kTileRows);
  const bool packs = kAvx2 && range.end - range.begin >= kPackedColumns;
  PackedRows<P> packed;
  for (Index k = 0; k < rows; k += kOuterRows) {
    const Index some = smaller(kOuterRows, rows - k);
    for (int p = 0; p < cut.pieces; ++p) {
      const Piece piece = cut.piece[p];
      const Index offset = first + piece.begin * L;
      const W* const* of_b = packs ? packed.pack(b + k, some, offset, piece.count * L) : b + k;
      for_row_tiles(range.end - range.begin, multiply.most_rows(max_rows(piece.count)), [&](Index i, int count) OST_INLINE {
        const Index m = range.begin + i;
        multiply.outer(piece.count, count, some, a + k, m, of_b, packs ? 0 : offset, sums + m * stride + piece.begin * L, stride,
                       store && k == 0);
      });
    }
  }
}

}  // namespace ost::OST_SET
