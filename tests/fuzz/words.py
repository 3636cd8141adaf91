"""Texts and frames from peers, links and names: hostile strings for the parsers of small things."""
from __future__ import annotations

import random
from collections.abc import Callable

from marsx.base.errors import MarsError
from marsx.base.position import LogPos, parse_decimal, parse_log_name
from marsx.log.chain import Point, VersionLink
from marsx.peer import wire
from marsx.tree import paths
from tests.fuzz.case import Case

DIGEST = "0123456789abcdef" * 2
SEEDS = {
    "position": ("log-000000001-alpha,4096", "log-1234567890-a.b-c_,0", "log-000000001-alpha,9223372036854775807"),
    "log name": ("log-000000001-alpha", "log-999999999999999999-b"),
    "decimal": ("0", "4096", "9223372036854775807", "9223372036854775808"),
    "version": (f"{DIGEST},log-000000002-a,4096:{DIGEST},log-000000001-b,8192", f"{DIGEST},log-000000001-a,0:"),
    "point": (f"{DIGEST},log-000000001-alpha,4096",),
    "tree": ("resource-r/version-000000001-a", "resource-r/actual-a/is-primary", "ips/ip-a", "resource-r/primary",
             "resource-r/todo-a/want-primary", "resource-r/log-000000001-a", "uuid", "alive-a"),
}
PIECES = ("", ",", ":", "-", "/", "..", "\0", "0", "9" * 19, "\ud800", "é", "log-", "resource-", "A" * 70, " ", "\n",
          "\u0663")


def mangle(text: str, rng: random.Random) -> str:
    """The text with pieces put in, taken out, exchanged."""
    for _ in range(rng.randrange(4)):
        a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        text = rng.choice((text[:a] + rng.choice(PIECES) + text[a:], text[:a] + text[b:], text[:a] + text[a:b] * 2
                           + text[b:], text[:a] + chr(rng.randrange(0x250)) + text[a + 1:]))
    return text


def frames(rng: random.Random) -> bytes:
    """A stream of frames, some of them damaged."""
    stream = bytearray()
    for _ in range(rng.randrange(1, 4)):
        kind = rng.choice(list(wire.Type))
        header = rng.choice(({}, {"nr": 1}, {"pos": 2**63}, {"proto": 1, "host": "a"}, {"a": [1, {"b": None}]}))
        stream += wire.encode(kind, header, rng.randbytes(rng.randrange(80)))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(stream) or 1)
        stream[at:at + rng.randrange(4)] = rng.choice((b"", b"\xff" * 4, rng.randbytes(3), b'{"a":1e999}', b"[" * 9))
    return bytes(stream)


def word_case(rng: random.Random) -> Case:
    """A text for one of the parsers, or bytes for the wire."""
    kind = rng.choice([*SEEDS, "wire"])
    if kind == "wire":
        return Case("wire", {"step": rng.choice((1, 7, 4096))}, {"stream": frames(rng)}, "frames")
    return Case("word", {"kind": kind, "text": mangle(rng.choice(SEEDS[kind]), rng)}, {}, "text")


PARSERS: dict[str, Callable[[str], object]] = {
    "position": LogPos.parse, "log name": parse_log_name, "decimal": parse_decimal, "version": VersionLink.parse,
    "point": Point.parse, "tree": paths.parse,
}


def check_word(case: Case) -> str:
    """Accepted texts are canonical: written out again they are the same. Refusals are named errors."""
    text = case.params["text"]
    try:
        found = PARSERS[case.params["kind"]](text)
    except (MarsError, ValueError) as err:
        if isinstance(err, ValueError):
            raise AssertionError(f"{text!r}: an error without a name: {err!r}") from err
        return "refused"
    if isinstance(found, LogPos | VersionLink | Point | int):
        assert str(found) == text, f"{text!r} was read as {found}"
    if case.params["kind"] == "tree" and found is not None:
        assert len(text) <= paths.REL_MAX and ".." not in text.split("/") and text.isascii(), text
    return "refused" if found is None else "accepted"


def check_wire(case: Case) -> str:
    """However the stream is cut, the same frames come out; after an error none."""
    stream, step = case.files["stream"], case.params["step"]
    whole, parts = wire.Decoder(), wire.Decoder()
    at_once = whole.feed(stream)
    in_parts = []
    for at in range(0, len(stream), step):
        in_parts += parts.feed(stream[at:at + step])
    told = [(f.type, f.header, bytes(f.body)) for f in in_parts]
    assert told == [(f.type, f.header, bytes(f.body)) for f in at_once]
    assert (whole.error is None) == (parts.error is None)
    if whole.error is not None:
        assert whole.feed(wire.encode(wire.Type.BYE)) == []
    for frame in at_once:
        try:
            wire.Hello.parse(frame.header)
        except wire.PeerError:
            pass
    return "refused" if whole.error else "accepted"
