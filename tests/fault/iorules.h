/* iorules.h: which operation is delayed, cut short, failed, or ends the process. See iolayer.py for the language.
 *
 * The rules stand in a file that is looked at before every operation and read again when it changed. A line that stays
 * as it was keeps its count. One lock; no I/O of ours passes through the layer.
 */
#ifndef IORULES_H
#define IORULES_H

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum io_op {
    IO_WRITE, IO_FDATASYNC, IO_FSYNC, IO_SYNCFS, IO_FALLOCATE, IO_ZERO, IO_TRUNCATE, IO_OPEN, IO_RENAME, IO_LINK,
    IO_UNLINK, IO_SYMLINK, IO_MKDIR, IO_RMDIR, IO_UTIME, IO_READ, IO_OPS
};

static const char *const io_names[IO_OPS] = {
    "write", "fdatasync", "fsync", "syncfs", "fallocate", "zero", "truncate", "open", "rename", "link",
    "unlink", "symlink", "mkdir", "rmdir", "utime", "read"};

struct io_act {                         /* what is to happen to one operation */
    int error;                          /* errno, 0 = none */
    long shorter;                       /* at most so many bytes, 0 = all */
    int kill_after;
    long delay;                         /* microseconds */
};

struct io_rule {
    uint32_t ops;
    char line[512], pattern[256], trigger[256], unless[256];
    uint64_t nth, from, every, chance;  /* chance: of 2^32; 0 = always */
    uint64_t sector;                    /* its first byte, +1; 0 = the rule is not about a sector */
    uint64_t least;                     /* bytes that an operation must have at least */
    uint64_t seen;
    int number, error, kill, kill_after;
    long delay_lo, delay_hi, shorter;   /* delays in microseconds */
};

enum { IO_RULES = 64 };

static long (*io_call)(long, ...);      /* libc's syscall(), the real one */
static const char *io_rules_path;
static struct io_rule io_rules[IO_RULES];
static int io_n_rules;
static uint32_t io_wanted;              /* operations that any rule names */
static struct stat io_rules_stat;
static pthread_mutex_t io_rules_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t io_random_state = 88172645463325252ull;

/* No signal meanwhile: a handler may write too (Python's wake-up descriptor), and would wait for itself. */
static void io_lock(sigset_t *before)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, before);
    pthread_mutex_lock(&io_rules_lock);
}

static void io_unlock(const sigset_t *before)
{
    pthread_mutex_unlock(&io_rules_lock);
    pthread_sigmask(SIG_SETMASK, before, NULL);
}

static void io_die(const char *why, const char *what)
{
    dprintf(2, "iolayer: %s: %s\n", why, what);
    abort();                            /* a rule that is not understood must not look like a fault survived */
}

static int io_errno_of(const char *name)
{
    static const struct { const char *name; int code; } known[] = {
        {"EIO", EIO}, {"ENOSPC", ENOSPC}, {"EDQUOT", EDQUOT}, {"EROFS", EROFS}, {"EINTR", EINTR}, {"ENOMEM", ENOMEM},
        {"EINVAL", EINVAL}, {"EOPNOTSUPP", EOPNOTSUPP}, {"EACCES", EACCES}, {"ENOENT", ENOENT}, {"EMFILE", EMFILE},
        {"ENODATA", ENODATA}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0)
            return known[i].code;
    return 0;
}

static uint32_t io_ops_of(char *words, const char *line)
{
    uint32_t ops = 0;
    char *rest, *word;
    for (word = strtok_r(words, ",", &rest); word; word = strtok_r(NULL, ",", &rest)) {
        int i = 0;
        while (i < IO_OPS && strcmp(word, io_names[i]) != 0)
            i++;
        if (i == IO_OPS)
            io_die("unknown operation", line);
        ops |= 1u << i;
    }
    return ops;
}

static void io_parse_word(struct io_rule *r, const char *word)
{
    double lo, hi;
    if (sscanf(word, "nth=%lu", &r->nth) == 1 || sscanf(word, "from=%lu", &r->from) == 1 ||
        sscanf(word, "every=%lu", &r->every) == 1 || sscanf(word, "if=%255s", r->trigger) == 1 ||
        sscanf(word, "unless=%255s", r->unless) == 1 || sscanf(word, "short=%ld", &r->shorter) == 1 ||
        sscanf(word, "least=%lu", &r->least) == 1)
        return;
    if (sscanf(word, "sector=%lu", &r->sector) == 1) {
        r->sector++;
        return;
    }
    if (sscanf(word, "p=%lf", &lo) == 1) {
        r->chance = (uint64_t)(lo * 4294967296.0);
    } else if (strncmp(word, "delay=", 6) == 0) {
        const char *upto = strstr(word, "..");          /* not by scanf: "0." is a number to it */
        hi = lo = strtod(word + 6, NULL);
        if (upto)
            hi = strtod(upto + 2, NULL);
        if (!(lo >= 0 && hi >= lo && hi > 0))
            io_die("delay not understood", r->line);
        r->delay_lo = (long)(lo * 1000);
        r->delay_hi = (long)(hi * 1000);
    } else if (strcmp(word, "kill") == 0) {
        r->kill = 1;
    } else if (strcmp(word, "kill-after") == 0) {
        r->kill_after = 1;
    } else if ((r->error = io_errno_of(word)) == 0) {
        io_die("rule not understood", r->line);
    }
}

static void io_parse_line(struct io_rule *r, const char *line, int number)
{
    char copy[512], *rest, *word;
    memset(r, 0, sizeof *r);
    snprintf(r->line, sizeof r->line, "%s", line);
    snprintf(copy, sizeof copy, "%s", line);
    r->number = number;
    word = strtok_r(copy, " ", &rest);
    r->ops = io_ops_of(word, line);
    word = strtok_r(NULL, " ", &rest);
    if (!word)
        io_die("rule without a pattern", line);
    snprintf(r->pattern, sizeof r->pattern, "%s", word);
    while ((word = strtok_r(NULL, " ", &rest)) != NULL)
        io_parse_word(r, word);
}

/* Locked. */
static void io_read_rules(void)
{
    static struct io_rule fresh[IO_RULES];
    char text[16384], *rest, *line;
    int fd = (int)io_call(SYS_openat, AT_FDCWD, io_rules_path, O_RDONLY | O_CLOEXEC, 0), n = 0, number = 0;
    long got = fd < 0 ? 0 : io_call(SYS_read, fd, text, sizeof text - 1);
    if (fd >= 0)
        io_call(SYS_close, fd);
    text[got > 0 ? got : 0] = 0;
    io_wanted = 0;
    for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        number++;
        if (*line == '#')
            continue;
        if (n == IO_RULES)
            io_die("too many rules", io_rules_path);
        io_parse_line(&fresh[n], line, number);
        for (int i = 0; i < io_n_rules; i++)
            if (strcmp(io_rules[i].line, line) == 0)
                fresh[n].seen = io_rules[i].seen;
        if (fresh[n].sector)
            fresh[n].ops |= 1u << IO_WRITE;             /* which makes the sector sound */
        io_wanted |= fresh[n++].ops;
    }
    memcpy(io_rules, fresh, sizeof fresh);
    io_n_rules = n;
}

static int io_there(const char *path)
{
    struct stat st;
    return io_call(SYS_newfstatat, AT_FDCWD, path, &st, 0) == 0;
}

/* Locked. Does anybody want to hear of this operation? */
static int io_rules_want(enum io_op op)
{
    struct stat now;
    if (!io_rules_path)
        return 0;
    if (io_call(SYS_newfstatat, AT_FDCWD, io_rules_path, &now, 0) != 0)
        memset(&now, 0, sizeof now);
    if (now.st_ino != io_rules_stat.st_ino || now.st_size != io_rules_stat.st_size ||
        now.st_mtim.tv_sec != io_rules_stat.st_mtim.tv_sec || now.st_mtim.tv_nsec != io_rules_stat.st_mtim.tv_nsec) {
        io_rules_stat = now;
        io_read_rules();
    }
    return (io_wanted >> op) & 1;
}

static uint64_t io_random(void)
{
    io_random_state ^= io_random_state << 13;
    io_random_state ^= io_random_state >> 7;
    io_random_state ^= io_random_state << 17;
    return io_random_state;
}

/* Locked. A bad sector: is it touched, and was it never written since? Writing makes it sound for good, in all
 * processes. */
static int io_bad_sector(const struct io_rule *r, enum io_op op, uint64_t off, uint64_t len)
{
    char sound[600];
    if (off >= r->sector - 1 + 512 || r->sector - 1 >= off + len)
        return 0;
    snprintf(sound, sizeof sound, "%s.sound-%lu", io_rules_path, r->sector - 1);
    if (op == IO_WRITE) {
        int fd = (int)io_call(SYS_openat, AT_FDCWD, sound, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (fd >= 0)
            io_call(SYS_close, fd);
        return 0;
    }
    return !io_there(sound);
}

/* Locked. Is it this rule's turn? Counts. */
static int io_rule_hits(struct io_rule *r, enum io_op op, const char *path, const char *path2, uint64_t off,
                        uint64_t len)
{
    if (!((r->ops >> op) & 1) || (fnmatch(r->pattern, path, 0) != 0 &&
                                  (!path2 || fnmatch(r->pattern, path2, 0) != 0)))
        return 0;
    if (len < r->least)
        return 0;
    if ((*r->trigger && !io_there(r->trigger)) || (*r->unless && io_there(r->unless)))
        return 0;
    if (r->sector && !io_bad_sector(r, op, off, len))
        return 0;
    r->seen++;
    if ((r->nth && r->seen != r->nth) || (r->from && r->seen < r->from) || (r->every && r->seen % r->every))
        return 0;
    return !r->chance || (io_random() >> 32) < r->chance;
}

static void io_note_hit(const struct io_rule *r, enum io_op op, const char *path)
{
    char name[512], text[1024];
    int fd, n;
    snprintf(name, sizeof name, "%s.hits", io_rules_path);
    fd = (int)io_call(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0)
        return;
    n = snprintf(text, sizeof text, "%d %d %s %s\n", r->number, (int)getpid(), io_names[op], path);
    io_call(SYS_write, fd, text, n);
    io_call(SYS_close, fd);
}

/* What happens to this operation: every rule whose turn it is has its say. */
static struct io_act io_apply_rules(enum io_op op, const char *path, const char *path2, uint64_t off, uint64_t len)
{
    struct io_act act = {0, 0, 0, 0};
    int kill_now = 0, e = errno;
    sigset_t before;
    io_lock(&before);
    for (int i = 0; i < io_n_rules; i++) {
        struct io_rule *r = &io_rules[i];
        if (!io_rule_hits(r, op, path, path2, off, len))
            continue;
        if (r->error || r->kill || r->kill_after || r->shorter)
            io_note_hit(r, op, path);
        act.delay += r->delay_lo;
        if (r->delay_hi > r->delay_lo)
            act.delay += (long)(io_random() >> 20) % (r->delay_hi - r->delay_lo);
        act.error = r->error ? r->error : act.error;
        act.shorter = r->shorter ? r->shorter : act.shorter;
        act.kill_after |= r->kill_after;
        kill_now |= r->kill;
    }
    io_unlock(&before);
    if (kill_now)
        kill(getpid(), SIGKILL);
    errno = e;
    return act;
}

static void io_delay(long us)
{
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    int e = errno;
    if (us)
        nanosleep(&t, NULL);
    errno = e;
}

#endif
