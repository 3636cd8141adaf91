/* fuse.h: the part of the kernel's FUSE protocol (7.x) that a one-file server behind a loop device needs.
 * Sizes are the kernel's (include/uapi/linux/fuse.h is the source of the facts); little endian as the machine. */
#ifndef MARS_FUSE_H
#define MARS_FUSE_H

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "request.h"

enum { FUSE_LOOKUP = 1, FUSE_FORGET = 2, FUSE_GETATTR = 3, FUSE_SETATTR = 4, FUSE_OPEN = 14, FUSE_READ = 15,
       FUSE_WRITE = 16, FUSE_STATFS = 17, FUSE_RELEASE = 18, FUSE_FSYNC = 20, FUSE_FLUSH = 25, FUSE_INIT = 26,
       FUSE_INTERRUPT = 36, FUSE_DESTROY = 38, FUSE_BATCH_FORGET = 42, FUSE_FALLOCATE = 43 };

#define MARS_FUSE_MAX_WRITE (1u << 20)
#define MARS_FUSE_FILE_SIZE (1ull << 62)        /* constant: the device's size is the loop's sizelimit */
#define MARS_FUSE_NODE 2u
#define MARS_FUSE_HEAD 80u                      /* request header + body of a WRITE: what stands before the payload */

struct fuse_in_header { uint32_t len, opcode; uint64_t unique, nodeid; uint32_t uid, gid, pid; uint16_t extlen, pad; };
struct fuse_out_header { uint32_t len; int32_t error; uint64_t unique; };
struct fuse_init_in { uint32_t major, minor, max_readahead, flags, flags2, unused[11]; };
struct fuse_init_out { uint32_t major, minor, max_readahead, flags; uint16_t max_background, congestion;
                       uint32_t max_write, time_gran; uint16_t max_pages, map_alignment;
                       uint32_t flags2, max_stack_depth; uint16_t request_timeout, unused[11]; };
struct fuse_attr { uint64_t ino, size, blocks, atime, mtime, ctime;
                   uint32_t ansec, mnsec, cnsec, mode, nlink, uid, gid, rdev, blksize, flags; };
struct fuse_attr_out { uint64_t valid; uint32_t nsec, dummy; struct fuse_attr attr; };
struct fuse_entry_out { uint64_t nodeid, generation, entry_valid, attr_valid; uint32_t ensec, ansec;
                        struct fuse_attr attr; };
struct fuse_open_out { uint64_t fh; uint32_t flags; int32_t backing; };
struct fuse_statfs_out { uint64_t blocks, bfree, bavail, files, ffree;
                         uint32_t bsize, namelen, frsize, padding, spare[6]; };
struct fuse_io_in { uint64_t fh, offset; uint32_t size, flags; uint64_t lock_owner; uint32_t oflags, padding; };
struct fuse_write_out { uint32_t size, padding; };
struct fuse_fallocate_in { uint64_t fh, offset, length; uint32_t mode, padding; };

_Static_assert(sizeof(struct fuse_in_header) == 40 && sizeof(struct fuse_out_header) == 16, "fuse headers");
_Static_assert(sizeof(struct fuse_init_out) == 64 && sizeof(struct fuse_entry_out) == 128, "fuse sizes");
_Static_assert(sizeof(struct fuse_attr) == 88 && sizeof(struct fuse_attr_out) == 104, "fuse sizes");
_Static_assert(sizeof(struct fuse_io_in) == 40 && sizeof(struct fuse_statfs_out) == 80, "fuse sizes");

/* Every answer; an answer to a request that the kernel has given up (ENOENT) is no error. */
static inline int mars_fuse_answer(int fd, uint64_t unique, int error, const void *body, size_t n)
{
    struct fuse_out_header h = { (uint32_t)(16 + (error ? 0 : n)), error, unique };
    struct iovec v[2] = { { &h, 16 }, { (void *)(uintptr_t)body, n } };
    ssize_t rc;
    do rc = writev(fd, v, !error && n ? 2 : 1); while (rc < 0 && errno == EINTR);
    return rc < 0 && errno != ENOENT ? -errno : 0;
}

static inline void mars_fuse_done(const struct mars_req *req, int error)
{
    struct fuse_write_out o = { req->size, 0 };
    mars_fuse_answer(req->fd, req->unique, error, &o, req->size ? sizeof o : 0);
}

static inline void mars_fuse_attr(struct fuse_attr *a, uint64_t node)
{
    memset(a, 0, sizeof *a);
    a->ino = node;
    a->mode = node == MARS_FUSE_NODE ? (S_IFREG | 0600) : (S_IFDIR | 0700);
    a->nlink = node == MARS_FUSE_NODE ? 1 : 2;
    a->size = node == MARS_FUSE_NODE ? MARS_FUSE_FILE_SIZE : 0;
    a->blksize = 4096;
}

/* INIT: ASYNC_READ, BIG_WRITES, ASYNC_DIO (without it one request at a time), MAX_PAGES, INIT_EXT; flags2:
 * HAS_RESEND. */
static inline int mars_fuse_init(int fd, uint64_t unique, const struct fuse_init_in *in, uint32_t in_len,
                                 int *has_resend)
{
    struct fuse_init_out o;
    const uint32_t want = 1u << 0 | 1u << 5 | 1u << 15 | 1u << 22 | 1u << 30, want2 = 1u << 7;
    uint32_t flags2 = in_len >= 20 ? in->flags2 : 0;
    memset(&o, 0, sizeof o);
    if (in->major != 7)
        return mars_fuse_answer(fd, unique, -EPROTO, NULL, 0);
    o.major = 7;
    o.minor = in->minor < 45 ? in->minor : 45;
    o.max_readahead = 0;
    o.flags = want & in->flags;
    o.flags2 = (in->flags & 1u << 30) ? want2 & flags2 : 0;
    o.max_background = 256;
    o.congestion = 192;
    o.max_write = MARS_FUSE_MAX_WRITE;
    o.max_pages = 256;
    o.time_gran = 1;
    *has_resend = (o.flags2 & want2) != 0;
    return mars_fuse_answer(fd, unique, 0, &o, sizeof o);
}

/* Ask the kernel to send everything again that was read and never answered. Only while no other worker lives
 * (rule 11). */
static inline int mars_fuse_resend(int fd)
{
    struct fuse_out_header h = { 16, 7, 0 };
    ssize_t rc;
    do rc = write(fd, &h, 16); while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

#endif
