/* segments.h: the log files of one volume, oldest first, as one address space: address = base of a segment + POS.
 *
 * Plain C without lock: the owner serialises; mars_file_space alone waits for the file system, on the caller's copy.
 */
#ifndef MARS_SEGMENTS_H
#define MARS_SEGMENTS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"

#define MARS_UNKNOWN UINT64_MAX

struct mars_segment {
    uint64_t base;                          /* address of POS 0 */
    uint64_t end;                           /* address behind its last group; the newest one: MARS_UNKNOWN */
    int fd;
    int pins;                               /* reads that use fd right now */
    uint64_t allocated;                     /* file bytes allocated ahead; MARS_UNKNOWN: not to be allocated */
    struct mars_expect start;               /* what its first group must be */
};

struct mars_segments {
    struct mars_segment *one;
    int n, cap;
};

/* Fill in one[n] without counting it yet. header: checked by the caller. */
static inline int mars_segments_prepare(struct mars_segments *s, int fd, const uint8_t *header)
{
    struct mars_segment *g;
    if (s->n == s->cap) {
        void *p = realloc(s->one, (size_t)(s->cap + 32) * sizeof *s->one);
        if (!p)
            return -ENOMEM;
        s->one = (struct mars_segment *)p;
        s->cap += 32;
    }
    g = &s->one[s->n];
    memset(g, 0, sizeof *g);
    g->fd = fd;
    g->end = MARS_UNKNOWN;
    mars_expect_start(&g->start, header);
    return 0;
}

static inline struct mars_segment *mars_segments_newest(struct mars_segments *s)
{
    return &s->one[s->n - 1];
}

/* The segment that holds address v (NULL: none). An empty log has the base of its successor: the last one that starts
 * at or before v holds the bytes there. */
static inline struct mars_segment *mars_segments_find(struct mars_segments *s, uint64_t v)
{
    int lo = 0, hi = s->n;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (s->one[mid].base <= v)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo ? &s->one[lo - 1] : NULL;
}

static inline void mars_segments_drop_oldest(struct mars_segments *s)
{
    s->n--;
    memmove(s->one, s->one + 1, (size_t)s->n * sizeof *s->one);
}

static inline int mars_no_space(int rc)
{
    return rc == -ENOSPC || rc == -EDQUOT;
}

/* `step` more bytes of file space. A file system that cannot promise any is left alone from then on. */
static inline int mars_file_space(struct mars_segment *s, uint64_t step)
{
    int rc = fallocate(s->fd, 0, (off_t)s->allocated, (off_t)step) != 0 ? -errno : 0;
    if (rc == -EINTR)
        return 0;
    if (rc == -EOPNOTSUPP || rc == -ENOSYS) {
        s->allocated = MARS_UNKNOWN;
        return 0;
    }
    if (rc == 0)
        s->allocated += step;
    return rc;
}

#endif
