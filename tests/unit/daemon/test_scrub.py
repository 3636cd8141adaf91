"""When a scrub begins, waits and goes on; that it works on real hosts: `tests/cluster/test_verify.py`."""
from __future__ import annotations

from types import SimpleNamespace

import pytest

from marsx.base.position import LogPos
from marsx.daemon.scrub import BEHIND, WAITS_KB, Place, Round, Scrub

AT = LogPos(3, "a", 1 << 30)


class Seen:
    """The tree as far as a scrub looks at it."""

    def __init__(self, newest: LogPos) -> None:
        self.newest = newest
        self.syncing = "0"

    resources = ("data", "other")

    def actual(self, resource, host, key):
        return self.syncing if resource == "other" else "0"

    def designated(self, resource):
        return "a"

    def version_numbers(self, resource, host):
        return [self.newest.nr]

    def version(self, resource, host, nr):
        return SimpleNamespace(end=SimpleNamespace(pos=self.newest))


def scrub(rate: int = 5000, newest: LogPos = AT, fetched: LogPos = AT, at: LogPos = AT) -> Scrub:
    view = Seen(newest)
    site = SimpleNamespace(host="b", view=lambda: view, settings=SimpleNamespace(get=lambda name: rate))
    consumer = SimpleNamespace(at=at, copy=SimpleNamespace(at=fetched))
    return Scrub(SimpleNamespace(site=site, resource="data", consumer=consumer))


def before(pos: LogPos, amount: int) -> LogPos:
    return LogPos(pos.nr, pos.producer, pos.pos - amount)


@pytest.mark.parametrize(("changed", "rate"), [
    ({}, 5000),
    ({"rate": 0}, WAITS_KB),
    ({"at": before(AT, BEHIND)}, 5000),
    ({"at": before(AT, BEHIND + 4096)}, WAITS_KB),
    ({"at": before(AT, BEHIND + 4096), "fetched": before(AT, BEHIND + 4096)}, WAITS_KB),
    ({"newest": LogPos(4, "a", 0)}, 5000),
    ({"newest": LogPos(4, "a", BEHIND + 4096)}, WAITS_KB),
    ({"newest": before(AT, BEHIND * 4)}, 5000),
])
def test_it_waits_for_what_is_behind(changed, rate):
    """Replay, fetch, the next log; a tree that lags behind the own copy is no reason."""
    assert scrub(**changed)._rate() == rate


def test_it_waits_for_a_sync_of_any_resource():
    one = scrub()
    one._runner.site.view().syncing = "1"
    assert one._rate() == WAITS_KB


HERE = Round(1 << 30, "a", "log-000000001-a,4096,0," + "0" * 32)


def test_a_round_goes_on_where_it_was(tmp_path):
    place = Place(str(tmp_path))
    assert place.load(HERE) == 0
    place.save(HERE, 8 << 20)
    assert Place(str(tmp_path)).load(HERE) == 8 << 20
    place.drop()
    assert place.load(HERE) == 0
    place.save(HERE, 8 << 20)
    assert place.load(HERE) == 8 << 20, "also behind the end of a round at the same place"


@pytest.mark.parametrize("other", [Round(1 << 29, HERE.source, HERE.syncpos), Round(HERE.size, "c", HERE.syncpos),
                                   Round(HERE.size, HERE.source, "")])
def test_another_round_begins_at_0(tmp_path, other):
    """Nothing that was not read counts as read."""
    Place(str(tmp_path)).save(HERE, 8 << 20)
    assert Place(str(tmp_path)).load(other) == 0


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"done": 5}', '{"size": 1}', "\udcff"])
def test_a_place_without_sense_is_0(tmp_path, text):
    (tmp_path / ".scrub").write_text(text, errors="surrogateescape")
    assert Place(str(tmp_path)).load(HERE) == 0


@pytest.mark.parametrize("done", [-4096, 1 << 30, 1.5, True, "7", None])
def test_a_place_outside_of_the_device_is_0(tmp_path, done):
    Place(str(tmp_path)).save(HERE, done)
    assert Place(str(tmp_path)).load(HERE) == 0
