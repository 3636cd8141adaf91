"""A task of a resource: it has a key (from whom, what), can be stopped, and an end by an error is seen."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from marsx.base import messages
from marsx.base.tasks import ended

LOG = messages.get("daemon.activity")


class Activity:
    """A task that can be stopped, and whose end is awaited."""

    def __init__(self) -> None:
        self.key = ""
        self.error: Exception | None = None  # why it failed last; who runs it takes it back when it works
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self, key: str, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        self.key, self.error = key, None
        self._task = asyncio.create_task(coroutine, name=name)
        self._task.add_done_callback(_report)

    async def stop(self) -> None:
        task, self._task, self.key = self._task, None, ""
        if task is not None:
            await ended([task])


def _report(task: asyncio.Task[None]) -> None:
    """An activity ends by itself or is cancelled; anything else is a bug that must be seen."""
    if not task.cancelled() and task.exception() is not None:
        LOG.error("%s ended with an unexpected error", task.get_name(), exc_info=task.exception())
