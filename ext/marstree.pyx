"""The symlinks of directories with their values and times, for programs that read the whole tree at each call.

One call reads many directories (treescan.h): two system calls a link, by several threads where there is much to read.
The value comes first, then the times, so that a link that has rested since before the call is known whole
(`tree.store.Store`). Nothing is opened for writing, no link is followed.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint16_t, uint32_t
from libc.stdlib cimport calloc
from libc.string cimport memset

cdef extern from "treescan.h" nogil:
    int TREE_THREADS
    uint32_t TREE_NO_VALUE
    struct tree_item:
        int64_t mtime, ctime
        uint32_t value_length
        uint16_t name_length, is_dir
    struct tree_dir:
        const char *path
        size_t begin, end
        int by, error
    struct tree_memory:
        char *bytes
    struct tree_scan:
        tree_dir *dirs
        size_t count
        tree_memory *memories
    void c_tree_scan "tree_scan"(tree_scan *s, int threads)
    void tree_scan_free(tree_scan *s)

cdef extern from "Python.h":
    object PyUnicode_DecodeFSDefaultAndSize(const char *text, Py_ssize_t size)

cdef enum:
    FEW = 16  # directories that are read before a second thread is there


def links(list paths, int threads=0):
    """For each directory (links, directories, errno): links are (name, value, mtime, ctime) in ns, the value None for
    one that vanished or changed its kind meanwhile; directories are names; errno is 0, or why it could not be read.
    `threads` 0: as many as there are processors for."""
    cdef tree_scan scan
    cdef size_t at
    cdef list raw = [path.encode("utf-8", "surrogateescape") for path in paths]
    cdef list found = []
    if threads <= 0:
        threads = _processors() if len(raw) >= FEW else 1
    memset(&scan, 0, sizeof(scan))
    scan.count = len(raw)
    scan.dirs = <tree_dir *>calloc(scan.count + 1, sizeof(tree_dir))
    if scan.dirs == NULL:
        raise MemoryError
    try:
        for at in range(scan.count):
            scan.dirs[at].path = raw[at]
        with nogil:
            c_tree_scan(&scan, threads)
        for at in range(scan.count):
            if scan.dirs[at].error == ENOMEM:
                raise MemoryError
            found.append(_found(scan.memories[scan.dirs[at].by].bytes, &scan.dirs[at]))
    finally:
        tree_scan_free(&scan)
    return found


cdef int _processors() except -1:
    import os

    return min(TREE_THREADS, len(os.sched_getaffinity(0)))


cdef tuple _found(const char *memory, const tree_dir *d):
    cdef list found = []
    cdef list directories = []
    cdef size_t place = d.begin
    cdef const tree_item *item
    cdef const char *name
    while place < d.end:
        item = <const tree_item *>(memory + place)
        name = memory + place + sizeof(tree_item)
        text = PyUnicode_DecodeFSDefaultAndSize(name, item.name_length)
        place += sizeof(tree_item) + item.name_length
        if item.is_dir:
            directories.append(text)
        elif item.value_length == TREE_NO_VALUE:
            found.append((text, None, 0, 0))
        else:
            found.append((text, PyUnicode_DecodeFSDefaultAndSize(name + item.name_length, item.value_length),
                          item.mtime, item.ctime))
            place += item.value_length
        place = (place + 7) & ~<size_t>7
    return found, directories, d.error
