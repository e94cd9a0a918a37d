// The library's own threads. Workers live as long as the process, wait 100 microseconds by spinning and then sleep.
// They are joined before a fork and started again lazily, in parent and child. Compiled once; plain functions only.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ost {

// At first min(affinity, cgroup v2 quota), or OSTINATO_NUM_THREADS; 0 if that is not a whole number from 1 to 1024.
int thread_count();
void set_thread_count(int n);

// Runs fn(context, index, count) on up to `want` threads, the caller being index 0, and returns when all have. A second
// caller that finds the workers busy runs alone: count is 1.
void run_team(int want, void (*fn)(void* context, int index, int count), void* context);

// A barrier for the members of one team: spins a bounded time, then gives its core away between looks.
struct alignas(64) Barrier {
  alignas(64) std::uint32_t arrived = 0;
  alignas(64) std::uint32_t epoch = 0;
};
void barrier_wait(Barrier* barrier, int count);
// Whether this thread has spent a fifth of its present job waiting at barriers.
bool team_waits();

// A moment's wait for another thread: at first a pause, after many looks the core is given away.
void give_way(std::int64_t looks);

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
