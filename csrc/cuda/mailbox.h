// How blocks of one launch hand words to each other: a word is stored once, in a place that begins empty, and whoever needs it looks at
// that place until it is not. So what is sent is its own flag, and no fence and no barrier orders anything. What goes this way is the only
// thing that a block of such a launch reads of another one. No wait is endless.
#pragma once
#include "mma.h"
#if !defined(__CUDACC__)
#include <sched.h>
#endif

namespace ost::OST_SET {

constexpr std::uint32_t kEmpty = 0xffffffff;  // two 2-byte NaN; those that are sent are others
constexpr int kMailboxHeader = 4;             // words before the first slot: the verdict, and three that align what follows

constexpr int kPatience = 1 << 22;  // some seconds

enum Verdict : std::uint32_t { kWell, kLate, kRange };  // what a launch ended with

struct Mailbox {
  std::uint32_t* memory;  // a header, then slots; null where nothing is sent
  std::uint32_t* report;  // that the host can read without waiting, or null
  int patience;           // looks at a place before the launch is given up

  OST_HD std::uint32_t* verdict() const { return memory; }
  OST_HD std::uint32_t* slots() const { return memory + kMailboxHeader; }
};

#if !defined(__CUDACC__)
// Emulated blocks are threads of the CPU: these make them wait now and then, by chance, so that no order among them is the usual one.
struct Delays {
  static inline thread_local std::uint32_t state = 0;  // 0: none
  static void begin(std::uint32_t seed) { state = seed; }
  static void wait() {
    if (state == 0) return;
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    for (std::uint32_t n = state % 64 == 0 ? state / 64 % 16 : 0; n > 0; --n) sched_yield();
  }
};
#endif

OST_HD void post(std::uint32_t* place, std::uint32_t word) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(place), "r"(word) : "memory");
#else
#if !defined(__CUDACC__)
  Delays::wait();
#endif
  __atomic_store_n(place, word, __ATOMIC_RELAXED);
#endif
}
// 1, 2 or 4 words beside each other: each may be there before the others.
template <int n>
OST_HD void look(const std::uint32_t* place, std::uint32_t* words) {
#if defined(__CUDA_ARCH__)
  if constexpr (n == 4)
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "l"(place)
                 : "memory");
  else if constexpr (n == 2)
    asm volatile("ld.relaxed.gpu.global.v2.u32 {%0,%1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "l"(place) : "memory");
  else
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(words[0]) : "l"(place) : "memory");
#else
  for (int i = 0; i < n; ++i) words[i] = __atomic_load_n(place + i, __ATOMIC_RELAXED);
#endif
}
template <int n>
OST_HD bool empty(const std::uint32_t* words) {
  bool any = false;
  OST_UNROLL
  for (int i = 0; i < n; ++i) any = any || words[i] == kEmpty;
  return any;
}
// Any two numbers as a word that is not empty.
template <class W>
OST_HD std::uint32_t sent(W low, W high) {
  const std::uint32_t word = pair_of<W>(low, high);
  return word == kEmpty ? 0x7fff7fff : word;
}

// Between looks at places that were empty. False: it is too late, for this thread or for another one.
OST_HD bool patient(const Mailbox& box, int looks) {
#if !defined(__CUDACC__)
  sched_yield();
#endif
  if (looks >= box.patience) post(box.verdict(), kLate);
  std::uint32_t verdict = kWell;
  if (looks >= box.patience || looks % 1024 == 1023) look<1>(box.verdict(), &verdict);
  return verdict == kWell;
}

// A number as the words of a product: itself, or what is left of it as well. What is left is lifted to the size of the first, or it would
// be too small for Half.
template <class Word>
inline constexpr float kLift = 1;
template <>
inline constexpr float kLift<Half> = 2048;
template <class Word, int kParts>
OST_HD void split(float v, Word* words) {
  words[0] = Narrow<Word>::of(v);
  if constexpr (kParts > 1) {
    const float rest = v - widen(words[0]);
    words[1] = Narrow<Word>::of(rest == rest ? rest * kLift<Word> : 0.0f);  // of infinity there is none
  }
}

// Makes all places of the slots empty, and those of the last ones zero; before the first launch of a pass the verdict as well. (Zeros that
// are read take no register; not to read what is not there takes 13.)
struct EmptyKernel {
  Mailbox box;
  Index words, zeros;  // of the slots, and of the last of them: multiples of 4
  bool begin;
  struct Space {};
  struct alignas(16) Four {
    std::uint32_t word[4];
  };
  Grid grid() const { return {ceil_div(words / 4 + 1, kThreads)}; }
  OST_HD void operator()(const Block& block, Space&) const {
    block.each([&](int thread) {
      const Index i = block.x * kThreads + thread;
      const std::uint32_t word = i * 4 < words - zeros ? kEmpty : 0;
      if (i < words / 4) reinterpret_cast<Four*>(box.slots())[i] = {word, word, word, word};
      if (begin && i == 0) *box.verdict() = kWell;
    });
  }
};

}  // namespace ost::OST_SET
