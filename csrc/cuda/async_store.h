// Stores to the shared memory of another block of a cluster, and the barrier there that counts the
// bytes that have arrived. Nothing orders such stores: a block may read what others stored when the
// phase of its barrier that counts those bytes has ended, and not before.
#pragma once
#include "exchange.h"
#if !defined(__CUDACC__)
#include <cstdio>
#include <cstdlib>
#include <map>
#include <utility>
#include <vector>
#endif

namespace ost::OST_SET {

// A barrier in shared memory (PTX: mbarrier) for which one arrival and the bytes that it announces
// end a phase. The first phase has parity 0. Emulated, `word` holds the number of the phase, whether
// its arrival is still to come, and the bytes announced and not yet stored: fewer than 0 if the
// stores come before the announcement.
struct alignas(8) ByteBarrier {
  std::uint64_t word;

  // Called by one thread before a barrier of the cluster that precedes all stores.
  OST_HD void init() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address()) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#elif !defined(__CUDACC__)
    __atomic_store_n(&word, kAwaited, __ATOMIC_RELEASE);
#endif
  }
  // Arrive, and announce the bytes after which the phase ends.
  OST_HD void announce([[maybe_unused]] int bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()), "r"(bytes) : "memory");
#elif !defined(__CUDACC__)
    change(bytes, true);
#endif
  }
  // Return whether the phase of this parity has ended; what its bytes stored is then there. With kSleeps the thread may sleep until it
  // ends, as long as the device allows.
  template <bool kSleeps>
  OST_HD bool has_ended([[maybe_unused]] int parity) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    std::uint32_t ended;
    if constexpr (kSleeps)
      asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                   : "=r"(ended)
                   : "r"(address()), "r"(parity)
                   : "memory");
    else
      asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                   : "=r"(ended)
                   : "r"(address()), "r"(parity)
                   : "memory");
    return ended;
#elif !defined(__CUDACC__)
    return int(__atomic_load_n(&word, __ATOMIC_ACQUIRE) >> 33 & 1) != parity;
#else
    return true;
#endif
  }
#if defined(__CUDA_ARCH__)
  OST_HD std::uint32_t address() { return std::uint32_t(__cvta_generic_to_shared(this)); }
#elif !defined(__CUDACC__)
  static constexpr std::uint64_t kAwaited = std::uint64_t(1) << 32;
  void change(int bytes, bool arrives) {
    std::uint64_t now = __atomic_load_n(&word, __ATOMIC_RELAXED), next;
    do {
      const std::uint32_t left = std::uint32_t(now) + std::uint32_t(bytes);
      std::uint64_t rest = now >> 32 << 32;
      if (arrives && !(rest & kAwaited)) std::fputs("a barrier of a cluster: a second arrival in a phase\n", stderr), std::abort();
      if (arrives) rest -= kAwaited;
      if (left == 0 && !(rest & kAwaited)) rest += (kAwaited << 1) + kAwaited;  // the next phase
      next = rest | left;
    } while (!__atomic_compare_exchange_n(&word, &now, next, true, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
  }
#endif
};

#if !defined(__CUDACC__)
// Stores that an emulated block has started. They arrive while it waits: without delays all at once, with
// delays in any order, some at a time, and as late as the barriers of others allow.
struct AsyncStores {
  struct Store {
    char* to;
    std::uint32_t words[4];
    int bytes;
    ByteBarrier* barrier;
  };
  static std::vector<Store>& started() {
    static thread_local std::map<Index, std::vector<Store>> of;
    return of[Turns::number()];
  }
  static void arrive(std::size_t count) {
    std::vector<Store>& started = AsyncStores::started();
    for (; count > 0 && !started.empty(); --count) {
      Delays::wait();
      std::swap(started[Delays::state % started.size()], started.back());
      const Store store = started.back();
      started.pop_back();
      std::memcpy(store.to, store.words, std::size_t(store.bytes));
      store.barrier->change(-store.bytes, false);
    }
  }
  // Let some stores arrive. Return whether there were any.
  static bool make_way() {
    if (started().empty()) return false;
    arrive(Delays::state ? 1 + Delays::state / 64 % 64 : started().size());
    return true;
  }
};
#endif

OST_HD std::uint32_t word_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  return bits_of(x);
#endif
}

// The shared memory of a block of the cluster, as stores to it are addressed.
struct PeerMemory {
#if defined(__CUDA_ARCH__)
  std::uint32_t address;
#else
  char* address;
#endif
};
template <class Space>
OST_HD PeerMemory peer_memory([[maybe_unused]] const Block& block, [[maybe_unused]] Space& own, [[maybe_unused]] int rank) {
  PeerMemory peer{};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer.address) : "r"(std::uint32_t(__cvta_generic_to_shared(&own))), "r"(rank));
#elif !defined(__CUDACC__)
  peer.address = reinterpret_cast<char*>(&block.peer(own, rank));
#endif
  return peer;
}

// Start to store 2 or 4 words at a place of a peer's shared memory, in bytes, which counts for the
// barrier at another place of it.
template <int n>
OST_HD void store_async([[maybe_unused]] PeerMemory peer, [[maybe_unused]] int place, [[maybe_unused]] const std::uint32_t* words,
                        [[maybe_unused]] int barrier) {
  static_assert(n == 2 || n == 4);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (n == 2)
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1,%2}, [%3];" ::"r"(peer.address + place),
                 "r"(words[0]), "r"(words[1]), "r"(peer.address + barrier)
                 : "memory");
  else
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];" ::"r"(peer.address + place),
                 "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(peer.address + barrier)
                 : "memory");
#elif !defined(__CUDACC__)
  AsyncStores::Store store{peer.address + place, {}, n * 4, reinterpret_cast<ByteBarrier*>(peer.address + barrier)};
  for (int i = 0; i < n; ++i) store.words[i] = words[i];
  AsyncStores::started().push_back(store);
#endif
}

// Wait until the phase of this parity has ended, in all threads of a warp. Return whether the launch has been given up. Only the first
// look sleeps: how long the others take is known, so that the wait is bounded.
OST_HD bool wait_for_bytes(const Block& block, ByteBarrier& barrier, int parity, const ExchangeBuffer& buffer) {
  if (block.all_of_warp(barrier.has_ended<true>(parity))) return false;
  for (int polls = 0; !block.all_of_warp(barrier.has_ended<false>(parity));) {
#if !defined(__CUDACC__)
    if (AsyncStores::make_way()) continue;
#endif
    if (!block.all_of_warp(keep_polling(buffer, polls++))) return true;
  }
  return false;
}

// The barriers of a space of which the two halves take turns: other blocks fill one of them with kBytes in every step.
template <int kBytes>
struct StepBarriers {
  ByteBarrier of[2];

  // Called by one thread before a barrier of the cluster that precedes all stores.
  OST_HD void begin() {
    for (ByteBarrier& barrier : of) barrier.init(), barrier.announce(kBytes);
  }
  // Wait for the bytes of a step, in all threads of a warp. Return whether the launch has been given up.
  OST_HD bool wait(const Block& block, int step, const ExchangeBuffer& buffer) {
    return wait_for_bytes(block, of[step % 2], step / 2 % 2, buffer);
  }
  // Announce those of the next step but one, which nobody sends before the calling thread has sent its own.
  OST_HD void announce_next(const Block& block, int step) {
    block.for_each_thread([&](int thread) {
      if (thread == 0) of[step % 2].announce(kBytes);
    });
  }
  // Where that of a step lies, in bytes.
  OST_HD static int place(int step) { return step % 2 * int(sizeof(ByteBarrier)); }
};

constexpr long long kLingerCycles = 2'000'000;  // about a millisecond; a store takes a microsecond

// Called after the last wait of a block: it ends when no store to it is on its way any longer. On the device the last wait makes sure of
// that, unless the launch has been given up (`lost`): then all blocks have stopped sending, but nothing tells that the last stores have
// come, and a block stays for a while.
OST_HD void leave_cluster(const Block& block, [[maybe_unused]] bool lost) {
#if !defined(__CUDACC__)
  AsyncStores::arrive(AsyncStores::started().size());
#endif
  block.sync_cluster();
#if defined(__CUDA_ARCH__)
  if (lost)
    for (const long long begin = clock64(); clock64() - begin < kLingerCycles;) continue;
#endif
}

}  // namespace ost::OST_SET
