"""Healing a log in place (rule 5): every kind of damage, every length of what the other one has, a crash in between."""
from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from marsx.base import durable
from marsx.base.errors import DamagedError
from marsx.base.position import LogPos, log_name
from marsx.daemon import heal
from marsx.daemon.logsource import Source
from marsx.log import writer
from marsx.peer.fetch import FetchService, Offer
from marsx.peer.link import Link
from marsx.peer.server import Peer
from marsx.volume import recovery
from marsx.volume.recovery import Damage, LogDamaged, LogMissing
from tests.unit.daemon.small_logs import BLOCK, Origin, Sink, link_pair, make_log, position, write

START = LogPos(1, "a", 0)
ONE = make_log(1, groups=12)
TWO = make_log(2, pred=ONE, groups=4)


class Piecemeal(Source):
    """A source that gives a block at a time, with a pause in which the other end may have had enough; `asked_for`: the
    positions."""

    def __init__(self, origin: Origin, asked_for: list[int]) -> None:
        super().__init__(origin.directory, "u-test", "r", origin.end, origin.pins)
        self.asked_for = asked_for

    def read(self, nr: int, producer: str, pos: int, limit: int) -> bytes:
        time.sleep(0.002)
        self.asked_for.append(pos)
        return super().read(nr, producer, pos, min(limit, BLOCK))


class Far:
    """A site whose only other host is the one that has `origin`."""

    def __init__(self, origin: Origin) -> None:
        self.origin, self.executor = origin, None
        self.asked_for: list[int] = []

    async def dial(self, host: str, service: str) -> tuple[Link, None]:
        near, far = await link_pair()

        def source(resource: str, peer: Peer) -> Source:
            return Piecemeal(self.origin, self.asked_for)

        async def serve() -> None:
            try:
                await FetchService(source)(far, Peer("a", "", (), "", True))
            except Exception as err:
                await far.close(getattr(err, "reason", None), str(err))
        self.serving = asyncio.create_task(serve())
        return near, None

    async def blocking(self, call: Any, *args: Any) -> Any:
        return call(*args)


def look(sink: Sink, due: int = 0) -> list[recovery.Recovered]:
    """What recovery finds."""
    logs = recovery.recover(sink.env, START, "", lambda nr, producer: due if nr == 1 else 0)
    recovery.close_all(logs)
    return logs


def recovery_end(sink: Sink) -> int:
    """Where log 1 ends for recovery."""
    return look(sink, ONE.end)[0].end


def damage_of(sink: Sink, due: int = 0) -> Damage:
    """The damage that recovery finds."""
    with pytest.raises((LogDamaged, LogMissing)) as found:
        look(sink, due)
    return found.value.damage


def healed(sink: Sink, origin: Origin, due: int = 0, asked_for: list[int] | None = None,
           replaced: int = 0) -> int:
    """Heal until recovery is content; how often it was done. `replaced`: just so many bytes each time."""
    async def once(damage: Damage) -> heal.Healed:
        far = Far(origin)
        far.asked_for = asked_for if asked_for is not None else []
        answers = await heal.ask_all(far, "r", heal.start_of(damage), ["b"])
        (host, end), = heal.candidates(answers, damage)
        assert host == "b", answers
        return await heal.heal(far, sink.env, "r", damage, host, end)

    for count in range(1, 20):
        done = asyncio.run(once(damage_of(sink, due))).replaced
        assert done and done == (replaced or done)
        try:
            look(sink, due)
            return count
        except (LogDamaged, LogMissing):
            continue
    raise AssertionError("no end of it")


@pytest.fixture
def dirs(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("far", "near"):
        (tmp_path / name).mkdir()
    return tmp_path / "far", tmp_path / "near"


def spoil(directory: Path, at: int, length: int = 1, nr: int = 1) -> None:
    """Other bytes there."""
    with open(directory / log_name(nr, "a"), "r+b") as file:
        file.seek(at)
        old = file.read(length)
        file.seek(at)
        file.write(bytes(byte ^ 0x5a for byte in old))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("ended", [False, True])
def test_any_damage_is_healed(dirs: tuple[Path, Path], seed: int, ended: bool) -> None:
    """Some groups anywhere are damaged; afterwards the file is as it was, byte for byte."""
    rng = random.Random(seed)
    logs = (ONE, TWO) if ended else (ONE,)
    origin, sink = Origin(dirs[0], *logs), Sink(dirs[1])
    write(dirs[1], *logs)
    for _ in range(rng.randint(1, 3)):
        spoil(dirs[1], rng.randrange(BLOCK, BLOCK + ONE.end), rng.choice((1, 1, 5000)))
    try:
        look(sink, ONE.end)
    except LogDamaged:
        healed(sink, origin, ONE.end)
        assert heal.forget_damaged(str(dirs[1])) > 0
    for log in logs:
        assert sink.file(log.nr) == bytes(log.data)
    assert sorted(os.listdir(dirs[1])) == [log_name(log.nr, "a") for log in logs]


@pytest.mark.parametrize("what", ["tail", "file", "header", "header and first group"])
def test_what_is_gone_comes_back(dirs: tuple[Path, Path], what: str) -> None:
    """A tail that was flushed, the whole file, the header block."""
    origin, sink = Origin(dirs[0], ONE, TWO), Sink(dirs[1])
    write(dirs[1], ONE, TWO)
    if what == "tail":
        os.truncate(dirs[1] / log_name(1, "a"), BLOCK + ONE.ends[3] + 512)
    elif what == "file":
        os.unlink(dirs[1] / log_name(1, "a"))
    else:
        spoil(dirs[1], 0, 2 * BLOCK if "group" in what else BLOCK)
    healed(sink, origin, ONE.end)
    assert sink.file(1) == bytes(ONE.data) and sink.file(2) == bytes(TWO.data)


@pytest.mark.parametrize("theirs", [5, 8, 12])
def test_the_own_bytes_behind_the_damage_stay(dirs: tuple[Path, Path], theirs: int) -> None:
    """The other one has the damaged group and not all that follows: what is sound here behind it is not touched, and
    not fetched."""
    origin, sink = Origin(dirs[0], ONE, end=position(ONE, theirs)), Sink(dirs[1])
    write(dirs[1], ONE)
    spoil(dirs[1], BLOCK + ONE.ends[4] + 20)
    before = os.stat(dirs[1] / log_name(1, "a")).st_ino
    asked_for: list[int] = []
    assert healed(sink, origin, ONE.end, asked_for, replaced=BLOCK) == 1
    assert min(asked_for) == ONE.ends[4] and max(asked_for) <= ONE.ends[8]
    assert sink.file(1) == bytes(ONE.data) and os.stat(dirs[1] / log_name(1, "a")).st_ino == before


def test_who_has_less_or_another_log_is_no_help(dirs: tuple[Path, Path]) -> None:
    """Rule 6: what does not continue the sound part is not taken; and the answer says why."""
    other = make_log(1, groups=12, salt=3)
    origin, sink = Origin(dirs[0], ONE, end=position(ONE, 3)), Sink(dirs[1])
    write(dirs[1], ONE)
    spoil(dirs[1], BLOCK + ONE.ends[4] + 20)
    damage = damage_of(sink, ONE.end)
    assert damage.good == position(ONE, 4) and damage.due == ONE.end
    for there in (origin, Origin(dirs[0], other)):
        answers = asyncio.run(heal.ask_all(Far(there), "r", heal.start_of(damage), ["b"]))  # type: ignore[arg-type]
        assert heal.candidates(answers, damage) == []
        text = heal.nobody(answers, ["c"])
        assert "c cannot be reached" in text and ("ends at" in text or "another log" in text)
    spoil(dirs[1], 0, BLOCK)
    with pytest.raises(DamagedError, match="groups of another log"):
        asyncio.run(heal.heal(Far(Origin(dirs[0], other)), sink.env, "r", damage_of(sink), "b", other.end))


def test_the_one_with_most_is_asked() -> None:
    """By what it has of this log; a header alone is something when not even that is here."""
    damage = Damage("x", 1, "a", pos=8192, header=object())  # type: ignore[arg-type]
    answers = {"b": Offer(8192, START), "c": Offer(16384, START), "d": Offer(12288, START), "e": "no"}
    assert heal.candidates(answers, damage) == [("c", 16384), ("d", 12288)]
    assert heal.candidates({"b": Offer(8192, START)}, damage) == []
    assert heal.candidates({"b": Offer(0, START)}, Damage("x", 1, "a")) == [("b", 0)]


@pytest.mark.parametrize("stops", range(1, 9))
def test_a_crash_anywhere_leaves_it_as_sound_as_it_was(dirs: tuple[Path, Path], stops: int,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 5: the old bytes are durable aside before the place is written; and it goes on after a restart."""
    origin, sink = Origin(dirs[0], ONE), Sink(dirs[1])
    write(dirs[1], ONE)
    for group in (2, 3, 7):
        spoil(dirs[1], BLOCK + ONE.ends[group] + 20)
    path, old = dirs[1] / log_name(1, "a"), (dirs[1] / log_name(1, "a")).read_bytes()
    calls, real = [], os.pwrite

    def pwrite(fd: int, data: Any, offset: int) -> int:
        calls.append(offset)
        kept = b"".join(p.read_bytes() for p in sorted(dirs[1].glob(f"{heal.PREFIX}*")))
        there = path.read_bytes()[offset:offset + len(data)]
        assert not there or bytes(data) == there or there in kept, "what is written over must be aside"
        if len(calls) >= stops:
            real(fd, bytes(data)[:len(data) // 2], offset)
            raise OSError(5, "power cut")
        return real(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "pwrite", pwrite)
        with contextlib.suppress(OSError):
            healed(sink, origin, ONE.end)
        assert len(path.read_bytes()) == len(old)
    try:
        assert recovery_end(sink) == ONE.end  # what was torn was whole already
    except LogDamaged as err:
        assert err.damage.pos >= ONE.ends[2]
        healed(sink, origin, ONE.end)
    assert sink.file(1) == bytes(ONE.data)


def test_header_of_a_log_here_is_kept_in_place(dirs: tuple[Path, Path]) -> None:
    """A log that a recycled file was meant for: stale groups of older logs are not mistaken for its own."""
    stale = make_log(1, groups=2)
    empty = make_log(3, pred=TWO, groups=0)
    origin, sink = Origin(dirs[0], ONE, TWO, empty), Sink(dirs[1])
    write(dirs[1], ONE, TWO)
    (dirs[1] / log_name(3, "a")).write_bytes(os.urandom(BLOCK) + bytes(stale.data[BLOCK:]))
    healed(sink, origin)
    assert sink.file(3)[:BLOCK] == empty.header
    assert [log.end for log in look(sink)] == [ONE.end, TWO.end, 0]
    assert writer.find_newest(str(dirs[1]), "u-test", "r").log is not None
