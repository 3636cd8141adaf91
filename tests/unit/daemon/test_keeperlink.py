"""The worker's end of the line: matching of answers, descriptors, events, refusals, a keeper that is gone."""
from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from marsx.base.errors import MarsError, PreconditionError, TimeoutExpired
from marsx.daemon import keeperjobs
from marsx.daemon.keeperlink import KeeperLink


@pytest.fixture
def ends() -> Iterator[tuple[KeeperLink, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = KeeperLink(ours.detach())
    yield link, theirs
    link.close()
    theirs.close()


def answer_with(theirs: socket.socket, *answers: tuple[dict, list[int]]) -> threading.Thread:
    """A keeper for one request: the given messages, {"id"} filled in where it is None."""
    def keeper() -> None:
        request, _ = keeperjobs.receive(theirs)
        assert request
        for message, fds in answers:
            keeperjobs.send(theirs, {**message, **({"id": request["id"]} if "event" not in message else {})}, fds)

    thread = threading.Thread(target=keeper)
    thread.start()
    return thread


def test_call_now_brings_descriptors_close_on_exec(ends: tuple[KeeperLink, socket.socket]) -> None:
    link, theirs = ends
    null = os.open(os.devnull, os.O_RDONLY)
    thread = answer_with(theirs, ({"ok": True}, [null, null]))
    answer, fds = link.call_now("dev-fds", name="data")
    thread.join()
    assert answer["ok"] and len(fds) == 2
    for fd in fds:
        assert not os.get_inheritable(fd) and os.fstat(fd).st_rdev == os.stat(os.devnull).st_rdev
        os.close(fd)
    os.close(null)


def test_refusal_is_the_error_of_its_exit_code_caused_by_its_errno(ends: tuple[KeeperLink, socket.socket]) -> None:
    link, theirs = ends
    thread = answer_with(theirs, ({"error": "in use", "hint": "by x", "errno": errno.EBUSY, "exit": 3}, []))
    with pytest.raises(PreconditionError, match="in use") as caught:
        link.call_now("disk-open", path="/dev/x")
    thread.join()
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.EBUSY
    assert caught.value.hint == "by x"


def test_silent_keeper_is_a_time_out(ends: tuple[KeeperLink, socket.socket]) -> None:
    link, _ = ends
    with pytest.raises(TimeoutExpired):
        link.call_now("hello", timeout=-5.0)


def test_dead_keeper_is_a_connection_error(ends: tuple[KeeperLink, socket.socket]) -> None:
    link, theirs = ends
    theirs.close()
    with pytest.raises(ConnectionError):
        link.call_now("hello")


def test_event_before_the_loop_is_kept_for_it(ends: tuple[KeeperLink, socket.socket]) -> None:
    """A stop that comes during recovery is not lost."""
    link, theirs = ends
    thread = answer_with(theirs, ({"event": "stop", "force": False}, []), ({"devices": []}, []))
    assert link.call_now("hello")[0]["devices"] == []
    thread.join()
    events = []

    async def main() -> None:
        link.start(asyncio.get_running_loop(), events.append, lambda: None)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert events == [{"event": "stop", "force": False}]


def test_answers_in_any_order_reach_their_callers(ends: tuple[KeeperLink, socket.socket]) -> None:
    link, theirs = ends

    async def main() -> list[str]:
        link.start(asyncio.get_running_loop(), lambda event: None, lambda: None)
        calls = [asyncio.create_task(link.call("dev-users", name=name)) for name in ("a", "b", "c")]
        await asyncio.sleep(0)
        requests = [keeperjobs.receive(theirs)[0] for _ in calls]
        for request in reversed(requests):
            assert request
            keeperjobs.send(theirs, {"id": request["id"], "users": [request["name"]]})
        return [(await call)[0]["users"][0] for call in calls]

    assert asyncio.run(main()) == ["a", "b", "c"]


def test_answer_nobody_waits_for_leaks_no_descriptor(ends: tuple[KeeperLink, socket.socket]) -> None:
    """A cancelled call: its answer comes all the same, and its descriptors are closed."""
    link, theirs = ends

    async def main() -> None:
        link.start(asyncio.get_running_loop(), lambda event: None, lambda: None)
        call = asyncio.create_task(link.call("dev-fds", name="a"))
        await asyncio.sleep(0)
        request, _ = keeperjobs.receive(theirs)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        before = len(os.listdir("/proc/self/fd"))
        null = os.open(os.devnull, os.O_RDONLY)
        assert request
        keeperjobs.send(theirs, {"id": request["id"], "ok": True}, [null] * 5)
        os.close(null)
        keeperjobs.send(theirs, {"id": -1, "event": "after"})
        await asyncio.sleep(0.01)
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(main())


def test_all_callers_hear_of_the_keepers_death_and_the_worker_once(ends: tuple[KeeperLink, socket.socket]) -> None:
    link, theirs = ends
    lost = []

    async def main() -> None:
        link.start(asyncio.get_running_loop(), lambda event: None, lambda: lost.append(1))
        calls = [asyncio.create_task(link.call("hello")) for _ in range(3)]
        await asyncio.sleep(0)
        theirs.close()
        assert all(isinstance(e, ConnectionError) for e in await asyncio.gather(*calls, return_exceptions=True))
        with pytest.raises(ConnectionError):
            await link.call("hello")

    asyncio.run(main())
    assert lost == [1]


def test_refusal_within_the_loop(ends: tuple[KeeperLink, socket.socket]) -> None:
    link, theirs = ends

    async def main() -> None:
        link.start(asyncio.get_running_loop(), lambda event: None, lambda: None)
        call = asyncio.create_task(link.call("dev-drop", name="a"))
        await asyncio.sleep(0)
        request, _ = keeperjobs.receive(theirs)
        assert request
        keeperjobs.send(theirs, {"id": request["id"], "error": "no", "errno": errno.ENODEV})
        with pytest.raises(MarsError, match="no"):
            await call

    asyncio.run(main())
