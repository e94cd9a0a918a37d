// Layer norm within a step: the moments of a row before the cell sees it, and the gradient on its way
// back through the norm. A block has one row. Its threads add up every 256th number each, and their
// sums are added in pairs, so the order of all sums is fixed.
#pragma once
#include "backward.h"

namespace ost::OST_SET {

template <class T>
struct NormSpace {
  T first[kThreads], second[kThreads];
};

// Add the sums of all threads to the first one's.
template <class T>
OST_HD void sum_threads(const Block& block, T* sums) {
  for (int n = kThreads / 2; n > 0; n /= 2)
    block.for_each_thread_sync([&](int thread) {
      if (thread < n) sums[thread] += sums[thread + n];
    });
}

// Store mean and inverse deviation of `count` numbers, of which load(i) returns one.
template <class T, class Load>
OST_HD void store_moments(const Block& block, NormSpace<T>& space, Index count, T* moments, Load&& load) {
  block.for_each_thread_sync([&](int thread) {
    T sum(0);
    for (Index i = thread; i < count; i += kThreads) sum += load(i);
    space.first[thread] = sum;
  });
  sum_threads(block, space.first);
  block.for_each_thread_sync([&](int thread) {
    const T mean = space.first[0] / T(count);
    T sum(0);
    for (Index i = thread; i < count; i += kThreads) {
      const T d = load(i) - mean;
      sum = fma(d, d, sum);
    }
    space.second[thread] = sum;
  });
  sum_threads(block, space.second);
  block.for_each_thread_sync([&](int thread) {
    if (thread > 0) return;
    moments[0] = space.first[0] / T(count);
    moments[1] = T(1 / ::sqrt(double(space.second[0]) / double(count) + kNormEps));
  });
}

// From the gradient of what a norm made, normed(i), to that of what it was given. gradient(i) returns
// the one; store(i, d) takes the other.
template <class T, class Gradient, class Normed, class Store>
OST_HD void norm_gradient(const Block& block, NormSpace<T>& space, Index count, T inverse, Gradient&& gradient, Normed&& normed,
                          Store&& store) {
  block.for_each_thread_sync([&](int thread) {
    T sum(0), dot(0);
    for (Index i = thread; i < count; i += kThreads) {
      const T d = gradient(i);
      sum += d, dot = fma(d, normed(i), dot);
    }
    space.first[thread] = sum, space.second[thread] = dot;
  });
  sum_threads(block, space.first);
  sum_threads(block, space.second);
  block.for_each_thread_sync([&](int thread) {
    const T mean = space.first[0] / T(count), dot = space.second[0] / T(count);
    for (Index i = thread; i < count; i += kThreads) store(i, inverse * (gradient(i) - mean - normed(i) * dot));
  });
}

// The columns of operation J in a row [H][column] of its product: element i of H times so many.
template <class C, int J>
struct OperationPlaces {
  static constexpr int kProduct = product_op<C>(J).product;
  static constexpr Columns kAll = product_columns<C>(kProduct), kMine = product_op<C>(J).columns;
  OST_HD static Index unit(Index i) { return i / kMine.count(); }
  OST_HD static int column(Index i) { return int(i % kMine.count()); }  // counted from the operation's first one
  OST_HD static Index place(Index i) { return unit(i) * kAll.count() + kMine.begin - kAll.begin + column(i); }
  OST_HD static Index gain(Index hidden, Index i) { return (gains_before<C>(J) + column(i)) * hidden + unit(i); }
};

// The moments of operation J in `rows` rows of [T B].
template <class C, class T, int J>
struct ProductMomentsKernel {
  Problem<T> p;
  Index first, rows;
  using Space = NormSpace<T>;
  using Places = OperationPlaces<C, J>;
  Grid grid() const { return {rows}; }
  OST_HD void operator()(const Block& block, Space& space) const {
    const Index row = first + block.x, t = row / p.batch, b = row % p.batch;
    if (!p.mask().active(t, b)) return;
    const T* product = Places::kProduct == 0 ? at(p.px, t, b) : normed_at<C, Places::kProduct>(p, row);
    store_moments(block, space, p.hidden * Places::kMine.count(), moments_at<C>(p, row, J),
                  [&](Index i) { return product[Places::place(i)]; });
  }
};

// The moments of what `rows` rows of [T B] emitted.
template <class C, class T, bool kRecompute>
struct EmittedMomentsKernel {
  Problem<T> p;
  Index first, rows;
  using Space = NormSpace<T>;
  Grid grid() const { return {rows}; }
  OST_HD void operator()(const Block& block, Space& space) const {
    const Index row = first + block.x;
    if (!p.mask().active(row / p.batch, row % p.batch)) return;
    const T* emitted = emitted_at<kRecompute>(p, row);
    store_moments(block, space, p.hidden, moments_at<C>(p, row, op_count<C>()), [&](Index u) { return emitted[u]; });
  }
};

// From da to the gradient of what the product of operation J made, and that of the operation's gains.
template <class C, class T, int J>
struct ProductNormGradientKernel {
  Problem<T> p;
  BackwardProblem<T> g;
  Index first, rows;
  using Space = NormSpace<T>;
  using Places = OperationPlaces<C, J>;
  Grid grid() const { return {rows}; }
  OST_HD void operator()(const Block& block, Space& space) const {
    constexpr int q = Places::kProduct;
    const Index row = first + block.x, count = p.hidden * Places::kMine.count(), begin = row * matrix_width<C, q>(p);
    const T *da = g.da[q] + begin, *normed = normed_at<C, q>(p, row);
    T *to = g.dproducts[q] + begin, *dgains = g.dparams + row * unit_rows<C>() * p.hidden;
    if (!p.mask().active(row / p.batch, row % p.batch)) {
      block.for_each_thread_sync([&](int thread) {
        for (Index i = thread; i < count; i += kThreads) to[Places::place(i)] = dgains[Places::gain(p.hidden, i)] = T(0);
      });
      return;
    }
    norm_gradient(
        block, space, count, moments_at<C>(p, row, J)[1],
        [&](Index i) { return da[Places::place(i)] * p.gains[Places::gain(p.hidden, i)]; },
        [&](Index i) { return normed[Places::place(i)]; },
        [&](Index i, T d) {
          to[Places::place(i)] = d;
          dgains[Places::gain(p.hidden, i)] = da[Places::place(i)] * normed[Places::place(i)];
        });
  }
};

// From the gradient of the norm of an emitted row, which the cell has left in `demitted`, to that of the row.
template <class C, class T, int F>
struct EmittedNormGradientKernel {
  Problem<T> p;
  BackwardProblem<T> g;
  Index t;
  using Space = NormSpace<T>;
  Grid grid() const { return {p.batch}; }
  OST_HD void operator()(const Block& block, Space& space) const {
    const Index b = block.x, row = t * p.batch + b;
    if (!p.mask().active(t, b)) return;
    T* d = g.demitted + b * p.hidden;
    const auto normed = [&](Index u) {
      Gathered<C, T> given;
      gather<C, T, F>(p, g, t, b, u, given, [](T& to, const T* from) { to = *from; });
      return carried<C>(p, row, given.in);
    };
    norm_gradient(
        block, space, p.hidden, moments_at<C>(p, row, op_count<C>())[1], [&](Index u) { return d[u]; }, normed,
        [&](Index u, T value) { d[u] = value; });
  }
};

}  // namespace ost::OST_SET
