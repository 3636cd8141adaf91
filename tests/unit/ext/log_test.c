/* The engine of ext/flush.h under the thread sanitizer: threads write, discard and flush while logs are changed, and
 * filled with zeros, below them.
 *
 *     log_test DIRECTORY
 *
 * Ends with "ok" when every request was answered once and without error, the hooks saw addresses that only grow, and
 * each log reads back as a chain of sound groups up to the end at which it was frozen. */
#include "flush.h"

#include <stdio.h>

enum { DEVICE = 1 << 26, RING = 1 << 20, WRITERS = 4, REQUESTS = 2000, LOGS = 8, LONGEST = 64 * 512 };

#define NEED(x) do { if (!(x)) { fprintf(stderr, "line %d: %s\n", __LINE__, #x); exit(1); } } while (0)

static struct mars_log l;
static uint64_t sent, answered, payload_at, ends[LOGS + 1];
static const char *directory;

static void done(const struct mars_req *req, int error)
{
    NEED(error == 0 && req->done == done);
    __atomic_fetch_add(&answered, 1, __ATOMIC_SEQ_CST);
}

static int accept_record(void *arg, uint64_t off, uint64_t length, uint64_t v, uint32_t stored, uint32_t crc)
{
    uint64_t *newest = (uint64_t *)arg;     /* plain: the lock is what orders us */
    NEED(off + length <= DEVICE && (stored != 0 || crc == 0));
    if (stored) {
        NEED(v > *newest);
        *newest = v;
    }
    return 0;
}

static int open_log(uint64_t nr)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/log-%d", directory, (int)nr);
    return open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
}

static const uint8_t *header_of(uint64_t nr)
{
    static uint64_t block[MARS_BLOCK / 8];
    struct mars_file_header *h = (struct mars_file_header *)block;
    uint8_t digest[16];
    memset(block, 0, sizeof block);
    h->log_nr = nr;
    h->log_id[0] = (uint8_t)nr;
    h->device_size = DEVICE;
    h->block_size = 512;
    strcpy(h->producer, "a");
    strcpy(h->resource, "data");
    strcpy(h->uuid, "u");
    mars_file_header_seal((uint8_t *)block, digest);
    return (const uint8_t *)block;
}

static void *writer(void *arg)
{
    uint8_t *data = (uint8_t *)calloc(1, LONGEST);
    uint64_t x = (uint64_t)(uintptr_t)arg * 77 + 1;
    struct mars_req req = {.done = done, .start_ns = mars_clock_ns(CLOCK_MONOTONIC)};
    NEED(data);
    for (int i = 0; i < REQUESTS; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        req.size = 512 * (uint32_t)(1 + (x >> 33) % 64);
        __atomic_fetch_add(&sent, 1, __ATOMIC_SEQ_CST);
        if ((x >> 50) % 8)
            NEED(mars_log_record(&l, &req, MARS_WRITE, data, 512 * ((x >> 20) % 1000), req.size) == 0);
        else
            NEED(mars_log_record(&l, &req, MARS_DISCARD, NULL, 512 * ((x >> 20) % 1000), req.size) == 0);
        if (i % 50 == 0) {
            __atomic_fetch_add(&sent, 1, __ATOMIC_SEQ_CST);
            NEED(mars_log_flush(&l, &req) == 0);
        }
    }
    free(data);
    return NULL;
}

static void *flusher(void *arg)
{
    mars_log_run_flusher(&l);
    return arg;
}

static void *filler(void *arg)
{
    mars_log_run_filler(&l, (const uint8_t *)arg);
    return NULL;
}

static void start(void)
{
    const uint64_t base = 1 << 20;
    pthread_mutex_init(&l.lock, NULL);
    pthread_cond_init(&l.space, NULL);
    pthread_cond_init(&l.work, NULL);
    pthread_cond_init(&l.back, NULL);
    pthread_cond_init(&l.fill, NULL);
    NEED(mars_log_init(&l, DEVICE, 512, RING, -1) == 0);
    l.flush_ns = 1000000;
    l.allocate_step = 1 << 20;
    l.fill_ahead = 12 << 20;
    l.batch = 2;
    l.hook.accept = accept_record;
    l.hook.arg = &payload_at;
    NEED(mars_segments_prepare(&l.segments, open_log(1), header_of(1)) == 0);
    l.groups.appended = l.groups.low = l.groups.high = l.written = l.durable = base;
    mars_log_enter(&l, base, MARS_BLOCK);
    l.started = 1;
}

/* Log `nr` from POS 0 to its end: every group follows from the one before it. */
static uint64_t check(uint64_t nr)
{
    static uint8_t group[MARS_BLOCK + MARS_GROUP_PAYLOAD] __attribute__((aligned(4096)));
    struct mars_segment *s = &l.segments.one[nr - 1];
    struct mars_expect e = s->start;
    struct mars_group_info info;
    uint64_t records = 0;
    while (e.pos < ends[nr]) {
        NEED(mars_pread_all(s->fd, group, MARS_BLOCK, MARS_BLOCK + e.pos) == 0);
        NEED(mars_group_check_header(group, &e, &info) == MARS_SCAN_OK && info.length <= sizeof group);
        NEED(mars_pread_all(s->fd, group, info.length, MARS_BLOCK + e.pos) == 0);
        NEED(mars_group_check_payloads(group, info.length, &info) == MARS_SCAN_OK);
        records += info.n_records;
        mars_group_advance(&e, &info);
    }
    NEED(e.pos == ends[nr]);
    return records;
}

int main(int argc, char **argv)
{
    static const uint8_t zeros[MARS_FILL_WRITE];
    pthread_t writers[WRITERS], flushing, filling;
    uint64_t records = 0;
    NEED(argc == 2);
    directory = argv[1];
    start();
    pthread_create(&flushing, NULL, flusher, NULL);
    pthread_create(&filling, NULL, filler, (void *)(uintptr_t)zeros);
    for (uintptr_t i = 0; i < WRITERS; i++)
        pthread_create(&writers[i], NULL, writer, (void *)i);
    for (uint64_t nr = 1; nr < LOGS; nr++) {
        while (__atomic_load_n(&answered, __ATOMIC_SEQ_CST) < nr * WRITERS * REQUESTS / LOGS)
            sched_yield();
        NEED(mars_log_freeze(&l) == 0);
        ends[nr] = l.seal.pos;
        NEED(mars_log_switch(&l, open_log(nr + 1), header_of(nr + 1), MARS_BLOCK) == 0);
    }
    for (int i = 0; i < WRITERS; i++)
        pthread_join(writers[i], NULL);
    while (__atomic_load_n(&answered, __ATOMIC_SEQ_CST) < WRITERS * REQUESTS)
        sched_yield();                      /* the last ones may wait for the filler, and a frozen log takes none */
    NEED(mars_log_freeze(&l) == 0);
    ends[LOGS] = l.seal.pos;
    pthread_mutex_lock(&l.lock);
    l.stop = 1;
    pthread_cond_broadcast(&l.work);
    pthread_cond_broadcast(&l.fill);
    pthread_mutex_unlock(&l.lock);
    pthread_join(flushing, NULL);
    pthread_join(filling, NULL);
    NEED(sent == answered && l.count.writes == WRITERS * REQUESTS && l.durable == l.groups.appended);
    for (uint64_t nr = 1; nr <= LOGS; nr++)
        records += check(nr);
    NEED(records == WRITERS * REQUESTS);
    printf("ok\n");
    return 0;
}
