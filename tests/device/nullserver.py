"""Test-only FUSE server (nullserver.c) as a Python object, and a whole null device for measurements.

    lib = build(directory)                       # compiles, returns the path of the library
    server = NullServer(lib); server.start(fds, "name", backing_fd, resend=False)
    with null_device(lib, "bench", size) as path: ...   # /dev/loopN with nothing behind it: the empty path
"""
from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from marsx.device.loop import FuseLoop

READ, WRITE, FSYNC, FALLOCATE, RESENT = 15, 16, 20, 43, 0
WRITE_DELAY_US, FSYNC_ERROR, READ_ERROR = 1, 2, 3


def build(directory: str | Path) -> str:
    """Compile the server; the path of the library."""
    source = Path(__file__).with_name("nullserver.c")
    target = Path(directory) / "nullserver.so"
    command = ["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread", "-o", str(target), str(source),
               "-lm"]
    subprocess.run(command, check=True)
    return str(target)


class NullServer:
    """One connection served by threads of this process; they die with it, like the worker's."""

    def __init__(self, library: str) -> None:
        self._lib = ctypes.CDLL(library)
        self._lib.null_count.restype = ctypes.c_uint64

    def start(self, fds: Sequence[int], name: str, backing: int = -1, resend: bool = False) -> None:
        error = self._lib.null_start((ctypes.c_int * len(fds))(*fds), len(fds), name.encode(), backing, int(resend))
        if error:
            raise OSError(error, os.strerror(error))

    def wait(self) -> int:
        """0 when every thread has seen the end of the connection."""
        return self._lib.null_wait()

    def count(self, op: int) -> int:
        return self._lib.null_count(op)

    def arm(self, size: int, turn_us: float, least_us: float, most_us: float) -> None:
        """From now on this is a disk with one arm, as armdisk.h has it."""
        self._lib.null_arm(*map(ctypes.c_double, (size, turn_us, least_us, most_us)))

    def tune(self, what: int, value: int) -> None:
        self._lib.null_tune(what, ctypes.c_int64(value))


@contextlib.contextmanager
def null_device(library: str, name: str, size: int, *, block_size: int = 512, clones: int = 2, backing: str = "",
                delay_us: int = 0) -> Iterator[str]:
    """Path of a block device with a file or nothing behind it; each write takes `delay_us`, `clones` at a time."""
    with tempfile.TemporaryDirectory(prefix="mars-null-") as links:
        front = FuseLoop(links)
        channel = front.create(name, clones)
        pid = os.fork()
        if pid == 0:
            os.close(channel.mount)
            server = NullServer(library)
            server.tune(WRITE_DELAY_US, delay_us)
            server.start(channel.fds, name, os.open(backing, os.O_RDWR | os.O_DIRECT) if backing else -1)
            os._exit(server.wait())
        attached = None
        try:
            for fd in channel.fds:
                os.close(fd)
            attached = front.attach(name, channel.mount, size, block_size, lambda number: None)
            os.close(channel.mount)
            yield attached.path
        finally:
            if attached is None or front.detach(name, attached, 5.0):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
