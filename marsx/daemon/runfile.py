"""Who runs here: the files `marsd.pid`, `worker.lock` and `keeper.state` in the run directory.

Invariants:
  * A keeper runs here exactly while `marsd.pid` is locked. It is a POSIX record lock: the kernel itself names the
    holder, so a stale file, a reused pid or a lying file can never make `marsd stop` signal a stranger. Such a lock
    falls when its process closes *any* descriptor of the file: nobody in the keeper opens it a second time.
  * A worker that may still write runs here while `worker.lock` is locked (flock: it belongs to the open file, which
    keeper and worker share). After the keeper's death its worker still holds it: no new keeper starts one beside it
    (rule 3).
  * `keeper.state` tells people and the next keeper what the keeper holds; it decides nothing while a keeper runs.
"""
from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
from typing import Any

from marsx.base.errors import PreconditionError

PID_FILE = "marsd.pid"
WORKER_LOCK = "worker.lock"
STATE_FILE = "keeper.state"
_STATE_MAX = 4 << 20
_FLOCK = struct.Struct("hhqqi4x")
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW


def _path(run_dir: str, name: str) -> str:
    return os.path.join(run_dir, name)


def keeper_pid(run_dir: str) -> int:
    """Pid of the keeper that runs here, from the kernel; 0 when none does."""
    try:
        fd = os.open(_path(run_dir, PID_FILE), os.O_RDONLY | _OPEN)
    except FileNotFoundError:
        return 0
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    finally:
        os.close(fd)
    return 0 if kind == fcntl.F_UNLCK else pid


def lock_keeper(run_dir: str) -> int:
    """This process is the keeper until it ends; the descriptor stays open. PreconditionError: another one is."""
    fd = os.open(_path(run_dir, PID_FILE), os.O_RDWR | os.O_CREAT | _OPEN, 0o600)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise already_running(run_dir) from None
    os.fchmod(fd, 0o600)
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def already_running(run_dir: str) -> PreconditionError:
    """The answer to a second `marsd start`."""
    return PreconditionError(f"marsd is already running (pid {keeper_pid(run_dir) or 'unknown'})",
                             "marsd status shows it, marsd stop ends it")


def lock_worker(run_dir: str) -> int:
    """Descriptor for the worker to inherit: tells the next keeper that this one lives. BlockingIOError: one lives."""
    fd = os.open(_path(run_dir, WORKER_LOCK), os.O_RDWR | os.O_CREAT | _OPEN, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def write_state(run_dir: str, state: dict[str, Any]) -> None:
    """Replace the state as a whole. The run directory is memory: nothing is synced."""
    partial = _path(run_dir, f".{STATE_FILE}.{os.getpid()}")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _OPEN, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(json.dumps(state).encode())
        os.rename(partial, _path(run_dir, STATE_FILE))
    except OSError:
        os.unlink(partial)
        raise


def read_state(run_dir: str) -> dict[str, Any]:
    """What the keeper, or the last one, wrote; empty when there is nothing that can be read."""
    try:
        fd = os.open(_path(run_dir, STATE_FILE), os.O_RDONLY | _OPEN)
        with open(fd, "rb") as file:
            state = json.loads(file.read(_STATE_MAX))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
