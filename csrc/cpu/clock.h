// Where each row of the batch stands in time: which steps it takes part in, and from which state each of them starts.
#pragma once
#include "../core/common.h"

namespace ost::OST_SET {

struct Clock {
  Index steps, batch;
  bool reverse;
  Times times;

  // The batch row at position i of the lanes; the tape lies in that order.
  OST_HD Index row_of(Index i) const { return times.order ? times.order[i] : i; }
  OST_HD Index time(Index s) const { return reverse ? steps - 1 - s : s; }
  OST_HD bool active(Index t, Index b) const {
    return times.before ? times.before[t * batch + b] > kSkipped : !times.lengths || t < times.lengths[b];
  }
  // Of an active step: the one whose state it starts from, or kInitial, or kRestart.
  OST_HD Index before(Index t, Index b) const {
    if (times.before) return times.before[t * batch + b];
    const Index first = !reverse ? 0 : times.lengths ? times.lengths[b] - 1 : steps - 1;
    return t == first ? Index(kInitial) : reverse ? t + 1 : t - 1;
  }
  // Of a step that is skipped: the one whose output it repeats, or kInitial (h0), or kSkipped.
  OST_HD Index repeats(Index t, Index b) const {
    const Index code = times.before ? times.before[t * batch + b] : kSkipped;
    return code == kSkipped ? code : kHeld - 1 - code;
  }
  // What the row ends with: a step, or kInitial, or kRestart.
  OST_HD Index end(Index b) const {
    if (times.before) return times.before[steps * batch + b];
    const Index length = times.lengths ? times.lengths[b] : steps;
    return length == 0 ? Index(kInitial) : reverse ? 0 : length - 1;
  }
};

}  // namespace ost::OST_SET
