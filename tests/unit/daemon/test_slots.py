"""Sync slots: who may sync when there are too few of them (facts 6.4)."""
from __future__ import annotations

import random

import pytest

from marsx.daemon.slots import SyncSlots, choose


@pytest.mark.parametrize(("wanting", "running", "waiting", "limit", "prefer", "chosen"), [
    ("abc", {}, {}, 0, "", "abc"),  # no limit
    ("abc", {}, {"a": 1, "b": 5, "c": 2}, 1, "", "b"),  # the longest wait
    ("abc", {"c": 5}, {"a": 9}, 1, "", "c"),  # who runs goes on
    ("abc", {"c": 60}, {"a": 9, "b": 3}, 1, "", "a"),  # he had his time
    ("c", {"c": 99}, {}, 1, "", "c"),  # and nobody waits
    ("abc", {"c": 5}, {}, 1, "ba", "b"),  # listed ones come first, in the list's order
    ("abc", {"b": 99}, {"a": 9}, 2, "ba", "ab"),  # and have no end
    ("abcd", {"a": 70, "b": 80}, {"c": 5, "d": 1}, 2, "", "cd"),
    ("ac", {}, {}, 2, "b", "ac"),  # a listed one that does not want to takes no slot
])
def test_the_table(wanting, running, waiting, limit, prefer, chosen):
    assert choose(wanting, running, waiting, limit, list(prefer), 60) == set(chosen)


def test_below_eight_seconds_nobody_has_to_go():
    """sync_flip_interval_sec < 8 = never."""
    assert choose("ab", {"a": 1e6}, {"b": 9}, 1, [], 7) == {"a"}


def test_a_slot_is_given_when_it_is_free():
    """A sync that is to stop counts until it has stopped: the limit holds at every moment."""
    now = [0.0]
    slots = SyncSlots(lambda: now[0])
    assert slots.may_sync("a", "ab", [], 1, [], 60) and not slots.may_sync("b", "ab", ["a"], 1, [], 60)
    now[0] = 61
    assert not slots.may_sync("a", "ab", ["a"], 1, [], 60), "its time is over, b waits"
    assert not slots.may_sync("b", "ab", ["a"], 1, [], 60), "it has not stopped yet"
    assert slots.may_sync("b", "ab", [], 1, [], 60) and not slots.may_sync("a", "ab", ["b"], 1, [], 60)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_everybody_comes_to_his_turn_and_nobody_is_too_many(limit):
    """Random steps of seven resources: never more than the limit, each gets its share of time."""
    rng, now = random.Random(limit), [0.0]
    slots = SyncSlots(lambda: now[0])
    names, running = [f"r{i}" for i in range(7)], set()
    got = dict.fromkeys(names, 0)
    for _ in range(4000):
        now[0] += 1
        name = rng.choice(names)
        may = slots.may_sync(name, names, running, limit, [], 10)
        running = running | {name} if may else running - {name}
        assert len(running) <= limit
        for one in running:
            got[one] += 1
    assert min(got.values()) > 0.4 * max(got.values()), got
