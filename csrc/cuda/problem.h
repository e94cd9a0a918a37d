// One layer and direction on the device: what a kernel is given. All pointers are the device's.
//
//     gx          [T][B][H][column]   W x + b, with biases of columns that only the recurrent
//                                     product feeds
//     panels      [depth][H][column]  of product q: operand x weight; the columns of a unit lie side
//                                     by side, so that a tile holds whole units
//     transposed  [H][column][depth]  of product q: da x weight
//     da          [T][B][H][column]   of product q
//     normed      [T][B][H][column]   of product q, where columns of it are normed: what the norms
//                                     have made; between the product and the cell, the product
//     moments     [T][B][norm][2]     mean and inverse deviation of each row that is normed
//
// A projection is one more matrix behind the products, with one column for each of the P elements
// of h; its da is the gradient of h.
#pragma once
#include "block.h"
#include "math.h"

#include "../cells/list.h"
#include "../cpu/step_mask.h"

namespace ost::OST_SET {

constexpr int kMaxPhases = kMaxProducts - 1;

// Whether matrix q of the weights is that of the projection.
template <class C>
constexpr bool is_projection(int q) {
  return q == kProductCount<C>;
}
// The columns that matrix q feeds of each unit, or of each element of h.
template <class C>
constexpr int matrix_columns(int q) {
  return is_projection<C>(q) ? 1 : product_columns<C>(q).count();
}
// Whether a matrix multiplies what a phase emitted.
template <class C>
constexpr bool multiplies_emitted(int q) {
  return is_projection<C>(q) || (q > 0 && C::kPhases[q - 1].operand == Operand::kEmitted);
}
template <class C>
constexpr bool has_emitted_operand() {
  for (int q = 0; q < kMatrixCount<C>; ++q)
    if (multiplies_emitted<C>(q) && matrix_columns<C>(q) > 0) return true;
  return false;
}
// f<0>(), f<1>(): every matrix that there is.
template <class C, int Q = 0, class Function>
OST_HD void for_matrices(Function&& f) {
  if constexpr (matrix_columns<C>(Q) > 0) f.template operator()<Q>();
  if constexpr (Q + 1 < kMatrixCount<C>) for_matrices<C, Q + 1>(f);
}
// f<0>(), f<1>(): every operation on product Q.
template <class C, int Q, int J = 0, class Function>
OST_HD void for_operations(Function&& f) {
  if constexpr (J < op_count<C>()) {
    if constexpr (product_op<C>(J).product == Q) f.template operator()<J>();
    for_operations<C, Q, J + 1>(f);
  }
}

// Whether the emitted row is normed before phase F.
template <class C>
constexpr bool norms_emitted(int phase) {
  return C::kPhases[phase].before != RowOp::kNone;
}
// The phase before which it is, or -1.
template <class C>
constexpr int phase_after_norm() {
  for (int phase = 0; phase < kPhaseCount<C>; ++phase)
    if (norms_emitted<C>(phase)) return phase;
  return -1;
}
// Norms of a step: the operations on products, then that of the emitted row.
template <class C>
inline constexpr int kNorms = op_count<C>() + (phase_after_norm<C>() >= 0);

// f<0>(), f<1>(): every phase of a cell's step.
template <class C, int F = 0, class Function>
OST_HD void for_phases(Function&& f) {
  f.template operator()<F>();
  if constexpr (F + 1 < kPhaseCount<C>) for_phases<C, F + 1>(f);
}

template <class T>
struct Problem {
  Index steps, batch, input, hidden, output;  // T, B, I, H, P
  bool reverse;
  Times times;  // order is null: rows are not reordered
  Rows<const T> x;
  Rows<const T> px;  // W x where a library has computed it, [H][column] in the layout of x; may be gx itself
  Rows<T> y;
  const T *h0, *c0;                                             // [B,P] and [B,H], null means zeros
  const T *restart_h, *restart_c;                               // [P] and [H], null means zeros
  const void *panels[kMaxProducts], *transposed[kMaxProducts];  // in words of the precision
  const void *stream_panels[kMaxProducts], *stream_transposed;  // weights as fragments, for blocks that stream them
  const void *loop_panels, *loop_transposed;                    // recurrent weights of the kernel in which a block runs all steps
  const void *shared_panels[kMaxPhases],
      *shared_transposed[kMaxPhases];  // recurrent weights of kernels that partition them among multiprocessors
  const float *shared_scales[kMaxPhases], *shared_transposed_scales[kMaxPhases];
  const T* bias;            // [H][column]
  const T* gains;           // [gains][H]
  const T* params;          // [params][H]
  T scalars[kMostScalars];  // numbers of the whole call that the cell reads
  T* gx;
  T *saved, *cells;                 // [T][B][saved][H], [T][B][H]; null in inference
  T *state, *saved_scratch;         // inference: c [B][H]; what the cell saves from phase to phase [B][saved][H]
  T* emitted;                       // [T][B][H] in the backward pass, [B][H] in the forward one
  T* normed[kMaxProducts];          // null unless a backward pass follows, or runs
  T* normed_scratch[kMaxProducts];  // then: of product 0 [T][B][H][column], of the others [B][H][column]
  T* moments;
  T *hn, *cn;  // null means not wanted

  OST_HD StepMask mask() const { return {steps, batch, reverse, times}; }
};

// The width of h. Kernels of other cells than projected ones have no use for a second width, which
// would take them registers.
template <class C, class T>
OST_HD Index output_width(const Problem<T>& p) {
  return is_projected<C>() ? p.output : p.hidden;
}

// What matrix Q of the weights multiplies is this wide, and it feeds columns of so many units.
template <class C, int Q, class T>
OST_HD Index matrix_depth(const Problem<T>& p) {
  return Q == 0 ? p.input : multiplies_emitted<C>(Q) ? p.hidden : output_width<C>(p);
}
template <class C, int Q, class T>
OST_HD Index matrix_units(const Problem<T>& p) {
  return is_projection<C>(Q) ? output_width<C>(p) : p.hidden;
}
template <class C, int Q, class T>
OST_HD Index matrix_width(const Problem<T>& p) {
  return matrix_units<C, Q>(p) * matrix_columns<C>(Q);
}

// Two states lie one behind the other: h [B][P], then c [B][H].
template <class C, class T>
OST_HD Index state_width(const Problem<T>& p, int k) {
  return k == 0 ? output_width<C>(p) : p.hidden;
}
template <class C, class T>
OST_HD Index state_at(const Problem<T>& p, int k, Index b, Index u) {
  if constexpr (!is_projected<C>()) return (k * p.batch + b) * p.hidden + u;
  return k == 0 ? b * p.output + u : p.batch * p.output + b * p.hidden + u;
}
// Elements that one thread each takes, for both states: the widest of the two.
template <class C, class T>
OST_HD Index widest_state(const Problem<T>& p) {
  return larger(output_width<C>(p), p.hidden);
}

template <class T>
struct BackwardProblem {
  Rows<const T> dy;  // data null means zeros
  const T *dhn, *dcn;
  T *dh, *dc;                  // [B][P] and [B][H]: gradients on their way back through time
  T* demitted;                 // [B][H]
  T* slices;                   // [slice][B][depth]: of the product of one step, see StepProductKernel
  T* da[kMaxProducts];         // equal where products share their columns
  T* dproducts[kMaxProducts];  // of what a product made: da, unless the product is normed
  T* dparams;                  // [T][B][gains, params][H]
  T* restarts;                 // gradients of the state of a restart, see state_at
  T* scales;                   // [states][B], for the norm of the gradient
  T* squares;                  // of this step, see state_at; or null
  StepControl<T> control;      // flow: [T][states][B], by rows
  Rows<T> dx;                  // data null means not wanted
  bool dx_add;
  T *dh0, *dc0;                // [B,P] and [B,H], null means not wanted
  T* sums[kMaxProducts];       // [part][depth][H][column]
  T* bias_sums[kMaxProducts];  // [part][H][column]
  T* param_sums;               // [part][gains, params][H]
  Index parts;
  Range chunk;                // parts of the rows that are run now, counted from the first step
  bool library;               // whether a library computes the products of rows: only their operands are written here
  T* operands[kMaxProducts];  // [T*B][depth], or null: not wanted
  RawGradients<T> gradients;
  T* unit_gradients[kMostUnitWeights];  // by name: the rows of each lie one after the other
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
template <class C, class T>
OST_HD const T* hidden_after(const Problem<T>& p, Index step, Index b) {
  if (step >= 0) return at(p.y, step, b);
  return step == kRestart ? p.restart_h : p.h0 ? p.h0 + b * output_width<C>(p) : nullptr;
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
// Product Q of a row, or what its norms have made of it: [H][column].
template <class C, int Q, class T>
OST_HD T* normed_at(const Problem<T>& p, Index row) {
  const Index width = p.hidden * matrix_columns<C>(Q);
  return p.normed[Q] ? p.normed[Q] + row * width : p.normed_scratch[Q] + (Q == 0 ? row : row % p.batch) * width;
}
// Mean and inverse deviation of a norm of a row.
template <class C, class T>
OST_HD T* moments_at(const Problem<T>& p, Index row, int norm) {
  return p.moments + (row * kNorms<C> + norm) * 2;
}

}  // namespace ost::OST_SET
