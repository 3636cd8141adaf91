"""Short-lived children of the keeper: each does one thing that may wait, and tells the keeper how it went.

The keeper must never wait for a device, a disk or a server. So everything that could is done in a forked child:

    keeper                                   child
    start() ---- fork -------------------->  closes all descriptors but its own few, ignores the keeper's signals
    on_readable() <--- {"step": ...} ------  before something that must be on record first; waits
             ---- "go" ------------------->
    on_readable() <--- result (+ fds) -----  once
    reaped() <---------------------------    ends

A child holds no /dev/fuse descriptor, no data disk and no lock of the keeper: however long it hangs, it keeps nothing
alive except what it was given. A result that comes after the time-out is still applied to the keeper's picture; only
the worker that asked has been answered already. Children are never killed while the keeper lives.
"""
from __future__ import annotations

import errno
import json
import os
import signal
import socket
import stat
import struct
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from marsx.base import disk
from marsx.base.errors import MarsError

MESSAGE_MAX = 1 << 20
FDS_MAX = 128
TIMEOUTS = {"disk-open": 60.0, "disk-close": 60.0, "dev-create": 30.0, "dev-attach": 120.0, "dev-detach": 600.0,
            "dev-resize": 60.0, "dev-users": 20.0}
"""Seconds until a worker that gives no `timeout` hears ETIMEDOUT. detach is long: it writes all dirty pages."""
_GO = b"go"

Result = tuple[dict[str, Any], list[int]]
Work = Callable[["Child"], Result]


def receive(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """(message, descriptors); message None at the end of the line. BlockingIOError when there is nothing."""
    # Not socket.recv_fds: it drops the flags, and the descriptors would be inherited by whatever is started next.
    data, parts, flags, _ = sock.recvmsg(MESSAGE_MAX, socket.CMSG_LEN(FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC)
    fds = [fd for level, kind, body in parts if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
           for fd in struct.unpack(f"{len(body) // 4}i", body[:len(body) // 4 * 4])]
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EMSGSIZE, "a message between worker and keeper was cut off")
    if not data:
        return None, fds
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("not a message")
    return message, fds


def send(sock: socket.socket, message: dict[str, Any], fds: Iterable[int] = ()) -> None:
    """One message with its descriptors."""
    socket.send_fds(sock, [json.dumps(message).encode()], list(fds))


class Child:
    """The child's view of its line to the keeper."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def step(self, **what: Any) -> None:
        """Tell the keeper what comes next; returns when it is on record."""
        send(self._sock, {"step": what})
        self.wait()

    def wait(self) -> None:
        """Until the keeper says go on; a keeper that is gone says nothing any more."""
        if self._sock.recv(16) != _GO:
            raise OSError(errno.ECANCELED, "the keeper is gone")


class Job:
    """One child, from the request to its end.

    `apply(result, fds)` puts the result into the keeper's picture and gives the answer for the worker; it runs once,
    also when nobody waits for the answer any more. `keep` names the descriptors that the child needs, `forked` runs in
    the keeper right after the fork; both see the keeper's picture at that moment, and so does `work`: not that of the
    request.
    """

    def __init__(self, key: tuple[str, str], work: Work,
                 apply: Callable[[dict[str, Any], list[int]], Result] | None = None, *,
                 keep: Callable[[], Iterable[int]] = tuple, forked: Callable[[], None] | None = None,
                 on_step: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.key = key
        self.work = work
        self.apply = apply or (lambda result, fds: (result, fds))
        self.keep = keep
        self.forked = forked
        self.on_step = on_step
        self.deadline = 0.0
        self.request: dict[str, Any] = {}
        self.generation = 0
        self.answered = False
        self.pid = 0
        self.sock: socket.socket | None = None
        self.result: dict[str, Any] | None = None
        self.fds: list[int] = []

    def start(self) -> None:
        """Fork the child."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if self.pid == 0:
            _run_child(theirs, tuple(self.keep()), self.work)
        theirs.close()
        ours.setblocking(False)
        self.sock = ours
        if self.forked:
            self.forked()
            self.go()

    def on_readable(self) -> None:
        """Take what the child has sent so far."""
        while self.sock is not None:
            try:
                message, fds = receive(self.sock)
            except BlockingIOError:
                return
            except (OSError, ValueError) as error:
                message, fds = {"error": f"a helper of the keeper said nonsense: {error}", "errno": errno.EPROTO}, []
            if message is None:
                self.sock.close()
                self.sock = None
            elif "step" in message:
                if self.on_step:
                    self.on_step(message["step"])
                self.go()
            else:
                self.result, self.fds = message, fds

    def go(self) -> None:
        """Let a waiting child go on."""
        if self.sock is not None:
            try:
                self.sock.send(_GO)
            except OSError:
                """The child is gone; its end is reported by waitpid."""

    def reaped(self, status: int) -> None:
        """The child has ended: its result is final."""
        self.on_readable()
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        if self.result is None:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            self.result = {"error": f"a helper of the keeper ended by {how}", "errno": errno.EIO, "died": True}


def _run_child(sock: socket.socket, keep: tuple[int, ...], work: Work) -> None:
    """Never returns."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        close_all_but((sock.fileno(), *keep))
        try:
            message, fds = work(Child(sock))
        except OSError as error:
            message, fds = refusal(error), []
        except MarsError as error:
            code = getattr(error.__cause__, "errno", None) or errno.EPERM
            message, fds = {"error": error.text, "hint": error.hint, "errno": code, "exit": error.exit_code}, []
        send(sock, message, fds)
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(1)


def refusal(error: OSError) -> dict[str, Any]:
    """The answer that carries an error of the operating system."""
    text = error.strerror or str(error)
    if error.filename:
        text = f"{error.filename}: {text}"
    return {"error": text, "errno": error.errno or errno.EIO}


def close_all_but(keep: Iterable[int]) -> None:
    """Close every descriptor except 0, 1, 2 and those in `keep`."""
    low = 3
    for fd in sorted(set(keep)):
        if fd >= low:
            os.closerange(low, fd)
            low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


# ---- work on data disks; may wait for sick hardware ------------------------------------------------------------------

def open_disk(path: str, forbidden: Iterable[int]) -> Result:
    """In a child: open a data device for us alone. `forbidden`: device numbers that are our own devices."""
    facts = os.stat(path)
    if not stat.S_ISBLK(facts.st_mode):
        raise OSError(errno.ENOTBLK, "not a block device", path)
    if facts.st_rdev in forbidden:
        raise OSError(errno.ELOOP, "is a device of marsd itself", path)
    fd = disk.open_exclusive(path)
    os.set_blocking(fd, True)
    return {"ok": True}, [fd]


def close_disk(fd: int | None) -> Result:
    """In a child: be the last to close a disk that the keeper has closed already; the close may wait for hardware."""
    if fd is None:
        raise OSError(errno.EBADF, "the keeper does not hold that disk")
    os.close(fd)
    return {"ok": True}, []
