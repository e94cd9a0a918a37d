// Kernels of cells with one phase whose recurrent weights fit the registers of one multiprocessor:
// a block takes a few rows of the batch through all steps, and blocks exchange nothing. K is the
// register capacity in hidden units.
#pragma once
#include "backward.h"
#include "engine.h"

namespace ost::OST_SET {

template <class C>
inline constexpr bool kLoops = supports<C, LoopDriver>;

// Recurrent weights in the order in which the two passes load them, from the packed panels
// [in][column] and transposed panels [column][out].
template <class W>
struct LoopWeight {
  const W* from;
  Index hidden, columns, stride;
  bool transposed;
  OST_HD W operator()(int out, int in) const {
    return (transposed ? out < hidden && in < columns : in < hidden && out < columns) ? from[in * stride + out] : W{};
  }
};

// Call f(row, unit) for every unit of a block's rows, always from the same thread.
template <int K, class F>
OST_HD void for_each_unit(const Block& block, F&& f) {
  block.for_each_thread([&](int thread) {
    OST_ROLLED
    for (int i = thread; i < K * kLoopRows; i += kThreads) f(i / K, i % K);
  });
}

template <class C, class T, class W, int K>
struct LoopKernel {
  static_assert(supports<C, LoopDriver>);
  Problem<T> p;
  static constexpr int kCount = C::kPhases[0].product.count();
  using E = Engine<T, W, K * kCount, K>;
  struct Space {
    typename E::Space product;
    T state[C::kStates][kLoopRows][K];
    alignas(16) T gx[kLoopRows][K][C::kColumns];  // gx of the next step, copied while the product runs
  };
  Grid grid() const { return {ceil_div(p.batch, kLoopRows)}; }

  OST_HD void operator()(const Block& block, Space& space) const {
    const Index b0 = block.x * kLoopRows;
    const StepMask mask = p.mask();
    PerThread<typename E::Weights> weights;
    E::load(block, weights, static_cast<const typename E::Word*>(p.loop_panels));
    for_each_unit<K>(block, [&](int row, int u) {
      const Index b = b0 + row;
      const bool there = b < p.batch && u < p.hidden;
      set(space, row, u, 0, there ? value(hidden_after<C>(p, kInitial, b), u) : T(0));
      if constexpr (C::kStates > 1) set(space, row, u, 1, there ? value(cell_after(p, kInitial, b), u) : T(0));
      if (there && p.steps > 0) prefetch_async(space, mask, 0, b, row, u);
    });
    block.sync_block();
    for (Index step = 0; step < p.steps; ++step) {
      const Index t = mask.time(step);
      if (p.times.predecessors) {
        for_each_unit<K>(block, [&](int row, int u) {
          const Index b = b0 + row;
          if (b >= p.batch || u >= p.hidden || !mask.active(t, b) || mask.predecessor(t, b) != kRestart) return;
          set(space, row, u, 0, value(hidden_after<C>(p, kRestart, b), u));
          if constexpr (C::kStates > 1) set(space, row, u, 1, value(cell_after(p, kRestart, b), u));
        });
        block.sync_block();
      }
      E::multiply(block, weights, space.product);
      block.for_each_thread([&](int) { async_wait(); });
      for_each_unit<K>(block, [&](int row, int u) {
        const Index b = b0 + row;
        if (b >= p.batch || u >= p.hidden) return;
        T products[kCount], state[C::kStates];
        OST_UNROLL
        for (int column = 0; column < kCount; ++column) products[column] = space.product.sum(u * kCount + column, row);
        OST_UNROLL
        for (int k = 0; k < C::kStates; ++k) state[k] = space.state[k][row][u];
        const bool ran = finish<C, T, 0>(p, mask, t, b, u, space.gx[row][u], products, state);
        if (step + 1 < p.steps) prefetch_async(space, mask, step + 1, b, row, u);
        OST_UNROLL
        for (int k = 0; k < C::kStates; ++k)
          if (ran) set(space, row, u, k, state[k]);
      });
      block.sync_block();
    }
  }

  OST_HD void prefetch_async(Space& space, const StepMask& mask, Index step, Index b, int row, int u) const {
    const Index t = mask.time(step);
    if (!mask.active(t, b)) return;
    copy_async<sizeof(space.gx[0][0])>(space.gx[row][u], p.gx + ((t * p.batch + b) * p.hidden + u) * C::kColumns);
  }
  OST_HD static void set(Space& space, int row, int u, int k, T v) {
    space.state[k][row][u] = v;
    if (k == 0) space.product.put(u, row, v);
  }
};

template <class C, class T, class V, int K>
struct BackwardLoopKernel {
  static_assert(supports<C, LoopDriver>);
  Problem<T> p;
  BackwardProblem<T> g;
  static constexpr Columns kColumns = C::kPhases[0].product;
  static constexpr int kCount = kColumns.count();
  using E = Engine<T, V, K, K * kCount>;
  struct Space {
    typename E::Space product;
    T d[C::kStates][kLoopRows][K];
  };
  Grid grid() const { return {ceil_div(p.batch, kLoopRows)}; }

  OST_HD void operator()(const Block& block, Space& space) const {
    const Index b0 = block.x * kLoopRows;
    const StepMask mask = p.mask();
    PerThread<typename E::Weights> weights;
    E::load(block, weights, static_cast<const typename E::Word*>(p.loop_transposed));
    for_each_unit<K>(block, [&](int row, int u) {
      const bool there = b0 + row < p.batch && u < p.hidden;
      for (int k = 0; k < C::kStates; ++k) space.d[k][row][u] = there ? (k == 0 ? g.dh : g.dc)[(b0 + row) * p.hidden + u] : T(0);
      for (int column = 0; column < kCount; ++column) space.product.put(u * kCount + column, row, T(0));
    });
    block.sync_block();
    for (Index s = p.steps; s-- > 0;) {
      const Index t = mask.time(s);
      for_each_unit_sync(block, b0, [&](Index b, int row, int u) {
        T d[2] = {space.d[0][row][u], C::kStates > 1 ? space.d[C::kStates - 1][row][u] : T(0)};
        BackwardOut<C, T> out;
        cell_backward<C, T, 0>(p, g, t, b, u, d, out);
        OST_UNROLL
        for (int column = 0; column < kCount; ++column) space.product.put(u * kCount + column, row, out.da[kColumns.begin + column]);
        OST_UNROLL
        for (int k = 0; k < C::kStates; ++k) space.d[k][row][u] = d[k];
      });
      E::multiply(block, weights, space.product);
      for_each_unit_sync(block, b0, [&](Index b, int row, int u) {
        if (!mask.active(t, b)) return;
        space.d[0][row][u] += space.product.sum(u, row);
        T d[2] = {space.d[0][row][u], C::kStates > 1 ? space.d[C::kStates - 1][row][u] : T(0)};
        cut<C, T>(p, g, t, b, u, d);
        OST_UNROLL
        for (int k = 0; k < C::kStates; ++k) space.d[k][row][u] = d[k];
      });
    }
    for_each_unit_sync(block, b0, [&](Index b, int row, int u) {
      g.dh[b * p.hidden + u] = space.d[0][row][u];
      if constexpr (C::kStates > 1) g.dc[b * p.hidden + u] = space.d[1][row][u];
    });
  }

  // Call f(b, row, unit) for the rows and units within the problem, then a barrier of the block.
  template <class F>
  OST_HD void for_each_unit_sync(const Block& block, Index b0, F&& f) const {
    for_each_unit<K>(block, [&](int row, int u) {
      if (b0 + row < p.batch && u < p.hidden) f(b0 + row, row, u);
    });
    block.sync_block();
  }
};

}  // namespace ost::OST_SET
