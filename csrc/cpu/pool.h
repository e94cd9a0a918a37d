// The library's own threads. Workers live as long as the process, look for work for a while (100 microseconds unless told otherwise)
// and then sleep. They are joined before a fork and started again lazily, in parent and child. Compiled once; plain functions only.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace ost {

// At first min(affinity, quota of the control groups), or OSTINATO_NUM_THREADS; 0 if that is not a whole number from 1 to kMostThreads.
int thread_count();
void set_thread_count(int n);
// The CPUs that the control groups of the process (versions 1 and 2, those above included) allow by quota, rounded; many without one.
// `root` stands before the system's paths, for tests.
int cgroup_quota(const std::string& root);

// How long a worker without work spins before it sleeps.
std::int64_t spin_microseconds();
void set_spin_microseconds(std::int64_t n);

// The members of a team work on one job: the caller, and the workers that have come. A worker joins when the system has woken it,
// and where it comes too late there is nothing left for it. Work that can be taken in pieces needs no more than that. Work that is
// split evenly goes by turns: the caller gives one to all members that are there, each learns its rank among them, and those
// who come later have a part in the next.
class Crew {
 public:
  Crew() = default;  // the caller alone
  Crew(struct Pool* pool, std::vector<std::unique_ptr<struct Seat>>* seats, int helpers) : pool_(pool), seats_(seats), helpers_(helpers) {}
  // For the caller, whose rank is 0: the number of members that have this turn. What it wrote before is seen by them.
  int call();
  // For the caller: whether all that were asked are there. The first time workers that are still waking are waited for, up to so many
  // seconds.
  bool complete(double seconds);
  // For member `index`: waits for its next turn; false when the job is over.
  bool await(int index, int* rank, int* count);
  // For the caller: no more turns, and nobody else joins.
  void dismiss();

 private:
  void gather(double seconds);
  struct Pool* pool_ = nullptr;
  std::vector<std::unique_ptr<struct Seat>>* seats_ = nullptr;
  int helpers_ = 0;
  bool gathered_ = false;
};

constexpr int kMostThreads = 1024;
// Runs fn(context, index, crew) on the caller, whose index is 0, and on up to `want` - 1 workers, and returns when all have. A second
// caller that finds the workers busy runs alone.
void run_team(int want, void (*fn)(void* context, int index, Crew& crew), void* context);

// Who had a part in the last job of this thread that asked for a team: how many threads, the caller included, and whether the others were
// our workers or those of an OpenMP runtime.
struct TeamReport {
  int members;
  const char* kind;
};
TeamReport last_team();
// Looks for an OpenMP runtime now; the number of threads that it has for this thread, 1 if there is none. For tests.
int find_openmp();

// Where threads sleep that wait for each other. Who waits looks for a moment, counts itself, looks once more and sleeps. Who changes what
// others wait for does so by a sequentially consistent read-modify-write, and rings. Nobody yields: a thread that does gives up its time
// slice (Linux 6.12.63 and later, "Forfeit vruntime on yield"), so that beside other programs a call of 2 ms took 5 to 20 on average, and
// up to 200. All of it is defined in pool.cpp: this file is compiled once for each instruction set.
struct alignas(64) Bell {
  std::uint32_t rings = 0, sleepers = 0;
};
void ring(Bell* bell);

// For a loop that waits: for (Wait wait(&bell); !changed; wait.look_again()) {}
class Wait {
 public:
  explicit Wait(Bell* bell);
  Wait(Bell* bell, int looks);  // before it sleeps
  ~Wait();
  Wait(const Wait&) = delete;
  Wait& operator=(const Wait&) = delete;
  // Returns after a moment, or when the bell has rung.
  void look_again();

 private:
  Bell* bell_;
  int looks_;
  bool counted_;
  std::uint32_t heard_;
};

// For tests: threads that wait for each other sleep at once, and turns are short.
void set_impatient(bool impatient);

// A barrier for the members of one team. They wait awake for a moment, then asleep.
struct alignas(64) Barrier {
  std::uint32_t arrived = 0;  // since the last time that all were there; in its upper half, how many of them sleep
  alignas(64) std::uint32_t epoch = 0;
};
void barrier_wait(Barrier* barrier, int count);
// Whether this thread has spent a fifth of its present job waiting at barriers.
bool team_waits();

// 64-byte aligned memory, or null. Blocks of a megabyte and more are kept when they are freed, up to 256 MB, for the next call;
// from 4 MB on they ask for huge pages: fewer faults and fewer misses of the address cache where weights are streamed.
void* allocate_block(std::size_t bytes);
void free_block(void* block);
void release_memory();  // gives back what is kept

// Denormals are flushed to zero inside a call. Each returns the mode before, for restore.
unsigned flush_denormals_on();
unsigned flush_denormals_off();
void flush_denormals_restore(unsigned mode);

// Bytes of the last workspace that this thread could not have, for the error message.
void refuse_bytes(std::int64_t bytes);
std::int64_t refused_bytes();

}  // namespace ost
