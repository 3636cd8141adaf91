"""The model of what a crash leaves: neither more nor less than a disk and a file system promise."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.recording import TOP
from tests.crash.states import LOGS, State, Walk
from tests.crash.tape import File, FileOp, Link, NameOp, Parser, Sync, Tape
from tests.fault import iolayer

FOLDER, LOG = f"mars/{LOGS}", "log-000000001-a"


def tape_of(*ops: FileOp | NameOp | Sync, first: bytes = b"old" * 2048, length: int = 20) -> tuple[Tape, File]:
    """A disk, and a log with `first` in it, then these operations."""
    disk, log = File(0, bytes(4096)), File(1, first)
    for op in ops:
        if isinstance(op, FileOp | Sync) and op.file is None and getattr(op, "folder", None) is None:
            op.file = log
    kinds = [[op for op in ops if isinstance(op, kind)] for kind in (FileOp, NameOp, Sync)]
    return Tape(length, [disk, log], {FOLDER: {LOG: log}, "mars": {}}, *kinds, disk=disk), log


def write(off: int, data: bytes, issue: int, end: int) -> FileOp:
    """A write into the log."""
    return FileOp("write", None, off, len(data), data, issue, end)  # type: ignore[arg-type]


def states(tape: Tape, cut: int, power: bool = True, budget: int = 60) -> list[State]:
    """Of the moment before entry `cut`."""
    walk = Walk(tape, 1)
    while walk.now < cut:
        walk.step()
    return list(walk.states(budget, power))


def logs(tape: Tape, cut: int, power: bool = True, budget: int = 60) -> set[bytes]:
    """All contents that the log may have."""
    return {state.logs[LOG] for state in states(tape, cut, power, budget)}


def test_a_write_without_a_sync() -> None:
    """May be there, may not, may be torn between sectors, never inside one; a kill takes nothing that has ended."""
    tape, log = tape_of(write(0, b"n" * 2048, 1, 2))
    found = logs(tape, 5)
    old, new = log.first, b"n" * 2048 + log.first[2048:]
    assert {old, new} < found and len(found) > 4
    for one in found:
        assert len(one) == len(old)
        assert all(one[at:at + 512] in (old[at:at + 512], new[at:at + 512]) for at in range(0, len(one), 512))
    assert logs(tape, 5, power=False) == {new}
    assert {old, new} <= logs(tape, 2, power=False), "under way at the kill"


@pytest.mark.parametrize(("issue", "end", "safe"), [(3, 4, True), (2, 4, False), (3, 9, False)])
def test_what_a_sync_covers(issue: int, end: int, safe: bool) -> None:
    """Rule 1: only what had ended before it was issued, and only when it has ended itself."""
    tape, log = tape_of(write(0, b"n" * 512, 1, 2), Sync(issue, end))
    new = b"n" * 512 + log.first[512:]
    assert (logs(tape, 6) == {new}) == safe


def test_order_of_writes_to_one_place() -> None:
    """The older of two may not come back over the newer; each may be there alone."""
    tape, log = tape_of(write(0, b"1" * 512, 1, 2), write(0, b"2" * 512, 3, 4))
    assert {one[:512] for one in logs(tape, 6)} == {log.first[:512], b"1" * 512, b"2" * 512}
    tape, log = tape_of(write(0, b"1" * 512, 1, 2), write(0, b"2" * 512, 3, 4), Sync(5, 6))
    assert {one[:512] for one in logs(tape, 8)} == {b"2" * 512}


def test_new_space() -> None:
    """A file that grew may be short, may hold zeros or rubbish where it was not written; not once it was synced."""
    tape, log = tape_of(write(8192, b"n" * 4096, 1, 2), first=bytes(8192))
    found = logs(tape, 5, budget=200)
    assert {len(one) for one in found} >= {8192, 12288} and len(found) > 10
    assert any(one[8192:] == bytes(4096) for one in found)
    assert any(set(one[8192:]) - {0, ord("n")} for one in found), "rubbish"
    tape, log = tape_of(write(8192, b"n" * 4096, 1, 2), Sync(3, 4), first=bytes(8192))
    assert logs(tape, 5) == {bytes(8192) + b"n" * 4096}


def test_names() -> None:
    """A link is there or not until its directory was synced; a long value needs syncfs; a new log's name may be missing
    though its contents are durable."""
    for value, sync, safe in (("v", Sync(3, 4, folder=FOLDER), True), ("v" * 99, Sync(3, 4, folder=FOLDER), False),
                              ("v" * 99, Sync(3, 4), True), ("v", Sync(3, 4, folder="mars"), False)):
        op = NameOp(FOLDER, {"replay-a": Link(value)}, 1, 2, whole=len(value) > 59)
        disk = File(0, bytes(512))
        tape = Tape(9, [disk], {FOLDER: {}, "mars": {}}, [], [op], [sync], disk=disk)
        links = [state.links.get(f"{LOGS}/replay-a") for state in states(tape, 6)]
        assert set(links) == ({value} if safe else {value, None})
    made = File(1)
    tape, _ = tape_of(Sync(3, 4, file=made))
    tape.files.append(made)
    tape.file_ops.append(FileOp("write", made, 0, 4096, b"h" * 4096, 1, 2))
    tape.name_ops.append(NameOp(FOLDER, {"log-000000002-a": made}, 1, 2))
    assert {state.logs.get("log-000000002-a") for state in states(tape, 6)} == {None, b"h" * 4096}


def record(tmp_path: Path, code: str) -> tuple[Parser, list]:
    """Run code in tmp_path/h under the layer."""
    root = tmp_path / "h"
    (root / "mars").mkdir(parents=True)
    (root / "disk").write_bytes(bytes(4096))
    parser = Parser(str(root))
    env = iolayer.environment(iolayer.build(), record=tmp_path / "record", roots=[root])
    subprocess.run([sys.executable, "-c", "import os\n" + code], cwd=root, env={**os.environ, **env}, check=True)
    return parser, list(iolayer.read_record(tmp_path / "record"))


def test_the_record_is_checked_against_the_files(tmp_path: Path) -> None:
    """What the layer did not see is noticed: a model of half the operations would prove nothing."""
    code = "fd = os.open('mars/f', os.O_RDWR | os.O_CREAT); os.pwrite(fd, b'abc', 0); os.rename('mars/f', 'mars/g')"
    parser, entries = record(tmp_path, code)
    parser.add(entries)
    parser.killed()
    (tmp_path / "h/mars/g").write_bytes(b"abd")
    with pytest.raises(AssertionError, match="does not hold what the record says"):
        parser.check()
    os.unlink(tmp_path / "h/mars/g")
    with pytest.raises(AssertionError, match="names in"):
        parser.check()


def test_what_a_killed_process_had_under_way(tmp_path: Path) -> None:
    """Without an end in the record, the files tell whether it happened."""
    code = "fd = os.open('mars/f', os.O_RDWR | os.O_CREAT); os.pwrite(fd, b'abc', 0); os.rename('mars/f', 'mars/g')"
    parser, entries = record(tmp_path, code)
    parser.add(entry for entry in entries if not (entry.end and entry.key in {entries[-1].key, entries[-3].key}))
    parser.killed()
    assert [type(thing) for thing in parser.names["mars"].values()] == [File]
    caught_up = [(op.kind, op.len, op.data) for op in parser.tape.file_ops if op.end == op.issue]
    assert caught_up == [("size", 3, b""), ("write", 3, b"abc")]


def test_the_layer_names_the_top(tmp_path: Path) -> None:
    """Names directly below the root belong to the directory "": the disk and the ledger."""
    parser, entries = record(tmp_path, "os.symlink('x', 'l')")
    parser.add(entries)
    parser.killed()
    assert parser.tape.name_ops[0].folder == "" and TOP.is_dir()
