"""Commands that touch facts: what they refuse (rule 26e)."""
from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from marsx.base.errors import PreconditionError
from marsx.daemon import commands
from marsx.tree import paths
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
    runner = SimpleNamespace(producer=None, consumer=None, exclusive=contextlib.nullcontext)

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
