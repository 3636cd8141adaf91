/* ext/reads.h under the sanitizers: threads give reads away, every one is answered once, with its own bytes; behind
 * the end of the file with EIO; a thread that ends waits for what is in flight, the answering one ends with the last.
 *
 *     reads_test DIRECTORY */
#include "reads.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>

enum { THREADS = 4, READS = 3000, BLOCKS = 256, SIZE = 4096 };

#define NEED(x) do { if (!(x)) { fprintf(stderr, "line %d: %s (%d)\n", __LINE__, #x, errno); exit(1); } } while (0)

static struct mars_reads reads = {.lock = PTHREAD_MUTEX_INITIALIZER, .idle = PTHREAD_COND_INITIALIZER};
static int disk, ends[2], given, refused;

static void *answering(void *arg)
{
    mars_reads_run(&reads);
    return arg;
}

/* unique = number * BLOCKS + block; block BLOCKS - 1 is behind the end of the file. */
static void *device_thread(void *arg)
{
    uint64_t x = (uint64_t)(uintptr_t)arg;
    mars_reads_begin(&reads);
    for (int i = 0; i < READS; i++) {
        uint64_t block = ((x = x * 6364136223846793005u + 1442695040888963407u) >> 40) % BLOCKS;
        uint64_t unique = ((uint64_t)(uintptr_t)arg * READS + (uint64_t)i) * BLOCKS + block;
        int slot = mars_reads_take(&reads, i % 100 ? SIZE : MARS_READ_MAX + 1, ends[1], unique,
                                    mars_clock_ns(CLOCK_MONOTONIC));
        if (slot >= 0 && mars_reads_submit(&reads, slot, disk, block * SIZE, SIZE))
            __atomic_fetch_add(&given, 1, __ATOMIC_SEQ_CST);
        else
            __atomic_fetch_add(&refused, 1, __ATOMIC_SEQ_CST);
    }
    mars_reads_end(&reads);
    pthread_mutex_lock(&reads.lock);
    NEED(reads.users > 0 || reads.n_free == MARS_READ_SLOTS);
    pthread_mutex_unlock(&reads.lock);
    return NULL;
}

static void *receiver(void *arg)
{
    static uint8_t message[16 + SIZE], seen[THREADS * READS + READS];
    uint64_t n = 0;
    ssize_t got;
    while ((got = recv(ends[0], message, sizeof message, 0)) > 16 || (got == 16 && *(uint32_t *)message)) {
        const struct fuse_out_header *h = (const struct fuse_out_header *)message;
        uint64_t block = h->unique % BLOCKS;
        NEED(h->len == got && !seen[h->unique / BLOCKS]++);
        NEED(h->error == (block == BLOCKS - 1 ? -EIO : 0) && got == (h->error ? 16 : 16 + SIZE));
        for (int i = 16; i < got; i += 512)
            NEED(message[i] == (uint8_t)block);
        n++;
    }
    *(uint64_t *)arg = n;
    return NULL;
}

int main(int argc, char **argv)
{
    static uint8_t block[SIZE], end[16];
    pthread_t threads[THREADS], answers, receiving;
    char path[4096];
    uint64_t received = 0, counted = 0;
    NEED(argc == 2);
    snprintf(path, sizeof path, "%s/disk", argv[1]);
    disk = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    for (int i = 0; i < BLOCKS - 1; i++) {
        memset(block, i, SIZE);
        NEED(pwrite(disk, block, SIZE, (off_t)i * SIZE) == SIZE);
    }
    NEED(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0 && mars_reads_open(&reads) == 0);
    NEED(mars_reads_take(&reads, SIZE, -1, 0, 0) < 0);                /* nobody answers yet: read it yourself */
    pthread_create(&receiving, NULL, receiver, &received);
    pthread_create(&answers, NULL, answering, NULL);
    int slot;
    while ((slot = mars_reads_take(&reads, SIZE, -1, 0, 0)) < 0)
        usleep(1000);                                               /* now somebody does */
    mars_reads_give(&reads, slot);
    for (uintptr_t i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, device_thread, (void *)(i + 1));
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    pthread_join(answers, NULL);
    NEED(send(ends[1], end, 16, 0) == 16);
    pthread_join(receiving, NULL);
    NEED(received == (uint64_t)given && given + refused == THREADS * READS && given > 0);
    for (int i = 0; i < 32; i++)
        counted += reads.latency[i];
    NEED(counted == (uint64_t)given && reads.latency_us > 0);       /* each answer is counted once */
    NEED(mars_reads_take(&reads, SIZE, -1, 0, 0) < 0);
    mars_reads_close(&reads);
    printf("ok\n");
    return 0;
}
