/* pace.h: writers slow down before they have to stand still, and write-back gives way to the log.
 *
 * Two resources run out while write-back is slower than the writers: the shadow's index (nodes), and room on /mars (the
 * log cannot go before it is written back). Near their end each record keeps a distance in time from the one before,
 * `mars_pace_gap`: at the onset half of what write-back needs for a record, at the wall half as much again; so the
 * writers come to rest at the pace of write-back, somewhere in between, and hardly ever at the wall.
 *
 * Where log and data share a disk, a write of the log may wait for as long as write-back keeps the queue full.
 * `mars_busy_late` tells write-back that the log stands still: it begins nothing new before what it has in flight is
 * done. A window in a hurry then fills the queue once more: where the log is slow for a reason of its own, giving way
 * costs it hardly anything.
 */
#ifndef MARS_PACE_H
#define MARS_PACE_H

#include <stdint.h>

enum {
    MARS_PACE_MOST = 50000000,              /* ns that one record is held back at most */
    MARS_PACE_HEAD = 4096,                  /* of a record without company: the header of its group */
    MARS_LATE_NS = 30000000,                /* a write of the log stands still; a sync may take longer by itself */
    MARS_SYNC_LATE_NS = 200000000,
};
#define MARS_PACE_BEHIND UINT64_C(2000000000)   /* ns that write-back is behind at least */

/* ---- the distance between records ---- */

struct mars_pace {
    uint64_t record_ns, kib_ns;             /* what write-back needs for a record, for 1 KiB of log; 0: not known */
    uint64_t next;                          /* CLOCK_MONOTONIC: the turn of the next record */
    uint64_t disk;                          /* address before which all of the log is on the data device */
    uint64_t room;                          /* bytes free on /mars, as seen last */
    uint64_t low;                           /* room that is not to be used up by what waits for write-back; 0: none */
};

/* How fast writers come: for how long a window may take. */
struct mars_pace_look {
    uint64_t at, records;                   /* CLOCK_MONOTONIC and the total of records at the last look */
};

/* Locked, at the begin of a window that takes `kib` KiB of log at most. Has it to be short? For the first one nobody
 * knows how long it takes; and none may be under way when the writers, as they came lately, get to the index's last
 * quarter (a node holds 16 extents and more). */
static inline int mars_pace_hurry(const struct mars_pace *p, struct mars_pace_look *last, uint64_t now,
                                  uint64_t records, uint64_t free_nodes, uint64_t nodes, uint64_t kib)
{
    uint64_t ns = now - last->at, more = records - last->records, left = free_nodes - nodes / 4;
    last->at = now;
    last->records = records;
    return free_nodes < nodes / 2 || p->kib_ns == 0 ||
           (double)left * 16 * (double)ns < 2 * (double)kib * (double)p->kib_ns * (double)more;
}

/* `left` of records and bytes of log took so long. */
static inline void mars_pace_learn(struct mars_pace *p, uint64_t records, uint64_t bytes, uint64_t took_ns)
{
    uint64_t record_ns = took_ns / (records ? records : 1), kib_ns = took_ns / (bytes / 1024 ? bytes / 1024 : 1);
    p->record_ns = p->record_ns ? (3 * p->record_ns + record_ns) / 4 : record_ns;
    p->kib_ns = p->kib_ns ? (3 * p->kib_ns + kib_ns) / 4 : kib_ns;
}

/* `left` of `full` is left: 0 from a quarter on, half of `ns` there, 1.5 times `ns` where nothing is left. */
static inline uint64_t mars_pace_gap(uint64_t ns, uint64_t left, uint64_t full)
{
    double part = full ? (double)left / (double)full : 1;
    return part >= 0.25 ? 0 : (uint64_t)((double)ns * (1.5 - 4 * part));
}

/* Of a record of `span` bytes at address `v`: for the sake of the room on /mars. Only where write-back is behind by
 * more than a moment: else it is not what takes the room. */
static inline uint64_t mars_pace_room_gap(const struct mars_pace *p, uint64_t v, uint32_t span)
{
    if (p->room >= 2 * p->low || (v - p->disk) / 1024 * p->kib_ns < MARS_PACE_BEHIND)
        return 0;
    return mars_pace_gap((span + MARS_PACE_HEAD) / 1024 * p->kib_ns, p->room > p->low ? p->room - p->low : 0,
                         4 * p->low);
}

/* The turn of a record that has to keep `gap` ns from the one before: ns from `now` on that it has to wait. */
static inline uint64_t mars_pace_turn(struct mars_pace *p, uint64_t gap, uint64_t now)
{
    uint64_t turn = p->next > now ? p->next : now;
    p->next = turn + (gap < MARS_PACE_MOST ? gap : MARS_PACE_MOST);
    return turn - now < MARS_PACE_MOST ? turn - now : MARS_PACE_MOST;
}

/* ---- giving way ---- */

struct mars_busy {
    uint64_t writing, syncing;              /* CLOCK_MONOTONIC: since when the log's disk owes an answer; 0: nothing */
};

/* Not locked: a moment more or less does not matter. */
static inline int mars_busy_late(const struct mars_busy *b, uint64_t now)
{
    uint64_t writing, syncing;
    if (!b)
        return 0;
    writing = __atomic_load_n(&b->writing, __ATOMIC_RELAXED);
    syncing = __atomic_load_n(&b->syncing, __ATOMIC_RELAXED);
    return (writing && now > writing + MARS_LATE_NS) || (syncing && now > syncing + MARS_SYNC_LATE_NS);
}

#endif
