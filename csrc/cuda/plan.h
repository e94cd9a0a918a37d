// What the planner, which is Python's (ostinato/_plan.py), may choose.
#pragma once
#include "../core/common.h"

namespace ost::OST_SET {

// Hidden units for whose recurrent weights the registers of one multiprocessor have room, with up to four columns a unit: at most 128 KB of
// the 256 KB (2-byte words, H = 128), since a thread needs others as well; 64 KB exact (H = 64), where a thread has eight sums beside them.
template <class T, class W>
inline constexpr int kLoopRoom[2] = {sizeof(W) == 2 ? 64 : 32, sizeof(W) == 2 ? 128 : 64};

// How one pass over one layer and direction is run; all zero: tile by tile, a launch a step.
struct Plan {
  int loop;      // room for hidden units of the kernel in which a block runs all steps
  int rows;      // of a block that streams the weights
  int units;     // of a block, where the weights are shared among multiprocessors that run all steps
  int peers;     // of them that write to each other's shared memory, in the backward pass
  int groups;    // of such blocks, that run at the same time
  Index span;    // steps of one such launch
  int together;  // problems in a launch: 2 are both directions, or with `wave` two layers
  bool wave;
};

}  // namespace ost::OST_SET
