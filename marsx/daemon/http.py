"""A small HTTP server for what marsd shows: GET and HEAD, one request a connection, nothing else.

Everything that comes in is hostile: the request's head is bounded in size and time, its answer in time, connections in
number; bodies are not read. Behind a loopback address only the names of loopback are answered to, so that a page of
somebody else in a browser on this machine cannot read along (DNS rebinding). `route(path)` gives the answer.
"""
from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from marsx.base import messages

LOG = messages.get("daemon.http")
HEAD_MAX = 8192
REQUEST_S = 5.0
ANSWER_S = 20.0
CONNECTIONS_MAX = 32  # those above are told so, those above twice of it are cut off
CROWDED_S = 1.0
TEXT = "text/plain; charset=utf-8"
PHRASES = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
           408: "Request Timeout", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
           503: "Service Unavailable"}
FIXED = (
    "Connection: close\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
    "Referrer-Policy: no-referrer\r\n"
    "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
)
_LINE = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]{0,2000}) HTTP/1\.[01]", re.ASCII)
_HOST = re.compile(rb"\r\nhost:[ \t]*([^\r\n]{0,300}?)[ \t]*(?=\r\n)", re.ASCII | re.IGNORECASE)


class Answer(NamedTuple):
    """What goes back."""

    status: int
    type: str
    body: bytes


class Refused(Exception):
    """A request that is answered with a status only."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.answer = Answer(status, TEXT, f"{text}\n".encode())


Route = Callable[[str], Awaitable[Answer]]


def parse(head: bytes, loopback_only: bool) -> tuple[str, str]:
    """(method, path without query) of a request's head; Refused."""
    match = _LINE.fullmatch(head.partition(b"\r\n")[0])
    if match is None:
        raise Refused(400, "this is not a request")
    method, path = match[1].decode(), match[2].decode().partition("?")[0]
    if method not in ("GET", "HEAD"):
        raise Refused(405, "only GET and HEAD")
    hosts = _HOST.findall(head)
    if len(hosts) > 1:
        raise Refused(400, "more than one Host")
    if loopback_only and hosts and not is_loopback(hosts[0].decode("latin-1")):
        raise Refused(403, "ask for localhost")
    return method, path


def is_loopback(host: str) -> bool:
    """Is this value of a Host header a name of this machine for itself?"""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


class Http:
    """See the module. Belongs to the loop."""

    def __init__(self, address: str, port: int, route: Route) -> None:
        self.address = address
        self._port = port
        self._route = route
        self._loopback_only = ipaddress.ip_address(address).is_loopback
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._throttle = messages.Throttle(60, time.monotonic)

    async def start(self) -> None:
        """Listen; OSError."""
        self._server = await asyncio.start_server(self._connection, self.address, self._port, limit=HEAD_MAX,
                                                  backlog=CONNECTIONS_MAX)

    @property
    def port(self) -> int:
        """The port in use."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening, end all connections."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._tasks) >= 2 * CONNECTIONS_MAX:
            writer.transport.abort()
            return
        self._tasks.add(task)
        writer.transport.set_write_buffer_limits(0)  # drain() waits until all is sent
        try:
            is_head, answer = await self._answer(reader)
            async with asyncio.timeout(ANSWER_S):
                writer.write(_packed(answer, is_head))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._tasks.discard(task)

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[bool, Answer]:
        """(only the head of the answer is wanted, answer)."""
        is_crowded = len(self._tasks) > CONNECTIONS_MAX
        try:
            try:
                async with asyncio.timeout(CROWDED_S if is_crowded else REQUEST_S):
                    head = await reader.readuntil(b"\r\n\r\n")
            except TimeoutError:
                raise Refused(408, "no request came") from None
            except asyncio.LimitOverrunError:
                raise Refused(431, "the request is too long") from None
            except asyncio.IncompleteReadError:
                raise Refused(400, "this is not a request") from None
            if is_crowded:
                raise Refused(503, "too many connections")
            method, path = parse(head, self._loopback_only)
            async with asyncio.timeout(ANSWER_S):
                return method == "HEAD", await self._route(path)
        except Refused as refused:
            return False, refused.answer
        except TimeoutError:
            return False, Refused(503, "this takes too long").answer
        except Exception:
            if self._throttle.due("answer"):
                LOG.exception("a request could not be answered")
            return False, Refused(500, "unexpected error, see marsd.log").answer


def _packed(answer: Answer, is_head: bool) -> bytes:
    head = (f"HTTP/1.1 {answer.status} {PHRASES[answer.status]}\r\nContent-Type: {answer.type}\r\n"
            f"Content-Length: {len(answer.body)}\r\n{FIXED}\r\n")
    return head.encode() + (b"" if is_head else answer.body)


async def closed(http: Http | None) -> None:
    """Closed, whatever its state was."""
    if http is not None:
        with contextlib.suppress(OSError):
            await http.close()
