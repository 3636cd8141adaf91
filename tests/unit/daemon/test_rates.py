"""Rates: right in the mean, smooth, said when they change, silent at rest."""
from __future__ import annotations

import random

from marsx.base.position import LogPos
from marsx.daemon.rates import Count, Rates

MIB = 1 << 20


class Told:
    """What a Store is asked to hold."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.puts = 0

    def get(self, name: str) -> str:
        return self.values.get(name, "")

    def put_many(self, items) -> None:
        self.puts += 1
        self.values.update(items)

    def rate(self, kind: str, which: str = "amount") -> int:
        return int(self.values.get(f"resource-data/actual-b/{which}-{kind}_rate", "0"))


class Ticked:
    """Rates with a clock that is pushed on."""

    def __init__(self) -> None:
        self.now = 100.0
        self.told = Told()
        self.count = Count()
        self.rates = Rates(self.told, "data", "b", lambda: self.now)
        self.rates.tick({})

    def step(self, kind: str, amount: int, operations: int = 1, seconds: float = 2.0) -> None:
        self.now += seconds
        self.count.add(kind, amount, operations)
        self.rates.tick(self.count.total)


def test_a_steady_rate_is_told_once():
    it = Ticked()
    for _ in range(50):
        it.step("sync", 200 * MIB, 100)
    assert it.told.rate("sync") == 100 * 1024 and it.told.rate("sync", "ops") == 50 and it.told.puts == 1


def test_noise_is_smoothed():
    """Steps of 0 to 400 MiB: what is told stays near the mean, so that a remaining time is right."""
    it, rng, seen = Ticked(), random.Random(3), []
    for number in range(400):
        it.step("replay", rng.randrange(1, 400) * MIB)
        if number > 20:
            seen.append(it.told.rate("replay"))
    assert 40 * 1024 < min(seen) and max(seen) < 180 * 1024
    assert 85 * 1024 < sum(seen) / len(seen) < 115 * 1024


def test_rest_is_said_and_then_nothing():
    it = Ticked()
    it.step("file", 10 * MIB)
    it.step("file", 0, 0)
    assert it.told.rate("file"), "one tick without progress is no rest"
    for _ in range(30):
        it.step("file", 0, 0)
    assert not it.told.rate("file") and it.told.puts <= 3


def test_a_count_that_begins_anew():
    """The role has changed: no rate below zero, none that is a whole count."""
    it = Ticked()
    for _ in range(3):
        it.step("if", 2048, 4)
    it.now += 2
    it.rates.tick({"if": (1024, 2)})
    assert 0 < it.told.rate("if") <= 1 and it.told.values.keys() == {
        "resource-data/actual-b/amount-if_rate", "resource-data/actual-b/ops-if_rate"}


def test_positions():
    count = Count()
    count.moved("replay", None, LogPos(1, "a", 4096))
    count.moved("replay", LogPos(1, "a", 4096), LogPos(1, "a", 12288))
    count.moved("replay", LogPos(1, "a", 12288), LogPos(2, "a", 4096))
    count.moved("replay", LogPos(2, "a", 4096), LogPos(2, "a", 4096))
    assert count.total == {"replay": (12288, 2)}
