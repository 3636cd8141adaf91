/* reads.h: reads of a front end that go to the data device alone, many in flight (native AIO, see aio.h).
 *
 * A device thread gives a read away and takes the next request; one thread per device (mars_reads_run) answers. Buffers
 * are touched and locked before the first read. Nothing here knows the shadow: the caller has seen, under the volume's
 * lock, that it holds nothing of the range. What is written during the read may be in the answer or not, as on a disk.
 *
 * Invariants:
 *   a slot is in the list of free ones, or in the hands of the one who took it, or in flight
 *   no device thread ends while a read is in flight: its descriptor is where an answer goes
 */
#ifndef MARS_READS_H
#define MARS_READS_H

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "aio.h"
#include "clock.h"
#include "fuse.h"

enum { MARS_READ_SLOTS = 64, MARS_READ_MAX = 64 << 10 };

struct mars_read_slot {
    struct iocb cb;
    uint64_t unique, start_ns;
    uint32_t size;
    int fd;                                 /* where the answer goes */
};

struct mars_reads {
    pthread_mutex_t lock;
    pthread_cond_t idle;                    /* nothing is in flight */
    aio_context_t ctx;
    uint8_t *buffers;
    struct mars_read_slot slot[MARS_READ_SLOTS];
    int free_slot[MARS_READ_SLOTS], n_free;
    int running;                            /* somebody answers */
    int users, ended;                       /* device threads; the last one has ended */
    uint64_t latency[32], latency_us;       /* of all reads, log2 of microseconds; their sum */
};

/* 0 or a negative errno. */
static inline int mars_reads_open(struct mars_reads *r)
{
    const size_t bytes = (size_t)MARS_READ_SLOTS * MARS_READ_MAX;
    int i, rc;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return -ENOMEM;
    memset(p, 0, bytes);
    mlock(p, bytes);
    rc = mars_aio_setup(MARS_READ_SLOTS, &r->ctx);
    if (rc < 0) {
        munmap(p, bytes);
        return rc;
    }
    r->buffers = (uint8_t *)p;
    for (i = 0; i < MARS_READ_SLOTS; i++)
        r->free_slot[i] = i;
    r->n_free = MARS_READ_SLOTS;
    return 0;
}

static inline void mars_reads_close(struct mars_reads *r)
{
    if (r->buffers)
        munmap(r->buffers, (size_t)MARS_READ_SLOTS * MARS_READ_MAX);
    r->buffers = NULL;
}

/* Locked. */
static inline void mars_reads_free(struct mars_reads *r, int i)
{
    r->free_slot[r->n_free++] = i;
    if (r->n_free == MARS_READ_SLOTS)
        pthread_cond_broadcast(&r->idle);
}

static inline void mars_reads_give(struct mars_reads *r, int i)
{
    pthread_mutex_lock(&r->lock);
    mars_reads_free(r, i);
    pthread_mutex_unlock(&r->lock);
}

/* Locked. A read that began at `start` was answered at `now`. */
static inline void mars_reads_count(struct mars_reads *r, uint64_t start, uint64_t now)
{
    uint64_t us = (now - start) / 1000;
    int bits = us ? 64 - __builtin_clzll(us) : 0;
    r->latency[bits < 31 ? bits : 31]++;
    r->latency_us += us;
}

/* A read that the caller did by itself was answered just now. */
static inline void mars_reads_done(struct mars_reads *r, uint64_t start)
{
    uint64_t now = mars_clock_ns(CLOCK_MONOTONIC);
    pthread_mutex_lock(&r->lock);
    mars_reads_count(r, start, now);
    pthread_mutex_unlock(&r->lock);
}

/* A free slot for this request (fd: where the answer goes; start: when it came), or -1: the caller reads by itself. */
static inline int mars_reads_take(struct mars_reads *r, uint32_t size, int fd, uint64_t unique, uint64_t start)
{
    int i = -1;
    if (size > MARS_READ_MAX)
        return -1;
    pthread_mutex_lock(&r->lock);
    if (r->running && r->n_free) {
        i = r->free_slot[--r->n_free];
        r->slot[i].unique = unique;
        r->slot[i].start_ns = start;
        r->slot[i].size = size;
        r->slot[i].fd = fd;
    }
    pthread_mutex_unlock(&r->lock);
    return i;
}

/* 1: it will be answered. 0: the caller reads by itself. */
static inline int mars_reads_submit(struct mars_reads *r, int i, int disk, uint64_t off, uint32_t size)
{
    struct iocb *cb = &r->slot[i].cb;
    mars_aio_prep(cb, IOCB_CMD_PREAD, disk, r->buffers + (size_t)i * MARS_READ_MAX, size, off, (uint64_t)i);
    if (mars_aio_submit(r->ctx, 1, &cb) == 1)
        return 1;
    mars_reads_give(r, i);
    return 0;
}

static inline void mars_reads_begin(struct mars_reads *r)
{
    pthread_mutex_lock(&r->lock);
    r->users++;
    pthread_mutex_unlock(&r->lock);
}

/* A device thread has read its last request. With the last one the answering thread ends. */
static inline void mars_reads_end(struct mars_reads *r)
{
    int destroy;
    pthread_mutex_lock(&r->lock);
    while (r->running && r->n_free < MARS_READ_SLOTS)
        pthread_cond_wait(&r->idle, &r->lock);
    r->ended = --r->users == 0;
    destroy = r->ended && r->running;
    if (destroy)
        r->running = 0;
    pthread_mutex_unlock(&r->lock);
    if (destroy)
        mars_aio_destroy(r->ctx);           /* wakes the answering thread */
}

/* A read is done. */
static inline void mars_reads_answer(struct mars_reads *r, const struct io_event *done)
{
    struct mars_read_slot s;
    uint64_t now;
    int i = (int)done->data;
    pthread_mutex_lock(&r->lock);
    s = r->slot[i];
    pthread_mutex_unlock(&r->lock);
    mars_fuse_answer(s.fd, s.unique, done->res == (int64_t)s.size ? 0 : -EIO,
                     r->buffers + (size_t)i * MARS_READ_MAX, s.size);
    now = mars_clock_ns(CLOCK_MONOTONIC);
    pthread_mutex_lock(&r->lock);
    mars_reads_count(r, s.start_ns, now);
    mars_reads_free(r, i);
    pthread_mutex_unlock(&r->lock);
}

/* Body of the answering thread, after mars_reads_open. */
static inline void mars_reads_run(struct mars_reads *r)
{
    struct io_event done[MARS_READ_SLOTS];
    int i, n, late;
    pthread_mutex_lock(&r->lock);
    late = r->ended;
    r->running = !late;
    pthread_mutex_unlock(&r->lock);
    if (late)
        mars_aio_destroy(r->ctx);
    while ((n = mars_aio_wait(r->ctx, 1, MARS_READ_SLOTS, done)) >= 0)
        for (i = 0; i < n; i++)
            mars_reads_answer(r, &done[i]);
}

#endif
