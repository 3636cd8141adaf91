/* iolayer.c, preloaded: stands between a program and libc's calls on files, to record them or to make them fail.
 *
 * What it does for whom is described in iolayer.py. Here: one wrapper per call. A wrapper names the operation and the
 * file, lets the rules act (iorules.h), records (iorecord.h), and makes the real system call. Files of descriptors
 * are named by /proc/self/fd at the time of the call, so descriptors that were inherited, duplicated or sent are seen
 * too; the file's identity in a record is device and inode.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/aio_abi.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <sys/ioctl.h>

#include "iorecord.h"
#include "iorules.h"

enum { PATH = 4096, AIO = 1024 };

struct step {                           /* one operation on its way through the layer */
    enum io_op op;
    int recorded;
    struct io_act act;
    struct io_entry event;
};

static void set_up(void)
{
    const char *record = getenv("MARS_IO_RECORD"), *roots = getenv("MARS_IO_ROOTS"), *seed = getenv("MARS_IO_SEED");
    char copy[IO_ROOTS * 512], *rest, *one;
    if (io_call)
        return;
    *(void **)&io_call = dlsym(RTLD_NEXT, "syscall");
    io_rules_path = getenv("MARS_IO_RULES");
    if (seed)
        io_random_state += strtoull(seed, NULL, 10) * 0x9E3779B97F4A7C15ull;
    snprintf(copy, sizeof copy, "%s", roots ? roots : "");
    for (one = strtok_r(copy, ":", &rest); one && io_n_roots < IO_ROOTS; one = strtok_r(NULL, ":", &rest))
        snprintf(io_roots[io_n_roots++], sizeof io_roots[0], "%s", one);
    if (record) {
        snprintf(io_record_path, sizeof io_record_path, "%s", record);
        io_open_record();
    }
}

static sigset_t fork_mask;
static void lock_rules(void) { sigset_t before; io_lock(&before); fork_mask = before; }
static void unlock_rules(void) { sigset_t before = fork_mask; io_unlock(&before); }

__attribute__((constructor)) static void start(void)
{
    set_up();
    pthread_atfork(lock_rules, unlock_rules, unlock_rules);
}

/* Is the layer of any use for this operation? */
static int wanted(enum io_op op)
{
    int rules, e = errno;
    sigset_t before;
    set_up();
    io_lock(&before);
    rules = io_rules_want(op);
    io_unlock(&before);
    errno = e;
    return rules || (io_record_fd >= 0 && op != IO_READ);
}

/* The name of what a descriptor stands for; without the kernel's note that it was removed. */
static void name_of(int fd, char *path)
{
    static const char gone[] = " (deleted)";
    char link[64];
    long n;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = io_call(SYS_readlinkat, AT_FDCWD, link, path, PATH - 1);
    path[n > 0 ? n : 0] = 0;
    if (n > (long)sizeof gone && strcmp(path + n - (sizeof gone - 1), gone) == 0)
        path[n - (long)(sizeof gone - 1)] = 0;
}

static void full_path(int dir, const char *path, char *out)
{
    if (*path == '/') {
        snprintf(out, PATH, "%s", path);
        return;
    }
    if (dir == AT_FDCWD && io_call(SYS_getcwd, out, PATH) < 0)
        *out = 0;
    else if (dir != AT_FDCWD)
        name_of(dir, out);
    if (*path)
        snprintf(out + strlen(out), PATH - strlen(out), "/%s", path);
}

/* Before the call: 0 = make it, -1 = it failed (errno is set). */
static int before(struct step *s, const char *path, const char *path2, const struct io_data *data)
{
    s->event.op = (uint16_t)s->op;
    s->recorded = io_record_fd >= 0 && s->op != IO_READ && (io_below_roots(path) || (path2 && io_below_roots(path2)));
    s->act = io_apply_rules(s->op, path, path2, s->event.off, s->event.len);
    if (s->recorded && !s->act.error)
        io_record_issue(&s->event, path, path2, data);
    io_delay(s->act.delay);             /* between issue and end: so much longer is it in flight */
    if (s->act.error) {
        s->recorded = 0;
        errno = s->act.error;
        return -1;
    }
    return 0;
}

static long after(struct step *s, long result)
{
    if (s->recorded)
        io_record_end(&s->event, result);
    if (s->act.kill_after)
        kill(getpid(), SIGKILL);
    return result;
}

static void identify(struct step *s, int fd)
{
    struct stat st;
    int e = errno;
    if (io_record_fd >= 0 && fstat(fd, &st) == 0) {
        s->event.dev = st.st_dev;
        s->event.ino = st.st_ino;
    }
    errno = e;
}

/* ---- writes and reads ---- */

static int before_fd(struct step *s, int fd, const struct io_data *data)
{
    char path[PATH];
    int e = errno;
    identify(s, fd);
    name_of(fd, path);
    errno = e;
    return before(s, path, NULL, data);
}

static size_t sum_of(const struct iovec *iov, int n)
{
    size_t sum = 0;
    for (int i = 0; i < n; i++)
        sum += iov[i].iov_len;
    return sum;
}

/* offset -1: at the descriptor's own position */
static ssize_t write_at(int fd, const struct iovec *iov, int n, off_t off)
{
    struct step s = {.op = IO_WRITE};
    struct iovec one;
    struct io_data data = {iov, n};
    long rc;
    if (wanted(IO_WRITE)) {
        s.event.off = off >= 0 ? (uint64_t)off : (uint64_t)lseek(fd, 0, SEEK_CUR);
        if (off < 0 && (fcntl(fd, F_GETFL) & O_APPEND))
            s.event.off = (uint64_t)-1;
        s.event.len = sum_of(iov, n);
        if (before_fd(&s, fd, &data))
            return -1;
        if (s.act.shorter && n > 0 && (size_t)s.act.shorter < iov[0].iov_len) {
            one = (struct iovec){iov[0].iov_base, (size_t)s.act.shorter};
            iov = &one;
            n = 1;
        }
    }
    if (n == 1)
        rc = off >= 0 ? io_call(SYS_pwrite64, fd, iov->iov_base, iov->iov_len, off)
                      : io_call(SYS_write, fd, iov->iov_base, iov->iov_len);
    else
        rc = off >= 0 ? io_call(SYS_pwritev, fd, iov, n, off, 0L) : io_call(SYS_writev, fd, iov, n);
    return after(&s, rc);
}

ssize_t write(int fd, const void *p, size_t n)
{
    struct iovec iov = {(void *)p, n};
    return write_at(fd, &iov, 1, -1);
}

ssize_t pwrite(int fd, const void *p, size_t n, off_t off)
{
    struct iovec iov = {(void *)p, n};
    return write_at(fd, &iov, 1, off);
}

ssize_t writev(int fd, const struct iovec *iov, int n)
{
    return write_at(fd, iov, n, -1);
}

ssize_t pwritev(int fd, const struct iovec *iov, int n, off_t off)
{
    return write_at(fd, iov, n, off);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int n, off_t off, int flags)
{
    if (flags) {
        errno = EOPNOTSUPP;             /* nobody here uses them; better refused than not understood */
        return -1;
    }
    return write_at(fd, iov, n, off);
}

ssize_t pwrite64(int, const void *, size_t, off_t) __attribute__((alias("pwrite")));
ssize_t pwritev64(int, const struct iovec *, int, off_t) __attribute__((alias("pwritev")));
ssize_t pwritev64v2(int, const struct iovec *, int, off_t, int) __attribute__((alias("pwritev2")));

/* off -1: at the descriptor's own position */
static ssize_t read_step(struct step *s, int fd, off_t off, size_t n)
{
    if (!wanted(IO_READ))
        return 0;
    s->event.off = (uint64_t)(off >= 0 ? off : lseek(fd, 0, SEEK_CUR));
    s->event.len = n;
    return before_fd(s, fd, NULL);
}

ssize_t read(int fd, void *p, size_t n)
{
    struct step s = {.op = IO_READ};
    return read_step(&s, fd, -1, n) ? -1 : after(&s, io_call(SYS_read, fd, p, n));
}

ssize_t pread(int fd, void *p, size_t n, off_t off)
{
    struct step s = {.op = IO_READ};
    return read_step(&s, fd, off, n) ? -1 : after(&s, io_call(SYS_pread64, fd, p, n, off));
}

ssize_t preadv(int fd, const struct iovec *iov, int n, off_t off)
{
    struct step s = {.op = IO_READ};
    return read_step(&s, fd, off, sum_of(iov, n)) ? -1 : after(&s, io_call(SYS_preadv, fd, iov, n, off, 0L));
}

ssize_t preadv2(int fd, const struct iovec *iov, int n, off_t off, int flags)
{
    struct step s = {.op = IO_READ};
    return read_step(&s, fd, off, sum_of(iov, n)) ? -1 : after(&s, io_call(SYS_preadv2, fd, iov, n, off, 0L, flags));
}

ssize_t pread64(int, void *, size_t, off_t) __attribute__((alias("pread")));
ssize_t preadv64(int, const struct iovec *, int, off_t) __attribute__((alias("preadv")));
ssize_t preadv64v2(int, const struct iovec *, int, off_t, int) __attribute__((alias("preadv2")));

/* ---- syncs, space, size ---- */

static int fd_call(enum io_op op, int fd, long number, uint64_t off, uint64_t len, uint32_t mode)
{
    struct step s = {.op = op, .event = {.off = off, .len = len, .mode = mode}};
    if (wanted(op) && before_fd(&s, fd, NULL))
        return -1;
    if (op == IO_FALLOCATE || op == IO_ZERO)
        return (int)after(&s, io_call(number, fd, (long)mode, off, len));
    return (int)after(&s, op == IO_TRUNCATE ? io_call(number, fd, len) : io_call(number, fd));
}

int fdatasync(int fd) { return fd_call(IO_FDATASYNC, fd, SYS_fdatasync, 0, 0, 0); }
int fsync(int fd) { return fd_call(IO_FSYNC, fd, SYS_fsync, 0, 0, 0); }
int syncfs(int fd) { return fd_call(IO_SYNCFS, fd, SYS_syncfs, 0, 0, 0); }
int ftruncate(int fd, off_t len) { return fd_call(IO_TRUNCATE, fd, SYS_ftruncate, 0, (uint64_t)len, 0); }
int ftruncate64(int, off_t) __attribute__((alias("ftruncate")));

/* By name, so without a descriptor. */
int truncate(const char *name, off_t len)
{
    struct step s = {.op = IO_TRUNCATE, .event = {.len = (uint64_t)len}};
    char path[PATH];
    struct stat st;
    int e = errno;
    if (wanted(IO_TRUNCATE)) {
        full_path(AT_FDCWD, name, path);
        if (stat(name, &st) == 0) {
            s.event.dev = st.st_dev;
            s.event.ino = st.st_ino;
        }
        errno = e;
        if (before(&s, path, NULL, NULL))
            return -1;
    }
    return (int)after(&s, io_call(SYS_truncate, name, len));
}

int truncate64(const char *, off_t) __attribute__((alias("truncate")));

int fallocate(int fd, int mode, off_t off, off_t len)
{
    enum io_op op = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE) ? IO_ZERO : IO_FALLOCATE;
    return fd_call(op, fd, SYS_fallocate, (uint64_t)off, (uint64_t)len, (uint32_t)mode);
}

int fallocate64(int, int, off_t, off_t) __attribute__((alias("fallocate")));

int posix_fallocate(int fd, off_t off, off_t len)
{
    int e = errno, rc = fallocate(fd, 0, off, len) == 0 ? 0 : errno;
    errno = e;
    return rc;
}

int posix_fallocate64(int, off_t, off_t) __attribute__((alias("posix_fallocate")));

int ioctl(int fd, unsigned long request, ...)
{
    struct step s = {.op = IO_ZERO};
    va_list list;
    void *arg;
    va_start(list, request);
    arg = va_arg(list, void *);
    va_end(list);
    set_up();
    if ((request == BLKZEROOUT || request == BLKDISCARD) && wanted(IO_ZERO)) {
        s.event.off = ((const uint64_t *)arg)[0];
        s.event.len = ((const uint64_t *)arg)[1];
        s.event.mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
        if (before_fd(&s, fd, NULL))
            return -1;
    }
    return (int)after(&s, io_call(SYS_ioctl, fd, request, arg));
}

/* ---- names ---- */

static int open_at(int dir, const char *name, int flags, unsigned mode)
{
    struct step s = {.op = IO_OPEN, .event = {.off = (uint64_t)flags, .mode = mode}};
    char path[PATH];
    struct stat st;
    long fd;
    int e = errno;
    if (!wanted(IO_OPEN))
        return (int)io_call(SYS_openat, dir, name, flags | O_LARGEFILE, mode);
    full_path(dir, name, path);
    if (flags & O_CREAT)
        s.event.len = io_call(SYS_newfstatat, dir, name, &st, AT_SYMLINK_NOFOLLOW) != 0;
    errno = e;
    if (before(&s, path, NULL, NULL))
        return -1;
    fd = io_call(SYS_openat, dir, name, flags | O_LARGEFILE, mode);
    if (fd >= 0)
        identify(&s, (int)fd);
    return (int)after(&s, fd);
}

int open(const char *name, int flags, ...)
{
    va_list list;
    unsigned mode = 0;
    va_start(list, flags);
    if (flags & (O_CREAT | __O_TMPFILE))
        mode = va_arg(list, unsigned);
    va_end(list);
    return open_at(AT_FDCWD, name, flags, mode);
}

int openat(int dir, const char *name, int flags, ...)
{
    va_list list;
    unsigned mode = 0;
    va_start(list, flags);
    if (flags & (O_CREAT | __O_TMPFILE))
        mode = va_arg(list, unsigned);
    va_end(list);
    return open_at(dir, name, flags, mode);
}

int __open_2(const char *name, int flags) { return open_at(AT_FDCWD, name, flags, 0); }
int __openat_2(int dir, const char *name, int flags) { return open_at(dir, name, flags, 0); }
int open64(const char *, int, ...) __attribute__((alias("open")));
int openat64(int, const char *, int, ...) __attribute__((alias("openat")));
int __open64_2(const char *, int) __attribute__((alias("__open_2")));
int __openat64_2(int, const char *, int) __attribute__((alias("__openat_2")));

/* An operation on a name: call number, directory, name, and two more arguments of the call. */
static int name_call(enum io_op op, long number, int dir, const char *name, long third, long fourth)
{
    struct step s = {.op = op, .event = {.mode = (uint32_t)third}};
    char path[PATH];
    int e = errno;
    if (wanted(op)) {
        full_path(dir, name, path);
        errno = e;
        if (before(&s, path, NULL, NULL))
            return -1;
    }
    return (int)after(&s, io_call(number, dir, name, third, fourth));
}

static int two_names(enum io_op op, long number, int dir, const char *name, int dir2, const char *name2, long flags)
{
    struct step s = {.op = op};
    char path[PATH], path2[PATH];
    int e = errno;
    if (wanted(op)) {
        full_path(dir, name, path);
        full_path(dir2, name2, path2);
        errno = e;
        if (before(&s, path, path2, NULL))
            return -1;
    }
    return (int)after(&s, io_call(number, dir, name, dir2, name2, flags));
}

/* A record's first path is the target's text, the second the link. */
int symlinkat(const char *target, int dir, const char *name)
{
    struct step s = {.op = IO_SYMLINK};
    char path[PATH];
    int e = errno;
    if (wanted(IO_SYMLINK)) {
        full_path(dir, name, path);
        errno = e;
        if (before(&s, target, path, NULL))
            return -1;
    }
    return (int)after(&s, io_call(SYS_symlinkat, target, dir, name));
}

int symlink(const char *target, const char *name) { return symlinkat(target, AT_FDCWD, name); }

int renameat2(int dir, const char *name, int dir2, const char *name2, unsigned flags)
{
    return two_names(IO_RENAME, SYS_renameat2, dir, name, dir2, name2, flags);
}

int renameat(int dir, const char *name, int dir2, const char *name2)
{
    return renameat2(dir, name, dir2, name2, 0);
}

int rename(const char *name, const char *name2) { return renameat2(AT_FDCWD, name, AT_FDCWD, name2, 0); }

int linkat(int dir, const char *name, int dir2, const char *name2, int flags)
{
    return two_names(IO_LINK, SYS_linkat, dir, name, dir2, name2, flags);
}

int link(const char *name, const char *name2) { return linkat(AT_FDCWD, name, AT_FDCWD, name2, 0); }

int unlinkat(int dir, const char *name, int flags)
{
    return name_call(flags & AT_REMOVEDIR ? IO_RMDIR : IO_UNLINK, SYS_unlinkat, dir, name, flags, 0);
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
int mkdirat(int dir, const char *name, mode_t mode) { return name_call(IO_MKDIR, SYS_mkdirat, dir, name, mode, 0); }
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

/* A record's off is the new modification time in ns. */
int utimensat(int dir, const char *name, const struct timespec times[2], int flags)
{
    struct step s = {.op = IO_UTIME};
    char path[PATH];
    int e = errno;
    if (wanted(IO_UTIME)) {
        if (times)
            s.event.off = (uint64_t)times[1].tv_sec * 1000000000u + (uint64_t)times[1].tv_nsec;
        full_path(dir, name, path);
        errno = e;
        if (before(&s, path, NULL, NULL))
            return -1;
    }
    return (int)after(&s, io_call(SYS_utimensat, dir, name, times, flags));
}

#include "ioaio.h"
