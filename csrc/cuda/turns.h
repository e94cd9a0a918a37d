// Blocks that wait for each other, emulated. Each has a stack of its own, and one thread of the CPU
// runs them in turn: a block that has to wait hands over to the next one. As threads they would spin,
// and on a busy machine every look at a word that is not there may cost a time slice. A sanitizer
// sees what blocks share only where they are threads, so there they are (OST_BLOCKS_ARE_THREADS).
#pragma once
#if defined(OST_BLOCKS_ARE_THREADS)
#include <sched.h>

#include <thread>
#else
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#endif
#include <vector>

#include "../core/common.h"

namespace ost::OST_SET {

#if defined(OST_BLOCKS_ARE_THREADS)
class Turns {
 public:
  // Run body(i) for every i below count.
  template <class F>
  static void run(Index count, const F& body) {
    std::vector<std::thread> blocks;
    for (Index i = 0; i < count; ++i) blocks.emplace_back([&body, i] { body(i); });
    for (auto& block : blocks) block.join();
  }
  // Let the others run, for one of which the caller waits.
  static void pass() { sched_yield(); }
  // Return which of the blocks of this thread of the CPU the caller is.
  static Index number() { return 0; }
};
#else
class Turns {
 public:
  // Run body(i) for every i below count.
  template <class F>
  static void run(Index count, const F& body) {
    Turns turns(count, body);
    Turns* const outer = current_;
    current_ = &turns;
    while (turns.left_ > 0)
      for (turns.turn_ = 0; turns.turn_ < count; ++turns.turn_)
        if (!turns.done_[turns.turn_]) swapcontext(&turns.caller_, &turns.blocks_[turns.turn_]);
    current_ = outer;
  }
  // Let the others run, for one of which the caller waits.
  static void pass() { swapcontext(&current_->blocks_[current_->turn_], &current_->caller_); }
  // Return which of the blocks of this thread of the CPU the caller is.
  static Index number() { return current_->turn_; }

 private:
  static constexpr std::size_t kStackBytes = 8 << 20;  // as that of a thread: pages are there once they are touched
  static constexpr std::size_t kKeptStacks = 64;
  // Stacks stay for the next launch, since touching fresh pages takes longer than a step.
  struct Stacks : std::vector<void*> {
    void keep(std::size_t most) {
      for (; size() > most; pop_back()) munmap(back(), kStackBytes);
    }
    void* at(std::size_t i) {
      for (; size() <= i; push_back(made())) continue;
      return (*this)[i];
    }
    static void* made() {
      void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (stack == MAP_FAILED) std::perror("a stack of an emulated block"), std::abort();
      mprotect(stack, 4096, PROT_NONE);  // what runs over it ends the process
      return stack;
    }
    ~Stacks() { keep(0); }
  };

  Turns(Index count, std::function<void(Index)> body) : body_(std::move(body)), blocks_(count), done_(count), left_(count) {
    for (Index i = 0; i < count; ++i) prepare(blocks_[i], stacks_.at(i));
  }
  ~Turns() { stacks_.keep(kKeptStacks); }
  Turns(const Turns&) = delete;

  void prepare(ucontext_t& block, void* stack) {
    getcontext(&block);
    block.uc_stack.ss_sp = stack, block.uc_stack.ss_size = kStackBytes;
    block.uc_link = &caller_;
    makecontext(&block, &Turns::run_one, 0);
  }
  static void run_one() {
    Turns& turns = *current_;
    const Index i = turns.turn_;
    turns.body_(i);
    turns.done_[i] = true;
    --turns.left_;
  }

  static inline thread_local Turns* current_ = nullptr;
  static inline thread_local Stacks stacks_;
  std::function<void(Index)> body_;
  ucontext_t caller_;
  std::vector<ucontext_t> blocks_;
  std::vector<bool> done_;
  Index left_, turn_ = 0;
};
#endif

}  // namespace ost::OST_SET
