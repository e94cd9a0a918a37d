// Runs the calls of a group (directions side by side, layers one above the other, or a single one) over the threads of a
// team. Written once for both passes; a driver D (Forward, Backward) knows how to take one row_block through one block of steps.
#pragma once
#include "precision.h"
#include "schedule.h"
#include "step_mask.h"

namespace ost::OST_SET {

constexpr int kMaxCalls = 8;    // a group's; a taller stack is several groups
constexpr Index kFewSteps = 4;  // 0.2 ms of an LSTM with H = 512 on one thread

template <class P>
inline constexpr double kFlops = 1e11 * P::kPack / P::kParts * (sizeof(typename P::Real) == 4 ? 1.0 : 0.5);  // of one thread, for the plan

struct Schedule {
  Plan plan;
  Index block_steps, steps, batch;
  Index copied[2];   // backward: depths of the rows of x and h that are copied for the weight gradients, or 0
  bool recomputes;   // backward: the tape has the states only
  bool direct_sums;  // backward: weight gradients go to the caller's without lying in memory first
  Index blocks() const { return ceil_div(steps, block_steps); }
};

template <class D>
class Team {
  using Call = typename D::Call;
  using Space = typename D::Space;

 public:
  Team(const Call* calls, int count, bool chained) : calls_(calls), count_(count) {
    Index inputs[kMaxCalls];
    for (int i = 0; i < count; ++i) inputs[i] = calls[i].weights->input, most_input_ = larger(most_input_, inputs[i]);
    Needs needs{};  // a plan made now may differ from the caller's: another thread may have changed the number of threads
    if constexpr (requires { calls[0].dx_add; })
      for (int i = 0; i < count; ++i) {
        needs.apart |= calls[i].dx_add;
        needs.sums |= calls[i].sums != nullptr;
        needs.recomputes |= calls[i].saved == nullptr && D::kTapes;
        needs.reordered |= calls[i].times.order != nullptr;
        needs.lookup |= calls[i].lookup.ids.data != nullptr;
        needs.whole_rows |= calls[i].control.clip_norm > 0 || calls[i].control.flow;
      }
    schedule_ = D::schedule(calls[0].steps, calls[0].batch, inputs, calls[0].weights->widths, count, chained, needs);
    chained_ = chained && schedule_.plan.concurrent;
    // Calls of one set run at the same time.
    sets_ = schedule_.plan.concurrent ? 1 : count;
  }

  static void describe(Index steps, Index batch, const Index* inputs, Widths widths, int calls, bool chained, CallPlan* out) {
    const Schedule s = D::schedule(steps, batch, inputs, widths, calls, chained, {});
    static constexpr const char* kNames[] = {"alone", "lanes", "units"};
    *out = {};
    out->spread = kNames[int(s.plan.spread)];
    out->threads = s.plan.threads;
    out->row_blocks = s.plan.parts * calls;
    out->row_block_rows = ceil_div(batch, larger<Index>(1, s.plan.parts));
    out->block_steps = s.block_steps;
    out->concurrent = s.plan.concurrent;
    out->model_seconds = s.plan.seconds;
    D::describe(s, inputs, widths, calls, out);
  }

  static Index workspace(const Schedule& schedule, const Index* inputs, Widths widths, int calls) {
    Arena arena;
    Space spaces[2];
    Index most = 0;
    for (int i = 0; i < calls; ++i) {
      D(schedule, inputs[i], widths).layout_memory(arena);
      most = larger(most, inputs[i]);
    }
    Index one = 0;  // all threads but the first need the same
    for (int i = 0; i < smaller(2, schedule.plan.threads); ++i) {
      const Index before = arena.used();
      D::layout_space(arena, spaces, i, schedule, most, widths);
      one = arena.used() - before;
    }
    return arena.used() + larger(0, schedule.plan.threads - 2) * one;
  }

  int run() {
    if (calls_[0].batch == 0) return kOk;
    const Plan& plan = schedule_.plan;
    Arena objects, arena;
    for (int pass = 0; pass < 2; ++pass) {
      drivers_ = objects.take<D>(count_);
      spaces_ = objects.take<Space>(plan.threads);
      row_blocks_ = objects.take<RowBlock>(count_ * plan.parts);
      if (pass == 0 && !objects.allocate()) return kNoMemory;
    }
    for (int i = 0; i < count_; ++i) new (drivers_ + i) D(calls_[i], schedule_);
    layout(arena);
    if (!arena.allocate()) return kNoMemory;
    layout(arena);
    for (int i = 0; i < count_; ++i) {
      drivers_[i].begin();
      for (Index part = 0; part < plan.parts; ++part) {
        const Range blocks = blocks_of(drivers_[i], part);
        row_blocks_[i * plan.parts + part] = {2 * blocks.begin, i, part, chained_ && i > 0 ? (i - 1) * plan.parts + part : -1, blocks.end};
      }
    }
    for (set_ = 0; set_ < sets_ && !row_blocks_of_set_.stopped(); ++set_) {
      row_blocks_of_set_.set(row_blocks_ + set_ * plan.parts, (count_ / sets_) * plan.parts);
      run_team(plan.threads, [](void* self, int index, Crew& crew) { static_cast<Team*>(self)->work(index, crew); }, this);
    }
    if (row_blocks_of_set_.stopped()) return kStopped;
    for (int i = 0; i < count_; ++i) drivers_[i].end();
    return kOk;
  }

 private:
  void layout(Arena& arena) {
    for (int i = 0; i < schedule_.plan.threads; ++i) D::layout_space(arena, spaces_, i, schedule_, most_input_, calls_[0].weights->widths);
    for (int i = 0; i < count_; ++i) drivers_[i].layout_memory(arena);
  }

  // The blocks of a part that have anything to do.
  Range blocks_of(const D& driver, Index part) const {
    if constexpr (requires { driver.blocks_of(part); })
      return driver.blocks_of(part);
    else
      return {0, schedule_.blocks()};
  }

  void poll(int index) {
    const Poll& p = calls_[0].poll;
    if (index == 0 && p.ask && p.ask(p.context)) row_blocks_of_set_.stop();
  }

  // One set. Gradients are summed in a last turn of the last one.
  void work(int index, Crew& crew) {
    if (schedule_.plan.spread == Spread::kUnitParallel) {
      if (index == 0) share_units(drivers_[set_], crew);
    } else {
      take_row_blocks(row_blocks_of_set_, index);
    }
    const bool last = set_ + 1 == sets_ && drivers_[0].finishes();
    if (index == 0) {
      finishing_ = true;
      if (last && !row_blocks_of_set_.stopped()) finish(0, crew.call());
      return;
    }
    if (schedule_.plan.spread != Spread::kUnitParallel && !last) return;
    for (int rank, count; crew.await(index, &rank, &count);)
      if (finishing_)
        finish(rank, count);
      else
        share_block(drivers_[set_], rank, count);
  }
  void finish(int rank, int count) {
    for (int i = 0; i < count_; ++i) drivers_[i].finish(spaces_[rank], rank, count);
  }

  void take_row_blocks(RowBlocks& row_blocks, int index) {
    Index row_block = -1, block = 0;
    for (;;) {
      poll(index);
      if (!row_blocks.claim(index, &row_block, &block)) return;
      drivers_[row_blocks[row_block].call].run_block(spaces_[index], row_blocks[row_block].part, block, nullptr, 0, 1);
      row_blocks.finish(row_block);
    }
  }

  // A step cannot go on without any of the threads: where they are kept waiting the caller does the rest alone. As long as one is still
  // to come a turn of a forward pass is as many steps as have been taken, but a few at least: whoever comes has a part in the next.
  void share_units(D& driver, Crew& crew) {
    finishing_ = false;
    Index taken = 0;
    for (part_ = 0; part_ < schedule_.plan.parts; ++part_) {
      const Range blocks = blocks_of(driver, part_);
      for (block_ = blocks.begin; block_ < blocks.end; ++block_)
        for (Range left = steps_of(driver); left.begin < left.end; left.begin = steps_.end) {
          poll(0);
          if (row_blocks_of_set_.stopped()) return;
          if (team_waits()) crew.dismiss();
          const bool complete = crew.complete(0.1 * schedule_.plan.seconds);
          steps_ = left;
          if (D::kCutsAnywhere && !complete) steps_.end = smaller(left.end, left.begin + larger(kFewSteps, taken));
          share_block(driver, 0, crew.call());
          taken += steps_.end - steps_.begin;
        }
    }
  }
  // Those of the present block; of a pass that is not cut, the block itself.
  Range steps_of(const D& driver) const {
    if constexpr (D::kCutsAnywhere)
      return driver.steps_of(block_);
    else
      return {block_, block_ + 1};
  }
  void share_block(D& driver, int rank, int count) {
    if constexpr (D::kCutsAnywhere)
      driver.run_steps(spaces_[rank], part_, steps_, &barrier_, rank, count);
    else
      driver.run_block(spaces_[rank], part_, block_, &barrier_, rank, count);
    barrier_wait(&barrier_, count);
  }

  const Call* calls_;
  int count_, sets_;
  bool chained_;
  Index most_input_ = 0;
  Schedule schedule_;
  D* drivers_;
  Space* spaces_;
  RowBlock* row_blocks_;
  Barrier barrier_;
  // What the present turn is about, written by the caller before it gives one.
  int set_ = 0;
  RowBlocks row_blocks_of_set_;
  bool finishing_ = false;
  Index part_ = 0, block_ = 0;
  Range steps_{0, 0};
};

}  // namespace ost::OST_SET
