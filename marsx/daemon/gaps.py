"""How a member gets across a gap that emergency mode left in the log, or over logs that were dropped (rule 27).

    member: all that was fetched is replayed  ->  HEAL_ASK {resource, nr, producer, pos, digest, log_id}
    primary                                   <-  HEAL_ANSWER {verdict, text, nr, producer, size, shift} bits

The verdict is `regions` (what changed between the asker's position and the beginning of log `nr`), `full` (that is not
known: all of it), `wait` (no log is written still) or `none` (nothing is to be crossed here).

Order at the member: the regions durable -> syncstatus 0, durable -> the replay link at the beginning of that log. Only
then its log is fetched, and only then the sync may begin (the source refuses who stands before the gap), so that no
older log comes over what was synced. What the member still had to sync stays in the set.
"""
from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from marsx.base import messages
from marsx.base.errors import MarsError, PreconditionError
from marsx.base.position import LogPos
from marsx.daemon import drops, regions
from marsx.daemon.plan import sync_source
from marsx.daemon.regions import Regions
from marsx.log.chain import Point
from marsx.log.record import NO_ID, FileHeader
from marsx.peer import syncparts, wire
from marsx.peer.link import Link
from marsx.peer.server import Peer
from marsx.peer.wire import Type, WireError
from marsx.tree.view import View
from marsx.volume import gap

if TYPE_CHECKING:
    from marsx.daemon.consumer import Consumer
    from marsx.daemon.resource import Runner
    from marsx.daemon.worker import Worker

LOG = messages.get("daemon.gaps")
SERVICE = "heal"
ASK_AGAIN_S = 2.0
Answer = tuple[dict[str, Any], bytes]


class HealService:
    """The `heal` service of a primary."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def __call__(self, link: Link, peer: Peer) -> None:
        asked = wire.expect(await link.recv(link.timing.io_timeout), Type.HEAL_ASK).header
        resource, point = wire.take_text(asked, "resource", 63), syncparts.take_point(asked, "")
        runner = self._worker.runners.get(resource)
        if runner is None or peer.host not in self._worker.site.view().members(resource):
            raise PreconditionError(f"{peer.host} and {self._worker.site.host} do not share {resource}")
        if runner.producer is None:
            raise PreconditionError(f"{self._worker.site.host} is not primary of {resource}", "marsadm primary there")
        if runner.producer.primary.changed is not None:
            answer: Answer = {"verdict": "wait", "text": "no log is written there for want of room in /mars"}, b""
        else:
            env = runner.producer.env
            answer = await self._worker.site.blocking(answer_for, env.directory, env.uuid, resource, point, peer.host,
                                                      wire.take_hex(asked, "log_id", 32))
        if "nr" in answer[0]:
            self._worker.start_service.promise(resource, peer.host, answer[0]["nr"])
        await link.send(Type.HEAL_ANSWER, answer[0], answer[1])


def answer_for(directory: str, uuid: str, resource: str, point: Point, host: str, log_id: str) -> Answer:
    """What the member `host`, which is at `point`, has to do to come to the next log here. Blocks."""
    for header in gap.headers(directory, uuid, resource):
        if header.pred == point.at and header.pred_digest == point.digest:
            return _answer(header, _of_gap(directory, header))
    dropped = drops.load(directory, resource, host)
    if dropped is not None and dropped.upto.nr >= point.at.nr:
        following = drops.behind(directory, uuid, resource, dropped.upto)
        if following is None:
            return {"verdict": "none", "text": "the logs behind what was dropped are gone"}, b""
        found = dropped.regions if dropped.covers(point.at, log_id) else None
        if found is not None and following.gap_id != NO_ID:
            past = _of_gap(directory, following)
            found = None if past is None else found
            if found is not None and past is not None:
                found.unite(past)
        return _answer(following, found)
    return {"verdict": "none", "text": "no gap begins there"}, b""


def _of_gap(directory: str, header: FileHeader) -> Regions | None:
    """What went past the log in front of this one; None: not known."""
    changed = gap.find(directory, header)
    if changed is None or changed.header.state != gap.CLOSED:
        return None
    return Regions(changed.header.size, changed.header.shift, changed.bits())


def _answer(header: FileHeader, found: Regions | None) -> Answer:
    fields = {"nr": header.nr, "producer": header.producer}
    if found is None:
        return {"verdict": "full", "text": "which regions changed is not known any more", **fields}, b""
    form = {"size": found.size, "shift": found.shift}
    return {"verdict": "regions", "text": f"{found.amount()} bytes changed", **fields, **form}, found.bits


async def ask(runner: Runner, host: str, point: Point, log_id: str) -> tuple[str, str, LogPos | None, Regions | None]:
    """(verdict, text, where to begin, the regions) of the primary."""
    link, _ = await runner.site.dial(host, SERVICE)
    try:
        await link.send(Type.HEAL_ASK, {"resource": runner.resource, "log_id": log_id, **syncparts.point_fields(point)})
        frame = wire.expect(await link.recv(link.timing.io_timeout), Type.HEAL_ANSWER)
    finally:
        await link.close()
    fields = frame.header
    verdict, text = wire.take_text(fields, "verdict", 16), wire.take_text(fields, "text", 300)
    if verdict not in ("regions", "full"):
        return verdict, text, None, None
    at, found = LogPos(wire.take_nr(fields), wire.take_host(fields, "producer"), 0), None
    if verdict == "regions":
        try:
            found = Regions(wire.take_int(fields, "size", 512, 2**62), wire.take_int(fields, "shift", 12, 62),
                            bytes(frame.body))
        except ValueError as err:
            raise WireError(str(err)) from None
        if len(found.bits) != len(frame.body) or at <= point.at:
            raise WireError(f"a set of regions that does not fit its device, or begins at {at}")
    return verdict, text, at, found


async def cross(runner: Runner, consumer: Consumer) -> bool:
    """In the resource's turn: get over what lies ahead, if that can be done now. True: the replica begins at a later
    log."""
    site, view, copy = runner.site, runner.site.view(), consumer.copy
    if copy is None or consumer.at is None or runner.trouble or runner.replay_trouble:
        return False
    source, why = sync_source(view, runner.resource, site.host, site.reachable())
    if consumer.at != copy.at or not copy.digest.strip("0"):
        why = why or "what was fetched is replayed first"
    if not source or why:
        return _later(runner, why)
    try:
        verdict, text, at, found = await ask(runner, source, Point(copy.digest, copy.at),
                                               copy.header.log_id.hex() if copy.header is not None else "0" * 32)
    except (MarsError, OSError) as err:
        return _later(runner, f"{source}: {err}")
    if at is None:
        return _later(runner, f"{source}: {text}" if verdict == "wait" or consumer.gap_ahead else "")
    before = (consumer.at, consumer.digest)
    await runner.stop_consumer()
    if (consumer.at, consumer.digest) != before:
        return True
    if found is not None:
        found = await site.blocking(what_is_due, site.view(), site.host, runner.resource, copy.env.directory, found)
    amount = "all" if found is None else f"{found.amount()} bytes"
    LOG.info("%s: across the gap behind %s to %s (%s); %s are compared", runner.resource, before[0], at, text, amount)
    await runner.begin_anew(at, found)
    site.say(runner.resource, "inf-gap", f"healing behind a gap of the log ({text}): {amount} compared with {source}")
    return True


def finish(runner: Runner, consumer: Consumer) -> None:
    """A sync that has come to its end needs no set any more: the member's own fact ends it."""
    site, path = runner.site, regions.path_of(consumer.env.directory)
    if site.view().sync_rest(runner.resource, site.host) > 0 or consumer.sync.running:
        return
    if os.path.lexists(path):
        regions.drop(path)
    for key in ("err-sync", "inf-sync", "inf-sync-start"):  # who is told to stop at the very end says nothing more
        site.say(runner.resource, key, "")
    if not (consumer.gap_ahead or consumer.missing_log):
        site.say(runner.resource, "inf-gap", "")


def _later(runner: Runner, why: str) -> bool:
    runner.site.say(runner.resource, "inf-gap", f"a gap of the log lies ahead: {why}" if why else "")
    runner.later(ASK_AGAIN_S)
    return False


def what_is_due(view: View, host: str, resource: str, directory: str, found: Regions) -> Regions | None:
    """The new set, and what was still to be synced before; None: everything. Blocks (reads a file)."""
    if view.sync_done(resource, host):
        return found if view.consistent(resource, host) else None
    old = regions.load(regions.path_of(directory), resource)
    status = view.syncstatus(resource, host)
    if old is None:
        found.add(status, found.size - status)
    else:
        found.unite(old, status)
    return found
