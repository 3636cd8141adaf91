"""A small cluster of certificates, and an event loop whose clock can be pushed on: no test here waits for real time."""
from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from marsx.peer import link as link_module
from marsx.peer import tls
from marsx.peer.link import Link, Timing
from marsx.peer.server import Server
from marsx.peer.wire import Hello


@dataclass
class Certified:
    """One host with its certificates."""

    name: str
    files: tls.TlsFiles

    def hello(self, uuid: str = "uuid-1") -> Hello:
        return Hello(uuid, self.name, f"inc-{self.name}", ("a", "b"))

    def client(self):
        return tls.client_context(self.files)

    def server(self):
        return tls.server_contexts(self.files)


def _member(base, first: tls.TlsFiles, name: str) -> Certified:
    files = tls.TlsFiles(str(base / name / "etc" / "tls"))
    key, request = tls.make_request(files, name)
    tls.install(files, ca_crt=tls.read_private(first.ca_crt), ca_key=tls.read_private(first.ca_key),
                host_crt=tls.sign_request(first, request, name), host_key=key)
    return Certified(name, files)


@pytest.fixture(scope="session")
def hosts(tmp_path_factory):
    """alpha and beta of one cluster, and alpha of another one, who would like to be ours."""
    base = tmp_path_factory.mktemp("tls")
    alpha = Certified("alpha", tls.TlsFiles(str(base / "alpha" / "etc" / "tls")))
    tls.create_cluster(alpha.files, "alpha")
    evil = Certified("alpha", tls.TlsFiles(str(base / "evil" / "etc" / "tls")))
    tls.create_cluster(evil.files, "alpha")
    return SimpleNamespace(alpha=alpha, beta=_member(base, alpha.files, "beta"), evil=evil,
                           evil_beta=_member(base / "other", evil.files, "beta"))


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Run one coroutine to its end; a test that hangs fails instead. Nothing may be left running."""
    def hangs(*_: object) -> None:
        raise AssertionError("the test hangs")

    def runner(work: Coroutine[Any, Any, Any]) -> Any:
        async def guarded() -> Any:
            result = await work
            me = asyncio.current_task()
            left = [task for task in asyncio.all_tasks() if task is not me]
            assert not left, f"left running: {left}"
            return result
        # Not a timeout of the loop, whose clock is pushed about.
        before = signal.signal(signal.SIGALRM, hangs)
        signal.alarm(120)
        try:
            return asyncio.run(guarded())
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
    return runner


class Clock:
    """Pushes the time of the running loop on. Between the steps everything that is ready runs."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ahead = 0.0
        real = self._loop.time
        self._loop.time = lambda: real() + self._ahead  # type: ignore[method-assign]

    async def advance(self, seconds: float, step: float = 0.5) -> None:
        for _ in range(round(seconds / step)):
            self._ahead += step
            await turn(20)

    def jump(self, seconds: float) -> None:
        """As when the whole process was stopped."""
        self._ahead += seconds


async def turn(times: int = 50) -> None:
    """Let the loop run, with its I/O."""
    for _ in range(times):
        await asyncio.sleep(0)


async def until(condition: Callable[[], Any]) -> None:
    """Wait for something that other tasks or threads bring about."""
    while not condition():
        await asyncio.sleep(0.001)


async def link_pair(timing: Timing | None = None) -> tuple[Link, Link]:
    """Two ends of a TCP connection over loopback, without handshake."""
    left, _, sock = await half_link(timing)
    link = Link("left", timing or Timing())
    await asyncio.get_running_loop().create_connection(lambda: link, sock=sock)
    return left, link


async def half_link(timing: Timing | None = None, buffer: int = 0) -> tuple[Link, socket.socket, socket.socket]:
    """A link, its own socket, and a bare socket as the peer, which does just what the test lets it do."""
    timing = timing or Timing()
    listener = socket.create_server(("127.0.0.1", 0))
    peer = socket.socket()
    if buffer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    peer.connect(listener.getsockname())
    own, _ = listener.accept()
    listener.close()
    link_module.prepare_socket(own, timing)
    if buffer:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    peer.setblocking(False)
    link = Link("right", timing)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: link, own)
    return link, own, peer


@asynccontextmanager
async def serving(host: Certified, services: dict, **options: Any) -> AsyncIterator[Server]:
    """A server of `host` on loopback."""
    options.setdefault("contexts", host.server())
    options.setdefault("identity", host.hello)
    options.setdefault("is_member", lambda peer: "")
    server = Server("127.0.0.1", 0, services=services, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.close()


@pytest.fixture
def peers():
    """The helpers above, for test modules (which cannot import this file)."""
    return SimpleNamespace(Clock=Clock, turn=turn, until=until, link_pair=link_pair, half_link=half_link,
                           serving=serving)
