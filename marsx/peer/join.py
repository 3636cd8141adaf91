"""Taking a new host in: the `join` service of a member, and `join_cluster` on the new host.

    new host                                           member
    TLS without verifying, hello                  ->
                                                  <-   welcome, JOIN_CA (its CA)
    CA has the token's fingerprint? else stop.  Close.
    TLS verified against that CA, certificate is that of the token's host; hello
                                                  <-   welcome, JOIN_CA, JOIN_CHALLENGE (nonce)
    JOIN_PROOF (token id, own nonce, HMAC over both nonces, the member's certificate, own name, address, request)
                                                  ->   checks the proof, asks `admit`, signs, marks the token used
                                                  <-   JOIN_ANSWER (CA, CA key, certificate, uuid, tree)
                                                       or JOIN_REFUSE (exit status, text, hint)

The first connection trusts nothing and tells nothing. The secret is never sent; an HMAC for one member's certificate is
worth nothing at another's. The new host's key never leaves it. If the answer is lost, the token is gone all the same.
"""
from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from marsx.base.errors import AuthError, DamagedError, MarsError, from_exit_code
from marsx.peer import client, tls, wire
from marsx.peer.link import Link, Timing
from marsx.peer.server import Peer
from marsx.peer.token import Token, TokenStore, proof
from marsx.peer.wire import Hello, PeerError, Reason, Type

SERVICE = "join"
SIGN_TIMEOUT = 120.0


@dataclass(frozen=True, slots=True)
class Joined:
    """What a new host gets to know; its certificates are installed already."""

    uuid: str
    host: str  # the member that took us in
    tree: list[Any]  # entries as `admit` of the member gave them: [rel, value, stamp]


# -- the member's side ------------------------------------------------------------------------------------------------

class JoinService:
    """The service for `server.Server(services={"join": ...}, join_open=store.any)`.

    `admit(host, ip, address)` is asked when the token is proved and before anything is done: it raises MarsError to
    refuse (name taken), else prepares the tree for the new host and returns the entries to hand over. `look()`: the
    same entries for who proves a token but asks for no certificate; the token stays. `executor` runs the `openssl`
    program."""

    def __init__(self, files: tls.TlsFiles, store: TokenStore, *, uuid: Callable[[], str],
                 admit: Callable[[str, str, str], list[Any]], look: Callable[[], list[Any]] | None = None,
                 executor: concurrent.futures.Executor | None = None) -> None:
        self._look = look
        self._files = files
        self._store = store
        self._uuid = uuid
        self._admit = admit
        self._executor = executor
        self._one_at_a_time = asyncio.Lock()
        self._certificate = tls.to_der(tls.read_private(files.host_crt))

    async def __call__(self, link: Link, peer: Peer) -> None:
        ca_crt = tls.read_private(self._files.ca_crt)
        nonce = secrets.token_hex(16)
        await link.send(Type.JOIN_CA, {}, ca_crt)
        await link.send(Type.JOIN_CHALLENGE, {"nonce": nonce})
        asked = wire.expect(await link.recv(SIGN_TIMEOUT), Type.JOIN_PROOF)
        request = bytes(asked.body)
        token_id = wire.take_hex(asked.header, "token", 16)
        claimed = wire.take_hex(asked.header, "proof", 64)
        ip = wire.take_text(asked.header, "ip", 64, empty=True)
        parts = _parts(nonce, wire.take_hex(asked.header, "nonce", 32), self._certificate, peer.host, ip, request)
        try:
            async with self._one_at_a_time:
                self._store.check(token_id, parts, claimed)
                if not request and self._look is not None:
                    await link.send(Type.JOIN_ANSWER, {"uuid": self._uuid()}, wire.pack_json({"tree": self._look()}))
                    await link.recv(SIGN_TIMEOUT)
                    return
                entries = self._admit(peer.host, ip, peer.address)
                loop = asyncio.get_running_loop()
                signed = await loop.run_in_executor(self._executor, tls.sign_request, self._files, request, peer.host)
                self._store.use(token_id, peer.host)
        except MarsError as error:
            await link.send(Type.JOIN_REFUSE, {"exit": error.exit_code, "text": error.text[:500],
                                               "hint": error.hint[:500]})
            raise
        answer = {"ca_crt": ca_crt.decode(), "ca_key": tls.read_private(self._files.ca_key).decode(),
                  "host_crt": signed.decode(), "tree": entries}
        await link.send(Type.JOIN_ANSWER, {"uuid": self._uuid()}, wire.pack_json(answer))
        # The new host says good-bye when it has everything.
        await link.recv(SIGN_TIMEOUT)


def _parts(member_nonce: str, new_nonce: str, certificate: bytes, host: str, ip: str, request: bytes) \
        -> tuple[str | bytes, ...]:
    """What the proof speaks about: this session, this member, this new host and its key."""
    return (member_nonce, new_nonce, hashlib.sha256(certificate).digest(), host, ip, hashlib.sha256(request).digest())


# -- the new host's side ----------------------------------------------------------------------------------------------

async def join_cluster(token_text: str, ip: str, port: int, *, host: str, own_ip: str, files: tls.TlsFiles,
                       timing: Timing | None = None) -> Joined:
    """Make this host, called `host`, part of the cluster that gave the token; certificates are installed on success.

    Raises AuthError (token or certificate), PeerError (connection), MarsError (the member refuses)."""
    token = Token.parse(token_text)
    timing = timing or Timing()
    ca_crt = await _ask_ca(token, ip, port, host, timing)
    key, request = tls.make_request(files, host)
    link, member = await _connect(token, ip, port, host, tls.join_context(ca_crt), timing)
    try:
        answer = await _prove(link, token, host, own_ip, request)
        found = _parse_answer(answer, ca_crt)
        tls.install(files, ca_crt=ca_crt, ca_key=found["ca_key"].encode(), host_crt=found["host_crt"].encode(),
                    host_key=key)
        return Joined(wire.take_text(answer.header, "uuid", 127), member.host, found["tree"])
    finally:
        await link.close()


async def look_at_cluster(token_text: str, ip: str, port: int, *, host: str, own_ip: str,
                          timing: Timing | None = None) -> Joined:
    """The uuid and the tree of the cluster that gave the token; nothing is changed there or here, the token stays."""
    token = Token.parse(token_text)
    timing = timing or Timing()
    ca_crt = await _ask_ca(token, ip, port, host, timing)
    link, member = await _connect(token, ip, port, host, tls.join_context(ca_crt), timing)
    try:
        answer = await _prove(link, token, host, own_ip, b"")
        found = wire.parse_json(answer.body)
        if not isinstance(found, dict) or not isinstance(found.get("tree"), list):
            raise DamagedError("the answer of the cluster is not complete")
        return Joined(wire.take_text(answer.header, "uuid", 127), member.host, found["tree"])
    finally:
        await link.close()


async def _connect(token: Token, ip: str, port: int, host: str, context: ssl.SSLContext, timing: Timing) \
        -> tuple[Link, Hello]:
    try:
        return await client.connect(token.host, ip, port, SERVICE, identity=Hello("", host, ""), context=context,
                                    timing=timing)
    except PeerError as error:
        if error.reason in (Reason.TLS, Reason.LOST):
            raise PeerError(error.reason, error.text, f"{token.host} lets nobody in: has it given a token since its "
                            "marsd was started, without --insecure-no-tls?") from None
        raise


async def _ask_ca(token: Token, ip: str, port: int, host: str, timing: Timing) -> bytes:
    """The CA of the host at that address, checked against the token."""
    link, _ = await _connect(token, ip, port, host, tls.join_context(None), timing)
    try:
        frame = wire.expect(await link.recv(timing.io_timeout), Type.JOIN_CA)
        ca_crt = bytes(frame.body)
        if tls.fingerprint(ca_crt) != token.fingerprint:
            raise AuthError(f"{link.who} is not of the cluster that gave the token",
                            "check the address; if it is right, somebody stands between the two hosts")
        return ca_crt
    finally:
        await link.close()


async def _prove(link: Link, token: Token, host: str, own_ip: str, request: bytes) -> wire.Frame:
    """Answer the challenge; the member's answer."""
    wire.expect(await link.recv(link.timing.io_timeout), Type.JOIN_CA)
    challenge = wire.expect(await link.recv(link.timing.io_timeout), Type.JOIN_CHALLENGE)
    nonce = secrets.token_hex(16)
    parts = _parts(wire.take_hex(challenge.header, "nonce", 32), nonce, link.peer_certificate(), host, own_ip, request)
    await link.send(Type.JOIN_PROOF, {"token": token.id, "nonce": nonce, "ip": own_ip,
                                      "proof": proof(token.key, *parts)}, request)
    answer = wire.expect(await link.recv(SIGN_TIMEOUT), Type.JOIN_ANSWER, Type.JOIN_REFUSE)
    if answer.type is Type.JOIN_REFUSE:
        said = answer.header
        raise from_exit_code(wire.take_int(said, "exit", 1, 255), f"{link.who}: {wire.take_text(said, 'text', 500)}",
                             wire.take_text(said, "hint", 500, empty=True))
    return answer


def _parse_answer(answer: wire.Frame, ca_crt: bytes) -> dict[str, Any]:
    found = wire.parse_json(answer.body)
    if not isinstance(found, dict) or not isinstance(found.get("tree"), list):
        raise DamagedError("the answer of the cluster is not complete")
    for name in ("ca_crt", "ca_key", "host_crt"):
        if not isinstance(found.get(name), str) or not 0 < len(found[name]) <= tls.PEM_LIMIT:
            raise DamagedError("the answer of the cluster is not complete")
    if tls.to_der(found["ca_crt"].encode()) != tls.to_der(ca_crt):
        raise AuthError("the answer names another CA than the token")
    return found
