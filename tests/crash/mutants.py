"""Proof of the checker: the product with one rule taken out must be caught by the crash states.

Each mutant is a table row: what is changed in a copy of the sources (never in the product), and the rule that is gone
then. `python -m tests.crash.mutants [NAME...]` builds each copy, runs the enumeration on it, and fails if one survives.
A row whose old text is not found just once fails too: the table follows the code. Other simulations can be named in
`command`.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
COPIED = ("marsx", "ext", "tests", "tools", "setup.py", "pyproject.toml", "Makefile")
PRIMARY = ("-m", "tests.crash.run", "--jobs", "2", "--states", "8000", "--seconds", "170", "--cuts", "0.3",
           "--kinds", "primary")
SECONDARY = (*PRIMARY[:-1], "secondary")


@dataclass(frozen=True)
class Mutant:
    """`changes`: (file, old text, new text); `build`: extensions that have to be built anew."""

    name: str
    rule: str
    changes: tuple[tuple[str, str, str], ...]
    build: str = ""
    command: tuple[str, ...] = PRIMARY


APPLY = "        window.apply(self.disk_fd, self.env.fly)\n"
ANNOUNCE = ("        if not announce(self.env, start, after.pos - start.pos, self._pause):\n"
            "            return\n")
REPLAY = ("            if new.pos < end:\n"
          "                pair.begin(self._log.fd, cursor, end)\n"
          "            pair.now.apply(self.disk_fd, self.env.fly, pair.next if pair.cursor else None)\n")
REPLAY_ANNOUNCE = ("            if not announce(self.env, self.at, new.pos - self.at.pos, self._pause):\n"
                   "                return\n")
MUTANTS = (
    Mutant("answers-per-group", "1", (
        ("ext/commit.h", "        if (g->state == MARS_GROUP_WRITING)\n            break;\n",
         "        if (g->state == MARS_GROUP_WRITING)\n            continue;\n"),
        ("ext/commit.h", "    if (g->vend < l->written || g->vend > l->groups.appended) {\n"
         "        mars_log_fail(l, -EIO, MARS_FAIL_INVARIANT);\n",
         "    if (g->vend < l->written || g->vend > l->groups.appended) {\n")), "marslog"),
    Mutant("flush-shares-a-running-sync", "1", ((
        "ext/flush.h", "    if (target > l->durable) {\n",
        "    target = l->written;\n    memcpy(digest, l->written_digest, 16);\n    if (target > l->durable) {\n"),),
        "marslog"),
    Mutant("flush-answered-at-once", "1", ((
        "ext/flush.h", "    waits = rc == 0 && l->durable < l->written;\n", "    waits = 0;\n"),), "marslog"),
    Mutant("write-back-ahead-of-durable", "2", (
        ("ext/log.h", "oldest->vstart < l->durable)\n        return oldest->vstart;\n    return l->durable;\n",
         "oldest->vstart < l->written)\n        return oldest->vstart;\n    return l->written;\n"),
        ("ext/marsshadow.pyx", "if rc < 0 or end > self.log.durable:", "if rc < 0:")), "marsshadow"),
    Mutant("newest-wins-beyond-the-window", "2", ((
        "ext/marsshadow.pyx", "        if rc == NOT_VALID:\n            raise ValueError(f\"log {c.e.log_nr}",
        "        if rc > 0:\n            skip_newer(self, w)\n"
        "        if rc == NOT_VALID:\n            raise ValueError(f\"log {c.e.log_nr}"),
        ("ext/marsshadow.pyx", "cdef class Volume(Log):",
         "cdef void skip_newer(Volume self, Window w):\n"
         "    cdef uint16_t k = 0\n"
         "    cdef uint64_t end = self.writeback + w.used\n"
         "    cdef const shadow_extent *x\n"
         "    pthread_mutex_lock(&self.log.lock)\n"
         "    cdef uint32_t leaf = shadow_seek(&self.index, 0, &k)\n"
         "    while leaf != SHADOW_NIL:\n"
         "        x = &self.index.node[leaf].u.leaf.ext[k]\n"
         "        if x.lpos >= end:\n"
         "            shadow_cut(&w.map, x.start, x.end, <uint64_t>-1)\n"
         "        leaf = shadow_step(&self.index, leaf, &k)\n"
         "    pthread_mutex_unlock(&self.log.lock)\n\n\n"
         "cdef class Volume(Log):")), "marsshadow"),
    Mutant("recovery-believes-the-cache", "3", ((
        "marsx/volume/recovery.py", "        durable.overwrite(fd, b\"\", 0, log.path) ", "        pass  "),),
        command=SECONDARY),
    Mutant("header-not-durable", "4", ((
        "marsx/log/writer.py", "        durable.overwrite(fd, block, 0, temp)\n",
        "        os.pwrite(fd, block, 0)\n"),)),
    Mutant("name-not-durable", "4", ((
        "marsx/log/writer.py", "        os.unlink(temp)\n        durable.sync_dir(directory)\n",
        "        os.unlink(temp)\n"),)),
    Mutant("next-log-before-the-last-is-durable", "4", (
        ("ext/flush.h", "    mars_log_sync_all(l);\n    pthread_mutex_lock(&l->lock);\n    while (l->syncing &&",
         "    pthread_mutex_lock(&l->lock);\n    l->durable = l->written;\n    while (l->syncing &&"),), "marslog"),
    Mutant("groups-do-not-say-what-is-durable", "5", ((
        "ext/commit.h", "l->durable > s->base ? l->durable - s->base : 0, l->lamport_ns", "0, l->lamport_ns"),),
        "marslog"),
    Mutant("scan-does-not-look-on", "5", ((
        "marsx/volume/recovery.py", "look=None if log.producer == env.host else 0", "look=0"),)),
    Mutant("links-are-no-proof", "5", ((
        "marsx/volume/recovery.py", "known = known_durable(log.nr, log.producer) if log.end is None else 0",
        "known = 0"),),
        command=SECONDARY),
    Mutant("position-not-durable-before-deletion", "9", ((
        "marsx/daemon/housekeeping.py", "        store.make_durable([paths.replay(resource, host)])\n",
        "        pass\n"),)),
    Mutant("dirty-after-the-write", "12", ((
        "marsx/volume/primary.py", ANNOUNCE + APPLY, APPLY + ANNOUNCE),)),
    Mutant("dirty-not-durable", "12", ((
        "marsx/daemon/facts.py", "self._position(at, length), make_durable=True", "self._position(at, length)"),)),
    Mutant("dirty-forgotten-by-a-restart", "12", ((
        "marsx/daemon/facts.py", "            length = max(length, old.pos.pos + old.length - at.pos)\n",
        "            pass\n"),)),
    Mutant("replay-writes-before-dirty", "12", ((
        "marsx/volume/replay.py", REPLAY_ANNOUNCE + REPLAY, REPLAY + REPLAY_ANNOUNCE),),
        command=SECONDARY),
    Mutant("position-before-the-write", "12", ((
        "marsx/volume/primary.py", APPLY + "        volume.finish_window(window)\n"
        "        self.env.facts.replayed(LogPos(after.nr, start.producer, after.pos), after.digest.hex())\n",
        "        self.env.facts.replayed(LogPos(after.nr, start.producer, after.pos), after.digest.hex())\n" + APPLY +
        "        volume.finish_window(window)\n"),)),
    Mutant("position-before-the-flush", "12", ((
        "ext/marsreplay.pyx", "            first = mars_fdatasync(fd)\n", "            first = 0\n"),), "marsreplay"),
    Mutant("replay-position-before-the-flush", "12", ((
        "ext/marsreplay.pyx", "            first = mars_fdatasync(fd)\n", "            first = 0\n"),), "marsreplay",
        SECONDARY),
    Mutant("version-link-ahead", "4", ((
        "ext/marslog.pyx", "        return n.durable, n.nr, n.durable - n.base, (<const char *>n.digest)[:16]\n",
        "        return n.written, n.nr, n.written - n.base, (<const char *>self.log.written_digest)[:16]\n"),),
        "marslog"),
    Mutant("fetched-is-not-synced", "D 4", ((
        "marsx/daemon/logcopy.py", "        durable.overwrite(self._fd, b\"\", 0, str(self.at.log))\n", ""),),
        command=SECONDARY),
    Mutant("replay-position-of-another-log", "4", ((
        "marsx/volume/replay.py", "            self.at, self.digest = following.start, following.digest0\n",
        "            self.at, self.digest = LogPos(following.nr, following.producer, 4096), following.digest0\n"),),
        command=SECONDARY),
)


class Broken(Exception):
    """The row does not fit the code."""


def copy(mutant: Mutant, folder: Path) -> None:
    """The sources with the change, built."""
    for name in COPIED:
        source = TOP / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)
    (folder / ".venv").symlink_to(TOP / ".venv")
    for file, old, new in mutant.changes:
        path = folder / file
        text = path.read_text()
        if text.count(old) != 1:
            raise Broken(f"{file} holds {text.count(old)} times: {old!r}")
        path.write_text(text.replace(old, new))
    if mutant.build:
        done = subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"], cwd=folder,
                              env={**os.environ, "MARS_EXT": mutant.build}, capture_output=True, text=True)
        if done.returncode:
            raise Broken(f"does not build:\n{done.stderr[-2000:]}")


def caught(mutant: Mutant, folder: Path) -> str:
    """What the enumeration says of it; "" if it found nothing."""
    done = subprocess.run([sys.executable, *mutant.command, "--keep", str(folder / "kept")], cwd=folder,
                          capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("VIOLATION")), lines[-1] if lines else "no word")


def main(names: list[str]) -> int:
    """Try them; the number of survivors."""
    survivors = 0
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    for mutant in chosen:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="marsx-mutant-") as folder:
            try:
                copy(mutant, Path(folder))
                said = caught(mutant, Path(folder))
                survivors += not said
            except Broken as err:
                said = f"BROKEN: {err}"
                survivors += 1
        took = time.monotonic() - begin
        print(f"rule {mutant.rule:3} {mutant.name}: {said or 'SURVIVES'}  ({took:.0f} s)", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants are caught")
    return survivors


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
