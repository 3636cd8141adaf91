"""Rule 17 by search: no false difference under load, every lasting one found; and with one part of the protocol taken
out the search must find the damage it does (a search that does not catch a broken rule proves nothing of a sound one).

A failure prints its seed; `run_verify(lambda: VerifyWorld(seed, LOADS[...]))` runs it again, always the same way.
"""
from __future__ import annotations

import contextlib
import time

import pytest

from marsx.peer import verify
from tests.sim.sync_world import Stuck, Wrong
from tests.sim.verify_world import Load, ModelSink, ModelSource, RepairSink, VerifyWorld, run_verify

SOUND_SEEDS = 80
BROKEN_SEEDS = 1500

LOADS = {
    "usual": Load(),
    "hot": Load(hot=1.0, writes=8),
    "spread": Load(hot=0.2),
    "undamaged": Load(damage=0, late_damage=False, writes=5),
    "repair": Load(late_damage=False, repair=True),
}


@pytest.mark.parametrize("name", LOADS)
def test_no_false_difference_and_none_missed(name):
    """Rule 17: whatever is reported was damaged, whatever was damaged all the time is reported; and a verify of a
    replica that is never at rest comes to its end."""
    lasting = stills = found = 0
    for seed in range(SOUND_SEEDS):
        try:
            world = run_verify(lambda seed=seed: VerifyWorld(seed, LOADS[name]))
        except Exception as error:
            pytest.fail(f"{name}, seed {seed}: {type(error).__name__}: {error}")
        lasting, stills, found = lasting + world.lasting, stills + world.primary.stills, found + len(world.found)
    assert (lasting > 10 and found >= lasting / 2) or (name == "undamaged" and not found)
    assert stills > 10 or name in ("spread", "repair"), "the range lock path was not tried"


def test_a_schedule_is_the_same_again():
    """Or a seed would be worth nothing."""
    seen = [run_verify(lambda: VerifyWorld(5, LOADS["usual"])) for _ in range(2)]
    assert seen[0].found == seen[1].found and seen[0].random.random() == seen[1].random.random()


# -- one part taken out -----------------------------------------------------------------------------------------------

def low_after_the_read(monkeypatch):
    """La is taken after the read, not before it."""
    def between(self, request, buf):
        body, _, seen = self._work(request, buf)
        self.source.primary.flush()
        return self.source.settled(), body, seen
    monkeypatch.setattr(verify._Serving, "_between", between)


class NotHeld(ModelSource):
    """The answer leaves before what it shows is durable, with the position that is durable by then."""

    async def durable(self, appended):
        return self.primary.history.point(self.primary.durable)


class NoWait(ModelSink):
    """The target reads before replay has reached Lb."""

    async def reached(self, at):
        if self.target.bounds.get(self.holder) is not None:  # but for the standstill
            await super().reached(at)


class PositionOnly(ModelSink):
    """Rb is the position of the replay, without the window that is being written."""

    def begun(self):
        t = self.target
        return super().begun() if t.window is None else t.history.point(t.replayed).at


class NothingTouched(ModelSink):
    """No record tables: whatever differs is reported."""

    def touched(self, low, upto, offset, length, block):
        return bytes(-(-length // block))


def noted_before_the_read(monkeypatch):
    """Rb is taken before the own read."""
    def read_and_note(self, ranges, buf):
        upto = self._sink.begun()
        return verify.own_digests(self._sink.read, ranges, self._shape.block, self._kind, buf), upto
    monkeypatch.setattr(verify.Verify, "_read_and_note", read_and_note)


def gives_up(monkeypatch):
    """After the tries a touched block counts as equal."""
    async def look_still(self, ranges):
        return []
    monkeypatch.setattr(verify.Verify, "_look_still", look_still)


def no_standstill(monkeypatch):
    """After the tries a touched block that differs is reported."""
    async def look_still(self, ranges):
        return ranges
    monkeypatch.setattr(verify.Verify, "_look_still", look_still)


class WritersGoOn(ModelSource):
    """The writers of the source are not held back at the standstill."""

    @contextlib.asynccontextmanager
    async def still(self):
        self.primary.stills += 1
        yield await self.durable(self.appended())


class ReplayGoesOn(ModelSink):
    """Replay does not stop at the position of the standstill."""

    stop = None

    def set_bound(self, bound):
        self.stop = bound
        return True

    def begun(self):
        return self.stop or super().begun()


class PlainWrites(RepairSink):
    """The repair writes without a bound on replay."""

    def set_bound(self, bound):
        return True


class NoSyncpos(RepairSink):
    """The repair does not say up to where the replica is a mixture."""

    def put_syncpos(self, point):
        pass


BROKEN = [
    (low_after_the_read, "hot"), (NotHeld, "usual"), (NoWait, "usual"), (PositionOnly, "usual"),
    (NothingTouched, "usual"), (noted_before_the_read, "usual"), (gives_up, "hot"), (no_standstill, "hot"),
    (WritersGoOn, "hot"), (ReplayGoesOn, "hot"), (PlainWrites, "repair"), (NoSyncpos, "repair"),
]


@pytest.mark.parametrize(("broken", "name"), BROKEN, ids=[row[0].__name__ for row in BROKEN])
def test_the_search_catches(broken, name, monkeypatch, capsys):
    """Rule 17: each part taken out in turn (see its docstring) is found by the checker."""
    options = {}
    if isinstance(broken, type):
        kinds = {ModelSource: "source", ModelSink: "sink", RepairSink: "repair"}
        options[next(word for kind, word in kinds.items() if issubclass(broken, kind))] = broken
    else:
        broken(monkeypatch)
    begin = time.monotonic()
    for seed in range(BROKEN_SEEDS):
        try:
            run_verify(lambda seed=seed: VerifyWorld(seed, LOADS[name], **options))
        except Wrong as wrong:
            with capsys.disabled():
                print(f"\n{broken.__name__}: seed {seed} after {time.monotonic() - begin:.1f} s: {wrong}"[:200])
            return
        except Stuck:
            continue
    pytest.fail(f"{broken.__doc__} Not caught in {BROKEN_SEEDS} schedules.")
