"""Damage to the bytes of a log: found in every region, named, and never brought to a disk or to a reader.

Regions of a group: each field of the header, each field of a record, the unused rest of the header block, payload, the
padding of a payload, the padding of the group. The same damage is shown to the scan, to the window engine (replay and
write-back), to the index of a restarted primary with its read-back, and to recovery.
"""
from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from marsx._ext import marsreplay, marsscan, marsshadow
from marsx.base.errors import DamagedError, MarsError
from marsx.base.position import LogPos
from marsx.log import reader, writer
from marsx.log.record import BLOCK, FileHeader
from tests.ref.log_reader import Log, Record, apply, walk

DEVICE = 65536
VICTIM = 2                                  # the damaged group, of five
# name -> (offset in the group, code of the scan). The payload is 700 bytes at 4096; the table has two records.
REGIONS = {
    "magic": (3, "magic"), "version": (8, "crc"), "header length": (10, "crc"), "crc": (13, "crc"),
    "log id": (20, "crc"), "log number": (32, "crc"), "group number": (40, "crc"), "pos": (49, "crc"),
    "length": (57, "crc"), "digest before": (70, "crc"), "durable": (81, "crc"), "lamport": (90, "crc"),
    "real time": (99, "crc"), "first record": (104, "crc"), "record count": (112, "crc"), "flags": (116, "crc"),
    "reserved": (150, "crc"), "record type": (192, "crc"), "record flags": (193, "crc"), "codec": (194, "crc"),
    "payload crc": (196, "crc"), "record offset": (201, "crc"), "record length": (208, "crc"),
    "unique": (218, "crc"), "stored length": (224, "crc"), "record reserved": (229, "crc"), "record 2": (240, "crc"),
    "rest of the block": (3000, "crc"), "payload, first byte": (BLOCK, "payload"),
    "payload, last byte": (BLOCK + 699, "payload"), "padding of the payload": (BLOCK + 700, "padding"),
    "padding of the group": (BLOCK + 3000, "padding"),
}


def five_groups(durable: bool) -> Log:
    """Every group writes its own range; with `durable` each header says that all before it is."""
    log = Log(size=DEVICE)
    for i in range(5):
        log.add([Record(1, 8192 * i, 700, bytes([i + 1]) * 700, unique=7), Record(2, 8192 * i + 4096, 512)],
                durable=log.end if durable else 0)
    return log


@pytest.fixture
def place(tmp_path: Path):
    """place(data) -> path of the log file with these bytes."""
    def make(data: bytes, name: str = "log-000000001-alpha") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path
    return make


def damaged(log: Log, offset: int, bit: int) -> bytes:
    """The log with one bit of the victim's group flipped."""
    data = bytearray(log.data)
    data[BLOCK + log.ends[VICTIM] + offset] ^= 1 << bit
    return bytes(data)


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("region", REGIONS)
def test_every_region(place, tmp_path, region, bit):
    """Rules 5, 12: a flip is found wherever it is; the disk gets just the groups before; with later groups that know
    better it is damage, else a torn tail."""
    offset, code = REGIONS[region]
    for durable in (False, True):
        log = five_groups(durable)
        path = place(damaged(log, offset, bit))
        header = FileHeader.parse(log.header)
        with reader.open_log(str(path), "cluster", "res") as opened:
            got = reader.scan(opened.fd, opened.header)
            assert (got.end, got.code, got.reason) == (log.ends[VICTIM], code, "corrupt" if durable else "torn")
            assert str(log.ends[VICTIM]) in got.detail and reader.CODE_TEXT[code].split("{")[0] in got.detail
            disk = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            os.pwrite(disk, b"\xaa" * DEVICE, 0)
            try:
                window, cursor = marsreplay.Window(1 << 20), marsreplay.Cursor(header.pack())
                assert window.load(opened.fd, cursor, log.end) == (VICTIM, marsscan.CODES.index(code))
                window.apply(disk)
                assert window.load(opened.fd, cursor, log.end) == (0, marsscan.CODES.index(code))
                assert window.empty and cursor.pos == log.ends[VICTIM]
                kept = walk(path.read_bytes()).kept
                assert len(kept) == 2 * VICTIM
                assert os.pread(disk, 2 * DEVICE, 0) == bytes(apply(bytearray(b"\xaa" * DEVICE), kept))
            finally:
                os.close(disk)


@pytest.mark.parametrize("region", REGIONS)
def test_read_back_of_a_recovered_log(place, tmp_path, region):
    """Rule 9: bytes that rot after recovery has verified them: the index refuses a header, a reader gets an error for a
    payload and the volume stops; foreign bytes are never given out."""
    offset, code = REGIONS[region]
    log = five_groups(False)
    path = place(log.data)
    next_log = Log(nr=2, size=DEVICE)
    fds = [os.open(path, os.O_RDWR), os.open(place(next_log.data, "log-000000002-alpha"), os.O_RDWR),
           os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT, 0o600)]
    try:
        os.truncate(fds[2], DEVICE)
        volume = marsshadow.Volume(fds[2], DEVICE, 512, 16 << 20, 1)
        if code in ("crc", "magic"):
            os.pwrite(fds[0], damaged(log, offset, 0), 0)
            with pytest.raises(ValueError, match=f"group at {log.ends[VICTIM]} of log 1"):
                volume.add_log(fds[0], log.header, log.end, marsreplay.Cursor(log.header))
            return
        volume.add_log(fds[0], log.header, log.end, marsreplay.Cursor(log.header))
        volume.start(fds[1], next_log.header)
        os.pwrite(fds[0], damaged(log, offset, 0), 0)
        with mmap.mmap(-1, BLOCK) as page:
            volume.read_into(page, 0, BLOCK)
            assert page[:700] == b"\1" * 700
            if code == "payload":
                with pytest.raises(OSError):
                    volume.read_into(page, 8192 * VICTIM, BLOCK)
                assert volume.state["failed"] and page[:700] != b"\1" * 700
            else:
                volume.read_into(page, 8192 * VICTIM, BLOCK)
                assert page[:700] == bytes([VICTIM + 1]) * 700, "padding is nobody's data"
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("at", [0, 9, 13, 26, 40, 50, 60, 73, 80, 95, 100, 130, 200, 260, 330, 447, 448, 4095])
def test_file_header(place, at):
    """A flip in the header block: the log is not opened, and the message names the file."""
    data = bytearray(five_groups(False).data)
    data[at] ^= 4
    path = place(data)
    with pytest.raises(DamagedError, match=str(path)):
        reader.open_log(str(path), "cluster", "res")
    assert writer.find_newest(str(path.parent), "cluster", "res").ignored[0][0] == str(path)
    with pytest.raises(DamagedError):
        writer.chain_from(str(path.parent), LogPos(1, "alpha", 0), "cluster", "res")


@pytest.mark.parametrize("change", [{"uuid": "other"}, {"resource": "other"}, {"producer": "beta"}, {"nr": 3}])
def test_log_under_the_wrong_name(place, change):
    """Rule 6: a sound log of another cluster, resource, host or number under the right name: not opened, not the
    newest, no part of a chain; the message says whose it is."""
    path = place(Log(size=DEVICE, **change).data)
    for do in (lambda: reader.open_log(str(path), "cluster", "res"),
               lambda: writer.chain_from(str(path.parent), LogPos(1, "alpha", 0), "cluster", "res")):
        with pytest.raises(DamagedError, match="the log belongs to"):
            do()
    newest = writer.find_newest(str(path.parent), "cluster", "res")
    assert newest.log is None and "belongs to" in newest.ignored[0][1]


def test_stale_space(place, tmp_path):
    """Rule 4: recycled space behind the end, group borders and positions just as they would be: foreign for the scan,
    for the window, and no proof of anything; also a whole older log of the same name in the middle of a write."""
    new, old = five_groups(True), Log(log_id=b"o" * 16, size=DEVICE)
    for i in range(9):
        old.add([Record(1, 8192 * (i % 8), 700, b"stale" * 140), Record(2, 0, 512)], durable=old.end)
    assert old.ends[:6] == new.ends
    for cut in range(len(new.data), BLOCK - 1, -512):
        data = bytes(new.data[:cut]) + bytes(old.data[cut:])
        path = place(data)
        whole = max(i for i, end in enumerate(new.ends) if data[:BLOCK + end] == new.data[:BLOCK + end])
        block = slice(BLOCK + new.ends[whole], 2 * BLOCK + new.ends[whole])
        with reader.open_log(str(path), "cluster", "res") as opened:
            got = reader.scan(opened.fd, opened.header)
            assert (got.groups, got.beyond) == (whole, None)
            assert got.reason == ("foreign" if data[block] == old.data[block] else "torn")
            window, cursor = marsreplay.Window(1 << 20), marsreplay.Cursor(opened.header.pack())
            groups, code = window.load(opened.fd, cursor, old.end)
            assert groups == whole and marsscan.CODES[code] == got.code
    place(bytes(old.data))
    with pytest.raises(MarsError):
        writer.chain_from(str(tmp_path), LogPos(2, "alpha", 0), "cluster", "res")
