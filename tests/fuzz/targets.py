"""Feeds a case to the product and compares with the plain-Python readers of tests/ref. Each target returns a verdict in
a few words; anything wrong is an AssertionError, an exception nobody expects, a sanitizer's report, or a hang.

What may come out of the product for hostile files: MarsError. Nothing else.
"""
from __future__ import annotations

import functools
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from marsx._ext import marsreplay, marsscan, marsshadow
from marsx.base.errors import DamagedError, MarsError
from marsx.base.position import LogPos
from marsx.log import reader, writer
from marsx.log.record import BLOCK, FileHeader
from marsx.volume import recovery
from marsx.volume.env import Env
from tests.fuzz.case import Case
from tests.fuzz.make import RESOURCE, UUID
from tests.fuzz.words import check_wire, check_word
from tests.ref import chain_reader
from tests.ref import log_reader as ref

DISK = 1 << 19                              # bytes of the scratch device
PATTERN = bytes(range(1, 252)) * (DISK // 251 + 1)
FAR = 1 << 62                               # no position of a log lies behind it


@contextmanager
def memory_file(data: bytes) -> Iterator[int]:
    """A descriptor of a file in memory."""
    fd = os.memfd_create("fuzz")
    try:
        at = 0
        while at < len(data):
            at += os.pwrite(fd, data[at:], at)
        yield fd
    finally:
        os.close(fd)


@functools.cache
def window_of(size: int) -> marsreplay.Window:
    """Windows are used again and again: bytes of earlier cases stand in their buffers, and must never count."""
    return marsreplay.Window(abs(size))


def image_of(kept: list) -> bytes | None:
    """What the scratch device holds after these records; None when they need a larger one."""
    if any(offset + length > DISK for _, offset, length, _ in kept):
        return None
    return bytes(ref.apply(bytearray(PATTERN[:DISK]), kept))


# ---- one log ----

def check_log(case: Case) -> str:
    """Header, scan, buffer check, window engine and index say what the twin says."""
    data = case.files["log"]
    head = ref.parse_header(data)
    try:
        header = FileHeader.parse(data)
    except DamagedError:
        assert head is None, "the header is refused, the twin follows it"
        return "header refused"
    assert head is not None, "the header is followed, the twin refuses it"
    assert (header.name, header.digest0) == (head.name, ref.xxh3_128(data[:BLOCK]).hex())
    with memory_file(data) as fd:
        verdict = check_scan(fd, data, header, case.params["known"])
        check_part(fd, data, header, case.params)
        check_windows(fd, data, header, case.params)
        if case.params["index"]:
            check_index(fd, data, header, case.params)
    return verdict


def check_scan(fd: int, data: bytes, header: FileHeader, known: int) -> str:
    """The whole log, as a file and as bytes in memory."""
    got, twin = reader.scan(fd, header, known_durable=known), ref.walk(data, known)
    assert (got.end, got.digest, got.groups, got.records, got.code, got.reason, got.device_size) == (
        twin.end, twin.digest.hex(), twin.groups, twin.records, twin.code, twin.reason, twin.size), (got, twin)
    checked = reader.check_buffer(data[BLOCK:], header, 0, header.digest0, 0, 0)
    assert (checked.used, checked.pos, checked.digest) == (got.end, got.end, got.digest), (checked, got)
    assert (checked.next_group, checked.next_record, checked.device_size) == (got.groups, got.records, got.device_size)
    assert (checked.state, checked.code) == ("more" if got.code == "short" else "bad", got.code)
    assert checked.need >= BLOCK
    return f"{twin.reason} {twin.code}{' early' if not twin.groups else ''}"


def check_part(fd: int, data: bytes, header: FileHeader, params: dict) -> None:
    """From a position inside the log, with a limit, with another size of the device."""
    start, limit, digest, device = params["start"], params["limit"], params["digest"], params["device"]
    sane = start % BLOCK == 0 and start <= FAR and (limit is None or limit >= start)
    try:
        got = reader.scan(fd, header, start, digest, limit, group=None if start else 0, known_durable=params["known"],
                          device_size=device)
    except ValueError:
        assert not sane
        return
    assert sane
    twin = ref.walk(data, params["known"], start, bytes.fromhex(digest), limit, device)
    assert (got.end, got.digest, got.groups, got.records, got.code, got.reason, got.device_size) == (
        twin.end, twin.digest.hex(), twin.groups, twin.records, twin.code, twin.reason, twin.size), (got, twin)


def check_windows(fd: int, data: bytes, header: FileHeader, params: dict) -> None:
    """All windows up to the limit: what they take, why they stop, and the disk behind them."""
    limit = FAR if params["limit"] is None else params["limit"]
    starts = [(0, b"")]
    if params["start"] % BLOCK == 0 and 0 < params["start"] <= min(FAR, limit):
        starts.append((params["start"], bytes.fromhex(params["digest"])))
    for start, digest in starts:
        device = params["device"] if start and params["device"] else None
        cursor = marsreplay.Cursor(header.pack(), start, digest, device)
        twin = ref.walk(data, 0, start, digest, limit, device or 0)
        want = image_of(twin.kept)
        with memory_file(PATTERN[:DISK]) as disk:
            groups, code = run_windows(fd, disk if want is not None else -1, cursor, limit, params["window"])
            assert (groups, cursor.pos, cursor.digest) == (twin.groups, twin.end, twin.digest), (code, twin)
            due = twin.code
            if twin.end < limit and (due == "ok" or limit - twin.end < BLOCK):
                due = "short"
            assert marsscan.CODES[code] == due, (code, twin)
            if want is not None:
                assert os.fstat(disk).st_size == DISK and os.pread(disk, DISK, 0) == want
        if want is not None and params["window"] == 8192:
            check_pair(fd, marsreplay.Cursor(header.pack(), start, digest, device), limit, params["window"], twin, want)


def check_pair(fd: int, cursor: marsreplay.Cursor, limit: int, size: int, twin: ref.Walk, want: bytes) -> None:
    """Two windows in turn make the same disk."""
    with memory_file(PATTERN[:DISK]) as disk:
        assert run_pair(fd, disk, cursor, limit, size) == twin.groups
        assert (cursor.pos, cursor.digest) == (twin.end, twin.digest)
        assert os.pread(disk, DISK + 1, 0) == want


def run_windows(fd: int, disk: int, cursor: marsreplay.Cursor, limit: int, size: int) -> tuple[int, int]:
    """(groups taken, last code); disk -1: nothing is written."""
    window, total = window_of(size), 0
    while True:
        groups, code = window.load(fd, cursor, limit)
        if not groups:
            return total, code
        total += groups
        if disk >= 0:
            window.apply(disk)


def run_pair(fd: int, disk: int, cursor: marsreplay.Cursor, limit: int, size: int) -> int:
    """The same with two windows, the next one loaded beside the writes of this one, as replay does it."""
    now, ahead, total = window_of(size), window_of(-size), 0
    now.begin(fd, cursor, limit)
    while True:
        groups, _ = now.finish()
        if not groups:
            return total
        total += groups
        ahead.begin(fd, cursor, limit)
        now.apply(disk, 4, ahead)
        now, ahead = ahead, now


def logical(volume: marsshadow.Volume, nr: int) -> bytes:
    """What a volume's readers see when it has started log `nr`."""
    header = ref.Log(nr=nr, size=DISK).header
    with memory_file(header) as fd, mmap.mmap(-1, DISK) as page:
        volume.start(fd, header)
        volume.read_into(page, 0, DISK)
        return page[:]


def check_index(fd: int, data: bytes, header: FileHeader, params: dict) -> None:
    """The shadow index of a recovered log: its readers see what the records say. A wrong end is refused."""
    twin = ref.walk(data)
    want = image_of(twin.kept)
    with memory_file(PATTERN[:DISK]) as disk:
        if want is not None:
            volume = marsshadow.Volume(disk, DISK, 512, 16 << 20, 1)
            volume.add_log(fd, header.pack(), twin.end, marsreplay.Cursor(header.pack()))
            assert logical(volume, header.nr + 1) == want
            del volume
        end = twin.end + BLOCK if params["limit"] is None else params["limit"]
        volume = marsshadow.Volume(disk, DISK, 512, 16 << 20, 1)
        try:
            volume.add_log(fd, header.pack(), end, marsreplay.Cursor(header.pack()))
        except (ValueError, OSError):
            return
        assert end == 0 or ref.walk(data, limit=end).end == end or lies_in_payload(data, end), "a wrong end is taken"


def lies_in_payload(data: bytes, end: int) -> bool:
    """The index reads headers and tables only: is `end` right but for payloads?"""
    at = 0
    while at < end and data[BLOCK + at:BLOCK + at + 8] == b"MARSXGRP":
        at += int.from_bytes(data[BLOCK + at + 56:BLOCK + at + 64], "little")
    return at == end


# ---- a directory ----

@functools.cache
def scratch_dir() -> Path:
    """A directory where O_DIRECT works, in memory if possible; gone when the process ends."""
    for base in ("/dev/shm", None):
        made = tempfile.TemporaryDirectory(prefix=f"marsx-fuzz-{os.getpid()}-", dir=base)
        _DIRS.append(made)
        probe = Path(made.name) / "probe"
        probe.write_bytes(bytes(BLOCK))
        try:
            os.close(os.open(probe, os.O_RDWR | os.O_DIRECT))
        except OSError:
            continue
        return Path(made.name)
    raise OSError("no directory for temporary files that takes O_DIRECT")


_DIRS: list[tempfile.TemporaryDirectory] = []


class _NoFacts:
    """Recovery publishes nothing."""


def check_dir(case: Case) -> str:
    """chain_from, find_newest and recovery over hostile files; then index and windows over what was recovered."""
    directory = scratch_dir()
    for path in directory.iterdir():
        path.unlink()
    for name, data in case.files.items():
        (directory / name).write_bytes(data)
    return check_recovery(case, directory)


def check_recovery(case: Case, directory: Path) -> str:
    """See check_dir."""
    nr, producer, pos = case.params["at"]
    host, digest = case.params["host"], case.params["digest"]
    env = Env(str(directory), UUID, RESOURCE, host, DISK, 512, _NoFacts(), time.time_ns)  # type: ignore[arg-type]
    try:
        parts = chain_reader.recover(case.files, (nr, producer, pos), bytes.fromhex(digest), UUID, RESOURCE, host,
                                     case.params["known"])
    except chain_reader.Refused as err:
        parts, refusal = [], str(err)
    check_newest(directory, host)
    try:
        logs = recovery.recover(env, LogPos(nr, producer, pos), digest, lambda *_: case.params["known"], uniques=True)
    except MarsError as err:
        assert not parts, f"recovery refuses ({err}), the twin does not"
        return f"refused: {''.join(c for c in refusal if c.isalpha() or c == ' ')}"
    try:
        assert parts, f"recovered, the twin refuses: {refusal}"
        got = [(log.header.name, log.start, log.start_digest, log.end, log.digest, log.is_last) for log in logs]
        assert got == [(p.head.name, p.start, p.start_digest.hex(), p.walk.end, p.walk.digest.hex(), p.is_last)
                       for p in parts], (got, parts)
        check_history(logs, parts, case.params["index"])
    finally:
        recovery.close_all(logs)
    return f"recovered {len(parts)}, {parts[-1].walk.reason}"


def check_newest(directory: Path, host: str) -> None:
    """No file under a log's name makes find_newest fail otherwise than by name."""
    try:
        found = writer.find_newest(str(directory), UUID, RESOURCE, host)
    except MarsError:
        return
    assert found.log is None or found.log.path not in [path for path, _ in found.ignored]


def check_history(logs: list[recovery.Recovered], parts: list[chain_reader.Part], index: bool) -> None:
    """A secondary's windows, and a primary's index, over the whole history."""
    want = image_of([one for part in parts for one in part.walk.kept])
    if want is None:
        return
    with memory_file(PATTERN[:DISK]) as disk:
        for log in logs:
            with memory_file(Path(log.path).read_bytes()) as fd:
                cursor = marsreplay.Cursor(log.header.pack(), log.start, bytes.fromhex(log.start_digest))
                run_windows(fd, disk, cursor, log.end, 8192)
                assert (cursor.pos, cursor.digest.hex()) == (log.end, log.digest)
        assert os.pread(disk, DISK + 1, 0) == want
    if not index:
        return
    with memory_file(PATTERN[:DISK]) as disk:
        volume = marsshadow.Volume(disk, DISK, 512, 16 << 20, 1)
        first = marsreplay.Cursor(logs[0].header.pack(), logs[0].start, bytes.fromhex(logs[0].start_digest))
        for log in logs:
            volume.add_log(log.fd, log.header.pack(), log.end, first if log is logs[0] else None)
        if all(fits_direct(one) for part in parts for one in part.walk.kept):
            assert logical(volume, logs[-1].header.nr + 1) == want


def fits_direct(kept: tuple[int, int, int, bytes]) -> bool:
    """A record that a real device could take: the logs are open with O_DIRECT."""
    return kept[1] % 512 == 0 and kept[2] % 512 == 0


TARGETS: dict[str, Callable[[Case], str]] = {"log": check_log, "dir": check_dir, "word": check_word,
                                             "wire": check_wire}


def run(case: Case) -> str:
    """Run one case; the verdict."""
    return f"{case.target}: {TARGETS[case.target](case)}"
