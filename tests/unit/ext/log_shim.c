/* log_shim.c, preloaded: lets a test hold, cut short or fail the system calls of the data path, by descriptor and
 * count. A rule says what happens with the nth call (from 1; 0: with every one) of one kind on one descriptor. And it
 * holds memcpy of just so many bytes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PWRITE = 1, FDATASYNC = 2, FALLOCATE = 3, PREAD = 4, RULES = 64, EVENTS = 4096 };

struct rule { int kind, fd, nth, hold, fail, half; };
struct event { int kind, fd, phase, result; uint64_t off, len; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct rule rules[RULES];
static int n_rules, calls[5][1024], waiting;
static struct event events[EVENTS];
static int n_events;

static void note(int kind, int fd, int phase, int result, uint64_t off, uint64_t len)
{
    if (n_events < EVENTS)
        events[n_events++] = (struct event){kind, fd, phase, result, off, len};
}

/* Returns the rule that holds (a copy in *out), or 0. Waits while it holds the call. */
static int begin(int kind, int fd, uint64_t off, uint64_t len, struct rule *out)
{
    int found = 0, nth;

    if (fd < 0 || fd >= 1024)
        return 0;
    pthread_mutex_lock(&lock);
    nth = ++calls[kind][fd];
    note(kind, fd, 0, nth, off, len);
    for (int i = 0; i < n_rules; i++) {
        if (rules[i].kind != kind || rules[i].fd != fd || (rules[i].nth && rules[i].nth != nth))
            continue;
        waiting++;
        while (rules[i].hold)
            pthread_cond_wait(&changed, &lock);
        waiting--;
        *out = rules[i];
        found = rules[i].fail || rules[i].half;
        break;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

static long end(int kind, int fd, long rc, uint64_t off, uint64_t len)
{
    int e = errno;
    pthread_mutex_lock(&lock);
    note(kind, fd, 1, rc < 0 ? -e : 0, off, len);
    pthread_mutex_unlock(&lock);
    errno = e;
    return rc;
}

ssize_t pwrite(int fd, const void *p, size_t n, off_t off)
{
    struct rule r = {0};
    long rc;
    if (begin(PWRITE, fd, (uint64_t)off, n, &r) && r.fail) {
        errno = r.fail;
        return end(PWRITE, fd, -1, (uint64_t)off, n);
    }
    rc = syscall(SYS_pwrite64, fd, p, r.half && n > 4096 ? 4096 : n, off);
    return end(PWRITE, fd, rc, (uint64_t)off, n);
}

ssize_t pwrite64(int fd, const void *p, size_t n, off_t off)
{
    return pwrite(fd, p, n, off);
}

ssize_t pread(int fd, void *p, size_t n, off_t off)
{
    struct rule r = {0};
    if (begin(PREAD, fd, (uint64_t)off, n, &r) && r.fail) {
        errno = r.fail;
        return end(PREAD, fd, -1, (uint64_t)off, n);
    }
    return end(PREAD, fd, syscall(SYS_pread64, fd, p, n, off), (uint64_t)off, n);
}

ssize_t pread64(int fd, void *p, size_t n, off_t off)
{
    return pread(fd, p, n, off);
}

int fdatasync(int fd)
{
    struct rule r = {0};
    if (begin(FDATASYNC, fd, 0, 0, &r) && r.fail) {
        errno = r.fail;
        return (int)end(FDATASYNC, fd, -1, 0, 0);
    }
    return (int)end(FDATASYNC, fd, syscall(SYS_fdatasync, fd), 0, 0);
}

int fallocate(int fd, int mode, off_t off, off_t len)
{
    struct rule r = {0};
    if (begin(FALLOCATE, fd, (uint64_t)off, (uint64_t)len, &r) && r.fail) {
        errno = r.fail;
        return (int)end(FALLOCATE, fd, -1, (uint64_t)off, (uint64_t)len);
    }
    return (int)end(FALLOCATE, fd, syscall(SYS_fallocate, fd, mode, off, len), (uint64_t)off, (uint64_t)len);
}

int fallocate64(int fd, int mode, off_t off, off_t len)
{
    return fallocate(fd, mode, off, len);
}

static size_t held_copy;
static int copies_held;

void *memcpy(void *to, const void *from, size_t n)
{
    void *start = to;
    if (n && n == __atomic_load_n(&held_copy, __ATOMIC_SEQ_CST)) {
        __atomic_fetch_add(&copies_held, 1, __ATOMIC_SEQ_CST);
        while (n == __atomic_load_n(&held_copy, __ATOMIC_SEQ_CST))
            usleep(100);
        __atomic_fetch_sub(&copies_held, 1, __ATOMIC_SEQ_CST);
    }
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    return start;
}

/* ---- for the test ---- */

/* Hold every memcpy of n bytes; 0: let them go. */
void shim_hold_copies(size_t n)
{
    __atomic_store_n(&held_copy, n, __ATOMIC_SEQ_CST);
}

int shim_copies_held(void)
{
    return __atomic_load_n(&copies_held, __ATOMIC_SEQ_CST);
}

int shim_rule(int kind, int fd, int nth, int hold, int fail, int half)
{
    pthread_mutex_lock(&lock);
    rules[n_rules] = (struct rule){kind, fd, nth ? calls[kind][fd] + nth : 0, hold, fail, half};
    pthread_mutex_unlock(&lock);
    return n_rules++;
}

/* Let go what rule i holds; it then fails as the rule says. */
void shim_open(int i)
{
    pthread_mutex_lock(&lock);
    rules[i].hold = 0;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

void shim_drop(int i)
{
    pthread_mutex_lock(&lock);
    memset(&rules[i], 0, sizeof rules[i]);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

int shim_waiting(void)
{
    pthread_mutex_lock(&lock);
    int n = waiting;
    pthread_mutex_unlock(&lock);
    return n;
}

int shim_calls(int kind, int fd)
{
    return calls[kind][fd];
}

int shim_events(struct event *out)
{
    pthread_mutex_lock(&lock);
    memcpy(out, events, sizeof events);
    int n = n_events;
    pthread_mutex_unlock(&lock);
    return n;
}
