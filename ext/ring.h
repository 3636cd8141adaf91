/* ring.h: a ring buffer mapped twice in a row, so that every run of up to `size` bytes is contiguous in memory.
 * Prefaulted; locking is the caller's mlockall. */
#ifndef MARS_RING_H
#define MARS_RING_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdint.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* size: a power of two, at least the page size. */
static inline int mars_ring_map(size_t size, uint8_t **out)
{
    int fd = (int)syscall(SYS_memfd_create, "mars-ring", 1u /* MFD_CLOEXEC */);
    uint8_t *p;
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)size) != 0)
        goto fail;
    p = (uint8_t *)mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        goto fail;
    if (mmap(p, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0) == MAP_FAILED ||
        mmap(p + size, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0) == MAP_FAILED) {
        int e = errno;
        munmap(p, 2 * size);
        errno = e;
        goto fail;
    }
    close(fd);
    *out = p;
    return 0;
fail:
    {
        int e = errno;
        close(fd);
        return -e;
    }
}

static inline void mars_ring_unmap(uint8_t *p, size_t size)
{
    munmap(p, 2 * size);
}

#endif
