# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The volume of a primary: append, group commit, shadow and reads of one resource.

Device threads call write/zero/flush/read (without the GIL). A write is copied once into the ring buffer of newest log
bytes (that copy is logged, checked and read back: rule 8), entered into the shadow index under the same lock (one
order for log and shadow), and becomes part of the open group. The thread then runs commit(): as long as fewer than
IN_FLIGHT groups are being written it closes the oldest waiting group, seals it (chain, CRC) and writes it with
O_DIRECT. Groups are answered in log order (rule 1).

Addresses: every log file is a segment of one address space that grows for ever; address = base of the segment + POS.

Invariants (checked where they could break; a violation stops the volume):
  writeback <= durable <= written <= appended
  a request is answered without error only when written covers its group; a FLUSH only when durable covers all that was
  written when it came durable only moves to a value of `written` taken before the fdatasync that proved it was issued
  bytes [written, appended) are in the ring: appended - written <= ring size
  an extent of the index with an address below `writeback` does not exist after finish_window
  after the first error nothing is acknowledged any more (an fsync error is never retried)
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t, int64_t
from libc.stdlib cimport malloc, calloc, realloc, free
from libc.string cimport memcpy, memset, memmove
from libc.errno cimport EIO, ENOSPC, EDQUOT, ENOMEM, EINVAL, EOPNOTSUPP, ENOSYS, EINTR, errno
from posix.time cimport timespec, clock_gettime, nanosleep, CLOCK_REALTIME, CLOCK_MONOTONIC
from format cimport *
from marsx._ext.marsreplay cimport *

import os

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_cond_init(pthread_cond_t *, void *)
    int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *)
    int pthread_cond_timedwait(pthread_cond_t *, pthread_mutex_t *, const timespec *)
    int pthread_cond_broadcast(pthread_cond_t *)

cdef extern from "crc32c.h" nogil:
    uint32_t mars_crc32c(uint32_t crc, const void *p, size_t n)
    int mars_crc32c_env()

cdef extern from "xxh3.h" nogil:
    int mars_xxh3_env()

cdef extern from "ring.h" nogil:
    int mars_ring_map(size_t size, uint8_t **out)
    void mars_ring_unmap(uint8_t *p, size_t size)

cdef extern from "disk.h" nogil:
    int mars_pread_all(int fd, void *buf, size_t len, uint64_t off)
    int mars_pwrite_all(int fd, const void *buf, size_t len, uint64_t off)
    int mars_fdatasync(int fd)

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, int64_t off, int64_t length)

cdef extern from "<unistd.h>" nogil:
    ssize_t c_write "write"(int fd, const void *p, size_t n)

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **p, size_t align, size_t n)

cdef extern from * nogil:
    """
    #define mars_fence() __sync_synchronize()
    """
    void mars_fence()

if mars_crc32c_env() != 0 or mars_xxh3_env() != 0:
    raise ValueError("MARS_CRC_KERNEL or MARS_XXH3_KERNEL asks for a kernel that this machine does not have")

cdef enum:
    N_GROUPS = 64                   # groups open, waiting, being written or being answered
    BATCH = 8                       # `batch` at first: a second write is begun beside another only for so many records
    BATCH_BYTES = 256 << 10         # or bytes: small groups cost more processor than they save time
    IN_FLIGHT = 2                   # group writes at the same time: two reach the device's rate (design D 4)
    GROUP_PAYLOAD = 8 << 20         # a group is closed before it gets longer
    N_FLUSH = 256
    N_PIECES = 64
    WRITE_MAX = 1 << 20
    G_FREE = 0
    G_OPEN = 1
    G_WAITING = 2
    G_WRITING = 3
    G_DONE = 4
    G_ANSWERING = 5
    G_ANSWERED = 6
    FAIL_LOG_WRITE = 1
    FAIL_LOG_SYNC = 2
    FAIL_READ_BACK = 3
    FAIL_INVARIANT = 4

FAILURES = {FAIL_LOG_WRITE: "writing the log", FAIL_LOG_SYNC: "syncing the log", FAIL_READ_BACK: "reading the log back",
            FAIL_INVARIANT: "an invariant of the volume does not hold"}
cdef uint64_t UNKNOWN = <uint64_t>-1
cdef uint64_t RESENT = <uint64_t>1 << 63


cdef inline uint64_t up(uint64_t v) noexcept nogil:
    return (v + (MARS_BLOCK - 1)) & ~<uint64_t>(MARS_BLOCK - 1)


cdef inline uint64_t clock_ns(int which) noexcept nogil:
    cdef timespec t
    clock_gettime(which, &t)
    return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec


cdef inline bint no_space(int rc) noexcept nogil:
    return rc == -ENOSPC or rc == -EDQUOT


cdef void sleep_ns(uint64_t ns) noexcept nogil:
    cdef timespec t
    t.tv_sec = ns // 1000000000
    t.tv_nsec = ns % 1000000000
    nanosleep(&t, NULL)


cdef class Volume:
    """disk_fd: data device (O_DIRECT); sizes in bytes; ring_bytes: a power of two >= 16 MiB; event_fd: an eventfd that
    is written whenever durable moved, the volume failed, stalled or recovered (-1: none). Threads belong to the
    caller."""

    def __cinit__(self, int disk_fd, uint64_t device_size, uint32_t block_size=512, uint64_t ring_bytes=64 << 20,
                  uint64_t index_bytes=16 << 20, int event_fd=-1):
        cdef int rc
        self.disk_fd = disk_fd
        self.device_size = device_size
        self.block_size = block_size
        self.event_fd = event_fd
        self.flush_ns = 20000000
        self.allocate_step = 64 << 20
        self.batch = BATCH
        if ring_bytes < (16 << 20) or ring_bytes & (ring_bytes - 1):
            raise ValueError("ring_bytes must be a power of two, at least 16 MiB")
        self.ring_size = ring_bytes
        pthread_mutex_init(&self.lock, NULL)
        pthread_cond_init(&self.space, NULL)
        pthread_cond_init(&self.work, NULL)
        self.groups = <Group *>calloc(N_GROUPS, sizeof(Group))
        self.flushes = <Flush *>calloc(N_FLUSH, sizeof(Flush))
        if self.groups == NULL or self.flushes == NULL:
            raise MemoryError()
        rc = mars_ring_map(ring_bytes, &self.ring)
        if rc < 0:
            self.ring = NULL
            raise OSError(-rc, os.strerror(-rc))
        rc = shadow_init(&self.index, index_bytes)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        self.has_index = 1

    def __dealloc__(self):
        if self.ring != NULL:
            mars_ring_unmap(self.ring, self.ring_size)
        if self.has_index:
            shadow_free(&self.index)
        free(self.groups)
        free(self.flushes)
        free(self.seg)
        free(self.known)

    # ---- set-up (one thread, before any device thread) ----

    cdef int new_segment(self, int fd, const uint8_t *header) noexcept nogil:
        """Locked, or before start. Fill in seg[n_seg] without counting it yet. No Python object may be touched while
        the lock is held: a thread that holds the GIL may be waiting for the lock."""
        cdef Segment *s
        cdef void *p
        if self.n_seg == self.seg_cap:
            p = realloc(self.seg, (self.seg_cap + 32) * sizeof(Segment))
            if p == NULL:
                return -ENOMEM
            self.seg = <Segment *>p
            self.seg_cap += 32
        s = &self.seg[self.n_seg]
        memset(s, 0, sizeof(Segment))
        s.fd = fd
        s.end = UNKNOWN
        mars_expect_start(&s.start, header)
        return 0

    cdef Segment *first_segment(self, int fd, bytes header) except NULL:
        """As new_segment, for the set-up: with exceptions, and with the base behind the segments before."""
        if mars_file_header_check(<const uint8_t *>header) != 0:
            raise ValueError("not a sound log header block")
        if self.new_segment(fd, header) < 0:
            raise MemoryError()
        self.seg[self.n_seg].base = self.seg[self.n_seg - 1].end if self.n_seg else 1 << 20
        return &self.seg[self.n_seg]

    def add_log(self, int fd, bytes header, uint64_t end, Cursor cursor=None):
        """A log of before the restart, ended at POS `end`, oldest first. The first one needs `cursor` at the disk
        position. Enters its record tables into the index (payloads were verified by the scan before). Raises
        BlockingIOError when the index is full: bring a window to the disk with the replay engine first and start again
        with a new volume; OSError; ValueError when a group is not valid."""
        cdef Segment *s = self.first_segment(fd, header)
        cdef Cursor c
        cdef int rc
        s.end = s.base + end
        s.allocated = UNKNOWN
        if self.n_seg == 0:
            if cursor is None:
                raise ValueError("the oldest log needs a cursor at the disk position")
            self.wb = cursor.copy()
            c = cursor.copy()
            self.writeback = s.base + c.e.pos
        else:
            c = Cursor(header)
        self.n_seg += 1
        with nogil:
            rc = self.index_log(s, c)
        if rc == -ENOSPC:
            raise BlockingIOError("the index is full")
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        if rc > 0:
            raise ValueError(f"group at {c.e.pos} of log {c.e.log_nr} is not valid (code {rc})")

    cdef int index_log(self, Segment *s, Cursor c) noexcept nogil:
        cdef uint8_t *block = NULL
        cdef mars_group_info info
        cdef const mars_group_header *g
        cdef int rc = 0
        if posix_memalign(<void **>&block, MARS_BLOCK, MARS_BLOCK) != 0:
            return -ENOMEM
        g = <const mars_group_header *>block
        while c.e.pos < s.end - s.base and rc == 0:
            rc = mars_pread_all(s.fd, block, MARS_BLOCK, MARS_BLOCK + c.e.pos)
            if rc < 0:
                break
            if c.e.group_nr == UNKNOWN:
                c.e.group_nr = g.group_nr
                c.e.next_record = g.first_record
            rc = mars_group_check_header(block, &c.e, &info)
            if rc == 0:
                rc = self.index_group(block, info.n_records, s.base + c.e.pos)
            if rc == 0:
                mars_group_advance(&c.e, &info)
        free(block)
        return rc

    cdef int index_group(self, const uint8_t *block, uint32_t n, uint64_t vstart) noexcept nogil:
        cdef const mars_record *r = mars_group_table(block)
        cdef uint64_t v = vstart + MARS_BLOCK
        cdef uint32_t i
        cdef int rc = 0
        for i in range(n):
            if r[i].type == MARS_WRITE or r[i].type == MARS_DISCARD or r[i].type == MARS_ZERO:
                rc = self.index_put(r[i].offset, r[i].length, v if r[i].stored else vstart, r[i].stored, r[i].crc)
                if rc < 0:
                    break
            v += mars_payload_span(&r[i])
        return rc

    cdef int index_put(self, uint64_t off, uint64_t length, uint64_t v, uint32_t stored, uint32_t crc) noexcept nogil:
        cdef shadow_extent x
        x.start = off
        x.end = off + length
        x.lpos = v
        x.rec_start = off
        x.rec_len = stored
        x.crc = crc
        return shadow_put(&self.index, &x)

    def start(self, int fd, bytes header, uint64_t allocated=0):
        """Begin to append to a new, empty log (its header block is durable). allocated: file bytes that exist
        already."""
        cdef Segment *s
        if self.started:
            raise ValueError("started already")
        s = self.first_segment(fd, header)
        s.allocated = allocated
        if self.n_seg == 0:
            self.wb = Cursor(header)
            self.writeback = s.base
        self.n_seg += 1
        self.seal = s.start
        self.appended = self.written = self.durable = self.ring_low = self.ring_high = s.base
        memcpy(self.written_digest, s.start.digest, 16)
        memcpy(self.durable_digest, s.start.digest, 16)
        self.started = 1

    def set_known(self, bytes uniques):
        """Uniques (u64, sorted, top bit clear) of requests that the recovered logs hold: sent again, they are only
        answered (rule 11)."""
        free(self.known)
        self.known = NULL
        self.n_known = 0
        if uniques:
            self.known = <uint64_t *>malloc(len(uniques))
            if self.known == NULL:
                raise MemoryError()
            memcpy(self.known, <const char *>uniques, len(uniques))
            self.n_known = len(uniques) // 8

    # ---- helpers; "locked": the caller holds the lock ----

    cdef int is_known(self, uint64_t unique) noexcept nogil:
        cdef uint64_t lo = 0, hi = self.n_known, mid
        if not unique & RESENT:
            return 0
        unique &= ~RESENT
        while lo < hi:
            mid = (lo + hi) // 2
            if self.known[mid] < unique:
                lo = mid + 1
            else:
                hi = mid
        return lo < self.n_known and self.known[lo] == unique

    cdef void notify(self) noexcept nogil:
        cdef uint64_t one = 1
        if self.event_fd >= 0:
            c_write(self.event_fd, &one, 8)

    cdef Segment *find_segment(self, uint64_t v) noexcept nogil:
        """Locked. The segment that holds address v (NULL: none)."""
        cdef int lo = 0, hi = self.n_seg
        while lo < hi:
            if self.seg[(lo + hi) // 2].base <= v:
                lo = (lo + hi) // 2 + 1
            else:
                hi = (lo + hi) // 2
        if lo == 0:
            return NULL
        # an empty log has the base of its successor: the last one that starts at or before v holds the bytes there
        return &self.seg[lo - 1]

    cdef void fail(self, int rc, int where) noexcept nogil:
        """Locked. The first error stops the volume for good."""
        if self.failed == 0:
            self.failed = rc if rc < 0 else -EIO
            self.fail_where = where
        pthread_cond_broadcast(&self.space)
        pthread_cond_broadcast(&self.work)

    # ---- append ----

    cdef int make_room(self, uint32_t span) noexcept nogil:
        """Locked. 1 when the open group takes a payload of `span` bytes now, 0 when the caller has to wait."""
        cdef Group *g
        cdef uint64_t v
        if self.index.free_count < 4 * (self.index.depth + 2) + 8:
            if not self.index_full:                     # write-back has to come now, however little there is
                self.index_full = 1
                pthread_cond_broadcast(&self.work)
            return 0
        if self.open_group:
            g = &self.groups[(self.g_next - 1) % N_GROUPS]
            if g.n < MARS_MAX_RECORDS and g.vend - g.vstart - MARS_BLOCK + span <= GROUP_PAYLOAD:
                return up(g.vend + span) - self.written <= self.ring_size
            self.close_group()
        if self.g_next - self.g_first >= N_GROUPS:
            return 0
        v = self.appended
        if up(v + MARS_BLOCK + span) - self.written > self.ring_size:
            return 0
        g = &self.groups[self.g_next % N_GROUPS]
        g.vstart = v
        g.vend = v + MARS_BLOCK
        g.n = 0
        g.n_req = 0
        g.state = G_OPEN
        self.use_ring(g.vend)
        memset(self.ring + v % self.ring_size, 0, MARS_BLOCK)
        self.g_next += 1
        self.open_group = 1
        return 1

    cdef void use_ring(self, uint64_t high) noexcept nogil:
        """Locked. Announce that ring memory up to `high` is about to be overwritten: a reader that copied from there
        looks again."""
        high = up(high)
        if high > self.ring_high:
            self.ring_high = high
        self.appended = high
        mars_fence()

    cdef void close_group(self) noexcept nogil:
        """Locked. The open group takes no more records: zero its padding."""
        cdef Group *g = &self.groups[(self.g_next - 1) % N_GROUPS]
        cdef uint64_t end = up(g.vend)
        if end > g.vend:
            memset(self.ring + g.vend % self.ring_size, 0, end - g.vend)
        g.vend = end
        g.state = G_WAITING
        self.open_group = 0

    cdef int append(self, const mars_req *req, int kind, const uint8_t *data, uint64_t off, uint64_t length,
                    uint32_t stored, uint32_t crc) noexcept nogil:
        """One record into the open group, waiting while ring, index or group table are full. 0 or a negative errno
        (not answered then)."""
        cdef Group *g
        cdef mars_record *r
        cdef timespec until
        cdef uint32_t span = (stored + MARS_PAYLOAD_ALIGN - 1) & ~<uint32_t>(MARS_PAYLOAD_ALIGN - 1)
        cdef int rc
        pthread_mutex_lock(&self.lock)
        while self.failed == 0 and not self.stop and not self.make_room(span):
            self.c_waits += 1
            pthread_mutex_unlock(&self.lock)
            self.commit()
            pthread_mutex_lock(&self.lock)
            if self.failed == 0 and not self.stop and not self.make_room(span):
                clock_gettime(CLOCK_REALTIME, &until)
                until.tv_nsec += 50000000
                if until.tv_nsec >= 1000000000:
                    until.tv_nsec -= 1000000000
                    until.tv_sec += 1
                pthread_cond_timedwait(&self.space, &self.lock, &until)
        if self.failed or self.stop:
            rc = self.failed if self.failed else -EIO
            pthread_mutex_unlock(&self.lock)
            return rc
        g = &self.groups[(self.g_next - 1) % N_GROUPS]
        rc = self.index_put(off, length, g.vend if stored else g.vstart, stored, crc)
        if rc < 0:
            self.fail(rc, FAIL_INVARIANT)
            pthread_mutex_unlock(&self.lock)
            return rc
        r = <mars_record *>(self.ring + g.vstart % self.ring_size + MARS_TABLE_OFFSET) + g.n
        r.type = kind
        r.flags = MARS_RECORD_MUST
        r.crc = crc
        r.offset = off
        r.length = length
        r.unique = req.unique & ~RESENT
        r.stored = stored
        self.use_ring(g.vend + span)
        if stored:
            memcpy(self.ring + g.vend % self.ring_size, data, stored)
            if span > stored:
                memset(self.ring + (g.vend + stored) % self.ring_size, 0, span - stored)
        g.vend += span
        g.req[g.n_req] = req[0]
        g.n_req += 1
        g.n += 1
        pthread_mutex_unlock(&self.lock)
        return 0

    cdef bint sound(self, uint64_t off, uint64_t length) noexcept nogil:
        """Inside the device, and in whole logical blocks: no disk takes anything else, and a logged record is for
        ever."""
        return mars_inside(off, length, self.device_size) and ((off | length) & (self.block_size - 1)) == 0

    cdef int write(self, const mars_req *req, const uint8_t *data, uint64_t off, uint32_t length) noexcept nogil:
        """Log a write and see that it is committed. 0: it is or will be answered; a negative errno: the caller
        answers."""
        cdef int rc
        if length == 0 or length > WRITE_MAX or not self.sound(off, length):
            return -EIO
        if self.is_known(req.unique):
            self.c_known += 1
            req.done(req, 0)
            return 0
        rc = self.append(req, MARS_WRITE, data, off, length, length, mars_crc32c(0, data, length))
        if rc == 0:
            self.commit()
        return rc

    cdef int zero(self, const mars_req *req, int kind, uint64_t off, uint64_t length) noexcept nogil:
        """Log a discard or a write of zeros: a record without payload. Answers as write()."""
        cdef int rc
        if length == 0 or not self.sound(off, length):
            return -EIO
        if self.is_known(req.unique):
            self.c_known += 1
            req.done(req, 0)
            return 0
        rc = self.append(req, kind, NULL, off, length, 0, 0)
        if rc == 0:
            self.commit()
        return rc

    # ---- commit ----

    cdef void seal_group(self, Group *g) noexcept nogil:
        """Locked, in log order. Fill the header in; chain and CRC."""
        cdef mars_group_header *h = <mars_group_header *>(self.ring + g.vstart % self.ring_size)
        cdef Segment *s = &self.seg[self.n_seg - 1]
        cdef uint64_t now = clock_ns(CLOCK_REALTIME)
        self.lamport_ns = now if now > self.lamport_ns else self.lamport_ns + 1
        memcpy(h.log_id, self.seal.log_id, 16)
        h.log_nr = self.seal.log_nr
        h.group_nr = self.seal.group_nr
        h.pos = self.seal.pos
        h.length = g.vend - g.vstart
        memcpy(h.digest_before, self.seal.digest, 16)
        h.durable = self.durable - s.base if self.durable > s.base else 0
        h.lamport_ns = self.lamport_ns
        h.real_ns = now
        h.first_record = self.seal.next_record
        h.n_records = g.n
        mars_group_seal(<uint8_t *>h, g.digest)
        self.seal.pos += h.length
        self.seal.group_nr += 1
        self.seal.next_record += g.n
        memcpy(self.seal.digest, g.digest, 16)

    cdef int write_group(self, Group *g, Segment s) noexcept nogil:
        """Not locked. The group's bytes into the log file, whose space is there already (has_space)."""
        cdef uint64_t off = MARS_BLOCK + g.vstart - s.base
        cdef int rc = -ENOSPC
        while no_space(rc):
            rc = mars_pwrite_all(s.fd, self.ring + g.vstart % self.ring_size, g.vend - g.vstart, off)
            if no_space(rc) and self.stall(rc) < 0:             # file systems that promise no space ahead
                break
        return rc

    cdef int has_space(self, Group *g) noexcept nogil:
        """Locked (given up while allocating). 1: the file has room for this group. 0: somebody is making room, or /mars is full: then the
        group stays where it is, so that a rotation is still possible, and the flusher tries again."""
        cdef Segment s = self.seg[self.n_seg - 1]
        cdef uint64_t end = MARS_BLOCK + up(g.vend) - s.base
        cdef int rc = 0
        if end <= s.allocated:
            return 1
        if self.extending:
            return 0
        self.extending = 1
        pthread_mutex_unlock(&self.lock)
        rc = self.allocate(&s, self.allocate_step)
        while rc == 0 and end > s.allocated:
            rc = self.allocate(&s, self.allocate_step)
        if no_space(rc):
            rc = self.allocate(&s, end - s.allocated)           # the rest of /mars may still take this group
        pthread_mutex_lock(&self.lock)
        self.extending = 0
        pthread_cond_broadcast(&self.space)
        if no_space(rc):
            if self.stalled == 0:
                self.stalled = clock_ns(CLOCK_MONOTONIC)
                self.notify()
                pthread_cond_broadcast(&self.work)
            return 0
        if rc < 0:
            self.fail(rc, FAIL_LOG_WRITE)
            return 0
        if self.stalled:
            self.stalled = 0
            self.notify()
        # the world may have changed meanwhile: look again
        return self.g_commit < self.g_next and g == &self.groups[self.g_commit % N_GROUPS] and not self.frozen \
            and MARS_BLOCK + up(g.vend) - self.seg[self.n_seg - 1].base <= self.seg[self.n_seg - 1].allocated

    cdef int stall(self, int rc) noexcept nogil:
        """Not locked. /mars is full: say so and wait a moment. 0: try again; the error when the volume is to stop."""
        pthread_mutex_lock(&self.lock)
        if self.stop:
            pthread_mutex_unlock(&self.lock)
            return rc
        if self.stalled == 0:
            self.stalled = clock_ns(CLOCK_MONOTONIC)
            self.notify()
        pthread_mutex_unlock(&self.lock)
        sleep_ns(100000000)
        return 0

    cdef int allocate(self, Segment *s, uint64_t step) noexcept nogil:
        """Not locked. `step` more bytes of file space for the log (s is the caller's copy). 0 or a negative errno."""
        cdef int rc = 0
        if fallocate(s.fd, 0, <int64_t>s.allocated, <int64_t>step) != 0:
            rc = -errno
        if rc == -EINTR:
            return 0
        if rc == -EOPNOTSUPP or rc == -ENOSYS:
            s.allocated = UNKNOWN
            rc = 0
        elif rc == 0:
            s.allocated += step
        if rc == 0:
            pthread_mutex_lock(&self.lock)
            if self.seg[self.n_seg - 1].fd == s.fd and self.seg[self.n_seg - 1].allocated < s.allocated:
                self.seg[self.n_seg - 1].allocated = s.allocated
            pthread_mutex_unlock(&self.lock)
        return rc

    cdef void commit(self) noexcept nogil:
        """Write waiting groups while fewer than IN_FLIGHT are being written; answer what is complete in log order."""
        cdef Group *g
        cdef Segment s
        cdef int rc
        pthread_mutex_lock(&self.lock)
        while self.in_flight < IN_FLIGHT and not self.frozen and self.failed == 0 and self.g_commit < self.g_next:
            g = &self.groups[self.g_commit % N_GROUPS]
            if not self.has_space(g):
                if self.stalled or self.extending:
                    break
                continue
            if self.in_flight and g.state == G_OPEN and g.n < self.batch and g.vend - g.vstart < BATCH_BYTES:
                break                                           # let it grow: who ends the write before takes it
            if g.state == G_OPEN:
                self.close_group()
            self.seal_group(g)
            g.state = G_WRITING
            self.g_commit += 1
            self.in_flight += 1
            self.c_groups += 1
            s = self.seg[self.n_seg - 1]
            pthread_mutex_unlock(&self.lock)
            rc = self.write_group(g, s)
            pthread_mutex_lock(&self.lock)
            self.in_flight -= 1
            if rc < 0:
                self.fail(rc, FAIL_LOG_WRITE)
            g.state = G_DONE
            self.answer_done()
        if self.failed:
            self.answer_failed()
        pthread_mutex_unlock(&self.lock)

    cdef void answer_done(self) noexcept nogil:
        """Locked (given up while answering). Groups complete without a gap before them move `written` and are
        answered."""
        cdef uint64_t i = self.g_first
        cdef Group *g
        cdef int error, idle
        while i < self.g_commit:
            g = &self.groups[i % N_GROUPS]
            if g.state == G_WRITING:
                break
            if g.state == G_DONE:
                g.state = G_ANSWERING
                error = self.failed
                if error == 0:
                    idle = self.written == self.durable
                    if g.vend < self.written or g.vend > self.appended:
                        self.fail(-EIO, FAIL_INVARIANT)
                        error = self.failed
                    else:
                        self.written = g.vend
                        memcpy(self.written_digest, g.digest, 16)
                    if idle:
                        pthread_cond_broadcast(&self.work)
                pthread_mutex_unlock(&self.lock)
                self.answer_group(g, error)
                pthread_mutex_lock(&self.lock)
                g.state = G_ANSWERED
            i += 1
        self.release_groups()

    cdef void release_groups(self) noexcept nogil:
        """Locked."""
        while self.g_first < self.g_next and self.groups[self.g_first % N_GROUPS].state == G_ANSWERED:
            self.groups[self.g_first % N_GROUPS].state = G_FREE
            self.g_first += 1
        if self.g_commit < self.g_first:
            self.g_commit = self.g_first
        pthread_cond_broadcast(&self.space)

    cdef void answer_group(self, Group *g, int error) noexcept nogil:
        """Not locked; the group is ours (G_ANSWERING)."""
        cdef uint64_t now = clock_ns(CLOCK_MONOTONIC), us
        cdef uint32_t i, k
        for i in range(g.n_req):
            g.req[i].done(&g.req[i], error)
            us = (now - g.req[i].start_ns) // 1000
            k = 0
            while us and k < 31:
                us >>= 1
                k += 1
            self.latency[k] += 1
            self.c_write_bytes += g.req[i].size
        self.c_writes += g.n_req

    cdef void answer_failed(self) noexcept nogil:
        """Locked (given up while answering). After a failure: everything not being written is answered with the
        error."""
        cdef uint64_t i
        cdef Group *g
        cdef Flush f
        if self.open_group:
            self.close_group()
        for i in range(self.g_first, self.g_next):
            g = &self.groups[i % N_GROUPS]
            if g.state == G_WAITING or g.state == G_DONE:
                g.state = G_ANSWERING
                pthread_mutex_unlock(&self.lock)
                self.answer_group(g, self.failed)
                pthread_mutex_lock(&self.lock)
                g.state = G_ANSWERED
        while self.n_flush and not self.syncing:
            self.n_flush -= 1
            f = self.flushes[self.n_flush]
            pthread_mutex_unlock(&self.lock)
            f.req.done(&f.req, self.failed)
            pthread_mutex_lock(&self.lock)
        self.release_groups()
        self.notify()

    # ---- flush ----

    cdef int flush(self, const mars_req *req) noexcept nogil:
        """FLUSH: answered when everything answered before it came is durable in the log (rule 1). 0, or a negative
        errno (the caller answers)."""
        cdef int rc
        pthread_mutex_lock(&self.lock)
        self.c_flushes += 1
        while self.n_flush == N_FLUSH and self.failed == 0:         # all of them wait for an fdatasync that is running
            pthread_cond_wait(&self.work, &self.lock)
        rc = self.failed
        if rc == 0 and self.durable < self.written:
            self.flushes[self.n_flush].req = req[0]
            self.flushes[self.n_flush].target = self.written
            self.n_flush += 1
            pthread_mutex_unlock(&self.lock)
            self.sync(0)
            return 0
        pthread_mutex_unlock(&self.lock)
        if rc == 0:
            req.done(req, 0)
        return rc

    cdef int sync_all(self) noexcept nogil:
        """All that is written now becomes durable: by an own fdatasync, or by that of somebody else that covers it. 0
        or the error."""
        cdef uint64_t target
        cdef int rc
        pthread_mutex_lock(&self.lock)
        target = self.written
        while self.durable < target and self.failed == 0:
            if self.syncing:
                pthread_cond_wait(&self.work, &self.lock)
                continue
            pthread_mutex_unlock(&self.lock)
            self.sync(1)
            pthread_mutex_lock(&self.lock)
        rc = self.failed
        pthread_mutex_unlock(&self.lock)
        return rc

    cdef void sync(self, int forced) noexcept nogil:
        """fdatasync the log for waiting flushes, or once if forced and something is not durable. One at a time: who
        finds one running leaves its flush to the runner, which looks again because its target may be newer than what
        the running one covers."""
        cdef uint64_t target
        cdef uint8_t digest[16]
        cdef int rc, fd
        pthread_mutex_lock(&self.lock)
        while not self.syncing and self.failed == 0 and (self.n_flush or (forced and self.durable < self.written)):
            self.syncing = 1
            forced = 0
            target = self.written
            memcpy(digest, self.written_digest, 16)
            fd = self.seg[self.n_seg - 1].fd
            self.c_syncs += 1
            pthread_mutex_unlock(&self.lock)
            rc = mars_fdatasync(fd)
            pthread_mutex_lock(&self.lock)
            self.syncing = 0
            if rc < 0:
                self.fail(rc, FAIL_LOG_SYNC)
                break
            if target > self.durable:
                self.durable = target
                memcpy(self.durable_digest, digest, 16)
            self.answer_flushes()
            pthread_cond_broadcast(&self.work)
            self.notify()
        if self.failed:
            self.answer_failed()
        pthread_mutex_unlock(&self.lock)

    cdef void answer_flushes(self) noexcept nogil:
        """Locked (given up while answering)."""
        cdef int i = 0
        cdef Flush f
        while i < self.n_flush:
            if self.flushes[i].target > self.durable:
                i += 1
                continue
            f = self.flushes[i]
            self.n_flush -= 1
            self.flushes[i] = self.flushes[self.n_flush]
            pthread_mutex_unlock(&self.lock)
            f.req.done(&f.req, 0)
            pthread_mutex_lock(&self.lock)
            i = 0

    def run_flusher(self):
        """Body of the flusher thread: whatever is written becomes durable at the latest flush_ns later; allocates file
        space ahead. Returns after request_stop()."""
        cdef Segment s
        cdef int ahead
        with nogil:
            while True:
                pthread_mutex_lock(&self.lock)
                while not self.stop and not self.stalled and (self.failed or self.written == self.durable):
                    pthread_cond_wait(&self.work, &self.lock)
                if self.stop and (self.failed or self.written == self.durable):
                    pthread_mutex_unlock(&self.lock)
                    break
                s = self.seg[self.n_seg - 1]
                ahead = not self.frozen and not self.stop and s.allocated != UNKNOWN and \
                    s.allocated < MARS_BLOCK + (self.appended - s.base) + self.allocate_step // 2
                self.extending = ahead                          # an ended log must not grow again: freeze() waits
                pthread_mutex_unlock(&self.lock)
                if ahead:
                    self.allocate(&s, self.allocate_step)       # no room is no error until a group needs it
                    pthread_mutex_lock(&self.lock)
                    self.extending = 0
                    pthread_cond_broadcast(&self.space)
                    pthread_mutex_unlock(&self.lock)
                if not self.stop:
                    sleep_ns(self.flush_ns)
                self.commit()                                   # what waited for space, or for us making it
                self.sync_all()

    # ---- read ----

    cdef int read(self, uint8_t *buf, uint64_t off, uint32_t length, uint8_t *scratch) noexcept nogil:
        """Newest data of the range: shadow where not yet written back, else the data device. buf: aligned for
        O_DIRECT. scratch: aligned, WRITE_MAX + 2 blocks. 0 or a negative errno."""
        cdef uint64_t pos = off, upto
        cdef int rc = 0
        if length == 0 or not mars_inside(off, length, self.device_size):
            return -EIO
        while pos < off + length and rc == 0:
            rc = self.read_part(buf + (pos - off), pos, off + length, scratch, &upto)
            pos = upto
        self.c_reads += 1
        self.c_read_bytes += length
        return rc

    cdef int read_part(self, uint8_t *buf, uint64_t pos, uint64_t end, uint8_t *scratch, uint64_t *upto) noexcept nogil:
        """As much of [pos, end) as N_PIECES extents cover; *upto = where it stopped."""
        cdef Piece piece[N_PIECES]
        cdef shadow_extent *x
        cdef Segment *s
        cdef uint16_t k = 0
        cdef uint32_t leaf
        cdef uint64_t covered = 0, a, b
        cdef int n = 0, i, rc = 0
        upto[0] = end
        pthread_mutex_lock(&self.lock)
        leaf = shadow_seek(&self.index, pos, &k)
        while leaf != SHADOW_NIL:
            x = &self.index.node[leaf].u.leaf.ext[k]
            if x.start >= end:
                break
            if n == N_PIECES:
                upto[0] = x.start
                break
            piece[n].start = x.start if x.start > pos else pos
            piece[n].end = x.end if x.end < end else end
            piece[n].rec_lpos = x.lpos
            piece[n].lpos = x.lpos + (piece[n].start - x.rec_start)
            piece[n].rec_len = x.rec_len
            piece[n].crc = x.crc
            if x.rec_len:
                s = self.find_segment(x.lpos)
                s.pins += 1
            covered += piece[n].end - piece[n].start
            n += 1
            leaf = shadow_step(&self.index, leaf, &k)
        pthread_mutex_unlock(&self.lock)
        if covered < upto[0] - pos:
            rc = mars_pread_all(self.disk_fd, buf, upto[0] - pos, pos)
        for i in range(n):
            if rc == 0:
                rc = self.read_piece(&piece[i], buf + (piece[i].start - pos), scratch)
        pthread_mutex_lock(&self.lock)
        for i in range(n):
            if piece[i].rec_len:
                s = self.find_segment(piece[i].rec_lpos)
                s.pins -= 1
        pthread_mutex_unlock(&self.lock)
        return rc

    cdef int from_ring(self, uint8_t *to, uint64_t v, uint64_t n) noexcept nogil:
        """Not locked. Copy [v, v + n) out of the ring; 0 when it is not (or no longer) there."""
        if v < self.ring_low or v + self.ring_size < self.ring_high:
            return 0
        memcpy(to, self.ring + v % self.ring_size, n)
        pthread_mutex_lock(&self.lock)              # a fence: ring_high as it is after the copy
        n = v + self.ring_size >= self.ring_high
        pthread_mutex_unlock(&self.lock)
        return <int>n

    cdef int read_piece(self, Piece *p, uint8_t *to, uint8_t *scratch) noexcept nogil:
        cdef uint64_t n = p.end - p.start, at, off
        cdef Segment s
        cdef int rc
        if p.rec_len == 0:
            memset(to, 0, n)
            return 0
        if self.from_ring(to, p.lpos, n):
            return 0
        if p.rec_len > WRITE_MAX:
            return -EIO
        pthread_mutex_lock(&self.lock)
        self.c_readback += 1
        s = self.find_segment(p.rec_lpos)[0]
        pthread_mutex_unlock(&self.lock)
        at = MARS_BLOCK + p.rec_lpos - s.base
        off = at & ~<uint64_t>(MARS_BLOCK - 1)
        rc = mars_pread_all(s.fd, scratch, up(at + p.rec_len) - off, off)
        if rc == 0 and mars_crc32c(0, scratch + (at - off), p.rec_len) != p.crc:
            pthread_mutex_lock(&self.lock)
            self.fail(-EIO, FAIL_READ_BACK)
            pthread_mutex_unlock(&self.lock)
            self.notify()
            rc = -EIO
        if rc == 0:
            memcpy(to, scratch + (at - off) + (p.lpos - p.rec_lpos), n)
        return rc

    # ---- write-back (one thread) ----

    cdef uint64_t settled(self) noexcept nogil:
        """Locked. How far write-back may go: durable and answered. What is logged but unanswered stays behind the disk
        position, where recovery finds its unique when the kernel sends it again (rule 11)."""
        if self.g_first < self.g_next and self.groups[self.g_first % N_GROUPS].vstart < self.durable:
            return self.groups[self.g_first % N_GROUPS].vstart
        return self.durable

    def load_window(self, Window w):
        """Fill the window with durable groups from the write-back position on, at most to the end of one log. Returns
        the number of groups (0: nothing to do). Raises OSError; ValueError when the own log does not verify."""
        cdef int rc
        cdef uint64_t limit
        cdef Cursor c = self.wb
        with nogil:
            pthread_mutex_lock(&self.lock)
            limit = self.settled()
            pthread_mutex_unlock(&self.lock)
            w.clear()
            rc = self.fill(w, c, limit)
        if rc == -2000:
            raise ValueError(f"log {c.e.log_nr} is not valid at {c.e.pos}: write-back cannot go on")
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        return rc

    cdef int fill(self, Window w, Cursor c, uint64_t limit) noexcept nogil:
        cdef uint64_t v = self.writeback, n
        cdef const mars_group_header *h
        cdef int rc, groups = 0, i
        cdef uint64_t seg_end
        while v < limit and not w.full():
            pthread_mutex_lock(&self.lock)
            i = 0
            while i < self.n_seg and self.seg[i].start.log_nr != c.e.log_nr:
                i += 1
            seg_end = self.seg[i].end if i < self.n_seg else 0
            if i + 1 < self.n_seg and v == seg_end and groups == 0:
                c.e = self.seg[i + 1].start
                pthread_mutex_unlock(&self.lock)
                continue
            pthread_mutex_unlock(&self.lock)
            if i == self.n_seg:
                return -2000
            if v == seg_end or w.used + MARS_BLOCK > w.cap:
                break
            rc = self.get_bytes(w.buf + w.used, v, MARS_BLOCK)
            if rc < 0:
                return rc
            h = <const mars_group_header *>(w.buf + w.used)
            n = h.length
            if n < MARS_BLOCK or n > MARS_MAX_GROUP or n % MARS_BLOCK or n > limit - v:
                return -2000
            if w.used + n > w.cap:
                if w.used:
                    break
                rc = w.reserve(n)
                if rc < 0:
                    return rc
                continue
            rc = self.get_bytes(w.buf + w.used + MARS_BLOCK, v + MARS_BLOCK, n - MARS_BLOCK)
            if rc < 0:
                return rc
            rc = w.take_group(n, c)
            if rc != MARS_SCAN_OK:
                return rc if rc < 0 else -2000
            v += n
            groups += 1
        return groups

    cdef int get_bytes(self, uint8_t *to, uint64_t v, uint64_t n) noexcept nogil:
        cdef Segment s
        cdef uint64_t part
        while n:
            part = n if n < 1 << 20 else 1 << 20
            if not self.from_ring(to, v, part):
                pthread_mutex_lock(&self.lock)
                s = self.find_segment(v)[0]
                pthread_mutex_unlock(&self.lock)
                part = mars_pread_all(s.fd, to, part, MARS_BLOCK + v - s.base)
                if <int64_t>part < 0:
                    return <int><int64_t>part
                part = n if n < 1 << 20 else 1 << 20
            to += part
            v += part
            n -= part
        return 0

    def finish_window(self, Window w):
        """The window's bytes are durable on the data device: forget them in the shadow, move the disk position.
        Returns (log number, POS)."""
        cdef shadow_extent *x
        cdef uint16_t k = 0
        cdef uint32_t leaf
        cdef uint64_t end = self.writeback + w.used
        cdef int rc = 0, n = 0
        with nogil:
            leaf = shadow_seek(&w.map, 0, &k)
            pthread_mutex_lock(&self.lock)
            while leaf != SHADOW_NIL:
                x = &w.map.node[leaf].u.leaf.ext[k]
                rc = shadow_cut(&self.index, x.start, x.end, end)
                if rc < 0 or end > self.durable:
                    self.fail(-EIO, FAIL_INVARIANT)
                    break
                n += 1
                if n % 64 == 0:
                    pthread_mutex_unlock(&self.lock)
                    pthread_mutex_lock(&self.lock)
                leaf = shadow_step(&w.map, leaf, &k)
            if self.failed == 0:
                self.writeback = end
            self.index_full = 0
            pthread_cond_broadcast(&self.space)
            pthread_mutex_unlock(&self.lock)
        if rc < 0:
            raise OSError(-rc, "the shadow index broke an invariant")
        return self.wb.e.log_nr, self.wb.e.pos

    @property
    def writeback_cursor(self):
        """Copy of the cursor of the write-back (after load_window: the window's end)."""
        return self.wb.copy()

    def drop_logs(self):
        """Forget logs that are behind the write-back position and that nobody reads from; returns [(log number, fd)],
        to be closed by the caller."""
        cdef list gone = []
        cdef uint64_t nr, current = self.wb.e.log_nr
        cdef int fd
        while True:
            fd = -1
            pthread_mutex_lock(&self.lock)
            if self.n_seg > 1 and self.seg[0].end <= self.writeback and self.seg[0].pins == 0 \
                    and self.seg[0].start.log_nr != current:
                fd = self.seg[0].fd
                nr = self.seg[0].start.log_nr
                self.n_seg -= 1
                memmove(self.seg, self.seg + 1, self.n_seg * sizeof(Segment))
            pthread_mutex_unlock(&self.lock)
            if fd < 0:
                return gone
            gone.append((nr, fd))

    # ---- rotation, end ----

    def freeze(self):
        """Let the groups in flight end, make the log durable, hold back all others. Returns (POS, digest) of the log's
        end. Follow with switch(), or stop. Raises OSError if the log failed."""
        cdef int rc
        cdef uint64_t end
        with nogil:
            pthread_mutex_lock(&self.lock)
            self.frozen = 1
            end = self.seg[self.n_seg - 1].base + self.seal.pos
            # `written` may lag behind with nothing in flight: somebody is answering an earlier group just now
            while self.extending or ((self.in_flight or self.written != end) and self.failed == 0):
                pthread_cond_wait(&self.space, &self.lock)
            pthread_mutex_unlock(&self.lock)
            self.sync_all()
            pthread_mutex_lock(&self.lock)
            while self.syncing and self.failed == 0:
                pthread_cond_wait(&self.work, &self.lock)
            rc = self.failed
            if rc == 0 and (self.durable != end or self.written != end):
                self.fail(-EIO, FAIL_INVARIANT)
                rc = self.failed
            pthread_mutex_unlock(&self.lock)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        return self.seal.pos, (<const char *>self.seal.digest)[:16]

    def thaw(self):
        """Go on in the same log after freeze()."""
        with nogil:
            self.frozen = 0
            self.commit()

    def switch(self, int fd, bytes header, uint64_t allocated=0):
        """After freeze(): go on in the next log (its header is durable and names the frozen one's end)."""
        cdef const uint8_t *block = header
        cdef int rc
        if not self.frozen:
            raise ValueError("freeze() first")
        if mars_file_header_check(block) != 0:
            raise ValueError("not a sound log header block")
        with nogil:
            pthread_mutex_lock(&self.lock)
            rc = self.new_segment(fd, block)
            if rc == 0:
                self.seg[self.n_seg].base = self.written
                self.seg[self.n_seg].allocated = allocated
                self.seg[self.n_seg - 1].end = self.written
                self.seal = self.seg[self.n_seg].start
                self.n_seg += 1
                memcpy(self.written_digest, self.seal.digest, 16)
                memcpy(self.durable_digest, self.seal.digest, 16)
                self.frozen = 0
            pthread_mutex_unlock(&self.lock)
            if rc == 0:
                self.commit()
        if rc < 0:
            raise MemoryError()

    def request_stop(self):
        """Wake everybody who waits; the flusher ends when all is durable."""
        with nogil:
            pthread_mutex_lock(&self.lock)
            self.stop = 1
            pthread_cond_broadcast(&self.space)
            pthread_cond_broadcast(&self.work)
            pthread_mutex_unlock(&self.lock)

    # ---- what the control plane asks ----

    def sync_now(self):
        """Make all that is written durable (blocks). Raises OSError."""
        cdef int rc
        with nogil:
            self.commit()
            rc = self.sync_all()
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))

    def appended_point(self):
        """Address that covers everything a read could have seen until now (rule 13)."""
        cdef uint64_t v
        pthread_mutex_lock(&self.lock)
        v = self.appended
        pthread_mutex_unlock(&self.lock)
        return v

    def durable_point(self):
        """(durable address, log number, POS, digest) of one moment."""
        cdef uint64_t v, pos, nr
        cdef uint8_t digest[16]
        pthread_mutex_lock(&self.lock)
        v = self.durable
        pos = v - self.seg[self.n_seg - 1].base
        nr = self.seg[self.n_seg - 1].start.log_nr
        memcpy(digest, self.durable_digest, 16)
        pthread_mutex_unlock(&self.lock)
        return v, nr, pos, (<const char *>digest)[:16]

    def read_into(self, buf, uint64_t off, uint32_t length):
        """Read newest data into a writable page-aligned buffer (sync source, verify). Raises OSError."""
        cdef uint8_t[::1] view = buf
        cdef uint8_t *to = &view[0]
        cdef uint8_t *scratch = NULL
        cdef uint64_t at = 0
        cdef uint32_t part
        cdef int rc = 0
        if <uint64_t>view.shape[0] < length or <size_t>to % 512:
            raise ValueError("the buffer is too short or not aligned")
        with nogil:
            if posix_memalign(<void **>&scratch, MARS_BLOCK, WRITE_MAX + 2 * MARS_BLOCK) != 0:
                rc = -ENOMEM
            while at < length and rc == 0:
                part = length - <uint32_t>at if length - at < WRITE_MAX else WRITE_MAX
                rc = self.read(to + at, off + at, part, scratch)
                at += part
            free(scratch)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))

    def wait_work(self, uint64_t min_bytes, uint64_t timeout_ms):
        """Write-back thread: wait until min_bytes are durable and not written back, or the time is over. Returns the
        number of bytes."""
        cdef timespec until
        cdef uint64_t have
        cdef int rc = 0
        with nogil:
            clock_gettime(CLOCK_REALTIME, &until)
            until.tv_sec += timeout_ms // 1000
            until.tv_nsec += (timeout_ms % 1000) * 1000000
            if until.tv_nsec >= 1000000000:
                until.tv_nsec -= 1000000000
                until.tv_sec += 1
            pthread_mutex_lock(&self.lock)
            have = self.settled() - self.writeback
            while not self.stop and have < min_bytes and rc == 0 and not self.kicked and not (have and self.index_full):
                rc = pthread_cond_timedwait(&self.work, &self.lock, &until)
                have = self.settled() - self.writeback
            self.kicked = 0
            pthread_mutex_unlock(&self.lock)
        return have

    def kick(self):
        """The write-back thread's wait ends now."""
        pthread_mutex_lock(&self.lock)
        self.kicked = 1
        pthread_cond_broadcast(&self.work)
        pthread_mutex_unlock(&self.lock)

    def set_device_size(self, uint64_t size):
        """The device grew (the resize record is the caller's business)."""
        if size < self.device_size:
            raise ValueError("a device cannot shrink")
        self.device_size = size

    def set_lamport(self, uint64_t ns):
        """Stamps of groups are later than this."""
        pthread_mutex_lock(&self.lock)
        if ns > self.lamport_ns:
            self.lamport_ns = ns
        pthread_mutex_unlock(&self.lock)

    @property
    def state(self):
        """Numbers for the control plane, of one moment; POS values are relative to the newest log `nr`."""
        cdef Segment g
        cdef uint64_t appended, written, durable, rest, stalled, lamport, extents, covered
        cdef uint8_t digest[16]
        cdef int failed, where, in_flight
        pthread_mutex_lock(&self.lock)          # no Python object is touched while the lock is held: see new_segment
        g = self.seg[self.n_seg - 1]
        appended, written, durable = self.appended, self.written, self.durable
        rest, stalled, lamport = self.appended - self.writeback, self.stalled, self.lamport_ns
        extents, covered = self.index.extents, self.index.covered
        failed, where, in_flight = self.failed, self.fail_where, self.in_flight
        memcpy(digest, self.durable_digest, 16)
        pthread_mutex_unlock(&self.lock)
        return {
            "nr": g.start.log_nr,
            "appended": appended - g.base, "written": written - g.base, "durable": durable - g.base,
            "digest": (<const char *>digest)[:16], "writeback_rest": rest, "failed": -failed, "fail_where": where,
            "stalled_ns": stalled, "lamport_ns": lamport, "in_flight": in_flight,
            "extents": extents, "shadow_bytes": covered,
        }

    @property
    def counters(self):
        """Totals since start; latency: writes answered per power of two of microseconds."""
        return {
            "writes": self.c_writes, "write_bytes": self.c_write_bytes,
            "reads": self.c_reads, "read_bytes": self.c_read_bytes,
            "flushes": self.c_flushes, "groups": self.c_groups, "syncs": self.c_syncs, "waits": self.c_waits,
            "readbacks": self.c_readback, "resent_known": self.c_known, "latency": [self.latency[i] for i in range(32)],
        }
