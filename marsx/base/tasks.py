"""Waiting in tasks without losing a cancellation.

A cancellation that meets an error, or a wait that must come to its end first, is easily swallowed: the task then goes
on, and who cancelled it waits for ever. Everything here keeps it: a task that was cancelled meanwhile leaves with
CancelledError, whatever else went wrong at the same time.
"""
from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

_T = TypeVar("_T")


def leave_if_cancelled() -> None:
    """CancelledError when somebody has cancelled the running task and has not taken it back."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def in_group(body: Callable[[asyncio.TaskGroup], Coroutine[Any, Any, _T]]) -> _T:
    """Run `body` with a group of tasks; all have ended when it returns. Of many errors the first counts."""
    # In a task of its own: a TaskGroup cancels the task that it belongs to when a member fails, and does not always
    # take that back.
    run = asyncio.create_task(_group(body))
    try:
        await asyncio.wait([run])
    except asyncio.CancelledError:
        run.cancel()
        await all_done([run])
        if not run.cancelled():
            run.exception()  # seen; the cancellation is what counts
        raise
    return run.result()


async def _group(body: Callable[[asyncio.TaskGroup], Coroutine[Any, Any, _T]]) -> _T:
    try:
        async with asyncio.TaskGroup() as tasks:
            return await body(tasks)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


async def all_done(work: Iterable[asyncio.Future[Any]]) -> None:
    """Wait until all have ended, however often we are cancelled meanwhile; their results are the caller's."""
    work = list(work)
    while not all(future.done() for future in work):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(work)


async def to_the_end(work: Awaitable[None]) -> None:
    """Wait for it, however often we are cancelled meanwhile; then its error is raised, or the cancellation."""
    task = asyncio.ensure_future(work)
    await all_done([task])
    error = None if task.cancelled() else task.exception()
    leave_if_cancelled()
    if error is not None:
        raise error


async def ended(tasks: Iterable[asyncio.Future[Any]]) -> list[BaseException]:
    """Cancel all, wait until they have ended, and give the errors that they ended with."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await all_done(tasks)
    leave_if_cancelled()
    found = [task.exception() for task in tasks if not task.cancelled()]
    return [error for error in found if error is not None]


async def run_blocking(executor: concurrent.futures.Executor | None, call: Callable[..., _T], *arguments: Any) -> _T:
    """`call` in the executor. When cancelled, still waits until the call has ended: its descriptors and its bytes must
    not outlive the activity it belongs to."""
    future = asyncio.get_running_loop().run_in_executor(executor, call, *arguments)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await all_done([future])
        if not future.cancelled():
            future.exception()  # seen; the cancellation is what counts
        raise
