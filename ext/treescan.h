/* treescan.h: the symlinks of many directories with their values and times, read by several threads at once: it is
 * system calls that take the time, two a link.
 *
 * One call to tree_scan() reads all directories of one list. A thread takes the next directory that nobody has taken,
 * and writes what it finds into a memory of its own, so that nothing is shared but the counter. The value of a link is
 * read first, then its times: a link whose change time lies before the call is known whole.
 */
#ifndef MARS_TREESCAN_H
#define MARS_TREESCAN_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TREE_THREADS 4
#define TREE_VALUE_SPACE 4096               /* what the kernel gives at most */
#define TREE_NO_VALUE UINT32_MAX            /* the link vanished, or changed its kind, meanwhile */

/* One thing found; behind it stand its name and value, and padding to 8 bytes. A directory has no value. */
struct tree_item {
    int64_t mtime, ctime;                   /* ns */
    uint32_t value_length;
    uint16_t name_length;
    uint16_t is_dir;
};

/* What one directory holds: items of memory `by` from `begin` to `end`. */
struct tree_dir {
    const char *path;
    size_t begin, end;
    int by, error;
};

struct tree_memory {
    char *bytes;
    size_t used, room;
};

struct tree_scan {
    struct tree_dir *dirs;
    size_t count;
    size_t next;                            /* atomic: the first that nobody has taken */
    int threads;                            /* atomic: who has begun */
    struct tree_memory memories[TREE_THREADS];
};

static int tree_put(struct tree_memory *m, const struct tree_item *head, const char *name, const char *value)
{
    size_t value_length = head->value_length == TREE_NO_VALUE ? 0 : head->value_length;
    size_t needs = (sizeof *head + head->name_length + value_length + 7) & ~(size_t)7;
    if (m->room - m->used < needs) {
        size_t room = m->room ? 2 * m->room : 1 << 16;
        char *bytes = realloc(m->bytes, room < m->used + needs ? m->used + needs : room);
        if (bytes == NULL)
            return ENOMEM;
        m->bytes = bytes;
        m->room = room < m->used + needs ? m->used + needs : room;
    }
    char *at = m->bytes + m->used;
    memcpy(at, head, sizeof *head);
    memcpy(at + sizeof *head, name, head->name_length);
    memcpy(at + sizeof *head + head->name_length, value, value_length);
    m->used += needs;
    return 0;
}

static int64_t tree_ns(const struct timespec *t)
{
    return t->tv_sec * (int64_t)1000000000 + t->tv_nsec;
}

static int tree_put_link(struct tree_memory *m, int fd, const char *name)
{
    char value[TREE_VALUE_SPACE];
    struct stat status;
    struct tree_item head = {.name_length = strlen(name), .value_length = TREE_NO_VALUE};
    ssize_t length = readlinkat(fd, name, value, sizeof value);
    if (length >= 0 && length < (ssize_t)sizeof value && !fstatat(fd, name, &status, AT_SYMLINK_NOFOLLOW)) {
        head.value_length = length;
        head.mtime = tree_ns(&status.st_mtim);
        head.ctime = tree_ns(&status.st_ctim);
    }
    return tree_put(m, &head, name, value);
}

/* All of one directory; the system's error number, 0 for none. */
static int tree_read_dir(struct tree_memory *m, const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), error = 0;
    DIR *handle = fd >= 0 ? fdopendir(fd) : NULL;
    if (handle == NULL) {
        error = errno;
        if (fd >= 0)
            close(fd);
        return error;
    }
    while (error == 0) {
        errno = 0;
        struct dirent *item = readdir(handle);
        if (item == NULL) {
            error = errno;
            break;
        }
        int kind = item->d_type;
        struct stat status;
        if (kind == DT_UNKNOWN && !fstatat(fd, item->d_name, &status, AT_SYMLINK_NOFOLLOW))
            kind = S_ISLNK(status.st_mode) ? DT_LNK : S_ISDIR(status.st_mode) ? DT_DIR : DT_UNKNOWN;
        if (kind == DT_LNK) {
            error = tree_put_link(m, fd, item->d_name);
        } else if (kind == DT_DIR && item->d_name[0] != '.') {
            struct tree_item head = {.name_length = strlen(item->d_name), .is_dir = 1};
            error = tree_put(m, &head, item->d_name, "");
        }
    }
    closedir(handle);
    return error;
}

static void *tree_work(void *arg)
{
    struct tree_scan *s = arg;
    int me = __atomic_fetch_add(&s->threads, 1, __ATOMIC_RELAXED);
    struct tree_memory *m = &s->memories[me];
    size_t at;
    while ((at = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED)) < s->count) {
        struct tree_dir *d = &s->dirs[at];
        d->by = me;
        d->begin = m->used;
        d->error = tree_read_dir(m, d->path);
        d->end = m->used;
    }
    return NULL;
}

/* Reads all directories of `s`; `threads` (1 to TREE_THREADS) of them at once, the caller is one. Where no thread can
 * be had, fewer do it. Signals are for the caller. */
static void tree_scan(struct tree_scan *s, int threads)
{
    pthread_t others[TREE_THREADS];
    int more = 0;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (more + 1 < threads && more + 1 < TREE_THREADS && !pthread_create(&others[more], NULL, tree_work, s))
        more++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    tree_work(s);
    while (more > 0)
        pthread_join(others[--more], NULL);
}

static void tree_scan_free(struct tree_scan *s)
{
    for (int i = 0; i < TREE_THREADS; i++)
        free(s->memories[i].bytes);
    free(s->dirs);
}

#endif
