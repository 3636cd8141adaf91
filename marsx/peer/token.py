"""Join tokens: the one line that lets one new host in, and the store of those given out.

Text form: `mars-` and base32 of

    off  bytes  field
    0    1      version, 1
    1    32     fingerprint of the cluster CA: how the new host knows that it talks to the right cluster
    33   20     secret, random: how the cluster knows the new host
    53   8      expiry, seconds since 1970, big endian (for people; the giver's store decides)
    61   n      name of the host that gave it
    last 4      first bytes of the SHA-256 of all before: a mistyped token is called that

The secret is never sent: the new host proves it by an HMAC over both sides' nonces and the certificate it sees. Nor is
it stored: the store has (id, key), both hashes of it. The store is a file of mode 0600 in the run directory: a token
never outlives a reboot. `redeem` is checked in this order: unknown or wrong proof, used, expired; a token counts as
used, durably, before anything is handed out for it.
"""
from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from marsx.base import durable
from marsx.base.config import Paths
from marsx.base.errors import AuthError, DamagedError, NotFoundError
from marsx.base.position import is_host_name
from marsx.peer import wire
from marsx.peer.tls import TlsFiles, fingerprint, read_private

LIFETIME = 3600
PREFIX = "mars-"
STORE_NAME = "join-tokens"

_VERSION = 1
_FIXED = 61
_SUM = 4
_TEXT_LIMIT = 400
_REMEMBER = 24 * 3600  # so that a used or expired token is called that, not unknown
_STORE_LIMIT = 1000
_ANOTHER = "make another one: marsadm create-token"


@dataclass(frozen=True, slots=True)
class Token:
    """What the line says."""

    fingerprint: bytes
    secret: bytes
    expires: int
    host: str

    @property
    def id(self) -> str:
        """Names the token without giving it away."""
        return hashlib.sha256(b"marsx token id\0" + self.secret).hexdigest()[:16]

    @property
    def key(self) -> bytes:
        """What proofs are made with."""
        return hashlib.sha256(b"marsx token key\0" + self.secret).digest()

    def text(self) -> str:
        """The line for people to carry over."""
        raw = bytes([_VERSION]) + self.fingerprint + self.secret + self.expires.to_bytes(8, "big") + self.host.encode()
        return PREFIX + base64.b32encode(raw + _sum(raw)).decode().rstrip("=").lower()

    @classmethod
    def parse(cls, text: str) -> Token:
        """Inverse of text(); upper case and blanks around are forgiven."""
        line = text.strip().lower()
        if not line.startswith(PREFIX) or len(line) > _TEXT_LIMIT:
            raise AuthError("this is not a join token", f"a token begins with {PREFIX!r}; {_ANOTHER}")
        code = line[len(PREFIX):].upper()
        try:
            raw = base64.b32decode(code + "=" * (-len(code) % 8))
        except (binascii.Error, ValueError):
            raw = b""
        body, check = raw[:-_SUM], raw[-_SUM:]
        if len(body) <= _FIXED or not hmac.compare_digest(_sum(body), check):
            raise AuthError("the join token is mistyped or cut off", f"copy the whole line, or {_ANOTHER}")
        if body[0] != _VERSION:
            raise AuthError(f"the join token has the unknown version {body[0]}", "use the same mars.pyz on all hosts")
        host = body[_FIXED:].decode("ascii", "replace")
        if not is_host_name(host):
            raise AuthError("the join token names no host", _ANOTHER)
        return cls(body[1:33], body[33:53], int.from_bytes(body[53:61], "big"), host)


def _sum(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()[:_SUM]


def create_token(paths: Paths, host: str, lifetime: int = LIFETIME, clock: Callable[[], float] = time.time) -> str:
    """A new token for the cluster of this host: the printable line. The store remembers it."""
    ca_crt = read_private(TlsFiles.of(paths).ca_crt)
    token = Token(fingerprint(ca_crt), secrets.token_bytes(20), int(clock()) + lifetime, host)
    TokenStore.of(paths, clock).add(token)
    return token.text()


def proof(key: bytes, *parts: str | bytes) -> str:
    """What only who knows the secret can say about these parts (each is framed, so none can run into the next)."""
    mac = hmac.new(key, b"marsx join 1", hashlib.sha256)
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        mac.update(len(raw).to_bytes(4, "big") + raw)
    return mac.hexdigest()


@dataclass(slots=True)
class _Entry:
    id: str
    key: str
    expires: int
    used_by: str


class TokenStore:
    """The tokens given out by this host. One process at a time (marsd); each change is in the file when it returns."""

    def __init__(self, path: str, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock

    @classmethod
    def of(cls, paths: Paths, clock: Callable[[], float] = time.time) -> TokenStore:
        """That of this host."""
        return cls(os.path.join(paths.run_dir, STORE_NAME), clock)

    def any(self) -> bool:
        """True while the join service has somebody to talk to, be it to tell him that his token is too old."""
        return bool(self._load())

    def add(self, token: Token) -> None:
        """Remember a new token."""
        entries = self._load()
        if len(entries) >= _STORE_LIMIT:
            raise AuthError("too many join tokens were made today", f"remove {self._path} to make all of them void")
        self._save([*entries, _Entry(token.id, token.key.hex(), token.expires, "")])

    def check(self, token_id: str, parts: tuple[str | bytes, ...], claimed: str) -> None:
        """AuthError unless `claimed` proves a token that is neither used nor expired."""
        entry = next((e for e in self._load() if e.id == token_id), None)
        if entry is None or not hmac.compare_digest(proof(bytes.fromhex(entry.key), *parts), claimed):
            raise AuthError("the join token is wrong: this host did not give it, or forgot it in a restart", _ANOTHER)
        if entry.used_by:
            raise AuthError(f"the join token was already used by {entry.used_by}", _ANOTHER)
        if self._clock() >= entry.expires:
            raise AuthError("the join token has expired", _ANOTHER)

    def use(self, token_id: str, host: str) -> None:
        """From now on the token is used, also after a crash."""
        entries = self._load()
        for entry in entries:
            if entry.id == token_id and not entry.used_by:
                entry.used_by = host
                self._save(entries)
                return
        raise AuthError("the join token was already used", _ANOTHER)

    def _load(self) -> list[_Entry]:
        try:
            raw = read_private(self._path)
        except NotFoundError:
            return []
        try:
            entries = [_Entry(wire.take_hex(row, "id", 16), wire.take_hex(row, "key", 64),
                              wire.take_int(row, "expires", 0, 2**62), wire.take_text(row, "used_by", 63, empty=True))
                       for row in wire.parse_json(raw)]
        except (wire.WireError, TypeError, AttributeError):
            raise DamagedError(f"{self._path} is damaged", "remove it; then make new tokens") from None
        return [entry for entry in entries if self._clock() < entry.expires + _REMEMBER]

    def _save(self, entries: list[_Entry]) -> None:
        rows = [{"id": e.id, "key": e.key, "expires": e.expires, "used_by": e.used_by} for e in entries]
        durable.write_file(self._path, wire.pack_json(rows), mode=0o600)
