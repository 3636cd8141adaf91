"""The local copy of a log, and whole streams from a source into it over a line that breaks (rules 4, 6, 9)."""
from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from marsx.base.errors import DamagedError, MarsError
from marsx.base.position import LogPos, log_name
from marsx.daemon.logcopy import LogCopy
from marsx.daemon.logsource import Source
from marsx.log.record import BLOCK
from marsx.peer.fetch import FetchService, Start, fetch_logs
from marsx.peer.server import Peer
from marsx.peer.wire import PeerError, Reason
from tests.unit.daemon.small_logs import Origin, Sink, add, link_pair, make_log, position, write


class Chopped(Source):
    """A source that gives frames of an odd size, and whose line breaks after some of them."""

    size, breaks_after, link = 1 << 20, 1 << 30, None

    def read(self, nr: int, producer: str, pos: int, limit: int) -> bytes:
        self.breaks_after -= 1
        if self.breaks_after < 0:
            raise PeerError(Reason.LOST, "the line breaks here")
        return super().read(nr, producer, pos, min(limit, self.size))


async def stream(origin: Origin, copy: LogCopy, until: LogPos, *, size: int = 1 << 20, breaks_after: int = 1 << 30,
                 fetched: Any = None) -> PeerError | None:
    """One line from `origin` to `copy`, until the copy is there or the line ends; why it ended."""
    def source_for(resource: str, peer: Peer) -> Source:
        source = Chopped(origin.directory, "u-test", "r", origin.end, origin.pins)
        source.size, source.breaks_after = size, breaks_after
        return source
    near, far = await link_pair()
    there = asyncio.Event()

    def note(nr: int, producer: str, pos: int) -> None:
        if fetched is not None:
            fetched(LogPos(nr, producer, pos))
        if LogPos(nr, producer, pos) == until:
            there.set()

    async def serve() -> None:
        try:
            await FetchService(source_for)(far, Peer("b", "", (), "", True))
        except MarsError as err:
            await far.close(getattr(err, "reason", Reason.FAILED), err.text)
    serving = asyncio.create_task(serve())
    pulling = asyncio.create_task(fetch_logs(near, "r", copy, fetched=note))
    arrived = asyncio.create_task(there.wait())
    try:
        async with asyncio.timeout(60):
            await asyncio.wait({pulling, arrived}, return_when=asyncio.FIRST_COMPLETED)
        if arrived.done():
            return None
        error = pulling.exception()
        assert isinstance(error, PeerError), repr(error)
        return error
    finally:
        for task in (pulling, arrived):
            task.cancel()
        await asyncio.gather(pulling, arrived, return_exceptions=True)
        await near.close()
        await far.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


@pytest.fixture
def dirs(tmp_path):
    for name in ("source", "sink"):
        (tmp_path / name).mkdir()
    return tmp_path / "source", tmp_path / "sink"


ONE = make_log(1)
TWO = make_log(2, pred=ONE, groups=2)
EMPTY = make_log(3, "b", pred=TWO, groups=0)
FOUR = make_log(4, pred=EMPTY, groups=2)
ALL = (ONE, TWO, EMPTY, FOUR)


def check_all(sink: Sink, copy: LogCopy) -> None:
    """The sink has what the source has, and says so."""
    for log in ALL:
        assert sink.file(log.nr, log.producer) == bytes(log.data)
    assert (copy.at, copy.digest) == (position(FOUR), FOUR.digests[-1].hex())
    ended = {end.nr: (end, digest, previous) for end, digest, previous in sink.facts.versions}
    for log, pred in ((ONE, None), (TWO, ONE), (EMPTY, TWO)):
        previous = f"{pred.digests[-1].hex()},{position(pred)}" if pred else ""
        assert ended[log.nr] == (position(log), log.digests[-1].hex(), previous)


def test_from_nothing_to_the_end(dirs) -> None:
    """Four logs, one of them empty; every position that is told is the end of a group, and durable in the file."""
    origin, sink = Origin(dirs[0], *ALL), Sink(dirs[1])
    ends = {position(log, group) for log in ALL for group in range(len(log.ends))}
    told: list[LogPos] = []
    copy = sink.nothing()
    assert asyncio.run(stream(origin, copy, position(FOUR), size=3000, fetched=told.append)) is None
    check_all(sink, copy)
    assert set(told) <= ends and told == sorted(told) and told[-1] == position(FOUR)
    assert [at for at, _ in sink.fetched] == sorted(at for at, _ in sink.fetched)
    copy.close()


@pytest.mark.parametrize("restart", ["", "disk at the beginning", "disk at the end"])
@pytest.mark.parametrize("size", [2500, 4096, 9000])
def test_the_line_breaks_anywhere(dirs, size: int, restart: str) -> None:
    """Resumed at the end of the last whole group, in the same process or after a restart, also when recovery has
    nothing to read because all is on the disk; nothing comes twice."""
    origin, sink = Origin(dirs[0], *ALL), Sink(dirs[1])
    copy, lines, before = sink.nothing(), 0, LogPos(1, "a", 0)
    while asyncio.run(stream(origin, copy, position(FOUR), size=size, breaks_after=1 + (17000 // size) + lines % 5)):
        lines += 1
        assert copy.at >= before and lines < 60
        before = copy.at
        if restart and copy.header is not None:
            copy.close()
            copy = sink.recovered(before if "end" in restart else None)
            assert copy.at == before
    assert lines >= 2
    check_all(sink, copy)
    assert origin.pins.lowest() is None
    copy.close()


def test_what_becomes_durable_is_pushed(dirs) -> None:
    """A stream that has all waits, and goes on when the source's end moves."""
    log = make_log(1, groups=1)
    origin, sink = Origin(dirs[0], log), Sink(dirs[1])

    async def main() -> LogCopy:
        copy = sink.nothing()
        final = LogPos(1, "a", log.end + 8192)
        loop = asyncio.get_running_loop()

        def more(at: LogPos) -> None:
            if at == LogPos(1, "a", log.ends[1]) and len(log.ends) == 2:
                add(log, 3)
                write(dirs[0], log)
                loop.call_soon(origin.end.move, position(log))
        assert await stream(origin, copy, final, fetched=more) is None
        return copy
    copy = asyncio.run(main())
    assert sink.file(1) == bytes(log.data) and copy.at == position(log)
    copy.close()


def test_a_torn_tail_is_cut_before_the_stream_appends(dirs) -> None:
    """Invariant: nothing behind the verified end is ever counted, or stays."""
    origin, sink = Origin(dirs[0], ONE, TWO), Sink(dirs[1])
    torn = bytes(ONE.data[:BLOCK + ONE.ends[2] + 3000])
    (dirs[1] / log_name(1, "a")).write_bytes(torn)
    copy = sink.recovered()
    assert copy.at == position(ONE, 2) and len(sink.file(1)) == len(torn)
    found = copy.start()
    assert found == Start(1, "a", ONE.ends[2], ONE.log_id.hex(), ONE.digests[2].hex())
    assert len(sink.file(1)) == BLOCK + ONE.ends[2]
    assert asyncio.run(stream(origin, copy, position(TWO))) is None
    assert sink.file(1) == bytes(ONE.data) and sink.file(2) == bytes(TWO.data)
    copy.close()


@pytest.mark.parametrize(("mine", "reason"), [
    (make_log(1, salt=9), Reason.SPLIT), (make_log(1, "b"), Reason.SPLIT), (make_log(7), Reason.BEHIND)])
def test_another_history_is_refused(dirs, mine: Any, reason: Reason) -> None:
    """Rule 6: other contents under the same name, another producer; a log the source does not have. The copy stays."""
    origin, sink = Origin(dirs[0], ONE, TWO), Sink(dirs[1])
    write(dirs[1], mine)
    copy = sink.recovered(LogPos(mine.nr, mine.producer, 0))
    error = asyncio.run(stream(origin, copy, position(TWO)))
    assert error is not None and error.reason is reason
    assert sink.file(mine.nr, mine.producer) == bytes(mine.data) and copy.at == position(mine)
    copy.close()


def test_one_fork_later(dirs) -> None:
    """The sink has more of log 1 than the source's log 2 follows: a split, not a stream."""
    longer = make_log(1, groups=4)
    short = make_log(1, groups=3)
    origin, sink = Origin(dirs[0], short, make_log(2, "b", pred=short)), Sink(dirs[1])
    write(dirs[1], longer)
    copy = sink.recovered()
    error = asyncio.run(stream(origin, copy, LogPos(9, "a", 0)))
    assert error is not None and error.reason is Reason.SPLIT
    copy.close()


def test_a_deleted_log_is_missing(dirs) -> None:
    """Who is too far behind is told so."""
    origin, sink = Origin(dirs[0], ONE, TWO), Sink(dirs[1])
    os.unlink(dirs[0] / log_name(1, "a"))
    copy = sink.nothing()
    error = asyncio.run(stream(origin, copy, position(TWO)))
    assert error is not None and error.reason is Reason.MISSING and not os.listdir(dirs[1])


def test_logs_are_held_while_they_are_streamed(dirs) -> None:
    """Rule 9: from the first answer to the last ack; then free."""
    origin, sink = Origin(dirs[0], *ALL), Sink(dirs[1])
    lowest: list[tuple[LogPos, int | None]] = []
    copy = sink.nothing()
    asyncio.run(stream(origin, copy, position(FOUR), size=4096,
                       fetched=lambda at: lowest.append((at, origin.pins.lowest()))))
    assert lowest and all(held is not None and held <= at.nr for at, held in lowest)
    assert origin.pins.lowest() is None
    copy.close()


def test_the_next_log_must_follow(dirs) -> None:
    """Rule 4: a header that names another end or digest begins nothing."""
    sink = Sink(dirs[1])
    write(dirs[1], ONE)
    for stranger in (make_log(2, pred=make_log(1, groups=2)), make_log(2, pred=make_log(1, salt=9)), make_log(2)):
        copy = sink.recovered()
        with pytest.raises(DamagedError, match="our history ends at"):
            copy.next(2, "a", ONE.end, stranger.header)
        assert copy.at == position(ONE) and not (dirs[1] / log_name(2, "a")).exists()
        copy.close()


@pytest.mark.parametrize("header", [b"", bytes(BLOCK), make_log(2, "b", pred=ONE).header,
                                    make_log(3, pred=TWO).header])
def test_a_header_of_something_else(dirs, header: bytes) -> None:
    """A hostile header: garbage, another producer or number than was said."""
    sink = Sink(dirs[1])
    write(dirs[1], ONE)
    copy = sink.recovered()
    with pytest.raises(DamagedError):
        copy.next(2, "a", ONE.end, header)
    with pytest.raises(DamagedError):
        sink.nothing(2).begin(Start(2, "a", 0), header)
    assert os.listdir(dirs[1]) == [log_name(1, "a")]
    copy.close()


def test_the_same_log_is_there_already(dirs) -> None:
    """Of an earlier try: begun again. Another log of that name: refused, and left alone."""
    sink = Sink(dirs[1])
    write(dirs[1], ONE, TWO)
    copy = sink.recovered(LogPos(1, "a", 0))
    copy.close()
    alone = Sink(dirs[1])
    first = alone.nothing(2)
    first.begin(Start(2, "a", 0), TWO.header)
    assert alone.file(2) == TWO.header and first.at == LogPos(2, "a", 0)
    first.close()
    other = make_log(2, pred=ONE, salt=5)
    write(dirs[1], other)
    with pytest.raises(DamagedError, match="another log of the same name"):
        alone.nothing(2).begin(Start(2, "a", 0), TWO.header)
    assert alone.file(2) == bytes(other.data)


def test_feed_counts_whole_groups_only(dirs) -> None:
    """Half a group is not written; what is wanted next is said; bytes for another place are refused."""
    sink = Sink(dirs[1])
    copy = sink.nothing()
    copy.begin(Start(1, "a", 0), ONE.header)
    data, first = bytes(ONE.data[BLOCK:]), ONE.ends[1]
    assert copy.feed(1, "a", 0, data[:BLOCK]).need == first
    assert copy.at.pos == 0 and len(sink.file(1)) == BLOCK
    fed = copy.feed(1, "a", 0, data[:first + 100])
    assert (fed.end, copy.at.pos, copy.digest) == (first, first, ONE.digests[1].hex())
    assert sink.file(1) == ONE.header + data[:first]
    for nr, producer, pos in ((1, "a", 0), (1, "b", first), (2, "a", first), (1, "a", first + 4096)):
        with pytest.raises(MarsError, match="the copy ends at"):
            copy.feed(nr, producer, pos, data[first:])
    copy.close()


@pytest.mark.parametrize("at", [8, 30, 64, 100, 200, BLOCK + 3])
def test_damaged_bytes_are_refused(dirs, at: int) -> None:
    """A bit that turned on the way, anywhere in a group: not written, not counted."""
    sink = Sink(dirs[1])
    copy = sink.nothing()
    copy.begin(Start(1, "a", 0), ONE.header)
    data = bytearray(ONE.data[BLOCK:])
    data[at] ^= 1
    with pytest.raises(DamagedError, match="not a valid log"):
        copy.feed(1, "a", 0, bytes(data))
    assert copy.at.pos == 0 and len(sink.file(1)) == BLOCK
    copy.feed(1, "a", 0, bytes(ONE.data[BLOCK:]))
    assert sink.file(1) == bytes(ONE.data)
    copy.close()


def test_a_failed_sync_is_not_fetched(dirs, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not durable is not acknowledged, and the same bytes may come again."""
    from marsx.base import durable

    sink = Sink(dirs[1])
    copy = sink.nothing()
    copy.begin(Start(1, "a", 0), ONE.header)
    with monkeypatch.context() as patch:
        def fail(*args: object) -> None:
            raise OSError(5, "fdatasync failed")
        patch.setattr(durable, "overwrite", fail)
        with pytest.raises(OSError, match="fdatasync"):
            copy.feed(1, "a", 0, bytes(ONE.data[BLOCK:]))
    assert copy.at.pos == 0 and copy.point.at.pos == 0
    copy.close()
    restarted = sink.recovered()
    assert restarted.at == position(ONE)
    restarted.close()
