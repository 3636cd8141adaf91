"""The listening end: accepts, finds out who it is, hands the link to the service asked for.

A service is `async def service(link, peer)`; the link is closed when it returns, with the reason when it raises.

Who gets how far:
    a connection before its hello is a stranger: small frames, a short deadline, few of them per address
    no certificate of the cluster: only the services in `open_services`, and only while `join_open()` says so
    a certificate: its name must be the one in the hello, uuid and protocol ours, and `is_member` must agree
Each refusal is a REFUSE frame with a reason and a text, and a message on this side at most once a minute.
Without TLS (`contexts` None) the hello is believed; this is told as a warning at every start.
"""
from __future__ import annotations

import asyncio
import collections
import errno
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from marsx.base import messages
from marsx.base.errors import MarsError
from marsx.peer import tls, wire
from marsx.peer.link import Link, Tcp, Timing, as_peer_error, prepare_socket, reason_of
from marsx.peer.wire import Hello, PeerError, Reason, Type

_messages = messages.get("peer.server")

LINKS_MAX = 2048
STRANGERS_MAX = 256
STRANGERS_PER_ADDRESS = 32
_BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end. `verified`: the host name was proved by a certificate of the cluster."""

    host: str
    incarnation: str
    features: tuple[str, ...]
    address: str
    verified: bool


Service = Callable[[Link, Peer], Awaitable[None]]


def _nobody_joins() -> bool:
    return False


class Server:
    """See the module. `identity` and `is_member` are asked anew for each connection; `is_member` returns "" for yes,
    else what is wrong with that host; `tcp_of(service)` says what TCP is told once the service is known."""

    def __init__(self, host: str, port: int, *, contexts: tls.ServerContexts | None, identity: Callable[[], Hello],
                 services: Mapping[str, Service], is_member: Callable[[Peer], str],
                 join_open: Callable[[], bool] = _nobody_joins, open_services: frozenset[str] = frozenset({"join"}),
                 timing: Timing | None = None, tcp_of: Callable[[str], Tcp] | None = None,
                 links_max: int = LINKS_MAX, strangers_max: int = STRANGERS_MAX,
                 strangers_per_address: int = STRANGERS_PER_ADDRESS) -> None:
        self._address = (host, port)
        self._contexts = contexts
        self._identity = identity
        self._services = services
        self._is_member = is_member
        self._join_open = join_open
        self._open_services = open_services
        self._timing = timing or Timing()
        self._tcp_of = tcp_of
        self._links_max = links_max
        self._strangers_max = strangers_max
        self._strangers_per_address = strangers_per_address
        self._strangers: collections.Counter[str] = collections.Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._throttle = messages.Throttle(60, time.monotonic)

    async def start(self) -> None:
        """Listen. An address in use is an error that says so."""
        self._listener = _listen(*self._address, self._timing)
        if self._contexts is None:
            _messages.warning("--insecure-no-tls: connections to other hosts are neither encrypted nor authenticated; "
                              "whoever reaches port %d can read and change all data", self.port)
        self._accepting = asyncio.create_task(self._accept_loop(), name="peer-accept")

    @property
    def port(self) -> int:
        """The port in use (port 0 asks the system for a free one)."""
        assert self._listener is not None
        return self._listener.getsockname()[1]

    async def close(self) -> None:
        """Stop listening, end all services, and wait for them."""
        tasks = [task for task in (self._accepting, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()

    async def _accept_loop(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._listener is not None
        while True:
            try:
                sock, source = await loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._tell("accept", f"cannot accept connections: {error.strerror}")
                    await asyncio.sleep(1)
                continue  # else the connection was gone before it was accepted
            address = source[0].removeprefix("::ffff:")
            if self._too_many_strangers(address):
                sock.close()
                continue
            self._strangers[address] += 1
            task = asyncio.create_task(self._connection(sock, address, f"{address}:{source[1]}"), name="peer-serve")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _too_many_strangers(self, address: str) -> bool:
        if self._strangers[address] < self._strangers_per_address and self._strangers.total() < self._strangers_max:
            return False
        self._tell(f"strangers {address}", f"{address}: too many connections that have not said who they are")
        return True

    def _known(self, address: str) -> None:
        self._strangers[address] -= 1
        if not self._strangers[address]:
            del self._strangers[address]

    async def _connection(self, sock: socket.socket, address: str, who: str) -> None:
        """One connection from TLS to its end."""
        try:
            link = await self._open_link(sock, who)
            found = None if link is None else await self._welcome(link, address)
        finally:
            self._known(address)
        if link is not None and found is not None:
            await self._serve(link, *found)

    async def _open_link(self, sock: socket.socket, who: str) -> Link | None:
        loop = asyncio.get_running_loop()
        timing = self._timing
        options: dict[str, Any] = {}
        try:
            prepare_socket(sock, timing)
            if self._contexts is not None:
                options = {"ssl": self._contexts.joining if self._join_open() else self._contexts.members,
                           "ssl_handshake_timeout": timing.connect, "ssl_shutdown_timeout": timing.close}
            _, link = await loop.connect_accepted_socket(lambda: Link(who, timing, stranger=True), sock, **options)
            return link
        except OSError as error:  # TimeoutError and ssl.SSLError are among them; the transport has closed the socket
            self._tell(f"tls {who.rpartition(':')[0]}", as_peer_error(error, who).text)
            return None

    async def _welcome(self, link: Link, address: str) -> tuple[Peer, Service] | None:
        """Answer the hello; None when the link is closed again."""
        try:
            frame = wire.expect(await link.recv(self._timing.connect), Type.HELLO)
            hello = Hello.parse(frame.header)
            peer = Peer(hello.host, hello.incarnation, hello.features, address, verified=link.peer_name() != "")
            service = self._check(link, hello, peer)
        except PeerError as error:
            self._tell(f"{error.reason} {address}", f"{link.who}: refused: {error.text}")
            if link.ended is None:
                link.post(Type.REFUSE, {"reason": error.reason, "text": error.text[:500]})
            await link.close()
            return None
        except BaseException:
            link.abort(Reason.CLOSED, "this host is stopping")
            raise
        link.who = f"{peer.host} ({link.who})"
        if peer.verified or self._contexts is None:
            link.set_limits()
        if self._tcp_of is not None:
            link.tune(self._tcp_of(hello.service))
        link.post(Type.WELCOME, self._identity().header())
        return peer, service

    def _check(self, link: Link, hello: Hello, peer: Peer) -> Service:
        """The service, or the PeerError that refuses."""
        here = self._identity()
        service = self._services.get(hello.service)
        open_to_all = hello.service in self._open_services
        name = link.peer_name()
        if service is None:
            raise PeerError(Reason.SERVICE, f"there is no service {hello.service!r} here")
        if len(self._tasks) - self._strangers.total() >= self._links_max:
            raise PeerError(Reason.BUSY, f"{here.host} has too many connections")
        if self._contexts is None:
            if open_to_all:
                raise PeerError(Reason.CERTIFICATE, f"{here.host} runs with --insecure-no-tls: nobody can join there")
        elif name and name != hello.host:
            raise PeerError(Reason.NAME, f"the certificate is that of {name!r}, the hello says {hello.host!r}")
        elif not name and not open_to_all:
            raise PeerError(Reason.CERTIFICATE, f"service {hello.service!r} needs a certificate of this cluster")
        if open_to_all:
            return service
        if hello.uuid != here.uuid:
            raise PeerError(Reason.UUID, f"{here.host} belongs to cluster {here.uuid!r}, not to {hello.uuid!r}")
        if hello.host == here.host:
            raise PeerError(Reason.NAME, f"two hosts are called {here.host!r}")
        refusal = self._is_member(peer)
        if refusal:
            raise PeerError(Reason.NOT_MEMBER, refusal)
        return service

    async def _serve(self, link: Link, peer: Peer, service: Service) -> None:
        """Run the service; whatever happens, the link is closed and the peer is told why."""
        try:
            await service(link, peer)
        except asyncio.CancelledError:
            await link.close(Reason.CLOSED, "this host is stopping")
            raise
        except MarsError as error:
            if getattr(error, "reason", None) is not Reason.CLOSED:
                self._tell(f"service {peer.host} {reason_of(error)[0]}", f"{link.who}: {error.text}")
            await link.close(*reason_of(error))
        except Exception as error:
            _messages.exception("%s: a service failed", link.who)
            await link.close(*reason_of(error))
        else:
            await link.close()

    def _tell(self, key: str, text: str) -> None:
        if self._throttle.due(key):
            _messages.info("%s", text)


def _listen(host: str, port: int, timing: Timing) -> socket.socket:
    """A listening socket on `host`; on all addresses of both families where it is empty."""
    both = not host and socket.has_dualstack_ipv6()
    sock = socket.socket(socket.AF_INET6 if both or ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if both:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        prepare_socket(sock, timing, listener=True)
        sock.bind((host or ("::" if both else "0.0.0.0"), port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise MarsError(f"cannot listen on {host or 'any address'} port {port}: {error.strerror}",
                        "is another marsd running, or another program on that port?") from error
    return sock
