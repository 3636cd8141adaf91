"""Levels of free space, and what each of them makes a host do (facts 6.2; rules 27, 28)."""
from __future__ import annotations

import pytest

from marsx.daemon import space
from marsx.daemon.space import Room

GIB = 1 << 30
DEFAULT = (2, 2, 2, 2)


@pytest.mark.parametrize(("total", "gib", "percent", "below"), [
    (1000 * GIB, DEFAULT, (0, 0, 0, 0), (8 * GIB, 6 * GIB, 4 * GIB, 2 * GIB)),
    (32 * GIB, DEFAULT, (0, 0, 0, 0), (8 * GIB, 6 * GIB, 4 * GIB, 2 * GIB)),
    (16 * GIB, DEFAULT, (0, 0, 0, 0), (4 * GIB, 3 * GIB, 2 * GIB, 1 * GIB)),
    (512 << 20, DEFAULT, (0, 0, 0, 0), (128 << 20, 96 << 20, 64 << 20, 32 << 20)),
    (1000 * GIB, (1, 2, 3, 4), (0, 0, 0, 0), (10 * GIB, 9 * GIB, 7 * GIB, 4 * GIB)),
    (1000 * GIB, DEFAULT, (0, 0, 0, 1), (16 * GIB, 14 * GIB, 12 * GIB, 10 * GIB)),
    (100 * GIB, DEFAULT, (5, 5, 5, 5), (20 * GIB, 15 * GIB, 10 * GIB, 5 * GIB)),
    (1000 * GIB, (0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0)),
])
def test_thresholds(total, gib, percent, below):
    assert space.thresholds(total, gib, percent) == below


@pytest.mark.parametrize(("free", "level"), [(9, 0), (8, 0), (7, 1), (6, 1), (5, 2), (4, 2), (3, 3), (2, 3), (1, 4)])
def test_level(free, level):
    """Cumulative: 2, 4, 6, 8 GiB."""
    assert space.level_now(free * GIB, (8 * GIB, 6 * GIB, 4 * GIB, 2 * GIB)) == level


def test_without_limits_there_is_no_level():
    assert space.level_now(0, (0, 0, 0, 0)) == 0


@pytest.mark.parametrize(("before", "free", "reset", "after"), [
    (0, 1, True, 4),    # up at once
    (4, 100, True, 3),  # down one step a round
    (1, 100, True, 0),
    (4, 100, False, 4),
    (2, 3, False, 3),
    (3, 3, True, 3),
])
def test_next_level(before, free, reset, after):
    assert space.next_level(before, free * GIB, (8 * GIB, 6 * GIB, 4 * GIB, 2 * GIB), reset) == after


@pytest.mark.parametrize(("had", "level", "percent_free", "limit", "resume", "stalled", "wants"), [
    (False, 3, 10, 0, True, False, False),
    (False, 4, 1, 0, True, False, True),
    (False, 0, 19, 20, True, False, True),    # its own limit alone
    (False, 0, 20, 20, True, False, False),
    (False, 0, 50, 0, True, True, True),      # no room was found, whatever the numbers say
    (True, 4, 1, 0, True, False, True),
    (True, 1, 30, 0, True, False, True),      # hysteresis
    (True, 0, 40, 0, True, False, False),
    (True, 0, 40, 0, False, False, True),     # logger_resume = 0: people decide
    (True, 0, 19, 20, True, False, True),
])
def test_wants_emergency(had, level, percent_free, limit, resume, stalled, wants):
    room = Room(percent_free * GIB, 100 * GIB)
    assert space.wants_emergency(had, level, level, room, limit, resume=resume, stalled=stalled) == wants


def test_room_that_has_just_been_made_counts():
    """Rule 27: after a log was dropped nobody stops logging because the level falls only step by step."""
    room = Room(50 * GIB, 100 * GIB)
    assert not space.wants_emergency(False, 4, 0, room, 0, resume=True, stalled=False)
    assert space.wants_emergency(True, 4, 0, room, 0, resume=True, stalled=False)


@pytest.mark.parametrize(("level", "role", "due"), [
    (0, "primary", ("restore-ballast",)),
    (0, "secondary", ("restore-ballast",)),
    (1, "primary", ("delete-unneeded",)),
    (1, "secondary", ("delete-unneeded",)),
    (2, "secondary", ("delete-unneeded", "drop-replayed")),
    (2, "primary", ("delete-unneeded", "drop-fetched", "drop-of-one")),
    (3, "primary", ("delete-unneeded", "drop-fetched", "drop-of-one", "drop-of-several")),
    (3, "secondary", ("delete-unneeded", "drop-replayed", "stop-sync")),
    (4, "secondary", ("delete-unneeded", "drop-replayed", "stop-sync", "free-ballast")),
    (4, "primary", ("delete-unneeded", "drop-fetched", "drop-of-one", "drop-of-several", "free-ballast",
                    "cease-logging")),
])
def test_measures(level, role, due):
    """Rule 27: what harms fewest goes first, and the log stops last."""
    assert space.measures(level, role) == due


def test_rest():
    assert space.rest(Room(10 * GIB, 100 * GIB), (8 * GIB, 6 * GIB, 4 * GIB, 2 * GIB)) == (2 * GIB, 92 * GIB)
    assert space.rest(Room(1 * GIB, 4 * GIB), (8 * GIB, 6 * GIB, 4 * GIB, 2 * GIB)) == (0, 0)
