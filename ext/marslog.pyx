# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""A log that is appended to: ring buffer, group commit, flush, file space, the change to the next log.

The engine is plain C: ext/log.h has its state and invariants, ext/commit.h and ext/flush.h what is done to it. This is
its set-up and what the control plane asks. Device threads call write/zero/flush without the GIL; what stands on top of
the log (marsshadow) hooks itself in: it is asked for room, and given each record, under the log's lock.

Addresses: every log file is a segment of one address space that grows for ever; address = base of the segment + POS.

No Python object may be touched while the lock is held: a thread that holds the GIL may be waiting for the lock.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport malloc, free
from libc.string cimport memcpy
from posix.mman cimport mmap, munmap, MAP_PRIVATE, MAP_ANONYMOUS, MAP_FAILED, PROT_READ
from format cimport mars_file_header_check, MARS_BLOCK, MARS_WRITE
from log cimport *
from threads cimport *

import os

cdef extern from "crc32c.h" nogil:
    int mars_crc32c_env()

cdef extern from "xxh3.h" nogil:
    int mars_xxh3_env()

cdef extern from "commit.h" nogil:
    int mars_log_record(mars_log *l, const mars_req *req, int kind, const uint8_t *data, uint64_t off, uint64_t length)
    void mars_log_commit(mars_log *l)

cdef extern from "space.h" nogil:
    enum:
        MARS_FILL_WRITE

cdef extern from "flush.h" nogil:
    int mars_log_flush(mars_log *l, const mars_req *req)
    int mars_log_sync_all(mars_log *l)
    void mars_log_run_flusher(mars_log *l)
    void mars_log_run_filler(mars_log *l, const uint8_t *zeros)
    int mars_log_freeze(mars_log *l)
    void mars_log_thaw(mars_log *l)
    void mars_log_enter(mars_log *l, uint64_t base, uint64_t allocated)
    int mars_log_switch(mars_log *l, int fd, const uint8_t *header, uint64_t allocated)

if mars_crc32c_env() != 0 or mars_xxh3_env() != 0:
    raise ValueError("MARS_CRC_KERNEL or MARS_XXH3_KERNEL asks for a kernel that this machine does not have")

FAILURES = {MARS_FAIL_WRITE: "writing the log", MARS_FAIL_SYNC: "syncing the log",
            MARS_FAIL_READ_BACK: "reading the log back",
            MARS_FAIL_INVARIANT: "an invariant of the volume does not hold",
            MARS_FAIL_MAP: "writing the map of changed regions", MARS_FAIL_DISK: "flushing the data device"}


cdef class Log:
    """A base class: the __cinit__ of what stands on top calls set_up(). Threads belong to the caller.

    ring_bytes: a power of two >= 16 MiB; event_fd: an eventfd that is written whenever durable moved, the log failed,
    stalled or recovered (-1: none)."""

    def __cinit__(self):
        pthread_mutex_init(&self.log.lock, NULL)
        pthread_cond_init(&self.log.space, NULL)
        pthread_cond_init(&self.log.work, NULL)
        pthread_cond_init(&self.log.back, NULL)
        pthread_cond_init(&self.log.fill, NULL)

    def __dealloc__(self):
        mars_log_free(&self.log)

    # ---- set-up (one thread, before any device thread) ----

    cdef int set_up(self, uint64_t device_size, uint32_t block_size, uint64_t ring_bytes, int event_fd) except -1:
        cdef int rc
        if ring_bytes < (16 << 20) or ring_bytes & (ring_bytes - 1):
            raise ValueError("ring_bytes must be a power of two, at least 16 MiB")
        rc = mars_log_init(&self.log, device_size, block_size, ring_bytes, event_fd)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        return 0

    cdef int prepare(self, int fd, bytes header) except -1:
        """The next segment is filled in, with its base behind the segments before, but not counted yet."""
        cdef mars_segments *s = &self.log.segments
        if self.log.groups.ring == NULL:
            raise ValueError("a Log alone is not set up: make a Volume")
        if len(header) != MARS_BLOCK or mars_file_header_check(<const uint8_t *>header) != 0:
            raise ValueError("not a sound log header block")
        if mars_segments_prepare(s, fd, <const uint8_t *>header) < 0:
            raise MemoryError()
        s.one[s.n].base = s.one[s.n - 1].end if s.n else 1 << 20
        return 0

    cdef int need_log(self) except -1:
        if self.log.segments.n == 0:
            raise ValueError("there is no log yet: start() first")
        return 0

    def start(self, int fd, bytes header, uint64_t allocated=0):
        """Begin to append to a new, empty log (its header block is durable). allocated: file bytes that exist
        already."""
        cdef uint64_t base
        if self.log.started:
            raise ValueError("started already")
        self.prepare(fd, header)
        base = self.log.segments.one[self.log.segments.n].base
        self.log.groups.appended = self.log.groups.low = self.log.groups.high = base
        self.log.written = self.log.durable = base
        mars_log_enter(&self.log, base, allocated)
        self.log.started = 1

    def set_known(self, bytes uniques):
        """Uniques (u64, sorted, top bit clear) of requests that the recovered logs hold: sent again, they are only
        answered (rule 11)."""
        free(self.log.known)
        self.log.known = NULL
        self.log.n_known = 0
        if uniques:
            self.log.known = <uint64_t *>malloc(len(uniques))
            if self.log.known == NULL:
                raise MemoryError()
            memcpy(self.log.known, <const char *>uniques, len(uniques))
            self.log.n_known = len(uniques) // 8

    # ---- what front ends call ----

    cdef int write(self, const mars_req *req, const uint8_t *data, uint64_t off, uint32_t length) noexcept nogil:
        """Log a write and see that it is committed. 0: it is or will be answered; a negative errno: the caller
        answers."""
        return mars_log_record(&self.log, req, MARS_WRITE, data, off, length)

    cdef int zero(self, const mars_req *req, int kind, uint64_t off, uint64_t length) noexcept nogil:
        """Log a discard or a write of zeros: a record without payload. Answers as write()."""
        return mars_log_record(&self.log, req, kind, NULL, off, length)

    cdef int flush(self, const mars_req *req) noexcept nogil:
        """FLUSH: answered when everything answered before it came is durable in the log (rule 1). 0, or a negative
        errno (the caller answers)."""
        return mars_log_flush(&self.log, req)

    # ---- flusher, rotation, end ----

    def run_flusher(self):
        """Body of the flusher thread: whatever is written becomes durable at the latest flush_ns later. Returns after
        request_stop()."""
        with nogil:
            mars_log_run_flusher(&self.log)

    def run_filler(self):
        """Body of the filler thread: zeros into the newest log's file ahead of its groups, fill_ahead bytes at most.
        Returns after request_stop()."""
        cdef void *zeros = mmap(NULL, MARS_FILL_WRITE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if zeros == MAP_FAILED:
            raise MemoryError()
        with nogil:
            mars_log_run_filler(&self.log, <const uint8_t *>zeros)
            munmap(zeros, MARS_FILL_WRITE)

    def freeze(self):
        """Let the groups in flight end, make the log durable, hold back all others. Returns (POS, digest) of the log's
        end. Follow with switch(), or stop. Raises OSError if the log failed."""
        cdef int rc
        self.need_log()
        with nogil:
            rc = mars_log_freeze(&self.log)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        return self.log.seal.pos, (<const char *>self.log.seal.digest)[:16]

    def thaw(self):
        """Go on in the same log after freeze()."""
        with nogil:
            mars_log_thaw(&self.log)

    def switch(self, int fd, bytes header, uint64_t allocated=0):
        """After freeze(): go on in the next log (its header is durable and names the frozen one's end)."""
        cdef const uint8_t *block = header
        cdef int rc
        if not self.log.frozen:
            raise ValueError("freeze() first")
        if len(header) != MARS_BLOCK or mars_file_header_check(block) != 0:
            raise ValueError("not a sound log header block")
        with nogil:
            rc = mars_log_switch(&self.log, fd, block, allocated)
        if rc < 0:
            raise MemoryError()

    def request_stop(self):
        """Wake everybody who waits; the flusher ends when all is durable."""
        with nogil:
            pthread_mutex_lock(&self.log.lock)
            self.log.stop = 1
            pthread_cond_broadcast(&self.log.space)
            pthread_cond_broadcast(&self.log.work)
            pthread_cond_broadcast(&self.log.back)
            pthread_cond_broadcast(&self.log.fill)
            pthread_mutex_unlock(&self.log.lock)

    def sync_now(self):
        """Make all that is written durable (blocks). Raises OSError."""
        cdef int rc
        with nogil:
            mars_log_commit(&self.log)
            rc = mars_log_sync_all(&self.log)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))

    # ---- what the control plane asks ----

    def appended_point(self):
        """Address that covers everything a read could have seen until now (rule 13)."""
        cdef uint64_t v
        pthread_mutex_lock(&self.log.lock)
        v = self.log.groups.appended
        pthread_mutex_unlock(&self.log.lock)
        return v

    def durable_point(self):
        """(durable address, log number, POS, digest) of one moment."""
        cdef Numbers n
        self.need_log()
        pthread_mutex_lock(&self.log.lock)
        self.numbers(&n)
        pthread_mutex_unlock(&self.log.lock)
        return n.durable, n.nr, n.durable - n.base, (<const char *>n.digest)[:16]

    def set_device_size(self, uint64_t size):
        """The device grew (the resize record is the caller's business)."""
        if size < self.log.device_size:
            raise ValueError("a device cannot shrink")
        self.log.device_size = size

    def set_lamport(self, uint64_t ns):
        """Stamps of groups are later than this."""
        pthread_mutex_lock(&self.log.lock)
        if ns > self.log.lamport_ns:
            self.log.lamport_ns = ns
        pthread_mutex_unlock(&self.log.lock)

    @property
    def device_size(self):
        """Bytes."""
        return self.log.device_size

    @property
    def block_size(self):
        """Logical block: what requests must be multiples of."""
        return self.log.block_size

    @property
    def flush_ns(self):
        """At the latest so long after it was written, a group is durable."""
        return self.log.flush_ns

    @flush_ns.setter
    def flush_ns(self, uint64_t ns):
        self.log.flush_ns = ns

    @property
    def allocate_step(self):
        """Bytes of file space allocated at a time, at most."""
        return self.log.allocate_step

    @allocate_step.setter
    def allocate_step(self, uint64_t step):
        self.log.allocate_step = step

    @property
    def reserve(self):
        """Bytes of the file system that the log never takes."""
        return self.log.reserve

    @reserve.setter
    def reserve(self, uint64_t size):
        self.log.reserve = size

    @property
    def low_room(self):
        """Free bytes of the file system that are not to be used up by what waits for write-back: writers slow down
        before."""
        return self.log.pace.low

    @low_room.setter
    def low_room(self, uint64_t size):
        self.log.pace.low = size

    @property
    def fill_ahead(self):
        """Bytes of zeros ahead of the groups at most; 0: none."""
        return self.log.fill_ahead

    @fill_ahead.setter
    def fill_ahead(self, uint64_t size):
        pthread_mutex_lock(&self.log.lock)
        self.log.fill_ahead = size
        pthread_cond_broadcast(&self.log.fill)
        pthread_mutex_unlock(&self.log.lock)

    @property
    def batch(self):
        """A second group is written beside another only with so many records (or 256 KiB)."""
        return self.log.batch

    @batch.setter
    def batch(self, uint32_t records):
        self.log.batch = records

    cdef void numbers(self, Numbers *out) noexcept nogil:
        """Locked; there is a log."""
        cdef const mars_segment *newest = mars_segments_newest(&self.log.segments)
        out.nr, out.base = newest.start.log_nr, newest.base
        out.appended, out.written, out.durable = self.log.groups.appended, self.log.written, self.log.durable
        out.stalled, out.lamport = self.log.stalled, self.log.lamport_ns
        out.failed, out.where, out.in_flight = self.log.failed, self.log.fail_where, self.log.in_flight
        memcpy(out.digest, self.log.durable_digest, 16)

    cdef dict state_of(self, const Numbers *n):
        return {
            "nr": n.nr, "appended": n.appended - n.base, "written": n.written - n.base, "durable": n.durable - n.base,
            "digest": (<const char *>n.digest)[:16], "failed": -n.failed, "fail_where": n.where,
            "stalled_ns": n.stalled, "lamport_ns": n.lamport, "in_flight": n.in_flight,
        }

    @property
    def state(self):
        """Numbers for the control plane, of one moment; POS values are relative to the newest log `nr`."""
        cdef Numbers n
        self.need_log()
        pthread_mutex_lock(&self.log.lock)
        self.numbers(&n)
        pthread_mutex_unlock(&self.log.lock)
        return self.state_of(&n)

    @property
    def counters(self):
        """Totals since start. latency: writes answered in less than 2^i microseconds, and not in less than 2^(i-1);
        flush_latency: the same of flushes; group_sizes: groups of up to 2^i records, and of more than 2^(i-1)."""
        cdef mars_log_counters *c = &self.log.count
        return {
            "writes": c.writes, "write_bytes": c.write_bytes, "flushes": c.flushes, "groups": c.groups,
            "syncs": c.syncs, "waits": c.waits, "paced": c.paced, "resent_known": c.known,
            "latency": [c.latency[i] for i in range(32)], "latency_us": c.latency_us,
            "flush_latency": [c.flush_latency[i] for i in range(32)], "flush_latency_us": c.flush_latency_us,
            "group_sizes": [c.sizes[i] for i in range(8)], "records": c.records,
        }
