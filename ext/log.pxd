"""Declarations of ext/log.h and what it includes, for Cython; extern only, no run-time dependency."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t, int32_t
from format cimport mars_expect
from threads cimport pthread_mutex_t, pthread_cond_t

cdef extern from "request.h" nogil:
    struct mars_req:
        void (*done)(const mars_req *req, int error) noexcept nogil
        uint64_t unique
        uint64_t start_ns
        uint32_t size
        int32_t fd

cdef extern from "groups.h" nogil:
    struct mars_groups:
        uint8_t *ring
        uint64_t first
        uint64_t next
        uint64_t low
        uint64_t high
        uint64_t appended
    uint64_t mars_up(uint64_t v)

cdef extern from "segments.h" nogil:
    uint64_t MARS_UNKNOWN
    struct mars_segment:
        uint64_t base
        uint64_t end
        int fd
        int pins
        uint64_t allocated
        mars_expect start
    struct mars_segments:
        mars_segment *one
        int n
    int mars_segments_prepare(mars_segments *s, int fd, const uint8_t *header)
    mars_segment *mars_segments_newest(mars_segments *s)
    mars_segment *mars_segments_find(mars_segments *s, uint64_t v)
    void mars_segments_drop_oldest(mars_segments *s)

cdef extern from "log.h" nogil:
    enum:
        MARS_WRITE_MAX
        MARS_FAIL_WRITE
        MARS_FAIL_SYNC
        MARS_FAIL_READ_BACK
        MARS_FAIL_INVARIANT
        MARS_FAIL_MAP
        MARS_FAIL_DISK
        MARS_LOGGING
        MARS_ENTERING
        MARS_DIRECT
        MARS_DIVERTED
    struct mars_pace:
        uint64_t record_ns
        uint64_t kib_ns
        uint64_t disk
        uint64_t room
        uint64_t low
    struct mars_busy:
        uint64_t writing
        uint64_t syncing
    void mars_pace_learn(mars_pace *p, uint64_t records, uint64_t bytes, uint64_t took_ns)
    struct mars_pace_look:
        uint64_t at
        uint64_t records
    int mars_pace_hurry(const mars_pace *p, mars_pace_look *last, uint64_t now, uint64_t records, uint64_t free_nodes,
                        uint64_t nodes, uint64_t kib)
    uint64_t mars_pace_gap(uint64_t ns, uint64_t left, uint64_t full)
    struct mars_log_hooks:
        int (*room)(void *arg) noexcept nogil
        uint64_t (*pace)(void *arg, const mars_pace *p) noexcept nogil
        int (*accept)(void *arg, uint64_t off, uint64_t length, uint64_t v, uint32_t stored,
                      uint32_t crc) noexcept nogil
        void *arg
    struct mars_log_counters:
        uint64_t writes
        uint64_t write_bytes
        uint64_t flushes
        uint64_t groups
        uint64_t syncs
        uint64_t waits
        uint64_t paced
        uint64_t known
        uint64_t latency[32]
        uint64_t latency_us
        uint64_t flush_latency[32]
        uint64_t flush_latency_us
        uint64_t sizes[8]
        uint64_t records
    struct mars_log:
        pthread_mutex_t lock
        pthread_cond_t space
        pthread_cond_t work
        pthread_cond_t back
        pthread_cond_t fill
        uint64_t device_size
        uint32_t block_size
        mars_log_hooks hook
        mars_groups groups
        mars_segments segments
        uint64_t written
        uint64_t durable
        uint8_t durable_digest[16]
        mars_expect seal
        int started
        int frozen
        int stop
        int mode
        int failed
        int fail_where
        int in_flight
        int pressed
        mars_pace pace
        mars_busy busy
        uint64_t stalled
        uint64_t lamport_ns
        uint64_t *known
        uint64_t n_known
        uint64_t flush_ns
        uint64_t allocate_step
        uint64_t reserve
        uint64_t fill_ahead
        uint32_t batch
        mars_log_counters count
    int mars_log_init(mars_log *l, uint64_t device_size, uint32_t block_size, uint64_t ring_bytes, int event_fd)
    void mars_log_free(mars_log *l)
    void mars_log_notify(mars_log *l)
    void mars_log_fail(mars_log *l, int rc, int where)
    uint64_t mars_log_settled(mars_log *l)
    int mars_log_from_ring(mars_log *l, uint8_t *to, uint64_t v, uint64_t n)
    void mars_log_wait_copied(mars_log *l, uint64_t v)
