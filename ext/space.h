/* space.h: room in the log file: allocated when a group needs it, filled with zeros ahead of it.
 *
 * Space that was written once becomes durable about three times faster than space that is only allocated: the file
 * system changes its own records at the first write of each block. A log file that is used again has such space. Where
 * a log has not, a thread of its own writes zeros: as much ahead as the log holds already, between MARS_FILL_LEAST and
 * fill_ahead; nothing while much becomes durable by one fdatasync, because such a burst would share the device with the
 * zeros and hardly gain. What a burst allocated and did not use stays unwritten, so it allocates little at a time.
 *
 * Invariant: zeros are written only behind `allocated`, groups only before it, and `allocated` moves only in the hands
 * of the one who has set `extending`. A writer that is faster waits for the part being filled, and then allocates
 * without filling. Zeros are no part of any promise: nobody waits until they are durable.
 */
#ifndef MARS_SPACE_H
#define MARS_SPACE_H

#include <sys/statvfs.h>

#include "disk.h"
#include "log.h"

enum {
    MARS_FILL_LEAST = 16 << 20,
    MARS_FILL_PART = 4 << 20,               /* so long may a writer wait for zeros */
    MARS_FILL_WRITE = 1 << 20,
    MARS_FILL_LONG_SYNC = 2 << 20,
    MARS_ALLOCATE_LEAST = 4 << 20,
};

/* ---- how much ahead ---- */

/* Locked. Bytes behind the newest group that should be filled; 0: none at the moment. */
static inline uint64_t mars_log_fill_wanted(const struct mars_log *l)
{
    uint64_t at = l->groups.appended - l->segments.one[l->segments.n - 1].base;
    uint64_t ahead = at < MARS_FILL_LEAST ? MARS_FILL_LEAST : at;
    if (l->frozen || l->stalled || l->sync_bytes > MARS_FILL_LONG_SYNC)
        return 0;
    return ahead < l->fill_ahead ? ahead : l->fill_ahead;
}

/* Locked. Less than `ahead` is there behind the newest group. */
static inline int mars_log_fill_misses(const struct mars_log *l, uint64_t ahead)
{
    const struct mars_segment *s = &l->segments.one[l->segments.n - 1];
    return ahead && s->allocated < MARS_BLOCK + l->groups.appended - s->base + ahead;
}

/* Locked. It is time to fill. */
static inline int mars_log_fill_low(const struct mars_log *l)
{
    return mars_log_fill_misses(l, mars_log_fill_wanted(l) / 2);
}

/* ---- allocate ---- */

/* Locked. Nothing more fits onto /mars, from now on. */
static inline void mars_log_stalls(struct mars_log *l)
{
    if (l->stalled == 0) {
        l->stalled = mars_clock_ns(CLOCK_MONOTONIC);
        mars_log_notify(l);
    }
}

/* Locked. The next group has room; who needs more than there is says so again. */
static inline void mars_log_has_room(struct mars_log *l)
{
    if (l->stalled && l->starving == 0) {
        l->stalled = 0;
        mars_log_notify(l);
    }
}

/* Not locked. mars_file_space, but for the reserve: without it nothing could be said or prepared on a full /mars. */
static inline int mars_log_space(struct mars_log *l, struct mars_segment *s, uint64_t step)
{
    struct statvfs v;
    uint64_t room;
    if (l->reserve && fstatvfs(s->fd, &v) == 0) {
        room = (uint64_t)v.f_bavail * v.f_frsize;
        __atomic_store_n(&l->pace.room, room, __ATOMIC_RELAXED);
        if (room < step + l->reserve)
            return -ENOSPC;
    }
    return mars_file_space(s, step);
}

/* Not locked. File space for the newest log; s is the caller's copy. */
static inline int mars_log_allocate(struct mars_log *l, struct mars_segment *s, uint64_t step)
{
    int rc = mars_log_space(l, s, step);
    if (rc == 0) {
        struct mars_segment *newest;
        pthread_mutex_lock(&l->lock);
        newest = mars_segments_newest(&l->segments);
        if (newest->fd == s->fd && newest->allocated < s->allocated)
            newest->allocated = s->allocated;
        pthread_mutex_unlock(&l->lock);
    }
    return rc;
}

/* Locked. Bytes of file space to allocate at a time: what is written in the time of one fdatasync, about. */
static inline uint64_t mars_log_step(const struct mars_log *l)
{
    uint64_t step = l->sync_bytes < MARS_ALLOCATE_LEAST ? MARS_ALLOCATE_LEAST : mars_up(l->sync_bytes);
    return step < l->allocate_step ? step : l->allocate_step;
}

/* Not locked. File bytes up to `end`, `step` at a time if possible. */
static inline int mars_log_extend(struct mars_log *l, struct mars_segment *s, uint64_t end, uint64_t step)
{
    int rc;
    do
        rc = mars_log_allocate(l, s, step);
    while (rc == 0 && end > s->allocated);
    if (mars_no_space(rc))
        rc = mars_log_allocate(l, s, end - s->allocated);       /* the rest of /mars may still take this group */
    return rc;
}

/* Locked (given up while allocating). 1: the file has room for this group. 0: somebody is making room, or /mars is
 * full: then the group stays where it is, so that a rotation is still possible, and the flusher tries again. */
static inline int mars_log_has_space(struct mars_log *l, struct mars_group *g)
{
    struct mars_segment s = *mars_segments_newest(&l->segments);
    uint64_t end = MARS_BLOCK + mars_up(g->vend) - s.base, step = mars_log_step(l);
    int rc;
    if (mars_log_fill_low(l))
        pthread_cond_signal(&l->fill);
    if (end <= s.allocated) {
        mars_log_has_room(l);
        return 1;
    }
    if (l->extending)
        return 0;
    l->extending = 1;
    pthread_mutex_unlock(&l->lock);
    rc = mars_log_extend(l, &s, end, step);
    pthread_mutex_lock(&l->lock);
    l->extending = 0;
    pthread_cond_broadcast(&l->space);
    if (mars_no_space(rc)) {
        if (l->stalled == 0) {
            mars_log_stalls(l);
            pthread_cond_broadcast(&l->work);
        }
        return 0;
    }
    if (rc < 0) {
        mars_log_fail(l, rc, MARS_FAIL_WRITE);
        return 0;
    }
    mars_log_has_room(l);
    /* the world may have changed meanwhile: look again */
    if (l->frozen || l->groups.commit >= l->groups.next || g != mars_groups_at(&l->groups, l->groups.commit))
        return 0;
    s = *mars_segments_newest(&l->segments);
    return MARS_BLOCK + mars_up(g->vend) - s.base <= s.allocated;
}

/* Not locked. There is no room for a group that is being written: say so and wait a moment. 0: try again; -1: the log
 * is to stop, or has failed. Room may have to be made by deleting what a rotation waits for: it is given up then. */
static inline int mars_log_starve(struct mars_log *l, int first)
{
    int over;
    pthread_mutex_lock(&l->lock);
    l->starving += first;
    over = l->stop || l->failed;
    if (!over)
        mars_log_stalls(l);
    pthread_cond_broadcast(&l->space);
    pthread_mutex_unlock(&l->lock);
    if (!over)
        mars_sleep_ns(100000000);
    return -over;
}

/* Not locked. A group that had no room is written (or the log stops). */
static inline void mars_log_fed(struct mars_log *l, int rc)
{
    pthread_mutex_lock(&l->lock);
    l->starving--;
    if (rc == 0)
        mars_log_has_room(l);
    pthread_mutex_unlock(&l->lock);
}

/* ---- fill ---- */

/* Not locked. One part of zeros behind s->allocated; s is the caller's copy. */
static inline int mars_log_fill_part(struct mars_log *l, struct mars_segment *s, const uint8_t *zeros)
{
    uint64_t at = s->allocated;
    int rc = mars_log_space(l, s, MARS_FILL_PART);
    for (; rc == 0 && s->allocated != MARS_UNKNOWN && at < s->allocated; at += MARS_FILL_WRITE)
        rc = mars_pwrite_all(s->fd, zeros, MARS_FILL_WRITE, at);
    return rc;
}

#endif
