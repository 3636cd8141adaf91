/* aio.h: the kernel's native asynchronous I/O by its system calls (no library).
 *
 * Chosen over io_uring because a killed process is reaped only when its native I/O has ended: no stale write can land
 * after the next worker's (frontend facts 6). Functions return 0 or a count, or a negative errno.
 */
#ifndef MARS_AIO_H
#define MARS_AIO_H

#include <errno.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static inline int mars_aio_setup(unsigned depth, aio_context_t *ctx)
{
    *ctx = 0;
    return syscall(SYS_io_setup, depth, ctx) < 0 ? -errno : 0;
}

static inline void mars_aio_destroy(aio_context_t ctx)
{
    syscall(SYS_io_destroy, ctx);
}

/* opcode: IOCB_CMD_PREAD (what: the buffer, n bytes) or IOCB_CMD_PWRITEV (what: n struct iovec). */
static inline void mars_aio_prep(struct iocb *cb, int opcode, int fd, const void *what, uint64_t n, uint64_t offset,
                                 uint64_t data)
{
    memset(cb, 0, sizeof *cb);
    cb->aio_lio_opcode = (uint16_t)opcode;
    cb->aio_fildes = (uint32_t)fd;
    cb->aio_buf = (uint64_t)(uintptr_t)what;
    cb->aio_nbytes = n;
    cb->aio_offset = (int64_t)offset;
    cb->aio_data = data;
}

static inline int mars_aio_submit(aio_context_t ctx, long n, struct iocb **cbs)
{
    long rc;
    do rc = syscall(SYS_io_submit, ctx, n, cbs); while (rc < 0 && (errno == EINTR || errno == EAGAIN));
    return rc < 0 ? -errno : (int)rc;
}

static inline int mars_aio_wait(aio_context_t ctx, long min, long max, struct io_event *events)
{
    long rc;
    do rc = syscall(SYS_io_getevents, ctx, min, max, events, NULL); while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : (int)rc;
}

#endif
