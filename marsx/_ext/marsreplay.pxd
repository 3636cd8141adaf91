"""Layout of the window engine for the primary's volume (marsshadow), which fills windows out of its ring."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int64_t
from format cimport mars_expect, mars_group_info, mars_record


cdef extern from "shadow.h" nogil:
    struct shadow_extent:
        uint64_t start
        uint64_t end
        uint64_t lpos
        uint64_t rec_start
        uint32_t rec_len
        uint32_t crc
    struct shadow_leaf:
        shadow_extent ext[32]
    union shadow_node_u:
        shadow_leaf leaf
    struct shadow_node:
        shadow_node_u u
    struct shadow:
        shadow_node *node
        uint32_t free_count
        uint32_t nodes
        uint32_t depth
        uint64_t extents
        uint64_t covered
    enum:
        SHADOW_NIL
    int shadow_init(shadow *s, size_t bytes)
    void shadow_free(shadow *s)
    void shadow_clear(shadow *s)
    int shadow_put(shadow *s, const shadow_extent *e)
    int shadow_cut(shadow *s, uint64_t start, uint64_t end, uint64_t below)
    uint32_t shadow_seek(const shadow *s, uint64_t x, uint16_t *slot)
    uint32_t shadow_step(const shadow *s, uint32_t leaf, uint16_t *slot)
    void shadow_remove(shadow *s, uint64_t start)
    bint shadow_has_room(const shadow *s)


cdef extern from "aio.h" nogil:
    ctypedef unsigned long aio_context_t
    struct iovec:
        void *iov_base
        size_t iov_len
    struct iocb:
        uint64_t aio_data
    struct io_event:
        uint64_t data
        int64_t res


cdef extern from "pace.h" nogil:
    struct mars_busy:
        uint64_t writing
        uint64_t syncing
    int mars_busy_late(const mars_busy *b, uint64_t now)


cdef struct Flight:                     # one write
    iocb cb
    iovec iov[256]
    uint64_t want
    unsigned free_slot                  # a stack of free slots stands in the first n_free


cdef class Cursor:
    cdef mars_expect e
    cdef public uint64_t lamport_ns


cdef class Window:
    cdef uint8_t *buf
    cdef size_t cap
    cdef uint64_t used                  # kept payloads end here
    cdef uint64_t taken, filled         # input not taken yet stands between
    cdef uint64_t log_bytes             # of the groups taken
    cdef int groups, code, loading
    cdef int log_fd
    cdef Cursor cursor                  # of a load that was begun
    cdef uint64_t limit
    cdef int hurry                      # somebody waits, or soon will, for the end of the window
    cdef uint64_t quick                 # bytes of log of a window in a hurry
    cdef const mars_busy *busy          # of the log beside whose writes it is written; NULL: there is none
    cdef shadow map
    cdef int has_map
    cdef uint64_t records
    cdef uint64_t payload_bytes
    cdef uint64_t written_bytes
    cdef aio_context_t ctx              # 0: none yet
    cdef Flight *out
    cdef unsigned fly, n_free
    cdef void clear(self) noexcept nogil
    cdef int reserve(self, size_t room) noexcept nogil
    cdef int full(self) noexcept nogil
    cdef void learn(self, uint64_t took_ns) noexcept nogil
    cdef int take_group(self, uint64_t at, uint64_t available, Cursor c) noexcept nogil
    cdef int keep(self, uint64_t at, const mars_group_info *info) noexcept nogil
    cdef int replace(self, const mars_record *r, const uint8_t *payload) noexcept nogil
    cdef int enter(self, const mars_record *r, uint64_t at) noexcept nogil
    cdef void load_some(self, Cursor c, uint64_t most) noexcept nogil
    cdef int read_more(self, Cursor c, uint64_t most) noexcept nogil
    cdef int open_writer(self, unsigned fly) noexcept nogil
    cdef void close_writer(self) noexcept nogil
    cdef void release(self, uint64_t slot) noexcept nogil
    cdef int reap(self, int minimum) noexcept nogil
    cdef unsigned prepare(self, int fd, uint32_t *leaf, uint16_t *k) noexcept nogil
    cdef int issue(self, int fd, uint32_t *leaf, uint16_t *k) noexcept nogil
    cdef int write_out(self, int fd, Window ahead, Cursor c) noexcept nogil
