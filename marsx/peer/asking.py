"""The asking side of sync and verify: requests by number on one link, their answers, and calls in the executor.

Invariants: an answer is matched by id and link, one that nobody waits for ends the link; an answer whose position is
older than what had been fetched when it was asked for is never given to anybody (rule 15).
"""
from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
from collections.abc import Callable
from typing import Any, TypeVar

from marsx.base.position import LogPos
from marsx.base.tasks import run_blocking
from marsx.peer import spanio, syncparts, wire
from marsx.peer.link import Link
from marsx.peer.syncparts import Answer, Ranges
from marsx.peer.wire import PeerError, Reason, Type

_T = TypeVar("_T")
Read = Callable[[int, memoryview], None]


class Asked:
    """One request that is out."""

    def __init__(self, fetched: LogPos, sent: float) -> None:
        self.fetched = fetched
        self.sent = sent
        self.took = 0.0
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def arrived(self, answer: Answer, now: float) -> None:
        """Its answer is here."""
        self.took = now - self.sent
        if not self.future.done():
            self.future.set_result(answer)

    async def answer(self, timeout: float) -> Answer:
        """The answer; not older than what was fetched when it was asked for."""
        try:
            async with asyncio.timeout(timeout):
                got = await self.future
        except TimeoutError:
            raise PeerError(Reason.TIMEOUT, f"a sync request was not answered within {timeout:g} s") from None
        syncparts.check_not_before(got.point.at, self.fetched)
        return got


class Asking:
    """One run at its target; see the module."""

    answer_type = Type.SYNC_ANSWER

    def __init__(self, link: Link, executor: concurrent.futures.Executor | None, span: int) -> None:
        self._link = link
        self._executor = executor
        self._numbers = itertools.count(1)
        self._asked: dict[int, Asked] = {}
        self._buffers = spanio.Buffers(span)

    async def _send(self, number: int, kind: Type, fetched: LogPos, ranges: Ranges, more: dict[str, Any]) -> Asked:
        asked = self._asked[number] = Asked(fetched, asyncio.get_running_loop().time())
        header = {"id": number, **syncparts.at_fields(fetched), **more, "ranges": syncparts.flatten(ranges)}
        await self._link.send(kind, header)
        return asked

    async def _take_answers(self) -> None:
        while True:
            frame = wire.expect(await self._link.recv(), self.answer_type)
            asked = self._asked.pop(wire.take_int(frame.header, "id", 1, 2**53), None)
            if asked is None:
                raise wire.WireError("an answer came that nobody waits for")
            answer = Answer(syncparts.take_point(frame.header, ""), frame.header, frame.body, asked.fetched)
            self._check_answer(answer)
            asked.arrived(answer, asyncio.get_running_loop().time())

    def _check_answer(self, answer: Answer) -> None:
        """What must hold for each answer, in the order of their coming."""

    async def _call(self, amount: int, work: Callable[..., _T], *arguments: Any) -> _T:
        """In the executor, with a buffer of its own for `amount` bytes as the last argument."""
        async with self._buffers.one(amount) as buf:
            return await run_blocking(self._executor, work, *arguments, buf)


def own_digests(read: Read, ranges: Ranges, block: int, kind: str, buf: memoryview) -> bytes:
    """Digests of the blocks of all ranges, one behind the other. In the executor."""
    at = 0
    for offset, length in ranges:
        read(offset, buf[at:at + length])
        at += length
    return spanio.digests(buf[:at], block, kind)


def expect_digests(answer: Answer, mine: bytes) -> None:
    """As many as are due."""
    if len(answer.body) != len(mine):
        raise wire.WireError(f"{len(answer.body)} bytes of digests came where {len(mine)} are due")
