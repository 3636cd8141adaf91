"""Check sums, digests and the codec: CRC-32C, XXH3 and Blosc2 (lz4, zstd), each in one call per buffer.

Promises
 - Every CRC-32C and XXH3 kernel gives the same bits; the scalar one is the oracle. A kernel that is asked for by
   `select_kernel`, MARS_CRC_KERNEL or MARS_XXH3_KERNEL is used or refused, never replaced by another.
 - `decompress` is safe against hostile bytes: the 32-byte header must be exactly one that `compress` can have written
   (no filter, no dictionary, no lazy or uninitialised chunk, one of two codecs) and name a length that is allowed,
   before anything is allocated.
 - Nothing is shared between calls: all functions may run in many threads at once. Short buffers keep the GIL, because
   giving it away costs more than the work; long ones drop it once.

Stays thin: the kernels are in crc32c.h and xxh3.h, which other extensions include for themselves. A kernel selected
here is selected for this extension only.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.stdint cimport int16_t, int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

cdef extern from "crc32c.h" nogil:
    enum: MARS_CRC32C_KERNELS
    uint32_t mars_crc32c(uint32_t crc, const void *data, size_t len)
    const char *mars_crc32c_name(int id)
    int mars_crc32c_usable(int id)
    int mars_crc32c_select(int id)
    int mars_crc32c_selected()
    int mars_crc32c_env()

cdef extern from "xxh3.h" nogil:
    enum: MARS_XXH3_KERNELS
    void mars_xxh3_128(const void *data, size_t len, uint8_t *out)
    uint64_t mars_xxh3_64(const void *data, size_t len)
    const char *mars_xxh3_name(int id)
    int mars_xxh3_usable(int id)
    int mars_xxh3_select(int id)
    int mars_xxh3_selected()
    int mars_xxh3_env()

cdef extern from "blosc2.h" nogil:
    enum:
        BLOSC_LZ4
        BLOSC_ZSTD
        BLOSC_NEVER_SPLIT
        BLOSC_EXTENDED_HEADER_LENGTH
        BLOSC2_MAX_BUFFERSIZE
        BLOSC2_MAXBLOCKSIZE
    ctypedef struct blosc2_context:
        pass
    ctypedef struct blosc2_cparams:
        uint8_t compcode
        uint8_t clevel
        int32_t typesize
        int16_t nthreads
        int32_t blocksize
        int32_t splitmode
    ctypedef struct blosc2_dparams:
        int16_t nthreads
        int32_t typesize
    void blosc2_init()
    blosc2_context *blosc2_create_cctx(blosc2_cparams)
    blosc2_context *blosc2_create_dctx(blosc2_dparams)
    void blosc2_free_ctx(blosc2_context *)
    int blosc2_compress_ctx(blosc2_context *, const void *src, int32_t srcsize, void *dest, int32_t destsize)
    int blosc2_decompress_ctx(blosc2_context *, const void *src, int32_t srcsize, void *dest, int32_t destsize)

cdef enum:
    HOLD_BELOW = 16384      # bytes up to which a call keeps the GIL
    HEADER = 32             # bytes of a chunk's header
    NO_MEMORY = -1000       # outside the codec's own error numbers

MAX_LEN = int(BLOSC2_MAX_BUFFERSIZE)
"""The longest buffer that `compress` takes."""

cdef dict _CODECS = {"lz4": BLOSC_LZ4, "zstd": BLOSC_ZSTD}


def crc32c(buf, uint32_t crc=0):
    """CRC-32C of buf; with the result of an earlier call as crc, of everything so far."""
    cdef Py_buffer view
    PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE)
    if view.len < HOLD_BELOW:
        crc = mars_crc32c(crc, view.buf, <size_t>view.len)
    else:
        with nogil:
            crc = mars_crc32c(crc, view.buf, <size_t>view.len)
    PyBuffer_Release(&view)
    return crc


def xxh3_128(buf):
    """XXH3-128 of buf as 16 bytes, canonical (big endian) order."""
    cdef Py_buffer view
    cdef uint8_t out[16]
    PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE)
    if view.len < HOLD_BELOW:
        mars_xxh3_128(view.buf, <size_t>view.len, out)
    else:
        with nogil:
            mars_xxh3_128(view.buf, <size_t>view.len, out)
    PyBuffer_Release(&view)
    return PyBytes_FromStringAndSize(<char *>out, 16)


def xxh3_64(buf):
    """XXH3-64 of buf as a number."""
    cdef Py_buffer view
    cdef uint64_t result
    PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE)
    if view.len < HOLD_BELOW:
        result = mars_xxh3_64(view.buf, <size_t>view.len)
    else:
        with nogil:
            result = mars_xxh3_64(view.buf, <size_t>view.len)
    PyBuffer_Release(&view)
    return result


def kernels():
    """Names of the kernels that this processor can run, as `select_kernel` takes them; slowest first."""
    names = [f"crc32c/{mars_crc32c_name(i).decode()}" for i in range(MARS_CRC32C_KERNELS) if mars_crc32c_usable(i)]
    return names + [f"xxh3/{mars_xxh3_name(i).decode()}" for i in range(MARS_XXH3_KERNELS) if mars_xxh3_usable(i)]


def selected():
    """Names of the two kernels in use."""
    return (f"crc32c/{mars_crc32c_name(mars_crc32c_selected()).decode()}",
            f"xxh3/{mars_xxh3_name(mars_xxh3_selected()).decode()}")


def select_kernel(str name):
    """Uses kernel NAME (one of `kernels()`) from now on, in this extension; ValueError if it cannot run here."""
    cdef int i
    for i in range(MARS_CRC32C_KERNELS):
        if name == f"crc32c/{mars_crc32c_name(i).decode()}" and mars_crc32c_select(i) == 0:
            return
    for i in range(MARS_XXH3_KERNELS):
        if name == f"xxh3/{mars_xxh3_name(i).decode()}" and mars_xxh3_select(i) == 0:
            return
    raise ValueError(f"kernel {name!r} is unknown or not for this processor; there are: {', '.join(kernels())}")


# ---- codec

cdef int _compress(const void *src, int32_t size, void *dest, int32_t room, int codec, int level) noexcept nogil:
    """Bytes of the chunk, 0 if it does not fit into room, negative = error of the codec."""
    cdef blosc2_cparams params
    cdef blosc2_context *context
    cdef int result
    memset(&params, 0, sizeof(params))
    params.compcode = <uint8_t>codec
    params.clevel = <uint8_t>level
    params.typesize = 1
    params.nthreads = 1
    params.splitmode = BLOSC_NEVER_SPLIT
    if codec == BLOSC_ZSTD:     # one block: zstd finds far less in small ones
        params.blocksize = size if size < BLOSC2_MAXBLOCKSIZE else BLOSC2_MAXBLOCKSIZE
    context = blosc2_create_cctx(params)
    if context == NULL:
        return NO_MEMORY
    result = blosc2_compress_ctx(context, src, size, dest, room)
    blosc2_free_ctx(context)
    return result


cdef int _decompress(const void *src, int32_t size, void *dest, int32_t room) noexcept nogil:
    """Bytes written to dest; negative = error of the codec."""
    cdef blosc2_dparams params
    cdef blosc2_context *context
    cdef int result
    memset(&params, 0, sizeof(params))
    params.nthreads = 1
    params.typesize = 1
    context = blosc2_create_dctx(params)
    if context == NULL:
        return NO_MEMORY
    result = blosc2_decompress_ctx(context, src, size, dest, room)
    blosc2_free_ctx(context)
    return result


def compress(buf, str codec="lz4", int level=5):
    """buf as a chunk that `decompress` takes, or None if that would not be shorter. codec: lz4 or zstd, level 1 to 9.

    For zstd level 1 is meant: higher ones are several times slower.
    """
    cdef Py_buffer view
    cdef int code, result = 0
    cdef char *dest
    if codec not in _CODECS:
        raise ValueError(f"codec {codec!r} is unknown; there are: {', '.join(_CODECS)}")
    if not 1 <= level <= 9:
        raise ValueError(f"compression level {level} is not within 1 to 9")
    code = _CODECS[codec]
    PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE)
    try:
        if view.len > BLOSC2_MAX_BUFFERSIZE:
            raise ValueError(f"{view.len} bytes are too many to compress at once; at most {MAX_LEN}")
        if view.len <= HEADER + 1:
            return None
        dest = <char *>malloc(<size_t>view.len)
        if dest == NULL:
            raise MemoryError()
        try:
            with nogil:
                result = _compress(view.buf, <int32_t>view.len, dest, <int32_t>(view.len - 1), code, level)
            if result == NO_MEMORY:
                raise MemoryError()
            if result < 0:
                raise ValueError(f"the codec {codec} failed with its error {result}")
            return PyBytes_FromStringAndSize(dest, result) if result else None
        finally:
            free(dest)
    finally:
        PyBuffer_Release(&view)


cdef inline uint32_t _le32(const uint8_t *p) noexcept nogil:
    return p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24


cdef bint _template_holds(const uint8_t *head) noexcept nogil:
    """All bytes of the header besides the three lengths are ones that `_compress` makes."""
    cdef uint8_t want[HEADER]
    memcpy(want, head, HEADER)
    want[0] = 5                                         # chunk format
    want[1] = 1                                         # version of the codec's own format
    want[2] = 0x95 if head[2] == 0x95 else 0x35         # codec (zstd or lz4), not split, long header
    want[3] = 1                                         # type size
    memset(want + 16, 0, 16)                            # filters, their arguments, codec argument, flags
    want[22] = 5 if head[2] == 0x95 else 1              # codec again
    want[31] = 0x10 if head[31] == 0x10 else 0          # all zeros, or data
    return memcmp(want, head, HEADER) == 0


cdef Py_ssize_t _checked_length(const uint8_t *head, Py_ssize_t size, Py_ssize_t max_len) except -1:
    """Length of the contents by the header, if all of it is sound."""
    cdef uint32_t length, block, stored, blocks
    if size < HEADER:
        raise ValueError(f"compressed data of {size} bytes are shorter than their header")
    if not _template_holds(head):
        raise ValueError("the header of the compressed data is not one of ours")
    length, block, stored = _le32(head + 4), _le32(head + 8), _le32(head + 12)
    if not 0 < length <= <uint32_t>BLOSC2_MAX_BUFFERSIZE or length > max_len:
        raise ValueError(f"compressed data say they hold {length} bytes; allowed are {max_len}")
    if stored != size:
        raise ValueError(f"compressed data say they are {stored} bytes long; there are {size}")
    if not 0 < block <= length:
        raise ValueError(f"compressed data say blocks of {block} bytes in {length}")
    blocks = (length - 1) // block + 1
    if head[31] == 0x10:
        if stored != HEADER:
            raise ValueError(f"compressed zeros are {stored} bytes long")
    elif (stored - HEADER) // 4 < blocks or stored >= length:
        raise ValueError(f"compressed data of {stored} bytes cannot hold {blocks} blocks of {length} bytes")
    return length


def decompress(buf, Py_ssize_t max_len):
    """Contents of a chunk made by `compress`, at most max_len bytes; ValueError for anything else."""
    cdef Py_buffer view
    cdef Py_ssize_t length
    cdef char *dest
    cdef int result
    PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE)
    try:
        length = _checked_length(<const uint8_t *>view.buf, view.len, max_len)
        contents = PyBytes_FromStringAndSize(NULL, length)
        dest = PyBytes_AsString(contents)
        with nogil:
            result = _decompress(view.buf, <int32_t>view.len, dest, <int32_t>length)
        if result == NO_MEMORY:
            raise MemoryError()
        if result != length:
            raise ValueError(f"compressed data are damaged (the codec's error {result})")
        return contents
    finally:
        PyBuffer_Release(&view)


if mars_crc32c_env() < 0 or mars_xxh3_env() < 0:
    import os
    raise ValueError(
        f"MARS_CRC_KERNEL={os.environ.get('MARS_CRC_KERNEL', '')!r} or "
        f"MARS_XXH3_KERNEL={os.environ.get('MARS_XXH3_KERNEL', '')!r} demands a kernel that is unknown or not for this "
        f"processor; there are: {', '.join(kernels())}")
blosc2_init()
