/* backlog.h: when write-back is due. A burst passes first: what comes meanwhile may replace it, and on one disk (or one
 * processor) write-back takes its share from the writers.
 *
 * Due: somebody asked; or the index is crowded (writers would have to wait soon), or waits already; or `most` bytes are
 * there; or nothing was written for idle_ns; or the oldest has waited for age_ns: then all that is there at that time.
 */
#ifndef MARS_BACKLOG_H
#define MARS_BACKLOG_H

#include "log.h"

struct mars_backlog {
    uint64_t most, idle_ns, age_ns;
    uint64_t since;                         /* CLOCK_MONOTONIC ns: what is there is not older */
    uint64_t goal;                          /* address: due up to here, because of its age */
    int kicked;                             /* once: due, whatever there is */
};

/* Locked. `have` bytes are there from address `writeback` on. 1: due. 0: not before *until, but for l->back. */
static inline int mars_backlog_due(const struct mars_log *l, struct mars_backlog *b, uint64_t writeback, uint64_t have,
                                   int crowded, uint64_t now, uint64_t *until)
{
    uint64_t idle = l->last_write_ns + b->idle_ns;
    if (have == 0) {
        b->since = now;
        *until = now + (l->durable == writeback ? b->age_ns : b->idle_ns);  /* durable, and being answered */
        return 0;
    }
    if (have >= b->most || crowded || l->pressed || writeback < b->goal || now >= idle)
        return 1;
    if (now >= b->since + b->age_ns) {
        b->goal = writeback + have;
        b->since = now;
        return 1;
    }
    *until = idle < b->since + b->age_ns ? idle : b->since + b->age_ns;
    return 0;
}

/* Locked (given up while waiting). Until write-back is due, or for age_ns; crowded: of the owner's index. Returns the
 * bytes that are there, 0 when it is not due. */
static inline uint64_t mars_backlog_wait(struct mars_log *l, struct mars_backlog *b, uint64_t writeback,
                                         int (*crowded)(void *), void *arg)
{
    uint64_t begin = mars_clock_ns(CLOCK_MONOTONIC), now = begin, until = 0, have;
    int due;
    while (1) {
        have = mars_log_settled(l) - writeback;
        due = mars_backlog_due(l, b, writeback, have, crowded(arg), now, &until) || b->kicked;
        if (due || l->stop || now >= begin + b->age_ns)
            break;
        struct timespec when = mars_deadline((until - now) / 1000000 + 1);
        l->resting = have == 0;
        pthread_cond_timedwait(&l->back, &l->lock, &when);
        l->resting = 0;
        now = mars_clock_ns(CLOCK_MONOTONIC);
    }
    b->kicked = 0;
    return due ? have : 0;
}

#endif
