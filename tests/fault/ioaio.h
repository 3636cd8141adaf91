/* ioaio.h: the kernel's native asynchronous I/O as it comes through libc's syscall().
 *
 * An operation that a rule fails is not submitted: its event is made up and handed out by the next io_getevents, as a
 * disk error comes back. A write's end is noted when its event is fetched. Included by iolayer.c only.
 */
#ifndef IOAIO_H
#define IOAIO_H

struct aio_step {
    aio_context_t ctx;
    struct iocb *cb;                    /* NULL: free */
    struct step step;
};

static struct aio_step aio_steps[AIO];
static struct { aio_context_t ctx; struct io_event event; } aio_failed[AIO];
static int aio_n_failed;
static pthread_mutex_t aio_lock = PTHREAD_MUTEX_INITIALIZER;

/* 1: the operation goes to the kernel; 0: it has failed, and its event waits. */
static int aio_begin(aio_context_t ctx, struct iocb *cb)
{
    struct step s = {.op = IO_WRITE};
    struct iovec one = {(void *)(uintptr_t)cb->aio_buf, cb->aio_nbytes};
    struct io_data data = {&one, 1};
    int i, go;
    if (cb->aio_lio_opcode == IOCB_CMD_PWRITEV)
        data = (struct io_data){(const struct iovec *)(uintptr_t)cb->aio_buf, (int)cb->aio_nbytes};
    else if (cb->aio_lio_opcode == IOCB_CMD_FDSYNC || cb->aio_lio_opcode == IOCB_CMD_FSYNC)
        s.op = cb->aio_lio_opcode == IOCB_CMD_FSYNC ? IO_FSYNC : IO_FDATASYNC;
    else if (cb->aio_lio_opcode != IOCB_CMD_PWRITE)
        return 1;
    if (!wanted(s.op))
        return 1;
    s.event.off = (uint64_t)cb->aio_offset;
    for (i = 0; s.op == IO_WRITE && i < data.n; i++)
        s.event.len += data.iov[i].iov_len;
    go = before_fd(&s, (int)cb->aio_fildes, s.op == IO_WRITE ? &data : NULL) == 0;
    pthread_mutex_lock(&aio_lock);
    if (go) {
        for (i = 0; i < AIO && aio_steps[i].cb; i++)
            ;
        if (i == AIO)
            io_die("too many asynchronous operations", "");
        aio_steps[i] = (struct aio_step){ctx, cb, s};
    } else {
        if (aio_n_failed == AIO)
            io_die("too many failed asynchronous operations", "");
        aio_failed[aio_n_failed].ctx = ctx;
        aio_failed[aio_n_failed].event.data = cb->aio_data;
        aio_failed[aio_n_failed].event.obj = (uint64_t)(uintptr_t)cb;
        aio_failed[aio_n_failed].event.res = -errno;
        aio_failed[aio_n_failed++].event.res2 = 0;
    }
    pthread_mutex_unlock(&aio_lock);
    return go;
}

/* The operation of cb is over (result: bytes or -errno), or was never begun (drop). */
static void aio_end(aio_context_t ctx, uint64_t cb, int64_t result)
{
    struct step s = {.recorded = 0};
    pthread_mutex_lock(&aio_lock);
    for (int i = 0; i < AIO; i++) {
        if (aio_steps[i].cb && aio_steps[i].ctx == ctx && (uint64_t)(uintptr_t)aio_steps[i].cb == cb) {
            s = aio_steps[i].step;
            aio_steps[i].cb = NULL;
            break;
        }
    }
    pthread_mutex_unlock(&aio_lock);
    if (result < 0)
        errno = (int)-result;
    after(&s, result < 0 ? -1 : (long)result);
}

static long aio_submit(aio_context_t ctx, long n, struct iocb **cbs)
{
    long i, rc = 0;
    for (i = 0; i < n; i++) {
        if (!aio_begin(ctx, cbs[i]))
            continue;
        rc = io_call(SYS_io_submit, ctx, 1L, &cbs[i]);
        if (rc != 1) {
            int e = errno;
            aio_end(ctx, (uint64_t)(uintptr_t)cbs[i], -e);
            errno = e;
            break;
        }
    }
    return i ? i : rc;
}

static long aio_events(long number, aio_context_t ctx, long min, long max, struct io_event *out, long t, long sig)
{
    long n = 0;
    pthread_mutex_lock(&aio_lock);
    for (int i = 0; i < aio_n_failed && n < max; ) {
        if (aio_failed[i].ctx == ctx) {
            out[n++] = aio_failed[i].event;
            aio_failed[i] = aio_failed[--aio_n_failed];
        } else {
            i++;
        }
    }
    pthread_mutex_unlock(&aio_lock);
    if (n)
        return n;
    n = io_call(number, ctx, min, max, out, t, sig);
    for (long i = 0; i < n; i++)
        aio_end(ctx, out[i].obj, out[i].res);
    return n;
}

static void aio_forget(aio_context_t ctx)
{
    pthread_mutex_lock(&aio_lock);
    for (int i = 0; i < AIO; i++)
        if (aio_steps[i].ctx == ctx)
            aio_steps[i].cb = NULL;
    pthread_mutex_unlock(&aio_lock);
}

long syscall(long number, ...)
{
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    set_up();
    if (number == SYS_io_submit)
        return aio_submit((aio_context_t)a[0], a[1], (struct iocb **)a[2]);
    if (number == SYS_io_destroy) {             /* waits for all of its operations, whose results nobody hears */
        long rc = io_call(number, a[0]);
        aio_forget((aio_context_t)a[0]);
        return rc;
    }
    if (number == SYS_io_getevents || number == SYS_io_pgetevents)
        return aio_events(number, (aio_context_t)a[0], a[1], a[2], (struct io_event *)a[3], a[4], a[5]);
    return io_call(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

#endif
