"""The short way of `invalidate`: where only the history has parted, only what was written since is compared.

    own version links against those of the primary -> the last common point P -> the own logs behind it, verified ->
    the regions written there -> replay from P, sync of just these regions

Replay begins in the primary's log that follows P; where P lies inside of one of its logs, or the disk is behind P, at
the beginning of that log. Outside of the regions the disk holds the history up to P or less: what follows is replayed.
Inside, every sync rule holds (13 to 15). From the beginning of a log up to P replay passes states that never were, so
the replica counts as consistent only behind P: that is its syncpos until the sync raises it (rule 14). What cannot be
proved here, and every replica that was not consistent, takes the long way: all is compared. So does a second
`invalidate`.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from marsx.base import messages
from marsx.base.errors import MarsError
from marsx.base.position import LogPos
from marsx.daemon.regions import Regions
from marsx.log import chain
from marsx.log.chain import Point
from marsx.tree.view import View
from marsx.volume import gap, tail
from marsx.volume.env import Env
from marsx.volume.recovery import KnownDurable

if TYPE_CHECKING:
    from marsx.daemon.resource import Runner

LOG = messages.get("daemon.shortcut")


@dataclass(frozen=True)
class Shortcut:
    """`point`: the last common one. `at`: where replay begins, the beginning of a log."""

    point: Point
    at: LogPos
    due: Regions

    @property
    def text(self) -> str:
        """What is said of it."""
        return (f"the histories parted at {self.point.at}: only the {self.due.amount()} bytes in whose regions this "
                "host wrote since are compared (marsadm invalidate again compares all)")


async def find(runner: Runner) -> Shortcut | None:
    """None: the long way. In the resource's turn."""
    view, consumer, host = runner.site.view(), runner.consumer, runner.site.host
    if consumer is None or consumer.at is None or runner.trouble or runner.replay_trouble:
        return None
    where = parted_at(view, runner.resource, host)
    if where is None or not view.consistent(runner.resource, host):
        return None
    try:
        return await runner.site.blocking(_measure, consumer.env, where, consumer.at, runner.back.known_durable())
    except (MarsError, OSError) as err:
        LOG.info("%s: all is compared: %s", runner.resource, err)
        return None


class Follower(NamedTuple):
    """The log of a history that begins at a point; `pred`: that point as the log names it, which is another name for it
    where empty logs lie between (rule 7)."""

    begin: LogPos
    pred: Point


class Parting(NamedTuple):
    """The last common point, and what follows in the own history and in the primary's; None where it lies in a log."""

    point: Point
    mine: Follower | None
    theirs: Follower | None


def parted_at(view: View, resource: str, host: str) -> Parting | None:
    """Where the links of this host part from those of the designated primary, if they do."""
    primary = view.designated(resource)
    if not primary or primary == host:
        return None
    found = chain.histories(view.version_texts(resource), (host, primary))
    how = chain.relation(found[host], found[primary])
    if how.verdict != "split" or how.at is None or not how.at.pos:
        return None
    point = Point(how.digest, how.at)
    return Parting(point, _follower(found[host], point), _follower(found[primary], point))


def _follower(history: chain.History, point: Point) -> Follower | None:
    for nr in sorted(history, reverse=True):
        link = history[nr]
        if link.prev is not None and chain.canonical(history, link.prev) == point:
            return Follower(LogPos(nr, link.end.at.producer, 0), link.prev)
    return None


def _measure(env: Env, where: Parting, disk: LogPos, known_durable: KnownDurable) -> Shortcut | None:
    if where.mine is None:
        found = tail.behind(env, where.point, known_durable)
    else:
        found = tail.behind(env, where.mine.pred, known_durable, where.mine.begin)
    if found is None or disk > found.end:
        return None
    due = Regions(env.device_size, gap.shift_for(env.device_size))
    for offset, length in found.ranges:
        due.add(offset, length)
    if where.theirs is not None and disk >= where.point.at:
        return Shortcut(where.theirs.pred, where.theirs.begin, due)
    first = min(disk, where.point.at)
    return Shortcut(where.point, LogPos(first.nr, first.producer, 0), due)
