// One unit of one row on its way back through the steps of a kernel for all steps: the gradients of
// its states, and where a step reads and writes, as pointers that advance by a stride.
#pragma once
#include "backward.h"
#include "cell_walk.h"
#include "exchange.h"

namespace ost::OST_SET {

// V: the numbers of the cell.
template <class C, class T, class V>
struct CellWalkBack {
  static constexpr int kLast = C::kStates - 1, kDas = kSharedDa<C> ? 1 : kProductCount<C>;
  // What a cell reads of a step. Of two states the equations read c alone, before and after the step.
  struct Given {
    T saved[C::kSaved | 1];  // an odd number of words a thread avoids bank conflicts
    T previous, dy;
    T next, dcell;  // where the general code is needed
  };
  // What it returns.
  struct Out {
    T da[C::kColumns], dparam[C::kParams + 1], emitted;
  };
  // How far pointers go from step to step. An int is widened by the instruction that adds it.
  struct Strides {
    int hidden, row, previous, dy;  // row: units of a step
    OST_HD Strides(const Problem<T>& p, const BackwardProblem<T>& g) {
      const Index back = p.reverse ? 1 : -1;
      hidden = kept(int(p.hidden)), row = kept(int(back * p.batch * p.hidden));
      previous = kept(int(back * (kLast > 0 ? p.batch * p.hidden : p.y.t))), dy = kept(int(g.dy.data ? back * g.dy.t : 0));
    }
  };
  // What all cells of a block share. `general`: some rows take part in some steps only, or gradients are cut, clipped or added to c.
  struct Pass {
    const Problem<T>& p;
    const BackwardProblem<T>& g;
    const ExchangeBuffer& buffer;
    const Index& first_step;  // of the launch; steps are counted from it on
    const int general;
    const Strides strides;
    OST_HD Pass(const Problem<T>& p, const BackwardProblem<T>& g, const ExchangeBuffer& buffer, const Index& first_step)
        : p(p),
          g(g),
          buffer(buffer),
          first_step(first_step),
          general(
              kept(int(p.times.predecessors || p.times.lengths || g.control.cuts || g.control.dcells.data || g.control.clip_value > 0))),
          strides(p, g) {}
    OST_HD const T* zero() const { return buffer.zero(); }  // is read where there is nothing
    OST_HD Index time(int n) const { return p.mask().time(first_step + n); }
  };

  bool there;  // whether the row and the unit are
  int b, u;
  T d[C::kStates], next, demitted;  // gradients of the states and of what a phase emitted; the state after the step
  T param[C::kParams + 1];
  const T *saved, *previous, *dy;
  T *da[kDas], *dparams, *emitted;

  // Stand at step n, the last one of the launch.
  OST_HD void begin(const Pass& pass, int n, bool is_there, Index at_row, Index unit) {
    const Problem<T>& p = pass.p;
    const BackwardProblem<T>& g = pass.g;
    const Index t = pass.time(n);
    there = is_there, b = there ? int(at_row) : 0, u = there ? int(unit) : 0;
    const Index row = t * p.batch + b;
    demitted = T(0);
    for (int k = 0; k < C::kStates; ++k) d[k] = there ? (k == 0 ? g.dh : g.dc)[b * p.hidden + u] : T(0);  // another block may write there
    for (int k = 0; k < C::kParams; ++k) param[k] = p.params[k * p.hidden + u];
    saved = saved_at<C>(p, t, b) + u;
    previous = (kLast > 0 ? p.cells + row * p.hidden : at(p.y, t, b)) + u;
    next = pass.general ? T(0) : *previous;
    previous += pass.strides.previous;
    dy = g.dy.data ? at(g.dy, t, b) + u : pass.zero();
    for_das([&]<int Q>() { da[Q] = g.da[Q] + (row * p.hidden + u) * kColumnsOf<Q>; });
    if constexpr (C::kParams > 0) dparams = dparams_at<C>(p, g, row, u);
    if constexpr (has_emitted_operand<C>()) emitted = p.emitted + row * p.hidden + u;
  }

  // Ask for what step n reads, if it is one of this launch, and go on to the one before it.
  OST_HD void ask(const Pass& pass, int n, Given& to) {
    const Strides& strides = pass.strides;
    if (there && n >= 0) {
      if (pass.general) {
        ask_general(pass, pass.time(n), to);
      } else {
        OST_UNROLL
        for (int k = 0; k < C::kSaved; ++k) copy_async<sizeof(T)>(&to.saved[k], saved + k * strides.hidden);
        const T* from = previous;
        if (n == 0 && pass.first_step == 0) from = state_after(pass, kInitial);
        copy_async<sizeof(T)>(&to.previous, from);
        copy_async<sizeof(T)>(&to.dy, dy);
      }
    }
    async_commit();
    saved += strides.row * C::kSaved, previous += strides.previous, dy += strides.dy;
  }
  // Where rows take part in some steps only, addresses are computed anew; what is not there is zero.
  OST_HD void ask_general(const Pass& pass, Index t, Given& to) const {
    const Problem<T>& p = pass.p;
    const BackwardProblem<T>& g = pass.g;
    const StepMask mask = p.mask();
    const auto gradient = [&](const Rows<const T>& rows) { return rows.data ? at(rows, t, b) + u : pass.zero(); };
    const bool active = mask.active(t, b);
    copy_async<sizeof(T)>(&to.dy, active || mask.repeats(t, b) != kSkipped ? gradient(g.dy) : pass.zero());
    if (!active) return;
    const T* from = saved_at<C>(p, t, b) + u;
    OST_UNROLL
    for (int k = 0; k < C::kSaved; ++k) copy_async<sizeof(T)>(&to.saved[k], from + k * p.hidden);
    copy_async<sizeof(T)>(&to.previous, state_after(pass, mask.predecessor(t, b)));
    copy_async<sizeof(T)>(&to.next, state_after(pass, t));
    copy_async<sizeof(T)>(&to.dcell, kLast > 0 ? gradient(g.control.dcells) : pass.zero());
  }
  // The state that the equations read, c where there is one.
  OST_HD const T* state_after(const Pass& pass, Index step) const {
    const T* row = kLast > 0 ? cell_after(pass.p, step, b) : hidden_after<C>(pass.p, step, b);
    return row ? row + u : pass.zero();
  }

  // Run the cell's backward of phase F; da is zero where there is none, and where the row takes no part.
  template <int F>
  OST_HD void run(const Pass& pass, int n, const Given& given, Out& out) {
    constexpr Columns own = C::kPhases[F].own;
    OST_UNROLL
    for (int column = 0; column < C::kColumns; ++column)
      if (F + 1 == kPhaseCount<C> || own.has(column)) out.da[column] = T(0);
    OST_UNROLL
    for (int k = 0; k < C::kParams && F + 1 == kPhaseCount<C>; ++k) out.dparam[k] = T(0);
    out.emitted = T(0);
    if (!there) return;
    BackwardIn<C, V> in;
    BackwardOut<C, V> result;
    in.next[kLast] = next;
    T dh = d[0] + given.dy, dc = d[kLast];
    if (pass.general) {
      if (!pass.p.mask().active(pass.time(n), b)) {
        if (F == 0) d[0] = dh;
        return;
      }
      in.next[kLast] = given.next;
      dh = incoming(pass.g, d[0], given.dy), dc = incoming(pass.g, dc, given.dcell);
    }
    if constexpr (kLast > 0) in.previous[0] = in.next[0] = V(__builtin_nanf(""));  // not among what is given
    in.previous[kLast] = given.previous, in.dstate[kLast] = dc, in.dstate[0] = dh;
    in.demitted = demitted;
    OST_UNROLL
    for (int k = 0; k < C::kSaved; ++k) in.saved[k] = given.saved[k];
    OST_UNROLL
    for (int k = 0; k < C::kParams; ++k) in.param[k] = param[k], result.dparam[k] = V(0);
    OST_UNROLL
    for (int k = 0; k < C::kStates; ++k) result.dprevious[k] = V(0);
    C::template backward<F>(in, result);
    OST_UNROLL
    for (int column = 0; column < C::kColumns; ++column)
      if (own.has(column)) out.da[column] = T(result.da[column]);
    if constexpr (F == 0) {
      OST_UNROLL
      for (int k = 0; k < C::kStates; ++k) d[k] = T(result.dprevious[k]);
      OST_UNROLL
      for (int k = 0; k < C::kParams; ++k) out.dparam[k] = T(result.dparam[k]);
      if constexpr (has_emitted_operand<C>()) out.emitted = T(C::emitted(in.saved, in.previous, in.next));
      next = given.previous;
    }
  }
  // Add dh of step n, and cut what goes on. `cuts`: some rows take no part in it, or pass on nothing.
  OST_HD void add(const Pass& pass, int n, bool cuts, T sum) {
    if (cuts) return add_and_cut(pass, pass.time(n), sum);
    d[0] += sum;
  }
  OST_HD void add_and_cut(const Pass& pass, Index t, T sum) {
    if (!pass.p.mask().active(t, b)) return;
    d[0] += sum;
    cut<C, T>(pass.p, pass.g, t, b, u, d);
  }

  // f<0>(), f<1>(): every da that is stored, of so many columns.
  template <int Q>
  static constexpr int kColumnsOf = product_columns<C>(Q).count();
  template <int Q = 0, class Function>
  OST_HD static void for_das(Function&& f) {
    f.template operator()<Q>();
    if constexpr (Q + 1 < kDas) for_das<Q + 1>(f);
  }
  // Store the gradients of a phase.
  template <int F, int Q = 0>
  OST_HD void store(const Out& out, const Strides& strides) const {
    constexpr Columns columns = product_columns<C>(Q), own = C::kPhases[F].own;
    if constexpr (kDas == 1 && C::kColumns == 4) {
      *reinterpret_cast<Numbers<T, 4>*>(da[0]) = {{out.da[0], out.da[1], out.da[2], out.da[3]}};
    } else {
      OST_UNROLL
      for (int column = own.begin; column < own.end; ++column)
        if (columns.has(column)) da[Q][column - columns.begin] = out.da[column];
      if constexpr (Q + 1 < kDas) return store<F, Q + 1>(out, strides);
    }
    if constexpr (F == 0) {
      OST_UNROLL
      for (int k = 0; k < C::kParams; ++k) dparams[k * strides.hidden] = out.dparam[k];
      if constexpr (has_emitted_operand<C>()) *emitted = out.emitted;
    }
  }
  OST_HD void advance(const Strides& strides) {
    for_das([&]<int Q>() { da[Q] += strides.row * kColumnsOf<Q>; });
    if constexpr (C::kParams > 0) dparams += strides.row * unit_rows<C>();
    if constexpr (has_emitted_operand<C>()) emitted += strides.row;
  }
};

}  // namespace ost::OST_SET
