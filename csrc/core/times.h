// The steps in which the rows of a batch take part, and the step whose state each starts from: the
// table `predecessors` of Times, computed step by step.
#pragma once
#include "common.h"

namespace ost::OST_SET {

// The flags of a call. resets and mask are bytes [T,B]; held, restarted and resets_after are [B];
// any may be null. With `starts` [B] resets and mask are flat: those of row b begin at starts[b],
// and end with the row.
struct MaskInputs {
  Index steps, batch;
  const Index* lengths;
  const std::uint8_t *resets, *mask, *held, *restarted, *resets_after;
  bool repeat, from_end;
  const Index* starts = nullptr;

  OST_HD Index end(Index b) const { return lengths ? lengths[b] : steps; }
  OST_HD Index flag(Index t, Index b) const { return starts ? starts[b] + t : t * batch + b; }
};

// The position of a row on its way through time.
struct RowCursor {
  std::int32_t state, output;

  OST_HD static RowCursor first(const MaskInputs& g, Index b) {
    return {g.restarted && g.restarted[b] ? kRestart : kInitial, g.held && g.repeat && g.held[b] ? kHeld : kSkipped};
  }
  // Return the entry of the table at step t of row b, which must be the next step.
  OST_HD std::int32_t step(const MaskInputs& g, Index t, Index b) {
    const Index end = g.end(b), boundary = g.from_end ? t + 1 : t;  // boundary between two pieces
    if (t >= end) return kSkipped;
    const bool begins =
        boundary < end ? g.resets && g.resets[g.flag(boundary, b)] : g.resets_after && boundary == g.steps && g.resets_after[b];
    if (begins) state = kRestart, output = kSkipped;
    if (g.mask && !g.mask[g.flag(t, b)]) return output;
    const std::int32_t predecessor = state;
    state = std::int32_t(t);
    if (g.repeat) output = std::int32_t(kHeld - 1 - t);
    return predecessor;
  }
};

}  // namespace ost::OST_SET
