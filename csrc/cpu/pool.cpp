#include "pool.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace ost {
namespace {

inline void relax() {
#if defined(__SSE2__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

// About 100 us of spinning before a sleep: so calls in a row find the workers awake. A futex wake of a sleeping core in a virtual
// machine takes 20 to 60 us, which cost a tenth to a third of a call of half a millisecond.
constexpr int kSpins = 4000;

constexpr std::int64_t kLooks = 2000;  // pauses before the core is given away: 50 us

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// How often the system has taken the core from this thread for another one.
long involuntary_switches() {
#if defined(__linux__)
  rusage usage;
  return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nivcsw : 0;
#else
  return 0;
#endif
}

thread_local double g_waited = 0;     // seconds of this job at barriers, beyond the first 50 us of each
thread_local int g_long_waits = 0;    // how many of them
thread_local double g_begin = 0;      // of this job
thread_local bool g_gave_up = false;  // team_waits() said so during it
constexpr int kMostLongWaits = 8;     // more only if two threads of the team share a core: each then waits 50 us a barrier

void begin_job(double begin) { g_begin = begin, g_waited = 0, g_long_waits = 0, g_gave_up = false; }

struct Pool {
  struct alignas(64) Worker {
    std::atomic<std::uint32_t> epoch{0};  // one more for every job that this worker has a part in
    std::thread thread;
    double started = 0;  // of the last job
    double waited = 0;
    int long_waits = 0;
    bool gave_up = false;
    bool put_aside = false;  // the system took the core away during it
  };

  std::mutex busy;  // held by the one caller that has the workers
  std::vector<std::unique_ptr<Worker>> workers;
  alignas(64) std::atomic<std::uint32_t> pending{0};
  void (*fn)(void*, int, int) = nullptr;
  void* context = nullptr;
  int count = 0;
  bool stop = false;
  double alone_until = 0, patience = 0;
  int strikes = 0;

  static void await_change(std::atomic<std::uint32_t>& word, std::uint32_t old) {
    for (int i = 0; i < kSpins; ++i) {
      if (word.load(std::memory_order_acquire) != old) return;
      relax();
    }
    word.wait(old, std::memory_order_acquire);
  }

  void work(Worker& me, int index) {
    for (std::uint32_t seen = 0;; ++seen) {  // no job starts before the last has ended
      await_change(me.epoch, seen);
      if (stop) return;
      begin_job(me.started = now());
      const long switches = involuntary_switches();
      const unsigned mode = flush_denormals_on();
      fn(context, index, count);
      flush_denormals_restore(mode);
      me.put_aside = involuntary_switches() != switches;
      me.waited = g_waited, me.long_waits = g_long_waits, me.gave_up = g_gave_up;
      if (pending.fetch_sub(1, std::memory_order_acq_rel) == 1) pending.notify_one();
    }
  }

  void start(int n) {  // at least n workers; fewer if the system refuses
    try {
      while (int(workers.size()) < n) {
        auto worker = std::make_unique<Worker>();
        worker->thread = std::thread([this, w = worker.get(), index = int(workers.size()) + 1] { work(*w, index); });
        workers.push_back(std::move(worker));
      }
    } catch (const std::exception&) {}
  }

  void wake(int n) {
    for (int i = 0; i < n; ++i) {
      workers[i]->epoch.fetch_add(1, std::memory_order_release);
      workers[i]->epoch.notify_one();
    }
  }

  void join() {
    stop = true;
    wake(int(workers.size()));
    for (auto& w : workers) w->thread.join();
    workers.clear();
    stop = false;
  }

  // On a machine whose cores are busy with something else a team waits for threads that do not run. So calls go on alone for a
  // while after two in a row that have waited (one may only have woken a core that slept deeply); the while doubles as long as
  // that repeats, and is halved by each call that has not waited.
  bool alone() const { return patience > 0 && now() < alone_until; }
  void learn(double begin, double end, double waited, int helpers) {
    static thread_local long switches = 0;  // of the caller, since the last job: what took its core between two jobs counts too
    const long now_switches = involuntary_switches();
    bool put_aside = now_switches != switches, gave_up = g_gave_up;
    switches = now_switches;
    double late = 0;
    int long_waits = g_long_waits;
    for (int i = 0; i < helpers; ++i) {
      const Worker& w = *workers[i];
      late = std::max(late, w.started - begin), waited = std::max(waited, w.waited), long_waits = std::max(long_waits, w.long_waits);
      put_aside |= w.put_aside, gave_up |= w.gave_up;
    }
    const double fifth = std::max(1e-4, 0.2 * (end - begin));
    if (gave_up || late > fifth || (waited > fifth && (put_aside || long_waits > kMostLongWaits))) {
      if (patience == 0 && ++strikes < 2) return;
      strikes = 0;
      patience = std::min(0.64, std::max(0.01, 2 * patience));
      alone_until = end + patience;
    } else if (end - begin > 1e-4) {
      patience = patience > 0.02 ? patience / 2 : 0, strikes = 0;  // a single good call may have been luck
    }
  }

  void run(int want, void (*job)(void*, int, int), void* ctx) {
    start(want - 1);
    const double begin = now();
    begin_job(begin);
    const int helpers = std::min(want - 1, int(workers.size()));
    fn = job, context = ctx, count = helpers + 1;
    pending.store(std::uint32_t(helpers), std::memory_order_relaxed);
    wake(helpers);
    job(ctx, 0, count);
    const double done = now();
    for (std::uint32_t left; (left = pending.load(std::memory_order_acquire)) != 0;) await_change(pending, left);
    const double end = now();
    learn(begin, end, g_waited + (end - done), helpers);
  }
};

std::atomic<Pool*> g_pool{nullptr};
std::atomic<int> g_threads{0};
thread_local bool g_joined = false;  // prepare_fork() of this thread holds pool.busy
thread_local std::int64_t g_refused = 0;

Pool& pool() {
  Pool* p = g_pool.load(std::memory_order_acquire);
  if (p) return *p;
  static_assert(std::atomic<Pool*>::is_always_lock_free);
  Pool* fresh = new Pool;  // lives as long as the process: workers must never outlive it
  if (g_pool.compare_exchange_strong(p, fresh)) return *fresh;
  delete fresh;
  return *p;
}

#if !defined(_WIN32)
// A fork while another thread computes leaves that call alone: the child starts with a pool of its own.
void prepare_fork() {
  Pool* p = g_pool.load();
  g_joined = p && p->busy.try_lock();
  if (g_joined) p->join();
}
void after_fork_parent() {
  if (g_joined) g_pool.load()->busy.unlock();
  g_joined = false;
}
void after_fork_child() {
  g_pool.store(nullptr);  // the old one stays behind: its mutex may be held by a thread that is not here
  g_joined = false;
}
struct AtExit {
  AtExit() { pthread_atfork(prepare_fork, after_fork_parent, after_fork_child); }
  ~AtExit() {  // the interpreter is gone, no call runs: end the workers before statics and the library go
    Pool* p = g_pool.load();
    if (p && p->busy.try_lock()) {
      p->join();
      p->busy.unlock();
    }
  }
} g_at_exit;
#endif

int cgroup_quota() {
  int best = 1 << 20;
  if (FILE* f = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    char quota[32];
    double period = 0;
    if (std::fscanf(f, "%31s %lf", quota, &period) == 2 && period > 0 && quota[0] != 'm')
      best = std::max(1, int(std::atof(quota) / period + 0.5));
    std::fclose(f);
  }
  return best;
}

}  // namespace

namespace {
int first_thread_count() {
  if (const char* text = std::getenv("OSTINATO_NUM_THREADS")) {
    char* end = nullptr;
    const long n = std::strtol(text, &end, 10);
    return end != text && *end == 0 && n >= 1 && n <= 1024 ? int(n) : 0;
  }
  int n = int(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
#endif
  return std::max(1, std::min(n, cgroup_quota()));
}
}  // namespace

int thread_count() {
  int n = g_threads.load(std::memory_order_relaxed);
  if (n == 0) g_threads.store(n = first_thread_count());
  return n;
}
void set_thread_count(int n) { g_threads.store(n); }

void run_team(int want, void (*fn)(void*, int, int), void* context) {
  const unsigned mode = flush_denormals_on();
  if (want > 1) {
    Pool& p = pool();
    if (p.busy.try_lock()) {
      const bool alone = p.alone();
      if (!alone) p.run(want, fn, context);
      p.busy.unlock();
      if (!alone) {
        flush_denormals_restore(mode);
        return;
      }
    }
  }
  fn(context, 0, 1);
  flush_denormals_restore(mode);
}

void barrier_wait(Barrier* b, int count) {
  if (count == 1) return;
  const std::uint32_t epoch = __atomic_load_n(&b->epoch, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&b->arrived, 1, __ATOMIC_ACQ_REL) == std::uint32_t(count)) {
    __atomic_store_n(&b->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&b->epoch, epoch + 1, __ATOMIC_RELEASE);
    return;
  }
  double since = 0;
  for (std::int64_t i = 0; __atomic_load_n(&b->epoch, __ATOMIC_ACQUIRE) == epoch; ++i) {
    if (i == kLooks) since = now();
    give_way(i);
  }
  if (since > 0) g_waited += now() - since, ++g_long_waits;
}

bool team_waits() { return g_gave_up |= g_waited > std::max(2e-4, 0.2 * (now() - g_begin)); }

namespace {

// Large blocks that were given back and wait to be used again: fresh pages are zeroed by the system one by one, which cost 8 to
// 15% of a training step. A call that finds the lock taken (or left so by a fork) does without.
struct Kept {
  static constexpr std::size_t kLeast = std::size_t(1) << 20, kMost = std::size_t(256) << 20;
#if defined(__SANITIZE_ADDRESS__)
  static constexpr std::size_t kCount = 0;  // a block that is used after it was freed must be seen
#else
  static constexpr std::size_t kCount = 32;
#endif
  std::mutex lock;
  std::vector<char*> blocks;  // oldest first; each begins with its size
  std::size_t bytes = 0;
  Kept() { blocks.reserve(kCount); }  // giving back must not fail

  static std::size_t& size(char* block) { return *reinterpret_cast<std::size_t*>(block); }
  char* take(std::size_t wanted) {
    const std::unique_lock guard(lock, std::try_to_lock);
    if (!guard.owns_lock()) return nullptr;
    std::size_t best = blocks.size();
    for (std::size_t i = 0; i < blocks.size(); ++i)
      if (size(blocks[i]) >= wanted && size(blocks[i]) <= wanted + wanted / 4 &&
          (best == blocks.size() || size(blocks[i]) < size(blocks[best])))
        best = i;
    if (best == blocks.size()) return nullptr;
    char* block = blocks[best];
    blocks.erase(blocks.begin() + std::ptrdiff_t(best));
    bytes -= size(block);
    return block;
  }
  void put(char* block) {
    std::unique_lock guard(lock, std::try_to_lock);
    if (!guard.owns_lock() || size(block) > kMost || kCount == 0) return std::free(block);
    while (!blocks.empty() && (bytes + size(block) > kMost || blocks.size() >= kCount)) drop();
    blocks.push_back(block), bytes += size(block);
  }
  void drop() {
    bytes -= size(blocks.front());
    std::free(blocks.front());
    blocks.erase(blocks.begin());
  }
};
Kept& kept() {
  static Kept* k = new Kept;  // lives as long as the process: blocks may be freed after statics are gone
  return *k;
}
constexpr std::size_t kHeader = 64;

}  // namespace

void* allocate_block(std::size_t bytes) {
  constexpr std::size_t kHuge = std::size_t(2) << 20;
  if (bytes > SIZE_MAX - kHeader) return nullptr;
  const std::size_t whole = bytes + kHeader;
  if (whole >= Kept::kLeast)
    if (char* block = kept().take(whole)) return block + kHeader;
  void* fresh = nullptr;
  if (posix_memalign(&fresh, whole >= 2 * kHuge ? kHuge : 64, whole) != 0) {
    release_memory();  // what waits may be what is missing
    if (posix_memalign(&fresh, 64, whole) != 0) return nullptr;
  }
#if defined(__linux__)
  if (whole >= 2 * kHuge) madvise(fresh, whole / kHuge * kHuge, MADV_HUGEPAGE);  // a wish: no harm if it is not granted
#endif
  char* block = static_cast<char*>(fresh);
  Kept::size(block) = whole;
  return block + kHeader;
}
void free_block(void* block) {
  if (!block) return;
  char* whole = static_cast<char*>(block) - kHeader;
  if (Kept::size(whole) >= Kept::kLeast)
    kept().put(whole);
  else
    std::free(whole);
}
void release_memory() {
  const std::unique_lock guard(kept().lock, std::try_to_lock);
  if (guard.owns_lock())
    while (!kept().blocks.empty()) kept().drop();
}

void give_way(std::int64_t looks) {
  if (looks < kLooks)
    relax();
  else
    std::this_thread::yield();
}

void refuse_bytes(std::int64_t bytes) { g_refused = bytes; }
std::int64_t refused_bytes() { return g_refused; }

unsigned flush_denormals_on() {
#if defined(__SSE2__)
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(mode | 0x8040);  // flush to zero, denormals are zero
  return mode;
#elif defined(__aarch64__)
  std::uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  asm volatile("msr fpcr, %0" ::"r"(mode | (1u << 24)));
  return unsigned(mode);
#else
  return 0;
#endif
}
unsigned flush_denormals_off() {
  const unsigned mode = flush_denormals_on();
#if defined(__SSE2__)
  _mm_setcsr(mode & ~0x8040u);
#elif defined(__aarch64__)
  asm volatile("msr fpcr, %0" ::"r"(std::uint64_t(mode & ~(1u << 24))));
#endif
  return mode;
}
void flush_denormals_restore(unsigned mode) {
#if defined(__SSE2__)
  _mm_setcsr(mode);
#elif defined(__aarch64__)
  asm volatile("msr fpcr, %0" ::"r"(std::uint64_t(mode)));
#else
  (void)mode;
#endif
}

}  // namespace ost
