// Layer norm of rows that lie as a product leaves them, or as the cells do: sums over a whole row in one fixed order, so that
// the bits of a row do not depend on who asks for them. Nothing is ever read from the pad lanes.
#pragma once
#include "layout.h"

namespace ost::OST_SET {

// What a row is taken by: (x - mean) * scale.
template <class T>
struct Moments {
  T mean, scale;
};

constexpr int kNormChains = 4;  // sums that run side by side

// Calls f(place, elements left of the hidden units) for every vector of some columns, in the groups given.
struct VectorPlace {
  Index g;
  int units, column, u;
  // Where it is in a row of these columns.
  template <class S>
  OST_HD Index in(const S& s, Columns columns) const {
    return s.offset(g, columns.count()) + ((column - columns.begin) * units + u) * S::L;
  }
};
template <class S, class F>
OST_HD void for_places(const S& s, Columns columns, Range groups, F&& f) {
  for (Index g = groups.begin; g < groups.end; ++g) {
    const int units = S::U == 1 ? 1 : s.units(g);
    const Index left = s.hidden - g * S::U * S::L;
#pragma GCC unroll 4
    for (int column = columns.begin; column < columns.end; ++column)
      for (int u = 0; u < units; ++u) f(VectorPlace{g, units, column, u}, left - u * S::L);
  }
}

// Sums of vectors that f adds to chains of its own.
template <class T>
struct Chains {
  Vec<T> sums[kNormChains];
  OST_HD Chains() {
    for (Vec<T>& sum : sums) sum = Vec<T>(T(0));
  }
  OST_HD T total() const {
    T lanes[Vec<T>::kLanes];
    ((sums[0] + sums[1]) + (sums[2] + sums[3])).store(lanes);
    for (int n = Vec<T>::kLanes / 2; n > 0; n /= 2)
      for (int i = 0; i < n; ++i) lanes[i] += lanes[i + n];
    return lanes[0];
  }
};

template <class T>
OST_HD T inverse_deviation(T squares, Index n) {
  return T(1 / __builtin_sqrt(double(squares) / double(n) + kNormEps));
}

// Return the moments of n numbers a row: `all` calls its argument with (vector, chain, elements left) for each vector, in order.
template <class T, class F>
OST_HD Moments<T> moments(Index n, F&& all) {
  using V = Vec<T>;
  Chains<T> sums, squares;
  all([&](V x, int chain, Index left) OST_INLINE { sums.sums[chain] = sums.sums[chain] + (left < V::kLanes ? keep_lanes(x, left) : x); });
  const T mean = sums.total() / T(n);
  all([&](V x, int chain, Index left) OST_INLINE {
    V d = x - V(mean);
    if (left < V::kLanes) d = keep_lanes(d, left);
    squares.sums[chain] = fma(d, d, squares.sums[chain]);
  });
  return {mean, inverse_deviation(squares.total(), n)};
}

// The moments of operation J's columns in a row of these columns.
template <class C, int J, class S, class T = typename S::T>
OST_HD Moments<T> moments_of(const S& s, Columns columns, const T* row) {
  const Columns mine = product_op<C>(J).columns;
  return moments<T>(mine.count() * s.hidden, [&](auto&& f) OST_INLINE {
    for_places(s, mine, {0, s.groups}, [&](VectorPlace at, Index left) OST_INLINE {
      f(Vec<T>::load(row + at.in(s, columns)), (at.column - mine.begin) % kNormChains, left);
    });
  });
}

// Return the moments of a row of one number a unit, of which `load` gives the vector that begins at a unit.
template <class S, class F, class T = typename S::T>
OST_HD Moments<T> moments_of_units(const S& s, F&& load) {
  return moments<T>(s.hidden, [&](auto&& f) OST_INLINE {
    for (Index v = 0; v < s.vectors; v += kNormChains)
#pragma GCC unroll 4
      for (int k = 0; k < kNormChains; ++k)
        if (v + k < s.vectors) f(load((v + k) * S::L), k, s.hidden - (v + k) * S::L);
  });
}

}  // namespace ost::OST_SET
