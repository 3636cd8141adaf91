"""The states that a crash can leave, made from a tape.

**A power cut** at time k keeps what a sync has covered that ended before k and was issued after the operation ended.
Of everything else, ended or under way, any subset may be there:

* a write: all of it, nothing, a beginning or an end of it, any of its sectors (512) or pages (4096); where nothing of
  it is there, the file may have grown all the same, and space that was never written may hold zeros, rubbish, or what
  an older log left there. Writes to one place keep their order. On the data device what is not written is old;
* a change of size or space: there or not;
* a name (new file, link, rename, removal, symlink): there or not, each for itself, or a beginning of them as a journal
  keeps it; covered by fsync of its directory, but a long symlink by syncfs only (see `marsx/base/durable.py`). The data
  of a file and its name do not cover each other.

**A kill** of the process keeps all that has ended, and any part of what is under way.

A state is found again by (seed, cut, number): number 0 keeps nothing, 1 everything, then come all subsets when they are
few, then seeded choice.
"""
from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from marsx._ext import marssum
from tests.crash.host import RESOURCE
from tests.crash.tape import NEVER, File, FileOp, Link, NameOp, Sync, Tape, Thing, change

LOGS = f"resource-{RESOURCE}"
ALL_SUBSETS = 4                     # up to so many operations all subsets are made
SECTOR, PAGE = 512, 4096


@dataclass
class State:
    """What is there after the crash. `partial`: operations of which not everything is there."""

    cut: int
    number: int
    power: bool
    logs: dict[str, bytes]
    disk: bytes
    links: dict[str, str]           # by their path in the tree
    hint: bytes | None
    partial: int
    key: bytes = b""


@dataclass(slots=True)
class FileState:
    """A file on its way along the tape: `base` is what no crash can take, then the operations behind it."""

    file: File
    base: bytearray
    pending: list[FileOp] = field(default_factory=list)
    covered: set[FileOp] = field(default_factory=set)
    whole: tuple[bytes, bytes] | None = None                # contents and their digest while nothing is pending


@dataclass(slots=True)
class FolderState:
    """The same for the names of a directory."""

    base: dict[str, Thing]
    pending: list[NameOp] = field(default_factory=list)
    covered: set[NameOp] = field(default_factory=set)


class Walk:
    """Steps along the tape; `states()` makes the states of the present moment."""

    def __init__(self, tape: Tape, seed: int) -> None:
        self.tape, self.seed, self.now = tape, seed, 0
        self.files = {file: FileState(file, bytearray(file.first)) for file in tape.files}
        self.folders = {folder: FolderState(dict(names)) for folder, names in tape.first_names.items()}
        self.begins: dict[int, list[FileOp | NameOp | Sync]] = {}
        self.ends: dict[int, list[FileOp | NameOp | Sync]] = {}
        for op in [*tape.file_ops, *tape.name_ops, *tape.syncs]:
            self.begins.setdefault(op.issue, []).append(op)
            self.ends.setdefault(min(op.end, getattr(op, "gone", NEVER)), []).append(op)

    def changes_next(self) -> bool:
        """Will the next entry change the possible states, or is there none?"""
        return self.now in self.begins or self.now in self.ends or self.now >= self.tape.length

    def step(self) -> None:
        """One entry of the tape."""
        begins, ends = self.begins.get(self.now, ()), self.ends.get(self.now, ())
        for op in begins:
            if isinstance(op, FileOp):
                self.files[op.file].pending.append(op)
            elif isinstance(op, NameOp):
                self.folders.setdefault(op.folder, FolderState({})).pending.append(op)
        for op in ends:
            if isinstance(op, Sync):
                self._synced(op)
            elif op.end == NEVER:
                self._forget(op)
        self.now += 1

    def _forget(self, op: FileOp | NameOp) -> None:
        where = self.files[op.file] if isinstance(op, FileOp) else self.folders[op.folder]
        where.pending.remove(op)                            # type: ignore[arg-type]

    def _synced(self, sync: Sync) -> None:
        everywhere = sync.file is None and sync.folder is None
        for state in self.files.values() if everywhere else [self.files[sync.file]] if sync.file else []:
            if not everywhere or state.file is not self.tape.disk:
                state.covered.update(op for op in state.pending if op.end < sync.issue)
                while state.pending and state.pending[0] in state.covered:
                    change(state.base, state.pending[0])
                    state.covered.discard(state.pending.pop(0))
                    state.whole = None
        for name, folder in self.folders.items():
            if everywhere or name == sync.folder:
                folder.covered.update(op for op in folder.pending
                                      if op.end < sync.issue and (everywhere or not op.whole))
                while folder.pending and folder.pending[0] in folder.covered:
                    _rename(folder.base, folder.pending[0])
                    folder.covered.discard(folder.pending.pop(0))

    # ---- states ----

    def open_ops(self, power: bool) -> tuple[list[FileOp], list[NameOp]]:
        """What may be there or not."""
        data = [op for state in self.files.values() for op in state.pending
                if op not in state.covered and (power or op.end >= self.now)]
        names = [op for folder in self.folders.values() for op in folder.pending
                 if op not in folder.covered and (power or op.end >= self.now)]
        return data, names

    def states(self, budget: int, power: bool) -> Iterator[State]:
        """At most so many states of this moment: the two simple ones, and a choice of the others. Moments that differ
        little follow each other, so that together they come near to all."""
        data, names = self.open_ops(power)
        others = range(2, _subsets(data) + budget)
        chosen = random.Random(f"{self.seed}.{self.now}.{power}").sample(others, min(max(0, budget - 2), len(others)))
        for number in (0, 1, *sorted(chosen)) if data or names else (0,):
            yield self.state(number, power, data, names)

    def state(self, number: int, power: bool, data: list[FileOp], names: list[NameOp]) -> State:
        """State `number` of this moment."""
        return self._build(number, power, *self._chosen(number, power, data, names))

    def _chosen(self, number: int, power: bool, data: list[FileOp],
                names: list[NameOp]) -> tuple[dict[FileOp, str], set[NameOp], random.Random]:
        rng = random.Random(f"{self.seed}.{self.now}.{number}.{power}")
        if number < _subsets(data):
            mask = {0: 0, 1: (1 << len(data)) - 1}.get(number, number - 1)
            there = {op: "full" if mask >> i & 1 else "none" for i, op in enumerate(data)}
        else:
            there = _choice(data, rng)
        return there, _names(names, number, rng), rng

    def restore(self, root: str, number: int) -> None:
        """Make the host at `root` what a power cut at this moment leaves: all of it, not only what recovery reads."""
        there, named, rng = self._chosen(number, True, *self.open_ops(True))
        contents: dict[File, bytes] = {}
        shutil.rmtree(os.path.join(root, "mars"))
        for path, folder in sorted(self.folders.items()):
            if path and not os.path.isdir(os.path.join(root, os.path.dirname(path))):
                continue                                    # its name was lost
            os.makedirs(os.path.join(root, path), exist_ok=True)
            for name, thing in sorted(self._folder(folder, named, True).items()):
                whole = os.path.join(root, path, name)
                if isinstance(thing, Link):
                    os.symlink(thing.value, whole)
                elif isinstance(thing, File) and name != "marks":
                    if thing not in contents:
                        contents[thing] = self._contents(self.files[thing], there, True, rng)[0]
                    with open(whole, "wb") as file:
                        file.write(contents[thing])

    def _build(self, number: int, power: bool, there: dict[FileOp, str], named: set[NameOp],
               rng: random.Random) -> State:
        tree = {path: self._folder(folder, named, power) for path, folder in self.folders.items()}
        key: list[bytes] = []

        def contents(thing: Thing | None) -> bytes | None:
            if not isinstance(thing, File):
                return None
            data, digest = self._contents(self.files[thing], there, power, rng)
            key.append(digest)
            return data

        logs, links = {}, {}
        for path, names in sorted(tree.items()):
            for name, thing in sorted(names.items()):
                if isinstance(thing, Link) and not name.startswith("."):
                    links[os.path.join(path, name).removeprefix("mars/")] = thing.value
                elif name.startswith("log-") and path == f"mars/{LOGS}":
                    logs[name] = contents(thing) or b""
                    key.append(name.encode())
        local = next((path for path in tree if path.startswith("mars/local-")), "")
        hint = contents(tree.get(local, {}).get(f"position-{RESOURCE}"))
        disk = contents(self.tape.disk)
        key.append(repr(sorted(links.items())).encode())
        not_whole = sum(what != "full" for what in there.values())
        return State(self.now, number, power, logs, disk or b"", links, hint, not_whole,
                     marssum.xxh3_128(b"".join(key)))

    def _folder(self, folder: FolderState, named: set[NameOp], power: bool) -> dict[str, Thing]:
        if not folder.pending:
            return folder.base
        names = dict(folder.base)
        for op in folder.pending:
            if op in named or op in folder.covered or (not power and op.end < self.now):
                _rename(names, op)
        return names

    def _contents(self, state: FileState, there: dict[FileOp, str], power: bool,
                  rng: random.Random) -> tuple[bytes, bytes]:
        if not state.pending:
            if state.whole is None:
                whole = bytes(state.base)
                state.whole = whole, marssum.xxh3_128(whole)
            return state.whole
        buf = bytearray(state.base)
        for op in state.pending:
            how = there.get(op, "full") if power or op.end >= self.now else "full"
            _put(buf, op, how, rng, None if state.file is self.tape.disk else partial(self._rubbish, state, rng))
        data = bytes(buf)
        return data, marssum.xxh3_128(data)

    def _rubbish(self, state: FileState, rng: random.Random) -> bytes:
        """What may stand in a file's space that was never written."""
        others = [one for one in self.files.values() if one.file.number < state.file.number and len(one.base) > PAGE and
                  one.file is not self.tape.disk]
        if others and rng.random() < 0.5:
            return bytes(rng.choice(others).base)
        return rng.randbytes(2 * PAGE)


def _subsets(data: list[FileOp]) -> int:
    """How many of the numbers are plain subsets."""
    return 1 << len(data) if len(data) <= ALL_SUBSETS else 2


def _rename(names: dict[str, Thing], op: NameOp) -> None:
    for name, thing in op.changes.items():
        if thing is None:
            names.pop(name, None)
        else:
            names[name] = thing


def _choice(data: list[FileOp], rng: random.Random) -> dict[FileOp, str]:
    """How much of each operation is there."""
    likely, torn = rng.choice((0.1, 0.5, 0.8, 0.95)), rng.choice((0.0, 0.2, 0.6))
    found = {}
    for op in data:
        if rng.random() < torn:
            found[op] = rng.choice(("prefix", "prefix", "suffix", "sectors", "pages", "grown", "rubbish"))
        else:
            found[op] = "full" if rng.random() < likely else "none"
    if len(data) > 1 and rng.random() < 0.4:                # one alone is there, or is missing
        odd = rng.randrange(len(data))
        one = rng.choice(("none", "prefix", "sectors", "rubbish", "full"))
        other = "none" if one == "full" else "full"
        found = {op: one if i == odd else other for i, op in enumerate(data)}
    return found


def _names(names: list[NameOp], number: int, rng: random.Random) -> set[NameOp]:
    """Which names are there."""
    how = number if number < 2 else rng.randrange(4)
    if how == 0:
        return set()
    if how == 1:
        return set(names)
    if how == 2:                                            # a journal: a beginning of them
        return set(sorted(names, key=lambda op: op.issue)[:rng.randrange(len(names) + 1)])
    return {op for op in names if rng.random() < 0.5}


def _put(buf: bytearray, op: FileOp, how: str, rng: random.Random, rubbish: Callable[[], bytes] | None) -> None:
    """The operation as far as `how` says. rubbish: None on the data device."""
    if how == "full":
        change(buf, op)
    elif how == "none" or op.kind == "size":
        return
    elif op.kind != "write":
        if how != "prefix":
            _part(buf, op, rng, PAGE)
        if how == "rubbish" and op.kind == "space" and rubbish is not None:
            _fill(buf, op.off, min(op.len, 16 * PAGE), rubbish())
    else:
        _put_write(buf, op, how, rng, rubbish)


def _part(buf: bytearray, op: FileOp, rng: random.Random, unit: int) -> None:
    """Of zeros or new space a beginning."""
    length = unit * rng.randrange(op.len // unit + 1)
    change(buf, FileOp(op.kind, op.file, op.off, length, b"", 0))


def _put_write(buf: bytearray, op: FileOp, how: str, rng: random.Random,
               rubbish: Callable[[], bytes] | None) -> None:
    sectors = -(-op.len // SECTOR)
    if how in ("grown", "rubbish"):
        fresh = op.off >= len(buf) or not any(buf[op.off:op.off + op.len])
        if rubbish is not None and fresh:
            change(buf, FileOp("space", op.file, op.off, op.len, b"", 0))
            if how == "rubbish":
                _fill(buf, op.off, op.len, rubbish())
        keep: set[int] = set()
        if rng.random() < 0.5:
            keep = {i for i in range(sectors) if rng.random() < 0.5}
    elif how == "prefix":
        keep = set(range(rng.randrange(sectors + 1)))
    elif how == "suffix":
        keep = set(range(rng.randrange(sectors + 1), sectors))
    else:
        unit = 1 if how == "sectors" else PAGE // SECTOR
        chosen = {i for i in range(-(-sectors // unit)) if rng.random() < 0.6}
        keep = {i for i in range(sectors) if i // unit in chosen}
    for i in sorted(keep):
        part = op.data[i * SECTOR:(i + 1) * SECTOR]
        change(buf, FileOp("write", op.file, op.off + i * SECTOR, len(part), part, 0))


def _fill(buf: bytearray, off: int, length: int, rubbish: bytes) -> None:
    """Rubbish from the same place of another file, or from its beginning."""
    source = rubbish[off:off + length] or rubbish[:length]
    buf[off:off + len(source)] = source[:max(0, len(buf) - off)]
