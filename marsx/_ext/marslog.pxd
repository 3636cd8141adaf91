"""Layout of the primary's volume for the front ends (marsdev)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int32_t
from format cimport mars_expect, mars_record
from marsx._ext.marsreplay cimport shadow, Window, Cursor


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass


cdef extern from "request.h" nogil:
    struct mars_req:
        void (*done)(const mars_req *req, int error) noexcept nogil
        uint64_t unique
        uint64_t start_ns
        uint32_t size
        int32_t fd


cdef struct Segment:            # one log file in the volume's address space
    uint64_t base               # address of POS 0
    uint64_t end                # address behind its last group; the newest one: UNKNOWN
    int fd
    int pins                    # reads and loads that use fd right now
    uint64_t allocated          # file bytes allocated ahead
    mars_expect start           # what its first group must be


cdef struct Group:
    uint64_t vstart             # address of its header block
    uint64_t vend               # behind the last payload; aligned once closed
    uint32_t n
    int state                   # G_*
    uint8_t digest[16]          # behind the group
    uint32_t n_req
    mars_req req[97]


cdef struct Piece:            # part of a read that the shadow serves
    uint64_t start, end, lpos, rec_lpos
    uint32_t rec_len, crc


cdef struct Flush:
    mars_req req
    uint64_t target


cdef class Volume:
    cdef pthread_mutex_t lock
    cdef pthread_cond_t space           # somebody may append again
    cdef pthread_cond_t work            # the flusher has something to do, durable moved, or stop
    cdef int disk_fd
    cdef readonly uint64_t device_size
    cdef readonly uint32_t block_size
    # addresses ("v"): base of a segment + POS; they grow for ever
    cdef uint8_t *ring
    cdef uint64_t ring_size
    cdef uint64_t ring_low              # nothing below was ever in the ring
    cdef uint64_t ring_high             # ring memory is in use up to here
    cdef uint64_t appended, written, durable, writeback
    cdef uint8_t written_digest[16]
    cdef uint8_t durable_digest[16]
    cdef mars_expect seal               # chain state behind the newest sealed group
    cdef Group *groups                  # circular
    cdef uint64_t g_first, g_commit, g_next
    cdef int open_group                 # the newest group takes records
    cdef int in_flight, frozen, syncing, stop, failed, fail_where, started
    cdef int extending                  # the flusher allocates file space of the newest log
    cdef int kicked                     # wait_work() returns at once
    cdef int index_full                 # a writer waits for room in the index
    cdef uint64_t stalled               # CLOCK_MONOTONIC ns since when /mars has no room, 0 = it has
    cdef Segment *seg
    cdef int n_seg, seg_cap
    cdef shadow index
    cdef int has_index
    cdef Flush *flushes
    cdef int n_flush
    cdef uint64_t lamport_ns
    cdef uint64_t *known                # sorted uniques of recovered records (rule 11)
    cdef uint64_t n_known
    cdef int event_fd
    cdef Cursor wb
    cdef public uint64_t flush_ns
    cdef public uint64_t allocate_step
    cdef public uint32_t batch
    # counters
    cdef uint64_t c_writes, c_write_bytes, c_reads, c_read_bytes, c_discards, c_flushes
    cdef uint64_t c_groups, c_syncs, c_waits, c_readback, c_known
    cdef uint64_t latency[32]           # write latency, log2 of microseconds

    cdef int new_segment(self, int fd, const uint8_t *header) noexcept nogil
    cdef Segment *first_segment(self, int fd, bytes header) except NULL
    cdef int index_log(self, Segment *s, Cursor c) noexcept nogil
    cdef int index_group(self, const uint8_t *block, uint32_t n, uint64_t vstart) noexcept nogil
    cdef int index_put(self, uint64_t off, uint64_t length, uint64_t v, uint32_t stored, uint32_t crc) noexcept nogil
    cdef int is_known(self, uint64_t unique) noexcept nogil
    cdef void notify(self) noexcept nogil
    cdef Segment *find_segment(self, uint64_t v) noexcept nogil
    cdef void fail(self, int rc, int where) noexcept nogil
    cdef int make_room(self, uint32_t span) noexcept nogil
    cdef void use_ring(self, uint64_t high) noexcept nogil
    cdef void close_group(self) noexcept nogil
    cdef int append(self, const mars_req *req, int kind, const uint8_t *data, uint64_t off, uint64_t length,
                    uint32_t stored, uint32_t crc) noexcept nogil
    cdef bint sound(self, uint64_t off, uint64_t length) noexcept nogil
    cdef int write(self, const mars_req *req, const uint8_t *data, uint64_t off, uint32_t length) noexcept nogil
    cdef int zero(self, const mars_req *req, int kind, uint64_t off, uint64_t length) noexcept nogil
    cdef void seal_group(self, Group *g) noexcept nogil
    cdef int has_space(self, Group *g) noexcept nogil
    cdef int write_group(self, Group *g, Segment s) noexcept nogil
    cdef int stall(self, int rc) noexcept nogil
    cdef int allocate(self, Segment *s, uint64_t step) noexcept nogil
    cdef void commit(self) noexcept nogil
    cdef void answer_done(self) noexcept nogil
    cdef void release_groups(self) noexcept nogil
    cdef void answer_group(self, Group *g, int error) noexcept nogil
    cdef void answer_failed(self) noexcept nogil
    cdef int flush(self, const mars_req *req) noexcept nogil
    cdef int sync_all(self) noexcept nogil
    cdef uint64_t settled(self) noexcept nogil
    cdef void sync(self, int forced) noexcept nogil
    cdef void answer_flushes(self) noexcept nogil
    cdef int read(self, uint8_t *buf, uint64_t off, uint32_t length, uint8_t *scratch) noexcept nogil
    cdef int read_part(self, uint8_t *buf, uint64_t pos, uint64_t end, uint8_t *scratch, uint64_t *upto) noexcept nogil
    cdef int from_ring(self, uint8_t *to, uint64_t v, uint64_t n) noexcept nogil
    cdef int read_piece(self, Piece *p, uint8_t *to, uint8_t *scratch) noexcept nogil
    cdef int fill(self, Window w, Cursor c, uint64_t limit) noexcept nogil
    cdef int get_bytes(self, uint8_t *to, uint64_t v, uint64_t n) noexcept nogil
