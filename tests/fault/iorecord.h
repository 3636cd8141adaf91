/* iorecord.h: writes down what files below the given roots receive. See iolayer.py for the record's form.
 *
 * Each operation is two events, its issue and its end, each appended by one writev(2) to a file opened O_APPEND: the
 * order in that file is the order of all threads and processes. The bytes of a write are taken at its issue.
 */
#ifndef IORECORD_H
#define IORECORD_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "iorules.h"

struct io_entry {
    uint32_t size;                      /* of the event with all that follows */
    uint16_t op, phase;                 /* phase: 0 issue, 1 end */
    uint32_t pid, tid;
    uint64_t id;                        /* joins issue and end, within one process */
    int64_t result;                     /* of an end: what the call returned, or -errno */
    uint64_t dev, ino;                  /* of the file; open: at its end */
    uint64_t off, len;                  /* open: flags, 1 if it made the file; fallocate: mode in `mode` */
    uint32_t mode, path_len, path2_len, data_len;
};

enum { IO_ROOTS = 8, IO_IOV = 1024 };

struct io_data {                        /* bytes of a write */
    const struct iovec *iov;
    int n;
};

static int io_record_fd = -1;
static char io_record_path[512];
static struct stat io_record_file;      /* who closes descriptors that he does not know closes ours too */
static char io_roots[IO_ROOTS][512];
static int io_n_roots;
static uint64_t io_next_id;

static int io_below_roots(const char *path)
{
    for (int i = 0; i < io_n_roots; i++) {
        size_t n = strlen(io_roots[i]);
        if (strncmp(path, io_roots[i], n) == 0 && (path[n] == '/' || path[n] == 0 || path[n] == ' '))
            return 1;
    }
    return 0;
}

static void io_open_record(void)
{
    int fd = (int)io_call(SYS_openat, AT_FDCWD, io_record_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0)
        io_die("no record", io_record_path);
    io_record_fd = (int)io_call(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 900);      /* out of everybody's way */
    io_call(SYS_close, fd);
    io_call(SYS_fstat, io_record_fd, &io_record_file);
}

static int io_record_is_open(void)
{
    struct stat now;
    return io_call(SYS_fstat, io_record_fd, &now) == 0 && now.st_dev == io_record_file.st_dev &&
           now.st_ino == io_record_file.st_ino;
}

static void io_append(struct io_entry *e, const char *path, const char *path2, const struct io_data *data)
{
    struct iovec out[IO_IOV + 3] = {{e, sizeof *e}, {(void *)path, e->path_len}, {(void *)path2, e->path2_len}};
    int n = 3;
    if (data && data->n > IO_IOV)
        io_die("a write of too many pieces", path);
    for (int i = 0; data && i < data->n; i++) {
        out[n++] = data->iov[i];
        e->data_len += (uint32_t)data->iov[i].iov_len;
    }
    e->size = (uint32_t)sizeof *e + e->path_len + e->path2_len + e->data_len;
    e->pid = (uint32_t)getpid();
    e->tid = (uint32_t)io_call(SYS_gettid);
    if (!io_record_is_open())
        io_open_record();
    if (io_call(SYS_writev, io_record_fd, out, n) != (long)e->size)
        io_die("the record cannot be written", strerror(errno));
}

/* The issue of an operation; e: op, dev, ino, off, len, mode are filled in. Returns its id. */
static uint64_t io_record_issue(struct io_entry *e, const char *path, const char *path2, const struct io_data *data)
{
    int saved = errno;
    e->phase = 0;
    e->id = __atomic_add_fetch(&io_next_id, 1, __ATOMIC_RELAXED);
    e->path_len = path ? (uint32_t)strlen(path) : 0;
    e->path2_len = path2 ? (uint32_t)strlen(path2) : 0;
    e->data_len = 0;
    io_append(e, path, path2, data);
    errno = saved;
    return e->id;
}

/* Its end, with errno as the call left it. */
static void io_record_end(struct io_entry *e, long result)
{
    int saved = errno;
    e->phase = 1;
    e->result = result < 0 ? -saved : result;
    e->path_len = e->path2_len = e->data_len = 0;
    io_append(e, NULL, NULL, NULL);
    errno = saved;
}

#endif
