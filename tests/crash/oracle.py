"""What has to be true after a crash: the history as it was written, and how much of it was promised when.

The history is read out of the operations themselves, with the plain reader of the tests, and compared with the ledger:
every answered request stands in it once, with the bytes that were asked for, behind what was answered before it came.
It is a tree: the tail of a log that recovery dropped, and the log that followed, part at the recovered end.

A position is (log number, POS). Promised at time t:

* power cut: what a FLUSH answered before t covers, each version link that could be seen, what a secondary counted;
* kill: also every answered write.
"""
from __future__ import annotations

import bisect
from dataclasses import dataclass

from marsx._ext import marssum
from marsx.base.position import LogPos
from marsx.log.record import (
    BLOCK,
    DISCARD,
    GROUP_FIELDS,
    GROUP_MAGIC,
    RECORD_FIELDS,
    TABLE_OFFSET,
    WRITE,
    ZERO,
    FileHeader,
)
from marsx.tree import paths
from marsx.tree.view import parse_version
from tests.crash.host import initial_disk
from tests.crash.recording import Recording
from tests.crash.scenario import SIZE
from tests.crash.states import LOGS
from tests.crash.tape import File, FileOp, Link, Tape, change

Pos = tuple[int, int]
ZERO_POS: Pos = (0, 0)


@dataclass
class Promise:
    """From `at` on, the history up to `pos` must be there."""

    at: int
    pos: Pos
    why: str


class Truth:
    """All history that was ever written."""

    def __init__(self, recording: Recording) -> None:
        self.digests: dict[Pos, set[str]] = {}              # a log without groups may have been begun several times
        self.contents: dict[Pos, bytes] = {}                # digest of what the device holds there
        self.images: dict[Pos, bytes] = {}                  # where logs begin, to make any other from
        self.groups: dict[int, list[tuple[int, int, list[tuple[int, int, int, bytes]]]]] = {}
        self.durable_said: dict[Pos, int] = {}              # group's start -> what its header calls durable
        self.place: dict[int, tuple[Pos, int]] = {}         # unique -> (end of its group, number in the history)
        self.payload: dict[int, tuple[int, int, int, str]] = {}
        self.preds: dict[int, Pos] = {}                     # log number -> end of the log before
        for header, data in sorted(_logs(recording), key=lambda log: log[0].nr):
            self._log(header, data)

    def _log(self, header: FileHeader, data: bytes) -> None:
        pred = (header.pred.nr, header.pred.pos) if header.pred else ZERO_POS
        image = bytearray(self.image(pred)) if header.pred else bytearray(initial_disk(SIZE))
        if header.pred:
            assert header.pred_digest in self.digests[pred], f"{header.name} follows another history"
            self.preds[header.nr] = pred
        at, digest, groups = 0, header.digest0, []
        self.images[header.nr, 0] = bytes(image)
        self._point((header.nr, 0), digest, image)
        while at < len(data):
            block = data[at:at + BLOCK]
            if block[:8] != GROUP_MAGIC:
                break
            fields = GROUP_FIELDS.unpack_from(block)
            if fields[4] != header.log_id or fields[7] != at or fields[9].hex() != digest:
                break
            end, records = at + fields[8], _records(data, at, fields[14])
            self.durable_said[header.nr, at] = fields[10]
            for kind, off, length, unique, payload in records:
                _apply(image, kind, off, length, payload)
                assert unique not in self.place, f"request {unique} stands in the log twice"
                self.place[unique] = (header.nr, end), len(self.place)
                self.payload[unique] = off, length, kind, marssum.xxh3_128(payload).hex() if payload else "-"
            groups.append((at, end, [(kind, off, length, payload) for kind, off, length, _, payload in records]))
            digest = marssum.xxh3_128(block).hex()
            at = end
            self._point((header.nr, at), digest, image)
        assert not groups or not self.groups.get(header.nr), f"two logs {header.nr} with contents"
        self.groups[header.nr] = groups or self.groups.get(header.nr, [])

    def _point(self, pos: Pos, digest: str, image: bytearray) -> None:
        self.digests.setdefault(pos, set()).add(digest)
        self.contents[pos] = marssum.xxh3_128(bytes(image))

    def image(self, pos: Pos) -> bytes:
        """What the device holds at a point of the history."""
        image = bytearray(self.images[pos[0], 0])
        for _, end, records in self.groups[pos[0]]:
            if end > pos[1]:
                break
            for record in records:
                _apply(image, *record)
        return bytes(image)

    def place_of(self, pos: Pos) -> Pos:
        """(N, end of N) and (N+1, 0) are one place (rule 7): the first name of it."""
        while pos[1] == 0 and pos[0] in self.preds:
            pos = self.preds[pos[0]]
        return pos

    def holds(self, end: Pos, pos: Pos) -> bool:
        """Does the history up to `end` go through `pos`?"""
        end, pos = self.place_of(end), self.place_of(pos)
        while end[0] > pos[0]:
            end = self.preds.get(end[0], ZERO_POS)
        return end >= pos


def _records(data: bytes, at: int, count: int) -> list[tuple[int, int, int, int, bytes]]:
    payload, found = at + BLOCK, []
    for i in range(count):
        one = RECORD_FIELDS.unpack_from(data, at + TABLE_OFFSET + i * RECORD_FIELDS.size)
        found.append((one[0], one[4], one[5], one[6], data[payload:payload + one[7]]))
        payload += -(-one[7] // 512) * 512
    return found


def _apply(image: bytearray, kind: int, off: int, length: int, payload: bytes) -> None:
    if kind == WRITE:
        image[off:off + length] = payload
    elif kind in (DISCARD, ZERO):
        image[off:off + length] = bytes(length)


def _logs(recording: Recording) -> list[tuple[FileHeader, bytes]]:
    """(header, all groups ever written) of every log. A file may have been several logs, one after the other."""
    if recording.sources:
        return [(FileHeader.parse(data[:BLOCK]), data[BLOCK:]) for data in recording.sources.values()]
    found: list[tuple[FileHeader, bytearray]] = []
    current: dict[File, tuple[FileHeader, bytearray]] = {}
    disks = [tape.disk for tape in recording.tapes]
    for op in (op for tape in recording.tapes for op in tape.file_ops):
        if op.kind != "write" or op.file in disks:
            continue
        if op.off == 0 and op.data[:8] == b"MARSXLOG":
            current[op.file] = FileHeader.parse(op.data), bytearray()
            found.append(current[op.file])
        elif op.file in current and op.off >= BLOCK and op.issue != op.end:     # else: caught up after a kill
            change(current[op.file][1], FileOp("write", op.file, op.off - BLOCK, op.len, op.data, 0))
    return [(header, bytes(data)) for header, data in found]


class Promises:
    """What is promised at which time of one tape; `before`: what was promised when it began."""

    def __init__(self, tape: Tape, truth: Truth, before: Promise) -> None:
        self.truth = truth
        self.before = before
        self.power: list[Promise] = []
        self.kill: list[Promise] = []
        self.answered_at: list[tuple[int, Pos]] = []
        ledger = self._ledger(tape)
        self._check_headers(tape, [promise for promise in ledger if promise.why.startswith("flush")])
        for promise in sorted([before, *self._links(tape), *ledger], key=lambda one: one.at):
            _raise(self.power, promise, truth)
            _raise(self.kill, promise, truth)
        for at, pos in self.answered_at:
            _raise(self.kill, Promise(at, pos, "an answered write"), truth, resort=True)

    def at(self, now: int, power: bool) -> Promise:
        """The promise in force when the tape was cut there."""
        table = self.power if power else self.kill
        index = bisect.bisect_left([one.at for one in table], now)
        return table[index - 1] if index else self.before

    def final(self) -> Promise:
        """What a power cut at the end must not take, as the beginning of the next tape."""
        return Promise(0, self.power[-1].pos, f"{self.power[-1].why} (before an earlier power cut)")

    def answered(self, now: int) -> Pos:
        """The highest position of any write answered by then."""
        return max((pos for at, pos in self.answered_at if at < now), default=ZERO_POS)

    def _links(self, tape: Tape) -> list[Promise]:
        found = []
        for op in tape.name_ops:
            for name, thing in op.changes.items():
                is_version = isinstance(thing, Link) and name.startswith("version-")
                version = parse_version(thing.value) if is_version else None
                if version is not None:
                    pos = version.end.pos
                    known = self.truth.digests.get((pos.nr, pos.pos), ())
                    assert version.end.digest in known, f"{name} -> {thing.value} is no place of the history"
                    found.append(Promise(op.issue, (pos.nr, pos.pos), f"the version link {pos}"))
        return found

    def _ledger(self, tape: Tape) -> list[Promise]:
        asked: dict[int, int] = {}
        covered: dict[int, Pos] = {}
        highest, number, found = ZERO_POS, -1, []
        numbers: dict[int, int] = {}                        # unique -> highest number answered before it was asked
        for mark in tape.marks:
            what, *rest = mark.words
            if what == "w":
                asked[int(rest[0])] = mark.at
                numbers[int(rest[0])] = number
                self._check_bytes(int(rest[0]), rest[1:])
            elif what == "a":
                pos, at = self._check_answer(int(rest[0]), numbers)
                highest, number = max(highest, pos), max(number, at)
                self.answered_at.append((mark.at, pos))
            elif what == "f":
                covered[int(rest[0])] = highest
            elif what == "F":
                found.append(Promise(mark.at, covered[int(rest[0])], f"flush {rest[0]}"))
            elif what == "d":
                pos_ = LogPos.parse(rest[0])
                found.append(Promise(mark.at, (pos_.nr, pos_.pos), f"fetched {pos_}"))
        return found

    def _check_headers(self, tape: Tape, flushes: list[Promise]) -> None:
        """Rule 5: what a group's header calls durable is not less than what a flush had proved when it was sealed. Two
        groups are written at a time, so that was after one of the two groups before had been begun to be written."""
        times: dict[int, list[tuple[int, int]]] = {}
        for op in tape.file_ops:
            if op.kind == "write" and op.data[:8] == GROUP_MAGIC and op.issue != op.end:
                fields = GROUP_FIELDS.unpack_from(op.data)
                times.setdefault(fields[5], []).append((fields[7], op.issue))
        flushes.sort(key=lambda one: one.at)
        for nr, groups in times.items():
            groups.sort()
            for (_, first), (_, second), (start, _) in zip(groups, groups[1:], groups[2:], strict=False):
                known = bisect.bisect_left([one.at for one in flushes], min(first, second))
                proved = max((one.pos[1] for one in flushes[:known] if one.pos[0] == nr), default=0)
                said = self.truth.durable_said.get((nr, start))
                assert said is None or said >= proved, \
                    f"the group at {start} of log {nr} says {said} is durable, a flush had proved {proved} (rule 5)"

    def _check_bytes(self, unique: int, words: list[str]) -> None:
        if unique in self.truth.payload:
            off, length, kind, digest = self.truth.payload[unique]
            assert [str(off), str(length), str(kind), digest] == words, f"request {unique} was logged with other bytes"

    def _check_answer(self, unique: int, numbers: dict[int, int]) -> tuple[Pos, int]:
        assert unique in self.truth.place, f"request {unique} was answered and is in no log"
        pos, number = self.truth.place[unique]
        assert number > numbers[unique], f"request {unique} stands before one that was answered before it came (rule 8)"
        return pos, number


def _raise(table: list[Promise], promise: Promise, truth: Truth, resort: bool = False) -> None:
    """Keep the table rising in both."""
    if resort:
        index = bisect.bisect_right([one.at for one in table], promise.at)
        before = table[index - 1].pos if index else ZERO_POS
        if not truth.holds(before, promise.pos):
            table.insert(index, promise)
            while index + 1 < len(table) and truth.holds(promise.pos, table[index + 1].pos):
                del table[index + 1]
    elif not table or not truth.holds(table[-1].pos, promise.pos):
        table.append(promise)


def known_links(links: dict[str, str], host: str) -> dict[Pos, str]:
    """Version links of a state: position -> digest."""
    found = {}
    for rel, value in links.items():
        name = paths.parse(rel)
        if name is not None and name.kind == "version" and name.host == host and rel.startswith(LOGS):
            version = parse_version(value)
            if version is not None:
                found[version.end.pos.nr, version.end.pos.pos] = version.end.digest
    return found

