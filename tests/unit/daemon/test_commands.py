"""Commands that touch facts: what they refuse (rule 26e)."""
from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from marsx.base.errors import PreconditionError
from marsx.base.position import LogPos
from marsx.daemon import commands
from marsx.tree import paths
from marsx.tree.store import LogFile
from marsx.tree.view import View

R = "r"


def secondary(**messages: str) -> Any:
    """A worker of host `a`, a secondary of R in the middle of a sync, with these messages; what it writes is kept."""
    values = {paths.data(R, "a"): "/dev/x", paths.size(R): "4096", paths.syncstatus(R, "a"): "0"}
    values |= {paths.message(R, "a", key.replace("_", "-")): f"1.0 1.0 {text}" for key, text in messages.items()}
    store = SimpleNamespace(put=lambda rel, value, **_: values.update({rel: value}),
                            put_many=lambda items, durable: values.update(items))
    site = SimpleNamespace(host="a", store=store,
                           view=lambda: View([(rel, value, 1) for rel, value in values.items()], {}))
    runner = SimpleNamespace(producer=None, consumer=None, exclusive=contextlib.nullcontext,
                             seal=SimpleNamespace(broken=""))

    @contextlib.asynccontextmanager
    async def exclusive() -> Any:
        yield
    runner.exclusive = exclusive
    return SimpleNamespace(site=site, runners={R: runner}, values=values)


def test_fake_sync_asks_back_after_a_sync_that_began_again() -> None:
    """Rule 14: bytes of a history that is given up may be on the disk; nothing is changed without --force."""
    worker = secondary(inf_sync_start="the history has parted below syncpos: the sync begins again")
    with pytest.raises(PreconditionError, match="parted below syncpos.*call them good") as refused:
        asyncio.run(commands.fake_sync(worker, R, {}))
    assert "--force" in refused.value.hint and worker.values[paths.syncstatus(R, "a")] == "0"
    assert paths.todo(R, "a", "sync") not in worker.values
    asyncio.run(commands.fake_sync(worker, R, {"force": True}))
    assert worker.values[paths.syncstatus(R, "a")] == "4096"
    worker = secondary()
    before = dict(worker.values)
    plan = asyncio.run(commands.fake_sync(worker, R, {"dry": True}))
    assert worker.values == before, "a plan changes nothing"
    asyncio.run(commands.fake_sync(worker, R, {}))
    assert {rel: value for rel, value in worker.values.items() if before.get(rel) != value} == dict(plan["changes"])
    assert worker.values[paths.syncstatus(R, "a")] == "4096"


def replaying(at: str, syncpos: str = "", logs: tuple[int, ...] = (1, 2, 3), **changes: Any) -> tuple[Any, View]:
    """A secondary `a` of R whose disk is at `at`, and the picture of its tree."""
    values = {paths.data(R, "a"): "/dev/x", paths.data(R, "p"): "/dev/x", paths.primary(R): "p"}
    if syncpos:
        values[paths.syncpos(R, "a")] = syncpos
    store = SimpleNamespace(log_files=lambda resource: [LogFile(nr, "p", 8192) for nr in logs])
    consumer = SimpleNamespace(at=LogPos.parse(at), digest="d" * 32, replaying=False)
    runner = SimpleNamespace(resource=R, producer=None, consumer=consumer, trouble="",
                             site=SimpleNamespace(host="a", store=store))
    vars(runner).update(changes)
    return runner, View([(rel, value, 1) for rel, value in values.items()], {})


def test_replaying_again_keeps_the_old_position_as_bound() -> None:
    """Rule 14: the disk holds more than the new position says, so it is not consistent before the old one; a bound that
    lies even further stays; the bound is written first."""
    position = (paths.replay(R, "a"), "log-000000001-p,0,0")
    bound = (paths.syncpos(R, "a"), f"log-000000003-p,4096,0,{'d' * 32}")
    runner, view = replaying("log-000000003-p,4096")
    assert commands._replay_again(runner, view, 1) == [bound, position]
    assert commands._replay_again(*replaying("log-000000003-p,4096", "log-000000002-p,8192,0," + "e" * 32), 1) \
        == [bound, position]
    assert commands._replay_again(*replaying("log-000000003-p,4096", "log-000000003-p,8192,0," + "e" * 32), 1) \
        == [position]
    values = {paths.data(R, "a"): "/dev/x", paths.size(R): "8", paths.syncstatus(R, "a"): "8"}
    for links, consistent in (([position], True), ([bound, position], False)):
        picture = View([(rel, value, 1) for rel, value in {**values, **dict(links)}.items()], {})
        assert picture.consistent(R, "a") == consistent, "the bound is what makes the difference"


@pytest.mark.parametrize(("nr", "changes", "text"), [
    (4, {}, "would be left out"), (1, {"logs": (1, 3)}, "not all logs from 1 to 3"),
    (1, {"logs": (1, 2, 2, 3)}, "not all logs"), (1, {"producer": object()}, "is the primary"),
    (1, {"consumer": None}, "not known now"), (1, {"trouble": "damaged"}, "not known now"),
])  # fmt: skip
def test_replaying_again_is_refused(nr: int, changes: dict[str, Any], text: str) -> None:
    """Never forward, never over a gap or two branches, never while the position is not known."""
    with pytest.raises(PreconditionError, match=text):
        commands._replay_again(*replaying("log-000000003-p,4096", **changes), nr)
