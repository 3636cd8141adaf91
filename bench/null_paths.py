"""The FUSE + loop path of /dev/mars with a server that only drops or only stores the bytes: what the path itself costs.
And slow disks: the same path with a server that takes its time, as a disk with one arm does, or a fixed one.

The server is `tests/device/nullserver.c`, in a process of its own; the path is made by the product's own front end, so
that flags and limits are the same. Leaving the block takes the device away, whatever happened inside.
"""

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
if str(TOP) not in sys.path:
    sys.path.insert(0, str(TOP))

from marsx.device.loop import FuseLoop  # noqa: E402
from tools import loops  # noqa: E402

CLONES = 2      # more give nothing where nothing is stored
STORING = 8     # threads that wait for the disk, as many as it likes to have at a time
QUEUE = 32      # requests that a slow disk knows at a time, as native command queueing has it
# 7200 turns a minute; from track to track 0.5 ms, over the whole disk 16 ms, over a random way 8.8 ms
ARM = (8333.0, 500.0, 16000.0)
PR_SET_PDEATHSIG = 1


def _server_module():
    """The loader of the null server, which lives with the tests of the device."""
    sys.path.insert(0, str(TOP / "tests/device"))
    try:
        import nullserver
    finally:
        sys.path.pop(0)
    return nullserver


def build_server(folder: Path) -> str:
    """Compile the server into `folder`; the path of the library."""
    return _server_module().build(folder)


def _end_with_parent() -> None:
    """SIGKILL for this process when its parent ends, however that happens."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def _close_all_but(kept: set[int]) -> None:
    """A forked server must not hold the pipes that keep the hosts alive, nor the mount of its own device."""
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)


class NullPath:
    """`with NullPath(library, name, size, backing) as device:` -> `device.path`, a block device like /dev/mars/NAME.
    arm: as a disk with one arm; delay_us: each write takes so long, QUEUE of them at a time."""

    def __init__(self, library: str, name: str, size: int, backing: str = "", *, arm: bool = False,
                 delay_us: int = 0) -> None:
        self.library, self.name, self.size, self.backing = library, name, size, backing
        self.arm, self.delay_us = arm, delay_us
        self.path, self.server = "", 0
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> "NullPath":
        links = self._undo.enter_context(tempfile.TemporaryDirectory(prefix="marsx-null-"))
        with contextlib.ExitStack() as failed:
            failed.callback(self._undo.close)
            front = FuseLoop(links)
            slow = self.arm or self.delay_us
            channel = front.create(self.name, QUEUE if slow else STORING if self.backing else CLONES)
            self._serve(channel)
            try:
                attached = front.attach(self.name, channel.mount, self.size, 512, lambda number: None)
            finally:
                os.close(channel.mount)
            self.path = attached.path
            self._undo.callback(self._detach, front, attached)
            failed.pop_all()
        return self

    def _serve(self, channel) -> None:
        """Start the server process; it ends by itself when the device is gone."""
        pid = os.fork()
        if pid == 0:
            try:
                _end_with_parent()
                _close_all_but({0, 1, 2, *channel.fds})
                backing = os.open(self.backing, os.O_RDWR | os.O_DIRECT) if self.backing else -1
                server = _server_module().NullServer(self.library)
                if self.arm:
                    server.arm(self.size, *ARM)
                if self.delay_us:
                    server.tune(_server_module().WRITE_DELAY_US, self.delay_us)
                server.start(channel.fds, self.name, backing)
                os._exit(server.wait())
            finally:
                os._exit(99)
        for fd in channel.fds:
            os.close(fd)
        self.server = pid
        self._undo.callback(self._reap, pid)

    @staticmethod
    def _reap(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def _detach(self, front: FuseLoop, attached) -> None:
        if not loops.backing_file(attached.path):
            return
        busy = front.detach(self.name, attached, 5.0)
        if busy:
            print(f"bench: {attached.path} is still used by {busy}", file=sys.stderr)

    def __exit__(self, *_: object) -> None:
        self._undo.close()
