// How the blocks of a persistent kernel divide units, rows and phases among themselves, and what one
// launch is given.
#pragma once
#include "backward.h"
#include "exchange_engine.h"

namespace ost::OST_SET {

// Buffers of the launches of a pass.
template <class T>
struct PassBuffers {
  ExchangeBuffer buffer;
  T* carry;  // [problem][states][B][H]: states from launch to launch
};
// Arguments of one launch.
template <class T>
struct LaunchArgs {
  ExchangeBuffer buffer;
  T* carry;
  Index first_step, steps, first_row;
  Index slots;  // of each problem of a group
  int groups, problems;
  bool layer_pipelined;  // the second problem is a layer whose upstream layer is the first
};

// One object for each phase from F on.
template <template <int> class Of, int F, int kEnd>
struct PerPhase {
  Of<F> own;
  PerPhase<Of, F + 1, kEnd> others;
};
template <template <int> class Of, int kEnd>
struct PerPhase<Of, kEnd, kEnd> {};
template <int F, template <int> class Of, int kFirst, int kEnd>
OST_HD auto& get_phase(PerPhase<Of, kFirst, kEnd>& all) {
  if constexpr (F == kFirst)
    return all.own;
  else
    return get_phase<F>(all.others);
}

// Columns of a unit that the weights of a phase feed forward, and that are exchanged backward: all
// columns where layers are pipelined.
template <class C>
constexpr Columns shared_columns(int phase, bool layer_pipelined) {
  return layer_pipelined ? Columns{0, C::kColumns} : product_columns<C>(phase + 1);
}
// Tiles of outputs of a block, summed over all phases; and columns.
template <class C>
constexpr int all_out_tiles(int units, bool layer_pipelined) {
  int tiles = 0;
  for (int f = 0; f < kPhaseCount<C>; ++f) tiles += (units * shared_columns<C>(f, layer_pipelined).count() + 15) / 16;
  return tiles;
}
template <class C>
constexpr int all_columns(bool layer_pipelined) {
  int count = 0;
  for (int f = 0; f < kPhaseCount<C>; ++f) count += shared_columns<C>(f, layer_pipelined).count();
  return count;
}

// The part of a problem that a block computes: units from u0 on, of rows from b0 on, one unit of
// one row a thread; and the slots of its group, [slot][problem]: a slot of the second problem is
// followed by the next one of the first, which is that of its upstream layer.
// Of the threads of a warp half have rows below 8, the others the same units of the rows 8 further.
template <int kUnits>
struct BlockRange {
  static constexpr int kCells = kGroupRows * kUnits, kAside = 16 / kUnits;  // rows of half a warp
  static_assert(16 % kUnits == 0);
  OST_HD static int row_of(int thread) { return thread / 32 * kAside + thread % 16 / kUnits + thread % 32 / 16 * 8; }
  OST_HD static int unit_of(int thread) { return thread % kUnits; }
  OST_HD static int thread_of(int row, int unit) { return row % 8 / kAside * 32 + row / 8 * 16 + row % kAside * kUnits + unit; }
  OST_HD bool has(int thread) const { return thread < kCells && row_of(thread) < rows && u0 + unit_of(thread) < hidden; }
  // Whether it sends, zeros where it has no unit: the first of two rows is within the batch.
  OST_HD bool sends(int thread) const { return thread < kCells && row_of(thread) % 8 < rows; }
  Index b0, u0, hidden;
  Index rows;  // rows within the batch
  Index z;     // which of the two problems
  std::uint32_t* slots;
  Index stride;  // words from slot to slot
  bool upstream;
  template <class T>
  OST_HD BlockRange(const Block& block, const Problem<T>& p, const LaunchArgs<T>& launch_args, Index slot_words)
      : b0(launch_args.first_row + block.y * kGroupRows),
        u0(block.x * kUnits),
        hidden(p.hidden),
        rows(smaller<Index>(kGroupRows, p.batch - b0)),
        z(block.z),
        slots(launch_args.buffer.slots() + (block.y * launch_args.slots * launch_args.problems + block.z) * slot_words),
        stride(launch_args.problems * slot_words),
        upstream(launch_args.layer_pipelined && block.z > 0) {}
  OST_HD std::uint32_t* slot(Index number) const { return slots + number * stride; }
  // Return whether no earlier launch of this pass has been given up.
  template <class T>
  OST_HD static bool ok(const LaunchArgs<T>& launch_args) {
    return poll(launch_args.buffer.status()) == kOk;
  }
};

}  // namespace ost::OST_SET
