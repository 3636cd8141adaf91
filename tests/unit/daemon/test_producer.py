"""The end of a device, as the primary's side asks the keeper for it."""
from __future__ import annotations

import asyncio
import errno
from types import SimpleNamespace
from typing import Any

import pytest

from marsx.base.errors import MarsError
from marsx.daemon import producer
from marsx.daemon.producer import Producer


def refusal(code: int) -> MarsError:
    """As the keeper's line gives it."""
    error = MarsError("the keeper refuses")
    error.__cause__ = OSError(code, "refused")
    return error


def ended(answers: list[int]) -> tuple[Producer, list[str], BaseException | None]:
    """take_device_away() where the keeper answers dev-drop by these errors (0: done)."""
    asked: list[str] = []

    async def call(op: str, **_: Any) -> tuple[dict[str, Any], list[int]]:
        asked.append(op)
        if op == "dev-drop" and (code := answers.pop(0)):
            raise refusal(code)
        return {"ok": True}, []

    async def join(threads: object, seconds: float) -> bool:
        return True

    async def play() -> tuple[Producer, list[str], BaseException | None]:
        one = object.__new__(Producer)
        one.site = SimpleNamespace(keeper=SimpleNamespace(call=call), join=join, loop=asyncio.get_running_loop())
        one.resource = one.name = "data"
        one.device, one._servers = True, []
        try:
            await one.take_device_away()
        except MarsError as error:
            return one, asked, error
        return one, asked, None
    return asyncio.run(play())


@pytest.mark.parametrize("answers", [[0], [errno.EBUSY, errno.EBUSY, 0], [errno.ENODEV]])
def test_the_keeper_forgets_the_device(answers: list[int]) -> None:
    """Also when a child of the keeper is just looking who uses it, and when it has forgotten it already."""
    one, asked, error = ended(answers)
    assert error is None and not one.device and asked[0] == "dev-detach" and not answers


def test_a_device_that_was_not_dropped_is_dropped_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the next device of that name could never be made."""
    monkeypatch.setattr(producer, "DROP_PATIENCE_S", -1.0)
    one, _, error = ended([errno.EBUSY])
    assert error is not None and one.device
    one, _, error = ended([errno.EIO])
    assert error is not None and one.device
