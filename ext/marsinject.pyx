# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""A front end without a device: requests into a volume, answers in the order in which the volume gave them.

For benchmarks of the append engine and for tests. It keeps the contract of request.h like any front end: a volume
answers each request exactly once, or returns an error and the injector answers. Any number of threads may use one
injector; each call is what one device thread does for one request.

Invariants:
  outstanding = requests given to the volume - requests answered;
  an injector keeps its slot, and is not freed, before all are answered.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t, int32_t
from libc.stdlib cimport malloc, free
from posix.time cimport timespec, CLOCK_MONOTONIC
from log cimport mars_req
from threads cimport *
from marsx._ext.marsshadow cimport Volume

import os

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **p, size_t align, size_t n)

cdef enum:
    SLOTS = 64
    MAX = 1 << 20
    SCRATCH = (1 << 20) + 8192

WRITE_MAX = MAX


cdef struct Answer:
    uint64_t ticket
    int32_t error


cdef struct Slot:
    pthread_mutex_t lock
    pthread_cond_t changed
    Answer *ring
    uint64_t capacity, head, tail       # answers [tail, head) not fetched yet
    uint64_t outstanding, lost, failed
    int hold, used

cdef Slot slots[SLOTS]
cdef int n_ready = 0


cdef void answer(Slot *s, const mars_req *req, int error) noexcept nogil:
    pthread_mutex_lock(&s.lock)
    while s.hold:
        pthread_cond_wait(&s.changed, &s.lock)
    if error:
        s.failed += 1
    if s.head - s.tail < s.capacity:
        s.ring[s.head % s.capacity].ticket = req.unique
        s.ring[s.head % s.capacity].error = error
        s.head += 1
    else:
        s.lost += 1
    s.outstanding -= 1
    pthread_cond_broadcast(&s.changed)
    pthread_mutex_unlock(&s.lock)


cdef void done_listed(const mars_req *req, int error) noexcept nogil:
    answer(&slots[req.fd], req, error)


cdef void done_counted(const mars_req *req, int error) noexcept nogil:
    cdef Slot *s = &slots[req.fd]
    pthread_mutex_lock(&s.lock)
    if error:
        s.failed += 1
    s.outstanding -= 1
    pthread_cond_broadcast(&s.changed)
    pthread_mutex_unlock(&s.lock)


cdef inline uint64_t next_random(uint64_t *x) noexcept nogil:
    x[0] ^= x[0] << 13
    x[0] ^= x[0] >> 7
    x[0] ^= x[0] << 17
    return x[0]


cdef class Injector:
    """capacity: answers kept until answered() fetches them. Tickets are the requests' uniques, counted from
    first_unique."""

    cdef Volume volume
    cdef int slot
    cdef uint64_t unique

    def __cinit__(self, Volume volume not None, uint64_t capacity=1 << 16, uint64_t first_unique=2):
        cdef int i
        self.slot = -1
        self.volume = volume
        self.unique = first_unique
        for i in range(SLOTS):
            if not slots[i].used:
                break
        else:
            raise ValueError("too many injectors")
        slots[i].ring = <Answer *>malloc(capacity * sizeof(Answer))
        if slots[i].ring == NULL:
            raise MemoryError()
        global n_ready
        if i >= n_ready:
            pthread_mutex_init(&slots[i].lock, NULL)
            pthread_cond_init(&slots[i].changed, NULL)
            n_ready = i + 1
        slots[i].capacity = capacity
        slots[i].head = slots[i].tail = slots[i].outstanding = slots[i].lost = slots[i].failed = 0
        slots[i].hold = 0
        slots[i].used = 1
        self.slot = i

    def __dealloc__(self):
        cdef Slot *s
        if self.slot < 0:
            return
        s = &slots[self.slot]
        if s.outstanding:               # somebody may still answer: leave the slot to the process's end
            return
        free(s.ring)
        s.ring = NULL
        s.used = 0

    cdef uint64_t begin(self, mars_req *r, uint64_t unique, uint32_t size) noexcept nogil:
        cdef Slot *s = &slots[self.slot]
        pthread_mutex_lock(&s.lock)
        if unique == 0:
            unique = self.unique
            self.unique += 2
        s.outstanding += 1
        pthread_mutex_unlock(&s.lock)
        r.done = done_listed
        r.unique = unique
        r.start_ns = mars_clock_ns(CLOCK_MONOTONIC)
        r.size = size
        r.fd = self.slot
        return unique

    # ---- single requests; each returns its ticket after the volume has taken it ----

    def write(self, uint64_t off, const uint8_t[::1] data, uint64_t unique=0):
        """One write. May wait for room, and may write groups, as a device thread does."""
        cdef mars_req r
        cdef uint32_t n
        cdef const uint8_t *p = &data[0] if data.shape[0] else NULL
        cdef int rc
        if data.shape[0] > 1 << 31:
            raise ValueError("too long")
        n = <uint32_t>data.shape[0]
        with nogil:
            unique = self.begin(&r, unique, n)
            rc = self.volume.write(&r, p, off, n)
            if rc < 0:
                answer(&slots[self.slot], &r, rc)
        return unique

    def zero(self, uint64_t off, uint64_t length, int kind=2, uint64_t unique=0):
        """A discard (kind 2) or a write of zeros (kind 3)."""
        cdef mars_req r
        cdef int rc
        with nogil:
            unique = self.begin(&r, unique, 0)
            rc = self.volume.zero(&r, kind, off, length)
            if rc < 0:
                answer(&slots[self.slot], &r, rc)
        return unique

    def flush(self, uint64_t unique=0):
        """A FLUSH."""
        cdef mars_req r
        cdef int rc
        with nogil:
            unique = self.begin(&r, unique, 0)
            rc = self.volume.flush(&r)
            if rc < 0:
                answer(&slots[self.slot], &r, rc)
        return unique

    def read(self, uint64_t off, uint32_t length):
        """The newest data of a range of at most WRITE_MAX bytes. Raises OSError."""
        cdef uint8_t *memory = NULL
        cdef int rc
        if length == 0 or length > MAX:
            raise ValueError("length")
        if posix_memalign(<void **>&memory, 4096, MAX + SCRATCH) != 0:
            raise MemoryError()
        with nogil:
            rc = self.volume.read(memory, off, length, memory + MAX)
        data = (<const char *>memory)[:length]
        free(memory)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        return data

    # ---- answers ----

    def answered(self):
        """[(ticket, errno or 0)] since the last call, in the order in which they were given."""
        cdef Slot *s = &slots[self.slot]
        cdef list found = []
        cdef Answer one
        cdef int more = 1
        while more:
            pthread_mutex_lock(&s.lock)
            more = s.tail < s.head
            if more:
                one = s.ring[s.tail % s.capacity]
                s.tail += 1
            pthread_mutex_unlock(&s.lock)
            if more:
                found.append((one.ticket, -one.error))
        return found

    def wait(self, uint64_t at_most=0, uint64_t timeout_ms=10000):
        """Wait until at most so many requests are outstanding. Returns how many are."""
        cdef Slot *s = &slots[self.slot]
        cdef timespec until
        cdef uint64_t left
        cdef int rc = 0
        with nogil:
            until = mars_deadline(timeout_ms)
            pthread_mutex_lock(&s.lock)
            while s.outstanding > at_most and rc == 0:
                rc = pthread_cond_timedwait(&s.changed, &s.lock, &until)
            left = s.outstanding
            pthread_mutex_unlock(&s.lock)
        return left

    def hold(self, int on):
        """While on, whoever brings an answer waits: a device thread that is slow, or was killed, between write and
        answer."""
        cdef Slot *s = &slots[self.slot]
        with nogil:
            pthread_mutex_lock(&s.lock)
            s.hold = on
            pthread_cond_broadcast(&s.changed)
            pthread_mutex_unlock(&s.lock)

    @property
    def outstanding(self):
        """Requests without an answer."""
        return slots[self.slot].outstanding

    @property
    def lost(self):
        """Answers that found no room in the list."""
        return slots[self.slot].lost

    # ---- load ----

    def run_writes(self, uint64_t n, uint32_t block, uint64_t depth=1, uint64_t seed=1, uint64_t flush_every=0):
        """n writes of `block` bytes at random multiples of it, at most `depth` outstanding in this injector, from any
        number of threads at a time; a FLUSH behind each `flush_every` writes. Answers are only counted. Returns
        (nanoseconds, errors)."""
        cdef Slot *s = &slots[self.slot]
        cdef uint8_t *data = NULL
        cdef uint64_t x = (seed + 1) * <uint64_t>0x9E3779B97F4A7C15 | 1, start, i, k, failed, took
        cdef uint64_t blocks = self.volume.log.device_size // block if block else 0
        cdef mars_req r
        cdef int rc
        if block == 0 or block > MAX or block % 8 or blocks == 0:
            raise ValueError("block")
        if posix_memalign(<void **>&data, 4096, MAX) != 0:
            raise MemoryError()
        with nogil:
            for k in range(<uint64_t>(block // 8)):
                (<uint64_t *>data)[k] = next_random(&x)
            failed = s.failed
            start = mars_clock_ns(CLOCK_MONOTONIC)
            for i in range(n):
                pthread_mutex_lock(&s.lock)
                while s.outstanding >= depth:
                    pthread_cond_wait(&s.changed, &s.lock)
                pthread_mutex_unlock(&s.lock)
                (<uint64_t *>data)[0] = next_random(&x)
                self.begin(&r, 0, block)
                r.done = done_counted
                rc = self.volume.write(&r, data, (x % blocks) * block, block)
                if rc < 0:
                    done_counted(&r, rc)
                if flush_every and (i + 1) % flush_every == 0:
                    self.begin(&r, 0, 0)
                    r.done = done_counted
                    rc = self.volume.flush(&r)
                    if rc < 0:
                        done_counted(&r, rc)
            pthread_mutex_lock(&s.lock)
            while s.outstanding:
                pthread_cond_wait(&s.changed, &s.lock)
            failed = s.failed - failed
            pthread_mutex_unlock(&s.lock)
            took = mars_clock_ns(CLOCK_MONOTONIC) - start
        free(data)
        return took, failed
