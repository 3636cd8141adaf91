"""The I/O layer itself: what it records is what happened, each fault arrives as the system would bring it."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fault import iolayer
from tests.fault.iolayer import Rules, environment, read_record

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def library() -> Path:
    return iolayer.build()


@pytest.fixture
def run(library, tmp_path):
    """run(code) -> what the code printed, run in tmp_path/d under the layer, recorded, with the rules given before."""
    rules = Rules(tmp_path / "rules")
    folder = tmp_path / "d"
    folder.mkdir()

    def call(code: str, *lines: str, status: int = 0) -> str:
        rules.set(*lines)
        env = environment(library, rules=rules.path, record=tmp_path / "record", roots=[folder])
        done = subprocess.run([sys.executable, "-c", "import os, errno\n" + code], cwd=folder, text=True,
                              env={**os.environ, **env, "PYTHONPATH": str(TOP)}, capture_output=True, timeout=60)
        assert done.returncode == status, done.stderr
        return done.stdout.strip()

    call.rules = rules
    call.record = lambda: list(read_record(tmp_path / "record"))
    return call


def test_record_of_files(run):
    """Every kind of operation, with its bytes, its file and its result; nothing of files elsewhere."""
    run("""
fd = os.open("f", os.O_RDWR | os.O_CREAT, 0o600)
os.pwrite(fd, b"abc", 5); os.write(fd, b"01"); os.writev(fd, [b"x", b"yz"]); os.pwritev(fd, [b"p", b"q"], 9)
os.posix_fallocate(fd, 0, 4096); os.ftruncate(fd, 100); os.fdatasync(fd); os.fsync(fd)
os.link("f", "g"); os.unlink("f"); os.pwrite(fd, b"late", 0)
os.symlink("value", "l.new"); os.utime("l.new", ns=(7, 8), follow_symlinks=False); os.rename("l.new", "l")
os.truncate("g", 3); os.mkdir("sub"); d = os.open(".", os.O_RDONLY); os.fsync(d); os.rmdir("sub")
open("/dev/null", "wb", buffering=0).write(b"elsewhere")
try: os.unlink("none")
except OSError: pass
""")
    record = run.record()
    issues = [e for e in record if not e.end]
    ends = {e.key: e for e in record if e.end}
    assert [e.op for e in issues] == [
        "open", "write", "write", "write", "write", "fallocate", "truncate", "fdatasync", "fsync", "link", "unlink",
        "write", "symlink", "utime", "rename", "truncate", "mkdir", "open", "fsync", "rmdir", "unlink"]
    assert set(ends) == {e.key for e in issues}
    writes = [(e.off, e.data) for e in issues if e.op == "write"]
    assert writes == [(5, b"abc"), (0, b"01"), (2, b"xyz"), (9, b"pq"), (0, b"late")]
    assert ends[issues[0].key].ino == issues[1].ino == issues[11].ino and issues[0].len == 1
    assert ends[issues[-1].key].result == -2
    assert [(e.len, e.ino) for e in issues if e.op == "truncate"] == [(100, issues[1].ino), (3, issues[1].ino)]
    link = next(e for e in issues if e.op == "symlink")
    assert link.path == "value" and link.path2.endswith("/d/l.new")
    assert next(e for e in issues if e.op == "utime").off == 8
    assert next(e for e in issues if e.op == "fallocate").len == 4096


def test_record_of_the_extensions(run):
    """The append engine's O_DIRECT writes, the window's asynchronous ones, syncfs by ctypes: all are seen."""
    run("""
from tests.fix_volume import Rig
from pathlib import Path
from marsx.base import durable
rig = Rig(Path(os.getcwd()), 1 << 20)
rig.write(4096, b"v" * 512); rig.zero(8192, 4096); rig.volume.sync_now(); rig.write_back(); rig.close()
durable.sync_fs(".")
""")
    record = run.record()
    named = {e.ino: e for e in record if e.op == "open" and e.end}
    writes = [e for e in record if e.op == "write" and not e.end]
    ends = {e.key: e.result for e in record if e.end}
    assert all(ends[e.key] == e.len for e in writes)
    group = next(e for e in writes if e.data[:8] == b"MARSXGRP")
    assert group.off == 4096 and group.ino in named
    back = next(e for e in writes if e.off == 4096 and e.data == b"v" * 512)
    assert "disk" in back.path
    assert [e.off for e in record if e.op == "zero" and not e.end] == [8192]
    syncs = [e.op for e in record if not e.end and e.op in ("fdatasync", "fsync", "syncfs")]
    assert "fdatasync" in syncs and "fsync" in syncs and syncs[-1] == "syncfs"


def test_errors_by_count(run):
    """nth, from and every; the error arrives, the file is untouched by it, and hits() tells."""
    out = run("""
fd = os.open("f", os.O_RDWR | os.O_CREAT)
def attempt(call, *a):
    try: call(*a); return "ok"
    except OSError as e: return errno.errorcode[e.errno]
print([attempt(os.pwrite, fd, b"x", i) for i in range(4)], [attempt(os.fdatasync, fd) for i in range(4)],
      [attempt(os.symlink, "t", f"s{i}") for i in range(4)], [attempt(os.posix_fallocate, fd, 0, 99)],
      os.fstat(fd).st_size)
""", "write */d/f nth=2 EIO", "fdatasync */f from=3 EIO", "symlink */s* every=2 EDQUOT", "fallocate * ENOSPC")
    assert out == ("['ok', 'EIO', 'ok', 'ok'] ['ok', 'ok', 'EIO', 'EIO'] ['ok', 'EDQUOT', 'ok', 'EDQUOT'] ['ENOSPC'] 4")
    assert [hit[0] for hit in run.rules.hits()] == [1, 2, 2, 3, 3, 4]


def test_rules_of_a_running_program(run, tmp_path):
    """The file is read again when it changed; a trigger file switches a rule; an unchanged line keeps its count."""
    out = run(f"""
from tests.fault.iolayer import Rules
fd = os.open("f", os.O_RDWR | os.O_CREAT)
def attempt():
    try: os.pwrite(fd, b"x", 0); return 0
    except OSError as e: return e.errno
rules, found = Rules({str(tmp_path / "rules")!r}), [attempt()]
rules.set("write */d/f nth=3 EIO"); found += [attempt(), attempt()]
rules.set("# more", "write */d/f nth=3 EIO"); found += [attempt(), attempt()]
rules.set("write */d/f if={tmp_path}/trigger ENOSPC"); found.append(attempt())
open("{tmp_path}/trigger", "w").close(); found.append(attempt())
os.unlink("{tmp_path}/trigger"); found.append(attempt()); print(found)
""")
    assert out == "[0, 0, 0, 5, 0, 0, 28, 0]"


def test_asynchronous_writes_fail(run):
    """A native asynchronous write fails as a disk does: by its event; the window reports it."""
    out = run("""
from tests.fix_volume import Rig
from pathlib import Path
rig = Rig(Path(os.getcwd()), 1 << 20)
rig.write(4096, b"v" * 512); rig.write(65536, b"w" * 512); rig.volume.sync_now()
try: rig.write_back(); print("no error")
except OSError as e: print(e.errno)
rig.close()
""", "write */disk nth=2 EIO")
    assert out == "5"
    assert [hit[2] for hit in run.rules.hits()] == ["write"]


def test_kill_and_short(run):
    """kill ends the process before the operation, kill-after behind it; a short write writes just so much."""
    run("fd = os.open('f', os.O_RDWR | os.O_CREAT)\nfor i in range(9): os.pwrite(fd, b'x' * 8, 8 * i)",
        "write */d/f nth=3 kill-after", "write */d/f nth=2 short=5", status=-9)
    run("os.symlink('a', 'one'); os.symlink('b', 'two')", "symlink */two kill", status=-9)
    sizes = [e.result for e in run.record() if e.op == "write" and e.end]
    assert sizes == [8, 5, 8]
    assert [e.path2[-3:] for e in run.record() if e.op == "symlink" and not e.end] == ["one"]


def test_a_bad_sector(run):
    """Reads that touch it fail, all others do not; who writes there makes it sound, for other processes too."""
    out = run("""
fd = os.open("f", os.O_RDWR | os.O_CREAT); os.pwrite(fd, bytes(8192), 0)
from tests.fault.iolayer import Rules
Rules(os.environ["MARS_IO_RULES"]).set("read */d/f sector=4096 EIO")
def attempt(off, n):
    try: return len(os.pread(fd, n, off))
    except OSError as e: return -e.errno
buf = bytearray(8192)
def vector():
    try: return os.preadv(fd, [buf], 0)
    except OSError as e: return -e.errno
def at(off):
    os.lseek(fd, off, 0)
    try: return len(os.read(fd, 512))
    except OSError as e: return -e.errno
print([attempt(*x) for x in ((0, 4096), (0, 4097), (4096, 1), (4607, 1), (4608, 512), (0, 8192))], vector(),
      at(4096), at(4608), end=" ")
os.pwrite(fd, b"x" * 512, 4608); print(attempt(4096, 512), end=" ")
os.pwrite(fd, b"x" * 512, 4096); print(attempt(4096, 512), vector())
""")
    assert out == "[4096, -5, -5, -5, 512, -5] -5 -5 512 -5 512 8192"
    assert run("print(len(os.pread(os.open('f', os.O_RDONLY), 512, 4096)))", "read */d/f sector=4096 EIO") == "512"


def test_delays(run):
    """A delay, or one drawn from a range, lies between issue and end: what others do meanwhile stands in between."""
    out = run("""
import threading, time
fd, other = os.open("f", os.O_RDWR | os.O_CREAT), os.open("g", os.O_RDWR | os.O_CREAT)
slow = threading.Thread(target=os.fdatasync, args=(fd,)); begin = time.monotonic(); slow.start()
time.sleep(0.05); os.pwrite(other, b"x", 0); slow.join(); print(time.monotonic() - begin >= 0.25)
begin = time.monotonic()
for _ in range(20): os.pwrite(fd, b"y", 0)
print(time.monotonic() - begin >= 0.1)
""", "fdatasync */d/f delay=250", "write */d/f delay=5..9.5")
    assert out.split() == ["True", "True"]
    assert [(e.op, e.end) for e in run.record() if e.op != "open"][:4] == [
        ("fdatasync", False), ("write", False), ("write", True), ("fdatasync", True)]


def test_a_wrong_rule_is_loud(run):
    """A rule that is not understood must not pass for a fault that was survived."""
    run("os.open('f', os.O_RDWR | os.O_CREAT)", "write * EOI", status=-6)
    run("os.open('f', os.O_RDWR | os.O_CREAT)", "writ * EIO", status=-6)
    run("os.open('f', os.O_RDWR | os.O_CREAT)", "write * delay=9..8", status=-6)
