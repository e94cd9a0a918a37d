// How a call is spread over threads: a small static cost model, and the memory of one call.
#pragma once
#include "../core/common.h"
#include "pool.h"

namespace ost::OST_SET {

// How the calls of one group (directions side by side, or layers each reading the one below) are spread over threads.
enum class Spread {
  kSerial,         // one thread, call after call
  kBatchParallel,  // a row_block is a range of batch rows of one call; each goes through time on one thread, without a barrier
  kUnitParallel,   // all threads work on the same step of one call, split by hidden units: one barrier a phase
};

struct Plan {
  Spread spread;
  int threads;
  Index parts;      // row_blocks of one call
  bool concurrent;  // row_blocks of all calls at once; else call after call
  double seconds;   // by the model
};

constexpr Index kRowBlockRows = 20;  // batch rows that travel through time together: 4 tiles of 5; AVX2: with 36 1.01 at H = 1024, else 1
constexpr Index kWaveBlocks = 8;     // layers at the same time take at least so many blocks of steps, of which L - 1 fill the wave
constexpr double kRowsBound = 2.2, kBarrier = 2.5e-7, kWake = 5e-6;

struct Needs {
  bool apart = false;       // calls must not run at the same time: they add to the same dx
  bool whole_rows = false;  // a row of the batch stays on one thread: its norms are taken
  bool sums = false;        // the sums of the weight gradients outlive the call
  bool recomputes = false;  // the tape has the states only
  bool reordered = false;   // the rows of a row_block do not lie one after the other
  bool lookup = false;      // x is looked up in a table
};

struct Group {
  Index steps, batch;
  int calls;
  bool chained;  // call i + 1 reads what call i writes
  Needs needs;
  Index ahead, each;        // depth of the products taken for a block of steps at once, and of those that every step waits for
  Index width;              // of both: G * padded H
  Index groups;             // of hidden units
  int barriers;             // a step, if units are split
  Index parts;              // row_blocks of a call where they are fixed, else 0
  Index blocks;             // that a wavefront of layers would have
  double flops_per_second;  // of one thread, about
};

// A step of b rows costs its products, but the recurrent ones never less than streaming the weights from L2, which takes as
// long as about 2.2 rows of arithmetic (113 GB/s against 117 GFLOP/s and 4 bytes a weight; 2 bytes at twice the rate, 1 byte
// at four times: the same). A barrier of two threads with the other half of h after it costs about 0.25 us, waking a worker 5 us.
inline Plan make_plan(const Group& g) {
  const int threads = thread_count();
  const auto step = [&](Index rows) {  // seconds on one thread
    const double r = double(rows), bound = r > kRowsBound ? r : kRowsBound;
    return 2 * double(g.width) * (double(g.ahead) * r + double(g.each) * bound) / g.flops_per_second;
  };
  const double steps = double(g.steps), alone = steps * g.calls * step(g.batch);
  Plan best{Spread::kSerial, 1, g.parts ? g.parts : larger<Index>(1, ceil_div(g.batch, kRowBlockRows)), false, alone};
  if (threads == 1 || g.batch == 0 || g.steps == 0) return best;

  // RowBlocks call by call, or of all calls concurrent where one call has too few rows to go round.
  const auto in_row_blocks = [&](bool concurrent) {
    const Index others = concurrent ? g.calls : 1;
    Index parts = larger<Index>(ceil_div(g.batch, kRowBlockRows), ceil_div(threads, others));
    if (parts * others % threads != 0 && others <= threads && threads % others == 0)
      parts = ceil_div(parts * others, threads) * threads / others;
    parts = g.parts ? g.parts : smaller(parts, g.batch);
    const Index row_blocks = parts * others, busy = smaller<Index>(threads, row_blocks);
    double seconds = steps * step(ceil_div(g.batch, parts)) * double(ceil_div(row_blocks, busy)) * (concurrent ? 1 : g.calls);
    if (concurrent && g.chained) seconds *= 1 + double(ceil_div(busy, parts) - 1) / double(g.blocks);  // the wave fills and drains
    return Plan{Spread::kBatchParallel, int(busy), parts, concurrent, seconds + kWake};
  };
  const int sharers = int(smaller<Index>(threads, g.groups));
  const Plan units{Spread::kUnitParallel, sharers, g.parts ? g.parts : 1, false,
                   steps * g.calls * (step(g.batch) / sharers + g.barriers * kBarrier) + kWake};
  const auto consider = [&](const Plan& p) {
    if (p.seconds < best.seconds && p.threads > 1) best = p;
  };
  consider(in_row_blocks(false));
  if (g.calls > 1 && !g.needs.apart) consider(in_row_blocks(true));
  if (!g.needs.whole_rows) consider(units);
  return best;
}

// Pieces of n, of `most` or as many fewer as give each thread one, each taken by whichever thread comes first.
class Share {
 public:
  bool next(Index n, Index most, Range* out) {
    const Index piece = smaller(most, larger<Index>(1, ceil_div(n, thread_count())));
    const Index begin = __atomic_fetch_add(&taken_, piece, __ATOMIC_RELAXED);
    *out = {begin, smaller(n, begin + piece)};
    return begin < n;
  }

 private:
  Index taken_ = 0;
};

// Who does what: each row_block goes through its blocks in order, one thread at a time; a thread takes whichever free row_block is
// furthest behind, so that one that the system has put aside holds up its own row_block only.
struct RowBlock {
  Index progress;  // 2 * blocks done, odd while taken
  int call;
  Index part;
  Index after;  // the row_block that must be a block ahead, or -1
  Index end;    // of its blocks
};

class RowBlocks {
 public:
  void set(RowBlock* row_blocks, Index count) { row_blocks_ = row_blocks, count_ = count; }
  // The next block for a thread that last ran row_block *row_block (-1: none); false when there is nothing left for it.
  bool claim(int index, Index* row_block, Index* block) {
    for (Wait wait(&bell_);;) {
      if (stopped()) return false;
      Index best = -1, lowest = 0, progress = 0;
      bool done = true, waiting = false;
      for (Index i = 0; i < count_; ++i) {
        const Index c = (i + index) % count_;
        const Index at = __atomic_load_n(&row_blocks_[c].progress, __ATOMIC_ACQUIRE);
        if (at >= 2 * row_blocks_[c].end) continue;
        done = false;
        if (at % 2) continue;
        if (const Index after = row_blocks_[c].after;
            after >= 0 && __atomic_load_n(&row_blocks_[after].progress, __ATOMIC_ACQUIRE) / 2 <= at / 2) {
          waiting = true;
          continue;
        }
        const Index rank = at - (c == *row_block ? 3 : 0);  // its weights are in this core's cache: stay, unless another is far behind
        if (best < 0 || rank < lowest) best = c, lowest = rank, progress = at;
      }
      // All that is left is taken: a worker leaves it to those who have it; the caller must stay anyway.
      if (done || (best < 0 && !waiting && index > 0)) return false;
      if (best < 0) {
        wait.look_again();
        continue;
      }
      if (!__atomic_compare_exchange_n(&row_blocks_[best].progress, &progress, progress + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
        continue;
      *row_block = best, *block = progress / 2;
      return true;
    }
  }
  const RowBlock& operator[](Index row_block) const { return row_blocks_[row_block]; }
  void finish(Index row_block) {
    __atomic_fetch_add(&row_blocks_[row_block].progress, 1, __ATOMIC_SEQ_CST);
    ring(&bell_);
  }
  // Nobody is given anything more, in this set of row blocks and in later ones, and those who wait return.
  void stop() {
    __atomic_exchange_n(&stopped_, 1, __ATOMIC_SEQ_CST);
    ring(&bell_);
  }
  bool stopped() const { return __atomic_load_n(&stopped_, __ATOMIC_RELAXED); }

 private:
  Bell bell_;
  RowBlock* row_blocks_ = nullptr;
  Index count_ = 0;
  int stopped_ = 0;
};

// One block of memory a call, cut into 64-byte aligned pieces: measure first (memory null), then allocate, then cut again.
class Arena {
 public:
  ~Arena() {
    if (!lent_) free_block(memory_);
  }
  Arena() = default;
  explicit Arena(void* lent) : memory_(lent), lent_(true) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  template <class A>
  A* take(Index count) {
    A* p = reinterpret_cast<A*>(reinterpret_cast<std::uintptr_t>(memory_) + std::uintptr_t(used_));  // memory_ is null while measuring
    used_ += (count * Index(sizeof(A)) + 63) / 64 * 64;
    return p;
  }
  template <class A>
  A* make(Index count) {  // an arena of one piece
    take<A>(count);
    return allocate() ? take<A>(count) : nullptr;
  }
  Index used() const { return used_; }  // bytes
  bool allocate() {
    memory_ = allocate_block(std::size_t(used_ + 64));
    if (!memory_) return refuse_bytes(used_), false;
    used_ = 0;
    return true;
  }

 private:
  void* memory_ = nullptr;
  Index used_ = 0;
  bool lent_ = false;
};

template <class T>
void fill_zero(T* p, Index n) {
  __builtin_memset(p, 0, std::size_t(n) * sizeof(T));
}

}  // namespace ost::OST_SET
