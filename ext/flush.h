/* flush.h: durability of a log: FLUSH, one fdatasync for many, the flusher; the filler; the change to the next log. */
#ifndef MARS_FLUSH_H
#define MARS_FLUSH_H

#include "commit.h"

/* Locked. A flush that is being answered with 0. */
static inline void mars_log_count_flush(struct mars_log *l, const struct mars_req *req)
{
    uint64_t us = (mars_clock_ns(CLOCK_MONOTONIC) - req->start_ns) / 1000;
    int bits = us ? 64 - __builtin_clzll(us) : 0;
    l->count.flush_latency[bits < 31 ? bits : 31]++;
    l->count.flush_latency_us += us;
}

/* Locked (given up while answering). */
static inline void mars_log_answer_flushes(struct mars_log *l)
{
    int i = 0;
    while (i < l->n_flush) {
        struct mars_flush f = l->flushes[i];
        if (f.target > l->durable) {
            i++;
            continue;
        }
        l->flushes[i] = l->flushes[--l->n_flush];
        mars_log_count_flush(l, &f.req);
        pthread_mutex_unlock(&l->lock);
        f.req.done(&f.req, 0);
        pthread_mutex_lock(&l->lock);
        i = 0;
    }
}

/* Locked (given up while syncing). One fdatasync, and what it proves. */
static inline int mars_log_sync_once(struct mars_log *l)
{
    uint64_t target = l->written, more = target - l->durable;
    uint8_t digest[16];
    int rc, fd = mars_segments_newest(&l->segments)->fd;
    memcpy(digest, l->written_digest, 16);
    l->syncing = 1;
    l->busy.syncing = mars_clock_ns(CLOCK_MONOTONIC);
    l->count.syncs++;
    pthread_mutex_unlock(&l->lock);
    rc = mars_fdatasync(fd);
    pthread_mutex_lock(&l->lock);
    l->syncing = 0;
    l->busy.syncing = 0;
    if (rc < 0) {
        mars_log_fail(l, rc, MARS_FAIL_SYNC);
        return rc;
    }
    if (target > l->durable) {
        l->durable = target;
        memcpy(l->durable_digest, digest, 16);
        l->sync_bytes += more / 8 - l->sync_bytes / 8;
        if (l->resting)
            pthread_cond_broadcast(&l->back);
    }
    return 0;
}

/* fdatasync the log for waiting flushes, or once if forced and something is not durable. One at a time: who finds one
 * running leaves its flush to the runner, which looks again because its target may be newer than what the running one
 * covers. */
static inline void mars_log_sync(struct mars_log *l, int forced)
{
    pthread_mutex_lock(&l->lock);
    while (!l->syncing && l->failed == 0 && (l->n_flush || (forced && l->durable < l->written))) {
        forced = 0;
        if (mars_log_sync_once(l) < 0)
            break;
        mars_log_answer_flushes(l);
        pthread_cond_broadcast(&l->work);
        mars_log_notify(l);
    }
    if (l->failed)
        mars_log_answer_failed(l);
    pthread_mutex_unlock(&l->lock);
}

/* FLUSH: answered when everything answered before it came is durable in the log (rule 1). 0, or a negative errno (the
 * caller answers). */
static inline int mars_log_flush(struct mars_log *l, const struct mars_req *req)
{
    int rc, waits;
    pthread_mutex_lock(&l->lock);
    l->count.flushes++;
    while (l->n_flush == MARS_FLUSHES && l->failed == 0)        /* all of them wait for an fdatasync that is running */
        pthread_cond_wait(&l->work, &l->lock);
    rc = l->failed;
    waits = rc == 0 && l->durable < l->written;
    if (waits) {
        l->flushes[l->n_flush].req = *req;
        l->flushes[l->n_flush++].target = l->written;
    } else if (rc == 0) {
        mars_log_count_flush(l, req);
    }
    pthread_mutex_unlock(&l->lock);
    if (waits)
        mars_log_sync(l, 0);
    else if (rc == 0)
        req->done(req, 0);
    return rc;
}

/* All that is written now becomes durable: by an own fdatasync, or by that of somebody else that covers it. 0 or the
 * error. */
static inline int mars_log_sync_all(struct mars_log *l)
{
    uint64_t target;
    int rc;
    pthread_mutex_lock(&l->lock);
    target = l->written;
    while (l->durable < target && l->failed == 0) {
        if (l->syncing) {
            pthread_cond_wait(&l->work, &l->lock);
            continue;
        }
        pthread_mutex_unlock(&l->lock);
        mars_log_sync(l, 1);
        pthread_mutex_lock(&l->lock);
    }
    rc = l->failed;
    pthread_mutex_unlock(&l->lock);
    return rc;
}

/* ---- the flusher ---- */

/* Waits for work. 0: stopped, and all is durable. */
static inline int mars_log_flush_wait(struct mars_log *l)
{
    int more;
    pthread_mutex_lock(&l->lock);
    while (!l->stop && !l->stalled && (l->failed || l->written == l->durable))
        pthread_cond_wait(&l->work, &l->lock);
    more = !l->stop || (l->failed == 0 && l->written != l->durable);
    pthread_mutex_unlock(&l->lock);
    return more;
}

static inline int mars_log_stopping(struct mars_log *l)
{
    int stop;
    pthread_mutex_lock(&l->lock);
    stop = l->stop;
    pthread_mutex_unlock(&l->lock);
    return stop;
}

/* Body of the flusher: whatever is written becomes durable at the latest flush_ns later. Returns after a stop. */
static inline void mars_log_run_flusher(struct mars_log *l)
{
    while (mars_log_flush_wait(l)) {
        if (!mars_log_stopping(l))
            mars_sleep_ns(l->flush_ns);
        mars_log_commit(l);                 /* what waited for space */
        mars_log_sync_all(l);
    }
}

/* ---- the filler ---- */

/* Locked. Wait until it is time to fill, or until all that is wanted is filled; 0: stopped or failed. */
static inline int mars_log_fill_wait(struct mars_log *l, int *filling)
{
    while (!l->stop && l->failed == 0) {
        uint64_t wanted = mars_log_fill_wanted(l);
        if (!l->extending && mars_log_fill_misses(l, *filling ? wanted : wanted / 2))
            return *filling = 1;
        *filling = 0;
        pthread_cond_wait(&l->fill, &l->lock);
    }
    return 0;
}

/* Body of the filler. zeros: MARS_FILL_WRITE bytes, aligned. Returns after a stop. */
static inline void mars_log_run_filler(struct mars_log *l, const uint8_t *zeros)
{
    int filling = 0;
    pthread_mutex_lock(&l->lock);
    while (mars_log_fill_wait(l, &filling)) {
        struct mars_segment s = *mars_segments_newest(&l->segments);
        int rc;
        l->extending = 1;                   /* an ended log must not grow again: freeze waits */
        pthread_mutex_unlock(&l->lock);
        rc = mars_log_fill_part(l, &s, zeros);
        pthread_mutex_lock(&l->lock);
        if (rc == 0)
            mars_segments_newest(&l->segments)->allocated = s.allocated;
        l->extending = 0;
        pthread_cond_broadcast(&l->space);
        if (l->groups.commit < l->groups.next) {
            pthread_mutex_unlock(&l->lock);
            mars_log_commit(l);             /* what waited for us making room */
            pthread_mutex_lock(&l->lock);
        }
        if (rc < 0 && !l->stop) {           /* no error until a group needs the space */
            struct timespec until = mars_deadline(1000);
            pthread_cond_timedwait(&l->fill, &l->lock, &until);
        }
    }
    pthread_mutex_unlock(&l->lock);
}

/* ---- the next log ---- */

/* Let the groups in flight end, make the log durable, hold back all others. 0 or the error; -ENOSPC: a group waits for
 * room, and may wait for long. */
static inline int mars_log_freeze(struct mars_log *l)
{
    uint64_t end;
    int rc;
    pthread_mutex_lock(&l->lock);
    l->frozen = 1;
    end = mars_segments_newest(&l->segments)->base + l->seal.pos;
    /* `written` may lag behind with nothing in flight: somebody is answering an earlier group just now */
    while (!l->starving && (l->extending || ((l->in_flight || l->written != end) && l->failed == 0)))
        pthread_cond_wait(&l->space, &l->lock);
    rc = l->starving && l->failed == 0 ? -ENOSPC : 0;
    pthread_mutex_unlock(&l->lock);
    if (rc < 0)
        return rc;
    mars_log_sync_all(l);
    pthread_mutex_lock(&l->lock);
    while (l->syncing && l->failed == 0)
        pthread_cond_wait(&l->work, &l->lock);
    if (l->failed == 0 && (l->durable != end || l->written != end))
        mars_log_fail(l, -EIO, MARS_FAIL_INVARIANT);
    rc = l->failed;
    pthread_mutex_unlock(&l->lock);
    return rc;
}

/* Go on in the same log. */
static inline void mars_log_thaw(struct mars_log *l)
{
    pthread_mutex_lock(&l->lock);
    l->frozen = 0;
    pthread_mutex_unlock(&l->lock);
    mars_log_commit(l);
}

/* Locked, or before any thread. Append to the log prepared behind the newest one, from `base` on. */
static inline void mars_log_enter(struct mars_log *l, uint64_t base, uint64_t allocated)
{
    struct mars_segment *s = &l->segments.one[l->segments.n];
    s->base = base;
    s->allocated = allocated;
    l->seal = s->start;
    l->segments.n++;
    memcpy(l->written_digest, l->seal.digest, 16);
    memcpy(l->durable_digest, l->seal.digest, 16);
}

/* After mars_log_freeze: go on in the next log. header: checked. */
static inline int mars_log_switch(struct mars_log *l, int fd, const uint8_t *header, uint64_t allocated)
{
    int rc;
    pthread_mutex_lock(&l->lock);
    rc = mars_segments_prepare(&l->segments, fd, header);
    if (rc == 0) {
        mars_segments_newest(&l->segments)->end = l->written;
        mars_log_enter(l, l->written, allocated);
        l->frozen = 0;
        pthread_cond_signal(&l->fill);
    }
    pthread_mutex_unlock(&l->lock);
    if (rc == 0)
        mars_log_commit(l);
    return rc;
}

#endif
