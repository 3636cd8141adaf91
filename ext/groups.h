/* groups.h: the newest bytes of a log in memory: a ring buffer and the groups in it, from open to answered.
 *
 * Plain C without lock and without I/O: the owner (log.h) serialises, except mars_ring_peek. "v" is an address: it
 * grows for ever and stands in the ring at v % size.
 *
 * Invariants:
 *   first <= commit <= next <= first + MARS_GROUPS
 *   a group that is closed has a record: one that is open and empty takes any
 *   groups [commit, next) are not sealed yet; only the newest of them may be open
 *   ring memory is overwritten only after `high` says so
 *   a payload is copied in without the lock: a group is sealed only when `copying` is 0, and what lies at or behind
 *   mars_groups_copied() may be read by nobody yet
 */
#ifndef MARS_GROUPS_H
#define MARS_GROUPS_H

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "request.h"
#include "ring.h"

enum {
    MARS_GROUPS = 64,                       /* groups open, waiting, being written or being answered */
    MARS_GROUP_PAYLOAD = 8 << 20,           /* a group is closed before it gets longer than this, */
    MARS_GROUP_LEAST = 256 << 10,           /* on a slow disk than this: all of it waits for its last byte */
    MARS_GROUP_LONG_NS = 100000000,
};

enum mars_group_state {
    MARS_GROUP_FREE, MARS_GROUP_OPEN, MARS_GROUP_WAITING, MARS_GROUP_WRITING, MARS_GROUP_DONE, MARS_GROUP_ANSWERING,
    MARS_GROUP_ANSWERED
};

struct mars_group {
    uint64_t vstart;                        /* address of its header block */
    uint64_t vend;                          /* behind the last payload; aligned once closed */
    uint32_t n, n_req;
    uint32_t copying;                       /* payloads that have their place and are not there yet */
    int state;                              /* enum mars_group_state */
    uint8_t digest[16];                     /* behind the group */
    struct mars_req req[MARS_MAX_RECORDS];
};

struct mars_groups {
    uint8_t *ring;
    uint64_t size;                          /* of the ring; a power of two */
    uint64_t low;                           /* nothing below was ever in the ring */
    uint64_t high;                          /* ring memory is in use up to here */
    uint64_t most;                          /* payload of a group */
    uint64_t appended;                      /* accepted up to here; a multiple of MARS_BLOCK */
    struct mars_group *group;               /* circular */
    uint64_t first, commit, next;           /* oldest; oldest not sealed; behind the newest */
    int open;                               /* the newest group takes records */
};

static inline uint64_t mars_up(uint64_t v)
{
    return (v + (MARS_BLOCK - 1)) & ~(uint64_t)(MARS_BLOCK - 1);
}

static inline int mars_groups_init(struct mars_groups *m, uint64_t size)
{
    int rc;
    m->group = (struct mars_group *)calloc(MARS_GROUPS, sizeof *m->group);
    if (!m->group)
        return -ENOMEM;
    rc = mars_ring_map(size, &m->ring);
    if (rc < 0)
        m->ring = NULL;
    m->size = size;
    m->most = MARS_GROUP_PAYLOAD;
    return rc;
}

static inline void mars_groups_free(struct mars_groups *m)
{
    if (m->ring)
        mars_ring_unmap(m->ring, m->size);
    free(m->group);
}

static inline struct mars_group *mars_groups_at(struct mars_groups *m, uint64_t i)
{
    return &m->group[i % MARS_GROUPS];
}

static inline struct mars_group *mars_groups_newest(struct mars_groups *m)
{
    return mars_groups_at(m, m->next - 1);
}

static inline uint8_t *mars_ring_at(struct mars_groups *m, uint64_t v)
{
    return m->ring + v % m->size;
}

/* Ring memory up to `high` is about to be overwritten: a reader that copied from there looks again. */
static inline void mars_groups_use(struct mars_groups *m, uint64_t high)
{
    high = mars_up(high);
    if (high > m->high)
        m->high = high;
    m->appended = high;
    __sync_synchronize();
}

/* Without the lock: are bytes from v on in the ring? A copy counts only if the answer is still yes, under the lock,
 * after it. */
static inline int mars_ring_peek(const struct mars_groups *m, uint64_t v)
{
    return v >= m->low && v + m->size >= m->high;
}

/* The open group takes no more records: zero its padding. */
static inline void mars_groups_close(struct mars_groups *m)
{
    struct mars_group *g = mars_groups_newest(m);
    uint64_t end = mars_up(g->vend);
    if (end > g->vend)
        memset(mars_ring_at(m, g->vend), 0, end - g->vend);
    g->vend = end;
    g->state = MARS_GROUP_WAITING;
    m->open = 0;
}

static inline void mars_groups_open(struct mars_groups *m)
{
    struct mars_group *g = mars_groups_at(m, m->next);
    g->vstart = m->appended;
    g->vend = g->vstart + MARS_BLOCK;
    g->n = g->n_req = g->copying = 0;
    g->state = MARS_GROUP_OPEN;
    mars_groups_use(m, g->vend);
    memset(mars_ring_at(m, g->vstart), 0, MARS_BLOCK);
    m->next++;
    m->open = 1;
}

/* 1: the open group takes a payload of `span` bytes now; 0: the caller has to wait for ring or group table. written:
 * what is below it may leave the ring. */
static inline int mars_groups_room(struct mars_groups *m, uint32_t span, uint64_t written)
{
    if (m->open) {
        const struct mars_group *g = mars_groups_newest(m);
        if (g->n == 0 || (g->n < MARS_MAX_RECORDS && g->vend - g->vstart - MARS_BLOCK + span <= m->most))
            return mars_up(g->vend + span) - written <= m->size;
        mars_groups_close(m);
    }
    if (m->next - m->first >= MARS_GROUPS || mars_up(m->appended + MARS_BLOCK + span) - written > m->size)
        return 0;
    mars_groups_open(m);
    return 1;
}

/* After mars_groups_room: the address of a record: its payload, or without one its group. */
static inline uint64_t mars_groups_place(struct mars_groups *m, uint32_t stored)
{
    const struct mars_group *g = mars_groups_newest(m);
    return stored ? g->vend : g->vstart;
}

/* After mars_groups_room: the record takes its place; `span` bytes are for its payload. A payload has to be copied
 * there next, without the lock, and `copying` counted down under it. */
static inline struct mars_group *mars_groups_add(struct mars_groups *m, const struct mars_record *r, uint32_t span,
                                                 const struct mars_req *req)
{
    struct mars_group *g = mars_groups_newest(m);
    ((struct mars_record *)(mars_ring_at(m, g->vstart) + MARS_TABLE_OFFSET))[g->n++] = *r;
    mars_groups_use(m, g->vend + span);
    g->vend += span;
    g->req[g->n_req++] = *req;
    g->copying += r->stored != 0;
    return g;
}

/* Not locked. The payload, once, into its place. */
static inline void mars_groups_copy(struct mars_groups *m, uint64_t v, const uint8_t *data, uint32_t stored,
                                    uint32_t span)
{
    uint8_t *to = mars_ring_at(m, v);
    memcpy(to, data, stored);
    memset(to + stored, 0, span - stored);
}

/* Address before which every payload is there. */
static inline uint64_t mars_groups_copied(struct mars_groups *m)
{
    uint64_t i;
    for (i = m->commit; i < m->next; i++)
        if (mars_groups_at(m, i)->copying)
            return mars_groups_at(m, i)->vstart;
    return m->appended;
}

/* Closed, in log order: fill the header in; chain and CRC. seal: what this group must be; moves behind it. */
static inline void mars_groups_seal(struct mars_groups *m, struct mars_group *g, struct mars_expect *seal,
                                    uint64_t durable, uint64_t lamport_ns, uint64_t real_ns)
{
    struct mars_group_header *h = (struct mars_group_header *)mars_ring_at(m, g->vstart);
    memcpy(h->log_id, seal->log_id, 16);
    h->log_nr = seal->log_nr;
    h->group_nr = seal->group_nr;
    h->pos = seal->pos;
    h->length = g->vend - g->vstart;
    memcpy(h->digest_before, seal->digest, 16);
    h->durable = durable;
    h->lamport_ns = lamport_ns;
    h->real_ns = real_ns;
    h->first_record = seal->next_record;
    h->n_records = g->n;
    mars_group_seal((uint8_t *)h, g->digest);
    seal->pos += h->length;
    seal->group_nr++;
    seal->next_record += g->n;
    memcpy(seal->digest, g->digest, 16);
}

/* A group took so long to write: those to come get shorter, or longer again. */
static inline void mars_groups_learn(struct mars_groups *m, const struct mars_group *g, uint64_t took_ns)
{
    if (took_ns > MARS_GROUP_LONG_NS && m->most > MARS_GROUP_LEAST && g->vend - g->vstart > m->most / 2)
        m->most /= 2;
    else if (took_ns < MARS_GROUP_LONG_NS / 4 && m->most < MARS_GROUP_PAYLOAD)
        m->most *= 2;
}

/* Answered groups at the front become free. */
static inline void mars_groups_release(struct mars_groups *m)
{
    while (m->first < m->next && mars_groups_at(m, m->first)->state == MARS_GROUP_ANSWERED)
        mars_groups_at(m, m->first++)->state = MARS_GROUP_FREE;
    if (m->commit < m->first)
        m->commit = m->first;
}

#endif
