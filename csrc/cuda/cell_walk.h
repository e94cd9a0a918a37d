// One unit of one row on its way through the steps of a kernel for all steps: its state, and where a
// step reads and writes, as pointers that advance by a stride.
#pragma once
#include "forward.h"

namespace ost::OST_SET {

constexpr int kRing = 4;  // steps whose inputs are on their way: one step ahead is too late, for memory takes longer

// How far a pointer may advance from step to step: kernels hold strides as int.
constexpr Index kMostStride = 0x7fffffff;

template <class C, class T>
struct CellWalk {
  struct alignas(C::kColumns % 4 == 0 ? 16 : sizeof(T)) Inputs {
    T gx[C::kColumns];
    OST_HD void ask(const T* from) {
      if constexpr (C::kColumns % 4 == 0)
        copy_async<sizeof(Inputs)>(this, from);
      else
        for (int column = 0; column < C::kColumns; ++column) copy_async<sizeof(T)>(&gx[column], from + column);
    }
  };
  // How far pointers go from step to step. An int is widened by the instruction that adds it.
  struct Strides {
    int gx, y, c, saved;
    OST_HD explicit Strides(const Problem<T>& p) {
      const Index forth = p.reverse ? -1 : 1, row = forth * p.batch * p.hidden;
      gx = kept(int(p.gx ? row * C::kColumns : 0)), y = kept(int(forth * p.y.t)), c = kept(int(p.cells ? row : 0));
      saved = kept(int(p.saved ? row * C::kSaved : 0));
    }
  };

  bool there;  // whether the row and the unit are
  Index b, u;
  T state[C::kStates];
  const T* gx;
  T *y, *c = nullptr, *saved;

  // Stand before a step, in the states that `carry` has, [states][B][H], or where it is null in those that the pass starts from. Of a row
  // or a unit that is not there the state is zero.
  OST_HD void begin(const Problem<T>& p, Index step, bool is_there, Index row, Index unit, const T* carry) {
    const Index t = p.mask().time(step);
    there = is_there, b = there ? row : 0, u = there ? unit : 0;
    for (int k = 0; k < C::kStates; ++k) {
      const T* from = k == 0 ? hidden_after<C>(p, kInitial, b) : cell_after(p, kInitial, b);
      state[k] = !there ? T(0) : carry ? carry[(k * p.batch + b) * p.hidden + u] : value(from, u);
    }
    if (there) restart(p, step);
    gx = (p.gx ? p.gx + (t * p.batch + b) * p.hidden * C::kColumns : p.bias) + u * C::kColumns;
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
  // Whether a row takes part in a step, and the output that it repeats if not.
  OST_HD bool takes_part(const Problem<T>& p, Index step) const { return p.mask().active(p.mask().time(step), b); }
  OST_HD void repeat(const Problem<T>& p, Index step) const { repeat_output<C>(p, p.mask(), p.mask().time(step), b, u); }
  // Ask for the projected input of the next step for which that has not been done, if there is one.
  OST_HD void ask(Inputs& to, bool more, const Strides& strides) {
    if (there && more) to.ask(gx);
    async_commit();
    gx += strides.gx;
  }
  // Store what a step returned for a row that takes part.
  OST_HD void store(const Problem<T>& p, const ForwardOut<C, T>& out, int taped) const {
    *y = out.state[0];
    if constexpr (C::kStates > 1) *c = out.state[1];
    if (taped)
      for (int k = 0; k < C::kSaved; ++k) saved[k * p.hidden] = out.saved[k];
  }
  OST_HD void advance(const Strides& strides) { y += strides.y, c += strides.c, saved += strides.saved; }
};

}  // namespace ost::OST_SET
