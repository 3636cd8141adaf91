"""Scan and buffer check against the twin: nothing behind the valid prefix is ever accepted, and the reason is right."""
from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marsx._ext import marsscan, marssum
from marsx.base.errors import DamagedError, NotFoundError, PreconditionError
from marsx.log import reader
from marsx.log.reader import (
    COLLECT_RECORDS,
    COLLECT_UNIQUES,
    check_buffer,
    digest_at,
    digest_behind,
    is_empty,
    list_logs,
    open_log,
)
from marsx.log.record import BLOCK, FileHeader
from tests.ref import log_reader as ref
from tests.ref.log_reader import Log, Record

SIZE = 1 << 30


@contextmanager
def file_of(data: bytes) -> Iterator[int]:
    """A descriptor with these bytes."""
    fd = os.memfd_create("log")
    try:
        assert os.pwrite(fd, data, 0) == len(data)
        yield fd
    finally:
        os.close(fd)


def scan_bytes(data: bytes, **options) -> reader.ScanResult:
    """Scan a whole log given as bytes."""
    with file_of(data) as fd:
        return reader.scan(fd, FileHeader.parse(data[:BLOCK]), **options)


def write(offset: int, payload: bytes, unique: int = 0) -> Record:
    return Record(1, offset, len(payload), payload, unique=unique)


def simple_log(groups: int = 4, durable: bool = False) -> Log:
    """Groups of 8 KiB; with `durable` each header says that everything before it is."""
    log = Log()
    for i in range(groups):
        log.add([write(i * BLOCK, bytes([i % 255 + 1]) * 3000, unique=i + 1), Record(2, 0, 512)],
                durable=log.end if durable else 0)
    return log


def agree(data: bytes, known_durable: int = 0) -> reader.ScanResult:
    """Scan, check against the twin, and check the same bytes as a buffer."""
    got = scan_bytes(data, known_durable=known_durable)
    twin = ref.walk(data, known_durable)
    assert (got.end, got.digest, got.groups, got.records, got.code, got.reason, got.device_size) == (
        twin.end, twin.digest.hex(), twin.groups, twin.records, twin.code, twin.reason, twin.size)
    assert (got.next_group, got.next_record) == (twin.groups, twin.records)
    assert got.durable_hint >= twin.durable
    header = FileHeader.parse(data[:BLOCK])
    checked = check_buffer(data[BLOCK:], header, 0, header.digest0, 0, 0)
    assert (checked.used, checked.pos, checked.digest) == (got.end, got.end, got.digest)
    assert (checked.next_group, checked.next_record, checked.device_size) == (got.groups, got.records, got.device_size)
    assert (checked.state, checked.code) == ("more" if got.code == "short" else "bad", got.code)
    return got


payloads = st.binary(min_size=1, max_size=1400)
uniques = st.integers(0, 2**64 - 1)
changing = st.one_of(
    st.builds(write, st.integers(0, SIZE - 1400), payloads, uniques),
    st.builds(lambda kind, at, n, u: Record(kind, at, n, unique=u), st.sampled_from([2, 3]), st.integers(0, SIZE // 2),
              st.integers(1, SIZE // 2), uniques),
    st.builds(lambda kind, p: Record(kind, 5, 2**64 - 1, p), st.integers(8, 255), st.binary(max_size=600)),
    st.builds(lambda at, p: Record(7, at, len(p), p), st.integers(0, 4096), payloads))
quiet = st.one_of(st.builds(lambda p: Record(4, payload=p), st.binary(max_size=40)), st.just(Record(6)))
tables = st.tuples(st.lists(changing | quiet, max_size=6), changing, st.lists(quiet, max_size=2)).map(
    lambda parts: [*parts[0], parts[1], *parts[2]])


@st.composite
def logs(draw, log_id: bytes = b"i" * 16, max_groups: int = 5) -> Log:
    log = Log(log_id=log_id, nr=draw(st.integers(1, 5)))
    for table in draw(st.lists(tables, max_size=max_groups)):
        log.add(table, durable=draw(st.sampled_from(log.ends)))
    return log


@settings(deadline=None, max_examples=60)
@given(logs())
def test_whole_log_equals_twin(log):
    got = agree(bytes(log.data))
    assert (got.end, got.reason, got.digest) == (log.end, "end", log.digests[-1].hex())


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(logs(), st.data())
def test_damaged_log_equals_twin(log, data):
    """Cuts, flips, zeros, swaps, space of an older log: the twin's verdict, never more than the valid prefix."""
    raw = bytearray(log.data)
    older = data.draw(logs(log_id=b"o" * 16, max_groups=3)).data[BLOCK:]
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(["flip", "zero", "cut", "older", "swap", "tail"]))
        at = data.draw(st.integers(BLOCK, max(BLOCK, len(raw) - 1)))
        aligned = at // BLOCK * BLOCK
        if kind == "flip" and at < len(raw):
            raw[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "zero":
            raw[aligned:aligned + BLOCK] = bytes(min(BLOCK, len(raw) - aligned))
        elif kind == "cut":
            del raw[at:]
        elif kind == "older":
            raw[aligned:aligned + len(older)] = older
        elif kind == "swap" and len(raw) >= aligned + 2 * BLOCK:
            raw[aligned:aligned + 2 * BLOCK] = raw[aligned + BLOCK:aligned + 2 * BLOCK] + raw[aligned:aligned + BLOCK]
        else:
            raw += data.draw(st.sampled_from([bytes(BLOCK), bytes(100), bytes(older), b"x" * BLOCK]))
    got = agree(bytes(raw), data.draw(st.sampled_from([0, 0, *log.ends])))
    intact = max(end for end in log.ends if raw[:BLOCK + end] == log.data[:BLOCK + end])
    assert got.end == intact


def test_cut_at_every_byte():
    log = simple_log(3)
    header = FileHeader.parse(log.header)
    with file_of(bytes(log.data)) as fd:
        for size in range(len(log.data), BLOCK - 1, -1):
            os.ftruncate(fd, size)
            got = reader.scan(fd, header)
            whole = max(end for end in log.ends if BLOCK + end <= size)
            assert (got.end, got.reason) == (whole, "end" if size == BLOCK + whole else "torn")
            assert got.digest == log.digests[got.groups].hex()


def test_cut_below_what_a_peer_has_is_corrupt():
    """Rule 5: our own or a peer's version link says that more was durable."""
    log = simple_log(3)
    cut = bytes(log.data[:BLOCK + log.ends[2]])
    assert scan_bytes(cut, known_durable=log.ends[2]).reason == "end"
    assert scan_bytes(cut, known_durable=log.ends[2] + BLOCK).reason == "corrupt"


@pytest.mark.parametrize("durable", [False, True])
def test_every_flipped_byte_is_noticed(durable):
    """Rule 5: the same flip is a torn tail or corruption, by what later headers say of the durable position."""
    log = simple_log(3, durable)
    header = FileHeader.parse(log.header)
    with file_of(bytes(log.data)) as fd:
        for at in range(BLOCK, len(log.data)):
            byte = log.data[at]
            os.pwrite(fd, bytes([byte ^ 1 << at % 8]), at)
            got = reader.scan(fd, header)
            os.pwrite(fd, bytes([byte]), at)
            hit = max(i for i, end in enumerate(log.ends) if BLOCK + end <= at)
            assert (got.groups, got.end) == (hit, log.ends[hit])
            # Header 2 knows that groups 0 and 1 are durable, nothing knows of group 2; header 1 knows of group 0 only.
            assert got.reason == ("corrupt" if durable and hit < 2 else "torn")


def test_proof_of_durability_may_stand_far_behind():
    """Rule 5: one bit in group 2 of many flushed ones, and many lost headers between it and the one that proves it."""
    log = simple_log(300)
    log.add([write(0, b"x" * 512)], durable=log.ends[100])
    raw = bytearray(log.data)
    raw[BLOCK + log.ends[2] + 300] ^= 1
    for end in log.ends[3:290]:
        raw[BLOCK + end:BLOCK + end + 8] = bytes(8)
    got = scan_bytes(bytes(raw))
    assert (got.reason, got.end, got.beyond, got.durable_hint) == ("corrupt", log.ends[2], log.ends[300], log.ends[100])
    assert "says that" in got.detail
    assert scan_bytes(bytes(raw), look=BLOCK).reason == "torn"
    raw[BLOCK + log.ends[300]:BLOCK + log.ends[300] + 8] = bytes(8)
    assert scan_bytes(bytes(raw)).reason == "torn"


def test_proof_behind_a_hole_in_the_file():
    """Rule 5: holes are skipped (reading this one would take an hour), what stands behind them is not."""
    log = simple_log(2)
    far = Log()
    far.ends[-1] = 1 << 41
    late = far.add([write(0, b"y" * 100)], durable=log.end + BLOCK)
    with file_of(bytes(log.data)) as fd:
        os.ftruncate(fd, 1 << 42)
        header = FileHeader.parse(log.header)
        assert reader.scan(fd, header).reason == "end"
        os.pwrite(fd, late, BLOCK + (1 << 41))
        assert reader.scan(fd, header).reason == "corrupt"


def test_proof_at_the_edges_of_a_read():
    """Rule 5: the search reads 4 MiB at a time; no block between two reads is passed over."""
    log = simple_log(1)
    header = FileHeader.parse(log.header)
    for blocks in (1, 2, 1022, 1023, 1024, 1025, 1026, 2048, 2049, 2050):
        far = Log()
        far.ends[-1] = log.end + blocks * BLOCK
        late = far.add([Record(2, 0, 512)], durable=log.end + BLOCK)
        with file_of(bytes(log.data) + b"x" * (blocks * BLOCK) + late) as fd:
            assert reader.scan(fd, header).beyond == log.end + blocks * BLOCK
            assert reader.scan(fd, header, look=(blocks - 1) * BLOCK).beyond is None
            assert reader.scan(fd, header, look=blocks * BLOCK).beyond == log.end + blocks * BLOCK


@pytest.mark.parametrize(("at", "new"), [
    (16, b"o" * 16), (32, (2).to_bytes(8, "little")), (48, (1 << 20).to_bytes(8, "little")),
    (80, (1 << 40).to_bytes(8, "little"))])
def test_only_own_sound_headers_prove_anything(at, new):
    """Rule 5: a header of another log, of another place, or one that claims the future proves nothing."""
    log = simple_log(2)
    log.add([write(0, b"z" * 100)], durable=log.ends[2], lie={at: new})
    raw = bytearray(log.data)
    raw[BLOCK + log.ends[1]] ^= 1
    assert agree(bytes(raw)).reason == "torn"
    true = simple_log(2)
    true.add([write(0, b"z" * 100)], durable=true.ends[2])
    raw = bytearray(true.data)
    raw[BLOCK + true.ends[1]] ^= 1
    assert agree(bytes(raw)).reason == "corrupt"


def test_tail_of_zeros_and_of_older_logs():
    log, older = simple_log(3), simple_log(6)
    assert agree(bytes(log.data) + bytes(64 * BLOCK)).reason == "end"
    older = Log(log_id=b"o" * 16)
    for _ in range(6):
        older.add([write(0, b"o" * 3000)])
    recycled = bytes(log.data) + bytes(older.data[len(log.data):])
    got = agree(recycled)
    assert (got.reason, got.code, got.end) == ("foreign", "foreign", log.end)
    assert got.reason in reader.NORMAL_AFTER_CRASH


def test_same_log_other_chain_is_a_gap():
    """Rule 6: a header of this very log that continues another past: position and numbers fit, the digest does not."""
    log, other = simple_log(2), Log()
    for _ in range(3):
        other.add([write(0, b"other" * 600), Record(2, 0, 512)])
    assert other.ends == [*log.ends, log.end + 2 * BLOCK]
    got = agree(bytes(log.data) + bytes(other.data[len(log.data):]))
    assert (got.reason, got.code, got.end) == ("gap", "chain", log.end)


MAX = b"\xff" * 8
LIES = [
    ("chain", {32: (9).to_bytes(8, "little")}), ("chain", {40: (9).to_bytes(8, "little")}),
    ("chain", {48: (BLOCK * 9).to_bytes(8, "little")}), ("chain", {48: MAX}), ("chain", {64: b"d" * 16}),
    ("chain", {104: (9).to_bytes(8, "little")}), ("chain", {104: MAX}),
    ("version", {8: b"\x02\x00"}), ("version", {10: b"\x00\x00"}), ("foreign", {16: b"f" * 16}),
    ("unknown", {116: b"\x01\x00\x00\x00"}), ("unknown", {192: b"\x09\x01"}), ("unknown", {194: b"\x01\x00"}),
    ("durable", {80: (BLOCK * 9).to_bytes(8, "little")}), ("durable", {80: MAX}),
    ("length", {56: bytes(8)}), ("length", {56: (4095).to_bytes(8, "little")}), ("length", {56: MAX}),
    ("length", {56: (BLOCK).to_bytes(8, "little")}), ("length", {56: (3 * BLOCK).to_bytes(8, "little")}),
    ("length", {224: b"\xff\xff\xff\xff"}), ("length", {224: bytes(4)}),
    ("table", {112: bytes(4)}), ("table", {112: (98).to_bytes(4, "little")}), ("table", {112: b"\xff" * 4}),
    ("table", {192: b"\x00"}), ("table", {192: b"\x02"}), ("table", {192: b"\x04"}), ("table", {192: b"\x05"}),
    ("table", {192: b"\x06"}), ("table", {208: (2999).to_bytes(8, "little")}),
    ("table", {112: (2).to_bytes(4, "little")}),
    ("range", {200: (SIZE - 2999).to_bytes(8, "little")}), ("range", {200: MAX}),
    ("range", {200: (2**64 - 3000).to_bytes(8, "little")}),
    ("payload", {196: b"\x00\x00\x00\x00"}),
]


@pytest.mark.parametrize(("code", "lie"), LIES)
def test_sound_headers_with_impossible_contents(code, lie):
    """Header CRC and digest hold, the contents do not: named, and never read outside the bounds."""
    log = simple_log(2)
    log.add([write(0, b"w" * 3000)], lie=lie)
    got = agree(bytes(log.data) + bytes(4 * BLOCK))
    assert (got.code, got.groups) == (code, 2)
    assert got.detail
    assert got.reason == {"chain": "gap", "foreign": "foreign", "payload": "torn", "unknown": "unknown",
                          "version": "unknown"}.get(code, "corrupt")


@pytest.mark.parametrize("kind", [2, 3])
@pytest.mark.parametrize(("offset", "length", "good"), [
    (0, SIZE, True), (SIZE - 1, 1, True), (SIZE, 1, False), (0, SIZE + 1, False), (1, 2**64 - 1, False),
    (2**64 - 1, 1, False), (2**64 - 1, 2**64 - 1, False), (2**63, 2**63, False), (0, 0, False)])
def test_ranges_near_the_ends_of_numbers(kind, offset, length, good):
    log = Log()
    log.add([Record(kind, offset, length)])
    assert (agree(bytes(log.data)).groups == 1) is good


def test_record_the_reader_must_understand():
    """Rule 29: unknown and must: stop and name it. Unknown and not must: skip it."""
    for flags, groups, reason in ((0, 1, "end"), (1, 0, "unknown")):
        log = Log()
        log.add([write(0, b"a" * 512), Record(200, 1, 2, b"new", flags=flags)])
        got = agree(bytes(log.data))
        assert (got.groups, got.reason) == (groups, reason)
        assert reason == "end" or "record 1 or a flag must be understood" in got.detail


@pytest.mark.parametrize("records", [[Record(4, payload=b"text")], [Record(6)], [Record(4), Record(6)]])
def test_marks_make_no_group_of_their_own(records):
    """Rule 7: else marks behind the last write would make two histories of one."""
    log = simple_log(1)
    log.add(records)
    got = agree(bytes(log.data))
    assert (got.groups, got.code, got.reason) == (1, "table", "corrupt")
    log = simple_log(1)
    log.add([*records, Record(2, 0, 512)])
    assert agree(bytes(log.data)).groups == 2


def test_resize_counts_from_its_record_on():
    log = Log(size=8192)
    log.add([write(4096, b"a" * 4096), Record(5, 0, 16384), write(12288, b"b" * 4096)])
    log.add([write(8192, b"c" * 4096)])
    got = agree(bytes(log.data))
    assert (got.groups, got.device_size) == (2, 16384)
    middle = scan_bytes(bytes(log.data), start=log.ends[1], digest=log.digests[1].hex(), group=None)
    assert (middle.groups, middle.code) == (0, "range")
    told = scan_bytes(bytes(log.data), start=log.ends[1], digest=log.digests[1].hex(), group=None, device_size=16384)
    assert (told.groups, told.next_group, told.next_record) == (1, 2, 4)


def test_limit_is_never_passed():
    """Rule 14, the fact behind it: the digest at a position is found only where a valid group ends."""
    log = simple_log(4)
    header = FileHeader.parse(log.header)
    with file_of(bytes(log.data)) as fd:
        for limit in range(0, log.end + 2 * BLOCK, BLOCK):
            got = reader.scan(fd, header, limit=limit)
            assert got.end == max(end for end in log.ends if end <= limit)
            assert got.reason == ("limit" if limit <= log.end else "end")
            digest = digest_at(fd, header, limit)
            assert digest == (log.digests[log.ends.index(limit)].hex() if limit in log.ends else None)
            if limit >= log.ends[2]:
                assert digest_at(fd, header, limit, log.ends[2], log.digests[2].hex()) == digest
        with pytest.raises(ValueError, match="limit lies before"):
            reader.scan(fd, header, log.ends[2], log.digests[2].hex(), log.ends[1])


def test_start_in_the_middle():
    """Rule 6: the digest at the start has to be the true one, whatever the numbers say."""
    log = simple_log(4)
    with file_of(bytes(log.data)) as fd:
        header = FileHeader.parse(log.header)
        for i, end in enumerate(log.ends):
            got = reader.scan(fd, header, end, log.digests[i].hex(), group=i, record=2 * i)
            assert (got.end, got.digest, got.groups) == (log.end, log.digests[-1].hex(), 4 - i)
            adopted = reader.scan(fd, header, end, log.digests[i].hex(), group=None)
            assert adopted.end == log.end and (i == 4 or adopted.next_record == 8)
        wrong = reader.scan(fd, header, log.ends[1], log.digests[2].hex(), group=None)
        assert (wrong.groups, wrong.reason) == (0, "gap")
        assert reader.scan(fd, header, log.ends[1], log.digests[1].hex(), group=2).reason == "gap"
        for bad in ({"start": 100}, {"start": 8192, "digest": ""}, {"digest": "abcd"}, {"start": 1 << 62 | 1 << 61}):
            with pytest.raises(ValueError):
                reader.scan(fd, header, **bad)


def test_uniques_and_record_tables():
    """Rule 11: uniques of all records come out, also of groups the window has left behind."""
    log = Log()
    rng = random.Random(1)
    for _ in range(200):
        log.add([write(rng.randrange(SIZE - 9000), rng.randbytes(rng.randrange(1, 200)), rng.getrandbits(64)),
                 Record(2, 0, 512, unique=0)])
    got = scan_bytes(bytes(log.data), collect=COLLECT_UNIQUES)
    tables = scan_bytes(bytes(log.data), collect=COLLECT_RECORDS)
    found = list(tables.iter_records())
    assert len(found) == log.records == 400
    assert got.uniques == [fields[6] for _, fields in found if fields[6]] and len(got.uniques) == 200
    for pos, (_, _, _, crc, _, length, _, stored, _) in found:
        assert stored in (length, 0)
        assert not stored or ref.crc32c(bytes(log.data[BLOCK + pos:BLOCK + pos + stored])) == crc


def test_large_groups_and_many_reads():
    """Groups larger than the reads, and the largest one there may be."""
    log = Log()
    payload = random.Random(2).randbytes(1 << 20)
    crc = marssum.crc32c(payload)
    for n in (1, 5, 64, 3, 7, 2):
        log.add([Record(1, 0, len(payload), payload, crc=crc) for _ in range(n)])
    got = scan_bytes(bytes(log.data))
    assert (got.groups, got.end, got.reason) == (6, log.end, "end")
    log.add([Record(1, 0, len(payload), payload, crc=crc)] * 64 + [write(0, b"x")])
    got = scan_bytes(bytes(log.data))
    assert (got.groups, got.code, got.reason) == (6, "length", "corrupt")


def test_buffer_grows_byte_by_byte():
    """Fetch: at any cut only whole groups are taken, and the state goes on from there."""
    log = simple_log(3)
    header = FileHeader.parse(log.header)
    body = bytes(log.data[BLOCK:])
    for cut in [*range(0, len(body), 61), len(body)]:
        first = check_buffer(body[:cut], header, 0, header.digest0, 0, 0)
        assert first.used == max(end for end in log.ends if end <= cut)
        assert first.state == "more" and first.need in (BLOCK, 2 * BLOCK)
        rest = check_buffer(memoryview(body)[first.used:], header, first.pos, first.digest, first.next_group,
                            first.next_record, first.device_size)
        assert (rest.pos, rest.digest, rest.records) == (log.end, log.digests[-1].hex(), 6 - first.records)
        assert rest.used + first.used == len(body) and rest.groups + first.groups == 3


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=3 * BLOCK))
def test_any_bytes_are_no_groups(data):
    agree(simple_log(0).header + data)


def test_direct_descriptor_and_open(tmp_path):
    log = simple_log(3, durable=True)
    path = tmp_path / "log-000000001-alpha"
    path.write_bytes(log.data)
    for direct in (False, True):
        with open_log(str(path), "cluster", "res", direct=direct) as opened:
            got = reader.scan(opened.fd, opened.header)
            assert (got.end, got.durable_hint) == (log.end, log.ends[2])
            assert str(reader.position(opened.header, got)) == f"log-000000001-alpha,{log.end}"
            assert not is_empty(opened)
    with open(path, "ab") as tail:
        tail.write(b"odd tail")
    with open_log(str(path), "cluster", "res", direct=True) as opened:
        assert reader.scan(opened.fd, opened.header).reason == "torn"


def test_open_names_what_is_wrong(tmp_path):
    log = simple_log(1)
    path = tmp_path / "log-000000001-alpha"
    with pytest.raises(NotFoundError):
        open_log(str(path), "cluster", "res")
    path.write_bytes(log.data)
    (tmp_path / "log-000000002-alpha").symlink_to(path)
    with pytest.raises(PreconditionError):
        open_log(str(tmp_path / "log-000000002-alpha"), "cluster", "res")
    before = len(os.listdir("/proc/self/fd"))
    for uuid, resource, text in (("other", "res", "cluster 'cluster'"), ("cluster", "x", "resource 'res'")):
        with pytest.raises(DamagedError, match=text) as caught:
            open_log(str(path), uuid, resource)
        assert caught.value.hint and str(path) in caught.value.text
    os.rename(path, tmp_path / "log-000000003-alpha")
    with pytest.raises(DamagedError, match="log-000000001-alpha"):
        open_log(str(tmp_path / "log-000000003-alpha"), "cluster", "res")
    assert len(os.listdir("/proc/self/fd")) == before


def test_digest_behind_reads_backwards():
    """The digest at a position by the group that ends there: near, far (larger than one read), none, at POS 0."""
    log = simple_log(3)
    payload = bytes(1 << 20)
    log.add([Record(1, 0, len(payload), payload, crc=marssum.crc32c(payload))])
    raw = bytearray(log.data)
    header = FileHeader.parse(log.header)
    with file_of(bytes(raw)) as fd:
        for end, digest in zip(log.ends, log.digests, strict=True):
            assert digest_behind(fd, header, end) == digest.hex()
            assert digest_behind(fd, header, end + BLOCK) is None
        os.pwrite(fd, b"x", BLOCK + log.ends[2] + 300)
        assert digest_behind(fd, header, log.ends[3]) is None, "its CRC does not hold"


def test_read_error_is_no_tail(tmp_path):
    log = simple_log(1)
    header = FileHeader.parse(log.header)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(reader.Unreadable, match="Is a directory"):
            reader.scan(fd, header)
    finally:
        os.close(fd)


def test_list_logs(tmp_path):
    for name in ("log-000000010-b", "log-000000002-a", "log-000000010-a", "log-1-a", "log-000000003-", "primary",
                 ".tmp.1.2.log-000000004-a"):
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "log-000000011-a").symlink_to("log-000000010-b")
    (tmp_path / "log-000000012-a").mkdir()
    assert [(log.nr, log.producer, log.size) for log in list_logs(str(tmp_path))] == [
        (2, "a", 5), (10, "a", 5), (10, "b", 5)]


def test_empty_means_no_valid_group(tmp_path):
    """Rule 7: an empty log, a torn first group and space of an older log are no history."""
    log, path = simple_log(1), tmp_path / "log-000000001-alpha"
    for tail, empty in ((b"", True), (bytes(BLOCK), True), (log.data[BLOCK:], False), (log.data[BLOCK:-1], True),
                        (b"x" * 9000, True), (bytes(simple_log(2).data[BLOCK + log.end:]), True)):
        path.write_bytes(log.header + tail)
        with open_log(str(path), "cluster", "res") as opened:
            assert is_empty(opened) is empty


def test_every_code_has_a_text():
    assert set(reader.CODE_TEXT) == set(marsscan.CODES)
    assert set(ref.REASON.values()) | {"torn", "limit"} == set(marsscan.REASONS)
    assert set(marsscan.REASONS) >= reader.NORMAL_AFTER_CRASH


@pytest.mark.parametrize("name", ["MARS_CRC_KERNEL", "MARS_XXH3_KERNEL"])
def test_kernel_demand_is_never_ignored(name):
    top = Path(marsscan.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", "from marsx._ext import marsscan"], env={**os.environ, name: "none"},
                          cwd=top, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "asks for a kernel" in done.stderr


def test_hostile_header_argument():
    for header in (b"", bytes(BLOCK), bytes(BLOCK - 1), b"MARSXLOG" * 512):
        with pytest.raises(ValueError, match="not the header"):
            marsscan.scan(0, header)
        with pytest.raises(ValueError, match="not the header"):
            marsscan.check_buffer(b"", header, 0, b"", 0, 0)
