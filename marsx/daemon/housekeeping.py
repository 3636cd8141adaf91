"""Logs that nobody needs any more, logs that got too long, members that were removed (rules 9, 16, 26d; facts 6.1).

A log N may be deleted here when every member's replay link is in a later log, or at N's end and the member has N+1
(also an empty one: rule 7), no stream reads it, nobody was promised to begin there, and N is not the newest, nor the
one before an empty newest one of another host. A member without replay link blocks deletion (rule 16). The own position
must be durable first: a power cut must not put it back into a log that is gone.

Version links are kept as long as somebody can ask them something: from the log before the oldest one that is here, and
those of the log of the own syncpos and of the next one, which show that syncpos lies in the own history (rule 14). So
is the one below a hole, as long as the log behind it is here (rule 27).

On a primary the largest deleted file is kept for the next log, because space that was written before is faster. It is
small beside what is free, the first to go when space is scarce, and gone where there is no primary.
"""
from __future__ import annotations

import os
from typing import TYPE_CHECKING

from marsx.daemon import drops
from marsx.daemon.emergency import thresholds
from marsx.log import writer
from marsx.log.record import NO_DIGEST
from marsx.tree import paths

if TYPE_CHECKING:
    from marsx.daemon.resource import Runner
    from marsx.daemon.site import Site
    from marsx.daemon.worker import Worker
    from marsx.tree.view import View

LOG_LEAST = 64 << 20
SPARE_MOST = 1 << 30


def lowest_needed(worker: Worker, runner: Runner) -> int:
    """Logs with smaller numbers are not needed by anybody."""
    view, resource = worker.site.view(), runner.resource
    needed = []
    for host in view.members(resource):
        needed.append(view.first_needed(resource, host))
    for other in (runner.pinned(), worker.start_service.lowest(resource)):
        if other is not None:
            needed.append(other)
    logs = worker.site.store.log_files(resource)
    if logs:
        needed.append(_end_of_history(view, resource, worker.site.host, logs[-1].nr))
    return min(needed, default=0)


def _end_of_history(view: View, resource: str, host: str, newest: int) -> int:
    """The newest log; the one before it, while the newest one is an empty one of another host. He may withdraw it, and
    then this replica steps back over it (rule 7)."""
    link = view.version(resource, host, newest)
    if link is None or link.previous is None or link.end.pos.pos or link.end.pos.producer == host:
        return newest
    return link.previous.pos.nr


def deletable(worker: Worker, runner: Runner, count: int | None) -> list[str]:
    """Names of the `count` oldest (None: all) logs that nobody needs."""
    limit, resource = lowest_needed(worker, runner), runner.resource
    victims = [log for log in worker.site.store.log_files(resource) if log.nr < limit][:count]
    return [paths.log(resource, log.nr, log.producer).rpartition("/")[2] for log in victims]


def delete_logs(worker: Worker, runner: Runner, count: int | None) -> list[str]:
    """Delete the `count` oldest (None: all) logs that nobody needs; returns their names. Version links that nobody
    needs go too."""
    store, resource, host = worker.site.store, runner.resource, worker.site.host
    directory = os.path.join(store.root, paths.resource_dir(resource))
    names = deletable(worker, runner, count)
    if names:
        store.make_durable([paths.replay(resource, host)])
    for name in names:
        _delete_file(worker, runner, os.path.join(directory, name))
    _delete_links(worker, resource, min((log.nr for log in store.log_files(resource)), default=0))
    return names


def _delete_file(worker: Worker, runner: Runner, path: str) -> None:
    stat = os.statvfs(path)
    if runner.producer is None or _is_scarce(worker.site, stat):
        os.unlink(path)
    else:
        writer.set_aside(path, min(SPARE_MOST, stat.f_bavail * stat.f_frsize // 16))


def _delete_links(worker: Worker, resource: str, oldest: int) -> None:
    """Version links of this host that speak of logs long gone; `oldest`: log that is still here."""
    view, host = worker.site.view(), worker.site.host
    syncpos = view.syncpos(resource, host)
    kept = {syncpos.pos.nr, syncpos.pos.nr + 1} if syncpos is not None else set()
    numbers = view.version_numbers(resource, host)
    hole = view.version(resource, host, oldest - 1)
    if hole is not None and hole.end.digest == NO_DIGEST:
        # where this host wrote on past its log: who goes on there has parted from it (rule 27)
        kept |= {max((nr for nr in numbers if nr < oldest - 1), default=0)}
    for nr in numbers:
        if nr < oldest - 1 and nr not in kept:
            worker.site.store.delete(paths.version(resource, nr, host))


def follow_up(worker: Worker, runner: Runner) -> None:
    """On a secondary: what the primary has deleted (its version link is gone) and nobody needs goes here too, and the
    file kept for the next log of a primary."""
    if runner.producer is not None:
        return
    drop_spare(worker, runner)
    view, resource = worker.site.view(), runner.resource
    primary = view.designated(resource)
    if not primary or view.actual(resource, primary, "is-primary") != "1":
        return
    theirs = view.version_numbers(resource, primary)
    mine = [log.nr for log in worker.site.store.log_files(resource)]
    if mine and theirs and mine[0] < _first_of_run(theirs):
        delete_logs(worker, runner, None)


def _first_of_run(numbers: tuple[int, ...]) -> int:
    """The lowest of the numbers that lead without a gap to the highest."""
    first = numbers[-1]
    while first - 1 in numbers:
        first -= 1
    return first


async def rotate_if_long(worker: Worker, runner: Runner) -> None:
    """logrot_auto_gb, and never more than a 32nd of the file system of the logs but at least 1 GiB (facts 3.6); on a
    small one never more than an eighth, so that something can be deleted. A log that found no room any more is ended
    too."""
    producer = runner.producer
    if producer is None or producer.primary.volume is None:
        return
    limit_gb = worker.site.settings.get("logrot_auto_gb")
    if not limit_gb:
        return
    stat = os.statvfs(worker.site.store.root)
    total = stat.f_blocks * stat.f_frsize
    limit = min(limit_gb << 30, max(1 << 30, total // 32), max(LOG_LEAST, total // 8))
    state = producer.primary.volume.state
    if state["direct"] or (state["stalled_ns"] and state["in_flight"]):
        return  # no log is written; or a group has its place in this one and waits for room: it cannot end before
    if state["durable"] >= limit or (state["stalled_ns"] and state["durable"]):
        async with runner.exclusive():
            if runner.producer is producer and producer.primary.changed is None:
                await producer.rotate()


def _is_scarce(site: Site, stat: os.statvfs_result) -> bool:
    """Less than the limits of facts 6.2, or an eighth of the file system, is free."""
    free, total = stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize
    return free < max(thresholds(site, total)[0], total // 8)


def scarce(worker: Worker) -> bool:
    """Space for logs is scarce now."""
    return _is_scarce(worker.site, os.statvfs(worker.site.store.root))


def make_room(worker: Worker, runner: Runner) -> None:
    """When space is scarce: logs that nobody needs go by themselves; the file kept for the next one goes before."""
    drop_spare(worker, runner)
    delete_logs(worker, runner, None)
    drops.begin(runner)


def drop_spare(worker: Worker, runner: Runner) -> None:
    """The file kept for the next log goes."""
    writer.drop_spare(os.path.join(worker.site.store.root, paths.resource_dir(runner.resource)))
