// Cells with one fault each, which must not be taken for a cell, and pairs of cell and driver that must not compile: what
// the contract refuses, checked where the tests are built.
#pragma once
#include "../core/drivers.h"
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

// No backward pass.
struct ForwardOnly : Lstm {
  template <int P, class V>
  OST_HD static void backward(const V&);
};
static_assert(!HasAllPhases<ForwardOnly> && !Cell<ForwardOnly>);

// What a driver does not take. The tiles of the GPU's kernels would divide by the columns of a product that is empty.
static_assert(!supports<MinGru, StepDriver> && !supports<MinGru, LoopDriver> && !supports<MinGru, PersistentDriver>);
static_assert(!supports<LstmLayerNorm, CpuDriver> && !supports<Zoneout<Lstm>, CpuDriver>);
static_assert(!supports<LstmProjected, StepDriver> && !supports<GruResetBefore, LoopDriver>);
static_assert(supports<LstmLayerNorm, PlainDriver> && supports<GruResetBefore, StepDriver>);
static_assert(supports<LstmProjected, CpuDriver>);

}  // namespace ost::OST_SET
