"""The I/O layer: records what files receive, or delays and fails it, under a program that knows nothing of it.

`build()` compiles `tests/fault/iolayer.c` into a library for LD_PRELOAD; `environment()` says what the program needs.
It stands between the program and libc, so the product has no hooks. Both uses may be combined.

**Rules** (`Rules`): a file, one rule a line, looked at before every operation, so a daemon that runs can be hit:

    OPERATIONS PATTERN [nth=N | from=N | every=N] [p=0.1] [if=FILE] [unless=FILE] [least=BYTES] ACTION...

    write,fdatasync */log-0* from=3 EIO        from the third matching operation on
    write */data.img nth=7 delay=0..20 EIO     only the seventh; slowly (milliseconds, drawn from the range)
    write,fallocate /mars/* if=/tmp/full ENOSPC while the file is there
    read */log-* sector=8192 EIO               the 512 bytes there cannot be read, until somebody writes there
    write /dev/loop7 least=16384 delay=0..90   large writes alone
    write */log-* nth=5 short=512              a short write;  kill, kill-after: SIGKILL before or after the operation

Operations: write (also pwrite, writev, native asynchronous ones), read, fdatasync, fsync, syncfs, fallocate, zero (hole
punching, BLKZEROOUT, BLKDISCARD), truncate, open, rename, link, unlink, symlink, mkdir, rmdir, utime. PATTERN is that
of fnmatch(3), in which `*` also matches `/`, against the absolute path as the program sees it (of two names: either). A
file that was opened under another name keeps that: a log that is being made is `.tmp.PID.ID.log-NNNNNNNNN-HOST`, and
its descriptor is named so for as long as it is open, so write `*log-0*`. All rules that match act. Counts are per
process and rule, and go on when other lines change. Every error, kill or short write is noted: `Rules.hits()`.
A rule that is not understood ends the process. A delay lies between issue and end, an operation that a rule fails is
not recorded.

**Record** (`read_record`): what files below the roots receive, an entry at the issue and one at the end of each
operation, in the order in which they happened in all threads and processes; a write's bytes are those at its issue.

What it cannot see: statically linked programs, io_uring, stores into mapped files, calls that libc makes inside itself
(stdio's buffers; Python's own files do not use them), what the kernel does on behalf of others (the loop driver's
writes to its backing file, FUSE), close(2) and rename flags. The end of an asynchronous write is seen when it is
fetched, later than it was; that only widens the time in which it counts as not finished. A short asynchronous write
cannot be made, and a delay delays its submission. In a process that outlives it, environment variables are all that
switches it on; children inherit them.
"""
from __future__ import annotations

import hashlib
import os
import struct
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = ("iolayer.c", "iorules.h", "iorecord.h", "ioaio.h")
OPS = ("write", "fdatasync", "fsync", "syncfs", "fallocate", "zero", "truncate", "open", "rename", "link", "unlink",
       "symlink", "mkdir", "rmdir", "utime", "read")
_ENTRY = struct.Struct("<IHHIIQqQQQQIIII")


def build(directory: str | Path = "") -> Path:
    """The compiled layer (made once per version of its sources). RuntimeError when the compiler says no."""
    folder = Path(directory) if directory else HERE.parents[1] / "build"
    folder.mkdir(exist_ok=True)
    version = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in SOURCES)).hexdigest()[:12]
    target = folder / f"iolayer-{version}.so"
    if not target.exists():
        temp = folder / f"{target.name}.{os.getpid()}"
        done = subprocess.run(["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
                               str(HERE / "iolayer.c"), "-o", str(temp), "-ldl"], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the I/O layer does not compile:\n{done.stderr}")
        temp.replace(target)
    return target


def environment(library: Path, *, rules: str | Path = "", record: str | Path = "",
                roots: Iterable[str | Path] = (), seed: int = 0) -> dict[str, str]:
    """Variables that put a program under the layer. `rules`, `record`: paths as the program sees them."""
    found = {"LD_PRELOAD": str(library), "MARS_IO_SEED": str(seed)}
    if rules:
        found["MARS_IO_RULES"] = str(rules)
    if record:
        found["MARS_IO_RECORD"] = str(record)
        found["MARS_IO_ROOTS"] = ":".join(str(root) for root in roots)
    return found


class Rules:
    """The rules file of a program under the layer. `set()` takes force with its next operation."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.set()

    def set(self, *lines: str) -> None:
        """These rules and no others."""
        temp = self.path.with_name(self.path.name + ".new")
        temp.write_text("".join(f"{line}\n" for line in lines))
        temp.replace(self.path)

    def hits(self) -> list[tuple[int, int, str, str]]:
        """(line, process, operation, path) of every fault that was made, in order; delays are not listed."""
        try:
            lines = Path(f"{self.path}.hits").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            number, pid, op, path = line.split(" ", 3)
            found.append((int(number), int(pid), op, path))
        return found


@dataclass(frozen=True, slots=True)
class Entry:
    """Issue (`end` is False) or end of one operation. `key` joins the two. `result`: of an end, -errno on failure.

    write: off (None: appended), len, data. fallocate, zero: off, len, mode. truncate: len is the size. open: off = the
    flags, len = 1 if it was to make the file; dev and ino stand in its end. symlink: path is the target's text, path2
    the link. utime: off = the time in ns.
    """

    op: str
    end: bool
    key: tuple[int, int]
    tid: int
    result: int
    dev: int
    ino: int
    off: int | None
    len: int
    mode: int
    path: str
    path2: str
    data: bytes


def read_record(path: str | Path) -> Iterator[Entry]:
    """The entries of a record. A last one that is not whole (its writer was killed) is left out."""
    raw = Path(path).read_bytes()
    at = 0
    while at + _ENTRY.size <= len(raw):
        (size, op, phase, pid, tid, number, result, dev, ino, off, length, mode, path_len, path2_len,
         data_len) = _ENTRY.unpack_from(raw, at)
        if at + size > len(raw):
            return
        texts = at + _ENTRY.size
        one, two = texts + path_len, texts + path_len + path2_len
        yield Entry(OPS[op], bool(phase), (pid, number), tid, result, dev, ino, None if off == 2**64 - 1 else off,
                    length, mode, os.fsdecode(raw[texts:one]), os.fsdecode(raw[one:two]), raw[two:two + data_len])
        at += size
