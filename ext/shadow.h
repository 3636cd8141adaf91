/* shadow.h: an ordered map of non-overlapping device ranges ("extents") -> where their newest data stand.
 *
 * A B+ tree over a pool of nodes that is allocated once: no allocation after shadow_init, O(log n) for everything.
 * Used by the shadow of a primary (newest data not yet written back) and by the window engine (newest wins
 * inside a window). No locking: the owner serialises.
 *
 * Invariants:
 *   extents are non-empty, sorted by start, and never overlap;
 *   every key in child i of an inner node is >= key[i] (key[0] counts as minus infinity) and < key[i+1];
 *   no leaf but the root is empty; leaves are linked in order; a leaf that gets half empty is joined with its
 *   neighbour, so that what is taken out of the map gives nodes back soon and not only when a whole leaf is gone.
 *
 * Functions return 0 or a negative errno. shadow_put may need up to two new extents; it refuses with -ENOSPC, and
 * changes nothing, while the pool could not take the worst case.
 */
#ifndef MARS_SHADOW_H
#define MARS_SHADOW_H

#include <errno.h>
#include <stdint.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

#define SHADOW_FAN 32
#define SHADOW_DEPTH_MAX 12
#define SHADOW_NIL 0xffffffffu

/* Device bytes [start, end) stand at log address lpos + (x - rec_start); rec_len == 0: they read as zeros.
 * rec_start, rec_len and crc describe the whole record, so that a read-back can be checked. */
struct shadow_extent {
    uint64_t start, end;
    uint64_t lpos;
    uint64_t rec_start;
    uint32_t rec_len;
    uint32_t crc;
};

struct shadow_leaf {
    uint32_t prev, next;
    struct shadow_extent ext[SHADOW_FAN];
};

struct shadow_inner {
    uint64_t key[SHADOW_FAN];
    uint32_t child[SHADOW_FAN];
};

struct shadow_node {
    uint16_t count;
    uint16_t is_leaf;
    uint32_t free_next;
    union { struct shadow_leaf leaf; struct shadow_inner inner; } u;
};

struct shadow {
    struct shadow_node *node;
    size_t bytes;
    uint32_t nodes, free_head, free_count;
    uint32_t root, depth;               /* depth 1: the root is a leaf */
    uint64_t extents, covered;          /* number of extents, device bytes in them */
};

struct shadow_path {
    uint32_t node[SHADOW_DEPTH_MAX];
    uint16_t slot[SHADOW_DEPTH_MAX];    /* index in node; in the leaf: index of the extent */
    uint32_t depth;
};

static inline uint32_t shadow_take(struct shadow *s, int is_leaf)
{
    uint32_t n = s->free_head;
    s->free_head = s->node[n].free_next;
    s->free_count--;
    s->node[n].count = 0;
    s->node[n].is_leaf = (uint16_t)is_leaf;
    if (is_leaf)
        s->node[n].u.leaf.prev = s->node[n].u.leaf.next = SHADOW_NIL;
    return n;
}

static inline void shadow_give(struct shadow *s, uint32_t n)
{
    s->node[n].free_next = s->free_head;
    s->free_head = n;
    s->free_count++;
}

static inline void shadow_clear(struct shadow *s)
{
    uint32_t i;
    s->free_head = SHADOW_NIL;
    s->free_count = 0;
    for (i = s->nodes; i-- > 0; )
        shadow_give(s, i);
    s->root = shadow_take(s, 1);
    s->depth = 1;
    s->extents = s->covered = 0;
}

/* bytes: memory for the pool (at least 64 nodes are made). */
static inline int shadow_init(struct shadow *s, size_t bytes)
{
    memset(s, 0, sizeof *s);
    s->nodes = (uint32_t)(bytes / sizeof(struct shadow_node));
    if (s->nodes < 64)
        s->nodes = 64;
    s->bytes = (size_t)s->nodes * sizeof(struct shadow_node);
    s->node = (struct shadow_node *)mmap(NULL, s->bytes, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (s->node == MAP_FAILED) {
        s->node = NULL;
        return -ENOMEM;
    }
    shadow_clear(s);
    return 0;
}

static inline void shadow_free(struct shadow *s)
{
    if (s->node)
        munmap(s->node, s->bytes);
    s->node = NULL;
}

static inline struct shadow_extent *shadow_at(struct shadow *s, const struct shadow_path *p)
{
    return &s->node[p->node[p->depth - 1]].u.leaf.ext[p->slot[p->depth - 1]];
}

/* Path to the leaf where an extent starting at x belongs; slot = number of extents there with start < x. */
static inline void shadow_descend(const struct shadow *s, uint64_t x, struct shadow_path *p)
{
    uint32_t n = s->root, d = 0;
    const struct shadow_node *node = &s->node[n];
    uint16_t lo, hi;
    p->depth = s->depth;
    while (!node->is_leaf) {
        lo = 1; hi = node->count;
        while (lo < hi) {
            uint16_t mid = (uint16_t)((lo + hi) / 2);
            if (node->u.inner.key[mid] <= x) lo = (uint16_t)(mid + 1); else hi = mid;
        }
        p->node[d] = n;
        p->slot[d] = (uint16_t)(lo - 1);
        n = node->u.inner.child[lo - 1];
        node = &s->node[n];
        d++;
    }
    lo = 0; hi = node->count;
    while (lo < hi) {
        uint16_t mid = (uint16_t)((lo + hi) / 2);
        if (node->u.leaf.ext[mid].start < x) lo = (uint16_t)(mid + 1); else hi = mid;
    }
    p->node[d] = n;
    p->slot[d] = lo;
}

/* First extent with end > x: leaf number and slot; SHADOW_NIL when there is none. */
static inline uint32_t shadow_seek(const struct shadow *s, uint64_t x, uint16_t *slot)
{
    struct shadow_path p;
    uint32_t leaf, prev;
    uint16_t i;
    shadow_descend(s, x, &p);
    leaf = p.node[p.depth - 1];
    i = p.slot[p.depth - 1];
    if (i > 0) {
        if (s->node[leaf].u.leaf.ext[i - 1].end > x) {
            *slot = (uint16_t)(i - 1);
            return leaf;
        }
    } else if ((prev = s->node[leaf].u.leaf.prev) != SHADOW_NIL) {
        uint16_t last = (uint16_t)(s->node[prev].count - 1);
        if (s->node[prev].u.leaf.ext[last].end > x) {
            *slot = last;
            return prev;
        }
    }
    if (i >= s->node[leaf].count) {
        leaf = s->node[leaf].u.leaf.next;
        i = 0;
        if (leaf == SHADOW_NIL)
            return SHADOW_NIL;
    }
    *slot = i;
    return leaf;
}

static inline uint32_t shadow_step(const struct shadow *s, uint32_t leaf, uint16_t *slot)
{
    if (++*slot < s->node[leaf].count)
        return leaf;
    *slot = 0;
    return s->node[leaf].u.leaf.next;
}

/* Put a child (its smallest key and number) behind slot `at` of the inner node at depth d of the path, splitting
 * upwards. */
static inline void shadow_add_child(struct shadow *s, struct shadow_path *p, int d, uint64_t key, uint32_t child)
{
    while (d >= 0) {
        uint32_t n = p->node[d];
        struct shadow_node *node = &s->node[n];
        uint16_t at = (uint16_t)(p->slot[d] + 1);
        if (node->count < SHADOW_FAN) {
            memmove(&node->u.inner.key[at + 1], &node->u.inner.key[at], (node->count - at) * sizeof(uint64_t));
            memmove(&node->u.inner.child[at + 1], &node->u.inner.child[at], (node->count - at) * sizeof(uint32_t));
            node->u.inner.key[at] = key;
            node->u.inner.child[at] = child;
            node->count++;
            return;
        }
        uint32_t m = shadow_take(s, 0);
        struct shadow_node *right = &s->node[m];
        uint16_t half = SHADOW_FAN / 2;
        memcpy(right->u.inner.key, &node->u.inner.key[half], (SHADOW_FAN - half) * sizeof(uint64_t));
        memcpy(right->u.inner.child, &node->u.inner.child[half], (SHADOW_FAN - half) * sizeof(uint32_t));
        right->count = (uint16_t)(SHADOW_FAN - half);
        node->count = half;
        struct shadow_node *into = node;
        if (at > half) {
            into = right;
            at = (uint16_t)(at - half);
        }
        memmove(&into->u.inner.key[at + 1], &into->u.inner.key[at], (into->count - at) * sizeof(uint64_t));
        memmove(&into->u.inner.child[at + 1], &into->u.inner.child[at], (into->count - at) * sizeof(uint32_t));
        into->u.inner.key[at] = key;
        into->u.inner.child[at] = child;
        into->count++;
        key = right->u.inner.key[0];
        child = m;
        d--;
    }
    uint32_t r = shadow_take(s, 0);
    s->node[r].count = 2;
    s->node[r].u.inner.key[0] = 0;
    s->node[r].u.inner.child[0] = s->root;
    s->node[r].u.inner.key[1] = key;
    s->node[r].u.inner.child[1] = child;
    s->root = r;
    s->depth++;
}

/* Insert an extent that overlaps none. */
static inline void shadow_insert(struct shadow *s, const struct shadow_extent *e)
{
    struct shadow_path p;
    shadow_descend(s, e->start, &p);
    uint32_t n = p.node[p.depth - 1];
    uint16_t at = p.slot[p.depth - 1];
    struct shadow_node *node = &s->node[n];
    s->extents++;
    s->covered += e->end - e->start;
    if (node->count < SHADOW_FAN) {
        memmove(&node->u.leaf.ext[at + 1], &node->u.leaf.ext[at], (node->count - at) * sizeof *e);
        node->u.leaf.ext[at] = *e;
        node->count++;
        return;
    }
    uint32_t m = shadow_take(s, 1);
    struct shadow_node *right = &s->node[m];
    uint16_t half = at == SHADOW_FAN ? SHADOW_FAN - 1 : SHADOW_FAN / 2;   /* ascending keys leave full leaves behind */
    right->count = (uint16_t)(SHADOW_FAN - half);
    memcpy(right->u.leaf.ext, &node->u.leaf.ext[half], right->count * sizeof *e);
    node->count = half;
    right->u.leaf.prev = n;
    right->u.leaf.next = node->u.leaf.next;
    if (right->u.leaf.next != SHADOW_NIL)
        s->node[right->u.leaf.next].u.leaf.prev = m;
    node->u.leaf.next = m;
    struct shadow_node *into = node;
    if (at > half) {
        into = right;
        at = (uint16_t)(at - half);
    }
    memmove(&into->u.leaf.ext[at + 1], &into->u.leaf.ext[at], (into->count - at) * sizeof *e);
    into->u.leaf.ext[at] = *e;
    into->count++;
    shadow_add_child(s, &p, (int)p.depth - 2, right->u.leaf.ext[0].start, m);
}

/* A leaf on the path that has few extents left takes those of its right neighbour below the same parent, or gives its
 * own to the left one. The slot of the leaf that is empty now, or -1: nothing was joined. */
static inline int shadow_join(struct shadow *s, const struct shadow_path *p)
{
    int d = (int)p->depth - 1, at = p->slot[d - 1];
    const struct shadow_node *parent = &s->node[p->node[d - 1]];
    if (s->node[p->node[d]].count >= SHADOW_FAN / 2)
        return -1;
    for (int left = at; left >= 0 && left >= at - 1; left--) {
        if (left + 1 >= parent->count)
            continue;
        struct shadow_node *a = &s->node[parent->u.inner.child[left]], *b = &s->node[parent->u.inner.child[left + 1]];
        if (a->count + b->count > 7 * SHADOW_FAN / 8)
            continue;
        memcpy(&a->u.leaf.ext[a->count], b->u.leaf.ext, b->count * sizeof(struct shadow_extent));
        a->count = (uint16_t)(a->count + b->count);
        b->count = 0;
        return left + 1;
    }
    return -1;
}

/* Remove the extent that starts at `start` (it must exist). */
static inline void shadow_remove(struct shadow *s, uint64_t start)
{
    struct shadow_path p;
    shadow_descend(s, start, &p);
    int d = (int)p.depth - 1;
    uint32_t n = p.node[d];
    struct shadow_node *node = &s->node[n];
    uint16_t at = p.slot[d];
    s->extents--;
    s->covered -= node->u.leaf.ext[at].end - node->u.leaf.ext[at].start;
    memmove(&node->u.leaf.ext[at], &node->u.leaf.ext[at + 1], (node->count - at - 1) * sizeof(struct shadow_extent));
    node->count--;
    if (d == 0)
        return;
    if (node->count) {
        int empty = shadow_join(s, &p);
        if (empty < 0)
            return;
        p.slot[d - 1] = (uint16_t)empty;
        n = s->node[p.node[d - 1]].u.inner.child[empty];
        node = &s->node[n];
    }
    if (node->u.leaf.prev != SHADOW_NIL)
        s->node[node->u.leaf.prev].u.leaf.next = node->u.leaf.next;
    if (node->u.leaf.next != SHADOW_NIL)
        s->node[node->u.leaf.next].u.leaf.prev = node->u.leaf.prev;
    while (1) {
        shadow_give(s, n);
        d--;
        n = p.node[d];
        node = &s->node[n];
        at = p.slot[d];
        memmove(&node->u.inner.key[at], &node->u.inner.key[at + 1], (node->count - at - 1) * sizeof(uint64_t));
        memmove(&node->u.inner.child[at], &node->u.inner.child[at + 1], (node->count - at - 1) * sizeof(uint32_t));
        if (--node->count || d == 0)
            break;
    }
    while (s->depth > 1 && s->node[s->root].count == 1) {
        n = s->root;
        s->root = s->node[n].u.inner.child[0];
        s->depth--;
        shadow_give(s, n);
    }
}

/* Nodes that one shadow_put may take at worst: two inserts, each splitting a whole path and growing the root. */
static inline int shadow_has_room(const struct shadow *s)
{
    return s->free_count >= 2 * (s->depth + 2);
}

/* Take [start, end) out of the map, cutting extents at its borders, but only of extents with lpos < below
 * (UINT64_MAX: of all). Returns -ENOSPC (nothing changed) when a cut in the middle has no room. */
static inline int shadow_cut(struct shadow *s, uint64_t start, uint64_t end, uint64_t below)
{
    uint16_t i;
    uint64_t x = start;
    if (!shadow_has_room(s))
        return -ENOSPC;
    while (x < end) {
        uint32_t leaf = shadow_seek(s, x, &i);
        if (leaf == SHADOW_NIL)
            return 0;
        struct shadow_extent *e = &s->node[leaf].u.leaf.ext[i];
        if (e->start >= end)
            return 0;
        x = e->end;
        if (e->lpos >= below)
            continue;
        if (e->start < start && e->end > end) {
            struct shadow_extent tail = *e;
            tail.start = end;
            s->covered -= e->end - start;
            e->end = start;
            shadow_insert(s, &tail);
            return 0;
        }
        if (e->start < start) {
            s->covered -= e->end - start;
            e->end = start;
        } else if (e->end > end) {
            struct shadow_extent rest = *e;         /* its key changes: it may belong behind another separator */
            shadow_remove(s, e->start);
            rest.start = end;
            shadow_insert(s, &rest);
        } else {
            shadow_remove(s, e->start);
        }
    }
    return 0;
}

/* Newest data of [e->start, e->end): replaces whatever the map says about that range. */
static inline int shadow_put(struct shadow *s, const struct shadow_extent *e)
{
    int rc;
    if (s->free_count < 4 * (s->depth + 2))
        return -ENOSPC;
    rc = shadow_cut(s, e->start, e->end, UINT64_MAX);
    if (rc)
        return rc;
    shadow_insert(s, e);
    return 0;
}

#endif
