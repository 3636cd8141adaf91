"""The small pieces of a full sync: where it begins, ranges, pace, detail, what counts, how far syncpos is."""
from __future__ import annotations

import asyncio
import random

import pytest

from marsx.log.chain import Point
from marsx.peer import syncparts, wire
from marsx.peer.syncparts import Detail, Pace, Prefix, is_stale, where_to_resume
from marsx.peer.wire import Type
from tests.unit.peer.memory_spans import point

TIP = point(10)
RESUME = [
    # status, syncpos, tip, in_history, logs_there -> offset, proven, why
    (0, point(5), TIP, False, False, 0, False, ""),
    (100, point(5), TIP, True, True, 100, True, ""),
    (100, point(5), TIP, None, True, 100, False, ""),
    (100, point(5), TIP, False, True, 0, False, "not in the history"),
    (100, point(12), TIP, False, True, 100, False, ""),  # links that end before it say nothing
    (100, point(12), None, None, True, 100, False, ""),
    (100, point(5, nr=2), TIP, False, True, 100, False, ""),
    (100, None, TIP, None, True, 0, False, "no syncpos"),
    (100, point(5), TIP, True, False, 0, False, "gone"),
]


@pytest.mark.parametrize("row", RESUME)
def test_where_to_resume(row):
    """Rules 14 and 16, as a table."""
    *given, offset, proven, why = row
    found = where_to_resume(*given)
    assert (found.offset, found.proven) == (offset, proven) and bool(found.why) == bool(why) and why in found.why


def test_a_finished_sync_can_become_stale():
    """Rule 14: only links that reach syncpos and do not lead through it prove that."""
    assert is_stale(point(5), TIP, False) and is_stale(point(9, nr=1), point(0, nr=2, producer="beta"), False)
    assert not is_stale(point(12), TIP, False) and not is_stale(point(5), TIP, None)
    assert not is_stale(None, TIP, False) and not is_stale(point(5), None, False)


def test_runs_are_placed_on_the_device():
    ranges = [(1000, 300), (5000, 200), (9000, 50)]
    assert syncparts.place_runs(ranges, 100, [(0, 1), (2, 2), (5, 1)]) == [
        (1000, 100), (1200, 100), (5000, 100), (9000, 50)]
    assert syncparts.place_runs(ranges, 100, [(0, 6)]) == ranges and syncparts.place_runs(ranges, 100, []) == []


@pytest.mark.parametrize("seed", range(20))
def test_placed_runs_are_what_they_count(seed):
    """Against a slow twin that counts blocks one by one."""
    rng = random.Random(seed)
    ranges, end = [], 0
    for _ in range(rng.randint(1, 6)):
        start = end + rng.randrange(4) * 8
        ranges.append((start, rng.randint(1, 5) * 8))
        end = sum(ranges[-1])
    blocks = [(offset + i) for offset, length in ranges for i in range(0, length, 8)]
    chosen = [i for i in range(len(blocks)) if rng.random() < 0.5]
    runs = [(i, 1) for i in chosen]
    flat = [b + i for b, n in syncparts.place_runs(ranges, 8, runs) for i in range(0, n, 8)]
    assert flat == [blocks[i] for i in chosen]


def test_ranges_are_cut_by_bytes_and_by_number():
    assert list(syncparts.cut_ranges([(0, 10), (20, 25)], 10)) == [[(0, 10)], [(20, 10)], [(30, 10)], [(40, 5)]]
    assert list(syncparts.cut_ranges([(0, 4), (20, 4), (30, 4)], 10)) == [[(0, 4), (20, 4), (30, 2)], [(32, 2)]]
    many = [(i * 2, 1) for i in range(2500)]
    assert [len(piece) for piece in syncparts.cut_ranges(many, 10**6)] == [1024, 1024, 452]
    assert list(syncparts.cut_ranges([], 10)) == []


def test_a_prefix_ends_at_the_first_gap():
    """Rule 15: never over a gap."""
    prefix = Prefix(100)
    prefix.add(300, 50)
    prefix.add(200, 100)
    assert prefix.end == 100
    prefix.add(100, 100)
    assert prefix.end == 350


def test_pace_grows_while_answers_are_quick_and_shrinks_when_they_queue(run):
    async def work():
        pace = Pace(100, 50, 1000)
        for _ in range(20):
            pace.answered(100, 0.1)
        assert pace.limit == 1000
        for _ in range(5):
            pace.answered(100, 9.0)
        assert pace.limit == 750, "one cut for all that was out together"
        for _ in range(200):
            pace.answered(100, 9.0)
        assert pace.limit == 50
        await pace.enter(500)  # one always may
        late = asyncio.create_task(pace.enter(10))
        await asyncio.sleep(0)
        assert not late.done()
        pace.leave(500)
        await late
    run(work())


def test_pace_lets_in_by_turns_and_loses_no_room(run):
    """Who was asked first comes first, also before a smaller one behind it; who gives up leaves its room to others,
    whether it had got it already or not."""
    async def work():
        pace, order = Pace(100, 50, 1000), []

        async def one(name: str, amount: int) -> None:
            await pace.enter(amount)
            order.append(name)
        await pace.enter(100)
        tasks = [asyncio.create_task(one(*each)) for each in (("a", 60), ("b", 60), ("c", 20), ("d", 20))]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
        pace.leave(50)
        await asyncio.sleep(0)
        assert order == []
        pace.leave(50)
        tasks[1].cancel()  # its turn has come in this moment
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == ["c", "d"]
        pace.leave(40)
        await asyncio.wait_for(pace.enter(100), 5)
        late = asyncio.create_task(one("late", 100))
        await asyncio.sleep(0)
        pace.answered(100, 0.1)  # what makes room counts at once
        await asyncio.wait_for(late, 5)
    run(work())


def test_detail_learns_and_keeps_looking():
    detail = Detail()
    assert detail.choose() == Detail.BLOCKS
    for _ in range(8):
        detail.saw(100, 100, 100)
    assert {detail.choose() for _ in range(40)} == {Detail.COPY, Detail.FINE}
    for _ in range(8):
        detail.saw(100, 10, 10)
    assert {detail.choose() for _ in range(40)} == {Detail.CHUNKS, Detail.FINE}
    for _ in range(8):
        detail.saw(100, 1, 1)
    assert {detail.choose() for _ in range(40)} == {Detail.CHUNKS, Detail.BLOCKS}
    for _ in range(8):
        detail.saw(100, 100, 1)
    assert {detail.choose() for _ in range(40)} == {Detail.FINE}
    for _ in range(12):
        detail.saw(100, 1, None)
    assert detail.choose() == Detail.BLOCKS


@pytest.mark.parametrize(("ranges", "expected"), [
    ([], 0), ([(0, 1)], 64), ([(63, 2)], 128), ([(0, 64)], 64), ([(0, 4), (8, 4), (60, 4)], 64),
    ([(0, 4), (64, 4), (128, 64)], 192), ([(10, 100), (120, 10)], 192), ([(640, 4)], 64),
])
def test_units_that_ranges_touch_count_once(ranges, expected):
    assert syncparts.in_units(ranges, 64) == expected


def test_many_answers_raise_syncpos_once(run):
    """Rule 14: and each waits until it is at or behind its own L."""
    async def work():
        put: list[Point] = []
        go = asyncio.Semaphore(0)

        async def slow(point):
            await go.acquire()
            put.append(point)
        high = syncparts.HighWater(point(2), slow)
        await high.reach(point(1))
        waits = [asyncio.create_task(high.reach(point(n))) for n in (5, 9, 3, 7)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waits)
        go.release()
        go.release()
        await asyncio.gather(*waits)
        assert put[-1] == point(9) and len(put) <= 2 and high.durable == point(9)
    run(work())


def test_a_failed_put_leaves_syncpos_where_it_was(run):
    """Rule 14: who comes next has to put it again."""
    async def work():
        tries: list[Point] = []

        async def fails(point):
            tries.append(point)
            if len(tries) == 1:
                raise OSError("no")
        high = syncparts.HighWater(None, fails)
        with pytest.raises(OSError):
            await high.reach(point(4))
        assert high.durable is None
        await high.reach(point(4))
        assert len(tries) == 2 and high.durable == point(4)
    run(work())


def test_frames_of_sync_stay_below_the_ceiling():
    """A request with the most ranges, and the largest answer."""
    ranges = [(2**62 + i * 8192, 4096) for i in range(syncparts.RANGES_MAX)]
    wire.encode_head(Type.SYNC_DATA, {"id": 2**53, "ranges": syncparts.flatten(ranges)}, 0)
    wire.encode_head(Type.SYNC_ANSWER, {"id": 2**53}, syncparts.SPAN_MAX)

