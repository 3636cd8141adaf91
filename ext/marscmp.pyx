"""Block compare for sync and verify: digests of spans, what differs between two spans, span input and output, and
which blocks the records of a log touch.

A *span* is a run of blocks of one device; its digests are 16 bytes per block, one behind the other. The last block of
a span may be short (end of a device); its digest is that of the bytes it has.

Digest of a block, the same for every kind:
 - a block of zeros only has the reserved digest of 16 zero bytes (it costs no hashing, and needs no data on the wire);
 - every other block has the first 16 bytes of its hash (xxh3: XXH3-128 in canonical order; sha256; blake2b: with
   digest size 16), and if those happen to be all zero, 15 zero bytes and a one. So "reserved digest" and "block of
   zeros" mean the same, and two blocks of which just one is zero always differ.

Promises: everything that touches each block runs without the GIL, one call per span (kinds sha256 and blake2b hash
through hashlib instead and are for those who do not trust a hash without a key; they cost 40 times more). Reads and
writes go on until all is done or an error comes up: an error is an OSError, a short device too, never a short result.
Buffers that the caller hands in must not change or be shared with another writer during a call.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, EIO, ENODATA, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset, strerror
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_POPULATE, MAP_PRIVATE, PROT_READ, PROT_WRITE, madvise, mmap, munmap,
)
from posix.types cimport off_t
from posix.unistd cimport pread, pwrite
from format cimport *

cdef extern from "<sys/mman.h>" nogil:
    int MADV_DONTFORK

cdef extern from "disk.h" nogil:
    int mars_pread_all(int fd, void *buf, size_t len, uint64_t off)
    int mars_zero_range(int fd, uint64_t off, uint64_t len)

cdef extern from "crc32c.h" nogil:
    int mars_crc32c_env()

cdef extern from "xxh3.h" nogil:
    void mars_xxh3_128(const void *data, size_t len, uint8_t *out)
    int mars_xxh3_env()

cdef enum:
    DIGEST = 16
    PAGE = 4096
    KEPT = 16               # buffers that a pool holds for their next use
    END_OF_DEVICE = -1      # beside the numbers of errno, which are positive
    SAME = 0                # what two digests say about a block
    DATA = 1                # differs, and the other side has data
    ZERO = 2                # differs, and the other side has zeros

cdef Py_ssize_t LAST = <Py_ssize_t>((<size_t>1 << 63) - 1)     # no device reaches further
DIGEST_SIZE = int(DIGEST)
KINDS = ("xxh3", "sha256", "blake2b")


# ---- memory

cdef class BufferPool


cdef class AlignedBuffer:
    """Page aligned memory for O_DIRECT: present, zero at first (but from a pool), writable, reusable, of constant size.

    A child made by fork does not get it: a page shared with a child while the device writes into it would be lost.
    """
    cdef char *_start
    cdef Py_ssize_t _size
    cdef size_t _mapped
    cdef BufferPool _pool       # where the memory goes back to

    def __cinit__(self, Py_ssize_t size, BufferPool pool=None):
        cdef void *start
        if size <= 0 or size > (<Py_ssize_t>1 << 40):
            raise ValueError(f"a buffer of {size} bytes cannot be made")
        self._mapped = (<size_t>size + PAGE - 1) & ~<size_t>(PAGE - 1)
        self._pool = pool
        if pool is not None and pool.kept:
            pool.kept -= 1
            self._start, self._size = pool.memory[pool.kept], size
            return
        start = mmap(NULL, self._mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0)
        if start == MAP_FAILED:
            raise MemoryError()
        self._start = <char *>start
        self._size = size
        if madvise(start, self._mapped, MADV_DONTFORK) < 0:
            raise OSError(errno, f"madvise: {strerror(errno).decode()}")

    def __dealloc__(self):
        if self._start != NULL:
            if self._pool is not None and self._pool.kept < KEPT:
                self._pool.memory[self._pool.kept] = self._start
                self._pool.kept += 1
            else:
                munmap(self._start, self._mapped)

    def __len__(self):
        return self._size

    @property
    def address(self):
        """Where it starts; a multiple of the page size."""
        return <size_t>self._start

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self._start, self._size, 0, flags)


cdef class BufferPool:
    """Buffers of one size whose memory is used again when nobody refers to them any more: what a new one holds is
    anything. Used under the GIL alone; at most KEPT wait for their next use, none when the pool is gone."""
    cdef char *memory[KEPT]
    cdef int kept
    cdef readonly Py_ssize_t size

    def __cinit__(self, Py_ssize_t size):
        self.size = size

    def __dealloc__(self):
        while self.kept:        # each buffer refers to its pool, so none is out any more
            self.kept -= 1
            munmap(self.memory[self.kept], (<size_t>self.size + PAGE - 1) & ~<size_t>(PAGE - 1))

    def take(self):
        """A buffer."""
        return AlignedBuffer(self.size, self)


def is_aligned(buf):
    """True if buf begins at a page, as O_DIRECT wants it."""
    cdef Py_buffer view
    cdef bint result
    PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE)
    result = <size_t>view.buf % PAGE == 0
    PyBuffer_Release(&view)
    return bool(result)


# ---- digests

cdef inline bint _is_zero(const uint8_t *p, size_t size) noexcept nogil:
    return size == 0 or (p[0] == 0 and memcmp(p, p + 1, size - 1) == 0)


cdef inline void _seal(uint8_t *digest) noexcept nogil:
    """Keeps the reserved digest for blocks of zeros."""
    if _is_zero(digest, DIGEST):
        digest[DIGEST - 1] = 1


cdef void _digest_span(const uint8_t *p, size_t size, size_t block, uint8_t *out) noexcept nogil:
    cdef size_t step
    while size:
        step = block if block < size else size
        if _is_zero(p, step):
            memset(out, 0, DIGEST)
        else:
            mars_xxh3_128(p, step, out)
            _seal(out)
        p += step
        out += DIGEST
        size -= step


cdef void _mark_zero(const uint8_t *p, size_t size, size_t block, uint8_t *out) noexcept nogil:
    """One byte per block into out: 1 = zeros only."""
    cdef size_t step
    while size:
        step = block if block < size else size
        out[0] = _is_zero(p, step)
        p += step
        out += 1
        size -= step


cdef Py_ssize_t _blocks(Py_ssize_t size, Py_ssize_t block) except -1:
    if block <= 0:
        raise ValueError(f"a block of {block} bytes makes no sense")
    return (size + block - 1) // block if size else 0


cdef int _known(str kind) except -1:
    if kind not in KINDS:
        raise ValueError(f"digest kind {kind!r} is unknown; there are: {', '.join(KINDS)}")
    return 0


cdef bytes _hashed(Py_buffer *view, owner, Py_ssize_t block, str kind):
    """Digests through hashlib; only here the loop over blocks is Python's."""
    from hashlib import blake2b, sha256
    marks = PyBytes_FromStringAndSize(NULL, _blocks(view.len, block))
    cdef uint8_t *mark = <uint8_t *>PyBytes_AsString(marks)
    with nogil:
        _mark_zero(<const uint8_t *>view.buf, <size_t>view.len, <size_t>block, mark)
    span, result = memoryview(owner).cast("B")[:view.len], []
    for start, is_zeros in zip(range(0, view.len, block), marks):
        if is_zeros:
            digest = bytes(DIGEST)
        elif kind == "sha256":
            digest = sha256(span[start:start + block]).digest()[:DIGEST]
        else:
            digest = blake2b(span[start:start + block], digest_size=DIGEST).digest()
        if not is_zeros and digest == bytes(DIGEST):
            digest = bytes(DIGEST - 1) + b"\x01"
        result.append(digest)
    return b"".join(result)


cdef bytes _digests(Py_buffer *view, owner, Py_ssize_t block, str kind):
    """Digests of the first view.len bytes of owner, whose memory view describes."""
    cdef uint8_t *out
    if kind != "xxh3":
        return _hashed(view, owner, block, kind)
    result = PyBytes_FromStringAndSize(NULL, _blocks(view.len, block) * DIGEST)
    out = <uint8_t *>PyBytes_AsString(result)
    with nogil:
        _digest_span(<const uint8_t *>view.buf, <size_t>view.len, <size_t>block, out)
    return result


def digests(buf, Py_ssize_t block=4096, str kind="xxh3"):
    """Digests of the blocks of buf, 16 bytes each."""
    cdef Py_buffer view
    _known(kind)
    _blocks(0, block)
    PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE)
    try:
        return _digests(&view, buf, block, kind)
    finally:
        PyBuffer_Release(&view)


def is_zero(buf):
    """True if buf has no byte but zeros (or no byte)."""
    cdef Py_buffer view
    cdef bint result
    PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE)
    with nogil:
        result = _is_zero(<const uint8_t *>view.buf, <size_t>view.len)
    PyBuffer_Release(&view)
    return bool(result)


# ---- compare

cdef struct Sides:
    const uint8_t *mine
    const uint8_t *theirs
    Py_ssize_t count        # blocks
    Py_ssize_t step         # bytes of a block, or of a digest
    Py_ssize_t size         # bytes in all


cdef inline int _digest_state(const uint8_t *mine, const uint8_t *theirs) noexcept nogil:
    if memcmp(mine, theirs, DIGEST) == 0:
        return SAME
    return ZERO if _is_zero(theirs, DIGEST) else DATA


cdef inline bint _wanted(const Sides *sides, Py_ssize_t i, int states) noexcept nogil:
    """Block i differs, and in a way that states (DATA, ZERO or both) asks for; states 0 = the sides are contents."""
    cdef Py_ssize_t at = i * sides.step
    cdef Py_ssize_t size = sides.step if at + sides.step <= sides.size else sides.size - at
    if states:
        return (_digest_state(sides.mine + at, sides.theirs + at) & states) != 0
    return memcmp(sides.mine + at, sides.theirs + at, <size_t>size) != 0


cdef Py_ssize_t _runs(const Sides *sides, int states, int64_t *out, Py_ssize_t room) noexcept nogil:
    """Number of merged runs, at most room; into out, if it is there, first block and count of each."""
    cdef Py_ssize_t i = 0, start, runs = 0
    while i < sides.count and runs < room:
        if not _wanted(sides, i, states):
            i += 1
            continue
        start = i
        while i < sides.count and _wanted(sides, i, states):
            i += 1
        if out != NULL:
            out[2 * runs] = start
            out[2 * runs + 1] = i - start
        runs += 1
    return runs


cdef list _run_list(const Sides *sides, int states):
    cdef Py_ssize_t i, count
    cdef int64_t *out
    with nogil:
        count = _runs(sides, states, NULL, sides.count)
    if count == 0:
        return []
    out = <int64_t *>malloc(<size_t>count * 2 * sizeof(int64_t))
    if out == NULL:
        raise MemoryError()
    try:
        with nogil:     # room: a caller who breaks his promise and changes a buffer must not break memory
            count = _runs(sides, states, out, count)
        return [(out[2 * i], out[2 * i + 1]) for i in range(count)]
    finally:
        free(out)


cdef tuple _compared(mine, theirs, Py_ssize_t block, tuple wanted):
    """One list of runs for each of wanted; block 0 = the sides are digests."""
    cdef Py_buffer a, b
    cdef Sides sides
    PyObject_GetBuffer(mine, &a, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(theirs, &b, PyBUF_SIMPLE)
        try:
            if a.len != b.len:
                raise ValueError(f"{a.len} bytes cannot be compared with {b.len}")
            if block == 0 and a.len % DIGEST:
                raise ValueError(f"{a.len} bytes are not whole digests of {DIGEST}")
            sides.mine, sides.theirs = <const uint8_t *>a.buf, <const uint8_t *>b.buf
            sides.step, sides.size = block or DIGEST, a.len
            sides.count = _blocks(a.len, sides.step)
            return tuple([_run_list(&sides, states) for states in wanted])
        finally:
            PyBuffer_Release(&b)
    finally:
        PyBuffer_Release(&a)


def differ(mine, theirs):
    """Where two strings of digests differ: merged runs [(first block, number of blocks)...]."""
    return _compared(mine, theirs, 0, (DATA | ZERO,))[0]


def differ_split(mine, theirs):
    """As `differ`, in two lists: runs whose data must be fetched, and runs that are zeros on the other side."""
    return _compared(mine, theirs, 0, (DATA, ZERO))


def compare(mine, theirs, Py_ssize_t block=4096):
    """Where the contents of two buffers differ, byte by byte: merged runs [(first block, number of blocks)...]."""
    if block <= 0:
        raise ValueError(f"a block of {block} bytes makes no sense")
    return _compared(mine, theirs, block, (0,))[0]


# ---- span input and output

cdef int _read_all(int fd, char *p, Py_ssize_t size, off_t offset, Py_ssize_t *done) noexcept nogil:
    """Goes on behind done[0]; 0 = all is there, END_OF_DEVICE, or the error's number."""
    cdef ssize_t got
    while done[0] < size:
        got = pread(fd, p + done[0], <size_t>(size - done[0]), offset + done[0])
        if got < 0:
            return errno
        if got == 0:
            return END_OF_DEVICE
        done[0] += got
    return 0


cdef int _write_all(int fd, const char *p, Py_ssize_t size, off_t offset, Py_ssize_t *done) noexcept nogil:
    """Goes on behind done[0]; 0 = all is written, or the error's number."""
    cdef ssize_t put
    while done[0] < size:
        put = pwrite(fd, p + done[0], <size_t>(size - done[0]), offset + done[0])
        if put < 0:
            return errno
        if put == 0:
            return EIO      # neither progress nor a reason: must not become a loop
        done[0] += put
    return 0


cdef int _transfer(bint write, int fd, Py_ssize_t offset, char *p, Py_ssize_t size) except -1:
    """All size bytes, or OSError."""
    cdef Py_ssize_t done = 0
    cdef int code = EINTR
    if offset < 0 or offset > LAST - size:
        raise ValueError(f"a span of {size} bytes at {offset} is not on any device")
    while code == EINTR:
        with nogil:
            if write:
                code = _write_all(fd, p, size, offset, &done)
            else:
                code = _read_all(fd, p, size, offset, &done)
        if code == EINTR:
            PyErr_CheckSignals()
    if code == 0:
        return 0
    what = f"{'writing' if write else 'reading'} {size} bytes at {offset} stopped after {done}"
    if code == END_OF_DEVICE:
        raise OSError(ENODATA, f"{what}: end of the device")
    raise OSError(code, f"{what}: {strerror(code).decode()}")


def read_span(int fd, Py_ssize_t offset, buf):
    """Fills the writable buf from fd at offset."""
    cdef Py_buffer view
    PyObject_GetBuffer(buf, &view, PyBUF_WRITABLE)
    try:
        _transfer(False, fd, offset, <char *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


def write_span(int fd, Py_ssize_t offset, buf):
    """Writes all of buf to fd at offset. The data are not durable by that."""
    cdef Py_buffer view
    PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE)
    try:
        _transfer(True, fd, offset, <char *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


def zero_span(int fd, Py_ssize_t offset, Py_ssize_t length):
    """Makes the range read as zeros (rule 10), freed where the device can do both. Not durable by that."""
    cdef int code
    if offset < 0 or length < 0 or offset > LAST - length:
        raise ValueError(f"a span of {length} bytes at {offset} is not on any device")
    with nogil:
        code = mars_zero_range(fd, <uint64_t>offset, <uint64_t>length)
    if code < 0:
        raise OSError(-code, f"zeroing {length} bytes at {offset}: {strerror(-code).decode()}")


def read_digests(int fd, Py_ssize_t offset, Py_ssize_t length, Py_ssize_t block, scratch, str kind="xxh3"):
    """Digests of the span of fd at offset; its contents stay in the first length bytes of scratch.

    scratch is writable; for a descriptor with O_DIRECT an AlignedBuffer, and offset and length whole logical blocks.
    """
    cdef Py_buffer view
    _known(kind)
    _blocks(0, block)
    PyObject_GetBuffer(scratch, &view, PyBUF_WRITABLE)
    try:
        if not 0 <= length <= view.len:
            raise ValueError(f"a span of {length} bytes does not fit into a buffer of {view.len}")
        _transfer(False, fd, offset, <char *>view.buf, length)
        view.len, whole = length, view.len
        try:
            return _digests(&view, scratch, block, kind)
        finally:
            view.len = whole
    finally:
        PyBuffer_Release(&view)


# ---- what a log touches

cdef struct Hull:               # of the blocks that are asked about
    uint64_t start, end, block


cdef void _mark_records(const uint8_t *group, uint32_t count, const Hull *hull, uint8_t *marks) noexcept nogil:
    """Marks every block that a record of this group changes."""
    cdef const mars_record *r = mars_group_table(group)
    cdef uint64_t first, end
    cdef uint32_t i
    for i in range(count):
        first, end = r[i].offset, r[i].offset + r[i].length
        if r[i].length == 0 or end <= hull.start or first >= hull.end:
            continue
        first = (first - hull.start) // hull.block if first > hull.start else 0
        end = ((end if end < hull.end else hull.end) - hull.start + hull.block - 1) // hull.block
        memset(marks + first, 1, end - first)


cdef int _walk(int fd, mars_expect *e, uint64_t limit, int adopt, const Hull *hull, uint8_t *block,
               uint8_t *marks) noexcept nogil:
    """Header blocks from e.pos to `limit`. 0, a code of a group that does not hold, or a negative errno."""
    cdef const mars_group_header *g = <const mars_group_header *>block
    cdef mars_group_info info
    cdef int rc = 0
    while e.pos < limit and rc == 0:
        rc = mars_pread_all(fd, block, MARS_BLOCK, MARS_BLOCK + e.pos)
        if rc < 0:
            break
        if adopt:               # only the digest is known here; it covers the numbers of the group behind it
            e.group_nr, e.next_record = g.group_nr, g.first_record
            adopt = 0
        rc = mars_group_check_header(block, e, &info)
        if rc == MARS_SCAN_OK:
            _mark_records(block, info.n_records, hull, marks)
            mars_group_advance(e, &info)
    return rc


def touched(int fd, bytes header, uint64_t pos, bytes digest, uint64_t limit, marks, uint64_t offset,
            uint64_t length, uint64_t block):
    """Sets marks[i] = 1 for each block i of [offset, offset + length) that a record of the log between POS `pos`
    (chain digest `digest`) and POS `limit` touches; both are ends of groups. Payloads are not read.

    Raises ValueError where the log does not hold from `pos` to just `limit`, OSError where it cannot be read."""
    cdef Py_buffer view
    cdef mars_expect e
    cdef Hull hull
    cdef uint8_t page[MARS_BLOCK]
    cdef int rc
    if len(header) != MARS_BLOCK or mars_file_header_check(<const uint8_t *>header) != 0:
        raise ValueError("not a sound log header block")
    if len(digest) != DIGEST or block == 0 or length > <uint64_t>LAST or offset > <uint64_t>LAST - length:
        raise ValueError("a digest of 16 bytes, and blocks of a device are needed")
    mars_expect_start(&e, <const uint8_t *>header)
    hull.start, hull.end, hull.block = offset, offset + length, block
    if pos:
        e.pos = pos
        memcpy(e.digest, <const uint8_t *>digest, DIGEST)
    elif memcmp(e.digest, <const uint8_t *>digest, DIGEST) != 0:
        raise ValueError("the log begins with another digest")
    PyObject_GetBuffer(marks, &view, PyBUF_WRITABLE)
    try:
        if <uint64_t>view.len * block < length:
            raise ValueError(f"{view.len} marks are too few for {length} bytes in blocks of {block}")
        with nogil:
            rc = _walk(fd, &e, limit, pos != 0, &hull, &page[0], <uint8_t *>view.buf)
    finally:
        PyBuffer_Release(&view)
    if rc < 0:
        raise OSError(-rc, f"reading log {e.log_nr} at {e.pos}: {strerror(-rc).decode()}")
    if rc > 0 or e.pos != limit:
        raise ValueError(f"log {e.log_nr} does not hold at {e.pos} (code {rc}), up to {limit} it was asked for")


if mars_xxh3_env() < 0 or mars_crc32c_env() < 0:
    import os
    asked = {name: os.environ[name] for name in ("MARS_XXH3_KERNEL", "MARS_CRC_KERNEL") if name in os.environ}
    raise ValueError(f"{asked} demands a kernel that is unknown or not for this processor")
