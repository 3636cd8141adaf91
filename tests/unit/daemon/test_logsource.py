"""What a source of logs gives away, to whom, and which logs it holds (rules 6, 9; design D 5)."""
from __future__ import annotations

import asyncio
import os
import threading

import pytest

from marsx.base.errors import NotFoundError
from marsx.base.position import LogPos, log_name
from marsx.daemon.logsource import READ_MAX, End, Pins, Source
from marsx.log.record import BLOCK
from marsx.peer.fetch import Start
from marsx.peer.wire import Reason
from tests.unit.daemon.small_logs import Origin, add, make_log, position, write


def start(log, group: int = -1, **changes) -> Start:
    """Of a sink that has the log up to a group."""
    fields = {"nr": log.nr, "producer": log.producer, "pos": log.ends[group], "log_id": log.log_id.hex(),
              "digest": log.digests[group].hex(), **changes}
    return Start(**fields)


ONE = make_log(1)
TWO = make_log(2, pred=ONE)
OTHER = make_log(1, salt=9)


@pytest.mark.parametrize(("asked", "reason"), [
    pytest.param(start(ONE, 0), None, id="the beginning of the oldest log"),
    *[pytest.param(start(ONE, group), None, id=f"group {group} of an ended log") for group in (1, 2, 3)],
    *[pytest.param(start(TWO, group), None, id=f"group {group} of the newest log") for group in (0, 1, 2, 3)],
    pytest.param(Start(1, "a", 0), None, id="who has nothing"),
    pytest.param(start(ONE, 1, pos=ONE.ends[1] + 4096), Reason.SPLIT, id="inside a group"),
    pytest.param(start(ONE, 1, digest=ONE.digests[2].hex()), Reason.SPLIT, id="another digest"),
    pytest.param(start(ONE, 0, digest="0" * 32), Reason.SPLIT, id="another digest at the beginning"),
    pytest.param(start(OTHER, 1), Reason.SPLIT, id="another log of the same name"),
    pytest.param(start(ONE, 1, log_id="0f" * 16), Reason.SPLIT, id="another log id, whatever the digest"),
    pytest.param(start(ONE, producer="z"), Reason.SPLIT, id="a log of another producer"),
    pytest.param(start(ONE, pos=ONE.end + 4096), Reason.SPLIT, id="behind the end of an ended log"),
    pytest.param(start(TWO, pos=TWO.end + 4096), Reason.BEHIND, id="behind the end of the newest log"),
    pytest.param(start(TWO, nr=3), Reason.BEHIND, id="a log that is not here yet"),
    pytest.param(start(make_log(1, "a"), nr=7), Reason.BEHIND, id="a log far ahead"),
])
def test_check(tmp_path, asked: Start, reason: Reason | None) -> None:
    """Rule 6: only a start that lies in the own history is accepted. A refusal holds no log, a yes holds it."""
    origin = Origin(tmp_path, ONE, TWO)
    source = origin.source()
    verdict = source.check(asked)
    assert verdict.reason is reason and bool(verdict.text) is (reason is not None)
    assert verdict.header == (ONE.header if not asked.log_id else b"")
    assert origin.pins.lowest() == (asked.nr if reason is None else None)
    source.close()
    assert origin.pins.lowest() is None


def test_a_deleted_log_is_missing(tmp_path) -> None:
    """Who needs it must begin anew; the next one is still there."""
    origin = Origin(tmp_path, ONE, TWO)
    os.unlink(tmp_path / log_name(1, "a"))
    assert origin.source().check(start(ONE, 1)).reason is Reason.MISSING
    assert origin.source().check(start(TWO, 1)).reason is None


def test_a_deleted_log_that_is_had_whole(tmp_path) -> None:
    """Rule 7: (N, its end) is (N+1, 0), also where N is deleted; rule 6: with the digest that N+1 names."""
    origin = Origin(tmp_path, ONE, TWO)
    os.unlink(tmp_path / log_name(1, "a"))
    source = origin.source()
    assert source.check(start(ONE, digest="ab" * 16)).reason is Reason.SPLIT
    assert source.check(Start(1, "a", 0)).reason is Reason.MISSING
    assert source.check(start(ONE)).reason is None
    assert source.read(1, "a", ONE.end, 1 << 20) == b""
    following = source.following(1, "a", ONE.end)
    assert following is not None and (following.nr, following.header) == (2, TWO.header)


def test_a_damaged_header_is_missing(tmp_path) -> None:
    """The source says what is wrong instead of giving it away."""
    origin = Origin(tmp_path, ONE)
    with open(tmp_path / log_name(1, "a"), "r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    verdict = origin.source().check(start(ONE, 1))
    assert verdict.reason is Reason.MISSING and "CRC" in verdict.text


def test_the_next_try_after_a_refusal(tmp_path) -> None:
    """A sink may ask again on the same line."""
    origin = Origin(tmp_path, ONE, TWO)
    source = origin.source()
    assert source.check(start(TWO, nr=3)).reason is Reason.BEHIND
    assert source.check(start(ONE, 1)).reason is None
    assert origin.pins.lowest() == 1


@pytest.mark.parametrize("group", [0, 1, 2])
def test_nothing_behind_the_durable_end(tmp_path, group: int) -> None:
    """D 5: bytes that are written and not yet durable do not leave the host, wherever the file ends."""
    origin = Origin(tmp_path, ONE, end=position(ONE, group))
    source = origin.source()
    assert source.read(1, "a", 0, 1 << 30) == ONE.data[BLOCK:BLOCK + ONE.ends[group]]
    assert source.read(1, "a", ONE.ends[group], 1 << 30) == b""
    assert source.following(1, "a", ONE.ends[group]) is None


def test_read_is_bounded_and_begins_anywhere(tmp_path) -> None:
    """No more than asked for, no more than READ_MAX."""
    source = Origin(tmp_path, ONE).source()
    assert source.read(1, "a", 4096, 100) == ONE.data[BLOCK + 4096:BLOCK + 4196]
    assert READ_MAX <= 1 << 20


def test_following(tmp_path) -> None:
    """The next log is told at the end of this one, and held; not before its header counts as durable."""
    origin = Origin(tmp_path, ONE, TWO, end=position(ONE))
    source = origin.source()
    assert source.check(start(ONE, 1)).reason is None
    assert source.following(1, "a", ONE.end) is None
    origin.end.move(LogPos(2, "a", 0))
    assert source.following(1, "a", ONE.ends[1]) is None
    found = source.following(1, "a", ONE.end)
    assert found is not None and (found.nr, found.producer, found.header) == (2, "a", TWO.header)
    assert source.following(2, "a", 0) is None
    source.acked(1, "a", ONE.end)
    assert origin.pins.lowest() == 1
    source.acked(2, "a", 0)
    assert origin.pins.lowest() == 2
    source.close()
    assert origin.pins.lowest() is None


def test_logs_beside_the_history(tmp_path) -> None:
    """Rules 6 and 7: a's empty log 2 was fetched before b was forced and began its own log 2. Streams go b's way, and
    a stream that is in a's log 2 is told so instead of waiting for ever."""
    empty, mine = make_log(2, "a", pred=ONE, groups=0), make_log(2, "b", pred=ONE)
    third = make_log(3, "b", pred=mine)
    for logs in ((ONE, empty, mine), (ONE, empty, mine, third)):
        origin = Origin(tmp_path, *logs)
        source = origin.source()
        found = source.following(1, "a", ONE.end)
        assert found is not None and (found.nr, found.producer) == (2, "b")
        assert source.read(1, "a", 0, 1 << 20) == ONE.data[BLOCK:]
        assert origin.source().check(start(empty, 0)).reason is Reason.SPLIT
        assert origin.source().check(start(mine, 1)).reason is None
        with pytest.raises(NotFoundError, match="does not lead to"):
            source.read(2, "a", 0, 4096)


def test_a_log_beside_that_has_a_successor(tmp_path) -> None:
    """The side branch may be long; it is judged by where it leads."""
    side2, side3 = make_log(2, "a", pred=ONE), None
    side3 = make_log(3, "a", pred=side2)
    mine2 = make_log(2, "b", pred=ONE)
    mine3 = make_log(3, "b", pred=mine2)
    source = Origin(tmp_path, ONE, side2, side3, mine2, mine3).source()
    assert source.check(start(side2, 1)).reason is Reason.SPLIT
    assert source.check(start(mine2, 1)).reason is None
    found = source.following(1, "a", ONE.end)
    assert found is not None and found.producer == "b"


def test_wait_ends_when_there_is_something(tmp_path) -> None:
    """At once if there is already; else when the end moves, and not before."""
    async def main() -> list[bool]:
        log = make_log(1)
        origin = Origin(tmp_path, log)
        source = origin.source()
        await source.wait(1, "a", log.ends[1])
        waiting = asyncio.create_task(source.wait(1, "a", log.end))
        await asyncio.sleep(0)
        origin.end.move(origin.end.at)
        await asyncio.sleep(0)
        seen = [waiting.done()]
        add(log, 3)
        write(tmp_path, log)
        origin.end.move(position(log))
        await waiting
        assert source.read(1, "a", log.ends[-2], 1 << 20) == bytes(log.data[BLOCK + log.ends[-2]:])
        return seen
    assert asyncio.run(asyncio.wait_for(main(), 60)) == [False]


def test_end_forgets_waiters_that_were_cancelled() -> None:
    """A stream that ends while it waits leaves nothing behind."""
    async def main() -> int:
        end = End(LogPos(1, "a", 0))
        waiting = asyncio.create_task(end.wait(lambda: False))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return len(end._waiters)
    assert asyncio.run(main()) == 0


def test_pins_count_in_all_threads(tmp_path) -> None:
    """Rule 9: streams pin in the executor and unpin on the loop; no count is lost, and deletion can always ask."""
    pins, stop = Pins(), threading.Event()
    errors: list[BaseException] = []

    def work(nr: int) -> None:
        try:
            for _ in range(3000):
                pins.pin(nr)
                pins.pin(nr % 3)
                pins.unpin(nr % 3)
                pins.unpin(nr)
        except BaseException as err:
            errors.append(err)

    def ask() -> None:
        try:
            while not stop.is_set():
                pins.lowest()
        except BaseException as err:
            errors.append(err)
    pins.pin(50)
    asker = threading.Thread(target=ask)
    threads = [threading.Thread(target=work, args=(nr,)) for nr in range(10, 14)]
    for thread in (asker, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    asker.join()
    assert errors == [] and pins.lowest() == 50


def test_two_streams_hold_the_same_log(tmp_path) -> None:
    """A log is free when the last stream is past it."""
    origin = Origin(tmp_path, ONE, TWO)
    first, second = origin.source(), origin.source()
    for one in (first, second):
        assert one.check(start(ONE, 1)).reason is None
        assert one.following(1, "a", ONE.end) is not None
    first.acked(2, "a", 0)
    assert origin.pins.lowest() == 1
    second.close()
    assert origin.pins.lowest() == 2


@pytest.mark.parametrize(("producer", "host", "groups", "given"), [
    ("b", "c", 0, False), ("b", "b", 0, True), ("b", "c", 1, True)])
def test_an_empty_log_goes_only_from_its_producer(tmp_path, producer: str, host: str, groups: int, given: bool) -> None:
    """Rules 7, 18: b may have withdrawn it and granted the right since: then it must not come back to b from c, which
    has a copy of it still; who asks meanwhile waits, and hears of what b writes into it."""
    newest = make_log(2, producer, pred=ONE, groups=groups)
    origin = Origin(tmp_path, ONE, newest)
    source = Source(origin.directory, "u-test", "r", origin.end, origin.pins, host=host)
    verdict = source.check(start(ONE))
    assert verdict.reason is None and verdict.offer is not None
    assert (verdict.offer.newest.nr == 2) is given
    assert (source.following(1, "a", ONE.end) is not None) is given

    async def waits() -> bool:
        try:
            await asyncio.wait_for(source.wait(1, "a", ONE.end), 0.05)
        except TimeoutError:
            return True
        return False
    assert asyncio.run(waits()) is not given
    source.close()
