// Exchange buffer between the blocks of one launch. A pair of words is written once, in one piece of
// 8 bytes, to a location that starts unset; readers poll it until it is set, so the data is its own
// flag and needs no fence and no barrier. Blocks of such a launch read nothing else of each other.
// Every wait is bounded.
#pragma once
#include "mma.h"

namespace ost::OST_SET {

constexpr std::uint32_t kUnset = 0xffffffff;  // a pair of 2-byte NaN that is never written
constexpr int kHeaderWords = 4;               // the status, and three zeros that align the first slot

constexpr int kSpinLimit = 1 << 22;  // polls of a word before the launch is given up: seconds; in shared memory, less

enum LaunchStatus : std::uint32_t { kOk, kTimeout, kOutOfRange };  // the end of a launch

struct ExchangeBuffer {
  std::uint32_t* memory;       // a header, then the step slots; null where nothing is exchanged
  std::uint32_t* host_status;  // a word that the host can read without waiting, or null
  int spin_limit;              // polls of a word before the launch is given up

  OST_HD std::uint32_t* status() const { return memory; }
  OST_HD std::uint32_t* slots() const { return memory + kHeaderWords; }
  OST_HD const float* zero() const { return reinterpret_cast<const float*>(memory + 1); }
};

#if !defined(__CUDACC__)
// Random delays of emulated blocks, which keep them from running in the same order every time.
struct Delays {
  static inline thread_local std::uint32_t state = 0;  // 0: none
  static void begin(std::uint32_t seed) { state = seed; }
  static void wait() {
    if (state == 0) return;
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    for (std::uint32_t n = state % 64 == 0 ? state / 64 % 16 : 0; n > 0; --n) Turns::pass();
  }
};
#endif

OST_HD void store_relaxed(std::uint32_t* place, std::uint32_t word) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(place), "r"(word) : "memory");
#else
#if !defined(__CUDACC__)
  Delays::wait();
#endif
  __atomic_store_n(place, word, __ATOMIC_RELAXED);
#endif
}
OST_HD std::uint32_t poll(const std::uint32_t* place) {
#if defined(__CUDA_ARCH__)
  std::uint32_t word;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(place) : "memory");
  return word;
#else
  return __atomic_load_n(place, __ATOMIC_RELAXED);
#endif
}
// Write two neighbouring words in one piece. Rows beyond the batch are the second of a pair, or both.
OST_HD void store_pair(std::uint32_t* place, std::uint32_t first, std::uint32_t second) {
  const std::uint64_t both = std::uint64_t(second) << 32 | first;
#if defined(__CUDA_ARCH__)
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(place), "l"(both) : "memory");
#else
#if !defined(__CUDACC__)
  Delays::wait();
#endif
  __atomic_store_n(reinterpret_cast<std::uint64_t*>(place), both, __ATOMIC_RELAXED);
#endif
}
// Read two neighbouring pairs; each of them may be set before the other.
OST_HD void poll_pairs(const std::uint32_t* place, std::uint32_t* words) {
#if defined(__CUDA_ARCH__)
  asm volatile("{.reg .b64 a, b;\n\tld.relaxed.gpu.global.v2.b64 {a, b}, [%4];\n\tmov.b64 {%0, %1}, a;\n\tmov.b64 {%2, %3}, b;}"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "l"(place)
               : "memory");
#else
  for (int i = 0; i < 2; ++i) {
    const std::uint64_t both = __atomic_load_n(reinterpret_cast<const std::uint64_t*>(place) + i, __ATOMIC_RELAXED);
    words[2 * i] = std::uint32_t(both), words[2 * i + 1] = std::uint32_t(both >> 32);
  }
#endif
}
// Both words of a pair are set together, so that one of them tells.
OST_HD bool is_unset(const std::uint32_t* words) { return words[0] == kUnset || words[2] == kUnset; }
// Pack two numbers into a word that is not kUnset.
template <class W>
OST_HD std::uint32_t encode(W low, W high) {
  const std::uint32_t word = pair_of<W>(low, high);
  return word == kUnset ? 0x7fff7fff : word;
}

// Called between polls that found an unset word. Return false once this thread or another one has
// timed out.
OST_HD bool keep_polling(const ExchangeBuffer& buffer, int polls) {
#if !defined(__CUDACC__)
  Turns::pass();
#endif
  if (polls >= buffer.spin_limit) store_relaxed(buffer.status(), kTimeout);
  if (polls < buffer.spin_limit && polls % 1024 != 1023) return true;
  return poll(buffer.status()) == kOk;
}

// Split a float into the words of a product: the number rounded to Word, and with two parts its
// low-order term, scaled to the magnitude of the first word, since it would be too small for Half.
template <class Word>
inline constexpr float kResidualScale = 1;
template <>
inline constexpr float kResidualScale<Half> = 2048;
template <class Word, int kParts>
OST_HD void split_float(float v, Word* words) {
  words[0] = Narrow<Word>::of(v);
  if constexpr (kParts > 1) {
    const float residual = v - widen(words[0]);
    words[1] = Narrow<Word>::of(residual == residual ? residual * kResidualScale<Word> : 0.0f);  // infinity has no low-order term
  }
}

// Set the words that are sent to kUnset, and all others to zero: those of rows beyond the batch, of
// inputs beyond the last one that a block sends, and of the first and the last slot of a backward
// pass. Before the first launch of a pass also reset the status.
struct ClearExchangeKernel {
  ExchangeBuffer buffer;
  Index slot_words, slots;  // of each problem of a group: slots of so many words, as ExchangeEngine has them
  Index problems, groups, rows;
  Index sent[2];  // inputs of each phase, in the order in which they run
  int phases, parts;
  bool backward, begin;
  struct Space {};
  struct alignas(16) Four {
    std::uint32_t word[4];
  };
  OST_HD Index fours() const { return groups * slots * problems * (slot_words / 4); }
  Grid grid() const { return {ceil_div(fours() + 1, kThreads)}; }
  struct Sent {
    bool low, high;  // rows g and g + 8
  };
  OST_HD Sent is_sent(Index i) const {
    const Index four = i % (slot_words / 4), at = i / (slot_words / 4) / problems, slot = at % slots - backward, group = at / slots;
    const Index row = group * 16 + four % 32 / 4, in = four / (32 * parts) * 16 + four % 4 * 4;
    const bool there = in < sent[slot < 0 ? 0 : slot % phases] && !(backward && (slot < 0 || slot + 2 == slots));
    return {there && row < rows, there && row + 8 < rows};
  }
  OST_HD void operator()(const Block& block, Space&) const {
    block.for_each_thread_sync([&](int thread) {
      const Index i = block.x * kThreads + thread;
      if (i < fours()) {
        const Sent sent_by = is_sent(i);
        const std::uint32_t low = sent_by.low ? kUnset : 0, high = sent_by.high ? kUnset : 0;
        reinterpret_cast<Four*>(buffer.slots())[i] = {low, high, low, high};
      }
      if (begin && i < kHeaderWords) buffer.memory[i] = i == 0 ? std::uint32_t(kOk) : 0;
    });
  }
};

}  // namespace ost::OST_SET
