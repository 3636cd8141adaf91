# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The volume of a primary: a log, and above it the shadow of what is not yet on the data device.

A write gets its place in the log's ring buffer and in the shadow index under the log's lock: one order for log and
shadow (rule 8). It is copied there once, without the lock; that copy is logged, checked and read back, and not before
it is whole. Reads take the shadow where it has data, else the data device. Write-back brings windows of durable groups
to the device and forgets them in the shadow.

Invariants (checked where they could break; a violation stops the volume):
  writeback <= durable
  an extent of the index with an address below `writeback` does not exist after finish_window
  a segment that a read uses is pinned, and not dropped
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memmove, memset
from libc.errno cimport EIO, ENOSPC, ENOMEM
from posix.time cimport CLOCK_MONOTONIC
from format cimport *
from log cimport *
from threads cimport *
from marsx._ext.marslog cimport Log, Numbers
from marsx._ext.marsreplay cimport *

import os

cdef extern from "crc32c.h" nogil:
    uint32_t mars_crc32c(uint32_t crc, const void *p, size_t n)
    int mars_crc32c_env()

cdef extern from "xxh3.h" nogil:
    int mars_xxh3_env()

cdef extern from "disk.h" nogil:
    int mars_pread_all(int fd, void *buf, size_t len, uint64_t off)

cdef extern from "backlog.h" nogil:
    uint64_t mars_backlog_wait(mars_log *l, mars_backlog *b, uint64_t writeback, int (*crowded)(void *) noexcept nogil,
                               void *arg)

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **p, size_t align, size_t n)

if mars_crc32c_env() != 0 or mars_xxh3_env() != 0:
    raise ValueError("MARS_CRC_KERNEL or MARS_XXH3_KERNEL asks for a kernel that this machine does not have")

cdef enum:
    N_PIECES = 64                   # extents that one look into the index serves
    PART = 1 << 20                  # bytes copied at a time for write-back
    INDEX_READ = 2 << 20            # bytes of log read at a time for the index; of long groups the header alone
    NOT_VALID = -2000               # the own log does not verify


cdef int index_room(void *index) noexcept nogil:
    """The log's hook: one more record has room, and the cuts of a window too."""
    cdef const shadow *s = <const shadow *>index
    return s.free_count >= 4 * (s.depth + 2) + 8


cdef uint64_t index_pace(void *index, const mars_pace *p) noexcept nogil:
    """The log's hook: how far apart records come while the index fills up."""
    cdef const shadow *s = <const shadow *>index
    return mars_pace_gap(p.record_ns, s.free_count, s.nodes)


cdef int no_room(void *index) noexcept nogil:
    """In place of index_room while writers are held back."""
    return 0


cdef int index_crowded(void *index) noexcept nogil:
    """Writers would soon have to wait for room."""
    cdef const shadow *s = <const shadow *>index
    return s.free_count < s.nodes // 4


cdef int index_put(void *index, uint64_t off, uint64_t length, uint64_t v, uint32_t stored,
                   uint32_t crc) noexcept nogil:
    """The log's hook: the newest data of a range stand at v."""
    cdef shadow_extent x
    x.start = off
    x.end = off + length
    x.lpos = v
    x.rec_start = off
    x.rec_len = stored
    x.crc = crc
    return shadow_put(<shadow *>index, &x)


cdef class Volume(Log):
    """disk_fd: data device (O_DIRECT); sizes in bytes; ring_bytes: a power of two >= 16 MiB; event_fd: an eventfd that
    is written whenever durable moved, the volume failed, stalled or recovered (-1: none). Threads belong to the
    caller."""

    def __cinit__(self, int disk_fd, uint64_t device_size, uint32_t block_size=512, uint64_t ring_bytes=64 << 20,
                  uint64_t index_bytes=32 << 20, int event_fd=-1):
        cdef int rc
        self.disk_fd = disk_fd
        self.set_up(device_size, block_size, ring_bytes, event_fd)
        rc = shadow_init(&self.index, index_bytes)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        self.log.hook.room = index_room
        self.log.hook.accept = index_put
        self.log.hook.pace = index_pace
        self.log.hook.arg = &self.index

    def __dealloc__(self):
        shadow_free(&self.index)

    # ---- set-up (one thread, before any device thread) ----

    def add_log(self, int fd, bytes header, uint64_t end, Cursor cursor=None):
        """A log of before the restart, ended at POS `end`, oldest first. The first one needs `cursor` at the disk
        position. Enters its record tables into the index (payloads were verified by the scan before). Raises
        BlockingIOError when the index is full: bring a window to the disk with the replay engine first and start again
        with a new volume; OSError; ValueError when a group is not valid."""
        cdef mars_segment *s
        cdef Cursor c
        cdef int rc
        self.prepare(fd, header)
        s = &self.log.segments.one[self.log.segments.n]
        s.end = s.base + end
        s.allocated = MARS_UNKNOWN
        if self.log.segments.n == 0:
            if cursor is None:
                raise ValueError("the oldest log needs a cursor at the disk position")
            self.wb = cursor.copy()
            c = cursor.copy()
            self.writeback = s.base + c.e.pos
        else:
            c = Cursor(header)
        self.log.segments.n += 1
        with nogil:
            rc = self.index_log(s, c)
        if rc == -ENOSPC:
            raise BlockingIOError("the index is full")
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        if rc > 0:
            raise ValueError(f"group at {c.e.pos} of log {c.e.log_nr} is not valid (code {rc})")

    cdef int index_log(self, const mars_segment *s, Cursor c) noexcept nogil:
        cdef uint8_t *buf = NULL
        cdef const uint8_t *block
        cdef mars_group_info info
        cdef const mars_group_header *g
        cdef uint64_t end = s.end - s.base, start = 0, have = 0     # POS and length of what stands in buf
        cdef int rc = 0
        info.length = 0
        if posix_memalign(<void **>&buf, MARS_BLOCK, INDEX_READ) != 0:
            return -ENOMEM
        while c.e.pos < end and rc == 0:
            if c.e.pos + MARS_BLOCK > start + have:
                start = c.e.pos
                have = INDEX_READ if info.length < INDEX_READ // 4 else MARS_BLOCK
                have = end - start if end - start < have else have
                rc = mars_pread_all(s.fd, buf, have, MARS_BLOCK + start)
                if rc < 0:
                    break
            block = buf + (c.e.pos - start)
            g = <const mars_group_header *>block
            if c.e.group_nr == MARS_UNKNOWN:
                c.e.group_nr = g.group_nr
                c.e.next_record = g.first_record
            rc = mars_group_check_header(block, &c.e, &info)
            if rc == 0:
                rc = self.index_group(block, info.n_records, s.base + c.e.pos)
            if rc == 0:
                mars_group_advance(&c.e, &info)
        free(buf)
        if rc == 0 and c.e.pos != end:           # addresses behind the end belong to the next log
            rc = MARS_SCAN_LENGTH
        return rc

    cdef int index_group(self, const uint8_t *block, uint32_t n, uint64_t vstart) noexcept nogil:
        cdef const mars_record *r = mars_group_table(block)
        cdef uint64_t v = vstart + MARS_BLOCK
        cdef uint32_t i
        cdef int rc = 0
        for i in range(n):
            if r[i].type == MARS_WRITE or r[i].type == MARS_DISCARD or r[i].type == MARS_ZERO:
                rc = index_put(&self.index, r[i].offset, r[i].length, v if r[i].stored else vstart, r[i].stored,
                               r[i].crc)
                if rc < 0:
                    break
            v += mars_payload_span(&r[i])
        return rc

    def start(self, int fd, bytes header, uint64_t allocated=0):
        """Begin to append to a new, empty log (its header block is durable). allocated: file bytes that exist
        already."""
        cdef int first = self.log.segments.n == 0
        Log.start(self, fd, header, allocated)
        if first:
            self.wb = Cursor(header)
            self.writeback = self.log.written

    # ---- read ----

    cdef int read(self, uint8_t *buf, uint64_t off, uint32_t length, uint8_t *scratch) noexcept nogil:
        """Newest data of the range: shadow where not yet written back, else the data device. buf: aligned for
        O_DIRECT. scratch: aligned, MARS_WRITE_MAX + 2 blocks. 0 or a negative errno."""
        cdef uint64_t pos = off, upto
        cdef int rc = 0
        if length == 0 or not mars_inside(off, length, self.log.device_size):
            return -EIO
        while pos < off + length and rc == 0:
            rc = self.read_part(buf + (pos - off), pos, off + length, scratch, &upto)
            pos = upto
        self.c_reads += 1
        self.c_read_bytes += length
        return rc

    cdef int whole_on_disk(self, uint64_t off, uint32_t length) noexcept nogil:
        """The data device's descriptor when the shadow holds nothing of the range, else -1."""
        cdef uint16_t k = 0
        cdef uint32_t leaf
        cdef int fd = -1
        if length and mars_inside(off, length, self.log.device_size):
            pthread_mutex_lock(&self.log.lock)
            leaf = shadow_seek(&self.index, off, &k)
            if leaf == SHADOW_NIL or self.index.node[leaf].u.leaf.ext[k].start >= off + length:
                fd = self.disk_fd
                self.c_reads += 1
                self.c_read_bytes += length
            pthread_mutex_unlock(&self.log.lock)
        return fd

    cdef int read_part(self, uint8_t *buf, uint64_t pos, uint64_t end, uint8_t *scratch, uint64_t *upto) noexcept nogil:
        """As much of [pos, end) as N_PIECES extents cover; *upto = where it stopped."""
        cdef Piece piece[N_PIECES]
        cdef uint64_t covered = 0
        cdef int n, i, rc = 0
        pthread_mutex_lock(&self.log.lock)
        upto[0] = end
        n = self.find_pieces(piece, pos, upto, &covered)
        for i in range(n):
            if piece[i].rec_len:
                mars_log_wait_copied(&self.log, piece[i].rec_lpos)
        pthread_mutex_unlock(&self.log.lock)
        if covered < upto[0] - pos:
            rc = mars_pread_all(self.disk_fd, buf, upto[0] - pos, pos)
        for i in range(n):
            if rc == 0:
                rc = self.read_piece(&piece[i], buf + (piece[i].start - pos), scratch)
        pthread_mutex_lock(&self.log.lock)
        for i in range(n):
            if piece[i].rec_len:
                mars_segments_find(&self.log.segments, piece[i].rec_lpos).pins -= 1
        pthread_mutex_unlock(&self.log.lock)
        return rc

    cdef int find_pieces(self, Piece *piece, uint64_t pos, uint64_t *end, uint64_t *covered) noexcept nogil:
        """Locked. What the shadow has of [pos, *end), its segments pinned. *end comes down when N_PIECES do not reach
        it."""
        cdef const shadow_extent *x
        cdef uint16_t k = 0
        cdef uint32_t leaf = shadow_seek(&self.index, pos, &k)
        cdef int n = 0
        while leaf != SHADOW_NIL:
            x = &self.index.node[leaf].u.leaf.ext[k]
            if x.start >= end[0]:
                break
            if n == N_PIECES:
                end[0] = x.start
                break
            piece[n].start = x.start if x.start > pos else pos
            piece[n].end = x.end if x.end < end[0] else end[0]
            piece[n].rec_lpos = x.lpos
            piece[n].lpos = x.lpos + (piece[n].start - x.rec_start)
            piece[n].rec_len = x.rec_len
            piece[n].crc = x.crc
            if x.rec_len:
                mars_segments_find(&self.log.segments, x.lpos).pins += 1
            covered[0] += piece[n].end - piece[n].start
            n += 1
            leaf = shadow_step(&self.index, leaf, &k)
        return n

    cdef int read_piece(self, const Piece *p, uint8_t *to, uint8_t *scratch) noexcept nogil:
        """Zeros, the ring, or else the log file."""
        if p.rec_len == 0:
            memset(to, 0, p.end - p.start)
            return 0
        if mars_log_from_ring(&self.log, to, p.lpos, p.end - p.start):
            return 0
        if p.rec_len > MARS_WRITE_MAX:
            return -EIO
        return self.read_log(p, to, scratch)

    cdef int read_log(self, const Piece *p, uint8_t *to, uint8_t *scratch) noexcept nogil:
        """Out of the log file: the whole record, because its CRC covers the whole of it."""
        cdef uint64_t at, off
        cdef mars_segment s
        cdef int rc
        pthread_mutex_lock(&self.log.lock)
        self.c_readback += 1
        s = mars_segments_find(&self.log.segments, p.rec_lpos)[0]
        pthread_mutex_unlock(&self.log.lock)
        at = MARS_BLOCK + p.rec_lpos - s.base
        off = at & ~<uint64_t>(MARS_BLOCK - 1)
        rc = mars_pread_all(s.fd, scratch, mars_up(at + p.rec_len) - off, off)
        if rc == 0 and mars_crc32c(0, scratch + (at - off), p.rec_len) != p.crc:
            pthread_mutex_lock(&self.log.lock)
            mars_log_fail(&self.log, -EIO, MARS_FAIL_READ_BACK)
            pthread_mutex_unlock(&self.log.lock)
            mars_log_notify(&self.log)
            rc = -EIO
        if rc == 0:
            memcpy(to, scratch + (at - off) + (p.lpos - p.rec_lpos), p.end - p.start)
        return rc

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
            if posix_memalign(<void **>&scratch, MARS_BLOCK, MARS_WRITE_MAX + 2 * MARS_BLOCK) != 0:
                rc = -ENOMEM
            while at < length and rc == 0:
                part = length - <uint32_t>at if length - at < MARS_WRITE_MAX else MARS_WRITE_MAX
                rc = self.read(to + at, off + at, part, scratch)
                at += part
            free(scratch)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))

    def hold_writers(self, bint held):
        """held: from now on no write is accepted (writers wait as for room), until it is taken back. For a moment only
        (verify, rule 17): everything visible is what has been accepted by then."""
        pthread_mutex_lock(&self.log.lock)
        self.log.hook.room = no_room if held else index_room
        pthread_cond_broadcast(&self.log.space)
        pthread_mutex_unlock(&self.log.lock)

    # ---- write-back (one thread) ----

    def load_window(self, Window w):
        """Fill the window with durable groups from the write-back position on, at most to the end of one log. Returns
        the number of groups (0: nothing to do). Raises OSError; ValueError when the own log does not verify."""
        cdef int rc
        cdef uint64_t limit
        cdef Cursor c = self.wb
        self.need_log()
        with nogil:
            pthread_mutex_lock(&self.log.lock)
            limit = mars_log_settled(&self.log)
            self.began_ns = mars_clock_ns(CLOCK_MONOTONIC)
            w.busy = &self.log.busy
            w.hurry = mars_pace_hurry(&self.log.pace, &self.looked, self.began_ns, self.log.count.records,
                                      self.index.free_count, self.index.nodes, w.cap // 1024)
            pthread_mutex_unlock(&self.log.lock)
            w.clear()
            rc = self.fill(w, c, limit)
        if rc == NOT_VALID:
            raise ValueError(f"log {c.e.log_nr} is not valid at {c.e.pos}: write-back cannot go on")
        if rc == -ENOMEM:
            raise OSError(ENOMEM, os.strerror(ENOMEM))
        if rc < 0:
            raise OSError(-rc, f"log {c.e.log_nr} cannot be read behind {c.e.pos}: {os.strerror(-rc)}")
        return rc

    cdef int at_log(self, Cursor c, uint64_t v, int first, uint64_t *end) noexcept nogil:
        """*end = where the cursor's log ends; at that end, and before the window's first group, the cursor goes on to
        the next log. 0, or NOT_VALID."""
        cdef mars_segments *s = &self.log.segments
        cdef int i = 0, rc = 0
        pthread_mutex_lock(&self.log.lock)
        while i < s.n and s.one[i].start.log_nr != c.e.log_nr:
            i += 1
        while first and i + 1 < s.n and v == s.one[i].end:
            i += 1
            c.e = s.one[i].start
        if i == s.n:
            rc = NOT_VALID
        else:
            end[0] = s.one[i].end
        pthread_mutex_unlock(&self.log.lock)
        return rc

    cdef int fill(self, Window w, Cursor c, uint64_t limit) noexcept nogil:
        """Groups from the write-back position on, up to address `limit` and the end of their log. Their number,
        NOT_VALID or a negative errno."""
        cdef uint64_t v = self.writeback, stop
        cdef int rc, more = 1
        if v >= limit:
            return 0
        rc = self.at_log(c, v, 1, &stop)
        if rc < 0:
            return rc
        if stop > limit:
            stop = limit
        while v < stop and not w.full():
            rc = w.take_group(w.taken, w.filled - w.taken, c)
            if rc == MARS_SCAN_SHORT:
                more = self.fill_more(w, v, stop)
                if more <= 0:
                    break
            elif rc != MARS_SCAN_OK:
                return rc if rc < 0 else NOT_VALID
            v = self.writeback + w.log_bytes
        return more if more < 0 else <int>w.groups

    cdef int fill_more(self, Window w, uint64_t v, uint64_t stop) noexcept nogil:
        """The next log bytes behind those that the window has not taken yet; v: address of the first of these. 1; 0
        when the group at v has no room in this window; NOT_VALID or a negative errno."""
        cdef uint64_t have = w.filled - w.taken, need = MARS_BLOCK, want = PART
        cdef int rc
        if v + have >= stop:
            return NOT_VALID                            # a group that is longer than what is durable
        memmove(w.buf + w.used, w.buf + w.taken, have)
        w.taken = w.used
        w.filled = w.used + have
        if have >= MARS_BLOCK:                          # the header of that group is sound
            need = (<const mars_group_header *>(w.buf + w.taken)).length
        if w.used + need > w.cap:
            if w.groups:
                return 0
            rc = w.reserve(need)
            w.filled = w.taken
            return 1 if rc == 0 else rc
        if w.hurry and w.quick < want:                  # a short window: no more than it takes
            want = w.quick & ~<uint64_t>(MARS_BLOCK - 1)
        if want > stop - v - have:
            want = stop - v - have
        if want > w.cap - w.filled:
            want = w.cap - w.filled
        rc = self.get_bytes(w.buf + w.filled, v + have, want)
        w.filled += want
        return 1 if rc == 0 else self.unreadable(rc)

    cdef int unreadable(self, int rc) noexcept nogil:
        """The log on the disk has a hole: what comes behind it could not be recovered, so nothing more is accepted."""
        pthread_mutex_lock(&self.log.lock)
        mars_log_fail(&self.log, rc, MARS_FAIL_READ_BACK)
        pthread_mutex_unlock(&self.log.lock)
        mars_log_notify(&self.log)
        return rc

    cdef int get_bytes(self, uint8_t *to, uint64_t v, uint64_t n) noexcept nogil:
        """Log bytes from address v on: out of the ring, or else out of the file."""
        cdef mars_segment s
        cdef uint64_t part
        cdef int rc
        while n:
            part = n if n < PART else PART
            if not mars_log_from_ring(&self.log, to, v, part):
                pthread_mutex_lock(&self.log.lock)
                s = mars_segments_find(&self.log.segments, v)[0]
                pthread_mutex_unlock(&self.log.lock)
                rc = mars_pread_all(s.fd, to, part, MARS_BLOCK + v - s.base)
                if rc < 0:
                    return rc
            to += part
            v += part
            n -= part
        return 0

    def finish_window(self, Window w):
        """The window's bytes are durable on the data device: forget them in the shadow, move the disk position.
        Returns (log number, POS)."""
        cdef uint64_t end = self.writeback + w.log_bytes
        cdef int rc
        with nogil:
            pthread_mutex_lock(&self.log.lock)
            rc = self.forget(w, end)
            if self.log.failed == 0:
                self.writeback = self.log.pace.disk = end
                mars_pace_learn(&self.log.pace, w.records, w.log_bytes,
                                mars_clock_ns(CLOCK_MONOTONIC) - self.began_ns)
            self.log.pressed = 0
            pthread_cond_broadcast(&self.log.space)
            pthread_mutex_unlock(&self.log.lock)
        if rc < 0:
            raise OSError(-rc, "the shadow index broke an invariant")
        return self.wb.e.log_nr, self.wb.e.pos

    cdef int forget(self, Window w, uint64_t end) noexcept nogil:
        """Locked (given up now and then: others may go on). What the window holds leaves the shadow, unless there is
        something newer. 0 or an error."""
        cdef const shadow_extent *x
        cdef uint16_t k = 0
        cdef uint32_t leaf = shadow_seek(&w.map, 0, &k)
        cdef int rc = 0, n = 0
        while leaf != SHADOW_NIL:
            x = &w.map.node[leaf].u.leaf.ext[k]
            rc = shadow_cut(&self.index, x.start, x.end, end)
            if rc < 0 or end > self.log.durable:
                mars_log_fail(&self.log, -EIO, MARS_FAIL_INVARIANT)
                break
            n += 1
            if n % 64 == 0:
                pthread_mutex_unlock(&self.log.lock)
                pthread_mutex_lock(&self.log.lock)
            leaf = shadow_step(&w.map, leaf, &k)
        return rc

    @property
    def writeback_cursor(self):
        """Copy of the cursor of the write-back (after load_window: the window's end)."""
        self.need_log()
        return self.wb.copy()

    def drop_logs(self):
        """Forget logs that are behind the write-back position and that nobody reads from; returns [(log number, fd)],
        to be closed by the caller."""
        cdef list gone = []
        cdef mars_segments *s = &self.log.segments
        cdef uint64_t nr, current
        cdef int fd
        self.need_log()
        current = self.wb.e.log_nr
        while True:
            fd = -1
            pthread_mutex_lock(&self.log.lock)
            if s.n > 1 and s.one[0].end <= self.writeback and s.one[0].pins == 0 and s.one[0].start.log_nr != current:
                fd = s.one[0].fd
                nr = s.one[0].start.log_nr
                mars_segments_drop_oldest(s)
            pthread_mutex_unlock(&self.log.lock)
            if fd < 0:
                return gone
            gone.append((nr, fd))

    def wait_work(self, uint64_t most_bytes, uint64_t idle_ms, uint64_t age_ms):
        """Write-back thread: wait until write-back is due (ext/backlog.h), at most age_ms. Returns the bytes that are
        durable and not written back, 0 when it is not due."""
        cdef uint64_t have
        with nogil:
            pthread_mutex_lock(&self.log.lock)
            self.backlog.most = most_bytes
            self.backlog.idle_ns = idle_ms * 1000000
            self.backlog.age_ns = age_ms * 1000000
            have = mars_backlog_wait(&self.log, &self.backlog, self.writeback, index_crowded, &self.index)
            pthread_mutex_unlock(&self.log.lock)
        return have

    def kick(self):
        """The write-back thread's wait ends now."""
        pthread_mutex_lock(&self.log.lock)
        self.backlog.kicked = 1
        pthread_cond_broadcast(&self.log.back)
        pthread_mutex_unlock(&self.log.lock)

    # ---- what the control plane asks ----

    @property
    def state(self):
        """As Log.state, and what is in the shadow, of the same moment."""
        cdef Numbers n
        cdef uint64_t writeback, extents, covered
        cdef dict found
        self.need_log()
        pthread_mutex_lock(&self.log.lock)
        self.numbers(&n)
        writeback, extents, covered = self.writeback, self.index.extents, self.index.covered
        pthread_mutex_unlock(&self.log.lock)
        found = self.state_of(&n)
        found.update(writeback_rest=n.appended - writeback, settled_rest=n.durable - writeback, extents=extents,
                     shadow_bytes=covered)
        return found

    @property
    def counters(self):
        """As Log.counters, and reads."""
        return {**Log.counters.__get__(self), "reads": self.c_reads, "read_bytes": self.c_read_bytes,
                "readbacks": self.c_readback}
