/* nullserver.c: a FUSE server for tests and measurements. One file, size 2^62, over a backing file or over nothing.
 *
 * Built as a shared library (see nullserver.py) and driven from Python:
 *   null_start(fds, n, name, backing, resend)  serve n descriptors of one connection, a thread each; backing -1: writes
 *                                              are dropped, reads give zeros; resend: ask for what a dead server left
 *   null_wait()             until every thread has read ENODEV (the device is gone): 0, else errno
 *   null_count(op)          requests of that opcode so far; op 0: requests that were sent again
 *   null_tune(what, value)  1: microseconds before each WRITE's answer, 2: errno for FSYNC, 3: errno for READ
 *   null_arm(size, turn, least, most)  from now on a disk with one arm (armdisk.h): bytes, and microseconds
 * No request allocates; buffers are prefaulted and locked, as the real server has to do it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "armdisk.h"

#define MAX_WRITE (1u << 20)
#define MAX_THREADS 64
#define FILE_INO 2
#define FILE_SIZE (1ULL << 62)
#define RESEND_CODE 7
#define RESEND_BIT (1ULL << 63)
#define HAS_RESEND2 (1u << 7)

struct server {
	int fd, backing;
	char *in, *out;
	pthread_t thread;
	int error;
};

static struct server servers[MAX_THREADS];
static int count_servers;
static char file_name[128];
static uint64_t counts[64];
static int64_t tuned[8];

static void reply(int fd, uint64_t unique, int error, const void *body, size_t size)
{
	char whole[4096];
	struct fuse_out_header head = { .len = (uint32_t)(sizeof head + size), .error = -error, .unique = unique };

	memcpy(whole, &head, sizeof head);
	if (size)
		memcpy(whole + sizeof head, body, size);
	if (write(fd, whole, sizeof head + size) < 0)
		return; /* the requester is gone */
}

static void fill_attr(struct fuse_attr *attr, uint64_t ino)
{
	memset(attr, 0, sizeof *attr);
	attr->ino = ino;
	attr->nlink = 1;
	attr->mode = ino == FUSE_ROOT_ID ? 0040755 : 0100600;
	attr->size = ino == FUSE_ROOT_ID ? 0 : FILE_SIZE;
	attr->blksize = 4096;
}

static void on_init(struct server *s, uint64_t unique, const struct fuse_init_in *in, uint32_t flags2)
{
	struct fuse_init_out out;
	uint32_t want = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO | FUSE_MAX_PAGES | FUSE_INIT_EXT;

	memset(&out, 0, sizeof out);
	out.major = 7;
	out.minor = in->minor < 45 ? in->minor : 45;
	out.flags = want & in->flags;
	((uint32_t *)&out)[8] = HAS_RESEND2 & flags2; /* flags2, at byte 32 */
	out.max_background = 256;
	out.congestion_threshold = 192;
	out.max_write = MAX_WRITE;
	out.time_gran = 1;
	out.max_pages = MAX_WRITE / 4096;
	reply(s->fd, unique, 0, &out, sizeof out);
}

static void on_lookup(struct server *s, uint64_t unique, const char *name)
{
	struct fuse_entry_out out;

	if (strcmp(name, file_name)) {
		reply(s->fd, unique, ENOENT, 0, 0);
		return;
	}
	memset(&out, 0, sizeof out);
	out.nodeid = FILE_INO;
	out.entry_valid = out.attr_valid = 3600;
	fill_attr(&out.attr, FILE_INO);
	reply(s->fd, unique, 0, &out, sizeof out);
}

static void on_attr(struct server *s, const struct fuse_in_header *in)
{
	struct fuse_attr_out out;

	memset(&out, 0, sizeof out);
	out.attr_valid = 3600;
	fill_attr(&out.attr, in->nodeid);
	reply(s->fd, in->unique, 0, &out, sizeof out);
}

static void on_statfs(struct server *s, uint64_t unique)
{
	struct fuse_statfs_out out;

	memset(&out, 0, sizeof out);
	out.st.bsize = out.st.frsize = 4096;
	out.st.namelen = 255;
	reply(s->fd, unique, 0, &out, sizeof out);
}

static void on_read(struct server *s, uint64_t unique, const struct fuse_read_in *in)
{
	struct fuse_out_header *head = (struct fuse_out_header *)(s->out + 4096 - sizeof *head);
	ssize_t got = in->size;

	if (tuned[3]) {
		reply(s->fd, unique, (int)tuned[3], 0, 0);
		return;
	}
	arm_pass(in->offset, in->size);
	if (s->backing >= 0) {
		got = pread(s->backing, s->out + 4096, in->size, (off_t)in->offset);
		if (got < 0) {
			reply(s->fd, unique, errno, 0, 0);
			return;
		}
		memset(s->out + 4096 + got, 0, in->size - (size_t)got);
	}
	head->len = (uint32_t)(sizeof *head + in->size);
	head->error = 0;
	head->unique = unique;
	if (write(s->fd, head, head->len) < 0)
		return;
}

static void on_write(struct server *s, uint64_t unique, const struct fuse_write_in *in, const char *data)
{
	struct fuse_write_out out = { .size = in->size };

	arm_pass(in->offset, in->size);
	if (s->backing >= 0 && pwrite(s->backing, data, in->size, (off_t)in->offset) != (ssize_t)in->size) {
		reply(s->fd, unique, EIO, 0, 0);
		return;
	}
	if (tuned[1])
		usleep((useconds_t)tuned[1]);
	reply(s->fd, unique, 0, &out, sizeof out);
}

static void on_fallocate(struct server *s, uint64_t unique, const struct fuse_fallocate_in *in)
{
	int bad = s->backing >= 0 &&
		  fallocate(s->backing, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)in->offset, (off_t)in->length);

	reply(s->fd, unique, bad ? errno : 0, 0, 0);
}

static void on_fsync(struct server *s, uint64_t unique)
{
	int error = (int)tuned[2];

	if (!error && s->backing >= 0 && fdatasync(s->backing))
		error = errno;
	reply(s->fd, unique, error, 0, 0);
}

static void on_open(struct server *s, uint64_t unique)
{
	struct fuse_open_out out = { .fh = 1, .open_flags = FOPEN_DIRECT_IO };

	reply(s->fd, unique, 0, &out, sizeof out);
}

static void dispatch(struct server *s, const struct fuse_in_header *in, const char *body)
{
	__atomic_fetch_add(&counts[in->opcode < 64 ? in->opcode : 63], 1, __ATOMIC_RELAXED);
	if (in->unique & RESEND_BIT)
		__atomic_fetch_add(&counts[0], 1, __ATOMIC_RELAXED);
	switch (in->opcode) {
	case FUSE_INIT:
		on_init(s, in->unique, (const void *)body, in->len >= 40 + 20 ? ((const uint32_t *)body)[4] : 0);
		break;
	case FUSE_LOOKUP:
		on_lookup(s, in->unique, body);
		break;
	case FUSE_GETATTR:
	case FUSE_SETATTR:
		on_attr(s, in);
		break;
	case FUSE_OPEN:
		on_open(s, in->unique);
		break;
	case FUSE_STATFS:
		on_statfs(s, in->unique);
		break;
	case FUSE_READ:
		on_read(s, in->unique, (const void *)body);
		break;
	case FUSE_WRITE:
		on_write(s, in->unique, (const void *)body, body + sizeof(struct fuse_write_in));
		break;
	case FUSE_FSYNC:
		on_fsync(s, in->unique);
		break;
	case FUSE_FALLOCATE:
		on_fallocate(s, in->unique, (const void *)body);
		break;
	case FUSE_RELEASE:
		reply(s->fd, in->unique, 0, 0, 0);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break;
	default:
		reply(s->fd, in->unique, ENOSYS, 0, 0);
	}
}

/* A WRITE's payload stands behind 40 + 40 bytes of headers: read to 80 bytes before a page, and it is page-aligned. */
static void *serve(void *arg)
{
	struct server *s = arg;
	char *at = s->in + 4096 - 80;

	for (;;) {
		ssize_t got = read(s->fd, at, 80 + MAX_WRITE + 4096);

		if (got >= (ssize_t)sizeof(struct fuse_in_header)) {
			dispatch(s, (const void *)at, at + sizeof(struct fuse_in_header));
			continue;
		}
		if (got < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT))
			continue;
		s->error = got < 0 ? errno : EPROTO;
		return 0;
	}
}

static char *buffer(size_t size)
{
	char *at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	return at == MAP_FAILED || mlock(at, size) ? 0 : at;
}

int null_start(const int *fds, int n, const char *name, int backing, int resend)
{
	struct fuse_out_header again = { .len = sizeof again, .error = RESEND_CODE, .unique = 0 };
	int i;

	if (n < 1 || n > MAX_THREADS || strlen(name) >= sizeof file_name)
		return EINVAL;
	strcpy(file_name, name);
	count_servers = n;
	for (i = 0; i < n; i++) {
		servers[i].fd = fds[i];
		servers[i].backing = backing;
		servers[i].in = buffer(MAX_WRITE + 3 * 4096);
		servers[i].out = buffer(MAX_WRITE + 3 * 4096);
		if (!servers[i].in || !servers[i].out)
			return ENOMEM;
	}
	if (resend && write(fds[0], &again, sizeof again) < 0)
		return errno;
	for (i = 0; i < n; i++)
		if (pthread_create(&servers[i].thread, 0, serve, &servers[i]))
			return EAGAIN;
	return 0;
}

int null_wait(void)
{
	int i, error = 0;

	for (i = 0; i < count_servers; i++) {
		pthread_join(servers[i].thread, 0);
		if (servers[i].error != ENODEV)
			error = servers[i].error;
	}
	return error;
}

uint64_t null_count(int op)
{
	return __atomic_load_n(&counts[op & 63], __ATOMIC_RELAXED);
}

void null_tune(int what, int64_t value)
{
	tuned[what & 7] = value;
}

void null_arm(double size, double turn_us, double least_us, double most_us)
{
	arm.turn_us = turn_us;
	arm.seek_us[0] = least_us;
	arm.seek_us[1] = most_us;
	arm.size = size;
}
