"""Beginning a replica anew: where it starts, which facts it has then, what becomes of its old logs (rules 14, 16,
26e)."""

from __future__ import annotations

import os
import time

from marsx.base.errors import PreconditionError
from marsx.base.position import LogPos, log_name
from marsx.daemon.facts import Publisher
from marsx.daemon.site import Site
from marsx.log.chain import Point
from marsx.log.record import BLOCK, FileHeader
from marsx.peer import wire
from marsx.peer.wire import PeerError, Type
from marsx.tree import paths
from marsx.tree.paths import DELETED
from marsx.volume import recovery
from marsx.volume.env import Env


async def start_position(site: Site, resource: str) -> LogPos:
    """Ask the primary where a new replica begins; it keeps its logs from there on (rule 16)."""
    primary = site.view().designated(resource)
    if not primary or primary == site.host:
        raise PreconditionError(f"{resource}: no other host is designated primary", f"see: marsadm view {resource}")
    try:
        link, _ = await site.dial(primary, "start")
    except PeerError as err:
        raise PreconditionError(f"{primary}, the primary, has to say where the replica begins: {err.text}",
                                f"nothing was changed; look at marsd on {primary} and at the network, then try again"
                                ) from err
    try:
        await link.send(Type.START_ASK, {"resource": resource})
        answer = wire.expect(await link.recv(link.timing.io_timeout), Type.START_GRANT)
        return LogPos(wire.take_nr(answer.header), wire.take_host(answer.header, "producer"), 0)
    finally:
        await link.close()


def fresh_facts(site: Site, resource: str, at: LogPos, behind: Point | None = None) -> list[tuple[str, str]]:
    """Facts of a replica that knows nothing yet, in the order in which they have to become true. `behind`: it is
    consistent only there."""
    host, view = site.host, site.view()
    gone = [(paths.version(resource, nr, host), DELETED) for nr in view.version_numbers(resource, host)]
    mark = DELETED if behind is None else f"{behind.at},0,{behind.digest}"
    for rel, value in ((paths.syncpos(resource, host), mark), (paths.actual(resource, host, "fetched"), DELETED),
                       (paths.actual(resource, host, "taken"), DELETED)):
        if value != DELETED or site.store.get(rel):
            gone.append((rel, value))
    return [(paths.syncstatus(resource, host), "0"), *gone, (paths.replay(resource, host), f"{at},0")]


def withdraw(env: Env, publisher: Publisher, header: FileHeader, is_here: bool) -> None:
    """Step back over an empty log (rule 7). `is_here`: the disk position is its beginning; then the end of its
    predecessor is durable as the position before the log goes. So is that its version link is gone: a link without its
    log is lost memory (rule 22), a log without its link is found again by the next recovery. Blocks."""
    assert header.pred is not None
    if is_here:
        publisher.replayed(header.pred, header.pred_digest, make_durable=True)
    publisher.put([(paths.version(env.resource, header.nr, env.host), DELETED)], make_durable=True)
    recovery.remove_log(env, header)


def step_back(env: Env, publisher: Publisher, at: LogPos, digest: str, known: recovery.KnownDurable,
              others: bool = False) -> tuple[LogPos, str]:
    """Withdraw the empty logs of this host at the end of the history; `others`: one of another host too. Returns the
    disk position. Blocks."""
    while True:
        header = recovery.empty_end(env, at, known)
        if header is None or (header.producer != env.host and not others):
            return at, digest
        assert header.pred is not None
        is_here = (at.nr, at.producer) == (header.nr, header.producer)
        withdraw(env, publisher, header, is_here)
        others = False
        if is_here:
            at, digest = header.pred, header.pred_digest


def discarded(site: Site, resource: str) -> list[str]:
    """Names of the logs here that are of a branch which is given up: the history of the designated primary does not go
    through them, whoever wrote them. Where its version links do not reach back so far, only what this host wrote itself
    counts. To be asked while the own version links are there."""
    view, found = site.view(), []
    winner = view.designated(resource)
    for log in site.store.log_files(resource):
        own = view.version(resource, site.host, log.nr)
        known = view.in_history(resource, winner, own.end) if own and own.end.pos.producer == log.producer else None
        if log.size > BLOCK and known is not True and (known is False or log.producer == site.host):
            found.append(log_name(log.nr, log.producer))
    return found


def set_logs_aside(site: Site, resource: str, keep: list[str]) -> None:
    """The replica's logs leave the live tree: those of a discarded branch are kept aside (nobody's data vanish unseen),
    others are deleted, because the primary has them."""
    directory = os.path.join(site.store.root, paths.resource_dir(resource))
    aside = os.path.join(site.store.root, paths.local_dir(site.host), f"aside-{resource}", str(time.time_ns()))
    for log in site.store.log_files(resource):
        name = log_name(log.nr, log.producer)
        if name in keep:
            os.makedirs(aside, mode=0o700, exist_ok=True)
            os.rename(os.path.join(directory, name), os.path.join(aside, name))
        else:
            os.unlink(os.path.join(directory, name))
