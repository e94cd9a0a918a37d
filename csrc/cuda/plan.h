// The choices of the planner, which is written in Python (ostinato/_plan.py).
#pragma once
#include "../core/common.h"

namespace ost::OST_SET {

// Register capacity: the hidden units whose recurrent weights, up to four columns a unit, fit the
// registers of one multiprocessor. It is at most 128 KB of the 256 KB for 2-byte words (H = 128),
// since a thread needs other registers as well, and 64 KB for exact words and for two words of 2
// bytes (H = 64).
template <class T, class W>
inline constexpr int kLoopCapacity[2] = {sizeof(W) == 2 ? 64 : 32, sizeof(W) == 2 ? 128 : 64};

// How one pass over one layer and direction is run. All zero: tile by tile, a launch for every
// step.
struct Plan {
  int loop;         // register capacity of the kernel in which a block runs all steps
  bool loop_split;  // whether it multiplies a float as two words of 2 bytes
  int rows;         // rows of such a block, or of one that streams the weights
  int units;        // units of a block, where the weights are partitioned among multiprocessors that run all steps
  int peers;        // blocks that write to each other's shared memory, in the backward pass
  int groups;       // groups of such blocks that run at the same time
  Index span;       // steps of such a launch
  int co_launched;  // problems in a launch; 2 are both directions, or with `layer_pipelined` two layers
  bool layer_pipelined;
  int cluster;  // blocks of a cluster that takes a few rows through all steps
};

}  // namespace ost::OST_SET
