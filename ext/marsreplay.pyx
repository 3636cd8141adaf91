# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=False
"""The window engine: brings a run of whole groups of a log to the data device as one unit.

Used by write-back (primary) and by replay (secondary). A window is loaded (groups verified: header, chain, payload
CRCs), resolved (newest wins *inside the window*, rule 2), written in device order with many writes in flight, and made
durable by one fdatasync. Only then may the caller move a position.

While one window is written, another one can be loaded by the same thread (`apply(..., ahead)`): nothing of it is
written before apply() has returned.

A record that lies within what the window already holds takes its place in memory: a log that overwrites a few blocks
again and again costs the memory of these blocks, and one write of each, however long it is.

Invariants:
  a window holds whole groups only, in log order, all verified;
  used <= taken <= filled <= cap: kept payloads, then room that is free again, then input not taken yet, then room;
  every byte of the map's extents that are not zeros stands below `used`, and stands for one device byte only;
  pieces of the resolved map never overlap, so no two writes of one window overlap; the caller applies one window at a
  time; after an error of apply() the disk is a mixture within the window's range: the position must not move (rule 12).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove
from libc.errno cimport errno, ENOMEM, EIO
from posix.mman cimport mmap, munmap, MAP_PRIVATE, MAP_ANONYMOUS, MAP_FAILED, PROT_READ, PROT_WRITE
from posix.mman cimport madvise, MADV_DONTNEED
from posix.time cimport CLOCK_MONOTONIC
from format cimport *
from threads cimport mars_clock_ns

import os

cdef extern from "disk.h" nogil:
    int mars_pread_all(int fd, void *buf, size_t len, uint64_t off)
    int mars_pwrite_all(int fd, const void *buf, size_t len, uint64_t off)
    int mars_zero_range(int fd, uint64_t off, uint64_t len)
    int mars_fdatasync(int fd)
    ssize_t pread(int fd, void *buf, size_t n, int64_t off)

cdef extern from "aio.h" nogil:
    int mars_aio_setup(unsigned depth, aio_context_t *ctx)
    void mars_aio_destroy(aio_context_t ctx)
    enum:
        IOCB_CMD_PWRITEV
    void mars_aio_prep(iocb *cb, int opcode, int fd, const void *what, uint64_t n, uint64_t off, uint64_t data)
    int mars_aio_submit(aio_context_t ctx, long n, iocb **cbs)
    int mars_aio_wait(aio_context_t ctx, long minimum, long maximum, io_event *events)

cdef extern from "crc32c.h" nogil:
    int mars_crc32c_env()

cdef extern from "xxh3.h" nogil:
    int mars_xxh3_env()

if mars_crc32c_env() != 0 or mars_xxh3_env() != 0:
    raise ValueError("MARS_CRC_KERNEL or MARS_XXH3_KERNEL asks for a kernel that this machine does not have")

cdef enum:
    IOVS = 256              # pieces merged into one write
    MERGE = 1 << 20         # bytes merged into one write
    BATCH = 16              # writes given to the kernel at once
    FLY_MAX = 1024
    CHUNK = 1 << 20         # bytes read at a time; beside writes in flight, PART
    PART = 128 << 10
    FOLD = 16               # a window takes so many times its size of log at most
    MAP_LEAST = 2 << 20     # memory of the map: an eighth of the data's
    MAP_MOST = 8 << 20
    QUICK_NS = 200000000    # a window in a hurry is meant to be written so soon
    QUICK_LEAST = 128 << 10
    MORE = 0x7fff

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


cdef class Window:
    """Buffer, map and writer of one window. size: bytes of data it takes at most (grows for a single larger group).
    Memory is used as far as it is filled."""

    def __cinit__(self, size_t size=32 << 20):
        self.buf = NULL
        self.out = NULL
        self.has_map = 0
        self.cap = 0
        self.ctx = 0
        self.hurry = 0
        self.busy = NULL
        self.quick = QUICK_LEAST
        if size < 2 * MARS_BLOCK:
            size = 2 * MARS_BLOCK
        if self.reserve(size) < 0:
            raise MemoryError()
        if shadow_init(&self.map, min(max(size // 8, <size_t>MAP_LEAST), <size_t>MAP_MOST)) < 0:
            raise MemoryError()
        self.has_map = 1
        self.clear()

    def __dealloc__(self):
        self.close_writer()
        if self.buf != NULL:
            munmap(self.buf, self.cap)
        if self.has_map:
            shadow_free(&self.map)

    cdef void clear(self) noexcept nogil:
        self.used = self.taken = self.filled = 0
        self.log_bytes = 0
        self.groups = 0
        self.code = 0
        self.loading = 0
        self.records = 0
        self.payload_bytes = 0
        self.written_bytes = 0
        shadow_clear(&self.map)

    cdef int reserve(self, size_t room) noexcept nogil:
        """Room for at least `room` bytes at the start of the buffer; contents are lost when it grows (only windows
        that keep nothing grow)."""
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
        """One more group could be too much: for the map (each record may cut and add at two places), for the time the
        disk is a mixture, or, in a hurry, for those who wait for the window's end."""
        return self.map.free_count < (2 * MARS_MAX_RECORDS + 4) * (self.map.depth + 2) \
            or self.log_bytes >= FOLD * self.cap or (self.hurry and self.log_bytes >= self.quick)

    cdef void learn(self, uint64_t took_ns) noexcept nogil:
        """How much log a window may take to be written within QUICK_NS, as this one shows."""
        cdef double most = <double>self.log_bytes * QUICK_NS / (took_ns + 1)
        self.quick = QUICK_LEAST if most < QUICK_LEAST else <uint64_t>most

    # ---- taking groups ----

    cdef int take_group(self, uint64_t at, uint64_t available, Cursor c) noexcept nogil:
        """Accept the group that stands at buf + at (at >= used), of which `available` bytes are there. 0, or a
        MARS_SCAN_* code (MARS_SCAN_SHORT: more bytes are needed, the header is sound), or a negative errno."""
        cdef uint8_t *group = self.buf + at
        cdef mars_group_info info
        cdef int rc
        if available < MARS_BLOCK:
            return MARS_SCAN_SHORT
        adopt_numbers(group, &c.e)
        rc = mars_group_check_header(group, &c.e, &info)
        if rc == MARS_SCAN_OK:
            rc = mars_group_check_payloads(group, available, &info)
        if rc != MARS_SCAN_OK:
            return rc
        rc = self.keep(at, &info)
        if rc < 0:
            return rc
        self.groups += 1
        self.records += info.n_records
        self.log_bytes += info.length
        self.taken = at + info.length
        c.lamport_ns = info.lamport_ns
        mars_group_advance(&c.e, &info)
        return MARS_SCAN_OK

    cdef int keep(self, uint64_t at, const mars_group_info *info) noexcept nogil:
        """Enter the records of a sound group at `at` into the map. Payloads stay where they are; once one of them took
        the place of older data, those behind it move down. 0 or a negative errno."""
        cdef mars_record table[MARS_MAX_RECORDS]            # a copy: payloads that move down may cover it
        cdef uint64_t payload = at + MARS_BLOCK, start = payload if at == self.used else self.used, to = start
        cdef mars_record *r
        cdef uint32_t i
        cdef int rc
        memcpy(table, mars_group_table(self.buf + at), info.n_records * sizeof(mars_record))
        for i in range(info.n_records):
            r = &table[i]
            if r.type == MARS_WRITE or r.type == MARS_DISCARD or r.type == MARS_ZERO:
                self.payload_bytes += r.length if r.stored == 0 else r.stored
                if r.stored == 0 or not self.replace(r, self.buf + payload):
                    rc = self.enter(r, to)
                    if rc < 0:
                        return rc
                    if r.stored and to != payload:
                        memmove(self.buf + to, self.buf + payload, r.stored)
                    to += mars_payload_span(r)
            payload += mars_payload_span(r)
        if to != start:
            self.used = (to + MARS_BLOCK - 1) & ~<uint64_t>(MARS_BLOCK - 1)
        return 0

    cdef int replace(self, const mars_record *r, const uint8_t *payload) noexcept nogil:
        """1 when the window held the whole range in one piece, and the payload has taken its place there."""
        cdef uint16_t k = 0
        cdef uint32_t leaf = shadow_seek(&self.map, r.offset, &k)
        cdef const shadow_extent *x
        if leaf == SHADOW_NIL:
            return 0
        x = &self.map.node[leaf].u.leaf.ext[k]
        if x.rec_len == 0 or x.start > r.offset or x.end < r.offset + r.length:
            return 0
        memcpy(self.buf + x.lpos + (r.offset - x.rec_start), payload, r.stored)
        return 1

    cdef int enter(self, const mars_record *r, uint64_t at) noexcept nogil:
        cdef shadow_extent x
        x.start = r.offset
        x.end = r.offset + r.length
        x.lpos = at
        x.rec_start = r.offset
        x.rec_len = r.stored
        x.crc = r.crc
        return shadow_put(&self.map, &x)

    # ---- loading from a log file ----

    def load(self, int fd, Cursor c not None, uint64_t limit):
        """Fill the window from a log file, from the cursor up to POS `limit` at most (an end of a group). Returns
        (groups, code): code 0 = limit reached or window full, else the MARS_SCAN_* code of the group that was not
        accepted. The cursor moves behind what was taken. Raises OSError."""
        self.begin(fd, c, limit)
        return self.finish()

    def begin(self, int fd, Cursor c not None, uint64_t limit):
        """As load(), but nothing is read yet: apply() of another window does it beside its writes, finish() the
        rest."""
        self.clear()
        self.log_fd = fd
        self.cursor = c
        self.limit = limit
        self.loading = 1

    def finish(self):
        """What load() returns."""
        cdef Cursor c = self.cursor
        if c is None:
            raise ValueError("nothing was begun")
        with nogil:
            while self.loading:
                self.load_some(c, CHUNK)
        self.cursor = None
        if self.code < 0:
            raise OSError(-self.code, os.strerror(-self.code))
        return self.groups, self.code

    cdef void load_some(self, Cursor c, uint64_t most) noexcept nogil:
        """Take the groups that are there, then read `most` bytes; loading = 0 and the code when that is the end."""
        cdef int rc = MARS_SCAN_OK
        while rc == MARS_SCAN_OK:
            if c.e.pos >= self.limit or self.full():
                break
            rc = self.take_group(self.taken, self.filled - self.taken, c)
        if rc == MARS_SCAN_SHORT:
            rc = self.read_more(c, most)
            if rc == MORE:
                return
        self.code = rc
        self.loading = 0

    cdef int read_more(self, Cursor c, uint64_t most) noexcept nogil:
        """The next bytes of the log, behind those not taken yet. MORE; 0 when the next group has no room in this
        window; or a MARS_SCAN_* code, or a negative errno."""
        cdef uint64_t have = self.filled - self.taken, need, want
        cdef ssize_t n
        if c.e.pos + have >= self.limit:
            return MARS_SCAN_SHORT
        memmove(self.buf + self.used, self.buf + self.taken, have)
        self.taken = self.used
        self.filled = self.used + have
        need = MARS_BLOCK
        if have >= MARS_BLOCK:                          # the header of that group is sound
            need = (<const mars_group_header *>(self.buf + self.taken)).length
        if self.used + need > self.cap:
            if self.groups:
                return MARS_SCAN_OK
            n = self.reserve(need)
            self.filled = self.taken
            return MORE if n == 0 else <int>n
        want = self.limit - c.e.pos - have
        want = most if want > most else want
        if want > self.cap - self.filled:
            want = self.cap - self.filled
        n = pread(self.log_fd, self.buf + self.filled, want, <int64_t>(MARS_BLOCK + c.e.pos + have))
        if n < 0:
            return -errno
        if n == 0:
            return MARS_SCAN_SHORT
        self.filled += n
        return MORE

    # ---- writing ----

    cdef int open_writer(self, unsigned fly) noexcept nogil:
        """Kept between windows: destroying a context waits for an RCU period, 30 ms."""
        cdef unsigned i
        cdef int rc
        if self.ctx and self.fly == fly:
            return 0
        self.close_writer()
        self.out = <Flight *>calloc(fly, sizeof(Flight))
        if self.out == NULL:
            return -ENOMEM
        rc = mars_aio_setup(fly, &self.ctx)
        if rc < 0:
            self.ctx = 0
            return rc
        self.fly = fly
        self.n_free = 0
        for i in range(fly):
            self.release(i)
        return 0

    cdef void close_writer(self) noexcept nogil:
        if self.ctx:
            mars_aio_destroy(self.ctx)                  # waits for what is still in flight
        self.ctx = 0
        free(self.out)
        self.out = NULL

    cdef void release(self, uint64_t slot) noexcept nogil:
        self.out[self.n_free].free_slot = <unsigned>slot
        self.n_free += 1

    cdef int reap(self, int minimum) noexcept nogil:
        """Take back what has ended, `minimum` writes at least. 0 or the error of one of them."""
        cdef io_event events[64]
        cdef int n = mars_aio_wait(self.ctx, minimum, 64, events)
        cdef int i, bad = 0
        if n < 0:
            return n
        for i in range(n):
            self.release(events[i].data)
            if events[i].res < 0:
                bad = <int>events[i].res
            elif <uint64_t>events[i].res != self.out[events[i].data].want:
                bad = -EIO
        return bad

    cdef unsigned prepare(self, int fd, uint32_t *leaf, uint16_t *k) noexcept nogil:
        """The next piece and its neighbours as one write, in a free slot; returns the slot."""
        cdef Flight *f
        cdef shadow_extent *x = &self.map.node[leaf[0]].u.leaf.ext[k[0]]
        cdef uint64_t start = x.start
        cdef unsigned slot, n = 0
        self.n_free -= 1
        slot = self.out[self.n_free].free_slot
        f = &self.out[slot]
        f.want = 0
        while leaf[0] != SHADOW_NIL and n < IOVS and f.want < MERGE:
            x = &self.map.node[leaf[0]].u.leaf.ext[k[0]]
            if x.rec_len == 0 or x.start != start + f.want:
                break
            f.iov[n].iov_base = self.buf + x.lpos + (x.start - x.rec_start)
            f.iov[n].iov_len = x.end - x.start
            f.want += x.end - x.start
            n += 1
            leaf[0] = shadow_step(&self.map, leaf[0], k)
        self.written_bytes += f.want
        mars_aio_prep(&f.cb, IOCB_CMD_PWRITEV, fd, f.iov, n, start, slot)
        return slot

    cdef int issue(self, int fd, uint32_t *leaf, uint16_t *k) noexcept nogil:
        """Give the kernel the next writes in device order, BATCH at most and as slots are free; zeros are done at
        once. 0 or a negative errno."""
        cdef iocb *batch[BATCH]
        cdef shadow_extent *x
        cdef unsigned slot
        cdef int n = 0, done = 0, rc = 0
        while n < BATCH and self.n_free and leaf[0] != SHADOW_NIL and rc == 0:
            x = &self.map.node[leaf[0]].u.leaf.ext[k[0]]
            if x.rec_len == 0:
                rc = mars_zero_range(fd, x.start, x.end - x.start)
                leaf[0] = shadow_step(&self.map, leaf[0], k)
                continue
            slot = self.prepare(fd, leaf, k)
            batch[n] = &self.out[slot].cb
            n += 1
        while done < n and rc == 0:
            rc = mars_aio_submit(self.ctx, n - done, batch + done)
            if rc > 0:
                done += rc
                rc = 0
        while done < n:                                 # never submitted
            n -= 1
            self.release(batch[n].aio_data)
        return rc

    cdef int write_out(self, int fd, Window ahead, Cursor c) noexcept nogil:
        """Write the resolved pieces in device order, then fdatasync; `ahead` is loaded meanwhile, from its
        cursor `c`. 0 or a negative errno."""
        cdef uint16_t k = 0
        cdef uint32_t leaf = shadow_seek(&self.map, 0, &k)
        cdef int rc, first = 0, filling = 0
        cdef unsigned before
        while leaf != SHADOW_NIL and first == 0:
            if self.n_free == self.fly:
                filling = self.hurry                    # who waits for us gets one queue full, whatever the log does
            if not filling and self.n_free < self.fly and mars_busy_late(self.busy, mars_clock_ns(CLOCK_MONOTONIC)):
                first = self.reap(1)
                continue
            first = self.issue(fd, &leaf, &k)
            if self.n_free == 0:
                filling = 0
            while self.n_free == 0 and first == 0:
                if ahead is not None and ahead.loading:
                    ahead.load_some(c, PART)
                    first = self.reap(0)
                else:
                    first = self.reap(1 + self.fly // 4)
        while self.n_free < self.fly:
            if ahead is not None and ahead.loading:
                ahead.load_some(c, PART)
            before = self.n_free
            rc = self.reap(1)
            if rc < 0 and first == 0:
                first = rc
            if rc < 0 and self.n_free == before:
                self.close_writer()
                break
        if first == 0:
            first = mars_fdatasync(fd)
        return first

    def apply(self, int fd, unsigned fly=32, Window ahead=None):
        """Write the window to the data device, `fly` writes at a time, and make it durable; `ahead`, another window
        that was begun, is loaded meanwhile as far as there is time. Returns bytes written; raises OSError, after which
        the range is a mixture."""
        cdef Cursor c = None if ahead is None else ahead.cursor
        cdef uint64_t start
        cdef int rc
        if ahead is self or self.loading:
            raise ValueError("a window is written when it is loaded, and beside another one")
        if not 0 < fly <= FLY_MAX:
            raise ValueError(f"1 to {FLY_MAX} writes at a time")
        with nogil:
            start = mars_clock_ns(CLOCK_MONOTONIC)
            rc = self.open_writer(fly)
            if rc == 0:
                rc = self.write_out(fd, ahead, c)
            self.learn(mars_clock_ns(CLOCK_MONOTONIC) - start)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        return self.written_bytes

    def rest(self):
        """Nothing to do for a while: the memory goes back to the machine, the contents are lost."""
        if self.groups:
            with nogil:
                self.clear()
                madvise(self.buf, self.cap, MADV_DONTNEED)

    @property
    def empty(self):
        return self.log_bytes == 0

    @property
    def stats(self):
        """(log bytes, records, payload bytes logged, extents after newest-wins)."""
        return self.log_bytes, self.records, self.payload_bytes, self.map.extents
