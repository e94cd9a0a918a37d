// What the planner, which is Python's (ostinato/_plan.py), may choose.
#pragma once
#include "../core/common.h"

namespace ost::OST_SET {

// Hidden units for whose recurrent weights the registers of one multiprocessor have room, with up to four columns a unit: at most 128 KB of
// the 256 KB (2-byte words, H = 128), since a thread needs others as well; 64 KB exact (H = 64), where a thread has eight sums beside them.
template <class T, class W>
inline constexpr int kLoopRoom[2] = {sizeof(W) == 2 ? 64 : 32, sizeof(W) == 2 ? 128 : 64};

}  // namespace ost::OST_SET
