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
Handler = Callable[[dict[str, Any], Callable[[dict[str, Any]], None]], Awaitable[dict[str, Any]]]


class Control:
    """`handlers`: cmd -> coroutine(request, progress) -> answer."""

    def __init__(self, path: str, handlers: dict[str, Handler]) -> None:
        self.path = path
        self._handlers = handlers
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
                answer = await self._answer(line, lambda progress: _write(writer, {"progress": progress}))
                _write(writer, answer)
                await writer.drain()
        except (ConnectionError, ValueError, asyncio.LimitOverrunError):
            return
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, line: bytes, progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        try:
            request = json.loads(line)
            handler = self._handlers[request["cmd"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return {
                "error": "the request was not understood",
                "hint": "marsadm and marsd of the same mars.pyz?",
                "exit": 2,
            }
        try:
            return await handler(request, progress)
        except MarsError as err:
            return {"error": err.text, "hint": err.hint, "exit": err.exit_code}
        except asyncio.CancelledError:
            raise
        except OSError as err:
            return {"error": str(err), "hint": "see marsd.log", "exit": 1}
        except Exception as err:
            LOG.exception("request %s failed", request.get("cmd"))
            return {"error": f"unexpected error: {err!r}", "hint": "see marsd.log", "exit": 1}


def _write(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
    writer.write(json.dumps(answer).encode() + b"\n")


def _uid(writer: asyncio.StreamWriter) -> int:
    sock = writer.get_extra_info("socket")
    return struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
