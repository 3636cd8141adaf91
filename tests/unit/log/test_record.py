"""The file header: packing, parsing, and what is refused. The page's own numbers are checked against the twin."""
from __future__ import annotations

import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsx._ext import marsscan, marssum
from marsx.base.errors import DamagedError
from marsx.base.position import LogPos
from marsx.log import record
from marsx.log.record import BLOCK, FileHeader, new_log_id
from tests.ref import log_reader as ref

HEADER = FileHeader(nr=7, producer="beta", resource="data", uuid="alpha 20261122", log_id=bytes(range(1, 17)),
                    device_size=1 << 30, block_size=4096, lamport_ns=5, real_ns=6, pred=LogPos(6, "alpha", 8192),
                    pred_digest="ab" * 16)


def reseal(block: bytes | bytearray) -> bytes:
    """The block with a CRC that holds."""
    return ref.seal(bytearray(block))


def test_equals_twin():
    twin = ref.Log(log_id=b"x" * 16, nr=3, producer="alpha", pred=(2, 4096, b"d" * 16, "beta"), size=1 << 20)
    ours = FileHeader(nr=3, producer="alpha", resource="res", uuid="cluster", log_id=b"x" * 16, device_size=1 << 20,
                      block_size=512, lamport_ns=0, real_ns=0, pred=LogPos(2, "beta", 4096),
                      pred_digest=(b"d" * 16).hex())
    assert ours.pack() == twin.header
    assert ours.digest0 == twin.digests[0].hex()


def test_offsets_are_those_of_the_page():
    block = HEADER.pack()
    assert len(block) == BLOCK and block[:12] == b"MARSXLOG\x01\x00\x01\x00"
    assert struct.unpack_from("<Q", block, 24)[0] == 7
    assert block[32:48] == HEADER.log_id and block[96:112] == b"\xab" * 16
    assert struct.unpack_from("<QQQI", block, 48) == (1 << 30, 5, 6, 4096)
    assert struct.unpack_from("<QQ", block, 80) == (6, 8192)
    texts = [block[at:at + 16].rstrip(b"\0") for at in (128, 192, 256, 320)]
    assert texts == [b"beta", b"alpha", b"data", b"alpha 20261122"]
    assert not any(block[448:])


def test_sizes_agree_with_the_tables():
    assert record.GROUP_FIELDS.size == record.TABLE_OFFSET
    assert record.RECORD_FIELDS.size == 40
    assert (BLOCK - record.TABLE_OFFSET) // record.RECORD_FIELDS.size == record.MAX_RECORDS


names = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
headers = st.builds(
    lambda nr, gap, pred, **rest: FileHeader(
        nr=nr, pred=pred and LogPos(max(1, nr - 1 - gap), pred[0], pred[1] * BLOCK) if nr > 1 else None,
        pred_digest=pred[2].hex() if nr > 1 and pred else record.NO_DIGEST, **rest),
    nr=st.integers(1, 10**18 - 1), gap=st.integers(0, 11), producer=names, resource=names,
    pred=st.none() | st.tuples(names, st.integers(0, 1 << 40), st.binary(min_size=16, max_size=16)),
    uuid=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30),
    log_id=st.binary(min_size=16, max_size=16).filter(any), device_size=st.integers(1, 2**63 - 1),
    block_size=st.sampled_from([512, 1024, 2048, 4096]), lamport_ns=st.integers(0, 2**64 - 1),
    real_ns=st.integers(0, 2**64 - 1), gap_id=st.binary(min_size=16, max_size=16), compat=st.integers(0, 2**32 - 1))


@given(headers)
def test_round_trip_and_same_opinion_as_c(header):
    block = header.pack()
    assert FileHeader.parse(block) == header
    assert marsscan.scan(0, block, limit_pos=0)[1].hex() == header.digest0


@given(st.data())
def test_python_never_accepts_what_c_refuses(data):
    """A sound CRC around any contents: both readers have to come to the same protection."""
    block = bytearray(HEADER.pack())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.sampled_from([8, 10, 20, 24, 32, 48, 72, 80, 88, 96, 128, 140, 192, 256, 320, 447]))
        new = data.draw(st.binary(min_size=1, max_size=16))
        block[at:at + len(new)] = new
    sealed = reseal(block[:BLOCK])
    try:
        FileHeader.parse(sealed)
    except DamagedError:
        return
    marsscan.scan(0, sealed, limit_pos=0)


@given(st.binary(max_size=5000))
def test_any_bytes_are_no_header(data):
    with pytest.raises(DamagedError):
        FileHeader.parse(data)


def test_every_flipped_byte_is_noticed():
    block = bytearray(HEADER.pack())
    for at in range(BLOCK):
        block[at] ^= 1 << at % 8
        with pytest.raises(DamagedError):
            FileHeader.parse(block)
        with pytest.raises(ValueError, match="not the header"):
            marsscan.scan(0, block, limit_pos=0)
        block[at] ^= 1 << at % 8


@pytest.mark.parametrize(("at", "new", "text"), [
    (0, b"MARSXGRP", "no magic"),
    (8, b"\x02\x00", "version 2"),
    (10, b"\x02\x00", "2 blocks"),
    (20, b"\x01\x00\x00\x00", "features that this version does not know"),
    (24, bytes(8), "log 0"),
    (24, (5).to_bytes(8, "little"), "predecessor"),
    (24, b"\xff" * 8, "log 18446744073709551615"),
    (24, (10**18).to_bytes(8, "little"), "log 1000000000000000000"),
    (32, bytes(16), "log id is not zero"),
    (48, bytes(8), "device size"),
    (72, (3000).to_bytes(4, "little"), "block size"),
    (72, (8192).to_bytes(4, "little"), "block size"),
    (80, bytes(8), "log number out of range"),
    (88, (4097).to_bytes(8, "little"), "predecessor"),
    (128, bytes(64), "''"),
    (128, b"x" * 64, "not padded"),
    (128, b"../../etc/passwd", "passwd"),
    (128, b"ab\0c", "not padded"),
    (256, bytes(64), "resource"),
    (320, b"\xff\xfe", "decode"),
])
def test_impossible_values_are_named(at, new, text):
    block = bytearray(HEADER.pack())
    block[at:at + len(new)] = new
    with pytest.raises(DamagedError, match=text):
        FileHeader.parse(reseal(block))


def test_pack_refuses_what_parse_would_refuse():
    for change in ({"nr": 6}, {"log_id": bytes(16)}, {"device_size": 0}, {"block_size": 3000}, {"resource": "r" * 64},
                   {"pred": None}, {"producer": "a/b"}, {"uuid": ""}, {"pred": LogPos(6, "alpha", 100)}):
        with pytest.raises(ValueError):
            dataclasses.replace(HEADER, **change).pack()


def test_compatible_features_keep_their_bytes():
    """The digest covers bytes we know nothing of, so a parsed header gives back just the block it came from."""
    block = bytearray(HEADER.pack())
    block[16] = 1
    block[2000:2003] = b"new"
    header = FileHeader.parse(reseal(block))
    assert header.pack()[2000:2003] == b"new"
    assert header.digest0 == marssum.xxh3_128(reseal(block)).hex()
    assert dataclasses.replace(header, nr=9).pack()[2000:2003] == bytes(3)


@pytest.mark.parametrize("change", [("other", "data", 7, "beta"), ("alpha 20261122", "res", 7, "beta"),
                                    ("alpha 20261122", "data", 8, "beta"), ("alpha 20261122", "data", 7, "alpha")])
def test_foreign_log_is_named(change):
    HEADER.check("alpha 20261122", "data", 7, "beta")
    with pytest.raises(DamagedError, match="belongs to"):
        HEADER.check(*change)


def test_log_ids_differ():
    assert len({new_log_id() for _ in range(50)}) == 50
