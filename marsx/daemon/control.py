"""The control socket `run_dir/marsd.sock`: one JSON object a line, one answer a line (design 3.7). Root only: mode
0600, and the kernel's word for the caller's uid is checked too."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from marsx.base import messages
from marsx.base.errors import MarsError

LOG = messages.get("daemon.control")
LINE_MAX = 1 << 20


class Progress:
    """Lines of progress for who asked."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def __call__(self, told: dict[str, Any]) -> None:
        """For a few lines."""
        self._writer.write(_line({"progress": told}))

    async def later(self, told: dict[str, Any]) -> None:
        """For many lines: waits until there is room."""
        self(told)
        await self._writer.drain()


Handler = Callable[[dict[str, Any], Progress], Awaitable[dict[str, Any]]]


class Control:
    """`handlers`: cmd -> coroutine(request, progress) -> answer. Those in `while_connected` are cancelled when who
    asked goes away (Ctrl-C); all others come to their end."""

    def __init__(self, path: str, handlers: dict[str, Handler], while_connected: frozenset[str] = frozenset()) -> None:
        self.path = path
        self._handlers = handlers
        self._while_connected = while_connected
        self._server: asyncio.AbstractServer | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        old = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._connection, self.path, limit=LINE_MAX)
        finally:
            os.umask(old)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if _uid(writer) != 0:
                return
            while True:
                line = await reader.readline()
                if not line:
                    return
                answer = await self._answer(line, reader, Progress(writer))
                if not answer:
                    return
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, ValueError, asyncio.LimitOverrunError):
            return
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _handle(self, handler: Handler, request: dict[str, Any], reader: asyncio.StreamReader,
                      progress: Progress) -> dict[str, Any] | None:
        """None: who asked has gone."""
        if request["cmd"] not in self._while_connected:
            return await handler(request, progress)
        work: asyncio.Future[dict[str, Any]] = asyncio.ensure_future(handler(request, progress))
        gone = asyncio.ensure_future(reader.read(1))  # nothing is due from there before the answer
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)  # type: ignore[type-var]
            return work.result() if work.done() else None
        finally:
            both: tuple[asyncio.Future[Any], ...] = (work, gone)
            for task in both:
                task.cancel()
            await asyncio.wait(both)

    async def _answer(self, line: bytes, reader: asyncio.StreamReader, progress: Progress) -> bytes:
        try:
            request = json.loads(line)
            handler = self._handlers[request["cmd"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return _line(_error("the request was not understood", "marsadm and marsd of the same mars.pyz?", 2))
        try:
            answer = await self._handle(handler, request, reader, progress)
            return b"" if answer is None else _line(answer)
        except MarsError as err:
            return _line(_error(err.text, err.hint, err.exit_code))
        except asyncio.CancelledError:
            raise
        except OSError as err:
            return _line(_error(str(err), "see marsd.log", 1))
        except Exception as err:
            LOG.exception("request %s failed", request.get("cmd"))
            return _line(_error(f"unexpected error: {err!r}", "see marsd.log", 1))


def _error(text: str, hint: str, code: int) -> dict[str, Any]:
    return {"error": text, "hint": hint, "exit": code}


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def _uid(writer: asyncio.StreamWriter) -> int:
    sock = writer.get_extra_info("socket")
    return struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
