// Cells with one fault each, which must not be taken for a cell, and pairs of cell and driver that must not compile: what
// the contract refuses, checked where the tests are built.
#pragma once
#include "../core/drivers.h"
#include "general.h"
#include "proof.h"

namespace ost::OST_SET {

// `gate_of` would read past the end of the table.
struct ShortTable : MinGru {
  static constexpr int kRecurrentBlocks[] = {-1};
};
static_assert(!HasABlockForEveryGate<ShortTable> && !Cell<ShortTable>);

struct LongTable : MinGru {
  static constexpr int kInputBlocks[] = {0, 1, 2};
};
static_assert(!HasABlockForEveryGate<LongTable> && !Cell<LongTable>);

// A column that no weight feeds.
struct UnfedColumn : Lstm {
  static constexpr int kInputBlocks[] = {0, 1, 2, 2};
};
static_assert(!HasColumnsInOrder<UnfedColumn> && !Cell<UnfedColumn>);

// A column that no phase reads, and one that two phases read.
struct UnreadColumn : Lstm {
  static constexpr Phase kPhases[] = {{Operand::kHidden, {0, 4}, {0, 3}}};
};
static_assert(!HasColumnsInOrder<UnreadColumn> && !Cell<UnreadColumn>);
struct TwiceReadColumn : GruResetBefore {
  static constexpr Phase kPhases[] = {{Operand::kHidden, {0, 2}, {0, 3}}, {Operand::kEmitted, {2, 3}, {2, 3}}};
};
static_assert(!HasColumnsInOrder<TwiceReadColumn> && !Cell<TwiceReadColumn>);

// A first phase that reads what nothing has emitted.
struct BeginsWithEmitted : Lstm {
  static constexpr Phase kPhases[] = {{Operand::kEmitted, {0, 4}, {0, 4}}};
};
static_assert(!BeginsWithTheState<BeginsWithEmitted> && !Cell<BeginsWithEmitted>);

// A second phase, or a projection, of something that the backward pass cannot make again.
struct KeepsWhatItEmits : Lstm {
  static constexpr bool kProjected = true;
};
static_assert(!SaysWhatItEmits<KeepsWhatItEmits> && !Cell<KeepsWhatItEmits>);
struct EmitsOfTwo : GruResetBefore {
  template <class V>
  OST_HD static V emitted(const V* saved, const V* previous) {
    return saved[0] * previous[0];
  }
};
static_assert(!SaysWhatItEmits<EmitsOfTwo> && !Cell<EmitsOfTwo>);

// An operation on what its product does not make, two on one column, and one that does nothing.
struct NormsAnotherProduct : LstmLayerNorm {
  static constexpr ProductOp kProductOps[] = {{0, {0, 4}, RowOp::kLayerNorm}, {2, {0, 4}, RowOp::kLayerNorm}};
};
static_assert(!HasOperationsInOrder<NormsAnotherProduct> && !Cell<NormsAnotherProduct>);
struct NormsTwice : LstmLayerNorm {
  static constexpr ProductOp kProductOps[] = {{0, {0, 4}, RowOp::kLayerNorm}, {0, {3, 4}, RowOp::kLayerNorm}};
};
static_assert(!HasOperationsInOrder<NormsTwice> && !Cell<NormsTwice>);
struct NormsNothing : LstmLayerNorm {
  static constexpr ProductOp kProductOps[] = {{0, {0, 4}, RowOp::kLayerNorm}, {1, {0, 4}, RowOp::kNone}};
};
static_assert(!HasOperationsInOrder<NormsNothing> && !Cell<NormsNothing>);

// A phase that takes what was emitted by a row operation and by a product.
struct TakesTwice : LstmLayerNorm {
  static constexpr Phase kPhases[] = {{Operand::kHidden, {0, 3}, {0, 3}}, {Operand::kEmitted, {3, 4}, {3, 4}, RowOp::kLayerNorm}};
  static constexpr ProductOp kProductOps[] = {{0, {0, 4}, RowOp::kLayerNorm}};
};
static_assert(!TakesTheEmittedOnce<TakesTwice> && !Cell<TakesTwice>);

// Weights without a name, and a name without weights.
struct NamelessGains : LstmLayerNorm {
  static constexpr UnitWeights kUnitWeights[] = {{"weight_ln_ih", 4, true}, {"weight_ln_c", 1, true}, {"bias_ln_c", 1, true}};
};
static_assert(!NamesItsWeights<NamelessGains> && !Cell<NamelessGains>);
static_assert(!NamesItsWeights<LstmCell<true>> && !Cell<LstmCell<true>>);
struct NamesNothing : Lstm {
  static constexpr UnitWeights kUnitWeights[] = {{"weight_peephole", 3}};
};
static_assert(!NamesItsWeights<NamesNothing> && !Cell<NamesNothing>);

// More numbers of a call than there is room for.
struct ReadsTooMuch : LstmGeneral {
  static constexpr int kScalars = kMostScalars + 1;
};
static_assert(!HasRoomForItsScalars<ReadsTooMuch> && !Cell<ReadsTooMuch>);

// States without names, more of them than there is room for, and heads of what has none.
struct NamelessStates : Lstm {
  static constexpr int kStates = 3;
};
static_assert(!NamesItsStates<NamelessStates> && !Cell<NamelessStates>);
struct TooManyStates : SLstm {
  static constexpr int kStates = kMostStates + 1;
  static constexpr const char* kStateNames[] = {"h", "c", "n", "m", "s"};
};
static_assert(!SaysItsSizes<TooManyStates> && !Cell<TooManyStates>);
struct HeadsOfTheEmitted : GruResetBefore {
  static constexpr bool kBlockDiagonal = true;
};
static_assert(!DividesOnlyTheState<HeadsOfTheEmitted> && !Cell<HeadsOfTheEmitted>);

// h' from numbers that are not saved.
struct HiddenOfTheUnsaved : Lstm {
  static constexpr Columns kHiddenReads{3, Lstm::kSaved + 1};
};
static_assert(SaysItsHidden<Lstm> && !SaysItsHiddenOrNothing<HiddenOfTheUnsaved> && !Cell<HiddenOfTheUnsaved>);

// No backward pass.
struct ForwardOnly : Lstm {
  template <int P, class V>
  OST_HD static void backward(const V&);
};
static_assert(!HasAllPhases<ForwardOnly> && !Cell<ForwardOnly>);

// What a driver does not take. The tiles of the GPU's kernels would divide by the columns of a product that is empty.
static_assert(!supports<MinGru, StepDriver> && !supports<MinGru, LoopDriver> && !supports<MinGru, PersistentDriver>);
static_assert(!supports<MinGru, CpuDriver> && !supports<Zoneout<Lstm>, CpuDriver>);
static_assert(!supports<LstmProjected, PersistentDriver> && !supports<GruResetBefore, LoopDriver>);
static_assert(supports<LstmPeephole, ClusterDriver> && !supports<GruResetBefore, ClusterDriver> && !supports<LstmGeneral, ClusterDriver>);
static_assert(!supports<LstmProjected, StreamDriver> && !supports<LstmLayerNorm, StreamDriver>);
static_assert(!supports<LstmLayerNorm, LoopDriver> && !supports<LstmLayerNorm, PersistentDriver>);
static_assert(!supports<Zoneout<Lstm>, StepDriver>);
static_assert(!supports<SLstm, CpuDriver> && !supports<SLstm, StepDriver> && !supports<SLstm, StreamDriver>);
static_assert(!supports<SLstm, LoopDriver> && !supports<SLstm, PersistentDriver> && supports<SLstm, PlainDriver>);
static_assert(supports<LstmLayerNorm, PlainDriver> && supports<GruResetBefore, StepDriver>);
static_assert(supports<LstmGeneral, CpuDriver> && supports<LstmGeneral, StepDriver>);
static_assert(!supports<LstmGeneral, LoopDriver> && !supports<GruGeneral, PersistentDriver>);
static_assert(supports<LstmProjected, StepDriver> && supports<LstmLayerNorm, StepDriver>);
static_assert(supports<LstmProjected, CpuDriver> && supports<LstmLayerNorm, CpuDriver>);

}  // namespace ost::OST_SET
