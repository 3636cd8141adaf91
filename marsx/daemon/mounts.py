"""Hears of every mount and umount in this mount name space, so that open-count is right as soon as somebody umounts.

What is mounted elsewhere (containers), and openers that are no mounts, are found by looking now and then.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable

MOUNTS = "/proc/self/mountinfo"


class MountWatch:
    """Calls `changed` on the loop after each change of the mount table, until `close()`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> None:
        self._loop = loop
        self._changed = changed
        self._file = os.open(MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
        # The file is always readable; only EPOLLPRI tells of a change, and a loop cannot wait for that alone.
        self._epoll = select.epoll()
        self._epoll.register(self._file, select.EPOLLPRI)
        loop.add_reader(self._epoll.fileno(), self._happened)

    def _happened(self) -> None:
        self._epoll.poll(0)
        self._changed()

    def close(self) -> None:
        """Stop."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        os.close(self._file)
