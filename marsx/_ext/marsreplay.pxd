"""Layout of the window engine for the primary's volume (marsshadow), which fills windows out of its ring."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from format cimport mars_expect


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


cdef class Cursor:
    cdef mars_expect e
    cdef public uint64_t lamport_ns


cdef class Window:
    cdef uint8_t *buf
    cdef size_t cap
    cdef size_t used
    cdef shadow map
    cdef int has_map
    cdef uint64_t records
    cdef uint64_t payload_bytes
    cdef uint64_t written_bytes
    cdef aio_context_t ctx              # 0: none yet
    cdef void clear(self) noexcept nogil
    cdef int reserve(self, size_t room) noexcept nogil
    cdef int full(self) noexcept nogil
    cdef int take_group(self, uint64_t available, Cursor c) noexcept nogil
    cdef int write_out(self, int fd) noexcept nogil
    cdef int load_fd(self, int fd, Cursor c, uint64_t limit, int *groups) noexcept nogil
