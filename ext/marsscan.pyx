# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Walk over a transaction log and say how far it can be believed, and why no further.

The rules are those of ext/format.h; this module owns the memory and the reading. A whole scan is one call without the
GIL. It reads with pread into its own aligned buffer, so descriptors with and without O_DIRECT will do; the file
position of the descriptor moves (SEEK_DATA), which nobody may rely on. Nothing is ever written.

Invariants: a group is counted only when header, chain, table, payloads and padding hold; end <= limit; what is
reported as durable_hint was read from a sound header of this log.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EINTR, ENXIO, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove, memset
from posix.unistd cimport lseek, off_t

import os

from format cimport (
    MARS_BLOCK, MARS_MAX_GROUP, MARS_SCAN_CHAIN, MARS_SCAN_DURABLE, MARS_SCAN_FOREIGN, MARS_SCAN_LENGTH, MARS_SCAN_OK,
    MARS_SCAN_RANGE, MARS_SCAN_SHORT, MARS_SCAN_TABLE, MARS_SCAN_UNKNOWN, MARS_SCAN_VERSION, MARS_SCAN_ZERO,
    mars_expect, mars_expect_start, mars_file_header_check, mars_group_advance, mars_group_check_header,
    mars_group_check_payloads, mars_group_header, mars_group_info, mars_group_is_ours, mars_group_table,
    mars_payload_span, mars_record)

cdef extern from "crc32c.h" nogil:
    int mars_crc32c_env()

cdef extern from "xxh3.h" nogil:
    int mars_xxh3_env()

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buf, size_t count, off_t offset)
    int SEEK_DATA

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
    int munmap(void *addr, size_t length)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
    void *MAP_FAILED

if mars_crc32c_env() != 0 or mars_xxh3_env() != 0:
    raise ValueError("MARS_CRC_KERNEL or MARS_XXH3_KERNEL asks for a kernel that this machine does not have")

CODES = ("ok", "zero", "short", "magic", "crc", "foreign", "version", "chain", "length", "table", "range", "durable",
         "unknown", "payload", "padding", "feature", "field")
REASONS = ("end", "torn", "foreign", "corrupt", "gap", "limit", "unknown")

cdef enum:
    WHY_END = 0
    WHY_TORN = 1
    WHY_FOREIGN = 2
    WHY_CORRUPT = 3
    WHY_GAP = 4
    WHY_LIMIT = 5
    WHY_UNKNOWN = 6

cdef enum:
    CHUNK = 4 << 20
    COLLECT_UNIQUES = 1
    COLLECT_RECORDS = 2

cdef uint64_t NO_LIMIT = <uint64_t>-1
cdef uint64_t POS_MAX = <uint64_t>1 << 62

cdef struct Window:             # bytes [at, at + have) of the file
    int fd
    uint8_t *buf
    size_t cap
    uint64_t at
    size_t have
    bint eof
    uint64_t careful            # up to this byte a read failed: no more than needed is read, a block at a time

cdef struct Bag:                # what collect asks for
    int kind
    uint8_t *data
    size_t used
    size_t cap

cdef struct Result:
    uint64_t groups
    uint64_t records
    uint64_t durable
    uint64_t lamport_ns
    uint64_t real_ns
    uint64_t beyond             # POS of the sound header found behind a bad group, or NO_LIMIT
    uint32_t bad_record
    int code
    int why
    int error                   # errno


cdef int window_open(Window *w, int fd, size_t cap) noexcept nogil:
    """Map the buffer; only pages that are read into are ever used. 0 or -1."""
    cdef void *p = mmap(NULL, cap, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    memset(w, 0, sizeof(Window))
    if p == MAP_FAILED:
        return -1
    w.fd = fd
    w.buf = <uint8_t *>p
    w.cap = cap
    return 0


cdef int read_more(Window *w, size_t need) noexcept nogil:
    """Read on until `need` bytes are there or the file ends. 0 or an errno: the block at `at + have` is unreadable."""
    cdef ssize_t n
    cdef size_t want
    while w.have < need and not w.eof:
        want = need - w.have
        if w.at + w.have < w.careful:
            want = MARS_BLOCK
        elif want < CHUNK:
            want = CHUNK if w.cap - w.have >= CHUNK else w.cap - w.have
        n = pread(w.fd, w.buf + w.have, want, <off_t>(w.at + w.have))
        if n < 0:
            if errno == EINTR:
                continue
            if want <= MARS_BLOCK:
                return errno
            w.careful = w.at + w.have + want
            continue
        # A part of a block is kept only when nothing but it can be read at its place: then it is the end of the file.
        if n < MARS_BLOCK:
            w.eof = True
            w.have += <size_t>n
        else:
            w.have += <size_t>n & ~<size_t>(MARS_BLOCK - 1)
    return 0


cdef int peek(Window *w, uint64_t offset, size_t need, const uint8_t **p, size_t *got) noexcept nogil:
    """`need` bytes at a block-aligned file offset, fewer only at the end of the file. 0 or an errno."""
    cdef size_t skip, rest
    cdef int error = 0
    if offset > <uint64_t>0x7fffffffffffffff - need:
        got[0] = 0
        return 0
    if offset < w.at or offset > w.at + w.have:
        w.at = offset
        w.have = 0
        w.eof = False
    skip = <size_t>(offset - w.at)
    rest = w.have - skip
    if rest < need and not w.eof:
        memmove(w.buf, w.buf + skip, rest)
        w.at = offset
        w.have = rest
        skip = 0
        error = read_more(w, need)
        rest = w.have
    p[0] = w.buf + skip
    got[0] = rest if rest < need else need
    return error


cdef int why_of(int code, size_t got) noexcept nogil:
    """The reason that a code means when nothing later speaks against it."""
    if code == MARS_SCAN_ZERO or (code == MARS_SCAN_SHORT and got == 0):
        return WHY_END
    if code == MARS_SCAN_FOREIGN:
        return WHY_FOREIGN
    if code == MARS_SCAN_CHAIN:
        return WHY_GAP
    if code == MARS_SCAN_VERSION or code == MARS_SCAN_UNKNOWN:
        return WHY_UNKNOWN
    if code in (MARS_SCAN_LENGTH, MARS_SCAN_TABLE, MARS_SCAN_RANGE, MARS_SCAN_DURABLE):
        return WHY_CORRUPT
    return WHY_TORN


cdef int bag_add(Bag *bag, const void *data, size_t n) noexcept nogil:
    cdef void *p
    cdef size_t cap
    if bag.used + n > bag.cap:
        cap = 2 * bag.cap + n + 4096
        p = realloc(bag.data, cap)
        if p == NULL:
            return -1
        bag.data = <uint8_t *>p
        bag.cap = cap
    memcpy(bag.data + bag.used, data, n)
    bag.used += n
    return 0


cdef int bag_group(Bag *bag, const uint8_t *block, uint64_t pos, uint32_t n) noexcept nogil:
    """Note the records of an accepted group: uniques that are not 0, or (POS of the payload, record)."""
    cdef const mars_record *table = mars_group_table(block)
    cdef uint64_t at = pos + MARS_BLOCK
    cdef uint32_t i
    for i in range(n):
        if bag.kind == COLLECT_UNIQUES:
            if table[i].unique != 0 and bag_add(bag, &table[i].unique, 8) != 0:
                return -1
        elif bag_add(bag, &at, 8) != 0 or bag_add(bag, &table[i], sizeof(mars_record)) != 0:
            return -1
        at += mars_payload_span(&table[i])
    return 0


cdef void count_group(Result *r, const mars_group_info *info) noexcept nogil:
    r.groups += 1
    r.records += info.n_records
    r.lamport_ns = info.lamport_ns
    r.real_ns = info.real_ns
    if info.durable > r.durable:
        r.durable = info.durable


cdef void adopt(mars_expect *e, const uint8_t *block) noexcept nogil:
    """Take group and record number from the first header: they are believed because the chain digest commits to it."""
    cdef const mars_group_header *g = <const mars_group_header *>block
    e.group_nr = g.group_nr
    e.next_record = g.first_record


cdef int one_group(Window *w, mars_expect *e, uint64_t limit, bint adopting, Bag *bag, Result *r) noexcept nogil:
    """Check the group at e.pos and step over it. 0 = accepted; else r says why not."""
    cdef mars_group_info info
    cdef const uint8_t *p = NULL
    cdef size_t got = 0
    r.code = MARS_SCAN_OK
    r.error = peek(w, MARS_BLOCK + e.pos, MARS_BLOCK, &p, &got)
    if r.error != 0:
        return -1
    if got < MARS_BLOCK:
        r.code = MARS_SCAN_SHORT
        r.why = why_of(r.code, got)
        return -1
    if adopting:
        adopt(e, p)
    r.code = mars_group_check_header(p, e, &info)
    if r.code == MARS_SCAN_OK and info.length > limit - e.pos:
        r.why = WHY_LIMIT
        return -1
    if r.code == MARS_SCAN_OK:
        r.error = peek(w, MARS_BLOCK + e.pos, <size_t>info.length, &p, &got)
        if r.error != 0:
            return -1
        r.code = mars_group_check_payloads(p, got, &info)
    if r.code != MARS_SCAN_OK:
        r.why = why_of(r.code, got)
        r.bad_record = info.bad_record
        return -1
    if bag.kind != 0 and bag_group(bag, p, e.pos, info.n_records) != 0:
        r.error = -1
        return -1
    count_group(r, &info)
    mars_group_advance(e, &info)
    return 0


cdef bint skip_hole(int fd, uint64_t *offset) noexcept nogil:
    """Move to the next data; False when only a hole is left. A file system that cannot tell has no holes."""
    cdef off_t data = lseek(fd, <off_t>offset[0], SEEK_DATA)
    if data < 0:
        return errno != ENXIO
    if <uint64_t>data > offset[0]:
        offset[0] = <uint64_t>data & ~<uint64_t>(MARS_BLOCK - 1)
    return True


cdef int look_beyond(Window *w, const mars_expect *e, uint64_t look, Result *r) noexcept nogil:
    """Rule 5: search `look` bytes behind the bad group at e.pos for a sound header of this log that was written when
    more than e.pos was durable. 0 or an errno."""
    cdef const uint8_t *p = NULL
    cdef size_t got = 0, i
    cdef int error
    cdef uint64_t at = 2 * MARS_BLOCK + e.pos, stop = NO_LIMIT
    cdef const mars_group_header *g
    if look < NO_LIMIT - at:
        stop = at + look
    while at < stop and skip_hole(w.fd, &at):
        error = peek(w, at, CHUNK, &p, &got)
        if error != 0:
            return error
        i = 0
        while i + MARS_BLOCK <= got and at + i < stop:
            if mars_group_is_ours(p + i, e.log_id, e.log_nr, at + i - MARS_BLOCK):
                g = <const mars_group_header *>(p + i)
                if g.durable > r.durable:
                    r.durable = g.durable
                if g.durable > e.pos:
                    r.beyond = g.pos
                    return 0
            i += MARS_BLOCK
        if got < CHUNK:
            return 0
        at += i
    return 0


cdef int run(Window *w, mars_expect *e, uint64_t limit, uint64_t known, uint64_t look, bint adopting, Bag *bag,
             Result *r) noexcept nogil:
    """The whole scan. 0, an errno, or -1 for no memory."""
    r.beyond = NO_LIMIT
    r.why = WHY_LIMIT
    while e.pos < limit:
        if one_group(w, e, limit, adopting, bag, r) != 0:
            break
        adopting = False
    if r.error != 0:
        return r.error
    if r.why == WHY_LIMIT or r.why == WHY_UNKNOWN or r.why == WHY_CORRUPT:
        return 0
    if known <= e.pos:
        r.error = look_beyond(w, e, look, r)
        if r.error != 0:
            return r.error
    if known > e.pos or r.beyond != NO_LIMIT:
        r.why = WHY_CORRUPT
    return 0


cdef int start_from(mars_expect *e, object header, uint64_t pos, object digest, uint64_t device_size) except -1:
    """Set the expectation at `pos` of the log with this header block."""
    cdef Py_buffer view
    cdef int code = MARS_SCAN_SHORT
    cdef bytes before = bytes(digest)
    PyObject_GetBuffer(header, &view, PyBUF_SIMPLE)
    try:
        if view.len == MARS_BLOCK:
            code = mars_file_header_check(<const uint8_t *>view.buf)
        if code == MARS_SCAN_OK:
            mars_expect_start(e, <const uint8_t *>view.buf)
    finally:
        PyBuffer_Release(&view)
    if code != MARS_SCAN_OK:
        raise ValueError(f"not the header of a log: {CODES[code]}")
    if pos % MARS_BLOCK != 0 or pos > POS_MAX:
        raise ValueError("a position is a multiple of 4096 below 2^62")
    if len(before) == 16:
        memcpy(e.digest, <const uint8_t *>before, 16)
    elif pos != 0 or len(before) != 0:
        raise ValueError("a digest has 16 bytes")
    e.pos = pos
    if device_size != 0:
        e.device_size = device_size
    return 0


def scan(int fd, header, uint64_t start_pos=0, start_digest=b"", start_group=0, start_record=0, limit_pos=None,
         int collect=0, uint64_t known_durable=0, uint64_t device_size=0, look=None):
    """See marsx/_ext/marsscan.pyi."""
    cdef mars_expect e
    cdef Window w
    cdef Bag bag
    cdef Result r
    cdef uint64_t limit = NO_LIMIT if limit_pos is None else limit_pos
    cdef uint64_t beyond = NO_LIMIT if look is None else look
    cdef bint adopting = start_group is None
    cdef int error
    cdef tuple row
    if limit < start_pos:
        raise ValueError("the limit lies before the start")
    start_from(&e, header, start_pos, start_digest, device_size)
    if not adopting:
        e.group_nr = start_group
        e.next_record = start_record
    memset(&bag, 0, sizeof(bag))
    memset(&r, 0, sizeof(r))
    bag.kind = collect
    if window_open(&w, fd, MARS_MAX_GROUP + CHUNK) != 0:
        raise MemoryError("no memory for the scan buffer")
    try:
        with nogil:
            error = run(&w, &e, limit, known_durable, beyond, adopting, &bag, &r)
        if error < 0:
            raise MemoryError("no memory for the records of the log")
        row = (e.pos, PyBytes_FromStringAndSize(<char *>e.digest, 16), e.group_nr, e.next_record, r.groups, r.records,
                REASONS[r.why], CODES[r.code], r.bad_record, None if r.beyond == NO_LIMIT else r.beyond, r.durable,
                r.lamport_ns, r.real_ns, e.device_size,
                PyBytes_FromStringAndSize(<char *>bag.data, bag.used) if collect else b"")
        if error > 0:
            failed = OSError(error, os.strerror(error))
            failed.row, failed.byte = row, w.at + w.have
            raise failed
        return row
    finally:
        munmap(w.buf, w.cap)
        free(bag.data)


cdef uint64_t check_groups(const uint8_t *p, uint64_t size, mars_expect *e, Result *r, uint64_t *need) noexcept nogil:
    """Step over whole groups in memory; returns the bytes accepted, r.code = why no more (short = all well so far)."""
    cdef mars_group_info info
    cdef uint64_t used = 0
    while True:
        need[0] = MARS_BLOCK
        r.code = MARS_SCAN_SHORT
        if size - used < MARS_BLOCK:
            return used
        r.code = mars_group_check_header(p + used, e, &info)
        if r.code == MARS_SCAN_OK:
            need[0] = info.length
            r.code = mars_group_check_payloads(p + used, size - used, &info)
        if r.code != MARS_SCAN_OK:
            r.bad_record = info.bad_record
            return used
        count_group(r, &info)
        mars_group_advance(e, &info)
        used += info.length


def check_buffer(data, header, uint64_t pos, digest, uint64_t group, uint64_t record, uint64_t device_size=0):
    """See marsx/_ext/marsscan.pyi."""
    cdef mars_expect e
    cdef Result r
    cdef Py_buffer view
    cdef uint64_t used, need = 0
    start_from(&e, header, pos, digest, device_size)
    e.group_nr = group
    e.next_record = record
    memset(&r, 0, sizeof(r))
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            used = check_groups(<const uint8_t *>view.buf, <uint64_t>view.len, &e, &r, &need)
    finally:
        PyBuffer_Release(&view)
    return (used, e.pos, PyBytes_FromStringAndSize(<char *>e.digest, 16), e.group_nr, e.next_record,
            "more" if r.code == MARS_SCAN_SHORT else "bad", CODES[r.code], r.bad_record, need, r.groups, r.records,
            r.durable, r.lamport_ns, e.device_size)
