/* disk.h: whole reads and writes, and zeroing that really reads back as zeros. Return 0 or a negative errno; EINTR is
 * retried, a short transfer is continued, end of file inside a read is -ENODATA. */
#ifndef MARS_DISK_H
#define MARS_DISK_H

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

static inline int mars_pread_all(int fd, void *buf, size_t len, uint64_t off)
{
    char *p = (char *)buf;
    while (len) {
        ssize_t n = pread(fd, p, len, (off_t)off);
        if (n < 0) {
            if (errno == EINTR) continue;
            return -errno;
        }
        if (n == 0)
            return -ENODATA;
        p += n; len -= (size_t)n; off += (uint64_t)n;
    }
    return 0;
}

static inline int mars_pwrite_all(int fd, const void *buf, size_t len, uint64_t off)
{
    const char *p = (const char *)buf;
    while (len) {
        ssize_t n = pwrite(fd, p, len, (off_t)off);
        if (n < 0) {
            if (errno == EINTR) continue;
            return -errno;
        }
        if (n == 0)
            return -EIO;
        p += n; len -= (size_t)n; off += (uint64_t)n;
    }
    return 0;
}

/* The range reads as zeros afterwards, on every device (rule 10): never a plain discard. Freed where the device can do
 * both. */
static inline int mars_zero_range(int fd, uint64_t off, uint64_t len)
{
    while (len) {
        uint64_t part = len < (1ull << 30) ? len : 1ull << 30;
        uint64_t range[2] = {off, part};
        if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)part) != 0) {
            if (errno == EINTR)
                continue;
            if (errno != EOPNOTSUPP && errno != ENOSYS)
                return -errno;
            if (ioctl(fd, BLKZEROOUT, range) != 0)
                return -errno;
        }
        off += part; len -= part;
    }
    return 0;
}

static inline int mars_fdatasync(int fd)
{
    return fdatasync(fd) != 0 ? -errno : 0;
}

#endif
