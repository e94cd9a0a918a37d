// Where each row of the batch stands in time: which steps it takes part in, and from which state each of them starts.
#pragma once
#include "../core/common.h"

namespace ost::OST_SET {

struct StepMask {
  Index steps, batch;
  bool reverse;
  Times times;

  // The batch row at position i of the row blocks; the tape lies in that order.
  OST_HD Index row_of(Index i) const { return times.order ? times.order[i] : i; }
  OST_HD Index time(Index s) const { return reverse ? steps - 1 - s : s; }
  OST_HD bool active(Index t, Index b) const { return times.predecessors ? code(t, b) > kSkipped : !times.lengths || t < times.lengths[b]; }
  // Where the tape has step t of row b, which is at position i.
  OST_HD Index on_tape(Index t, Index i, Index b) const { return times.tape ? times.tape[b] + t : t * batch + i; }
  // Return the step whose state an active step starts from, or kInitial, or kRestart.
  OST_HD Index predecessor(Index t, Index b) const {
    if (times.predecessors) return code(t, b);
    const Index first = !reverse ? 0 : times.lengths ? times.lengths[b] - 1 : steps - 1;
    return t == first ? Index(kInitial) : reverse ? t + 1 : t - 1;
  }
  // Return the step whose output a skipped step repeats, or kInitial (h0), or kSkipped.
  OST_HD Index repeats(Index t, Index b) const {
    const Index from = times.predecessors ? code(t, b) : Index(kSkipped);
    return from == kSkipped ? from : kHeld - 1 - from;
  }
  // What the row ends with: a step, or kInitial, or kRestart.
  OST_HD Index end(Index b) const {
    if (times.predecessors) return times.predecessors[times.offsets ? times.offsets[b] + times.stops[b] : steps * batch + b];
    const Index length = times.lengths ? times.lengths[b] : steps;
    return length == 0 ? Index(kInitial) : reverse ? 0 : length - 1;
  }
  // None of the rows at the positions [first, last) has more steps.
  OST_HD Index longest(Index first, Index last) const {
    if (!times.stops) return steps;
    Index most = 0;
    for (Index i = first; i < last; ++i) most = times.stops[row_of(i)] > most ? times.stops[row_of(i)] : most;
    return most;
  }

 private:
  // What the table holds.
  OST_HD Index code(Index t, Index b) const {
    if (!times.offsets) return times.predecessors[t * batch + b];
    return t < times.stops[b] ? Index(times.predecessors[times.offsets[b] + t]) : Index(kSkipped);
  }
};

}  // namespace ost::OST_SET
