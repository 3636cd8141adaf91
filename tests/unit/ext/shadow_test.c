/* shadow_test.c SEED ROUNDS: ext/shadow.h against a plain array, under the sanitizers. Prints "ok FULL DEPTH", where
 * FULL is the number of refused changes and DEPTH the deepest tree. A refused change must have changed nothing. */
#include "shadow.h"

#include <stdio.h>
#include <stdlib.h>

#define N 6000

static uint64_t twin[N];        /* log address of each unit, 0 = none */
static uint32_t deepest;

static void die(const char *what, uint64_t at)
{
    fprintf(stderr, "%s at %llu\n", what, (unsigned long long)at);
    exit(1);
}

static uint64_t at_unit(const struct shadow_extent *e, uint64_t x)
{
    return e->lpos * N + (x - e->rec_start) + 1;
}

static void check(struct shadow *s)
{
    static uint64_t seen[N];
    uint64_t n = 0, covered = 0, last = 0;
    uint16_t i;
    uint32_t leaf = shadow_seek(s, 0, &i);

    memset(seen, 0, sizeof seen);
    while (leaf != SHADOW_NIL) {
        const struct shadow_extent *e = &s->node[leaf].u.leaf.ext[i];
        if (e->start >= e->end || e->start < last || e->end > N)
            die("extent out of order", e->start);
        last = e->end;
        n++;
        covered += e->end - e->start;
        for (uint64_t x = e->start; x < e->end; x++)
            seen[x] = at_unit(e, x);
        leaf = shadow_step(s, leaf, &i);
    }
    if (n != s->extents || covered != s->covered)
        die("sums", n);
    for (uint64_t x = 0; x < N; x++)
        if (seen[x] != twin[x])
            die("contents", x);
}

static void check_seek(struct shadow *s, uint64_t x)
{
    uint16_t i;
    uint32_t leaf = shadow_seek(s, x, &i);
    uint64_t want = x;

    while (want < N && twin[want] == 0)
        want++;
    if (leaf == SHADOW_NIL) {
        if (want != N)
            die("seek found nothing", x);
        return;
    }
    const struct shadow_extent *e = &s->node[leaf].u.leaf.ext[i];
    if (e->end <= x || (e->start > x ? e->start : x) != want)
        die("seek", x);
}

/* Every node is either in the tree or free; separators are right for every extent. */
static uint32_t count_nodes(struct shadow *s, uint32_t n, uint32_t depth, uint64_t low, uint64_t high)
{
    struct shadow_node *node = &s->node[n];
    uint32_t sum = 1;

    if (node->is_leaf != (depth == s->depth))
        die("leaf at the wrong depth", depth);
    if (node->is_leaf) {
        for (uint16_t i = 0; i < node->count; i++)
            if (node->u.leaf.ext[i].start < low || node->u.leaf.ext[i].start >= high)
                die("separator", node->u.leaf.ext[i].start);
        if (node->count == 0 && n != s->root)
            die("empty leaf", n);
        return 1;
    }
    for (uint16_t i = 0; i < node->count; i++)
        sum += count_nodes(s, node->u.inner.child[i], depth + 1, i ? node->u.inner.key[i] : low,
                           i + 1 < node->count ? node->u.inner.key[i + 1] : high);
    return sum;
}

static int change(struct shadow *s, uint64_t k)
{
    uint64_t a = (uint64_t)rand() % N, len = 1 + (uint64_t)rand() % (rand() % 100 ? 3 : rand() % 2 ? 100 : 1500);
    uint64_t b = a + len > N ? N : a + len, below = UINT64_MAX;
    int rc;

    if (rand() % 4) {
        struct shadow_extent e = {a, b, k, a, (uint32_t)(b - a), 0};
        rc = shadow_put(s, &e);
        for (uint64_t x = a; rc == 0 && x < b; x++)
            twin[x] = at_unit(&e, x);
    } else {
        if (k > 200)
            below = k - (uint64_t)rand() % 200;
        rc = shadow_cut(s, a, b, below);
        for (uint64_t x = a; rc == 0 && x < b; x++)
            if (twin[x] && twin[x] / N < below)
                twin[x] = 0;
    }
    if (rc != 0 && rc != -ENOSPC)
        die("code", (uint64_t)-rc);
    return rc != 0;
}

int main(int argc, char **argv)
{
    unsigned seed = argc > 1 ? (unsigned)atoi(argv[1]) : 1;
    uint64_t rounds = argc > 2 ? (uint64_t)atoi(argv[2]) : 1000, full = 0;
    struct shadow s;

    srand(seed);
    if (shadow_init(&s, seed % 3 ? 4u << 20 : 0) != 0)
        die("init", 0);
    for (uint64_t k = 1; k <= rounds; k++) {
        full += (uint64_t)change(&s, k);
        check_seek(&s, (uint64_t)rand() % N);
        if (s.depth > deepest)
            deepest = s.depth;
        if (k % 100 == 0) {
            check(&s);
            if (count_nodes(&s, s.root, 1, 0, UINT64_MAX) + s.free_count != s.nodes)
                die("nodes lost", k);
        }
    }
    check(&s);
    for (uint64_t x = 0; x < N; x++)            /* taking all out needs no room: one by one, cuts at extents' borders */
        if (twin[x] && shadow_has_room(&s) && shadow_cut(&s, x, x + 1, UINT64_MAX) == 0)
            twin[x] = 0;
    check(&s);
    shadow_clear(&s);
    memset(twin, 0, sizeof twin);
    check(&s);
    if (s.free_count != s.nodes - 1)
        die("clear", s.free_count);
    shadow_free(&s);
    printf("ok %llu %u\n", (unsigned long long)full, deepest);
    return 0;
}
