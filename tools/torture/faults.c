// Make writes of this process fail, for tools/torture disk. Loaded by LD_PRELOAD.
//
// Every call of the C library that changes a file below one folder is counted: opening for writing,
// write, pwrite, writev, fsync, fdatasync, ftruncate, fchmod, fchown, close, rename, unlink, mkdir,
// rmdir, link and symlink. The call with a given number fails, or all from there on.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { kCount, kFull, kReadOnly, kError, kShort, kSlow };
enum { kFiles = 4096, kPath = 4096, kLog = 1 << 16 };

static char folder[kPath];
static long at, seen;
static int kind, lasting, armed;
static char watched[kFiles];
static char names[kLog];

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void torture_arm(const char* where, long first, int what, int until_the_end) {
  strncpy(folder, where, kPath - 1);
  at = first;
  seen = 0;
  kind = what;
  lasting = until_the_end;
  names[0] = 0;
  armed = 1;
}

void torture_disarm(void) { armed = 0; }
long torture_count(void) { return seen; }
const char* torture_names(void) { return names; }

static int below(const char* path) {
  size_t n = strlen(folder);
  return armed && path && !strncmp(path, folder, n) && path[n] == '/';
}

static int is_watched(int fd) { return armed && fd >= 0 && fd < kFiles && watched[fd]; }

// The error of this call, 0 for none. `takes_room` is false for what a full disk still does.
static int fault(const char* name, int takes_room) {
  long here = seen++;
  size_t used = strlen(names);
  if (used + 32 < kLog) snprintf(names + used, kLog - used, "%s ", name);
  if (kind == kSlow) usleep(3000);
  if (at < 0 || kind == kSlow || kind == kCount) return 0;
  if (here != at && !(lasting && here > at)) return 0;
  if (kind == kFull || kind == kShort) return takes_room ? ENOSPC : 0;
  return kind == kReadOnly ? EROFS : EIO;
}

#define FAIL_IF(condition, name, room)       \
  if (condition) {                           \
    int e = fault(name, room);               \
    if (e) {                                 \
      errno = e;                             \
      return -1;                             \
    }                                        \
  }

static int opened(int fd, int watch) {
  if (fd >= 0 && fd < kFiles) watched[fd] = (char)watch;
  return fd;
}

// `parameter` and `argument` are the folder that openat has before the path, each with its COMMA.
#define COMMA ,
#define OPEN(symbol, parameter, argument)                                \
  int symbol(parameter const char* path, int flags, ...) {               \
    va_list more;                                                        \
    va_start(more, flags);                                               \
    mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;            \
    va_end(more);                                                        \
    int watch = below(path) && flags & (O_WRONLY | O_RDWR);              \
    FAIL_IF(watch, "open", flags& O_CREAT)                               \
    return opened(REAL(symbol)(argument path, flags, mode), watch);      \
  }
OPEN(open, , )
OPEN(open64, , )
OPEN(openat, int place COMMA, place COMMA)
OPEN(openat64, int place COMMA, place COMMA)

ssize_t write(int fd, const void* data, size_t count) {
  if (is_watched(fd)) {
    int e = fault("write", 1);
    if (e && kind == kShort && seen - 1 == at && count > 1)  // half of it fits
      return REAL(write)(fd, data, count / 2);
    if (e) {
      errno = e;
      return -1;
    }
  }
  return REAL(write)(fd, data, count);
}

ssize_t pwrite64(int fd, const void* data, size_t count, off64_t where) {
  FAIL_IF(is_watched(fd), "pwrite", 1)
  return REAL(pwrite64)(fd, data, count, where);
}

ssize_t writev(int fd, const struct iovec* data, int count) {
  FAIL_IF(is_watched(fd), "writev", 1)
  return REAL(writev)(fd, data, count);
}

int fsync(int fd) {
  FAIL_IF(is_watched(fd), "fsync", 1)
  return REAL(fsync)(fd);
}

int fdatasync(int fd) {
  FAIL_IF(is_watched(fd), "fdatasync", 1)
  return REAL(fdatasync)(fd);
}

int ftruncate64(int fd, off64_t size) {
  FAIL_IF(is_watched(fd), "ftruncate", 0)
  return REAL(ftruncate64)(fd, size);
}

int fchmod(int fd, mode_t mode) {
  FAIL_IF(is_watched(fd), "fchmod", 0)
  return REAL(fchmod)(fd, mode);
}

int fchown(int fd, uid_t owner, gid_t group) {
  FAIL_IF(is_watched(fd), "fchown", 0)
  return REAL(fchown)(fd, owner, group);
}

int close(int fd) {
  int e = is_watched(fd) ? fault("close", 0) : 0;
  if (fd >= 0 && fd < kFiles) watched[fd] = 0;
  int done = REAL(close)(fd);
  if (!e || kind == kReadOnly) return done;
  errno = e;  // it is closed all the same
  return -1;
}

int rename(const char* from, const char* to) {
  FAIL_IF(below(from) || below(to), "rename", 1)
  return REAL(rename)(from, to);
}

int unlink(const char* path) {
  FAIL_IF(below(path), "unlink", 0)
  return REAL(unlink)(path);
}

int mkdir(const char* path, mode_t mode) {
  FAIL_IF(below(path), "mkdir", 1)
  return REAL(mkdir)(path, mode);
}

int rmdir(const char* path) {
  FAIL_IF(below(path), "rmdir", 0)
  return REAL(rmdir)(path);
}

int link(const char* from, const char* to) {
  FAIL_IF(below(to), "link", 1)
  return REAL(link)(from, to);
}

int symlink(const char* from, const char* to) {
  FAIL_IF(below(to), "symlink", 1)
  return REAL(symlink)(from, to);
}
