"""Layout of the primary's volume for the front ends (marsdev, marsinject)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from log cimport mars_pace_look, mars_segment
from marsx._ext.marslog cimport Log
from marsx._ext.marsreplay cimport shadow, Window, Cursor


cdef extern from "backlog.h":
    struct mars_backlog:
        uint64_t most
        uint64_t idle_ns
        uint64_t age_ns
        int kicked


cdef struct Piece:                      # part of a read that the shadow serves
    uint64_t start, end, lpos, rec_lpos
    uint32_t rec_len, crc


cdef class Volume(Log):
    cdef int disk_fd
    cdef shadow index
    cdef uint64_t writeback             # address: everything before it is durable on the data device
    cdef Cursor wb
    cdef mars_backlog backlog
    cdef mars_pace_look looked
    cdef uint64_t began_ns              # CLOCK_MONOTONIC: the window that is under way
    cdef uint64_t c_reads, c_read_bytes, c_readback

    cdef int index_log(self, const mars_segment *s, Cursor c) noexcept nogil
    cdef int index_group(self, const uint8_t *block, uint32_t n, uint64_t vstart) noexcept nogil
    cdef int whole_on_disk(self, uint64_t off, uint32_t length) noexcept nogil
    cdef int read(self, uint8_t *buf, uint64_t off, uint32_t length, uint8_t *scratch) noexcept nogil
    cdef int read_part(self, uint8_t *buf, uint64_t pos, uint64_t end, uint8_t *scratch, uint64_t *upto) noexcept nogil
    cdef int find_pieces(self, Piece *piece, uint64_t pos, uint64_t *end, uint64_t *covered) noexcept nogil
    cdef int read_piece(self, const Piece *p, uint8_t *to, uint8_t *scratch) noexcept nogil
    cdef int read_log(self, const Piece *p, uint8_t *to, uint8_t *scratch) noexcept nogil
    cdef int at_log(self, Cursor c, uint64_t v, int first, uint64_t *end) noexcept nogil
    cdef int fill(self, Window w, Cursor c, uint64_t limit) noexcept nogil
    cdef int unreadable(self, int rc) noexcept nogil
    cdef int fill_more(self, Window w, uint64_t v, uint64_t stop) noexcept nogil
    cdef int get_bytes(self, uint8_t *to, uint64_t v, uint64_t n) noexcept nogil
    cdef int forget(self, Window w, uint64_t end) noexcept nogil
