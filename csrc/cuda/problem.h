// One layer and direction on the device: what a kernel is given. All pointers are the device's.
//
//     gx      [T][B][H][column]      W x + b, and biases of columns that only the recurrent product feeds
//     panels  [depth][H][column]     of product q: operand x weight; columns of a unit side by side, so that a tile holds whole units
//     turned  [H][column][depth]     of product q: da x weight
//     da      [T][B][H][column]      of product q
#pragma once
#include "block.h"
#include "math.h"

#include "../cells/list.h"
#include "../cpu/clock.h"

namespace ost::OST_SET {

constexpr int kMaxPhases = kMaxProducts - 1;

// f<0>(), f<1>(): every phase of a cell's step.
template <class C, int F = 0, class Function>
OST_HD void for_phases(Function&& f) {
  f.template operator()<F>();
  if constexpr (F + 1 < kPhaseCount<C>) for_phases<C, F + 1>(f);
}

template <class T>
struct Problem {
  Index steps, batch, input, hidden;
  bool reverse;
  Times times;  // order is null: rows stay where they are
  Rows<const T> x;
  Rows<const T> px;  // W x, where a library has taken that product: [H][column] of rows as x has them; may be gx itself
  Rows<T> y;
  const T *h0, *c0;                                                   // [B,H], null means zeros
  const T *restart_h, *restart_c;                                     // [H], null means zeros
  const void *panels[kMaxProducts], *turned[kMaxProducts];            // in words of the precision
  const void *stream_panels[kMaxProducts], *stream_turned;            // the same as fragments, for blocks that stream them
  const void *loop_panels, *loop_turned;                              // the recurrent ones, for a kernel that runs all steps
  const void *shared_panels[kMaxPhases], *shared_turned[kMaxPhases];  // those of kernels that share them among multiprocessors
  const float *shared_scales[kMaxPhases], *shared_turned_scales[kMaxPhases];
  const T* bias;    // [H][column]
  const T* params;  // [params][H]
  T* gx;
  T *saved, *cells;  // [T][B][saved][H], [T][B][H]; null in inference
  T *state, *kept;   // [B][H] c, and [B][saved][H] from phase to phase, in inference
  T* emitted;        // [T][B][H] in the backward pass, [B][H] in the forward one
  T *hn, *cn;        // null means not wanted

  OST_HD Clock clock() const { return {steps, batch, reverse, times}; }
  OST_HD Index depth(int q) const { return q == 0 ? input : hidden; }
};

template <class T>
struct BackwardProblem {
  Rows<const T> dy;  // data null means zeros
  const T *dhn, *dcn;
  T *dh, *dc;              // [B][H]: on their way back
  T* demitted;             // [B][H]
  T* da[kMaxProducts];     // equal where products share their columns
  T* dparams;              // [T][B][params][H]
  T* restarts;             // [states][B][H]: what went to the state of a restart
  T* scales;               // [states][B], for the norm of the gradient
  T* squares;              // [states][B][H] of this step, or null
  StepControl<T> control;  // flow: [T][states][B], by rows
  Rows<T> dx;              // data null means not wanted
  bool dx_add;
  T *dh0, *dc0;                // [B,H], null means not wanted
  T* sums[kMaxProducts];       // [part][depth][H][column]
  T* bias_sums[kMaxProducts];  // [part][H][column]
  T* param_sums;               // [part][params][H]
  Index parts;
  Range portion;              // of the parts, counted from the first step: those that are run now
  bool library;               // takes the products of rows: what they multiply is written, and they are not taken here
  T* operands[kMaxProducts];  // [T*B][depth], or null: not wanted
  RawGradients<T> gradients;
  T *drestart_h, *drestart_c;

  OST_HD Range steps(Index steps) const { return {steps * portion.begin / parts, steps * portion.end / parts}; }
  // Parts of the rows [T*B] that are complete with those steps, and rows, if the last step comes first.
  OST_HD Range parts_of_rows(const Problem<T>& p) const { return p.reverse ? Range{parts - portion.end, parts - portion.begin} : portion; }
  OST_HD Range rows(const Problem<T>& p) const {
    const Range s = steps(p.steps);
    return p.reverse ? Range{(p.steps - s.end) * p.batch, (p.steps - s.begin) * p.batch} : Range{s.begin * p.batch, s.end * p.batch};
  }
  OST_HD bool begins() const { return portion.end == parts; }
  OST_HD bool ends() const { return portion.begin == 0; }
};

template <class T>
OST_HD T* at(const Rows<T>& rows, Index t, Index b) {
  return rows.data + (rows.starts ? (rows.starts[b] + t) * rows.t : t * rows.t + b * rows.b);
}

// The states of a row after a step, or initial, or of a restart; null means zeros.
template <class T>
OST_HD const T* hidden_after(const Problem<T>& p, Index step, Index b) {
  if (step >= 0) return at(p.y, step, b);
  return step == kRestart ? p.restart_h : p.h0 ? p.h0 + b * p.hidden : nullptr;
}
template <class T>
OST_HD const T* cell_after(const Problem<T>& p, Index step, Index b) {
  if (step == kRestart) return p.restart_c;
  if (step == kInitial) return p.c0 ? p.c0 + b * p.hidden : nullptr;
  return p.cells ? p.cells + (step * p.batch + b) * p.hidden : p.state + b * p.hidden;
}
// What the cell saves at (t, b), [saved][H]: of every step, or in inference from phase to phase.
template <class C, class T>
OST_HD T* saved_at(const Problem<T>& p, Index t, Index b) {
  return p.saved ? p.saved + (t * p.batch + b) * C::kSaved * p.hidden : p.kept + b * C::kSaved * p.hidden;
}
template <class T>
OST_HD T value(const T* row, Index k) {
  return row ? row[k] : T(0);
}

}  // namespace ost::OST_SET
