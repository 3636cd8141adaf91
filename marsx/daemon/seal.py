"""Was the data device used directly while MARS was off? (manual 8.6; `volume.fingerprint`)

    disk let go cleanly -> `put`: samples of it, durable in local-HOST/seal-RES
    attached again      -> `check`, before anything writes: the samples, if they are of this membership; the last writes
                           of the log, if the replica is consistent
        nothing found   -> the seal goes, durably; from now on the disk changes
        a difference    -> the seal is broken, durably: replay, sync and role stop (the log is fetched and served on)
    broken -> `invalidate` (the others' data count) or `fake-sync` (this disk's data count)

Invariants:
    a seal is there only while nobody of MARS writes to the disk: it goes before the first write, it comes after the
        last one was flushed
    a broken seal stays broken until somebody decides; a secondary with one is not consistent in the tree
    a disk that counts although the others have another one is a hole in the history (rule 27): its primary begins a gap
        log without a map, so each other member compares all; until that log is there `accepted` stays durable
"""
from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

from marsx.base import durable, messages
from marsx.base.errors import DamagedError, PreconditionError
from marsx.tree import paths
from marsx.tree.view import Replay, View
from marsx.volume import fingerprint
from marsx.volume.fingerprint import Samples

if TYPE_CHECKING:
    from marsx.daemon.resource import Runner
    from marsx.volume.env import Env

LOG = messages.get("daemon.seal")
KEY = "err-disk-changed"
BROKEN, ACCEPTED = "broken", "accepted"


class Seal:
    """Of one resource on this host. `broken`: what was found (text), "" if nothing was. In the resource's turn."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._path = os.path.join(runner.site.store.root, paths.local_dir(runner.site.host), f"seal-{runner.resource}")
        self.broken = ""
        self.accepted = False
        self._checked = False

    # ---- at the end ----

    async def put(self, env: Env | None) -> None:
        """The disk is about to be let go, nobody writes to it any more."""
        runner = self._runner
        replay = runner.site.view().replay(runner.resource, runner.site.host)
        if self._checked and not self.broken and not self.accepted and env is not None and replay is not None:
            try:
                await runner.site.blocking(self._put, env, replay)
            except OSError as err:
                LOG.warning("%s: the data device cannot be sealed: %s", runner.resource, err)
        self._checked = False

    def _put(self, env: Env, replay: Replay) -> None:
        recent = fingerprint.last_writes(env, replay.pos, replay.length)
        size = self._runner.site.view().size(env.resource)
        pieces = fingerprint.take(self._runner.disk_fd, size, recent)
        self._write(Samples(self._member(), str(replay.pos), pieces).pack())

    # ---- at the beginning ----

    async def check(self, env: Env, held: bool) -> None:
        """Before anything writes to the disk; `held`: it was never let go."""
        runner = self._runner
        state, samples = ("", None) if held else self._read()
        self._checked = True
        if held:
            self.drop()
            return
        if state == ACCEPTED:
            self.accepted = True
            return
        if not state:
            state = await runner.site.blocking(self._look, env, samples)
        if state:
            self._break_durably(state)
        else:
            self.drop()

    def _look(self, env: Env, samples: Samples | None) -> str:
        """What is not as it must be, ""."""
        runner = self._runner
        view, host, resource = runner.site.view(), runner.site.host, runner.resource
        found = set(fingerprint.changed(runner.disk_fd, samples.pieces)) if samples is not None else set()
        replay = view.replay(resource, host)
        if replay is not None and view.consistent(resource, host):
            known = fingerprint.last_writes(env, replay.pos, replay.length)
            found.update(fingerprint.contradicted(runner.disk_fd, known))
        if not found:
            return ""
        return (f"{runner.device_path} was changed while MARS did not hold it, or is an older copy: other bytes at "
                f"{', '.join(map(str, sorted(found)[:3]))}{' ...' if len(found) > 3 else ''} ({len(found)} places)")

    def _break_durably(self, text: str) -> None:
        runner = self._runner
        self._write(json.dumps({BROKEN: text, "member": self._member()}).encode())
        LOG.info("%s: %s", runner.resource, text)
        resource, host = runner.resource, runner.site.host
        self.broken = text
        others = f"the others' data count: marsadm invalidate {resource}"
        mine = f"the data of this disk count: marsadm fake-sync {resource}"
        if runner.site.view().designated(resource) == host:
            others = (f"the others' data count: marsadm disconnect {resource}, marsadm primary --force {resource} on "
                      f"another host, then here: marsadm invalidate {resource}")
        else:
            runner.site.store.put(paths.syncstatus(resource, host), "0", durable=True)
        runner.replay_trouble = f"{text}. {others}; {mine}"
        runner.site.say(resource, KEY, runner.replay_trouble)
        runner.site.say(resource, "err-resource", runner.replay_trouble)

    # ---- decisions ----

    def accept(self, force: bool) -> None:
        """This disk's data count. The primary says so to the others by a gap, as soon as it serves."""
        runner = self._runner
        if runner.site.view().designated(runner.resource) != runner.site.host:
            self.drop()
            return
        consumer = runner.consumer
        at_end = consumer is not None and consumer.copy is not None and consumer.at == consumer.copy.at
        if not at_end and not force:
            raise PreconditionError(
                f"{runner.resource}: the log goes on behind what is on the disk: it would go over what was changed",
                f"make another host primary and invalidate here; or: marsadm fake-sync {runner.resource} --force")
        self._write(json.dumps({ACCEPTED: True, "member": self._member()}).encode())
        self._forget()
        self.accepted = True

    def drop(self) -> None:
        """Nothing is known of the disk any more, durably."""
        if os.path.lexists(self._path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            durable.sync_dir(os.path.dirname(self._path))
        self._forget()

    def judge(self, view: View) -> None:
        """Who was to say so to the others is not to be primary any more: nobody has decided then."""
        runner = self._runner
        if self.accepted and view.designated(runner.resource) != runner.site.host and runner.producer is None:
            self.accepted = False
            self._break_durably(f"{runner.device_path} was changed while MARS did not hold it")

    def _forget(self) -> None:
        runner = self._runner
        if self.broken:
            runner.replay_trouble = ""
            runner.site.say(runner.resource, "err-resource", "")
        runner.site.say(runner.resource, KEY, "")
        self.broken, self.accepted = "", False

    # ---- the file ----

    def _member(self) -> str:
        return self._runner.site.view().member_id(self._runner.resource, self._runner.site.host)

    def _write(self, data: bytes) -> None:
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        durable.write_file(self._path, data)

    def _read(self) -> tuple[str, Samples | None]:
        """(what was found before, or ACCEPTED; the samples). What is damaged, or of another membership, is nothing."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(fd, "rb") as file:
                raw = file.read(1 << 20)
            state = json.loads(raw)
            if not isinstance(state, dict) or state.get("member") != self._member():
                return "", None
            if state.get(ACCEPTED) is True:
                return ACCEPTED, None
            if isinstance(state.get(BROKEN), str):
                return state[BROKEN], None
            return "", Samples.parse(raw)
        except (OSError, ValueError, RecursionError, DamagedError):
            return "", None
