/* commit.h: append, group commit, answers.
 *
 * Device threads do it themselves: a thread appends its record to the open group and runs mars_log_commit(). As long
 * as fewer than MARS_IN_FLIGHT groups are being written it closes the oldest waiting group, seals it (chain, CRC) and
 * writes it with O_DIRECT. Groups are answered in log order (rule 1), never under the lock.
 */
#ifndef MARS_COMMIT_H
#define MARS_COMMIT_H

#include "space.h"

/* Not locked. The group's bytes into the log file, whose space is there already (mars_log_has_space), unless the file
 * system promises none ahead: then the write waits for room. */
static inline int mars_log_write_group(struct mars_log *l, const struct mars_group *g, const struct mars_segment *s)
{
    uint64_t off = MARS_BLOCK + g->vstart - s->base;
    int rc, starved = 0;
    for (;;) {
        rc = mars_pwrite_all(s->fd, mars_ring_at(&l->groups, g->vstart), g->vend - g->vstart, off);
        if (!mars_no_space(rc) || mars_log_starve(l, !starved) < 0)
            break;
        starved = 1;
    }
    if (starved)
        mars_log_fed(l, rc);
    return rc;
}

/* ---- answers ---- */

/* Locked. The group's requests in the totals; now: when they were answered. */
static inline void mars_log_count(struct mars_log *l, const struct mars_group *g, uint64_t now)
{
    uint32_t i;
    for (i = 0; i < g->n_req; i++) {
        uint64_t us = (now - g->req[i].start_ns) / 1000;
        int bits = us ? 64 - __builtin_clzll(us) : 0;
        l->count.latency[bits < 31 ? bits : 31]++;
        l->count.latency_us += us;
        l->count.write_bytes += g->req[i].size;
    }
    l->count.sizes[g->n > 1 ? 32 - __builtin_clz(g->n - 1) : 0]++;  /* at most 97 records: 7 */
    l->count.records += g->n;
    l->count.writes += g->n_req;
    l->last_write_ns = now;
}

/* Locked (given up while answering). The group is ours alone as long as it is MARS_GROUP_ANSWERING. */
static inline void mars_log_answer_group(struct mars_log *l, struct mars_group *g, int error)
{
    uint64_t now;
    uint32_t i;
    g->state = MARS_GROUP_ANSWERING;
    pthread_mutex_unlock(&l->lock);
    now = mars_clock_ns(CLOCK_MONOTONIC);
    for (i = 0; i < g->n_req; i++)
        g->req[i].done(&g->req[i], error);
    pthread_mutex_lock(&l->lock);
    mars_log_count(l, g, now);
    g->state = MARS_GROUP_ANSWERED;
}

/* Locked. */
static inline void mars_log_release(struct mars_log *l)
{
    mars_groups_release(&l->groups);
    pthread_cond_broadcast(&l->space);
}

/* Locked. A group without a gap before it is in the log: `written` moves. */
static inline void mars_log_wrote(struct mars_log *l, const struct mars_group *g)
{
    int idle = l->written == l->durable;
    if (g->vend < l->written || g->vend > l->groups.appended) {
        mars_log_fail(l, -EIO, MARS_FAIL_INVARIANT);
        return;
    }
    l->written = g->vend;
    memcpy(l->written_digest, g->digest, 16);
    if (idle)
        pthread_cond_broadcast(&l->work);
}

/* Locked (given up while answering). Groups complete without a gap before them move `written` and are answered. */
static inline void mars_log_answer_done(struct mars_log *l)
{
    uint64_t i;
    for (i = l->groups.first; i < l->groups.commit; i++) {
        struct mars_group *g = mars_groups_at(&l->groups, i);
        if (g->state == MARS_GROUP_WRITING)
            break;
        if (g->state == MARS_GROUP_DONE) {
            if (l->failed == 0)
                mars_log_wrote(l, g);
            mars_log_answer_group(l, g, l->failed);
        }
    }
    mars_log_release(l);
}

/* Locked (given up while answering). After a failure: everything not being written is answered with the error. */
static inline void mars_log_answer_failed(struct mars_log *l)
{
    uint64_t i;
    if (l->groups.open)
        mars_groups_close(&l->groups);
    for (i = l->groups.first; i < l->groups.next; i++) {
        struct mars_group *g = mars_groups_at(&l->groups, i);
        if ((g->state == MARS_GROUP_WAITING && g->copying == 0) || g->state == MARS_GROUP_DONE)
            mars_log_answer_group(l, g, l->failed);
    }
    while (l->n_flush && !l->syncing) {
        struct mars_flush f = l->flushes[--l->n_flush];
        pthread_mutex_unlock(&l->lock);
        f.req.done(&f.req, l->failed);
        pthread_mutex_lock(&l->lock);
    }
    mars_log_release(l);
    mars_log_notify(l);
}

/* ---- commit ---- */

/* Locked, in log order. */
static inline void mars_log_seal(struct mars_log *l, struct mars_group *g)
{
    const struct mars_segment *s = mars_segments_newest(&l->segments);
    uint64_t now = mars_clock_ns(CLOCK_REALTIME);
    l->lamport_ns = now > l->lamport_ns ? now : l->lamport_ns + 1;
    mars_groups_seal(&l->groups, g, &l->seal, l->durable > s->base ? l->durable - s->base : 0, l->lamport_ns, now);
}

/* Locked. Another group is being written, and this one may grow: who ends that write takes it. */
static inline int mars_log_may_grow(const struct mars_log *l, const struct mars_group *g)
{
    return l->in_flight && g->state == MARS_GROUP_OPEN && g->n < l->batch && g->vend - g->vstart < MARS_BATCH_BYTES;
}

/* Locked. A write of a group that began then has ended. */
static inline void mars_log_ended(struct mars_log *l, const struct mars_group *g, uint64_t began)
{
    uint64_t now = mars_clock_ns(CLOCK_MONOTONIC);
    l->busy.writing = --l->in_flight ? now : 0;
    mars_groups_learn(&l->groups, g, now - began);
}

/* Locked (given up while writing and answering). Write waiting groups while fewer than MARS_IN_FLIGHT are being
 * written; answer what is complete in log order. Who copies the last payload of a group commits it. */
static inline void mars_log_commit_locked(struct mars_log *l)
{
    while (l->in_flight < MARS_IN_FLIGHT && !l->frozen && l->failed == 0 && l->groups.commit < l->groups.next) {
        struct mars_group *g = mars_groups_at(&l->groups, l->groups.commit);
        struct mars_segment s;
        uint64_t began;
        int rc;
        if (!mars_log_has_space(l, g)) {
            if (l->stalled || l->extending)
                break;
            continue;
        }
        if (mars_log_may_grow(l, g))
            break;
        if (g->state == MARS_GROUP_OPEN)
            mars_groups_close(&l->groups);
        if (g->copying)
            break;
        if (g->n == 0) {
            mars_log_fail(l, -EIO, MARS_FAIL_INVARIANT);
            break;
        }
        mars_log_seal(l, g);
        g->state = MARS_GROUP_WRITING;
        l->groups.commit++;
        began = mars_clock_ns(CLOCK_MONOTONIC);
        if (l->in_flight++ == 0)
            l->busy.writing = began;
        l->count.groups++;
        s = *mars_segments_newest(&l->segments);
        pthread_mutex_unlock(&l->lock);
        rc = mars_log_write_group(l, g, &s);
        pthread_mutex_lock(&l->lock);
        mars_log_ended(l, g, began);
        if (rc < 0)
            mars_log_fail(l, rc, MARS_FAIL_WRITE);
        g->state = MARS_GROUP_DONE;
        mars_log_answer_done(l);
    }
    if (l->failed)
        mars_log_answer_failed(l);
}

static inline void mars_log_commit(struct mars_log *l)
{
    pthread_mutex_lock(&l->lock);
    mars_log_commit_locked(l);
    pthread_mutex_unlock(&l->lock);
}

/* ---- append ---- */

/* Locked. Write-back has to come now, however little there is. */
static inline void mars_log_press(struct mars_log *l)
{
    if (!l->pressed) {
        l->pressed = 1;
        pthread_cond_broadcast(&l->back);
    }
}

/* Locked (given up while waiting). The record's turn, while what writers use up comes to its end (pace.h). */
static inline void mars_log_keep_pace(struct mars_log *l, uint32_t span)
{
    uint64_t gap, room_gap, wait;
    if (!l->hook.pace || l->pace.record_ns == 0 || l->mode != MARS_LOGGING || l->stalled)
        return;
    gap = l->hook.pace(l->hook.arg, &l->pace);
    room_gap = mars_pace_room_gap(&l->pace, l->groups.appended, span);
    gap = gap > room_gap ? gap : room_gap;
    if (gap == 0)
        return;
    mars_log_press(l);
    wait = mars_pace_turn(&l->pace, gap, mars_clock_ns(CLOCK_MONOTONIC));
    if (wait) {
        l->count.paced++;
        pthread_mutex_unlock(&l->lock);
        mars_sleep_ns(wait);
        pthread_mutex_lock(&l->lock);
    }
}

/* Locked. 1 when the open group takes a payload of `span` bytes now, 0 when the caller has to wait. */
static inline int mars_log_room(struct mars_log *l, uint32_t span)
{
    if (l->mode == MARS_ENTERING)
        return 0;
    if (l->hook.room && !l->hook.room(l->hook.arg)) {
        mars_log_press(l);
        return 0;
    }
    return mars_groups_room(&l->groups, span, l->written);
}

/* Locked (given up while waiting). Until a record fits. */
static inline void mars_log_wait_room(struct mars_log *l, uint32_t span)
{
    while (l->failed == 0 && !l->stop && l->mode != MARS_DIRECT && !mars_log_room(l, span)) {
        l->count.waits++;
        mars_log_commit_locked(l);
        if (l->failed == 0 && !l->stop && l->mode != MARS_DIRECT && !mars_log_room(l, span)) {
            struct timespec until = mars_deadline(50);
            pthread_cond_timedwait(&l->space, &l->lock, &until);
        }
    }
}

/* Locked (given up while copying). The record into the open group; its payload into the ring. */
static inline void mars_log_take(struct mars_log *l, const struct mars_req *req, const struct mars_record *r,
                                 const uint8_t *data, uint32_t span)
{
    uint64_t v = mars_groups_place(&l->groups, r->stored);
    struct mars_group *g = mars_groups_add(&l->groups, r, span, req);
    if (r->stored == 0)
        return;
    pthread_mutex_unlock(&l->lock);
    mars_groups_copy(&l->groups, v, data, r->stored, span);
    pthread_mutex_lock(&l->lock);
    g->copying--;                           /* the group was nobody's to give away until now */
    if (g->copying == 0 && l->peeking)
        pthread_cond_broadcast(&l->space);
}

/* One record into the open group, waiting while there is no room, and commit. 0, MARS_DIVERTED (the log takes nothing
 * now) or a negative errno (not answered then). */
static inline int mars_log_append(struct mars_log *l, const struct mars_req *req, const struct mars_record *r,
                                  const uint8_t *data)
{
    uint32_t span = (r->stored + MARS_PAYLOAD_ALIGN - 1) & ~(MARS_PAYLOAD_ALIGN - 1);
    int rc = 0;
    pthread_mutex_lock(&l->lock);
    mars_log_keep_pace(l, span);
    mars_log_wait_room(l, span);
    if (l->failed || l->stop) {
        rc = l->failed ? l->failed : -EIO;
    } else if (l->mode == MARS_DIRECT) {
        rc = MARS_DIVERTED;
    } else if (l->hook.accept) {
        rc = l->hook.accept(l->hook.arg, r->offset, r->length, mars_groups_place(&l->groups, r->stored), r->stored,
                            r->crc);
        if (rc < 0)
            mars_log_fail(l, rc, MARS_FAIL_INVARIANT);
    }
    if (rc == 0) {
        mars_log_take(l, req, r, data, span);
        mars_log_commit_locked(l);
    }
    pthread_mutex_unlock(&l->lock);
    return rc;
}

/* Inside the device, and in whole logical blocks: no disk takes anything else, and a logged record is for ever. */
static inline int mars_log_takes(const struct mars_log *l, const uint8_t *data, uint64_t off, uint64_t length)
{
    return l->started && length && (!data || length <= MARS_WRITE_MAX) && mars_inside(off, length, l->device_size) &&
           !((off | length) & (l->block_size - 1));
}

/* Log a write (data) or a discard or write of zeros (NULL), and see that it is committed. 0: it is or will be
 * answered; MARS_DIVERTED or a negative errno: the caller answers. */
static inline int mars_log_record(struct mars_log *l, const struct mars_req *req, int kind, const uint8_t *data,
                                  uint64_t off, uint64_t length)
{
    struct mars_record r;
    if (!mars_log_takes(l, data, off, length))
        return -EIO;
    if (mars_log_knows(l, req->unique)) {
        l->count.known++;
        req->done(req, 0);
        return 0;
    }
    memset(&r, 0, sizeof r);
    r.type = (uint8_t)kind;
    r.flags = MARS_RECORD_MUST;
    r.offset = off;
    r.length = length;
    r.unique = req->unique & ~MARS_RESENT;
    if (data) {
        r.stored = (uint32_t)length;
        r.crc = mars_crc32c(0, data, length);
    }
    return mars_log_append(l, req, &r, data);
}

#endif
