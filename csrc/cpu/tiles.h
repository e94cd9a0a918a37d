// Products by tiles: AMX of x86-64, whose instructions multiply 16 rows of operands by 16 columns of weights, 64 bytes of depth at once.
//
// Weights need no order of their own. A panel (product.h) has a word of each column side by side, two bfloat16 or four bytes of the depth
// in a word, and that is what a tile of weights is: 16 words of the depth by 16 columns. A tile of operands is 16 words of each of 16
// rows. What is left of rows, columns and depth takes tiles that are configured smaller, so that nothing is read beyond an operand.
//
// Bytes have exact sums: the bits are those of the vectors. Of bfloat16 a tile takes the sums over its depth from zero, of the low and of
// the high halves of the words, and then adds both to what it holds. So a link of the chain is a block of 32 elements, in ascending order,
// whatever rows there are.
//
// The instructions are a class: CpuTiles, or the model of them (tile_model.h) by which the tests run this source on any CPU.
#pragma once
#include "precision.h"
#if defined(OST_TILE_MODEL)
#include "tile_model.h"
#endif

namespace ost::OST_SET {

#if defined(OST_TILES) || defined(OST_TILE_MODEL)
constexpr bool kHasTiles = true;
#else
constexpr bool kHasTiles = false;
#endif
constexpr int kTileRows = 16, kTileWords = 16;  // of palette 1: rows, and words of a row

// Whether rows of a product are multiplied by tiles, where weights are packed for them. With fewer rows than a tile has, most of it would
// be idle, and vectors read the same panel: bytes, of which both give the same bits, go there. bfloat16 does not, since the bits of a row
// would depend on how many others there are. Nobody has measured where the border should be.
template <class P>
OST_HD constexpr bool tiles_take(Index rows) {
  return P::kEncodes && (!P::kSumsAreExact || rows >= kTileRows);
}

#if defined(OST_TILES) || defined(OST_TILE_MODEL)

// What LDTILECFG reads.
struct TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
  OST_HD void shape(int tile, Index height, Index words) {
    rows[tile] = std::uint8_t(height);
    row_bytes[tile] = std::uint16_t(words * 4);
  }
};
static_assert(sizeof(TileConfig) == 64);

// Tiles 0 to 3 are sums. Operands and weights have two each: of whole blocks of the depth, and of what is left.
constexpr int kOperands = 4, kWeights = 5, kLeftOperands = 6, kLeftWeights = 7;

#if defined(OST_TILES)
// Assembly, since the intrinsics of GCC 12 do not tell the compiler that they read memory.
struct CpuTiles {
  static OST_HD void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }
  static OST_HD void release() { asm volatile("tilerelease" : : : "memory"); }
  template <class W>
  static OST_HD void require_even(const W* const*, Index) {}
  template <int I>
  static OST_HD void load(const void* from, Index stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(I) : "memory");
  }
  template <int I>
  static OST_HD void store(void* to, Index stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(I) : "memory");
  }
  template <class P, int Sums, int Left, int Right>
  static OST_HD void multiply() {
    if constexpr (P::kPack == 2)
      asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(Left), "i"(Right));
    else
      asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(Left), "i"(Right));
  }
};
#endif

// Sums of `rows` rows and N vectors: memory in which they lie between vectors and tiles.
template <class P, int N>
struct TileSums {
  static constexpr int L = Vec<typename P::Real>::kLanes, kColumns = N * L;
  static constexpr int kTiles = kColumns <= kTileWords ? 1 : N, kWidth = kColumns / kTiles;
  static_assert(kTiles == 1 || L == kTileWords, "a vector is a tile wide, or all of them are no wider");
  using Each = typename MakeSequence<kTiles>::type;
  alignas(64) typename P::Word words[kTileRows][kColumns];

  OST_HD typename P::Acc get(int row, int vector) const {
    typename P::Acc acc;
    __builtin_memcpy(&acc.v, &words[row][vector * L], kVectorBytes);
    return acc;
  }
  OST_HD void set(int row, int vector, typename P::Acc acc) { __builtin_memcpy(&words[row][vector * L], &acc.v, kVectorBytes); }

  OST_HD static TileConfig config(int rows, Index depth) {
    TileConfig out;
    const Index left = depth % kTileWords;
    for (int i = 0; i < kTiles; ++i) out.shape(i, rows, kWidth);
    if (depth >= kTileWords) {
      out.shape(kOperands, rows, kTileWords);
      out.shape(kWeights, kTileWords, kWidth);
    }
    if (left > 0) {
      out.shape(kLeftOperands, rows, left);
      out.shape(kLeftWeights, left, kWidth);
    }
    return out;
  }
  template <class Tiles, int... I>
  OST_HD void load(Tiles& tiles, Sequence<I...>) const {
    (tiles.template load<I>(&words[0][I * kWidth], sizeof words[0]), ...);
  }
  template <class Tiles, int... I>
  OST_HD void store(Tiles& tiles, Sequence<I...>) {
    (tiles.template store<I>(&words[0][I * kWidth], sizeof words[0]), ...);
  }
  // Adds a block of the depth. Rows of operands, and of weights, lie a stride of words apart.
  template <class Tiles, int A, int B, int... I>
  OST_HD static void add(Tiles& tiles, const typename P::Word* operands, Index apart, const typename P::Word* weights, Index stride,
                         Sequence<I...>) {
    constexpr Index bytes = sizeof(typename P::Word);
    tiles.template load<A>(operands, apart * bytes);
    ((tiles.template load<B>(weights + I * kWidth, stride * bytes), tiles.template multiply<P, I, A, B>()), ...);
  }
};

// As tile_product, for up to kTileRows rows. Those of the operands lie equally far apart.
template <class P>
using RowsProduct = void (*)(int rows, Index depth, const typename P::Word* const* a, const typename P::Word* panel,
                             const typename P::Real* const* init, typename P::Real* const* out, Index first);

template <class P, class Tiles, int N>
__attribute__((noinline)) void product_by_tiles(int rows, Index depth, const typename P::Word* const* a, const typename P::Word* panel,
                                                const typename P::Real* const* init, typename P::Real* const* out, Index first) {
  using Sums = TileSums<P, N>;
  constexpr int L = Sums::L;
  constexpr typename Sums::Each each{};
  const typename P::Word* head = panel;
  panel += P::kHead * N * L;
  Sums sums;
  for (int m = 0; m < rows; ++m)
    for (int j = 0; j < N; ++j) sums.set(m, j, P::start(init[m] + first + j * L, head + j * L));
  const Index apart = rows > 1 ? a[1] - a[0] : 0;
  Tiles tiles;
  tiles.require_even(a, rows);
  tiles.configure(Sums::config(rows, depth));
  sums.load(tiles, each);
  Index k = 0;
  for (; k + kTileWords <= depth; k += kTileWords)
    Sums::template add<Tiles, kOperands, kWeights>(tiles, a[0] + k, apart, panel + k * N * L, N * L, each);
  if (k < depth) Sums::template add<Tiles, kLeftOperands, kLeftWeights>(tiles, a[0] + k, apart, panel + k * N * L, N * L, each);
  sums.store(tiles, each);
  tiles.release();
  for (int m = 0; m < rows; ++m)
    for (int j = 0; j < N; ++j)
      P::finish(sums.get(m, j), init[m] + first + j * L, head + (N + j) * L, a[m] + depth).store(out[m] + first + j * L);
}

// As tile_outer, for up to kTileRows columns of a. Rows of b lie equally far apart.
template <class P>
using RowsOuter = void (*)(int rows, Index depth, const typename P::Word* const* a, Index column, const typename P::Word* const* b,
                           Index offset, typename P::Real* out, Index out_stride, bool first);

// Rows `count` of a, from `column` on, become the columns of a tile.
template <class P>
OST_HD void transpose_block(int rows, int count, const typename P::Word* const* a, Index column, typename P::Word (*to)[kTileWords]) {
  if constexpr (Vec<typename P::Real>::kLanes == kTileWords)
    if (rows == kTileRows && count == kTileWords) {
      typename P::Weights square[kTileWords];
#pragma GCC unroll 16
      for (int k = 0; k < kTileWords; ++k) square[k] = P::load(a[k] + column);
      transpose_rows<P>(square);
#pragma GCC unroll 16
      for (int m = 0; m < kTileRows; ++m) __builtin_memcpy(to[m], &square[m], sizeof to[m]);
      return;
    }
  for (int m = 0; m < rows; ++m)
    for (int k = 0; k < count; ++k) to[m][k] = a[k][column + m];
}

template <class P, class Tiles, int N>
__attribute__((noinline)) void outer_by_tiles(int rows, Index depth, const typename P::Word* const* a, Index column,
                                              const typename P::Word* const* b, Index offset, typename P::Real* out, Index out_stride,
                                              bool first) {
  using V = Vec<typename P::Real>;
  using Sums = TileSums<P, N>;
  constexpr typename Sums::Each each{};
  alignas(64) typename P::Word block[kTileRows][kTileWords];
  const Index apart = depth > 1 ? b[1] - b[0] : 0;
  Tiles tiles;
  tiles.require_even(b, int(depth));
  tiles.configure(Sums::config(rows, depth));  // the sums become zero
  Index k = 0;
  for (; k + kTileWords <= depth; k += kTileWords) {
    transpose_block<P>(rows, kTileWords, a + k, column, block);
    Sums::template add<Tiles, kOperands, kWeights>(tiles, block[0], kTileWords, b[k] + offset, apart, each);
  }
  if (k < depth) {
    transpose_block<P>(rows, int(depth - k), a + k, column, block);
    Sums::template add<Tiles, kLeftOperands, kLeftWeights>(tiles, block[0], kTileWords, b[k] + offset, apart, each);
  }
  Sums sums;
  sums.store(tiles, each);
  tiles.release();
  for (int m = 0; m < rows; ++m)
    for (int j = 0; j < N; ++j) {
      typename P::Real* to = out + m * out_stride + j * V::kLanes;
      const V sum = sums.get(m, j);
      (first ? sum : V::load(to) + sum).store(to);
    }
}

// By vectors, from one on.
template <class P, int Most>
struct TileProducts {
  RowsProduct<P> product[Most];
  RowsOuter<P> outer[Most];
};
template <class P, class Tiles, int... I>
constexpr TileProducts<P, sizeof...(I)> make_tile_products(Sequence<I...>) {
  if constexpr (P::kHead == 0)
    return {{product_by_tiles<P, Tiles, I + 1>...}, {outer_by_tiles<P, Tiles, I + 1>...}};
  else
    return {{product_by_tiles<P, Tiles, I + 1>...}, {}};
}
template <class P, class Tiles, int Most>
inline constexpr TileProducts<P, Most> kTileProducts = make_tile_products<P, Tiles>(typename MakeSequence<Most>::type());

template <class P, int Most>
OST_HD const TileProducts<P, Most>& tile_products([[maybe_unused]] Multiplier by) {
#if defined(OST_TILES) && defined(OST_TILE_MODEL)
  return by == Multiplier::kTiles ? kTileProducts<P, CpuTiles, Most> : kTileProducts<P, ModelTiles, Most>;
#elif defined(OST_TILES)
  return kTileProducts<P, CpuTiles, Most>;
#else
  return kTileProducts<P, ModelTiles, Most>;
#endif
}
#endif

}  // namespace ost::OST_SET
