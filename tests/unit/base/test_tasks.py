"""No cancellation is lost: what is cancelled ends, whatever else goes wrong at the same time."""
from __future__ import annotations

import asyncio
import threading

import pytest

from marsx.base import tasks


async def fails() -> None:
    raise ValueError("broken")


async def cancelled_when(body, *, ready: asyncio.Event) -> BaseException | None:
    """Run `body` as a task that is cancelled once `ready` is set; how it ended (None: it was cancelled)."""
    task = asyncio.create_task(body)
    await ready.wait()
    task.cancel()
    await asyncio.wait([task])
    return None if task.cancelled() else task.exception() or AssertionError("it went on")


def test_first_error_of_nested_groups() -> None:
    async def outer(group: asyncio.TaskGroup) -> None:
        async def inner(deeper: asyncio.TaskGroup) -> None:
            deeper.create_task(fails())
            await asyncio.sleep(60)
        await tasks.in_group(inner)

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(tasks.in_group(outer))


def test_cancelled_while_a_member_fails() -> None:
    """The member's error and the cancellation come in one step of the loop: the cancellation counts."""
    async def run() -> BaseException | None:
        ready = asyncio.Event()

        async def member() -> None:
            ready.set()
            try:
                await asyncio.sleep(60)
            finally:
                await fails()

        async def body(group: asyncio.TaskGroup) -> None:
            group.create_task(member())
            await asyncio.sleep(60)

        return await cancelled_when(tasks.in_group(body), ready=ready)

    assert asyncio.run(run()) is None


def test_cancelled_while_it_ends() -> None:
    """to_the_end waits on, and then gives the cancellation instead of the error, or of going on."""
    async def run(end) -> BaseException | None:
        ready, done = asyncio.Event(), False

        async def work() -> None:
            nonlocal done
            ready.set()
            await asyncio.sleep(0.05)
            done = True
            await end()

        async def body() -> None:
            try:
                await fails()
            finally:
                await tasks.to_the_end(work())

        how = await cancelled_when(body(), ready=ready)
        assert done
        return how

    async def well() -> None:
        pass

    assert asyncio.run(run(well)) is None
    assert asyncio.run(run(fails)) is None


def test_ended_waits_and_tells_errors() -> None:
    async def run() -> None:
        async def stubborn() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.01)
                await fails()

        members = [asyncio.create_task(stubborn()), asyncio.create_task(asyncio.sleep(60))]
        await asyncio.sleep(0)
        errors = await tasks.ended(members)
        assert [str(error) for error in errors] == ["broken"]
        assert all(member.done() for member in members)

    asyncio.run(run())


def test_a_blocking_call_is_waited_for() -> None:
    async def run() -> None:
        ready, go, done = asyncio.Event(), threading.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def call() -> None:
            loop.call_soon_threadsafe(ready.set)
            go.wait(10)
            done.set()

        loop.call_later(0.05, go.set)
        assert await cancelled_when(tasks.run_blocking(None, call), ready=ready) is None
        assert done.is_set()

    asyncio.run(run())


def test_a_timeout_is_no_cancellation() -> None:
    """What a deadline of its own has ended goes on."""
    async def run() -> bool:
        try:
            async with asyncio.timeout(0.01):
                await tasks.to_the_end(asyncio.sleep(0.05))
        except TimeoutError:
            tasks.leave_if_cancelled()
            return True
        return False

    assert asyncio.run(run())
