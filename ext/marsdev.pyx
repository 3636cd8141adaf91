# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The FUSE front end's request loop: /dev/fuse in, volume, answers out; no GIL.

One Frontend per device, one serve() per descriptor (clone) and thread. The request buffers are allocated, touched and
locked before the first read: a kill in the middle of a copy to a page that is not there would be an I/O error for the
application (frontend facts 6). FSYNC is answered only with 0 or EIO (any ENOSYS would switch flushes off for ever).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t, int64_t
from libc.string cimport memset, memcmp
from libc.errno cimport EINTR, EAGAIN, ENOENT, ENODEV, ECONNABORTED, ENOSYS, EIO, EOPNOTSUPP, EINVAL, errno
from posix.mman cimport mmap, munmap, mlock, MAP_PRIVATE, MAP_ANONYMOUS, MAP_FAILED, PROT_READ, PROT_WRITE
from posix.time cimport CLOCK_MONOTONIC
from log cimport mars_req
from threads cimport pthread_mutex_t, pthread_cond_t, pthread_mutex_init, pthread_cond_init
from marsx._ext.marsshadow cimport Volume

import os

cdef extern from "fuse.h" nogil:
    enum:
        FUSE_LOOKUP, FUSE_FORGET, FUSE_GETATTR, FUSE_SETATTR, FUSE_OPEN
        FUSE_READ, FUSE_WRITE, FUSE_STATFS, FUSE_RELEASE, FUSE_FSYNC
        FUSE_FLUSH, FUSE_INIT, FUSE_INTERRUPT, FUSE_DESTROY, FUSE_BATCH_FORGET, FUSE_FALLOCATE
        MARS_FUSE_MAX_WRITE, MARS_FUSE_NODE, MARS_FUSE_HEAD
    struct fuse_in_header:
        uint32_t len
        uint32_t opcode
        uint64_t unique
        uint64_t nodeid
    struct fuse_init_in:
        uint32_t major
    struct fuse_attr:
        uint64_t ino
    struct fuse_attr_out:
        uint64_t valid
        fuse_attr attr
    struct fuse_entry_out:
        uint64_t nodeid
        uint64_t entry_valid
        uint64_t attr_valid
        fuse_attr attr
    struct fuse_open_out:
        uint64_t fh
        uint32_t flags
    struct fuse_statfs_out:
        uint64_t blocks
        uint32_t bsize
        uint32_t namelen
        uint32_t frsize
    struct fuse_io_in:
        uint64_t offset
        uint32_t size
    struct fuse_fallocate_in:
        uint64_t offset
        uint64_t length
        uint32_t mode
    int mars_fuse_answer(int fd, uint64_t unique, int error, const void *body, size_t n)
    void mars_fuse_done(const mars_req *req, int error) noexcept
    void mars_fuse_attr(fuse_attr *a, uint64_t node)
    int mars_fuse_init(int fd, uint64_t unique, const fuse_init_in *i, uint32_t n, int *has_resend)
    int mars_fuse_resend(int fd)

cdef extern from "reads.h" nogil:
    struct mars_reads:
        pthread_mutex_t lock
        pthread_cond_t idle
        uint64_t latency[32]
        uint64_t latency_us
    int mars_reads_open(mars_reads *r)
    void mars_reads_close(mars_reads *r)
    int mars_reads_take(mars_reads *r, uint32_t size, int fd, uint64_t unique, uint64_t start)
    void mars_reads_give(mars_reads *r, int i)
    int mars_reads_submit(mars_reads *r, int i, int disk, uint64_t off, uint32_t size)
    void mars_reads_done(mars_reads *r, uint64_t start)
    void mars_reads_begin(mars_reads *r)
    void mars_reads_end(mars_reads *r)
    void mars_reads_run(mars_reads *r)

cdef extern from "clock.h" nogil:
    uint64_t mars_clock_ns(int which)

cdef extern from "<string.h>" nogil:
    size_t strnlen(const char *s, size_t n)

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t readv(int fd, const iovec *v, int n)

cdef extern from "<unistd.h>" nogil:
    ssize_t read_fd "read"(int fd, void *p, size_t n)

cdef enum:
    PAGE = 4096
    PUNCH = 0x03                    # PUNCH_HOLE | KEEP_SIZE
    ZERO_RANGE = 0x11               # ZERO_RANGE | KEEP_SIZE
    OPEN_FLAGS = 1 | 1 << 5 | 1 << 6    # DIRECT_IO, NOFLUSH, PARALLEL_DIRECT_WRITES
    DISCARD = 2                     # record types of the log
    ZERO = 3


cdef struct Thread:
    int fd
    uint8_t *memory
    size_t bytes
    uint8_t *head                   # MARS_FUSE_HEAD bytes of header that end where the payload starts
    uint8_t *payload                # page aligned, MARS_FUSE_MAX_WRITE + one page
    uint8_t *scratch                # page aligned, for read-back


cdef class Frontend:
    """name: the FUSE file's name (the resource). Keeps the volume alive."""

    cdef Volume volume
    cdef bytes name
    cdef const char *c_name
    cdef size_t name_len
    cdef int has_resend
    cdef mars_reads reads
    cdef uint64_t c_requests, c_resent, c_unknown
    cdef readonly int gone              # errno with which the connection ended (0: still there)

    def __cinit__(self):
        pthread_mutex_init(&self.reads.lock, NULL)
        pthread_cond_init(&self.reads.idle, NULL)

    def __dealloc__(self):
        mars_reads_close(&self.reads)

    def __init__(self, Volume volume not None, name):
        self.volume = volume
        self.name = name.encode()
        self.c_name = self.name
        self.name_len = len(self.name)

    def resend(self, int fd):
        """FUSE_NOTIFY_RESEND. Call once after a worker restart, when the recovered volume is ready and before serve().
        Returns False when the kernel does not know it (older than 6.9: requests in flight when the worker died have
        failed)."""
        cdef int rc
        with nogil:
            rc = mars_fuse_resend(fd)
        if rc == -EINVAL or rc == -ENOSYS:
            return False
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        return True

    def answer_reads(self):
        """Thread body: answers reads that go to the data device alone; without it device threads read one by one.
        Returns when the last serve() has ended; begin it before the first."""
        cdef int rc
        with nogil:
            rc = mars_reads_open(&self.reads)
            if rc == 0:
                mars_reads_run(&self.reads)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))

    def serve(self, int fd):
        """Thread body: serve requests of one descriptor until the connection ends. Returns the errno (ENODEV: device
        properly gone)."""
        cdef Thread t
        cdef int rc
        with nogil:
            mars_reads_begin(&self.reads)
            rc = prepare(&t, fd)
            if rc == 0:
                rc = self.loop(&t)
                munmap(t.memory, t.bytes)
            mars_reads_end(&self.reads)
        if rc == -12:
            raise MemoryError()
        self.gone = rc
        return rc

    cdef int loop(self, Thread *t) noexcept nogil:
        cdef iovec v[2]
        cdef ssize_t n
        cdef int e
        v[0].iov_base = t.head
        v[0].iov_len = MARS_FUSE_HEAD
        v[1].iov_base = t.payload
        v[1].iov_len = MARS_FUSE_MAX_WRITE + PAGE
        while True:
            n = readv(t.fd, v, 2)
            if n < 0:
                e = errno
                if e == EINTR or e == EAGAIN or e == ENOENT:
                    continue
                return e
            if n < <ssize_t>sizeof(fuse_in_header):
                return EIO
            self.c_requests += 1
            self.handle(t, n)

    cdef void handle(self, Thread *t, size_t n) noexcept nogil:
        cdef fuse_in_header *h = <fuse_in_header *>t.head
        cdef uint32_t op = h.opcode
        if h.unique >> 63:
            self.c_resent += 1
        if op == FUSE_WRITE:
            self.do_write(t, n)
        elif op == FUSE_READ:
            self.do_read(t)
        elif op == FUSE_FSYNC:
            self.do_fsync(t)
        elif op == FUSE_FALLOCATE:
            self.do_fallocate(t)
        else:
            self.do_other(t, op, n)

    cdef void request(self, Thread *t, mars_req *r, uint32_t size) noexcept nogil:
        r.done = mars_fuse_done
        r.unique = (<fuse_in_header *>t.head).unique
        r.start_ns = mars_clock_ns(CLOCK_MONOTONIC)
        r.size = size
        r.fd = t.fd

    cdef void do_write(self, Thread *t, size_t n) noexcept nogil:
        cdef fuse_io_in *w = <fuse_io_in *>(t.head + sizeof(fuse_in_header))
        cdef mars_req r
        cdef int rc = -EIO
        self.request(t, &r, w.size)
        if n == MARS_FUSE_HEAD + <size_t>w.size:
            rc = self.volume.write(&r, t.payload, w.offset, w.size)
        if rc < 0:
            mars_fuse_answer(t.fd, r.unique, -EIO, NULL, 0)

    cdef void do_read(self, Thread *t) noexcept nogil:
        cdef fuse_io_in *q = <fuse_io_in *>(t.head + sizeof(fuse_in_header))
        cdef uint64_t unique = (<fuse_in_header *>t.head).unique
        cdef uint64_t start = mars_clock_ns(CLOCK_MONOTONIC)
        cdef uint32_t size = q.size
        cdef int rc = -EIO
        if self.give_away(t, q.offset, size, unique, start):
            return
        if size <= MARS_FUSE_MAX_WRITE:
            rc = self.volume.read(t.payload, q.offset, size, t.scratch)
        mars_fuse_answer(t.fd, unique, -EIO if rc < 0 else 0, t.payload, size)
        mars_reads_done(&self.reads, start)

    cdef int give_away(self, Thread *t, uint64_t off, uint32_t size, uint64_t unique, uint64_t start) noexcept nogil:
        """1: the read goes to the data device alone, and is answered when it is done."""
        cdef int slot = mars_reads_take(&self.reads, size, t.fd, unique, start)
        cdef int disk
        if slot < 0:
            return 0
        disk = self.volume.whole_on_disk(off, size)
        if disk < 0:
            mars_reads_give(&self.reads, slot)
            return 0
        return mars_reads_submit(&self.reads, slot, disk, off, size)

    cdef void do_fsync(self, Thread *t) noexcept nogil:
        cdef mars_req r
        self.request(t, &r, 0)
        if self.volume.flush(&r) < 0:
            mars_fuse_answer(t.fd, r.unique, -EIO, NULL, 0)

    cdef void do_fallocate(self, Thread *t) noexcept nogil:
        cdef fuse_fallocate_in *f = <fuse_fallocate_in *>(t.head + sizeof(fuse_in_header))
        cdef mars_req r
        cdef int rc = -EOPNOTSUPP
        self.request(t, &r, 0)
        if f.mode == PUNCH:
            rc = self.volume.zero(&r, DISCARD, f.offset, f.length)
        elif f.mode == ZERO_RANGE:
            rc = self.volume.zero(&r, ZERO, f.offset, f.length)
        if rc < 0:
            mars_fuse_answer(t.fd, r.unique, rc if rc == -EOPNOTSUPP else -EIO, NULL, 0)

    cdef void do_other(self, Thread *t, uint32_t op, size_t n) noexcept nogil:
        cdef fuse_in_header *h = <fuse_in_header *>t.head
        cdef uint8_t *body = t.head + sizeof(fuse_in_header)
        cdef fuse_open_out opened
        cdef fuse_attr_out attr
        cdef fuse_statfs_out fs
        if op == FUSE_FORGET or op == FUSE_BATCH_FORGET or op == FUSE_INTERRUPT:
            return
        if op == FUSE_INIT:
            mars_fuse_init(t.fd, h.unique, <fuse_init_in *>body, <uint32_t>(n - sizeof(fuse_in_header)),
                           &self.has_resend)
        elif op == FUSE_LOOKUP:
            self.do_lookup(t, n)
        elif op == FUSE_GETATTR or op == FUSE_SETATTR:
            memset(&attr, 0, sizeof(attr))
            attr.valid = 3600
            mars_fuse_attr(&attr.attr, h.nodeid)
            mars_fuse_answer(t.fd, h.unique, 0, &attr, sizeof(attr))
        elif op == FUSE_OPEN:
            memset(&opened, 0, sizeof(opened))
            opened.fh = 1
            opened.flags = OPEN_FLAGS
            mars_fuse_answer(t.fd, h.unique, 0, &opened, sizeof(opened))
        elif op == FUSE_STATFS:
            memset(&fs, 0, sizeof(fs))
            fs.bsize = fs.frsize = PAGE
            fs.namelen = 255
            fs.blocks = self.volume.log.device_size // PAGE
            mars_fuse_answer(t.fd, h.unique, 0, &fs, sizeof(fs))
        elif op == FUSE_RELEASE or op == FUSE_DESTROY:
            mars_fuse_answer(t.fd, h.unique, 0, NULL, 0)
        else:
            self.c_unknown += 1
            mars_fuse_answer(t.fd, h.unique, -ENOSYS, NULL, 0)

    cdef void do_lookup(self, Thread *t, size_t n) noexcept nogil:
        """The name starts in the header buffer and may go on in the payload buffer: they are adjacent in memory."""
        cdef fuse_in_header *h = <fuse_in_header *>t.head
        cdef const char *name = <const char *>(t.head + sizeof(fuse_in_header))
        cdef size_t room = n - sizeof(fuse_in_header)
        cdef fuse_entry_out e
        if h.nodeid != 1 or strnlen(name, room) != self.name_len or memcmp(name, self.c_name, self.name_len) != 0:
            mars_fuse_answer(t.fd, h.unique, -ENOENT, NULL, 0)
            return
        memset(&e, 0, sizeof(e))
        e.nodeid = MARS_FUSE_NODE
        e.entry_valid = 3600
        e.attr_valid = 3600
        mars_fuse_attr(&e.attr, MARS_FUSE_NODE)
        mars_fuse_answer(t.fd, h.unique, 0, &e, sizeof(e))

    @property
    def counters(self):
        """Totals since start. read_latency: as `latency` of a log's counters, of all reads."""
        return {"requests": self.c_requests, "resent": self.c_resent, "unknown": self.c_unknown,
                "has_resend": bool(self.has_resend), "read_latency": [self.reads.latency[i] for i in range(32)],
                "read_latency_us": self.reads.latency_us}


cdef int prepare(Thread *t, int fd) noexcept nogil:
    """Buffers of one thread: [page with the header at its end][payload][scratch], touched and locked."""
    cdef void *p
    t.fd = fd
    t.bytes = PAGE + 2 * (MARS_FUSE_MAX_WRITE + 2 * PAGE)
    p = mmap(NULL, t.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if p == MAP_FAILED:
        return -12
    t.memory = <uint8_t *>p
    memset(p, 0, t.bytes)
    mlock(p, t.bytes)
    t.payload = t.memory + PAGE
    t.head = t.payload - MARS_FUSE_HEAD
    t.scratch = t.payload + MARS_FUSE_MAX_WRITE + 2 * PAGE
    return 0
