// One unit of one row on its way through the steps of a kernel for all steps: its state, and where a
// step reads and writes, as pointers that advance by a stride.
#pragma once
#include "persistent.h"

namespace ost::OST_SET {

template <class C, class T>
struct CellWalk {
  struct alignas(C::kColumns % 4 == 0 ? 16 : sizeof(T)) Inputs {
    T gx[C::kColumns];
  };
  // How far pointers go from step to step. An int is widened by the instruction that adds it.
  struct Strides {
    int gx, y, c, saved;
    OST_HD explicit Strides(const Problem<T>& p) {
      const Index forth = p.reverse ? -1 : 1, row = forth * p.batch * p.hidden;
      gx = kept(int(row * C::kColumns)), y = kept(int(forth * p.y.t)), c = kept(int(p.cells ? row : 0));
      saved = kept(int(p.saved ? row * C::kSaved : 0));
    }
  };

  bool there;  // whether the row and the unit are
  Index b, u;
  T state[C::kStates];
  const T* gx;
  T *y, *c = nullptr, *saved;

  // Stand before the first step; of a row or a unit that is not there the state is zero.
  OST_HD void begin(const Problem<T>& p, Index row, Index unit) {
    const StepMask mask = p.mask();
    const Index t = mask.time(0);
    there = row < p.batch && unit < p.hidden;
    b = there ? row : 0, u = there ? unit : 0;
    state[0] = there ? value(hidden_after<C>(p, kInitial, b), u) : T(0);
    if constexpr (C::kStates > 1) state[1] = there ? value(cell_after(p, kInitial, b), u) : T(0);
    if (there) restart(p, 0);
    gx = p.gx + ((t * p.batch + b) * p.hidden + u) * C::kColumns;
    y = at(p.y, t, b) + u;
    if constexpr (C::kStates > 1) c = (p.cells ? p.cells + t * p.batch * p.hidden : p.state) + b * p.hidden + u;
    saved = p.saved ? p.saved + (t * p.batch + b) * C::kSaved * p.hidden + u : nullptr;
  }
  // Load the state that a step starts from, if it is that of a restart.
  OST_HD void restart(const Problem<T>& p, Index step) {
    if (!p.times.predecessors || step >= p.steps) return;
    const StepMask mask = p.mask();
    const Index t = mask.time(step);
    if (!mask.active(t, b) || mask.predecessor(t, b) != kRestart) return;
    for (int k = 0; k < C::kStates; ++k) state[k] = value(k == 0 ? p.restart_h : p.restart_c, u);
  }
  // Ask for the projected input of the next step for which that has not been done, if there is one.
  OST_HD void ask(Inputs& to, bool more, const Strides& strides) {
    if (there && more) {
      if constexpr (C::kColumns % 4 == 0)
        copy_async<sizeof(Inputs)>(&to, gx);
      else
        for (int column = 0; column < C::kColumns; ++column) copy_async<sizeof(T)>(&to.gx[column], gx + column);
    }
    async_commit();
    gx += strides.gx;
  }
  // Store what a step returned for a row that takes part.
  OST_HD void store(const Problem<T>& p, const ForwardOut<C, T>& out, bool taped) const {
    *y = out.state[0];
    if constexpr (C::kStates > 1) *c = out.state[1];
    if (taped)
      for (int k = 0; k < C::kSaved; ++k) saved[k * p.hidden] = out.saved[k];
  }
  OST_HD void advance(const Strides& strides) { y += strides.y, c += strides.c, saved += strides.saved; }
};

// The way back. `ask` goes ahead of the steps, `store` with them.
template <class C, class T>
struct CellWalkBack {
  static_assert(kProductCount<C> == 2);
  static constexpr int kQ = kSharedDa<C> ? 1 : kProductCount<C>;  // products with a da of their own
  // Call f<Q>() for each of them.
  template <class F>
  OST_HD static void for_products(F&& f) {
    f.template operator()<0>();
    if constexpr (kQ > 1) f.template operator()<1>();
  }
  using Inputs = Gathered<C, T>;
  struct Strides {
    int saved, y, c, dy, dcell, row;  // row: a number of each unit and row
    OST_HD Strides(const Problem<T>& p, const BackwardProblem<T>& g) {
      const Index forth = p.reverse ? 1 : -1;
      row = kept(int(forth * p.batch * p.hidden)), saved = kept(row * C::kSaved), c = C::kStates > 1 ? row : 0;
      y = kept(int(forth * p.y.t)), dy = kept(int(forth * g.dy.t)), dcell = kept(int(forth * g.control.dcells.t));
    }
  };

  bool there;
  Index b, u;
  T d[2];  // the gradients of the states that come through time
  const T *saved, *y, *c = nullptr, *dy, *dcell = nullptr;
  T *da[kQ], *dparams = nullptr;

  // Stand at step s, the last one of the launch.
  OST_HD void begin(const Problem<T>& p, const BackwardProblem<T>& g, Index s, Index row, Index unit) {
    const Index t = p.mask().time(s);
    there = row < p.batch && unit < p.hidden;
    b = there ? row : 0, u = there ? unit : 0;
    const Index at_row = t * p.batch + b;
    d[0] = there ? g.dh[b * p.hidden + u] : T(0), d[1] = there && C::kStates > 1 ? g.dc[b * p.hidden + u] : T(0);
    saved = saved_at<C>(p, t, b) + u, y = at(p.y, t, b) + u;
    dy = g.dy.data ? at(g.dy, t, b) + u : nullptr;
    if constexpr (C::kStates > 1) {
      c = p.cells + at_row * p.hidden + u;
      dcell = g.control.dcells.data ? at(g.control.dcells, t, b) + u : nullptr;
    }
    for_products([&]<int Q>() { da[Q] = g.da[Q] + (at_row * p.hidden + u) * product_columns<C>(Q).count(); });
    if constexpr (C::kParams > 0) dparams = g.dparams + at_row * C::kParams * p.hidden + u;
  }
  // What is the same in every step, of the place of the inputs of one of them.
  OST_HD void prepare(const Problem<T>& p, Inputs& to) const {
    to.active = true, to.dy = to.dcell = T(0);
    for (int k = 0; k < C::kParams; ++k) to.in.param[k] = p.params[k * p.hidden + u];
    for (int k = 0; k < C::kStates; ++k) to.in.previous[k] = T(0);
  }
  // Ask for what step s reads; every row takes part in every step.
  OST_HD void ask(const Problem<T>& p, Index s, Inputs& to, const Strides& strides) {
    const auto load = [](T& place, const T* from) { copy_async<sizeof(T)>(&place, from); };
    OST_UNROLL
    for (int k = 0; k < C::kSaved; ++k) load(to.in.saved[k], saved + k * p.hidden);
    load(to.in.next[0], y);
    if constexpr (C::kStates > 1) load(to.in.next[1], c);
    if (s > 0) {
      load(to.in.previous[0], y + strides.y);
      if constexpr (C::kStates > 1) load(to.in.previous[1], c + strides.c);
    } else {
      to.in.previous[0] = value(hidden_after<C>(p, kInitial, b), u);
      if constexpr (C::kStates > 1) to.in.previous[1] = value(cell_after(p, kInitial, b), u);
    }
    if (dy) load(to.dy, dy), dy += strides.dy;
    if (C::kStates > 1 && dcell) load(to.dcell, dcell), dcell += strides.dcell;
    saved += strides.saved, y += strides.y, c += strides.c;
  }
  // Store the gradients of a step.
  OST_HD void store(const Problem<T>& p, bool active, const BackwardOut<C, T>& out, const Strides& strides) {
    for_products([&]<int Q>() {
      constexpr Columns columns = product_columns<C>(Q);
      OST_UNROLL
      for (int k = 0; k < columns.count(); ++k) da[Q][k] = out.da[columns.begin + k];
      da[Q] += strides.row * columns.count();
    });
    if constexpr (C::kParams > 0) {
      OST_UNROLL
      for (int k = 0; k < C::kParams; ++k) dparams[k * p.hidden] = active ? out.dparam[k] : T(0);
      dparams += strides.row * C::kParams;
    }
  }
};

}  // namespace ost::OST_SET
