"""The symlinks of a directory with their values and times, for programs that read the whole tree at each call.

One call a directory, two system calls a link: the value first, then the times, so that a link that has rested since
before the call is known whole (`tree.store.Store._scan`). Nothing is opened for writing, no link is followed.
"""
from cpython.exc cimport PyErr_SetFromErrnoWithFilename
from libc.errno cimport errno
from libc.stdint cimport int64_t

cdef extern from "<dirent.h>" nogil:
    ctypedef struct DIR:
        pass
    struct dirent:
        unsigned char d_type
        char *d_name
    int DT_LNK, DT_DIR, DT_UNKNOWN
    DIR *fdopendir(int fd)
    dirent *readdir(DIR *dir)
    int closedir(DIR *dir)

cdef extern from "<fcntl.h>" nogil:
    int AT_SYMLINK_NOFOLLOW, O_RDONLY, O_DIRECTORY, O_CLOEXEC
    int c_open "open"(const char *path, int flags)

cdef extern from "<unistd.h>" nogil:
    ssize_t readlinkat(int dirfd, const char *name, char *buf, size_t size)
    int c_close "close"(int fd)

cdef extern from "<sys/stat.h>" nogil:
    struct timespec:
        int64_t tv_sec
        int64_t tv_nsec
    struct stat_s "stat":
        unsigned int st_mode
        timespec st_mtim
        timespec st_ctim
    int fstatat(int dirfd, const char *name, stat_s *found, int flags)
    bint S_ISDIR(unsigned int mode)
    bint S_ISLNK(unsigned int mode)

cdef extern from "Python.h":
    object PyUnicode_DecodeFSDefaultAndSize(const char *text, Py_ssize_t size)
    object PyUnicode_DecodeFSDefault(const char *text)

cdef enum:
    VALUE_SPACE = 4096  # what the kernel gives at most


def links(str path):
    """(links, directories) of one directory, which is opened as it is: links are (name, value, mtime, ctime) in ns, the
    value None for one that vanished or changed its kind meanwhile; all other entries are left out."""
    raw = path.encode("utf-8", "surrogateescape")
    cdef int fd = c_open(raw, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    cdef DIR *handle = fdopendir(fd) if fd >= 0 else NULL
    if handle == NULL:
        if fd >= 0:
            c_close(fd)
        PyErr_SetFromErrnoWithFilename(OSError, raw)
    cdef list found = []
    cdef list directories = []
    try:
        _read(handle, fd, found, directories, raw)
    finally:
        closedir(handle)
    return found, directories


cdef int _read(DIR *handle, int fd, list found, list directories, bytes raw) except -1:
    cdef dirent *item
    cdef stat_s status
    cdef char value[VALUE_SPACE]
    cdef ssize_t length
    cdef int kind
    while True:
        (&errno)[0] = 0
        item = readdir(handle)
        if item == NULL:
            if errno:
                PyErr_SetFromErrnoWithFilename(OSError, raw)
            return 0
        kind = item.d_type
        if kind == DT_UNKNOWN and not fstatat(fd, item.d_name, &status, AT_SYMLINK_NOFOLLOW):
            kind = DT_LNK if S_ISLNK(status.st_mode) else DT_DIR if S_ISDIR(status.st_mode) else DT_UNKNOWN
        if kind == DT_LNK:
            length = readlinkat(fd, item.d_name, value, VALUE_SPACE)
            name = PyUnicode_DecodeFSDefault(item.d_name)
            if length < 0 or length == VALUE_SPACE or fstatat(fd, item.d_name, &status, AT_SYMLINK_NOFOLLOW):
                found.append((name, None, 0, 0))
            else:
                found.append((
                    name, PyUnicode_DecodeFSDefaultAndSize(value, length),
                    status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec,
                    status.st_ctim.tv_sec * 1000000000 + status.st_ctim.tv_nsec))
        elif kind == DT_DIR and item.d_name[0] != b".":
            directories.append(PyUnicode_DecodeFSDefault(item.d_name))
