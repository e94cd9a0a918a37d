#include "openmp.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#if defined(__linux__)
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ost {

OpenMp& OpenMp::mine() {
  thread_local OpenMp one;
  return one;
}
OpenMp::~OpenMp() { forget(); }

#if defined(__linux__)
namespace {

// What a runtime offers. GOMP_parallel is the entry that GCC's compiled code uses; the runtimes of LLVM and Intel have it, too.
struct Runtime {
  void* library;
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
  int (*thread_num)();
  int (*max_threads)();
  int (*in_parallel)();
  std::atomic<bool> unused;  // a thread that looked had no team: no other looks again
};

// Never destroyed: a daemon thread may compute while the process ends.
constexpr int kMostRuntimes = 8;
Runtime g_runtimes[kMostRuntimes];
std::atomic<int> g_count{0};
std::mutex g_lock;               // of those who add to them
std::atomic<bool> g_off{false};  // this is a child: its parent's OpenMP threads are not here

template <class F>
bool find(void* library, const char* name, F* out) {
  *out = reinterpret_cast<F>(dlsym(library, name));
  return *out != nullptr;
}

int add_name(dl_phdr_info* info, std::size_t, void* names) {
  const char* path = info->dlpi_name;
  const char* base = path ? std::strrchr(path, '/') : nullptr;
  base = base ? base + 1 : path;
  for (const char* known : {"libgomp", "libomp", "libiomp5"})
    if (base && std::strncmp(base, known, std::strlen(known)) == 0) {
      try {
        static_cast<std::vector<std::string>*>(names)->push_back(path);
      } catch (const std::bad_alloc&) {
        return 1;  // an exception would leave the list of libraries locked
      }
    }
  return 0;
}
unsigned long long loaded_libraries() {
  unsigned long long count = 0;
  dl_iterate_phdr([](dl_phdr_info* info, std::size_t, void* to) { return *static_cast<unsigned long long*>(to) = info->dlpi_adds, 1; },
                  &count);
  return count;
}

void find_runtimes() {
  std::vector<std::string> names;  // nothing is opened while the list of libraries is held
  dl_iterate_phdr(add_name, &names);
  const std::lock_guard guard(g_lock);
  for (const std::string& name : names) {
    const int count = g_count.load();
    void* library = count < kMostRuntimes ? dlopen(name.c_str(), RTLD_NOW | RTLD_NOLOAD) : nullptr;
    if (!library) continue;
    Runtime& r = g_runtimes[count];
    const bool known = std::any_of(g_runtimes, g_runtimes + count, [&](const Runtime& o) { return o.library == library; });
    if (!known && find(library, "GOMP_parallel", &r.parallel) && find(library, "omp_get_thread_num", &r.thread_num) &&
        find(library, "omp_get_max_threads", &r.max_threads) && find(library, "omp_in_parallel", &r.in_parallel)) {
      r.library = library;  // and it stays open: its code must be there when it is called
      g_count.store(count + 1, std::memory_order_release);
    } else {
      dlclose(library);
    }
  }
}

pid_t thread_id() { return pid_t(syscall(SYS_gettid)); }

// Read a number of a thread from a file of /proc; 0 where it cannot be read. `ours`: whether it is a worker of this library, by its name.
char state_of(int file, bool* ours) {
  char text[64];
  const ssize_t n = pread(file, text, sizeof text - 1, 0);
  if (n <= 0) return 0;
  text[n] = 0;
  const char* end = std::strrchr(text, ')');
  if (ours) *ours = std::strstr(text, "(ostinato)") != nullptr;
  return end && end[1] == ' ' ? end[2] : 0;
}
int open_state(pid_t id) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/task/%d/stat", int(id));
  return open(path, O_RDONLY | O_CLOEXEC);
}

std::vector<pid_t> threads_now() {
  std::vector<pid_t> ids;
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir("/proc/self/task"), closedir);
  if (!folder) return ids;
  while (const dirent* entry = readdir(folder.get()))
    if (const pid_t id = pid_t(std::atoi(entry->d_name)); id > 0) ids.push_back(id);
  return ids;
}

// Whether a thread runs that is neither this one nor ours.
bool another_runs() {
  for (const pid_t id : threads_now()) {
    const int file = id == thread_id() ? -1 : open_state(id);
    if (file < 0) continue;
    bool ours = false;
    const bool running = state_of(file, &ours) == 'R' && !ours;
    close(file);
    if (running) return true;
  }
  return false;
}

}  // namespace

void OpenMp::forget() {
  for (int i = 0; i < count_ && !g_off.load(std::memory_order_relaxed); ++i) close(files_[i]);
  count_ = 0, probed_ = false, strikes_ = 0;
}
void OpenMp::forget_all() { g_off.store(true); }

void OpenMp::suspect(bool put_aside, bool woken, bool late) {
  if (put_aside)
    strikes_ = 2;
  else if (woken)
    strikes_ = late ? strikes_ + 1 : 0;
}

void OpenMp::look() {
  const double now = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  if (now - looked_ < 0.1) return;  // looking at all threads of a large process takes a while
  looked_ = now;
  try {
    if (probed_ && loaded_libraries() == libraries_) return;
    if (another_runs()) probe();
  } catch (const std::exception&) {}
}

// Runs an empty region on the team of this thread, to learn which threads it has. If it has none a runtime makes one: it is not used
// then, nor is that runtime looked at again.
int OpenMp::probe() {
  forget();
  if (g_off.load(std::memory_order_relaxed)) return 1;
  probed_ = true;
  libraries_ = loaded_libraries();
  find_runtimes();
  for (int i = 0; i < g_count.load(std::memory_order_acquire) && count_ == 0; ++i) {
    Runtime& r = g_runtimes[i];
    const int threads = r.max_threads();
    if (r.unused.load() || threads < 2 || r.in_parallel()) continue;
    const std::vector<pid_t> before = threads_now();
    struct Found {
      int (*thread_num)();
      pid_t ids[kWatched + 1];
    } found{r.thread_num, {}};
    r.parallel(
        [](void* p) {
          auto& f = *static_cast<Found*>(p);
          if (const int k = f.thread_num(); k <= kWatched) f.ids[k] = thread_id();
        },
        &found, unsigned(threads), 0);
    for (int k = 1; k < threads && k <= kWatched; ++k) {
      if (found.ids[k] == 0) break;
      if (std::find(before.begin(), before.end(), found.ids[k]) == before.end()) {
        r.unused.store(true);
        break;
      }
      const int file = open_state(found.ids[k]);
      if (file < 0) break;
      files_[count_++] = file;
    }
    runtime_ = i, threads_ = threads;
  }
  return count_ > 0 ? threads_ : 1;
}

int OpenMp::spinning() {
  if (g_off.load(std::memory_order_relaxed)) return 1;
  if (count_ == 0 && strikes_ >= 2) look();
  if (count_ == 0) return 1;
  const Runtime& r = g_runtimes[runtime_];
  if (r.max_threads() != threads_) return forget(), 1;
  for (int i = 0; i < count_; ++i) {
    errno = 0;
    const char state = state_of(files_[i], nullptr);
    if (state == 0) {
      if (errno != ESRCH) count_ = 0;  // not the file that we opened: it is not ours to close
      return forget(), 1;
    }
    if (state != 'R') return 1;
  }
  return r.in_parallel() ? 1 : threads_;
}

void OpenMp::run(void (*fn)(void*, int), void* context) {
  struct Job {
    void (*fn)(void*, int);
    void* context;
    int (*thread_num)();
  } job{fn, context, g_runtimes[runtime_].thread_num};
  g_runtimes[runtime_].parallel(
      [](void* p) {
        const auto& j = *static_cast<const Job*>(p);
        j.fn(j.context, j.thread_num());
      },
      &job, unsigned(threads_), 0);
}

#else

void OpenMp::forget() {}
void OpenMp::forget_all() {}
void OpenMp::suspect(bool, bool, bool) {}
void OpenMp::look() {}
int OpenMp::probe() { return 1; }
int OpenMp::spinning() { return 1; }
void OpenMp::run(void (*fn)(void*, int), void* context) { fn(context, 0); }

#endif

}  // namespace ost
