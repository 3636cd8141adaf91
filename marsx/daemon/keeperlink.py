"""The worker's end of the line to the keeper (messages: docs/design.md 3.4).

Before the loop runs: `call_now`, one request at a time. With the loop: `start(...)`, then `await call(...)`, many at
once, answers in any order. The keeper's refusal is raised as the MarsError of its exit code, caused by an OSError with
its errno; `busy` of dev-detach is an answer, not an error.

Invariants: an answer's descriptors belong to the caller, close-on-exec; those nobody waits for any more are closed
here. When the keeper is gone every waiting call raises ConnectionError and `on_lost` is called once: the worker has to
end, because nobody holds its devices but itself.
"""
from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from marsx.base.errors import MarsError, TimeoutExpired, from_exit_code
from marsx.daemon import keeperjobs

Answer = tuple[dict[str, Any], list[int]]


def refused(answer: dict[str, Any]) -> MarsError:
    """The keeper's refusal as an error."""
    error = from_exit_code(int(answer.get("exit", 1)), str(answer["error"]), str(answer.get("hint", "")))
    error.__cause__ = OSError(int(answer.get("errno", errno.EIO)), str(answer["error"]))
    return error


class KeeperLink:
    """See the module."""

    def __init__(self, fd: int) -> None:
        os.set_inheritable(fd, False)
        self._sock = socket.socket(fileno=fd)
        self._sock.setblocking(False)
        self._serial = 0
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._outbox: deque[dict[str, Any]] = deque()
        self._events: deque[dict[str, Any]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_event: Callable[[dict[str, Any]], None] | None = None
        self._on_lost: Callable[[], None] | None = None
        self._writing = False
        self.lost = False

    def fileno(self) -> int:
        """The descriptor of the line."""
        return self._sock.fileno()

    def close(self) -> None:
        """End the line; the keeper goes by the end of the process, not by this."""
        if self._loop and self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
        self._sock.close()

    # ---- without a loop ----------------------------------------------------------------------------------------------

    def call_now(self, op: str, *, timeout: float | None = None, **args: Any) -> Answer:
        """Ask and wait. Events that come meanwhile are kept for `start`. None: the keeper's own limit for `op`."""
        if self._loop:
            raise RuntimeError("call_now is for the time before the loop: await call()")
        self._serial += 1
        limit = _limit(op, timeout)
        self._wait_io(select.POLLOUT, limit)
        keeperjobs.send(self._sock, {"op": op, "id": self._serial, "timeout": timeout, **args})
        deadline = time.monotonic() + limit
        while True:
            self._wait_io(select.POLLIN, deadline - time.monotonic())
            message, fds = keeperjobs.receive(self._sock)
            if message is None:
                self.lost = True
                raise ConnectionError("the keeper is gone")
            if message.get("id") == self._serial and "event" not in message:
                return self._checked(message, fds)
            _close(fds)
            if "event" in message:
                self._events.append(message)

    def _wait_io(self, what: int, seconds: float) -> None:
        poller = select.poll()
        poller.register(self._sock, what)
        if not poller.poll(max(0, int(seconds * 1000))):
            raise _silent()

    @staticmethod
    def _checked(message: dict[str, Any], fds: list[int]) -> Answer:
        if "error" in message:
            _close(fds)
            raise refused(message)
        return message, fds

    # ---- with a loop -------------------------------------------------------------------------------------------------

    def start(self, loop: asyncio.AbstractEventLoop, on_event: Callable[[dict[str, Any]], None],
              on_lost: Callable[[], None]) -> None:
        """From now on the loop reads the line. `on_event` gets what the keeper says by itself: {"event": "stop"}."""
        self._loop, self._on_event, self._on_lost = loop, on_event, on_lost
        while self._events:
            loop.call_soon(on_event, self._events.popleft())
        loop.add_reader(self._sock, self._readable)

    async def call(self, op: str, *, timeout: float | None = None, **args: Any) -> Answer:
        """Ask the keeper. A cancelled call is carried out all the same; its answer is dropped."""
        if self.lost or not self._loop:
            raise ConnectionError("the keeper is gone" if self.lost else "the line to the keeper is not started")
        self._serial += 1
        serial = self._serial
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting[serial] = future
        self._outbox.append({"op": op, "id": serial, "timeout": timeout, **args})
        self._flush()
        try:
            async with asyncio.timeout(_limit(op, timeout)):
                await asyncio.wait([future])
        except TimeoutError:
            raise _silent() from None
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                _close(future.result()[1])
            raise
        finally:
            self._waiting.pop(serial, None)
        return self._checked(*future.result())

    def _flush(self) -> None:
        assert self._loop is not None
        try:
            while self._outbox:
                keeperjobs.send(self._sock, self._outbox[0])
                self._outbox.popleft()
        except BlockingIOError:
            if not self._writing:
                self._loop.add_writer(self._sock, self._flush)
                self._writing = True
            return
        except OSError:
            self._lose()
            return
        if self._writing:
            self._loop.remove_writer(self._sock)
            self._writing = False

    def _readable(self) -> None:
        while not self.lost:
            try:
                message, fds = keeperjobs.receive(self._sock)
            except BlockingIOError:
                return
            except (OSError, ValueError):
                message, fds = None, []
            if message is None:
                self._lose()
            elif "event" in message:
                _close(fds)
                if self._on_event:
                    self._on_event(message)
            else:
                future = self._waiting.get(message.get("id", -1))
                if future and not future.done():
                    future.set_result((message, fds))
                else:
                    _close(fds)

    def _lose(self) -> None:
        if self.lost:
            return
        self.lost = True
        assert self._loop is not None
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionError("the keeper is gone"))
        if self._on_lost:
            self._on_lost()


def _limit(op: str, timeout: float | None) -> float:
    """How long we wait: longer than the keeper, which answers in time itself unless it is in trouble."""
    return (keeperjobs.TIMEOUTS.get(op, 5.0) if timeout is None else timeout) + 5.0


def _silent() -> TimeoutExpired:
    return TimeoutExpired("the keeper does not answer", "look at marsd.log and at the process marsd-keeper")


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
