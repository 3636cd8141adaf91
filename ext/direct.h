/* direct.h: writes that go past the log, to the data device at once, because /mars is full (rule 27).
 *
 * mode LOGGING -> ENTERING (mars_direct_hold: nothing is accepted) -> [the owner: log frozen, all of it written back,
 * the gap log durable] -> DIRECT (mars_direct_enter: what had been accepted and never came into the log goes first, in
 * the order of the log) -> mars_direct_leave -> LOGGING.
 *
 * Invariants:
 *   the bit of a region is durable in the map before the first byte of a direct write into that region
 *   in mode DIRECT nothing is in the log's ring, and nothing of the log is missing on the data device
 *   a FLUSH in mode DIRECT is an fdatasync of the data device
 *   `held`: no direct write is begun; `busy` counts those that are under way
 *
 * The map: one bit a region of 1 << shift bytes, in sectors of 512 bytes behind a header block that the control plane
 * writes. Bits are only ever set, each sector has its own CRC, so a write torn between sectors loses nothing durable.
 */
#ifndef MARS_DIRECT_H
#define MARS_DIRECT_H

#include <sys/mman.h>

#include "flush.h"

enum {
    MARS_MAP_SECTOR = 512,
    MARS_MAP_HEAD = 24,                     /* u32 CRC-32C of the rest, u32 number, id */
    MARS_MAP_BITS = (MARS_MAP_SECTOR - MARS_MAP_HEAD) * 8,
};

struct mars_map {
    pthread_mutex_t lock;
    int fd;                                 /* O_DIRECT | O_DSYNC */
    int shift;
    uint64_t bytes;                         /* of all sectors; a multiple of MARS_BLOCK */
    uint8_t *image;                         /* the sectors */
    uint8_t *safe;                          /* a bit a region, plain: durable. Read without the lock */
    uint64_t syncs, regions;
};

struct mars_direct {
    struct mars_map map;
    int disk_fd;
    int held, busy;
    uint64_t epoch;                         /* even: logging; moves under the log's lock */
    uint64_t writes, write_bytes, flushes, diverted, errors;
};

/* ---- the map ---- */

static inline void mars_map_close(struct mars_map *m)
{
    if (m->image)
        munmap(m->image, m->bytes);
    free(m->safe);
    m->image = m->safe = NULL;
    m->fd = -1;
}

/* The map's sectors as they stand in the file (checked by the control plane). The descriptor stays the caller's. */
static inline int mars_map_open(struct mars_map *m, int fd, int shift, const uint8_t *sectors, uint64_t bytes)
{
    uint64_t s, i, n = bytes / MARS_MAP_SECTOR, plain = (MARS_MAP_SECTOR - MARS_MAP_HEAD);
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    mars_map_close(m);
    if (p == MAP_FAILED)
        return -ENOMEM;
    m->safe = (uint8_t *)malloc(n * plain);
    if (!m->safe) {
        munmap(p, bytes);
        return -ENOMEM;
    }
    m->image = (uint8_t *)p;
    m->bytes = bytes;
    memcpy(m->image, sectors, bytes);
    m->regions = 0;
    for (s = 0; s < n; s++)
        memcpy(m->safe + s * plain, m->image + s * MARS_MAP_SECTOR + MARS_MAP_HEAD, plain);
    for (i = 0; i < n * plain; i++)
        m->regions += (uint64_t)__builtin_popcount(m->safe[i]);
    m->fd = fd;
    m->shift = shift;
    return 0;
}

static inline int mars_map_has(const struct mars_map *m, uint64_t first, uint64_t last)
{
    uint64_t r;
    for (r = first; r <= last; r++)
        if (!(__atomic_load_n(&m->safe[r / 8], __ATOMIC_ACQUIRE) & (1 << r % 8)))
            return 0;
    return 1;
}

/* The map's lock held. Set the bits of one block of sectors and write it. */
static inline int mars_map_write(struct mars_map *m, uint64_t first, uint64_t last)
{
    uint64_t r, s, from = first / MARS_MAP_BITS, to = last / MARS_MAP_BITS;
    uint64_t at = from * MARS_MAP_SECTOR & ~(uint64_t)(MARS_BLOCK - 1), end = mars_up((to + 1) * MARS_MAP_SECTOR);
    int rc;
    for (r = first; r <= last; r++)
        m->image[r / MARS_MAP_BITS * MARS_MAP_SECTOR + MARS_MAP_HEAD + r % MARS_MAP_BITS / 8] |= (uint8_t)(1 << r % 8);
    for (s = from; s <= to; s++) {
        uint8_t *sector = m->image + s * MARS_MAP_SECTOR;
        uint32_t crc = mars_crc32c(0, sector + 4, MARS_MAP_SECTOR - 4);
        memcpy(sector, &crc, 4);
    }
    rc = mars_pwrite_all(m->fd, m->image + at, end - at, MARS_BLOCK + at);
    m->syncs++;
    return rc;
}

/* The regions of [off, off + length) are durable in the map when this returns 0. An error is for good. */
static inline int mars_map_mark(struct mars_map *m, uint64_t off, uint64_t length)
{
    uint64_t first = off >> m->shift, last = (off + length - 1) >> m->shift, r;
    int rc = 0;
    if (last / MARS_MAP_BITS >= m->bytes / MARS_MAP_SECTOR)
        return -EINVAL;
    if (mars_map_has(m, first, last))
        return 0;
    pthread_mutex_lock(&m->lock);
    if (!mars_map_has(m, first, last)) {
        rc = mars_map_write(m, first, last);
        for (r = first; rc == 0 && r <= last; r++)
            if (!(__atomic_fetch_or(&m->safe[r / 8], (uint8_t)(1 << r % 8), __ATOMIC_ACQ_REL) & (1 << r % 8)))
                m->regions++;
    }
    pthread_mutex_unlock(&m->lock);
    return rc;
}

/* ---- one request ---- */

/* Not locked. The bytes, or zeros (data NULL), on the data device, after the map. 0 or a negative errno. */
static inline int mars_direct_put(struct mars_log *l, struct mars_direct *d, const uint8_t *data, uint64_t off,
                                  uint64_t length)
{
    void *copy = NULL;
    int rc = mars_map_mark(&d->map, off, length);
    if (rc < 0) {                           /* which regions changed is not known any more: nothing goes on */
        pthread_mutex_lock(&l->lock);
        mars_log_fail(l, rc, MARS_FAIL_MAP);
        pthread_mutex_unlock(&l->lock);
        mars_log_notify(l);
        return rc;
    }
    if (!data)
        return mars_zero_range(d->disk_fd, off, length);
    if ((uintptr_t)data & (MARS_BLOCK - 1)) {
        if (posix_memalign(&copy, MARS_BLOCK, length) != 0)
            return -ENOMEM;
        memcpy(copy, data, length);
        data = (const uint8_t *)copy;
    }
    rc = mars_pwrite_all(d->disk_fd, data, length, off);
    free(copy);
    return rc;
}

/* 1: the request goes past the log, and is counted in `busy`; 0: it goes into the log; or a negative errno. The first
 * look costs nothing while the log is written: a write that comes too late is diverted by the log itself, and a FLUSH
 * that has to cover a direct write comes after that was answered, so it sees the mode. */
static inline int mars_direct_begin(struct mars_log *l, struct mars_direct *d)
{
    int rc = 0;
    if (__atomic_load_n(&l->mode, __ATOMIC_ACQUIRE) != MARS_DIRECT)
        return 0;
    pthread_mutex_lock(&l->lock);
    while (l->mode == MARS_DIRECT && d->held && l->failed == 0 && !l->stop)
        pthread_cond_wait(&l->space, &l->lock);
    if (l->mode == MARS_DIRECT)
        rc = l->failed ? l->failed : l->stop ? -EIO : 1;
    d->busy += rc == 1;
    pthread_mutex_unlock(&l->lock);
    return rc;
}

static inline void mars_direct_end(struct mars_log *l, struct mars_direct *d, const struct mars_req *req, int rc)
{
    uint64_t us = (mars_clock_ns(CLOCK_MONOTONIC) - req->start_ns) / 1000;
    int bits = us ? 64 - __builtin_clzll(us) : 0;
    pthread_mutex_lock(&l->lock);
    if (rc == 0) {
        d->writes++;
        d->write_bytes += req->size;
        l->count.writes++;                  /* an answer is an answer: rates count on */
        l->count.write_bytes += req->size;
        l->count.latency[bits < 31 ? bits : 31]++;
        l->count.latency_us += us;
    } else {
        d->errors++;
    }
    if (--d->busy == 0)
        pthread_cond_broadcast(&l->space);
    pthread_mutex_unlock(&l->lock);
}

/* A write (data), or a discard or zeros (NULL), of a request for which mars_direct_begin said 1. Answers, or returns
 * a negative errno (the caller answers): the error of the data device for this request, as without us. */
static inline int mars_direct_write(struct mars_log *l, struct mars_direct *d, const struct mars_req *req,
                                    const uint8_t *data, uint64_t off, uint64_t length)
{
    int rc = -EIO;
    if (mars_log_takes(l, data, off, length))
        rc = mars_log_knows(l, req->unique) ? 0 : mars_direct_put(l, d, data, off, length);
    if (rc == 0)
        req->done(req, 0);
    mars_direct_end(l, d, req, rc);
    return rc;
}

/* FLUSH: everything answered before is durable on the data device. An error stops all (it is never retried). */
static inline int mars_direct_flush(struct mars_log *l, struct mars_direct *d, const struct mars_req *req)
{
    int rc = mars_fdatasync(d->disk_fd);
    pthread_mutex_lock(&l->lock);
    d->flushes++;
    if (rc < 0)
        mars_log_fail(l, rc, MARS_FAIL_DISK);
    else
        mars_log_count_flush(l, req);
    if (--d->busy == 0)
        pthread_cond_broadcast(&l->space);
    pthread_mutex_unlock(&l->lock);
    if (rc == 0)
        req->done(req, 0);
    else
        mars_log_notify(l);
    return rc;
}

/* ---- entering ---- */

/* From now on nothing is accepted. */
static inline int mars_direct_hold(struct mars_log *l, struct mars_direct *d)
{
    int rc;
    pthread_mutex_lock(&l->lock);
    rc = l->failed ? l->failed : l->mode == MARS_LOGGING ? 0 : -EINVAL;
    if (rc == 0) {
        l->mode = MARS_ENTERING;
        d->epoch++;
    }
    pthread_mutex_unlock(&l->lock);
    return rc;
}

/* It did not come about: the log goes on (thaw it besides). */
static inline void mars_direct_give_up(struct mars_log *l, struct mars_direct *d)
{
    pthread_mutex_lock(&l->lock);
    if (l->mode == MARS_ENTERING) {
        l->mode = MARS_LOGGING;
        d->epoch++;
    }
    pthread_cond_broadcast(&l->space);
    pthread_mutex_unlock(&l->lock);
}

/* Not locked; nobody else touches the group. Its records to the data device, in their order. 0 or the first error. */
static inline int mars_direct_put_group(struct mars_log *l, struct mars_direct *d, const struct mars_group *g)
{
    const uint8_t *block = mars_ring_at(&l->groups, g->vstart);
    const struct mars_record *r = (const struct mars_record *)(block + MARS_TABLE_OFFSET);
    uint64_t v = g->vstart + MARS_BLOCK;
    uint32_t i;
    int rc = 0;
    for (i = 0; i < g->n && rc == 0; i++) {
        rc = mars_direct_put(l, d, r[i].stored ? mars_ring_at(&l->groups, v) : NULL, r[i].offset, r[i].length);
        v += mars_payload_span(&r[i]);
    }
    return rc;
}

/* Locked (given up while writing). What was accepted and never came into the log; the log is frozen. */
static inline void mars_direct_divert(struct mars_log *l, struct mars_direct *d)
{
    if (l->groups.open)
        mars_groups_close(&l->groups);
    while (l->groups.commit < l->groups.next && l->failed == 0) {
        struct mars_group *g = mars_groups_at(&l->groups, l->groups.commit);
        int rc;
        l->peeking++;                       /* who copies the last payload wakes us */
        while (g->copying)
            pthread_cond_wait(&l->space, &l->lock);
        l->peeking--;
        l->groups.commit++;
        pthread_mutex_unlock(&l->lock);
        rc = mars_direct_put_group(l, d, g);
        pthread_mutex_lock(&l->lock);
        d->diverted += g->n;
        mars_log_answer_group(l, g, rc);
    }
    mars_log_release(l);
}

/* Locked. May the log be left behind? It is frozen, durable and on the data device to its end. */
static inline int mars_direct_may_enter(const struct mars_log *l, uint64_t writeback)
{
    return l->mode == MARS_ENTERING && l->frozen && !l->in_flight && !l->starving && !l->extending &&
           l->written == l->durable && writeback == l->durable && l->n_flush == 0;
}

#endif
