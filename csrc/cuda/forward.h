// The stepwise forward pass: the input product of all steps, then one kernel for every phase of
// every step, with the product and the cell. Where a norm stands between the two, the product, the
// norm (norm.h) and the cell are kernels of their own.
#pragma once
#include "problem.h"
#include "product.h"

namespace ost::OST_SET {

// The gate that feeds each column, or -1; the table is an argument of a kernel.
template <class C>
struct GateTable {
  int gate[C::kColumns];
  explicit GateTable(const int* blocks, Columns columns) {
    for (int column = 0; column < C::kColumns; ++column) gate[column] = columns.has(column) ? gate_of<C>(blocks, column) : -1;
  }
  explicit GateTable(int q) {
    if (is_projection<C>(q))
      for (int column = 0; column < C::kColumns; ++column) gate[column] = column == 0 ? 0 : -1;
    else
      *this = GateTable(product_blocks<C>(q), product_columns<C>(q));
  }
};
template <class C>
constexpr int first_column(int q) {
  return is_projection<C>(q) ? 0 : product_columns<C>(q).begin;
}

// Pack [gates*H, depth] in the user's layout to panels and transposed panels of matrix q, in words
// W and V.
template <class C, class T, class W, class V>
struct PackKernel {
  const T* raw;
  W* panels;
  V* transposed;
  Index depth, hidden;
  int begin, columns;
  GateTable<C> table;
  struct Space {};
  PackKernel(const T* raw, W* panels, V* transposed, Index depth, Index hidden, int q)
      : raw(raw),
        panels(panels),
        transposed(transposed),
        depth(depth),
        hidden(hidden),
        begin(first_column<C>(q)),
        columns(matrix_columns<C>(q)),
        table(q) {}
  Grid grid() const { return {ceil_div(hidden * columns * depth, kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index i = block.x * kThreads + thread;
      if (i >= hidden * columns * depth) return;
      const Index k = i % depth, u = i / depth / columns;
      const int column = int(i / depth % columns);
      const T w = raw[(table.gate[begin + column] * hidden + u) * depth + k];
      panels[(k * hidden + u) * columns + column] = Narrow<W>::of(w);
      if (transposed) transposed[i] = Narrow<V>::of(w);
    });
  }
};

// Pack b_ih to the columns of the input product and b_hh to those of the recurrent ones; they are
// summed where both feed a column.
template <class C, class T>
struct PackBiasKernel {
  const T *bias_ih, *bias_hh;
  T* bias;
  Index hidden;
  GateTable<C> in{0}, recurrent{C::kRecurrentBlocks, {0, C::kColumns}};
  struct Space {};
  Grid grid() const { return {ceil_div(hidden * C::kColumns, kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index i = block.x * kThreads + thread, u = i / C::kColumns;
      if (u >= hidden) return;
      const int column = int(i % C::kColumns);
      T sum(0);
      if (bias_ih && in.gate[column] >= 0) sum += bias_ih[in.gate[column] * hidden + u];
      if (bias_hh && recurrent.gate[column] >= 0) sum += bias_hh[recurrent.gate[column] * hidden + u];
      bias[i] = sum;
    });
  }
};

// Compute gx = W x + b for all rows that take part.
template <class C, class T, class W>
struct ProjectKernel {
  Problem<T> p;
  using Space = ProductSpace<T, W>;
  static constexpr int kBegin = C::kInput.begin, kCount = C::kInput.count(), kUnits = kTileN / kCount;
  Grid grid() const { return {ceil_div(p.hidden, kUnits), ceil_div(p.steps * p.batch, kTileM)}; }
  OST_HD void operator()(const Block& block, Space& space) const {
    const Index first = block.y * kTileM, u0 = block.x * kUnits, rows = p.steps * p.batch;
    const StepMask mask = p.mask();
    PerThread<Sums<T>> sums;
    clear(block, sums);
    multiply(
        block, space, Range{0, p.input},
        [&](int m, Index k) {
          const Index row = first + m, t = row / p.batch, b = row % p.batch;
          return row < rows && mask.active(t, b) ? at(p.x, t, b)[k] : T(0);
        },
        [&](Index k, int n) { return unit(u0, n) < p.hidden ? static_cast<const W*>(p.panels[0])[(k * p.hidden + u0) * kCount + n] : W{}; },
        sums);
    for_sums<W>(block, sums, [&](int m, int n, T sum) {
      const Index row = first + m, u = unit(u0, n);
      const int column = kBegin + n % kCount;
      if (row < rows && u < p.hidden) p.gx[(row * p.hidden + u) * C::kColumns + column] = sum + p.bias[u * C::kColumns + column];
    });
    block.for_each_thread_sync([&](int thread) {
      for (Index i = thread; i < Index(kTileM) * kUnits; i += kThreads) {
        const Index row = first + i / kUnits, u = u0 + i % kUnits;
        for (int column = 0; column < C::kColumns; ++column)
          if ((column < kBegin || column >= kBegin + kCount) && row < rows && u < p.hidden)
            p.gx[(row * p.hidden + u) * C::kColumns + column] = p.bias[u * C::kColumns + column];
      }
    });
  }
  // Return the unit of a column of the tile; p.hidden past the last whole unit.
  OST_HD Index unit(Index u0, int n) const { return n < kUnits * kCount ? u0 + n / kCount : p.hidden; }
};

// Norm the columns of product Q of one unit that an operation takes, as the cell sees them: from
// the product to what the norms make of it, `normed` (null: not wanted), and times their gains.
template <class C, int Q, class T, int kColumn = 0>
OST_HD void take_norms(const Problem<T>& p, Index row, Index u, const T* product, T* normed, T* products) {
  if constexpr (kColumn < matrix_columns<C>(Q)) {
    constexpr int column = product_columns<C>(Q).begin + kColumn, op = op_of<C>(Q, column);
    T v = product[kColumn], gain(1);
    if constexpr (op >= 0) {
      constexpr int gain_row = gains_before<C>(op) + column - product_op<C>(op).columns.begin;
      const T* moments = moments_at<C>(p, row, op);
      v = (v - moments[0]) * moments[1], gain = p.gains[gain_row * p.hidden + u];
    }
    if (normed) normed[kColumn] = v;
    products[kColumn] = gain * v;
    take_norms<C, Q, T, kColumn + 1>(p, row, u, product, normed, products);
  }
}

// Compute gx = b + W x from a product that is there, of a library or of `ProductKernel`.
template <class C, class T>
struct SpreadKernel {
  Problem<T> p;
  struct Space {};
  Grid grid() const { return {ceil_div(p.steps * p.batch * p.hidden, kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index i = block.x * kThreads + thread, u = i % p.hidden, row = i / p.hidden, t = row / p.batch, b = row % p.batch;
      if (row >= p.steps * p.batch || !p.mask().active(t, b)) return;
      constexpr Columns in = C::kInput;
      const T* product = at(p.px, t, b) + u * in.count();
      [[maybe_unused]] T products[in.count()];
      if constexpr (is_normed<C>(0)) {
        T* normed = p.normed[0] ? normed_at<C, 0>(p, row) + u * in.count() : nullptr;
        take_norms<C, 0>(p, row, u, product, normed, products);
        product = products;
      }
      for (int column = 0; column < C::kColumns; ++column) {
        T v = p.bias[u * C::kColumns + column];
        if (in.has(column)) v += product[column - in.begin];
        p.gx[i * C::kColumns + column] = v;
      }
    });
  }
};

template <class T, class W>
struct StepSpace {
  ProductSpace<T, W> product;
  T sums[kTileM][kTileN + 1];
};

// Where a row emitted to: in the forward pass only one step is kept.
template <bool kRecompute, class T>
OST_HD T* emitted_at(const Problem<T>& p, Index row) {
  return p.emitted + (kRecompute ? row : row % p.batch) * p.hidden;
}
// What the phase before emitted, and the norm of it.
template <class C, class T, bool kRecompute>
OST_HD void take_emitted(const Problem<T>& p, Index row, Index u, ForwardIn<C, T>& in) {
  const T* moments = moments_at<C>(p, row, op_count<C>());
  in.emitted = emitted_at<kRecompute>(p, row)[u];
  in.carried = (in.emitted - moments[0]) * moments[1];
}

// Run the cell after the product of phase F, for one unit of one row that takes part, on numbers V.
// `state` is the state before the step, and becomes that after it; `out` is what the phase before
// returned.
template <class C, class T, int F, bool kRecompute = false, class V = T>
OST_HD void compute_active(const Problem<T>& p, Index t, Index b, Index u, const T* gx, const T* products, T* state,
                           ForwardOut<C, T>& out) {
  constexpr Columns product = C::kPhases[F].product, own = C::kPhases[F].own;
  ForwardIn<C, V> in;
  ForwardOut<C, V> result;
  for (int column = own.begin; column < own.end; ++column) {
    T a = gx[column];
    if (product.has(column)) a += products[column - product.begin];
    in.a[column] = a;
  }
  for (int k = 0; k < C::kStates; ++k) in.state[k] = state[k];
  for (int k = 0; k < C::kParams; ++k) in.param[k] = p.params[k * p.hidden + u];
  if constexpr (scalar_count<C>() > 0) in.scalar = p.scalars;
  if constexpr (kPhaseCount<C> > 1)
    for (int k = 0; k < C::kSaved; ++k) in.saved[k] = result.saved[k] = F > 0 ? out.saved[k] : T(0);
  if constexpr (norms_emitted<C>(F)) take_emitted<C, T, kRecompute>(p, t * p.batch + b, u, in);
  C::template forward<F>(in, result);
  for (int k = 0; k < C::kSaved; ++k) out.saved[k] = T(result.saved[k]);
  if constexpr (F + 1 < kPhaseCount<C> || is_projected<C>()) out.emitted = T(result.emitted);
  if constexpr (F + 1 == kPhaseCount<C>) {
    for (int k = is_projected<C>(); k < C::kStates; ++k) {
      out.state[k] = T(result.state[k]);
      if (!kRecompute) state[k] = out.state[k];
    }
  }
}
// Return false if the row takes no part.
template <class C, class T, int F, bool kRecompute = false>
OST_HD bool compute(const Problem<T>& p, const StepMask& mask, Index t, Index b, Index u, const T* gx, const T* products, T* state,
                    ForwardOut<C, T>& out) {
  if (!mask.active(t, b)) return false;
  compute_active<C, T, F, kRecompute>(p, t, b, u, gx, products, state, out);
  return true;
}

// Store the output that a row repeats which takes no part in a step.
template <class C, class T>
OST_HD void repeat_output(const Problem<T>& p, const StepMask& mask, Index t, Index b, Index u) {
  if (p.y.starts && p.y.starts[b] + t >= p.y.ends[b]) return;
  const Index from = mask.repeats(t, b);
  at(p.y, t, b)[u] = from == kSkipped ? T(0) : value(hidden_after<C>(p, from, b), u);
}

// Store what a step returned; for a row that takes no part, the output that it repeats.
// `kRecompute`: outputs and states are known, and only what the cell saves is stored. Where h is
// projected, the outputs are the projection's to store.
template <class C, class T, int F, bool kRecompute = false>
OST_HD void store_outputs(const Problem<T>& p, const StepMask& mask, Index t, Index b, Index u, bool ran, const ForwardOut<C, T>& out) {
  constexpr int last = kPhaseCount<C> - 1;
  const Index row = t * p.batch + b;
  if (!ran) {
    if constexpr (!kRecompute && F == last && !is_projected<C>()) repeat_output<C>(p, mask, t, b, u);
    return;
  }
  if (F < last || p.saved)
    for (int k = 0; k < C::kSaved; ++k) saved_at<C>(p, t, b)[k * p.hidden + u] = out.saved[k];
  if constexpr (F < last) {
    emitted_at<kRecompute>(p, row)[u] = out.emitted;
  } else if constexpr (!kRecompute) {
    if constexpr (is_projected<C>())
      emitted_at<false>(p, row)[u] = out.emitted;
    else
      at(p.y, t, b)[u] = out.state[0];
    if constexpr (C::kStates > 1) (p.cells ? p.cells + row * p.hidden : p.state + b * p.hidden)[u] = out.state[1];
  }
}

template <class C, class T, int F, bool kRecompute = false>
OST_HD bool finish(const Problem<T>& p, const StepMask& mask, Index t, Index b, Index u, const T* gx, const T* products, T* state) {
  ForwardOut<C, T> out;
  for (int k = 0; k < C::kSaved && F > 0; ++k) out.saved[k] = saved_at<C>(p, t, b)[k * p.hidden + u];
  const bool ran = compute<C, T, F, kRecompute>(p, mask, t, b, u, gx, products, state, out);
  store_outputs<C, T, F, kRecompute>(p, mask, t, b, u, ran, out);
  return ran;
}

// Run `finish` on states in memory.
template <class C, class T, int F, bool kRecompute = false>
OST_HD void step_cell(const Problem<T>& p, const StepMask& mask, Index t, Index b, Index u, const T* products) {
  T state[C::kStates] = {};
  if (mask.active(t, b)) {
    const Index predecessor = mask.predecessor(t, b);
    if constexpr (!is_projected<C>()) state[0] = value(hidden_after<C>(p, predecessor, b), u);
    if constexpr (C::kStates > 1) state[1] = value(cell_after(p, predecessor, b), u);
  }
  finish<C, T, F, kRecompute>(p, mask, t, b, u, p.gx + ((t * p.batch + b) * p.hidden + u) * C::kColumns, products, state);
}

// Run phase F of one step.
template <class C, class T, class W, int F>
struct StepKernel {
  static_assert(supports<C, StepDriver>);
  Problem<T> p;
  Index step;
  using Space = StepSpace<T, W>;
  static constexpr bool kEmitted = C::kPhases[F].operand == Operand::kEmitted;
  static constexpr int kCount = C::kPhases[F].product.count(), kUnits = kTileN / kCount;
  Grid grid() const { return {ceil_div(p.hidden, kUnits), ceil_div(p.batch, kTileM)}; }

  OST_HD void operator()(const Block& block, Space& space) const {
    const Index b0 = block.y * kTileM, u0 = block.x * kUnits, t = p.mask().time(step);
    const StepMask mask = p.mask();
    PerThread<Sums<T>> sums;
    clear(block, sums);
    multiply(
        block, space.product, Range{0, matrix_depth<C, F + 1>(p)},
        [&](int m, Index k) {
          const Index b = b0 + m;
          if (b >= p.batch || !mask.active(t, b)) return T(0);
          if (kEmitted) return p.emitted[b * p.hidden + k];
          return value(hidden_after<C>(p, mask.predecessor(t, b), b), k);
        },
        [&](Index k, int n) {
          return n < kUnits * kCount && u0 + n / kCount < p.hidden
                     ? static_cast<const W*>(p.panels[F + 1])[(k * p.hidden + u0) * kCount + n]
                     : W{};
        },
        sums);
    for_sums<W>(block, sums, [&](int m, int n, T sum) { space.sums[m][n] = sum; });
    block.for_each_thread_sync([&](int thread) {
      for (int i = thread; i < kTileM * kUnits; i += kThreads) {
        const Index b = b0 + i / kUnits, u = u0 + i % kUnits;
        if (b < p.batch && u < p.hidden) step_cell<C, T, F>(p, mask, t, b, u, space.sums[i / kUnits] + i % kUnits * kCount);
      }
    });
  }
};

// Return the operand of matrix Q in row t B + b; zeros where the row takes no part. `kStep`: of the
// step that runs, of which alone it is kept what a phase emitted.
template <class C, class T, int Q, bool kStep = false>
OST_HD T operand(const Problem<T>& p, Index row, Index k) {
  const Index t = row / p.batch, b = row % p.batch;
  const StepMask mask = p.mask();
  if (!mask.active(t, b)) return T(0);
  if constexpr (Q == 0) return at(p.x, t, b)[k];
  if constexpr (multiplies_emitted<C>(Q)) return emitted_at<!kStep>(p, row)[k];
  return value(hidden_after<C>(p, mask.predecessor(t, b), b), k);
}

// Compute a product whose columns are normed before the cell sees them, for `rows` rows of [T B].
template <class C, class T, class W, int Q, bool kStep>
struct ProductKernel {
  Problem<T> p;
  Index first, rows;
  using Space = ProductSpace<T, W>;
  Grid grid() const { return {ceil_div(matrix_width<C, Q>(p), kTileN), ceil_div(rows, kTileM)}; }
  OST_HD void operator()(const Block& block, Space& space) const {
    const Index m0 = block.y * kTileM, n0 = block.x * kTileN, width = matrix_width<C, Q>(p);
    PerThread<Sums<T>> sums;
    clear(block, sums);
    multiply(
        block, space, Range{0, matrix_depth<C, Q>(p)},
        [&](int m, Index k) { return m0 + m < rows ? operand<C, T, Q, kStep>(p, first + m0 + m, k) : T(0); },
        [&](Index k, int n) { return n0 + n < width ? static_cast<const W*>(p.panels[Q])[k * width + n0 + n] : W{}; }, sums);
    for_sums<W>(block, sums, [&](int m, int n, T sum) {
      if (m0 + m < rows && n0 + n < width) normed_at<C, Q>(p, first + m0 + m)[n0 + n] = sum;
    });
  }
};

// Run the cell of phase F on products that are there, or without one, for `rows` rows of [T B].
template <class C, class T, int F, bool kRecompute>
struct PointwiseKernel {
  static_assert(supports<C, StepDriver>);
  Problem<T> p;
  Index first, rows;
  struct Space {};
  static constexpr int kCount = matrix_columns<C>(F + 1);
  Grid grid() const { return {ceil_div(rows * p.hidden, kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index i = block.x * kThreads + thread, row = first + i / p.hidden, u = i % p.hidden;
      if (i >= rows * p.hidden) return;
      T products[kCount + 1];
      if constexpr (kCount > 0)
        if (p.mask().active(row / p.batch, row % p.batch)) {
          T* product = normed_at<C, F + 1>(p, row) + u * kCount;
          take_norms<C, F + 1>(p, row, u, product, product, products);
        }
      step_cell<C, T, F, kRecompute>(p, p.mask(), row / p.batch, row % p.batch, u, products);
    });
  }
};

template <class C, class T>
struct FinalKernel {
  Problem<T> p;
  struct Space {};
  Grid grid() const { return {ceil_div(p.batch * widest_state<C>(p), kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index i = block.x * kThreads + thread, widest = widest_state<C>(p), b = i / widest, u = i % widest;
      if (b >= p.batch) return;
      const Index end = p.mask().end(b);
      if (p.hn && u < output_width<C>(p)) p.hn[b * output_width<C>(p) + u] = value(hidden_after<C>(p, end, b), u);
      if (p.cn && C::kStates > 1 && u < state_width<C>(p, 1)) p.cn[b * p.hidden + u] = value(cell_after(p, end, b), u);
    });
  }
};

}  // namespace ost::OST_SET
