// Where things lie: the packed weights, the rows of pre-activations, tape and gradients of one cell. Private to a kernel set.
//
// Hidden units come in vectors of `lanes`, vectors in groups of kUnits (fewer in the last). A row of `a` is
//     [group][column][vector of the group][lane]
// so that the columns of a group are one run of memory, and so is any range of columns. Rows of da are the same, one
// buffer a product, with the columns that the product feeds. Pad lanes have zero weights; what they hold is never read into a
// result: the backward pass sets their da to zero, since 0 * infinity in the forward pass may have left NaN there.
#pragma once
#include "../core/cell.h"
#include "product.h"

namespace ost::OST_SET {

// Product 0 is W x; product p + 1 is the recurrent product of phase p.
template <class C>
inline constexpr int kProductCount = kPhaseCount<C> + 1;
template <class C>
constexpr Columns product_columns(int q) {
  return q == 0 ? C::kInput : C::kPhases[q - 1].product;
}
template <class C>
constexpr const int* product_blocks(int q) {
  return q == 0 ? C::kInputBlocks : C::kRecurrentBlocks;
}

// Group enough vectors of units that the narrowest product still fills the accumulators.
template <class C>
constexpr int units_per_group() {
  int narrowest = kMaxVectors;
  for (int q = 0; q < kProductCount<C>; ++q) {
    const int n = product_columns<C>(q).count();
    if (n > 0 && n < narrowest) narrowest = n;
  }
  return narrowest == 1 ? 4 : narrowest == 2 ? 2 : 1;
}

template <class C, class T>
struct Layout {
  static constexpr int L = Vec<T>::kLanes, U = units_per_group<C>();
  Index input, hidden, vectors, padded, groups;

  OST_HD Layout(Index input, Index hidden)
      : input(input), hidden(hidden), vectors(ceil_div(hidden, L)), padded(vectors * L), groups(ceil_div(vectors, U)) {}
  OST_HD int units(Index g) const { return int(smaller<Index>(U, vectors - g * U)); }
  OST_HD static Index offset(Index g, int columns) { return g * U * L * columns; }  // of group g in a row of so many columns
  OST_HD Index depth(int q) const { return q == 0 ? input : hidden; }               // elements of the operand
  OST_HD Index width(int q) const { return product_columns<C>(q).count() * padded; }
  OST_HD Index row_stride(int q) const {
    return width(q) + L;
  }  // da rows: one vector more, so that rows 4 KB apart do not share cache sets
  OST_HD Index transposed_vectors(int q) const { return ceil_div(depth(q), L); }

  Index packed_size(bool backward) const {
    Index n = (C::kColumns + C::kParams) * padded;
    for (int q = 0; q < kProductCount<C>; ++q) n += depth(q) * width(q) + (backward ? width(q) * transposed_vectors(q) * L : 0);
    return n;
  }
};

template <class C>
constexpr int gate_of(const int* blocks, int column) {
  for (int g = 0; g < C::kGates; ++g)
    if (blocks[g] == column) return g;
  return -1;
}

// Calls f(position of the vector in a row of product q, first row of the weight that feeds it, lanes in use) for every vector of group g.
template <class C, class T, class F>
OST_HD void for_vectors(const Layout<C, T>& s, int q, Index g, F&& f) {
  const Columns columns = product_columns<C>(q);
  const int n = s.units(g);
  for (int column = columns.begin; column < columns.end; ++column)
    for (int u = 0; u < n; ++u) {
      const Index first = (g * s.U + u) * s.L;
      const Index row = gate_of<C>(product_blocks<C>(q), column) * s.hidden + first;
      f(s.offset(g, columns.count()) + ((column - columns.begin) * n + u) * s.L, row, int(smaller<Index>(s.L, s.hidden - first)));
    }
}

template <class C, class T>
void pack_forward(const Layout<C, T>& s, int q, const T* weight, T* panels) {
  constexpr int L = Vec<T>::kLanes;
  const Index depth = s.depth(q);
  const int columns = product_columns<C>(q).count();
  for (Index g = 0; g < s.groups; ++g) {
    const int vectors = columns * s.units(g);
    T* group = panels + depth * s.offset(g, columns);
    for_vectors<C, T>(s, q, g, [&](Index position, Index row, int lanes) {
      const int v = int((position - s.offset(g, columns)) / L);
      int p = 0;
      while (v >= piece(vectors, p).begin + piece(vectors, p).count) ++p;
      const Piece cut = piece(vectors, p);
      T* to = group + depth * cut.begin * L + (v - cut.begin) * L;
      for (Index k0 = 0; k0 < depth; k0 += 16)  // 16 x lanes at a time: the lines written stay in L1
        for (int lane = 0; lane < L; ++lane)
          for (Index k = k0; k < smaller(depth, k0 + 16); ++k)
            to[k * cut.count * L + lane] = lane < lanes ? weight[(row + lane) * depth + k] : T(0);
    });
  }
}

template <class C, class T>
void pack_transposed(const Layout<C, T>& s, int q, const T* weight, T* panels) {
  constexpr int L = Vec<T>::kLanes;
  const Index depth = s.depth(q), width = s.width(q);
  for (Index g = 0; g < s.groups; ++g)
    for_vectors<C, T>(s, q, g, [&](Index position, Index row, int lanes) {
      for (Index o = 0; o < plain_groups(s.transposed_vectors(q)); ++o) {
        const int n = plain_vectors(s.transposed_vectors(q), o);
        const Index first = o * kMaxVectors * L;
        T* to = panels + width * first + position * n * L;
        for (int lane = 0; lane < L; ++lane, to += n * L)
          for (Index k = 0; k < n * L; ++k) to[k] = lane < lanes && first + k < depth ? weight[(row + lane) * depth + first + k] : T(0);
      }
    });
}

template <class C, class T>
void pack(const RawWeights<T>& raw, Index input, Index hidden, bool backward, T* memory, PackedWeights<T>* out) {
  const Layout<C, T> s(input, hidden);
  *out = {};
  out->input = input, out->hidden = hidden;
  for (int q = 0; q < kProductCount<C>; ++q) {
    out->panels[q] = memory;
    pack_forward<C, T>(s, q, q == 0 ? raw.weight_ih : raw.weight_hh, memory);
    memory += s.depth(q) * s.width(q);
    if (!backward) continue;
    out->transposed[q] = memory;
    pack_transposed<C, T>(s, q, q == 0 ? raw.weight_ih : raw.weight_hh, memory);
    memory += s.width(q) * s.transposed_vectors(q) * s.L;
  }
  // b_ih lands on the input columns, b_hh on the recurrent ones, summed where they overlap.
  T* bias = memory;
  for (Index i = 0; i < C::kColumns * s.padded; ++i) bias[i] = 0;
  for (int q = 0; q < kProductCount<C>; ++q) {
    const T* from = q == 0 ? raw.bias_ih : raw.bias_hh;
    if (!from) continue;
    const Columns columns = product_columns<C>(q);
    for (Index g = 0; g < s.groups; ++g)
      for_vectors<C, T>(s, q, g, [&](Index position, Index row, int lanes) {
        const Index in_group = position - s.offset(g, columns.count());
        T* to = bias + s.offset(g, C::kColumns) + columns.begin * s.units(g) * s.L + in_group;
        for (int lane = 0; lane < lanes; ++lane) to[lane] += from[row + lane];
      });
  }
  out->bias = bias;
  T* params = bias + C::kColumns * s.padded;
  for (int p = 0; p < C::kParams; ++p)
    for (Index u = 0; u < s.padded; ++u) params[p * s.padded + u] = u < s.hidden ? raw.params[p * s.hidden + u] : T(0);
  out->params = params;
}

}  // namespace ost::OST_SET
