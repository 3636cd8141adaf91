"""The connecting end of the handshake: `connect` gives a link to one service of one host, or says why not.

Certificate, `WELCOME` and the name we asked for must be the same host of the same cluster before the caller gets the
link. Errors are `PeerError` with one of the reasons of `wire.Reason`.
"""
from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from typing import Any

from marsx.peer import wire
from marsx.peer.link import Link, Timing, as_peer_error, prepare_socket, reason_of
from marsx.peer.wire import Hello, PeerError, Reason, Type

_UUID_ANY = ""


async def connect(peer: str, ip: str, port: int, service: str, *, identity: Hello, context: ssl.SSLContext | None,
                  timing: Timing | None = None) -> tuple[Link, Hello]:
    """(link, who the peer is). `context` None: no TLS at all (`--insecure-no-tls`); the peer is whom it says it is.

    An identity with an empty uuid takes any cluster (join)."""
    timing = timing or Timing()
    link = await dial(peer, ip, port, context, timing)
    try:
        answer = await _greet(link, Hello(identity.uuid, identity.host, identity.incarnation, identity.features,
                                          service))
        _check_welcome(link, peer, identity, answer, verified=_verifies(context))
    except BaseException as error:
        await link.close(*reason_of(error))
        raise
    link.set_limits()
    return link, answer


async def dial(peer: str, ip: str, port: int, context: ssl.SSLContext | None, timing: Timing) -> Link:
    """TCP and TLS, nothing said yet."""
    who = f"{peer} ({ip}:{port})"
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        raise PeerError(Reason.UNREACHABLE, f"{who}: not an IP address") from None
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        prepare_socket(sock, timing)
        async with asyncio.timeout(timing.connect):
            await loop.sock_connect(sock, (ip, port))
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):  # TimeoutError is one
            raise as_peer_error(error, who) from error
        raise
    tls: dict[str, Any] = {}
    if context is not None:
        tls = {"ssl": context, "server_hostname": "", "ssl_handshake_timeout": timing.connect,
               "ssl_shutdown_timeout": timing.close}
    try:
        _, link = await loop.create_connection(lambda: Link(who, timing, stranger=True), sock=sock, **tls)
    except OSError as error:  # ssl.SSLError is one; the transport has closed the socket
        raise _accepted(as_peer_error(error, who), who) from error
    return link


def _accepted(error: PeerError, who: str) -> PeerError:
    """The same, after TCP was accepted: a time-out then means that the host is there and its marsd is not."""
    if error.reason is not Reason.TIMEOUT:
        return error
    return PeerError(Reason.SILENT, f"{who}: takes the connection but does not answer", "does marsd hang there?")


async def _greet(link: Link, hello: Hello) -> Hello:
    link.post(Type.HELLO, hello.header())
    try:
        answer = await link.recv(link.timing.connect)
    except PeerError as error:
        raise _accepted(error, link.who) from error
    frame = wire.expect(answer, Type.WELCOME, Type.REFUSE)
    if frame.type is Type.REFUSE:
        reason, text = wire.parse_reason(frame.header)
        raise PeerError(reason, f"{link.who}: {text or 'refused'}")
    return Hello.parse(frame.header)


def _verifies(context: ssl.SSLContext | None) -> bool:
    return context is not None and context.verify_mode == ssl.CERT_REQUIRED


def _check_welcome(link: Link, peer: str, identity: Hello, answer: Hello, *, verified: bool) -> None:
    if verified and link.peer_name() != peer:
        raise PeerError(Reason.NAME, f"{link.who}: its certificate is that of {link.peer_name()!r}",
                        "correct the address of that host (ips/ip-HOST)")
    if answer.host != peer:
        raise PeerError(Reason.NAME, f"{link.who}: host {answer.host!r} answers there",
                        "correct the address of that host (ips/ip-HOST)")
    if identity.uuid not in (_UUID_ANY, answer.uuid):
        raise PeerError(Reason.UUID, f"{link.who}: belongs to another cluster: {answer.uuid!r}, ours is "
                                     f"{identity.uuid!r}")
