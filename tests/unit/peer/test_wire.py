"""Frames <-> bytes: any valid stream comes through however it is cut; nothing else comes through at all."""
from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsx.peer import spanio, wire
from marsx.peer.wire import Decoder, Hello, PeerError, Reason, Type, WireError

headers = st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(max_size=20)
                          | st.floats(allow_nan=False, allow_infinity=False) | st.lists(st.integers(), max_size=3),
                          max_size=4)
frames = st.lists(st.tuples(st.sampled_from(list(Type)), headers, st.binary(max_size=300)), max_size=6)


def pack(items) -> bytes:
    return b"".join(wire.encode(*item) for item in items)


def unpack(found) -> list:
    return [(frame.type, frame.header, bytes(frame.body)) for frame in found]


@given(frames, st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_a_stream_comes_through_however_it_is_cut(items, cuts):
    stream, decoder, found = pack(items), Decoder(), []
    at, turn = 0, 0
    while at < len(stream):
        n = cuts[turn % len(cuts)]
        found += decoder.feed(stream[at:at + n])
        at, turn = at + n, turn + 1
    assert unpack(found) == items
    assert decoder.error is None and decoder.between_frames


@pytest.mark.parametrize("step", [1, 11, 12, 13, 4096, 65536, 10**9])
def test_bodies_around_the_size_of_the_scratch(step):
    items = [(Type.FETCH_DATA, {"n": n}, bytes([n % 251]) * n) for n in (0, 1, 65523, 65524, 65525, 65536, 200_000)]
    stream, decoder, found = pack(items), Decoder(), []
    if step == 1:
        items = items[:3]
        stream = pack(items)
    for at in range(0, len(stream), step):
        found += decoder.feed(stream[at:at + step])
    assert unpack(found) == items


@given(st.binary(max_size=200), st.integers(1, 50))
def test_garbage_gives_no_frame_no_exception_and_no_way_back(data, step):
    decoder = Decoder()
    stream = b"MY" + data
    assert [frame for at in range(0, len(stream), step) for frame in decoder.feed(stream[at:at + step])] == []
    if len(stream) > 2:
        assert isinstance(decoder.error, WireError)
        assert decoder.feed(wire.encode(Type.BYE)) == []
        good = wire.encode(Type.BYE)
        decoder.buffer()[:len(good)] = good
        assert decoder.filled(len(good)) == []
        assert len(decoder.buffer()) > 0


@settings(max_examples=300)
@given(frames.filter(bool), st.data())
def test_a_changed_byte_never_touches_the_frames_before_it(items, data):
    stream = bytearray(pack(items))
    at = data.draw(st.integers(0, len(stream) - 1))
    stream[at] ^= data.draw(st.integers(1, 255))
    decoder = Decoder()
    found = unpack(decoder.feed(bytes(stream)))
    end, whole = 0, 0
    for item in items:
        end += len(wire.encode(*item))
        if end > at:
            break
        whole += 1
    assert found[:whole] == items[:whole]


@pytest.mark.parametrize(("data", "says"), [
    (b"GET / HTTP/1.1\r\n", "not a frame"),
    (b"\x16\x03\x01\x02\x00", "not a frame"),
    (wire.HEAD.pack(b"MX", 2, 1, 0, 0), "version 2"),
    (wire.HEAD.pack(b"MX", 1, 200, 0, 0), "type 200"),
    (wire.HEAD.pack(b"MX", 1, 1, wire.MAX_HEADER + 1, 0), "too large"),
    (wire.HEAD.pack(b"MX", 1, 1, 0, wire.MAX_BODY + 1), "too large"),
    (wire.HEAD.pack(b"MX", 1, 1, 2**32 - 1, 2**32 - 1), "too large"),
])
def test_heads_that_do_not_fit(data, says):
    decoder = Decoder()
    assert decoder.feed(data) == []
    assert says in decoder.error.text and decoder.error.reason is Reason.GARBAGE


@pytest.mark.parametrize("text", [
    b"[]", b"1", b'"x"', b"{", b"", b"{}x", b'{"a":1,"a":2}', b'{"b":{"a":1,"a":2}}', b'{"a":NaN}', b'{"a":-Infinity}',
    b'{"a":1e999}', b'{"a":"\xff"}', b'{"a":"\\ud800"}', b"[" * 100_000, b'{"a":' * 50_000,
    b'{"a":' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}",
])
def test_headers_that_are_not_acceptable(text):
    head = wire.HEAD.pack(b"MX", 1, Type.HELLO, len(text) or 1, 0)
    decoder = Decoder()
    assert decoder.feed(head + (text or b" ")) == []
    assert isinstance(decoder.error, WireError)


def test_a_stranger_is_held_to_small_frames_until_the_limits_are_lifted():
    big = wire.encode(Type.TREE_FULL, {}, bytes(100_000))
    decoder = Decoder(max_header=wire.MAX_HEADER_STRANGER, max_body=wire.MAX_BODY_STRANGER)
    assert len(decoder.feed(wire.encode(Type.HELLO, {"a": 1}))) == 1
    decoder.set_limits()
    assert len(decoder.feed(big)) == 1
    decoder = Decoder(max_header=wire.MAX_HEADER_STRANGER, max_body=wire.MAX_BODY_STRANGER)
    assert decoder.feed(big) == [] and "too large" in decoder.error.text


def test_a_long_body_is_filled_in_place_and_is_nobody_elses():
    stream = wire.encode(Type.FETCH_DATA, {"nr": 1}, bytes(500_000))
    decoder = Decoder()
    head = decoder.buffer()
    head[:30] = stream[:30]
    assert decoder.filled(30) == []
    room = decoder.buffer()
    assert len(room) == len(stream) - 30, "the rest of the frame is one piece of memory"
    room[:] = b"\7" * len(room)
    room[:0] = b""
    (frame,) = decoder.filled(len(room))
    assert frame.body.readonly and bytes(frame.body[-5:]) == b"\7" * 5
    assert frame.body.obj is room.obj, "no copy was made"
    decoder.feed(wire.encode(Type.FETCH_DATA, {"nr": 2}, bytes([9]) * 500_000))
    assert bytes(frame.body[-5:]) == b"\7" * 5


def test_the_end_inside_a_frame_is_known():
    decoder = Decoder()
    stream = wire.encode(Type.BYE, {"reason": "closed"}, b"xyz")
    for n in range(1, len(stream)):
        decoder.feed(stream[n - 1:n])
        assert not decoder.between_frames
    decoder.feed(stream[-1:])
    assert decoder.between_frames


def test_own_frames_keep_the_limits_too():
    with pytest.raises(ValueError, match="too large"):
        wire.encode_head(Type.FETCH_DATA, {}, wire.MAX_BODY + 1)
    with pytest.raises(ValueError, match="too large"):
        wire.encode_head(Type.TREE_FULL, {"a": "x" * wire.MAX_HEADER}, 0)
    with pytest.raises(ValueError, match="JSON"):
        wire.encode_head(Type.TREE_FULL, {"a": float("nan")}, 0)


@given(st.recursive(st.none() | st.booleans() | st.integers(-2**63, 2**63) | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)))
def test_json_of_bodies_comes_back(value):
    assert wire.parse_json(wire.pack_json(value)) == value
    assert wire.parse_json(memoryview(json.dumps(value).encode())) == value, "also with \\u escapes"


@pytest.mark.parametrize(("take", "good", "bad"), [
    (lambda h: wire.take_int(h, "f", 0, 5), [0, 5], [None, -1, 6, True, 1.0, "1", [], 2**70]),
    (lambda h: wire.take_text(h, "f", 3), ["a", "abc", "äöü"], [None, "", "abcd", "a\n", "\0", 1, ["a"]]),
    (lambda h: wire.take_text(h, "f", 3, empty=True), ["", "a"], [None, "abcd", "\x1b[m"]),
    (lambda h: wire.take_host(h, "f"), ["alpha", "a-1_x"], [None, "", "../x", "a/b", ".a", "x" * 64, "a\n", 1]),
    (lambda h: wire.take_hex(h, "f", 4), ["00af"], [None, "", "00a", "00AF", "00ag", "00aff", b"00af", 1]),
    (lambda h: wire.take_hex(h, "f", 4, empty=True), ["", "00af"], [None, "0"]),
    (lambda h: wire.take_nr(h, "f"), [1, 10**18 - 1], [0, 10**18, -1, "1", True]),
    (lambda h: wire.take_pos(h, "f"), [0, 2**63 - 1], [-1, 2**63, None]),
    (lambda h: wire.take_names(h, "f"), [[], ["a"]], [["x" * 65], [1], "a", ["a"] * 65, {"a": 1}]),
])
def test_fields_are_taken_within_their_bounds(take, good, bad):
    for value in good:
        got = take({"f": value})
        assert got == (tuple(value) if isinstance(value, list) else value)
    for value in bad:
        with pytest.raises(WireError):
            take({"f": value})


def test_reasons_of_a_newer_peer_and_dirty_texts_are_harmless():
    assert wire.parse_reason({"reason": "split", "text": "x"}) == (Reason.SPLIT, "x")
    assert wire.parse_reason({"reason": "brand-new"})[0] is Reason.FAILED
    assert wire.parse_reason({"reason": ["split"], "text": 7}) == (Reason.FAILED, "")
    _, text = wire.parse_reason({"reason": "failed", "text": "a\n\x1b[31m" + "b" * 1000})
    assert text.isprintable() and len(text) < 600


def test_hello_comes_back_and_another_protocol_is_named_before_all_else():
    hello = Hello("u", "alpha", "i", ("f",), "tree")
    assert Hello.parse(hello.header()) == hello
    with pytest.raises(PeerError) as caught:
        Hello.parse({"proto": 2, "host": {"new": "form"}})
    assert caught.value.reason is Reason.PROTO
    for field, value in (("host", "../a"), ("uuid", 5), ("proto", "1"), ("features", "x"), ("service", "a" * 40)):
        with pytest.raises(WireError):
            Hello.parse({**hello.header(), field: value})


def test_a_frame_that_is_not_due_is_named():
    (frame,) = Decoder().feed(wire.encode(Type.SYNC_DATA))
    assert wire.expect(frame, Type.FETCH, Type.SYNC_DATA) is frame
    with pytest.raises(WireError, match="SYNC_DATA is not due, FETCH is"):
        wire.expect(frame, Type.FETCH)


@pytest.mark.parametrize("step", [1 << 20, 70_000])
def test_large_bodies_begin_at_a_page(step):
    """Whatever the memory of earlier frames held; small ones, and headers longer than a page, come as ever."""
    room = spanio.BodyRoom(1 << 20)
    items = [(Type.SYNC_ANSWER, {"id": number, "x": "y" * pad}, bytes([number]) * size)
             for number, (pad, size) in enumerate([(0, 300_000), (5000, 300_000), (9, 100), (1, 1 << 20), (0, 1 << 18),
                                                   (0, (1 << 20) + 512), (77, 1 << 20), (3, 0)] * 2)]
    stream = pack(items)
    decoder, at, frames = Decoder(), 0, 0
    decoder.room = room
    while at < len(stream):
        for frame in decoder.feed(stream[at:at + step]):
            kind, header, body = items[frames]
            assert (frame.type, frame.header, bytes(frame.body)) == (kind, header, body) and frame.body.readonly
            fits = 1 << 18 <= len(body) <= 1 << 20 and len(header["x"]) < 4000
            assert not fits or spanio.is_aligned(frame.body)
            frames += 1
        at += step
    assert frames == len(items)
