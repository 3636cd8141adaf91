"""Compression by measurement: only on a slow line, only what shrinks; a hostile body is refused."""
from __future__ import annotations

import asyncio
import random

import pytest

from marsx.peer import sync
from marsx.peer.squeeze import FAST, SKIP_MAX, Squeeze, plain
from marsx.peer.wire import WireError
from tests.unit.peer.memory_spans import MIB, PEER, ByteSink, ByteSource

TEXT = b"compressible, as most of what lies on disks. " * 4000
NOISE = random.Random(1).randbytes(180_000)


class Line:
    """A line of so many bytes a second, on a clock of its own; `waits`: something waits for it."""

    def __init__(self, rate: float) -> None:
        self.rate, self.now, self.waits = rate, 100.0, True

    def line(self) -> tuple[int, bool]:
        return int(self.now * self.rate), self.waits

    def pass_time(self, squeeze: Squeeze, seconds: float = 0.1) -> None:
        self.now += seconds
        squeeze.look()


def measured(rate: float, level: int = 1) -> tuple[Line, Squeeze]:
    line = Line(rate)
    squeeze = Squeeze(line, lambda: level, lambda: line.now)
    for _ in range(5):
        line.pass_time(squeeze)
    return line, squeeze


@pytest.mark.parametrize(("rate", "level", "wanted"), [
    (2.5e6, 1, True), (100e6, 1, True), (2.5e6, 0, False), (FAST * 1.1, 1, False), (1e9, 1, False),
])
def test_only_where_the_line_is_slower(rate, level, wanted):
    _, squeeze = measured(rate, level)
    assert squeeze.line_rate == pytest.approx(rate, rel=0.01)
    assert squeeze.wanted(100_000) is wanted and not squeeze.wanted(1000)


def test_a_line_that_nothing_waits_for_is_not_measured(run):
    """So the first bodies, and those on a line that is never full, go as they are."""
    line = Line(1e6)
    line.waits = False
    squeeze = Squeeze(line, lambda: 1, lambda: line.now)
    for _ in range(5):
        line.pass_time(squeeze)
    assert run(squeeze.body(None, TEXT)) == (TEXT, {}) and squeeze.line_rate == 0


def test_a_compressor_slower_than_the_line_is_not_used():
    _, squeeze = measured(50e6)
    squeeze.own_rate = 60e6
    assert not squeeze.wanted(100_000)


def test_what_does_not_shrink_is_left_out_for_longer_and_longer(run):
    """And comes back at once when it does shrink."""
    line, squeeze = measured(2e6)

    async def work():
        tried, turns = [], []
        compress = squeeze._compress
        squeeze._compress = lambda *a: (tried.append(len(turns)), compress(*a))[1]
        for turn in range(200):
            turns.append(turn)
            assert await squeeze.body(None, NOISE) == (NOISE, {})
        gaps = [b - a for a, b in zip(tried, tried[1:], strict=False)]
        assert gaps == sorted(gaps) and gaps[0] == 2 and max(gaps) == SKIP_MAX + 1
        squeeze._skip = 0
        body, fields = await squeeze.body(None, TEXT)
        assert len(body) < len(TEXT) / 4
        assert await plain(None, fields, memoryview(body), len(TEXT)) == TEXT
        assert squeeze._next_skip == 1
    run(work())


@pytest.mark.parametrize("fields", [{"codec": "zip"}, {"codec": 5}, {"codec": "blosc2"}])
def test_a_body_that_is_none_is_refused(run, fields):
    with pytest.raises(WireError):
        run(plain(None, fields, memoryview(NOISE), 1 << 20))


def test_a_body_larger_than_due_is_refused(run):
    """Memory is bounded by what was asked for."""
    _, squeeze = measured(2e6)
    body, fields = run(squeeze.body(None, TEXT))
    with pytest.raises(WireError):
        run(plain(None, fields, memoryview(body), len(TEXT) - 1))


@pytest.mark.parametrize("level", [0, 1])
def test_a_sync_over_a_slow_line(run, peers, monkeypatch, level):
    """What arrives is the same; it costs a fraction where it shrinks, and nothing but the tries where it does not."""
    monkeypatch.setattr(Squeeze, "look", lambda self: setattr(self, "line_rate", 1e6))
    theirs = bytearray((TEXT * 24)[:2 * MIB] + (NOISE * 12)[:2 * MIB])
    sink = ByteSink(bytearray(4 * MIB))

    async def work():
        left, right = await peers.link_pair()

        async def serve():
            try:
                await sync.SyncService(lambda *_: ByteSource(theirs), level=lambda: level)(left, PEER)
            finally:
                await left.close()
        serving = asyncio.create_task(serve())
        await sync.sync_resource(right, "data", sink, fast=lambda: False)
        await right.close()
        await asyncio.gather(serving, return_exceptions=True)
        return right.bytes_in
    wire = run(work())
    assert sink.data == theirs
    assert wire < 2.6 * MIB if level else wire > 4 * MIB
