// Kernels of cells with one phase whose recurrent weights fit the registers of one multiprocessor:
// a block takes 1, 2, 4 or 8 rows of the batch through all steps, and blocks exchange nothing. K is
// the register capacity in hidden units. Where a thread reads and writes in a step is a pointer that
// advances from step to step; what it reads is asked for ahead of the step.
#pragma once
#include <type_traits>

#include "backward.h"
#include "cell_walk.h"
#include "engine.h"

namespace ost::OST_SET {

template <class C>
inline constexpr bool kLoops = supports<C, LoopDriver>;

constexpr int kAhead = 4;  // cells of a thread whose inputs are on their way

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

// The cells of a block of `rows` rows: a thread has one unit, of every kRows-th row.
template <int K>
struct LoopCells {
  static constexpr int kRows = kThreads / K;  // rows from one cell of a thread to its next
  Index b0, batch, hidden;
  int rows, count;  // cells of a thread: 1, 2 or 4, as many as are on their way or fewer
  OST_HD LoopCells(const Block& block, Index batch, Index hidden, int rows)
      : b0(block.x * rows), batch(batch), hidden(hidden), rows(kept(rows)), count(kept(rows > kRows ? rows / kRows : 1)) {}
  OST_HD static int unit(int thread) { return thread % K; }
  OST_HD static int row(int thread, int c) { return thread / K + c * kRows; }
  OST_HD bool has(int thread, int c) const { return row(thread, c) < rows && b0 + row(thread, c) < batch && unit(thread) < hidden; }
  // Call f(c) for the cells of a thread. Where there is one, the compiler knows that c is 0.
  template <class F>
  OST_HD void for_own(F&& f) const {
    if (count == 1) return f(std::integral_constant<int, 0>{});
    OST_ROLLED
    for (int c = 0; c < count; ++c) f(c);
  }
  // Call f(thread, c, b, row, unit) for the cells within the problem, and in the others g(row, unit), always from the same thread.
  template <class F, class G>
  OST_HD void for_each(const Block& block, F&& f, G&& g) const {
    block.for_each_thread([&](int thread) {
      OST_ROLLED
      for (int c = 0; c < count; ++c)
        if (has(thread, c))
          f(thread, c, b0 + row(thread, c), row(thread, c), unit(thread));
        else if (row(thread, c) < rows)
          g(row(thread, c), unit(thread));
    });
  }
};
// Where the first cell of a thread stands: its row, or the first one where it has none.
template <int K>
OST_HD Index first_row(const LoopCells<K>& all, int thread) {
  return all.has(thread, 0) ? all.b0 + all.row(thread, 0) : all.b0;
}

template <class C, class T, class W, int K>
struct LoopKernel {
  static_assert(supports<C, LoopDriver>);
  Problem<T> p;
  int rows;
  static constexpr int kCount = C::kPhases[0].product.count();
  using E = Engine<T, W, K * kCount, K>;
  using Cells = LoopCells<K>;
  using V = typename CellNumbers<T, sizeof(W) == 2 && WordOf<W>::kParts == 1 ? 1 : 2>::Type;
  using Inputs = typename CellWalk<C, T>::Inputs;
  struct Space {
    typename E::Space product;
    T state[C::kStates][kLoopRows][K];
    Inputs ring[kAhead][kThreads];      // a thread reads what it has asked for itself
    int beyond, row_beyond[kLoopRows];  // the last step whose operand, of any row and of each, words do not hold
  };
  Grid grid() const { return {ceil_div(p.batch, rows)}; }

  // Where the first cell of a thread reads and writes.
  struct Places {
    const T* gx;  // of the next step that is asked for
    T *y, *c = nullptr, *saved;
    Numbers<T, kCount> scales;
    bool there;
  };
  // How far they go from step to step, and from cell to cell of a thread. An int is widened by the instruction that adds it.
  struct Strides {
    int gx, y, c, saved, next;
    Index next_y;
    OST_HD explicit Strides(const Problem<T>& p) {
      const Index forth = p.reverse ? -1 : 1, row = forth * p.batch * p.hidden;
      gx = kept(int(row * C::kColumns)), y = kept(int(forth * p.y.t)), c = kept(int(p.cells ? row : 0));
      saved = kept(int(p.saved ? row * C::kSaved : 0)), next = kept(int(Cells::kRows * p.hidden)), next_y = Cells::kRows * p.y.b;
    }
  };

  OST_HD void operator()(const Block& block, Space& space) const {
    const Cells cells(block, p.batch, p.hidden, rows);
    const Strides strides(p);
    const int taped = kept(int(p.saved != nullptr)), steps = kept(int(p.steps));
    // Some rows take part in some steps only, or lie where no stride leads from one to the next.
    const int general = kept(int(p.times.predecessors || p.times.lengths || (p.y.starts && cells.count > 1)));
    PerThread<typename E::Weights> weights;
    PerThread<Places> places;
    E::load(block, weights, static_cast<const typename E::Word*>(p.loop_panels));
    block.for_each_thread_sync([&](int thread) {
      if (thread == 0) space.beyond = -1;
      if (thread < kLoopRows) space.row_beyond[thread] = -1;
    });
    begin(block, space, cells, places, strides);
    block.sync_block();
    int at = 0;  // in the ring
    for (int step = 0; step < steps; ++step) {
      if (p.times.predecessors) restart(block, space, cells, step);
      E::multiply(block, weights, space.product, cells.rows);
      if constexpr (E::kScaled)
        if (space.beyond == step) multiply_floats(block, space, cells, step);
      block.for_each_thread([&](int thread) {
        Places& place = places[thread];
        cells.for_own([&](auto c) {
          async_wait<kAhead - 1>();
          Inputs& inputs = space.ring[(at + c) % kAhead][thread];
          const bool there = c == 0 ? place.there : cells.has(thread, c);
          if (there) run_cell(space, cells, thread, c, step, inputs.gx, place, strides, general, taped);
          ask(c, there && step + kAhead / cells.count < steps, inputs, place, strides);
        });
        place.gx += strides.gx, place.y += strides.y, place.c += strides.c, place.saved += strides.saved;
      });
      at = (at + cells.count) % kAhead;
      block.sync_block();
    }
  }

  // The states before the first step, and what the first steps read.
  OST_HD void begin(const Block& block, Space& space, const Cells& cells, PerThread<Places>& places, const Strides& strides) const {
    cells.for_each(
        block,
        [&](int, int, Index b, int row, int u) {
          set(space, row, u, 0, value(hidden_after<C>(p, kInitial, b), u), 0);
          if constexpr (C::kStates > 1) set(space, row, u, 1, value(cell_after(p, kInitial, b), u), 0);
        },
        [&](int row, int u) {
          for (int k = 0; k < C::kStates; ++k) set(space, row, u, k, T(0), 0);
        });
    block.for_each_thread([&](int thread) {
      Places& place = places[thread];
      const Index b = first_row(cells, thread), t = p.reverse ? p.steps - 1 : 0, at_b = t * p.batch + b;
      place.there = cells.has(thread, 0);
      const Index u = place.there ? cells.unit(thread) : 0;
      place.gx = p.gx + (at_b * p.hidden + u) * C::kColumns, place.y = at(p.y, t, b) + u;
      if constexpr (C::kStates > 1) place.c = (p.cells ? p.cells + t * p.batch * p.hidden : p.state) + b * p.hidden + u;
      place.saved = p.saved ? p.saved + at_b * C::kSaved * p.hidden + u : nullptr;
      place.scales = E::template load_scales<kCount>(static_cast<const typename E::Word*>(p.loop_panels), cells.unit(thread) * kCount);
      for (int i = 0; i < kAhead; ++i) {
        const int c = i % cells.count;
        ask(c, cells.has(thread, c) && i / cells.count < p.steps, space.ring[i][thread], place, strides);
        if (c + 1 == cells.count) place.gx += strides.gx;
      }
    });
  }

  // Load the states of rows that start again.
  OST_HD void restart(const Block& block, Space& space, const Cells& cells, int step) const {
    const StepMask mask = p.mask();
    const Index t = mask.time(step);
    cells.for_each(
        block,
        [&](int, int, Index b, int row, int u) {
          if (!mask.active(t, b) || mask.predecessor(t, b) != kRestart) return;
          set(space, row, u, 0, value(hidden_after<C>(p, kRestart, b), u), step);
          if constexpr (C::kStates > 1) set(space, row, u, 1, value(cell_after(p, kRestart, b), u), step);
        },
        [](int, int) {});
    block.sync_block();
  }

  // Ask for the projected input of a cell in the next step for which that has not been done, if there is one.
  OST_HD static void ask(int c, bool more, Inputs& to, const Places& place, const Strides& strides) {
    if (more) to.ask(place.gx + c * (strides.next * C::kColumns));
    async_commit();
  }

  // The cell after the product of a step, for one unit of one row.
  OST_HD void run_cell(Space& space, const Cells& cells, int thread, int c, int step, const T* gx, const Places& place,
                       const Strides& strides, int general, int taped) const {
    const int row = cells.row(thread, c), u = cells.unit(thread);
    T products[kCount], state[C::kStates];
    const Numbers<T, kCount> sums = space.product.template sum<kCount>(u * kCount, row);
    OST_UNROLL
    for (int column = 0; column < kCount; ++column)
      products[column] = E::kScaled ? sums.v[column] * place.scales.v[column] : sums.v[column];
    OST_UNROLL
    for (int k = 0; k < C::kStates; ++k) state[k] = space.state[k][row][u];
    T* y = place.y + c * strides.next_y;
    if (general) {
      const StepMask mask = p.mask();
      const Index t = mask.time(step), b = cells.b0 + row;
      if (!mask.active(t, b)) {
        mark(space, row, state[0], step + 1);
        return repeat_output<C>(p, mask, t, b, u);
      }
      y = at(p.y, t, b) + u;
    }
    ForwardOut<C, T> out;
    compute_active<C, T, 0, false, V>(p, 0, 0, u, gx, products, state, out);  // time and row are for norms
    OST_UNROLL
    for (int k = 0; k < C::kStates; ++k) set(space, row, u, k, state[k], step + 1);
    *y = state[0];
    if constexpr (C::kStates > 1) place.c[c * strides.next] = state[1];
    if (taped)
      for (int k = 0; k < C::kSaved; ++k) place.saved[c * (strides.next * C::kSaved) + k * p.hidden] = out.saved[k];
  }

  // The product of a step for rows that words of it do not hold: those of a caller's states, or of a GRU that starts from them.
  OST_HD void multiply_floats(const Block& block, Space& space, const Cells& cells, int step) const {
    const float* panels = static_cast<const float*>(p.panels[1]);
    const float* scales = E::scales(static_cast<typename E::Word*>(const_cast<void*>(p.loop_panels)));
    block.for_each_thread_sync([&](int thread) {
      OST_ROLLED
      for (Index out = thread; out < p.hidden * kCount; out += kThreads) {
        OST_ROLLED
        for (int row = 0; row < cells.rows; ++row) {
          if (space.row_beyond[row] != step) continue;
          T sum(0);
          for (int k = 0; k < p.hidden; ++k) sum = fma(panels[k * p.hidden * kCount + out], space.state[0][row][k], sum);
          space.product.replace(int(out), row, sum / scales[out]);
        }
      }
    });
  }

  // `step`: the one whose product takes the state.
  OST_HD static void set(Space& space, int row, int u, int k, T v, int step) {
    space.state[k][row][u] = v;
    if (k > 0) return;
    space.product.template put<1>(u, row, &v);
    mark(space, row, v, step);
  }
  // Remember a state that a word of the product does not hold.
  OST_HD static void mark(Space& space, int row, T v, int step) {
    if (E::kScaled && beyond_half(v)) space.beyond = space.row_beyond[row] = step;
  }
};

// A step is the cell's backward for every unit, and then the product, whose sums the same thread adds when it comes to the step before.
template <class C, class T, class V, int K>
struct BackwardLoopKernel {
  static_assert(supports<C, LoopDriver>);
  Problem<T> p;
  BackwardProblem<T> g;
  int rows;
  static constexpr Columns kColumns = C::kPhases[0].product;
  static constexpr int kCount = kColumns.count();
  using E = Engine<T, V, K, K * kCount>;
  using Cells = LoopCells<K>;
  // What a cell reads in a step; dcell is of c. An odd number of words avoids bank conflicts.
  struct Inputs {
    static constexpr int kSaved = larger(C::kSaved, 1), kWords = kSaved + 2 * C::kStates + 2;
    T saved[kSaved], previous[C::kStates], next[C::kStates], dy, dcell, odd[1 + kWords % 2];
  };
  struct Space {
    typename E::Space product;
    T d[C::kStates][kLoopRows][K];
    Inputs ring[kAhead][kThreads];  // a thread reads what it has asked for itself
  };
  Grid grid() const { return {ceil_div(p.batch, rows)}; }

  // Where the first cell of a thread reads, in the next step that is asked for, and writes.
  struct Places {
    const T *saved, *y, *c = nullptr, *dy, *dcell;
    T *da, *inputs_da, *dparam;
    int length;  // steps in which its row takes part
    bool there;
  };
  // How far they go from step to step, and from cell to cell of a thread.
  struct Strides {
    int saved, y, c, dy, dcell, da, inputs_da, dparam, next;
    Index next_y, next_dy, next_dcell;
    OST_HD Strides(const Problem<T>& p, const BackwardProblem<T>& g) {
      const Index back = p.reverse ? 1 : -1, row = back * p.batch * p.hidden;
      saved = kept(int(row * C::kSaved)), y = kept(int(back * p.y.t)), c = kept(int(C::kStates > 1 ? row : 0));
      dy = kept(int(back * g.dy.t)), dcell = kept(int(back * g.control.dcells.t)), da = kept(int(row * kCount));
      inputs_da = kept(int(kSharedDa<C> ? 0 : row * C::kInput.count())), dparam = kept(int(row * unit_rows<C>()));
      next = kept(int(Cells::kRows * p.hidden)), next_y = Cells::kRows * p.y.b, next_dy = Cells::kRows * g.dy.b;
      next_dcell = Cells::kRows * g.control.dcells.b;
    }
  };
  // Whether pointers that advance lead to all that a cell reads and writes. Where rows start again, repeat outputs, are cut, or tell the
  // squares of their gradients, the general code runs.
  OST_HD bool advances(const Cells& cells) const {
    const bool flat = p.y.starts || g.dy.starts || g.control.dcells.starts;
    return !p.times.predecessors && !g.control.cuts && !g.squares && !(flat && cells.count > 1);
  }

  OST_HD void operator()(const Block& block, Space& space) const {
    const Cells cells(block, p.batch, p.hidden, rows);
    const Strides strides(p, g);
    const int advancing = kept(int(advances(cells)));
    PerThread<typename E::Weights> weights;
    PerThread<Places> places;
    E::load(block, weights, static_cast<const typename E::Word*>(p.loop_transposed));
    cells.for_each(
        block,
        [&](int, int, Index b, int row, int u) {
          for (int k = 0; k < C::kStates; ++k) space.d[k][row][u] = (k == 0 ? g.dh : g.dc)[b * p.hidden + u];
        },
        [&](int row, int u) {
          const Numbers<T, kCount> zeros{};
          space.product.template put<kCount>(u * kCount, row, zeros.v);
        });
    begin(block, space, cells, places, strides, advancing);
    int at = 0;  // in the ring
    for (int s = int(p.steps) - 1; s >= 0; --s) {
      const Index t = p.mask().time(s);
      block.for_each_thread([&](int thread) {
        if (!advancing)
          return cells.for_own([&](auto c) {
            if (cells.has(thread, c)) run_general(space, cells, thread, c, t);
          });
        Places& place = places[thread];
        cells.for_own([&](auto c) {
          async_wait<kAhead - 1>();
          Inputs& inputs = space.ring[(at + c) % kAhead][thread];
          const bool there = c == 0 ? place.there : cells.has(thread, c);
          const int length = there ? length_of(cells, thread, c, place) : 0;
          if (there) run_advancing(space, cells, thread, c, s, int(t), length, inputs, place, strides);
          ask(c, s - kAhead / cells.count, length, inputs, place, strides);
        });
        advance(place, strides);
      });
      at = (at + cells.count) % kAhead;
      block.sync_block();
      E::multiply(block, weights, space.product, cells.rows);
      add_product(block, space, cells, t, advancing);
    }
    cells.for_each(
        block,
        [&](int, int, Index b, int row, int u) {
          g.dh[b * p.hidden + u] = space.d[0][row][u];
          if constexpr (C::kStates > 1) g.dc[b * p.hidden + u] = space.d[1][row][u];
        },
        [](int, int) {});
  }

  OST_HD void begin(const Block& block, Space& space, const Cells& cells, PerThread<Places>& places, const Strides& strides,
                    int advancing) const {
    if (!advancing) return;
    block.for_each_thread([&](int thread) {
      Places& place = places[thread];
      place.there = cells.has(thread, 0);
      const Index b = first_row(cells, thread), u = place.there ? cells.unit(thread) : 0;
      const Index t = p.mask().time(larger<Index>(p.steps, 1) - 1), at_b = t * p.batch + b, at_u = at_b * p.hidden + u;
      const auto from = [&](const Rows<const T>& rows) { return rows.data ? at(rows, t, b) + u : nullptr; };
      place.saved = C::kSaved > 0 ? p.saved + at_b * C::kSaved * p.hidden + u : nullptr, place.y = at(p.y, t, b) + u;
      if constexpr (C::kStates > 1) place.c = p.cells + at_u;
      place.dy = from(g.dy), place.dcell = from(g.control.dcells);
      place.da = g.da[1] + at_u * kCount, place.inputs_da = kSharedDa<C> ? nullptr : g.da[0] + at_u * C::kInput.count();
      place.dparam = C::kParams > 0 ? dparams_at(at_b, u) : nullptr;
      place.length = int(p.times.lengths ? p.times.lengths[b] : p.steps);
      for (int i = 0; i < kAhead; ++i) {
        const int c = i % cells.count;
        const int length = cells.has(thread, c) ? length_of(cells, thread, c, place) : 0;
        ask(c, int(p.steps) - 1 - i / cells.count, length, space.ring[i][thread], place, strides);
        if (c + 1 == cells.count) advance_reads(place, strides);
      }
    });
  }
  OST_HD T* dparams_at(Index row, Index u) const { return ost::OST_SET::dparams_at<C>(p, g, row, u); }
  OST_HD static void advance_reads(Places& place, const Strides& strides) {
    place.saved += strides.saved, place.y += strides.y, place.c += strides.c, place.dy += strides.dy, place.dcell += strides.dcell;
  }
  OST_HD static void advance(Places& place, const Strides& strides) {
    advance_reads(place, strides);
    place.da += strides.da, place.inputs_da += strides.inputs_da, place.dparam += strides.dparam;
  }

  // The steps of the row of a cell.
  OST_HD int length_of(const Cells& cells, int thread, int c, const Places& place) const {
    return c == 0 || !p.times.lengths ? place.length : int(p.times.lengths[cells.b0 + cells.row(thread, c)]);
  }
  // Whether a row that runs from its end begins with a step.
  OST_HD bool begins(int t, int length) const { return p.reverse && t == length - 1; }
  // Ask for what a cell reads in step s, the next one for which that has not been done.
  // `length`: the steps of its row, 0 where there is none.
  OST_HD void ask(int c, int s, int length, Inputs& to, const Places& place, const Strides& strides) const {
    const int t = p.reverse ? int(p.steps) - 1 - s : s;
    if (s >= 0 && t < length) {
      const T *saved = place.saved + c * (strides.next * C::kSaved), *y = place.y + c * strides.next_y;
      const bool follows = s > 0 && !begins(t, length);
      for (int k = 0; k < C::kSaved; ++k) copy_async<sizeof(T)>(&to.saved[k], saved + k * p.hidden);
      copy_async<sizeof(T)>(&to.next[0], y);
      if (follows) copy_async<sizeof(T)>(&to.previous[0], y + strides.y);
      if constexpr (C::kStates > 1) {
        const T* state = place.c + c * strides.next;
        copy_async<sizeof(T)>(&to.next[1], state);
        if (follows) copy_async<sizeof(T)>(&to.previous[1], state + strides.c);
      }
      if (g.dy.data) copy_async<sizeof(T)>(&to.dy, place.dy + c * strides.next_dy);
      if (g.control.dcells.data) copy_async<sizeof(T)>(&to.dcell, place.dcell + c * strides.next_dcell);
    }
    async_commit();
  }

  // A cell of step s, at time t, with what has been asked for.
  OST_HD void run_advancing(Space& space, const Cells& cells, int thread, int c, int s, int t, int length, const Inputs& inputs,
                            const Places& place, const Strides& strides) const {
    const int row = cells.row(thread, c), u = cells.unit(thread);
    const Index b = cells.b0 + row;
    Gathered<C, T> given;
    given.active = t < length, given.dy = given.dcell = T(0);
    OST_UNROLL
    for (int k = 0; k < C::kSaved; ++k) given.in.saved[k] = inputs.saved[k];
    OST_UNROLL
    for (int k = 0; k < C::kStates; ++k) given.in.previous[k] = inputs.previous[k], given.in.next[k] = inputs.next[k];
    for (int k = 0; k < C::kParams; ++k) given.in.param[k] = p.params[k * p.hidden + u];
    if (s == 0 || begins(t, length)) {
      given.in.previous[0] = value(hidden_after<C>(p, kInitial, b), u);
      if constexpr (C::kStates > 1) given.in.previous[1] = value(cell_after(p, kInitial, b), u);
    }
    if (given.active && g.dy.data) given.dy = inputs.dy;
    if (given.active && C::kStates > 1 && g.control.dcells.data) given.dcell = inputs.dcell;
    T d[2] = {space.d[0][row][u], C::kStates > 1 ? space.d[C::kStates - 1][row][u] : T(0)};
    BackwardOut<C, T> out;
    apply<C, T, 0>(p, g, b, given, T(0), d, out);
    *reinterpret_cast<Da*>(place.da + c * (strides.next * kCount)) = put(space, row, u, d, out);
    if constexpr (!kSharedDa<C>) {
      T* inputs_da = place.inputs_da + c * (strides.next * C::kInput.count());
      OST_UNROLL
      for (int column = 0; column < C::kInput.count(); ++column) inputs_da[column] = out.da[C::kInput.begin + column];
    }
    for (int k = 0; k < C::kParams; ++k)
      place.dparam[c * (strides.next * unit_rows<C>()) + k * p.hidden] = given.active ? out.dparam[k] : T(0);
  }
  OST_HD void run_general(Space& space, const Cells& cells, int thread, int c, Index t) const {
    const int row = cells.row(thread, c), u = cells.unit(thread);
    T d[2] = {space.d[0][row][u], C::kStates > 1 ? space.d[C::kStates - 1][row][u] : T(0)};
    BackwardOut<C, T> out;
    cell_backward<C, T, 0>(p, g, t, cells.b0 + row, u, d, out);
    put(space, row, u, d, out);
  }
  using Da = Numbers<T, kCount>;
  OST_HD static Da put(Space& space, int row, int u, const T* d, const BackwardOut<C, T>& out) {
    Da da;
    OST_UNROLL
    for (int column = 0; column < kCount; ++column) da.v[column] = out.da[kColumns.begin + column];
    space.product.template put<kCount>(u * kCount, row, da.v);
    OST_UNROLL
    for (int k = 0; k < C::kStates; ++k) space.d[k][row][u] = d[k];
    return da;
  }

  // Add dh of a step, and cut what goes on.
  OST_HD void add_product(const Block& block, Space& space, const Cells& cells, Index t, int advancing) const {
    cells.for_each(
        block,
        [&](int, int, Index b, int row, int u) {
          const T sum = space.product.template sum<1>(u, row).v[0];
          if (advancing) {  // da of a row that takes no part is zero
            space.d[0][row][u] += sum;
            return;
          }
          if (!p.mask().active(t, b)) return;
          T d[2] = {space.d[0][row][u] + sum, C::kStates > 1 ? space.d[C::kStates - 1][row][u] : T(0)};
          cut<C, T>(p, g, t, b, u, d);
          OST_UNROLL
          for (int k = 0; k < C::kStates; ++k) space.d[k][row][u] = d[k];
        },
        [](int, int) {});
  }
};

}  // namespace ost::OST_SET
