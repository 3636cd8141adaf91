"""Frames <-> bytes, without any I/O: the form of everything that hosts say to each other.

A frame, integers little endian:

    off  type  field
    0    2s    magic `MX`
    2    u8    version of this form, 1
    3    u8    type (`Type`)
    4    u32   length of the header, at most 256 KiB
    8    u32   length of the body, at most 8 MiB
    12   JSON  header: one object, UTF-8, no number that is not finite, no key twice; nothing = {}
    ...  bytes body: bulk data as they are

Promises of the decoder: it yields exactly the frames of a valid stream, however the stream is cut; the first byte that
does not fit ends it for good (`error` is set, nothing is yielded any more); it never holds more than one frame plus
64 KiB; a body is memory of its own that nobody writes to any more.
"""
from __future__ import annotations

import enum
import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from marsx.base.errors import MarsError
from marsx.base.position import NR_MAX, POS_MAX, is_host_name
from marsx.base.text import printable

PROTO = 1
MAGIC = b"MX"
FRAME_VERSION = 1
HEAD = struct.Struct("<2sBBII")
MAX_HEADER = 256 * 1024
MAX_BODY = 8 * 1024 * 1024
# Before the other side has said who it is, nothing large is due.
MAX_HEADER_STRANGER = 4 * 1024
MAX_BODY_STRANGER = 16 * 1024

_SCRATCH = 16 * 1024
_HEX = frozenset("0123456789abcdef")

Buffer = bytes | bytearray | memoryview


class Type(enum.IntEnum):
    """What a frame is. Numbers are fixed for ever; each service has a row of sixteen."""

    HELLO = 1
    WELCOME = 2
    REFUSE = 3
    HEARTBEAT = 4
    BYE = 5
    ERROR = 6

    TREE_FULL = 16
    TREE_BATCH = 17
    TREE_ACK = 18

    FETCH = 32
    FETCH_OK = 33
    FETCH_NO = 34
    FETCH_DATA = 35
    FETCH_NEXT = 36
    FETCH_ACK = 37

    SYNC_OPEN = 48
    SYNC_ACCEPT = 49
    SYNC_DIGESTS = 50
    SYNC_DATA = 51
    SYNC_ANSWER = 52
    SYNC_REFUSE = 53
    VERIFY_DIGESTS = 54
    VERIFY_ANSWER = 55

    JOIN_CA = 64
    JOIN_CHALLENGE = 65
    JOIN_PROOF = 66
    JOIN_ANSWER = 67
    JOIN_REFUSE = 68

    START_ASK = 80
    START_GRANT = 81

    HEAL_ASK = 82
    HEAL_ANSWER = 83

    VERIFY_RUN = 96
    VERIFY_TOLD = 97
    VERIFY_END = 98


class Reason(enum.StrEnum):
    """Why a connection was not made, or ended: a word for programs (tree, metrics); people get the text beside it."""

    REFUSED = "refused"  # nobody listens at that address
    UNREACHABLE = "unreachable"  # no route, no such address
    TIMEOUT = "timeout"  # no answer in time
    TLS = "tls"  # no common TLS, or a certificate of another cluster
    PROTO = "proto"  # the other side speaks another version
    UUID = "uuid"  # another cluster
    NAME = "name"  # certificate and name do not belong together, or another host answers at that address
    NOT_MEMBER = "not-member"  # the other side does not know us
    OUTCAST = "outcast"  # we were removed, or another host is whom we say that we are
    CERTIFICATE = "certificate"  # came without certificate to a service that needs one
    SERVICE = "service"  # the other side does not have that service
    BUSY = "busy"  # too many connections
    AUTH = "auth"  # token refused
    GARBAGE = "garbage"  # bytes that are no frame, or a frame that is not due
    SILENT = "silent"  # no byte for too long
    STALLED = "stalled"  # takes no byte for too long
    CLOSED = "closed"  # ended in good order
    LOST = "lost"  # the line broke
    FAILED = "failed"  # the other side met an error of its own
    SPLIT = "split"  # split brain: what we hold is not a prefix of what the source holds
    MISSING = "missing"  # the source does not have that log (any more)
    BEHIND = "behind"  # the source has less than we hold


class PeerError(MarsError):
    """Talking to another host failed; `reason` says in one word why."""

    def __init__(self, reason: Reason, text: str, hint: str = "") -> None:
        super().__init__(text, hint)
        self.reason = reason


class WireError(PeerError):
    """Bytes from a peer that break the rules of the wire."""

    def __init__(self, text: str) -> None:
        super().__init__(Reason.GARBAGE, text)


@dataclass(frozen=True, slots=True)
class Frame:
    """One message. `body` is read-only memory that belongs to this frame alone."""

    type: Type
    header: dict[str, Any]
    body: memoryview


_EMPTY = memoryview(b"")


def encode_head(kind: Type, header: Mapping[str, Any] | None = None, body_length: int = 0) -> bytes:
    """Everything of a frame that stands before its body. Too much is an error of the caller (ValueError)."""
    text = pack_json(header) if header else b""
    if len(text) > MAX_HEADER or body_length > MAX_BODY:
        raise ValueError(f"frame {Type(kind).name} too large: header {len(text)}, body {body_length} bytes")
    return HEAD.pack(MAGIC, FRAME_VERSION, kind, len(text), body_length) + text


def encode(kind: Type, header: Mapping[str, Any] | None = None, body: Buffer = b"") -> bytes:
    """A whole frame in one piece (small frames, tests)."""
    return encode_head(kind, header, len(body)) + bytes(body)


def pack_json(value: object) -> bytes:
    """Compact UTF-8 JSON, for headers and for bodies that hold JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def parse_json(data: Buffer) -> Any:
    """JSON of a peer: UTF-8, finite numbers, no key twice, strings that can be written out again."""
    raw = bytes(data)
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_refuse, parse_float=_float)
        if b"\\u" in raw:
            pack_json(value)  # a lone surrogate would only be noticed where it is written out
    except (ValueError, RecursionError) as error:
        raise WireError(f"not acceptable JSON: {str(error)[:120]}") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice in an object")
    return made


def _refuse(text: str) -> None:
    raise ValueError(f"number is not finite: {text}")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number is not finite: {text[:40]}")
    return value


def plain_room(header: int, body: int) -> memoryview:
    """Memory for one frame: its header, and its body behind it."""
    return memoryview(bytearray(header + body))


class Decoder:
    """Bytes in, frames out: either `feed(data)`, or without a copy: fill `buffer()`, then say how much: `filled(n)`.
    `room`: gives the memory of each frame, which may hold anything before."""

    def __init__(self, *, max_header: int = MAX_HEADER, max_body: int = MAX_BODY) -> None:
        self.error: WireError | None = None
        self.room: Callable[[int, int], memoryview] = plain_room
        self._max_header = max_header
        self._max_body = max_body
        self._scratch = memoryview(bytearray(_SCRATCH))
        self._end = 0
        self._payload: memoryview | None = None  # header and body of the frame whose head is known
        self._got = 0
        self._type = Type.BYE
        self._header_length = 0

    def set_limits(self, *, max_header: int = MAX_HEADER, max_body: int = MAX_BODY) -> None:
        """For the frames whose head has not been read yet."""
        self._max_header = max_header
        self._max_body = max_body

    @property
    def between_frames(self) -> bool:
        """True where the stream may end without cutting a frame."""
        return self._payload is None and self._end == 0

    def buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._payload is not None:
            return self._payload[self._got:]
        return self._scratch[self._end:]

    def feed(self, data: Buffer) -> list[Frame]:
        """The frames that these bytes complete. After a byte that does not fit: `error`, and never a frame again."""
        frames: list[Frame] = []
        rest = memoryview(data)
        while len(rest) and self.error is None:
            room = self.buffer()
            n = min(len(room), len(rest))
            room[:n] = rest[:n]
            rest = rest[n:]
            frames += self.filled(n)
        return frames

    def filled(self, n: int) -> list[Frame]:
        """The frames completed by the `n` bytes just put at the start of `buffer()`."""
        frames: list[Frame] = []
        if self.error is not None:
            return frames
        try:
            if self._payload is not None:
                self._got += n
                self._finish(frames)
            else:
                self._end += n
                self._parse_scratch(frames)
        except WireError as error:
            self.error = error
            self._payload, self._end = None, 0
        return frames

    def _parse_scratch(self, frames: list[Frame]) -> None:
        """Take whole frames from the scratch; the rest of a frame whose head is known moves to its own memory."""
        at = 0
        scratch, end = self._scratch, self._end
        while end - at >= HEAD.size and self._payload is None:
            length = self._parse_head(scratch[at:at + HEAD.size])
            at += HEAD.size
            self._got = min(length, end - at)
            self._payload = self.room(self._header_length, length - self._header_length)
            self._payload[:self._got] = scratch[at:at + self._got]
            at += self._got
            self._finish(frames)
        left = bytes(scratch[at:end])
        scratch[:len(left)] = left
        self._end = len(left)
        # A stranger who speaks another protocol and then waits must not hold us up to the deadline.
        if not MAGIC.startswith(left[:2]):
            raise WireError(f"not a frame: begins with {left[:2]!r}")

    def _parse_head(self, head: memoryview) -> int:
        """Note type and header length, return the length of header and body."""
        magic, version, kind, header_length, body_length = HEAD.unpack(head)
        if magic != MAGIC:
            raise WireError(f"not a frame: begins with {bytes(magic)!r}")
        if version != FRAME_VERSION:
            raise WireError(f"frame version {version} is unknown here")
        try:
            self._type = Type(kind)
        except ValueError:
            raise WireError(f"frame type {kind} is unknown here") from None
        if header_length > self._max_header or body_length > self._max_body:
            raise WireError(f"frame {self._type.name} too large: header {header_length}, body {body_length} bytes")
        self._header_length = header_length
        return header_length + body_length

    def _finish(self, frames: list[Frame]) -> None:
        """If the frame in `_payload` is whole, parse it and put it behind the others."""
        payload = self._payload
        assert payload is not None and self._got <= len(payload)
        if self._got < len(payload):
            return
        self._payload = None
        header = parse_json(payload[:self._header_length]) if self._header_length else {}
        if not isinstance(header, dict):
            raise WireError("the header of a frame is not an object")
        body = payload[self._header_length:].toreadonly() if len(payload) > self._header_length else _EMPTY
        frames.append(Frame(self._type, header, body))


# Fields of a header, taken with their bounds. A field that is missing or of another kind breaks the rules of the wire.

def take_int(header: Mapping[str, Any], name: str, low: int, high: int) -> int:
    """A whole number low..high."""
    value = header.get(name)
    if type(value) is not int or not low <= value <= high:
        raise WireError(f"field {name!r} is not a whole number {low}..{high}: {str(value)[:40]!r}")
    return value


def take_text(header: Mapping[str, Any], name: str, limit: int, *, empty: bool = False) -> str:
    """A string of printable characters, at most `limit` long."""
    value = header.get(name)
    if not isinstance(value, str) or len(value) > limit or not value.isprintable() or not (value or empty):
        raise WireError(f"field {name!r} is not a text of at most {limit} printable characters")
    return value


def take_host(header: Mapping[str, Any], name: str) -> str:
    """The name of a host."""
    value = header.get(name)
    if not isinstance(value, str) or not is_host_name(value):
        raise WireError(f"field {name!r} is not a host name")
    return value


def take_hex(header: Mapping[str, Any], name: str, digits: int, *, empty: bool = False) -> str:
    """Exactly `digits` lower case hex digits, or nothing if that is allowed."""
    value = header.get(name)
    if isinstance(value, str) and (len(value) == digits and _HEX.issuperset(value) or (empty and not value)):
        return value
    raise WireError(f"field {name!r} is not {digits} hex digits")


def take_nr(header: Mapping[str, Any], name: str = "nr") -> int:
    """A log number."""
    return take_int(header, name, 1, NR_MAX)


def take_pos(header: Mapping[str, Any], name: str = "pos") -> int:
    """A POS in a log."""
    return take_int(header, name, 0, POS_MAX)


def take_names(header: Mapping[str, Any], name: str, limit: int = 64) -> tuple[str, ...]:
    """A list of short words (features)."""
    value = header.get(name, [])
    if not isinstance(value, list) or len(value) > limit or not all(isinstance(v, str) and len(v) <= 64 for v in value):
        raise WireError(f"field {name!r} is not a list of words")
    return tuple(value)


def expect(frame: Frame, *kinds: Type) -> Frame:
    """The frame, if it is one of those due now."""
    if frame.type not in kinds:
        due = " or ".join(k.name for k in kinds)
        raise WireError(f"frame {frame.type.name} is not due, {due} is")
    return frame


def parse_reason(header: Mapping[str, Any]) -> tuple[Reason, str]:
    """(reason, text) of a REFUSE, ERROR, BYE or FETCH_NO frame; a reason unknown here counts as failed."""
    word = header.get("reason")
    text = header.get("text", "")
    reason = next((r for r in Reason if r == word), Reason.FAILED)
    return reason, printable(text if isinstance(text, str) else "", 500)


@dataclass(frozen=True, slots=True)
class Hello:
    """Who a host says that it is, in HELLO (with the service wanted) and in WELCOME."""

    uuid: str
    host: str
    incarnation: str
    features: tuple[str, ...] = ()
    service: str = ""

    def header(self) -> dict[str, Any]:
        """As the header of a HELLO or WELCOME frame."""
        return {"proto": PROTO, "uuid": self.uuid, "host": self.host, "incarnation": self.incarnation,
                "service": self.service, "features": list(self.features)}

    @classmethod
    def parse(cls, header: Mapping[str, Any]) -> Hello:
        """Raises PeerError PROTO before it looks at any other field: those may differ in another version."""
        proto = take_int(header, "proto", 0, 2**31)
        if proto != PROTO:
            raise PeerError(Reason.PROTO, f"the other side speaks protocol {proto}, this program speaks {PROTO}",
                            "bring all hosts of the cluster to the same version of mars.pyz")
        return cls(uuid=take_text(header, "uuid", 127, empty=True), host=take_host(header, "host"),
                   incarnation=take_text(header, "incarnation", 64, empty=True),
                   features=take_names(header, "features"), service=take_text(header, "service", 32, empty=True))
