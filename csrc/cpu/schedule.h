// How a call is spread over threads: a small static cost model, and the memory of one call.
#pragma once
#include <cstdlib>

#include "../core/common.h"
#include "pool.h"

namespace ost::OST_SET {

enum class Axis {
  kNone,   // one thread
  kRows,   // batch rows: each thread takes its rows through time without a barrier
  kUnits,  // hidden units: all threads work on the same step, one barrier a phase
};

struct Plan {
  Axis axis;
  int threads;
};

// A step of b rows costs its products, but never less than streaming the weights from L2, which takes as long as about 2.2 rows
// of arithmetic (113 GB/s against 117 GFLOP/s, 4 bytes a weight). A barrier costs about 0.1 us, waking a worker 5 us.
inline Plan make_plan(Index steps, Index batch, Index operand, Index width, Index groups, int barriers) {
  const int threads = thread_count(), sharers = int(smaller<Index>(threads, groups));
  const double row = 2e-9 * double(operand) * double(width) / 100;  // seconds of one row's step at 100 GFLOP/s
  const auto bound = [](double rows) { return rows > 2.2 ? rows : 2.2; };
  const double alone = row * bound(double(batch));
  const double by_rows = row * bound(double(ceil_div(batch, threads)));
  const double by_units = row * bound(double(batch)) / sharers + barriers * 1e-7;
  const double best = smaller(by_rows, by_units);
  if (threads == 1 || double(steps) * (alone - best) < 5e-6) return {Axis::kNone, 1};
  if (by_rows <= by_units && batch > 1) return {Axis::kRows, int(smaller<Index>(threads, batch))};
  return {Axis::kUnits, sharers};
}

// One block of memory a call, cut into 64-byte aligned pieces: measure first (memory null), then allocate, then cut again.
class Arena {
 public:
  ~Arena() { std::free(memory_); }
  Arena() = default;
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
  bool allocate() {
    if (posix_memalign(&memory_, 64, std::size_t(used_ + 64)) != 0) return refuse_bytes(used_), memory_ = nullptr, false;
    used_ = 0;
    return true;
  }

 private:
  void* memory_ = nullptr;
  Index used_ = 0;
};

template <class T>
void fill_zero(T* p, Index n) {
  __builtin_memset(p, 0, std::size_t(n) * sizeof(T));
}

}  // namespace ost::OST_SET
