"""A resource grows: what is refused, what is written and in which order, what a crash leaves to be finished."""
from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from marsx.base.errors import NotFoundError, PreconditionError, UsageError
from marsx.daemon import growth
from marsx.tree import paths
from marsx.tree.view import View

R, MIB = "r", 1 << 20


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Primary `a` of R with 64 MiB; its device has 96 MiB by now, that of `b` has 80."""
    values = {paths.size(R): str(64 * MIB), paths.primary(R): "a", paths.actsize(R, "a"): str(64 * MIB),
              paths.actsize(R, "b"): str(80 * MIB), paths.syncstatus(R, "a"): str(64 * MIB)}
    values |= {paths.data(R, host): f"/dev/{host}" for host in "ab"}
    done: list[Any] = []

    def put_many(items: list[tuple[str, str]], durable: bool) -> None:
        assert durable
        done.extend(items)
        values.update(items)

    async def grow(size: int) -> None:
        done.append(("grow", size))
        producer.size = size

    @contextlib.asynccontextmanager
    async def exclusive() -> Any:
        yield

    producer = SimpleNamespace(device=True, size=64 * MIB, grow=grow)
    runner = SimpleNamespace(resource=R, producer=producer, consumer=None, disk_fd=7, exclusive=exclusive)
    store = SimpleNamespace(put=lambda rel, value: values.update({rel: value}), put_many=put_many)
    site = SimpleNamespace(host="a", store=store, device_name=lambda resource: resource,
                           paths=SimpleNamespace(dev_dir="/dev/mars"),
                           view=lambda: View([(rel, value, 1) for rel, value in values.items()], {}))
    monkeypatch.setattr(growth.disk, "size", lambda fd: 96 * MIB)
    return SimpleNamespace(site=site, runners={R: runner}, values=values, done=done, runner=runner)


def ask(worker: Any, **args: Any) -> dict[str, Any]:
    return asyncio.run(growth.resize(worker, R, args))


def test_as_much_as_all_have(worker: Any) -> None:
    """Without a size it is the smallest device; own syncstatus and size are durable before the device grows."""
    assert ask(worker)["size"] == 80 * MIB
    assert worker.done == [(paths.syncstatus(R, "a"), str(80 * MIB)), (paths.size(R), str(80 * MIB)),
                           ("grow", 80 * MIB)]
    assert worker.values[paths.actsize(R, "a")] == str(96 * MIB), "the enlarged device is told first"
    assert ask(worker) == {"ok": True, "size": 80 * MIB, "grown": False}


@pytest.mark.parametrize(("size", "error", "text"), [
    (96 * MIB, PreconditionError, "more than the device on b has"), (32 * MIB, PreconditionError, "cannot become"),
    (70 * MIB + 512, UsageError, "multiple of 4096"), ("70", UsageError, "multiple"), (-4096, UsageError, "multiple"),
])  # fmt: skip
def test_refused(worker: Any, size: Any, error: type[Exception], text: str) -> None:
    """Larger than the smallest device, smaller than now, odd: nothing is changed."""
    with pytest.raises(error, match=text):
        ask(worker, size=size)
    assert worker.done == []


def test_only_on_the_primary(worker: Any) -> None:
    """Not on a host that is not primary, or not any more, or has no replica."""
    worker.values[paths.primary(R)] = "b"
    with pytest.raises(PreconditionError, match="not its primary"):
        ask(worker)
    worker.values[paths.primary(R)], worker.runner.producer = "a", None
    with pytest.raises(PreconditionError, match="not its primary"):
        ask(worker)
    with pytest.raises(NotFoundError):
        asyncio.run(growth.resize(worker, "other", {}))
    assert worker.done == []


def test_plan_is_what_is_done(worker: Any) -> None:
    """Dry: the same links, and nothing happens."""
    plan = ask(worker, dry=True)
    assert worker.done == []
    ask(worker)
    assert [tuple(link) for link in plan["changes"]] == worker.done[:-1] and len(plan["effects"]) == 2


def test_a_crash_in_between_is_finished(worker: Any) -> None:
    """`size` is written but the device is as it was: it grows by itself, when the data device has the room."""
    worker.values[paths.size(R)] = str(80 * MIB)
    asyncio.run(growth.follow(worker, worker.runner))
    assert worker.done == [("grow", 80 * MIB)]
    asyncio.run(growth.follow(worker, worker.runner))
    assert worker.done == [("grow", 80 * MIB)], "once"
    worker.values[paths.size(R)] = str(100 * MIB)
    asyncio.run(growth.follow(worker, worker.runner))
    assert worker.done == [("grow", 80 * MIB)], "not over the end of the data device"


def test_a_secondary_hears_of_it(worker: Any) -> None:
    """What it is told of its resource follows `size`; a device that was enlarged is published."""
    env = SimpleNamespace(device_size=64 * MIB)
    worker.runner.producer, worker.runner.consumer = None, SimpleNamespace(env=env)
    asyncio.run(growth.follow(worker, worker.runner))
    assert env.device_size == 64 * MIB and worker.values[paths.actsize(R, "a")] == str(96 * MIB)
    worker.values[paths.size(R)] = str(80 * MIB)
    asyncio.run(growth.follow(worker, worker.runner))
    assert env.device_size == 80 * MIB
