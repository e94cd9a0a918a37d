// The stepwise backward pass. Every step runs the cell's backward, then dh = da R. After all steps
// come dx = da W, and the gradients of weights and biases as sums over all rows: first within parts
// of the rows, whose number depends on T and B alone, then over the parts in order. So the order of
// all sums is fixed.
#pragma once
#include "forward.h"

namespace ost::OST_SET {

constexpr Index kPartRows = 256;  // rows of one chain of a weight gradient, at least
inline int gradient_parts(Index steps, Index batch) { return int(larger<Index>(1, smaller<Index>(8, steps * batch / kPartRows))); }

// Whether all products feed the same columns, so that one da serves them.
template <class C>
constexpr bool shares_da() {
  for (int q = 1; q < kProductCount<C>; ++q)
    if (!product_columns<C>(q).empty() && !(product_columns<C>(q) == product_columns<C>(0))) return false;
  return true;
}
template <class C>
inline constexpr bool kSharedDa = shares_da<C>();

template <class C, class T>
struct BackwardBeginKernel {
  Problem<T> p;
  BackwardProblem<T> g;
  struct Space {};
  Grid grid() const { return {ceil_div(p.batch * widest_state<C>(p), kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index i = block.x * kThreads + thread, widest = widest_state<C>(p), b = i / widest, u = i % widest;
      if (b >= p.batch) return;
      for (int k = 0; k < C::kStates; ++k) {
        const Index width = state_width<C>(p, k), at = b * width + u;
        if (is_projected<C>() && u >= width) continue;
        const T d = value(k == 0 ? g.dhn : g.dcn, at);
        const bool restart = p.mask().end(b) == kRestart;
        g.restarts[state_at<C>(p, k, b, u)] = restart ? d : T(0);
        (k == 0 ? g.dh : g.dc)[at] = restart ? T(0) : d;
      }
    });
  }
};

// Add the gradient of a step's output to the one that came through time: for h the total, for c all
// but the path through the step's own h. Then clip by value, not by norm.
template <class T>
OST_HD T incoming(const BackwardProblem<T>& g, T d, T more) {
  d += more;
  const T clip = g.control.clip_value;
  return clip > 0 ? select(clip < d, clip, select(d < -clip, -clip, d)) : d;
}
template <class C, class T>
OST_HD void add_incoming(const BackwardProblem<T>& g, T dy, T dcell, T* d) {
  d[0] = incoming(g, d[0], dy);
  if constexpr (C::kStates > 1) d[1] = incoming(g, d[1], dcell);
}
template <class T>
OST_HD T gradient_at(const Rows<const T>& rows, Index t, Index b, Index u) {
  return rows.data ? at(rows, t, b)[u] : T(0);
}

// Sum over the units of a row in a fixed order, one block a row: for the norm of the gradient, or
// of squares that the cell wrote.
template <class C, class T>
struct NormKernel {
  Problem<T> p;
  BackwardProblem<T> g;
  Index t;
  struct Space {
    double sums[kThreads];
  };
  Grid grid() const { return {p.batch}; }
  OST_HD void operator()(const Block& block, Space& space) const {
    const Index b = block.x;
    const bool active = p.mask().active(t, b);
    OST_UNROLL
    for (int k = 0; k < C::kStates; ++k) {
      block.for_each_thread_sync([&](int thread) {
        space.sums[thread] = 0;
        for (Index u = thread; u < state_width<C>(p, k) && active; u += kThreads) {
          const T* through_time = k == 0 ? g.dh : g.dc;
          const T d = incoming(g, through_time[b * state_width<C>(p, k) + u], gradient_at(k == 0 ? g.dy : g.control.dcells, t, b, u));
          space.sums[thread] += double(d) * double(d);
        }
      });
      block.for_each_thread_sync([&](int thread) {
        if (thread > 0) return;
        double sum = 0;
        for (int i = 0; i < kThreads; ++i) sum += space.sums[i];
        const double limit = double(g.control.clip_norm);
        g.scales[k * p.batch + b] = sum > limit * limit ? T(limit / ::sqrt(sum)) : T(1);
      });
    }
  }
};
template <class C, class T>
struct FlowKernel {
  Problem<T> p;
  BackwardProblem<T> g;
  Index t;
  using Space = typename NormKernel<C, T>::Space;
  Grid grid() const { return {p.batch, C::kStates}; }
  OST_HD void operator()(const Block& block, Space& space) const {
    const Index b = block.x, k = block.y;
    block.for_each_thread_sync([&](int thread) {
      space.sums[thread] = 0;
      for (Index u = thread; u < state_width<C>(p, k) && p.mask().active(t, b); u += kThreads)
        space.sums[thread] += double(g.squares[state_at<C>(p, k, b, u)]);
    });
    block.for_each_thread_sync([&](int thread) {
      if (thread > 0) return;
      double sum = 0;
      for (int i = 0; i < kThreads; ++i) sum += space.sums[i];
      g.control.flow[(t * C::kStates + k) * p.batch + b] = sum;
    });
  }
};

// Store the gradients of the columns of product Q that no norm takes, though one takes others.
template <class C, class T, int F, int Q, int kColumn = 0>
OST_HD void store_unnormed(const BackwardProblem<T>& g, Index i, const BackwardOut<C, T>& out) {
  constexpr Columns columns = product_columns<C>(Q);
  if constexpr (kColumn < columns.count()) {
    constexpr int column = columns.begin + kColumn;
    if constexpr (op_of<C>(Q, column) < 0 && C::kPhases[F].own.has(column)) g.dproducts[Q][i * columns.count() + kColumn] = out.da[column];
    store_unnormed<C, T, F, Q, kColumn + 1>(g, i, out);
  }
}
template <class C, class T, int F, int Q = 0>
OST_HD void store_da(const Problem<T>& p, const BackwardProblem<T>& g, Index row, Index u, const BackwardOut<C, T>& out) {
  constexpr Columns columns = product_columns<C>(Q), own = C::kPhases[F].own;
  for (int column = own.begin; column < own.end; ++column)
    if (columns.has(column)) g.da[Q][(row * p.hidden + u) * columns.count() + column - columns.begin] = out.da[column];
  if constexpr (Q + 1 < kProductCount<C> && !kSharedDa<C>) store_da<C, T, F, Q + 1>(p, g, row, u, out);
}

// The inputs of the cell's backward from memory, for one unit of one row; none of them comes
// through time.
template <class C, class T>
struct Gathered {
  BackwardIn<C, T> in;
  T dy, dcell;
  bool active;
};
// load(to, from) copies at once, or asynchronously to shared memory, complete after `async_wait`.
template <class C, class T, int F, class Load>
OST_HD void gather(const Problem<T>& p, const BackwardProblem<T>& g, Index t, Index b, Index u, Gathered<C, T>& given, Load&& load) {
  const StepMask mask = p.mask();
  const Index row = t * p.batch + b;
  const auto take = [&](T& to, const T* from, Index k) { from ? load(to, from + k) : void(to = T(0)); };
  const auto gradient = [&](T& to, const Rows<const T>& rows) { take(to, rows.data ? at(rows, t, b) : nullptr, u); };
  given.active = mask.active(t, b);
  if (!given.active || C::kStates == 1) given.dcell = T(0);
  if (!given.active) {
    if constexpr (is_projected<C>()) given.in = {};  // GCC 12 does not see that nothing reads it, and warns
    F == 0 && !is_projected<C>() && mask.repeats(t, b) != kSkipped ? gradient(given.dy, g.dy) : void(given.dy = T(0));
    return;
  }
  auto& in = given.in;
  const Index predecessor = mask.predecessor(t, b);
  for (int k = 0; k < C::kSaved; ++k) take(in.saved[k], saved_at<C>(p, t, b), k * p.hidden + u);
  if constexpr (is_projected<C>()) {  // no unit has an element of h
    in.previous[0] = in.next[0] = given.dy = T(0);
  } else {
    take(in.previous[0], hidden_after<C>(p, predecessor, b), u);
    take(in.next[0], at(p.y, t, b), u);
    gradient(given.dy, g.dy);
  }
  if constexpr (C::kStates > 1) {
    take(in.previous[1], cell_after(p, predecessor, b), u);
    take(in.next[1], p.cells + row * p.hidden, u);
    gradient(given.dcell, g.control.dcells);
  }
  for (int k = 0; k < C::kParams; ++k) take(in.param[k], p.params + k * p.hidden, u);
}

// Run the cell's backward of phase F. d holds the gradients of h and c that came through time;
// phase 0, which runs last, replaces them by those that go on without the products. `demitted`: the
// gradient of what the phase emitted, if another phase follows.
template <class C, class T, int F>
OST_HD void apply(const Problem<T>& p, const BackwardProblem<T>& g, Index b, Gathered<C, T>& given, T demitted, T* d,
                  BackwardOut<C, T>& out) {
  auto& in = given.in;
  for (int column = 0; column < C::kColumns; ++column) out.da[column] = T(0);
  if constexpr (C::kStates > 1) out.dcell = T(0);
  if (!given.active) {
    if (F == 0) d[0] += given.dy;
    return;
  }
  T all[2] = {d[0], C::kStates > 1 ? d[C::kStates - 1] : T(0)};
  add_incoming<C>(g, given.dy, given.dcell, all);
  for (int k = 0; k < C::kStates; ++k) in.dstate[k] = all[k], out.dprevious[k] = T(0);
  if (g.control.clip_norm > 0)
    for (int k = 0; k < C::kStates; ++k) in.dstate[k] = in.dstate[k] * g.scales[k * p.batch + b];
  in.demitted = demitted;
  if constexpr (scalar_count<C>() > 0) in.scalar = p.scalars;
  C::template backward<F>(in, out);
  if constexpr (F == 0)  // only phase 0 sets dprevious
    for (int k = 0; k < C::kStates; ++k) d[k] = out.dprevious[k];
}

// Store the gradients of a step.
template <class C, class T>
OST_HD T* dparams_at(const Problem<T>& p, const BackwardProblem<T>& g, Index row, Index u) {
  return g.dparams + (row * unit_rows<C>() + kGains<C>)*p.hidden + u;
}
// What the cell sees of a norm of the emitted row.
template <class C, class T>
OST_HD T carried(const Problem<T>& p, Index row, const BackwardIn<C, T>& in) {
  const T* moments = moments_at<C>(p, row, op_count<C>());
  return (C::emitted(in.saved, in.previous, in.next) - moments[0]) * moments[1];
}
template <class C, class T, int F>
OST_HD void store_gradients(const Problem<T>& p, const BackwardProblem<T>& g, Index t, Index b, Index u, const Gathered<C, T>& given,
                            const BackwardOut<C, T>& out) {
  const Index row = t * p.batch + b;
  store_da<C, T, F>(p, g, row, u, out);
  for_matrices<C>([&]<int Q>() {
    if constexpr (is_normed<C>(Q)) store_unnormed<C, T, F, Q>(g, row * p.hidden + u, out);
  });
  if constexpr (F == 0 && has_emitted_operand<C>())
    p.emitted[row * p.hidden + u] = given.active ? C::emitted(given.in.saved, given.in.previous, given.in.next) : T(0);
  if constexpr (norms_emitted<C>(F))
    if (given.active) g.demitted[b * p.hidden + u] = out.dcarried;
  if constexpr (F == 0 || kPhaseCount<C> > 1)
    for (int k = 0; k < C::kParams; ++k) dparams_at<C>(p, g, row, u)[k * p.hidden] = given.active ? out.dparam[k] : T(0);
  if constexpr (F == 0)
    if (g.squares && given.active) {
      if constexpr (!is_projected<C>()) g.squares[state_at<C>(p, 0, b, u)] = given.in.dstate[0] * given.in.dstate[0];
      if constexpr (C::kStates > 1) g.squares[state_at<C>(p, 1, b, u)] = out.dcell * out.dcell;
    }
}

template <class C, class T, int F>
OST_HD void cell_backward(const Problem<T>& p, const BackwardProblem<T>& g, Index t, Index b, Index u, T* d, BackwardOut<C, T>& out) {
  Gathered<C, T> given;
  gather<C, T, F>(p, g, t, b, u, given, [](T& to, const T* from) { to = *from; });
  if constexpr (phase_after_norm<C>() >= 0)
    if (given.active) given.in.carried = carried<C>(p, t * p.batch + b, given.in);
  if constexpr (kPhaseCount<C> > 1)  // one phase sets a gradient, the others leave it
    for (int k = 0; k < C::kParams; ++k)
      out.dparam[k] = F + 1 < kPhaseCount<C> ? dparams_at<C>(p, g, t * p.batch + b, u)[k * p.hidden] : T(0);
  constexpr bool emits = F + 1 < kPhaseCount<C> || is_projected<C>();
  apply<C, T, F>(p, g, b, given, emits ? g.demitted[b * p.hidden + u] : T(0), d, out);
  store_gradients<C, T, F>(p, g, t, b, u, given, out);
}

// Run the cell's backward for every unit of a step.
template <class C, class T, int F>
struct CellKernel {
  static_assert(supports<C, StepDriver>);
  Problem<T> p;
  BackwardProblem<T> g;
  Index t;
  struct Space {};
  Grid grid() const { return {ceil_div(p.batch * p.hidden, kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index i = block.x * kThreads + thread;
      if (i >= p.batch * p.hidden) return;
      T d[2] = {is_projected<C>() ? T(0) : g.dh[i], C::kStates > 1 ? g.dc[i] : T(0)};
      BackwardOut<C, T> out;
      cell_backward<C, T, F>(p, g, t, i / p.hidden, i % p.hidden, d, out);
      if (F > 0) return;
      if constexpr (!is_projected<C>()) g.dh[i] = d[0];
      if constexpr (C::kStates > 1) g.dc[i] = d[1];
    });
  }
};

// out[row][k] = init + sum over columns n of da[row][n] transposed[n][k]: dh of one step, or dx of all.
template <class C, class T, class V, int Q>
struct TransposedProductKernel {
  Problem<T> p;
  BackwardProblem<T> g;
  Index first_row, rows;  // rows of [T*B]
  T* out;                 // [B][depth]; null: dx
  bool add;
  using Space = ProductSpace<T, V>;
  Grid grid() const { return {ceil_div(matrix_depth<C, Q>(p), kTileN), ceil_div(rows, kTileM)}; }
  OST_HD void operator()(const Block& block, Space& space) const {
    const Index m0 = block.y * kTileM, n0 = block.x * kTileN, depth = matrix_depth<C, Q>(p), width = matrix_width<C, Q>(p);
    PerThread<Sums<T>> sums;
    clear(block, sums);
    multiply(
        block, space, Range{0, width},
        [&](int m, Index k) { return m0 + m < rows ? g.dproducts[Q][(first_row + m0 + m) * width + k] : T(0); },
        [&](Index k, int n) { return n0 + n < depth ? static_cast<const V*>(p.transposed[Q])[k * depth + n0 + n] : V{}; }, sums);
    for_sums<V>(block, sums, [&](int m, int n, T sum) {
      const Index row = first_row + m0 + m, t = row / p.batch, b = row % p.batch, k = n0 + n;
      if (m0 + m >= rows || k >= depth) return;
      T* to;
      if (out) {
        if (!p.mask().active(t, b)) return;
        to = out + b * depth + k;
      } else {
        if (g.dx.starts && g.dx.starts[b] + t >= g.dx.ends[b]) return;
        to = at(g.dx, t, b) + k;
      }
      *to = add ? *to + sum : sum;
    });
  }
};

// The same for dh of one step, which blocks share: each takes 64 outputs, 16 rows and a slice of the columns n. So many blocks as
// multiprocessors read the weights, and an element is the sum of its slices in order, which the next kernel adds up. How many slices there
// are is a matter of the sizes alone.
constexpr int kStepRows = 16, kStepOuts = 64;
constexpr Index kStepBlocks = 128, kStepColumns = 32;  // blocks that slices make, and columns of a slice, at least
OST_HD Index step_slices(Index batch, Index depth, Index width) {
  const Index tiles = larger<Index>(1, ceil_div(batch, kStepRows) * ceil_div(depth, kStepOuts));
  return larger<Index>(1, smaller(ceil_div(width, kStepColumns), kStepBlocks / tiles));
}
// Words of 2 bytes of many rows are tiles of matrix instructions instead.
template <class V>
OST_HD bool has_slices(Index batch) {
  return sizeof(V) > 2 || batch <= 64;
}

template <class C, class T, class V, int Q>
struct StepProductKernel {
  Problem<T> p;
  BackwardProblem<T> g;
  Index t;
  static constexpr int kGroups = kThreads / kStepOuts, kDeep = 512 / int(sizeof(T));  // columns in shared memory at a time
  static constexpr int kEach = kDeep / kGroups, kAtATime = 8, kPadded = kStepRows + 16 / int(sizeof(T));
  static_assert(kEach % kAtATime == 0 && kDeep * kStepRows % kThreads == 0);
  struct Space {
    alignas(16) T operand[kDeep][kPadded];
    T sums[kGroups][kStepRows][kStepOuts];
  };
  struct Sums {
    T v[kStepRows];
  };
  Index slices() const { return step_slices(p.batch, matrix_depth<C, Q>(p), matrix_width<C, Q>(p)); }
  Grid grid() const { return {ceil_div(matrix_depth<C, Q>(p), kStepOuts), ceil_div(p.batch, kStepRows), slices()}; }

  OST_HD void operator()(const Block& block, Space& space) const {
    const Index b0 = block.y * kStepRows, n0 = block.x * kStepOuts, depth = matrix_depth<C, Q>(p), width = matrix_width<C, Q>(p);
    const Range columns = part_of(width, block.z, step_slices(p.batch, depth, width));
    const T* da = g.dproducts[Q] + (t * p.batch + b0) * width;
    const int rows = int(smaller<Index>(kStepRows, p.batch - b0));
    PerThread<Sums> sums;
    clear(block, sums);
    for (Index k0 = columns.begin; k0 < columns.end; k0 += kDeep) {
      const int left = int(smaller<Index>(kDeep, columns.end - k0));
      block.for_each_thread_sync([&](int thread) { take(thread, da + k0, width, rows, left, space); });
      block.for_each_thread_sync([&](int thread) {
        const int first = thread / kStepOuts * kEach, out = thread % kStepOuts;
        const V* weights = static_cast<const V*>(p.transposed[Q]) + (k0 + first) * depth + n0 + out;
        multiply(space, weights, depth, first, n0 + out < depth ? left - first : 0, sums[thread]);
      });
    }
    block.for_each_thread_sync([&](int thread) {
      OST_UNROLL
      for (int row = 0; row < kStepRows; ++row) space.sums[thread / kStepOuts][row][thread % kStepOuts] = sums[thread].v[row];
    });
    block.for_each_thread_sync([&](int thread) {
      const int out = thread % kStepOuts;
      T* to = g.slices + (block.z * p.batch + b0) * depth + n0 + out;
      OST_ROLLED
      for (int row = thread / kStepOuts; row < rows && n0 + out < depth; row += kGroups) {
        T sum = space.sums[0][row][out];
        OST_UNROLL
        for (int group = 1; group < kGroups; ++group) sum += space.sums[group][row][out];
        to[row * depth] = sum;
      }
    });
  }
  // Copy gradients to shared memory, by column; all loads are in flight before the first one is stored.
  OST_HD static void take(int thread, const T* da, Index width, int rows, int left, Space& space) {
    constexpr int count = kDeep * kStepRows / kThreads, apart = kThreads / kDeep;
    const int k = thread % kDeep, first = thread / kDeep;
    T taken[count];
    OST_UNROLL
    for (int i = 0; i < count; ++i) taken[i] = first + i * apart < rows && k < left ? da[(first + i * apart) * width + k] : T(0);
    OST_UNROLL
    for (int i = 0; i < count; ++i) space.operand[k][first + i * apart] = as_number(Narrow<V>::of(taken[i]));
  }
  // Add `left` columns or kEach, whichever is less.
  OST_HD static void multiply(const Space& space, const V* weights, Index depth, int first, int left, Sums& sums) {
    OST_ROLLED
    for (int k = 0; k < kEach && k < left; k += kAtATime) {
      T w[kAtATime];
      OST_UNROLL
      for (int i = 0; i < kAtATime; ++i) w[i] = k + i < left ? T(as_number(weights[(k + i) * depth])) : T(0);
      OST_UNROLL
      for (int i = 0; i < kAtATime; ++i) {
        OST_UNROLL
        for (int row = 0; row < kStepRows; ++row) sums.v[row] = fma(w[i], space.operand[first + k + i][row], sums.v[row]);
      }
    }
  }
};
// Element `at` of [B][depth], summed over the slices; several loads are in flight.
template <class T>
OST_HD T sum_of_slices(const T* slices, Index count, Index apart, Index at) {
  constexpr int at_a_time = 8;
  T sum(0);
  for (Index k = 0; k < count; k += at_a_time) {
    T one[at_a_time];
    OST_UNROLL
    for (int i = 0; i < at_a_time; ++i) one[i] = k + i < count ? slices[(k + i) * apart + at] : T(0);
    OST_UNROLL
    for (int i = 0; i < at_a_time; ++i) sum += one[i];
  }
  return sum;
}

// Add up the slices of a step's product for the rows that take part in it.
template <class C, class T, int Q>
struct SumSlicesKernel {
  Problem<T> p;
  BackwardProblem<T> g;
  Index t;
  T* out;  // [B][depth]
  bool add;
  struct Space {};
  Grid grid() const { return {ceil_div(p.batch * matrix_depth<C, Q>(p), kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index depth = matrix_depth<C, Q>(p), count = p.batch * depth, i = block.x * kThreads + thread;
      if (i >= count || !p.mask().active(t, i / depth)) return;
      const T sum = sum_of_slices(g.slices, step_slices(p.batch, depth, matrix_width<C, Q>(p)), count, i);
      out[i] = add ? out[i] + sum : sum;
    });
  }
};

// Send what an active step hands on to the state of a restart, or drop it at a cut.
template <class C, class T>
OST_HD void cut(const Problem<T>& p, const BackwardProblem<T>& g, Index t, Index b, Index u, T* d) {
  const bool restart = p.mask().predecessor(t, b) == kRestart, cut = g.control.cuts && g.control.cuts[t * p.batch + b];
  for (int k = 0; k < C::kStates && (restart || cut); ++k) {
    if (is_projected<C>() && u >= state_width<C>(p, k)) continue;
    if (restart) g.restarts[state_at<C>(p, k, b, u)] += d[k];
    d[k] = T(0);
  }
}
template <class C, class T>
struct CutKernel {
  Problem<T> p;
  BackwardProblem<T> g;
  Index t;
  struct Space {};
  Grid grid() const { return {ceil_div(p.batch * widest_state<C>(p), kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index i = block.x * kThreads + thread, widest = widest_state<C>(p), b = i / widest, u = i % widest;
      if (b >= p.batch || !p.mask().active(t, b)) return;
      const Index width = output_width<C>(p);
      const bool h = !is_projected<C>() || u < width, c = C::kStates > 1 && (!is_projected<C>() || u < p.hidden);
      T d[2] = {h ? g.dh[b * width + u] : T(0), c ? g.dc[b * p.hidden + u] : T(0)};
      cut<C, T>(p, g, t, b, u, d);
      if (h) g.dh[b * width + u] = d[0];
      if (c) g.dc[b * p.hidden + u] = d[1];
    });
  }
};

// For cells of one phase the end of a step, number `step` in the order of processing: add dh, sum(), to the gradients of a unit of a row
// if that takes part, and run the cell's backward of the step before it.
template <class C, class T, class Sum>
OST_HD void end_step(const Problem<T>& p, const BackwardProblem<T>& g, Index step, Index b, Index u, Sum&& sum) {
  const Index at = b * p.hidden + u, t = p.mask().time(step);
  T d[2] = {g.dh[at], C::kStates > 1 ? g.dc[at] : T(0)};
  if (p.mask().active(t, b)) {
    d[0] += sum();
    cut<C, T>(p, g, t, b, u, d);
  }
  if (step > 0) {
    BackwardOut<C, T> out;
    cell_backward<C, T, 0>(p, g, p.mask().time(step - 1), b, u, d, out);
  }
  g.dh[at] = d[0];
  if constexpr (C::kStates > 1) g.dc[at] = d[1];
}
// End a step whose product blocks share by slices, which are added up.
template <class C, class T>
struct SumCellKernel {
  Problem<T> p;
  BackwardProblem<T> g;
  Index step;
  struct Space {};
  Grid grid() const { return {ceil_div(p.batch * p.hidden, kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index count = p.batch * p.hidden, i = block.x * kThreads + thread;
      if (i >= count) return;
      const Index slices = step_slices(p.batch, p.hidden, matrix_width<C, 1>(p));
      end_step<C, T>(p, g, step, i / p.hidden, i % p.hidden, [&] { return sum_of_slices(g.slices, slices, count, i); });
    });
  }
};

// Recompute what phase F saves, for all steps at once: with the states known, steps are
// independent.
template <class C, class T, class W, int F>
struct RecomputeKernel {
  Problem<T> p;
  using Space = StepSpace<T, W>;
  static constexpr int kCount = C::kPhases[F].product.count(), kUnits = kTileN / kCount;
  Grid grid() const { return {ceil_div(p.hidden, kUnits), ceil_div(p.steps * p.batch, kTileM)}; }
  OST_HD void operator()(const Block& block, Space& space) const {
    const Index first = block.y * kTileM, u0 = block.x * kUnits, rows = p.steps * p.batch;
    PerThread<Sums<T>> sums;
    clear(block, sums);
    multiply(
        block, space.product, Range{0, matrix_depth<C, F + 1>(p)},
        [&](int m, Index k) { return first + m < rows ? operand<C, T, F + 1>(p, first + m, k) : T(0); },
        [&](Index k, int n) {
          return n < kUnits * kCount && u0 + n / kCount < p.hidden
                     ? static_cast<const W*>(p.panels[F + 1])[(k * p.hidden + u0) * kCount + n]
                     : W{};
        },
        sums);
    for_sums<W>(block, sums, [&](int m, int n, T sum) { space.sums[m][n] = sum; });
    block.for_each_thread_sync([&](int thread) {
      OST_ROLLED
      for (int i = thread; i < kTileM * kUnits; i += kThreads) {
        const Index row = first + i / kUnits, u = u0 + i % kUnits;
        if (row < rows && u < p.hidden)
          step_cell<C, T, F, true>(p, p.mask(), row / p.batch, row % p.batch, u, space.sums[i / kUnits] + i % kUnits * kCount);
      }
    });
  }
};

// Compute one part of dW or dR, [depth][H][column]: the operand of matrix Q times da.
template <class C, class T, class V, int Q>
struct WeightKernel {
  Problem<T> p;
  BackwardProblem<T> g;
  using Space = ProductSpace<T, V>;
  Grid grid() const {
    return {ceil_div(matrix_width<C, Q>(p), kTileN), ceil_div(matrix_depth<C, Q>(p), kTileM), g.chunk.end - g.chunk.begin};
  }
  OST_HD void operator()(const Block& block, Space& space) const {
    const Index m0 = block.y * kTileM, n0 = block.x * kTileN, depth = matrix_depth<C, Q>(p), width = matrix_width<C, Q>(p);
    const Index part = g.parts_of_rows(p).begin + block.z;
    const Range rows = part_of(p.steps * p.batch, part, g.parts);
    PerThread<Sums<T>> sums;
    clear(block, sums);
    multiply(
        block, space, rows, [&](int m, Index row) { return m0 + m < depth ? operand<C, T, Q>(p, row, m0 + m) : T(0); },
        [&](Index row, int n) { return n0 + n < width ? g.dproducts[Q][row * width + n0 + n] : T(0); }, sums);
    for_sums<V>(block, sums, [&](int m, int n, T sum) {
      if (m0 + m < depth && n0 + n < width) g.sums[Q][(part * depth + m0 + m) * width + n0 + n] = sum;
    });
  }
};

// Write the operands of matrix Q as an array, for a library.
template <class C, class T, int Q>
struct OperandKernel {
  Problem<T> p;
  T* to;  // [T*B][depth]
  Range rows;
  struct Space {};
  Grid grid() const { return {ceil_div((rows.end - rows.begin) * matrix_depth<C, Q>(p), kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index depth = matrix_depth<C, Q>(p), i = rows.begin * depth + block.x * kThreads + thread, row = i / depth;
      if (row < rows.end) to[i] = operand<C, T, Q>(p, row, i % depth);
    });
  }
};

// Sums over the rows of a part of each column of rows [T*B][width].
template <class T>
struct ColumnKernel {
  const T* rows;
  T* sums;  // [part][width]
  Index count, width, parts;
  Range chunk;  // parts that are run now
  struct Space {};
  Grid grid() const { return {ceil_div(width, kThreads), chunk.end - chunk.begin}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index n = block.x * kThreads + thread, part = chunk.begin + block.y;
      if (n >= width) return;
      const Range mine = part_of(count, part, parts);
      T sum(0);
      for (Index row = mine.begin; row < mine.end; ++row) sum += rows[row * width + n];
      sums[part * width + n] = sum;
    });
  }
};

// Add the sums of the parts, in order, to a gradient in the user's layout.
template <class C, class T>
struct AddKernel {
  const T* sums;  // [part][depth][H][column]
  T* gradient;    // [gates*H][depth]
  Index depth, hidden, parts;
  int begin, columns;
  GateTable<C> table;
  struct Space {};
  AddKernel(const T* sums, T* gradient, Index depth, Index hidden, Index parts, int q)
      : sums(sums),
        gradient(gradient),
        depth(depth),
        hidden(hidden),
        parts(parts),
        begin(first_column<C>(q)),
        columns(matrix_columns<C>(q)),
        table(q) {}
  Grid grid() const { return {ceil_div(hidden * columns * depth, kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index i = block.x * kThreads + thread, k = i % depth, u = i / depth / columns;
      if (u >= hidden) return;
      const int column = int(i / depth % columns);
      T sum(0);
      for (Index part = 0; part < parts; ++part) sum += sums[((part * depth + k) * hidden + u) * columns + column];
      gradient[(table.gate[begin + column] * hidden + u) * depth + k] += sum;
    });
  }
};
template <class T>
struct AddRowsKernel {  // to[i] += sum over rows of from[row][i], of rows that are `stride` apart
  const T* from;
  T* to;
  Index count, width, stride;
  struct Space {};
  Grid grid() const { return {ceil_div(width, kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index i = block.x * kThreads + thread;
      if (i >= width) return;
      T sum(0);
      for (Index row = 0; row < count; ++row) sum += from[row * stride + i];
      to[i] += sum;
    });
  }
};
template <class T>
struct CopyKernel {
  const T* from;
  T* to;
  Index count;
  struct Space {};
  Grid grid() const { return {ceil_div(count, kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      if (const Index i = block.x * kThreads + thread; i < count) to[i] = from[i];
    });
  }
};

}  // namespace ost::OST_SET
