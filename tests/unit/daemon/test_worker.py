"""What the worker does once a second for each resource, and what it says in the end."""
from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from marsx.base.errors import MarsError
from marsx.daemon import growth, housekeeping
from marsx.daemon.worker import Worker


@pytest.mark.expect_messages("bad: ")
@pytest.mark.parametrize("error", [MarsError("no"), OSError(5, "no"), RuntimeError("no")])
def test_a_resource_that_fails_does_not_keep_the_others_waiting(monkeypatch: pytest.MonkeyPatch,
                                                               error: Exception) -> None:
    """Rotation, growth and room for logs go on for them."""
    grown: list[str] = []

    async def tick() -> None:
        raise error

    async def nothing(*_: object) -> None:
        pass

    async def follow(worker: object, runner: SimpleNamespace) -> None:
        grown.append(runner.resource)
    monkeypatch.setattr(housekeeping, "rotate_if_long", nothing)
    monkeypatch.setattr(growth, "follow", follow)
    worker = object.__new__(Worker)

    async def play() -> None:
        for runner in (SimpleNamespace(resource="bad", tick=tick), SimpleNamespace(resource="good", tick=nothing)):
            await worker._keep_house(runner, True, False, False)
    asyncio.run(play())
    assert grown == ["good"]


def test_the_last_word_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that stops says so, waits until the others have it, and no heartbeat takes it back meanwhile."""
    told: list[tuple[str, str]] = []
    worker = object.__new__(Worker)
    worker.host, worker._leaving = "a", False
    worker.lamport = SimpleNamespace(now=lambda: 5)
    worker.space = SimpleNamespace(look=list)
    worker.store = SimpleNamespace(put=lambda rel, value, restamp=False: told.append((rel, value)),
                                   put_many=lambda items, restamp=False: told.extend(items))

    async def taken(since: float, patience: float) -> None:
        assert told[-1] == ("actual-a/alive", "0") and patience > 0
        worker._heartbeat()
    worker.exchange = SimpleNamespace(taken=taken)
    worker._heartbeat()
    assert told[0] == ("actual-a/alive", "1")
    asyncio.run(worker._farewell())
    assert [value for rel, value in told if rel.endswith("alive")] == ["1", "0", "0"]
