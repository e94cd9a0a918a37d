// One layer and direction on the device: what a kernel is given. All pointers are the device's.
//
//     gx          [T][B][H][column]   W x + b, with biases of columns that only the recurrent
//                                     product feeds
//     panels      [depth][H][column]  of product q: operand x weight; the columns of a unit lie side
//                                     by side, so that a tile holds whole units
//     transposed  [H][column][depth]  of product q: da x weight
//     da          [T][B][H][column]   of product q
#pragma once
#include "block.h"
#include "math.h"

#include "../cells/list.h"
#include "../cpu/step_mask.h"

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
  Times times;  // order is null: rows are not reordered
  Rows<const T> x;
  Rows<const T> px;  // W x where a library has computed it, [H][column] in the layout of x; may be gx itself
  Rows<T> y;
  const T *h0, *c0;                                             // [B,H], null means zeros
  const T *restart_h, *restart_c;                               // [H], null means zeros
  const void *panels[kMaxProducts], *transposed[kMaxProducts];  // in words of the precision
  const void *stream_panels[kMaxProducts], *stream_transposed;  // weights as fragments, for blocks that stream them
  const void *loop_panels, *loop_transposed;                    // recurrent weights of the kernel in which a block runs all steps
  const void *shared_panels[kMaxPhases],
      *shared_transposed[kMaxPhases];  // recurrent weights of kernels that partition them among multiprocessors
  const float *shared_scales[kMaxPhases], *shared_transposed_scales[kMaxPhases];
  const T* bias;            // [H][column]
  const T* params;          // [params][H]
  T scalars[kMostScalars];  // numbers of the whole call that the cell reads
  T* gx;
  T *saved, *cells;          // [T][B][saved][H], [T][B][H]; null in inference
  T *state, *saved_scratch;  // inference: c [B][H]; what the cell saves from phase to phase [B][saved][H]
  T* emitted;                // [T][B][H] in the backward pass, [B][H] in the forward one
  T *hn, *cn;                // null means not wanted

  OST_HD StepMask mask() const { return {steps, batch, reverse, times}; }
  OST_HD Index depth(int q) const { return q == 0 ? input : hidden; }
};

template <class T>
struct BackwardProblem {
  Rows<const T> dy;  // data null means zeros
  const T *dhn, *dcn;
  T *dh, *dc;              // [B][H]: gradients on their way back through time
  T* demitted;             // [B][H]
  T* da[kMaxProducts];     // equal where products share their columns
  T* dparams;              // [T][B][params][H]
  T* restarts;             // [states][B][H]: gradients of the state of a restart
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
  Range chunk;                // parts of the rows that are run now, counted from the first step
  bool library;               // whether a library computes the products of rows: only their operands are written here
  T* operands[kMaxProducts];  // [T*B][depth], or null: not wanted
  RawGradients<T> gradients;
  T *drestart_h, *drestart_c;

  OST_HD Range steps(Index steps) const { return {steps * chunk.begin / parts, steps * chunk.end / parts}; }
  // Parts of the rows [T*B], and rows, that are complete with those steps, if the last step comes
  // first.
  OST_HD Range parts_of_rows(const Problem<T>& p) const { return p.reverse ? Range{parts - chunk.end, parts - chunk.begin} : chunk; }
  OST_HD Range rows(const Problem<T>& p) const {
    const Range s = steps(p.steps);
    return p.reverse ? Range{(p.steps - s.end) * p.batch, (p.steps - s.begin) * p.batch} : Range{s.begin * p.batch, s.end * p.batch};
  }
  OST_HD bool begins() const { return chunk.end == parts; }
  OST_HD bool ends() const { return chunk.begin == 0; }
};

template <class T>
OST_HD T* at(const Rows<T>& rows, Index t, Index b) {
  return rows.data + (rows.starts ? (rows.starts[b] + t) * rows.t : t * rows.t + b * rows.b);
}

// The state of a row after a step, the initial state, or that of a restart; null means zeros.
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
// Values that the cell saves at (t, b), [saved][H]: for every step, or in inference from phase to phase.
template <class C, class T>
OST_HD T* saved_at(const Problem<T>& p, Index t, Index b) {
  return p.saved ? p.saved + (t * p.batch + b) * C::kSaved * p.hidden : p.saved_scratch + b * C::kSaved * p.hidden;
}
template <class T>
OST_HD T value(const T* row, Index k) {
  return row ? row[k] : T(0);
}

}  // namespace ost::OST_SET
