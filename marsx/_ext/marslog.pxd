"""Layout of a log that is appended to, for what stands on top of it (marsshadow) and for the front ends."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from log cimport mars_log, mars_req


cdef struct Numbers:                    # of one moment
    uint64_t nr, base, appended, written, durable, stalled, lamport
    uint8_t digest[16]
    int failed, where, in_flight


cdef class Log:
    cdef mars_log log

    cdef int set_up(self, uint64_t device_size, uint32_t block_size, uint64_t ring_bytes, int event_fd) except -1
    cdef int prepare(self, int fd, bytes header) except -1
    cdef int need_log(self) except -1
    cdef void numbers(self, Numbers *out) noexcept nogil
    cdef dict state_of(self, const Numbers *n)
    cdef int write(self, const mars_req *req, const uint8_t *data, uint64_t off, uint32_t length) noexcept nogil
    cdef int zero(self, const mars_req *req, int kind, uint64_t off, uint64_t length) noexcept nogil
    cdef int flush(self, const mars_req *req) noexcept nogil
