# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=False
"""The window engine: brings a run of whole groups of a log to the data device as one unit.

Used by write-back (primary) and by replay (secondary). A window is loaded (groups verified: header, chain, payload
CRCs), resolved (newest wins *inside the window*, rule 2), written in device order with many writes in flight, and made
durable by one fdatasync. Only then may the caller move a position.

Invariants:
  a window holds whole groups only, in log order, all verified;
  pieces of the resolved map never overlap, so no two writes of one window overlap; the caller applies one window at a
  time; after an error of apply() the disk is a mixture within the window's range: the position must not move (rule 12).

Codes of take/load: >= 0 number of groups, < 0 -(MARS_SCAN_* code) - 1000 for a bad group, or a negative errno.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int64_t
from libc.string cimport memcpy, memset
from libc.errno cimport ENOMEM, EINVAL, EIO, ENOSPC
from posix.mman cimport mmap, munmap, MAP_PRIVATE, MAP_ANONYMOUS, MAP_FAILED, PROT_READ, PROT_WRITE
from format cimport *

import os

cdef extern from "disk.h" nogil:
    int mars_pread_all(int fd, void *buf, size_t len, uint64_t off)
    int mars_pwrite_all(int fd, const void *buf, size_t len, uint64_t off)
    int mars_zero_range(int fd, uint64_t off, uint64_t len)
    int mars_fdatasync(int fd)
    ssize_t pread(int fd, void *buf, size_t n, int64_t off)

cdef extern from "aio.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    struct iocb:
        uint64_t aio_data
    struct io_event:
        uint64_t data
        int64_t res
    int mars_aio_setup(unsigned depth, aio_context_t *ctx)
    void mars_aio_destroy(aio_context_t ctx)
    void mars_aio_prep_pwritev(iocb *cb, int fd, const iovec *iov, unsigned n, uint64_t off, uint64_t data)
    int mars_aio_submit(aio_context_t ctx, long n, iocb **cbs)
    int mars_aio_wait(aio_context_t ctx, long minimum, long maximum, io_event *events)

cdef extern from "crc32c.h" nogil:
    int mars_crc32c_env()

cdef extern from "xxh3.h" nogil:
    int mars_xxh3_env()

if mars_crc32c_env() != 0 or mars_xxh3_env() != 0:
    raise ValueError("MARS_CRC_KERNEL or MARS_XXH3_KERNEL asks for a kernel that this machine does not have")

cdef enum:
    DEPTH = 64              # writes in flight
    IOVS = 64               # pieces merged into one write
    MERGE = 1 << 20         # bytes merged into one write
    RECORDS_MAX = 16384     # records in a window
    ADOPT = 0x7fffffff

cdef uint64_t UNKNOWN = <uint64_t>-1


cdef class Cursor:
    """Where a reader stands in one log, and what the next group must be.

    header: the log's header block (4096 bytes, checked). pos, digest: start there (default: POS 0). When pos > 0 the
    group and record numbers are taken from the group found there, whose digest_before must equal `digest`.
    """

    def __init__(self, bytes header, uint64_t pos=0, bytes digest=b"", device_size=None):
        cdef const uint8_t *h = header
        if len(header) != MARS_BLOCK or mars_file_header_check(h) != 0:
            raise ValueError("not a sound log header block")
        mars_expect_start(&self.e, h)
        if pos:
            if len(digest) != 16:
                raise ValueError("a digest of 16 bytes is needed to start inside a log")
            memcpy(self.e.digest, <const uint8_t *>digest, 16)
            self.e.pos = pos
            self.e.group_nr = UNKNOWN
            self.e.next_record = UNKNOWN
        if device_size is not None:
            self.e.device_size = device_size

    @property
    def pos(self):
        return self.e.pos

    @property
    def nr(self):
        return self.e.log_nr

    @property
    def digest(self):
        return (<const char *>self.e.digest)[:16]

    @property
    def device_size(self):
        return self.e.device_size

    def copy(self):
        cdef Cursor c = Cursor.__new__(Cursor)
        c.e = self.e
        c.lamport_ns = self.lamport_ns
        return c


cdef void adopt_numbers(const uint8_t *block, mars_expect *e) noexcept nogil:
    """Start in the middle of a log: only the chain digest is known; it covers the numbers of the group behind it."""
    cdef const mars_group_header *g = <const mars_group_header *>block
    if e.group_nr == UNKNOWN:
        e.group_nr = g.group_nr
        e.next_record = g.first_record


cdef int reap(aio_context_t ctx, int minimum, io_event *events, uint64_t *want, int *free_slot,
              int *n_free) noexcept nogil:
    cdef int n = mars_aio_wait(ctx, minimum, DEPTH, events)
    cdef int i, bad = 0
    if n < 0:
        return n
    for i in range(n):
        free_slot[n_free[0]] = <int>events[i].data
        n_free[0] += 1
        if events[i].res < 0:
            bad = <int>events[i].res
        elif <uint64_t>events[i].res != want[events[i].data]:
            bad = -EIO
    return bad


cdef class Window:
    """Buffer, map and writer of one window. size: bytes of log it takes at most (grows for a single larger group)."""

    def __cinit__(self, size_t size=32 << 20):
        self.buf = NULL
        self.has_map = 0
        self.cap = 0
        self.ctx = 0
        if size < 2 * MARS_BLOCK:
            size = 2 * MARS_BLOCK
        if self.reserve(size) < 0:
            raise MemoryError()
        if shadow_init(&self.map, 6 << 20) < 0:
            raise MemoryError()
        self.has_map = 1
        self.clear()

    def __dealloc__(self):
        if self.ctx:
            mars_aio_destroy(self.ctx)
        if self.buf != NULL:
            munmap(self.buf, self.cap)
        if self.has_map:
            shadow_free(&self.map)

    cdef void clear(self) noexcept nogil:
        self.used = 0
        self.records = 0
        self.payload_bytes = 0
        self.written_bytes = 0
        shadow_clear(&self.map)

    cdef int reserve(self, size_t room) noexcept nogil:
        """Room for at least `room` bytes at the start of the buffer; contents are lost when it grows (only empty
        windows grow)."""
        cdef void *p
        if room <= self.cap:
            return 0
        room = (room + 0xfff) & ~<size_t>0xfff
        p = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if p == MAP_FAILED:
            return -ENOMEM
        if self.buf != NULL:
            munmap(self.buf, self.cap)
        self.buf = <uint8_t *>p
        self.cap = room
        return 0

    cdef int full(self) noexcept nogil:
        return self.records + MARS_MAX_RECORDS > RECORDS_MAX

    cdef int take_group(self, uint64_t available, Cursor c) noexcept nogil:
        """Accept the group that starts at buf + used, of which `available` bytes are there. 0, or a MARS_SCAN_* code
        (MARS_SCAN_SHORT: more bytes are needed, the header is sound), or a negative errno."""
        cdef uint8_t *group = self.buf + self.used
        cdef mars_group_info info
        cdef const mars_record *table
        cdef shadow_extent x
        cdef uint64_t at = MARS_BLOCK
        cdef uint32_t i
        cdef int rc
        if available < MARS_BLOCK:
            return MARS_SCAN_SHORT
        adopt_numbers(group, &c.e)
        rc = mars_group_check_header(group, &c.e, &info)
        if rc == MARS_SCAN_OK:
            rc = mars_group_check_payloads(group, available, &info)
        if rc != MARS_SCAN_OK:
            return rc
        table = mars_group_table(group)
        for i in range(info.n_records):
            if table[i].type == MARS_WRITE or table[i].type == MARS_DISCARD or table[i].type == MARS_ZERO:
                x.start = table[i].offset
                x.end = x.start + table[i].length
                x.lpos = self.used + at
                x.rec_start = x.start
                x.rec_len = table[i].stored
                x.crc = table[i].crc
                rc = shadow_put(&self.map, &x)
                if rc < 0:
                    return rc
                self.payload_bytes += table[i].length if table[i].stored == 0 else table[i].stored
            at += mars_payload_span(&table[i])
        self.records += info.n_records
        self.used += info.length
        c.lamport_ns = info.lamport_ns
        mars_group_advance(&c.e, &info)
        return MARS_SCAN_OK

    cdef int write_out(self, int fd) noexcept nogil:
        """Write the resolved pieces in device order, then fdatasync. 0 or a negative errno."""
        cdef iocb cb[DEPTH]
        cdef iovec iov[DEPTH][IOVS]
        cdef uint64_t want[DEPTH]
        cdef int free_slot[DEPTH]
        cdef int n_free = DEPTH, rc = 0, first = 0, slot, n_iov, i
        cdef io_event events[DEPTH]
        cdef iocb *one
        cdef uint16_t k = 0
        cdef uint32_t leaf
        cdef shadow_extent *x
        cdef uint64_t start, total
        if self.ctx == 0:                               # kept: destroying one waits for an RCU period, 30 ms a window
            rc = mars_aio_setup(DEPTH, &self.ctx)
            if rc < 0:
                self.ctx = 0
                return rc
        for i in range(DEPTH):
            free_slot[i] = i
        leaf = shadow_seek(&self.map, 0, &k)
        while leaf != SHADOW_NIL and first == 0:
            x = &self.map.node[leaf].u.leaf.ext[k]
            if x.rec_len == 0:
                first = mars_zero_range(fd, x.start, x.end - x.start)
                leaf = shadow_step(&self.map, leaf, &k)
                continue
            if n_free == 0:
                rc = reap(self.ctx, 1, events, want, free_slot, &n_free)
                if rc < 0:
                    first = rc
                    break
            n_free -= 1
            slot = free_slot[n_free]
            start = x.start
            total = 0
            n_iov = 0
            while leaf != SHADOW_NIL and n_iov < IOVS and total < MERGE:
                x = &self.map.node[leaf].u.leaf.ext[k]
                if x.rec_len == 0 or x.start != start + total:
                    break
                iov[slot][n_iov].iov_base = self.buf + x.lpos + (x.start - x.rec_start)
                iov[slot][n_iov].iov_len = x.end - x.start
                total += x.end - x.start
                n_iov += 1
                leaf = shadow_step(&self.map, leaf, &k)
            want[slot] = total
            mars_aio_prep_pwritev(&cb[slot], fd, iov[slot], n_iov, start, slot)
            one = &cb[slot]
            rc = mars_aio_submit(self.ctx, 1, &one)
            if rc < 0:
                free_slot[n_free] = slot
                n_free += 1
                first = rc
            self.written_bytes += total
        while n_free < DEPTH:
            i = n_free
            rc = reap(self.ctx, 1, events, want, free_slot, &n_free)
            if rc < 0 and first == 0:
                first = rc
            if n_free == i:
                mars_aio_destroy(self.ctx)              # waits for what is still in flight
                self.ctx = 0
                break
        if first == 0:
            first = mars_fdatasync(fd)
        return first

    def load(self, int fd, Cursor c, uint64_t limit):
        """Fill the window from a log file, from the cursor up to POS `limit` at most (an end of a group). Returns
        (groups, code): code 0 = limit reached or window full, else the MARS_SCAN_* code of the group that was not
        accepted. The cursor moves behind what was taken. Raises OSError."""
        cdef int rc = 0, groups = 0
        with nogil:
            self.clear()
            rc = self.load_fd(fd, c, limit, &groups)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        return groups, rc

    cdef int load_fd(self, int fd, Cursor c, uint64_t limit, int *groups) noexcept nogil:
        cdef uint64_t have = 0, base = c.e.pos, want
        cdef ssize_t n
        cdef int rc
        cdef const mars_group_header *g
        while c.e.pos < limit and not self.full():
            rc = MARS_SCAN_SHORT
            if have > self.used:
                rc = self.take_group(have - self.used, c)
            if rc == MARS_SCAN_OK:
                groups[0] += 1
                continue
            if rc != MARS_SCAN_SHORT:
                return rc
            want = limit - base
            if want > self.cap:
                want = self.cap
            if have < want:
                if want - have > 1 << 20:
                    want = have + (1 << 20)
                n = pread(fd, self.buf + have, want - have, <int64_t>(MARS_BLOCK + base + have))
                if n < 0:
                    return -EIO
                if n == 0:
                    return MARS_SCAN_SHORT
                have += n
                continue
            if self.used:
                return MARS_SCAN_OK                     # the buffer is full: the rest is for the next window
            if have < MARS_BLOCK:
                return MARS_SCAN_SHORT
            g = <const mars_group_header *>self.buf
            if g.length > MARS_MAX_GROUP or g.length <= self.cap:
                return MARS_SCAN_SHORT
            rc = self.reserve(g.length)
            if rc < 0:
                return rc
            have = 0
        return MARS_SCAN_OK

    def apply(self, int fd):
        """Write the window to the data device and make it durable. Returns bytes written; raises OSError, after which
        the range is a mixture."""
        cdef int rc
        with nogil:
            rc = self.write_out(fd)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        return self.written_bytes

    @property
    def empty(self):
        return self.used == 0

    @property
    def stats(self):
        """(log bytes, records, payload bytes logged, extents after newest-wins)."""
        return self.used, self.records, self.payload_bytes, self.map.extents
