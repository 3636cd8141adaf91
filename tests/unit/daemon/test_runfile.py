"""Who runs here: the kernel names the holder, stale files mean nothing, a worker's lock outlives its keeper."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from marsx.base.errors import PreconditionError
from marsx.daemon import runfile


def in_child(work) -> int:  # type: ignore[no-untyped-def]
    """Exit status of `work()` in a forked process."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_nobody_runs_in_an_empty_directory(tmp_path: Path) -> None:
    assert runfile.keeper_pid(str(tmp_path)) == 0
    assert runfile.read_state(str(tmp_path)) == {}


def test_lock_names_its_holder_and_keeps_others_out(tmp_path: Path) -> None:
    fd = runfile.lock_keeper(str(tmp_path))
    me = os.getpid()

    def other() -> int:
        if runfile.keeper_pid(str(tmp_path)) != me:
            return 1
        try:
            runfile.lock_keeper(str(tmp_path))
        except PreconditionError as error:
            return 0 if f"pid {me}" in error.text else 2
        return 3

    assert in_child(other) == 0
    os.close(fd)


def test_pid_file_without_lock_means_nobody(tmp_path: Path) -> None:
    """A reused pid in a stale file is nobody."""
    (tmp_path / runfile.PID_FILE).write_text(f"{os.getpid()}\n")
    assert runfile.keeper_pid(str(tmp_path)) == 0
    assert in_child(lambda: 0 if runfile.keeper_pid(str(tmp_path)) == 0 else 1) == 0


def test_lock_falls_with_its_process(tmp_path: Path) -> None:
    assert in_child(lambda: 0 if runfile.lock_keeper(str(tmp_path)) else 1) == 0
    assert runfile.keeper_pid(str(tmp_path)) == 0
    assert (tmp_path / runfile.PID_FILE).read_text().strip().isdigit()


def test_child_of_the_keeper_does_not_hold_its_lock(tmp_path: Path) -> None:
    """A hanging helper of a dead keeper must not look like a keeper."""
    reader, writer = os.pipe()

    def keeper() -> int:
        runfile.lock_keeper(str(tmp_path))
        if os.fork() == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        return 0

    assert in_child(keeper) == 0
    assert runfile.keeper_pid(str(tmp_path)) == 0
    os.close(writer)
    os.close(reader)


def test_worker_lock_is_shared_by_inheritance(tmp_path: Path) -> None:
    """Rule 3: while any process holds the open file nobody else gets the lock; the keeper's end does not free it."""
    fd = runfile.lock_worker(str(tmp_path))
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(fd)
    with pytest.raises(BlockingIOError):
        runfile.lock_worker(str(tmp_path))
    os.close(writer)
    os.waitpid(pid, 0)
    os.close(runfile.lock_worker(str(tmp_path)))
    os.close(reader)


def test_files_are_0600_and_links_are_not_followed(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        os.close(runfile.lock_keeper(str(tmp_path)))
        os.close(runfile.lock_worker(str(tmp_path)))
        runfile.write_state(str(tmp_path), {"pid": 1})
    finally:
        os.umask(old)
    for name in (runfile.PID_FILE, runfile.WORKER_LOCK, runfile.STATE_FILE):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600, name
        (tmp_path / name).unlink()
        os.symlink(tmp_path / "victim", tmp_path / name)
    with pytest.raises(OSError):
        runfile.lock_keeper(str(tmp_path))
    with pytest.raises(OSError):
        runfile.lock_worker(str(tmp_path))
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_unreadable_state_is_no_state(tmp_path: Path, content: bytes) -> None:
    (tmp_path / runfile.STATE_FILE).write_bytes(content)
    assert runfile.read_state(str(tmp_path)) == {}


def test_state_comes_back_whole(tmp_path: Path) -> None:
    runfile.write_state(str(tmp_path), {"bound": {"4700": "data"}})
    assert runfile.read_state(str(tmp_path)) == {"bound": {"4700": "data"}}
    assert os.listdir(tmp_path) == [runfile.STATE_FILE]
