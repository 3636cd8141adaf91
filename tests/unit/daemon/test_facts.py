"""Publication from the threads of the data plane: order, durability, and the digest hint."""
from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable

import pytest

from marsx.base import durable
from marsx.base.config import Paths
from marsx.base.errors import MarsError
from marsx.base.lamport import Lamport
from marsx.base.position import LogPos
from marsx.daemon.facts import Publisher
from marsx.tree import paths
from marsx.tree.store import Store
from marsx.volume.env import NoRoomError

R, D = "r", "d" * 32
REPLAY = paths.replay(R, "a")


@pytest.fixture
def store(tmp_path) -> Store:
    found = Store(Paths(mars_dir=str(tmp_path)), "a", Lamport())
    found.load()
    return found


def in_thread(store: Store, body: Callable[[Publisher], None], threads: int = 1) -> tuple[list[BaseException], int]:
    """Run `body` in threads while the loop runs; their errors, and how often `changed` was called."""
    async def main() -> tuple[list[BaseException], int]:
        errors: list[BaseException] = []
        told: list[int] = []
        publisher = Publisher(store, asyncio.get_running_loop(), R, lambda: told.append(1))

        def guarded() -> None:
            try:
                body(publisher)
            except BaseException as err:
                errors.append(err)
        running = [threading.Thread(target=guarded) for _ in range(threads)]
        for thread in running:
            thread.start()
        while any(thread.is_alive() for thread in running):
            await asyncio.sleep(0.001)
        return errors, len(told)
    return asyncio.run(main())


def test_order_is_that_of_the_calls(store: Store) -> None:
    """Rule 19: the tree shows the facts of a thread in its order, and a call returns when its entry is there."""
    seen: list[str] = []
    store.on_change(lambda rels: seen.extend(store.get(rel) for rel in rels))

    def body(publisher: Publisher) -> None:
        for pos in range(0, 40 * 4096, 4096):
            publisher.version(LogPos(1, "a", pos), D, "")
            assert store.get(paths.version(R, 1, "a")) == f"{D},{LogPos(1, 'a', pos)}:"
            publisher.replayed(LogPos(1, "a", pos), D)
    errors, told = in_thread(store, body)
    assert errors == [] and told == 80
    assert seen == [text for pos in range(0, 40 * 4096, 4096)
                    for text in (f"{D},{LogPos(1, 'a', pos)}:", f"{LogPos(1, 'a', pos)},0")]


def test_threads_do_not_mix(store: Store) -> None:
    """Items of one call are one unit with one stamp, whoever else publishes at the same time."""
    units: list[list[str]] = []
    store.on_change(units.append)

    def body(publisher: Publisher) -> None:
        me = threading.get_ident() % 100_000
        for turn in range(20):
            publisher.put([(REPLAY, f"log-000000001-a,{4096 * turn},{me}"),
                           (paths.syncstatus(R, "a"), str(100_000 * turn + me))])
    errors, _ = in_thread(store, body, threads=4)
    assert errors == [] and all(unit == [REPLAY, paths.syncstatus(R, "a")] for unit in units)
    assert store.stamp(REPLAY) == store.stamp(paths.syncstatus(R, "a"))


def test_dirty_is_durable_before_it_returns(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 12: POS and LEN are in the tree and synced before the window is written; `replayed` syncs nothing."""
    synced: list[tuple[str, list[str], str]] = []
    monkeypatch.setattr(durable, "sync_links", lambda directory, values: synced.append(
        (os.path.basename(directory), list(values), os.readlink(f"{store.root}/{REPLAY}"))))

    def body(publisher: Publisher) -> None:
        publisher.dirty(LogPos(1, "a", 4096), 8192)
        assert synced == [("resource-r", ["log-000000001-a,4096,8192"], "log-000000001-a,4096,8192")]
        publisher.replayed(LogPos(1, "a", 12288), D)
    assert in_thread(store, body)[0] == [] and len(synced) == 1
    assert store.get(REPLAY) == "log-000000001-a,12288,0"


def test_no_space_is_no_success(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules 12 and 28: an entry that stands in memory only is not durable, whatever the sync of the directory says."""
    def full(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def body(publisher: Publisher) -> None:
        publisher.dirty(LogPos(1, "a", 0), 4096)
        monkeypatch.setattr(durable, "write_link", full)
        publisher.replayed(LogPos(1, "a", 4096), D)  # may wait in memory
        publisher.dirty(LogPos(1, "a", 4096), 4096)
    errors, _ = in_thread(store, body)
    assert [type(err) for err in errors] == [NoRoomError] and "make room" in errors[0].hint
    assert os.readlink(f"{store.root}/{REPLAY}") == "log-000000001-a,0,4096"


def test_a_failed_sync_reaches_the_thread(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody goes on writing a window whose position is not durable."""
    def fail(directory: str, values: object) -> None:
        raise OSError(errno.EIO, "fsync failed")
    monkeypatch.setattr(durable, "sync_links", fail)
    errors, _ = in_thread(store, lambda publisher: publisher.dirty(LogPos(1, "a", 0), 4096))
    assert [getattr(err, "errno", 0) for err in errors] == [errno.EIO]


def test_an_error_of_the_store_reaches_the_thread(store: Store) -> None:
    """A fact about another host: refused, not lost."""
    errors, told = in_thread(store, lambda publisher: publisher.put([(paths.replay(R, "b"), "log-000000001-a,0,0")]))
    assert [type(err) for err in errors] == [ValueError] and told == 0


def test_after_the_end_of_the_loop(store: Store) -> None:
    """A thread that outlives the loop gets an error, it does not hang."""
    kept: list[Publisher] = []
    in_thread(store, kept.append)
    found: list[str] = []

    def late() -> None:
        try:
            kept[0].replayed(LogPos(1, "a", 0), D)
        except MarsError as err:
            found.append(err.text)
    thread = threading.Thread(target=late)
    thread.start()
    thread.join(30)
    assert found and "ending" in found[0]


@pytest.mark.parametrize("wrong", [
    LogPos(1, "a", 4096), LogPos(2, "a", 8192), LogPos(1, "b", 8192), LogPos(1, "a", 0)])
def test_the_hint_counts_for_just_its_position(store: Store, wrong: LogPos) -> None:
    """A digest at the disk position is believed for that position only."""
    in_thread(store, lambda publisher: publisher.replayed(LogPos(1, "a", 8192), D))
    publisher = Publisher(store, None, R, lambda: None)  # type: ignore[arg-type]
    assert publisher.digest_hint(LogPos(1, "a", 8192)) == D
    assert publisher.digest_hint(wrong) == ""
    publisher.drop_hint()
    publisher.drop_hint()
    assert publisher.digest_hint(LogPos(1, "a", 8192)) == ""


@pytest.mark.parametrize("text", [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"at": "log-000000001-a,8192"}', b'{"digest": "%b"}' % (b"d" * 32),
    b'{"at": "log-000000001-a,8192", "digest": "0x%b"}' % (b"d" * 30),
    b'{"at": "log-000000001-a,8192", "digest": "%b"}' % (b"D" * 32),
    b'{"at": "log-000000001-a,8192", "digest": 5}', b"[" * 100_000])
def test_a_damaged_hint_is_no_hint(store: Store, text: bytes) -> None:
    """It is a file that no sync protects."""
    in_thread(store, lambda publisher: publisher.replayed(LogPos(1, "a", 8192), D))
    with open(f"{store.root}/{paths.local_dir('a')}/position-{R}", "wb") as file:
        file.write(text)
    assert Publisher(store, None, R, lambda: None).digest_hint(LogPos(1, "a", 8192)) == ""  # type: ignore[arg-type]


def test_the_hint_is_private(store: Store) -> None:
    """Root's files are 0600, and a planted link is not followed."""
    in_thread(store, lambda publisher: publisher.replayed(LogPos(1, "a", 8192), D))
    path = f"{store.root}/{paths.local_dir('a')}/position-{R}"
    assert os.stat(path).st_mode & 0o777 == 0o600
    os.symlink("/dev/null", f"{path}.new")
    in_thread(store, lambda publisher: publisher.replayed(LogPos(1, "a", 12288), D))
    assert not os.path.islink(path)


def test_dirty_until_it_is_passed(store: Store) -> None:
    """Rule 12: a crash in a window leaves a mixture up to its end; the first window after the restart may be shorter,
    and the replay link calls the disk whole only behind the end of the long one."""
    seen: list[str] = []

    def body(publisher: Publisher) -> None:
        for step in (lambda: publisher.dirty(LogPos(1, "a", 4096), 65536), lambda: publisher.dirty(
                LogPos(1, "a", 4096), 8192), lambda: publisher.replayed(LogPos(1, "a", 12288), D),
                lambda: publisher.dirty(LogPos(1, "a", 12288), 131072), lambda: publisher.replayed(
                    LogPos(1, "a", 143360), D), lambda: publisher.dirty(LogPos(2, "a", 0), 4096),
                lambda: publisher.replayed(LogPos(2, "a", 4096), D)):
            step()
            seen.append(store.get(REPLAY).removeprefix("log-00000000"))
    assert in_thread(store, body)[0] == []
    assert seen == ["1-a,4096,65536", "1-a,4096,65536", "1-a,12288,57344", "1-a,12288,131072", "1-a,143360,0",
                    "2-a,0,4096", "2-a,4096,0"]
