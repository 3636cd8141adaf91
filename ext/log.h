/* log.h: the state of a log that is appended to, and what is asked of it under its lock.
 *
 * Plain C, no Python.h. commit.h appends and writes groups, flush.h makes them durable and changes the log; whoever
 * puts something on top of a log (the shadow of a primary) needs this file only. "Locked": the caller holds l->lock.
 *
 * Invariants (checked where they could break; a violation stops the log):
 *   durable <= written <= appended
 *   a request is answered without error only when written covers its group; a FLUSH only when durable covers all that
 *   was written when it came; durable only moves to a value of `written` taken before the fdatasync that proved it
 *   bytes [written, appended) are in the ring: appended - written <= ring size
 *   after the first error nothing is acknowledged any more (an fsync error is never retried)
 */
#ifndef MARS_LOG_H
#define MARS_LOG_H

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "groups.h"
#include "pace.h"
#include "request.h"
#include "segments.h"

enum {
    MARS_BATCH = 8,                         /* `batch` at first: a second write is begun beside another only for so */
    MARS_BATCH_BYTES = 256 << 10,           /* many records or bytes: small groups cost more than they save */
    MARS_IN_FLIGHT = 2,                     /* group writes at a time: two reach the device's rate (design D 4) */
    MARS_FLUSHES = 256,
    MARS_WRITE_MAX = 1 << 20,
};

enum mars_log_failure {
    MARS_FAIL_WRITE = 1, MARS_FAIL_SYNC, MARS_FAIL_READ_BACK, MARS_FAIL_INVARIANT, MARS_FAIL_MAP, MARS_FAIL_DISK
};

/* Does the log take what is written? (direct.h) ENTERING: nothing is accepted. DIRECT: nothing ever again, until the
 * log goes on; who waits for room is sent away with MARS_DIVERTED. */
enum mars_log_mode { MARS_LOGGING, MARS_ENTERING, MARS_DIRECT };
enum { MARS_DIVERTED = 1 };

#define MARS_RESENT ((uint64_t)1 << 63)     /* in a request's unique: the kernel sent it again */

struct mars_flush {
    struct mars_req req;
    uint64_t target;                        /* answered when durable reaches it */
};

/* What stands on top of the log has its say, locked. NULL: nothing does. */
struct mars_log_hooks {
    int (*room)(void *arg);                 /* 0: no record may be accepted now */
    uint64_t (*pace)(void *arg, const struct mars_pace *p);     /* ns between one record and the next */
    int (*accept)(void *arg, uint64_t off, uint64_t length, uint64_t v, uint32_t stored, uint32_t crc);
    void *arg;
};

struct mars_log_counters {
    uint64_t writes, write_bytes, flushes, groups, syncs, waits, paced, known;
    uint64_t latency[32], latency_us;       /* of writes, log2 of microseconds; their sum */
    uint64_t flush_latency[32], flush_latency_us;   /* the same of flushes */
    uint64_t sizes[8], records;             /* groups answered with up to 2^i records; the records in them */
};

struct mars_log {
    pthread_mutex_t lock;
    pthread_cond_t space;                   /* somebody may append again */
    pthread_cond_t work;                    /* the flusher has something to do, durable moved, or stop */
    pthread_cond_t back;                    /* write-back is needed, or has something to do again, or stop */
    pthread_cond_t fill;                    /* the filler has something to do, or stop */
    uint64_t device_size;
    uint32_t block_size;
    int event_fd;                           /* -1: none */
    struct mars_log_hooks hook;
    struct mars_groups groups;
    struct mars_segments segments;
    uint64_t written, durable;              /* groups.appended is the third */
    uint8_t written_digest[16], durable_digest[16];
    struct mars_expect seal;                /* chain state behind the newest sealed group */
    int started, frozen, stop;
    int mode;                               /* enum mars_log_mode */
    int failed, fail_where;                 /* negative errno and enum mars_log_failure of the first error */
    int in_flight;                          /* group writes */
    int syncing;                            /* an fdatasync runs */
    int starving;                           /* group writes that wait for room: allocated, but not promised */
    int extending;                          /* somebody allocates or fills file space of the newest log */
    int peeking;                            /* readers wait for payloads that are being copied */
    int pressed;                            /* a writer waits for what is on top of the log (hook.room) */
    int resting;                            /* write-back has nothing to do: wake it when durable moves */
    uint64_t stalled;                       /* CLOCK_MONOTONIC ns since when /mars has no room, 0 = it has */
    struct mars_flush *flushes;
    int n_flush;
    uint64_t lamport_ns;
    struct mars_pace pace;
    struct mars_busy busy;
    uint64_t last_write_ns;                 /* CLOCK_MONOTONIC: the last answer to a write */
    uint64_t *known;                        /* sorted uniques of recovered records (rule 11) */
    uint64_t n_known;
    uint64_t flush_ns;
    uint64_t allocate_step;                 /* file space at a time, at most */
    uint64_t reserve;                       /* bytes of the file system that the log never takes (rules 27, 28) */
    uint64_t fill_ahead;                    /* zeros ahead of the groups at most; 0: none */
    uint64_t sync_bytes;                    /* what the last fdatasyncs made durable, each, about */
    uint32_t batch;
    struct mars_log_counters count;
};

static inline int mars_log_init(struct mars_log *l, uint64_t device_size, uint32_t block_size, uint64_t ring_bytes,
                                int event_fd)
{
    l->device_size = device_size;
    l->block_size = block_size;
    l->event_fd = event_fd;
    l->flush_ns = 20000000;
    l->allocate_step = 64 << 20;
    l->batch = MARS_BATCH;
    l->flushes = (struct mars_flush *)calloc(MARS_FLUSHES, sizeof *l->flushes);
    return l->flushes ? mars_groups_init(&l->groups, ring_bytes) : -ENOMEM;
}

static inline void mars_log_free(struct mars_log *l)
{
    mars_groups_free(&l->groups);
    free(l->segments.one);
    free(l->flushes);
    free(l->known);
}

/* Say that durable moved, or that the log failed, stalled or recovered. */
static inline void mars_log_notify(struct mars_log *l)
{
    uint64_t one = 1;
    if (l->event_fd >= 0 && write(l->event_fd, &one, sizeof one) < 0)
        return;                             /* an eventfd that is full has said it already */
}

/* Locked. The first error stops the log for good. */
static inline void mars_log_fail(struct mars_log *l, int rc, int where)
{
    if (l->failed == 0) {
        l->failed = rc < 0 ? rc : -EIO;
        l->fail_where = where;
    }
    pthread_cond_broadcast(&l->space);
    pthread_cond_broadcast(&l->work);
    pthread_cond_broadcast(&l->back);
    pthread_cond_broadcast(&l->fill);
}

/* Sent again, and the recovered logs hold it. */
static inline int mars_log_knows(const struct mars_log *l, uint64_t unique)
{
    uint64_t lo = 0, hi = l->n_known;
    if (!(unique & MARS_RESENT))
        return 0;
    unique &= ~MARS_RESENT;
    while (lo < hi) {
        uint64_t mid = (lo + hi) / 2;
        if (l->known[mid] < unique)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < l->n_known && l->known[lo] == unique;
}

/* Locked. How far write-back may go: durable and answered. What is logged but unanswered stays behind the disk
 * position, where recovery finds its unique when the kernel sends it again (rule 11). */
static inline uint64_t mars_log_settled(struct mars_log *l)
{
    const struct mars_group *oldest = mars_groups_at(&l->groups, l->groups.first);
    if (l->groups.first < l->groups.next && oldest->vstart < l->durable)
        return oldest->vstart;
    return l->durable;
}

/* Locked (given up while waiting). Until the payload at v is there. */
static inline void mars_log_wait_copied(struct mars_log *l, uint64_t v)
{
    while (v >= mars_groups_copied(&l->groups)) {
        l->peeking++;
        pthread_cond_wait(&l->space, &l->lock);
        l->peeking--;
    }
}

/* Not locked. Copy [v, v + n) out of the ring; 0 when it is not (or no longer) there. */
static inline int mars_log_from_ring(struct mars_log *l, uint8_t *to, uint64_t v, uint64_t n)
{
    int there;
    if (!mars_ring_peek(&l->groups, v))
        return 0;
    memcpy(to, mars_ring_at(&l->groups, v), n);
    pthread_mutex_lock(&l->lock);           /* a fence: the ring's state as it is after the copy */
    there = mars_ring_peek(&l->groups, v);
    pthread_mutex_unlock(&l->lock);
    return there;
}

#endif
