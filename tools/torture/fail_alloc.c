/* Makes one allocation fail, or all from one on: loaded before libc (LD_PRELOAD) by tools/torture-native allocations.
 *
 * Counted are calls from watched ranges of code (the native module, the C++ runtime) of any size, and those of other
 * code (NumPy, Python) from `least` bytes on, of all threads, between fail_arm and fail_disarm. A thread that cannot
 * be started counts as well.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

enum { kMostRanges = 16 };
static struct { uintptr_t begin, end; } ranges[kMostRanges];
static int range_count;
static size_t least = SIZE_MAX;
static atomic_long counted, failing = -1;
static atomic_int armed, all_after;

void fail_watch(uintptr_t begin, uintptr_t end) {
  if (range_count < kMostRanges) ranges[range_count].begin = begin, ranges[range_count++].end = end;
}
void fail_least(size_t bytes) { least = bytes; }
void fail_arm(long k, int onwards) {
  atomic_store(&counted, 0), atomic_store(&failing, k), atomic_store(&all_after, onwards);
  atomic_store(&armed, 1);
}
/* The number of allocations since fail_arm. */
long fail_disarm(void) {
  atomic_store(&armed, 0);
  return atomic_load(&counted);
}

static int fails(size_t bytes, void *caller) {
  if (!atomic_load_explicit(&armed, memory_order_relaxed)) return 0;
  const uintptr_t at = (uintptr_t)caller;
  int watched = bytes >= least;
  for (int i = 0; i < range_count && !watched; ++i) watched = ranges[i].begin <= at && at < ranges[i].end;
  if (!watched) return 0;
  const long n = atomic_fetch_add(&counted, 1) + 1, k = atomic_load(&failing);
  if (n != k && !(n > k && k > 0 && atomic_load(&all_after))) return 0;
  if (n == k && getenv("TORTURE_TRACE")) { /* where, for whoever mends it */
    void *frames[24];
    atomic_store(&armed, 0);
    backtrace_symbols_fd(frames, backtrace(frames, 24), 2);
    atomic_store(&armed, 1);
  }
  errno = ENOMEM;
  return 1;
}
#define CALLER __builtin_return_address(0)

void *malloc(size_t n) { return fails(n, CALLER) ? NULL : __libc_malloc(n); }
void *calloc(size_t count, size_t n) { return fails(n && count > SIZE_MAX / n ? SIZE_MAX : count * n, CALLER) ? NULL : __libc_calloc(count, n); }
void *realloc(void *p, size_t n) { return fails(n, CALLER) ? NULL : __libc_realloc(p, n); }
void *memalign(size_t alignment, size_t n) { return fails(n, CALLER) ? NULL : __libc_memalign(alignment, n); }
void *aligned_alloc(size_t alignment, size_t n) { return fails(n, CALLER) ? NULL : __libc_memalign(alignment, n); }
int posix_memalign(void **to, size_t alignment, size_t n) {
  void *p = fails(n, CALLER) ? NULL : __libc_memalign(alignment, n);
  if (!p) return ENOMEM;
  *to = p;
  return 0;
}
void *mmap(void *at, size_t n, int protection, int flags, int file, off_t offset) {
  static void *(*next)(void *, size_t, int, int, int, off_t);
  if (!next) next = (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap");
  return fails(n, CALLER) ? MAP_FAILED : next(at, n, protection, flags, file, offset);
}
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
  static int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
  if (!next) next = (int (*)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *))dlsym(RTLD_NEXT, "pthread_create");
  return fails(0, CALLER) ? EAGAIN : next(thread, attributes, start, argument);
}
