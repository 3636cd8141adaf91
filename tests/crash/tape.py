"""A record of file operations as a tape: what was issued and ended when, on which file or name.

Times are indices of the record's entries: an operation is issued at `issue` and over at `end` (NEVER: not in this
record). `gone`: from there on it is known that it never happened (its process was killed with the call under way).

A file is an object of its own; names come and go (`NameOp`). A name operation is a set of changes {name: object or
None} of one directory that become true together. A sync covers what had ended before it was issued.
"""
from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.fault.iolayer import Entry

NEVER = 1 << 60
INLINE_MAX = 59                     # see marsx/base/durable.py: longer link targets are covered by syncfs only


@dataclass(slots=True, eq=False)
class File:
    """A regular file; `first`: its contents before the record."""

    number: int
    first: bytes = b""


@dataclass(slots=True, frozen=True, eq=False)
class Link:
    """A symlink that got its value and its stamp before its name."""

    value: str


@dataclass(slots=True, frozen=True, eq=False)
class Folder:
    """A directory, by its path below the root."""

    path: str


Thing = File | Link | Folder


@dataclass(slots=True, eq=False)
class FileOp:
    """kind: write (data at off), zero (len at off), space (size at least off + len), size (len)."""

    kind: str
    file: File
    off: int
    len: int
    data: bytes
    issue: int
    end: int = NEVER
    gone: int = NEVER


@dataclass(slots=True, eq=False)
class NameOp:
    """`whole`: only syncfs makes it durable (a long link target)."""

    folder: str
    changes: dict[str, Thing | None]
    issue: int
    end: int = NEVER
    gone: int = NEVER
    whole: bool = False


@dataclass(slots=True, eq=False)
class Sync:
    """Of a file, of a directory, or (neither) of the whole tree's file system. The data device is not part of it."""

    issue: int
    end: int = NEVER
    file: File | None = None
    folder: str | None = None


@dataclass(slots=True)
class Mark:
    """A line of the ledger."""

    at: int
    words: list[str]


@dataclass
class Tape:
    """See the module. `kills`: where a process was ended by SIGKILL (or ended by itself), in order."""

    length: int = 0
    files: list[File] = field(default_factory=list)
    first_names: dict[str, dict[str, Thing]] = field(default_factory=dict)
    file_ops: list[FileOp] = field(default_factory=list)
    name_ops: list[NameOp] = field(default_factory=list)
    syncs: list[Sync] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    kills: list[int] = field(default_factory=list)
    disk: File | None = None


class Parser:
    """Entries -> Tape. `root`: the host. Files that are there already are known by inode; the rest by their making."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.tape = Tape()
        self.by_inode: dict[int, File] = {}
        self.names: dict[str, dict[str, Thing]] = {}       # as the program sees them, everything applied
        self.open: dict[tuple[int, int], list[FileOp | NameOp | Sync]] = {}
        self.opening: dict[tuple[int, int], tuple[Entry, int]] = {}
        self._survey("")
        self.tape.first_names = {folder: dict(names) for folder, names in self.names.items()}

    def _survey(self, folder: str) -> None:
        """What is there before the record."""
        self.names[folder] = {}
        for entry in os.scandir(os.path.join(self.root, folder)):
            rel = os.path.join(folder, entry.name)
            if entry.is_symlink():
                self.names[folder][entry.name] = Link(os.readlink(entry.path))
            elif entry.is_dir():
                self.names[folder][entry.name] = Folder(rel)
                self._survey(rel)
            else:
                with open(entry.path, "rb") as file:
                    made = self._file(entry.inode(), file.read())
                self.names[folder][entry.name] = made
                if rel == "disk":
                    self.tape.disk = made

    def _file(self, inode: int, first: bytes = b"") -> File:
        made = File(len(self.tape.files), first)
        self.tape.files.append(made)
        self.by_inode[inode] = made
        return made

    def add(self, entries: Iterable[Entry]) -> None:
        """The next entries of the record."""
        for entry in entries:
            self._end(entry) if entry.end else self._issue(entry)
            self.tape.length += 1

    # ---- issues ----

    def _issue(self, e: Entry) -> None:
        now = self.tape.length
        if e.op in ("write", "zero", "fallocate", "truncate"):
            self._issue_bytes(e, now)
        elif e.op in ("fdatasync", "fsync", "syncfs"):
            self._add(e.key, Sync(now, file=self.by_inode.get(e.ino) if e.op != "syncfs" else None,
                                  folder=self._rel(e.path) if e.op == "fsync" and e.ino not in self.by_inode else None))
        elif e.op == "open":
            self.opening[e.key] = e, now
        else:
            self._issue_names(e, now)

    def _issue_bytes(self, e: Entry, now: int) -> None:
        if e.off is None:
            self.tape.marks += [Mark(now, line.split()) for line in e.data.decode().splitlines()]
            return
        file = self.by_inode[e.ino]
        kind = {"write": "write", "zero": "zero", "truncate": "size", "fallocate": "space"}[e.op]
        self._add(e.key, FileOp(kind, file, e.off, e.len, e.data, now))

    def _issue_names(self, e: Entry, now: int) -> None:
        """What the call will change, if it succeeds."""
        path = self._rel(e.path2 if e.op in ("symlink", "rename", "link") else e.path)
        folder, name = os.path.split(path)
        here = self.names.get(folder, {})
        if e.op == "symlink":
            self._name_op(e, now, folder, {name: Link(e.path)})
        elif e.op in ("rename", "link"):
            old_folder, old = os.path.split(self._rel(e.path))
            assert old_folder == folder, f"{e.op} between directories: {e.path} -> {e.path2}"
            if old in here:
                changes: dict[str, Thing | None] = {name: here[old]}
                self._name_op(e, now, folder, changes | ({old: None} if e.op == "rename" else {}))
        elif e.op in ("unlink", "rmdir"):
            self._name_op(e, now, folder, {name: None})
        elif e.op == "mkdir":
            self._name_op(e, now, folder, {name: Folder(path)})
        else:
            assert e.op == "utime", f"{e.op} is not known to the model"

    def _name_op(self, e: Entry, now: int, folder: str, changes: dict[str, Thing | None]) -> None:
        whole = any(isinstance(t, Link) and len(t.value.encode()) > INLINE_MAX for t in changes.values())
        self._add(e.key, NameOp(folder, changes, now, whole=whole))

    def _add(self, key: tuple[int, int], op: FileOp | NameOp | Sync) -> None:
        self.open.setdefault(key, []).append(op)

    def _rel(self, path: str) -> str:
        return os.path.relpath(path, self.root).replace(".", "", 1) if path == self.root else \
            os.path.relpath(path, self.root)

    # ---- ends ----

    def _end(self, e: Entry) -> None:
        if e.key in self.opening:
            self._opened(e, *self.opening.pop(e.key))
            return
        for op in self.open.pop(e.key, ()):
            if e.result < 0:
                continue
            if isinstance(op, FileOp) and op.kind == "write":
                assert e.result == op.len, f"a short write of {e.result} bytes is not known to the model"
            op.end = self.tape.length
            self._keep(op)

    def _opened(self, e: Entry, issue: Entry, at: int) -> None:
        if e.result < 0:
            return
        folder, name = os.path.split(self._rel(issue.path))
        now = self.tape.length
        if issue.len:
            made = self._file(e.ino)
            self._keep(NameOp(folder, {name: made}, at, now))
        elif (issue.off or 0) & os.O_TRUNC and e.ino in self.by_inode:
            self._keep(FileOp("size", self.by_inode[e.ino], 0, 0, b"", at, now))

    def _keep(self, op: FileOp | NameOp | Sync) -> None:
        """It happened."""
        if isinstance(op, FileOp):
            self.tape.file_ops.append(op)
        elif isinstance(op, Sync):
            self.tape.syncs.append(op)
        else:
            self.tape.name_ops.append(op)
            self._apply(op)

    def _apply(self, op: NameOp) -> None:
        here = self.names.setdefault(op.folder, {})
        for name, thing in op.changes.items():
            here.pop(name, None)
            if thing is not None:
                here[name] = thing
                if isinstance(thing, Folder):
                    self.names.setdefault(thing.path, {})

    # ---- the end of a process ----

    def killed(self) -> None:
        """The process is gone. What it had under way has happened, has not, or has in part: the files tell."""
        now = self.tape.length
        left = [op for ops in self.open.values() for op in ops]
        for issue, at in self.opening.values():
            self._killed_open(issue, at, now)
        self.open, self.opening = {}, {}
        contents = replayed(self.tape)
        for op in sorted((op for op in left if not isinstance(op, Sync)), key=lambda op: op.issue):
            if isinstance(op, NameOp):
                self._killed_name(op, now)
            else:
                op.gone = now
                self.tape.file_ops.append(op)
        for path, file in self.all_files():
            with open(os.path.join(self.root, path), "rb") as real:
                self._catch_up(file, contents.get(file, b""), real.read(), now)
        self.tape.kills.append(now)
        self.tape.length += 1
        self.check()

    def _killed_open(self, issue: Entry, at: int, now: int) -> None:
        folder, name = os.path.split(self._rel(issue.path))
        if issue.len and name not in self.names.get(folder, {}) and os.path.lexists(issue.path):
            made = self._file(os.lstat(issue.path).st_ino)
            self._keep(NameOp(folder, {name: made}, at, now))

    def _killed_name(self, op: NameOp, now: int) -> None:
        path = os.path.join(self.root, op.folder)
        name, thing = next(iter(op.changes.items()))
        there = os.path.lexists(os.path.join(path, name))
        if isinstance(thing, Link):
            there = there and os.readlink(os.path.join(path, name)) == thing.value
        if there == (thing is not None):
            op.end = now
            self._keep(op)
        else:
            op.gone = now
            self.tape.name_ops.append(op)

    def _catch_up(self, file: File, have: bytes, real: bytes, now: int) -> None:
        """Operations that make the model's file the real one."""
        if len(have) != len(real):
            self._keep(FileOp("size", file, 0, len(real), b"", now, now))
        have = have[:len(real)].ljust(len(real), b"\0")
        for at in range(0, len(real), 4096):
            if have[at:at + 4096] != real[at:at + 4096]:
                self._keep(FileOp("write", file, at, len(real[at:at + 4096]), real[at:at + 4096], now, now))

    def all_files(self) -> list[tuple[str, File]]:
        """(path, file) of all names of regular files, but the ledger."""
        return [(os.path.join(folder, name), thing) for folder, names in self.names.items()
                for name, thing in names.items() if isinstance(thing, File) and name != "marks"]

    def check(self) -> None:
        """The record is whole: everything applied gives just what is there."""
        contents = replayed(self.tape)
        seen = {}
        for folder, names in self.names.items():
            path = os.path.join(self.root, folder)
            if not os.path.isdir(path):
                continue
            assert sorted(names) == sorted(os.listdir(path)), f"names in {path} are not those of the record"
            for name, thing in names.items():
                whole = os.path.join(path, name)
                if isinstance(thing, Link):
                    assert os.readlink(whole) == thing.value, whole
                elif isinstance(thing, File) and name != "marks":
                    seen[whole] = thing
        for whole, file in seen.items():
            with open(whole, "rb") as real:
                assert real.read() == contents[file], f"{whole} does not hold what the record says"


def change(buf: bytearray, op: FileOp) -> None:
    """One operation on a file's contents."""
    if op.kind == "size":
        del buf[op.len:]
        buf.extend(bytes(max(0, op.len - len(buf))))
        return
    end = op.off + op.len
    if op.kind != "zero" and len(buf) < end:
        buf.extend(bytes(end - len(buf)))
    if op.kind == "write":
        buf[op.off:end] = op.data
    elif op.kind == "zero" and op.off < len(buf):
        end = min(end, len(buf))
        buf[op.off:end] = bytes(end - op.off)


def replayed(tape: Tape) -> dict[File, bytes]:
    """Contents of all files with everything applied that is known to have happened, in the order of the ends."""
    found = {file: bytearray(file.first) for file in tape.files}
    for op in sorted((op for op in tape.file_ops if op.end < NEVER), key=lambda op: op.end):
        change(found[op.file], op)
    return {file: bytes(buf) for file, buf in found.items()}
