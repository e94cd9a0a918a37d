#include "pool.h"

#include "../core/lines.h"
#include "openmp.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
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

// Pauses, of about 25 ns, before a member that waits for another one sleeps. A thread that is woken often lands on the CPU of the one that
// woke it, where the two take turns: with 2,000 an LSTM of one row took 3.6 ms in place of 2.1 after a pause of 10 ms. With 40,000 it did
// not, and beside two programs that compute the mean was 2.9 ms (2.7 with 100,000, 3.6 with 2,000). Where a team is larger than the CPUs
// allow its members wait for each other's CPU, and sleep soon.
constexpr int kLooks = 40000, kShortLooks = 2000;
std::atomic<int> g_looks{kLooks};
std::atomic<bool> g_impatient{false};

// How long a worker that has nothing to do looks for the next job before it sleeps. With 100 us calls in a row find it awake: a
// futex wake of a sleeping core in a virtual machine takes 20 to 60 us, which cost a tenth to a third of a call of half a millisecond.
constexpr std::int64_t kSpinMicroseconds = 100;
std::atomic<std::int64_t> g_spin{kSpinMicroseconds};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

int looks_before_sleep() { return g_impatient.load(std::memory_order_relaxed) ? 0 : g_looks.load(std::memory_order_relaxed); }

// Sleeps if a word has this value, until it is woken, or for no reason. Not std::atomic::wait, which yields before it sleeps.
void sleep_while(std::uint32_t* word, std::uint32_t value) {
#if defined(__linux__)
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
  reinterpret_cast<std::atomic<std::uint32_t>*>(word)->wait(value, std::memory_order_acquire);
#endif
}
void wake_all(std::uint32_t* word) {
#if defined(__linux__)
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#else
  reinterpret_cast<std::atomic<std::uint32_t>*>(word)->notify_all();
#endif
}

// How often the system has taken the core from this thread for another one.
long involuntary_switches() {
#if defined(__linux__)
  rusage usage;
  return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nivcsw : 0;
#else
  return 0;
#endif
}

struct FlushDenormals {  // for as long as it lives
  unsigned before = flush_denormals_on();
  ~FlushDenormals() { flush_denormals_restore(before); }
};

thread_local double g_waited = 0;     // seconds of this job at barriers, beyond the first 50 us of each
thread_local int g_long_waits = 0;    // how many of them
thread_local double g_begin = 0;      // of this job
thread_local bool g_gave_up = false;  // team_waits() said so during it
constexpr int kMostLongWaits = 8;     // more only if two threads of the team share a core: each then has one at every barrier

thread_local TeamReport g_report{1, "alone"};  // of the last job of this caller

void begin_job(double begin) { g_begin = begin, g_waited = 0, g_long_waits = 0, g_gave_up = false; }

}  // namespace

void ring(Bell* bell) {
  if (__atomic_load_n(&bell->sleepers, __ATOMIC_SEQ_CST) == 0) return;
  __atomic_fetch_add(&bell->rings, 1, __ATOMIC_SEQ_CST);
  wake_all(&bell->rings);
}
Wait::Wait(Bell* bell, int looks) : bell_(bell), looks_(looks), counted_(false), heard_(0) {}
Wait::Wait(Bell* bell) : Wait(bell, looks_before_sleep()) {}
void Wait::look_again() {
  if (looks_ > 0) {
    --looks_;
    return relax();
  }
  if (counted_)
    sleep_while(&bell_->rings, heard_);
  else
    __atomic_fetch_add(&bell_->sleepers, 1, __ATOMIC_SEQ_CST);
  counted_ = true;
  heard_ = __atomic_load_n(&bell_->rings, __ATOMIC_SEQ_CST);  // also what keeps the caller's next look behind the count, on every CPU
}
Wait::~Wait() {
  if (counted_) __atomic_fetch_sub(&bell_->sleepers, 1, __ATOMIC_RELAXED);
}

#if defined(__linux__)
using CpuSet = cpu_set_t;
#else
struct CpuSet {};
#endif

// The place of one member but the caller, and the thread that takes it.
struct alignas(64) Seat {
  std::atomic<std::uint32_t> calls{0};  // one more for every job that the worker is asked to
  Bell bell;                            // where it waits for one
  std::atomic<bool> here{false};        // at work on the present job
  std::atomic<std::uint64_t> turn{0};   // the last one it was given: its number, the member's rank, the number of members
  std::uint64_t taken = 0;              // by the member
  std::thread thread;
  // The last job that the member had a part in, set when it leaves.
  double joined = 0, waited = 0;
  int long_waits = 0;
  bool took_part = false, gave_up = false;
  bool put_aside = false;  // the system took the core away during it
#if defined(__linux__)
  std::atomic<pid_t> id{0};
  std::atomic<int> runs_on{-1};  // the CPU, when it last began or ended a job
  CpuSet within{};               // those of the caller when its affinity was set last
  int kept_from = -1;            // the one of them that it leaves out
#endif
};

namespace {

// The CPUs that the calling thread may use; none where that is not known.
CpuSet callers_cpus() {
  CpuSet within{};
#if defined(__linux__)
  if (sched_getaffinity(0, sizeof within, &within) != 0) CPU_ZERO(&within);
#endif
  return within;
}
// Whether there are known to be fewer than so many.
bool has_fewer(const CpuSet& cpus, int n) {
#if defined(__linux__)
  return CPU_COUNT(&cpus) > 0 && CPU_COUNT(&cpus) < n;
#else
  return (void)cpus, (void)n, false;
#endif
}

bool is_asleep(const Seat& s) { return __atomic_load_n(&s.bell.sleepers, __ATOMIC_RELAXED) != 0; }

// Members enter through a door: whether it is open, for guests or for workers, how many are wanted, how many are inside.
constexpr std::uint32_t kOpen = 1u << 31, kGuests = 1u << 30, kInside = 0xffff;
constexpr int kWantedShift = 16, kWanted = 0x3fff;

}  // namespace

struct Pool {
  std::mutex busy;                            // held by the one caller that has the workers
  std::vector<std::unique_ptr<Seat>> seats;   // of the workers
  std::vector<std::unique_ptr<Seat>> guests;  // of threads of an OpenMP runtime
  alignas(64) std::atomic<std::uint32_t> door{0};
  Bell bell;                                // rings with a turn, when the job is over, and when the last member leaves
  std::uint32_t turns = 0;                  // given so far, in all jobs
  void (*fn)(void*, int, Crew&) = nullptr;  // written while the door is closed and nobody is inside
  void* context = nullptr;
  Crew* crew = nullptr;
  std::atomic<bool> stop{false};
  double alone_until = 0, patience = 0, caller_done = 0;
  int strikes = 0, waited_in_vain = 0;

  // Has a part in the present job, if it is still open to member `index`.
  void join_in(Seat& me, int index, std::uint32_t kind) {
    std::uint32_t d = door.load(std::memory_order_acquire);
    do
      if ((d & (kOpen | kGuests)) != (kOpen | kind) || index >= int(d >> kWantedShift & kWanted)) return;
    while (!door.compare_exchange_weak(d, d + 1, std::memory_order_acq_rel));
    begin_job(me.joined = now());
    me.took_part = true;
    me.taken = me.turn.load(std::memory_order_relaxed);
    me.here.store(true, std::memory_order_release);
    const long switches = involuntary_switches();
    {
      const FlushDenormals mode;
      fn(context, index, *crew);
    }
    me.put_aside = involuntary_switches() != switches;
    me.waited = g_waited, me.long_waits = g_long_waits, me.gave_up = g_gave_up;
    me.here.store(false, std::memory_order_relaxed);
    if ((door.fetch_sub(1) & (kOpen | kInside)) == 1) ring(&bell);  // it is closed, and this was the last
  }

  void work(Seat& me, int index) {
#if defined(__linux__)
    pthread_setname_np(pthread_self(), "ostinato");
    me.id.store(pid_t(syscall(SYS_gettid)));
#endif
    for (std::uint32_t seen = 0;;) {
      const auto called = [&] { return me.calls.load(std::memory_order_acquire) != seen; };
      const double until = now() + double(g_spin.load(std::memory_order_relaxed)) * 1e-6;
      for (unsigned looks = 1; !called() && (looks % 100 || now() < until); ++looks) relax();
      for (Wait wait(&me.bell, 0); !called();) wait.look_again();
      seen = me.calls.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_relaxed)) return;
      note_cpu(me);
      join_in(me, index, 0);
      note_cpu(me);
    }
  }

  void start(int n) {  // at least n workers; fewer if the system refuses
    try {
      seats.reserve(std::size_t(n));
      while (int(seats.size()) < n) {
        auto seat = std::make_unique<Seat>();
        seat->thread = std::thread([this, s = seat.get(), index = int(seats.size()) + 1] { work(*s, index); });
        seats.push_back(std::move(seat));
      }
    } catch (const std::exception&) {}
  }

  void wake(int n) {
    for (int i = 0; i < n; ++i) {
      seats[i]->calls.fetch_add(1);
      ring(&seats[i]->bell);
    }
  }

  void join() {
    stop = true;
    wake(int(seats.size()));
    for (auto& s : seats) s->thread.join();
    seats.clear();
    stop = false;
  }

  // A worker that has slept is woken by the system where it sees fit, and that is often the caller's own CPU, where the two take
  // turns until a balancer moves one: a call of 4 ms took 7.5. So a worker is kept from the CPU that the caller runs on, within the
  // CPUs that the caller may use; which of the others it gets is the system's choice. False where there is no other.
  bool place(int n, const CpuSet& within) {
#if defined(__linux__)
    const int cpu = sched_getcpu();
    if (cpu < 0 || cpu >= CPU_SETSIZE || CPU_COUNT(&within) == 0) return true;
    cpu_set_t others = within;
    CPU_CLR(cpu, &others);
    if (CPU_COUNT(&others) == 0) return false;
    for (int i = 0; i < n; ++i) {
      Seat& s = *seats[i];
      const bool asleep = is_asleep(s);
      const bool apart = asleep ? s.kept_from == cpu : s.runs_on.load(std::memory_order_relaxed) != cpu;
      const pid_t id = s.id.load(std::memory_order_relaxed);
      if (id == 0 || (apart && CPU_EQUAL(&s.within, &within))) continue;
      if (sched_setaffinity(id, sizeof others, &others) == 0) s.kept_from = cpu, s.within = within;
    }
#else
    (void)n, (void)within;
#endif
    return true;
  }
  static void note_cpu(Seat& s) {
#if defined(__linux__)
    s.runs_on.store(sched_getcpu(), std::memory_order_relaxed);
#else
    (void)s;
#endif
  }

  // On a machine whose cores are busy with something else a team waits for threads that do not run. So calls go on alone for a
  // while after two in a row that have waited for one whose core was taken away; the while doubles as long as that repeats, and is
  // halved by each call that has not waited. A worker that comes late is not waited for, and tells nothing.
  bool alone() const { return patience > 0 && now() < alone_until; }
  void learn(double begin, double end, double waited, const std::vector<std::unique_ptr<Seat>>& members, int helpers) {
    static thread_local long switches = 0;  // of the caller, since the last job: what took its core between two jobs counts too
    const long now_switches = involuntary_switches();
    bool put_aside = now_switches != switches, gave_up = g_gave_up;
    switches = now_switches;
    int long_waits = g_long_waits;
    for (int i = 0; i < helpers; ++i) {
      const Seat& s = *members[std::size_t(i)];
      if (!s.took_part) continue;
      waited = std::max(waited, s.waited), long_waits = std::max(long_waits, s.long_waits);
      put_aside |= s.put_aside, gave_up |= s.gave_up;
    }
    const double fifth = std::max(1e-4, 0.2 * (end - begin));
    const bool contended = gave_up || (waited > fifth && (put_aside || long_waits > kMostLongWaits));
    if (contended) {
      if (patience == 0 && ++strikes < 2) return;
      strikes = 0;
      patience = std::min(0.64, std::max(0.01, 2 * patience));
      alone_until = end + patience;
    } else if (end - begin > 1e-4) {
      patience = patience > 0.02 ? patience / 2 : 0, strikes = 0;  // a single good call may have been luck
    }
  }

  // False where the caller is to run alone.
  bool run(int want, void (*job)(void*, int, Crew&), void* ctx) {
    if (alone()) return false;
    const CpuSet within = callers_cpus();
    g_looks.store(has_fewer(within, want) ? kShortLooks : kLooks, std::memory_order_relaxed);
    start(want - 1);
    const int helpers = std::min(want - 1, int(seats.size()));
    const bool asleep = helpers > 0 && is_asleep(*seats[0]);
    OpenMp& openmp = OpenMp::mine();
    if (asleep)
      if (const int threads = std::min(want, openmp.spinning()); 2 * threads > want && make_guests(threads - 1))
        return run_with_guests(openmp, threads - 1, job, ctx), true;
    if (helpers == 0 || !place(helpers, within)) return false;
    const double begin = now();
    begin_job(begin);
    Crew team(this, &seats, helpers);
    open(job, ctx, team, 0, helpers);
    wake(helpers);
    job(ctx, 0, team);
    const double done = now();
    team.dismiss();
    for (Wait wait(&bell); (door.load(std::memory_order_acquire) & kInside) != 0;) wait.look_again();
    const double end = now(), late = begin + std::max(1.5e-4, 0.2 * (end - begin));
    learn(begin, end, g_waited + (end - done), seats, helpers);
    report("workers", seats, helpers);
    const bool put_aside = std::any_of(seats.begin(), seats.begin() + helpers, [](const auto& s) { return s->took_part && s->put_aside; });
    if (end - begin > 2e-4) openmp.suspect(put_aside, asleep, !seats[0]->took_part || seats[0]->joined > late);
    return true;
  }
  bool make_guests(int n) {
    try {
      while (int(guests.size()) < n) guests.push_back(std::make_unique<Seat>());
    } catch (const std::exception&) {}
    return int(guests.size()) >= n;
  }
  void run_with_guests(OpenMp& openmp, int n, void (*job)(void*, int, Crew&), void* ctx) {
    const double begin = now();
    begin_job(begin);
    Crew team(this, &guests, n);
    open(job, ctx, team, kGuests, n);
    openmp.run(
        [](void* self, int index) {  // of those threads that are too many the door is closed to
          Pool& p = *static_cast<Pool*>(self);
          if (index > 0) {
            if (index <= int(p.guests.size())) p.join_in(*p.guests[std::size_t(index) - 1], index, kGuests);
            return;
          }
          p.fn(p.context, 0, *p.crew);
          p.caller_done = now();
          p.crew->dismiss();
        },
        this);
    const double end = now();
    learn(begin, end, g_waited + (end - caller_done), guests, n);
    report("openmp", guests, n);
  }
  static void report(const char* kind, const std::vector<std::unique_ptr<Seat>>& members, int n) {
    g_report = {1, kind};
    for (int i = 0; i < n; ++i) g_report.members += members[std::size_t(i)]->took_part;
  }
  void open(void (*job)(void*, int, Crew&), void* ctx, Crew& team, std::uint32_t kind, int helpers) {
    fn = job, context = ctx, crew = &team;
    for (int i = 0; i < helpers; ++i) (kind ? guests : seats)[std::size_t(i)]->took_part = false;
    door.store(kOpen | kind | std::uint32_t(helpers + 1) << kWantedShift, std::memory_order_release);
  }
};

bool Crew::complete(double seconds) {
  if (helpers_ == 0) return true;
  gather(seconds);
  if (g_impatient.load(std::memory_order_relaxed)) return false;
  return std::all_of(seats_->begin(), seats_->begin() + helpers_, [](const auto& s) { return s->here.load(std::memory_order_relaxed); });
}

int Crew::call() {
  if (helpers_ == 0) return 1;
  gather(0);
  std::uint16_t present[kMostThreads];
  int count = 1;
  for (int i = 0; i < helpers_; ++i)
    if ((*seats_)[i]->here.load(std::memory_order_acquire)) present[count++] = std::uint16_t(i);
  ++pool_->turns;
  for (int rank = 1; rank < count; ++rank) {
    Seat& s = *(*seats_)[present[rank]];
    s.turn.exchange(std::uint64_t(pool_->turns) << 32 | std::uint64_t(rank) << 16 | std::uint64_t(count));
  }
  ring(&pool_->bell);
  return count;
}

// Workers that are awake have only to see that there is work: 5 us are enough. One that is woken takes 20 to 100, if it comes at all:
// where it twice did not in the time that it had, the next sixteen jobs begin without it.
void Crew::gather(double seconds) {
  if (std::exchange(gathered_, true)) return;
  seconds = std::min(seconds, 2e-4);
  int& vain = pool_->waited_in_vain;
  if (vain >= 2) {
    seconds = 0;
    if (++vain > 18) vain = 1;
  }
  double until = 0;
  for (std::int64_t looks = 0;; ++looks) {
    bool all = true, awake = true;
    for (int i = 0; i < helpers_; ++i) {
      const Seat& s = *(*seats_)[i];
      const bool here = s.here.load(std::memory_order_relaxed);
      all &= here, awake &= here || is_asleep(s);
    }
    if (all) {
      if (until > 0) vain = 0;
      return;
    }
    if (seconds <= 0 && (awake || looks > 200)) return;
    if (looks % 16 == 15 && seconds > 0) {
      const double at = now();
      if (until == 0) until = at + std::max(seconds, 5e-6);
      if (at > until) {
        ++vain;
        return;
      }
    }
    relax();
  }
}

bool Crew::await(int index, int* rank, int* count) {
  Seat& me = *(*seats_)[index - 1];
  for (Wait wait(&pool_->bell);; wait.look_again()) {
    const bool open = pool_->door.load(std::memory_order_acquire) & kOpen;  // before the turn: the last one is given, then the door closed
    if (const std::uint64_t turn = me.turn.load(std::memory_order_acquire); turn != me.taken) {
      me.taken = turn;
      *rank = int(turn >> 16 & 0xffff), *count = int(turn & 0xffff);
      return true;
    }
    if (!open) return false;
  }
}

void Crew::dismiss() {
  if (helpers_ == 0) return;
  pool_->door.fetch_and(~kOpen);
  ring(&pool_->bell);
  helpers_ = 0;
}

namespace {

std::atomic<Pool*> g_pool{nullptr};
std::atomic<int> g_threads{0};
thread_local bool g_joined = false;  // prepare_fork() of this thread holds pool.busy
thread_local std::int64_t g_refused = 0;

// Null where there is no memory for one: the kernels that ask cannot be unwound by an exception.
Pool* pool() {
  Pool* p = g_pool.load(std::memory_order_acquire);
  if (p) return p;
  static_assert(std::atomic<Pool*>::is_always_lock_free);
  Pool* fresh = new (std::nothrow) Pool;  // lives as long as the process: workers must never outlive it
  if (!fresh || g_pool.compare_exchange_strong(p, fresh)) return fresh;
  delete fresh;
  return p;
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
  OpenMp::forget_all();
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

// The CPUs that one control group allows: quota over period, rounded; many where there is no limit.
constexpr int kNoQuota = 1 << 20;
int quota_of(const std::string& folder, bool second) {
  double quota = -1, period = -1;
  const auto first = [&](const char* name) {
    const std::vector<std::string> lines = lines_of(folder + name);
    return lines.empty() ? std::string() : lines[0];
  };
  if (second) {
    std::sscanf(first("/cpu.max").c_str(), "%lf %lf", &quota, &period);  // "max" is no number
  } else {
    std::sscanf(first("/cpu.cfs_quota_us").c_str(), "%lf", &quota);
    std::sscanf(first("/cpu.cfs_period_us").c_str(), "%lf", &period);
  }
  return quota > 0 && period > 0 ? std::max(1, int(quota / period + 0.5)) : kNoQuota;
}

}  // namespace

int cgroup_quota(const std::string& root) {
  int least = kNoQuota;
  for (const std::string& line : lines_of(root + "/proc/self/cgroup")) {  // number:controllers:path
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool version_2 = controllers == ",,";
    if (!version_2 && controllers.find(",cpu,") == std::string::npos) continue;
    const std::string top = root + (version_2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu");
    for (std::string path = line.substr(second + 1);; path.resize(path.rfind('/'))) {  // a group is within those above it
      while (!path.empty() && path.back() == '/') path.pop_back();
      least = std::min(least, quota_of(top + path, version_2));
      if (path.rfind('/') == std::string::npos) break;
    }
  }
  return least;
}

namespace {
int first_thread_count() {
  if (const char* text = environment("OSTINATO_NUM_THREADS")) {
    char* end = nullptr;
    const long n = std::strtol(text, &end, 10);
    return end != text && *end == 0 && n >= 1 && n <= kMostThreads ? int(n) : 0;
  }
  int n = int(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
#endif
  return std::max(1, std::min(n, cgroup_quota("")));
}
}  // namespace

int thread_count() {
  int n = g_threads.load(std::memory_order_relaxed);
  if (n == 0) g_threads.store(n = first_thread_count());
  return n;
}
void set_thread_count(int n) { g_threads.store(n); }
std::int64_t spin_microseconds() { return g_spin.load(std::memory_order_relaxed); }
void set_spin_microseconds(std::int64_t n) { g_spin.store(n, std::memory_order_relaxed); }

void set_impatient(bool impatient) { g_impatient.store(impatient); }
int find_openmp() { return OpenMp::mine().probe(); }
TeamReport last_team() { return g_report; }

void run_team(int want, void (*fn)(void*, int, Crew&), void* context) {
  const FlushDenormals mode;
  if (want > 1) {
    if (Pool* p = pool())
      if (std::unique_lock guard(p->busy, std::try_to_lock); guard.owns_lock() && p->run(want, fn, context)) return;
    g_report = {1, "alone"};
  }
  Crew nobody;
  fn(context, 0, nobody);
}

void barrier_wait(Barrier* b, int count) {
  if (count == 1) return;
  constexpr std::uint32_t kSleeper = 1u << 16;
  const std::uint32_t epoch = __atomic_load_n(&b->epoch, __ATOMIC_RELAXED), all = std::uint32_t(count);
  const auto passed = [&] { return __atomic_load_n(&b->epoch, __ATOMIC_ACQUIRE) != epoch; };
  if (const std::uint32_t arrived = __atomic_add_fetch(&b->arrived, 1, __ATOMIC_ACQ_REL); arrived % kSleeper == all) {
    __atomic_store_n(&b->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&b->epoch, epoch + 1, __ATOMIC_RELEASE);
    if (arrived >= kSleeper) wake_all(&b->epoch);
    return;
  }
  const int most = looks_before_sleep();
  double since = 0;
  for (int looks = 0; looks < most && !passed(); ++looks) {
    if (looks == kShortLooks) since = now();
    relax();
  }
  if (!passed()) {
    if (since == 0) since = now();
    // Only who sees that one is still to arrive counts itself as asleep: that one finds it. With none or all of them there the epoch is
    // about to change. What is seen may also be of the next barrier; then the epoch has changed.
    for (std::uint32_t seen = __atomic_load_n(&b->arrived, __ATOMIC_ACQUIRE); !passed(); relax()) {
      if (seen % kSleeper == 0 || seen % kSleeper == all)
        seen = __atomic_load_n(&b->arrived, __ATOMIC_ACQUIRE);
      else if (__atomic_compare_exchange_n(&b->arrived, &seen, seen + kSleeper, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        break;
    }
    while (!passed()) sleep_while(&b->epoch, epoch);
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
  char* blocks[kCount + 1];  // oldest first; each begins with its size. An array: neither taking nor giving back needs memory
  std::size_t count = 0, bytes = 0;

  static std::size_t& size(char* block) { return *reinterpret_cast<std::size_t*>(block); }
  char* take(std::size_t wanted) {
    const std::unique_lock guard(lock, std::try_to_lock);
    if (!guard.owns_lock()) return nullptr;
    std::size_t best = count;
    for (std::size_t i = 0; i < count; ++i)
      if (size(blocks[i]) >= wanted && size(blocks[i]) <= wanted + wanted / 4 && (best == count || size(blocks[i]) < size(blocks[best])))
        best = i;
    return best == count ? nullptr : remove(best);
  }
  void put(char* block) {
    std::unique_lock guard(lock, std::try_to_lock);
    if (!guard.owns_lock() || size(block) > kMost || kCount == 0) return std::free(block);
    while (count > 0 && (bytes + size(block) > kMost || count >= kCount)) drop();
    blocks[count++] = block, bytes += size(block);
  }
  void drop() { std::free(remove(0)); }
  char* remove(std::size_t i) {
    char* block = blocks[i];
    std::copy(blocks + i + 1, blocks + count, blocks + i);
    --count, bytes -= size(block);
    return block;
  }
};
Kept& kept() {
  alignas(Kept) static char place[sizeof(Kept)];
  static Kept* k = new (place) Kept;  // lives as long as the process: blocks may be freed after statics are gone
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
    while (kept().count > 0) kept().drop();
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
