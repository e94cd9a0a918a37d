// The contract of a cell. A step is an ordered list of phases; each is
//
//     operand  ->  product into some columns of the pre-activation a  ->  optional row operation  ->  pointwise function
//
// What stays inside a hidden unit is pointwise and the cell's business; what mixes units (a product, a layer norm) is
// the driver's. A cell knows neither pointers nor strides, and no driver knows an equation.
//
// Row operations stand in two places: on what a phase emitted (Phase::before), and on columns of a product (kProductOps).
#pragma once
#include <concepts>

#include "common.h"

namespace ost::OST_SET {

// Columns [begin, end) of the pre-activation: one value a unit each.
struct Columns {
  int begin, end;
  constexpr int count() const { return end - begin; }
  constexpr bool empty() const { return begin == end; }
  constexpr bool has(int column) const { return begin <= column && column < end; }
  constexpr bool operator==(const Columns&) const = default;
};

enum class Operand {
  kHidden,   // h of the previous step
  kEmitted,  // what the phase before emitted (r*h; o*tanh(c') before a projection)
};

enum class RowOp {
  kNone,
  kLayerNorm,  // (x - mean) / sqrt(variance + kNormEps), both over the whole row
};
constexpr double kNormEps = 1e-5;

struct Phase {
  Operand operand;
  Columns product;              // columns that the recurrent product feeds; empty: no product
  Columns own;                  // columns that this phase's pointwise function reads, and whose gradient it returns
  RowOp before = RowOp::kNone;  // applied to what the phase before emitted, which comes back as `carried`
};

// A row operation on a product, over these columns of all units together, before the pointwise function sees them. Its result is
// multiplied by a gain for each column and unit; the bias of the columns is added after that.
struct ProductOp {
  int product;  // 0: W x; p + 1: the recurrent product of phase p
  Columns columns;
  RowOp op;
};

// Optional traits. `kProductOps`: the operations above. `kUnitWeights`: the names of weights of one number a unit, whose rows are the
// gains of those operations, one after the other, and then `param`. `kProjected`: the output is W_hr m, P wide, of the m that the last
// phase emits; such a cell has no state[0], for no unit of it belongs to one of h. `kNoise`: one random number in [0,1) a unit and step.
// `kScalars`: how many numbers of the whole call the pointwise functions read, the same for every unit and step: a cell branches on them.
// `kStateNames`: the names of the states, where they are not h, or h and c. `kBlockDiagonal`: the units are divided into as many heads as
// the call says, and R joins units of one head alone: its rows are H / heads wide.
template <class C>
constexpr int scalar_count() {
  if constexpr (requires { C::kScalars; })
    return C::kScalars;
  else
    return 0;
}
template <class C>
constexpr bool is_projected() {
  if constexpr (requires { C::kProjected; })
    return C::kProjected;
  else
    return false;
}
template <class C>
constexpr bool takes_noise() {
  if constexpr (requires { C::kNoise; })
    return C::kNoise;
  else
    return false;
}

constexpr int kMostStates = 4;
template <class C>
constexpr int named_states() {
  if constexpr (requires { C::kStateNames; })
    return sizeof(C::kStateNames) / sizeof(const char*);
  else
    return C::kStates < 2 ? C::kStates : 2;
}
template <class C>
constexpr const char* state_name(int k) {
  if constexpr (requires { C::kStateNames; })
    return C::kStateNames[k];
  else
    return k == 0 ? "h" : "c";
}
template <class C>
constexpr bool is_block_diagonal() {
  if constexpr (requires { C::kBlockDiagonal; })
    return C::kBlockDiagonal;
  else
    return false;
}

// What follows from kProductOps and kUnitWeights.
template <class C>
constexpr int op_count() {
  if constexpr (requires { C::kProductOps; })
    return sizeof(C::kProductOps) / sizeof(ProductOp);
  else
    return 0;
}
template <class C>
constexpr ProductOp product_op(int j) {
  if constexpr (op_count<C>() > 0)
    return C::kProductOps[j];
  else
    return {j, {0, 0}, RowOp::kNone};
}
// The operation on a column of product q, or -1.
template <class C>
constexpr int op_of(int q, int column) {
  for (int j = 0; j < op_count<C>(); ++j)
    if (product_op<C>(j).product == q && product_op<C>(j).columns.has(column)) return j;
  return -1;
}
// Columns of product q that an operation takes.
template <class C>
constexpr int normed_columns(int q) {
  int n = 0;
  for (int j = 0; j < op_count<C>(); ++j)
    if (product_op<C>(j).product == q) n += product_op<C>(j).columns.count();
  return n;
}
template <class C>
constexpr bool is_normed(int q) {
  return normed_columns<C>(q) > 0;
}
// Rows of the unit weights that are gains of the operations before j.
template <class C>
constexpr int gains_before(int j) {
  int n = 0;
  for (int i = 0; i < j; ++i) n += product_op<C>(i).columns.count();
  return n;
}
template <class C>
inline constexpr int kGains = gains_before<C>(op_count<C>());
template <class C>
constexpr int unit_rows() {
  int n = 0;
  if constexpr (requires { C::kUnitWeights; })
    for (const UnitWeights& w : C::kUnitWeights) n += w.rows;
  return n;
}

template <class C>
inline constexpr int kPhaseCount = sizeof(C::kPhases) / sizeof(Phase);

// Product 0 is W x; product p + 1 is the recurrent product of phase p.
template <class C>
inline constexpr int kProductCount = kPhaseCount<C> + 1;
// Matrices of weights: those of the products, then W_hr of a projection, whose columns are the elements of h.
template <class C>
inline constexpr int kMatrixCount = kProductCount<C> + is_projected<C>();
template <class C>
constexpr Columns product_columns(int q) {
  return q == 0 ? C::kInput : C::kPhases[q - 1].product;
}
template <class C>
constexpr int normed_products() {
  int n = 0;
  for (int q = 0; q < kProductCount<C>; ++q) n += is_normed<C>(q);
  return n;
}
// Vectors a unit that are kept of a product that is normed: how far its columns were from the mean.
template <class C>
constexpr int deviations(int q) {
  return is_normed<C>(q) ? product_columns<C>(q).count() : 0;
}
template <class C>
constexpr int recurrent_deviations() {
  int n = 0;
  for (int q = 1; q < kProductCount<C>; ++q) n += deviations<C>(q);
  return n;
}
template <class C>
constexpr const int* product_blocks(int q) {
  return q == 0 ? C::kInputBlocks : C::kRecurrentBlocks;
}

// The gate whose rows of the weights feed a column, or -1.
template <class C>
constexpr int gate_of(const int* blocks, int column) {
  for (int g = 0; g < C::kGates; ++g)
    if (blocks[g] == column) return g;
  return -1;
}

// The pointwise function of phase p reads In and fills Out. `saved` is the cell's own: what a phase saves, later phases
// and the backward pass see again. The structs depend on the cell's numbers alone, so that a wrapper of another cell hands
// them on as they are.
template <class V>
struct RealOfVector {
  using Type = V;
};
template <class V>
  requires requires { typename V::Real; }
struct RealOfVector<V> {
  using Type = typename V::Real;
};
template <class V>
using RealOf = typename RealOfVector<V>::Type;  // of a vector of numbers, or a number

template <class V, int kColumns, int kStates, int kSaved, int kParams>
struct ForwardInOf {
  V a[kColumns];         // finished columns: those that this phase owns
  V state[kStates];      // h (and c, or others by name) before this step
  V param[kParams + 1];  // per-unit weights
  V saved[kSaved + 1];   // by the phases before
  V emitted, carried;    // by the phase before, where a row operation is between, and after that operation
  V noise;
  const RealOf<V>* scalar;  // numbers of the whole call
};
template <class V, int kColumns, int kStates, int kSaved, int kParams>
struct ForwardOutOf {
  V state[kStates];
  V saved[kSaved + 1];
  V emitted;
};

// Phases run backwards. The function of phase p sets da for its own columns; that of phase 0, the last to run, adds to
// `dprevious` the direct gradient with respect to the states before the step (not through the products).
template <class V, int kColumns, int kStates, int kSaved, int kParams>
struct BackwardInOf {
  V saved[kSaved + 1];
  V previous[kStates];  // states before the step
  V next[kStates];      // states after it
  V dstate[kStates];    // gradient of the states after it, all paths
  V param[kParams + 1];
  V carried;
  V demitted;  // gradient of what this phase emitted
  V noise;
  const RealOf<V>* scalar;
};
template <class V, int kColumns, int kStates, int kSaved, int kParams>
struct BackwardOutOf {
  V da[kColumns];
  V dprevious[kStates];
  V dcarried;             // gradient of `carried`
  V dcell;                // of two states: gradient of c after the step, all paths (what phase 0 found)
  V dparam[kParams + 1];  // zero when a step begins; a phase sets its own and leaves the others
};

template <class C, class V>
using ForwardIn = ForwardInOf<V, C::kColumns, C::kStates, C::kSaved, C::kParams>;
template <class C, class V>
using ForwardOut = ForwardOutOf<V, C::kColumns, C::kStates, C::kSaved, C::kParams>;
template <class C, class V>
using BackwardIn = BackwardInOf<V, C::kColumns, C::kStates, C::kSaved, C::kParams>;
template <class C, class V>
using BackwardOut = BackwardOutOf<V, C::kColumns, C::kStates, C::kSaved, C::kParams>;

// ---- the concept: each requirement has a name, which the compiler gives where a cell fails it ----

template <class C>
concept SaysItsSizes = requires {
  { C::kColumns } -> std::convertible_to<int>;
  { C::kInput } -> std::convertible_to<Columns>;
  { C::kPhases[0] } -> std::convertible_to<Phase>;
  { C::kGates } -> std::convertible_to<int>;
  { C::kInputBlocks[0] } -> std::convertible_to<int>;
  { C::kRecurrentBlocks[0] } -> std::convertible_to<int>;
  { C::kStates } -> std::convertible_to<int>;
  { C::kSaved } -> std::convertible_to<int>;
  { C::kParams } -> std::convertible_to<int>;
} && C::kStates >= 1 && C::kStates <= kMostStates;

// Every state has a name.
template <class C>
concept NamesItsStates = named_states<C>() == C::kStates;

// Both tables have an entry for every gate (-1: the gate has no such weights); `gate_of` reads them all.
template <class C>
concept HasABlockForEveryGate =
    sizeof(C::kInputBlocks) == C::kGates * sizeof(int) && sizeof(C::kRecurrentBlocks) == C::kGates * sizeof(int);

// Every column of a product has a gate whose weights feed it.
template <class C>
constexpr bool all_columns_are_fed() {
  for (int q = 0; q < kProductCount<C>; ++q) {
    const Columns columns = product_columns<C>(q);
    if (columns.begin < 0 || columns.end > C::kColumns || columns.begin > columns.end) return false;
    for (int column = columns.begin; column < columns.end; ++column)
      if (gate_of<C>(product_blocks<C>(q), column) < 0) return false;
  }
  return true;
}
// Every column is read by one phase, which has it from a product of its own or from W x.
template <class C>
constexpr bool all_columns_are_read() {
  for (int column = 0; column < C::kColumns; ++column) {
    int readers = 0;
    for (const Phase& phase : C::kPhases) {
      if (phase.product.has(column) && !phase.own.has(column)) return false;
      if (phase.own.has(column) && !phase.product.has(column) && !C::kInput.has(column)) return false;
      readers += phase.own.has(column);
    }
    if (readers != 1) return false;
  }
  return true;
}
template <class C>
concept HasColumnsInOrder = all_columns_are_fed<C>() && all_columns_are_read<C>();

// Product operations take columns of their product, no column twice.
template <class C>
constexpr bool all_operations_fit() {
  for (int j = 0; j < op_count<C>(); ++j) {
    const ProductOp op = product_op<C>(j);
    if (op.op == RowOp::kNone || op.product < 0 || op.product >= kProductCount<C> || op.columns.begin >= op.columns.end) return false;
    const Columns product = product_columns<C>(op.product);
    for (int column = op.columns.begin; column < op.columns.end; ++column)
      if (!product.has(column) || op_of<C>(op.product, column) != j) return false;
  }
  return true;
}
template <class C>
concept HasOperationsInOrder = all_operations_fit<C>();

// Every number a unit that is a weight has a name.
template <class C>
concept NamesItsWeights = unit_rows<C>() == kGains<C> + C::kParams && unit_rows<C>() <= kMostUnitRows;

template <class C>
concept HasRoomForItsScalars = scalar_count<C>() >= 0 && scalar_count<C>() <= kMostScalars;

template <class C>
constexpr bool takes_either() {
  for (const Phase& phase : C::kPhases)
    if (phase.before != RowOp::kNone && !phase.product.empty()) return false;
  return true;
}
// A block of R divides h among the heads: what a phase emits, and an h of another width, have no such division.
template <class C>
constexpr bool has_blocks_of_hidden() {
  for (const Phase& phase : C::kPhases)
    if (phase.operand != Operand::kHidden) return false;
  return !is_projected<C>();
}
template <class C>
concept DividesOnlyTheState = !is_block_diagonal<C>() || has_blocks_of_hidden<C>();

// A phase takes what was emitted by a product or by a row operation.
template <class C>
concept TakesTheEmittedOnce = takes_either<C>();

// The first phase has nothing before it whose emitted row it could read.
template <class C>
concept BeginsWithTheState = C::kPhases[0].operand == Operand::kHidden && C::kPhases[0].before == RowOp::kNone;

template <class C, int P>
concept HasPhase = requires(const ForwardIn<C, float>& in, ForwardOut<C, float>& out, const BackwardIn<C, float>& given,
                            BackwardOut<C, float>& gradients) {
  { C::template forward<P>(in, out) } -> std::same_as<void>;
  { C::template backward<P>(given, gradients) } -> std::same_as<void>;
};
template <class C, int P = 0>
constexpr bool has_phases_from() {
  if constexpr (P == kPhaseCount<C>)
    return true;
  else if constexpr (!HasPhase<C, P>)
    return false;
  else
    return has_phases_from<C, P + 1>();
}
template <class C>
concept HasAllPhases = has_phases_from<C>();

// emitted(saved, previous, next): what the phase before a second one, or before a projection, emitted, from what is
// there in the backward pass. A tape need not hold it, and the gradient of the weights that it meets needs it.
template <class C>
concept SaysWhatItEmits = (kPhaseCount<C> == 1 && !is_projected<C>()) || requires(const float* saved, const float* states) {
  { C::emitted(saved, states, states) } -> std::same_as<float>;
};

// hidden(saved, next): h' from the numbers kHiddenReads of what the last phase saved and the other states after the step, of a cell that
// can give it apart from the rest. A driver may then leave h' of forward() alone, and take it when those of other rows are there too.
template <class C>
concept SaysItsHidden = requires(const float* saved, const float* states) {
  { C::kHiddenReads } -> std::convertible_to<Columns>;
  { C::hidden(saved, states) } -> std::same_as<float>;
} && C::kHiddenReads.begin >= 0 && C::kHiddenReads.end <= C::kSaved && C::kHiddenReads.end <= C::kColumns;
template <class C>
concept SaysItsHiddenOrNothing = SaysItsHidden<C> || !requires { C::kHiddenReads; };

template <class C>
concept Cell = SaysItsSizes<C> && NamesItsStates<C> && DividesOnlyTheState<C> && HasABlockForEveryGate<C> && HasColumnsInOrder<C> &&
               HasOperationsInOrder<C> && NamesItsWeights<C> && HasRoomForItsScalars<C> && BeginsWithTheState<C> &&
               TakesTheEmittedOnce<C> && HasAllPhases<C> && SaysWhatItEmits<C> && SaysItsHiddenOrNothing<C>;

}  // namespace ost::OST_SET
