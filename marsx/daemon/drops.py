"""Logs that go although a member still needs them, because /mars is full: the oldest one first, and before the primary
has to do without log (rule 27; levels in `space`).

What a member has fetched it does not need from here any more. Of what it has not fetched, the regions that the log
changes are added to the member's own set, durably, before the log goes. When the member comes back it begins behind
what was dropped, and syncs just these (`gaps`). Everybody else stays as he is.

Invariants:
    the set of a member counts from one proved point of the history: where its verified copy of the log ended
    the own needs, logs that a stream reads, and the newest log are never touched (rule 9)
    a member whose position is not known keeps everything (rule 16)
"""
from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from marsx.base import durable, messages
from marsx.base.errors import DamagedError, MarsError
from marsx.base.position import LogPos, log_name
from marsx.daemon import regions, space
from marsx.daemon.regions import Regions
from marsx.log import reader
from marsx.log.chain import Point
from marsx.log.record import NO_ID, FileHeader
from marsx.tree import paths
from marsx.tree.view import View
from marsx.volume import gap

if TYPE_CHECKING:
    from marsx.daemon.resource import Runner

LOG = messages.get("daemon.drops")
PREFIX = ".drop-"


@dataclass
class Dropped:
    """What a member misses: the logs behind `mark` up to `upto`, and the regions these changed. `logs`: (number,
    producer, log id, end) of each. A log id is never given twice and its log is never written anew, so a verified copy
    of a log with that id that ends before `end` is a part of the history."""

    mark: LogPos
    upto: LogPos
    regions: Regions
    logs: list[tuple[int, str, str, int]]

    def covers(self, at: LogPos, log_id: str) -> bool:
        """Does the set say what changed behind this position?"""
        return at >= self.mark and any(
            (nr, producer, known) == (at.nr, at.producer, log_id) and at.pos <= end
            for nr, producer, known, end in self.logs)


def _path(directory: str, host: str) -> str:
    return os.path.join(directory, f"{PREFIX}{host}")


def save(directory: str, resource: str, host: str, dropped: Dropped) -> None:
    """Durable when this returns."""
    head = json.dumps({"mark": str(dropped.mark), "upto": str(dropped.upto), "logs": dropped.logs}).encode()
    durable.write_file(_path(directory, host), head + b"\n" + regions.pack(resource, dropped.regions))


def load(directory: str, resource: str, host: str) -> Dropped | None:
    """None: there is nothing, or it is not sound."""
    try:
        fd = os.open(_path(directory, host), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        head, body = file.readline(1 << 20), file.read(regions.BITS_MAX + 4096)
    try:
        fields = json.loads(head)
        mark, upto = LogPos.parse(fields["mark"]), LogPos.parse(fields["upto"])
        logs = [(int(nr), str(producer), str(log_id), int(end)) for nr, producer, log_id, end in fields["logs"]]
    except (ValueError, KeyError, TypeError, RecursionError, DamagedError):
        return None
    found = regions.parse(body, resource)
    return None if found is None else Dropped(mark, upto, found, logs)


def forget_old(directory: str, view: View, resource: str) -> bool:
    """Sets of members that have got over it, or are no members any more, go. True: none is left."""
    left = False
    for name in os.listdir(directory):
        host = name.removeprefix(PREFIX)
        if host == name:
            continue
        replay, dropped = view.replay(resource, host), load(directory, resource, host)
        over = dropped is None or (replay is not None and replay.pos.nr > dropped.upto.nr)
        if over or host not in view.members(resource):
            os.unlink(os.path.join(directory, name))
        else:
            left = True
    return not left


def behind(directory: str, uuid: str, resource: str, upto: LogPos) -> FileHeader | None:
    """Header of the log that follows, if it is here."""
    for entry in reader.list_logs(directory):
        if entry.nr > upto.nr:
            try:
                with reader.open_log(entry.path, uuid, resource) as log:
                    if log.header.pred == upto:
                        return log.header
            except (MarsError, OSError):
                continue
    return None


# ---- which log, and who needs it ----

FULL = space.LEVELS[-1]  # the emergency level of a /mars that takes no log

def oldest_wanted(view: View, resource: str, host: str, logs: list[tuple[int, str]],
                  others: list[int | None]) -> tuple[int, str, list[str]] | None:
    """(number, producer, who has not fetched it) of the log that could go next; None: none may. `logs`: by rising
    number; `others`: numbers from which on somebody else keeps logs (streams, promises)."""
    if len(logs) < 2:
        return None
    nr, producer = logs[0]
    if view.first_needed(resource, host) <= nr or any(other is not None and other <= nr for other in others):
        return None
    missing = []
    for member in view.members(resource):
        if member == host or view.first_needed(resource, member) > nr:
            continue
        fetched, replay = view.fetched(resource, member), view.replay(resource, member)
        if replay is None:
            return None
        if fetched is None or fetched.pos.nr <= nr:
            missing.append(member)
    return nr, producer, missing


def measure(missing: list[str]) -> str:
    """As `space.MEASURES` calls it."""
    return "drop-fetched" if not missing else "drop-of-one" if len(missing) == 1 else "drop-of-several"


# ---- doing it ----

def begin(runner: Runner) -> None:
    """When space is scarce: the next log goes, if the level says so. On a primary one at a time, in the background. A
    secondary does not keep for others what it has replayed: they get it from the primary, or are healed by it."""
    site, resource = runner.site, runner.resource
    if runner.producer is not None:
        if runner.dropping is None or runner.dropping.done():
            runner.dropping = asyncio.create_task(_in_background(runner), name=f"drop {resource}")
        return
    logs, pinned = _logs(runner), runner.pinned()
    if ("drop-replayed" in space.measures(site.level, "secondary") and len(logs) > 1
            and site.view().first_needed(resource, site.host) > logs[0][0]
            and (pinned is None or pinned > logs[0][0])):
        site.store.make_durable([paths.replay(resource, site.host)])
        os.unlink(os.path.join(runner.directory(), log_name(*logs[0])))


def _logs(runner: Runner) -> list[tuple[int, str]]:
    return [(log.nr, log.producer) for log in runner.site.store.log_files(runner.resource)]


def _next(runner: Runner) -> tuple[int, str, list[str]] | None:
    site, resource, logs = runner.site, runner.resource, _logs(runner)
    view, promised = site.view(), site.promised(resource)
    pinned = None if takes_nothing(view, resource, site.host, logs) else runner.pinned()
    return oldest_wanted(view, resource, site.host, logs, [pinned, promised])


def takes_nothing(view: View, resource: str, host: str, logs: list[tuple[int, str]]) -> bool:
    """Are all members that the oldest log could go to full themselves? They ask for it again and again, and would hold
    it for ever; a stream that is just reading it keeps its open file."""
    found = oldest_wanted(view, resource, host, logs, [])
    return found is not None and bool(found[2]) and all(view.emergency(member) >= FULL for member in found[2])


async def _in_background(runner: Runner) -> None:
    await _one(runner, runner.site.level)


async def one(runner: Runner, level: int) -> bool:
    """On a primary, at once: the next log goes if the level says so. True: one went, or is just going."""
    if runner.dropping is not None and not runner.dropping.done():
        await asyncio.wait([runner.dropping])
        return True
    return await _one(runner, level)


async def _one(runner: Runner, level: int) -> bool:
    site, resource, directory, found = runner.site, runner.resource, runner.directory(), _next(runner)
    if found is None or measure(found[2]) not in space.measures(level, "primary"):
        return False
    nr, producer, missing = found
    path = os.path.join(directory, log_name(nr, producer))
    view = site.view()
    try:
        for host in missing:
            await site.blocking(add_log, directory, view.log_uuid(resource), resource, host, path,
                                mark_of(view, resource, host), view.size(resource))
        site.store.make_durable([paths.replay(resource, site.host)])
        again = _next(runner)
        if again is None or again[:2] != (nr, producer) or not set(again[2]) <= set(missing):
            return False  # the world has changed meanwhile
        os.unlink(path)
    except (MarsError, OSError) as err:
        LOG.info("%s: log %d stays: %s", resource, nr, err)
        return False
    who = f"{', '.join(missing)} will be healed by the regions it changed" if missing else "all members have fetched it"
    LOG.info("%s: /mars is full: log %d is dropped, %s", resource, nr, who)
    if missing:
        site.say(resource, "wrn-log-dropped", f"/mars is full: log {nr} was dropped, {who}")
    return True


def mark_of(view: View, resource: str, host: str) -> Point | None:
    """Where the member's verified copy of the log ends, as it says itself; None: at the beginning of its log."""
    fetched, replay = view.fetched(resource, host), view.replay(resource, host)
    if fetched is not None and fetched.digest:
        return Point(fetched.digest, fetched.pos)
    if replay is not None and replay.pos.pos == 0:
        return None
    raise MarsError(f"where {host} stands is not known exactly", "it has to be connected once, or to leave")


def add_log(directory: str, uuid: str, resource: str, host: str, path: str, mark: Point | None, size: int) -> None:
    """Before the log goes: what it changes behind the member's mark is in the member's set, durably. Blocks."""
    with reader.open_log(path, uuid, resource) as log:
        header = log.header
        following = next((one for one in _headers(directory, uuid, resource) if one.pred is not None
                          and (one.pred.nr, one.pred.producer) == (header.nr, header.producer)), None)
        if following is None or following.pred is None:
            raise MarsError(f"nothing follows {header.name}")
        inside = mark is not None and (mark.at.nr, mark.at.producer) == (header.nr, header.producer)
        start, digest = (mark.at.pos, mark.digest) if inside and mark is not None else (0, header.digest0)
        scan = reader.scan(log.fd, header, start, digest or header.digest0, following.pred.pos,
                           group=None if start else 0, collect=reader.COLLECT_RECORDS, look=0)
        if scan.end != following.pred.pos or scan.digest != following.pred_digest:
            raise DamagedError(f"{path} does not lead from where {host} stands to its end {following.pred.pos}",
                               f"{host} may be of another history: see mars-status")
    dropped = load(directory, resource, host)
    if dropped is None or (dropped.upto.nr, dropped.upto.producer) != _before(header):
        if not inside and mark is not None:
            raise MarsError(f"{host} stands at {mark.at}, in front of logs that are gone", "it has to be invalidated")
        at = mark.at if mark is not None else header.start
        dropped = Dropped(at, following.pred, Regions(size, gap.shift_for(size)), [])
    for _, fields in scan.iter_records():
        dropped.regions.add(fields[4], fields[5])
    dropped.upto = following.pred
    dropped.logs.append((header.nr, header.producer, header.log_id.hex(), following.pred.pos))
    if header.gap_id != NO_ID:
        changed = gap.find(directory, header)
        if changed is None or changed.header.state != gap.CLOSED:
            raise MarsError("the map of the gap before it is not there")
        dropped.regions.unite(Regions(changed.header.size, changed.header.shift, changed.bits()))
    save(directory, resource, host, dropped)


def _before(header: FileHeader) -> tuple[int, str]:
    return (header.pred.nr, header.pred.producer) if header.pred is not None else (0, "")


def _headers(directory: str, uuid: str, resource: str) -> list[FileHeader]:
    found = []
    for entry in reader.list_logs(directory):
        with reader.open_log(entry.path, uuid, resource) as log:
            found.append(log.header)
    return found
