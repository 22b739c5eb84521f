/* Preloaded into the crash tests: counts the system calls that change files below one folder, cuts the process at the n-th,
   lets it fail, or writes a trace of all of them.  Not thread-safe; the tests use one thread. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { OFF, COUNT, KILL, TORN, FAIL, FAIL_ON, TRACE };
static int mode = OFF, error_number, trace_fd = -1;
static long calls, cut_at;
static char root[4096];
static char paths[1024][512];

void shim_set(const char *folder, int new_mode, long at, int error, int fd) {
  snprintf(root, sizeof root, "%s/", folder);
  mode = new_mode, cut_at = at, error_number = error, trace_fd = fd, calls = 0;
}
long shim_calls(void) { return calls; }

static int ours(const char *path) { return mode != OFF && path != NULL && strncmp(path, root, strlen(root)) == 0 && strstr(path, "-shm") == NULL; }
static const char *of(int fd) { return fd >= 0 && fd < 1024 && paths[fd][0] ? paths[fd] : NULL; }

static void note(char op, const char *first, const char *second, uint64_t offset, const void *data, uint64_t size) {
  if (mode != TRACE) return;
  uint32_t a = strlen(first), b = second ? strlen(second) : 0;
  syscall(SYS_write, trace_fd, &op, 1);
  syscall(SYS_write, trace_fd, &a, 4), syscall(SYS_write, trace_fd, first, a);
  syscall(SYS_write, trace_fd, &b, 4), syscall(SYS_write, trace_fd, second, b);
  syscall(SYS_write, trace_fd, &offset, 8), syscall(SYS_write, trace_fd, &size, 8);
  if (data) syscall(SYS_write, trace_fd, data, size);
}

/* 1: this call fails with errno set.  A kill does not return. */
static int cut(int writes) {
  ++calls;
  if (mode == KILL && calls == cut_at) kill(getpid(), SIGKILL);
  if ((mode == FAIL && calls == cut_at) || (mode == FAIL_ON && calls >= cut_at && writes)) {
    errno = error_number;
    return 1;
  }
  return 0;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, #name)

static int opened(int fd, const char *path, int flags) {
  if (fd >= 0 && fd < 1024) {
    paths[fd][0] = 0;
    if (ours(path) && strlen(path) < sizeof paths[0]) strcpy(paths[fd], path);
  }
  if (fd >= 0 && ours(path) && (flags & O_TRUNC)) note('T', path, NULL, 0, NULL, 0);
  return fd;
}

static int open_any(int at, const char *path, int flags, mode_t rights) {
  struct stat there;
  int creates = (flags & O_CREAT) && ours(path) && stat(path, &there) != 0;
  if (creates && cut(1)) return -1;
  int fd = syscall(SYS_openat, at, path, flags, rights);
  if (creates && fd >= 0) note('C', path, NULL, 0, NULL, 0);
  return opened(fd, path, flags);
}
#define OPEN(name) int name(const char *path, int flags, ...) { va_list list; va_start(list, flags); mode_t rights = (flags & O_CREAT) ? va_arg(list, mode_t) : 0; va_end(list); return open_any(AT_FDCWD, path, flags, rights); }
OPEN(open)
OPEN(open64)
#define OPENAT(name) int name(int at, const char *path, int flags, ...) { va_list list; va_start(list, flags); mode_t rights = (flags & O_CREAT) ? va_arg(list, mode_t) : 0; va_end(list); return open_any(at, path, flags, rights); }
OPENAT(openat)
OPENAT(openat64)

int close(int fd) { if (fd >= 0 && fd < 1024) paths[fd][0] = 0; return syscall(SYS_close, fd); }

ssize_t write(int fd, const void *data, size_t size) {
  if (!of(fd)) return syscall(SYS_write, fd, data, size);
  if (mode == TORN && calls + 1 == cut_at) { syscall(SYS_write, fd, data, size / 2); kill(getpid(), SIGKILL); }
  if (cut(1)) return -1;
  uint64_t offset = lseek(fd, 0, SEEK_CUR);
  ssize_t done = syscall(SYS_write, fd, data, size);
  if (done > 0) note('W', of(fd), NULL, offset, data, done);
  return done;
}
static ssize_t write_at(int fd, const void *data, size_t size, off_t offset) {
  if (!of(fd)) return syscall(SYS_pwrite64, fd, data, size, offset);
  if (mode == TORN && calls + 1 == cut_at) { syscall(SYS_pwrite64, fd, data, size / 2, offset); kill(getpid(), SIGKILL); }
  if (cut(1)) return -1;
  ssize_t done = syscall(SYS_pwrite64, fd, data, size, offset);
  if (done > 0) note('W', of(fd), NULL, offset, data, done);
  return done;
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return write_at(fd, data, size, offset); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { return write_at(fd, data, size, offset); }

static int sync_any(int fd, int number) {
  if (of(fd)) { if (cut(0)) return -1; note('S', of(fd), NULL, 0, NULL, 0); }
  return syscall(number, fd);
}
int fsync(int fd) { return sync_any(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_any(fd, SYS_fdatasync); }

static int truncate_any(int fd, off_t size) {
  if (of(fd)) { if (cut(1)) return -1; note('L', of(fd), NULL, size, NULL, 0); }
  return syscall(SYS_ftruncate, fd, size);
}
int ftruncate(int fd, off_t size) { return truncate_any(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncate_any(fd, size); }

int rename(const char *from, const char *to) {
  if (ours(to)) { if (cut(1)) return -1; note('R', from, to, 0, NULL, 0); }
  return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}
int renameat(int a, const char *from, int b, const char *to) {
  if (ours(to)) { if (cut(1)) return -1; note('R', from, to, 0, NULL, 0); }
  return syscall(SYS_renameat2, a, from, b, to, 0);
}
int unlink(const char *path) {
  if (ours(path)) { if (cut(1)) return -1; note('U', path, NULL, 0, NULL, 0); }
  return syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}
