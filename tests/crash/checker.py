"""The real recovery on one state after a crash, and what it has to make of it.

    1. nothing that was promised is missing (`oracle.Promises`): what a FLUSH covered; after a kill, what was answered
    2. the contents are those of one place of the history, not before the promised one: a prefix, whole and in order
    3. recovery twice, and recovery of what the first one left, give the same
    4. rule 12: where the replay link has no dirty length the disk holds just that place; else replaying the dirty
       length, and no more, makes it so. No link says more than is there, and equal digests are equal bytes (rule 6).
       Such a disk is never called changed by somebody else
    5. a bit that turned in what was durable is damage, and is named (rule 5)

The quick way recovers and replays with the real code (`volume.recovery`, `volume.replay.apply_windows`). Of some states
the whole start is done too: tree, Primary with its index, its new log and write-back; or the copy of a secondary,
replay, and the rest of the stream.
"""
from __future__ import annotations

import mmap
import os
import random
import shutil
from collections import Counter
from pathlib import Path

from marsx._ext import marsinject, marsreplay, marssum
from marsx.base.errors import DamagedError
from marsx.base.position import LogPos
from marsx.log import record
from marsx.log.record import BLOCK
from marsx.peer.fetch import Start
from marsx.tree import paths
from marsx.tree.view import parse_replay
from marsx.volume import fingerprint, recovery
from marsx.volume.primary import Primary
from marsx.volume.replay import Replayer, apply_windows
from tests.crash.host import MIB, RESOURCE, Host, make_host
from tests.crash.oracle import ZERO_POS, Pos, Promise, Promises, Truth, known_links
from tests.crash.recording import Recording
from tests.crash.scenario import SIZE
from tests.crash.states import LOGS, State

ZEROS = bytes(65536)


class Violation(AssertionError):
    """A state that breaks a rule."""


class NoFacts:
    """Positions of the quick way go nowhere."""

    def dirty(self, at: LogPos, length: int) -> None:
        """See env.Facts."""

    def replayed(self, at: LogPos, digest: str) -> None:
        """See env.Facts."""

    def version(self, end: LogPos, digest: str, previous: str) -> None:
        """See env.Facts."""


class Checker:
    """One recording's states, in a folder of a fast file system. begin() with each of its tapes in order."""

    def __init__(self, recording: Recording, folder: Path, count: Counter[str]) -> None:
        self.recording, self.count = recording, count
        self.truth = Truth(recording)
        self.folder = folder
        self.done: dict[bytes, Pos] = {}
        self.host_name = recording.host
        make_host(folder, self.host_name, SIZE, LogPos(1, "a", 0))
        self.host = Host(folder, self.host_name, SIZE, None)    # type: ignore[arg-type]
        self.env = self.host.env(NoFacts())
        self.window = marsreplay.Window(self.env.window_bytes)
        self.hint = self.host.publisher._hint
        self.there: dict[str, bytes] = {}
        with open(folder / "disk", "r+b") as file:
            self.disk = mmap.mmap(file.fileno(), SIZE)

    def begin(self, number: int) -> None:
        """The states are of this tape from now on."""
        before = self.promises.final() if number else Promise(0, ZERO_POS, "")
        self.promises = Promises(self.recording.tapes[number], self.truth, before)

    # ---- one state ----

    def check(self, state: State) -> None:
        """Violation says what is wrong. A state that was seen before is only held against what is promised now."""
        self.count["states"] += 1
        promise = self.promises.at(state.cut, state.power)
        end = self.done.get(state.key)
        if end is None:
            end = self._recover(state)
            self.done[state.key] = end
            self.count["distinct"] += 1
            self.count["power" if state.power else "kill"] += 1
            self.count["partial"] += state.partial > 0
            self.count["loss"] += not self.truth.holds(end, self.promises.answered(state.cut))
        self._keeps(state, end, promise)

    def _keeps(self, state: State, end: Pos, promise: Promise) -> None:
        if not self.truth.holds(end, promise.pos):
            raise Violation(f"recovered up to {end}, but {promise.why} promised {promise.pos} (rules 1 to 4)")

    def _recover(self, state: State) -> Pos:
        at, length, digest = self._put(state)
        links = known_links(state.links, self.host_name)
        known = {pos[0]: pos[1] for pos in sorted(links)}
        try:
            logs = recovery.recover(self.env, at, digest, lambda nr, producer: known.get(nr, 0))
        except Exception as err:
            if not state.logs and at.pos == 0 and not known:
                return ZERO_POS if at.nr == 1 else (at.nr, 0)       # before the first log
            raise Violation(f"recovery refuses: {err!r}") from err
        try:
            end = self._judge(logs, at, length, links)
        finally:
            recovery.close_all(logs)
        if len(self.done) % 8 == 0:
            self._again(end, known)
        if len(self.done) % 5 == 0:
            self._rot(state, at, digest, end, known)
        return end

    def _put(self, state: State) -> tuple[LogPos, int, str]:
        """The state into the folder; its replay position."""
        for name in self.there.keys() - state.logs.keys():
            os.unlink(os.path.join(self.env.directory, name))
            del self.there[name]
        for name, data in state.logs.items():
            if self.there.get(name) is not data:
                _write(os.path.join(self.env.directory, name), data)
                self.there[name] = data
        if state.hint is not None:
            Path(self.hint).write_bytes(state.hint)
        elif os.path.exists(self.hint):
            os.unlink(self.hint)
        self.disk[:] = state.disk
        replay = parse_replay(state.links.get(paths.replay(RESOURCE, self.host_name), ""))
        if replay is None:
            raise Violation("the replay link is missing or damaged")
        return replay.pos, replay.length, self.host.publisher.digest_hint(replay.pos)

    def _image(self) -> bytes:
        return marssum.xxh3_128(self.disk)

    def _judge(self, logs: list[recovery.Recovered], at: LogPos, length: int, links: dict[Pos, str]) -> Pos:
        """What recovery found, and what replaying it makes of the disk."""
        end = (logs[-1].header.nr, logs[-1].end)
        if logs[-1].digest not in self.truth.digests.get(end, ()):
            raise Violation(f"recovery ends at {end}, which is no place of the history")
        for pos, digest in links.items():
            if not self.truth.holds(end, pos) or digest not in self.truth.digests.get(pos, ()):
                raise Violation(f"the version link of {pos} says more than the log holds ({end}), or something else")
        here = (at.nr, at.pos)
        if not self.truth.holds(end, here):
            raise Violation(f"the replay link {at} is ahead of the log ({end})")
        known = fingerprint.last_writes(self.env, at, length)
        self.count["witnesses"] += len(known) > 0
        if bad := fingerprint.contradicted(self.host.disk_fd, known):
            raise Violation(f"a disk that only MARS wrote to is called changed, at {bad[0]} (rule 12)")
        self._replay(logs, here, length)
        if self._image() != self.truth.contents[end]:
            raise Violation(f"after replay to {end} the disk is no prefix of the history: {self._difference(end)}")
        return end

    def _replay(self, logs: list[recovery.Recovered], here: Pos, length: int) -> None:
        """Rule 12 at the replay position, then the rest."""
        dirty = (here[0], here[1] + length)
        if not length and self._image() != self.truth.contents[here]:
            raise Violation(f"the disk is not what the replay link {here} says (rule 12): {self._difference(here)}")
        for log in logs:
            cursor = marsreplay.Cursor(log.header.pack(), log.start, bytes.fromhex(log.start_digest))
            if length and log.header.nr == here[0]:
                if dirty[1] > log.end or dirty not in self.truth.contents:
                    raise Violation(f"dirty up to {dirty}, but the log ends at {log.end} (rule 2)")
                apply_windows(self.env, self.window, log.fd, log.header, cursor, dirty[1], self.host.disk_fd)
                if self._image() != self.truth.contents[dirty]:
                    raise Violation(f"more differs than the dirty length of {here} covers (rule 12): "
                                    f"{self._difference(dirty)}")
            apply_windows(self.env, self.window, log.fd, log.header, cursor, log.end, self.host.disk_fd)

    def _difference(self, pos: Pos) -> str:
        wanted, have = self.truth.image(pos), bytes(self.disk)
        bad = [at for at in range(0, SIZE, 512) if wanted[at:at + 512] != have[at:at + 512]]
        return f"{len(bad)} sectors differ, the first at {bad[0] if bad else -1}"

    def _again(self, end: Pos, known: dict[int, int]) -> None:
        """From the position that the first recovery reached: nothing more is found, nothing is missing."""
        self.count["again"] += 1
        at = LogPos(end[0], "a", end[1])
        logs = recovery.recover(self.env, at, "", lambda nr, producer: known.get(nr, 0))
        recovery.close_all(logs)
        if (logs[-1].header.nr, logs[-1].end) != end:
            raise Violation(f"recovery from {end} ends at {logs[-1].end}")

    def _rot(self, state: State, at: LogPos, digest: str, end: Pos, known: dict[int, int]) -> None:
        """Rule 5: one bit turns in a group of the last log that was recovered."""
        rng = random.Random(state.key)
        groups = [(start, stop) for start, stop, _ in self.truth.groups.get(end[0], [])
                  if stop <= end[1] and (at.nr < end[0] or start >= at.pos)]
        if not groups:
            return
        self.count["rot"] += 1
        start, stop = rng.choice(groups)
        name, place = f"log-{end[0]:09d}-a", BLOCK + rng.randrange(start, stop)
        data = bytearray(state.logs[name])
        data[place] ^= 1 << rng.randrange(8)
        _write(os.path.join(self.env.directory, name), bytes(data))
        self.there[name] = b""                              # to be written anew
        said = max((self.truth.durable_said[end[0], s] for s, _ in groups if s > start), default=0)
        if self.recording.kind == "secondary":
            said = 0                                        # that is about the disk of the log's producer
        use_links = rng.random() < 0.5
        proof = max(said, known.get(end[0], 0) if use_links else 0)
        found = -1
        try:
            logs = recovery.recover(self.env, at, digest, lambda nr, producer: known.get(nr, 0) if use_links else 0)
            recovery.close_all(logs)
            found = logs[-1].end
        except DamagedError:
            self.count["rot_named"] += 1
        else:
            if found != start or proof > start:
                raise Violation(f"a bit turned at {place} of {name}, {proof} is known to be durable, and recovery "
                                f"ends at {found} without a word (rule 5)")

    # ---- the whole start ----

    def check_start(self, state: State, folder: Path) -> None:
        """Everything that a start does, in a folder of its own."""
        self.count["starts"] += 1
        end = self.done[state.key]
        make_host(folder, self.host_name, SIZE, LogPos(1, "a", 0))
        try:
            for name, data in state.logs.items():
                _write(str(folder / "mars" / LOGS / name), data)
            (folder / "disk").write_bytes(state.disk)
            if state.hint is not None:
                (folder / "mars" / paths.local_dir(self.host_name) / f"position-{RESOURCE}").write_bytes(state.hint)
            _links(folder / "mars", state.links)
            if self.recording.kind == "primary":
                self._primary(folder, end)
            else:
                self._secondary(folder, end)
        except Violation:
            raise
        except Exception as err:
            raise Violation(f"the start fails: {err!r}") from err
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _primary(self, folder: Path, end: Pos) -> None:
        """Open; die; open again; write and write everything back."""
        wanted = bytearray(self.truth.image(end) if end != ZERO_POS else self.truth.images[1, 0])
        for round_ in range(2):
            host = Host(folder, self.host_name, SIZE, None)     # type: ignore[arg-type]
            one = Primary(host.env(), host.disk_fd)
            try:
                at, _, digest = host.position()
                one.open(at, digest, host.known_durable(), first=host.is_first())
                assert one.header is not None and one.volume is not None
                pred = (one.header.pred.nr, one.header.pred.pos) if one.header.pred else ZERO_POS
                if round_ == 0 and end != ZERO_POS and self.truth.place_of(pred) != self.truth.place_of(end):
                    raise Violation(f"the new log follows {pred}, not {end}")
                injector = marsinject.Injector(one.volume)
                if injector.read(0, MIB) != bytes(wanted):
                    raise Violation(f"start {round_}: reads are not the contents at {end}")
                if round_ == 1:
                    self._write_all_back(host, one, injector, wanted)
            finally:
                one.request_stop()
                one.close()
                host.close()

    def _write_all_back(self, host: Host, one: Primary, injector: marsinject.Injector, wanted: bytearray) -> None:
        data = random.Random(1).randbytes(4096)
        injector.write(8192, data)
        wanted[8192:8192 + 4096] = data
        assert one.volume is not None
        one.volume.sync_now()
        window = marsreplay.Window(host.env().window_bytes)
        while one.volume.state["writeback_rest"]:
            one._write_back(window)
        if (host.root / "disk").read_bytes() != bytes(wanted):
            raise Violation("write-back after the start makes something else of the disk")

    def _secondary(self, folder: Path, end: Pos) -> None:
        """Recover the copy; replay; fetch the rest; replay that."""
        host = Host(folder, self.host_name, SIZE, None)         # type: ignore[arg-type]
        try:
            copy, at, digest = host.recover_copy(host.env(), lambda at, digest: None)
            if end != ZERO_POS and self.truth.place_of((copy.at.nr, copy.at.pos)) != self.truth.place_of(end):
                raise Violation(f"the copy ends at {copy.at}, not at {end}")
            self._feed(copy)
            last = (copy.at.nr, copy.at.pos)
            replayer = Replayer(host.env(), host.disk_fd, at, digest, lambda at: None)
            replayer.on_progress = lambda pos: replayer.request_stop() if pos == copy.at else None
            replayer.advance(copy.at)
            if copy.at > at:
                replayer.body()
            copy.close()
            if replayer.error or marssum.xxh3_128((folder / "disk").read_bytes()) != self.truth.contents[last]:
                raise Violation(f"after the rest of the stream: {replayer.error or 'the disk is another'}")
        finally:
            host.close()

    def _feed(self, copy) -> None:
        start: Start = copy.start()
        for _, data in sorted(self.recording.sources.items()):
            header = record.FileHeader.parse(data[:BLOCK])
            if header.nr < start.nr:
                continue
            if not start.log_id and header.nr == start.nr:
                copy.begin(start, data[:BLOCK])
            elif header.nr > start.nr:
                copy.next(header.nr, header.producer, copy.at.pos, data[:BLOCK])
            if copy.at.pos < len(data) - BLOCK:
                copy.feed(header.nr, header.producer, copy.at.pos, data[BLOCK + copy.at.pos:])

    def close(self) -> None:
        """Give everything back."""
        self.disk.close()
        self.host.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _write(path: str, data: bytes) -> None:
    """The file with just these contents; zeros at its end as a hole."""
    used = len(data)
    while used and data[max(0, used - 65536):used] == ZEROS[:min(used, 65536)]:
        used = max(0, used - 65536)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(fd, data[:used], 0)
        os.ftruncate(fd, used)
        os.ftruncate(fd, len(data))
    finally:
        os.close(fd)


def _links(tree: Path, links: dict[str, str]) -> None:
    """The facts, with rising stamps."""
    for number, (rel, value) in enumerate(sorted(links.items())):
        path = tree / rel
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(value)
        stamp = 1_700_000_000_000_000_000 + number
        os.utime(path, ns=(stamp, stamp), follow_symlinks=False)
