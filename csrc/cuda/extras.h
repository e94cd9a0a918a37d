// Kernels other than the recurrence: the table of times, dropout, the gradient of an embedding,
// Adam.
#pragma once
#include "../core/philox.h"
#include "../core/times.h"
#include "../core/update.h"
#include "problem.h"
#include "product.h"

namespace ost::OST_SET {

struct TimesKernel {  // one thread a row
  MaskInputs given;
  std::int32_t* predecessors;
  struct Space {};
  Grid grid() const { return {ceil_div(given.batch, kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index b = block.x * kThreads + thread;
      if (b >= given.batch) return;
      RowCursor place = RowCursor::first(given, b);
      for (Index s = 0; s < given.steps; ++s) {
        const Index t = given.from_end ? given.steps - 1 - s : s;
        predecessors[t * given.batch + b] = place.step(given, t, b);
      }
      predecessors[given.steps * given.batch + b] = place.state;
    });
  }
};

// Rows [T,B,D*H] of a layer: to = from * mask / (1 - rate), four units a thread; from and to may be the same.
template <class T>
struct DropKernel {
  const T* from;
  T* to;
  Index steps, batch, hidden, directions, layer, first_step;
  double rate;
  std::uint64_t key;
  struct Space {};
  Index quads() const { return ceil_div(hidden, 4); }
  Grid grid() const { return {ceil_div(steps * batch * directions * quads(), kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index i = block.x * kThreads + thread, quads_per_row = (hidden + 3) / 4, quad = i % quads_per_row,
                  d = i / quads_per_row % directions, row = i / quads_per_row / directions, t = row / batch, b = row % batch;
      if (row >= steps * batch) return;
      const RandomRow random = unit_row(key, std::uint32_t(layer * 2 + d), std::uint64_t(first_step + t), std::uint32_t(b));
      const RandomWords<std::uint32_t> words = random_words(random, std::uint32_t(quad));
      const std::uint32_t limit = dropout_limit(rate);
      const T scale = T(1 / (1 - rate));
      OST_UNROLL
      for (int k = 0; k < 4; ++k) {
        const Index u = quad * 4 + k, at = (row * directions + d) * hidden + u;
        if (u < hidden) to[at] = dropout_keeps(words.w[k], limit) ? from[at] * scale : T(0);
      }
    });
  }
};

template <class T>
struct DropFlatKernel {
  const T* from;
  T* to;
  Index count;
  double rate;
  std::uint64_t key;
  struct Space {};
  Grid grid() const { return {ceil_div(ceil_div(count, 4), kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index quad = block.x * kThreads + thread;
      const RandomWords<std::uint32_t> words = random_words(element_row(key, quad >> 32), std::uint32_t(quad));
      const std::uint32_t limit = dropout_limit(rate);
      const T scale = T(1 / (1 - rate));
      OST_UNROLL
      for (int k = 0; k < 4; ++k)
        if (const Index i = quad * 4 + k; i < count) to[i] = dropout_keeps(words.w[k], limit) ? from[i] * scale : T(0);
    });
  }
};

// to[id] += sum of the rows of `from` that belong to it, in their order. A block has one id, so
// there are no concurrent additions. The rows of an id are order[begin .. end); begin and end are
// found by binary search.
template <class T>
struct ScatterKernel {
  const T* from;             // [count][width]
  const Index *ids, *order;  // [count]: ids in ascending order, and the rows that they belong to
  T* to;                     // [rows][width]
  Index count, width, rows;
  struct Space {};
  Grid grid() const { return {rows, ceil_div(width, kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index k = block.y * kThreads + thread;
      if (k >= width) return;
      T sum(0);
      const Index begin = first(block.x), end = first(block.x + 1);
      for (Index i = begin; i < end; ++i) sum += from[order[i] * width + k];
      if (begin < end) to[block.x * width + k] += sum;
    });
  }
  OST_HD Index first(Index id) const {  // the first position whose id is not below `id`
    Index low = 0, high = count;
    while (low < high) {
      const Index middle = (low + high) / 2;
      if (ids[middle] < id)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
};

// out[m][n] = sum over k of a b, where the array library has no product.
template <class T>
struct MatmulKernel {
  const T *a, *b;
  T* out;  // [rows][columns]
  Index rows, columns, depth, a_row, a_k, b_k, b_column;
  using Space = ProductSpace<T, T>;
  Grid grid() const { return {ceil_div(columns, kTileN), ceil_div(rows, kTileM)}; }
  OST_HD void operator()(const Block& block, Space& space) const {
    const Index m0 = block.y * kTileM, n0 = block.x * kTileN;
    PerThread<Sums<T>> sums;
    clear(block, sums);
    multiply(
        block, space, Range{0, depth}, [&](int m, Index k) { return m0 + m < rows ? a[(m0 + m) * a_row + k * a_k] : T(0); },
        [&](Index k, int n) { return n0 + n < columns ? b[k * b_k + (n0 + n) * b_column] : T(0); }, sums);
    for_sums<T>(block, sums, [&](int m, int n, T sum) {
      if (m0 + m < rows && n0 + n < columns) out[(m0 + m) * columns + n0 + n] = sum;
    });
  }
};

// Copy rows [T,B,width] to rows in the caller's layout.
template <class T>
struct CopyRowsKernel {
  const T* from;
  Rows<T> to;
  Index steps, batch, width, first;  // steps, from the first on
  bool add;
  struct Space {};
  Grid grid() const { return {ceil_div(steps * batch * width, kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index i = block.x * kThreads + thread, row = i / width, t = first + row / batch, b = row % batch;
      if (row >= steps * batch || (to.starts && to.starts[b] + t >= to.ends[b])) return;
      T& v = at(to, t, b)[i % width];
      v = add ? v + from[i] : from[i];
    });
  }
};

// What a flag on the device decides: nothing changes where `where` points to a false one.
template <class T>
struct AdamKernel {
  AdamRule<T> rule;
  Index count;
  T* p;
  const T* g;
  T *m, *v;
  const bool* where;  // or null
  struct Space {};
  Grid grid() const { return {ceil_div(count, kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      if (const Index i = block.x * kThreads + thread; i < count && (!where || *where)) rule.apply(p[i], g[i], m[i], v[i]);
    });
  }
};

}  // namespace ost::OST_SET
