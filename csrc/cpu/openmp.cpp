#include "openmp.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <unistd.h>
#endif

namespace ost {

#if defined(__linux__)
namespace {

// What a runtime offers. GOMP_parallel is the entry that GCC's compiled code uses; the runtimes of LLVM and Intel have it, too.
struct Runtime {
  void* library;
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
  int (*thread_num)();
  int (*max_threads)();
  int (*in_parallel)();
};

std::mutex g_lock;
std::vector<Runtime> g_runtimes;            // those that were found; only grows
std::atomic<unsigned long long> g_seen{0};  // how many libraries had been loaded when they were looked for
std::atomic<bool> g_off{false};             // this is a child: its parent's OpenMP threads are not here

template <class F>
bool find(void* library, const char* name, F* out) {
  *out = reinterpret_cast<F>(dlsym(library, name));
  return *out != nullptr;
}

int add_runtime(dl_phdr_info* info, std::size_t, void* names) {
  const char* path = info->dlpi_name;
  const char* base = path ? std::strrchr(path, '/') : nullptr;
  base = base ? base + 1 : path;
  for (const char* known : {"libgomp", "libomp", "libiomp5"})
    if (base && std::strncmp(base, known, std::strlen(known)) == 0) static_cast<std::vector<std::string>*>(names)->push_back(path);
  return 0;
}
int count_loaded(dl_phdr_info* info, std::size_t, void* count) {
  *static_cast<unsigned long long*>(count) = info->dlpi_adds;
  return 1;
}

void find_runtimes() {
  unsigned long long loaded = 0;
  dl_iterate_phdr(count_loaded, &loaded);
  if (loaded == g_seen.load()) return;
  std::vector<std::string> names;  // nothing is opened while the list of libraries is held
  dl_iterate_phdr(add_runtime, &names);
  const std::lock_guard guard(g_lock);
  for (const std::string& name : names)
    if (void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_NOLOAD)) {
      Runtime r{library, nullptr, nullptr, nullptr, nullptr};
      const bool known = std::any_of(g_runtimes.begin(), g_runtimes.end(), [&](const Runtime& o) { return o.library == library; });
      if (!known && find(library, "GOMP_parallel", &r.parallel) && find(library, "omp_get_thread_num", &r.thread_num) &&
          find(library, "omp_get_max_threads", &r.max_threads) && find(library, "omp_in_parallel", &r.in_parallel))
        g_runtimes.push_back(r);  // and the library stays open: its code must be there when it is called
      else
        dlclose(library);
    }
  g_seen.store(loaded);
}

Runtime runtime(int i) {
  const std::lock_guard guard(g_lock);
  return g_runtimes[std::size_t(i)];
}

struct Job {
  void (*fn)(void*, int);
  void* context;
  int (*thread_num)();
};

}  // namespace

OpenMp& OpenMp::mine() {
  thread_local OpenMp one;
  return one;
}
OpenMp::~OpenMp() { forget(); }

void OpenMp::forget() {
  for (int i = 0; i < count_; ++i) close(files_[i]);
  count_ = 0, probed_ = false, strikes_ = 0;
}
void OpenMp::forget_all() { g_off.store(true); }

void OpenMp::suspect(bool contended, bool late) {
  strikes_ = contended ? 2 : late ? strikes_ + 1 : 0;
  if (strikes_ >= 2 && !probed_ && !g_off.load(std::memory_order_relaxed)) probe();
}

// Runs an empty region on the runtime's threads of this thread, to learn which they are.
int OpenMp::probe() {
  forget();
  probed_ = true;
  find_runtimes();
  for (int i = 0; i < int(g_runtimes.size()) && count_ == 0; ++i) {
    const Runtime r = runtime(i);
    const int threads = std::min(r.max_threads(), kMost);
    if (threads < 2 || r.in_parallel()) continue;
    struct Found {
      int (*thread_num)();
      pid_t ids[kMost];
    } found{r.thread_num, {}};
    r.parallel(
        [](void* p) {
          auto& f = *static_cast<Found*>(p);
          f.ids[f.thread_num()] = gettid();
        },
        &found, unsigned(threads), 0);
    for (int k = 1; k < threads; ++k) {
      char path[64];
      std::snprintf(path, sizeof path, "/proc/self/task/%d/stat", int(found.ids[k]));
      const int file = found.ids[k] ? open(path, O_RDONLY | O_CLOEXEC) : -1;
      if (file < 0) break;
      files_[count_++] = file;
    }
    runtime_ = i;
  }
  return count_ + 1;
}

int OpenMp::spinning(int want) {
  if (count_ == 0 || g_off.load(std::memory_order_relaxed)) return 1;
  int threads = 1;
  for (int i = 0; i < std::min(count_, want - 1); ++i) {
    char text[64];
    const ssize_t n = pread(files_[i], text, sizeof text - 1, 0);
    if (n <= 0) {  // it has ended: the runtime has other threads now
      forget();
      return 1;
    }
    text[n] = 0;
    const char* name_end = std::strrchr(text, ')');
    if (!name_end || name_end[1] != ' ' || name_end[2] != 'R') break;
    ++threads;
  }
  const Runtime r = runtime(runtime_);
  return threads > 1 && !r.in_parallel() ? std::min(threads, r.max_threads()) : 1;
}

void OpenMp::run(int threads, void (*fn)(void*, int), void* context) {
  const Runtime r = runtime(runtime_);
  Job job{fn, context, r.thread_num};
  r.parallel(
      [](void* p) {
        const auto& j = *static_cast<const Job*>(p);
        j.fn(j.context, j.thread_num());
      },
      &job, unsigned(threads), 0);
}

#else

OpenMp& OpenMp::mine() {
  thread_local OpenMp one;
  return one;
}
OpenMp::~OpenMp() = default;
void OpenMp::forget() {}
void OpenMp::forget_all() {}
void OpenMp::suspect(bool, bool) {}
int OpenMp::probe() { return 1; }
int OpenMp::spinning(int) { return 1; }
void OpenMp::run(int, void (*fn)(void*, int), void* context) { fn(context, 0); }

#endif

}  // namespace ost
