"""Log files: made in the right order, never twice, ended where their successor says, found only when chained."""
from __future__ import annotations

import dataclasses
import errno
import fcntl
import itertools
import os
import stat
import subprocess
from pathlib import Path

import pytest

from marsx.base import durable
from marsx.base.errors import DamagedError, NotFoundError, PreconditionError
from marsx.base.position import LogPos
from marsx.log import reader, writer
from marsx.log.record import BLOCK, FileHeader, new_log_id
from marsx.log.writer import chain_from, create_log, end_log, find_newest, remove_leftovers
from tests.ref.log_reader import Log, Record

FIRST = FileHeader(nr=1, producer="alpha", resource="res", uuid="cluster", log_id=b"i" * 16, device_size=1 << 30,
                   block_size=512, lamport_ns=1, real_ns=2)


def put(directory: Path, nr: int, producer: str, groups: int, pred: Log | None = None,
        pred_end: int | None = None) -> Log:
    """A log file with so many groups of 8 KiB, following `pred` at its end (or at `pred_end`)."""
    before = (0, 0, bytes(16), "")
    if pred is not None:
        end = pred.end if pred_end is None else pred_end
        before = (pred.nr, end, pred.digests[pred.ends.index(end)], pred.producer)
    log = Log(log_id=new_log_id(), nr=nr, producer=producer, pred=before)
    for _ in range(groups):
        log.add([Record(1, 0, 4096, producer[:1].encode() * 4096)])
    (directory / f"log-{nr:09d}-{producer}").write_bytes(log.data)
    return log


def newest(directory: Path, host: str = "") -> writer.Newest:
    return find_newest(str(directory), "cluster", "res", host)


def chain(directory: Path, at: LogPos) -> list[tuple[str, int | None]]:
    return [(log.header.name[4:].lstrip("0"), log.end) for log in chain_from(str(directory), at, "cluster", "res")]


@pytest.fixture
def syncs(monkeypatch) -> list[str]:
    """What reached the disk, in order: the calls the rule speaks of."""
    order: list[str] = []

    def watch(module, name: str, text: str) -> None:
        call = getattr(module, name)

        def wrapped(*args, **more):
            order.append(text)
            return call(*args, **more)
        monkeypatch.setattr(module, name, wrapped)

    watch(durable, "overwrite", "header")
    watch(durable, "sync_dir", "directory")
    watch(os, "link", "name")
    watch(os, "rename", "old name")
    return order


def test_create_order_and_mode(tmp_path, syncs):
    """Rule 4: header durable, then the name, then the directory; root's file, direct, nothing left over."""
    old = os.umask(0)
    try:
        fd = create_log(str(tmp_path), FIRST, 1 << 20)
    finally:
        os.umask(old)
    try:
        assert syncs == ["header", "name", "directory"]
        assert os.listdir(tmp_path) == ["log-000000001-alpha"]
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600 and os.fstat(fd).st_nlink == 1
        assert os.fstat(fd).st_size == BLOCK + (1 << 20)
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_DIRECT | os.O_ACCMODE) == os.O_DIRECT | os.O_RDWR
        assert not os.get_inheritable(fd)
        assert FileHeader.parse(reader.read_block(fd, 0)) == FIRST
        assert reader.scan(fd, FIRST).reason == "end"
    finally:
        os.close(fd)


def test_never_twice(tmp_path):
    os.close(create_log(str(tmp_path), FIRST))
    other = dataclasses.replace(FIRST, log_id=b"j" * 16)
    with pytest.raises(PreconditionError, match="exists already"):
        create_log(str(tmp_path), other)
    assert FileHeader.parse((tmp_path / FIRST.name).read_bytes()) == FIRST
    assert os.listdir(tmp_path) == [FIRST.name]


def test_never_twice_also_in_a_race(tmp_path, monkeypatch):
    os.close(create_log(str(tmp_path), FIRST))
    monkeypatch.setattr(os.path, "lexists", lambda path: False)
    with pytest.raises(PreconditionError, match="exists already"):
        create_log(str(tmp_path), dataclasses.replace(FIRST, log_id=b"j" * 16))
    assert FileHeader.parse((tmp_path / FIRST.name).read_bytes()) == FIRST
    assert os.listdir(tmp_path) == [FIRST.name]


def test_recycled_file(tmp_path, syncs):
    """Rule 4: the new header is durable before the new name; what stands behind it is foreign and not believed."""
    put(tmp_path, 1, "alpha", 3)
    old = tmp_path / "log-000000001-alpha"
    os.chmod(old, 0o644)
    second = dataclasses.replace(FIRST, nr=2, log_id=b"n" * 16)
    fd = create_log(str(tmp_path), second, recycle=str(old))
    try:
        assert syncs == ["old name", "directory", "header", "name", "directory"]
        assert os.listdir(tmp_path) == [second.name]
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
        got = reader.scan(fd, second)
        assert (got.groups, got.reason) == (0, "foreign") and os.fstat(fd).st_size == BLOCK + 3 * 8192
    finally:
        os.close(fd)


@pytest.mark.parametrize("step", range(8))
def test_death_while_recycling(tmp_path, step):
    """Rules 4, 9: whoever dies between two steps leaves either no log 2, or an empty one whose old groups nobody
    believes; log 1 is the newest or its predecessor; what is left over goes at the next start."""
    one = put(tmp_path, 1, "alpha", 2)
    put(tmp_path, 7, "old", 5)
    assert writer.set_aside(str(tmp_path / "log-000000007-old"), 1 << 30)
    second = dataclasses.replace(FIRST, nr=2, log_id=b"n" * 16, pred=LogPos(1, "alpha", one.end),
                                 pred_digest=one.digests[-1].hex())
    child = os.fork()
    if child == 0:
        left = itertools.count(step, -1)

        def dying(call):
            def wrapped(*args, **more):
                if next(left) == 0:
                    os._exit(1)
                return call(*args, **more)
            return wrapped
        for module, name in ((os, "rename"), (durable, "sync_dir"), (os, "posix_fallocate"), (durable, "overwrite"),
                             (os, "link"), (os, "unlink")):
            setattr(module, name, dying(getattr(module, name)))
        create_log(str(tmp_path), second, 1 << 20, writer.take_spare(str(tmp_path)))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == (0 if step == 7 else 256)
    found = newest(tmp_path)
    assert found.log.nr == (2 if step > 4 else 1) and not found.ignored
    logs = chain(tmp_path, LogPos(1, "alpha", 0))
    assert logs == [("1-alpha", one.end if step > 4 else None), ("2-alpha", None)][:len(logs)]
    if step > 4:
        with reader.open_log(found.log.path, "cluster", "res") as opened:
            got = reader.scan(opened.fd, opened.header)
            assert (got.groups, got.reason) == (0, "foreign") and reader.is_empty(opened)
    remove_leftovers(str(tmp_path))
    kept = {"log-000000001-alpha", *(["log-000000002-alpha"] if step > 4 else [writer.SPARE] if step == 0 else [])}
    assert set(os.listdir(tmp_path)) == kept


@pytest.mark.parametrize("how", [os.O_RDONLY, os.O_RDWR])
def test_a_file_that_is_read_is_not_used_again(tmp_path, how):
    """Rule 9: somebody still has the deleted log open, pinned or not: its file is let go, his bytes stay what they
    are."""
    log = put(tmp_path, 1, "alpha", 3)
    fd = os.open(tmp_path / "log-000000001-alpha", how)
    try:
        assert writer.set_aside(str(tmp_path / "log-000000001-alpha"), 1 << 30)
        assert writer.take_spare(str(tmp_path)) is None and os.listdir(tmp_path) == []
        assert os.pread(fd, 1 << 20, 0) == log.data
    finally:
        os.close(fd)


def test_what_is_set_aside(tmp_path):
    """One file, cut to the limit, the larger one; it is no log, and goes when it is told to."""
    for nr, groups in ((1, 3), (2, 1), (3, 5)):
        put(tmp_path, nr, "alpha", groups)
    paths = [str(tmp_path / f"log-{nr:09d}-alpha") for nr in (1, 2, 3)]
    assert [writer.set_aside(path, 4 * 8192 + 100) for path in paths] == [True, False, True]
    spare = tmp_path / writer.SPARE
    assert os.listdir(tmp_path) == [writer.SPARE] and spare.stat().st_size == 4 * 8192
    assert reader.list_logs(str(tmp_path)) == [] and newest(tmp_path) == writer.Newest(None)
    assert writer.take_spare(str(tmp_path)) == str(spare) and spare.exists()
    writer.drop_spare(str(tmp_path))
    writer.drop_spare(str(tmp_path))
    assert writer.take_spare(str(tmp_path)) is None and os.listdir(tmp_path) == []
    put(tmp_path, 4, "alpha", 1)
    assert not writer.set_aside(str(tmp_path / "log-000000004-alpha"), 100) and os.listdir(tmp_path) == []


def test_no_foreign_file_is_used(tmp_path):
    """A link under the spare's name leads nowhere."""
    other = tmp_path / "precious"
    other.write_bytes(b"x" * 8192)
    (tmp_path / writer.SPARE).symlink_to(other)
    assert writer.take_spare(str(tmp_path)) is None
    assert os.listdir(tmp_path) == ["precious"] and other.read_bytes() == b"x" * 8192


def test_refusal_leaves_the_recycled_file_alone(tmp_path):
    os.close(create_log(str(tmp_path), FIRST))
    old = tmp_path / "old"
    old.write_bytes(b"old contents")
    with pytest.raises(PreconditionError, match="exists already"):
        create_log(str(tmp_path), dataclasses.replace(FIRST, log_id=b"j" * 16), recycle=str(old))
    assert old.read_bytes() == b"old contents"


@pytest.mark.parametrize("call", ["overwrite", "sync_dir"])
def test_failed_sync_makes_no_log(tmp_path, monkeypatch, call):
    """A header or name that may not be durable is an error, the descriptor is closed and nothing temporary stays."""
    def broken(*args):
        raise OSError(errno.EIO, "fsync failed", "x")
    monkeypatch.setattr(durable, call, broken)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Exception, match="cannot be made"):
        create_log(str(tmp_path), FIRST)
    assert len(os.listdir("/proc/self/fd")) == before
    assert not [name for name in os.listdir(tmp_path) if durable.is_temp(name)]
    assert call == "sync_dir" or os.listdir(tmp_path) == []


@pytest.mark.root
def test_no_space_is_clear(tmp_path):
    image, mount = tmp_path / "image", tmp_path / "mount"
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    try:
        with pytest.raises(PreconditionError, match="no space for log") as caught:
            create_log(str(mount), FIRST, 1 << 30)
        assert caught.value.hint
        assert os.listdir(mount) == ["lost+found"]
        os.close(create_log(str(mount), FIRST, 1 << 20))
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_end_log(tmp_path):
    log = put(tmp_path, 1, "alpha", 3)
    path = tmp_path / "log-000000001-alpha"
    with open(path, "r+b") as file:
        for bad in (100, -4096):
            with pytest.raises(ValueError):
                end_log(file.fileno(), bad)
        with pytest.raises(DamagedError, match="has 28672 bytes and is to end at"):
            end_log(file.fileno(), log.end + BLOCK, "log-000000001-alpha")
        end_log(file.fileno(), log.ends[2])
    assert path.stat().st_size == BLOCK + log.ends[2]
    with reader.open_log(str(path), "cluster", "res") as opened:
        got = reader.scan(opened.fd, opened.header)
        assert (got.end, got.reason) == (log.ends[2], "end")


def test_leftovers(tmp_path):
    put(tmp_path, 1, "alpha", 0)
    for name in (".tmp.12.abcd.log-000000002-alpha", ".tmp.1.2.primary", "log-000000003-x"):
        (tmp_path / name).write_bytes(b"")
    assert [os.path.basename(path) for path in remove_leftovers(str(tmp_path))] == [".tmp.12.abcd.log-000000002-alpha"]
    assert sorted(os.listdir(tmp_path)) == [".tmp.1.2.primary", "log-000000001-alpha", "log-000000003-x"]


# ---- rule 4: which log is the newest ----

def test_newest_of_a_chain(tmp_path):
    assert newest(tmp_path) == writer.Newest(None)
    one = put(tmp_path, 1, "alpha", 2)
    assert newest(tmp_path).log.header.name == "log-000000001-alpha"
    two = put(tmp_path, 2, "alpha", 0, one)
    put(tmp_path, 3, "b", 1, two)
    found = newest(tmp_path)
    assert found.log.header.name == "log-000000003-b" and found.log.end is None and not found.ignored
    os.unlink(tmp_path / "log-000000001-alpha")
    os.unlink(tmp_path / "log-000000002-alpha")
    assert newest(tmp_path).log.header.name == "log-000000003-b"


@pytest.mark.parametrize("spoil", ["zeros", "foreign", "empty file", "flipped", "other cluster"])
def test_rule_4_highest_file_without_sound_header_is_not_the_newest(tmp_path, spoil):
    """Rule 4: recycled file renamed to N+1, crash before its header. Named, not passed over in silence."""
    one = put(tmp_path, 1, "alpha", 2)
    two = put(tmp_path, 2, "alpha", 2, one)
    path = tmp_path / "log-000000003-alpha"
    log = put(tmp_path, 3, "alpha", 2, two)
    raw = bytearray(log.data)
    if spoil == "zeros":
        raw[:BLOCK] = bytes(BLOCK)
    elif spoil == "foreign":
        raw = one.data
    elif spoil == "empty file":
        raw = bytearray()
    elif spoil == "flipped":
        raw[300] ^= 1
    else:
        raw = Log(nr=3, uuid="other").data
    path.write_bytes(raw)
    found = newest(tmp_path)
    assert found.log.header.name == "log-000000002-alpha"
    assert [name for name, _ in found.ignored] == [str(path)] and str(path) in found.ignored[0][1]


def test_rule_4_newest_chains_to_an_existing_predecessor(tmp_path):
    one = put(tmp_path, 1, "alpha", 2)
    two = put(tmp_path, 2, "alpha", 2, one)
    put(tmp_path, 3, "alpha", 2, two)
    os.unlink(tmp_path / "log-000000002-alpha")
    found = newest(tmp_path)
    assert found.log.header.name == "log-000000001-alpha"
    assert "log-000000002-alpha is missing" in found.ignored[0][1]


def test_rule_7_newest_of_two_with_one_number(tmp_path):
    """Rule 7: an empty log beside one with contents is no history; two with contents have parted."""
    one = put(tmp_path, 1, "alpha", 2)
    put(tmp_path, 2, "alpha", 0, one)
    put(tmp_path, 2, "b", 0, one)
    assert newest(tmp_path, "b").log.producer == "b" and newest(tmp_path).log.producer == "alpha"
    put(tmp_path, 2, "b", 1, one)
    assert newest(tmp_path, "alpha").log.producer == "b"
    put(tmp_path, 2, "alpha", 1, one)
    with pytest.raises(DamagedError, match="log-000000002-alpha, log-000000002-b"):
        newest(tmp_path)


# ---- chains ----

def test_chain_from_any_position(tmp_path):
    one = put(tmp_path, 1, "alpha", 2)
    two = put(tmp_path, 2, "alpha", 1, one)
    three = put(tmp_path, 3, "b", 0, two)
    put(tmp_path, 4, "b", 3, three)
    ends = [("1-alpha", 16384), ("2-alpha", 8192), ("3-b", 0), ("4-b", None)]
    for skip, at in enumerate((LogPos(1, "alpha", 8192), LogPos(2, "alpha", 0), LogPos(3, "b", 0), LogPos(4, "b", 0))):
        assert chain(tmp_path, at) == ends[skip:]
    found = chain_from(str(tmp_path), LogPos(1, "alpha", 0), "cluster", "res")
    assert found[0].end_digest == one.digests[-1].hex() and found[-1].end_digest is None
    assert found[0].size == len(one.data) and found[1].producer == "alpha" and found[1].nr == 2


def test_rule_4_the_end_is_what_the_successor_says(tmp_path):
    """Rule 4: after recovery log 1 has a tail behind its end; the end stands in log 2's header."""
    one = put(tmp_path, 1, "alpha", 5)
    put(tmp_path, 2, "alpha", 1, one, pred_end=one.ends[3])
    assert chain(tmp_path, LogPos(1, "alpha", 0)) == [("1-alpha", one.ends[3]), ("2-alpha", None)]
    with pytest.raises(DamagedError, match="has parted there"):
        chain(tmp_path, LogPos(1, "alpha", one.ends[4]))


def test_rule_7_end_of_a_deleted_log(tmp_path):
    """Rule 7: (N, its end) is (N+1, 0): the deleted log N is not needed."""
    one = put(tmp_path, 1, "alpha", 2)
    put(tmp_path, 2, "b", 1, one)
    os.unlink(tmp_path / "log-000000001-alpha")
    assert chain(tmp_path, LogPos(1, "alpha", one.end)) == [("2-b", None)]
    for at in (LogPos(1, "alpha", 8192), LogPos(1, "b", one.end), LogPos(9, "alpha", 0)):
        with pytest.raises(NotFoundError, match=f"{at.log} is missing"):
            chain(tmp_path, at)


def test_missing_log_in_the_middle_is_named(tmp_path):
    one = put(tmp_path, 1, "alpha", 2)
    two = put(tmp_path, 2, "alpha", 2, one)
    put(tmp_path, 3, "alpha", 2, two)
    os.unlink(tmp_path / "log-000000002-alpha")
    with pytest.raises(NotFoundError, match="log-000000002-alpha is missing: log-000000003-alpha follows it"):
        chain(tmp_path, LogPos(1, "alpha", 0))


def test_two_successors_have_parted(tmp_path):
    one = put(tmp_path, 1, "alpha", 2)
    put(tmp_path, 2, "alpha", 0, one)
    put(tmp_path, 2, "b", 2, one, pred_end=one.ends[1])
    assert chain(tmp_path, LogPos(1, "alpha", 0)) == [("1-alpha", one.ends[1]), ("2-b", None)]
    two = put(tmp_path, 2, "alpha", 1, one)
    with pytest.raises(DamagedError, match="continue it differently"):
        chain(tmp_path, LogPos(1, "alpha", 0))
    put(tmp_path, 3, "alpha", 1, two)
    with pytest.raises(DamagedError, match="log-000000002-alpha does not continue log-000000002-b"):
        chain(tmp_path, LogPos(2, "b", 0))


def test_bad_header_in_a_chain_is_an_error(tmp_path):
    one = put(tmp_path, 1, "alpha", 2)
    put(tmp_path, 2, "alpha", 1, one)
    with open(tmp_path / "log-000000002-alpha", "r+b") as file:
        os.pwrite(file.fileno(), b"\1", 400)
    with pytest.raises(DamagedError, match="log-000000002-alpha: the CRC of the log's header"):
        chain(tmp_path, LogPos(1, "alpha", 0))
