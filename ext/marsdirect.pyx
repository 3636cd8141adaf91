# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The volume of a primary that can go without its log while /mars is full (rule 27). ext/direct.h has the states, the
map and the invariants; this is what the control plane does with them.

Entering: hold() -> freeze() and write-back to the log's end by the caller -> enter(). Leaving: hold_direct(), by the
caller: the map is closed -> leave(). A volume that was in between when the worker ended begins with resume().
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from posix.time cimport timespec
from libc.string cimport memset
from format cimport mars_file_header_check, MARS_BLOCK
from log cimport *
from threads cimport *
from marsx._ext.marslog cimport Log
from marsx._ext.marsreplay cimport shadow_clear
from marsx._ext.marsshadow cimport Volume

import os

cdef extern from "crc32c.h" nogil:
    int mars_crc32c_env()

cdef extern from "xxh3.h" nogil:
    int mars_xxh3_env()

cdef extern from "direct.h" nogil:
    enum:
        MARS_MAP_SECTOR
        MARS_MAP_HEAD
    struct mars_map:
        pthread_mutex_t lock
        int fd
        int shift
        uint64_t syncs, regions
    struct mars_direct:
        mars_map map
        int disk_fd
        int held, busy
        uint64_t epoch, writes, write_bytes, flushes, diverted, errors
    int mars_map_open(mars_map *m, int fd, int shift, const uint8_t *sectors, uint64_t bytes)
    void mars_map_close(mars_map *m)
    int mars_direct_begin(mars_log *l, mars_direct *d)
    int mars_direct_write(mars_log *l, mars_direct *d, const mars_req *req, const uint8_t *data, uint64_t off,
                          uint64_t length)
    int mars_direct_flush(mars_log *l, mars_direct *d, const mars_req *req)
    int mars_direct_hold(mars_log *l, mars_direct *d)
    void mars_direct_give_up(mars_log *l, mars_direct *d)
    void mars_direct_divert(mars_log *l, mars_direct *d)
    int mars_direct_may_enter(const mars_log *l, uint64_t writeback)
    int mars_fdatasync(int fd)

cdef extern from "flush.h" nogil:
    void mars_log_enter(mars_log *l, uint64_t base, uint64_t allocated)
    void mars_log_commit(mars_log *l)

if mars_crc32c_env() != 0 or mars_xxh3_env() != 0:
    raise ValueError("MARS_CRC_KERNEL or MARS_XXH3_KERNEL asks for a kernel that this machine does not have")

MAP_SECTOR = MARS_MAP_SECTOR
MAP_HEAD = MARS_MAP_HEAD


cdef class DirectVolume(Volume):
    """A Volume; see the module."""

    cdef mars_direct direct

    def __cinit__(self, *args, **kwargs):
        memset(&self.direct, 0, sizeof(self.direct))
        pthread_mutex_init(&self.direct.map.lock, NULL)
        self.direct.map.fd = -1
        self.direct.disk_fd = self.disk_fd

    def __dealloc__(self):
        mars_map_close(&self.direct.map)

    # ---- what front ends call ----

    cdef int write(self, const mars_req *req, const uint8_t *data, uint64_t off, uint32_t length) noexcept nogil:
        cdef int rc = MARS_DIVERTED
        while rc == MARS_DIVERTED:
            rc = mars_direct_begin(&self.log, &self.direct)
            if rc == 1:
                return mars_direct_write(&self.log, &self.direct, req, data, off, length)
            if rc == 0:
                rc = Log.write(self, req, data, off, length)
        return rc

    cdef int zero(self, const mars_req *req, int kind, uint64_t off, uint64_t length) noexcept nogil:
        cdef int rc = MARS_DIVERTED
        while rc == MARS_DIVERTED:
            rc = mars_direct_begin(&self.log, &self.direct)
            if rc == 1:
                return mars_direct_write(&self.log, &self.direct, req, NULL, off, length)
            if rc == 0:
                rc = Log.zero(self, req, kind, off, length)
        return rc

    cdef int flush(self, const mars_req *req) noexcept nogil:
        cdef int rc = mars_direct_begin(&self.log, &self.direct)
        if rc == 1:
            return mars_direct_flush(&self.log, &self.direct, req)
        return rc if rc < 0 else Log.flush(self, req)

    # ---- entering ----

    def hold(self):
        """Nothing is accepted from now on. Raises OSError when the log has failed or is not in use."""
        cdef int rc = mars_direct_hold(&self.log, &self.direct)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))

    def give_up(self):
        """Undo hold()."""
        mars_direct_give_up(&self.log, &self.direct)

    cdef int take_map(self, int fd, int shift, bytes sectors) except -1:
        cdef int rc = mars_map_open(&self.direct.map, fd, shift, sectors, len(sectors))
        if rc < 0:
            raise MemoryError()
        return 0

    def enter(self, int fd, bytes header, uint64_t allocated, int map_fd, int shift, bytes sectors):
        """Past the log from now on. fd, header: the gap log, durable, in which the log will go on; map_fd: O_DIRECT |
        O_DSYNC, with these sectors. Raises ValueError when the log is not on the data device to its end (nothing has
        happened then); OSError when it has failed."""
        cdef const uint8_t *block = header
        cdef int rc
        if len(header) != MARS_BLOCK or mars_file_header_check(block) != 0:
            raise ValueError("not a sound log header block")
        self.take_map(map_fd, shift, sectors)
        with nogil:
            pthread_mutex_lock(&self.log.lock)
            rc = self.turn(fd, block, allocated)
            pthread_mutex_unlock(&self.log.lock)
            mars_log_notify(&self.log)
        if rc == 1:
            raise ValueError("the log is not frozen, or not on the data device to its end")
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))

    cdef int turn(self, int fd, const uint8_t *header, uint64_t allocated) noexcept nogil:
        """Locked (given up now and then). 0; 1: not allowed now; a negative errno."""
        cdef mars_segments *s = &self.log.segments
        cdef mars_segment *newest
        if not mars_direct_may_enter(&self.log, self.writeback):
            return 1
        if mars_segments_prepare(s, fd, header) < 0:        # memory for one more, for what comes below
            return -12
        self.direct.held = 1
        self.log.mode = MARS_DIRECT
        mars_direct_divert(&self.log, &self.direct)
        if self.log.failed:
            return self.log.failed
        shadow_clear(&self.index)
        self.wait_unpinned()
        newest = mars_segments_newest(s)
        newest.end = self.log.durable
        mars_segments_prepare(s, fd, header)
        self.log.written = self.log.durable = self.log.groups.appended
        mars_log_enter(&self.log, self.log.groups.appended, allocated)
        self.log.stalled = 0
        self.writeback = self.log.pace.disk = self.log.durable
        self.wb.e = mars_segments_newest(s).start
        self.direct.held = 0
        pthread_cond_broadcast(&self.log.space)
        pthread_cond_broadcast(&self.log.back)
        return 0

    cdef void wait_unpinned(self) noexcept nogil:
        """Locked (given up while waiting). Until nobody reads what the index held."""
        cdef int i, pins = 1
        cdef timespec until
        while pins:
            pins = 0
            for i in range(self.log.segments.n):
                pins += self.log.segments.one[i].pins
            if pins:
                until = mars_deadline(1)
                pthread_cond_timedwait(&self.log.space, &self.log.lock, &until)

    def resume(self, int map_fd, int shift, bytes sectors):
        """Before any device thread, after start() with the gap log: past the log from the beginning."""
        self.need_log()
        self.take_map(map_fd, shift, sectors)
        if self.writeback != self.log.durable or self.log.groups.appended != self.log.durable:
            raise ValueError("the disk position lies before the gap")
        self.log.mode = MARS_DIRECT
        self.log.frozen = 1
        self.direct.epoch = 1

    # ---- leaving ----

    def hold_direct(self):
        """No direct write is under way when this returns, none begins, and all are durable. Raises OSError (then it is
        for good)."""
        cdef int rc
        cdef timespec until
        with nogil:
            pthread_mutex_lock(&self.log.lock)
            self.direct.held = 1
            while self.direct.busy:
                until = mars_deadline(50)
                pthread_cond_timedwait(&self.log.space, &self.log.lock, &until)
            pthread_mutex_unlock(&self.log.lock)
            rc = mars_fdatasync(self.direct.disk_fd)
            pthread_mutex_lock(&self.log.lock)
            if rc < 0:
                mars_log_fail(&self.log, rc, MARS_FAIL_DISK)
            rc = self.log.failed
            pthread_mutex_unlock(&self.log.lock)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))

    def release_direct(self):
        """Undo hold_direct()."""
        pthread_mutex_lock(&self.log.lock)
        self.direct.held = 0
        pthread_cond_broadcast(&self.log.space)
        pthread_mutex_unlock(&self.log.lock)

    def leave(self):
        """After hold_direct(): the log goes on."""
        with nogil:
            pthread_mutex_lock(&self.log.lock)
            self.log.mode = MARS_LOGGING
            self.log.frozen = 0
            self.direct.epoch += 1
            self.direct.held = 0
            pthread_cond_broadcast(&self.log.space)
            pthread_cond_broadcast(&self.log.fill)
            pthread_mutex_unlock(&self.log.lock)
            mars_log_commit(&self.log)

    # ---- what the control plane asks ----

    @property
    def is_direct(self):
        """Writes go past the log."""
        return self.log.mode == MARS_DIRECT

    @property
    def epoch(self):
        """Even while the log is written; whoever has read something knows by it that nothing went past the log
        meanwhile."""
        cdef uint64_t epoch
        pthread_mutex_lock(&self.log.lock)
        epoch = self.direct.epoch
        pthread_mutex_unlock(&self.log.lock)
        return epoch

    @property
    def state(self):
        """As Volume.state, and whether the log is passed by."""
        return {**Volume.state.__get__(self), "direct": self.log.mode == MARS_DIRECT}

    @property
    def counters(self):
        """As Volume.counters, and the writes past the log."""
        cdef mars_direct *d = &self.direct
        return {**Volume.counters.__get__(self), "direct_writes": d.writes, "direct_bytes": d.write_bytes,
                "direct_flushes": d.flushes, "direct_errors": d.errors, "diverted": d.diverted,
                "map_syncs": d.map.syncs, "map_regions": d.map.regions,
                "map_bytes": d.map.regions << d.map.shift if d.map.fd >= 0 else 0}
